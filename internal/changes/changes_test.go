package changes

import (
	"slices"
	"testing"
)

func TestAFileHasTheBlocksOfItsSegment(t *testing.T) {
	t.Parallel()
	const segmentBlocks = 100
	table, other := Relation{1663, 5, 16384}, Relation{1663, 5, 16385}
	mark := func(blocks ...uint32) func(*Map) {
		return func(m *Map) {
			for _, b := range blocks {
				m.Mark(table, b)
			}
		}
	}
	for _, c := range []struct {
		name     string
		fill     func(*Map)
		segment  uint32
		length   uint32
		want     []uint32
		allIsNew bool
	}{
		{"nothing is known of it", func(m *Map) { m.Mark(other, 1) }, 0, 10, nil, false},
		{"some blocks", mark(3, 7, 3), 0, 10, []uint32{3, 7}, false},
		{"blocks that it lost", mark(3, 12), 0, 10, []uint32{3}, false},
		{"blocks of the second file", mark(99, 100, 150, 200), 1, 100, []uint32{0, 50}, false},
		{"cut and grown again", func(m *Map) { m.Mark(table, 2); m.Cut(table, 7) }, 0, 10, []uint32{2, 7, 8, 9}, false},
		{"cut twice", func(m *Map) { m.Cut(table, 8); m.Cut(table, 9) }, 0, 10, []uint32{8, 9}, false},
		{"cut before the file", func(m *Map) { m.Cut(table, 50) }, 1, 10, nil, true},
		{"cut at the start of the file", func(m *Map) { m.Cut(table, 100) }, 1, 10, nil, true},
		{"cut in the file", func(m *Map) { m.Cut(table, 101) }, 1, 3, []uint32{1, 2}, false},
		{"cut behind the file", func(m *Map) { m.Cut(table, 300) }, 1, 3, nil, false},
		{"created", func(m *Map) { m.Cut(table, 0) }, 0, 3, nil, true},
		{"its database is new", func(m *Map) { m.Replace(1663, 5) }, 0, 3, nil, true},
		{"another database is new", func(m *Map) { m.Replace(1664, 5) }, 0, 3, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var direct, added Map
			c.fill(&direct)
			added.Add(&direct)
			for _, m := range []*Map{&direct, &added} {
				got, whole := m.InFile(table, c.segment, segmentBlocks, c.length)
				if whole != c.allIsNew || !slices.Equal(slices.Collect(got.All()), c.want) {
					t.Errorf("got %v, all of it: %v; want %v, %v", slices.Collect(got.All()), whole, c.want, c.allIsNew)
				}
				for b := range c.length {
					if has := m.Has(table, c.segment*segmentBlocks+b); has != (whole || got.Has(b)) {
						t.Errorf("block %d: %v", b, has)
					}
				}
			}
		})
	}
}
