package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// spoolOf is where segments are fetched ahead for a data directory; "" if nothing ever was. base is where it lies.
func spoolOf(t *testing.T, base string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(base, ".walden-spool", "*"))
	if err != nil || len(found) > 1 {
		t.Fatalf("spools in %s: %v, %v", base, found, err)
	}
	if found == nil {
		return ""
	}
	return found[0]
}

// prefetcher is the process that fetches into a spool, 0 for none: it holds a lock, of which the kernel tells (proc_locks(5)).
func prefetcher(t *testing.T, spool string) (pid int) {
	t.Helper()
	info, err := os.Stat(filepath.Join(spool, "fetch.lock"))
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("no inode")
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	held := regexp.MustCompile(fmt.Sprintf(`(?m)^\d+: FLOCK +ADVISORY +WRITE +(\d+) [0-9a-f]+:[0-9a-f]+:%d `, st.Ino))
	m := held.FindSubmatch(locks)
	if m == nil {
		return 0
	}
	pid, err = strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// nobodyFetches waits until the process that fetches ahead has ended, and checks that it has left nothing to be handed over.
func nobodyFetches(t *testing.T, spool string) {
	t.Helper()
	deadline := time.After(recoveryLimit)
	for prefetcher(t, spool) != 0 {
		select {
		case <-deadline:
			t.Fatalf("the process %d that fetches ahead has not ended within %s", prefetcher(t, spool), recoveryLimit)
		case <-time.After(20 * time.Millisecond):
		}
	}
	if left, err := filepath.Glob(filepath.Join(spool, "wal", "*", "*")); err != nil || len(left) > 0 {
		t.Errorf("left in the spool: %v, %v", left, err)
	}
}

// restoredInOrder are the segments that a server has got, in this order, and how many of them had been fetched ahead.
func restoredInOrder(log string) (segments []string, ahead int) {
	for _, m := range regexp.MustCompile(`restored log file "([0-9A-F]{24})"`).FindAllStringSubmatch(log, -1) {
		segments = append(segments, m[1])
	}
	return segments, strings.Count(log, "prefetched=true")
}

// otherDevice is a directory on another file system than path, where there is one.
func otherDevice(t *testing.T, path string) (dir string, isOther bool) {
	t.Helper()
	device := func(path string) uint64 {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Dev
	}
	for _, parent := range []string{"/dev/shm", "/tmp", "/var/tmp"} {
		if device(parent) == device(path) {
			continue
		}
		dir, err := os.MkdirTemp(parent, "walden-test")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		own(t, dir)
		return dir, true
	}
	return testenv.Scratch(t), false
}

// Segments that are fetched ahead are the same in the same order.
func TestPrefetchChangesNothingButTheTime(t *testing.T) {
	t.Parallel()
	kinds := []clusterKind{{15, 1}, {15, 64}}
	if testenv.Full() {
		kinds = append(recoveryKinds(), clusterKind{15, 64})
	}
	for _, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			n := 12
			if kind.megabytes > 16 {
				n = 6
			}
			r := newRecoverable(t, kind, n)
			alone := r.fork(t, "WALG_DOWNLOAD_CONCURRENCY=1")
			var want []string
			for _, c := range []struct {
				name    string
				s       *site
				prepare func(t *testing.T, dir string) (base string)
			}{
				{"without", alone, func(_ *testing.T, dir string) string { return filepath.Dir(dir) }},
				{"beside the data directory", r.site, func(_ *testing.T, dir string) string { return filepath.Dir(dir) }},
				{"beside pg_wal on another disk", r.site, func(t *testing.T, dir string) string {
					base, _ := otherDevice(t, dir)
					external(t, nil, "mv", filepath.Join(dir, "pg_wal"), filepath.Join(base, "pg_wal"))
					if err := os.Symlink(filepath.Join(base, "pg_wal"), filepath.Join(dir, "pg_wal")); err != nil {
						t.Fatal(err)
					}
					return base
				}},
				{"on another disk than pg_wal", r.fork(t), func(t *testing.T, dir string) string {
					base, isOther := otherDevice(t, dir)
					t.Logf("another disk: %v", isOther)
					return base
				}},
			} {
				if kind.megabytes > 1 && !testenv.Full() && strings.Contains(c.name, "disk") {
					continue
				}
				t.Run(c.name, func(t *testing.T) {
					dir := restoredCopy(t, r.restored, "recovery.signal")
					base := c.prepare(t, dir)
					if c.name == "on another disk than pg_wal" {
						c.s.configure("WALG_FILE_PREFIX="+c.s.archive, "WALG_PREFETCH_DIR="+base)
					}
					p := testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Settings: c.s.restoreSettings()})
					if got := p.Query(t, digest); got != r.want {
						t.Errorf("recovered %s, not %s", got, r.want)
					}
					order, ahead := restoredInOrder(newLog(t, p, 0))
					if want == nil {
						want = order
					}
					if !slices.Equal(order, want) {
						t.Errorf("restored %v, not %v", order, want)
					}
					spool := spoolOf(t, base)
					switch {
					case c.s == alone && (ahead > 0 || spool != ""):
						t.Errorf("%d segments were fetched ahead into %s, which is switched off", ahead, spool)
					case c.s != alone && ahead == 0:
						t.Errorf("nothing was fetched ahead of %d segments:\n%s", len(order), p.LogTail())
					}
					if spool != "" {
						nobodyFetches(t, spool)
					}
					p.Stop("immediate")
					testenv.Figure(t, "segments restored", c.name, len(order))
					testenv.Figure(t, "segments that were fetched ahead", c.name, ahead)
				})
			}
		})
	}
}

