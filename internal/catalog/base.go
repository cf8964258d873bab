package catalog

import (
	"context"
	"fmt"
	"path"
	"time"
)

// Base is a backup, with its chain, that a delta can be taken against: its documents have been read, every file is whole in one of the
// backups of the chain, and all parts lie in the storage.
type Base struct {
	Backup Backup
	// Listing names every file that a restore of the backup leaves. Sizes are those of the whole files, -1 where they are not
	// recorded (WAL-G). Of the files PG_VERSION, which are written when a database's folder is, the times are known, too.
	Listing Listing
}

// Base reads what a delta has to know of the backup that it is to be based on.
func (c *Catalog) Base(ctx context.Context, b Backup) (Base, error) {
	chain, err := c.chain(ctx, b, true)
	if err != nil {
		return Base{}, err
	}
	if chain[0].Listing.Files == nil {
		return Base{}, fmt.Errorf("cannot base a delta on backup %s: it has no list of its files", b.Name)
	}
	return Base{b, chain[0].Listing}, nil
}

// mtimeForBase is what [Base] says of a file's time.
func mtimeForBase(name string, t time.Time) int64 {
	if path.Base(name) != versionFile || t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// versionFile is the name of the file that every folder of a database has.
const versionFile = "PG_VERSION"
