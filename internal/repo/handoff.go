package repo

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"sync"
)

const (
	chunkSize    = 256 << 10
	chunksPerPut = 4
)

// handoff passes sealed bytes from the goroutine that seals to the one that stores, in order, through a few chunks,
// so that compressing goes on while the store writes. The sealing side calls Write and end, the storing side Read
// and finish. It hashes what the store takes.
//
// It ends in one of two ways: end after everything was written, which is the store's io.EOF; or fail, whose first
// error is what both sides get from then on. So the store never sees the end of an incomplete object.
type handoff struct {
	pool *sync.Pool
	full chan []byte // written, not read; closed by end
	free chan []byte // read, to be written again

	once sync.Once
	stop chan struct{} // closed by the first fail
	err  error         // of the first fail; readable once stop is closed

	// of the sealing side
	filling []byte
	made    int // chunks in circulation
	sealed  int64

	// of the storing side. A store's transport may still be reading when the store has returned, hence the lock.
	mu      sync.Mutex
	reading []byte // chunk being read
	rest    []byte // the part of it not read yet
	taken   int64
	hash    hash.Hash
	ended   bool // io.EOF was returned
}

func newHandoff(pool *sync.Pool) *handoff {
	return &handoff{
		pool: pool, full: make(chan []byte, chunksPerPut), free: make(chan []byte, chunksPerPut),
		stop: make(chan struct{}), hash: sha256.New(),
	}
}

// fail ends the hand-off with err unless it has failed before.
func (h *handoff) fail(err error) {
	h.once.Do(func() {
		h.err = err
		close(h.stop)
	})
}

// cause returns the error of the first fail; nil if that was the store's report of success.
// It is called after finish.
func (h *handoff) cause() error {
	<-h.stop
	if errors.Is(h.err, errFinished) {
		return nil
	}
	return h.err
}

// Write copies p into chunks. It waits for the store to take earlier ones.
func (h *handoff) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if h.filling == nil {
			if h.filling, err = h.chunk(); err != nil {
				return n, err
			}
		}
		m := copy(h.filling[len(h.filling):chunkSize], p)
		h.filling = h.filling[:len(h.filling)+m]
		p, n = p[m:], n+m
		if len(h.filling) == chunkSize {
			if err := h.pass(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// chunk returns an empty chunk. Small objects never need a second one.
func (h *handoff) chunk() ([]byte, error) {
	select {
	case <-h.stop:
		return nil, h.err
	default:
	}
	select {
	case c := <-h.free:
		return c, nil
	default:
	}
	if h.made < chunksPerPut {
		h.made++
		return h.pool.Get().(*[chunkSize]byte)[:0], nil
	}
	select {
	case c := <-h.free:
		return c, nil
	case <-h.stop:
		return nil, h.err
	}
}

// pass hands the chunk being filled to the store.
func (h *handoff) pass() error {
	select {
	case h.full <- h.filling: // there is always room: full holds all chunks
		h.sealed += int64(len(h.filling))
		h.filling = nil
		return nil
	case <-h.stop:
		return h.err
	}
}

// end says that everything was written.
func (h *handoff) end() error {
	if h.filling != nil {
		if err := h.pass(); err != nil {
			return err
		}
	}
	select {
	case <-h.stop:
		return h.err
	default:
	}
	close(h.full)
	return nil
}

// Read yields the sealed bytes to the store. A failure takes precedence over bytes that wait to be read.
func (h *handoff) Read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.stop:
		return 0, h.err
	default:
	}
	if h.ended {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	if len(h.rest) == 0 {
		h.recycle()
		select {
		case <-h.stop:
			return 0, h.err
		case c, ok := <-h.full:
			if !ok {
				h.ended = true
				return 0, io.EOF
			}
			h.reading, h.rest = c, c
			h.taken += int64(len(c))
			_, _ = h.hash.Write(c)
		}
	}
	n := copy(p, h.rest)
	h.rest = h.rest[n:]
	return n, nil
}

// recycle gives the chunk that was read back to the sealing side.
func (h *handoff) recycle() {
	if h.reading != nil {
		h.free <- h.reading[:0]
		h.reading, h.rest = nil, nil
	}
}

// finish ends the storing side with the store's verdict: the sealing side is released, and whoever still reads gets
// an error. The chunks in the storing side's hands can be used by other hand-offs then.
func (h *handoff) finish(err error) {
	if err == nil {
		err = errFinished
	}
	h.fail(err)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.recycle()
	for {
		select {
		case c := <-h.free:
			h.pool.Put((*[chunkSize]byte)(c[:chunkSize]))
		default:
			return
		}
	}
}
