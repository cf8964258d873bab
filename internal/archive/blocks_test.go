package archive

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/changes"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// closedSegment has one record, which changes a block with the segment's number, and one that closes the segment.
func closedSegment(number uint64) []byte {
	le := binary.LittleEndian
	b := segment(number, cluster, 1, 0)
	clear(b[wal.HeaderSize:])
	le.PutUint16(b[2:], 2)  // a long header, and nothing that continues
	le.PutUint32(b[16:], 0) // no rest of a record
	table := crc32.MakeTable(crc32.Castagnoli)
	seal := func(at int, length uint32, manager, info byte, previous uint64) {
		le.PutUint32(b[at:], length)
		le.PutUint64(b[at+8:], previous)
		b[at+16], b[at+17] = info, manager
		le.PutUint32(b[at+20:], crc32.Update(crc32.Checksum(b[at+24:at+int(length)], table), table, b[at:at+20]))
	}
	start := le.Uint64(b[8:])
	le.PutUint32(b[40+24+4:], 1663)
	le.PutUint32(b[40+24+8:], 5)
	le.PutUint32(b[40+24+12:], 16384)
	le.PutUint32(b[40+24+16:], uint32(number))
	copy(b[40+24+20:], []byte{0xFF, 0})
	seal(40, 46, 10, 0, start-24)
	seal(88, 24, 0, 0x40, start+40)
	return b
}

// pgWAL makes a data directory's pg_wal.
func pgWAL(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(dataDir(t, 0), "pg_wal")
	if err := os.Mkdir(filepath.Join(dir, "archive_status"), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func pushBlocks(t *testing.T, d Deps, dir string, number uint64, content []byte) {
	t.Helper()
	path := write(t, filepath.Join(dir, wal.Segment{Timeline: 1, Number: number}.Name(segmentSize)), content)
	if err := Push(t.Context(), d, PushOptions{Path: path, Timeout: time.Minute, Blocks: true}); err != nil {
		t.Fatalf("segment %d: %v", number, err)
	}
}

func deltas(t *testing.T, s storage.Store) []string {
	t.Helper()
	return slices.DeleteFunc(keys(t, s, "wal_005/"), func(key string) bool { return !strings.Contains(key, "_delta") })
}

func TestAGroupIsRecordedWhenAllOfItsSegmentsWereSeen(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	var log bytes.Buffer
	d := deps(t, s, "none", &log)
	dir := pgWAL(t)
	// The neighbour of the group before comes last.
	for _, number := range []uint64{16, 18, 17, 31, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 32, 14} {
		pushBlocks(t, d, dir, number, closedSegment(number))
	}
	if got := deltas(t, s); len(got) > 0 {
		t.Fatalf("%v before all segments were there\n%s", got, log.String())
	}
	pushBlocks(t, d, dir, 15, closedSegment(15))
	if got := deltas(t, s); !slices.Equal(got, []string{"wal_005/000000010000000000000010_delta"}) {
		t.Fatalf("%v\n%s", got, log.String())
	}
	recorded, err := changes.ReadRecorded(bytes.NewReader(object(t, s, "wal_005/000000010000000000000010_delta")))
	if err != nil || !recorded.Complete || len(recorded.Unfinished) > 0 {
		t.Fatalf("%+v, %v", recorded, err)
	}
	blocks, whole := recorded.Changes.InFile(changes.Relation{Tablespace: 1663, Database: 5, Number: 16384}, 0, 131072, 1000)
	if got := slices.Collect(blocks.All()); whole || len(got) != 16 || got[0] != 16 || got[15] != 31 {
		t.Errorf("blocks %v, all: %t", got, whole)
	}
	left, err := os.ReadDir(filepath.Join(dir, "walden_blocks"))
	if err != nil || len(left) != 4 { // of 14, 15, 31 and 32
		t.Errorf("%v are left, %v", left, err)
	}
	for number := uint64(79); number < 81; number++ {
		pushBlocks(t, d, dir, number, closedSegment(number))
	}
	if left, err := os.ReadDir(filepath.Join(dir, "walden_blocks")); err != nil || len(left) != 2 {
		t.Errorf("%v are left, %v", left, err)
	}
}

// failing is a store that takes no record of changed blocks.
type failing struct {
	storage.Store
	down bool
}

func (f *failing) PutNew(ctx context.Context, key string, r io.Reader) error {
	if f.down && strings.Contains(key, "_delta") {
		return errors.New("the disk is full")
	}
	return f.Store.PutNew(ctx, key, r)
}

func TestNothingWrongWithTheRecordKeepsASegmentFromBeingArchived(t *testing.T) {
	t.Parallel()
	s := &failing{Store: storagetest.NewMemory()}
	var log bytes.Buffer
	d := deps(t, s, "none", &log)
	dir := pgWAL(t)
	state := filepath.Join(dir, "walden_blocks")
	warned := func(what string) {
		t.Helper()
		if !strings.Contains(log.String(), "changed blocks are not recorded") {
			t.Errorf("%s: no warning in\n%s", what, log.String())
		}
		log.Reset()
	}
	pushBlocks(t, d, dir, 3, segment(3, cluster, 1, 1)) // which has no records that could be read
	warned("a segment that cannot be followed")
	write(t, state, nil)
	pushBlocks(t, d, dir, 4, closedSegment(4))
	warned("no directory")
	if err := os.Remove(state); err != nil {
		t.Fatal(err)
	}
	for number := uint64(15); number < 31; number++ {
		pushBlocks(t, d, dir, number, closedSegment(number))
	}
	broken := filepath.Join(state, wal.Segment{Timeline: 1, Number: 20}.Name(segmentSize))
	content, err := os.ReadFile(broken)
	if err != nil {
		t.Fatal(err)
	}
	content[100] ^= 1
	write(t, broken, content)
	log.Reset()
	pushBlocks(t, d, dir, 31, closedSegment(31))
	warned("a damaged file")
	if got := deltas(t, s); len(got) > 0 {
		t.Errorf("%v was made of a damaged file", got)
	}
	s.down = true
	pushBlocks(t, d, dir, 20, closedSegment(20)) // archived already
	warned("a storage that fails")
	s.down = false
	pushBlocks(t, d, dir, 32, closedSegment(32)) // of the next group
	if got := deltas(t, s); len(got) != 1 {
		t.Errorf("%v: the group was not completed", got)
	}
	// Elsewhere than in pg_wal, or without the setting, nothing is written beside the file.
	other := filepath.Join(dataDir(t, 0), "pg_wal")
	pushBlocks(t, d, other, 40, closedSegment(40))
	if exists(filepath.Join(other, "walden_blocks")) {
		t.Error("something was written beside a file that is not in pg_wal")
	}
}
