package backup

import (
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/changes"
	"gitlab.com/walden-pg/walden/internal/directio"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/postgres"
	"gitlab.com/walden-pg/walden/internal/wal"
)

const baseStart wal.LSN = 0x5000028

// page makes a page with a standard header.
func page(lsn wal.LSN, flags uint16) []byte {
	p := make([]byte, pgdata.PageSize)
	le := binary.LittleEndian
	le.PutUint32(p, uint32(lsn>>32))
	le.PutUint32(p[4:], uint32(lsn))
	le.PutUint16(p[10:], flags)
	le.PutUint16(p[12:], 24)
	le.PutUint16(p[14:], 8000)
	le.PutUint16(p[16:], pgdata.PageSize)
	le.PutUint16(p[18:], pgdata.PageSize|4)
	p[9000%pgdata.PageSize] = 1
	return p
}

// deltaCopier copies from a directory against a base that has the given files.
func deltaCopier(t *testing.T, known ...catalog.File) *copier {
	t.Helper()
	b := &base{}
	b.Backup.StartLSN = baseStart
	b.Listing.Files = &catalog.Files{}
	for _, f := range known {
		if _, err := b.Listing.Files.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	d := &delta{base: b, versions: map[string]int64{"base/5": 7}, hidden: true}
	j := &job{dir: t.TempDir(), delta: d, relBlocks: 131072, log: slog.New(slog.DiscardHandler)}
	var told sum
	return &copier{job: j, progress: &told, buf: make([]byte, readSize), names: map[owner][2]string{}, verifier: pgdata.NewPageVerifier(131072, baseStart)}
}

func (w *copier) lay(t *testing.T, name string, pages ...[]byte) *directio.Once {
	t.Helper()
	path := filepath.Join(w.job.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, slices.Concat(pages...), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openDataFile(w.job.dir, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestWhatAScanTakesForChanged(t *testing.T) {
	t.Parallel()
	old, now, new := page(baseStart-8, 0), page(baseStart, 0), make([]byte, pgdata.PageSize)
	visible := page(baseStart-8, allVisible)
	unlogged := page(0, 0)
	odd := page(baseStart-8, 0x80)
	version := catalog.File{Name: "base/5/PG_VERSION", MTime: 7}
	for _, c := range []struct {
		what  string
		name  string
		was   catalog.File
		pages [][]byte
		vm    []byte
		how   catalog.Stored
		want  []uint32
	}{
		{"nothing changed", "base/5/100", catalog.File{Size: 2 * pgdata.PageSize}, [][]byte{old, old}, nil, catalog.Elsewhere, nil},
		{"a page changed", "base/5/100", catalog.File{Size: 2 * pgdata.PageSize}, [][]byte{old, now}, nil, catalog.Increment, []uint32{1}},
		{"zeros in place of a page", "base/5/100", catalog.File{Size: 2 * pgdata.PageSize}, [][]byte{new, old}, nil, catalog.Increment, []uint32{0}},
		{"cut", "base/5/100", catalog.File{Size: 2 * pgdata.PageSize}, [][]byte{old}, nil, catalog.Increment, nil},
		{"grown by what looks old", "base/5/100", catalog.File{Size: pgdata.PageSize}, [][]byte{old, old}, nil, catalog.Increment, []uint32{1}},
		{"a base that records no size", "base/5/100", catalog.File{Size: -1}, [][]byte{old, old}, nil, catalog.Increment, nil},
		{"not in the base", "base/5/101", catalog.File{}, [][]byte{old}, nil, catalog.Whole, nil},
		{"corrupt in the base", "base/5/100", catalog.File{Size: pgdata.PageSize, Corrupt: &catalog.CorruptBlocks{Count: 1}}, [][]byte{old}, nil, catalog.Whole, nil},
		{"a page that was not logged", "base/5/100", catalog.File{Size: 2 * pgdata.PageSize}, [][]byte{now, unlogged}, nil, catalog.Whole, nil},
		{"no standard header", "base/5/100", catalog.File{Size: pgdata.PageSize}, [][]byte{odd}, nil, catalog.Whole, nil},
		{"no standard header and a late position", "base/5/100", catalog.File{Size: pgdata.PageSize}, [][]byte{page(baseStart, 0x80)}, nil, catalog.Whole, nil},
		{"free space map", "base/5/100_fsm", catalog.File{Size: pgdata.PageSize}, [][]byte{old}, nil, catalog.Whole, nil},
		{"no whole pages", "base/5/100", catalog.File{Size: 100}, [][]byte{old[:100]}, nil, catalog.Whole, nil},
		{"a folder made anew", "base/6/100", catalog.File{Size: pgdata.PageSize}, [][]byte{old}, nil, catalog.Increment, nil},
		{"all visible since", "base/5/100", catalog.File{Size: 2 * pgdata.PageSize}, [][]byte{visible, old}, now, catalog.Increment, []uint32{0}},
		{"all visible before", "base/5/100", catalog.File{Size: 2 * pgdata.PageSize}, [][]byte{visible, old}, old, catalog.Elsewhere, nil},
		{"all visible without a map", "base/5/100", catalog.File{Size: 2 * pgdata.PageSize}, [][]byte{visible, old}, nil, catalog.Elsewhere, nil},
		{"shared catalog", "global/100", catalog.File{Size: 2 * pgdata.PageSize}, [][]byte{old, now}, nil, catalog.Increment, []uint32{1}},
	} {
		was := c.was
		was.Name = c.name
		if c.what == "not in the base" {
			was.Name = "base/5/99"
		}
		w := deltaCopier(t, version, was)
		if c.what == "a folder made anew" {
			w.job.delta.versions["base/6"] = 1
			c.how = catalog.Whole
		}
		file := w.lay(t, c.name, c.pages...)
		if c.vm != nil {
			w.lay(t, c.name+"_vm", c.vm)
		}
		st, err := file.Stat()
		if err != nil {
			t.Fatal(err)
		}
		how, blocks, err := w.blocksOf(t.Context(), file, c.name, st.Size())
		if err != nil || how != c.how {
			t.Errorf("%s: stored as %d, not %d (%v)", c.what, how, c.how, err)
			continue
		}
		var got []uint32
		if blocks != nil {
			got = slices.Collect(blocks.All())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: blocks %v, not %v", c.what, got, c.want)
		}
	}
}

func TestAPageWithAWrongChecksumIsTakenIntoADelta(t *testing.T) {
	t.Parallel()
	w := deltaCopier(t, catalog.File{Name: "base/5/PG_VERSION", MTime: 7}, catalog.File{Name: "base/5/100.1", Size: 2 * pgdata.PageSize})
	w.job.options.Verify = true
	good, bad := page(baseStart-8, 0), page(baseStart-8, 0)
	for _, p := range [][]byte{good, bad} {
		binary.LittleEndian.PutUint16(p[8:], pgdata.Checksum(p, 131072)) // of the first block of the second segment
	}
	file := w.lay(t, "base/5/100.1", good, bad)
	how, blocks, err := w.blocksOf(t.Context(), file, "base/5/100.1", 2*pgdata.PageSize)
	if err != nil || how != catalog.Increment || blocks.Len() != 1 || !blocks.Has(1) {
		t.Errorf("stored as %d, blocks %v (%v)", how, blocks, err)
	}
}

func TestAMapTellsOfEachSegmentOfARelation(t *testing.T) {
	t.Parallel()
	const relBlocks = 131072
	m := &changes.Map{}
	r := changes.Relation{Tablespace: 1663, Database: 5, Number: 100}
	m.Mark(r, 1)
	m.Mark(r, relBlocks+2)
	full := int64(relBlocks) * pgdata.PageSize
	d := &delta{base: deltaCopier(t, catalog.File{Name: "base/5/100", Size: full}, catalog.File{Name: "base/5/100.1", Size: full},
		catalog.File{Name: "base/5/100.2", Size: full}).job.delta.base, changed: m, versions: map[string]int64{}}
	for name, want := range map[string]struct {
		cost int64
		skip bool
	}{
		"base/5/100": {pgdata.PageSize, false}, "base/5/100.1": {pgdata.PageSize, false}, "base/5/100.2": {0, true}, "base/5/100.3": {full, false},
		"base/5/100_vm": {full, false},
	} {
		cost, skip := d.expect(relBlocks, catalog.File{Name: name, Size: full})
		if cost != want.cost || skip != want.skip {
			t.Errorf("%s: %d bytes are read, and skipped is %v", name, cost, skip)
		}
	}
	m.Cut(r, relBlocks+1)
	if cost, _ := d.expect(relBlocks, catalog.File{Name: "base/5/100.1", Size: full}); cost != full-pgdata.PageSize {
		t.Errorf("of a relation that was cut %d bytes are read", cost)
	}
	if cost, _ := d.expect(relBlocks, catalog.File{Name: "base/5/100.2", Size: full}); cost != full {
		t.Errorf("of a segment behind the cut %d bytes are read", cost)
	}
}

func TestSummariesMustCoverTheLogOnAllTimelinesWithoutAHole(t *testing.T) {
	t.Parallel()
	log := stretches(wal.History{{Timeline: 1, LSN: 100}, {Timeline: 2, LSN: 200}}, 3, 50, 300)
	if want := []stretch{{1, 50, 100}, {2, 100, 200}, {3, 200, 300}}; !slices.Equal(log, want) {
		t.Fatalf("the log is %v", log)
	}
	all := []postgres.Summary{{Timeline: 1, Start: 10, End: 60}, {Timeline: 1, Start: 60, End: 100}, {Timeline: 2, Start: 90, End: 150},
		{Timeline: 2, Start: 150, End: 200}, {Timeline: 3, Start: 200, End: 320}, {Timeline: 1, Start: 100, End: 400}}
	if got, err := covering(all, log); err != nil || len(got) != 5 {
		t.Errorf("chosen are %v (%v)", got, err)
	}
	for i := range 5 {
		if got, err := covering(slices.Delete(slices.Clone(all), i, i+1), log); err == nil {
			t.Errorf("without %v they cover the log: %v", all[i], got)
		}
	}
}
