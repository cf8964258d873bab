package repo

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"gitlab.com/walden-pg/walden/internal/codec"
	"gitlab.com/walden-pg/walden/internal/crypt"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

// saltedCipher makes each sealing of the same bytes different, as every real cipher does. It authenticates nothing.
type saltedCipher struct{}

func (saltedCipher) Name() string { return "salted" }

func (saltedCipher) stream(iv []byte) cipher.Stream {
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		panic(err)
	}
	return cipher.NewCTR(block, iv)
}

func (c saltedCipher) Encrypt(w io.Writer) (io.WriteCloser, error) {
	iv := make([]byte, 16)
	_, _ = rand.Read(iv)
	if _, err := w.Write(iv); err != nil {
		return nil, err
	}
	return nopCloser{cipher.StreamWriter{S: c.stream(iv), W: w}}, nil
}

func (c saltedCipher) Decrypt(r io.Reader) (io.Reader, error) {
	iv := make([]byte, 16)
	if _, err := io.ReadFull(r, iv); err != nil {
		return nil, err
	}
	return cipher.StreamReader{S: c.stream(iv), R: r}, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func mustCodec(t testing.TB, name string) codec.Codec {
	t.Helper()
	c, err := codec.New(name, codec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func quick() Options {
	return Options{Retry: RetryPolicy{Attempts: 3, MinDelay: time.Microsecond, MaxDelay: time.Millisecond}}
}

func open(t testing.TB, s storage.Store, codecName string) *Repo {
	t.Helper()
	return New(s, mustCodec(t, codecName), saltedCipher{}, quick())
}

// text is about n bytes that compress to roughly half.
func text(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	for i := range b {
		b[i] = "0123456789abcdef"[b[i]%16]
	}
	return b
}

func read(r *Repo, object string) ([]byte, error) {
	o, err := r.Open(context.Background(), object)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(o)
	return b, errors.Join(err, o.Close())
}

func raw(t testing.TB, s storage.Store, key string) []byte {
	t.Helper()
	body, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(body)
	if err := errors.Join(err, body.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t testing.TB, s storage.Store, key string, b []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
}

// noLeaks fails the test if it leaves goroutines behind. Not for parallel tests.
func noLeaks(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for deadline := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; runtime.Gosched() {
			if time.Now().After(deadline) {
				stacks := make([]byte, 1<<16)
				t.Errorf("%d goroutines became %d:\n%s", before, runtime.NumGoroutine(),
					stacks[:runtime.Stack(stacks, true)])
				return
			}
		}
	})
}

func TestWhatIsPutIsMeasuredAndComesBack(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"lz4", "zstd", "brotli", "none"} {
		for _, k := range []crypt.Cipher{crypt.None{}, saltedCipher{}} {
			for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3*chunksPerPut*chunkSize + 777} {
				t.Run(fmt.Sprintf("%s, %s, %d bytes", name, k.Name(), size), func(t *testing.T) {
					t.Parallel()
					s, plain := storagetest.NewMemory(), text(size)
					r := New(s, mustCodec(t, name), k, quick())
					for _, put := range []func(context.Context, string, func(io.Writer) error) (Sealed, error){r.PutNew, r.Put} {
						sealed, err := put(t.Context(), "a/part_001.tar", func(w io.Writer) error {
							_, err := io.Copy(w, iotest.HalfReader(bytes.NewReader(plain)))
							return err
						})
						if err != nil {
							t.Fatal(err)
						}
						stored := raw(t, s, sealed.Object)
						want := Sealed{"a/part_001.tar" + mustCodec(t, name).Extension(), int64(len(stored)), int64(size), sha256.Sum256(stored)}
						if sealed != want {
							t.Errorf("sealed %+v, want %+v", sealed, want)
						}
						if got, err := read(r, sealed.Object); err != nil || !bytes.Equal(got, plain) {
							t.Errorf("%d bytes come back, %v", len(got), err)
						}
						o, err := r.OpenSealed(t.Context(), sealed.Object)
						if err != nil {
							t.Fatal(err)
						}
						if _, err := o.Sealed(); err == nil {
							t.Error("a hash is given before the end was read")
						}
						got, err := io.ReadAll(o)
						if err != nil || !bytes.Equal(got, plain) {
							t.Errorf("%d bytes come back, %v", len(got), err)
						}
						if measured, err := o.Sealed(); err != nil || measured != sealed {
							t.Errorf("measured %+v, %v, want %+v", measured, err, sealed)
						}
						if err := errors.Join(o.Close(), o.Close()); err != nil {
							t.Error(err)
						}
					}
					if _, err := r.PutNew(t.Context(), "a/part_001.tar", writeBytes(plain)); !errors.Is(err, storage.ErrExists) {
						t.Errorf("PutNew of a taken name: %v", err)
					}
				})
			}
		}
	}
}

