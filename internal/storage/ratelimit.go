package storage

import (
	"context"
	"io"

	"gitlab.com/walden-pg/walden/internal/pace"
)

// LimitReader returns a reader of r that waits until l allows the bytes it has read. It returns r itself if l is
// nil. While it waits, the end of ctx ends it with the context's error.
func LimitReader(ctx context.Context, r io.Reader, l *pace.Limiter) io.Reader {
	if l == nil {
		return r
	}
	return &rateReader{ctx, r, l}
}

type rateReader struct {
	ctx context.Context
	r   io.Reader
	l   *pace.Limiter
}

func (r *rateReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p[:r.l.Piece(len(p))])
	if waitErr := r.l.Wait(r.ctx, n); waitErr != nil {
		return n, waitErr
	}
	return n, err
}

// WithRateLimit returns a store whose Put, PutNew and Get together move no more bytes of objects than l allows.
// A nil l means no limit.
func WithRateLimit(s Store, l *pace.Limiter) Store {
	if l == nil {
		return s
	}
	return &rateStore{Store: s, l: l}
}

type rateStore struct {
	Store
	l *pace.Limiter
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
