package catalog

import (
	"fmt"
	"io/fs"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
)

func TestAListOfFilesReturnsWhatWasAdded(t *testing.T) {
	t.Parallel()
	var l Files
	want := []File{
		{Name: "", Type: Directory, Mode: 0o700, MTime: -1},
		{Name: "base/5/112", Mode: 0o600, Part: 3, Size: 1 << 40, MTime: 1e18, Hash: [16]byte{1, 15: 2}},
		{Name: "base/51/12", Mode: 0o640, Corrupt: &CorruptBlocks{1, []uint32{7}}},
		{Name: "base/5", Type: Directory},
		{Name: "base", Type: Directory},
		{Name: "x", Type: Symlink, Mode: 0o777, Link: "/elsewhere"},
		{Name: strings.Repeat("d/", 2000) + strings.Repeat("b", maxBase)},
	}
	for i := range 3 * blockFiles { // beyond one block of each kind
		want = append(want, File{Name: fmt.Sprintf("base/%d/%d", i%7, i), Mode: fs.FileMode(i % 0o1000), Size: int64(i), Part: int32(i % 5)})
	}
	for i := range want {
		want[i].FileSize = want[i].Size // of a whole file
	}
	for i, f := range want {
		if _, _, found := l.Find(f.Name); found {
			t.Fatalf("%q is found before it was added", f.Name)
		}
		if at, err := l.Add(f); err != nil || at != i {
			t.Fatalf("Add(%q) = %d, %v", f.Name, at, err)
		}
	}
	n := 0
	for i, f := range l.All() {
		if i != n || !reflect.DeepEqual(f, want[i]) {
			t.Fatalf("%d: %+v, want %+v", i, f, want[n])
		}
		if at, found, ok := l.Find(f.Name); !ok || at != i || !reflect.DeepEqual(found, f) {
			t.Fatalf("Find(%q) = %d, %+v, %t", f.Name, at, found, ok)
		}
		n++
	}
	if n != len(want) || l.Len() != n {
		t.Errorf("%d entries, %d are counted, want %d", n, l.Len(), len(want))
	}
	for _, name := range []string{"base/5/11", "base/5/1121", "base/5/", "5/112", "y"} {
		if i, _, ok := l.Find(name); ok {
			t.Errorf("%q is found at %d", name, i)
		}
	}
}

func TestFilesThatVanishedAreLeftOutUnlessTheyWereWrittenAfterAll(t *testing.T) {
	t.Parallel()
	var l Files
	for i, name := range []string{"a", "b", "c", "d"} {
		if _, err := l.Add(File{Name: name, Part: int32(i % 2)}); err != nil {
			t.Fatal(err)
		}
	}
	l.Drop(0)
	l.Drop(2)
	l.Wrote(2, 8192, [16]byte{5})
	var got []string
	for _, f := range l.All() {
		got = append(got, fmt.Sprintf("%s:%d:%d", f.Name, f.Size, f.Hash[0]))
	}
	if text := strings.Join(got, " "); text != "b:0:0 c:8192:5 d:0:0" || l.Len() != 3 {
		t.Errorf("%s, %d", text, l.Len())
	}
	if parts := fmt.Sprint(l.byPart(3)); parts != "[[2] [1 3] []]" {
		t.Error(parts)
	}
}

func TestANilListOfFilesIsEmpty(t *testing.T) {
	t.Parallel()
	var l *Files
	if _, _, ok := l.Find("x"); ok || l.Len() != 0 {
		t.Error("it has something")
	}
	for range l.All() {
		t.Error("it yields something")
	}
}

func TestAListOfFilesIsBounded(t *testing.T) {
	t.Parallel()
	var l Files
	if _, err := l.Add(File{Name: strings.Repeat("b", maxBase+1)}); err == nil {
		t.Error("a name that no file system takes was added")
	}
	for i := range 2 {
		if _, err := l.Add(File{Name: fmt.Sprint(i)}); (err != nil) != (i == 1) {
			t.Errorf("file %d: %v", i, err)
		}
		l.memory = maxFilesMemory
	}
}

// What a list of a million files takes is what docs/architecture.md promises.
func TestAListOfFilesTakesLittleMemory(t *testing.T) {
	const n = 1_000_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var l Files
	for i := range n {
		name := fmt.Sprintf("base/%d/%d", i/100_000, 10_000_000+i)
		if _, err := l.Add(File{Name: name, Size: 8192, Hash: [16]byte{1}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, ok := l.Find("base/9/10900000"); !ok {
		t.Error("a file is not found")
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n; each > 80 {
		t.Errorf("%d bytes for each file", each)
	}
	runtime.KeepAlive(&l)
}

// WAL-G's first sentinels hold the list of files. One of a large cluster has hundreds of megabytes.
func TestALargeSentinelOfVersion1IsReadPieceByPiece(t *testing.T) {
	const n = 20_000
	var text strings.Builder
	text.WriteString(`{"LSN":33554472,"FinishLSN":33554688,"Files":{`)
	for i := range n {
		fmt.Fprintf(&text, `"/base/5/%d":{"IsIncremented":false,"IsSkipped":false,"MTime":"2018-01-01T00:00:00Z","CorruptBlocks":null},`, i)
	}
	text.WriteString(`"/PG_VERSION":{}},"TarFileSets":{"part_001.tar.lz4":["/base/5/1"]},"PgVersion":90603}`)
	s := storagetest.NewMemory()
	put(t, s, sentinelKey(first), text.String())
	for _, name := range []string{"part_001.tar.lz4", "pg_control.tar.lz4"} {
		put(t, s, backupDir(first)+partsDir+name, "x")
	}
	c := open(t, s)
	b, err := c.Find(t.Context(), "LATEST")
	if err != nil || b.PgVersion != 90603 || b.FinishLSN != 33554688 {
		t.Fatalf("%+v, %v", b, err)
	}
	l, err := c.List(t.Context(), b)
	if err != nil || l.Files.Len() != n+1 || len(l.Parts) != 1 {
		t.Errorf("%d files, %d parts, %v", l.Files.Len(), len(l.Parts), err)
	}
	if _, _, ok := l.Files.Find("base/5/19999"); !ok {
		t.Error("a file is missing")
	}
}
