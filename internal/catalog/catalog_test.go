package catalog

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gitlab.com/walden-pg/walden/internal/codec"
	"gitlab.com/walden-pg/walden/internal/crypt"
	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/wal"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	system = 7710983920749980543
	first  = "base_000000010000000000000002"
)

func open(t testing.TB, s storage.Store) *Catalog {
	t.Helper()
	return openLogged(t, s, io.Discard)
}

func openLogged(t testing.TB, s storage.Store, log io.Writer) *Catalog {
	t.Helper()
	c, err := codec.New("lz4", codec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return New(repo.New(s, c, crypt.None{}, repo.Options{}), slog.New(slog.NewTextHandler(log, nil)))
}

func put(t testing.TB, s storage.Store, key, content string) {
	t.Helper()
	if err := s.Put(t.Context(), key, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, s storage.Store, key string) []byte {
	t.Helper()
	r, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// names lists all objects below dir.
func names(t testing.TB, s storage.Store, dir string) []string {
	t.Helper()
	var list []string
	for o, err := range s.List(t.Context(), dir) {
		switch {
		case err != nil:
			t.Fatal(err)
		case o.IsDir():
			list = append(list, names(t, s, o.Key)...)
		default:
			list = append(list, o.Key)
		}
	}
	return list
}

func advice(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func start() Start {
	return Start{
		LSN: 0x2000028, Timeline: 1, Time: time.Date(2026, 11, 22, 7, 0, 25, 937774001, time.UTC), SystemIdentifier: system, PgVersion: 150020,
		SegmentSize: 16 << 20, PageSize: 8192, DataChecksums: true, Hostname: "db1", DataDir: "/srv/main",
		Tablespaces: map[uint32]string{16384: "/srv/<fast>", 2000: "/srv/b"}, UserData: json.RawMessage(`{"label":"first","n":[1,2]}`), Permanent: true,
		Walden: "1.2.3", Compression: "lz4", Encryption: "none",
	}
}

func text(s string) func(io.Writer) error {
	return func(w io.Writer) error { _, err := io.WriteString(w, s); return err }
}

// What keeps a backup from being cleared away is told in the words of whoever set the limit.
func TestADraftThatCannotBeRemovedInTimeSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fault := storagetest.NewFault(storagetest.NewMemory(), storagetest.Rule{Kind: storagetest.Hang, Match: func(c storagetest.Call) bool { return c.Op == storagetest.OpList }})
		d, err := open(t, fault).Begin(t.Context(), start())
		if err != nil {
			t.Fatal(err)
		}
		tooLong := errors.New("no answer within a minute")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, tooLong)
		defer cancel()
		if err := d.Abandon(ctx); !errors.Is(err, tooLong) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

// take writes a whole backup of two parts, and calls Abandon after a failure, as backup-push does.
func take(ctx context.Context, c *Catalog, st Start) (b Backup, err error) {
	d, err := c.Begin(ctx, st)
	if err != nil {
		return b, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Abandon(context.WithoutCancel(ctx)))
		}
	}()
	contents := Contents{WALLink: "/wal/main", DataSize: 40000}
	for _, f := range []File{
		{Name: "", Type: Directory, Mode: 0o700, MTime: 1e18},
		{Name: "base/1/1259", Mode: 0o600, Size: 16384, MTime: 1e18 + 1, Hash: [16]byte{1, 2, 15: 255}, Corrupt: &CorruptBlocks{2, []uint32{0, 7}}},
		{Name: "base/1/<&>", Mode: 0o640, Part: 1, Size: 3, MTime: 1e18 + 1e6, Hash: [16]byte{9}},
		{Name: "postgresql.conf", Type: Symlink, Part: 1, Mode: 0o777, MTime: 1e18, Link: "/etc/postgresql.conf"},
	} {
		if _, err := contents.Files.Add(f); err != nil {
			return b, err
		}
	}
	for i := range 2 {
		p, err := d.PutPart(ctx, i+1, 1, text(strings.Repeat("part", 1000*(i+1))))
		if err != nil {
			return b, err
		}
		contents.Parts = append(contents.Parts, p)
	}
	if contents.Control, err = d.PutControl(ctx, text("control")); err != nil {
		return b, err
	}
	if contents.Label, err = d.PutLabel(ctx, text("label")); err != nil {
		return b, err
	}
	segment := wal.SegmentAt(st.Timeline, st.LSN, st.SegmentSize)
	return d.Commit(ctx, Stop{LSN: st.LSN + 0xd8, Time: st.Time.Add(1275 * time.Millisecond), WAL: WALArchived, First: segment, Last: segment}, &contents,
		func(_ context.Context, w io.Writer) error {
			_, err := io.WriteString(w, `"postgres":{"oid":5,"tables":{"public.t":{"oid":16390,"relfilenode":16390}}}`)
			return err
		})
}

func TestADeltaWhoseBaseWasDeletedMeanwhileIsNoBackup(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	c := open(t, s)
	full, err := take(t.Context(), c, start())
	if err != nil {
		t.Fatal(err)
	}
	st := start()
	st.LSN, st.Delta = 0x5000028, &Delta{From: full.Name, FullName: full.Name, LSN: full.StartLSN, Count: 1}
	if _, err := take(t.Context(), c, st); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), sentinelKey(full.Name)); err != nil {
		t.Fatal(err)
	}
	st.LSN = 0x7000028
	if _, err := take(t.Context(), c, st); err == nil || !strings.Contains(err.Error(), full.Name+", which it is based on, was deleted meanwhile") {
		t.Errorf("%v", err)
	}
	list, err := c.Backups(t.Context())
	if err != nil || len(list) != 1 || list[0].StartLSN != 0x5000028 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestDocumentsAreWrittenAsTheGoldenFilesShow(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	committed, err := take(t.Context(), open(t, s), start())
	if err != nil {
		t.Fatal(err)
	}
	for key, golden := range map[string]string{
		sentinelKey(first):              "sentinel.json",
		backupDir(first) + metadataName: metadataName,
		backupDir(first) + filesName:    filesName,
		backupDir(first) + manifestName: manifestName,
	} {
		path := filepath.Join("testdata", golden)
		got := get(t, s, key)
		if !json.Valid(got) {
			t.Errorf("%s is not JSON", key)
		}
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is\n%s\nwant (%s, %v)\n%s", key, got, path, err, want)
		}
	}
	c := open(t, s)
	b, err := c.Find(t.Context(), "LATEST")
	if err != nil {
		t.Fatal(err)
	}
	b.Modified = committed.Modified
	if got, want := fmt.Sprintf("%+v", b), fmt.Sprintf("%+v", committed); len(got) != len(want) { // pointers differ
		t.Errorf("found %s\nwritten %s", got, want)
	}
	l, err := c.List(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]File{}
	for _, f := range l.Files.All() {
		listed[f.Name] = f
	}
	if len(l.Parts) != 2 || len(l.Special) != 2 || len(listed) != 4 || !l.Hashed || l.WALLink != "/wal/main" || listed["base/1/<&>"].Mode != 0o640 ||
		listed["base/1/1259"].Corrupt.Count != 2 || listed["postgresql.conf"].Link != "/etc/postgresql.conf" {
		t.Errorf("%+v, %+v", l, listed)
	}
	found, err := c.FindByUserData(t.Context(), json.RawMessage(` {"n" : [1, 2],"label":"first"}`))
	if err != nil || found.Name != first {
		t.Errorf("by user data: %v, %v", found.Name, err)
	}
}

