// Package archive moves single files between PostgreSQL and the archive: wal-push for archive_command, wal-fetch for
// restore_command.
//
// Promises: a file counts as archived only when the storage has confirmed it; what is archived is never overwritten with
// other content; recovery never takes a failure for the end of the archive; nothing but a complete, checked file ever
// appears at the destination.
package archive

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// ErrDifferentContent is returned when a file of the same name and other content is archived already.
var ErrDifferentContent = errors.New("it is archived already with different content")

// Deps is what archiving works with.
type Deps struct {
	Catalog *catalog.Catalog
	Log     *slog.Logger
}

// PushOptions say what to archive.
type PushOptions struct {
	Path    string        // as archive_command's %p gives it
	Timeout time.Duration // for all of it, retries included
	Blocks  bool          // record which blocks the records of segments change, for delta backups
}

// copySize is how much is read from or written to a file at once, in bytes.
const copySize = 256 << 10

// Push archives one file under its name. A file that is archived already with the same content is a success; with other
// content it is [ErrDifferentContent].
func Push(ctx context.Context, d Deps, o PushOptions) error {
	f, err := openFile(o.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	return pushFile(ctx, d, o, f)
}

// pushFile is Push for a file that is open.
func pushFile(ctx context.Context, d Deps, o PushOptions, f *file) (err error) {
	began := time.Now()
	ctx, cancel := withDeadline(ctx, o.Timeout, "archiving "+o.Path)
	defer cancel()
	defer func() {
		if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
			err = errors.Join(cause, err)
		}
	}()
	if o.Blocks {
		defer func() {
			if err == nil {
				recordBlocks(ctx, d, f)
			}
		}()
	}
	name := filepath.Base(o.Path)
	d.Log.Info("archiving", "action", "wal-push", "seg", name, "state", "begin", "size", f.size, "to", d.Catalog)

	cluster, err := f.examine(name, d.Log)
	if err != nil {
		return fmt.Errorf("cannot archive %s: %w", o.Path, err)
	}
	if cluster.SystemIdentifier != 0 {
		if err := d.Catalog.Admit(ctx, cluster); err != nil {
			return fmt.Errorf("cannot archive %s: %w", name, err)
		}
	}
	if !d.Catalog.ReadsBack() {
		known, err := claim(ctx, d, f, name)
		if err != nil {
			return fmt.Errorf("cannot archive %s to %s: %w", name, d.Catalog, err)
		}
		if known {
			d.Log.Info("archived already with an equal fingerprint", "action", "wal-push", "seg", name, "state", "complete", "size", f.size)
			return nil
		}
	}
	sealed, err := d.Catalog.WAL().PutNew(ctx, name, f.writeTo)
	if errors.Is(err, catalog.ErrExists) {
		err := compareRepeatedly(ctx, d, f, name)
		if err != nil {
			return fmt.Errorf("cannot archive %s to %s: %w", name, d.Catalog, err)
		}
		d.Log.Info("archived already with equal content", "action", "wal-push", "seg", name, "state", "complete", "size", f.size)
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot archive %s: %w", name, err)
	}
	took := time.Since(began)
	d.Log.Info("archived", "action", "wal-push", "seg", name, "key", sealed.Object, "state", "complete", "size", f.size,
		"stored", sealed.Size, "seconds", seconds(took), "rate", int64(float64(f.size)/took.Seconds()))
	return nil
}

// withDeadline bounds ctx and says at its end what took too long.
func withDeadline(ctx context.Context, limit time.Duration, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, hint.With(fmt.Errorf("%s took longer than %s", what, limit), "WALDEN_WAL_TIMEOUT sets the limit; see the messages above for what was slow"))
}

// file is a local file that is to be archived.
type file struct {
	*os.File
	size int64
}

func openFile(path string) (*file, error) {
	f, err := openNow(path)
	if err != nil {
		return nil, fmt.Errorf("cannot archive: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot archive: %w", err), f.Close())
	}
	return &file{f, st.Size()}, nil
}

// openNow opens a file for reading. A named pipe, which is refused later, would have the opening wait for its other end; for
// files O_NONBLOCK means nothing.
func openNow(path string) (*os.File, error) { return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) }

// examine checks that the file is what its name says, and tells which cluster it is of: by a segment's own header, and for
// other files by the control file of the data directory that they lie in. The zero Cluster means that nothing tells.
func (f *file) examine(name string, log *slog.Logger) (catalog.Cluster, error) {
	switch wal.Classify(name) {
	case wal.KindSegment, wal.KindPartial:
		return f.examineSegment(name, log)
	case wal.KindOther:
		log.Warn("the name is not that of a WAL file; it is archived as it is", "action", "wal-push", "seg", name)
	}
	control, ok := controlNear(f.Name())
	if !ok {
		return catalog.Cluster{}, nil
	}
	return catalog.Cluster{SystemIdentifier: control.SystemIdentifier, SegmentSize: control.WALSegmentSize}, nil
}

func (f *file) examineSegment(name string, log *slog.Logger) (catalog.Cluster, error) {
	head := make([]byte, wal.HeaderSize)
	if _, err := f.ReadAt(head, 0); err != nil {
		return catalog.Cluster{}, fmt.Errorf("cannot read its header: %w", err)
	}
	h, err := wal.ParseHeader(head)
	switch {
	case errors.Is(err, wal.ErrUnknownMagic):
		log.Warn("WAL of an unknown PostgreSQL version", "action", "wal-push", "seg", name, "error", err)
	case err != nil:
		return catalog.Cluster{}, err
	}
	if err := h.CheckFile(name, f.size); err != nil {
		return catalog.Cluster{}, err
	}
	return catalog.Cluster{SystemIdentifier: h.SystemIdentifier, Major: h.Major, SegmentSize: h.SegmentSize}, nil
}

