package wal_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"gitlab.com/walden-pg/walden/internal/wal"
)

const recordsAt = 0x300000 // start of the segments that these tests make, of 1 MiB in pages of 8 KiB

// segmentOf lays out records of these lengths, whose content is of no meaning.
func segmentOf(lengths ...int) []byte {
	var bodies [][]byte
	for _, n := range lengths {
		bodies = append(bodies, bytes.Repeat([]byte{0xAB}, n-24))
	}
	return layOut(0xD110, 1, bodies...)
}

// layOut makes consecutive segments with records of these bodies, as the server does (CopyXLogRecordToWAL). One without a body is
// pg_switch_wal's.
func layOut(magic uint16, segments int, bodies ...[]byte) []byte {
	const segmentSize, pageSize = 1 << 20, 8192
	le := binary.LittleEndian
	table := crc32.MakeTable(crc32.Castagnoli)
	size := segments * segmentSize
	b := make([]byte, size)
	pos, previous := 0, uint64(recordsAt-100)
	header := func(left int) {
		head, info := 24, 0
		if pos%segmentSize == 0 {
			head, info = 40, 2
			le.PutUint64(b[pos+24:], 42)
			le.PutUint32(b[pos+32:], segmentSize)
			le.PutUint32(b[pos+36:], pageSize)
		}
		if left > 0 {
			info |= 1
		}
		le.PutUint16(b[pos:], magic)
		le.PutUint16(b[pos+2:], uint16(info))
		le.PutUint32(b[pos+4:], 1)
		le.PutUint64(b[pos+8:], uint64(recordsAt+pos))
		le.PutUint32(b[pos+16:], uint32(left))
		pos += head
	}
	for _, body := range bodies {
		if pos < size && pos%pageSize == 0 {
			header(0)
		}
		if pos >= size {
			break
		}
		start := uint64(recordsAt + pos)
		record := append(make([]byte, 24, 24+len(body)), body...)
		le.PutUint32(record, uint32(len(record)))
		le.PutUint64(record[8:], previous)
		record[16], record[17] = 0, 10
		if len(body) == 0 {
			record[16], record[17] = 0x40, 0
		}
		le.PutUint32(record[20:], crc32.Update(crc32.Checksum(body, table), table, record[:20]))
		for len(record) > 0 && pos < size {
			if pos%pageSize == 0 {
				header(len(record))
			}
			m := copy(b[pos:min(size, (pos/pageSize+1)*pageSize)], record)
			record = record[m:]
			pos += m
		}
		pos = (pos + 7) &^ 7
		previous = start
	}
	return b
}

func check(t testing.TB, b []byte) error {
	t.Helper()
	h, err := wal.ParseHeader(b)
	if err != nil {
		return err
	}
	return h.CheckRecords(bytes.NewReader(b))
}

func TestRecordsAreFollowedToTheEndOfTheLog(t *testing.T) {
	t.Parallel()
	var filling []int
	for n := 26; n < 4000; n++ {
		filling = append(filling, n)
	}
	edit := func(b []byte, change func(b []byte)) []byte { change(b); return b }
	le := binary.LittleEndian
	for _, c := range []struct {
		what string
		b    []byte
		want error
	}{
		{"full of records", segmentOf(filling...), nil},
		{"one record that is longer", segmentOf(3 << 20), nil},
		{"closed by a switch", segmentOf(100, 20000, 24), nil},
		{"closed, with anything behind it", edit(segmentOf(100, 24), func(b []byte) { copy(b[9000:], "anything") }), nil},
		{"ends in a page", segmentOf(100, 20000), wal.ErrEnds},
		{"ends with a page", segmentOf(8192 - 40), wal.ErrEnds},
		{"ends in a record", edit(segmentOf(filling...), func(b []byte) { clear(b[1<<19:]) }), wal.ErrEnds},
		{"goes on as in its former use", edit(segmentOf(filling...), func(b []byte) {
			for page := 1 << 19; page < len(b); page += 8192 {
				le.PutUint64(b[page+8:], le.Uint64(b[page+8:])-1<<20)
			}
		}), wal.ErrEnds},
		{"holes", edit(segmentOf(filling...), func(b []byte) { clear(b[1<<19 : 1<<19+8192]) }), wal.ErrBrokenLog},
		{"a hole in a page", edit(segmentOf(100, 100, 100, 100), func(b []byte) { clear(b[144:248]) }), wal.ErrBrokenLog},
		{"a flipped bit", edit(segmentOf(filling...), func(b []byte) { b[1<<19+4000] ^= 1 }), wal.ErrBrokenLog},
		{"a link to another record", edit(segmentOf(100, 100), func(b []byte) {
			b[144+8] ^= 8
			table := crc32.MakeTable(crc32.Castagnoli)
			le.PutUint32(b[144+20:], crc32.Update(crc32.Checksum(b[144+24:144+100], table), table, b[144:144+20]))
		}), wal.ErrBrokenLog},
		{"a length of nothing", edit(segmentOf(100, 100), func(b []byte) { le.PutUint32(b[144:], 3) }), wal.ErrBrokenLog},
		{"a length beyond all", edit(segmentOf(100, 100), func(b []byte) { le.PutUint32(b[144:], 1<<31) }), wal.ErrBrokenLog},
		{"a magic number", edit(segmentOf(filling...), func(b []byte) { b[1<<19]++ }), wal.ErrBrokenLog},
		{"flags", edit(segmentOf(filling...), func(b []byte) { b[1<<19+2] |= 2 }), wal.ErrBrokenLog},
		{"an older timeline", edit(segmentOf(filling...), func(b []byte) { b[1<<19+4] = 0 }), wal.ErrBrokenLog},
		{"a record that was cut by a crash", edit(segmentOf(filling...), func(b []byte) {
			copy(b[1<<19+24:], make([]byte, len(b)-1<<19-24))
			le.PutUint16(b[1<<19+2:], 8)
			le.PutUint32(b[1<<19+16:], 0)
		}), wal.ErrEnds}, // on the page that begins anew, no record was written yet
	} {
		if err := check(t, c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
	}
}

func FuzzCheckRecords(f *testing.F) {
	f.Add(8192, []byte{1}, 100)
	f.Add(144, []byte{0xFF, 0xFF, 0xFF, 0x7F}, 20000)
	f.Fuzz(func(t *testing.T, at int, junk []byte, n int) {
		b := segmentOf(100, max(25, n&0xFFFF), 100, 300000, 100)
		if at >= wal.HeaderSize && at < len(b) {
			copy(b[at:], junk)
		}
		if err := check(t, b); err != nil && !errors.Is(err, wal.ErrEnds) && !errors.Is(err, wal.ErrBrokenLog) {
			t.Error(err)
		}
	})
}
