package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// proof is what backup-verify says of one backup.
type proof struct {
	Backup   string `json:"backup_name"`
	Proven   bool   `json:"proven"`
	Error    string `json:"error"`
	Before   string `json:"proven_before"`
	Files    int    `json:"files"`
	Hashed   bool   `json:"hashed"`
	Pages    int64  `json:"pages"`
	Segments int    `json:"segments"`
	Records  bool   `json:"records"`
	Recorded int    `json:"corrupt_when_taken"`
}

// verify runs backup-verify, which is to end with an exit code.
func (s *site) verify(t *testing.T, code int, args ...string) []proof {
	t.Helper()
	r := s.walden(nil, append([]string{"backup-verify", "--json"}, args...)...)
	r.expect(t, code)
	var list []proof
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
		t.Fatalf("%v\n%s\n%s", err, r.stdout, r.stderr)
	}
	return list
}

// No alarm is false: of other tools' backups, and of one that was taken under load.
func TestEveryGoodBackupIsProven(t *testing.T) {
	t.Parallel()
	judge := func(t *testing.T, s *site, backups int, hashed bool) {
		t.Helper()
		list := s.verify(t, 0, "all")
		if len(list) != backups {
			t.Fatalf("%d backups were verified, there are %d", len(list), backups)
		}
		for _, p := range list {
			if !p.Proven || p.Error != "" || p.Files < 300 || p.Segments < 1 || !p.Records || p.Hashed != hashed || p.Before != "" {
				t.Errorf("%+v", p)
			}
		}
		for _, p := range s.verify(t, 0, "all") {
			if p.Before == "" {
				t.Errorf("nobody remembers that %s was proven", p.Backup)
			}
		}
		testenv.Figure(t, "backups proven without restoring them", "good ones", len(list))
	}
	for name, f := range readFixtures(t) {
		t.Run(name, func(t *testing.T) { judge(t, f.site(t), len(f.backups), false) })
	}
	t.Run("under load", func(t *testing.T) {
		s := newSite(t)
		p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Checksums: true, Settings: s.archiving("full_page_writes=on")})
		stop := startLoad(t, p)
		for range 3 {
			s.must(p, "backup-push", p.DataDir)
		}
		stop.stop()
		judge(t, s, 3, true)
	})
}

