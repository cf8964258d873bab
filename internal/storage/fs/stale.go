package fs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// RemoveStale removes the temporary files below dir ("" for all, otherwise ending in "/") that writers left behind which were
// killed, and tells how many. It takes for left behind what was begun and last written longer ago than age and is locked by
// nobody: walden locks its temporary files while it writes them, and the age is for WAL-G and for file systems without
// locks. Symbolic links are not followed. Objects, of whatever age, are never touched.
func (s *Store) RemoveStale(ctx context.Context, age time.Duration, dir string) (removed int, err error) {
	root, err := s.open(ctx)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	before := time.Now().Add(-age)
	err = fs.WalkDir(root.FS(), path.Clean(dir), func(name string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // gone since its name was read
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case !e.Type().IsRegular() || !begunBefore(e.Name(), before):
			return nil
		}
		gone, err := removeStale(root, name, before)
		if gone {
			removed++
		}
		return err
	})
	if err != nil {
		err = fmt.Errorf("cannot remove stale temporary files from %s: %w", s, err)
	}
	return removed, err
}

// begunBefore tells whether a name is that of a temporary file, by its own word begun before a moment.
func begunBefore(name string, moment time.Time) bool {
	suffix := temporary.FindString(name)
	if suffix == "" {
		return false
	}
	stamp, _, _ := strings.Cut(strings.TrimPrefix(suffix, ".tmp."), "-")
	begun, err := time.Parse("20060102T150405Z", stamp)
	return err == nil && begun.Before(moment)
}

// removeStale removes one temporary file unless it was written since, or is locked.
func removeStale(root *os.Root, name string, before time.Time) (bool, error) {
	f, err := root.OpenFile(name, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0) // NFS locks only what is open for writing
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() || !info.ModTime().Before(before) {
		return false, nil
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil && !errors.Is(err, unix.ENOLCK) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return false, err
	}
	err = root.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
