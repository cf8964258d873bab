package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// recovering makes a data directory in which a server is in recovery, in a directory of its own.
func recovering(t testing.TB) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	must(t, os.Rename(dataDir(t, cluster, "recovery.signal"), dir))
	runsIn(t, dir, 7)
	return dir
}

// asks fetches a segment as PostgreSQL does, and returns what came.
func asks(t testing.TB, f *Fetcher, dir, name string) ([]byte, error) {
	t.Helper()
	dest := filepath.Join(dir, "pg_wal", "RECOVERYXLOG")
	if err := os.Remove(dest); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := f.Fetch(t.Context(), FetchOptions{Name: name, Dest: dest, Timeout: time.Hour}); err != nil {
		if exists(dest) {
			t.Errorf("%s: %v, and there is a file", name, err)
		}
		return nil, err
	}
	b, err := os.ReadFile(dest)
	must(t, err)
	return b, nil
}

func nameOf(timeline wal.Timeline, number uint64) string {
	return wal.Segment{Timeline: timeline, Number: number}.Name(segmentSize)
}

const spoolSeed, archiveSeed = 1, 2 // of what was fetched ahead and of what is archived, where these are to differ

// Whatever lies in the spool: what PostgreSQL gets is the segment that it asked for, of its cluster and from its archive.
func TestWhatWasFetchedAheadIsHandedOverOnlyIfItIsWhatIsAskedFor(t *testing.T) {
	t.Parallel()
	archived := storagetest.NewMemory()
	good, theirs := segment(2, cluster, 1, spoolSeed), segment(2, cluster, 1, archiveSeed)
	mustPush(t, deps(t, archived, "lz4", io.Discard), segmentTwo, theirs)
	edit := func(change func(b []byte) []byte) func(t *testing.T, file string) {
		return func(t *testing.T, file string) { write(t, file, change(bytes.Clone(good))) }
	}
	for _, c := range []struct {
		name  string
		spool func(t *testing.T, file string)                              // changes it; nil leaves the good one
		call  func(t *testing.T, dir string, o *FetchOptions, p *Prefetch) // changes the call
		ahead bool                                                         // it comes from the spool
		want  error
		stays bool // what is in the spool is not looked at, and stays there
	}{
		{name: "it is right", ahead: true},
		{name: "a standby", ahead: true, call: func(t *testing.T, dir string, _ *FetchOptions, _ *Prefetch) {
			write(t, filepath.Join(dir, "standby.signal"), nil)
		}},
		{name: "a server that was killed has left the same", ahead: true, call: func(t *testing.T, _ string, o *FetchOptions, _ *Prefetch) { write(t, o.Dest, good) }},
		{name: "a server that was killed has left something else", ahead: true, call: func(t *testing.T, _ string, o *FetchOptions, _ *Prefetch) {
			write(t, o.Dest, []byte("other"))
		}},

		{name: "it is gone", spool: func(t *testing.T, file string) { must(t, os.Remove(file)) }},
		{name: "it is short", spool: edit(func(b []byte) []byte { return b[:len(b)-1] })},
		{name: "it is empty", spool: edit(func([]byte) []byte { return nil })},
		{name: "it is long", spool: edit(func(b []byte) []byte { return append(b, 0) })},
		{name: "it is all zero", spool: edit(func(b []byte) []byte { clear(b); return b })},
		{name: "its header is damaged", spool: edit(func(b []byte) []byte { b[1] ^= 0x40; return b })},
		{name: "it is another segment", spool: edit(func([]byte) []byte { return segment(3, cluster, 1, spoolSeed) })},
		{name: "it is of a later timeline", spool: edit(func([]byte) []byte { return segment(2, cluster, 2, spoolSeed) })},
		{name: "it is of another cluster", spool: edit(func([]byte) []byte { return segment(2, cluster+1, 1, spoolSeed) })},
		{name: "it is a link", spool: func(t *testing.T, file string) {
			must(t, os.Rename(file, file+".x"), os.Symlink(file+".x", file))
		}},
		{name: "it has another name", spool: func(t *testing.T, file string) { must(t, os.Link(file, file+".x")) }},
		{name: "it is a directory", spool: func(t *testing.T, file string) { must(t, os.Remove(file), os.Mkdir(file, 0o700)) }},
		{name: "it is a pipe", spool: func(t *testing.T, file string) { must(t, os.Remove(file), unix.Mkfifo(file, 0o600)) }},
		{name: "it is being fetched by nobody", spool: func(t *testing.T, file string) { must(t, os.Rename(file, file+partSuffix)) }},

		{name: "another archive", stays: true, call: func(_ *testing.T, _ string, _ *FetchOptions, p *Prefetch) { p.Archive = "another" }},
		{name: "another start of the server", stays: true, call: func(t *testing.T, dir string, _ *FetchOptions, _ *Prefetch) { runsIn(t, dir, 8) }},
		{name: "no server runs", stays: true, call: func(t *testing.T, dir string, _ *FetchOptions, _ *Prefetch) {
			must(t, os.Remove(filepath.Join(dir, lockFile)))
		}},
		{name: "the server is not in recovery", stays: true, call: func(t *testing.T, dir string, _ *FetchOptions, _ *Prefetch) {
			must(t, os.Remove(filepath.Join(dir, "recovery.signal")))
		}},
		{name: "pg_rewind asks, or a person", stays: true, call: func(_ *testing.T, dir string, o *FetchOptions, _ *Prefetch) {
			o.Dest = filepath.Join(dir, "pg_wal", segmentTwo)
		}},
		{name: "it is switched off", stays: true, call: func(_ *testing.T, _ string, _ *FetchOptions, p *Prefetch) { p.Limit = 0 }},
		{name: "the spool is another", stays: true, call: func(t *testing.T, dir string, _ *FetchOptions, p *Prefetch) { p.Dir = t.TempDir() }},
		{name: "the spool would be in the cluster", stays: true, call: func(_ *testing.T, dir string, _ *FetchOptions, p *Prefetch) { p.Dir = dir }},
		{name: "recovery is to end before", stays: true, want: ErrAbsent, call: func(_ *testing.T, _ string, o *FetchOptions, _ *Prefetch) { o.EndBefore = segmentTwo }},
		{name: "the destination's directory is gone", want: errLocal, stays: true, call: func(_ *testing.T, dir string, o *FetchOptions, _ *Prefetch) {
			o.Dest = filepath.Join(dir, "nowhere", "RECOVERYXLOG")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := recovering(t)
			o := FetchOptions{Name: segmentTwo, Dest: filepath.Join(dir, "pg_wal", "RECOVERYXLOG"), Timeout: time.Minute}
			p := Prefetch{Limit: 3, Archive: "one"}
			s, err := openSpool(o, p, ArchiveRecovery, serverNear(o.Dest))
			must(t, err)
			mkdirs(t, s.files)
			file := write(t, filepath.Join(s.files, o.Name), good)
			if c.spool != nil {
				c.spool(t, file)
			}
			if c.call != nil {
				c.call(t, dir, &o, &p)
			}
			var log bytes.Buffer
			d := deps(t, archived, "lz4", &log)
			opened, started := 0, 0
			f := NewFetcher(Deps{Log: d.Log}, FetcherOptions{
				Prefetch: p,
				Open:     func(context.Context) (*catalog.Catalog, error) { opened++; return d.Catalog, nil },
				Start:    func(string, string) error { started++; return nil },
			})
			err = f.Fetch(t.Context(), o)
			must(t, f.Close())
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("%v instead of %v", err, c.want)
			}
			want := theirs
			if c.ahead {
				want = good
			}
			if got, err := os.ReadFile(o.Dest); c.want == nil && (err != nil || !bytes.Equal(got, want)) {
				t.Errorf("%d bytes that are not those wanted, %v", len(got), err)
			}
			if c.ahead == (opened > 0) && c.want == nil || strings.Contains(log.String(), "prefetched=true") != c.ahead {
				t.Errorf("the archive was opened %d times; log:\n%s", opened, &log)
			}
			if now := exists(file); now != c.stays && c.name != "it is a directory" && c.name != "it is being fetched by nobody" {
				t.Errorf("it is in the spool afterwards: %v", now)
			}
			isCall := c.name != "the spool would be in the cluster" && (!c.stays || strings.HasPrefix(c.name, "another") || c.name == "the spool is another")
			if (started > 0) != (isCall && c.want == nil) {
				t.Errorf("fetching ahead was started %d times", started)
			}
			if strings.Contains(log.String(), "level=WARN") != (c.name == "the spool would be in the cluster" || c.want == ErrAbsent) {
				t.Errorf("log:\n%s", &log)
			}
		})
	}
}

