// Package increment reads and writes increments of relation files as WAL-G has them in its delta backups: the size of the file,
// and those of its pages that changed (WAL-G format, "Increment format").
//
//	offset   bytes     content, numbers little endian
//	0        3         "wi1"
//	3        1         0x55
//	4        8         size of the whole file when the backup was taken
//	12       4         N, the number of blocks
//	16       4 N       block numbers within the file, ascending
//	16+4N    8192 N    the pages, in the same order
//
// What it promises to a reader: pages are handed out only of an increment whose header and length fit together; everything else is
// an error for which errors.Is(err, ErrDamaged) holds, and an error of the underlying reader is returned as it is. A reader keeps
// one bit for each block, and no page.
package increment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// PageSize is the size of a page in bytes. The format has no other.
const PageSize = 8192

const (
	signature  = "wi1U"
	headerSize = 16
	// listAtOnce is how many block numbers are read or written at once.
	listAtOnce = 1024
)

// ErrDamaged is what every error unwraps to that blames the increment's bytes.
var ErrDamaged = errors.New("damaged increment")

// SignatureSize is how many bytes [IsIncrement] looks at.
const SignatureSize = len(signature)

// IsIncrement tells whether bytes begin like an increment. No page of a relation does: it would be of a position in the log that no
// cluster has ever reached.
func IsIncrement(b []byte) bool {
	return len(b) >= len(signature) && string(b[:len(signature)]) == signature
}

// Size is the length in bytes of an increment of so many blocks.
func Size(blocks int) int64 { return headerSize + int64(blocks)*(4+PageSize) }

// Reader reads one increment.
type Reader struct {
	r        io.Reader
	fileSize int64
	blocks   Blocks
	next     int64 // the block whose page comes next, -1 after the last
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// NewReader reads the header and the block numbers of an increment of length bytes. One that says to be of a file of more than largest
// bytes is damaged: what a reader takes of memory grows with the file.
func NewReader(r io.Reader, length, largest int64) (*Reader, error) {
	var h [headerSize]byte
	if err := readFull(r, h[:]); err != nil {
		return nil, err
	}
	if !IsIncrement(h[:]) {
		return nil, damaged("it begins with % x instead of % x", h[:SignatureSize], signature)
	}
	fileSize, n := binary.LittleEndian.Uint64(h[4:]), binary.LittleEndian.Uint32(h[12:])
	pages := fileSize / PageSize
	switch {
	case fileSize%PageSize != 0:
		return nil, damaged("it is of a file of %d bytes, which are no whole pages", fileSize)
	case pages > 1<<32, fileSize > uint64(max(0, largest)):
		return nil, damaged("it is of a file of %d bytes, more than there can be", fileSize)
	case uint64(n) > pages:
		return nil, damaged("it has %d pages of a file of %d", n, pages)
	case length != Size(int(n)):
		return nil, damaged("it has %d bytes; with %d pages it would have %d", length, n, Size(int(n)))
	}
	in := &Reader{r: r, fileSize: int64(fileSize)}
	if err := in.readList(int(n), pages); err != nil {
		return nil, err
	}
	in.next = in.blocks.next(0)
	return in, nil
}

// readList reads the block numbers.
func (in *Reader) readList(n int, pages uint64) error {
	buf := make([]byte, 4*min(n, listAtOnce))
	for last := int64(-1); n > 0; {
		b := buf[:4*min(n, listAtOnce)]
		if err := readFull(in.r, b); err != nil {
			return err
		}
		n -= len(b) / 4
		for ; len(b) > 0; b = b[4:] {
			block := binary.LittleEndian.Uint32(b)
			if int64(block) <= last || uint64(block) >= pages {
				return damaged("block %d follows on %d in a file of %d pages", block, last, pages)
			}
			last = int64(block)
			in.blocks.Add(block)
		}
	}
	return nil
}

// FileSize is the size in bytes that the file had when the increment was taken.
func (in *Reader) FileSize() int64 { return in.fileSize }

// Blocks are the blocks of which the increment has the pages. They are not to be changed before all pages have been read.
func (in *Reader) Blocks() *Blocks { return &in.blocks }

// Next reads as many pages with consecutive block numbers as come next and fit into buf, whose length is a multiple of
// [PageSize] and not 0, and returns the number of the first block and how many they are. After the last page, and when nothing
// follows it, the error is io.EOF.
func (in *Reader) Next(buf []byte) (first uint32, pages int, err error) {
	if in.next < 0 {
		var b [1]byte
		switch n, err := io.ReadFull(in.r, b[:]); {
		case n > 0:
			return 0, 0, damaged("something follows its last page")
		case err != io.EOF:
			return 0, 0, err
		}
		return 0, 0, io.EOF
	}
	first = uint32(in.next)
	for in.next == int64(first)+int64(pages) && (pages+1)*PageSize <= len(buf) {
		pages++
		in.next = in.blocks.next(in.next + 1)
	}
	return first, pages, readFull(in.r, buf[:pages*PageSize])
}

// readFull reads all of b; an end before is damage.
func readFull(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return damaged("it ends too early")
	}
	return err
}

