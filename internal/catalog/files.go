package catalog

import (
	"fmt"
	"hash/maphash"
	"io/fs"
	"iter"
	"strings"
)

// Files is the list of a backup's entries. It is what a backup and a restore keep in memory for each file of the cluster, hence
// made for millions: 40 bytes and the last element of the name; plus 8 for the time, which only a backup needs, or 8 to 16 for
// looking it up by name, which only a restore does. All of that is in blocks without pointers that do not move when the list
// grows. The directory is kept once for all that lies in it, and what few files have (the target of a link, corrupt blocks) aside.
//
// The zero value is an empty list. Place, Wrote and Drop may be called for different entries by different goroutines at once,
// everything else by one alone.
type Files struct {
	blocks []*[blockFiles]fileRecord
	mtimes []*[blockFiles]int64 // nil for a block whose entries have none
	sizes  []*[blockFiles]int64 // of the whole files where a delta has increments of them; nil for a block without
	n      int

	names [][]byte // the last elements of names, one after the other
	dirs  []string
	dirOf map[string]uint32 // index into dirs

	links   map[int]string
	corrupt map[int]*CorruptBlocks

	index   []uint32 // of names: open addressing, position + 1; 0 is free
	indexed int      // how many of the first entries are in it
	seed    maphash.Seed

	memory int64 // about what all of it takes, in bytes
}

// fileRecord is one entry. The order of its fields leaves no gaps.
type fileRecord struct {
	hash    [16]byte
	size    int64
	name    uint32 // where the last element of the name begins: block * nameBlock + offset
	dir     uint32
	part    int32
	mode    uint16 // permission bits, and above them how the file is stored
	nameLen uint8
	kind    FileType
}

const (
	blockFiles = 4096
	// recordMemory is what an entry takes besides its name, in bytes: record, time, and place in the index.
	recordMemory = 64
	nameBlock    = 64 << 10
	// maxBase is the longest element of a name in bytes (NAME_MAX).
	maxBase = 255
	// maxFilesMemory bounds the list in memory, in bytes: about 14 million files. A backup of more is refused when it is taken,
	// and an archive cannot make a restore take more.
	maxFilesMemory = 1 << 30
	// besides is about what Go's maps and the like take for one entry of theirs, in bytes.
	besides = 64
)

// storedBits is where [File.Stored] begins in a record's mode.
const storedBits = 12

// dropped is the type of an entry that is not in the backup.
const dropped FileType = 255

// Add appends an entry and returns its position. Its name, as in [File.Name], is not compared with those that are there.
func (l *Files) Add(f File) (int, error) {
	dir, base := splitName(f.Name)
	if len(base) > maxBase {
		return 0, fmt.Errorf("the name of the file %.100q… is too long for a file system: an element of it has %d bytes", f.Name, len(base))
	}
	l.memory += recordMemory + int64(len(base))
	d, known := l.dirOf[dir]
	if !known {
		if l.dirOf == nil {
			l.dirOf, l.links, l.corrupt = map[string]uint32{}, map[int]string{}, map[int]*CorruptBlocks{}
		}
		d = uint32(len(l.dirs))
		dir = strings.Clone(dir)
		l.dirs, l.dirOf[dir] = append(l.dirs, dir), d
		l.memory += int64(len(dir)) + besides
	}
	i := l.n
	if f.Link != "" {
		l.links[i] = strings.Clone(f.Link)
		l.memory += int64(len(f.Link)) + besides
	}
	l.SetCorrupt(i, f.Corrupt)
	if l.memory > maxFilesMemory {
		return 0, fmt.Errorf("the list of files takes more than %d MiB of memory after %d files", maxFilesMemory>>20, l.n)
	}
	if i%blockFiles == 0 {
		l.blocks, l.mtimes = append(l.blocks, new([blockFiles]fileRecord)), append(l.mtimes, nil)
		l.sizes = append(l.sizes, nil)
	}
	if b := i / blockFiles; f.MTime != 0 {
		if l.mtimes[b] == nil {
			l.mtimes[b] = new([blockFiles]int64)
		}
		l.mtimes[b][i%blockFiles] = f.MTime
	}
	*l.record(i) = fileRecord{
		hash: f.Hash, size: f.Size, name: l.keepName(base), dir: d, part: f.Part, mode: uint16(f.Mode.Perm()) | uint16(f.Stored)<<storedBits,
		nameLen: uint8(len(base)), kind: f.Type,
	}
	l.n++
	return i, nil
}

// splitName divides a name at its last slash.
func splitName(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}

func (l *Files) keepName(base string) uint32 {
	last := len(l.names) - 1
	if last < 0 || len(l.names[last])+len(base) > nameBlock {
		l.names = append(l.names, make([]byte, 0, nameBlock))
		last++
	}
	at := len(l.names[last])
	l.names[last] = append(l.names[last], base...)
	return uint32(last*nameBlock + at)
}

func (l *Files) record(i int) *fileRecord { return &l.blocks[i/blockFiles][i%blockFiles] }

// base is the last element of a name.
func (l *Files) base(r *fileRecord) []byte {
	at := int(r.name % nameBlock)
	return l.names[r.name/nameBlock][at : at+int(r.nameLen)]
}

// At returns the entry at a position.
func (l *Files) At(i int) File {
	r := l.record(i)
	name := string(l.base(r))
	if dir := l.dirs[r.dir]; dir != "" {
		name = dir + "/" + name
	}
	return l.file(i, name)
}

