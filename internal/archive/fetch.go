package archive

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// ErrAbsent is returned by Fetch when the storage has answered that the archive does not hold the file. Nothing else
// is ever reported as absence.
var ErrAbsent = errors.New("not in the archive")

// errLocal marks failures of this host's file system; trying again would not help.
var errLocal = errors.New("cannot write the destination")

// errContent marks an archived file that is not what its name says.
var errContent = errors.New("the archived file is damaged")

// errWrongCluster marks a segment of another cluster than the one that asks.
var errWrongCluster = errors.New("the archive is of another cluster")

// FetchOptions say what to fetch.
type FetchOptions struct {
	Name    string        // as restore_command's %f gives it
	Dest    string        // as restore_command's %p gives it
	Timeout time.Duration // for all of it, retries included
}

const (
	firstPause, longestPause = 500 * time.Millisecond, 15 * time.Second
	// damageAttempts is how often a damaged file is read: damage may have happened on the way.
	damageAttempts = 2
	// standbyPatience bounds the tries for a standby, which asks again by itself and may have another source of WAL.
	standbyPatience = 30 * time.Second
)

// State is what PostgreSQL is doing in a data directory, as its signal files say (xlogrecovery.c, readRecoverySignalFile).
type State int

// The states. A standby is one even if recovery.signal is there, too.
const (
	NotInRecovery State = iota
	ArchiveRecovery
	Standby
)

// RecoveryState reads the signal files. The data directory is the working directory when PostgreSQL runs
// restore_command, else the one above the destination's.
func RecoveryState(dest string) State {
	for _, dir := range []string{".", filepath.Dir(filepath.Dir(dest))} {
		if exists(filepath.Join(dir, "standby.signal")) {
			return Standby
		}
		if exists(filepath.Join(dir, "recovery.signal")) {
			return ArchiveRecovery
		}
	}
	return NotInRecovery
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// Fetch brings an archived file to its destination, complete and checked, or not at all. Failures that may pass are
// retried until the deadline.
func Fetch(ctx context.Context, d Deps, o FetchOptions) error {
	began := time.Now()
	limit := o.Timeout
	if RecoveryState(o.Dest) == Standby {
		limit = min(limit, standbyPatience)
	}
	ctx, cancel := withDeadline(ctx, limit, "fetching "+o.Name)
	defer cancel()
	d.Log.Info("fetching", "action", "wal-fetch", "seg", o.Name, "state", "begin", "from", d.Catalog)
	pause := firstPause
	var last error // what went wrong, other than by the end of ctx
	for attempt := 1; ; attempt++ {
		size, err := fetchOnce(ctx, d, o)
		switch {
		case err == nil:
			took := time.Since(began)
			d.Log.Info("fetched", "action", "wal-fetch", "seg", o.Name, "state", "complete", "size", size,
				"seconds", took.Round(time.Millisecond).Seconds(), "rate", int64(float64(size)/took.Seconds()))
			return nil
		case errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errLocal):
			return absent(ctx, d, o.Name)
		case ctx.Err() != nil:
			if !errors.Is(err, ctx.Err()) {
				last = err
			}
			return fmt.Errorf("cannot fetch %s: %w", o.Name, ended(ctx, last))
		case !mayPass(err, attempt):
			return fmt.Errorf("cannot fetch %s: %w", o.Name, err)
		}
		d.Log.Warn("trying again", "action", "wal-fetch", "seg", o.Name, "attempt", attempt, "error", err)
		last = err
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot fetch %s: %w", o.Name, ended(ctx, last))
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
		pause = min(2*pause, longestPause)
	}
}

// ended tells what ended ctx, and what had gone wrong before, nil for nothing.
func ended(ctx context.Context, last error) error {
	if last == nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w; before that: %w", context.Cause(ctx), last)
}

// absent turns "no such object" into the answer for PostgreSQL, unless the archive holds nothing at all: then the prefix is
// wrong, and calling every file absent would let recovery end at once.
func absent(ctx context.Context, d Deps, name string) error {
	empty, err := d.Catalog.Empty(ctx)
	if err != nil {
		return fmt.Errorf("cannot tell whether %s is archived: %w", name, err)
	}
	if empty {
		return hint.With(fmt.Errorf("cannot fetch %s: %s holds no archive at all", name, d.Catalog), "check the storage prefix in the settings")
	}
	return fmt.Errorf("%s: %w", name, ErrAbsent)
}

func mayPass(err error, attempt int) bool {
	switch {
	case errors.Is(err, errLocal), errors.Is(err, errWrongCluster), errors.Is(err, fs.ErrPermission), catalog.IsPermanent(err):
		return false
	case errors.Is(err, errContent), errors.Is(err, catalog.ErrDamaged):
		return attempt < damageAttempts
	}
	return true
}

