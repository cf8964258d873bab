// Package verify proves that a stored backup can be restored, without restoring it.
//
// It is the restore with another sink: the same code reads the documents, the parts and the chain of backups that a delta is based
// on, and compares every hash that is recorded; the sink, instead of writing files, checks the pages of relations. Then the WAL from the
// backup's start to its end is read and followed record by record.
//
// What it promises: a backup that is called proven has every part, file, page and WAL record that its recovery to consistency needs,
// as far as the archive's formats let that be known; what they do not let be known is in the [Report].
package verify

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"time"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/changes"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/restore"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// Deps is what a verification works with.
type Deps struct {
	Catalog  *catalog.Catalog
	Log      *slog.Logger
	Progress restore.Progress
}

// Report is what is known of a backup that was read to its end.
type Report struct {
	Parts    int   // tars read, those of the backups that it is based on included
	Files    int   // of the restored cluster
	Bytes    int64 // in those files
	Hashed   bool  // every file was compared with the hash that was recorded when it was written
	Pages    int64 // of relations whose checksums were verified; 0 if the cluster has none
	Segments int   // of WAL
	Records  bool  // the WAL was followed record by record: not that of an unknown PostgreSQL version

	// Recorded counts the pages that were corrupt in the cluster already, as the backup's documents say.
	Recorded int
	// Corrupt are the pages with wrong checksums that replay of the WAL does not write anew, and that were not known to be corrupt:
	// the first of them.
	Corrupt []Page
	// CorruptPages counts them.
	CorruptPages int64
}

// Page is a page of a relation's file.
type Page struct {
	File  string `json:"file"`
	Block uint32 `json:"block"` // within the file
}

// Backup reads a backup as a restore would, and its WAL. An error says what cannot be restored, or could not be read; corrupt pages are
// in the report only, and a backup with such pages is not proven.
func Backup(ctx context.Context, d Deps, b catalog.Backup, workers int) (Report, error) {
	chain, err := d.Catalog.Chain(ctx, b)
	if err != nil {
		return Report{}, err
	}
	listing := chain[0].Listing
	s := &checker{add: d.Progress.Add}
	d.Progress.Begin(listing.DataSize)
	utilities, err := restore.Unpack(ctx, d.Catalog, d.Log, chain, workers, s)
	d.Progress.End()
	if err == nil {
		err = utilities.Check(b)
	}
	if err != nil {
		return Report{}, err
	}
	r := Report{Files: s.files, Bytes: s.bytes, Hashed: true}
	for _, m := range chain {
		r.Parts += len(m.Listing.Parts)
		r.Hashed = r.Hashed && m.Listing.Hashed
	}
	r.Parts += len(listing.Special)

	control, err := pgdata.ParseControl(utilities.Control.Content)
	if errors.Is(err, pgdata.ErrControlVersion) { // nothing is known of such a cluster, so nothing more can be
		d.Log.Warn("WAL and pages are not verified: the backup is of an unknown PostgreSQL version", "backup", b.Name, "error", err)
		return r, nil
	}
	if err != nil {
		return Report{}, err
	}
	replayed, err := r.followWAL(ctx, d, b, control)
	if err != nil {
		return Report{}, err
	}
	if control.DataChecksums && control.BlockSize == pgdata.PageSize && control.SegmentBlocks == segmentBlocks {
		r.Pages = s.pages
		r.judge(s, listing.Files, replayed)
	}
	return r, nil
}

// stretch is the WAL that a backup needs.
type stretch struct {
	first, last wal.Segment
	end         wal.LSN // 0 if it is not recorded where in the last segment the backup ends
}

