package backup

import (
	"fmt"
	"path/filepath"

	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/postgres"
)

// examineDataDir resolves the data directory and proves that it is the one the server works on: a backup of one
// directory under the protection of another server's backup mode would be worthless.
// It returns its resolved path and what its control file says.
func examineDataDir(given string, info postgres.Info) (string, pgdata.Control, error) {
	var control pgdata.Control
	if given == "" {
		given = info.DataDirectory
	}
	dir, err := filepath.Abs(given)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return "", control, hint.With(fmt.Errorf("cannot read the data directory: %w", err),
			"walden runs on the database host, as the user that owns the data directory")
	}
	major, err := pgdata.ReadMajor(dir)
	if err != nil {
		return "", control, hint.With(fmt.Errorf("%s is not a readable data directory: %w", dir, err),
			"give the server's data_directory, and run walden as the user that owns it")
	}
	if control, _, err = pgdata.ReadControl(dir); err != nil {
		return "", control, err
	}
	server, err := filepath.EvalSymlinks(info.DataDirectory)
	if err != nil {
		server = info.DataDirectory // on another host, or not visible to us
	}
	switch {
	case control.SystemIdentifier != info.SystemIdentifier:
		err = fmt.Errorf("its system identifier is %d, the connected server's is %d", control.SystemIdentifier, info.SystemIdentifier)
	case server != dir:
		err = fmt.Errorf("the connected server works on %s", server)
	case major != info.Major:
		err = fmt.Errorf("it is of PostgreSQL %d, the connected server is of %d", major, info.Major)
	default:
		return dir, control, nil
	}
	return "", control, hint.With(fmt.Errorf("%s is not the connected server's data directory: %w", dir, err),
		"check PGHOST and PGPORT, or the directory given")
}
