package archive

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/wal"
)

const (
	// aheadGrace is how long those that are being archived ahead may take when the file that was asked for is done. PostgreSQL waits for the
	// process to end; what is broken off is archived by its own call.
	aheadGrace = 15 * time.Second

	// statusDir holds what the server and its archiver know of the files beside it, and readySuffix is the end of the name of what waits
	// (PostgreSQL: xlogarchive.h).
	statusDir, readySuffix = "archive_status", ".ready"

	// statusLimit bounds how many names are read of what may be a backlog of hundreds of thousands.
	statusLimit = 4096
)

// PusherOptions say how a [Pusher] archives.
type PusherOptions struct {
	Timeout time.Duration // for each file, retries included
	Blocks  bool          // record which blocks the records of segments change, for delta backups

	Files  int // how many files may be archived ahead: by a call, or without having been asked for yet; 0 for none
	AtOnce int // how many of them at the same time
	// GoOn is for how long since it was made a Pusher whose file is archived begins with further ones, so that a call which was quick takes many along;
	// 0: not at all.
	GoOn time.Duration
	// Ahead is the archive for these, opened so that one of them takes little memory; nil is that of Deps.
	Ahead *catalog.Catalog
	// Archive identifies where files are archived: what was archived elsewhere is not archived. "" is not known, and nothing is archived ahead.
	Archive string
	// Spool is where the folder lies in which a process tells later ones what it has archived ahead; "" is beside the data directory, or beside
	// pg_wal where that is a link.
	Spool string
	// Resident keeps that in memory instead, for a process that is asked for one file after the other.
	Resident bool
}

// Pusher archives the files that PostgreSQL asks for and, while it does so, segments that wait behind them. When PostgreSQL asks for one of
// those, and neither it nor the archive is another one by then, the answer is there already.
type Pusher struct {
	Deps
	o       PusherOptions
	made    time.Time
	ctx     context.Context // of what is archived ahead
	cancel  context.CancelFunc
	workers sync.WaitGroup

	mu      sync.Mutex
	known   map[string]*early // by path: what is being archived ahead, and what was
	asked   map[string]int    // by path: what PostgreSQL asks for now, and by how many calls
	queue   *queue
	marks   *marks // nil if the process tells later ones nothing
	running int    // workers
	begun   int    // files, as long as the process lives
	closed  bool
	until   time.Time // files are begun also when it is closed
}

// early is a file that is archived before PostgreSQL asks for it.
type early struct {
	done chan struct{} // closed when the rest is known
	mark mark
	ok   bool // it is archived
}

// NewPusher returns a Pusher, which is to be closed. When ctx ends, so does what is archived ahead.
func NewPusher(ctx context.Context, d Deps, o PusherOptions) *Pusher {
	if o.Ahead == nil {
		o.Ahead = d.Catalog
	}
	p := &Pusher{Deps: d, o: o, made: time.Now(), known: map[string]*early{}, asked: map[string]int{}}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

// Close begins no more files, but see PusherOptions.GoOn, waits for those under way, for a time, and ends.
func (p *Pusher) Close() {
	p.mu.Lock()
	p.closed = true
	marks, late := p.marks, time.AfterFunc(max(0, time.Until(p.until))+aheadGrace, p.cancel)
	p.mu.Unlock()
	p.workers.Wait()
	late.Stop()
	p.cancel()
	if marks != nil {
		if err := marks.forget(time.Now()); err != nil {
			p.Log.Debug("marks of files that were archived ahead are not removed", "error", err)
		}
	}
}

// ArchivedAhead tells whether an earlier process has archived the file at path along with another one, and neither it nor the archive is another by
// now. It needs no storage and no keys, and forgets what it is asked for.
func ArchivedAhead(log *slog.Logger, path string, o PusherOptions) bool {
	f, err := openFile(path)
	if err != nil {
		return false // its push tells why
	}
	defer f.Close()
	p := &Pusher{Deps: Deps{Log: log}, o: o}
	return p.archivedAhead(context.Background(), f)
}

// Push archives the file at path as the function [Push] does. What becomes of other files has no bearing on its result.
func (p *Pusher) Push(ctx context.Context, path string) error {
	path = filepath.Clean(path)
	f, err := openFile(path)
	if err != nil {
		return err
	}
	defer f.Close()
	defer p.ask(path)()
	if p.archivedAhead(ctx, f) {
		if p.o.Resident {
			p.lookAhead(f)
		}
		return nil
	}
	p.lookAhead(f)
	err = pushFile(ctx, p.Deps, PushOptions{Path: path, Timeout: p.o.Timeout, Blocks: p.o.Blocks}, f)
	if err == nil {
		p.goOn()
	}
	return err
}

// ask keeps a file from being archived ahead while PostgreSQL waits for it.
func (p *Pusher) ask(path string) (answered func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked[path]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.asked[path]--; p.asked[path] == 0 {
			delete(p.asked, path)
		}
	}
}

