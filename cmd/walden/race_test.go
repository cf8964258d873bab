package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// racer is one of two processes of the plain program that are started together.
type racer struct {
	result
	dir string // its working directory, as PostgreSQL's archiver has its data directory
}

// race starts the same command in two directories at once and waits for both.
func (s *site) race(t *testing.T, dirs [2]string, args ...string) [2]racer {
	t.Helper()
	var cmds [2]*exec.Cmd
	var outs, errs [2]bytes.Buffer
	for i, dir := range dirs {
		cmds[i] = s.command(t.Context(), nil, args...)
		cmds[i].Path, cmds[i].Args[0], cmds[i].Dir = s.plain, s.plain, dir
		cmds[i].Stdout, cmds[i].Stderr = &outs[i], &errs[i]
	}
	for _, cmd := range cmds {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	var racers [2]racer
	for i, cmd := range cmds {
		err := cmd.Wait()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		racers[i] = racer{result{outs[i].String(), errs[i].String(), cmd.ProcessState.ExitCode()}, dirs[i]}
	}
	return racers
}

// segmentLike turns a genuine segment of 1 MiB into the one of that number, with other content as asked for. Archiving looks
// at the header only, as a server's CRCs are for recovery (XLogLongPageHeaderData in xlog_internal.h: xlp_pageaddr is at 8).
func segmentLike(genuine []byte, number uint64, content byte) (name string, b []byte) {
	b = bytes.Clone(genuine)
	binary.LittleEndian.PutUint64(b[8:], number<<20)
	for i := len(b) / 2; i < len(b)/2+1000; i++ {
		b[i] ^= content
	}
	return fmt.Sprintf("00000001%08X%08X", number>>12, number&0xfff), b
}

func TestOfTwoHostsThatPushOneSegmentOneWins(t *testing.T) {
	t.Parallel()
	p := bareSite(t).smallSegments("archive_mode=off", "wal_keep_size=16")
	genuine, err := os.ReadFile(filepath.Join(p.DataDir, "pg_wal", p.SwitchWAL(t)))
	if err != nil {
		t.Fatal(err)
	}
	p.Stop("fast")
	pairs := testenv.Pick(10, 100)
	for storage, open := range map[string]func(*testing.T, ...string) *site{"files": newSite, "S3": newS3Site, "GCS": newGCSSite} {
		t.Run(storage, func(t *testing.T) {
			s := open(t)
			var dirs [2]string
			for i := range dirs {
				dirs[i] = testenv.Scratch(t)
				if err := os.Mkdir(filepath.Join(dirs[i], "pg_wal"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			// archived is what the archive holds under a name. Recovery would not get it: the made-up contents are no log.
			archived := func(name string) []byte {
				return external(t, s.stored(t, "wal_005/"+name+".lz4"), "lz4", "-dc")
			}
			write := func(dir, name string, b []byte) {
				if err := os.WriteFile(filepath.Join(dir, "pg_wal", name), b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			pair := func(name string, contents [2][]byte) {
				for i, dir := range dirs {
					write(dir, name, contents[i])
				}
				racers := s.race(t, dirs, "wal-push", "pg_wal/"+name)
				if bytes.Equal(contents[0], contents[1]) {
					for _, r := range racers {
						r.expect(t, 0)
					}
				} else {
					if (racers[0].code == 0) == (racers[1].code == 0) {
						t.Fatalf("%s: exit codes %d and %d\n%s\n%s", name, racers[0].code, racers[1].code, racers[0].stderr, racers[1].stderr)
					}
					if racers[0].code != 0 {
						contents[0], contents[1] = contents[1], contents[0]
						racers[0], racers[1] = racers[1], racers[0]
					}
					racers[1].expect(t, 1, "archived already with different content", name)
				}
				if !bytes.Equal(archived(name), contents[0]) {
					t.Fatalf("%s: the archive does not hold what the winner pushed", name)
				}
			}
			for i := range pairs {
				name, one := segmentLike(genuine, uint64(100+i), 1)
				_, two := segmentLike(genuine, uint64(100+i), 2)
				pair(name, [2][]byte{one, two})
				name, one = segmentLike(genuine, uint64(1000+i), 1)
				pair(name, [2][]byte{one, bytes.Clone(one)})
				name = fmt.Sprintf("%08X.history", i+2)
				pair(name, [2][]byte{[]byte("1\t0/5000000\tno recovery target specified\n"), []byte("1\t0/6000000\tno recovery target specified\n")})
			}
			testenv.Figure(t, "racing pairs", storage+", different content", pairs)
			testenv.Figure(t, "racing pairs", storage+", equal content", pairs)
			testenv.Figure(t, "racing pairs", storage+", histories", pairs)
		})
	}
}

// A push that begins while another cluster is accepted is either of the old one, and archived, or refused; and the archive
// has one identity afterwards, under which the other's segments are refused.
func TestAPushThatRacesWithAcceptIsArchivedOrRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first := bareSite(t).smallSegments("archive_mode=off", "wal_keep_size=16")
	second := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1})
	servers := [2]*testenv.Postgres{first, second}
	var genuine [2][]byte
	for i, p := range servers {
		var err error
		if genuine[i], err = os.ReadFile(filepath.Join(p.DataDir, "pg_wal", p.SwitchWAL(t))); err != nil {
			t.Fatal(err)
		}
	}
	dir := testenv.Scratch(t)
	pairs := testenv.Pick(6, 60)
	archived := 0
	for i := range pairs {
		pusher, other := i%2, servers[1-i%2]
		s.must(nil, "archive", "accept", servers[pusher].DataDir)
		name, b := segmentLike(genuine[pusher], uint64(100+i), 1)
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		push, accept := s.start(nil, "wal-push", path), s.start(nil, "archive", "accept", other.DataDir)
		accept.wait(t).expect(t, 0)
		r := push.wait(t)
		there := fmt.Sprint(files(t, s.archive))
		if r.code == 0 {
			archived++
		} else {
			r.expect(t, 1, "belongs to another cluster")
		}
		if strings.Contains(there, name) != (r.code == 0) {
			t.Errorf("exit code %d, and the archive holds %s: %v", r.code, name, strings.Contains(there, name))
		}
		s.fails(nil, 1, []string{"belongs to another cluster"}, "wal-push", path)
	}
	t.Logf("%d of %d were archived", archived, pairs)
	testenv.Figure(t, "racing pairs", "archive accept against wal-push", pairs)
}

// Two backups of one server at once: each is listed under a name of its own, or refused; never both under one name.
func TestTwoBackupsAtOnceNeverShareAName(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	p := s.smallSegments()
	p.Exec(t, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS a")
	pairs := testenv.Pick(3, 100)
	taken := 0
	before := len(s.listings())
	for range pairs {
		p.SwitchWAL(t) // else the second pair would find the name of the first taken
		p.Exec(t, "INSERT INTO t VALUES (1)")
		one, two := s.start(p, "backup-push", p.DataDir), s.start(p, "backup-push", p.DataDir)
		succeeded := 0
		for _, r := range []*process{one, two} {
			if got := r.wait(t); got.code == 0 {
				succeeded++
			} else {
				got.expect(t, 1, "hint: ")
			}
		}
		s.leavesNothing(t, p, before+succeeded)
		if succeeded == 0 {
			t.Error("neither backup was taken")
		}
		taken += succeeded
		before += succeeded
	}
	names := map[string]bool{}
	for _, l := range s.listings() {
		if names[l.Name] {
			t.Errorf("%s is listed twice", l.Name)
		}
		names[l.Name] = true
	}
	t.Logf("%d backups of %d pairs", taken, pairs)
	s.fetch("LATEST")
	testenv.Figure(t, "racing pairs", "backup-push", pairs)
}
