package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestAServerOfEveryInstalledVersionStartsCrashesAndFeedsAStandby(t *testing.T) {
	t.Parallel()
	for _, major := range Majors(13, 0, 18) {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			p := StartPostgres(t, PostgresOptions{
				Major: major, WALSegmentSize: 1, Checksums: major == 0, TCP: major == 18,
				WALDir:   filepath.Join(Scratch(t), "wal"),
				Settings: map[string]string{"application_name": "it's"},
			})
			if got := p.Query(t, "SHOW server_version_num"); !strings.HasPrefix(got, strconv.Itoa(p.Major)) {
				t.Errorf("server_version_num = %s", got)
			}
			got := p.Query(t, "SELECT current_setting('wal_segment_size'), current_setting('data_checksums'), NULL, 'x'")
			want := "1MB|off||x"
			if major == 0 {
				want = "1MB|on||x"
			}
			if got != want {
				t.Errorf("settings = %q, want %q", got, want)
			}
			if target, err := os.Readlink(filepath.Join(p.DataDir, "pg_wal")); err != nil || target == "" {
				t.Errorf("pg_wal is no link: %v", err)
			}

			p.Exec(t, "CREATE TABLE t (i int)", "INSERT INTO t VALUES (1)")
			p.KillHard()
			if p.Running() {
				t.Error("the server runs after KillHard")
			}
			p.Start()
			if got := p.Query(t, "SELECT i FROM t"); got != "1" {
				t.Errorf("after the crash the table holds %q", got)
			}

			standby := p.Standby(t, PostgresOptions{})
			p.Exec(t, "INSERT INTO t VALUES (2)")
			standby.CatchUp(t, p)
			if got := standby.Query(t, "SELECT count(*), pg_is_in_recovery() FROM t"); got != "2|t" {
				t.Errorf("the standby holds %q", got)
			}
			p.Stop("fast")
			standby.Promote(t)
			standby.Exec(t, "INSERT INTO t VALUES (3)")
			if _, err := p.QueryErr("SELECT 1"); err == nil {
				t.Error("a stopped server answers")
			}
		})
	}
}

func TestTwoServersAreDifferentClusters(t *testing.T) {
	t.Parallel()
	const query = "SELECT system_identifier FROM pg_control_system()"
	if a, b := StartPostgres(t, PostgresOptions{}), StartPostgres(t, PostgresOptions{}); a.Query(t, query) == b.Query(t, query) {
		t.Error("both have the same system identifier")
	}
}

func TestARestoredDirectoryOpensAfterRecoveryAndABrokenOneShowsItsLog(t *testing.T) {
	t.Parallel()
	p := StartPostgres(t, PostgresOptions{})
	p.Exec(t, "CREATE TABLE t AS SELECT 1 AS i")
	p.Stop("fast")
	if err := os.WriteFile(filepath.Join(p.DataDir, "recovery.signal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	restored := OpenPostgres(t, p.DataDir, PostgresOptions{Settings: map[string]string{"restore_command": "exit 1"}})
	restored.Exec(t, "INSERT INTO t VALUES (2)")
	if got := restored.Query(t, "SELECT timeline_id > 0, pg_walfile_name(pg_current_wal_lsn()) LIKE '00000002%' "+
		"FROM pg_control_checkpoint()"); got != "t|t" {
		t.Errorf("the restored server is not on timeline 2: %s", got)
	}
	restored.Stop("immediate")

	if err := os.Remove(filepath.Join(p.DataDir, "global", "pg_control")); err != nil {
		t.Fatal(err)
	}
	err := AttachPostgres(t, p.DataDir, PostgresOptions{}).TryStart()
	if err == nil || !strings.Contains(err.Error(), "pg_control") {
		t.Errorf("start without a control file: %v", err)
	}
}

func TestAServerThatRecoveryStopsIsSeenToEnd(t *testing.T) {
	t.Parallel()
	p := StartPostgres(t, PostgresOptions{})
	p.Stop("fast")
	if err := os.WriteFile(filepath.Join(p.DataDir, "recovery.signal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	broken := AttachPostgres(t, p.DataDir, PostgresOptions{Settings: map[string]string{"restore_command": "exit 200"}})
	if err := broken.TryStart(); err == nil {
		broken.WaitExit(t, time.Minute)
	} else if !strings.Contains(err.Error(), "restore") {
		t.Errorf("the log does not tell why recovery stopped: %v", err)
	}
}

func TestCommandsRunAsAUserThatPostgreSQLAccepts(t *testing.T) {
	t.Parallel()
	out, err := AsPostgres(exec.Command("id", "-u")).Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(string(out)) == "0" {
		t.Error("the command ran as root")
	}
	p := StartPostgres(t, PostgresOptions{})
	if got := p.PSQL(t, "-Atc", "SELECT 1"); got != "1\n" {
		t.Errorf("psql printed %q", got)
	}
}
