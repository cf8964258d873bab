package backup

import (
	"context"
	"fmt"
	"math"
	"time"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// neededWAL is the WAL without which a backup cannot be recovered.
type neededWAL struct {
	first, last wal.Segment
	size        int64 // of a segment, in bytes
	standby     bool
}

const (
	// pollMin and pollMax bound the pauses between two looks into the archive.
	pollMin, pollMax = 200 * time.Millisecond, 2 * time.Second
	// elsewhereAfter is how long a segment that the server has archived may take to show up before we conclude that
	// the server archives to another place.
	elsewhereAfter = 5 * time.Second
	// remindEvery is the interval of log lines while waiting.
	remindEvery = 15 * time.Second
)

// awaitWAL waits until the archive holds the WAL of the backup. The deadline counts from the last progress. Where the
// server does not archive here at all it does not wait; overdue is set when it should have and the deadline passed.
func awaitWAL(ctx context.Context, d Deps, need neededWAL, limit time.Duration) (state catalog.WALState, overdue, err error) {
	first, last := need.first.Name(need.size), need.last.Name(need.size)
	if why := notArchiving(d, need); why != "" {
		warnMissing(d, why, first, last)
		return catalog.WALMissing, nil, nil
	}
	began := time.Now()
	progressed, reminded, archivedSince := began, began, time.Time{}
	fewest, lastArchived, ask := math.MaxInt, "", true
	for pause := pollMin; ; pause = min(2*pause, pollMax) {
		missing, err := missingWAL(ctx, d, need)
		if err != nil {
			return "", nil, err
		}
		if len(missing) == 0 {
			return catalog.WALArchived, nil, nil
		}
		now := time.Now()
		var server archiverState
		if ask {
			server, ask = archiver(ctx, d, need)
		}
		if len(missing) < fewest || server.LastArchivedWAL != lastArchived {
			fewest, lastArchived, progressed = len(missing), server.LastArchivedWAL, now
		}
		if server.has(last) {
			if archivedSince.IsZero() {
				archivedSince = now
			}
			if now.Sub(archivedSince) > elsewhereAfter {
				warnMissing(d, fmt.Sprintf("the server has archived %s, but not to %s", last, d.Catalog), first, last)
				return catalog.WALMissing, nil, nil
			}
		}
		if now.Sub(progressed) > limit {
			overdue := hint.With(fmt.Errorf("the WAL of the backup is not in the archive: still without %d segments (first %s) after waiting %s without progress%s",
				len(missing), missing[0].Name(need.size), limit, server.failure()),
				overdueHint(need))
			return catalog.WALMissing, overdue, nil
		}
		if now.Sub(reminded) > remindEvery {
			reminded = now
			d.Log.Info("waiting for the WAL of the backup", "action", "backup-push", "missing", len(missing),
				"next", missing[0].Name(need.size), "seconds", seconds(now.Sub(began)), "archiver", server.text())
		}
		select {
		case <-ctx.Done():
			return "", nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

func overdueHint(need neededWAL) string {
	if need.standby {
		return "the backup is kept and marked; on a quiet primary run `SELECT pg_switch_wal()` there, or set archive_timeout"
	}
	return "the backup is kept and marked as lacking its WAL; see archive_command in the server's log"
}

// missingWAL returns the needed segments that are not in the archive. While the last one is missing, which is archived
// last, it asks for that one only: a listing of a large archive is expensive.
func missingWAL(ctx context.Context, d Deps, need neededWAL) ([]wal.Segment, error) {
	there, err := d.Catalog.WAL().Has(ctx, need.last.Name(need.size))
	if err != nil {
		return nil, err
	}
	if !there {
		return []wal.Segment{need.last}, nil
	}
	if need.first == need.last {
		return nil, nil
	}
	return d.Catalog.WAL().Missing(ctx, need.first, need.last, need.size)
}

// notArchiving says why the server's WAL cannot be expected in any archive; "" if it can. A standby's own settings say
// nothing: its primary archives.
func notArchiving(d Deps, need neededWAL) string {
	info := d.Server.Info()
	switch {
	case need.standby:
		return ""
	case info.ArchiveMode == "off":
		return "the server does not archive (archive_mode is off)"
	case info.ArchiveCommand == "" && info.ArchiveLibrary == "":
		return "the server does not archive (archive_command is empty)"
	}
	return ""
}

func warnMissing(d Deps, why, first, last string) {
	d.Log.Warn("the backup is marked as lacking its WAL: "+why+"; a restore needs the segments from the first to the last named here, "+
		"and all later ones up to the moment to recover to", "first", first, "last", last)
}
