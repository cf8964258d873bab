package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/quick"
)

const mib = 1 << 20

func TestLSNTextIsReadAndWrittenAsPostgreSQLDoes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]LSN{
		"0/0":               0,
		"0/2000028":         0x2000028,
		"16/B374D848":       0x16B374D848,
		"FFFFFFFF/FFFFFFFF": 0xFFFFFFFFFFFFFFFF,
		"1/0":               1 << 32,
	} {
		got, err := ParseLSN(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("ParseLSN(%q) = %v (%X), %v; want %X", text, got, uint64(got), err, uint64(want))
		}
	}
	for _, text := range []string{"16/b374d848", "16/B374D848", "00000016/B374D848"} {
		if got, err := ParseLSN(text); err != nil || got != 0x16B374D848 {
			t.Errorf("ParseLSN(%q) = %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "/", "0", "0/", "/0", "0/0/0", " 0/0", "0/0 ", "+1/0", "0x1/0", "1_0/0", "000000001/0",
		"0/123456789", "G/0", "-1/0", strings.Repeat("0", 1000)} {
		if got, err := ParseLSN(text); err == nil || len(err.Error()) > 200 {
			t.Errorf("ParseLSN(%q) = %v, %v; want a short error", text, got, err)
		}
	}
}

func TestSegmentSizesArePowersOfTwoFromOneMiBToOneGiB(t *testing.T) {
	t.Parallel()
	valid := 0
	for n := int64(1); n > 0 && n <= 1<<40; n <<= 1 {
		if ValidSegmentSize(n) {
			valid++
		}
	}
	if valid != 11 {
		t.Errorf("%d powers of two are valid, want 11", valid)
	}
	for _, n := range []int64{-16 * mib, 0, 1, mib - 1, mib + 1, 3 * mib, 2 << 30} {
		if ValidSegmentSize(n) {
			t.Errorf("ValidSegmentSize(%d) = true", n)
		}
	}
}

func TestSegmentNamesFollowTheSegmentSize(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		size  int64
		name  string
		start LSN
	}{
		{16 * mib, "000000010000000000000002", 0x2000000},
		{16 * mib, "0000000100000000000000FF", 0xFF000000},
		{16 * mib, "000000010000000100000000", 0x100000000},
		{1 * mib, "00000001000000000000000A", 0xA00000},
		{1 * mib, "000000010000000000000FFF", 0xFFF00000},
		{64 * mib, "00000001000000000000003F", 0xFC000000},
		{1024 * mib, "0000002A0000001600000003", 0x16C0000000},
		{16 * mib, "FFFFFFFFFFFFFFFF000000FF", 0xFFFFFFFFFF000000},
	} {
		s, err := ParseSegment(c.name, c.size)
		if err != nil {
			t.Error(err)
			continue
		}
		if s.Start(c.size) != c.start || s.Name(c.size) != c.name || s.End(c.size)-s.Start(c.size) != LSN(c.size) {
			t.Errorf("%s with %d bytes: start %v end %v name %s", c.name, c.size, s.Start(c.size), s.End(c.size), s.Name(c.size))
		}
		if got := SegmentAt(s.Timeline, c.start, c.size); got != s {
			t.Errorf("SegmentAt(%v) = %v, want %v", c.start, got, s)
		}
		if got := SegmentAt(s.Timeline, c.start+LSN(c.size)-1, c.size); got != s {
			t.Errorf("SegmentAt(last byte of %s) = %v", c.name, got)
		}
		if got := SegmentBefore(s.Timeline, s.End(c.size), c.size); s.End(c.size) != 0 && got != s {
			t.Errorf("SegmentBefore(end of %s) = %v", c.name, got)
		}
	}
	if s := SegmentBefore(1, 0, 16*mib); s.Number != 0 {
		t.Errorf("SegmentBefore(0/0) = %v", s)
	}
}

