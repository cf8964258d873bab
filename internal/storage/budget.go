package storage

import (
	"context"
	"fmt"

	"golang.org/x/sync/semaphore"
)

// Budget is a number of bytes of memory that buffers are taken from. Whoever wants a buffer waits until others
// have given back enough; those who came first are served first, so that a large request is not starved by
// small ones.
type Budget struct {
	size int64
	free *semaphore.Weighted
}

// NewBudget returns a budget of the given number of bytes, at least one.
func NewBudget(bytes int64) *Budget {
	bytes = max(bytes, 1)
	return &Budget{size: bytes, free: semaphore.NewWeighted(bytes)}
}

// Acquire takes n bytes, waiting for them until ctx ends. A request for more than the whole budget is served
// with the whole: it then runs alone instead of never. Give back with Release and the same n.
//
// A holder that acquires more before it releases can deadlock with another of its kind; take everything at once.
func (b *Budget) Acquire(ctx context.Context, n int64) error {
	if err := b.free.Acquire(ctx, b.clamp(n)); err != nil {
		return fmt.Errorf("cannot get %d of %d bytes of the memory budget: %w", n, b.size, err)
	}
	return nil
}

// TryAcquire takes n bytes if they are free and nobody waits for memory, and tells whether it did. Whoever can do without takes
// them like this. Give back with Release and the same n.
func (b *Budget) TryAcquire(n int64) bool { return b.free.TryAcquire(b.clamp(n)) }

// Release gives back what Acquire took with the same n.
func (b *Budget) Release(n int64) { b.free.Release(b.clamp(n)) }

// Size returns the whole budget in bytes.
func (b *Budget) Size() int64 { return b.size }

func (b *Budget) clamp(n int64) int64 { return max(0, min(n, b.size)) }
