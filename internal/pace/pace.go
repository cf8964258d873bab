// Package pace limits how many bytes per second go through, wherever it is that they go: a [Limiter] is shared by all streams that one
// limit is meant for, and can be changed while they run.
package pace

import (
	"context"
	"math"
	"time"

	"golang.org/x/time/rate"
)

const (
	// burstAllowance is added to a second's worth of bytes to give the burst, as WAL-G does for WALG_DISK_RATE_LIMIT and
	// WALG_NETWORK_RATE_LIMIT.
	burstAllowance = 64 << 10
	// leastPiece is what is waited for at once at least, in bytes, however low the limit is.
	leastPiece = 1 << 10
	// piecesPerSecond bounds what is waited for at once, so that whoever waits comes to know of another limit soon.
	piecesPerSecond = 4
)

// Limiter is a limit in bytes per second. A nil Limiter limits nothing.
type Limiter struct{ bucket *rate.Limiter }

// New returns a limiter; zero or less stands for no limit.
func New(bytesPerSecond int64) *Limiter {
	l := &Limiter{rate.NewLimiter(rate.Inf, 0)}
	if bytesPerSecond > 0 {
		l.bucket = rate.NewLimiter(rate.Limit(bytesPerSecond), burst(bytesPerSecond))
	}
	return l
}

func burst(bytesPerSecond int64) int {
	return int(min(bytesPerSecond, math.MaxInt-burstAllowance)) + burstAllowance
}

// Set changes the limit, also for those that wait. Zero or less stands for no limit.
func (l *Limiter) Set(bytesPerSecond int64) {
	if bytesPerSecond <= 0 {
		l.bucket.SetLimit(rate.Inf)
		return
	}
	l.bucket.SetBurst(burst(bytesPerSecond))
	l.bucket.SetLimit(rate.Limit(bytesPerSecond))
}

// BytesPerSecond returns the limit, 0 for none.
func (l *Limiter) BytesPerSecond() int64 {
	if l == nil || l.bucket.Limit() == rate.Inf {
		return 0
	}
	return int64(l.bucket.Limit())
}

// Piece is how many of n bytes should be moved before Wait is called for them: all of them without a limit.
func (l *Limiter) Piece(n int) int {
	if l == nil || l.bucket.Limit() == rate.Inf {
		return n
	}
	return min(n, l.bucket.Burst())
}

// Wait waits until n bytes may go through, or until ctx ends, whose error it returns then.
func (l *Limiter) Wait(ctx context.Context, n int) error {
	for l != nil && n > 0 {
		limit := l.bucket.Limit()
		if limit == rate.Inf {
			return nil
		}
		piece := min(n, l.bucket.Burst(), max(leastPiece, int(min(limit/piecesPerSecond, math.MaxInt32))))
		reservation := l.bucket.ReserveN(time.Now(), piece)
		if !reservation.OK() { // the burst was lowered just now
			continue
		}
		if err := sleep(ctx, reservation.Delay()); err != nil {
			reservation.Cancel()
			return err
		}
		n -= piece
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