func fetchOnce(ctx context.Context, d Deps, o FetchOptions) (int64, error) {
	r, err := d.Catalog.WAL().Open(ctx, o.Name)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	t, err := createTemporary(filepath.Dir(o.Dest))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errLocal, err)
	}
	defer t.discard()
	size, err := copyChecked(d, t, r, o)
	if err != nil {
		return 0, err
	}
	if err := t.publish(o.Dest); err != nil {
		return 0, fmt.Errorf("%w: %w", errLocal, err)
	}
	return size, nil
}

// copyChecked writes the content to t and checks that it is what the name says, and of the cluster that asks.
func copyChecked(d Deps, t *temporary, r io.Reader, o FetchOptions) (int64, error) {
	in := bufio.NewReaderSize(r, copySize)
	head, err := in.Peek(wal.HeaderSize)
	if err != nil && err != io.EOF {
		return 0, err
	}
	head = bytes.Clone(head)
	size, err := io.CopyBuffer(localWriter{t.File}, struct{ io.Reader }{in}, make([]byte, copySize))
	if err != nil {
		return 0, err
	}
	switch wal.Classify(o.Name) {
	case wal.KindSegment, wal.KindPartial:
		return size, checkSegment(d, head, size, o)
	case wal.KindHistory:
		if _, err := wal.ParseHistory(io.NewSectionReader(t, 0, size)); err != nil {
			return 0, fmt.Errorf("%w: %w", errContent, err)
		}
	}
	return size, nil
}

func checkSegment(d Deps, head []byte, size int64, o FetchOptions) error {
	h, err := wal.ParseHeader(head)
	switch {
	case errors.Is(err, wal.ErrUnknownMagic):
		d.Log.Warn("WAL of an unknown PostgreSQL version", "action", "wal-fetch", "seg", o.Name, "error", err)
	case err != nil:
		return fmt.Errorf("%w: %w", errContent, err)
	}
	if err := h.CheckFile(o.Name, size); err != nil {
		return fmt.Errorf("%w: %w", errContent, err)
	}
	if control, ok := controlNear(o.Dest); ok && control.SystemIdentifier != h.SystemIdentifier {
		return hint.With(fmt.Errorf("%w: the segment has system identifier %d, the data directory %d", errWrongCluster, h.SystemIdentifier, control.SystemIdentifier),
			"check the storage prefix in the settings")
	}
	return nil
}

// localWriter marks the errors of writing the destination.
type localWriter struct{ f *os.File }

func (w localWriter) Write(b []byte) (int, error) {
	n, err := w.f.Write(b)
	if err != nil {
		err = fmt.Errorf("%w: %w", errLocal, err)
	}
	return n, err
}

// temporary is a file that becomes the destination when it is complete. Where the file system can, it has no name until
// then, so that not even a crash leaves anything behind.
type temporary struct {
	*os.File
	named bool
}

const fileMode = 0o600

func createTemporary(dir string) (*temporary, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, fileMode)
	if err == nil {
		return &temporary{os.NewFile(uintptr(fd), filepath.Join(dir, "unnamed temporary file")), false}, nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EINVAL) {
		return nil, &fs.PathError{Op: "create a file in", Path: dir, Err: err}
	}
	f, err := os.CreateTemp(dir, ".walden-*.tmp")
	if err != nil {
		return nil, err
	}
	return &temporary{f, true}, nil
}

// publish syncs the file and gives it its final name, which must be free; a file that is there already with the same
// content is as good.
func (t *temporary) publish(dest string) error {
	if err := t.Sync(); err != nil {
		return err
	}
	source := fmt.Sprintf("/proc/self/fd/%d", t.Fd())
	if t.named {
		source = t.Name()
	}
	err := unix.Linkat(unix.AT_FDCWD, source, unix.AT_FDCWD, dest, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, unix.EEXIST) {
		return t.compare(dest)
	}
	if err != nil {
		return &os.LinkError{Op: "link", Old: source, New: dest, Err: err}
	}
	dir, err := os.Open(filepath.Dir(dest))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (t *temporary) compare(dest string) error {
	f, err := os.Open(dest)
	if err != nil {
		return err
	}
	defer f.Close()
	equal, err := sameContent(io.NewSectionReader(t, 0, 1<<62), f)
	if err != nil {
		return err
	}
	if !equal {
		return hint.With(fmt.Errorf("%s exists already with other content", dest), "walden never overwrites; remove the file if it is not needed")
	}
	return nil
}

// sameContent compares two streams to their ends.
func sameContent(a, b io.Reader) (bool, error) {
	x, y := make([]byte, copySize), make([]byte, copySize)
	for {
		n, errA := fill(a, x)
		m, errB := fill(b, y)
		for _, err := range []error{errA, errB} {
			if err != nil && err != io.EOF {
				return false, err
			}
		}
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		if errA != nil {
			return true, nil
		}
	}
}

// fill reads until the buffer is full or the content ends; unlike io.ReadFull it keeps an end (io.EOF) and a failure apart.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

func (t *temporary) discard() {
	if t.named {
		os.Remove(t.Name())
	}
	t.Close()
}
