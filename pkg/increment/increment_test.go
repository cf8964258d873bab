package increment

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// memoryFile is a file in memory that counts how often each page is written.
type memoryFile struct {
	b      []byte
	writes map[int64]int
}

func (f *memoryFile) Truncate(size int64) error {
	f.b = append(f.b[:min(int64(len(f.b)), size)], make([]byte, max(0, size-int64(len(f.b))))...)
	return nil
}

func (f *memoryFile) WriteAt(b []byte, offset int64) (int, error) {
	for at := int64(0); at < int64(len(b)); at += PageSize {
		f.writes[(offset+at)/PageSize]++
	}
	return copy(f.b[offset:], b), nil
}

func page(fill byte) []byte { return bytes.Repeat([]byte{fill}, PageSize) }

// write makes an increment of a file of so many pages; each page of it is filled with its number plus one.
func write(t testing.TB, filePages int64, blocks ...uint32) []byte {
	t.Helper()
	var set Blocks
	for _, b := range blocks {
		set.Add(b)
	}
	var out bytes.Buffer
	w, err := NewWriter(&out, filePages*PageSize, &set)
	if err != nil {
		t.Fatal(err)
	}
	for b := range set.All() {
		if _, err := w.Write(page(byte(b + 1))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestTheWriterWritesWhatWALGWrote(t *testing.T) {
	t.Parallel()
	// The beginnings of two members of backups that WAL-G took (WAL-G format, "Increment format").
	for want, got := range map[string][]byte{
		"77693155 0060040000000000 02000000 00000000 19000000":                   write(t, 35, 0, 25),
		"77693155 0080000000000000 04000000 00000000 01000000 02000000 03000000": write(t, 4, 0, 1, 2, 3),
		"77693155 0000000000000000 00000000":                                     write(t, 0),
	} {
		begin, err := hex.DecodeString(strings.ReplaceAll(want, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(got, begin) {
			t.Errorf("%x does not begin with %s", got[:min(len(got), 64)], want)
		}
	}
	if n := len(write(t, 35, 0, 25)); n != 16408 || Size(2) != 16408 {
		t.Errorf("two pages take %d bytes, Size says %d", n, Size(2))
	}
}

func TestAnIncrementIsApplied(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		before    string // a digit for each page: what it is filled with
		filePages int64
		blocks    []uint32
		after     string
	}{
		"some pages":           {"99999", 5, []uint32{0, 2, 3}, "19349"},
		"no page":              {"999", 3, nil, "999"},
		"the file shrank":      {"99999", 2, []uint32{1}, "92"},
		"the file was emptied": {"99999", 0, nil, ""},
		"the file grew":        {"9", 4, []uint32{1, 3}, "9204"},
		"all pages":            {"99", 2, []uint32{0, 1}, "12"},
	} {
		f := &memoryFile{writes: map[int64]int{}}
		for _, digit := range c.before {
			f.b = append(f.b, page(byte(digit-'0'))...)
		}
		raw := write(t, c.filePages, c.blocks...)
		in, err := NewReader(iotest.OneByteReader(bytes.NewReader(raw)), int64(len(raw)), math.MaxInt64)
		if err == nil {
			err = Apply(f, in)
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		got := ""
		for at := 0; at < len(f.b); at += PageSize {
			got += string('0' + f.b[at])
		}
		if got != c.after || len(f.b) != len(c.after)*PageSize {
			t.Errorf("%s: %q with %d bytes, want %q", what, got, len(f.b), c.after)
		}
		for block, n := range f.writes {
			if n != 1 || !slices.Contains(c.blocks, uint32(block)) {
				t.Errorf("%s: block %d was written %d times", what, block, n)
			}
		}
	}
}

func TestDamagedIncrementsAreRefused(t *testing.T) {
	t.Parallel()
	good := write(t, 35, 3, 25)
	edit := func(at int, text string) []byte {
		b := bytes.Clone(good)
		copy(b[at:], text)
		return b
	}
	for what, b := range map[string][]byte{
		"nothing":                     {},
		"cut in the header":           good[:10],
		"cut in the list":             good[:18],
		"cut in a page":               good[:9000],
		"without its last byte":       good[:len(good)-1],
		"with a byte more":            append(bytes.Clone(good), 0),
		"another signature":           edit(0, "wi2U"),
		"another signature's end":     edit(3, "V"),
		"a size of no whole pages":    edit(4, "\x01"),
		"a size that is too large":    edit(4, "\x00\xe0\xff\xff\xff\xff\xff\xff"),
		"more pages than the file":    edit(4, "\x00\x20\x00"),
		"more pages than it has":      edit(12, "\x03"),
		"fewer pages than it has":     edit(12, "\x01"),
		"a block outside the file":    edit(20, "\x23"),
		"blocks in descending order":  edit(16, "\x1a"),
		"a block twice":               edit(16, "\x19"),
		"four thousand million pages": edit(12, "\xff\xff\xff\xff"),
	} {
		for _, length := range []int64{int64(len(b)), int64(len(good))} {
			if bytes.Equal(b, good) {
				t.Fatal(what)
			}
			in, err := NewReader(bytes.NewReader(b), length, math.MaxInt64)
			if err == nil {
				err = Apply(&memoryFile{writes: map[int64]int{}}, in)
			}
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%s, said to have %d bytes: %v", what, length, err)
			}
		}
	}
	if _, err := NewReader(bytes.NewReader(good), int64(len(good)), 35*PageSize-1); !errors.Is(err, ErrDamaged) {
		t.Errorf("of a file that is too large: %v", err)
	}
	broken := errors.New("broken connection")
	for _, n := range []int{0, 10, 18, 9000, len(good)} {
		in, err := NewReader(io.MultiReader(bytes.NewReader(good[:n]), iotest.ErrReader(broken)), int64(len(good)), math.MaxInt64)
		if err == nil {
			err = Apply(&memoryFile{writes: map[int64]int{}}, in)
		}
		if !errors.Is(err, broken) || errors.Is(err, ErrDamaged) {
			t.Errorf("broken after %d bytes: %v", n, err)
		}
	}
}

func TestTheWriterKeepsToItsPromise(t *testing.T) {
	t.Parallel()
	var set Blocks
	set.Add(4)
	for _, size := range []int64{-8192, 8191, 4 * PageSize} {
		if _, err := NewWriter(io.Discard, size, &set); err == nil {
			t.Errorf("block 4 of a file of %d bytes was accepted", size)
		}
	}
	w, err := NewWriter(io.Discard, 5*PageSize, &set)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err == nil {
		t.Error("a missing page was not noticed")
	}
	for _, n := range []int{1, PageSize - 1, 2 * PageSize} {
		if _, err := w.Write(make([]byte, n)); err == nil {
			t.Errorf("%d bytes were accepted for a page", n)
		}
	}
	if _, err := w.Write(page(1)); err != nil || w.Close() != nil {
		t.Errorf("%v", err)
	}
}

func TestBlocksAreASet(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	var a, b Blocks
	want := map[uint32]bool{}
	for range 5000 {
		for _, s := range []*Blocks{&a, &b} {
			n := uint32(r.IntN(3 << 17))
			if r.IntN(10) == 0 {
				n += 1 << 24
			}
			s.Add(n)
			want[n] = true
		}
	}
	for n := range b.All() {
		if b.Add(n) {
			t.Fatalf("block %d is new twice", n)
		}
	}
	var few Blocks
	few.AddAll(&b, 5000)
	for n := range few.All() {
		if n >= 5000 || !b.Has(n) {
			t.Fatalf("%d was added", n)
		}
	}
	a.AddAll(&b, math.MaxInt64)
	got := slices.Collect(a.All())
	if len(got) != len(want) || a.Len() != len(want) || !slices.IsSorted(got) {
		t.Fatalf("%d blocks in order, Len says %d, want %d", len(got), a.Len(), len(want))
	}
	for _, n := range got {
		if !want[n] || !a.Has(n) {
			t.Fatalf("%d is in the set", n)
		}
	}
	if a.Has(1<<31) || (&Blocks{}).Has(0) {
		t.Error("a block that was not added is in a set")
	}
	if m := a.Memory(); m > 4<<20 {
		t.Errorf("the set takes %d bytes", m)
	}
}

// FuzzReader reads any bytes: what is accepted is what the writer writes.
func FuzzReader(f *testing.F) {
	for _, b := range [][]byte{write(f, 0), write(f, 3), write(f, 35, 0, 25), write(f, 4, 0, 1, 2, 3)} {
		f.Add(b, uint16(len(b)), uint8(1))
		f.Add(b[:len(b)-1], uint16(len(b)), uint8(3))
	}
	f.Fuzz(func(t *testing.T, b []byte, length uint16, pagesAtOnce uint8) {
		in, err := NewReader(bytes.NewReader(b), int64(length), math.MaxInt64)
		if err != nil {
			return
		}
		var out bytes.Buffer
		w, err := NewWriter(&out, in.FileSize(), in.Blocks())
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, max(1, int(pagesAtOnce))*PageSize)
		for {
			first, pages, err := in.Next(buf)
			if err == io.EOF {
				break
			}
			if err != nil {
				return
			}
			for i := range uint32(pages) {
				if !in.Blocks().Has(first + i) {
					t.Fatalf("page %d is not in the list", first+i)
				}
			}
			if _, err := w.Write(buf[:pages*PageSize]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil || !bytes.Equal(out.Bytes(), b) || len(b) != int(length) {
			t.Errorf("%d bytes of %d, read as %d: %v", out.Len(), len(b), length, err)
		}
	})
}
