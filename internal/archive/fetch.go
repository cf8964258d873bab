package archive

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// ErrAbsent is returned by Fetch when the storage has answered that the archive does not hold the file. Nothing else
// is ever reported as absence.
var ErrAbsent = errors.New("not in the archive")

// errLocal marks failures of this host's file system; trying again would not help.
var errLocal = errors.New("cannot write the destination")

// errContent marks an archived file that is not what its name says.
var errContent = errors.New("the archived file is damaged")

// errGap marks a file that the archive does not hold although it holds what follows it.
var errGap = errors.New("the archive has a gap")

// gapError is a segment or history that is missing in the archive.
type gapError struct {
	follower string // what is there and was archived later
	// elder tells that there is an older timeline's segment of the same place, in which PostgreSQL would read on: on another line of descent.
	// A history counts as such: without it the server stays on the older timeline.
	elder bool
}

func (e *gapError) Error() string {
	return fmt.Sprintf("%v: it does not hold this file, but %s", errGap, e.follower)
}

func (e *gapError) Unwrap() error { return errGap }

// errNoArchive marks a prefix under which no WAL is archived.
var errNoArchive = errors.New("wrong storage")

// errWrongCluster marks a segment of another cluster than the one that asks.
var errWrongCluster = errors.New("the archive is of another cluster")

// FetchOptions say what to fetch.
type FetchOptions struct {
	Name    string        // as restore_command's %f gives it
	Dest    string        // as restore_command's %p gives it
	Timeout time.Duration // for all of it, retries included

	// EndBefore is the name of a segment or history file of which, and of all that follow it on any timeline, archive recovery is told
	// that the archive does not hold them: the operator's decision to go no further than what lies before a gap or damage. "" for none.
	EndBefore string
}

const (
	firstPause, longestPause = 500 * time.Millisecond, 15 * time.Second
	// damageAttempts is how often a damaged file is read: damage may have happened on the way. As often a gap is looked for: another
	// process may be archiving several files at once.
	damageAttempts = 2
	// standbyPatience bounds the tries for a standby, which asks again by itself and may have another source of WAL.
	standbyPatience = 30 * time.Second
)

// State is what PostgreSQL is doing in a data directory, as its signal files say (xlogrecovery.c, readRecoverySignalFile).
type State int

// The states. A standby is one even if recovery.signal is there, too.
const (
	NotInRecovery State = iota
	ArchiveRecovery
	Standby
)

// RecoveryState reads the signal files. The data directory is the working directory when PostgreSQL runs
// restore_command, else the one above the destination's.
func RecoveryState(dest string) State {
	for _, dir := range dataDirs(dest) {
		if exists(filepath.Join(dir, "standby.signal")) {
			return Standby
		}
		if exists(filepath.Join(dir, "recovery.signal")) {
			return ArchiveRecovery
		}
	}
	return NotInRecovery
}

// dataDirs are the places where the data directory of a WAL file can be: the working directory, as PostgreSQL runs its commands
// there, then the directory above the file's own.
func dataDirs(path string) []string { return []string{".", filepath.Dir(filepath.Dir(path))} }

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// Fetch brings an archived file to its destination, complete and checked, or not at all. Failures that may pass are
// retried until the deadline.
func Fetch(ctx context.Context, d Deps, o FetchOptions) error {
	f := NewFetcher(d, FetcherOptions{})
	return errors.Join(f.Fetch(ctx, o), f.Close())
}

// endHere is the answer for what follows the place where the operator wants recovery to end.
func endHere(log *slog.Logger, o FetchOptions) error {
	log.Warn("recovery is made to end here", "action", "wal-fetch", "seg", o.Name, "before", o.EndBefore)
	return fmt.Errorf("%s: %w", o.Name, ErrAbsent)
}

