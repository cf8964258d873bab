package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// ErrEnds is the cause when the log ends inside of a segment without a record that closes it: as in the segment that a
// server was writing, behind whose last record there are zeros or what the file held in its former use.
var ErrEnds = errors.New("the log ends inside of the segment")

// ErrBrokenLog is the cause when a page or a record inside of a segment is not what a server has written there.
var ErrBrokenLog = errors.New("the log is broken inside of the segment")

// Flags of a page, xlog_internal.h. The last one exists since PostgreSQL 13.5 and 14.1.
const xlpFirstIsOverwriteContrecord = 0x0008

const (
	shortHeaderSize  = 24 // XLogPageHeaderData, of every page but a segment's first
	recordHeaderSize = 24 // XLogRecord, xlogrecord.h
	recordCRCOffset  = 20 // of its last field, which its own checksum does not cover

	recordAlignment = 8 // MAXALIGN

	rmXLog         = 0    // RM_XLOG_ID
	xlogSwitch     = 0x40 // XLOG_SWITCH
	resourceBits   = 0xF0 // of xl_info, those that belong to the resource manager
	longestRecord  = 1020 << 20
	recordPrevious = 8  // offset of xl_prev
	recordInfo     = 16 // offset of xl_info
)

// CheckRecords reads the segment whose header h is from its first byte and does what recovery will do with it
// (xlogreader.c): it follows the records from page to page and verifies each page's header and each record's link and
// checksum. Recovery takes the first thing that is wrong for the end of the log, which is why it must be known before.
//
// It returns nil if the log goes on behind the segment: the records fill it, or one closes it, as pg_switch_wal() does; what
// follows that one is of no meaning. The error unwraps to [ErrEnds] if the log just ends, and to [ErrBrokenLog] if it
// cannot be read on although more of it follows, or what is there is not a record. The parts of records that began in the segment
// before and of those that end in the next one go unverified, as their checksum covers the whole.
//
// h must be of a known version; pages and records have kept their shape from PostgreSQL 13 to 18.
func (h Header) CheckRecords(r io.Reader) error {
	w := newRecordWalk(h)
	err := w.readSegment(r)
	var ended *endError
	if errors.As(err, &ended) {
		return fmt.Errorf("%w at %w", ErrEnds, err)
	}
	return err
}

func newRecordWalk(h Header) *recordWalk {
	return &recordWalk{header: h, timeline: 1, fresh: true, crcTable: crc32.MakeTable(crc32.Castagnoli)}
}

// readSegment reads the segment that w.header is of, up to its end or to the record that closes it. The error is an [*endError] if the
// log just ends, and unwraps to [ErrBrokenLog] if it cannot be followed.
func (w *recordWalk) readSegment(r io.Reader) error {
	h := w.header
	if int64(len(w.buffer)) != h.PageSize {
		w.buffer = make([]byte, h.PageSize)
	}
	page := w.buffer
	w.closed = false
	var ended *endError
	for at := int64(0); at < h.SegmentSize; at += h.PageSize {
		if _, err := io.ReadFull(r, page); err != nil {
			return fmt.Errorf("cannot read WAL at %s: %w", h.PageAddr+LSN(at), err)
		}
		w.page = h.PageAddr + LSN(at)
		if ended != nil {
			if w.written(page) {
				return fmt.Errorf("%w: nothing at %s, and it goes on at %s", ErrBrokenLog, ended.lsn, w.page)
			}
			continue
		}
		switch err := w.readPage(page); {
		case errors.Is(err, errEndHere):
			ended = &endError{w.at}
		case errors.As(err, new(*refusedError)):
			return err
		case err != nil:
			return fmt.Errorf("%w at %s: %w", ErrBrokenLog, w.at, err)
		case w.closed:
			return nil
		}
	}
	if ended != nil {
		return ended
	}
	return nil
}

// errEndHere stops a walk where nothing was written.
var errEndHere = errors.New("nothing was written here")

// endError is the position at which nothing was written.
type endError struct{ lsn LSN }

func (e *endError) Error() string { return e.lsn.String() }

// EndOfLog tells where the log ends of which an error says that it just ends ([ErrEnds]).
func EndOfLog(err error) (LSN, bool) {
	var end *endError
	if errors.Is(err, ErrEnds) && errors.As(err, &end) {
		return end.lsn, true
	}
	return 0, false
}

// refusedError is what the one who is told of the records found wrong, not of the log's making.
type refusedError struct{ error }

func (e *refusedError) Unwrap() error { return e.error }

// recordWalk follows the records of a segment, and of those that follow it. Its fields are what is known between two pages.
type recordWalk struct {
	header   Header
	crcTable *crc32.Table
	told     *RecordReader // of each record; nil if they are only to be checked
	buffer   []byte        // for a page

	page     LSN      // start of the page
	at       LSN      // start of the page or record that is being read, for messages
	timeline Timeline // of the page before

	fresh    bool  // nothing is known of what comes before the page
	left     int64 // bytes of the current record that are still to come
	foreign  bool  // it began in the segment before
	start    LSN   // of the current record; 0 if it is not known
	previous LSN   // start of the last complete record; 0 if it lies in a segment before
	head     [recordHeaderSize]byte
	headLen  int
	crc      uint32
	closed   bool // a record has closed the segment
}

