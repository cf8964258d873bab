package secretstream

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"
)

var key = []byte("0123456789abcdef0123456789abcdef")

// lengths lie around the edges of chunks.
var lengths = []int{
	0, 1, 15, 16, 17, 63, 64, 65, ChunkSize - 1, ChunkSize, ChunkSize + 1, 2*ChunkSize - 1, 2 * ChunkSize, 2*ChunkSize + 1,
	9*ChunkSize + 777,
}

func plaintext(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

func encrypt(t testing.TB, plain []byte, step int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, key)
	if err != nil {
		t.Fatal(err)
	}
	for len(plain) > 0 {
		part := plain[:min(step, len(plain))]
		if n, err := w.Write(part); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
		plain = plain[len(part):]
	}
	for range 2 { // closing twice is harmless
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func decrypt(stream []byte) ([]byte, error) {
	return io.ReadAll(NewReader(bytes.NewReader(stream), key))
}

func TestWhatWasEncryptedDecrypts(t *testing.T) {
	t.Parallel()
	for _, n := range lengths {
		for _, step := range []int{1 << 20, ChunkSize, 1000, 7} {
			t.Run(fmt.Sprintf("%d bytes by %d", n, step), func(t *testing.T) {
				t.Parallel()
				plain := plaintext(n)
				stream := encrypt(t, plain, step)
				if want := HeaderSize + n + (n/ChunkSize+1)*Overhead; len(stream) != want {
					t.Errorf("%d bytes became %d, not %d", n, len(stream), want)
				}
				for name, r := range map[string]io.Reader{
					"whole": bytes.NewReader(stream), "halves": iotest.HalfReader(bytes.NewReader(stream)),
					"early end": iotest.DataErrReader(bytes.NewReader(stream)),
				} {
					if got, err := io.ReadAll(NewReader(r, key)); err != nil || !bytes.Equal(got, plain) {
						t.Errorf("%s: %d bytes, %v", name, len(got), err)
					}
				}
				if err := iotest.TestReader(NewReader(bytes.NewReader(stream), key), plain); err != nil && n < ChunkSize {
					t.Error(err)
				}
			})
		}
	}
}

// The streams are from "WAL-G format", codecs and encryption, section 3: written by WAL-G, checked with the C library.
func TestStreamsOfOthersDecrypt(t *testing.T) {
	t.Parallel()
	padded := make([]byte, KeySize)
	copy(padded, "0123456789abcdef012345678")
	for _, c := range []struct {
		key    []byte
		stream string
	}{
		{key, "0d6ac0b153e03f93d55a46b68d1b6febe97960ceeedac28be123d7796c7d7a4cba3858554edb680d23e82b9416af8fbf02b958e3c490e8046f0adb17"},
		{padded, "162bba8bf0380873c9826f128bee2547b153e5ca07ffe171ba09957d60dc7be1e6d55cda6b6f2218eb6b86d4c246951f95c62d9cf2f3f49d5b2baa3c"},
	} {
		stream, err := hex.DecodeString(c.stream)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(NewReader(bytes.NewReader(stream), c.key))
		if err != nil || string(got) != "walden test vector\n" {
			t.Errorf("%q, %v", got, err)
		}
		w, err := newWriter(new(bytes.Buffer), c.key, [HeaderSize]byte(stream))
		if err != nil {
			t.Fatal(err)
		}
		again := new(bytes.Buffer)
		w.w = again
		if _, err := w.Write(got); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil || !bytes.Equal(again.Bytes(), stream) {
			t.Errorf("encrypted again: %x, %v", again.Bytes(), err)
		}
	}
}

// sodium lets the C library do the other side.
const sodium = `
import ctypes, sys
lib = ctypes.CDLL("libsodium.so.23")
assert lib.sodium_init() >= 0
mode, key = sys.argv[1], sys.argv[2].encode()
data = sys.stdin.buffer.read()
state = ctypes.create_string_buffer(lib.crypto_secretstream_xchacha20poly1305_statebytes())
prefix = "crypto_secretstream_xchacha20poly1305_"
out = b""
if mode == "encrypt":
    header = ctypes.create_string_buffer(24)
    assert getattr(lib, prefix + "init_push")(state, header, key) == 0
    out = header.raw
    pieces = [data[i:i + 8192] for i in range(0, len(data), 8192)]
    if not pieces or len(pieces[-1]) == 8192:
        pieces.append(b"")
    for i, piece in enumerate(pieces):
        c = ctypes.create_string_buffer(len(piece) + 17)
        tag = 3 if i == len(pieces) - 1 else 0
        assert getattr(lib, prefix + "push")(state, c, None, piece, ctypes.c_ulonglong(len(piece)), None, ctypes.c_ulonglong(0), ctypes.c_ubyte(tag)) == 0
        out += c.raw
else:
    assert getattr(lib, prefix + "init_pull")(state, data[:24], key) == 0
    data, tag = data[24:], ctypes.c_ubyte(0)
    while data:
        piece, data = data[:8209], data[8209:]
        m = ctypes.create_string_buffer(max(1, len(piece) - 17))
        assert getattr(lib, prefix + "pull")(state, m, None, ctypes.byref(tag), piece, ctypes.c_ulonglong(len(piece)), None, ctypes.c_ulonglong(0)) == 0
        out += m.raw[:len(piece) - 17]
        assert tag.value == (0 if data else 3)
sys.stdout.buffer.write(out)
`

func TestTheCLibraryUnderstandsUsAndWeIt(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs python3 and libsodium")
	}
	run := func(mode string, in []byte) []byte {
		t.Helper()
		cmd := exec.Command("python3", "-c", sodium, mode, string(key))
		cmd.Stdin = bytes.NewReader(in)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("python3 with libsodium.so.23: %v: run scripts/install-test-tools if it is not installed\n%s", err, stderr.String())
		}
		return out
	}
	for _, n := range lengths {
		plain := plaintext(n)
		if got := run("decrypt", encrypt(t, plain, 1<<20)); !bytes.Equal(got, plain) {
			t.Errorf("the C library decrypts %d bytes wrongly", n)
		}
		if got, err := decrypt(run("encrypt", plain)); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes of the C library: %v", n, err)
		}
	}
}

