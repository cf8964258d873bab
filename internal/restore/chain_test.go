package restore

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
	"gitlab.com/walden-pg/walden/pkg/increment"
)

const pageSize = increment.PageSize

// memorySink keeps what a restore writes and counts how often each page is written.
type memorySink struct {
	mu    sync.Mutex
	files map[string][]byte
	dirs  map[string]bool
	pages map[string]map[int64]int
}

func newMemorySink() *memorySink {
	return &memorySink{files: map[string][]byte{}, dirs: map[string]bool{}, pages: map[string]map[int64]int{}}
}

func (s *memorySink) Dir(name string, _ *tar.Header) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirs[name] = true
	return nil
}

func (s *memorySink) Link(string, string, *tar.Header) error { return nil }

func (s *memorySink) File(name string, _ *tar.Header, content io.Reader) error {
	b, err := io.ReadAll(content)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pages[name] != nil {
		return &SinkError{fmt.Errorf("%s is written as a whole, and was begun in pages", name)}
	}
	s.files[name] = b
	return err
}

func (s *memorySink) Pages(name string, h *tar.Header, size int64, write func(io.WriterAt) error) error {
	s.mu.Lock()
	if h != nil {
		s.files[name], s.pages[name] = bytes.Repeat([]byte{0xEE}, int(size)), map[int64]int{} // zeros, too, must be written
	}
	f := memoryFile{s.files[name], s.pages[name]}
	s.mu.Unlock()
	if f.writes == nil || int64(len(f.b)) != size {
		return &SinkError{fmt.Errorf("%s with %d bytes has not been begun so", name, size)}
	}
	return write(f)
}

type memoryFile struct {
	b      []byte
	writes map[int64]int
}

func (f memoryFile) WriteAt(b []byte, offset int64) (int, error) {
	if len(b)%pageSize != 0 || offset%pageSize != 0 || int(offset)+len(b) > len(f.b) {
		return 0, &SinkError{fmt.Errorf("%d bytes are written at %d of %d", len(b), offset, len(f.b))}
	}
	for at := int64(0); at < int64(len(b)); at += pageSize {
		f.writes[(offset+at)/pageSize]++
	}
	return copy(f.b[offset:], b), nil
}

// clusterModel is a cluster that changes between backups: name → content.
type clusterModel struct {
	t     testing.TB
	r     *rand.Rand
	files map[string][]byte
	fills int // how many pages were made: each one is of its own
}

func (m *clusterModel) page() []byte {
	m.fills++
	return bytes.Repeat(fmt.Appendf(nil, "%07d\n", m.fills), pageSize/8)
}

func (m *clusterModel) newPages(n int) []byte {
	var b []byte
	for range n {
		b = append(b, m.page()...)
	}
	return b
}

// relations are the files with increments, others those that are always whole.
var (
	relations = []string{"base/5/16384", "base/5/16385", "base/5/16385.1", "base/1/1259", "pg_tblspc/16400/PG_15_202209061/5/16401", "global/1262"}
	others    = []string{"PG_VERSION", "base/5/16384_fsm", "base/5/PG_VERSION", "postgresql.conf"}
)

// stored is one file of a backup.
type stored struct {
	how  string // "whole", "increment", "skipped"
	body []byte // in the tar
}

// full makes the files of a full backup.
func (m *clusterModel) full() map[string]stored {
	backup := map[string]stored{}
	for _, name := range slices.Concat(relations, others) {
		if m.r.IntN(4) > 0 {
			m.files[name] = m.newPages(m.r.IntN(7))
		}
	}
	for name, b := range m.files {
		backup[name] = stored{"whole", b}
	}
	return backup
}

