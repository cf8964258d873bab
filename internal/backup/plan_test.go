package backup

import (
	"slices"
	"testing"
)

const gib = 1 << 30

func TestPartsThatMayBeTheLastOnesAreWide(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		workers int
		costs   []int64
		want    []task
	}{
		{"one huge table and little else", 2, []int64{minPart, gib, minPart}, []task{{1, true}, {0, true}, {2, true}}},
		{"as many large ones as workers", 2, []int64{gib, gib}, []task{{0, true}, {1, true}}},
		{"many", 2, []int64{gib, gib, gib, gib, gib, gib}, []task{{0, false}, {1, false}, {2, false}, {3, true}, {4, true}, {5, true}}},
		{"alone", 4, []int64{gib}, []task{{0, true}}},
		{"too small to have several blocks", 4, []int64{minPart - 1}, []task{{0, false}}},
		{"nothing", 4, nil, []task{}},
	} {
		j := &job{options: Options{Workers: c.workers}}
		for _, cost := range c.costs {
			j.parts = append(j.parts, part{cost: cost})
		}
		if got := j.workList(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, expected %v", c.name, got, c.want)
		}
	}
}
