package cli

import (
	"context"
	"os"
	"sync"
	"syscall"
	"time"

	"gitlab.com/walden-pg/walden/internal/config"
	"gitlab.com/walden-pg/walden/internal/pace"
)

// rates are the limits that can be changed while a command runs.
type rates struct{ disk, network *pace.Limiter }

// limiters returns the limits of this run. They are those of the settings, also where there is none: it can be set later.
func (a *app) limiters() rates {
	if a.rates == (rates{}) {
		a.rates = rates{disk: pace.New(a.config.Limits.DiskRate), network: pace.New(a.config.Limits.NetworkRate)}
	}
	return a.rates
}

// setRates makes the limits of other settings those of this run, and says what has changed.
func (a *app) setRates(c config.Config) {
	for _, limit := range []struct {
		setting string
		l       *pace.Limiter
		wanted  int64
	}{
		{"WALG_DISK_RATE_LIMIT", a.limiters().disk, c.Limits.DiskRate}, {"WALG_NETWORK_RATE_LIMIT", a.limiters().network, c.Limits.NetworkRate},
	} {
		if old := limit.l.BytesPerSecond(); old != limit.wanted {
			limit.l.Set(limit.wanted)
			a.log.Info("a rate limit has changed; 0 is none", "setting", limit.setting, "old", old, "new", limit.wanted, "file", c.File)
		}
	}
}

// lookForRates is the interval in which the configuration file is looked at.
const lookForRates = 3 * time.Second

// followRates lets each of the runs that are given follow its configuration file until the returned function is called. Other settings
// than the limits stay as they are, and a file that cannot be used changes nothing. The file is looked at every few seconds, and
// at once when SIGHUP comes that does not mean the loss of a terminal.
func (a *app) followRates(ctx context.Context, runs ...*app) (release func()) {
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	for _, run := range runs {
		if run.turbo || run.reload == nil {
			continue
		}
		f := &rateFile{run: run}
		asked, forget := a.hangups.follow()
		following.Go(func() {
			defer forget()
			f.follow(ctx, asked)
		})
	}
	return func() {
		cancel()
		following.Wait()
	}
}

// rateFile is the configuration file of a run.
type rateFile struct {
	run  *app
	seen fileStamp // none yet, so that the first look finds what has changed since the run began
}

func (f *rateFile) follow(ctx context.Context, asked <-chan struct{}) {
	ticker := time.NewTicker(lookForRates)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
			f.look(true)
		case <-ticker.C:
			f.look(false)
		}
	}
}

// look reads the settings again if the file has changed since it was looked at, or if somebody asks for it.
func (f *rateFile) look(asked bool) {
	now := stamp(f.run.config.File)
	if now == f.seen && !asked {
		return
	}
	f.seen = now
	c, err := f.run.reload()
	if err != nil {
		f.run.log.Warn("the configuration file has changed and cannot be used; the rate limits stay as they are", "file", f.run.config.File, "error", err)
		return
	}
	f.run.setRates(c)
}

// fileStamp tells one content of a file from another.
type fileStamp struct {
	modified time.Time
	size     int64
	inode    uint64
}

// stamp returns the zero value for a file that is not there.
func stamp(name string) fileStamp {
	st, err := os.Stat(name)
	if err != nil {
		return fileStamp{}
	}
	s := fileStamp{modified: st.ModTime(), size: st.Size()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		s.inode = sys.Ino
	}
	return s
}
