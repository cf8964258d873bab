package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// impatient are settings with which a command that cannot succeed ends within some tens of seconds.
var impatient = []string{
	"WALDEN_STALL_TIMEOUT=3s", "WALDEN_WAL_TIMEOUT=12s", "S3_MAX_RETRIES=2", "S3_RANGE_MAX_RETRIES=2",
	"S3_MIN_THROTTLING_RETRY_DELAY=100", "S3_MAX_THROTTLING_RETRY_DELAY=500", "GCS_MAX_RETRIES=2",
}

// patient are settings with which a fault that passes is sat out, however slow the machine.
var patient = []string{"WALDEN_WAL_TIMEOUT=2m", "S3_MIN_THROTTLING_RETRY_DELAY=100", "S3_MAX_THROTTLING_RETRY_DELAY=1000"}

// network is a storage with an archive in it, and what tests break it with.
type network struct {
	service
	toxic   *testenv.Toxiproxy
	backup  string // its name
	segment string // path of a WAL segment of the cluster that is archived under main, where its name is archived too
	servers chan *testenv.Postgres
}

// service is a storage server with a bucket.
type service struct {
	name     string
	endpoint string                                 // URL
	settings func(endpoint, prefix string) []string // that reach the prefix of the bucket through an endpoint
	keys     []string                               // settings with the credentials
	uploads  func(t *testing.T, prefix string) int  // counts what unfinished uploads left below a prefix; nil if that cannot be asked for
	faults   []storageFault
}

// s3Service is a bucket of a real S3 server.
func s3Service(t *testing.T) service {
	t.Helper()
	server := testenv.StartS3(t)
	bucket := server.NewBucket(t)
	return service{
		name: "S3", endpoint: server.Endpoint, faults: append(connectionFaults("check the network and AWS_ENDPOINT", "check the host name in AWS_ENDPOINT"), s3Faults(server)...),
		settings: func(endpoint, prefix string) []string {
			return []string{
				"WALG_S3_PREFIX=s3://" + bucket + "/" + prefix, "AWS_ENDPOINT=" + endpoint, "AWS_REGION=us-east-1",
				"AWS_S3_FORCE_PATH_STYLE=true", "S3_MAX_PART_SIZE=5242880",
			}
		},
		keys: []string{"AWS_ACCESS_KEY_ID=" + server.AccessKey, "AWS_SECRET_ACCESS_KEY=" + server.SecretKey},
		uploads: func(t *testing.T, prefix string) int {
			out, err := server.Client().ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &bucket, Prefix: &prefix})
			if err != nil {
				t.Fatal(err)
			}
			return len(out.Uploads)
		},
	}
}

// storageCommands are the commands that speak to the storage.
var storageCommands = []string{"backup-list", "wal-push", "wal-fetch", "backup-fetch", "backup-push"}

// storageFault is a fault between walden and the storage.
type storageFault struct {
	name     string
	settings []string // default: impatient
	// Either of them: connections that are broken, or requests that are meddled with.
	connections func(t *testing.T, p *testenv.ToxicProxy)
	requests    func(c *cell) meddling
	endpoint    string // instead of the real one
	fromFile    bool   // credentials are in a file
	passes      bool   // the command is to succeed all the same
	// passing and failing name commands that make an exception; without is for those that do not meet the fault.
	passing, failing, without string
	says                      []string // of a command that fails: cause and hint
}

// meddling answers a request itself and returns true, or leaves it to the storage. n counts from 1.
type meddling func(n int, w http.ResponseWriter, r *http.Request) bool

// cell is one command under one fault.
type cell struct {
	t       *testing.T
	net     *network
	s       *site // with the fault in between
	meddler *meddler
	command string
	fault   storageFault
}

