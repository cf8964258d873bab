package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// contentsOf describes what lies below a directory: by name the type, the mode, and of files the content, of links the target.
// Names for which skip answers true are left out, with what lies below them.
func contentsOf(t *testing.T, dir string, skip func(name string) bool) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(path, dir), "/")
		if skip != nil && skip(name) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := ""
		switch info.Mode().Type() {
		case 0:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = string(b)
		case fs.ModeSymlink:
			if content, err = os.Readlink(path); err != nil {
				return err
			}
		}
		owner := info.Sys().(*syscall.Stat_t)
		found[name] = fmt.Sprintf("%s %d:%d %s", info.Mode(), owner.Uid, owner.Gid, content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// sameTree compares two descriptions and names what differs.
func sameTree(t *testing.T, got, want map[string]string) {
	t.Helper()
	short := func(s string) string { return s[:min(len(s), 60)] }
	for name, w := range want {
		if g, ok := got[name]; !ok {
			t.Errorf("%q is missing", name)
		} else if g != w {
			t.Errorf("%q is %d bytes, %q…; it was %d bytes, %q…", name, len(g), short(g), len(w), short(w))
		}
	}
	for name, g := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%q was not there before: %q…", name, short(g))
		}
	}
}

// unrestored are the names below a running data directory that no backup holds: what the server makes anew (excludeFiles
// and excludeDirContents in PostgreSQL's basebackup.c), and what differs by its nature (the control file, the links).
var unrestored = regexp.MustCompile(`^(postmaster\.(pid|opts)|current_logfiles|backup_label|tablespace_map|recovery\.signal)$` +
	`|^(pg_wal|pg_replslot|pg_dynshmem|pg_notify|pg_serial|pg_snapshots|pg_stat_tmp|pg_subtrans|log)/` +
	`|^pg_tblspc/|^global/pg_control$|/pg_internal\.init`)

// checkMapping compares what tells PostgreSQL where the tablespaces are; the lines have no order before version 15.
func checkMapping(t *testing.T, dir string, oids, places []string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "tablespace_map"))
	got := strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
	var want []string
	for i := range oids {
		want = append(want, oids[i]+" "+places[i])
	}
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("tablespace_map says %q (%v)", content, err)
	}
}

