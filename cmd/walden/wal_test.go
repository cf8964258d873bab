package main

import (
	"bytes"
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

// smallSegments is a server that archives here in segments of 1 MiB and has no reason to write WAL of its own.
func (s *site) smallSegments(settings ...string) *testenv.Postgres {
	s.t.Helper()
	return testenv.StartPostgres(s.t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving(append([]string{
		"autovacuum=off", "checkpoint_timeout=1h", "bgwriter_lru_maxpages=0", "log_checkpoints=off",
	}, settings...)...)})
}

// signals are the files that tell what PostgreSQL does in a data directory, and the exit code of a wal-fetch that cannot tell
// whether the archive holds the file.
var signals = []struct {
	files   []string
	failure int
}{
	{nil, 1},
	{[]string{"recovery.signal"}, 200},
	{[]string{"standby.signal"}, 1},
	{[]string{"recovery.signal", "standby.signal"}, 1}, // a standby, says xlogrecovery.c
}

// dataDir makes the skeleton of a data directory, with what a tool that was here before has left.
func dataDir(t *testing.T, signals ...string) string {
	t.Helper()
	dir := testenv.Scratch(t)
	for _, sub := range []string{"pg_wal", "pg_wal/archive_status", "pg_wal/.wal-g", "pg_wal/.wal-g/prefetch", "pg_wal/.wal-g/prefetch/running"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
		own(t, filepath.Join(dir, sub))
	}
	stale := filepath.Join(dir, "pg_wal/.wal-g/prefetch/000000010000000000000002")
	touch(t, stale)
	for _, name := range signals {
		touch(t, filepath.Join(dir, name))
	}
	return dir
}

// tree lists everything below a directory with size and mode.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		size := info.Size()
		if e.IsDir() {
			size = 0
		}
		list = append(list, fmt.Sprintf("%s %d %s", path, size, info.Mode()))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// spoil inverts some bytes in the middle. One bit alone can be without effect: that of a distance in a run of zeros, for example.
func spoil(b []byte) {
	for i := len(b) / 2; i < min(len(b), len(b)/2+16); i++ {
		b[i] ^= 0xff
	}
}

