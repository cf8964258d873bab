package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/postgres"
	"gitlab.com/walden-pg/walden/internal/testenv"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// sessions counts the server processes that serve walden.
const sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walden'"

func enter(t *testing.T, o postgres.Options) *postgres.BackupMode {
	t.Helper()
	m, err := connect(t, o).EnterBackupMode(deadline(t), "nightly")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Leave)
	return m
}

func TestABackupStartsAndStopsWhereTheServerSays(t *testing.T) {
	t.Parallel()
	eachVersion(t, testenv.PostgresOptions{}, func(t *testing.T, p *testenv.Postgres) {
		p.Exec(t, "CREATE TABLE t (i int)")
		s := connect(t, options(p))
		m, err := s.EnterBackupMode(deadline(t), "nightly, 1st: 100%")
		if err != nil {
			t.Fatal(err)
		}
		defer m.Leave()
		start := m.Start()
		redo := p.Query(t, "SELECT redo_lsn FROM pg_control_checkpoint()")
		if start.LSN.String() != redo || start.Timeline != 1 || start.Standby {
			t.Errorf("start %+v, redo %s", start, redo)
		}
		p.Exec(t, "INSERT INTO t VALUES (1)")

		stop, err := m.Finish(deadline(t))
		if err != nil {
			t.Fatal(err)
		}
		m.Leave() // does nothing: the session still works
		if stop.LSN <= start.LSN || stop.Timeline != 1 || !stop.SwitchedWAL || stop.Time.Before(start.Time) {
			t.Errorf("start %+v, stop %+v", start, stop)
		}
		segment := wal.SegmentAt(1, start.LSN, s.Info().WALSegmentSize).Name(s.Info().WALSegmentSize)
		for _, line := range []string{
			"START WAL LOCATION: " + redo + " (file " + segment + ")\n", "LABEL: nightly, 1st: 100%\n", "START TIMELINE: 1\n",
		} {
			if !strings.Contains(string(stop.Label), line) {
				t.Errorf("the label lacks %q: %s", line, stop.Label)
			}
		}
		if len(stop.TablespaceMap) != 0 {
			t.Errorf("tablespace map %q", stop.TablespaceMap)
		}
		if current, err := wal.ParseLSN(p.Query(t, "SELECT pg_current_wal_insert_lsn()")); err != nil || current < stop.LSN {
			t.Errorf("the server is at %s, the backup ends at %s", current, stop.LSN)
		}
		if _, err := m.Finish(deadline(t)); err == nil {
			t.Error("a backup finishes twice")
		}
		if _, err := s.Archiver(deadline(t)); err != nil {
			t.Errorf("after Finish and Leave: %v", err)
		}
		if m.Err() != nil {
			t.Errorf("a finished backup is lost: %v", m.Err())
		}

		again, err := s.EnterBackupMode(deadline(t), "again")
		if err != nil {
			t.Fatal(err)
		}
		defer again.Leave()
		if _, err := again.Finish(deadline(t)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestTablespacesAreInTheMapByteForByte(t *testing.T) {
	t.Parallel()
	eachVersion(t, testenv.PostgresOptions{InitArgs: []string{"--encoding=LATIN1"}}, func(t *testing.T, p *testenv.Postgres) {
		// A name in the database's encoding, which is not UTF-8.
		dir := filepath.Join(testenv.Scratch(t), "gr\xfcn")
		if err := os.Mkdir(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		owner, err := os.Stat(p.DataDir)
		if err != nil {
			t.Fatal(err)
		}
		chownLike(t, dir, owner)
		conn := p.Conn(t)
		execute := func(sql string) {
			t.Helper()
			if _, err := conn.Exec(deadline(t), sql); err != nil {
				t.Fatal(err)
			}
		}
		execute("SET client_encoding = LATIN1")
		execute("CREATE TABLESPACE away LOCATION '" + dir + "'")
		oid := p.Query(t, "SELECT oid FROM pg_tablespace WHERE spcname = 'away'")
		want := oid + " " + dir + "\n"
		if p.Major >= 15 {
			execute("SET allow_in_place_tablespaces = on")
			execute("CREATE TABLESPACE inplace LOCATION ''")
		}
		stop, err := enter(t, options(p)).Finish(deadline(t))
		if err != nil {
			t.Fatal(err)
		}
		if string(stop.TablespaceMap) != want {
			t.Errorf("map %q, want %q", stop.TablespaceMap, want)
		}
	})
}

func TestOneBackupAtATime(t *testing.T) {
	t.Parallel()
	eachInterface(t, testenv.PostgresOptions{}, func(t *testing.T, p *testenv.Postgres) {
		p.Exec(t, "CREATE DATABASE other")
		o := options(p)
		o.AppName = "first"
		first := enter(t, o)
		elsewhere := options(p)
		elsewhere.Database = "other"
		for name, o := range map[string]postgres.Options{"the same database": options(p), "another database": elsewhere} {
			_, err := connect(t, o).EnterBackupMode(deadline(t), "second")
			if !errors.Is(err, postgres.ErrBackupRunning) || !strings.Contains(err.Error(), `application_name "first"`) ||
				!strings.Contains(hint(err), "pg_terminate_backend") {
				t.Errorf("through %s: %v, hint %q", name, err, hint(err))
			}
		}
		if _, err := first.Finish(deadline(t)); err != nil {
			t.Fatalf("the refused ones disturbed the first: %v", err)
		}
		if _, err := connect(t, elsewhere).EnterBackupMode(deadline(t), "second"); !errors.Is(err, postgres.ErrBackupRunning) {
			t.Errorf("the lock ends with Finish: %v", err)
		}
	})
}

func TestASecondBackupInTheSameSessionIsRefusedAndHarmless(t *testing.T) {
	t.Parallel()
	s := connect(t, options(testenv.StartPostgres(t, testenv.PostgresOptions{})))
	m, err := s.EnterBackupMode(deadline(t), "first")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Leave()
	if _, err := s.EnterBackupMode(deadline(t), "second"); !errors.Is(err, postgres.ErrBackupRunning) {
		t.Errorf("error %v", err)
	}
	if _, err := m.Finish(deadline(t)); err != nil {
		t.Fatal(err)
	}
}

func TestLeaveEndsBackupModeBeforeItReturns(t *testing.T) {
	t.Parallel()
	eachInterface(t, testenv.PostgresOptions{}, func(t *testing.T, p *testenv.Postgres) {
		o := options(p)
		o.AliveInterval = time.Millisecond // so that a ping is under way
		ctx, cancel := context.WithCancel(t.Context())
		s, err := postgres.Connect(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.EnterBackupMode(ctx, "given up")
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		m.Leave()
		if got := p.Query(t, sessions); got != "0" {
			t.Errorf("%s sessions are left", got)
		}
		m.Leave()
		s.Close()
		if _, err := m.Finish(deadline(t)); err == nil {
			t.Error("a backup finishes after Leave")
		}
		if _, err := s.Archiver(deadline(t)); err == nil || !strings.Contains(err.Error(), "has ended") {
			t.Errorf("the session lives after Leave: %v", err)
		}
		if _, err := s.EnterBackupMode(deadline(t), "x"); err == nil || !strings.Contains(err.Error(), "has ended") {
			t.Errorf("the session takes a backup after Leave: %v", err)
		}
		if _, err := enter(t, options(p)).Finish(deadline(t)); err != nil {
			t.Fatalf("the next backup: %v", err)
		}
	})
}

func TestACancelledStartLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	eachInterface(t, testenv.PostgresOptions{}, func(t *testing.T, p *testenv.Postgres) {
		// A held checkpoint lock would be needed to stop the start function at a known place; a deadline that ends
		// anywhere in it, at many places, is as good.
		for _, after := range []time.Duration{0, time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond} {
			s := connect(t, options(p))
			ctx, cancel := context.WithTimeout(t.Context(), after)
			m, err := s.EnterBackupMode(ctx, "cancelled")
			cancel()
			if err == nil {
				m.Leave()
			} else if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("after %s: %v", after, err)
			}
			if got := p.Query(t, sessions); err != nil && after > 0 && got != "0" {
				t.Errorf("after %s %s sessions are left", after, got)
			}
			s.Close()
		}
		if _, err := enter(t, options(p)).Finish(deadline(t)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAKilledSessionIsNoticed(t *testing.T) {
	t.Parallel()
	eachInterface(t, testenv.PostgresOptions{}, func(t *testing.T, p *testenv.Postgres) {
		o := options(p)
		o.AliveInterval = 20 * time.Millisecond
		m := enter(t, o)
		select {
		case <-m.Lost():
			t.Fatalf("lost without cause: %v", m.Err())
		default:
		}
		p.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'walden'")
		select {
		case <-m.Lost():
		case <-deadline(t).Done():
			t.Fatal("nobody noticed")
		}
		if m.Err() == nil || !strings.Contains(m.Err().Error(), "the backup is lost") {
			t.Errorf("cause %v", m.Err())
		}
		if _, err := m.Finish(deadline(t)); err == nil || !errors.Is(err, m.Err()) {
			t.Errorf("Finish: %v", err)
		}
		m.Leave()
	})
}

func TestAServerThatCrashesEndsTheBackup(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{})
	m := enter(t, options(p))
	p.KillHard()
	begin := time.Now()
	if _, err := m.Finish(deadline(t)); err == nil {
		t.Error("the backup finishes without its server")
	}
	m.Leave()
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("it took %s to leave", took)
	}
}

func TestLeaveDoesNotWaitForAServerThatHangs(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{})
	s := connect(t, options(p))
	m, err := s.EnterBackupMode(deadline(t), "hanging")
	if err != nil {
		t.Fatal(err)
	}
	// A consumer that is stuck in the middle of another use of the session.
	stuck, release := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() { done <- postgres.Occupy(s, stuck, release) }()
	<-stuck
	begin := time.Now()
	m.Leave()
	took := time.Since(begin)
	close(release)
	<-done
	if took > 15*time.Second {
		t.Errorf("it took %s", took)
	}
	p.WaitFor(t, sessions, "0", time.Minute)
}

func TestAStandbyGivesABackup(t *testing.T) {
	t.Parallel()
	eachVersion(t, testenv.PostgresOptions{}, func(t *testing.T, p *testenv.Postgres) {
		standby := p.Standby(t, testenv.PostgresOptions{})
		p.Exec(t, "CREATE TABLE t AS SELECT 1 AS i", "CHECKPOINT")
		standby.CatchUp(t, p)
		m := enter(t, options(standby))
		if start := m.Start(); !start.Standby || start.Timeline != 1 || start.LSN == 0 {
			t.Errorf("start %+v", start)
		}
		stop, err := m.Finish(deadline(t))
		if err != nil {
			t.Fatal(err)
		}
		if stop.SwitchedWAL || stop.Timeline != 1 || stop.LSN < m.Start().LSN ||
			!strings.Contains(string(stop.Label), "BACKUP FROM: standby\n") {
			t.Errorf("stop %+v, label %s", stop, stop.Label)
		}
	})
}

func TestAPromotionEndsAStandbysBackup(t *testing.T) {
	t.Parallel()
	eachVersion(t, testenv.PostgresOptions{}, func(t *testing.T, p *testenv.Postgres) {
		for _, c := range []struct {
			name     string
			interval time.Duration
		}{{"seen by Finish", time.Hour}, {"seen by the watch", 20 * time.Millisecond}} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				standby := p.Standby(t, testenv.PostgresOptions{})
				o := options(standby)
				o.AliveInterval = c.interval
				m := enter(t, o)
				standby.Promote(t)
				if c.interval < time.Minute {
					select {
					case <-m.Lost():
					case <-deadline(t).Done():
						t.Fatal("the promotion was not noticed")
					}
				}
				if _, err := m.Finish(deadline(t)); !errors.Is(err, postgres.ErrPromoted) {
					t.Errorf("Finish: %v", err)
				}
				m.Leave()
				if got := standby.Query(t, sessions); got != "0" {
					t.Errorf("%s sessions are left", got)
				}
			})
		}
	})
}

func TestABackupThatFollowsATimelineSwitchIsRefused(t *testing.T) {
	t.Parallel()
	eachInterface(t, testenv.PostgresOptions{}, func(t *testing.T, p *testenv.Postgres) {
		middle := p.Standby(t, testenv.PostgresOptions{})
		last := middle.Standby(t, testenv.PostgresOptions{})
		m := enter(t, options(last))
		middle.Promote(t)
		middle.Exec(t, "CREATE TABLE t AS SELECT 1 AS i", "CHECKPOINT")
		last.CatchUp(t, middle)
		last.Exec(t, "CHECKPOINT") // moves the standby's end of recovery to the new timeline
		_, err := m.Finish(deadline(t))
		if err == nil || !strings.Contains(err.Error(), "from timeline 1 to 2") {
			t.Errorf("Finish: %v", err)
		}
		m.Leave()
		again := enter(t, options(last))
		if again.Start().Timeline != 2 {
			t.Errorf("the next backup starts on timeline %d", again.Start().Timeline)
		}
		if stop, err := again.Finish(deadline(t)); err != nil || stop.Timeline != 2 {
			t.Errorf("the next backup: %+v, %v", stop, err)
		}
	})
}

func TestAStandbyRefusesWhereFullPagesAreMissing(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{})
	standby := p.Standby(t, testenv.PostgresOptions{})
	p.Exec(t, "ALTER SYSTEM SET full_page_writes = off")
	p.Restart() // a reload reaches the checkpointer, which decides, at a moment that nobody sees
	p.Exec(t, "CHECKPOINT")
	standby.CatchUp(t, p)
	_, err := connect(t, options(standby)).EnterBackupMode(deadline(t), "torn")
	if err == nil || !strings.Contains(err.Error(), "full_page_writes") || !strings.Contains(hint(err), "full_page_writes") {
		t.Errorf("error %v, hint %q", err, hint(err))
	}
}

func TestLabelsThatWouldBreakTheFileAreRefused(t *testing.T) {
	t.Parallel()
	s := connect(t, options(testenv.StartPostgres(t, testenv.PostgresOptions{})))
	for _, label := range []string{"a\nSTART TIMELINE: 7", "a\x00b", "a\r", strings.Repeat("x", 1001)} {
		if _, err := s.EnterBackupMode(deadline(t), label); err == nil {
			t.Errorf("label %.20q is taken", label)
		}
	}
	m, err := s.EnterBackupMode(deadline(t), strings.Repeat("x", 1000))
	if err != nil {
		t.Fatal(err)
	}
	m.Leave()
}

func TestVersionsThatNobodyTriedAreRefused(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{})
	for _, c := range []struct {
		major   int
		beta    bool
		refused bool
		hint    string
	}{
		{12, false, true, "upgrade"}, {12, true, true, "upgrade"}, {13, false, false, ""}, {18, false, false, ""},
		{19, false, true, "WALDEN_ALLOW_UNKNOWN_POSTGRES"}, {19, true, false, ""},
	} {
		t.Run(fmt.Sprintf("%d %t", c.major, c.beta), func(t *testing.T) {
			o := options(p)
			o.AllowBeta = c.beta
			err := postgres.CheckVersion(connect(t, o), c.major)
			if (err != nil) != c.refused || !strings.Contains(hint(err), c.hint) {
				t.Errorf("error %v, hint %q", err, hint(err))
			}
		})
	}
}

func chownLike(t *testing.T, path string, like os.FileInfo) {
	t.Helper()
	stat, ok := like.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("no owner")
	}
	if err := os.Chown(path, int(stat.Uid), int(stat.Gid)); err != nil {
		t.Fatal(err)
	}
}
