package cli

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// As WAL-G prints it, character by character (WAL-G format, "st ls").
func TestListingsOfObjectsLookAsOtherToolsExpectThem(t *testing.T) {
	t.Parallel()
	const sentinel = "base_000000010000000000000002_backup_stop_sentinel.json"
	for title, c := range map[string]struct {
		list  []storage.Object
		files bool
		want  string
	}{
		"nothing": {want: "type size last modified name\n"},
		"below a folder of files": {[]storage.Object{
			{Key: "files_metadata.json", Size: 168451, Modified: at("2026-11-22T07:00:27.212136918Z")},
			{Key: "metadata.json", Size: 400, Modified: at("2026-11-22T08:00:27.208136918+01:00")},
			{Key: "tar_partitions/backup_label.tar.lz4", Size: 419, Modified: at("2026-11-22T07:00:27.184136918Z")},
			{Key: "tar_partitions/part_001.tar.lz4", Size: 4388252, Modified: at("2026-11-22T07:00:27.18Z")},
		}, true, "" +
			"type size    last modified                           name\n" +
			"obj  168451  2026-11-22 07:00:27.212136918 +0000 UTC files_metadata.json                   \n" +
			"obj  400     2026-11-22 07:00:27.208136918 +0000 UTC metadata.json                         \n" +
			"obj  419     2026-11-22 07:00:27.184136918 +0000 UTC /tar_partitions/backup_label.tar.lz4  \n" +
			"obj  4388252 2026-11-22 07:00:27.18 +0000 UTC        /tar_partitions/part_001.tar.lz4      \n"},
		"folders": {[]storage.Object{
			{Key: "base_000000010000000000000002/"}, {Key: sentinel, Size: 500, Modified: at("2026-11-22T07:00:27Z")},
		}, true, "" +
			"type size last modified                 name\n" +
			"dir  0    0001-01-01 00:00:00 +0000 UTC /base_000000010000000000000002/                          \n" +
			"obj  500  2026-11-22 07:00:27 +0000 UTC " + sentinel + "  \n"},
		"in a bucket": {[]storage.Object{{Key: "wal_005/"}, {Key: "a\x1b[2J", Size: 1, Modified: at("2026-11-22T07:00:27Z")}}, false, "" +
			"type size last modified                 name\n" +
			"dir  0    0001-01-01 00:00:00 +0000 UTC wal_005/  \n" +
			"obj  1    2026-11-22 07:00:27 +0000 UTC a\\x1b[2J  \n"},
	} {
		var out bytes.Buffer
		if err := printObjects(&out, c.list, c.files); err != nil || out.String() != c.want {
			t.Errorf("%s (%v):\n%s\nwanted:\n%s", title, err, strings.ReplaceAll(out.String(), " ", "·"), strings.ReplaceAll(c.want, " ", "·"))
		}
	}
}

// tool is an archive of files for the commands of st, with a second one.
type tool struct {
	t               *testing.T
	dir             string
	archive, second string
	config          string
}

