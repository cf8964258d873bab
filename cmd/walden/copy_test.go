package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	row := func() {
		p.Exec(s.t, "INSERT INTO journal(note) SELECT md5(random()::text) FROM generate_series(1, 500)")
	}
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
		s.killed(chance, 1, func() {
			for _, name := range target.names() {
				target.must(nil, "backup-verify", name)
			}
		}, append([]string{"copy"}, args...)...)
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
			if done := s.copies("--from", s.keyless(s.archive), "--to", s.keyless(target.archive), "-w"); len(done.Backups) != 2 {
				t.Errorf("%+v", done)
			}
			target.recoversFromItsArchive(want)
		})
	}
}

// keyless is a configuration file that says where an archive is, and nothing else.
func (s *site) keyless(archive string) string {
	s.t.Helper()
	name := filepath.Join(testenv.Scratch(s.t), "keyless.yaml")
	if err := os.WriteFile(name, fmt.Appendf(nil, "WALG_FILE_PREFIX: %s\n", archive), 0o644); err != nil {
		s.t.Fatal(err)
	}
	return name
}

// What WAL-G and WAL-E have archived is copied as it is, encrypted or not, and listed in the copy.
func TestArchivesOfOtherToolsAreCopiedWithoutTheirKeys(t *testing.T) {
	t.Parallel()
	sites := map[string]func(*testing.T) *site{}
	for name, f := range readFixtures(t) {
		sites["WAL-G, "+name] = f.site
	}
	for name, f := range readWALEFixtures(t) {
		sites["WAL-E, "+name] = func(t *testing.T) *site { t.Helper(); return f.site(t) }
	}
	for name, site := range sites {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, target := site(t), newSite(t)
			args := []string{"--from", s.keyless(s.archive), "--to", s.keyless(target.archive)}
			onward := name != "WAL-E, gpg" // where nothing that can be read tells the size of segments
			if onward {
				args = append(args, "-w")
			} else {
				s.fails(nil, 1, []string{"cannot tell whether the WAL has a gap", "hint: "}, append([]string{"copy", "-w"}, args...)...)
			}
			done := s.copies(args...)
			if again := s.copies(args...); again.Copied != 0 || len(done.Backups) == 0 {
				t.Errorf("copied %+v, then %+v", done, again)
			}
			got, want := asStored(t, target.archive), asStored(t, s.archive)
			first := ""
			for _, name := range done.Backups {
				if segment := name[len("base_"):][:24]; first == "" || segment < first {
					first = segment
				}
			}
			for key, content := range want {
				segment, isWAL := strings.CutPrefix(key, "wal_005/")
				switch {
				case isWAL && (len(segment) > 24 && segment[:24] < first || !onward): // no backup needs it
				case isWAL, strings.HasPrefix(key, "basebackups_005/"):
					if got[key] != content {
						t.Errorf("%s is not in the copy as it is", key)
					}
				}
			}
			if names := target.names(); !slices.Equal(names, s.names()) {
				t.Errorf("the copy has %v", names)
			}
		})
	}
}

// asStored reads the objects of an archive of files.
func asStored(t *testing.T, dir string) map[string]string {
	t.Helper()
	objects := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			objects[name] = readAll(t, filepath.Join(dir, name))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return objects
}
