package s3

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
)

// fake is a small S3 in memory that remembers every request, and misbehaves where the test's fault says so.
type fake struct {
	t      *testing.T
	server *httptest.Server

	// fault may answer r itself and return true. n counts the requests of the same kind from 1.
	fault func(f *fake, kind string, n int, w http.ResponseWriter, r *http.Request) bool

	ignoreConditions bool

	mu       sync.Mutex
	objects  map[string]fakeObject
	uploads  map[string]map[int][]byte
	requests []fakeRequest
	counts   map[string]int
}

type fakeObject struct {
	content []byte
	token   string
}

func (o fakeObject) etag() string { return fmt.Sprintf(`"%x"`, md5.Sum(o.content)) }

type fakeRequest struct {
	kind   string
	path   string
	query  string
	header http.Header
	bytes  int
}

func newFake(t *testing.T) *fake {
	f := &fake{t: t, objects: map[string]fakeObject{}, uploads: map[string]map[int][]byte{}, counts: map[string]int{}}
	f.server = httptest.NewServer(f)
	t.Cleanup(f.server.Close)
	return f
}

func (f *fake) options() Options {
	return Options{
		Bucket: "bucket", Prefix: "p", Endpoint: f.server.URL, PathStyle: true,
		AccessKeyID: "access", SecretAccessKey: "topsecret", Conditional: ConditionalOn,
		PartSize: minPartSize, Concurrency: 3, Budget: storage.NewBudget(30 << 20),
		MaxRetries: 4, MinRetryDelay: time.Microsecond, MaxRetryDelay: time.Millisecond, ReadRetries: 3,
	}
}

func (f *fake) kind(r *http.Request) string {
	q := r.URL.Query()
	switch bucketOnly := strings.Count(strings.Trim(r.URL.Path, "/"), "/") == 0; {
	case q.Has("delete"):
		return "DeleteObjects"
	case q.Has("uploads"):
		return "Create"
	case q.Has("uploadId") && r.Method == http.MethodPut:
		return "Part"
	case q.Has("uploadId") && r.Method == http.MethodPost:
		return "Complete"
	case q.Has("uploadId") && r.Method == http.MethodGet:
		return "ListParts"
	case q.Has("uploadId"):
		return "Abort"
	case bucketOnly && r.Method == http.MethodGet:
		return "List"
	}
	return r.Method
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind := f.kind(r)
	f.mu.Lock()
	f.counts[kind]++
	n := f.counts[kind]
	f.requests = append(f.requests, fakeRequest{kind, r.URL.Path, r.URL.RawQuery, r.Header.Clone(), int(r.ContentLength)})
	f.mu.Unlock()
	if f.fault != nil && f.fault(f, kind, n, w, r) {
		return
	}
	f.serve(kind, w, r)
}

// serve carries the request out.
func (f *fake) serve(kind string, w http.ResponseWriter, r *http.Request) {
	content, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if want := r.Header.Get("Content-Md5"); want != "" && want != md5Base64(content) {
		refuse(w, 400, "BadDigest")
		return
	}
	if want := r.Header.Get("X-Amz-Checksum-Crc32"); want != "" {
		if got := crc32Base64(content); got != want {
			refuse(w, 400, "BadDigest")
			return
		}
		w.Header().Set("X-Amz-Checksum-Crc32", want)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	key := r.URL.Path
	object, found := f.objects[key]
	id := r.URL.Query().Get("uploadId")
	conflict := r.Header.Get("If-None-Match") == "*" && found && !f.ignoreConditions
	switch kind {
	case http.MethodPut:
		if conflict {
			refuse(w, 412, "PreconditionFailed")
			return
		}
		object = fakeObject{content, r.Header.Get("X-Amz-Meta-Walden-Put")}
		f.objects[key] = object
		w.Header().Set("Etag", object.etag())
	case http.MethodHead, http.MethodGet:
		if !found {
			refuse(w, 404, "NoSuchKey")
			return
		}
		w.Header().Set("Etag", object.etag())
		w.Header().Set("X-Amz-Meta-Walden-Put", object.token)
		f.mu.Unlock() // a body that nobody reads for a while holds no other request up
		defer f.mu.Lock()
		http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(object.content))
	case "Create":
		id = fmt.Sprintf("upload-%d", len(f.counts)+len(f.requests))
		f.uploads[id] = map[int][]byte{0: []byte(r.Header.Get("X-Amz-Meta-Walden-Put"))}
		_, _ = fmt.Fprintf(w, "<InitiateMultipartUploadResult><UploadId>%s</UploadId></InitiateMultipartUploadResult>", id)
	case "Part":
		number, _ := strconv.Atoi(r.URL.Query().Get("partNumber"))
		f.uploads[id][number] = content
		w.Header().Set("Etag", fmt.Sprintf(`"%x"`, md5.Sum(content)))
	case "Complete":
		parts, ok := f.uploads[id]
		if !ok {
			refuse(w, 404, "NoSuchUpload")
			return
		}
		if conflict {
			refuse(w, 412, "PreconditionFailed")
			return
		}
		object = fakeObject{token: string(parts[0])}
		for i := 1; i < len(parts); i++ {
			object.content = append(object.content, parts[i]...)
		}
		delete(f.uploads, id)
		f.objects[key] = object
		_, _ = fmt.Fprintf(w, "<CompleteMultipartUploadResult><ETag>%q</ETag></CompleteMultipartUploadResult>", "x")
	case "ListParts":
		if f.uploads[id] == nil {
			refuse(w, 404, "NoSuchUpload")
			return
		}
		_, _ = io.WriteString(w, "<ListPartsResult></ListPartsResult>")
	case "Abort":
		delete(f.uploads, id)
		w.WriteHeader(204)
	case http.MethodDelete:
		delete(f.objects, key)
		w.WriteHeader(204)
	case "DeleteObjects":
		var in struct {
			Object []struct{ Key string }
		}
		if err := xml.Unmarshal(content, &in); err != nil {
			f.t.Error(err)
		}
		for _, o := range in.Object {
			delete(f.objects, "/bucket/"+o.Key)
		}
		_, _ = io.WriteString(w, "<DeleteResult></DeleteResult>")
	case "List":
		_, _ = io.WriteString(w, "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
	default:
		f.t.Errorf("unexpected request %s %s", r.Method, r.URL)
	}
}

func (f *fake) count(kind string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[kind]
}

func (f *fake) kinds() (all []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		all = append(all, r.kind)
	}
	return all
}

