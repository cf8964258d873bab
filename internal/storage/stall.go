package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"
)

// StallError says that a storage made no progress for as long as [WithStallLimit] allows. Trying again may help.
type StallError struct {
	Doing string        // what was waited for, for example `put "wal_005/…" in s3://bucket/prefix`
	Limit time.Duration // how long
}

func (e *StallError) Error() string {
	return fmt.Sprintf("cannot %s: no progress for %s", e.Doing, e.Limit)
}

// Timeout is true, as for the errors of package net that stand for an expired deadline.
func (e *StallError) Timeout() bool { return true }

// WithStallLimit returns a store that gives up an operation of s which moves no byte for limit: it ends the
// context that s works with, and the operation then fails with a [*StallError].
//
// Only the storage's time counts. Put and PutNew run the clock from one read of the source to the next, never
// while the source itself is being waited for; hence limit must be longer than the storage needs to send what it
// buffers. Get runs it while opening and inside each Read, List until each next entry, Delete for each 1,000
// keys, Stat and Check for the whole call. A limit of zero or less means none.
func WithStallLimit(s Store, limit time.Duration) Store {
	if limit <= 0 {
		return s
	}
	return &stallStore{Store: s, limit: limit}
}

type stallStore struct {
	Store
	limit time.Duration
}

// stallClock ends an operation's context when it has run for the limit without being stopped or restarted.
type stallClock struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

// clock starts a clock for one operation. Whoever starts one calls end.
func (s *stallStore) clock(ctx context.Context, doing string, args ...any) *stallClock {
	c := &stallClock{limit: s.limit}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	stall := &StallError{Doing: fmt.Sprintf(doing, args...) + " " + s.String(), Limit: s.limit}
	c.timer = time.AfterFunc(s.limit, func() { c.cancel(stall) })
	return c
}

func (c *stallClock) pause()   { c.timer.Stop() }
func (c *stallClock) restart() { c.timer.Reset(c.limit) }

func (c *stallClock) end() {
	c.timer.Stop()
	c.cancel(nil)
}

// verdict puts the stall in the place of the cancellation that it led to.
func (c *stallClock) verdict(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	var stall *StallError
	if errors.As(context.Cause(c.ctx), &stall) {
		return stall
	}
	return err
}

func (s *stallStore) Put(ctx context.Context, key string, r io.Reader) error {
	c := s.clock(ctx, "put %q in", key)
	defer c.end()
	return c.verdict(s.Store.Put(c.ctx, key, &pausingReader{r, c}))
}

func (s *stallStore) PutNew(ctx context.Context, key string, r io.Reader) error {
	c := s.clock(ctx, "put %q in", key)
	defer c.end()
	return c.verdict(s.Store.PutNew(c.ctx, key, &pausingReader{r, c}))
}

// pausingReader keeps the time spent inside the source off the storage's account.
type pausingReader struct {
	r io.Reader
	c *stallClock
}

func (p *pausingReader) Read(b []byte) (int, error) {
	p.c.pause()
	defer p.c.restart()
	return p.r.Read(b)
}

func (s *stallStore) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	c := s.clock(ctx, "get %q from", key)
	body, err := s.Store.Get(c.ctx, key)
	c.pause()
	if err != nil {
		err = c.verdict(err)
		c.end()
		return nil, err
	}
	return &limitedBody{body, c}, nil
}

// limitedBody runs the clock inside Read only: a consumer may take its time.
type limitedBody struct {
	body io.ReadCloser
	c    *stallClock
}

func (b *limitedBody) Read(p []byte) (int, error) {
	b.c.restart()
	n, err := b.body.Read(p)
	b.c.pause()
	return n, b.c.verdict(err)
}

func (b *limitedBody) Close() error {
	err := b.body.Close()
	b.c.end()
	return err
}

func (s *stallStore) Stat(ctx context.Context, key string) (Object, error) {
	c := s.clock(ctx, "look up %q in", key)
	defer c.end()
	o, err := s.Store.Stat(c.ctx, key)
	return o, c.verdict(err)
}

func (s *stallStore) List(ctx context.Context, dir string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		c := s.clock(ctx, "list %q in", dir)
		defer c.end()
		for o, err := range s.Store.List(c.ctx, dir) {
			c.pause()
			if !yield(o, c.verdict(err)) || err != nil {
				return
			}
			c.restart()
		}
	}
}

// Delete hands on batches, each with a clock of its own: a retention run may remove many thousand objects, and
// services that take lists of keys take no more than this at once.
func (s *stallStore) Delete(ctx context.Context, keys ...string) error {
	const batch = 1000
	var errs []error
	for keys := range slices.Chunk(keys, batch) {
		err := s.deleteBatch(ctx, keys)
		errs = append(errs, err)
		var stall *StallError
		if ctx.Err() != nil || errors.As(err, &stall) {
			break
		}
	}
	return errors.Join(errs...)
}

func (s *stallStore) deleteBatch(ctx context.Context, keys []string) error {
	more := ""
	if len(keys) > 1 {
		more = fmt.Sprintf(" and %d more", len(keys)-1)
	}
	c := s.clock(ctx, "delete %q%s from", keys[0], more)
	defer c.end()
	return c.verdict(s.Store.Delete(c.ctx, keys...))
}

func (s *stallStore) Check(ctx context.Context) error {
	c := s.clock(ctx, "reach")
	defer c.end()
	return c.verdict(s.Store.Check(c.ctx))
}
