package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/config"
	"gitlab.com/walden-pg/walden/internal/restore"
)

// runAs is Main under another name, in an environment that has no configuration file.
func runAs(t *testing.T, name string, environ []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "walden.yaml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	environ = append([]string{"WALDEN_CONFIG_PATH=" + file, "WALE_LOG_DESTINATION=stderr"}, environ...)
	var out, errs bytes.Buffer
	code = Main(Process{Args: args, Called: "/usr/local/bin/" + name, Program: name, Environ: environ, Stdout: &out, Stderr: &errs, Version: "1.2.3"})
	return code, out.String(), errs.String()
}

// archiveOfWALE makes an archive in which WAL-E finds the two backups of its captured outputs.
func archiveOfWALE(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"basebackups_005", "wal_005"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for segment, modified := range map[string]string{"000000010000000000000012": "2026-11-22T07:47:23.563Z", "000000010000000000000014": "2026-11-22T07:47:23.615Z"} {
		name := filepath.Join(dir, "basebackups_005", "base_"+segment+"_00000040_backup_stop_sentinel.json")
		text := fmt.Sprintf(`{"wal_segment_backup_stop": %q, "wal_segment_offset_backup_stop": "00000256", "expanded_size_bytes": 6794305, "spec": `+
			`{"base_prefix": "/srv/main/", "tablespaces": []}}`, segment)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, at(modified), at(modified)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// WAL-E's deletions remove its own backups whole, with the WAL before those that stay, and nothing without --confirm.
func TestDeletionsOfWALEKeepWhatStaysWhole(t *testing.T) {
	t.Parallel()
	const older, newer = "base_000000010000000000000012_00000040", "base_000000010000000000000014_00000040"
	all := []string{
		"basebackups_005/" + older + "/extended_version.txt", "basebackups_005/" + older + "/tar_partitions/part_00000000.tar.lzo",
		"basebackups_005/" + newer + "/extended_version.txt", "basebackups_005/" + newer + "/tar_partitions/part_00000000.tar.lzo",
		"wal_005/000000010000000000000011.lzo", "wal_005/000000010000000000000012.lzo", "wal_005/000000010000000000000013.lzo",
		"wal_005/000000010000000000000014.lzo", "wal_005/000000010000000000000015.lzo", "notes",
	}
	const sentinel = "_backup_stop_sentinel.json"
	kept := []string{
		"basebackups_005/" + newer + sentinel, all[2], all[3], all[7], all[8], all[9],
	}
	everything := append([]string{"basebackups_005/" + older + sentinel, "basebackups_005/" + newer + sentinel}, all...)
	for _, c := range []struct {
		args []string
		code int
		left []string
	}{
		{[]string{"delete", "retain", "1"}, 0, everything},
		{[]string{"delete", "--dry-run", "--confirm", "retain", "1"}, 0, everything},
		{[]string{"delete", "--confirm", "retain", "1"}, 0, kept},
		{[]string{"delete", "--confirm", "retain", "2"}, 0, append([]string{"basebackups_005/" + older + sentinel, "basebackups_005/" + newer + sentinel}, append(slices.Clone(all[:4]), all[5:]...)...)},
		{[]string{"delete", "--confirm", "before", newer}, 0, kept},
		{[]string{"delete", "--confirm", "before", "000000010000000000000013"}, 0, kept}, // a segment between the backups
		{[]string{"delete", "--confirm", "before", "000000010000000000000016"}, 0, everything},
		{[]string{"delete", "before", newer}, 0, everything},
		{[]string{"delete", "--confirm", "everything"}, 0, []string{"notes"}},
		{[]string{"delete", "--confirm", "old-versions"}, 1, everything},
	} {
		dir := archiveOfWALE(t)
		for _, key := range all {
			if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, key)), 0o755), os.WriteFile(filepath.Join(dir, key), []byte("x"), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		code, _, errs := runAs(t, "wal-e", []string{"WALE_FILE_PREFIX=file://localhost" + dir}, c.args...)
		var left []string
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				left = append(left, strings.TrimPrefix(path, dir+"/"))
			}
			return err
		})
		want := slices.Sorted(slices.Values(c.left))
		slices.Sort(left)
		if code != c.code || err != nil || !slices.Equal(left, want) {
			t.Errorf("wal-e %q: exit code %d, %v, there is\n%s\nwanted\n%s\n%s", c.args, code, err, strings.Join(left, "\n"), strings.Join(want, "\n"), errs)
		}
	}
}

