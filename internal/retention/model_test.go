package retention

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/testenv"
	"gitlab.com/walden-pg/walden/internal/wal"
)

const size = 16 << 20

// world is a cluster's life as it really was, which an archive tells only in part: whose WAL a name is, for one.
type world struct {
	chance  *rand.Rand
	now     time.Time
	systems []uint64
	line    *line
	lines   []*line
	log     []string // what happened, for messages

	state
	histories  map[wal.Timeline]wal.History
	unfinished []catalog.Unfinished

	deletions, cuts int // deletions that were carried out, and those of them that were cut off
	unbounded       int // that removed WAL for no other reason than that it was said to go without a backup
}

// state is what an archive holds.
type state struct {
	backups map[string]*backup
	wal     map[string]file
}

type file struct {
	line     *line // nil of what is no segment
	number   uint64
	modified time.Time
}

// line is a timeline of one cluster.
type line struct {
	system   uint64
	timeline wal.Timeline
	parent   *line
	left     wal.LSN // where it left its parent
	head     uint64  // number of the segment that is being written
}

type backup struct {
	catalog.Backup
	line        *line
	first, last uint64
}

func newWorld(chance *rand.Rand) *world {
	w := &world{
		chance: chance, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), systems: []uint64{7000},
		state: state{map[string]*backup{}, map[string]file{}}, histories: map[wal.Timeline]wal.History{},
	}
	w.line = &line{system: 7000, timeline: 1, head: 1 + uint64(chance.IntN(3))*250}
	w.lines = []*line{w.line}
	return w
}

