package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// waiting makes a data directory in which segments 1 to n wait to be archived, all of them since long ago.
func waiting(t testing.TB, n int) (dir string, paths []string) {
	t.Helper()
	root := t.TempDir()
	dir = filepath.Join(root, "data")
	for _, sub := range []string{"", "pg_wal", "global", "pg_wal/archive_status"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "global/pg_control"), control(cluster))
	for i := 1; i <= n; i++ {
		name := wal.Segment{Timeline: 1, Number: uint64(i)}.Name(segmentSize)
		paths = append(paths, write(t, filepath.Join(dir, "pg_wal", name), segment(uint64(i), cluster, 1, uint64(i))))
		write(t, filepath.Join(dir, "pg_wal/archive_status", name+".ready"), nil)
	}
	wait(t, func() bool { return time.Since(changed(t, paths[n-1])) > 2*settled })
	return dir, paths
}

func changed(t testing.TB, path string) time.Time {
	t.Helper()
	f, err := openFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := markOf(f, "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return time.Unix(0, m.Changed)
}

// wait waits until something is true.
func wait(t testing.TB, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come true")
		}
	}
}

// slow is a store in which the file that PostgreSQL asks for takes until others are done.
type slow struct {
	storage.Store
	mu    sync.Mutex
	files int // archived
	hold  func(key string)
}

func (s *slow) PutNew(ctx context.Context, key string, r io.Reader) error {
	s.hold(key)
	err := s.Store.PutNew(ctx, key, r)
	if strings.HasPrefix(key, "wal_005/") {
		s.mu.Lock()
		s.files++
		s.mu.Unlock()
	}
	return err
}

func (s *slow) stored() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files
}

var ahead = PusherOptions{Timeout: time.Minute, Files: 3, AtOnce: 1, Archive: "here"}

// pushAhead archives a file while as many as are wanted wait behind it and are archived first.
func pushAhead(t *testing.T, s storage.Store, path string, o PusherOptions, others int) string {
	t.Helper()
	var log bytes.Buffer
	slowly := &slow{Store: s}
	slowly.hold = func(key string) {
		if strings.Contains(key, filepath.Base(path)) {
			wait(t, func() bool { return slowly.stored() >= others })
		}
	}
	p := NewPusher(t.Context(), deps(t, slowly, "lz4", &log), o)
	err := p.Push(t.Context(), path)
	p.Close()
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	return log.String()
}

func TestWhatWaitsIsArchivedAlongAndItsOwnCallIsQuick(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	_, paths := waiting(t, 6)
	pushAhead(t, s, paths[0], ahead, 3)
	if got := len(keys(t, s, "wal_005/")); got != 4 {
		t.Fatalf("%d files are archived instead of one and three more", got)
	}
	untouchable := storagetest.NewFault(s, storagetest.Rule{Kind: storagetest.Before})
	for _, path := range paths[1:4] {
		var log bytes.Buffer
		p := NewPusher(t.Context(), deps(t, untouchable, "lz4", &log), ahead)
		if err := p.Push(t.Context(), path); err != nil || !strings.Contains(log.String(), "archived ahead") {
			t.Errorf("%s: %v\n%s", path, err, log.String())
		}
		p.Close()
	}
	// The mark is gone, so that the archive is asked again, which holds the same.
	if log := pushAhead(t, s, paths[1], ahead, 0); !strings.Contains(log, "archived already with equal content") {
		t.Errorf("a second call has not looked:\n%s", log)
	}
}

