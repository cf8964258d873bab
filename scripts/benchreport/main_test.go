package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestTheTableOfARunIsTheOneThatIsDocumented(t *testing.T) {
	t.Parallel()
	want, err := os.ReadFile("testdata/run.md")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if worse, err := report([]string{"table", "testdata/run.tsv"}, &got); worse || err != nil {
		t.Fatalf("table ended with %v, %v", worse, err)
	}
	if got.String() != string(want) {
		t.Errorf("the table is\n%s\nin place of\n%s", got.String(), want)
	}
}

func TestRowsKeepTheOrderInWhichTheyWereMeasuredFirst(t *testing.T) {
	t.Parallel()
	m, err := read(strings.NewReader("b\ty\tm2\t1\t2\nb\tx\tm2\t1\t4\nb\tx\tm1\t1\t1\na\tx\tm2\t1\t0\nb\ty\tm1\t1\t1\nb\ty\tm2\t2\t3\n"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range m.series {
		got = append(got, s.job+s.metric+s.tool)
	}
	if want := []string{"bm2y", "bm2x", "bm1y", "bm1x", "am2x"}; !slices.Equal(got, want) {
		t.Errorf("the order is %v in place of %v", got, want)
	}
	if v := m.series[0].sorted(); len(m.series[0].rounds) != 2 || median(v) != 2.5 {
		t.Errorf("the values of two rounds are %v", v)
	}
}

func TestWhatIsNoFigureIsAnError(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"an empty file":          "",
		"notes only":             "# a machine\n",
		"a line of other fields": "backup\twalden\twall s\t1\n",
		"a round that is none":   "backup\twalden\twall s\tone\t1\n",
		"a value that is none":   "backup\twalden\twall s\t1\t\n",
	} {
		if _, err := read(strings.NewReader(text)); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}

func TestAWrongCallIsToldHowToCall(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"table"}, {"chart", "x"}, {"charts", "x"}, {"compare", "-limit", "much", "x"}, {"table", "a", "b"}} {
		if _, err := report(args, io.Discard); err == nil || !strings.HasPrefix(err.Error(), "usage:") {
			t.Errorf("%v ended with %v", args, err)
		}
	}
}

func TestEachJobHasAChartThatAnyPageCanShow(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "charts")
	if _, err := report([]string{"charts", "testdata/run.tsv", dir}, io.Discard); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		names = append(names, filepath.Base(file))
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for d := xml.NewDecoder(bytes.NewReader(text)); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s is no XML: %v", file, err)
			}
		}
		for _, part := range []string{"<svg ", `class="own"`, "prefers-color-scheme: dark", "AMD EPYC", "2026-11-22"} {
			if !bytes.Contains(text, []byte(part)) {
				t.Errorf("%s has no %q", file, part)
			}
		}
		for _, part := range []string{"<script", "@import", "@font-face", "url("} {
			if bytes.Contains(text, []byte(part)) {
				t.Errorf("%s has %q", file, part)
			}
		}
	}
	if want := []string{"backup.svg", "restore.svg", "wal-push.svg"}; !slices.Equal(names, want) {
		t.Errorf("the charts are %v in place of %v", names, want)
	}
}

