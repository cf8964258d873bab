package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/restore"
)

var update = flag.Bool("update", false, "write docs/commands and the golden files instead of comparing them")

// run is Main with a configuration of its own.
func run(t *testing.T, environ []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "walden.yaml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	code = Main(Process{Args: append([]string{"--config", config}, args...), Program: "walden", Environ: environ, Stdout: &out, Stderr: &errs, Version: "1.2.3"})
	return code, out.String(), errs.String()
}

// golden compares text with a file, or writes it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || got != string(want) {
		t.Errorf("%s (%v) is not what is made now:\n%s\nwanted:\n%s\nif the change is meant: go test ./internal/cli -update", path, err, got, want)
	}
}

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t
}

// listOf is a list as WAL-G's documentation shows it (WAL-G format, "backup-list output").
func listOf() []catalog.Backup {
	return []catalog.Backup{
		{
			Name: "base_000000010000000000000002", Modified: at("2026-11-22T07:00:27.212136918Z"),
			StartTime: at("2026-11-22T07:00:25.937775Z"), FinishTime: at("2026-11-22T07:00:27.212585Z"), Hostname: "db1",
			DataDir: "/var/lib/postgresql/15/main", PgVersion: 150020, StartLSN: 33554472, FinishLSN: 33554688, Permanent: true,
			SystemIdentifier: 7710887100029993858, UncompressedSize: 23920173, CompressedSize: 4389071,
			UserData: json.RawMessage(`{"label":"first","n":[1,2]}`), WAL: catalog.WALArchived,
		},
		{Name: "base_000000010000000000000004", Modified: at("2026-11-22T07:01:57Z")},
		{Name: "base_000000010000000000000006_D_000000010000000000000004", Modified: at("2026-11-22T07:01:59Z")},
	}
}

