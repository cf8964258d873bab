package catalog

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// fingerprintDocument is walden_fingerprints/<file>.json. The salt keeps equal contents from being told by equal documents.
type fingerprintDocument struct {
	Version int    `json:"version"`
	Salt    []byte `json:"salt"`
	SHA256  []byte `json:"sha256"` // of the salt and the content
}

// ReadsBack tells whether what is archived now can be read with the keys that are given: not with a public key alone.
func (c *Catalog) ReadsBack() bool { return c.repo.ReadsBack() }

// Claim says by a salted digest what an archived file is to contain, for a writer that cannot read it back, before it archives the
// file: what write produces. If that was said before of the same content, claimed is true; if of another, the error is
// [ErrClaimedOtherwise]. With fresh false only an earlier claim is looked at.
func (w *WAL) Claim(ctx context.Context, name string, write func(io.Writer) error, fresh bool) (claimed bool, err error) {
	claimed, err = w.claimed(ctx, name, write)
	if claimed || err != nil || !fresh {
		return claimed, err
	}
	doc := fingerprintDocument{Version: 1, Salt: make([]byte, 16)}
	_, _ = rand.Read(doc.Salt) // never fails
	if doc.SHA256, err = doc.digest(write); err != nil {
		return false, err
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return false, err
	}
	err = w.c.repo.PutPlainNew(ctx, fingerprintName(name), append(b, '\n'))
	if errors.Is(err, storage.ErrExists) { // another process was faster
		return w.claimed(ctx, name, write)
	}
	if err != nil {
		return false, fmt.Errorf("cannot store the fingerprint of %s in %s: %w", name, w, err)
	}
	return false, nil
}

// claimed tells whether the content was claimed for the file before.
func (w *WAL) claimed(ctx context.Context, name string, write func(io.Writer) error) (bool, error) {
	raw, err := w.c.repo.GetPlain(ctx, fingerprintName(name), maxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot read the fingerprint of %s in %s: %w", name, w, err)
	}
	var doc fingerprintDocument
	if err := json.Unmarshal(raw, &doc); err != nil || len(doc.SHA256) != sha256.Size {
		return false, fmt.Errorf("cannot read the fingerprint of %s in %s: %s is not valid (%w)", name, w, fingerprintName(name), errors.Join(err, ErrDamaged))
	}
	sum, err := doc.digest(write)
	if err != nil {
		return false, err
	}
	if !bytes.Equal(sum, doc.SHA256) {
		return false, ErrClaimedOtherwise
	}
	return true, nil
}

func (d fingerprintDocument) digest(write func(io.Writer) error) ([]byte, error) {
	h := sha256.New()
	_, _ = h.Write(d.Salt) // a hash never fails
	if err := write(h); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

func fingerprintName(name string) string { return fingerprintsDir + name + ".json" }