func (f *fake) requestsOf(kind string) (all []fakeRequest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		if r.kind == kind {
			all = append(all, r)
		}
	}
	return all
}

func (f *fake) put(path, content, token string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects[path] = fakeObject{[]byte(content), token}
}

func (f *fake) content(path string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.objects[path].content
}

func crc32Base64(b []byte) string {
	sum := crc32.ChecksumIEEE(b)
	return base64.StdEncoding.EncodeToString([]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("X-Amz-Request-Id", "REQUEST1")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "<Error><Code>%s</Code><Message>message of %s</Message></Error>", code, code)
}

// reset ends the connection the hard way.
func reset(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	_ = conn.(*net.TCPConn).SetLinger(0)
	_ = conn.Close()
}

// loseAnswer carries the request out and then resets the connection.
func loseAnswer(f *fake, kind string, w http.ResponseWriter, r *http.Request) bool {
	f.serve(kind, httptest.NewRecorder(), r)
	reset(w)
	return true
}

const (
	small = 1000
	large = 3*minPartSize + 10 // four parts
)

func TestPutNewKnowsItsOwnObjectAfterALostAnswer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind string
		size int
	}{{http.MethodPut, small}, {"Complete", large}} {
		t.Run(c.kind, func(t *testing.T) {
			f := newFake(t)
			f.fault = func(f *fake, kind string, n int, w http.ResponseWriter, r *http.Request) bool {
				return kind == c.kind && n == 1 && loseAnswer(f, kind, w, r)
			}
			s := openTest(t, f.options())
			want := randomBytes(1, c.size)
			if err := s.PutNew(t.Context(), "key", bytes.NewReader(want)); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(f.content("/bucket/p/key"), want) {
				t.Error("other content")
			}
			if got := f.count(c.kind); got != 2 {
				t.Errorf("%d attempts", got)
			}
			if err := s.PutNew(t.Context(), "key", bytes.NewReader(want)); !errors.Is(err, storage.ErrExists) {
				t.Errorf("the same again: %v", err)
			}
			if len(f.uploads) != 0 {
				t.Error("an upload is left")
			}
		})
	}
}

func TestPutNewIsNotFooledByAnotherWritersObjectAfterAReset(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.fault = func(f *fake, kind string, n int, w http.ResponseWriter, _ *http.Request) bool {
		if kind != http.MethodPut || n > 1 {
			return false
		}
		f.put("/bucket/p/key", "other", "other token")
		reset(w)
		return true
	}
	err := openTest(t, f.options()).PutNew(t.Context(), "key", strings.NewReader("mine"))
	if !errors.Is(err, storage.ErrExists) {
		t.Error(err)
	}
	if want := `cannot create "key" in s3://bucket/p: object already exists`; err.Error() != want {
		t.Errorf("%v, want %v", err, want)
	}
}

func TestPutNewWithoutConditionsInTheService(t *testing.T) {
	t.Parallel()
	for _, size := range []int{small, large} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			f := newFake(t)
			f.fault = func(_ *fake, _ string, _ int, w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("If-None-Match") == "" {
					return false
				}
				_, _ = io.Copy(io.Discard, r.Body)
				refuse(w, 501, "NotImplemented")
				return true
			}
			s := openTest(t, f.options())
			want := randomBytes(1, size)
			if err := s.PutNew(t.Context(), "key", bytes.NewReader(want)); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(f.content("/bucket/p/key"), want) {
				t.Error("other content")
			}
			if err := s.PutNew(t.Context(), "key", bytes.NewReader(want)); !errors.Is(err, storage.ErrExists) {
				t.Errorf("taken key: %v", err)
			}
			before := len(f.kinds())
			if err := s.PutNew(t.Context(), "key2", strings.NewReader("x")); err != nil {
				t.Error(err)
			}
			if got, want := f.kinds()[before:], []string{"HEAD", "PUT", "HEAD"}; !slices.Equal(got, want) {
				t.Errorf("once refused, the requests are %v, want %v", got, want)
			}
			if len(f.uploads) != 0 {
				t.Error("an upload is left")
			}
		})
	}
}

func TestALateLoserWithoutConditionsLearnsIt(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.fault = func(f *fake, kind string, _ int, w http.ResponseWriter, r *http.Request) bool {
		if kind != http.MethodPut {
			return false
		}
		f.serve(kind, w, r)
		f.put("/bucket/p/key", "other", "other token")
		return true
	}
	o := f.options()
	o.Conditional = ConditionalOff
	if err := openTest(t, o).PutNew(t.Context(), "key", strings.NewReader("x")); !errors.Is(err, storage.ErrExists) {
		t.Error(err)
	}
}

