package catalog

import (
	"fmt"
	"path"
	"regexp"
	"strings"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// Folders and object names below the archive's prefix (WAL-G format, "Folders and object names").
const (
	backupsDir      = "basebackups_005/"
	walDir          = "wal_005/"
	deltaSuffix     = "_delta"
	deltaOf         = "_D_" // between a delta's own segment and its base's
	partsDir        = "tar_partitions/"
	sentinelSuffix  = "_backup_stop_sentinel.json"
	metadataName    = "metadata.json"
	filesName       = "files_metadata.json"
	manifestName    = "walden_manifest.json" // walden's own; WAL-G ignores it
	draftName       = "walden_draft.json"    // walden's own: who is writing a backup that has no sentinel yet
	identityName    = "walden_identity.json" // walden's own: the cluster that the archive belongs to
	fingerprintsDir = "walden_fingerprints/" // walden's own: what files contain that their writer cannot read back
	controlTar      = "pg_control.tar"
	labelTar        = "backup_label.tar"
)

// Folders are the folders below the archive's prefix in which an archive, walden's or WAL-G's, keeps its large objects.
// Nothing else writes there, whatever shares the prefix.
func Folders() []string { return []string{backupsDir, walDir} }

// backupSegments returns the segments in a backup's name: its own, "" if the name is none, and its base's, "" unless it is a delta. The
// grammar is that by which WAL-G recognises its backups: full, delta, and WAL-E's with an offset
// (^base_([0-9A-F]{24})(_D_[0-9A-F]{24})?(_[0-9A-F]{8})?$).
func backupSegments(name string) (segment, base string) {
	rest, ok := strings.CutPrefix(name, "base_")
	if !ok || !upperHex(rest, 24) {
		return "", ""
	}
	segment, rest = rest[:24], rest[24:]
	if of, ok := strings.CutPrefix(rest, deltaOf); ok && upperHex(of, 24) {
		base, rest = of[:24], of[24:]
	}
	if offset, ok := strings.CutPrefix(rest, "_"); ok && upperHex(offset, 8) {
		rest = offset[8:]
	}
	if rest != "" {
		return "", ""
	}
	return segment, base
}

func isBackupName(name string) bool {
	segment, _ := backupSegments(name)
	return segment != ""
}

// upperHex tells whether s begins with n upper-case hexadecimal digits.
func upperHex(s string, n int) bool {
	if len(s) < n {
		return false
	}
	for i := range n {
		if c := s[i]; (c < '0' || c > '9') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}

// fullName names a full backup after the segment that holds its start LSN.
func fullName(start wal.Segment, segmentSize int64) string {
	return "base_" + start.Name(segmentSize)
}

// deltaName names a delta that begins in the same segment as a full backup of the given name would.
func deltaName(full, base string) string { return full + deltaOf + Backup{Name: base}.WALFile() }

func sentinelKey(backup string) string { return backupsDir + backup + sentinelSuffix }
func backupDir(backup string) string   { return backupsDir + backup + "/" }

// partName names the n-th tar of a backup, counting from 1.
func partName(n int) string { return fmt.Sprintf("part_%03d.tar", n) }

// special tells the two tars that a restore reads after all others.
var specialTar = regexp.MustCompile(`^(pg_control|backup_label)\.tar(\..*)?$`)

// anyTar matches every object that belongs into tar_partitions/, those of older writers with a dangling dot included.
var anyTar = regexp.MustCompile(`^[^/]+\.tar(\.[a-z0-9]*)?$`)

// baseName is the last element of a key.
func baseName(key string) string { return path.Base(strings.TrimSuffix(key, "/")) }
