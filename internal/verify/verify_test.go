package verify

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zeebo/xxh3"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/codec"
	"gitlab.com/walden-pg/walden/internal/crypt"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/wal"
)

const (
	cluster     = 7710983920749980543
	backupName  = "base_000000010000000000000003"
	backupDir   = "basebackups_005/" + backupName + "/"
	firstPart   = backupDir + "tar_partitions/part_001.tar"
	secondPart  = backupDir + "tar_partitions/part_002.tar"
	controlPart = backupDir + "tar_partitions/pg_control.tar"
	labelPart   = backupDir + "tar_partitions/backup_label.tar"
	manifest    = backupDir + "walden_manifest.json"
	sentinel    = "basebackups_005/" + backupName + "_backup_stop_sentinel.json"
	firstWAL    = "wal_005/000000010000000000000003"
	lastWAL     = "wal_005/000000010000000000000004"
	label       = "START WAL LOCATION: 0/300028 (file 000000010000000000000003)\n"

	segmentSize = 1 << 20
	logBegins   = 3 * segmentSize
	backupEnds  = logBegins + segmentSize + 0x1000
	replayed    = 2 // the block of the table that the log writes anew
)

// control makes a control file of PostgreSQL 15 (ControlFileData, pg_control.h), as far as it is read.
func control(checksums uint32) string {
	b := make([]byte, pgdata.ControlSize)
	le := binary.LittleEndian
	le.PutUint64(b[0:], cluster)
	le.PutUint32(b[8:], 1300)
	le.PutUint32(b[204:], 8)
	le.PutUint64(b[208:], math.Float64bits(1234567))
	le.PutUint32(b[216:], pgdata.PageSize)
	le.PutUint32(b[220:], segmentBlocks)
	le.PutUint32(b[224:], 8192)
	le.PutUint32(b[228:], segmentSize)
	le.PutUint32(b[252:], checksums)
	le.PutUint32(b[288:], crc32.Checksum(b[:288], crc32.MakeTable(crc32.Castagnoli)))
	return string(b)
}

// table is a relation of four pages with their checksums; those of the blocks given are wrong.
func table(wrong ...int) string {
	b := bytes.Repeat([]byte{0x42}, 4*pgdata.PageSize)
	for n := range 4 {
		page := b[n*pgdata.PageSize:][:pgdata.PageSize]
		binary.LittleEndian.PutUint16(page[8:], pgdata.Checksum(page, uint32(n)))
	}
	for _, n := range wrong {
		b[n*pgdata.PageSize+5000] ^= 1
	}
	return string(b)
}

// writtenLog lays out two segments as the server does (CopyXLogRecordToWAL): with a record that writes a block, and one that begins in the
// first and ends in the second.
func writtenLog(system uint64, timeline uint32) (first, second []byte) {
	const pageSize = 8192
	le := binary.LittleEndian
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	b := make([]byte, 2*segmentSize)
	pos, previous := 0, uint64(logBegins-100)
	header := func(left int) {
		head, info := 24, 0
		if pos%segmentSize == 0 {
			head, info = 40, 2
			le.PutUint64(b[pos+24:], system)
			le.PutUint32(b[pos+32:], segmentSize)
			le.PutUint32(b[pos+36:], pageSize)
		}
		if left > 0 {
			info |= 1
		}
		le.PutUint16(b[pos:], 0xD110)
		le.PutUint16(b[pos+2:], uint16(info))
		le.PutUint32(b[pos+4:], timeline)
		le.PutUint64(b[pos+8:], uint64(logBegins+pos))
		le.PutUint32(b[pos+16:], uint32(left))
		pos += head
	}
	block, _ := hex.DecodeString("00000000" + "7f060000" + "05000000" + "00400000" + fmt.Sprintf("%02x000000", replayed))
	data := func(n int) []byte { return append(le.AppendUint32([]byte{0xFE}, uint32(n)), make([]byte, n)...) }
	for _, body := range [][]byte{data(71), block, data(segmentSize), data(71), nil} {
		if pos%pageSize == 0 {
			header(0)
		}
		start := uint64(logBegins + pos)
		record := append(make([]byte, 24), body...)
		le.PutUint32(record, uint32(len(record)))
		le.PutUint64(record[8:], previous)
		if record[17] = 10; body == nil { // of the heap; or pg_switch_wal's
			record[16], record[17] = 0x40, 0
		}
		le.PutUint32(record[20:], crc32.Update(crc32.Checksum(body, castagnoli), castagnoli, record[:20]))
		for len(record) > 0 {
			if pos%pageSize == 0 {
				header(len(record))
			}
			n := copy(b[pos:(pos/pageSize+1)*pageSize], record)
			record = record[n:]
			pos += n
		}
		pos, previous = (pos+7)&^7, start
	}
	return b[:segmentSize], b[segmentSize:]
}

