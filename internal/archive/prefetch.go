package archive

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/wal"
)

const (
	// leastAhead is how many segments are fetched ahead before anything is known of the archive's speed and the server's.
	leastAhead = 2
	// spoolBytes bounds what waits in the spool, in bytes; but two segments may wait there, of whatever size.
	spoolBytes = 512 << 20
	// spoolShare is the part of the free space that may be taken.
	spoolShare = 4

	// lookEvery is how often is looked whether something was asked for, aliveEvery whether the server is there.
	lookEvery  = 10 * time.Millisecond
	aliveEvery = 500 * time.Millisecond
	// idleLimit is after how long without a question fetching ahead ends: replaying a segment of 1 GiB takes less.
	idleLimit = time.Minute
)

// errBusy says that somebody fetches ahead already.
var errBusy = errors.New("another process does it")

// RunPrefetch fetches the segments behind the one that o names, which PostgreSQL has got, into the spool, and goes on with what calls tell. It
// returns, and leaves no segment behind, when there is nothing more to do: the archive holds no next segment and PostgreSQL has taken all others, it has
// not asked for a while, its recovery has ended, or it is gone. The same goes for a segment that cannot be had: whoever asks for it is told why.
//
// One process at a time does this for a data directory. The error tells why nothing is fetched.
func RunPrefetch(ctx context.Context, d Deps, o FetchOptions, ahead Prefetch) (err error) {
	asking := serverNear(o.Dest)
	s, err := openSpool(o, ahead, RecoveryState(o.Dest), asking)
	if err != nil {
		return err
	}
	first, err := wal.ParseSegment(o.Name, s.size)
	if err != nil {
		return err
	}
	lock, err := s.lock()
	if errors.Is(err, errBusy) {
		s.passOn(ctx, o.Name)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	questions, err := s.listen()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, questions.close()) }()
	p := &prefetcher{
		d: d, o: o, ahead: ahead, spool: s, asking: asking, questions: questions,
		asked: first, stop: math.MaxUint64, running: map[wal.Segment]context.CancelFunc{}, there: map[wal.Segment]bool{}, results: make(chan fetched),
	}
	if err := p.tidy(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(s.files)) }()
	d.Log.Info("fetching ahead", "action", "wal-prefetch", "seg", o.Name, "state", "begin", "from", d.Catalog, "to", s.files)
	why := p.run(ctx)
	d.Log.Info("fetching ahead has ended", "action", "wal-prefetch", "seg", p.asked.Name(s.size), "state", "complete", "segments", p.count, "reason", why)
	return nil
}

// lock makes the caller the one that fetches ahead.
func (s spool) lock() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, lockName), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, fileMode)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errBusy
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// passedOn marks a question that somebody else was started for. It may come late.
const passedOn = "+"

// passOn tells whoever fetches ahead what this process was started for: it was not listening yet when the call came.
func (s spool) passOn(ctx context.Context, name string) {
	const tries = 100
	for range tries {
		if s.tell(passedOn + name) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookEvery):
		}
	}
}

// questions is the reading end of the pipe.
type questions struct {
	fd   int
	rest []byte // of a name that is not complete
}

// listen opens the pipe into which calls write what they were asked for. A pipe tells them whether there is a reader, whatever has become of it.
func (s spool) listen() (*questions, error) {
	name := filepath.Join(s.dir, askedName)
	if err := unix.Mkfifo(name, fileMode); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &fs.PathError{Op: "make the pipe", Path: name, Err: err}
	}
	// For writing as well: without a writer every reading would find an end.
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &questions{fd: fd}, nil
}

func (q *questions) close() error { return unix.Close(q.fd) }

// next returns the names that were written since.
func (q *questions) next() (names []string) {
	const most = 4 << 10
	buf := make([]byte, most)
	n, err := unix.Read(q.fd, buf)
	if err != nil || n <= 0 {
		return nil
	}
	q.rest = append(q.rest, buf[:n]...)
	for {
		line, rest, found := bytes.Cut(q.rest, []byte("\n"))
		if !found {
			return names
		}
		names, q.rest = append(names, string(line)), rest
	}
}

// fetched is the outcome of fetching a segment ahead.
type fetched struct {
	segment wal.Segment
	took    time.Duration
	err     error
}

