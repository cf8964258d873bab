package codec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/adler32"
	"hash/crc32"
	"io"

	"github.com/anchore/go-lzo"
)

// The lzop file format, all numbers big endian. A header ends with its own checksum; blocks follow, each decoded on its own,
// until one of length zero. Which fields there are depends on the version that wrote them and on the flags.
const (
	lzopMagic = "\x89LZO\x00\r\n\x1a\n"

	lzopOldest  = 0x0900 // version of the format; what came before was never released
	lzopLevels  = 0x0940 // since then: version needed, level, upper half of the time
	lzopCurrent = 0x1040 // the last one, of 2017

	lzopPlainAdler  = 0x0001 // a block has the Adler-32 of its decoded bytes
	lzopPackedAdler = 0x0002 // a block that is compressed has that of its stored bytes
	lzopExtraField  = 0x0040 // something follows the header
	lzopPlainCRC    = 0x0100 // as the first two, with CRC-32
	lzopPackedCRC   = 0x0200
	lzopMultipart   = 0x0400 // the file is cut in pieces
	lzopFilter      = 0x0800 // the bytes were transformed before they were compressed
	lzopHeaderCRC   = 0x1000 // the header's checksum is a CRC-32, not an Adler-32
	lzopReserved    = 0xfc000

	// lzopMaxBlock is the largest block a reader accepts, in bytes decoded: 16 times what lzop writes. A reader holds two.
	lzopMaxBlock = 4 * mib
)

// newLZO reads lzop files, which WAL-E wrote and nothing of ours does.
func newLZO() *method {
	return &method{
		name: "lzo", extension: ".lzo",
		newEncoder: func() (encoder, error) { return nil, errReadOnly },
		newDecoder: func() (decoder, error) { return new(lzoDecoder), nil },
	}
}

// lzoDecoder reads one lzop file. It checks every checksum that is there.
type lzoDecoder struct {
	in     io.Reader
	flags  uint32
	ended  bool
	rest   []byte // of the decoded block
	plain  []byte // buffer of decoded blocks
	packed []byte // buffer of stored ones
}

// Reset reads the header.
func (d *lzoDecoder) Reset(r io.Reader) error {
	*d = lzoDecoder{in: r, plain: d.plain, packed: d.packed}
	magic := make([]byte, len(lzopMagic))
	if err := readWhole(r, magic); err != nil {
		return err
	}
	if string(magic) != lzopMagic {
		return errors.New("it does not begin as an lzop file does")
	}
	h := lzopHeader{in: r, adler: adler32.New(), crc: crc32.NewIEEE()}
	flags, err := h.read()
	d.flags = flags
	return err
}

// lzopHeader reads the header's fields and sums them up on the way.
type lzopHeader struct {
	in         io.Reader
	adler, crc hash.Hash32
}

// number reads a number of size bytes.
func (h *lzopHeader) number(size int) (uint32, error) {
	var b [4]byte
	if err := readWhole(h.in, b[4-size:]); err != nil {
		return 0, err
	}
	_, _ = h.adler.Write(b[4-size:])
	_, _ = h.crc.Write(b[4-size:])
	return binary.BigEndian.Uint32(b[:]), nil
}

// skip passes over n bytes.
func (h *lzopHeader) skip(n uint32) error {
	_, err := io.CopyN(io.MultiWriter(h.adler, h.crc), h.in, int64(n))
	return unexpected(err)
}

// verify reads the checksum of what was read so far and begins a new one.
func (h *lzopHeader) verify(flags uint32) error {
	want := h.adler.Sum32()
	if flags&lzopHeaderCRC != 0 {
		want = h.crc.Sum32()
	}
	got, err := h.number(4)
	if err == nil && got != want {
		err = errors.New("the checksum of its header is wrong")
	}
	h.adler.Reset()
	h.crc.Reset()
	return err
}

