package crypt

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"gitlab.com/walden-pg/walden/pkg/secretstream"
)

// Sodium encrypts with libsodium's secretstream under one symmetric key, and decrypts with any of several.
type Sodium struct{ keys [][]byte }

// NewSodium returns the cipher that encrypts with the first key and decrypts with whichever fits. [ParseSodiumKey] makes keys.
func NewSodium(keys ...[]byte) (*Sodium, error) {
	if len(keys) == 0 {
		return nil, errors.New("there is no key")
	}
	for _, key := range keys {
		if len(key) != secretstream.KeySize {
			return nil, fmt.Errorf("a key has %d bytes, not %d", len(key), secretstream.KeySize)
		}
	}
	return &Sodium{keys}, nil
}

// ParseSodiumKey makes a key of its text by one of WAL-G's transforms: "none" takes the bytes of the text, at least 25,
// padded with zeros or cut to 32; "hex" and "base64" must spell exactly 32 bytes. White space around the text does not
// count. Errors never hold any of the text. Source: "WAL-G format", codecs and encryption, section 3.
func ParseSodiumKey(text, transform string) ([]byte, error) {
	const least = 25
	text = strings.TrimSpace(text)
	var key []byte
	var err error
	switch transform {
	case "none":
		if len(text) < least {
			return nil, fmt.Errorf("the key has %d bytes, and needs at least %d", len(text), least)
		}
		key = make([]byte, secretstream.KeySize)
		copy(key, text)
		return key, nil
	case "hex":
		key, err = hex.DecodeString(text)
	case "base64":
		key, err = base64.StdEncoding.DecodeString(text)
	default:
		return nil, fmt.Errorf("there is no transform %q of keys: none, hex and base64 are known", transform)
	}
	if err != nil {
		return nil, fmt.Errorf("the key is not valid %s", transform) // the decoder's error would quote a character of it
	}
	if len(key) != secretstream.KeySize {
		return nil, fmt.Errorf("the key has %d bytes after %s decoding, not %d", len(key), transform, secretstream.KeySize)
	}
	return key, nil
}

// Name returns "libsodium".
func (s *Sodium) Name() string { return "libsodium" }

// Encrypt encrypts into w.
func (s *Sodium) Encrypt(w io.Writer) (io.WriteCloser, error) {
	return secretstream.NewWriter(w, s.keys[0])
}

// Decrypt decrypts r.
func (s *Sodium) Decrypt(r io.Reader) (io.Reader, error) {
	return judged(r, func(r io.Reader) io.Reader { return secretstream.NewReader(r, s.keys...) }), nil
}

// recognises tells whether one of the keys authenticates the first chunk, which nobody can forge.
func (s *Sodium) recognises(head []byte) bool {
	var b [1]byte
	_, err := secretstream.NewReader(bytes.NewReader(head[:min(len(head), sodiumHead)]), s.keys...).Read(b[:])
	return err == nil || err == io.EOF
}

// sodiumHead is what a stream begins with at most before its second chunk, in bytes.
const sodiumHead = secretstream.HeaderSize + secretstream.ChunkSize + secretstream.Overhead

// String and GoString keep keys out of messages.
func (s *Sodium) String() string   { return s.Name() }
func (s *Sodium) GoString() string { return s.Name() }
