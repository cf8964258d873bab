// Package storagetest proves that a store keeps the promises of [storage.Store].
//
//   - [Run] is the acceptance suite: every backend passes it, and every store around a store passes it again.
//   - [NewMemory] is a store without a disk or a network, for the tests of everything above storage.
//   - [Fault] is a store around a store that records each call and fails where it is told to.
package storagetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"gitlab.com/walden-pg/walden/internal/storage"
)

const mib = 1 << 20

// Options adapts the suite to a store.
type Options struct {
	// Cannot names the questions (the subtests' names) that the store is not asked, each with the reason why it
	// cannot keep that promise. The test output repeats them, and a name that is no question fails the suite.
	Cannot map[string]string

	// ListKeys is the number of objects in the largest directory listed; default 2,500, which is three pages
	// of a service that gives 1,000 entries at a time.
	ListKeys int

	// LargeSize is the size in bytes of the largest object; default 65 MiB + 1.
	LargeSize int64

	// Secrets must not occur in the store's name or errors.
	Secrets []string
}

// suite is what a question is asked with.
type suite struct {
	o     Options
	store storage.Store
}

// question is one promise; the order is that of the output.
type question struct {
	name string
	ask  func(*suite, *testing.T)
}

// Run asks all questions. open returns an empty store for each of them; stores must not share objects.
func Run(t *testing.T, open func(t *testing.T) storage.Store, o Options) {
	t.Helper()
	if o.ListKeys == 0 {
		o.ListKeys = 2500
	}
	if o.LargeSize == 0 {
		o.LargeSize = 65*mib + 1
	}
	questions := questions()
	for _, name := range slices.Sorted(maps.Keys(o.Cannot)) {
		if !slices.ContainsFunc(questions, func(q question) bool { return q.name == name }) {
			t.Fatalf("Options.Cannot names %q, which is no question of the suite", name)
		}
		t.Logf("NOT PROVEN: %s: %s", name, o.Cannot[name])
	}
	for _, q := range questions {
		if _, cannot := o.Cannot[q.name]; cannot {
			continue
		}
		t.Run(q.name, func(t *testing.T) {
			q.ask(&suite{o: o, store: open(t)}, t)
		})
	}
}

func questions() []question {
	return []question{
		{"check is content with a usable store and writes nothing", (*suite).check},
		{"the name is there and tells no secret", (*suite).name},
		{"an empty store lists as empty", (*suite).emptyStore},
		{"a missing object is fs.ErrNotExist and looking creates nothing", (*suite).missing},
		{"a directory is not an object", (*suite).directoryIsNoObject},
		{"malformed keys are refused", (*suite).malformedKeys},
		{"objects of edge sizes come back as they went in", (*suite).sizes},
		{"a large stream of unknown length comes back as it went in", (*suite).large},
		{"odd keys keep their names", (*suite).oddKeys},
		{"size and time are plausible and the same in Stat and List", (*suite).stat},
		{"put replaces", (*suite).replace},
		{"a reader that fails leaves nothing", (*suite).brokenReader},
		{"a reader that fails leaves the old object", (*suite).brokenOverwrite},
		{"a context that ends during an upload leaves nothing", (*suite).cancelledUpload},
		{"a context that ends during an upload leaves the old object", (*suite).cancelledOverwrite},
		{"a context that has ended does nothing", (*suite).endedContext},
		{"put new refuses a taken key", (*suite).putNewTaken},
		{"put new with a failing reader leaves the key free", (*suite).putNewBroken},
		{"of 16 racing writers of a new key one wins", (*suite).putNewRace},
		{"of racing writers of a large new key one wins", (*suite).putNewLargeRace},
		{"of two writers of one key one wins whole", (*suite).putRace},
		{"different keys are written at the same time", (*suite).concurrentPuts},
		{"writing and deleting side by side in a directory work", (*suite).putBesideDelete},
		{"a reader may be closed early", (*suite).closeEarly},
		{"a context that ends ends a download", (*suite).cancelledDownload},
		{"a listing has one level in order of keys", (*suite).listLevels},
		{"a large directory is listed completely and in order", (*suite).listMany},
		{"a listing may be left early", (*suite).listLeft},
		{"objects may be deleted while they are listed", (*suite).listDeleting},
		{"delete removes what is named and nothing else", (*suite).delete},
		{"a missing object may be deleted", (*suite).deleteMissing},
		{"1,100 objects are deleted at once", (*suite).deleteMany},
		{"a key below an object harms neither", (*suite).keyBelowObject},
	}
}

