package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/storage"
	filestore "gitlab.com/walden-pg/walden/internal/storage/fs"
	"gitlab.com/walden-pg/walden/internal/storage/s3"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// sweepJob is a command whose every storage call is made to fail, one at a time and in every way there is. A new command is one
// more line of sweepJobs.
type sweepJob struct {
	name    string
	empty   bool // it begins with an empty archive instead of one with two backups and their WAL
	server  bool // it works on the running server
	healthy int  // exit code without a fault
	failed  int  // exit code of a failure
	misled  int  // exit code that is allowed, too, where what was read was another thing than is stored
	prepare func(r *trial)
	args    func(r *trial) []string
	check   func(r *trial, o outcome) // what has to be true after it, whether it failed or not
	once    bool                      // after a success it is not to be repeated
	nth     int                       // which of several storages that it opens has the faults, counting from 1
}

func sweepJobs() []sweepJob {
	fetch := func(r *trial) []string { return []string{"backup-fetch", r.target(), "LATEST"} }
	walFetch := func(name func(*trial) string) func(*trial) []string {
		return func(r *trial) []string { return []string{"wal-fetch", name(r), r.walTarget()} }
	}
	archived := func(r *trial) string { return r.archived }
	push := func(r *trial) []string { return []string{"backup-push", r.postgres.DataDir} }
	return []sweepJob{
		{name: "backup-list", failed: exitError, args: words("backup-list", "--json"), check: listIsRight},
		{name: "backup-list of an empty archive", empty: true, failed: exitError, args: words("backup-list", "--json"), check: listIsRight},
		{name: "backup-list --detail", failed: exitError, args: words("backup-list", "--json", "--detail"), check: listIsRight},
		{name: "backup-verify", failed: exitError, args: words("backup-verify", "LATEST", "--json"), check: proofIsRight},
		{name: "backup-show", failed: exitError, args: words("backup-show", "LATEST", "--json"), check: itSaysTheSame},
		{name: "wal-show", failed: exitError, args: words("wal-show", "--detailed-json"), check: itSaysTheSame},
		{name: "wal-verify", failed: exitError, misled: exitVerifyFailed, check: itSaysTheSame, args: func(r *trial) []string {
			return []string{"wal-verify", "integrity", "timeline", "--json", "--timeline", "1", "--lsn", r.position()}
		}},
		{name: "archive window", failed: exitError, args: words("archive", "window", "--json"), check: itSaysTheSame},
		{name: "archive repair, a dry run", healthy: exitVerifyFailed, failed: exitError, misled: exitOK, prepare: (*trial).loseOne,
			args: func(r *trial) []string { return []string{"archive", "repair", r.saved(), "--json"} }, check: itSaysTheSame},
		{name: "archive repair", failed: exitError, misled: exitVerifyFailed, prepare: (*trial).loseOne,
			args: func(r *trial) []string { return []string{"archive", "repair", r.saved(), "--confirm"} }, check: theLostIsBackOrAbsent},
		{name: "backup-mark", failed: exitError, args: func(r *trial) []string { return []string{"backup-mark", r.backups[1]} }, check: onlyTheMarkIsOther},
		{name: "backup-mark --impermanent", failed: exitError, prepare: (*trial).markNewest,
			args: func(r *trial) []string { return []string{"backup-mark", r.backups[1], "--impermanent"} }, check: onlyTheMarkIsOther},
		{name: "delete, a dry run", failed: exitError, args: words("delete", "retain", "1"), check: nothingIsDeleted},
		{name: "delete", failed: exitError, args: words("delete", "retain", "1", "--confirm"), check: theOldIsDeleted},
		{name: "delete what is left", failed: exitError, args: words("delete", "retain", "1", "--confirm"), prepare: func(r *trial) {
			r.remove("basebackups_005/" + r.backups[0] + "_backup_stop_sentinel.json")
			r.put("basebackups_005/"+r.backups[0]+"/walden_removed.json", "{}")
		}, check: theOldIsDeleted},
		{name: "delete everything", failed: exitError, args: words("delete", "everything", "--confirm"), check: everythingIsDeleted},
		{name: "copy, at the source", nth: 1, failed: exitError, prepare: (*trial).forACopy, args: copyArgs, check: theCopyIsRight},
		{name: "copy, at the destination", nth: 2, failed: exitError, prepare: (*trial).forACopy, args: copyArgs, check: theCopyIsRight},
		{name: "st transfer, at the source", nth: 1, failed: exitError, prepare: (*trial).forACopy, args: moveArgs, check: nothingIsLostOnTheMove},
		{name: "st transfer, at the target", nth: 2, failed: exitError, prepare: (*trial).forACopy, args: moveArgs, check: nothingIsLostOnTheMove},
		{name: "wal-push", failed: exitError, args: func(r *trial) []string { return []string{"wal-push", r.fresh} }, check: freshIsArchivedOrAbsent},
		{name: "wal-push to an empty archive", empty: true, failed: exitError, args: func(r *trial) []string { return []string{"wal-push", r.fresh} },
			check: freshIsArchivedOrAbsent},
		{name: "wal-push of an archived file", failed: exitError, prepare: (*trial).archiveFresh,
			args: func(r *trial) []string { return []string{"wal-push", r.fresh} }, check: freshIsArchivedOrAbsent},
		{name: "wal-push to an archive without identity", failed: exitError, prepare: func(r *trial) { r.remove("walden_identity.json") },
			args: func(r *trial) []string { return []string{"wal-push", r.fresh} }, check: freshIsArchivedOrAbsent},
		{name: "wal-push to an archive of WAL without identity", failed: exitError,
			prepare: func(r *trial) { r.remove("walden_identity.json", keysIn(r.t, r.store, "basebackups_005/")...) },
			args:    func(r *trial) []string { return []string{"wal-push", r.fresh} }, check: freshIsArchivedOrAbsent},
		{name: "wal-push with a neighbour that waits", failed: exitError, prepare: (*trial).twoWait,
			args: func(r *trial) []string { return []string{"wal-push", r.waiting()[0]} }, check: bothAreArchivedOrAbsent},
		{name: "wal-fetch", failed: exitStopRecovery, prepare: (*trial).inArchiveRecovery, args: walFetch(archived), check: fetchedWALIsRight},
		{name: "wal-fetch under another codec", failed: exitStopRecovery, prepare: func(r *trial) {
			r.inArchiveRecovery()
			r.environ = append(r.environ, "WALG_COMPRESSION_METHOD=zstd")
		}, args: walFetch(archived), check: fetchedWALIsRight},
		{name: "wal-fetch outside of recovery", failed: exitError, prepare: (*trial).outsideOfRecovery, args: walFetch(archived), check: fetchedWALIsRight},
		{name: "wal-fetch of an absent file", healthy: exitAbsent, failed: exitStopRecovery, prepare: (*trial).inArchiveRecovery,
			args: walFetch(func(*trial) string { return "00000002.history" }), check: absenceIsProven},
		{name: "wal-fetch for a server", failed: exitStopRecovery, prepare: (*trial).forAServer, args: walFetch(archived), check: fetchedWALIsRight},
		{name: "wal-prefetch", failed: exitError, prepare: (*trial).forAServer, check: prefetchingIsNoFailure,
			args: func(r *trial) []string { return []string{"wal-prefetch", r.last(), r.walTarget()} }},
		{name: "backup-fetch", failed: exitError, args: fetch, check: restoreIsRightOrUnusable, once: true},
		{name: "backup-push", server: true, failed: exitError, args: push, check: backupsRestore},
		{name: "backup-push of a delta", server: true, failed: exitError,
			args: func(r *trial) []string { return append(push(r), "--walg-delta-max-steps=100") }, check: backupsRestore},
		{name: "backup-push to an empty archive", server: true, empty: true, failed: exitError, args: push, check: backupsRestore},
	}
}

