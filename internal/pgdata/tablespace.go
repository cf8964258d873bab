package pgdata

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// tablespaceDir is where a data directory keeps its tablespaces.
const tablespaceDir = "pg_tblspc"

// Tablespace is a tablespace that an administrator created; the two built-in ones lie in base/ and global/.
type Tablespace struct {
	OID      uint32
	Location string // absolute path; the server's files are in its version directory
	InPlace  bool   // a directory in pg_tblspc itself instead of a link (allow_in_place_tablespaces)
}

// TablespaceVersionDir returns the name of the directory that a server creates in each tablespace's location, and
// which tells its files from those of another version: "PG_15_202209061".
func TablespaceVersionDir(major int, catalogVersion uint32) string {
	return fmt.Sprintf("PG_%d_%d", major, catalogVersion)
}

// Tablespaces lists the tablespaces of the cluster in dataDir in the order of their OIDs. It looks at the links only,
// not at whether their targets exist.
func Tablespaces(dataDir string) ([]Tablespace, error) {
	dir, err := filepath.Abs(filepath.Join(dataDir, tablespaceDir))
	if err != nil {
		return nil, fmt.Errorf("cannot list tablespaces: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot list tablespaces: %w", err)
	}
	var spaces []Tablespace
	for _, e := range entries {
		oid, ok := parseOID(e.Name())
		if !ok {
			continue
		}
		path := filepath.Join(dir, e.Name())
		switch e.Type() {
		case fs.ModeDir:
			spaces = append(spaces, Tablespace{OID: oid, Location: path, InPlace: true})
		case fs.ModeSymlink:
			location, err := linkTarget(path)
			if errors.Is(err, fs.ErrNotExist) { // dropped meanwhile
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("cannot list tablespaces: %w", err)
			}
			spaces = append(spaces, Tablespace{OID: oid, Location: location})
		}
	}
	slices.SortFunc(spaces, func(a, b Tablespace) int { return cmp.Compare(a.OID, b.OID) })
	return spaces, nil
}

// linkTarget returns the absolute path a symbolic link points to, without following further links.
func linkTarget(path string) (string, error) {
	target, err := os.Readlink(path)
	if err != nil {
		return "", err
	}
	if !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(path), target)
	}
	return filepath.Clean(target), nil
}

// parseOID reads an object identifier or relation file number as the server writes them into names: decimal, without
// leading zeros, not 0.
func parseOID(s string) (uint32, bool) {
	if s == "" || s[0] < '1' || s[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil
}
