package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// removedName is the mark of a backup whose removal has begun, walden's own: what is left of it, should the removal be cut off, is
// told by it from a backup that is being written.
const removedName = "walden_removed.json"

type removedDocument struct {
	Backup string    `json:"backup"`
	Time   time.Time `json:"time"`
}

// RemoveBackup removes a backup: its sentinel first, so that no backup is listed of which something is missing. While the sentinel
// cannot be removed, nothing else is, and gone is false. Called again, also for an [Unfinished] one, it completes what was cut off.
func (c *Catalog) RemoveBackup(ctx context.Context, name string) (gone bool, err error) {
	doc, err := json.Marshal(removedDocument{Backup: name, Time: time.Now().UTC()})
	if err != nil {
		return false, err
	}
	mark := backupDir(name) + removedName
	if err := c.repo.PutPlain(ctx, mark, append(doc, '\n')); err != nil {
		return false, fmt.Errorf("cannot mark backup %s in %s as removed: %w", name, c, err)
	}
	if err := c.repo.Delete(ctx, sentinelKey(name)); err != nil {
		return false, fmt.Errorf("cannot remove the sentinel of backup %s from %s: %w", name, c, err)
	}
	keys, err := c.below(ctx, name)
	if errors.Is(err, errNotListed) {
		keys, err = c.below(ctx, name)
	}
	if err == nil && len(keys) > 0 {
		if err = c.repo.Delete(ctx, keys...); err == nil {
			err = c.gone(ctx, name, keys)
		}
	}
	if err == nil {
		err = c.repo.Delete(ctx, mark)
	}
	if err != nil {
		return true, fmt.Errorf("cannot remove everything of backup %s from %s: %w", name, c, err)
	}
	return true, nil
}

// errNotListed: a listing cannot be believed, since it has not what was stored before.
var errNotListed = errors.New("the storage's listing lags behind: it has not the mark of the removal, which was stored before")

// below lists what a backup's folder holds besides the mark of its removal. A listing without the mark is not one of this folder as it is.
func (c *Catalog) below(ctx context.Context, name string) (keys []string, err error) {
	marked := false
	err = c.repo.Walk(ctx, backupDir(name), func(o storage.Object) {
		if o.Key == backupDir(name)+removedName {
			marked = true
			return
		}
		keys = append(keys, o.Key)
	})
	if err == nil && !marked {
		err = errNotListed
	}
	return keys, err
}

// gone fails if something is in a backup's folder besides the mark of its removal. What a listing has is looked at, and where the
// listing cannot be believed, all that was removed: listings may lag behind in either way.
func (c *Catalog) gone(ctx context.Context, name string, removed []string) error {
	keys, err := c.below(ctx, name)
	if errors.Is(err, errNotListed) {
		keys, err = removed, nil
	}
	for _, key := range keys {
		switch _, err := c.repo.Stat(ctx, key); {
		case err == nil:
			return fmt.Errorf("%q is still there", key)
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	return err
}

// Remove removes archived files, or what is stored beside them, in the order given.
func (w *WAL) Remove(ctx context.Context, files ...WALFile) error {
	var keys []string
	for _, f := range files {
		if f.key == "" {
			return errors.New("cannot remove " + f.Name + ": no listing has it")
		}
		keys = append(keys, f.key)
	}
	if len(keys) == 0 {
		return nil
	}
	if err := w.c.repo.Delete(ctx, keys...); err != nil {
		return fmt.Errorf("cannot remove WAL from %s: %w", w, err)
	}
	return nil
}

// RemoveIdentity makes the archive nobody's again.
func (c *Catalog) RemoveIdentity(ctx context.Context) error {
	if err := c.repo.Delete(ctx, identityName); err != nil {
		return fmt.Errorf("cannot remove the identity of %s: %w", c, err)
	}
	return nil
}
