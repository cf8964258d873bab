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

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/pgdata"
)

// spoolName is the directory for what walden keeps for a while on the host of a server.
const spoolName = ".walden-spool"

const dirMode = 0o700

// errSpoolInside says that what the setting asks for would be a spool in the cluster.
var errSpoolInside = errors.New("it lies in the data directory or in pg_wal, where a spool is taken for a part of the cluster")

// spoolDir finds, and makes where it is not there, the directory in which walden keeps what belongs to the data directory of path, a file in pg_wal.
// It lies beside the cluster and never in it, where pg_rewind and backups would take it along: in base, else beside the real pg_wal if that lies
// outside of the data directory, on whose disk the files are going to be, else beside the data directory. Each data directory has its own, named
// after its real path.
//
// A directory that others can write to or that a link leads to is refused. The error is errSpoolInside where base is in the cluster.
func spoolDir(path, base string) (string, error) {
	data, err := dataDirOf(path)
	if err != nil {
		return "", err
	}
	if owner, err := ownerOf(data); err != nil || owner != os.Geteuid() { // what an administrator's account made would be in the server's way
		return "", errors.Join(fmt.Errorf("cannot use a spool: %s belongs to user %d", data, owner), err)
	}
	walDir, err := filepath.EvalSymlinks(filepath.Join(data, "pg_wal"))
	if err != nil {
		return "", err
	}
	parent := base
	switch {
	case base != "":
	case within(walDir, data):
		parent = filepath.Dir(data)
	default:
		parent = filepath.Dir(walDir)
	}
	if parent, err = realPath(parent); err != nil {
		return "", err
	}
	if within(parent, data) || within(parent, walDir) {
		return "", hint.With(fmt.Errorf("cannot use %s for the spool: %w", parent, errSpoolInside), "give a directory beside the data directory, or leave the setting out")
	}
	if err := checkShared(parent); err != nil {
		return "", err
	}
	const length = 8 // bytes of the hash: data directories of one host
	sum := sha256.Sum256([]byte(data))
	dir := parent
	for _, name := range []string{spoolName, hex.EncodeToString(sum[:length])} {
		dir = filepath.Join(dir, name)
		if err := privateDir(dir); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func ownerOf(path string) (int, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return int(st.Uid), nil
}

// dataDirOf finds the real path of the data directory that a WAL file lies in.
func dataDirOf(path string) (string, error) {
	for _, dir := range dataDirs(path) {
		if exists(filepath.Join(dir, pgdata.ControlName)) {
			return realPath(dir)
		}
	}
	return "", fmt.Errorf("cannot find the data directory of %s", path)
}

// realPath is a path from the root without links.
func realPath(path string) (string, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(absolute)
}

// within tells whether a path is dir or lies in it; both are real paths.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// checkShared refuses a directory in which anybody could put another in the place of ours.
func checkShared(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	const others = 0o002
	if info.Mode()&others != 0 && info.Mode()&os.ModeSticky == 0 {
		return fmt.Errorf("cannot use %s for the spool: everybody may rename what is in it", dir)
	}
	return nil
}

// privateDir makes a directory for nobody but us, or checks that it is one.
func privateDir(dir string) error {
	if err := os.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	const forOthers = 0o077
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("cannot use %s for the spool: it is not a directory", dir)
	case int64(st.Uid) != int64(os.Geteuid()):
		return fmt.Errorf("cannot use %s for the spool: it belongs to user %d", dir, st.Uid)
	case st.Mode&forOthers != 0:
		return fmt.Errorf("cannot use %s for the spool: its mode is %#o, not %#o", dir, st.Mode&0o777, dirMode)
	}
	return nil
}
