package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// waleFixture is an archive that WAL-E wrote, with what is known of it (testdata/README.md).
type waleFixture struct {
	name string
	key  string // file of the private key with which it is encrypted, "" for none

	Postgres struct {
		Major            int    `json:"major"`
		SystemIdentifier string `json:"system_identifier"`
	} `json:"postgresql"`
	Latest  string       `json:"backup_name"`
	Backups []waleBackup `json:"backups"`
	WAL     map[string]struct {
		SHA256 string `json:"sha256"`
	} `json:"wal"`
	Tablespaces map[string]struct {
		Location string `json:"location"`
	} `json:"tablespaces"`
	End   walePoint `json:"end_of_archive"`
	Point walePoint `json:"restore_point"`
}

type waleBackup struct {
	Name     string          `json:"name"`
	Modified time.Time       `json:"last_modified"`
	Sentinel json.RawMessage `json:"sentinel"`
	Parts    []struct {
		Object string `json:"object"`
	} `json:"partitions"`
	Restored struct {
		Directories map[string]string   `json:"directories"` // mode
		Implicit    []string            `json:"implicit_directories"`
		Files       map[string]waleFile `json:"files"`
	} `json:"restored"`
}

type waleFile struct {
	Mode   string `json:"mode"`
	SHA256 string `json:"sha256"`
}

// walePoint is a point to which the archive is recovered, and what the database holds there.
type walePoint struct {
	Name    string `json:"name"`
	Queries []struct {
		SQL   string `json:"sql"`
		Count int    `json:"count"`
		MD5   string `json:"md5"`
	} `json:"queries"`
	Absent []string `json:"absent_tables"`
}

// waleDir holds the fixtures, seen from this package's directory.
const waleDir = "../../testdata/wal-e"

