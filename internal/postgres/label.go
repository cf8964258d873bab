package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// label is what a backup needs to know from its backup_label file.
type label struct {
	startLSN wal.LSN
	timeline wal.Timeline
}

// parseLabel reads the lines that the server writes in build_backup_content (xlogbackup.c; up to version 14 in
// do_pg_start_backup, xlog.c):
//
//	START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
//	CHECKPOINT LOCATION: 0/2000060
//	BACKUP METHOD: streamed
//	BACKUP FROM: primary
//	START TIME: 2026-11-22 07:00:25 UTC
//	LABEL: nightly
//	START TIMELINE: 1
func parseLabel(content []byte) (label, error) {
	var l label
	var haveLSN, haveTimeline bool
	for line := range bytes.Lines(content) {
		key, value, _ := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(": "))
		switch string(key) {
		case "START WAL LOCATION":
			lsn, _, _ := bytes.Cut(value, []byte(" "))
			parsed, err := wal.ParseLSN(string(lsn))
			if err != nil {
				return label{}, fmt.Errorf("cannot parse the backup label: %w", err)
			}
			l.startLSN, haveLSN = parsed, true
		case "START TIMELINE":
			timeline, err := strconv.ParseUint(string(value), 10, 32)
			if err != nil || timeline == 0 {
				return label{}, fmt.Errorf("cannot parse the backup label: timeline %.20q", value)
			}
			l.timeline, haveTimeline = wal.Timeline(timeline), true
		}
	}
	if !haveLSN || !haveTimeline {
		return label{}, errors.New("cannot parse the backup label: its start location or timeline is missing")
	}
	return l, nil
}
