package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// spoolOf is where segments are fetched ahead for a data directory; "" if nothing ever was. base is where it lies.
func spoolOf(t *testing.T, base string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(base, ".walden-spool", "*"))
	if err != nil || len(found) > 1 {
		t.Fatalf("spools in %s: %v, %v", base, found, err)
	}
	if found == nil {
		return ""
	}
	return found[0]
}

// prefetcher is the process that fetches into a spool, 0 for none: it holds a lock, of which the kernel tells (proc_locks(5)).
func prefetcher(t *testing.T, spool string) (pid int) {
	t.Helper()
	info, err := os.Stat(filepath.Join(spool, "fetch.lock"))
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("no inode")
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	held := regexp.MustCompile(fmt.Sprintf(`(?m)^\d+: FLOCK +ADVISORY +WRITE +(\d+) [0-9a-f]+:[0-9a-f]+:%d `, st.Ino))
	m := held.FindSubmatch(locks)
	if m == nil {
		return 0
	}
	pid, err = strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// nobodyFetches waits until the process that fetches ahead has ended, and checks that it has left nothing to be handed over.
func nobodyFetches(t *testing.T, spool string) {
	t.Helper()
	deadline := time.After(recoveryLimit)
	for prefetcher(t, spool) != 0 {
		select {
		case <-deadline:
			t.Fatalf("the process %d that fetches ahead has not ended within %s", prefetcher(t, spool), recoveryLimit)
		case <-time.After(20 * time.Millisecond):
		}
	}
	if left, err := filepath.Glob(filepath.Join(spool, "wal", "*", "*")); err != nil || len(left) > 0 {
		t.Errorf("left in the spool: %v, %v", left, err)
	}
}

// restoredInOrder are the segments that a server has got, in this order, and how many of them had been fetched ahead.
func restoredInOrder(log string) (segments []string, ahead int) {
	for _, m := range regexp.MustCompile(`restored log file "([0-9A-F]{24})"`).FindAllStringSubmatch(log, -1) {
		segments = append(segments, m[1])
	}
	return segments, strings.Count(log, "prefetched=true")
}

// otherDevice is a directory on another file system than path, where there is one.
func otherDevice(t *testing.T, path string) (dir string, isOther bool) {
	t.Helper()
	device := func(path string) uint64 {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Dev
	}
	for _, parent := range []string{"/dev/shm", "/tmp", "/var/tmp"} {
		if device(parent) == device(path) {
			continue
		}
		dir, err := os.MkdirTemp(parent, "walden-test")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		own(t, dir)
		return dir, true
	}
	return testenv.Scratch(t), false
}

// Segments that are fetched ahead are the same in the same order.
func TestPrefetchChangesNothingButTheTime(t *testing.T) {
	t.Parallel()
	kinds := []clusterKind{{15, 1}, {15, 64}}
	if testenv.Full() {
		kinds = append(recoveryKinds(), clusterKind{15, 64})
	}
	for _, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			n := 12
			if kind.megabytes > 1 {
				n = 6
			}
			r := newRecoverable(t, kind, n)
			alone := r.fork(t, "WALG_DOWNLOAD_CONCURRENCY=1")
			var want []string
			for _, c := range []struct {
				name    string
				s       *site
				prepare func(t *testing.T, dir string) (base string)
			}{
				{"without", alone, func(_ *testing.T, dir string) string { return filepath.Dir(dir) }},
				{"beside the data directory", r.site, func(_ *testing.T, dir string) string { return filepath.Dir(dir) }},
				{"beside pg_wal on another disk", r.site, func(t *testing.T, dir string) string {
					base, _ := otherDevice(t, dir)
					external(t, nil, "mv", filepath.Join(dir, "pg_wal"), filepath.Join(base, "pg_wal"))
					if err := os.Symlink(filepath.Join(base, "pg_wal"), filepath.Join(dir, "pg_wal")); err != nil {
						t.Fatal(err)
					}
					return base
				}},
				{"on another disk than pg_wal", r.fork(t), func(t *testing.T, dir string) string {
					base, isOther := otherDevice(t, dir)
					t.Logf("another disk: %v", isOther)
					return base
				}},
			} {
				t.Run(c.name, func(t *testing.T) {
					dir := restoredCopy(t, r.restored, "recovery.signal")
					base := c.prepare(t, dir)
					if c.name == "on another disk than pg_wal" {
						c.s.configure("WALG_FILE_PREFIX="+c.s.archive, "WALG_PREFETCH_DIR="+base)
					}
					p := testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Settings: c.s.restoreSettings()})
					if got := p.Query(t, digest); got != r.want {
						t.Errorf("recovered %s, not %s", got, r.want)
					}
					order, ahead := restoredInOrder(newLog(t, p, 0))
					if want == nil {
						want = order
					}
					if !slices.Equal(order, want) {
						t.Errorf("restored %v, not %v", order, want)
					}
					spool := spoolOf(t, base)
					switch {
					case c.s == alone && (ahead > 0 || spool != ""):
						t.Errorf("%d segments were fetched ahead into %s, which is switched off", ahead, spool)
					case c.s != alone && ahead == 0:
						t.Errorf("nothing was fetched ahead of %d segments:\n%s", len(order), p.LogTail())
					}
					if spool != "" {
						nobodyFetches(t, spool)
					}
					p.Stop("immediate")
					testenv.Figure(t, "segments restored", c.name, len(order))
					testenv.Figure(t, "segments that were fetched ahead", c.name, ahead)
				})
			}
		})
	}
}
