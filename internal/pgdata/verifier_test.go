package pgdata

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"gitlab.com/walden-pg/walden/internal/wal"
)

const backupStart = wal.LSN(0x1_00000000)

// newPage returns a good page of the given block, last changed at lsn.
func newPage(block uint32, lsn wal.LSN) []byte {
	page := randomPage(rand.New(rand.NewPCG(uint64(block), uint64(lsn))))
	setLSN(page, lsn)
	le := binary.LittleEndian
	le.PutUint16(page[offsetUpper:], 4096)
	le.PutUint16(page[offsetChecksum:], Checksum(page, block))
	return page
}

func setLSN(page []byte, lsn wal.LSN) {
	binary.LittleEndian.PutUint32(page, uint32(lsn>>32))
	binary.LittleEndian.PutUint32(page[4:], uint32(lsn))
}

// relation is a file of good pages, all changed before the backup.
func relation(blocks int, firstBlock uint32) []byte {
	var file []byte
	for i := range blocks {
		file = append(file, newPage(firstBlock+uint32(i), backupStart-8)...)
	}
	return file
}

// changingFile is a file whose content depends on how often it has been read.
type changingFile struct {
	reads   int
	content func(read int) ([]byte, error)
}

func (f *changingFile) ReadAt(p []byte, at int64) (int, error) {
	f.reads++
	b, err := f.content(f.reads)
	if err != nil {
		return 0, err
	}
	return bytes.NewReader(b).ReadAt(p, at)
}

// verify feeds seen to a verifier that finds again when it reads again.
func verify(t *testing.T, v *PageVerifier, segment uint32, seen []byte, again io.ReaderAt, chunk int) PageReport {
	t.Helper()
	v.Reset(t.Context(), again, segment)
	for b := range slices.Chunk(seen, chunk) {
		if n, err := v.Write(b); err != nil || n != len(b) {
			t.Fatalf("Write(%d bytes) = %d, %v", len(b), n, err)
		}
	}
	return v.Report()
}

func same(a, b PageReport) bool {
	return a.Pages == b.Pages && a.Odd == b.Odd && slices.Equal(a.Corrupt, b.Corrupt) && slices.Equal(a.Suspect, b.Suspect)
}

func TestPagesAreJudged(t *testing.T) {
	t.Parallel()
	good := relation(4, 0)
	edit := func(f func(page1 []byte)) []byte {
		b := slices.Clone(good)
		f(b[PageSize : 2*PageSize])
		return b
	}
	sum := func(page []byte, value uint16) { binary.LittleEndian.PutUint16(page[offsetChecksum:], value) }
	for what, c := range map[string]struct {
		seen []byte
		want PageReport
	}{
		"good":                 {good, PageReport{Pages: 4}},
		"empty":                {nil, PageReport{}},
		"zero page":            {edit(func(p []byte) { clear(p) }), PageReport{Pages: 4}},
		"one byte":             {edit(func(p []byte) { p[5000]++ }), PageReport{Pages: 4, Corrupt: []uint32{1}}},
		"checksum 0":           {edit(func(p []byte) { sum(p, 0) }), PageReport{Pages: 4, Corrupt: []uint32{1}}},
		"page of elsewhere":    {edit(func(p []byte) { copy(p, good) }), PageReport{Pages: 4, Corrupt: []uint32{1}}},
		"new but not zero":     {edit(func(p []byte) { clear(p); p[8000] = 1 }), PageReport{Pages: 4, Corrupt: []uint32{1}}},
		"all ones":             {edit(func(p []byte) { fill(p, 0xFF) }), PageReport{Pages: 4, Suspect: []Suspect{{1, 0xFFFFFFFFFFFFFFFF}}}},
		"changed during":       {edit(func(p []byte) { setLSN(p, backupStart) }), PageReport{Pages: 4, Suspect: []Suspect{{1, backupStart}}}},
		"changed just before":  {edit(func(p []byte) { setLSN(p, backupStart-1) }), PageReport{Pages: 4, Corrupt: []uint32{1}}},
		"changed, checksum ok": {edit(func(p []byte) { copy(p, newPage(1, backupStart+8)) }), PageReport{Pages: 4}},
		"odd end":              {good[:3*PageSize+100], PageReport{Pages: 3, Odd: true}},
		"less than a page":     {good[:1], PageReport{Odd: true}},
	} {
		v := NewPageVerifier(131072, backupStart)
		for _, chunk := range []int{1 << 20, PageSize, 1000, PageSize + 1, 3*PageSize - 1} {
			if got := verify(t, v, 0, c.seen, bytes.NewReader(c.seen), chunk); !same(got, c.want) {
				t.Errorf("%s in chunks of %d: got %+v, want %+v", what, chunk, got, c.want)
			}
		}
	}
}

