package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// runAsWalden makes the test binary be walden itself: so the tests run the real program, as a process of its own and
// under the race detector.
const runAsWalden = "RUN_TEST_BINARY_AS_WALDEN"

func TestMain(m *testing.M) {
	if os.Getenv(runAsWalden) != "" {
		main()
	}
	if os.Getenv(runAsMeter) != "" {
		os.Exit(meter(os.Args[1:]))
	}
	os.Exit(run(m))
}

// binDir is where programs puts the binaries; it goes when all tests are done.
var binDir string

func run(m *testing.M) int {
	var err error
	if binDir, err = os.MkdirTemp("", "walden-bin"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(binDir)
	code := m.Run()
	if left := leftRunning(); left != nil {
		fmt.Fprintf(os.Stderr, "processes of walden that no test has ended still run: %v\n", left)
		return max(code, 1)
	}
	return code
}

// leftRunning lists the processes of walden that outlive the tests, as far as the kernel tells of them (not to everybody, as walden keeps to itself).
// One that fetches ahead looks now and then whether its server is there.
func leftRunning() (left []string) {
	const patience = 30 * time.Second
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		left = nil
		programs, _ := filepath.Glob("/proc/[0-9]*/exe")
		for _, link := range programs {
			if program, err := os.Readlink(link); err == nil && strings.HasPrefix(program, binDir+"/") {
				left = append(left, filepath.Base(filepath.Dir(link)))
			}
		}
		if left == nil {
			return nil
		}
	}
	return left
}

// commandLimit bounds one run of walden in a test.
const commandLimit = 10 * time.Minute

// site is one installation of walden: its program, its configuration file, its archive.
type site struct {
	t   *testing.T
	dir string // scratch directory
	binaries
	config  string // configuration file
	archive string // directory of the archive; "" elsewhere
	s3      *testenv.S3Server
	gcs     *testenv.GCSServer
	bucket  string // on either of them
}

// s3Prefix is where an archive lies in its bucket.
const s3Prefix = "clusters/main"

// binaries are walden in two shapes, where the user postgres can run them.
type binaries struct {
	raced string // the test binary behind a script that makes it run as walden: slow to start, and it finds data races
	plain string // as operators have it, for the commands that a server calls hundreds of times
}