// Steps that most questions share.

func (s *suite) put(t *testing.T, key string, seed, size int64) {
	t.Helper()
	if err := s.store.Put(t.Context(), key, newContent(seed, size)); err != nil {
		t.Fatalf("Put(%q) of %d bytes: %v", key, size, err)
	}
}

// wantObject fails unless key holds exactly the content of seed and size.
func (s *suite) wantObject(t *testing.T, key string, seed, size int64) {
	t.Helper()
	body, err := s.store.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("Get(%q): %v", key, err)
	}
	if err := compare(body, newContent(seed, size)); err != nil {
		t.Errorf("Get(%q), stored with %d bytes: %v", key, size, err)
	}
	if err := body.Close(); err != nil {
		t.Errorf("closing %q: %v", key, err)
	}
	o, err := s.store.Stat(t.Context(), key)
	if err != nil || o.Key != key || o.Size != size {
		t.Errorf("Stat(%q) = %+v, %v; want %d bytes", key, o, err, size)
	}
}

// wantMissing fails unless every way of looking says that there is no object key.
func (s *suite) wantMissing(t *testing.T, key string) {
	t.Helper()
	if body, err := s.store.Get(t.Context(), key); err == nil {
		body.Close()
		t.Errorf("Get(%q) found an object", key)
	} else if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Get(%q) = %v, want fs.ErrNotExist", key, err)
	} else if text := err.Error(); !strings.Contains(text, key) && !strings.Contains(text, quoted(key)) {
		t.Errorf("Get(%q) = %q, which does not name the object", key, err)
	}
	if o, err := s.store.Stat(t.Context(), key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat(%q) = %+v, %v, want fs.ErrNotExist", key, o, err)
	}
	dir := key[:strings.LastIndexByte(key, '/')+1]
	if slices.Contains(s.list(t, dir), key) {
		t.Errorf("List(%q) shows %q", dir, key)
	}
}

// quoted is key as %q prints it within a longer path.
func quoted(key string) string {
	q := strconv.Quote(key)
	return q[1 : len(q)-1]
}

func (s *suite) list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := collect(s.store.List(t.Context(), dir))
	if err != nil {
		t.Fatalf("List(%q): %v", dir, err)
	}
	keys := make([]string, len(entries))
	for i, o := range entries {
		keys[i] = o.Key
	}
	return keys
}

func (s *suite) wantList(t *testing.T, dir string, want ...string) {
	t.Helper()
	if got := s.list(t, dir); !slices.Equal(got, want) {
		t.Errorf("List(%q) = %q, want %q", dir, got, want)
	}
}

