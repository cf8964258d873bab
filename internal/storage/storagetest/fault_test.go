package storagetest

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// memoryWith returns a memory store in which each key holds itself twice.
func memoryWith(t *testing.T, keys ...string) storage.Store {
	t.Helper()
	s := NewMemory()
	for _, key := range keys {
		if err := s.Put(t.Context(), key, strings.NewReader(key+key)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func read(t *testing.T, s storage.Store, key string) (string, error) {
	t.Helper()
	body, err := s.Get(t.Context(), key)
	if err != nil {
		return "", err
	}
	defer body.Close()
	content, err := io.ReadAll(body)
	return string(content), err
}

func keys(t *testing.T, s storage.Store, dir string) ([]string, error) {
	t.Helper()
	entries, err := collect(s.List(t.Context(), dir))
	var keys []string
	for _, o := range entries {
		keys = append(keys, o.Key)
	}
	return keys, err
}

func TestFaultsOfReading(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind Kind
		want string
		err  error
	}{
		{Before, "", ErrInjected},
		{Half, "0123", ErrInjected},
		{Truncate, "0123", nil},
		{Empty, "", nil},
		{FlipBit, "01231123", nil},
	} {
		f := NewFault(memoryWith(t, "0123"), Rule{Kind: c.kind, Nth: 2})
		if got, err := read(t, f, "0123"); got != "01230123" || err != nil || f.Fired() {
			t.Errorf("kind %d, first call: %q, %v", c.kind, got, err)
		}
		if got, err := read(t, f, "0123"); got != c.want || !errors.Is(err, c.err) || !f.Fired() {
			t.Errorf("kind %d, second call: %q, %v; want %q, %v", c.kind, got, err, c.want, c.err)
		}
	}
}

func TestFaultsOfWriting(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind   Kind
		stored bool
	}{{Before, false}, {Half, false}, {AnswerLost, true}} {
		f := NewFault(memoryWith(t), Rule{Kind: c.kind})
		putErr := f.Put(t.Context(), "put", strings.NewReader("12345678"))
		newErr := f.PutNew(t.Context(), "new", strings.NewReader("12345678"))
		if !errors.Is(putErr, ErrInjected) || !errors.Is(newErr, ErrInjected) {
			t.Errorf("kind %d: %v, %v", c.kind, putErr, newErr)
		}
		got, err := keys(t, f.inner, "")
		if err != nil || c.stored != slices.Equal(got, []string{"new", "put"}) || !c.stored && len(got) > 0 {
			t.Errorf("kind %d: stored %q, %v", c.kind, got, err)
		}
	}
}

func TestFaultsOfDeleting(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind Kind
		left []string
	}{{Before, []string{"a", "b"}}, {Half, []string{"b"}}, {AnswerLost, nil}} {
		f := NewFault(memoryWith(t, "a", "b"), Rule{Kind: c.kind})
		if err := f.Delete(t.Context(), "a", "b"); !errors.Is(err, ErrInjected) {
			t.Errorf("kind %d: %v", c.kind, err)
		}
		if got, err := keys(t, f.inner, ""); err != nil || !slices.Equal(got, c.left) {
			t.Errorf("kind %d: left %q, %v", c.kind, got, err)
		}
	}
}

func TestFaultsOfListing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind Kind
		want []string
		err  error
	}{
		{Before, nil, ErrInjected},
		{Half, []string{"d/a"}, ErrInjected},
		{Empty, nil, nil},
		{Disorder, []string{"d/c", "d/b", "d/a"}, nil},
	} {
		f := NewFault(memoryWith(t, "d/a", "d/b", "d/c"), Rule{Kind: c.kind})
		if got, err := keys(t, f, "d/"); !slices.Equal(got, c.want) || !errors.Is(err, c.err) {
			t.Errorf("kind %d: %q, %v; want %q, %v", c.kind, got, err, c.want, c.err)
		}
	}
}

