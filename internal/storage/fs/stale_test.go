package fs

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestOnlyTemporaryFilesThatNobodyWritesAreRemoved(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	const old, young = "20240229T235959Z-0123456789abcdef", "29990101T000000Z-0123456789abcdef"
	long := time.Now().Add(-25 * time.Hour)
	lay := func(name string, modified time.Time) {
		t.Helper()
		at := filepath.Join(s.root, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(at, modified, modified); err != nil {
			t.Fatal(err)
		}
	}
	lay("wal_005/a.lz4.tmp."+old, long)
	lay("basebackups_005/base_X/tar_partitions/part_1.tar.lz4.tmp."+old, long)
	lay("other/wal_005/a.lz4.tmp."+old, long)
	kept := []string{
		"wal_005/object.lz4",
		"wal_005/b.lz4.tmp." + old,   // written a moment ago
		"wal_005/c.lz4.tmp." + young, // begun a moment ago, by its name
		"wal_005/d.lz4.tmp." + old,   // locked
		"wal_005/e.tmp.20240229T235959Z-xyz",
		"wal_005/f.tmp." + old + ".lz4",
	}
	for _, name := range kept {
		lay(name, long)
	}
	if err := os.Chtimes(filepath.Join(s.root, kept[1]), time.Now(), time.Now()); err != nil {
		t.Fatal(err)
	}
	locked, err := os.OpenFile(filepath.Join(s.root, kept[3]), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer locked.Close()
	if err := unix.Flock(int(locked.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		dir  string
		want int
	}{{"wal_005/", 1}, {"missing/", 0}, {"", 2}, {"", 0}} {
		if n, err := s.RemoveStale(t.Context(), 24*time.Hour, c.dir); err != nil || n != c.want {
			t.Errorf("below %q %d were removed (%v), want %d", c.dir, n, err, c.want)
		}
	}
	left := slices.DeleteFunc(files(t, s), func(name string) bool { return strings.HasSuffix(name, "/") })
	if !slices.Equal(left, slices.Sorted(slices.Values(kept))) {
		t.Errorf("left are %q", left)
	}
}

func TestATemporaryFileIsLockedWhileItIsWritten(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	s.named.Store(true)
	var locked error
	err := s.Put(t.Context(), "key", &lookingReader{Reader: strings.NewReader("x"), look: func() {
		f, err := os.Open(filepath.Join(s.root, files(t, s)[0]))
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		locked = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}})
	if err != nil || locked != unix.EWOULDBLOCK {
		t.Errorf("Put = %v; locking its file meanwhile = %v", err, locked)
	}
}

func TestAnObjectHasNoNameUntilItIsComplete(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	if s.put(t.Context(), "key", strings.NewReader("old"), true) != nil || s.named.Load() {
		t.Fatal("TMPDIR is on a file system without O_TMPFILE: choose another")
	}
	for name, put := range map[string]func(r io.Reader) error{
		"new":      func(r io.Reader) error { return s.PutNew(t.Context(), "new", r) },
		"replaced": func(r io.Reader) error { return s.Put(t.Context(), "key", r) },
	} {
		before := files(t, s)
		err := put(&lookingReader{Reader: strings.NewReader(name), look: func() {
			if now := files(t, s); !slices.Equal(now, before) {
				t.Errorf("%s: meanwhile there are %q", name, now)
			}
		}})
		if err != nil {
			t.Error(err)
		}
	}
	if got := files(t, s); !slices.Equal(got, []string{"key", "new"}) || get(t, s, "key") != "replaced" {
		t.Errorf("in the end there are %q", got)
	}
}

// Files without a name that cannot be given one exist on some file systems on FUSE.
func TestAFileThatCannotBeGivenItsNameIsCopied(t *testing.T) {
	t.Parallel()
	for _, refusal := range []error{unix.EXDEV, unix.EPERM, unix.EOPNOTSUPP} {
		s := openTemp(t)
		s.link = func(olddir int, old string, newdir int, name string, flags int) error {
			if olddir == unix.AT_FDCWD {
				return refusal
			}
			return unix.Linkat(olddir, old, newdir, name, flags)
		}
		content := strings.Repeat("0123456789", 100_000)
		for i, put := range []func(key string, r io.Reader) error{
			func(key string, r io.Reader) error { return s.PutNew(t.Context(), key, r) },
			func(key string, r io.Reader) error { return s.Put(t.Context(), key, r) },
		} {
			s.named.Store(false)
			key := fmt.Sprint("dir/", i)
			if err := put(key, strings.NewReader(content)); err != nil || get(t, s, key) != content {
				t.Errorf("%v: %v", refusal, err)
			}
		}
		if got := files(t, s); !slices.Equal(got, []string{"dir/", "dir/0", "dir/1"}) {
			t.Errorf("%v: in the end there are %q", refusal, got)
		}
	}
}