// putMany stores n small objects below dir and returns their keys in ascending order.
func (s *suite) putMany(t *testing.T, dir string, n int) []string {
	t.Helper()
	keys := make([]string, n)
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(16)
	for i := range keys {
		keys[i] = fmt.Sprintf("%s%08X", dir, i)
		g.Go(func() error { return s.store.Put(ctx, keys[i], newContent(int64(i), int64(i%3))) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return keys
}

// The questions.

func (s *suite) check(t *testing.T) {
	if err := s.store.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	s.wantList(t, "")
}

func (s *suite) name(t *testing.T) {
	_, missing := s.store.Stat(t.Context(), "missing")
	if missing == nil {
		t.Fatal("Stat of a missing object succeeded")
	}
	if s.store.String() == "" {
		t.Error("the store has no name")
	}
	for _, text := range []string{s.store.String(), missing.Error()} {
		for i, secret := range s.o.Secrets {
			if strings.Contains(text, secret) {
				t.Errorf("secret %d occurs in a name or error of %d characters", i, len(text))
			}
		}
	}
}

func (s *suite) emptyStore(t *testing.T) {
	s.wantList(t, "")
	s.wantList(t, "wal_005/")
	s.wantList(t, "basebackups_005/base_000000010000000000000002/tar_partitions/")
}

func (s *suite) missing(t *testing.T) {
	s.wantMissing(t, "missing")
	s.wantMissing(t, "no/such/directory/missing")
	s.wantList(t, "")

	s.put(t, "wal_005/here", 1, 10)
	s.wantMissing(t, "wal_005/her")
	s.wantMissing(t, "wal_005/here.lz4")
	s.wantMissing(t, "wal_005/Here")
	s.wantList(t, "wal_005/", "wal_005/here")
}

func (s *suite) directoryIsNoObject(t *testing.T) {
	s.put(t, "dir/object", 1, 10)
	if body, err := s.store.Get(t.Context(), "dir"); err == nil {
		_, err = io.Copy(io.Discard, body)
		body.Close()
		if err == nil {
			t.Error("Get of a directory yields an object")
		}
	}
	if o, err := s.store.Stat(t.Context(), "dir"); err == nil {
		t.Errorf("Stat of a directory yields %+v", o)
	}
	s.wantObject(t, "dir/object", 1, 10)
}

func (s *suite) malformedKeys(t *testing.T) {
	ctx := t.Context()
	refused := func(call, key string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s(%q) succeeded", call, key)
		} else if errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s(%q) = %v: a malformed key is not a missing object", call, key, err)
		}
	}
	for _, key := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "./a", "a/./b", "../a", "a/../b", "a/..", "a\x00b"} {
		refused("Put", key, s.store.Put(ctx, key, newContent(1, 1)))
		refused("PutNew", key, s.store.PutNew(ctx, key, newContent(1, 1)))
		_, err := s.store.Get(ctx, key)
		refused("Get", key, err)
		_, err = s.store.Stat(ctx, key)
		refused("Stat", key, err)
		refused("Delete", key, s.store.Delete(ctx, key))
	}
	for _, dir := range []string{"/", "a", "/a/", "a//", "../", "a/../"} {
		_, err := collect(s.store.List(ctx, dir))
		refused("List", dir, err)
	}
	s.wantList(t, "")
}

func (s *suite) sizes(t *testing.T) {
	for i, size := range []int64{0, 1, 4096, 1*mib - 1, 1 * mib, 1*mib + 1, 5*mib - 1, 5 * mib, 5*mib + 1, 8*mib - 1, 8 * mib,
		8*mib + 1, 20*mib - 1, 20 * mib, 20*mib + 1} {
		key := fmt.Sprintf("sizes/%d", size)
		s.put(t, key, int64(i), size)
		s.wantObject(t, key, int64(i), size)
		key += ".new"
		if size > 8*mib {
			continue
		}
		if err := s.store.PutNew(t.Context(), key, newContent(int64(i), size)); err != nil {
			t.Fatalf("PutNew of %d bytes: %v", size, err)
		}
		s.wantObject(t, key, int64(i), size)
	}
}

func (s *suite) large(t *testing.T) {
	s.put(t, "large", 3, s.o.LargeSize)
	s.wantObject(t, "large", 3, s.o.LargeSize)
}

