package s3

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// A body begins as one request for the whole object, whose bytes go to the reader without a buffer. Where the reader spends its
// time waiting for them, ranges that lie ahead are fetched into memory meanwhile, and when the reader gets there, the first request
// has done its work. More ranges are fetched at once only while the reader has to wait for the last, and only as
// far as the memory budget and Options.DownloadConcurrency have something left: so the streams of a restore that keep all
// processors busy stay at one request per object.
const (
	rangeSize = 8 << 20
	// hesitation is how many bytes a reader has to have taken before anything is read ahead: many look at a beginning only.
	hesitation = 1 << 20
	// firstWidth is how many ranges follow the first request: the one that is read, and the next.
	firstWidth = 2
	// openLimit is how long the first range may let its reader wait, who could go on without it.
	openLimit = 5 * time.Second
	// leastProgress is how many bytes of ranges count as progress to the stall limit, as for those that go straight to the reader.
	leastProgress = 64 << 10
)

// reading counts the requests for contents of objects that are under way.
type reading struct {
	mu      sync.Mutex
	bodies  int   // open
	ranges  int   // ahead of their readers
	memory  int64 // of the ranges
	patient bool  // read ahead only for readers that wait
	size    int64 // of a range
}

func (r *reading) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bodies++
}

func (r *reading) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bodies--
}

// takeRange reserves a request and n bytes of memory for a range, if both are free.
//
// Readers keep memory until their consumers have taken what is in it, and a consumer may be an upload that waits for memory of the same
// budget: hence at least one part's memory, and half of the budget, are never used for ranges.
func (s *Store) takeRange(n int64) bool {
	r := &s.reading
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bodies+r.ranges >= s.o.DownloadConcurrency {
		return false
	}
	if b := s.o.Budget; b != nil && (r.memory+n > b.Size()-max(b.Size()/2, s.partLimit(1)) || !b.TryAcquire(n)) {
		return false
	}
	r.ranges++
	r.memory += n
	return true
}

func (s *Store) giveRange(n int64) {
	r := &s.reading
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ranges--
	r.memory -= n
	if s.o.Budget != nil {
		s.o.Budget.Release(n)
	}
}

// body is the content of an object. Either there is a direct stream, which may be followed by ranges, or all that is read is in
// the ranges.
type body struct {
	ctx    context.Context
	o      *object
	off    int64
	direct *stream // nil: the next bytes are those of the ranges

	ranges   []*ahead // one after the other, without gaps
	width    int      // how many of them there may be
	alone    bool     // ranges do not work here
	fetching context.Context
	cancel   context.CancelFunc // ends fetching; nil: nothing was begun
	fetches  sync.WaitGroup

	began  time.Time
	waited time.Duration // for the direct stream

	crc  hash.Hash32 // nil: no checksum to verify
	want string

	outcome error // final: io.EOF or the failure
	closed  bool
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if b.outcome != nil {
		return 0, b.outcome
	}
	n, err := b.next(p)
	b.off += int64(n)
	if b.crc != nil {
		_, _ = b.crc.Write(p[:n])
	}
	switch {
	case err == io.EOF:
		b.outcome = b.end()
	case err != nil:
		b.outcome = b.o.s.fail("read", b.o.key, err)
	}
	if n > 0 {
		return n, nil
	}
	return 0, b.outcome
}

// end verifies what was read.
func (b *body) end() error {
	if b.crc == nil {
		return io.EOF
	}
	if got := base64.StdEncoding.EncodeToString(b.crc.Sum(nil)); got != b.want {
		return b.o.s.fail("read", b.o.key, fmt.Errorf("content is damaged: CRC32 is %s, stored with %s", got, b.want))
	}
	return io.EOF
}

// next returns at least one byte or an error, which is io.EOF at the end of the object.
func (b *body) next(p []byte) (int, error) {
	if b.direct != nil && len(b.ranges) == 0 && b.worthwhile() {
		b.width = firstWidth
		b.extend(b.off+b.o.s.reading.size, 1)
	}
	if b.direct != nil && len(b.ranges) > 0 && b.ranges[0].first == b.off {
		if err := b.handOver(); err != nil {
			return 0, err
		}
	}
	if b.direct == nil {
		return b.fromMemory(p)
	}
	if len(b.ranges) > 0 {
		p = p[:min(int64(len(p)), b.ranges[0].first-b.off)]
	}
	began := time.Now()
	n, err := b.direct.read(p)
	b.waited += time.Since(began)
	return n, err
}

// worthwhile tells whether to read ahead of the direct stream: there are two ranges left at least, and the reader waits half of its
// time.
func (b *body) worthwhile() bool {
	r := &b.o.s.reading
	return !b.alone && b.o.etag != "" && b.o.size-b.off >= 2*r.size && b.off >= min(hesitation, r.size) &&
		(!r.patient || b.waited > time.Since(b.began)/2)
}

