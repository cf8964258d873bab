package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// recoveryLimit bounds what a recovering server may take for one step.
const recoveryLimit = 3 * time.Minute

// clusterKind is what a cluster was made with.
type clusterKind struct{ major, megabytes int }

func (k clusterKind) String() string {
	return fmt.Sprintf("PostgreSQL %d, segments of %d MiB", k.major, k.megabytes)
}

// quiet are the settings of a server that writes no WAL but that of its test.
var quiet = []string{
	"autovacuum=off", "checkpoint_timeout=1h", "bgwriter_lru_maxpages=0", "log_checkpoints=off", "wal_keep_size=0", "max_wal_size=16GB",
}

// primary starts a server that archives here and writes nothing of its own.
func (s *site) primary(k clusterKind, settings ...string) *testenv.Postgres {
	s.t.Helper()
	p := testenv.StartPostgres(s.t, testenv.PostgresOptions{
		Major: k.major, WALSegmentSize: k.megabytes, Settings: s.archiving(append(slices.Clone(quiet), settings...)...),
	})
	p.Exec(s.t, "CREATE TABLE journal(id bigserial PRIMARY KEY, note text)")
	return p
}

// fill writes rows that take some ten pages of WAL.
func fill(t *testing.T, p *testenv.Postgres, note string) {
	t.Helper()
	p.Exec(t, "INSERT INTO journal(note) SELECT '"+note+"' || md5(g::text) FROM generate_series(1, 500) AS g")
}

// fork copies the archive as it is now, for a case that damages it or adds to it, with a configuration of its own.
func (s *site) fork(t *testing.T, settings ...string) *site {
	t.Helper()
	dir := testenv.Scratch(t)
	f := &site{t: t, dir: dir, binaries: s.binaries, config: filepath.Join(dir, "walden.yaml"), archive: filepath.Join(dir, "archive")}
	copyTree(t, s.archive, f.archive)
	f.configure(append([]string{"WALG_FILE_PREFIX=" + f.archive}, settings...)...)
	return f
}

// copyTree copies a directory with owners and modes.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	external(t, nil, "cp", "-a", "--reflink=auto", from, to)
}

// restoredCopy copies a restored data directory, which saves restoring it again, and asks for what the signal file says.
func restoredCopy(t *testing.T, restored, signal string) string {
	t.Helper()
	dir := filepath.Join(testenv.Scratch(t), "restored")
	copyTree(t, restored, dir)
	if err := os.Remove(filepath.Join(dir, "recovery.signal")); err != nil {
		t.Fatal(err)
	}
	touch(t, filepath.Join(dir, signal))
	return dir
}

func (s *site) object(name string) string { return filepath.Join(s.archive, "wal_005", name) }

// put archives raw bytes under an object's name.
func put(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", b, 0o640); err != nil {
		t.Fatal(err)
	}
	own(t, path+".new")
	move(t, path+".new", path)
}

func move(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// newLog is what the server has logged from a position on.
func newLog(t *testing.T, p *testenv.Postgres, from int64) string {
	t.Helper()
	b, err := os.ReadFile(p.LogFile)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b[min(from, int64(len(b))):])
}

func logSize(p *testenv.Postgres) int64 {
	info, err := os.Stat(p.LogFile)
	if err != nil {
		return 0
	}
	return info.Size()
}

// awaitLog waits until the server has logged a text since from.
func awaitLog(t *testing.T, p *testenv.Postgres, from int64, text string) {
	t.Helper()
	deadline := time.After(recoveryLimit)
	for !strings.Contains(newLog(t, p, from), text) {
		select {
		case <-deadline:
			t.Fatalf("the server has not logged %q within %s:\n%s", text, recoveryLimit, p.LogTail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// fault is one thing that can be wrong with an archive while recovery reads it.
type fault struct {
	name  string
	says  string // what wal-fetch says in the server's log
	where place
	begin func(t *testing.T, c *ruin) // breaks the archive; c.repair takes it back
}

// place is what a fault lies in.
type place int

const (
	inStorage place = iota // whatever is asked for
	inSegment              // one segment
	inGap                  // one segment, and only later ones tell
	inHistory              // 00000002.history, which the cluster does not have
)

// ruin is an archive that a fault is put into.
type ruin struct {
	*site
	segment string                   // that is damaged
	raw     func(name string) []byte // what segments hold
	other   string                   // another segment
	size    int                      // of a segment
	undo    []func()
}

func (c *ruin) later(f func()) { c.undo = append(c.undo, f) }

func (c *ruin) repair() {
	slices.Reverse(c.undo)
	for _, f := range c.undo {
		f()
	}
	c.undo = nil
}

// without takes an object of the archive away.
func (c *ruin) without(t *testing.T, path string) {
	t.Helper()
	away := filepath.Join(c.dir, "away-"+filepath.Base(path))
	move(t, path, away)
	c.later(func() { move(t, away, path) })
}

// with puts an object there.
func (c *ruin) with(t *testing.T, name string, b []byte) {
	t.Helper()
	put(t, c.object(name), b)
	c.later(func() {
		if err := os.RemoveAll(c.object(name)); err != nil {
			t.Fatal(err)
		}
	})
}

// replace puts an object of another name and content in the damaged segment's place.
func (c *ruin) replace(t *testing.T, name string, b []byte) {
	t.Helper()
	c.without(t, c.object(c.segment+".lz4"))
	c.with(t, name, b)
}

// locked takes the rights to a file or directory away.
func (c *ruin) locked(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err == nil {
		err = os.Chmod(path, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.later(func() {
		if err := os.Chmod(path, info.Mode()); err != nil {
			t.Fatal(err)
		}
	})
}

// emptied puts an empty directory in a directory's place, as below a file system that is not mounted.
func (c *ruin) emptied(t *testing.T, path string) {
	t.Helper()
	c.without(t, path)
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, path)
	c.later(func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	})
}

// reconfigured uses other settings for a while.
func (c *ruin) reconfigured(t *testing.T, settings ...string) {
	t.Helper()
	good := c.config + ".good"
	move(t, c.config, good)
	c.configure(settings...)
	c.later(func() { move(t, good, c.config) })
}

// onS3 are the settings of an archive on an S3 server, with wrong credentials.
func onS3(endpoint string) []string {
	return withBucket("bucket", testenv.S3Server{Endpoint: endpoint, AccessKey: "testaccess", SecretKey: "wrong"})
}

func withBucket(bucket string, s testenv.S3Server) []string {
	return []string{
		"WALG_S3_PREFIX=s3://" + bucket + "/main", "AWS_ENDPOINT=" + s.Endpoint, "AWS_REGION=us-east-1", "AWS_S3_FORCE_PATH_STYLE=true",
		"AWS_ACCESS_KEY_ID=" + s.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s.SecretKey, "S3_MAX_RETRIES=1", "WALDEN_WAL_TIMEOUT=4s",
	}
}

// answering uses a server that answers every request alike, or not at all if code is 0.
func (c *ruin) answering(t *testing.T, code int, body string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if code == 0 {
			<-r.Context().Done()
			return
		}
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body)) // the client may have gone
	}))
	c.later(func() { server.CloseClientConnections(); server.Close() })
	c.reconfigured(t, onS3(server.URL)...)
}