func TestTheSentinelIsTheLastThingWritten(t *testing.T) {
	t.Parallel()
	fault := storagetest.NewFault(storagetest.NewMemory())
	if _, err := take(t.Context(), open(t, fault), start()); err != nil {
		t.Fatal(err)
	}
	var changes []string
	for _, c := range fault.Calls() {
		switch c.Op {
		case storagetest.OpPut, storagetest.OpPutNew, storagetest.OpDelete:
			changes = append(changes, fmt.Sprintf("%s %s", c.Op, strings.TrimPrefix(c.Key, backupsDir)))
		}
	}
	want := []string{
		"PutNew " + first + "/walden_draft.json", "Put " + first + "/tar_partitions/part_001.tar.lz4", "Put " + first + "/tar_partitions/part_002.tar.lz4",
		"Put " + first + "/tar_partitions/pg_control.tar.lz4", "Put " + first + "/tar_partitions/backup_label.tar.lz4",
		"Put " + first + "/walden_manifest.json", "Put " + first + "/files_metadata.json", "Put " + first + "/metadata.json",
		"PutNew " + first + "_backup_stop_sentinel.json", "Delete " + first + "/walden_draft.json",
	}
	if !slices.Equal(changes, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(changes, "\n"), strings.Join(want, "\n"))
	}
}