// fetchFromArchive is Fetch for a server in the state given, of what was not fetched ahead.
func fetchFromArchive(ctx context.Context, d Deps, o FetchOptions, state State, asking server) error {
	began := time.Now()
	limit := o.Timeout
	if state == Standby {
		limit = min(limit, standbyPatience)
	}
	ctx, cancel := withDeadline(ctx, limit, "fetching "+o.Name)
	defer cancel()
	d.Log.Info("fetching", "action", "wal-fetch", "seg", o.Name, "state", "begin", "from", d.Catalog)
	var size int64
	var isAbsent error // an answer, not a failure
	err := repeatedly(ctx, d.Log.With("action", "wal-fetch", "seg", o.Name), mayPass, func() (err error) {
		size, err = fetchOnce(ctx, d, o, state, asking)
		if errors.Is(err, ErrAbsent) {
			isAbsent, err = err, nil
		}
		return err
	})
	if gap := (*gapError)(nil); errors.As(err, &gap) && !gap.elder {
		target, terr := targetNear(o.Dest)
		if terr != nil {
			return fmt.Errorf("cannot fetch %s: %w; and whether the server has a recovery target cannot be told: %w", o.Name, err, terr)
		}
		if target != "" {
			d.Log.Warn("the archive has a gap; PostgreSQL may read no further than here, and ends with an error unless it reaches its recovery target before",
				"action", "wal-fetch", "seg", o.Name, "follower", gap.follower, "target", target)
			return fmt.Errorf("%s: %w", o.Name, ErrAbsent)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot fetch %s: %w", o.Name, err)
	}
	if isAbsent != nil {
		return isAbsent
	}
	logFetched(d.Log, o.Name, size, time.Since(began))
	return nil
}

func logFetched(log *slog.Logger, name string, size int64, took time.Duration, more ...any) {
	log.Info("fetched", append([]any{
		"action", "wal-fetch", "seg", name, "state", "complete", "size", size,
		"seconds", seconds(took), "rate", int64(float64(size) / took.Seconds()),
	}, more...)...)
}

// repeatedly does something until it succeeds or fails in a way that does not pass. When ctx ends it tells why, and what had
// gone wrong before.
func repeatedly(ctx context.Context, log *slog.Logger, passes func(err error, attempt int) bool, do func() error) error {
	pause := firstPause
	var last error // what went wrong, other than by the end of ctx
	for attempt := 1; ; attempt++ {
		err := do()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			if failed := catalog.LastFailure(err); failed != nil {
				last = failed
			} else if !errors.Is(err, ctx.Err()) {
				last = err
			}
			return ended(ctx, last)
		case !passes(err, attempt):
			return err
		}
		log.Warn("trying again", "attempt", attempt, "error", err)
		last = err
		select {
		case <-ctx.Done():
			return ended(ctx, last)
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
		pause = min(2*pause, longestPause)
	}
}

// ended tells what ended ctx, and what had gone wrong before, nil for nothing.
func ended(ctx context.Context, last error) error {
	if last == nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w; before that: %w", context.Cause(ctx), last)
}

// timelineLen is the length of the timeline in a segment's name; the position follows.
const timelineLen = 8

// endsBefore tells whether recovery is to be told that the file called name is absent, see FetchOptions.EndBefore.
func endsBefore(name, end string) bool {
	switch kind := wal.Classify(name); {
	case end == "" || kind != wal.Classify(end):
		return false
	case kind == wal.KindSegment:
		return name[timelineLen:] >= end[timelineLen:]
	}
	return name >= end
}

// absent turns "no such object" into the answer for PostgreSQL, unless what else the archive holds speaks against it: if there
// is nothing at all, the prefix is wrong or the storage not mounted; and in archive recovery, which the first absent segment ends
// for good, if there is what was archived after it.
func absent(ctx context.Context, d Deps, o FetchOptions, state State) error {
	gap, empty, err := lookAround(ctx, d, o, state)
	switch {
	case err != nil:
		return fmt.Errorf("cannot tell whether %s is archived: %w", o.Name, err)
	case empty:
		return noArchive(ctx, d)
	case gap.follower != "":
		return hint.With(&gap,
			fmt.Sprintf("look for %s in the pg_wal of the server that wrote it, and archive it with wal-push; "+
				"to end recovery before it and do without all that follows, set WALDEN_END_RECOVERY_BEFORE=%s", o.Name, o.Name))
	}
	return fmt.Errorf("%s: %w", o.Name, ErrAbsent)
}

// noArchive tells an archive without WAL from a prefix with nothing at all.
func noArchive(ctx context.Context, d Deps) error {
	empty, err := d.Catalog.Empty(ctx)
	if err != nil {
		return err
	}
	what := "no WAL at all"
	if empty {
		what = "no archive at all"
	}
	return hint.With(fmt.Errorf("%w: %s holds %s", errNoArchive, d.Catalog, what),
		"check the storage prefix in the settings; if the storage is to be mounted there, mount it")
}

// lookAround tells whether the archive holds no WAL at all, and in archive recovery the first file that can only have been
// archived after the one that is asked for, "" if there is none. It takes one listing, all of it in archive recovery only: there
// files are absent at the end and a few times when histories are asked for, while a standby asks for the next segment again and again.
//
// PostgreSQL asks for absent segments also where there is no gap: for the next one of the newest timeline, then of its ancestors,
// and for one that was left in its middle and is archived as ".partial". None of them has a follower on its own timeline.
func lookAround(ctx context.Context, d Deps, o FetchOptions, state State) (gap gapError, empty bool, err error) {
	asked, _ := wal.NameTimeline(o.Name)
	isHistory := wal.Classify(o.Name) == wal.KindHistory
	search := state == ArchiveRecovery && (isHistory && asked > newestTimeline(o.Dest) || wal.Classify(o.Name) == wal.KindSegment)
	empty, gap.elder = true, isHistory
	for name, err := range d.Catalog.WAL().Names(ctx) {
		if err != nil {
			return gap, false, err
		}
		empty = false
		if !search {
			break
		}
		if wal.Classify(name) != wal.KindSegment {
			continue
		}
		timeline, _ := wal.NameTimeline(name)
		if timeline == asked && (isHistory || name > o.Name) && (gap.follower == "" || name < gap.follower) {
			gap.follower = name
		}
		if timeline < asked && !isHistory && name[timelineLen:] == o.Name[timelineLen:] {
			gap.elder = true
		}
	}
	return gap, empty, nil
}

// targetNear is where the server that asks for a file is told to end recovery, "" if it is told nothing of which this can be sure.
func targetNear(dest string) (string, error) {
	for _, dir := range dataDirs(dest) {
		if exists(filepath.Join(dir, pgdata.ControlName)) {
			return pgdata.RecoveryTarget(dir)
		}
	}
	return "", nil
}

// newestTimeline is the newest one that a data directory knows of. Its own history may be in an archive that was in use before;
// that of a newer one was made by a server that archived here.
func newestTimeline(dest string) wal.Timeline {
	control, ok := controlNear(dest)
	if !ok {
		return math.MaxUint32
	}
	return max(control.Timeline, control.MinRecoveryTimeline)
}

func mayPass(err error, attempt int) bool {
	switch {
	case errors.Is(err, errLocal), errors.Is(err, errWrongCluster), errors.Is(err, errNoArchive), errors.Is(err, fs.ErrPermission),
		errors.Is(err, catalog.ErrNoSecretKey), catalog.IsPermanent(err):
		return false
	case errors.Is(err, errContent), errors.Is(err, catalog.ErrDamaged), errors.Is(err, errGap):
		return attempt < damageAttempts
	}
	return true
}

func fetchOnce(ctx context.Context, d Deps, o FetchOptions, state State, asking server) (int64, error) {
	r, err := d.Catalog.WAL().Open(ctx, o.Name)
	if errors.Is(err, fs.ErrNotExist) { // from here only: an object that vanishes while it is read was there
		return 0, absent(ctx, d, o, state)
	}
	if err != nil {
		return 0, err
	}
	defer r.Close()
	t, err := createTemporary(filepath.Dir(o.Dest))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errLocal, err)
	}
	defer t.discard()
	size, err := copyChecked(ctx, d, t, r, o)
	if err != nil {
		return 0, err
	}
	if err := t.publish(o.Dest, asking); err != nil {
		return 0, fmt.Errorf("%w: %w", errLocal, err)
	}
	return size, nil
}

