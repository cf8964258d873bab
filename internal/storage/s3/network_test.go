package s3

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

// behind returns options for a store of the server behind a slow network.
func behind(t *testing.T, server *testenv.S3Server, toxics ...testenv.Toxic) Options {
	t.Helper()
	proxy := testenv.StartToxiproxy(t).Proxy(t, strings.TrimPrefix(server.Endpoint, "http://"))
	o := serverOptions(server, server.NewBucket(t))
	o.Endpoint, o.Budget = "http://"+proxy.Address, storage.NewBudget(128<<20)
	o.Concurrency, o.DownloadConcurrency = 16, 10
	for _, x := range toxics {
		proxy.Add(x)
	}
	return o
}

// Each connection brings some MB/s and no more, as that to a storage far away; the more of them, the faster.
func TestALargeObjectComesFasterOverSeveralConnections(t *testing.T) {
	t.Parallel()
	server := testenv.StartS3(t)
	const kilobytesPerSecond = 5000
	o := behind(t, server,
		testenv.Toxic{Type: "latency", Stream: "upstream", Attributes: map[string]int{"latency": 20}},
		testenv.Toxic{Type: "bandwidth", Stream: "downstream", Attributes: map[string]int{"rate": kilobytesPerSecond}})
	want := randomBytes(13, testenv.Pick(24, 64)<<20)
	if err := openTest(t, o).Put(t.Context(), "key", bytes.NewReader(want)); err != nil {
		t.Fatal(err)
	}
	get := func(o Options) (took time.Duration, width int) {
		s := openTest(t, o)
		s.reading.size = 2 << 20
		began := time.Now()
		rc := mustOpen(t, s)
		if got, err := readRest(t, rc); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		nothingLeft(t, s)
		return time.Since(began), rc.(*body).width
	}
	several, width := get(o)
	o.DownloadConcurrency = 1
	one, none := get(o)
	t.Logf("%d MiB in %s, over one connection in %s", len(want)>>20, several, one)
	testenv.Figure(t, "MiB per second of a download, 5 MB/s per connection", "one connection", int(float64(len(want)>>20)/one.Seconds()))
	testenv.Figure(t, "MiB per second of a download, 5 MB/s per connection", "ranges", int(float64(len(want)>>20)/several.Seconds()))
	if width <= firstWidth || none > firstWidth { // how fast that is depends on what else the machine has to do
		t.Errorf("up to %d ranges at once where ten are allowed, up to %d where none is", width, none)
	}
}

func TestAnUploadTakesAsManyConnectionsAsBringSomething(t *testing.T) {
	t.Parallel()
	server := testenv.StartS3(t)
	const kilobytesPerSecond = 10_000
	o := behind(t, server,
		testenv.Toxic{Type: "latency", Stream: "downstream", Attributes: map[string]int{"latency": 20}},
		testenv.Toxic{Type: "bandwidth", Stream: "upstream", Attributes: map[string]int{"rate": kilobytesPerSecond}})
	size := int64(testenv.Pick(96, 512)) << 20
	put := func(w *window) time.Duration {
		s := openTest(t, o)
		s.window = w
		began := time.Now()
		if err := s.Put(t.Context(), "key", io.LimitReader(readerFunc(func(p []byte) (int, error) { return len(p), nil }), size)); err != nil {
			t.Fatal(err)
		}
		return time.Since(began)
	}
	w := newWindow(o.Concurrency)
	adaptive, two, sixteen := put(w), put(fixed(2)), put(fixed(16))
	t.Logf("%d MiB in %s with %d parts in flight in the end; with 2 in %s, with 16 in %s", size>>20, adaptive, w.limit, two, sixteen)
	for name, took := range map[string]time.Duration{"adaptive": adaptive, "2 parts": two, "16 parts": sixteen} {
		testenv.Figure(t, "MiB per second of an upload, 10 MB/s per connection", name, int(float64(size>>20)/took.Seconds()))
	}
	if w.limit < leastWindow || w.limit > o.Concurrency {
		t.Errorf("%d parts in flight", w.limit)
	}
}