// unseen changes the archive while the server, a standby that asks for one file after the other, cannot see it.
func (s *site) unseen(t *testing.T, server *testenv.Postgres, change func()) {
	t.Helper()
	hidden := s.config + ".hidden"
	from := logSize(server)
	move(t, s.config, hidden)
	awaitLog(t, server, from, "cannot use the settings")
	change()
	move(t, hidden, s.config)
}

// edited is the damaged segment with a change to its content.
func edited(change func(b []byte, c *ruin) []byte) func(*testing.T, *ruin) {
	return func(t *testing.T, c *ruin) {
		t.Helper()
		c.replace(t, c.segment, change(bytes.Clone(c.raw(c.segment)), c))
	}
}

// packed is the damaged segment's object with a change to its stored bytes.
func packed(ext string, change func(b []byte, c *ruin) []byte) func(*testing.T, *ruin) {
	return func(t *testing.T, c *ruin) {
		t.Helper()
		b, err := os.ReadFile(c.object(c.segment + ".lz4"))
		if err != nil {
			t.Fatal(err)
		}
		c.replace(t, c.segment+ext, change(b, c))
	}
}

func badHistory(text string) func(*testing.T, *ruin) {
	return func(t *testing.T, c *ruin) {
		t.Helper()
		c.with(t, "00000002.history", []byte(text))
	}
}

// lastRecordByte is the last byte of a segment that is not zero: where the log in it ends, if it was closed early.
func lastRecordByte(b []byte) int {
	return len(bytes.TrimRight(b, "\x00"))
}

