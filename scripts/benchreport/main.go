// Command benchreport reads the raw figures that scripts/bench keeps and prints what a person wants to see of them: a table in
// Markdown, a chart for each job, or the comparison of two builds of walden that took turns in one run.
//
//	benchreport table FILE              the machine, and medians with their ratios to walden's
//	benchreport charts FILE DIRECTORY   one SVG file for each job
//	benchreport compare [-limit 10] FILE
//
// compare exits 1 when the newer build is worse by more than the limit, in percent, and the rounds agree on it; 2 stands for a
// wrong call, or a file that cannot be used.
//
// A figure has a job ("backup"), a tool ("walden", "pgbackrest"), a metric with its unit at the end ("wall s"), a round and a value; of
// all metrics less is better. "walden" and tools whose names begin with it are the build that is measured, those that begin with
// "before" the older one beside it.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

const usage = `usage: benchreport table FILE
       benchreport charts FILE DIRECTORY
       benchreport compare [-limit PERCENT] FILE`

func main() {
	worse, err := report(os.Args[1:], os.Stdout)
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "benchreport:", err)
		os.Exit(2)
	case worse:
		os.Exit(1)
	}
}

// report does what the arguments say; worse is what compare found.
func report(args []string, w io.Writer) (worse bool, err error) {
	flags := flag.NewFlagSet("benchreport", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	limit := flags.Float64("limit", 10, "")
	command := ""
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	if command == "compare" {
		err = flags.Parse(args)
		args = flags.Args()
	}
	wanted := map[string]int{"table": 1, "charts": 2, "compare": 1}
	if err != nil || wanted[command] == 0 || len(args) != wanted[command] {
		return false, errors.New(usage)
	}
	m, err := load(args[0])
	if err != nil {
		return false, err
	}
	switch command {
	case "table":
		return false, m.table(w)
	case "charts":
		return false, m.charts(args[1])
	default:
		return m.compare(w, *limit)
	}
}

// measurements are one run of scripts/bench.
type measurements struct {
	notes  []string // what is told of the machine, the versions and what was left out
	series []series // by job, then metric, then tool, each in the order in which it was measured first
}

// series is what one tool took for one metric of a job.
type series struct {
	job, metric, tool string
	rounds            []round
}

// round is one turn of a tool, which may have been measured more than once.
type round struct {
	number int
	values []float64
}

// load reads a file of raw figures: lines of job, tool, metric, round and value between tabs, and comments that are notes.
func load(path string) (*measurements, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the raw figures: %w", err)
	}
	defer f.Close()
	m, err := read(f)
	if err != nil {
		return nil, fmt.Errorf("cannot read the raw figures in %s: %w", path, err)
	}
	return m, nil
}

func read(r io.Reader) (*measurements, error) {
	var m measurements
	var jobs, metrics, tools []string
	place := func(names *[]string, name string) int {
		if i := slices.Index(*names, name); i >= 0 {
			return i
		}
		*names = append(*names, name)
		return len(*names) - 1
	}
	type key struct{ job, metric, tool int }
	found := map[key]*series{}
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		if note, ok := strings.CutPrefix(lines.Text(), "#"); ok {
			m.notes = append(m.notes, strings.TrimPrefix(note, " "))
			continue
		}
		fields := strings.Split(lines.Text(), "\t")
		if len(fields) != 5 {
			return nil, fmt.Errorf("line %d has %d fields in place of 5", n, len(fields))
		}
		number, err := strconv.Atoi(fields[3])
		if err != nil {
			return nil, fmt.Errorf("line %d: the round is no number: %w", n, err)
		}
		value, err := strconv.ParseFloat(fields[4], 64)
		if err != nil {
			return nil, fmt.Errorf("line %d: the value is no number: %w", n, err)
		}
		k := key{place(&jobs, fields[0]), place(&metrics, fields[2]), place(&tools, fields[1])}
		if found[k] == nil {
			found[k] = &series{job: fields[0], tool: fields[1], metric: fields[2]}
		}
		found[k].add(number, value)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errors.New("there are none")
	}
	for job := range jobs {
		for metric := range metrics {
			for tool := range tools {
				if s := found[key{job, metric, tool}]; s != nil {
					m.series = append(m.series, *s)
				}
			}
		}
	}
	return &m, nil
}

func (s *series) add(number int, value float64) {
	i := slices.IndexFunc(s.rounds, func(r round) bool { return r.number == number })
	if i < 0 {
		s.rounds = append(s.rounds, round{number: number})
		i = len(s.rounds) - 1
	}
	s.rounds[i].values = append(s.rounds[i].values, value)
}

// sorted are the values of all rounds, in ascending order.
func (s *series) sorted() []float64 {
	var all []float64
	for _, r := range s.rounds {
		all = append(all, r.values...)
	}
	slices.Sort(all)
	return all
}

// median of values in ascending order, of which there is at least one.
func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// find returns the series of a tool for the job and metric of s, nil if there is none.
func (m *measurements) find(s series, tool string) *series {
	i := slices.IndexFunc(m.series, func(t series) bool { return t.job == s.job && t.metric == s.metric && t.tool == tool })
	if i < 0 {
		return nil
	}
	return &m.series[i]
}
