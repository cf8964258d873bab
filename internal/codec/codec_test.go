package codec

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz/lzma"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

const block = 4 * mib // of lz4

var names = []string{"lz4", "zstd", "lzma", "brotli", "none"}

func open(t testing.TB, name string) Codec {
	t.Helper()
	switch name {
	case "gzip":
		return newGzip()
	case "lzo":
		return newLZO()
	}
	c, err := New(name, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func compress(t testing.TB, c Codec, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if c.Name() == "gzip" {
		z := gzip.NewWriter(&out)
		if _, err := z.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	w, err := c.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func decompress(c Codec, r io.Reader) ([]byte, error) {
	d, err := c.NewReader(r)
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(d)
	return plain, errors.Join(err, d.Close())
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func TestStreamsAreThoseOfWALG(t *testing.T) {
	t.Parallel()
	const plain = "walden test vector\n"
	vectors := []struct{ name, plain, stream string }{
		{"none", plain, "77616c64656e207465737420766563746f720a"},
		{"lz4", plain, "04224d186470b9 13000080 77616c64656e207465737420766563746f720a 00000000 af855d48"},
		{"lz4", "", "04224d186470b9 00000000 055dcc02"},
		{"zstd", plain, "28b52ffd0400 990000 77616c64656e207465737420766563746f720a 87558ea1"},
		{"lzma", plain, "5d00008000ffffffffffffffff 003b9849dad7902c139a334c0fb915289ee5795555bee708ffffd1170000"},
		{"brotli", plain, "0b0980 77616c64656e207465737420766563746f720a 03"},
	}
	for _, v := range vectors {
		t.Run(fmt.Sprintf("%s of %d bytes", v.name, len(v.plain)), func(t *testing.T) {
			t.Parallel()
			stream, err := hex.DecodeString(strings.ReplaceAll(v.stream, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			c := open(t, v.name)
			for range 3 { // a used writer and a used reader must not differ from new ones
				if got := compress(t, c, []byte(v.plain)); !bytes.Equal(got, stream) {
					t.Errorf("compressed to\n%x, want\n%x", got, stream)
				}
				got, err := decompress(c, bytes.NewReader(stream))
				if err != nil || string(got) != v.plain {
					t.Errorf("decompressed to %q, %v", got, err)
				}
			}
		})
	}
}

func TestHeadersOfLargeStreamsAreThoseOfWALG(t *testing.T) {
	t.Parallel()
	pages := heapPages(100, false)
	for name, header := range map[string]string{
		"lz4": "04224d186470b9", "zstd": "28b52ffd0468", "lzma": "5d00008000ffffffffffffffff",
	} {
		if got := hex.EncodeToString(compress(t, open(t, name), pages)[:len(header)/2]); got != header {
			t.Errorf("%s: header %s, want %s", name, got, header)
		}
	}
}

func TestNewNamesTheValidMethods(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		o    Options
		want string
	}{
		{"lzo", Options{}, `cannot use compression method "lzo": valid are lz4, zstd, lzma, brotli, none`},
		{"", Options{}, `cannot use compression method "": valid are lz4, zstd, lzma, brotli, none`},
		{"gzip", Options{}, `cannot use compression method "gzip": valid are lz4, zstd, lzma, brotli, none`},
		{"zstd", Options{ZstdLevel: "19"}, `cannot use zstd level "19": valid are fastest, default, better, best`},
		{"lz4", Options{ZstdLevel: "best"},
			`cannot use zstd level "best" with compression method "lz4": it is for zstd only`},
	} {
		c, err := New(tt.name, tt.o)
		if c != nil || err == nil || err.Error() != tt.want {
			t.Errorf("New(%q, %+v) = %v, %v, want %s", tt.name, tt.o, c, err, tt.want)
		}
	}
}

func TestEveryExtensionFindsItsMethod(t *testing.T) {
	t.Parallel()
	want := map[string]string{
		".lz4": "lz4", ".zst": "zstd", ".lzma": "lzma", ".br": "brotli", ".gz": "gzip", ".lzo": "lzo", "": "none",
	}
	if len(Extensions()) != len(want) {
		t.Errorf("Extensions() = %q", Extensions())
	}
	for _, ext := range Extensions() {
		c, ok := ByExtension(ext)
		if !ok || c.Name() != want[ext] || c.Extension() != ext {
			t.Errorf("ByExtension(%q) = %v, %v", ext, c, ok)
		}
	}
	for _, ext := range []string{".lzop", ".tar", ".", "lz4"} {
		if c, ok := ByExtension(ext); ok {
			t.Errorf("ByExtension(%q) = %v", ext, c)
		}
	}
	for _, c := range []Codec{newGzip(), newLZO()} {
		if _, err := c.NewWriter(io.Discard); !errors.Is(err, errReadOnly) {
			t.Errorf("%s writes: %v", c.Name(), err)
		}
	}
}

func TestRoundTripsAroundBlockEdges(t *testing.T) {
	t.Parallel()
	big := append(heapPages(600, false), noise(block)...)
	for _, name := range names {
		c := open(t, name)
		for _, size := range []int{0, 1, 65535, 65536, 65537, 1<<17 - 1, 1 << 17, 1<<17 + 1, block - 1, block, block + 1,
			2*block + 12345} {
			if (name == "lzma" || name == "brotli") && size > 1<<17+1 {
				continue // they have no blocks of such sizes and are slow
			}
			t.Run(fmt.Sprintf("%s of %d bytes", name, size), func(t *testing.T) {
				t.Parallel()
				plain := big[:size]
				whole := compress(t, c, plain)
				for _, chunk := range []int{1, 511, 8192, 65537, block + 1} {
					if chunk == 1 && size > 65537 {
						continue
					}
					var out bytes.Buffer
					w, err := c.NewWriter(&out)
					if err != nil {
						t.Fatal(err)
					}
					for piece := range slices.Chunk(plain, chunk) {
						if n, err := w.Write(piece); n != len(piece) || err != nil {
							t.Fatalf("Write = %d, %v, want %d", n, err, len(piece))
						}
					}
					if err := errors.Join(w.Close(), w.Close()); err != nil {
						t.Fatal(err)
					}
					if got, err := decompress(c, &out); err != nil || !bytes.Equal(got, plain) {
						t.Fatalf("pieces of %d: %d bytes come back, %v", chunk, len(got), err)
					}
				}
				for kind, r := range map[string]io.Reader{
					"one byte at a time": iotest.OneByteReader(bytes.NewReader(whole)),
					"halves":             iotest.HalfReader(bytes.NewReader(whole)),
					"data with EOF":      iotest.DataErrReader(bytes.NewReader(whole)),
				} {
					if kind == "one byte at a time" && len(whole) > 1<<20 {
						continue
					}
					if got, err := decompress(c, r); err != nil || !bytes.Equal(got, plain) {
						t.Errorf("%s: %d bytes come back, %v", kind, len(got), err)
					}
				}
			})
		}
	}
}

func TestReadFromAndWriteToCarryTheSameBytes(t *testing.T) {
	t.Parallel()
	input := append(heapPages(700, true), noise(100_000)...)
	for _, name := range names {
		c, plain := open(t, name), input
		if name != "lz4" && name != "none" {
			plain = input[len(input)-150_000:] // the others are slow, and have no blocks of 4 MiB
		}
		for _, before := range []int{0, 100} {
			t.Run(fmt.Sprintf("%s after %d bytes", name, before), func(t *testing.T) {
				t.Parallel()
				var out, back bytes.Buffer
				w, err := c.NewWriter(&out)
				if err != nil {
					t.Fatal(err)
				}
				if before > 0 {
					if _, err := w.Write(plain[:before]); err != nil {
						t.Fatal(err)
					}
				}
				n, err := io.Copy(w, struct{ io.Reader }{bytes.NewReader(plain[before : len(plain)-50])})
				if int(n) != len(plain)-50-before || err != nil {
					t.Fatalf("copied %d, %v", n, err)
				}
				if _, err := w.Write(plain[len(plain)-50:]); err != nil {
					t.Fatal(err)
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				r, err := c.NewReader(&out)
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				head := make([]byte, before)
				if _, err := io.ReadFull(r, head); err != nil {
					t.Fatal(err)
				}
				if n, err := io.Copy(&back, r); int(n) != len(plain)-before || err != nil {
					t.Fatalf("copied %d, %v", n, err)
				}
				if !bytes.Equal(append(head, back.Bytes()...), plain) {
					t.Error("other bytes come back")
				}
				if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Errorf("after the end: %d, %v", n, err)
				}
			})
		}
	}
}

func TestEveryTruncationIsDamage(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"lz4", "zstd", "lzma", "brotli", "gzip"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			plain := heapPages(1, true)[7000:7200] // small: a reader that failed is thrown away with all its buffers
			c := open(t, name)
			stream := compress(t, c, plain)
			for n := range stream {
				if n > 20 && n < len(stream)-20 && n%5 != 0 {
					continue
				}
				if _, err := decompress(c, bytes.NewReader(stream[:n])); !errors.Is(err, ErrDamaged) {
					t.Errorf("first %d of %d bytes: %v", n, len(stream), err)
				}
				d, err := c.NewReader(bytes.NewReader(stream[:n]))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, d); !errors.Is(err, ErrDamaged) {
					t.Errorf("WriteTo, first %d of %d bytes: %v", n, len(stream), err)
				}
				_ = d.Close()
			}
		})
	}
}

func TestTrailingGarbageIsDamage(t *testing.T) {
	t.Parallel()
	plain := []byte("walden test vector\n")
	for _, name := range []string{"lz4", "zstd", "lzma", "brotli", "gzip"} {
		c := open(t, name)
		stream := compress(t, c, plain)
		for _, garbage := range []string{"\x00", "x", "\x28", "\x28\xb5", "\x04\x22\x4d", "\x1f\x8b", "garbage behind", "\x00\x00\x00\x00",
			strings.Repeat("\x00", 70000)} {
			for how, r := range map[string]io.Reader{
				"at once": strings.NewReader(string(stream) + garbage),
				"late":    io.MultiReader(bytes.NewReader(stream), strings.NewReader(garbage)),
				"bytes":   iotest.OneByteReader(strings.NewReader(string(stream) + garbage)),
			} {
				if got, err := decompress(c, r); !errors.Is(err, ErrDamaged) {
					t.Errorf("%s followed by %.4q %s: %q, %v", name, garbage, how, got, err)
				}
			}
		}
	}
}

func TestFlippedBitsAreDamageWhereThereIsAChecksum(t *testing.T) {
	t.Parallel()
	plain := heapPages(1, true)[7000:7500]
	for _, name := range []string{"lz4", "zstd", "gzip"} {
		c := open(t, name)
		stream := compress(t, c, plain)
		for i := 0; i < len(stream); i += testenv.Pick(11, 1) {
			bad := bytes.Clone(stream)
			bad[i] ^= 0x10
			if name == "gzip" && i < 10 {
				continue // time and operating system in the header mean nothing
			}
			if got, err := decompress(c, bytes.NewReader(bad)); !errors.Is(err, ErrDamaged) && !bytes.Equal(got, plain) {
				t.Errorf("%s, byte %d: %d bytes, %v", name, i, len(got), err)
			}
		}
	}
}

var errNetwork = errors.New("connection reset by peer")

func TestAFailedReadIsNotDamage(t *testing.T) {
	t.Parallel()
	plain := append(heapPages(20, true), noise(1000)...)
	for _, name := range append([]string{"gzip"}, names...) {
		c := open(t, name)
		stream := compress(t, c, plain)
		for _, cause := range []error{errNetwork, io.ErrUnexpectedEOF, context.Canceled} {
			places := []int{0, 1, 3, 5, 12, 15, 100, len(stream) / 2, len(stream) - 1, len(stream)}
			if cause != io.ErrUnexpectedEOF {
				places = []int{0, 100, len(stream)}
			}
			for _, n := range testenv.Some(t, 3, places) {
				broken := func() io.Reader {
					return io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(cause))
				}
				_, err := decompress(c, broken())
				if !errors.Is(err, cause) || errors.Is(err, ErrDamaged) {
					t.Errorf("%s, read failing after %d of %d: %v", name, n, len(stream), err)
				}
				d, err := c.NewReader(broken())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, d); err != cause {
					t.Errorf("%s, WriteTo failing after %d of %d: %v", name, n, len(stream), err)
				}
				_ = d.Close()
			}
		}
	}
}

