package restore

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/pkg/increment"
)

// Sink takes what a backup consists of. Its methods are called by many goroutines at once, for different names, and for
// the same name again when a part is read a second time after a failure of the storage.
type Sink interface {
	Dir(name string, h *tar.Header) error
	File(name string, h *tar.Header, content io.Reader) error
	Link(name, target string, h *tar.Header) error
	// Pages begins a file of size bytes, or goes on with it if h is nil, and lets write put pages into it at their places. In all
	// calls together each page is written once.
	Pages(name string, h *tar.Header, size int64, write func(io.WriterAt) error) error
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
	from    reading
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
	catalog  *catalog.Catalog
	log      *slog.Logger
	backup   catalog.Backup
	listing  catalog.Listing
	sink     Sink
	assembly *assembly // files that several backups contribute to
	older    bool      // a newer backup is based on it: nothing is taken but the files of the listing

	hashers sync.Pool // of *xxh3.Hasher128

	limit   int64        // of what all parts decode to, in bytes
	decoded atomic.Int64 // of the parts read or being read
	content atomic.Int64 // bytes of the files in the parts that were read
	ignored fewLines     // entries that are not restored

	mu        sync.Mutex
	files     *catalog.Files // what the documents name, then what else was met
	named     int            // how many of them the documents name
	seen      []reading      // by position in files
	read      []reading      // by number of the part: the attempt that read it to its end
	utilities Utilities
}

// reading is the attempt at a part in which a name was met: part * (partAttempts + 1) + attempt, which counts from 1. There is one
// for each file. The zero value stands for never.
type reading int32

func (r reading) part() int32 { return int32(r) / (partAttempts + 1) }

// readingOf is the attempt at a part: the part from 0, the attempt from 1.
func readingOf(part, attempt int32) reading { return reading(part*(partAttempts+1) + attempt) }

// Unpack reads every part of a chain of backups once, as [catalog.Catalog.Chain] returns it, and gives the entries to the sink: those
// that the newest backup's documents name, or all where they name none. It proves on the way what can be proven: the hash of every part
// and of every file where they are recorded, that no name appears twice, and that nothing is missing.
func Unpack(ctx context.Context, c *catalog.Catalog, log *slog.Logger, chain []catalog.Member, workers int, sink Sink) (Utilities, error) {
	newest := chain[0]
	u := newUnpacker(c, log, newest, newAssembly(chain), sink)
	if err := u.readAll(ctx, newest.Listing.Parts, 0, false, workers); err != nil {
		return Utilities{}, err
	}
	if err := u.unpackOlder(ctx, chain[1:], workers); err != nil {
		return Utilities{}, err
	}
	if err := u.readAll(ctx, newest.Listing.Special, len(newest.Listing.Parts), true, workers); err != nil {
		return Utilities{}, err
	}
	if err := u.checkSize(); err != nil {
		return Utilities{}, err
	}
	return u.utilities, u.checkComplete()
}

const (
	// spareDecoded is how much more than its documents say a backup may decode to, in bytes: headers of entries, and sizes
	// that WAL-G recorded too small.
	spareDecoded = 256 << 20
	// perEntry is what the headers of one entry take at most in the tars of all known writers, in bytes.
	perEntry = 16 << 10
	// bestRatio is far beyond what any codec makes of a data directory. It bounds backups that record no size.
	bestRatio = 1024
)

// decodedLimit bounds what the parts of a backup decode to: a few megabytes of a codec can become terabytes, which would
// fill the disk, or keep a restore busy for days with what it does not write.
func decodedLimit(l catalog.Listing) int64 {
	size := l.DataSize
	if l.Hashed { // only these are written, whatever the sum that is recorded
		size = 0
		for _, f := range l.Files.All() {
			size = sum(size, f.Size)
		}
		size = sum(size, l.Passed.Size)
	}
	if size <= 0 && !l.Hashed {
		size = 0
		for _, p := range l.Parts {
			size = sum(size, sum(0, p.Size)*bestRatio)
		}
	}
	return sum(sum(size, size), spareDecoded+int64(l.Files.Len()+l.Passed.Files+len(l.Parts))*perEntry)
}

// sum adds sizes that come from an archive; math.MaxInt64 stands for all that is more.
func sum(a, b int64) int64 {
	if a > math.MaxInt64-max(0, b) {
		return math.MaxInt64
	}
	return a + max(0, b)
}

