package pgdata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// cluster is a running PostgreSQL cluster with data checksums.
type cluster struct {
	*testenv.Postgres
	t   testing.TB
	top string // for what else belongs to the test
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	settings := map[string]string{"shared_buffers": "2MB", "autovacuum": "off", "bgwriter_delay": "10ms"}
	server := testenv.StartPostgres(t, testenv.PostgresOptions{Checksums: true, Settings: settings})
	return &cluster{Postgres: server, t: t, top: testenv.Scratch(t)}
}

// command prepares one of the server's programs, to run as the server's user.
func (c *cluster) command(program string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	c.t.Cleanup(cancel)
	cmd := testenv.AsPostgres(exec.CommandContext(ctx, filepath.Join(c.BinDir, program), args...))
	cmd.Dir = "/"
	cmd.Env = append(cmd.Environ(), append(c.Env(), "LC_ALL=C", "TZ=UTC")...)
	return cmd
}

func (c *cluster) run(program string, args ...string) string {
	c.t.Helper()
	out, err := c.command(program, args...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", program, err, out)
	}
	return string(out)
}

func (c *cluster) control() Control {
	c.t.Helper()
	control, _, err := ReadControl(c.DataDir)
	if err != nil {
		c.t.Fatal(err)
	}
	return control
}

// checkControl compares ReadControl with pg_controldata.
func (c *cluster) checkControl(want State) {
	c.t.Helper()
	said := map[string]string{}
	for line := range strings.Lines(c.run("pg_controldata", c.DataDir)) {
		key, value, _ := strings.Cut(line, ":")
		said[key] = strings.TrimSpace(value)
	}
	control := c.control()
	timeText := func(at time.Time) string { return at.Format("Mon Jan _2 15:04:05 2006") }
	yesNo := map[bool]string{true: "yes", false: "no"}
	onOff := map[bool]string{true: "on", false: "off"}
	for key, got := range map[string]string{
		"pg_control version number":            fmt.Sprint(control.ControlVersion),
		"Catalog version number":               fmt.Sprint(control.CatalogVersion),
		"Database system identifier":           fmt.Sprint(control.SystemIdentifier),
		"Database cluster state":               control.State.String(),
		"pg_control last modified":             timeText(control.Time),
		"Latest checkpoint location":           control.CheckpointLSN.String(),
		"Latest checkpoint's REDO location":    control.RedoLSN.String(),
		"Latest checkpoint's TimeLineID":       fmt.Sprint(control.Timeline),
		"Latest checkpoint's PrevTimeLineID":   fmt.Sprint(control.PreviousTimeline),
		"Latest checkpoint's full_page_writes": onOff[control.FullPageWrites],
		"Latest checkpoint's REDO WAL file":    wal.SegmentAt(control.Timeline, control.RedoLSN, control.WALSegmentSize).Name(control.WALSegmentSize),
		"Time of latest checkpoint":            timeText(control.CheckpointTime),
		"Minimum recovery ending location":     control.MinRecoveryLSN.String(),
		"Min recovery ending loc's timeline":   fmt.Sprint(control.MinRecoveryTimeline),
		"Backup start location":                control.BackupStartLSN.String(),
		"Backup end location":                  control.BackupEndLSN.String(),
		"End-of-backup record required":        yesNo[control.BackupEndRequired],
		"Database block size":                  fmt.Sprint(control.BlockSize),
		"Blocks per segment of large relation": fmt.Sprint(control.SegmentBlocks),
		"WAL block size":                       fmt.Sprint(control.WALBlockSize),
		"Bytes per WAL segment":                fmt.Sprint(control.WALSegmentSize),
		"Data page checksum version":           map[bool]string{true: "1", false: "0"}[control.DataChecksums],
	} {
		if got != said[key] {
			c.t.Errorf("%s: %q, pg_controldata says %q", key, got, said[key])
		}
	}
	if control.State != want {
		c.t.Errorf("the cluster is %s, want %s", control.State, want)
	}
}

// entries walks the cluster and returns what it finds by name.
func (c *cluster) entries() map[string]Entry {
	c.t.Helper()
	major, err := ReadMajor(c.DataDir)
	if err != nil {
		c.t.Fatal(err)
	}
	entries := map[string]Entry{}
	o := WalkOptions{TablespaceVersionDir: TablespaceVersionDir(major, c.control().CatalogVersion)}
	if err := Walk(c.t.Context(), c.DataDir, o, func(e Entry) error {
		if _, twice := entries[e.Name]; twice {
			c.t.Errorf("%s is visited twice", e.Name)
		}
		entries[e.Name] = e
		return nil
	}); err != nil {
		c.t.Fatal(err)
	}
	return entries
}