type failingWriter struct{ left int }

var errDisk = errors.New("no space left on device")

func (f *failingWriter) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errDisk
	}
	return len(p), nil
}

func TestAFailedWriteIsReturnedAndTheCodecStaysUsable(t *testing.T) {
	t.Parallel()
	for _, name := range names {
		plain := append(heapPages(10, true), noise(150_000)...)
		switch name {
		case "lz4":
			plain = append(plain, noise(block)...)
		case "lzma":
			plain = plain[:100_000]
		}
		c := open(t, name)
		stream := compress(t, c, plain)
		for _, left := range testenv.Some(t, 2, []int{0, 7, 100, len(stream) / 2, len(stream) - 1}) {
			w, err := c.NewWriter(&failingWriter{left: left})
			if err != nil {
				t.Fatal(err)
			}
			_, err = w.Write(plain)
			if cerr := w.Close(); err == nil {
				err = cerr
			}
			if !errors.Is(err, errDisk) {
				t.Errorf("%s, destination of %d bytes: %v", name, left, err)
			}
			d, err := c.NewReader(bytes.NewReader(stream))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(&failingWriter{left: min(left, len(plain)-1)}, d); err != errDisk {
				t.Errorf("%s, WriteTo a destination of %d bytes: %v", name, left, err)
			}
			_ = d.Close()
			if got := compress(t, c, plain); !bytes.Equal(got, stream) {
				t.Fatalf("%s: the writer after a failed one writes another stream", name)
			}
		}
	}
}