func TestAFailedWriteLeavesNoObjectWhereverItHappens(t *testing.T) {
	noLeaks(t)
	errFile := errors.New("cannot read base/1/1259: input/output error")
	plain := text(300)
	for _, name := range []string{"lz4", "zstd", "none"} {
		s := storagetest.NewFault(storagetest.NewMemory())
		r := open(t, s, name)
		put(t, s, "x"+mustCodec(t, name).Extension(), []byte("old"))
		for n := 0; n < len(plain); n += testenv.Pick(7, 1) {
			s.Forget()
			_, err := r.Put(t.Context(), "x", func(w io.Writer) error {
				if _, err := w.Write(plain[:n]); err != nil {
					return err
				}
				return errFile
			})
			if err != errFile {
				t.Fatalf("%s, failing after %d bytes: %v", name, n, err)
			}
			if calls := s.Count(storagetest.OpPut); calls != 1 {
				t.Fatalf("%s: %d attempts, an error of write's own is not to be repeated", name, calls)
			}
		}
		big := text(6 << 20)
		for _, n := range []int{chunkSize, 5 * chunkSize, 4 << 20, 6 << 20} {
			_, err := r.Put(t.Context(), "x", func(w io.Writer) error {
				_, err := io.Copy(w, io.MultiReader(bytes.NewReader(big[:n]), iotest.ErrReader(errFile)))
				return err
			})
			if !errors.Is(err, errFile) {
				t.Fatalf("%s, failing after %d bytes: %v", name, n, err)
			}
		}
		if got := raw(t, s, "x"+mustCodec(t, name).Extension()); string(got) != "old" {
			t.Errorf("%s: what stood there is gone", name)
		}
	}
}

func TestAPanicInWriteLeavesNoObjectAndNoGoroutine(t *testing.T) {
	noLeaks(t)
	s := storagetest.NewMemory()
	r := open(t, s, "lz4")
	func() {
		defer func() {
			if p := recover(); p != "bug" {
				t.Errorf("recovered %v", p)
			}
		}()
		_, _ = r.Put(t.Context(), "x", func(w io.Writer) error {
			_, _ = w.Write(text(9 << 20))
			panic("bug")
		})
	}()
	if _, err := r.Find(t.Context(), "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an object is there: %v", err)
	}
}

