package directio

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWhatIsReadOnceDoesNotStayInThePageCache(t *testing.T) {
	t.Parallel()
	const pages, kept = 256, 16
	page := os.Getpagesize()
	want := bytes.Repeat([]byte("page"), pages*page/4)
	name := emptyFile(t).Name()
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f := once(t, name)
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

func TestAFileIsReadWhereItIs(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(name, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, usual := range []bool{false, true} {
		f := once(t, name)
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
	}
}

func once(t *testing.T, name string) *Once {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return NewOnce(f)
}
