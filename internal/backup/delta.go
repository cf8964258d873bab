package backup

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/changes"
	"gitlab.com/walden-pg/walden/internal/directio"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/postgres"
	"gitlab.com/walden-pg/walden/internal/wal"
	"gitlab.com/walden-pg/walden/pkg/increment"
)

// delta is what a backup knows of the one that it is based on, and of what changed since.
type delta struct {
	base    *base
	changed *changes.Map // nil: every page has to be looked at
	// versions are the times of PG_VERSION in the folders of databases, in nanoseconds since 1970. The server writes that file when
	// it makes the folder, and never again.
	versions map[string]int64
	// hidden tells that a page can have changed in a way that matters without a new LSN: see [scanner].
	hidden bool
}

// versionFile is written when the folder of a database is made.
const versionFile = "PG_VERSION"

// continues tells whether a file of the given size can be an increment of what the base has: the main fork of a relation that is made of
// whole pages. The base's entry has the size that the file had then, or -1.
func (d *delta) continues(name string, size int64) (pgdata.RelationFile, catalog.File, bool) {
	rel, ok := pgdata.ParseRelationFile(name)
	if !ok || rel.Fork != "" || size == 0 || size%pgdata.PageSize != 0 {
		return rel, catalog.File{}, false
	}
	_, was, known := d.base.Listing.Files.Find(name)
	return rel, was, known && was.Type == catalog.Regular && was.Corrupt == nil
}

// inMap returns the blocks of a file that changed, by the map; whole tells that nothing of it is as it was.
func (d *delta) inMap(rel pgdata.RelationFile, was catalog.File, relBlocks uint32, size int64) (blocks *increment.Blocks, whole bool) {
	r := changes.Relation{Tablespace: rel.Tablespace, Database: rel.Database, Number: rel.Relation}
	if blocks, whole = d.changed.InFile(r, rel.Segment, relBlocks, uint32(size/pgdata.PageSize)); !whole {
		addGrowth(blocks, was, size)
	}
	return blocks, whole
}

// addGrowth adds the blocks that the base has not, where its size is known.
func addGrowth(blocks *increment.Blocks, was catalog.File, size int64) {
	if was.Size < 0 {
		return
	}
	for block := was.Size / pgdata.PageSize; block < size/pgdata.PageSize; block++ {
		blocks.Add(uint32(block))
	}
}

// replaced tells whether the folder of a database was made anew since the base: by CREATE DATABASE or ALTER DATABASE … SET TABLESPACE,
// which can copy files with all their old LSNs to where others were.
func (d *delta) replaced(folder string) bool {
	var before int64
	if _, f, ok := d.base.Listing.Files.Find(path.Join(folder, versionFile)); ok {
		before = f.MTime
	}
	return before != d.versions[folder]
}

// expect tells how many bytes will be read of an entry as the walk found it, and whether nothing of it has changed for certain.
func (d *delta) expect(relBlocks uint32, f catalog.File) (cost int64, skip bool) {
	if dir, base := path.Split(f.Name); base == versionFile && f.Type == catalog.Regular {
		d.versions[path.Clean(dir)] = f.MTime
	}
	if f.Type != catalog.Regular {
		return 0, false
	}
	rel, was, ok := d.continues(f.Name, f.Size)
	if !ok || d.changed == nil {
		return f.Size, false
	}
	blocks, whole := d.inMap(rel, was, relBlocks, f.Size)
	switch {
	case whole:
		return f.Size, false
	case blocks.Len() == 0 && was.Size == f.Size:
		return 0, true
	}
	return int64(blocks.Len()) * pgdata.PageSize, false
}

// blocksOf decides how an open file of the given size is stored. Of an increment it returns the blocks.
func (w *copier) blocksOf(ctx context.Context, file *directio.Once, name string, size int64) (catalog.Stored, *increment.Blocks, error) {
	d := w.job.delta
	if d == nil {
		return catalog.Whole, nil, nil
	}
	rel, was, ok := d.continues(name, size)
	if !ok {
		return catalog.Whole, nil, nil
	}
	var blocks *increment.Blocks
	var whole bool
	var err error
	switch {
	case d.changed != nil:
		blocks, whole = d.inMap(rel, was, w.job.relBlocks, size)
	case d.replaced(path.Dir(name)):
		whole = true
	default:
		if blocks, whole, err = w.scan(ctx, file, name, rel, size); err == nil && !whole {
			addGrowth(blocks, was, size)
		}
	}
	switch {
	case err != nil || whole:
		return catalog.Whole, nil, err
	case blocks.Len() == 0 && was.Size == size:
		return catalog.Elsewhere, nil, nil
	}
	return catalog.Increment, blocks, nil
}

