package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

const testRange = 512 << 10

// eager makes a store read ahead in small ranges, whether its readers wait or not.
func eager(s *Store) *Store {
	s.reading.size, s.reading.patient = testRange, false
	return s
}

// nothingLeft fails the test if requests or memory of downloads are still in use.
func nothingLeft(t *testing.T, s *Store) {
	t.Helper()
	r := &s.reading
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bodies != 0 || r.ranges != 0 || r.memory != 0 {
		t.Errorf("%d bodies, %d ranges, %d bytes are left", r.bodies, r.ranges, r.memory)
	}
	storagetest.WholeBudget(t, s.o.Budget)
}

// readRest reads a body to its end and closes it.
func readRest(t *testing.T, rc io.ReadCloser) ([]byte, error) {
	t.Helper()
	got, err := io.ReadAll(rc)
	if closeErr := rc.Close(); closeErr != nil {
		t.Error(closeErr)
	}
	return got, err
}

func mustOpen(t *testing.T, s *Store) io.ReadCloser {
	t.Helper()
	rc, err := s.Get(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	return rc
}

// ranged counts requests with a range.
func (f *fake) ranged() (n int) {
	for _, r := range f.requestsOf(http.MethodGet) {
		if r.header.Get("Range") != "" {
			n++
		}
	}
	return n
}

func TestALargeObjectIsReadAheadInRanges(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, testRange, 2*testRange - 1, 3 * testRange, 3*testRange + 1, 10*testRange - 1, 30*testRange + 77} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			want := randomBytes(7, size)
			f.put("/bucket/p/key", string(want), "")
			s := eager(openTest(t, f.options()))
			if got := mustGet(t, s, "key"); !bytes.Equal(got, want) {
				t.Errorf("%d other bytes", len(got))
			}
			nothingLeft(t, s)
			if n := f.count(http.MethodGet); size < 2*testRange && n != 1 {
				t.Errorf("%d requests for a small object", n)
			} else if most := size/testRange + 1; n > most || size >= 4*testRange && n < 3 {
				t.Errorf("%d requests", n)
			}
			covered := map[int]bool{}
			for i, r := range f.requestsOf(http.MethodGet) {
				var from, to int
				if _, err := fmt.Sscanf(r.header.Get("Range"), "bytes=%d-", &from); (err == nil) != (i > 0) {
					t.Errorf("request %d has the range %q", i, r.header.Get("Range"))
				}
				_, _ = fmt.Sscanf(r.header.Get("Range"), "bytes=%d-%d", &from, &to)
				if i > 0 && (covered[from] || r.header.Get("If-Match") != (fakeObject{content: want}).etag()) {
					t.Errorf("range %q, If-Match %q", r.header.Get("Range"), r.header.Get("If-Match"))
				}
				covered[from] = true
			}
		})
	}
}

func TestAReaderThatDoesNotWaitForTheNetworkReadsOverOneRequest(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	want := randomBytes(8, 20*testRange)
	f.put("/bucket/p/key", string(want), "")
	s := openTest(t, f.options())
	s.reading.size = testRange
	rc := mustOpen(t, s)
	rc.(*body).began = time.Now().Add(-time.Hour) // which its consumer needed for what it has read
	if got, err := readRest(t, rc); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if n := f.count(http.MethodGet); n != 1 {
		t.Errorf("%d requests", n)
	}
	nothingLeft(t, s)
}

