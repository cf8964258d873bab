package cli

import (
	"errors"
)

// Exit codes of all commands. docs/operations.md explains them to operators, and tests assert them.
const (
	exitOK = 0
	// exitError is any error, wrong usage and an end by signal included.
	exitError = 1
	// exitCorruptPages: the backup was taken, but pages of the cluster failed verification.
	exitCorruptPages = 3
	// exitWALOverdue: the backup was taken, but its WAL did not reach the archive in time.
	exitWALOverdue = 4
	// exitVerifyFailed: wal-verify found out that something is missing or wrong, or something is missing when archive repair ends.
	exitVerifyFailed = 5
	// exitAbsent: wal-fetch was told by the storage that the file is not in the archive (WAL-G's code). PostgreSQL takes
	// every code up to 125 for absence.
	exitAbsent = 74
	// exitStopRecovery: wal-fetch could not find out, while PostgreSQL is in archive recovery. Codes above 125 make it stop
	// instead of ending recovery on old data (RestoreArchivedFile in xlogarchive.c); those from 129 to 192 would look like
	// signals.
	exitStopRecovery = 200
)

// exit is an error that asks for an exit code of its own.
type exit struct {
	error
	code int
}

func (e *exit) Unwrap() error { return e.error }

// errSilent marks an outcome that is no failure to be printed; only its exit code tells it.
var errSilent = errors.New("told by the exit code")

func exitCode(err error) int {
	var e *exit
	if errors.As(err, &e) {
		return e.code
	}
	return exitError
}