func fill(b []byte, with byte) {
	for i := range b {
		b[i] = with
	}
}

func TestBlockNumbersCountOverAllSegmentsForTheChecksumOnly(t *testing.T) {
	t.Parallel()
	const segmentBlocks = 16
	file := relation(3, 2*segmentBlocks)
	v := NewPageVerifier(segmentBlocks, backupStart)
	if got := verify(t, v, 2, file, bytes.NewReader(file), 5000); !same(got, PageReport{Pages: 3}) {
		t.Errorf("in its segment: %+v", got)
	}
	want := PageReport{Pages: 3, Corrupt: []uint32{0, 1, 2}}
	if got := verify(t, v, 1, file, bytes.NewReader(file), 5000); !same(got, want) {
		t.Errorf("in another segment: %+v, want %+v", got, want)
	}
}

func TestTornPagesAreReadAgain(t *testing.T) {
	t.Parallel()
	good := relation(3, 0)
	torn := slices.Clone(good)
	torn[PageSize+6000]++
	changed := slices.Clone(torn)
	setLSN(changed[PageSize:], backupStart+8)
	for what, c := range map[string]struct {
		again func(read int) ([]byte, error)
		reads int
		want  PageReport
	}{
		"good at once":         {func(int) ([]byte, error) { return good, nil }, 1, PageReport{Pages: 3}},
		"good at last":         {func(n int) ([]byte, error) { return [][]byte{torn, good}[n/5], nil }, 5, PageReport{Pages: 3}},
		"never good":           {func(int) ([]byte, error) { return torn, nil }, 5, PageReport{Pages: 3, Corrupt: []uint32{1}}},
		"changed meanwhile":    {func(n int) ([]byte, error) { return [][]byte{torn, changed}[n/3], nil }, 3, PageReport{Pages: 3, Suspect: []Suspect{{1, backupStart + 8}}}},
		"truncated away":       {func(int) ([]byte, error) { return good[:PageSize], nil }, 1, PageReport{Pages: 3}},
		"truncated within":     {func(int) ([]byte, error) { return torn[:PageSize+10], nil }, 1, PageReport{Pages: 3}},
		"last page, still bad": {func(int) ([]byte, error) { return torn[:2*PageSize], nil }, 5, PageReport{Pages: 3, Corrupt: []uint32{1}}},
	} {
		f := &changingFile{content: c.again}
		got := verify(t, NewPageVerifier(131072, backupStart), 0, torn, f, 10000)
		if !same(got, c.want) || f.reads != c.reads {
			t.Errorf("%s: got %+v after %d reads, want %+v after %d", what, got, f.reads, c.want, c.reads)
		}
	}
}

func TestFailuresOfTheFileAndTheContextEndTheWrite(t *testing.T) {
	t.Parallel()
	torn := relation(1, 0)
	torn[6000]++
	broken := errors.New("input/output error")
	v := NewPageVerifier(131072, backupStart)
	v.Reset(t.Context(), &changingFile{content: func(int) ([]byte, error) { return nil, broken }}, 0)
	if _, err := v.Write(torn); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	stop := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	v.Reset(ctx, bytes.NewReader(torn), 0)
	if _, err := v.Write(torn); !errors.Is(err, stop) {
		t.Errorf("got %v, want %v", err, stop)
	}
}

