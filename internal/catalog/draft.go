package catalog

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"sync"
	"time"

	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// Start is what is known of a backup when it begins.
type Start struct {
	LSN              wal.LSN
	Timeline         wal.Timeline
	Time             time.Time
	Standby          bool
	SystemIdentifier uint64
	PgVersion        int   // server_version_num
	SegmentSize      int64 // bytes
	PageSize         int64 // bytes
	DataChecksums    bool
	Hostname         string
	DataDir          string            // resolved
	Tablespaces      map[uint32]string // OID → location; without those that lie in place
	UserData         json.RawMessage   // nil if none
	Permanent        bool
	Delta            *Delta // what it is based on, nil for a full backup
	Walden           string // version of this program
	Compression      string
	Encryption       string
}

// Stop is what is known when the last byte was copied and the server has left backup mode.
type Stop struct {
	LSN  wal.LSN
	Time time.Time
	WAL  WALState
	// First and Last are the segments without which the backup cannot be recovered.
	First, Last wal.Segment
}

// Draft is a backup that is being written. Nothing lists it before Commit has written its sentinel.
// PutPart may be called by many goroutines at once.
type Draft struct {
	c     *Catalog
	name  string
	start Start

	mu       sync.Mutex
	sealed   map[string]repo.Sealed // every tar stored so far, by object name
	sentinel bool                   // the sentinel may exist
}

// draftDocument is walden_draft.json: who is writing a backup that has no sentinel yet.
type draftDocument struct {
	Backup    string    `json:"backup"`
	Hostname  string    `json:"hostname"`
	DataDir   string    `json:"data_dir"`
	StartTime time.Time `json:"start_time"`
}

// Begin claims the name of a new backup in the archive. A name that a finished backup bears is refused: on a
// standby two backups that start from the same restart point have the same name. What an earlier run of the same
// host and data directory left under that name is removed; the caller holds the server's backup lock, so that run is over.
func (c *Catalog) Begin(ctx context.Context, start Start) (*Draft, error) {
	d := &Draft{
		c: c, start: start, sealed: map[string]repo.Sealed{},
		name: fullName(wal.SegmentAt(start.Timeline, start.LSN, start.SegmentSize), start.SegmentSize),
	}
	if start.Delta != nil {
		d.name = deltaName(d.name, start.Delta.From)
	}
	if err := d.refuseExisting(ctx); err != nil {
		return nil, err
	}
	doc := draftDocument{Backup: d.name, Hostname: start.Hostname, DataDir: start.DataDir, StartTime: start.Time.UTC()}
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	key := backupDir(d.name) + draftName
	err = c.repo.PutPlainNew(ctx, key, b)
	if errors.Is(err, storage.ErrExists) {
		if err := d.takeOver(ctx, doc); err != nil {
			return nil, err
		}
		err = c.repo.PutPlain(ctx, key, b)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot begin backup %s in %s: %w", d.name, c, err)
	}
	return d, nil
}

func (d *Draft) refuseExisting(ctx context.Context) error {
	_, err := d.c.repo.Stat(ctx, sentinelKey(d.name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("cannot begin backup %s in %s: %w", d.name, d.c, err)
	}
	advice := "another backup of this cluster began in the same WAL segment; try again when the server has written more WAL"
	if d.start.Standby {
		advice = "on a standby a backup begins at the last restart point, and there was none since that backup: " +
			"try again after the next checkpoint of the primary"
	}
	return hint.With(fmt.Errorf("cannot begin backup %s: %s holds a finished backup of that name", d.name, d.c), advice)
}

// takeOver clears the way when another, unfinished backup claimed the name first, and refuses where its owner may
// still be at work.
func (d *Draft) takeOver(ctx context.Context, ours draftDocument) error {
	raw, err := d.c.repo.GetPlain(ctx, backupDir(d.name)+draftName, maxDocument)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot begin backup %s in %s: %w", d.name, d.c, err)
	}
	var theirs draftDocument
	if json.Unmarshal(raw, &theirs) != nil || theirs.Hostname != ours.Hostname || theirs.DataDir != ours.DataDir {
		return hint.With(fmt.Errorf("cannot begin backup %s in %s: an unfinished backup of that name was begun by host %q at %s",
			d.name, d.c, theirs.Hostname, theirs.StartTime.Format(time.RFC3339)),
			"if that host is not taking a backup any more, remove the folder "+backupDir(d.name))
	}
	d.c.log.Warn("removing what an unfinished backup of this host left behind", "backup", d.name, "begun", theirs.StartTime)
	if err := d.removeAll(ctx); err != nil {
		return fmt.Errorf("cannot begin backup %s in %s: leftovers of an unfinished backup: %w", d.name, d.c, err)
	}
	return nil
}