// textLimit bounds the small files that PostgreSQL archives beside the segments, in bytes.
const textLimit = 1 << 20

// copyChecked writes the content to t and checks that it is what the name says, and of the cluster that asks. It writes no more
// than a file of that name can have, whatever the archived one decompresses to.
func copyChecked(ctx context.Context, d Deps, t *temporary, r io.Reader, o FetchOptions) (int64, error) {
	in := bufio.NewReaderSize(r, copySize)
	switch wal.Classify(o.Name) {
	case wal.KindSegment, wal.KindPartial:
		return copySegment(ctx, d, t, in, o)
	case wal.KindHistory:
		size, err := copyAtMost(t, in, textLimit)
		if err == nil {
			err = checkHistory(io.NewSectionReader(t, 0, size), o.Name)
		}
		return size, err
	case wal.KindBackupHistory:
		return copyAtMost(t, in, textLimit)
	}
	return copyAtMost(t, in, math.MaxInt64-1) // whatever an operator has archived; PostgreSQL never asks for it
}

func copyAtMost(t *temporary, r io.Reader, limit int64) (int64, error) {
	size, err := io.CopyBuffer(localWriter{t.File}, io.LimitReader(r, limit+1), make([]byte, copySize))
	if err == nil && size > limit {
		err = fmt.Errorf("%w: it has more than %d bytes", errContent, limit)
	}
	return size, err
}

