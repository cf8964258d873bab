package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// badDisk is a way for a disk to fail while something is stored on it, and what has to be said of it.
type badDisk struct {
	name  string
	fault testenv.DiskFault // Path is filled in by the test
	says  string
}

// badDisks is every call that stores something, with the errors that disks, quotas and file systems answer.
var badDisks = []badDisk{
	{"full", testenv.DiskFault{Op: "write", Errno: "ENOSPC"}, "no space left on device"},
	{"a sync fails", testenv.DiskFault{Op: "fsync", Errno: "EIO"}, "input/output error"},
	{"a directory's sync fails", testenv.DiskFault{Op: "fsyncdir", Errno: "EIO"}, "input/output error"},
	{"over quota", testenv.DiskFault{Op: "write", Errno: "EDQUOT"}, "disk quota exceeded"},
	{"a close fails", testenv.DiskFault{Op: "flush", Errno: "EIO"}, "input/output error"},
	{"a write fails", testenv.DiskFault{Op: "write", Errno: "EIO", After: 1}, "input/output error"},
	{"a file cannot be created", testenv.DiskFault{Op: "create", Errno: "EROFS"}, "read-only file system"},
	{"no more inodes", testenv.DiskFault{Op: "create", Errno: "ENOSPC"}, "no space left on device"},
}

// someBadDisks is the first few of the bad disks, or all of them.
func someBadDisks(few int) []badDisk { return badDisks[:testenv.Pick(few, len(badDisks))] }

// hit checks that a fault was met, and ends it.
func hit(t *testing.T, d *testenv.FaultDisk) {
	t.Helper()
	n := d.Heal(t)
	if n == 0 {
		t.Error("the fault was never met")
	}
	testenv.Figure(t, "disk faults", "operations that failed", n)
}

// makeDir makes a directory that belongs to the user postgres.
func makeDir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, dir)
}

// complete lists the files of an archive that have their names.
func (s *site) complete() []string {
	s.t.Helper()
	return slices.DeleteFunc(files(s.t, s.archive), unfinished.MatchString)
}