// A command that outlives its server hands nothing over to the next one, from the spool no more than from the archive.
func TestWhatWasFetchedAheadIsNotForTheNextServer(t *testing.T) {
	t.Parallel()
	dir := recovering(t)
	dest := filepath.Join(dir, "pg_wal", "RECOVERYXLOG")
	o := FetchOptions{Name: segmentTwo, Dest: dest, Timeout: time.Minute}
	asking := serverNear(dest)
	s, err := openSpool(o, Prefetch{Limit: 3}, ArchiveRecovery, asking)
	must(t, err)
	mkdirs(t, s.files)
	write(t, filepath.Join(s.files, segmentTwo), segment(2, cluster, 1, 1))
	runsIn(t, dir, 8)
	done, err := s.serve(t.Context(), deps(t, storagetest.NewMemory(), "lz4", io.Discard).Log, o, asking)
	if done || !errors.Is(err, errServerGone) || exists(dest) {
		t.Errorf("%v, %v", done, err)
	}
}

// A postmaster that is process 1 would have to look after a process that nobody waits for.
func TestNoProcessIsStartedBelowAPostmasterThatIsProcessOne(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	mustPush(t, deps(t, s, "lz4", io.Discard), segmentTwo, segment(2, cluster, 1, 1))
	dir := recovering(t)
	runsIn(t, dir, 1)
	f := NewFetcher(deps(t, s, "lz4", io.Discard), FetcherOptions{Prefetch: Prefetch{Limit: 3},
		Start: func(string, string) error { t.Error("a process was started"); return nil }})
	if _, err := asks(t, f, dir, segmentTwo); err != nil {
		t.Error(err)
	}
	must(t, f.Close())
}