// connectionFaults are the faults of connections, which break alike for every storage. The hints are what it advises when nobody
// listens, and when the host's name is unknown.
func connectionFaults(refused, unknown string) []storageFault {
	return []storageFault{
		{name: "black hole", connections: func(_ *testing.T, p *testenv.ToxicProxy) { p.BlackHole() },
			says: []string{"no progress for 3s", "hint: the connection was there and then nothing came"}},
		{name: "refused", connections: func(_ *testing.T, p *testenv.ToxicProxy) { p.Down() },
			says: []string{"connection refused", "hint: " + refused}},
		{name: "a byte a second", connections: func(_ *testing.T, p *testenv.ToxicProxy) {
			for _, stream := range []string{"upstream", "downstream"} {
				p.Add(testenv.Toxic{Type: "slicer", Stream: stream, Attributes: map[string]int{"average_size": 1, "delay": 1_000_000}})
			}
		}, says: []string{"no progress for 3s"}},
		{name: "answers cut off", connections: func(_ *testing.T, p *testenv.ToxicProxy) {
			p.Add(testenv.Toxic{Type: "limit_data", Attributes: map[string]int{"bytes": 400_000}})
		}, passes: true, settings: patient},
		{name: "requests cut off", connections: func(_ *testing.T, p *testenv.ToxicProxy) {
			p.Add(testenv.Toxic{Type: "limit_data", Stream: "upstream", Attributes: map[string]int{"bytes": 900_000}})
		}, passes: true, failing: "backup-push", says: []string{"cannot put"}},
		{name: "reset", connections: func(_ *testing.T, p *testenv.ToxicProxy) {
			p.Add(testenv.Toxic{Type: "reset_peer", Attributes: map[string]int{"timeout": 20}})
		}, says: []string{"://"}},
		{name: "slow connections, one in twenty", connections: func(_ *testing.T, p *testenv.ToxicProxy) {
			p.Add(testenv.Toxic{Type: "latency", Toxicity: 0.05, Attributes: map[string]int{"latency": 30_000}})
		}, passes: true, settings: append([]string{"WALDEN_STALL_TIMEOUT=10s"}, patient...)},
		{name: "half closed", passes: true, settings: patient, requests: func(*cell) meddling { return halfClose(everyThird) }},
		{name: "no such host", endpoint: "http://storage.invalid:9000",
			says: []string{"storage.invalid", "hint: " + unknown}},
	}
}

func everyThird(n int) bool { return n%3 == 0 }

// s3Faults are the answers of S3, of a server with its credentials.
func s3Faults(server *testenv.S3Server) []storageFault {
	refuse := func(status int, code string, when func(n int) bool) func(*cell) meddling {
		return func(*cell) meddling {
			return func(n int, w http.ResponseWriter, r *http.Request) bool {
				if !when(n) {
					return false
				}
				refuseRequest(w, r, status, code)
				return true
			}
		}
	}
	always := func(int) bool { return true }
	return []storageFault{
		{name: "slow down, for a while", passes: true, settings: patient, requests: func(*cell) meddling {
			var once sync.Once
			var until time.Time
			return func(_ int, w http.ResponseWriter, r *http.Request) bool {
				once.Do(func() { until = time.Now().Add(3 * time.Second) })
				if time.Now().After(until) {
					return false
				}
				refuseRequest(w, r, 503, "SlowDown")
				return true
			}
		}},
		{name: "slow down, every third", passes: true, settings: patient, requests: refuse(503, "SlowDown", everyThird)},
		{name: "slow down, for ever", requests: refuse(503, "SlowDown", always), says: []string{"HTTP 503"}},
		{name: "500, every third", passes: true, settings: patient, requests: refuse(500, "InternalError", everyThird)},
		{name: "500, for ever", requests: refuse(500, "InternalError", always), says: []string{"HTTP 500"}},
		{name: "session expires", requests: refuse(400, "ExpiredToken", func(n int) bool { return n > 2 }), without: "backup-list wal-fetch",
			says: []string{"session token has expired", "hint: obtain new credentials"}},
		{name: "session expires and is renewed", fromFile: true, passes: true, settings: patient, requests: renewal(server)},
		{name: "clock skew", requests: refuse(403, "RequestTimeTooSkewed", always),
			says: []string{"the clock of this machine differs too much", "hint: synchronise the clock"}},
		{name: "301", requests: redirect(301, "PermanentRedirect"),
			says: []string{"is in region eu-central-1, not in us-east-1", "hint: set AWS_REGION"}},
		{name: "307", requests: redirect(307, "TemporaryRedirect"),
			says: []string{"is in region eu-central-1, not in us-east-1", "hint: set AWS_REGION"}},
		{name: "half a listing", requests: func(*cell) meddling {
			return altered(isListing, func(b []byte) []byte { return b[:len(b)/2] })
		}, passing: "wal-fetch", says: []string{"the answer cannot be read", "hint: something may answer in the service's place"}},
		{name: "damage on the way", requests: func(*cell) meddling {
			return altered(func(r *http.Request) bool { return r.Method == http.MethodGet && !isListing(r) },
				func(b []byte) []byte {
					b = bytes.Clone(b)
					spoil(b)
					return b
				})
		}, without: "wal-push backup-push", says: []string{"damaged"}},
		{name: "a page of HTML", requests: func(*cell) meddling {
			return func(_ int, w http.ResponseWriter, r *http.Request) bool {
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Content-Type", "text/html")
				_, _ = io.WriteString(w, "<html><head><title>Welcome</title></head><body>Please log in.</body></html>")
				return true
			}
		}, says: []string{"s3://"}},
		{name: "silence in mid-transfer", requests: func(*cell) meddling {
			return func(n int, _ http.ResponseWriter, r *http.Request) bool {
				if n > 4 {
					<-r.Context().Done()
				}
				return n > 4
			}
		}, without: "backup-list wal-fetch wal-push", says: []string{"no progress for 3s"}},
		{name: "200 that is an error", requests: completes(func(int) bool { return true }), without: "backup-list wal-push wal-fetch backup-fetch",
			says: []string{"InternalError"}},
		{name: "200 that is an error, once", requests: completes(func(n int) bool { return n == 1 }), passes: true, settings: patient,
			without: "backup-list wal-push wal-fetch backup-fetch"},
	}
}