// captured is an output of WAL-E 1.1.1 (testdata/wal-e).
func captured(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "wal-e", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// records divides a log of WAL-E's form into its records.
func records(log string) []string {
	var list []string
	for line := range strings.Lines(log) {
		if !strings.HasPrefix(line, "        ") || len(list) == 0 {
			list = append(list, "")
		}
		list[len(list)-1] += line
	}
	return list
}

// figures are what differs from run to run, from storage to storage, and in what walden compresses with.
var figures = []struct {
	found *regexp.Regexp
	shown string
}{
	{regexp.MustCompile(`time=\S+-00 pid=[0-9]+`), "time=T pid=P"},
	{regexp.MustCompile(`rate=[0-9.e+]+`), "rate=R"},
	{regexp.MustCompile(`at [0-9.e+]+KiB/s`), "at RKiB/s"},
	{regexp.MustCompile(`wal_e\.blobstore\.[a-z0-9]+\.[a-z0-9]+_util`), "wal_e.blobstore"},
	{regexp.MustCompile(`\.(lzo|lz4)\b`), ".EXT"},
}

func withoutFigures(log string) string {
	for _, f := range figures {
		log = f.found.ReplaceAllString(log, f.shown)
	}
	return log
}

func TestTheListHasWALEsColumns(t *testing.T) {
	t.Parallel()
	dir := archiveOfWALE(t)
	environ := []string{"WALE_FILE_PREFIX=file://localhost" + dir}
	// The times of a directory are written in another form than those of S3, where the output was captured.
	onS3 := regexp.MustCompile(`(\d\d\.\d{3})000\t`)
	for _, c := range []struct {
		name string
		args []string
		code int
	}{
		{"backup-list", []string{"backup-list"}, 0},
		{"backup-list-detail", []string{"backup-list", "--detail"}, 0},
		{"backup-list-latest", []string{"backup-list", "LATEST"}, 0},
		{"backup-list-bad", []string{"backup-list", "FOO"}, 1},
	} {
		code, out, errs := runAs(t, "wal-e", environ, c.args...)
		if got, want := onS3.ReplaceAllString(out, "${1}Z\t"), captured(t, c.name+".stdout"); code != c.code || got != want {
			t.Errorf("%s: exit code %d\n%q\nwant\n%q", c.name, code, got, want)
		}
		if got, want := withoutFigures(errs), withoutFigures(captured(t, c.name+".stderr")); got != want {
			t.Errorf("%s: standard error\n%s\nwant\n%s", c.name, got, want)
		}
	}
	header := strings.SplitAfter(captured(t, "backup-list.stdout"), "\n")[0]
	if code, out, _ := runAs(t, "wal-e", environ, "backup-list", "base_0000000100000000000000FF_00000040"); code != 0 || out != header {
		t.Errorf("an unknown backup: exit code %d, %q", code, out)
	}
	if code, out, _ := runAs(t, "wal-e", []string{"WALE_FILE_PREFIX=" + "file://localhost" + t.TempDir()}, "backup-list", "LATEST"); code != 0 || out != header {
		t.Errorf("an empty archive: exit code %d, %q", code, out)
	}
}

func TestBackupsOfOthersAreListedInWALEsColumnsToo(t *testing.T) {
	t.Parallel()
	backups := []catalog.Backup{
		{
			Name: "base_000000010000000000000002", Modified: at("2026-11-22T07:00:27.212136918Z"), StartLSN: 33554472, FinishLSN: 33554688, UncompressedSize: 23920173,
		},
		{Name: "base_000000020000000100000041_D_000000020000000100000040", Modified: at("2026-11-22T07:00:28Z"), StartLSN: 0x105041000, FinishLSN: 0x105160000},
		{Name: "base_000000010000000000000004_00001120", Modified: at("2026-11-22T07:00:29Z")},
		{Name: "notes", Modified: at("2026-11-22T07:00:30Z"), Problem: os.ErrInvalid},
	}
	for kind, times := range map[config.Kind][2]string{
		config.KindS3:    {"2026-11-22T07:00:27.212Z", "2026-11-22T07:00:28.000Z"},
		config.KindFile:  {"2026-11-22T07:00:27.212136", "2026-11-22T07:00:28"},
		config.KindGCS:   {"2026-11-22 07:00:27.212136+00:00", "2026-11-22 07:00:28.000000+00:00"},
		config.KindAzure: {"2026-11-22 07:00:27.212136+00:00", "2026-11-22 07:00:28.000000+00:00"},
	} {
		var b bytes.Buffer
		if err := walEList(&b, backups, true, kind); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(b.String(), "\r\n")
		for i, want := range []string{
			"base_000000010000000000000002\t" + times[0] + "\t23920173\t000000010000000000000002\t00000040\t000000010000000000000002\t00000256",
			"base_000000020000000100000041_D_000000020000000100000040\t" + times[1] + "\t0\t000000020000000100000041\t00000000\t000000020000000100000041\t00000000",
		} {
			if i == 1 { // 0x105041000 lies in no segment of that name, whatever the size of segments
				want = "base_000000020000000100000041_D_000000020000000100000040\t" + times[1] + "\t0\t000000020000000100000041\t\t\t"
			}
			if lines[1+i] != want {
				t.Errorf("%s: %q, want %q", kind, lines[1+i], want)
			}
		}
		if !strings.HasSuffix(lines[3], "\t000000010000000000000004\t00001120\t\t") || !strings.HasPrefix(lines[4], "notes\t") || !strings.HasSuffix(lines[4], "\t\t\t\t\t") {
			t.Errorf("%s: %q, %q", kind, lines[3], lines[4])
		}
	}
}

func TestErrorsHaveTheWordsOfWALE(t *testing.T) {
	t.Parallel()
	environ := []string{"WALE_FILE_PREFIX=file://localhost" + archiveOfWALE(t)}
	if code, out, errs := runAs(t, "wal-e", nil, "backup-list"); code != 1 || out != "" || withoutFigures(errs) != withoutFigures(captured(t, "no-prefix.stderr")) {
		t.Errorf("without a prefix: exit code %d, %q\n%s", code, out, errs)
	}
	unknown := strings.Fields(captured(t, "backup-fetch-unknown.cmd"))[3]
	code, _, errs := runAs(t, "wal-e", environ, "backup-fetch", filepath.Join(t.TempDir(), "nowhere"), unknown)
	want := records(withoutFigures(captured(t, "backup-fetch-unknown.stderr")))
	if got := records(withoutFigures(errs)); code != 1 || len(got) != 2 || got[0] != want[0] || !strings.HasPrefix(got[1], want[1][:strings.Index(want[1], "STRUCTURED")]) &&
		!strings.Contains(got[1], "HINT: ") {
		t.Errorf("an unknown backup: exit code %d\n%s", code, errs)
	}
	missing := strings.Fields(captured(t, "wal-push-missing.cmd"))[4]
	code, _, errs = runAs(t, "wal-e", environ, "wal-push", "-p", "1", missing)
	if want := records(withoutFigures(captured(t, "wal-push-missing.stderr")))[1]; code != 1 || withoutFigures(errs) != want {
		t.Errorf("a file that is not there: exit code %d\n%s\nwant\n%s", code, errs, want)
	}
	live := t.TempDir()
	if err := os.WriteFile(filepath.Join(live, "postmaster.pid"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := runAs(t, "wal-e", environ, "backup-fetch", live, "LATEST"); code != 1 || !strings.Contains(errs, "MSG: attempting to overwrite a live data directory\n") {
		t.Errorf("a live data directory: exit code %d\n%s", code, errs)
	}
}

// What monitoring reads: the lines about each WAL file.
func TestWALFilesAreLoggedAsWALEDoes(t *testing.T) {
	t.Parallel()
	dir, wal := t.TempDir(), t.TempDir()
	const history = "0000000A.history"
	path, dest := filepath.Join(wal, history), filepath.Join(wal, "RECOVERYHISTORY")
	if err := os.WriteFile(path, []byte("9\t0/3000000\tno recovery target specified\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	environ := []string{"WALE_FILE_PREFIX=file://localhost" + dir}
	// ours makes what was logged here look as if the captured commands had been run.
	ours := func(log, segment string) string {
		return withoutFigures(strings.NewReplacer(
			"file://localhost"+dir, "s3://walebkt/some/db", "prefix="+strings.Trim(dir, "/")+"/", "prefix=some/db/", path, "pg_wal/"+segment,
			history, segment, dest, "RECOVERYXLOG",
		).Replace(log))
	}

	const pushed = "0000000A0000000000000001"
	var want []string
	for _, r := range records(withoutFigures(captured(t, "wal-push.stderr"))) {
		if strings.Contains(r, "seg="+pushed) { // WAL-E goes on with other segments that wait
			want = append(want, r)
		}
	}
	for range 2 { // the second time it is archived already
		code, out, errs := runAs(t, "wal-e", environ, "wal-push", path)
		if code != 0 || out != "" || ours(errs, pushed) != strings.Join(want, "") {
			t.Errorf("wal-push: exit code %d, %q\n%s\nwant\n%s", code, out, ours(errs, pushed), strings.Join(want, ""))
		}
		monitored := regexp.MustCompile(`STRUCTURED:.*action=push-wal.*rate=[0-9.e+]{2,} .*state=complete`)
		if !monitored.MatchString(errs) {
			t.Errorf("no line for monitoring:\n%s", errs)
		}
	}
	if code, _, errs := runAs(t, "wal-e", environ, "--terse", "wal-push", path); code != 0 || errs != "" {
		t.Errorf("--terse: exit code %d\n%s", code, errs)
	}

	code, _, errs := runAs(t, "wal-e", environ, "wal-fetch", "-p", "0", history, dest)
	if want := withoutFigures(captured(t, "wal-fetch-hit.stderr")); code != 0 || ours(errs, "000000010000000000000016") != want {
		t.Errorf("wal-fetch: exit code %d\n%s\nwant\n%s", code, ours(errs, "000000010000000000000016"), want)
	}
	code, _, errs = runAs(t, "wal-e", environ, "wal-fetch", "-p4", "0000000B.history", dest+"2")
	missed := withoutFigures(captured(t, "wal-fetch-miss.stderr"))
	missed = strings.Replace(missed, "lzop: <stdin>: not a lzop file\n", "", 1)
	// What was not there was not completed, so that walden does not say it.
	missed = strings.Join(records(missed)[:2], "")
	got := ours(strings.ReplaceAll(errs, "0000000B.history", "000000010000000000000099"), "")
	if code != 1 || got != missed {
		t.Errorf("wal-fetch of what is not there: exit code %d\n%s\nwant\n%s", code, got, missed)
	}
}

func TestRatesHaveSixDigitsAndTwoCharacters(t *testing.T) {
	t.Parallel()
	began := at("2026-11-22T07:00:00Z")
	for _, c := range []struct {
		bytes int64
		took  time.Duration
		want  string
	}{
		{5 << 10, time.Second, "05"}, {0, time.Second, "00"}, {16 << 20, time.Second, "16384"}, {323698, time.Second, "316.111"},
		{1536 << 20, 1024 * time.Millisecond, "1.536e+06"}, {1 << 10, 0, "1000"},
	} {
		if got := (&walE{began: began}).rate(began.Add(c.took), c.bytes); got != c.want {
			t.Errorf("%d bytes in %s: %q, want %q", c.bytes, c.took, got, c.want)
		}
	}
}

func TestOptionsOfWALEAreUnderstoodWhereTheyStand(t *testing.T) {
	t.Parallel()
	dir := archiveOfWALE(t)
	prefix := "file://localhost" + dir
	environ := []string{"WALE_FILE_PREFIX=" + prefix}
	for _, c := range []struct {
		environ []string
		args    []string
		code    int
		says    string // on standard error
	}{
		{environ, []string{"--terse", "backup-list"}, 0, ""},
		{nil, []string{"--file-prefix", prefix, "backup-list"}, 0, ""},
		{nil, []string{"--file-prefix=" + prefix, "backup-list", "--det"}, 0, ""},
		{nil, []string{"--fi", prefix, "--te", "backup-list"}, 0, ""},
		{nil, []string{"--s3-prefix", prefix, "backup-list"}, 0, ""}, // the URL's scheme decides
		{[]string{"WALE_S3_PREFIX=s3://elsewhere/x"}, []string{"--file-prefix", prefix, "backup-list"}, 0, ""},
		{[]string{"WALE_S3_PREFIX=s3://elsewhere/x", "WALE_FILE_PREFIX=" + prefix}, []string{"backup-list"}, 0, ""},
		{environ, []string{"--aws-instance-profile", "--gs-access-key-id", "x", "-a", "account", "--gpg-key-id", "", "backup-list"}, 0, ""},
		{environ, []string{"-kKEY", "--aws-instance-profile", "backup-list"}, 2, "together"},
		{environ, []string{"--s", "x", "backup-list", "--file-prefix", prefix}, 2, "unknown flag"}, // options of the program stand before the command
		{environ, []string{"backup-list", "--terse"}, 2, "unknown flag"},
		{environ, []string{"backup-list", "-p", "1"}, 2, "unknown shorthand"},
		{environ, []string{"--g", "x", "backup-list"}, 2, "unknown flag"}, // several begin like this
		{environ, []string{"backup-push"}, 2, "0 arguments given"},
		{environ, []string{"backup-push", "-p", "0", "/data"}, 2, "at least 1"},
		{environ, []string{"backup-push", "--while-offline", "/data"}, 1, "HINT: start the cluster"},
		{environ, []string{"backup-fetch", "--blind", "-p4", "/data"}, 2, "1 arguments given"},
		{environ, []string{"backup-fetch", "--restore-spec", "/no/such/file", "/data", "LATEST"}, 1, "cannot read the restore specification"},
		{environ, []string{"wal-push", "-p", "many", "x"}, 2, "invalid argument"},
		{environ, []string{"wal-prefetch", "/base", "000000010000000000000012"}, 0, "nothing is prefetched"},
		{environ, []string{"delete", "retain", "1"}, 0, "MSG: performing dry run of data deletion"},
		{environ, []string{"delete", "-n", "--confirm", "before", "base_000000010000000000000014_00000040"}, 0, ""},
		{environ, []string{"delete", "before", "000000010000000000000014"}, 0, ""},
		{environ, []string{"delete", "before", "tomorrow"}, 2, "name of no backup"},
		{environ, []string{"delete", "retain", "0"}, 2, "at least 1"},
		{environ, []string{"delete", "everything"}, 0, "no actual data is being deleted"},
		{environ, []string{"delete", "--confirm", "old-versions"}, 1, "nothing was deleted"},
		{environ, []string{"delete"}, 2, "cannot run delete"},
		{environ, strings.Fields(strings.TrimPrefix(strings.Split(captured(t, "usage-error.cmd"), "\n")[0], "wal-e ")), 2, "cannot run delete"},
		{environ, []string{}, 127, "no command given"},
		{environ, []string{"backup-lost"}, 2, "there is no such command"},
		{[]string{"WALE_S3_PREFIX=x"}, []string{"backup-list"}, 1, "MSG: bad prefix"},
		{[]string{"WALE_WABS_PREFIX=wabs://container/x"}, []string{"backup-list"}, 1, "names a storage that this version of walden does not have"},
		{nil, []string{"version"}, 0, ""},
		{nil, []string{"-h"}, 0, ""},
		{nil, []string{"delete", "--help"}, 0, ""},
	} {
		code, out, errs := runAs(t, "wal-e", c.environ, c.args...)
		if code != c.code || !strings.Contains(errs, c.says) || c.says == "" && strings.Contains(errs, "ERROR") {
			t.Errorf("%v wal-e %q: exit code %d instead of %d\n%s%s", c.environ, c.args, code, c.code, out, errs)
		}
		if listed := strings.Count(out, "base_"); c.code == 0 && slices.Contains(c.args, "backup-list") && listed != 2 {
			t.Errorf("%v wal-e %q lists %d backups", c.environ, c.args, listed)
		}
	}
	if _, out, _ := runAs(t, "wal-e", nil, "version"); out != "walden 1.2.3\n" {
		t.Errorf("version: %q", out)
	}
}

// Options that stand for settings are settings.
func TestOptionsOfWALEAreSettings(t *testing.T) {
	t.Parallel()
	a := &app{process: Process{Environ: []string{"WALE_GS_PREFIX=gs://bucket/some/db"}}, screen: newScreen(&bytes.Buffer{})}
	w := &walE{}
	a.as = w
	root := w.command(a)
	if err := root.ParseFlags([]string{"--gpg-key-id", "0xABC", "-k", "KEY", "-a", "mine"}); err != nil {
		t.Fatal(err)
	}
	_ = w.load(a, root) // it fails: there is no secret to the key
	want := map[string]string{
		"WALE_GPG_KEY_ID": "0xABC", "AWS_ACCESS_KEY_ID": "KEY", "WABS_ACCOUNT_NAME": "mine", "GCS_NORMALIZE_PREFIX": "false",
		// WAL-E's objects in GCS have a slash before their names, those of WAL-G have none.
		"WALG_GS_PREFIX":  "gs://bucket//some/db",
		"WALG_OSS_PREFIX": "", "WALG_S3_PREFIX": "", "WALG_FILE_PREFIX": "", "WALG_AZ_PREFIX": "", "WALG_SWIFT_PREFIX": "", "WALG_SSH_PREFIX": "",
	}
	if !maps.Equal(a.flags, want) {
		t.Errorf("%v", a.flags)
	}
}

// A failure must not look like the end of the archive, under any name.
func TestWALFetchStopsRecoveryUnderEveryName(t *testing.T) {
	for _, name := range []string{"wal-e", "wal-g", "walden"} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "pg_wal"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "recovery.signal"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Chdir(dir)
		for _, environ := range [][]string{
			{"WALE_FILE_PREFIX=file://localhost/no/such/directory"}, {"WALE_FILE_PREFIX=x"}, {"WALE_FILE_PREFIX=file://localhost" + t.TempDir()},
		} {
			if code, _, errs := runAs(t, name, environ, "wal-fetch", "000000010000000000000012", "pg_wal/RECOVERYXLOG"); code != exitStopRecovery {
				t.Errorf("%s with %v: exit code %d\n%s", name, environ, code, errs)
			}
		}
		for _, args := range [][]string{{"wal-fetch"}, {"wal-fetch", "--no-such-option", "a", "b"}} {
			if code, _, errs := runAs(t, name, nil, args...); code != exitStopRecovery {
				t.Errorf("%s %q: exit code %d\n%s", name, args, code, errs)
			}
		}
	}
}

func TestPreparedLinksSayWhereTablespacesGo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		title  string
		make   func(t *testing.T, dir string)
		spec   map[uint32]string
		taken  bool
		remain int // entries of the directory
	}{
		{"nothing there", func(*testing.T, string) {}, nil, false, 0},
		{"links alone", func(t *testing.T, dir string) { prepareLinks(t, dir) }, map[uint32]string{16384: "/srv/a", 16385: "/srv/b"}, true, 0},
		{"other things beside them", func(t *testing.T, dir string) {
			prepareLinks(t, dir)
			if err := os.WriteFile(filepath.Join(dir, "PG_VERSION"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, map[uint32]string{16384: "/srv/a", 16385: "/srv/b"}, false, 2},
		{"a directory in place of a link", func(t *testing.T, dir string) {
			if err := os.MkdirAll(filepath.Join(dir, "pg_tblspc", "16384"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, nil, false, 1},
	} {
		dir := t.TempDir()
		c.make(t, dir)
		var o restore.Options
		l, err := takeLinks(dir, &o)
		if err != nil {
			t.Errorf("%s: %v", c.title, err)
		}
		var spec map[uint32]string
		if o.Spec != nil {
			spec = o.Spec.Tablespaces
		}
		if left, _ := os.ReadDir(dir); !maps.Equal(spec, c.spec) || l.taken != c.taken || len(left) != c.remain {
			t.Errorf("%s: %v, taken %v, %d entries remain", c.title, spec, l.taken, len(left))
		}
		if err := l.putBack(); err != nil {
			t.Errorf("%s: %v", c.title, err)
		}
		if place, _ := os.Readlink(filepath.Join(dir, "pg_tblspc", "16385")); c.taken && place != "/srv/b" {
			t.Errorf("%s: the link is put back as %q", c.title, place)
		}
	}
}

func prepareLinks(t *testing.T, dir string) {
	t.Helper()
	spaces := filepath.Join(dir, "pg_tblspc")
	if err := os.Mkdir(spaces, 0o700); err != nil {
		t.Fatal(err)
	}
	for oid, place := range map[string]string{"16384": "/srv/a", "16385": "../../srv/b"} {
		if oid == "16385" {
			place = "/srv/b"
		}
		if err := os.Symlink(place, filepath.Join(spaces, oid)); err != nil {
			t.Fatal(err)
		}
	}
}

// Nothing that comes from a name or from an error can look like a line of its own.
func TestLinesOfOtherToolsCannotBeForged(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]personality{"wal-e": &walE{}, "wal-g": walG{}} {
		var b bytes.Buffer
		log := slog.New(p.handler(&b, &slog.HandlerOptions{Level: slog.LevelInfo})).With("backup", "x\nINFO: 1\x1b[2J")
		log.Warn("a\nERROR: b", "error", "c\nwal_e.main   ERROR    MSG: d")
		log.Debug("not shown")
		log.WithGroup("g").Info("plain")
		for line := range strings.Lines(b.String()) {
			if !strings.HasPrefix(line, "INFO: 2") && !strings.HasPrefix(line, "WARNING: 2") && !strings.HasPrefix(line, "wal_e.main   ") && !strings.HasPrefix(line, "  ") ||
				strings.Contains(line, "\x1b") {
				t.Errorf("%s: %q", name, line)
			}
		}
		if !p.handler(&b, &slog.HandlerOptions{Level: slog.LevelInfo}).Enabled(context.Background(), slog.LevelInfo) {
			t.Errorf("%s: nothing is logged", name)
		}
	}
}