// That is how XLogFileName prints them (xlog_internal.h).
func TestSegmentNamesArePrintedAsPostgreSQLPrintsThem(t *testing.T) {
	t.Parallel()
	err := quick.Check(func(timeline uint32, number uint64, shift uint8) bool {
		size := int64(mib) << (shift % 11)
		s := Segment{Timeline(timeline), number >> (shift % 64)}
		perUpper := uint64(1<<32) / uint64(size)
		return s.Name(size) == fmt.Sprintf("%08X%08X%08X", timeline, s.Number/perUpper, s.Number%perUpper)
	}, nil)
	if err != nil {
		t.Error(err)
	}
}

func TestSegmentNamesThatPostgreSQLWouldNotWriteAreRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		size int64
	}{
		{"000000010000000000000100", 16 * mib},
		{"000000010000000000000040", 64 * mib},
		{"000000010000000000001000", 1 * mib},
		{"00000001000000000000000a", 16 * mib},
		{"00000001000000000000000", 16 * mib},
		{"0000000100000000000000020", 16 * mib},
		{"000000010000000000000002.partial", 16 * mib},
		{"00000001 00000000000000 2", 16 * mib},
		{"00000001+00000000000000A", 16 * mib},
		{"", 16 * mib},
		{"000000010000000000000002", 0},
		{"000000010000000000000002", 15 * mib},
	} {
		if s, err := ParseSegment(c.name, c.size); err == nil {
			t.Errorf("ParseSegment(%q, %d) = %v, want an error", c.name, c.size, s)
		}
	}
}

func TestSegmentNameAndParseAreInverse(t *testing.T) {
	t.Parallel()
	inverse := func(tl uint32, lsn uint64, shift uint8) bool {
		size := int64(mib) << (shift % 11)
		s := SegmentAt(Timeline(tl), LSN(lsn), size)
		back, err := ParseSegment(s.Name(size), size)
		return err == nil && back == s && s.Start(size) <= LSN(lsn) && (s.End(size) == 0 || LSN(lsn) < s.End(size))
	}
	if err := quick.Check(inverse, nil); err != nil {
		t.Error(err)
	}
}

func TestSegmentsYieldsBothEnds(t *testing.T) {
	t.Parallel()
	names := func(first, last uint64) []string {
		var got []string
		for s := range Segments(Segment{3, first}, Segment{3, last}) {
			got = append(got, s.Name(16*mib))
		}
		return got
	}
	want := []string{"0000000300000000000000FE", "0000000300000000000000FF", "000000030000000100000000"}
	if got := names(0xFE, 0x100); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := names(7, 7); len(got) != 1 {
		t.Errorf("one segment: got %v", got)
	}
	if got := names(8, 7); len(got) != 0 {
		t.Errorf("reverse: got %v", got)
	}
	if got := names(1<<64-2, 1<<64-1); len(got) != 2 {
		t.Errorf("end of the number range: got %v", got)
	}
	for range Segments(Segment{1, 0}, Segment{1, 1 << 63}) {
		break
	}
}

func TestClassifyKnowsTheServersNamesOnly(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]Kind{
		"000000010000000000000002":                  KindSegment,
		"ABCDEF0123456789ABCDEF01":                  KindSegment,
		"000000010000000000000002.partial":          KindPartial,
		"00000002.history":                          KindHistory,
		"000000010000000000000002.00000028.backup":  KindBackupHistory,
		"00000001000000000000000a":                  KindOther,
		"000000010000000000000002.lz4":              KindOther,
		"000000010000000000000002.Partial":          KindOther,
		"00000001000000000000000g.partial":          KindOther,
		"000000010000000000000002.partial.lz4":      KindOther,
		"0000000a.history":                          KindOther,
		"2.history":                                 KindOther,
		"00000002.history.lz4":                      KindOther,
		"000000010000000000000002.0000028.backup":   KindOther,
		"000000010000000000000002.0000002x.backup":  KindOther,
		"000000010000000000000002-00000028.backup":  KindOther,
		"000000010000000000000002.000000028.backup": KindOther,
		"archive_status":                            KindOther,
		"":                                          KindOther,
	} {
		if got := Classify(name); got != want {
			t.Errorf("Classify(%q) = %d, want %d", name, got, want)
		}
		_, ok := NameTimeline(name)
		if ok != (want != KindOther) {
			t.Errorf("NameTimeline(%q) is %t", name, ok)
		}
	}
	if tl, ok := NameTimeline("0000002A.history"); !ok || tl != 42 || HistoryName(tl) != "0000002A.history" {
		t.Errorf("timeline %d, %t, back to %s", tl, ok, HistoryName(tl))
	}
}