func TestStoreFailuresAreRetriedFromTheBeginning(t *testing.T) {
	noLeaks(t)
	plain := text(2 << 20)
	for _, kind := range []storagetest.Kind{storagetest.Before, storagetest.Half, storagetest.AnswerLost} {
		for failures := range 4 {
			for _, op := range []storagetest.Op{storagetest.OpPut, storagetest.OpPutNew} {
				t.Run(fmt.Sprintf("%s fails %d times, kind %d", op, failures, kind), func(t *testing.T) {
					var rules []storagetest.Rule
					for n := range failures {
						rules = append(rules, storagetest.Rule{
							Kind: kind, Nth: n + 1, Match: func(c storagetest.Call) bool { return c.Op == op },
						})
					}
					s := storagetest.NewFault(storagetest.NewMemory(), rules...)
					r := open(t, s, "lz4")
					store := r.Put
					if op == storagetest.OpPutNew {
						store = r.PutNew
					}
					calls := 0
					sealed, err := store(t.Context(), "x", func(w io.Writer) error {
						calls++
						for piece := range slices.Chunk(plain, 100_000) {
							if _, err := w.Write(piece); err != nil {
								return err
							}
						}
						return nil
					})
					if calls > s.Count(op) { // fewer if the store failed before write was called
						t.Errorf("write was called %d times for %d attempts", calls, s.Count(op))
					}
					// The object of a lost answer is found by the second attempt.
					ours := kind == storagetest.AnswerLost && op == storagetest.OpPutNew
					if failures == 3 && !ours {
						if n := s.Count(op); !errors.Is(err, storagetest.ErrInjected) || n != 3 ||
							!strings.Contains(err.Error(), "tried 3 times") {
							t.Errorf("after %d attempts: %v", n, err)
						}
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					if got := raw(t, s, "x.lz4"); sealed.Size != int64(len(got)) || sealed.SHA256 != sha256.Sum256(got) {
						t.Errorf("sealed %+v is not what is stored (%d bytes)", sealed, len(got))
					}
					if got, err := read(r, "x.lz4"); err != nil || !bytes.Equal(got, plain) {
						t.Errorf("%d bytes come back, %v", len(got), err)
					}
				})
			}
		}
	}
}

func TestPutNewTellsItsOwnObjectFromAnothers(t *testing.T) {
	t.Parallel()
	other := storagetest.NewMemory()
	s := &hookedStore{Store: other}
	s.putNew = func(ctx context.Context, key string, body io.Reader) error {
		if s.calls.Add(1) == 1 { // all was sent, the connection broke, and somebody else came first
			if _, err := io.Copy(io.Discard, body); err != nil {
				return err
			}
			put(t, other, key, []byte("theirs"))
			return storagetest.ErrInjected
		}
		return other.PutNew(ctx, key, body)
	}
	if _, err := open(t, s, "lz4").PutNew(t.Context(), "x", writeBytes(text(1000))); !errors.Is(err, storage.ErrExists) {
		t.Errorf("PutNew = %v", err)
	}
	if string(raw(t, other, "x.lz4")) != "theirs" {
		t.Error("it was overwritten")
	}
}

func TestAnswersOfTheStoreAreNotAskedForTwice(t *testing.T) {
	t.Parallel()
	for _, answer := range []error{storage.Permanent(errors.New("no such bucket")), storage.ErrExists, fs.ErrPermission} {
		s := storagetest.NewFault(storagetest.NewMemory(), storagetest.Rule{Err: answer})
		if _, err := open(t, s, "zstd").PutNew(t.Context(), "x", writeBytes(nil)); !errors.Is(err, answer) || s.Count(storagetest.OpPutNew) != 1 {
			t.Errorf("%v: %v after %d attempts", answer, err, s.Count(storagetest.OpPutNew))
		}
	}
}

// hookedStore replaces single methods of a store.
type hookedStore struct {
	storage.Store
	calls  atomic.Int64
	put    func(ctx context.Context, key string, r io.Reader) error
	putNew func(ctx context.Context, key string, r io.Reader) error
}

func (s *hookedStore) Put(ctx context.Context, key string, r io.Reader) error {
	if s.put == nil {
		return s.Store.Put(ctx, key, r)
	}
	return s.put(ctx, key, r)
}

func (s *hookedStore) PutNew(ctx context.Context, key string, r io.Reader) error {
	if s.putNew == nil {
		return s.Store.PutNew(ctx, key, r)
	}
	return s.putNew(ctx, key, r)
}

func TestAStoreThatStopsReadingReleasesTheProducer(t *testing.T) {
	noLeaks(t)
	errFull := storage.Permanent(errors.New("no space left on device"))
	for _, n := range []int64{0, 1, chunkSize, 10 * chunkSize} {
		s := &hookedStore{put: func(_ context.Context, _ string, r io.Reader) error {
			_, err := io.CopyN(io.Discard, r, n)
			return errors.Join(err, errFull)
		}, Store: storagetest.NewMemory()}
		_, err := open(t, s, "none").Put(t.Context(), "x", writeBytes(make([]byte, 64<<20)))
		if !errors.Is(err, errFull) {
			t.Errorf("store failing after %d bytes: %v", n, err)
		}
		s.put = func(_ context.Context, _ string, r io.Reader) error {
			_, err := io.CopyN(io.Discard, r, n)
			return err
		}
		if _, err := open(t, s, "none").Put(t.Context(), "x", writeBytes(make([]byte, 64<<20))); err == nil {
			t.Errorf("a store that says yes to %d bytes of an object is believed", n)
		}
		if _, err := open(t, s, "none").Put(t.Context(), "x", writeBytes(make([]byte, n))); n == 0 && err == nil {
			t.Errorf("a store that never saw the end is believed")
		}
	}
}

func TestAReaderThatOutlivesPutGetsNothingMore(t *testing.T) {
	noLeaks(t)
	late := make(chan error, 1)
	returned := make(chan struct{})
	s := &hookedStore{put: func(_ context.Context, _ string, r io.Reader) error {
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
		go func() {
			<-returned
			n, err := r.Read(make([]byte, 100))
			late <- fmt.Errorf("%d: %w", n, err)
		}()
		return nil
	}, Store: storagetest.NewMemory()}
	if _, err := open(t, s, "lz4").Put(t.Context(), "x", writeBytes(text(1<<20))); err != nil {
		t.Fatal(err)
	}
	close(returned)
	if err := <-late; !errors.Is(err, errFinished) || !strings.HasPrefix(err.Error(), "0:") {
		t.Errorf("late read: %v", err)
	}
}

type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestCancellingReturnsItsCause(t *testing.T) {
	noLeaks(t)
	errStop := errors.New("another part failed first")
	stores := map[string]func(context.Context, string, io.Reader) error{
		"a store that hangs":   func(ctx context.Context, _ string, _ io.Reader) error { <-ctx.Done(); return ctx.Err() },
		"a store that is slow": func(_ context.Context, _ string, r io.Reader) error { _, err := io.Copy(io.Discard, r); return err },
	}
	for name, store := range stores {
		s := &hookedStore{put: store, Store: storagetest.NewMemory()}
		ctx, cancel := context.WithCancelCause(t.Context())
		calls := 0
		_, err := open(t, s, "none").Put(ctx, "x", func(w io.Writer) error {
			calls++
			for i := 0; ; i++ {
				if i == 3 {
					cancel(errStop)
				}
				if _, err := w.Write(make([]byte, chunkSize)); err != nil {
					return err
				}
			}
		})
		if !errors.Is(err, errStop) || calls != 1 {
			t.Errorf("%s: %v after %d attempts", name, err, calls)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	s := storagetest.NewFault(storagetest.NewMemory(), storagetest.Rule{Err: storagetest.ErrInjected})
	o := quick()
	o.Retry.MinDelay, o.Retry.MaxDelay = time.Hour, time.Hour
	o.Log = slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) { // it is told before the wait begins
		cancel(errStop)
		return len(b), nil
	}), nil))
	_, err := New(s, mustCodec(t, "none"), crypt.None{}, o).Put(ctx, "x", func(io.Writer) error { return nil })
	if !errors.Is(err, errStop) {
		t.Errorf("while waiting to try again: %v", err)
	}
}