// faults are all of them. says is nothing but what makes an operator understand.
func faults(s3 *testenv.S3Server) []fault {
	le := binary.LittleEndian
	const (
		kept  = "the archived file is damaged"
		empty = "holds no archive at all"
	)
	return []fault{
		{"the archive's directory is gone", "cannot open the storage's directory", inStorage,
			func(t *testing.T, c *ruin) { c.without(t, c.archive) }},
		{"the archive is an empty mount point", empty, inStorage, func(t *testing.T, c *ruin) { c.emptied(t, c.archive) }},
		{"the folder of the WAL is an empty mount point", "holds no WAL at all", inStorage,
			func(t *testing.T, c *ruin) { c.emptied(t, filepath.Join(c.archive, "wal_005")) }},
		{"the folder of the WAL is gone", "holds no WAL at all", inStorage,
			func(t *testing.T, c *ruin) { c.without(t, filepath.Join(c.archive, "wal_005")) }},
		{"the archive's directory is locked", "permission denied", inStorage, func(t *testing.T, c *ruin) { c.locked(t, c.archive) }},
		{"the folder of the WAL is locked", "permission denied", inStorage,
			func(t *testing.T, c *ruin) { c.locked(t, filepath.Join(c.archive, "wal_005")) }},
		{"the prefix is another folder", empty, inStorage, func(t *testing.T, c *ruin) {
			c.reconfigured(t, "WALG_FILE_PREFIX="+c.archive, "WALG_STORAGE_PREFIX=typo")
		}},
		{"the configuration is locked", "permission denied", inStorage, func(t *testing.T, c *ruin) { c.locked(t, c.config) }},
		{"no storage is set", "no storage is set", inStorage, func(t *testing.T, c *ruin) { c.reconfigured(t) }},
		{"the port of the storage is closed", "connection refused", inStorage,
			func(t *testing.T, c *ruin) { c.reconfigured(t, onS3("http://127.0.0.1:1")...) }},
		{"the storage hangs", "took longer than 4s", inStorage, func(t *testing.T, c *ruin) { c.answering(t, 0, "") }},
		{"the storage answers 503", "503", inStorage,
			func(t *testing.T, c *ruin) {
				c.answering(t, 503, "<Error><Code>SlowDown</Code><Message>later</Message></Error>")
			}},
		{"the storage answers 403", "access denied", inStorage, func(t *testing.T, c *ruin) { c.answering(t, 403, "") }},
		{"a proxy knows nothing", "cannot tell whether", inStorage, func(t *testing.T, c *ruin) { c.answering(t, 404, "<html>not found</html>") }},
		{"a proxy answers everything with its page", "cannot", inStorage,
			func(t *testing.T, c *ruin) { c.answering(t, 200, "<html>welcome</html>") }},
		{"the credentials are wrong", "does not accept the", inStorage, func(t *testing.T, c *ruin) { c.reconfigured(t, onS3(s3.Endpoint)...) }},
		{"the bucket is missing", "does not exist", inStorage, func(t *testing.T, c *ruin) {
			c.reconfigured(t, withBucket("nobodys", *s3)...)
		}},
		{"the bucket is empty", empty, inStorage, func(t *testing.T, c *ruin) {
			c.reconfigured(t, withBucket(s3.NewBucket(t), *s3)...)
		}},

		{"bytes of the object are changed", "damaged", inSegment, packed(".lz4", func(b []byte, _ *ruin) []byte { spoil(b); return b })},
		{"the object is cut off", "damaged", inSegment, packed(".lz4", func(b []byte, _ *ruin) []byte { return b[:len(b)/2] })},
		{"the object has lost its last byte", "damaged", inSegment, packed(".lz4", func(b []byte, _ *ruin) []byte { return b[:len(b)-1] })},
		{"the object is empty", "damaged", inSegment, packed(".lz4", func([]byte, *ruin) []byte { return nil })},
		{"the object is a web page", "damaged", inSegment, packed(".lz4", func([]byte, *ruin) []byte { return []byte("<html>503</html>") })},
		{"the object is of another codec", "damaged", inSegment, packed(".zst", func(b []byte, _ *ruin) []byte { return b })},
		{"the object is not compressed as it says", "damaged", inSegment, packed(".lz4", func(_ []byte, c *ruin) []byte { return c.raw(c.segment) })},
		{"the object is locked", "permission denied", inSegment, func(t *testing.T, c *ruin) { c.locked(t, c.object(c.segment+".lz4")) }},
		{"the object is a directory", "cannot", inSegment, func(t *testing.T, c *ruin) { c.emptied(t, c.object(c.segment+".lz4")) }},
		{"the object is a compression bomb", "has more than", inSegment, func(t *testing.T, c *ruin) {
			bomb := append(bytes.Clone(c.raw(c.segment)), make([]byte, 64<<20)...)
			c.replace(t, c.segment+".zst", external(t, bomb, "zstd", "-c", "-1"))
		}},

		{"a segment of another version", kept, inSegment, edited(func(b []byte, _ *ruin) []byte {
			magic := uint16(0xD110)
			if le.Uint16(b) == magic {
				magic = 0xD113
			}
			le.PutUint16(b, magic)
			return b
		})},
		{"a segment with an unknown magic number", kept, inSegment, edited(func(b []byte, _ *ruin) []byte { b[0] ^= 0x80; return b })},
		{"a segment with a magic number of nothing", kept, inSegment, edited(func(b []byte, _ *ruin) []byte { b[1] ^= 0x40; return b })},
		{"a segment of another cluster", "archive is of another cluster", inSegment, edited(func(b []byte, _ *ruin) []byte { b[24] ^= 1; return b })},
		{"the content of another segment", kept, inSegment, edited(func(_ []byte, c *ruin) []byte { return c.raw(c.other) })},
		{"a segment of a later timeline", kept, inSegment, edited(func(b []byte, _ *ruin) []byte { le.PutUint32(b[4:], 2); return b })},
		{"a segment of twice the size", "archive is of another cluster", inSegment, edited(func(b []byte, c *ruin) []byte {
			le.PutUint32(b[32:], uint32(2*c.size))
			le.PutUint64(b[8:], le.Uint64(b[8:])&^uint64(2*c.size-1))
			return append(b, make([]byte, c.size)...)
		})},
		{"half a segment", kept, inSegment, edited(func(b []byte, _ *ruin) []byte { return b[:len(b)/2] })},
		{"less than a header", kept, inSegment, edited(func(b []byte, _ *ruin) []byte { return b[:20] })},
		{"no byte of a segment", kept, inSegment, edited(func([]byte, *ruin) []byte { return nil })},
		{"a page more than a segment", kept, inSegment, edited(func(b []byte, _ *ruin) []byte { return append(b, make([]byte, 8192)...) })},
		{"zeros", kept, inSegment, edited(func(b []byte, _ *ruin) []byte { clear(b); return b })},
		{"random bytes", kept, inSegment, edited(func(b []byte, _ *ruin) []byte {
			for i := range b {
				b[i] = byte(i*i>>3) | 1
			}
			return b
		})},
		{"a bit of a record is flipped", kept, inSegment, edited(func(b []byte, _ *ruin) []byte {
			at := lastRecordByte(b) / 2
			for b[at] == 0 { // between two records, where nothing is read
				at--
			}
			b[at] ^= 1
			return b
		})},
		{"a page of zeros in the middle", kept, inSegment, edited(func(b []byte, _ *ruin) []byte {
			page := lastRecordByte(b) / 2 &^ 8191
			clear(b[page : page+8192])
			return b
		})},
		{"a page of the file's former use in the middle", kept, inSegment, edited(func(b []byte, _ *ruin) []byte {
			page := lastRecordByte(b) / 2 &^ 8191
			le.PutUint64(b[page+8:], le.Uint64(b[page+8:])-uint64(len(b)))
			return b
		})},
		{"a page of another place in the middle", kept, inSegment, edited(func(b []byte, _ *ruin) []byte {
			page := lastRecordByte(b) / 2 &^ 8191
			copy(b[page:], b[page+8192:page+2*8192])
			return b
		})},

		{"zeros from the middle on, and later segments", "the log ends inside of the segment", inGap, edited(func(b []byte, _ *ruin) []byte {
			clear(b[lastRecordByte(b)/2&^8191:])
			return b
		})},
		{"a segment is not there", "the archive has a gap", inGap, func(t *testing.T, c *ruin) { c.without(t, c.object(c.segment+".lz4")) }},
		{"only a partial one is there", "the archive has a gap", inGap, func(t *testing.T, c *ruin) {
			move(t, c.object(c.segment+".lz4"), c.object(c.segment+".partial.lz4"))
			c.later(func() { move(t, c.object(c.segment+".partial.lz4"), c.object(c.segment+".lz4")) })
		}},

		{"a history that is a web page", kept, inHistory, badHistory("<html>")},
		{"a history of two MiB", "has more than", inHistory, badHistory(strings.Repeat("# \n", 1<<20))},
		{"an empty history", kept, inHistory, badHistory("")},
		{"a history of its own child", kept, inHistory, badHistory("1\t0/1000000\tx\n3\t0/2000000\ty\n")},
		{"a history that does not ascend", kept, inHistory, badHistory("1\t0/1000000\tx\n1\t0/2000000\ty\n")},
		{"a history that cannot be decompressed", "damaged", inHistory,
			func(t *testing.T, c *ruin) { c.with(t, "00000002.history.lz4", []byte("<html>")) }},
		{"a history is not there, but its segments are", "the archive has a gap", inHistory, func(t *testing.T, c *ruin) {
			c.with(t, "00000002"+c.segment[8:], c.raw(c.segment))
		}},
	}
}

// recoverable is a cluster with a backup and an archive that outlived it.
type recoverable struct {
	*site
	kind     clusterKind
	restored string            // the restored backup
	segments []string          // archived after it, one per line of counts
	counts   []string          // rows that there are at the end of each segment
	want     string            // digest of all
	packed   map[string][]byte // as archived: those of sixteen megabytes that all clusters have would fill the memory otherwise
}

// raw is what a segment holds.
func (r *recoverable) raw(t *testing.T, name string) []byte {
	return external(t, r.packed[name], "lz4", "-dc")
}