func TestAnUnknownServiceIsAskedBeforeAConditionalPut(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.ignoreConditions = true
	o := f.options()
	o.Conditional = ConditionalAuto
	s := openTest(t, o)
	if err := s.PutNew(t.Context(), "key", strings.NewReader("first")); err != nil {
		t.Error(err)
	}
	if err := s.PutNew(t.Context(), "key", strings.NewReader("second")); !errors.Is(err, storage.ErrExists) {
		t.Error(err)
	}
	if got := string(f.content("/bucket/p/key")); got != "first" {
		t.Errorf("stored %q", got)
	}
	if got, want := f.kinds(), []string{"HEAD", "PUT", "HEAD"}; !slices.Equal(got, want) {
		t.Errorf("requests: %v, want %v", got, want)
	}
}

func TestAStormOfSlowDownIsSatOut(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.fault = func(_ *fake, kind string, n int, w http.ResponseWriter, r *http.Request) bool {
		if n%3 == 0 { // every third request of each kind is carried out
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body)
		refuse(w, 503, "SlowDown")
		return true
	}
	o := f.options()
	o.Concurrency = 1
	s := openTest(t, o)
	want := randomBytes(1, large)
	if err := s.PutNew(t.Context(), "key", bytes.NewReader(want)); err != nil {
		t.Fatal(err)
	}
	if got := mustGet(t, s, "key"); !bytes.Equal(got, want) {
		t.Error("other content")
	}
	f.fault = func(_ *fake, _ string, _ int, w http.ResponseWriter, _ *http.Request) bool {
		refuse(w, 503, "SlowDown")
		return true
	}
	before := len(f.kinds())
	_, err := s.Get(t.Context(), "key")
	if want := `cannot get "key" from s3://bucket/p: SlowDown: message of SlowDown (HTTP 503, request REQUEST1)`; err == nil || err.Error() != want {
		t.Errorf("%v, want %v", err, want)
	}
	if storage.IsPermanent(err) {
		t.Error("a storm is not permanent")
	}
	if got := len(f.kinds()) - before; got != 5 {
		t.Errorf("%d attempts, want 5", got)
	}
}

func TestDelaysGrowFromTheFirstToTheLongest(t *testing.T) {
	t.Parallel()
	waiting := &Store{o: Options{MinRetryDelay: time.Second, MaxRetryDelay: time.Minute}, window: newWindow(1)}
	r := waiting.newRetryer(&renewedCredentials{})
	slow := &deleteError{code: "SlowDown"}
	for _, c := range []struct {
		attempt  int
		err      error
		longest  time.Duration
		atLeast2 time.Duration
	}{
		{0, slow, time.Second, time.Second / 2}, {3, slow, 8 * time.Second, 4 * time.Second},
		{1000, slow, time.Minute, time.Minute / 2}, {0, io.EOF, time.Second / 10, time.Second / 20},
		{1000, io.EOF, 20 * time.Second, 10 * time.Second},
	} {
		for range 20 {
			if got, err := r.RetryDelay(c.attempt, c.err); err != nil || got > c.longest || got < c.atLeast2 {
				t.Errorf("attempt %d after %v: %v, %v", c.attempt, c.err, got, err)
			}
		}
	}
}

