package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// killing is a cluster, its archive, and the chance that chooses when walden dies.
type killing struct {
	*site
	p      *testenv.Postgres
	group  string // of the figures
	chance *rand.Rand
}

// TestKill ends every command with SIGKILL at moments that chance spreads over its usual duration, and checks after each
// that nothing looks complete that is not, and that the same command run again succeeds.
func TestKill(t *testing.T) {
	t.Parallel()
	for name, install := range map[string]func(*testing.T, ...string) *site{"files": newSite, "S3": newS3Site} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Parts of 5 MiB, so that the tars of a small cluster are multipart uploads.
			s := install(t, "S3_MAX_PART_SIZE=5MiB", "WALDEN_LOG_FORMAT=text")
			s.raced = s.plain // the race detector would make the start the longest part of every command
			k := &killing{site: s, group: "moments killed, " + name, chance: testenv.Rand(t)}
			k.p = testenv.StartPostgres(t, testenv.PostgresOptions{Settings: s.archiving("max_wal_size=2GB")})
			k.p.Exec(t, "CREATE TABLE solid AS SELECT g AS id, gen_random_uuid() AS note FROM generate_series(1, 200000) AS g",
				"CREATE TABLE journal(id bigserial PRIMARY KEY, note text, at timestamptz DEFAULT now())")
			t.Run("backup-push", func(t *testing.T) { k.backupPush(t) })
			t.Run("backup-fetch", k.backupFetch)
			t.Run("backup-list", k.backupList)
			t.Run("wal-push", k.walPush)
			t.Run("wal-fetch", k.walFetch)
			t.Run("backup-push of a delta", func(t *testing.T) { k.backupPush(t, "--walg-delta-max-steps=5", "--walg-use-wal-delta=true") })
		})
	}
}

// kill runs a command and ends it with its process group at the moment given; hit tells that it was at work still.
func (k *killing) kill(t *testing.T, dir string, moment time.Duration, args ...string) (hit bool, r *process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	r = &process{site: k.site, cmd: k.command(ctx, k.p, args...), ended: make(chan struct{})}
	if r.cmd.SysProcAttr == nil {
		r.cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	r.cmd.SysProcAttr.Setpgid = true
	r.cmd.Dir = dir
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	timer := time.NewTimer(moment)
	defer timer.Stop()
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = r.cmd.Wait() // the state is read from cmd.ProcessState once ended is closed
		close(r.ended)
	}()
	select {
	case <-r.ended:
	case <-timer.C:
		if err := syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
		<-r.ended
	}
	status, ok := r.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok {
		t.Fatal("no wait status")
	}
	if hit = status.Signaled() && status.Signal() == syscall.SIGKILL; !hit {
		r.wait(t).expect(t, 0)
	}
	return hit, r
}

// moments runs a command again and again, kills it, and lets check look at what is left, until it was hit as often as it is
// to be. usual is the duration of a run that nobody ends.
func (k *killing) moments(t *testing.T, usual []time.Duration, command func(t *testing.T) (dir string, args []string),
	check func(t *testing.T, n int, r *process),
) {
	t.Helper()
	name := strings.ReplaceAll(filepath.Base(t.Name()), "_", " ")
	hits, missed, wanted := 0, 0, testenv.Pick(2, 100)
	for hits < wanted && missed < 3*wanted && !t.Failed() {
		t.Run("moment", func(t *testing.T) {
			dir, args := command(t)
			moment := time.Duration(k.chance.Int64N(int64(median(usual))))
			began := time.Now()
			hit, r := k.kill(t, dir, moment, args...)
			if hit {
				hits++
			} else { // the machine has become faster
				missed++
				usual = append(usual[1:], time.Since(began))
			}
			check(t, hits, r)
			if t.Failed() {
				t.Logf("%s, killed after %s of about %s (hit: %v)\n%s", strings.Join(args, " "), moment, median(usual), hit, r.stderr.String())
			}
		})
	}
	t.Logf("%s takes %s", name, median(usual))
	if hits == 0 {
		t.Error("no kill hit a running process")
	}
	testenv.Figure(t, k.group, name, hits)
	testenv.Figure(t, "ended before its kill (not counted as killed)", name, missed)
}

