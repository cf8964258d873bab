package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// errEnded is what a session that has ended answers to further use.
var errEnded = errors.New("the session with the PostgreSQL server has ended")

// failure is an error with the next thing to try.
type failure struct {
	err  error
	hint string
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// Hint tells the operator what to do.
func (f *failure) Hint() string { return f.hint }

func withHint(err error, hint string) error { return &failure{err, hint} }

// serverError passes the server's own hint on, and names a session that has ended as such.
func serverError(err error) error {
	var reported *pgconn.PgError
	switch {
	case errors.As(err, &reported) && reported.Hint != "":
		return withHint(err, reported.Hint)
	case errors.Is(err, pgconn.ErrConnClosed):
		return errEnded
	}
	return err
}

// hasState tells whether the server reported an error with one of the SQLSTATE codes.
func hasState(err error, codes ...string) bool {
	var reported *pgconn.PgError
	if !errors.As(err, &reported) {
		return false
	}
	for _, code := range codes {
		if reported.Code == code {
			return true
		}
	}
	return false
}

// oneLine keeps an error's causes and puts its text on one line.
type oneLine struct{ err error }

func (e oneLine) Error() string { return strings.Join(strings.Fields(e.err.Error()), " ") }
func (e oneLine) Unwrap() error { return e.err }

// connectError names the server, the role and the database, and says what to look at. SQLSTATE codes are those of
// PostgreSQL's documentation, appendix "Error Codes".
func connectError(config *pgx.ConnConfig, err error) error {
	cause := err
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) { // its own text names role and database as well
		cause = connect.Unwrap()
	}
	named := fmt.Errorf("cannot connect to PostgreSQL at %s as user %q to database %q: %w",
		address(config), config.User, config.Database, oneLine{cause})
	socket := strings.HasPrefix(config.Host, "/") || strings.HasPrefix(config.Host, "@")

	switch {
	case hasState(err, "28000", "28P01"):
		return withHint(named, "let pg_hba.conf admit this user from here, and check PGUSER, PGPASSWORD and the password file")
	case hasState(err, "3D000"):
		return withHint(named, "set PGDATABASE to a database that exists, for example postgres")
	case hasState(err, "57P03"):
		return withHint(named, "the server is starting, stopping or recovering: try again; a standby needs hot_standby = on")
	case hasState(err, "53300"):
		return withHint(named, "raise max_connections, or use a role that may take superuser_reserved_connections")
	case errors.Is(err, fs.ErrNotExist) && socket, errors.Is(err, syscall.ECONNREFUSED) && socket:
		return withHint(named, "check that the server runs, and set PGHOST to the directory of its socket "+
			"(unix_socket_directories, often /var/run/postgresql) and PGPORT to its port")
	case errors.Is(err, fs.ErrPermission):
		return withHint(named, "run as a user that may enter the socket's directory, usually postgres")
	case errors.Is(err, syscall.ECONNREFUSED):
		return withHint(named, "check that the server runs and that listen_addresses and port admit this address; "+
			"on the server itself PGHOST is best its socket's directory, often /var/run/postgresql")
	case errors.Is(err, context.DeadlineExceeded), pgconn.Timeout(err):
		return withHint(named, "no answer in time: check PGHOST, PGPORT and the network between here and there")
	}
	return serverError(named)
}
