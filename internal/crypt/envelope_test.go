package crypt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

// service is a key service that turns bytes around and puts a label in front.
type service struct {
	label   string // as long as its answers are longer than the key
	refuses error
}

func newService() *service { return &service{label: strings.Repeat("k", encryptedKeySize-dataKeySize)} }

func (s *service) Name() string { return "test-kms" }

func (s *service) Encrypt(_ context.Context, key []byte) ([]byte, error) {
	return append([]byte(s.label), turned(key)...), s.refuses
}

func (s *service) Decrypt(_ context.Context, encrypted []byte) ([]byte, error) {
	key, ok := bytes.CutPrefix(encrypted, []byte(s.label))
	if !ok {
		return nil, fmt.Errorf("%w: not ours", ErrDamaged)
	}
	return turned(key), s.refuses
}

func turned(b []byte) []byte {
	b = bytes.Clone(b)
	for i := range b {
		b[i] ^= 0xff
	}
	return b
}

// package64 is the size of a full package of DARE 2.0, in bytes.
const package64 = dareHeaderSize + 64<<10 + 16

func TestEnvelopesAreReadToTheLastByteOrNotAtAll(t *testing.T) {
	t.Parallel()
	e := NewEnvelope(t.Context(), newService())
	other := NewEnvelope(t.Context(), newService()) // another run of the program, with another data key
	for _, n := range []int{1, 100, 64<<10 - 1, 64 << 10, 64<<10 + 1, 3 * 64 << 10} {
		plain := noise(n)
		sealed := seal(t, e, plain)
		packages := (n + 64<<10 - 1) / (64 << 10)
		if want := encryptedKeySize + n + packages*(package64-64<<10); len(sealed) != want {
			t.Errorf("%d bytes become %d instead of %d", n, len(sealed), want)
		}
		for _, reader := range []*Envelope{e, other} {
			if got, err := unseal(reader, sealed); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d bytes became %d: %v", n, len(got), err)
			}
		}
		check := func(what string, bad []byte) {
			t.Helper()
			if got, err := unseal(e, bad); !errors.Is(err, ErrDamaged) {
				t.Errorf("%d bytes, %s: %d bytes and %v", n, what, len(got), err)
			}
		}
		check("a byte more", append(bytes.Clone(sealed), 0))
		check("twice", append(bytes.Clone(sealed), sealed...))
		check("its body twice", append(bytes.Clone(sealed), sealed[encryptedKeySize:]...))
		for _, cut := range []int{0, 1, encryptedKeySize - 1, encryptedKeySize, encryptedKeySize + 1, encryptedKeySize + package64, encryptedKeySize + 2*package64, len(sealed) - 1} {
			if cut < len(sealed) {
				check(fmt.Sprint("cut to ", cut), sealed[:cut])
			}
		}
		if packages == 3 {
			a, b := encryptedKeySize, encryptedKeySize+package64
			swapped := bytes.Clone(sealed)
			copy(swapped[a:], sealed[b:b+package64])
			copy(swapped[b:], sealed[a:b])
			check("packages swapped", swapped)
			check("a package left out", append(bytes.Clone(sealed[:a]), sealed[b:]...))
			check("a package of another stream", append(bytes.Clone(sealed[:b]), seal(t, e, plain)[b:]...))
		}
		r := rand.New(rand.NewPCG(5, uint64(n)))
		for range 200 {
			bad := bytes.Clone(sealed)
			i := r.IntN(min(len(bad), 2000))
			bad[i] ^= 1 << r.IntN(8)
			check(fmt.Sprintf("bit of byte %d flipped", i), bad)
		}
	}
}

func TestWhatTheServiceSaysIsTheReason(t *testing.T) {
	t.Parallel()
	refused := errors.New("the key is disabled")
	s := newService()
	e := NewEnvelope(t.Context(), s)
	sealed := seal(t, e, []byte("some WAL"))
	broken := newService()
	broken.refuses = refused
	b := NewEnvelope(t.Context(), broken)
	if err := CanEncrypt(b); !errors.Is(err, refused) {
		t.Errorf("encrypting: %v", err)
	}
	if _, err := unseal(b, sealed); !errors.Is(err, refused) || errors.Is(err, ErrDamaged) {
		t.Errorf("decrypting: %v", err)
	}
	if err := CanEncrypt(NewEnvelope(t.Context(), &service{label: "short"})); err == nil || !strings.Contains(err.Error(), "room for exactly 184") {
		t.Errorf("a data key that does not fit: %v", err)
	}
	failure := errors.New("the network is gone")
	for _, n := range []int{0, 100, 190, len(sealed) - 1} {
		r, err := e.Decrypt(io.MultiReader(bytes.NewReader(sealed[:n]), iotest.ErrReader(failure)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r); !errors.Is(err, failure) || errors.Is(err, ErrDamaged) {
			t.Errorf("a storage that fails after %d bytes: %v", n, err)
		}
	}
	if w, err := e.Encrypt(io.Discard); err != nil || w.Close() == nil {
		t.Errorf("an empty stream: %v", err)
	}
	if err := CanEncrypt(e); err != nil {
		t.Error(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(verb, e); text != "test-kms" {
			t.Errorf("%s shows %s", verb, text)
		}
	}
}

func FuzzEnvelopes(f *testing.F) {
	e := NewEnvelope(f.Context(), newService()) // which decrypts the data keys of all processes that fuzz
	sealed := seal(f, e, []byte("some WAL"))
	f.Add(sealed)
	f.Add(sealed[:len(sealed)-1])
	f.Add(sealed[:encryptedKeySize])
	f.Add(append(bytes.Clone(sealed), sealed...))
	f.Add(seal(f, e, noise(64<<10+1)))
	f.Fuzz(func(t *testing.T, stream []byte) {
		if _, err := unseal(e, stream); err != nil {
			return
		}
		if !e.recognises(stream[:min(len(stream), headSize)]) {
			t.Errorf("%d bytes decrypt, and are not recognised", len(stream))
		}
		for _, bad := range [][]byte{stream[:len(stream)-1], append(bytes.Clone(stream), 0)} {
			if _, err := unseal(e, bad); !errors.Is(err, ErrDamaged) {
				t.Errorf("%d bytes decrypt, and so do %d: %v", len(stream), len(bad), err)
			}
		}
	})
}
