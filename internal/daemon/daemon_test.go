package daemon

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/daemon/wire"
)

// patience is how long a test waits for what has to come.
const patience = time.Minute

// handler answers by what it is asked for.
type handler struct {
	mu    sync.Mutex
	asked []string
	push  func(ctx context.Context, name string) error
	fetch func(ctx context.Context) error
}

func (h *handler) note(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked = append(h.asked, what)
}

func (h *handler) Check(hello []byte) error {
	if string(hello) == "stranger" {
		return errors.New("a stranger")
	}
	return nil
}

func (h *handler) Push(ctx context.Context, name string) error {
	h.note("push " + name)
	if h.push != nil {
		return h.push(ctx, name)
	}
	if name == "bad" {
		return errors.New("no")
	}
	return nil
}

func (h *handler) Fetch(ctx context.Context, name, dest string) error {
	h.note("fetch " + name + " " + dest)
	if h.fetch != nil {
		return h.fetch(ctx)
	}
	if name == "absent" {
		return ErrAbsent
	}
	return nil
}

// serving runs a server and returns its socket, and what ends it.
func serving(t *testing.T, h Handler, change func(o *Options)) (socket string, end func() error) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	listener, release, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Connections: 8, Idle: patience, Message: patience, Drain: patience, Log: func() *slog.Logger { return slog.New(slog.DiscardHandler) }}
	if change != nil {
		change(&o)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, listener, h, o) }()
	var once sync.Once
	end = func() (err error) {
		once.Do(func() {
			cancel()
			err = errors.Join(<-served, release())
		})
		return err
	}
	t.Cleanup(func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	})
	return socket, end
}

func dial(t *testing.T, socket string) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
}

// answers reads until the server closes the connection.
func answers(t *testing.T, conn net.Conn) string {
	t.Helper()
	b, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && len(b) == 0 {
		t.Fatal(err)
	}
	return string(b)
}

func TestTheAnswersAreThoseOfWALG(t *testing.T) {
	t.Parallel()
	h := &handler{}
	socket, _ := serving(t, h, nil)
	text := func(s string) string { return hex.EncodeToString([]byte(s)) }
	for name, c := range map[string]struct{ sent, want string }{
		"wal-push":                      {"46 0007" + text("good"), "O"},
		"wal-push that fails":           {"46 0006" + text("bad"), "E"},
		"check, then wal-push":          {"43 0008" + text("CHECK") + "46 0007" + text("good"), "OO"},
		"checks, then wal-push":         {"43 0003 43 0003 46 0007" + text("good"), "OOO"},
		"a stranger's check":            {"43 000b" + text("stranger"), "E"},
		"wal-fetch":                     {"66 000b 02 0001" + text("a") + "0002" + text("bc"), "O"},
		"wal-fetch of an absent file":   {"66 000f 02 0006" + text("absent") + "0001" + text("b"), "N"},
		"wal-fetch with one argument":   {"66 0007 01 0001" + text("a"), "E"},
		"wal-fetch with three":          {"66 000d 03 0001" + text("a") + "0001" + text("b") + "0001" + text("c"), "E"},
		"wal-fetch with a broken body":  {"66 0005 02 00", "E"},
		"an unknown type":               {"5a 0003", "E"},
		"a length below three":          {"46 0002", "E"},
		"a length that nothing can be":  {"46 ffff", "E"},
		"nothing after a wal-push":      {"46 0007" + text("good") + "43 0003", "O"},
		"no more messages after errors": {"46 0006" + text("bad") + "43 0003", "E"},
	} {
		conn := dial(t, socket)
		send(t, conn, c.sent)
		if got := answers(t, conn); got != c.want {
			t.Errorf("%s: answered with %q instead of %q", name, got, c.want)
		}
	}
	for _, sent := range []string{"", "46", "46 00", "46 0007" + text("go"), "66 000b 02"} { // and then the end
		conn := dial(t, socket)
		send(t, conn, sent)
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got := answers(t, conn); got != "E" {
			t.Errorf("%q and no more: answered with %q", sent, got)
		}
	}
}

func TestClientsThatSayNothingAreSentAwayAndKeepNobodyWaiting(t *testing.T) {
	t.Parallel()
	socket, _ := serving(t, &handler{}, func(o *Options) { o.Connections, o.Idle, o.Message = 2, 50*time.Millisecond, 50*time.Millisecond })
	for _, sent := range []string{"", "46", "46 0007"} {
		conn := dial(t, socket)
		send(t, conn, sent)
		defer func() {
			if got := answers(t, conn); got != "E" {
				t.Errorf("%q: answered with %q", sent, got)
			}
		}()
	}
	conn := dial(t, socket)
	send(t, conn, "46 0007 676f6f64")
	if got := answers(t, conn); got != "O" {
		t.Errorf("answered with %q", got)
	}
}

