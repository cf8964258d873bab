// Package catalog knows what lies in an archive, by meaning: backups, drafts of backups, their parts and documents,
// the WAL, and the identity of the cluster that all of it belongs to. Every object name and every JSON document of
// WAL-G's format is spelled here and nowhere else.
//
// Promises: a backup is listed only when its sentinel exists, and the sentinel is the last of all writes; nothing
// that exists is overwritten; documents from the archive are bounded in size and never trusted.
package catalog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// ErrNoBackups is returned when an archive holds no usable backup.
var ErrNoBackups = errors.New("the archive holds no backup")

// Limits of documents, in bytes.
const (
	maxDocument = 1 << 20 // of what is read whole into memory: a document, or a sentinel without its lists of files
	maxListing  = 4 << 30 // of what lists files, read piece by piece: 250 bytes for each of the 14 million files that a list can have
)

const (
	// sentinelMemory bounds what the sentinels take that are read at once, in bytes.
	sentinelMemory = 32 << 20
	// maxListed bounds what a list of backups keeps of its sentinels, in bytes: a hundred thousand usual ones.
	maxListed = 64 << 20
)

// readers is how many small documents are fetched at once.
const readers = 16

// WALState tells whether the WAL that a backup needs was in the archive when it was committed.
type WALState string

// The WAL states. Backups of other writers have none.
const (
	WALUnknown  WALState = ""
	WALArchived WALState = "archived"
	WALMissing  WALState = "missing"
)

// Backup describes one backup as its documents tell it.
type Backup struct {
	Name     string
	Modified time.Time // the sentinel's modification time in the storage

	// Problem says why the backup cannot be used: a sentinel that cannot be read, or a name outside the grammar.
	// All other recorded fields may be empty then.
	Problem error

	StartTime, FinishTime time.Time // zero if not recorded (WAL-E, version 1)
	StartLSN, FinishLSN   wal.LSN   // 0 if not recorded
	PgVersion             int       // server_version_num, 0 if not recorded
	SystemIdentifier      uint64    // 0 if not recorded
	Hostname, DataDir     string
	Permanent             bool
	UncompressedSize      int64
	CompressedSize        int64
	UserData              json.RawMessage
	Tablespaces           *TablespaceSpec
	Delta                 *Delta // nil for a full backup
	WAL                   WALState
	CorruptBlocks         int    // pages found corrupt while the backup was taken
	ManifestSHA256        string // hex; empty for backups of other writers
	WALE                  *WALE  // nil unless WAL-E wrote it

	catalogSize   int64 // of all that was walked in bytes, 0 if not recorded
	filesDisabled bool
	filesEmbedded bool // version 1: the sentinel holds the list of files
}

// Delta tells what a delta backup is based on.
type Delta struct {
	From, FullName string
	LSN            wal.LSN
	Count          int
}

// When is the time that orders backups: the recorded start where there is one, else the storage's modification time.
func (b Backup) When() time.Time {
	if b.StartTime.IsZero() {
		return b.Modified
	}
	return b.StartTime
}

// WALFile is the segment that the backup is named after; empty when the name is outside the grammar.
func (b Backup) WALFile() string {
	segment, _ := backupSegments(b.Name)
	return segment
}

// Catalog gives access to one archive.
type Catalog struct {
	repo *repo.Repo
	log  *slog.Logger
}

// New returns the catalog of the archive that r holds.
func New(r *repo.Repo, log *slog.Logger) *Catalog { return &Catalog{repo: r, log: log} }

// String names the archive for messages.
func (c *Catalog) String() string { return c.repo.String() }

// AtOnce is the same archive, which compresses n blocks of one object at the same time; see [codec.AtOnce].
func (c *Catalog) AtOnce(n int) *Catalog { return &Catalog{repo: c.repo.AtOnce(n), log: c.log} }

// PutMemory is an upper bound for the memory, in bytes, that storing one part takes, without the storage's own buffers.
func (c *Catalog) PutMemory() int64 { return c.repo.PutMemory() }

// Check fails with a clear cause if the archive's storage cannot be used.
func (c *Catalog) Check(ctx context.Context) error { return c.repo.Check(ctx) }