// checkHistory verifies what a server has written into the history of the timeline that the file is named after
// (writeTimeLineHistory in timeline.c): at least its parent, and older ones only.
func checkHistory(r io.Reader, name string) error {
	h, err := wal.ParseHistory(r)
	if err != nil {
		return fmt.Errorf("%w: %w", errContent, err)
	}
	timeline, _ := wal.NameTimeline(name)
	switch {
	case len(h) == 0:
		return fmt.Errorf("%w: it names no timeline that %d came from", errContent, timeline)
	case h[len(h)-1].Timeline >= timeline:
		return fmt.Errorf("%w: timeline %d cannot come from timeline %d", errContent, timeline, h[len(h)-1].Timeline)
	}
	return nil
}

func copySegment(ctx context.Context, d Deps, t *temporary, in *bufio.Reader, o FetchOptions) (int64, error) {
	h, size, err := storeSegment(t, in, o)
	if err != nil {
		return 0, err
	}
	if h.Major == 0 {
		d.Log.Warn("WAL of an unknown PostgreSQL version", "action", "wal-fetch", "seg", o.Name, "magic", fmt.Sprintf("%#04x", h.Magic))
	}
	if wal.Classify(o.Name) == wal.KindPartial || h.Major == 0 {
		return size, nil // a partial one ends anywhere; the records of a version to come may look otherwise
	}
	return size, checkRecords(ctx, d, h, io.NewSectionReader(t, 0, size), o.Name)
}

// storeSegment writes a segment and checks its header, its cluster and its size.
func storeSegment(t *temporary, in *bufio.Reader, o FetchOptions) (h wal.Header, size int64, err error) {
	head, err := in.Peek(wal.HeaderSize)
	if err != nil && err != io.EOF {
		return h, 0, err
	}
	if h, err = parseHeader(head, o.Dest); err != nil {
		return h, 0, err
	}
	if size, err = copyAtMost(t, in, h.SegmentSize); err != nil {
		return h, 0, err
	}
	if err := h.CheckFile(o.Name, size); err != nil {
		return h, 0, fmt.Errorf("%w: %w", errContent, err)
	}
	return h, size, nil
}

// parseHeader reads a segment's header and verifies that the server whose data directory is near dest can read the segment. Of an unknown version
// it is the header whose Major is 0.
func parseHeader(head []byte, dest string) (wal.Header, error) {
	h, err := wal.ParseHeader(head)
	if err != nil && !errors.Is(err, wal.ErrUnknownMagic) {
		return h, fmt.Errorf("%w: %w", errContent, err)
	}
	return h, checkCluster(h, dest)
}

// checkCluster verifies that the server whose data directory is near dest can read the segment.
func checkCluster(h wal.Header, dest string) error {
	const advice = "check the storage prefix in the settings"
	if control, ok := controlNear(dest); ok {
		switch {
		case control.SystemIdentifier != h.SystemIdentifier:
			return hint.With(fmt.Errorf("%w: the segment has system identifier %d, the data directory %d",
				errWrongCluster, h.SystemIdentifier, control.SystemIdentifier), advice)
		case control.WALSegmentSize != h.SegmentSize:
			return hint.With(fmt.Errorf("%w: the segment has %d bytes, those of the data directory have %d",
				errWrongCluster, h.SegmentSize, control.WALSegmentSize), advice)
		}
	}
	for _, dir := range dataDirs(dest) {
		if major, err := pgdata.ReadMajor(dir); err == nil {
			if err := h.CheckMajor(major); err != nil {
				return fmt.Errorf("%w: %w", errContent, err)
			}
			break
		}
	}
	return nil
}