// newRecoverable writes n segments behind a backup: all are closed early, except two of bulk that are full.
func newRecoverable(t *testing.T, k clusterKind, n int) *recoverable {
	t.Helper()
	r := &recoverable{site: newSite(t).quick(), kind: k, packed: map[string][]byte{}}
	p := r.primary(k)
	r.must(p, "backup-push", p.DataDir)
	for i := range n {
		fill(t, p, fmt.Sprintf("segment %d ", i))
		if i == 2 {
			p.Exec(t, fmt.Sprintf("INSERT INTO journal(note) SELECT repeat(md5(g::text), 8) FROM generate_series(1, %d) AS g", 9000*k.megabytes))
		}
		r.counts = append(r.counts, p.Query(t, "SELECT count(*) FROM journal"))
		r.segments = append(r.segments, p.SwitchWAL(t))
	}
	p.WaitFor(t, "SELECT last_archived_wal FROM pg_stat_archiver", r.segments[n-1], recoveryLimit)
	r.want = p.Query(t, digest)
	p.Stop("immediate")
	r.restored = r.fetch("LATEST")
	for _, name := range r.segments {
		r.packed[name] = r.packedContent(t, name)
	}
	return r
}

// packedContent is an archived segment as it is stored.
func (s *site) packedContent(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(s.object(name + ".lz4"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// share returns the faults that one of several clusters meets: all, or in a sample its part of them.
func share[T any](all []T, i, n int) []T {
	if testenv.Full() {
		return all
	}
	var part []T
	for j, x := range all {
		if j%n == i {
			part = append(part, x)
		}
	}
	return part
}

// recoveryKinds are the clusters of a test: in the sample those of the versions given with small segments, in full every version
// with small and usual ones.
func recoveryKinds(sample ...int) []clusterKind {
	var kinds []clusterKind
	if !testenv.Full() {
		for _, major := range testenv.Majors(sample...) {
			kinds = append(kinds, clusterKind{major, 1})
		}
		return kinds
	}
	for _, major := range testenv.Majors(13, 14, 15, 16, 17, 18) {
		kinds = append(kinds, clusterKind{major, 1}, clusterKind{major, 16})
	}
	return kinds
}

func TestRecoveryNeverEndsAtAFaultOfTheArchive(t *testing.T) {
	t.Parallel()
	s3 := testenv.StartS3(t)
	all := faults(s3)
	kinds := recoveryKinds(13, 15, 18)
	for i, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			mine := share(all, i, len(kinds))
			base := newRecoverable(t, kind, len(mine)+4)
			t.Run("archive recovery", func(t *testing.T) {
				t.Parallel()
				base.archiveRecovery(t, mine)
			})
			t.Run("standby", func(t *testing.T) {
				t.Parallel()
				base.standby(t, mine)
			})
		})
	}
}

// archiveRecovery starts one server again and again on an archive with one fault after the other: it must never come up.
func (r *recoverable) archiveRecovery(t *testing.T, faults []fault) {
	t.Helper()
	s := r.fork(t, "WALDEN_WAL_TIMEOUT=20s") // what may pass is tried again for so long
	dir := restoredCopy(t, r.restored, "recovery.signal")
	server := testenv.AttachPostgres(t, dir, testenv.PostgresOptions{Settings: s.restoreSettings("hot_standby=off", "archive_cleanup_command=")})
	c := &ruin{site: s, segment: r.segments[2], other: r.segments[3], raw: func(name string) []byte { return r.raw(t, name) }, size: r.kind.megabytes << 20}
	for _, f := range faults {
		f.begin(t, c)
		from := logSize(server)
		if err := server.TryStart(); err == nil {
			t.Fatalf("%s: recovery has ended with %s of %s", f.name, server.Query(t, digest), r.want)
		}
		if server.Running() {
			t.Fatalf("%s: the server neither stops nor comes up:\n%s", f.name, server.LogTail())
		}
		log := newLog(t, server, from)
		for _, text := range []string{f.says, "exit code 200", "hint: PostgreSQL is in archive recovery and stops now", "FATAL"} {
			if !strings.Contains(log, text) {
				t.Errorf("%s: the server's log does not say %q:\n%s", f.name, text, log)
			}
		}
		if f.where == inGap && !strings.Contains(log, c.segment) {
			t.Errorf("%s: the server's log does not name %s:\n%s", f.name, c.segment, log)
		}
		r.stillRecovering(t, dir, f.name)
		c.repair()
	}
	server.Start()
	server.WaitFor(t, "SELECT pg_is_in_recovery()", "f", recoveryLimit)
	if got := server.Query(t, digest); got != r.want {
		t.Errorf("recovered %s, not %s", got, r.want)
	}
	if got := server.Query(t, "SELECT timeline_id FROM pg_control_checkpoint()"); got != "2" {
		t.Errorf("the timeline after recovery is %s", got)
	}
	server.Stop("immediate")
	testenv.Figure(t, "faults that recovery met", "archive recovery, PostgreSQL "+fmt.Sprint(r.kind.major), len(faults))
}

