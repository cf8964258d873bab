package changes

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"testing/iotest"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Beginning and end of an object that WAL-G has written (WAL-G format, "WAL-delta objects").
const ofWALG = `7f060000 7f350000 05400000 00000000  7f060000 7f350000 05400000 00000000  00000000 00000000 00000000 00000000  00000000`

// What walden writes: its mark, a database that was replaced, a relation that was cut to 7 blocks and has two others written, and five bytes
// of a record.
const ofWalden = `00000000 00000000 574c444e 01000000  7f060000 2a000000 00000000 00000000
	7f060000 7f350000 05400000 ffffffff  7f060000 7f350000 05400000 07000000
	7f060000 7f350000 05400000 03000000  7f060000 7f350000 05400000 09000000
	00000000 00000000 00000000 00000000  05000000 0102030405`

func TestRecordedChangesAreReadAndWritten(t *testing.T) {
	t.Parallel()
	table := Relation{1663, 13695, 16389}
	theirs, err := ReadRecorded(iotest.OneByteReader(bytes.NewReader(unhex(t, ofWALG))))
	if err != nil || theirs.Complete || len(theirs.Unfinished) > 0 {
		t.Fatalf("%+v, %v", theirs, err)
	}
	if blocks, whole := theirs.Changes.InFile(table, 0, 1000, 10); whole || blocks.Len() != 1 || !blocks.Has(0) {
		t.Errorf("%d blocks, all: %t", blocks.Len(), whole)
	}

	var ours Recorded
	ours.Changes.Replace(1663, 42)
	ours.Changes.Mark(table, 9)
	ours.Changes.Mark(table, 3)
	ours.Changes.Cut(table, 7)
	ours.Unfinished = []byte{1, 2, 3, 4, 5}
	var out bytes.Buffer
	n, err := ours.WriteTo(&out)
	if want := unhex(t, ofWalden); err != nil || n != int64(len(want)) || !bytes.Equal(out.Bytes(), want) {
		t.Fatalf("%v, %d bytes: %x", err, n, out.Bytes())
	}
	back, err := ReadRecorded(iotest.OneByteReader(&out))
	if err != nil || !back.Complete || !bytes.Equal(back.Unfinished, ours.Unfinished) {
		t.Fatalf("%+v, %v", back, err)
	}
	if blocks, whole := back.Changes.InFile(table, 0, 1000, 9); whole || blocks.Len() != 3 || !blocks.Has(8) {
		t.Errorf("%d blocks, all: %t", blocks.Len(), whole)
	}
	if _, whole := back.Changes.InFile(Relation{1663, 42, 1}, 0, 1000, 9); !whole {
		t.Error("the database was not replaced")
	}
}

func TestDamagedRecordsOfChangesAreRefused(t *testing.T) {
	t.Parallel()
	good := unhex(t, ofWalden)
	edit := func(at int, text string) []byte {
		b := bytes.Clone(good)
		copy(b[at:], text)
		return b
	}
	for what, b := range map[string][]byte{
		"nothing":                        {},
		"cut in a location":              good[:17],
		"cut between locations":          good[:32],
		"cut in the length":              good[:len(good)-7],
		"cut at the end":                 good[:len(good)-1],
		"something behind it":            append(bytes.Clone(good), 0),
		"another form":                   edit(12, "\x02"),
		"a mark that comes late":         append(unhex(t, ofWALG)[:32], good...),
		"a block of a database":          edit(28, "\x01"),
		"a cut of another relation":      edit(48, "\x01"),
		"a cut to no length":             edit(60, "\xff\xff\xff\xff"),
		"a long unfinished record":       edit(112, "\xff\xff\xff\x7f"),
		"an unfinished record in pieces": append(good[:112:112], 9, 0, 0, 0, 1),
	} {
		if _, err := ReadRecorded(bytes.NewReader(b)); !errors.Is(err, ErrDamagedRecord) {
			t.Errorf("%s: %v", what, err)
		}
	}
	huge := bytes.Clone(good[:16])
	for relation := range 3 {
		huge = append(huge, 1, 0, 0, 0, 1, 0, 0, 0, byte(relation+1), 0, 0, 0, 0, 0, 0, 0xF0)
	}
	if _, err := ReadRecorded(bytes.NewReader(append(huge, make([]byte, 20)...))); !errors.Is(err, ErrDamagedRecord) {
		t.Errorf("relations of 90 TiB: %v", err)
	}
	broken := errors.New("broken connection")
	if _, err := ReadRecorded(iotest.ErrReader(broken)); !errors.Is(err, broken) || errors.Is(err, ErrDamagedRecord) {
		t.Errorf("a broken connection: %v", err)
	}
}

// FuzzReadRecorded reads any bytes: what is accepted as walden's is the same when it was written and read again.
func FuzzReadRecorded(f *testing.F) {
	f.Add(unhex(f, ofWALG))
	f.Add(unhex(f, ofWalden))
	f.Fuzz(func(t *testing.T, b []byte) {
		first, err := ReadRecorded(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrDamagedRecord) {
				t.Error(err)
			}
			return
		}
		if !first.Complete {
			return
		}
		var once, twice bytes.Buffer
		_, err = first.WriteTo(&once)
		if err != nil {
			t.Fatal(err)
		}
		second, err := ReadRecorded(bytes.NewReader(once.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := second.WriteTo(&twice); err != nil || !bytes.Equal(once.Bytes(), twice.Bytes()) {
			t.Errorf("%x became %x, %v", once.Bytes(), twice.Bytes(), err)
		}
	})
}