// checkRecords verifies the log inside of a segment. One in which it just ends is the last one, taken from a server that had not
// filled it, or has lost its end: the archive tells.
func checkRecords(ctx context.Context, d Deps, h wal.Header, r io.Reader, name string) error {
	err := h.CheckRecords(bufio.NewReaderSize(r, copySize))
	if !errors.Is(err, wal.ErrEnds) {
		if err != nil {
			return fmt.Errorf("%w: %w", errContent, err)
		}
		return nil
	}
	timeline, _ := wal.NameTimeline(name)
	for other, listErr := range d.Catalog.WAL().Names(ctx) {
		if listErr != nil {
			return listErr
		}
		if t, _ := wal.NameTimeline(other); t == timeline && wal.Classify(other) == wal.KindSegment && other > name {
			return fmt.Errorf("%w: %w, and the archive holds %s", errContent, err, other)
		}
	}
	d.Log.Warn("the newest segment of its timeline is not full; recovery will end in it", "action", "wal-fetch", "seg", name, "error", err)
	return nil
}

// localWriter marks the errors of writing the destination.
type localWriter struct{ f *os.File }

func (w localWriter) Write(b []byte) (int, error) {
	n, err := w.f.Write(b)
	if err != nil {
		err = fmt.Errorf("%w: %w", errLocal, err)
	}
	return n, err
}

// temporary is a file that becomes the destination when it is complete. Where the file system can, it has no name until
// then, so that not even a crash leaves anything behind.
type temporary struct {
	*os.File
	named bool
}

const fileMode = 0o600

func createTemporary(dir string) (*temporary, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, fileMode)
	if err == nil {
		return &temporary{os.NewFile(uintptr(fd), filepath.Join(dir, "unnamed temporary file")), false}, nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EINVAL) {
		return nil, &fs.PathError{Op: "create a file in", Path: dir, Err: err}
	}
	f, err := os.CreateTemp(dir, ".walden-*.tmp")
	if err != nil {
		return nil, err
	}
	return &temporary{f, true}, nil
}

// publish syncs the file and gives it its final name, which must be free; a file that is there already with the same
// content is as good.
func (t *temporary) publish(dest string, asking server) error {
	if err := t.Sync(); err != nil {
		return err
	}
	return place(t.File, t.link, dest, asking)
}

// place gives a file that is complete and synced its final name, as publish does. The function give fails with [fs.ErrExist] where the name is taken.
func place(f *os.File, give func(dest string) error, dest string, asking server) error {
	if err := asking.check(); err != nil {
		return err
	}
	err := give(dest)
	if errors.Is(err, fs.ErrExist) {
		err = compare(f, dest)
	}
	if errors.Is(err, errOtherContent) && asking.mayReplace(dest) {
		if err := errors.Join(asking.check(), os.Remove(dest)); err != nil {
			return err
		}
		err = give(dest)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(dest))
}

func syncDir(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// link gives the file a name, which must be free.
func (t *temporary) link(name string) error {
	source := fmt.Sprintf("/proc/self/fd/%d", t.Fd())
	if t.named {
		source = t.Name()
	}
	if err := unix.Linkat(unix.AT_FDCWD, source, unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.LinkError{Op: "link", Old: source, New: name, Err: err}
	}
	return nil
}

// errOtherContent says that there is a file of the destination's name, and not the one that was asked for.
var errOtherContent = errors.New("exists already with other content")

// compare fails unless there is a file of the destination's name with the content of ours.
func compare(ours *os.File, dest string) error {
	f, err := openNow(dest)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return hint.With(fmt.Errorf("%s exists already and is not a regular file", dest), "walden never overwrites; remove it, or give another destination")
	}
	equal, err := sameContent(io.NewSectionReader(ours, 0, 1<<62), f)
	if err != nil {
		return err
	}
	if !equal {
		return hint.With(fmt.Errorf("%s %w", dest, errOtherContent), "walden never overwrites; remove the file if it is not needed")
	}
	return f.Sync() // whoever wrote it may not have come to that
}

// sameContent compares two streams to their ends.
func sameContent(a, b io.Reader) (bool, error) {
	x, y := make([]byte, copySize), make([]byte, copySize)
	for {
		n, errA := fill(a, x)
		m, errB := fill(b, y)
		for _, err := range []error{errA, errB} {
			if err != nil && err != io.EOF {
				return false, err
			}
		}
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		if errA != nil {
			return true, nil
		}
	}
}

// fill reads until the buffer is full or the content ends; unlike io.ReadFull it keeps an end (io.EOF) and a failure apart.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

func (t *temporary) discard() {
	if t.named {
		os.Remove(t.Name())
	}
	t.Close()
}