// archivedAhead tells whether the file was archived before, and is what it was then. It is asked once for each: what it knew is forgotten.
func (p *Pusher) archivedAhead(ctx context.Context, f *file) bool {
	if p.o.Files <= 0 || p.o.Archive == "" || wal.Classify(filepath.Base(f.Name())) != wal.KindSegment {
		return false
	}
	known := p.marked
	if p.o.Resident {
		known = func(f *file) bool { return p.remembered(ctx, f) }
	}
	if !known(f) {
		return false
	}
	p.Log.Info("archived ahead", "action", "wal-push", "seg", filepath.Base(f.Name()), "state", "complete", "size", f.size)
	return true
}

func (p *Pusher) remembered(ctx context.Context, f *file) bool {
	p.mu.Lock()
	e := p.known[f.Name()]
	p.mu.Unlock()
	if e == nil {
		return false
	}
	select {
	case <-e.done:
	case <-ctx.Done():
		return false
	}
	p.forget(f.Name(), e)
	return e.ok && p.isProven(e.mark, f)
}

func (p *Pusher) forget(path string, e *early) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known[path] == e {
		delete(p.known, path)
	}
}

func (p *Pusher) marked(f *file) bool {
	name := filepath.Base(f.Name())
	m, err := openMarks(f.Name(), p.o.Spool)
	if err != nil {
		p.Log.Debug("no files are archived ahead", "action", "wal-push", "error", err)
		return false
	}
	p.mu.Lock()
	p.marks = m
	p.mu.Unlock()
	k, err := m.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	proven := err == nil && p.isProven(k, f)
	if err := m.remove(name); err != nil {
		p.Log.Warn("the mark of a file that was archived ahead cannot be removed", "action", "wal-push", "seg", name, "error", err)
	}
	return proven
}

// isProven tells whether a mark says of the open file that it is archived.
func (p *Pusher) isProven(k mark, f *file) bool {
	now, err := markOf(f, p.o.Archive, time.Now())
	if err == nil {
		err = k.proves(now)
	}
	if err != nil {
		p.Log.Debug("what was archived ahead is looked at again", "action", "wal-push", "seg", filepath.Base(f.Name()), "error", err)
	}
	return err == nil
}

// lookAhead begins to archive what waits behind a file.
func (p *Pusher) lookAhead(f *file) {
	if p.o.Files <= 0 || p.o.Archive == "" || !exists(filepath.Join(filepath.Dir(f.Name()), statusDir)) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.o.Resident && p.marks == nil {
		return
	}
	p.queue = newQueue(f)
	p.start(p.o.AtOnce)
}

// goOn lets the workers go on although the file that was asked for is archived, and another one take its place.
func (p *Pusher) goOn() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queue != nil && p.o.GoOn > time.Since(p.made) {
		p.until = p.made.Add(p.o.GoOn)
		p.start(p.o.AtOnce + 1)
	}
}

// start makes it n workers.
func (p *Pusher) start(n int) {
	for !p.closed && p.running < n {
		p.running++
		p.workers.Go(p.work)
	}
}

// work archives one file after the other until none waits, or one fails.
func (p *Pusher) work() {
	for {
		path, e := p.next()
		if e == nil {
			break
		}
		ok := p.pushEarly(path, e)
		if !ok {
			p.forget(path, e)
		}
		close(e.done)
		if !ok {
			break
		}
	}
	p.mu.Lock()
	p.running--
	p.mu.Unlock()
}