func TestARestoreIsRefusedBeforeItWritesAnythingAndOtherwiseEqualsItsSource(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving("autovacuum=off")})
	base := testenv.Scratch(t)
	spaces := []string{filepath.Join(base, "one=1"), filepath.Join(base, "two")}
	var oids []string
	for i, dir := range spaces {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		own(t, dir)
		p.Exec(t, fmt.Sprintf("CREATE TABLESPACE space%d LOCATION '%s'", i, dir),
			fmt.Sprintf("CREATE TABLE table%d TABLESPACE space%d AS SELECT g AS id, md5(g::text) AS note FROM generate_series(1, 2000) AS g", i, i))
		oids = append(oids, p.Query(t, fmt.Sprintf("SELECT oid FROM pg_tablespace WHERE spcname = 'space%d'", i)))
	}
	// A server at rest: no hint bits are left to set, so that its files stay as they are copied.
	p.Exec(t, "VACUUM FREEZE")
	p.ExecIn(t, "template1", "VACUUM FREEZE")
	s.must(p, "backup-push", p.DataDir)
	name := s.latest()
	source := contentsOf(t, p.DataDir, unrestored.MatchString)
	sourceSpaces := []map[string]string{contentsOf(t, spaces[0], nil), contentsOf(t, spaces[1], nil)}

	// moved makes the arguments that move both tablespaces into a directory.
	moved := func(dir string) []string {
		return []string{
			"-T", strings.ReplaceAll(spaces[0], "=", `\=`) + "=" + filepath.Join(dir, "new one"),
			"--tablespace-mapping", spaces[1] + "=" + strings.ReplaceAll(filepath.Join(dir, "new=two"), "=", `\=`),
		}
	}
	fetch := func(dir, which string, more ...string) []string {
		return append([]string{"backup-fetch", dir, which}, more...)
	}
	refused := func(what string, args func(t *testing.T, dir string) (more []string, texts []string)) {
		t.Run("refused: "+what, func(t *testing.T) {
			scratch := testenv.Scratch(t)
			dir := filepath.Join(scratch, "data")
			more, texts := args(t, dir)
			before := contentsOf(t, scratch, nil)
			s.fails(nil, 1, texts, fetch(dir, name, more...)...)
			sameTree(t, contentsOf(t, scratch, nil), before)
		})
	}
	put := func(t *testing.T, file string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	refused("a directory that is not empty", func(t *testing.T, dir string) ([]string, []string) {
		put(t, filepath.Join(dir, "file"))
		return moved(dir + "-spaces"), []string{"is not empty", `"file"`, "hint: walden never overwrites"}
	})
	refused("a file in place of the directory", func(t *testing.T, dir string) ([]string, []string) {
		put(t, dir)
		return moved(dir + "-spaces"), []string{"cannot restore into " + dir}
	})
	refused("a tablespace that is still in use at its place", func(*testing.T, string) ([]string, []string) {
		return nil, []string{"the directory for a tablespace", "is not empty", spaces[0]}
	})
	refused("a place for a tablespace that is not empty", func(t *testing.T, dir string) ([]string, []string) {
		put(t, filepath.Join(dir+"-spaces", "new=two", "file"))
		return moved(dir + "-spaces"), []string{"the directory for a tablespace", "is not empty", "new=two"}
	})
	refused("a pg_wal that is not empty", func(t *testing.T, dir string) ([]string, []string) {
		put(t, filepath.Join(dir+"-wal", "file"))
		return append(moved(dir+"-spaces"), "--waldir", dir+"-wal"), []string{"pg_wal", "is not empty"}
	})
	refused("a tablespace in the data directory", func(_ *testing.T, dir string) ([]string, []string) {
		return moved(filepath.Join(dir, "inside")), []string{"would overlap", "hint: move tablespaces"}
	})
	refused("two tablespaces at one place", func(_ *testing.T, dir string) ([]string, []string) {
		return []string{"-T", strings.ReplaceAll(spaces[0], "=", `\=`) + "=" + dir + "-x", "-T", spaces[1] + "=" + dir + "-x"},
			[]string{"would overlap"}
	})
	refused("a pg_wal in a tablespace", func(_ *testing.T, dir string) ([]string, []string) {
		return append(moved(dir+"-spaces"), "--waldir", dir+"-spaces/new one/wal"), []string{"would overlap"}
	})
	refused("a parent that cannot be written", func(t *testing.T, dir string) ([]string, []string) {
		if err := os.Chmod(filepath.Dir(dir), 0o500); err != nil {
			t.Fatal(err)
		}
		return moved(testenv.Scratch(t)), []string{"no permission to write to " + filepath.Dir(dir)}
	})
	refused("a mapping of a tablespace that is not there", func(_ *testing.T, dir string) ([]string, []string) {
		return []string{"-T", "/nowhere=" + dir + "-x"}, []string{"has none there", spaces[0], spaces[1]}
	})
	refused("a mapping that is none", func(_ *testing.T, dir string) ([]string, []string) {
		return []string{"-T", spaces[0] + "=" + dir + "-x"}, []string{"it must be OLD=NEW with two absolute paths"} // "=" in it
	})
	refused("a specification that says nothing of a tablespace", func(t *testing.T, dir string) ([]string, []string) {
		spec := filepath.Join(testenv.Scratch(t), "spec.json")
		if err := os.WriteFile(spec, []byte(`{"base_prefix":"/x","tablespaces":[]}`), 0o644); err != nil {
			t.Fatal(err)
		}
		return []string{"--restore-spec", spec}, []string{"it says nothing of tablespace " + oids[0]}
	})
	refused("a specification that is not JSON", func(t *testing.T, dir string) ([]string, []string) {
		spec := filepath.Join(testenv.Scratch(t), "spec.json")
		if err := os.WriteFile(spec, []byte(`{"base`), 0o644); err != nil {
			t.Fatal(err)
		}
		return []string{"--restore-spec", spec}, []string{"cannot use the restore specification " + spec}
	})
	t.Run("refused: too little room", func(t *testing.T) {
		small, ok := smallDisk(t, 2)
		if !ok {
			return
		}
		s.fails(nil, 1, []string{"MiB free, the backup needs", "hint: nothing was written"},
			fetch(filepath.Join(small, "data"), name, moved(testenv.Scratch(t))...)...)
		if left := contentsOf(t, small, nil); len(left) != 1 {
			t.Errorf("written all the same: %d files", len(left)-1)
		}
	})
	t.Run("refused: backups that are not there", func(t *testing.T) {
		dir := filepath.Join(testenv.Scratch(t), "data")
		s.fails(nil, 1, []string{"base_0000000100000000000000FF", "hint: `walden backup-list`"}, fetch(dir, "base_0000000100000000000000FF")...)
		s.fails(nil, 1, []string{"not a backup's name", "hint: `walden backup-list`"}, fetch(dir, "../"+name)...)
		newSite(t).fails(nil, 1, []string{"cannot find LATEST", "the archive holds no backup"}, fetch(dir, "LATEST")...)
		if _, err := os.Lstat(dir); err == nil {
			t.Error("the directory was made all the same")
		}
	})

	t.Run("beside its running source, moved by mappings", func(t *testing.T) {
		scratch := testenv.Scratch(t)
		dir, wal := filepath.Join(scratch, "data"), filepath.Join(scratch, "wal")
		r := s.must(nil, fetch(dir, "LATEST", append(moved(scratch), "--waldir", wal)...)...)
		for _, text := range []string{
			"Restored " + name + " into " + dir, "restore_command = '", `wal-fetch "%f" "%p"'`, "--config " + s.config,
			"touch " + dir + "/recovery.signal", "pg_ctl -D " + dir + " start", filepath.Join(scratch, "new one") + " (was " + spaces[0] + ")",
		} {
			if !strings.Contains(r.stderr, text) {
				t.Errorf("the next steps do not say %q:\n%s", text, r.stderr)
			}
		}
		if r.stdout != "" {
			t.Errorf("on standard output: %s", r.stdout)
		}
		sameTree(t, contentsOf(t, dir, func(name string) bool {
			return unrestored.MatchString(name) || name == "pg_wal" // here a link
		}), without(source, "pg_wal"))
		news := []string{filepath.Join(scratch, "new one"), filepath.Join(scratch, "new=two")}
		for i, place := range news {
			sameTree(t, contentsOf(t, place, nil), sourceSpaces[i])
			if link, err := os.Readlink(filepath.Join(dir, "pg_tblspc", oids[i])); err != nil || link != place {
				t.Errorf("the link of tablespace %s leads to %q (%v), not to %s", oids[i], link, err, place)
			}
		}
		if link, err := os.Readlink(filepath.Join(dir, "pg_wal")); err != nil || link != wal {
			t.Errorf("pg_wal leads to %q (%v)", link, err)
		}
		checkMapping(t, dir, oids, news)
		touch(t, filepath.Join(dir, "recovery.signal"))
		restored := testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Settings: s.restoreSettings()})
		restored.Exec(t, "DELETE FROM table0", "DROP TABLE table1", "CHECKPOINT")
		if got := p.Query(t, "SELECT (SELECT count(*) FROM table0), (SELECT count(*) FROM table1)"); got != "2000|2000" {
			t.Errorf("in the source there are now %s rows", got)
		}
		for i, place := range spaces {
			sameTree(t, contentsOf(t, place, nil), sourceSpaces[i])
		}
	})

	t.Run("moved by a specification", func(t *testing.T) {
		scratch := testenv.Scratch(t)
		dir, spec := filepath.Join(scratch, "data"), filepath.Join(scratch, "spec.json")
		news := []string{filepath.Join(scratch, "a"), filepath.Join(scratch, "deep", "b")}
		raw, err := json.Marshal(map[string]any{
			"base_prefix": dir, "tablespaces": oids,
			oids[0]: map[string]string{"loc": news[0], "link": "pg_tblspc/" + oids[0]},
			oids[1]: map[string]string{"loc": news[1], "link": "pg_tblspc/" + oids[1]},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(spec, raw, 0o644); err != nil {
			t.Fatal(err)
		}
		s.must(nil, fetch(dir, name, "--restore-spec", spec)...)
		for i, place := range news {
			sameTree(t, contentsOf(t, place, nil), sourceSpaces[i])
		}
		checkMapping(t, dir, oids, news)
	})

	t.Run("cut off, it cannot be started, and the same command completes it", func(t *testing.T) {
		scratch := testenv.Scratch(t)
		dir := filepath.Join(scratch, "data")
		args := fetch(dir, name, moved(scratch)...)
		r := s.start(nil, append(args, slowly)...)
		r.until(t, "it wrote any file", func() bool {
			_, err := os.Lstat(filepath.Join(dir, "base"))
			return err == nil
		})
		r.signal(t, syscall.SIGKILL)
		r.wait(t)
		if _, err := os.Lstat(filepath.Join(dir, "global/pg_control")); err == nil {
			t.Fatal("there is a control file")
		}
		touch(t, filepath.Join(dir, "PG_VERSION")) // so that it is the control file that is missed
		if err := os.WriteFile(filepath.Join(dir, "PG_VERSION"), fmt.Appendln(nil, p.Major), 0o600); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, "postgresql.conf"))
		if err := os.WriteFile(filepath.Join(dir, "postgresql.conf"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := testenv.AttachPostgres(t, dir, testenv.PostgresOptions{}).TryStart(); err == nil || !strings.Contains(err.Error(), "pg_control") {
			t.Errorf("PostgreSQL starts it: %v", err)
		}
		again := s.must(nil, args...)
		again.expect(t, 0, "removing an unfinished restore")
		sameTree(t, contentsOf(t, dir, unrestored.MatchString), source)
		sameTree(t, contentsOf(t, filepath.Join(scratch, "new one"), nil), sourceSpaces[0])
		s.fails(nil, 1, []string{"is not empty"}, args...)
	})

	t.Run("interrupted, it says what lies there", func(t *testing.T) {
		scratch := testenv.Scratch(t)
		dir := filepath.Join(scratch, "data")
		r := s.start(nil, fetch(dir, name, append(moved(scratch), slowly)...)...)
		r.until(t, "it wrote any file", func() bool {
			_, err := os.Lstat(filepath.Join(dir, "base"))
			return err == nil
		})
		r.signal(t, syscall.SIGTERM)
		r.wait(t).expect(t, 1, "hint: "+dir+" holds an unfinished restore without global/pg_control")
	})

	t.Run("broken and foreign sentinels are listed and passed over", func(t *testing.T) {
		put := func(name, content string) {
			t.Helper()
			file := filepath.Join(s.archive, "basebackups_005", name+"_backup_stop_sentinel.json")
			if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
			late := time.Now().Add(time.Hour)
			if err := os.Chtimes(file, late, late); err != nil {
				t.Fatal(err)
			}
		}
		put("base_0000000100000000000000F0", `{"LSN": 1, "PgVer`)
		put("stream_20260101T000000Z", `{"Version": 1}`)
		statuses := map[string]string{}
		for _, l := range s.listings() {
			statuses[l.Name] = l.Status
		}
		if len(statuses) != 3 || statuses[name] != "" || !strings.Contains(statuses["base_0000000100000000000000F0"], "its sentinel is not valid") ||
			!strings.Contains(statuses["stream_20260101T000000Z"], "its name is not that of a backup") {
			t.Errorf("listed as %v", statuses)
		}
		for _, args := range [][]string{{}, {"--pretty"}, {"--detail"}, {"--pretty", "--detail"}} {
			out := s.must(nil, append([]string{"backup-list"}, args...)...).stdout
			if !strings.Contains(strings.ToLower(out), "status") || strings.Count(out, "unusable:") != 2 || !strings.Contains(out, name) {
				t.Errorf("backup-list %v:\n%s", args, out)
			}
		}
		scratch := testenv.Scratch(t)
		dir := filepath.Join(scratch, "data")
		s.fails(nil, 1, []string{"its sentinel is not valid"}, fetch(dir, "base_0000000100000000000000F0")...)
		s.must(nil, fetch(dir, "LATEST", moved(scratch)...)...).
			expect(t, 0, "level=WARN", "LATEST passes over", "base_0000000100000000000000F0", "Restored "+name)
	})
}

// without returns a description without one name.
func without(tree map[string]string, name string) map[string]string {
	rest := map[string]string{}
	for n, v := range tree {
		if n != name {
			rest[n] = v
		}
	}
	return rest
}

func TestARestoreKeepsTheModesOfAClusterThatItsGroupMayRead(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := testenv.StartPostgres(t, testenv.PostgresOptions{
		WALSegmentSize: 1, InitArgs: []string{"--allow-group-access"}, Settings: s.archiving("autovacuum=off"),
	})
	p.Exec(t, "CREATE TABLE t AS SELECT 1 AS i")
	s.must(p, "backup-push", p.DataDir)
	modes := func(dir string) string {
		var b bytes.Buffer
		tr := contentsOf(t, dir, unrestored.MatchString)
		var names []string
		for name := range tr {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			mode, _, _ := strings.Cut(tr[name], " ")
			fmt.Fprintln(&b, mode, name)
		}
		return b.String()
	}
	want := modes(p.DataDir)
	if !strings.Contains(want, "drwxr-x--- base\n") || !strings.Contains(want, "-rw-r----- PG_VERSION\n") {
		t.Fatalf("the cluster is not one that its group may read:\n%s", want)
	}
	// The mode of a directory that was there before does not matter.
	dir := filepath.Join(testenv.Scratch(t), "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	own(t, dir)
	s.must(nil, "backup-fetch", dir, "LATEST")
	if got := modes(dir); got != want {
		t.Errorf("restored:\n%s\nwas:\n%s", got, want)
	}
}
