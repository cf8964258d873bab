package catalog

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
	"gitlab.com/walden-pg/walden/internal/wal"
)

func TestObjectsAmongTheWALAreToldByTheirNames(t *testing.T) {
	t.Parallel()
	const size = 16 << 20
	for _, c := range []struct {
		name     string
		kind     WALKind // "" for what is not of the format
		timeline wal.Timeline
		position Position
	}{
		{"000000010000000000000002", WALSegment, 1, 2},
		{"0000000A000000FF00000003", WALSegment, 10, 0xFF00000003},
		{"000000010000000000000002.partial", WALPartial, 1, 2},
		{"000000010000000000000002.00000028.backup", WALBackupHistory, 1, 2},
		{"00000003.history", WALHistory, 3, 0},
		{"0000000100000001000000F0_delta", WALDelta, 1, 0x1000000FF},
		{"000000010000000000000002.json", WALMetadata, 1, 2},
		{"00000001000000000000002.json", WALMetadata, 1, 0x2F},
		{"000000010000000000000002_delta_part", "", 0, 0},
		{"notes.json", "", 0, 0}, {"", "", 0, 0}, {"wal-g_storage_check", "", 0, 0}, {"00000000.history", "", 0, 0},
	} {
		f, ok := classify(c.name, size)
		if ok != (c.kind != "") || ok && (f.Kind != c.kind || f.Timeline != c.timeline || f.Position != c.position) {
			t.Errorf("%q is %+v, %t", c.name, f, ok)
		}
	}
}

// archive is an inventory of segments and backups; a segment is written as timeline.number, a range with a dash.
func archive(histories map[wal.Timeline]wal.History, segments string, backups ...Backup) *Inventory {
	const size = 16 << 20
	inv := &Inventory{SegmentSize: size, Histories: histories, Backups: backups}
	for part := range strings.FieldsSeq(segments) {
		var timeline wal.Timeline
		var first, last uint64
		if n, _ := fmt.Sscanf(part, "%d.%d-%d", &timeline, &first, &last); n < 3 {
			last = first
		}
		for s := range wal.Segments(wal.Segment{Timeline: timeline, Number: first}, wal.Segment{Timeline: timeline, Number: last}) {
			f, _ := classify(s.Name(size), size)
			f.Modified = time.Unix(int64(s.Number)*60, 0)
			inv.WAL = append(inv.WAL, f)
		}
	}
	return inv
}

func taken(timeline wal.Timeline, first, last uint64) Backup {
	const size = 16 << 20
	return Backup{
		Name: "base_" + wal.Segment{Timeline: timeline, Number: first}.Name(size), StartLSN: wal.LSN(first*size + 0x28), FinishLSN: wal.LSN(last*size + 0x100),
		FinishTime: time.Unix(int64(last)*60, 0),
	}
}

func TestWindowsFollowHistoriesAndEndAtGaps(t *testing.T) {
	t.Parallel()
	const size = 16 << 20
	histories := map[wal.Timeline]wal.History{2: {{Timeline: 1, LSN: 10*size + 0x500}}}
	inv := archive(histories, "1.2-6 1.8-12 2.10-14 2.16", taken(1, 3, 4), taken(1, 8, 9), taken(1, 11, 11), taken(2, 15, 15))
	c := inv.Coverage()
	show := func(timeline wal.Timeline) string {
		var s []string
		for _, w := range c.Windows(timeline) {
			s = append(s, fmt.Sprintf("%s %s-%s %d", w.Backup[len(w.Backup)-2:], w.From, w.To, w.Backups))
		}
		return strings.Join(s, "; ")
	}
	// The backup at 11 began where timeline 2 had left; the one at 15 has no WAL.
	if got, want := show(2), "03 0/4000100-0/7000000 1; 08 0/9000100-0/F000000 1"; got != want {
		t.Errorf("timeline 2: %s, want %s", got, want)
	}
	if got, want := show(1), "03 0/4000100-0/7000000 1; 08 0/9000100-0/D000000 2"; got != want {
		t.Errorf("timeline 1: %s, want %s", got, want)
	}
	branches, err := c.Branches()
	if err != nil || len(branches) != 2 {
		t.Fatalf("%v, %v", branches, err)
	}
	if b := branches[0]; b.Range != 11 || b.Count != 10 || len(b.Missing) != 1 || b.Missing[0] != "000000010000000000000007" || len(b.Backups) != 3 {
		t.Errorf("timeline 1 is %+v", b)
	}
	if b := branches[1]; b.Parent != 1 || b.Switch != 10*size+0x500 || b.Last != "000000020000000000000010" || b.Range != 7 || b.Count != 6 {
		t.Errorf("timeline 2 is %+v", b)
	}
}

