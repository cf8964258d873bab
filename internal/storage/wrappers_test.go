package storage_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gitlab.com/walden-pg/walden/internal/pace"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
)

func TestStoresAroundAStoreKeepThePromises(t *testing.T) {
	t.Parallel()
	for name, wrap := range map[string]func(storage.Store) storage.Store{
		"retry":  func(s storage.Store) storage.Store { return storage.WithRetry(s, storage.RetryOptions{}) },
		"stall":  func(s storage.Store) storage.Store { return storage.WithStallLimit(s, time.Minute) },
		"prefix": func(s storage.Store) storage.Store { return storage.WithPrefix(s, "some/folder") },
		"rate":   func(s storage.Store) storage.Store { return storage.WithRateLimit(s, pace.New(1<<40)) },
		"all": func(s storage.Store) storage.Store {
			s = storage.WithRateLimit(storage.WithStallLimit(s, time.Minute), pace.New(1<<40))
			return storage.WithRetry(s, storage.RetryOptions{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			storagetest.Run(t, func(*testing.T) storage.Store { return wrap(storagetest.NewMemory()) },
				storagetest.Options{LargeSize: 5 << 20})
		})
	}
}

func list(ctx context.Context, s storage.Store, dir string) (keys []string, err error) {
	for o, err := range s.List(ctx, dir) {
		if err != nil {
			return keys, err
		}
		keys = append(keys, o.Key)
	}
	return keys, nil
}

// calls are the methods by name, on a store that holds "dir/a" and "dir/b".
var calls = map[storagetest.Op]func(context.Context, storage.Store) error{
	storagetest.OpPut: func(ctx context.Context, s storage.Store) error {
		return s.Put(ctx, "dir/c", strings.NewReader("content"))
	},
	storagetest.OpPutNew: func(ctx context.Context, s storage.Store) error {
		return s.PutNew(ctx, "dir/d", strings.NewReader("content"))
	},
	storagetest.OpGet: func(ctx context.Context, s storage.Store) error {
		body, err := s.Get(ctx, "dir/a")
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, body)
		return errors.Join(err, body.Close())
	},
	storagetest.OpStat: func(ctx context.Context, s storage.Store) error {
		_, err := s.Stat(ctx, "dir/a")
		return err
	},
	storagetest.OpList: func(ctx context.Context, s storage.Store) error {
		keys, err := list(ctx, s, "dir/")
		if err == nil && (len(keys) < 2 || !slices.IsSorted(keys)) {
			return fmt.Errorf("listed %q", keys)
		}
		return err
	},
	storagetest.OpDelete: func(ctx context.Context, s storage.Store) error { return s.Delete(ctx, "dir/b") },
	storagetest.OpCheck:  func(ctx context.Context, s storage.Store) error { return s.Check(ctx) },
}

func filled(t *testing.T) storage.Store {
	t.Helper()
	s := storagetest.NewMemory()
	for _, key := range []string{"dir/a", "dir/b"} {
		if err := s.Put(t.Context(), key, strings.NewReader("content of "+key)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestRetryRepeatsWhatCanBeRepeated(t *testing.T) {
	t.Parallel()
	for op, call := range calls {
		t.Run(string(op), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := storagetest.NewFault(filled(t),
					storagetest.Rule{Kind: storagetest.Before, Nth: 1}, storagetest.Rule{Kind: storagetest.Before, Nth: 2})
				var told []time.Duration
				start := time.Now()
				err := call(t.Context(), storage.WithRetry(f, storage.RetryOptions{
					FirstWait: time.Second, OnRetry: func(_ error, wait time.Duration) { told = append(told, wait) },
				}))
				if op == storagetest.OpPut || op == storagetest.OpPutNew {
					if !errors.Is(err, storagetest.ErrInjected) || f.Count(op) != 1 {
						t.Errorf("%d calls, %v; a stream cannot be rewound", f.Count(op), err)
					}
					return
				}
				if err != nil || f.Count(op) != 3 {
					t.Errorf("%d calls, %v", f.Count(op), err)
				}
				if len(told) != 2 || told[0] < time.Second/2 || told[0] > time.Second || told[1] < time.Second || told[1] > 2*time.Second {
					t.Errorf("waits of %s", told)
				}
				if spent := time.Since(start); len(told) == 2 && spent != told[0]+told[1] {
					t.Errorf("spent %s", spent)
				}
			})
		})
	}
}