func TestABackupPushOnABadDiskListsNothing(t *testing.T) {
	t.Parallel()
	d := testenv.MountFaultDisk(t, false)
	good := newSite(t).quick()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: good.archiving("autovacuum=off")})
	space := filepath.Join(d.Dir, "space")
	makeDir(t, space)
	p.Exec(t, fmt.Sprintf("CREATE TABLESPACE bad LOCATION '%s'", space),
		"CREATE TABLE big TABLESPACE bad AS SELECT g AS id, md5(g::text) AS note FROM generate_series(1, 10000) AS g", "CHECKPOINT")
	file := p.Query(t, "SELECT pg_relation_filepath('big')") // pg_tblspc/16384/PG_15_202209061/5/16385
	_, below, _ := strings.Cut(strings.TrimPrefix(file, "pg_tblspc/"), "/")

	for _, from := range []int64{0, 8192, 100_000} {
		t.Run(fmt.Sprintf("a data file that cannot be read from byte %d on", from), func(t *testing.T) {
			d.Inject(t, testenv.DiskFault{Op: "read", Path: "space/" + below, Errno: "EIO", From: from})
			before := good.complete()
			good.fails(p, 1, []string{"cannot read data file", file, "input/output error"}, "backup-push", p.DataDir)
			hit(t, d)
			good.leavesNothing(t, p, 0)
			left := slices.DeleteFunc(good.complete(), func(name string) bool { return strings.HasPrefix(name, "wal_005/") || slices.Contains(before, name) })
			if slices.ContainsFunc(left, func(name string) bool { return name != "walden_identity.json" }) {
				t.Errorf("left: %q", left)
			}
		})
	}
	t.Run("a data directory that cannot be listed", func(t *testing.T) {
		d.Inject(t, testenv.DiskFault{Op: "readdir", Path: "space/.*", Errno: "EIO"})
		good.fails(p, 1, []string{"pg_tblspc", "input/output error"}, "backup-push", p.DataDir)
		hit(t, d)
		good.leavesNothing(t, p, 0)
	})

	s := onDisk(t, d)
	for _, c := range someBadDisks(3) {
		t.Run("an archive where "+c.name, func(t *testing.T) {
			c.fault.Path = "archive(/.*)?"
			d.Inject(t, c.fault)
			r := s.fails(p, 1, []string{c.says, s.archive}, "backup-push", p.DataDir)
			hit(t, d)
			s.leavesNothing(t, p, 0)
			if strings.Contains(r.stderr, "Wrote backup") {
				t.Errorf("success was told:\n%s", r.stderr)
			}
			if left := files(t, filepath.Join(s.archive, "basebackups_005")); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
	s.must(p, "backup-push", p.DataDir).expect(t, 0)
	if n := len(s.listings()); n != 1 {
		t.Errorf("%d backups are listed after the disk was repaired", n)
	}
	for _, part := range []string{`.*/tar_partitions/part_.*`, `.*sentinel.json`} {
		t.Run("an archive that cannot be read: "+part, func(t *testing.T) {
			d.Inject(t, testenv.DiskFault{Op: "read", Path: part, Errno: "EIO", From: 10})
			target := filepath.Join(testenv.Scratch(t), "data")
			s.fails(nil, 1, []string{"input/output error", s.archive}, "backup-fetch", target, s.nameOf(1), "-T", space+"="+target+"-space")
			hit(t, d)
			if _, err := os.Lstat(filepath.Join(target, "global/pg_control")); err == nil {
				t.Error("there is a control file")
			}
		})
	}
}

// nameOf returns the name of the n-th backup by the archive's own names, for lists that cannot be had.
func (s *site) nameOf(n int) string {
	s.t.Helper()
	found, err := filepath.Glob(filepath.Join(s.archive, "basebackups_005/*_backup_stop_sentinel.json"))
	if err != nil || len(found) < n {
		s.t.Fatalf("%v %v", found, err)
	}
	return strings.TrimSuffix(filepath.Base(found[n-1]), "_backup_stop_sentinel.json")
}

func TestWALCommandsOnABadDiskNeverReportSuccess(t *testing.T) {
	t.Parallel()
	good := newSite(t).quick()
	p := good.smallSegments()
	p.Exec(t, "CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) AS g")
	good.archived(p)
	segment := p.Query(t, "SELECT last_archived_wal FROM pg_stat_archiver")
	source := filepath.Join(testenv.Scratch(t), segment) // PostgreSQL recycles its own
	good.must(nil, "wal-fetch", segment, source)
	p.Stop("fast")

	d := testenv.MountFaultDisk(t, false)
	s := onDisk(t, d)
	push := []string{"wal-push", source}
	disks := append(slices.Clone(badDisks), badDisk{"a link cannot be made", testenv.DiskFault{Op: "link", Errno: "EIO"}, "input/output error"},
		badDisk{"a directory cannot be made", testenv.DiskFault{Op: "mkdir", Errno: "ENOSPC"}, "no space left on device"})
	for _, c := range disks {
		t.Run("wal-push: "+c.name, func(t *testing.T) {
			empty(t, s.archive)
			c.fault.Path = "archive(/.*)?"
			d.Inject(t, c.fault)
			s.fails(nil, 1, []string{c.says, s.archive}, push...)
			hit(t, d)
			s.must(nil, push...).expect(t, 0)
			dest := filepath.Join(testenv.Scratch(t), "segment")
			s.must(nil, "wal-fetch", segment, dest)
		})
	}
	t.Run("wal-push: the first sync of the directory fails", func(t *testing.T) {
		// The object has its name by then. Finding it must not pass for having archived it: it has to be synced again.
		empty(t, s.archive)
		s.must(nil, push...)
		if err := os.Remove(filepath.Join(s.archive, "wal_005", segment+".lz4")); err != nil {
			t.Fatal(err)
		}
		d.Inject(t, testenv.DiskFault{Op: "fsyncdir", Path: "archive/wal_005", Errno: "EIO", Times: 1})
		s.must(nil, push...)
		hit(t, d)
		d.Inject(t, testenv.DiskFault{Op: "fsyncdir", Path: "archive/wal_005", Errno: "EIO"})
		s.fails(nil, 1, []string{"syncing the object that is there", "input/output error"}, push...)
		hit(t, d)
	})
	t.Run("wal-fetch: the archive cannot be read", func(t *testing.T) {
		empty(t, s.archive)
		s.must(nil, push...)
		dir := dataDir(t, "recovery.signal")
		d.Inject(t, testenv.DiskFault{Op: "read", Path: `archive/wal_005/.*`, Errno: "EIO", From: 100})
		s.config = appendSetting(t, s, "WALDEN_WAL_TIMEOUT=3s")
		s.waldenIn(dir, nil, "wal-fetch", segment, "pg_wal/RECOVERYXLOG").expect(t, 200, "input/output error", s.archive)
		hit(t, d)
		absentFile(t, filepath.Join(dir, "pg_wal/RECOVERYXLOG"))
	})
	for _, c := range append(slices.Clone(badDisks), badDisk{"a link cannot be made", testenv.DiskFault{Op: "link", Errno: "EIO"}, "input/output error"}) {
		t.Run("wal-fetch: "+c.name, func(t *testing.T) {
			target := filepath.Join(d.Dir, "data")
			if err := os.RemoveAll(target); err != nil {
				t.Fatal(err)
			}
			makeDir(t, filepath.Join(target, "pg_wal"))
			touch(t, filepath.Join(target, "recovery.signal"))
			c.fault.Path = "data(/.*)?"
			if c.fault.Op == "flush" {
				return // what a close could say was said by the sync, and PostgreSQL reads the file next
			}
			d.Inject(t, c.fault)
			r := good.waldenIn(target, nil, "wal-fetch", segment, "pg_wal/RECOVERYXLOG")
			r.expect(t, 200, c.says, "pg_wal")
			hit(t, d)
			left := files(t, target)
			if c.fault.Op == "fsyncdir" { // it was complete, and is the same again
				left = slices.DeleteFunc(left, func(name string) bool { return name == "pg_wal/RECOVERYXLOG" })
			}
			if !slices.Equal(left, []string{"recovery.signal"}) {
				t.Errorf("left: %q", left)
			}
			good.waldenIn(target, nil, "wal-fetch", segment, "pg_wal/RECOVERYXLOG").expect(t, 0)
		})
	}
	t.Run("something else stands in the place of a file", func(t *testing.T) {
		dir := dataDir(t, "recovery.signal")
		makeDir(t, filepath.Join(dir, "pg_wal/RECOVERYXLOG"))
		s.waldenIn(dir, nil, "wal-fetch", segment, "pg_wal/RECOVERYXLOG").expect(t, 200, "pg_wal/RECOVERYXLOG", "not a regular file", "hint:")
		if err := os.Remove(filepath.Join(dir, "pg_wal/RECOVERYXLOG")); err != nil {
			t.Fatal(err)
		}
		pipe := filepath.Join(dir, "pg_wal/RECOVERYXLOG")
		if err := unix.Mkfifo(pipe, 0o600); err != nil {
			t.Fatal(err)
		}
		own(t, pipe)
		s.waldenIn(dir, nil, "wal-fetch", segment, "pg_wal/RECOVERYXLOG").expect(t, 200, "pg_wal/RECOVERYXLOG", "not a regular file", "hint:")
		piped := filepath.Join(dir, "pg_wal", segment)
		if err := unix.Mkfifo(piped, 0o600); err != nil {
			t.Fatal(err)
		}
		own(t, piped)
		s.waldenIn(dir, nil, "wal-push", "pg_wal/"+segment).expect(t, 1, segment+" is not a regular file")

		object := filepath.Join(s.archive, "wal_005", segment+".lz4")
		if err := os.Remove(object); err != nil {
			t.Fatal(err)
		}
		makeDir(t, object)
		s.fails(nil, 1, []string{object[len(s.archive)+1:], "is a directory"}, push...)
		if err := os.Remove(filepath.Join(dir, "pg_wal/RECOVERYXLOG")); err != nil {
			t.Fatal(err)
		}
		s.waldenIn(dir, nil, "wal-fetch", segment, "pg_wal/RECOVERYXLOG").expect(t, 200, "is a directory")
		absentFile(t, filepath.Join(dir, "pg_wal/RECOVERYXLOG"))
	})
}

// appendSetting writes the site's configuration with one more setting.
func appendSetting(t *testing.T, s *site, setting string) string {
	t.Helper()
	content, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	name, value, _ := strings.Cut(setting, "=")
	path := filepath.Join(s.dir, "more.yaml")
	if err := os.WriteFile(path, append(content, fmt.Sprintf("%s: %q\n", name, value)...), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestABackupFetchOntoABadDiskIsUnusableAndCanBeRepeated(t *testing.T) {
	t.Parallel()
	s := newSite(t).quick()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving("autovacuum=off")})
	s.must(p, "backup-push", p.DataDir)
	p.Stop("fast")
	d := testenv.MountFaultDisk(t, false)
	target := filepath.Join(d.Dir, "data")
	for i, c := range someBadDisks(3) {
		t.Run(c.name, func(t *testing.T) {
			if c.fault.Op == "flush" || c.fault.Op == "fsyncdir" {
				c.fault.Path = "data/global(/.*)?"
			} else {
				c.fault.Path = "data/base/.*"
				c.fault.After = 50 * (i + 1) // the disk fills up under the restore
			}
			d.Inject(t, c.fault)
			s.fails(nil, 1, []string{c.says, "hint: " + target + " holds an unfinished restore"}, "backup-fetch", target, "LATEST")
			hit(t, d)
			absentFile(t, filepath.Join(target, "global/pg_control"))
			if _, err := os.Lstat(filepath.Join(target, "walden_restore.json")); err != nil {
				t.Errorf("it bears no mark: %v", err)
			}
		})
	}
	s.must(nil, "backup-fetch", target, "LATEST").expect(t, 0, "removing an unfinished restore")
}

func absentFile(t *testing.T, name string) {
	t.Helper()
	if _, err := os.Lstat(name); err == nil {
		t.Errorf("%s is there", name)
	}
}

// remount makes a file system read-only, or writable again.
func remount(t *testing.T, dir string, flags uintptr) {
	t.Helper()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
		t.Fatal(err)
	}
}

func TestReadOnlyAndExhaustedFileSystemsAreNamed(t *testing.T) {
	t.Parallel()
	small, ok := smallDisk(t, 64)
	if !ok {
		return
	}
	s := bareSite(t).quick()
	s.archive = filepath.Join(small, "archive")
	makeDir(t, s.archive)
	s.configure("WALG_FILE_PREFIX=" + s.archive)
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving("autovacuum=off")})
	s.must(p, "backup-push", p.DataDir)
	segment := p.SwitchWAL(t)
	s.archived(p)

	remount(t, small, unix.MS_RDONLY)
	before := s.complete()
	s.fails(p, 1, []string{"read-only file system", s.archive}, "backup-push", p.DataDir)
	s.leavesNothing(t, p, 1)
	renamed := filepath.Join(testenv.Scratch(t), "00000002.history")
	if err := os.WriteFile(renamed, []byte("1\t0/3000000\tno recovery target specified\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.fails(nil, 1, []string{"read-only file system", s.archive}, "wal-push", renamed)
	s.must(nil, "wal-fetch", segment, filepath.Join(testenv.Scratch(t), segment)) // reading needs no writing
	s.fails(nil, 1, []string{"cannot restore into " + filepath.Join(small, "data"), "read-only"}, "backup-fetch", filepath.Join(small, "data"), "LATEST")
	if after := s.complete(); !slices.Equal(after, before) {
		t.Errorf("the archive held %q and holds %q", before, after)
	}
	remount(t, small, 0)
	s.must(nil, "wal-push", renamed)

	few := filepath.Join(testenv.Scratch(t), "few")
	makeDir(t, few)
	if err := unix.Mount("tmpfs", few, "tmpfs", 0, "size=256m,nr_inodes=60,mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(few, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	own(t, few)
	s.fails(nil, 1, []string{"has room for", "more files, the backup has", "hint:"}, "backup-fetch", filepath.Join(few, "data"), "LATEST")
	absentFile(t, filepath.Join(few, "data"))
	v := bareSite(t).quick()
	v.archive = filepath.Join(few, "archive")
	makeDir(t, v.archive)
	v.configure("WALG_FILE_PREFIX=" + v.archive)
	v.must(nil, "wal-push", renamed)
	var used []string
	for i := 0; ; i++ {
		name := filepath.Join(few, fmt.Sprint("used", i))
		if err := os.WriteFile(name, nil, 0o600); errors.Is(err, unix.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		used = append(used, name)
	}
	other := filepath.Join(filepath.Dir(renamed), "00000003.history")
	if err := os.Rename(renamed, other); err != nil {
		t.Fatal(err)
	}
	v.fails(nil, 1, []string{"no space left on device", v.archive}, "wal-push", other)
	for _, name := range used {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	v.must(nil, "wal-push", other)
	testenv.Figure(t, "disk faults", "file systems read-only or exhausted", 6)
}

func TestStrangeThingsInADataDirectory(t *testing.T) {
	t.Parallel()
	s := newSite(t).quick()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving("autovacuum=off")})
	at := func(name string) string { return filepath.Join(p.DataDir, name) }
	for _, name := range []string{"base/1/pipe", "global/pipe"} {
		if err := unix.Mkfifo(at(name), 0o600); err != nil {
			t.Fatal(err)
		}
		own(t, at(name))
	}
	l, err := net.Listen("unix", at("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	makeDir(t, at("base/1/999999"))
	if err := os.WriteFile(at("base/1/999999/inside"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	own(t, at("base/1/999999/inside"))
	s.must(p, "backup-push", p.DataDir).expect(t, 0, "base/1/pipe", "global/pipe", "socket", "level=WARN")
	dir := s.fetch("LATEST")
	for _, name := range []string{"base/1/pipe", "global/pipe", "socket"} {
		absentFile(t, filepath.Join(dir, name))
	}
	if b, err := os.ReadFile(filepath.Join(dir, "base/1/999999/inside")); err != nil || string(b) != "content" {
		t.Errorf("a directory in the place of a relation holds %q (%v)", b, err)
	}
	testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Settings: s.restoreSettings()}).Stop("fast")

	if err := os.Rename(at("global/pg_control"), at("global/aside")); err != nil {
		t.Fatal(err)
	}
	makeDir(t, at("global/pg_control"))
	s.fails(p, 1, []string{"global/pg_control", "Is a directory"}, "backup-push", p.DataDir)
	s.leavesNothing(t, p, 1)
	if err := os.Remove(at("global/pg_control")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(at("global/aside"), at("global/pg_control")); err != nil {
		t.Fatal(err)
	}
	s.must(p, "backup-push", p.DataDir)
	testenv.Figure(t, "disk faults", "strange things in a data directory", 5)
}

// inPageCache tells how many pages of the files of a megabyte and more below a directory are in the page cache, and how many they have. Kernels
// before 6.5 do not know.
func inPageCache(t *testing.T, dir string) (cached, pages uint64, known bool) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil || info.Size() < 1<<20 {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		var there unix.Cachestat_t
		if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Len: uint64(info.Size())}, &there, 0); err != nil {
			return err
		}
		cached, pages = cached+there.Cache, pages+uint64(info.Size())/uint64(os.Getpagesize())
		return nil
	})
	if errors.Is(err, unix.ENOSYS) {
		return 0, 0, false
	}
	if err != nil {
		t.Fatal(err)
	}
	return cached, pages, true
}

func TestABackupAndARestoreStayOutOfThePageCache(t *testing.T) {
	t.Parallel()
	disk, err := os.MkdirTemp("/var/tmp", "walden") // temporary directories may be in memory
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(disk) })
	own(t, disk)
	var st unix.Statfs_t
	if err := unix.Statfs(disk, &st); err != nil {
		t.Fatal(err)
	}
	able := st.Type == unix.EXT4_SUPER_MAGIC || st.Type == unix.XFS_SUPER_MAGIC
	s := newSite(t).quick()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving()})
	p.Exec(t, "CREATE TABLE large AS SELECT i, repeat(md5(i::text), 5) AS text FROM generate_series(1, 20000) AS i")
	for _, direct := range []bool{true, false} {
		archive := filepath.Join(disk, fmt.Sprint("archive-", direct))
		makeDir(t, archive)
		s.configure("WALG_FILE_PREFIX="+archive, fmt.Sprint("WALDEN_DIRECT_IO=", direct))
		s.must(p, "backup-push", p.DataDir)
		restored := filepath.Join(disk, fmt.Sprint("restored-", direct))
		written := map[string]string{"the backup": archive, "the restored files": restored}
		for _, what := range []string{"the backup", "the restored files"} {
			if what == "the restored files" {
				s.must(nil, "backup-fetch", restored, "LATEST")
			}
			cached, pages, known := inPageCache(t, written[what])
			if !known {
				continue
			}
			t.Logf("directly = %t: %s: %d of %d pages are in the page cache", direct, what, cached, pages)
			if pages == 0 || able && direct && cached > pages/10 {
				t.Errorf("directly = %t: %s: %d of %d pages are in the page cache", direct, what, cached, pages)
			}
			if !direct && cached < pages/2 {
				t.Errorf("directly = %t: %s: only %d of %d pages are in the page cache", direct, what, cached, pages)
			}
		}
	}
}