func (h *lzopHeader) read() (flags uint32, err error) {
	var version, needed, method uint32
	if version, err = h.number(2); err != nil {
		return 0, err
	}
	if version < lzopOldest {
		return 0, fmt.Errorf("its version is %#04x", version)
	}
	fields := []struct {
		size  int
		value *uint32
		since uint32
	}{{2, nil, 0}, {2, &needed, lzopLevels}, {1, &method, 0}, {1, nil, lzopLevels}, {4, &flags, 0}} // nil: library's version, level
	for _, f := range fields {
		if version < f.since {
			continue
		}
		n, err := h.number(f.size)
		if err != nil {
			return 0, err
		}
		if f.value != nil {
			*f.value = n
		}
	}
	switch {
	case needed > lzopCurrent:
		return 0, fmt.Errorf("it is of version %#04x, known are those up to %#04x", needed, lzopCurrent)
	case method < 1 || method > 3: // LZO1X-1, LZO1X-1(15), LZO1X-999: one decoder
		return 0, fmt.Errorf("its method is %d, which is not LZO1X", method)
	case flags&(lzopMultipart|lzopFilter) != 0:
		return 0, errors.New("it is cut in pieces or filtered, which walden does not read")
	case flags&lzopReserved != 0:
		return 0, fmt.Errorf("its flags are %#08x, some of which have no meaning", flags)
	}
	rest := uint32(8) // file mode, time
	if version >= lzopLevels {
		rest += 4 // upper half of the time
	}
	if err := h.skip(rest); err != nil {
		return 0, err
	}
	name, err := h.number(1)
	if err == nil {
		err = h.skip(name)
	}
	if err == nil {
		err = h.verify(flags)
	}
	if err == nil && flags&lzopExtraField != 0 {
		var extra uint32
		if extra, err = h.number(4); err == nil {
			err = h.skip(extra)
		}
		if err == nil {
			err = h.verify(flags)
		}
	}
	return flags, err
}

// Read decodes into p, block by block.
func (d *lzoDecoder) Read(p []byte) (int, error) {
	for len(d.rest) == 0 {
		if d.ended {
			return 0, io.EOF
		}
		if err := d.nextBlock(); err != nil {
			return 0, err
		}
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

// nextBlock reads a block and decodes it; the one of length zero is the end.
func (d *lzoDecoder) nextBlock() error {
	size, err := d.number()
	if err != nil {
		return err
	}
	if size == 0 {
		d.ended = true
		return nil
	}
	if size > lzopMaxBlock {
		return fmt.Errorf("it has a block of %d bytes, more than %d are not read", size, lzopMaxBlock)
	}
	stored, err := d.number()
	if err != nil {
		return err
	}
	if stored == 0 || stored > size {
		return fmt.Errorf("it has a block of %d bytes in %d", size, stored)
	}
	sums := blockSums{}
	for _, sum := range []struct {
		flag  uint32
		value *uint32
	}{{lzopPlainAdler, &sums.plainAdler}, {lzopPlainCRC, &sums.plainCRC}, {lzopPackedAdler, &sums.packedAdler}, {lzopPackedCRC, &sums.packedCRC}} {
		ofStored := sum.flag == lzopPackedAdler || sum.flag == lzopPackedCRC
		if d.flags&sum.flag == 0 || ofStored && stored == size {
			continue
		}
		if *sum.value, err = d.number(); err != nil {
			return err
		}
	}
	d.plain = grown(d.plain, size)
	if stored == size { // it would not get smaller, and is stored as it is
		if err := readWhole(d.in, d.plain); err != nil {
			return err
		}
	} else if err := d.unpack(stored, sums); err != nil {
		return err
	}
	if !sumsMatch(d.plain, d.flags&lzopPlainAdler != 0, sums.plainAdler, d.flags&lzopPlainCRC != 0, sums.plainCRC) {
		return errors.New("the checksum of a block is wrong")
	}
	d.rest = d.plain
	return nil
}

// blockSums are the checksums of a block, those that the flags announce.
type blockSums struct{ plainAdler, plainCRC, packedAdler, packedCRC uint32 }

// unpack reads the stored bytes of a block and decompresses them into d.plain.
func (d *lzoDecoder) unpack(stored uint32, sums blockSums) error {
	d.packed = grown(d.packed, stored)
	if err := readWhole(d.in, d.packed); err != nil {
		return err
	}
	if !sumsMatch(d.packed, d.flags&lzopPackedAdler != 0, sums.packedAdler, d.flags&lzopPackedCRC != 0, sums.packedCRC) {
		return errors.New("the checksum of a compressed block is wrong")
	}
	n, err := lzo.Decompress(d.packed, d.plain)
	if err != nil {
		return err
	}
	if n != len(d.plain) {
		return fmt.Errorf("a block has %d bytes, %d are announced", n, len(d.plain))
	}
	return nil
}

func sumsMatch(b []byte, hasAdler bool, adler uint32, hasCRC bool, crc uint32) bool {
	return (!hasAdler || adler32.Checksum(b) == adler) && (!hasCRC || crc32.ChecksumIEEE(b) == crc)
}

func (d *lzoDecoder) number() (uint32, error) {
	var b [4]byte
	err := readWhole(d.in, b[:])
	return binary.BigEndian.Uint32(b[:]), err
}

// grown returns a buffer of n bytes, b itself where it is large enough.
func grown(b []byte, n uint32) []byte {
	if uint32(cap(b)) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// readWhole fills b; an end before that is unexpected, wherever it comes.
func readWhole(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	return unexpected(err)
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
