package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"gitlab.com/walden-pg/walden/internal/hint"
)

// Member is one backup of a chain, with what a restore takes from it.
type Member struct {
	Backup Backup
	// Listing names in Files what is taken from it, and in Parts the tars that hold it. Of the newest backup of the chain that is
	// everything, of the others only what the newer ones have as increments or not at all.
	Listing Listing
}

// errNoFiles says that nobody knows what a delta takes from other backups. Its tars alone would be restored to something that looks
// like a cluster.
func errNoFiles(b Backup) error {
	return hint.With(errors.New("it is a delta backup, and has no list of its files"),
		"without "+filesName+" it cannot be put together; restore another backup, "+listHint)
}

// Chain returns what a restore of b reads: b itself, then the backups that it is based on from the newest to the oldest, as far as
// files are needed from them. Everything that the documents say is checked: each file is found whole in one of the backups, all of
// them are of one cluster, and every part that is named lies in the storage.
func (c *Catalog) Chain(ctx context.Context, b Backup) ([]Member, error) {
	return c.chain(ctx, b, false)
}

func (c *Catalog) chain(ctx context.Context, b Backup, asBase bool) ([]Member, error) {
	l, err := c.list(ctx, b, nil, asBase)
	if err != nil {
		return nil, err
	}
	chain := []Member{{b, l}}
	if b.Delta == nil {
		return chain, nil
	}
	needed := newWants(l.Files)
	met := map[string]bool{b.Name: true}
	memory := l.Files.memory
	for child := b; needed.pending.n > 0; {
		base, err := c.base(ctx, child, met)
		if err != nil {
			return nil, fmt.Errorf("cannot use backup %s: %w", b.Name, err)
		}
		met[base.Name] = true
		if l, err = c.list(ctx, base, needed, false); err != nil {
			return nil, fmt.Errorf("cannot use backup %s, which is based on %s: %w", b.Name, base.Name, err)
		}
		if memory += l.Files.memory; memory > maxFilesMemory {
			return nil, fmt.Errorf("cannot use backup %s: the lists of files of the backups that it is based on take more than %d MiB of memory",
				b.Name, maxFilesMemory>>20)
		}
		chain = append(chain, Member{base, l})
		needed.descend()
		child = base
	}
	return chain, nil
}

// base finds the backup that a delta was taken against, and makes sure that it is the one.
func (c *Catalog) base(ctx context.Context, delta Backup, met map[string]bool) (Backup, error) {
	name := delta.Delta.From // a full backup would have every file
	switch {
	case name == "":
		return Backup{}, fmt.Errorf("%s is a delta backup, and does not say what it is based on", delta.Name)
	case !isBackupName(name):
		return Backup{}, fmt.Errorf("%s is based on %.100q, which is no name of a backup", delta.Name, name)
	case met[name]:
		return Backup{}, fmt.Errorf("%s is based on %s, which is based on it: a circle", delta.Name, name)
	}
	base, err := c.Find(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return Backup{}, hint.With(fmt.Errorf("%s is based on %s, which is not in %s", delta.Name, name, c),
			"without it the files cannot be put together; choose a backup with another base, "+listHint)
	}
	if err != nil {
		return Backup{}, fmt.Errorf("%s is based on %s: %w", delta.Name, name, err)
	}
	differ := func(format string, args ...any) (Backup, error) {
		return Backup{}, hint.With(fmt.Errorf("%s is based on %s, but not on the one in %s: %s", delta.Name, name, c, fmt.Sprintf(format, args...)),
			"another backup took its name; choose a backup with another base")
	}
	switch {
	case base.SystemIdentifier != 0 && delta.SystemIdentifier != 0 && base.SystemIdentifier != delta.SystemIdentifier:
		return differ("that is of cluster %d, the delta of %d", base.SystemIdentifier, delta.SystemIdentifier)
	case base.StartLSN != 0 && delta.Delta.LSN != 0 && base.StartLSN != delta.Delta.LSN:
		return differ("that began at %s, the delta has what changed since %s", base.StartLSN, delta.Delta.LSN)
	case base.StartLSN > delta.StartLSN:
		return differ("that began at %s, after the delta at %s", base.StartLSN, delta.StartLSN)
	case base.FinishLSN > delta.StartLSN:
		return differ("that ended at %s, after the delta began at %s", base.FinishLSN, delta.StartLSN)
	}
	return base, nil
}

