package wal

import (
	"fmt"
	"iter"
	"math/bits"
)

const (
	minSegmentSize = 1 << 20 // WalSegMinSize, xlog_internal.h
	maxSegmentSize = 1 << 30 // WalSegMaxSize

	// The number of a segment is written as two parts, the upper one counting units of this many bytes of log:
	// what remains of the time when an LSN was a file number and an offset.
	bytesPerUpperPart = 1 << 32
)

// ValidSegmentSize tells whether PostgreSQL can run with segments of n bytes: a power of two from 1 MiB to 1 GiB.
func ValidSegmentSize(n int64) bool {
	return n >= minSegmentSize && n <= maxSegmentSize && n&(n-1) == 0
}

// Segment identifies one file of the log: the Number-th stretch of segment-size bytes, counted from LSN 0, on a
// timeline. What it means in bytes, and its name, depend on the cluster's segment size; all methods that take a size
// expect one for which [ValidSegmentSize] holds.
type Segment struct {
	Timeline Timeline
	Number   uint64
}

// SegmentAt returns the segment that contains the byte at lsn.
func SegmentAt(tl Timeline, lsn LSN, size int64) Segment {
	return Segment{Timeline: tl, Number: uint64(lsn) / uint64(size)}
}

// SegmentBefore returns the segment that contains the last byte before lsn (XLByteToPrevSeg): the one that holds the
// end of a record that ends at lsn, for instance the last segment a backup needs. For LSN 0 that is segment 0.
func SegmentBefore(tl Timeline, lsn LSN, size int64) Segment {
	if lsn > 0 {
		lsn--
	}
	return SegmentAt(tl, lsn, size)
}

// ParseSegment reads a segment's file name: 24 upper-case hexadecimal digits, of which the last 8 count below
// 4 GiB / size. A name of another segment size may still parse; [Header.CheckFile] tells.
func ParseSegment(name string, size int64) (Segment, error) {
	if !ValidSegmentSize(size) {
		return Segment{}, fmt.Errorf("cannot parse WAL segment name %q: %d bytes is no WAL segment size", shorten(name), size)
	}
	if Classify(name) != KindSegment {
		return Segment{}, fmt.Errorf("cannot parse WAL segment name %q: want 24 upper-case hexadecimal digits", shorten(name))
	}
	timeline, _ := parseHex32(name[:8])
	upper, _ := parseHex32(name[8:16])
	lower, _ := parseHex32(name[16:24])
	perUpper := uint64(bytesPerUpperPart / size)
	if uint64(lower) >= perUpper {
		return Segment{}, fmt.Errorf("cannot parse WAL segment name %q: with segments of %d bytes its last part must be below %08X",
			name, size, perUpper)
	}
	return Segment{Timeline: Timeline(timeline), Number: uint64(upper)*perUpper + uint64(lower)}, nil
}

// Name returns the file name of s: "000000010000000000000002".
func (s Segment) Name(size int64) string {
	perUpper := uint64(bytesPerUpperPart / size)
	b := appendHex(make([]byte, 0, segmentNameLen), uint64(s.Timeline))
	b = appendHex(b, s.Number/perUpper)
	return string(appendHex(b, s.Number%perUpper))
}

// appendHex appends what %08X prints. Looks at large archives make a name for each of some hundred thousand segments, for which fmt takes most of their time.
func appendHex(b []byte, n uint64) []byte {
	const digits = "0123456789ABCDEF"
	for width := max(timelineNameLen, (bits.Len64(n)+3)/4); width > 0; width-- {
		b = append(b, digits[n>>(4*(width-1))&0xF])
	}
	return b
}

// Next returns the segment that follows s on its timeline.
func (s Segment) Next() Segment {
	return Segment{Timeline: s.Timeline, Number: s.Number + 1}
}

// Start returns the position of the first byte of s.
func (s Segment) Start(size int64) LSN {
	return LSN(s.Number * uint64(size))
}

// End returns the position after the last byte of s, which is the start of the next one. After the very last segment
// of the 64-bit log it wraps to 0.
func (s Segment) End(size int64) LSN {
	return s.Next().Start(size)
}

// Segments yields the segments from first to last, both included, all on first's timeline: what must be there when
// the log between them is complete. It yields nothing if last lies before first.
func Segments(first, last Segment) iter.Seq[Segment] {
	return func(yield func(Segment) bool) {
		if last.Number < first.Number {
			return
		}
		for s := first; yield(s) && s.Number != last.Number; s = s.Next() {
		}
	}
}