// usable fails the test if the archive lists a backup whose contents are not complete.
func usable(t *testing.T, what string, s storage.Store) int {
	t.Helper()
	c := open(t, s)
	backups, err := c.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range backups {
		b, err := c.Find(t.Context(), b.Name)
		if err != nil {
			t.Errorf("%s: listed, but %v", what, err)
			continue
		}
		l, err := c.List(t.Context(), b)
		if err != nil {
			t.Errorf("%s: listed, but %v", what, err)
		}
		for _, p := range append(l.Parts, l.Special...) {
			r, err := c.OpenPart(t.Context(), b.Name, p)
			if err != nil {
				t.Errorf("%s: listed, but %v", what, err)
				continue
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Errorf("%s: listed, but %v", what, err)
			}
			r.Close()
		}
	}
	return len(backups)
}

// Whatever call fails and however: nothing incomplete is listed, a success is complete, and a second run succeeds. With n = 0
// every call fails.
func TestADraftUnderEveryFault(t *testing.T) {
	t.Parallel()
	for kind := storagetest.Before; kind <= storagetest.Stale; kind++ {
		for n, more := 0, true; more; n++ {
			synctest.Test(t, func(t *testing.T) {
				what := fmt.Sprintf("kind %d, call %d", kind, n)
				inner := storagetest.NewMemory()
				fault := storagetest.NewFault(inner, storagetest.Rule{Kind: kind, Nth: n})
				stack := storage.WithRetry(storage.WithStallLimit(fault, 10*time.Second), storage.RetryOptions{})
				_, err := take(t.Context(), open(t, stack), start())
				more = fault.Fired()
				listed := usable(t, what, inner)
				switch {
				case err == nil && listed != 1:
					t.Errorf("%s: success, and %d backups are listed", what, listed)
				case err != nil && listed > 0 && !strings.Contains(err.Error(), "cannot withdraw the sentinel"):
					t.Errorf("%s: listed although it failed: %v", what, err)
				case err != nil && n > 0 && kind <= storagetest.HangHalf && !strings.Contains(err.Error(), "cannot list the parts"):
					// a listing that fails behind its first entry is not begun again by storage.WithRetry
					t.Errorf("%s: one failure was not overcome: %v", what, err)
				}
				left := names(t, inner, "")
				if err != nil && len(left) > 0 && n > 0 && !strings.Contains(err.Error(), first) {
					t.Errorf("%s: %v is left, and the error does not say so: %v", what, left, err)
				}
				if err == nil && slices.Contains(left, backupDir(first)+draftName) && kind != storagetest.AnswerLost && kind != storagetest.Before && kind != storagetest.Half && kind != storagetest.Hang {
					t.Errorf("%s: the mark of the draft is left", what)
				}
				if listed == 0 {
					if _, err := take(t.Context(), open(t, inner), start()); err != nil {
						t.Errorf("%s: the second run: %v", what, err)
					}
					usable(t, what+", second run", inner)
				}
			})
		}
	}
}

func TestNamesAreNeverTakenTwice(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	c := open(t, s)
	if _, err := take(t.Context(), c, start()); err != nil {
		t.Fatal(err)
	}
	before := names(t, s, "")
	standby := start()
	standby.Standby = true
	for _, st := range []Start{start(), standby} {
		_, err := take(t.Context(), c, st)
		if err == nil || !strings.Contains(err.Error(), "holds a finished backup of that name") || strings.Contains(advice(err), "restart point") != st.Standby {
			t.Errorf("%v (%s)", err, advice(err))
		}
	}
	if after := names(t, s, ""); !slices.Equal(before, after) {
		t.Errorf("%v became %v", before, after)
	}
}