// TestARealCluster compares with PostgreSQL's own tools: the walk with pg_basebackup, the control file with
// pg_controldata, the verdicts on pages with pg_checksums, at rest and under load.
func TestARealCluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.checkControl(StateInProduction)
	ts := testenv.Scratch(t)
	c.Exec(t,
		fmt.Sprintf("CREATE TABLESPACE elsewhere LOCATION '%s'", ts),
		"CREATE TABLE t TABLESPACE elsewhere AS SELECT g, repeat('x', 100) FROM generate_series(1, 20000) g",
		"CREATE UNLOGGED TABLE u AS SELECT g FROM generate_series(1, 20000) g", "CREATE INDEX ON u (g)",
		"CREATE TABLE v AS SELECT g, repeat('y', 100) FROM generate_series(1, 20000) g", "CREATE INDEX ON v (g)",
		"VACUUM", "CHECKPOINT")

	// A session that holds a temporary table.
	session := c.command("psql", "-XAtq")
	input, err := session.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := session.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(input, "CREATE TEMP TABLE temporary AS SELECT g FROM generate_series(1, 20000) g; SELECT 'ready';")
	if _, err := output.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	c.compareWithBaseBackup(ts)
	if err := input.Close(); err != nil {
		t.Fatal(err)
	}
	if err := session.Wait(); err != nil {
		t.Error(err)
	}
	c.verifyUnderLoad()
	c.Stop("fast")
	c.checkControl(StateShutDown)
	c.compareWithChecksums()
}

