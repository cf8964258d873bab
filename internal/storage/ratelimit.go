package storage

import (
	"context"
	"errors"
	"io"
	"math"
	"time"

	"golang.org/x/time/rate"
)

// burstAllowance is added to a second's worth of bytes to give a limiter's burst, as WAL-G does for
// WALG_DISK_RATE_LIMIT and WALG_NETWORK_RATE_LIMIT.
const burstAllowance = 64 << 10

// NewLimiter returns a limiter for a stream of bytes, to be shared by all streams that the limit is meant for.
// It returns nil, which stands for no limit, if bytesPerSecond is zero or less.
func NewLimiter(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytesPerSecond), int(min(bytesPerSecond, math.MaxInt-burstAllowance)+burstAllowance))
}

// LimitReader returns a reader of r that waits until l allows the bytes it has read. It returns r itself if l is
// nil. While it waits, the end of ctx ends it with the context's error.
func LimitReader(ctx context.Context, r io.Reader, l *rate.Limiter) io.Reader {
	if l == nil {
		return r
	}
	return &rateReader{ctx, r, l}
}

type rateReader struct {
	ctx context.Context
	r   io.Reader
	l   *rate.Limiter
}

func (r *rateReader) Read(p []byte) (int, error) {
	if burst := r.l.Burst(); len(p) > burst && r.l.Limit() != rate.Inf {
		p = p[:burst] // the limiter refuses more than this at once
	}
	n, err := r.r.Read(p)
	if waitErr := wait(r.ctx, r.l, n); waitErr != nil {
		return n, waitErr
	}
	return n, err
}

// wait is rate.Limiter.WaitN, except that a deadline too early for the wait ends it when it has come, and with
// the context's own error.
func wait(ctx context.Context, l *rate.Limiter, n int) error {
	if n <= 0 {
		return nil
	}
	reservation := l.ReserveN(time.Now(), n)
	if !reservation.OK() {
		return errors.New("the rate limit was lowered below the bytes just read")
	}
	delay := reservation.Delay()
	if delay == 0 {
		return nil
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		reservation.Cancel()
		return ctx.Err()
	}
}

// WithRateLimit returns a store whose Put, PutNew and Get together move no more bytes of objects than l allows.
// A nil l means no limit.
func WithRateLimit(s Store, l *rate.Limiter) Store {
	if l == nil {
		return s
	}
	return &rateStore{Store: s, l: l}
}

type rateStore struct {
	Store
	l *rate.Limiter
}

func (s *rateStore) Put(ctx context.Context, key string, r io.Reader) error {
	return s.Store.Put(ctx, key, LimitReader(ctx, r, s.l))
}

func (s *rateStore) PutNew(ctx context.Context, key string, r io.Reader) error {
	return s.Store.PutNew(ctx, key, LimitReader(ctx, r, s.l))
}

func (s *rateStore) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	body, err := s.Store.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{LimitReader(ctx, body, s.l), body}, nil
}
