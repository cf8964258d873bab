package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/hint"
)

// CopyOptions choose what [Copy] copies.
type CopyOptions struct {
	Backup string // its name, or LATEST; "" is all backups
	// Onward copies all WAL from the first backup on, instead of what each backup needs to become consistent.
	Onward bool
	// Checksum compares what is there already by its content, and not by its size where no hash is recorded.
	Checksum bool
}

// step is what has to arrive before a backup is listed, and the backup. The last one is of WAL alone.
type step struct {
	backup    catalog.Backup
	data      []object // in any order: parts, and the WAL that the backup needs
	documents []object
	sentinel  *object
}

// plan is what is to be copied.
type plan struct {
	identity  catalog.Identity
	histories []object
	steps     []step
	there     map[string]int64 // what the destination has, by name
}

// Copy copies backups, each with all that it is based on, the WAL that they need, and all history files. Everything that can be checked
// is checked before anything is written: that each backup has all of its parts and all of its WAL, that the destination belongs to no
// other cluster and holds nothing else under these names.
func Copy(ctx context.Context, d Deps, o CopyOptions) (Report, error) {
	c := newCarrier(d)
	c.checksum = o.Checksum
	p, err := c.plan(ctx, o)
	if err != nil {
		return c.report, err
	}
	if err := c.To.Catalog.Adopt(ctx, p.identity); err != nil {
		return c.report, err
	}
	c.Progress.Begin(p.size())
	defer c.Progress.End()
	if err := c.carryAll(ctx, p.histories, p.there); err != nil {
		return c.report, c.interrupted(err)
	}
	for _, s := range p.steps {
		if err := c.take(ctx, s, p.there); err != nil {
			return c.report, c.interrupted(err)
		}
	}
	return c.report, nil
}

func (c *carrier) interrupted(err error) error {
	done := "no backup"
	if n := len(c.report.Backups); n > 0 {
		done = fmt.Sprintf("%d backups", n)
	}
	return fmt.Errorf("cannot complete the copy, %s was completed; the same command again goes on: %w", done, err)
}

// take carries one step: data, then documents, then the sentinel, which makes the backup exist.
func (c *carrier) take(ctx context.Context, s step, there map[string]int64) error {
	if s.sentinel == nil {
		return c.carryAll(ctx, s.data, there)
	}
	copied := c.report.Copied.Objects
	if err := c.carryAll(ctx, s.data, there); err != nil {
		return err
	}
	if err := c.carryAll(ctx, s.documents, there); err != nil {
		return err
	}
	if err := c.arrived(ctx, s); err != nil {
		return err
	}
	if err := c.carryAll(ctx, []object{*s.sentinel}, there); err != nil {
		return err
	}
	c.report.Backups = append(c.report.Backups, s.backup.Name)
	c.Log.Info("copied backup", "backup", s.backup.Name, "objects", c.report.Copied.Objects-copied, "to", c.To)
	return nil
}

// arrived proves, before the sentinel says so, that the destination holds all that is stored of a backup, in its size.
func (c *carrier) arrived(ctx context.Context, s step) error {
	own := slices.DeleteFunc(slices.Concat(s.data, s.documents), func(o object) bool {
		return !strings.HasPrefix(o.Key, catalog.BackupFolder(s.backup.Name)) // to list all WAL for each backup would take too long
	})
	now, err := c.sizes(ctx, keys(own))
	if err != nil {
		return err
	}
	for _, o := range own {
		size, ok := now[o.Key]
		if !ok { // a listing may be late
			stat, err := c.To.Repo.Stat(ctx, o.Key)
			if err != nil {
				return fmt.Errorf("%s has confirmed %q and does not list it: %w", c.To, o.Key, err)
			}
			size = stat.Size
		}
		if size != o.Size && o.known != anything {
			return c.conflict(o.Key, "it has %d bytes, %d were copied", size, o.Size)
		}
	}
	return nil
}

func keys(lists ...[]object) []string {
	var all []string
	for _, list := range lists {
		for _, o := range list {
			all = append(all, o.Key)
		}
	}
	return all
}

func (p *plan) all() []object {
	all := slices.Clone(p.histories)
	for _, s := range p.steps {
		all = slices.Concat(all, s.data, s.documents)
		if s.sentinel != nil {
			all = append(all, *s.sentinel)
		}
	}
	return all
}

