package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/archive"
	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/changes"
	"gitlab.com/walden-pg/walden/internal/codec"
	"gitlab.com/walden-pg/walden/internal/crypt"
	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
	"gitlab.com/walden-pg/walden/internal/wal"
)

const mib = 1 << 20 // size of the segments in these tests

// log of a server that has written records which cross segments, one of them several.
func archivedLog(t *testing.T) (dir string, first, last wal.Segment) {
	t.Helper()
	server := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: map[string]string{
		"wal_keep_size": "1GB", "archive_mode": "on", "archive_command": "true", "autovacuum": "off",
	}})
	server.Exec(t, "CREATE TABLE t (i serial PRIMARY KEY, filler text)", "SELECT pg_switch_wal()")
	begin := server.Query(t, "SELECT pg_walfile_name(pg_current_wal_lsn())")
	for range 8 {
		server.Exec(t, "INSERT INTO t (filler) SELECT md5(g::text) FROM generate_series(1, 8000) AS g", "CHECKPOINT",
			"UPDATE t SET filler = filler || 'x' WHERE i % 7 = 0", "CREATE TABLE u AS SELECT * FROM t LIMIT 2000", "TRUNCATE u", "DROP TABLE u",
			"SELECT pg_logical_emit_message(false, 'walden', repeat('z', 300000))")
	}
	server.Exec(t, "SELECT pg_logical_emit_message(false, 'walden', repeat('z', 3500000))")
	for range 5 {
		server.Exec(t, "INSERT INTO t (filler) SELECT md5(g::text) FROM generate_series(1, 20000) AS g", "CREATE DATABASE d", "DROP DATABASE d")
	}
	end := server.SwitchWAL(t)
	server.Stop("fast")
	var err, err2 error
	first, err = wal.ParseSegment(begin, mib)
	last, err2 = wal.ParseSegment(end, mib)
	if err = errors.Join(err, err2); err != nil || last.Number-first.Number < 3*changes.GroupSegments {
		t.Fatalf("the log goes from %s to %s: %v", begin, end, err)
	}
	return filepath.Join(server.DataDir, "pg_wal"), first, last
}

