package crypt

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/minio/sio"
)

// KeyService keeps a key that never leaves it, with which it encrypts and decrypts other keys.
type KeyService interface {
	// Name identifies the service in manifests and messages, for example "aws-kms".
	Name() string
	// Encrypt returns a key in the form that the service decrypts again.
	Encrypt(ctx context.Context, key []byte) ([]byte, error)
	// Decrypt returns the key. The error is [ErrDamaged] if the service says that it has encrypted nothing like this.
	Decrypt(ctx context.Context, encrypted []byte) ([]byte, error)
}

// Sizes of the frame, in bytes. Source: "WAL-G format", codecs and encryption, section 5.
const (
	dataKeySize      = 32
	encryptedKeySize = 184 // what AWS makes of a data key
	dareHeaderSize   = 16
)

// serviceLimit bounds one question to the service, repetitions included.
const serviceLimit = time.Minute

// Envelope encrypts with a data key of its own, and writes that ahead of each stream as the key service has encrypted it.
//
// A stream is the encrypted data key of 184 bytes, then packages of the format DARE 2.0, which minio/sio implements: packages of
// 64 KiB, numbered, the last one marked, each of them authenticated.
type Envelope struct {
	ctx     context.Context // of the run, since the methods of a Cipher have none
	service KeyService

	mu        sync.Mutex
	key       []byte // for writing, made at the first use
	encrypted []byte // key as the service has encrypted it
	keys      map[[sha256.Size]byte][]byte
}

// NewEnvelope returns the cipher. Nothing is asked of the service before there is something to encrypt or decrypt; ctx bounds
// all of that.
func NewEnvelope(ctx context.Context, service KeyService) *Envelope {
	return &Envelope{ctx: ctx, service: service, keys: map[[sha256.Size]byte][]byte{}}
}

// Name returns the service's name.
func (e *Envelope) Name() string { return e.service.Name() }

// Encrypt encrypts into w. The first call has the service encrypt the data key.
func (e *Envelope) Encrypt(w io.Writer) (io.WriteCloser, error) {
	key, encrypted, err := e.dataKey()
	if err != nil {
		return nil, err
	}
	return &enveloping{w: w, key: key, head: encrypted}, nil
}

func (e *Envelope) dataKey() (key, encrypted []byte, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.key != nil {
		return e.key, e.encrypted, nil
	}
	key = make([]byte, dataKeySize)
	rand.Read(key) // never fails
	ctx, cancel := context.WithTimeout(e.ctx, serviceLimit)
	defer cancel()
	encrypted, err = e.service.Encrypt(ctx, key)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot encrypt a data key: %w", err)
	}
	if len(encrypted) != encryptedKeySize {
		return nil, nil, fmt.Errorf("cannot use the data key that the service has encrypted: it has %d bytes, and archives have room for exactly %d; "+
			"the service's key must be a symmetric one", len(encrypted), encryptedKeySize)
	}
	e.key, e.encrypted = key, encrypted
	return key, encrypted, nil
}

// config allows DARE 2.0 only: packages of version 1.0 can be cut off without anybody's noticing.
func dare(key []byte) sio.Config {
	return sio.Config{MinVersion: sio.Version20, MaxVersion: sio.Version20, Key: key}
}

// enveloping is one stream being encrypted.
type enveloping struct {
	w    io.Writer
	key  []byte
	head []byte // to be written first; nil once it is
	body io.WriteCloser
	err  error // the first error; it stays
}

var errClosed = errors.New("the stream is closed")

// begin writes the encrypted data key once.
func (e *enveloping) begin() error {
	if e.err != nil || e.body != nil {
		return e.err
	}
	if _, e.err = e.w.Write(e.head); e.err == nil {
		e.body, e.err = sio.EncryptWriter(nopCloser{e.w}, dare(e.key)) // which would close w
	}
	return e.err
}

// Write encrypts p.
func (e *enveloping) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, e.err
	}
	if err := e.begin(); err != nil {
		return 0, err
	}
	n, err := e.body.Write(p)
	e.err = err
	return n, err
}

// Close writes the last package. After a failed Write it returns that error.
func (e *enveloping) Close() error {
	switch {
	case errors.Is(e.err, errClosed):
		return nil
	case e.err == nil && e.body == nil:
		// It would be a data key and nothing else, like any stream that was cut off behind it.
		e.err = errors.New("an empty stream has no form in DARE 2.0")
	}
	if e.err != nil {
		return e.err
	}
	if e.err = e.body.Close(); e.err != nil {
		return e.err
	}
	e.err = errClosed
	return nil
}

// Decrypt decrypts r.
func (e *Envelope) Decrypt(r io.Reader) (io.Reader, error) {
	return &opening{envelope: e, below: &remembered{r: r}}, nil
}

// opening is one stream being decrypted.
type opening struct {
	envelope *Envelope
	below    *remembered
	body     io.Reader
	err      error // the first error, or io.EOF; it stays
}

// Read decrypts into p. The first call has the service decrypt the data key.
func (d *opening) Read(p []byte) (int, error) {
	if d.err != nil || len(p) == 0 {
		return 0, d.err
	}
	if d.body == nil {
		if d.body, d.err = d.begin(); d.err != nil {
			return 0, d.err
		}
	}
	n, err := d.body.Read(p)
	if err != nil {
		d.err = d.below.verdict(err)
	}
	return n, d.err
}

func (d *opening) begin() (io.Reader, error) {
	head := make([]byte, encryptedKeySize+1)
	if _, err := io.ReadFull(d.below, head); err != nil {
		return nil, d.below.verdict(errors.New("the stream is cut off"))
	}
	encrypted, first := head[:encryptedKeySize], head[encryptedKeySize:]
	if first[0] != sio.Version20 { // so that the service is not bothered with what cannot be its own
		return nil, damaged{errors.New("no encrypted stream follows the place of the data key")}
	}
	key, err := d.envelope.open(encrypted)
	if err != nil {
		return nil, err
	}
	body, err := sio.DecryptReader(io.MultiReader(bytes.NewReader(first), d.below), dare(key))
	if err != nil {
		return nil, fmt.Errorf("cannot use the data key that the service has decrypted: %w", err)
	}
	return body, nil
}

// open returns the data key of a stream. All streams of one run of a program have the same.
func (e *Envelope) open(encrypted []byte) ([]byte, error) {
	name := sha256.Sum256(encrypted)
	e.mu.Lock()
	defer e.mu.Unlock()
	if key := e.keys[name]; key != nil {
		return key, nil
	}
	ctx, cancel := context.WithTimeout(e.ctx, serviceLimit)
	defer cancel()
	key, err := e.service.Decrypt(ctx, encrypted)
	if err != nil {
		return nil, fmt.Errorf("cannot decrypt the data key: %w", err)
	}
	if len(key) != dataKeySize {
		return nil, damaged{fmt.Errorf("the data key has %d bytes, not %d", len(key), dataKeySize)}
	}
	e.keys[name] = key
	return key, nil
}

// recognises tells whether the stream has the form of an envelope.
func (e *Envelope) recognises(head []byte) bool {
	if len(head) < encryptedKeySize+dareHeaderSize {
		return false
	}
	dare := head[encryptedKeySize:]
	return dare[0] == sio.Version20 && (dare[1] == sio.AES_256_GCM || dare[1] == sio.CHACHA20_POLY1305)
}

// String and GoString keep keys out of messages.
func (e *Envelope) String() string   { return e.Name() }
func (e *Envelope) GoString() string { return e.Name() }