// written tells whether the page bears the header of its place in the log.
func (w *recordWalk) written(page []byte) bool {
	le := binary.LittleEndian
	return le.Uint16(page) == w.header.Magic && LSN(le.Uint64(page[8:])) == w.page
}

func (w *recordWalk) readPage(page []byte) error {
	w.at = w.page
	pos, err := w.readPageHeader(page)
	if err != nil {
		return err
	}
	if w.left > 0 {
		if pos, err = w.take(page, pos); err != nil {
			return err
		}
	}
	for pos < len(page) && !w.closed {
		w.at = w.page + LSN(pos)
		total := int64(binary.LittleEndian.Uint32(page[pos:]))
		if total == 0 {
			if !allZero(page[pos:]) {
				return errors.New("a record of length 0 with something behind it")
			}
			return errEndHere
		}
		if total < recordHeaderSize || total > longestRecord {
			return fmt.Errorf("a record of %d bytes", total)
		}
		w.begin(w.at, total)
		if w.told != nil {
			w.told.begin(pos, len(page))
		}
		if pos, err = w.take(page, pos); err != nil {
			return err
		}
	}
	return nil
}

// readPageHeader checks it (XLogReaderValidatePageHeader) and returns where the page's content begins.
func (w *recordWalk) readPageHeader(page []byte) (int, error) {
	le := binary.LittleEndian
	magic, info, timeline := le.Uint16(page), le.Uint16(page[2:]), Timeline(le.Uint32(page[4:]))
	addr, rest := LSN(le.Uint64(page[8:])), int64(le.Uint32(page[16:]))
	first := w.page == w.header.PageAddr
	switch {
	case allZero(page[:shortHeaderSize]):
		if !allZero(page) {
			return 0, errors.New("a page without a header")
		}
		return 0, errEndHere
	case magic == w.header.Magic && addr < w.page: // from the file's former use
		return 0, errEndHere
	case magic != w.header.Magic:
		return 0, fmt.Errorf("a page with magic number %04X", magic)
	case addr != w.page:
		return 0, fmt.Errorf("a page with the address %s", addr)
	case info&^xlpAllFlags != 0, first != (info&xlpLongHeader != 0):
		return 0, fmt.Errorf("a page with flags %04X", info)
	case timeline < w.timeline:
		return 0, fmt.Errorf("a page of timeline %d after one of timeline %d", timeline, w.timeline)
	}
	w.timeline = timeline
	size := shortHeaderSize
	if first {
		size = HeaderSize
	}
	continues := info&xlpFirstIsContRecord != 0
	if continues && rest == 0 {
		return 0, errors.New("a page that continues a record by 0 bytes")
	}
	switch {
	case w.fresh && continues:
		w.left, w.foreign = rest, true
	case !continues && info&xlpFirstIsOverwriteContrecord != 0: // the server crashed while it wrote the record
		w.left = 0
	case continues != (w.left > 0), continues && rest != w.left:
		return 0, fmt.Errorf("a page that continues a record by %d bytes instead of %d", rest, w.left)
	}
	w.fresh = false
	return size, nil
}

// begin expects a record of total bytes.
func (w *recordWalk) begin(start LSN, total int64) {
	w.left, w.foreign, w.start, w.headLen, w.crc = total, false, start, 0, 0
}

// take reads the current record's bytes on the page from pos on, and returns where the next record would begin.
func (w *recordWalk) take(page []byte, pos int) (int, error) {
	n := int(min(w.left, int64(len(page)-pos)))
	next := (pos + n + recordAlignment - 1) &^ (recordAlignment - 1)
	return next, w.takeBytes(page[pos:pos+n], w.page+LSN(next))
}

// takeBytes reads bytes of the current record; if they are its last ones, the next record begins at next.
func (w *recordWalk) takeBytes(b []byte, next LSN) error {
	w.left -= int64(len(b))
	if w.foreign {
		if w.told != nil {
			w.told.takeForeign(b)
		}
		return nil
	}
	m := copy(w.head[w.headLen:], b)
	w.headLen += m
	w.crc = crc32.Update(w.crc, w.crcTable, b[m:])
	if w.told != nil {
		w.told.take(b, m)
	}
	if w.left > 0 {
		return nil
	}
	if err := w.finishRecord(); err != nil || w.told == nil {
		return err
	}
	return w.told.finish(next)
}

// finishRecord checks a record that was read to its end (ValidXLogRecordHeader, ValidXLogRecord).
func (w *recordWalk) finishRecord() error {
	w.at = w.start
	le := binary.LittleEndian
	// The checksum covers the data first and then the header, up to the checksum itself.
	if got, want := crc32.Update(w.crc, w.crcTable, w.head[:recordCRCOffset]), le.Uint32(w.head[recordCRCOffset:]); got != want {
		return errors.New("a record with a wrong checksum")
	}
	previous := LSN(le.Uint64(w.head[recordPrevious:]))
	if w.start != 0 && previous >= w.start || w.previous != 0 && previous != w.previous {
		return fmt.Errorf("a record that follows one at %s", previous)
	}
	w.previous = w.start
	w.closed = w.head[recordInfo+1] == rmXLog && w.head[recordInfo]&resourceBits == xlogSwitch
	return nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