// A gap and damage stop recovery where they are, however far ahead was fetched; and with them mended it goes on.
func TestPrefetchStopsRecoveryAtAFaultOfTheArchive(t *testing.T) {
	t.Parallel()
	r := newRecoverable(t, recoveryKinds(15)[0], 12)
	faulty := r.segments[7]
	for _, c := range []struct {
		name, says string
		begin      func(t *testing.T, s *site) (repair func())
	}{
		{"a segment is missing", "the archive has a gap", func(t *testing.T, s *site) func() {
			move(t, s.object(faulty+".lz4"), filepath.Join(s.dir, faulty))
			return func() { move(t, filepath.Join(s.dir, faulty), s.object(faulty+".lz4")) }
		}},
		{"a segment is damaged", "damaged", func(t *testing.T, s *site) func() { return damage(t, s.object(faulty+".lz4")) }},
		{"a segment ends early", "the log ends inside of the segment", func(t *testing.T, s *site) func() {
			b := slices.Clone(r.raw(t, faulty))
			clear(b[lastRecordByte(b)/2&^8191:])
			move(t, s.object(faulty+".lz4"), filepath.Join(s.dir, faulty))
			put(t, s.object(faulty), b)
			return func() {
				move(t, s.object(faulty), filepath.Join(s.dir, "ends early"))
				move(t, filepath.Join(s.dir, faulty), s.object(faulty+".lz4"))
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := r.fork(t)
			repair := c.begin(t, s)
			dir := restoredCopy(t, r.restored, "recovery.signal")
			p := testenv.AttachPostgres(t, dir, testenv.PostgresOptions{Settings: s.restoreSettings("hot_standby=off")})
			if err := p.TryStart(); err == nil {
				t.Fatalf("recovery has ended with %s of %s", p.Query(t, digest), r.want)
			}
			log := newLog(t, p, 0)
			if _, ahead := restoredInOrder(log); ahead == 0 || !strings.Contains(log, c.says) || !strings.Contains(log, "exit code 200") {
				t.Errorf("%d segments were fetched ahead; the server's log:\n%s", ahead, log)
			}
			r.stillRecovering(t, dir, c.name)
			spool := spoolOf(t, filepath.Dir(dir))
			nobodyFetches(t, spool)
			repair()
			p.Start()
			p.WaitFor(t, "SELECT pg_is_in_recovery()", "f", recoveryLimit)
			if got := p.Query(t, digest); got != r.want {
				t.Errorf("recovered %s, not %s", got, r.want)
			}
			nobodyFetches(t, spool)
			p.Stop("immediate")
			testenv.Figure(t, "faults that recovery met", "with what was fetched ahead", 1)
		})
	}
}

// The archive holds what the old timeline wrote behind the fork. What was fetched ahead of it is not what recovery gets.
func TestPrefetchFollowsTimelines(t *testing.T) {
	t.Parallel()
	for _, kind := range recoveryKinds(15) {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			s := newSite(t).quick()
			p := s.primary(kind)
			s.must(p, "backup-push", p.DataDir)
			write := func(p *testenv.Postgres, note string) {
				for i := range 5 {
					fill(t, p, fmt.Sprintf("%s %d ", note, i))
					p.SwitchWAL(t)
				}
			}
			write(p, "before")
			fork := setMark(t, p, "fork")
			write(p, "rival")
			s.archived(p)
			first := p.Query(t, digest)
			p.Stop("immediate")
			restored := s.fetch("LATEST")
			settings := s.archiving(append(slices.Clone(quiet), "recovery_target_name=fork", "recovery_target_action=promote", "recovery_target_timeline=1")...)
			settings["restore_command"] = s.restoreSettings()["restore_command"]
			dir := restoredCopy(t, restored, "recovery.signal")
			second := testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Settings: settings})
			if got := second.Query(t, digest); got != fork.rows {
				t.Errorf("recovered to the fork: %s, not %s", got, fork.rows)
			}
			nobodyFetches(t, spoolOf(t, filepath.Dir(dir))) // although there was more to be fetched
			write(second, "second")
			s.archived(second)
			endOfSecond := second.Query(t, digest)
			second.Stop("immediate")
			for timeline, want := range map[string]string{"latest": endOfSecond, "1": first} {
				// Where the machine is busy, a dozen small segments are replayed before the process that fetches ahead has begun.
				var order []string
				for ahead, tries := 0, 0; ahead == 0; tries++ {
					if tries == 5 {
						t.Fatalf("timeline %s: nothing was fetched ahead of %v", timeline, order)
					}
					dir := restoredCopy(t, restored, "recovery.signal")
					p := testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Settings: s.restoreSettings("recovery_target_timeline=" + timeline)})
					if got := p.Query(t, digest); got != want {
						t.Errorf("timeline %s: recovered %s, not %s", timeline, got, want)
					}
					order, ahead = restoredInOrder(newLog(t, p, 0))
					nobodyFetches(t, spoolOf(t, filepath.Dir(dir)))
					p.Stop("immediate")
				}
				testenv.Figure(t, "recoveries along timelines", fmt.Sprint("with what was fetched ahead, PostgreSQL ", kind.major), 1)
			}
		})
	}
}