var programs = sync.OnceValues(func() (binaries, error) {
	dir := binDir
	if err := os.Chmod(dir, 0o755); err != nil {
		return binaries{}, err
	}
	b := binaries{filepath.Join(dir, "raced"), filepath.Join(dir, "walden")}
	if out, err := exec.Command("go", "build", "-tags", "grpcnotrace", "-o", b.plain, ".").CombinedOutput(); err != nil {
		return b, fmt.Errorf("go build: %w\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		return b, err
	}
	copied := filepath.Join(dir, "walden.test")
	if out, err := exec.Command("cp", self, copied).CombinedOutput(); err != nil {
		return b, fmt.Errorf("cp: %w\n%s", err, out)
	}
	if err := os.Chmod(copied, 0o755); err != nil {
		return b, err
	}
	return b, os.WriteFile(b.raced, []byte(racedScript(copied)), 0o755)
})

// racedScript makes a copy of the test binary run as walden. Without the setting the race detector sleeps for a second before the
// process ends.
func racedScript(program string) string {
	return fmt.Sprintf("#!/bin/sh\n%s=1 GORACE=atexit_sleep_ms=10 exec %s \"$@\"\n", runAsWalden, program)
}

// newSite makes an installation that archives to a local directory. Settings are added to its configuration file.
func newSite(t *testing.T, settings ...string) *site {
	t.Helper()
	s := bareSite(t)
	s.archive = filepath.Join(s.dir, "archive")
	if err := os.Mkdir(s.archive, 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, s.archive)
	s.configure(append([]string{"WALG_FILE_PREFIX=" + s.archive}, settings...)...)
	return s
}

// newS3Site makes an installation that archives to a bucket of its own on a real S3 server.
func newS3Site(t *testing.T, settings ...string) *site {
	t.Helper()
	s := bareSite(t)
	server := testenv.StartS3(t)
	s.s3, s.bucket = server, server.NewBucket(t)
	s.configure(append([]string{
		"WALG_S3_PREFIX=s3://" + s.bucket + "/" + s3Prefix, "AWS_ENDPOINT=" + server.Endpoint,
		"AWS_ACCESS_KEY_ID=" + server.AccessKey, "AWS_SECRET_ACCESS_KEY=" + server.SecretKey, "AWS_REGION=us-east-1",
		"AWS_S3_FORCE_PATH_STYLE=true",
	}, settings...)...)
	return s
}

// newGCSSite makes an installation that archives to a bucket of its own on a server for Google Cloud Storage.
func newGCSSite(t *testing.T, settings ...string) *site {
	t.Helper()
	s := bareSite(t)
	s.gcs = testenv.StartGCS(t, "")
	s.bucket = s.gcs.NewBucket(t)
	s.configure(append([]string{"WALG_GS_PREFIX=gs://" + s.bucket + "/" + s3Prefix, "STORAGE_EMULATOR_HOST=" + s.gcs.Address}, settings...)...)
	return s
}

func bareSite(t *testing.T) *site {
	t.Helper()
	b, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	dir := testenv.Scratch(t)
	s := &site{t: t, dir: dir, binaries: b, config: filepath.Join(dir, "walden.yaml")}
	const raced = 3 // one of so many
	if rand.IntN(raced) > 0 {
		s.quick()
	}
	return s
}

// quick makes walden run without the race detector where only a sample is tried: under it a command takes several times the
// processor time. A third of the sites, by chance, and mainJob run under it in the sample, and all do in the whole.
func (s *site) quick() *site {
	if !testenv.Full() {
		s.raced = s.plain
	}
	return s
}

// thorough makes walden run under the race detector, whatever chance says.
func (s *site) thorough() {
	b, err := programs()
	if err != nil {
		s.t.Fatal(err)
	}
	s.raced = b.raced
}

// configure writes the configuration file; each setting is NAME=value.
func (s *site) configure(settings ...string) {
	s.t.Helper()
	var b strings.Builder
	for _, line := range settings {
		name, value, _ := strings.Cut(line, "=")
		fmt.Fprintf(&b, "%s: %q\n", name, value)
	}
	if err := os.WriteFile(s.config, []byte(b.String()), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// own gives a path to the user postgres when the test runs as root.
func own(t *testing.T, path string) {
	t.Helper()
	cmd := testenv.AsPostgres(exec.Command("true"))
	if cmd.SysProcAttr == nil || cmd.SysProcAttr.Credential == nil {
		return
	}
	if err := os.Chown(path, int(cmd.SysProcAttr.Credential.Uid), int(cmd.SysProcAttr.Credential.Gid)); err != nil {
		t.Fatal(err)
	}
}

// result is what a run of walden left.
type result struct {
	stdout, stderr string
	code           int
}

// command prepares a run of walden as the user postgres.
func (s *site) command(ctx context.Context, p *testenv.Postgres, args ...string) *exec.Cmd {
	cmd := testenv.AsPostgres(exec.CommandContext(ctx, s.raced, append([]string{"--config", s.config}, args...)...))
	cmd.Env = append(slices.DeleteFunc(cmd.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "WALDEN_TEST_") || strings.HasPrefix(v, "WALDEN_TOOLS=") // the tests' own, no settings
	}), "PATH="+os.Getenv("PATH"))
	if p != nil {
		cmd.Env = append(cmd.Env, p.Env()...)
	}
	cmd.Dir = s.dir
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// walden runs a command that may fail.
func (s *site) walden(p *testenv.Postgres, args ...string) result {
	s.t.Helper()
	return s.waldenIn(s.dir, p, args...)
}

// waldenIn is walden with another working directory.
func (s *site) waldenIn(dir string, p *testenv.Postgres, args ...string) result {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := s.command(ctx, p, args...)
	cmd.Dir = dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("walden %s: %v", strings.Join(args, " "), err)
	}
	if ctx.Err() != nil {
		s.t.Fatalf("walden %s did not end within %s\n%s", strings.Join(args, " "), commandLimit, stderr.String())
	}
	r := result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	if strings.Contains(r.stderr, "DATA RACE") || strings.Contains(r.stderr, "panic:") {
		s.t.Fatalf("walden %s:\n%s", strings.Join(args, " "), r.stderr)
	}
	return r
}

// must runs a command that has to succeed.
func (s *site) must(p *testenv.Postgres, args ...string) result {
	s.t.Helper()
	r := s.walden(p, args...)
	if r.code != 0 {
		s.t.Fatalf("walden %s: exit code %d\n%s", strings.Join(args, " "), r.code, r.stderr)
	}
	return r
}

// fails runs a command that has to fail with the code given and to say each of the texts.
func (s *site) fails(p *testenv.Postgres, code int, texts []string, args ...string) result {
	s.t.Helper()
	r := s.walden(p, args...)
	r.expect(s.t, code, texts...)
	return r
}

// expect checks the exit code and what was said on standard error.
func (r result) expect(t *testing.T, code int, texts ...string) {
	t.Helper()
	if r.code != code {
		t.Fatalf("exit code %d instead of %d\n%s", r.code, code, r.stderr)
	}
	for _, text := range texts {
		if !strings.Contains(r.stderr, text) {
			t.Fatalf("standard error does not say %q:\n%s", text, r.stderr)
		}
	}
}

// archiving returns the settings with which a server archives here.
func (s *site) archiving(more ...string) map[string]string {
	m := map[string]string{
		"archive_mode":    "on",
		"archive_command": fmt.Sprintf("%s --config %s wal-push %%p", s.plain, s.config),
		"wal_level":       "replica",
	}
	for _, line := range more {
		name, value, _ := strings.Cut(line, "=")
		m[name] = value
	}
	return m
}

// restoreSettings returns the settings with which a restored server fetches its WAL from here.
func (s *site) restoreSettings(more ...string) map[string]string {
	m := map[string]string{
		"restore_command": fmt.Sprintf(`%s --config %s wal-fetch "%%f" "%%p"`, s.plain, s.config),
		"archive_mode":    "off",
	}
	for _, line := range more {
		name, value, _ := strings.Cut(line, "=")
		m[name] = value
	}
	return m
}

// archived closes the current segment and waits until the archive holds everything that the server has written.
func (s *site) archived(p *testenv.Postgres) {
	s.t.Helper()
	segment := p.SwitchWAL(s.t)
	p.WaitFor(s.t, fmt.Sprintf("SELECT coalesce(last_archived_wal, '') >= '%s' FROM pg_stat_archiver", segment), "t", time.Minute)
}

// fetch restores a backup and asks for archive recovery.
func (s *site) fetch(name string, more ...string) string {
	s.t.Helper()
	dir := filepath.Join(testenv.Scratch(s.t), "restored")
	s.must(nil, append([]string{"backup-fetch", dir, name}, more...)...)
	signal := filepath.Join(dir, "recovery.signal")
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		s.t.Fatal(err)
	}
	own(s.t, signal)
	return dir
}

