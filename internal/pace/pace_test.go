package pace

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheLimitHolds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const perSecond, size = 100_000, 1_000_000
		l := New(perSecond)
		start := time.Now()
		for range 10 {
			if err := l.Wait(t.Context(), size/10); err != nil {
				t.Fatal(err)
			}
		}
		want := time.Duration(float64(size-perSecond-burstAllowance) / perSecond * float64(time.Second))
		if spent := time.Since(start); (spent - want).Abs() > 10*time.Millisecond {
			t.Errorf("%s, want %s", spent, want)
		}
	})
}

func TestTheLimitChangesForThoseThatWait(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		from, to int64
		least    time.Duration
		most     time.Duration
	}{
		"none to some":  {0, 100_000, 10 * time.Second, 11 * time.Second},
		"low to high":   {1000, 10_000_000, 10 * time.Second, 12 * time.Second},
		"some to none":  {1000, 0, 10 * time.Second, 12 * time.Second},
		"high to lower": {200_000, 100_000, 9 * time.Second, 16 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := New(c.from)
				start := time.Now()
				if c.from == 0 {
					l.Set(c.to)
				} else {
					time.AfterFunc(10*time.Second, func() { l.Set(c.to) })
				}
				total := 1_065_536
				if c.from > 100_000 {
					total = 2_500_000
				}
				if err := l.Wait(t.Context(), total); err != nil {
					t.Fatal(err)
				}
				if spent := time.Since(start); spent < c.least || spent > c.most {
					t.Errorf("%s, want %s to %s", spent, c.least, c.most)
				}
				if l.BytesPerSecond() != c.to {
					t.Errorf("limit %d", l.BytesPerSecond())
				}
			})
		})
	}
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if err := New(1).Wait(ctx, 1<<20); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

func TestNoLimitWaitsForNothing(t *testing.T) {
	t.Parallel()
	var none *Limiter
	for _, l := range []*Limiter{none, New(0), New(-1)} {
		if err := l.Wait(t.Context(), 1<<40); err != nil || l.BytesPerSecond() != 0 || l.Piece(1<<40) != 1<<40 {
			t.Errorf("%v, %d", err, l.BytesPerSecond())
		}
	}
	if l := New(1000); l.BytesPerSecond() != 1000 || l.Piece(1<<20) != 1000+65536 {
		t.Errorf("limit %d, piece %d", l.BytesPerSecond(), l.Piece(1<<20))
	}
}