func TestWhatDoesNotDecryptIsDamaged(t *testing.T) {
	t.Parallel()
	cipher, err := crypt.NewSodium(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	memory := storagetest.NewMemory()
	encrypted := func(s storage.Store) *Repo { return New(s, mustCodec(t, "none"), cipher, quick()) }
	plain := text(100_000)
	sealed, err := encrypted(memory).Put(t.Context(), "x", writeBytes(plain))
	if err != nil {
		t.Fatal(err)
	}
	if size, err := encrypted(memory).Measure(writeBytes(plain)); err != nil || size != sealed.Size {
		t.Errorf("it is measured as %d bytes and has %d (%v)", size, sealed.Size, err)
	}
	if _, err := encrypted(memory).Measure(func(io.Writer) error { return storagetest.ErrInjected }); !errors.Is(err, storagetest.ErrInjected) {
		t.Errorf("measuring what cannot be read: %v", err)
	}
	for kind, damage := range map[storagetest.Kind]bool{storagetest.Half: false, storagetest.Truncate: true, storagetest.FlipBit: true} {
		_, err := read(encrypted(storagetest.NewFault(memory, storagetest.Rule{Kind: kind})), sealed.Object)
		if err == nil || errors.Is(err, codec.ErrDamaged) != damage || errors.Is(err, storagetest.ErrInjected) == damage {
			t.Errorf("%v: %v", kind, err)
		}
	}
}

func TestDamagedObjectsAreToldFromBrokenReads(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"lz4", "zstd", "brotli"} {
		memory := storagetest.NewMemory()
		sealed, err := open(t, memory, name).Put(t.Context(), "x", writeBytes(text(512<<10)))
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			what   string
			kind   storagetest.Kind
			damage bool
		}{
			{"read breaks off", storagetest.Half, false},
			{"object is truncated", storagetest.Truncate, true},
			{"a bit is flipped", storagetest.FlipBit, true},
		} {
			if name == "brotli" && tt.kind == storagetest.FlipBit {
				continue // it may be silent, it has no checksum
			}
			r := open(t, storagetest.NewFault(memory, storagetest.Rule{Kind: tt.kind}), name)
			_, err := read(r, sealed.Object)
			if err == nil || errors.Is(err, codec.ErrDamaged) != tt.damage || errors.Is(err, storagetest.ErrInjected) == tt.damage {
				t.Errorf("%s, %s: %v", name, tt.what, err)
			}
			o, err := r.Open(t.Context(), sealed.Object)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, o); err == nil || errors.Is(err, codec.ErrDamaged) != tt.damage {
				t.Errorf("%s, copied, %s: %v", name, tt.what, err)
			}
			_ = o.Close()
		}
	}
}