func TestConcatenatedFramesAreOneStream(t *testing.T) {
	t.Parallel()
	skippable := "\x53\x2a\x4d\x18\x05\x00\x00\x00skip!"
	for name, between := range map[string][]string{"lz4": {"", skippable}, "zstd": {"", skippable}, "gzip": {""}} {
		c := open(t, name)
		for _, s := range between {
			stream := string(compress(t, c, []byte("first, "))) + s + string(compress(t, c, []byte("second")))
			if got, err := decompress(c, strings.NewReader(stream)); err != nil || string(got) != "first, second" {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
	}
}

func TestMemoryOfReadersIsBounded(t *testing.T) {
	t.Parallel()
	for name, header := range map[string]string{
		"zstd with a window of 2 GiB":     "28b52ffd04a8 010000",
		"lzma with a dictionary of 4 GiB": "5dffffffffffffffffffffffff 003b9849dad7",
		"lzma with a dictionary of 1 GiB": "5d00000040ffffffffffffffff 003b9849dad7",
	} {
		stream, err := hex.DecodeString(strings.ReplaceAll(header, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decompress(open(t, name[:4]), bytes.NewReader(stream)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Streams with large windows are read one after the other, with one decoder; others are not held up by them.
func TestLargeWindowsAreReadOneAtATime(t *testing.T) {
	t.Parallel()
	for name, newWriter := range map[string]func(w io.Writer) (io.WriteCloser, error){
		"zstd": func(w io.Writer) (io.WriteCloser, error) {
			return zstd.NewWriter(w, zstd.WithWindowSize(128<<20), zstd.WithEncoderConcurrency(1))
		},
		"lzma": func(w io.Writer) (io.WriteCloser, error) {
			return lzma.WriterConfig{DictCap: lzmaMaxDictionary, EOSMarker: true}.NewWriter(w)
		},
	} {
		t.Run(name, func(t *testing.T) {
			plain := bytes.Repeat([]byte("window"), map[string]int{"zstd": 1 << 20, "lzma": 100 << 10}[name])
			var stream bytes.Buffer
			w, err := newWriter(&stream)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(plain); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			c := open(t, name)
			held, err := c.NewReader(bytes.NewReader(stream.Bytes()))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(held, make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			if got, err := decompress(c, bytes.NewReader(compress(t, c, plain[:100]))); err != nil || len(got) != 100 {
				t.Errorf("a small one meanwhile: %d bytes, %v", len(got), err)
			}
			var wg sync.WaitGroup
			var ended atomic.Int32
			for range 4 {
				wg.Go(func() {
					got, err := decompress(c, bytes.NewReader(stream.Bytes()))
					if err != nil || !bytes.Equal(got, plain) {
						t.Errorf("%d bytes, %v", len(got), err)
					}
					ended.Add(1)
				})
			}
			if n := ended.Load(); n != 0 {
				t.Errorf("%d were read beside another", n)
			}
			if err := held.Close(); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
		})
	}
}

func TestClosedStreamsRefuseWork(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"lz4", "zstd", "lzma", "brotli"} {
		c := open(t, name)
		w, err := c.NewWriter(io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("late")); !errors.Is(err, errClosed) {
			t.Errorf("%s: Write after Close: %v", name, err)
		}
		r, err := c.NewReader(bytes.NewReader(compress(t, c, []byte("early"))))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(r.Close(), r.Close()); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Read(make([]byte, 8)); n != 0 || !errors.Is(err, errClosed) {
			t.Errorf("%s: Read after Close: %d, %v", name, n, err)
		}
	}
}

func TestManyGoroutinesShareACodec(t *testing.T) {
	t.Parallel()
	for _, name := range names {
		c := open(t, name)
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				plain := bytes.Repeat([]byte{byte(i), 'x', 0}, 30_000+i)
				for range 3 {
					if got, err := decompress(c, bytes.NewReader(compress(t, c, plain))); err != nil || !bytes.Equal(got, plain) {
						t.Errorf("%s: %d bytes come back, %v", name, len(got), err)
					}
				}
			})
		}
		wg.Wait()
	}
}

// tool runs a command-line tool over stdin and returns its stdout.
func tool(t *testing.T, stdin []byte, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(args[0])
	if err != nil {
		t.Fatalf("%v: run scripts/install-test-tools", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%q: %v: %s", args, err, stderr.Bytes())
	}
	return out
}

func TestTheMethodsOwnToolsReadOurStreams(t *testing.T) {
	t.Parallel()
	input := append(heapPages(560, true), noise(70_000)...)
	for name, cmd := range map[string][]string{
		"lz4": {"lz4", "-d"}, "zstd": {"zstd", "-d"}, "lzma": {"xz", "--format=lzma", "-d"}, "brotli": {"brotli", "-d"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			plain := input
			if name == "lzma" || name == "brotli" {
				plain = plain[len(plain)-300_000:] // no blocks to cross
			}
			for _, plain := range [][]byte{{}, plain[:19], plain} {
				for _, c := range []Codec{open(t, name), AtOnce(open(t, name), 3)} {
					if got := tool(t, compress(t, c, plain), append(cmd, "-c")...); !bytes.Equal(got, plain) {
						t.Errorf("%d bytes became %d", len(plain), len(got))
					}
				}
			}
		})
	}
}

func TestWeReadWhatTheMethodsOwnToolsWrite(t *testing.T) {
	t.Parallel()
	plain := append(heapPages(130, true), noise(70_000)...)
	for name, cmds := range map[string][]string{
		"lz4": {"lz4 -1", "lz4 -9", "lz4 -l", "lz4 -BD -B4", "lz4 -BD -B7 -BX", "lz4 -B5 --no-frame-crc", "lz4 -B6 --content-size"},
		"zstd": {"zstd -1", "zstd -19", "zstd --ultra -20", "zstd --long=27", "zstd --no-check", "zstd --fast=5",
			"zstd -T2 -B1MiB"},
		"lzma":   {"xz --format=lzma -1", "xz --format=lzma -6", "xz --format=lzma -9", "xz --format=lzma --lzma1=lc=0,lp=2,pb=0"},
		"brotli": {"brotli -q 0", "brotli -q 3", "brotli -q 9 -w 24", "brotli -w 10"},
		"gzip":   {"gzip -1", "gzip -9"},
		"lzo":    {"lzop -1", "lzop -2", "lzop -3", "lzop -7", "lzop -9", "lzop --crc32", "lzop -CC", "lzop -9 -CC --crc32", "lzop --no-checksum"},
	} {
		for _, cmd := range cmds {
			t.Run(cmd, func(t *testing.T) {
				t.Parallel()
				for _, plain := range [][]byte{{}, plain[:19], plain} {
					if cmd == "lz4 -l" && len(plain) == 0 {
						continue // writes a stream of no block
					}
					stream := tool(t, plain, append(strings.Fields(cmd), "-c")...)
					got, err := decompress(open(t, name), bytes.NewReader(stream))
					if err != nil || !bytes.Equal(got, plain) {
						t.Errorf("%d bytes became %d, %v", len(plain), len(got), err)
					}
				}
			})
		}
	}
}

// heapAtEnd yields n bytes of src and measures the heap before its end.
type heapAtEnd struct {
	src  []byte
	heap uint64
}

func (h *heapAtEnd) Read(p []byte) (int, error) {
	if len(h.src) == 0 {
		h.heap = liveHeap()
		return 0, io.EOF
	}
	n := copy(p, h.src)
	h.src = h.src[n:]
	return n, nil
}

func liveHeap() uint64 {
	var m runtime.MemStats
	for range 3 { // what sync.Pool holds survives one collection
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestWriterMemoryIsAnUpperBound(t *testing.T) {
	input := append(heapPages(256, true), noise(9*mib)...)
	check := func(name string, c Codec) {
		pages := input
		switch name {
		case "lz4", "brotli":
		case "lzma":
			pages = input[:mib] // it is slow, and holds all it will ever hold from the start
		default:
			pages = input[len(input)-9*mib-128<<10:][:4*mib] // slow too, and full before that
		}
		var before, most uint64
		for _, readFrom := range []bool{true, false} {
			if readFrom && name == "brotli" {
				continue // it makes no difference to the slowest of all
			}
			before = liveHeap()
			w, err := c.NewWriter(io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			src := &heapAtEnd{src: pages}
			if readFrom {
				_, err = io.Copy(w, src)
			} else {
				_, err = io.CopyBuffer(struct{ io.Writer }{w}, src, make([]byte, 8192))
			}
			if err != nil {
				t.Fatal(err)
			}
			if used := src.heap - before; src.heap > before {
				most = max(most, used)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%s: %.1f MiB, documented %.1f MiB", name, float64(most)/mib, float64(WriterMemory(c))/mib)
		// How many blocks are in work when the heap is measured is chance where there are several at once.
		least := uint64(WriterMemory(c)) / 2
		if c != AtOnce(c, 1) {
			least = 0
		}
		if limit := uint64(WriterMemory(c)); most > limit || most < least {
			t.Errorf("%s: a writer holds %d bytes, documented are %d", name, most, limit)
		}
	}
	for _, name := range []string{"lz4", "lzma", "brotli"} {
		check(name, open(t, name))
	}
	for n := 2; n <= MaxAtOnce; n++ {
		check("lz4", AtOnce(open(t, "lz4"), n))
		check("zstd", AtOnce(open(t, "zstd"), n))
	}
	for _, level := range []string{"default", "best"} {
		c, err := New("zstd", Options{ZstdLevel: level})
		if err != nil {
			t.Fatal(err)
		}
		check("zstd "+level, c)
	}
	if n := WriterMemory(none{}); n != 0 {
		t.Errorf("none: %d", n)
	}
}

func fuzzReader(f *testing.F, name string) {
	c := open(f, name)
	for _, plain := range []string{"", "walden test vector\n", strings.Repeat("0123456789", 2000)} {
		f.Add(compress(f, c, []byte(plain)))
	}
	fuzzStream(f, c)
}

// fuzzStream reads streams of any bytes: they are decoded, or they are damage.
func fuzzStream(f *testing.F, c Codec) {
	f.Fuzz(func(t *testing.T, stream []byte) {
		d, err := c.NewReader(bytes.NewReader(stream))
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, io.LimitReader(d, 64*mib))
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("after %d bytes: %v is not damage", n, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

func FuzzLZ4(f *testing.F)    { fuzzReader(f, "lz4") }
func FuzzZstd(f *testing.F)   { fuzzReader(f, "zstd") }
func FuzzLZMA(f *testing.F)   { fuzzReader(f, "lzma") }
func FuzzBrotli(f *testing.F) { fuzzReader(f, "brotli") }
func FuzzGzip(f *testing.F)   { fuzzReader(f, "gzip") }

func BenchmarkWriter(b *testing.B) {
	for _, kind := range []string{"pgbench", "text"} {
		pages := heapPages(4096, kind == "text")
		for _, name := range []string{"lz4", "zstd"} {
			for _, chunk := range []int{8192, 64 << 10, block} {
				b.Run(fmt.Sprintf("%s/%s/chunk=%d", kind, name, chunk), func(b *testing.B) {
					c := open(b, name)
					b.SetBytes(int64(len(pages)))
					b.ReportAllocs()
					for b.Loop() {
						w, err := c.NewWriter(io.Discard)
						if err != nil {
							b.Fatal(err)
						}
						for piece := range slices.Chunk(pages, chunk) {
							if _, err := w.Write(piece); err != nil {
								b.Fatal(err)
							}
						}
						if err := w.Close(); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

func BenchmarkReader(b *testing.B) {
	pages := heapPages(4096, false)
	for _, name := range []string{"lz4", "zstd"} {
		c := open(b, name)
		stream := compress(b, c, pages)
		for _, how := range []string{"Read", "WriteTo"} {
			b.Run(name+"/"+how, func(b *testing.B) {
				b.SetBytes(int64(len(pages)))
				b.ReportAllocs()
				buf := make([]byte, 64<<10)
				for b.Loop() {
					r, err := c.NewReader(bytes.NewReader(stream))
					if err != nil {
						b.Fatal(err)
					}
					if how == "Read" {
						_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
					} else {
						_, err = io.Copy(struct{ io.Writer }{io.Discard}, r)
					}
					if err != nil {
						b.Fatal(err)
					}
					if err := r.Close(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// testBlocksAtOnce compresses several blocks at once with writers that succeed, that cannot write, and whose source fails.
func testBlocksAtOnce(t *testing.T, name string, plain []byte) {
	serial := open(t, name)
	c := AtOnce(serial, 3)
	one, stream := compress(t, serial, plain), compress(t, c, plain)
	if len(stream) > len(one)+len(one)/50 {
		t.Errorf("%d bytes became %d, one after the other %d", len(plain), len(stream), len(one))
	}
	for _, n := range []int{0, 1, pieceSize, pieceSize + 1, len(plain)} {
		got := compress(t, c, plain[:n])
		if back, err := decompress(serial, bytes.NewReader(got)); err != nil || !bytes.Equal(back, plain[:n]) {
			t.Fatalf("%d bytes came back as %d: %v", n, len(back), err)
		}
		if same := bytes.Equal(got, compress(t, serial, plain[:n])); name == "lz4" && !same {
			t.Fatalf("the stream of %d bytes differs", n)
		}
	}
	for _, left := range []int{0, 100, len(stream) / 2, len(stream) - 1} {
		w, err := c.NewWriter(&failingWriter{left: left})
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Write(plain)
		if cerr := w.Close(); err == nil {
			err = cerr
		}
		if !errors.Is(err, errDisk) {
			t.Errorf("destination of %d bytes: %v", left, err)
		}
		w, err = c.NewWriter(io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, struct{ io.Reader }{io.MultiReader(bytes.NewReader(plain[:left]), iotest.ErrReader(errNetwork))}); !errors.Is(err, errNetwork) {
			t.Errorf("source failing after %d bytes: %v", left, err)
		}
		_ = w.Close() // the writer itself did not fail; whoever wrote drops the object
	}
	if AtOnce(c, 99) != AtOnce(c, MaxAtOnce) || AtOnce(c, 3) != c || AtOnce(c, 0) != AtOnce(c, 1) || c == AtOnce(c, 1) {
		t.Error("the number of blocks is not kept within its limits")
	}
}

func TestBlocksCompressedAtOnceMakeAStreamForEveryReaderAndLeaveNothingRunning(t *testing.T) {
	plain := append(heapPages(600, true), noise(5*mib)...)
	for _, name := range []string{"lz4", "zstd"} {
		t.Run(name, func(t *testing.T) { testBlocksAtOnce(t, name, plain) })
	}
	if AtOnce(none{}, 3) != (none{}) {
		t.Error("a method that compresses one block at a time was exchanged")
	}
	// By their stacks, as a count could be hidden by goroutines of something else that end meanwhile.
	stacks := make([]byte, mib)
	running := func() []byte { return stacks[:runtime.Stack(stacks, true)] }
	for deadline := time.Now().Add(5 * time.Second); bytes.Contains(running(), []byte("lz4stream")) || bytes.Contains(running(), []byte("codec.(*pieces)")); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("still running:\n%s", running())
		}
	}
}