// stillRecovering checks that no recovery has ended in a data directory.
func (r *recoverable) stillRecovering(t *testing.T, dir, what string) {
	t.Helper()
	if found, err := filepath.Glob(filepath.Join(dir, "pg_wal/0000000[2-9]*")); err != nil || len(found) > 0 {
		t.Fatalf("%s: recovery has ended: %v, %v", what, found, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "recovery.signal")); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// standby lets one server follow an archive that gets a segment at a time, each with a fault first: it has to wait and go on.
func (r *recoverable) standby(t *testing.T, faults []fault) {
	t.Helper()
	s := r.fork(t, "WALDEN_WAL_TIMEOUT=5s") // a standby asks again if that is too short for a slow machine
	held := filepath.Join(s.dir, "held")
	if err := os.Mkdir(held, 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, held)
	ahead := 3 // those that the standby has from the start, the bulk among them
	for _, name := range r.segments[ahead:] {
		move(t, s.object(name+".lz4"), filepath.Join(held, name+".lz4"))
	}
	publish := func(i int) { move(t, filepath.Join(held, r.segments[i]+".lz4"), s.object(r.segments[i]+".lz4")) }
	server := testenv.AttachPostgres(t, restoredCopy(t, r.restored, "standby.signal"),
		testenv.PostgresOptions{Settings: s.restoreSettings("hot_standby=on", "wal_retrieve_retry_interval=50ms")})
	server.Start()
	const rows = "SELECT count(*) FROM journal"
	server.WaitFor(t, rows, r.counts[ahead-1], recoveryLimit)

	met := 0
	for _, f := range faults {
		c := &ruin{site: s, segment: r.segments[ahead], other: r.segments[ahead+1], raw: func(name string) []byte { return r.raw(t, name) }, size: r.kind.megabytes << 20}
		if f.where == inGap {
			continue // a standby does not look for gaps: it asks again, and streams what the archive has not
		}
		if f.where == inHistory && strings.Contains(f.says, "gap") {
			continue
		}
		from := logSize(server)
		if f.where == inSegment {
			s.unseen(t, server, func() { publish(ahead); f.begin(t, c) })
		} else {
			f.begin(t, c)
		}
		awaitLog(t, server, from, f.says)
		if got := server.Query(t, "SELECT pg_is_in_recovery()"); got != "t" {
			t.Fatalf("%s: the standby is no standby any more", f.name)
		}
		if got := server.Query(t, rows); got != r.counts[ahead-1] {
			t.Errorf("%s: the standby has %s rows, not %s", f.name, got, r.counts[ahead-1])
		}
		c.repair()
		if f.where != inSegment {
			publish(ahead)
		}
		server.WaitFor(t, rows, r.counts[ahead], recoveryLimit)
		met++
		ahead++
	}
	for ; ahead < len(r.segments); ahead++ {
		publish(ahead)
	}
	server.WaitFor(t, digest, r.want, recoveryLimit)
	server.Promote(t)
	if got := server.Query(t, digest); got != r.want {
		t.Errorf("promoted with %s, not %s", got, r.want)
	}
	server.Stop("immediate")
	testenv.Figure(t, "faults that recovery met", "standby, PostgreSQL "+fmt.Sprint(r.kind.major), met)
}

// A standby that streams gets from the archive what its primary has no more. The archive fails it there, too.
func TestAStandbyThatStreamsWaitsForTheArchive(t *testing.T) {
	t.Parallel()
	s3 := testenv.StartS3(t)
	kinds := recoveryKinds(15)
	for i, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			var mine []fault
			for _, f := range share(faults(s3), i, 8) {
				if f.where == inStorage || f.where == inSegment {
					mine = append(mine, f)
				}
			}
			r := &recoverable{site: newSite(t, "WALDEN_WAL_TIMEOUT=10s").quick(), kind: kind, packed: map[string][]byte{}}
			p := r.primary(kind, "max_wal_size="+fmt.Sprint(4*kind.megabytes)+"MB", "min_wal_size="+fmt.Sprint(2*kind.megabytes)+"MB")
			r.must(p, "backup-push", p.DataDir)
			for i := range len(mine) + 2 {
				fill(t, p, fmt.Sprintf("segment %d ", i))
				r.counts = append(r.counts, p.Query(t, "SELECT count(*) FROM journal"))
				r.segments = append(r.segments, p.SwitchWAL(t))
			}
			p.WaitFor(t, "SELECT last_archived_wal FROM pg_stat_archiver", r.segments[len(r.segments)-1], recoveryLimit)
			p.Exec(t, "CHECKPOINT", "INSERT INTO journal(note) VALUES ('more')", "SELECT pg_switch_wal()", "CHECKPOINT")
			for _, name := range r.segments {
				if _, err := os.Stat(filepath.Join(p.DataDir, "pg_wal", name)); err == nil {
					t.Fatalf("the primary still has %s", name)
				}
				r.packed[name] = r.packedContent(t, name)
			}
			held := filepath.Join(r.dir, "held")
			if err := os.Mkdir(held, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, name := range r.segments[1:] {
				move(t, r.object(name+".lz4"), filepath.Join(held, name+".lz4"))
			}
			dir := r.fetch("LATEST")
			if err := os.Rename(filepath.Join(dir, "recovery.signal"), filepath.Join(dir, "standby.signal")); err != nil {
				t.Fatal(err)
			}
			standby := testenv.AttachPostgres(t, dir, testenv.PostgresOptions{Settings: r.restoreSettings("wal_retrieve_retry_interval=50ms",
				fmt.Sprintf("primary_conninfo=host=%s port=%d user=postgres", p.SocketDir, p.Port))})
			standby.Start()
			const rows = "SELECT count(*) FROM journal"
			standby.WaitFor(t, rows, r.counts[0], recoveryLimit)
			publish := func(i int) { move(t, filepath.Join(held, r.segments[i]+".lz4"), r.object(r.segments[i]+".lz4")) }
			next := 1
			for _, f := range mine {
				c := &ruin{site: r.site, segment: r.segments[next], other: r.segments[next+1], raw: func(name string) []byte { return r.raw(t, name) }, size: kind.megabytes << 20}
				from := logSize(standby)
				if f.where == inSegment {
					r.unseen(t, standby, func() { publish(next); f.begin(t, c) })
				} else {
					f.begin(t, c)
				}
				awaitLog(t, standby, from, f.says)
				if got := standby.Query(t, "SELECT pg_is_in_recovery()"); got != "t" {
					t.Fatalf("%s: the standby is no standby any more", f.name)
				}
				c.repair()
				if f.where == inStorage {
					publish(next)
				}
				standby.WaitFor(t, rows, r.counts[next], recoveryLimit)
				next++
			}
			for ; next < len(r.segments); next++ {
				publish(next)
			}
			p.Exec(t, "INSERT INTO journal(note) VALUES ('only streamed')")
			standby.CatchUp(t, p)
			if got, want := standby.Query(t, digest), p.Query(t, digest); got != want {
				t.Errorf("the standby has %s, the primary %s", got, want)
			}
			testenv.Figure(t, "faults that recovery met", "streaming standby, PostgreSQL "+fmt.Sprint(kind.major), len(mine))
		})
	}
}

