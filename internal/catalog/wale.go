package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"

	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// WALE is what WAL-E recorded of a backup, as it wrote it (WAL-E format, "Sentinel"). Its backups tell no cluster, no time, no
// LSN and no list of files; where one begins stands in its backup_label, or for one of a stopped server in its control file.
type WALE struct {
	StartSegment, StartOffset string // from the backup's name, which is wrong for most backups of stopped servers; the offset in decimal
	StopSegment, StopOffset   string // from the sentinel; the offset may be empty
	ExpandedSize              int64  // bytes of all files as the walk found them; files that vanished then are counted; 0 if not recorded
}

// Offline tells whether the backup was taken of a stopped server (--while-offline): only then it ends where it begins.
func (w *WALE) Offline() bool {
	return w.StartSegment == w.StopSegment && w.StartOffset == w.StopOffset
}

// waleSentinel are the keys of WAL-E's sentinels. Its "spec" is the Spec of others.
type waleSentinel struct {
	StopSegment  string `json:"wal_segment_backup_stop,omitempty"`
	StopOffset   string `json:"wal_segment_offset_backup_stop,omitempty"`
	ExpandedSize int64  `json:"expanded_size_bytes,omitempty"`
}

var (
	// waleName are WAL-E's backups, which bear the offset in the segment.
	waleName   = regexp.MustCompile(`^base_([0-9A-F]{24})_([0-9A-F]{8})$`)
	waleOffset = regexp.MustCompile(`^[0-9A-F]{0,10}$`)
)

// read returns what the sentinel says if the backup called name is WAL-E's, nil for one of another writer.
func (s *waleSentinel) read(name string) (*WALE, error) {
	m := waleName.FindStringSubmatch(name)
	switch {
	case m == nil || *s == waleSentinel{}:
		return nil, nil
	case wal.Classify(s.StopSegment) != wal.KindSegment:
		return nil, fmt.Errorf("%.100q is not the segment in which it ends", s.StopSegment)
	case !waleOffset.MatchString(s.StopOffset):
		return nil, fmt.Errorf("%.100q is not the offset at which it ends", s.StopOffset)
	case s.ExpandedSize < 0:
		return nil, fmt.Errorf("its size is %d", s.ExpandedSize)
	}
	return &WALE{StartSegment: m[1], StartOffset: m[2], StopSegment: s.StopSegment, StopOffset: s.StopOffset, ExpandedSize: s.ExpandedSize}, nil
}

// versionName holds what `SELECT version()` said to WAL-E.
const versionName = "extended_version.txt"

var serverVersion = regexp.MustCompile(`PostgreSQL (\d{1,3})(?:\.(\d{1,2}))?(?:\.(\d{1,2}))?`)

// readVersion completes a backup of WAL-E with the server's version, as far as that is recorded.
func (c *Catalog) readVersion(ctx context.Context, b *Backup) error {
	raw, err := c.repo.GetPlain(ctx, backupDir(b.Name)+versionName, maxDocument)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, repo.ErrTooLarge) {
		return nil // nothing depends on it
	}
	if err != nil {
		return err
	}
	b.PgVersion = parseVersion(string(raw))
	return nil
}

// parseVersion turns "PostgreSQL 14.23 on x86_64…" into 140023 and "PostgreSQL 9.6.24 on…" into 90624 (server_version_num); what is
// neither into 0.
func parseVersion(text string) int {
	m := serverVersion.FindStringSubmatch(text)
	if m == nil {
		return 0
	}
	var n [3]int
	for i := range n {
		n[i], _ = strconv.Atoi(m[i+1]) // digits, or nothing, which is 0
	}
	if n[0] >= 10 {
		return n[0]*10000 + n[1]
	}
	return n[0]*10000 + n[1]*100 + n[2]
}

// walePart is one of the partitions of WAL-E, which count from 0 without gaps.
var walePart = regexp.MustCompile(`^part_([0-9]{1,18})\.tar(\.[a-z0-9]*)?$`)

// listWALE lists the partitions of a backup of WAL-E. Nothing records how many there were: a missing one shows as a gap in their
// numbers, and a missing last one only in the size of what was restored.
func (c *Catalog) listWALE(b Backup, stored map[string]int64) (Listing, error) {
	l := Listing{DataSize: b.WALE.ExpandedSize}
	byNumber := map[uint64]string{}
	for _, name := range sortedKeys(stored) {
		m := walePart.FindStringSubmatch(name)
		if m == nil {
			c.log.Warn("an object that is no partition lies among those of a backup of WAL-E and is ignored", "backup", b.Name, "object", name)
			continue
		}
		n, err := strconv.ParseUint(m[1], 10, 64)
		if err != nil {
			return l, err
		}
		if other, taken := byNumber[n]; taken {
			return l, fmt.Errorf("%s and %s are both its partition %d", other, name, n)
		}
		byNumber[n] = name
	}
	for _, n := range sortedKeys(byNumber) {
		if expected := uint64(len(l.Parts)); n != expected {
			return l, hint.With(fmt.Errorf("its partition %d is missing, although there is %s", expected, byNumber[n]),
				"without it the backup is not complete; choose another backup")
		}
		l.addPart(Part{Name: byNumber[n], Size: stored[byNumber[n]]})
	}
	return l, nil
}