func TestAnAlteredObjectHasAnotherHash(t *testing.T) {
	t.Parallel()
	memory := storagetest.NewMemory()
	sealed, err := open(t, memory, "none").Put(t.Context(), "x", writeBytes(text(1000)))
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []storagetest.Kind{storagetest.FlipBit, storagetest.Truncate} {
		r := open(t, storagetest.NewFault(memory, storagetest.Rule{Kind: kind}), "lz4")
		o, err := r.OpenSealed(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(o); err != nil {
			t.Fatal(err)
		}
		if got, err := o.Sealed(); err != nil || got.SHA256 == sealed.SHA256 {
			t.Errorf("kind %d: same hash, %v", kind, err)
		}
		_ = o.Close()
	}
}

func TestObjectsAreDecodedByTheirExtension(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	r := New(s, mustCodec(t, "lz4"), crypt.None{}, quick())
	plain := text(5000)
	for _, name := range []string{"lz4", "zstd", "lzma", "brotli"} {
		other := New(s, mustCodec(t, name), crypt.None{}, quick())
		sealed, err := other.Put(t.Context(), "wal/000000010000000000000006", writeBytes(plain))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := read(r, sealed.Object); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %d bytes, %v", sealed.Object, len(got), err)
		}
	}
	for _, object := range []string{"part_001.tar", "part_001.tar.", "000000010000000000000006", "00000002.history",
		"000000010000000000000006.00000028.backup", "000000010000000000000006.partial"} {
		put(t, s, object, plain)
		if got, err := read(r, object); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %d bytes, %v", object, len(got), err)
		}
	}
}

