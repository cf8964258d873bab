package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// hostileMemory is what walden may take for any archive whatever, in MiB.
const hostileMemory = 300

// hostileRun runs the plain program, as operators have it, and returns besides its result the most memory that it had
// resident, in MiB. The kernel's own figure for a child (ru_maxrss) holds the parent's from before exec, so it is asked for
// while the child runs (VmHWM).
func (s *site) hostileRun(t *testing.T, p *testenv.Postgres, args ...string) (result, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	defer cancel()
	cmd := s.command(ctx, p, args...)
	cmd.Path, cmd.Args[0] = s.plain, s.plain
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended, peak := make(chan struct{}), make(chan int)
	go func() {
		most := 0
		for tick := time.NewTicker(5 * time.Millisecond); ; {
			select {
			case <-ended:
				peak <- most
				return
			case <-tick.C:
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
				if _, rest, ok := bytes.Cut(b, []byte("VmHWM:")); err == nil && ok {
					kib, _ := strconv.Atoi(string(bytes.Fields(rest)[0])) // a number, by proc(5)
					most = max(most, kib>>10)
				}
			}
		}
	}()
	err := cmd.Wait()
	close(ended)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Fatalf("walden %s did not end\n%.3000s", strings.Join(args, " "), stderr.String())
	}
	r := result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	if strings.Contains(r.stderr, "panic:") || strings.Contains(r.stderr, "goroutine ") {
		t.Fatalf("%.3000s", r.stderr)
	}
	return r, <-peak
}

// hostileArchive is a genuine archive that an attack is added to.
type hostileArchive struct {
	t *testing.T
	*site
	backup string
}

func newHostileArchive(t *testing.T) *hostileArchive {
	t.Helper()
	f := readFixture(t, "full-lz4")
	return &hostileArchive{t, f.site(t), f.Backup}
}

// plant writes an object, or replaces one.
func (a *hostileArchive) plant(key string, write func(w io.Writer) error) {
	a.t.Helper()
	path := filepath.Join(a.archive, key)
	f, err := os.Create(path)
	if err != nil {
		a.t.Fatal(err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	if err := errors.Join(write(w), w.Flush(), f.Close()); err != nil {
		a.t.Fatal(err)
	}
	own(a.t, path)
}

func (a *hostileArchive) part(name string) string {
	return "basebackups_005/" + a.backup + "/tar_partitions/" + name
}

// sentinel replaces what the backup says of itself.
func (a *hostileArchive) sentinel(text string) {
	a.t.Helper()
	a.plant("basebackups_005/"+a.backup+"_backup_stop_sentinel.json", literally(text))
}

// claims makes the backup say that it is so large, and lists no files: everything in its parts is to be restored.
func (a *hostileArchive) claims(bytes int64) {
	a.t.Helper()
	a.sentinel(fmt.Sprintf(`{"LSN":10485800,"PgVersion":150020,"FinishLSN":10486064,"UncompressedSize":%d,"FilesMetadataDisabled":true,"Version":2}`, bytes))
}

func literally(text string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}
}

// onAndOn writes a beginning and then the same text until so many bytes are written.
func onAndOn(beginning, again string, limit int) func(io.Writer) error {
	return func(w io.Writer) error {
		piece := strings.Repeat(again, max(1, (64<<10)/len(again)))
		_, err := io.WriteString(w, beginning)
		for n := 0; n < limit && err == nil; n += len(piece) {
			_, err = io.WriteString(w, piece)
		}
		return err
	}
}

// through writes a tar through a codec.
func through(open func(w io.Writer) (io.WriteCloser, error), write func(t *tar.Writer, w io.Writer) error) func(io.Writer) error {
	return func(out io.Writer) error {
		w, err := open(out)
		if err != nil {
			return err
		}
		return errors.Join(write(tar.NewWriter(w), w), w.Close())
	}
}

func throughZstd(window int) func(w io.Writer) (io.WriteCloser, error) {
	return func(w io.Writer) (io.WriteCloser, error) {
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
	}
}

func throughLZ4(w io.Writer) (io.WriteCloser, error) { return lz4.NewWriter(w), nil }

func throughBrotli(w io.Writer) (io.WriteCloser, error) { return brotli.NewWriterLevel(w, 1), nil }

func throughLZMA(w io.Writer) (io.WriteCloser, error) {
	return lzma.WriterConfig{DictCap: 64 << 20, EOSMarker: true}.NewWriter(w)
}

// bomb is a file of a tebibyte, of which so many mebibytes of zeros follow.
func bomb(name string, mebibytes int) func(t *tar.Writer, w io.Writer) error {
	return func(t *tar.Writer, w io.Writer) error {
		if err := t.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: 1 << 40}); err != nil {
			return err
		}
		return zeroes(w, mebibytes)
	}
}

