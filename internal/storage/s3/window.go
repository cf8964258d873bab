package s3

import (
	"context"
	"math"
	"sync"
	"time"
)

// window is how many parts of each upload may be in flight. It follows what comes through: more parts as long as each further one
// makes all of them together faster, less when it does not, and half as many when the service asks to slow down or does not
// answer in time. All uploads of a store learn from each other, since they share the network and the service.
//
// What comes through is measured in rounds, in which each slot is used once on average, and says something only if uploads had to
// wait for slots: where the data to send is the limit, the window stays as it is.
type window struct {
	now  func() time.Time
	most int // Options.Concurrency

	mu      sync.Mutex
	limit   int           // parts in flight per upload
	changed chan struct{} // closed when limit has grown
	uploads int           // open

	began  time.Time // of the round
	parts  int       // that arrived in it
	bytes  int64
	waited bool // an upload had to wait for a slot

	goodput float64 // bytes per second in the last round with the limit as it was before the last step; 0: none
	step    int     // by how much the limit has grown since; 0: it was found not to be worthwhile, or there was none
	doubles bool    // no limit was found yet
	skip    bool    // the round began with parts of the time before the step
	rest    int     // rounds until the next attempt
	eased   bool    // the service asked to slow down in this round
}

const (
	firstWindow = 4
	// leastWindow keeps one part being read while another one is sent.
	leastWindow = 2
	// worthwhile is which part of what further slots would bring at best they must bring.
	worthwhile = 0.5
	// restRounds is how many rounds pass between two attempts to find out whether more parts in flight bring more.
	restRounds = 8
)

func newWindow(most int) *window {
	return &window{now: time.Now, most: most, limit: min(firstWindow, most), changed: make(chan struct{}), doubles: true}
}

// slots are those of one upload.
type slots struct {
	w     *window
	mu    sync.Mutex
	taken int
	freed chan struct{} // has room for one word that a slot is free
}

// open begins an upload. The caller closes it.
func (w *window) open() *slots {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.uploads++; w.uploads == 1 { // what was measured before says nothing of the time in between
		w.beginRound()
	}
	return &slots{w: w, freed: make(chan struct{}, 1)}
}

func (s *slots) close() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.uploads--
}

// acquire waits for a slot until ctx ends. One goroutine calls it.
func (s *slots) acquire(ctx context.Context) error {
	for {
		grown, ok := s.try()
		if ok {
			return ctx.Err()
		}
		select {
		case <-s.freed:
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// try takes a slot if one is free; else the window may be what holds the upload up, and grown is closed when there are more.
func (s *slots) try() (grown <-chan struct{}, ok bool) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken < s.w.limit {
		s.taken++
		return nil, true
	}
	s.w.waited = true
	return s.w.changed, false
}

// release gives a slot back, with which so many bytes were sent or not.
func (s *slots) release(bytes int64, sent bool) {
	s.mu.Lock()
	s.taken--
	s.mu.Unlock()
	select {
	case s.freed <- struct{}{}:
	default:
	}
	if sent {
		s.w.sent(bytes)
	}
}

// sent takes account of a part that arrived, and adjusts the limit at the end of a round.
func (w *window) sent(bytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.parts++
	w.bytes += bytes
	if w.parts < w.limit*max(1, w.uploads) {
		return
	}
	took := w.now().Sub(w.began).Seconds()
	goodput, meaningful := float64(w.bytes)/max(took, 1e-6), w.waited && !w.eased
	w.beginRound()
	if meaningful {
		w.adjust(goodput)
	}
}

// adjust is told what came through in a round.
func (w *window) adjust(goodput float64) {
	before, gain := w.limit-w.step, goodput/w.goodput-1
	switch {
	case w.skip:
		w.skip = false
	case w.step > 0 && gain < worthwhile*float64(w.step)/float64(before): // as many more as they brought
		w.set(before + int(math.Round(float64(before)*max(0, gain))))
		w.doubles, w.step, w.rest = false, 0, restRounds
	case w.rest > 0:
		w.rest--
	default:
		step := 1
		if w.doubles {
			step = w.limit
		}
		before := w.limit
		w.set(w.limit + step)
		w.goodput, w.step, w.skip = goodput, w.limit-before, true
	}
}

// slowDown halves the limit, once in a round: the service refused a request because there were too many, or did not answer in time.
func (w *window) slowDown() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.eased {
		return
	}
	w.set(w.limit / 2)
	w.beginRound()
	w.eased, w.doubles, w.step, w.skip, w.rest = true, false, 0, false, 1
}

// set changes the limit within its bounds. The caller holds mu.
func (w *window) set(limit int) {
	limit = max(min(leastWindow, w.most), min(limit, w.most))
	if limit > w.limit {
		close(w.changed)
		w.changed = make(chan struct{})
	}
	w.limit = limit
}

// beginRound forgets what was measured. The caller holds mu.
func (w *window) beginRound() {
	w.began, w.parts, w.bytes, w.waited, w.eased = w.now(), 0, 0, false, false
}