func isListing(r *http.Request) bool {
	return r.Method == http.MethodGet && (r.URL.Query().Has("list-type") || r.URL.Query().Has("prefix"))
}

// refuseRequest answers as S3 does; an answer to HEAD has no body.
func refuseRequest(w http.ResponseWriter, r *http.Request, status int, code string) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", code, code)
	}
}

func redirect(status int, code string) func(*cell) meddling {
	return func(*cell) meddling {
		return func(_ int, w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("X-Amz-Bucket-Region", "eu-central-1")
			refuseRequest(w, r, status, code)
			return true
		}
	}
}

// halfClose sends half of the storage's answer and then the end of the stream, while it still reads.
func halfClose(when func(n int) bool) meddling {
	return func(n int, w http.ResponseWriter, r *http.Request) bool {
		if !when(n) || r.Method != http.MethodGet {
			return false
		}
		rec := recorded(r)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return false
		}
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\n", rec.Code, http.StatusText(rec.Code))
		rec.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
		_ = rec.Header().Write(conn)
		_, _ = io.WriteString(conn, "\r\n")
		_, _ = conn.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
		_ = conn.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, conn) // until walden gives up
		_ = conn.Close()
		return true
	}
}

// recorded lets the storage answer.
func recorded(r *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	r.Context().Value(meddlerKey{}).(*meddler).storage.ServeHTTP(rec, r)
	return rec
}

// completes answers CompleteMultipartUpload with 200 and an error, which S3 does when it fails late.
func completes(when func(n int) bool) func(*cell) meddling {
	return func(*cell) meddling {
		var mu sync.Mutex
		count := 0
		return func(_ int, w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPost || !r.URL.Query().Has("uploadId") {
				return false
			}
			mu.Lock()
			count++
			n := count
			mu.Unlock()
			if !when(n) {
				return false
			}
			refuseRequest(w, r, 200, "InternalError")
			return true
		}
	}
}

// altered lets the storage answer and changes the body.
func altered(which func(*http.Request) bool, change func([]byte) []byte) meddling {
	return func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if !which(r) {
			return false
		}
		rec := recorded(r)
		b := change(rec.Body.Bytes())
		for name, values := range rec.Header() {
			w.Header()[name] = values
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		w.WriteHeader(rec.Code)
		_, _ = w.Write(b)
		return true
	}
}

// renewal calls the credentials expired that are in the file at first. From then on the server's own are in it.
func renewal(server *testenv.S3Server) func(*cell) meddling {
	return func(c *cell) meddling {
		const first = "FIRSTKEY"
		file := filepath.Join(c.s.dir, "credentials")
		write := func(key, token string) {
			text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n%s", key, server.SecretKey, token)
			if err := os.WriteFile(file+".new", []byte(text), 0o644); err != nil {
				c.t.Error(err)
			}
			if err := os.Rename(file+".new", file); err != nil {
				c.t.Error(err)
			}
		}
		write(first, "aws_session_token = short-lived\n")
		var once sync.Once
		return func(_ int, w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.Header.Get("Authorization"), first) {
				return false
			}
			once.Do(func() { write(server.AccessKey, "") })
			refuseRequest(w, r, 400, "ExpiredToken")
			return true
		}
	}
}