// delta changes the cluster and makes the files of a backup of what changed.
func (m *clusterModel) delta() map[string]stored {
	backup := map[string]stored{}
	for _, name := range slices.Concat(relations, others) {
		old, had := m.files[name]
		switch c := m.r.IntN(12); {
		case c < 3 && had:
			backup[name] = stored{"skipped", nil}
			continue
		case c == 3: // dropped, or never there
			delete(m.files, name)
			continue
		case !had && c < 8:
			continue
		case !had, c == 4, !slices.Contains(relations, name): // new; or of a kind, or with a page, that cannot be an increment
			m.files[name] = m.newPages(m.r.IntN(7))
			backup[name] = stored{"whole", m.files[name]}
			continue
		}
		now := slices.Clone(old[:min(len(old), m.r.IntN(9)*pageSize)]) // perhaps shorter
		var changed increment.Blocks
		if m.r.IntN(5) == 0 { // removed and made again under its name
			for i := range len(now) / pageSize {
				copy(now[i*pageSize:], m.page())
				changed.Add(uint32(i))
			}
		}
		for i := range len(now) / pageSize {
			switch m.r.IntN(5) {
			case 0:
				copy(now[i*pageSize:], m.page())
				changed.Add(uint32(i))
			case 1:
				clear(now[i*pageSize : (i+1)*pageSize]) // a page of zeros is a page
				changed.Add(uint32(i))
			}
		}
		if len(now) == len(old) || m.r.IntN(3) == 0 {
			for range m.r.IntN(4) {
				switch i := len(now) / pageSize; {
				case i*pageSize >= len(old) && m.r.IntN(3) == 0: // never written, and not in WAL-G's record of changed blocks
					now = append(now, make([]byte, pageSize)...)
				default:
					now = append(now, m.page()...)
					changed.Add(uint32(i))
				}
			}
		}
		m.files[name] = now
		if len(now) == 0 { // no pages: WAL-G stores it whole
			backup[name] = stored{"whole", nil}
			continue
		}
		var b bytes.Buffer
		w, err := increment.NewWriter(&b, int64(len(now)), &changed)
		if err != nil {
			m.t.Fatal(err)
		}
		for i := range changed.All() {
			if _, err := w.Write(now[int(i)*pageSize : int(i+1)*pageSize]); err != nil {
				m.t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			m.t.Fatal(err)
		}
		backup[name] = stored{"increment", b.Bytes()}
	}
	return backup
}

// chainName is the name of the n-th backup of a chain, counting from 0.
func chainName(n int) string {
	name := fmt.Sprintf("base_0000000100000000000000%02X", 2*n+2)
	if n > 0 {
		name += fmt.Sprintf("_D_0000000100000000000000%02X", 2*n)
	}
	return name
}

func chainLSN(n int) int { return (2*n+2)<<24 + 0x28 }

// put stores the n-th backup of a chain, in one of the ways in which WAL-G does or did.
func (m *clusterModel) put(s storage.Store, n int, files map[string]stored) {
	m.t.Helper()
	remote := n == 0 && m.r.IntN(4) == 0
	slash, names := "/", slices.Sorted(maps.Keys(files))
	if remote {
		slash = ""
	}
	m.r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })

	documents := map[string]any{}
	sets := map[string][]string{}
	dirs := map[string]bool{"": true, "gone" + fmt.Sprint(n): true}
	var parts [3][]entry
	tarNames := []string{"part_001.tar", "part_007.tar.", "copy_003.tar"}
	for _, name := range names {
		f := files[name]
		documents[slash+name] = map[string]any{"IsSkipped": f.how == "skipped", "IsIncremented": f.how == "increment", "MTime": "2026-11-22T07:00:25.879225784Z"}
		if f.how == "skipped" {
			continue
		}
		p := m.r.IntN(len(parts))
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			dirs[dir] = true
		}
		parts[p] = append(parts[p], file(slash+name, string(f.body)))
		sets[tarNames[p]] = append(sets[tarNames[p]], slash+name)
	}
	for name := range dirs {
		parts[0] = append(parts[0], dir(slash+name))
		if !remote {
			documents["/"+name] = map[string]any{}
			sets[tarNames[0]] = append(sets[tarNames[0]], "/"+name)
		}
	}
	name := chainName(n)
	for i, entries := range parts {
		if len(entries) > 0 {
			put(m.t, s, "basebackups_005/"+name+"/tar_partitions/"+tarNames[i], tarOf(m.t, entries...))
		}
	}
	lists := map[string]any{"Files": documents}
	if !remote && m.r.IntN(4) > 0 {
		lists["TarFileSets"] = sets
	}
	sentinel := map[string]any{"LSN": chainLSN(n), "FinishLSN": chainLSN(n) + 100, "PgVersion": 150020, "Version": 2}
	if n > 0 {
		parent := map[bool]string{true: "DeltaLSN", false: "DeltaFromLSN"}[m.r.IntN(3) > 0]
		maps.Copy(sentinel, map[string]any{parent: chainLSN(n - 1), "DeltaFrom": chainName(n - 1), "DeltaFullName": chainName(0), "DeltaCount": n})
	}
	if m.r.IntN(3) == 0 { // version 1
		delete(sentinel, "Version")
		maps.Copy(sentinel, lists)
	} else if n > 0 || m.r.IntN(4) > 0 {
		m.putJSON(s, "basebackups_005/"+name+"/files_metadata.json", lists)
	}
	put(m.t, s, "basebackups_005/"+name+"/tar_partitions/pg_control.tar", tarOf(m.t, file("/global/pg_control", string(control(cluster)))))
	put(m.t, s, "basebackups_005/"+name+"/tar_partitions/backup_label.tar", tarOf(m.t, file("backup_label", fmt.Sprint("label ", n))))
	m.putJSON(s, "basebackups_005/"+name+"_backup_stop_sentinel.json", sentinel)
}

