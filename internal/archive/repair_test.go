package archive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
)

func segmentName(timeline uint32, number int) string {
	return fmt.Sprintf("%08X00000000%08X", timeline, number)
}

// putBackup stores the sentinel of a backup that began in one segment and ended in another.
func putBackup(t *testing.T, s storage.Store, first, last int) string {
	t.Helper()
	name := "base_" + segmentName(1, first)
	sentinel := fmt.Sprintf(`{"LSN":%d,"FinishLSN":%d,"SystemIdentifier":%d,"PgVersion":150004,"Version":2,"StartTime":"2026-11-22T07:%02d:00Z"}`,
		first*segmentSize+0x28, last*segmentSize+0x100, uint64(cluster), first)
	if err := s.Put(t.Context(), "basebackups_005/"+name+"_backup_stop_sentinel.json", strings.NewReader(sentinel)); err != nil {
		t.Fatal(err)
	}
	return name
}

// unfinished is a segment into which the server has written half.
func unfinished(b []byte) []byte {
	b = bytes.Clone(b)
	clear(b[len(b)/2:])
	return b
}

// repairing is an archive with a backup and the segments 3 to 5 and 9, and a data directory.
func repairing(t *testing.T) (Deps, storage.Store, string) {
	t.Helper()
	s := storagetest.NewMemory()
	d := deps(t, s, "lz4", io.Discard)
	for _, n := range []int{3, 4, 5, 9} {
		mustPush(t, d, segmentName(1, n), segment(uint64(n), cluster, 1, 1))
	}
	putBackup(t, s, 3, 4)
	dir := dataDir(t, cluster)
	if err := os.Mkdir(filepath.Join(dir, "pg_wal", "archive_status"), 0o700); err != nil {
		t.Fatal(err)
	}
	return d, s, dir
}

func planOf(t *testing.T, d Deps, dir string) (*Repair, error) {
	t.Helper()
	inv, err := d.Catalog.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return PlanRepair(d, &inv, RepairOptions{Dir: dir, Timeout: time.Minute, AtOnce: 2})
}

func filesOf(r *Repair) string {
	var s []string
	for _, f := range r.Files {
		name := strings.TrimLeft(f.First[8:], "0")
		if f.Count > 1 {
			name += "-" + strings.TrimLeft(f.Last[8:], "0")
		}
		s = append(s, fmt.Sprintf("%d:%s %s", f.Timeline, name, f.State))
	}
	return strings.Join(s, ", ")
}

