package pgdata

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

// slowChecksum is the definition in checksum_impl.h, word by word.
func slowChecksum(page []byte, block uint32) uint16 {
	p := slices.Clone(page)
	p[offsetChecksum], p[offsetChecksum+1] = 0, 0
	sums := laneOffsets
	round := func(lane int, value uint32) {
		mixed := sums[lane] ^ value
		sums[lane] = mixed*fnvPrime ^ mixed>>17
	}
	for i := 0; i < PageSize; i += 4 {
		round(i/4%lanes, binary.LittleEndian.Uint32(p[i:]))
	}
	var all uint32
	for lane := range lanes {
		round(lane, 0)
		round(lane, 0)
		all ^= sums[lane]
	}
	return uint16((all^block)%65535 + 1)
}

func randomPage(r *rand.Rand) []byte {
	page := make([]byte, PageSize)
	for i := 0; i < PageSize; i += 8 {
		binary.LittleEndian.PutUint64(page[i:], r.Uint64())
	}
	return page
}

func TestChecksumAgreesWithItsDefinition(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		page, block := randomPage(r), r.Uint32()
		before := slices.Clone(page)
		if got, want := Checksum(page, block), slowChecksum(page, block); got != want {
			t.Fatalf("got %04X, want %04X", got, want)
		}
		if !bytes.Equal(page, before) {
			t.Fatal("the page was changed")
		}
		page[offsetChecksum] ^= 0xFF
		page[offsetChecksum+1] ^= 0xFF
		if got := Checksum(page, block); got != slowChecksum(before, block) {
			t.Fatal("the stored checksum enters the sum")
		}
	}
	// Every other byte counts.
	page := randomPage(r)
	same := 0
	for i := range PageSize {
		before := Checksum(page, 0)
		page[i]++
		if Checksum(page, 0) == before {
			same++
		}
	}
	if same < 2 || same > 6 {
		t.Errorf("%d of the single-byte changes go unnoticed, want the 2 of the checksum and hardly any more", same)
	}
}

func BenchmarkChecksum(b *testing.B) {
	page := randomPage(rand.New(rand.NewPCG(1, 2)))
	b.SetBytes(PageSize)
	for b.Loop() {
		Checksum(page, 7)
	}
}
