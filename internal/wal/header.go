package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// HeaderSize is the length in bytes of a segment file's header, and all that [ParseHeader] needs of the file.
const HeaderSize = 40

var (
	// ErrNotWAL is the cause when bytes are not the beginning of a WAL segment.
	ErrNotWAL = errors.New("not the beginning of a WAL segment")

	// ErrUnknownMagic is the cause when bytes look like the beginning of a WAL segment in every respect, but its
	// magic number belongs to no PostgreSQL major version that this package knows. [ParseHeader] returns the header
	// together with this error; a caller for whom the version does not matter may use it.
	ErrUnknownMagic = errors.New("WAL of an unknown PostgreSQL version")
)

// Header is the long header of a segment's first page, XLogLongPageHeaderData in PostgreSQL's xlog_internal.h.
type Header struct {
	Magic            uint16   // XLOG_PAGE_MAGIC
	Major            int      // PostgreSQL major version that writes this magic, 0 if unknown
	Info             uint16   // XLP_ flags
	Timeline         Timeline // of the first record on the page
	PageAddr         LSN      // of the page, that is of the segment
	SystemIdentifier uint64
	SegmentSize      int64 // bytes
	PageSize         int64 // bytes, XLOG_BLCKSZ
}

const (
	xlpFirstIsContRecord = 0x0001
	xlpLongHeader        = 0x0002
	xlpAllFlags          = 0x000F

	minPageSize = 1 << 10 // XLOG_BLCKSZ may be 1 to 64 kB, configure --with-wal-blocksize
	maxPageSize = 1 << 16
)

// magics are the magic numbers that the releases of a major version write (xlog_internal.h of each branch).
var magics = map[uint16]int{0xD106: 13, 0xD10D: 14, 0xD110: 15, 0xD113: 16, 0xD116: 17, 0xD118: 18, 0xD122: 19}

// ParseHeader decodes the first [HeaderSize] bytes of a segment file; b may be longer. The error unwraps to
// [ErrNotWAL] if they cannot begin a segment of any version, to [ErrUnknownMagic] if only the version is unknown.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, notWAL("%d bytes are too few", len(b))
	}
	b = b[:HeaderSize]
	if [HeaderSize]byte(b) == [HeaderSize]byte{} {
		return Header{}, notWAL("it is all zero")
	}
	le := binary.LittleEndian
	h := Header{
		Magic:            le.Uint16(b[0:]),
		Info:             le.Uint16(b[2:]),
		Timeline:         Timeline(le.Uint32(b[4:])),
		PageAddr:         LSN(le.Uint64(b[8:])),
		SystemIdentifier: le.Uint64(b[24:]),
		SegmentSize:      int64(le.Uint32(b[32:])),
		PageSize:         int64(le.Uint32(b[36:])),
	}
	h.Major = magics[h.Magic]
	switch {
	// The magic has grown from 0xD05x by small steps since PostgreSQL 8; its high byte changed once in that time.
	case h.Magic < 0xD000 || h.Magic > 0xD2FF:
		return Header{}, notWAL("magic number %04X", h.Magic)
	case h.Info&xlpLongHeader == 0:
		return Header{}, notWAL("no long page header, flags %04X", h.Info)
	case h.Major != 0 && h.Info&^xlpAllFlags != 0:
		return Header{}, notWAL("page flags %04X", h.Info)
	case !ValidSegmentSize(h.SegmentSize):
		return Header{}, notWAL("implausible segment size %d", h.SegmentSize)
	case h.PageSize < minPageSize || h.PageSize > maxPageSize || h.PageSize&(h.PageSize-1) != 0:
		return Header{}, notWAL("implausible page size %d", h.PageSize)
	case uint64(h.PageAddr)%uint64(h.SegmentSize) != 0:
		return Header{}, notWAL("page address %s does not begin a segment of %d bytes", h.PageAddr, h.SegmentSize)
	case h.Timeline == 0:
		return Header{}, notWAL("timeline 0")
	case h.Major == 0:
		return h, fmt.Errorf("cannot read WAL segment header: %w, magic number %04X", ErrUnknownMagic, h.Magic)
	}
	return h, nil
}

// ContinuesRecord tells whether the segment begins with the rest of a record that began in the segment before.
func (h Header) ContinuesRecord() bool {
	return h.Info&xlpFirstIsContRecord != 0
}

// DropsRecord tells whether the record that began in the segment before was given up there: the server crashed while it wrote it.
func (h Header) DropsRecord() bool {
	return h.Info&xlpFirstIsOverwriteContrecord != 0
}

// CheckFile verifies that a file of this name and size (in bytes) can have this header. name is the base name of a
// segment, complete or ".partial": both have the full size. The header's timeline may be lower than the name's,
// because the first segment of a new timeline begins as a copy of the old timeline's.
func (h Header) CheckFile(name string, fileSize int64) error {
	if fileSize != h.SegmentSize {
		return fmt.Errorf("cannot accept WAL file %s: it has %d bytes, its header says %d", shorten(name), fileSize, h.SegmentSize)
	}
	segment, err := ParseSegment(strings.TrimSuffix(name, partialSuffix), h.SegmentSize)
	if err != nil {
		return err
	}
	if at := segment.Start(h.SegmentSize); at != h.PageAddr {
		return fmt.Errorf("cannot accept WAL file %s: its name stands for LSN %s, its header says %s", name, at, h.PageAddr)
	}
	if h.Timeline > segment.Timeline {
		return fmt.Errorf("cannot accept WAL file %s: its header says timeline %d", name, h.Timeline)
	}
	return nil
}

// CheckMajor verifies that a server of this major version reads the segment. What a version writes that this package does not know
// is not for it to judge.
func (h Header) CheckMajor(major int) error {
	for _, known := range magics {
		if known == major && h.Major != major {
			return fmt.Errorf("cannot accept WAL with magic number %04X: PostgreSQL %d does not read it", h.Magic, major)
		}
	}
	return nil
}

func notWAL(format string, args ...any) error {
	return fmt.Errorf("cannot read WAL segment header: %w: %s", ErrNotWAL, fmt.Sprintf(format, args...))
}
