package catalog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// Inventory is what one look found in an archive, by meaning. Sizes are bytes as stored.
type Inventory struct {
	Backups      []Backup     // with their details, in the order in which they were started
	Unfinished   []Unfinished // folders of backups without a sentinel, by name
	WAL          []WALFile    // what wal_005/ holds, by name
	Fingerprints []WALFile    // what is said of archived files beside them, by the name of the file
	Foreign      []string     // objects and folders among those that nothing of the format is called, by name
	Identity     Identity     // zero if nobody has said which cluster the archive belongs to
	SegmentSize  int64        // bytes of a WAL segment; 0 if the archive does not tell

	// Histories are the history files that could be read, and Unread why others could not.
	Histories map[wal.Timeline]wal.History
	Unread    map[wal.Timeline]error
}

// Unfinished is a folder of a backup without a sentinel: a backup under way, one that was cut off, or one whose removal was.
type Unfinished struct {
	Name     string
	Size     int64
	Modified time.Time // when its newest object was written
	Hostname string    // of the host that writes it, "" if it does not say so
	DataDir  string
	Started  time.Time
	Removed  bool // its removal was begun
}

// BaseFile is the segment after which the backup is named that this one is based on, by its name; "" for a full one.
func (u Unfinished) BaseFile() string {
	_, base := backupSegments(u.Name)
	return base
}

// WALKind is what an object among the WAL is.
type WALKind string

// The kinds of objects among the WAL.
const (
	WALSegment       WALKind = "segment"
	WALPartial       WALKind = "partial"
	WALHistory       WALKind = "history"
	WALBackupHistory WALKind = "backup-history"
	WALDelta         WALKind = "delta"    // which blocks a group of segments changed (WAL-G format, "WAL-delta objects")
	WALMetadata      WALKind = "metadata" // when files were archived (WAL-G format, "WAL metadata")
)

// WALFile is one archived file, or what is stored beside archived files.
type WALFile struct {
	Name     string // as PostgreSQL calls it, without the extension of a codec
	Kind     WALKind
	Timeline wal.Timeline
	Position Position // of the segment, or of the last one that the object is about; 0 of a history file
	Size     int64
	Modified time.Time // the storage's own modification time

	key string
}

// Position orders segments whatever their timeline and their size: it is the last 16 digits of a segment's name. Along every line of
// descent of one cluster it grows.
type Position uint64

// PositionOf returns the position of the segment that a name begins with, and its timeline.
func PositionOf(name string) (wal.Timeline, Position, bool) {
	const digits = 24
	if len(name) < digits || wal.Classify(name[:digits]) != wal.KindSegment {
		return 0, 0, false
	}
	timeline, err := strconv.ParseUint(name[:8], 16, 32)
	position, perr := strconv.ParseUint(name[8:digits], 16, 64)
	return wal.Timeline(timeline), Position(position), err == nil && perr == nil
}

// At is the position of the segment of the size given that holds the byte before lsn.
func At(lsn wal.LSN, size int64) Position {
	return positionAt(wal.SegmentBefore(1, lsn, size).Number, size)
}

// positionAt is the position of the segment with that number, of the size given.
func positionAt(number uint64, size int64) Position {
	perUpper := uint64((1 << 32) / size)
	if number/perUpper > math.MaxUint32 { // behind the end of all logs, which names out of all order lead to
		return ^Position(0)
	}
	return Position(number/perUpper<<32 | number%perUpper)
}

// Number is the number of the segment of the size given at p.
func (p Position) Number(size int64) uint64 {
	return uint64(p>>32)*uint64((1<<32)/size) + uint64(p&(1<<32-1))
}

// Next is the position behind p, where segments have the size given.
func (p Position) Next(size int64) Position {
	return positionAt(p.Number(size)+1, size)
}

// classify reads the name of an object among the WAL.
func classify(name string, size int64) (WALFile, bool) {
	f := WALFile{Name: name}
	f.Timeline, f.Position, _ = PositionOf(name)
	switch wal.Classify(name) {
	case wal.KindSegment:
		f.Kind = WALSegment
		return f, true
	case wal.KindPartial:
		f.Kind = WALPartial
		return f, true
	case wal.KindBackupHistory:
		f.Kind = WALBackupHistory
		return f, true
	case wal.KindHistory:
		f.Kind = WALHistory
		f.Timeline, _ = wal.NameTimeline(name)
		return f, f.Timeline > 0
	}
	if first, ok := strings.CutSuffix(name, deltaSuffix); ok && wal.Classify(first) == wal.KindSegment {
		f.Kind = WALDelta
		f.Position = lastOfGroup(first, size)
		return f, true
	}
	file, ok := strings.CutSuffix(name, ".json")
	if !ok {
		return f, false
	}
	f.Kind = WALMetadata
	if wal.Classify(file) != wal.KindOther {
		f.Timeline, _ = wal.NameTimeline(file)
		return f, f.Position > 0
	}
	f.Timeline, f.Position, ok = PositionOf(file + "F") // one object about all segments whose names begin alike
	return f, ok && len(file) == 23
}

