package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// repair is what the tests look at in what `archive repair --json` prints.
type repair struct {
	DryRun  bool `json:"dry_run"`
	Missing []struct {
		First  string `json:"first"`
		Last   string `json:"last"`
		Count  int    `json:"count"`
		State  string `json:"state"`
		Reason string `json:"reason"`
	} `json:"missing"`
	Gaps []struct {
		First        string   `json:"first"`
		Last         string   `json:"last"`
		Stopped      []string `json:"backups_that_end_there"`
		Healed       string   `json:"goes_on_with_backup"`
		BackupNeeded bool     `json:"new_backup_needed"`
	} `json:"gaps"`
}

// repair runs archive repair, which has to end with the code given.
func (s *site) repair(code int, args ...string) repair {
	s.t.Helper()
	var got repair
	r := s.walden(nil, append([]string{"archive", "repair", "--json"}, args...)...)
	r.expect(s.t, code)
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
		s.t.Fatalf("%v: %s", err, r.stdout)
	}
	return got
}

// lose takes files out of the archive.
func (s *site) lose(names ...string) {
	s.t.Helper()
	for _, name := range names {
		if err := os.Remove(s.object(name + ".lz4")); err != nil {
			s.t.Fatal(err)
		}
	}
}

// What the archive has lost is put back from pg_wal, as far as the server has it, and recovery goes through.
func TestARepairPutsBackWhatTheServerStillHas(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.primary(clusterKind{0, testenv.Pick(1, 16)}, "wal_keep_size=1GB")
	segments := func(n int) (names []string) {
		for range n {
			fill(t, p, "a")
			name := p.SwitchWAL(t)
			names = append(names, name)
		}
		s.archived(p)
		return names
	}
	s.must(p, "backup-push", p.DataDir)
	first := s.latest()
	names := segments(6)
	want := p.Query(t, digest)

	// One that is gone for good lies behind what can be put back.
	if got := s.repair(0, p.DataDir); len(got.Missing) > 0 || len(got.Gaps) > 0 {
		t.Fatalf("of a whole archive: %+v", got)
	}
	s.lose(names[1], names[2], names[4])
	before := tree(t, s.archive)
	dry := s.repair(5, p.DataDir)
	if !dry.DryRun || len(dry.Missing) != 2 || dry.Missing[0].First != names[1] || dry.Missing[0].Last != names[2] || dry.Missing[1].State != "found" || len(dry.Gaps) > 0 {
		t.Errorf("the plan is %+v", dry)
	}
	if now := tree(t, s.archive); !slices.Equal(now, before) {
		t.Errorf("a dry run changed the archive from %v to %v", before, now)
	}

	// Another cluster's WAL is refused, even under the names that are missing.
	other := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: testenv.Pick(1, 16)})
	s.fails(nil, 1, []string{"belongs to another cluster"}, "archive", "repair", other.DataDir, "--confirm")
	other.Stop("fast")
	if now := tree(t, s.archive); !slices.Equal(now, before) {
		t.Errorf("another cluster's WAL changed the archive from %v to %v", before, now)
	}

	// The server runs.
	done := s.repair(0, p.DataDir, "--confirm")
	if done.DryRun || len(done.Missing) != 2 || done.Missing[0].State != "archived" || done.Missing[0].Count != 2 || len(done.Gaps) > 0 {
		t.Errorf("the repair did %+v", done)
	}
	restored := testenv.OpenPostgres(t, s.fetch(first), testenv.PostgresOptions{Settings: s.restoreSettings()})
	if got := restored.Query(t, digest); got != want {
		t.Errorf("recovered to %s, want %s", got, want)
	}
	restored.Stop("immediate")

	// The server does not run, and its pg_wal lies elsewhere.
	p.Stop("fast")
	pgWAL := filepath.Join(filepath.Dir(p.DataDir), "wal")
	move(t, filepath.Join(p.DataDir, "pg_wal"), pgWAL)
	if err := os.Symlink(pgWAL, filepath.Join(p.DataDir, "pg_wal")); err != nil {
		t.Fatal(err)
	}
	s.lose(names[0])
	if got := s.repair(0, filepath.Join(p.DataDir, "pg_wal"), "--confirm"); len(got.Missing) != 1 || got.Missing[0].First != names[0] {
		t.Errorf("the repair did %+v", got)
	}

	// A copy of it, in which a file has got a later name.
	saved := filepath.Join(testenv.Scratch(t), "wal")
	copyTree(t, pgWAL, saved)
	move(t, filepath.Join(saved, names[0]), filepath.Join(saved, names[1]))
	if err := os.Remove(filepath.Join(saved, names[3])); err != nil {
		t.Fatal(err)
	}
	s.lose(names[1], names[3], names[4])
	lost := s.repair(5, saved, "--confirm")
	if len(lost.Missing) != 3 || lost.Missing[0].First != names[1] || lost.Missing[0].State != "lost" || !strings.Contains(lost.Missing[0].Reason, "with other WAL") ||
		lost.Missing[1].First != names[3] || lost.Missing[1].State != "lost" || lost.Missing[2].First != names[4] || lost.Missing[2].State != "archived" {
		t.Errorf("the repair did %+v", lost)
	}
	if len(lost.Gaps) != 2 || !slices.Equal(lost.Gaps[0].Stopped, []string{first}) || !lost.Gaps[0].BackupNeeded {
		t.Errorf("the gaps are %+v", lost.Gaps)
	}
	if _, err := os.Stat(s.object(names[1] + ".lz4")); !os.IsNotExist(err) {
		t.Errorf("a file with other WAL was archived: %v", err)
	}

	// A new backup heals it.
	p.Start()
	s.must(p, "backup-push", p.DataDir)
	if got := s.repair(5, saved); len(got.Gaps) != 2 || got.Gaps[1].BackupNeeded || got.Gaps[1].Healed != s.latest() {
		t.Errorf("with a new backup: %+v", got)
	}
	text := s.walden(nil, "archive", "repair", saved)
	text.expect(t, 5)
	for _, says := range []string{"lost      " + names[1], "timeline 1: recovery ends at ", "with " + first, "it goes on with " + s.latest()} {
		if !strings.Contains(text.stdout, says) {
			t.Errorf("it does not say %q:\n%s", says, text.stdout)
		}
	}
	p.Stop("fast")
	testenv.Figure(t, "files put back by archive repair", "segments", 5)
}

