package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The measures of a chart, in pixels: names to the left, figures to the right, bars between them.
const (
	chartWidth = 760
	barsLeft   = 190
	barsWidth  = 370
	rowHeight  = 22
	barHeight  = 14
)

// style has the colours of GitLab's pages, which show a chart as an image on a light or a dark page: the chart has no background.
const style = `text { font: 13px system-ui, sans-serif; fill: #28272d }
.title { font-size: 17px; font-weight: 600 }
.metric { font-weight: 600 }
.small { font-size: 11px; fill: #626168 }
.bar { fill: #a4a3a8 }
.own { fill: #1f75cb }
.spread { stroke: #28272d; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #ececef }
  .small { fill: #a4a3a8 }
  .bar { fill: #737278 }
  .own { fill: #428fdc }
  .spread { stroke: #ececef }
}
`

// charts writes one file for each job into a directory, which it makes: "WAL push" becomes wal-push.svg.
func (m *measurements) charts(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot make the directory for charts: %w", err)
	}
	for job, series := range m.jobs() {
		name := strings.ReplaceAll(strings.ToLower(job), " ", "-") + ".svg"
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(name)), m.chart(job, series), 0o644); err != nil {
			return fmt.Errorf("cannot write the chart of %s: %w", job, err)
		}
	}
	return nil
}

func (m *measurements) jobs() map[string][]series {
	jobs := map[string][]series{}
	for _, s := range m.series {
		jobs[s.job] = append(jobs[s.job], s)
	}
	return jobs
}

// chart draws a group of horizontal bars for each metric: medians, and across each bar's end a line from the lowest to the highest
// figure.
func (m *measurements) chart(job string, all []series) []byte {
	var b bytes.Buffer
	y := 26
	text := func(class string, x int, s string) {
		fmt.Fprintf(&b, `<text class="%s" x="%d" y="%d">%s</text>`+"\n", class, x, y, escaped(s))
	}
	text("title", 8, job)
	y += 18
	text("small", 8, "median of each tool, with lowest and highest; less is better")
	metric, scale := "", 0.0
	for i, s := range all {
		if i == 0 || s.metric != metric {
			metric, scale = s.metric, highest(all[i:])
			y += rowHeight + 8
			text("metric", 8, metric)
			y += 2
		}
		y += rowHeight
		values := s.sorted()
		low, middle, high := values[0], median(values), values[len(values)-1]
		at := func(value float64) float64 { return barsLeft + barsWidth*value/scale }
		top, class := y-barHeight+2, "bar"
		if strings.HasPrefix(s.tool, "walden") {
			class = "own"
		}
		text("tool", 16, s.tool)
		fmt.Fprintf(&b, `<rect class="%s" x="%d" y="%d" width="%.1f" height="%d" rx="2"/>`+"\n", class, barsLeft, top, at(middle)-barsLeft, barHeight)
		label := fmt.Sprintf("%.4g", middle)
		if low != high {
			label += fmt.Sprintf(" (%.4g–%.4g)", low, high)
			centre := float64(top) + barHeight/2
			fmt.Fprintf(&b, `<path class="spread" fill="none" d="M%.1f %.1fH%.1fM%.1f %.1fv6M%.1f %.1fv6"/>`+"\n",
				at(low), centre, at(high), at(low), centre-3, at(high), centre-3)
		}
		text("figure", barsLeft+barsWidth+10, label)
	}
	y += 14
	for _, note := range m.notes {
		for _, line := range wrapped(note, 110) {
			y += 14
			text("small", 8, line)
		}
	}
	head := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s">`+"\n<style>%s</style>\n",
		chartWidth, y+12, chartWidth, y+12, escaped("Benchmark: "+job), style)
	return slices.Concat([]byte(head), b.Bytes(), []byte("</svg>\n"))
}

// highest figure of the metric that the series begin with; 1 where all are nothing, so that it can be divided by.
func highest(all []series) float64 {
	most := 0.0
	for _, s := range all {
		if s.metric != all[0].metric {
			break
		}
		values := s.sorted()
		most = max(most, values[len(values)-1])
	}
	if most == 0 {
		return 1
	}
	return most
}

// wrapped breaks text between words into lines of about width characters.
func wrapped(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	return append(lines, line)
}

func escaped(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
	return b.String()
}