// line is an archive with the segments 2 to last of timeline 1.
func line(t testing.TB, last uint64) storage.Store {
	t.Helper()
	s := storagetest.NewMemory()
	d := deps(t, s, "lz4", io.Discard)
	for n := uint64(2); n <= last; n++ {
		mustPush(t, d, nameOf(1, n), segment(n, cluster, 1, archiveSeed))
	}
	return s
}

// whileAhead runs f in a bubble, with a fetcher that fetches ahead by itself.
func whileAhead(t *testing.T, d Deps, f func(t *testing.T, dir string, fetcher *Fetcher)) {
	t.Helper()
	dir := recovering(t)
	synctest.Test(t, func(t *testing.T) {
		fetcher := NewFetcher(d, FetcherOptions{Prefetch: Prefetch{Limit: 4, AtOnce: 4}})
		f(t, dir, fetcher)
		must(t, fetcher.Close())
		if left := spooled(t, dir); len(left) > 0 {
			t.Errorf("left in the spool: %v", left)
		}
	})
}

// spooled lists the segments in the spool of a data directory.
func spooled(t testing.TB, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(filepath.Dir(dir), spoolName, "*", segmentsName, "*", "*"))
	must(t, err)
	for _, f := range files {
		names = append(names, filepath.Base(f))
	}
	return names
}

// spoolHolds waits until the spool holds the segments given, numbers of a timeline; the bubble's time passes at once.
func spoolHolds(t testing.TB, dir string, timeline wal.Timeline, numbers ...uint64) {
	t.Helper()
	var want []string
	for _, n := range numbers {
		want = append(want, nameOf(timeline, n))
	}
	const tries = 500
	for range tries {
		if fmt.Sprint(spooled(t, dir)) == fmt.Sprint(want) {
			return
		}
		time.Sleep(lookEvery)
	}
	t.Fatalf("the spool holds %v, not %v", spooled(t, dir), want)
}

// counting counts how often an object is read.
func counting(s storage.Store) (store storage.Store, reads func(name string) int) {
	f := storagetest.NewFault(s)
	return f, func(name string) int {
		n := 0
		for _, c := range f.Calls() {
			if c.Op == storagetest.OpGet && strings.Contains(c.Key, name) {
				n++
			}
		}
		return n
	}
}

