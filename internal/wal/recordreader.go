package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Record is one record of the log (XLogRecord and what follows it in xlogrecord.h). What it holds is valid until the next one is read.
type Record struct {
	Start, End  LSN    // where it begins, 0 if that lies in what [RecordReader.Resume] was given; where the next one would begin
	Length      int64  // bytes
	Transaction uint32 // xl_xid, 0 for none
	Manager     byte   // the resource manager, xl_rmid: RM_HEAP_ID and so on, from 128 on those of extensions
	Info        byte   // xl_info: four bits of the resource manager's, and four of the log's
	Blocks      []BlockReference
	Data        []byte // the main data, at most MaxRecordData bytes of it; nil unless it was asked for
}

// MaxRecordData is how much of a record's main data is kept, in bytes.
const MaxRecordData = 16 << 20

// SpecialUpdate tells whether the record changes files of relations in a way that its block references do not tell
// (XLR_SPECIAL_REL_UPDATE).
func (r *Record) SpecialUpdate() bool { return r.Info&xlrSpecialRelUpdate != 0 }

// RelFileLocator is the physical identity of a relation (relfilelocator.h).
type RelFileLocator struct {
	Tablespace uint32
	Database   uint32
	Number     uint32
}

// Forks of a relation (relpath.h).
const (
	MainFork = iota
	FSMFork
	VisibilityFork
	InitFork
)

// BlockReference is a block that a record changes.
type BlockReference struct {
	ID       byte // by which the record's resource manager knows it
	Fork     byte
	HasImage bool // of the whole page
	HasData  bool
	WillInit bool // redo makes the page anew
	Relation RelFileLocator
	Block    uint32 // from the start of the fork
}

const (
	oldestRecords = 13 // major versions whose records are known
	newestRecords = 18

	xlrSpecialRelUpdate = 0x01

	maxBlockID      = 32
	blockIDTopXID   = 252 // XLR_BLOCK_ID_TOPLEVEL_XID, since PostgreSQL 14
	blockIDOrigin   = 253
	blockIDDataLong = 254
	blockIDData     = 255

	forkMask     = 0x0F
	hasImage     = 0x10 // BKPBLOCK_HAS_IMAGE
	hasData      = 0x20
	willInit     = 0x40
	sameRelation = 0x80

	imageHasHole = 0x01 // BKPIMAGE_HAS_HOLE

	dataPageSize = 8192 // BLCKSZ
	// headersAtMost is more than all headers of a record can take together: of 33 blocks and what else there is.
	headersAtMost = 33*(4+5+2+12+4) + 5 + 3 + 5
)

// imageBits are the flags of a page image (bimg_info): those of all methods of compression, and all that there are.
func imageBits(major int) (compressed, all byte) {
	if major < 15 {
		return 0x02, 0x07 // BKPIMAGE_IS_COMPRESSED; BKPIMAGE_APPLY is 0x04
	}
	return 0x1C, 0x1F // pglz, lz4 and zstd; BKPIMAGE_APPLY is 0x02
}

// RecordReader tells of each record in consecutive segments of the log, in order, and checks them as [Header.CheckRecords] does. It takes
// a page of memory, and what it keeps of one record's main data.
type RecordReader struct {
	visit func(*Record) error
	wants func(manager, info byte) bool
	walk  *recordWalk
	state []byte // given to Resume before the first segment; nil if it was not called

	record  Record
	body    int64  // bytes of the record behind its fixed header
	at      int64  // how many of them were taken
	kept    []byte // the first of them, until the headers are complete
	data    []byte // main data
	dataAt  int64  // where it begins in the body; -1 until the headers are complete
	invalid error  // of its headers

	head, tail fragment
	inTail     bool // the record does not end in the segment
}

// fragment is a part of a record that lies in another segment than the rest.
type fragment struct {
	b       []byte
	tooLong bool
}

// maxFragment is how much of a record is kept for the segments around, in bytes.
const maxFragment = 1 << 20

// ErrLongRecord is the cause when a record goes on in another segment for too long to be kept.
var ErrLongRecord = errors.New("a record is too long to be kept")

func (f *fragment) add(b []byte) {
	if f.tooLong = f.tooLong || len(f.b)+len(b) > maxFragment; f.tooLong {
		f.b = f.b[:0]
		return
	}
	f.b = append(f.b, b...)
}

func (f *fragment) get() ([]byte, error) {
	if f.tooLong {
		return nil, ErrLongRecord
	}
	return f.b, nil
}