// damage spoils a file and returns what repairs it.
func damage(t *testing.T, path string) (repair func()) {
	t.Helper()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(good)
	spoil(bad)
	write := func(b []byte) {
		if err := os.WriteFile(path, b, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	write(bad)
	return func() { write(good) }
}

func TestWALFetchSaysAbsentOnlyWhenTheArchiveSaidSo(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.smallSegments()
	p.Exec(t, "CREATE TABLE t AS SELECT 1 AS a")
	segment := p.SwitchWAL(t)
	p.WaitFor(t, "SELECT last_archived_wal FROM pg_stat_archiver", segment, time.Minute)
	object := filepath.Join(s.archive, "wal_005", segment+".lz4")
	good := s.config
	other := func(name, text string) string {
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	nothing := filepath.Join(s.dir, "nothing")
	if err := os.Mkdir(nothing, 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, nothing)

	const absent = -1 // the same code in every state
	cases := []struct {
		name   string
		config string
		args   []string
		code   int // 0: the one of the state
		says   []string
	}{
		{"absent", good, []string{"000000010000000000000FFF", "pg_wal/RECOVERYXLOG"}, absent, []string{"not in the archive"}},
		{"absent history", good, []string{"00000002.history", "pg_wal/RECOVERYHISTORY"}, absent, []string{"not in the archive"}},
		{"damaged", good, []string{segment, "pg_wal/RECOVERYXLOG"}, 0, []string{"cannot fetch " + segment, "damaged"}},
		{"no directory", other("gone.yaml", "WALG_FILE_PREFIX: "+filepath.Join(s.dir, "gone")+"\n"),
			[]string{segment, "pg_wal/RECOVERYXLOG"}, 0, []string{"cannot open the storage's directory", "hint: create the directory, or mount"}},
		{"wrong prefix", other("nothing.yaml", "WALG_FILE_PREFIX: "+nothing+"\n"),
			[]string{segment, "pg_wal/RECOVERYXLOG"}, 0, []string{"holds no archive at all", "hint: check the storage prefix"}},
		{"dead endpoint", other("dead.yaml", "WALG_S3_PREFIX: s3://bucket/main\nAWS_ENDPOINT: http://127.0.0.1:1\nAWS_REGION: us-east-1\n"+
			"AWS_ACCESS_KEY_ID: a\nAWS_SECRET_ACCESS_KEY: geheim\nS3_MAX_RETRIES: 1\nWALDEN_WAL_TIMEOUT: 2s\n"),
			[]string{segment, "pg_wal/RECOVERYXLOG"}, 0, []string{"took longer than 2s", "connection refused", "hint: WALDEN_WAL_TIMEOUT"}},
		{"bad setting", other("bad.yaml", "WALG_FILE_PREFIX: "+s.archive+"\nWALG_COMPRESSION_METHOD: zip\n"),
			[]string{segment, "pg_wal/RECOVERYXLOG"}, 0, []string{"cannot use the settings", "WALG_COMPRESSION_METHOD"}},
		{"no settings", other("empty.yaml", ""), []string{segment, "pg_wal/RECOVERYXLOG"}, 0, []string{"no storage is set", "WALG_FILE_PREFIX"}},
		{"no configuration file", filepath.Join(s.dir, "typo.yaml"), []string{segment, "pg_wal/RECOVERYXLOG"}, 0, []string{"typo.yaml"}},
		{"encryption", other("secret.yaml", "WALG_FILE_PREFIX: "+s.archive+"\nWALG_LIBSODIUM_KEY: \"geheim\"\n"),
			[]string{segment, "pg_wal/RECOVERYXLOG"}, 0, []string{"cannot use the key of WALG_LIBSODIUM_KEY", "hint: WALG_LIBSODIUM_KEY_TRANSFORM"}},
		{"an argument is missing", good, []string{segment}, 0, []string{"1 arguments given"}},
		{"an unknown flag", good, []string{segment, "pg_wal/RECOVERYXLOG", "--prefetch=8"}, 0, []string{"unknown flag"}},
	}
	for _, c := range cases {
		if c.name == "damaged" {
			defer damage(t, object)()
		}
		for _, state := range signals {
			dir := dataDir(t, state.files...)
			before := tree(t, dir)
			s.config = c.config
			began := time.Now()
			r := s.waldenIn(dir, nil, append([]string{"wal-fetch"}, c.args...)...)
			want := state.failure
			if c.code == absent {
				want = 74
			}
			if r.code != want {
				t.Errorf("%s with %v: exit code %d instead of %d\n%s", c.name, state.files, r.code, want, r.stderr)
			}
			for _, text := range c.says {
				if !strings.Contains(r.stderr, text) {
					t.Errorf("%s: standard error does not say %q:\n%s", c.name, text, r.stderr)
				}
			}
			if strings.Contains(r.stderr, "geheim") {
				t.Errorf("%s: a secret is shown:\n%s", c.name, r.stderr)
			}
			if r.stdout != "" {
				t.Errorf("%s: standard output: %s", c.name, r.stdout)
			}
			if spent := time.Since(began); spent > time.Minute {
				t.Errorf("%s took %s", c.name, spent)
			}
			if after := tree(t, dir); !slices.Equal(after, before) {
				t.Errorf("%s: the data directory has changed from\n%s\nto\n%s", c.name, strings.Join(before, "\n"), strings.Join(after, "\n"))
			}
		}
	}
}

func TestWALPushRefusesWithoutTouchingTheArchive(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.smallSegments()
	p.Exec(t, "CREATE TABLE t AS SELECT 1 AS a")
	s.archived(p)
	segment := p.Query(t, "SELECT last_archived_wal FROM pg_stat_archiver")
	good := s.config
	before := tree(t, s.archive)

	for _, c := range []struct {
		name, settings string
		args           []string
		says           []string
	}{
		{"encryption", "WALG_FILE_PREFIX: " + s.archive + "\nWALG_PGP_KEY: \"-----BEGIN PGP geheim\"\n", []string{"pg_wal/" + segment},
			[]string{"cannot use the key of WALG_PGP_KEY", "not an armoured OpenPGP key"}},
		{"unknown method", "WALG_FILE_PREFIX: " + s.archive + "\nWALG_COMPRESSION_METHOD: zip\n", []string{"pg_wal/" + segment},
			[]string{"WALG_COMPRESSION_METHOD", "zip"}},
		{"no storage", "", []string{"pg_wal/" + segment}, []string{"no storage is set"}},
		{"missing file", "WALG_FILE_PREFIX: " + s.archive + "\n", []string{"pg_wal/000000010000000000000FFF"}, []string{"no such file"}},
		{"a directory", "WALG_FILE_PREFIX: " + s.archive + "\n", []string{"pg_wal/archive_status"}, []string{"not a regular file"}},
		{"two files", "WALG_FILE_PREFIX: " + s.archive + "\n", []string{"pg_wal/" + segment, "pg_wal/" + segment}, []string{"2 arguments given"}},
		{"other target", "WALG_FILE_PREFIX: " + s.archive + "\n", []string{"--target-storage", "failover", "pg_wal/" + segment}, []string{`"failover"`}},
	} {
		s.config = filepath.Join(s.dir, "other.yaml")
		if err := os.WriteFile(s.config, []byte(c.settings), 0o644); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		r := s.waldenIn(p.DataDir, nil, append([]string{"wal-push"}, c.args...)...)
		r.expect(t, 1, c.says...)
		if strings.Contains(r.stderr, "geheim") {
			t.Errorf("%s: a secret is shown:\n%s", c.name, r.stderr)
		}
		if spent := time.Since(began); spent > time.Minute {
			t.Errorf("%s took %s", c.name, spent)
		}
	}
	s.config = good
	if after := tree(t, s.archive); !slices.Equal(after, before) {
		t.Errorf("the archive has changed from\n%s\nto\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}

	// Another cluster is told apart, its segments and everything else that lies in its data directory, until it is accepted.
	other := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: map[string]string{"wal_keep_size": "64"}})
	theirs := other.SwitchWAL(t)
	touch(t, filepath.Join(other.DataDir, "pg_wal/00000002.history"))
	for _, name := range []string{theirs, "00000002.history"} {
		r := s.waldenIn(other.DataDir, nil, "wal-push", "pg_wal/"+name)
		r.expect(t, 1, "belongs to another cluster", p.Query(t, "SELECT system_identifier FROM pg_control_system()"),
			other.Query(t, "SELECT system_identifier FROM pg_control_system()"), "walden archive accept PGDATA")
	}
	if after := tree(t, s.archive); !slices.Equal(after, before) {
		t.Error("another cluster has changed the archive")
	}
	s.must(nil, "archive", "accept", other.DataDir)
	s.waldenIn(p.DataDir, nil, "wal-push", "pg_wal/"+segment).expect(t, 1, "belongs to another cluster")
}

func TestRecoveryStopsAtAnArchiveThatCannotBeReadAndGoesOnAfterRepair(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.smallSegments()
	p.Exec(t, "CREATE TABLE journal(id int, note text)")
	s.must(p, "backup-push", p.DataDir)
	var segments []string
	for i := range 4 {
		p.Exec(t, fmt.Sprintf("INSERT INTO journal SELECT %d, md5(g::text) FROM generate_series(1, 500) AS g", i))
		segments = append(segments, p.SwitchWAL(t))
	}
	p.WaitFor(t, "SELECT last_archived_wal FROM pg_stat_archiver", segments[3], time.Minute)
	want := p.Query(t, digest)
	p.KillHard()

	dir := s.fetch("LATEST")
	r := testenv.AttachPostgres(t, dir, testenv.PostgresOptions{Settings: s.restoreSettings("hot_standby=off")})
	object := filepath.Join(s.archive, "wal_005", segments[2]+".lz4")
	rename := func(from, to string) func() {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := os.Rename(to, from); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, trouble := range []struct {
		name   string
		begin  func() (repair func())
		server string // what the server's log says
		walden string // what wal-fetch says in there
	}{
		{"the directory is not mounted", func() func() { return rename(s.archive, s.archive+".away") },
			"exit code 200", "cannot open the storage's directory"},
		{"a segment is damaged", func() func() { return damage(t, object) }, `could not restore file "` + segments[2] + `"`, "damaged"},
		{"a segment cannot be read", func() func() {
			chmod := func(mode fs.FileMode) {
				if err := os.Chmod(object, mode); err != nil {
					t.Fatal(err)
				}
			}
			chmod(0)
			return func() { chmod(0o640) }
		}, `could not restore file "` + segments[2] + `"`, "permission denied"},
	} {
		repair := trouble.begin()
		if err := os.Truncate(r.LogFile, 0); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if err := r.TryStart(); err == nil {
			t.Fatalf("%s: the server came up with %s of %s", trouble.name, r.Query(t, digest), want)
		}
		log := r.LogTail()
		for _, text := range []string{trouble.server, trouble.walden, "exit code 200", "hint: PostgreSQL is in archive recovery and stops now"} {
			if !strings.Contains(log, text) {
				t.Errorf("%s: the server's log does not say %q:\n%s", trouble.name, text, log)
			}
		}
		if _, err := os.Stat(filepath.Join(dir, "pg_wal/00000002.history")); err == nil {
			t.Fatalf("%s: recovery has ended", trouble.name)
		}
		if _, err := os.Stat(filepath.Join(dir, "recovery.signal")); err != nil {
			t.Fatalf("%s: %v", trouble.name, err)
		}
		repair()
	}
	r.Start()
	r.WaitFor(t, "SELECT pg_is_in_recovery()", "f", time.Minute)
	if got := r.Query(t, digest); got != want {
		t.Errorf("after recovery: %s, was %s", got, want)
	}
}

func TestEveryKindOfFileThatPostgreSQLArchivesComesBackAsItWas(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.smallSegments("wal_keep_size=64")
	p.Exec(t, "CREATE TABLE t AS SELECT 1 AS a")
	standby := p.Standby(t, testenv.PostgresOptions{Settings: s.archiving("wal_keep_size=64")}) // the backup leaves a .backup file
	s.archived(p)
	p.Exec(t, "INSERT INTO t VALUES (1)") // so that the promotion falls into the middle of a segment
	standby.CatchUp(t, p)
	p.Stop("immediate")
	standby.Promote(t)
	standby.Exec(t, "INSERT INTO t VALUES (2)")
	s.archived(standby)

	kinds := map[string]string{}
	for _, pattern := range []string{"00000002.history", "*.partial", "*.backup", "00000001*[0-9A-F]", "00000002*[0-9A-F]"} {
		found, err := filepath.Glob(filepath.Join(s.archive, "wal_005", pattern+".lz4"))
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 0 {
			t.Errorf("the archive has nothing like %s", pattern)
			continue
		}
		kinds[pattern] = strings.TrimSuffix(filepath.Base(found[len(found)-1]), ".lz4")
	}
	dest := dataDir(t)
	for pattern, name := range kinds {
		s.waldenIn(dest, nil, "wal-fetch", name, "pg_wal/"+name).expect(t, 0, "state=complete", "seg="+name)
		got, err := os.ReadFile(filepath.Join(dest, "pg_wal", name))
		if err != nil {
			t.Fatal(err)
		}
		source := filepath.Join(standby.DataDir, "pg_wal", name)
		if pattern == "*.backup" || strings.HasPrefix(pattern, "00000001") {
			source = filepath.Join(p.DataDir, "pg_wal", name)
		}
		want, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes came back that differ from the %d that were archived", name, len(got), len(want))
		}
	}
	// A second time, as after a crash between archiving and noting it, by the relative path that PostgreSQL gives.
	for pattern, name := range kinds {
		dir := standby.DataDir
		if pattern == "*.backup" || strings.HasPrefix(pattern, "00000001") {
			dir = p.DataDir
		}
		s.waldenIn(dir, nil, "wal-push", "pg_wal/"+name).expect(t, 0, "archived already with equal content")
	}
}

func TestWALFetchWritesNothingButItsDestination(t *testing.T) {
	t.Parallel()
	s := newS3Site(t)
	p := s.smallSegments()
	p.Exec(t, "CREATE TABLE t AS SELECT 1 AS a")
	segment := p.SwitchWAL(t)
	p.WaitFor(t, "SELECT last_archived_wal FROM pg_stat_archiver", segment, time.Minute)
	dir := dataDir(t, "recovery.signal")
	before := tree(t, dir)
	s.waldenIn(dir, nil, "wal-fetch", segment, "pg_wal/RECOVERYXLOG").expect(t, 0)
	dest := filepath.Join(dir, "pg_wal/RECOVERYXLOG")
	want := fmt.Sprintf("%s %d -rw-------", dest, 1<<20)
	after := tree(t, dir)
	if got := slices.DeleteFunc(slices.Clone(after), func(line string) bool { return line == want }); !slices.Equal(got, before) || len(after) != len(before)+1 {
		t.Errorf("the data directory has changed from\n%s\nto\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	// The same once more is success, and what is there is never replaced.
	s.waldenIn(dir, nil, "wal-fetch", segment, "pg_wal/RECOVERYXLOG").expect(t, 0)
	if err := os.WriteFile(dest, []byte("the operator's own"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.waldenIn(dir, nil, "wal-fetch", segment, "pg_wal/RECOVERYXLOG").expect(t, 200, "exists already with other content", "walden never overwrites")
	if b, err := os.ReadFile(dest); err != nil || string(b) != "the operator's own" {
		t.Errorf("the destination was changed: %q, %v", b, err)
	}
}