func TestSegmentsAreFetchedAheadToTheEndOfTheArchive(t *testing.T) {
	t.Parallel()
	const last = 12
	store, reads := counting(line(t, last))
	var log lockedBuffer
	whileAhead(t, deps(t, store, "lz4", &log), func(t *testing.T, dir string, f *Fetcher) {
		for n := uint64(2); n <= last; n++ {
			got, err := asks(t, f, dir, nameOf(1, n))
			if err != nil || !bytes.Equal(got, segment(n, cluster, 1, archiveSeed)) {
				t.Fatalf("segment %d: %d bytes, %v", n, len(got), err)
			}
			time.Sleep(time.Second) // what PostgreSQL takes to replay it
		}
		if _, err := asks(t, f, dir, nameOf(1, last+1)); !errors.Is(err, ErrAbsent) {
			t.Errorf("behind the end: %v", err)
		}
		spoolHolds(t, dir, 1)
	})
	for n := uint64(2); n <= last; n++ {
		if got := reads(nameOf(1, n)); got != 1 {
			t.Errorf("segment %d was read %d times", n, got)
		}
	}
	if got := strings.Count(log.String(), "prefetched=true"); got != last-2 {
		t.Errorf("%d segments came from the spool:\n%s", got, log.String())
	}
}

// lockedBuffer is a log that several goroutines write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements [io.Writer].
func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// The more often PostgreSQL asks and the longer a fetch takes, the more is fetched ahead.
func TestTheSpoolGrowsWithTheLatency(t *testing.T) {
	t.Parallel()
	const last = 30
	archived := line(t, last)
	for _, c := range []struct {
		latency, replay time.Duration
		ahead           int // segments in the spool at the end
	}{
		{0, time.Second, 2},
		{2500 * time.Millisecond, time.Second, 4},
	} {
		slow := &onGet{Store: archived, then: func() { time.Sleep(c.latency) }}
		whileAhead(t, deps(t, slow, "lz4", io.Discard), func(t *testing.T, dir string, f *Fetcher) {
			for n := uint64(2); n <= last-6; n++ {
				if _, err := asks(t, f, dir, nameOf(1, n)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(c.replay)
			}
			time.Sleep(10 * time.Second)
			if got := len(spooled(t, dir)); got != c.ahead {
				t.Errorf("with a latency of %s and a question every %s the spool holds %d segments, not %d", c.latency, c.replay, got, c.ahead)
			}
		})
	}
}

func TestWhatIsMissingOrDamagedIsLeftToTheCallThatNeedsIt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, s storage.Store) // segment 5
		want  error
	}{
		{"a gap", func(t *testing.T, s storage.Store) { must(t, s.Delete(t.Context(), "wal_005/"+nameOf(1, 5)+".lz4")) }, errGap},
		{"damage", func(t *testing.T, s storage.Store) {
			b := object(t, s, "wal_005/"+nameOf(1, 5)+".lz4")
			b[len(b)/2] ^= 0xff
			must(t, s.Put(t.Context(), "wal_005/"+nameOf(1, 5)+".lz4", bytes.NewReader(b)))
		}, catalog.ErrDamaged},
		{"the log ends inside", func(t *testing.T, s storage.Store) {
			b := segment(5, cluster, 1, archiveSeed)
			clear(b[segmentSize/2:])
			must(t, s.Put(t.Context(), "wal_005/"+nameOf(1, 5), bytes.NewReader(b)), s.Delete(t.Context(), "wal_005/"+nameOf(1, 5)+".lz4"))
		}, errContent},
		{"another cluster's", func(t *testing.T, s storage.Store) {
			must(t, s.Put(t.Context(), "wal_005/"+nameOf(1, 5), bytes.NewReader(segment(5, cluster+1, 1, 1))), s.Delete(t.Context(), "wal_005/"+nameOf(1, 5)+".lz4"))
		}, errWrongCluster},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := line(t, 9)
			c.spoil(t, s)
			store, reads := counting(s)
			var log lockedBuffer
			whileAhead(t, deps(t, store, "lz4", &log), func(t *testing.T, dir string, f *Fetcher) {
				for n := uint64(2); n <= 4; n++ {
					if _, err := asks(t, f, dir, nameOf(1, n)); err != nil {
						t.Fatalf("segment %d: %v", n, err)
					}
					time.Sleep(time.Second)
				}
				before := reads(nameOf(1, 5))
				time.Sleep(30 * time.Second)
				if now := reads(nameOf(1, 5)); now != before {
					t.Errorf("it was tried %d times without being asked for", now-before)
				}
				if _, err := asks(t, f, dir, nameOf(1, 5)); !errors.Is(err, c.want) || errors.Is(err, ErrAbsent) {
					t.Errorf("%v", err)
				}
			})
			if strings.Contains(log.String(), "level=ERROR") {
				t.Errorf("log:\n%s", log.String())
			}
		})
	}
}