// NewRecordReader returns a reader that calls visit for each record that is complete, and whose checksum is right. It keeps the main
// data of those that wants is true for; info is as in [Record]. An error of visit ends the reading.
func NewRecordReader(wants func(manager, info byte) bool, visit func(*Record) error) *RecordReader {
	return &RecordReader{visit: visit, wants: wants, dataAt: -1}
}

// Resume gives the reader the beginning of the record that is not complete at the end of the segment before the first one, as
// [RecordReader.Tail] returns it: with nothing, there is no such record. Without this call it is not known, and not told of.
func (r *RecordReader) Resume(beginning []byte) error {
	if r.walk != nil {
		return errors.New("cannot resume a record in the middle of the log")
	}
	if len(beginning) == 0 {
		r.state = []byte{}
		return nil
	}
	if len(beginning) < recordAlignment || len(beginning) > longestRecord {
		return fmt.Errorf("cannot resume a record with %d bytes of it", len(beginning))
	}
	total := int64(binary.LittleEndian.Uint32(beginning))
	if total < recordHeaderSize || total > longestRecord || total <= int64(len(beginning)) {
		return fmt.Errorf("cannot resume a record of %d bytes with %d bytes of it", total, len(beginning))
	}
	r.state = beginning
	return nil
}

// Segment reads one whole segment, which must follow on the one before. Its timeline may be a later one. The error unwraps to
// [ErrEnds] if the log ends in the segment, to [ErrBrokenLog] if it cannot be followed, to [ErrUnknownMagic] if its version is not known.
func (r *RecordReader) Segment(in io.Reader) error {
	head := make([]byte, HeaderSize)
	if _, err := io.ReadFull(in, head); err != nil {
		return fmt.Errorf("cannot read the header of a WAL segment: %w", err)
	}
	h, err := ParseHeader(head)
	if err != nil {
		return err
	}
	if err := r.enter(h); err != nil {
		return err
	}
	err = r.walk.readSegment(io.MultiReader(bytes.NewReader(head), in))
	switch ended := (*endError)(nil); {
	case errors.As(err, &ended):
		return fmt.Errorf("%w at %w", ErrEnds, err)
	case err != nil:
		return err
	}
	// What an archive has is verified when it is read to its end. Behind a record that closes the segment its pages are of no meaning.
	rest, err := io.Copy(io.Discard, in)
	if err == nil && rest > 0 && !r.walk.closed {
		err = errors.New("it is longer than its header says")
	}
	if err != nil {
		return fmt.Errorf("cannot read WAL segment at %s: %w", h.PageAddr, err)
	}
	return nil
}

// enter makes sure that a segment with this header comes next.
func (r *RecordReader) enter(h Header) error {
	if h.Major < oldestRecords || h.Major > newestRecords {
		return fmt.Errorf("cannot read records of PostgreSQL %d: %w", h.Major, ErrUnknownMagic)
	}
	r.head, r.tail, r.inTail = fragment{b: r.head.b[:0]}, fragment{b: r.tail.b[:0]}, false
	if r.walk == nil {
		r.walk = newRecordWalk(h)
		r.walk.told = r
		if r.state == nil {
			return nil
		}
		r.walk.fresh = false
		if len(r.state) == 0 {
			return nil
		}
		return r.resumeRecord(r.state)
	}
	before := r.walk.header
	switch {
	case h.PageAddr != before.PageAddr+LSN(before.SegmentSize):
		return fmt.Errorf("cannot go on with the segment at %s after that at %s", h.PageAddr, before.PageAddr)
	case h.SystemIdentifier != before.SystemIdentifier, h.SegmentSize != before.SegmentSize, h.PageSize != before.PageSize, h.Magic != before.Magic:
		return fmt.Errorf("cannot go on with the segment at %s: it is of another cluster", h.PageAddr)
	}
	r.walk.header = h
	return nil
}

func (r *RecordReader) resumeRecord(beginning []byte) error {
	r.walk.begin(0, int64(binary.LittleEndian.Uint32(beginning)))
	r.begin(0, 0)
	return r.walk.takeBytes(beginning, 0)
}

// Joined tells of the record whose beginning and whose rest lie in two segments of the version that h is of.
func (r *RecordReader) Joined(h Header, beginning, rest []byte) error {
	if err := r.Resume(beginning); err != nil {
		return err
	}
	if err := r.enter(h); err != nil {
		return err
	}
	r.walk.at = h.PageAddr
	if r.walk.left != int64(len(rest)) {
		return fmt.Errorf("%w at %s: the rest of a record has %d bytes instead of %d", ErrBrokenLog, h.PageAddr, len(rest), r.walk.left)
	}
	if err := r.walk.takeBytes(rest, h.PageAddr); err != nil && !errors.As(err, new(*refusedError)) {
		return fmt.Errorf("%w at %s: %w", ErrBrokenLog, h.PageAddr, err)
	} else if err != nil {
		return err
	}
	return nil
}

