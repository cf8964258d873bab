package cli

import (
	"bytes"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// walGLines matches a log in WAL-G's form, in which a line of an error that goes on is indented.
var walGLines = regexp.MustCompile(`^(?:(?:(?:INFO|WARNING|ERROR|DEBUG): \d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} .+|  .*)\n)*$`)

func TestCalledAsWALGWaldenSpeaksAsWALG(t *testing.T) {
	t.Parallel()
	environ := []string{"WALG_FILE_PREFIX=" + t.TempDir(), "WALG_DELTA_MAX_STEPS=6"}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"backup-list"}, 0, ""},
		{[]string{"wal-push", "/no/such/file"}, 1, "ERROR: "},
		{[]string{"wal-fetch", "000000010000000000000001", "x"}, 1, "INFO: "}, // an empty archive is a wrong prefix
		{[]string{"backup-fetch", "/no/such/directory/x", "LATEST"}, 1, "the archive holds no backup"},
		{[]string{"backup-push", "/no/such/directory", "--full", "--pghost", "/no/such/directory"}, 1, "cannot connect"},
		{[]string{"wal-prefetch", "000000010000000000000001", "/tmp"}, 0, "nothing is prefetched"},
		{[]string{"delete", "retain", "FULL", "7", "--confirm"}, 0, "No objects matched the deletion criteria."},
		{[]string{"delete", "before", "base_000000010000000000000002"}, 1, "there is no backup"},
		{[]string{"delete", "before", "2999-01-01T00:00:00Z"}, 1, "in the future"},
		{[]string{"delete", "retain", "0"}, 1, "at least 1"},
		{[]string{"delete", "retain", "FULL"}, 1, "at least 1"},
		{[]string{"delete", "retain", "--days", "14"}, 0, "No objects matched the deletion criteria."},
		{[]string{"delete", "retain", "--days", "14", "3"}, 1, "stands alone"},
		{[]string{"delete", "retain", "FULLY", "3"}, 1, "is not FULL or FIND_FULL"},
		{[]string{"delete", "everything", "NOW"}, 1, "is not FORCE"},
		{[]string{"delete", "garbage", "ARCHIVES", "--use-sentinel-time"}, 0, "No objects matched the deletion criteria."},
		{[]string{"delete", "target", "FIND_FULL", "LATEST"}, 1, "the archive holds no backup"},
		{[]string{"delete", "target", "--target-user-data", "x"}, 1, "valid JSON"},
		{[]string{"delete"}, 1, "it needs one of the commands"},
		{[]string{"st", "ls", "--all-versions"}, 1, "hint: the storage's own tools show earlier versions"},
		{[]string{"no-such-command"}, 1, "hint: `wal-g --help`"},
	} {
		code, _, errs := runAs(t, "wal-g", environ, c.args...)
		log := strings.Replace(errs, "No backups found\n", "", 1)
		if code != c.code || !strings.Contains(errs, c.says) || !walGLines.MatchString(log) {
			t.Errorf("wal-g %q: exit code %d\n%s", c.args, code, errs)
		}
	}
	if code, out, _ := runAs(t, "wal-g", nil, "--version"); code != 0 || !regexp.MustCompile(`^wal-g version 1\.2\.3\t[^\t]+\t[^\t]+\tPostgreSQL\n$`).MatchString(out) {
		t.Errorf("--version: %d, %q", code, out)
	}
	if code, out, _ := runAs(t, "wal-g", nil, "backup-push", "--help"); code != 0 || !strings.Contains(out, "wal-g backup-push [PGDATA]") {
		t.Errorf("--help: %d, %q", code, out)
	}
	// The log is JSON where that is asked for.
	if _, _, errs := runAs(t, "wal-g", append(environ, "WALDEN_LOG_FORMAT=json"), "wal-prefetch", "x", "y"); !strings.HasPrefix(errs, "{") {
		t.Errorf("as JSON: %q", errs)
	}
}

func TestTheNameOfANewBackupEndsItsLine(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	slog.New(walG{}.handler(&b, &slog.HandlerOptions{Level: slog.LevelInfo})).Info("Wrote backup with name base_1 to storage default", "state", "complete", "size", 7)
	lines := strings.SplitAfter(b.String(), "\n")
	if len(lines) != 3 || !strings.HasSuffix(lines[0], " Wrote backup with name base_1 to storage default\n") || !strings.HasSuffix(lines[1], " backup state=complete size=7\n") {
		t.Errorf("%q", lines)
	}
}

// Whatever WAL-G has is there: as a command that works, or as one that says what to do instead (WAL-G format, "Commands").
func TestEveryCommandAndFlagOfWALGIsAnswered(t *testing.T) {
	t.Parallel()
	const setting = "" // a command of its own, and not one of PostgreSQL's jobs
	works := map[string]string{
		"backup-push": "full permanent verify store-all-corrupt rating-composer copy-composer database-composer delta-from-name delta-from-user-data " +
			"add-user-data without-files-metadata target-storage",
		"backup-fetch": "mask restore-spec reverse-unpack skip-redundant-tars restore-only target-user-data target-storage",
		"backup-list":  "pretty json detail target-storage",
		"wal-push":     "target-storage", "wal-fetch": "target-storage", "wal-prefetch": setting, "daemon": setting, "flags": setting,
	}
	shorthands := map[string]string{"full": "f", "permanent": "p", "verify": "v", "store-all-corrupt": "s", "rating-composer": "r", "copy-composer": "c", "database-composer": "b"}
	root := walG{}.command(&app{screen: newScreen(&bytes.Buffer{})})
	find := func(name string) *cobra.Command {
		c, _, err := root.Find([]string{name})
		if err != nil || c == root {
			t.Fatalf("%s is not there", name)
		}
		return c
	}
	for name, flags := range works {
		c := find(name)
		for _, flag := range strings.Fields(flags) {
			if f := c.Flags().Lookup(flag); f == nil || f.Shorthand != shorthands[flag] {
				t.Errorf("%s --%s: %+v", name, flag, f)
			}
		}
	}
	for _, flag := range []string{"config", "turbo"} {
		if root.PersistentFlags().Lookup(flag) == nil {
			t.Errorf("--%s is not there", flag)
		}
	}
	var refused []string
	for _, m := range missing {
		refused = append(refused, m.name)
		if err := find(m.name).RunE(nil, nil); err == nil {
			t.Errorf("%s succeeds", m.name)
		}
	}
	want := strings.Fields("catchup-fetch catchup-list catchup-push catchup-receive catchup-send pgbackrest wal-receive wal-restore")
	if !slices.Equal(refused, want) {
		t.Errorf("refused are %v", refused)
	}
}