func TestOnlyWhatIsFreeIsUsedToReadAhead(t *testing.T) {
	t.Parallel()
	want := randomBytes(9, 20*testRange)
	for name, prepare := range map[string]func(t *testing.T, s *Store){
		"one request at a time": func(_ *testing.T, s *Store) { s.o.DownloadConcurrency = 1 },
		"other readers": func(t *testing.T, s *Store) {
			s.o.DownloadConcurrency = 4
			for range 3 {
				rc := mustOpen(t, s)
				t.Cleanup(func() { _ = rc.Close() })
			}
		},
		"memory in use": func(t *testing.T, s *Store) {
			if err := s.o.Budget.Acquire(t.Context(), s.o.Budget.Size()-testRange+1); err != nil {
				t.Fatal(err)
			}
		},
		"uploads may need it": func(_ *testing.T, s *Store) { s.o.Budget = storage.NewBudget(minPartSize + testRange - 1) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.put("/bucket/p/key", string(want), "")
			s := eager(openTest(t, f.options()))
			prepare(t, s)
			if got, err := readRest(t, mustOpen(t, s)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if n := f.ranged(); n != 0 {
				t.Errorf("%d ranges", n)
			}
		})
	}

	t.Run("an upload that waits for memory gets it", func(t *testing.T) {
		t.Parallel()
		f := newFake(t)
		f.put("/bucket/p/key", string(want), "")
		o := f.options()
		o.Budget = storage.NewBudget(2 * minPartSize)
		s := eager(openTest(t, o))
		rc := mustOpen(t, s)
		got := make([]byte, 4*testRange)
		if _, err := io.ReadFull(rc, got); err != nil {
			t.Fatal(err)
		}
		upload := make(chan error, 1)
		go func() {
			err := o.Budget.Acquire(t.Context(), o.Budget.Size()) // all of it
			upload <- err
		}()
		rest, err := io.ReadAll(rc) // the ranges that are there already, and the rest without
		if err != nil || !bytes.Equal(append(got, rest...), want) {
			t.Errorf("%d bytes, %v", len(got)+len(rest), err)
		}
		if err := <-upload; err != nil {
			t.Error(err)
		}
		if err := rc.Close(); err != nil {
			t.Error(err)
		}
		o.Budget.Release(o.Budget.Size())
		nothingLeft(t, s)
	})
}