// Backups lists the backups in the order in which they were started. An entry that cannot be read or does not belong
// to the format is listed with its Problem; only a storage that does not answer is an error.
func (c *Catalog) Backups(ctx context.Context) ([]Backup, error) {
	var backups []Backup
	var sizes []int64
	for o, err := range c.repo.List(ctx, backupsDir) {
		if err != nil {
			return nil, fmt.Errorf("cannot list the backups in %s: %w", c, err)
		}
		if name, ok := strings.CutSuffix(baseName(o.Key), sentinelSuffix); ok && !o.IsDir() {
			backups = append(backups, Backup{Name: name, Modified: o.Modified})
			sizes = append(sizes, o.Size)
		}
	}
	memory := storage.NewBudget(sentinelMemory)
	var kept atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for i := range backups {
		g.Go(func() error {
			takes := min(sizes[i], maxDocument+maxValue)
			if err := memory.Acquire(ctx, takes); err != nil {
				return err
			}
			defer memory.Release(takes)
			err := c.readSentinel(ctx, &backups[i])
			if err == nil && kept.Add(backups[i].kept()) > maxListed {
				return c.tooMuchListed()
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	backups = slices.DeleteFunc(backups, func(b Backup) bool { return errors.Is(b.Problem, fs.ErrNotExist) }) // deleted meanwhile
	slices.SortStableFunc(backups, func(a, b Backup) int {
		return cmp.Or(a.When().Compare(b.When()), cmp.Compare(a.Name, b.Name))
	})
	return backups, nil
}

// readSentinel fills b from its sentinel. What is wrong with the document becomes b.Problem; only a storage that does
// not answer is an error.
func (c *Catalog) readSentinel(ctx context.Context, b *Backup) error {
	var s sentinel
	var invalid error
	err := c.repo.ReadPlain(ctx, sentinelKey(b.Name), maxListing, func(r io.Reader) error {
		s, invalid = sentinel{}, nil
		invalid = s.read(r)
		return nil
	})
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, repo.ErrTooLarge):
		b.Problem = err
		return nil
	case err != nil:
		return err
	case invalid != nil:
		b.Problem = notValid("sentinel", invalid)
		return nil
	}
	b.fill(&s)
	b.WALE, invalid = s.waleSentinel.read(b.Name)
	switch {
	case !isBackupName(b.Name):
		b.Problem = errors.New("its name is not that of a backup")
	case invalid != nil:
		b.Problem = notValid("sentinel", invalid)
	case b.WALE != nil:
		b.UncompressedSize = b.WALE.ExpandedSize
	case s.LSN == nil: // {} and null, for example; every writer but WAL-E records where its backup began
		b.Problem = errors.New("its sentinel is not valid: it has no LSN")
	}
	return nil
}

func (c *Catalog) tooMuchListed() error {
	return fmt.Errorf("cannot list the backups in %s: what is recorded of them takes more than %d MiB", c, maxListed>>20)
}

// notValid is the problem of a backup whose document says what no writer says. The decoder's error may hold a megabyte of it.
func notValid(document string, err error) error {
	if text := err.Error(); len(text) > 300 {
		err = errors.New(strings.ToValidUTF8(text[:300], "") + "…")
	}
	return fmt.Errorf("its %s is not valid: %w", document, err)
}

// kept is about how much of its documents the backup keeps in memory, in bytes.
func (b *Backup) kept() int64 {
	n := len(b.Hostname) + len(b.DataDir) + len(b.UserData) + len(b.ManifestSHA256) + len(b.WAL)
	if b.Delta != nil {
		n += len(b.Delta.From) + len(b.Delta.FullName)
	}
	if b.Tablespaces != nil {
		for _, location := range b.Tablespaces.Tablespaces {
			n += len(location) + 64
		}
	}
	return int64(n)
}

func (b *Backup) fill(s *sentinel) {
	b.StartTime, b.FinishTime = s.StartTime, s.FinishTime
	b.StartLSN, b.FinishLSN = deref(s.LSN), deref(s.FinishLSN)
	b.PgVersion = s.PgVersion
	b.SystemIdentifier = deref(s.SystemIdentifier)
	b.Hostname, b.DataDir = s.Hostname, s.DataDir
	b.Permanent = s.IsPermanent
	b.UncompressedSize, b.CompressedSize = s.UncompressedSize, s.CompressedSize
	b.catalogSize = max(0, s.DataCatalogSize)
	b.UserData = s.UserData
	b.Tablespaces = s.Spec
	b.filesDisabled = s.FilesDisabled
	b.filesEmbedded = s.filesEmbedded
	if s.DeltaFrom != nil {
		b.Delta = &Delta{From: *s.DeltaFrom, FullName: deref(s.DeltaFullName), LSN: deref(s.DeltaLSN), Count: deref(s.DeltaCount)}
		if s.DeltaFromLSN != nil {
			b.Delta.LSN = *s.DeltaFromLSN
		}
	}
	if s.Walden != nil {
		b.WAL, b.ManifestSHA256, b.CorruptBlocks = s.Walden.WAL, s.Walden.ManifestSHA256, s.Walden.CorruptBlocks
	}
}

// Details completes backups from their metadata.json, which is the authority on the permanent mark. A backup
// without one keeps what its sentinel says, and one of WAL-E gets the server's version; a document that cannot be read
// becomes the backup's Problem.
func (c *Catalog) Details(ctx context.Context, backups []Backup) error {
	var kept atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for i := range backups {
		b := &backups[i]
		if b.Problem != nil {
			continue
		}
		g.Go(func() error {
			if b.WALE != nil {
				return c.readVersion(ctx, b)
			}
			raw, err := c.repo.GetPlain(ctx, backupDir(b.Name)+metadataName, maxDocument)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case errors.Is(err, repo.ErrTooLarge):
				b.Problem = err
				return nil
			case err != nil:
				return err
			}
			var m metadata
			if err := json.Unmarshal(raw, &m); err != nil {
				b.Problem = notValid(metadataName, err)
				return nil
			}
			b.Permanent = m.IsPermanent
			if b.StartTime.IsZero() {
				b.StartTime, b.FinishTime = m.StartTime, m.FinishTime
				b.Hostname, b.DataDir = m.Hostname, m.DataDir
			}
			if len(m.UserData) > 0 {
				b.UserData = m.UserData
			}
			if kept.Add(b.kept()) > maxListed {
				return c.tooMuchListed()
			}
			return nil
		})
	}
	return g.Wait()
}

// Find returns the backup called which; LATEST is the newest usable one by its recorded start.
func (c *Catalog) Find(ctx context.Context, which string) (Backup, error) {
	if which == "LATEST" {
		return c.latest(ctx)
	}
	if strings.ContainsAny(which, "/\\") || which == "" {
		return Backup{}, hint.With(fmt.Errorf("cannot find backup %q in %s: not a backup's name", which, c), listHint)
	}
	b := Backup{Name: which}
	o, err := c.repo.Stat(ctx, sentinelKey(which))
	if errors.Is(err, fs.ErrNotExist) {
		return Backup{}, hint.With(fmt.Errorf("cannot find backup %q in %s: %w", which, c, fs.ErrNotExist), listHint)
	}
	if err != nil {
		return Backup{}, fmt.Errorf("cannot find backup %q in %s: %w", which, c, err)
	}
	b.Modified = o.Modified
	if err := c.readSentinel(ctx, &b); err != nil {
		return Backup{}, err
	}
	if b.Problem != nil {
		return Backup{}, fmt.Errorf("cannot use backup %q in %s: %w", which, c, b.Problem)
	}
	if b.WALE != nil {
		if err := c.readVersion(ctx, &b); err != nil {
			return Backup{}, err
		}
	}
	return b, nil
}

const listHint = "`walden backup-list` shows what is there"

func (c *Catalog) latest(ctx context.Context) (Backup, error) {
	backups, err := c.Backups(ctx)
	if err != nil {
		return Backup{}, err
	}
	for i := len(backups) - 1; i >= 0; i-- {
		if backups[i].Problem == nil {
			newestWritten := slices.MaxFunc(backups, func(a, b Backup) int { return a.Modified.Compare(b.Modified) })
			if newestWritten.Name != backups[i].Name {
				c.log.Warn("LATEST is the backup that was started last, not the one whose sentinel was written last",
					"backup", backups[i].Name, "started", backups[i].When(), "written_last", newestWritten.Name)
			}
			return c.Find(ctx, backups[i].Name)
		}
		c.log.Warn("LATEST passes over a newer backup that cannot be used", "backup", backups[i].Name, "problem", backups[i].Problem)
	}
	return Backup{}, fmt.Errorf("cannot find LATEST in %s: %w", c, ErrNoBackups)
}

// FindByUserData returns the one backup whose user data equals the JSON value given; none or several are errors.
func (c *Catalog) FindByUserData(ctx context.Context, value json.RawMessage) (Backup, error) {
	if !json.Valid(value) {
		return Backup{}, fmt.Errorf("cannot find a backup by user data %s: not valid JSON", value)
	}
	backups, err := c.Backups(ctx)
	if err != nil {
		return Backup{}, err
	}
	if err := c.Details(ctx, backups); err != nil {
		return Backup{}, err
	}
	var found []string
	for _, b := range backups {
		if b.Problem == nil && len(b.UserData) > 0 && userDataEqual(b.UserData, value) {
			found = append(found, b.Name)
		}
	}
	switch len(found) {
	case 1:
		return c.Find(ctx, found[0])
	case 0:
		return Backup{}, fmt.Errorf("cannot find a backup with user data %s in %s: %w", value, c, fs.ErrNotExist)
	}
	return Backup{}, hint.With(fmt.Errorf("cannot choose a backup by user data %s in %s: it is on %s", value, c, strings.Join(found, ", ")),
		"give the name of the backup instead")
}

// Leftovers yields the names of backup folders without a sentinel: backups under way, and those that were cut off.
func (c *Catalog) Leftovers(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		complete := map[string]bool{}
		var folders []string
		for o, err := range c.repo.List(ctx, backupsDir) {
			if err != nil {
				yield("", fmt.Errorf("cannot list the backups in %s: %w", c, err))
				return
			}
			if o.IsDir() {
				folders = append(folders, baseName(o.Key))
			} else if name, ok := strings.CutSuffix(baseName(o.Key), sentinelSuffix); ok {
				complete[name] = true
			}
		}
		for _, name := range folders {
			if !complete[name] && isBackupName(name) && !yield(name, nil) {
				return
			}
		}
	}
}

func deref[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// Empty tells whether there is nothing at all under the archive's prefix.
func (c *Catalog) Empty(ctx context.Context) (bool, error) {
	for _, err := range c.repo.List(ctx, "") {
		return false, err
	}
	return true, nil
}

// HasUserData tells whether the backup's user data equals the JSON value given.
func (b Backup) HasUserData(value json.RawMessage) bool {
	return b.Problem == nil && len(b.UserData) > 0 && userDataEqual(b.UserData, value)
}