func TestIntegrityIsToldBackwardsFromTheServersPosition(t *testing.T) {
	t.Parallel()
	const size = 16 << 20
	histories := map[wal.Timeline]wal.History{2: {{Timeline: 1, LSN: 10*size + 0x500}}}
	inv := archive(histories, "1.2-4 1.6-9 2.10-12", taken(1, 3, 4))
	show := func(current wal.Segment, from *Backup, g Grace) string {
		t.Helper()
		stretches, known, err := inv.Coverage().Integrity(current, from, g)
		if err != nil {
			return err.Error()
		}
		var s []string
		for _, x := range stretches {
			s = append(s, fmt.Sprintf("%d.%d-%d %s", x.First.Timeline, x.First.Number, x.Last.Number, x.Status))
		}
		return fmt.Sprintf("%t %s", known, strings.Join(s, ", "))
	}
	at := func(timeline wal.Timeline, n uint64) wal.Segment { return wal.Segment{Timeline: timeline, Number: n} }
	for _, c := range []struct {
		current wal.Segment
		grace   Grace
		want    string
	}{
		{at(2, 13), Grace{}, "true 1.3-4 FOUND, 1.5-5 MISSING_LOST, 1.6-9 FOUND, 2.10-12 FOUND"},
		{at(2, 15), Grace{Delayed: 5, Uploading: 16}, "true 1.3-4 FOUND, 1.5-5 MISSING_UPLOADING, 1.6-9 FOUND, 2.10-12 FOUND, 2.13-14 MISSING_DELAYED"},
		{at(2, 15), Grace{Delayed: 1, Uploading: 1}, "true 1.3-4 FOUND, 1.5-5 MISSING_LOST, 1.6-9 FOUND, 2.10-12 FOUND, 2.13-13 MISSING_UPLOADING, 2.14-14 MISSING_DELAYED"},
		{at(3, 5), Grace{}, "false 3.1-4 MISSING_LOST"},
	} {
		if got := show(c.current, nil, c.grace); got != c.want {
			t.Errorf("%v, %+v: %s, want %s", c.current, c.grace, got, c.want)
		}
	}
	if got := show(at(3, 5), &inv.Backups[0], Grace{}); !strings.Contains(got, "does not descend") {
		t.Errorf("from a backup of another line: %s", got)
	}
}

// manyWAL adds segments to what a store lists, which would take the memory of real objects.
type manyWAL struct {
	storage.Store
	segments int
}

func (s manyWAL) List(ctx context.Context, dir string) iter.Seq2[storage.Object, error] {
	if dir != walDir {
		return s.Store.List(ctx, dir)
	}
	return func(yield func(storage.Object, error) bool) {
		for n := range s.segments {
			name := wal.Segment{Timeline: 1, Number: uint64(n) + 1}.Name(16 << 20)
			if !yield(storage.Object{Key: walDir + name + ".lz4", Size: 1000}, nil) {
				return
			}
		}
	}
}

func TestALookAtALargeArchiveTakesFewCalls(t *testing.T) {
	t.Parallel()
	backups, segments := testenv.Pick(200, 2_000), testenv.Pick(20_000, 200_000)
	memory := storagetest.NewMemory()
	put(t, memory, identityName, `{"version":1,"current":{"system_identifier":"7","wal_segment_size":16777216}}`)
	for n := range backups {
		s := wal.Segment{Timeline: 1, Number: uint64(n*10 + 1)}
		name := "base_" + s.Name(16<<20)
		put(t, memory, sentinelKey(name), fmt.Sprintf(`{"LSN":%d,"FinishLSN":%d,"Version":2}`, s.Start(16<<20)+0x28, s.Start(16<<20)+0x100))
		put(t, memory, backupDir(name)+metadataName, `{"is_permanent":false}`)
	}
	counted := storagetest.NewFault(manyWAL{memory, segments})
	inv, err := open(t, counted).Inventory(t.Context())
	if err != nil || len(inv.Backups) != backups || len(inv.WAL) != segments {
		t.Fatalf("%d backups, %d files, %v", len(inv.Backups), len(inv.WAL), err)
	}
	lists, gets, all := counted.Count(storagetest.OpList), counted.Count(storagetest.OpGet), len(counted.Calls())
	if lists != 4 || gets != 2*backups+1 || all != lists+gets {
		t.Errorf("%d listings, %d objects read, %d calls in all", lists, gets, all)
	}
	if w := inv.Coverage().Windows(1); len(w) != 1 || w[0].Backups != backups {
		t.Errorf("the windows are %+v", w)
	}
}