// took measures whole runs of a command.
func (k *killing) took(t *testing.T, command func(t *testing.T) (dir string, args []string)) (each []time.Duration) {
	t.Helper()
	for range 3 {
		t.Run("whole", func(t *testing.T) {
			dir, args := command(t)
			began := time.Now()
			k.waldenIn(dir, k.p, args...).expect(t, 0)
			each = append(each, time.Since(began))
		})
	}
	if len(each) == 0 {
		t.FailNow()
	}
	return each
}

func median(of []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(of))[len(of)/2]
}

// solid is the part of the cluster that never changes.
const solid = "SELECT count(*), md5(string_agg(note::text, '' ORDER BY id)) FROM solid"

func (k *killing) backupPush(t *testing.T, flags ...string) {
	args := append([]string{"backup-push", k.p.DataDir}, flags...)
	want := k.p.Query(t, solid)
	push := func(t *testing.T) (string, []string) {
		k.p.Exec(t, "TRUNCATE journal")
		startLoad(t, k.p)
		return k.dir, args
	}
	usual := k.took(t, push)
	known := map[string]bool{}
	unknown := func(t *testing.T) (names []string) {
		for _, l := range k.listings() {
			if !known[l.Name] {
				names = append(names, l.Name)
			}
			if l.Status != "" {
				t.Errorf("%s is listed with status %q", l.Name, l.Status)
			}
			known[l.Name] = true
		}
		return names
	}
	unknown(t)
	k.moments(t, usual, push, func(t *testing.T, n int, r *process) {
		k.p.WaitFor(t, noSessions, "0", time.Minute)
		temporaries, uploads := k.unfinished(t, "basebackups_005/")
		testenv.Figure(t, "left behind by kill -9", "hidden temporary files", temporaries)
		testenv.Figure(t, "left behind by kill -9", "multipart uploads", uploads)
		began := beginning.FindStringSubmatch(r.stderr.String())
		fresh := unknown(t)
		for _, name := range fresh { // the sentinel came first: then it is a backup like any other
			k.recovers(t, name, want)
		}
		if r.cmd.ProcessState.ExitCode() != 0 {
			testenv.Figure(t, "where backup-push was when it was killed", k.phase(t, began, fresh), 1)
		}
		if len(fresh) > 1 || began != nil && len(fresh) == 1 && fresh[0] != began[1] {
			t.Errorf("newly listed: %v, begun: %v", fresh, began)
		}
		second := k.must(k.p, args...)
		again := unknown(t)
		if len(again) != 1 {
			t.Fatalf("the second run added %v to the list", again)
		}
		if n%25 == 3 {
			k.recovers(t, again[0], want)
		}
		// What the killed run has left is named, and may be removed as the documentation says.
		for folder := range k.folders(t) {
			if known[folder] {
				continue
			}
			if !strings.Contains(second.stderr, "unfinished backup") || !strings.Contains(second.stderr, folder) {
				t.Errorf("%s is not named by the next backup-push:\n%s", folder, second.stderr)
			}
			k.remove(t, func(key string) bool { return strings.HasPrefix(key, "basebackups_005/"+folder+"/") })
		}
	})
}

// phase tells how far a killed backup-push had come, by what it had stored.
func (k *killing) phase(t *testing.T, began, listed []string) string {
	t.Helper()
	if len(listed) > 0 {
		return "after it had stored the sentinel"
	}
	if began == nil {
		return "before the first part"
	}
	stored := k.objects(t)
	has := func(name string) bool { _, ok := stored["basebackups_005/"+began[1]+"/"+name]; return ok }
	switch {
	case has("walden_manifest.json"), has("files_metadata.json"):
		return "storing the documents"
	case has("tar_partitions/backup_label.tar.lz4"):
		return "waiting for WAL, out of backup mode"
	}
	return "copying"
}

