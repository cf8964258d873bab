package testenv

import (
	"fmt"
	"hash/fnv"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// DiskJournal is what has happened on a [FaultDisk], in order.
type DiskJournal struct {
	Events []DiskEvent
	data   []byte
}

// Loss says what a power cut takes of what was not synced.
type Loss struct {
	kind lossKind
	seed uint64
}

type lossKind int

const (
	loseAll lossKind = iota
	loseData
	zeroData
	loseSome
	loseNothing
)

// LoseAll is all that POSIX promises: a file has the content of its last fsync, a directory the entries of its own last
// fsync, whatever was renamed or removed since.
func LoseAll() Loss { return Loss{kind: loseAll} }

// LoseData is a file system whose directories came through and whose data did not, as ext4 and XFS show it: every name is as
// it was last, but a file has the content of its last fsync, or none.
func LoseData() Loss { return Loss{kind: loseData} }

// ZeroData is LoseData with zeros instead of what was not synced, to the length that the file had.
func ZeroData() Loss { return Loss{kind: zeroData} }

// LoseSome decides for each file and directory by chance whether its last state came through, that of its last fsync, or, of
// a file, zeros.
func LoseSome(seed uint64) Loss { return Loss{loseSome, seed} }

// LoseNothing is the disk as it is seen.
func LoseNothing() Loss { return Loss{kind: loseNothing} }

// String names the loss in messages.
func (l Loss) String() string {
	if l.kind == loseSome {
		return fmt.Sprintf("some is lost, by seed %d", l.seed)
	}
	return [...]string{"all that was not synced is lost", "names are there, data is lost", "names are there, data is zeros", "", "nothing is lost"}[l.kind]
}

// of is the loss of one inode.
func (l Loss) of(n *diskNode) lossKind {
	if l.kind != loseSome {
		return l.kind
	}
	h := fnv.New64a()
	fmt.Fprint(h, l.seed, " ", n.id)
	return []lossKind{loseAll, loseData, zeroData, loseNothing}[h.Sum64()>>7%4]
}

// PowerCut is the disk at one moment: what is seen, and what would be left.
type PowerCut struct {
	journal *DiskJournal
	done    int // events
	nodes   map[int64]*diskNode
}

// state is what an inode holds, in one of its two lives: as it is seen, and as it is safe.
type state struct {
	mode     fs.FileMode // permission bits
	uid, gid uint32
	data     []byte           // of a file
	entries  map[string]int64 // of a directory
}

type diskNode struct {
	id         int64
	kind       fs.FileMode // type bits
	target     string      // of a link
	seen, safe state
	dirty      bool // seen was changed since the last fsync
	changes    int  // of what the file holds, in either life
}

// Settled is the text of a mark from which on all that was done before counts as durable, as if the disk had been synced.
const Settled = "settled"

// End is the disk after all events.
func (j *DiskJournal) End() *PowerCut {
	p := j.Replay()
	for _, ok := p.Next(); ok; _, ok = p.Next() {
	}
	return p
}

// Replay begins at the empty disk.
func (j *DiskJournal) Replay() *PowerCut {
	root := &diskNode{id: 1, kind: fs.ModeDir, seen: state{entries: map[string]int64{}}, safe: state{entries: map[string]int64{}}}
	return &PowerCut{journal: j, nodes: map[int64]*diskNode{1: root}}
}

// Done is how many events have happened.
func (p *PowerCut) Done() int { return p.done }

// Next lets one more event happen and returns it; false at the end of the journal.
func (p *PowerCut) Next() (DiskEvent, bool) {
	if p.done == len(p.journal.Events) {
		return DiskEvent{}, false
	}
	e := p.journal.Events[p.done]
	p.done++
	p.apply(e)
	return e, true
}

func (p *PowerCut) apply(e DiskEvent) {
	n := p.nodes[e.ID]
	switch e.Op {
	case "create", "mkdir", "symlink":
		p.create(e)
	case "write":
		n.dirty = true
		n.changes++
		if missing := e.Off + e.Size - int64(len(n.seen.data)); missing > 0 {
			n.seen.data = append(n.seen.data, make([]byte, missing)...)
		}
		copy(n.seen.data[e.Off:], p.journal.data[e.At:e.At+e.Size])
	case "truncate":
		n.dirty = true
		n.changes++
		n.seen.data = append(n.seen.data[:min(e.Size, int64(len(n.seen.data)))], make([]byte, max(0, e.Size-int64(len(n.seen.data))))...)
	case "chmod":
		n.dirty = true
		n.seen.mode, n.seen.uid, n.seen.gid = fs.FileMode(e.Mode), e.UID, e.GID
	case "link":
		p.nodes[e.Parent].seen.entries[e.Name] = e.ID
	case "rename":
		from, to := p.nodes[e.Parent].seen.entries, p.nodes[e.NewParent].seen.entries
		id := from[e.Name]
		delete(from, e.Name)
		to[e.NewName] = id
	case "unlink", "rmdir":
		delete(p.nodes[e.Parent].seen.entries, e.Name)
	case "mark":
		if e.Name == Settled {
			p.settle()
		}
	case "fsync":
		if n.dirty {
			n.changes++
			data := n.safe.data
			n.safe = n.seen
			n.safe.data = append(data[:0], n.seen.data...)
			n.dirty = false
		}
	case "fsyncdir":
		n.safe = n.seen
		n.safe.entries = maps.Clone(n.seen.entries)
	}
}

func (p *PowerCut) create(e DiskEvent) {
	n := &diskNode{id: e.ID, target: e.Target, seen: state{mode: fs.FileMode(e.Mode), uid: e.UID, gid: e.GID}}
	switch e.Op {
	case "mkdir":
		n.kind, n.seen.entries = fs.ModeDir, map[string]int64{}
	case "symlink":
		n.kind = fs.ModeSymlink
	}
	n.safe = n.seen
	n.safe.entries = map[string]int64{}
	p.nodes[e.ID] = n
	if e.Parent != 0 {
		p.nodes[e.Parent].seen.entries[e.Name] = e.ID
	}
}

// entries are the names in a directory after the cut.
func (l Loss) entries(n *diskNode) map[string]int64 {
	if l.of(n) == loseAll {
		return n.safe.entries
	}
	return n.seen.entries
}

// content is what a file holds after the cut.
func (l Loss) content(n *diskNode) []byte {
	if !n.dirty {
		return n.safe.data
	}
	switch l.of(n) {
	case zeroData:
		left := make([]byte, len(n.seen.data))
		copy(left, n.safe.data)
		return left
	case loseNothing:
		return n.seen.data
	}
	return n.safe.data
}

func (l Loss) attributes(n *diskNode) state {
	if l.of(n) == loseAll {
		return n.safe
	}
	return n.seen
}

// file is what is left of an inode.
func (l Loss) file(n *diskNode) LeftFile {
	a := l.attributes(n)
	f := LeftFile{Mode: n.kind | a.mode, UID: a.uid, GID: a.gid, Content: []byte(n.target), State: ContentState{n.id, l.of(n), n.changes}}
	if n.kind == 0 {
		f.Content = l.content(n)
	}
	return f
}

// LeftFile is what a power cut leaves under one name.
type LeftFile struct {
	Mode     fs.FileMode // type and permission bits
	UID, GID uint32
	Content  []byte // of a file; of a link its target; not to be changed, and valid until the next event only
	// State is equal for equal content of one journal; not the other way round.
	State ContentState
}

// ContentState names what a file holds after a cut without looking at it, so that it need not be compared again.
type ContentState struct {
	node    int64
	loss    lossKind
	changes int
}

// find follows a path; nil if it is not there after the cut.
func (p *PowerCut) find(l Loss, name string) *diskNode {
	n := p.nodes[1]
	for element := range strings.FieldsFuncSeq(name, func(r rune) bool { return r == '/' }) {
		id, ok := l.entries(n)[element]
		if !ok {
			return nil
		}
		n = p.nodes[id]
	}
	return n
}

// Holds tells whether a path is there after a cut.
func (p *PowerCut) Holds(l Loss, name string) bool { return p.find(l, name) != nil }

// File is what is there under a path after a cut; false for nothing.
func (p *PowerCut) File(l Loss, name string) (LeftFile, bool) {
	n := p.find(l, name)
	if n == nil {
		return LeftFile{}, false
	}
	return l.file(n), true
}

// Names are the entries of a directory after a cut.
func (p *PowerCut) Names(l Loss, dir string) []string {
	n := p.find(l, dir)
	if n == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(l.entries(n)))
}