// What is absent for good ends recovery, after all that there is; a gap does so only when the operator says it.
func TestRecoveryEndsWhereTheArchiveEnds(t *testing.T) {
	t.Parallel()
	for _, kind := range recoveryKinds(18) {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			r := newRecoverable(t, kind, 6)
			lost := r.segments[4]
			end := func(t *testing.T, s *site, want, rows string) {
				t.Helper()
				p := testenv.OpenPostgres(t, restoredCopy(t, r.restored, "recovery.signal"), testenv.PostgresOptions{Settings: s.restoreSettings()})
				if want != "" {
					if got := p.Query(t, digest); got != want {
						t.Errorf("recovered %s, not %s", got, want)
					}
				} else if got := p.Query(t, "SELECT count(*) FROM journal"); got != rows {
					t.Errorf("recovered %s rows, not %s", got, rows)
				}
				if got := p.Query(t, "SELECT timeline_id FROM pg_control_checkpoint()"); got != "2" {
					t.Errorf("the timeline after recovery is %s", got)
				}
				p.Stop("immediate")
				testenv.Figure(t, "recoveries to the end", fmt.Sprint("PostgreSQL ", kind.major), 1)
			}
			t.Run("all segments are there", func(t *testing.T) { end(t, r.site, r.want, "") })
			t.Run("the last segments are not there", func(t *testing.T) {
				s := r.fork(t)
				for _, name := range r.segments[4:] {
					move(t, s.object(name+".lz4"), filepath.Join(s.dir, name))
				}
				end(t, s, "", r.counts[3])
			})
			t.Run("a gap that is accepted", func(t *testing.T) {
				s := r.fork(t, "WALDEN_END_RECOVERY_BEFORE="+lost)
				move(t, s.object(lost+".lz4"), filepath.Join(s.dir, lost))
				end(t, s, "", r.counts[3])
			})
			t.Run("a damaged segment that is accepted", func(t *testing.T) {
				s := r.fork(t, "WALDEN_END_RECOVERY_BEFORE="+lost)
				put(t, s.object(lost+".lz4"), []byte("<html>"))
				end(t, s, "", r.counts[3])
			})
			t.Run("the newest segment was taken from a server that had not filled it", func(t *testing.T) {
				s := r.fork(t)
				b := bytes.Clone(r.raw(t, lost))
				clear(b[lastRecordByte(b)&^8191:]) // its last page: the record that closes it and a few rows that were never committed
				move(t, s.object(lost+".lz4"), filepath.Join(s.dir, lost))
				move(t, s.object(r.segments[5]+".lz4"), filepath.Join(s.dir, r.segments[5]))
				put(t, s.object(lost), b)
				end(t, s, "", r.counts[3])
			})
			t.Run("a lost history that is accepted", func(t *testing.T) {
				s := r.fork(t, "WALDEN_END_RECOVERY_BEFORE=00000002.history")
				put(t, s.object("00000002"+lost[8:]), r.raw(t, lost))
				end(t, s, r.want, "")
			})
		})
	}
}

// A crash of the recovering server at any moment is nothing that it would not recover from.
func TestARecoveringServerThatIsKilledGoesOn(t *testing.T) {
	t.Parallel()
	random := testenv.Rand(t)
	for _, kind := range recoveryKinds(13) {
		segments := 12
		kills := testenv.Pick(2, 12)
		moments := make([]int, kills)
		for i := range moments {
			moments[i] = 1 + random.IntN(segments)
		}
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			r := newRecoverable(t, kind, segments)
			dir := restoredCopy(t, r.restored, "recovery.signal")
			p := testenv.AttachPostgres(t, dir, testenv.PostgresOptions{Settings: r.restoreSettings("hot_standby=off", "checkpoint_timeout=30s")})
			killed := 0
			for _, moment := range moments {
				if _, err := os.Stat(filepath.Join(dir, "recovery.signal")); err != nil {
					break // an earlier kill came too late
				}
				from := logSize(p)
				ended := make(chan error, 1)
				go func() { ended <- p.TryStart() }()
				deadline := time.After(recoveryLimit)
				for done := false; !done; {
					select {
					case err := <-ended:
						ended <- err
						done = true
					case <-deadline:
						t.Fatalf("no segment %d within %s:\n%s", moment, recoveryLimit, p.LogTail())
					case <-time.After(time.Millisecond):
						done = strings.Count(newLog(t, p, from), "restored log file") >= moment
					}
				}
				p.KillHard()
				<-ended
				killed++
			}
			p.Start()
			p.WaitFor(t, "SELECT pg_is_in_recovery()", "f", recoveryLimit)
			if got := p.Query(t, digest); got != r.want {
				t.Errorf("after %d kills: recovered %s, not %s", killed, got, r.want)
			}
			testenv.Figure(t, "recovering servers killed", fmt.Sprint("PostgreSQL ", kind.major), killed)
		})
	}
}

// mark is a moment in the life of a cluster.
type mark struct{ name, lsn, xid, at, rows string }

// setMark commits a row of its own and remembers everything by which recovery can be told to stop there.
func setMark(t *testing.T, p *testenv.Postgres, name string) mark {
	t.Helper()
	xid := p.Query(t, "INSERT INTO journal(note) VALUES ('"+name+"') RETURNING pg_current_xact_id()")
	m := mark{name: name, xid: xid}
	m.rows = p.Query(t, digest)
	p.Exec(t, "SELECT pg_create_restore_point('"+name+"')")
	m.lsn = p.Query(t, "SELECT pg_current_wal_insert_lsn()")
	m.at = p.Query(t, "SELECT clock_timestamp()")
	return m
}

// lastPage brings the server's log to the last page of a segment, with room for what a mark writes.
func lastPage(t *testing.T, p *testenv.Postgres, size int) {
	t.Helper()
	for {
		switch left := leftInSegment(t, p, size); {
		case left <= 3500:
			p.SwitchWAL(t)
		case left < 8000:
			return
		default:
			p.Exec(t, fmt.Sprintf("SELECT pg_logical_emit_message(false, 'walden', repeat('x', %d))", max(100, min(left-9000, 1000000))))
		}
	}
}

func TestRecoveryStopsAtItsTargetAndNeverShortOfIt(t *testing.T) {
	t.Parallel()
	for _, kind := range recoveryKinds(18) {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			s := newSite(t).quick()
			p := s.primary(kind)
			s.must(p, "backup-push", p.DataDir)
			fill(t, p, "before ")
			before := p.Query(t, digest)
			m := setMark(t, p, "here")
			fill(t, p, "after ")
			s.archived(p)
			p.Stop("immediate")
			restored := s.fetch("LATEST")
			run := func(t *testing.T, target string) *testenv.Postgres {
				t.Helper()
				settings := append([]string{"recovery_target_action=promote"}, strings.Split(target, ";")...)
				return testenv.AttachPostgres(t, restoredCopy(t, restored, "recovery.signal"), testenv.PostgresOptions{Settings: s.restoreSettings(settings...)})
			}
			for _, c := range share([]struct{ target, want string }{
				{"recovery_target_name=here", m.rows},
				{"recovery_target_time=" + m.at, m.rows},
				{"recovery_target_time=" + m.at + ";recovery_target_inclusive=off", m.rows},
				{"recovery_target_lsn=" + m.lsn + ";recovery_target_inclusive=off", m.rows},
				{"recovery_target_lsn=" + m.lsn, m.rows},
				{"recovery_target_xid=" + m.xid, m.rows},
				{"recovery_target_xid=" + m.xid + ";recovery_target_inclusive=off", before},
				{"recovery_target=immediate", "0|"},
			}, 1, 3) {
				t.Run(c.target, func(t *testing.T) {
					p := run(t, c.target)
					p.Start()
					p.WaitFor(t, "SELECT pg_is_in_recovery()", "f", recoveryLimit)
					if got := p.Query(t, digest); got != c.want {
						t.Errorf("recovered %s, not %s", got, c.want)
					}
					p.Stop("immediate")
				})
				testenv.Figure(t, "recoveries to a target", fmt.Sprint("PostgreSQL ", kind.major), 1)
			}
			for _, target := range share([]string{
				"recovery_target_name=nowhere", "recovery_target_time=2099-01-01", "recovery_target_lsn=FF/0", "recovery_target_xid=" + m.xid + "0000",
			}, 1, 3) {
				t.Run(target, func(t *testing.T) {
					p := run(t, target+";hot_standby=off")
					if err := p.TryStart(); err == nil {
						t.Fatalf("recovery has ended with %s", p.Query(t, digest))
					}
					if log := newLog(t, p, 0); !strings.Contains(log, "recovery ended before configured recovery target was reached") ||
						!strings.Contains(log, "state=absent") {
						t.Errorf("the server's log:\n%s", log)
					}
				})
				testenv.Figure(t, "recoveries to a target", fmt.Sprint("PostgreSQL ", kind.major), 1)
			}
		})
	}
}