// recovers restores a backup and starts a server on it.
func (k *killing) recovers(t *testing.T, name, want string) {
	t.Helper()
	dir := filepath.Join(testenv.Scratch(t), "restored")
	k.must(nil, "backup-fetch", dir, name)
	touch(t, filepath.Join(dir, "recovery.signal"))
	own(t, filepath.Join(dir, "recovery.signal"))
	r := testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Settings: k.restoreSettings("recovery_target=immediate", "recovery_target_action=promote")})
	if got := r.Query(t, solid); got != want {
		t.Errorf("%s was restored to %s, it was %s", name, got, want)
	}
	tool(t, r, "pg_amcheck", "--heapallindexed", "--install-missing", "postgres")
	r.Stop("immediate")
	testenv.Figure(t, "backups restored and started after a kill", "backup-push", 1)
}

func (k *killing) backupFetch(t *testing.T) {
	fetch := func(t *testing.T) (string, []string) {
		return k.dir, []string{"backup-fetch", filepath.Join(testenv.Scratch(t), "data"), "LATEST"}
	}
	if len(k.listings()) == 0 { // this part runs alone
		k.must(k.p, "backup-push", k.p.DataDir)
	}
	whole := filepath.Join(testenv.Scratch(t), "whole")
	k.must(nil, "backup-fetch", whole, "LATEST")
	want := contentsOf(t, whole, nil)
	k.moments(t, k.took(t, fetch), fetch, func(t *testing.T, n int, r *process) {
		dir := r.cmd.Args[len(r.cmd.Args)-2]
		const mark = "walden_restore.json"
		got := map[string]string{}
		if _, err := os.Stat(dir); err == nil {
			got = contentsOf(t, dir, nil)
		}
		_, complete := got["global/pg_control"]
		if _, marked := got[mark]; complete {
			// Started as it is, refused as a target, and equal to any other restore.
			sameTree(t, without(got, mark), want)
			k.fails(nil, 1, []string{"is not empty"}, "backup-fetch", dir, "LATEST")
			sameTree(t, contentsOf(t, dir, nil), got)
			testenv.Figure(t, "what a killed backup-fetch left", "a complete directory", 1)
			return
		} else if !marked && len(got) > 1 {
			t.Errorf("an unfinished restore without its mark: %v", slices.Sorted(maps.Keys(got)))
		}
		state := "an unfinished directory"
		if len(got) <= 1 {
			state = "nothing or an empty directory"
		}
		testenv.Figure(t, "what a killed backup-fetch left", state, 1)
		if len(got) > 1 && n%20 == 1 {
			refusesToStart(t, dir)
		}
		k.must(nil, "backup-fetch", dir, "LATEST")
		sameTree(t, contentsOf(t, dir, nil), want)
	})
}

// refusesToStart proves that PostgreSQL does not take an unfinished restore for a cluster.
func refusesToStart(t *testing.T, dir string) {
	t.Helper()
	copied := filepath.Join(testenv.Scratch(t), "copied") // a server that fails may write all the same
	if out, err := exec.Command("cp", "-a", dir, copied).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	if err := testenv.AttachPostgres(t, copied, testenv.PostgresOptions{Major: 15}).TryStart(); err == nil {
		t.Error("PostgreSQL started on an unfinished restore")
	}
	testenv.Figure(t, "unfinished restores on which PostgreSQL refused to start", "backup-fetch", 1)
}

func (k *killing) backupList(t *testing.T) {
	list := func(*testing.T) (string, []string) { return k.dir, []string{"backup-list", "--detail", "--json"} }
	want := k.must(nil, "backup-list", "--detail", "--json").stdout
	before := k.objects(t)
	k.moments(t, k.took(t, list), list, func(t *testing.T, _ int, r *process) {
		if got := r.stdout.String(); got != "" && got != want {
			t.Errorf("a killed backup-list printed %q, want all or nothing", got)
		}
		if !maps.Equal(k.objects(t), before) {
			t.Error("backup-list has changed the archive")
		}
		if got := k.must(nil, "backup-list", "--detail", "--json").stdout; got != want {
			t.Errorf("the list is %s, was %s", got, want)
		}
	})
}

