package gcs

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

// breaker stands between a store and a real server, remembers the requests and breaks answers.
type breaker struct {
	server *testenv.GCSServer
	front  *httptest.Server
	behind *httputil.ReverseProxy

	mu     sync.Mutex
	seen   []string // method, kind and query
	header []http.Header
	meddle func(kind string, n int, w http.ResponseWriter, r *http.Request) bool // n: of that kind, from 1
	counts map[string]int
}

func newBreaker(t *testing.T) *breaker {
	t.Helper()
	b := &breaker{counts: map[string]int{}}
	b.front = httptest.NewUnstartedServer(b)
	b.front.Config.ErrorLog = log.New(io.Discard, "", 0)
	b.front.Start()
	b.server = testenv.StartGCS(t, strings.TrimPrefix(b.front.URL, "http://"))
	target := &url.URL{Scheme: "http", Host: b.server.Address}
	transport := &http.Transport{DisableCompression: true}
	b.behind = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
		},
		Transport: transport, ErrorLog: b.front.Config.ErrorLog,
	}
	t.Cleanup(func() {
		b.front.CloseClientConnections()
		b.front.Close()
		transport.CloseIdleConnections()
	})
	return b
}

// open returns a store in a bucket of its own.
func (b *breaker) open(t *testing.T, change ...func(*Options)) *Store {
	t.Helper()
	o := serverOptions(b.front.URL, b.server.NewBucket(t))
	o.ChunkSize = 1 << 20
	for _, f := range change {
		f(&o)
	}
	return openTest(t, o)
}

// set says what meddles with requests from now on.
func (b *breaker) set(meddle func(kind string, n int, w http.ResponseWriter, r *http.Request) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.meddle, b.counts, b.seen, b.header = meddle, map[string]int{}, nil, nil
}

func (b *breaker) count(kind string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts[kind]
}

// kindOf names a request: put (of one request), begin, chunk, last, cancel, get, stat, list, delete.
func kindOf(r *http.Request) string {
	q := r.URL.Query()
	switch {
	case q.Get("uploadType") == "multipart":
		return "put"
	case r.Method == http.MethodPost && q.Has("upload_id") || r.Method == http.MethodPut:
		if strings.HasSuffix(r.Header.Get("Content-Range"), "/*") {
			return "chunk"
		}
		return "last"
	case r.Method == http.MethodDelete && q.Has("upload_id"):
		return "cancel"
	case q.Get("uploadType") == "resumable":
		return "begin"
	case q.Get("alt") == "media":
		return "get"
	case r.Method == http.MethodDelete:
		return "delete"
	case strings.HasSuffix(r.URL.Path, "/o"):
		return "list"
	}
	return "stat"
}

// ServeHTTP implements http.Handler.
func (b *breaker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind := kindOf(r)
	b.mu.Lock()
	b.counts[kind]++
	n, meddle := b.counts[kind], b.meddle
	b.seen = append(b.seen, kind+" "+r.URL.RawQuery+" "+r.Header.Get("Range"))
	b.header = append(b.header, r.Header.Clone())
	b.mu.Unlock()
	if meddle == nil || !meddle(kind, n, w, r) {
		b.behind.ServeHTTP(w, r)
	}
}

// answer lets the server answer.
func (b *breaker) answer(r *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	b.behind.ServeHTTP(rec, r)
	return rec
}

func pass(w http.ResponseWriter, rec *httptest.ResponseRecorder, body []byte) {
	for name, values := range rec.Header() {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(rec.Code)
	_, _ = w.Write(body)
}

// refuse answers as the service does.
func refuse(w http.ResponseWriter, r *http.Request, status int, reason, message string) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `{"error": {"code": %d, "message": %q, "errors": [{"domain": "global", "reason": %q, "message": %q}]}}`,
		status, message, reason, message)
}

func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err == nil {
		_ = conn.Close()
	}
}

