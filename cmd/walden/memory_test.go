package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// manyFilesLimit bounds a run of walden over a million files.
const manyFilesLimit = 30 * time.Minute

// runAsMeter makes the test binary run a command and tell the peak of its memory. Linux starts a process's account at
// the peak of the one that started it (setmax_mm_hiwater_rss in exec_mmap, fs/exec.c), and the process that runs the tests is large:
// hence a small one in between.
const runAsMeter = "RUN_TEST_BINARY_AS_METER"

// meter runs a command and writes the peak of its resident memory in KiB to the file that runAsMeter names.
func meter(command []string) int {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, runAsMeter+"=") })
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		return 127
	}
	peak := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss
	if err := os.WriteFile(os.Getenv(runAsMeter), strconv.AppendInt(nil, peak, 10), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 127
	}
	return cmd.ProcessState.ExitCode()
}

// The budgets are for the resident memory of a whole command in MiB. Workers are set, since the default is a number of processors.
func TestMemoryStaysWithinItsBudgetHoweverManyFilesTheClusterHas(t *testing.T) {
	t.Parallel()
	files := testenv.Pick(100_000, 1_000_000)
	t.Run("files", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, "WALG_UPLOAD_DISK_CONCURRENCY=2", "WALG_DOWNLOAD_CONCURRENCY=4")
		boundedMemory(t, s, "files", files, testenv.Pick(100, 150))
	})
	if testenv.Full() {
		t.Run("S3", func(t *testing.T) {
			t.Parallel()
			s := newS3Site(t, "WALG_UPLOAD_CONCURRENCY=16", "WALG_UPLOAD_DISK_CONCURRENCY=16", "WALG_DOWNLOAD_CONCURRENCY=16")
			boundedMemory(t, s, "S3", files, 300)
		})
	}
}

// boundedMemory runs every command on a cluster with many files and compares the peak of its memory with the budget.
func boundedMemory(t *testing.T, s *site, storage string, files, budget int) {
	p := testenv.StartPostgres(t, testenv.PostgresOptions{Settings: map[string]string{
		"archive_mode": "on", "archive_command": "false", "wal_level": "replica", "full_page_writes": "on",
	}})
	database := filepath.Join(p.DataDir, "base", p.Query(t, "SELECT oid FROM pg_database WHERE datname = 'postgres'"))
	makeRelationFiles(t, database, files)
	peaks := map[string]int{}
	run := func(args ...string) {
		t.Helper()
		began := time.Now()
		peaks[args[0]] = s.metered(p, args...)
		t.Logf("%s: %d MiB in %s", args[0], peaks[args[0]], time.Since(began).Round(time.Millisecond))
	}
	// WAL that hardly compresses.
	p.Exec(t, "SELECT pg_logical_emit_message(false, 'test', string_agg(md5(random()::text), '')) FROM generate_series(1, 400000)")
	segment := p.SwitchWAL(t)
	run("wal-push", filepath.Join(p.DataDir, "pg_wal", segment))
	run("wal-fetch", segment, filepath.Join(s.dir, segment))

	p.Exec(t, fmt.Sprintf("ALTER SYSTEM SET archive_command = '%s --config %s wal-push %%p'", s.plain, s.config))
	p.Reload(t)
	run("backup-push", p.DataDir)
	run("backup-list")
	restored := filepath.Join(s.dir, "restored")
	run("backup-fetch", restored, "LATEST")
	sameRelationFiles(t, database, filepath.Join(restored, "base", filepath.Base(database)))

	for command, peak := range peaks {
		testenv.Figure(t, "peak memory in MiB", fmt.Sprintf("%s, %d files, %s", command, files, storage), peak)
		if peak > budget {
			t.Errorf("%s takes %d MiB with %d files, its budget is %d MiB", command, peak, files, budget)
		}
	}
}

// metered runs the program as operators have it and returns the peak of its resident memory in MiB.
func (s *site) metered(p *testenv.Postgres, args ...string) int {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), manyFilesLimit)
	defer cancel()
	cmd := s.command(ctx, p, args...)
	peak := filepath.Join(s.dir, "peak")
	cmd.Env = append(cmd.Env, runAsMeter+"="+peak)
	cmd.Path, cmd.Args = filepath.Join(binDir, "walden.test"), append([]string{"meter", s.plain}, cmd.Args[1:]...)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("walden %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	b, err := os.ReadFile(peak)
	if err != nil {
		s.t.Fatal(err)
	}
	kib, err := strconv.Atoi(string(b))
	if err != nil {
		s.t.Fatal(err)
	}
	return kib >> 10
}

// firstFilenode is the name of the first file that makeRelationFiles makes; a new cluster's own are far below.
const firstFilenode = 10_000_000

// makeRelationFiles fills a database's directory with files that look like relations and that nobody opens. Most are
// empty, as those of empty tables are; some are large and do not compress, so that every worker's buffers are filled.
func makeRelationFiles(t *testing.T, dir string, n int) {
	t.Helper()
	st, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	owner := st.Sys().(*syscall.Stat_t)
	page := make([]byte, 8192)
	for i := range n {
		content := page[:0]
		if i%100 == 0 {
			copy(page, strconv.Itoa(i))
			content = page
		}
		name := filepath.Join(dir, strconv.Itoa(firstFilenode+i))
		if err := errors.Join(os.WriteFile(name, content, 0o600), os.Chown(name, int(owner.Uid), int(owner.Gid))); err != nil {
			t.Fatal(err)
		}
	}
	large := make([]byte, testenv.Pick(16, 64)<<20)
	for i := range testenv.Pick(2, 20) {
		_, _ = rand.Read(large) // never fails
		name := filepath.Join(dir, strconv.Itoa(firstFilenode+n+i))
		if err := errors.Join(os.WriteFile(name, large, 0o600), os.Chown(name, int(owner.Uid), int(owner.Gid))); err != nil {
			t.Fatal(err)
		}
	}
}

// sameRelationFiles compares what makeRelationFiles made with what was restored.
func sameRelationFiles(t *testing.T, dir, restored string) {
	t.Helper()
	names, restoredNames := relationFiles(t, dir), relationFiles(t, restored)
	if !slices.Equal(names, restoredNames) {
		t.Fatalf("%d files were backed up, %d restored", len(names), len(restoredNames))
	}
	for _, name := range names {
		a, err := os.ReadFile(filepath.Join(dir, name))
		b, err2 := os.ReadFile(filepath.Join(restored, name))
		if err := errors.Join(err, err2); err != nil || !bytes.Equal(a, b) {
			t.Fatalf("file %s was restored with other content: %v", name, err)
		}
	}
}

// relationFiles returns the sorted names of the files in dir that makeRelationFiles made.
func relationFiles(t *testing.T, dir string) []string {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { n, err := strconv.Atoi(name); return err != nil || n < firstFilenode })
	slices.Sort(names)
	return names
}
