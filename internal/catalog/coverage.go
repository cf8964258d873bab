package catalog

import (
	"cmp"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// First returns the timeline of the backup and the position of the first segment that its recovery reads; false if its name tells
// neither. Names that WAL-E gave to backups of stopped servers are right in their upper half only, so the position may be an earlier one.
func (b Backup) First() (wal.Timeline, Position, bool) {
	timeline, p, ok := PositionOf(b.WALFile())
	if b.WALE != nil && b.WALE.Offline() {
		p = p >> 32 << 32
	}
	return timeline, p, ok
}

// Last returns the position of the last segment without which the backup cannot be recovered; false if that is not recorded. Of WAL-E's
// backups it is recorded by name, so that the size of segments need not be known (0).
func (b Backup) Last(size int64) (Position, bool) {
	switch {
	case b.WALE != nil && b.WALE.Offline():
		return 0, false
	case b.WALE != nil:
		_, p, ok := PositionOf(b.WALE.StopSegment)
		return p, ok
	case b.FinishLSN == 0 || size == 0:
		return 0, false
	}
	return At(b.FinishLSN, size), true
}

// Ended is when the backup was complete: the earliest moment to which it can be recovered.
func (b Backup) Ended() time.Time {
	if b.FinishTime.IsZero() {
		return b.Modified
	}
	return b.FinishTime
}

// Coverage answers what can be done with what lies in an archive.
type Coverage struct {
	inv      *Inventory
	backups  map[string]Backup
	segments map[wal.Timeline][]WALFile // ascending, each segment once
}

// Coverage arranges the inventory for questions.
func (inv *Inventory) Coverage() *Coverage {
	c := &Coverage{inv: inv, backups: map[string]Backup{}, segments: map[wal.Timeline][]WALFile{}}
	for _, b := range inv.Backups {
		c.backups[b.Name] = b
	}
	for _, f := range inv.WAL {
		list := c.segments[f.Timeline]
		if _, err := wal.ParseSegment(f.Name, inv.SegmentSize); err != nil && inv.SegmentSize != 0 {
			continue // of no cluster with such segments
		}
		if f.Kind == WALSegment && (len(list) == 0 || list[len(list)-1].Position != f.Position) {
			c.segments[f.Timeline] = append(list, f)
		}
	}
	return c
}

// has tells whether a segment is archived.
func (c *Coverage) has(timeline wal.Timeline, p Position) bool {
	_, found := slices.BinarySearchFunc(c.segments[timeline], p, func(f WALFile, p Position) int { return cmp.Compare(f.Position, p) })
	return found
}

// Unrestorable says why a backup cannot be restored and recovered with what the archive holds; nil if nothing is known that speaks
// against it.
func (c *Coverage) Unrestorable(b Backup) error {
	for met := map[string]bool{}; ; {
		if b.Problem != nil {
			return fmt.Errorf("%s cannot be used: %w", b.Name, b.Problem)
		}
		if len(met) == 0 {
			if missing := c.MissingWAL(b); len(missing) > 0 {
				return fmt.Errorf("of the WAL that it needs %s is not archived: %w", missing[0], fs.ErrNotExist)
			}
		}
		if b.Delta == nil {
			return nil
		}
		met[b.Name] = true
		base, ok := c.backups[b.Delta.From]
		if !ok || met[base.Name] {
			return fmt.Errorf("%s is based on %q, which is not there: %w", b.Name, b.Delta.From, fs.ErrNotExist)
		}
		b = base
	}
}

// maxMissing bounds how many missing segments are named: a name out of all order would make them billions.
const maxMissing = 100_000

// MissingWAL returns the names of the segments from the start to the end of the backup that are not archived. Where its end is not
// recorded, only the first one is asked for.
func (c *Coverage) MissingWAL(b Backup) []string {
	timeline, first, ok := b.First()
	if !ok || b.WALE != nil && b.WALE.Offline() {
		return nil
	}
	last, ok := b.Last(c.inv.SegmentSize)
	if !ok || last < first {
		last = first
	}
	if c.inv.SegmentSize == 0 {
		if !c.has(timeline, first) {
			return []string{b.WALFile()}
		}
		return nil
	}
	var missing []string
	for n := first.Number(c.inv.SegmentSize); n <= last.Number(c.inv.SegmentSize) && len(missing) < maxMissing; n++ {
		if !c.has(timeline, positionAt(n, c.inv.SegmentSize)) {
			missing = append(missing, wal.Segment{Timeline: timeline, Number: n}.Name(c.inv.SegmentSize))
		}
	}
	return missing
}

// NeededWAL returns the names of the first and the last segment without which the backup cannot be recovered, "" for what is not known.
func (c *Coverage) NeededWAL(b Backup) (first, last string) {
	timeline, _, ok := b.First()
	if !ok || b.WALE != nil && b.WALE.Offline() {
		return "", ""
	}
	if p, ended := b.Last(c.inv.SegmentSize); ended {
		last = fmt.Sprintf("%08X%016X", uint32(timeline), uint64(p))
	}
	return b.WALFile(), last
}

// Timelines returns the timelines of which the archive holds a segment or a history, ascending.
func (c *Coverage) Timelines() []wal.Timeline {
	known := map[wal.Timeline]bool{}
	for timeline := range c.segments {
		known[timeline] = true
	}
	for timeline := range c.inv.Histories {
		known[timeline] = true
	}
	return slices.Sorted(maps.Keys(known))
}

// Understood tells whether it is known where the timeline comes from.
func (c *Coverage) Understood(timeline wal.Timeline) bool {
	_, ok := c.inv.Histories[timeline]
	return timeline == 1 || ok
}

// LeadsTo tells whether recovery can begin with the backup and end on the timeline: the backup has to end before the line of descent
// leaves its timeline, for what was copied after that is of another line, and recovery does not get to its end.
func (c *Coverage) LeadsTo(b Backup, timeline wal.Timeline) bool {
	own, first, ok := b.First()
	if !ok || own == timeline {
		return ok
	}
	for _, s := range c.inv.Histories[timeline] {
		if s.Timeline != own {
			continue
		}
		if b.StartLSN != 0 {
			return b.StartLSN < s.LSN && b.FinishLSN <= s.LSN
		}
		return c.inv.SegmentSize == 0 || first <= At(s.LSN, c.inv.SegmentSize)
	}
	return false
}

// Run is a stretch of the log without a gap along the line of descent of a timeline.
type Run struct {
	First, Last wal.Segment
	Modified    time.Time // when its last segment was archived
}

// Line returns the archived log from the first timeline to the one given, as recovery reads it, in stretches without a gap. It is
// empty where the size of segments is not known.
func (c *Coverage) Line(timeline wal.Timeline) []Run {
	size := c.inv.SegmentSize
	if size == 0 {
		return nil
	}
	var runs []Run
	add := func(tl wal.Timeline, from, to uint64) {
		for _, f := range c.segments[tl] {
			n := f.Position.Number(size)
			if n < from || n > to {
				continue
			}
			s := wal.Segment{Timeline: tl, Number: n}
			last := len(runs) - 1
			if last >= 0 && runs[last].Last.Number+1 == n {
				runs[last].Last, runs[last].Modified = s, f.Modified
			} else {
				runs = append(runs, Run{s, s, f.Modified})
			}
		}
	}
	from := uint64(0)
	for _, s := range c.inv.Histories[timeline] {
		// The segment of the switch is the younger timeline's, which has it from its beginning. The one of the older timeline goes on otherwise.
		end := wal.SegmentAt(s.Timeline, s.LSN, size).Number
		if end > from {
			add(s.Timeline, from, end-1)
		}
		from = end
	}
	add(timeline, from, ^uint64(0))
	return runs
}

// Window is a stretch of moments to which a cluster can be recovered.
type Window struct {
	Backup   string // the first with which it begins
	From, To wal.LSN
	// FromTime is when that backup was complete. ToTime is when the last segment was archived: everything in it was written before.
	FromTime, ToTime time.Time
	Last             wal.Segment
	Backups          int // that lie in it
}

// Windows returns the moments on the line of descent of a timeline to which the archive leads, ascending.
func (c *Coverage) Windows(timeline wal.Timeline) []Window {
	type part struct {
		Backup
		first, last uint64
	}
	var usable []part
	size := c.inv.SegmentSize
	if size == 0 {
		return nil
	}
	for _, b := range c.inv.Backups {
		_, first, ok := b.First()
		last, ended := b.Last(size)
		if !ok || !ended || !c.LeadsTo(b, timeline) || c.Unrestorable(b) != nil {
			continue
		}
		usable = append(usable, part{b, first.Number(size), last.Number(size)})
	}
	var windows []Window
	for _, run := range c.Line(timeline) {
		w := Window{To: run.Last.End(size), ToTime: run.Modified, Last: run.Last}
		for _, b := range usable {
			if b.first < run.First.Number || b.last > run.Last.Number {
				continue
			}
			w.Backups++
			if w.Backup == "" || b.FinishLSN < w.From {
				w.Backup, w.From, w.FromTime = b.Name, b.FinishLSN, b.Ended()
			}
		}
		if w.Backups > 0 {
			windows = append(windows, w)
		}
	}
	return windows
}

// Branch is what the archive holds of one timeline by itself (WAL-G format, "wal-show").
type Branch struct {
	Timeline    wal.Timeline
	Parent      wal.Timeline // 0 if there is none or it is not known
	Switch      wal.LSN
	First, Last string   // names of segments
	Range       uint64   // segments from First to Last
	Count       uint64   // of them that are archived
	Missing     []string // at most 100,000 of the others
	Backups     []Backup // that begin and end between First and Last
}

// Branches returns the timelines of which segments are archived, ascending.
func (c *Coverage) Branches() ([]Branch, error) {
	size := c.inv.SegmentSize
	if size == 0 && len(c.segments) > 0 {
		return nil, fmt.Errorf("cannot count the WAL: nothing in the archive tells the size of its segments")
	}
	var branches []Branch
	for _, timeline := range slices.Sorted(maps.Keys(c.segments)) {
		list := c.segments[timeline]
		first, last := list[0], list[len(list)-1]
		b := Branch{
			Timeline: timeline, First: first.Name, Last: last.Name, Count: uint64(len(list)),
			Range: last.Position.Number(size) - first.Position.Number(size) + 1, Missing: []string{},
		}
		if h := c.inv.Histories[timeline]; len(h) > 0 {
			b.Parent, b.Switch = h[len(h)-1].Timeline, h[len(h)-1].LSN
		}
		for i := 1; i < len(list); i++ {
			for n := list[i-1].Position.Number(size) + 1; n < list[i].Position.Number(size) && len(b.Missing) < maxMissing; n++ {
				b.Missing = append(b.Missing, wal.Segment{Timeline: timeline, Number: n}.Name(size))
			}
		}
		for _, backup := range c.inv.Backups {
			own, from, ok := backup.First()
			to, ended := backup.Last(size)
			if ok && ended && own == timeline && from >= first.Position && to <= last.Position {
				b.Backups = append(b.Backups, backup)
			}
		}
		branches = append(branches, b)
	}
	return branches, nil
}

// SegmentStatus tells whether a segment that should be archived is (WAL-G format, "wal-verify").
type SegmentStatus string

// The statuses of segments.
const (
	SegmentFound     SegmentStatus = "FOUND"
	SegmentDelayed   SegmentStatus = "MISSING_DELAYED"   // at the end of the log, and allowed to be late
	SegmentUploading SegmentStatus = "MISSING_UPLOADING" // it may be on its way
	SegmentLost      SegmentStatus = "MISSING_LOST"
)

// Stretch is a row of segments of one timeline with the same status.
type Stretch struct {
	First, Last wal.Segment
	Status      SegmentStatus
}

// Grace is how many segments at the end of the log may be missing: first the delayed ones, of which the first that is found ends the
// row, then those that are being uploaded.
type Grace struct{ Delayed, Uploading int }

// maxWalked bounds how many segments are looked at: those of a petabyte of log.
const maxWalked = 1 << 26

// Integrity follows the log backwards from the segment before current to the start of the oldest backup from which it can be reached,
// or of the backup given, and returns what is there and what is not, ascending. Without any backup it goes on to the first segment, and
// known is false.
func (c *Coverage) Integrity(current wal.Segment, from *Backup, grace Grace) (stretches []Stretch, known bool, err error) {
	size := c.inv.SegmentSize
	stop := uint64(1)
	for _, b := range c.inv.Backups {
		if from == nil && (b.Permanent || b.Problem != nil) || from != nil && b.Name != from.Name {
			continue
		}
		_, first, ok := b.First()
		if n := first.Number(size); ok && c.LeadsTo(b, current.Timeline) && n <= current.Number && (!known || n < stop) {
			stop, known = n, true
		}
	}
	if from != nil && !known {
		return nil, false, fmt.Errorf("cannot verify the WAL since backup %s: timeline %d does not descend from it", from.Name, current.Timeline)
	}
	if current.Number > stop+maxWalked {
		return nil, known, fmt.Errorf("cannot verify the WAL from %s on: it is more than %d segments",
			wal.Segment{Timeline: current.Timeline, Number: stop}.Name(size), maxWalked)
	}
	delayed := grace.Delayed > 0
	for n := current.Number - 1; current.Number > 0 && n >= stop; n-- {
		s := wal.Segment{Timeline: c.timelineOf(n, current.Timeline), Number: n}
		status, there := SegmentLost, c.has(s.Timeline, positionAt(n, size))
		switch {
		case there:
			status = SegmentFound
		case delayed:
			status = SegmentDelayed
		case grace.Uploading > 0:
			status = SegmentUploading
		}
		if delayed {
			grace.Delayed--
			delayed = !there && grace.Delayed > 0
		} else {
			grace.Uploading--
		}
		if last := len(stretches) - 1; last >= 0 && stretches[last].Status == status && stretches[last].First.Timeline == s.Timeline {
			stretches[last].First = s
		} else {
			stretches = append(stretches, Stretch{s, s, status})
		}
		if n == 0 {
			break
		}
	}
	slices.Reverse(stretches)
	return stretches, known, nil
}

// timelineOf is the timeline on which the n-th segment lies on the line of descent of a timeline.
func (c *Coverage) timelineOf(n uint64, timeline wal.Timeline) wal.Timeline {
	for _, s := range c.inv.Histories[timeline] {
		if n < wal.SegmentAt(s.Timeline, s.LSN, c.inv.SegmentSize).Number {
			return s.Timeline
		}
	}
	return timeline
}

// Highest is the highest timeline of which the archive holds anything; 0 if it holds nothing.
func (c *Coverage) Highest() wal.Timeline {
	highest := wal.Timeline(0)
	for _, f := range c.inv.WAL {
		highest = max(highest, f.Timeline)
	}
	return highest
}