func (s *suite) oddKeys(t *testing.T) {
	names := []string{
		"with space", " leading and trailing ", "a+b", "100%", "a%20b", "a%2Fb", "tilde~", "~", "back\\slash", "a&b=c", "a?b", "a#b",
		"semi;colon", "quo\"te", "apos'trophe", "<xml>", "a:b", "a,b", "a@b", "a*b", "a|b", "$HOME", "{x}", "[x]", "(x)!", "^`",
		".hidden", "..two", "...", "-dash", "Zürich", "日本語", "emoji\U0001F418", strings.Repeat("long", 50),
		"000000010000000A000000FE.00000028.backup.lz4", "part_001.tar.tmp", "x.tmp.1",
	}
	slices.Sort(names)
	deep := "odd/" + strings.Repeat("deep/", 20) + "object"
	var want []string
	for i, name := range names {
		s.put(t, "odd/dir "+name+"/"+name, int64(i), 5)
		want = append(want, "odd/dir "+name+"/")
	}
	s.put(t, deep, 77, 5)
	slices.Sort(want)
	s.wantList(t, "odd/", slices.Insert(want, 0, "odd/deep/")...)
	for i, name := range names {
		key := "odd/dir " + name + "/" + name
		s.wantObject(t, key, int64(i), 5)
		s.wantList(t, "odd/dir "+name+"/", key)
		if err := s.store.Delete(t.Context(), key); err != nil {
			t.Errorf("Delete(%q): %v", key, err)
		}
		s.wantMissing(t, key)
	}
	s.wantObject(t, deep, 77, 5)
}

func (s *suite) stat(t *testing.T) {
	const skew = time.Hour // between this clock and that of the storage
	earliest := time.Now().Add(-skew)
	s.put(t, "wal_005/a", 1, 12345)
	s.put(t, "wal_005/b", 1, 0)
	latest := time.Now().Add(skew)
	entries, err := collect(s.store.List(t.Context(), "wal_005/"))
	if err != nil || len(entries) != 2 {
		t.Fatalf("List = %+v, %v", entries, err)
	}
	for i, size := range []int64{12345, 0} {
		listed := entries[i]
		o, err := s.store.Stat(t.Context(), listed.Key)
		if err != nil || o.Key != listed.Key || o.Size != size || listed.Size != size {
			t.Errorf("Stat = %+v, %v, List = %+v, want a size of %d", o, err, listed, size)
		}
		if o.Modified.Before(earliest) || o.Modified.After(latest) {
			t.Errorf("Stat says modified at %s, it is %s", o.Modified, time.Now())
		}
		// HTTP headers give whole seconds where listings may give more.
		if d := o.Modified.Sub(listed.Modified).Abs(); d >= time.Second {
			t.Errorf("Stat says modified at %s, List at %s", o.Modified, listed.Modified)
		}
	}
	dirs, err := collect(s.store.List(t.Context(), ""))
	if err != nil || len(dirs) != 1 || !dirs[0].IsDir() || dirs[0].Size != 0 || !dirs[0].Modified.IsZero() {
		t.Errorf("List of the root = %+v, %v, want a directory without size and time", dirs, err)
	}
}

func (s *suite) replace(t *testing.T) {
	for i, size := range []int64{100, 6 * mib, 0, 50} {
		s.put(t, "key", int64(i), size)
		s.wantObject(t, "key", int64(i), size)
	}
	s.wantList(t, "", "key")
}

var errBroken = errors.New("the source is broken")

func (s *suite) brokenReader(t *testing.T) {
	for _, size := range []int64{0, 1, 6 * mib, 45 * mib} {
		err := s.store.Put(t.Context(), "new/dir/key", brokenAfter(1, size, errBroken))
		if !errors.Is(err, errBroken) {
			t.Errorf("Put with a reader failing after %d bytes = %v, want the reader's error", size, err)
		}
		s.wantMissing(t, "new/dir/key")
		s.wantList(t, "")
	}
}

func (s *suite) brokenOverwrite(t *testing.T) {
	s.put(t, "dir/key", 1, 1000)
	for _, size := range []int64{0, 1, 6 * mib, 45 * mib} {
		err := s.store.Put(t.Context(), "dir/key", brokenAfter(2, size, errBroken))
		if !errors.Is(err, errBroken) {
			t.Errorf("Put with a reader failing after %d bytes = %v, want the reader's error", size, err)
		}
		s.wantObject(t, "dir/key", 1, 1000)
		s.wantList(t, "dir/", "dir/key")
	}
}