// meddler is a reverse proxy in front of the storage. It keeps the Host header, which is signed, and sends clients to itself where the
// storage sends them to an address of its own.
type meddler struct {
	url     string
	storage http.Handler
	mu      sync.Mutex
	n       int
	meddle  meddling // nil: none
}

type meddlerKey struct{}

func newMeddler(t *testing.T, endpoint string) *meddler {
	t.Helper()
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableCompression: true}
	m := &meddler{storage: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
		},
		ModifyResponse: func(r *http.Response) error {
			if to, err := r.Location(); err == nil && to.Host == target.Host {
				to.Host = r.Request.Host
				r.Header.Set("Location", to.String())
			}
			return nil
		},
		Transport: transport,
		ErrorLog:  log.New(io.Discard, "", 0),
	}}
	server := httptest.NewUnstartedServer(m)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Config.BaseContext = func(net.Listener) context.Context {
		return context.WithValue(context.Background(), meddlerKey{}, m)
	}
	server.Start()
	m.url = server.URL
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		transport.CloseIdleConnections()
	})
	return m
}

// ServeHTTP implements http.Handler.
func (m *meddler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	m.n++
	n, meddle := m.n, m.meddle
	m.mu.Unlock()
	if meddle != nil && meddle(n, w, r) {
		return
	}
	m.storage.ServeHTTP(w, r)
}

func (m *meddler) set(meddle meddling) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.n, m.meddle = 0, meddle
}

// site is an installation that reaches the archive under prefix at endpoint.
func (w *network) site(t *testing.T, endpoint, prefix string, more ...string) *site {
	t.Helper()
	s := bareSite(t)
	w.configure(s, endpoint, prefix, more...)
	return s
}

func (w *network) configure(s *site, endpoint, prefix string, more ...string) {
	s.t.Helper()
	settings := append(w.settings(endpoint, prefix), more...)
	if !strings.Contains(strings.Join(more, " "), "AWS_SHARED_CREDENTIALS_FILE") {
		settings = append(settings, w.keys...)
	}
	s.configure(settings...)
}

// newNetwork fills an archive: one backup with its WAL under the prefix main.
func newNetwork(t *testing.T, on service, servers int) *network {
	t.Helper()
	w := &network{service: on, toxic: testenv.StartToxiproxy(t), servers: make(chan *testenv.Postgres, servers)}
	s := w.site(t, w.endpoint, "main")
	s.raced = s.plain
	keep := testenv.Scratch(t)
	settings := s.archiving()
	settings["archive_command"] = "cp %p " + keep + "/%f && " + settings["archive_command"]
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: settings})
	// Large enough for several requests, and not to be compressed.
	p.Exec(t, "CREATE TABLE noise AS SELECT decode(string_agg(md5(random()::text), ''), 'hex') AS b FROM generate_series(1, 400000) AS g GROUP BY g % 3000")
	s.must(p, "backup-push", p.DataDir)
	w.backup = s.latest()
	segments, err := filepath.Glob(filepath.Join(keep, strings.Repeat("[0-9A-F]", 24)))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no segments: %v", err)
	}
	w.segment = segments[len(segments)-1]
	p.Exec(t, "ALTER SYSTEM SET archive_command = ''")
	p.Reload(t)
	w.servers <- p
	for range servers - 1 {
		dir := filepath.Join(testenv.Scratch(t), "copy")
		s.must(nil, "backup-fetch", dir, w.backup)
		if err := os.WriteFile(filepath.Join(dir, "recovery.signal"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		w.servers <- testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Settings: s.restoreSettings()})
	}
	return w
}

func TestNetworkFaultsOfTheStorageEndCommandsInTimeAndHarmNothing(t *testing.T) {
	t.Parallel()
	for _, on := range []func(*testing.T) service{s3Service, gcsService} {
		w := newNetwork(t, on(t), testenv.Pick(2, 3))
		waiting := newCrowd(t)
		for i, fault := range w.faults {
			for j, command := range storageCommands {
				if strings.Contains(fault.without, command) || !testenv.Full() && (i+j)%3 != 0 {
					continue
				}
				waiting.run(w.name+"/"+fault.name+"/"+command, func(t *testing.T) {
					w.try(t, fault, command)
					testenv.Figure(t, "network faults", w.name+", "+command, 1)
				})
			}
		}
		waiting.work.Wait()
	}
}