func zeroes(w io.Writer, mebibytes int) error {
	piece := make([]byte, 1<<20)
	for range mebibytes {
		if _, err := w.Write(piece); err != nil {
			return err
		}
	}
	return nil
}

// entries writes n entries that each makes.
func entries(n int, each func(i int) *tar.Header) func(t *tar.Writer, w io.Writer) error {
	return func(t *tar.Writer, _ io.Writer) error {
		for i := range n {
			if err := t.WriteHeader(each(i)); err != nil {
				return err
			}
		}
		return t.Close()
	}
}

// attack is an archive that somebody made to do harm, or that a broken disk did.
type attack struct {
	name  string
	plant func(a *hostileArchive)
	fails bool
	says  string
}

func (c attack) run(t *testing.T, command ...string) {
	t.Run(c.name, func(t *testing.T) {
		a := newHostileArchive(t)
		c.plant(a)
		args := slices.Clone(command)
		target := filepath.Join(testenv.Scratch(t), "data")
		if command[0] == "backup-fetch" {
			args = []string{command[0], target, a.backup}
		}
		outside := filepath.Dir(target)
		r, peak := a.hostileRun(t, nil, args...)
		t.Logf("%d MiB", peak)
		if (r.code != 0) != c.fails || !strings.Contains(r.stderr+r.stdout, c.says) || r.code != 0 && !strings.Contains(r.stderr, "walden: ") {
			t.Errorf("exit code %d, and it is to say %q:\n%.2000s\n%.2000s", r.code, c.says, r.stderr, r.stdout)
		}
		if peak > hostileMemory {
			t.Errorf("it took %d MiB", peak)
		}
		if len(r.stderr) > 1<<20 {
			t.Errorf("%d bytes on standard error", len(r.stderr))
		}
		if left, err := os.ReadDir(outside); err != nil || len(left) > 1 {
			t.Errorf("beside the target there are %v, %v", left, err)
		}
		if _, err := os.Lstat(filepath.Join(target, "global/pg_control")); (err == nil) != (command[0] == "backup-fetch" && !c.fails) {
			t.Errorf("the control file: %v", err)
		}
	})
}

