package transfer

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage"
)

// MoveOptions choose what [Move] and [MoveBackups] move, and how.
type MoveOptions struct {
	Prefix     string // for Move: an object, or a folder with all that is below it
	Backup     string // for MoveBackups: its name; "" is all
	Overwrite  bool   // replace what the destination has under the same name
	Preserve   bool   // leave what was moved at the source
	FailFast   bool   // end with the first object that cannot be moved, instead of going on with the others
	MaxFiles   int    // objects that are moved at most; 0 is no limit
	MaxBackups int    // backups that are moved at most; 0 is no limit

	// Checks is how often an object is looked for at the destination, Interval the time between two looks.
	Checks   int
	Interval time.Duration
}

// ProbePrefix begins the names of objects that only try a storage (WAL-G format, "Failover storages"). Readers ignore them.
const ProbePrefix = "wal-g_storage_check"

// Move moves objects whatever they are for. Each one leaves the source when the destination has it: when it was read there and found to
// be the same. One that the destination has already leaves the source, too; if it has other content, it stays and is an error, unless
// Overwrite is set.
func Move(ctx context.Context, d Deps, o MoveOptions) (Report, error) {
	c := newCarrier(d)
	if err := c.distinct(ctx); err != nil {
		return c.report, err
	}
	found, err := Under(ctx, d.From, o.Prefix)
	if errors.Is(err, fs.ErrNotExist) {
		c.Log.Info("nothing to move", "prefix", o.Prefix, "from", c.From)
		return c.report, nil
	}
	if err != nil {
		return c.report, err
	}
	found = slices.DeleteFunc(found, func(o storage.Object) bool { return strings.HasPrefix(o.Key, ProbePrefix) })
	if o.MaxFiles > 0 && len(found) > o.MaxFiles {
		found = found[:o.MaxFiles]
	}
	var objects []object
	total := int64(0)
	for _, f := range found {
		objects = append(objects, c.moved(catalog.StoredObject{Key: f.Key, Size: f.Size}, o))
		total += f.Size
	}
	if err := c.goTogether(ctx, found); err != nil {
		return c.report, err
	}
	there, err := c.sizes(ctx, keys(objects))
	if err != nil {
		return c.report, err
	}
	c.Progress.Begin(total)
	defer c.Progress.End()
	return c.report, c.each(ctx, objects, o, func(ctx context.Context, one object) error {
		if err := c.bring(ctx, one, there, o); err != nil || o.Preserve {
			return err
		}
		return c.leave(ctx, one)
	})
}

// moved is an object that is to be moved.
func (c *carrier) moved(s catalog.StoredObject, o MoveOptions) object {
	if o.Overwrite {
		return object{s, replaceable}
	}
	return object{s, sameContent}
}