// segment fetches a segment full of data into a directory that looks like pg_wal's.
func (k *killing) segment(t *testing.T) (dataDir, name string) {
	t.Helper()
	k.p.Exec(t, "TRUNCATE journal", "CHECKPOINT", "INSERT INTO journal(note) SELECT md5(random()::text) FROM generate_series(1, 200000)")
	name = k.p.Query(t, "SELECT pg_walfile_name(pg_current_wal_insert_lsn() - '16777216'::numeric)")
	k.archived(k.p)
	dataDir = filepath.Join(testenv.Scratch(t), "data")
	for _, dir := range []string{dataDir, filepath.Join(dataDir, "pg_wal")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		own(t, dir)
	}
	k.waldenIn(dataDir, nil, "wal-fetch", name, "pg_wal/"+name).expect(t, 0)
	return dataDir, name
}

func (k *killing) walPush(t *testing.T) {
	dir, name := k.segment(t)
	const folder = "elsewhere" // an archive of its own, which begins empty each time
	push := func(t *testing.T) (string, []string) {
		k.remove(t, func(key string) bool { return strings.HasPrefix(key, folder+"/") })
		return dir, []string{"--walg-s3-prefix", "s3://" + k.bucket + "/" + s3Prefix + "/" + folder, "wal-push", "pg_wal/" + name}
	}
	if k.archive != "" {
		push = func(t *testing.T) (string, []string) {
			k.remove(t, func(key string) bool { return strings.HasPrefix(key, folder+"/") })
			own(t, mkdir(t, filepath.Join(k.archive, folder)))
			return dir, []string{"--walg-file-prefix", filepath.Join(k.archive, folder), "wal-push", "pg_wal/" + name}
		}
	}
	want, err := os.ReadFile(filepath.Join(dir, "pg_wal", name))
	if err != nil {
		t.Fatal(err)
	}
	k.moments(t, k.took(t, push), push, func(t *testing.T, _ int, r *process) {
		there := slices.ContainsFunc(slices.Collect(maps.Keys(k.objects(t))), func(key string) bool {
			return strings.HasPrefix(key, folder+"/wal_005/"+name) && !temporary.MatchString(key)
		})
		temporaries, uploads := k.unfinished(t, folder+"/")
		testenv.Figure(t, "left behind by kill -9", "hidden temporary files", temporaries)
		testenv.Figure(t, "left behind by kill -9", "multipart uploads", uploads)
		args := r.cmd.Args[3:5] // the prefix
		fetched := func(t *testing.T) {
			t.Helper()
			dest := filepath.Join(dir, "pg_wal/RECOVERYXLOG")
			k.waldenIn(dir, nil, append(args, "wal-fetch", name, "pg_wal/RECOVERYXLOG")...).expect(t, 0)
			if got, err := os.ReadFile(dest); err != nil || string(got) != string(want) {
				t.Errorf("what was archived is not what was pushed: %d bytes, %v", len(got), err)
			}
			if err := os.Remove(dest); err != nil {
				t.Fatal(err)
			}
		}
		text := "archived"
		if there {
			fetched(t)
			text = "archived already with equal content"
			testenv.Figure(t, "what a killed wal-push left", "the whole segment", 1)
		} else {
			testenv.Figure(t, "what a killed wal-push left", "no segment", 1)
		}
		k.waldenIn(dir, nil, append(args, "wal-push", "pg_wal/"+name)...).expect(t, 0, text)
		fetched(t)
	})
}

func mkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (k *killing) walFetch(t *testing.T) {
	dir, name := k.segment(t)
	const dest = "pg_wal/RECOVERYXLOG"
	want, err := os.ReadFile(filepath.Join(dir, "pg_wal", name))
	if err != nil {
		t.Fatal(err)
	}
	touch(t, filepath.Join(dir, "recovery.signal"))
	path := filepath.Join(dir, dest)
	free := func(t *testing.T) { // as PostgreSQL does before each restore_command (RestoreArchivedFile in xlogarchive.c)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	fetch := func(t *testing.T) (string, []string) {
		free(t)
		return dir, []string{"wal-fetch", name, dest}
	}
	before := tree(t, dir)
	k.moments(t, k.took(t, fetch), fetch, func(t *testing.T, n int, _ *process) {
		got, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			testenv.Figure(t, "what a killed wal-fetch left", "nothing", 1)
		case err != nil || string(got) != string(want):
			t.Fatalf("the destination holds %d of %d bytes, %v", len(got), len(want), err)
		default:
			testenv.Figure(t, "what a killed wal-fetch left", "the whole segment", 1)
		}
		if n%2 == 0 {
			free(t)
		}
		k.waldenIn(dir, nil, "wal-fetch", name, dest).expect(t, 0)
		if got, err := os.ReadFile(path); err != nil || string(got) != string(want) {
			t.Errorf("the second run fetched %d of %d bytes, %v", len(got), len(want), err)
		}
		free(t)
		if after := tree(t, dir); !slices.Equal(after, before) {
			t.Errorf("left in the data directory:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
		}
	})
}

// temporary is the end of the names under which objects of a file archive are written (WAL-G's way, too).
var temporary = regexp.MustCompile(`\.tmp\.[0-9]{8}T[0-9]{6}Z-[0-9a-f]{16}$`)

// objects lists everything that the archive holds, by key.
func (s *site) objects(t *testing.T) map[string]int64 {
	t.Helper()
	found := map[string]int64{}
	if s.s3 == nil {
		for _, name := range files(t, s.archive) {
			if st, err := os.Stat(filepath.Join(s.archive, name)); err == nil {
				found[name] = st.Size()
			}
		}
		return found
	}
	pages := s3.NewListObjectsV2Paginator(s.s3.Client(), &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: aws.String(s3Prefix + "/")})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Contents {
			found[strings.TrimPrefix(*o.Key, s3Prefix+"/")] = *o.Size
		}
	}
	return found
}

// stored reads an object of the archive as it is.
func (s *site) stored(t *testing.T, key string) []byte {
	t.Helper()
	if s.gcs != nil {
		return s.gcs.Object(t, s.bucket, s3Prefix+"/"+key)
	}
	if s.s3 == nil {
		b, err := os.ReadFile(filepath.Join(s.archive, key))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	o, err := s.s3.Client().GetObject(t.Context(), &s3.GetObjectInput{Bucket: &s.bucket, Key: aws.String(s3Prefix + "/" + key)})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(o.Body)
	if err := errors.Join(err, o.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

// folders lists the folders of backups, finished or not.
func (s *site) folders(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for key := range s.objects(t) {
		if element := strings.Split(key, "/"); element[0] == "basebackups_005" && len(element) > 2 {
			found[element[1]] = true
		}
	}
	return found
}

// remove removes objects behind walden's back, and the uploads and temporaries that were never finished.
func (s *site) remove(t *testing.T, which func(key string) bool) {
	t.Helper()
	for key := range s.objects(t) {
		if !which(key) {
			continue
		}
		var err error
		if s.s3 == nil {
			err = os.Remove(filepath.Join(s.archive, key))
		} else {
			_, err = s.s3.Client().DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.bucket, Key: aws.String(s3Prefix + "/" + key)})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// unfinished finds below a folder what a killed walden could not remove, and removes it, so that it is counted once.
func (s *site) unfinished(t *testing.T, folder string) (temporaries, uploads int) {
	t.Helper()
	if s.s3 == nil {
		s.remove(t, func(key string) bool {
			found := strings.HasPrefix(key, folder) && temporary.MatchString(key)
			if found {
				temporaries++
			}
			return found
		})
		return temporaries, 0
	}
	out, err := s.s3.Client().ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{
		Bucket: &s.bucket, Prefix: aws.String(s3Prefix + "/" + folder),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range out.Uploads {
		if _, err := s.s3.Client().AbortMultipartUpload(t.Context(), &s3.AbortMultipartUploadInput{
			Bucket: &s.bucket, Key: u.Key, UploadId: u.UploadId,
		}); err != nil {
			t.Fatal(err)
		}
	}
	return 0, len(out.Uploads)
}
