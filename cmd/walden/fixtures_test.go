package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// fixture is an archive that WAL-G wrote, with what is known of it (testdata/README.md).
type fixture struct {
	name       string
	method     string   // compression
	timeline   string   // that a server is on after it recovered to the end and was promoted
	parts      []string // the ordinary tars
	backups    []string // that lie there, in the order in which they were taken
	controlTar string
	moved      string // where its tablespace was, "" if it has none

	Settings []string `json:"settings"`
	Backup   string   `json:"backup"`
	Tables   map[string]struct {
		Rows int    `json:"rows"`
		MD5  string `json:"md5"`
	} `json:"after_full_recovery"`
	Files []struct {
		Path   string `json:"path"`
		SHA256 string `json:"sha256"`
	} `json:"files_after_fetch"`
	Tablespaces []string `json:"tablespace_oids"`
}

// fixtureDir holds the fixtures, seen from this package's directory.
const fixtureDir = "../../testdata/wal-g"

// chain is a full backup, a delta on it, and a delta on the delta: the backups of the fixture delta-zstd.
var chain = []string{
	"base_00000001000000000000000C",
	"base_00000001000000000000000F_D_00000001000000000000000C",
	"base_000000010000000000000012_D_00000001000000000000000F",
}

func readFixtures(t *testing.T) map[string]*fixture {
	t.Helper()
	fixtures := map[string]*fixture{}
	for _, f := range []fixture{
		{name: "full-lz4", method: "lz4", timeline: "00000002", parts: []string{"part_001.tar.lz4"}, controlTar: "pg_control.tar.lz4"},
		{name: "timeline-zstd", method: "zstd", timeline: "00000003", parts: []string{"part_001.tar.zst"}, controlTar: "pg_control.tar.zst"},
		{name: "remote-lz4", method: "lz4", timeline: "00000002", parts: []string{"part_001.tar.lz4"}, controlTar: "pg_control.tar.lz4"},
		{name: "full-lzma-sodium", method: "lzma", timeline: "00000002", parts: []string{"part_001.tar.lzma"}, controlTar: "pg_control.tar.lzma"},
		{name: "tablespace-brotli-pgp", method: "brotli", timeline: "00000002", parts: []string{"part_001.tar.br"}, controlTar: "pg_control.tar.br",
			moved: "/var/lib/postgresql/fixture/ts/far"},
		{name: "delta-zstd", method: "zstd", timeline: "00000002", parts: []string{"part_001.tar.zst"}, controlTar: "pg_control.tar.zst", backups: chain},
	} {
		b, err := os.ReadFile(filepath.Join(fixtureDir, f.name, "expected.json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &f); err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
		if f.backups == nil {
			f.backups = []string{f.Backup}
		}
		if f.Backup == "" || len(f.Files) < 300 || f.Tables["orders"].Rows == 0 {
			t.Fatalf("%s: expected.json does not say what to expect", f.name)
		}
		fixtures[f.name] = &f
	}
	return fixtures
}

// readFixture returns one fixture.
func readFixture(t *testing.T, name string) *fixture {
	t.Helper()
	f := readFixtures(t)[name]
	if f == nil {
		t.Fatalf("no fixture %q", name)
	}
	return f
}

// site makes an installation whose archive is a copy of the fixture.
func (f *fixture) site(t *testing.T) *site {
	t.Helper()
	settings := []string{"WALG_COMPRESSION_METHOD=" + f.method}
	for _, setting := range f.Settings {
		switch name, value, _ := strings.Cut(setting, "="); name {
		case "WALG_PGP_KEY_PATH": // beside the archive
			key, err := filepath.Abs(filepath.Join(fixtureDir, f.name, value))
			if err != nil {
				t.Fatal(err)
			}
			settings = append(settings, "WALG_PGP_KEY="+readAll(t, key)) // which postgres may not be able to read
		case "WALG_LIBSODIUM_KEY", "WALG_LIBSODIUM_KEY_TRANSFORM":
			settings = append(settings, setting)
		}
	}
	s := newSite(t, settings...)
	if err := os.CopyFS(s.archive, os.DirFS(filepath.Join(fixtureDir, f.name, "storage"))); err != nil {
		t.Fatal(err)
	}
	ownAll(t, s.archive)
	return s
}

// ownAll is own for everything below a directory.
func ownAll(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err == nil {
			own(t, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// into are the arguments that restore the fixture's backup into a directory, and its tablespace into another.
func (f *fixture) into(t *testing.T, dir, backup string) []string {
	t.Helper()
	args := []string{"backup-fetch", dir, backup}
	if f.moved != "" {
		args = append(args, "--tablespace-mapping", f.moved+"="+filepath.Join(testenv.Scratch(t), "tablespace"))
	}
	return args
}

// part is the place of one of the backup's tars in a site's archive.
func (f *fixture) part(s *site, object string) string {
	return filepath.Join(s.archive, "basebackups_005", f.Backup, "tar_partitions", object)
}

// systemIdentifier is what the backup's sentinel says.
func (f *fixture) systemIdentifier(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(fixtureDir, f.name, "storage", "basebackups_005", f.Backup+"_backup_stop_sentinel.json"))
	if err != nil {
		t.Fatal(err)
	}
	var sentinel struct{ SystemIdentifier json.Number }
	if err := json.Unmarshal(b, &sentinel); err != nil {
		t.Fatal(err)
	}
	return sentinel.SystemIdentifier.String()
}

// hashes returns the SHA-256 of every regular file below dir by its path there; links and other things are listed by their kind.
func hashes(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		if !e.Type().IsRegular() {
			found[rel] = e.Type().String()
			return nil
		}
		b, err := os.ReadFile(name)
		sum := sha256.Sum256(b)
		found[rel] = hex.EncodeToString(sum[:])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// sameHashes compares two results of hashes and names what differs.
func sameHashes(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		switch sum, ok := got[name]; {
		case !ok:
			t.Errorf("%s: %s is missing", what, name)
		case sum != want[name]:
			t.Errorf("%s: %s has SHA-256 %s instead of %s", what, name, sum, want[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %s should not be there", what, name)
		}
	}
}

func TestBackupsOfWALGAreListedRestoredExactlyAndRecovered(t *testing.T) {
	t.Parallel()
	for name, f := range readFixtures(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := f.site(t)
			f.checkList(t, s)
			before := hashes(t, s.archive)
			byName := filepath.Join(testenv.Scratch(t), "by name")
			s.must(nil, f.into(t, byName, f.Backup)...)
			f.checkRestored(t, byName)
			latest := filepath.Join(testenv.Scratch(t), "latest")
			s.must(nil, f.into(t, latest, "LATEST")...)
			f.checkRestored(t, latest)

			touch(t, filepath.Join(latest, "recovery.signal"))
			r := recoverTemplate1(t, latest, s.restoreSettings("recovery_target_timeline=latest"))
			want := fmt.Sprintf("%d|%s", f.Tables["orders"].Rows, f.Tables["orders"].MD5)
			if got := r.QueryIn(t, "template1", "SELECT count(*), md5(string_agg(id||':'||note, ',' ORDER BY id)) FROM orders"); got != want {
				t.Errorf("after recovery orders is %s instead of %s", got, want)
			}
			if got := r.QueryIn(t, "template1", "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"); got != f.timeline {
				t.Errorf("the recovered server is on timeline %s instead of %s", got, f.timeline)
			}
			sameHashes(t, "the archive after restores and recovery", hashes(t, s.archive), before)
		})
	}
}

// checkList compares backup-list with WAL-G's own documents.
func (f *fixture) checkList(t *testing.T, s *site) {
	t.Helper()
	plain := s.must(nil, "backup-list").stdout
	lines := strings.Split(strings.TrimSpace(plain), "\n")
	if len(lines) != 1+len(f.backups) || !strings.HasPrefix(lines[len(lines)-1], f.Backup+" ") || strings.Contains(lines[0], "status") {
		t.Errorf("backup-list says\n%s", plain)
	}
	if name := s.latest(); name != f.Backup {
		t.Errorf("the newest backup is %q", name)
	}
	var listed []map[string]json.RawMessage
	out := s.must(nil, "backup-list", "--json", "--detail").stdout
	if err := json.Unmarshal([]byte(out), &listed); err != nil || len(listed) != len(f.backups) {
		t.Fatalf("backup-list --json: %v, %d entries\n%s", err, len(listed), out)
	}
	b, err := os.ReadFile(filepath.Join(s.archive, "basebackups_005", f.Backup, "metadata.json"))
	if err != nil {
		t.Fatal(err)
	}
	var metadata map[string]json.RawMessage
	if err := json.Unmarshal(b, &metadata); err != nil {
		t.Fatal(err)
	}
	for key, want := range metadata {
		if got := listed[len(listed)-1][key]; !bytes.Equal(got, want) {
			t.Errorf("backup-list --json --detail: %s is %s, metadata.json says %s", key, got, want)
		}
	}
}

// checkRestored compares a restored directory that no server has seen yet with what WAL-G restored.
func (f *fixture) checkRestored(t *testing.T, dir string) {
	t.Helper()
	want := map[string]string{}
	for _, file := range f.Files {
		want[file.Path] = file.SHA256
	}
	got := hashes(t, dir) // which finds links, too
	for _, oid := range f.Tablespaces {
		link := "pg_tblspc/" + oid
		target, err := os.Readlink(filepath.Join(dir, link))
		if err != nil {
			t.Fatal(err)
		}
		delete(got, link)
		// The server makes the links from this file, so it names the new place.
		asWritten := sha256.Sum256([]byte(strings.ReplaceAll(readAll(t, filepath.Join(dir, "tablespace_map")), target, f.moved)))
		got["tablespace_map"] = hex.EncodeToString(asWritten[:])
		for name, sum := range hashes(t, target) {
			got[link+"/"+name] = sum
		}
	}
	sameHashes(t, "the restored directory", got, want)
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil || e.Type() == fs.ModeSymlink { // of a tablespace, as was checked
			return err
		}
		if mode := map[bool]fs.FileMode{true: 0o700, false: 0o600}[e.IsDir()]; info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v instead of %v", name, info.Mode().Perm(), mode)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pg_wal", "pg_tblspc", "pg_notify", "pg_stat", "pg_twophase"} {
		if entries, err := os.ReadDir(filepath.Join(dir, name)); err != nil {
			t.Errorf("a server could not start: %v", err)
		} else if name == "pg_tblspc" && len(entries) != len(f.Tablespaces) {
			t.Errorf("pg_tblspc holds %v", entries)
		}
	}
}

// recoverTemplate1 starts a server on a restored directory whose only database is template1 and waits until it has been
// recovered and promoted. testenv's own start asks the database postgres, which such a cluster does not have. As
// hot_standby is off, the first connection is taken when recovery has ended.
func recoverTemplate1(t *testing.T, dir string, settings map[string]string) *testenv.Postgres {
	t.Helper()
	const limit = 2 * time.Minute
	p := testenv.AttachPostgres(t, dir, testenv.PostgresOptions{})
	args := []string{"-D", dir, "-c", "unix_socket_directories=" + p.SocketDir, "-c", fmt.Sprint("port=", p.Port), "-c", "listen_addresses=", "-c", "hot_standby=off"}
	for name, value := range settings {
		args = append(args, "-c", name+"="+value)
	}
	log, err := os.Create(p.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := testenv.AsPostgres(exec.Command(filepath.Join(p.BinDir, "postgres"), args...))
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig, cmd.SysProcAttr.Setpgid = syscall.SIGQUIT, true
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(exited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGQUIT) // it may have ended by itself
		select {
		case <-exited:
		case <-time.After(limit):
			_ = cmd.Process.Kill()
			<-exited
			t.Error("the server did not stop")
		}
		if t.Failed() {
			t.Logf("the end of the server's log:\n%s", p.LogTail())
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		conn, err := pgconn.Connect(ctx, fmt.Sprintf("host='%s' port=%d user=postgres dbname=template1 sslmode=disable", p.SocketDir, p.Port))
		if err == nil {
			_ = conn.Close(ctx)
			return p
		}
		select {
		case <-exited:
			t.Fatal("the server ended before it had been recovered")
		case <-ctx.Done():
			t.Fatalf("the server was not recovered within %s: %v", limit, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// absent checks that a refused restore has not even made its directory.
func absent(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused restore left %s (%v)", dir, err)
	}
}

func TestABackupOfWALGWithAMissingObjectIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	t.Parallel()
	for _, f := range readFixtures(t) {
		objects := []string{f.parts[0], f.controlTar}
		if f.name != "remote-lz4" { // where the label is in the part
			objects = append(objects, strings.Replace(f.controlTar, "pg_control", "backup_label", 1))
		}
		for _, object := range objects {
			t.Run(f.name+" without "+object, func(t *testing.T) {
				t.Parallel()
				s := f.site(t)
				if err := os.Remove(f.part(s, object)); err != nil {
					t.Fatal(err)
				}
				dir := filepath.Join(testenv.Scratch(t), "restored")
				texts := []string{"backup " + f.Backup}
				switch {
				case object == f.controlTar:
					texts = append(texts, "pg_control.tar", "missing", "hint: ")
				case f.name == "remote-lz4": // which does not say what parts it has
					texts = append(texts, "it has no parts")
				default:
					texts = append(texts, "its part "+object+" is not in")
				}
				s.fails(nil, 1, texts, f.into(t, dir, "LATEST")...)
				absent(t, dir)
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				own(t, dir)
				s.fails(nil, 1, texts, f.into(t, dir, f.Backup)...)
				if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
					t.Errorf("a refused restore wrote %v (%v)", entries, err)
				}
			})
		}
	}
}

func TestADamagedPartIsNamedAndTheRestoreIsRepeatedAfterTheRepair(t *testing.T) {
	t.Parallel()
	for _, f := range readFixtures(t) {
		for _, object := range []string{f.parts[0], f.controlTar} {
			t.Run(f.name+" "+object, func(t *testing.T) {
				t.Parallel()
				s := f.site(t)
				name := f.part(s, object)
				intact, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				damaged := bytes.Clone(intact)
				damaged[len(damaged)/2] ^= 0x10
				if err := os.WriteFile(name, damaged, 0o644); err != nil {
					t.Fatal(err)
				}
				dir := filepath.Join(testenv.Scratch(t), "restored")
				into := f.into(t, dir, "LATEST")
				for range 2 { // the second run meets what the first one left
					s.fails(nil, 1, []string{"cannot unpack " + object + " of backup " + f.Backup, "unfinished restore", "begins anew"},
						into...)
					if _, err := os.Lstat(filepath.Join(dir, "global", "pg_control")); !errors.Is(err, fs.ErrNotExist) {
						t.Fatalf("a failed restore can be started: global/pg_control: %v", err)
					}
				}
				if err := os.WriteFile(name, intact, 0o644); err != nil {
					t.Fatal(err)
				}
				s.must(nil, into...)
				f.checkRestored(t, dir)
				s.fails(nil, 1, []string{"not empty"}, into...) // complete: nothing to begin anew
				f.checkRestored(t, dir)
			})
		}
	}
}

// segment fetches a WAL segment of a fixture into a file of the same name.
func (f *fixture) segment(t *testing.T, s *site, name string) string {
	t.Helper()
	file := filepath.Join(testenv.Scratch(t), name)
	s.must(nil, "wal-fetch", name, file)
	if info, err := os.Stat(file); err != nil || info.Size() != 1<<20 {
		t.Fatalf("wal-fetch %s: %v, %v", name, info, err)
	}
	return file
}

func TestAnArchiveOfWALGIsAdoptedByItsOwnClusterOnly(t *testing.T) {
	t.Parallel()
	f, foreign := readFixture(t, "full-lz4"), readFixture(t, "timeline-zstd")
	identity := "walden_identity.json"

	t.Run("another cluster is refused", func(t *testing.T) {
		t.Parallel()
		s, theirs := f.site(t), foreign.site(t)
		before := hashes(t, s.archive)
		for _, segment := range []string{"00000002000000000000000C", "00000001000000000000000B"} { // a free name and a taken one
			s.fails(nil, 1, []string{"belongs to another cluster", f.systemIdentifier(t), foreign.systemIdentifier(t), f.Backup, "hint: "},
				"wal-push", foreign.segment(t, theirs, segment))
		}
		sameHashes(t, "the archive after refusals", hashes(t, s.archive), before)
	})

	t.Run("a segment that is there already is confirmed", func(t *testing.T) {
		t.Parallel()
		s := f.site(t)
		before := hashes(t, s.archive)
		r := s.must(nil, "wal-push", f.segment(t, s, "00000001000000000000000B"))
		r.expect(t, 0, "archived already")
		after := hashes(t, s.archive)
		if _, ok := after[identity]; !ok {
			t.Error("the archive has no identity after its cluster has archived to it")
		}
		delete(after, identity)
		sameHashes(t, "the archive", after, before)
		b, err := os.ReadFile(filepath.Join(s.archive, identity))
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Current struct {
				SystemIdentifier string `json:"system_identifier"`
				Major            int    `json:"pg_major"`
				SegmentSize      int    `json:"wal_segment_size"`
			} `json:"current"`
		}
		if err := json.Unmarshal(b, &doc); err != nil {
			t.Fatal(err)
		}
		if c := doc.Current; c.SystemIdentifier != f.systemIdentifier(t) || c.Major != 15 || c.SegmentSize != 1<<20 {
			t.Errorf("the identity is %s", b)
		}
	})

	t.Run("a segment that is not there is archived", func(t *testing.T) {
		t.Parallel()
		s := f.site(t)
		const segment = "00000001000000000000000B"
		file := f.segment(t, s, segment)
		if err := os.Remove(filepath.Join(s.archive, "wal_005", segment+".lz4")); err != nil {
			t.Fatal(err)
		}
		s.must(nil, "wal-push", file)
		again := f.segment(t, s, segment)
		sameHashes(t, "the archived segment", hashes(t, filepath.Dir(again)), hashes(t, filepath.Dir(file)))
	})

	t.Run("other content under a taken name is refused", func(t *testing.T) {
		t.Parallel()
		s := f.site(t)
		before := hashes(t, s.archive)
		file := f.segment(t, s, "00000001000000000000000B")
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)-1] ^= 1 // far behind the header
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s.fails(nil, 1, []string{"archived already with different content", f.systemIdentifier(t), "hint: "}, "wal-push", file)
		after := hashes(t, s.archive)
		delete(after, identity)
		sameHashes(t, "the archive after the refusal", after, before)
	})
}
