package wal

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Switch is one line of a history file: the log left Timeline at LSN.
type Switch struct {
	Timeline Timeline
	LSN      LSN
	Reason   string // free text of the server, "no recovery target specified"
}

// History is the content of a timeline's history file: its ancestors in ascending order, the last one its parent.
// Timeline 1 has no file and an empty history.
type History []Switch

const (
	maxHistorySize = 1 << 20 // bytes; a line takes about 50
	maxHistoryLine = 1023    // bytes; the server reads lines into a buffer of MAXPGPATH
	historySpace   = " \t\n\v\f\r"
)

// ParseHistory reads a history file by the rules of PostgreSQL's timeline.c: a line is the number of a timeline, the
// position of the switch and the reason; empty lines and those beginning with "#" do not count; timelines ascend.
// It reads at most 1 MiB and fails if there is more.
func ParseHistory(r io.Reader) (History, error) {
	lines := bufio.NewScanner(io.LimitReader(r, maxHistorySize+1))
	lines.Buffer(nil, maxHistoryLine+1)
	var history History
	read := 0
	for number := 1; lines.Scan(); number++ {
		if read += len(lines.Bytes()) + 1; read > maxHistorySize {
			return nil, fmt.Errorf("cannot parse timeline history: it is larger than %d bytes", maxHistorySize)
		}
		line := strings.TrimLeft(lines.Text(), historySpace)
		if line == "" || line[0] == '#' {
			continue
		}
		s, err := parseSwitch(line)
		if err != nil {
			return nil, fmt.Errorf("cannot parse line %d of timeline history, %q: %w", number, shorten(line), err)
		}
		if len(history) > 0 && s.Timeline <= history[len(history)-1].Timeline {
			return nil, fmt.Errorf("cannot parse line %d of timeline history, %q: timelines must ascend", number, shorten(line))
		}
		history = append(history, s)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("cannot read timeline history: %w", err)
	}
	return history, nil
}

// parseSwitch reads what the server's scanf format "%u\t%X/%X" takes, whose tab stands for any white space, minus
// the oddities of scanf: signs, prefixes and numbers that overflow.
func parseSwitch(line string) (Switch, error) {
	number, rest := cutDigits(line)
	timeline, err := strconv.ParseUint(number, 10, 32)
	if err != nil || timeline == 0 {
		return Switch{}, errors.New("want the number of a timeline first")
	}
	rest = strings.TrimLeft(rest, historySpace)
	end := strings.IndexAny(rest, historySpace)
	if end < 0 {
		end = len(rest)
	}
	lsn, err := ParseLSN(rest[:end])
	if err != nil {
		return Switch{}, errors.New("want the LSN of a switch second")
	}
	return Switch{Timeline: Timeline(timeline), LSN: lsn, Reason: strings.Trim(rest[end:], historySpace)}, nil
}

func cutDigits(s string) (digits, rest string) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return s[:i], s[i:]
		}
	}
	return s, ""
}

// TimelineAt returns the timeline on which the byte at lsn was written, as seen from the timeline tip whose history
// h is: the ancestor that had not been left at lsn, otherwise tip itself (tliOfPointInHistory).
func (h History) TimelineAt(lsn LSN, tip Timeline) Timeline {
	for _, s := range h {
		if lsn < s.LSN {
			return s.Timeline
		}
	}
	return tip
}