// crowd runs subtests that mostly wait, more of them at once than there are processors, which bound parallel tests.
type crowd struct {
	t     *testing.T
	slots chan struct{}
	work  sync.WaitGroup
}

// newCrowd belongs to t, whose test function has to wait for it.
func newCrowd(t *testing.T) *crowd { return &crowd{t: t, slots: make(chan struct{}, 8)} }

func (c *crowd) run(name string, f func(t *testing.T)) {
	c.work.Go(func() {
		c.slots <- struct{}{}
		defer func() { <-c.slots }()
		c.t.Run(name, f)
	})
}

var unsafeInPrefix = regexp.MustCompile(`[^a-z0-9]+`)

// try runs a command under a fault, judges what came of it, and runs it again without the fault.
func (w *network) try(t *testing.T, fault storageFault, command string) {
	var p *testenv.Postgres
	if command == "backup-push" {
		p = <-w.servers
		defer func() { w.servers <- p }()
	}
	prefix := "main"
	if strings.HasSuffix(command, "push") {
		prefix = unsafeInPrefix.ReplaceAllString(fault.name+"-"+command, "-")
	}
	c := &cell{t: t, net: w, command: command, fault: fault}
	settings := fault.settings
	if settings == nil {
		settings = impatient
	}
	endpoint, mend := fault.endpoint, func() {}
	var toxic *testenv.ToxicProxy
	switch {
	case fault.connections != nil:
		toxic = w.toxic.Proxy(t, strings.TrimPrefix(w.endpoint, "http://"))
		endpoint = "http://" + toxic.Address
		mend = toxic.Mend
	case fault.requests != nil:
		c.meddler = newMeddler(t, w.endpoint)
		endpoint = c.meddler.url
		mend = func() { c.meddler.set(nil) }
	}
	c.s = w.site(t, endpoint, prefix, settings...)
	if fault.fromFile {
		w.configure(c.s, endpoint, prefix, append(settings, "AWS_SHARED_CREDENTIALS_FILE="+filepath.Join(c.s.dir, "credentials"))...)
	}
	if !testenv.Full() {
		c.s.raced = c.s.plain
	}
	if toxic != nil {
		fault.connections(t, toxic)
	} else if c.meddler != nil {
		c.meddler.set(fault.requests(c))
	}
	args, judge := c.prepare(p)
	passes := fault.passes && !strings.Contains(fault.failing, command) || strings.Contains(fault.passing, command)
	began := time.Now()
	r := c.s.walden(p, args...)
	t.Logf("exit code %d after %s", r.code, time.Since(began).Round(time.Millisecond))
	code := 0
	if !passes {
		code = 1
		if command == "wal-fetch" {
			code = 200
		}
	}
	r.expect(t, code)
	if !passes {
		_, said, _ := strings.Cut(r.stderr, "walden: cannot") // not what was logged before
		for _, text := range fault.says {
			if !strings.Contains("walden: cannot"+said, text) {
				t.Errorf("the error does not say %q:\n%s", text, r.stderr)
			}
		}
	}
	judge(passes)
	if t.Failed() {
		t.Logf("standard error:\n%s", r.stderr)
		return
	}
	mend()
	if passes {
		return
	}
	if fault.endpoint != "" {
		endpoint = w.endpoint
	}
	w.configure(c.s, endpoint, prefix, patient...)
	c.s.raced = c.s.plain
	if again := c.s.walden(p, args...); again.code != 0 {
		t.Fatalf("after the fault: exit code %d\n%s", again.code, again.stderr)
	}
	judge(true)
}

