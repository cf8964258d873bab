package postgres

import (
	"context"
	"errors"
	"fmt"
)

// ReplicationLag returns how many bytes of the log the slowest connected standby has still to replay; of a receiver that replays
// nothing, to make durable. It is 0 without standbys. The role needs pg_read_all_stats, as pg_monitor has it.
func (s *Server) ReplicationLag(ctx context.Context) (int64, error) {
	const sql = `
		SELECT coalesce(max(pg_catalog.pg_wal_lsn_diff(
				CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_receive_lsn() ELSE pg_catalog.pg_current_wal_lsn() END,
				coalesce(replay_lsn, flush_lsn, write_lsn, sent_lsn))), 0)::bigint,
			count(*) FILTER (WHERE state IS NULL)
		FROM pg_catalog.pg_stat_replication WHERE state IS NULL OR state IN ('streaming', 'catchup')`
	var lag, hidden int64
	err := s.query(ctx, []any{&lag, &hidden}, sql)
	if err == nil && hidden > 0 {
		err = errors.New("the role may not see them, for which it needs pg_monitor")
	}
	if err != nil {
		return 0, fmt.Errorf("cannot ask %s how far its standbys are: %w", s, err)
	}
	return max(lag, 0), nil
}