func TestADownloadIsContinuedWhereItBroke(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	want := randomBytes(3, size)
	cut := func(w http.ResponseWriter, r *http.Request, send int, rst bool) {
		conn, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		from := 0
		status := "200 OK\r\n"
		if h := r.Header.Get("Range"); h != "" {
			_, _ = fmt.Sscanf(h, "bytes=%d-", &from)
			status = fmt.Sprintf("206 Partial Content\r\nContent-Range: bytes %d-%d/%d\r\n", from, size-1, size)
		}
		_, _ = fmt.Fprintf(buf, "HTTP/1.1 %sEtag: %s\r\nContent-Length: %d\r\n\r\n", status,
			fakeObject{content: want}.etag(), size-from)
		_, _ = buf.Write(want[from : from+send])
		_ = buf.Flush()
		if rst {
			_ = conn.(*net.TCPConn).SetLinger(0)
		}
		_ = conn.Close()
	}
	for name, rst := range map[string]bool{"reset": true, "truncated": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.put("/bucket/p/key", string(want), "")
			f.fault = func(_ *fake, kind string, n int, w http.ResponseWriter, r *http.Request) bool {
				if kind != http.MethodGet || n > 6 { // more breaks than ReadRetries, each after progress
					return false
				}
				cut(w, r, 100_000, rst)
				return true
			}
			if got := mustGet(t, openTest(t, f.options()), "key"); !bytes.Equal(got, want) {
				t.Error("other content")
			}
			for i, r := range f.requestsOf(http.MethodGet) {
				if resumed := r.header.Get("Range") != ""; resumed != (i > 0) {
					t.Errorf("request %d has range %q", i, r.header.Get("Range"))
				} else if resumed && r.header.Get("If-Match") != (fakeObject{content: want}).etag() {
					t.Errorf("request %d has If-Match %q", i, r.header.Get("If-Match"))
				}
			}
		})
	}

	t.Run("not without end", func(t *testing.T) {
		t.Parallel()
		f := newFake(t)
		f.fault = func(_ *fake, _ string, n int, w http.ResponseWriter, r *http.Request) bool {
			send := 0
			if n == 1 {
				send = 5000
			}
			cut(w, r, send, false)
			return true
		}
		rc, err := openTest(t, f.options()).Get(t.Context(), "key")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rc.Close() }()
		got, err := io.ReadAll(rc)
		if len(got) != 5000 || !errors.Is(err, io.ErrUnexpectedEOF) ||
			!strings.Contains(err.Error(), `cannot read "key" from s3://bucket/p: broken off after 5000 of 1048576 bytes`) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if got := f.count(http.MethodGet); got != 4 {
			t.Errorf("%d requests, want 1 and 3 continuations", got)
		}
	})

	t.Run("not with another object", func(t *testing.T) {
		t.Parallel()
		f := newFake(t)
		f.put("/bucket/p/key", "replaced", "")
		f.fault = func(_ *fake, _ string, n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 1 {
				cut(w, r, 5, false)
			}
			return n == 1
		}
		rc, err := openTest(t, f.options()).Get(t.Context(), "key")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rc.Close() }()
		if _, err := io.ReadAll(rc); err == nil || !strings.Contains(err.Error(), "the object was replaced while it was read") {
			t.Error(err)
		}
	})

	t.Run("a service that ignores the range is not believed", func(t *testing.T) {
		t.Parallel()
		f := newFake(t)
		f.put("/bucket/p/key", string(want), "")
		f.fault = func(_ *fake, _ string, n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 1 {
				cut(w, r, 5, false)
			}
			r.Header.Del("Range")
			return n == 1
		}
		rc, err := openTest(t, f.options()).Get(t.Context(), "key")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rc.Close() }()
		if got, err := io.ReadAll(rc); err == nil || len(got) != 5 {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

func TestDamageOnTheWayIsNoticed(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.fault = func(_ *fake, kind string, _ int, w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("X-Amz-Checksum-Crc32", crc32Base64([]byte("stored")))
		w.Header().Set("Etag", `"etag"`)
		switch kind {
		case http.MethodGet:
			_, _ = io.WriteString(w, "storeD")
		case http.MethodPut:
			w.WriteHeader(200)
		}
		return true
	}
	s := openTest(t, f.options())
	rc, err := s.Get(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rc.Close() }()
	if _, err := io.ReadAll(rc); err == nil || !strings.Contains(err.Error(), "content is damaged: CRC32 is") {
		t.Errorf("Get: %v", err)
	}
	if err := s.Put(t.Context(), "key", strings.NewReader("sent")); err == nil ||
		!strings.Contains(err.Error(), "the service stored other bytes than were sent") {
		t.Errorf("Put: %v", err)
	}
}

func TestAPartThatFailsTwiceIsSentAgain(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	var mu sync.Mutex
	attempts := map[string]int{}
	f.fault = func(_ *fake, kind string, _ int, w http.ResponseWriter, r *http.Request) bool {
		if kind != "Part" {
			return false
		}
		number := r.URL.Query().Get("partNumber")
		mu.Lock()
		attempts[number]++
		n := attempts[number]
		mu.Unlock()
		switch {
		case number == "2" && n == 1:
			_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
			reset(w)
			return true
		case number == "2" && n == 2:
			refuse(w, 500, "InternalError") // without reading the body
			return true
		}
		return false
	}
	o := f.options()
	s := openTest(t, o)
	want := randomBytes(4, large)
	if err := s.Put(t.Context(), "key", bytes.NewReader(want)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.content("/bucket/p/key"), want) {
		t.Error("other content")
	}
	if got := f.requestsOf("Create")[0].header.Get("X-Amz-Checksum-Algorithm"); got != "CRC32" {
		t.Errorf("announced checksum %q", got)
	}
	if f.count("Abort") != 0 || f.count("HEAD") != 0 {
		t.Errorf("requests: %v", f.kinds())
	}
	storagetest.WholeBudget(t, o.Budget)
}

func TestAFailedUploadIsAbortedExactlyOnce(t *testing.T) {
	t.Parallel()
	for _, failing := range []string{"Part", "Complete"} {
		t.Run(failing, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.fault = func(_ *fake, kind string, n int, w http.ResponseWriter, r *http.Request) bool {
				if kind != failing || kind == "Part" && n < 2 {
					return false
				}
				_, _ = io.Copy(io.Discard, r.Body)
				refuse(w, 403, "AccessDenied")
				return true
			}
			o := f.options()
			err := openTest(t, o).Put(t.Context(), "key", bytes.NewReader(randomBytes(1, 6*minPartSize)))
			if !errors.Is(err, fs.ErrPermission) || !storage.IsPermanent(err) {
				t.Errorf("Put: %v", err)
			}
			if got := f.count("Abort"); got != 1 {
				t.Errorf("%d aborts", got)
			}
			if len(f.uploads)+len(f.objects) != 0 {
				t.Errorf("left: %d uploads, %d objects", len(f.uploads), len(f.objects))
			}
			storagetest.WholeBudget(t, o.Budget)
		})
	}

	t.Run("also after the context has ended", func(t *testing.T) {
		t.Parallel()
		f := newFake(t)
		ctx, cancel := context.WithCancel(t.Context())
		f.fault = func(_ *fake, kind string, _ int, _ http.ResponseWriter, r *http.Request) bool {
			if kind != "Part" {
				return false
			}
			_, _ = io.Copy(io.Discard, r.Body)
			cancel()
			<-r.Context().Done()
			return true
		}
		o := f.options()
		err := openTest(t, o).Put(ctx, "key", bytes.NewReader(randomBytes(1, large)))
		if !errors.Is(err, context.Canceled) || len(f.uploads) != 0 || f.count("Abort") != 1 {
			t.Errorf("%v, %d uploads left, %d aborts", err, len(f.uploads), f.count("Abort"))
		}
		storagetest.WholeBudget(t, o.Budget)
	})

	t.Run("and a failure to abort names the upload", func(t *testing.T) {
		t.Parallel()
		f := newFake(t)
		f.fault = func(_ *fake, kind string, _ int, w http.ResponseWriter, r *http.Request) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			if kind == "Part" || kind == "Abort" {
				refuse(w, 403, "AccessDenied")
				return true
			}
			return false
		}
		err := openTest(t, f.options()).Put(t.Context(), "key", bytes.NewReader(randomBytes(1, large)))
		var hinter interface{ Hint() string }
		for id := range f.uploads {
			want := "access denied: message of AccessDenied; cannot abort multipart upload " + id + ": access denied"
			if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, &hinter) ||
				!strings.Contains(hinter.Hint(), "lifecycle") {
				t.Errorf("%v, want %s", err, want)
			}
		}
		if len(f.uploads) != 1 {
			t.Errorf("%d uploads", len(f.uploads))
		}
	})
}

