package crypt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

func sodium(t testing.TB, keys ...string) *Sodium {
	t.Helper()
	var parsed [][]byte
	for _, text := range keys {
		key, err := ParseSodiumKey(text, "none")
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, key)
	}
	c, err := NewSodium(parsed...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestARotationReadsWhatAnyOfItsCiphersWroteAndNothingElse(t *testing.T) {
	t.Parallel()
	first, second := newKey(t, nil), newKey(t, nil)
	ciphers := map[string]Cipher{
		"libsodium": sodium(t, "the key of the year before this one"), "libsodium of others": sodium(t, "a key that nobody here has got"),
		"OpenPGP": parse(t, armoured(t, first, true), ""), "OpenPGP of others": parse(t, armoured(t, second, true), ""),
		"a key service": NewEnvelope(t.Context(), newService()), "none": None{},
	}
	for _, method := range []string{"libsodium", "OpenPGP", "a key service"} {
		for _, unencrypted := range []bool{false, true} {
			earlier := []Cipher{}
			for _, other := range []string{"libsodium", "OpenPGP", "a key service"} {
				if other != method {
					earlier = append(earlier, ciphers[other])
				}
			}
			if unencrypted {
				earlier = append(earlier, None{})
			}
			c := NewRotation(ciphers[method], earlier...)
			if c.Name() != ciphers[method].Name() || fmt.Sprintf("%v %+v %#v", c, c, c) != strings.TrimSpace(strings.Repeat(c.Name()+" ", 3)) {
				t.Errorf("%s is called %q, and shown as %#v", method, c.Name(), c)
			}
			for _, n := range []int{1, 8191, 8192, 8193, headSize, 200_000} {
				plain := noise(n)
				if got, err := unseal(ciphers[method], seal(t, c, plain)); err != nil || !bytes.Equal(got, plain) {
					t.Errorf("%s does not read what was encrypted: %v", method, err)
				}
				for name, by := range ciphers {
					sealed := seal(t, by, plain)
					got, err := unseal(c, sealed)
					switch {
					case strings.HasSuffix(name, "of others") || name == "none":
						if unencrypted && (err != nil || !bytes.Equal(got, sealed)) {
							t.Errorf("%s, %d bytes of %s: not taken as they are: %v", method, n, name, err)
						}
						if !unencrypted && !errors.Is(err, ErrDamaged) {
							t.Errorf("%s, %d bytes of %s: %d bytes, %v", method, n, name, len(got), err)
						}
					case err != nil || !bytes.Equal(got, plain):
						t.Errorf("%s, %d bytes of %s: %v", method, n, name, err)
					}
					if name != "none" && !strings.HasSuffix(name, "of others") && n > headSize { // recognised by its beginning
						if got, err := unseal(c, sealed[:len(sealed)-1]); !errors.Is(err, ErrDamaged) {
							t.Errorf("%s, %s cut off: %d bytes, %v", method, name, len(got), err)
						}
					}
				}
			}
		}
	}
}

func TestARotationOfEarlierKeysEncryptsNothing(t *testing.T) {
	t.Parallel()
	old := sodium(t, "the key of the year before this one")
	c := NewRotation(nil, old)
	if err := CanEncrypt(c); !errors.Is(err, ErrNoKey) {
		t.Errorf("it encrypts: %v", err)
	}
	if got, err := unseal(c, seal(t, old, []byte("WAL"))); err != nil || string(got) != "WAL" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := unseal(c, []byte("WAL")); !errors.Is(err, ErrDamaged) {
		t.Errorf("what is not encrypted is read: %v", err)
	}
	if _, err := unseal(c, nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("an empty object is read: %v", err)
	}
}

func TestARotationTellsStoragesAndKeysFromDamage(t *testing.T) {
	t.Parallel()
	key := newKey(t, nil)
	public, secret := parse(t, armoured(t, key, false), ""), parse(t, armoured(t, key, true), "")
	old := sodium(t, "the key of the year before this one")
	c := NewRotation(public, old)
	failure := errors.New("the network is gone")
	for _, n := range []int{0, 100, 50_000} {
		r, err := c.Decrypt(io.MultiReader(bytes.NewReader(seal(t, old, noise(60_000))[:n]), iotest.ErrReader(failure)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r); !errors.Is(err, failure) || errors.Is(err, ErrDamaged) {
			t.Errorf("a storage that fails after %d bytes: %v", n, err)
		}
	}
	if _, err := unseal(c, seal(t, secret, []byte("WAL"))); !errors.Is(err, ErrNoSecretKey) {
		t.Errorf("a message for the public key: %v", err)
	}
	if err := CanDecrypt(c); err != nil {
		t.Errorf("the earlier key decrypts: %v", err)
	}
	if err := CanDecrypt(NewRotation(public)); !errors.Is(err, ErrNoSecretKey) {
		t.Errorf("nothing decrypts: %v", err)
	}
}

// fixedKey is the same in all processes that fuzz.
func fixedKey(f *testing.F) *OpenPGP {
	f.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "walg.key.asc"))
	if err != nil {
		f.Fatal(err)
	}
	return parse(f, string(text), "")
}

func FuzzRotation(f *testing.F) {
	pgp := fixedKey(f)
	salt, envelope := sodium(f, "the key of the year before this one"), NewEnvelope(f.Context(), newService())
	plain := []byte("some WAL that was archived")
	for _, c := range []Cipher{pgp, salt, envelope, None{}} {
		sealed := seal(f, c, plain)
		f.Add(sealed)
		f.Add(sealed[:len(sealed)/2])
		f.Add(append(bytes.Clone(sealed), sealed...))
	}
	c := NewRotation(pgp, salt, envelope)
	f.Fuzz(func(t *testing.T, stream []byte) {
		got, err := unseal(c, stream)
		if err != nil {
			return
		}
		// What decrypts was encrypted with one of the keys, of which only the seeds were.
		one := false
		for _, by := range []Cipher{pgp, salt, envelope} {
			again, err := unseal(by, stream)
			one = one || err == nil && bytes.Equal(again, got)
		}
		if !one {
			t.Errorf("%x decrypts to %x with none of the keys", stream, got)
		}
	})
}

func FuzzOpenPGP(f *testing.F) {
	pgp := fixedKey(f)
	for _, n := range []int{0, 1, 600} {
		sealed := seal(f, pgp, noise(n))
		f.Add(sealed)
		f.Add(sealed[:len(sealed)-1])
		f.Add(append(bytes.Clone(sealed), 0))
	}
	f.Add([]byte{0xcb, 0x05, 'b', 0, 0, 0, 0}) // literal data
	f.Fuzz(func(t *testing.T, message []byte) {
		if _, err := unseal(pgp, message); err == nil && !pgp.recognises(message) {
			t.Errorf("%x decrypts, and is not recognised", message)
		}
	})
}

func FuzzOpenPGPKeys(f *testing.F) {
	key := newKey(f, nil)
	f.Add(armoured(f, key, true))
	f.Add(armoured(f, key, false) + armoured(f, key, true))
	f.Add("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n-----END PGP PUBLIC KEY BLOCK-----")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseOpenPGPKeys(text, nil)
		if err == nil && CanEncrypt(c) == nil && CanDecrypt(c) == nil {
			if got, err := unseal(c, seal(t, c, []byte("WAL"))); err == nil && string(got) != "WAL" {
				t.Errorf("%q", got)
			}
		}
	})
}
