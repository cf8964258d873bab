package backup

import (
	"context"
	"fmt"
	"time"

	"gitlab.com/walden-pg/walden/internal/postgres"
)

// archiverState is what the server says of its archiver; the zero value when it says nothing.
type archiverState struct{ postgres.Archiver }

// archiver asks the server. On a standby its statistics say nothing of the primary's archiving, and a server that does
// not answer, whose session has ended then, must not fail a backup that is already copied; it is not asked again.
func archiver(ctx context.Context, d Deps, need neededWAL) (_ archiverState, again bool) {
	if need.standby {
		return archiverState{}, false
	}
	a, err := d.Server.Archiver(ctx)
	if err != nil {
		d.Log.Warn("cannot ask the server about its archiver", "error", err)
		return archiverState{}, false
	}
	return archiverState{a}, true
}

// has tells whether the server has archived the segment: it archives the segments of a timeline in their order.
func (a archiverState) has(segment string) bool {
	const name, timeline = 24, 8
	return len(a.LastArchivedWAL) >= name && a.LastArchivedWAL[:timeline] == segment[:timeline] && a.LastArchivedWAL[:name] >= segment
}

// failure describes archiving that fails at present, for the end of a message.
func (a archiverState) failure() string {
	if a.LastFailedWAL == "" || a.LastFailedTime.Before(a.LastArchivedTime) {
		return ""
	}
	return fmt.Sprintf("; the server last failed to archive %s at %s", a.LastFailedWAL, a.LastFailedTime.UTC().Format(time.RFC3339))
}

// text is one line for the log.
func (a archiverState) text() string {
	if a.LastArchivedWAL == "" {
		return "nothing archived yet" + a.failure()
	}
	return "last archived " + a.LastArchivedWAL + a.failure()
}