func (w *world) note(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

func (w *world) pass(d time.Duration) { w.now = w.now.Add(d) }

// write archives segments of the current line, up to the number before its head.
func (w *world) write(n int) {
	for range n {
		name := wal.Segment{Timeline: w.line.timeline, Number: w.line.head}.Name(size)
		w.pass(time.Duration(1+w.chance.IntN(120)) * time.Minute)
		if w.chance.IntN(60) > 0 { // else it is lost
			w.wal[name] = file{w.line, w.line.head, w.now}
		}
		if w.chance.IntN(20) == 0 {
			w.wal[name+".00000028.backup"] = file{nil, w.line.head, w.now}
		}
		if w.line.head%16 == 15 && w.line.head > 15 && w.chance.IntN(2) == 0 {
			w.wal[wal.Segment{Timeline: w.line.timeline, Number: w.line.head - 15}.Name(size)+"_delta"] = file{nil, w.line.head - 15, w.now}
		}
		w.line.head++
	}
}

func (w *world) step() {
	switch n := w.chance.IntN(100); {
	case n < 35:
		n := 1 + w.chance.IntN(12)
		w.write(n)
		w.note("%d segments on timeline %d of %d", n, w.line.timeline, w.line.system)
	case n < 50:
		w.push(nil)
	case n < 62:
		w.push(w.base())
	case n < 68:
		w.mark()
	case n < 74:
		w.promote()
	case n < 76:
		w.upgrade()
	case n < 79:
		u := catalog.Unfinished{Name: "base_" + wal.Segment{Timeline: w.line.timeline, Number: w.line.head}.Name(size), Size: 100, Modified: w.now}
		if base := w.base(); base != nil && w.chance.IntN(2) == 0 {
			u.Name += "_D_" + strings.TrimPrefix(base.Name, "base_")[:24]
		}
		if w.backups[u.Name] == nil && !slices.ContainsFunc(w.unfinished, func(o catalog.Unfinished) bool { return o.Name == u.Name }) {
			w.unfinished = append(w.unfinished, u)
			w.note("a backup is begun and not ended: %s", u.Name)
		}
		w.write(1)
	case n < 84:
		w.pass(time.Duration(w.chance.IntN(10*24)) * time.Hour)
	}
}

// base chooses a backup for a delta: one that the current line descends from.
func (w *world) base() *backup {
	var fit []*backup
	for _, name := range slices.Sorted(maps.Keys(w.backups)) {
		if b := w.backups[name]; b.leadsTo(w.line) && b.last < w.line.head {
			fit = append(fit, b)
		}
	}
	if len(fit) == 0 {
		return nil
	}
	return fit[w.chance.IntN(len(fit))]
}

func (w *world) push(base *backup) {
	b := &backup{line: w.line, first: w.line.head, last: w.line.head + uint64(w.chance.IntN(3))}
	start := wal.Segment{Timeline: w.line.timeline, Number: b.first}
	b.Backup = catalog.Backup{
		Name: "base_" + start.Name(size), SystemIdentifier: w.line.system, StartLSN: start.Start(size) + 0x28,
		FinishLSN: wal.LSN(b.last*size) + 0x100, StartTime: w.now, CompressedSize: 1000, PgVersion: 150000,
	}
	if w.chance.IntN(25) == 0 {
		b.CorruptBlocks = 1
	}
	if base != nil {
		b.Name += "_D_" + strings.TrimPrefix(base.Name, "base_")[:24]
		b.Delta = &catalog.Delta{From: base.Name, LSN: base.StartLSN, Count: 1}
	}
	if w.backups[b.Name] != nil {
		return
	}
	w.write(int(b.last-b.first) + 1)
	b.FinishTime, b.Modified = w.now, w.now
	w.backups[b.Name] = b
	w.note("backup %s of %d", b.Name, w.line.system)
}

// mark marks a backup with those that it is based on, or takes the mark from one.
func (w *world) mark() {
	if len(w.backups) == 0 {
		return
	}
	names := slices.Sorted(maps.Keys(w.backups))
	b := w.backups[names[w.chance.IntN(len(names))]]
	if w.chance.IntN(2) == 0 {
		b.Permanent = false
		w.note("%s is not permanent", b.Name)
		return
	}
	w.note("%s is permanent", b.Name)
	for b != nil {
		b.Permanent = true
		if b.Delta == nil {
			return
		}
		b = w.backups[b.Delta.From]
	}
}

// promote begins a new timeline: at the end of the log, or after recovery to a moment that the archive leads to.
func (w *world) promote() {
	parent, at := w.line, wal.LSN(w.line.head*size)+0x1000
	if w.chance.IntN(2) == 0 {
		b := w.base()
		if b == nil {
			return
		}
		parent = w.line
		for parent != b.line && w.chance.IntN(2) == 0 && parent.parent != nil {
			parent = parent.parent
		}
		end := w.reach(w.state, b, parent)
		if !b.leadsTo(parent) || end <= b.last {
			return
		}
		at = wal.LSN((b.last+1+uint64(w.chance.IntN(int(end-b.last))))*size) + wal.LSN(w.chance.IntN(2)*0x2000)
	}
	for parent.parent != nil && at <= parent.left {
		parent = parent.parent
	}
	next := wal.Timeline(1)
	for _, l := range w.lines {
		if l.system == w.line.system {
			next = max(next, l.timeline+1)
		}
	}
	if _, taken := w.histories[next]; taken { // of the cluster before: the archive refuses another content
		return
	}
	w.line = &line{w.line.system, next, parent, at, uint64(at) / size}
	w.lines = append(w.lines, w.line)
	w.histories[next] = slices.Concat(parent.history(), wal.History{{Timeline: parent.timeline, LSN: at}})
	w.wal[wal.HistoryName(next)] = file{modified: w.now}
	w.note("timeline %d of %d leaves %d at %s", next, w.line.system, parent.timeline, at)
}

func (l *line) history() wal.History {
	if l.parent == nil {
		return nil
	}
	return append(l.parent.history(), wal.Switch{Timeline: l.parent.timeline, LSN: l.left})
}

// upgrade is pg_upgrade: another system identifier, timeline 1, and the log goes on behind the old one.
func (w *world) upgrade() {
	head := w.line.head
	for _, l := range w.lines {
		head = max(head, l.head)
	}
	system := w.line.system + 1
	w.systems = append(w.systems, system)
	w.line = &line{system: system, timeline: 1, head: head + 8}
	w.lines = append(w.lines, w.line)
	w.note("upgrade to %d", system)
}

// leadsTo tells whether recovery from the backup can end on a line.
func (b *backup) leadsTo(l *line) bool {
	limit := ^wal.LSN(0)
	for ; l != nil; l = l.parent {
		if l == b.line {
			return b.StartLSN < limit && b.FinishLSN <= limit
		}
		limit = min(limit, l.left)
	}
	return false
}

// at is the line on which the n-th segment lies on the way to l.
func (l *line) at(n uint64) *line {
	for l.parent != nil && n < uint64(l.left)/size {
		l = l.parent
	}
	return l
}

// reach is the number of the last segment that recovery from the backup finds on its way to a line without a gap; the one before the
// first if there is none.
func (w *world) reach(s state, b *backup, l *line) uint64 {
	n := b.first
	for ; ; n++ {
		f, ok := s.wal[wal.Segment{Timeline: l.at(n).timeline, Number: n}.Name(size)]
		if !ok || f.line != l.at(n) {
			return n - 1
		}
	}
}

func (w *world) restorable(s state, b *backup) bool {
	if w.reach(s, b, b.line) < b.last {
		return false
	}
	for b.Delta != nil {
		base, ok := s.backups[b.Delta.From]
		if !ok {
			return false
		}
		b = base
	}
	return true
}

// inventory is what a look at the archive finds.
func (w *world) inventory(s state) *catalog.Inventory {
	inv := &catalog.Inventory{SegmentSize: size, Histories: map[wal.Timeline]wal.History{}, Unfinished: slices.Clone(w.unfinished), Foreign: []string{"wal_005/notes.txt"}}
	inv.Identity.Current.SystemIdentifier = w.line.system
	for _, b := range s.backups {
		inv.Backups = append(inv.Backups, b.Backup)
	}
	slices.SortFunc(inv.Backups, func(a, b catalog.Backup) int { return cmp.Or(a.When().Compare(b.When()), cmp.Compare(a.Name, b.Name)) })
	for name, f := range s.wal {
		c := catalog.WALFile{Name: name, Size: 10, Modified: f.modified, Kind: catalog.WALSegment}
		c.Timeline, c.Position, _ = catalog.PositionOf(name)
		switch {
		case strings.HasSuffix(name, ".history"):
			c.Kind = catalog.WALHistory
			c.Timeline, _ = wal.NameTimeline(name)
			inv.Histories[c.Timeline] = w.histories[c.Timeline]
		case strings.HasSuffix(name, ".backup"):
			c.Kind = catalog.WALBackupHistory
		case strings.HasSuffix(name, "_delta"):
			c.Kind, c.Position = catalog.WALDelta, c.Position+15
		}
		inv.WAL = append(inv.WAL, c)
	}
	slices.SortFunc(inv.WAL, func(a, b catalog.WALFile) int { return cmp.Compare(a.Name, b.Name) })
	return inv
}

// request is any that an operator may make.
func (w *world) request() Request {
	names := slices.Sorted(maps.Keys(w.backups))
	name := func() string {
		if len(names) == 0 {
			return "base_000000010000000000000001"
		}
		return names[w.chance.IntN(len(names))]
	}
	m := []Modifier{Plain, Full, FindFull}[w.chance.IntN(3)]
	switch w.chance.IntN(13) {
	case 0, 1, 2:
		return Request{Verb: Retain, Modifier: m, Count: 1 + w.chance.IntN(4)}
	case 3:
		return Request{Verb: Retain, Modifier: m, Count: 1 + w.chance.IntN(3), After: name()}
	case 4, 5, 6:
		return Request{Verb: Retain, Days: 1 + w.chance.IntN(30)}
	case 7:
		return Request{Verb: Before, Modifier: FindFull, Point: name()}
	case 8:
		return Request{Verb: Before, Modifier: FindFull, Point: w.now.Add(-time.Duration(w.chance.IntN(400)) * time.Hour).Format(time.RFC3339)}
	case 9:
		return Request{Verb: Target, Point: name()}
	case 10:
		return Request{Verb: Garbage, WAL: true, Leftover: true}
	case 11:
		return Request{Verb: Garbage, WAL: true, Leftover: w.chance.IntN(2) == 0, NoBackup: true}
	}
	if w.chance.IntN(20) == 0 {
		return Request{Verb: Everything, Force: w.chance.IntN(2) == 0}
	}
	return Request{Verb: Garbage, Leftover: true}
}

func (s state) clone() state { return state{maps.Clone(s.backups), maps.Clone(s.wal)} }

// carryOut does the first steps of a plan, in the order of [Plan.Apply], and tells whether there were more. A removal that is cut off
// leaves a folder without a sentinel.
func (w *world) carryOut(p *Plan, steps int) (cutOff bool) {
	step := func() bool { steps--; return steps >= 0 }
	for _, d := range slices.Backward(p.Backups) {
		if !d.Goes {
			continue
		}
		if !step() {
			return true
		}
		delete(w.backups, d.Backup.Name)
		if !step() {
			w.unfinished = append(w.unfinished, catalog.Unfinished{Name: d.Backup.Name, Modified: w.now, Removed: true})
			return true
		}
	}
	for _, u := range p.Unfinished {
		if u.Goes {
			if !step() {
				return true
			}
			w.unfinished = slices.DeleteFunc(w.unfinished, func(o catalog.Unfinished) bool { return o.Name == u.Unfinished.Name })
		}
	}
	for part := range slices.Chunk(p.WAL, 3) {
		if !step() {
			return true
		}
		for _, f := range part {
			delete(w.wal, f.Name)
			if f.Kind == catalog.WALHistory {
				delete(w.histories, f.Timeline)
			}
		}
	}
	return false
}

// broken says which promise does not hold in the present state, seen from the one before the request.
func (w *world) broken(r Request, was state) error {
	if r.Verb == Everything {
		return nil
	}
	if err := w.cutBackupUnderWay(was); err != nil {
		return err
	}
	var newest *backup
	for _, b := range was.backups {
		if b.SystemIdentifier == w.line.system && w.restorable(was, b) && (newest == nil || b.StartTime.After(newest.StartTime)) {
			newest = b
		}
		if _, stays := w.backups[b.Name]; b.Permanent && !stays {
			return fmt.Errorf("%s is permanent, and gone", b.Name)
		}
	}
	for _, u := range w.unfinished {
		_, base, delta := strings.Cut(u.Name, "_D_")
		if !delta || u.Removed || w.now.Sub(u.Modified) > staleAfter {
			continue
		}
		for name := range was.backups {
			if strings.HasPrefix(name, "base_"+base) && w.backups[name] == nil {
				return fmt.Errorf("%s is gone, and %s, which may be under way, is based on it", name, u.Name)
			}
		}
	}
	if newest != nil && (w.backups[newest.Name] == nil || !w.restorable(w.state, newest)) {
		return fmt.Errorf("%s was the newest that could be restored", newest.Name)
	}
	for _, b := range w.backups {
		if w.restorable(was, b) && !w.restorable(w.state, b) {
			return fmt.Errorf("%s stays, and cannot be restored any more", b.Name)
		}
		for _, l := range w.lines {
			if !b.leadsTo(l) || b.Permanent {
				continue
			}
			if is, before := w.reach(w.state, b, l), w.reach(was, b, l); is != before {
				return fmt.Errorf("%s stays, and the log behind it on timeline %d ends at %d instead of %d", b.Name, l.timeline, is, before)
			}
		}
	}
	if r.Days > 0 {
		return w.lostMoment(was, w.now.AddDate(0, 0, -r.Days))
	}
	return nil
}

// lostMoment finds a segment since then that could be recovered before and cannot be now.
func (w *world) lostMoment(was state, since time.Time) error {
	recoverable := func(s state, l *line) map[uint64]bool {
		m := map[uint64]bool{}
		for _, b := range s.backups {
			if b.leadsTo(l) && w.restorable(s, b) {
				for n, last := b.last, w.reach(s, b, l); n <= last; n++ {
					m[n] = true
				}
			}
		}
		return m
	}
	for _, l := range w.lines {
		before, after := recoverable(was, l), recoverable(w.state, l)
		for n := range before {
			f := was.wal[wal.Segment{Timeline: l.at(n).timeline, Number: n}.Name(size)]
			if !f.modified.Before(since) && !after[n] {
				return fmt.Errorf("segment %d on the way to timeline %d of %d was written at %s and cannot be recovered to any more", n, l.timeline, l.system, f.modified)
			}
		}
	}
	return nil
}

// cutBackupUnderWay finds WAL that is gone and that a backup would need that may be under way.
func (w *world) cutBackupUnderWay(was state) error {
	for _, u := range w.unfinished {
		if u.Removed || w.now.Sub(u.Modified) > staleAfter {
			continue
		}
		for name, f := range was.wal {
			if _, stays := w.wal[name]; f.line != nil && !stays && name[8:] >= strings.TrimPrefix(u.Name, "base_")[8:] {
				return fmt.Errorf("%s may be under way, and %s is gone", u.Name, name)
			}
		}
	}
	return nil
}

// live lets a cluster live, with deletions that may be cut off and are repeated then.
func live(chance *rand.Rand) (w *world, err error) {
	w = newWorld(chance)
	for range 20 + chance.IntN(40) {
		w.step()
		if chance.IntN(5) > 0 {
			continue
		}
		r := w.request()
		w.note("delete %+v", r)
		was := w.clone()
		plan, err := New(w.inventory(w.state), r, w.now)
		if err != nil {
			if strings.Contains(err.Error(), "break a promise") {
				return w, err
			}
			continue // refused
		}
		w.deletions++
		if checked := r; r.NoBackup && len(plan.WAL) > 0 {
			checked.NoBackup = false
			if p, err := New(w.inventory(w.state), checked, w.now); err == nil && len(p.WAL) == 0 {
				w.unbounded++
			}
		}
		if chance.IntN(2) == 0 {
			n := chance.IntN(6)
			if w.carryOut(plan, n) {
				w.note("cut off after %d steps", n)
				w.cuts++
				if err := w.broken(r, was); err != nil {
					return w, err
				}
			}
			if plan, err = New(w.inventory(w.state), r, w.now); err != nil {
				if errors.Is(err, catalog.ErrNoBackups) || r.Verb == Target || r.Verb == Before {
					continue // what it named is gone
				}
				return w, fmt.Errorf("again: %w", err)
			}
		}
		w.carryOut(plan, 1<<30)
		if err := w.broken(r, was); err != nil {
			return w, err
		}
		if again, err := New(w.inventory(w.state), r, w.now); err == nil && !again.Empty() && r.Verb != Everything {
			return w, fmt.Errorf("once more it would remove %d objects: %v", again.Objects(), again.WAL)
		}
	}
	return w, nil
}

// Whatever happened to a cluster, and wherever a deletion was cut off: what stays can be restored as far as before, the newest backup
// stays, the permanent ones do, and the same request again leaves nothing to do.
func TestWhatStaysCanBeRestored(t *testing.T) {
	t.Parallel()
	chance := testenv.Rand(t)
	lives := testenv.Pick(500, 10_000)
	deletions, cuts, unbounded := 0, 0, 0
	for range lives {
		seed := chance.Uint64()
		w, err := live(rand.New(rand.NewPCG(seed, 1)))
		deletions, cuts, unbounded = deletions+w.deletions, cuts+w.cuts, unbounded+w.unbounded
		if err != nil {
			t.Fatalf("life %d: %v\n%s", seed, err, strings.Join(w.log, "\n"))
		}
	}
	testenv.Figure(t, "lives of an archive", "in memory", lives)
	testenv.Figure(t, "deletions in them", "carried out", deletions)
	testenv.Figure(t, "deletions in them", "cut off and repeated", cuts)
	testenv.Figure(t, "deletions in them", "of WAL without a backup that says which is old", unbounded)
}