// Header returns the header of the last segment.
func (r *RecordReader) Header() Header { return r.walk.header }

// Head returns what the last segment began with of a record that began before the first segment. A record of which it has neither
// beginning nor end is [ErrLongRecord], as is one of more than a MiB.
func (r *RecordReader) Head() ([]byte, error) {
	if r.walk.foreign && r.walk.left > 0 {
		return nil, ErrLongRecord
	}
	return r.head.get()
}

// Tail returns the beginning of the record that is not complete at the end of the last segment, all of it in that segment; nothing if the
// last one is complete. The error is [ErrLongRecord] if that is more than a MiB, or began in a segment before.
func (r *RecordReader) Tail() ([]byte, error) {
	switch {
	case r.walk.left == 0:
		return nil, nil
	case !r.inTail:
		return nil, ErrLongRecord
	}
	return r.tail.get()
}

// begin is told that a record begins at pos of a page.
func (r *RecordReader) begin(pos, pageSize int) {
	total := r.walk.left
	r.body, r.at, r.kept, r.dataAt, r.invalid = total-recordHeaderSize, 0, r.kept[:0], -1, nil
	r.record = Record{Length: total, Blocks: r.record.Blocks[:0]}
	h := r.walk.header
	r.tail = fragment{b: r.tail.b[:0]}
	pagesLeft := int64(h.PageAddr+LSN(h.SegmentSize)-r.walk.page)/int64(max(pageSize, 1)) - 1
	r.inTail = pageSize > 0 && total > int64(pageSize-pos)+pagesLeft*int64(pageSize-shortHeaderSize)
}

func (r *RecordReader) takeForeign(b []byte) { r.head.add(b) }

// take is told of a record's next bytes, of which the first header belong to its fixed header.
func (r *RecordReader) take(b []byte, header int) {
	if r.inTail {
		r.tail.add(b)
	}
	b = b[header:]
	if r.at == 0 && int64(len(b)) == r.body { // in one piece
		r.at = r.body
		r.parse(b)
		if r.dataAt >= 0 && r.wanted() {
			r.record.Data = b[r.dataAt:min(r.dataAt+MaxRecordData, r.body)]
		}
		return
	}
	if r.dataAt < 0 && r.invalid == nil {
		n := min(len(b), int(min(headersAtMost, r.body))-len(r.kept))
		r.kept = append(r.kept, b[:n]...)
		r.at += int64(n)
		b = b[n:]
		if int64(len(r.kept)) < min(headersAtMost, r.body) {
			return
		}
		r.parse(r.kept)
		r.data = r.data[:0]
		if r.invalid == nil && r.wanted() && r.dataAt < int64(len(r.kept)) {
			r.data = append(r.data, r.kept[r.dataAt:]...)
		}
	}
	if r.invalid == nil && r.wanted() {
		from := min(max(0, r.dataAt-r.at), int64(len(b)))
		to := min(int64(len(b)), from+MaxRecordData-int64(len(r.data)))
		r.data = append(r.data, b[from:to]...)
	}
	r.at += int64(len(b))
}

func (r *RecordReader) wanted() bool {
	return r.wants(r.walk.head[recordInfo+1], r.walk.head[recordInfo])
}

// finish is told that the record is complete, and that its checksum is right.
func (r *RecordReader) finish(end LSN) error {
	head := &r.walk.head
	if r.body == 0 { // XLOG_SWITCH
		r.parse(nil)
	}
	if r.invalid != nil {
		return r.invalid
	}
	r.record.Start, r.record.End = r.walk.start, end
	r.record.Transaction = binary.LittleEndian.Uint32(head[4:])
	r.record.Info, r.record.Manager = head[recordInfo], head[recordInfo+1]
	if r.record.Data == nil && r.wanted() {
		r.record.Data = r.data
	}
	if err := r.visit(&r.record); err != nil {
		return &refusedError{fmt.Errorf("cannot use the record at %s: %w", max(r.walk.start, r.walk.header.PageAddr), err)}
	}
	return nil
}

