package codec

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/adler32"
	"hash/crc32"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// lzopPlain is what lzopStreams hold.
const lzopPlain = "walden walden walden walden walden test vector\n"

// lzopStreams were written by lzop 1.04, with the options that are their names.
var lzopStreams = map[string]string{
	"-1": "894c5a4f000d0a1a0a 1040 20a0 0940 02 01 0300000d 00000000 6b034583 00000000 00 27f702a3 " +
		"0000002f 00000024 aab51185 0477616c64656e2032180000022077616c64656e207465737420766563746f720a110000 00000000",
	"--crc32": "894c5a4f000d0a1a0a 1040 20a0 1001 01 05 0300110c 00000000 6b034583 00000000 00 15506ee9 " +
		"0000002f 00000024 89d59b09 0477616c64656e2032180000022077616c64656e207465737420766563746f720a110000 00000000",
	"-CC": "894c5a4f000d0a1a0a 1040 20a0 0940 01 05 0300000f 00000000 6b034583 00000000 00 284802a8 " +
		"0000002f 00000024 aab51185 bf1e0a35 0477616c64656e2032180000022077616c64656e207465737420766563746f720a110000 00000000",
	"-F": "894c5a4f000d0a1a0a 1040 20a0 0940 01 05 0300000c 00000000 6b034583 00000000 00 281e02a5 " +
		"0000002f 00000024 0477616c64656e2032180000022077616c64656e207465737420766563746f720a110000 00000000",
	"-9": "894c5a4f000d0a1a0a 1040 20a0 0940 03 09 0300000d 00000000 6b034583 00000000 00 289a02ac " +
		"0000002f 0000001b aab51185 1877616c64656e203a1800097465737420766563746f720a110000 00000000",
}

func fromHex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// lzopFile builds the files that lzop does not write any more, or never did.
type lzopFile struct {
	version, needed uint16
	method          byte
	flags           uint32
	name            string
	extra           string
	blocks          []string // each stored as it is
	unfinished      bool
}

func (f lzopFile) bytes() []byte {
	h := binary.BigEndian.AppendUint16(nil, f.version)
	h = append(h, 0x20, 0xa0)
	if f.version >= lzopLevels {
		h = binary.BigEndian.AppendUint16(h, f.needed)
	}
	h = append(h, f.method)
	if f.version >= lzopLevels {
		h = append(h, 5)
	}
	h = binary.BigEndian.AppendUint32(h, f.flags)
	h = append(h, make([]byte, 8)...)
	if f.version >= lzopLevels {
		h = append(h, make([]byte, 4)...)
	}
	h = append(append(h, byte(len(f.name))), f.name...)
	sum := func(b []byte) uint32 {
		if f.flags&lzopHeaderCRC != 0 {
			return crc32.ChecksumIEEE(b)
		}
		return adler32.Checksum(b)
	}
	out := binary.BigEndian.AppendUint32(append([]byte(lzopMagic), h...), sum(h))
	if f.flags&lzopExtraField != 0 {
		field := append(binary.BigEndian.AppendUint32(nil, uint32(len(f.extra))), f.extra...)
		out = binary.BigEndian.AppendUint32(append(out, field...), sum(field))
	}
	for _, b := range f.blocks {
		out = binary.BigEndian.AppendUint32(out, uint32(len(b)))
		out = binary.BigEndian.AppendUint32(out, uint32(len(b)))
		if f.flags&lzopPlainAdler != 0 {
			out = binary.BigEndian.AppendUint32(out, adler32.Checksum([]byte(b)))
		}
		if f.flags&lzopPlainCRC != 0 {
			out = binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE([]byte(b)))
		}
		out = append(out, b...)
	}
	if f.unfinished {
		return out
	}
	return append(out, 0, 0, 0, 0)
}

// usual is a file as lzop writes it.
func usual() lzopFile {
	return lzopFile{version: lzopCurrent, needed: lzopLevels, method: 1, flags: 0x0300000d, blocks: []string{lzopPlain, lzopPlain}}
}

func with(change func(*lzopFile)) []byte {
	f := usual()
	change(&f)
	return f.bytes()
}