func readWALEFixtures(t *testing.T) map[string]*waleFixture {
	t.Helper()
	fixtures := map[string]*waleFixture{}
	for _, f := range []waleFixture{
		{name: "plain"},
		{name: "exclusive-pg14"},
		{name: "gpg", key: "private-key.asc"},
	} {
		b, err := os.ReadFile(filepath.Join(waleDir, f.name, "expected.json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &f); err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
		if f.Latest == "" || len(f.Backups) == 0 || len(f.Backups[0].Restored.Files) < 300 || len(f.End.Queries) < 3 || len(f.WAL) < 7 {
			t.Fatalf("%s: expected.json does not say what to expect", f.name)
		}
		fixtures[f.name] = &f
	}
	return fixtures
}

func readWALEFixture(t *testing.T, name string) *waleFixture {
	t.Helper()
	f := readWALEFixtures(t)[name]
	if f == nil {
		t.Fatalf("no fixture %q", name)
	}
	return f
}

// site makes an installation whose archive is a copy of the fixture, with the times at which WAL-E wrote its sentinels.
func (f *waleFixture) site(t *testing.T, settings ...string) *site {
	t.Helper()
	s := bareSite(t)
	s.archive = filepath.Join(s.dir, "archive")
	settings = append(settings, "WALE_FILE_PREFIX=file://localhost"+s.archive) // as WAL-E has it
	if f.key != "" {
		b, err := os.ReadFile(filepath.Join(waleDir, f.name, f.key))
		if err != nil {
			t.Fatal(err)
		}
		key := filepath.Join(s.dir, f.key)
		if err := os.WriteFile(key, b, 0o600); err != nil {
			t.Fatal(err)
		}
		own(t, key)
		settings = append(settings, "WALG_PGP_KEY_PATH="+key)
	}
	s.configure(settings...)
	if err := os.CopyFS(s.archive, os.DirFS(filepath.Join(waleDir, f.name, "store"))); err != nil {
		t.Fatal(err)
	}
	for _, b := range f.Backups {
		if err := os.Chtimes(s.waleObject(b.Name+"_backup_stop_sentinel.json"), b.Modified, b.Modified); err != nil {
			t.Fatal(err)
		}
	}
	ownAll(t, s.archive)
	return s
}

// waleObject is the place of something below the folder of backups.
func (s *site) waleObject(elements ...string) string {
	return filepath.Join(append([]string{s.archive, "basebackups_005"}, elements...)...)
}

// fetch restores a backup, with its tablespaces beside it: their places of before are those of another host.
func (f *waleFixture) fetch(t *testing.T, s *site, name string) (dir string, spaces map[string]string) {
	t.Helper()
	parent := testenv.Scratch(t)
	dir, spaces = filepath.Join(parent, "data"), map[string]string{}
	args := []string{"backup-fetch", dir, name}
	for oid, space := range f.Tablespaces {
		spaces[oid] = filepath.Join(parent, "tablespace "+oid)
		args = append(args, "--tablespace-mapping", strings.TrimSuffix(space.Location, "/")+"="+spaces[oid])
	}
	s.must(nil, args...).expect(t, 0, "WAL-E left out postgresql.conf")
	return dir, spaces
}

func (f *waleFixture) backup(t *testing.T, name string) waleBackup {
	t.Helper()
	i := slices.IndexFunc(f.Backups, func(b waleBackup) bool { return b.Name == name })
	if i < 0 {
		t.Fatalf("%s has no backup %s", f.name, name)
	}
	return f.Backups[i]
}

// check compares a restored directory that no server has seen yet with what WAL-E restored: every file with content and mode, every
// directory, every link.
func (b waleBackup) check(t *testing.T, dir string, spaces map[string]string) {
	t.Helper()
	got, want := hashes(t, dir), map[string]string{}
	modes := map[string]string{}
	for name, file := range b.Restored.Files {
		want[name], modes[name] = file.SHA256, file.Mode
	}
	for name, mode := range b.Restored.Directories {
		modes[name] = mode
	}
	for _, name := range b.Restored.Implicit {
		modes[name] = "0700"
	}
	for oid, place := range spaces {
		link := "pg_tblspc/" + oid
		want[link] = fs.ModeSymlink.String()
		if target, err := os.Readlink(filepath.Join(dir, link)); err != nil || target != place {
			t.Errorf("%s leads to %q (%v) instead of %q", link, target, err, place)
		}
		for name, sum := range hashes(t, place) {
			got[link+"/"+name] = sum
		}
	}
	if len(spaces) > 0 { // the links that the server would make from what was recorded are those of another host
		var lines strings.Builder
		for oid, place := range spaces {
			fmt.Fprintf(&lines, "%s %s\n", oid, place)
		}
		text, err := os.ReadFile(filepath.Join(dir, "tablespace_map"))
		if err != nil || len(spaces) == 1 && string(text) != lines.String() {
			t.Errorf("tablespace_map is %q (%v), want %q", text, err, lines.String())
		}
		delete(got, "tablespace_map")
		delete(want, "tablespace_map")
	}
	sameHashes(t, "the restored directory", got, want)
	for name, mode := range modes {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || fmt.Sprintf("%04o", info.Mode().Perm()) != mode {
			t.Errorf("%s has mode %v (%v) instead of %s", name, info.Mode(), err, mode)
		}
	}
}

// configured gives a restored directory the files that WAL-E leaves out, and asks for archive recovery.
func configured(t *testing.T, dir string) string {
	t.Helper()
	for name, text := range map[string]string{"postgresql.conf": "", "pg_hba.conf": "local all all trust\nlocal replication all trust\n", "pg_ident.conf": "", "recovery.signal": ""} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		own(t, path)
	}
	return dir
}

// checkData compares what the database holds with what is expected at a point.
func (w walePoint) checkData(t *testing.T, p *testenv.Postgres) {
	t.Helper()
	for _, q := range w.Queries {
		if got, want := p.Query(t, q.SQL), fmt.Sprintf("%d|%s", q.Count, q.MD5); got != want {
			t.Errorf("%s: %s instead of %s", q.SQL, got, want)
		}
	}
	for _, table := range w.Absent {
		if got := p.Query(t, "SELECT to_regclass('"+table+"') IS NULL"); got != "t" {
			t.Errorf("%s is there", table)
		}
	}
}

func TestBackupsOfWALEAreListedRestoredExactlyAndRecovered(t *testing.T) {
	t.Parallel()
	for name, f := range readWALEFixtures(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := f.site(t)
			before := hashes(t, s.archive)
			f.checkList(t, s)
			for _, b := range f.Backups {
				dir, spaces := f.fetch(t, s, b.Name)
				b.check(t, dir, spaces)
				if b.Name == f.Latest {
					continue
				}
				// An older backup is recovered to a point in between.
				p := testenv.OpenPostgres(t, configured(t, dir), testenv.PostgresOptions{
					Settings: s.restoreSettings("recovery_target_name="+f.Point.Name, "recovery_target_action=promote")})
				f.Point.checkData(t, p)
			}
			dir, spaces := f.fetch(t, s, "LATEST")
			f.backup(t, f.Latest).check(t, dir, spaces)
			p := testenv.OpenPostgres(t, configured(t, dir), testenv.PostgresOptions{Settings: s.restoreSettings()})
			f.End.checkData(t, p)
			if got := p.Query(t, "SELECT system_identifier FROM pg_control_system()"); got != f.Postgres.SystemIdentifier || p.Major != f.Postgres.Major {
				t.Errorf("the recovered server is %s of PostgreSQL %d", got, p.Major)
			}
			for oid, place := range spaces {
				if got := p.Query(t, "SELECT pg_tablespace_location("+oid+")"); got != place {
					t.Errorf("tablespace %s is at %s instead of %s", oid, got, place)
				}
			}
			checkTables(t, p)
			sameHashes(t, "the archive after restores and recovery", hashes(t, s.archive), before)
		})
	}
}

