package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// The versions that are known.
const (
	OldestMajor = oldestMajor
	NewestMajor = newestMajor
)

// Occupy uses the session until its connection is closed and release with it, as a query without an answer does.
func Occupy(s *Server, stuck chan<- struct{}, release <-chan struct{}) error {
	return s.use(context.Background(), startLimit, func(context.Context, *pgx.Conn) error {
		close(stuck)
		<-release
		return nil
	})
}

// CheckVersion judges a server as if it were of another major version.
func CheckVersion(s *Server, major int) error {
	other := &Server{options: s.options, name: s.name, info: s.info}
	other.info.Major = major
	return other.checkVersion()
}

// Ask runs a query of one value in the session.
func Ask(ctx context.Context, s *Server, dest *string, sql string) error {
	return s.query(ctx, []any{dest}, sql)
}
