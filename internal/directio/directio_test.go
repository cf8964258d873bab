package directio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"
)

// emptyFile makes a file on a disk: temporary directories may be in memory.
func emptyFile(t *testing.T) *os.File {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "walden")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func content(size int) []byte {
	b := make([]byte, size)
	random := rand.NewChaCha8([32]byte{byte(size)})
	random.Read(b) // never fails
	return b
}

func TestAFileHoldsWhatWasCopied(t *testing.T) {
	t.Parallel()
	crooked := New(false) // begins its buffers where no disk takes them
	crooked.buffers.New = func() any {
		b := (*New(true).buffers.New().(*[]byte))[1:]
		return &b
	}
	for _, size := range []int{
		0, 1, alignment, alignment + 1, BufferSize - 1, BufferSize, BufferSize + 1, BufferSize + alignment, 2*BufferSize - alignment - 1, 2 * BufferSize,
		3*BufferSize + 5*alignment, 5*BufferSize + 8191,
	} {
		want := content(size)
		for how, c := range map[string]*Copier{"direct": New(false), "cached": New(true), "refused": crooked} {
			for _, expected := range []int64{-1, int64(size), int64(2 * size), 1} {
				t.Run(fmt.Sprintf("%d bytes of %d, %s", size, expected, how), func(t *testing.T) {
					t.Parallel()
					f := emptyFile(t)
					told := 0
					n, err := c.Copy(t.Context(), f, iotest.HalfReader(bytes.NewReader(want)), expected, func(n int) error {
						told += n
						return nil
					})
					if err != nil || n != int64(size) || told != size {
						t.Fatalf("%d bytes written, %d announced, %v", n, told, err)
					}
					if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, want) {
						t.Fatalf("the file differs: %d bytes, %v", len(got), err)
					}
				})
			}
		}
	}
}

// A file that was begun past the page cache is ended through it by whoever goes on writing.
func TestAFileCanBeWrittenOnWith(t *testing.T) {
	t.Parallel()
	for _, size := range []int{2 * BufferSize, 2*BufferSize + 1} {
		f := emptyFile(t)
		want := content(size)
		if _, err := New(false).Copy(t.Context(), f, bytes.NewReader(want), -1, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("more"); err != nil {
			t.Errorf("after %d bytes: %v", size, err)
		}
	}
}

func TestWhatIsWrittenStaysOutOfThePageCache(t *testing.T) {
	t.Parallel()
	const size = 16*BufferSize + 3*alignment + 100
	for _, cached := range []bool{false, true} {
		f := emptyFile(t)
		if !allowsDirect(f) {
			t.Log("these are not the file systems that it is for")
			return
		}
		if _, err := New(cached).Copy(t.Context(), f, bytes.NewReader(content(size)), size, nil); err != nil {
			t.Fatal(err)
		}
		var there unix.Cachestat_t
		if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Len: size}, &there, 0); err != nil {
			t.Logf("this kernel does not tell: %v", err)
			return
		}
		if pages := uint64(size / alignment); !cached && there.Cache > 1 || cached && there.Cache < pages/2 {
			t.Errorf("cached = %t: %d of %d pages are in the page cache", cached, there.Cache, pages)
		}
	}
}

func TestFailuresTellWhoseTheyAre(t *testing.T) {
	t.Parallel()
	lost, stopped := errors.New("the connection is lost"), errors.New("stopped")
	for _, size := range []int{0, 10, BufferSize, BufferSize + 10, 4 * BufferSize} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			c := New(false)
			f := emptyFile(t)
			broken := io.MultiReader(bytes.NewReader(content(size)), iotest.ErrReader(lost))
			if _, err := c.Copy(t.Context(), f, broken, -1, nil); err != lost {
				t.Errorf("of the source: %v", err)
			}

			f = emptyFile(t)
			ended, end := context.WithCancelCause(t.Context())
			end(stopped)
			if _, err := c.Copy(ended, f, bytes.NewReader(content(size+1)), -1, nil); err != context.Canceled {
				t.Errorf("of the context: %v", err)
			}

			f = emptyFile(t)
			left := size
			_, err := c.Copy(t.Context(), f, bytes.NewReader(content(size+1)), -1, func(n int) error {
				if left -= n; left < 0 {
					return stopped
				}
				return nil
			})
			if err != stopped {
				t.Errorf("of what is asked before: %v", err)
			}

			reading, err := os.Open(f.Name())
			if err != nil {
				t.Fatal(err)
			}
			defer reading.Close()
			_, err = c.Copy(t.Context(), reading, bytes.NewReader(content(size+1)), -1, nil)
			var wrong *WriteError
			if !errors.As(err, &wrong) || !errors.Is(err, unix.EBADF) {
				t.Errorf("of the file: %v", err)
			}
		})
	}
}
