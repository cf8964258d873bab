package archive

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// RepairOptions say where WAL is looked for that the archive lacks.
type RepairOptions struct {
	Dir     string        // a data directory, or a directory with WAL files such as its pg_wal
	Timeout time.Duration // for each file that is archived, as of a push
	Blocks  bool          // as of a push
	AtOnce  int           // how many files are archived at a time
}

// Repair is what an archive lacks, and what of it a directory holds. It is made by [PlanRepair], so that it can be shown before
// anything is archived, and carried out by [Repair.Apply].
type Repair struct {
	Dir   string // where WAL was looked for
	Files []MissingFile
	Gaps  []catalog.Gap // that are left when the files that can be archived are: in a plan all of them, after Apply those that were

	inv      *catalog.Inventory
	coverage *catalog.Coverage // with the files of which Gaps are left
	written  map[wal.Timeline]uint64
	options  RepairOptions
}

// MissingFile is a file that the archive lacks, or a row of segments whose state is the same.
type MissingFile struct {
	First, Last string // names; equal for one file
	Timeline    wal.Timeline
	Count       uint64
	State       FileState
	Reason      string // why it is lost
}

// FileState is what becomes of a file that the archive lacks.
type FileState string

// The states. Found files are archived by [Repair.Apply].
const (
	FileFound    FileState = "found"
	FileArchived FileState = "archived"
	FileLost     FileState = "lost"
)

// reasonNowhere is that of a file which is not in the directory.
const reasonNowhere = "the directory does not hold it"

// PlanRepair finds out which WAL is missing in an archive that recovery from one of its backups reads, and looks for it in a directory. Of a
// server that runs it takes only what the server has finished. That the directory is of another cluster is a
// *[catalog.WrongClusterError]. Nothing is written.
func PlanRepair(d Deps, inv *catalog.Inventory, o RepairOptions) (*Repair, error) {
	l, err := readLocalWAL(d.Catalog, inv, o.Dir)
	if err != nil {
		return nil, fmt.Errorf("cannot look for WAL in %s: %w", o.Dir, err)
	}
	r := &Repair{Dir: l.dir, written: l.written, options: o, inv: inv}
	if inv.SegmentSize == 0 {
		known := *inv
		known.SegmentSize = l.cluster.SegmentSize
		r.inv = &known
	}
	r.planHistories(l)
	if err := r.planSegments(l); err != nil {
		return nil, err
	}
	r.planPartial(l)
	r.foresee(FileFound)
	return r, nil
}

// Lost tells whether something is missing that was not found.
func (r *Repair) Lost() bool {
	return slices.ContainsFunc(r.Files, func(f MissingFile) bool { return f.State == FileLost })
}

// Found is the number of files that the directory holds and that are not archived yet.
func (r *Repair) Found() int {
	n := uint64(0)
	for _, f := range r.Files {
		if f.State == FileFound {
			n += f.Count
		}
	}
	return int(n)
}

// Windows are the moments to which a timeline can be recovered where Gaps are left.
func (r *Repair) Windows(timeline wal.Timeline) []catalog.Window { return r.coverage.Windows(timeline) }

// Timelines are those of which there is WAL in the archive or the directory, ascending.
func (r *Repair) Timelines() []wal.Timeline {
	known := maps.Clone(r.written)
	for _, timeline := range r.coverage.Timelines() {
		known[timeline] = 0
	}
	return slices.Sorted(maps.Keys(known))
}

// Backups tells whether there is a backup with which recovery to the timeline can begin.
func (r *Repair) Backups(timeline wal.Timeline) bool {
	_, ok := r.coverage.Begins(timeline)
	return ok
}

// Names are those of the first and the last segment of a gap.
func (r *Repair) Names(g catalog.Gap) (first, last string) {
	return g.Parts[0].First.Name(r.inv.SegmentSize), g.Parts[len(g.Parts)-1].Last.Name(r.inv.SegmentSize)
}

