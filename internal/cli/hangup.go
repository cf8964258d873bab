package cli

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// hangups are the SIGHUPs that come to this process. Where it has a controlling terminal they say that it is lost, which ends a
// command as it always has. Without one, or where nohup has taken precautions, somebody sends them on purpose: to a command that follows
// its configuration file they say that it has changed, and any other they end.
type hangups struct {
	mu        sync.Mutex
	followers map[chan struct{}]bool
}

// watchHangups returns a context that ends with a SIGHUP that ends the command. The caller calls stop.
func watchHangups(ctx context.Context) (_ context.Context, h *hangups, stop func()) {
	unharmed := signal.Ignored(syscall.SIGHUP) // by nohup
	lost := hasTerminal() && !unharmed
	h = &hangups{followers: map[chan struct{}]bool{}}
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-ctx.Done():
				return
			case <-signals:
				if lost || !h.tell() && !unharmed {
					cancel()
				}
			}
		}
	}()
	return ctx, h, func() {
		signal.Stop(signals)
		cancel()
		<-ended
	}
}

// tell tells those that follow their configuration files, if there are any.
func (h *hangups) tell() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for f := range h.followers {
		select {
		case f <- struct{}{}:
		default: // it has not come to the last one yet
		}
	}
	return len(h.followers) > 0
}

// follow returns a channel that gets a word for each SIGHUP that does not end the command. The caller calls forget. Of no hangups there
// are none.
func (h *hangups) follow() (told <-chan struct{}, forget func()) {
	if h == nil {
		return nil, func() {}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	f := make(chan struct{}, 1)
	h.followers[f] = true
	return f, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.followers, f)
	}
}

// hasTerminal tells whether the process has a controlling terminal.
func hasTerminal() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	return tty.Close() == nil
}