func (p *plan) size() (total int64) {
	for _, o := range p.all() {
		total += o.Size
	}
	return total
}

// plan looks at both ends and decides what is to be copied. It only reads.
func (c *carrier) plan(ctx context.Context, o CopyOptions) (*plan, error) {
	inv, err := c.From.Catalog.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	chosen, err := c.choose(ctx, &inv, o.Backup)
	if err != nil {
		return nil, err
	}
	chain, err := withBases(&inv, chosen)
	if err != nil {
		return nil, err
	}
	if err := complete(&inv, chosen, c.From.String()); err != nil {
		return nil, err
	}
	p := &plan{}
	if p.identity, err = c.identity(ctx, &inv); err != nil {
		return nil, err
	}
	w := files{inv: &inv, taken: map[string]bool{}}
	for _, f := range inv.WAL {
		if f.Kind == catalog.WALHistory {
			p.histories = append(p.histories, w.take(f)...)
		}
	}
	for _, b := range chain {
		s, err := c.step(ctx, b)
		if err != nil {
			return nil, err
		}
		needed, err := w.needed(b)
		if err != nil {
			return nil, err
		}
		s.data = append(s.data, needed...)
		p.steps = append(p.steps, s)
	}
	if o.Onward {
		rest, err := w.onward(chain)
		if err != nil {
			return nil, err
		}
		p.steps = append(p.steps, step{data: rest})
	}
	return p, c.compare(ctx, p)
}

// choose returns the backups that were asked for.
func (c *carrier) choose(ctx context.Context, inv *catalog.Inventory, which string) ([]catalog.Backup, error) {
	if which == "" {
		if len(inv.Backups) == 0 {
			return nil, fmt.Errorf("cannot copy %s: %w", c.From, catalog.ErrNoBackups)
		}
		return inv.Backups, nil
	}
	found, err := c.From.Catalog.Find(ctx, which)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(inv.Backups, func(b catalog.Backup) bool { return b.Name == found.Name })
	if i < 0 {
		return nil, fmt.Errorf("cannot copy backup %s: it was deleted meanwhile", found.Name)
	}
	return inv.Backups[i : i+1], nil
}

// withBases returns the backups given and all that they are based on, each after its base.
func withBases(inv *catalog.Inventory, chosen []catalog.Backup) ([]catalog.Backup, error) {
	byName := map[string]catalog.Backup{}
	for _, b := range inv.Backups {
		byName[b.Name] = b
	}
	var chain []catalog.Backup
	state := map[string]bool{} // false: its bases are being looked for
	var add func(b catalog.Backup) error
	add = func(b catalog.Backup) error {
		if done, met := state[b.Name]; met {
			if !done {
				return fmt.Errorf("cannot copy backup %s: it is based on itself", b.Name)
			}
			return nil
		}
		state[b.Name] = false
		if b.Problem != nil {
			return hint.With(fmt.Errorf("cannot copy backup %s: %w", b.Name, b.Problem), "name another one with --backup-name")
		}
		if b.Delta != nil {
			base, ok := byName[b.Delta.From]
			if !ok {
				return hint.With(fmt.Errorf("cannot copy backup %s: it is based on %q, which is not there", b.Name, b.Delta.From),
					"it cannot be restored; name another one with --backup-name")
			}
			if err := add(base); err != nil {
				return err
			}
		}
		state[b.Name] = true
		chain = append(chain, b)
		return nil
	}
	for _, b := range chosen {
		if err := add(b); err != nil {
			return nil, err
		}
	}
	return chain, nil
}

// complete fails if one of the backups could not be restored from the copy.
func complete(inv *catalog.Inventory, chosen []catalog.Backup, where string) error {
	coverage := inv.Coverage()
	var lacking []string
	var first error
	for _, b := range chosen {
		if err := coverage.Unrestorable(b); err != nil {
			lacking = append(lacking, b.Name)
			if first == nil {
				first = fmt.Errorf("backup %s cannot be restored: %w", b.Name, err)
			}
		}
	}
	if first == nil {
		return nil
	}
	advice := "name a complete one with --backup-name"
	if len(chosen) == 1 {
		advice = "`walden wal-show` shows what is missing; archive it with wal-push if the server still has it"
	} else if len(lacking) > 1 {
		advice += "; incomplete are " + strings.Join(lacking, ", ")
	}
	return hint.With(fmt.Errorf("cannot copy %s: %w", where, first), advice)
}

