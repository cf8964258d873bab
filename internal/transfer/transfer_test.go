package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/codec"
	"gitlab.com/walden-pg/walden/internal/crypt"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
	"gitlab.com/walden-pg/walden/internal/wal"
)

const (
	system  = 7710983920749980543
	segment = 1 << 20
)

func end(t testing.TB, s storage.Store, method string) End {
	t.Helper()
	c, err := codec.New(method, codec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	r := repo.New(s, c, crypt.None{}, repo.Options{Log: log, Retry: repo.RetryPolicy{MinDelay: time.Microsecond, MaxDelay: time.Microsecond}})
	return End{r, catalog.New(r, log)}
}

// quiet is a progress that nobody sees.
type quiet struct{}

func (quiet) Begin(int64) {}
func (quiet) Add(int64)   {}
func (quiet) End()        {}

func deps(t testing.TB, from, to storage.Store) Deps {
	t.Helper()
	return Deps{From: end(t, from, "lz4"), To: end(t, to, "lz4"), Log: slog.New(slog.DiscardHandler), Progress: quiet{}, Workers: 3}
}

func text(s string) func(io.Writer) error {
	return func(w io.Writer) error { _, err := io.WriteString(w, s); return err }
}

// take writes a backup that begins in the n-th segment and ends in the one after it.
func take(t testing.TB, c *catalog.Catalog, n uint64, base *catalog.Backup) catalog.Backup {
	t.Helper()
	lsn := wal.LSN(n*segment + 40)
	start := catalog.Start{
		LSN: lsn, Timeline: 1, Time: time.Date(2026, 11, 22, 7, int(n), 0, 0, time.UTC), SystemIdentifier: system, PgVersion: 150020,
		SegmentSize: segment, PageSize: 8192, Hostname: "db1", DataDir: "/srv/main", Walden: "1.2.3", Compression: "lz4", Encryption: "none",
	}
	contents := &catalog.Contents{}
	file := catalog.File{Name: "base/1/1", Mode: 0o600, Size: 4, FileSize: 4}
	if base != nil {
		start.Delta = &catalog.Delta{From: base.Name, FullName: base.Name, LSN: base.StartLSN, Count: 1}
		if base.Delta != nil {
			start.Delta.FullName, start.Delta.Count = base.Delta.FullName, base.Delta.Count+1
		}
	}
	d, err := c.Begin(t.Context(), start)
	if err != nil {
		t.Fatal(err)
	}
	part := func(p catalog.Part, err error) catalog.Part {
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	contents.Parts = []catalog.Part{
		part(d.PutPart(t.Context(), 1, 1, text(fmt.Sprint("part one of ", n)))), part(d.PutPart(t.Context(), 2, 1, text(strings.Repeat("x", 300_000)+d.Name()))),
	}
	contents.Control, contents.Label = part(d.PutControl(t.Context(), text("control"))), part(d.PutLabel(t.Context(), text("label")))
	if _, err := contents.Files.Add(file); err != nil {
		t.Fatal(err)
	}
	b, err := d.Commit(t.Context(), catalog.Stop{
		LSN: lsn + segment, Time: start.Time.Add(time.Second), WAL: catalog.WALArchived,
		First: wal.SegmentAt(1, lsn, segment), Last: wal.SegmentAt(1, lsn+segment, segment),
	}, contents, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func name(n uint64) string { return wal.Segment{Timeline: 1, Number: n}.Name(segment) }

// archived returns an archive of three full backups, of which the second has a chain of two deltas, with the WAL from the first segment
// on: backups 2, 5 (with 8 and 11), and 14, WAL 1 to 17, a delta object, a backup history file, a history, a fingerprint and a proof.
func archived(t testing.TB) (storage.Store, []catalog.Backup) {
	t.Helper()
	s := storagetest.NewMemory()
	c := end(t, s, "lz4").Catalog
	if err := c.Admit(t.Context(), catalog.Cluster{SystemIdentifier: system, Major: 15, SegmentSize: segment}); err != nil {
		t.Fatal(err)
	}
	for n := uint64(1); n <= 17; n++ {
		archive(t, c, name(n), fmt.Sprint("segment ", n))
	}
	archive(t, c, name(0)+"_delta", "blocks")
	archive(t, c, name(5)+".00000028.backup", "START WAL LOCATION")
	archive(t, c, "00000002.history", "1\t0/1100000\tno recovery target specified\n")
	if _, err := c.WAL().Claim(t.Context(), name(15), text("segment 15"), true); err != nil {
		t.Fatal(err)
	}
	a := take(t, c, 2, nil)
	b := take(t, c, 5, nil)
	b1 := take(t, c, 8, &b)
	b2 := take(t, c, 11, &b1)
	last := take(t, c, 14, nil)
	if err := c.Prove(t.Context(), b.Name, catalog.Proof{Walden: "1.2.3"}); err != nil {
		t.Fatal(err)
	}
	return s, []catalog.Backup{a, b, b1, b2, last}
}

func archive(t testing.TB, c *catalog.Catalog, name, content string) {
	t.Helper()
	if _, err := c.WAL().PutNew(t.Context(), name, text(content)); err != nil {
		t.Fatal(err)
	}
}

// holds reads all objects of a storage.
func holds(t testing.TB, s storage.Store) map[string]string {
	t.Helper()
	objects, err := below(t.Context(), end(t, s, "none").Repo, "")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, o := range objects {
		body, err := s.Get(t.Context(), o.Key)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(body)
		if err := errors.Join(err, body.Close()); err != nil {
			t.Fatal(err)
		}
		all[o.Key] = string(b)
	}
	return all
}

func put(t testing.TB, s storage.Store, key, content string) {
	t.Helper()
	if err := s.Put(t.Context(), key, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, s storage.Store, keys ...string) {
	t.Helper()
	if err := s.Delete(t.Context(), keys...); err != nil {
		t.Fatal(err)
	}
}

// same compares two storages, without the objects that one of them need not have.
func same(t testing.TB, got, want map[string]string, without func(key string) bool) {
	t.Helper()
	for key, content := range want {
		if without != nil && without(key) {
			continue
		}
		if other, ok := got[key]; !ok {
			t.Errorf("%s is missing", key)
		} else if other != content {
			t.Errorf("%s is %.40q, want %.40q", key, other, content)
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			t.Errorf("%s should not be there", key)
		}
	}
}

// isBefore tells of WAL that no backup needs: what was archived before the first one.
func isBefore(key string) bool {
	return strings.HasPrefix(key, "wal_005/"+name(1))
}

func TestACopyHasEverythingAndARerunCopiesNothing(t *testing.T) {
	t.Parallel()
	from, backups := archived(t)
	to := storagetest.NewMemory()
	report, err := Copy(t.Context(), deps(t, from, to), CopyOptions{Onward: true})
	if err != nil {
		t.Fatal(err)
	}
	same(t, holds(t, to), holds(t, from), isBefore)
	if len(report.Backups) != len(backups) || report.Kept.Objects != 0 {
		t.Errorf("%+v", report)
	}
	counted := storagetest.NewFault(to)
	again, err := Copy(t.Context(), deps(t, from, counted), CopyOptions{Onward: true})
	if err != nil || again.Copied.Objects != 0 || again.Kept != report.Copied {
		t.Errorf("again: %+v, %v; before %+v", again, err, report)
	}
	if n := counted.Count(storagetest.OpPut) + counted.Count(storagetest.OpPutNew); n != 0 {
		t.Errorf("a rerun has written %d objects", n)
	}
	if id, err := end(t, to, "none").Catalog.Identity(t.Context()); err != nil || id.Current.SystemIdentifier != system {
		t.Errorf("the copy is of %+v, %v", id, err)
	}
}

func TestOneBackupComesWithItsChainAndItsWAL(t *testing.T) {
	t.Parallel()
	from, backups := archived(t)
	for _, c := range []struct {
		which   string
		onward  bool
		backups []string
		wal     []uint64
	}{
		{backups[0].Name, false, []string{backups[0].Name}, []uint64{2, 3}},
		{backups[3].Name, false, []string{backups[1].Name, backups[2].Name, backups[3].Name}, []uint64{5, 6, 8, 9, 11, 12}},
		{"LATEST", false, []string{backups[4].Name}, []uint64{14, 15}},
		{"LATEST", true, []string{backups[4].Name}, []uint64{14, 15, 16, 17}},
		{"", false, []string{backups[0].Name, backups[1].Name, backups[2].Name, backups[3].Name, backups[4].Name}, []uint64{2, 3, 5, 6, 8, 9, 11, 12, 14, 15}},
	} {
		to := storagetest.NewMemory()
		report, err := Copy(t.Context(), deps(t, from, to), CopyOptions{Backup: c.which, Onward: c.onward})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(report.Backups, c.backups) {
			t.Errorf("%q: copied %v, want %v", c.which, report.Backups, c.backups)
		}
		got := holds(t, to)
		for n := uint64(0); n <= 18; n++ {
			if _, ok := got["wal_005/"+name(n)+".lz4"]; ok != slices.Contains(c.wal, n) {
				t.Errorf("%q: segment %d is there: %v", c.which, n, ok)
			}
		}
		for key, wanted := range map[string]bool{
			"wal_005/00000002.history.lz4": true, "wal_005/" + name(0) + "_delta.lz4": true, "walden_identity.json": true,
			"walden_fingerprints/" + name(15) + ".json":                 slices.Contains(c.wal, 15),
			"wal_005/" + name(5) + ".00000028.backup.lz4":               slices.Contains(c.wal, 5),
			"basebackups_005/" + backups[1].Name + "/walden_proof.json": slices.Contains(c.wal, 5),
		} {
			if _, ok := got[key]; ok != wanted {
				t.Errorf("%q: %s is there: %v", c.which, key, ok)
			}
		}
		inv, err := end(t, to, "none").Catalog.Inventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range inv.Backups {
			if err := inv.Coverage().Unrestorable(b); err != nil {
				t.Errorf("%q: %s cannot be restored from the copy: %v", c.which, b.Name, err)
			}
		}
	}
}

func TestWhatCannotBeCopiedIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	t.Parallel()
	part := func(b catalog.Backup) string { return "basebackups_005/" + b.Name + "/tar_partitions/part_001.tar.lz4" }
	for title, c := range map[string]struct {
		spoil  func(from, to storage.Store, b []catalog.Backup)
		o      CopyOptions
		says   string
		is     error
		except string // the one object that may appear
	}{
		"WAL of a backup is missing": {spoil: func(from, _ storage.Store, _ []catalog.Backup) { remove(t, from, "wal_005/"+name(3)+".lz4") },
			says: name(3) + " is not archived"},
		"WAL onward has a gap": {spoil: func(from, _ storage.Store, _ []catalog.Backup) { remove(t, from, "wal_005/"+name(16)+".lz4") },
			o: CopyOptions{Onward: true}, says: "what follows " + name(15) + " is missing"},
		"a base is missing": {spoil: func(from, _ storage.Store, b []catalog.Backup) {
			remove(t, from, "basebackups_005/"+b[1].Name+"_backup_stop_sentinel.json")
		}, says: "is based on"},
		"a part is missing": {spoil: func(from, _ storage.Store, b []catalog.Backup) { remove(t, from, part(b[4])) },
			says: "part_001.tar.lz4 is missing"},
		"a part was cut": {spoil: func(from, _ storage.Store, b []catalog.Backup) { put(t, from, part(b[4]), "x") }, says: "has 1 bytes"},
		"a manifest was changed": {spoil: func(from, _ storage.Store, b []catalog.Backup) {
			put(t, from, "basebackups_005/"+b[4].Name+"/walden_manifest.json", "{}")
		}, says: "is not the one that was written"},
		"no such backup": {o: CopyOptions{Backup: "base_000000010000000000000099"}, is: fs.ErrNotExist},
		"another cluster": {spoil: func(_, to storage.Store, _ []catalog.Backup) {
			put(t, to, "walden_identity.json", `{"version":1,"current":{"system_identifier":"1"}}`)
		}, says: "belongs to another cluster"},
		"another cluster that never said so": {spoil: func(_, to storage.Store, _ []catalog.Backup) {
			put(t, to, "basebackups_005/base_000000010000000000000077_backup_stop_sentinel.json", `{"LSN":1,"SystemIdentifier":1,"PgVersion":150000}`)
		}, says: "belongs to another cluster"},
		"another object": {spoil: func(_, to storage.Store, _ []catalog.Backup) { put(t, to, "wal_005/"+name(5)+".lz4", "another") },
			says: "another object"},
		"the same file under another codec": {spoil: func(_, to storage.Store, _ []catalog.Backup) {
			archive(t, end(t, to, "zstd").Catalog, name(5), "another")
			put(t, to, "walden_identity.json", `{"version":1,"current":{"system_identifier":"7710983920749980543"}}`)
		}, says: "its content is not that of"},
		"a part that belongs to another backup": {spoil: func(_, to storage.Store, b []catalog.Backup) {
			put(t, to, "basebackups_005/"+b[0].Name+"/tar_partitions/part_009.tar.lz4", "x")
		}, says: "does not belong to it"},
		"a backup of the name is being written": {spoil: func(_, to storage.Store, b []catalog.Backup) {
			put(t, to, "basebackups_005/"+b[0].Name+"/walden_draft.json", "{}")
		}, says: "is being written or removed"},
		"a backup's document is another": {spoil: func(_, to storage.Store, b []catalog.Backup) {
			put(t, to, "basebackups_005/"+b[0].Name+"_backup_stop_sentinel.json", "{}")
		}, says: "another object"},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			from, backups := archived(t)
			to := storagetest.NewMemory()
			if c.spoil != nil {
				c.spoil(from, to, backups)
			}
			before := holds(t, to)
			_, err := Copy(t.Context(), deps(t, from, to), c.o)
			if err == nil || !strings.Contains(err.Error(), c.says) || c.is != nil && !errors.Is(err, c.is) {
				t.Fatalf("%v", err)
			}
			if len(hint.Of(err)) == 0 && c.is == nil && !strings.Contains(title, "part") && !strings.Contains(title, "manifest") {
				t.Errorf("%v: without a hint", err)
			}
			if after := holds(t, to); !maps.Equal(before, after) {
				t.Errorf("written were %v", slices.Sorted(maps.Keys(after)))
			}
		})
	}
}

func TestADamagedPartDoesNotArrive(t *testing.T) {
	t.Parallel()
	from, backups := archived(t)
	key := "basebackups_005/" + backups[1].Name + "/tar_partitions/part_002.tar.lz4"
	all := holds(t, from)
	put(t, from, key, strings.Replace(all[key], "x", "y", 1))
	to := storagetest.NewMemory()
	_, err := Copy(t.Context(), deps(t, from, to), CopyOptions{})
	if !errors.Is(err, catalog.ErrDamaged) || !strings.Contains(err.Error(), "the same command again goes on") {
		t.Fatalf("%v", err)
	}
	got := holds(t, to)
	if _, ok := got[key]; ok {
		t.Error("the damaged part is at the destination")
	}
	if names := listed(got); !slices.Equal(names, []string{backups[0].Name}) {
		t.Errorf("listed are %v", names)
	}
	put(t, from, key, all[key])
	if _, err := Copy(t.Context(), deps(t, from, to), CopyOptions{Onward: true}); err != nil {
		t.Fatal(err)
	}
	same(t, holds(t, to), holds(t, from), isBefore)
}

// listed are the backups that have a sentinel.
func listed(objects map[string]string) []string {
	var names []string
	for key := range objects {
		if name, ok := strings.CutSuffix(strings.TrimPrefix(key, "basebackups_005/"), "_backup_stop_sentinel.json"); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// What is there in equal size stays only if its hash is the recorded one, or nobody recorded one.
func TestWhatIsThereIsCompared(t *testing.T) {
	t.Parallel()
	for title, c := range map[string]struct {
		key      func(b catalog.Backup) string
		checksum bool
		refused  bool
	}{
		"a part":              {func(b catalog.Backup) string { return "basebackups_005/" + b.Name + "/tar_partitions/part_001.tar.lz4" }, false, true},
		"a document":          {func(b catalog.Backup) string { return "basebackups_005/" + b.Name + "/files_metadata.json" }, false, true},
		"a mark":              {func(b catalog.Backup) string { return "basebackups_005/" + b.Name + "/metadata.json" }, false, false},
		"a history":           {func(catalog.Backup) string { return "wal_005/00000002.history.lz4" }, false, true},
		"WAL":                 {func(catalog.Backup) string { return "wal_005/" + name(5) + ".lz4" }, false, false},
		"WAL, by its content": {func(catalog.Backup) string { return "wal_005/" + name(5) + ".lz4" }, true, true},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			from, backups := archived(t)
			to := storagetest.NewMemory()
			if _, err := Copy(t.Context(), deps(t, from, to), CopyOptions{}); err != nil {
				t.Fatal(err)
			}
			key := c.key(backups[1])
			was := holds(t, to)[key]
			changed := was[:len(was)-1] + string([]byte{was[len(was)-1] ^ 1})
			put(t, to, key, changed)
			_, err := Copy(t.Context(), deps(t, from, to), CopyOptions{Checksum: c.checksum})
			var conflict *ConflictError
			if errors.As(err, &conflict) != c.refused {
				t.Errorf("%v", err)
			}
			if holds(t, to)[key] != changed {
				t.Error("it was replaced")
			}
		})
	}
}

// What was cut off before its sentinel may have been marked since.
func TestADocumentThatHasChangedReplacesThatOfAnUnfinishedCopy(t *testing.T) {
	t.Parallel()
	from, backups := archived(t)
	to := storagetest.NewMemory()
	if _, err := Copy(t.Context(), deps(t, from, to), CopyOptions{Backup: backups[0].Name}); err != nil {
		t.Fatal(err)
	}
	remove(t, to, "basebackups_005/"+backups[0].Name+"_backup_stop_sentinel.json")
	if _, err := deps(t, from, to).From.Catalog.Mark(t.Context(), backups[0].Name, true); err != nil {
		t.Fatal(err)
	}
	if _, err := Copy(t.Context(), deps(t, from, to), CopyOptions{Backup: backups[0].Name}); err != nil {
		t.Fatal(err)
	}
	key := "basebackups_005/" + backups[0].Name + "/metadata.json"
	if got, want := holds(t, to)[key], holds(t, from)[key]; got != want || !strings.Contains(got, `"is_permanent":true`) {
		t.Errorf("%s, want %s", got, want)
	}
}

// After pg_upgrade the archive is of another cluster, and says so.
func TestACopyFollowsAnUpgrade(t *testing.T) {
	t.Parallel()
	from, _ := archived(t)
	to := storagetest.NewMemory()
	if _, err := Copy(t.Context(), deps(t, from, to), CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	upgraded := catalog.Cluster{SystemIdentifier: 42, Major: 16, SegmentSize: segment}
	if _, err := deps(t, from, to).From.Catalog.Accept(t.Context(), upgraded); err != nil {
		t.Fatal(err)
	}
	if _, err := Copy(t.Context(), deps(t, from, to), CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, want := holds(t, to)["walden_identity.json"], holds(t, from)["walden_identity.json"]; got != want {
		t.Errorf("the copy's identity is %s, want %s", got, want)
	}
	// And back, which leaves the later one.
	if _, err := Copy(t.Context(), deps(t, to, from), CopyOptions{}); err != nil {
		t.Error(err)
	}
}

// Whatever call of either storage fails, and for good: what is listed is complete, and the next run completes the copy.
func TestACopyThatFailsAnywhereIsCompletedByTheNext(t *testing.T) {
	t.Parallel()
	everywhere(t, func(ctx context.Context, d Deps) error {
		_, err := Copy(ctx, d, CopyOptions{Onward: true})
		return err
	}, func(t *testing.T, _, to, original map[string]string, done bool) {
		listedIsComplete(t, to, original)
		if done {
			same(t, to, original, isBefore)
		}
	})
}

func TestAMoveOfBackupsThatFailsAnywhereLosesNothing(t *testing.T) {
	t.Parallel()
	everywhere(t, func(ctx context.Context, d Deps) error {
		_, err := MoveBackups(ctx, d, MoveOptions{Checks: 2})
		return err
	}, func(t *testing.T, from, to, original map[string]string, done bool) {
		listedIsComplete(t, from, original)
		listedIsComplete(t, to, original)
		for key, content := range original {
			if !strings.HasPrefix(key, "basebackups_005/") {
				if from[key] != content {
					t.Errorf("%s is gone", key)
				}
				continue
			}
			if from[key] != content && to[key] != content {
				t.Errorf("%s is at neither place", key)
			}
			if _, there := from[key]; there && done {
				t.Errorf("%s is still at the source", key)
			}
		}
	})
}

func TestAMoveOfWALThatFailsAnywhereLosesNothing(t *testing.T) {
	t.Parallel()
	everywhere(t, func(ctx context.Context, d Deps) error {
		_, err := Move(ctx, d, MoveOptions{Prefix: "wal_005/", Checks: 2})
		return err
	}, func(t *testing.T, from, to, original map[string]string, done bool) {
		for key, content := range original {
			_, atSource := from[key]
			switch {
			case !strings.HasPrefix(key, "wal_005/") && from[key] != content:
				t.Errorf("%s is gone", key)
			case from[key] != content && to[key] != content:
				t.Errorf("%s is at neither place", key)
			case strings.HasPrefix(key, "wal_005/") && done && atSource:
				t.Errorf("%s is still at the source", key)
			}
		}
	})
}

// listedIsComplete checks that what is listed has all of its objects as they were.
func listedIsComplete(t *testing.T, objects, original map[string]string) {
	t.Helper()
	for _, name := range listed(objects) {
		for key, content := range original {
			if strings.HasPrefix(key, "basebackups_005/"+name+"/") && objects[key] != content {
				t.Errorf("%s is listed, and %s is %.40q", name, key, objects[key])
			}
		}
	}
}

// everywhere lets each call of each storage fail for good, one at a time, and runs the job again without a fault.
func everywhere(t *testing.T, job func(context.Context, Deps) error, check func(t *testing.T, from, to, original map[string]string, done bool)) {
	t.Helper()
	seed, _ := archived(t)
	original := holds(t, seed)
	count := func(faulty bool, kind storagetest.Kind) int {
		from, to := copyOf(t, original), storagetest.NewMemory()
		f, g := storagetest.NewFault(from), storagetest.NewFault(to)
		if err := job(t.Context(), deps(t, f, g)); err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, call := range map[bool]*storagetest.Fault{true: f, false: g}[faulty].Calls() {
			if kind.AppliesTo(call.Op) {
				n++
			}
		}
		return n
	}
	injected := 0
	for _, kind := range []storagetest.Kind{storagetest.Before, storagetest.Half, storagetest.AnswerLost, storagetest.Truncate, storagetest.Empty} {
		for _, atSource := range []bool{true, false} {
			numbers := make([]int, count(atSource, kind))
			for i := range numbers {
				numbers[i] = i + 1
			}
			for _, n := range testenv.Some(t, 4, numbers) {
				from, to := copyOf(t, original), storagetest.NewMemory()
				rule := storagetest.Rule{Kind: kind, Nth: n, ForGood: true}
				f, g := from, to
				if atSource {
					f = storagetest.NewFault(from, rule)
				} else {
					g = storagetest.NewFault(to, rule)
				}
				err := job(t.Context(), deps(t, f, g))
				injected++
				where := fmt.Sprintf("%s, call %d, at the source: %v", kind, n, atSource)
				if err != nil && strings.Contains(err.Error(), "context canceled") {
					t.Errorf("%s: the message does not tell the cause: %v", where, err)
				}
				lied := kind == storagetest.Empty && atSource // so that nobody could know what is left there
				check(t, holds(t, from), holds(t, to), original, err == nil && !lied)
				if err := job(t.Context(), deps(t, from, to)); err != nil {
					t.Errorf("%s: the next run: %v", where, err)
				}
				check(t, holds(t, from), holds(t, to), original, !lied)
				if t.Failed() {
					t.Fatalf("%s; it said %v", where, err)
				}
			}
		}
	}
	testenv.Figure(t, "faults injected into copies and moves", t.Name(), injected)
}

func copyOf(t *testing.T, objects map[string]string) storage.Store {
	t.Helper()
	s := storagetest.NewMemory()
	for key, content := range objects {
		put(t, s, key, content)
	}
	return s
}

func TestMovesKeepWhatIsNeeded(t *testing.T) {
	t.Parallel()
	from, backups := archived(t)
	to := storagetest.NewMemory()
	d := deps(t, from, to)
	o := MoveOptions{Checks: 1}
	if _, err := MoveBackups(t.Context(), d, MoveOptions{Checks: 1, Backup: backups[1].Name}); err == nil || !strings.Contains(err.Error(), "is based on it") {
		t.Errorf("a base: %v", err)
	}
	o.Backup = backups[3].Name
	if _, err := MoveBackups(t.Context(), d, o); err != nil {
		t.Fatal(err)
	}
	if got, want := listed(holds(t, to)), []string{backups[1].Name, backups[2].Name, backups[3].Name}; !slices.Equal(got, want) {
		t.Errorf("at the target: %v, want %v", got, want)
	}
	if got := listed(holds(t, from)); slices.Contains(got, backups[3].Name) || len(got) != 4 {
		t.Errorf("at the source: %v", got)
	}
	o = MoveOptions{Checks: 1, MaxBackups: 1}
	if _, err := MoveBackups(t.Context(), d, o); err != nil {
		t.Fatal(err)
	}
	if got := listed(holds(t, from)); len(got) != 3 || slices.Contains(got, backups[0].Name) {
		t.Errorf("at the source after one more: %v", got)
	}
	if _, err := MoveBackups(t.Context(), d, MoveOptions{Checks: 1, MaxFiles: 2}); err == nil || len(hint.Of(err)) == 0 {
		t.Errorf("fewer files than a backup has: %v", err)
	}
	o = MoveOptions{Checks: 1, Preserve: true}
	if _, err := MoveBackups(t.Context(), d, o); err != nil || len(listed(holds(t, from))) != 3 || len(listed(holds(t, to))) != 5 {
		t.Errorf("preserved: %v, %v", listed(holds(t, from)), err)
	}
	if _, err := MoveBackups(t.Context(), d, MoveOptions{Checks: 1}); err != nil || len(listed(holds(t, from))) != 0 {
		t.Errorf("all: %v, %v", listed(holds(t, from)), err)
	}
}

func TestMovesReplaceOnlyOnRequest(t *testing.T) {
	t.Parallel()
	from, to := storagetest.NewMemory(), storagetest.NewMemory()
	for key, content := range map[string]string{"d/a": "1", "d/b": "2", "d/e/c": "3", "da": "4", "wal-g_storage_check": "probe"} {
		put(t, from, key, content)
	}
	put(t, to, "d/a", "1")
	put(t, to, "d/b", "other")
	report, err := Move(t.Context(), deps(t, from, to), MoveOptions{Prefix: "d", Checks: 1})
	if err == nil || !strings.Contains(err.Error(), `"d/b"`) || report.Removed.Objects != 2 {
		t.Errorf("%+v, %v", report, err)
	}
	same(t, holds(t, from), map[string]string{"d/b": "2", "da": "4", "wal-g_storage_check": "probe"}, nil)
	same(t, holds(t, to), map[string]string{"d/a": "1", "d/b": "other", "d/e/c": "3"}, nil)
	if _, err := Move(t.Context(), deps(t, from, to), MoveOptions{Prefix: "d/", Checks: 1, Overwrite: true}); err != nil {
		t.Error(err)
	}
	same(t, holds(t, to), map[string]string{"d/a": "1", "d/b": "2", "d/e/c": "3"}, nil)
	if _, err := Move(t.Context(), deps(t, to, to), MoveOptions{Prefix: "d", Checks: 1}); err == nil || !strings.Contains(err.Error(), "the same place") {
		t.Errorf("to itself: %v", err)
	}
	if len(holds(t, to)) != 3 {
		t.Error("something was lost")
	}
}

func TestCopyObjects(t *testing.T) {
	t.Parallel()
	from, _ := archived(t)
	to := storagetest.NewMemory()
	put(t, from, "notes/a.txt", "a")
	if _, err := CopyObjects(t.Context(), deps(t, from, to), ObjectsOptions{Prefix: "notes"}); err != nil {
		t.Fatal(err)
	}
	same(t, holds(t, to), map[string]string{"notes/a.txt": "a"}, nil)
	if _, err := CopyObjects(t.Context(), deps(t, from, to), ObjectsOptions{}); err != nil {
		t.Fatal(err)
	}
	same(t, holds(t, to), holds(t, from), nil)
	put(t, to, "notes/a.txt", "b")
	var conflict *ConflictError
	if _, err := CopyObjects(t.Context(), deps(t, from, to), ObjectsOptions{}); !errors.As(err, &conflict) {
		t.Errorf("%v", err)
	}
	put(t, to, "walden_identity.json", `{"version":1,"current":{"system_identifier":"1"}}`)
	if _, err := CopyObjects(t.Context(), deps(t, from, to), ObjectsOptions{Prefix: "wal_005"}); err == nil || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("%v", err)
	}
	if _, err := CopyObjects(t.Context(), deps(t, from, to), ObjectsOptions{Prefix: "none"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestCopyObjectsBetweenKeys(t *testing.T) {
	t.Parallel()
	sealed := func(s storage.Store, k byte) End {
		cipher, err := crypt.NewSodium(bytes.Repeat([]byte{k}, 32))
		if err != nil {
			t.Fatal(err)
		}
		c, err := codec.New("lz4", codec.Options{})
		if err != nil {
			t.Fatal(err)
		}
		r := repo.New(s, c, cipher, repo.Options{})
		return End{r, catalog.New(r, slog.New(slog.DiscardHandler))}
	}
	from, to, plain := storagetest.NewMemory(), storagetest.NewMemory(), storagetest.NewMemory()
	source, target := sealed(from, 1), sealed(to, 2)
	if _, err := source.Repo.Put(t.Context(), "a", text("content")); err != nil {
		t.Fatal(err)
	}
	d := Deps{From: source, To: target, Log: slog.New(slog.DiscardHandler), Progress: quiet{}}
	for range 2 { // the second run compares
		if _, err := CopyObjects(t.Context(), d, ObjectsOptions{Decrypt: true, Encrypt: true}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := target.Repo.Open(t.Context(), "a.lz4")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil || string(got) != "content" {
		t.Errorf("%q, %v", got, err)
	}
	d.To = end(t, plain, "none")
	if _, err := CopyObjects(t.Context(), d, ObjectsOptions{Decrypt: true}); err != nil {
		t.Fatal(err)
	}
	if r, err = d.To.Repo.Open(t.Context(), "a.lz4"); err != nil {
		t.Fatal(err)
	}
	if got, err = io.ReadAll(r); err != nil || string(got) != "content" {
		t.Errorf("%q, %v", got, err)
	}
	_ = r.Close()
}