// prefetcher keeps a spool filled.
type prefetcher struct {
	d         Deps
	o         FetchOptions
	ahead     Prefetch
	spool     spool
	asking    server
	questions *questions

	asked   wal.Segment // the last one that PostgreSQL has got
	stop    uint64      // number of the first one that could not be had; PostgreSQL has to get it before fetching goes on behind it
	running map[wal.Segment]context.CancelFunc
	there   map[wal.Segment]bool // in the spool, or taken from there just now
	results chan fetched
	count   int

	took, between time.Duration // what fetching one takes and what passes between two questions, smoothed; 0 for not known
	last          time.Time     // of the last question
}

// tidy makes the folder of the segments, removes those of other servers and archives, and finds those that a killed process has left.
func (p *prefetcher) tidy() error {
	parent := filepath.Dir(p.spool.files)
	if err := errors.Join(privateDir(parent), privateDir(p.spool.files)); err != nil {
		return err
	}
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(p.spool.files) {
			if err := os.RemoveAll(filepath.Join(parent, e.Name())); err != nil {
				return err
			}
		}
	}
	if entries, err = os.ReadDir(p.spool.files); err != nil {
		return err
	}
	for _, e := range entries {
		segment, err := wal.ParseSegment(e.Name(), p.spool.size)
		if err == nil && p.isAhead(segment) {
			p.there[segment] = true
			continue
		}
		if err := os.RemoveAll(filepath.Join(p.spool.files, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// isAhead tells whether PostgreSQL may soon ask for a segment, if it goes on as it does.
func (p *prefetcher) isAhead(s wal.Segment) bool {
	return s.Timeline == p.asked.Timeline && s.Number > p.asked.Number && s.Number-p.asked.Number <= uint64(p.ahead.Limit)
}

// run fetches until there is nothing more to do and tells why.
func (p *prefetcher) run(ctx context.Context) (why string) {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer func() {
		cancel()
		go func() { work.Wait(); close(p.results) }()
		for range p.results { // nobody waits for these any more
		}
	}()
	p.last = time.Now()
	looked, seen := p.last, p.asking.isThere()
	for {
		p.begin(ctx, &work)
		if why := p.hasEnded(); why != "" {
			return why
		}
		select {
		case <-ctx.Done():
			return "it was ended"
		case r := <-p.results:
			p.take(r)
		case <-time.After(lookEvery):
		}
		for _, name := range p.questions.next() {
			p.hear(name)
		}
		if time.Since(looked) < aliveEvery {
			continue
		}
		looked = time.Now()
		if now := serverNear(p.o.Dest); !bytes.Equal(now.identity, p.asking.identity) || seen && !now.isThere() { // its file stays where it was killed
			return "the server has ended"
		}
		if RecoveryState(p.o.Dest) == NotInRecovery {
			return "recovery has ended"
		}
	}
}

// hasEnded tells why nothing more is to be fetched, and nothing to be handed over.
func (p *prefetcher) hasEnded() string {
	switch {
	case time.Since(p.last) > idleLimit:
		return "the server does not ask"
	case len(p.running) == 0 && len(p.there) == 0 && p.stop == p.asked.Number+1:
		return "the next segment is not to be had"
	}
	return ""
}

// begin fetches as many segments as there is need and room for.
func (p *prefetcher) begin(ctx context.Context, work *sync.WaitGroup) {
	depth := uint64(p.depth())
	for s := p.asked.Next(); s.Number-p.asked.Number <= depth && s.Number < p.stop && len(p.running) < max(1, p.ahead.AtOnce); s = s.Next() {
		name := s.Name(p.spool.size)
		if endsBefore(name, p.o.EndBefore) {
			p.stop = s.Number
			return
		}
		if p.there[s] || p.running[s] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(ctx)
		p.running[s] = cancel
		work.Go(func() {
			began := time.Now()
			err := p.fetch(ctx, name)
			p.results <- fetched{s, time.Since(began), err}
		})
	}
	if depth == 0 {
		p.stop = min(p.stop, p.asked.Number+1)
	}
}

// depth is how many segments are to be ahead of PostgreSQL, so that one is there whenever it asks: as many as it asks for while one is fetched, and one more,
// within the limits of number and space.
func (p *prefetcher) depth() int {
	wanted := leastAhead
	if p.took > 0 && p.between > 0 {
		wanted = max(wanted, int(min(p.took/p.between, math.MaxInt16))+2) // rounded up
	}
	var st unix.Statfs_t
	if err := unix.Statfs(p.spool.files, &st); err != nil {
		return 0
	}
	room := min(max(spoolBytes, leastAhead*p.spool.size), int64(st.Bavail)*st.Bsize/spoolShare+int64(len(p.there))*p.spool.size)
	return min(wanted, p.ahead.Limit, int(room/p.spool.size))
}

// smooth goes on with a measured duration.
func smooth(before, now time.Duration) time.Duration {
	const weight = 4
	if before == 0 {
		return now
	}
	return before + (now-before)/weight
}

// take notes the outcome of a fetch.
func (p *prefetcher) take(r fetched) {
	p.running[r.segment]()
	delete(p.running, r.segment)
	name := r.segment.Name(p.spool.size)
	switch {
	case r.err == nil && p.isAhead(r.segment):
		p.there[r.segment] = true
		p.took = smooth(p.took, r.took)
		p.count++
		p.d.Log.Debug("fetched ahead", "action", "wal-prefetch", "seg", name, "seconds", seconds(r.took), "waiting", len(p.there))
	case r.err == nil:
		p.remove(r.segment)
	case p.isAhead(r.segment):
		p.stop = min(p.stop, r.segment.Number)
		p.d.Log.Debug("not fetched ahead", "action", "wal-prefetch", "seg", name, "reason", r.err)
	}
}

// hear goes on behind a segment that PostgreSQL has got, and forgets what it is not going to ask for.
func (p *prefetcher) hear(name string) {
	name, late := strings.CutPrefix(name, passedOn)
	segment, err := wal.ParseSegment(name, p.spool.size)
	if err != nil || late && segment.Name(p.spool.size) <= p.asked.Name(p.spool.size) {
		return
	}
	now := time.Now()
	if p.asked.Next() == segment {
		p.between = smooth(p.between, now.Sub(p.last))
	}
	if segment.Timeline != p.asked.Timeline || segment.Number >= p.stop || segment.Number < p.asked.Number {
		p.stop = math.MaxUint64
	}
	p.asked, p.last = segment, now
	for s := range p.there {
		if !p.isAhead(s) {
			delete(p.there, s)
			p.remove(s)
		}
	}
	for s, cancel := range p.running {
		if !p.isAhead(s) {
			cancel()
		}
	}
}

// remove removes a segment from the spool, if PostgreSQL has not taken it.
func (p *prefetcher) remove(s wal.Segment) {
	_ = os.Remove(filepath.Join(p.spool.files, s.Name(p.spool.size))) // all of them are removed at the end
}

// errDoubt marks what only a call that is asked for the segment can decide about.
var errDoubt = errors.New("it is left to the call that needs it")

// fetch brings a segment into the spool, complete, checked and synced, or not at all.
func (p *prefetcher) fetch(ctx context.Context, name string) error {
	const mebibyte = 1 << 20
	limit := standbyPatience + time.Duration(p.spool.size/mebibyte)*time.Second
	ctx, cancel := withDeadline(ctx, limit, "fetching "+name+" ahead")
	defer cancel()
	final := filepath.Join(p.spool.files, name)
	f, err := os.OpenFile(final+partSuffix, os.O_CREATE|os.O_EXCL|os.O_RDWR, fileMode) // a call that waits for it sees it from here on
	if err != nil {
		return err
	}
	t := &temporary{f, true}
	defer t.discard()
	r, err := p.d.Catalog.WAL().Open(ctx, name)
	if err != nil {
		return err
	}
	defer r.Close()
	h, size, err := storeSegment(t, bufio.NewReaderSize(r, copySize), FetchOptions{Name: name, Dest: p.o.Dest})
	switch {
	case err != nil:
		return err
	case h.Major == 0:
		return fmt.Errorf("its version of PostgreSQL is not known: %w", errDoubt)
	case size != p.spool.size:
		return fmt.Errorf("it has %d bytes: %w", size, errDoubt)
	}
	if err := h.CheckRecords(bufio.NewReaderSize(io.NewSectionReader(t, 0, size), copySize)); err != nil {
		return err
	}
	if err := errors.Join(ctx.Err(), t.Sync()); err != nil {
		return err
	}
	if err := os.Rename(final+partSuffix, final); err != nil {
		return err
	}
	return syncDir(p.spool.files)
}