// lastOfGroup is the position of the last of the 16 segments that a delta object tells of. Where the size of segments is not known,
// it is after all others, so that nobody takes the object for an old one.
func lastOfGroup(first string, size int64) Position {
	s, err := wal.ParseSegment(first, max(size, 1<<20))
	if size == 0 || err != nil {
		return ^Position(0)
	}
	const group = 16
	return positionAt(s.Number+group-1, size)
}

// Inventory looks at everything in the archive. It takes one listing of each folder, one reading of each backup's two documents and
// of each history file, and of the backups' folders only those that have no sentinel.
func (c *Catalog) Inventory(ctx context.Context) (Inventory, error) {
	inv := Inventory{Histories: map[wal.Timeline]wal.History{}, Unread: map[wal.Timeline]error{}}
	var err error
	if inv.Identity, err = c.Identity(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return inv, err
	}
	if inv.Backups, err = c.Backups(ctx); err != nil {
		return inv, err
	}
	if err := c.Details(ctx, inv.Backups); err != nil {
		return inv, err
	}
	if err := c.lookAtUnfinished(ctx, &inv); err != nil {
		return inv, err
	}
	if inv.SegmentSize, err = c.segmentSize(ctx, &inv); err != nil {
		return inv, err
	}
	if err := c.lookAtWAL(ctx, &inv); err != nil {
		return inv, err
	}
	return inv, c.readHistories(ctx, &inv)
}

func (c *Catalog) lookAtUnfinished(ctx context.Context, inv *Inventory) error {
	listed := map[string]bool{}
	for _, b := range inv.Backups {
		listed[b.Name] = true
	}
	var folders []string
	for o, err := range c.repo.List(ctx, backupsDir) {
		if err != nil {
			return fmt.Errorf("cannot list the backups in %s: %w", c, err)
		}
		name, sentinel := strings.CutSuffix(baseName(o.Key), sentinelSuffix)
		switch {
		case o.IsDir() && isBackupName(name):
			if !listed[name] {
				folders = append(folders, name)
			}
		case sentinel && !o.IsDir() && isBackupName(name):
			listed[name] = true // it may be new
		default:
			inv.Foreign = append(inv.Foreign, o.Key)
		}
	}
	for _, name := range folders {
		if listed[name] {
			continue
		}
		u, err := c.unfinished(ctx, name)
		if err != nil {
			return err
		}
		inv.Unfinished = append(inv.Unfinished, u)
	}
	return nil
}

func (c *Catalog) unfinished(ctx context.Context, name string) (Unfinished, error) {
	u := Unfinished{Name: name}
	draft, removed := false, false
	err := c.repo.Walk(ctx, backupDir(name), func(o storage.Object) {
		u.Size += o.Size
		if o.Modified.After(u.Modified) {
			u.Modified = o.Modified
		}
		draft = draft || o.Key == backupDir(name)+draftName
		removed = removed || o.Key == backupDir(name)+removedName
	})
	if err != nil {
		return u, fmt.Errorf("cannot look at the unfinished backup %s in %s: %w", name, c, err)
	}
	u.Removed = removed && !draft // a new backup may have begun where the removal of another was cut off
	if !draft {
		return u, nil
	}
	raw, err := c.repo.GetPlain(ctx, backupDir(name)+draftName, maxDocument)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, repo.ErrTooLarge):
		return u, nil
	case err != nil:
		return u, err
	}
	var doc draftDocument
	if json.Unmarshal(raw, &doc) == nil {
		u.Hostname, u.DataDir, u.Started = doc.Hostname, doc.DataDir, doc.StartTime
	}
	return u, nil
}