func TestBackupListLooksAsOtherToolsExpectIt(t *testing.T) {
	t.Parallel()
	troubled := append(listOf(),
		catalog.Backup{Name: "base_000000010000000000000008", Modified: at("2026-11-22T08:00:00+01:00"), WAL: catalog.WALMissing, CorruptBlocks: 3},
		catalog.Backup{Name: "notes", Modified: at("2026-11-22T07:05:00Z"), Problem: errors.New("its sentinel is not valid: unexpected end of JSON input")})
	for name, backups := range map[string][]catalog.Backup{"list": listOf(), "troubled": troubled} {
		for _, detail := range []bool{false, true} {
			for _, c := range []struct {
				kind  string
				print func(*bytes.Buffer) error
			}{
				{"txt", func(b *bytes.Buffer) error { return listPlain(b, backups, detail) }},
				{"pretty.txt", func(b *bytes.Buffer) error { return listPretty(b, backups, detail) }},
				{"json", func(b *bytes.Buffer) error { return listJSON(b, backups, detail, false) }},
				{"pretty.json", func(b *bytes.Buffer) error { return listJSON(b, backups, detail, true) }},
			} {
				file := name + "." + c.kind
				if detail {
					file = name + ".detail." + c.kind
				}
				var b bytes.Buffer
				if err := c.print(&b); err != nil {
					t.Fatal(err)
				}
				golden(t, filepath.Join("testdata", file), b.String())
			}
		}
	}
	// Character by character as WAL-G prints it.
	var plain, asJSON, detailed bytes.Buffer
	for _, err := range []error{listPlain(&plain, listOf(), false), listJSON(&asJSON, listOf()[:1], false, false), listJSON(&detailed, listOf()[:1], true, false)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for got, want := range map[string]string{
		plain.String(): `backup_name                                              modified             wal_file_name            storage_name
base_000000010000000000000002                            2026-11-22T07:00:27Z 000000010000000000000002 default
base_000000010000000000000004                            2026-11-22T07:01:57Z 000000010000000000000004 default
base_000000010000000000000006_D_000000010000000000000004 2026-11-22T07:01:59Z 000000010000000000000006 default
`,
		asJSON.String(): `[{"backup_name":"base_000000010000000000000002","time":"2026-11-22T07:00:27.212136918Z","wal_file_name":"000000010000000000000002","storage_name":"default"}]` + "\n",
		detailed.String(): `[{"backup_name":"base_000000010000000000000002","time":"2026-11-22T07:00:27.212136918Z","wal_file_name":"000000010000000000000002","storage_name":"default",` +
			`"start_time":"2026-11-22T07:00:25.937775Z","finish_time":"2026-11-22T07:00:27.212585Z","date_fmt":"%Y-%m-%dT%H:%M:%S.%fZ","hostname":"db1",` +
			`"data_dir":"/var/lib/postgresql/15/main","pg_version":150020,"start_lsn":33554472,"finish_lsn":33554688,"is_permanent":true,` +
			`"system_identifier":7710887100029993858,"uncompressed_size":23920173,"compressed_size":4389071,"user_data":{"label":"first","n":[1,2]}}]` + "\n",
	} {
		if got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
}

// Names, host names and user data come from whoever can write to the archive.
func TestNothingFromAnArchiveReachesTheTerminalUnescaped(t *testing.T) {
	t.Parallel()
	const evil = "\x1b]0;title\a\x1b[2J\r\u009b31m\u202etxt\x7f\tcell\nhint: run this\xff\u200b"
	long := strings.Repeat("w", 100_000)
	backups := []catalog.Backup{
		{Name: evil, Modified: at("2026-11-22T08:00:00Z"), Hostname: evil, DataDir: evil, Problem: errors.New(evil), UserData: json.RawMessage("\"\u009b\u202e\U000e0001 ü\"")},
		{Name: "base_000000010000000000000008", Modified: at("2026-11-22T08:00:00Z"), Hostname: long, DataDir: long},
	}
	steps, told := &bytes.Buffer{}, &bytes.Buffer{}
	report := restore.Report{Dir: "/srv", Backup: backups[1], WALLink: evil, Spaces: []restore.Space{{OID: 1, Location: evil, Recorded: long}}}
	(&app{screen: newScreen(steps)}).nextSteps(report)
	printError(told, hint.With(fmt.Errorf("cannot use %s", evil), evil))
	outputs := map[string]*bytes.Buffer{"next steps": steps, "error": told}
	for what, print := range map[string]func(w *bytes.Buffer) error{
		"plain":  func(b *bytes.Buffer) error { return listPlain(b, backups, true) },
		"pretty": func(b *bytes.Buffer) error { return listPretty(b, backups, true) },
		"json":   func(b *bytes.Buffer) error { return listJSON(b, backups, true, true) },
	} {
		b := &bytes.Buffer{}
		if err := print(b); err != nil {
			t.Fatal(err)
		}
		outputs[what] = b
	}
	for what, b := range outputs {
		for line := range strings.Lines(b.String()) {
			text := strings.TrimSuffix(line, "\n")
			if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) && r != '…' }) {
				t.Errorf("%s: %.300q", what, text)
			}
			if what != "error" && strings.HasPrefix(text, "hint: run this") {
				t.Errorf("%s: %q", what, text)
			}
			if len(text) > 20_000 && what != "json" {
				t.Errorf("%s: a line of %d bytes", what, len(text))
			}
		}
	}
	if n := strings.Count("\n"+told.String(), "\nhint: "); n != 1 {
		t.Errorf("%d hints:\n%s", n, told)
	}
	var back []struct {
		Hostname string          `json:"hostname"`
		UserData json.RawMessage `json:"user_data"`
	}
	if err := json.Unmarshal(outputs["json"].Bytes(), &back); err != nil || back[0].Hostname != strings.ToValidUTF8(evil, "\ufffd") {
		t.Errorf("%v, %+v", err, back)
	}
	var data string
	if err := json.Unmarshal(back[0].UserData, &data); err != nil || data != "\u009b\u202e\U000e0001 ü" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestAnEmptyArchiveIsNoError(t *testing.T) {
	t.Parallel()
	environ := []string{"WALG_FILE_PREFIX=" + t.TempDir()}
	if code, out, errs := run(t, environ, "backup-list"); code != 0 || out != "" || errs != "No backups found\n" {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
	if code, out, errs := run(t, environ, "backup-list", "--json"); code != 0 || out != "[]\n" || errs != "" {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
	if code, out, errs := run(t, environ, "archive", "identity"); code != 0 || out != "" || !strings.Contains(errs, "has no identity yet") {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
}

// advice is an error with a hint.
type advice struct {
	error
	hint string
}

func (a advice) Hint() string  { return a.hint }
func (a advice) Unwrap() error { return a.error }

func TestEveryHintInAnErrorIsPrintedOnce(t *testing.T) {
	t.Parallel()
	inner := advice{errors.New("cause"), "inner"}
	err := fmt.Errorf("above: %w", advice{errors.Join(fmt.Errorf("left: %w", inner), advice{errors.New("right"), "right"}, inner, advice{errors.New("x"), ""}), "outer"})
	var b bytes.Buffer
	printError(&b, err)
	want := "walden: above: left: cause\n  right\n  cause\n  x\nhint: outer\nhint: inner\nhint: right\n"
	if b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

func TestWrongUsageIsExplained(t *testing.T) {
	t.Parallel()
	environ := []string{"WALG_FILE_PREFIX=" + t.TempDir()}
	for _, c := range []struct {
		args []string
		says []string
	}{
		{[]string{"wal-push"}, []string{"0 arguments given, the command is `walden wal-push PATH", "hint: `walden wal-push --help`"}},
		{[]string{"wal-fetch", "a"}, []string{"1 arguments given"}},
		{[]string{"backup-fetch"}, []string{"0 arguments given"}},
		{[]string{"backup-fetch", "/x"}, []string{"give either its name (or LATEST) or --target-user-data"}},
		{[]string{"backup-fetch", "/x", "LATEST", "--target-user-data", "1"}, []string{"give either"}},
		{[]string{"backup-fetch", "/x", "LATEST", "--mask", "*"}, []string{"--mask and --restore-only are not in this version"}},
		{[]string{"backup-fetch", "/x", "LATEST", "-T", "a=b"}, []string{"OLD=NEW with two absolute paths"}},
		{[]string{"backup-fetch", "/x", "LATEST", "--restore-spec", "/no/such/file"}, []string{"cannot read the restore specification"}},
		{[]string{"backup-push", "--add-user-data", "plain"}, []string{"not valid JSON"}},
		{[]string{"backup-push", "--delta-from-name", "x", "--pghost", "/no/such/directory"}, []string{"cannot connect"}},
		{[]string{"backup-push", "--delta-from-name", "x", "--delta-from-user-data", "1"}, []string{"only one can name the base"}},
		{[]string{"backup-push", "--delta-from-user-data", "plain"}, []string{"cannot find the base", "not valid JSON"}},
		{[]string{"archive"}, []string{"needs one of the commands"}},
		{[]string{"archive", "accept", "/no/such/directory"}, []string{"pg_control"}},
		{[]string{"no-such-command"}, []string{"there is no such command"}},
		{[]string{"wal-push", "x", "--no-such-flag"}, []string{"unknown flag"}},
		{[]string{"backup-list", "--target-storage", "failover"}, []string{`"failover"`}},
	} {
		code, out, errs := run(t, environ, c.args...)
		if code != exitError || out != "" {
			t.Errorf("%v: exit code %d, standard output %q", c.args, code, out)
		}
		for _, text := range c.says {
			if !strings.Contains(errs, text) {
				t.Errorf("%v: standard error does not say %q:\n%s", c.args, text, errs)
			}
		}
	}
	if code, out, _ := run(t, nil, "--version"); code != 0 || out != "walden version 1.2.3\tPostgreSQL\n" {
		t.Errorf("%d, %q", code, out)
	}
}

func TestSettingsShowNoSecrets(t *testing.T) {
	t.Parallel()
	environ := []string{"WALG_S3_PREFIX=s3://bucket/main", "AWS_SECRET_ACCESS_KEY=geheim", "PGPASSWORD=geheim", "AWS_ACCESS_KEY_ID=known"}
	for _, args := range [][]string{{"settings"}, {"settings", "--all"}, {"settings", "--json"}, {"flags"}} {
		code, out, errs := run(t, environ, args...)
		if code != 0 || strings.Contains(out+errs, "geheim") || !strings.Contains(out, "AWS_SECRET_ACCESS_KEY") || !strings.Contains(out, "***") || !strings.Contains(out, "s3://bucket/main") {
			t.Errorf("%v: exit code %d\n%s\n%s", args, code, out, errs)
		}
	}
	code, out, errs := run(t, append(environ, "WALG_COMPRESSION_METHOD=zip"), "settings") // shown although one is wrong
	if code != exitError || !strings.Contains(out, "s3://bucket/main") || !strings.Contains(errs, "WALG_COMPRESSION_METHOD") {
		t.Errorf("exit code %d\n%s\n%s", code, out, errs)
	}
}

// commands are all commands of the tree that operators call.
func commands() []*cobra.Command {
	a := &app{process: Process{Version: "1.2.3"}, screen: newScreen(&bytes.Buffer{})}
	var list []*cobra.Command
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		list = append(list, c)
		for _, sub := range c.Commands() {
			if !sub.Hidden && sub.Name() != "help" && sub.Name() != "completion" {
				walk(sub)
			}
		}
	}
	walk(a.command("walden"))
	return list
}

func TestEveryCommandIsDescribed(t *testing.T) {
	t.Parallel()
	for _, c := range commands() {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short description %q", c.CommandPath(), c.Short)
		}
		if c.Args == nil && c.HasParent() {
			t.Errorf("%s: takes any arguments", c.CommandPath())
		}
	}
}

// page renders the page of a command in docs/commands.
func page(c *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n<!-- Generated from the command itself: make docs -->\n\n%s\n\n", c.CommandPath(), c.Short)
	fmt.Fprintf(&b, "```\n%s\n```\n", c.UseLine())
	if c.Long != "" {
		fmt.Fprintf(&b, "\n%s\n", c.Long)
	}
	if flags := c.LocalFlags().FlagUsages(); flags != "" {
		fmt.Fprintf(&b, "\n## Flags\n\n```\n%s```\n", flags)
	}
	if c.HasParent() {
		fmt.Fprintf(&b, "\nEvery [setting](../configuration.md) is a flag as well. Exit codes: [operations](../operations.md#exit-codes).\n")
		return b.String()
	}
	b.WriteString("\n## Commands\n\n")
	for _, sub := range commands()[1:] {
		fmt.Fprintf(&b, "- [%s](%s): %s\n", sub.CommandPath(), pageName(sub), sub.Short)
	}
	b.WriteString("\nCalled by a link named `wal-g`, the same commands speak as WAL-G does; by one named `wal-e`, see [wal-e](wal-e.md).\n")
	return b.String()
}

// walEPage renders WAL-E's whole command line on one page.
func walEPage() string {
	root := (&walE{}).command(&app{process: Process{Version: "1.2.3"}, screen: newScreen(&bytes.Buffer{})})
	var b strings.Builder
	fmt.Fprintf(&b, "# wal-e\n\n<!-- Generated from the command itself: make docs -->\n\n%s\n\n%s\n", root.Short, root.Long)
	b.WriteString("\nWhat differs from WAL-E is told in [migration](../migration.md#what-differs).\n")
	fmt.Fprintf(&b, "\n## Options before the command\n\n```\n%s```\n", root.LocalFlags().FlagUsages())
	for _, c := range root.Commands() {
		if c.Hidden {
			continue
		}
		fmt.Fprintf(&b, "\n## wal-e %s\n\n%s\n\n```\n%s\n```\n", c.Name(), c.Short, c.UseLine())
		if c.Long != "" {
			fmt.Fprintf(&b, "\n%s\n", c.Long)
		}
		if flags := c.LocalFlags().FlagUsages(); flags != "" {
			fmt.Fprintf(&b, "\n```\n%s```\n", flags)
		}
	}
	return b.String()
}

func pageName(c *cobra.Command) string {
	if !c.HasParent() {
		return "README.md"
	}
	return strings.ReplaceAll(strings.TrimPrefix(c.CommandPath(), "walden "), " ", "-") + ".md"
}

func TestDocsOfTheCommandsAreUpToDate(t *testing.T) {
	t.Parallel()
	dir := filepath.Join("..", "..", "docs", "commands")
	made := []string{"wal-e.md"}
	golden(t, filepath.Join(dir, "wal-e.md"), walEPage())
	for _, c := range commands() {
		made = append(made, pageName(c))
		golden(t, filepath.Join(dir, pageName(c)), page(c))
	}
	there, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range there {
		if !slices.Contains(made, e.Name()) {
			t.Errorf("docs/commands/%s describes no command", e.Name())
		}
	}
}

func TestExitCodesAreDocumentedAsTheyAre(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([0-9]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, m[1])
	}
	var codes []string
	for _, code := range []int{exitOK, exitError, exitCorruptPages, exitWALOverdue, exitVerifyFailed, exitAbsent, exitStopRecovery} {
		codes = append(codes, fmt.Sprint(code))
	}
	if !slices.Equal(documented, codes) {
		t.Errorf("docs/operations.md has the exit codes %v, walden %v", documented, codes)
	}
	if got := exitCode(fmt.Errorf("above: %w", &exit{errors.New("x"), exitWALOverdue})); got != exitWALOverdue {
		t.Errorf("a wrapped exit code is %d", got)
	}
}
