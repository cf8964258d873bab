package retention

import (
	"fmt"
	"slices"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// remaining is the inventory as it is after the plan.
func (p *Plan) remaining(inv *catalog.Inventory) catalog.Inventory {
	after := *inv
	after.Backups = nil
	for _, d := range p.Backups {
		if !d.Goes {
			after.Backups = append(after.Backups, d.Backup)
		}
	}
	goes := make(map[catalog.WALFile]bool, len(p.WAL))
	histories := map[wal.Timeline]bool{}
	for _, f := range p.WAL {
		goes[f] = true
		histories[f.Timeline] = histories[f.Timeline] || f.Kind == catalog.WALHistory
	}
	after.WAL = nil
	for _, f := range inv.WAL {
		if !goes[f] {
			after.WAL = append(after.WAL, f)
		}
	}
	after.Histories = map[wal.Timeline]wal.History{}
	for timeline, h := range inv.Histories {
		if !histories[timeline] {
			after.Histories[timeline] = h
		}
	}
	return after
}

// check proves the promises of the package by comparing what the archive can do before and after, with none of the rules by which the
// plan was made.
func (p *Plan) check(before *catalog.Inventory, was, is *catalog.Coverage) error {
	if p.Request.Verb == Everything {
		return nil
	}
	if err := p.newestStays(was, is); err != nil {
		return err
	}
	wasLines, isLines := map[wal.Timeline][]catalog.Run{}, map[wal.Timeline][]catalog.Run{}
	for _, timeline := range was.Timelines() {
		wasLines[timeline], isLines[timeline] = was.Line(timeline), is.Line(timeline)
	}
	for _, d := range p.Backups {
		b := d.Backup
		if d.Goes {
			continue
		}
		if was.Unrestorable(b) == nil {
			if err := is.Unrestorable(b); err != nil {
				return fmt.Errorf("backup %s stays: %w", b.Name, err)
			}
		}
		_, first, ok := b.First()
		if !ok || before.SegmentSize == 0 || b.Permanent {
			continue // the WAL of a permanent one from start to end is proven above
		}
		for _, timeline := range was.Timelines() {
			if !was.LeadsTo(b, timeline) {
				continue
			}
			n := first.Number(before.SegmentSize)
			reached, there := runWith(wasLines[timeline], n)
			if !there {
				continue
			}
			reaches, there := runWith(isLines[timeline], n)
			if !there || reaches != reached || !is.LeadsTo(b, timeline) {
				return fmt.Errorf("backup %s stays, and the log that follows it on timeline %d would not", b.Name, timeline)
			}
		}
	}
	return nil
}

func (p *Plan) newestStays(was, is *catalog.Coverage) error {
	for _, d := range slices.Backward(p.Backups) {
		if was.Unrestorable(d.Backup) == nil {
			if d.Goes || is.Unrestorable(d.Backup) != nil {
				return fmt.Errorf("backup %s is the newest of the cluster that can be restored", d.Backup.Name)
			}
			return nil
		}
	}
	return nil
}

// runWith returns the last segment of the stretch that holds the n-th one.
func runWith(runs []catalog.Run, n uint64) (wal.Segment, bool) {
	for _, r := range runs {
		if n >= r.First.Number && n <= r.Last.Number {
			return r.Last, true
		}
	}
	return wal.Segment{}, false
}
