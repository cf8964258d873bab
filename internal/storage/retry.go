package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"time"
)

// RetryOptions bounds the repetitions of [WithRetry]. Zero values stand for the defaults.
type RetryOptions struct {
	Attempts  int           // how often an operation is tried at most, the first time included; default 5
	Total     time.Duration // no attempt begins later than this after the first one did; default 2 minutes
	FirstWait time.Duration // wait before the second attempt, doubled for each further one; default 200 ms
	MaxWait   time.Duration // longest wait between two attempts; default 15 s

	// OnRetry, if set, is told before each wait what failed and how long the wait is. It must not block.
	OnRetry func(err error, wait time.Duration)
}

func (o RetryOptions) withDefaults() RetryOptions {
	if o.Attempts <= 0 {
		o.Attempts = 5
	}
	if o.Total <= 0 {
		o.Total = 2 * time.Minute
	}
	if o.FirstWait <= 0 {
		o.FirstWait = 200 * time.Millisecond
	}
	if o.MaxWait <= 0 {
		o.MaxWait = 15 * time.Second
	}
	return o
}

// Permanent marks err as one that no repetition will change: a wrong credential, a missing bucket, a request the
// service calls malformed. Permanent(nil) is nil. The text stays the same.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

// IsPermanent tells whether err, or an error it wraps, was marked by [Permanent].
func IsPermanent(err error) bool {
	var p *permanentError
	return errors.As(err, &p)
}

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// final tells whether repeating an operation that failed with err is pointless. A deadline that is not the
// caller's own (a client's time-out, a stall) is not final.
func final(ctx context.Context, err error) bool {
	switch {
	case ctx.Err() != nil, errors.Is(err, context.Canceled): // nobody waits for the result any more
	case errors.Is(err, fs.ErrNotExist): // an answer, not a failure
	case errors.Is(err, ErrExists): // likewise
	case errors.Is(err, fs.ErrPermission): // the operator has to act
	case IsPermanent(err): // the backend knows
	default:
		return false
	}
	return true
}

// WithRetry returns a store that repeats failed operations of s with growing, randomly shortened waits, within
// both bounds of o and until ctx ends. It repeats Get as far as opening the object, Stat, Delete and Check, and
// List as long as nothing was yielded. Put and PutNew are passed on once: a stream cannot be rewound.
//
// A single attempt that hangs is not ended here; that is what [WithStallLimit] is for.
func WithRetry(s Store, o RetryOptions) Store {
	return &retryStore{Store: s, o: o.withDefaults()}
}

type retryStore struct {
	Store
	o RetryOptions
}

// retry calls try until it succeeds, its error is final, or a bound is reached.
func (s *retryStore) retry(ctx context.Context, try func() error) error {
	start := time.Now()
	backoff := s.o.FirstWait
	var last error
	for attempt := 1; ; attempt++ {
		err := try()
		if err != nil && ctx.Err() != nil && last != nil && LastFailure(err) == nil {
			return &interruptedError{err, last}
		}
		if err == nil || final(ctx, err) {
			return err
		}
		last = err
		// At least half of the wait is kept, so that the bound on attempts still spans a useful time; the other
		// half is random, so that many clients do not come back at the same moment.
		wait := min(backoff, s.o.MaxWait)
		wait = wait/2 + rand.N(wait/2+1)
		backoff = min(2*backoff, s.o.MaxWait)
		spent := time.Since(start)
		if attempt == s.o.Attempts || spent+wait > s.o.Total {
			if attempt == 1 {
				return err
			}
			return fmt.Errorf("%w (tried %d times in %s)", err, attempt, spent.Round(time.Millisecond))
		}
		if s.o.OnRetry != nil {
			s.o.OnRetry(err, wait)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return &interruptedError{ctx.Err(), err}
		}
	}
}

// interruptedError is the end of the caller's context before an operation that had failed could succeed.
type interruptedError struct{ err, last error }

func (e *interruptedError) Error() string {
	return fmt.Sprintf("%v; the last attempt failed: %v", e.err, e.last)
}

func (e *interruptedError) Unwrap() []error { return []error{e.err, e.last} }

// LastFailure is what [LastFailure] looks for.
func (e *interruptedError) LastFailure() error { return e.last }

func (s *retryStore) Get(ctx context.Context, key string) (body io.ReadCloser, err error) {
	err = s.retry(ctx, func() error {
		body, err = s.Store.Get(ctx, key)
		return err
	})
	if err != nil {
		return nil, err
	}
	return body, nil
}

func (s *retryStore) Stat(ctx context.Context, key string) (o Object, err error) {
	err = s.retry(ctx, func() error {
		o, err = s.Store.Stat(ctx, key)
		return err
	})
	return o, err
}

// List begins a listing that failed anew and passes over what was yielded before: keys come in ascending order.
func (s *retryStore) List(ctx context.Context, dir string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		last, again, stopped := "", "", false // last: the key yielded last; again: up to where a new listing is passed over
		err := s.retry(ctx, func() error {
			for o, err := range s.Store.List(ctx, dir) {
				if err != nil {
					again = last
					return err
				}
				if o.Key <= again && again != "" {
					continue
				}
				last = o.Key
				if !yield(o, nil) {
					stopped = true
					return nil
				}
			}
			return nil
		})
		if err != nil && !stopped {
			yield(Object{}, err)
		}
	}
}

func (s *retryStore) Delete(ctx context.Context, keys ...string) error {
	return s.retry(ctx, func() error { return s.Store.Delete(ctx, keys...) })
}

func (s *retryStore) Check(ctx context.Context) error {
	return s.retry(ctx, func() error { return s.Store.Check(ctx) })
}
