// Package crypt encrypts and decrypts byte streams. Objects are compressed first and encrypted then.
//
// Nothing in an object tells how it is encrypted: the settings alone do, so that a wrong key is an error and never
// silently wrong bytes.
package crypt

import "io"

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
