package wal_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// magicOf are the magic numbers that major versions write.
var magicOf = map[int]uint16{13: 0xD106, 14: 0xD10D, 15: 0xD110, 16: 0xD113, 17: 0xD116, 18: 0xD118, 19: 0xD122}

// segmentWith lays out a segment of a version that begins with a record of this body, then one that closes it.
func segmentWith(major int, body []byte) []byte { return layOut(magicOf[major], 1, body, nil) }

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tell reads a segment and describes its records but the one that closes it.
func tell(b []byte) (string, error) {
	var told []string
	r := wal.NewRecordReader(func(byte, byte) bool { return true }, func(r *wal.Record) error {
		if r.Manager == 0 {
			return nil
		}
		text := ""
		for _, b := range r.Blocks {
			text += fmt.Sprintf("#%d %d/%d/%d fork %d blk %d", b.ID, b.Relation.Tablespace, b.Relation.Database, b.Relation.Number, b.Fork, b.Block)
			for flag, set := range map[string]bool{" image": b.HasImage, " data": b.HasData, " init": b.WillInit} {
				if set {
					text += flag
				}
			}
			text += "; "
		}
		told = append(told, fmt.Sprintf("%sdata %d %.8x", text, len(r.Data), r.Data))
		return nil
	})
	err := r.Segment(bytes.NewReader(b))
	return strings.Join(told, "\n"), err
}

const (
	relation = "7f060000 05000000 00400000"
	other    = "7f060000 05000000 01400000"
)