// prepare makes the arguments of a command, and what judges its outcome behind walden's back.
func (c *cell) prepare(p *testenv.Postgres) (args []string, judge func(passed bool)) {
	t, w := c.t, c.net
	name := filepath.Base(w.segment)
	direct := func(prefix string) *site {
		s := w.site(t, w.endpoint, prefix)
		s.raced = s.plain
		return s
	}
	switch c.command {
	case "backup-list":
		return []string{"backup-list"}, func(bool) {}
	case "wal-push":
		prefix := unsafeInPrefix.ReplaceAllString(c.fault.name+"-"+c.command, "-")
		return []string{"wal-push", w.segment}, func(passed bool) {
			dest := filepath.Join(dataDir(t), "pg_wal", "x")
			r := direct(prefix).walden(nil, "wal-fetch", name, dest)
			if passed {
				sameFile(t, dest, w.segment)
			} else if r.code == 0 {
				sameFile(t, dest, w.segment) // stored, and only the answer was lost
			}
		}
	case "wal-fetch":
		dest := filepath.Join(dataDir(t, "recovery.signal"), "pg_wal", "RECOVERYXLOG")
		return []string{"wal-fetch", name, dest}, func(passed bool) {
			if _, err := os.Stat(dest); !passed && err == nil {
				t.Error("there is something at the destination")
			} else if passed {
				sameFile(t, dest, w.segment)
			}
		}
	case "backup-fetch":
		dir := filepath.Join(testenv.Scratch(t), "restored")
		return []string{"backup-fetch", dir, "LATEST"}, func(passed bool) {
			_, err := os.Stat(filepath.Join(dir, "global", "pg_control"))
			if passed != (err == nil) {
				t.Errorf("the control file of the restored cluster: %v", err)
			}
		}
	}
	prefix := unsafeInPrefix.ReplaceAllString(c.fault.name+"-"+c.command, "-")
	return []string{"backup-push", p.DataDir}, func(passed bool) {
		s := direct(prefix)
		listed := 0
		if passed {
			listed = 1
			s.must(nil, "backup-fetch", filepath.Join(testenv.Scratch(t), "restored"), "LATEST")
			if c.fault.requests == nil && c.fault.passes && w.uploads != nil {
				if left := w.uploads(t, prefix); left > 0 {
					t.Errorf("%d multipart uploads are left", left)
				}
			}
		}
		s.leavesNothing(t, p, listed)
	}
}

func sameFile(t *testing.T, got, want string) {
	t.Helper()
	a, err := os.ReadFile(got)
	if err != nil {
		t.Error(err)
		return
	}
	b, err := os.ReadFile(want)
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("%s differs from what was archived (%v)", got, err)
	}
}

// serverFault is a fault between walden and PostgreSQL.
type serverFault struct {
	name     string
	settings []string
	// before is done before the backup begins, during when it copies.
	before  func(t *testing.T, p *testenv.Postgres, x *testenv.ToxicProxy)
	during  func(t *testing.T, p *testenv.Postgres, x *testenv.ToxicProxy)
	mend    func(t *testing.T, p *testenv.Postgres)
	user    string
	environ string // a variable that is no setting of walden's
	major   int
	full    bool // only where everything is tried
	passes  bool
	says    []string
}