func TestARepairTakesWhatIsCompleteAndWhatItsNameSays(t *testing.T) {
	t.Parallel()
	type files map[string][]byte
	good := func(n int) []byte { return segment(uint64(n), cluster, 1, 1) }
	broken := good(7)
	broken[3*8192] ^= 0xff
	for _, c := range []struct {
		name           string
		files          files
		ready          []string // these are finished, the server says
		planned, after string
	}{
		{"all are there", files{segmentName(1, 6): good(6), segmentName(1, 7): good(7), segmentName(1, 8): good(8), segmentName(1, 9): good(9)}, nil,
			"1:6-8 found", "1:6-8 archived"},
		{"none is there", files{}, nil, "1:6-8 lost", "1:6-8 lost"},
		{"one is there, with its status", files{segmentName(1, 7): good(7)}, []string{segmentName(1, 7) + ".done"}, "1:6 lost, 1:7 found, 1:8 lost", "1:6 lost, 1:7 archived, 1:8 lost"},
		{"the server may be writing it", files{segmentName(1, 7): good(7)}, nil, "1:6 lost, 1:7 lost, 1:8 lost", "1:6 lost, 1:7 lost, 1:8 lost"},
		{"the status is another's", files{segmentName(1, 7): good(7)}, []string{segmentName(1, 6) + ".done"}, "1:6 lost, 1:7 lost, 1:8 lost", "1:6 lost, 1:7 lost, 1:8 lost"},
		{"half of it", files{segmentName(1, 7): unfinished(good(7))}, []string{segmentName(1, 7) + ".ready"}, "1:6 lost, 1:7 lost, 1:8 lost", "1:6 lost, 1:7 lost, 1:8 lost"},
		{"it is damaged", files{segmentName(1, 7): broken}, []string{segmentName(1, 7) + ".ready"}, "1:6 lost, 1:7 lost, 1:8 lost", "1:6 lost, 1:7 lost, 1:8 lost"},
		{"it was cut", files{segmentName(1, 7): good(7)[:segmentSize/2]}, []string{segmentName(1, 7) + ".ready"}, "1:6 lost, 1:7 lost, 1:8 lost", "1:6 lost, 1:7 lost, 1:8 lost"},
		{"it is empty", files{segmentName(1, 7): {}}, []string{segmentName(1, 7) + ".ready"}, "1:6 lost, 1:7 lost, 1:8 lost", "1:6 lost, 1:7 lost, 1:8 lost"},
		{"it is kept for later use", files{segmentName(1, 6): good(6), segmentName(1, 7): good(2), segmentName(1, 8): make([]byte, segmentSize)},
			[]string{segmentName(1, 6) + ".done", segmentName(1, 7) + ".ready"}, "1:6 found, 1:7 lost, 1:8 lost", "1:6 archived, 1:7 lost, 1:8 lost"},
		{"what the archive has not seen yet", files{segmentName(1, 6): good(6), segmentName(1, 7): good(7), segmentName(1, 8): good(8), segmentName(1, 10): good(10),
			segmentName(1, 11): good(11), segmentName(1, 12): unfinished(good(12)), segmentName(1, 13): good(2)}, nil,
			"1:6-8 found, 1:A-B found", "1:6-8 archived, 1:A-B archived"},
		{"lost behind the end of the archive", files{segmentName(1, 6): good(6), segmentName(1, 7): good(7), segmentName(1, 8): good(8), segmentName(1, 12): unfinished(good(12))}, nil,
			"1:6-8 found, 1:A-B lost", "1:6-8 archived, 1:A-B lost"},
		{"older than the backup", files{segmentName(1, 1): good(1), segmentName(1, 2): good(2), segmentName(1, 8): good(8), segmentName(1, 9): good(9)}, nil,
			"1:6-7 lost, 1:8 found", "1:6-7 lost, 1:8 archived"},
		{"a timeline that nobody archived", files{
			segmentName(1, 6): good(6), segmentName(1, 7): good(7), segmentName(1, 8): good(8), segmentName(1, 9): good(9), segmentName(1, 9) + ".partial": good(9),
			segmentName(2, 9): segment(9, cluster, 1, 2), segmentName(2, 10): segment(10, cluster, 2, 1), segmentName(2, 11): unfinished(segment(11, cluster, 2, 1)),
			"00000002.history": []byte("1\t0/920000\tno recovery target specified\n"),
		}, nil, "2:.history found, 1:6-8 found, 2:9-A found, 1:9.partial found", "2:.history archived, 1:6-8 archived, 2:9-A archived, 1:9.partial archived"},
		{"a history that is none", files{"00000002.history": []byte("none\n")}, nil, "2:.history lost, 1:6-8 lost", "2:.history lost, 1:6-8 lost"},
		{"a timeline without its history", files{segmentName(2, 9): segment(9, cluster, 1, 2), segmentName(2, 10): segment(10, cluster, 2, 1)}, nil,
			"2:.history lost, 1:6-8 lost", "2:.history lost, 1:6-8 lost"},
		{"other files", files{"notes": nil, "00000002.history.tmp": nil, "xlogtemp.17": good(7), segmentName(1, 7) + ".00000028.backup": []byte("x")}, nil, "1:6-8 lost", "1:6-8 lost"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d, s, dir := repairing(t)
			for name, content := range c.files {
				write(t, filepath.Join(dir, "pg_wal", name), content)
			}
			for _, name := range c.ready {
				write(t, filepath.Join(dir, "pg_wal", "archive_status", name), nil)
			}
			before := keys(t, s, "wal_005/")
			r, err := planOf(t, d, dir)
			if err != nil {
				t.Fatal(err)
			}
			if got := filesOf(r); got != c.planned {
				t.Errorf("the plan is %s, want %s", got, c.planned)
				for _, f := range r.Files {
					t.Log(f)
				}
			}
			if now := keys(t, s, "wal_005/"); !slices.Equal(now, before) {
				t.Errorf("a plan archived something: %v", now)
			}
			planned := fmt.Sprint(gapsOf(r))
			if err := r.Apply(t.Context(), d); err != nil {
				t.Fatal(err)
			}
			if got := filesOf(r); got != c.after {
				t.Errorf("it is %s, want %s", got, c.after)
			}
			if now := fmt.Sprint(gapsOf(r)); now != planned {
				t.Errorf("the gaps were to be %s and are %s", planned, now)
			}
			again, err := planOf(t, d, dir)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := filesOf(again), onlyLost(c.after); got != want {
				t.Errorf("another plan is %s, want %s", got, want)
			}
			for name, content := range c.files {
				if slices.Contains(before, "wal_005/"+name+".lz4") || !slices.Contains(keys(t, s, "wal_005/"), "wal_005/"+name+".lz4") {
					continue
				}
				var b bytes.Buffer
				in, err := d.Catalog.WAL().Open(t.Context(), name)
				if err == nil {
					_, err = b.ReadFrom(in)
					err = errors.Join(err, in.Close())
				}
				if err != nil || !bytes.Equal(b.Bytes(), content) {
					t.Errorf("%s is archived with other content: %v", name, err)
				}
			}
		})
	}
}

