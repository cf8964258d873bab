package cli

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// small is an archive in a directory, the same in each run down to the times of its objects: a full backup, one that is a delta of it, a
// permanent one, one that was not finished, WAL of two timelines with a gap in the older one, and an object that is nobody's.
func small(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	began := time.Date(2026, 11, 20, 6, 0, 0, 0, time.UTC)
	put := func(key, content string, minutes int) {
		file := filepath.Join(dir, filepath.FromSlash(key))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if at := began.Add(time.Duration(minutes) * time.Minute); os.Chtimes(file, at, at) != nil {
			t.Fatal("cannot set the time of " + file)
		}
	}
	put("walden_identity.json", `{"version":1,"since":"2026-11-20T06:00:00Z","current":{"system_identifier":"7710887100029993858","pg_major":15,"wal_segment_size":16777216}}`, 0)
	const size = 16 << 20
	for _, b := range []struct {
		timeline  wal.Timeline
		first     uint64
		delta     string
		permanent bool
	}{{1, 3, "", false}, {1, 5, "base_000000010000000000000003", false}, {1, 8, "", true}, {2, 11, "", false}} {
		first := wal.Segment{Timeline: b.timeline, Number: b.first}
		name, delta := "base_"+first.Name(size), ""
		lsn := uint64(first.Start(size)) + 0x28
		if b.delta != "" {
			name += "_D_" + strings.TrimPrefix(b.delta, "base_")
			delta = fmt.Sprintf(`"DeltaFrom":%q,"DeltaFullName":%q,"DeltaLSN":50331688,"DeltaCount":1,`, b.delta, b.delta)
		}
		minutes := int(b.first) * 10
		start, finish := began.Add(time.Duration(minutes)*time.Minute).Format(time.RFC3339), began.Add(time.Duration(minutes+5)*time.Minute).Format(time.RFC3339)
		put("basebackups_005/"+name+"/tar_partitions/part_001.tar.lz4", "part", minutes+4)
		put("basebackups_005/"+name+"/tar_partitions/pg_control.tar.lz4", "control", minutes+5)
		put("basebackups_005/"+name+"/metadata.json", fmt.Sprintf(
			`{"start_time":%q,"finish_time":%q,"date_fmt":"%%Y-%%m-%%dT%%H:%%M:%%S.%%fZ","hostname":"db1","data_dir":"/var/lib/postgresql/15/main","pg_version":150020,`+
				`"start_lsn":%d,"finish_lsn":%d,"is_permanent":%t,"system_identifier":7710887100029993858,"uncompressed_size":23920173,"compressed_size":4389071,"user_data":{"n":%d}}`,
			start, finish, lsn, lsn+0x100, b.permanent, b.first), minutes+5)
		put("basebackups_005/"+name+"/files_metadata.json", `{"Files":{"/global/pg_control":{"MTime":"2026-11-20T06:00:00Z","IsIncremented":false}},"TarFileSets":{"part_001.tar.lz4":["/PG_VERSION"],"pg_control.tar.lz4":["/global/pg_control"]}}`, minutes+5)
		put("basebackups_005/"+name+"_backup_stop_sentinel.json", fmt.Sprintf(
			`{"LSN":%d,%s"FinishLSN":%d,"PgVersion":150020,"SystemIdentifier":7710887100029993858,"UncompressedSize":23920173,"CompressedSize":4389071,"UserData":{"n":%d},`+
				`"Version":2,"StartTime":%q,"FinishTime":%q,"Hostname":"db1","DataDir":"/var/lib/postgresql/15/main","IsPermanent":%t}`,
			lsn, delta, lsn+0x100, b.first, start, finish, b.permanent), minutes+5)
	}
	put("basebackups_005/base_000000020000000000000013/tar_partitions/part_001.tar.lz4", "part", 130)
	for _, s := range []string{"1.3", "1.4", "1.5", "1.6", "1.8", "1.9", "1.10", "2.10", "2.11", "2.12"} {
		var segment wal.Segment
		if _, err := fmt.Sscanf(s, "%d.%d", &segment.Timeline, &segment.Number); err != nil {
			t.Fatal(err)
		}
		put("wal_005/"+segment.Name(size)+".lz4", "segment", int(segment.Number)*10+9)
	}
	put("wal_005/00000002.history", "1\t0/A000500\tno recovery target specified\n", 100)
	put("wal_005/notes", "of nobody", 100)
	return dir
}

