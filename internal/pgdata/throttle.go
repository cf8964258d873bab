package pgdata

import (
	"context"

	"golang.org/x/time/rate"
)

// Throttle waits until n bytes of the data directory may be read or written under a limit in bytes per second. A nil limit
// does not wait; n may exceed the limit's burst.
func Throttle(ctx context.Context, limit *rate.Limiter, n int) error {
	if limit == nil {
		return nil
	}
	for n > 0 {
		some := min(n, limit.Burst())
		if err := limit.WaitN(ctx, some); err != nil {
			return err
		}
		n -= some
	}
	return nil
}