// The files header.13 to header.19 are the first bytes of the first segment in clusters made by initdb of these major
// versions: 13 with 64 MiB segments, 14 with 1 MiB, 19 (release
// candidate 1) with 4 MiB, the others with 16 MiB.
func realHeader(t testing.TB, major int) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", fmt.Sprintf("header.%d", major)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestHeadersOfRealSegmentsAreUnderstood(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		want      Header
		continues bool
	}{
		{"000000010000000000000001", Header{0xD106, 13, 2, 1, 0x4000000, 7710983907596110675, 64 * mib, 8192}, false},
		{"00000001000000000000000A", Header{0xD10D, 14, 7, 1, 0xA00000, 7710983913402256233, 1 * mib, 8192}, true},
		{"000000010000000000000001", Header{0xD110, 15, 2, 1, 0x1000000, 7710983920749980543, 16 * mib, 8192}, false},
		{"000000010000000000000001", Header{0xD113, 16, 2, 1, 0x1000000, 7710983925746789269, 16 * mib, 8192}, false},
		{"000000010000000000000001", Header{0xD116, 17, 2, 1, 0x1000000, 7710983930551192491, 16 * mib, 8192}, false},
		{"000000010000000000000001", Header{0xD118, 18, 2, 1, 0x1000000, 7710983935540661185, 16 * mib, 8192}, false},
		{"000000010000000000000002", Header{0xD122, 19, 3, 1, 0x800000, 7711036678948245743, 4 * mib, 8192}, true},
	} {
		h, err := ParseHeader(realHeader(t, c.want.Major))
		if err != nil || h != c.want {
			t.Errorf("major %d: got %+v, %v; want %+v", c.want.Major, h, err, c.want)
			continue
		}
		if h.ContinuesRecord() != c.continues {
			t.Errorf("major %d: ContinuesRecord is %t", h.Major, h.ContinuesRecord())
		}
		for _, name := range []string{c.name, c.name + ".partial", "0000000F" + c.name[8:]} {
			if err := h.CheckFile(name, h.SegmentSize); err != nil {
				t.Errorf("major %d: %v", h.Major, err)
			}
		}
	}
}

func TestFilesThatContradictTheirHeaderAreRefused(t *testing.T) {
	t.Parallel()
	h, err := ParseHeader(realHeader(t, 15))
	if err != nil {
		t.Fatal(err)
	}
	h.Timeline = 2
	for _, c := range []struct {
		name string
		size int64
	}{
		{"000000020000000000000001", 16*mib - 1},
		{"000000020000000000000001", 64 * mib},
		{"000000020000000000000001", 0},
		{"000000020000000000000002", 16 * mib},
		{"000000020000000100000001", 16 * mib},
		{"000000010000000000000001", 16 * mib},
		{"000000020000000000000001.gz", 16 * mib},
		{"000000020000000000000001.partial.partial", 16 * mib},
		{"00000002.history", 16 * mib},
		{"000000020000000000000100", 16 * mib},
	} {
		if err := h.CheckFile(c.name, c.size); err == nil {
			t.Errorf("%s of %d bytes passes", c.name, c.size)
		}
	}
}

