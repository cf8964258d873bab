package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/postgres"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// DeltaOptions say whether a backup may be a delta, and against which other one.
type DeltaOptions struct {
	MaxSteps int             // deltas since the full backup, at most; 0 takes a full one
	FromFull bool            // base it on the full backup of the chain, not on the newest member
	Name     string          // of the backup to continue; "" for the newest
	UserData json.RawMessage // of the backup to continue; nil for the newest

	UseWAL   bool // read from the archived WAL which blocks changed
	ForceWAL bool // fail where neither that nor the server's summaries tell it, instead of reading all pages
}

// base is the backup that a delta is taken against.
type base struct {
	catalog.Base
	timeline wal.Timeline
	delta    catalog.Delta // what the delta's sentinel says of it
	checksum bool          // the cluster had data checksums
}

// unsuitable is why no delta can be taken against a backup.
type unsuitable struct{ error }

func (u unsuitable) Unwrap() error { return u.error }

func unfit(format string, args ...any) error { return unsuitable{fmt.Errorf(format, args...)} }

// orFull takes a full backup instead of a delta that would be wrong: it turns the reason into a line of the log.
func orFull(ctx context.Context, d Deps, b *base, err error) (*base, error) {
	var reason unsuitable
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.As(err, &reason):
		d.Log.Warn("taking a full backup", "action", "backup-push", "reason", reason.error)
		return nil, nil
	}
	return b, err
}

// chooseBase finds the backup to take a delta against and makes sure that it can be restored; nil is for a full backup. What depends
// on where the new backup begins is for [base.precedes] to judge. A base that was named and does not exist is an error.
func chooseBase(ctx context.Context, d Deps, o Options, info postgres.Info, control pgdata.Control) (*base, error) {
	named := o.Delta.Name != "" || o.Delta.UserData != nil
	if o.Delta.MaxSteps == 0 {
		if named {
			d.Log.Warn("taking a full backup", "action", "backup-push", "reason", "WALG_DELTA_MAX_STEPS is 0, or --full was given")
		}
		return nil, nil
	}
	newest, err := candidate(ctx, d, o.Delta, info)
	if errors.Is(err, catalog.ErrNoBackups) && !named {
		d.Log.Info("taking a full backup: there is none yet to take a delta against", "action", "backup-push")
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	count := 1
	if newest.Delta != nil {
		count = max(1, newest.Delta.Count) + 1
	}
	if count > o.Delta.MaxSteps {
		d.Log.Info("taking a full backup: the chain of deltas is as long as it may be", "action", "backup-push",
			"backup", newest.Name, "deltas", count-1)
		return nil, nil
	}
	b, err := readBase(ctx, d, o, newest, info, control)
	if b != nil {
		b.delta.Count = count
	}
	return orFull(ctx, d, b, err)
}

// candidate is the backup to continue: the one that was asked for, or the newest of this cluster.
func candidate(ctx context.Context, d Deps, o DeltaOptions, info postgres.Info) (catalog.Backup, error) {
	var b catalog.Backup
	var err error
	switch {
	case o.Name != "":
		b, err = d.Catalog.Find(ctx, o.Name)
	case o.UserData != nil:
		b, err = d.Catalog.FindByUserData(ctx, o.UserData)
	default:
		b, err = newestOf(ctx, d.Catalog, info.SystemIdentifier)
	}
	if err != nil {
		return b, fmt.Errorf("cannot take a delta: %w", err)
	}
	if err := addDetails(ctx, d.Catalog, &b); err != nil {
		return b, fmt.Errorf("cannot take a delta against %s: %w", b.Name, err)
	}
	return b, nil
}

// addDetails reads what the sentinel does not say of a backup, such as the permanent mark.
func addDetails(ctx context.Context, c *catalog.Catalog, b *catalog.Backup) error {
	one := []catalog.Backup{*b}
	err := c.Details(ctx, one)
	*b = one[0]
	return err
}

// newestOf returns the usable backup of a cluster that was begun last.
func newestOf(ctx context.Context, c *catalog.Catalog, systemIdentifier uint64) (catalog.Backup, error) {
	backups, err := c.Backups(ctx)
	if err != nil {
		return catalog.Backup{}, err
	}
	for i := len(backups) - 1; i >= 0; i-- {
		b := backups[i]
		if b.Problem == nil && (b.SystemIdentifier == 0 || b.SystemIdentifier == systemIdentifier) {
			return b, nil
		}
	}
	return catalog.Backup{}, catalog.ErrNoBackups
}

// readBase reads what a delta must know of the backup that continues a chain, or of the full one that the chain begins with. The
// error is unsuitable if it cannot be a base.
func readBase(ctx context.Context, d Deps, o Options, newest catalog.Backup, info postgres.Info, control pgdata.Control) (*base, error) {
	b := newest
	switch {
	case newest.Problem != nil:
		return nil, unfit("backup %s cannot be used: %w", newest.Name, newest.Problem)
	case newest.Permanent && !o.Permanent && !o.Delta.FromFull:
		return nil, unfit("backup %s is permanent, and a delta against it would not be", newest.Name)
	case o.Delta.FromFull && newest.Delta != nil:
		var err error
		if b, err = d.Catalog.Find(ctx, newest.Delta.FullName); err == nil {
			err = addDetails(ctx, d.Catalog, &b)
		}
		if err != nil {
			return nil, unfit("the full backup that %s is based on cannot be used: %w", newest.Name, err)
		}
	}
	timeline, ok := wal.NameTimeline(b.WALFile())
	switch {
	case b.WALE != nil, !ok:
		return nil, unfit("backup %s was taken by WAL-E, which records too little of it", b.Name)
	case b.SystemIdentifier != 0 && b.SystemIdentifier != info.SystemIdentifier:
		return nil, unfit("backup %s is of cluster %d, this one is %d", b.Name, b.SystemIdentifier, info.SystemIdentifier)
	case b.StartLSN == 0 || b.FinishLSN == 0:
		return nil, unfit("backup %s does not record where it began and ended", b.Name)
	case o.Permanent && !b.Permanent:
		return nil, unfit("backup %s is not permanent, which a permanent delta against it would need; mark it first", b.Name)
	case info.BlockSize != pgdata.PageSize:
		return nil, unfit("the pages of the cluster have %d bytes, and increments only of %d exist", info.BlockSize, pgdata.PageSize)
	}
	known, err := d.Catalog.Base(ctx, b)
	if err != nil {
		return nil, unfit("backup %s cannot be restored: %w", b.Name, err)
	}
	was, err := controlOf(ctx, d.Catalog, known)
	if err != nil {
		return nil, unfit("the control file of backup %s cannot be read: %w", b.Name, err)
	}
	switch {
	case was.SystemIdentifier != control.SystemIdentifier:
		return nil, unfit("backup %s is of cluster %d, this one is %d", b.Name, was.SystemIdentifier, control.SystemIdentifier)
	case was.CatalogVersion != control.CatalogVersion, was.ControlVersion != control.ControlVersion:
		return nil, unfit("backup %s is of another major version of PostgreSQL", b.Name)
	case was.BlockSize != control.BlockSize, was.SegmentBlocks != control.SegmentBlocks:
		return nil, unfit("backup %s is of a server built with another size of pages or files", b.Name)
	case was.WALSegmentSize != control.WALSegmentSize:
		return nil, unfit("in backup %s a segment of WAL has %d bytes, now %d", b.Name, was.WALSegmentSize, control.WALSegmentSize)
	case control.DataChecksums && !was.DataChecksums: // pg_checksums --enable writes all pages, and the log does not know
		return nil, unfit("checksums of pages were enabled since backup %s", b.Name)
	}
	full := b.Name
	if b.Delta != nil {
		full = b.Delta.FullName
	}
	return &base{Base: known, timeline: timeline, checksum: was.DataChecksums,
		delta: catalog.Delta{From: b.Name, FullName: full, LSN: b.StartLSN}}, nil
}

// controlOf reads the control file of a backup.
func controlOf(ctx context.Context, c *catalog.Catalog, b catalog.Base) (pgdata.Control, error) {
	for _, p := range b.Listing.Special {
		raw, err := readMember(ctx, c, b.Backup.Name, p, pgdata.ControlName)
		if err != nil {
			return pgdata.Control{}, fmt.Errorf("cannot read %s: %w", p.Name, err)
		}
		if raw != nil {
			return pgdata.ParseControl(raw)
		}
	}
	return pgdata.Control{}, fmt.Errorf("%s is in none of its tars", pgdata.ControlName)
}

// readMember returns a file of a few KiB from a stored tar, nil if it is not in it.
func readMember(ctx context.Context, c *catalog.Catalog, backup string, p catalog.Part, name string) (content []byte, err error) {
	r, err := c.OpenPart(ctx, backup, p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			_, err = io.Copy(io.Discard, r) // its end proves that the part is as it was written
			return content, err
		}
		if err != nil {
			return nil, err
		}
		if entry, err := catalog.EntryName(h.Name); err == nil && entry == name {
			var b bytes.Buffer
			if _, err := io.CopyN(&b, t, pgdata.ControlSize+1); err != nil && err != io.EOF {
				return nil, err
			}
			content = b.Bytes()
		}
	}
}

