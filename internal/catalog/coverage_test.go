package catalog

import (
	"testing"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// A backup whose timeline was left while it was being taken holds pages of a line of descent that the younger timeline has not.
func TestABackupLeadsToTimelinesThatLeaveItsOwnAfterItsEnd(t *testing.T) {
	t.Parallel()
	c := (&Inventory{SegmentSize: 16 << 20, Histories: map[wal.Timeline]wal.History{
		2: {{Timeline: 1, LSN: 0x5000000}},
		3: {{Timeline: 1, LSN: 0x5000000}, {Timeline: 2, LSN: 0x7000000}},
	}}).Coverage()
	for _, test := range []struct {
		name          string
		start, finish wal.LSN
		timeline      wal.Timeline
		want          bool
	}{
		{"base_000000010000000000000003", 0x3000028, 0x4000100, 1, true},
		{"base_000000010000000000000003", 0x3000028, 0x4000100, 3, true},
		{"base_000000010000000000000003", 0x3000028, 0x5000000, 2, true},
		{"base_000000010000000000000003", 0x3000028, 0x5000001, 2, false},
		{"base_000000010000000000000003", 0x3000028, 0x5000001, 3, false},
		{"base_000000010000000000000003", 0x3000028, 0, 2, true}, // its end is not recorded
		{"base_000000010000000000000006", 0x6000028, 0, 2, false},
		{"base_000000020000000000000006", 0x6000028, 0x6000100, 3, true},
		{"base_000000020000000000000006", 0x6000028, 0x8000000, 3, false},
		{"base_000000020000000000000006", 0x6000028, 0x8000000, 1, false},
		{"base_000000020000000000000006", 0x6000028, 0x8000000, 2, true},
	} {
		if got := c.LeadsTo(Backup{Name: test.name, StartLSN: test.start, FinishLSN: test.finish}, test.timeline); got != test.want {
			t.Errorf("%s from %s to %s leads to timeline %d: %v", test.name, test.start, test.finish, test.timeline, got)
		}
	}
}