func (m *clusterModel) putJSON(s storage.Store, key string, v any) {
	m.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		m.t.Fatal(err)
	}
	put(m.t, s, key, b)
}

// Clusters change at random between backups of a chain: every backup of it is restored exactly, and every page is written once.
func TestEveryBackupOfAChainIsRestoredExactlyAndEachPageIsWrittenOnce(t *testing.T) {
	t.Parallel()
	r := testenv.Rand(t)
	pages, restores := 0, 0
	for range testenv.Pick(60, 3000) {
		m := &clusterModel{t: t, r: r, files: map[string][]byte{}}
		s := storagetest.NewMemory()
		for n := range 2 + r.IntN(6) {
			backup := map[string]stored(nil)
			if n == 0 {
				backup = m.full()
			} else {
				backup = m.delta()
			}
			m.put(s, n, backup)
			pages += m.check(s, n)
			restores++
			if t.Failed() {
				return
			}
		}
	}
	testenv.Figure(t, "restores compared", "backups of random chains", restores)
	testenv.Figure(t, "pages written once", "random chains", pages)
}

// check restores the n-th backup and compares it with the cluster as it is.
func (m *clusterModel) check(s storage.Store, n int) (pages int) {
	m.t.Helper()
	c := open(m.t, s)
	b, err := c.Find(m.t.Context(), chainName(n))
	if err != nil {
		m.t.Fatal(err)
	}
	chain, err := c.Chain(m.t.Context(), b)
	if err != nil {
		m.t.Fatal(err)
	}
	sink := newMemorySink()
	u, err := Unpack(m.t.Context(), c, slog.New(slog.DiscardHandler), chain, 1+m.r.IntN(3), sink)
	if err != nil {
		m.t.Fatalf("backup %d: %v", n, err)
	}
	if string(u.Label.Content) != fmt.Sprint("label ", n) {
		m.t.Errorf("backup %d has the label %q", n, u.Label.Content)
	}
	for name, want := range m.files {
		if got, ok := sink.files[name]; !ok || !bytes.Equal(got, want) {
			m.t.Errorf("backup %d: %s has %d bytes, want %d (there: %v)", n, name, len(got), len(want), ok)
		}
	}
	for name := range sink.files {
		if _, ok := m.files[name]; !ok {
			m.t.Errorf("backup %d: %s is too much", n, name)
		}
	}
	for name, writes := range sink.pages {
		for at := range int64(len(sink.files[name]) / pageSize) {
			if writes[at] != 1 {
				m.t.Errorf("backup %d: page %d of %s was written %d times", n, at, name, writes[at])
			}
			pages++
		}
	}
	for name := range sink.dirs {
		if strings.HasPrefix(name, "gone") && name != "gone"+fmt.Sprint(n) {
			m.t.Errorf("backup %d: directory %s of an older backup", n, name)
		}
	}
	if !sink.dirs["gone"+fmt.Sprint(n)] {
		m.t.Errorf("backup %d lacks its own directories", n)
	}
	return pages
}
