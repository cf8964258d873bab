package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
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

// resident is a site with a daemon for one server.
type resident struct {
	*site
	t       *testing.T
	data    string // of the server
	socket  string
	mu      sync.Mutex
	running *exec.Cmd
	ended   chan struct{}
	log     *os.File
}

// patience bounds everything that has to come true, however busy the machine is.
const patience = 2 * time.Minute

func (s *site) resident(t *testing.T, data string) *resident {
	t.Helper()
	log, err := os.Create(filepath.Join(s.dir, "daemon.log"))
	if err != nil {
		t.Fatal(err)
	}
	r := &resident{site: s, t: t, data: data, socket: filepath.Join(s.dir, "daemon.sock"), log: log}
	t.Cleanup(func() {
		r.kill(syscall.SIGKILL)
		_ = log.Close()
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", r.logged())
		}
	})
	return r
}

func (r *resident) logged() string {
	b, err := os.ReadFile(r.log.Name())
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

// start starts the daemon and waits until it answers.
func (r *resident) start(environ ...string) {
	r.t.Helper()
	cmd := r.command(context.Background(), nil, "daemon", r.socket)
	cmd.Env = append(append(cmd.Env, "PGDATA="+r.data), environ...)
	cmd.Stdout, cmd.Stderr = r.log, r.log
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its state is looked at
		close(ended)
	}()
	r.mu.Lock()
	r.running, r.ended = cmd, ended
	r.mu.Unlock()
	r.eventually("the daemon answers", func() bool { return r.exchange("C\x00\x03") == "O" })
}

// kill sends a signal to the daemon and waits until it has ended.
func (r *resident) kill(s syscall.Signal) {
	r.mu.Lock()
	cmd, ended := r.running, r.ended
	r.running = nil
	r.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(s) // it may have ended
	<-ended
}

func (r *resident) signal(s syscall.Signal) {
	r.t.Helper()
	if err := r.running.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
}

// exchange sends bytes to the daemon and returns its first answer, "" for none.
func (r *resident) exchange(message string) string {
	conn, err := net.DialTimeout("unix", r.socket, patience)
	if err != nil {
		return ""
	}
	defer conn.Close()
	answer := make([]byte, 1)
	if conn.SetDeadline(time.Now().Add(patience)) != nil {
		return ""
	}
	if _, err := io.WriteString(conn, message); err != nil {
		return ""
	}
	n, _ := conn.Read(answer) // the end is no answer
	return string(answer[:n])
}

func (r *resident) eventually(what string, is func() bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("it does not come true that %s\n%s", what, r.logged())
		}
	}
}

// archiving returns the settings with which a server archives by the daemon.
func (r *resident) archiving(more ...string) []string {
	return append([]string{"archive_command=" + r.plain + " daemon-client " + r.socket + " wal-push %p"}, more...)
}

// server starts a server that archives by the daemon, in segments of 1 MiB. The daemon is not started yet.
func (s *site) serverWithDaemon(t *testing.T, more ...string) (*testenv.Postgres, *resident) {
	t.Helper()
	r := s.resident(t, "")
	p := s.smallSegments(r.archiving(append([]string{"wal_keep_size=1GB", "max_wal_size=2GB"}, more...)...)...)
	r.data = p.DataDir
	return p, r
}

// compare finds every segment in the archive that the server calls archived, and compares what it holds of them with the server's own.
func (s *site) compare(t *testing.T, p *testenv.Postgres) (segments int) {
	t.Helper()
	done, err := filepath.Glob(filepath.Join(p.DataDir, "pg_wal/archive_status/*.done"))
	if err != nil {
		t.Fatal(err)
	}
	dir := dataDir(t)
	for _, status := range done {
		name := strings.TrimSuffix(filepath.Base(status), ".done")
		want, err := os.ReadFile(filepath.Join(p.DataDir, "pg_wal", name))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		dest := filepath.Join(dir, "pg_wal", name)
		s.waldenIn(dir, nil, "wal-fetch", name, dest).expect(t, 0)
		if got, err := os.ReadFile(dest); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is archived with other content: %v", name, err)
		}
		if err := os.Remove(dest); err != nil {
			t.Fatal(err)
		}
		segments++
	}
	return segments
}