func TestALostAnswerIsNoLostObject(t *testing.T) {
	t.Parallel()
	b := newBreaker(t)
	for kind, size := range map[string]int{"put": 1000, "last": 3<<20 + 5} {
		for _, isNew := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, new: %v", kind, isNew), func(t *testing.T) {
				s := b.open(t)
				content := randomBytes(1, size)
				b.set(func(k string, n int, w http.ResponseWriter, r *http.Request) bool {
					if k != kind || n > 1 {
						return false
					}
					b.answer(r)
					reset(w)
					return true
				})
				put := s.Put
				if isNew {
					put = s.PutNew
				}
				if err := put(t.Context(), "key", bytes.NewReader(content)); err != nil {
					t.Fatal(err)
				}
				if b.count(kind) < 1 || !bytes.Equal(mustGet(t, s, "key"), content) {
					t.Error("the object is not what was put")
				}
				if err := s.PutNew(t.Context(), "key", bytes.NewReader(content)); !errors.Is(err, storage.ErrExists) {
					t.Errorf("of a second writer: %v", err)
				}
			})
		}
	}
	t.Run("another writer's object is not taken for one's own", func(t *testing.T) {
		s := b.open(t)
		other := openTest(t, func() Options {
			o := s.o
			o.Emulator = b.server.Address
			return o
		}())
		b.set(func(k string, n int, w http.ResponseWriter, _ *http.Request) bool {
			if k != "put" || n > 1 {
				return false
			}
			mustPut(t, other, "key", []byte("theirs"))
			reset(w)
			return true
		})
		if err := s.PutNew(t.Context(), "key", strings.NewReader("ours")); !errors.Is(err, storage.ErrExists) {
			t.Errorf("PutNew = %v", err)
		}
		if got := mustGet(t, s, "key"); string(got) != "theirs" {
			t.Errorf("the object is %q", got)
		}
	})
}

func TestAStormIsSatOut(t *testing.T) {
	t.Parallel()
	b := newBreaker(t)
	var mu sync.Mutex
	waits := 0
	s := b.open(t, func(o *Options) {
		o.MaxRetries = 12 // requests under way at once share the storm
		o.OnRetry = func(err error, wait time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			if waits++; err == nil || wait <= 0 {
				t.Errorf("OnRetry(%v, %s)", err, wait)
			}
		}
	})
	small, large := randomBytes(1, 100), randomBytes(2, 3<<20+1)
	for _, storm := range []struct {
		status int
		reason string
	}{{503, "backendError"}, {429, "rateLimitExceeded"}, {500, "internalError"}, {408, "requestTimeout"}, {0, ""}} {
		b.set(func(_ string, n int, w http.ResponseWriter, r *http.Request) bool {
			if n%3 == 0 {
				return false
			}
			if storm.status == 0 {
				reset(w)
			} else {
				refuse(w, r, storm.status, storm.reason, "later")
			}
			return true
		})
		dir := fmt.Sprint(storm.status)
		mustPut(t, s, dir+"/small", small)
		if err := s.PutNew(t.Context(), dir+"/large", bytes.NewReader(large)); err != nil {
			t.Fatalf("%d: %v", storm.status, err)
		}
		if !bytes.Equal(mustGet(t, s, dir+"/large"), large) || !bytes.Equal(mustGet(t, s, dir+"/small"), small) {
			t.Errorf("%d: an object differs", storm.status)
		}
		if got := keys(t, s, dir+"/"); len(got) != 2 {
			t.Errorf("%d: List = %q", storm.status, got)
		}
		if _, err := s.Stat(t.Context(), dir+"/small"); err != nil {
			t.Error(err)
		}
		if err := s.Delete(t.Context(), dir+"/small", dir+"/large", dir+"/missing"); err != nil {
			t.Error(err)
		}
	}
	if waits == 0 {
		t.Error("OnRetry was never told")
	}
	s.o.MaxRetries = 2
	b.set(func(_ string, _ int, w http.ResponseWriter, r *http.Request) bool {
		refuse(w, r, 503, "backendError", "later")
		return true
	})
	for what, try := range map[string]func() error{
		"Put":       func() error { return s.Put(t.Context(), "x", bytes.NewReader(small)) },
		"large Put": func() error { return s.Put(t.Context(), "x", bytes.NewReader(large)) },
		"Get":       func() error { _, err := s.Get(t.Context(), "x"); return err },
		"Stat":      func() error { _, err := s.Stat(t.Context(), "x"); return err },
		"Delete":    func() error { return s.Delete(t.Context(), "x", "y") },
		"Check":     func() error { return s.Check(t.Context()) },
	} {
		err := try()
		if err == nil || storage.IsPermanent(err) || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "HTTP 503") {
			t.Errorf("%s = %v", what, err)
		}
	}
}

