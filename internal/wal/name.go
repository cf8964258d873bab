package wal

import (
	"fmt"
	"strings"
)

// Kind is what a file in pg_wal or in an archive is, by its name.
type Kind int

// The kinds of files that PostgreSQL archives.
const (
	KindOther         Kind = iota
	KindSegment            // 000000010000000000000002
	KindPartial            // 000000010000000000000002.partial: the last segment of a timeline that was left
	KindHistory            // 00000002.history
	KindBackupHistory      // 000000010000000000000002.00000028.backup
)

const (
	segmentNameLen  = 24
	timelineNameLen = 8
	partialSuffix   = ".partial"
	historySuffix   = ".history"
	backupSuffix    = ".backup"
)

// Classify tells the kind of file from its base name. It knows PostgreSQL's own spelling only, upper-case digits
// without an extension of any archive: everything else is KindOther.
func Classify(name string) Kind {
	switch {
	case len(name) == segmentNameLen && isUpperHex(name):
		return KindSegment
	case len(name) == segmentNameLen+len(partialSuffix) &&
		strings.HasSuffix(name, partialSuffix) && isUpperHex(name[:segmentNameLen]):
		return KindPartial
	case len(name) == timelineNameLen+len(historySuffix) &&
		strings.HasSuffix(name, historySuffix) && isUpperHex(name[:timelineNameLen]):
		return KindHistory
	case len(name) == segmentNameLen+len(".00000028")+len(backupSuffix) &&
		strings.HasSuffix(name, backupSuffix) && isUpperHex(name[:segmentNameLen]) &&
		name[segmentNameLen] == '.' && isUpperHex(name[segmentNameLen+1:segmentNameLen+9]):
		return KindBackupHistory
	}
	return KindOther
}

// HistoryName returns the name of the history file of tl: "00000002.history".
func HistoryName(tl Timeline) string {
	return fmt.Sprintf("%08X", uint32(tl)) + historySuffix
}

// NameTimeline returns the timeline that a file's name begins with, and false for a name of KindOther.
func NameTimeline(name string) (Timeline, bool) {
	if Classify(name) == KindOther {
		return 0, false
	}
	tl, ok := parseHex32(name[:timelineNameLen])
	return Timeline(tl), ok
}

func isUpperHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}
