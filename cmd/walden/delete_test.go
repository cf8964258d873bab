package main

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// plan is what the tests look at in what `delete --json` prints.
type plan struct {
	DryRun  bool `json:"dry_run"`
	Backups []struct {
		Name   string `json:"backup_name"`
		Action string `json:"action"`
		Reason string `json:"reason"`
	} `json:"backups"`
	WAL struct {
		Delete []string `json:"delete"`
	} `json:"wal"`
	Before []any `json:"recovery_windows_before"`
	After  []struct {
		BackupName string `json:"backup_name"`
	} `json:"recovery_windows_after"`
}

func (s *site) delete(args ...string) plan {
	s.t.Helper()
	var p plan
	r := s.must(nil, append([]string{"delete", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(r.stdout), &p); err != nil {
		s.t.Fatalf("%v: %s", err, r.stdout)
	}
	return p
}

func (s *site) names() []string {
	s.t.Helper()
	var names []string
	for line := range strings.Lines(s.must(nil, "backup-list").stdout) {
		if name, _, _ := strings.Cut(line, " "); strings.HasPrefix(name, "base_") {
			names = append(names, name)
		}
	}
	return names
}

// What stays after a deletion can be restored and recovered to the last transaction, however often the deletion was killed.
func TestADeletionLeavesWhatStaysRestorable(t *testing.T) {
	t.Parallel()
	for name, install := range map[string]func(*testing.T, ...string) *site{"files": newSite, "S3": newS3Site} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := install(t)
			p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving()})
			p.Exec(t, "CREATE TABLE journal(id bigserial PRIMARY KEY, note text)")
			row := func() { p.Exec(t, "INSERT INTO journal(note) SELECT md5(random()::text) FROM generate_series(1, 20)") }
			for i := range 5 {
				row()
				s.must(p, "backup-push", p.DataDir)
				if i == 0 {
					s.must(nil, "backup-mark", "LATEST")
				}
				for range 3 {
					row()
					s.archived(p)
				}
			}
			want := p.Query(t, digest)
			s.looks(p)
			p.Stop("fast")
			names := s.names()

			dry := s.delete("retain", "2")
			if !dry.DryRun || len(dry.WAL.Delete) == 0 || len(s.names()) != 5 || len(dry.Before) == 0 {
				t.Fatalf("the dry run says %+v", dry)
			}
			for i, wanted := range []string{"keep", "delete", "delete", "keep", "keep"} {
				if dry.Backups[i].Name != names[i] || dry.Backups[i].Action != wanted {
					t.Errorf("backup %d: %+v, want to %s %s", i, dry.Backups[i], wanted, names[i])
				}
			}
			s.fails(nil, 1, []string{"is permanent", "hint: `walden backup-mark"}, "delete", "target", names[0], "--confirm")
			s.fails(nil, 1, []string{"is the newest backup of the cluster that can be restored"}, "delete", "target", "LATEST", "--confirm")
			s.fails(nil, 1, []string{"is permanent"}, "delete", "everything", "--confirm")

			s.killed(testenv.Rand(t), testenv.Pick(3, 25), s.listedIsWhole(), "delete", "retain", "2", "--confirm")
			done := s.must(nil, "delete", "retain", "2", "--confirm")
			again := s.delete("retain", "2")
			if len(again.WAL.Delete) > 0 || len(again.Backups) != 3 || again.After[len(again.After)-1].BackupName == "" {
				t.Errorf("after\n%s\nanother run would delete %+v", done.stderr, again)
			}
			for i, backup := range s.names() {
				settings := s.restoreSettings()
				if i == 0 { // what stays of the permanent one ends with it
					settings = s.restoreSettings("recovery_target=immediate", "recovery_target_action=promote")
				}
				restored := testenv.OpenPostgres(t, s.fetch(backup), testenv.PostgresOptions{Settings: settings})
				if got := restored.Query(t, digest); i > 0 && got != want {
					t.Errorf("%s is recovered to %s, want %s", backup, got, want)
				}
				restored.Stop("immediate")
			}

			s.must(nil, "delete", "everything", "FORCE", "--confirm")
			if left := s.names(); len(left) > 0 {
				t.Errorf("after everything was deleted there is %v", left)
			}
		})
	}
}