func TestAHostileBackupTakesBoundedMemoryAndDisk(t *testing.T) {
	t.Parallel()
	const much = 8 << 30 // of bytes, so that the limit of what is decoded does not come first
	document := func(name string) func(a *hostileArchive) string {
		return func(a *hostileArchive) string { return "basebackups_005/" + a.backup + "/" + name }
	}
	files := document("files_metadata.json")
	windows := func(ext string, open func(io.Writer) (io.WriteCloser, error), mebibytes int) func(a *hostileArchive) {
		return func(a *hostileArchive) {
			a.claims(much)
			a.plant(a.part("part_002.tar"+ext), through(open, func(t *tar.Writer, w io.Writer) error {
				return errors.Join(t.Close(), zeroes(w, mebibytes))
			}))
			for i := range 15 {
				if err := os.Link(filepath.Join(a.archive, a.part("part_002.tar"+ext)), filepath.Join(a.archive, a.part(fmt.Sprintf("part_%03d.tar%s", 3+i, ext)))); err != nil {
					a.t.Fatal(err)
				}
			}
		}
	}
	attacks := []attack{
		{"a bomb in zstd", func(a *hostileArchive) {
			a.claims(24 << 20)
			a.plant(a.part("part_002.tar.zst"), through(throughZstd(1<<20), bomb("huge", testenv.Pick(340, 64<<10))))
		}, true, "far more than it is said to have"},
		{"a bomb in lz4", func(a *hostileArchive) {
			a.claims(24 << 20)
			a.plant(a.part("part_002.tar.lz4"), through(throughLZ4, bomb("huge", testenv.Pick(340, 512))))
		}, true, "far more than it is said to have"},
		{"a bomb in brotli", func(a *hostileArchive) {
			a.claims(24 << 20)
			a.plant(a.part("part_002.tar.br"), through(throughBrotli, bomb("huge", testenv.Pick(340, 512))))
		}, true, "far more than it is said to have"},
		{"a bomb in a file that is not named", func(a *hostileArchive) {
			a.plant(a.part("part_002.tar.zst"), through(throughZstd(1<<20), bomb("huge", testenv.Pick(340, 512))))
		}, true, "far more than it is said to have"},
		{"a bomb behind the end of a tar", func(a *hostileArchive) {
			a.plant(a.part("part_002.tar.zst"), through(throughZstd(1<<20), func(t *tar.Writer, w io.Writer) error { return errors.Join(t.Close(), zeroes(w, 512)) }))
		}, true, "far more than it is said to have"},
		{"a size that no disk has", func(a *hostileArchive) { a.claims(1 << 60) }, true, "MiB free"},
		{"windows of 128 MiB in zstd", windows(".zst", throughZstd(128<<20), testenv.Pick(140, 300)), false, "Restored"},
		{"a window of 2 GiB in zstd", func(a *hostileArchive) {
			a.plant(a.part("part_002.tar.zst"), literally("\x28\xb5\x2f\xfd\x04\xa8\x01\x00\x00"))
		}, true, "damaged zstd stream"},
		{"a dictionary of 4 GiB in lzma", func(a *hostileArchive) {
			a.plant(a.part("part_002.tar.lzma"), literally("\x5d\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x3b\x98\x49\xda\xd7"))
		}, true, "damaged lzma stream"},
		{"frames that are skipped, and nothing else", func(a *hostileArchive) {
			a.plant(a.part("part_002.tar.lz4"), onAndOn("", "\x50\x2a\x4d\x18\x00\x00\x00\x00", 16<<20))
		}, false, "Restored"}, // of nothing: the part is empty
		{"names of a megabyte on directories", func(a *hostileArchive) {
			a.claims(much)
			name := strings.Repeat("n", 1<<20-1000)
			a.plant(a.part("part_002.tar.zst"), through(throughZstd(8<<20), entries(testenv.Pick(200, 2000), func(i int) *tar.Header {
				return &tar.Header{Name: fmt.Sprintf("d%d", i), Typeflag: tar.TypeDir, Mode: 0o700, Format: tar.FormatPAX, PAXRecords: map[string]string{"WALDEN.x": name}}
			})))
		}, false, "Restored"},
		{"owners with names of a megabyte", func(a *hostileArchive) {
			a.claims(much)
			a.plant(a.part("part_002.tar.zst"), through(throughZstd(8<<20), entries(testenv.Pick(10, 100), func(i int) *tar.Header {
				return &tar.Header{Name: fmt.Sprintf("d%d", i), Typeflag: tar.TypeDir, Mode: 0o700, Format: tar.FormatPAX, Uname: strconv.Itoa(i) + strings.Repeat("n", 1<<20-1000)}
			})))
		}, false, "Restored"},
		{"directories without number", func(a *hostileArchive) {
			a.claims(much)
			a.plant(a.part("part_002.tar.zst"), through(throughZstd(8<<20), entries(testenv.Pick(2_000, 100_000), func(i int) *tar.Header {
				return &tar.Header{Name: fmt.Sprintf("d%d", i), Typeflag: tar.TypeDir, Mode: 0o700}
			})))
		}, false, "Restored"},
		{"pipes without number", func(a *hostileArchive) {
			a.claims(much)
			a.plant(a.part("part_002.tar.zst"), through(throughZstd(8<<20), entries(testenv.Pick(100_000, 2_000_000), func(i int) *tar.Header {
				return &tar.Header{Name: fmt.Sprintf("pipe%d", i), Typeflag: tar.TypeFifo}
			})))
		}, false, "Restored"},
		{"a sentinel of a gibibyte", func(a *hostileArchive) {
			a.sentinel(`{"LSN":`)
			if err := os.Truncate(filepath.Join(a.archive, "basebackups_005/"+a.backup+"_backup_stop_sentinel.json"), 1<<30); err != nil {
				a.t.Fatal(err)
			}
		}, true, "its sentinel is not valid"},
		{"a sentinel of an empty object", func(a *hostileArchive) { a.sentinel("{}") }, true, "it has no LSN"},
		{"a sentinel that is null", func(a *hostileArchive) { a.sentinel("null") }, true, "it has no LSN"},
		{"user data of 60 MiB", func(a *hostileArchive) {
			a.plant("basebackups_005/"+a.backup+"_backup_stop_sentinel.json", func(w io.Writer) error {
				return errors.Join(onAndOn(`{"LSN":1,"UserData":"`, "x", 60<<20)(w), literally(`"}`)(w))
			})
		}, true, "a value of more than"},
		{"a list of files with a name without end", func(a *hostileArchive) {
			a.plant(files(a), onAndOn(`{"Files":{"/`, "x", testenv.Pick(64, 1024)<<20))
		}, true, "cannot be"},
		{"a list of files nested without end", func(a *hostileArchive) {
			a.plant(files(a), onAndOn(`{"Other":`, "[", testenv.Pick(64, 1024)<<20))
		}, true, "nested more than"},
		{"a list of files of blanks", func(a *hostileArchive) {
			a.plant(files(a), onAndOn(`{"Files":{`, " ", testenv.Pick(64, 1024)<<20))
		}, true, "cannot be"},
		{"names of parts without number", func(a *hostileArchive) {
			a.plant(files(a), func(w io.Writer) error {
				return errors.Join(onAndOn(`{"TarFileSets":{"x":["y"`, `,"a name of a file"`, testenv.Pick(20, 200)<<20)(w), literally("]}}")(w))
			})
		}, false, "Restored"},
	}
	if testenv.Full() { // compressing takes a minute
		attacks = append(attacks, []attack{
			{"a bomb in lzma", func(a *hostileArchive) {
				a.claims(24 << 20)
				a.plant(a.part("part_002.tar.lzma"), through(throughLZMA, bomb("huge", 340)))
			}, true, "far more than it is said to have"},
			{"dictionaries of 64 MiB in lzma", windows(".lzma", throughLZMA, 70), false, "Restored"},
		}...)
	}
	attacks = testenv.Some(t, 9, attacks)
	for _, c := range attacks {
		c.run(t, "backup-fetch")
	}
	testenv.Figure(t, "hostile archives", "backup-fetch", len(attacks))
}

