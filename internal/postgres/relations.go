package postgres

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"
)

// Database is a database that admits connections.
type Database struct {
	OID  uint32
	Name string
}

// Relation is an entry of pg_class that has storage, or a partitioned table or index, whose storage is that of its
// partitions.
type Relation struct {
	OID      uint32
	Filenode uint32 // base name of its file, that of a mapped catalog too; 0 for a partitioned table or index
	Schema   string
	Name     string
	Depth    int // 0, or how many partitioned relations this one is a partition in
}

// Databases lists the databases that admit connections, templates included, in the order of their OIDs.
func (s *Server) Databases(ctx context.Context) ([]Database, error) {
	var databases []Database
	err := s.use(ctx, s.options.answerTimeout(), func(ctx context.Context, conn *pgx.Conn) error {
		// datconnlimit -2 marks a database that an interrupted DROP DATABASE left behind.
		rows, err := conn.Query(ctx, `
			SELECT oid, datname FROM pg_catalog.pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY oid`)
		if err != nil {
			return serverError(err)
		}
		var d Database
		_, err = pgx.ForEachRow(rows, []any{&d.OID, &d.Name}, func() error {
			databases = append(databases, d)
			return nil
		})
		return serverError(err)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list the databases of %s: %w", s, err)
	}
	return databases, nil
}

// Relations calls visit for each of Databases with the relations that it holds, over a short connection of its own
// with the same options. A database that cannot be connected to is left out, with a warning in the log. Temporary
// relations are left out too: no backup holds anything of use of them.
//
// Relations come from the server as they are consumed, a partitioned one directly before its partitions, which have a
// greater Depth. An error ends the sequence; one that visit returns ends the visits and is returned as it is.
func (s *Server) Relations(ctx context.Context, visit func(Database, iter.Seq2[Relation, error]) error) error {
	databases, err := s.Databases(ctx)
	if err != nil {
		return err
	}
	for _, d := range databases {
		if err := s.visitDatabase(ctx, d, visit); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) visitDatabase(ctx context.Context, d Database, visit func(Database, iter.Seq2[Relation, error]) error) error {
	config, err := s.options.parse(d.Name)
	if err != nil {
		return err
	}
	conn, err := s.options.openSession(ctx, config)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("cannot list the relations of database %q: %w", d.Name, ctx.Err())
		}
		s.log.Warn("database left out of the list of relations", "database", d.Name, "error", err)
		return nil
	}
	defer closeConn(conn)
	return visit(d, relations(ctx, conn, d, s.options.answerTimeout()))
}

func relations(ctx context.Context, conn *pgx.Conn, d Database, limit time.Duration) iter.Seq2[Relation, error] {
	return func(yield func(Relation, error) bool) {
		// The clock runs while the server is waited for, not while the consumer takes its time.
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		clock := time.AfterFunc(limit, func() { cancel(fmt.Errorf("no answer from the server within %s", limit)) })
		defer clock.Stop()
		fail := func(err error) {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			yield(Relation{}, fmt.Errorf("cannot list the relations of database %q: %w", d.Name, serverError(err)))
		}
		rows, err := conn.Query(ctx, `
			WITH RECURSIVE tree(oid, depth, path) AS (
				SELECT c.oid, 0, ARRAY[c.oid]
				FROM pg_catalog.pg_class AS c WHERE NOT c.relispartition
			UNION ALL
				SELECT c.oid, t.depth + 1, t.path || c.oid
				FROM tree AS t
				JOIN pg_catalog.pg_inherits AS i ON i.inhparent = t.oid
				JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid AND c.relispartition)
			SELECT c.oid, coalesce(pg_catalog.pg_relation_filenode(c.oid), 0::oid), n.nspname, c.relname, t.depth
			FROM tree AS t
			JOIN pg_catalog.pg_class AS c ON c.oid = t.oid
			JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
			WHERE c.relpersistence <> 't'
			  AND (c.relkind IN ('p', 'I') OR pg_catalog.pg_relation_filenode(c.oid) IS NOT NULL)
			ORDER BY t.path`)
		if err != nil {
			fail(err)
			return
		}
		defer rows.Close()
		for rows.Next() {
			var r Relation
			if err := rows.Scan(&r.OID, &r.Filenode, &r.Schema, &r.Name, &r.Depth); err != nil {
				fail(err)
				return
			}
			clock.Stop()
			if !yield(r, nil) {
				return
			}
			clock.Reset(limit)
		}
		if err := rows.Err(); err != nil {
			fail(err)
		}
	}
}
