package main

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
)

// table writes the notes as a list and the medians as a table in Markdown. The ratio is walden's median divided by the other's for
// the same job and metric.
func (m *measurements) table(to io.Writer) error {
	w := bufio.NewWriter(to)
	for _, note := range m.notes {
		fmt.Fprintf(w, "- %s\n", note)
	}
	fmt.Fprint(w, "\n| job | tool | metric | median | lowest | highest | n | walden ÷ it |\n|---|---|---|--:|--:|--:|--:|--:|\n")
	for _, s := range m.series {
		values := s.sorted()
		middle, ratio := median(values), ""
		if own := m.find(s, "walden"); own != nil && s.tool != "walden" && middle > 0 {
			ratio = fmt.Sprintf("%.2f", median(own.sorted())/middle)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %.4g | %.4g | %.4g | %d | %s |\n",
			s.job, s.tool, s.metric, short(middle), values[0], values[len(values)-1], len(values), ratio)
	}
	return w.Flush()
}

// short rounds to six digits, so that the middle of two decimal figures is what a person would calculate.
func short(v float64) float64 {
	rounded, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 6, 64), 64)
	if err != nil {
		return v
	}
	return rounded
}
