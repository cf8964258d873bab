package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// link is walden under another name, where the user postgres can run it: what an operator makes with `ln -s`.
type link struct {
	*site
	link  string   // to what operators have, for the commands that a server calls
	raced string   // the same under the race detector
	envs  []string // the environment, NAME=value
}

func (s *site) linkedAs(name string, environ ...string) link {
	s.t.Helper()
	dir := filepath.Join(s.dir, "bin")
	l := link{site: s, link: filepath.Join(dir, name), raced: filepath.Join(dir, "raced-"+name), envs: environ}
	for from, to := range map[string]string{l.link: s.plain, filepath.Join(dir, "raced", name): filepath.Join(binDir, "walden.test")} {
		if err := os.MkdirAll(filepath.Dir(from), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.Symlink(to, from); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := os.WriteFile(l.raced, []byte(racedScript(filepath.Join(dir, "raced", name))), 0o755); err != nil {
		s.t.Fatal(err)
	}
	return l
}

// run runs the link's program as the user postgres.
func (l link) run(p *testenv.Postgres, args ...string) result {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := l.command(ctx, p)
	cmd.Path, cmd.Args = l.raced, append([]string{l.raced}, args...)
	cmd.Env = append(cmd.Env, l.envs...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		l.t.Fatalf("%s %s: %v", filepath.Base(l.link), strings.Join(args, " "), err)
	}
	if strings.Contains(stderr.String(), "DATA RACE") || strings.Contains(stderr.String(), "panic:") {
		l.t.Fatalf("%s %s:\n%s", filepath.Base(l.link), strings.Join(args, " "), stderr.String())
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// ok is run for a command that has to succeed.
func (l link) ok(p *testenv.Postgres, args ...string) result {
	l.t.Helper()
	r := l.run(p, args...)
	if r.code != 0 {
		l.t.Fatalf("%s %s: exit code %d\n%s", filepath.Base(l.link), strings.Join(args, " "), r.code, r.stderr)
	}
	return r
}

// envdir makes what daemontools' program of that name works on, and a program that does the same, so that tests need no package.
func (l link) envdir() (program, dir string) {
	l.t.Helper()
	program, dir = filepath.Join(l.dir, "bin", "envdir"), filepath.Join(l.dir, "env")
	if err := os.Mkdir(dir, 0o755); err != nil {
		l.t.Fatal(err)
	}
	for _, entry := range l.envs {
		name, value, _ := strings.Cut(entry, "=")
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value+"\n"), 0o644); err != nil {
			l.t.Fatal(err)
		}
	}
	text := "#!/bin/sh\ndir=$1; shift\nfor f in \"$dir\"/*; do export \"${f##*/}=$(head -n 1 \"$f\")\"; done\nexec \"$@\"\n"
	if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
		l.t.Fatal(err)
	}
	return program, dir
}

// recover starts a server on a restored directory and compares its rows.
func (l link) recover(dir, restoreCommand, want string) {
	l.t.Helper()
	signal := filepath.Join(dir, "recovery.signal")
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		l.t.Fatal(err)
	}
	own(l.t, signal)
	p := testenv.OpenPostgres(l.t, dir, testenv.PostgresOptions{Settings: map[string]string{"restore_command": restoreCommand, "archive_mode": "off"}})
	p.WaitFor(l.t, "SELECT pg_is_in_recovery()", "f", commandLimit)
	if got := p.Query(l.t, digest); got != want {
		l.t.Errorf("the restored server has %s, the original had %s", got, want)
	}
}