func TestRetryIsBounded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name        string
		o           storage.RetryOptions
		calls       int
		least, most time.Duration
	}{
		{"by attempts", storage.RetryOptions{Attempts: 4, FirstWait: time.Second, Total: time.Hour}, 4, 3500 * time.Millisecond, 7 * time.Second},
		{"by the longest wait", storage.RetryOptions{Attempts: 11, FirstWait: time.Second, MaxWait: 2 * time.Second, Total: time.Hour}, 11,
			9500 * time.Millisecond, 19 * time.Second},
		{"by total time", storage.RetryOptions{Attempts: 1e9, FirstWait: time.Second, Total: time.Minute}, 0, 40 * time.Second, time.Minute},
		{"by one attempt", storage.RetryOptions{Attempts: 1}, 1, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := storagetest.NewFault(storagetest.NewMemory(), storagetest.Rule{Kind: storagetest.Before})
				start := time.Now()
				_, err := storage.WithRetry(f, c.o).Stat(t.Context(), "key")
				spent := time.Since(start)
				if !errors.Is(err, storagetest.ErrInjected) || c.calls > 0 && f.Count(storagetest.OpStat) != c.calls || spent < c.least || spent > c.most {
					t.Errorf("%d calls in %s: %v", f.Count(storagetest.OpStat), spent, err)
				}
				if c.calls != 1 && !strings.Contains(err.Error(), fmt.Sprintf("(tried %d times in ", f.Count(storagetest.OpStat))) {
					t.Errorf("the error does not tell how often it was tried: %v", err)
				}
			})
		})
	}
}

func TestRetryDoesNotRepeatFinalErrors(t *testing.T) {
	t.Parallel()
	for _, final := range []error{
		fs.ErrNotExist, storage.ErrExists, fs.ErrPermission, context.Canceled, storage.Permanent(errors.New("no such bucket")),
	} {
		f := storagetest.NewFault(storagetest.NewMemory(), storagetest.Rule{Kind: storagetest.Before, Err: fmt.Errorf("wrapped: %w", final)})
		_, err := storage.WithRetry(f, storage.RetryOptions{}).Get(t.Context(), "key")
		if !errors.Is(err, final) || f.Count(storagetest.OpGet) != 1 {
			t.Errorf("%v: %d calls, %v", final, f.Count(storagetest.OpGet), err)
		}
	}
}

func TestRetryTakesAnInnerTimeoutForPassing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := storagetest.NewFault(filled(t), storagetest.Rule{Kind: storagetest.Before, Nth: 1, Err: context.DeadlineExceeded})
		if err := calls[storagetest.OpGet](t.Context(), storage.WithRetry(f, storage.RetryOptions{})); err != nil {
			t.Error(err)
		}
	})
}

func TestRetryEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		f := storagetest.NewFault(storagetest.NewMemory(), storagetest.Rule{Kind: storagetest.Before})
		start := time.Now()
		err := storage.WithRetry(f, storage.RetryOptions{Attempts: 1e9, MaxWait: time.Hour}).Delete(ctx, "key")
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, storagetest.ErrInjected) || time.Since(start) != 10*time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

