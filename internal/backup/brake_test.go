package backup

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gitlab.com/walden-pg/walden/internal/pace"
)

func TestTheBrakeHalvesDownToItsFloorAndLetsGoStepByStep(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	b := &brake{limiter: pace.New(0)}
	if b.step(false, 100*mib) {
		t.Error("a step without a reason")
	}
	for i, c := range []struct {
		over  bool
		limit int64
		moved bool
	}{
		{true, 50 * mib, true}, {true, 25 * mib, true}, {true, 12.5 * mib, true}, {true, 6.25 * mib, true}, {true, slowest, true},
		{true, slowest, false}, {false, 8 * mib, true}, {true, slowest, true}, {false, 8 * mib, true}, {false, 16 * mib, true},
		{false, 32 * mib, true}, {false, 64 * mib, true}, {false, 0, true}, {false, 0, false},
	} {
		moved := b.step(c.over, 100*mib)
		if got := b.limiter.BytesPerSecond(); got != c.limit || moved != c.moved {
			t.Fatalf("step %d: limit %d, changed %v; want %d, %v", i, got, moved, c.limit, c.moved)
		}
	}
	b.step(true, 0) // a backup that reads nothing at the moment
	if got := b.limiter.BytesPerSecond(); got != slowest {
		t.Errorf("limit %d", got)
	}
	b.step(false, 0)
	if got := b.limiter.BytesPerSecond(); got != 0 {
		t.Errorf("limit %d", got)
	}
}

func TestWhatIsOverItsBoundIsNamed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		bounds SlowDown
		p      pressure
		want   string
	}{
		{SlowDown{}, pressure{1000, 1 << 40}, ""},
		{SlowDown{ArchiveBacklog: 10, ReplicationLag: 100}, pressure{10, 100}, ""},
		{SlowDown{ArchiveBacklog: 10}, pressure{11, 1 << 40}, "11 segments wait to be archived"},
		{SlowDown{ReplicationLag: 100}, pressure{11, 101}, "a standby is 101 bytes behind"},
		{SlowDown{10, 100}, pressure{11, 101}, "11 segments wait to be archived, a standby is 101 bytes behind"},
	} {
		if got := c.bounds.over(c.p); got != c.want {
			t.Errorf("%+v %+v: %q", c.bounds, c.p, got)
		}
	}
}

func TestAFailedLookIsAWarningAndLetsGo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		b := &brake{limiter: pace.New(0)}
		ctx, cancel := context.WithCancel(t.Context())
		looks := 0
		b.watch(ctx, SlowDown{ArchiveBacklog: 1}, func(context.Context) (pressure, error) {
			b.read.Add(64 << 20)
			switch looks++; {
			case looks < 3:
				return pressure{backlog: 2}, nil
			case looks < 10:
				return pressure{}, errors.New("no answer")
			}
			cancel()
			return pressure{}, nil
		}, slog.New(slog.NewTextHandler(&log, nil)))
		if got := b.limiter.BytesPerSecond(); got != 0 {
			t.Errorf("limit %d in the end", got)
		}
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		for i, want := range []string{"more slowly", "more slowly", "cannot tell", "faster again", "faster again", "as fast as it can"} {
			if i >= len(lines) || !strings.Contains(lines[i], want) {
				t.Fatalf("line %d does not say %q:\n%s", i+1, want, log.String())
			}
		}
		if n := strings.Count(log.String(), "cannot tell"); n != 1 {
			t.Errorf("%d warnings:\n%s", n, log.String())
		}
	})
}

func TestReadySegmentsAreCounted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := readySegments(dir); err == nil {
		t.Error("no directory, no error")
	}
	status := filepath.Join(dir, "pg_wal", "archive_status")
	if err := os.MkdirAll(status, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Concat([]string{"a.done", "b.ready.tmp"}, []string{"c.ready", "d.ready", "00000002.history.ready"}) {
		if err := os.WriteFile(filepath.Join(status, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := readySegments(dir); n != 3 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestABrakedReaderWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &brake{limiter: pace.New(0)}
		b.step(true, 0)
		start := time.Now()
		for range 100 {
			if err := b.wait(t.Context(), 1<<20); err != nil {
				t.Fatal(err)
			}
		}
		if spent := time.Since(start); spent < 20*time.Second || b.read.Load() != 100<<20 {
			t.Errorf("%d bytes in %s", b.read.Load(), spent)
		}
	})
}