func TestNamesAndExtensions(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	for name, want := range map[string]string{
		"lz4":  "X.lz4 X.zst X.lzma X.br X.gz X.lzo X. X",
		"zstd": "X.zst X.lz4 X.lzma X.br X.gz X.lzo X. X",
		"none": "X X.lz4 X.zst X.lzma X.br X.gz X.lzo X.",
	} {
		if got := strings.Join(open(t, s, name).Names("X"), " "); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	r := open(t, s, "lz4")
	for object, want := range map[string]string{
		"X.lz4": "X", "X.": "X", "X": "X", "X.gz": "X", "X.lzo": "X", "a.br/X": "a.br/X", "X.tar": "X.tar", "X.tar.zst": "X.tar", "X.tar.": "X.tar",
		"000000010000000000000006.00000028.backup": "000000010000000000000006.00000028.backup",
	} {
		if got := r.TrimExtension(object); got != want {
			t.Errorf("TrimExtension(%q) = %q, want %q", object, got, want)
		}
	}
}

func TestFindAnswersAsIfItHadAskedInOrder(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"lz4", "none"} {
		names := open(t, storagetest.NewMemory(), name).Names("X")
		for i := range len(names) + 1 { // the first that exists
			for j := range len(names) + 1 { // the one that cannot be asked about
				memory := storagetest.NewMemory()
				for _, n := range names[min(i, len(names)):] {
					put(t, memory, n, []byte(n))
				}
				s := storagetest.NewFault(memory, storagetest.Rule{
					Match: func(c storagetest.Call) bool { return j < len(names) && c.Key == names[j] },
				})
				o, err := open(t, s, name).Find(t.Context(), "X")
				switch {
				case j < len(names) && j <= i:
					if !errors.Is(err, storagetest.ErrInjected) || errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%q there, %q unknown: %v", names[i:], names[j], err)
					}
				case i < len(names):
					if err != nil || o.Key != names[i] || o.Size != int64(len(names[i])) {
						t.Errorf("%q there: %+v, %v", names[i:], o, err)
					}
				case !errors.Is(err, fs.ErrNotExist):
					t.Errorf("nothing there: %v", err)
				}
			}
		}
	}
}

func TestDocumentsAreStoredAsTheyAre(t *testing.T) {
	t.Parallel()
	s := storagetest.NewFault(storagetest.NewMemory(),
		storagetest.Rule{Kind: storagetest.Half, Nth: 1, Match: func(c storagetest.Call) bool { return c.Op == storagetest.OpGet }},
		storagetest.Rule{Kind: storagetest.AnswerLost, Nth: 1})
	r := open(t, s, "lz4")
	doc := []byte(`{"LSN": 12345}`)
	if err := r.PutPlainNew(t.Context(), "d.json", doc); err != nil {
		t.Fatal(err)
	}
	if err := r.PutPlainNew(t.Context(), "d.json", doc); !errors.Is(err, storage.ErrExists) {
		t.Errorf("PutPlainNew of a taken name: %v", err)
	}
	sealed, err := r.PutPlainStream(t.Context(), "d.json", writeBytes(doc))
	if want := (Sealed{"d.json", int64(len(doc)), int64(len(doc)), sha256.Sum256(doc)}); err != nil || sealed != want {
		t.Errorf("PutPlainStream = %+v, %v, want %+v", sealed, err, want)
	}
	if err := r.PutPlain(t.Context(), "d.json", doc); err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int64{int64(len(doc)), 1 << 20} {
		if got, err := r.GetPlain(t.Context(), "d.json", limit); err != nil || !bytes.Equal(got, doc) {
			t.Errorf("GetPlain = %q, %v", got, err)
		}
	}
	if got, err := r.GetPlain(t.Context(), "d.json", int64(len(doc))-1); !errors.Is(err, ErrTooLarge) || got != nil {
		t.Errorf("GetPlain with a lower limit: %q, %v", got, err)
	}
	if _, err := r.GetPlain(t.Context(), "none.json", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("GetPlain of nothing: %v", err)
	}
}

