package catalog

import (
	"cmp"
	"slices"
	"time"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// Gap is WAL that recovery to a timeline reads and the archive does not hold: a row of segments without an archived one among them.
type Gap struct {
	Timeline wal.Timeline // to which recovery is to lead
	Parts    []Stretch    // at least one, ascending; one for each timeline on which segments are missing
	End      wal.LSN      // where recovery that reaches the gap ends
	EndTime  time.Time    // when the last segment before it was archived, zero if there is none
	// Stopped are the backups from which recovery ends here, and Broken those of which WAL is missing that they need to be restored at all.
	Stopped, Broken []string
	// Healed is the first backup behind the gap with which recovery goes on; "" if there is none, so that a new one is needed.
	Healed string
}

// Cluster is the cluster that the archive belongs to, and how that is known; the zero Cluster if nothing but WAL could tell.
func (inv *Inventory) Cluster() (Cluster, string) {
	if inv.Identity.Current.SystemIdentifier != 0 {
		return inv.Identity.Current, "recorded in " + identityName
	}
	for _, b := range slices.Backward(inv.Backups) {
		if b.SystemIdentifier != 0 {
			return Cluster{SystemIdentifier: b.SystemIdentifier, Major: b.PgVersion / 10000}, "from its backup " + b.Name
		}
	}
	return Cluster{}, ""
}

// CheckCluster returns a *[WrongClusterError] if the archive is known to belong to another cluster. Unlike Admit it writes nothing.
func (c *Catalog) CheckCluster(inv *Inventory, ours Cluster) error {
	theirs, source := inv.Cluster()
	if theirs.SystemIdentifier == 0 {
		return nil
	}
	return c.compare(theirs, ours, source)
}

// With is the inventory as it would be if files of these names were archived, too, at the time given.
func (inv *Inventory) With(at time.Time, names ...string) *Inventory {
	more := *inv
	more.WAL = slices.Clone(inv.WAL)
	for _, name := range names {
		if f, ok := classify(name, inv.SegmentSize); ok {
			f.Modified = at
			more.WAL = append(more.WAL, f)
		}
	}
	slices.SortStableFunc(more.WAL, func(a, b WALFile) int { return cmp.Compare(a.Name, b.Name) })
	return &more
}

// Begins is the first segment that recovery to a timeline reads, by its number: from the oldest backup of the cluster with which it can
// begin. Behind a permanent one WAL is deleted on purpose, so of these the newest counts, and only where there are no others.
func (c *Coverage) Begins(timeline wal.Timeline) (number uint64, ok bool) {
	if c.inv.SegmentSize == 0 {
		return 0, false
	}
	permanent, found := uint64(0), false
	for _, b := range c.leading(timeline) {
		n, _ := c.own(b)
		switch {
		case b.Permanent:
			permanent, found = max(permanent, n), true
		case !ok || n < number:
			number, ok = n, true
		}
	}
	if !ok {
		return permanent, found
	}
	return number, true
}

// leading are the backups of the cluster with which recovery to a timeline can begin, as far as their documents tell.
func (c *Coverage) leading(timeline wal.Timeline) []Backup {
	cluster, _ := c.inv.Cluster()
	var list []Backup
	for _, b := range c.inv.Backups {
		foreign := b.SystemIdentifier != 0 && b.SystemIdentifier != cluster.SystemIdentifier
		if b.Problem == nil && !foreign && c.LeadsTo(b, timeline) && (b.WALE == nil || !b.WALE.Offline()) {
			list = append(list, b)
		}
	}
	return list
}

// own are the numbers of the first and the last segment that a backup needs to be restored; of one whose end is not known, of the first.
func (c *Coverage) own(b Backup) (first, last uint64) {
	_, from, _ := b.First()
	to, ended := b.Last(c.inv.SegmentSize)
	if !ended || to < from {
		to = from
	}
	return from.Number(c.inv.SegmentSize), to.Number(c.inv.SegmentSize)
}

// Gaps returns what is missing for recovery to a timeline, from the oldest backup with which it can begin to the end of the archived log of
// that timeline or to the segment with the number given, of which it is known that the server has written all of it: whichever comes later.
// Of permanent backups that are older it is what they need themselves.
func (c *Coverage) Gaps(timeline wal.Timeline, written uint64) []Gap {
	size := c.inv.SegmentSize
	begin, ok := c.Begins(timeline)
	if !ok {
		return nil
	}
	end := written
	if own := c.segments[timeline]; len(own) > 0 {
		end = max(end, own[len(own)-1].Position.Number(size))
	}
	type stretch struct{ first, last uint64 }
	needed := []stretch{{begin, end}}
	for _, b := range c.leading(timeline) {
		if own, _, _ := b.First(); b.Permanent && own == timeline {
			first, last := c.own(b)
			needed = append(needed, stretch{first, last})
		}
	}
	slices.SortFunc(needed, func(a, b stretch) int { return cmp.Compare(a.first, b.first) })
	line := c.Line(timeline)
	var gaps []Gap
	next := uint64(0) // the first one that was not looked at
	for _, s := range needed {
		next = max(next, s.first)
		for _, run := range line {
			if run.Last.Number < next {
				continue
			}
			if run.First.Number > s.last {
				break
			}
			if run.First.Number > next {
				gaps = append(gaps, c.gap(timeline, next, run.First.Number-1))
			}
			next = run.Last.Number + 1
		}
		if next <= s.last {
			gaps = append(gaps, c.gap(timeline, next, s.last))
			next = s.last + 1
		}
	}
	c.consequences(timeline, begin, line, gaps)
	return gaps
}

// gap is the gap of the segments from first to last on the line of descent of a timeline.
func (c *Coverage) gap(timeline wal.Timeline, first, last uint64) Gap {
	g := Gap{Timeline: timeline, End: wal.Segment{Number: first}.Start(c.inv.SegmentSize)}
	for _, s := range c.inv.Histories[timeline] {
		if end := wal.SegmentAt(s.Timeline, s.LSN, c.inv.SegmentSize).Number; first < end && first <= last {
			to := min(last, end-1)
			g.Parts = append(g.Parts, Stretch{wal.Segment{Timeline: s.Timeline, Number: first}, wal.Segment{Timeline: s.Timeline, Number: to}, SegmentLost})
			first = to + 1
		}
	}
	if first <= last {
		g.Parts = append(g.Parts, Stretch{wal.Segment{Timeline: timeline, Number: first}, wal.Segment{Timeline: timeline, Number: last}, SegmentLost})
	}
	return g
}

// First is the number of the first segment that is missing.
func (g Gap) First() uint64 { return g.Parts[0].First.Number }

// Last is the number of the last segment that is missing.
func (g Gap) Last() uint64 { return g.Parts[len(g.Parts)-1].Last.Number }

// consequences fills in what the gaps of a timeline mean for its backups. Those before the segment where the log begins lead to their own
// end only.
func (c *Coverage) consequences(timeline wal.Timeline, begin uint64, line []Run, gaps []Gap) {
	windows := c.Windows(timeline)
	for i := range gaps {
		g := &gaps[i]
		for _, run := range line {
			if run.Last.Number+1 == g.First() {
				g.EndTime = run.Modified
			}
		}
		for _, b := range c.leading(timeline) {
			first, last := c.own(b)
			behind := i > 0 && first <= gaps[i-1].Last()
			switch {
			case first <= g.Last() && last >= g.First():
				g.Broken = append(g.Broken, b.Name)
			case last < g.First() && !behind && first >= begin:
				g.Stopped = append(g.Stopped, b.Name)
			}
		}
		for _, w := range windows {
			if w.From > g.End && g.Healed == "" && c.begun(w.Backup) > g.Last() {
				g.Healed = w.Backup
			}
		}
	}
}

// begun is the number of the first segment that a backup needs.
func (c *Coverage) begun(name string) uint64 {
	first, _ := c.own(c.backups[name])
	return first
}
