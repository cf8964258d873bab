package crypt

import (
	"bytes"
	"errors"
	"io"
)

// Rotation encrypts with one cipher and decrypts what that one or any of several others has written. It tells them apart by
// the first bytes of a stream: by what only the right key makes of them (libsodium), by the key that a message is for (OpenPGP),
// by their form (key services).
type Rotation struct {
	Cipher
	readers []Cipher
}

// recogniser is a cipher that can be told by the first bytes of a stream, of which it gets headSize unless there are fewer.
type recogniser interface {
	Cipher
	recognises(head []byte) bool
}

// headSize is how much of a stream is looked at to tell its cipher, in bytes. Ahead of an OpenPGP message stand about 500 bytes
// for each recipient.
const headSize = 16 << 10

// NewRotation returns the cipher that encrypts with now. [None] among the earlier ones means that what none of the others knows
// is not encrypted: then somebody who can write to the storage can have walden read what he likes, and only whoever gives the
// settings can say that this is all right. Nil for now means that nothing may be encrypted any more.
func NewRotation(now Cipher, earlier ...Cipher) *Rotation {
	r := &Rotation{Cipher: now}
	if now == nil {
		r.Cipher = readOnly{}
	} else {
		r.readers = append(r.readers, now)
	}
	r.readers = append(r.readers, earlier...)
	return r
}

// ReadsBack tells whether a cipher decrypts what it encrypts itself: not with a public key alone, also where earlier keys decrypt.
func ReadsBack(c Cipher) bool {
	if r, ok := c.(*Rotation); ok {
		c = r.Cipher
	}
	return CanDecrypt(c) == nil
}

// Decrypt decrypts r.
func (c *Rotation) Decrypt(r io.Reader) (io.Reader, error) {
	var reasons []error
	for _, reader := range c.readers {
		if err := CanDecrypt(reader); err != nil {
			reasons = append(reasons, err)
		}
	}
	if len(reasons) == len(c.readers) {
		return nil, errors.Join(reasons...)
	}
	return &choosing{rotation: c, below: &remembered{r: r}}, nil
}

// choose finds the cipher of a stream.
func (c *Rotation) choose(head []byte) (Cipher, error) {
	for _, reader := range c.readers {
		if known, ok := reader.(recogniser); ok && known.recognises(head) {
			return reader, nil
		}
	}
	for _, reader := range c.readers {
		if plain, ok := reader.(None); ok {
			return plain, nil
		}
	}
	return nil, damaged{errors.New("it was encrypted with none of the keys that are given, was not encrypted at all, or is damaged")}
}

// String and GoString keep keys out of messages.
func (c *Rotation) String() string   { return c.Name() }
func (c *Rotation) GoString() string { return c.Name() }

// choosing is one stream being decrypted.
type choosing struct {
	rotation *Rotation
	below    *remembered
	body     io.Reader
	err      error // of the choice; it stays
}

// Read decrypts into p. The first call chooses the cipher.
func (d *choosing) Read(p []byte) (int, error) {
	if d.body == nil && d.err == nil {
		d.body, d.err = d.begin()
	}
	if d.err != nil {
		return 0, d.err
	}
	return d.body.Read(p)
}

func (d *choosing) begin() (io.Reader, error) {
	head := make([]byte, headSize)
	n, err := io.ReadFull(d.below, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	head = head[:n]
	c, err := d.rotation.choose(head)
	if err != nil {
		return nil, err
	}
	body, err := c.Decrypt(io.MultiReader(bytes.NewReader(head), d.below))
	if err != nil {
		return nil, damaged{err}
	}
	return body, nil
}

// readOnly refuses to encrypt.
type readOnly struct{ None }

// Encrypt refuses.
func (readOnly) Encrypt(io.Writer) (io.WriteCloser, error) { return nil, ErrNoKey }

// ErrNoKey is returned for writing where keys to decrypt with are given only.
var ErrNoKey = errors.New("there are earlier keys only, which decrypt, and no key to encrypt with")
