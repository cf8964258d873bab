// Package wal holds what PostgreSQL's write-ahead log is made of, as far as a backup needs it: positions,
// timelines, segments and their file names, the header of a segment file, timeline history files.
//
// An [LSN] is a byte position in the log. A [Timeline] is one branch of the log's history. A [Segment] is one
// file's worth of a timeline's log. A [Header] is what a segment file says of itself. A [History] lists the
// branches that led to a timeline.
//
// The package is pure: no files, no state, no defaults. The size of a segment is fixed when a cluster is created,
// so it is always an argument, in bytes. Decoders take any bytes and answer with an error; they never panic.
package wal

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a log sequence number: a byte position in the write-ahead log, the same on all timelines up to their switch.
type LSN uint64

// ParseLSN reads PostgreSQL's text form, two hexadecimal numbers of one to eight digits: "16/B374D848". Both cases
// of the digits and leading zeros are fine, as in the server's pg_lsn type.
func ParseLSN(s string) (LSN, error) {
	high, low, found := strings.Cut(s, "/")
	h, hok := parseHex32(high)
	l, lok := parseHex32(low)
	if !found || !hok || !lok {
		return 0, fmt.Errorf("cannot parse LSN %q: want two hexadecimal numbers as in 16/B374D848", shorten(s))
	}
	return LSN(h)<<32 | LSN(l), nil
}

// String formats l as PostgreSQL writes it into labels, history files and messages: "0/2000028".
func (l LSN) String() string {
	return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l))
}

// Timeline numbers a branch of the log's history. A new cluster begins with 1; each promotion takes a higher number.
type Timeline uint32

// parseHex32 reads one to eight hexadecimal digits and nothing else: no sign, prefix or underscore.
func parseHex32(s string) (uint32, bool) {
	if len(s) > 8 {
		return 0, false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'A' || c > 'F') && (c < 'a' || c > 'f') {
			return 0, false
		}
	}
	n, err := strconv.ParseUint(s, 16, 32)
	return uint32(n), err == nil
}

// shorten keeps foreign text in messages at a readable length.
func shorten(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