// identity is what the destination is to be told: which cluster the source belongs to, and which it belonged to.
func (c *carrier) identity(ctx context.Context, inv *catalog.Inventory) (catalog.Identity, error) {
	if inv.Identity.Current.SystemIdentifier != 0 {
		return inv.Identity, nil
	}
	id, err := c.From.Catalog.Belongs(ctx)
	if err == nil && id.Current.SystemIdentifier != 0 && id.Current.SegmentSize == 0 {
		id.Current.SegmentSize = inv.SegmentSize
	}
	return id, err
}

// step arranges what belongs to a backup.
func (c *carrier) step(ctx context.Context, b catalog.Backup) (step, error) {
	s := step{backup: b}
	stored, err := c.From.Catalog.Objects(ctx, b)
	if err != nil {
		return s, err
	}
	for _, o := range stored.Parts {
		s.data = append(s.data, object{o, sameSize})
	}
	for _, o := range stored.Documents {
		s.documents = append(s.documents, object{o, sameContent})
	}
	s.sentinel = &object{stored.Sentinel, sameContent}
	return s, nil
}

// files chooses among the WAL, each file once.
type files struct {
	inv   *catalog.Inventory
	taken map[string]bool // by object
}

// take returns a file's object, and what is said of the file beside it, unless it was taken before.
func (w *files) take(f catalog.WALFile) []object {
	o := f.Object()
	if w.taken[o.Key] {
		return nil
	}
	w.taken[o.Key] = true
	list := []object{{o, sameSize}}
	if f.Kind == catalog.WALHistory || f.Kind == catalog.WALBackupHistory || f.Kind == catalog.WALMetadata {
		list[0].known = sameContent
	}
	i, said := slices.BinarySearchFunc(w.inv.Fingerprints, f.Name, func(f catalog.WALFile, name string) int { return strings.Compare(f.Name, name) })
	if said && !w.taken[w.inv.Fingerprints[i].Object().Key] {
		fingerprint := w.inv.Fingerprints[i].Object()
		w.taken[fingerprint.Key] = true
		list = append([]object{{fingerprint, sameContent}}, list...) // as it was written before the file
	}
	return list
}

// needed returns the WAL from the start of a backup to its end, with what is stored beside it.
func (w *files) needed(b catalog.Backup) ([]object, error) {
	timeline, first, ok := b.First()
	if !ok || b.WALE != nil && b.WALE.Offline() {
		return nil, nil
	}
	last, ended := b.Last(w.inv.SegmentSize)
	if !ended {
		return nil, hint.With(fmt.Errorf("cannot copy backup %s: nothing tells which WAL it needs", b.Name),
			"where the WAL is encrypted, a configuration with the key can find out")
	}
	var list []object
	for _, f := range w.inv.WAL {
		if f.Timeline == timeline && f.Kind != catalog.WALHistory && f.Position >= first && f.Start() <= last {
			list = append(list, w.take(f)...)
		}
	}
	return list, nil
}

// onward returns all WAL from the first of the backups on that was not taken yet. It fails where the log has a gap: recovery from the
// copy would end there.
func (w *files) onward(chain []catalog.Backup) ([]object, error) {
	type from struct {
		timeline uint32
		first    catalog.Position
	}
	var starts []from
	for _, b := range chain {
		if timeline, first, ok := b.First(); ok {
			starts = append(starts, from{uint32(timeline), first})
		}
	}
	var list []object
	var last *catalog.WALFile
	for _, f := range w.inv.WAL {
		wanted := slices.ContainsFunc(starts, func(s from) bool { return uint32(f.Timeline) >= s.timeline && f.Position >= s.first })
		if !wanted || f.Kind == catalog.WALHistory {
			continue
		}
		if f.Kind == catalog.WALSegment {
			if w.inv.SegmentSize == 0 {
				return nil, hint.With(errors.New("cannot tell whether the WAL has a gap: nothing in the archive tells the size of its segments"),
					"where the WAL is encrypted, a configuration with the key can find out")
			}
			if last != nil && last.Timeline == f.Timeline && f.Position > last.Position && f.Position != last.Position.Next(w.inv.SegmentSize) {
				return nil, hint.With(fmt.Errorf("cannot copy the WAL onward: of timeline %d what follows %s is missing, up to %s", f.Timeline, last.Name, f.Name),
					"without --with-history each backup is copied with the WAL that it needs; --backup-name chooses one behind the gap")
			}
			last = &f
		}
		list = append(list, w.take(f)...)
	}
	return list, nil
}