func TestADaemonArchivesAheadAndLosesNothingWhenItIsKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.raced = s.plain
	p, r := s.serverWithDaemon(t)
	r.start()
	s.must(p, "backup-push", p.DataDir) // where the archive is to be complete from
	chance := testenv.Rand(t)
	writing := startLoad(t, p)
	kills := testenv.Pick(4, 60)
	for range kills {
		time.Sleep(time.Duration(chance.Int64N(int64(400 * time.Millisecond)))) // the moment of the kill
		p.SwitchWAL(t)
		r.kill(syscall.SIGKILL)
		r.start()
	}
	writing.stop()
	// A backlog, of which the daemon hands most over from memory.
	r.kill(syscall.SIGTERM)
	for i := range 20 {
		p.Exec(t, fmt.Sprintf("CREATE TABLE backlog%d AS SELECT 1", i))
		p.SwitchWAL(t)
	}
	r.start()
	s.archived(p)
	if n := strings.Count(r.logged(), `msg="archived ahead"`); n == 0 {
		t.Error("nothing was archived ahead")
	} else {
		testenv.Figure(t, "segments archived ahead", "daemon", n)
	}
	testenv.Figure(t, "moments killed, files", "daemon", kills)
	testenv.Figure(t, "segments compared", "daemon", s.compare(t, p))
	verified := s.must(p, "wal-verify", "integrity", "timeline", "--json")
	if strings.Contains(verified.stdout, "FAILURE") || strings.Contains(verified.stdout, "LOST") {
		t.Errorf("wal-verify: %s", verified.stdout)
	}
	r.kill(syscall.SIGTERM)
	if _, err := os.Lstat(r.socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestADaemonIsReloadedAndDoesNotStandBesideAnother(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p, r := s.serverWithDaemon(t)
	logFile := filepath.Join(s.dir, "walden.log")
	r.start("WALG_LOG_DESTINATION=" + logFile)
	s.archived(p)
	said := func(text string) func() bool {
		return func() bool {
			b, err := os.ReadFile(logFile)
			return err == nil && bytes.Contains(b, []byte(text))
		}
	}
	info, err := os.Lstat(r.socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}

	cmd := r.command(t.Context(), nil, "daemon", r.socket)
	cmd.Env = append(cmd.Env, "PGDATA="+p.DataDir)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "another daemon listens there") {
		t.Errorf("a second daemon: %v\n%s", err, out)
	}

	good, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	s.configure("WALG_FILE_PREFIX="+s.archive, "WALG_COMPRESSION_METHOD=zip")
	r.signal(syscall.SIGHUP)
	r.eventually("a bad file is complained about", said("those of before stay"))
	s.archived(p)

	elsewhere := filepath.Join(s.dir, "elsewhere")
	if err := os.Mkdir(elsewhere, 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, elsewhere)
	s.configure("WALG_FILE_PREFIX="+elsewhere, "WALG_COMPRESSION_METHOD=zstd")
	r.signal(syscall.SIGHUP)
	r.eventually("the settings are read", said("the settings were read again"))
	segment := p.SwitchWAL(t)
	s.archived(p)
	if _, err := os.Stat(filepath.Join(elsewhere, "wal_005", segment+".zst")); err != nil {
		t.Errorf("the new settings have not come into effect: %v", err)
	}
	if err := os.WriteFile(s.config, good, 0o644); err != nil {
		t.Fatal(err)
	}

	if err := os.Rename(logFile, logFile+".1"); err != nil {
		t.Fatal(err)
	}
	r.signal(syscall.SIGUSR1)
	r.eventually("the log goes on in a new file", said("the log file was opened again"))

	// Hostile and mistaken clients.
	for message, want := range map[string]string{
		"F\x00\x13../global/pg_co":          "E",
		"F\x00\x04.":                        "E",
		"F\x00\x03":                         "E",
		"F\x00\x1b0000000100000000000000FF": "E",
		"f\x00\x2d\x02\x00\x10" + "00000002.history" + "\x00\x15/tmp/RECOVERYHISTORY1": "E",
		"f\x00\x2d\x02\x00\x10" + "00000002.history" + "\x00\x15../../RECOVERYHISTORY": "E",
		"f\x00\x2d\x02\x00\x10" + "00000002.history" + "\x00\x15pg_wal/RECOVERYHISTOR": "N",
	} {
		if got := r.exchange(message); got != want {
			t.Errorf("%q: answered with %q", message, got)
		}
	}
	other := dataDir(t)
	stranger := testenv.AsPostgres(exec.Command(r.plain, "daemon-client", r.socket, "wal-push", "pg_wal/"+segment))
	stranger.Dir = other
	if out, err := stranger.CombinedOutput(); err == nil || !strings.Contains(string(out), "refuses this client") {
		t.Errorf("a client of another cluster: %v\n%s", err, out)
	}

	r.signal(syscall.SIGTERM)
	<-r.ended
	if code := r.running.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// Credentials are rotated by a change of the file: the new ones are in use from then on, and the old ones no more.
func TestADaemonThatIsReloadedHasTheNewCredentials(t *testing.T) {
	t.Parallel()
	s := newS3Site(t).quick()
	valid, invalid := *s.s3, *s.s3
	invalid.SecretKey = "another"
	s.configure(withBucket(s.bucket, valid)...)
	p, r := s.serverWithDaemon(t)
	r.start()
	s.archived(p)
	for i, c := range []struct {
		credentials testenv.S3Server
		archives    bool
	}{{invalid, false}, {valid, true}} {
		s.configure(withBucket(s.bucket, c.credentials)...)
		r.signal(syscall.SIGHUP)
		r.eventually("the settings are read", func() bool { return strings.Count(r.logged(), "the settings were read again") > i })
		if c.archives {
			s.archived(p)
			continue
		}
		before := p.Query(t, "SELECT failed_count FROM pg_stat_archiver")
		p.SwitchWAL(t)
		p.WaitFor(t, "SELECT failed_count > "+before+" FROM pg_stat_archiver", "t", patience)
	}
	if s.compare(t, p) == 0 {
		t.Error("nothing is archived")
	}
}

func TestRecoveryThroughTheDaemonEndsWhereTheArchiveEnds(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p, r := s.serverWithDaemon(t)
	r.start()
	p.Exec(t, "CREATE TABLE journal(id int, note text)")
	s.must(p, "backup-push", p.DataDir)
	for i := range 4 {
		p.Exec(t, fmt.Sprintf("INSERT INTO journal SELECT %d, md5(g::text) FROM generate_series(1, 500) AS g", i))
		s.archived(p)
	}
	want := p.Query(t, digest)
	p.KillHard()
	r.kill(syscall.SIGTERM)

	dir := s.fetch("LATEST")
	restored := s.resident(t, dir)
	restored.socket += "2"
	settings := s.restoreSettings("hot_standby=off")
	settings["restore_command"] = fmt.Sprintf(`%s daemon-client %s wal-fetch "%%f" "%%p"`, s.plain, restored.socket)
	server := testenv.AttachPostgres(t, dir, testenv.PostgresOptions{Settings: settings})
	stopsWith := func(why string) {
		t.Helper()
		if err := server.TryStart(); err == nil {
			t.Fatalf("%s: the server came up with %s of %s", why, server.Query(t, digest), want)
		}
		if log := server.LogTail(); !strings.Contains(log, "exit code 200") {
			t.Errorf("%s:\n%s", why, log)
		}
	}
	stopsWith("no daemon")
	restored.start()
	if err := os.Rename(s.archive, s.archive+".away"); err != nil {
		t.Fatal(err)
	}
	stopsWith("no archive")
	if err := os.Rename(s.archive+".away", s.archive); err != nil {
		t.Fatal(err)
	}
	server.Start()
	server.WaitFor(t, "SELECT pg_is_in_recovery()", "f", patience)
	if got := server.Query(t, digest); got != want {
		t.Errorf("after recovery: %s, was %s", got, want)
	}
	if !strings.Contains(restored.logged(), "not in the archive") {
		t.Error("the end of the archive was not asked for")
	}
}

// The client ends before the rest of the program is initialised, or it is no faster than any other command.
func TestTheClientEndsBeforeTheRestOfTheProgramBegins(t *testing.T) {
	t.Parallel()
	b, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	dir := testenv.Scratch(t)
	link := filepath.Join(dir, "walg-daemon-client")
	if err := os.Symlink(b.plain, link); err != nil {
		t.Fatal(err)
	}
	initialised := func(program string, args ...string) (packages int, said string) {
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
		out, _ := cmd.CombinedOutput() // nobody listens
		return strings.Count(string(out), "init "), string(out)
	}
	all, _ := initialised(b.plain, "--version")
	for _, args := range [][]string{
		{b.plain, "daemon-client", "/nonexistent", "wal-push", "000000010000000000000001"},
		{link, "/nonexistent", "wal-fetch", "000000010000000000000001", "pg_wal/RECOVERYXLOG"},
	} {
		few, said := initialised(args[0], args[1:]...)
		if few > 40 || few > all/4 || !strings.Contains(said, "no connection") {
			t.Errorf("%s: %d of %d packages were initialised before it ended\n%s", filepath.Base(args[0]), few, all, said)
		}
	}
	for _, args := range [][]string{{b.plain, "daemon-client", "--help"}, {link, "--help"}} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("wal-fetch NAME DESTINATION")) {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
}

func TestSystemdHandsTheSocketOverAndIsTold(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p, r := s.serverWithDaemon(t)
	notified, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(s.dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notified.Close()
	if err := os.Chmod(filepath.Join(s.dir, "notify"), 0o777); err != nil {
		t.Fatal(err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	own(t, r.socket)
	handed, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer handed.Close()
	// LISTEN_PID is that of the process, which a shell knows that becomes it.
	cmd := r.command(t.Context(), nil, "daemon", "unused")
	cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	cmd.Env = append(cmd.Env, "PGDATA="+p.DataDir, "LISTEN_FDS=1", "NOTIFY_SOCKET="+filepath.Join(s.dir, "notify"), "WATCHDOG_USEC=200000")
	cmd.ExtraFiles = []*os.File{handed}
	cmd.Stdout, cmd.Stderr = r.log, r.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	expect := func(text string) {
		t.Helper()
		b := make([]byte, 4096)
		for end := time.Now().Add(patience); ; {
			if err := notified.SetReadDeadline(end); err != nil {
				t.Fatal(err)
			}
			n, err := notified.Read(b)
			if err != nil {
				t.Fatalf("systemd is not told %s: %v", text, err)
			}
			if strings.Contains(string(b[:n]), text) {
				return
			}
		}
	}
	expect("READY=1")
	expect("WATCHDOG=1")
	if got := r.exchange("C\x00\x03"); got != "O" {
		t.Errorf("answered with %q", got)
	}
	s.archived(p)
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	expect("RELOADING=1\nMONOTONIC_USEC=")
	expect("READY=1")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	expect("STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(r.socket); err != nil {
		t.Errorf("systemd's socket was removed: %v", err)
	}
}

// wal-push that looks ahead is killed at any moment, again and again, over one backlog. What the server then calls archived is archived.
func TestWALPushThatLooksAheadIsKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t, "WALG_UPLOAD_CONCURRENCY=8")
	s.raced = s.plain
	p := s.smallSegments("archive_command=false", "wal_keep_size=1GB", "max_wal_size=2GB")
	p.Exec(t, "CREATE TABLE t(a text)")
	var segments []string
	for range testenv.Pick(12, 80) {
		p.Exec(t, "INSERT INTO t SELECT md5(random()::text) FROM generate_series(1, 5000)")
		segments = append(segments, p.SwitchWAL(t))
	}
	k := &killing{site: s, p: p, chance: testenv.Rand(t)}
	hits, used := 0, 0
	for i, segment := range segments {
		for range 2 {
			hit, _ := k.kill(t, p.DataDir, time.Duration(k.chance.Int64N(int64(60*time.Millisecond))), "wal-push", "pg_wal/"+segment)
			if !hit {
				break
			}
			hits++
		}
		r := s.waldenIn(p.DataDir, p, "wal-push", "pg_wal/"+segment)
		r.expect(t, 0)
		if strings.Contains(r.stderr, `msg="archived ahead"`) {
			used++
		}
		// What has been called archived until now is.
		for _, done := range segments[max(0, i-1) : i+1] {
			fetched(t, s, p, done)
		}
	}
	testenv.Figure(t, "moments killed, files", "wal-push that looks ahead", hits)
	testenv.Figure(t, "segments archived ahead", "wal-push", used)
}

// fetched compares an archived segment with the server's.
func fetched(t *testing.T, s *site, p *testenv.Postgres, name string) {
	t.Helper()
	want, err := os.ReadFile(filepath.Join(p.DataDir, "pg_wal", name))
	if err != nil {
		t.Fatal(err)
	}
	dir := dataDir(t)
	s.waldenIn(dir, nil, "wal-fetch", name, "pg_wal/"+name).expect(t, 0)
	if got, err := os.ReadFile(filepath.Join(dir, "pg_wal", name)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is archived with other content: %v", name, err)
	}
}

// TestTheCostOfTheClient tells what a call costs its caller; it proves nothing, since machines differ.
func TestTheCostOfTheClient(t *testing.T) {
	s := newSite(t)
	s.raced = s.plain
	p, r := s.serverWithDaemon(t, "archive_command=false")
	var segments []string
	for range testenv.Pick(10, 30) {
		p.Exec(t, "CREATE TABLE IF NOT EXISTS t(a text)", "INSERT INTO t SELECT md5(random()::text) FROM generate_series(1, 5000)")
		segments = append(segments, p.SwitchWAL(t))
	}
	r.start()
	took := func(args ...string) time.Duration {
		cmd := testenv.AsPostgres(exec.CommandContext(t.Context(), r.plain, args...))
		cmd.Dir = p.DataDir
		began := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return time.Since(began)
	}
	var starts, pushes []time.Duration
	for i, segment := range segments {
		if i == 0 {
			took("daemon-client", r.socket, "wal-push", "pg_wal/"+segment)
			continue
		}
		r.eventually("it is archived ahead", func() bool {
			return strings.Contains(r.logged(), "key=wal_005/"+segment)
		})
		pushes = append(pushes, took("daemon-client", r.socket, "wal-push", "pg_wal/"+segment))
		starts = append(starts, took("--version"))
	}
	slices.Sort(pushes)
	t.Logf("median of %s calls: %s for a segment that was archived ahead, %s for --version", strconv.Itoa(len(pushes)), median(pushes), median(starts))
}