// precedes makes sure that what the server has is what it had when the base ended, and what it has written since. The error is unsuitable
// if that is not so.
func (b *base) precedes(ctx context.Context, d Deps, dir string, start postgres.Start) error {
	if b.Backup.FinishLSN > start.LSN {
		return unfit("backup %s ended at %s, behind %s, where this one begins", b.Backup.Name, b.Backup.FinishLSN, start.LSN)
	}
	if b.timeline == start.Timeline {
		return nil
	}
	history, err := readHistory(ctx, d.Catalog, dir, start.Timeline)
	if err != nil {
		return unfit("backup %s is of timeline %d, and whether timeline %d descends from it cannot be told: %w",
			b.Backup.Name, b.timeline, start.Timeline, err)
	}
	if at := history.TimelineAt(b.Backup.FinishLSN-1, start.Timeline); at != b.timeline {
		return unfit("backup %s ended at %s on timeline %d, and the server was on timeline %d there", b.Backup.Name, b.Backup.FinishLSN, b.timeline, at)
	}
	return nil
}

// readHistory reads the history of a timeline from pg_wal, or else from the archive.
func readHistory(ctx context.Context, c *catalog.Catalog, dir string, timeline wal.Timeline) (wal.History, error) {
	if timeline == 1 {
		return nil, nil
	}
	name := wal.HistoryName(timeline)
	var in io.ReadCloser
	in, err := os.Open(filepath.Join(dir, "pg_wal", name))
	if errors.Is(err, fs.ErrNotExist) {
		in, err = c.WAL().Open(ctx, name)
	}
	if err != nil {
		return nil, hint.With(fmt.Errorf("cannot read %s: %w", name, err), "it should be in pg_wal or in the archive")
	}
	h, err := wal.ParseHistory(in)
	return h, errors.Join(err, in.Close())
}
