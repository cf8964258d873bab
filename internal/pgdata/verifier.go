package pgdata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// Suspect is a page with a wrong checksum whose LSN says that it was changed after the backup began: most likely read
// while it was being written, in which case recovery replaces it. It is corrupt after all if its LSN lies beyond the
// end of the backup, because no page can carry a position that the log had not reached.
type Suspect struct {
	Block uint32 // within the segment file
	LSN   wal.LSN
}

// PageReport is what a [PageVerifier] found in one file. Block numbers count within the segment file, so the first
// block of 16384.1 is 0, as WAL-G reports them.
type PageReport struct {
	Pages   uint32    // complete pages seen; after Seek, the page behind the last one
	Corrupt []uint32  // ascending
	Suspect []Suspect // ascending
	Odd     bool      // the bytes ended within a page
}

// CorruptAt returns all corrupt blocks, ascending, of a backup that ended at stop: Corrupt, and those in Suspect
// whose LSN lies beyond stop.
func (r PageReport) CorruptAt(stop wal.LSN) []uint32 {
	blocks := slices.Clone(r.Corrupt)
	for _, s := range r.Suspect {
		if s.LSN > stop {
			blocks = append(blocks, s.Block)
		}
	}
	slices.Sort(blocks)
	return blocks
}

const (
	rereads    = 5                    // of a page whose checksum is wrong
	firstPause = 1 * time.Millisecond // before the second re-read; doubles each time

	// maxPauses bounds the waiting within one file: a file full of bad pages is damaged, not busy.
	maxPauses = 2 * time.Second
)

// PageVerifier is an [io.Writer] that is fed with the bytes of one relation file, in order and in chunks of any size,
// while they are copied, and checks every page of [PageSize] bytes.
//
// A page is good if its checksum is right, or if it is new and all zero. That is PostgreSQL's own rule
// (PageIsVerified); a page without a checksum (0) in a cluster with checksums is a bad one. A bad page whose LSN is at or after the
// start of the backup becomes a [Suspect]. Any other bad page is read again through the file a few times, as it may
// have been caught half written, and is corrupt if it stays bad. A page that has been truncated away meanwhile is good.
//
// A PageVerifier is for one goroutine. It is made to be reused: between [PageVerifier.Reset] and
// [PageVerifier.Report] it allocates nothing unless it finds bad pages.
type PageVerifier struct {
	segmentBlocks uint32
	start         wal.LSN

	ctx    context.Context // of the copy that is watched; a Writer has no other way to learn of it
	file   io.ReaderAt
	first  uint32        // number of the segment's first block within the fork
	block  uint32        // within the segment, of the page to come
	held   int           // bytes in page
	paused time.Duration // so far in this file

	corrupt []uint32
	suspect []Suspect
	page    [PageSize]byte // beginning of a page whose rest comes with the next Write
	again   [PageSize]byte // page as read again
}

// NewPageVerifier returns a verifier for the files of a cluster with segmentBlocks pages to a segment file
// ([Control].SegmentBlocks) in a backup that began at start. Call [PageVerifier.Reset] before the first Write.
func NewPageVerifier(segmentBlocks uint32, start wal.LSN) *PageVerifier {
	return &PageVerifier{segmentBlocks: segmentBlocks, start: start}
}

// Reset prepares v for another file: the given segment of a relation's fork ([RelationFile].Segment). file must read
// the file whose bytes follow; ctx ends the waiting between re-reads.
func (v *PageVerifier) Reset(ctx context.Context, file io.ReaderAt, segment uint32) {
	v.ctx, v.file = ctx, file
	v.first = segment * v.segmentBlocks
	v.block, v.held, v.paused = 0, 0, 0
	v.corrupt, v.suspect = v.corrupt[:0], v.suspect[:0]
}

// Seek makes block the page that the next Write begins with: only some pages of the file are copied. It is called between pages.
func (v *PageVerifier) Seek(block uint32) { v.block = block }

// Write takes the next bytes of the file. It fails only if the context has ended or the file cannot be read again;
// bad pages are no error but a matter of the report.
func (v *PageVerifier) Write(p []byte) (int, error) {
	written := len(p)
	if v.held > 0 {
		n := copy(v.page[v.held:], p)
		v.held += n
		p = p[n:]
		if v.held < PageSize {
			return written, nil
		}
		v.held = 0
		if err := v.verify(v.page[:]); err != nil {
			return 0, err
		}
	}
	for ; len(p) >= PageSize; p = p[PageSize:] {
		if err := v.verify(p[:PageSize]); err != nil {
			return 0, err
		}
	}
	v.held = copy(v.page[:], p)
	return written, nil
}

// Report returns what was found since the last Reset. It stays valid when v is used for the next file.
func (v *PageVerifier) Report() PageReport {
	r := PageReport{Pages: v.block, Odd: v.held > 0}
	if len(v.corrupt) > 0 {
		r.Corrupt = slices.Clone(v.corrupt)
	}
	if len(v.suspect) > 0 {
		r.Suspect = slices.Clone(v.suspect)
	}
	return r
}

// verify judges the next page of the file.
func (v *PageVerifier) verify(page []byte) error {
	block := v.block
	v.block++
	verdict := v.judge(page, block)
	pause := firstPause
	for attempt := 0; verdict == pageBad && attempt < rereads; attempt++ {
		if attempt > 0 && v.paused < maxPauses {
			if err := sleep(v.ctx, pause); err != nil {
				return err
			}
			v.paused += pause
			pause *= 2
		}
		n, err := v.file.ReadAt(v.again[:], int64(block)*PageSize)
		if n < PageSize && errors.Is(err, io.EOF) { // truncated meanwhile, and recovery will do the same
			return nil
		}
		if n < PageSize {
			return fmt.Errorf("cannot read block %d again: %w", block, err)
		}
		page = v.again[:]
		verdict = v.judge(page, block)
	}
	switch verdict {
	case pageBad:
		v.corrupt = append(v.corrupt, block)
	case pageChanged:
		v.suspect = append(v.suspect, Suspect{Block: block, LSN: PageLSN(page)})
	}
	return nil
}

var zeroPage [PageSize]byte

// PageIsVerified tells whether the checksum of a page is right, or the page is new and all zero (PageIsVerified in bufpage.c). block counts
// from the start of the fork.
func PageIsVerified(page []byte, block uint32) bool {
	if PageIsNew(page) {
		return bytes.Equal(page, zeroPage[:])
	}
	return PageChecksum(page) == Checksum(page, block)
}

type verdict int

const (
	pageGood    verdict = iota
	pageChanged         // bad, but changed since the backup began
	pageBad
)

func (v *PageVerifier) judge(page []byte, block uint32) verdict {
	if PageIsVerified(page, v.first+block) {
		return pageGood
	}
	if PageLSN(page) >= v.start {
		return pageChanged
	}
	return pageBad
}
