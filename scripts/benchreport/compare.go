package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// resolution is by how much a metric has to differ at least to mean anything: the kernel counts CPU time in steps of 10 ms for each
// of the processes, whole MiB are counted on disk, and the moment of a collection of garbage moves the peak of memory.
var resolution = map[string]float64{"wall s": 0.02, "copy s": 0.02, "CPU s": 0.03, "peak MiB": 2, "stored MiB": 1}

// leastRounds are needed to tell a worse build from a disturbed one.
const leastRounds = 3

// comparison is what two builds took for the same metric of the same job.
type comparison struct {
	ratio  float64   // of the medians, newer divided by older
	rounds []float64 // the same in each round that both have, ascending
	worse  bool
}

// compare writes a table of the two builds and says whether the newer one is worse in any of it. Ratios within one run are compared,
// and never a time with one of another day. One turn that a neighbour on the machine has disturbed decides nothing: the medians and all rounds
// but one in five have to be beyond the limit, in percent.
func (m *measurements) compare(to io.Writer, limit float64) (worse bool, err error) {
	w := bufio.NewWriter(to)
	for _, note := range m.notes {
		fmt.Fprintf(w, "- %s\n", note)
	}
	fmt.Fprint(w, "\n| job | tool | metric | before | now | now ÷ before | lowest round | highest round | |\n|---|---|---|--:|--:|--:|--:|--:|---|\n")
	compared, bad, alone := 0, 0, []string(nil)
	for i := range m.series {
		newer := &m.series[i]
		variant, own := strings.CutPrefix(newer.tool, "walden")
		if !own {
			continue
		}
		older := m.find(*newer, "before"+variant)
		if older == nil {
			if name := newer.job + ", " + newer.tool; !slices.Contains(alone, name) {
				alone = append(alone, name)
			}
			continue
		}
		c, err := of(newer, older, limit)
		if err != nil {
			return false, err
		}
		verdict := ""
		if c.worse {
			verdict = "**worse**"
			bad++
		}
		compared++
		fmt.Fprintf(w, "| %s | %s | %s | %.4g | %.4g | %.2f | %.2f | %.2f | %s |\n", newer.job, newer.tool, newer.metric,
			median(older.sorted()), median(newer.sorted()), c.ratio, c.rounds[0], c.rounds[len(c.rounds)-1], verdict)
	}
	if compared == 0 {
		return false, errors.New("there are no two builds to compare in this file: BENCH_BEFORE=… scripts/bench measures them")
	}
	for _, name := range alone {
		fmt.Fprintf(w, "\nOnly the newer build was measured: %s.\n", name)
	}
	fmt.Fprintf(w, "\n%d compared, %d worse by more than %g %% in the median and in all rounds but one in five.\n", compared, bad, limit)
	return bad > 0, w.Flush()
}

// of compares one metric of two builds.
func of(newer, older *series, limit float64) (comparison, error) {
	var c comparison
	most, least := 1+limit/100, resolution[newer.metric]
	beyond := func(now, before float64) bool { return now > before*most && now-before > least }
	agree := 0
	for _, now := range newer.rounds {
		i := slices.IndexFunc(older.rounds, func(r round) bool { return r.number == now.number })
		if i < 0 {
			continue
		}
		a, b := median(slices.Sorted(slices.Values(now.values))), median(slices.Sorted(slices.Values(older.rounds[i].values)))
		c.rounds = append(c.rounds, divide(a, b))
		if beyond(a, b) {
			agree++
		}
	}
	if len(c.rounds) < leastRounds {
		return c, fmt.Errorf("cannot compare %s of %s, %s: the builds have %d rounds in common, at least %d are needed",
			newer.metric, newer.job, newer.tool, len(c.rounds), leastRounds)
	}
	slices.Sort(c.rounds)
	now, before := median(newer.sorted()), median(older.sorted())
	c.ratio = divide(now, before)
	c.worse = beyond(now, before) && agree >= len(c.rounds)-len(c.rounds)/5
	return c, nil
}

// divide takes two of nothing for equal.
func divide(a, b float64) float64 {
	if a == b {
		return 1
	}
	return a / b
}
