package changes

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// Piece is what one segment tells by itself. Pieces of consecutive segments can be made in any order and be joined later.
type Piece struct {
	Header wal.Header

	rest     []byte   // of the record that began in the segment before
	recorded Recorded // of the records that lie in the segment, and the beginning of one that does not end in it
}

// ReadPiece reads a segment. What it is, Folder.Segment says; the error also unwraps to [wal.ErrLongRecord].
func ReadPiece(r io.Reader) (*Piece, error) {
	p := &Piece{}
	f := NewFolder(&p.recorded.Changes)
	if err := f.Segment(r); err != nil {
		return nil, err
	}
	p.Header = f.records.Header()
	rest, err := f.records.Head()
	if err != nil {
		return nil, fmt.Errorf("cannot keep what the segment at %s begins with: %w", p.Header.PageAddr, err)
	}
	beginning, err := f.records.Tail()
	if err != nil {
		return nil, fmt.Errorf("cannot keep what the segment at %s ends with: %w", p.Header.PageAddr, err)
	}
	p.rest, p.recorded.Unfinished = bytes.Clone(rest), bytes.Clone(beginning)
	return p, nil
}

// Joined returns what the records changed that end in the segments of pieces, which must be consecutive and follow on that of before.
func Joined(before *Piece, pieces []*Piece) (*Recorded, error) {
	joined := &Recorded{Complete: true, Unfinished: before.recorded.Unfinished}
	for _, p := range pieces {
		h, was := p.Header, before.Header
		if h.PageAddr != was.PageAddr+wal.LSN(was.SegmentSize) || h.SystemIdentifier != was.SystemIdentifier || h.Magic != was.Magic || h.Timeline < was.Timeline {
			return nil, fmt.Errorf("cannot join the segment at %s to that at %s", h.PageAddr, was.PageAddr)
		}
		before = p
		joined.Changes.Add(&p.recorded.Changes)
		beginning := joined.Unfinished
		joined.Unfinished = p.recorded.Unfinished
		if !h.ContinuesRecord() && (len(beginning) == 0 || h.DropsRecord()) {
			continue
		}
		f := NewFolder(&joined.Changes)
		if err := f.records.Joined(h, beginning, p.rest); err != nil {
			return nil, err
		}
	}
	joined.Changes.From, joined.Changes.To = pieces[0].Header.PageAddr, before.Header.PageAddr+wal.LSN(before.Header.SegmentSize)
	return joined, nil
}

// A piece is written as
//
//	8 bytes    pieceForm
//	40 bytes   the segment's header
//	4 bytes    n
//	n bytes    the rest of a record that the segment begins with
//	           what the segment's own records changed and the beginning of one, as in a WAL-delta object
//	4 bytes    checksum of all of that, CRC-32C
const pieceForm = "walden 1"

// Bytes is the piece in the form that [ParsePiece] reads, given the beginning of its segment.
func (p *Piece) Bytes(header []byte) []byte {
	var b bytes.Buffer
	b.WriteString(pieceForm)
	b.Write(header[:wal.HeaderSize])
	b.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(p.rest))))
	b.Write(p.rest)
	_, _ = p.recorded.WriteTo(&b) // memory takes everything
	return binary.LittleEndian.AppendUint32(b.Bytes(), crc32.Checksum(b.Bytes(), crc32.MakeTable(crc32.Castagnoli)))
}

// ParsePiece reads what [Piece.Bytes] has made. Everything that is not whole is [ErrDamagedRecord].
func ParsePiece(b []byte) (*Piece, error) {
	const restAt, least = len(pieceForm) + wal.HeaderSize, len(pieceForm) + wal.HeaderSize + 8
	if len(b) < least || string(b[:len(pieceForm)]) != pieceForm {
		return nil, damagedRecord("not of a segment")
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)) != sum {
		return nil, damagedRecord("its checksum is wrong")
	}
	h, err := wal.ParseHeader(b[len(pieceForm):])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamagedRecord, err)
	}
	n := int64(binary.LittleEndian.Uint32(b[restAt:]))
	if n > int64(len(body)-restAt-4) {
		return nil, damagedRecord("it ends too early")
	}
	recorded, err := ReadRecorded(bytes.NewReader(body[restAt+4+int(n):]))
	if err != nil {
		return nil, err
	}
	return &Piece{Header: h, rest: bytes.Clone(body[restAt+4 : restAt+4+int(n)]), recorded: *recorded}, nil
}
