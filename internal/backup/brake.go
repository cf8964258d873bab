package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"gitlab.com/walden-pg/walden/internal/pace"
	"gitlab.com/walden-pg/walden/internal/postgres"
)

// SlowDown says from where on a backup is to take less of the machine than it could. A zero is no reason to slow down.
type SlowDown struct {
	ArchiveBacklog int   // segments that wait to be archived
	ReplicationLag int64 // bytes that the slowest connected standby is behind
}

const (
	// brakeInterval is the time between two looks at what the server has to wait for.
	brakeInterval = 2 * time.Second
	// askLimit bounds one look.
	askLimit = 30 * time.Second
	// slowest is the rate in bytes per second below which no backup is braked: it has to end some day.
	slowest = 4 << 20
	// unmeasured stands for the rate of a backup that has just begun, in bytes per second.
	unmeasured = 64 << 20
)

// brake halves the rate at which a backup reads as long as the server has too much to wait for, and doubles it again when it has
// not, until nothing is limited.
type brake struct {
	limiter *pace.Limiter
	read    atomic.Int64 // bytes since the last look
	top     int64        // rate at which braking began, in bytes per second
}

// wait counts n bytes that are to be read, and waits until they may be.
func (b *brake) wait(ctx context.Context, n int) error {
	b.read.Add(int64(n))
	return b.limiter.Wait(ctx, n)
}

// step draws the conclusion of a look, and tells whether the limit has changed. rate is what was read per second lately, in bytes.
func (b *brake) step(over bool, rate int64) bool {
	limit := b.limiter.BytesPerSecond()
	switch {
	case over && limit == 0:
		b.top = max(rate, slowest)
		b.limiter.Set(max(rate/2, slowest))
	case over && limit > slowest:
		b.limiter.Set(max(limit/2, slowest))
	case over || limit == 0:
		return false
	case 2*limit > b.top:
		b.limiter.Set(0)
	default:
		b.limiter.Set(2 * limit)
	}
	return true
}

// pressure is what the server has to wait for.
type pressure struct {
	backlog int
	lag     int64
}

// over names what is above its bound, "" for nothing.
func (s SlowDown) over(p pressure) string {
	var why []string
	if s.ArchiveBacklog > 0 && p.backlog > s.ArchiveBacklog {
		why = append(why, fmt.Sprintf("%d segments wait to be archived", p.backlog))
	}
	if s.ReplicationLag > 0 && p.lag > s.ReplicationLag {
		why = append(why, fmt.Sprintf("a standby is %d bytes behind", p.lag))
	}
	return strings.Join(why, ", ")
}

// watch looks every two seconds until ctx ends. That a look fails is a warning, and no reason to slow down.
func (b *brake) watch(ctx context.Context, s SlowDown, look func(context.Context) (pressure, error), log *slog.Logger) {
	ticker := time.NewTicker(brakeInterval)
	defer ticker.Stop()
	warned := false
	for rate, last := int64(unmeasured), time.Now(); ; {
		p, err := look(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !warned {
			log.Warn("cannot tell whether the server falls behind; the backup is not slowed down for it", "action", "backup-push", "error", err)
		}
		warned = err != nil
		why := s.over(p)
		if b.step(why != "", rate) {
			switch limit := b.limiter.BytesPerSecond(); {
			case why != "":
				log.Info("the backup reads more slowly", "action", "backup-push", "rate", limit, "reason", why)
			case limit > 0:
				log.Info("the backup reads faster again", "action", "backup-push", "rate", limit)
			default:
				log.Info("the backup reads as fast as it can again", "action", "backup-push")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := time.Now()
		rate = int64(float64(b.read.Swap(0)) / max(now.Sub(last).Seconds(), 1e-3))
		last = now
	}
}

// brakeWhile watches the server until the returned function is called, which waits for the end of the watch. It asks over a session
// of its own: a question that is not answered in time ends its session, and that of the backup must not end.
func (j *job) brakeWhile(ctx context.Context, d Deps, o Options) (release func()) {
	if o.SlowDown == (SlowDown{}) {
		return func() {}
	}
	j.brake = &brake{limiter: pace.New(0)}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w := &watcher{dir: j.dir, need: o.SlowDown, open: d.OpenSession}
		defer w.close()
		j.brake.watch(ctx, o.SlowDown, w.look, d.Log)
	}()
	return func() {
		cancel()
		<-done
	}
}

// watcher finds out what the server has to wait for.
type watcher struct {
	dir    string // data directory
	need   SlowDown
	open   func(context.Context) (*postgres.Server, error)
	server *postgres.Server // nil: not open
}

func (w *watcher) look(ctx context.Context) (p pressure, err error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var backlogErr, lagErr error
	if w.need.ArchiveBacklog > 0 {
		p.backlog, backlogErr = readySegments(w.dir)
	}
	if w.need.ReplicationLag > 0 {
		p.lag, lagErr = w.lag(ctx)
	}
	return p, errors.Join(backlogErr, lagErr)
}

func (w *watcher) lag(ctx context.Context) (int64, error) {
	if w.server == nil {
		var err error
		if w.server, err = w.open(ctx); err != nil {
			return 0, err
		}
	}
	lag, err := w.server.ReplicationLag(ctx)
	if err != nil { // another session may do better
		w.close()
	}
	return lag, err
}

func (w *watcher) close() {
	if w.server != nil {
		w.server.Close()
		w.server = nil
	}
}

// readySegments counts what the server's archiver has still to do (xlogarchive.c, XLogArchiveNotify), without the privileges that
// pg_ls_archive_statusdir asks for.
func readySegments(dataDir string) (n int, err error) {
	f, err := os.Open(filepath.Join(dataDir, "pg_wal", "archive_status"))
	if err != nil {
		return 0, fmt.Errorf("cannot count the segments to archive: %w", err)
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(1000)
		for _, name := range names {
			if strings.HasSuffix(name, ".ready") {
				n++
			}
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return 0, fmt.Errorf("cannot count the segments to archive: %w", err)
		}
	}
}