// A segment that takes a while leaves no time for others.
func TestAQuickCallGoesOnForAWhile(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		goOn  time.Duration
		fails bool
		want  int
	}{
		"it has time": {time.Hour, false, 4},
		"it has none": {time.Nanosecond, false, 1},
		"it failed":   {time.Hour, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := storagetest.NewMemory()
			_, paths := waiting(t, 6)
			own := make(chan struct{})
			slowly := &slow{Store: s, hold: func(key string) {
				if strings.Contains(key, "wal_005/") && !strings.Contains(key, filepath.Base(paths[0])) {
					<-own // nothing is archived ahead while the call's own file is
				}
			}}
			var store storage.Store = slowly
			if test.fails {
				store = storagetest.NewFault(slowly, storagetest.Rule{Kind: storagetest.Before, Match: func(c storagetest.Call) bool {
					return strings.Contains(c.Key, filepath.Base(paths[0]))
				}})
			}
			o := ahead
			o.GoOn = test.goOn
			p := NewPusher(t.Context(), deps(t, store, "lz4", io.Discard), o)
			if err := p.Push(t.Context(), paths[0]); (err != nil) != test.fails {
				t.Error(err)
			}
			go func() {
				wait(t, func() bool {
					p.mu.Lock()
					defer p.mu.Unlock()
					return p.closed
				})
				close(own)
			}()
			p.Close()
			if got := len(keys(t, s, "wal_005/")); got != test.want && got != test.want+1 { // one was under way
				t.Errorf("%d files are archived instead of %d", got, test.want)
			}
		})
	}
}

// marked archives segment 2 ahead, and returns its path, its mark's and the archive.
func marked(t *testing.T) (s storage.Store, path, file string) {
	t.Helper()
	s = storagetest.NewMemory()
	_, paths := waiting(t, 2)
	pushAhead(t, s, paths[0], ahead, 1)
	m, err := openMarks(paths[1], "")
	if err != nil {
		t.Fatal(err)
	}
	if !m.has(filepath.Base(paths[1])) {
		t.Fatal("there is no mark")
	}
	return s, paths[1], m.path(filepath.Base(paths[1]))
}

func TestAMarkIsBelievedOnlyWhereNothingHasChanged(t *testing.T) {
	t.Parallel()
	alter := func(change func(m *mark)) func(t *testing.T, path, file string, o *PusherOptions) {
		return func(t *testing.T, _, file string, _ *PusherOptions) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			m, err := parseMark(b)
			if err != nil {
				t.Fatal(err)
			}
			change(&m)
			if b, err = json.Marshal(m); err != nil {
				t.Fatal(err)
			}
			write(t, file, b)
		}
	}
	content := func(b string) func(t *testing.T, path, file string, o *PusherOptions) {
		return func(t *testing.T, _, file string, _ *PusherOptions) { write(t, file, []byte(b)) }
	}
	for name, spoil := range map[string]func(t *testing.T, path, file string, o *PusherOptions){
		"another name":                   alter(func(m *mark) { m.File += ".partial" }),
		"another device":                 alter(func(m *mark) { m.Device++ }),
		"another inode":                  alter(func(m *mark) { m.Inode++ }),
		"another size":                   alter(func(m *mark) { m.Size++ }),
		"modified a nanosecond earlier":  alter(func(m *mark) { m.Modified-- }),
		"changed a nanosecond earlier":   alter(func(m *mark) { m.Changed-- }),
		"another cluster":                alter(func(m *mark) { m.SystemIdentifier++ }),
		"another archive":                alter(func(m *mark) { m.Archive = "there" }),
		"old":                            alter(func(m *mark) { m.At = m.At.Add(-markBelieved) }),
		"from the future":                alter(func(m *mark) { m.At = m.At.Add(time.Hour) }),
		"empty":                          content(""),
		"zeros":                          content(strings.Repeat("\x00", 300)),
		"cut off":                        content(`{"file":"000000010000000000000002","dev`),
		"of WAL-G, which marks by names": content("1"),
		"endless":                        content(strings.Repeat(" ", markSize)),
		"the archive is set to be another": func(_ *testing.T, _, _ string, o *PusherOptions) {
			o.Archive = "there"
		},
		"the file was written to": func(t *testing.T, path, _ string, _ *PusherOptions) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte{1}, segmentSize/2); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		},
		"a file of that name was made anew": func(t *testing.T, path, _ string, _ *PusherOptions) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, path+".new", b)
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		},
		"the file was recycled and its name given to another": func(t *testing.T, path, _ string, _ *PusherOptions) {
			if err := errors.Join(os.Rename(path, path+".recycled"), os.Rename(path+".recycled", path)); err != nil {
				t.Fatal(err)
			}
		},
		"a directory in the mark's place": func(t *testing.T, _, file string, _ *PusherOptions) {
			if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o700)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, path, file := marked(t)
			o := ahead
			spoil(t, path, file, &o)
			// The archive has lost the file meanwhile: only a push that believes the mark can do without it.
			if err := s.Delete(t.Context(), "wal_005/"+filepath.Base(path)+".lz4"); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			p := NewPusher(t.Context(), deps(t, s, "lz4", &log), o)
			err := p.Push(t.Context(), path)
			p.Close()
			if err != nil || !slices.Contains(keys(t, s, "wal_005/"), "wal_005/"+filepath.Base(path)+".lz4") {
				t.Errorf("it is not archived: %v\n%s", err, log.String())
			}
			if exists(file) {
				t.Error("the void mark is still there")
			}
		})
	}
}

