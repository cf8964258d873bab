package backup

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// dataFile is a file of a server's data directory. What is read of it and was not in the page cache does not stay there, since a backup reads
// everything once, and would push out what the server reads again and again (RWF_DONTCACHE of preadv2(2), Linux 6.14 and newer). What
// was there stays.
type dataFile struct {
	*os.File
	usual bool // the kernel or the file system cannot do that
}

// openDataFile opens a file of the data directory dir for reading. It follows no link, and waits for no other end of a pipe.
func openDataFile(dir, name string) (*dataFile, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL) // advice
	return &dataFile{File: f}, nil
}

// ReadAt implements [io.ReaderAt].
func (f *dataFile) ReadAt(b []byte, at int64) (n int, err error) {
	for !f.usual && n < len(b) {
		m, err := unix.Preadv2(int(f.Fd()), [][]byte{b[n:]}, at+int64(n), unix.RWF_DONTCACHE)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
			f.usual = true
		case err != nil:
			return n, &fs.PathError{Op: "read", Path: f.Name(), Err: err}
		case m == 0:
			return n, io.EOF
		default:
			n += m
		}
	}
	if n == len(b) {
		return n, nil
	}
	m, err := f.File.ReadAt(b[n:], at+int64(n))
	return n + m, err
}