func gapsOf(r *Repair) []string {
	var s []string
	for _, g := range r.Gaps {
		first, last := r.Names(g)
		s = append(s, fmt.Sprint(g.Timeline, first, last, g.End, g.Stopped, g.Broken, g.Healed))
	}
	return s
}

func onlyLost(files string) string {
	var lost []string
	for f := range strings.SplitSeq(files, ", ") {
		if strings.HasSuffix(f, "lost") {
			lost = append(lost, f)
		}
	}
	return strings.Join(lost, ", ")
}

func TestARepairRefusesAnotherClustersWAL(t *testing.T) {
	t.Parallel()
	var wrong *catalog.WrongClusterError
	d, _, dir := repairing(t)
	write(t, filepath.Join(dir, "pg_wal", segmentName(1, 7)), segment(7, 99, 1, 1))
	if _, err := planOf(t, d, dir); !errors.As(err, &wrong) {
		t.Errorf("one segment of another cluster: %v", err)
	}
	other := dataDir(t, 99)
	if _, err := planOf(t, d, other); !errors.As(err, &wrong) {
		t.Errorf("another cluster's data directory: %v", err)
	}
	if _, err := planOf(t, d, filepath.Join(other, "pg_wal")); !errors.As(err, &wrong) {
		t.Errorf("another cluster's pg_wal: %v", err)
	}
	bare := t.TempDir()
	write(t, filepath.Join(bare, "00000002.history"), []byte(history))
	if _, err := planOf(t, d, bare); err == nil || !strings.Contains(err.Error(), "nothing in it tells of which cluster") {
		t.Errorf("a directory without segments: %v", err)
	}
	if _, err := planOf(t, d, filepath.Join(bare, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	write(t, filepath.Join(bare, segmentName(1, 7)), segment(7, 99, 1, 1))
	if _, err := planOf(t, d, bare); !errors.As(err, &wrong) {
		t.Errorf("a copy of another cluster's WAL: %v", err)
	}
	// Of an archive that does not say whose it is, all files must be of one cluster.
	if _, err := planOf(t, deps(t, storagetest.NewMemory(), "lz4", io.Discard), dir); err == nil || !strings.Contains(err.Error(), "99") {
		t.Errorf("files of two clusters: %v", err)
	}
}

func TestARepairFindsPgWALBehindALink(t *testing.T) {
	t.Parallel()
	d, _, dir := repairing(t)
	elsewhere := filepath.Join(t.TempDir(), "wal")
	if err := errors.Join(os.Rename(filepath.Join(dir, "pg_wal"), elsewhere), os.Symlink(elsewhere, filepath.Join(dir, "pg_wal"))); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{6, 7, 8, 9} {
		write(t, filepath.Join(elsewhere, segmentName(1, n)), segment(uint64(n), cluster, 1, 1))
	}
	for _, name := range []string{dir, filepath.Join(dir, "pg_wal"), elsewhere} {
		r, err := planOf(t, d, name)
		if err != nil || filesOf(r) != "1:6-8 found" {
			t.Errorf("%s: %v, %+v", name, err, r)
		}
	}
	// The control file says how far the server has come, whatever is left of its WAL.
	b := control(cluster)
	le := binary.LittleEndian
	le.PutUint64(b[32:], 12*segmentSize+0x28)
	le.PutUint32(b[288:], crc32.Checksum(b[:288], crc32.MakeTable(crc32.Castagnoli)))
	write(t, filepath.Join(dir, pgdata.ControlName), b)
	if r, err := planOf(t, d, dir); err != nil || filesOf(r) != "1:6-8 found, 1:A-B lost" {
		t.Errorf("%v, %+v", err, r)
	}
}

// writer is a function that writes.
type writer func(b []byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

func TestWhatTheServerTakesAwayMeanwhileIsNotArchived(t *testing.T) {
	t.Parallel()
	d, s, dir := repairing(t)
	path := filepath.Join(dir, "pg_wal", segmentName(1, 7))
	recycled := filepath.Join(dir, "pg_wal", segmentName(1, 20))
	for _, n := range []int{6, 7, 8, 9} {
		write(t, filepath.Join(dir, "pg_wal", segmentName(1, n)), segment(uint64(n), cluster, 1, 1))
	}
	r, err := planOf(t, d, dir)
	if err != nil || filesOf(r) != "1:6-8 found" {
		t.Fatalf("%v, %+v", err, r)
	}
	f, err := openFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.writeTo(io.Discard); err != nil {
		t.Errorf("a file that is where it was: %v", err)
	}
	// While it is read the server gives it another name, and writes into it.
	err = f.writeTo(writer(func(b []byte) (int, error) {
		if rerr := os.Rename(path, recycled); rerr == nil {
			write(t, recycled, segment(20, cluster, 1, 1))
		}
		return len(b), nil
	}))
	if !errors.Is(err, errTakenAway) {
		t.Errorf("a file that lost its name: %v", err)
	}
	write(t, path, segment(7, cluster, 1, 1))
	if err := f.writeTo(io.Discard); !errors.Is(err, errTakenAway) {
		t.Errorf("a file whose name is another's: %v", err)
	}
	// Between the plan and its execution.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := r.Apply(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if got := filesOf(r); got != "1:6 archived, 1:7 lost, 1:8 archived" {
		t.Errorf("it is %s", got)
	}
	if slices.Contains(keys(t, s, "wal_005/"), "wal_005/"+segmentName(1, 7)+".lz4") {
		t.Error("a file that had gone is archived")
	}
}

func TestARepairEndsWithTheStoragesFailure(t *testing.T) {
	t.Parallel()
	_, s, dir := repairing(t)
	for _, n := range []int{6, 7, 8, 9} {
		write(t, filepath.Join(dir, "pg_wal", segmentName(1, n)), segment(uint64(n), cluster, 1, 1))
	}
	faults := storagetest.NewFault(s, storagetest.Rule{Kind: storagetest.Before, Nth: 1, ForGood: true, Match: func(c storagetest.Call) bool {
		return c.Op == storagetest.OpPutNew && strings.Contains(c.Key, segmentName(1, 7))
	}})
	d := deps(t, faults, "lz4", io.Discard)
	r, err := planOf(t, d, dir)
	if err != nil {
		t.Fatal(err)
	}
	r.options.AtOnce = 1
	if err := r.Apply(t.Context(), d); err == nil || filesOf(r) != "1:6 archived, 1:7-8 found" {
		t.Errorf("%v, %s", err, filesOf(r))
	}
	if len(r.Gaps) != 1 || r.Gaps[0].First() != 7 || r.Gaps[0].Last() != 8 {
		t.Errorf("the gaps are %+v", r.Gaps)
	}
}