func (c *cluster) compareWithBaseBackup(ts string) {
	t := c.t
	c.run("pg_basebackup", "-D", c.top+"/copy", "-X", "none", "-c", "fast", "--no-sync", "-T", ts+"="+c.top+"/copyts")
	want := map[string]fs.FileMode{}
	if err := filepath.WalkDir(c.top+"/copy", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type() == fs.ModeSymlink {
			return err
		}
		name, _ := filepath.Rel(c.top+"/copy", path)
		want[name] = d.Type()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	spaces, err := Tablespaces(c.DataDir)
	if err != nil || len(spaces) != 1 || spaces[0].Location != ts {
		t.Fatalf("%+v, %v", spaces, err)
	}
	link := c.top + "/copyts"
	if err := filepath.WalkDir(link, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != link {
			want[fmt.Sprintf("pg_tblspc/%d%s", spaces[0].OID, strings.TrimPrefix(path, link))] = d.Type()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	// What pg_basebackup makes itself, and what is left out here in addition.
	for _, name := range []string{"backup_label", "backup_manifest", "tablespace_map", "current_logfiles", ControlName} {
		delete(want, name)
	}
	maps.DeleteFunc(want, func(name string, _ fs.FileMode) bool { return strings.HasPrefix(name, "log/") })
	delete(want, "pg_wal/summaries")
	want[""] = want["."]
	delete(want, ".")

	for _, pattern := range []string{"base/*/t[0-9]*_*", "base/*/*_init", "base/*/pg_internal.init"} {
		if found, _ := filepath.Glob(filepath.Join(c.DataDir, pattern)); len(found) == 0 {
			t.Errorf("the cluster has no %s to leave out", pattern)
		}
	}
	got := c.entries()
	delete(got, "base/pgsql_tmp") // kept as an empty directory, as in WAL-G format
	for name, e := range got {
		if mode, ok := want[name]; !ok || (mode == fs.ModeDir) != (e.Kind == Dir) {
			t.Errorf("%q is visited, pg_basebackup does not have it so", name)
		}
	}
	for name := range want {
		if _, ok := got[name]; !ok {
			t.Errorf("%q is in pg_basebackup and not visited", name)
		}
	}
	if len(got) < 900 {
		t.Errorf("%d entries are too few", len(got))
	}
}

// verifyFiles feeds all data files of a walk to a verifier and returns the corrupt blocks by file.
func (c *cluster) verifyFiles(names []string, start, stop wal.LSN) (corrupt map[string][]uint32, pages int) {
	t := c.t
	t.Helper()
	v := NewPageVerifier(c.control().SegmentBlocks, start)
	corrupt = map[string][]uint32{}
	for _, name := range names {
		f, err := os.Open(filepath.Join(c.DataDir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		relation, _ := ParseRelationFile(name)
		v.Reset(t.Context(), f, relation.Segment)
		if _, err := f.WriteTo(struct{ *PageVerifier }{v}); err != nil {
			t.Fatal(err)
		}
		f.Close()
		r := v.Report()
		pages += int(r.Pages)
		if blocks := r.CorruptAt(stop); len(blocks) > 0 {
			corrupt[name] = blocks
		}
	}
	return corrupt, pages
}

func (c *cluster) verifyUnderLoad() {
	t := c.t
	bench := func(args ...string) *exec.Cmd { return c.command("pgbench", append(args, "-n", "postgres")...) }
	if out, err := bench("-i", "-q", "-s", "2").CombinedOutput(); err != nil {
		t.Fatalf("pgbench: %v\n%s", err, out)
	}
	load := bench("-c", "4", "-T", "3")
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	c.Exec(t, "CHECKPOINT") // as a backup does: from here on each page's first change writes all of it to the log
	start := c.control().RedoLSN
	ended := make(chan error, 1)
	go func() { ended <- load.Wait() }()
	var names []string
	for name := range c.entries() {
		if IsDataFile(name) {
			names = append(names, name)
		}
	}
	for rounds := 0; ; rounds++ {
		corrupt, pages := c.verifyFiles(names, start, wal.LSN(1<<64-1))
		if len(corrupt) > 0 {
			t.Fatalf("corrupt while being written: %v", corrupt)
		}
		select {
		case err := <-ended:
			t.Logf("%d rounds of %d pages", rounds, pages)
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
		}
	}
}

func (c *cluster) compareWithChecksums() {
	t := c.t
	// pg_checksums looks at everything, so the files do not come from Walk.
	spaces, err := Tablespaces(c.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for prefix, base := range map[string]string{
		"base":                                  c.DataDir + "/base",
		"global":                                c.DataDir + "/global",
		fmt.Sprint("pg_tblspc/", spaces[0].OID): spaces[0].Location,
	} {
		if err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
			if name := prefix + strings.TrimPrefix(path, base); err == nil && IsDataFile(name) {
				names = append(names, name)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(names)
	numbers := func(out, what string) string {
		m := regexp.MustCompile(what + `: *(\d+)`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("no %q in %s", what, out)
		}
		return m[1]
	}
	end := c.control().CheckpointLSN
	corrupt, pages := c.verifyFiles(names, end+1<<20, end)
	out := c.run("pg_checksums", "--check", "-D", c.DataDir)
	if files := numbers(out, "Files scanned"); files != strconv.Itoa(len(names)) {
		t.Errorf("%d data files, pg_checksums scanned %s", len(names), files)
	}
	if blocks := numbers(out, "Blocks scanned"); blocks != strconv.Itoa(pages) {
		t.Errorf("%d pages, pg_checksums scanned %s", pages, blocks)
	}
	if len(corrupt) > 0 || numbers(out, "Bad checksums") != "0" {
		t.Fatalf("corrupt: %v, pg_checksums: %s", corrupt, out)
	}

	// Damage some pages in files of all kinds, each in another way.
	want := map[string][]uint32{}
	for i, name := range names {
		path := filepath.Join(c.DataDir, name)
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if i%40 != 0 || len(content) < PageSize {
			continue
		}
		block := uint32(i % (len(content) / PageSize))
		page := content[int(block)*PageSize:][:PageSize]
		if PageIsNew(page) {
			continue
		}
		switch i / 40 % 4 {
		case 0:
			page[PageSize-1] ^= 0x10
		case 1:
			page[offsetChecksum] ^= 1
		case 2:
			page[offsetChecksum], page[offsetChecksum+1] = 0, 0
		case 3:
			copy(page[4096:], bytes.Repeat([]byte{0xA5}, 512))
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		want[name] = []uint32{block}
	}
	corrupt, _ = c.verifyFiles(names, end+1<<20, end)
	if len(want) < 10 || !maps.EqualFunc(corrupt, want, slices.Equal) {
		t.Errorf("got %v, want %v", corrupt, want)
	}
	failed, err := c.command("pg_checksums", "--check", "-D", c.DataDir).CombinedOutput()
	if err == nil {
		t.Fatal("pg_checksums finds nothing")
	}
	said := map[string][]uint32{}
	line := regexp.MustCompile(`verification failed in file "([^"]+)", block (\d+): calculated checksum ([0-9A-F]+) `)
	for _, m := range line.FindAllStringSubmatch(string(failed), -1) {
		name := strings.TrimPrefix(m[1], c.DataDir+"/")
		block, _ := strconv.ParseUint(m[2], 10, 32)
		calculated, _ := strconv.ParseUint(m[3], 16, 16)
		said[name] = append(said[name], uint32(block))
		content, err := os.ReadFile(m[1])
		if err != nil {
			t.Fatal(err)
		}
		if got := Checksum(content[block*PageSize:][:PageSize], uint32(block)); got != uint16(calculated) {
			t.Errorf("%s block %d: checksum %04X, pg_checksums calculates %04X", name, block, got, calculated)
		}
	}
	if !maps.EqualFunc(said, want, slices.Equal) {
		t.Errorf("pg_checksums says %v, want %v\n%s", said, want, failed)
	}
}

// TestControlFileOfAStandby looks at the fields that only a recovering cluster fills.
func TestControlFileOfAStandby(t *testing.T) {
	t.Parallel()
	primary := newCluster(t)
	standby := &cluster{Postgres: primary.Standby(t, testenv.PostgresOptions{}), t: t}
	standby.CatchUp(t, primary.Postgres)
	standby.Exec(t, "CHECKPOINT")
	standby.checkControl(StateInArchiveRecovery)
	if standby.control().MinRecoveryLSN == 0 {
		t.Error("a standby without minimum recovery point")
	}
	standby.Stop("fast")
	standby.checkControl(StateShutDownInRecovery)
	standby.Start()
	standby.Promote(t)
	standby.Exec(t, "CHECKPOINT")
	standby.checkControl(StateInProduction)
	if control := standby.control(); control.Timeline != 2 {
		t.Errorf("timeline %d after promotion", control.Timeline)
	}
}
