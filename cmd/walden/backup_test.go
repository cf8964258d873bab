package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// slowly makes a copy of an almost empty cluster last some seconds.
const slowly = "--walg-disk-rate-limit=4000000"

// refusalLimit is within what time a command has to fail that can know at its start that it must. It allows for a
// machine that is busy with other tests.
const refusalLimit = time.Minute

// noSessions asks the server whether walden is connected; a backup mode lasts as long as its session.
const noSessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walden'"

// transcript collects what a process says while the test reads it.
type transcript struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *transcript) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns what was said so far.
func (l *transcript) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// process is a walden that works while the test goes on.
type process struct {
	site           *site
	cmd            *exec.Cmd
	stdout, stderr transcript
	ended          chan struct{}
}

// start runs a command in the background.
func (s *site) start(p *testenv.Postgres, args ...string) *process {
	s.t.Helper()
	return s.startWith(p, func(*exec.Cmd) {}, args...)
}

// startWith is start with something to prepare.
func (s *site) startWith(p *testenv.Postgres, prepare func(*exec.Cmd), args ...string) *process {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	r := &process{site: s, cmd: s.command(ctx, p, args...), ended: make(chan struct{})}
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	prepare(r.cmd)
	if err := r.cmd.Start(); err != nil {
		cancel()
		s.t.Fatal(err)
	}
	go func() {
		_ = r.cmd.Wait() // the state is read from cmd.ProcessState once ended is closed
		cancel()
		close(r.ended)
	}()
	s.t.Cleanup(func() {
		cancel()
		<-r.ended
	})
	return r
}

func (r *process) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func (r *process) wait(t *testing.T) result {
	t.Helper()
	<-r.ended
	got := result{r.stdout.String(), r.stderr.String(), r.cmd.ProcessState.ExitCode()}
	if strings.Contains(got.stderr, "DATA RACE") || strings.Contains(got.stderr, "panic:") {
		t.Fatal(got.stderr)
	}
	return got
}

