package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// withoutTerminal starts a command as systemd and cron do.
func withoutTerminal(cmd *exec.Cmd) { attributes(cmd).Setsid = true }

func attributes(cmd *exec.Cmd) *syscall.SysProcAttr {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	return cmd.SysProcAttr
}

// onTerminal returns what starts a command on a terminal of its own, and what takes that terminal away.
func onTerminal(t *testing.T) (setup func(*exec.Cmd), hangUp func()) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := slave.Chmod(0o666); err != nil {
		t.Fatal(err)
	}
	return func(cmd *exec.Cmd) {
			cmd.Stdin = slave
			a := attributes(cmd)
			a.Setsid, a.Setctty, a.Ctty = true, true, 0
		}, func() {
			_ = slave.Close()
			_ = master.Close()
		}
}

// says waits until standard error has a line with all the texts.
func (r *process) says(t *testing.T, texts ...string) {
	t.Helper()
	r.until(t, fmt.Sprintf("it said %q", texts), func() bool {
		for line := range strings.Lines(r.stderr.String()) {
			found := 0
			for _, text := range texts {
				if strings.Contains(line, text) {
					found++
				}
			}
			if found == len(texts) {
				return true
			}
		}
		return false
	})
}

// succeeds waits for the end.
func (r *process) succeeds(t *testing.T) {
	t.Helper()
	if got := r.wait(t); got.code != 0 {
		t.Fatalf("exit code %d\n%s", got.code, got.stderr)
	}
}

func TestRateLimitsChangeWhileACommandRuns(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	base := "WALG_FILE_PREFIX=" + s.archive
	limited, unlimited := []string{base, "WALG_DISK_RATE_LIMIT=1MiB"}, []string{base}
	p := testenv.StartPostgres(t, testenv.PostgresOptions{Settings: s.archiving()})
	s.configure(limited...)

	push := s.startWith(p, withoutTerminal, "backup-push", p.DataDir)
	push.says(t, "backup begins")
	if err := os.WriteFile(s.config, []byte("WALG_DISK_RATE_LIMIT: [fast"), 0o644); err != nil {
		t.Fatal(err)
	}
	push.says(t, "level=WARN", "the rate limits stay as they are")
	s.configure(append(limited, "WALG_NETWORK_RATE_LIMIT=100MiB")...)
	push.signal(t, syscall.SIGHUP)
	push.says(t, "WALG_NETWORK_RATE_LIMIT", "old=0", "new=104857600")
	s.configure(unlimited...)
	push.says(t, "WALG_DISK_RATE_LIMIT", "old=1048576", "new=0")
	push.succeeds(t)
	testenv.Figure(t, "limits changed in a running command", "backup-push", 3)

	s.configure(limited...)
	fetch := s.startWith(nil, withoutTerminal, "backup-fetch", filepath.Join(testenv.Scratch(t), "restored"), "LATEST")
	fetch.says(t, "restore begins")
	s.configure(unlimited...)
	fetch.says(t, "WALG_DISK_RATE_LIMIT", "old=1048576", "new=0")
	fetch.succeeds(t)
	testenv.Figure(t, "limits changed in a running command", "backup-fetch", 1)
}

func TestALostTerminalEndsABackupUnlessNohupTakesPrecautions(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	base := "WALG_FILE_PREFIX=" + s.archive
	limited := []string{base, "WALG_DISK_RATE_LIMIT=1MiB"}
	p := testenv.StartPostgres(t, testenv.PostgresOptions{Settings: s.archiving()})

	s.configure(limited...)
	setup, hangUp := onTerminal(t)
	lost := s.startWith(p, func(cmd *exec.Cmd) {
		setup(cmd)
		cmd.Args = append([]string{"env", "--default-signal=HUP", cmd.Path}, cmd.Args[1:]...) // the tests themselves may run under nohup
		cmd.Path = "/usr/bin/env"
	}, "backup-push", p.DataDir)
	lost.says(t, "backup begins")
	hangUp()
	lost.wait(t).expect(t, 1, "canceled")
	if list := s.listings(); len(list) != 0 {
		t.Errorf("listed: %+v", list)
	}

	setup, hangUp = onTerminal(t)
	precautions := s.startWith(p, func(cmd *exec.Cmd) {
		setup(cmd)
		cmd.Args = append([]string{"sh", "-c", `trap "" HUP; exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
	}, "backup-push", p.DataDir)
	precautions.says(t, "backup begins")
	hangUp()
	s.configure(base)
	precautions.says(t, "WALG_DISK_RATE_LIMIT", "new=0")
	precautions.succeeds(t)
}

func TestABackupGivesWayToTheArchiverAndToStandbys(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	base := []string{"WALG_FILE_PREFIX=" + s.archive, "WALDEN_BACKUP_ARCHIVE_BACKLOG=3", "WALDEN_BACKUP_REPLICATION_LAG=1MiB"}
	s.configure(append(base, "WALG_DISK_RATE_LIMIT=1MiB")...)
	p := testenv.StartPostgres(t, testenv.PostgresOptions{Settings: s.archiving()})
	standby := p.Standby(t, testenv.PostgresOptions{})
	standby.Exec(t, "SELECT pg_wal_replay_pause()")
	p.Exec(t, "ALTER SYSTEM SET archive_command = 'false'")
	p.Reload(t)
	p.Exec(t, "CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
	for range 5 {
		p.SwitchWAL(t)
	}

	push := s.startWith(p, withoutTerminal, "backup-push", p.DataDir)
	push.says(t, "the backup reads more slowly", "segments wait to be archived, a standby is")
	standby.Exec(t, "SELECT pg_wal_replay_resume()")
	p.Exec(t, "ALTER SYSTEM RESET archive_command")
	p.Reload(t)
	p.SwitchWAL(t)
	push.says(t, "the backup reads as fast as it can again")
	s.configure(base...)
	push.succeeds(t)
	if strings.Contains(push.stderr.String(), "level=WARN") {
		t.Error(push.stderr.String())
	}
}

// What cannot be found out is no failure of the backup.
func TestABackupDoesWithoutTheRightToSeeStandbys(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.configure("WALG_FILE_PREFIX="+s.archive, "WALDEN_BACKUP_REPLICATION_LAG=1MiB", "WALG_DISK_RATE_LIMIT=8MiB") // so that there is time to ask
	p := testenv.StartPostgres(t, testenv.PostgresOptions{Settings: s.archiving()})
	p.Standby(t, testenv.PostgresOptions{})
	start, stop := "pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"
	if p.Major < 15 {
		start, stop = "pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"
	}
	p.Exec(t, "CREATE ROLE backup LOGIN", "GRANT pg_read_all_settings TO backup", "GRANT EXECUTE ON FUNCTION "+start+", "+stop+" TO backup")
	s.must(p, "backup-push", "--pguser=backup", p.DataDir).expect(t, 0, "cannot tell whether the server falls behind", "pg_monitor")
}