// next chooses the file that a worker is to archive; none ends it.
func (p *Pusher) next() (string, *early) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for (!p.closed || time.Now().Before(p.until)) && p.ctx.Err() == nil && p.held() < p.o.Files {
		path := p.queue.next()
		if path == "" {
			break
		}
		if p.known[path] != nil || p.asked[path] > 0 || !p.o.Resident && p.marks.has(filepath.Base(path)) {
			continue // one with a mark, even a void one, is left to its own call
		}
		e := &early{done: make(chan struct{})}
		p.known[path] = e
		p.begun++
		return path, e
	}
	return "", nil
}

// held counts the files that were begun and not asked for. Those that PostgreSQL is not going to ask for any more are forgotten.
func (p *Pusher) held() int {
	if !p.o.Resident {
		return p.begun
	}
	for path, e := range p.known {
		select {
		case <-e.done:
			if time.Since(e.mark.At) >= markBelieved {
				delete(p.known, path)
			}
		default:
		}
	}
	return len(p.known)
}

// pushEarly archives a file that PostgreSQL has not asked for yet, and tells whether it did.
func (p *Pusher) pushEarly(path string, e *early) bool {
	log := p.Log.With("ahead", true)
	f, err := openFile(path)
	if err != nil {
		log.Debug("a file that waited is gone", "action", "wal-push", "seg", filepath.Base(path), "error", err)
		return false
	}
	defer f.Close()
	before, err := markOf(f, p.o.Archive, time.Now())
	if err == nil && !before.isSettled() {
		return false
	}
	if err == nil {
		err = pushFile(p.ctx, Deps{p.o.Ahead, log}, PushOptions{Path: path, Timeout: p.o.Timeout, Blocks: p.o.Blocks}, f)
	}
	if err == nil {
		e.mark, err = p.unchanged(path, before)
	}
	if err == nil && p.marks != nil {
		err = p.marks.put(e.mark)
	}
	if err != nil {
		log.Warn("a file that waits was not archived ahead; the server's own call for it is going to", "action", "wal-push", "seg", filepath.Base(path), "error", err)
	}
	e.ok = err == nil
	return e.ok
}

// unchanged makes the mark of a file that is archived now, if it is the one that it was before.
func (p *Pusher) unchanged(path string, before mark) (mark, error) {
	f, err := openFile(path)
	if err != nil {
		return mark{}, err
	}
	defer f.Close()
	after, err := markOf(f, p.o.Archive, time.Now())
	if err == nil && !after.sameFile(before) {
		err = errTakenAway
	}
	return after, err
}

// queue finds the files that wait, in the order in which PostgreSQL is going to ask for them.
type queue struct {
	asked  string // name of the file that PostgreSQL asks for
	dir    string // of the files
	size   int64  // of a segment
	last   wal.Segment
	gap    bool     // there is nothing behind last, or last is none
	listed bool     // all that waits has been looked at, once
	rest   []string // of it, what is left
}

func newQueue(f *file) *queue {
	q := &queue{asked: filepath.Base(f.Name()), dir: filepath.Dir(f.Name()), size: f.size}
	var err error
	q.last, err = wal.ParseSegment(q.asked, f.size)
	q.gap = err != nil
	return q
}

// next is the path of the next file that waits: the segments that follow up to the first that does not wait, then any. Histories and what
// else is small is left to the server's own call. "" is the end.
func (q *queue) next() string {
	if !q.gap {
		q.last = q.last.Next()
		name := q.last.Name(q.size)
		if exists(filepath.Join(q.dir, statusDir, name+readySuffix)) {
			return filepath.Join(q.dir, name)
		}
		q.gap = true
	}
	if !q.listed {
		q.listed, q.rest = true, q.waiting()
	}
	if len(q.rest) == 0 {
		return ""
	}
	name := q.rest[0]
	q.rest = q.rest[1:]
	return filepath.Join(q.dir, name)
}

// waiting lists segments that wait. Those before the one that PostgreSQL asks for are not among them: it takes the first that waits, so that
// they have been answered for and are about to be called archived. A folder that cannot be read holds none: nothing depends on it.
func (q *queue) waiting() []string {
	dir, err := os.Open(filepath.Join(q.dir, statusDir))
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(statusLimit)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	var segments []string
	for _, name := range names {
		if name, ok := strings.CutSuffix(name, readySuffix); ok && name > q.asked && wal.Classify(name) == wal.KindSegment {
			segments = append(segments, name)
		}
	}
	slices.Sort(segments)
	return segments
}