func TestFetchingAheadEndsWithTheServersInterest(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		end  func(t *testing.T, dir string)
		says string
	}{
		{"the server is gone", func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, lockFile))) }, "the server has ended"},
		{"another server was started", func(t *testing.T, dir string) { runsIn(t, dir, 8) }, "the server has ended"},
		{"recovery has ended", func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "recovery.signal"))) }, "recovery has ended"},
		{"nobody asks", func(*testing.T, string) { time.Sleep(idleLimit) }, "the server does not ask"},
		{"the data directory is gone", func(t *testing.T, dir string) { must(t, os.RemoveAll(dir)) }, "the server has ended"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var log lockedBuffer
			whileAhead(t, deps(t, line(t, 9), "lz4", &log), func(t *testing.T, dir string, f *Fetcher) {
				if _, err := asks(t, f, dir, nameOf(1, 2)); err != nil {
					t.Fatal(err)
				}
				spoolHolds(t, dir, 1, 3, 4)
				c.end(t, dir)
				spoolHolds(t, dir, 1)
				time.Sleep(aliveEvery)
				if !strings.Contains(log.String(), c.says) {
					t.Errorf("log:\n%s", log.String())
				}
			})
		})
	}
}

func TestFetchingAheadFollowsTheServerToAnotherTimelineAndBack(t *testing.T) {
	t.Parallel()
	s := line(t, 12)
	d := deps(t, s, "lz4", io.Discard)
	for n := uint64(5); n <= 12; n++ {
		mustPush(t, d, nameOf(2, n), segment(n, cluster, 2, archiveSeed))
	}
	whileAhead(t, d, func(t *testing.T, dir string, f *Fetcher) {
		for _, c := range []struct {
			timeline wal.Timeline
			number   uint64
			ahead    []uint64
		}{
			{1, 3, []uint64{4, 5}}, {1, 4, []uint64{5, 6}}, {2, 5, []uint64{6, 7}}, {2, 6, []uint64{7, 8}}, {1, 5, []uint64{6, 7}}, {1, 2, []uint64{3, 4, 6}}, // 6 was there and is near

			{1, 11, []uint64{12}}, {1, 12, nil},
		} {
			got, err := asks(t, f, dir, nameOf(c.timeline, c.number))
			if err != nil || !bytes.Equal(got, segment(c.number, cluster, uint32(c.timeline), archiveSeed)) {
				t.Fatalf("timeline %d, segment %d: %d bytes, %v", c.timeline, c.number, len(got), err)
			}
			time.Sleep(time.Second)
			spoolHolds(t, dir, c.timeline, c.ahead...)
		}
	})
}