func TestAMarkThatCountsIsRemovedWhenItWasUsed(t *testing.T) {
	t.Parallel()
	s, path, file := marked(t)
	log := pushAhead(t, s, path, ahead, 0)
	if !strings.Contains(log, "archived ahead") || exists(file) {
		t.Errorf("the mark is there: %v\n%s", exists(file), log)
	}
}

func TestNothingIsArchivedAheadOfAPlaceThatOthersCanWriteTo(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, spool string) error{
		"open to the group": func(t *testing.T, spool string) error {
			return errors.Join(os.Mkdir(spool, 0o700), os.Chmod(spool, 0o770))
		},
		"a link": func(t *testing.T, spool string) error { return os.Symlink(t.TempDir(), spool) },
		"a file": func(t *testing.T, spool string) error { return os.WriteFile(spool, nil, 0o600) },
	} {
		s := storagetest.NewMemory()
		dir, paths := waiting(t, 3)
		if err := spoil(t, filepath.Join(filepath.Dir(dir), spoolName)); err != nil {
			t.Fatal(err)
		}
		pushAhead(t, s, paths[0], ahead, 0)
		if got := keys(t, s, "wal_005/"); len(got) != 1 {
			t.Errorf("%s: archived are %v", name, got)
		}
	}
}

func TestTheSpoolLiesOutsideOfTheDataDirectory(t *testing.T) {
	t.Parallel()
	dir, paths := waiting(t, 1)
	elsewhere := t.TempDir()
	link := filepath.Join(elsewhere, "wal")
	if err := errors.Join(os.Rename(filepath.Join(dir, "pg_wal"), link), os.Symlink(link, filepath.Join(dir, "pg_wal"))); err != nil {
		t.Fatal(err)
	}
	for base, want := range map[string]string{"": elsewhere, filepath.Dir(dir): filepath.Dir(dir), dir: "", filepath.Join(dir, "global"): "", link: ""} {
		got, err := spoolDir(paths[0], base)
		if want == "" && err == nil || want != "" && (err != nil || filepath.Dir(filepath.Dir(got)) != want) {
			t.Errorf("base %q: %q, %v", base, got, err)
		}
	}
}

func TestHistoriesAndPartialSegmentsAreLeftToTheirOwnCall(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	dir, paths := waiting(t, 1)
	for _, name := range []string{"000000010000000000000002.partial", "00000002.history", "000000010000000000000002.00000028.backup"} {
		write(t, filepath.Join(dir, "pg_wal", name), segment(2, cluster, 1, 2))
		write(t, filepath.Join(dir, "pg_wal/archive_status", name+".ready"), nil)
	}
	later := wal.Segment{Timeline: 1, Number: 9}.Name(segmentSize) // behind a gap
	path := write(t, filepath.Join(dir, "pg_wal", later), segment(9, cluster, 1, 9))
	write(t, filepath.Join(dir, "pg_wal/archive_status", later+".ready"), nil)
	wait(t, func() bool { return time.Since(changed(t, path)) > 2*settled })
	pushAhead(t, s, paths[0], ahead, 1)
	if got, want := keys(t, s, "wal_005/"), []string{"wal_005/" + filepath.Base(paths[0]) + ".lz4", "wal_005/" + later + ".lz4"}; !slices.Equal(got, want) {
		t.Errorf("archived are %v", got)
	}
}