// After a failover everything of the new timeline is lost to the archive: its history, too.
func TestARepairFollowsAPromotion(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.primary(clusterKind{0, 1}, "wal_keep_size=1GB")
	s.must(p, "backup-push", p.DataDir)
	fill(t, p, "a")
	s.archived(p)
	standby := p.Standby(t, testenv.PostgresOptions{Settings: s.archiving("wal_keep_size=1GB", "autovacuum=off", "checkpoint_timeout=1h")})
	fill(t, p, "b")
	standby.CatchUp(t, p)
	p.Stop("immediate")
	standby.Promote(t)
	fill(t, standby, "c")
	s.archived(standby)
	fill(t, standby, "d")
	s.archived(standby)
	want := standby.Query(t, digest)
	standby.Stop("immediate")

	var gone []string
	entries, err := os.ReadDir(filepath.Join(s.archive, "wal_005"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".lz4")
		if strings.HasPrefix(name, "00000002") || strings.HasSuffix(name, ".partial") {
			gone = append(gone, name)
		}
	}
	if !slices.Contains(gone, "00000002.history") || len(gone) < 3 {
		t.Fatalf("of the new timeline there was %v", gone)
	}
	s.lose(gone...)
	s.repair(0, standby.DataDir, "--confirm")
	for _, name := range gone {
		if _, err := os.Stat(s.object(name + ".lz4")); err != nil {
			t.Errorf("%s was not put back: %v", name, err)
		}
	}
	restored := testenv.OpenPostgres(t, s.fetch("LATEST"), testenv.PostgresOptions{Settings: s.restoreSettings()})
	if got := restored.Query(t, digest); got != want {
		t.Errorf("recovered to %s, want %s", got, want)
	}
	restored.Stop("immediate")
	testenv.Figure(t, "files put back by archive repair", "after a promotion", len(gone))
}