func TestAFetchEndsWithItsClient(t *testing.T) {
	t.Parallel()
	began, ended := make(chan struct{}), make(chan error, 1)
	h := &handler{fetch: func(ctx context.Context) error {
		close(began)
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return ctx.Err()
	}}
	socket, _ := serving(t, h, nil)
	conn := dial(t, socket)
	send(t, conn, "66 000b 02 0001 61 0002 6263")
	<-began
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, errClientGone) {
		t.Error(err)
	}
}

func TestWhatIsUnderWayIsDoneBeforeTheDaemonEnds(t *testing.T) {
	t.Parallel()
	began, release := make(chan struct{}), make(chan struct{})
	h := &handler{push: func(context.Context, string) error { close(began); <-release; return nil }}
	socket, end := serving(t, h, nil)
	idle, busy := dial(t, socket), dial(t, socket)
	send(t, idle, "43 0003")
	if _, err := io.ReadFull(idle, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	send(t, busy, "46 0007 676f6f64")
	<-began
	ended := make(chan error, 1)
	go func() { ended <- end() }()
	if got := answers(t, idle); got != "E" { // the socket closes for whoever has not asked yet
		t.Errorf("answered with %q", got)
	}
	close(release)
	if got := answers(t, busy); got != "O" {
		t.Errorf("answered with %q", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestWhatDoesNotEndIsBrokenOff(t *testing.T) {
	t.Parallel()
	began := make(chan struct{})
	h := &handler{push: func(ctx context.Context, _ string) error { close(began); <-ctx.Done(); return ctx.Err() }}
	socket, end := serving(t, h, func(o *Options) { o.Drain = 10 * time.Millisecond })
	conn := dial(t, socket)
	send(t, conn, "46 0007 676f6f64")
	<-began
	if err := end(); err != nil {
		t.Error(err)
	}
	if got := answers(t, conn); got != "E" {
		t.Errorf("answered with %q", got)
	}
}

func TestOnlyADeadSocketIsReplaced(t *testing.T) {
	t.Parallel()
	socket, _ := serving(t, &handler{}, nil)
	if info, err := os.Lstat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	if _, _, err := Listen(socket); err == nil || !strings.Contains(err.Error(), "another daemon listens there") {
		t.Errorf("a second daemon: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Listen(file); err == nil || !strings.Contains(err.Error(), "it is no socket") {
		t.Errorf("a file: %v", err)
	}
	dead := filepath.Join(t.TempDir(), "dead")
	first, _, err := Listen(dead)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil { // as after kill -9: the file stays
		t.Fatal(err)
	}
	second, release, err := Listen(dead)
	if err != nil {
		t.Fatalf("a dead socket: %v", err)
	}
	if err := errors.Join(second.Close(), release()); err != nil {
		t.Error(err)
	}
}

func TestSystemdIsTold(t *testing.T) {
	t.Parallel()
	address := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	environ := map[string]string{"NOTIFY_SOCKET": address}
	n := NewNotifier(func(name string) string { return environ[name] })
	for _, c := range []struct {
		status, state, want string
	}{{"archiving", Ready, "READY=1\nSTATUS=archiving"}, {"", Alive, "WATCHDOG=1"}, {"", Reloading, "RELOADING=1\nMONOTONIC_USEC="}, {"", Stopping, "STOPPING=1"}} {
		if err := n.Tell(c.status, c.state); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1024)
		m, err := conn.Read(b)
		if err != nil || !strings.HasPrefix(string(b[:m]), c.want) {
			t.Errorf("%s: %q, %v", c.state, b[:m], err)
		}
	}
	if err := (Notifier{}).Tell("nobody", Ready); err != nil {
		t.Error(err)
	}
}

func TestAliveIsToldTwiceInSystemdsTime(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", aliveEvery},
		{"10000000", "", 5 * time.Second},
		{"10000000", strconv.Itoa(os.Getpid()), 5 * time.Second},
		{"10000000", "1", aliveEvery},
		{"0", "", aliveEvery},
		{"many", "", aliveEvery},
	} {
		environ := map[string]string{"WATCHDOG_USEC": c.usec, "WATCHDOG_PID": c.pid}
		if got := AliveEvery(func(name string) string { return environ[name] }); got != c.want {
			t.Errorf("%q for %q: every %s instead of %s", c.usec, c.pid, got, c.want)
		}
	}
}

// Whatever is sent, there is one answer and no harm.
func FuzzServe(f *testing.F) {
	f.Add([]byte("C\x00\x03F\x00\x07good"))
	f.Add([]byte("f\x00\x0b\x02\x00\x01a\x00\x02bc"))
	f.Add([]byte("F\xff\xff"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, sent []byte) {
		socket, _ := serving(t, &handler{}, nil)
		conn := dial(t, socket)
		if _, err := conn.Write(sent); err == nil {
			_ = conn.CloseWrite() // it may have been closed by the other side already
		}
		got, _ := io.ReadAll(conn) // reset where something was left unread
		for i, c := range got {
			if !strings.ContainsRune("OEN", rune(c)) || i < len(got)-1 && c != wire.Done {
				t.Errorf("%q: answered with %q", sent, got)
			}
		}
	})
}
