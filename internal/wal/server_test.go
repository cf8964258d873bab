package wal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

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

// TestRecordsOfRealClusters follows the records of everything that servers archive, as recovery would: of all kinds, longer than a
// segment, cut off by a crash, behind a promotion. A single false alarm would keep a server from coming up.
func TestRecordsOfRealClusters(t *testing.T) {
	t.Parallel()
	majors := []int{13, 15, 18}
	if testenv.Full() {
		majors = []int{13, 14, 15, 16, 17, 18}
	}
	for _, major := range testenv.Majors(majors...) {
		for _, megabytes := range []int{1, 16} {
			if megabytes == 16 && !testenv.Full() && major != 15 {
				continue
			}
			t.Run(fmt.Sprintf("PostgreSQL %d, segments of %d MiB", major, megabytes), func(t *testing.T) {
				t.Parallel()
				dir := testenv.Scratch(t)
				server := testenv.StartPostgres(t, testenv.PostgresOptions{Major: major, WALSegmentSize: megabytes, Settings: map[string]string{
					"archive_mode": "on", "archive_command": "cp %p " + dir + "/%f", "wal_level": "logical", "max_wal_size": "64MB",
					"wal_compression": "on", "wal_keep_size": "64",
				}})
				work := func() {
					server.Exec(t, "CREATE TABLE t (i serial PRIMARY KEY, filler text)", "CREATE INDEX ON t (filler)",
						"INSERT INTO t (filler) SELECT md5(g::text) FROM generate_series(1, 20000) AS g", "CHECKPOINT",
						"UPDATE t SET filler = filler || 'x' WHERE i % 3 = 0", "DELETE FROM t WHERE i % 5 = 0", "VACUUM t",
						"SELECT pg_logical_emit_message(false, 'walden', repeat('z', 3500000))", "DROP TABLE t")
				}
				work()
				server.SwitchWAL(t)
				for range testenv.Pick(1, 4) { // leaves the record that is being written without its end
					conn := server.Conn(t)
					ended := make(chan struct{})
					go func() {
						defer close(ended)
						_, _ = conn.Exec(context.Background(), "SELECT pg_logical_emit_message(false, 'walden', repeat('y', 60000000))") // cut off
					}()
					before := server.Query(t, "SELECT pg_current_wal_lsn()")
					server.WaitFor(t, "SELECT pg_current_wal_lsn() > '"+before+"'", "t", time.Minute)
					server.KillHard()
					<-ended
					server.Start()
				}
				work()
				last := server.SwitchWAL(t)
				server.WaitFor(t, "SELECT last_archived_wal >= '"+last+"' FROM pg_stat_archiver", "t", 2*time.Minute)
				server.Stop("fast")

				paths, err := filepath.Glob(filepath.Join(dir, "0*"))
				if err != nil || len(paths) < 3 {
					t.Fatalf("%v was archived, %v", paths, err)
				}
				slices.Sort(paths)
				for i, path := range paths {
					b, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					h, err := wal.ParseHeader(b)
					if err == nil {
						err = h.CheckRecords(bytes.NewReader(b))
					}
					if err != nil && (i < len(paths)-1 || !errors.Is(err, wal.ErrEnds)) { // the last one may be that of the shutdown
						t.Errorf("%s: %v", filepath.Base(path), err)
					}
				}
				testenv.Figure(t, "WAL segments followed", fmt.Sprintf("PostgreSQL %d", major), len(paths))
			})
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