func TestADocumentIsReadAgainWhenTheStorageFailsInTheMiddle(t *testing.T) {
	t.Parallel()
	doc := text(100_000)
	own := errors.New("not what was expected")
	for _, c := range []struct {
		rule  storagetest.Rule
		own   error
		calls int
		want  error
	}{
		{storagetest.Rule{Kind: storagetest.Half, Nth: 3}, nil, 1, nil}, // no third reading
		{storagetest.Rule{Kind: storagetest.Half, Nth: 1}, nil, 2, nil},
		{storagetest.Rule{Kind: storagetest.Half}, nil, 3, storagetest.ErrInjected},
		{storagetest.Rule{Kind: storagetest.Truncate}, own, 1, own},
		{storagetest.Rule{Err: fs.ErrNotExist}, nil, 0, fs.ErrNotExist},
	} {
		inner := storagetest.NewMemory()
		if err := inner.Put(t.Context(), "d.json", bytes.NewReader(doc)); err != nil {
			t.Fatal(err)
		}
		r := New(storagetest.NewFault(inner, c.rule), mustCodec(t, "lz4"), crypt.None{}, quick())
		var got []byte
		calls := 0
		err := r.ReadPlain(t.Context(), "d.json", 1<<20, func(in io.Reader) (err error) {
			calls++
			if got, err = io.ReadAll(in); err != nil {
				return err
			}
			return c.own
		})
		if !errors.Is(err, c.want) || calls != c.calls || err == nil && !bytes.Equal(got, doc) {
			t.Errorf("%s: %d bytes after %d calls, %v", c.rule.Kind, len(got), calls, err)
		}
	}
}

// discardStore throws objects away, as slowly as a page cache.
type discardStore struct{ storage.Store }

func (discardStore) Put(_ context.Context, _ string, r io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, make([]byte, 64<<10))
	return err
}

func TestPutMemoryIsAnUpperBoundForParallelPuts(t *testing.T) {
	const parallel = 16
	r := New(discardStore{storagetest.NewMemory()}, mustCodec(t, "lz4"), saltedCipher{}, quick())
	piece := text(1 << 20)
	var before, at runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var arrived, done sync.WaitGroup
	arrived.Add(parallel)
	goOn := make(chan struct{})
	for i := range parallel {
		done.Go(func() {
			_, err := r.Put(t.Context(), fmt.Sprint(i), func(w io.Writer) error {
				for range 9 {
					if _, err := w.Write(piece); err != nil {
						return err
					}
				}
				arrived.Done()
				<-goOn
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	arrived.Wait()
	runtime.GC()
	runtime.ReadMemStats(&at)
	close(goOn)
	done.Wait()
	used, limit := int64(at.HeapAlloc)-int64(before.HeapAlloc), parallel*r.PutMemory()
	t.Logf("%d Puts of lz4 hold %.1f MiB, documented %.1f MiB", parallel, float64(used)/(1<<20), float64(limit)/(1<<20))
	if used > limit {
		t.Errorf("%d Puts hold %d bytes, documented are %d", parallel, used, limit)
	}
}

// fileStore writes into one directory, with the store's work reduced to the writing.
type fileStore struct {
	storage.Store
	dir string
}

func (s fileStore) Put(_ context.Context, key string, r io.Reader) error {
	f, err := os.Create(filepath.Join(s.dir, key))
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, r, make([]byte, 256<<10))
	return errors.Join(err, f.Close())
}

// pages is n bytes that compress like heap pages, to about a tenth.
func pages(n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 128 {
		copy(b[i:], fmt.Sprintf("\x00\x01%010d balance %08x", i, i*2654435761))
	}
	return b
}

func BenchmarkPut(b *testing.B) {
	for kind, plain := range map[string][]byte{"pages": pages(64 << 20), "text": text(64 << 20)} {
		for _, name := range []string{"lz4", "none"} {
			b.Run(fmt.Sprintf("%s/%s", kind, name), func(b *testing.B) {
				b.ReportAllocs()
				r := New(fileStore{dir: b.TempDir()}, mustCodec(b, name), crypt.None{}, quick())
				b.SetBytes(int64(len(plain)))
				for b.Loop() {
					if _, err := r.Put(b.Context(), "x", func(w io.Writer) error {
						for piece := range slices.Chunk(plain, 64<<10) {
							if _, err := w.Write(piece); err != nil {
								return err
							}
						}
						return nil
					}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
