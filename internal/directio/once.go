package directio

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Once is a file that is read once. What is read of it and was not in the page cache does not stay there, where it would push out what others
// read again and again (RWF_DONTCACHE of preadv2(2), Linux 6.14 and newer). What was there stays.
type Once struct {
	*os.File
	usual bool // the kernel or the file system cannot do that
}

// NewOnce is for a file that is read from its beginning to its end.
func NewOnce(f *os.File) *Once {
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL) // an advice: the kernel then reads further ahead
	return &Once{File: f}
}

// ReadAt implements [io.ReaderAt].
func (f *Once) ReadAt(b []byte, at int64) (n int, err error) {
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