func TestAFileFullOfBadPagesDoesNotTakeForever(t *testing.T) {
	t.Parallel()
	const blocks = 1000 // 15 s at 15 ms each
	file := make([]byte, blocks*PageSize)
	for i := range blocks {
		page := newPage(uint32(i), 8)
		page[100]++
		copy(file[i*PageSize:], page)
	}
	v := NewPageVerifier(131072, backupStart)
	if got := verify(t, v, 0, file, bytes.NewReader(file), 1<<20); len(got.Corrupt) != blocks {
		t.Errorf("%d corrupt pages, want %d", len(got.Corrupt), blocks)
	}
	if v.paused > maxPauses+firstPause<<rereads {
		t.Errorf("waited %v", v.paused)
	}
}

func TestSuspectPagesBeyondTheEndOfTheBackupAreCorrupt(t *testing.T) {
	t.Parallel()
	r := PageReport{Corrupt: []uint32{2, 9}, Suspect: []Suspect{{1, 100}, {5, 101}, {7, 99}}}
	if got := r.CorruptAt(100); !slices.Equal(got, []uint32{2, 5, 9}) {
		t.Errorf("got %v", got)
	}
	if len(r.Corrupt) != 2 {
		t.Error("the report was changed")
	}
}

func TestReportsSurviveReuseAndGoodFilesAllocateNothing(t *testing.T) {
	good, bad := relation(4, 0), relation(4, 0)
	bad[100]++
	bad[2*PageSize+100]++
	v := NewPageVerifier(131072, backupStart)
	first := verify(t, v, 0, bad, bytes.NewReader(bad), 8000)
	bad[100]--
	bad[PageSize+100]++
	second := verify(t, v, 0, bad, bytes.NewReader(bad), 8000)
	if !slices.Equal(first.Corrupt, []uint32{0, 2}) || !slices.Equal(second.Corrupt, []uint32{1, 2}) {
		t.Errorf("got %v, then %v", first.Corrupt, second.Corrupt)
	}
	ctx, file := t.Context(), bytes.NewReader(good)
	if n := testing.AllocsPerRun(10, func() {
		v.Reset(ctx, file, 0)
		v.Write(good[:10000])
		v.Write(good[10000:])
		v.Report()
	}); n != 0 {
		t.Errorf("%v allocations for a good file", n)
	}
}

func FuzzPageVerifier(f *testing.F) {
	good := relation(2, 0)
	torn := slices.Clone(good)
	torn[PageSize+77]++
	f.Add(good, uint16(8192), uint64(backupStart))
	f.Add(torn, uint16(100), uint64(backupStart))
	f.Add(make([]byte, PageSize+1), uint16(1), uint64(0))
	f.Fuzz(func(t *testing.T, file []byte, chunk uint16, start uint64) {
		report := func(chunk int) PageReport {
			v := NewPageVerifier(131072, wal.LSN(start))
			v.Reset(t.Context(), bytes.NewReader(file), 0)
			v.paused = maxPauses // no waiting
			for b := range slices.Chunk(file, chunk) {
				if n, err := v.Write(b); err != nil || n != len(b) {
					t.Fatalf("Write = %d, %v", n, err)
				}
			}
			return v.Report()
		}
		got := report(int(chunk) + 1)
		if whole := report(1 << 30); !same(got, whole) {
			t.Errorf("in chunks of %d: %+v, at once: %+v", int(chunk)+1, got, whole)
		}
		if int(got.Pages) != len(file)/PageSize || got.Odd != (len(file)%PageSize != 0) ||
			len(got.Corrupt)+len(got.Suspect) > int(got.Pages) || !slices.IsSorted(got.Corrupt) {
			t.Errorf("%d bytes: %+v", len(file), got)
		}
	})
}

func BenchmarkPageVerifier(b *testing.B) {
	file := relation(128, 0)
	v := NewPageVerifier(131072, backupStart)
	b.SetBytes(int64(len(file)))
	for b.Loop() {
		v.Reset(b.Context(), bytes.NewReader(file), 0)
		v.Write(file)
	}
}