// wants is what a chain still needs while its backups are read from the newest to the oldest. All positions are those in the list of
// the newest one, which names every file of the restored cluster. A nil one stands for the newest itself: it wants everything.
type wants struct {
	files   *Files
	pending positions // files that the newer backups do not have whole

	// Of the backup whose documents are being read:
	met     positions       // the pending files that it names
	next    positions       // those of them that it has not whole either
	covered positions       // the pending files that its sets of files place into a tar
	useful  map[string]bool // tars: whether one of the pending files is in it
}

func newWants(newest *Files) *wants {
	w := &wants{files: newest}
	for i, f := range newest.All() {
		if f.Stored != Whole {
			w.pending.add(i)
		}
	}
	return w
}

// begin forgets what was read of a backup's documents: reading begins, perhaps again.
func (w *wants) begin() {
	if w != nil {
		w.met, w.next, w.covered, w.useful = positions{}, positions{}, positions{}, map[string]bool{}
	}
}

// descend goes on to the backup on which the one that was read is based.
func (w *wants) descend() { w.pending = w.next }

// take is told how the backup has a file, and tells whether it is to be in its listing.
func (w *wants) take(name string, how Stored) bool {
	if w == nil {
		return true
	}
	i, _, ok := w.files.Find(name)
	if !ok || !w.pending.has(i) || w.met.has(i) {
		return false
	}
	w.met.add(i)
	if how != Whole {
		w.next.add(i)
	}
	return how != Elsewhere
}

// readSet reads the names of what is in a tar.
func (w *wants) readSet(d decoder, tar string) error {
	if w == nil {
		_, err := skipValue(d)
		return err
	}
	if _, listed := w.useful[tar]; !listed {
		w.useful[tar] = false
	}
	return eachItem(d, func() error {
		var name string
		if err := d.Decode(&name); err != nil {
			return err
		}
		if name, err := EntryName(name); err == nil {
			if i, _, ok := w.files.Find(name); ok && w.pending.has(i) {
				w.covered.add(i)
				w.useful[tar] = true
			}
		}
		return nil
	})
}

// satisfied fails if the backup does not name a file that a newer one takes from it. A full backup without a list of files may have
// any: what it lacks is found out when its tars have been read.
func (w *wants) satisfied(b Backup, l *Listing) error {
	if w == nil {
		return nil
	}
	if l.Files == nil {
		l.Files = &Files{}
		for i, f := range w.files.All() {
			if !w.pending.has(i) {
				continue
			}
			w.met.add(i)
			if _, err := l.Files.Add(File{Name: f.Name}); err != nil {
				return err
			}
		}
	}
	missing := w.pending.n - w.met.n
	if missing == 0 {
		return nil
	}
	for i, f := range w.files.All() {
		if w.pending.has(i) && !w.met.has(i) {
			return fmt.Errorf("it does not name %d files that are said to be in it, for example %q", missing, f.Name)
		}
	}
	return nil
}

// leaveOut takes the tars from the listing that hold nothing of what is wanted. Where the documents do not place every wanted file into
// a tar, all are kept.
func (w *wants) leaveOut(l *Listing) {
	if w == nil {
		return
	}
	l.Special = nil
	keep := map[string]bool{}
	for _, f := range l.Files.All() {
		if l.Hashed {
			if part := int(f.Part); part >= 0 && part < len(l.Parts) {
				keep[l.Parts[part].Name] = true
			}
		} else if i, _, _ := w.files.Find(f.Name); !w.covered.has(i) {
			return
		}
	}
	l.Parts = slices.DeleteFunc(l.Parts, func(p Part) bool {
		if l.Hashed || l.Files.Len() == 0 {
			return !keep[p.Name]
		}
		useful, listed := w.useful[p.Name]
		return listed && !useful
	})
}

// positions is a set of positions in a list of files.
type positions struct {
	bits []uint64
	n    int
}

func (p *positions) has(i int) bool { return i/64 < len(p.bits) && p.bits[i/64]&(1<<(i%64)) != 0 }

func (p *positions) add(i int) {
	if p.has(i) {
		return
	}
	for i/64 >= len(p.bits) {
		p.bits = append(p.bits, 0)
	}
	p.bits[i/64] |= 1 << (i % 64)
	p.n++
}