// Other programs read what these print.
func TestWhatIsSaidOfAnArchiveLooksAsOthersExpectIt(t *testing.T) {
	t.Parallel()
	dir := small(t)
	environ := []string{"WALG_FILE_PREFIX=" + dir, "WALG_UPLOAD_CONCURRENCY=1"}
	integrity := []string{"wal-verify", "integrity", "timeline", "--timeline", "2", "--lsn", "0/E000000"}
	for _, c := range []struct {
		file string
		code int
		args []string
	}{
		{"show.txt", 0, []string{"backup-show", "base_000000010000000000000003"}},
		{"show.json", 0, []string{"backup-show", "base_000000010000000000000003", "--json"}},
		{"show.delta.txt", 0, []string{"backup-show", "base_000000010000000000000005_D_000000010000000000000003"}},
		{"show.delta.json", 0, []string{"backup-show", "base_000000010000000000000005_D_000000010000000000000003", "--json"}},
		{"wal-show.txt", 0, []string{"wal-show"}},
		{"wal-show.without-backups.txt", 0, []string{"wal-show", "--without-backups"}},
		{"wal-show.json", 0, []string{"wal-show", "--detailed-json"}},
		{"wal-verify.txt", exitVerifyFailed, integrity},
		{"wal-verify.json", exitVerifyFailed, append(integrity, "--json")},
		{"window.txt", 0, []string{"archive", "window"}},
		{"window.json", 0, []string{"archive", "window", "--json"}},
		{"delete.retain.txt", 0, []string{"delete", "retain", "FULL", "1"}},
		{"delete.retain.json", 0, []string{"delete", "retain", "FULL", "1", "--json"}},
		{"delete.garbage.txt", 0, []string{"delete", "garbage"}},
		{"delete.everything.json", 0, []string{"delete", "everything", "FORCE", "--json"}},
	} {
		code, out, errs := run(t, environ, c.args...)
		if code != c.code {
			t.Errorf("%v: exit code %d instead of %d\n%s", c.args, code, c.code, errs)
		}
		golden(t, filepath.Join("testdata", "looks", c.file), strings.ReplaceAll(out, dir, "/srv/archive"))
	}
}

func TestAMarkSaysWhatItMarked(t *testing.T) {
	t.Parallel()
	dir := small(t)
	environ := []string{"WALG_FILE_PREFIX=" + dir}
	stamp := func(s string) string {
		var lines []string
		for line := range strings.Lines(s) {
			_, rest, _ := strings.Cut(line, " ")
			lines = append(lines, rest)
		}
		return strings.Join(lines, "")
	}
	var said strings.Builder
	for _, args := range [][]string{
		{"backup-mark", "base_000000010000000000000005_D_000000010000000000000003"},
		{"backup-mark", "base_000000010000000000000005_D_000000010000000000000003"},
		{"backup-mark", "base_000000010000000000000003", "--impermanent"},
		{"backup-mark", "base_000000010000000000000005_D_000000010000000000000003", "-i"},
	} {
		code, out, errs := run(t, environ, args...)
		fmt.Fprintf(&said, "$ walden %s\n%s%sexit code %d\n", strings.Join(args, " "), out, stamp(errs), code)
	}
	golden(t, filepath.Join("testdata", "looks", "mark.txt"), strings.ReplaceAll(said.String(), dir, "/srv/archive"))
	document, err := os.ReadFile(filepath.Join(dir, "basebackups_005", "base_000000010000000000000003", "metadata.json"))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, filepath.Join("testdata", "looks", "mark.metadata.json"), string(document))
}