// Behind a permanent backup, or one that was copied, WAL is missing on purpose. PostgreSQL 15 and newer read ahead, so they ask for it
// before they reach a target that lies before it. One that lies behind it is never reached, and without a target nothing says that the
// operator knows: then recovery stops.
func TestAGapBehindTheRecoveryTargetIsNoObstacle(t *testing.T) {
	t.Parallel()
	s := newSite(t).quick()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving("autovacuum=off")})
	p.Exec(t, "CREATE TABLE n(i int)")
	s.must(p, "backup-push", p.DataDir)
	p.Exec(t, "INSERT INTO n VALUES (1)", "SELECT pg_create_restore_point('before')")
	s.archived(p)
	p.Exec(t, "INSERT INTO n VALUES (2)")
	lost := p.SwitchWAL(t)
	p.Exec(t, "INSERT INTO n VALUES (3)", "SELECT pg_create_restore_point('behind')")
	s.archived(p)
	p.Stop("immediate")
	s.remove(t, func(key string) bool { return strings.HasPrefix(key, "wal_005/"+lost) })
	const count = "SELECT count(*) FROM n"
	for target, want := range map[string]string{"recovery_target_name=before": "1", "recovery_target=immediate": "0"} {
		restored := testenv.OpenPostgres(t, s.fetch("LATEST"), testenv.PostgresOptions{Settings: s.restoreSettings(target, "recovery_target_action=promote")})
		restored.WaitFor(t, "SELECT pg_is_in_recovery()", "f", recoveryLimit)
		if got := restored.Query(t, count); got != want {
			t.Errorf("%s: %s rows", target, got)
		}
		restored.Stop("immediate")
	}
	for target, says := range map[string]string{"recovery_target_name=behind": "recovery ended before configured recovery target was reached", "": "exit code 200"} {
		settings := s.restoreSettings("hot_standby=off")
		if target != "" {
			settings = s.restoreSettings("hot_standby=off", target)
		}
		restored := testenv.AttachPostgres(t, s.fetch("LATEST"), testenv.PostgresOptions{Settings: settings})
		if err := restored.TryStart(); err == nil {
			t.Fatalf("with the target %q recovery has ended with %s rows", target, restored.Query(t, count))
		}
		if log := restored.LogTail(); !strings.Contains(log, says) || !strings.Contains(log, "the archive has a gap") {
			t.Errorf("with the target %q the server's log is\n%s", target, log)
		}
	}
}

// The log leaves a timeline in the middle of a segment, behind its first record, in its last page, or between two segments; and
// again on the next timeline. Whichever timeline recovery is to follow, it ends with the rows of that timeline.
func TestRecoveryFollowsTheTimelineThatItIsTold(t *testing.T) {
	t.Parallel()
	kinds := recoveryKinds(15)
	classes := []string{"middle", "first", "last", "boundary"}
	for i, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			s := newSite(t).quick()
			p := s.primary(kind)
			s.must(p, "backup-push", p.DataDir)
			marks := timelineMarks(t, p, classes, kind.megabytes<<20)
			s.archived(p)
			first := p.Query(t, digest)
			p.Stop("immediate")
			restored := s.fetch("LATEST")
			for j, class := range share(classes, 3, 4) {
				t.Run("left at: "+class, func(t *testing.T) {
					s := s.fork(t)
					branch := func(t *testing.T, from mark, timeline string) *testenv.Postgres {
						t.Helper()
						dir := restoredCopy(t, restored, "recovery.signal")
						settings := s.archiving(append(slices.Clone(quiet), "recovery_target_name="+from.name, "recovery_target_action=promote",
							"recovery_target_timeline="+timeline)...)
						settings["restore_command"] = s.restoreSettings()["restore_command"]
						p := testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Settings: settings})
						if got := p.Query(t, digest); got != from.rows {
							t.Errorf("timeline %s recovered to %s: %s, not %s", timeline, from.name, got, from.rows)
						}
						return p
					}
					second := branch(t, marks[class], "1")
					onTwo := timelineMarks(t, second, []string{"two-" + classes[(j+i+1)%len(classes)]}, kind.megabytes<<20)
					s.archived(second)
					endOfTwo := second.Query(t, digest)
					second.Stop("immediate")
					var at mark
					for _, at = range onTwo {
					}
					third := branch(t, at, "2")
					fill(t, third, "three ")
					s.archived(third)
					endOfThree := third.Query(t, digest)
					third.Stop("immediate")
					for _, c := range []struct{ timeline, want string }{
						{"latest", endOfThree}, {"3", endOfThree}, {"2", endOfTwo}, {"1", first}, {"current", first},
					} {
						p := testenv.OpenPostgres(t, restoredCopy(t, restored, "recovery.signal"),
							testenv.PostgresOptions{Settings: s.restoreSettings("recovery_target_timeline=" + c.timeline)})
						if got := p.Query(t, digest); got != c.want {
							t.Errorf("timeline %s: recovered %s, not %s", c.timeline, got, c.want)
						}
						p.Stop("immediate")
						testenv.Figure(t, "recoveries along timelines", fmt.Sprint("PostgreSQL ", kind.major), 1)
					}
				})
			}
			t.Run("a stray history", func(t *testing.T) {
				s := s.fork(t)
				put(t, s.object("00000002.history"), []byte("1\t"+marks["middle"].lsn+"\tno recovery target specified\n"))
				for _, c := range []struct{ timeline, want string }{{"current", first}, {"1", first}, {"latest", first}} {
					p := testenv.OpenPostgres(t, restoredCopy(t, restored, "recovery.signal"),
						testenv.PostgresOptions{Settings: s.restoreSettings("recovery_target_timeline=" + c.timeline)})
					if got := p.Query(t, digest); got != c.want {
						t.Errorf("timeline %s: recovered %s, not %s", c.timeline, got, c.want)
					}
					p.Stop("immediate")
				}
				put(t, s.object("00000002.history"), []byte("1\t0/100028\tbefore the backup\n"))
				p := testenv.AttachPostgres(t, restoredCopy(t, restored, "recovery.signal"), testenv.PostgresOptions{Settings: s.restoreSettings()})
				if err := p.TryStart(); err == nil || !strings.Contains(newLog(t, p, 0), "is not a child of this server's history") {
					t.Errorf("a timeline that left before the backup was followed: %v", err)
				}
			})
		})
	}
}

