package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/changes"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// errNotCovered is the cause when the archived WAL does not tell of all changes in a stretch of the log.
var errNotCovered = errors.New("the archived WAL does not tell of all changes")

// walFiles opens archived files by their names; what is not there is [fs.ErrNotExist].
type walFiles interface {
	Open(ctx context.Context, name string) (io.ReadCloser, error)
}

// walChanges finds out from the archive which blocks changed from one position of the log to another one, as seen from timeline tl: from
// the objects that wal-push recorded, and for the rest from the segments themselves; those not archived yet are read in the data
// directory dir. The Map covers from to to, or more. The error
// unwraps to errNotCovered if the archive cannot tell, for instance because the last segment is not there yet.
func walChanges(ctx context.Context, c *catalog.Catalog, dir string, from, to wal.LSN, tl wal.Timeline, segmentSize int64, log *slog.Logger) (*changes.Map, error) {
	w := &walFolder{files: &clusterWAL{archive: c.WAL(), dir: dir}, tip: tl, segmentSize: segmentSize, log: log}
	return w.changes(ctx, from, to)
}

// walFolder goes through the log.
type walFolder struct {
	files       walFiles
	history     wal.History
	tip         wal.Timeline
	segmentSize int64
	log         *slog.Logger

	sum        changes.Map
	unfinished []byte          // what the log up to sum.To ends with of a record
	parsing    *changes.Folder // of the segments before sum.To, if the last thing was one
	objects    int             // that wal-push recorded
	segments   int             // read for lack of one
}

func (w *walFolder) changes(ctx context.Context, from, to wal.LSN) (*changes.Map, error) {
	fail := func(err error) (*changes.Map, error) {
		return nil, fmt.Errorf("%w between %s and %s: %w", errNotCovered, from, to, err)
	}
	if err := w.readHistory(ctx); err != nil {
		return fail(err)
	}
	first := wal.SegmentAt(w.tip, from, w.segmentSize).Number
	last := wal.SegmentBefore(w.tip, to, w.segmentSize).Number
	for n := first; n <= last; {
		if w.record(ctx, n) {
			n += changes.GroupSegments - n%changes.GroupSegments
			continue
		}
		for end := n - n%changes.GroupSegments + changes.GroupSegments; n < end && n <= last; n++ {
			if err := w.parse(ctx, n); err != nil {
				return fail(err)
			}
		}
	}
	w.sum.From = from
	w.log.Info("changed blocks are known from the archive", "from", from, "to", w.sum.To, "records", w.objects, "segments", w.segments)
	return &w.sum, nil
}

func (w *walFolder) readHistory(ctx context.Context) error {
	if w.tip == 1 {
		return nil
	}
	name := wal.HistoryName(w.tip)
	r, err := w.files.Open(ctx, name)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", name, err)
	}
	w.history, err = wal.ParseHistory(r)
	return errors.Join(err, r.Close())
}

// segment is the n-th segment with the name under which recovery looks for it: on the timeline of its last byte. The log of the timeline
// before it is in there up to the switch.
func (w *walFolder) segment(n uint64) wal.Segment {
	end := wal.Segment{Number: n}.End(w.segmentSize)
	return wal.Segment{Timeline: w.history.TimelineAt(end-1, w.tip), Number: n}
}

// record takes over what wal-push recorded of the group that segment n is of, if there is such an object and all of the log is of its timeline.
func (w *walFolder) record(ctx context.Context, n uint64) (taken bool) {
	first := wal.Segment{Timeline: w.segment(n).Timeline, Number: n - n%changes.GroupSegments}
	start := first.Start(w.segmentSize)
	end := start + wal.LSN(changes.GroupSegments*w.segmentSize)
	if w.history.TimelineAt(start, w.tip) != first.Timeline || w.history.TimelineAt(end-1, w.tip) != first.Timeline {
		return false
	}
	name := catalog.DeltaName(first, w.segmentSize)
	recorded, err := w.readRecorded(ctx, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false
	case err != nil:
		w.log.Warn("the record of changed blocks cannot be read; the segments are", "name", name, "error", err)
		return false
	case !recorded.Complete: // WAL-G's says nothing of relations that were cut
		return false
	}
	w.sum.Add(&recorded.Changes)
	w.sum.To, w.unfinished, w.parsing = end, recorded.Unfinished, nil
	w.objects++
	return true
}

func (w *walFolder) readRecorded(ctx context.Context, name string) (*changes.Recorded, error) {
	r, err := w.files.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	recorded, err := changes.ReadRecorded(r)
	return recorded, errors.Join(err, r.Close())
}

// parse reads segment n.
func (w *walFolder) parse(ctx context.Context, n uint64) error {
	s := w.segment(n)
	name := s.Name(w.segmentSize)
	if w.parsing == nil {
		w.parsing = changes.NewFolder(&w.sum)
		if w.objects > 0 {
			if err := w.parsing.Resume(w.unfinished); err != nil {
				return fmt.Errorf("cannot go on with segment %s: %w", name, err)
			}
		}
	}
	r, err := w.files.Open(ctx, name)
	if err != nil {
		return fmt.Errorf("cannot read segment %s: %w", name, err)
	}
	w.sum.To = s.Start(w.segmentSize)
	err = w.parsing.Segment(r)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("cannot read segment %s: %w", name, err)
	}
	if want := s.End(w.segmentSize); w.sum.To != want {
		return fmt.Errorf("segment %s goes up to %s instead of %s", name, w.sum.To, want)
	}
	w.segments++
	return nil
}