func TestOneProcessFetchesAheadAndTidiesUpAfterTheOneBefore(t *testing.T) {
	t.Parallel()
	dir := recovering(t)
	o := FetchOptions{Name: nameOf(1, 2), Dest: filepath.Join(dir, "pg_wal", "RECOVERYXLOG"), Timeout: time.Minute}
	ahead := Prefetch{Limit: 4, AtOnce: 2}
	s, err := openSpool(o, ahead, ArchiveRecovery, serverNear(o.Dest))
	must(t, err)
	mkdirs(t, s.files, filepath.Join(s.dir, segmentsName, "of another server"))
	write(t, filepath.Join(s.files, nameOf(1, 3)), segment(3, cluster, 1, archiveSeed))
	for _, name := range []string{nameOf(1, 1), nameOf(2, 3), nameOf(1, 9), nameOf(1, 4) + partSuffix, "x", "../of another server/" + nameOf(1, 3)} {
		write(t, filepath.Join(s.files, name), []byte("left"))
	}
	store, reads := counting(line(t, 9))
	d := deps(t, store, "lz4", io.Discard)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- RunPrefetch(ctx, d, o, ahead) }()
		spoolHolds(t, dir, 1, 3, 4)
		if err := RunPrefetch(ctx, d, o, ahead); !errors.Is(err, errBusy) {
			t.Errorf("a second one: %v", err)
		}
		// One that was started for a later question passes it on, and one for an earlier question changes nothing.
		for _, number := range []uint64{4, 3} {
			later := o
			later.Name = nameOf(1, number)
			if err := RunPrefetch(ctx, d, later, ahead); !errors.Is(err, errBusy) {
				t.Errorf("one for segment %d: %v", number, err)
			}
			spoolHolds(t, dir, 1, 5, 6)
		}
		if exists(filepath.Join(s.dir, segmentsName, "of another server")) || reads(nameOf(1, 3)) != 0 || reads(nameOf(1, 4)) != 1 {
			t.Errorf("segment 3 was read %d times, 4 %d times", reads(nameOf(1, 3)), reads(nameOf(1, 4)))
		}
		cancel()
		must(t, <-ended)
	})
	if left := spooled(t, dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A call does not wait for what makes no progress, nor for nobody.
func TestACallWaitsForASegmentThatIsBeingFetchedWhileItGrows(t *testing.T) {
	t.Parallel()
	dir := recovering(t)
	o := FetchOptions{Name: nameOf(1, 3), Dest: filepath.Join(dir, "pg_wal", "RECOVERYXLOG"), Timeout: time.Minute}
	s, err := openSpool(o, Prefetch{Limit: 2}, ArchiveRecovery, serverNear(o.Dest))
	must(t, err)
	mkdirs(t, s.files)
	name := filepath.Join(s.files, o.Name)
	write(t, name+partSuffix, nil)
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		s.await(t.Context(), name)
		if took := time.Since(began); took > 0 {
			t.Errorf("it waited %s for nobody", took)
		}
		q, err := s.listen()
		must(t, err)
		defer func() { must(t, q.close()) }()
		s.await(t.Context(), name)
		if took := time.Since(began); took < spoolPatience || took > spoolPatience+time.Second {
			t.Errorf("it waited %s for what does not grow", took)
		}
		began = time.Now()
		const steps = 20
		go func() {
			for n := range steps {
				time.Sleep(spoolPatience / 2)
				must(t, os.Truncate(name+partSuffix, int64(n+1)))
			}
			must(t, os.Rename(name+partSuffix, name))
		}()
		s.await(t.Context(), name)
		if took := time.Since(began); !exists(name) || took < steps*spoolPatience/2 {
			t.Errorf("it waited %s, and the segment is there: %v", took, exists(name))
		}
	})
}

// Whatever call of the storage fails, and how: each segment that PostgreSQL gets is the right one, in its order, and none is said to be absent.
func TestPrefetchUnderEveryFaultOfTheStorage(t *testing.T) {
	t.Parallel()
	const last = 8
	good := line(t, last)
	for _, kind := range storagetest.Kinds() {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			injected := 0
			for n := 1; ; n++ {
				store := storagetest.NewFault(good, storagetest.Rule{Kind: kind, Nth: n})
				whileAhead(t, deps(t, storage.WithStallLimit(store, time.Minute), "lz4", io.Discard), func(t *testing.T, dir string, f *Fetcher) {
					for number := uint64(2); number <= last; number++ {
						got, err := asks(t, f, dir, nameOf(1, number))
						if err != nil || !bytes.Equal(got, segment(number, cluster, 1, archiveSeed)) {
							t.Fatalf("%s, call %d: segment %d: %d bytes, %v", kind, n, number, len(got), err)
						}
						time.Sleep(time.Second)
					}
				})
				if !store.Fired() {
					break
				}
				injected++
			}
			testenv.Figure(t, "faults injected into fetching ahead", kind.String(), injected)
		})
	}
}