// timelineMarks sets marks at the places in a segment that their names end with, each with rows behind it.
func timelineMarks(t *testing.T, p *testenv.Postgres, classes []string, size int) map[string]mark {
	t.Helper()
	marks := map[string]mark{}
	for _, class := range classes {
		fill(t, p, "before "+class)
		switch {
		case strings.HasSuffix(class, "first"):
			m := mark{name: class, rows: p.Query(t, digest)}
			p.SwitchWAL(t)
			m.lsn = p.Query(t, "SELECT pg_create_restore_point('"+class+"')")
			marks[class] = m
		case strings.HasSuffix(class, "boundary"):
			marks[class] = markAtBoundary(t, p, class, size)
		case strings.HasSuffix(class, "last"):
			lastPage(t, p, size)
			marks[class] = setMark(t, p, class)
		default:
			marks[class] = setMark(t, p, class)
		}
		fill(t, p, "after "+class)
	}
	return marks
}

// markAtBoundary makes a restore point whose record ends with its segment.
func markAtBoundary(t *testing.T, p *testenv.Postgres, name string, size int) mark {
	t.Helper()
	const restorePoint = 104 // bytes of its record: header 24, header of the data 2, xl_restore_point 72, and alignment
	emit := func(n int) {
		p.Exec(t, fmt.Sprintf("SELECT pg_logical_emit_message(false, 'walden', repeat('x', %d))", n))
	}
	const probe = 300
	for {
		lastPage(t, p, size)
		before := leftInSegment(t, p, size)
		emit(probe)
		overhead := before - leftInSegment(t, p, size) - probe
		emit(leftInSegment(t, p, size) - restorePoint - overhead)
		if leftInSegment(t, p, size) == restorePoint {
			m := mark{name: name, rows: p.Query(t, digest)}
			m.lsn = p.Query(t, "SELECT pg_create_restore_point('"+name+"')")
			if left := leftInSegment(t, p, size); left != size && left != size-40 { // the position behind the next header
				t.Fatalf("%d bytes are left behind the restore point", left)
			}
			return m
		}
	}
}

// leftInSegment is how many bytes of the current segment are free.
func leftInSegment(t *testing.T, p *testenv.Postgres, size int) int {
	t.Helper()
	text := p.Query(t, fmt.Sprintf("SELECT %d - mod(pg_current_wal_insert_lsn() - '0/0', %d)", size, size))
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// pg_rewind fetches from the archive what its target has thrown away, and wal-fetch writes nothing but that.
func TestPgRewindRestoresItsTargetsWAL(t *testing.T) {
	t.Parallel()
	s := newSite(t).quick()
	p := s.primary(clusterKind{15, 1}, "wal_log_hints=on", "restore_command="+s.restoreSettings()["restore_command"])
	fill(t, p, "before ")
	standby := p.Standby(t, testenv.PostgresOptions{Settings: s.archiving(quiet...)})
	standby.CatchUp(t, p)
	standby.Promote(t)
	fill(t, standby, "two ")
	standby.Exec(t, "CHECKPOINT")
	var gone []string
	for range 4 { // what the old primary goes on with
		fill(t, p, "one ")
		gone = append(gone, p.SwitchWAL(t))
	}
	s.archived(p)
	s.archived(standby)
	p.Exec(t, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
	p.Stop("fast")
	for _, name := range gone {
		if err := os.Remove(filepath.Join(p.DataDir, "pg_wal", name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	before := names(t, filepath.Join(p.DataDir, "pg_wal"))
	out := tool(t, standby, "pg_rewind", "--target-pgdata="+p.DataDir, "--restore-target-wal", "--no-sync",
		fmt.Sprintf("--source-server=host=%s port=%d user=postgres dbname=postgres", standby.SocketDir, standby.Port))
	if fetched := strings.Count(out, "state=complete"); fetched < len(gone) || !strings.Contains(out, "Done!") {
		t.Errorf("pg_rewind fetched %d segments:\n%s", fetched, out)
	}
	walName := regexp.MustCompile(`^([0-9A-F]{24}(\.partial)?|[0-9A-F]{8}\.history|archive_status)$`)
	for _, name := range names(t, filepath.Join(p.DataDir, "pg_wal")) {
		if !walName.MatchString(name) && !slices.Contains(before, name) {
			t.Errorf("%s was left in pg_wal", name)
		}
	}
	if spool := spoolOf(t, filepath.Dir(p.DataDir)); spool != "" {
		if _, err := os.Lstat(filepath.Join(spool, "wal")); !os.IsNotExist(err) {
			t.Errorf("segments were fetched ahead of pg_rewind, into %s (%v)", spool, err)
		}
	}
	touch(t, filepath.Join(p.DataDir, "standby.signal"))
	follower := testenv.AttachPostgres(t, p.DataDir, testenv.PostgresOptions{Settings: s.restoreSettings(
		fmt.Sprintf("primary_conninfo=host=%s port=%d user=postgres", standby.SocketDir, standby.Port), "primary_slot_name=")})
	follower.Start()
	fill(t, standby, "two again ")
	follower.CatchUp(t, standby)
	if got, want := follower.Query(t, digest), standby.Query(t, digest); got != want {
		t.Errorf("the rewound server has %s, not %s", got, want)
	}
	testenv.Figure(t, "servers rewound", "PostgreSQL 15", 1)
}

// names lists a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}
