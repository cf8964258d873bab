// Package directio writes and reads large files without filling the page cache: what a backup or a restore writes or reads is not read
// again soon, and would push out of memory what is. To fill the cache also costs a copy and a page of memory for every page written.
//
// [Copier] writes (open(2), O_DIRECT), [Once] reads (preadv2(2), RWF_DONTCACHE).
package directio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// BufferSize is how much is written at once, in bytes, and what is not more than that is written through the page cache.
	BufferSize = 512 << 10

	// alignment in bytes of what is written past the page cache, in memory and in the file: the block size of ext4 and XFS
	// nearly everywhere, and a multiple of what disks ask for. Where it is not enough the kernel says EINVAL.
	alignment = 4096

	// flushEvery is how much of a file is written to the page cache before the disk is told to begin with it, in bytes, so that the sync at
	// the end has little left to do.
	flushEvery = 2 << 20

	// preallocate bounds the space in bytes that is reserved for a file before it is written: that of a relation's segment.
	preallocate = 1 << 30
)

// Copier writes streams to files. It keeps buffers from one file to the next, and can be used by several goroutines. [New] makes one.
type Copier struct {
	cached  bool
	buffers sync.Pool // of *[]byte: BufferSize bytes that begin at a multiple of the alignment
}

// New returns a Copier. With cached everything goes through the page cache.
func New(cached bool) *Copier {
	return &Copier{cached: cached, buffers: sync.Pool{New: func() any {
		b := make([]byte, BufferSize+alignment)
		b = b[-uintptr(unsafe.Pointer(&b[0]))%alignment:][:BufferSize]
		return &b
	}}}
}

// WriteError is a failure of the file, and not of what was to be written to it.
type WriteError struct{ err error }

func (e *WriteError) Error() string { return e.err.Error() }
func (e *WriteError) Unwrap() error { return e.err }

// Copy writes what r yields to f, which is empty, and returns how many bytes these are. It reads on while it writes. The file is neither synced nor closed.
// size is how many bytes are expected, for which space is reserved, or -1. before, if it is not nil, is called with the number of bytes of each
// write; its error ends the copy.
//
// Errors of r, of before and of the context come as they are, those of the file as [*WriteError].
func (c *Copier) Copy(ctx context.Context, f *os.File, r io.Reader, size int64, before func(n int) error) (written int64, err error) {
	buf := c.buffers.Get().(*[]byte)
	defer c.buffers.Put(buf)
	t := &target{ctx: ctx, f: f, before: before}
	n, end := readFull(ctx, r, *buf)
	if end == nil { // there may be more
		next := c.buffers.Get().(*[]byte)
		defer c.buffers.Put(next)
		if t.direct = !c.cached && allowsDirect(f); t.direct && size > BufferSize {
			// Streams that are written at the same time would lie in pieces between each other. Where it cannot be reserved, writing will tell.
			_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, min(size, preallocate))
		}
		for end == nil {
			failed := make(chan error, 1)
			go func() { failed <- t.write((*buf)[:n]) }()
			var m int
			m, end = readFull(ctx, r, *next)
			if err := <-failed; err != nil {
				return t.written, err
			}
			buf, next, n = next, buf, m
		}
	}
	if end != io.EOF {
		return t.written, end
	}
	err = t.end((*buf)[:n])
	return t.written, err
}

// readFull reads until the buffer is full or r ends, and keeps apart an end (io.EOF) and a failure.
func readFull(ctx context.Context, r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// target is a file being written.
type target struct {
	ctx              context.Context // of the Copy
	f                *os.File
	before           func(n int) error
	direct           bool // past the page cache, as far as it goes
	flagged          bool // O_DIRECT is set
	written, flushed int64
}

// end writes the last bytes, and leaves the file as it was opened.
func (t *target) end(p []byte) error {
	if err := t.write(p); err != nil {
		return err
	}
	if err := t.flag(false); err != nil {
		return &WriteError{err}
	}
	return nil
}

// write writes whole blocks past the page cache if it may, and the rest, which is the end of a file, through it.
func (t *target) write(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if err := t.ctx.Err(); err != nil {
		return err
	}
	if t.before != nil {
		if err := t.before(len(p)); err != nil {
			return err
		}
	}
	if t.direct {
		n, err := t.writeDirect(p[:len(p)&^(alignment-1)])
		if err != nil {
			return &WriteError{err}
		}
		p = p[n:]
	}
	if len(p) == 0 {
		return nil
	}
	if err := t.flag(false); err != nil {
		return &WriteError{err}
	}
	n, err := t.f.Write(p)
	t.written += int64(n)
	if err != nil {
		return &WriteError{err}
	}
	if t.written-t.flushed >= flushEvery {
		// Only a beginning, which some file systems have none of: the sync decides.
		_ = unix.SyncFileRange(int(t.f.Fd()), t.flushed, t.written-t.flushed, unix.SYNC_FILE_RANGE_WRITE)
		t.flushed = t.written
	}
	return nil
}

// writeDirect writes p, or as much of it as the file takes past the page cache: if that is not everything, it never will.
func (t *target) writeDirect(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := t.flag(true); err != nil {
		t.direct = false
		return 0, nil
	}
	n, err := t.f.Write(p)
	t.written += int64(n)
	t.flushed = t.written
	if errors.Is(err, unix.EINVAL) {
		t.direct, err = false, nil
	}
	return n, err
}

// flag sets or clears O_DIRECT.
func (t *target) flag(direct bool) error {
	if t.flagged == direct {
		return nil
	}
	flags, err := unix.FcntlInt(t.f.Fd(), unix.F_GETFL, 0)
	if err == nil {
		if direct {
			flags |= unix.O_DIRECT
		} else {
			flags &^= unix.O_DIRECT
		}
		_, err = unix.FcntlInt(t.f.Fd(), unix.F_SETFL, flags)
	}
	if err != nil {
		return fmt.Errorf("cannot change how it is written: %w", err)
	}
	t.flagged = direct
	return nil
}

// allowsDirect tells whether the file lies on a local file system that is known to write well past the page cache. Network file systems wait for the
// server with each write, and others promise what they do not do.
func allowsDirect(f *os.File) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &st) != nil {
		return false
	}
	return st.Type == unix.EXT4_SUPER_MAGIC || st.Type == unix.XFS_SUPER_MAGIC
}
