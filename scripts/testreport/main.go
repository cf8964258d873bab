// Command testreport reads what `go test -json` writes and prints what a person wants to see of it: one line per package,
// the whole output of what failed, the name of what was skipped, the table of what tests counted (faults injected, moments of
// a kill), the tests that took longest, and the count of all tests (sub-tests included).
//
// It exits 1 when a test or a build failed, when no test ran at all, and with -no-skips when any test was skipped: a test that
// does not run for want of a component proves nothing, and a silent skip looks like a proof.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

func main() {
	noSkips := flag.Bool("no-skips", false, "fail when a test was skipped")
	flag.Parse()
	ok, err := report(os.Stdin, os.Stdout, *noSkips)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// event is one line of test2json's output (see `go doc test2json`).
type event struct {
	Action     string
	Package    string
	ImportPath string // of build-output and build-fail
	Test       string
	Elapsed    float64 // seconds
	Output     string
	Key, Value string // of attr
}

// figures are what tests counted, by "group: name"; see Figure in internal/testenv.
type figures map[string]int

// add reads the value of an attribute: "31 faults injected: backup-push, Half".
func (f figures) add(value string) error {
	number, name, ok := strings.Cut(value, " ")
	n, err := strconv.Atoi(number)
	if !ok || err != nil || !strings.Contains(name, ": ") {
		return fmt.Errorf("cannot read the figure %q: it is no \"NUMBER GROUP: NAME\"", value)
	}
	if n != 0 {
		f[name] += n
	}
	return nil
}

// print writes a table in Markdown: each group with its sum, and its lines below it.
func (f figures) print(w io.Writer) {
	if len(f) == 0 {
		return
	}
	sums, lines := map[string]int{}, map[string]int{}
	for name, n := range f {
		group, _, _ := strings.Cut(name, ": ")
		sums[group] += n
		lines[group]++
	}
	fmt.Fprint(w, "\n| what was counted | number |\n|---|---:|\n")
	last := ""
	for _, name := range slices.Sorted(maps.Keys(f)) {
		group, line, _ := strings.Cut(name, ": ")
		if group != last && lines[group] > 1 {
			fmt.Fprintf(w, "| **%s** | **%d** |\n", group, sums[group])
		}
		if lines[group] == 1 {
			fmt.Fprintf(w, "| **%s**: %s | **%d** |\n", group, line, f[name])
		} else {
			fmt.Fprintf(w, "| %s | %d |\n", line, f[name])
		}
		last = group
	}
}

// slow is how long a test took, in seconds, without what it waited for others to run.
type slow struct {
	name    string
	seconds float64
}

// slowest prints the tests that took longest, of those that took more than some seconds.
func slowest(w io.Writer, tests []slow) {
	const most, least = 15, 5
	tests = slices.DeleteFunc(tests, func(t slow) bool { return t.seconds < least })
	if len(tests) == 0 {
		return
	}
	slices.SortFunc(tests, func(a, b slow) int { return cmp.Compare(b.seconds, a.seconds) })
	fmt.Fprint(w, "\nslowest tests:\n")
	for _, t := range tests[:min(most, len(tests))] {
		fmt.Fprintf(w, "%7.1f s  %s\n", t.seconds, t.name)
	}
}

// report copies the meaning of the events in r to w and says whether the run counts as a success.
func report(r io.Reader, w io.Writer, noSkips bool) (ok bool, err error) {
	var passed, failed, skipped, brokenPackages int
	var skips []string
	var times []slow
	counted := figures{}
	output := map[string]*strings.Builder{} // of packages and tests not yet finished

	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			break
		}
		if err != nil && err != io.EOF {
			return false, fmt.Errorf("cannot read the test events: %w", err)
		}
		var e event
		if json.Unmarshal(line, &e) != nil {
			// The go command itself speaks plain text, for instance when a flag is wrong.
			fmt.Fprint(w, string(line))
			continue
		}
		key := e.Package + e.ImportPath + " " + e.Test
		switch e.Action {
		case "output", "build-output":
			if output[key] == nil {
				output[key] = new(strings.Builder)
			}
			output[key].WriteString(e.Output)
			continue
		case "attr":
			if e.Key == "figure" {
				if err := counted.add(e.Value); err != nil {
					return false, err
				}
			}
			continue
		case "build-fail":
			brokenPackages++
			fmt.Fprint(w, output[key])
		case "pass", "fail", "skip":
		default:
			continue
		}

		finished := output[key]
		delete(output, key)
		switch {
		case e.Action == "build-fail":
		case e.Test != "":
			if !strings.Contains(e.Test, "/") {
				times = append(times, slow{e.Package + " " + e.Test, e.Elapsed})
			}
			switch e.Action {
			case "pass":
				passed++
			case "fail":
				failed++
				fmt.Fprintf(w, "--- FAIL %s %s\n%s", e.Package, e.Test, text(finished))
			case "skip":
				skipped++
				skips = append(skips, fmt.Sprintf("%s %s\n%s", e.Package, e.Test, text(finished)))
			}
		case e.Action == "fail":
			brokenPackages++
			// What belongs to no finished test: a panic, a data race after the last test, the stack dump of a timeout.
			fmt.Fprintf(w, "FAIL  %s (%.1f s)\n%s", e.Package, e.Elapsed, text(finished))
			for _, key := range slices.Sorted(unfinished(output, e.Package)) {
				fmt.Fprintf(w, "--- NOT FINISHED %s\n%s", key, text(output[key]))
				delete(output, key)
			}
		case e.Action == "pass":
			fmt.Fprintf(w, "ok    %s (%.1f s)\n", e.Package, e.Elapsed)
		}
	}

	if len(skips) > 0 {
		fmt.Fprintf(w, "\nskipped:\n%s", strings.Join(skips, ""))
	}
	counted.print(w)
	slowest(w, times)
	fmt.Fprintf(w, "\n%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	switch {
	case failed > 0 || brokenPackages > 0:
		return false, nil
	case passed == 0:
		return false, fmt.Errorf("no test ran")
	case noSkips && skipped > 0:
		return false, fmt.Errorf("%d tests were skipped: install what they name, nothing here is optional", skipped)
	}
	return true, nil
}

// unfinished yields the keys of output that belong to tests of pkg.
func unfinished(output map[string]*strings.Builder, pkg string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for key := range output {
			if strings.HasPrefix(key, pkg+" ") && !yield(key) {
				return
			}
		}
	}
}

// text is the captured output, or nothing if there was none.
func text(b *strings.Builder) string {
	if b == nil {
		return ""
	}
	return b.String()
}