// An upload of what is downloaded from the same store must not wait for memory that its own source has.
func TestACopyWithinAStoreDoesNotWaitForItself(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	want := randomBytes(10, 30*testRange)
	f.put("/bucket/p/key", string(want), "")
	o := f.options()
	o.Budget = storage.NewBudget(minPartSize + 2*testRange)
	s := eager(openTest(t, o))
	var copies sync.WaitGroup
	for i := range 6 {
		copies.Go(func() {
			rc, err := s.Get(t.Context(), "key")
			if err == nil {
				err = errors.Join(s.Put(t.Context(), fmt.Sprint("copy", i), rc), rc.Close())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	copies.Wait()
	for i := range 6 {
		if !bytes.Equal(f.content(fmt.Sprint("/bucket/p/copy", i)), want) {
			t.Errorf("copy %d differs", i)
		}
	}
	nothingLeft(t, s)
}

func TestWhatHappensToARange(t *testing.T) {
	t.Parallel()
	want := randomBytes(11, 20*testRange)
	put := func(f *fake) { f.put("/bucket/p/key", string(want), "") }
	isRange := func(kind string, r *http.Request) bool {
		return kind == http.MethodGet && r.Header.Get("Range") != ""
	}
	var busy sync.Map
	const later = 4 // the first request is long over when the range of this number is asked for
	for name, c := range map[string]struct {
		fault  func(f *fake, number int, w http.ResponseWriter, r *http.Request) bool // of ranges only
		text   string                                                                 // of the error; "": the object arrives whole
		ranges bool                                                                   // the fault ends the reading ahead
	}{
		"it breaks off": {fault: func(_ *fake, number int, w http.ResponseWriter, _ *http.Request) bool {
			if number%3 == 1 {
				reset(w)
			}
			return number%3 == 1
		}},
		"it breaks off in the middle": {fault: func(f *fake, number int, w http.ResponseWriter, r *http.Request) bool {
			var from, to int
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err != nil || number != 2 {
				return false
			}
			w.Header().Set("Etag", (fakeObject{content: want}).etag())
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(want)))
			w.Header().Set("Content-Length", fmt.Sprint(to-from+1))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(want[from : from+1000])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}},
		"the service is busy": {fault: func(_ *fake, _ int, w http.ResponseWriter, r *http.Request) bool {
			_, again := busy.LoadOrStore(r.Header.Get("Range"), true)
			if !again {
				refuse(w, 503, "SlowDown")
			}
			return !again
		}},
		"the service knows no ranges": {ranges: true, fault: func(_ *fake, _ int, _ http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("Range")
			return false
		}},
		"the service refuses ranges": {ranges: true, fault: func(_ *fake, _ int, w http.ResponseWriter, _ *http.Request) bool {
			refuse(w, 501, "NotImplemented")
			return true
		}},
		"the service answers one request at a time": {ranges: true, fault: func(_ *fake, _ int, _ http.ResponseWriter, r *http.Request) bool {
			<-r.Context().Done()
			return true
		}},
		"the object is replaced": {text: "the object was replaced while it was read", fault: func(f *fake, number int, _ http.ResponseWriter, _ *http.Request) bool {
			if number == later {
				f.put("/bucket/p/key", strings.Repeat("x", len(want)), "")
			}
			return false
		}},
		"the object is replaced and the service knows no condition": {text: "the object was replaced while it was read",
			fault: func(f *fake, number int, _ http.ResponseWriter, r *http.Request) bool {
				r.Header.Del("If-Match")
				if number == later {
					f.put("/bucket/p/key", strings.Repeat("x", len(want)), "")
				}
				return false
			}},
		"the object is deleted": {text: "the object was deleted while it was read", fault: func(f *fake, number int, w http.ResponseWriter, _ *http.Request) bool {
			if number >= later {
				refuse(w, 404, "NoSuchKey")
			}
			return number >= later
		}},
		"it fails for good": {text: "broken off after", fault: func(_ *fake, number int, w http.ResponseWriter, _ *http.Request) bool {
			if number >= later {
				refuse(w, 500, "InternalError")
			}
			return number >= later
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			put(f)
			var mu sync.Mutex
			number := 0
			f.fault = func(f *fake, kind string, _ int, w http.ResponseWriter, r *http.Request) bool {
				if !isRange(kind, r) {
					return false
				}
				mu.Lock()
				number++
				n := number
				mu.Unlock()
				return c.fault(f, n, w, r)
			}
			s := eager(openTest(t, f.options()))
			got, err := readRest(t, mustOpen(t, s))
			switch {
			case c.text == "" && (err != nil || !bytes.Equal(got, want)):
				t.Errorf("%d bytes, %v", len(got), err)
			case c.text != "" && (err == nil || !strings.Contains(err.Error(), c.text) || errors.Is(err, fs.ErrNotExist)):
				t.Error(err)
			case c.text != "" && !bytes.HasPrefix(want, got):
				t.Errorf("%d bytes, not all of them the object's", len(got))
			}
			if n := f.ranged(); c.ranges && n > 5 { // each of them is tried five times at most
				t.Errorf("%d ranges", n)
			}
			nothingLeft(t, s)
			testenv.Figure(t, "faults of ranges", name, 1)
		})
	}
}

func TestAnObjectThatIsDeletedBeforeABrokenDownloadGoesOnIsNoMissingObject(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.put("/bucket/p/key", strings.Repeat("x", 1<<20), "")
	f.fault = func(f *fake, kind string, n int, w http.ResponseWriter, _ *http.Request) bool {
		switch {
		case kind != http.MethodGet:
			return false
		case n > 1:
			refuse(w, 404, "NoSuchKey")
			return true
		}
		w.Header().Set("Etag", `"etag"`)
		w.Header().Set("Content-Length", fmt.Sprint(1<<20))
		_, _ = w.Write(make([]byte, 1000))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	_, err := readRest(t, mustOpen(t, openTest(t, f.options())))
	if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "the object was deleted while it was read") {
		t.Error(err)
	}
}

func TestADownloadThatIsGivenUpLeavesNothing(t *testing.T) {
	t.Parallel()
	want := randomBytes(12, 20*testRange)
	for name, give := range map[string]func(t *testing.T, rc io.ReadCloser, cancel func()){
		"closed": func(_ *testing.T, _ io.ReadCloser, _ func()) {},
		"cancelled": func(t *testing.T, rc io.ReadCloser, cancel func()) {
			cancel()
			if _, err := io.Copy(io.Discard, rc); !errors.Is(err, context.Canceled) {
				t.Errorf("after the end of the context: %v", err)
			}
		},
	} {
		for _, read := range []int{0, 100, testRange, 2*testRange + 1, 6 * testRange} {
			t.Run(fmt.Sprintf("%s after %d bytes", name, read), func(t *testing.T) {
				t.Parallel()
				f := newFake(t)
				f.put("/bucket/p/key", string(want), "")
				f.fault = func(_ *fake, kind string, n int, _ http.ResponseWriter, r *http.Request) bool {
					if kind == http.MethodGet && n > 8 {
						<-r.Context().Done()
						return true
					}
					return false
				}
				s := eager(openTest(t, f.options()))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				rc, err := s.Get(ctx, "key")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.CopyN(io.Discard, rc, int64(read)); err != nil {
					t.Fatal(err)
				}
				give(t, rc, cancel)
				_ = rc.Close()
				nothingLeft(t, s)
				if _, err := rc.Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Errorf("read after close: %v", err)
				}
			})
		}
	}
}