// controlNear reads the control file of the data directory that a WAL file lies in.
func controlNear(path string) (pgdata.Control, bool) {
	for _, dir := range dataDirs(path) {
		if control, _, err := pgdata.ReadControl(dir); err == nil {
			return control, true
		}
	}
	return pgdata.Control{}, false
}

// errTakenAway is returned when a file has lost its name while it was read.
var errTakenAway = errors.New("the server has renamed or removed it in the meantime")

// writeTo writes the whole file; it may be called again. A server that takes a segment for archived gives the file another name and writes
// new WAL into it, in this order (RemoveXlogFile in xlog.c), so that what was read is the segment as long as the name is the file's.
func (f *file) writeTo(w io.Writer) error {
	n, err := io.CopyBuffer(w, struct{ io.Reader }{io.NewSectionReader(f, 0, f.size)}, make([]byte, copySize))
	if err == nil && n != f.size {
		err = fmt.Errorf("cannot read %s: it shrank from %d to %d bytes", f.Name(), f.size, n)
	}
	if err != nil {
		return err
	}
	ours, err := f.Stat()
	if err != nil {
		return err
	}
	if now, err := os.Stat(f.Name()); err != nil || !os.SameFile(ours, now) {
		return fmt.Errorf("cannot read %s: %w", f.Name(), errTakenAway)
	}
	return nil
}

// compareAttempts is how often the archived file is read to be compared before a failure is the push's.
const compareAttempts = 3

// compareRepeatedly is compareArchived, again if the storage failed in a way that may pass.
func compareRepeatedly(ctx context.Context, d Deps, f *file, name string) error {
	passes := func(err error, attempt int) bool {
		return attempt < compareAttempts && !errors.Is(err, ErrDifferentContent) && !errors.Is(err, fs.ErrNotExist) && mayPass(err, attempt)
	}
	return repeatedly(ctx, d.Log.With("action", "wal-push", "seg", name), passes, func() error { return compareArchived(ctx, d, f, name) })
}

// compareArchived compares the file with what is archived under its name.
func compareArchived(ctx context.Context, d Deps, f *file, name string) error {
	r, err := d.Catalog.WAL().Open(ctx, name)
	if err != nil {
		return fmt.Errorf("it is archived already, and what is there cannot be read: %w", err)
	}
	defer r.Close()
	theirs := bufio.NewReaderSize(r, copySize)
	head, err := theirs.Peek(wal.HeaderSize)
	if err != nil && err != io.EOF {
		return fmt.Errorf("it is archived already, and what is there cannot be read: %w", err)
	}
	head = bytes.Clone(head)
	equal, err := sameContent(theirs, io.NewSectionReader(f, 0, f.size))
	if err != nil {
		return fmt.Errorf("it is archived already, and cannot be compared: %w", err)
	}
	if !equal {
		return hint.With(fmt.Errorf("%w (%s)", ErrDifferentContent, origins(head, f)),
			"two clusters may archive to this prefix, or a copy of this cluster did; give every cluster a prefix of its own")
	}
	return nil
}

// claim is for a server that has a public key only and cannot read what it archived: when PostgreSQL asks for a file again, as it
// does after a crash, nothing but the fingerprint that was stored before the file tells that it is the same. Without one the
// file is another's, and refused. known means that it is archived and the same.
func claim(ctx context.Context, d Deps, f *file, name string) (known bool, err error) {
	w := d.Catalog.WAL()
	there, err := w.Has(ctx, name)
	if err != nil {
		return false, err
	}
	claimed, err := w.Claim(ctx, name, f.writeTo, !there)
	switch {
	case errors.Is(err, catalog.ErrClaimedOtherwise):
		return false, hint.With(fmt.Errorf("%w (%w)", ErrDifferentContent, err),
			"two clusters may archive to this prefix, or a copy of this cluster did; give every cluster a prefix of its own")
	case err != nil || !there:
		return false, err
	case claimed:
		// Whoever archives without fingerprints may have come between this server's claim and its file.
		if claimed, err = w.SameSize(ctx, name, f.writeTo); err != nil {
			return false, err
		}
	}
	if !claimed {
		return false, hint.With(fmt.Errorf("it is archived already, and what is there cannot be compared: %w", catalog.ErrNoSecretKey),
			"give the secret key for one run of wal-push, which then compares the contents; two clusters may archive to this prefix, or a copy of this cluster did")
	}
	return true, nil
}

// origins names where two segments of one name come from, as far as their headers tell.
func origins(archived []byte, f *file) string {
	ours := make([]byte, wal.HeaderSize)
	n, _ := f.ReadAt(ours, 0) // shorter than a header is no header either
	a, errA := wal.ParseHeader(archived)
	b, errB := wal.ParseHeader(ours[:n])
	if errA != nil || errB != nil {
		return "not both are WAL segments"
	}
	return fmt.Sprintf("archived: system identifier %d, timeline %d; this file: system identifier %d, timeline %d",
		a.SystemIdentifier, a.Timeline, b.SystemIdentifier, b.Timeline)
}

// seconds is what the log tells of a duration: three digits, without the tail of a binary fraction that Duration.Seconds can leave.
func seconds(d time.Duration) float64 {
	return float64(d.Round(time.Millisecond).Milliseconds()) / 1000
}
