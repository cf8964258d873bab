package repo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"gitlab.com/walden-pg/walden/internal/codec"
	"gitlab.com/walden-pg/walden/internal/crypt"
)

// Open opens an object, named with its extension, for reading what was written into it. io.EOF comes only after a
// complete object. Errors that blame its bytes are codec.ErrDamaged, those of the cipher too; errors of the storage are
// returned as they are.
func (r *Repo) Open(ctx context.Context, object string) (io.ReadCloser, error) {
	body, err := r.store.Get(ctx, object)
	if err != nil {
		return nil, err
	}
	return r.unseal(object, body, body)
}

// OpenSealed is Open with measuring: see [Reader.Sealed].
func (r *Repo) OpenSealed(ctx context.Context, object string) (*Reader, error) {
	body, err := r.store.Get(ctx, object)
	if err != nil {
		return nil, err
	}
	raw := &hashingReader{r: body, hash: sha256.New()}
	opened, err := r.unseal(object, raw, body)
	if err != nil {
		return nil, err
	}
	return &Reader{object: object, opened: opened, raw: raw}, nil
}

// unseal decrypts and decompresses raw. Closing the result closes body.
func (r *Repo) unseal(object string, raw io.Reader, body io.Closer) (*opened, error) {
	return r.unsealWith(object, raw, body, r.decoder(object), r.cipher)
}

func (r *Repo) unsealWith(object string, raw io.Reader, body io.Closer, decoder codec.Codec, cipher crypt.Cipher) (*opened, error) {
	decrypted, err := cipher.Decrypt(raw)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot decrypt %q from %s: %w", object, r.store, err), body.Close())
	}
	plain, err := decoder.NewReader(undecrypted{decrypted})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot decompress %q from %s: %w", object, r.store, err), body.Close())
	}
	return &opened{plain: plain, body: body, what: fmt.Sprintf("cannot read %q from %s", object, r.store)}, nil
}

// undecrypted gives the cipher's complaints of an object's bytes the class that callers know.
type undecrypted struct{ r io.Reader }

func (u undecrypted) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if errors.Is(err, crypt.ErrDamaged) {
		err = fmt.Errorf("%w: %w", codec.ErrDamaged, err)
	}
	return n, err
}

// opened is an object being read.
type opened struct {
	plain io.ReadCloser
	body  io.Closer
	what  string // for messages
}

func (o *opened) Read(p []byte) (int, error) {
	n, err := o.plain.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%s: %w", o.what, err)
	}
	return n, err
}

// WriteTo writes whole blocks of the codec, which saves a copy.
func (o *opened) WriteTo(w io.Writer) (int64, error) {
	n, err := io.Copy(w, o.plain)
	if err != nil {
		err = fmt.Errorf("%s: %w", o.what, err)
	}
	return n, err
}

func (o *opened) Close() error {
	if o.body == nil {
		return nil
	}
	body := o.body
	o.body = nil
	err := o.plain.Close()
	if cerr := body.Close(); err == nil {
		err = cerr
	}
	return err
}

// Reader is an object being read and measured. Those who wrap it to check what was measured can rely on Read being
// the only way to its bytes.
type Reader struct {
	object string
	opened *opened
	raw    *hashingReader
	plain  int64
	err    error // io.EOF once the object was read to the end of its stored bytes
}

// Read reads what was written into the object. Before io.EOF, all stored bytes have been read and hashed.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.opened.Read(p)
	r.plain += int64(n)
	if err == io.EOF {
		if _, derr := io.Copy(io.Discard, r.raw); derr != nil {
			err = fmt.Errorf("%s: %w", r.opened.what, derr)
		}
	}
	r.err = err
	return n, err
}

// Close closes the object.
func (r *Reader) Close() error { return r.opened.Close() }

// Sealed returns size and hash of the stored object for comparison with what was measured when it was written. It
// fails before Read has returned io.EOF.
func (r *Reader) Sealed() (Sealed, error) {
	if r.err != io.EOF {
		return Sealed{}, fmt.Errorf("%s: its hash is unknown before its end was read", r.opened.what)
	}
	s := Sealed{Object: r.object, Size: r.raw.n, PlainSize: r.plain}
	r.raw.hash.Sum(s.SHA256[:0])
	return s, nil
}

// hashingReader hashes and counts the stored bytes.
type hashingReader struct {
	r    io.Reader
	hash hash.Hash
	n    int64
}

func (h *hashingReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.n += int64(n)
	_, _ = h.hash.Write(p[:n])
	return n, err
}