// bytesOf are equal for equal changes.
func bytesOf(t *testing.T, m *changes.Map) []byte {
	t.Helper()
	var all changes.Map
	all.Add(m)
	var b bytes.Buffer
	if _, err := (&changes.Recorded{Changes: all}).WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// within tells whether everything in one map is in another one.
func within(t *testing.T, few, many *changes.Map) bool {
	t.Helper()
	var both changes.Map
	both.Add(few)
	both.Add(many)
	return bytes.Equal(bytesOf(t, &both), bytesOf(t, many))
}

// folded is what segments say, read one after the other.
func folded(t *testing.T, dir string, first, last wal.Segment) *changes.Map {
	t.Helper()
	m := &changes.Map{}
	f := changes.NewFolder(m)
	for s := range wal.Segments(first, last) {
		b, err := os.ReadFile(filepath.Join(dir, s.Name(mib)))
		if err == nil {
			err = f.Segment(bytes.NewReader(b))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// without hides files.
type without struct {
	walFiles
	names map[string]bool
}

func (w without) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if w.names[name] {
		return nil, fs.ErrNotExist
	}
	return w.walFiles.Open(ctx, name)
}

// TestChangesAreReadFromTheArchive archives a log in an order of chance, several segments at once, and reads from what was recorded
// on the way, and from the segments where nothing was, what changed between many positions.
func TestChangesAreReadFromTheArchive(t *testing.T) {
	t.Parallel()
	r := testenv.Rand(t)
	dir, first, last := archivedLog(t)
	store := storagetest.NewMemory()
	method, err := codec.New("lz4", codec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	c := catalog.New(repo.New(store, method, crypt.None{}, repo.Options{}), log)
	var names []string
	for s := range wal.Segments(first, last) {
		names = append(names, s.Name(mib))
	}
	late := map[string]int{} // as the archiver does, with some that come late
	for i, name := range names {
		late[name] = i + r.IntN(changes.GroupSegments)
	}
	slices.SortStableFunc(names, func(a, b string) int { return late[a] - late[b] })
	const atOnce = 4
	var wg sync.WaitGroup
	for worker := range atOnce {
		wg.Go(func() {
			for i := worker; i < len(names); i += atOnce {
				o := archive.PushOptions{Path: filepath.Join(dir, names[i]), Timeout: time.Minute, Blocks: true}
				if err := archive.Push(t.Context(), archive.Deps{Catalog: c, Log: log}, o); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	recorded := map[string]bool{}
	groups := 0
	for n := first.Number - first.Number%changes.GroupSegments + changes.GroupSegments; n+changes.GroupSegments-1 <= last.Number; n += changes.GroupSegments {
		groups++
		name := catalog.DeltaName(wal.Segment{Timeline: 1, Number: n}, mib)
		if there, err := c.WAL().Has(t.Context(), name); err != nil || there {
			recorded[name] = true
		}
	}
	// The record that is longer than a segment spoils the groups that it lies in: one, or two.
	if len(recorded) < groups-3 || len(recorded) > groups-1 {
		t.Errorf("of %d groups %d were recorded: %v", groups, len(recorded), recorded)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "walden_blocks")); err != nil || len(left) > 3*changes.GroupSegments {
		t.Errorf("%d files are left, %v", len(left), err)
	}

	around := folded(t, dir, first, last)
	change := func(files walFiles, from, to wal.LSN) (*changes.Map, *walFolder, error) {
		w := &walFolder{files: files, tip: 1, segmentSize: mib, log: log}
		m, err := w.changes(t.Context(), from, to)
		return m, w, err
	}
	for range testenv.Pick(8, 200) {
		a := first.Start(mib) + wal.LSN(r.Int64N(int64(last.Start(mib)-first.Start(mib))))
		b := a + 1 + wal.LSN(r.Int64N(int64(last.End(mib)-a)))
		hidden := map[string]bool{}
		for name := range recorded {
			hidden[name] = r.IntN(3) == 0
		}
		m, w, err := change(without{c.WAL(), hidden}, a, b)
		if err != nil {
			t.Fatalf("from %s to %s: %v", a, b, err)
		}
		if m.From != a || m.To < b {
			t.Errorf("from %s to %s: it says from %s to %s", a, b, m.From, m.To)
		}
		exact := folded(t, dir, wal.SegmentAt(1, a, mib), wal.SegmentBefore(1, b, mib))
		if !within(t, exact, m) || !within(t, m, around) {
			t.Errorf("from %s to %s with %d records and %d segments: some changes are missing, or there are others", a, b, w.objects, w.segments)
		}
		testenv.Figure(t, "stretches of archived WAL", "folded", 1)
	}
	// A segment that is not there, and nothing that was recorded of it.
	gap := wal.Segment{Timeline: 1, Number: first.Number + changes.GroupSegments + 3}
	hidden := map[string]bool{gap.Name(mib): true, catalog.DeltaName(wal.Segment{Timeline: 1, Number: gap.Number - gap.Number%changes.GroupSegments}, mib): true}
	if _, _, err := change(without{c.WAL(), hidden}, first.Start(mib), last.End(mib)); !errors.Is(err, errNotCovered) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("with a gap: %v", err)
	}
	if _, _, err := change(c.WAL(), first.Start(mib), last.End(mib)+1); !errors.Is(err, errNotCovered) {
		t.Errorf("up to a segment that was not archived: %v", err)
	}
}

// fileSet is an archive in memory.
type fileSet map[string][]byte

func (f fileSet) Open(_ context.Context, name string) (io.ReadCloser, error) {
	b, ok := f[name]
	if !ok {
		return nil, fmt.Errorf("cannot open %s: %w", name, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// TestChangesAreReadAcrossTimelines promotes a standby twice, and reads what changed before and after.
func TestChangesAreReadAcrossTimelines(t *testing.T) {
	t.Parallel()
	settings := map[string]string{"wal_keep_size": "1GB", "autovacuum": "off", "archive_mode": "always", "archive_command": "true"}
	server := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: settings})
	server.Exec(t, "CREATE TABLE t (i int, filler text)")
	server.SwitchWAL(t)
	from := server.Query(t, "SELECT pg_current_wal_insert_lsn()")
	standby := server.Standby(t, testenv.PostgresOptions{Settings: settings})
	server.Exec(t, "INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 20000) AS g")
	standby.CatchUp(t, server)
	server.Exec(t, "CREATE TABLE lost AS SELECT g AS i, md5(g::text) FROM generate_series(1, 30000) AS g") // may reach the standby or not
	server.Stop("fast")
	standby.Promote(t)
	standby.Exec(t, "CREATE TABLE later AS SELECT g AS i, md5(g::text) FROM generate_series(1, 30000) AS g", "CHECKPOINT")
	end := standby.SwitchWAL(t)
	standby.Stop("fast")

	files := fileSet{}
	for _, dir := range []string{server.DataDir, standby.DataDir} { // where both have a file, the standby has its own
		entries, err := os.ReadDir(filepath.Join(dir, "pg_wal"))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if kind := wal.Classify(e.Name()); kind == wal.KindSegment || kind == wal.KindHistory {
				if files[e.Name()], err = os.ReadFile(filepath.Join(dir, "pg_wal", e.Name())); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	begin, err := wal.ParseLSN(from)
	last, err2 := wal.ParseSegment(end, mib)
	if err = errors.Join(err, err2); err != nil || last.Timeline != 2 {
		t.Fatalf("%s on timeline %d, %v", from, last.Timeline, err)
	}
	w := &walFolder{files: files, tip: 2, segmentSize: mib, log: slog.New(slog.DiscardHandler)}
	m, err := w.changes(t.Context(), begin, last.End(mib))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"t", "later"} {
		var database, number uint32
		standby.Start()
		name := standby.Query(t, "SELECT pg_relation_filepath('"+path+"')")
		if _, err := fmt.Sscanf(name, "base/%d/%d", &database, &number); err != nil {
			t.Fatal(err)
		}
		blocks, whole := m.InFile(changes.Relation{Tablespace: 1663, Database: database, Number: number}, 0, 131072, 100)
		if path == "t" && blocks.Len() != 100 || path == "later" && !whole {
			t.Errorf("%s: %d blocks, all of it: %t", path, blocks.Len(), whole)
		}
		standby.Stop("fast")
	}
	delete(files, wal.HistoryName(2))
	w = &walFolder{files: files, tip: 2, segmentSize: mib, log: slog.New(slog.DiscardHandler)}
	if _, err := w.changes(t.Context(), begin, last.End(mib)); !errors.Is(err, errNotCovered) {
		t.Errorf("without the history: %v", err)
	}
}