func TestRetryGoesOnWithAListingBehindWhatWasYielded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := storagetest.NewFault(filled(t), storagetest.Rule{Kind: storagetest.Half, Nth: 1})
		keys, err := list(t.Context(), storage.WithRetry(f, storage.RetryOptions{}), "dir/")
		if !slices.Equal(keys, []string{"dir/a", "dir/b"}) || err != nil || f.Count(storagetest.OpList) != 2 {
			t.Errorf("%q, %v after %d calls", keys, err, f.Count(storagetest.OpList))
		}
		f = storagetest.NewFault(filled(t), storagetest.Rule{Kind: storagetest.Half})
		keys, err = list(t.Context(), storage.WithRetry(f, storage.RetryOptions{Attempts: 3}), "dir/")
		if !slices.Equal(keys, []string{"dir/a"}) || !errors.Is(err, storagetest.ErrInjected) || f.Count(storagetest.OpList) != 3 {
			t.Errorf("of a listing that always breaks off: %q, %v after %d calls", keys, err, f.Count(storagetest.OpList))
		}
	})
}

func TestPermanentKeepsTextAndCause(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("cannot open: %w", storage.Permanent(fs.ErrInvalid))
	if !storage.IsPermanent(err) || !errors.Is(err, fs.ErrInvalid) || err.Error() != "cannot open: invalid argument" {
		t.Errorf("%v", err)
	}
	if storage.IsPermanent(fs.ErrInvalid) || storage.Permanent(nil) != nil || storage.IsPermanent(nil) {
		t.Error("an unmarked error is permanent")
	}
}

func TestStallIsEndedAndSaysWhatWasWaitedFor(t *testing.T) {
	t.Parallel()
	want := map[storagetest.Op]string{
		storagetest.OpPut:    `cannot put "dir/c" in memory://: no progress for 2m0s`,
		storagetest.OpPutNew: `cannot put "dir/d" in memory://: no progress for 2m0s`,
		storagetest.OpGet:    `cannot get "dir/a" from memory://: no progress for 2m0s`,
		storagetest.OpStat:   `cannot look up "dir/a" in memory://: no progress for 2m0s`,
		storagetest.OpList:   `cannot list "dir/" in memory://: no progress for 2m0s`,
		storagetest.OpDelete: `cannot delete "dir/b" from memory://: no progress for 2m0s`,
		storagetest.OpCheck:  `cannot reach memory://: no progress for 2m0s`,
	}
	for _, kind := range []storagetest.Kind{storagetest.Hang, storagetest.HangHalf} {
		for op, call := range calls {
			t.Run(fmt.Sprintf("%s/%d", op, kind), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					if kind == storagetest.HangHalf && op != storagetest.OpGet && op != storagetest.OpList {
						return // half a Put hangs in its source
					}
					f := storagetest.NewFault(filled(t), storagetest.Rule{Kind: kind})
					start := time.Now()
					err := call(t.Context(), storage.WithStallLimit(f, 2*time.Minute))
					var stall *storage.StallError
					if !errors.As(err, &stall) || !stall.Timeout() || err.Error() != want[op] || time.Since(start) != 2*time.Minute {
						t.Errorf("after %s: %v", time.Since(start), err)
					}
				})
			})
		}
	}
}

// slowReader yields one byte after each wait.
type slowReader struct {
	left int
	wait time.Duration
}

func (r *slowReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	r.left--
	time.Sleep(r.wait)
	return copy(p, "x"), nil
}

func TestSlowSourceOrConsumerIsNoStall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := storage.WithStallLimit(storagetest.NewMemory(), time.Second)
		for _, put := range []func(context.Context, string, io.Reader) error{s.Put, s.PutNew} {
			key := fmt.Sprint(time.Now())
			if err := put(t.Context(), key, &slowReader{3, time.Hour}); err != nil {
				t.Fatal(err)
			}
			body, err := s.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				time.Sleep(time.Hour)
				if _, err := io.ReadFull(body, make([]byte, 1)); err != nil {
					t.Error(err)
				}
			}
			if err := body.Close(); err != nil {
				t.Error(err)
			}
		}
		for _, err := range s.List(t.Context(), "") {
			if err != nil {
				t.Error(err)
			}
			time.Sleep(time.Hour)
		}
	})
}

func TestEndOfTheCallersContextIsNoStall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		f := storagetest.NewFault(filled(t), storagetest.Rule{Kind: storagetest.Hang})
		err := calls[storagetest.OpPut](ctx, storage.WithStallLimit(f, time.Minute))
		var stall *storage.StallError
		if !errors.Is(err, context.DeadlineExceeded) || errors.As(err, &stall) {
			t.Errorf("%v", err)
		}
	})
}

func TestStalledAttemptIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := storagetest.NewFault(filled(t), storagetest.Rule{Kind: storagetest.Hang, Nth: 1})
		s := storage.WithRetry(storage.WithStallLimit(f, 30*time.Second), storage.RetryOptions{})
		if err := calls[storagetest.OpStat](t.Context(), s); err != nil || f.Count(storagetest.OpStat) != 2 {
			t.Errorf("%d calls, %v", f.Count(storagetest.OpStat), err)
		}
	})
}

func TestDeleteOfManyObjectsHasAClockForEachBatch(t *testing.T) {
	t.Parallel()
	keys := make([]string, 2500)
	for i := range keys {
		keys[i] = fmt.Sprint(i)
	}
	f := storagetest.NewFault(storagetest.NewMemory(), storagetest.Rule{Kind: storagetest.Before, Nth: 2})
	err := storage.WithStallLimit(f, time.Minute).Delete(t.Context(), keys...)
	if !errors.Is(err, storagetest.ErrInjected) {
		t.Errorf("%v", err)
	}
	var got []string
	for _, c := range f.Calls() {
		got = append(got, c.Keys...)
	}
	if !slices.Equal(got, keys) || f.Count(storagetest.OpDelete) != 3 {
		t.Errorf("%d keys in %d calls", len(got), f.Count(storagetest.OpDelete))
	}
}

func TestRateLimitHoldsOverAllStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const perSecond, size = 100_000, 500_000
		s := storage.WithRateLimit(storagetest.NewMemory(), pace.New(perSecond))
		start := time.Now()
		if err := s.Put(t.Context(), "key", strings.NewReader(strings.Repeat("x", size))); err != nil {
			t.Fatal(err)
		}
		body, err := s.Get(t.Context(), "key")
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, body); n != size || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
		seconds := float64(2*size-perSecond-65536) / perSecond
		want := time.Duration(seconds * float64(time.Second))
		if spent := time.Since(start); (spent - want).Abs() > 10*time.Millisecond {
			t.Errorf("%s, want %s", spent, want)
		}
	})
}

func TestRateLimitWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := io.Copy(io.Discard, storage.LimitReader(ctx, strings.NewReader(strings.Repeat("x", 1<<20)), pace.New(1)))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

func TestNoLimitIsNoWrapper(t *testing.T) {
	t.Parallel()
	s, r := storagetest.NewMemory(), strings.NewReader("")
	if storage.WithRateLimit(s, nil) != s ||
		storage.LimitReader(t.Context(), r, nil) != io.Reader(r) || storage.WithStallLimit(s, 0) != s {
		t.Error("something is wrapped without a limit")
	}
}

func TestBudgetIsNeverExceededAndNeverDeadlocksAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := storage.NewBudget(100)
		if b.Size() != 100 {
			t.Errorf("Size = %d", b.Size())
		}
		if err := b.Acquire(t.Context(), 1000); err != nil { // more than there is: the whole
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.Acquire(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one byte more than the budget: %v", err)
		}
		got := make(chan error)
		go func() { got <- b.Acquire(t.Context(), 60) }()
		synctest.Wait()
		b.Release(1000)
		if err := <-got; err != nil {
			t.Error(err)
		}
		if err := b.Acquire(t.Context(), 40); err != nil {
			t.Error(err)
		}
		b.Release(60)
		b.Release(40)
		if err := b.Acquire(t.Context(), 100); err != nil {
			t.Error(err)
		}
		b.Release(100)
	})
}

