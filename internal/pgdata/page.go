package pgdata

import (
	"encoding/binary"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// PageSize is the size in bytes of the pages that [Checksum] and [PageVerifier] work on: PostgreSQL's default BLCKSZ.
// A cluster built with another size says so in Control.BlockSize.
const PageSize = 8192

// Offsets in the page header (PageHeaderData, bufpage.h).
const (
	offsetChecksum = 8
	offsetUpper    = 14
)

// PageLSN returns the end of the log record that changed the page last.
func PageLSN(page []byte) wal.LSN {
	le := binary.LittleEndian
	return wal.LSN(le.Uint32(page))<<32 | wal.LSN(le.Uint32(page[4:])) // upper half first, whatever the byte order
}

// PageIsNew tells whether the page has not been initialised (pd_upper is 0): it has no checksum.
func PageIsNew(page []byte) bool {
	return binary.LittleEndian.Uint16(page[offsetUpper:]) == 0
}

// PageChecksum returns the checksum that the page carries.
func PageChecksum(page []byte) uint16 {
	return binary.LittleEndian.Uint16(page[offsetChecksum:])
}

const (
	fnvPrime = 16777619
	lanes    = 32        // N_SUMS: columns of 32-bit words that are summed independently
	rowBytes = lanes * 4 // a page is a matrix of 64 rows

	passLanes = 4 // columns taken in one pass over the page
	passBytes = passLanes * 4
)

// laneOffsets are the initial values of the columns (checksumBaseOffsets, checksum_impl.h).
var laneOffsets = [lanes]uint32{
	0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
	0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
	0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
	0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
}

// Checksum computes the checksum of a page of [PageSize] bytes (pg_checksum_page, checksum_impl.h). block is the
// page's number in the whole fork of the relation, over all its segment files. The checksum that the page carries
// does not enter; the page is not changed.
//
// The algorithm was made for vector registers. Without them, the page is passed over several times with few columns
// each, so that the sums stay in registers; with four at a time it measured fastest, with eight some sums spill.
func Checksum(page []byte, block uint32) uint16 {
	p := (*[PageSize]byte)(page)
	var sum uint32
	for lane := 0; lane < lanes; lane += passLanes {
		sum ^= sumLanes(p, lane)
	}
	sum ^= block
	return uint16(sum%65535 + 1)
}

// sumLanes sums four neighbouring columns of the page, beginning with number lane, and folds them into one word.
func sumLanes(p *[PageSize]byte, lane int) uint32 {
	offsets := (*[passLanes]uint32)(laneOffsets[lane:])
	s0, s1, s2, s3 := offsets[0], offsets[1], offsets[2], offsets[3]

	le := binary.LittleEndian
	if lane == 0 {
		s2 ^= uint32(le.Uint16(p[offsetChecksum:])) // meets itself in word 2 of the first row, which so counts as zero
	}
	for i := lane * 4; i < PageSize; i += rowBytes {
		w := (*[passBytes]byte)(p[i&(PageSize-passBytes):]) // the mask changes nothing but spares the bounds check
		s0 ^= le.Uint32(w[0:])
		s0 = s0*fnvPrime ^ s0>>17
		s1 ^= le.Uint32(w[4:])
		s1 = s1*fnvPrime ^ s1>>17
		s2 ^= le.Uint32(w[8:])
		s2 = s2*fnvPrime ^ s2>>17
		s3 ^= le.Uint32(w[12:])
		s3 = s3*fnvPrime ^ s3>>17
	}
	for range 2 { // two rows of zeros mix the last one
		s0 = s0*fnvPrime ^ s0>>17
		s1 = s1*fnvPrime ^ s1>>17
		s2 = s2*fnvPrime ^ s2>>17
		s3 = s3*fnvPrime ^ s3>>17
	}
	return s0 ^ s1 ^ s2 ^ s3
}
