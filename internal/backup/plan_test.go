package backup

import (
	"slices"
	"testing"
)

const gib = 1 << 30

func TestAPartThatOutlastsTheOthersIsWide(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		workers int
		atMost  int
		costs   []int64
		want    []task
	}{
		{"one huge table and little else", 2, 4, []int64{minPart, gib, minPart}, []task{{1, true}, {0, false}, {2, false}}},
		{"as many large ones as workers", 2, 4, []int64{gib, gib}, []task{{0, false}, {1, false}}},
		{"fewer large ones than workers", 4, 4, []int64{minPart, gib, gib}, []task{{1, true}, {2, true}, {0, false}}},
		{"more of them than there is memory for", 4, 1, []int64{gib, gib}, []task{{0, true}, {1, false}}},
		{"many", 2, 4, []int64{gib, gib, gib, gib}, []task{{0, false}, {1, false}, {2, false}, {3, false}}},
		{"alone", 4, 4, []int64{gib}, []task{{0, true}}},
		{"one worker", 1, 4, []int64{gib, minPart}, []task{{0, false}, {1, false}}},
		{"too small to have several blocks", 4, 4, []int64{minPart}, []task{{0, false}}},
		{"nothing", 4, 4, nil, []task{}},
	} {
		j := &job{options: Options{Workers: c.workers, WideParts: c.atMost}}
		for _, cost := range c.costs {
			j.parts = append(j.parts, part{cost: cost})
		}
		if got := j.workList(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, expected %v", c.name, got, c.want)
		}
	}
}