// needs returns what WAL recovery of the backup to consistency reads; false if nothing: the server was shut down.
func needs(b catalog.Backup, control pgdata.Control) (stretch, bool, error) {
	size := control.WALSegmentSize
	if w := b.WALE; w != nil {
		if w.Offline() {
			return stretch{}, false, nil
		}
		first, err := wal.ParseSegment(w.StartSegment, size)
		if err != nil {
			return stretch{}, false, err
		}
		last, err := wal.ParseSegment(w.StopSegment, size)
		if err == nil && (last.Timeline != first.Timeline || last.Number < first.Number) {
			err = fmt.Errorf("it ends in %s, and begins in %s", w.StopSegment, w.StartSegment)
		}
		return stretch{first: first, last: last}, true, err
	}
	named, err := wal.ParseSegment(b.WALFile(), size)
	if err != nil {
		return stretch{}, false, err
	}
	start := named
	if b.StartLSN != 0 {
		start = wal.SegmentAt(named.Timeline, b.StartLSN, size)
	}
	if b.FinishLSN == 0 {
		return stretch{first: start, last: start}, true, nil
	}
	last := wal.SegmentBefore(named.Timeline, b.FinishLSN, size)
	if last.Number < start.Number {
		return stretch{}, false, fmt.Errorf("it ends at %s, and begins at %s", b.FinishLSN, b.StartLSN)
	}
	return stretch{first: start, last: last, end: b.FinishLSN}, true, nil
}

const (
	walAttempts = 3 // how often the WAL is read before a failure of the storage is the verification's
	walPause    = time.Second
)

// followWAL reads the WAL between start and end of the backup, and returns the blocks that its replay writes.
func (r *Report) followWAL(ctx context.Context, d Deps, b catalog.Backup, control pgdata.Control) (*changes.Map, error) {
	s, any, err := needs(b, control)
	if err != nil {
		return nil, fmt.Errorf("cannot tell which WAL backup %s needs: %w", b.Name, err)
	}
	if !any {
		r.Records = true
		return &changes.Map{}, nil
	}
	for attempt := 1; ; attempt++ {
		m, err := r.followOnce(ctx, d, s, control)
		if err == nil {
			return m, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		err = fmt.Errorf("cannot recover backup %s: %w", b.Name, err)
		if attempt == walAttempts || errors.Is(err, fs.ErrNotExist) || catalog.IsPermanent(err) {
			return nil, err
		}
		d.Log.Warn("reading the WAL again", "backup", b.Name, "attempt", attempt, "error", err)
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(time.Duration(attempt) * walPause):
		}
	}
}

func (r *Report) followOnce(ctx context.Context, d Deps, s stretch, control pgdata.Control) (*changes.Map, error) {
	m := &changes.Map{}
	f := changes.NewFolder(m)
	r.Segments, r.Records = 0, true
	for segment := range wal.Segments(s.first, s.last) {
		name := segment.Name(control.WALSegmentSize)
		err := r.readSegment(ctx, d.Catalog, f, name, control)
		if end, ended := wal.EndOfLog(err); ended && segment == s.last && end >= s.end {
			err = nil // the rest of the last one is not needed
		}
		if errors.Is(err, changes.ErrUnknownRecord) || errors.Is(err, wal.ErrUnknownMagic) {
			d.Log.Warn("the WAL is not followed record by record", "seg", name, "error", err)
			r.Records = false
			err = r.readSegment(ctx, d.Catalog, nil, name, control)
		}
		if err != nil {
			return nil, fmt.Errorf("WAL segment %s: %w", name, err)
		}
		r.Segments++
	}
	return m, nil
}

// readSegment reads an archived segment to its end, and gives it to f unless one before was of no use to it.
func (r *Report) readSegment(ctx context.Context, c *catalog.Catalog, f *changes.Folder, name string, control pgdata.Control) (err error) {
	in, err := c.WAL().Open(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	size := &counted{Reader: in}
	b := bufio.NewReaderSize(size, readSize)
	head, err := b.Peek(wal.HeaderSize)
	if err != nil && err != io.EOF {
		return err
	}
	h, err := wal.ParseHeader(head)
	switch {
	case err != nil && !errors.Is(err, wal.ErrUnknownMagic):
		return err
	case h.SystemIdentifier != control.SystemIdentifier:
		return fmt.Errorf("it is of another cluster: system identifier %d, the backup is of %d", h.SystemIdentifier, control.SystemIdentifier)
	case f != nil && r.Records:
		err = f.Segment(b)
	}
	if _, ended := wal.EndOfLog(err); err != nil && !ended {
		return err
	}
	if _, err := io.Copy(io.Discard, b); err != nil {
		return err
	}
	return cmp.Or(h.CheckFile(name, size.n), err)
}

// counted counts what is read.
type counted struct {
	io.Reader
	n int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n += int64(n)
	return n, err
}
