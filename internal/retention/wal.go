package retention

import (
	"fmt"
	"slices"
	"strings"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// walRules decide about archived files.
type walRules struct {
	p       *planner
	all     bool   // everything goes
	none    string // why nothing does
	floor   catalog.Position
	lowest  string // the backup with which the floor begins
	ranges  []walRange
	lived   map[wal.Timeline]bool // timelines of which it is known where they come from, or on which a backup stays
	history map[wal.Timeline]bool // histories that go
}

// walRange is the WAL of a permanent backup from its start to its end, and one segment more: a server that is to stop at the end of the
// backup reads the next record before it does (recovery_target = 'immediate').
type walRange struct {
	backup      string
	timeline    wal.Timeline
	first, last catalog.Position
}

// wal makes the rules from the backups that stay.
func (p *planner) wal() *walRules {
	w := &walRules{p: p, lived: map[wal.Timeline]bool{1: true}}
	floor, known := p.floor()
	switch {
	case p.request.Verb == Everything:
		w.all = true
		return w
	case p.request.Verb == Target, p.request.Verb == Garbage && !p.request.WAL:
		w.none = "not asked for"
		return w
	case p.nothing:
		w.none = errNothing.Error()
		return w
	case !known && !p.request.NoBackup:
		w.none = "no backup says which WAL is old"
		return w
	case !known:
		floor = ^catalog.Position(0)
	}
	w.floor = floor
	for _, u := range p.leftover {
		if _, position, ok := catalog.PositionOf(strings.TrimPrefix(u.Unfinished.Name, "base_")); ok && u.Active && position < w.floor {
			w.floor, w.lowest = position, u.Unfinished.Name+", which may be under way,"
		}
	}
	for _, b := range p.backups {
		if p.goes[b.Name] {
			continue
		}
		timeline, first, ok := b.First()
		if !ok {
			continue
		}
		w.lived[timeline] = true
		last, ended := b.Last(p.inv.SegmentSize)
		switch {
		case first == w.floor && w.lowest == "" && (p.onward[b.Name] || !b.Permanent || !ended):
			w.lowest = b.Name
		case b.Permanent && ended:
			w.ranges = append(w.ranges, walRange{b.Name, timeline, first, last.Next(p.inv.SegmentSize)})
		}
	}
	for timeline, h := range p.inv.Histories {
		w.lived[timeline] = true
		for _, s := range h {
			w.lived[s.Timeline] = true
		}
	}
	w.chooseHistories()
	return w
}

// stays says why a file stays; "" if it goes.
func (w *walRules) stays(f catalog.WALFile) string {
	switch {
	case w.all:
		return ""
	case w.none != "":
		return w.none
	case f.Kind == catalog.WALHistory && w.history[f.Timeline]:
		return ""
	case f.Kind == catalog.WALHistory:
		return "history of a timeline that is still needed, or may be"
	case f.Position >= w.floor:
		return "not older than the start of " + w.lowest
	case !w.lived[f.Timeline]:
		return fmt.Sprintf("nothing tells where timeline %d comes from", f.Timeline)
	}
	for _, r := range w.ranges {
		if f.Timeline == r.timeline && f.Position >= r.first && w.begins(f) <= r.last {
			return "permanent backup " + r.backup + " needs it"
		}
	}
	return ""
}

// begins is the position of the first segment that a file is about.
func (w *walRules) begins(f catalog.WALFile) catalog.Position {
	if _, first, ok := catalog.PositionOf(f.Name); ok {
		return first
	}
	return f.Position &^ 0xF // of the metadata of segments whose names begin alike
}

// chooseHistories finds the timelines that nobody can recover to any more. The others' histories stay, and so do those with lower
// numbers that a server asks for on the way to them: it takes the first history that is absent for the end of the list
// (findNewestTimeLine in timeline.c).
func (w *walRules) chooseHistories() {
	w.history = map[wal.Timeline]bool{}
	size := w.p.inv.SegmentSize
	if size == 0 {
		return
	}
	used := map[wal.Timeline]bool{}
	for _, f := range w.p.inv.WAL {
		if f.Kind != catalog.WALHistory && w.stays(f) != "" {
			used[f.Timeline] = true
		}
	}
	timelines := w.p.coverage.Timelines()
	slices.Reverse(timelines)
	var above []wal.Timeline // that stay
	for _, timeline := range timelines {
		if !w.historyGoes(timeline, used[timeline], above, size) {
			above = append(above, timeline)
			continue
		}
		w.history[timeline] = true
	}
}

func (w *walRules) historyGoes(timeline wal.Timeline, used bool, above []wal.Timeline, size int64) bool {
	h := w.p.inv.Histories[timeline]
	if used || len(h) == 0 || catalog.At(h[len(h)-1].LSN, size) >= w.floor {
		return false
	}
	for _, b := range w.p.backups {
		if w.p.goes[b.Name] {
			continue
		}
		own, _, ok := b.First()
		if !ok || w.p.coverage.LeadsTo(b, timeline) {
			return false
		}
		if own < timeline && slices.ContainsFunc(above, func(higher wal.Timeline) bool { return w.p.coverage.LeadsTo(b, higher) }) {
			return false
		}
	}
	return true
}