func TestAFailureAheadIsNoFailureOfTheCall(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	_, paths := waiting(t, 2)
	spoiled := segment(2, cluster+1, 1, 2) // of another cluster
	write(t, paths[1], spoiled)
	wait(t, func() bool { return time.Since(changed(t, paths[1])) > 2*settled })
	mustPush(t, deps(t, s, "lz4", io.Discard), "000000010000000000000009", segment(9, cluster, 1, 9)) // so that the archive is this cluster's
	release := make(chan struct{})
	var log syncBuffer
	slowly := &slow{Store: s, hold: func(string) { <-release }}
	p := NewPusher(t.Context(), deps(t, slowly, "lz4", &log), ahead)
	go func() {
		defer close(release)
		for end := time.Now().Add(time.Minute); !strings.Contains(log.String(), "not archived ahead") && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
	}()
	err := p.Push(t.Context(), paths[0])
	p.Close()
	if err != nil || !strings.Contains(log.String(), "was not archived ahead") {
		t.Fatalf("%v\n%s", err, log.String())
	}
	if m, err := openMarks(paths[1], ""); err != nil || m.has(filepath.Base(paths[1])) {
		t.Error("what was not archived has a mark")
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestAResidentPusherAnswersFromMemory(t *testing.T) {
	t.Parallel()
	memory := storagetest.NewMemory()
	s := &slow{Store: memory, hold: func(string) {}}
	dir, paths := waiting(t, 12)
	o := ahead
	o.Resident, o.AtOnce = true, 2
	var log syncBuffer
	p := NewPusher(t.Context(), deps(t, s, "lz4", &log), o)
	defer p.Close()
	for i, path := range paths {
		if err := p.Push(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		if got := s.stored(); got > i+1+o.Files {
			t.Errorf("%d files are archived when %d were asked for, and %d may be ahead", got, i+1, o.Files)
		}
		wait(t, func() bool { return s.stored() >= min(len(paths), i+1+o.Files) })
	}
	if n := strings.Count(log.String(), `msg="archived ahead"`); n != len(paths)-1 {
		t.Errorf("%d of %d answers were there already\n%s", n, len(paths)-1, log.String())
	}
	if got := len(keys(t, memory, "wal_005/")); got != len(paths) {
		t.Errorf("%d files are archived", got)
	}
	if exists(filepath.Join(filepath.Dir(dir), spoolName)) {
		t.Error("a process that stays has written marks")
	}
}

func TestAResidentPusherLooksAgainAtAFileThatWasMadeAnew(t *testing.T) {
	t.Parallel()
	s := &slow{Store: storagetest.NewMemory(), hold: func(string) {}}
	_, paths := waiting(t, 2)
	o := ahead
	o.Resident = true
	p := NewPusher(t.Context(), deps(t, s, "lz4", io.Discard), o)
	defer p.Close()
	if err := p.Push(t.Context(), paths[0]); err != nil {
		t.Fatal(err)
	}
	wait(t, func() bool { return s.stored() == 2 })
	write(t, paths[1], segment(2, cluster, 1, 77))
	if err := p.Push(t.Context(), paths[1]); !errors.Is(err, ErrDifferentContent) {
		t.Errorf("other content under a name that was archived ahead: %v", err)
	}
}

func FuzzMark(f *testing.F) {
	f.Add([]byte(`{"file":"000000010000000000000002","device":1,"inode":2,"size":3,"modified_ns":4,"changed_ns":5,"system_identifier":6,"archive":"a","at":"2026-11-22T07:19:39Z"}`))
	f.Add([]byte("1"))
	f.Add([]byte(""))
	now := mark{File: "000000010000000000000002", Device: 1, Inode: 2, Size: 3, Modified: 4, Changed: 5, SystemIdentifier: 6, Archive: "a",
		At: time.Date(2026, 11, 22, 7, 20, 0, 0, time.UTC)}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMark(b)
		if err == nil && m.proves(now) == nil && !m.sameFile(now) {
			t.Errorf("%q is believed", b)
		}
	})
}