func words(args ...string) func(*trial) []string { return func(*trial) []string { return args } }

// place is where a fault comes in.
type place string

const (
	// onceBelow: one call of the backend fails. Repetition overcomes that.
	onceBelow place = "once"
	// forGood: a call and all its repetitions fail, seen from above [storage.WithRetry].
	forGood place = "for good"
)

// corrupts tells whether what was read looks like an answer and is none. No repetition can be asked for where that is not noticed.
func corrupts(k storagetest.Kind) bool {
	return k == storagetest.FlipBit || k == storagetest.Truncate || k == storagetest.Empty
}

// Whatever storage call of whatever command fails, and in whatever way: the exit code is the documented one, the message says what
// failed, nothing is left behind, nothing that is listed or fetched is wrong, and the next run succeeds.
func TestEveryCommandUnderEveryFault(t *testing.T) {
	t.Parallel()
	s := newSweep(t)
	server := testenv.StartS3(t)
	for _, j := range sweepJobs() {
		t.Run(j.name, func(t *testing.T) {
			t.Parallel()
			s.sweep(t, j, func(t *testing.T) *trial { return s.onFiles(t, j) })
			if j.server {
				s.serverStartsFromBackup(t, j)
			}
		})
		t.Run(j.name+" on S3", func(t *testing.T) {
			t.Parallel()
			s.sample(t, j, func(t *testing.T) *trial { return s.onS3(t, j, server) })
		})
	}
}

// sweep tries every call in every way, or some calls in every way.
func (s *sweep) sweep(t *testing.T, j sweepJob, newTrial func(*testing.T) *trial) {
	chance := testenv.Rand(t)
	calls := s.undisturbed(t, j, newTrial)
	kinds := storagetest.Kinds()
	if j.expensive() && !testenv.Full() {
		const few = 4
		chance.Shuffle(len(kinds), func(i, k int) { kinds[i], kinds[k] = kinds[k], kinds[i] })
		kinds = kinds[:few]
	}
	for _, kind := range kinds {
		places := []place{onceBelow, forGood}
		if j.expensive() && !testenv.Full() {
			places = places[chance.IntN(2):][:1]
		}
		for _, at := range places {
			most := 0
			for _, c := range calls[at] {
				if kind.AppliesTo(c.Op) {
					most++
				}
			}
			injected, survived := 0, 0
			try := func(n int) bool {
				fired, code := s.cell(t, j, newTrial(t), kind, at, n)
				if fired {
					injected++
				}
				if fired && code == j.healthy {
					survived++
				}
				return fired
			}
			switch {
			case testenv.Full():
				const endless = 1000
				n := 1
				for ; try(n); n++ {
					if n == endless {
						t.Fatalf("%s %s: the sweep does not end", kind, at)
					}
				}
				if n <= most {
					t.Errorf("%s %s: there were %d calls without a fault, but the %dth did not come", kind, at, most, n)
				}
			case most > 0:
				try([]int{1, 1 + chance.IntN(most), most}[chance.IntN(3)])
			}
			testenv.Figure(t, "faults injected, by job", j.name, injected)
			testenv.Figure(t, "faults injected, by kind", kind.String()+" "+string(at), injected)
			if at == onceBelow {
				testenv.Figure(t, "faults survived by retry", j.name, survived)
			}
		}
	}
}

// expensive tells whether a run takes seconds: it moves a whole cluster.
func (j sweepJob) expensive() bool { return j.server || j.once }

// sample tries one call in every way, or one at all, on a storage where waits take their time: hanging is tried once only.
func (s *sweep) sample(t *testing.T, j sweepJob, newTrial func(*testing.T) *trial) {
	chance := testenv.Rand(t)
	calls := s.undisturbed(t, j, newTrial)
	type cell struct {
		kind storagetest.Kind
		at   place
		most int
	}
	var cells []cell
	for _, kind := range storagetest.Kinds() {
		for _, at := range []place{onceBelow, forGood} {
			hangs := kind == storagetest.Hang || kind == storagetest.HangHalf
			if hangs && (at == forGood || !testenv.Full()) {
				continue
			}
			most := 0
			for _, c := range calls[at] {
				if kind.AppliesTo(c.Op) {
					most++
				}
			}
			if most > 0 {
				cells = append(cells, cell{kind, at, most})
			}
		}
	}
	chance.Shuffle(len(cells), func(i, k int) { cells[i], cells[k] = cells[k], cells[i] })
	for _, c := range cells[:testenv.Pick(1, len(cells))] {
		if fired, _ := s.cell(t, j, newTrial(t), c.kind, c.at, 1+chance.IntN(c.most)); fired {
			testenv.Figure(t, "faults injected, by job", j.name+" on S3", 1)
			testenv.Figure(t, "faults injected, by kind", c.kind.String()+" "+string(c.at), 1)
		}
	}
}

// undisturbed runs the job without a fault and returns the calls that it made at each place.
func (s *sweep) undisturbed(t *testing.T, j sweepJob, newTrial func(*testing.T) *trial) map[place][]storagetest.Call {
	t.Helper()
	r := newTrial(t)
	defer r.end()
	var below, above *storagetest.Fault
	o := r.command(seams{
		backend: j.atNth(func(s storage.Store) storage.Store { below = storagetest.NewFault(s); return below }),
		retried: j.atNth(func(s storage.Store) storage.Store { above = storagetest.NewFault(r.archiving(s)); return above }),
	}, r.environ, j.args(r)...)
	if o.code != j.healthy {
		t.Fatalf("exit code %d instead of %d\n%s", o.code, j.healthy, o.stderr)
	}
	j.check(r, o)
	return map[place][]storagetest.Call{onceBelow: below.Calls(), forGood: above.Calls()}
}

// cell lets the n-th call that the kind applies to fail and checks all that must be true then.
func (s *sweep) cell(t *testing.T, j sweepJob, r *trial, kind storagetest.Kind, at place, n int) (fired bool, code int) {
	t.Helper()
	defer r.end()
	rule := storagetest.Rule{Kind: kind, Nth: n, ForGood: at == forGood}
	var fault *storagetest.Fault
	var sm seams
	switch at {
	case onceBelow:
		sm.backend = j.atNth(func(s storage.Store) storage.Store { fault = storagetest.NewFault(s, rule); return fault })
		sm.retried = r.archiving
	case forGood: // a call that hangs for good is given up as one of the backend is
		sm.retried = j.atNth(func(s storage.Store) storage.Store {
			fault = storagetest.NewFault(r.archiving(s), rule)
			return storage.WithStallLimit(fault, stallLimit)
		})
	}
	var o outcome
	r.inBubble(func() { o = r.command(sm, r.environ, j.args(r)...) })
	if !fault.Fired() {
		if o.code != j.healthy {
			t.Errorf("%s, call %d never came: exit code %d instead of %d\n%s", kind, n, o.code, j.healthy, o.stderr)
		}
		return false, o.code
	}
	o.kind, o.at, o.struck = kind, at, fault.Struck()[0]
	r.what = fmt.Sprintf("%s %s, call %d (%s)", kind, at, n, o.struck)
	failedBefore := t.Failed()
	allowed := []int{j.healthy, j.failed}
	if at == onceBelow && !corrupts(kind) {
		allowed = allowed[:1]
	}
	if corrupts(kind) {
		allowed = append(allowed, j.misled)
	}
	if !slices.Contains(allowed, o.code) {
		r.errorf("exit code %d, want one of %v", o.code, allowed)
	}
	if o.code == j.failed {
		r.checkMessage(o)
	}
	r.checkNothingIsLeft(o)
	j.check(r, o)
	if !t.Failed() && (o.code != j.healthy || !j.once) {
		again := r.command(seams{retried: r.archiving}, r.environ, j.args(r)...)
		// A copy that was made of what was read wrong each time is told from the source when that is read right.
		refused := again.code == j.failed && strings.HasPrefix(r.what, "FlipBit for good") && strings.Contains(again.stderr, "is another object")
		if again.code != j.healthy && !refused {
			r.errorf("the run after it: exit code %d instead of %d\n%s", again.code, j.healthy, again.stderr)
		} else if !refused {
			j.check(r, again)
		}
	}
	if t.Failed() && !failedBefore {
		t.Logf("%s: exit code %d, standard error:\n%s", r.what, o.code, o.stderr)
	}
	return true, o.code
}