func TestCheckKey(t *testing.T) {
	t.Parallel()
	for key, ok := range map[string]bool{
		"a": true, "a/b": true, "...": true, "..a/b..": true, ".a": true, " ": true, "a\\b": true,
		"": false, "/": false, "/a": false, "a/": false, "a//b": false, ".": false, "..": false, "a/.": false, "a/../b": false, "a\x00": false,
	} {
		if err := storage.CheckKey(key); (err == nil) != ok || err != nil && !storage.IsPermanent(err) {
			t.Errorf("CheckKey(%q) = %v", key, err)
		}
		if err := storage.CheckDir(key + "/"); (err == nil) != ok {
			t.Errorf("CheckDir(%q) = %v", key+"/", err)
		}
	}
	if storage.CheckDir("") != nil || storage.CheckDir("a") == nil {
		t.Error("CheckDir of the root, or without a slash")
	}
}

// buffering takes all of the source at once and then sends it bit by bit, as S3 does with parts over a slow link.
type buffering struct {
	storage.Store
	bits int
	each time.Duration
	says bool
	wait func(ctx context.Context)
}

func (b buffering) Put(ctx context.Context, _ string, r io.Reader) error {
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	for range b.bits {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(b.each):
		}
		if b.says {
			storage.Moved(ctx)
		}
	}
	if b.wait != nil {
		b.wait(ctx)
	}
	return ctx.Err()
}

func TestAnUploadThatMovesIsNoStallHoweverSlow(t *testing.T) {
	t.Parallel()
	const limit = 2 * time.Second
	put := func(b buffering) error {
		b.Store = filled(t)
		return storage.WithStallLimit(b, limit).Put(t.Context(), "k", strings.NewReader("content"))
	}
	if err := put(buffering{bits: 20, each: limit / 10, says: true}); err != nil {
		t.Error(err)
	}
	var stall *storage.StallError
	if err := put(buffering{bits: 20, each: limit / 10}); !errors.As(err, &stall) {
		t.Errorf("an upload that says nothing: %v", err)
	}
	waits := func(ctx context.Context) {
		done := storage.Waiting(ctx)
		storage.Moved(ctx) // of another part meanwhile: it must not start the clock
		select {
		case <-ctx.Done():
		case <-time.After(2 * limit):
		}
		done()
	}
	if err := put(buffering{wait: waits}); err != nil {
		t.Errorf("an upload that waits for others: %v", err)
	}
	if err := put(buffering{wait: func(ctx context.Context) { waits(ctx); <-ctx.Done() }}); !errors.As(err, &stall) {
		t.Errorf("an upload that hangs after it waited for others: %v", err)
	}
}

// trickle is an object whose bytes come one at a time.
type trickle struct {
	storage.Store
	each time.Duration
}

func (s trickle) Get(ctx context.Context, _ string) (io.ReadCloser, error) {
	return io.NopCloser(readerFunc(func(p []byte) (int, error) {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(s.each):
			p[0] = 'x'
			return 1, nil
		}
	})), nil
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestADownloadThatTricklesIsAStall(t *testing.T) {
	t.Parallel()
	s := storage.WithStallLimit(trickle{filled(t), 50 * time.Millisecond}, time.Second)
	body, err := s.Get(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	_, err = io.Copy(io.Discard, body)
	if stall, ok := errors.AsType[*storage.StallError](err); !ok || stall.Hint() == "" {
		t.Error(err)
	}
}

// failingThenHanging fails the first time and answers no further call.
type failingThenHanging struct {
	storage.Store
	calls int
}

func (s *failingThenHanging) Stat(ctx context.Context, _ string) (storage.Object, error) {
	if s.calls++; s.calls == 1 {
		return storage.Object{}, errors.New("the disk is on fire")
	}
	<-ctx.Done()
	return storage.Object{}, ctx.Err()
}

func TestRetryTellsAtADeadlineWhatHadFailed(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	s := storage.WithRetry(&failingThenHanging{Store: filled(t)}, storage.RetryOptions{FirstWait: time.Millisecond})
	_, err := s.Stat(ctx, "k")
	if last := storage.LastFailure(err); !errors.Is(err, context.DeadlineExceeded) || last == nil ||
		last.Error() != "the disk is on fire" || !strings.Contains(err.Error(), "the disk is on fire") {
		t.Errorf("%v; last failure: %v", err, last)
	}
}
