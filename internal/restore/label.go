package restore

import (
	"bytes"
	"errors"
	"fmt"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// checkUtilities makes sure that the label and the control file belong to this backup, and not to another of the same cluster: their
// objects have the same names in each.
func checkUtilities(b catalog.Backup, u Utilities) error {
	if u.Label == nil { // of a server that was shut down
		return checkControl(b, u.Control.Content)
	}
	start, checkpoint, primary := labelPositions(u.Label.Content)
	if b.StartLSN != 0 && start != 0 && start != b.StartLSN {
		return fmt.Errorf("%w: its %s is of a backup that began at %s, it began at %s", errContent, labelFile, start, b.StartLSN)
	}
	if err := checkControl(b, u.Control.Content); err != nil {
		return err
	}
	control, err := pgdata.ParseControl(u.Control.Content)
	if errors.Is(err, pgdata.ErrControlVersion) {
		return nil
	}
	if err != nil {
		return err
	}
	switch at := control.CheckpointLSN; {
	case at < checkpoint: // the backup began with that checkpoint
		return fmt.Errorf("%w: its control file is older than it: the last checkpoint was at %s, that of %s at %s", errContent, at, labelFile, checkpoint)
	case primary && b.FinishLSN != 0 && at >= b.FinishLSN: // the control file is copied before the backup ends
		return fmt.Errorf("%w: its control file is newer than it: the last checkpoint was at %s, it ended at %s", errContent, at, b.FinishLSN)
	}
	return nil
}

// labelPositions reads what build_backup_content (xlogbackup.c; up to version 14 do_pg_start_backup, xlog.c) writes; what it does not find
// is 0.
func labelPositions(content []byte) (start, checkpoint wal.LSN, primary bool) {
	position := func(value []byte) wal.LSN {
		text, _, _ := bytes.Cut(value, []byte(" "))
		lsn, err := wal.ParseLSN(string(text))
		if err != nil {
			return 0
		}
		return lsn
	}
	for line := range bytes.Lines(content) {
		key, value, _ := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(": "))
		switch string(key) {
		case "START WAL LOCATION":
			start = position(value)
		case "CHECKPOINT LOCATION":
			checkpoint = position(value)
		case "BACKUP FROM":
			primary = string(value) == "primary" || string(value) == "master"
		}
	}
	return start, checkpoint, primary
}