func TestAHostileArchiveIsListedInBoundedMemory(t *testing.T) {
	t.Parallel()
	copies := func(a *hostileArchive, n int, write func(w io.Writer) error) {
		a.t.Helper()
		var one string
		for i := range n {
			path := filepath.Join(a.archive, fmt.Sprintf("basebackups_005/base_0000000100000000%08X_backup_stop_sentinel.json", i+100))
			if i == 0 {
				a.plant("basebackups_005/"+filepath.Base(path), write)
				one = path
			} else if err := os.Link(one, path); err != nil {
				a.t.Fatal(err)
			}
		}
	}
	big := func(beginning, again string) func(w io.Writer) error {
		return func(w io.Writer) error {
			return errors.Join(onAndOn(beginning, again, 60<<20)(w), literally(`"x":{}}}`)(w))
		}
	}
	attacks := []attack{
		{"sentinels of 60 MiB with lists of files", func(a *hostileArchive) {
			copies(a, testenv.Pick(2, 40), big(`{"LSN":1,"Files":{`, `"/a name of a file":{},`))
		}, false, "base_000000010000000000000064"},
		{"sentinels of 60 MiB with tablespaces", func(a *hostileArchive) {
			copies(a, testenv.Pick(2, 40), big(`{"LSN":1,"Spec":{`, `"1":{},`))
		}, false, "unusable"},
		{"sentinels of a mebibyte without number", func(a *hostileArchive) {
			copies(a, 200, func(w io.Writer) error {
				return errors.Join(onAndOn(`{"LSN":1,"UserData":"`, "x", 900<<10)(w), literally(`"}`)(w))
			})
		}, true, "takes more than 64 MiB"},
		{"objects without number", func(a *hostileArchive) {
			for i := range testenv.Pick(5_000, 200_000) {
				for _, dir := range []string{"basebackups_005", "wal_005"} {
					if err := os.WriteFile(filepath.Join(a.archive, dir, fmt.Sprintf("object%08d", i)), nil, 0o644); err != nil {
						a.t.Fatal(err)
					}
				}
			}
		}, false, "base_"},
		{"backups without number", func(a *hostileArchive) {
			copies(a, testenv.Pick(2_000, 20_000), literally(`{"LSN":1,"Hostname":"db1"}`))
		}, false, "base_"},
	}
	for _, c := range testenv.Some(t, 3, attacks) {
		c.run(t, "backup-list")
		testenv.Figure(t, "hostile archives", "backup-list", 1)
		if c.fails || strings.Contains(c.name, "tablespaces") {
			c.run(t, "backup-list", "--detail", "--json")
			testenv.Figure(t, "hostile archives", "backup-list --detail", 1)
		}
	}

	t.Run("names and texts for the terminal", func(t *testing.T) {
		a := newHostileArchive(t)
		for i, name := range []string{"\x1b]0;title\a", "base_\x1b[2J", "new\nline", "back\b\b\b", "\u202egnp.exe", "\xff\xfe", "\u009b31m", strings.Repeat("n", 220)} {
			a.plant("basebackups_005/"+name+"_backup_stop_sentinel.json", literally(`{"LSN":1,"Hostname":"\u001b[31m\nx","UserData":"\u009b"}`))
			a.plant(fmt.Sprintf("basebackups_005/base_00000001000000000000002%d_backup_stop_sentinel.json", i),
				literally(`{"LSN":1,"Hostname":"\u001b]52;c;eA==\u0007","DataDir":"\r/etc","UserData":"\u009b","Spec":{"base_prefix":"/","tablespaces":["\u001b[2J"]}}`))
		}
		for _, flags := range [][]string{{}, {"--pretty"}, {"--json"}, {"--detail"}, {"--detail", "--pretty"}, {"--detail", "--json", "--pretty"}} {
			r, _ := a.hostileRun(t, nil, append([]string{"backup-list"}, flags...)...)
			r.expect(t, 0)
			for line := range strings.Lines(r.stdout + r.stderr) {
				line = strings.TrimSuffix(line, "\n")
				if !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Errorf("%v: %q", flags, line)
				}
			}
		}
		target := filepath.Join(testenv.Scratch(t), "data")
		for _, name := range []string{"\x1b[2J", "new\nline", "../x", "base_000000010000000000000020"} {
			r, _ := a.hostileRun(t, nil, "backup-fetch", target, name)
			r.expect(t, 1)
			if strings.ContainsAny(r.stderr, "\x1b\r\a") {
				t.Errorf("%q: %q", name, r.stderr)
			}
		}
		testenv.Figure(t, "hostile archives", "terminal", 10)
	})
}

