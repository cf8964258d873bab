package client

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/daemon/wire"
)

func TestArguments(t *testing.T) {
	t.Parallel()
	plain := Request{Socket: "/s", Name: "n", Timeout: DefaultTimeout, ConnectionTimeout: DefaultConnectionTimeout}
	fetching, hasty, both := plain, plain, plain
	fetching.Dest = "d"
	hasty.Timeout = 90 * time.Second
	both.Timeout, both.ConnectionTimeout = 2*time.Second, 500*time.Millisecond
	for _, c := range []struct {
		args string
		want Request
		ok   bool
	}{
		{"walden daemon-client /s wal-push n", plain, true},
		{"/usr/bin/walden daemon-client /s wal-fetch n d", fetching, true},
		{"/usr/bin/walg-daemon-client /s wal-push n", plain, true},
		{"walden daemon-client -timeout 1m30s /s wal-push n", hasty, true},
		{"walden daemon-client /s wal-push n --timeout=90s", hasty, true},
		{"walden daemon-client --connection-timeout 500ms /s -timeout=2s wal-push n", both, true},
		{"walden daemon-client", Request{}, false},
		{"walden daemon-client --help", Request{}, false},
		{"walden daemon-client /s wal-push", Request{}, false},
		{"walden daemon-client /s wal-push n d", Request{}, false},
		{"walden daemon-client /s wal-fetch n", Request{}, false},
		{"walden daemon-client /s backup-push n", Request{}, false},
		{"walden daemon-client /s wal-push n --timeout", Request{}, false},
		{"walden daemon-client /s wal-push n --timeout soon", Request{}, false},
		{"walden daemon-client /s wal-push n --timeout -1s", Request{}, false},
		{"walden daemon-client /s wal-push n --prefetch 1s", Request{}, false},
		{"walden --config x daemon-client /s wal-push n", Request{}, false},
		{"walden wal-push n", Request{}, false},
		{"walden", Request{}, false},
		{"", Request{}, false},
	} {
		if got, ok := requestOf(strings.Fields(c.args)); ok != c.ok || got != c.want {
			t.Errorf("%q: %+v, %v", c.args, got, ok)
		}
	}
}

func TestTheArgumentsAreThoseOfTheProcess(t *testing.T) {
	t.Parallel()
	if got := arguments(); !slices.Equal(got, os.Args) {
		t.Errorf("%q instead of %q", got, os.Args)
	}
}

// listening answers clients with what was prepared, and returns what the last one sent.
func listening(t *testing.T, answer string) (socket string, sent func() string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	messages := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		all := ""
		for i := range len(answer) {
			var header [wire.HeaderSize]byte
			if _, err := io.ReadFull(conn, header[:]); err != nil {
				break
			}
			_, n, _ := wire.ParseHeader(header)
			body := make([]byte, n)
			if _, err := io.ReadFull(conn, body); err != nil {
				break
			}
			all += string(header[:1]) + string(body) + ";"
			if _, err := conn.Write([]byte{answer[i]}); err != nil {
				break
			}
		}
		messages <- all
		if answer == "O" { // and nothing more: the client's patience is to end
			_, _ = io.Copy(io.Discard, conn)
		}
	}()
	return socket, func() string { return <-messages }
}

func TestAnswersBecomeExitCodes(t *testing.T) {
	t.Parallel()
	recovering := t.TempDir()
	if err := os.WriteFile(filepath.Join(recovering, "recovery.signal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	resting, standby := t.TempDir(), t.TempDir()
	for _, name := range []string{"recovery.signal", "standby.signal"} { // a standby, says xlogrecovery.c
		if err := os.WriteFile(filepath.Join(standby, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		answer string
		dest   string // directory of the data; "" archives
		want   int
	}{
		{"OO", "", exitDone},
		{"OE", "", exitFailed},
		{"ON", "", exitFailed}, // nobody says that
		{"E", "", exitFailed},
		{"O", "", exitFailed},
		{"", "", exitFailed},
		{"OO", recovering, exitDone},
		{"ON", recovering, exitAbsent},
		{"OE", recovering, exitStopRecovery},
		{"E", recovering, exitStopRecovery},
		{"O", recovering, exitStopRecovery},
		{"N", recovering, exitStopRecovery}, // to a check, that is no answer
		{"OX", recovering, exitStopRecovery},
		{"", recovering, exitStopRecovery},
		{"ON", resting, exitAbsent},
		{"ON", standby, exitAbsent},
		{"OE", standby, exitFailed},
		{"OE", resting, exitFailed},
	} {
		socket, sent := listening(t, c.answer)
		r := Request{Socket: socket, Name: "n", Timeout: time.Minute, ConnectionTimeout: time.Minute}
		if c.answer == "O" {
			r.Timeout = 20 * time.Millisecond
		}
		if c.dest != "" {
			r.Dest = filepath.Join(c.dest, "pg_wal", "RECOVERYXLOG")
		}
		if got := r.Run(); got != c.want {
			t.Errorf("answers %q in %q: exit code %d instead of %d", c.answer, c.dest, got, c.want)
		}
		if got := sent(); c.answer == "OO" && c.dest == "" && got != "C;Fn;" {
			t.Errorf("it sent %q", got)
		}
	}
	nobody := Request{Socket: filepath.Join(resting, "none"), Name: "n", Timeout: time.Second, ConnectionTimeout: time.Second}
	if got := nobody.Run(); got != exitFailed {
		t.Errorf("nobody listens: exit code %d", got)
	}
	nobody.Dest = filepath.Join(recovering, "pg_wal", "RECOVERYXLOG")
	if got := nobody.Run(); got != exitStopRecovery {
		t.Errorf("nobody listens, in recovery: exit code %d", got)
	}
}

func TestTheDaemonIsAskedForTheFilesOfPgWALOnly(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{"n": "F\x00\x04n", "pg_wal/n": "F\x00\x04n", "/data/pg_wal/n": "F\x00\x04n", "/tmp/n": "", "pg_wal/sub/n": ""} {
		message, problem := Request{Name: path}.message()
		if string(message) != want || want == "" && problem == "" {
			t.Errorf("%s: %q, %q", path, message, problem)
		}
	}
}