// Name is the backup's name.
func (d *Draft) Name() string { return d.name }

// PutPart stores the n-th tar, counting from 1, and returns what to record of it; blocks of it are compressed at the same time. write may
// be called again after a failure of the storage and must start from the beginning then.
func (d *Draft) PutPart(ctx context.Context, n, blocks int, write func(io.Writer) error) (Part, error) {
	return d.put(ctx, d.c.repo.AtOnce(blocks), partName(n), write)
}

// PutControl stores the tar that holds global/pg_control alone.
func (d *Draft) PutControl(ctx context.Context, write func(io.Writer) error) (Part, error) {
	return d.put(ctx, d.c.repo, controlTar, write)
}

// PutLabel stores the tar that holds backup_label and tablespace_map.
func (d *Draft) PutLabel(ctx context.Context, write func(io.Writer) error) (Part, error) {
	return d.put(ctx, d.c.repo, labelTar, write)
}

func (d *Draft) put(ctx context.Context, to *repo.Repo, name string, write func(io.Writer) error) (Part, error) {
	s, err := to.Put(ctx, backupDir(d.name)+partsDir+name, write)
	if err != nil {
		return Part{}, fmt.Errorf("cannot store %s of backup %s: %w", name, d.name, err)
	}
	p := Part{Name: baseName(s.Object), Size: s.Size, SHA256: hex.EncodeToString(s.SHA256[:])}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sealed[p.Name] = s
	return p, nil
}

// Commit proves that the storage holds every part as it was written, stores the documents, and makes the backup exist:
// the sentinel is the last of all writes. After an error the backup does not exist; call Abandon.
func (d *Draft) Commit(ctx context.Context, stop Stop, contents *Contents, relations Relations) (Backup, error) {
	fail := func(err error) (Backup, error) {
		return Backup{}, fmt.Errorf("cannot complete backup %s in %s: %w", d.name, d.c, err)
	}
	if err := d.proveParts(ctx); err != nil {
		return fail(err)
	}
	s, head := d.documents(stop, contents)

	manifest, err := d.c.repo.PutPlainStream(ctx, backupDir(d.name)+manifestName, func(w io.Writer) error {
		return writeManifest(w, head, contents)
	})
	if err != nil {
		return fail(err)
	}
	s.Walden.ManifestSHA256 = hex.EncodeToString(manifest.SHA256[:])

	if _, err := d.c.repo.PutPlainStream(ctx, backupDir(d.name)+filesName, func(w io.Writer) error {
		return writeFiles(ctx, w, contents, relations)
	}); err != nil {
		return fail(err)
	}

	b, err := json.Marshal(metadata{
		StartTime: s.StartTime, FinishTime: s.FinishTime, DateFmt: dateFormat, Hostname: s.Hostname, DataDir: s.DataDir,
		PgVersion: s.PgVersion, StartLSN: *s.LSN, FinishLSN: *s.FinishLSN, IsPermanent: s.IsPermanent,
		SystemIdentifier: s.SystemIdentifier, UncompressedSize: s.UncompressedSize, CompressedSize: s.CompressedSize,
		UserData: s.UserData,
	})
	if err != nil {
		return fail(err)
	}
	if err := d.c.repo.PutPlain(ctx, backupDir(d.name)+metadataName, b); err != nil {
		return fail(err)
	}

	if b, err = json.Marshal(s); err != nil {
		return fail(err)
	}
	if delta := d.start.Delta; delta != nil {
		_, err := d.c.repo.Stat(ctx, sentinelKey(delta.From))
		if errors.Is(err, fs.ErrNotExist) {
			return fail(hint.With(fmt.Errorf("backup %s, which it is based on, was deleted meanwhile", delta.From), "take the backup again"))
		}
		if err != nil {
			return fail(err)
		}
	}
	d.sentinel = true // from here on it may exist even if the storage reports a failure
	if err := d.c.repo.PutPlainNew(ctx, sentinelKey(d.name), b); err != nil {
		return fail(err)
	}
	if err := d.c.repo.Delete(ctx, backupDir(d.name)+draftName); err != nil {
		d.c.log.Warn("the backup is complete, but the mark of its draft could not be removed; it does no harm",
			"object", backupDir(d.name)+draftName, "error", err)
	}
	done := Backup{Name: d.name, Modified: time.Now()}
	done.fill(&s)
	return done, nil
}