func TestRefusalsAreSaidInAnOperatorsWords(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status       int
		code, region string
		want, hint   string
		is           error
		permanent    bool
	}{
		{404, "NoSuchBucket", "", `bucket "bucket" does not exist`, "create the bucket", nil, true},
		{404, "NoSuchKey", "", "object does not exist", "", fs.ErrNotExist, false},
		{403, "AccessDenied", "", "access denied: message of AccessDenied", "s3:ListBucket", fs.ErrPermission, true},
		{403, "InvalidAccessKeyId", "", "the service does not know the access key", "AWS_ACCESS_KEY_ID", nil, true},
		{403, "SignatureDoesNotMatch", "", "the service does not accept the signature", "AWS_SECRET_ACCESS_KEY", nil, true},
		{400, "ExpiredToken", "", "the session token has expired or is not valid", "new credentials", nil, true},
		{403, "RequestTimeTooSkewed", "", "the clock of this machine differs too much", "synchronise", nil, true},
		{301, "PermanentRedirect", "eu-west-3", `bucket "bucket" is in region eu-west-3, not in us-east-1`, "AWS_REGION", nil, true},
		{400, "AuthorizationHeaderMalformed", "", `bucket "bucket" is not in region us-east-1`, "AWS_REGION", nil, true},
		{403, "InvalidObjectState", "", "the object is archived", "restore it", nil, true},
		{400, "InvalidStorageClass", "", `does not know storage class "COLD"`, "S3_STORAGE_CLASS", nil, true},
		{409, "SomeConflict", "", "SomeConflict: message of SomeConflict (HTTP 409, request REQUEST1)", "", nil, false},
	} {
		t.Run(c.code, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.fault = func(_ *fake, _ string, _ int, w http.ResponseWriter, r *http.Request) bool {
				_, _ = io.Copy(io.Discard, r.Body)
				if c.region != "" {
					w.Header().Set("X-Amz-Bucket-Region", c.region)
				}
				refuse(w, c.status, c.code)
				return true
			}
			o := f.options()
			o.StorageClass = "COLD"
			s := openTest(t, o)
			_, getErr := s.Get(t.Context(), "a/key")
			errs := []error{getErr}
			if c.code != "NoSuchKey" {
				errs = append(errs, s.Put(t.Context(), "a/key", strings.NewReader("x")), s.Check(t.Context()))
			}
			for _, err := range errs {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("%v, want %s", err, c.want)
				}
				if strings.Contains(err.Error(), "topsecret") {
					t.Errorf("the error shows the secret: %v", err)
				}
				if c.is != nil && !errors.Is(err, c.is) {
					t.Errorf("%v is not %v", err, c.is)
				}
				if c.is != fs.ErrNotExist && errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%v is fs.ErrNotExist", err)
				}
				if storage.IsPermanent(err) != c.permanent {
					t.Errorf("%v: permanent is %v", err, !c.permanent)
				}
				var hinter interface{ Hint() string }
				if !errors.As(err, &hinter) || !strings.Contains(hinter.Hint(), c.hint) {
					t.Errorf("%v: no hint of %q", err, c.hint)
				}
			}
			if want := `cannot get "a/key" from s3://bucket/p: `; !strings.HasPrefix(getErr.Error(), want) {
				t.Errorf("%v, want %s…", getErr, want)
			}
		})
	}
}

func TestAMissingBucketIsNoMissingObjectInStat(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.fault = func(_ *fake, _ string, _ int, w http.ResponseWriter, _ *http.Request) bool {
		refuse(w, 404, "NoSuchBucket")
		return true
	}
	_, err := openTest(t, f.options()).Stat(t.Context(), "key")
	if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), `bucket "bucket" does not exist`) {
		t.Error(err)
	}

	f = newFake(t)
	s := openTest(t, f.options())
	for range 3 {
		if _, err := s.Stat(t.Context(), "key"); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	if got, want := f.kinds(), []string{"HEAD", "List", "HEAD", "HEAD"}; !slices.Equal(got, want) {
		t.Errorf("requests %v, want %v", got, want)
	}
}

func TestMissingCredentialsAreSaid(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	s := openTest(t, f.options())
	s.sdk = s3.New(s.sdk.Options(), func(o *s3.Options) { o.Credentials = &renewedCredentials{provider: noCredentials{}} })
	err := s.Check(t.Context())
	var hinter interface{ Hint() string }
	if err == nil || !strings.Contains(err.Error(), "cannot use s3://bucket/p: no credentials: none here") ||
		!errors.As(err, &hinter) || !strings.Contains(hinter.Hint(), "AWS_ACCESS_KEY_ID") {
		t.Error(err)
	}
}

// TestASuccessWithoutProofIsNone lets something in between answer with pages of its own, as a captive portal does.
func TestASuccessWithoutProofIsNone(t *testing.T) {
	t.Parallel()
	const html = "<html><head><title>Welcome</title></head><body>Please log in.</body></html>"
	for kind, size := range map[string]int{http.MethodPut: small, "Create": large, "Part": large, "Complete": large} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.fault = func(_ *fake, got string, _ int, w http.ResponseWriter, r *http.Request) bool {
				if got != kind {
					return false
				}
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Content-Type", "text/html")
				_, _ = io.WriteString(w, html)
				return true
			}
			s := openTest(t, f.options())
			for name, put := range map[string]func(context.Context, string, io.Reader) error{"Put": s.Put, "PutNew": s.PutNew} {
				if err := put(t.Context(), "key", bytes.NewReader(make([]byte, size))); err == nil {
					t.Errorf("%s succeeded", name)
				}
			}
		})
	}
}