func TestADownloadIsContinuedWhereItBroke(t *testing.T) {
	t.Parallel()
	b := newBreaker(t)
	s := b.open(t)
	content := randomBytes(1, 2<<20)
	mustPut(t, s, "key", content)
	// cut sends the first bytes of an answer and then the end of the connection.
	cut := func(w http.ResponseWriter, r *http.Request, n int) {
		rec := b.answer(r)
		for name, values := range rec.Header() {
			w.Header()[name] = values
		}
		w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes()[:min(n, rec.Body.Len())])
		_ = http.NewResponseController(w).Flush()
		reset(w)
	}
	get := func() ([]byte, error) {
		r, err := s.Get(t.Context(), "key")
		if err != nil {
			return nil, err
		}
		got, err := io.ReadAll(r)
		return got, errors.Join(err, r.Close())
	}
	t.Run("again and again, in one generation", func(t *testing.T) {
		b.set(func(k string, n int, w http.ResponseWriter, r *http.Request) bool {
			if k != "get" || n > 6 {
				return false
			}
			cut(w, r, 300_000)
			return true
		})
		got, err := get()
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		for _, request := range b.seen[1:] {
			if strings.HasPrefix(request, "get") && (!strings.Contains(request, "generation=") || !strings.Contains(request, "bytes=")) {
				t.Errorf("a continuation asks for %s", request)
			}
		}
	})
	t.Run("not for ever without a byte", func(t *testing.T) {
		b.set(func(k string, n int, w http.ResponseWriter, r *http.Request) bool {
			cut(w, r, map[bool]int{true: 1000}[n == 1])
			return k == "get"
		})
		_, err := get()
		if err == nil || !strings.Contains(err.Error(), "broken off after 1000 of 2097152 bytes") {
			t.Errorf("Read = %v", err)
		}
		if n := b.count("get"); n != 1+s.o.MaxRetries {
			t.Errorf("%d requests", n)
		}
	})
	t.Run("not with another object", func(t *testing.T) {
		b.set(func(k string, n int, w http.ResponseWriter, r *http.Request) bool {
			if k != "get" || n > 1 {
				return false
			}
			cut(w, r, 1000)
			return true
		})
		r, err := s.Get(t.Context(), "key")
		if err != nil {
			t.Fatal(err)
		}
		mustPut(t, s, "key", randomBytes(9, 2<<20))
		_, err = io.ReadAll(r)
		if err := errors.Join(r.Close()); err != nil {
			t.Error(err)
		}
		if err == nil || !strings.Contains(err.Error(), "replaced or deleted while it was read") {
			t.Errorf("Read = %v", err)
		}
		mustPut(t, s, "key", content)
	})
	for name, change := range map[string]func([]byte) []byte{
		"a bit flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"cut":           func(b []byte) []byte { return b[:len(b)/2] },
		"empty":         func([]byte) []byte { return nil },
		"longer":        func(b []byte) []byte { return append(b, 0) },
	} {
		t.Run("not with a body that is "+name, func(t *testing.T) {
			b.set(func(k string, _ int, w http.ResponseWriter, r *http.Request) bool {
				if k == "get" {
					rec := b.answer(r)
					pass(w, rec, change(rec.Body.Bytes()))
				}
				return k == "get"
			})
			if got, err := get(); err == nil || !strings.Contains(err.Error(), "content is damaged: CRC32C is") {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

func TestDamageOnTheWayUpIsNoticedAndNothingStays(t *testing.T) {
	t.Parallel()
	b := newBreaker(t)
	for kind, size := range map[string]int{"put": 10_000, "chunk": 3<<20 + 5, "last": 3<<20 + 6} {
		t.Run(kind, func(t *testing.T) {
			s := b.open(t)
			b.set(func(k string, _ int, w http.ResponseWriter, r *http.Request) bool {
				if k == kind {
					body, err := io.ReadAll(r.Body)
					if err != nil {
						t.Error(err)
					}
					body[len(body)-100] ^= 4
					r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
				}
				return false
			})
			if err := s.Put(t.Context(), "key", bytes.NewReader(randomBytes(1, size))); err == nil {
				t.Error("no error")
			}
			b.set(nil)
			if _, err := s.Stat(t.Context(), "key"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Stat = %v", err)
			}
		})
	}
	t.Run("an answer of other bytes", func(t *testing.T) {
		s := b.open(t)
		b.set(func(k string, _ int, w http.ResponseWriter, r *http.Request) bool {
			if k == "put" {
				rec := b.answer(r)
				pass(w, rec, bytes.Replace(rec.Body.Bytes(), []byte(`"size":"5"`), []byte(`"size":"6"`), 1))
			}
			return k == "put"
		})
		err := s.Put(t.Context(), "key", strings.NewReader("12345"))
		if err == nil || !strings.Contains(err.Error(), "stored other bytes than were sent: 6 bytes") {
			t.Errorf("Put = %v", err)
		}
		if _, err := s.Stat(t.Context(), "key"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat = %v", err)
		}
	})
	t.Run("a success from someone else", func(t *testing.T) {
		s := b.open(t)
		for _, page := range []string{"<html>Please log in.</html>", "{}"} {
			b.set(func(_ string, _ int, w http.ResponseWriter, r *http.Request) bool {
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(w, page)
				return true
			})
			for _, size := range []int{5, 3 << 20} {
				if err := s.Put(t.Context(), "key", bytes.NewReader(randomBytes(1, size))); err == nil {
					t.Errorf("%s: no error from Put of %d bytes", page, size)
				}
			}
		}
	})
}

func TestAFailedUploadIsCancelledAndEverythingEnds(t *testing.T) {
	b := newBreaker(t)
	s := b.open(t, func(o *Options) { o.Budget = storage.NewBudget(8 << 20) })
	mustPut(t, s, "warm", []byte("x"))
	before := runtime.NumGoroutine()
	ended, end := context.WithCancel(t.Context())
	for name, try := range map[string]func() error{
		"the source fails": func() error {
			return s.Put(t.Context(), "key", io.MultiReader(bytes.NewReader(randomBytes(1, 4<<20)), iotest.ErrReader(io.ErrUnexpectedEOF)))
		},
		"the source fails at once": func() error { return s.Put(t.Context(), "key", iotest.ErrReader(io.ErrUnexpectedEOF)) },
		"the context ends": func() error {
			return s.Put(ended, "key", io.MultiReader(bytes.NewReader(randomBytes(1, 4<<20)), readerFunc(func([]byte) (int, error) {
				end()
				return 0, nil
			})))
		},
		"the service refuses": func() error {
			b.set(func(k string, n int, w http.ResponseWriter, r *http.Request) bool {
				if k == "chunk" && n == 3 {
					refuse(w, r, 403, "forbidden", "no")
					return true
				}
				return false
			})
			return s.Put(t.Context(), "key", bytes.NewReader(randomBytes(1, 6<<20)))
		},
	} {
		b.set(nil)
		if err := try(); err == nil {
			t.Errorf("%s: no error", name)
		}
		if b.count("begin") != b.count("cancel") {
			t.Errorf("%s: %d sessions were begun and %d cancelled", name, b.count("begin"), b.count("cancel"))
		}
		b.set(nil)
		if _, err := s.Stat(t.Context(), "key"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: Stat = %v", name, err)
		}
	}
	storagetest.WholeBudget(t, s.o.Budget)
	b.front.CloseClientConnections()
	deadline := time.Now().Add(time.Minute)
	for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	if n := runtime.NumGoroutine(); n > before {
		stacks := make([]byte, 1<<20)
		t.Errorf("%d goroutines, %d before:\n%s", n, before, stacks[:runtime.Stack(stacks, true)])
	}
}

type readerFunc func(p []byte) (int, error)

// Read implements io.Reader.
func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestRefusalsAreSaidInAnOperatorsWords(t *testing.T) {
	t.Parallel()
	b := newBreaker(t)
	for _, test := range []struct {
		status          int
		reason, message string
		want, hint      string
		permission      bool
	}{
		{401, "authError", "Invalid Credentials", "the service does not accept the credentials: Invalid Credentials", "GOOGLE_APPLICATION_CREDENTIALS", false},
		{403, "forbidden", "sa@x does not have storage.objects.get access.", "access denied: sa@x does not have storage.objects.get access", "storage.objects.get", true},
		{403, "retentionPolicyNotMet", "Object is under retention", "retention does not allow it yet: Object is under retention", "", false},
		{400, "customerEncryptionKeyIsIncorrect", "The provided key is wrong.", "encryption key does not fit", "GCS_ENCRYPTION_KEY", false},
		{400, "ResourceIsEncryptedWithCustomerEncryptionKey", "The key is needed.", "encryption key does not fit", "GCS_ENCRYPTION_KEY", false},
		{400, "invalid", "Bad Request", "HTTP 400 Bad Request", "", false},
	} {
		s := b.open(t)
		b.set(func(_ string, _ int, w http.ResponseWriter, r *http.Request) bool {
			refuse(w, r, test.status, test.reason, test.message)
			return true
		})
		for what, try := range map[string]func() error{
			"Put":    func() error { return s.Put(t.Context(), "x", strings.NewReader("y")) },
			"Get":    func() error { _, err := s.Get(t.Context(), "x"); return err },
			"Stat":   func() error { _, err := s.Stat(t.Context(), "x"); return err },
			"Delete": func() error { return s.Delete(t.Context(), "x") },
			"Check":  func() error { return s.Check(t.Context()) },
		} {
			err := try()
			var hinter interface{ Hint() string }
			if err == nil || !strings.Contains(err.Error(), test.want) || !storage.IsPermanent(err) || errors.Is(err, fs.ErrNotExist) ||
				errors.Is(err, fs.ErrPermission) != test.permission || !errors.As(err, &hinter) || !strings.Contains(hinter.Hint(), test.hint) {
				t.Errorf("%s after %d %s = %v", what, test.status, test.reason, err)
			}
		}
	}
	t.Run("a missing bucket is no missing object", func(t *testing.T) {
		b.set(nil)
		s := b.open(t, func(o *Options) { o.Bucket = "no-such-bucket" })
		_, statErr := s.Stat(t.Context(), "x")
		_, getErr := s.Get(t.Context(), "x")
		for _, err := range []error{
			statErr, getErr, s.Put(t.Context(), "x", strings.NewReader("y")), s.PutNew(t.Context(), "x", bytes.NewReader(make([]byte, 3<<20))),
			s.Delete(t.Context(), "x"), s.Check(t.Context()),
		} {
			if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), `bucket "no-such-bucket" does not exist`) {
				t.Errorf("%v", err)
			}
		}
	})
	t.Run("an answer that takes too long", func(t *testing.T) {
		s := b.open(t, func(o *Options) { o.RequestTimeout, o.MaxRetries = 50*time.Millisecond, 1 })
		b.set(func(_ string, _ int, _ http.ResponseWriter, r *http.Request) bool {
			<-r.Context().Done()
			return true
		})
		_, err := s.Stat(t.Context(), "x")
		var hinter interface{ Hint() string }
		if err == nil || !strings.Contains(err.Error(), "no answer within 50ms") || !errors.As(err, &hinter) || !strings.Contains(hinter.Hint(), "GCS_CONTEXT_TIMEOUT") {
			t.Errorf("Stat = %v", err)
		}
	})
	t.Run("the end of a deadline tells what was tried until then", func(t *testing.T) {
		s := b.open(t, func(o *Options) { o.MinRetryDelay, o.MaxRetryDelay, o.MaxRetries = time.Hour, time.Hour, 9 })
		b.set(func(_ string, _ int, w http.ResponseWriter, r *http.Request) bool {
			refuse(w, r, 503, "backendError", "later")
			return true
		})
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		err := s.Put(ctx, "x", strings.NewReader("y"))
		if !errors.Is(err, context.DeadlineExceeded) || storage.LastFailure(err) == nil || !strings.Contains(err.Error(), "HTTP 503") {
			t.Errorf("Put = %v", err)
		}
	})
}

func TestNamesAreThoseOfWALGAndWALE(t *testing.T) {
	t.Parallel()
	b := newBreaker(t)
	for _, test := range []struct {
		prefix string
		keep   bool
		name   string // of the key "wal_005/x"
		shown  string
	}{
		{"", false, "wal_005/x", ""},
		{"/p/q/", false, "p/q/wal_005/x", "/p/q"},
		{"p", true, "p/wal_005/x", "/p"},
		{"/p", true, "/p/wal_005/x", "//p"},
		{"/", true, "/wal_005/x", "/"},
		{"", true, "wal_005/x", ""},
	} {
		b.set(nil)
		s := b.open(t, func(o *Options) { o.Prefix, o.KeepSlashes = test.prefix, test.keep })
		mustPut(t, s, "wal_005/x", []byte("content"))
		bare := openTest(t, Options{Bucket: s.o.Bucket, Prefix: "", Emulator: b.server.Address})
		if o, err := bare.describe(t.Context(), bare.patience(t.Context(), 0), test.name); err != nil || o.Size != 7 {
			t.Errorf("%+v: %q: %v", test, test.name, err)
		}
		if got := keys(t, s, "wal_005/"); len(got) != 1 || got[0] != "wal_005/x" || string(mustGet(t, s, got[0])) != "content" {
			t.Errorf("%+v: List = %q", test, got)
		}
		if got := keys(t, s, ""); len(got) != 1 || got[0] != "wal_005/" {
			t.Errorf("%+v: List = %q", test, got)
		}
		if want := "gs://" + s.o.Bucket + test.shown; s.String() != want {
			t.Errorf("String = %q, want %q", s, want)
		}
	}
}

func TestTheCustomersKeyGoesWithContentAndIsNeverShown(t *testing.T) {
	t.Parallel()
	b := newBreaker(t)
	raw := randomBytes(7, 32)
	text := base64.StdEncoding.EncodeToString(raw)
	s := b.open(t, func(o *Options) { o.EncryptionKey = storage.Secret(text) })
	b.set(nil)
	mustPut(t, s, "small", []byte("x"))
	mustPut(t, s, "large", randomBytes(1, 3<<20))
	mustGet(t, s, "large")
	if _, err := s.Stat(t.Context(), "small"); err != nil {
		t.Fatal(err)
	}
	for i, h := range b.header {
		kind, _, _ := strings.Cut(b.seen[i], " ")
		if kind == "chunk" || kind == "last" {
			continue // the session has it
		}
		if h.Get("X-Goog-Encryption-Key") != text || h.Get("X-Goog-Encryption-Algorithm") != "AES256" {
			t.Errorf("%s was sent without the key", b.seen[i])
		}
	}
	if shown := fmt.Sprintf("%v %+v %#v", s.o, s.o, s.o); strings.Contains(shown, text) {
		t.Errorf("shown: %s", shown)
	}
	for _, key := range []string{"x", base64.StdEncoding.EncodeToString(raw[1:])} {
		if _, err := Open(Options{Bucket: "b", Emulator: "h:1", EncryptionKey: storage.Secret(key)}); err == nil || strings.Contains(err.Error(), key+" ") {
			t.Errorf("Open with a bad key = %v", err)
		}
	}
}

// issuer is a token endpoint that knows one key ID.
func issuer(t *testing.T, known *string) *httptest.Server {
	var mu sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		_ = r.ParseForm()
		assertion := strings.Split(r.Form.Get("assertion"), ".")
		header, _ := base64.RawURLEncoding.DecodeString(assertion[0])
		w.Header().Set("Content-Type", "application/json")
		if !strings.Contains(string(header), *known) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error": "invalid_grant", "error_description": "Invalid JWT Signature."}`)
			return
		}
		_, _ = fmt.Fprintf(w, `{"access_token": "token-of-%s", "expires_in": 3600, "token_type": "Bearer"}`, *known)
	}))
	t.Cleanup(server.Close)
	return server
}