func TestLZOPFilesOfAllShapesAreRead(t *testing.T) {
	t.Parallel()
	files := map[string][]byte{
		"two blocks that are stored":    usual().bytes(),
		"no checksums":                  with(func(f *lzopFile) { f.flags = 0 }),
		"both checksums":                with(func(f *lzopFile) { f.flags = lzopPlainAdler | lzopPlainCRC }),
		"checksums of what is packed":   with(func(f *lzopFile) { f.flags |= lzopPackedAdler | lzopPackedCRC }), // stored blocks have none
		"a header with CRC-32":          with(func(f *lzopFile) { f.flags |= lzopHeaderCRC }),
		"a file name":                   with(func(f *lzopFile) { f.name = "00000001000000000000000A" }),
		"an extra field":                with(func(f *lzopFile) { f.flags |= lzopExtraField; f.extra = "anything" }),
		"an extra field of length zero": with(func(f *lzopFile) { f.flags |= lzopExtraField | lzopHeaderCRC }),
		"an old version":                with(func(f *lzopFile) { f.version = lzopOldest }),
		"the oldest version with level": with(func(f *lzopFile) { f.version = lzopLevels }),
		"method 3":                      with(func(f *lzopFile) { f.method = 3 }),
	}
	for options, stream := range lzopStreams {
		files["lzop "+options] = fromHex(t, stream)
	}
	c := open(t, "lzo")
	for name, stream := range files {
		want := lzopPlain
		if !strings.HasPrefix(name, "lzop") {
			want += lzopPlain
		}
		for range 2 { // a used reader must not differ from a new one
			for _, r := range []io.Reader{bytes.NewReader(stream), iotest.OneByteReader(bytes.NewReader(stream)), iotest.DataErrReader(bytes.NewReader(stream))} {
				if got, err := decompress(c, r); err != nil || string(got) != want {
					t.Errorf("%s: %q, %v", name, got, err)
				}
			}
		}
	}
	empty, err := decompress(c, bytes.NewReader(with(func(f *lzopFile) { f.blocks = nil })))
	if err != nil || len(empty) != 0 {
		t.Errorf("no block: %q, %v", empty, err)
	}
}