// checkList compares backup-list with what WAL-E recorded.
func (f *waleFixture) checkList(t *testing.T, s *site) {
	t.Helper()
	plain := s.must(nil, "backup-list").stdout
	lines := strings.Split(strings.TrimSpace(plain), "\n")
	if len(lines) != 1+len(f.Backups) || strings.Contains(lines[0], "status") || s.latest() != f.Latest {
		t.Errorf("backup-list says\n%s", plain)
	}
	var listed []struct {
		Name    string    `json:"backup_name"`
		Time    time.Time `json:"time"`
		WALFile string    `json:"wal_file_name"`
		Size    int64     `json:"uncompressed_size"`
		Version int       `json:"pg_version"`
	}
	if err := json.Unmarshal([]byte(s.must(nil, "backup-list", "--json", "--detail").stdout), &listed); err != nil || len(listed) != len(f.Backups) {
		t.Fatalf("backup-list --json: %v, %d entries", err, len(listed))
	}
	for i, b := range f.Backups {
		var sentinel struct {
			Size int64 `json:"expanded_size_bytes"`
		}
		if err := json.Unmarshal(b.Sentinel, &sentinel); err != nil {
			t.Fatal(err)
		}
		if l := listed[i]; l.Name != b.Name || !l.Time.Equal(b.Modified) || "base_"+l.WALFile != b.Name[:29] || l.Size != sentinel.Size ||
			l.Version/10000 != f.Postgres.Major {
			t.Errorf("listed %+v, want %s of %s with %d bytes", l, b.Name, b.Modified, sentinel.Size)
		}
	}
}

func TestWALOfWALEIsFetched(t *testing.T) {
	t.Parallel()
	for _, f := range readWALEFixtures(t) {
		s := f.site(t).quick()
		for name, file := range f.WAL {
			got := filepath.Join(testenv.Scratch(t), "fetched")
			s.must(nil, "wal-fetch", name, got)
			sameHashes(t, f.name+" "+name, hashes(t, filepath.Dir(got)), map[string]string{"fetched": file.SHA256})
		}
	}
}

func TestAnArchiveOfWALEIsAdoptedByItsOwnClusterOnly(t *testing.T) {
	t.Parallel()
	f, foreign := readWALEFixture(t, "plain"), readWALEFixture(t, "exclusive-pg14")
	const segment = "000000010000000000000013" // both have it
	const identity = "walden_identity.json"
	s, theirs := f.site(t), foreign.site(t)
	fetched := func(s *site, name string) string {
		file := filepath.Join(testenv.Scratch(t), name)
		s.must(nil, "wal-fetch", name, file)
		return file
	}
	before := hashes(t, s.archive)
	s.fails(nil, 1, []string{"belongs to another cluster", f.Postgres.SystemIdentifier, foreign.Postgres.SystemIdentifier, "hint: "},
		"wal-push", fetched(theirs, segment))
	sameHashes(t, "the archive after a refusal", hashes(t, s.archive), before)

	ours := fetched(s, segment)
	s.must(nil, "wal-push", ours).expect(t, 0, "archived already with equal content")
	b, err := os.ReadFile(ours)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1 // far behind the header
	if err := os.WriteFile(ours, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s.fails(nil, 1, []string{"archived already with different content", f.Postgres.SystemIdentifier}, "wal-push", ours)
	after := hashes(t, s.archive)
	if _, ok := after[identity]; !ok {
		t.Error("the archive has no identity after its cluster has archived to it")
	}
	delete(after, identity)
	sameHashes(t, "the archive after a confirmation and a refusal", after, before)

	// What is there as WAL-E wrote it, but cannot be read, is not replaced.
	object := filepath.Join(s.archive, "wal_005", segment+".lzo")
	if err := os.Truncate(object, 1000); err != nil {
		t.Fatal(err)
	}
	s.fails(nil, 1, []string{"archived already", "damaged lzo stream"}, "wal-push", ours)
	if err := os.Remove(object); err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(ours, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s.must(nil, "wal-push", ours)
	again := fetched(s, segment)
	sameHashes(t, "the segment that walden archived", hashes(t, filepath.Dir(again)), map[string]string{segment: f.WAL[segment].SHA256})
	if _, err := os.Stat(strings.TrimSuffix(object, ".lzo") + ".lz4"); err != nil {
		t.Errorf("it is not archived in walden's own format: %v", err)
	}
}

// The cluster goes on in the archive that WAL-E began: backups of both are listed and restored, each to the last row.
func TestAnArchiveOfWALEIsContinued(t *testing.T) {
	t.Parallel()
	f := readWALEFixture(t, "plain")
	s := f.site(t)
	dir, _ := f.fetch(t, s, "LATEST")
	settings := s.restoreSettings()
	for name, value := range s.archiving() {
		settings[name] = value
	}
	p := testenv.OpenPostgres(t, configured(t, dir), testenv.PostgresOptions{Settings: settings})
	f.End.checkData(t, p)
	p.Exec(t, "CREATE TABLE journal(id int, note text)", "INSERT INTO journal VALUES (1, 'between WAL-E and walden')")
	s.must(p, "backup-push", dir)
	p.Exec(t, "INSERT INTO journal VALUES (2, 'after the backup of walden')")
	s.archived(p)
	want := p.Query(t, digest)
	p.Stop("fast")

	list := strings.Fields(s.must(nil, "backup-list").stdout)
	for _, b := range f.Backups {
		if !slices.Contains(list, b.Name) {
			t.Errorf("%s is not listed any more", b.Name)
		}
	}
	latest := s.latest()
	if strings.Count(latest, "_") != 1 {
		t.Errorf("the newest backup is %s", latest)
	}
	var space []string
	for oid := range f.Tablespaces {
		space = []string{"--tablespace-mapping", filepath.Join(filepath.Dir(dir), "tablespace "+oid) + "=" + filepath.Join(testenv.Scratch(t), "moved")}
	}
	restored := s.fetch("LATEST", space...)
	ofWALE, _ := f.fetch(t, s, f.Backups[0].Name)
	for what, dir := range map[string]string{"walden": restored, "WAL-E": configured(t, ofWALE)} {
		r := testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Settings: s.restoreSettings("recovery_target_timeline=latest")})
		f.End.checkData(t, r)
		if got := r.Query(t, digest); got != want {
			t.Errorf("from the backup of %s the journal is %s instead of %s", what, got, want)
		}
		r.Stop("fast")
	}
}