func TestAHostileArchiveIsNotArchivedTo(t *testing.T) {
	t.Parallel()
	p := bareSite(t).smallSegments("archive_mode=off", "wal_keep_size=16")
	segment := filepath.Join(p.DataDir, "pg_wal", p.SwitchWAL(t))
	identity := func(write func(w io.Writer) error) func(a *hostileArchive) {
		return func(a *hostileArchive) { a.plant("walden_identity.json", write) }
	}
	attacks := []attack{
		{"an identity that is null", identity(literally("null")), true, "not a system identifier"},
		{"an identity of an empty object", identity(literally("{}")), true, "not a system identifier"},
		{"an identity of a list", identity(literally("[]")), true, "is not valid"},
		{"an identity with a huge number", identity(literally(`{"current":{"system_identifier":"` + strings.Repeat("9", 1000) + `"}}`)), true, "not a system identifier"},
		{"an identity nested without end", identity(onAndOn("", "[", 1<<19)), true, "is not valid"},
		{"an identity without end", identity(onAndOn(`{"current":"`, "x", 64<<20)), true, "too large"},
		{"an identity with colours", identity(literally(`{"current":{"system_identifier":"\u001b[31m"}}`)), true, `\x1b[31m`},
		{"sentinels instead of an identity", func(a *hostileArchive) {
			a.plant("basebackups_005/base_0000000100000000000000FF_backup_stop_sentinel.json", onAndOn(`{"LSN":`, "1", 60<<20))
		}, true, "belongs to another cluster"},
	}
	for _, c := range attacks {
		c.run(t, "wal-push", segment)
	}
	c := attacks[5]
	t.Run("backup-push: "+c.name, func(t *testing.T) {
		a := newHostileArchive(t)
		c.plant(a)
		r, peak := a.hostileRun(t, p, "backup-push", p.DataDir)
		r.expect(t, 1, c.says)
		if peak > hostileMemory {
			t.Errorf("it took %d MiB", peak)
		}
	})
	testenv.Figure(t, "hostile archives", "wal-push and backup-push", len(attacks)+1)
}
