// Package codec compresses and decompresses byte streams, in the framing that WAL-G writes.
//
// A codec is chosen by name for writing and by file extension for reading. The framing of each method is fixed
// (WAL-G format, "Codecs"): the same input gives a stream that WAL-G and the method's own command-line tool read.
//
// What it promises to a reader: io.EOF is returned only after a complete stream with nothing behind it. Anything the
// decoder does not understand is an error for which errors.Is(err, ErrDamaged) holds; an error of the underlying
// reader is returned as it is and never called damage, so that a broken connection can be told from a broken object.
// Only lz4, zstd, gzip and lzop carry a checksum: lzma and brotli notice truncation but not every flipped bit, and none
// notices nothing at all.
package codec

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// ErrDamaged is what every error unwraps to that blames the compressed bytes: truncated, altered or extended streams,
// and streams that need more memory than a reader may take.
var ErrDamaged = errors.New("damaged stream")

// Codec is one compression method. It may be used by many goroutines at once.
type Codec interface {
	// Name is the method's name in settings: "lz4", "zstd", "lzma", "brotli", "none".
	Name() string
	// Extension is what the method appends to an object's name, with the dot: ".lz4"; "" for none.
	Extension() string
	// NewWriter compresses into w. Close ends the stream, releases the writer's buffers for reuse and does not
	// close w. Close must be called even after a failed Write.
	NewWriter(w io.Writer) (io.WriteCloser, error)
	// NewReader decompresses r. Damage and truncation are errors; reading to io.EOF proves completeness. Close
	// releases the reader's buffers for reuse and does not close r.
	NewReader(r io.Reader) (io.ReadCloser, error)
}

// Options are the settings of a codec.
type Options struct {
	ZstdLevel string // "fastest", "default", "better" or "best"; "" is "default". Only with zstd.
}

// New returns the codec that writes with the named method: "lz4", "zstd", "lzma", "brotli" or "none".
//
// The codec keeps the buffers of closed writers and readers for the next ones: make one and use it everywhere.
func New(name string, o Options) (Codec, error) {
	if o.ZstdLevel != "" && name != "zstd" {
		return nil, fmt.Errorf("cannot use zstd level %q with compression method %q: it is for zstd only",
			o.ZstdLevel, name)
	}
	switch name {
	case "lz4":
		return byBlocks(newLZ4), nil
	case "zstd":
		level, ok := zstdLevels[cmp.Or(o.ZstdLevel, "default")]
		if !ok {
			return nil, fmt.Errorf("cannot use zstd level %q: valid are fastest, default, better, best", o.ZstdLevel)
		}
		return byBlocks(func(n int) *method { return newZstd(level, n) }), nil
	case "lzma":
		return newLZMA(), nil
	case "brotli":
		return newBrotli(), nil
	case "none":
		return none{}, nil
	}
	return nil, fmt.Errorf("cannot use compression method %q: valid are %s", name,
		strings.Join([]string{"lz4", "zstd", "lzma", "brotli", "none"}, ", "))
}

// Extensions lists the extensions of all methods that can be read: ".lz4", ".zst", ".lzma", ".br", ".gz", ".lzo" and "".
func Extensions() []string { return []string{".lz4", ".zst", ".lzma", ".br", ".gz", ".lzo", ""} }

// ByExtension returns the codec that reads objects whose names end in ext, and false if there is none. The codecs of
// ".gz" and ".lzo" only read. Like [New] it makes a codec with buffers of its own: call it once per extension.
func ByExtension(ext string) (Codec, bool) {
	if !slices.Contains(Extensions(), ext) {
		return nil, false
	}
	switch ext {
	case ".gz":
		return newGzip(), true
	case ".lzo":
		return newLZO(), true
	}
	name := map[string]string{".lz4": "lz4", ".zst": "zstd", ".lzma": "lzma", ".br": "brotli", "": "none"}[ext]
	c, err := New(name, Options{})
	return c, err == nil
}

// MaxAtOnce is the most blocks of one stream that are worth compressing at the same time: what feeds them, reading and hashing on one
// processor, is not faster.
const MaxAtOnce = 4

// AtOnce returns the codec that compresses n blocks of one stream at the same time, and is c in all else: it shortens the way of a single
// object, where many are written at once it only costs memory. Below 2 it is one block, and no more than MaxAtOnce. Methods other than
// lz4 and zstd do not know how to: they are returned as they are.
func AtOnce(c Codec, n int) Codec {
	m, ok := c.(*method)
	if !ok || m.atOnce == nil {
		return c
	}
	return m.atOnce[min(max(1, n), MaxAtOnce)]
}

// WriterMemory is an upper bound for the memory, in bytes, that one open writer of c holds. A budget for parallel
// writers is a multiple of it. It is 0 for none.
func WriterMemory(c Codec) int64 {
	if m, ok := c.(*method); ok {
		return m.writerMemory
	}
	return 0
}
