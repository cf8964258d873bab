package codec

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"
)

const mib = 1 << 20

// byBlocks makes a method for each number of blocks that are compressed at the same time. It returns the one for one block, which knows the others.
func byBlocks(newMethod func(blocksAtOnce int) *method) *method {
	methods := make([]*method, MaxAtOnce+1) // by the number of blocks, from 1 on
	for n := 1; n <= MaxAtOnce; n++ {
		methods[n] = newMethod(n)
		methods[n].atOnce = methods
	}
	return methods[1]
}

// newLZ4 writes LZ4 frames: independent blocks of 4 MiB, no block checksums, a content checksum, the fast level.
//
// On heap pages the content checksum (xxh32), which the framing demands, costs between a fifth and a third of the time.
// Input that comes in whole blocks is compressed where it lies; smaller pieces cost one more copy.
func newLZ4(blocksAtOnce int) *method {
	memory := int64(13 * mib) // a block in, a block out, a third one in ReadFrom, tables
	if blocksAtOnce > 1 {
		memory += int64(blocksAtOnce+1) * 8 * mib // blocks being compressed, and one that waits for its turn
	}
	return &method{
		name: "lz4", extension: ".lz4",
		writerMemory: memory,
		newEncoder: func() (encoder, error) {
			w := lz4.NewWriter(nil)
			err := w.Apply(lz4.BlockSizeOption(lz4.Block4Mb), lz4.ChecksumOption(true), lz4.ConcurrencyOption(blocksAtOnce),
				lz4.CompressionLevelOption(lz4.Fast))
			if blocksAtOnce > 1 {
				return struct{ encoder }{w}, err // without ReadFrom: a source that fails there leaves goroutines that nothing ends
			}
			return w, err
		},
		newDecoder: func() (decoder, error) {
			r := lz4.NewReader(nil)
			return lz4Decoder{r}, r.Apply(lz4.ConcurrencyOption(1))
		},
	}
}

// lz4Decoder accepts concatenated, skippable and legacy frames and all frame options but dictionaries.
type lz4Decoder struct{ *lz4.Reader }

func (d lz4Decoder) Reset(r io.Reader) error {
	d.Reader.Reset(r)
	return nil
}

const (
	// zstdMaxWindow is the largest window in bytes a zstd reader accepts, 2^27: what `zstd --ultra --long` writes.
	zstdMaxWindow = 128 * mib
	// zstdUsualWindow is twice what WAL-G and walden write. Readers of streams with a larger one, which take as much memory,
	// read one at a time.
	zstdUsualWindow = 16 * mib
)

// zstdLevel is a level with what one writer of it needs.
type zstdLevel struct {
	level  zstd.EncoderLevel
	memory int64 // bytes
}

// zstdLevels are the levels by their names in settings. The window is 4 MiB for fastest and 8 MiB for all others.
var zstdLevels = map[string]zstdLevel{
	"fastest": {zstd.SpeedFastest, 10 * mib},
	"default": {zstd.SpeedDefault, 20 * mib},
	"better":  {zstd.SpeedBetterCompression, 24 * mib},
	"best":    {zstd.SpeedBestCompression, 56 * mib},
}

// newZstd writes Zstandard frames with a content checksum: one, which tells its content size only if it fits one block, or where several blocks are
// compressed at the same time one for each of them.
func newZstd(l zstdLevel, blocksAtOnce int) *method {
	open := func(window uint64) (*zstd.Decoder, error) {
		return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(window), zstd.WithDecoderMaxMemory(window))
	}
	large := make(chan *zstd.Decoder, 1)
	large <- nil // is made when it is first needed
	memory := l.memory
	if blocksAtOnce > 1 {
		n := int64(blocksAtOnce)
		memory = n*(l.memory-2*(8*mib-pieceSize)) + (2*n+1)*pieceSize // encoders, which hold twice the window; pieces and frames
	}
	return &method{
		name: "zstd", extension: ".zst",
		writerMemory: memory,
		newEncoder: func() (encoder, error) {
			options := []zstd.EOption{zstd.WithEncoderLevel(l.level), zstd.WithEncoderCRC(true), zstd.WithZeroFrames(true)}
			if blocksAtOnce > 1 {
				return newPieces(blocksAtOnce, options...)
			}
			return zstd.NewWriter(nil, append(options, zstd.WithEncoderConcurrency(1))...)
		},
		newDecoder: func() (decoder, error) {
			usual, err := open(zstdUsualWindow)
			return &zstdDecoder{Decoder: usual, usual: usual, large: large, openLarge: func() (*zstd.Decoder, error) { return open(zstdMaxWindow) }}, err
		},
	}
}

// zstdDecoder reads with a decoder of its own, or where the first frame asks for a large window with the one that all
// share: an archive can ask for it in every object, and a restore reads many at once.
type zstdDecoder struct {
	*zstd.Decoder // the one in use
	usual         *zstd.Decoder
	large         chan *zstd.Decoder // holds the shared one while nobody uses it
	openLarge     func() (*zstd.Decoder, error)
}

