// Package testenv runs the real programs that walden's tests speak to: PostgreSQL servers and object stores.
//
// It promises that what a test starts ends with the test, that no wait is without a limit, and that the program's
// own log stands in the message of a test that fails. A program that is not installed fails the test with the
// command that installs it; nothing is skipped.
package testenv

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// installHint is what a test says when a program it needs is missing.
const installHint = "run scripts/install-test-tools"

// ToolsDir is where scripts/install-test-tools puts what the distribution's packages do not hold: WALDEN_TOOLS,
// or /var/tmp/walden-tools.
func ToolsDir() string {
	if dir := os.Getenv("WALDEN_TOOLS"); dir != "" {
		return dir
	}
	return "/var/tmp/walden-tools"
}

// Tool returns the path of an installed program in the tools directory, for example Tool(t, "versitygw-v1.8.0").
func Tool(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(ToolsDir(), "bin", name)
	if info, err := os.Stat(path); err != nil || info.Mode()&0o111 == 0 {
		t.Fatalf("test program %s is not installed: %s", path, installHint)
	}
	return path
}

// serveTimeout bounds the start of a server.
const serveTimeout = time.Minute

// serve starts a server, which ends with t, and returns when it answers.
func serve(t testing.TB, cmd *exec.Cmd, answers func(ctx context.Context) error) {
	t.Helper()
	log := new(lockedBuffer)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // also when the tests are killed
	if err := cmd.Start(); err != nil {
		t.Fatalf("cannot start %s: %v", cmd.Path, err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed in the end, which is always an error
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("log of %s:\n%s", cmd.Path, log)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), serveTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for answers(ctx) != nil {
		select {
		case <-ended:
			t.Fatalf("%s ended before it answered", cmd.Path)
		case <-ctx.Done():
			t.Fatalf("%s did not answer within %s", cmd.Path, serveTimeout)
		case <-tick.C:
		}
	}
}

// lockedBuffer collects what a program says while the test reads it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns what was written so far.
func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
