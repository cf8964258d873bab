package catalog

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/wal"
)

func TestGapsTellWhereRecoveryEndsAndWhatGoesOn(t *testing.T) {
	t.Parallel()
	const size = 16 << 20
	histories := map[wal.Timeline]wal.History{
		2: {{Timeline: 1, LSN: 10*size + 0x500}},
		3: {{Timeline: 1, LSN: 10*size + 0x500}, {Timeline: 2, LSN: 20 * size}},
	}
	permanent := func(b Backup) Backup { b.Permanent = true; return b }
	of := func(b Backup, system uint64) Backup { b.SystemIdentifier = system; return b }
	for _, c := range []struct {
		name     string
		segments string
		backups  []Backup
		timeline wal.Timeline
		written  uint64
		want     string
	}{
		{"nothing is missing", "1.3-9", []Backup{taken(1, 3, 4)}, 1, 9, ""},
		{"nothing was archived since", "1.3-9", []Backup{taken(1, 3, 4)}, 1, 11, "1.10-11 ends 0/A000000 stops 3"},
		{"in the middle, and healed", "1.3-5 1.8-12", []Backup{taken(1, 3, 4), taken(1, 9, 9)}, 1, 12, "1.6-7 ends 0/6000000 stops 3 heals 9"},
		{"in the middle, and not healed", "1.3-5 1.8-12", []Backup{taken(1, 3, 4)}, 1, 0, "1.6-7 ends 0/6000000 stops 3"},
		{"two of them", "1.3-5 1.7-8 1.10", []Backup{taken(1, 3, 4), taken(1, 7, 7)}, 1, 0, "1.6-6 ends 0/6000000 stops 3 heals 7; 1.9-9 ends 0/9000000 stops 7"},
		{"within a backup", "1.3-5 1.8-12", []Backup{taken(1, 3, 4), taken(1, 5, 6), taken(1, 9, 9)}, 1, 0, "1.6-7 ends 0/6000000 stops 3 breaks 5 heals 9"},
		{"the first one", "1.4-12", []Backup{taken(1, 3, 4)}, 1, 0, "1.3-3 ends 0/3000000 breaks 3"},
		{"before the oldest backup", "1.1 1.5-12", []Backup{taken(1, 5, 6)}, 1, 0, ""},
		{"behind a permanent backup", "1.3-4 1.8-12", []Backup{permanent(taken(1, 3, 4)), taken(1, 8, 9)}, 1, 0, ""},
		{"within a permanent backup", "1.3 1.8-12", []Backup{permanent(taken(1, 3, 4)), taken(1, 8, 9)}, 1, 0, "1.4-4 ends 0/4000000 breaks 3 heals 8"},
		{"permanent backups only", "1.3-4 1.8-12 1.14", []Backup{permanent(taken(1, 3, 4)), permanent(taken(1, 8, 9))}, 1, 0, "1.13-13 ends 0/D000000 stops 8"},
		{"no backup", "1.3-4 1.8-12", nil, 1, 20, ""},
		{"another cluster's backup", "1.3-4 1.8-12", []Backup{of(taken(1, 3, 4), 1), of(taken(1, 8, 9), 2)}, 1, 0, ""},
		{"across timelines", "1.3-8 2.11-14", []Backup{taken(1, 3, 4)}, 2, 0, "1.9-9 2.10-10 ends 0/9000000 stops 3"},
		{"the segment of the switch", "1.3-12 2.11-14", []Backup{taken(1, 3, 4)}, 2, 0, "2.10-10 ends 0/A000000 stops 3"},
		{"behind the switch it is another timeline's", "1.3-9 1.11 2.10-14", []Backup{taken(1, 3, 4)}, 2, 0, ""},
		{"and its own", "1.3-9 1.11 2.10-14", []Backup{taken(1, 3, 4)}, 1, 0, "1.10-10 ends 0/A000000 stops 3"},
		{"a timeline between", "1.3-9 2.10-17 3.20-22", []Backup{taken(1, 3, 4), taken(3, 21, 21)}, 3, 24,
			"2.18-19 ends 0/12000000 stops 3 heals 21; 3.23-24 ends 0/17000000 stops 21"},
		{"of a timeline nothing is there", "1.3-9", []Backup{taken(1, 3, 4)}, 3, 0, ""},
	} {
		var shown []string
		for _, g := range archive(histories, c.segments, c.backups...).Coverage().Gaps(c.timeline, c.written) {
			var s []string
			for _, p := range g.Parts {
				s = append(s, fmt.Sprintf("%d.%d-%d", p.First.Timeline, p.First.Number, p.Last.Number))
			}
			number := func(name string) string {
				_, p, _ := PositionOf(strings.TrimPrefix(name, "base_"))
				return fmt.Sprint(uint64(p))
			}
			s = append(s, "ends "+g.End.String())
			for _, name := range g.Stopped {
				s = append(s, "stops "+number(name))
			}
			for _, name := range g.Broken {
				s = append(s, "breaks "+number(name))
			}
			if g.Healed != "" {
				s = append(s, "heals "+number(g.Healed))
			}
			if want := time.Unix(int64(g.First()-1)*60, 0); !g.EndTime.Equal(want) && !strings.Contains(c.name, "first") {
				t.Errorf("%s: the gap begins at %s, not %s", c.name, g.EndTime, want)
			}
			shown = append(shown, strings.Join(s, " "))
		}
		if got := strings.Join(shown, "; "); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// Recovery takes the segment in which a timeline begins from that timeline, and the older one's goes on otherwise.
func TestAWindowEndsWhereTheSegmentOfASwitchIsMissing(t *testing.T) {
	t.Parallel()
	const size = 16 << 20
	histories := map[wal.Timeline]wal.History{2: {{Timeline: 1, LSN: 10*size + 0x500}}}
	windows := archive(histories, "1.3-12 2.11-14", taken(1, 3, 4)).Coverage().Windows(2)
	if len(windows) != 1 || windows[0].To != 10*size {
		t.Errorf("the windows are %+v", windows)
	}
}

func TestWhatWouldBeArchivedCounts(t *testing.T) {
	t.Parallel()
	inv := archive(nil, "1.3-5 1.8", taken(1, 3, 4))
	more := inv.With(time.Unix(1, 0), "000000010000000000000007", "000000010000000000000006", "notes")
	if len(inv.WAL) != 4 || len(more.WAL) != 6 || !slices.IsSortedFunc(more.WAL, func(a, b WALFile) int { return strings.Compare(a.Name, b.Name) }) {
		t.Errorf("%v and %v", inv.WAL, more.WAL)
	}
	if gaps := more.Coverage().Gaps(1, 8); len(gaps) > 0 {
		t.Errorf("there are gaps: %+v", gaps)
	}
}

func TestALookKnowsTheClusterWithoutAsking(t *testing.T) {
	t.Parallel()
	c := open(t, storagetest.NewMemory())
	inv := archive(nil, "1.3")
	if err := c.CheckCluster(inv, Cluster{SystemIdentifier: 5}); err != nil {
		t.Errorf("of an archive that says nothing: %v", err)
	}
	b := taken(1, 3, 4)
	b.SystemIdentifier = 7
	inv.Backups = []Backup{b}
	if err := c.CheckCluster(inv, Cluster{SystemIdentifier: 5}); err == nil || !strings.Contains(err.Error(), "from its backup "+b.Name) {
		t.Errorf("another cluster's: %v", err)
	}
	inv.Identity.Current = Cluster{SystemIdentifier: 5}
	if err := c.CheckCluster(inv, Cluster{SystemIdentifier: 5, SegmentSize: 1 << 20}); err != nil {
		t.Errorf("the identity counts first: %v", err)
	}
}

// Nothing may tell the size of segments: WAL-E records none, and without the key no segment can be read.
func TestAnArchiveOfSegmentsOfUnknownSizeCanBeLookedAt(t *testing.T) {
	t.Parallel()
	inv := archive(nil, "1.3-9")
	inv.SegmentSize = 0
	inv.Backups = []Backup{{Name: "base_000000010000000000000003_00000040", WALE: &WALE{StopSegment: "000000010000000000000004"}}}
	c := inv.Coverage()
	if w, g := c.Windows(1), c.Gaps(1, 9); len(w) > 0 || len(g) > 0 {
		t.Errorf("the windows are %+v, the gaps %+v", w, g)
	}
	if err := c.Unrestorable(inv.Backups[0]); err != nil {
		t.Error(err)
	}
}