// SegmentSize is that of the archive's segments, in bytes.
func (r *Repair) SegmentSize() int64 { return r.inv.SegmentSize }

// planHistories looks for the history files of timelines: without them nobody knows where a timeline comes from.
func (r *Repair) planHistories(l *localWAL) {
	archived := map[wal.Timeline]bool{}
	for _, f := range r.inv.WAL {
		if f.Kind == catalog.WALHistory {
			archived[f.Timeline] = true
		}
	}
	known := maps.Clone(r.inv.Histories)
	for _, timeline := range slices.Sorted(maps.Keys(l.histories)) {
		if archived[timeline] {
			continue
		}
		archived[timeline] = true
		f := MissingFile{First: wal.HistoryName(timeline), Timeline: timeline, State: FileFound}
		if h := l.histories[timeline]; h.err != nil {
			f.State, f.Reason = FileLost, h.err.Error()
		} else {
			known[timeline] = h.history
		}
		r.add(f)
	}
	inv := *r.inv
	inv.Histories = known
	r.inv, r.coverage = &inv, inv.Coverage()
	for _, timeline := range r.Timelines() {
		if timeline > 1 && !archived[timeline] {
			r.add(MissingFile{First: wal.HistoryName(timeline), Timeline: timeline, State: FileLost, Reason: reasonNowhere})
		}
	}
}

// add notes one file.
func (r *Repair) add(f MissingFile) {
	f.Last, f.Count = f.First, 1
	r.Files = append(r.Files, f)
}