func TestEveryChangeIsNoticed(t *testing.T) {
	t.Parallel()
	plain := plaintext(3*ChunkSize + 100)
	stream := encrypt(t, plain, 1<<20)
	const chunk = ChunkSize + Overhead
	at := func(i int) []byte { return stream[HeaderSize+i*chunk : min(len(stream), HeaderSize+(i+1)*chunk)] }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	header := stream[:HeaderSize]
	for name, c := range map[string]struct {
		stream []byte
		want   error
	}{
		"empty":                        {nil, ErrTruncated},
		"half a header":                {header[:12], ErrTruncated},
		"a header alone":               {header, ErrTruncated},
		"cut after the first chunk":    {join(header, at(0)), ErrTruncated},
		"cut before the last chunk":    {join(header, at(0), at(1), at(2)), ErrTruncated},
		"cut in the last chunk":        {stream[:len(stream)-1], ErrDamaged},
		"cut to a few bytes of it":     {stream[:len(stream)-len(at(3))+5], ErrTruncated},
		"chunks exchanged":             {join(header, at(1), at(0), at(2), at(3)), ErrDamaged},
		"a chunk left out":             {join(header, at(0), at(2), at(3)), ErrDamaged},
		"a chunk repeated":             {join(header, at(0), at(0), at(1), at(2), at(3)), ErrDamaged},
		"a byte more":                  {join(stream, []byte{0}), ErrDamaged},
		"another stream behind it":     {join(stream, stream), ErrDamaged},
		"filled up to a full chunk":    {join(stream, make([]byte, chunk-len(at(3)))), ErrDamaged},
		"another stream's last chunk":  {join(header, at(0), at(1), at(2), encrypt(t, nil, 1)[HeaderSize:]), ErrDamaged},
		"the header of another stream": {join(encrypt(t, nil, 1)[:HeaderSize], stream[HeaderSize:]), ErrDamaged},
	} {
		got, err := decrypt(c.stream)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.HasPrefix(plain, got) {
			t.Errorf("%s: wrong plaintext", name)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		bad := bytes.Clone(stream)
		i := r.IntN(len(bad))
		bad[i] ^= 1 << r.IntN(8)
		got, err := decrypt(bad)
		if !errors.Is(err, ErrDamaged) || !bytes.HasPrefix(plain, got) {
			t.Errorf("bit of byte %d flipped: %d bytes, %v", i, len(got), err)
		}
	}
	if _, err := io.ReadAll(NewReader(bytes.NewReader(stream), bytes.ToUpper(key))); !errors.Is(err, ErrDamaged) {
		t.Errorf("another key: %v", err)
	}
}

func TestTheKeyThatFitsIsFound(t *testing.T) {
	t.Parallel()
	other, third := bytes.ToUpper(key), bytes.Repeat([]byte{7}, KeySize)
	for _, n := range lengths {
		stream := encrypt(t, plaintext(n), 1<<20)
		for _, keys := range [][][]byte{{key, other}, {other, key}, {other, third, key}} {
			if got, err := io.ReadAll(NewReader(bytes.NewReader(stream), keys...)); err != nil || !bytes.Equal(got, plaintext(n)) {
				t.Errorf("%d bytes: %v", n, err)
			}
		}
		if _, err := io.ReadAll(NewReader(bytes.NewReader(stream), other, third)); !errors.Is(err, ErrDamaged) {
			t.Errorf("keys of others: %v", err)
		}
	}
	if _, err := io.ReadAll(NewReader(bytes.NewReader(encrypt(t, nil, 1)))); err == nil {
		t.Error("a stream is read without a key")
	}
}

func TestTagsThatArchivesDoNotUseAreRefused(t *testing.T) {
	t.Parallel()
	for _, tag := range []byte{1, 2, 200} {
		var header [HeaderSize]byte
		s, err := newState(key, &header)
		if err != nil {
			t.Fatal(err)
		}
		stream := s.seal(header[:], make([]byte, ChunkSize), tag)
		if _, err := decrypt(stream); err == nil || !strings.Contains(err.Error(), fmt.Sprint("tag ", tag)) {
			t.Errorf("tag %d: %v", tag, err)
		}
	}
	// A full last chunk: libsodium allows it, WAL-G never writes it.
	var header [HeaderSize]byte
	s, err := newState(key, &header)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decrypt(s.seal(header[:], make([]byte, ChunkSize), tagFinal)); !errors.Is(err, ErrTrailing) {
		t.Errorf("a full last chunk: %v", err)
	}
}

// The counter runs over after 32 TiB only, so it is set here.
func TestTheKeyIsReplacedWhenTheCounterRunsOver(t *testing.T) {
	t.Parallel()
	var header [HeaderSize]byte
	ends := [2]*state{}
	for i := range ends {
		s, err := newState(key, &header)
		if err != nil {
			t.Fatal(err)
		}
		copy(s.nonce[:4], []byte{0xff, 0xff, 0xff, 0xff})
		ends[i] = s
	}
	for i := range 3 {
		plain, tag, err := ends[1].open(ends[0].seal(nil, plaintext(100+i), tagMessage))
		if err != nil || tag != tagMessage || !bytes.Equal(plain, plaintext(100+i)) {
			t.Fatal(err)
		}
		if *ends[0] != *ends[1] || bytes.Equal(ends[0].key[:], key) {
			t.Errorf("chunk %d: the key was not replaced", i)
		}
	}
}

func TestFailuresOfBothEndsArePassedOn(t *testing.T) {
	t.Parallel()
	failure := errors.New("the network is gone")
	if _, err := io.ReadAll(NewReader(iotest.ErrReader(failure), key)); !errors.Is(err, failure) {
		t.Error(err)
	}
	stream := encrypt(t, plaintext(3*ChunkSize), 1<<20)
	r := io.MultiReader(bytes.NewReader(stream[:ChunkSize+1000]), iotest.ErrReader(failure))
	if _, err := io.ReadAll(NewReader(r, key)); !errors.Is(err, failure) {
		t.Error(err)
	}
	for _, short := range [][]byte{nil, key[:31], append(bytes.Clone(key), 0)} {
		if _, err := NewWriter(io.Discard, short); err == nil {
			t.Errorf("a key of %d bytes is taken", len(short))
		}
		if _, err := io.ReadAll(NewReader(bytes.NewReader(stream), short)); err == nil {
			t.Errorf("a key of %d bytes is taken for reading", len(short))
		}
	}
	fw := &failing{after: 1, err: failure}
	w, err := NewWriter(fw, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plaintext(3 * ChunkSize)); !errors.Is(err, failure) {
		t.Error(err)
	}
	if _, err := w.Write([]byte{1}); !errors.Is(err, failure) {
		t.Error(err)
	}
	if err := w.Close(); !errors.Is(err, failure) {
		t.Error(err)
	}
}

type failing struct {
	after int
	err   error
}

func (f *failing) Write(p []byte) (int, error) {
	if f.after--; f.after < 0 {
		return 0, f.err
	}
	return len(p), nil
}

func FuzzReader(f *testing.F) {
	for _, n := range []int{0, 1, ChunkSize, ChunkSize + 1} {
		f.Add(encrypt(f, plaintext(n), 1<<20))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, stream []byte) {
		got, err := decrypt(stream)
		if err == nil && len(stream) != HeaderSize+len(got)+(len(got)/ChunkSize+1)*Overhead {
			t.Errorf("%d bytes of %d", len(got), len(stream))
		}
	})
}

func BenchmarkWriter(b *testing.B) {
	plain := plaintext(1 << 20)
	b.SetBytes(int64(len(plain)))
	for b.Loop() {
		w, err := NewWriter(io.Discard, key)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(plain); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