// Left yields everything below a directory after a cut, by names relative to it; nothing if the directory is not there.
func (p *PowerCut) Left(l Loss, dir string) iter.Seq2[string, LeftFile] {
	return func(yield func(string, LeftFile) bool) {
		if n := p.find(l, dir); n != nil {
			p.walk(l, n, "", yield)
		}
	}
}

func (p *PowerCut) walk(l Loss, n *diskNode, name string, yield func(string, LeftFile) bool) bool {
	if name != "" && !yield(name, l.file(n)) {
		return false
	}
	if !n.kind.IsDir() {
		return true
	}
	if name != "" {
		name += "/"
	}
	for child, id := range l.entries(n) {
		if !p.walk(l, p.nodes[id], name+child, yield) {
			return false
		}
	}
	return true
}

// settle makes everything durable.
func (p *PowerCut) settle() {
	for _, n := range p.nodes {
		op := "fsync"
		if n.kind.IsDir() {
			op = "fsyncdir"
		}
		p.apply(DiskEvent{Op: op, ID: n.id})
	}
}

// Lay writes what a cut leaves of a directory of the disk into an existing, empty directory, with the owners.
func (p *PowerCut) Lay(t testing.TB, l Loss, dir, to string) {
	t.Helper()
	modes := map[string]fs.FileMode{}
	for name, f := range p.Left(l, dir) {
		at := filepath.Join(to, name)
		var err error
		switch f.Mode.Type() {
		case fs.ModeDir:
			err = os.Mkdir(at, 0o700)
			modes[at] = f.Mode.Perm()
		case fs.ModeSymlink:
			err = os.Symlink(string(f.Content), at)
		default:
			err = os.WriteFile(at, f.Content, 0o600)
			modes[at] = f.Mode.Perm()
		}
		if err == nil && os.Geteuid() == 0 {
			err = os.Lchown(at, int(f.UID), int(f.GID))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for at, mode := range modes {
		if err := os.Chmod(at, mode); err != nil {
			t.Fatal(err)
		}
	}
}
