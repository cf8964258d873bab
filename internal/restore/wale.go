package restore

import (
	"errors"
	"fmt"
	"regexp"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/pgdata"
)

// checkSize compares what the partitions of WAL-E held with what its walk of the data directory had found, all that it records of
// its files. Files that vanished in between make it less, and so does a missing last partition: nothing tells which.
func (u *unpacker) checkSize() error {
	if u.backup.WALE == nil || u.backup.WALE.ExpandedSize == 0 {
		return nil
	}
	recorded, found := u.backup.WALE.ExpandedSize, u.content.Load()
	switch {
	case found > recorded:
		return fmt.Errorf("cannot restore backup %s: %w: its files have %d bytes, no more than %d were written",
			u.backup.Name, errContent, found, recorded)
	case found < recorded:
		u.log.Warn("the backup holds less than was found when it began: files vanished while it was taken, or its last partition is missing",
			"backup", u.backup.Name, "bytes", found, "recorded", recorded, "partitions", len(u.listing.Parts))
	}
	return nil
}

// labelSegment is the segment in which recovery begins (build_backup_content in xlogbackup.c).
var labelSegment = regexp.MustCompile(`(?m)^START WAL LOCATION: [0-9A-F]+/[0-9A-F]+ \(file ([0-9A-F]{24})\)$`)

// checkLabel refuses a backup without backup_label, but for those that WAL-E took of a stopped server: recovery of them begins at
// the checkpoint that the control file names. It also refuses the label of another backup of WAL-E, whose parts nothing else ties to
// their backup.
func checkLabel(b catalog.Backup, u Utilities) error {
	if u.Label != nil {
		if m := labelSegment.FindSubmatch(u.Label.Content); b.WALE != nil && m != nil && string(m[1]) != b.WALE.StartSegment {
			return fmt.Errorf("%w: its %s is that of a backup that began in segment %s, this one began in %s", errContent, labelFile, m[1], b.WALE.StartSegment)
		}
		return nil
	}
	if b.WALE == nil || !b.WALE.Offline() {
		return fmt.Errorf("the backup has no %s, without which recovery would begin in the wrong place", labelFile)
	}
	control, err := pgdata.ParseControl(u.Control.Content)
	switch {
	case errors.Is(err, pgdata.ErrControlVersion): // then the backup's name is all there is
		return nil
	case err != nil:
		return err
	case control.State != pgdata.StateShutDown && control.State != pgdata.StateShutDownInRecovery:
		return hint.With(fmt.Errorf("the backup has no %s, and its control file is of a server that was not shut down but %s", labelFile, control.State),
			"WAL-E took it with --while-offline while the server was running or had crashed; choose another backup")
	}
	return nil
}