func TestDamagedHeadersAreNotWAL(t *testing.T) {
	t.Parallel()
	edit := func(f func(b []byte)) []byte {
		b := slices.Clone(realHeader(t, 15))
		f(b)
		return b
	}
	le := binary.LittleEndian
	for what, b := range map[string][]byte{
		"empty":          nil,
		"short":          realHeader(t, 15)[:HeaderSize-1],
		"zero":           make([]byte, 8192),
		"text":           []byte(strings.Repeat("all work and no play ", 4)),
		"low magic":      edit(func(b []byte) { le.PutUint16(b, 0xCFFF) }),
		"high magic":     edit(func(b []byte) { le.PutUint16(b, 0xD300) }),
		"short header":   edit(func(b []byte) { le.PutUint16(b[2:], 0) }),
		"unknown flags":  edit(func(b []byte) { le.PutUint16(b[2:], 0x12) }),
		"timeline 0":     edit(func(b []byte) { le.PutUint32(b[4:], 0) }),
		"page address":   edit(func(b []byte) { le.PutUint64(b[8:], 0x1002000) }),
		"segment size":   edit(func(b []byte) { le.PutUint32(b[32:], 15<<20) }),
		"no page size":   edit(func(b []byte) { le.PutUint32(b[36:], 0) }),
		"huge page size": edit(func(b []byte) { le.PutUint32(b[36:], 1<<17) }),
		"odd page size":  edit(func(b []byte) { le.PutUint32(b[36:], 8191) }),
	} {
		if h, err := ParseHeader(b); !errors.Is(err, ErrNotWAL) || errors.Is(err, ErrUnknownMagic) || h != (Header{}) {
			t.Errorf("%s: got %+v, %v; want ErrNotWAL", what, h, err)
		}
	}
}

func TestHeaderOfAnUnknownVersionIsReturnedWithItsOwnError(t *testing.T) {
	t.Parallel()
	b := slices.Clone(realHeader(t, 18))
	binary.LittleEndian.PutUint16(b, 0xD1FE)
	binary.LittleEndian.PutUint16(b[2:], 0x8002) // a flag of the future
	h, err := ParseHeader(b)
	if !errors.Is(err, ErrUnknownMagic) || errors.Is(err, ErrNotWAL) {
		t.Fatalf("got %v, want ErrUnknownMagic", err)
	}
	if h.Major != 0 || h.SegmentSize != 16*mib || h.CheckFile("000000010000000000000001", 16*mib) != nil {
		t.Errorf("got %+v", h)
	}
}

func TestHistoryFollowsTheServersGrammar(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]History{
		"": nil,
		"1\t0/3000158\tno recovery target specified\n":         {{1, 0x3000158, "no recovery target specified"}},
		"1\t0/3000158\tx\n\n2\t1/5000000\tbefore 2026-01-01\n": {{1, 0x3000158, "x"}, {2, 0x105000000, "before 2026-01-01"}},
		"# comment\n \t# another\n\n  3 0/A":                   {{3, 10, ""}},
		"1\t0/0300A158\tat restore point \"a\tb\"\r\n":         {{1, 0x300A158, "at restore point \"a\tb\""}},
		"7\t0/1\n":                  {{7, 1, ""}},
		"4294967295\tFF/ffffffff\n": {{4294967295, 0xFFFFFFFFFF, ""}},
	} {
		got, err := ParseHistory(strings.NewReader(text))
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: got %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"x\n", "1\n", "1\t\n", "1\t0\n", "1\t0/\n", "\t0/1\n", "0\t0/1\n", "-1\t0/1\n", "4294967296\t0/1\n",
		"1\t0/123456789\n", "2\t0/1\tx\n2\t0/2\tx\n", "2\t0/1\tx\n1\t0/2\tx\n", "1\t0/1reason\n",
		"1\t0/1\t" + strings.Repeat("x", 2000) + "\n",
		strings.Repeat("# long\n", 200_000),
		"\x00\x00\x00\n",
	} {
		if got, err := ParseHistory(strings.NewReader(text)); err == nil || len(err.Error()) > 300 {
			t.Errorf("%.40q: got %+v, %v; want a short error", text, got, err)
		}
	}
	broken := errors.New("broken pipe")
	if _, err := ParseHistory(failingReader{broken}); !errors.Is(err, broken) {
		t.Errorf("got %v, want the reader's error", err)
	}
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

