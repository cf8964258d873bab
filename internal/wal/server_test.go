package wal_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/testenv"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// TestSegmentsOfRealClusters parses the names and headers of everything that a server has in pg_wal, with the
// smallest and with an unusual segment size.
func TestSegmentsOfRealClusters(t *testing.T) {
	t.Parallel()
	for _, megabytes := range []int{1, 64} {
		server := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: megabytes})
		server.SwitchWAL(t)
		server.Stop("fast")
		size := int64(megabytes) << 20
		names, err := filepath.Glob(filepath.Join(server.DataDir, "pg_wal", "0*"))
		if err != nil {
			t.Fatal(err)
		}
		used := 0
		for _, path := range names {
			name := filepath.Base(path)
			segment, err := wal.ParseSegment(name, size)
			if err != nil || segment.Name(size) != name || wal.Classify(name) != wal.KindSegment {
				t.Errorf("%s: %+v, %v", name, segment, err)
			}
			head, fileSize := readHead(t, path)
			h, err := wal.ParseHeader(head)
			if err != nil && strings.Contains(err.Error(), "all zero") { // made ahead of its use
				continue
			}
			if err == nil && h.PageAddr < segment.Start(size) { // recycled and not used again yet
				continue
			}
			if err == nil {
				err = h.CheckFile(name, fileSize)
			}
			if err != nil || h.Major != server.Major || h.SegmentSize != size {
				t.Errorf("%s: %+v, %v", name, h, err)
			}
			used++
		}
		if used == 0 {
			t.Errorf("only %d of %d segments of %d MiB are in use", used, len(names), megabytes)
		}
	}
}

func readHead(t *testing.T, path string) (head []byte, size int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head = make([]byte, wal.HeaderSize)
	if _, err := io.ReadFull(f, head); err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return head, info.Size()
}
