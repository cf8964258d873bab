package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
)

// runsIn leaves the lock file of a server in a data directory.
func runsIn(t testing.TB, dir string, pid int) {
	t.Helper()
	write(t, filepath.Join(dir, lockFile), fmt.Appendf(nil, "%d\n%s\n17%d\n5432\n/tmp\n\n  1 2\nready   \n", pid, dir, pid))
}

// A restore_command that outlives its server comes too late, and what it left is in nobody's way.
func TestWhatAKilledServersCommandFetchesIsNotForTheNextServer(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	d := deps(t, s, "lz4", io.Discard)
	content, stale := segment(2, cluster, 1, 1), segment(4, cluster, 1, 1)
	mustPush(t, d, segmentTwo, content)
	for _, c := range []struct {
		name, dest string
		before     int  // process ID of the server that runs when the fetch begins, 0 for none
		after      int  // of the one that runs when the content has come
		there      bool // a stale file is at the destination
		want       []byte
		refused    error
	}{
		{"a stale file", "RECOVERYXLOG", 7, 7, true, content, nil},
		{"no stale file", "RECOVERYXLOG", 7, 7, false, content, nil},
		{"a file that is the operator's", "000000010000000000000002", 7, 7, true, stale, errOtherContent},
		{"no server", "RECOVERYXLOG", 0, 0, true, stale, errOtherContent},
		{"another server", "RECOVERYXLOG", 7, 8, false, nil, errServerGone},
		{"another server, and its file", "RECOVERYXLOG", 7, 8, true, stale, errServerGone},
		{"the server has ended", "RECOVERYXLOG", 7, 0, false, content, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := dataDir(t, cluster, "recovery.signal")
			dest := filepath.Join(dir, "pg_wal", c.dest)
			if c.before != 0 {
				runsIn(t, dir, c.before)
			}
			if c.there {
				write(t, dest, stale)
			}
			changing := &onGet{Store: s, then: func() {
				if c.after == 0 && c.before != 0 {
					if err := os.Remove(filepath.Join(dir, lockFile)); err != nil {
						t.Error(err)
					}
				} else if c.after != 0 {
					runsIn(t, dir, c.after)
				}
			}}
			err := Fetch(t.Context(), deps(t, changing, "lz4", io.Discard), FetchOptions{segmentTwo, dest, time.Minute, ""})
			if !errors.Is(err, c.refused) || (err == nil) != (c.refused == nil) {
				t.Errorf("%v", err)
			}
			if got, err := os.ReadFile(dest); err != nil && c.want != nil || !bytes.Equal(got, c.want) {
				t.Errorf("%d bytes are there, %v", len(got), err)
			}
		})
	}
}

// onGet does something whenever an object is read.
type onGet struct {
	storage.Store
	then func()
}

// Get implements [storage.Store].
func (s *onGet) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	s.then()
	return s.Store.Get(ctx, key)
}
