package changes

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
)

// Recorded is what a WAL-delta object holds (WAL-G format, "WAL-delta objects"): what the records changed that end in a group of
// [GroupSegments] segments.
//
//	16 n bytes   locations: tablespace, database, relfilenumber, block, four numbers of 32 bits, little endian
//	16 bytes     zeros
//	4 bytes      L
//	L bytes      the beginning of the record that is not complete at the end of the group
//
// WAL-G writes nothing but blocks, so its objects do not tell that a relation was cut and has grown again, or was made anew. walden's begin with
// a location that no relation has and that says so, and have two more kinds; WAL-G looks for neither of them:
//
//	0, 0, walden's mark, 1                  what follows is complete
//	tablespace, database, 0, 0              everything in that folder may be new: Map.Replace
//	relation, 2^32-1; relation, length      the relation was cut to that length, or with 0 made anew or dropped: Map.Cut
type Recorded struct {
	Changes Map // without From and To, which the object does not tell
	// Complete is false for objects of which nobody knows what they leave out: WAL-G's.
	Complete bool
	// Unfinished is the beginning of the record that is not complete at the end of the group, none if it ends with a record.
	Unfinished []byte
}

// GroupSegments is how many segments a WAL-delta object is for: those whose numbers differ in the last four bits only.
const GroupSegments = 16

const (
	locationSize  = 16
	recordedMark  = 'W' | 'L'<<8 | 'D'<<16 | 'N'<<24
	recordedForm  = 1          // the version of what follows the mark
	noBlock       = 0xFFFFFFFF // InvalidBlockNumber
	maxUnfinished = 16 << 20   // bytes

	// maxBlocks is how many blocks all relations of an object may have together: as many as one can, 32 TiB. What a Map takes of memory
	// grows with it, 64 MiB for so many.
	maxBlocks = 1 << 32
)

// ErrDamagedRecord is what every error unwraps to that blames the bytes of a WAL-delta object.
var ErrDamagedRecord = errors.New("damaged record of changed blocks")

func damagedRecord(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamagedRecord, fmt.Sprintf(format, args...))
}

// WriteTo writes it as walden does, whatever Complete says. Equal changes give equal bytes.
func (rec *Recorded) WriteTo(w io.Writer) (int64, error) {
	out := &locationWriter{w: bufio.NewWriter(w)}
	out.write(Relation{Number: recordedMark}, recordedForm)
	databases := slices.SortedFunc(maps.Keys(rec.Changes.databases), func(a, b database) int {
		return cmp.Or(cmp.Compare(a.tablespace, b.tablespace), cmp.Compare(a.database, b.database))
	})
	for _, d := range databases {
		out.write(Relation{Tablespace: d.tablespace, Database: d.database}, 0)
	}
	for _, r := range slices.SortedFunc(maps.Keys(rec.Changes.relations), compareRelations) {
		known := rec.Changes.relations[r]
		if known.cut {
			out.write(r, noBlock)
			out.write(r, known.limit)
		}
		for block := range known.blocks.All() {
			out.write(r, block)
		}
	}
	out.write(Relation{}, 0)
	out.bytes(binary.LittleEndian.AppendUint32(nil, uint32(len(rec.Unfinished))))
	out.bytes(rec.Unfinished)
	if out.err == nil {
		out.err = out.w.Flush()
	}
	return out.n, out.err
}

func compareRelations(a, b Relation) int {
	return cmp.Or(cmp.Compare(a.Tablespace, b.Tablespace), cmp.Compare(a.Database, b.Database), cmp.Compare(a.Number, b.Number))
}

// locationWriter writes locations until the first error.
type locationWriter struct {
	w   *bufio.Writer
	n   int64
	err error
}

func (out *locationWriter) bytes(b []byte) {
	if out.err == nil {
		var n int
		n, out.err = out.w.Write(b)
		out.n += int64(n)
	}
}

func (out *locationWriter) write(r Relation, block uint32) {
	var b [locationSize]byte
	for i, n := range []uint32{r.Tablespace, r.Database, r.Number, block} {
		binary.LittleEndian.PutUint32(b[4*i:], n)
	}
	out.bytes(b[:])
}

// ReadRecorded reads a whole WAL-delta object, walden's or WAL-G's. An error of the underlying reader is returned as it is; all others
// unwrap to [ErrDamagedRecord].
func ReadRecorded(r io.Reader) (*Recorded, error) {
	in := bufio.NewReader(r)
	rec := &Recorded{}
	if err := rec.readLocations(in); err != nil {
		return nil, err
	}
	var b [4]byte
	if err := readFull(in, b[:]); err != nil {
		return nil, err
	}
	n := int64(binary.LittleEndian.Uint32(b[:]))
	if n > maxUnfinished {
		return nil, damagedRecord("%d bytes of an unfinished record", n)
	}
	var err error
	if rec.Unfinished, err = io.ReadAll(io.LimitReader(in, n)); err != nil {
		return nil, err
	}
	if int64(len(rec.Unfinished)) != n {
		return nil, damagedRecord("it ends too early")
	}
	switch _, err := in.ReadByte(); {
	case err == nil:
		return nil, damagedRecord("something follows its end")
	case err != io.EOF:
		return nil, err
	}
	return rec, nil
}

func (rec *Recorded) readLocations(in *bufio.Reader) error {
	sizes, blocks := map[Relation]uint64{}, uint64(0)
	for first := true; ; first = false {
		r, block, err := readLocation(in)
		switch {
		case err != nil:
			return err
		case r == Relation{} && block == 0:
			return nil
		case r == Relation{Number: recordedMark}:
			if !first || block != recordedForm {
				return damagedRecord("a mark of form %d", block)
			}
			rec.Complete = true
			continue
		case rec.Complete && r.Number == 0:
			if r.Tablespace == 0 || block != 0 {
				return damagedRecord("block %d of no relation", block)
			}
			rec.Changes.Replace(r.Tablespace, r.Database)
			continue
		}
		if known := sizes[r]; uint64(block) >= known && block != noBlock {
			sizes[r] = uint64(block) + 1
			if blocks += uint64(block) + 1 - known; blocks > maxBlocks {
				return damagedRecord("it has blocks of more than %d TiB", maxBlocks>>27)
			}
		}
		switch {
		case block != noBlock:
			rec.Changes.Mark(r, block)
		case rec.Complete:
			same, length, err := readLocation(in)
			if err != nil {
				return err
			}
			if same != r || length == noBlock {
				return damagedRecord("a relation that was cut to no length")
			}
			rec.Changes.Cut(r, length)
		}
	}
}

func readLocation(in io.Reader) (r Relation, block uint32, err error) {
	var b [locationSize]byte
	if err := readFull(in, b[:]); err != nil {
		return r, 0, err
	}
	le := binary.LittleEndian
	return Relation{le.Uint32(b[:]), le.Uint32(b[4:]), le.Uint32(b[8:])}, le.Uint32(b[12:]), nil
}

// readFull reads all of b; an end before is damage.
func readFull(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return damagedRecord("it ends too early")
	}
	return err
}
