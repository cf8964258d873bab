package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"time"
)

// StallError says that a storage made no progress for as long as [WithStallLimit] allows. Trying again may help.
type StallError struct {
	Doing string        // what was waited for, for example `put "wal_005/…" in s3://bucket/prefix`
	Limit time.Duration // how long
	Last  error         // how the last attempt failed, if the storage was still trying (see [LastFailure]); or nil
}

func (e *StallError) Error() string {
	if e.Last != nil {
		return fmt.Sprintf("cannot %s: no progress for %s, in which attempts failed: %v", e.Doing, e.Limit, e.Last)
	}
	return fmt.Sprintf("cannot %s: no progress for %s", e.Doing, e.Limit)
}

// Unwrap returns the failure of the last attempt, whose hint is worth reading.
func (e *StallError) Unwrap() error { return e.Last }

// Hint is what the operator can look at.
func (e *StallError) Hint() string {
	if e.Last != nil {
		return ""
	}
	return "the connection was there and then nothing came: look at the network and the storage; " +
		"WALDEN_STALL_TIMEOUT sets the limit"
}

// Timeout is true, as for the errors of package net that stand for an expired deadline.
func (e *StallError) Timeout() bool { return true }

// WithStallLimit returns a store that gives up an operation of s which moves no byte for limit: it ends the
// context that s works with, and the operation then fails with a [*StallError].
//
// Only the storage's time counts. Put and PutNew run the clock from one read of the source to the next, never
// while the source itself is being waited for; a storage that buffers says with [Moved] that it sends, and with
// [Waiting] that it waits for its own kind. Get runs it while opening and inside Reads, where 64 KiB within limit are
// the least that counts as progress, so that a trickle does not go on for days. List runs it until each next entry,
// Delete for each 1,000 keys, Stat and Check for the whole call. A limit of zero or less means none.
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
	limit  time.Duration

	mu      sync.Mutex
	timer   *time.Timer
	paused  int // who waits for something else than the storage
	ended   bool
	started time.Time     // of the timer
	left    time.Duration // when the timer was started
}

type clockKey struct{}

// clock starts a clock for one operation. Whoever starts one calls end.
func (s *stallStore) clock(ctx context.Context, doing string, args ...any) *stallClock {
	c := &stallClock{limit: s.limit}
	ctx, c.cancel = context.WithCancelCause(ctx)
	c.ctx = context.WithValue(ctx, clockKey{}, c)
	stall := &StallError{Doing: fmt.Sprintf(doing, args...) + " " + s.String(), Limit: s.limit}
	c.left, c.started = s.limit, time.Now()
	c.timer = time.AfterFunc(s.limit, func() { c.cancel(stall) })
	return c
}

func (c *stallClock) pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused++; c.paused == 1 {
		c.timer.Stop()
		c.left -= time.Since(c.started)
	}
}

// resume lets the clock run on from where it was paused.
func (c *stallClock) resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused--; c.paused == 0 {
		c.run()
	}
}

// progress gives the storage all of the limit again.
func (c *stallClock) progress() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = c.limit
	if c.paused == 0 {
		c.run()
	}
}

// run starts the timer. The caller holds mu.
func (c *stallClock) run() {
	if !c.ended {
		c.started = time.Now()
		c.timer.Reset(max(0, c.left))
	}
}

func (c *stallClock) end() {
	c.mu.Lock()
	c.ended = true
	c.timer.Stop()
	c.mu.Unlock()
	c.cancel(nil)
}

// Moved tells the stall limit of the operation that ctx belongs to, if it has one, that bytes of it are on their way. A
// storage that buffers calls it while it sends.
func Moved(ctx context.Context) {
	if c, ok := ctx.Value(clockKey{}).(*stallClock); ok {
		c.progress()
	}
}

// Waiting tells the same that the operation waits for other operations, each of which has a limit of its own. The
// caller calls done when that is over.
func Waiting(ctx context.Context) (done func()) {
	c, ok := ctx.Value(clockKey{}).(*stallClock)
	if !ok {
		return func() {}
	}
	c.pause()
	return func() {
		c.progress()
		c.resume()
	}
}

// LastFailure returns how the last attempt of an operation failed whose context ended while it was to be tried again;
// nil if err does not tell. A storage that tries again by itself returns such errors, by a method of the same name.
func LastFailure(err error) error {
	var e interface {
		error
		LastFailure() error
	}
	if errors.As(err, &e) {
		return e.LastFailure()
	}
	return nil
}

// verdict puts the stall in the place of the cancellation that it led to.
func (c *stallClock) verdict(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	var stall *StallError
	if errors.As(context.Cause(c.ctx), &stall) {
		last := LastFailure(err)
		var timeout interface{ Timeout() bool }
		if errors.As(last, &timeout) && timeout.Timeout() {
			last = nil // an attempt that hung as well tells nothing more
		}
		return &StallError{Doing: stall.Doing, Limit: stall.Limit, Last: last}
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
	defer func() {
		p.c.progress()
		p.c.resume()
	}()
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
	c.progress()
	return &limitedBody{body: body, c: c}, nil
}

// leastProgress is how many bytes of an object must arrive within the limit.
const leastProgress = 64 << 10

// limitedBody runs the clock inside Read only: a consumer may take its time.
type limitedBody struct {
	body  io.ReadCloser
	c     *stallClock
	moved int // since the clock had all of the limit
}

func (b *limitedBody) Read(p []byte) (int, error) {
	b.c.resume()
	n, err := b.body.Read(p)
	b.c.pause()
	if b.moved += n; b.moved >= leastProgress {
		b.moved = 0
		b.c.progress()
	}
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
			c.progress()
			c.resume()
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