func TestLZOPFilesThatAreNoneAreDamage(t *testing.T) {
	t.Parallel()
	block := func(numbers ...uint32) []byte {
		out := with(func(f *lzopFile) { f.blocks, f.unfinished = nil, true })
		for _, n := range numbers {
			out = binary.BigEndian.AppendUint32(out, n)
		}
		return out
	}
	packed := strings.Split(lzopStreams["-1"], "0000002f")[0]
	for name, tt := range map[string]struct {
		stream []byte
		want   string
	}{
		"nothing":                        {nil, "unexpected EOF"},
		"another format":                 {[]byte("\x1f\x8b\x08 is gzip, surely"), "does not begin as"},
		"an encrypted file":              {append([]byte{0x85, 1, 0x0c, 3}, noise(60)...), "does not begin as"},
		"a version before the first":     {with(func(f *lzopFile) { f.version = 0x08ff }), "version is 0x08ff"},
		"a version that needs a newer":   {with(func(f *lzopFile) { f.needed = 0x1050 }), "of version 0x1050"},
		"another method":                 {with(func(f *lzopFile) { f.method = 128 }), "method is 128"},
		"method 0":                       {with(func(f *lzopFile) { f.method = 0 }), "method is 0"},
		"a piece of many":                {with(func(f *lzopFile) { f.flags |= lzopMultipart }), "cut in pieces or filtered"},
		"filtered bytes":                 {with(func(f *lzopFile) { f.flags |= lzopFilter }), "cut in pieces or filtered"},
		"flags that do not exist":        {with(func(f *lzopFile) { f.flags |= 0x4000 }), "some of which have no meaning"},
		"no end":                         {with(func(f *lzopFile) { f.unfinished = true }), "unexpected EOF"},
		"a second file":                  {append(usual().bytes(), usual().bytes()...), "bytes follow its end"},
		"zeros after the end":            {append(usual().bytes(), 0, 0, 0, 0), "bytes follow its end"},
		"a huge block":                   {block(lzopMaxBlock+1, 10, 0), "block of 4194305 bytes"},
		"a block of all ones":            {block(0xffffffff, 0xffffffff, 0), "block of 4294967295 bytes"},
		"a block stored in nothing":      {block(100, 0, 0), "100 bytes in 0"},
		"a block stored in more":         {block(100, 101, 0), "100 bytes in 101"},
		"a block that is cut off":        {block(lzopMaxBlock, lzopMaxBlock, 0), "unexpected EOF"},
		"more than is announced":         {fromHex(t, packed+"0000002e 00000024 aab51185 0477616c64656e2032180000022077616c64656e207465737420766563746f720a110000 00000000"), "output overrun"},
		"less than is announced":         {fromHex(t, packed+"00000030 00000024 aab51185 0477616c64656e2032180000022077616c64656e207465737420766563746f720a110000 00000000"), "47 bytes, 48 are announced"},
		"a copy from before its begin":   {fromHex(t, packed+"0000002f 00000024 aab51185 0477616c64656e20321c0000022077616c64656e207465737420766563746f720a110000 00000000"), "lookbehind overrun"},
		"a copy from far before":         {fromHex(t, packed+"0000002f 00000024 aab51185 0477616c64656e2032ffff00022077616c64656e207465737420766563746f720a110000 00000000"), "lookbehind overrun"},
		"bytes behind a block's end":     {fromHex(t, packed+"0000002f 00000025 aab51185 0477616c64656e2032180000022077616c64656e207465737420766563746f720a11000000 00000000"), "not fully consumed"},
		"a wrong sum of a stored block":  {bytes.Replace(usual().bytes(), []byte("test"), []byte("tess"), 1), "checksum of a block"},
		"a wrong sum of a packed block":  {fromHex(t, strings.Replace(lzopStreams["-CC"], "bf1e0a35", "bf1e0a36", 1)), "checksum of a compressed block"},
		"a wrong sum of the header":      {fromHex(t, strings.Replace(lzopStreams["-1"], "27f702a3", "27f702a4", 1)), "checksum of its header"},
		"a wrong sum of the extra field": {bytes.Replace(with(func(f *lzopFile) { f.flags |= lzopExtraField; f.extra = "anything" }), []byte("anything"), []byte("something"), 1), "checksum of its header"},
	} {
		got, err := decompress(open(t, "lzo"), bytes.NewReader(tt.stream))
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %d bytes, %v; want %q", name, len(got), err, tt.want)
		}
	}
}

func TestEveryCutOfAnLZOPFileIsDamageAndNoFlippedBitPassesForData(t *testing.T) {
	t.Parallel()
	c := open(t, "lzo")
	for options, text := range lzopStreams {
		stream := fromHex(t, text)
		for n := range stream {
			if _, err := decompress(c, bytes.NewReader(stream[:n])); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s cut to %d bytes: %v", options, n, err)
			}
		}
		if options == "-F" {
			continue // has no checksum of its blocks
		}
		for bit := range 8 * len(stream) {
			flipped := bytes.Clone(stream)
			flipped[bit/8] ^= 1 << (bit % 8)
			// Two bits of a block's end mark mean nothing: flipping them loses nothing.
			if got, err := decompress(c, bytes.NewReader(flipped)); !errors.Is(err, ErrDamaged) && (err != nil || string(got) != lzopPlain) {
				t.Errorf("%s with bit %d flipped: %q, %v", options, bit, got, err)
			}
		}
	}
}

func TestAFailedReadOfAnLZOPFileIsNotDamage(t *testing.T) {
	t.Parallel()
	broken := errors.New("connection reset")
	stream := fromHex(t, lzopStreams["-CC"])
	for n := range stream {
		_, err := decompress(open(t, "lzo"), io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) || errors.Is(err, ErrDamaged) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

func FuzzLZO(f *testing.F) {
	for _, text := range lzopStreams {
		f.Add(fromHex(f, text))
	}
	f.Add(usual().bytes())
	f.Add(with(func(f *lzopFile) { f.flags |= lzopExtraField; f.extra = "x" }))
	f.Add(with(func(f *lzopFile) { f.flags, f.version = 0, lzopOldest }))
	fuzzStream(f, open(f, "lzo"))
}