func logOf(t *testing.T, p *testenv.Postgres) string {
	t.Helper()
	b, err := os.ReadFile(p.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func writeRows(t *testing.T, p *testenv.Postgres, from, to int) {
	t.Helper()
	p.Exec(t, "CREATE TABLE IF NOT EXISTS journal(id bigint PRIMARY KEY, note text)",
		fmt.Sprintf("INSERT INTO journal SELECT g, md5(g::text) FROM generate_series(%d, %d) AS g", from, to))
}

func TestALinkCalledWALEDoesWALEsWork(t *testing.T) {
	t.Parallel()
	s := newS3Site(t)
	l := s.linkedAs("wal-e",
		"WALE_S3_PREFIX=s3://"+s.bucket+"/some/db", "WALE_S3_ENDPOINT="+strings.Replace(s.s3.Endpoint, "http://", "http+path://", 1),
		"AWS_ACCESS_KEY_ID="+s.s3.AccessKey, "AWS_SECRET_ACCESS_KEY="+s.s3.SecretKey, "WALE_LOG_DESTINATION=stderr")
	envdir, env := l.envdir()
	call := envdir + " " + env + " " + l.link
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: map[string]string{
		"archive_mode": "on", "archive_command": call + " wal-push -p 4 %p", "wal_level": "replica",
	}})
	writeRows(t, p, 1, 1000)

	pushed := l.ok(p, "backup-push", "--cluster-read-rate-limit", "1000000000", "-p", "2", p.DataDir)
	pushed.expect(t, 0, `DETAIL: The subcommand is "backup-push".`, "MSG: Wrote backup with name base_")
	list := regexp.MustCompile(`^name\tlast_modified\t[a-z_\t]+\r\n(base_[0-9A-F]{24})\t\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\t(\d*)\t([0-9A-F]{24})\t(\d{8})\t([0-9A-F]{24}|)\t(\d{8}|)\r\n$`)
	plain := list.FindStringSubmatch(l.ok(nil, "backup-list").stdout)
	if plain == nil || plain[2] != "" || plain[1] != "base_"+plain[3] {
		t.Fatalf("backup-list prints %q", l.ok(nil, "backup-list").stdout)
	}
	for _, query := range []string{"LATEST", plain[1]} {
		detail := list.FindStringSubmatch(l.ok(nil, "backup-list", query, "--detail").stdout)
		if detail == nil || detail[1] != plain[1] || detail[2] == "" || detail[5] == "" || detail[5] < detail[3] {
			t.Errorf("backup-list %s --detail finds %q", query, detail)
		}
	}

	writeRows(t, p, 1001, 2000)
	s.archived(p)
	want := p.Query(t, digest)
	p.Stop("fast")
	monitored := regexp.MustCompile(`STRUCTURED: time=\S+-00 pid=\d+ action=push-wal key=s3://` + s.bucket + `/some/db/wal_005/[0-9A-F]{24}\.lz4 prefix=some/db/ ` +
		`rate=[0-9.e+]{2,} seg=[0-9A-F]{24} state=complete\n`)
	if log := logOf(t, p); !monitored.MatchString(log) {
		t.Errorf("the server's log has nothing to monitor:\n%.2000s", log)
	}

	dir := filepath.Join(testenv.Scratch(t), "restored")
	fetched := l.ok(nil, "backup-fetch", "--blind-restore", "--pool-size", "2", dir, "LATEST")
	fetched.expect(t, 0, "Backup extraction complete.", "restore_command = '"+filepath.Join(l.dir, "bin", "raced", "wal-e")+` wal-fetch "%f" "%p"'`)
	l.run(nil, "backup-fetch", dir, "LATEST").expect(t, 1, "ERROR    MSG: ", "is not empty")
	l.run(nil, "backup-fetch", dir+"2", "base_0000000100000000000000FF_00000040").expect(t, 1, "MSG: no backups found for fetching")
	absent := l.run(nil, "wal-fetch", "-p", "4", "0000000100000000000000EE", filepath.Join(t.TempDir(), "x"))
	absent.expect(t, 1, "MSG: could no longer locate object while performing wal restore")
	l.run(nil, "delete", "--confirm", "retain", "7").expect(t, 0, "MSG: deleting data in the store")
	l.run(nil, "wal-push").expect(t, 2)

	l.recover(dir, call+` wal-fetch -p 4 "%f" "%p"`, want)
}

func TestALinkCalledWALGDoesWALGsWork(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	l := s.linkedAs("wal-g", "WALG_FILE_PREFIX="+s.archive, "WALG_COMPRESSION_METHOD=zstd", "WALG_DELTA_MAX_STEPS=6", "WALG_PREVENT_WAL_OVERWRITE=true")
	envdir, env := l.envdir()
	call := envdir + " " + env + " " + l.link
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: map[string]string{
		"archive_mode": "on", "archive_command": call + " wal-push %p", "wal_level": "replica",
	}})
	writeRows(t, p, 1, 1000)

	pushed := l.ok(p, "backup-push", p.DataDir)
	said := regexp.MustCompile(`(?m)^INFO: \d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} Wrote backup with name (base_[0-9A-F]{24}) to storage default$`).FindStringSubmatch(pushed.stderr)
	if said == nil {
		t.Fatalf("backup-push says\n%s", pushed.stderr)
	}
	pushed.expect(t, 0, "taking a full backup: there is none yet to take a delta against")
	if out := l.ok(nil, "backup-list").stdout; !regexp.MustCompile(`^backup_name +modified +wal_file_name +storage_name\n` + said[1] + ` \S+ [0-9A-F]{24} default\n$`).MatchString(out) {
		t.Errorf("backup-list prints\n%s", out)
	}
	writeRows(t, p, 1001, 2000)
	s.archived(p)
	want := p.Query(t, digest)
	p.Stop("fast")

	dir := filepath.Join(testenv.Scratch(t), "restored")
	l.ok(nil, "backup-fetch", "--reverse-unpack", "--skip-redundant-tars", dir, said[1]).expect(t, 0, "Backup extraction complete.")
	l.run(nil, "wal-fetch", "0000000100000000000000EE", filepath.Join(t.TempDir(), "x")).expect(t, 74, "INFO: ")
	l.run(nil, "delete", "retain", "FULL", "7", "--confirm").expect(t, 0, "INFO: ", "No objects matched the deletion criteria.")
	l.recover(dir, call+` wal-fetch "%f" "%p"`, want)
}
