package s3

import (
	"math"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// link is a network and a service behind it, in a time of its own.
type link struct {
	bandwidth     float64       // bytes per second, of all connections together
	perConnection float64       // bytes per second
	latency       time.Duration // of a request, besides its bytes
	bearable      int           // requests at the same time, above which the service asks to slow down; 0: any number

	now      time.Duration
	inFlight []transfer
}

type transfer struct {
	waits time.Duration // before its bytes move
	left  float64
}

// begin sends a part.
func (l *link) begin(bytes float64) (refused bool) {
	waits := l.latency
	if l.bearable > 0 && len(l.inFlight) >= l.bearable {
		refused = true
		waits += 500 * time.Millisecond
	}
	l.inFlight = append(l.inFlight, transfer{waits, bytes})
	return refused
}

// await lets the time pass until a part has arrived.
func (l *link) await() {
	for {
		moving := 0.0
		for _, t := range l.inFlight {
			if t.waits == 0 {
				moving++
			}
		}
		rate := math.Min(l.perConnection, l.bandwidth/math.Max(moving, 1))
		next := time.Hour
		for _, t := range l.inFlight {
			if t.waits > 0 {
				next = min(next, t.waits)
			} else {
				next = min(next, time.Duration(math.Ceil(t.left/rate*1e9)))
			}
		}
		l.now += next
		arrived := -1
		for i := range l.inFlight {
			t := &l.inFlight[i]
			if t.waits > 0 {
				t.waits -= next
			} else if t.left -= rate * next.Seconds(); t.left < 1 && arrived < 0 {
				arrived = i
			}
		}
		if arrived >= 0 {
			l.inFlight = append(l.inFlight[:arrived], l.inFlight[arrived+1:]...)
			return
		}
	}
}

// through sends parts over the link as an upload does, and returns how long it took.
func (l *link) through(w *window, parts int) time.Duration {
	const size = 5 << 20
	start := time.Unix(0, 0)
	w.now = func() time.Time { return start.Add(l.now) }
	began := l.now
	s := w.open()
	defer s.close()
	arrive := func() {
		l.await()
		s.release(size, true)
	}
	for range parts {
		for {
			if _, ok := s.try(); ok {
				break
			}
			arrive()
		}
		if l.begin(size) {
			w.slowDown()
		}
	}
	for len(l.inFlight) > 0 {
		arrive()
	}
	return l.now - began
}

// fixed is a window that does not adapt.
func fixed(limit int) *window {
	w := newWindow(limit)
	w.limit, w.rest, w.doubles = limit, math.MaxInt, false
	return w
}

func TestPartsInFlightFollowTheLink(t *testing.T) {
	t.Parallel()
	const mbps, parts = 1e6, 400
	for name, c := range map[string]struct {
		link        link
		least, most int     // parts in flight in the end
		share       float64 // of what sixteen parts in flight bring, or more
	}{
		"connections are the limit": {link{bandwidth: 1000 * mbps, perConnection: 10 * mbps, latency: 20 * time.Millisecond}, 16, 16, 0.9},
		"ten connections fill it":   {link{bandwidth: 100 * mbps, perConnection: 10 * mbps, latency: 20 * time.Millisecond}, 8, 13, 0.85},
		"latency is the limit":      {link{bandwidth: 500 * mbps, perConnection: 500 * mbps, latency: 200 * time.Millisecond}, 12, 16, 0.85},
		"one connection fills it":   {link{bandwidth: 10 * mbps, perConnection: 10 * mbps, latency: 20 * time.Millisecond}, 4, 6, 0.98},
		"the service bears six":     {link{bandwidth: 1000 * mbps, perConnection: 10 * mbps, bearable: 6}, 2, 8, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			greedy, adaptive := c.link, c.link
			w := newWindow(16)
			before, after := greedy.through(fixed(16), parts), adaptive.through(w, parts)
			share := before.Seconds() / after.Seconds()
			t.Logf("%d parts in flight; %s instead of %s", w.limit, after, before)
			if w.limit < c.least || w.limit > c.most || share < c.share {
				t.Errorf("%d parts in flight, want %d to %d; %.2f of the goodput of sixteen, want %.2f", w.limit, c.least, c.most, share, c.share)
			}
			testenv.Figure(t, "per cent of the goodput of sixteen parts in flight", name, int(100*share))
		})
	}
}

func TestTheWindowGrowsForWhoWaitsOnly(t *testing.T) {
	t.Parallel()
	w := newWindow(16)
	s := w.open()
	for range 1000 {
		if _, ok := s.try(); !ok {
			t.Fatal("no slot")
		}
		s.release(1, true)
	}
	if w.limit != firstWindow {
		t.Errorf("%d parts in flight for an upload that never had to wait for a slot", w.limit)
	}
}

func TestTheWindowIsHalvedOncePerRound(t *testing.T) {
	t.Parallel()
	w := newWindow(16)
	w.limit = 16
	for range 5 {
		w.slowDown()
	}
	if w.limit != 8 {
		t.Errorf("%d parts in flight after one storm", w.limit)
	}
	for range 8 {
		w.sent(1)
	}
	w.slowDown()
	if w.limit != 4 {
		t.Errorf("%d parts in flight after the second", w.limit)
	}
	if w = newWindow(1); w.limit != 1 {
		t.Errorf("%d parts in flight where one is allowed", w.limit)
	}
	w.slowDown()
	if w.limit != 1 {
		t.Errorf("%d parts in flight where one is allowed", w.limit)
	}
}
