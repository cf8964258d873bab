package increment

import (
	"iter"
	"math/bits"
)

// chunkBlocks is how many blocks a chunk of a set has: those of 4 MiB. Most relations of a cluster are smaller.
const chunkBlocks = 512

// Blocks is a set of block numbers. It takes at most 18 KiB for each GiB of a file, and about 100 bytes for a small one. The zero value
// is empty.
type Blocks struct {
	chunks []*[chunkBlocks / 64]uint64
	n      int
}

// Add adds a block and tells whether it is new.
func (s *Blocks) Add(block uint32) bool {
	c, word, bit := place(block)
	for c >= len(s.chunks) {
		s.chunks = append(s.chunks, nil)
	}
	if s.chunks[c] == nil {
		s.chunks[c] = new([chunkBlocks / 64]uint64)
	}
	if s.chunks[c][word]&bit != 0 {
		return false
	}
	s.chunks[c][word] |= bit
	s.n++
	return true
}

func place(block uint32) (chunk, word int, bit uint64) {
	return int(block / chunkBlocks), int(block % chunkBlocks / 64), 1 << (block % 64)
}

// Has tells whether the block is in the set.
func (s *Blocks) Has(block uint32) bool {
	c, word, bit := place(block)
	return c < len(s.chunks) && s.chunks[c] != nil && s.chunks[c][word]&bit != 0
}

// Len counts the blocks of the set.
func (s *Blocks) Len() int { return s.n }

// All yields the blocks in ascending order.
func (s *Blocks) All() iter.Seq[uint32] { return s.From(0) }

// From yields the blocks that are not before a given one, in ascending order.
func (s *Blocks) From(first uint32) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for block := s.next(int64(first)); block >= 0 && yield(uint32(block)); block = s.next(block + 1) {
		}
	}
}

// next is the first block of the set that is not before a given one, -1 if there is none.
func (s *Blocks) next(from int64) int64 {
	for c := int(from / chunkBlocks); c < len(s.chunks); c++ {
		if s.chunks[c] != nil {
			at := max(from-int64(c)*chunkBlocks, 0)
			mask := ^uint64(0) << (at % 64)
			for w := at / 64; w < chunkBlocks/64; w++ {
				if word := s.chunks[c][w] & mask; word != 0 {
					return int64(c)*chunkBlocks + w*64 + int64(bits.TrailingZeros64(word))
				}
				mask = ^uint64(0)
			}
		}
	}
	return -1
}

// AddAll adds those blocks of another set that lie below a limit.
func (s *Blocks) AddAll(t *Blocks, limit int64) {
	for block := range t.All() {
		if int64(block) >= limit {
			return
		}
		s.Add(block)
	}
}

// Memory is about what the set takes, in bytes.
func (s *Blocks) Memory() int64 {
	n := int64(len(s.chunks)) * 8
	for _, chunk := range s.chunks {
		if chunk != nil {
			n += chunkBlocks / 8
		}
	}
	return n
}
