package retention

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"gitlab.com/walden-pg/walden/internal/catalog"
)

// Deps are what removals work on.
type Deps struct {
	Catalog *catalog.Catalog
	Log     *slog.Logger
}

const (
	// batch is how many files are removed by one call: what one request of S3 takes.
	batch = 1000
	// maxFailures is after how many failures in a row the rest is not tried: the storage does not answer, or refuses everything.
	maxFailures = 3
)

// Apply removes what the plan says: backups from the newest to the oldest, each one's sentinel first, so that none is listed whose
// base or part is gone; then the WAL from the oldest on. It may be cut off anywhere: what is left can be restored, and the same request
// made again removes the rest. Errors name what could not be removed; while a backup could not be withdrawn, no WAL is removed.
func (p *Plan) Apply(ctx context.Context, d Deps) error {
	r := &removal{Deps: d}
	withdrawn := true
	for _, decision := range slices.Backward(p.Backups) {
		if decision.Goes {
			gone := r.backup(ctx, decision.Backup.Name)
			withdrawn = withdrawn && gone
		}
	}
	for _, u := range p.Unfinished {
		if u.Goes {
			r.backup(ctx, u.Unfinished.Name)
		}
	}
	if !withdrawn {
		return errors.Join(append(r.failed, errors.New("cannot remove WAL while backups that may need it are still there; it stays"))...)
	}
	r.files(ctx, "WAL", p.WAL)
	r.files(ctx, "fingerprints of WAL", p.Fingerprints)
	if p.Identity && len(r.failed) == 0 {
		r.note(d.Catalog.RemoveIdentity(ctx))
	}
	return errors.Join(r.failed...)
}

type removal struct {
	Deps
	failed []error
	inARow int
}

// note remembers a failure, and tells whether there was none.
func (r *removal) note(err error) bool {
	if err == nil {
		r.inARow = 0
		return true
	}
	r.inARow++
	r.failed = append(r.failed, err)
	return false
}

func (r *removal) givenUp(ctx context.Context) bool {
	return ctx.Err() != nil || r.inARow >= maxFailures
}

func (r *removal) backup(ctx context.Context, name string) (gone bool) {
	if r.givenUp(ctx) {
		return false
	}
	gone, err := r.Catalog.RemoveBackup(ctx, name)
	if r.note(err) {
		r.Log.Info("removed backup", "backup", name)
	}
	return gone
}

func (r *removal) files(ctx context.Context, what string, list []catalog.WALFile) {
	removed := 0
	for part := range slices.Chunk(list, batch) {
		if r.givenUp(ctx) {
			r.note(fmt.Errorf("cannot remove %d more objects of the %s, from %s on, after the failures before", len(list)-removed, what, part[0].Name))
			return
		}
		r.note(r.Catalog.WAL().Remove(ctx, part...))
		removed += len(part)
	}
	if removed > 0 {
		r.Log.Info("removed "+what, "objects", removed, "from", list[0].Name, "to", list[len(list)-1].Name)
	}
}