// compare looks at what the destination holds, and refuses what cannot be brought together.
func (c *carrier) compare(ctx context.Context, p *plan) error {
	all := p.all()
	ours := keys(all)
	var err error
	if p.there, err = c.sizes(ctx, ours); err != nil {
		return err
	}
	mine := make(map[string]bool, len(ours))
	for _, key := range ours {
		mine[key] = true
	}
	for i := range p.steps {
		if p.steps[i].sentinel != nil {
			if err := c.compareBackup(ctx, p, &p.steps[i], mine); err != nil {
				return err
			}
		}
	}
	for _, o := range p.all() {
		if size, ok := p.there[o.Key]; ok && size != o.Size && o.known != anything && o.known != replaceable {
			return c.conflict(o.Key, "it has %d bytes, the one in %s has %d", size, c.From, o.Size)
		}
	}
	return c.compareWAL(ctx, p, mine)
}

// compareBackup looks at a backup that the destination has under the same name, complete or not.
func (c *carrier) compareBackup(ctx context.Context, p *plan, s *step, mine map[string]bool) error {
	folder := catalog.BackupFolder(s.backup.Name)
	_, listed := p.there[s.sentinel.Key]
	for key := range p.there {
		if !strings.HasPrefix(key, folder) || mine[key] {
			continue
		}
		switch {
		case catalog.IsMark(key) && listed, strings.Count(strings.TrimPrefix(key, folder), "/") == 0 && !catalog.IsMark(key):
			// A mark that was left behind does no harm, and other documents belong to the destination.
		case catalog.IsMark(key):
			return hint.With(fmt.Errorf("cannot copy backup %s: %s says that a backup of this name is being written or removed there", s.backup.Name, key),
				"if nobody does, `walden delete garbage BACKUPS` removes it, or choose another place")
		default:
			return hint.With(fmt.Errorf("cannot copy backup %s: %q in %s does not belong to it", s.backup.Name, key, c.To), "choose another place")
		}
	}
	for i, o := range s.documents {
		switch {
		case listed && o.Changes:
			s.documents[i].known = anything // it has been marked there, or proven
		case !listed:
			s.documents[i].known = replaceable // nobody can have read it, and it may have changed since the copy was cut off
		}
	}
	return nil
}

// compareWAL looks for files that both archives hold under different codecs. Two objects for one file would leave it to chance which of
// them is fetched, so the contents have to be equal, and then the destination's stays.
func (c *carrier) compareWAL(ctx context.Context, p *plan, mine map[string]bool) error {
	from, to := c.From.Catalog.WAL(), c.To.Catalog.WAL()
	theirs := map[string]string{}
	for key := range p.there {
		if strings.HasPrefix(key, catalog.WALFolder) && !mine[key] {
			theirs[to.FileName(key)] = key
		}
	}
	if len(theirs) == 0 {
		return nil
	}
	for i := range p.steps {
		for j, o := range p.steps[i].data {
			other, ok := theirs[from.FileName(o.Key)]
			if _, same := p.there[o.Key]; !ok || same || !strings.HasPrefix(o.Key, catalog.WALFolder) {
				continue
			}
			equal, err := from.SameFile(ctx, o.Key, to, other)
			if err != nil {
				return fmt.Errorf("cannot copy %q: %s holds that file as %q, and they cannot be compared: %w", o.Key, c.To, other, err)
			}
			if !equal {
				return c.conflict(other, "its content is not that of %q in %s", o.Key, c.From)
			}
			p.steps[i].data[j].known = anything
			p.there[o.Key] = o.Size
		}
	}
	return nil
}