// looks checks what the commands say that only look at the archive.
func (s *site) looks(p *testenv.Postgres) {
	s.t.Helper()
	for _, c := range []struct {
		says string
		args []string
	}{
		{`"id":1,"parent_id":0,"switch_point_lsn":0`, []string{"wal-show", "--detailed-json"}},
		{`"missing_segments":[],"backups":[{"backup_name":"`, []string{"wal-show", "--detailed-json"}},
		{"| OK     |             5 |\n", []string{"wal-show"}},
		{`{"integrity":{"status":"OK","details":[{"timeline_id":1,`, []string{"wal-verify", "integrity", "timeline", "--json"}},
		{`"timeline":{"status":"OK","details":{"current_timeline_id":1,"highest_storage_timeline_id":1}}}`, []string{"wal-verify", "integrity", "timeline", "--json"}},
		{"[wal-verify] integrity check status: OK\n", []string{"wal-verify", "integrity"}},
		{"timeline 1: from ", []string{"archive", "window"}},
		{`"last_segment":"`, []string{"archive", "window", "--json"}},
		{"yes, as far as its documents tell\n", []string{"backup-show", "LATEST"}},
		{`"wal_missing":[],"restorable":true,"manifest":{"sha256":"`, []string{"backup-show", "LATEST", "--json"}},
	} {
		if out := s.must(p, c.args...).stdout; !strings.Contains(out, c.says) {
			s.t.Errorf("%v does not say %s:\n%s", c.args, c.says, out)
		}
	}
	r := s.walden(nil, "wal-verify", "timeline", "--lsn", "0/5000000", "--timeline", "7")
	if r.code != 5 || !strings.Contains(r.stdout, "timeline check status: FAILURE") {
		s.t.Errorf("another timeline: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// listedIsWhole notes the objects of all backups, and returns a check that every backup that is listed has all of its own still.
func (s *site) listedIsWhole() func() {
	s.t.Helper()
	if s.archive == "" {
		return func() {}
	}
	objects := func(name string) []string {
		s.t.Helper()
		return tree(s.t, filepath.Join(s.archive, "basebackups_005", name))
	}
	before := map[string][]string{}
	for _, name := range s.names() {
		before[name] = objects(name)
	}
	return func() {
		s.t.Helper()
		for _, name := range s.names() {
			if now := objects(name); !slices.Equal(now, before[name]) {
				s.t.Errorf("%s is listed, and of its objects\n%s\nthere are\n%s", name, strings.Join(before[name], "\n"), strings.Join(now, "\n"))
			}
		}
	}
}

// killed runs a command several times and ends it with SIGKILL after a time that chance takes. What is left is checked each time.
func (s *site) killed(chance *rand.Rand, times int, check func(), args ...string) {
	s.t.Helper()
	hits := 0
	for range times {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(chance.IntN(400))*time.Millisecond)
		cmd := s.command(ctx, nil, args...)
		cmd.Path, cmd.Args[0] = s.plain, s.plain
		cmd.Cancel = func() error { return cmd.Process.Kill() }
		if err := cmd.Run(); err != nil && ctx.Err() != nil {
			hits++
		}
		cancel()
		check()
	}
	testenv.Figure(s.t, "moments killed, "+args[0], s.withoutPaths(args), hits)
}

// withoutPaths writes a command line so that it is the same in each run.
func (s *site) withoutPaths(args []string) string {
	shown := slices.DeleteFunc(slices.Clone(args), func(arg string) bool { return strings.HasPrefix(arg, "/") })
	return strings.Join(shown, " ")
}
