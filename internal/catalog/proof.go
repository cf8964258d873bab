package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// proofName is walden's own: when the backup was last proven. It goes with the backup's folder.
const proofName = "walden_proof.json"

// Proof is what is remembered of the last time that a backup was read to its end and found to be right.
type Proof struct {
	Time     time.Time `json:"time"`
	Walden   string    `json:"walden"` // version of the program
	Parts    int       `json:"parts"`
	Files    int       `json:"files"`
	Bytes    int64     `json:"bytes"`    // in the files
	Hashed   bool      `json:"hashed"`   // every file was compared with its recorded hash
	Pages    int64     `json:"pages"`    // whose checksums were verified
	Segments int       `json:"segments"` // of WAL
	Records  bool      `json:"records"`  // the WAL was followed record by record
}

// Prove remembers that a backup was proven.
func (c *Catalog) Prove(ctx context.Context, backup string, p Proof) error {
	b, err := json.Marshal(p)
	if err == nil {
		err = c.repo.PutPlain(ctx, backupDir(backup)+proofName, append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("cannot remember that backup %s was proven: %w", backup, err)
	}
	return nil
}

// Proof returns what is remembered of a backup; its time is zero if it was never proven, or nobody can tell.
func (c *Catalog) Proof(ctx context.Context, backup string) (Proof, error) {
	raw, err := c.repo.GetPlain(ctx, backupDir(backup)+proofName, maxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return Proof{}, nil
	}
	if err != nil {
		return Proof{}, fmt.Errorf("cannot read when backup %s was proven: %w", backup, err)
	}
	var p Proof
	if err := json.Unmarshal(raw, &p); err != nil {
		c.log.Warn("what is remembered of a proof cannot be read: the backup counts as never proven", "backup", backup, "error", err)
		return Proof{}, nil
	}
	return p, nil
}