func serverFaults() []serverFault {
	sql := func(sql ...string) func(*testing.T, *testenv.Postgres, *testenv.ToxicProxy) {
		return func(t *testing.T, p *testenv.Postgres, _ *testenv.ToxicProxy) { p.Exec(t, sql...) }
	}
	blackHole := func(_ *testing.T, _ *testenv.Postgres, x *testenv.ToxicProxy) { x.BlackHole() }
	reset := func(_ *testing.T, _ *testenv.Postgres, x *testenv.ToxicProxy) {
		x.Add(testenv.Toxic{Type: "reset_peer", Attributes: map[string]int{"timeout": 0}})
	}
	const watchful = "WALG_ALIVE_CHECK_INTERVAL=1s"
	lost := []string{"the backup is lost"}
	return []serverFault{
		{name: "black hole at connect", environ: "PGCONNECT_TIMEOUT=3", before: blackHole, says: []string{"cannot connect", "hint: no answer in time"}},
		{name: "refused", before: func(_ *testing.T, _ *testenv.Postgres, x *testenv.ToxicProxy) { x.Down() }, says: []string{"connection refused", "hint: check that the server runs"}},
		{name: "reset at connect", before: reset, says: []string{"cannot connect"}},
		{name: "black hole in mid-copy", full: true, settings: []string{watchful}, during: blackHole, says: append([]string{"no answer from the server within 30s", "hint: look at the network"}, lost...)},
		{name: "reset in mid-copy", settings: []string{watchful}, during: reset, says: lost},
		{name: "black hole when it ends", full: true, settings: []string{"WALG_STOP_BACKUP_TIMEOUT=1s", "WALG_ALIVE_CHECK_INTERVAL=1h"}, during: blackHole,
			says: []string{"cannot finish the backup", "no answer from the server within 31s"}},
		{name: "slow link", passes: true, before: func(_ *testing.T, _ *testenv.Postgres, x *testenv.ToxicProxy) {
			x.Add(testenv.Toxic{Type: "latency", Attributes: map[string]int{"latency": 300}})
			x.Add(testenv.Toxic{Type: "bandwidth", Attributes: map[string]int{"rate": 100}})
		}},
		{name: "restarted in mid-copy", settings: []string{watchful}, during: func(_ *testing.T, p *testenv.Postgres, _ *testenv.ToxicProxy) { p.Restart() }, says: lost},
		{name: "killed in mid-copy", settings: []string{watchful}, during: func(_ *testing.T, p *testenv.Postgres, _ *testenv.ToxicProxy) { p.KillHard() },
			mend: func(_ *testing.T, p *testenv.Postgres) { p.Start() }, says: lost},
		{name: "session terminated in mid-copy", settings: []string{watchful},
			during: sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'walden'"), says: lost},
		{name: "too many clients", user: "keeper", before: sql("CREATE ROLE keeper LOGIN CONNECTION LIMIT 0"),
			mend: func(t *testing.T, p *testenv.Postgres) { p.Exec(t, "ALTER ROLE keeper SUPERUSER CONNECTION LIMIT -1") },
			says: []string{"too many connections for role", "hint: raise max_connections"}},
		{name: "no such role", user: "nobody", before: sql("SELECT 1"), mend: func(t *testing.T, p *testenv.Postgres) { p.Exec(t, "CREATE ROLE nobody SUPERUSER LOGIN") },
			says: []string{`role "nobody" does not exist`, "hint: let pg_hba.conf admit this user"}},
		{name: "pg_hba.conf", before: hba("host all all 127.0.0.1/32 reject\n"), mend: func(t *testing.T, p *testenv.Postgres) { hba("")(t, p, nil) },
			says: []string{"pg_hba.conf rejects connection", "hint: let pg_hba.conf admit this user"}},
		{name: "wrong password", settings: []string{"PGPASSWORD=wrong"}, before: hba("host all all 127.0.0.1/32 scram-sha-256\n"),
			mend: func(t *testing.T, p *testenv.Postgres) { hba("")(t, p, nil) }, says: []string{"password authentication failed", "hint: let pg_hba.conf admit this user"}},
		{name: "settings of the role", user: "keeper", passes: true, before: sql("CREATE ROLE keeper SUPERUSER LOGIN",
			"ALTER ROLE keeper SET statement_timeout = '500ms'", "ALTER ROLE keeper SET lock_timeout = '100ms'",
			"ALTER ROLE keeper SET idle_in_transaction_session_timeout = '100ms'", "DO $$ BEGIN ALTER ROLE keeper SET idle_session_timeout = '500ms'; EXCEPTION WHEN undefined_object THEN END $$",
			"ALTER ROLE keeper SET tcp_user_timeout = '500ms'", "ALTER ROLE keeper SET tcp_keepalives_idle = 1",
			"ALTER ROLE keeper SET default_transaction_read_only = on", "ALTER ROLE keeper SET default_transaction_isolation = 'serializable'",
			"ALTER ROLE keeper SET default_transaction_deferrable = on", "ALTER ROLE keeper SET row_security = off",
			"ALTER ROLE keeper SET standard_conforming_strings = off", "ALTER ROLE keeper SET client_min_messages = 'debug5'")},
		{name: "hostile search_path", user: "keeper", passes: true, before: sql("CREATE ROLE keeper SUPERUSER LOGIN", "CREATE SCHEMA trap",
			"CREATE FUNCTION trap.pg_backup_start(text, boolean) RETURNS pg_lsn LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''trap''; END'",
			"CREATE FUNCTION trap.pg_backup_stop(boolean) RETURNS pg_lsn LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''trap''; END'",
			"CREATE FUNCTION trap.set_config(text, text, boolean) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''trap''; END'",
			"CREATE FUNCTION trap.lower(text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''trap''; END'",
			"CREATE FUNCTION trap.same(text, text) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''trap''; END'",
			"CREATE OPERATOR trap.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.same)",
			"CREATE VIEW trap.pg_settings AS SELECT 1 AS one", "CREATE TABLE trap.pg_class (one int)",
			"ALTER ROLE keeper SET search_path = trap, pg_catalog")},
		{name: "login trigger", full: true, major: 18, user: "keeper", passes: true, before: sql("CREATE ROLE keeper SUPERUSER LOGIN",
			"CREATE FUNCTION greet() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN "+
				"PERFORM set_config('statement_timeout', '500ms', false), set_config('search_path', 'nowhere', false); END $$",
			"CREATE EVENT TRIGGER greeting ON login EXECUTE FUNCTION greet()", "ALTER EVENT TRIGGER greeting ENABLE ALWAYS")},
		{name: "login trigger that refuses", full: true, major: 18, user: "keeper", before: sql("CREATE ROLE keeper SUPERUSER LOGIN",
			"CREATE FUNCTION greet() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN "+
				"IF session_user = 'keeper' THEN RAISE EXCEPTION 'not at this hour'; END IF; END $$",
			"CREATE EVENT TRIGGER greeting ON login EXECUTE FUNCTION greet()"),
			mend: func(t *testing.T, p *testenv.Postgres) { p.Exec(t, "DROP EVENT TRIGGER greeting") }, says: []string{"not at this hour"}},
	}
}

// hba puts lines before the rules of pg_hba.conf that were there, and takes earlier ones away.
func hba(lines string) func(*testing.T, *testenv.Postgres, *testenv.ToxicProxy) {
	return func(t *testing.T, p *testenv.Postgres, _ *testenv.ToxicProxy) {
		t.Helper()
		name := filepath.Join(p.DataDir, "pg_hba.conf")
		old, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		const end = "# end of the test's rules\n"
		if _, rest, found := strings.Cut(string(old), end); found {
			old = []byte(rest)
		}
		if err := os.WriteFile(name, append([]byte(lines+end), old...), 0o600); err != nil {
			t.Fatal(err)
		}
		p.Reload(t)
	}
}

func TestNetworkFaultsOfPostgreSQLEndABackupInTimeAndLeaveNoBackupMode(t *testing.T) {
	t.Parallel()
	toxic := testenv.StartToxiproxy(t)
	waiting := newCrowd(t)
	for _, fault := range serverFaults() {
		if fault.full && !testenv.Full() {
			continue
		}
		waiting.run(fault.name, func(t *testing.T) {
			fault.try(t, toxic)
			testenv.Figure(t, "network faults", "PostgreSQL, backup-push", 1)
		})
	}
	waiting.work.Wait()
}

// try takes a backup under a fault, judges what came of it, and takes one without the fault.
func (f serverFault) try(t *testing.T, toxic *testenv.Toxiproxy) {
	p := testenv.StartPostgres(t, testenv.PostgresOptions{TCP: true, Major: f.major})
	x := toxic.Proxy(t, fmt.Sprintf("127.0.0.1:%d", p.Port))
	user := "postgres"
	if f.user != "" {
		user = f.user
	}
	s := newSite(t, append([]string{"PGHOST=127.0.0.1", fmt.Sprintf("PGPORT=%d", x.Port), "PGUSER=" + user}, f.settings...)...)
	if !testenv.Full() {
		s.raced = s.plain
	}
	if f.environ != "" {
		s.raced = s.within(t, f.environ)
	}
	if f.before != nil {
		f.before(t, p, x)
	}
	began := time.Now()
	r := s.start(nil, "backup-push", p.DataDir, slowly)
	if f.during != nil {
		r.untilCopying(t)
		f.during(t, p, x)
	}
	got := r.wait(t)
	t.Logf("exit code %d after %s", got.code, time.Since(began).Round(time.Millisecond))
	code, listed := 1, 0
	if f.passes {
		code, listed = 0, 1
	}
	got.expect(t, code, f.says...)
	x.Mend()
	if f.mend != nil {
		f.mend(t, p)
	}
	s.leavesNothing(t, p, listed)
	if f.passes {
		return
	}
	again := s.walden(nil, "backup-push", p.DataDir)
	if again.code != 0 {
		t.Fatalf("after the fault: exit code %d\n%s", again.code, again.stderr)
	}
	s.leavesNothing(t, p, 1)
}

// within wraps the program so that it sees a variable in its environment.
func (s *site) within(t *testing.T, variable string) string {
	t.Helper()
	script := filepath.Join(s.dir, "walden-within")
	text := fmt.Sprintf("#!/bin/sh\n%s exec %s \"$@\"\n", variable, s.raced)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return script
}
