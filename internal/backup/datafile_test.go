package backup

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWhatABackupReadsDoesNotStayInThePageCache(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp(".", "pages") // on a disk: where temporary files lie there may be none
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	const pages, kept = 256, 16
	page := os.Getpagesize()
	want := bytes.Repeat([]byte("page"), pages*page/4)
	name := filepath.Join(dir, "16384")
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openDataFile(dir, "16384")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	writable, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writable.Close()
	if err := writable.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	server := make([]byte, kept*page) // has read these
	if err := unix.Fadvise(int(writable.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(writable, server); err != nil {
		t.Fatal(err)
	}

	got := make([]byte, len(want)+page)
	n, err := f.ReadAt(got, 0)
	if err != io.EOF || !bytes.Equal(got[:n], want) {
		t.Fatalf("%d bytes of %d, %v", n, len(want), err)
	}
	if f.usual {
		t.Log("this kernel or this file system keeps what is read")
		return
	}
	var there unix.Cachestat_t
	if err := unix.Cachestat(uint(fd), &unix.CachestatRange{Len: uint64(len(want))}, &there, 0); err != nil {
		t.Fatal(err)
	}
	if there.Cache < kept || there.Cache > pages/2 {
		t.Errorf("%d pages are in the page cache; %d were before", there.Cache, kept)
	}
}

func TestADataFileIsReadWhereItIs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, usual := range []bool{false, true} {
		f, err := openDataFile(dir, "a")
		if err != nil {
			t.Fatal(err)
		}
		f.usual = usual
		for _, c := range []struct {
			at   int64
			size int
			want string
			err  error
		}{{0, 10, "0123456789", nil}, {3, 4, "3456", nil}, {8, 4, "89", io.EOF}, {10, 1, "", io.EOF}, {20, 1, "", io.EOF}, {4, 0, "", nil}} {
			b := make([]byte, c.size)
			if n, err := f.ReadAt(b, c.at); string(b[:n]) != c.want || err != c.err {
				t.Errorf("%d bytes at %d: %q, %v", c.size, c.at, b[:n], err)
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}
