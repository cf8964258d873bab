package pgdata

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const versionDir = "PG_15_202209061"

// plant creates "dir/", "file" (whose content is its name) and "link -> target" below root.
func plant(t testing.TB, root string, items ...string) {
	t.Helper()
	for _, item := range items {
		name, target, link := strings.Cut(item, " -> ")
		path := filepath.Join(root, name)
		var err error
		switch {
		case link:
			if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
				err = os.Symlink(target, path)
			}
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o700)
		default:
			writeFile(t, path, []byte(name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// walked is what a walk saw, in the notation of plant.
type walked struct{ entries, links, skips []string }

func walk(t testing.TB, root string) (walked, error) {
	t.Helper()
	var got walked
	err := Walk(t.Context(), root, WalkOptions{
		TablespaceVersionDir: versionDir,
		OnLink:               func(name, target string) { got.links = append(got.links, name+" -> "+target) },
		OnSkip:               func(name, reason string) { got.skips = append(got.skips, name+": "+reason) },
	}, func(e Entry) error {
		switch e.Kind {
		case Dir:
			got.entries = append(got.entries, e.Name+"/")
		case File:
			got.entries = append(got.entries, e.Name)
		case Symlink:
			got.entries = append(got.entries, e.Name+" -> "+e.Link)
		}
		return nil
	})
	return got, err
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %s\nwant %s", what, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
}

func TestWalkVisitsWhatBelongsIntoABackup(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	plant(t, root,
		"PG_VERSION", "postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "server.key -> /etc/ssl/private/key",
		"logical", "corefile", "core.txt", "foreign/core", "foreign/log/x", "foreign/pg_wal/x", "foreign/postmaster.pid",
		"foreign/pgsql_tmp/x", "foreign/pg_control", "foreign/pg_internal.init", "foreign/16384_init", "foreign/16384", "foreign/t3_1",
		// Left out: files of the data directory itself.
		"postmaster.pid", "postmaster.opts", "postgresql.auto.conf.tmp", "current_logfiles", "current_logfiles.tmp",
		"backup_label", "backup_label.old", "tablespace_map", "tablespace_map.old", "backup_manifest", "recovery.conf",
		"recovery.signal", "recovery.done", "standby.signal", "core", "core.12345",
		// Left out: contents.
		"pg_wal/000000010000000000000001", "pg_wal/archive_status/000000010000000000000001.ready", "log/postgresql.log",
		"pg_log/x", "pg_dynshmem/x", "pg_notify/0000", "pg_replslot/slot/state", "pg_serial/0000", "pg_snapshots/x",
		"pg_stat_tmp/x", "pg_subtrans/0000", "base/pgsql_tmp/pgsql_tmp123.0",
		// Kept.
		"pg_stat/pgstat.stat", "pg_xact/0000", "pg_logical/replorigin_checkpoint", "pg_tblspc/",
		"global/1262", "global/pg_filenode.map", "global/pg_control", "global/pg_internal.init", "global/pg_internal.init.77",
		// A database: temporary relations, an unlogged relation (16384), one that is not (16385).
		"base/1/PG_VERSION", "base/1/pg_internal.init", "base/1/pg_internal.init.5", "base/1/pgsql_tmp5.1",
		"base/1/t3_16390", "base/1/t3_16390_fsm", "base/1/t3_x",
		"base/1/16384", "base/1/16384.1", "base/1/16384_fsm", "base/1/16384_vm", "base/1/16384_init", "base/1/16384_init.1",
		"base/1/163840", "base/1/16385", "base/1/16385_fsm", "base/pgsql_tmpfile", "base/5/16384",
	)
	got, err := walk(t, root)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "entries", got.entries, []string{
		"/", "PG_VERSION",
		"base/", "base/1/", "base/1/163840", "base/1/16384_init", "base/1/16384_init.1", "base/1/16385", "base/1/16385_fsm",
		"base/1/PG_VERSION", "base/1/t3_x", "base/5/", "base/5/16384", "base/pgsql_tmp/",
		"core.txt", "corefile",
		"foreign/", "foreign/16384", "foreign/16384_init", "foreign/core", "foreign/log/", "foreign/log/x", "foreign/pg_control",
		"foreign/pg_internal.init", "foreign/pg_wal/", "foreign/pg_wal/x", "foreign/pgsql_tmp/", "foreign/pgsql_tmp/x",
		"foreign/postmaster.pid", "foreign/t3_1",
		"global/", "global/1262", "global/pg_filenode.map",
		"log/", "logical", "pg_dynshmem/", "pg_hba.conf", "pg_log/", "pg_logical/", "pg_logical/replorigin_checkpoint",
		"pg_notify/", "pg_replslot/", "pg_serial/", "pg_snapshots/", "pg_stat/", "pg_stat/pgstat.stat", "pg_stat_tmp/",
		"pg_subtrans/", "pg_tblspc/", "pg_wal/", "pg_wal/archive_status/", "pg_xact/", "pg_xact/0000",
		"postgresql.auto.conf", "postgresql.conf", "server.key -> /etc/ssl/private/key",
	})
	equal(t, "links", got.links, nil)
	equal(t, "skips", got.skips, nil)
}

func TestNamesMeanWhatTheyAre(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	// Directories under names of excluded files, and the reverse, are foreign and kept.
	plant(t, root, "pg_tblspc/", "core/x", "recovery.conf/x", "log", "pg_log -> /dev/null")
	got, err := walk(t, root)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "entries", got.entries, []string{
		"/", "core/", "core/x", "log", "pg_log -> /dev/null", "pg_tblspc/", "recovery.conf/", "recovery.conf/x",
	})
}

func TestEntriesCarryWhatATarNeeds(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	plant(t, root, "pg_tblspc/", "PG_VERSION", "link -> PG_VERSION", "postmaster.pid -> nowhere")
	at := time.Date(2026, 1, 2, 3, 4, 5, 6789, time.UTC)
	for _, name := range []string{"PG_VERSION", "pg_tblspc"} {
		if err := os.Chmod(filepath.Join(root, name), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(filepath.Join(root, name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	entries := map[string]Entry{}
	if err := Walk(t.Context(), root, WalkOptions{}, func(e Entry) error {
		entries[e.Name] = e
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	uid, gid := os.Getuid(), os.Getgid()
	for _, want := range []Entry{
		{Name: "PG_VERSION", Path: root + "/PG_VERSION", Kind: File, Size: 10, Mode: 0o750, ModTime: at, UID: uid, GID: gid},
		{Name: "pg_tblspc", Path: root + "/pg_tblspc", Kind: Dir, Mode: 0o750, ModTime: at, UID: uid, GID: gid},
	} {
		got := entries[want.Name]
		got.ModTime = got.ModTime.UTC()
		if want.Kind == Dir { // whatever its file system makes it
			want.Size = got.Size
		}
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if e := entries["link"]; e.Kind != Symlink || e.Link != "PG_VERSION" {
		t.Errorf("link: %+v", e)
	}
	if e, ok := entries[""]; !ok || e.Path != root || e.Kind != Dir {
		t.Errorf("data directory: %+v", e)
	}
	if len(entries) != 4 {
		t.Errorf("%d entries", len(entries))
	}
}

func TestADataDirectoryBehindALinkIsResolved(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	plant(t, top, "data/pg_tblspc/", "data/PG_VERSION", "current -> data")
	got, err := walk(t, filepath.Join(top, "current"))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "entries", got.entries, []string{"/", "PG_VERSION", "pg_tblspc/"})
}

func TestExcludedDirectoriesBehindLinksBecomeDirectories(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	plant(t, top, "wal/000000010000000000000001", "wal/archive_status/", "logs/x", "tmp/pgsql_tmp1.1",
		"data/pg_tblspc/", "data/pg_wal -> ../wal", "data/log -> "+top+"/logs", "data/base/pgsql_tmp -> "+top+"/tmp",
		"data/pg_stat_tmp -> /nonexistent/ram disk")
	got, err := walk(t, filepath.Join(top, "data"))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "entries", got.entries, []string{
		"/", "base/", "base/pgsql_tmp/", "log/", "pg_stat_tmp/", "pg_tblspc/", "pg_wal/", "pg_wal/archive_status/",
	})
	equal(t, "links", got.links, []string{
		"base/pgsql_tmp -> " + top + "/tmp", "log -> " + top + "/logs",
		"pg_stat_tmp -> /nonexistent/ram disk", "pg_wal -> ../wal",
	})
}

func TestLinksThatWouldLoseDataAreErrors(t *testing.T) {
	t.Parallel()
	for _, link := range []string{"base", "base/5", "base/5/16384", "global", "pg_xact", "pg_multixact/members",
		"pg_tblspc/16400/" + versionDir + "/5"} {
		top := t.TempDir()
		plant(t, top, "data/pg_tblspc/", "elsewhere/", "data/"+link+" -> "+top+"/elsewhere")
		_, err := walk(t, filepath.Join(top, "data"))
		if err == nil || !strings.Contains(err.Error(), link) || hintOf(err) == "" {
			t.Errorf("%s: %v", link, err)
		}
	}
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func TestTablespacesAppearUnderTheirOIDs(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	plant(t, top,
		"ts/"+versionDir+"/5/16390", "ts/"+versionDir+"/5/16390_fsm", "ts/"+versionDir+"/pgsql_tmp/pgsql_tmp9.1",
		"ts/"+versionDir+"/pgsql_tmp8", "ts/"+versionDir+"/5/16391", "ts/"+versionDir+"/5/16391_init", "ts/"+versionDir+"/5/t4_16392",
		"ts/PG_14_202107181/5/16390", "ts/foreign",
		"other/"+versionDir+"/",
		"data/PG_VERSION", "data/pg_tblspc/16384 -> "+top+"/ts", "data/pg_tblspc/999 -> ../../other",
		"data/pg_tblspc/16401/"+versionDir+"/5/16402", "data/pg_tblspc/note", "data/pg_tblspc/shortcut -> /nowhere",
	)
	got, err := walk(t, filepath.Join(top, "data"))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "entries", got.entries, []string{
		"/", "PG_VERSION", "pg_tblspc/",
		"pg_tblspc/16384/" + versionDir + "/", "pg_tblspc/16384/" + versionDir + "/5/",
		"pg_tblspc/16384/" + versionDir + "/5/16390", "pg_tblspc/16384/" + versionDir + "/5/16390_fsm",
		"pg_tblspc/16384/" + versionDir + "/5/16391_init", "pg_tblspc/16384/" + versionDir + "/pgsql_tmp/",
		"pg_tblspc/16401/", "pg_tblspc/16401/" + versionDir + "/", "pg_tblspc/16401/" + versionDir + "/5/",
		"pg_tblspc/16401/" + versionDir + "/5/16402",
		"pg_tblspc/999/" + versionDir + "/",
		"pg_tblspc/note", "pg_tblspc/shortcut -> /nowhere",
	})
	equal(t, "links", got.links, []string{"pg_tblspc/16384 -> " + top + "/ts", "pg_tblspc/999 -> " + top + "/other"})

	spaces, err := Tablespaces(filepath.Join(top, "data"))
	want := []Tablespace{
		{OID: 999, Location: top + "/other"},
		{OID: 16384, Location: top + "/ts"},
		{OID: 16401, Location: top + "/data/pg_tblspc/16401", InPlace: true},
	}
	if err != nil || !slices.Equal(spaces, want) {
		t.Errorf("got %+v, %v; want %+v", spaces, err, want)
	}
	if name := TablespaceVersionDir(15, 202209061); name != versionDir {
		t.Errorf("version directory %s", name)
	}
}

func TestTablespacesWithinTheDataDirectoryOrEachOtherAreVisitedOnce(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	data := top + "/data"
	plant(t, top,
		"data/PG_VERSION", "data/inside/"+versionDir+"/5/16390", "data/inside/note",
		"outside/"+versionDir+"/nested/"+versionDir+"/5/16391", "outside/"+versionDir+"/5/16392",
		"data/pg_tblspc/101 -> "+data+"/inside", "data/pg_tblspc/102 -> "+top+"/outside",
		"data/pg_tblspc/103 -> "+top+"/outside/"+versionDir+"/nested",
	)
	got, err := walk(t, data)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "entries", got.entries, []string{
		"/", "PG_VERSION", "inside/", "inside/note", "pg_tblspc/",
		"pg_tblspc/101/" + versionDir + "/", "pg_tblspc/101/" + versionDir + "/5/", "pg_tblspc/101/" + versionDir + "/5/16390",
		"pg_tblspc/102/" + versionDir + "/", "pg_tblspc/102/" + versionDir + "/5/", "pg_tblspc/102/" + versionDir + "/5/16392",
		"pg_tblspc/102/" + versionDir + "/nested/",
		"pg_tblspc/103/" + versionDir + "/", "pg_tblspc/103/" + versionDir + "/5/", "pg_tblspc/103/" + versionDir + "/5/16391",
	})
	equal(t, "skips", got.skips, []string{
		"inside/" + versionDir + ": is visited as tablespace 101",
		"pg_tblspc/102/" + versionDir + "/nested/" + versionDir + ": is visited as tablespace 103",
	})
}

func TestImpossibleTablespacesAreErrors(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		items []string
		text  string
		hint  bool
	}{
		"dangling":       {[]string{"pg_tblspc/16384 -> TOP/gone"}, "pg_tblspc/16384", true},
		"not mounted":    {[]string{"../ts/", "pg_tblspc/16384 -> TOP/ts"}, "pg_tblspc/16384", true},
		"another's":      {[]string{"../ts/PG_14_202107181/", "pg_tblspc/16384 -> TOP/ts"}, versionDir, true},
		"a file":         {[]string{"../ts", "pg_tblspc/16384 -> TOP/ts"}, "not a directory", false},
		"version a link": {[]string{"../x/", "../ts/" + versionDir + " -> ../x", "pg_tblspc/16384 -> TOP/ts"}, versionDir, true},
		"same location": {[]string{"../ts/" + versionDir + "/", "pg_tblspc/1 -> TOP/ts", "pg_tblspc/2 -> TOP/ts"},
			"tablespaces 1 and 2 have the same location", false},
		"same through a link": {[]string{"../ts/" + versionDir + "/", "../alias -> ts", "pg_tblspc/1 -> TOP/ts", "pg_tblspc/2 -> ../../alias"},
			"tablespaces 1 and 2 have the same location", false},
	} {
		top := t.TempDir()
		plant(t, top, "data/pg_tblspc/")
		for _, item := range c.items {
			plant(t, top+"/data", strings.ReplaceAll(item, "TOP", top))
		}
		_, err := walk(t, top+"/data")
		if err == nil || !strings.Contains(err.Error(), c.text) || (hintOf(err) != "") != c.hint {
			t.Errorf("%s: %v (hint %q)", what, err, hintOf(err))
		}
	}
	top := t.TempDir()
	plant(t, top, versionDir+"/data/pg_tblspc/16384 -> "+top)
	if _, err := walk(t, top+"/"+versionDir+"/data"); err == nil || !strings.Contains(err.Error(), "lies within tablespace 16384") {
		t.Errorf("data directory within a tablespace: %v", err)
	}
	plant(t, top, "ts/"+versionDir+"/", "d2/pg_tblspc/16384 -> "+top+"/ts")
	if err := Walk(t.Context(), top+"/d2", WalkOptions{}, func(Entry) error { return nil }); err == nil {
		t.Error("no name of the version directory: no error")
	}
	if _, err := walk(t, top+"/nowhere"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no data directory: %v", err)
	}
}

func TestSocketsAndTheirLikeAreSkipped(t *testing.T) {
	t.Parallel()
	root, err := os.MkdirTemp("", "walk") // short, for the socket's sake
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	plant(t, root, "pg_tblspc/", "PG_VERSION", "lost+found/x", "foreign/lost+found/")
	listener, err := net.Listen("unix", filepath.Join(root, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := syscall.Mkfifo(filepath.Join(root, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := walk(t, root)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "entries", got.entries, []string{"/", "PG_VERSION", "foreign/", "foreign/lost+found/", "pg_tblspc/"})
	equal(t, "skips", got.skips, []string{".s.PGSQL.5432: socket", "lost+found: belongs to the file system", "pipe: named pipe"})
}

func TestWhatVanishesDuringTheWalkIsPassedOver(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	plant(t, top, "ts/"+versionDir+"/5/1", "data/base/1/", "data/base/1/10", "data/base/1/11", "data/base/2/10", "data/base/3/10",
		"data/base/4 -> x", "data/pg_tblspc/16384 -> "+top+"/ts", "data/pg_tblspc/note", "data/pg_xact/0000")
	var names []string
	if err := Walk(t.Context(), top+"/data", WalkOptions{TablespaceVersionDir: versionDir}, func(e Entry) error {
		names = append(names, e.Name)
		if e.Name == "base/1" { // a file, a directory, a link, a tablespace
			for _, gone := range []string{"data/base/1/11", "data/base/2", "data/base/4", "data/pg_tblspc/16384", "ts"} {
				if err := os.RemoveAll(filepath.Join(top, gone)); err != nil {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	equal(t, "names", names, []string{
		"", "base", "base/1", "base/1/10", "base/3", "base/3/10", "pg_tblspc", "pg_tblspc/note", "pg_xact", "pg_xact/0000",
	})
}

func TestWalkEndsWithTheVisitorsErrorAndTheContext(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	plant(t, root, "pg_tblspc/", "a", "b", "c")
	enough := errors.New("enough")
	for _, at := range []string{"", "b"} {
		err := Walk(t.Context(), root, WalkOptions{}, func(e Entry) error {
			if e.Name == at {
				return enough
			}
			return nil
		})
		if err != enough {
			t.Errorf("at %q: %v", at, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	visits := 0
	err := Walk(ctx, root, WalkOptions{}, func(Entry) error {
		visits++
		cancel(enough)
		return nil
	})
	if err != enough || visits != 1 {
		t.Errorf("after %d visits: %v", visits, err)
	}
}

func TestWhatCannotBeReadIsAnErrorWithItsPath(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	plant(t, root, "pg_tblspc/", "base/5/16384")
	if err := os.Chmod(filepath.Join(root, "base/5"), 0); err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() { // a thread of its own that loses root's powers over files, and is not used again
		runtime.LockOSThread()
		if os.Getuid() == 0 {
			if err := os.Chown(root, 65534, -1); err != nil {
				result <- err
				return
			}
			for dir := root; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
				if err := os.Chmod(dir, 0o755); err != nil {
					result <- err
					return
				}
			}
			for _, dir := range []string{"pg_tblspc", "base"} {
				if err := os.Chmod(filepath.Join(root, dir), 0o755); err != nil {
					result <- err
					return
				}
			}
			if _, err := unix.SetfsuidRetUid(65534); err != nil {
				result <- err
				return
			}
		}
		result <- Walk(context.Background(), root, WalkOptions{}, func(Entry) error { return nil })
	}()
	err := <-result
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), filepath.Join(root, "base/5")) || hintOf(err) == "" {
		t.Errorf("got %v", err)
	}
	if err := os.Chmod(filepath.Join(root, "base/5"), 0o700); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkWalk(b *testing.B) {
	root := b.TempDir()
	plant(b, root, "pg_tblspc/")
	for i := range 20_000 {
		writeFile(b, fmt.Sprintf("%s/base/5/%d", root, 16384+i), nil)
	}
	b.ReportAllocs()
	for b.Loop() {
		entries := 0
		if err := Walk(b.Context(), root, WalkOptions{}, func(Entry) error { entries++; return nil }); err != nil || entries != 20_004 {
			b.Fatal(entries, err)
		}
	}
}
