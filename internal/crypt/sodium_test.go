package crypt

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestKeysAreMadeAsWALGMakesThem(t *testing.T) {
	t.Parallel()
	raw := []byte("0123456789abcdef0123456789abcdef")
	short := append([]byte("0123456789abcdef012345678"), make([]byte, 7)...)
	for _, c := range []struct {
		name, text, transform string
		want                  []byte
	}{
		{"as it is", string(raw), "none", raw},
		{"white space around it", " \n" + string(raw) + "\r\n", "none", raw},
		{"padded with zeros", "0123456789abcdef012345678", "none", short},
		{"cut", string(raw) + "more", "none", raw},
		{"hex", hex.EncodeToString(raw), "hex", raw},
		{"base64", base64.StdEncoding.EncodeToString(raw), "base64", raw},
		{"too short", "0123456789abcdef01234567", "none", nil},
		{"no hex", string(raw), "hex", nil},
		{"half of it in hex", hex.EncodeToString(raw[:16]), "hex", nil},
		{"a letter that is not hex", strings.Repeat("Q", 64), "hex", nil},
		{"base64 of too much", base64.StdEncoding.EncodeToString(append(raw, 0)), "base64", nil},
		{"no base64", "%" + base64.StdEncoding.EncodeToString(raw)[1:], "base64", nil},
		{"unknown", string(raw), "rot13", nil},
		{"empty", "", "none", nil},
	} {
		got, err := ParseSodiumKey(c.text, c.transform)
		if !bytes.Equal(got, c.want) || (err != nil) != (c.want == nil) {
			t.Errorf("%s: %x, %v", c.name, got, err)
		}
		if text := strings.TrimSpace(c.text); err != nil && text != "" && strings.ContainsAny(err.Error(), "Q%") {
			t.Errorf("%s: the error quotes the key: %v", c.name, err)
		}
	}
}

func TestOldKeysDecryptAndTheNewOneEncrypts(t *testing.T) {
	t.Parallel()
	older, newer := bytes.Repeat([]byte("o"), 32), bytes.Repeat([]byte("n"), 32)
	seal := func(keys ...[]byte) []byte {
		t.Helper()
		c, err := NewSodium(keys...)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		w, err := c.Encrypt(&b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, "some WAL"); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	unseal := func(sealed []byte, keys ...[]byte) (string, error) {
		t.Helper()
		c, err := NewSodium(keys...)
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.Decrypt(bytes.NewReader(sealed))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		return string(got), err
	}
	if got, err := unseal(seal(older), newer, older); err != nil || got != "some WAL" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := unseal(seal(newer, older), newer); err != nil || got != "some WAL" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := unseal(seal(newer, older), older); err == nil || got != "" {
		t.Errorf("the older key reads what the newer wrote: %q", got)
	}
}

func TestSodiumNeedsWholeKeysAndShowsNone(t *testing.T) {
	t.Parallel()
	for _, keys := range [][][]byte{nil, {nil}, {make([]byte, 31)}, {make([]byte, 32), make([]byte, 33)}} {
		if _, err := NewSodium(keys...); err == nil {
			t.Errorf("%d keys are taken", len(keys))
		}
	}
	c, err := NewSodium(bytes.Repeat([]byte("k"), 32))
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(verb, c); text != "libsodium" {
			t.Errorf("%s shows %s", verb, text)
		}
	}
}
