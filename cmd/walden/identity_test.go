package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// pgWAL returns the files of a kind in a server's pg_wal that is stopped or has closed them, in the order of their names.
func pgWAL(t *testing.T, p *testenv.Postgres, names *regexp.Regexp) []string {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(p.DataDir, "pg_wal"))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range list {
		if names.MatchString(e.Name()) {
			found = append(found, e.Name())
		}
	}
	slices.Sort(found)
	return found
}

// A cluster that has the right system identifier is still another one when its version or its segments are others:
// what pg_upgrade --clone and pg_resetwal --wal-segsize leave.
func TestASegmentOfAnotherVersionOrSizeIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t).quick()
	p := s.smallSegments()
	p.Exec(t, "CREATE TABLE t AS SELECT 1 AS a")
	genuine, err := os.ReadFile(filepath.Join(p.DataDir, "pg_wal", p.SwitchWAL(t)))
	if err != nil {
		t.Fatal(err)
	}
	p.WaitFor(t, "SELECT archived_count > 0 FROM pg_stat_archiver", "t", time.Minute)
	p.Stop("fast")
	before := tree(t, s.archive)
	dir := testenv.Scratch(t)
	foreign := map[string][]byte{}
	// The long header of a segment (xlog_internal.h): xlp_magic at 0, xlp_pageaddr at 8, xlp_sysid at 24, xlp_seg_size at 32.
	name, b := segmentLike(genuine, 100, 0)
	magic := uint16(0xD106) // XLOG_PAGE_MAGIC of PostgreSQL 13
	if p.Major == 13 {
		magic = 0xD10D // of 14
	}
	binary.LittleEndian.PutUint16(b, magic)
	foreign[name] = b
	_, b = segmentLike(genuine, 102, 0)
	b = append(b, make([]byte, len(b))...)
	binary.LittleEndian.PutUint32(b[32:], 2<<20)
	foreign[fmt.Sprintf("00000001%08X%08X", 0, 51)] = b
	name, b = segmentLike(genuine, 104, 0)
	binary.LittleEndian.PutUint64(b[24:], 1)
	foreign[name] = b
	for name, b := range foreign {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
		s.fails(nil, 1, []string{"belongs to another cluster", "hint: give every cluster a prefix of its own"}, "wal-push", filepath.Join(dir, name))
	}
	if after := tree(t, s.archive); !slices.Equal(after, before) {
		t.Error("the archive has changed")
	}
	testenv.Figure(t, "wrong cluster", "wal-push", len(foreign))
}

var segments = regexp.MustCompile(`^[0-9A-F]{24}$`)

// A copy of a cluster that goes its own way has the same system identifier, the same timeline, and from some point on
// segments of the same names with other contents. What was archived first stays.
func TestACopyThatDivergedOnTheSameTimelineIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t).quick()
	p := s.smallSegments()
	p.Exec(t, "CREATE TABLE journal(id int, note text)")
	s.archived(p)
	p.Stop("fast")
	dir := filepath.Join(testenv.Scratch(t), "copy")
	if err := os.CopyFS(dir, os.DirFS(p.DataDir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	copied := testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Settings: map[string]string{"archive_mode": "off", "wal_keep_size": "64"}})
	p.Start()
	p.Exec(t, "INSERT INTO journal VALUES (1, 'the original')")
	copied.Exec(t, "INSERT INTO journal VALUES (1, 'the copy')")
	s.archived(p)
	copied.SwitchWAL(t)
	p.Stop("fast")
	copied.Stop("fast")
	before := tree(t, s.archive)
	refused := 0
	for _, name := range pgWAL(t, copied, segments) {
		object := filepath.Join(s.archive, "wal_005", name+".lz4")
		if _, err := os.Stat(object); err != nil {
			continue
		}
		r := s.walden(nil, "wal-push", filepath.Join(copied.DataDir, "pg_wal", name))
		if r.code != 0 {
			refused++
			r.expect(t, 1, "archived already with different content", "a copy of this cluster did")
		}
	}
	if refused == 0 {
		t.Error("no segment of the copy was refused")
	}
	if after := tree(t, s.archive); !slices.Equal(after, before) {
		t.Error("the archive has changed")
	}
	testenv.Figure(t, "wrong cluster", "diverged copies", refused)
}

// Two servers restored from one backup may both choose timeline 2. Whose history is archived first has it.
func TestTwoServersThatChooseTheSameTimelineDoNotMix(t *testing.T) {
	t.Parallel()
	s := newSite(t).quick()
	p := s.smallSegments()
	p.Exec(t, "CREATE TABLE journal(id int, note text)")
	s.must(p, "backup-push", p.DataDir)
	p.Exec(t, "INSERT INTO journal VALUES (1, 'after the backup')")
	s.archived(p)
	p.Stop("fast")
	promoted := func(note string, settings ...string) *testenv.Postgres {
		r := testenv.OpenPostgres(t, s.fetch("LATEST"), testenv.PostgresOptions{
			Settings: s.restoreSettings(append([]string{"wal_keep_size=64", "recovery_target_action=promote"}, settings...)...)})
		r.Exec(t, "INSERT INTO journal VALUES (2, '"+note+"')")
		for range 8 {
			r.Exec(t, "INSERT INTO journal VALUES (3, '"+note+"')")
			r.SwitchWAL(t)
		}
		r.Stop("fast")
		return r
	}
	first := promoted("first")
	second := promoted("second", "recovery_target=immediate")
	push := func(p *testenv.Postgres, name string) result {
		return s.walden(nil, "wal-push", filepath.Join(p.DataDir, "pg_wal", name))
	}
	push(first, "00000002.history").expect(t, 0)
	onTwo := regexp.MustCompile(`^00000002[0-9A-F]{16}$`)
	for _, name := range pgWAL(t, first, onTwo) {
		push(first, name).expect(t, 0)
	}
	before := tree(t, s.archive)
	push(second, "00000002.history").expect(t, 1, "archived already with different content")
	refused := 1
	for _, name := range pgWAL(t, second, onTwo) {
		if _, err := os.Stat(filepath.Join(s.archive, "wal_005", name+".lz4")); err == nil {
			push(second, name).expect(t, 1, "archived already with different content")
			refused++
		}
	}
	if refused < 3 {
		t.Errorf("only %d files were refused", refused)
	}
	if after := tree(t, s.archive); !slices.Equal(after, before) {
		t.Error("the archive has changed")
	}
	if got := s.must(nil, "wal-fetch", "00000002.history", filepath.Join(testenv.Scratch(t), "h")); got.code != 0 {
		t.Error(got.stderr)
	}
	testenv.Figure(t, "wrong cluster", "diverged timelines", refused)
}