func TestAnUploadThatCouldNotBeAbortedIsAbortedWhenTheServiceAnswersAgain(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	var down atomic.Bool
	down.Store(true)
	f.fault = func(_ *fake, kind string, _ int, w http.ResponseWriter, _ *http.Request) bool {
		if down.Load() && (kind == "Complete" || kind == "Abort") {
			refuse(w, 403, "AccessDenied")
			return true
		}
		return false
	}
	s := openTest(t, f.options())
	if err := s.Put(t.Context(), "large", bytes.NewReader(make([]byte, large))); err == nil ||
		!strings.Contains(err.Error(), "cannot abort multipart upload") {
		t.Fatal(err)
	}
	down.Store(false)
	if err := s.Put(t.Context(), "small", strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.uploads) != 0 {
		t.Errorf("%d uploads are left", len(f.uploads))
	}
}

// TestTheEndOfADeadlineTellsWhatWasTriedUntilThen wants more than "context deadline exceeded".
func TestTheEndOfADeadlineTellsWhatWasTriedUntilThen(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.fault = func(_ *fake, _ string, _ int, w http.ResponseWriter, _ *http.Request) bool {
		refuse(w, 503, "SlowDown")
		return true
	}
	o := f.options()
	o.MinRetryDelay, o.MaxRetryDelay = time.Hour, time.Hour
	told := make(chan error, 10)
	o.OnRetry = func(err error, _ time.Duration) { told <- err }
	s := openTest(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-told
		cancel()
	}()
	_, err := s.Get(ctx, "key")
	last := storage.LastFailure(err)
	if !errors.Is(err, context.Canceled) || last == nil || !strings.Contains(err.Error(), "SlowDown") {
		t.Errorf("%v; last failure: %v", err, last)
	}
	stalled := storage.WithStallLimit(s, 2*time.Second)
	_, err = stalled.Get(t.Context(), "key")
	if err == nil || !strings.Contains(err.Error(), "no progress for 2s") || !strings.Contains(err.Error(), "SlowDown") {
		t.Error(err)
	}
}

// TestAWrongClockIsCorrectedByTheServicesAnswer refuses what is not signed at the time of a service that is ahead.
func TestAWrongClockIsCorrectedByTheServicesAnswer(t *testing.T) {
	t.Parallel()
	const ahead, tolerated = time.Hour, 15 * time.Minute
	f := newFake(t)
	f.fault = func(_ *fake, _ string, _ int, w http.ResponseWriter, r *http.Request) bool {
		now := time.Now().Add(ahead)
		w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
		signed, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
		if err == nil && now.Sub(signed).Abs() < tolerated {
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body)
		refuse(w, 403, "RequestTimeTooSkewed")
		return true
	}
	s := openTest(t, f.options())
	if err := s.Put(t.Context(), "key", strings.NewReader("content")); err != nil {
		t.Error(err)
	}
	if got := mustGet(t, s, "key"); string(got) != "content" {
		t.Errorf("got %q", got)
	}
}

// TestCredentialsOfAFileAreReadAgainWhenTheServiceCallsThemExpired lets them be renewed behind walden's back.
func TestCredentialsOfAFileAreReadAgainWhenTheServiceCallsThemExpired(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{http.MethodPut, http.MethodHead, http.MethodGet, "List", "Part"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			o := f.options()
			o.AccessKeyID, o.SecretAccessKey = "", ""
			o.SharedCredentialsFile = filepath.Join(t.TempDir(), "credentials")
			write := func(token string) {
				text := "[default]\naws_access_key_id = access\naws_secret_access_key = secret\naws_session_token = " + token + "\n"
				if err := os.WriteFile(o.SharedCredentialsFile, []byte(text), 0o600); err != nil {
					t.Error(err)
				}
			}
			write("first")
			valid := "first"
			var mu sync.Mutex
			renewing := true
			f.fault = func(_ *fake, got string, _ int, w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				if got == kind && valid == "first" {
					valid = "second"
					if renewing {
						write("second")
					}
				}
				if r.Header.Get("X-Amz-Security-Token") == valid {
					return false
				}
				_, _ = io.Copy(io.Discard, r.Body)
				if r.Method == http.MethodHead {
					w.WriteHeader(400)
				} else {
					refuse(w, 400, "ExpiredToken")
				}
				return true
			}
			run := func() error {
				s := openTest(t, o)
				f.put("/bucket/p/there", "content", "")
				if kind == http.MethodHead {
					_, err := s.Stat(t.Context(), "there")
					return err
				}
				if err := s.Put(t.Context(), "key", bytes.NewReader(make([]byte, map[bool]int{false: small, true: large}[kind == "Part"]))); err != nil {
					return err
				}
				body, err := s.Get(t.Context(), "there")
				if err != nil {
					return err
				}
				return errors.Join(body.Close(), s.Check(t.Context()))
			}
			if err := run(); err != nil {
				t.Error(err)
			}
			mu.Lock()
			write("first")
			valid, renewing = "first", false
			mu.Unlock()
			err := run()
			var hinter interface{ Hint() string }
			if err == nil || !strings.Contains(err.Error(), "their source holds no newer ones") || !errors.As(err, &hinter) ||
				!strings.Contains(hinter.Hint(), "renew the credentials") {
				t.Error(err)
			}
		})
	}
}