// parse reads the headers of the record's blocks and of its main data, by the rules of DecodeXLogRecord (xlogreader.c).
func (r *RecordReader) parse(b []byte) {
	p := headerParser{b: b, left: r.body, major: r.walk.header.Major, lastID: -1}
	for r.invalid == nil && p.left > p.data {
		var main bool
		if main, r.invalid = p.next(&r.record); main {
			break
		}
	}
	if r.invalid == nil && p.left != p.data {
		r.invalid = fmt.Errorf("a record with headers for %d bytes and %d bytes behind them", p.data, p.left)
	}
	if r.invalid == nil {
		r.dataAt = r.body - p.main
	}
}

// headerParser reads a record's headers.
type headerParser struct {
	b      []byte // from the next header on, as far as it was kept
	left   int64  // bytes of the record from the next header on
	data   int64  // bytes behind all headers that those so far announce
	main   int64  // of these, main data
	major  int
	lastID int
	known  bool // a relation was named
	last   RelFileLocator
}

var errShortHeaders = errors.New("a record that ends in its headers")

// cut takes n bytes.
func (p *headerParser) cut(n int) []byte {
	if len(p.b) < n || p.left < int64(n) {
		return nil
	}
	b := p.b[:n]
	p.b = p.b[n:]
	p.left -= int64(n)
	return b
}

// next reads one header; main says that it was that of the main data, which is the last.
func (p *headerParser) next(record *Record) (main bool, err error) {
	id := p.cut(1)
	if id == nil {
		return false, errShortHeaders
	}
	var b []byte
	switch {
	case id[0] == blockIDData:
		if b = p.cut(1); b != nil {
			p.main = int64(b[0])
		}
		main = true
	case id[0] == blockIDDataLong:
		if b = p.cut(4); b != nil {
			p.main = int64(binary.LittleEndian.Uint32(b))
		}
		main = true
	case id[0] == blockIDOrigin:
		b = p.cut(2)
	case id[0] == blockIDTopXID && p.major >= 14:
		b = p.cut(4)
	case id[0] <= maxBlockID:
		return false, p.block(record, int(id[0]))
	default:
		return false, fmt.Errorf("a record with a block of ID %d", id[0])
	}
	if b == nil {
		return false, errShortHeaders
	}
	p.data += p.main
	return main, nil
}

// block reads the header of a block.
func (p *headerParser) block(record *Record, id int) error {
	if id <= p.lastID {
		return fmt.Errorf("a record with block %d after block %d", id, p.lastID)
	}
	p.lastID = id
	b := p.cut(3)
	if b == nil {
		return errShortHeaders
	}
	flags, length := b[0], int64(binary.LittleEndian.Uint16(b[1:]))
	if (flags&hasData != 0) != (length > 0) {
		return fmt.Errorf("a record whose block %d has flags %02X and %d bytes of data", id, flags, length)
	}
	if flags&forkMask > InitFork {
		return fmt.Errorf("a record with a block of fork %d", flags&forkMask)
	}
	p.data += length
	if flags&hasImage != 0 {
		if err := p.image(id); err != nil {
			return err
		}
	}
	if flags&sameRelation == 0 {
		if b = p.cut(12); b == nil {
			return errShortHeaders
		}
		le := binary.LittleEndian
		p.last, p.known = RelFileLocator{le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:])}, true
	} else if !p.known {
		return fmt.Errorf("a record whose block %d is of the same relation as no other", id)
	}
	if b = p.cut(4); b == nil {
		return errShortHeaders
	}
	record.Blocks = append(record.Blocks, BlockReference{
		ID: byte(id), Fork: flags & forkMask, HasImage: flags&hasImage != 0, HasData: flags&hasData != 0, WillInit: flags&willInit != 0,
		Relation: p.last, Block: binary.LittleEndian.Uint32(b),
	})
	return nil
}

// image reads the header of a page image.
func (p *headerParser) image(id int) error {
	b := p.cut(5)
	if b == nil {
		return errShortHeaders
	}
	le := binary.LittleEndian
	length, offset, info := int64(le.Uint16(b)), int64(le.Uint16(b[2:])), b[4]
	bits, all := imageBits(p.major)
	compressed, hole := info&bits != 0, info&imageHasHole != 0
	missing := int64(0) // bytes in the hole
	switch {
	case compressed && hole:
		if b = p.cut(2); b == nil {
			return errShortHeaders
		}
		missing = int64(le.Uint16(b))
	case !compressed:
		missing = dataPageSize - length
	}
	if info&^all != 0 || length > dataPageSize || hole != (missing > 0) || hole != (offset > 0) || offset+missing > dataPageSize ||
		compressed && length == dataPageSize {
		return fmt.Errorf("a record whose block %d has an image of %d bytes with flags %02X and a hole of %d bytes at %d",
			id, length, info, missing, offset)
	}
	p.data += length
	return nil
}
