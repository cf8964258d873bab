package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// pushFromStandby takes a backup of a standby while its primary goes on writing and switching segments: what a standby
// backup needs is archived by the primary, and only when that fills or closes the segment.
func (s *site) pushFromStandby(t *testing.T, standby, primary *testenv.Postgres) result {
	t.Helper()
	r := s.start(standby, "backup-push", standby.DataDir)
	for {
		select {
		case <-r.ended:
			return r.wait(t)
		case <-time.After(200 * time.Millisecond):
			primary.Exec(t, "INSERT INTO journal(note) VALUES ('during the backup')", "SELECT pg_switch_wal()")
		}
	}
}

func TestAStandbyIsBackedUpAndRestoredAlongEitherTimeline(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	// Only the test makes checkpoints, and with them restart points: however long a backup takes and the primary writes.
	primary := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving(
		"autovacuum=off", "max_wal_size=10GB", "checkpoint_timeout=1d")})
	primary.Exec(t, "CREATE TABLE journal(id bigserial PRIMARY KEY, note text)", "INSERT INTO journal(note) VALUES ('before')")
	standby := primary.Standby(t, testenv.PostgresOptions{})
	restartPoint := func(t *testing.T) {
		t.Helper()
		primary.Exec(t, "INSERT INTO journal(note) VALUES ('more')", "CHECKPOINT")
		standby.CatchUp(t, primary)
	}
	restored := func(t *testing.T, name string, settings ...string) *testenv.Postgres {
		t.Helper()
		return testenv.OpenPostgres(t, s.fetch(name), testenv.PostgresOptions{Settings: s.restoreSettings(settings...)})
	}

	restartPoint(t)
	s.pushFromStandby(t, standby, primary).expect(t, 0, "wal=archived")
	name := s.latest()
	t.Run("it recovers to what the primary wrote last", func(t *testing.T) {
		primary.Exec(t, "INSERT INTO journal(note) VALUES ('after the backup')")
		want := primary.Query(t, digest)
		s.archived(primary)
		r := restored(t, name)
		if got := r.Query(t, digest); got != want {
			t.Errorf("recovered %s, not %s", got, want)
		}
		checkTables(t, r)
		r.Stop("immediate")
	})

	t.Run("a second backup from the same restart point is refused", func(t *testing.T) {
		s.fails(standby, 1, []string{"holds a finished backup of that name", "hint: on a standby a backup begins at the last restart point"},
			"backup-push", standby.DataDir)
		s.leavesNothing(t, standby, 1)
	})

	t.Run("a promotion during the backup is refused", func(t *testing.T) {
		restartPoint(t)
		r := s.start(standby, "backup-push", standby.DataDir, slowly, "--walg-alive-check-interval=1s")
		r.untilCopying(t)
		standby.Promote(t)
		r.wait(t).expect(t, 1, "the standby was promoted during the backup")
		s.leavesNothing(t, standby, 1)
	})

	primary.Exec(t, "INSERT INTO journal(note) VALUES ('on timeline 1 only')")
	standby.Exec(t, "INSERT INTO journal(note) VALUES ('on timeline 2 only')")
	s.must(standby, "backup-push", standby.DataDir)
	second := s.latest()
	if !strings.HasPrefix(second, "base_00000002") {
		t.Fatalf("the backup of the promoted server is %s", second)
	}
	standby.Exec(t, "INSERT INTO journal(note) VALUES ('on timeline 2 at last')")
	first, other := primary.Query(t, digest), standby.Query(t, digest)
	s.archived(primary)
	s.archived(standby)
	for _, c := range []struct {
		name, backup, timeline, want string
	}{
		{"the old backup along to timeline 2", name, "latest", other},
		{"the old backup to the end of timeline 1", name, "current", first},
		{"the new backup on timeline 2", second, "latest", other},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := restored(t, c.backup, "recovery_target_timeline="+c.timeline)
			if got := r.Query(t, digest); got != c.want {
				t.Errorf("recovered %s, not %s", got, c.want)
			}
			r.Stop("immediate")
		})
	}
}

func TestASecondClusterUnderOnePrefixIsRefusedUntilItIsAccepted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving()})
	second := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving("archive_mode=off")})
	const identifier = "SELECT system_identifier FROM pg_control_system()"
	one, two := first.Query(t, identifier), second.Query(t, identifier)
	segment := func(p *testenv.Postgres) string {
		p.Exec(t, "CREATE TABLE IF NOT EXISTS t (i int)", "INSERT INTO t VALUES (1)")
		return filepath.Join(p.DataDir, "pg_wal", p.SwitchWAL(t))
	}
	objects := func() []string { return files(t, s.archive) }

	first.Exec(t, "SELECT 1")
	s.must(first, "backup-push", first.DataDir)
	s.archived(first)
	before := objects()
	for _, args := range [][]string{{"backup-push", second.DataDir}, {"wal-push", segment(second)}} {
		s.fails(second, 1, []string{
			"belongs to another cluster", one, two, "hint: give every cluster a prefix of its own", "walden archive accept PGDATA",
		}, args...)
	}
	if after := objects(); !slices.Equal(after, before) {
		t.Errorf("the refused cluster changed the archive from %v to %v", before, after)
	}
	if out := s.must(nil, "archive", "identity").stdout; !strings.Contains(out, "current: system identifier "+one) || strings.Contains(out, "previous") {
		t.Errorf("archive identity:\n%s", out)
	}

	// A cluster that takes over an archive must be ahead of the one before, as pg_upgrade sees to it: names that are taken
	// stay taken.
	const current = "SELECT pg_walfile_name(pg_current_wal_lsn())"
	for second.Query(t, current) <= first.Query(t, current) {
		segment(second)
	}
	s.must(nil, "archive", "accept", second.DataDir)
	out := s.must(nil, "archive", "identity").stdout
	if !strings.Contains(out, "current: system identifier "+two) || !strings.Contains(out, "previous: system identifier "+one) {
		t.Errorf("archive identity:\n%s", out)
	}
	second.Exec(t, "ALTER SYSTEM SET archive_mode = on")
	second.Restart()
	s.must(second, "backup-push", second.DataDir).expect(t, 0, "wal=archived")
	s.archived(second)
	s.leavesNothing(t, second, 2)
	s.fails(first, 1, []string{"belongs to another cluster", one, two}, "wal-push", segment(first))
	s.fails(first, 1, []string{"belongs to another cluster", one, two}, "backup-push", first.DataDir)
}
