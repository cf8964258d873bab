package changes

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// TestRecordsChangeMoreThanTheirBlocks are records as the headers of the server describe them (xact.h, storage_xlog.h, dbcommands_xlog.h,
// pg_control.h).
func TestRecordsChangeMoreThanTheirBlocks(t *testing.T) {
	t.Parallel()
	const (
		table   = "7f060000 05000000 00400000"
		another = "7f060000 05000000 01400000"
		when    = "0000000000000000"
	)
	cut := func(r uint32, blocks uint32) func(*Map) { return func(m *Map) { m.Cut(Relation{1663, 5, r}, blocks) } }
	both := func(m *Map) { cut(16384, 0)(m); cut(16385, 0)(m) }
	replaced := func(m *Map) { m.Replace(1663, 42) }
	for _, c := range []struct {
		what     string
		from, to int // major versions
		manager  byte
		info     byte
		data     string
		want     func(*Map)
		err      error
	}{
		{"a file is created", 13, 18, 2, 0x11, table + "00000000", cut(16384, 0), nil},
		{"an init fork is created", 13, 18, 2, 0x11, table + "03000000", nil, nil},
		{"a file is cut", 13, 18, 2, 0x21, "07000000" + table + "07000000", cut(16384, 7), nil},
		{"another fork is cut", 13, 18, 2, 0x21, "07000000" + table + "06000000", nil, nil},
		{"something else is done to a file", 13, 18, 2, 0x31, "07000000" + table + "06000000", nil, ErrUnknownRecord},
		{"too little is said of a file", 13, 18, 2, 0x21, "07000000" + table, nil, ErrUnknownRecord},
		{"a commit", 13, 18, 1, 0x00, when, nil, nil},
		{"a commit that drops", 13, 18, 1, 0x81, when + "04000000 02000000" + table + another + "ffff", both, nil},
		{"one with everything else", 13, 18, 1, 0x81, when + "ff010000 05000000 7f060000 01000000 09000000 02000000" + table + another + "ffff", both, nil},
		{"an abort", 13, 18, 1, 0xA1, when + "04000000 01000000" + table, cut(16384, 0), nil},
		{"a prepared commit", 13, 18, 1, 0xB1, when + "14000000 01000000" + table + "07000000", cut(16384, 0), nil},
		{"a prepared abort", 13, 18, 1, 0xC1, when + "14000000 01000000" + table + "07000000", cut(16384, 0), nil},
		{"a commit that drops more than it names", 13, 18, 1, 0x81, when + "04000000 ffffffff" + table, nil, ErrUnknownRecord},
		{"a transaction ends in another way", 13, 18, 1, 0xF1, when + "04000000 01000000" + table, nil, ErrUnknownRecord},
		{"a database is copied", 13, 18, 4, 0x01, "2a000000 7f060000 01000000 7f060000", replaced, nil},
		{"a database is created with its records", 15, 18, 4, 0x11, "2a000000 7f060000", replaced, nil},
		{"a database is dropped", 13, 14, 4, 0x11, "2a000000 01000000 7f060000", replaced, nil},
		{"a database is dropped, since 15", 15, 18, 4, 0x21, "2a000000 01000000 7f060000", replaced, nil},
		{"something else is done to a database", 13, 14, 4, 0x21, "2a000000 01000000 7f060000", nil, ErrUnknownRecord},
		{"something else is done to a database, since 15", 15, 18, 4, 0x31, "2a000000 01000000 7f060000", nil, ErrUnknownRecord},
		{"an extension changes files", 13, 18, 130, 0x01, "", nil, ErrUnknownRecord},
		{"an extension's other records", 13, 18, 130, 0x10, "", nil, nil},
		{"the level becomes minimal", 13, 18, 0, 0x60, strings.Repeat("01000000", 5) + "00000000 0001", nil, ErrNotLogged},
		{"the level becomes another", 13, 18, 0, 0x60, strings.Repeat("01000000", 5) + "01000000 0001", nil, nil},
		{"a checkpoint at minimal", 17, 18, 0, 0x10, strings.Repeat("01000000", 5) + "00000000", nil, ErrNotLogged},
		{"a checkpoint that does not tell the level", 13, 16, 0, 0x10, strings.Repeat("01000000", 5) + "00000000", nil, nil},
		{"the end of recovery at minimal", 17, 18, 0, 0x90, strings.Repeat("01000000", 4) + "00000000", nil, ErrNotLogged},
		{"a redo point at minimal", 17, 18, 0, 0xE0, "00000000", nil, ErrNotLogged},
		{"a redo point", 17, 18, 0, 0xE0, "01000000", nil, nil},
	} {
		for major := c.from; major <= c.to; major++ {
			m := &Map{}
			r := &wal.Record{Manager: c.manager, Info: c.info, Data: unhex(t, c.data)}
			r.Blocks = []wal.BlockReference{{Relation: wal.RelFileLocator{Tablespace: 1, Database: 2, Number: 3}, Block: 4}, {Fork: wal.FSMFork, Block: 5}}
			err := NewFolder(m).take(r, major)
			if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Errorf("PostgreSQL %d, %s: %v", major, c.what, err)
			}
			want := &Map{}
			want.Mark(Relation{1, 2, 3}, 4)
			if c.want != nil {
				c.want(want)
			}
			if got, want := written(t, m), written(t, want); c.err == nil && !bytes.Equal(got, want) {
				t.Errorf("PostgreSQL %d, %s: %x, want %x", major, c.what, got, want)
			}
		}
	}
}