func TestDeleteNamesWhatStayed(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.fault = func(_ *fake, kind string, _ int, w http.ResponseWriter, r *http.Request) bool {
		if kind != "DeleteObjects" {
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `<DeleteResult>`+
			`<Error><Key>p/dir/b</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>`+
			`<Error><Key>p/dir/c</Key><Code>InternalError</Code><Message>oops</Message></Error>`+
			`<Error><Key>p/dir/d</Key><Code>NoSuchKey</Code></Error></DeleteResult>`)
		return true
	}
	err := openTest(t, f.options()).Delete(t.Context(), "dir/a", "dir/b", "dir/c", "dir/d")
	want := `cannot delete "dir/b" from s3://bucket/p: access denied` + "\n" +
		`cannot delete "dir/c" from s3://bucket/p: InternalError: oops`
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %v", err, want)
	}
}

func TestDeleteFindsTheFormThatTheServiceTakes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		refused func(r *http.Request) (int, string)
		then    []string
	}{
		{"Content-MD5 is needed", func(r *http.Request) (int, string) {
			if r.Header.Get("Content-Md5") == "" {
				return 400, "InvalidRequest"
			}
			return 0, ""
		}, []string{"DeleteObjects"}},
		{"no batches", func(*http.Request) (int, string) { return 501, "NotImplemented" }, []string{"DELETE", "DELETE"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.fault = func(_ *fake, kind string, _ int, w http.ResponseWriter, r *http.Request) bool {
				if kind != "DeleteObjects" {
					return false
				}
				status, code := c.refused(r)
				if status == 0 {
					return false
				}
				refuse(w, status, code)
				return true
			}
			s := openTest(t, f.options())
			for range 2 {
				f.put("/bucket/p/a", "", "")
				f.put("/bucket/p/b", "", "")
				f.requests = nil
				if err := s.Delete(t.Context(), "a", "b"); err != nil {
					t.Fatal(err)
				}
				if len(f.objects) != 0 {
					t.Error("objects are left")
				}
			}
			if got := f.kinds(); !slices.Equal(got, c.then) {
				t.Errorf("requests once it is known: %v, want %v", got, c.then)
			}
		})
	}

	t.Run("refused credentials are no refusal of the form", func(t *testing.T) {
		t.Parallel()
		f := newFake(t)
		f.fault = func(_ *fake, _ string, _ int, w http.ResponseWriter, _ *http.Request) bool {
			refuse(w, 403, "AccessDenied")
			return true
		}
		o := f.options()
		o.DeleteBatchSize = 2
		err := openTest(t, o).Delete(t.Context(), "a", "b", "c")
		if err == nil || !strings.HasPrefix(err.Error(),
			`cannot delete 3 objects from s3://bucket/p: "a", "b", "c": access denied`) {
			t.Error(err)
		}
		if got := f.kinds(); !slices.Equal(got, []string{"DeleteObjects"}) {
			t.Errorf("requests: %v", got)
		}
	})
}

func TestAListingThatCannotBeTrustedIsAnError(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"cut short":      `<IsTruncated>true</IsTruncated>`,
		"endless":        `<IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>`,
		"no listing":     ``,
		"foreign prefix": `<IsTruncated>false</IsTruncated><Contents><Key>elsewhere/x</Key></Contents>`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.fault = func(_ *fake, _ string, _ int, w http.ResponseWriter, _ *http.Request) bool {
				_, _ = io.WriteString(w, "<ListBucketResult>"+answer+"</ListBucketResult>")
				return true
			}
			var last error
			for _, err := range openTest(t, f.options()).List(t.Context(), "dir/") {
				last = err
			}
			if last == nil || !strings.HasPrefix(last.Error(), `cannot list "dir/" in s3://bucket/p: `) {
				t.Error(last)
			}
		})
	}
}

