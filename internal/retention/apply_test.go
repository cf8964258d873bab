package retention

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/codec"
	"gitlab.com/walden-pg/walden/internal/crypt"
	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

func open(t *testing.T, s storage.Store) *catalog.Catalog {
	t.Helper()
	c, err := codec.New("none", codec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	return catalog.New(repo.New(s, c, crypt.None{}, repo.Options{Log: log}), log)
}

// store writes what the model's archive holds into a storage.
func (w *world) store(t *testing.T, s storage.Store) {
	t.Helper()
	put := func(key, content string) {
		if err := s.Put(t.Context(), key, strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	put("walden_identity.json", fmt.Sprintf(`{"version":1,"current":{"system_identifier":"%d","wal_segment_size":%d}}`, w.line.system, size))
	put("wal_005/notes.txt", "not an archive's")
	for name, b := range w.backups {
		doc := map[string]any{
			"LSN": uint64(b.StartLSN), "FinishLSN": uint64(b.FinishLSN), "SystemIdentifier": b.SystemIdentifier, "PgVersion": 150000, "Version": 2,
			"StartTime": b.StartTime, "FinishTime": b.FinishTime, "IsPermanent": b.Permanent, "CompressedSize": 1000,
			"Walden": map[string]any{"Version": "1", "ManifestSHA256": "00", "WAL": "archived", "CorruptBlocks": b.CorruptBlocks},
		}
		if b.Delta != nil {
			doc["DeltaFrom"], doc["DeltaLSN"], doc["DeltaCount"] = b.Delta.From, uint64(b.Delta.LSN), 1
		}
		text, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		dir := "basebackups_005/" + name
		put(dir+"/tar_partitions/part_001.tar.lz4", "data")
		put(dir+"/metadata.json", fmt.Sprintf(`{"is_permanent":%t}`, b.Permanent))
		put(dir+"_backup_stop_sentinel.json", string(text))
	}
	for name := range w.wal {
		var content bytes.Buffer
		if strings.HasSuffix(name, ".history") {
			timeline, _, _ := strings.Cut(name, ".")
			for tl, h := range w.histories {
				if fmt.Sprintf("%08X", uint32(tl)) == timeline {
					for _, s := range h {
						fmt.Fprintf(&content, "%d\t%s\tno recovery target specified\n", s.Timeline, s.LSN)
					}
				}
			}
		}
		put("wal_005/"+name, content.String())
		if strings.HasSuffix(name, "7") {
			put("walden_fingerprints/"+name+".json", "{}")
		}
	}
}

// holds returns the names of the backups and of the WAL in a storage.
func holds(t *testing.T, s storage.Store) (backups, files []string, all int) {
	t.Helper()
	var visit func(dir string)
	visit = func(dir string) {
		for o, err := range s.List(t.Context(), dir) {
			if err != nil {
				t.Fatal(err)
			}
			if o.IsDir() {
				visit(o.Key)
				continue
			}
			all++
			if name, ok := strings.CutSuffix(o.Key, "_backup_stop_sentinel.json"); ok {
				backups = append(backups, strings.TrimPrefix(name, "basebackups_005/"))
			}
			if name, ok := strings.CutPrefix(o.Key, "wal_005/"); ok {
				files = append(files, name)
			}
		}
	}
	visit("")
	return backups, files, all
}

// A deletion in a storage of which any call fails for good leaves what the plan says or more, never a backup without its parts; the
// same request again does the rest, as if nothing had failed.
func TestADeletionThatFailedIsCompletedByTheNext(t *testing.T) {
	t.Parallel()
	chance := testenv.Rand(t)
	failures := 0
	for range testenv.Pick(20, 400) {
		seed := chance.Uint64()
		w := newWorld(rand.New(rand.NewPCG(seed, 2)))
		for range 25 {
			w.step()
		}
		w.unfinished = nil // their times are the storage's
		r := []Request{
			{Verb: Retain, Count: 1 + w.chance.IntN(3), Modifier: FindFull}, {Verb: Retain, Count: 1, Modifier: Full}, {Verb: Garbage, WAL: true, Leftover: true},
			{Verb: Everything, Force: true},
		}[w.chance.IntN(4)]
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("life %d, %+v: %s\n%s", seed, r, fmt.Sprintf(format, args...), strings.Join(w.log, "\n"))
		}
		memory := storagetest.NewMemory()
		w.store(t, memory)
		run := func(s storage.Store) (*Plan, error) {
			c := open(t, s)
			inv, err := c.Inventory(t.Context())
			if err != nil {
				return nil, err
			}
			plan, err := New(&inv, r, w.now)
			if err != nil {
				fail("%v", err)
			}
			return plan, plan.Apply(t.Context(), Deps{c, slog.New(slog.DiscardHandler)})
		}
		pure, err := New(w.inventory(w.state), r, w.now)
		if err != nil {
			fail("%v", err)
		}
		fault := storagetest.NewFault(memory, storagetest.Rule{
			Kind: []storagetest.Kind{storagetest.Before, storagetest.Half, storagetest.AnswerLost}[w.chance.IntN(3)], Nth: 1 + w.chance.IntN(8), ForGood: true,
			Match: func(c storagetest.Call) bool { return c.Op == storagetest.OpDelete || c.Op == storagetest.OpPut },
		})
		_, err = run(fault)
		if fault.Fired() {
			failures++
			if err == nil {
				fail("a failure of %s was not told", fault.Struck()[0])
			}
			backups, _, _ := holds(t, memory)
			for _, name := range backups {
				if _, err := memory.Stat(t.Context(), "basebackups_005/"+name+"/tar_partitions/part_001.tar.lz4"); err != nil {
					fail("%s is listed: %v", name, err)
				}
			}
		}
		if _, err := run(memory); err != nil {
			fail("%v", err)
		}
		w.carryOut(pure, 1<<30)
		backups, files, all := holds(t, memory)
		if want := slices.Sorted(maps.Keys(w.backups)); !slices.Equal(slices.Sorted(slices.Values(backups)), want) {
			fail("the archive holds %v, not %v", backups, want)
		}
		want := append(slices.Collect(maps.Keys(w.wal)), "notes.txt")
		if slices.Sort(want); !slices.Equal(slices.Sorted(slices.Values(files)), want) {
			fail("the archive holds %v, not %v", files, want)
		}
		if r.Verb == Everything && all != 1 {
			fail("after everything %d objects are left", all)
		}
		if again, err := run(memory); err != nil || !again.Empty() {
			fail("once more: %v, %+v", err, again)
		}
	}
	testenv.Figure(t, "deletions in a storage", "failed and completed", failures)
}

func TestNothingIsRemovedAfterTheContextHasEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(rand.New(rand.NewPCG(1, 1)))
	w.write(20)
	w.push(nil)
	w.push(nil)
	memory := storagetest.NewMemory()
	w.store(t, memory)
	c := open(t, memory)
	inv, err := c.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	plan, err := New(&inv, Request{Verb: Retain, Count: 1}, w.now)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, before := holds(t, memory)
	if err := plan.Apply(ctx, Deps{c, slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("a deletion that did nothing succeeds")
	}
	if _, _, after := holds(t, memory); after != before || plan.Empty() {
		t.Errorf("%d objects, and there were %d", after, before)
	}
}