func written(t testing.TB, m *Map) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := (&Recorded{Changes: *m}).WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// aPiece is of a segment that begins in the middle of a record and ends in one.
func aPiece(t testing.TB) []byte {
	t.Helper()
	header := make([]byte, wal.HeaderSize)
	le := binary.LittleEndian
	le.PutUint16(header, 0xD110)
	le.PutUint16(header[2:], 3)
	le.PutUint32(header[4:], 1)
	le.PutUint64(header[8:], 0x3000000)
	le.PutUint64(header[24:], 42)
	le.PutUint32(header[32:], 16<<20)
	le.PutUint32(header[36:], 8192)
	p := &Piece{rest: []byte("rest"), recorded: Recorded{Unfinished: []byte("beginning")}}
	p.recorded.Changes.Cut(Relation{1, 2, 3}, 4)
	p.recorded.Changes.Replace(1, 2)
	p.recorded.Changes.Mark(Relation{1, 2, 3}, 5)
	return p.Bytes(header)
}

func TestADamagedPieceIsRefused(t *testing.T) {
	t.Parallel()
	good := aPiece(t)
	p, err := ParsePiece(good)
	if err != nil || string(p.rest) != "rest" || string(p.recorded.Unfinished) != "beginning" || p.Header.PageAddr != 0x3000000 ||
		!bytes.Equal(p.Bytes(good[len(pieceForm):]), good) {
		t.Fatalf("%+v, %v", p, err)
	}
	for n := range good {
		if _, err := ParsePiece(good[:n]); !errors.Is(err, ErrDamagedRecord) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
		b := bytes.Clone(good)
		b[n] ^= 4
		if _, err := ParsePiece(b); !errors.Is(err, ErrDamagedRecord) {
			t.Fatalf("with byte %d changed: %v", n, err)
		}
	}
}

func FuzzParsePiece(f *testing.F) {
	f.Add(aPiece(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePiece(b)
		if err != nil {
			if !errors.Is(err, ErrDamagedRecord) {
				t.Error(err)
			}
			return
		}
		again, err := ParsePiece(p.Bytes(b[len(pieceForm):]))
		if err != nil || !bytes.Equal(again.rest, p.rest) {
			t.Error(err)
		}
	})
}