// planSegments looks for the segments of all gaps.
func (r *Repair) planSegments(l *localWAL) error {
	missing := map[wal.Timeline][]catalog.Stretch{} // one segment may be missing on the way to several timelines
	for _, timeline := range r.Timelines() {
		for _, g := range r.coverage.Gaps(timeline, r.written[timeline]) {
			for _, s := range g.Parts {
				missing[s.First.Timeline] = append(missing[s.First.Timeline], s)
			}
		}
	}
	for _, timeline := range slices.Sorted(maps.Keys(missing)) {
		for _, s := range united(missing[timeline]) {
			if err := r.planStretch(l, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// united joins stretches of one timeline that overlap or follow one another.
func united(list []catalog.Stretch) []catalog.Stretch {
	slices.SortFunc(list, func(a, b catalog.Stretch) int { return cmp.Compare(a.First.Number, b.First.Number) })
	var joined []catalog.Stretch
	for _, s := range list {
		if last := len(joined) - 1; last >= 0 && s.First.Number <= joined[last].Last.Number+1 {
			joined[last].Last.Number = max(joined[last].Last.Number, s.Last.Number)
		} else {
			joined = append(joined, s)
		}
	}
	return joined
}

// planStretch looks for the segments of one row.
func (r *Repair) planStretch(l *localWAL, s catalog.Stretch) error {
	timeline, next := s.First.Timeline, s.First.Number
	lost := func(to uint64) { // those before to
		if next < to {
			r.addSegments(timeline, next, to-1, FileLost, reasonNowhere)
		}
	}
	for _, n := range l.numbers(timeline) {
		if n < s.First.Number || n > s.Last.Number {
			continue
		}
		lost(n)
		state, reason := FileFound, ""
		if err := l.check(wal.Segment{Timeline: timeline, Number: n}); errors.As(err, new(*readError)) {
			return fmt.Errorf("cannot look for WAL in %s: %w", l.dir, err)
		} else if err != nil {
			state, reason = FileLost, err.Error()
		}
		r.addSegments(timeline, n, n, state, reason)
		next = n + 1
	}
	lost(s.Last.Number + 1)
	return nil
}

// addSegments notes a row of segments, and joins it to the one before where nothing tells them apart.
func (r *Repair) addSegments(timeline wal.Timeline, first, last uint64, state FileState, reason string) {
	size := r.inv.SegmentSize
	if i := len(r.Files) - 1; i >= 0 {
		f := &r.Files[i]
		before, err := wal.ParseSegment(f.Last, size)
		if err == nil && before == (wal.Segment{Timeline: timeline, Number: first - 1}) && f.State == state && f.Reason == reason {
			f.Last, f.Count = wal.Segment{Timeline: timeline, Number: last}.Name(size), f.Count+last-first+1
			return
		}
	}
	r.Files = append(r.Files, MissingFile{
		First: wal.Segment{Timeline: timeline, Number: first}.Name(size), Last: wal.Segment{Timeline: timeline, Number: last}.Name(size),
		Timeline: timeline, Count: last - first + 1, State: state, Reason: reason,
	})
}

// planPartial takes the last segments of timelines that were left, which the server archives under a name of their own. No recovery
// asks for them, so that none is missed.
func (r *Repair) planPartial(l *localWAL) {
	archived := map[string]bool{}
	for _, f := range r.inv.WAL {
		archived[f.Name] = true
	}
	for _, name := range l.partial {
		timeline, position, _ := catalog.PositionOf(name)
		begin, ok := r.coverage.Begins(timeline)
		if ok && position.Number(r.inv.SegmentSize) >= begin && !archived[name] {
			r.add(MissingFile{First: name, Timeline: timeline, State: FileFound})
		}
	}
}

// foresee works out what is missing when the files of a state are archived.
func (r *Repair) foresee(state FileState) {
	var names []string
	for _, f := range r.Files {
		if f.State == state {
			names = append(names, f.names(r.inv.SegmentSize)...)
		}
	}
	r.coverage = r.inv.With(time.Now(), names...).Coverage()
	r.Gaps = nil
	for _, timeline := range r.Timelines() {
		r.Gaps = append(r.Gaps, r.coverage.Gaps(timeline, r.written[timeline])...)
	}
}

// names are those of all files of a row.
func (f MissingFile) names(size int64) []string {
	first, err := wal.ParseSegment(f.First, size)
	if err != nil || f.Count == 1 {
		return []string{f.First}
	}
	var list []string
	for n := range f.Count {
		list = append(list, wal.Segment{Timeline: first.Timeline, Number: first.Number + n}.Name(size))
	}
	return list
}

// Apply archives what was found, each file as a push does. What the server has taken away in the meantime is lost; any other failure ends
// it. In both cases Files and Gaps say what was done.
func (r *Repair) Apply(ctx context.Context, d Deps) error {
	var files []MissingFile // those that were found one by one
	for _, f := range r.Files {
		if f.State != FileFound {
			files = append(files, f)
			continue
		}
		for _, name := range f.names(r.inv.SegmentSize) {
			files = append(files, MissingFile{First: name, Last: name, Timeline: f.Timeline, Count: 1, State: FileFound})
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, r.options.AtOnce))
	for i := range files {
		f := &files[i]
		if gctx.Err() != nil {
			break
		}
		if f.State != FileFound {
			continue
		}
		g.Go(func() error {
			err := Push(gctx, d, PushOptions{Path: filepath.Join(r.Dir, f.First), Timeout: r.options.Timeout, Blocks: r.options.Blocks})
			switch {
			case err == nil:
				f.State = FileArchived
			case errors.Is(err, errTakenAway), errors.Is(err, wal.ErrNotWAL), !exists(filepath.Join(r.Dir, f.First)):
				f.State, f.Reason = FileLost, "the server has taken it away in the meantime"
			default:
				return err
			}
			return nil
		})
	}
	err := g.Wait()
	r.Files = nil
	for _, f := range files {
		first, perr := wal.ParseSegment(f.First, r.inv.SegmentSize)
		if perr != nil {
			r.Files = append(r.Files, f)
			continue
		}
		r.addSegments(f.Timeline, first.Number, first.Number+f.Count-1, f.State, f.Reason)
	}
	r.foresee(FileArchived)
	return err
}

// localWAL is what a directory holds of a server's log.
type localWAL struct {
	dir       string
	cluster   catalog.Cluster
	segments  map[wal.Timeline]map[uint64]localSegment
	histories map[wal.Timeline]localHistory
	partial   []string
	status    map[string]bool         // of these files the server says that they are finished
	highest   map[wal.Timeline]uint64 // the last segment of each timeline into which the server has written
	written   map[wal.Timeline]uint64 // the last one that it has finished
}

// localSegment is what a file bears that has a segment's name.
type localSegment struct {
	header wal.Header
	err    error // why it is not what its name says
}

type localHistory struct {
	history wal.History
	err     error
}

// readError is a failure to read the directory, which says nothing about what it holds.
type readError struct{ error }

func (e *readError) Unwrap() error { return e.error }

// readLocalWAL looks at the names in a directory and at the headers of its segments.
func readLocalWAL(c *catalog.Catalog, inv *catalog.Inventory, dir string) (*localWAL, error) {
	l := &localWAL{
		dir: dir, segments: map[wal.Timeline]map[uint64]localSegment{}, histories: map[wal.Timeline]localHistory{}, status: map[string]bool{},
		highest: map[wal.Timeline]uint64{}, written: map[wal.Timeline]uint64{},
	}
	if exists(filepath.Join(dir, "pg_wal")) {
		l.dir = filepath.Join(dir, "pg_wal")
	}
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, err
	}
	control, controlled := pgdata.Control{}, false
	for _, d := range []string{dir, filepath.Dir(filepath.Clean(dir))} { // not the working directory: it says nothing of this one
		if known, _, err := pgdata.ReadControl(d); err == nil && !controlled {
			control, controlled = known, true
			l.cluster = catalog.Cluster{SystemIdentifier: known.SystemIdentifier, SegmentSize: known.WALSegmentSize}
			if err := c.CheckCluster(inv, l.cluster); err != nil {
				return nil, err
			}
		}
	}
	for _, e := range entries {
		if err := l.look(c, inv, e.Name()); err != nil {
			return nil, err
		}
	}
	if l.cluster.SystemIdentifier == 0 {
		return nil, hint.With(errors.New("nothing in it tells of which cluster it is"), "name the server's data directory or its pg_wal")
	}
	if err := l.readStatus(); err != nil {
		return nil, err
	}
	for timeline, n := range l.highest {
		if n > 0 && !l.finished(timeline, n) {
			n--
		}
		l.written[timeline] = n
	}
	if controlled { // a checkpoint is recorded when it is on the disk
		if n := wal.SegmentAt(control.Timeline, control.CheckpointLSN, control.WALSegmentSize).Number; n > 0 {
			l.written[control.Timeline] = max(l.written[control.Timeline], n-1)
		}
	}
	return l, nil
}

// look notes what a file is.
func (l *localWAL) look(c *catalog.Catalog, inv *catalog.Inventory, name string) error {
	kind := wal.Classify(name)
	if kind != wal.KindSegment && kind != wal.KindPartial && kind != wal.KindHistory {
		return nil
	}
	f, err := openFile(filepath.Join(l.dir, name))
	if errors.Is(err, fs.ErrNotExist) { // the server has taken it away
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	timeline, _ := wal.NameTimeline(name)
	if kind == wal.KindHistory {
		h, err := wal.ParseHistory(io.NewSectionReader(f, 0, f.size))
		if err == nil {
			err = checkHistory(io.NewSectionReader(f, 0, f.size), name)
		}
		l.histories[timeline] = localHistory{h, err}
		return nil
	}
	s, err := f.localSegment(name)
	if err != nil {
		return err
	}
	if s.err == nil {
		ours := catalog.Cluster{SystemIdentifier: s.header.SystemIdentifier, Major: s.header.Major, SegmentSize: s.header.SegmentSize}
		if l.cluster.SystemIdentifier == 0 {
			l.cluster = ours
		}
		if err := c.CheckCluster(inv, ours); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if l.cluster.SystemIdentifier != ours.SystemIdentifier {
			return fmt.Errorf("%s is of the cluster with system identifier %d, and other files of that with %d", name, ours.SystemIdentifier, l.cluster.SystemIdentifier)
		}
	}
	if kind == wal.KindPartial {
		if s.err == nil {
			l.partial = append(l.partial, name)
		}
		return nil
	}
	size := cmp.Or(inv.SegmentSize, s.header.SegmentSize)
	if segment, err := wal.ParseSegment(name, size); err == nil {
		if l.segments[timeline] == nil {
			l.segments[timeline] = map[uint64]localSegment{}
		}
		l.segments[timeline][segment.Number] = s
		if s.err == nil {
			l.highest[timeline] = max(l.highest[timeline], segment.Number)
		}
	}
	return nil
}

// localSegment reads the header of a file with a segment's name. One that the server keeps for later use bears that of its former use, or none.
func (f *file) localSegment(name string) (localSegment, error) {
	head := make([]byte, wal.HeaderSize)
	if _, err := f.ReadAt(head, 0); err != nil && err != io.EOF {
		return localSegment{}, err
	}
	h, err := wal.ParseHeader(head)
	if err != nil && !errors.Is(err, wal.ErrUnknownMagic) {
		return localSegment{err: fmt.Errorf("the directory holds a file of its name without WAL: %w", err)}, nil
	}
	if err := h.CheckFile(name, f.size); err != nil {
		return localSegment{header: h, err: fmt.Errorf("the directory holds a file of its name with other WAL: %w", err)}, nil
	}
	return localSegment{header: h}, nil
}

// readStatus reads which files the server has finished (archive_status, xlogarchive.c). A server that does not archive has none.
func (l *localWAL) readStatus() error {
	entries, err := os.ReadDir(filepath.Join(l.dir, statusDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		for _, suffix := range []string{readySuffix, ".done"} {
			if name, ok := strings.CutSuffix(e.Name(), suffix); ok {
				l.status[name] = true
			}
		}
	}
	return nil
}

// numbers are those of the segments of a timeline, ascending.
func (l *localWAL) numbers(timeline wal.Timeline) []uint64 {
	return slices.Sorted(maps.Keys(l.segments[timeline]))
}

// finished tells whether the server writes the segment no more: it says so, or it has gone on to a later one of the timeline.
func (l *localWAL) finished(timeline wal.Timeline, n uint64) bool {
	return n < l.highest[timeline] || l.status[wal.Segment{Timeline: timeline, Number: n}.Name(l.cluster.SegmentSize)]
}

// check tells why a segment is not to be archived, nil if it is complete and what its name says.
func (l *localWAL) check(s wal.Segment) error {
	found := l.segments[s.Timeline][s.Number]
	switch {
	case found.err != nil:
		return found.err
	case !l.finished(s.Timeline, s.Number):
		return errors.New("the directory holds it, and the server may be writing it: it has not gone on to a later one")
	case found.header.Major == 0:
		return nil // the records of a version to come may look otherwise
	}
	f, err := openFile(filepath.Join(l.dir, s.Name(l.cluster.SegmentSize)))
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the server has taken it away in the meantime")
	}
	if err != nil {
		return &readError{err}
	}
	defer f.Close()
	err = found.header.CheckRecords(bufio.NewReaderSize(io.NewSectionReader(f, 0, f.size), copySize))
	switch {
	case errors.Is(err, wal.ErrEnds), errors.Is(err, wal.ErrBrokenLog):
		return fmt.Errorf("the directory holds it, and it is not complete: %w", err)
	case err != nil:
		return &readError{err}
	}
	return nil
}
