package archive

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"gitlab.com/walden-pg/walden/internal/pgdata"
)

// spoolName is the folder with what walden keeps between its calls, one folder below it for each data directory.
const spoolName = ".walden-spool"

// spoolDir finds the folder for what is kept between the calls for one data directory, and makes it if it is not there. path is a file in that
// directory's pg_wal, base where the folder is to lie; "" is beside pg_wal where that is a link out of the data directory, else beside the data
// directory. It never lies inside of either: backups, pg_rewind and the server itself take what is there for PostgreSQL's own.
func spoolDir(path string, base string) (string, error) {
	data, err := dataDirOf(path)
	if err != nil {
		return "", err
	}
	if !isOurs(data) { // what an administrator's account made would be in the server's way
		return "", fmt.Errorf("%s belongs to another account", data)
	}
	walDir, err := realPath(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	if base == "" {
		base = filepath.Dir(data)
		if !within(walDir, data) {
			base = filepath.Dir(walDir)
		}
	}
	if base, err = realPath(base); err != nil {
		return "", err
	}
	if within(base, data) || within(base, walDir) {
		return "", fmt.Errorf("%s lies in the data directory or its pg_wal", base)
	}
	hash := sha256.Sum256([]byte(data))
	dir := filepath.Join(base, spoolName)
	for _, step := range []string{dir, filepath.Join(dir, hex.EncodeToString(hash[:8]))} {
		if err := privateDir(step); err != nil {
			return "", err
		}
		dir = step
	}
	return dir, nil
}

// dataDirOf is the real path of the data directory that a file in pg_wal belongs to.
func dataDirOf(path string) (string, error) {
	for _, dir := range dataDirs(path) {
		if !exists(filepath.Join(dir, pgdata.ControlName)) {
			continue
		}
		return realPath(dir)
	}
	return "", fmt.Errorf("no data directory is near %s", path)
}

// realPath is a path from the root without links.
func realPath(path string) (string, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(absolute)
}

// within tells whether a path is dir or lies below it; both are absolute and without links.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// isOurs tells whether a path belongs to the account that walden runs as.
func isOurs(path string) bool {
	info, err := os.Lstat(path)
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// privateDir makes a folder that nobody else can put anything into. One that is there already must be like that.
func privateDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 || !isOurs(dir) {
		return fmt.Errorf("%s is not a directory of this user alone (mode 0700)", dir)
	}
	return nil
}