func TestStaleListingShowsTheStateBefore(t *testing.T) {
	t.Parallel()
	f := NewFault(memoryWith(t, "a", "b", "gone/1", "kept/1", "kept/2"), Rule{Kind: Stale})
	for _, key := range []string{"a", "c", "new/1", "kept/3"} {
		if err := f.Put(t.Context(), key, strings.NewReader("much longer content")); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Delete(t.Context(), "b", "gone/1", "kept/2", "c", "never"); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string][]string{
		"": {"a", "b", "gone/", "kept/"}, "gone/": {"gone/1"}, "kept/": {"kept/1", "kept/2"}, "new/": nil,
	} {
		if got, err := keys(t, f, dir); err != nil || !slices.Equal(got, want) {
			t.Errorf("List(%q) = %q, %v; want %q", dir, got, err, want)
		}
	}
	for o := range f.List(t.Context(), "") {
		if o.Key == "a" && o.Size != 2 {
			t.Errorf("a has its new size %d", o.Size)
		}
	}
}

func TestHangingCallsEndWithTheContext(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{Hang, HangHalf} {
		f := NewFault(memoryWith(t, "a", "b"), Rule{Kind: kind})
		for op, call := range map[Op]func(context.Context) error{
			OpPut:    func(ctx context.Context) error { return f.Put(ctx, "a", strings.NewReader("x")) },
			OpPutNew: func(ctx context.Context) error { return f.PutNew(ctx, "c", strings.NewReader("x")) },
			OpGet: func(ctx context.Context) error {
				body, err := f.Get(ctx, "a")
				if err != nil {
					return err
				}
				_, err = io.Copy(io.Discard, body)
				return err
			},
			OpList: func(ctx context.Context) error { _, err := collect(f.List(ctx, "")); return err },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("kind %d, %s: %v", kind, op, err)
			}
			cancel()
		}
	}
}

func TestRulesChooseByCallAndNumber(t *testing.T) {
	t.Parallel()
	mine := errors.New("mine")
	f := NewFault(memoryWith(t, "a", "b"), Rule{
		Kind: Before, Nth: 2, Err: mine, Match: func(c Call) bool { return c.Op == OpStat && c.Key == "b" },
	})
	var failed []int
	for i, key := range []string{"a", "b", "a", "b", "b"} {
		if _, err := f.Stat(t.Context(), key); errors.Is(err, mine) {
			failed = append(failed, i)
		}
	}
	if _, err := read(t, f, "b"); err != nil || !slices.Equal(failed, []int{3}) {
		t.Errorf("calls %v failed, Get: %v", failed, err)
	}
	if err := f.Delete(t.Context(), "a", "b"); err != nil {
		t.Error(err)
	}
	calls := f.Calls()
	if len(calls) != 7 || calls[5].Op != OpGet || calls[6].Op != OpDelete || !slices.Equal(calls[6].Keys, []string{"a", "b"}) {
		t.Errorf("calls: %+v", calls)
	}
	f.Forget()
	if f.Count(OpStat) != 0 || !f.Fired() {
		t.Error("Forget drops the calls and nothing else")
	}
}

// A sweep as jobs use it: some i must not fire, or it would never end.
func TestSweepEnds(t *testing.T) {
	t.Parallel()
	for i := 1; ; i++ {
		f := NewFault(memoryWith(t, "a"), Rule{Kind: Before, Nth: i})
		_, err1 := f.Stat(t.Context(), "a")
		_, err2 := read(t, f, "a")
		failed := err1 != nil || err2 != nil
		if failed != f.Fired() {
			t.Errorf("call %d: %v, %v, but Fired is %v", i, err1, err2, f.Fired())
		}
		if !f.Fired() {
			if i != 3 {
				t.Errorf("two calls, but the sweep ended at %d", i)
			}
			return
		}
	}
}

func TestCompareSeesEveryDifference(t *testing.T) {
	t.Parallel()
	const size = 300_000
	for name, got := range map[string]io.Reader{
		"shorter by one": newContent(1, size-1), "longer by one": newContent(1, size+1), "empty": newContent(1, 0),
		"other content": newContent(2, size), "shorter by a buffer": newContent(1, 256<<10),
		"one bit": &flippingReader{r: newContent(1, size), at: size - 1}, "fails": brokenAfter(1, size, ErrInjected),
	} {
		if compare(got, newContent(1, size)) == nil {
			t.Errorf("%s: no difference found", name)
		}
	}
	for _, size := range []int64{0, 1, 256 << 10, 256<<10 + 1, 3 << 20} {
		if err := compare(newContent(1, size), newContent(1, size)); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	if compare(newContent(1, 256<<10), newContent(1, 256<<10+1)) == nil || compare(newContent(1, 0), newContent(1, 1)) == nil {
		t.Error("an end one byte early is not found")
	}
}