func TestAListingMixesObjectsAndDirectoriesInOrder(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.fault = func(_ *fake, _ string, n int, w http.ResponseWriter, _ *http.Request) bool {
		_, _ = io.WriteString(w, []string{
			`<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>2</NextContinuationToken>
			<Contents><Key>p/d/</Key><Size>0</Size></Contents><Contents><Key>p/d/a.x</Key><Size>1</Size></Contents>
			<Contents><Key>p/d/a0</Key><Size>2</Size></Contents>
			<CommonPrefixes><Prefix>p/d//</Prefix></CommonPrefixes><CommonPrefixes><Prefix>p/d/a/</Prefix></CommonPrefixes>
			<CommonPrefixes><Prefix>p/d/b/</Prefix></CommonPrefixes></ListBucketResult>`,
			`<ListBucketResult><CommonPrefixes><Prefix>p/d/b/</Prefix></CommonPrefixes>
			<Contents><Key>p/d/c</Key><Size>3</Size></Contents></ListBucketResult>`,
		}[n-1])
		return true
	}
	if got, want := keys(t, openTest(t, f.options()), "d/"), []string{"d/a.x", "d/a/", "d/a0", "d/b/", "d/c"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestHeadersOfTheOptionsAreSent(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	key := strings.Repeat("k", 32)
	o := f.options()
	o.StorageClass, o.SSE, o.SSEKMSKeyID = "STANDARD_IA", "aws:kms", "key-1"
	o.SessionToken, o.AdditionalHeaders = "the-session-token", Headers{"X-Gateway": "word"}
	o.Checksum = ChecksumMD5
	s := openTest(t, o)
	for _, size := range []int{small, large} {
		if err := s.Put(t.Context(), "key", bytes.NewReader(randomBytes(1, size))); err != nil {
			t.Fatal(err)
		}
	}
	for _, kind := range []string{http.MethodPut, "Create"} {
		r := f.requestsOf(kind)[0]
		for name, want := range map[string]string{
			"X-Amz-Storage-Class": "STANDARD_IA", "X-Amz-Server-Side-Encryption": "aws:kms",
			"X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "key-1", "X-Amz-Security-Token": "the-session-token",
			"X-Gateway": "word",
		} {
			if got := r.header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", kind, name, got, want)
			}
		}
		if r.path != "/bucket/p/key" {
			t.Errorf("%s: path %s", kind, r.path)
		}
		if !strings.Contains(r.header.Get("Authorization"), "x-gateway") {
			t.Errorf("%s: the additional header is not signed", kind)
		}
	}
	for _, kind := range []string{http.MethodPut, "Part"} {
		r := f.requestsOf(kind)[0]
		if r.header.Get("Content-Md5") == "" || r.header.Get("X-Amz-Checksum-Crc32") != "" ||
			r.header.Get("X-Amz-Content-Sha256") != "UNSIGNED-PAYLOAD" || r.header.Get("Content-Encoding") != "" {
			t.Errorf("%s: integrity headers %v", kind, r.header)
		}
	}

	t.Run("without checksums a plain connection is covered by the signature", func(t *testing.T) {
		f := newFake(t)
		o := f.options()
		o.Checksum = ChecksumNone
		if err := openTest(t, o).Put(t.Context(), "key", strings.NewReader("")); err != nil {
			t.Fatal(err)
		}
		h := f.requestsOf(http.MethodPut)[0].header
		if len(h.Get("X-Amz-Content-Sha256")) != 64 || h.Get("X-Amz-Checksum-Crc32") != "" || h.Get("X-Amz-Storage-Class") != "" {
			t.Errorf("headers %v", h)
		}
	})

	t.Run("customer key, over TLS with a private authority", func(t *testing.T) {
		f := newFake(t)
		f.server = httptest.NewTLSServer(f)
		t.Cleanup(f.server.Close)
		f.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
		o := f.options()
		o.SSECustomerKey = storage.Secret(key)
		if err := openTest(t, o).Check(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") ||
			!storage.IsPermanent(err) {
			t.Errorf("Check without the authority: %v", err)
		}
		o.CACertFile = filepath.Join(t.TempDir(), "ca.pem")
		cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.server.Certificate().Raw})
		if err := os.WriteFile(o.CACertFile, cert, 0o600); err != nil {
			t.Fatal(err)
		}
		s := openTest(t, o)
		for _, size := range []int{small, large} {
			if err := s.Put(t.Context(), "key", bytes.NewReader(randomBytes(1, size))); err != nil {
				t.Fatal(err)
			}
		}
		mustGet(t, s, "key")
		if _, err := s.Stat(t.Context(), "key"); err != nil {
			t.Fatal(err)
		}
		for _, kind := range []string{"PUT", "Create", "Part", "Complete", "GET", "HEAD"} {
			h := f.requestsOf(kind)[0].header
			if h.Get("X-Amz-Server-Side-Encryption-Customer-Algorithm") != "AES256" ||
				h.Get("X-Amz-Server-Side-Encryption-Customer-Key") != base64.StdEncoding.EncodeToString([]byte(key)) ||
				h.Get("X-Amz-Server-Side-Encryption-Customer-Key-Md5") != md5Base64([]byte(key)) ||
				h.Get("X-Amz-Server-Side-Encryption") != "" {
				t.Errorf("%s: headers %v", kind, h)
			}
		}
	})
}

func TestAStalledConnectionIsGivenUp(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.put("/bucket/p/key", "content", "")
	f.fault = func(_ *fake, _ string, n int, w http.ResponseWriter, r *http.Request) bool {
		if n > 1 {
			return false
		}
		<-r.Context().Done() // until the client hangs up
		return true
	}
	o := f.options()
	o.StallTimeout = 2 * time.Second
	if got := mustGet(t, openTest(t, o), "key"); string(got) != "content" {
		t.Errorf("%q", got)
	}
}

func TestRequestsAreLoggedWithoutSecrets(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	var log bytes.Buffer
	o := f.options()
	o.SessionToken = "the-session-token"
	o.LogRequests = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if err := openTest(t, o).Put(t.Context(), "key", strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	if got := log.String(); !strings.Contains(got, "method=PUT") || !strings.Contains(got, "path=/bucket/p/key") ||
		!strings.Contains(got, "status=200") || strings.Contains(got, "the-session-token") || strings.Contains(got, "Signature") {
		t.Error(got)
	}
}

// region answers like Amazon for a bucket in Frankfurt.
type region struct{ hosts []string }

func (f *region) Do(r *http.Request) (*http.Response, error) {
	f.hosts = append(f.hosts, r.Method+" "+r.URL.Host+" "+strconv.FormatBool(r.Header.Get("Authorization") != ""))
	resp := &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody, Request: r}
	if !strings.Contains(r.URL.Host, "eu-central-1") {
		resp.StatusCode = 301
		resp.Header.Set("X-Amz-Bucket-Region", "eu-central-1")
	} else if r.Method == http.MethodGet {
		resp.Body = io.NopCloser(strings.NewReader("<ListBucketResult><Name>bucket</Name></ListBucketResult>"))
	}
	return resp, nil
}

func TestTheRegionOfAnAWSBucketIsAskedForOnce(t *testing.T) {
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "")
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	s := openTest(t, Options{Bucket: "bucket", AccessKeyID: "a", SecretAccessKey: "b"})
	f := &region{}
	s.sdk = s3.New(s.sdk.Options(), func(o *s3.Options) { o.HTTPClient = f })
	for range 2 {
		if err := s.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"HEAD bucket.s3.us-east-1.amazonaws.com false",
		"GET bucket.s3.eu-central-1.amazonaws.com true", "GET bucket.s3.eu-central-1.amazonaws.com true"}
	if !slices.Equal(f.hosts, want) {
		t.Errorf("%q, want %q", f.hosts, want)
	}
	if s.String() != "s3://bucket" {
		t.Error(s.String())
	}
}