// TestBlockReferencesOfEveryVersion are records as they are described in xlogrecord.h and checked in xlogreader.c.
func TestBlockReferencesOfEveryVersion(t *testing.T) {
	t.Parallel()
	image := func(n int) string { return strings.Repeat("ab", n) }
	for _, c := range []struct {
		what     string
		from, to int // major versions that read it so; all others refuse it
		body     string
		want     string
	}{
		{"no block", 13, 18, "ff03 aabbcc", "data 3 aabbcc"},
		{"nothing", 13, 18, "ff00", "data 0 "},
		{"long data", 13, 18, "fe00010000" + image(256), "data 256 abababababababab"},
		{"more data than in a page", 13, 18, "fe00500000" + image(0x5000), "data 20480 abababababababab"},
		{"a block", 13, 18, "00000000" + relation + "07000000 ff02 aabb", "#0 1663/5/16384 fork 0 blk 7; data 2 aabb"},
		{"a block with data, made anew", 13, 18, "00200300" + relation + "07000000 ff01 010203 aa",
			"#0 1663/5/16384 fork 0 blk 7 data; data 1 aa"},
		{"forks of the same relation", 13, 18, "00010000" + relation + "07000000 03820000 08000000 ff00",
			"#0 1663/5/16384 fork 1 blk 7; #3 1663/5/16384 fork 2 blk 8; data 0 "},
		{"blocks of two relations", 13, 18, "00000000" + relation + "07000000 01000000" + other + "08000000",
			"#0 1663/5/16384 fork 0 blk 7; #1 1663/5/16385 fork 0 blk 8; data 0 "},
		{"an origin", 13, 18, "fd0700 ff01 aa", "data 1 aa"},
		{"a top transaction", 14, 18, "fc07000000 ff01 aa", "data 1 aa"},
		{"an image with a hole", 13, 18, "00100000 1000 0800 01" + relation + "07000000 ff01" + image(16) + "cc",
			"#0 1663/5/16384 fork 0 blk 7 image; data 1 cc"},
		{"a whole image", 13, 18, "00100000 0020 0000 00" + relation + "07000000 ff01" + image(8192) + "cc",
			"#0 1663/5/16384 fork 0 blk 7 image; data 1 cc"},
		{"an image that recovery applies, with a hole", 15, 18, "00100000 1000 0800 03" + relation + "07000000 ff01" + image(16) + "cc",
			"#0 1663/5/16384 fork 0 blk 7 image; data 1 cc"},
		{"a compressed image with a hole", 13, 14, "00100000 1000 0800 03 0001" + relation + "07000000 ff01" + image(16) + "cc",
			"#0 1663/5/16384 fork 0 blk 7 image; data 1 cc"},
		{"a compressed image without a hole", 13, 14, "00100000 1000 0000 02" + relation + "07000000 ff01" + image(16) + "cc",
			"#0 1663/5/16384 fork 0 blk 7 image; data 1 cc"},
		{"an image by pglz", 15, 18, "00100000 1000 0800 05 0001" + relation + "07000000 ff01" + image(16) + "cc",
			"#0 1663/5/16384 fork 0 blk 7 image; data 1 cc"},
		{"an image by lz4", 15, 18, "00100000 1000 0800 0b 0001" + relation + "07000000 ff01" + image(16) + "cc",
			"#0 1663/5/16384 fork 0 blk 7 image; data 1 cc"},
		{"an image by zstd without a hole", 15, 18, "00100000 1000 0000 10" + relation + "07000000 ff01" + image(16) + "cc",
			"#0 1663/5/16384 fork 0 blk 7 image; data 1 cc"},

		{"an unknown block", 0, 0, "21000000" + relation + "07000000 ff00", ""},
		{"an unknown fork", 0, 0, "00040000" + relation + "07000000 ff00", ""},
		{"a block twice", 0, 0, "00000000" + relation + "07000000 00800000 08000000 ff00", ""},
		{"the same relation as none", 0, 0, "00800000 07000000 ff00", ""},
		{"data without its flag", 0, 0, "00000100" + relation + "07000000 ff00 aa", ""},
		{"a flag without data", 0, 0, "00200000" + relation + "07000000 ff00", ""},
		{"a small image without a hole", 0, 0, "00100000 1000 0000 00" + relation + "07000000 ff00" + image(16), ""},
		{"a hole in a whole image", 0, 0, "00100000 0020 0800 01" + relation + "07000000 ff00" + image(8192), ""},
		{"an image larger than a page", 0, 0, "00100000 0120 0000 00" + relation + "07000000 ff00" + image(8193), ""},
		{"an image of an unknown method", 0, 0, "00100000 1000 0800 23 0001" + relation + "07000000 ff00" + image(16), ""},
		{"less than announced", 0, 0, "ff03 aabb", ""},
		{"more than announced", 0, 0, "ff01 aabb", ""},
		{"an end in the headers", 0, 0, "00000000" + relation, ""},
	} {
		for major := 13; major <= 18; major++ {
			told, err := tell(segmentWith(major, unhex(t, c.body)))
			switch known := major >= c.from && major <= c.to; {
			case known && (err != nil || told != c.want):
				t.Errorf("PostgreSQL %d, %s: %q, %v, want %q", major, c.what, told, err, c.want)
			case !known && !errors.Is(err, wal.ErrBrokenLog):
				t.Errorf("PostgreSQL %d, %s: %q, %v", major, c.what, told, err)
			}
		}
	}
	if _, err := tell(segmentWith(19, unhex(t, "ff00"))); !errors.Is(err, wal.ErrUnknownMagic) {
		t.Errorf("PostgreSQL 19: %v", err)
	}
}