// Where no backup tells which WAL is old, it goes only when that is said, and never what a permanent backup needs.
func TestGarbageWithoutABackupGoesOnlyWhenThatIsSaid(t *testing.T) {
	t.Parallel()
	const permanent = "base_000000010000000000000008"
	for _, c := range []struct {
		name    string
		backups []string // that are there
		args    []string
		left    int // objects among the WAL
	}{
		{"no backup", nil, []string{"--confirm"}, 12},
		{"no backup, and said", nil, []string{"--confirm", "--without-backup-check"}, 1}, // what is nobody's
		{"no backup, a dry run", nil, []string{"--without-backup-check"}, 12},
		{"no backup, leftovers only", nil, []string{"BACKUPS", "--confirm", "--without-backup-check"}, 12},
		{"another one", []string{"base_00000002000000000000000B"}, []string{"--confirm"}, 4},
		{"another one, and said", []string{"base_00000002000000000000000B"}, []string{"--confirm", "--without-backup-check"}, 4},
		{"a permanent one", []string{permanent}, []string{"--confirm", "--without-backup-check"}, 8}, // it is the newest that can be restored, so the log behind it stays
		{"older ones", []string{"base_000000010000000000000003", permanent}, []string{"ARCHIVES", "--confirm", "--without-backup-check"}, 12},
	} {
		dir := small(t)
		sentinels, err := filepath.Glob(filepath.Join(dir, "basebackups_005", "*_sentinel.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, sentinel := range sentinels {
			name := strings.TrimSuffix(filepath.Base(sentinel), "_backup_stop_sentinel.json")
			if slices.Contains(c.backups, name) {
				continue
			}
			if err := errors.Join(os.Remove(sentinel), os.RemoveAll(filepath.Join(dir, "basebackups_005", name))); err != nil {
				t.Fatal(err)
			}
		}
		code, _, errs := run(t, []string{"WALG_FILE_PREFIX=" + dir}, append([]string{"delete", "garbage"}, c.args...)...)
		left, err := os.ReadDir(filepath.Join(dir, "wal_005"))
		if code != exitOK || err != nil || len(left) != c.left {
			t.Errorf("%s: exit code %d, %v, %d objects are left among the WAL, not %d\n%s", c.name, code, err, len(left), c.left, errs)
		}
	}
}

// What was proven longest ago, or never, comes first, and nothing is remembered of what is not proven.
func TestVerificationBeginsWithTheOldestProof(t *testing.T) {
	t.Parallel()
	dir := small(t)
	proven := map[string]string{
		"base_000000010000000000000003":                            "2026-11-22T00:00:00Z",
		"base_000000010000000000000005_D_000000010000000000000003": "2026-11-20T00:00:00Z",
		"base_00000002000000000000000B":                            "2026-11-21T00:00:00Z",
	}
	for name, at := range proven {
		if err := os.WriteFile(filepath.Join(dir, "basebackups_005", name, "walden_proof.json"), []byte(`{"time":"`+at+`"}`), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const never, first, second, third = "base_000000010000000000000008", "base_000000010000000000000005_D_000000010000000000000003",
		"base_00000002000000000000000B", "base_000000010000000000000003"
	for _, c := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"all"}, exitError, []string{never, first, second, third}},
		{[]string{"all", "--sample", "2"}, exitError, []string{never, first}},
		{[]string{"all", "--sample", "9"}, exitError, []string{never, first, second, third}},
		{[]string{"all", "--max-time", "1ns"}, exitOK, nil},
		{[]string{third}, exitError, []string{third}},
	} {
		code, out, errs := run(t, []string{"WALG_FILE_PREFIX=" + dir}, append([]string{"backup-verify", "--json"}, c.args...)...)
		var list []examined
		if err := json.Unmarshal([]byte(out), &list); err != nil || code != c.code {
			t.Fatalf("%v: exit code %d, %v\n%s", c.args, code, err, errs)
		}
		var names []string
		for _, v := range list {
			names = append(names, v.Backup)
			if v.Proven || v.Error == "" || (v.Before == nil) != (proven[v.Backup] == "") || v.Before != nil && v.Before.Format(time.RFC3339) != proven[v.Backup] {
				t.Errorf("%v: %+v", c.args, v)
			}
		}
		if !slices.Equal(names, c.want) {
			t.Errorf("%v: %v instead of %v", c.args, names, c.want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "basebackups_005", never, "walden_proof.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not proven is remembered: %v", err)
	}
}

func TestWhatARepairSaysLooksAsOthersExpectIt(t *testing.T) {
	t.Parallel()
	dir := small(t)
	server := t.TempDir()
	segment := filepath.Join(server, "000000010000000000000007") // of the cluster, and with nothing in it but its header (XLogLongPageHeaderData)
	header := make([]byte, wal.HeaderSize)
	le := binary.LittleEndian
	le.PutUint16(header, 0xD110)
	le.PutUint16(header[2:], 2)
	le.PutUint32(header[4:], 1)
	le.PutUint64(header[8:], 7<<24)
	le.PutUint64(header[24:], 7710887100029993858)
	le.PutUint32(header[32:], 16<<20)
	le.PutUint32(header[36:], 8192)
	if err := errors.Join(os.WriteFile(segment, header, 0o644), os.Truncate(segment, 16<<20)); err != nil {
		t.Fatal(err)
	}
	for file, args := range map[string][]string{"repair.txt": nil, "repair.json": {"--json"}} {
		code, out, errs := run(t, []string{"WALG_FILE_PREFIX=" + dir}, append([]string{"archive", "repair", server}, args...)...)
		if code != exitVerifyFailed {
			t.Errorf("%v: exit code %d\n%s", args, code, errs)
		}
		golden(t, filepath.Join("testdata", "looks", file), strings.ReplaceAll(strings.ReplaceAll(out, dir, "/srv/archive"), server, "/srv/pg_wal"))
	}
}
