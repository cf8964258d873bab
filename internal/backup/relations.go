package backup

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"strings"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/postgres"
)

// relations returns what writes the members of "DatabasesByNames" (WAL-G format): which file belongs to which table, for
// restoring single databases or tables. What cannot be learned is left out with a warning: the backup itself is complete
// without it.
func relations(d Deps, o Options) catalog.Relations {
	if o.NoRelations {
		return nil
	}
	return func(ctx context.Context, w io.Writer) error {
		first := true
		var failed error // of w, which ends the backup
		err := d.Server.Relations(ctx, func(db postgres.Database, rels iter.Seq2[postgres.Relation, error]) error {
			failed = writeDatabase(w, db, rels, first, func(err error) {
				d.Log.Warn("the list of a database's relations is incomplete; restoring single tables of it will not work",
					"database", db.Name, "error", err)
			})
			first = false
			return failed
		})
		switch {
		case failed != nil:
			return failed
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			d.Log.Warn("the list of databases is incomplete; restoring single databases or tables will not work", "error", err)
		}
		return nil
	}
}

// writeDatabase writes one member: {"oid":…,"tables_new":{"schema.relation":{"oid":…,"relfilenode":…,"subtables":{…}}}}.
func writeDatabase(w io.Writer, db postgres.Database, rels iter.Seq2[postgres.Relation, error], first bool, incomplete func(error)) error {
	out := &stickyWriter{w: w}
	if !first {
		out.text(",")
	}
	out.json(db.Name)
	out.text(fmt.Sprintf(`:{"oid":%d,"tables_new":{`, db.OID))
	depth := -1 // of the relation whose object is open
	for r, err := range rels {
		if err != nil {
			incomplete(err)
			break
		}
		switch {
		case depth < 0:
		case r.Depth > depth:
			out.text(`,"subtables":{`)
		default:
			out.text("}" + strings.Repeat("}}", depth-r.Depth) + ",")
		}
		out.json(r.Schema + "." + r.Name)
		out.text(fmt.Sprintf(`:{"oid":%d,"relfilenode":%d`, r.OID, r.Filenode))
		depth = r.Depth
	}
	if depth >= 0 {
		out.text("}" + strings.Repeat("}}", depth))
	}
	out.text("}}")
	return out.err
}

// stickyWriter keeps the first error.
type stickyWriter struct {
	w   io.Writer
	err error
}

func (s *stickyWriter) text(t string) {
	if s.err == nil {
		_, s.err = io.WriteString(s.w, t)
	}
}

func (s *stickyWriter) json(name string) {
	b, err := json.Marshal(name)
	if err != nil && s.err == nil {
		s.err = err
	}
	s.text(string(b))
}