type entry struct{ name, body string } // a directory has no body

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(e.body)), ModTime: time.Unix(1e9, 0)}
		if e.body == "" {
			h.Typeflag, h.Mode = tar.TypeDir, 0o700
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// trial is an archive in memory with one backup.
type trial struct {
	*testing.T
	storage.Store
}

func (a trial) put(key string, b []byte) {
	a.Helper()
	if err := a.Put(a.Context(), key, bytes.NewReader(b)); err != nil {
		a.Fatal(err)
	}
}

func (a trial) get(key string) []byte {
	a.Helper()
	r, err := a.Get(a.Context(), key)
	if err != nil {
		a.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		a.Fatal(err)
	}
	return b
}

func (a trial) catalog() *catalog.Catalog {
	a.Helper()
	c, err := codec.New("none", codec.Options{})
	if err != nil {
		a.Fatal(err)
	}
	return catalog.New(repo.New(a.Store, c, crypt.None{}, repo.Options{}), slog.New(slog.DiscardHandler))
}

// archived makes an archive with a good backup: walden's own with a manifest, or one of another writer.
func archived(t *testing.T, own bool, content string, checksums uint32) trial {
	t.Helper()
	a := trial{t, storagetest.NewMemory()}
	parts := [][]entry{
		{{"base", ""}, {"base/5", ""}, {"base/5/16384", content}, {"base/5/16384_fsm", strings.Repeat("not a page", 1000)}},
		{{"global", ""}, {"global/1262", table()}, {"PG_VERSION", "15\n"}},
	}
	first, second := writtenLog(cluster, 1)
	a.put(firstWAL, first)
	a.put(lastWAL, second)
	if !own {
		for i, p := range parts {
			a.put([]string{firstPart, secondPart}[i], tarOf(t, p...))
		}
		a.put(controlPart, tarOf(t, entry{"global/pg_control", control(checksums)}))
		a.put(labelPart, tarOf(t, entry{"backup_label", label}))
		a.put(sentinel, fmt.Appendf(nil, `{"LSN":%d,"FinishLSN":%d,"PgVersion":150020,"SystemIdentifier":%d,"Version":2}`, logBegins+0x28, backupEnds, uint64(cluster)))
		return a
	}
	d, err := a.catalog().Begin(t.Context(), catalog.Start{
		LSN: logBegins + 0x28, Timeline: 1, Time: time.Unix(1.7e9, 0), SystemIdentifier: cluster, PgVersion: 150020, SegmentSize: segmentSize,
		PageSize: pgdata.PageSize, Hostname: "db1", DataDir: "/srv/main", Walden: "test", Compression: "none", Encryption: "none",
	})
	if err != nil {
		t.Fatal(err)
	}
	write := func(entries ...entry) func(io.Writer) error {
		return func(w io.Writer) error { _, err := w.Write(tarOf(t, entries...)); return err }
	}
	var contents catalog.Contents
	for i, entries := range parts {
		p, err := d.PutPart(t.Context(), i+1, 1, write(entries...))
		if err != nil {
			t.Fatal(err)
		}
		contents.Parts = append(contents.Parts, p)
		for _, e := range entries {
			f := catalog.File{Name: e.name, Mode: 0o600, Part: int32(i), Size: int64(len(e.body)), Hash: xxh3.Hash128([]byte(e.body)).Bytes()}
			if e.body == "" {
				f = catalog.File{Name: e.name, Mode: 0o700, Part: int32(i), Type: catalog.Directory}
			}
			if _, err := contents.Files.Add(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	if contents.Control, err = d.PutControl(t.Context(), write(entry{"global/pg_control", control(checksums)})); err != nil {
		t.Fatal(err)
	}
	if contents.Label, err = d.PutLabel(t.Context(), write(entry{"backup_label", label})); err != nil {
		t.Fatal(err)
	}
	stop := catalog.Stop{LSN: backupEnds, Time: time.Unix(1.7e9+5, 0), WAL: catalog.WALArchived,
		First: wal.Segment{Timeline: 1, Number: 3}, Last: wal.Segment{Timeline: 1, Number: 4}}
	if _, err := d.Commit(t.Context(), stop, &contents, nil); err != nil {
		t.Fatal(err)
	}
	return a
}

type silent struct{}

func (silent) Begin(int64) {}
func (silent) Add(int64)   {}
func (silent) End()        {}

// verified reads the backup. Pauses between attempts take no time.
func (a trial) verified() (r Report, err error) {
	synctest.Test(a.T, func(t *testing.T) {
		var b catalog.Backup
		c := a.catalog()
		if b, err = c.Find(t.Context(), backupName); err == nil {
			r, err = Backup(t.Context(), Deps{Catalog: c, Log: slog.New(slog.DiscardHandler), Progress: silent{}}, b, 2)
		}
	})
	return r, err
}

func TestAGoodBackupIsProven(t *testing.T) {
	t.Parallel()
	for _, own := range []bool{true, false} {
		r, err := archived(t, own, table(), 1).verified()
		if err != nil || r.Parts != 4 || r.Files < 4 || r.Bytes < 8*pgdata.PageSize || r.Hashed != own || r.Pages != 8 || r.Segments != 2 || !r.Records ||
			r.Recorded != 0 || r.CorruptPages != 0 {
			t.Errorf("own %t: %+v, %v", own, r, err)
		}
	}
}

func TestPagesWithWrongChecksumsAreCorruptUnlessReplayWritesThem(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		wrong     []int
		checksums uint32
		corrupt   int64
	}{
		{"none is wrong", nil, 1, 0},
		{"one that replay writes anew", []int{replayed}, 1, 0},
		{"one that it does not", []int{1}, 1, 1},
		{"both", []int{replayed, 3, 0}, 1, 2},
		{"no checksums", []int{0, 1, 2, 3}, 0, 0},
	} {
		for _, own := range []bool{true, false} {
			r, err := archived(t, own, table(c.wrong...), c.checksums).verified()
			if err != nil || r.CorruptPages != c.corrupt || len(r.Corrupt) != int(c.corrupt) {
				t.Errorf("%s, own %t: %+v, %v", c.name, own, r, err)
			}
			for _, p := range r.Corrupt {
				if p.File != "base/5/16384" || p.Block == replayed {
					t.Errorf("%s, own %t: %s", c.name, own, p)
				}
			}
		}
	}
}

func TestEveryDamageIsFound(t *testing.T) {
	t.Parallel()
	change := func(key string, how func([]byte) []byte) func(trial) {
		return func(a trial) { a.put(key, how(a.get(key))) }
	}
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= 4; return b }
	}
	cut := func(b []byte) []byte { return b[:len(b)/2] }
	remove := func(keys ...string) func(trial) {
		return func(a trial) {
			if err := a.Delete(a.Context(), keys...); err != nil {
				a.Fatal(err)
			}
		}
	}
	swap := func(one, other string) func(trial) {
		return func(a trial) {
			b := a.get(one)
			a.put(one, a.get(other))
			a.put(other, b)
		}
	}
	say := func(what, instead string) func([]byte) []byte {
		return func(b []byte) []byte { return bytes.Replace(b, []byte(what), []byte(instead), 1) }
	}
	const older = "base_000000010000000000000001"
	// basedOn makes the backup a delta that has of its table the pages that changed since an LSN, and puts a base of a system there.
	basedOn := func(base string, lsn int, system string) func(trial) {
		return func(a trial) {
			a.put(sentinel, say(`"LSN"`, fmt.Sprintf(`"DeltaFrom":%q,"DeltaFullName":%q,"DeltaLSN":%d,"DeltaCount":1,"LSN"`, base, base, lsn))(a.get(sentinel)))
			a.put(backupDir+"files_metadata.json", []byte(`{"Files":{"/base/5/16384":{"IsIncremented":true},"/base/5/16384_fsm":{},"/global/1262":{},"/PG_VERSION":{}}}`))
			if system != "" {
				a.put("basebackups_005/"+base+"_backup_stop_sentinel.json",
					[]byte(`{"LSN":1048616,"FinishLSN":1049000,"PgVersion":150020,"SystemIdentifier":`+system+`,"Version":2}`))
			}
		}
	}
	const inTable = 3*512 + 5000 // within the first page, behind the headers of two directories and of the file
	for _, c := range []struct {
		name   string
		damage func(trial)
		says   string
		only   string // "own" or "others"; "" for both
	}{
		{"a flipped bit in a part", change(firstPart, flip(inTable)), "part_001.tar", "own"},
		{"a flipped bit in the header of an entry", change(firstPart, flip(2*512+3)), "part_001.tar", ""},
		{"a part cut short", change(firstPart, cut), "part_001.tar", ""},
		{"a part cut at an entry", change(secondPart, func(b []byte) []byte { return b[:512] }), "", "own"},
		{"an empty part", change(secondPart, func([]byte) []byte { return nil }), "part_002.tar", "own"},
		{"a missing part", remove(firstPart), "part_001.tar", "own"},
		{"no part", remove(firstPart, secondPart), "", ""},
		{"parts that changed places", swap(firstPart, secondPart), "part_00", "own"},
		{"a missing control file", remove(controlPart), "pg_control", ""},
		{"a flipped bit in the control file", change(controlPart, flip(512+100)), "pg_control", ""},
		{"a label in place of the control file", swap(controlPart, labelPart), "", "own"}, // else their entries tell which is which
		{"a missing label", remove(labelPart), "backup_label", ""},
		{"the label of another backup", change(labelPart, say("0/300028", "0/400028")), "backup_label", ""},
		{"a missing manifest", remove(manifest), "walden_manifest.json", "own"},
		{"a manifest with another word", change(manifest, say("PG_VERSION", "PG_VERSIOM")), "walden_manifest.json", "own"},
		{"a manifest that says nothing", change(manifest, func([]byte) []byte { return []byte("{}") }), "walden_manifest.json", "own"},
		{"a sentinel without a position", change(sentinel, say(`"LSN"`, `"lost"`)), "LSN", "others"},
		{"a sentinel that is cut short", change(sentinel, cut), "sentinel", ""},
		{"a base that is not there", basedOn(older, 1048616, ""), older, "others"},
		{"a base that is itself", basedOn(backupName, logBegins+0x28, ""), "circle", "others"},
		{"a base with another start", basedOn(older, 1048617, fmt.Sprint(uint64(cluster))), "not on the one", "others"},
		{"a base of another cluster", basedOn(older, 1048616, "42"), "of cluster 42", "others"},
		{"a list of files that is lost", func(a trial) {
			basedOn(older, 1048616, fmt.Sprint(uint64(cluster)))(a)
			remove(backupDir + "files_metadata.json")(a)
		}, "no list of its files", "others"},
		{"the first segment is missing", remove(firstWAL), "000000010000000000000003", ""},
		{"the last segment is missing", remove(lastWAL), "000000010000000000000004", ""},
		{"a segment of another cluster", func(a trial) {
			_, second := writtenLog(42, 1)
			a.put(lastWAL, second)
		}, "another cluster", ""},
		{"a segment of a newer timeline", func(a trial) {
			_, second := writtenLog(cluster, 2)
			a.put(lastWAL, second)
		}, "timeline 2", ""},
		{"segments that changed places", swap(firstWAL, lastWAL), "000000010000000000000003", ""},
		{"the first segment in place of the last", func(a trial) { a.put(lastWAL, a.get(firstWAL)) }, "000000010000000000000004", ""},
		{"a segment cut short", change(firstWAL, cut), "000000010000000000000003", ""},
		{"a segment that is too long", change(firstWAL, func(b []byte) []byte { return append(b, 0) }), "000000010000000000000003", ""},
		{"an empty segment", change(firstWAL, func([]byte) []byte { return nil }), "000000010000000000000003", ""},
		{"a flipped bit in a record", change(firstWAL, flip(40+30)), "000000010000000000000003", ""},
		{"a flipped bit in a record that goes on", change(lastWAL, flip(100)), "000000010000000000000004", ""},
		{"a page of zeros among the records", change(firstWAL, func(b []byte) []byte { clear(b[3*8192 : 4*8192]); return b }), "000000010000000000000003", ""},
		{"a log that ends before the backup", change(lastWAL, func(b []byte) []byte { clear(b[40:]); return b }), "000000010000000000000004", ""},
	} {
		for _, own := range []bool{true, false} {
			if own && c.only == "others" || !own && c.only == "own" {
				continue
			}
			a := archived(t, own, table(), 1)
			c.damage(a)
			r, err := a.verified()
			if err == nil && r.CorruptPages == 0 {
				t.Errorf("%s, own %t: it is called proven: %+v", c.name, own, r)
			} else if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s, own %t: the error does not name %s: %v", c.name, own, c.says, err)
			}
		}
	}
}

// What no document tells of another writer's backup is found where the pages have checksums.
func TestAFlippedBitInAPageOfAnotherWritersBackupIsACorruptPage(t *testing.T) {
	t.Parallel()
	a := archived(t, false, table(), 1)
	b := a.get(firstPart)
	b[3*512+5000] ^= 4
	a.put(firstPart, b)
	if r, err := a.verified(); err != nil || r.CorruptPages != 1 || r.Corrupt[0] != (Page{"base/5/16384", 0}) {
		t.Errorf("%+v, %v", r, err)
	}
}
