package backup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"gitlab.com/walden-pg/walden/internal/changes"
	"gitlab.com/walden-pg/walden/internal/postgres"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// stretch is a piece of the log on one timeline.
type stretch struct {
	timeline wal.Timeline
	from, to wal.LSN
}

// stretches divides the log between two positions, as seen from a timeline with the history given, into those of its ancestors and its own.
func stretches(h wal.History, tip wal.Timeline, from, to wal.LSN) []stretch {
	var all []stretch
	for _, s := range h {
		if from < min(s.LSN, to) {
			all = append(all, stretch{s.Timeline, from, min(s.LSN, to)})
			from = min(s.LSN, to)
		}
	}
	if from < to {
		all = append(all, stretch{tip, from, to})
	}
	return all
}

// changedSince finds out which blocks changed since the base began, without looking at them: from the server's summaries, or from the
// archived WAL. A nil map means that nothing tells it for every byte of the log in between, so that all pages have to be read.
func changedSince(ctx context.Context, d Deps, o Options, b *base, start postgres.Start, dir string) (*changes.Map, error) {
	from, to := b.Backup.StartLSN, start.LSN
	sources := []struct {
		name string
		ask  bool
		read func() (*changes.Map, error)
	}{
		{"summaries", true, func() (*changes.Map, error) { return fromSummaries(ctx, d, dir, start, from, to) }},
		{"archived WAL", o.Delta.UseWAL, func() (*changes.Map, error) {
			return fromWAL(ctx, d, dir, start, from, to)
		}},
	}
	var failed error
	for _, s := range sources {
		if !s.ask {
			continue
		}
		m, err := s.read()
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err == nil && (m.From > from || m.To < to):
			err = fmt.Errorf("they cover the log from %s to %s", m.From, m.To)
		}
		if err == nil {
			d.Log.Info("only pages that changed are read", "action", "backup-push", "source", s.name, "from", from, "to", to)
			return m, nil
		}
		failed = err
		d.Log.Log(ctx, level(err), "changed blocks cannot be learned from "+s.name, "action", "backup-push", "from", from, "to", to, "reason", err)
	}
	if o.Delta.ForceWAL {
		return nil, fmt.Errorf("cannot take a delta without reading every page, which WALG_FORCE_WAL_DELTA forbids: %w", failed)
	}
	d.Log.Info("every page is read to find those that changed", "action", "backup-push", "source", "scan", "from", from, "to", to)
	return nil, nil
}

// fromWAL reads what changed from the WAL. The segment in which the backup begins is ended, so that it can be read; often nothing is in
// it yet but its header.
func fromWAL(ctx context.Context, d Deps, dir string, start postgres.Start, from, to wal.LSN) (*changes.Map, error) {
	size := d.Server.Info().WALSegmentSize
	begins := wal.SegmentAt(start.Timeline, to, size).Start(size)
	if to-begins > wal.HeaderSize {
		if err := d.Server.SwitchWAL(ctx); err != nil {
			return nil, err
		}
		begins = to
	}
	m, err := walChanges(ctx, d.Catalog, dir, from, begins, start.Timeline, size, d.Log)
	if err == nil && m.To == begins {
		m.To = to
	}
	return m, err
}

// fromSummaries reads what changed from the summaries that PostgreSQL 17 and newer keep. A hole in them is an error.
func fromSummaries(ctx context.Context, d Deps, dir string, start postgres.Start, from, to wal.LSN) (*changes.Map, error) {
	available, err := d.Server.Summaries(ctx, to)
	if err != nil {
		return nil, err
	}
	history, err := readHistory(ctx, d.Catalog, dir, start.Timeline)
	if err != nil {
		return nil, err
	}
	needed, err := covering(available, stretches(history, start.Timeline, from, to))
	if err != nil {
		return nil, err
	}
	m := &changes.Map{From: from, To: to}
	for _, s := range needed {
		if err := d.Server.ReadSummary(ctx, s, func(e postgres.SummaryEntry) error {
			m.Summarized(changes.Relation{Tablespace: e.Tablespace, Database: e.Database, Number: e.Number}, e.Fork, e.Block, e.Limit)
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// covering chooses the summaries that together cover every stretch of the log without a hole.
func covering(available []postgres.Summary, log []stretch) ([]postgres.Summary, error) {
	var chosen []postgres.Summary
	for _, piece := range log {
		for at := piece.from; at < piece.to; {
			var next postgres.Summary
			for _, s := range available {
				if s.Timeline == piece.timeline && s.Start <= at && s.End > max(at, next.End) {
					next = s
				}
			}
			if next.End == 0 {
				return nil, fmt.Errorf("there is no summary of the WAL at %s on timeline %d", at, piece.timeline)
			}
			chosen, at = append(chosen, next), next.End
		}
	}
	return chosen, nil
}

// level tells how loud to be: most servers keep no summaries, and that is no fault.
func level(err error) slog.Level {
	if errors.Is(err, postgres.ErrNoSummaries) {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}