func newTool(t *testing.T, objects ...string) *tool {
	t.Helper()
	dir := t.TempDir()
	x := &tool{t, dir, filepath.Join(dir, "archive"), filepath.Join(dir, "second"), filepath.Join(dir, "walden.yaml")}
	text := fmt.Sprintf("WALG_FILE_PREFIX: %s\nWALG_FAILOVER_STORAGES:\n  second: {WALG_FILE_PREFIX: %s}\n", x.archive, x.second)
	for _, err := range []error{os.Mkdir(x.archive, 0o755), os.Mkdir(x.second, 0o755), os.WriteFile(x.config, []byte(text), 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range objects {
		x.put(x.archive, key, "content of "+key)
	}
	return x
}

func (x *tool) put(dir, key, content string) {
	x.t.Helper()
	name := filepath.Join(dir, key)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		x.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		x.t.Fatal(err)
	}
}

// run runs a command with the archive's configuration.
func (x *tool) run(stdin string, args ...string) (code int, stdout, stderr string) {
	x.t.Helper()
	var out, errs bytes.Buffer
	code = Main(Process{
		Args: append([]string{"--config", x.config}, args...), Program: "walden", Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs, Version: "1.2.3",
	})
	return code, out.String(), errs.String()
}

func (x *tool) must(args ...string) string {
	x.t.Helper()
	code, out, errs := x.run("", args...)
	if code != 0 {
		x.t.Fatalf("%v: exit code %d\n%s", args, code, errs)
	}
	return out
}

func (x *tool) refuses(says string, args ...string) {
	x.t.Helper()
	code, _, errs := x.run("", args...)
	if code != 1 || !strings.Contains(errs, says) || !strings.Contains(errs, "hint: ") {
		x.t.Errorf("%v: exit code %d, want 1, %q and a hint\n%s", args, code, says, errs)
	}
}

func (x *tool) holds(dir string) []string {
	x.t.Helper()
	return slices.Sorted(maps.Keys(readNames(x.t, dir)))
}

func TestObjectsAreStoredAndFetched(t *testing.T) {
	t.Parallel()
	x := newTool(t)
	local, back := filepath.Join(x.dir, "local"), filepath.Join(x.dir, "back")
	content := strings.Repeat("content\n", 1000)
	x.put(x.dir, "local", content)
	x.must("st", "put", local, "notes/a")
	x.must("st", "put", local, "/notes/plain", "--no-compress", "--no-encrypt")
	if got := x.holds(x.archive); !slices.Equal(got, []string{"notes/a.lz4", "notes/plain"}) {
		t.Fatalf("stored: %v", got)
	}
	x.refuses("already exists", "st", "put", local, "notes/a")
	x.must("st", "put", "-f", local, "notes/a")
	if code, _, errs := x.run("from a pipe", "st", "put", "-s", "notes/b"); code != 0 {
		t.Fatal(errs)
	}
	if got := x.must("st", "cat", "--decompress", "notes/b.lz4"); got != "from a pipe" {
		t.Errorf("cat: %q", got)
	}
	if got := x.must("st", "cat", "notes/plain"); got != content {
		t.Errorf("cat: %.40q", got)
	}
	if got := x.must("st", "cat", "notes/b.lz4"); got == "from a pipe" {
		t.Error("cat decompresses without being asked")
	}
	for _, dest := range []string{back, x.dir} {
		x.must("st", "get", "notes/a.lz4", dest)
		if dest == x.dir {
			back = filepath.Join(x.dir, "a")
		}
		if got, err := os.ReadFile(back); err != nil || string(got) != content {
			t.Errorf("got %.40q, %v", got, err)
		}
	}
	x.must("st", "get", "notes/a.lz4", back, "--no-decompress")
	if !sameFile(t, back, filepath.Join(x.archive, "notes/a.lz4")) {
		t.Error("--no-decompress has changed it")
	}
	if got := x.must("st", "stat", "notes/plain"); !strings.HasPrefix(got, "type size last modified") || !strings.Contains(got, "obj  8000 ") ||
		!strings.HasSuffix(got, " notes/plain  \n") {
		t.Errorf("stat: %s", got)
	}
	if got := x.must("st", "ls"); !strings.Contains(got, "dir  0    0001-01-01 00:00:00 +0000 UTC /notes/  \n") {
		t.Errorf("ls: %s", got)
	}
	if got := x.must("st", "ls", "notes/", "-r"); strings.Count(got, "obj ") != 3 || strings.Contains(got, "notes") {
		t.Errorf("ls -r: %s", got)
	}
	if got := x.must("st", "ls", "nothing"); got != "type size last modified name\n" {
		t.Errorf("ls of nothing: %q", got)
	}
}

func TestFetchingLeavesNothingHalfDone(t *testing.T) {
	t.Parallel()
	x := newTool(t)
	x.put(x.archive, "damaged.lz4", "no lz4")
	x.put(x.dir, "there", "as it was")
	there := filepath.Join(x.dir, "there")
	before := x.holds(x.dir)
	x.refuses("damaged", "st", "get", "damaged.lz4", there)
	x.refuses("absent", "st", "get", "absent", there)
	if err := os.MkdirAll(filepath.Join(x.dir, "dir", "damaged"), 0o755); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := x.run("", "st", "get", "damaged.lz4", filepath.Join(x.dir, "dir")); code != 1 || !strings.Contains(errs, "is a directory") {
		t.Errorf("%d, %s", code, errs)
	}
	if got, err := os.ReadFile(there); err != nil || string(got) != "as it was" {
		t.Errorf("%q, %v", got, err)
	}
	if after := x.holds(x.dir); !slices.Equal(before, after) {
		t.Errorf("left are %v, there were %v", after, before)
	}
}

func TestWhatStCannotDoIsRefusedWithAdvice(t *testing.T) {
	t.Parallel()
	x := newTool(t, "a")
	for says, args := range map[string][]string{
		"current versions of objects only":      {"st", "ls", "--all-versions"},
		"cannot use --all-versions":             {"st", "rm", "a", "--all-versions"},
		"cannot use --version-id":               {"st", "rm", "a", "--version-id", "1"},
		"cannot use --glob":                     {"st", "ls", "-g"},
		`the storage "third": WALG_FAILOVER`:    {"st", "ls", "-t", "third"},
		"cannot use all storages at once":       {"st", "ls", "-t", "all"},
		`as the name of an object`:              {"st", "cat", "../secret"},
		`as the name of a folder`:               {"st", "ls", "a/../.."},
		`".."`:                                  {"st", "rm", "a/.."},
		"path element":                          {"st", "put", x.config, "../a"},
		"--source is needed":                    {"st", "transfer", "pg-wals"},
		"source and target are both":            {"st", "transfer", "pg-wals", "-s", "default"},
		"a number is out of range":              {"st", "transfer", "pg-wals", "-s", "second", "-c", "0"},
		"cannot move everything":                {"st", "transfer", "files", "/", "-s", "second"},
		"both --from and --to are needed":       {"st", "copy", "--from", x.config},
		"name the same place":                   {"copy", "--from", x.config, "--to", x.config},
		"cannot use a flag for WALG_S3_PREFIX":  {"copy", "--from", x.config, "--to", x.config, "--walg-s3-prefix", "s3://a/b"},
		"it needs one of the commands read and": {"st", "check"},
	} {
		x.refuses(says, args...)
	}
	if got := x.holds(x.archive); !slices.Equal(got, []string{"a"}) {
		t.Errorf("left are %v", got)
	}
}

func TestRemovingDoesNotTakeAnArchive(t *testing.T) {
	t.Parallel()
	const backup = "basebackups_005/base_000000010000000000000002"
	objects := []string{
		backup + "/metadata.json", backup + "_backup_stop_sentinel.json", "wal_005/000000010000000000000002.lz4", "walden_identity.json",
		"walden_fingerprints/000000010000000000000002.json", "other/wal_005/000000010000000000000002.lz4", "notes/a", "notes-b",
	}
	x := newTool(t, objects...)
	for name, says := range map[string]string{
		"": "that is everything", "/": "that is everything", "basebackups_005": "it holds all of basebackups_005", "wal_005/": "it holds all of wal_005",
		"other": "it holds all of other/wal_005", "other/wal_005": "it holds all of other/wal_005", "walden_identity.json": "which cluster",
		backup: "is listed, and would have no contents", backup + "/": "is listed", "walden_fingerprints": "it holds all of walden_fingerprints",
	} {
		x.refuses(says, "st", "rm", name)
	}
	if got := x.holds(x.archive); len(got) != len(objects) {
		t.Fatalf("left are %v", got)
	}
	x.refuses("cannot find", "st", "rm", "note")
	x.must("st", "rm", "notes")
	x.must("st", "rm", "wal_005/000000010000000000000002.lz4")
	x.must("st", "rm", backup+"_backup_stop_sentinel.json")
	x.must("st", "rm", backup)
	x.must("st", "rm", "walden_fingerprints", "--force")
	if got := x.holds(x.archive); !slices.Equal(got, []string{"notes-b", "other/wal_005/000000010000000000000002.lz4", "walden_identity.json"}) {
		t.Errorf("left are %v", got)
	}
	x.must("st", "rm", "", "--force")
	if got := x.holds(x.archive); len(got) != 0 {
		t.Errorf("left are %v", got)
	}
}

func TestStoragesAreChecked(t *testing.T) {
	t.Parallel()
	x := newTool(t, "a", "b/c")
	for _, args := range [][]string{{"read"}, {"read", "a", "b/c"}, {"write"}, {"write", "-t", "second"}} {
		_, _, errs := x.run("", append([]string{"st", "check"}, args...)...)
		if want := strings.ToUpper(args[0][:1]) + args[0][1:] + " check OK"; !strings.Contains(errs, want) {
			t.Errorf("%v: %s", args, errs)
		}
	}
	if code, _, errs := x.run("", "st", "check", "read", "a", "absent", "b"); code != 1 || !strings.Contains(errs, "cannot find absent, b") {
		t.Errorf("%d, %s", code, errs)
	}
	if got := append(x.holds(x.archive), x.holds(x.second)...); !slices.Equal(got, []string{"a", "b/c"}) {
		t.Errorf("left are %v", got)
	}
	if err := os.Remove(x.second); err != nil {
		t.Fatal(err)
	}
	x.refuses("second", "st", "check", "write", "-t", "second")
}

func TestObjectsMoveBetweenTheStoragesOfAnArchive(t *testing.T) {
	t.Parallel()
	x := newTool(t, "a")
	x.put(x.second, "wal_005/000000010000000000000002.lz4", "two")
	x.put(x.second, "wal_005/000000010000000000000003.lz4", "three")
	x.put(x.second, "b/c", "see")
	if got := x.must("st", "ls", "-t", "second", "b"); !strings.Contains(got, " c  \n") {
		t.Errorf("ls: %s", got)
	}
	x.must("st", "transfer", "pg-wals", "--source=second", "-m", "1")
	if got := x.holds(x.second); !slices.Equal(got, []string{"b/c", "wal_005/000000010000000000000003.lz4"}) {
		t.Errorf("left are %v", got)
	}
	x.must("st", "transfer", "pg-wals", "-s", "second", "--fail-fast", "-c", "50", "--appearance-checks=5", "--appearance-checks-interval=1s")
	x.must("st", "transfer", "files", "b/", "-s", "second", "-p")
	x.must("st", "transfer", "files", "a", "-s", "default", "-t", "second")
	x.must("st", "transfer", "backups", "-s", "second", "--max-backups=10")
	if got, want := x.holds(x.archive), []string{"b/c", "wal_005/000000010000000000000002.lz4", "wal_005/000000010000000000000003.lz4"}; !slices.Equal(got, want) {
		t.Errorf("moved: %v", got)
	}
	if got := x.holds(x.second); !slices.Equal(got, []string{"a", "b/c"}) {
		t.Errorf("left are %v", got)
	}
}
