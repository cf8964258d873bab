package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// layout is a kind of cluster that the main job must carry through.
type layout struct {
	name     string
	major    int // 0: the default one
	segment  int // MiB
	checksum bool
	walDir   bool // pg_wal is a symbolic link
	s3       bool
	short    bool // the main way only
	settings []string
}

var layouts = []layout{
	{name: "small segments, checksums, linked pg_wal, files", segment: 1, checksum: true, walDir: true},
	{name: "large segments, no checksums, zstd, S3", segment: 64, s3: true, settings: []string{"WALG_COMPRESSION_METHOD=zstd"}},
	{name: "files", major: 13, short: true},
	{name: "checksums, S3", major: 18, checksum: true, s3: true, short: true},
}

func TestBackupUnderLoadIsRestoredToTheLastCommitAndToAPointInTime(t *testing.T) {
	t.Parallel()
	for _, l := range layouts {
		for _, major := range testenv.Majors(l.major) {
			l.major = major
			t.Run(fmt.Sprintf("%s, %d", l.name, major), func(t *testing.T) {
				t.Parallel()
				mainJob(t, l)
			})
		}
	}
}

// mainJob archives, backs up under load, loses the cluster, restores it, and compares.
func mainJob(t *testing.T, l layout) {
	s := newSite(t, l.settings...)
	if l.s3 {
		s = newS3Site(t, l.settings...)
	}
	s.thorough()
	o := testenv.PostgresOptions{
		Major: l.major, WALSegmentSize: l.segment, Checksums: l.checksum,
		Settings: s.archiving("log_checkpoints=off"),
	}
	if l.walDir {
		o.WALDir = filepath.Join(testenv.Scratch(t), "wal")
	}
	p := testenv.StartPostgres(t, o)
	spaces := makeTablespaces(t, p)
	stop := startLoad(t, p)
	p.Exec(t, "CREATE UNLOGGED TABLE scratchpad AS SELECT generate_series(1, 5000) AS g",
		"CREATE TABLE big AS SELECT g AS id, repeat(md5(g::text), 20) AS note FROM generate_series(1, 20000) AS g")

	s.must(p, "backup-push", p.DataDir, "--add-user-data", `{"night":1}`)
	if stop.stop() < 2 {
		t.Error("the load did not run during the backup")
	}
	atBackup := p.Query(t, digest)
	p.Exec(t, "SELECT pg_create_restore_point('before the accident')")
	p.Exec(t, "INSERT INTO journal(note) SELECT 'after the restore point ' || g FROM generate_series(1, 100) AS g",
		"DELETE FROM big WHERE id % 2 = 0")
	want, wantBig := p.Query(t, digest), p.Query(t, "SELECT count(*), md5(string_agg(note, '' ORDER BY id)) FROM big")
	wantSpaces := p.Query(t, spaceDigest)
	s.archived(p)
	p.KillHard()
	for _, dir := range append(spaces, p.DataDir) {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}

	var inPlace []string
	if p.Major >= 15 {
		inPlace = []string{"allow_in_place_tablespaces=on"} // PostgreSQL asks for it at the end of recovery, too
	}
	dir := s.fetch("LATEST")
	r := testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Major: l.major, Settings: s.restoreSettings(inPlace...)})
	for query, want := range map[string]string{
		digest: want, spaceDigest: wantSpaces, "SELECT count(*) FROM scratchpad": "0",
		"SELECT count(*), md5(string_agg(note, '' ORDER BY id)) FROM big": wantBig,
	} {
		if got := r.Query(t, query); got != want {
			t.Errorf("%s\nafter recovery: %s\nbefore:         %s", query, got, want)
		}
	}
	checkCluster(t, r, l)
	if l.short {
		return
	}
	r.Stop("immediate")

	// A second restore, by user data, to the restore point, with the tablespaces moved.
	moved := testenv.Scratch(t)
	args := []string{"--target-user-data", `{"night": 1}`}
	for i, space := range spaces {
		args = append(args, "--tablespace-mapping", space+"="+filepath.Join(moved, fmt.Sprint("space", i)))
	}
	dir = filepath.Join(testenv.Scratch(t), "pitr")
	s.must(nil, append([]string{"backup-fetch", dir}, args...)...)
	touch(t, filepath.Join(dir, "recovery.signal"))
	r = testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Major: l.major, Settings: s.restoreSettings(append(inPlace,
		"recovery_target_name=before the accident", "recovery_target_action=promote")...)})
	if got := r.Query(t, digest); got != atBackup {
		t.Errorf("at the restore point: %s, was %s", got, atBackup)
	}
	if got := r.Query(t, "SELECT string_agg(pg_tablespace_location(oid), ',') FROM pg_tablespace WHERE oid > 16383"); strings.Contains(got, spaces[0]) {
		t.Errorf("tablespaces were not moved: %s", got)
	}
	checkCluster(t, r, l)
}

const spaceDigest = "SELECT count(*), md5(string_agg(note, '' ORDER BY id)) FROM in_space UNION ALL SELECT count(*), md5(string_agg(note, '' ORDER BY id)) FROM in_other_space ORDER BY 1"

// makeTablespaces creates two tablespaces with tables, and from 15 on one in place.
func makeTablespaces(t *testing.T, p *testenv.Postgres) []string {
	t.Helper()
	base := testenv.Scratch(t)
	dirs := []string{filepath.Join(base, "first space"), filepath.Join(base, "second")}
	for i, dir := range dirs {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		own(t, dir)
		p.Exec(t, fmt.Sprintf("CREATE TABLESPACE space%d LOCATION '%s'", i, dir))
	}
	p.Exec(t, "CREATE TABLE in_space TABLESPACE space0 AS SELECT g AS id, md5(g::text) AS note FROM generate_series(1, 3000) AS g",
		"CREATE TABLE in_other_space TABLESPACE space1 AS SELECT g AS id, md5(g::text) AS note FROM generate_series(1, 2000) AS g")
	if p.Major >= 15 {
		p.PSQL(t, "-c", "SET allow_in_place_tablespaces = on", "-c", "CREATE TABLESPACE inside LOCATION ''")
		p.Exec(t, "CREATE TABLE in_place TABLESPACE inside AS SELECT generate_series(1, 1000) AS g")
	}
	return dirs
}

// checkCluster looks for corruption with PostgreSQL's own means, and stops the server.
func checkCluster(t *testing.T, r *testenv.Postgres, l layout) {
	t.Helper()
	if r.Major >= 15 {
		if got := r.Query(t, "SELECT count(*) FROM in_place"); got != "1000" {
			t.Errorf("the table in the in-place tablespace has %s rows", got)
		}
	}
	checkTables(t, r)
	checkPages(t, r, l.checksum)
}

// touch creates an empty file that belongs to the user postgres.
func touch(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	own(t, name)
}
