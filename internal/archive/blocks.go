package archive

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/changes"
	"gitlab.com/walden-pg/walden/internal/wal"
)

const (
	// blocksDir holds, beside the segments, what each of the last ones says of changed blocks.
	blocksDir = "walden_blocks"

	// blocksLimit bounds what a push takes longer for the record of changed blocks.
	blocksLimit = 5 * time.Second

	// blocksKept is for how many segments the folder is kept: a group, the one before it and the one that comes next.
	blocksKept = 3 * changes.GroupSegments
)

// recordBlocks notes which blocks the records in an archived segment change, and stores what a group of segments changed when all of them, and
// the last one before them, have been noted. Segments may come in any order, and by several processes at once. Without the record a delta
// backup reads the segments themselves, so that nothing that goes wrong here matters to the push: it is a warning.
func recordBlocks(ctx context.Context, d Deps, f *file) {
	name := filepath.Base(f.Name())
	if wal.Classify(name) != wal.KindSegment || !exists(filepath.Join(filepath.Dir(f.Name()), statusDir)) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, blocksLimit)
	defer cancel()
	b := &blocks{Deps: d, dir: filepath.Join(filepath.Dir(f.Name()), blocksDir), segmentSize: f.size}
	if err := b.note(ctx, f, name); err != nil {
		d.Log.Warn("changed blocks are not recorded", "action", "wal-push", "seg", name, "error", err)
	}
}

// blocks is the folder with what segments said.
type blocks struct {
	Deps
	dir         string
	segmentSize int64
}

func (b *blocks) path(s wal.Segment) string { return filepath.Join(b.dir, s.Name(b.segmentSize)) }

func (b *blocks) note(ctx context.Context, f *file, name string) error {
	s, err := wal.ParseSegment(name, b.segmentSize)
	if err != nil {
		return err
	}
	piece, err := changes.ReadPiece(bufio.NewReaderSize(io.NewSectionReader(f, 0, f.size), copySize))
	if err != nil {
		return err
	}
	header := make([]byte, wal.HeaderSize)
	if _, err := f.ReadAt(header, 0); err != nil {
		return err
	}
	if err := b.keep(s, piece.Bytes(header)); err != nil {
		return err
	}
	// One of them may have failed for the storage's sake when it was its turn, and one needs this segment as its neighbour.
	group := s.Number / changes.GroupSegments
	for g := max(group, 1) - 1; g <= group+1; g++ {
		if err := b.store(ctx, wal.Segment{Timeline: s.Timeline, Number: g * changes.GroupSegments}, piece.Header.SystemIdentifier); err != nil {
			return err
		}
	}
	return b.forget(s)
}

// keep writes what a segment said. It is read back with a checksum, so that it need not survive a crash of the machine.
func (b *blocks) keep(s wal.Segment, content []byte) error {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	return writeSmall(b.dir, s.Name(b.segmentSize), content, false)
}

// store stores what the group that begins with segment first changed, if all is there that it takes, and removes what no other group needs.
func (b *blocks) store(ctx context.Context, first wal.Segment, system uint64) error {
	if first.Number == 0 { // the log begins with segment 1
		return nil
	}
	last := wal.Segment{Timeline: first.Timeline, Number: first.Number + changes.GroupSegments - 1}
	before := wal.Segment{Timeline: first.Timeline, Number: first.Number - 1}
	for s := range wal.Segments(before, last) {
		if !exists(b.path(s)) {
			return nil
		}
	}
	var pieces []*changes.Piece
	for s := range wal.Segments(before, last) {
		content, err := os.ReadFile(b.path(s))
		if errors.Is(err, fs.ErrNotExist) { // another process has stored the group in the meantime
			return nil
		}
		if err != nil {
			return err
		}
		piece, err := changes.ParsePiece(content)
		if err == nil && (piece.Header.SystemIdentifier != system || piece.Header.PageAddr != s.Start(b.segmentSize)) {
			err = errors.New("it is of another segment")
		}
		if err != nil {
			return errors.Join(fmt.Errorf("cannot read %s: %w", b.path(s), err), os.Remove(b.path(s)))
		}
		pieces = append(pieces, piece)
	}
	recorded, err := changes.Joined(pieces[0], pieces[1:])
	if err != nil {
		return errors.Join(err, b.remove(first, last))
	}
	sealed, err := b.Catalog.WAL().PutNew(ctx, catalog.DeltaName(first, b.segmentSize), func(w io.Writer) error {
		_, err := recorded.WriteTo(w)
		return err
	})
	switch {
	case err == nil:
		b.Log.Info("changed blocks recorded", "action", "wal-push", "seg", first.Name(b.segmentSize), "key", sealed.Object, "stored", sealed.Size)
	case !errors.Is(err, catalog.ErrExists):
		return err
	}
	return b.remove(first, last)
}

// remove removes what the segments from first up to last said, without last: the next group needs it.
func (b *blocks) remove(first, last wal.Segment) error {
	for s := first; s.Number < last.Number; s = s.Next() {
		if err := removeIfThere(b.path(s)); err != nil {
			return err
		}
	}
	return nil
}

// forget removes what nothing will be made of any more: of segments long before s, of other timelines, and what a killed process left.
func (b *blocks) forget(s wal.Segment) error {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		old, err := wal.ParseSegment(e.Name(), b.segmentSize)
		if err == nil && old.Timeline == s.Timeline && old.Number+blocksKept > s.Number {
			continue
		}
		info, ierr := e.Info()
		if ierr != nil || err != nil && time.Since(info.ModTime()) < time.Hour {
			continue // gone, or being written
		}
		if err := removeIfThere(filepath.Join(b.dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