// Page header fields (PageHeaderData, bufpage.h), and what they may hold.
const (
	knownPageFlags = 0x0007
	allVisible     = 0x0004 // PD_ALL_VISIBLE
	pageHeader     = 24     // bytes
	newestLayout   = 5      // highest page layout version to be expected
)

// plausible tells whether a page that is not new has the standard header, and hence an LSN at its beginning. The rules are those of
// WAL-G's full scan (WAL-G format, "What goes into a delta"). An LSN of 0 is that of a change that was not logged.
func plausible(page []byte) bool {
	field := func(at int) int { return int(page[at]) | int(page[at+1])<<8 }
	flags, lower, upper, special, version := field(10), field(12), field(14), field(16), field(18)
	return flags&^knownPageFlags == 0 && lower >= pageHeader && lower <= upper && upper <= special && special <= pgdata.PageSize &&
		version&0xFF00 == pgdata.PageSize && version&0xFF <= newestLayout && pgdata.PageLSN(page) != 0
}

// scan reads a file to find the pages that may differ from the base's by their LSN. whole tells that pages of the file have no such LSN.
//
// A page counts as changed if it is new, so that zeros come in place of what it held; if its LSN is not before the base's start; if its
// checksum is wrong, as then its LSN may be as well; or if its flag PD_ALL_VISIBLE may have been set without a new LSN. That a page
// may be written while it is read does no harm: what was changed after this backup began is replayed from an image of the whole
// page, and what was changed before has been written.
func (w *copier) scan(ctx context.Context, file *directio.Once, name string, rel pgdata.RelationFile, size int64) (blocks *increment.Blocks, whole bool, err error) {
	since := w.job.delta.base.Backup.StartLSN
	blocks = &increment.Blocks{}
	var visible *visibility
	if w.job.delta.hidden {
		visible = &visibility{dir: w.job.dir, name: name, relBlocks: w.job.relBlocks}
		defer visible.close()
	}
	first := rel.Segment * w.job.relBlocks
	for at := int64(0); at < size; {
		if ctx.Err() != nil {
			return nil, false, context.Cause(ctx)
		}
		b := w.buf[:min(size-at, readSize)]
		if err := w.job.awaitTurn(ctx, len(b)); err != nil {
			return nil, false, err
		}
		if err := readOrZeros(file, b, at); err != nil {
			return nil, false, err
		}
		w.count(int64(len(b)))
		for ; len(b) > 0; b, at = b[pgdata.PageSize:], at+pgdata.PageSize {
			page, block := b[:pgdata.PageSize], uint32(at/pgdata.PageSize)
			switch {
			case pgdata.PageIsNew(page), pgdata.PageLSN(page) >= since:
			case !plausible(page):
				return nil, true, nil
			case w.job.options.Verify && pgdata.PageChecksum(page) != pgdata.Checksum(page, first+block):
			case visible != nil && page[10]&allVisible != 0:
				lsn, err := visible.lsn(first + block)
				if err != nil {
					return nil, false, err
				}
				if lsn < since {
					continue
				}
			default:
				continue
			}
			if !pgdata.PageIsNew(page) && !plausible(page) {
				return nil, true, nil
			}
			blocks.Add(block)
		}
	}
	return blocks, false, nil
}

// readOrZeros fills b from a file that may have become shorter: WAL replay cuts off what is behind its end.
func readOrZeros(file io.ReaderAt, b []byte, at int64) error {
	n, err := file.ReadAt(b, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("cannot read data file: %w", err)
	}
	clear(b[n:])
	return nil
}

// heapBlocksPerPage is how many blocks of a table one page of its visibility map describes: two bits for each
// (HEAPBLOCKS_PER_PAGE, visibilitymap.c).
const heapBlocksPerPage = (pgdata.PageSize - pageHeader) * 4