func TestADamagedPartitionOfWALEIsNamedAndTheRestoreIsRepeatedAfterTheRepair(t *testing.T) {
	t.Parallel()
	f := readWALEFixture(t, "exclusive-pg14")
	b := f.backup(t, f.Latest)
	s := f.site(t)
	object := b.Parts[0].Object
	name := s.waleObject(b.Name, "tar_partitions", object)
	intact, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	parent := testenv.Scratch(t)
	dir := filepath.Join(parent, "data")
	args := []string{"backup-fetch", dir, "LATEST"}
	spaces := map[string]string{}
	for oid, space := range f.Tablespaces {
		spaces[oid] = filepath.Join(parent, oid)
		args = append(args, "--tablespace-mapping", strings.TrimSuffix(space.Location, "/")+"="+spaces[oid])
	}
	flipped := bytes.Clone(intact)
	flipped[len(flipped)/2] ^= 0x10
	for what, content := range map[string][]byte{
		"one bit": flipped, "without its end": intact[:len(intact)-4], "cut": intact[:len(intact)/3], "empty": {}, "extended": append(bytes.Clone(intact), 0),
		"twice": append(bytes.Clone(intact), intact...), "another object": []byte("<html>503</html>"),
	} {
		if err := os.WriteFile(name, content, 0o644); err != nil {
			t.Fatal(err)
		}
		r := s.walden(nil, args...)
		if r.code != 1 || !strings.Contains(r.stderr, "cannot unpack "+object+" of backup "+b.Name) || !strings.Contains(r.stderr, "damaged lzo stream") {
			t.Errorf("%s: exit code %d\n%s", what, r.code, r.stderr)
		}
		if _, err := os.Lstat(filepath.Join(dir, "global", "pg_control")); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%s: a failed restore can be started: global/pg_control: %v", what, err)
		}
	}
	if err := os.WriteFile(name, intact, 0o644); err != nil {
		t.Fatal(err)
	}
	s.must(nil, args...)
	b.check(t, dir, spaces)
}

func TestABackupOfWALEWithAMissingPartitionIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	t.Parallel()
	f := readWALEFixture(t, "exclusive-pg14")
	b := f.backup(t, f.Latest)
	s := f.site(t)
	dir := filepath.Join(testenv.Scratch(t), "restored")
	refused := func(text string) {
		t.Helper()
		s.fails(nil, 1, []string{"backup " + b.Name, text}, "backup-fetch", dir, "LATEST")
		absent(t, dir)
	}
	first, second := s.waleObject(b.Name, "tar_partitions", "part_00000000.tar.lzo"), s.waleObject(b.Name, "tar_partitions", "part_00000001.tar.lzo")
	if err := os.Rename(first, second); err != nil {
		t.Fatal(err)
	}
	refused("its partition 0 is missing, although there is part_00000001.tar.lzo")
	if err := os.Remove(second); err != nil {
		t.Fatal(err)
	}
	refused("it has no parts")
}