func TestTimelineAtFollowsTheSwitches(t *testing.T) {
	t.Parallel()
	h := History{{Timeline: 1, LSN: 0x3000000}, {Timeline: 3, LSN: 0x5000000}}
	for lsn, want := range map[LSN]Timeline{0: 1, 0x2FFFFFF: 1, 0x3000000: 3, 0x4FFFFFF: 3, 0x5000000: 4, 1 << 40: 4} {
		if got := h.TimelineAt(lsn, 4); got != want {
			t.Errorf("TimelineAt(%v) = %d, want %d", lsn, got, want)
		}
	}
	if got := History(nil).TimelineAt(5, 1); got != 1 {
		t.Errorf("without history: %d", got)
	}
}

func FuzzParseLSN(f *testing.F) {
	for _, s := range []string{"0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "0/", "x/y", "00000001/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLSN(s)
		if err != nil {
			return
		}
		if back, err := ParseLSN(l.String()); err != nil || back != l {
			t.Errorf("%q is %v, and back %v, %v", s, l, back, err)
		}
	})
}

func FuzzName(f *testing.F) {
	for _, s := range []string{"000000010000000000000002", "000000010000000000000002.partial", "00000002.history",
		"000000010000000000000002.00000028.backup", "00000001000000000000000a", ".history"} {
		f.Add(s, uint8(4))
	}
	f.Fuzz(func(t *testing.T, name string, shift uint8) {
		size := int64(mib) << (shift % 11)
		kind := Classify(name)
		tl, ok := NameTimeline(name)
		if ok != (kind != KindOther) {
			t.Errorf("%q: kind %d, timeline %d, %t", name, kind, tl, ok)
		}
		if kind == KindHistory && HistoryName(tl) != name {
			t.Errorf("%q becomes %q", name, HistoryName(tl))
		}
		if s, err := ParseSegment(name, size); err == nil && (kind != KindSegment || s.Name(size) != name || s.Timeline != tl) {
			t.Errorf("%q is kind %d and becomes %q", name, kind, s.Name(size))
		}
	})
}

func FuzzParseHeader(f *testing.F) {
	for major := 13; major <= 18; major++ {
		f.Add(realHeader(f, major), "000000010000000000000001", int64(16*mib))
	}
	f.Add(make([]byte, HeaderSize), "", int64(0))
	f.Fuzz(func(t *testing.T, b []byte, name string, size int64) {
		h, err := ParseHeader(b)
		if err != nil && !errors.Is(err, ErrUnknownMagic) {
			if !errors.Is(err, ErrNotWAL) || h != (Header{}) {
				t.Errorf("got %+v, %v", h, err)
			}
			return
		}
		if h.CheckFile(name, size) == nil && size != h.SegmentSize {
			t.Errorf("%q of %d bytes passes with %+v", name, size, h)
		}
		own := SegmentAt(h.Timeline, h.PageAddr, h.SegmentSize).Name(h.SegmentSize)
		if err := h.CheckFile(own, h.SegmentSize); err != nil {
			t.Errorf("%+v: %v", h, err)
		}
	})
}

func FuzzParseHistory(f *testing.F) {
	f.Add([]byte("1\t0/3000158\tno recovery target specified\n\n2\t0/5000000\tx\n"))
	f.Add([]byte("# c\n\n 1 0/1"))
	f.Add([]byte("1\t0/1\t\xff\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHistory(strings.NewReader(string(b)))
		if err != nil {
			return
		}
		var text strings.Builder
		for i, s := range h {
			if i > 0 && s.Timeline <= h[i-1].Timeline {
				t.Fatalf("timelines do not ascend: %+v", h)
			}
			fmt.Fprintf(&text, "%d\t%s\t%s\n", s.Timeline, s.LSN, s.Reason)
		}
		if back, err := ParseHistory(strings.NewReader(text.String())); err != nil || !slices.Equal(back, h) {
			t.Errorf("%+v becomes %+v, %v", h, back, err)
		}
	})
}
