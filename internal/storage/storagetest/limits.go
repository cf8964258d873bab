package storagetest

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// WatchHeap begins to measure; peak ends it and returns by how many bytes the live heap of the process has grown at most. The
// test that asks runs by itself.
func WatchHeap(t testing.TB) (peak func() uint64) {
	t.Helper()
	live := func() uint64 {
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	percent := debug.SetGCPercent(10) // for many samples
	t.Cleanup(func() { debug.SetGCPercent(percent) })
	runtime.GC()
	start, most := live(), uint64(0)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			most = max(most, live())
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	return func() uint64 {
		close(stop)
		<-stopped
		return most - min(start, most)
	}
}

// WholeBudget fails the test if something was not given back to the budget.
func WholeBudget(t testing.TB, b *storage.Budget) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := b.Acquire(ctx, b.Size()); err != nil {
		t.Errorf("the budget is not whole: %v", err)
		return
	}
	b.Release(b.Size())
}