func (l *Files) file(i int, name string) File {
	r := l.record(i)
	f := File{
		Name: name, Type: r.kind, Mode: fs.FileMode(r.mode).Perm(), Stored: Stored(r.mode >> storedBits), Part: r.part, Size: r.size, Hash: r.hash,
		Link: l.links[i], Corrupt: l.corrupt[i],
	}
	if times := l.mtimes[i/blockFiles]; times != nil {
		f.MTime = times[i%blockFiles]
	}
	f.FileSize = f.Size
	if sizes := l.sizes[i/blockFiles]; sizes != nil && f.Stored == Increment {
		f.FileSize = sizes[i%blockFiles]
	}
	return f
}

// Size is the size of the entry at a position in bytes.
func (l *Files) Size(i int) int64 { return l.record(i).size }

// All yields positions and entries in the order in which they were added, without those that were dropped. A nil list has none.
func (l *Files) All() iter.Seq2[int, File] {
	return func(yield func(int, File) bool) {
		for i := range l.end() {
			if l.record(i).kind != dropped && !yield(i, l.At(i)) {
				return
			}
		}
	}
}

// end is the position after the last entry.
func (l *Files) end() int {
	if l == nil {
		return 0
	}
	return l.n
}

// Len counts the entries, without those that were dropped. A nil list has none.
func (l *Files) Len() int {
	n := 0
	for i := range l.end() {
		if l.record(i).kind != dropped {
			n++
		}
	}
	return n
}

// Place notes which part holds the entry at a position.
func (l *Files) Place(i, part int) { l.record(i).part = int32(part) }

// Wrote notes what was written of the regular file at a position, of which the backup has everything.
func (l *Files) Wrote(i int, size int64, hash [16]byte) { l.wrote(i, Whole, size, hash) }

// AsDelta prepares the list for a backup that has increments: WroteIncrement may be called from now on, and nothing added.
func (l *Files) AsDelta() {
	for b := range l.sizes {
		l.sizes[b] = new([blockFiles]int64)
	}
	l.memory += int64(l.n) * 8
}

// WroteIncrement notes that an increment of size bytes was written of the regular file at a position, which has fileSize bytes.
func (l *Files) WroteIncrement(i int, size, fileSize int64, hash [16]byte) {
	l.wrote(i, Increment, size, hash)
	l.sizes[i/blockFiles][i%blockFiles] = fileSize
}

// Skipped notes that nothing was written of the regular file at a position, which has fileSize bytes.
func (l *Files) Skipped(i int, fileSize int64) { l.wrote(i, Elsewhere, fileSize, [16]byte{}) }

func (l *Files) wrote(i int, how Stored, size int64, hash [16]byte) {
	r := l.record(i)
	r.kind, r.size, r.hash = Regular, size, hash
	r.mode = r.mode&(1<<storedBits-1) | uint16(how)<<storedBits
}

// Drop takes the entry at a position out of the backup: it had vanished when it was to be copied.
func (l *Files) Drop(i int) { l.record(i).kind = dropped }

// SetCorrupt notes the corrupt blocks of the file at a position; nil is none.
func (l *Files) SetCorrupt(i int, c *CorruptBlocks) {
	if c != nil {
		l.corrupt[i] = c
		l.memory += int64(4*len(c.Blocks)) + besides
	}
}

// placed tells whether one of the backup's parts has the entry.
func (r *fileRecord) placed() bool {
	return r.kind != dropped && Stored(r.mode>>storedBits) != Elsewhere
}

// byPart returns the positions of the entries of each of the first parts.
func (l *Files) byPart(parts int) [][]uint32 {
	count := make([]int, parts+1)
	for i := range l.n {
		if r := l.record(i); r.placed() {
			count[r.part]++
		}
	}
	lists := make([][]uint32, parts)
	for p := range lists {
		lists[p] = make([]uint32, 0, count[p])
	}
	for i := range l.n {
		if r := l.record(i); r.placed() {
			lists[r.part] = append(lists[r.part], uint32(i))
		}
	}
	return lists
}

// Find returns the entry of a name and its position. A nil list has none.
func (l *Files) Find(name string) (i int, f File, ok bool) {
	if l.end() == 0 {
		return 0, File{}, false
	}
	l.catchUp()
	dir, base := splitName(name)
	for slot := l.slot(dir, base); l.index[slot] != 0; slot = (slot + 1) % len(l.index) {
		i := int(l.index[slot] - 1)
		if r := l.record(i); int(r.nameLen) == len(base) && string(l.base(r)) == base && l.dirs[r.dir] == dir {
			return i, l.file(i, name), true
		}
	}
	return 0, File{}, false
}

// catchUp puts entries into the index that were added since the last time. It is never more than half full.
func (l *Files) catchUp() {
	if 2*l.n > len(l.index) {
		size := max(1024, len(l.index))
		for 2*l.n > size {
			size *= 2
		}
		l.index, l.indexed, l.seed = make([]uint32, size), 0, maphash.MakeSeed() // names of an archive must not choose their slots
	}
	for ; l.indexed < l.n; l.indexed++ {
		r := l.record(l.indexed)
		slot := l.slot(l.dirs[r.dir], string(l.base(r)))
		for l.index[slot] != 0 {
			slot = (slot + 1) % len(l.index)
		}
		l.index[slot] = uint32(l.indexed + 1)
	}
}

func (l *Files) slot(dir, base string) int {
	var h maphash.Hash
	h.SetSeed(l.seed)
	_, _ = h.WriteString(dir) // a hash never fails
	_ = h.WriteByte('/')
	_, _ = h.WriteString(base)
	return int(h.Sum64() & uint64(len(l.index)-1))
}