func TestADraftIsTakenOverFromTheSameHostOnly(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		edit    func(*Start)
		refused bool
	}{
		"same host and directory": {func(*Start) {}, false},
		"other host":              {func(s *Start) { s.Hostname = "db2" }, true},
		"other directory":         {func(s *Start) { s.DataDir = "/srv/other" }, true},
	} {
		s := storagetest.NewMemory()
		var log bytes.Buffer
		cat := openLogged(t, s, &log)
		d, err := cat.Begin(t.Context(), start())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.PutPart(t.Context(), 3, 1, text("left behind")); err != nil { // the run that began it was killed
			t.Fatal(err)
		}
		for name, err := range cat.Leftovers(t.Context()) {
			if name != first || err != nil {
				t.Errorf("leftover %q, %v", name, err)
			}
		}
		st := start()
		c.edit(&st)
		_, err = take(t.Context(), cat, st)
		if (err != nil) != c.refused {
			t.Errorf("%s: %v", what, err)
		}
		if c.refused && (!strings.Contains(err.Error(), `begun by host "db1"`) || !strings.Contains(advice(err), backupDir(first))) {
			t.Errorf("%s: %v (%s)", what, err, advice(err))
		}
		if kept := slices.Contains(names(t, s, ""), backupDir(first)+partsDir+"part_003.tar.lz4"); kept != c.refused {
			t.Errorf("%s: the other run's part is there: %v", what, kept)
		}
	}
}