func (d *zstdDecoder) Reset(r io.Reader) error {
	var h zstd.Header
	if b, ok := r.(*bufio.Reader); ok {
		start, _ := b.Peek(zstd.HeaderMaxSize) // what is shorter is damaged, or needs no window
		if h.Decode(start) != nil {
			h = zstd.Header{}
		}
	}
	window := h.WindowSize
	if h.SingleSegment {
		window = h.FrameContentSize
	}
	if window > zstdUsualWindow && window <= zstdMaxWindow {
		shared := <-d.large
		if shared == nil {
			var err error
			if shared, err = d.openLarge(); err != nil {
				d.large <- nil
				return err
			}
		}
		d.Decoder = shared
	}
	return d.Decoder.Reset(r)
}

// release gives the shared decoder back. Its buffers are kept for the next reader that needs it.
func (d *zstdDecoder) release() {
	if d.Decoder == d.usual {
		return
	}
	shared := d.Decoder
	d.Decoder = d.usual
	if shared.Reset(nil) != nil {
		shared = nil
	}
	d.large <- shared
}

const (
	lzmaDictionary    = 8 * mib  // what WAL-G writes
	lzmaMaxDictionary = 64 * mib // what a reader accepts: the largest of xz's presets
	// lzmaUsualDictionary is twice what is written. Readers of streams with a larger one read one at a time, see zstdUsualWindow.
	lzmaUsualDictionary = 16 * mib
)

// newLZMA writes the LZMA-alone container: header of 13 bytes with unknown size, end marker, no checksum.
func newLZMA() *method {
	large := make(chan struct{}, 1)
	return &method{
		name: "lzma", extension: ".lzma",
		writerMemory: 50 * mib,
		newEncoder:   func() (encoder, error) { return &lzmaEncoder{out: bufio.NewWriterSize(nil, 64<<10)}, nil },
		newDecoder:   func() (decoder, error) { return &lzmaDecoder{large: large}, nil },
	}
}

// lzmaEncoder makes the library's writer, which cannot be used twice, anew for each stream.
type lzmaEncoder struct {
	out *bufio.Writer
	enc *lzma.Writer
	err error
}

func (e *lzmaEncoder) Reset(w io.Writer) {
	e.out.Reset(w)
	e.enc, e.err = nil, nil
	if w == nil {
		return
	}
	config := lzma.WriterConfig{
		Properties: &lzma.Properties{LC: 3, LP: 0, PB: 2}, DictCap: lzmaDictionary, EOSMarker: true,
	}
	e.enc, e.err = config.NewWriter(e.out)
}

func (e *lzmaEncoder) Write(p []byte) (int, error) {
	if e.err != nil {
		return 0, e.err
	}
	return e.enc.Write(p)
}

func (e *lzmaEncoder) Close() error {
	if e.err != nil {
		return e.err
	}
	if err := e.enc.Close(); err != nil {
		return err
	}
	return e.out.Flush()
}

// lzmaDecoder makes the library's reader, which cannot be used twice, anew for each stream.
type lzmaDecoder struct {
	dec   *lzma.Reader
	large chan struct{} // holds a value while somebody reads with a large dictionary
	holds bool
}

func (d *lzmaDecoder) Reset(r io.Reader) (err error) {
	if b, ok := r.(*bufio.Reader); ok {
		const properties, size = 1, 4 // of the header, which begins with them
		start, _ := b.Peek(properties + size)
		if len(start) == properties+size && binary.LittleEndian.Uint32(start[properties:]) > lzmaUsualDictionary {
			d.large <- struct{}{}
			d.holds = true
		}
	}
	d.dec, err = lzma.ReaderConfig{DictCap: lzmaMaxDictionary}.NewReader(r)
	return err
}

// release lets the next stream with a large dictionary be read, once this one's is garbage.
func (d *lzmaDecoder) release() {
	if d.holds {
		d.dec, d.holds = nil, false
		<-d.large
	}
}

func (d *lzmaDecoder) Read(p []byte) (int, error) { return d.dec.Read(p) }

// newBrotli writes a raw brotli stream of quality 3.
func newBrotli() *method {
	return &method{
		name: "brotli", extension: ".br",
		writerMemory: 28 * mib,
		newEncoder:   func() (encoder, error) { return brotli.NewWriterLevel(nil, 3), nil },
		newDecoder:   func() (decoder, error) { return brotli.NewReader(nil), nil },
	}
}

var errReadOnly = errors.New("the method is for reading only")

// newGzip reads gzip, which nothing of ours writes.
func newGzip() *method {
	return &method{
		name: "gzip", extension: ".gz",
		newEncoder: func() (encoder, error) { return nil, errReadOnly },
		newDecoder: func() (decoder, error) { return new(gzip.Reader), nil },
	}
}

// none leaves the bytes as they are.
type none struct{}

func (none) Name() string { return "none" }

func (none) Extension() string { return "" }

func (none) NewWriter(w io.Writer) (io.WriteCloser, error) { return plainWriter{w}, nil }

func (none) NewReader(r io.Reader) (io.ReadCloser, error) { return io.NopCloser(r), nil }

// plainWriter hides a Close of the writer below.
type plainWriter struct{ w io.Writer }

func (p plainWriter) Write(b []byte) (int, error) { return p.w.Write(b) }

// ReadFrom lets the writer below read directly if it can.
func (p plainWriter) ReadFrom(r io.Reader) (int64, error) { return io.Copy(p.w, r) }

func (plainWriter) Close() error { return nil }
