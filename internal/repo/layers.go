package repo

import (
	"context"
	"errors"
	"io"

	"gitlab.com/walden-pg/walden/internal/crypt"
)

// Layers are what lies around an object's contents. Who handles objects without knowing what they are for says with them which are put
// around what is written, or taken off what is read; none leaves the bytes as they are.
type Layers struct {
	Compressed bool // by the repo's codec in writing, by the extension of the object's name in reading
	Encrypted  bool
}

// OpenLayers opens an object, named with its extension, for reading what is within the layers given. As with [Repo.Open], io.EOF comes
// only after a complete object.
func (r *Repo) OpenLayers(ctx context.Context, object string, off Layers) (io.ReadCloser, error) {
	if off == (Layers{}) {
		return r.store.Get(ctx, object)
	}
	body, err := r.store.Get(ctx, object)
	if err != nil {
		return nil, err
	}
	decoder, cipher := r.plain, crypt.Cipher(crypt.None{})
	if off.Compressed {
		decoder = r.decoder(object)
	}
	if off.Encrypted {
		cipher = r.cipher
	}
	return r.unsealWith(object, body, body, decoder, cipher)
}

// PutLayers stores what write produces under name, with the codec's extension if it is compressed, within the layers given. Where the
// name is taken the error is storage.ErrExists, unless replace is true. write may be called again, see [Repo.Put].
func (r *Repo) PutLayers(ctx context.Context, name string, on Layers, replace bool, write func(io.Writer) error) (Sealed, error) {
	t := target{name, r.store.PutNew, r.plain, crypt.None{}}
	if replace {
		t.store = r.store.Put
	}
	if on.Compressed {
		t.object, t.codec = name+r.codec.Extension(), r.codec
	}
	if on.Encrypted {
		t.cipher = r.cipher
	}
	return r.put(ctx, t, write)
}

// Hash reads what is within the layers given of a stored object, and returns its size in bytes and its hash. It begins again when the
// storage fails in the middle.
func (r *Repo) Hash(ctx context.Context, object string, off Layers) (s Sealed, err error) {
	err = r.Again(ctx, object, func() (bool, error) {
		body, err := r.OpenLayers(ctx, object, off)
		if err != nil {
			return false, err // opening is repeated by the store, see storage.WithRetry
		}
		s, err = measure(object, body)
		err = errors.Join(err, body.Close())
		return !damaged(err), err
	})
	return s, err
}