func TestARecordGoesOnInTheNextSegment(t *testing.T) {
	t.Parallel()
	data := func(n int) []byte { // the body of a record without blocks
		return append(binary.LittleEndian.AppendUint32([]byte{0xFE}, uint32(n)), bytes.Repeat([]byte{7}, n)...)
	}
	const long = 1<<20 - 1000
	both := layOut(0xD110, 2, data(71), data(long), data(71), nil)
	whole, next := both[:1<<20], both[1<<20:]
	total := 24 + 5 + long
	n := int(binary.LittleEndian.Uint32(next[16:]))
	rest := next[40 : 40+n]

	var told []string
	reader := func() *wal.RecordReader {
		told = nil
		return wal.NewRecordReader(func(byte, byte) bool { return true }, func(r *wal.Record) error {
			told = append(told, fmt.Sprintf("%s to %s: %d of %d", r.Start, r.End, len(r.Data), r.Length))
			return nil
		})
	}
	end := wal.LSN(recordsAt + 1<<20 + (40+n+7)&^7)
	want := []string{
		"0/300028 to 0/300090: 71 of 100", fmt.Sprintf("0/300090 to %s: %d of %d", end, long, total),
		fmt.Sprintf("%s to %s: 71 of 100", end, end+104), fmt.Sprintf("%s to %s: 0 of 24", end+104, end+128),
	}
	r := reader()
	if err := errors.Join(r.Segment(bytes.NewReader(whole)), r.Segment(bytes.NewReader(next))); err != nil || !slices.Equal(told, want) {
		t.Errorf("both: %v, %v", told, err)
	}

	r = reader()
	if err := r.Segment(bytes.NewReader(whole)); err != nil {
		t.Fatal(err)
	}
	tail, err := r.Tail()
	if err != nil || len(tail)+len(rest) != total || !bytes.Equal(tail[:8000], whole[144:8144]) {
		t.Fatalf("%d bytes of %d at the end, %v", len(tail), total, err)
	}
	tail = bytes.Clone(tail)
	r = reader()
	if err := errors.Join(r.Resume(tail), r.Segment(bytes.NewReader(next))); err != nil || len(told) != 3 || !strings.HasSuffix(told[0], want[1][8:]) {
		t.Errorf("resumed: %v, %v", told, err)
	}
	r = reader()
	if err := r.Segment(bytes.NewReader(next)); err != nil || !slices.Equal(told, want[2:]) {
		t.Errorf("the second one alone: %v, %v", told, err)
	}
	head, err := r.Head()
	if err != nil || !bytes.Equal(head, rest) {
		t.Errorf("it begins with %d bytes of %d, %v", len(head), len(rest), err)
	}
	h := r.Header()
	r = reader()
	if err := r.Joined(h, tail, rest); err != nil || len(told) != 1 {
		t.Errorf("joined: %v, %v", told, err)
	}
	for what, err := range map[string]error{
		"joined with less":    reader().Joined(h, tail, rest[1:]),
		"joined with another": reader().Joined(h, tail, make([]byte, len(rest))),
		"resumed with less": func() error {
			r := reader()
			return errors.Join(r.Resume(tail[:len(tail)-8]), r.Segment(bytes.NewReader(next)))
		}(),
		"resumed with none": func() error { r := reader(); return errors.Join(r.Resume(nil), r.Segment(bytes.NewReader(next))) }(),
		"resumed with junk": reader().Resume([]byte("junk junk junk")),
		"a gap": func() error {
			r := reader()
			return errors.Join(r.Segment(bytes.NewReader(next)), r.Segment(bytes.NewReader(next)))
		}(),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

// FuzzRecordReader reads records with any bytes in them, whose checksums are right.
func FuzzRecordReader(f *testing.F) {
	for _, body := range []string{
		"ff03 aabbcc", "00000000" + relation + "07000000 ff02 aabb", "00010000" + relation + "07000000 03820000 08000000 ff00",
		"00100000 1000 0800 05 0001" + relation + "07000000 ff01 abababababababababababababababab cc", "fd0700 fc07000000 ff01 aa",
	} {
		for _, major := range []byte{13, 15, 18} {
			f.Add(major, unhex(f, body))
		}
	}
	f.Fuzz(func(t *testing.T, major byte, body []byte) {
		if magicOf[int(major)] == 0 || len(body) == 0 || len(body) > 20000 {
			return
		}
		_, err := tell(segmentWith(int(major), body))
		if err != nil && !errors.Is(err, wal.ErrBrokenLog) && !errors.Is(err, wal.ErrUnknownMagic) {
			t.Error(err)
		}
	})
}

// BenchmarkRecordReader reads a segment full of small records with a block each.
func BenchmarkRecordReader(b *testing.B) {
	bodies := make([][]byte, 1<<20/48)
	for i := range bodies {
		bodies[i] = unhex(b, "00000000"+relation+"07000000 ff02 aabb")
	}
	segment := layOut(0xD110, 1, bodies...)
	b.SetBytes(int64(len(segment)))
	for b.Loop() {
		records := 0
		r := wal.NewRecordReader(func(byte, byte) bool { return false }, func(*wal.Record) error { records++; return nil })
		if err := r.Segment(bytes.NewReader(segment)); err != nil || records < len(bodies)*9/10 {
			b.Fatalf("%d records of %d, %v", records, len(bodies), err)
		}
	}
}