// metered is a part whose decoded bytes count towards the limit of the backup.
type metered struct {
	io.Reader
	u *unpacker
	n int64
}

func (m *metered) Read(b []byte) (int, error) {
	n, err := m.Reader.Read(b)
	m.n += int64(n)
	if m.u.decoded.Add(int64(n)) > m.u.limit {
		return 0, &SinkError{fmt.Errorf("%w: its parts hold more than %d MiB, far more than it is said to have", errContent, m.u.limit>>20)}
	}
	return n, err
}

func newUnpacker(c *catalog.Catalog, log *slog.Logger, m catalog.Member, a *assembly, sink Sink) *unpacker {
	l := m.Listing
	u := &unpacker{catalog: c, log: log, backup: m.Backup, listing: l, assembly: a, sink: sink, files: l.Files, named: l.Files.Len(),
		hashers: sync.Pool{New: func() any { return new(xxh3.Hasher128) }}, limit: decodedLimit(l)}
	if u.files == nil {
		u.files = &catalog.Files{}
	}
	u.seen = make([]reading, u.named)
	u.read = make([]reading, len(l.Parts)+len(l.Special))
	return u
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
		at := readingOf(number, attempt)
		err := u.readPart(ctx, p, at, special)
		if err == nil {
			u.read[number] = at
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
	case errors.Is(err, catalog.ErrDamaged), errors.Is(err, errContent), errors.Is(err, increment.ErrDamaged):
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
	m := &metered{Reader: r, u: u}
	defer func() {
		if err = errors.Join(err, r.Close()); err != nil {
			u.decoded.Add(-m.n) // it may be read again
		}
	}()
	t := tar.NewReader(m)
	var content int64
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
		content = sum(content, h.Size)
	}
	if err := onlyZeros(m); err != nil {
		return err
	}
	u.content.Add(content)
	return nil
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
	name = strings.Clone(name) // a part of the header's PAX records, which can have a megabyte and need not be kept
	if slot := u.utility(name); slot != nil {
		if u.older {
			return nil // the newest backup has its own
		}
		if h.Typeflag != tar.TypeReg {
			return &SinkError{fmt.Errorf("%q is no regular file, which cannot be", name)}
		}
		return u.keep(slot, h, content, at, special)
	}
	if special {
		u.ignore("an unexpected entry is ignored", name)
		return nil
	}
	if sparse(h) {
		return &SinkError{fmt.Errorf("%w: %q is stored as a sparse file, as no writer of backups does", errContent, name)}
	}
	if (u.listing.Hashed || u.older) && h.Typeflag != tar.TypeReg { // the manifest names directories and links, too
		if _, named := u.find(name); !named {
			if !u.older {
				u.ignore("an entry that the manifest does not name is ignored", name)
			}
			return nil
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := u.sink.Dir(name, h); err != nil {
			return &SinkError{err}
		}
		_, err := u.meet(name, at)
		return err
	case tar.TypeReg:
		return u.file(name, h, content, at)
	case tar.TypeSymlink:
		if before, err := u.meet(name, at); err != nil {
			return err
		} else if before {
			return fmt.Errorf("%w: %q appears twice", errContent, name)
		}
		if err := u.sink.Link(name, h.Linkname, h); err != nil {
			return &SinkError{err}
		}
		return nil
	}
	u.ignore("an entry that is no file, directory or symbolic link is ignored", name)
	return nil
}

func (u *unpacker) ignore(why, name string) {
	u.ignored.warn(u.log, why, "backup", u.backup.Name, "entry", name)
}

// fewLines keeps a log readable, and a disk from being filled by it: an archive can hold millions of what is worth a line.
type fewLines struct{ n atomic.Int64 }

// linesTold is how many times a thing is told.
const linesTold = 20

func (f *fewLines) warn(log *slog.Logger, what string, args ...any) {
	switch n := f.n.Add(1); {
	case n <= linesTold:
		log.Warn(what, args...)
	case n == linesTold+1:
		log.Warn("more of these follow: " + what)
	}
}

// sparse tells entries whose size is not that of their bytes in the tar: GNU's old type, and the newer one in PAX records
// of an ordinary file.
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// meet notes that an entry was met and tells whether that happened before, other than in an earlier attempt at the part.
func (u *unpacker) meet(name string, at reading) (before bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	i, _, ok := u.files.Find(name)
	if !ok {
		if i, err = u.files.Add(catalog.File{Name: name}); err != nil {
			return false, &SinkError{err}
		}
		u.seen = append(u.seen, 0)
	}
	if old := u.seen[i]; old != 0 && (old.part() != at.part() || old == at) {
		return true, nil // the first one keeps the name, so that a second attempt at this part meets it again
	}
	u.seen[i] = at
	return false, nil
}

// find returns what the backup's documents say of an entry, and whether it is to be restored.
func (u *unpacker) find(name string) (want catalog.File, wanted bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	i, want, ok := u.files.Find(name)
	return want, u.listing.Files == nil || ok && i < u.named
}

func (u *unpacker) file(name string, h *tar.Header, content io.Reader, at reading) error {
	want, wanted := u.find(name)
	switch {
	case wanted:
	case u.older, u.listing.Hashed:
		return nil // a newer backup has the file, or it vanished while it was copied; the manifest cannot be wrong
	default: // the list can have lost a name, and a file too many does no harm: the replay of WAL removes what was dropped
		u.ignored.warn(u.log, "a file that the list of files does not name is restored all the same", "backup", u.backup.Name, "file", name)
	}
	if before, err := u.meet(name, at); err != nil {
		return err
	} else if before {
		return fmt.Errorf("%w: %q appears twice", errContent, name)
	}
	write := u.assembly.whole
	switch want.Stored {
	case catalog.Increment:
		write = u.assembly.increment
	case catalog.Elsewhere:
		return fmt.Errorf("%w: %q is in it, and is said not to be", errContent, name)
	default:
		var err error
		if content, err = refuseIncrement(name, content); err != nil {
			return fileError(name, err)
		}
	}
	if !u.listing.Hashed {
		return fileErrorOrNil(name, write(u.sink, name, h, content))
	}
	if h.Size != want.Size {
		return fmt.Errorf("%w: %q has %d bytes, %d were written", errContent, name, h.Size, want.Size)
	}
	sum := u.hashers.Get().(*xxh3.Hasher128)
	defer u.hashers.Put(sum)
	sum.Reset()
	if err := write(u.sink, name, h, io.TeeReader(content, sum)); err != nil {
		return fileError(name, err)
	}
	if sum.Sum128().Bytes() != want.Hash {
		return fmt.Errorf("%w: the content of %q is not what was written", errContent, name)
	}
	return nil
}

func fileError(name string, err error) error { return fmt.Errorf("file %q: %w", name, err) }

func fileErrorOrNil(name string, err error) error {
	if err == nil {
		return nil
	}
	return fileError(name, err)
}

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

func (u *unpacker) keep(slot **Utility, h *tar.Header, content io.Reader, at reading, special bool) error {
	if h.Size > maxUtility || sparse(h) {
		return &SinkError{fmt.Errorf("%q has %d bytes, which cannot be", h.Name, h.Size)}
	}
	b, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	before := *slot
	switch {
	case before == nil, special && !before.special, before.from.part() == at.part() && before.from != at:
		*slot = &Utility{Header: ownerAndMode(h), Content: b, special: special, from: at}
	case before.special == special && !bytes.Equal(before.Content, b):
		return fmt.Errorf("%w: %q appears twice, with different contents", errContent, h.Name)
	}
	return nil
}

// checkComplete proves that every entry that the backup's documents name was met, and none only in an attempt at a part that failed:
// then the storage gave out other bytes than it holds.
func (u *unpacker) checkComplete() error {
	missing, example := 0, ""
	for i, f := range u.files.All() {
		at := u.seen[i]
		switch {
		case at != 0 && u.read[at.part()] != at:
			return fmt.Errorf("cannot restore backup %s: %w: %q was read once, and not found again", u.backup.Name, errContent, f.Name)
		case at != 0, i >= u.named, f.Type == catalog.Directory, f.Stored == catalog.Elsewhere, u.utility(f.Name) != nil:
			continue
		}
		if missing++; example == "" || f.Name < example {
			example = f.Name
		}
	}
	if missing > 0 {
		return fmt.Errorf("cannot restore backup %s: %w: %d files that it names are in none of its parts, for example %q",
			u.backup.Name, errContent, missing, example)
	}
	return nil
}
