package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// firstWithSummaries is the first major version of PostgreSQL that summarizes its WAL (summarize_wal).
const firstWithSummaries = 17

// ErrNoSummaries says that the server does not summarize its WAL.
var ErrNoSummaries = errors.New("the server does not summarize its WAL (summarize_wal)")

// Summary is one of the server's summaries of its WAL: the blocks that changed on a timeline from one position up to another.
type Summary struct {
	Timeline   wal.Timeline
	Start, End wal.LSN
}

// SummaryEntry is a block that changed, or the length to which a fork of a relation was cut. A relation with the number 0 stands for
// all of a database in a tablespace.
type SummaryEntry struct {
	Tablespace, Database, Number uint32
	Fork                         int16 // 0 is the main fork
	Block                        uint32
	Limit                        bool // Block is a length: what the relation held from there on is gone
}

const (
	summarizerPoll = 100 * time.Millisecond
	// summarizerStall is how long the summarizer may make no progress, as in PostgreSQL's WaitForWalSummarization.
	summarizerStall = time.Minute
	// summarizerLimit bounds the wait for it altogether.
	summarizerLimit = 15 * time.Minute
)

// Summaries waits until the WAL before a position is summarized, for as long as the summarizer gets on, and returns all summaries that
// the server has. Without a summarizer the error is ErrNoSummaries.
func (s *Server) Summaries(ctx context.Context, upTo wal.LSN) ([]Summary, error) {
	if s.info.Major < firstWithSummaries {
		return nil, ErrNoSummaries
	}
	if err := s.awaitSummaries(ctx, upTo); err != nil {
		return nil, err
	}
	var found []Summary
	err := s.use(ctx, s.options.answerTimeout(), func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, "SELECT tli::bigint, start_lsn::text, end_lsn::text FROM pg_catalog.pg_available_wal_summaries()")
		if err != nil {
			return serverError(err)
		}
		var timeline int64
		var start, end string
		_, err = pgx.ForEachRow(rows, []any{&timeline, &start, &end}, func() error {
			sum := Summary{Timeline: wal.Timeline(timeline)}
			var err error
			if sum.Start, err = wal.ParseLSN(start); err == nil {
				sum.End, err = wal.ParseLSN(end)
			}
			found = append(found, sum)
			return err
		})
		return serverError(err)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list the summaries of WAL: %w", err)
	}
	return found, nil
}

func (s *Server) awaitSummaries(ctx context.Context, upTo wal.LSN) error {
	ctx, cancel := context.WithTimeoutCause(ctx, summarizerLimit, fmt.Errorf("the server has not summarized its WAL up to %s within %s", upTo, summarizerLimit))
	defer cancel()
	var before string
	last := time.Now()
	for {
		var summarized, pending string
		var running bool
		err := s.query(ctx, []any{&summarized, &pending, &running}, `
			SELECT coalesce(summarized_lsn, '0/0')::text, coalesce(pending_lsn, '0/0')::text, summarizer_pid IS NOT NULL
			FROM pg_catalog.pg_get_wal_summarizer_state()`)
		if err != nil {
			return fmt.Errorf("cannot ask how far WAL is summarized: %w", err)
		}
		lsn, err := wal.ParseLSN(summarized)
		switch {
		case err != nil:
			return err
		case lsn >= upTo:
			return nil
		case !running:
			return ErrNoSummaries
		case before != summarized+pending:
			before, last = summarized+pending, time.Now()
		case time.Since(last) > summarizerStall:
			return fmt.Errorf("the server has summarized its WAL up to %s, which is before %s, and does not get on", lsn, upTo)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(summarizerPoll):
		}
	}
}

// ReadSummary gives every entry of a summary to visit, whose error ends it and is returned.
func (s *Server) ReadSummary(ctx context.Context, sum Summary, visit func(SummaryEntry) error) error {
	err := s.use(ctx, s.options.answerTimeout(), func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `
			SELECT reltablespace, reldatabase, relfilenode, relforknumber, relblocknumber, is_limit_block
			FROM pg_catalog.pg_wal_summary_contents($1::bigint, $2::text::pg_lsn, $3::text::pg_lsn)`,
			int64(sum.Timeline), sum.Start.String(), sum.End.String())
		if err != nil {
			return serverError(err)
		}
		var e SummaryEntry
		var block int64
		_, err = pgx.ForEachRow(rows, []any{&e.Tablespace, &e.Database, &e.Number, &e.Fork, &block, &e.Limit}, func() error {
			if block < 0 || block > 1<<32-1 {
				return fmt.Errorf("it has a block number %d", block)
			}
			e.Block = uint32(block)
			return visit(e)
		})
		return serverError(err)
	})
	if err != nil {
		return fmt.Errorf("cannot read the summary of WAL from %s to %s on timeline %d: %w", sum.Start, sum.End, sum.Timeline, err)
	}
	return nil
}

// SwitchWAL makes the server begin a new segment of WAL. A standby cannot.
func (s *Server) SwitchWAL(ctx context.Context) error {
	var at string
	if err := s.query(ctx, []any{&at}, "SELECT pg_catalog.pg_switch_wal()::text"); err != nil {
		return fmt.Errorf("cannot switch to a new segment of WAL: %w", err)
	}
	return nil
}