// cancelled puts key with a context that ends after some bytes, and with a source that would go on.
func (s *suite) cancelled(t *testing.T, put func(context.Context, string, io.Reader) error, key string, after int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := put(ctx, key, &cancellingReader{newContent(2, after+300*mib), cancel, after})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("putting with a context that ended after %d bytes = %v, want context.Canceled", after, err)
	}
}

func (s *suite) cancelledUpload(t *testing.T) {
	for _, after := range []int64{0, 6 * mib, 45 * mib} {
		s.cancelled(t, s.store.Put, "new/dir/key", after)
		s.wantMissing(t, "new/dir/key")
		s.cancelled(t, s.store.PutNew, "new/dir/key", after)
		s.wantMissing(t, "new/dir/key")
		s.wantList(t, "")
	}
}

func (s *suite) cancelledOverwrite(t *testing.T) {
	s.put(t, "dir/key", 1, 1000)
	for _, after := range []int64{0, 6 * mib, 45 * mib} {
		s.cancelled(t, s.store.Put, "dir/key", after)
		s.wantObject(t, "dir/key", 1, 1000)
	}
}

func (s *suite) endedContext(t *testing.T) {
	s.put(t, "old", 1, 10)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ended := func(call string, err error) {
		t.Helper()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s = %v, want context.Canceled", call, err)
		}
	}
	ended("Put", s.store.Put(ctx, "new", newContent(1, 10)))
	ended("PutNew", s.store.PutNew(ctx, "new", newContent(1, 10)))
	_, err := s.store.Get(ctx, "old")
	if err == nil {
		t.Error("Get succeeded")
	}
	_, err = s.store.Stat(ctx, "old")
	ended("Stat", err)
	_, err = collect(s.store.List(ctx, ""))
	ended("List", err)
	ended("Delete", s.store.Delete(ctx, "old"))
	ended("Check", s.store.Check(ctx))
	s.wantList(t, "", "old")
}

func (s *suite) putNewTaken(t *testing.T) {
	s.put(t, "key", 1, 1000)
	for _, size := range []int64{0, 1000, 6 * mib} {
		err := s.store.PutNew(t.Context(), "key", newContent(2, size))
		if !errors.Is(err, storage.ErrExists) {
			t.Errorf("PutNew of %d bytes = %v, want ErrExists", size, err)
		}
		s.wantObject(t, "key", 1, 1000)
	}
	if err := s.store.Delete(t.Context(), "key"); err != nil {
		t.Fatal(err)
	}
	if err := s.store.PutNew(t.Context(), "key", newContent(3, 10)); err != nil {
		t.Errorf("PutNew after Delete: %v", err)
	}
	s.wantObject(t, "key", 3, 10)
}

func (s *suite) putNewBroken(t *testing.T) {
	for _, size := range []int64{0, 1, 6 * mib, 45 * mib} {
		key := fmt.Sprintf("new/%d", size)
		err := s.store.PutNew(t.Context(), key, brokenAfter(1, size, errBroken))
		if !errors.Is(err, errBroken) {
			t.Errorf("PutNew with a reader failing after %d bytes = %v, want the reader's error", size, err)
		}
		s.wantMissing(t, key)
		if err := s.store.PutNew(t.Context(), key, newContent(2, 10)); err != nil {
			t.Errorf("PutNew after a failed one: %v", err)
		}
		s.wantObject(t, key, 2, 10)
	}
}

func (s *suite) putNewRace(t *testing.T)      { s.race(t, 5, 16, 1000) }
func (s *suite) putNewLargeRace(t *testing.T) { s.race(t, 1, 4, 21*mib) }

