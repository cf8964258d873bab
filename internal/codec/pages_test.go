package codec

import (
	"encoding/binary"
	"math/rand/v2"
)

// heapPages makes n heap pages of 8 KiB as pgbench leaves them in pgbench_accounts: page header, line pointers from
// the front, tuples from the back, each with its tuple header, three integers and a blank-padded filler. With text set,
// the filler holds words instead, which compresses about as a table of names and addresses does.
func heapPages(n int, text bool) []byte {
	const pageSize, header, tuple = 8192, 24, 128
	rnd := rand.New(rand.NewPCG(1, 2))
	pages := make([]byte, n*pageSize)
	row := uint32(0)
	for p := range n {
		page := pages[p*pageSize : (p+1)*pageSize]
		binary.LittleEndian.PutUint64(page, 0x0000_0001_4000_0000+uint64(p)*8136)
		binary.LittleEndian.PutUint16(page[8:], uint16(rnd.Uint32())) // pd_checksum
		lower, upper := header, pageSize
		for upper-tuple >= lower+4 && lower < header+4*60 {
			upper -= tuple
			row++
			binary.LittleEndian.PutUint32(page[lower:], uint32(upper)|1<<15|121<<17)
			lower += 4
			t := page[upper : upper+tuple]
			binary.LittleEndian.PutUint32(t, 731)
			binary.LittleEndian.PutUint32(t[8:], uint32(p)<<16)
			binary.LittleEndian.PutUint16(t[12:], uint16(lower))
			t[18], t[20], t[22] = 4, 2, 24
			binary.LittleEndian.PutUint32(t[24:], row)
			binary.LittleEndian.PutUint32(t[28:], row/100000+1)
			if text {
				binary.LittleEndian.PutUint32(t[32:], rnd.Uint32())
				for i := 37; i < 121; i++ {
					t[i] = "etaoinshrdlu    "[rnd.Uint32()%16]
				}
				copy(t[60:], "Main Street 12, Springfield")
				continue
			}
			t[36] = 0xab
			for i := 37; i < 121; i++ {
				t[i] = ' '
			}
		}
		binary.LittleEndian.PutUint16(page[12:], uint16(lower))
		binary.LittleEndian.PutUint16(page[14:], uint16(upper))
		binary.LittleEndian.PutUint16(page[16:], pageSize)
		binary.LittleEndian.PutUint16(page[18:], pageSize|4)
	}
	return pages
}