// latest returns the name of the newest backup in the list.
func (s *site) latest() string {
	s.t.Helper()
	lines := strings.Split(strings.TrimSpace(s.must(nil, "backup-list").stdout), "\n")
	name, _, _ := strings.Cut(lines[len(lines)-1], " ")
	return name
}

// tool runs one of PostgreSQL's programs against a data directory or server as the user postgres; it has to succeed.
func tool(t *testing.T, p *testenv.Postgres, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := testenv.AsPostgres(exec.CommandContext(ctx, filepath.Join(p.BinDir, name), args...))
	cmd.Env = append(cmd.Environ(), p.Env()...)
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// has says whether one of PostgreSQL's programs came with the server; some packages hold the server only.
func has(p *testenv.Postgres, name string) bool {
	_, err := os.Stat(filepath.Join(p.BinDir, name))
	return err == nil
}

// checkTables looks for corruption in every table and index of every database: with pg_amcheck, or with its functions.
func checkTables(t *testing.T, p *testenv.Postgres) {
	t.Helper()
	if has(p, "pg_amcheck") {
		tool(t, p, "pg_amcheck", "--all", "--install-missing", "--heapallindexed", "--parent-check")
		return
	}
	for _, database := range strings.Fields(p.Query(t, "SELECT datname FROM pg_database WHERE datallowconn")) {
		p.ExecIn(t, database, "CREATE EXTENSION IF NOT EXISTS amcheck")
		if p.Major >= 14 {
			if got := p.QueryIn(t, database, `SELECT c.oid::regclass, v.* FROM pg_class AS c, LATERAL verify_heapam(c.oid) AS v
				WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't'`); got != "" {
				t.Errorf("verify_heapam in %s:\n%s", database, got)
			}
		}
		p.QueryIn(t, database, `SELECT bt_index_parent_check(c.oid, true) FROM pg_class AS c JOIN pg_am AS a ON a.oid = c.relam
			JOIN pg_index AS i ON i.indexrelid = c.oid WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence <> 't' AND i.indisvalid`)
	}
}

// checkPages verifies the checksums of all pages, if the cluster has them, and stops the server. Where pg_checksums is missing
// the server does it: it verifies what it sends to pg_basebackup.
func checkPages(t *testing.T, p *testenv.Postgres, checksums bool) {
	t.Helper()
	switch {
	case checksums && has(p, "pg_checksums"):
		p.Stop("fast")
		tool(t, p, "pg_checksums", "--check", "-D", p.DataDir)
		return
	case checksums:
		ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
		defer cancel()
		command := "BASE_BACKUP (CHECKPOINT 'fast', WAIT false)"
		if p.Major < 15 {
			command = "BASE_BACKUP FAST NOWAIT"
		}
		if _, err := p.Replication(t).CopyTo(ctx, io.Discard, command); err != nil {
			t.Errorf("the server finds damage: %v", err)
		}
	}
	p.Stop("fast")
}

// load writes to the server until stop is called: inserts, updates, and tables that come, grow, shrink and go.
type load struct {
	stop func() int // ends the load and returns the number of committed transactions
}

func startLoad(t *testing.T, p *testenv.Postgres) load {
	t.Helper()
	p.Exec(t, "CREATE TABLE IF NOT EXISTS journal(id bigserial PRIMARY KEY, note text, at timestamptz DEFAULT now())")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan int)
	conn := p.Conn(t)
	go func() {
		n := 0
		defer func() { done <- n }()
		for ctx.Err() == nil {
			churn := "churn" + strconv.Itoa(n%7)
			for _, sql := range []string{
				"INSERT INTO journal(note) SELECT md5(random()::text) FROM generate_series(1, 20)",
				"UPDATE journal SET note = note || 'x' WHERE id % 17 = " + strconv.Itoa(n%17) + " AND length(note) < 200",
				"DROP TABLE IF EXISTS " + churn,
				"CREATE TABLE " + churn + " AS SELECT g, repeat('y', 100) AS filler FROM generate_series(1, 300) AS g",
				"TRUNCATE " + churn,
			} {
				if _, err := conn.Exec(context.Background(), sql); err != nil {
					if ctx.Err() == nil {
						t.Errorf("load: %v", err)
					}
					return
				}
			}
			n++
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond): // leaves room for the archiver, which starts a process per segment
			}
		}
	}()
	var once sync.Once
	count := 0
	stop := func() int {
		once.Do(func() { cancel(); count = <-done })
		return count
	}
	t.Cleanup(func() { stop() })
	return load{stop}
}

// digest is a summary of the contents of the tables that tests write.
const digest = "SELECT count(*), coalesce(md5(string_agg(id || note, ',' ORDER BY id)), '') FROM journal"
