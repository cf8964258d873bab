package postgres

import (
	"context"
	"errors"
	"fmt"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// Position returns the timeline and the position up to which the server has written its log; of a standby, up to which it has
// received or replayed the primary's.
func (s *Server) Position(ctx context.Context) (wal.Timeline, wal.LSN, error) {
	// The control file's timeline is that of the last checkpoint, the file name's that of the log itself; a standby has only the former.
	const sql = `SELECT CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
			ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END,
		coalesce(CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
			ELSE pg_current_wal_lsn() END::text, '')`
	var timeline int32
	var text string
	err := s.query(ctx, []any{&timeline, &text}, sql)
	if err == nil && text == "" {
		err = errors.New("it has received no WAL yet")
	}
	if err != nil {
		return 0, 0, fmt.Errorf("cannot ask %s for its position in the log: %w", s, err)
	}
	lsn, err := wal.ParseLSN(text)
	return wal.Timeline(timeline), lsn, err
}