// A standby at the end of the archive asks again and again. Nothing else looks for what is not there yet, and nothing is kept from it that has come.
func TestPrefetchIsDoneWhereAStandbyWaits(t *testing.T) {
	t.Parallel()
	r := newRecoverable(t, recoveryKinds(15)[0], 10)
	s := r.fork(t)
	held := filepath.Join(s.dir, "held")
	if err := os.Mkdir(held, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range r.segments[4:] {
		move(t, s.object(name+".lz4"), filepath.Join(held, name+".lz4"))
	}
	dir := restoredCopy(t, r.restored, "standby.signal")
	p := testenv.AttachPostgres(t, dir, testenv.PostgresOptions{Settings: s.restoreSettings("wal_retrieve_retry_interval=50ms")})
	p.Start()
	for next := 4; ; next++ {
		p.WaitFor(t, "SELECT count(*) FROM journal", r.counts[next-1], recoveryLimit)
		nobodyFetches(t, spoolOf(t, filepath.Dir(dir)))
		if next == len(r.segments) {
			break
		}
		move(t, filepath.Join(held, r.segments[next]+".lz4"), s.object(r.segments[next]+".lz4"))
	}
	p.Promote(t)
	if got := p.Query(t, digest); got != r.want {
		t.Errorf("promoted with %s, not %s", got, r.want)
	}
	p.Stop("immediate")
}

// Whatever is killed and when: the server gets each segment as it was archived.
func TestPrefetchThatIsKilledHarmsNothing(t *testing.T) {
	t.Parallel()
	random := testenv.Rand(t)
	for _, kind := range recoveryKinds(15) {
		rounds := testenv.Pick(2, 10)
		pauses := make([]time.Duration, 1000)
		for i := range pauses {
			pauses[i] = time.Duration(random.IntN(60)) * time.Millisecond
		}
		moments := make([]int, rounds)
		for i := range moments {
			moments[i] = 3 + random.IntN(9)
		}
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			r := newRecoverable(t, kind, 16)
			for round := range rounds {
				dir := restoredCopy(t, r.restored, "recovery.signal")
				p := testenv.AttachPostgres(t, dir, testenv.PostgresOptions{Settings: r.restoreSettings("hot_standby=off")})
				processes, servers := 0, 0
				ended := make(chan error, 1)
				go func() { ended <- p.TryStart() }()
				deadline := time.After(recoveryLimit)
				for done := false; !done; {
					select {
					case err := <-ended:
						if err != nil && servers == 0 {
							t.Fatal(err)
						}
						done = true
					case <-deadline:
						t.Fatalf("the server is not up within %s:\n%s", recoveryLimit, p.LogTail())
					case <-time.After(pauses[(round*100+processes)%len(pauses)]):
					}
					if spool := spoolOf(t, filepath.Dir(dir)); spool != "" && !done {
						if pid := prefetcher(t, spool); pid != 0 && syscall.Kill(pid, syscall.SIGKILL) == nil {
							processes++
						}
					}
					restored, _ := restoredInOrder(newLog(t, p, 0))
					if _, err := os.Stat(filepath.Join(dir, "recovery.signal")); err == nil && len(restored) >= moments[round] && servers == 0 && !done && p.Running() {
						p.KillHard()
						<-ended
						servers++
						go func() { ended <- p.TryStart() }()
					}
				}
				p.WaitFor(t, "SELECT pg_is_in_recovery()", "f", recoveryLimit)
				if got := p.Query(t, digest); got != r.want {
					t.Errorf("after %d kills of fetching ahead and %d of the server: recovered %s, not %s", processes, servers, got, r.want)
				}
				p.Stop("immediate")
				testenv.Figure(t, "killed while segments were fetched ahead", "the process that does it", processes)
				testenv.Figure(t, "killed while segments were fetched ahead", "the server", servers)
			}
		})
	}
}