// until waits for a condition while the process works.
func (r *process) until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for !condition() {
		select {
		case <-r.ended:
			t.Fatalf("walden ended before %s:\n%s", what, r.stderr.String())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// beginning finds the name of the backup in the log of the command that takes it.
var beginning = regexp.MustCompile(`msg="backup begins" .*backup=(base_[0-9A-F_]+)`)

// untilCopying waits until the walk is over and parts of the backup are being written to the archive, where they have no name
// until they are complete, and returns the backup's folder.
func (r *process) untilCopying(t *testing.T) (folder string) {
	t.Helper()
	r.until(t, "it copied anything", func() bool {
		name := beginning.FindStringSubmatch(r.stderr.String())
		if name == nil {
			return false
		}
		folder = filepath.Join(r.site.archive, "basebackups_005", name[1])
		_, err := os.Stat(filepath.Join(folder, "tar_partitions"))
		return err == nil
	})
	return folder
}

// listing is an entry of `backup-list --detail --json`.
type listing struct {
	Name      string          `json:"backup_name"`
	Status    string          `json:"status"`
	Permanent bool            `json:"is_permanent"`
	UserData  json.RawMessage `json:"user_data"`
	StartLSN  uint64          `json:"start_lsn"`
}

func (s *site) listings() []listing {
	s.t.Helper()
	var list []listing
	if err := json.Unmarshal([]byte(s.must(nil, "backup-list", "--detail", "--json").stdout), &list); err != nil {
		s.t.Fatal(err)
	}
	return list
}

// leavesNothing checks that the server is out of backup mode and that the list is as long as it was.
func (s *site) leavesNothing(t *testing.T, p *testenv.Postgres, listed int) {
	t.Helper()
	p.WaitFor(t, noSessions, "0", time.Minute)
	if list := s.listings(); len(list) != listed {
		t.Errorf("%d backups are listed, there were %d: %v", len(list), listed, list)
	}
}

// files lists the regular files below a directory, which need not exist.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			found = append(found, strings.TrimPrefix(path, dir+"/"))
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// document reads a JSON document of a backup in the archive.
func (s *site) document(t *testing.T, backup, name string, into any) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.archive, "basebackups_005", backup, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// smallDisk mounts a file system of its own; false, with a line in the test's log, where the test may not mount.
func smallDisk(t *testing.T, mebibytes int) (string, bool) {
	t.Helper()
	dir := filepath.Join(testenv.Scratch(t), "small")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0755", mebibytes))
	if errors.Is(err, unix.EPERM) {
		t.Log("what happens on a small file system is NOT tested: mounting one needs root")
		return "", false
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	own(t, dir)
	return dir, true
}

func TestAPushThatCannotSucceedIsRefusedAtOnceAndSaysWhy(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := testenv.StartPostgres(t, testenv.PostgresOptions{TCP: true, WALSegmentSize: 1, Settings: s.archiving()})
	other := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1})
	const secret = "swordfish42"
	p.Exec(t, "CREATE ROLE locked LOGIN SUPERUSER PASSWORD 'right'")
	hba := filepath.Join(p.DataDir, "pg_hba.conf")
	rules, err := os.ReadFile(hba)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hba, append([]byte("host all locked all scram-sha-256\n"), rules...), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Reload(t)

	scratch := testenv.Scratch(t)
	place := func(name string) string { return filepath.Join(scratch, name) }
	if out, err := exec.Command("cp", "-a", p.DataDir, place("copy")).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	for _, dir := range []string{"empty", "closed"} {
		if err := os.Mkdir(place(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	own(t, place("empty"))
	if err := os.Chmod(place("closed"), 0); err != nil { // and root's, where the test runs as root
		t.Fatal(err)
	}
	store := testenv.StartS3(t)
	bucket := store.NewBucket(t)
	connection := []string{
		"PGHOST=" + p.SocketDir, "PGPORT=" + strconv.Itoa(p.Port), "PGUSER=postgres", "PGDATABASE=postgres", "PGDATA=" + p.DataDir,
	}
	local := func(more ...string) []string {
		return slices.Concat(connection, []string{"WALG_FILE_PREFIX=" + s.archive}, more)
	}
	remote := func(more ...string) []string {
		return slices.Concat(connection, []string{
			"WALG_S3_PREFIX=s3://" + bucket + "/main", "AWS_ENDPOINT=" + store.Endpoint, "AWS_ACCESS_KEY_ID=" + store.AccessKey,
			"AWS_SECRET_ACCESS_KEY=" + store.SecretKey, "AWS_REGION=us-east-1", "AWS_S3_FORCE_PATH_STYLE=true",
		}, more)
	}
	closed := closedPort(t)

	cases := []struct {
		name     string
		settings []string
		args     []string
		texts    []string
	}{
		{"the data directory of another running cluster", local(), []string{other.DataDir},
			[]string{"is not the connected server's data directory", "system identifier", "hint: check PGHOST and PGPORT"}},
		{"a copy of the data directory", local(), []string{place("copy")},
			[]string{"is not the connected server's data directory", p.DataDir, "hint:"}},
		{"a missing data directory", local(), []string{place("nowhere")}, []string{place("nowhere"), "no such file", "hint:"}},
		{"an empty data directory", local(), []string{place("empty")}, []string{place("empty"), "not a readable data directory"}},
		{"a data directory without permission", local(), []string{place("closed")}, []string{"permission denied", "hint:"}},
		{"a wrong password", local("PGHOST=127.0.0.1", "PGUSER=locked", "PGPASSWORD="+secret), nil,
			[]string{"cannot connect to PostgreSQL", "password authentication failed", "PGPASSWORD"}},
		{"a missing password", local("PGHOST=127.0.0.1", "PGUSER=locked"), nil, []string{"cannot connect to PostgreSQL", "hint:"}},
		{"no server at the port", local("PGHOST=127.0.0.1", "PGPORT="+closed), nil,
			[]string{"cannot connect to PostgreSQL at", "connection refused", "hint: check that the server runs"}},
		{"no server at the socket", local("PGHOST=" + scratch), nil, []string{"cannot connect to PostgreSQL at", scratch, "hint:"}},
		{"an unknown database", local("PGDATABASE=nowhere"), nil, []string{`"nowhere"`, "hint: set PGDATABASE"}},
		{"no storage", connection, nil, []string{"no storage is set", "hint: set WALG_FILE_PREFIX"}},
		{"a missing archive directory", local("WALG_FILE_PREFIX=" + place("absent")), nil, []string{place("absent"), "hint:"}},
		{"an archive directory without permission", local("WALG_FILE_PREFIX=" + place("closed")), nil, []string{"permission denied"}},
		{"a missing bucket", remote("WALG_S3_PREFIX=s3://missing-bucket/main"), nil, []string{"missing-bucket", "hint:"}},
		{"a wrong secret key", remote("AWS_SECRET_ACCESS_KEY=" + secret), nil, []string{"does not accept the signature", "hint: check AWS_SECRET_ACCESS_KEY"}},
		{"an unknown access key", remote("AWS_ACCESS_KEY_ID=nobody", "AWS_SECRET_ACCESS_KEY="+secret), nil, []string{"does not know the access key", "hint: check AWS_ACCESS_KEY_ID"}},
		{"an unreachable endpoint", remote("AWS_ENDPOINT=http://127.0.0.1:" + closed), nil, []string{"connection refused", "127.0.0.1:" + closed}},
		{"user data that is not JSON", local("PGHOST=127.0.0.1", "PGPORT="+closed), []string{"--add-user-data", "{night"},
			[]string{"not valid JSON", "--help"}},
		{"a setting without sense", local("WALG_DISK_RATE_LIMIT=fast"), nil, []string{"WALG_DISK_RATE_LIMIT", "fast"}},
		{"two data directories", local(), []string{p.DataDir, p.DataDir}, []string{"2 arguments"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			v := bareSite(t)
			v.configure(lastOfEach(c.settings)...)
			began := time.Now()
			r := v.walden(nil, append([]string{"backup-push"}, c.args...)...)
			r.expect(t, 1, c.texts...)
			if took := time.Since(began); took > refusalLimit {
				t.Errorf("the refusal took %s", took)
			}
			if r.stdout != "" || strings.Contains(r.stderr, secret) || strings.Contains(r.stderr, store.SecretKey) {
				t.Errorf("output:\n%s%s", r.stdout, r.stderr)
			}
		})
	}
	p.WaitFor(t, noSessions, "0", time.Minute)
	if left, err := filepath.Glob(filepath.Join(s.archive, "basebackups_005/*")); err != nil || len(left) > 0 {
		t.Errorf("refused pushes left %v (%v)", left, err)
	}
}

// lastOfEach keeps the last value of each setting.
func lastOfEach(settings []string) []string {
	last := map[string]string{}
	for _, line := range settings {
		name, _, _ := strings.Cut(line, "=")
		last[name] = line
	}
	return slices.Sorted(maps.Values(last))
}

// closedPort returns a port at which nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestAPushThatIsCutOffLeavesNoBackupAndNoBackupMode(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving()})
	push := []string{"backup-push", p.DataDir}
	slowPush := append(push, slowly)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run("by "+unix.SignalName(sig), func(t *testing.T) {
			r := s.start(p, slowPush...)
			r.untilCopying(t)
			r.signal(t, sig)
			asked := time.Now()
			r.wait(t).expect(t, 1, "signal received")
			if took := time.Since(asked); took > time.Minute {
				t.Errorf("it took %s to end", took)
			}
			s.leavesNothing(t, p, 0)
			if left := files(t, filepath.Join(s.archive, "basebackups_005")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}

	t.Run("by a storage that refuses the parts", func(t *testing.T) {
		r := s.start(p, slowPush...)
		folder := r.untilCopying(t)
		defer os.RemoveAll(folder)
		for _, dir := range []string{folder, filepath.Join(folder, "tar_partitions")} {
			if err := os.Chmod(dir, 0o500); err != nil {
				t.Fatal(err)
			}
		}
		name := filepath.Base(folder)
		r.wait(t).expect(t, 1, "permission denied", "cannot remove what the unfinished backup "+name+" left")
		s.leavesNothing(t, p, 0)
	})

	t.Run("by a full disk", func(t *testing.T) {
		small, ok := smallDisk(t, 1)
		if !ok {
			return
		}
		v := bareSite(t)
		v.configure("WALG_FILE_PREFIX=" + small)
		v.fails(p, 1, []string{"no space left on device"}, push...)
		v.leavesNothing(t, p, 0)
		if left := files(t, small); !slices.Equal(left, []string{"walden_identity.json"}) {
			t.Errorf("left on the full disk: %v", left)
		}
	})

	t.Run("by SIGKILL", func(t *testing.T) {
		r := s.start(p, slowPush...)
		r.untilCopying(t)
		r.signal(t, syscall.SIGKILL)
		r.wait(t)
		s.leavesNothing(t, p, 0)
	})

	t.Run("and a second push at the same time is the one refused", func(t *testing.T) {
		first := s.start(p, slowPush...)
		first.untilCopying(t)
		pid := p.Query(t, "SELECT pid FROM pg_stat_activity WHERE application_name = 'walden'")
		s.fails(p, 1, []string{"another walden backup", "process " + pid, "hint: wait for it"}, push...)
		s.fails(p, 1, []string{"another walden backup", "process " + pid}, append(push, "--pgdatabase=template1")...)
		first.wait(t).expect(t, 0)
		s.leavesNothing(t, p, 1)
	})
	s.must(p, push...)
	s.leavesNothing(t, p, 2)
}

func TestAPushWhoseS3ServerGoesAwayEndsAndListsNothing(t *testing.T) {
	t.Parallel()
	server := testenv.StartS3(t)
	bucket := server.NewBucket(t)
	wire := openWire(t, strings.TrimPrefix(server.Endpoint, "http://"))
	s := bareSite(t)
	through := func(endpoint string) {
		s.configure("WALG_S3_PREFIX=s3://"+bucket+"/main", "AWS_ENDPOINT="+endpoint, "AWS_ACCESS_KEY_ID="+server.AccessKey,
			"AWS_SECRET_ACCESS_KEY="+server.SecretKey, "AWS_REGION=us-east-1", "AWS_S3_FORCE_PATH_STYLE=true", "S3_MAX_RETRIES=1")
	}
	through("http://" + wire.address)
	// Without archiving, all that passes the wire is the backup's.
	p := testenv.StartPostgres(t, testenv.PostgresOptions{Settings: map[string]string{"archive_mode": "off"}})
	wire.cutAfter(1 << 20) // of about 4 MiB
	r := s.start(p, "backup-push", p.DataDir)
	r.wait(t).expect(t, 1, "connection refused", "cannot remove what the unfinished backup base_")
	through(server.Endpoint)
	s.leavesNothing(t, p, 0)
	s.must(p, "backup-push", p.DataDir)
	s.leavesNothing(t, p, 1)
}

// wire passes connections on to a server until it is cut.
type wire struct {
	address  string
	listener net.Listener
	limit    atomic.Int64 // bytes to the server until it is cut
	mu       sync.Mutex
	open     []net.Conn
	gone     bool
	work     sync.WaitGroup
}

func openWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{address: l.Addr().String(), listener: l}
	w.cutAfter(math.MaxInt64)
	w.work.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			w.mu.Lock()
			w.open = append(w.open, in, out)
			if w.gone {
				in.Close()
				out.Close()
			}
			w.mu.Unlock()
			w.work.Go(func() {
				pass(out, in, func(n int64) {
					if w.limit.Add(-n) <= 0 {
						w.cut()
					}
				})
			})
			w.work.Go(func() { pass(in, out, func(int64) {}) })
		}
	})
	t.Cleanup(func() {
		w.cut()
		w.work.Wait()
	})
	return w
}

// cutAfter cuts the wire as soon as it carried n bytes to the server, whatever the test does at that moment.
func (w *wire) cutAfter(n int64) { w.limit.Store(n) }

// pass copies until either side ends, and says how much it is about to hand on.
func pass(to, from net.Conn, carrying func(n int64)) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			carrying(int64(n))
			if _, err := to.Write(buf[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	to.Close()
	from.Close()
}

// cut ends all connections and takes no more.
func (w *wire) cut() {
	w.listener.Close()
	w.mu.Lock()
	w.gone = true
	for _, c := range w.open {
		c.Close()
	}
	w.mu.Unlock()
}

func TestABackupWhoseWALIsNotArchivedHereIsTakenAndMarked(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: map[string]string{"archive_mode": "off"}})
	marked := func(t *testing.T) {
		t.Helper()
		list := s.listings()
		last := list[len(list)-1]
		if last.Status != "WAL missing when it was taken" {
			t.Errorf("status in the JSON list: %q", last.Status)
		}
		plain := s.must(nil, "backup-list").stdout
		if head, _, _ := strings.Cut(plain, "\n"); !strings.HasSuffix(head, "status") || !strings.Contains(plain, "WAL missing") {
			t.Errorf("the plain list:\n%s", plain)
		}
		var manifest struct {
			WAL struct{ State, First, Last string }
		}
		s.document(t, last.Name, "walden_manifest.json", &manifest)
		if manifest.WAL.State != "missing" || manifest.WAL.First == "" || manifest.WAL.Last < manifest.WAL.First {
			t.Errorf("the manifest says %+v", manifest.WAL)
		}
	}
	set := func(t *testing.T, command string) {
		t.Helper()
		p.Exec(t, "ALTER SYSTEM SET archive_command = '"+command+"'")
		p.Reload(t)
		p.WaitFor(t, "SHOW archive_command", command, time.Minute)
	}

	t.Run("archive_mode off", func(t *testing.T) {
		r := s.must(p, "backup-push", p.DataDir)
		r.expect(t, 0, "level=WARN", "lacking its WAL", "archive_mode is off", "first=", "last=")
		marked(t)
	})
	p.Exec(t, "ALTER SYSTEM SET archive_mode = on", "ALTER SYSTEM SET archive_command = ''")
	p.Restart()
	t.Run("no archive_command", func(t *testing.T) {
		s.must(p, "backup-push", p.DataDir).expect(t, 0, "archive_command is empty")
		marked(t)
	})
	set(t, "true")
	t.Run("archived elsewhere", func(t *testing.T) {
		began := time.Now()
		s.must(p, "backup-push", p.DataDir).expect(t, 0, "level=WARN", "the server has archived", "but not to file://"+s.archive)
		if took := time.Since(began); took > 3*time.Minute {
			t.Errorf("it took %s to find out", took)
		}
		marked(t)
	})
	set(t, "false")
	t.Run("archiving fails", func(t *testing.T) {
		r := s.fails(p, 4, []string{"was taken, but the WAL of the backup is not in the archive", "hint:"},
			"backup-push", p.DataDir, "--walden-archive-wait-timeout=4s")
		marked(t)
		var manifest struct{ WAL struct{ First, Last string } }
		s.document(t, s.latest(), "walden_manifest.json", &manifest)
		failed := p.Query(t, "SELECT last_failed_wal FROM pg_stat_archiver")
		if !strings.Contains(r.stderr, "first "+manifest.WAL.Last) || !strings.Contains(r.stderr, "failed to archive "+failed) {
			t.Errorf("neither %s nor %s is named:\n%s", manifest.WAL.Last, failed, r.stderr)
		}
	})
	s.leavesNothing(t, p, 4)
	s.must(nil, "backup-fetch", filepath.Join(testenv.Scratch(t), "restored"), "LATEST").
		expect(t, 0, "level=WARN", "lacking its WAL")
}

