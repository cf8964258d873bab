package postgres

import (
	"strings"
	"testing"
)

const goodLabel = "START WAL LOCATION: 16/2000028 (file 000000030000001600000002)\nCHECKPOINT LOCATION: 16/2000060\n" +
	"BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-11-22 07:00:25 UTC\nLABEL: nightly: run\nSTART TIMELINE: 3\n"

func TestLabelsAreReadAsTheServerWritesThem(t *testing.T) {
	l, err := parseLabel([]byte(goodLabel))
	if err != nil || l.startLSN != 0x1602000028 || l.timeline != 3 {
		t.Errorf("label %+v, error %v", l, err)
	}
	for _, c := range []struct{ name, content string }{
		{"empty", ""},
		{"no timeline", strings.Replace(goodLabel, "START TIMELINE: 3\n", "", 1)},
		{"no location", goodLabel[strings.IndexByte(goodLabel, '\n')+1:]},
		{"bad location", strings.Replace(goodLabel, "16/2000028", "16-2000028", 1)},
		{"bad timeline", strings.Replace(goodLabel, "TIMELINE: 3", "TIMELINE: three", 1)},
		{"timeline zero", strings.Replace(goodLabel, "TIMELINE: 3", "TIMELINE: 0", 1)},
	} {
		if l, err := parseLabel([]byte(c.content)); err == nil {
			t.Errorf("%s: accepted as %+v", c.name, l)
		}
	}
}

func FuzzParseLabel(f *testing.F) {
	f.Add([]byte(goodLabel))
	f.Add([]byte("START WAL LOCATION: 0/28 (file"))
	f.Add([]byte("START TIMELINE: 4294967296\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		if l, err := parseLabel(content); err == nil && l.timeline == 0 {
			t.Errorf("%q gives %+v", content, l)
		}
	})
}
