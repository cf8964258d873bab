package restore

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/pgdata"
)

// Sink takes what a backup consists of. Its methods are called by many goroutines at once, for different names, and for
// the same name again when a part is read a second time after a failure of the storage.
type Sink interface {
	Dir(name string, h *tar.Header) error
	File(name string, h *tar.Header, content io.Reader) error
	Link(name, target string, h *tar.Header) error
}

// Utilities are the three files that a restore places last, and not from the parts.
type Utilities struct {
	Label, TablespaceMap, Control *Utility
}

// Utility is one of them.
type Utility struct {
	Header  *tar.Header
	Content []byte
	special bool // from a tar of its own, which wins over a part
}

// maxUtility bounds the size of the utility files, in bytes.
const maxUtility = 1 << 20

const (
	partAttempts = 3 // how often a part is read before its failure is the restore's
	retryPause   = time.Second
)

// SinkError is a failure of the sink: reading the part again would not help.
type SinkError struct{ Err error }

func (e *SinkError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *SinkError) Unwrap() error { return e.Err }

// unpacker reads the parts of one backup.
type unpacker struct {
	catalog *catalog.Catalog
	log     *slog.Logger
	backup  catalog.Backup
	listing catalog.Listing
	sink    Sink

	hashers sync.Pool // of *xxh3.Hasher128

	mu        sync.Mutex
	seen      map[string]reading
	utilities Utilities
}

// reading is the attempt at a part in which a name was met.
type reading struct{ part, attempt int32 }

// Unpack reads every part of a full backup once and gives its entries to the sink: those that the backup's documents name,
// or all where they name none. It proves on the way what can be proven: the hash of every part and of every file where
// they are recorded, that no name appears twice, and that nothing is missing.
func Unpack(ctx context.Context, c *catalog.Catalog, log *slog.Logger, b catalog.Backup, l catalog.Listing, workers int, sink Sink) (Utilities, error) {
	u := &unpacker{catalog: c, log: log, backup: b, listing: l, sink: sink, seen: make(map[string]reading, len(l.Files)),
		hashers: sync.Pool{New: func() any { return new(xxh3.Hasher128) }}}
	if err := u.readAll(ctx, l.Parts, 0, false, workers); err != nil {
		return Utilities{}, err
	}
	if err := u.readAll(ctx, l.Special, len(l.Parts), true, workers); err != nil {
		return Utilities{}, err
	}
	return u.utilities, u.checkComplete()
}

func (u *unpacker) readAll(ctx context.Context, parts []catalog.Part, offset int, special bool, workers int) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, workers))
	for i, p := range parts {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error { return u.readRepeatedly(gctx, p, int32(offset+i), special) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// readRepeatedly reads a part, again if the storage failed in a way that may pass.
func (u *unpacker) readRepeatedly(ctx context.Context, p catalog.Part, number int32, special bool) error {
	for attempt := int32(1); ; attempt++ {
		err := u.readPart(ctx, p, reading{number, attempt}, special)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err = fmt.Errorf("cannot unpack %s of backup %s: %w", p.Name, u.backup.Name, err)
		if attempt == partAttempts || !mayPass(err, attempt) {
			return err
		}
		u.log.Warn("reading the part again", "attempt", attempt, "error", err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Duration(attempt) * retryPause):
		}
	}
}

// mayPass tells whether reading a part again may help. Damage may have happened on the way: it gets one more chance.
func mayPass(err error, attempt int32) bool {
	var sink *SinkError
	switch {
	case errors.As(err, &sink), errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), catalog.IsPermanent(err):
		return false
	case errors.Is(err, catalog.ErrDamaged), errors.Is(err, errContent):
		return attempt == 1
	}
	return true
}

// errContent marks contents that are not what the backup's documents say.
var errContent = errors.New("the backup is damaged")

func (u *unpacker) readPart(ctx context.Context, p catalog.Part, at reading, special bool) (err error) {
	r, err := u.catalog.OpenPart(ctx, u.backup.Name, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if errors.Is(err, tar.ErrHeader) {
			return fmt.Errorf("%w: %w", errContent, err)
		}
		if err != nil {
			return err
		}
		if err := u.entry(h, t, at, special); err != nil {
			return err
		}
	}
	return onlyZeros(r)
}