func (c *Catalog) lookAtWAL(ctx context.Context, inv *Inventory) error {
	for o, err := range c.repo.List(ctx, walDir) {
		if err != nil {
			return fmt.Errorf("cannot list the WAL in %s: %w", c, err)
		}
		f, ok := classify(c.repo.TrimExtension(baseName(o.Key)), inv.SegmentSize)
		if !ok || o.IsDir() {
			inv.Foreign = append(inv.Foreign, o.Key)
			continue
		}
		f.Size, f.Modified, f.key = o.Size, o.Modified, o.Key
		inv.WAL = append(inv.WAL, f)
	}
	for o, err := range c.repo.List(ctx, fingerprintsDir) {
		if err != nil {
			return fmt.Errorf("cannot list the fingerprints of WAL in %s: %w", c, err)
		}
		name, document := strings.CutSuffix(baseName(o.Key), ".json")
		f, ok := classify(name, inv.SegmentSize)
		if !ok || !document || o.IsDir() {
			inv.Foreign = append(inv.Foreign, o.Key)
			continue
		}
		f.Size, f.Modified, f.key = o.Size, o.Modified, o.Key
		inv.Fingerprints = append(inv.Fingerprints, f)
	}
	byName := func(a, b WALFile) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.key, b.key)) }
	slices.SortFunc(inv.WAL, byName)
	slices.SortFunc(inv.Fingerprints, byName)
	slices.Sort(inv.Foreign)
	return nil
}

// readHistories reads the history files. One that cannot be decrypted or is damaged is left out, with its reason.
func (c *Catalog) readHistories(ctx context.Context, inv *Inventory) error {
	type read struct {
		timeline wal.Timeline
		history  wal.History
		err      error
	}
	var all []*read
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for _, f := range inv.WAL {
		if f.Kind != WALHistory {
			continue
		}
		r := &read{timeline: f.Timeline}
		all = append(all, r)
		g.Go(func() error {
			var stop error
			r.history, r.err, stop = c.history(ctx, f)
			return stop
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, r := range all {
		if r.err != nil {
			inv.Unread[r.timeline] = r.err
		} else {
			inv.Histories[r.timeline] = r.history
		}
	}
	for timeline := range inv.Histories { // the same file may be stored twice
		delete(inv.Unread, timeline)
	}
	return nil
}

// history reads one history file. What is wrong with the file is invalid, a storage that fails is err.
func (c *Catalog) history(ctx context.Context, f WALFile) (h wal.History, invalid, err error) {
	err = c.repo.Again(ctx, f.key, func() (bool, error) {
		r, err := c.repo.Open(ctx, f.key)
		if err != nil {
			return false, err // opening is repeated by the store
		}
		h, invalid = wal.ParseHistory(r)
		cerr := r.Close()
		if invalid != nil && (cerr == nil || errors.Is(cerr, ErrDamaged)) {
			return false, nil
		}
		return !errors.Is(cerr, ErrDamaged), cerr
	})
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrNoSecretKey), errors.Is(err, ErrDamaged):
		return nil, err, nil
	case err != nil:
		return nil, nil, fmt.Errorf("cannot read the timeline history %s in %s: %w", f.Name, c, err)
	case invalid == nil && (len(h) == 0 || h[len(h)-1].Timeline >= f.Timeline):
		invalid = errors.New("it names no ancestor of its timeline")
	}
	return h, invalid, nil
}

// segmentSize finds the size of segments: what the identity records, else the one with which every backup's first segment holds its
// start, else what the newest archived segment says of itself.
func (c *Catalog) segmentSize(ctx context.Context, inv *Inventory) (int64, error) {
	if size := inv.Identity.Current.SegmentSize; wal.ValidSegmentSize(size) {
		return size, nil
	}
	sizes := map[int64]bool{}
	for size := int64(1 << 20); wal.ValidSegmentSize(size); size *= 2 {
		sizes[size] = true
	}
	for _, b := range inv.Backups {
		for size := range sizes {
			if b.Problem == nil && b.StartLSN != 0 && !b.fits(size) {
				delete(sizes, size)
			}
		}
	}
	if len(sizes) == 1 {
		return slices.Collect(maps.Keys(sizes))[0], nil
	}
	name, err := c.WAL().newestSegment(ctx)
	if err != nil || name == "" {
		return 0, err
	}
	h, err := c.WAL().header(ctx, name)
	switch {
	case err == nil:
		return h.SegmentSize, nil
	case errors.Is(err, ErrNoSecretKey), errors.Is(err, ErrDamaged), errors.Is(err, fs.ErrNotExist):
		return 0, nil
	}
	return 0, err
}

// fits tells whether the backup's name is that of a segment of the size given that holds where it began, or the byte before.
func (b Backup) fits(size int64) bool {
	s, err := wal.ParseSegment(b.WALFile(), size)
	return err == nil && (wal.SegmentAt(s.Timeline, b.StartLSN, size) == s || wal.SegmentBefore(s.Timeline, b.StartLSN, size) == s)
}
