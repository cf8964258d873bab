package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// copied is what the tests look at in what `copy --json` prints.
type copied struct {
	Backups []string `json:"backups"`
	Copied  int      `json:"copied_objects"`
	Kept    int      `json:"kept_objects"`
}

func (s *site) copies(args ...string) copied {
	s.t.Helper()
	var c copied
	r := s.must(nil, append([]string{"copy", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(r.stdout), &c); err != nil {
		s.t.Fatalf("%v: %s", err, r.stdout)
	}
	return c
}

// chainOfTwo makes an archive of a full backup and a delta with WAL behind them, and returns what the cluster held at its end.
func (s *site) chainOfTwo() (want string) {
	s.t.Helper()
	p := testenv.StartPostgres(s.t, testenv.PostgresOptions{WALSegmentSize: 1, Checksums: true, Settings: s.archiving()})
	p.Exec(s.t, "CREATE TABLE journal(id bigserial PRIMARY KEY, note text)")
	row := func() { p.Exec(s.t, "INSERT INTO journal(note) SELECT md5(random()::text) FROM generate_series(1, 500)") }
	for range 2 {
		row()
		s.must(p, "backup-push", p.DataDir)
		row()
		s.archived(p)
	}
	want = p.Query(s.t, digest)
	p.Stop("fast")
	return want
}

// recoversFromItsArchive restores the newest backup, starts a server on it, and lets it follow the log to its end.
func (s *site) recoversFromItsArchive(want string) {
	s.t.Helper()
	restored := testenv.OpenPostgres(s.t, s.fetch("LATEST"), testenv.PostgresOptions{Settings: s.restoreSettings()})
	if got := restored.Query(s.t, digest); got != want {
		s.t.Errorf("recovered to %s, want %s", got, want)
	}
	restored.Stop("immediate")
}

// However often a copy is killed, what is listed at its destination is whole, and the last run makes it complete.
func TestACopyOnS3RecoversToTheLastTransaction(t *testing.T) {
	t.Parallel()
	s := newSite(t, "WALG_DELTA_MAX_STEPS=8").quick()
	target := newS3Site(t).quick()
	want := s.chainOfTwo()
	names := s.names()
	args := []string{"--from", s.config, "--to", target.config, "--with-history"}
	chance := testenv.Rand(t)
	for range testenv.Pick(4, 60) {
		s.killed(chance, 1, append([]string{"copy"}, args...)...)
		for _, name := range target.names() {
			target.must(nil, "backup-verify", name)
		}
	}
	done := s.copies(args...)
	if len(done.Backups) != 2 || done.Backups[0] != names[0] || done.Backups[1] != names[1] {
		t.Errorf("copied were %v, the archive has %v", done.Backups, names)
	}
	if again := s.copies(args...); again.Copied != 0 || again.Kept != done.Copied+done.Kept {
		t.Errorf("the next run has copied %+v, before %+v", again, done)
	}
	target.recoversFromItsArchive(want)

	// A copy belongs to the cluster: another one cannot push into it.
	other := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: map[string]string{"archive_mode": "off"}})
	target.fails(other, 1, []string{"belongs to another cluster"}, "backup-push", other.DataDir)
	other.Stop("immediate")
}

func TestAnEncryptedArchiveIsCopiedWithoutItsKey(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]func(*testing.T) cipher{
		"libsodium": func(*testing.T) cipher { return sodiumCipher() }, "OpenPGP": pgpCipher,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := with(t)
			s := newSite(t, append(c.push, "WALG_DELTA_MAX_STEPS=0")...).quick()
			target := newSite(t, c.fetch...).quick()
			want := s.chainOfTwo()
			var keyless [2]string
			for i, dir := range []string{s.archive, target.archive} {
				keyless[i] = filepath.Join(s.dir, fmt.Sprintf("keyless%d.yaml", i))
				if err := os.WriteFile(keyless[i], fmt.Appendf(nil, "WALG_FILE_PREFIX: %s\n", dir), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if done := s.copies("--from", keyless[0], "--to", keyless[1], "-w"); len(done.Backups) != 2 {
				t.Errorf("%+v", done)
			}
			target.recoversFromItsArchive(want)
		})
	}
}