func keyFile(t *testing.T, file, id, tokenURL string) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "p", "private_key_id": id, "client_email": "sa@p.iam.gserviceaccount.com", "client_id": "1",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": tokenURL,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	b := newBreaker(t)
	known := "first"
	tokens := issuer(t, &known)
	file := filepath.Join(t.TempDir(), "key.json")
	keyFile(t, file, "first", tokens.URL)
	authorized := func(t *testing.T) *Store {
		s := b.open(t)
		var err error
		if s.credentials, err = newCredentials(file, s.newTransport()); err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := authorized(t)
	valid := "Bearer token-of-first"
	b.set(func(_ string, _ int, w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != valid {
			refuse(w, r, 401, "authError", "Invalid Credentials")
			return true
		}
		return false
	})
	t.Run("a token goes with each request", func(t *testing.T) {
		mustPut(t, s, "key", []byte("x"))
		mustPut(t, s, "large", randomBytes(1, 3<<20))
		mustGet(t, s, "key")
	})
	t.Run("a key that was renewed in the file is used when the service does not know the old one any more", func(t *testing.T) {
		known, valid = "second", "Bearer token-of-second"
		keyFile(t, file, "second", tokens.URL)
		mustPut(t, s, "key", []byte("y"))
		if got := mustGet(t, s, "key"); string(got) != "y" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("a key that nobody knows is said", func(t *testing.T) {
		known = "none"
		_, err := authorized(t).Stat(t.Context(), "key")
		var hinter interface{ Hint() string }
		if err == nil || !strings.Contains(err.Error(), "no credentials:") || !strings.Contains(err.Error(), "invalid_grant") ||
			!storage.IsPermanent(err) || !errors.As(err, &hinter) || !strings.Contains(hinter.Hint(), "GOOGLE_APPLICATION_CREDENTIALS") {
			t.Errorf("Stat = %v", err)
		}
	})
	t.Run("a file that is none is said", func(t *testing.T) {
		dir := t.TempDir()
		for name, text := range map[string]string{"empty": "", "words": "hunter2", "type": `{"type": "hunter2"}`, "half": `{"type": "service_account"}`} {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := Open(Options{Bucket: "b", CredentialsFile: path})
			if err == nil {
				_, err = s.Stat(t.Context(), "key")
			}
			if err == nil || strings.Contains(err.Error(), "private") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := Open(Options{Bucket: "b", CredentialsFile: filepath.Join(dir, "missing")}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open = %v", err)
		}
	})
}

// It runs by itself, since it measures the memory of the whole process.
func Test300MiBPassThroughABudgetOf40MiB(t *testing.T) {
	server := testenv.StartGCS(t, "")
	o := serverOptions(server.Address, server.NewBucket(t))
	o.ChunkSize, o.Budget = 16<<20, storage.NewBudget(40<<20)
	s := openTest(t, o)
	peak := storagetest.WatchHeap(t)
	const size = 75 << 20
	var uploads sync.WaitGroup
	for i := range 4 {
		uploads.Go(func() {
			if err := s.Put(t.Context(), fmt.Sprintf("large/%d", i), bytes.NewReader(nil)); err != nil {
				t.Error(err)
			}
			if err := s.Put(t.Context(), fmt.Sprintf("large/%d", i), io.LimitReader(zeroes{}, size)); err != nil {
				t.Error(err)
			}
		})
	}
	uploads.Wait()
	if got := peak(); got < 16<<20 || got > 56<<20 {
		t.Errorf("the live heap grew by %d MiB", got>>20)
	}
	for i := range 4 {
		if o, err := s.Stat(t.Context(), fmt.Sprintf("large/%d", i)); err != nil || o.Size != size {
			t.Errorf("Stat = %+v, %v", o, err)
		}
	}
	storagetest.WholeBudget(t, o.Budget)
}

type zeroes struct{}

// Read implements io.Reader.
func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