func TestNamesWithMarkupAreEscapedInAChart(t *testing.T) {
	t.Parallel()
	m, err := read(strings.NewReader("# <&>\na<b\twalden & more\twall s\t1\t0\n"))
	if err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(bytes.NewReader(m.chart("a<b", m.series))); ; {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// turns are the figures of two builds, one for each round.
func turns(metric string, before, now []float64) string {
	var b strings.Builder
	for i := range before {
		fmt.Fprintf(&b, "backup\tbefore\t%s\t%d\t%g\nbackup\twalden\t%s\t%d\t%g\n", metric, i+1, before[i], metric, i+1, now[i])
	}
	return b.String()
}

func TestTwoBuildsAreComparedByTheRatioThatTheRoundsAgreeOn(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name        string
		metric      string
		before, now []float64
		worse       bool
	}{
		{"the same", "wall s", []float64{2, 2.1, 1.9, 2, 2.2}, []float64{2, 2, 2, 2.1, 2.1}, false},
		{"better", "wall s", []float64{2, 2, 2, 2, 2}, []float64{1, 1, 1, 1, 1}, false},
		{"worse in each round", "wall s", []float64{2, 2, 2, 2, 2}, []float64{2.4, 2.3, 2.5, 2.4, 2.3}, true},
		{"worse in all rounds but one of five", "wall s", []float64{2, 2, 2, 2, 9}, []float64{2.4, 2.3, 2.5, 2.4, 2.3}, true},
		{"a disk that is slower in two rounds of five", "wall s", []float64{2, 2, 2, 2, 2}, []float64{6, 6, 2, 2, 2}, false},
		{"a median beyond the limit that two rounds speak against", "wall s", []float64{2, 2, 2, 2, 2}, []float64{3, 3, 3, 2, 2}, false},
		{"a machine that is slower for both from round to round", "wall s", []float64{1, 2, 4, 8, 16}, []float64{1.05, 2.1, 4.1, 8.3, 16.2}, false},
		{"worse in each of three rounds", "wall s", []float64{2, 2, 2}, []float64{2.4, 2.3, 2.5}, true},
		{"worse in two of three rounds", "wall s", []float64{2, 2, 2}, []float64{2.4, 2.3, 2.1}, false},
		{"within the limit", "wall s", []float64{2, 2, 2}, []float64{2.19, 2.19, 2.19}, false},
		{"a step of the clock that counts CPU time", "CPU s", []float64{0.02, 0.02, 0.02}, []float64{0.04, 0.04, 0.04}, false},
		{"something in place of nothing", "ms per call", []float64{0, 0, 0}, []float64{1, 1, 1}, true},
		{"nothing in both", "ms per call", []float64{0, 0, 0}, []float64{0, 0, 0}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m, err := read(strings.NewReader(turns(c.metric, c.before, c.now)))
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			worse, err := m.compare(&got, 10)
			if err != nil || worse != c.worse || strings.Contains(got.String(), "**worse**") != c.worse {
				t.Errorf("compare says %v, %v\n%s", worse, err, got.String())
			}
		})
	}
}

func TestTheLimitOfAComparisonCanBeSet(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "raw.tsv")
	if err := os.WriteFile(file, []byte(turns("wall s", []float64{1, 1, 1}, []float64{1.15, 1.15, 1.15})), 0o600); err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[string]bool{"10": true, "20": false} {
		if worse, err := report([]string{"compare", "-limit", limit, file}, io.Discard); err != nil || worse != want {
			t.Errorf("with %s %% compare says %v, %v", limit, worse, err)
		}
	}
}

func TestVariantsAreComparedWithTheirOwnKind(t *testing.T) {
	t.Parallel()
	text := turns("wall s", []float64{1, 1, 1}, []float64{1, 1, 1})
	daemon := strings.NewReplacer("\tbefore\t", "\tbefore daemon\t", "\twalden\t", "\twalden daemon\t").Replace(turns("wall s", []float64{1, 1, 1}, []float64{2, 2, 2}))
	lone := "backup\twalden, looked ahead\twall s\t1\t5\n"
	m, err := read(strings.NewReader(text + daemon + lone))
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	worse, err := m.compare(&got, 10)
	if err != nil || !worse {
		t.Errorf("compare says %v, %v", worse, err)
	}
	for _, line := range []string{"| backup | walden daemon | wall s | 1 | 2 | 2.00 | 2.00 | 2.00 | **worse** |", "| backup | walden | wall s | 1 | 1 | 1.00 |",
		"Only the newer build was measured: backup, walden, looked ahead."} {
		if !strings.Contains(got.String(), line) {
			t.Errorf("%q is missing in\n%s", line, got.String())
		}
	}
}

func TestWhatCannotBeComparedIsNoSuccess(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"one build":  "backup\twalden\twall s\t1\t1\nbackup\tpgbackrest\twall s\t1\t1\n",
		"two rounds": turns("wall s", []float64{1, 1}, []float64{1, 1}),
		"other rounds": "backup\twalden\twall s\t1\t1\nbackup\tbefore\twall s\t2\t1\nbackup\twalden\twall s\t3\t1\n" +
			"backup\tbefore\twall s\t4\t1\n",
	} {
		m, err := read(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.compare(io.Discard, 10); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