// visibility reads the LSNs of a visibility map. Without data checksums and wal_log_hints the server sets PD_ALL_VISIBLE on a page of a
// table and leaves its LSN alone; the page of the map where it sets the bit gets a new one (visibilitymap_set, visibilitymap.c).
// A table whose map says that a page is all visible while the page itself does not would give wrong answers: the next change of the page
// would not clear the bit.
type visibility struct {
	dir, name string // of a segment of the table
	relBlocks uint32

	file    *directio.Once
	segment uint32 // that file is
	missing bool
	page    int64 // whose LSN is known, +1
	last    wal.LSN
}

func (v *visibility) close() {
	if v.file != nil {
		_ = v.file.Close() // it was read only
	}
}

// lsn is that of the map's page for a block of the table, 0 if there is none.
func (v *visibility) lsn(block uint32) (wal.LSN, error) {
	page := int64(block / heapBlocksPerPage)
	if v.page == page+1 {
		return v.last, nil
	}
	segment := uint32(page) / v.relBlocks
	if v.file == nil && !v.missing || segment != v.segment {
		if err := v.open(segment); err != nil {
			return 0, err
		}
	}
	v.page, v.last = page+1, 0
	if v.missing {
		return 0, nil
	}
	var header [pageHeader]byte
	if err := readOrZeros(v.file, header[:], int64(uint32(page)%v.relBlocks)*pgdata.PageSize); err != nil {
		return 0, err
	}
	v.last = pgdata.PageLSN(header[:])
	return v.last, nil
}

func (v *visibility) open(segment uint32) error {
	v.close()
	v.file, v.segment, v.missing = nil, segment, false
	stem := v.name
	if ext := path.Ext(stem); ext != "" {
		stem = stem[:len(stem)-len(ext)]
	}
	name := stem + "_vm"
	if segment > 0 {
		name = fmt.Sprintf("%s.%d", name, segment)
	}
	file, err := openDataFile(v.dir, name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		v.missing = true
	case err != nil:
		return fmt.Errorf("cannot read data file: %w", err)
	default:
		v.file = file
	}
	return nil
}

// writeIncrement stores the given pages of a file.
func (w *copier) writeIncrement(ctx context.Context, tw *tar.Writer, h *tar.Header, file *directio.Once, i int, rel pgdata.RelationFile, size int64, blocks *increment.Blocks) error {
	h.Typeflag, h.Size = tar.TypeReg, increment.Size(blocks.Len())
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	w.hash.Reset()
	out, err := increment.NewWriter(io.MultiWriter(tw, &w.hash), size, blocks)
	if err != nil {
		return err
	}
	verify := w.job.options.Verify
	if verify {
		w.verifier.Reset(ctx, file, rel.Segment)
	}
	pages := w.buf[:0]
	var first uint32 // block of pages
	flush := func() error {
		if len(pages) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := w.job.awaitTurn(ctx, len(pages)); err != nil {
			return err
		}
		if err := readOrZeros(file, pages, int64(first)*pgdata.PageSize); err != nil {
			return err
		}
		if verify {
			w.verifier.Seek(first)
			if _, err := w.verifier.Write(pages); err != nil {
				return err
			}
		}
		if w.job.delta.changed != nil { // else they were counted when they were looked at
			w.count(int64(len(pages)))
		}
		_, err := out.Write(pages)
		return err
	}
	for block := range blocks.All() {
		if n := uint32(len(pages) / pgdata.PageSize); n > 0 && (block != first+n || len(pages) == readSize) {
			if err := flush(); err != nil {
				return err
			}
			pages = pages[:0]
		}
		if len(pages) == 0 {
			first = block
		}
		pages = pages[:len(pages)+pgdata.PageSize]
	}
	if err := flush(); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	w.job.contents.Files.WroteIncrement(i, h.Size, size, w.hash.Sum128().Bytes())
	if verify {
		w.job.record(i, w.verifier.Report())
	}
	return nil
}

// prepareDelta finds out what changed since the base.
func prepareDelta(ctx context.Context, d Deps, o Options, from *base, start postgres.Start, dir string, control pgdata.Control) (*delta, error) {
	changed, err := changedSince(ctx, d, o, from, start, dir)
	if err != nil {
		return nil, err
	}
	d.Log.Info("taking a delta", "action", "backup-push", "base", from.Backup.Name, "deltas", from.delta.Count)
	return &delta{base: from, changed: changed, versions: map[string]int64{}, hidden: !control.DataChecksums || !from.checksum}, nil
}