// How much time it saves on a storage that answers after 20 ms is for people to read.
func TestPrefetchHidesTheLatencyOfTheStorage(t *testing.T) {
	t.Parallel()
	s := newS3Site(t).quick()
	p := s.primary(clusterKind{15, 1})
	s.must(p, "backup-push", p.DataDir)
	for i := range testenv.Pick(20, 60) {
		fill(t, p, fmt.Sprintf("segment %d ", i))
		p.SwitchWAL(t)
	}
	s.archived(p)
	want := p.Query(t, digest)
	p.Stop("immediate")
	restored := s.fetch("LATEST")

	proxy := testenv.StartToxiproxy(t).Proxy(t, strings.TrimPrefix(s.s3.Endpoint, "http://"))
	proxy.Add(testenv.Toxic{Type: "latency", Attributes: map[string]int{"latency": 20}})
	settings, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	took := map[string]time.Duration{}
	for _, downloads := range []string{"1", "10"} {
		config := filepath.Join(s.dir, downloads+".yaml")
		text := strings.ReplaceAll(string(settings), s.s3.Endpoint, "http://"+proxy.Address) + "WALG_DOWNLOAD_CONCURRENCY: " + downloads + "\n"
		if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		server := testenv.AttachPostgres(t, restoredCopy(t, restored, "recovery.signal"), testenv.PostgresOptions{Settings: map[string]string{
			"restore_command": fmt.Sprintf(`%s --config %s wal-fetch "%%f" "%%p"`, s.plain, config), "archive_mode": "off",
		}})
		began := time.Now()
		server.Start()
		server.WaitFor(t, "SELECT pg_is_in_recovery()", "f", recoveryLimit)
		took[downloads] = time.Since(began)
		if got := server.Query(t, digest); got != want {
			t.Errorf("recovered %s, not %s", got, want)
		}
		order, ahead := restoredInOrder(newLog(t, server, 0))
		if (ahead > 0) != (downloads == "10") {
			t.Errorf("%d of %d segments were fetched ahead with %s downloads at the same time", ahead, len(order), downloads)
		}
		server.Stop("immediate")
	}
	t.Logf("recovery through 20 ms of latency: %s with fetching ahead, %s without (%.2f)", took["10"].Round(time.Millisecond),
		took["1"].Round(time.Millisecond), took["10"].Seconds()/took["1"].Seconds())
}
