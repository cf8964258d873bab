package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
)

func openTemp(t testing.TB) *Store {
	t.Helper()
	s, err := Open(Options{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// files returns the paths of everything below the store's root, directories with a slash at the end.
func files(t *testing.T, s *Store) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(s.root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == s.root {
			return err
		}
		name = strings.TrimPrefix(name, s.root+"/")
		if d.IsDir() {
			name += "/"
		}
		found = append(found, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func put(t *testing.T, s storage.Store, key, content string) {
	t.Helper()
	if err := s.Put(t.Context(), key, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s storage.Store, key string) string {
	t.Helper()
	b, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	content, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func list(s storage.Store, dir string) (keys []string, err error) {
	for o, err := range s.List(context.Background(), dir) {
		if err != nil {
			return keys, err
		}
		keys = append(keys, o.Key)
	}
	return keys, nil
}

func TestFileStorageKeepsThePromises(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(t *testing.T) storage.Store { return openTemp(t) }, storagetest.Options{})
}

func TestRootMayBeALink(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(s.root, link); err != nil {
		t.Fatal(err)
	}
	linked, err := Open(Options{Root: link})
	if err != nil {
		t.Fatal(err)
	}
	put(t, linked, "a/b", "content")
	if got := get(t, s, "a/b"); got != "content" {
		t.Errorf("read %q through the real root", got)
	}
}

func TestOpenRefusesWhatIsNoDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, root, hint string }{
		{"missing", filepath.Join(dir, "missing"), "create the directory"},
		{"a file", file, "name a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Open(Options{Root: c.root})
			var hint interface{ Hint() string }
			if !errors.As(err, &hint) || !strings.Contains(hint.Hint(), c.hint) {
				t.Errorf("Open = %v, want the hint to %s", err, c.hint)
			}
			if errors.Is(err, fs.ErrNotExist) || !storage.IsPermanent(err) || !strings.Contains(err.Error(), c.root) {
				t.Errorf("Open = %v, want a permanent error that names the directory and is no missing object", err)
			}
		})
	}
	if _, err := Open(Options{}); err == nil {
		t.Error("Open without a root succeeded")
	}
	if _, err := os.Stat(filepath.Join(dir, "missing")); err == nil {
		t.Error("Open has created the root")
	}
}

func TestVanishedRootIsNeverAMissingObject(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	if err := os.Remove(s.root); err != nil {
		t.Fatal(err)
	}
	_, getErr := s.Get(t.Context(), "key")
	_, statErr := s.Stat(t.Context(), "key")
	_, listErr := list(s, "wal_005/")
	for call, err := range map[string]error{
		"Get": getErr, "Stat": statErr, "List": listErr, "Check": s.Check(t.Context()),
		"Put":    s.Put(t.Context(), "key", strings.NewReader("x")),
		"Delete": s.Delete(t.Context(), "key"),
	} {
		if err == nil || errors.Is(err, fs.ErrNotExist) || !storage.IsPermanent(err) {
			t.Errorf("%s = %v, want a permanent error that is not fs.ErrNotExist", call, err)
		}
	}
}

func TestLinksDoNotLeadOutOfTheRoot(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	put(t, s, "real/object", "content")
	for link, target := range map[string]string{
		"out": outside, "real/out": filepath.Join(outside, "secret"), "in": "real", "real/in": "../real/object", "dangling": "nothing",
	} {
		if err := os.Symlink(target, filepath.Join(s.root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"out/secret", "real/out"} {
		if _, err := s.Get(t.Context(), key); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Get(%q) = %v", key, err)
		}
	}
	if err := s.Put(t.Context(), "out/new", strings.NewReader("x")); err == nil {
		t.Error("Put through a link that leads out succeeded")
	}
	if _, err := list(s, "out/"); err == nil {
		t.Error("List through a link that leads out succeeded")
	}
	if err := s.Delete(t.Context(), "out/secret"); err == nil {
		t.Error("Delete through a link that leads out succeeded")
	}
	if _, err := os.Stat(filepath.Join(outside, "secret")); err != nil {
		t.Error(err)
	}

	if got := get(t, s, "in/object") + get(t, s, "real/in"); got != "contentcontent" {
		t.Errorf("read %q through links inside the root", got)
	}
	if err := s.Delete(t.Context(), "out", "real/out"); err != nil {
		t.Fatal(err)
	}
	if got, err := list(s, ""); err != nil || !slices.Equal(got, []string{"in/", "real/"}) {
		t.Errorf("List of the root = %q, %v", got, err)
	}
	if got, err := list(s, "real/"); err != nil || !slices.Equal(got, []string{"real/in", "real/object"}) {
		t.Errorf("List = %q, %v", got, err)
	}
}

// lookingReader reports what lies in the store while an upload is under way.
type lookingReader struct {
	io.Reader
	look func()
	once sync.Once
}

func (r *lookingReader) Read(p []byte) (int, error) {
	r.once.Do(r.look)
	return r.Reader.Read(p)
}

func TestUnfinishedObjectsAreNamedAsInWALGAndHidden(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	s.named.Store(true)
	err := s.Put(t.Context(), "wal_005/key", &lookingReader{Reader: strings.NewReader("x"), look: func() {
		found := files(t, s)
		if len(found) != 2 || !strings.HasPrefix(found[1], "wal_005/key.tmp.2") || !temporary.MatchString(found[1]) {
			t.Errorf("during Put there are %q", found)
		}
		if got, err := list(s, "wal_005/"); len(got) > 0 || err != nil {
			t.Errorf("during Put, List = %q, %v", got, err)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	const leftBehind = "wal_005/other.lz4.tmp.20240229T235959Z-0123456789abcdef"
	if err := os.WriteFile(filepath.Join(s.root, leftBehind), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := list(s, "wal_005/"); !slices.Equal(got, []string{"wal_005/key"}) || err != nil {
		t.Errorf("List = %q, %v", got, err)
	}
	if err := s.Put(t.Context(), leftBehind, strings.NewReader("x")); !storage.IsPermanent(err) {
		t.Errorf("Put of a name that listings hide = %v", err)
	}
}

func TestModesLetTheGroupRead(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	put(t, s, "a/b", "x")
	for name, most := range map[string]fs.FileMode{"a": 0o750, "a/b": 0o640} {
		info, err := os.Stat(filepath.Join(s.root, name))
		if err != nil || info.Mode().Perm()&^most != 0 || info.Mode().Perm()&0o600 != 0o600 {
			t.Errorf("%s has mode %v, want %v or less by the umask (%v)", name, info.Mode(), most, err)
		}
	}
}

func TestBodyShorterThanItsObjectIsAnError(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	put(t, s, "key", strings.Repeat("x", 10_000))
	b, err := s.Get(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := os.Truncate(filepath.Join(s.root, "key"), 4000); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, b); n != 4000 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

// A part of a backup is read once.
func TestALargeObjectIsReadWholeAndDoesNotStayInThePageCache(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("/var/tmp", "walden") // on a disk: temporary directories may be in memory
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s, err := Open(Options{Root: dir})
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("0123456789abcde\n", readOnce/16) + "end"
	put(t, s, "part", want)
	if got := get(t, s, "part"); got != want {
		t.Errorf("%d bytes came back of %d, or others", len(got), len(want))
	}
	f, err := os.OpenFile(filepath.Join(dir, "part"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var there unix.Cachestat_t
	err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Len: readOnce}, &there, 0)
	if _, knows := unix.Preadv2(int(f.Fd()), [][]byte{make([]byte, 1)}, 0, unix.RWF_DONTCACHE); err != nil || knows != nil {
		t.Logf("this kernel or this file system keeps what is read: %v, %v", err, knows)
	} else if pages := uint64(readOnce / os.Getpagesize()); there.Cache > pages/4 {
		t.Errorf("%d of %d pages are in the page cache", there.Cache, pages)
	}
	r, err := s.Get(t.Context(), "part")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := f.Truncate(readOnce / 2); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, r); n != readOnce/2 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("of an object that was cut %d bytes are read: %v", n, err)
	}
}

func TestOnlyAbsenceIsAbsence(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	put(t, s, "dir/object", "x")
	if err := unix.Mkfifo(filepath.Join(s.root, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"dir", "dir/object/below", "pipe"} {
		_, getErr := s.Get(t.Context(), key)
		_, statErr := s.Stat(t.Context(), key)
		if getErr == nil || errors.Is(getErr, fs.ErrNotExist) || statErr == nil || errors.Is(statErr, fs.ErrNotExist) {
			t.Errorf("%q: Get = %v, Stat = %v; want errors other than fs.ErrNotExist", key, getErr, statErr)
		}
	}
	if got, err := list(s, ""); err != nil || !slices.Equal(got, []string{"dir/"}) {
		t.Errorf("List = %q, %v", got, err)
	}
	if _, err := list(s, "dir/object/"); err == nil {
		t.Error("List of an object succeeded")
	}
}

func TestPutNewWithoutHardLinksHasOneWinner(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	s.link = func(int, string, int, string, int) error { return unix.EPERM }
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() { errs[i] = s.PutNew(t.Context(), "dir/key", strings.NewReader(fmt.Sprint(i))) })
	}
	wg.Wait()
	winner := slices.Index(errs, nil)
	if winner < 0 || get(t, s, "dir/key") != fmt.Sprint(winner) {
		t.Errorf("writer %d won", winner)
	}
	for i, err := range errs {
		if i != winner && !errors.Is(err, storage.ErrExists) {
			t.Errorf("writer %d: %v", i, err)
		}
	}
	if got := files(t, s); !slices.Equal(got, []string{"dir/", "dir/key"}) {
		t.Errorf("left behind: %q", got)
	}
}

func TestPutNewRecognisesItsOwnLinkWhenTheAnswerWasLost(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	s.link = func(olddir int, old string, newdir int, name string, flags int) error {
		if err := unix.Linkat(olddir, old, newdir, name, flags); err != nil {
			return err
		}
		return unix.Linkat(olddir, old, newdir, name, flags)
	}
	if err := s.PutNew(t.Context(), "key", strings.NewReader("mine")); err != nil {
		t.Error(err)
	}
	if got := files(t, s); !slices.Equal(got, []string{"key"}) {
		t.Errorf("left behind: %q", got)
	}
}

// A limit on the size of files stands in for a full disk. It holds for a whole process, so the test runs itself.
func TestFailedWriteLeavesNothing(t *testing.T) {
	const variable = "WALDEN_TEST_FULL_DISK"
	if root := os.Getenv(variable); root != "" {
		signal.Ignore(unix.SIGXFSZ)
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 3 << 20, Max: 3 << 20}); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Options{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		big := func() io.Reader { return bytes.NewReader(make([]byte, 9<<20)) }
		for _, err := range []error{
			s.Put(t.Context(), "new/dir/key", big()),
			s.PutNew(t.Context(), "new/dir/key", iotest.DataErrReader(big())),
			s.Put(t.Context(), "old/key", big()),
		} {
			if !errors.Is(err, unix.EFBIG) {
				t.Errorf("Put beyond the limit = %v", err)
			}
		}
		return
	}
	s := openTemp(t)
	put(t, s, "old/key", "old")
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFailedWriteLeavesNothing$")
	c.Env = append(os.Environ(), variable+"="+s.root)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := files(t, s); !slices.Equal(got, []string{"old/", "old/key"}) || get(t, s, "old/key") != "old" {
		t.Errorf("left behind: %q", got)
	}
}

func TestFailedPutKeepsDirectoriesItDidNotMake(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	if err := os.Mkdir(filepath.Join(s.root, "wal_005"), 0o700); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	if err := s.Put(t.Context(), "wal_005/a/b/key", iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("Put = %v", err)
	}
	if got := files(t, s); !slices.Equal(got, []string{"wal_005/"}) {
		t.Errorf("left behind: %q", got)
	}
	// The directory is known to the store by now, but somebody else removes it.
	put(t, s, "wal_005/a/key", "x")
	if err := os.RemoveAll(filepath.Join(s.root, "wal_005")); err != nil {
		t.Fatal(err)
	}
	put(t, s, "wal_005/a/key", "y")
	if got := get(t, s, "wal_005/a/key"); got != "y" {
		t.Errorf("read %q", got)
	}
}

func TestSourcesOfAllKindsAreStoredWhole(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), (20<<20)/16)
	data = data[:len(data)-5]
	pr, pw := io.Pipe()
	go func() {
		_, err := pw.Write(data)
		pw.CloseWithError(err)
	}()
	for name, r := range map[string]io.Reader{
		"writes itself": bytes.NewReader(data), "pipe": pr, "half reads": iotest.HalfReader(bytes.NewReader(data)),
		"data with EOF": iotest.DataErrReader(bytes.NewReader(data)),
	} {
		if err := s.Put(t.Context(), name, r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if get(t, s, name) != string(data) {
			t.Errorf("%s: content differs", name)
		}
	}
}

func TestEndOfTheContextIsSeenByASlowUpload(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancelled := &lookingReader{Reader: &source{1 << 20, 1}, look: cancel}
	counted := &io.LimitedReader{R: cancelled, N: 1 << 20}
	if err := s.Put(ctx, "key", counted); !errors.Is(err, context.Canceled) {
		t.Errorf("Put = %v", err)
	}
	if read := 1<<20 - counted.N; read > 1 {
		t.Errorf("%d single bytes were read after the context had ended", read-1)
	}
}

func TestEveryNameOfALargeDirectoryIsListed(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	var want []string
	for i := range 10_001 {
		want = append(want, fmt.Sprintf("%08X", i))
		if err := os.WriteFile(filepath.Join(s.root, want[i]), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := list(s, ""); err != nil || !slices.Equal(got, want) {
		t.Errorf("%d of %d listed, or not in order: %v", len(got), len(want), err)
	}
}

// source yields n zero bytes in pieces as a pipe between compressor and storage does.
type source struct{ left, piece int }

func (s *source) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), s.piece, s.left)
	s.left -= n
	return n, nil
}

func BenchmarkPut(b *testing.B) {
	for _, size := range []int{16 << 20, 1 << 30} {
		b.Run(fmt.Sprintf("%dMiB", size>>20), func(b *testing.B) {
			s := openTemp(b)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := s.Put(b.Context(), fmt.Sprintf("dir/%d", i%3), &source{size, 64 << 10}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkGet(b *testing.B) {
	s := openTemp(b)
	const size = 16 << 20
	if err := s.Put(b.Context(), "dir/key", &source{size, 64 << 10}); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	b.ReportAllocs()
	buf := make([]byte, 256<<10)
	for b.Loop() {
		body, err := s.Get(b.Context(), "dir/key")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{body}, buf); err != nil {
			b.Fatal(err)
		}
		if err := body.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func TestAnObjectBehindALinkThatLeadsNowhereIsNotAbsent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Symlink("unmounted", filepath.Join(dir, "wal")); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Root: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"wal", "wal/segment"} {
		if _, err := s.Get(t.Context(), key); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("get %s: %v", key, err)
		}
		if _, err := s.Stat(t.Context(), key); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("stat %s: %v", key, err)
		}
	}
	for _, err := range s.List(t.Context(), "wal/") {
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("list: %v", err)
		}
	}
	if _, err := s.Get(t.Context(), "other/segment"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("get what is absent: %v", err)
	}
}

func TestALinkOutOfTheStoreIsRefusedWithAHint(t *testing.T) {
	t.Parallel()
	dir, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(dir, "wal")); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Root: dir})
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, err error) {
		t.Helper()
		var h interface{ Hint() string }
		if !errors.As(err, &h) || !strings.Contains(h.Hint(), "mount") || !storage.IsPermanent(err) || !strings.Contains(err.Error(), elsewhere) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = s.Get(t.Context(), "wal/segment")
	check("get", err)
	_, err = s.Stat(t.Context(), "wal/segment")
	check("stat", err)
	check("put", s.Put(t.Context(), "wal/segment", strings.NewReader("x")))
	for _, err := range s.List(t.Context(), "wal/") {
		check("list", err)
	}
}