// race lets writers of different content meet on one new key.
func (s *suite) race(t *testing.T, rounds, writers int, size int64) {
	for round := range rounds {
		key := fmt.Sprintf("race/%d/key", round)
		start := make(chan struct{})
		errs := make([]error, writers)
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				<-start
				errs[w] = s.store.PutNew(t.Context(), key, newContent(int64(w), size+int64(w)))
			})
		}
		close(start)
		wg.Wait()
		winner := -1
		for w, err := range errs {
			switch {
			case err == nil && winner >= 0:
				t.Errorf("writers %d and %d both won", winner, w)
			case err == nil:
				winner = w
			case !errors.Is(err, storage.ErrExists):
				t.Errorf("writer %d lost with %v, want ErrExists", w, err)
			}
		}
		if winner < 0 {
			t.Fatal("nobody won")
		}
		s.wantObject(t, key, int64(winner), size+int64(winner))
		s.wantList(t, fmt.Sprintf("race/%d/", round), key)
	}
}

func (s *suite) putRace(t *testing.T) {
	var g errgroup.Group
	for w := range int64(2) {
		g.Go(func() error { return s.store.Put(t.Context(), "key", newContent(w, 6*mib+w)) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	o, err := s.store.Stat(t.Context(), "key")
	if err != nil || o.Size != 6*mib && o.Size != 6*mib+1 {
		t.Fatalf("Stat = %+v, %v", o, err)
	}
	s.wantObject(t, "key", o.Size-6*mib, o.Size)
	s.wantList(t, "", "key")
}

func (s *suite) concurrentPuts(t *testing.T) {
	const n, size = 32, 300_000
	key := func(i int64) string { return fmt.Sprintf("a/%d/b/%02d", i%4, i) }
	g, ctx := errgroup.WithContext(t.Context())
	for i := range int64(n) {
		g.Go(func() error { return s.store.Put(ctx, key(i), newContent(i, size+i)) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for i := range int64(n) {
		s.wantObject(t, key(i), i, size+i)
	}
}

func (s *suite) putBesideDelete(t *testing.T) {
	g, ctx := errgroup.WithContext(t.Context())
	for w := range 4 {
		g.Go(func() error {
			key := fmt.Sprintf("some/dir/%d", w)
			for round := range int64(25) {
				if err := s.store.Put(ctx, key, newContent(round, 100)); err != nil {
					return err
				}
				if _, err := s.store.Stat(ctx, key); err != nil {
					return fmt.Errorf("right after Put: %w", err)
				}
				if err := s.store.Delete(ctx, key); err != nil {
					return err
				}
				if _, err := s.store.Stat(ctx, key); !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("right after Delete, Stat says %w", err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	s.wantList(t, "")
}

func (s *suite) closeEarly(t *testing.T) {
	const size = 6 * mib
	s.put(t, "key", 1, size)
	for i := range 20 {
		body, err := s.store.Get(t.Context(), "key")
		if err != nil {
			t.Fatalf("Get number %d: %v", i, err)
		}
		if _, err := io.CopyN(io.Discard, body, int64(i)); err != nil {
			t.Errorf("reading %d bytes: %v", i, err)
		}
		if err := body.Close(); err != nil {
			t.Errorf("closing after %d bytes: %v", i, err)
		}
	}
	s.wantObject(t, "key", 1, size)
}

func (s *suite) cancelledDownload(t *testing.T) {
	s.put(t, "key", 1, 45*mib)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	body, err := s.store.Get(ctx, "key")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, err := io.CopyN(io.Discard, body, 1000); err != nil {
		t.Fatal(err)
	}
	cancel()
	if n, err := io.Copy(io.Discard, body); err == nil {
		t.Errorf("%d more bytes and no error after the context ended", n)
	}
}

func (s *suite) listLevels(t *testing.T) {
	for _, key := range []string{"x/a", "x/b/1", "x/b/c/2", "x/b-", "x/b.", "x/b0", "x/B", "x/z/1", "y", "x.y", "xa/1"} {
		s.put(t, key, 1, 1)
	}
	s.wantList(t, "", "x.y", "x/", "xa/", "y")
	s.wantList(t, "x/", "x/B", "x/a", "x/b-", "x/b.", "x/b/", "x/b0", "x/z/")
	s.wantList(t, "x/b/", "x/b/1", "x/b/c/")
	s.wantList(t, "x/b/c/", "x/b/c/2")
	s.wantList(t, "x/c/")
}

func (s *suite) listMany(t *testing.T) {
	want := s.putMany(t, "wal_005/", s.o.ListKeys)
	s.put(t, "wal_006/other", 1, 1)
	got := s.list(t, "wal_005/")
	if !slices.Equal(got, want) {
		t.Errorf("%d of %d objects listed, or not in order", len(got), len(want))
	}
	if err := s.store.Delete(t.Context(), want...); err != nil {
		t.Error(err)
	}
	s.wantList(t, "wal_005/")
}

func (s *suite) listLeft(t *testing.T) {
	keys := s.putMany(t, "dir/", 20)
	for want := range 3 {
		n := 0
		for o, err := range s.store.List(t.Context(), "dir/") {
			if err != nil || o.Key != keys[n] {
				t.Fatalf("entry %d = %+v, %v", n, o, err)
			}
			if n == want {
				break
			}
			n++
		}
	}
}

func (s *suite) listDeleting(t *testing.T) {
	want := s.putMany(t, "dir/", 1200)
	var got, batch []string
	for o, err := range s.store.List(t.Context(), "dir/") {
		if err != nil {
			t.Fatalf("after %d entries: %v", len(got), err)
		}
		got = append(got, o.Key)
		if batch = append(batch, o.Key); len(batch) == 50 {
			if err := s.store.Delete(t.Context(), batch...); err != nil {
				t.Fatal(err)
			}
			batch = nil
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d of %d objects listed, or not in order", len(got), len(want))
	}
	s.wantList(t, "")
}

func (s *suite) delete(t *testing.T) {
	for _, key := range []string{"a/b", "a/bc", "a/b.c", "a/d/e", "f"} {
		s.put(t, key, 1, 1)
	}
	if err := s.store.Delete(t.Context(), "a/b", "f"); err != nil {
		t.Fatal(err)
	}
	s.wantMissing(t, "a/b")
	s.wantList(t, "", "a/")
	s.wantList(t, "a/", "a/b.c", "a/bc", "a/d/")
	if err := s.store.Delete(t.Context(), "a/d/e", "a/bc", "a/b.c"); err != nil {
		t.Fatal(err)
	}
	s.wantList(t, "a/")
	s.wantList(t, "")
}

func (s *suite) deleteMissing(t *testing.T) {
	s.put(t, "a/b", 1, 1)
	for _, keys := range [][]string{nil, {"missing"}, {"no/such/dir/missing"}, {"a/c"}, {"missing", "a/b", "a/b", "a/missing"}} {
		if err := s.store.Delete(t.Context(), keys...); err != nil {
			t.Errorf("Delete(%q): %v", keys, err)
		}
	}
	s.wantList(t, "")
}

func (s *suite) deleteMany(t *testing.T) {
	keys := s.putMany(t, "many/", 1100)
	s.put(t, "many/kept", 1, 1)
	if err := s.store.Delete(t.Context(), keys...); err != nil {
		t.Fatal(err)
	}
	s.wantList(t, "many/", "many/kept")
}

// A file system cannot hold both, and neither can gateways to one. What counts is that nothing is damaged.
func (s *suite) keyBelowObject(t *testing.T) {
	s.put(t, "a", 1, 10)
	if err := s.store.Put(t.Context(), "a/b", newContent(2, 20)); err == nil {
		s.wantObject(t, "a/b", 2, 20)
	}
	s.wantObject(t, "a", 1, 10)

	s.put(t, "c/d", 3, 30)
	if err := s.store.Put(t.Context(), "c", newContent(4, 40)); err == nil {
		s.wantObject(t, "c", 4, 40)
	}
	s.wantObject(t, "c/d", 3, 30)
}