// extend begins to fetch ranges, the first of which begins at an offset, until there are so many or nothing is left for more.
func (b *body) extend(first int64, most int) {
	if b.cancel == nil {
		b.fetching, b.cancel = context.WithCancel(b.ctx)
	}
	for ; len(b.ranges) < most && first < b.o.size; first += b.o.s.reading.size {
		a := &ahead{first: first, end: min(first+b.o.s.reading.size, b.o.size)}
		a.memory = (a.end - a.first + chunkSize - 1) / chunkSize * chunkSize
		if !b.o.s.takeRange(a.memory) {
			return
		}
		a.opened, a.full = make(chan error, 1), make(chan filled, a.memory/chunkSize)
		a.stream = stream{ctx: b.fetching, o: b.o, off: a.first, end: a.end, rc: nopBody{}}
		b.ranges = append(b.ranges, a)
		b.fetches.Go(a.fetch)
	}
}

// handOver ends the direct stream where the ranges begin. If the service does not take such requests, or answers one request at a time
// only, the direct stream goes on.
func (b *body) handOver() error {
	limit := time.NewTimer(openLimit)
	defer limit.Stop()
	select {
	case err := <-b.ranges[0].opened:
		b.alone = err != nil
	case <-limit.C:
		b.alone = true
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
	if b.alone {
		b.dropRanges()
		return nil
	}
	_ = b.direct.rc.Close() // what it would still bring comes from elsewhere
	b.direct = nil
	b.extend(b.ranges[len(b.ranges)-1].end, b.width)
	return nil
}

// fromMemory returns bytes of the first range, and begins to fetch others in its place when it is at its end.
func (b *body) fromMemory(p []byte) (int, error) {
	for {
		a := b.ranges[0]
		n, err := a.take(b.ctx, p)
		if err != io.EOF {
			return n, err
		}
		b.ranges = b.ranges[1:]
		b.o.s.giveRange(a.memory)
		if a.waitedFor {
			b.width = min(2*b.width, b.o.s.o.DownloadConcurrency)
		}
		next := a.end
		if len(b.ranges) > 0 {
			next = b.ranges[len(b.ranges)-1].end
		}
		b.extend(next, b.width)
		switch {
		case len(b.ranges) > 0:
		case b.off == b.o.size:
			return 0, io.EOF
		default: // others have taken the memory
			b.began, b.waited = time.Now(), 0
			b.direct = &stream{ctx: b.ctx, o: b.o, off: b.off, end: b.o.size, rc: nopBody{}}
			if err := b.direct.open(); err != nil {
				return 0, err
			}
			return b.direct.read(p)
		}
	}
}

// dropRanges ends what is fetched ahead.
func (b *body) dropRanges() {
	if b.cancel != nil {
		b.cancel()
	}
	b.fetches.Wait()
	for _, a := range b.ranges {
		a.drop()
		b.o.s.giveRange(a.memory)
	}
	b.ranges = nil
}

// Close implements io.Closer. It may be called before the end, and more than once.
func (b *body) Close() error {
	if b.outcome == nil || b.outcome == io.EOF {
		b.outcome = errors.New("read after close")
	}
	if b.closed {
		return nil
	}
	b.closed = true
	b.dropRanges()
	b.o.s.reading.end()
	if b.direct == nil {
		return nil
	}
	if err := b.direct.rc.Close(); err != nil && b.direct.broken == nil {
		return b.o.s.fail("read", b.o.key, err)
	}
	return nil
}

// ahead is a range that is fetched into memory before its reader gets there.
type ahead struct {
	stream
	first, end int64
	memory     int64 // bytes of the budget

	opened chan error  // how the first request went
	full   chan filled // has room for all of the range; closed at its end or failure
	err    error       // readable once full is closed

	current   filled // what the reader is at
	rest      []byte // of it
	taken     int64
	waitedFor bool
}

// filled is a chunk with bytes in it.
type filled struct {
	c *chunk
	n int
}

// fetch reads the range into chunks.
func (a *ahead) fetch() {
	defer close(a.full)
	defer func() { _ = a.rc.Close() }()
	a.err = a.open()
	a.opened <- a.err
	for told := a.off; a.err == nil && a.off < a.end; {
		f := filled{c: a.o.s.chunks.Get().(*chunk)}
		want := min(chunkSize, int(a.end-a.off))
		for f.n < want && a.err == nil {
			var n int
			n, a.err = a.read(f.c[f.n:want])
			f.n += n
			if a.off-told >= leastProgress {
				told = a.off
				storage.Moved(a.ctx)
			}
		}
		if a.err == io.EOF { // told with the last bytes
			a.err = nil
		}
		if f.n == 0 {
			a.o.s.chunks.Put(f.c)
			break
		}
		a.full <- f
	}
}

// take returns at least one byte or an error, which is io.EOF at the end of the range.
func (a *ahead) take(ctx context.Context, p []byte) (int, error) {
	if len(a.rest) == 0 {
		a.recycle()
		if len(a.full) == 0 && a.taken < a.end-a.first {
			a.waitedFor = true
		}
		select {
		case f, ok := <-a.full:
			switch {
			case !ok && a.err != nil:
				return 0, a.err
			case !ok:
				return 0, io.EOF
			}
			a.current, a.rest = f, f.c[:f.n]
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	a.taken += int64(n)
	return n, nil
}

func (a *ahead) recycle() {
	if a.current.c != nil {
		a.o.s.chunks.Put(a.current.c)
		a.current, a.rest = filled{}, nil
	}
}

// drop gives the chunks back. The fetching has ended.
func (a *ahead) drop() {
	a.recycle()
	for f := range a.full {
		a.o.s.chunks.Put(f.c)
	}
}
