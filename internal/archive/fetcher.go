package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// Prefetch says how segments are fetched ahead of a server that recovers, and where they wait for it.
type Prefetch struct {
	Dir     string // in which the spool lies, see spoolDir; "" for beside the cluster
	Limit   int    // segments ahead of the one that was asked for, at most; 0 for none
	AtOnce  int    // downloads at the same time, at most; 0 is 1
	Archive string // what tells this archive from any other: what was fetched from another one is not handed over
}

// FetcherOptions say how a Fetcher works.
type FetcherOptions struct {
	Prefetch
	// Open opens the archive where Deps has none: only when it is needed, since a segment that was fetched ahead comes without.
	Open func(ctx context.Context) (*catalog.Catalog, error)
	// Start starts a process that runs RunPrefetch for the segments behind the one called name. Nil makes the Fetcher do it itself, until it is closed.
	Start func(name, dest string) error
}

// Fetcher fetches files for restore_command, segments of a server in recovery ahead of its calls. Its methods may be called at the same time.
type Fetcher struct {
	d      Deps
	o      FetcherOptions
	ctx    context.Context // of what goes on after the call that began it; Close ends it
	cancel context.CancelFunc
	work   sync.WaitGroup
}

// NewFetcher returns a Fetcher, which has to be closed.
func NewFetcher(d Deps, o FetcherOptions) *Fetcher {
	f := &Fetcher{d: d, o: o}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// Close ends the fetching ahead that the Fetcher does itself.
func (f *Fetcher) Close() error {
	f.cancel()
	f.work.Wait()
	return nil
}

// Fetch is [Fetch], from the spool if the file is there. Whatever is wrong with the spool changes neither answer nor content.
func (f *Fetcher) Fetch(ctx context.Context, o FetchOptions) error {
	state := RecoveryState(o.Dest)
	if state == ArchiveRecovery && endsBefore(o.Name, o.EndBefore) {
		return endHere(f.d.Log, o)
	}
	asking := serverNear(o.Dest)
	ahead, err := openSpool(o, f.o.Prefetch, state, asking)
	if err != nil {
		logUnused(f.d.Log, o.Name, err)
		return f.fetch(ctx, o, state, asking)
	}
	began := time.Now()
	done, err := ahead.serve(ctx, f.d.Log, o, asking)
	if !done && err == nil {
		o.Timeout -= time.Since(began)
		err = f.fetch(ctx, o, state, asking)
	}
	if err == nil && !ahead.tell(o.Name) {
		f.start(ahead, o, asking)
	}
	return err
}

// fetch fetches from the archive.
func (f *Fetcher) fetch(ctx context.Context, o FetchOptions, state State, asking server) error {
	d, err := f.opened(ctx)
	if err != nil {
		return err
	}
	return fetchFromArchive(ctx, d, o, state, asking)
}

// opened is what the Fetcher works with, with an open archive.
func (f *Fetcher) opened(ctx context.Context) (d Deps, err error) {
	d = f.d
	if d.Catalog == nil {
		d.Catalog, err = f.o.Open(ctx)
	}
	return d, err
}

// start begins to fetch ahead. That it cannot is nobody's loss.
func (f *Fetcher) start(ahead spool, o FetchOptions, asking server) {
	var err error
	switch {
	case f.o.Start == nil:
		f.work.Go(func() {
			d, err := f.opened(f.ctx)
			if err == nil {
				err = RunPrefetch(f.ctx, d, o, f.o.Prefetch)
			}
			if err != nil {
				logUnused(f.d.Log, o.Name, err)
			}
		})
	case asking.pid() == 1:
		err = errInit
	default:
		err = f.o.Start(o.Name, o.Dest)
	}
	if err != nil {
		logUnused(f.d.Log, o.Name, fmt.Errorf("cannot start fetching ahead into %s: %w", ahead.dir, err))
	}
}

// errInit keeps orphans from a postmaster that would be their parent: one that ends by a signal is to it a crashed backend, after which it
// restarts the server (CleanupBackend in postmaster.c).
var errInit = errors.New("PostgreSQL is process 1 here and would have to look after it; give it an init as its parent")

// logUnused tells why nothing is fetched ahead: to whom a setting asks for what cannot be, aloud.
func logUnused(log *slog.Logger, name string, err error) {
	level := slog.LevelDebug
	if errors.Is(err, errSpoolInside) {
		level = slog.LevelWarn
	}
	log.Log(context.Background(), level, "nothing is fetched ahead", "action", "wal-fetch", "seg", name, "reason", err)
}

// errNotAhead is why nothing is fetched ahead of a call.
var errNotAhead = errors.New("segments are fetched ahead for a server in recovery only")

// spool is where the segments lie that were fetched ahead for one server from one archive.
type spool struct {
	dir   string // of the data directory
	files string // with the segments, complete and synced; it is there as long as somebody fetches ahead
	size  int64  // of a segment
}

const (
	lockName     = "fetch.lock" // held by whoever fetches ahead
	askedName    = "asked"      // a named pipe, into which calls write what they were asked for
	segmentsName = "wal"
	partSuffix   = ".part" // of a segment that is being fetched
)

// openSpool finds the spool for a call, if it is one of a server in recovery. Only such a one asks for a file under this name; pg_rewind
// (fe_utils/archive.c) and people give others, and are to find nothing but what they asked for.
//
// The folder of the segments is named after all that they depend on: the archive, the cluster, and the server by its process and start. So nothing that was
// fetched for another one can be mistaken for what is asked for, and an archive that was changed between two starts of a server is read anew.
func openSpool(o FetchOptions, p Prefetch, state State, asking server) (spool, error) {
	const recoveryName = "RECOVERYXLOG" // xlogarchive.c
	if p.Limit < 1 || state == NotInRecovery || asking.lockFile == "" || filepath.Base(o.Dest) != recoveryName || wal.Classify(o.Name) != wal.KindSegment {
		return spool{}, errNotAhead
	}
	control, ok := controlNear(o.Dest)
	if !ok {
		return spool{}, errNotAhead
	}
	dir, err := spoolDir(o.Dest, p.Dir)
	if err != nil {
		return spool{}, err
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%q %d %d %q", p.Archive, control.SystemIdentifier, control.WALSegmentSize, asking.identity))
	const length = 8 // bytes of it
	return spool{dir, filepath.Join(dir, segmentsName, hex.EncodeToString(key[:length])), control.WALSegmentSize}, nil
}

// serve hands a segment over that was fetched ahead, or that is about to be. done is false if there is none that can be used; the error is one of the
// destination, which any other way would meet as well.
func (s spool) serve(ctx context.Context, log *slog.Logger, o FetchOptions, asking server) (done bool, err error) {
	began := time.Now()
	name := filepath.Join(s.files, o.Name)
	if !exists(name) {
		const share = 2 // what is left of the time is for fetching it after all
		ctx, cancel := context.WithTimeout(ctx, o.Timeout/share)
		defer cancel()
		s.await(ctx, name)
	}
	f, err := openSpooled(name, s.size)
	if err == nil {
		defer f.Close()
		err = checkSpooled(f, s.size, o)
	}
	if err == nil {
		log.Info("fetching", "action", "wal-fetch", "seg", o.Name, "state", "begin", "from", s.files)
		err = handOver(f, name, o.Dest, asking)
	}
	switch {
	case err == nil:
		logFetched(log, o.Name, s.size, time.Since(began), "prefetched", true)
		return true, nil
	case errors.Is(err, errLocal):
		return false, fmt.Errorf("cannot fetch %s: %w", o.Name, err)
	case !errors.Is(err, fs.ErrNotExist):
		log.Debug("what was fetched ahead is thrown away", "action", "wal-fetch", "seg", o.Name, "reason", err)
		_ = os.Remove(name) // whoever looks at it next refuses it as well
	}
	return false, nil
}

const (
	// spoolPatience is how long a segment that is being fetched ahead may make no progress before a call fetches it itself; the longer, the more of it
	// has to be checked and synced.
	spoolPatience   = time.Second
	bytesOfPatience = 64 << 20 // for each further spoolPatience
	spoolPause      = 2 * time.Millisecond
)

// await waits for a segment that is being fetched ahead, as long as that makes progress.
func (s spool) await(ctx context.Context, name string) {
	last, since := int64(-1), time.Now()
	for s.isServed() {
		st, err := os.Lstat(name + partSuffix)
		if err != nil {
			return // it is complete, or will not be
		}
		if st.Size() != last {
			last, since = st.Size(), time.Now()
		}
		if time.Since(since) > spoolPatience+spoolPatience*time.Duration(last/bytesOfPatience) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(spoolPause):
		}
	}
}

// openSpooled opens a segment in the spool, which has to be a file of ours, and of nobody else under another name.
func openSpooled(name string, size int64) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = errors.New("it is not a regular file")
	case int64(st.Uid) != int64(os.Geteuid()):
		err = fmt.Errorf("it belongs to user %d", st.Uid)
	case st.Nlink != 1:
		err = fmt.Errorf("it has %d names", st.Nlink)
	case st.Size != size:
		err = fmt.Errorf("it has %d bytes", st.Size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// checkSpooled looks once more at what tells one segment of a size from another. All of it was checked when it was fetched.
func checkSpooled(f *os.File, size int64, o FetchOptions) error {
	head := make([]byte, wal.HeaderSize)
	if _, err := f.ReadAt(head, 0); err != nil {
		return err
	}
	h, err := parseHeader(head, o.Dest)
	if err != nil {
		return err
	}
	return h.CheckFile(o.Name, size)
}

// handOver moves a segment to the destination by the rules of publish. It is never linked there: PostgreSQL writes new log into files that it has no
// more use for. On another file system it is copied.
func handOver(f *os.File, name, dest string, asking server) error {
	move := func(dest string) error {
		if err := unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, dest, unix.RENAME_NOREPLACE); err != nil {
			return &os.LinkError{Op: "rename", Old: name, New: dest, Err: err}
		}
		return nil
	}
	err := place(f, move, dest, asking)
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = copyOver(f, dest, asking)
	}
	if err == nil {
		_ = os.Remove(name) // where it was copied, or was at the destination already; one that stays is removed by whoever fetches ahead
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errLocal) || errors.Is(err, errSpooled) {
		return err
	}
	return fmt.Errorf("%w: %w", errLocal, err)
}

// errSpooled marks a file in the spool that cannot be read.
var errSpooled = errors.New("cannot read what was fetched ahead")

func copyOver(f *os.File, dest string, asking server) error {
	t, err := createTemporary(filepath.Dir(dest))
	if err != nil {
		return err
	}
	defer t.discard()
	if _, err := io.CopyBuffer(localWriter{t.File}, io.NewSectionReader(f, 0, 1<<62), make([]byte, copySize)); err != nil {
		if errors.Is(err, errLocal) {
			return err
		}
		return fmt.Errorf("%w: %w", errSpooled, err)
	}
	return t.publish(dest, asking)
}

// pipe opens the pipe to whoever fetches ahead; it fails with unix.ENXIO or fs.ErrNotExist where there is nobody.
func (s spool) pipe() (fd int, err error) {
	return unix.Open(filepath.Join(s.dir, askedName), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// isServed tells whether somebody fetches ahead.
func (s spool) isServed() bool {
	fd, err := s.pipe()
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// tell tells whoever fetches ahead what PostgreSQL has got. It is false if there is nobody.
func (s spool) tell(name string) bool {
	fd, err := s.pipe()
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	_, _ = unix.Write(fd, []byte(name+"\n")) // a pipe that is full tells enough
	return true
}