// each calls do for objects, several at a time. It goes on after a failure, unless that is not wanted.
func (c *carrier) each(ctx context.Context, objects []object, o MoveOptions, do func(context.Context, object) error) error {
	g, group := errgroup.WithContext(ctx)
	g.SetLimit(c.Workers)
	var failed []error
	for _, one := range objects {
		if group.Err() != nil {
			break
		}
		g.Go(func() error {
			err := do(group, one)
			if err == nil || o.FailFast || ctx.Err() != nil {
				return err
			}
			c.Log.Error("cannot move an object; going on with the others", "object", one.Key, "error", err)
			c.mu.Lock()
			defer c.mu.Unlock()
			failed = append(failed, err)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if len(failed) > 0 {
		return fmt.Errorf("cannot move %d of %d objects, which stay in %s: %w", len(failed), len(objects), c.From, errors.Join(failed[:min(len(failed), 10)]...))
	}
	return nil
}

// bring carries an object, and proves that the destination has it.
func (c *carrier) bring(ctx context.Context, o object, there map[string]int64, m MoveOptions) error {
	hash, err := c.carry(ctx, o, there)
	if err != nil {
		return err
	}
	if err := c.appears(ctx, o.Key, m); err != nil {
		return err
	}
	if hash == "" { // it was compared by nothing but its size
		read, err := c.From.Repo.Hash(ctx, o.Key, repo.Layers{})
		if err != nil {
			return err
		}
		hash = hex.EncodeToString(read.SHA256[:])
	}
	back, err := c.To.Repo.Hash(ctx, o.Key, repo.Layers{})
	if err != nil {
		return fmt.Errorf("cannot read %q back: %w", o.Key, err)
	}
	if hex.EncodeToString(back.SHA256[:]) != hash {
		return c.conflict(o.Key, "what is read back is not what was read in %s", c.From)
	}
	return nil
}

// appears waits until the destination says that it has an object.
func (c *carrier) appears(ctx context.Context, key string, m MoveOptions) error {
	for check := 1; ; check++ {
		_, err := c.To.Repo.Stat(ctx, key)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if check >= m.Checks {
			return hint.With(fmt.Errorf("%s has confirmed %q and does not show it: %w", c.To, key, err),
				"it stays where it was; --appearance-checks and --appearance-checks-interval set how long is waited")
		}
		timer := time.NewTimer(m.Interval)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// leave removes an object at the source, unless it is another one by now.
func (c *carrier) leave(ctx context.Context, o object) error {
	now, err := c.From.Repo.Stat(ctx, o.Key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case now.Size != o.Size:
		return fmt.Errorf("%q in %s was replaced while it was moved: it stays", o.Key, c.From)
	}
	if err := c.From.Repo.Delete(ctx, o.Key); err != nil {
		return err
	}
	c.mu.Lock()
	c.report.Removed.add(o.Size)
	c.mu.Unlock()
	return nil
}

// distinct proves that the ends are two places, whatever their names say: what is removed at one must not be what was found at the other.
func (c *carrier) distinct(ctx context.Context) error {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	probe := ProbePrefix + "_" + hex.EncodeToString(random[:])
	if err := c.To.Repo.PutPlain(ctx, probe, random[:]); err != nil {
		return fmt.Errorf("cannot write to %s: %w", c.To, err)
	}
	_, err := c.From.Repo.Stat(ctx, probe)
	if derr := c.To.Repo.Delete(ctx, probe); derr != nil {
		c.Log.Warn("an object that only tried the storage is left behind; it does no harm", "object", probe, "in", c.To, "error", derr)
	}
	switch {
	case err == nil:
		return hint.With(fmt.Errorf("cannot move anything: %s and %s are the same place", c.From, c.To), "look at what the settings of both name")
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return nil
}

// MoveBackups moves backups, the oldest first: the sentinel arrives last and leaves first, so that what is listed is complete at both
// ends. What a backup is based on arrives before it, and leaves only when nothing at the source is based on it any more.
func MoveBackups(ctx context.Context, d Deps, o MoveOptions) (Report, error) {
	c := newCarrier(d)
	if err := c.distinct(ctx); err != nil {
		return c.report, err
	}
	inv, err := d.From.Catalog.Inventory(ctx)
	if err != nil {
		return c.report, err
	}
	if err := c.finish(ctx, &inv, o); err != nil {
		return c.report, err
	}
	chosen, err := c.toMove(ctx, &inv, o)
	if err != nil || len(chosen) == 0 {
		return c.report, err
	}
	chain, err := withBases(&inv, chosen)
	if err != nil {
		return c.report, err
	}
	id, err := c.identity(ctx, &inv)
	if err == nil {
		err = c.To.Catalog.Adopt(ctx, id)
	}
	if err != nil {
		return c.report, err
	}
	steps, err := c.toBring(ctx, chain, chosen, o)
	if err != nil {
		return c.report, err
	}
	p := &plan{steps: steps}
	if p.there, err = c.sizes(ctx, keys(p.all())); err != nil {
		return c.report, err
	}
	c.Progress.Begin(p.size())
	defer c.Progress.End()
	for _, s := range steps {
		for _, objects := range [][]object{s.data, s.documents, {*s.sentinel}} {
			err := c.each(ctx, objects, o, func(ctx context.Context, one object) error { return c.bring(ctx, one, p.there, o) })
			if err != nil {
				return c.report, fmt.Errorf("cannot move backup %s: %w", s.backup.Name, err)
			}
		}
		c.report.Backups = append(c.report.Backups, s.backup.Name)
		c.Log.Info("copied backup", "backup", s.backup.Name, "to", c.To)
	}
	if o.Preserve {
		return c.report, nil
	}
	return c.report, c.leaveBackups(ctx, &inv, chosen, steps)
}

// finish completes what a call that was cut off has left at the source of backups that the destination has: their sentinels are gone
// there, so that they are not listed, and their folders bear the mark of a removal.
func (c *carrier) finish(ctx context.Context, inv *catalog.Inventory, o MoveOptions) error {
	for _, u := range inv.Unfinished {
		if !u.Removed || o.Preserve || o.Backup != "" && o.Backup != u.Name {
			continue
		}
		_, err := c.To.Repo.Stat(ctx, catalog.SentinelKey(u.Name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			_, err = c.From.Catalog.RemoveBackup(ctx, u.Name)
		}
		if err != nil {
			return err
		}
		c.report.Backups = append(c.report.Backups, u.Name)
		c.Log.Info("completed the move of a backup that was cut off", "backup", u.Name)
	}
	return nil
}

// toMove returns the backups that are to leave the source.
func (c *carrier) toMove(ctx context.Context, inv *catalog.Inventory, o MoveOptions) ([]catalog.Backup, error) {
	if o.Backup == "" {
		chosen := inv.Backups
		if o.MaxBackups > 0 && len(chosen) > o.MaxBackups {
			chosen = chosen[:o.MaxBackups]
		}
		if len(chosen) == 0 && len(c.report.Backups) == 0 {
			c.Log.Info("nothing to move: there are no backups", "from", c.From)
		}
		return chosen, nil
	}
	if slices.Contains(c.report.Backups, o.Backup) {
		return nil, nil
	}
	chosen, err := c.choose(ctx, inv, o.Backup)
	if err != nil {
		return nil, err
	}
	for _, b := range inv.Backups {
		if !o.Preserve && b.Delta != nil && b.Delta.From == chosen[0].Name {
			return nil, hint.With(fmt.Errorf("cannot move backup %s: %s is based on it", chosen[0].Name, b.Name),
				"move that one first; without a name all backups are moved, and --preserve leaves them where they are")
		}
	}
	return chosen, nil
}

// toBring arranges what is to arrive. It ends before the backup with which there would be too many objects.
func (c *carrier) toBring(ctx context.Context, chain, chosen []catalog.Backup, o MoveOptions) ([]step, error) {
	var steps []step
	files := 0
	for _, b := range chain {
		s, err := c.step(ctx, b)
		if err != nil {
			return nil, err
		}
		if files += len(s.data) + len(s.documents) + 1; o.MaxFiles > 0 && files > o.MaxFiles {
			if len(steps) == 0 {
				return nil, hint.With(fmt.Errorf("cannot move backup %s: it has %d objects, and no more than %d are to be moved", b.Name, files, o.MaxFiles),
					"raise --max-files: a backup is moved as a whole")
			}
			c.Log.Info("the limit of objects is reached; the same command again moves the next backups", "next", b.Name)
			break
		}
		for _, list := range [][]object{s.data, s.documents} {
			for i := range list {
				list[i] = c.moved(list[i].StoredObject, o)
			}
		}
		*s.sentinel = c.moved(s.sentinel.StoredObject, o)
		steps = append(steps, s)
	}
	return steps, nil
}

// leaveBackups removes at the source what has arrived, the newest first, so that no backup ever lacks its base.
func (c *carrier) leaveBackups(ctx context.Context, inv *catalog.Inventory, chosen []catalog.Backup, arrived []step) error {
	left := slices.Clone(inv.Backups)
	for _, s := range slices.Backward(arrived) {
		b := s.backup
		if !slices.ContainsFunc(chosen, func(one catalog.Backup) bool { return one.Name == b.Name }) {
			c.Log.Info("the base of a backup that was moved stays, and is at both places now", "backup", b.Name, "from", c.From)
			continue
		}
		if i := slices.IndexFunc(left, func(other catalog.Backup) bool { return other.Delta != nil && other.Delta.From == b.Name }); i >= 0 {
			c.Log.Info("the backup stays, and is at both places now: another one is based on it", "backup", b.Name, "delta", left[i].Name)
			continue
		}
		if _, err := c.From.Catalog.RemoveBackup(ctx, b.Name); err != nil {
			return err
		}
		for _, o := range slices.Concat(s.data, s.documents, []object{*s.sentinel}) {
			c.report.Removed.add(o.Size)
		}
		left = slices.DeleteFunc(left, func(other catalog.Backup) bool { return other.Name == b.Name })
	}
	return nil
}