// onlyZeros reads to the end of the stream, which proves its completeness; after the end mark of a tar only zeros may follow.
func onlyZeros(r io.Reader) error {
	buf := make([]byte, 4<<10)
	for {
		n, err := r.Read(buf)
		for _, b := range buf[:n] {
			if b != 0 {
				return fmt.Errorf("%w: data after the end of the tar", errContent)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (u *unpacker) entry(h *tar.Header, content io.Reader, at reading, special bool) error {
	name, err := catalog.EntryName(h.Name)
	if err != nil {
		return &SinkError{err}
	}
	if slot := u.utility(name); slot != nil {
		if h.Typeflag != tar.TypeReg {
			return &SinkError{fmt.Errorf("%q is no regular file, which cannot be", name)}
		}
		return u.keep(slot, h, content, special)
	}
	if special {
		u.log.Warn("an unexpected entry is ignored", "backup", u.backup.Name, "entry", name)
		return nil
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := u.sink.Dir(name, h); err != nil {
			return &SinkError{err}
		}
		u.meet(name, at)
		return nil
	case tar.TypeReg:
		return u.file(name, h, content, at)
	case tar.TypeSymlink:
		if u.meet(name, at) {
			return fmt.Errorf("%w: %q appears twice", errContent, name)
		}
		if err := u.sink.Link(name, h.Linkname, h); err != nil {
			return &SinkError{err}
		}
		return nil
	}
	u.log.Warn("an entry that is no file, directory or symbolic link is ignored", "backup", u.backup.Name, "entry", name)
	return nil
}

// meet notes that an entry was met and tells whether that happened before, other than in an earlier attempt at the part.
func (u *unpacker) meet(name string, at reading) (before bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	old, ok := u.seen[name]
	if ok && (old.part != at.part || old.attempt == at.attempt) {
		return true // the first one keeps the name, so that a second attempt at this part meets it again
	}
	u.seen[name] = at
	return false
}

func (u *unpacker) file(name string, h *tar.Header, content io.Reader, at reading) error {
	want, named := u.listing.Files[name]
	if u.listing.Files != nil && !named {
		return nil // a file that vanished while it was copied, or that the backup's writer did not mean to restore
	}
	if u.meet(name, at) {
		return fmt.Errorf("%w: %q appears twice", errContent, name)
	}
	if !u.listing.Hashed {
		if err := u.sink.File(name, h, content); err != nil {
			return fileError(name, err)
		}
		return nil
	}
	if h.Size != want.Size {
		return fmt.Errorf("%w: %q has %d bytes, %d were written", errContent, name, h.Size, want.Size)
	}
	sum := u.hashers.Get().(*xxh3.Hasher128)
	defer u.hashers.Put(sum)
	sum.Reset()
	if err := u.sink.File(name, h, io.TeeReader(content, sum)); err != nil {
		return fileError(name, err)
	}
	if sum.Sum128().Bytes() != want.Hash {
		return fmt.Errorf("%w: the content of %q is not what was written", errContent, name)
	}
	return nil
}

func fileError(name string, err error) error { return fmt.Errorf("file %q: %w", name, err) }

// utility returns where to keep the entry if it is one of the files that are placed last.
func (u *unpacker) utility(name string) **Utility {
	switch name {
	case labelFile:
		return &u.utilities.Label
	case mapFile:
		return &u.utilities.TablespaceMap
	case pgdata.ControlName:
		return &u.utilities.Control
	}
	return nil
}

func (u *unpacker) keep(slot **Utility, h *tar.Header, content io.Reader, special bool) error {
	if h.Size > maxUtility {
		return &SinkError{fmt.Errorf("%q has %d bytes, which cannot be", h.Name, h.Size)}
	}
	b, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if *slot == nil || special || !(*slot).special {
		*slot = &Utility{Header: h, Content: b, special: special}
	}
	return nil
}

// checkComplete proves that every entry that the backup's documents name was met.
func (u *unpacker) checkComplete() error {
	missing, example := 0, ""
	for name, f := range u.listing.Files {
		if _, ok := u.seen[name]; ok || u.utility(name) != nil {
			continue
		}
		if f.Type == catalog.Directory {
			continue
		}
		if missing++; example == "" || name < example {
			example = name
		}
	}
	if missing > 0 {
		return fmt.Errorf("cannot restore backup %s: %w: %d files that it names are in none of its parts, for example %q",
			u.backup.Name, errContent, missing, example)
	}
	return nil
}