func TestCorruptPagesAreNamedAndTheBackupIsStillTaken(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := testenv.StartPostgres(t, testenv.PostgresOptions{
		WALSegmentSize: 1, Checksums: true, Settings: s.archiving("autovacuum=off"),
	})
	p.Exec(t, "CREATE TABLE damaged AS SELECT g AS id, repeat(md5(g::text), 10) AS note FROM generate_series(1, 1000) AS g",
		"CREATE TABLE sound AS SELECT generate_series(1, 1000) AS g", "CHECKPOINT")
	name := p.Query(t, "SELECT pg_relation_filepath('damaged')")
	p.Stop("fast")
	const pageSize, first, many = 8192, 5, 12
	f, err := os.OpenFile(filepath.Join(p.DataDir, name), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	var bad []uint32
	for block := range uint32(many) {
		bad = append(bad, first+block)
		if _, err := f.WriteAt([]byte("not what was written"), int64(first+block)*pageSize+pageSize/2); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	p.Start()

	check := func(r result, named []uint32) {
		t.Helper()
		r.expect(t, 3, name, "12 pages of the cluster are corrupt", "hint: keep an older backup", "level=ERROR")
		list := s.listings()
		last := list[len(list)-1]
		if last.Status != "12 corrupt pages" {
			t.Errorf("status %q", last.Status)
		}
		var meta struct {
			Files map[string]struct {
				CorruptBlocks *struct {
					CorruptBlocksCount int
					SomeCorruptBlocks  []uint32
				}
			}
		}
		s.document(t, last.Name, "files_metadata.json", &meta)
		for file, m := range meta.Files {
			switch c := m.CorruptBlocks; {
			case file == "/"+name && (c == nil || c.CorruptBlocksCount != many || !slices.Equal(c.SomeCorruptBlocks, named)):
				t.Errorf("metadata of %s: %+v, not %v", file, c, named)
			case file != "/"+name && c != nil:
				t.Errorf("%s is sound, but called corrupt: %+v", file, c)
			}
		}
	}
	check(s.walden(p, "backup-push", p.DataDir), bad[:10])
	check(s.walden(p, "backup-push", p.DataDir, "--verify", "--store-all-corrupt"), bad)
	s.must(p, "backup-push", p.DataDir, "--verify=false")
	p.Stop("fast")

	list := s.listings()
	r := testenv.OpenPostgres(t, s.fetch(list[1].Name), testenv.PostgresOptions{Settings: s.restoreSettings()})
	if got := r.Query(t, "SELECT count(*) FROM sound"); got != "1000" {
		t.Errorf("the sound table has %s rows", got)
	}
	if _, err := r.QueryErr("SELECT count(note) FROM damaged"); err == nil || !strings.Contains(err.Error(), "invalid page") {
		t.Errorf("the damaged table: %v", err)
	}
}

func TestWhatTheOperatorAsksForIsInTheBackupAndWhatIsNotDataIsNot(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := testenv.StartPostgres(t, testenv.PostgresOptions{
		WALSegmentSize: 1, Settings: s.archiving(),
	})
	p.PSQL(t, "-c", "SET allow_in_place_tablespaces = on", "-c", "CREATE TABLESPACE inside LOCATION ''")
	p.Exec(t, "CREATE TABLE in_place TABLESPACE inside AS SELECT generate_series(1, 100) AS g",
		"CREATE UNLOGGED TABLE scratchpad AS SELECT generate_series(1, 100) AS g",
		"CREATE UNLOGGED TABLE scratch_in_place TABLESPACE inside AS SELECT generate_series(1, 100) AS g")
	session := p.Conn(t)
	if _, err := session.Exec(t.Context(), "CREATE TEMPORARY TABLE passing AS SELECT generate_series(1, 100) AS g"); err != nil {
		t.Fatal(err)
	}
	var temporary string
	if err := session.QueryRow(t.Context(), "SELECT pg_relation_filepath('passing')").Scan(&temporary); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(p.DataDir, "a pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(p.DataDir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()

	r := s.must(p, "backup-push", p.DataDir, "--permanent", "--add-user-data", `{"night": [1, 2]}`,
		"--log-format=json", "--verify")
	if r.stdout != "" {
		t.Errorf("on standard output: %s", r.stdout)
	}
	lines := logLines(t, r.stderr)
	begin := lineWith(t, lines, "state", "begin")
	complete := lineWith(t, lines, "state", "complete")
	for _, key := range []string{"time", "level", "msg", "action", "backup", "start_lsn", "data_dir", "to"} {
		if begin[key] == nil {
			t.Errorf("the line of the begin has no %s: %v", key, begin)
		}
	}
	for _, key := range []string{
		"time", "level", "msg", "action", "backup", "start_lsn", "stop_lsn", "files", "parts", "size", "stored", "copy_seconds",
		"seconds", "rate", "wal", "corrupt_blocks",
	} {
		if complete[key] == nil {
			t.Errorf("the line of the end has no %s: %v", key, complete)
		}
	}
	if complete["action"] != "backup-push" || complete["wal"] != "archived" || complete["backup"] != begin["backup"] {
		t.Errorf("the line of the end says %v", complete)
	}
	for _, file := range []string{"a pipe", "s"} {
		if skipped := lineWith(t, lines, "file", file); skipped["level"] != "WARN" || skipped["reason"] == nil {
			t.Errorf("%s: %v", file, skipped)
		}
	}
	if unverified := lineWith(t, lines, "msg", "page checksums cannot be verified: the cluster has none"); unverified["level"] != "WARN" {
		t.Errorf("the verification that was asked for: %v", unverified)
	}

	list := s.listings()
	if len(list) != 1 || !list[0].Permanent || string(list[0].UserData) != `{"night":[1,2]}` || list[0].Status != "" {
		t.Errorf("listed as %+v (user data %s)", list, list[0].UserData)
	}
	var meta, reduced struct{ Files, DatabasesByNames map[string]any }
	s.document(t, list[0].Name, "files_metadata.json", &meta)
	has := func(name string, want bool) {
		t.Helper()
		if _, got := meta.Files["/"+name]; got != want {
			t.Errorf("%s in the backup: %t", name, got)
		}
	}
	has(p.Query(t, "SELECT pg_relation_filepath('in_place')"), true)
	for _, table := range []string{"scratchpad", "scratch_in_place"} {
		file := p.Query(t, "SELECT pg_relation_filepath('"+table+"')")
		has(file, false)
		has(file+"_init", true)
	}
	for _, name := range []string{temporary, "a pipe", "s", "postmaster.pid", "postmaster.opts"} {
		has(name, false)
	}
	has("postgresql.conf", true)

	quiet := s.must(p, "backup-push", p.DataDir, "--walg-log-level=ERROR", "--walg-disable-partial-restore=true")
	if quiet.stdout+quiet.stderr != "" {
		t.Errorf("at level ERROR a success says: %s%s", quiet.stdout, quiet.stderr)
	}
	s.document(t, s.latest(), "files_metadata.json", &reduced)
	if meta.DatabasesByNames["postgres"] == nil || len(reduced.DatabasesByNames) > 0 {
		t.Errorf("databases in the metadata: %d, and %d where they are switched off", len(meta.DatabasesByNames), len(reduced.DatabasesByNames))
	}

	restored := testenv.OpenPostgres(t, s.fetch("LATEST"), testenv.PostgresOptions{
		Settings: s.restoreSettings("allow_in_place_tablespaces=on"),
	})
	if got := restored.Query(t, "SELECT (SELECT count(*) FROM in_place), (SELECT count(*) FROM scratchpad), "+
		"(SELECT count(*) FROM scratch_in_place)"); got != "100|0|0" {
		t.Errorf("rows after the restore: %s", got)
	}
}

// logLines decodes a log in JSON.
func logLines(t *testing.T, log string) []map[string]any {
	t.Helper()
	var lines []map[string]any
	for line := range strings.Lines(log) {
		m := map[string]any{}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("not a line of JSON: %s", line)
		}
		lines = append(lines, m)
	}
	return lines
}

func lineWith(t *testing.T, lines []map[string]any, key string, value any) map[string]any {
	t.Helper()
	for _, line := range lines {
		if line[key] == value {
			return line
		}
	}
	t.Fatalf("no line has %s = %v: %v", key, value, lines)
	return nil
}

func TestFilesThatVanishShrinkAndGrowDuringTheCopyAreRestoredByReplay(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving("autovacuum=off")})
	const tables = 12
	var dropped []string
	for i := range tables {
		p.Exec(t, fmt.Sprintf("CREATE TABLE t%d AS SELECT g AS id, repeat(md5(g::text), 20) AS note FROM generate_series(1, 1000) AS g", i))
		if i%4 == 0 {
			dropped = append(dropped, "/"+p.Query(t, fmt.Sprintf("SELECT pg_relation_filepath('t%d')", i)))
		}
	}
	r := s.start(p, "backup-push", p.DataDir, slowly)
	r.untilCopying(t)
	for i := range tables {
		table := "t" + strconv.Itoa(i)
		switch i % 4 {
		case 0:
			p.Exec(t, "DROP TABLE "+table)
		case 1:
			p.Exec(t, "DELETE FROM "+table+" WHERE id > 100", "VACUUM "+table) // cuts the file in place
		case 2:
			p.Exec(t, "INSERT INTO "+table+" SELECT g, md5(g::text) FROM generate_series(1001, 9000) AS g")
		case 3:
			p.Exec(t, "TRUNCATE "+table, "INSERT INTO "+table+" VALUES (1, 'anew')")
		}
	}
	p.Exec(t, "CHECKPOINT") // removes the dropped files
	select {
	case <-r.ended:
		t.Error("the backup was over before the files changed")
	default:
	}
	r.wait(t).expect(t, 0)
	sums := func(p *testenv.Postgres) string {
		var all []string
		for i := range tables {
			if i%4 != 0 {
				all = append(all, fmt.Sprintf("SELECT %d, count(*), md5(string_agg(note, '' ORDER BY id)) FROM t%d", i, i))
			}
		}
		return p.Query(t, strings.Join(all, " UNION ALL ")+" ORDER BY 1")
	}
	want := sums(p)
	s.archived(p)

	var meta struct{ Files map[string]any }
	s.document(t, s.latest(), "files_metadata.json", &meta)
	vanished := 0
	for _, file := range dropped {
		if _, there := meta.Files[file]; !there {
			vanished++
		}
	}
	if vanished == 0 {
		t.Error("no file vanished during the copy")
	}
	restored := testenv.OpenPostgres(t, s.fetch("LATEST"), testenv.PostgresOptions{Settings: s.restoreSettings()})
	if got := sums(restored); got != want {
		t.Errorf("after recovery:\n%s\nbefore:\n%s", got, want)
	}
	checkTables(t, restored)
}

func TestABackupPushRemovesTheTemporaryFilesOfKilledWriters(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.smallSegments()
	dir := filepath.Join(s.archive, "wal_005")
	makeDir(t, dir)
	plant := func(age time.Duration) string {
		at := time.Now().Add(-age)
		name := filepath.Join(dir, "000000010000000000000001.lz4"+at.UTC().Format(".tmp.20060102T150405Z-")+"0123456789abcdef")
		touch(t, name)
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
		return name
	}
	old, young := plant(25*time.Hour), plant(23*time.Hour)
	s.must(p, "backup-push", p.DataDir).expect(t, 0, "removed temporary files that writers left behind", "files=1")
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old one is still there: %v", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("the young one, whose writer may live, is gone: %v", err)
	}
}