func TestARestoreTouchesNoOtherCluster(t *testing.T) {
	t.Parallel()
	f := readFixture(t, "full-lz4")
	s := f.site(t)
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1})
	p.Exec(t, "CREATE TABLE precious AS SELECT generate_series(1, 1000) AS a", "CHECKPOINT")
	mount := filepath.Join(testenv.Scratch(t), "mount")
	if err := os.MkdirAll(filepath.Join(mount, "lost+found"), 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(testenv.Scratch(t), "link")
	if err := os.Symlink(p.DataDir, link); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		args []string
		text string
	}{
		{[]string{p.DataDir}, "is not empty"},
		{[]string{link}, "is not empty"},
		{[]string{link + "/base/.."}, "is not empty"},
		{[]string{filepath.Join(p.DataDir, "new")}, "lies in the data directory of another cluster"},
		{[]string{filepath.Join(link, "base", "new")}, "lies in the data directory of another cluster"},
		{[]string{mount}, `is not empty (it holds "lost+found")`},
		{[]string{filepath.Join(testenv.Scratch(t), "x"), "--waldir", filepath.Join(p.DataDir, "pg_wal")}, "is not empty"},
		{[]string{filepath.Join(testenv.Scratch(t), "x"), "--waldir", filepath.Join(link, "pg_wal", "new")}, "lies in the data directory of another cluster"},
	}
	for _, c := range cases {
		s.fails(nil, 1, []string{c.text}, append([]string{"backup-fetch", c.args[0], "LATEST"}, c.args[1:]...)...)
	}
	if got := p.Query(t, "SELECT count(*) FROM precious"); got != "1000" {
		t.Errorf("the server has %s rows", got)
	}
	p.Restart()
	testenv.Figure(t, "wrong cluster", "backup-fetch", len(cases))
}

// A server whose restore_command points to another cluster's archive must not come up on what it finds there, nor without it.
func TestRecoveryDoesNotEndOnAnotherClustersArchive(t *testing.T) {
	t.Parallel()
	s, others := newSite(t).quick(), newSite(t).quick()
	p := s.smallSegments()
	p.Exec(t, "CREATE TABLE journal(id int, note text)")
	s.must(p, "backup-push", p.DataDir)
	p.Exec(t, "INSERT INTO journal VALUES (1, 'x')")
	s.archived(p)
	dir := s.fetch("LATEST")
	start := bytes.Fields(mustRead(t, filepath.Join(dir, "backup_label")))
	wanted := strings.Trim(string(start[5]), ")") // START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
	other := others.smallSegments()
	other.Exec(t, "CREATE TABLE t (a int)")
	for other.Query(t, "SELECT coalesce(last_archived_wal, '') >= '"+wanted+"' FROM pg_stat_archiver") != "t" {
		other.Exec(t, "INSERT INTO t VALUES (1)")
		others.archived(other)
	}
	r := testenv.AttachPostgres(t, dir, testenv.PostgresOptions{Settings: others.restoreSettings()})
	if err := r.TryStart(); err == nil {
		t.Fatal("the server started")
	}
	r.WaitExit(t, time.Minute)
	if log := r.LogTail(); !strings.Contains(log, "the archive is of another cluster") {
		t.Errorf("the log does not say so:\n%s", log)
	}
	again := testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Settings: s.restoreSettings()})
	if got := again.Query(t, "SELECT note FROM journal"); got != "x" {
		t.Errorf("recovered %q", got)
	}
	testenv.Figure(t, "wrong cluster", "recovery", 1)
}

func mustRead(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The directory and the connection are both given: what is copied must be what is put into backup mode.
func TestABackupOfAnotherServersDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t).quick()
	p := s.smallSegments()
	p.Exec(t, "CREATE TABLE t AS SELECT 1 AS a")
	other := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1})
	copied := filepath.Join(testenv.Scratch(t), "copy")
	p.Stop("fast")
	if err := os.CopyFS(copied, os.DirFS(p.DataDir)); err != nil {
		t.Fatal(err)
	}
	ownAll(t, copied)
	p.Start()
	for dir, text := range map[string]string{
		other.DataDir: "its system identifier is " + other.Query(t, "SELECT system_identifier FROM pg_control_system()"),
		copied:        "the connected server works on " + p.DataDir,
	} {
		s.fails(p, 1, []string{"is not the connected server's data directory", text, "hint: check PGHOST and PGPORT"}, "backup-push", dir)
	}
	s.leavesNothing(t, p, 0)
	testenv.Figure(t, "wrong cluster", "backup-push", 2)
}