// Whatever is wrong with a backup or its WAL is found, and only that backup is called unproven.
func TestABackupThatCannotBeRestoredIsNotProven(t *testing.T) {
	t.Parallel()
	s := newSite(t, "WALG_COMPRESSION_METHOD=none")
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Checksums: true, Settings: s.archiving()})
	s.must(p, "backup-push", p.DataDir)
	good := s.latest()
	p.Exec(t, "CREATE TABLE noise AS SELECT md5(random()::text) AS b FROM generate_series(1, 20000)")
	p.SwitchWAL(t)
	s.must(p, "backup-push", p.DataDir)
	victim := s.latest()
	s.archived(p)

	folder := "basebackups_005/" + victim + "/"
	segment := "wal_005/" + strings.TrimPrefix(victim, "base_")
	change := func(key string, how func(b []byte) []byte) func(t *testing.T) {
		return func(t *testing.T) {
			name := filepath.Join(s.archive, key)
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, how(slices.Clone(b)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(key string) func(t *testing.T) {
		return func(t *testing.T) {
			if err := os.Remove(filepath.Join(s.archive, key)); err != nil {
				t.Fatal(err)
			}
		}
	}
	flip := func(b []byte) []byte {
		b[len(b)/2] ^= 4
		return b
	}
	half := func(b []byte) []byte { return b[:len(b)/2] }
	part := folder + "tar_partitions/part_001.tar"
	other := files(t, filepath.Join(s.archive, "wal_005"))[0]
	for _, c := range []struct {
		name   string
		damage func(t *testing.T)
		keys   []string // what it touches
		says   string
	}{
		{"a flipped bit in a part", change(part, flip), []string{part}, "part_001.tar"},
		{"a part cut short", change(part, half), []string{part}, "part_001.tar"},
		{"a missing part", remove(part), []string{part}, "part_001.tar"},
		{"another backup's part", change(part, func([]byte) []byte {
			return []byte(readAll(t, filepath.Join(s.archive, "basebackups_005", good, "tar_partitions/part_001.tar")))
		}), []string{part}, "part_001.tar"},
		{"a missing control file", remove(folder + "tar_partitions/pg_control.tar"), []string{folder + "tar_partitions/pg_control.tar"}, "pg_control.tar"},
		{"another backup's label", change(folder+"tar_partitions/backup_label.tar", func([]byte) []byte {
			return []byte(readAll(t, filepath.Join(s.archive, "basebackups_005", good, "tar_partitions/backup_label.tar")))
		}), []string{folder + "tar_partitions/backup_label.tar"}, "backup_label.tar"},
		{"a changed manifest", change(folder+"walden_manifest.json", flip), []string{folder + "walden_manifest.json"}, "walden_manifest.json"},
		{"a missing segment of WAL", remove(segment), []string{segment}, filepath.Base(segment)},
		{"a flipped bit in the WAL", change(segment, func(b []byte) []byte {
			b[200] ^= 1 // within the first record of a segment that begins with one
			b[len(b)/4] ^= 1
			return b
		}), []string{segment}, filepath.Base(segment)},
		{"half a segment of WAL", change(segment, half), []string{segment}, filepath.Base(segment)},
		{"another segment under its name", change(segment, func([]byte) []byte {
			return []byte(readAll(t, filepath.Join(s.archive, "wal_005", other)))
		}), []string{segment}, filepath.Base(segment)},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, key := range c.keys {
				name := filepath.Join(s.archive, key)
				b := readAll(t, name)
				defer func() {
					if err := os.WriteFile(name, []byte(b), 0o644); err != nil {
						t.Error(err)
					}
				}()
			}
			c.damage(t)
			for _, p := range s.verify(t, 1, "all") {
				switch {
				case p.Backup == good && !p.Proven:
					t.Errorf("%s is called unproven: %s", good, p.Error)
				case p.Backup == victim && (p.Proven || !strings.Contains(p.Error, c.says)):
					t.Errorf("the error does not name %s: %+v", c.says, p)
				}
			}
			testenv.Figure(t, "backups proven without restoring them", "damaged ones found", 1)
		})
	}
	t.Run("repaired", func(t *testing.T) { s.verify(t, 0, "all") })
}

// A page that was corrupt in the cluster already is told, and does not make the backup less than what it is: a faithful copy.
func TestPagesThatWereCorruptInTheClusterAreTold(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Checksums: true, Settings: s.archiving()})
	p.Exec(t, "CREATE TABLE noise AS SELECT md5(random()::text) AS b FROM generate_series(1, 20000)", "CHECKPOINT")
	path := filepath.Join(p.DataDir, p.Query(t, "SELECT pg_relation_filepath('noise')"))
	p.Stop("fast")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range []int64{3, 20} {
		if _, err := f.WriteAt([]byte("not what the server wrote"), block*8192+5000); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	p.Start()
	s.walden(p, "backup-push", p.DataDir).expect(t, 3, "2 pages of the cluster are corrupt")
	list := s.verify(t, 0, "LATEST")
	if len(list) != 1 || list[0].Recorded != 2 || list[0].Pages < 1000 {
		t.Errorf("%+v", list)
	}
	text := s.must(nil, "backup-verify", "LATEST").stdout
	if !strings.HasPrefix(text, "backup_name") || !strings.Contains(text, fmt.Sprint(list[0].Pages)) {
		t.Errorf("%q", text)
	}
	s.fails(nil, 1, []string{"not a number of backups"}, "backup-verify", "all", "--sample", "-1")
}