// atNth wraps the storage that has the faults, of those that the job opens.
func (j sweepJob) atNth(wrap func(storage.Store) storage.Store) func(storage.Store) storage.Store {
	opened := 0
	return func(s storage.Store) storage.Store {
		if opened++; j.nth != 0 && opened != j.nth {
			return s
		}
		return wrap(s)
	}
}

// sweep is what all runs share: a server, and an archive of it that runs begin with a copy of.
type sweep struct {
	dir      string
	config   string // an empty configuration file
	postgres *testenv.Postgres
	busy     sync.Mutex // held by the run that works on the server
	spool    string     // what the server has archived and no run has taken yet
	kept     string     // what runs have taken
	seed     string     // the archive: two backups and the WAL up to the second one
	backups  []string   // their names
	cluster  map[string]string
	archived string   // name of a segment in the archive
	fresh    string   // file of a segment that is not in the archive
	said     sync.Map // by the names of jobs, what they say without a fault
	numbers  atomic.Int64
}

const stallLimit = 2 * time.Minute // of Hang for good; in a bubble it takes no time

func newSweep(t *testing.T) *sweep {
	t.Helper()
	dir := testenv.Scratch(t)
	s := &sweep{dir: dir, config: filepath.Join(dir, "walden.yaml"), spool: filepath.Join(dir, "spool"), kept: filepath.Join(dir, "kept"),
		seed: filepath.Join(dir, "seed")}
	for _, d := range []string{s.spool, s.kept, s.seed} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The server's commands run as another user than the test's when that is root.
	if err := errors.Join(os.Chmod(s.spool, 0o777), os.WriteFile(s.config, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	// A small cluster that is at rest, so that its files can be compared with restored ones: nobody but the backups works on it.
	s.postgres = testenv.StartPostgres(t, testenv.PostgresOptions{Checksums: true, WALSegmentSize: 1, Settings: map[string]string{
		"archive_mode": "on", "archive_command": "cp %p " + s.spool + "/%f.part && mv " + s.spool + "/%f.part " + s.spool + "/%f",
		"autovacuum": "off", "checkpoint_timeout": "1d", "min_wal_size": "2MB", "max_wal_size": "1GB",
	}})
	s.postgres.Exec(t, "ALTER DATABASE template0 IS_TEMPLATE false", "DROP DATABASE template0",
		"ALTER DATABASE template1 IS_TEMPLATE false", "DROP DATABASE template1",
		"CREATE TABLE journal AS SELECT g AS id, md5(g::text) AS note FROM generate_series(1, 5000) AS g", "VACUUM FREEZE")
	s.postgres.SwitchWAL(t)
	s.postgres.Exec(t, "CHECKPOINT")

	r := s.newTrial(t, sweepJob{server: true})
	r.useFiles(s.seed)
	for range 2 {
		if o := r.command(seams{retried: r.archiving}, r.environ, "backup-push", s.postgres.DataDir); o.code != 0 {
			t.Fatalf("the first backups: exit code %d\n%s", o.code, o.stderr)
		}
	}
	for _, b := range r.list() {
		s.backups = append(s.backups, b.BackupName)
		s.archived = b.WALFileName
	}
	s.cluster = readTree(t, s.postgres.DataDir)
	s.postgres.Exec(t, "SELECT pg_create_restore_point('sweep')")
	s.fresh = filepath.Join(s.kept, s.postgres.SwitchWAL(t))
	if err := r.takeSpool(func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	r.end()
	if len(s.backups) != 2 {
		t.Fatalf("the archive holds the backups %v", s.backups)
	}
	return s
}

// trial is one cell of the sweep: an archive of its own, and what lies outside of it.
type trial struct {
	*sweep
	t       *testing.T
	job     sweepJob
	dir     string
	environ []string
	store   storage.Store // the archive as it is
	files   string        // its directory, "" on S3
	uploads func() int    // of parts that nobody completes, on S3
	second  storage.Store // where a copy goes, nil if there is none
	// openBeside makes a second storage, and returns the setting that names it.
	openBeside func() (s storage.Store, setting string, err error)
	known      []string // backups that were checked
	datadir    []string // names in the data directory before
	what       string   // for messages

	asking   sync.Mutex // see outside
	asked    chan func() error
	answered chan error
}

func (s *sweep) newTrial(t *testing.T, j sweepJob) *trial {
	t.Helper()
	r := &trial{sweep: s, t: t, job: j, what: "without a fault", asked: make(chan func() error), answered: make(chan error)}
	go func() {
		for f := range r.asked {
			r.answered <- f()
		}
	}()
	r.dir = filepath.Join(s.dir, s.number())
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.environ = append(s.postgres.Env(), "WALG_TAR_SIZE_THRESHOLD=2097152", "WALG_DOWNLOAD_CONCURRENCY=2", "WALG_UPLOAD_DISK_CONCURRENCY=2")
	if j.server {
		s.busy.Lock()
		r.datadir = namesIn(t, s.postgres.DataDir)
	}
	if !j.empty {
		r.known = slices.Clone(s.backups)
	}
	return r
}

// number is one that nothing else has.
func (s *sweep) number() string { return strconv.FormatInt(s.numbers.Add(1), 10) }

func (r *trial) end() {
	close(r.asked)
	if r.job.server {
		r.busy.Unlock()
	}
	if err := os.RemoveAll(r.dir); err != nil {
		r.t.Error(err)
	}
}

// useFiles makes a directory the run's archive.
func (r *trial) useFiles(dir string) {
	r.t.Helper()
	var err error
	if r.store, err = filestore.Open(filestore.Options{Root: dir}); err != nil {
		r.t.Fatal(err)
	}
	r.files = dir
	r.environ = append(r.environ, "WALG_FILE_PREFIX="+dir)
	r.openBeside = func() (storage.Store, string, error) {
		to := filepath.Join(r.dir, "second")
		if err := os.Mkdir(to, 0o755); err != nil {
			return nil, "", err
		}
		s, err := filestore.Open(filestore.Options{Root: to})
		return s, "WALG_FILE_PREFIX=" + to, err
	}
}

// onFiles prepares a run on a copy of the archive. Objects are never written in place, so hard links are a copy.
func (s *sweep) onFiles(t *testing.T, j sweepJob) *trial {
	t.Helper()
	r := s.newTrial(t, j)
	dir := filepath.Join(r.dir, "archive")
	err := os.Mkdir(dir, 0o755)
	if err == nil && !j.empty {
		err = filepath.WalkDir(s.seed, func(name string, e fs.DirEntry, err error) error {
			to := filepath.Join(dir, strings.TrimPrefix(name, s.seed))
			switch {
			case err != nil || name == s.seed:
				return err
			case e.IsDir():
				return os.Mkdir(to, 0o755)
			}
			return os.Link(name, to)
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	r.useFiles(dir)
	if j.prepare != nil {
		j.prepare(r)
	}
	return r
}

// onS3 prepares a run in a bucket of its own.
func (s *sweep) onS3(t *testing.T, j sweepJob, server *testenv.S3Server) *trial {
	t.Helper()
	bucket := server.NewBucket(t)
	r := s.newTrial(t, j)
	r.environ = append(r.environ, "WALG_S3_PREFIX=s3://"+bucket+"/main", "AWS_ENDPOINT="+server.Endpoint, "AWS_REGION=us-east-1",
		"AWS_ACCESS_KEY_ID="+server.AccessKey, "AWS_SECRET_ACCESS_KEY="+server.SecretKey, "AWS_S3_FORCE_PATH_STYLE=true",
		"WALDEN_STALL_TIMEOUT=10s", "S3_MAX_PART_SIZE=5242880", "WALG_COMPRESSION_METHOD=none", "WALG_TAR_SIZE_THRESHOLD=1073741824")
	var err error
	r.store, err = s3.Open(t.Context(), s3.Options{Bucket: bucket, Prefix: "main", Region: "us-east-1", Endpoint: server.Endpoint, PathStyle: true,
		AccessKeyID: server.AccessKey, SecretAccessKey: storage.Secret(server.SecretKey)})
	if err != nil {
		t.Fatal(err)
	}
	r.openBeside = func() (storage.Store, string, error) {
		s, err := s3.Open(t.Context(), s3.Options{Bucket: bucket, Prefix: "second", Region: "us-east-1", Endpoint: server.Endpoint, PathStyle: true,
			AccessKeyID: server.AccessKey, SecretAccessKey: storage.Secret(server.SecretKey)})
		return s, "WALG_S3_PREFIX=s3://" + bucket + "/second", err
	}
	r.uploads = func() int {
		list, err := server.Client().ListMultipartUploads(t.Context(), &awss3.ListMultipartUploadsInput{Bucket: aws.String(bucket)})
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Uploads)
	}
	if !j.empty {
		seed, err := filestore.Open(filestore.Options{Root: s.seed})
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keysIn(t, seed, "") {
			body, err := seed.Get(t.Context(), key)
			if err == nil {
				err = errors.Join(r.store.Put(t.Context(), key, body), body.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if j.prepare != nil {
		j.prepare(r)
	}
	return r
}

func keysIn(t *testing.T, s storage.Store, dir string) []string {
	t.Helper()
	var keys []string
	for o, err := range s.List(t.Context(), dir) {
		if err != nil {
			t.Fatal(err)
		}
		if o.IsDir() {
			keys = append(keys, keysIn(t, s, o.Key)...)
		} else {
			keys = append(keys, o.Key)
		}
	}
	return keys
}

// outcome is what a command left.
type outcome struct {
	code           int
	stdout, stderr string

	// of the fault, unless there was none
	kind   storagetest.Kind
	at     place
	struck storagetest.Call
}

// disturbed tells whether a call failed.
func (o outcome) disturbed() bool { return o.at != "" }

// command runs walden in this process and checks that it leaves no goroutine behind.
func (r *trial) command(sm seams, environ []string, args ...string) outcome {
	r.t.Helper()
	var out, errs bytes.Buffer
	a := &app{seams: sm, process: Process{
		Args: append([]string{"--config", r.config}, args...), Program: "walden", Environ: environ, Stdout: &out, Stderr: &errs, Version: "test",
	}}
	mark := r.number()
	pprof.SetGoroutineLabels(pprof.WithLabels(context.Background(), pprof.Labels("sweep", mark)))
	defer pprof.SetGoroutineLabels(context.Background())
	code := a.run(context.Background())
	debug.SetGCPercent(100) // the commands for single files collect no garbage: their process ends at once
	debug.SetMemoryLimit(math.MaxInt64)
	if left := goroutinesOf(mark); left != "" {
		r.errorf("goroutines of %v still run:\n%s", args, left)
	}
	return outcome{code: code, stdout: out.String(), stderr: errs.String()}
}

// goroutinesOf returns the stacks of walden's goroutines that were begun under the label, without the caller's own and those of
// connections that package http keeps for later requests. Ending takes a goroutine a moment after it has told that it ends.
func goroutinesOf(mark string) string {
	const patience = 200
	for try := 1; ; try++ {
		var profile bytes.Buffer
		if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
			return err.Error()
		}
		var left []string
		for record := range strings.SplitSeq(profile.String(), "\n\n") {
			ours := strings.Contains(record, `"sweep":"`+mark+`"`) && strings.Contains(record, "walden-pg/walden/")
			if ours && !strings.Contains(record, "cli.goroutinesOf") && !strings.Contains(record, "http.(*persistConn)") {
				left = append(left, record)
			}
		}
		if len(left) == 0 || try == patience {
			return strings.Join(left, "\n")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// inBubble runs f where waits take no time. A goroutine that f leaves behind fails the test. S3's client keeps connections whose
// goroutines would do so, so its waits are real.
func (r *trial) inBubble(f func()) {
	if r.files == "" {
		f()
		return
	}
	synctest.Test(r.t, func(*testing.T) { f() })
}

func (r *trial) errorf(format string, args ...any) {
	r.t.Helper()
	r.t.Errorf("%s: %s", r.what, fmt.Sprintf(format, args...))
}

// goText matches what no operator should have to read.
var goText = regexp.MustCompile(`context (canceled|deadline exceeded)|runtime error|nil pointer|%!|goroutine|0xc0|\*[a-z]+\.[A-Z]|&\{`)

// checkMessage checks that the message says what could not be done, and with which object.
func (r *trial) checkMessage(o outcome) {
	r.t.Helper()
	_, message, found := strings.Cut("\n"+o.stderr, "\nwalden: ")
	message, _, _ = strings.Cut(message, "\nhint: ")
	if !found || !strings.Contains(message, "cannot ") {
		r.errorf("the message does not say what walden cannot do")
	}
	if bare := goText.FindString(message); bare != "" {
		r.errorf("the message tells of the program's inside (%q)", bare)
	}
	object := path.Base(o.struck.Key)
	if o.struck.Key == "" {
		object = r.store.String()
		if r.job.nth > 1 {
			object = r.second.String()
		}
	}
	if !corrupts(o.kind) && !strings.Contains(message, object) {
		r.errorf("the message does not name %s", object)
	}
}

// checkNothingIsLeft looks for temporary files, uploads, and what the message should have named.
func (r *trial) checkNothingIsLeft(o outcome) {
	r.t.Helper()
	if r.files != "" {
		for name := range readNames(r.t, r.dir) {
			if strings.Contains(name, ".tmp") && !strings.HasPrefix(name, "data/") {
				r.errorf("%s is left in the archive", name)
			}
		}
	} else if n := r.uploads(); n > 0 {
		r.errorf("%d uploads are left in the bucket", n)
	}
	if !r.job.server {
		return
	}
	r.postgres.WaitFor(r.t, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walden'", "0", time.Minute)
	if now := namesIn(r.t, r.postgres.DataDir); !slices.Equal(now, r.datadir) {
		r.errorf("the data directory had %v and has %v", r.datadir, now)
	}
}

// listedBackup is what the sweep looks at in a list.
type listedBackup struct {
	BackupName  string `json:"backup_name"`
	WALFileName string `json:"wal_file_name"`
	Status      string `json:"status"`
}

// list returns the backups that are listed without a fault.
func (r *trial) list() []listedBackup {
	r.t.Helper()
	o := r.command(seams{}, r.environ, "backup-list", "--json")
	var list []listedBackup
	if err := json.Unmarshal([]byte(o.stdout), &list); o.code != 0 || err != nil {
		r.t.Fatalf("%s: backup-list afterwards: exit code %d, %v\n%s", r.what, o.code, err, o.stderr)
	}
	return list
}

// listIsRight: what is listed is there, and all of it, unless something else was read than is stored.
// proofIsRight expects that a backup is called proven only where nothing that was read was another thing than is stored, or none of
// it mattered.
func proofIsRight(r *trial, o outcome) {
	r.t.Helper()
	var list []examined
	if err := json.Unmarshal([]byte(o.stdout), &list); err != nil && o.stdout != "" {
		r.errorf("%v: %s", err, o.stdout)
	}
	if proven := len(list) == 1 && list[0].Proven; proven != (o.code == exitOK) && o.code == exitOK {
		r.errorf("exit code %d, and it says %s", o.code, o.stdout)
	}
}

func listIsRight(r *trial, o outcome) {
	r.t.Helper()
	if o.code != exitOK {
		if o.stdout != "" {
			r.errorf("a list that failed was printed all the same: %s", o.stdout)
		}
		return
	}
	var list []listedBackup
	if err := json.Unmarshal([]byte(o.stdout), &list); err != nil {
		r.errorf("%v: %s", err, o.stdout)
	}
	var names []string
	for _, b := range list {
		names = append(names, b.BackupName)
		if b.Status != "" && !corrupts(o.kind) {
			r.errorf("%s is listed as %q", b.BackupName, b.Status)
		}
		if !slices.Contains(r.known, b.BackupName) {
			r.errorf("%s is listed and does not exist", b.BackupName)
		}
	}
	if !slices.Equal(names, r.known) && !(o.disturbed() && corrupts(o.kind)) {
		r.errorf("%v are listed, not %v", names, r.known)
	}
}

// moments are what differs where objects were copied to another storage.
var moments = regexp.MustCompile(`"\d{4}-\d\d-\d\dT[^"]*"`)

// itSaysTheSame: a success says what is said without a fault, unless something else was read than is stored.
func itSaysTheSame(r *trial, o outcome) {
	r.t.Helper()
	if o.code != r.job.healthy {
		if o.code == r.job.failed && o.stdout != "" {
			r.errorf("it failed and printed all the same: %s", o.stdout)
		}
		return
	}
	said := strings.ReplaceAll(moments.ReplaceAllString(o.stdout, `""`), r.dir, "")
	if want, _ := r.said.LoadOrStore(r.job.name, said); said != want && !(o.disturbed() && corrupts(o.kind)) {
		r.errorf("it says\n%s\ninstead of\n%s", said, want)
	}
}

// last is the name of the last archived segment.
func (r *trial) last() (last string) {
	r.t.Helper()
	for _, key := range r.seedKeys() {
		if name, ok := strings.CutPrefix(key, "wal_005/"); ok && wal.Classify(name[:min(24, len(name))]) == wal.KindSegment {
			last = max(last, name[:24])
		}
	}
	return last
}

// position is where the last archived segment ends.
func (r *trial) position() string {
	r.t.Helper()
	segment, err := wal.ParseSegment(r.last(), 1<<20)
	if err != nil {
		r.t.Fatal(err)
	}
	return (segment.End(1<<20) + 1).String()
}

// saved is a directory with the WAL that the server had when the archive was made.
func (r *trial) saved() string { return filepath.Join(r.dir, "saved") }

// loseOne takes a segment out of the archive that both backups need or begin with, and keeps what the server has of its WAL.
func (r *trial) loseOne() {
	r.t.Helper()
	if err := os.Mkdir(r.saved(), 0o755); err != nil {
		r.t.Fatal(err)
	}
	for _, name := range namesIn(r.t, r.kept) {
		if wal.Classify(name) != wal.KindSegment || name > filepath.Base(r.fresh) {
			continue
		}
		if err := os.Link(filepath.Join(r.kept, name), filepath.Join(r.saved(), name)); err != nil {
			r.t.Fatal(err)
		}
	}
	for _, key := range keysIn(r.t, r.store, "wal_005/") {
		if strings.HasPrefix(key, "wal_005/"+r.archived) {
			r.remove(key)
		}
	}
}

// theLostIsBackOrAbsent: what the archive had lost is there with its content or not at all, and a success means that it is.
func theLostIsBackOrAbsent(r *trial, o outcome) {
	r.t.Helper()
	code := o.code
	if o.disturbed() && corrupts(o.kind) {
		code = exitError // it may not know what the archive lacks
	}
	r.archivedOrAbsent(filepath.Join(r.kept, r.archived), code)
}

// markNewest makes the newest backup permanent.
func (r *trial) markNewest() {
	r.t.Helper()
	if o := r.command(seams{}, r.environ, "backup-mark", r.backups[1]); o.code != exitOK {
		r.t.Fatalf("exit code %d\n%s", o.code, o.stderr)
	}
}

// misreadUnseen tells whether an object bears no hash and was read wrong in the same way each time, so that nobody can know.
func (r *trial) misreadUnseen(key string) bool {
	document := strings.HasPrefix(key, "basebackups_005/") && strings.HasSuffix(key, ".json") && path.Base(key) != "walden_manifest.json"
	return strings.HasPrefix(r.what, "FlipBit for good") && document
}

// onlyTheMarkIsOther: a success means that the newest backup has the mark asked for; but for its mark every object is as it was.
func onlyTheMarkIsOther(r *trial, o outcome) {
	r.t.Helper()
	seed, err := filestore.Open(filestore.Options{Root: r.seed})
	if err != nil {
		r.t.Fatal(err)
	}
	read := func(s storage.Store, key string) string {
		body, err := s.Get(r.t.Context(), key)
		if err != nil {
			r.errorf("%s cannot be read: %v", key, err)
			return ""
		}
		b, err := io.ReadAll(body)
		if err = errors.Join(err, body.Close()); err != nil {
			r.errorf("%s cannot be read: %v", key, err)
		}
		return string(b)
	}
	mark := regexp.MustCompile(`(?i)"(is_?permanent)": ?(true|false)`)
	wanted := !slices.Contains(r.job.args(r), "--impermanent")
	misread := o.disturbed() && corrupts(o.kind)
	for _, key := range r.seedKeys() {
		was, now := read(seed, key), read(r.store, key)
		if was == now && !strings.HasSuffix(key, "metadata.json") || misread && strings.Contains(key, r.backups[1]) || r.misreadUnseen(key) {
			continue
		}
		var before, after map[string]any
		if !strings.Contains(key, r.backups[1]) && was != now ||
			errors.Join(json.Unmarshal([]byte(mark.ReplaceAllString(was, `"$1":true`)), &before), json.Unmarshal([]byte(mark.ReplaceAllString(now, `"$1":true`)), &after)) != nil ||
			!reflect.DeepEqual(before, after) {
			r.errorf("%s was\n%s\nand is\n%s", key, was, now)
		}
		if strings.HasSuffix(key, r.backups[1]+"/metadata.json") && o.code == exitOK && strings.Contains(now, `"is_permanent":true`) != wanted {
			r.errorf("success was reported, and %s is %s", key, now)
		}
	}
}

// freshIsArchivedOrAbsent: the archive holds the file once, with its content, or not at all, and a success means that it does.
func freshIsArchivedOrAbsent(r *trial, o outcome) {
	r.t.Helper()
	r.archivedOrAbsent(r.fresh, o.code)
}

// archivedOrAbsent checks what is archived of a file after a command with the exit code given.
func (r *trial) archivedOrAbsent(file string, code int) {
	r.t.Helper()
	name := filepath.Base(file)
	var keys []string
	for _, key := range keysIn(r.t, r.store, "wal_005/") {
		if strings.HasPrefix(path.Base(key), name) {
			keys = append(keys, key)
		}
	}
	switch {
	case len(keys) == 0 && code == exitOK:
		r.errorf("success was reported, and %s is not in the archive", name)
	case len(keys) > 1:
		r.errorf("the archive holds %v", keys)
	case len(keys) == 1:
		dest := filepath.Join(r.dir, "fetched")
		f := r.command(seams{}, r.environ, "wal-fetch", name, dest)
		if f.code != exitOK || !sameFile(r.t, dest, file) {
			r.errorf("the archived %s cannot be fetched as it was: exit code %d\n%s", name, f.code, f.stderr)
		}
		if err := os.RemoveAll(dest); err != nil {
			r.t.Fatal(err)
		}
	}
}

// waiting are the paths of two segments that wait, one behind the other: the fresh one, and the one before it.
func (r *trial) waiting() [2]string {
	r.t.Helper()
	info, err := os.Stat(r.fresh)
	if err != nil {
		r.t.Fatal(err)
	}
	second, err := wal.ParseSegment(filepath.Base(r.fresh), info.Size())
	if err != nil {
		r.t.Fatal(err)
	}
	first := wal.Segment{Timeline: second.Timeline, Number: second.Number - 1}
	dir := filepath.Join(r.dir, "data", "pg_wal")
	return [2]string{filepath.Join(dir, first.Name(info.Size())), filepath.Join(dir, filepath.Base(r.fresh))}
}

// twoWait makes a data directory in which two segments wait that are not in the archive.
func (r *trial) twoWait() {
	r.t.Helper()
	copied := func(to, from string) {
		content, err := os.ReadFile(from)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o700)
		}
		if err == nil {
			err = os.WriteFile(to, content, 0o600)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	copied(filepath.Join(r.dir, "data", pgdata.ControlName), filepath.Join(r.postgres.DataDir, pgdata.ControlName))
	for _, path := range r.waiting() {
		name := filepath.Base(path)
		copied(path, filepath.Join(r.kept, name))
		copied(filepath.Join(filepath.Dir(path), "archive_status", name+".ready"), os.DevNull)
		for _, key := range keysIn(r.t, r.store, "wal_005/") {
			if strings.HasPrefix(key, "wal_005/"+name) {
				r.remove(key)
			}
		}
	}
	time.Sleep(50 * time.Millisecond) // until the files count as settled; a sooner run leaves the second one to its own call
}

// bothAreArchivedOrAbsent: the archive holds either file once, with its content, or not at all, and a success means that it does; that of the second one is
// asked for now, when it may have been archived ahead.
func bothAreArchivedOrAbsent(r *trial, o outcome) {
	r.t.Helper()
	both := r.waiting()
	r.archivedOrAbsent(both[0], o.code)
	var next outcome
	r.inBubble(func() { next = r.command(seams{retried: r.archiving}, r.environ, "wal-push", both[1]) })
	if next.code != exitOK {
		r.errorf("the second file's own call: exit code %d\n%s", next.code, next.stderr)
	}
	r.archivedOrAbsent(both[1], next.code)
}

// archiveFresh archives the file that is to be archived again.
func (r *trial) archiveFresh() {
	r.t.Helper()
	if o := r.command(seams{}, r.environ, "wal-push", r.fresh); o.code != exitOK {
		r.t.Fatalf("exit code %d\n%s", o.code, o.stderr)
	}
}

// remove takes objects out of the archive.
func (r *trial) remove(key string, more ...string) {
	r.t.Helper()
	if err := r.store.Delete(r.t.Context(), append(more, key)...); err != nil {
		r.t.Fatal(err)
	}
}

// put stores an object in the archive.
func (r *trial) put(key, content string) {
	r.t.Helper()
	if err := r.store.Put(r.t.Context(), key, strings.NewReader(content)); err != nil {
		r.t.Fatal(err)
	}
}

// nothingIsDeleted: a dry run leaves every object as it was.
func nothingIsDeleted(r *trial, _ outcome) {
	r.t.Helper()
	if now, before := keysIn(r.t, r.store, ""), r.seedKeys(); !slices.Equal(now, before) {
		r.errorf("the archive held %v and holds %v", before, now)
	}
}

func (r *trial) seedKeys() []string {
	r.t.Helper()
	seed, err := filestore.Open(filestore.Options{Root: r.seed})
	if err != nil {
		r.t.Fatal(err)
	}
	return keysIn(r.t, seed, "")
}

// theOldIsDeleted: of the two backups the newer one stays with its WAL; the older one is complete or not listed; a success means that
// nothing is left of it.
func theOldIsDeleted(r *trial, o outcome) {
	r.t.Helper()
	now := map[string]bool{}
	for _, key := range keysIn(r.t, r.store, "") {
		now[key] = true
	}
	first := strings.TrimPrefix(r.backups[1], "base_")
	listed := now["basebackups_005/"+r.backups[0]+"_backup_stop_sentinel.json"]
	for _, key := range r.seedKeys() {
		ofOld := strings.HasPrefix(key, "basebackups_005/"+r.backups[0])
		oldWAL := strings.HasPrefix(key, "wal_005/") && path.Base(key)[:24] < first
		needed := ofOld || oldWAL && path.Base(key)[:24] >= strings.TrimPrefix(r.backups[0], "base_")
		switch {
		case (ofOld || oldWAL) && o.code == exitOK && now[key] && !(o.disturbed() && corrupts(o.kind)) && !r.lied():
			r.errorf("success was reported, and %s is there", key)
		case needed && listed && !now[key], !ofOld && !oldWAL && !now[key]:
			r.errorf("%s is gone", key)
		}
	}
}

// lied tells whether the storage said for good that a folder was empty, so that nobody could know of what is in it.
func (r *trial) lied() bool { return strings.HasPrefix(r.what, "Empty for good") }

// everythingIsDeleted: a success means that nothing is left; a backup that is listed is complete.
func everythingIsDeleted(r *trial, o outcome) {
	r.t.Helper()
	now := keysIn(r.t, r.store, "")
	if o.code == exitOK && len(now) > 0 && !(o.disturbed() && corrupts(o.kind)) && !r.lied() {
		r.errorf("success was reported, and %v is there", now)
	}
	for _, key := range r.seedKeys() {
		for _, name := range r.backups {
			listed := slices.Contains(now, "basebackups_005/"+name+"_backup_stop_sentinel.json")
			if listed && strings.HasPrefix(key, "basebackups_005/"+name) && !slices.Contains(now, key) {
				r.errorf("%s is listed, and %s is gone", name, key)
			}
		}
	}
}

// forACopy makes a place beside the archive, the configurations of both, and one in which it is a failover storage.
func (r *trial) forACopy() {
	r.t.Helper()
	second, setting, err := r.openBeside()
	if err != nil {
		r.t.Fatal(err)
	}
	r.second = second
	about := func(setting string) bool {
		return slices.ContainsFunc([]string{"WALG_FILE_PREFIX", "WALG_S3_PREFIX", "AWS_", "S3_", "WALDEN_STALL"}, func(p string) bool { return strings.HasPrefix(setting, p) })
	}
	name, value, _ := strings.Cut(setting, "=")
	var from, to strings.Builder
	for _, s := range r.environ {
		if n, v, _ := strings.Cut(s, "="); about(s) {
			fmt.Fprintf(&from, "%s: %q\n", n, v)
			if n != name {
				fmt.Fprintf(&to, "%s: %q\n", n, v)
			}
		}
	}
	fmt.Fprintf(&to, "%s: %q\n", name, value)
	both := fmt.Sprintf("%sWALG_FAILOVER_STORAGES:\n  second: {%s: %q}\n", from.String(), name, value)
	for file, text := range map[string]string{"from.yaml": from.String(), "to.yaml": to.String(), "both.yaml": both} {
		if err := os.WriteFile(filepath.Join(r.dir, file), []byte(text), 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
}

func copyArgs(r *trial) []string {
	return []string{"copy", "--from", filepath.Join(r.dir, "from.yaml"), "--to", filepath.Join(r.dir, "to.yaml"), "--with-history"}
}

func moveArgs(r *trial) []string {
	return []string{"--config", filepath.Join(r.dir, "both.yaml"), "st", "transfer", "backups", "--source", "default", "--target", "second",
		"--appearance-checks-interval", "1ms"}
}

// contents reads all objects of a storage, as their hashes.
func contents(t *testing.T, s storage.Store) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, key := range keysIn(t, s, "") {
		body, err := s.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		_, err = io.Copy(sum, body)
		if err := errors.Join(err, body.Close()); err != nil {
			t.Fatal(err)
		}
		all[key] = fmt.Sprintf("%x", sum.Sum(nil))
	}
	return all
}

func (r *trial) seedContents() map[string]string {
	r.t.Helper()
	seed, err := filestore.Open(filestore.Options{Root: r.seed})
	if err != nil {
		r.t.Fatal(err)
	}
	return contents(r.t, seed)
}

// listedIsWhole: of what is listed in a storage everything is there, as it was.
func (r *trial) listedIsWhole(where string, now, seed map[string]string) {
	r.t.Helper()
	for _, name := range r.backups {
		if _, listed := now["basebackups_005/"+name+"_backup_stop_sentinel.json"]; !listed {
			continue
		}
		for key, content := range seed {
			if strings.HasPrefix(key, "basebackups_005/"+name) && now[key] != content && !r.misreadUnseen(key) {
				r.errorf("%s is listed at the %s, and %s is not as it was", name, where, key)
			}
		}
	}
}

// theCopyIsRight: the source is as it was, what is listed at the destination is whole, and a success means that everything is there from
// the first backup on. A bit that was read wrong is noticed wherever a hash is recorded, which of WAL is nowhere.
func theCopyIsRight(r *trial, o outcome) {
	r.t.Helper()
	seed, now := r.seedContents(), contents(r.t, r.second)
	if !maps.Equal(contents(r.t, r.store), seed) {
		r.errorf("the source has changed")
	}
	r.listedIsWhole("destination", now, seed)
	for key, content := range seed {
		isWAL := strings.HasPrefix(key, "wal_005/")
		before := isWAL && path.Base(key)[:24] < strings.TrimPrefix(r.backups[0], "base_")
		unnoticed := isWAL && strings.HasPrefix(r.what, "FlipBit") || r.misreadUnseen(key)
		if got, ok := now[key]; o.code == exitOK && !before && (!ok || got != content) && !unnoticed && !r.lied() {
			r.errorf("success was reported, and %s is not at the destination as it was (%v)", key, ok)
		}
	}
}

// nothingIsLostOnTheMove: everything is whole at one place at least, and what is listed is whole where it is.
func nothingIsLostOnTheMove(r *trial, o outcome) {
	r.t.Helper()
	seed, source, target := r.seedContents(), contents(r.t, r.store), contents(r.t, r.second)
	r.listedIsWhole("source", source, seed)
	r.listedIsWhole("target", target, seed)
	for key, content := range seed {
		moves := strings.HasPrefix(key, "basebackups_005/")
		if source[key] != content && (target[key] != content || !moves) && !(moves && r.misreadUnseen(key)) {
			r.errorf("%s is at neither place", key)
		}
		if _, there := source[key]; there && moves && o.code == exitOK && !(o.disturbed() && corrupts(o.kind)) && !r.lied() {
			r.errorf("success was reported, and %s is still at the source", key)
		}
	}
}

func (r *trial) walTarget() string { return filepath.Join(r.dir, "data", "pg_wal", "RECOVERYXLOG") }

// outsideOfRecovery makes a data directory of the cluster, as far as wal-fetch looks at one.
func (r *trial) outsideOfRecovery() {
	r.t.Helper()
	control, err := os.ReadFile(filepath.Join(r.postgres.DataDir, pgdata.ControlName))
	if err == nil {
		err = errors.Join(os.MkdirAll(filepath.Dir(r.walTarget()), 0o700), os.Mkdir(filepath.Join(r.dir, "data", "global"), 0o700),
			os.WriteFile(filepath.Join(r.dir, "data", pgdata.ControlName), control, 0o600))
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *trial) inArchiveRecovery() {
	r.t.Helper()
	r.outsideOfRecovery()
	if err := os.WriteFile(filepath.Join(r.dir, "data", "recovery.signal"), nil, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// forAServer makes a data directory in which a server is in archive recovery, for which segments are fetched ahead.
func (r *trial) forAServer() {
	r.t.Helper()
	r.inArchiveRecovery()
	if err := os.WriteFile(filepath.Join(r.dir, "data", "postmaster.pid"), []byte("7\n"+r.dir+"\n1\n5432\n"), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// prefetchingIsNoFailure: nobody is told that nothing was fetched ahead, and nothing is left of it.
func prefetchingIsNoFailure(r *trial, o outcome) {
	r.t.Helper()
	if o.code != exitOK {
		r.errorf("exit code %d", o.code)
	}
	if left, err := filepath.Glob(filepath.Join(r.dir, ".walden-spool", "*", "wal", "*")); err != nil || len(left) > 0 {
		r.errorf("left in the spool: %v, %v", left, err)
	}
}

// fetchedWALIsRight: the destination is exactly right or not there, and nothing else lies beside it.
func fetchedWALIsRight(r *trial, o outcome) {
	r.t.Helper()
	for name := range readNames(r.t, filepath.Dir(r.walTarget())) {
		if name != filepath.Base(r.walTarget()) || o.code != exitOK {
			r.errorf("exit code %d, and %s is left", o.code, name)
		}
	}
	if o.code == exitOK && !sameFile(r.t, r.walTarget(), filepath.Join(r.kept, r.archived)) {
		r.errorf("what was fetched is not what was archived")
	}
}

// absenceIsProven: a file is called absent only if the storage has answered for each name that it can have.
func absenceIsProven(r *trial, o outcome) {
	r.t.Helper()
	fetchedWALIsRight(r, outcome{code: exitError})
	asked := o.struck.Op == storagetest.OpGet || o.struck.Op == storagetest.OpStat
	unanswered := o.kind == storagetest.Before || o.kind == storagetest.Hang
	if o.disturbed() && o.at == forGood && asked && unanswered && o.code == exitAbsent {
		r.errorf("the file was called absent although %q could not be asked about", o.struck.Key)
	}
}

func (r *trial) target() string { return filepath.Join(r.dir, "restored") }

// restoreIsRightOrUnusable: after a success the cluster is restored, after a failure there is nothing that could be started.
func restoreIsRightOrUnusable(r *trial, o outcome) {
	r.t.Helper()
	if o.code == exitOK {
		r.checkRestored(r.target())
		return
	}
	names := namesIn(r.t, r.target())
	if _, err := os.Stat(filepath.Join(r.target(), pgdata.ControlName)); !errors.Is(err, fs.ErrNotExist) {
		r.errorf("the unfinished restore has a control file: %v", err)
	}
	if len(names) > 0 && !slices.Contains(names, "walden_restore.json") {
		r.errorf("the unfinished restore does not bear its mark: %v", names)
	}
}

// checkRestored compares a restored data directory with the server's.
func (r *trial) checkRestored(dir string) {
	r.t.Helper()
	got := readTree(r.t, dir)
	if maps.Equal(got, r.cluster) {
		for _, name := range []string{"backup_label", pgdata.ControlName} {
			if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
				r.errorf("%v", err)
			}
		}
		for _, name := range []string{"walden_restore.json", pgdata.ControlName + ".tmp"} {
			if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
				r.errorf("%s is left in the restored directory: %v", name, err)
			}
		}
		return
	}
	for name, content := range r.cluster {
		if got[name] != content {
			r.errorf("restored %s is %q, want %q", name, got[name], content)
		}
	}
	for name := range got {
		if _, ok := r.cluster[name]; !ok {
			r.errorf("restored %s is not the cluster's", name)
		}
	}
}

// backupsRestore: a success has made one backup; whatever is listed restores; what is left of others is named.
func backupsRestore(r *trial, o outcome) {
	r.t.Helper()
	var made []string
	for _, b := range r.list() {
		if b.Status != "" {
			r.errorf("backup %s is listed as %q", b.BackupName, b.Status)
		}
		if !slices.Contains(r.known, b.BackupName) {
			made = append(made, b.BackupName)
		}
	}
	if o.code == exitOK && (len(made) != 1 || !strings.Contains(o.stderr, "Wrote backup with name "+made[0])) {
		r.errorf("success was reported, and the new backups in the list are %v", made)
	}
	for _, name := range made {
		dir := r.target() + "-" + name
		if f := r.command(seams{}, r.environ, "backup-fetch", dir, name); f.code != exitOK {
			r.errorf("backup %s is listed and cannot be restored: exit code %d\n%s", name, f.code, f.stderr)
			continue
		}
		r.checkRestored(dir)
		if err := os.RemoveAll(dir); err != nil {
			r.t.Fatal(err)
		}
	}
	r.known = append(r.known, made...)
	for _, key := range keysIn(r.t, r.store, "basebackups_005/") {
		folder, _, inside := strings.Cut(strings.TrimPrefix(key, "basebackups_005/"), "/")
		if inside && !slices.Contains(r.known, folder) && !strings.Contains(o.stderr, folder) {
			r.errorf("%s is left of a backup that the message does not name", key)
		}
	}
}

// serverStartsFromBackup is the proof that a directory which compares equal, as checkRestored compares it, is a cluster.
func (s *sweep) serverStartsFromBackup(t *testing.T, j sweepJob) {
	t.Helper()
	r := s.onFiles(t, j)
	defer r.end()
	for _, args := range [][]string{j.args(r), {"backup-fetch", r.target(), "LATEST"}} {
		if o := r.command(seams{retried: r.archiving}, r.environ, args...); o.code != exitOK {
			t.Fatalf("%v: exit code %d\n%s", args, o.code, o.stderr)
		}
	}
	if err := os.WriteFile(filepath.Join(r.target(), "recovery.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	restored := testenv.OpenPostgres(t, r.target(), testenv.PostgresOptions{Settings: map[string]string{
		"restore_command": "cp " + s.kept + "/%f %p", "archive_mode": "off",
	}})
	const digest = "SELECT count(*), md5(string_agg(id || note, ',' ORDER BY id)) FROM journal"
	if got, want := restored.Query(t, digest), s.postgres.Query(t, digest); got != want {
		t.Errorf("the restored server has %s, the server %s", got, want)
	}
	restored.Stop("immediate")
}

// archiving wraps the storage of a backup-push: before it is asked for WAL, everything that the server has archived is in it. So
// the number of calls does not depend on how fast the server archives.
func (r *trial) archiving(s storage.Store) storage.Store {
	if !r.job.server {
		return s
	}
	return &archivingStore{s, r}
}

type archivingStore struct {
	storage.Store
	r *trial
}

func (s *archivingStore) Stat(ctx context.Context, key string) (storage.Object, error) {
	if strings.HasPrefix(key, "wal_005/") {
		if err := s.r.outside(s.r.archiveSpool); err != nil {
			return storage.Object{}, fmt.Errorf("the server's WAL cannot be archived: %w", err)
		}
	}
	return s.Store.Stat(ctx, key)
}

func (r *trial) archiveSpool() error {
	return r.takeSpool(func(path string) error {
		if o := r.command(seams{}, r.environ, "wal-push", path); o.code != exitOK {
			return errors.New(o.stderr)
		}
		return nil
	})
}

// outside runs f outside of the bubble that the caller may be in: the server's time is the real one.
func (r *trial) outside(f func() error) error {
	r.asking.Lock()
	defer r.asking.Unlock()
	r.asked <- f
	return <-r.answered
}

// takeSpool waits until the server has archived all its finished WAL, hands it to take, and keeps it.
func (r *trial) takeSpool(take func(path string) error) error {
	const limit = 2 * time.Minute
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		ready, err := filepath.Glob(filepath.Join(r.postgres.DataDir, "pg_wal", "archive_status", "*.ready"))
		if err != nil {
			return err
		}
		if len(ready) == 0 {
			break
		}
		if time.Since(began) > limit {
			return fmt.Errorf("the server has not archived %v within %s", ready, limit)
		}
	}
	entries, err := os.ReadDir(r.spool)
	if err != nil {
		return err
	}
	for _, e := range entries {
		from := filepath.Join(r.spool, e.Name())
		if err := errors.Join(take(from), os.Rename(from, filepath.Join(r.kept, e.Name()))); err != nil {
			return err
		}
	}
	return nil
}

// readNames yields the names of the files below dir.
func readNames(t *testing.T, dir string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			names[strings.TrimPrefix(name, dir+"/")] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// namesIn returns the names of a directory's entries, none if it does not exist.
func namesIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// readTree describes the files of a data directory that a restore must bring back as they were: not those that the server makes
// anew at its start, nor those that differ in each backup (PostgreSQL documentation, "Making a Base Backup Using the Low Level API").
func readTree(t *testing.T, dir string) map[string]string {
	t.Helper()
	emptied := []string{"pg_wal", "pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"}
	apart := []string{"backup_label", "tablespace_map", pgdata.ControlName, "postmaster.pid", "postmaster.opts"}
	tree := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name = strings.TrimPrefix(strings.TrimPrefix(name, dir), "/")
		switch {
		case slices.Contains(apart, name), e.Name() == "pg_internal.init":
			return nil
		case slices.Contains(emptied, name):
			tree[name] = "directory"
			return fs.SkipDir
		case e.IsDir():
			tree[name] = "directory"
			return nil
		}
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		defer f.Close()
		sum := sha256.New()
		n, err := io.Copy(sum, f)
		tree[name] = fmt.Sprintf("%d bytes, SHA-256 %x", n, sum.Sum(nil))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func sameFile(t *testing.T, a, b string) bool {
	t.Helper()
	x, errX := os.ReadFile(a)
	y, errY := os.ReadFile(b)
	if err := errors.Join(errX, errY); err != nil {
		t.Error(err)
		return false
	}
	return bytes.Equal(x, y)
}
