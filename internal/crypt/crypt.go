// Package crypt encrypts and decrypts byte streams. Objects are compressed first and encrypted then.
//
// Its nouns: a cipher ([Cipher]) is one way of encrypting, with its keys; a key service ([KeyService]) keeps a key that never
// leaves it and encrypts other keys; a rotation ([Rotation]) is the cipher in use together with those of before.
//
// Which cipher a stream must be of, the settings alone say. So a wrong key is an error and never silently wrong bytes, and what
// is not encrypted is never taken for what was. It promises that reading a stream to io.EOF proves it to be whole and as it was
// written. No error, and no String, shows anything of a key.
package crypt

import (
	"errors"
	"io"
	"strings"
)

var (
	// ErrDamaged is what every error unwraps to that blames the encrypted bytes: they were altered, cut off or extended, or are
	// not of the cipher and the keys that are given. An error of the reader below is returned as it is.
	ErrDamaged = errors.New("cannot be decrypted")

	// ErrNoSecretKey is returned for reading by ciphers that hold keys to encrypt with only.
	ErrNoSecretKey = errors.New("the OpenPGP key is a public one only, which encrypts but does not decrypt")
)

// Cipher is one way of encrypting a stream. It may be used by many goroutines at once.
type Cipher interface {
	// Name identifies the method in manifests and messages, for example "none".
	Name() string
	// Encrypt encrypts into w. Close writes the end of the stream, must be called even after a failed Write, and
	// does not close w.
	Encrypt(w io.Writer) (io.WriteCloser, error)
	// Decrypt decrypts r. A truncated, extended or altered stream is an error, and reading to io.EOF proves completeness.
	Decrypt(r io.Reader) (io.Reader, error)
}

// CanEncrypt is the reason why c does not encrypt, nil if there is none: a key that has expired, a service that is out of reach.
func CanEncrypt(c Cipher) error {
	w, err := c.Encrypt(io.Discard)
	if err != nil {
		return err
	}
	_, err = w.Write([]byte{0})
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	return err
}

// CanDecrypt is the reason why c decrypts nothing at all, nil if none is known without a stream.
func CanDecrypt(c Cipher) error {
	_, err := c.Decrypt(strings.NewReader(""))
	return err
}

// None leaves the bytes as they are.
type None struct{}

// Name returns "none".
func (None) Name() string { return "none" }

// Encrypt passes bytes through to w.
func (None) Encrypt(w io.Writer) (io.WriteCloser, error) { return nopCloser{w}, nil }

// Decrypt returns r itself.
func (None) Decrypt(r io.Reader) (io.Reader, error) { return r, nil }

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// verdicts reads a stream through a library and tells a failure of the reader below from the library's complaints.
type verdicts struct {
	below *remembered
	body  io.Reader
	err   error // the first error, or io.EOF; it stays
}

// judged returns what open makes of r, with all errors that are not those of r as [ErrDamaged].
func judged(r io.Reader, open func(io.Reader) io.Reader) io.Reader {
	below := &remembered{r: r}
	return &verdicts{below: below, body: open(below)}
}

// Read decrypts into p.
func (v *verdicts) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.body.Read(p)
	if err != nil {
		v.err = v.below.verdict(err)
	}
	return n, v.err
}

// remembered knows how its reader ended, which tells a failed read from a damaged stream.
type remembered struct {
	r   io.Reader
	err error
}

// Read reads on unless an earlier call has failed.
func (r *remembered) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.r.Read(p)
	r.err = err
	return n, err
}

// verdict says what an error above means: one of the reader, the stream's end, or damage.
func (r *remembered) verdict(err error) error {
	switch {
	case r.err != nil && r.err != io.EOF:
		return r.err
	case err == io.EOF:
		return io.EOF
	}
	return damaged{err}
}

// damaged is a reason for [ErrDamaged]. It has the reason's words only, since they say it better.
type damaged struct{ error }

// Unwrap gives the class and the reason.
func (d damaged) Unwrap() []error { return []error{ErrDamaged, d.error} }