// File is what [Apply] changes.
type File interface {
	io.WriterAt
	Truncate(size int64) error
}

// applyAtOnce is how much Apply writes at once, in bytes.
const applyAtOnce = 64 * PageSize

// Apply turns the file that an increment was taken against into the one of when it was taken. After an error the file is neither.
func Apply(f File, in *Reader) error {
	if err := f.Truncate(in.FileSize()); err != nil {
		return err
	}
	buf := make([]byte, min(applyAtOnce, max(1, in.blocks.Len())*PageSize))
	for {
		first, pages, err := in.Next(buf)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := f.WriteAt(buf[:pages*PageSize], int64(first)*PageSize); err != nil {
			return err
		}
	}
}

// Writer writes one increment.
type Writer struct {
	w    io.Writer
	left int // pages to come
}

// NewWriter writes the header and the block numbers of an increment of a file of fileSize bytes. As many pages must follow as there
// are blocks, in their order.
func NewWriter(w io.Writer, fileSize int64, blocks *Blocks) (*Writer, error) {
	if fileSize < 0 || fileSize%PageSize != 0 {
		return nil, fmt.Errorf("cannot write an increment of a file of %d bytes: they are no whole pages", fileSize)
	}
	buf := make([]byte, 0, 4*listAtOnce)
	buf = append(buf, signature...)
	buf = binary.LittleEndian.AppendUint64(buf, uint64(fileSize))
	buf = binary.LittleEndian.AppendUint32(buf, uint32(blocks.Len()))
	for block := range blocks.All() {
		if int64(block) >= fileSize/PageSize {
			return nil, fmt.Errorf("cannot write an increment: block %d is not in a file of %d bytes", block, fileSize)
		}
		if len(buf)+4 > cap(buf) {
			if _, err := w.Write(buf); err != nil {
				return nil, err
			}
			buf = buf[:0]
		}
		buf = binary.LittleEndian.AppendUint32(buf, block)
	}
	if _, err := w.Write(buf); err != nil {
		return nil, err
	}
	return &Writer{w, blocks.Len()}, nil
}

// Write writes whole pages.
func (out *Writer) Write(pages []byte) (int, error) {
	if len(pages)%PageSize != 0 || len(pages)/PageSize > out.left {
		return 0, fmt.Errorf("cannot write %d bytes of pages: %d pages are left", len(pages), out.left)
	}
	n, err := out.w.Write(pages)
	out.left -= n / PageSize
	return n, err
}

// Close fails if pages are missing. It does not close the underlying writer.
func (out *Writer) Close() error {
	if out.left > 0 {
		return fmt.Errorf("cannot end an increment: %d of its pages are missing", out.left)
	}
	return nil
}