// proveParts compares what was sealed with what the storage lists.
func (d *Draft) proveParts(ctx context.Context) error {
	stored, err := d.c.storedParts(ctx, d.name)
	if err != nil {
		return err
	}
	for _, name := range sortedKeys(d.sealed) {
		if _, ok := stored[name]; !ok { // a listing may lag behind
			o, err := d.c.repo.Stat(ctx, backupDir(d.name)+partsDir+name)
			if err != nil {
				return fmt.Errorf("the storage acknowledged part %s but does not list it: %w", name, err)
			}
			stored[name] = o.Size
		}
		switch size := stored[name]; {
		case size != d.sealed[name].Size:
			return fmt.Errorf("part %s has %d bytes in the storage, %d were written", name, size, d.sealed[name].Size)
		}
		delete(stored, name)
	}
	for name := range stored {
		return fmt.Errorf("the storage holds a part %s that this backup did not write", name)
	}
	return nil
}

func (d *Draft) documents(stop Stop, contents *Contents) (sentinel, manifestHead) {
	st := d.start
	s := sentinel{
		LSN: &st.LSN, PgVersion: st.PgVersion, FinishLSN: &stop.LSN, SystemIdentifier: &st.SystemIdentifier,
		DataCatalogSize: contents.DataSize, UserData: st.UserData, Version: 2,
		StartTime: upToMicrosecond(st.Time), FinishTime: upToMicrosecond(stop.Time), DateFmt: dateFormat,
		Hostname: st.Hostname, DataDir: st.DataDir, IsPermanent: st.Permanent,
		Walden: &sentinelWalden{Version: st.Walden, WAL: stop.WAL},
	}
	for _, p := range d.sealed {
		s.CompressedSize += p.Size
	}
	if delta := st.Delta; delta != nil {
		s.DeltaLSN, s.DeltaFrom, s.DeltaFullName, s.DeltaCount = &delta.LSN, &delta.From, &delta.FullName, &delta.Count
	}
	var whole int64 // bytes of the restored files
	for _, f := range contents.Files.All() {
		if f.Type == Regular {
			whole += f.FileSize
			if f.Stored != Elsewhere {
				s.UncompressedSize += f.Size
			}
		}
		if f.Corrupt != nil {
			s.Walden.CorruptBlocks += f.Corrupt.Count
		}
	}
	s.UncompressedSize += contents.UtilitySize
	if len(st.Tablespaces) > 0 {
		s.Spec = &TablespaceSpec{BasePrefix: st.DataDir, Tablespaces: st.Tablespaces}
	}
	return s, manifestHead{
		Version: manifestVersion, Backup: d.name, Walden: st.Walden,
		SystemIdentifier: strconv.FormatUint(st.SystemIdentifier, 10), PgVersion: st.PgVersion,
		Timeline: uint32(st.Timeline), StartLSN: st.LSN.String(), StopLSN: stop.LSN.String(),
		SegmentSize: st.SegmentSize, PageSize: st.PageSize, DataChecksums: st.DataChecksums, Standby: st.Standby,
		Compression: st.Compression, Encryption: st.Encryption,
		WAL:     manifestWAL{State: stop.WAL, First: stop.First.Name(st.SegmentSize), Last: stop.Last.Name(st.SegmentSize)},
		WALLink: contents.WALLink, DataSize: whole,
	}
}

// Abandon removes what the draft has stored. The error names what could not be removed. A sentinel that may exist goes
// first; while it cannot be removed nothing else is, so that no backup is listed whose parts are gone.
func (d *Draft) Abandon(ctx context.Context) error {
	why := func(err error) error {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return context.Cause(ctx)
		}
		return err
	}
	if d.sentinel {
		if err := why(d.c.repo.Delete(ctx, sentinelKey(d.name))); err != nil {
			return fmt.Errorf("cannot withdraw the sentinel of backup %s in %s: %w", d.name, d.c, err)
		}
	}
	if err := why(d.removeAll(ctx)); err != nil {
		return fmt.Errorf("cannot remove what the unfinished backup %s left in %s/%s: %w", d.name, d.c, backupDir(d.name), err)
	}
	return nil
}

// removeAll removes the backup's folder: tars first, the mark of the draft last, so that a second try finds it.
func (d *Draft) removeAll(ctx context.Context) error {
	var keys, marks []string
	for _, dir := range []string{backupDir(d.name) + partsDir, backupDir(d.name)} {
		for o, err := range d.c.repo.List(ctx, dir) {
			switch {
			case err != nil:
				return err
			case o.IsDir():
			case baseName(o.Key) == draftName:
				marks = append(marks, o.Key)
			default:
				keys = append(keys, o.Key)
			}
		}
	}
	if len(keys) > 0 {
		if err := d.c.repo.Delete(ctx, keys...); err != nil {
			return err
		}
	}
	if len(marks) == 0 {
		return nil
	}
	return d.c.repo.Delete(ctx, marks...)
}