func TestPartsThatTheStorageDoesNotHoldAsWrittenAreNoticed(t *testing.T) {
	t.Parallel()
	dir := backupDir(first) + partsDir
	for what, tamper := range map[string]func(s storage.Store) error{
		"missing": func(s storage.Store) error { return s.Delete(t.Context(), dir+"part_001.tar.lz4") },
		"short":   func(s storage.Store) error { return s.Put(t.Context(), dir+"part_001.tar.lz4", strings.NewReader("x")) },
		"foreign": func(s storage.Store) error { return s.Put(t.Context(), dir+"part_009.tar.lz4", strings.NewReader("x")) },
	} {
		s := storagetest.NewMemory()
		d, err := open(t, s).Begin(t.Context(), start())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.PutPart(t.Context(), 1, 1, text("content")); err != nil {
			t.Fatal(err)
		}
		if err := tamper(s); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Commit(t.Context(), Stop{}, &Contents{}, nil); err == nil || !strings.Contains(err.Error(), "part_00") {
			t.Errorf("%s: %v", what, err)
		}
		if err := d.Abandon(t.Context()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if left := names(t, s, ""); left != nil {
			t.Errorf("%s: left %v", what, left)
		}
	}
}

func sentinelOf(started string) string {
	return fmt.Sprintf(`{"LSN":33554472,"PgVersion":150020,"FinishLSN":33554688,"SystemIdentifier":%d,"Version":2,"StartTime":%q}`, uint64(system), started)
}

func TestBackupsAreListedInTheOrderOfTheirStart(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	add := func(name, content string) { put(t, s, backupsDir+name+sentinelSuffix, content) }
	add("base_000000010000000000000008", sentinelOf("2026-11-20T00:00:00Z"))
	add("base_000000010000000000000006", sentinelOf("2026-11-21T00:00:00Z"))
	add("base_000000010000000000000002", sentinelOf("2026-11-19T00:00:00Z")) // written last, as after a copy between storages
	add("base_000000010000000000000004", `{"LSN":`)
	add("base_000000010000000000000005", "")
	add("notes", `{}`)
	add("base_000000010000000000000003", `{"LSN":"text"}`)
	put(t, s, backupsDir+"base_000000010000000000000009/tar_partitions/part_001.tar.lz4", "left behind")
	put(t, s, backupsDir+"readme.txt", "")
	var log bytes.Buffer
	c := openLogged(t, s, &log)
	backups, err := c.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var usable, broken []string
	for _, b := range backups {
		if b.Problem == nil {
			usable = append(usable, b.Name)
		} else {
			broken = append(broken, b.Name)
		}
	}
	if want := []string{"base_000000010000000000000002", "base_000000010000000000000008", "base_000000010000000000000006"}; !slices.Equal(usable, want) {
		t.Errorf("usable are %v", usable)
	}
	slices.Sort(broken)
	if want := []string{"base_000000010000000000000003", "base_000000010000000000000004", "base_000000010000000000000005", "notes"}; !slices.Equal(broken, want) {
		t.Errorf("broken are %v", broken)
	}
	latest, err := c.Find(t.Context(), "LATEST")
	if err != nil || latest.Name != "base_000000010000000000000006" {
		t.Errorf("LATEST is %s, %v", latest.Name, err)
	}
	for _, text := range []string{"LATEST is the backup that was started last", "LATEST passes over a newer backup"} {
		if !strings.Contains(log.String(), text) {
			t.Errorf("the log does not say %q:\n%s", text, log.String())
		}
	}
	for _, name := range []string{"base_000000010000000000000004", "notes", "base_00000001000000000000000A", "../x", "", `a\b`} {
		if _, err := c.Find(t.Context(), name); err == nil {
			t.Errorf("%q was found", name)
		}
	}
	empty := open(t, storagetest.NewMemory())
	if _, err := empty.Find(t.Context(), "LATEST"); !errors.Is(err, ErrNoBackups) {
		t.Errorf("LATEST of an empty archive: %v", err)
	}
}

func TestAHugeSentinelIsAProblemOfItsBackupOnly(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	put(t, s, sentinelKey(first), `{"Hostname":"`+strings.Repeat("x", maxDocument)+`"}`)
	put(t, s, sentinelKey("base_000000010000000000000004"), sentinelOf("2026-11-20T00:00:00Z"))
	backups, err := open(t, s).Backups(t.Context())
	if err != nil || len(backups) != 2 {
		t.Fatalf("%d, %v", len(backups), err)
	}
	for _, b := range backups {
		if (b.Problem != nil) != (b.Name == first) {
			t.Errorf("%s: %v", b.Name, b.Problem)
		}
	}
}

func TestOlderShapesOfSentinelsAreUnderstood(t *testing.T) {
	t.Parallel()
	const delta = "base_000000010000000000000006_D_000000010000000000000004"
	const wale = "base_000000010000000000000002_00000040"
	s := storagetest.NewMemory()
	put(t, s, sentinelKey(first), `{"LSN":33554472,"FinishLSN":33554688,"PgVersion":90603,"Files":{"/PG_VERSION":{"IsIncremented":false,"MTime":"2018-01-01T00:00:00Z"}}}`)
	put(t, s, sentinelKey(delta), `{"LSN":100663336,"DeltaFromLSN":67108904,"DeltaFrom":"base_000000010000000000000004","DeltaFullName":"base_000000010000000000000004","DeltaCount":1}`)
	put(t, s, sentinelKey(wale), `{"wal_segment_backup_stop":"000000010000000000000002","wal_segment_offset_backup_stop":"00000130"}`)
	put(t, s, backupDir(first)+partsDir+"part_001.tar.", "x")
	put(t, s, backupDir(wale)+partsDir+"part_00000000.tar.lzo", "x")
	put(t, s, backupDir(first)+partsDir+"pg_control.tar.lzo", "x")
	c := open(t, s)
	b, err := c.Find(t.Context(), delta)
	if err != nil || b.Delta == nil || b.Delta.LSN != 67108904 || b.Delta.Count != 1 || b.WALFile() != "000000010000000000000006" {
		t.Errorf("%+v, %v", b, err)
	}
	if b, err = c.Find(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if l, err := c.List(t.Context(), b); err != nil || l.Files.Len() != 1 || l.Hashed || len(l.Parts) != 1 || len(l.Special) != 1 {
		t.Errorf("%+v, %v", l, err)
	}
	if b, err = c.Find(t.Context(), wale); err != nil || b.WALFile() != "000000010000000000000002" {
		t.Fatalf("%+v, %v", b, err)
	}
	if l, err := c.List(t.Context(), b); err != nil || l.Files != nil || len(l.Parts) != 1 {
		t.Errorf("%+v, %v", l, err)
	}
	for text, want := range map[string]CorruptBlocks{
		`[1,2]`: {2, []uint32{1, 2}},
		`{"CorruptBlocksCount":30,"SomeCorruptBlocks":[5]}`: {30, []uint32{5}},
	} {
		var got CorruptBlocks
		if err := json.Unmarshal([]byte(text), &got); err != nil || got.Count != want.Count || !slices.Equal(got.Blocks, want.Blocks) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}

func TestBackupsAreFoundByUserData(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	for i, data := range []string{`{"night":1,"big":12345678901234567890}`, `"plain"`, `"plain"`, `null`} {
		name := fmt.Sprintf("base_00000001000000000000000%d", i)
		put(t, s, sentinelKey(name), `{"LSN":1}`)
		put(t, s, backupDir(name)+metadataName, `{"user_data":`+data+`}`)
	}
	c := open(t, s)
	if b, err := c.FindByUserData(t.Context(), json.RawMessage(`{ "big":12345678901234567890, "night" : 1 }`)); err != nil || b.Name != "base_000000010000000000000000" {
		t.Errorf("%v, %v", b.Name, err)
	}
	for text, want := range map[string]string{
		`"plain"`: "base_000000010000000000000001, base_000000010000000000000002", `{"night":1}`: "does not exist", `{"night":1,"big":12345678901234567891}`: "does not exist", `plain`: "not valid JSON",
	} {
		if _, err := c.FindByUserData(t.Context(), json.RawMessage(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestListingTakesABoundedNumberOfCalls(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	const n = 300
	for i := range n {
		put(t, s, sentinelKey(fmt.Sprintf("base_0000000100000000%08X", i)), sentinelOf("2026-11-20T00:00:00Z"))
	}
	fault := storagetest.NewFault(s)
	c := open(t, fault)
	backups, err := c.Backups(t.Context())
	if err != nil || len(backups) != n {
		t.Fatalf("%d, %v", len(backups), err)
	}
	if list, get, all := fault.Count(storagetest.OpList), fault.Count(storagetest.OpGet), len(fault.Calls()); list != 1 || get != n || all != n+1 {
		t.Errorf("%d listings, %d reads, %d calls", list, get, all)
	}
	fault.Forget()
	if _, err := c.Find(t.Context(), backups[0].Name); err != nil || len(fault.Calls()) != 2 {
		t.Errorf("to find one: %d calls, %v", len(fault.Calls()), err)
	}
}

// archived puts a segment with this system identifier into the archive.
func archived(t *testing.T, s storage.Store, name string, id uint64) {
	t.Helper()
	b := make([]byte, 1<<20)
	le := binary.LittleEndian
	le.PutUint16(b[0:], 0xD110)
	le.PutUint16(b[2:], 2)
	le.PutUint32(b[4:], 1)
	le.PutUint64(b[8:], 2<<20)
	le.PutUint64(b[24:], id)
	le.PutUint32(b[32:], 1<<20)
	le.PutUint32(b[36:], 8192)
	put(t, s, walDir+name, string(b))
}

func TestAnArchiveBelongsToOneClusterUntilAnotherIsAccepted(t *testing.T) {
	t.Parallel()
	ours, theirs := Cluster{system, 15, 1 << 20}, Cluster{system + 1, 15, 1 << 20}
	for what, prepare := range map[string]func(s storage.Store){
		"empty":         func(storage.Store) {},
		"with a backup": func(s storage.Store) { put(t, s, sentinelKey(first), sentinelOf("2026-11-20T00:00:00Z")) },
		"with WAL":      func(s storage.Store) { archived(t, s, "000000010000000000000002", system) },
		"with an identity": func(s storage.Store) {
			put(t, s, identityName, fmt.Sprintf(`{"version":1,"since":"2026-11-20T00:00:00Z","current":{"system_identifier":"%d"}}`, uint64(system)))
		},
	} {
		s := storagetest.NewMemory()
		prepare(s)
		c := open(t, s)
		var wrong *WrongClusterError
		if what != "empty" {
			if err := c.Admit(t.Context(), theirs); !errors.As(err, &wrong) || wrong.Theirs.SystemIdentifier != system || wrong.Ours != theirs || advice(err) == "" {
				t.Errorf("%s: another cluster: %v", what, err)
			}
		}
		for range 2 {
			if err := c.Admit(t.Context(), ours); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := c.Admit(t.Context(), Cluster{SystemIdentifier: system}); err != nil {
			t.Errorf("%s: the same, less known: %v", what, err)
		}
		for _, other := range []Cluster{theirs, {system, 16, 1 << 20}, {system, 15, 16 << 20}} {
			if err := c.Admit(t.Context(), other); what == "empty" && !errors.As(err, &wrong) {
				t.Errorf("%s: %s was admitted, %v", what, other, err)
			}
		}
		for range 2 { // the second time nothing changes
			id, err := c.Accept(t.Context(), theirs)
			if err != nil || id.Current != theirs || len(id.Previous) != 1 || id.Previous[0].SystemIdentifier != system {
				t.Errorf("%s: accepted as %+v, %v", what, id, err)
			}
		}
		if err := c.Admit(t.Context(), theirs); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err := c.Admit(t.Context(), ours); !errors.As(err, &wrong) {
			t.Errorf("%s: the previous cluster is still admitted: %v", what, err)
		}
	}
}

func TestOfTwoClustersThatClaimAnArchiveOneWins(t *testing.T) {
	t.Parallel()
	for range 20 {
		s := storagetest.NewMemory()
		c := open(t, s)
		errs := make([]error, 8)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { errs[i] = c.Admit(t.Context(), Cluster{SystemIdentifier: system + uint64(i%2)}) })
		}
		wg.Wait()
		id, err := c.Identity(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i, err := range errs {
			var wrong *WrongClusterError
			if won := id.Current.SystemIdentifier == system+uint64(i%2); won && err != nil || !won && !errors.As(err, &wrong) {
				t.Errorf("cluster %d: %v", i%2, err)
			}
		}
	}
}

func TestAnIdentityThatCannotBeReadAdmitsNobody(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "{", `{"current":{}}`, `{"current":{"system_identifier":"x"}}`, `{"current":{"system_identifier":"-1"}}`, strings.Repeat(" ", maxDocument+1)} {
		s := storagetest.NewMemory()
		put(t, s, identityName, text)
		c := open(t, s)
		if err := c.Admit(t.Context(), Cluster{SystemIdentifier: system}); err == nil {
			t.Errorf("%.30q: admitted", text)
		}
		if _, err := c.Accept(t.Context(), Cluster{SystemIdentifier: system}); err == nil {
			t.Errorf("%.30q: overwritten", text)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		for n, more := 1, true; more; n++ {
			inner := storagetest.NewMemory()
			archived(t, inner, "000000010000000000000002", system)
			fault := storagetest.NewFault(inner, storagetest.Rule{Kind: storagetest.Before, Nth: n, Err: fs.ErrPermission})
			err := open(t, fault).Admit(t.Context(), Cluster{SystemIdentifier: system + 1})
			if more = fault.Fired(); err == nil {
				t.Errorf("call %d fails: another cluster was admitted", n)
			}
		}
	})
}

func TestMissingSegmentsAreListed(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	for _, name := range []string{"000000010000000000000002.lz4", "000000010000000000000004.zst", "000000020000000000000003.lz4", "000000010000000000000005", "000000010000000000000003.partial.lz4"} {
		put(t, s, walDir+name, "x")
	}
	w := open(t, s).WAL()
	got, err := w.Missing(t.Context(), wal.Segment{Timeline: 1, Number: 1}, wal.Segment{Timeline: 1, Number: 6}, 16<<20)
	if want := []wal.Segment{{Timeline: 1, Number: 1}, {Timeline: 1, Number: 3}, {Timeline: 1, Number: 6}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for name, want := range map[string]bool{"000000010000000000000004": true, "000000010000000000000003": false} {
		if got, err := w.Has(t.Context(), name); got != want || err != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
