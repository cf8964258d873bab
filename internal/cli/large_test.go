package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// large is an archive with many backups and much WAL, as a cluster has after two years: of each segment there is an empty object.
type large struct{ backups, segments int }

// lookers are the commands that look at a whole archive, and how many of a backup's documents each reads.
var lookers = []struct {
	args      []string
	documents int
}{
	{[]string{"backup-list", "--json"}, 1},
	{[]string{"backup-list", "--detail", "--json"}, 2},
	{[]string{"wal-show", "--detailed-json"}, 2},
	{[]string{"wal-verify", "integrity", "timeline", "--timeline", "1", "--lsn", "0/2000000"}, 2},
	{[]string{"archive", "window", "--json"}, 2},
	{[]string{"delete", "retain", "7", "--json"}, 2},
}

// write makes the objects, by their keys.
func (l large) write(put func(key, content string)) {
	const size = 16 << 20
	put("walden_identity.json", `{"version":1,"since":"2026-01-01T00:00:00Z","current":{"system_identifier":"7","wal_segment_size":16777216}}`)
	for n := range l.segments {
		put("wal_005/"+wal.Segment{Timeline: 1, Number: uint64(n) + 1}.Name(size)+".lz4", "")
	}
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for n := range l.backups {
		first := wal.Segment{Timeline: 1, Number: uint64(n*(l.segments/l.backups)) + 1}
		name := "base_" + first.Name(size)
		lsn, at := uint64(first.Start(size)), began.Add(time.Duration(n)*time.Hour).Format(time.RFC3339)
		put("basebackups_005/"+name+"_backup_stop_sentinel.json", fmt.Sprintf(
			`{"LSN":%d,"FinishLSN":%d,"SystemIdentifier":7,"PgVersion":150004,"Version":2,"StartTime":%q,"FinishTime":%q}`, lsn+0x28, lsn+0x100, at, at))
		put("basebackups_005/"+name+"/metadata.json", fmt.Sprintf(`{"start_time":%q,"finish_time":%q,"is_permanent":false}`, at, at))
	}
}

// look runs a command on the archive that the environment names, behind what wraps its storage.
func look(t *testing.T, environ []string, wrap func(storage.Store) storage.Store, args []string) (stdout string, took time.Duration) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "walden.yaml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	a := &app{seams: seams{backend: wrap}, process: Process{
		Args: append([]string{"--config", config}, args...), Program: "walden", Environ: environ, Stdout: &out, Stderr: &errs, Version: "1.2.3",
	}}
	began := time.Now()
	if code := a.run(context.Background()); code != exitOK {
		t.Fatalf("%v: exit code %d\n%s", args, code, errs.String())
	}
	return out.String(), time.Since(began)
}

// One listing of each folder, and each document once: not a request for each object.
func TestALookAtALargeArchiveTakesOneListingOfEachFolder(t *testing.T) {
	t.Parallel()
	l := large{testenv.Pick(100, 2_000), testenv.Pick(5_000, 200_000)}
	memory := storagetest.NewMemory()
	l.write(func(key, content string) {
		if err := memory.Put(t.Context(), key, strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	})
	environ := []string{"WALG_FILE_PREFIX=" + t.TempDir()}
	for _, c := range lookers {
		counted := storagetest.NewFault(memory)
		if out, _ := look(t, environ, func(storage.Store) storage.Store { return counted }, c.args); out == "" {
			t.Errorf("%v says nothing", c.args)
		}
		lists, gets, all := counted.Count(storagetest.OpList), counted.Count(storagetest.OpGet), len(counted.Calls())
		const folders, others = 4, 3 // listings; the identity, and what Check does
		if lists > folders || gets > c.documents*l.backups+others || all > lists+gets+others {
			t.Errorf("%v: %d listings, %d objects read, %d calls in all", c.args, lists, gets, all)
		}
		testenv.Figure(t, "storage calls on a large archive", fmt.Sprintf("%s, %d backups, %d segments", strings.Join(c.args[:min(2, len(c.args))], " "), l.backups, l.segments), all)
	}
}

func TestALookAtALargeArchiveOnS3(t *testing.T) {
	t.Parallel()
	l := large{testenv.Pick(50, 2_000), testenv.Pick(2_500, 200_000)}
	server := testenv.StartS3(t)
	bucket := server.NewBucket(t)
	made := map[string]bool{}
	l.write(func(key, content string) { // a request for each would take half an hour
		file := filepath.Join(server.Data, bucket, "main", filepath.FromSlash(key))
		if dir := path.Dir(file); !made[dir] {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			made[dir] = true
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	})
	environ := []string{
		"WALG_S3_PREFIX=s3://" + bucket + "/main", "AWS_ENDPOINT=" + server.Endpoint, "AWS_REGION=us-east-1",
		"AWS_ACCESS_KEY_ID=" + server.AccessKey, "AWS_SECRET_ACCESS_KEY=" + server.SecretKey, "AWS_S3_FORCE_PATH_STYLE=true",
	}
	for _, c := range lookers {
		out, took := look(t, environ, nil, c.args)
		if out == "" {
			t.Errorf("%v says nothing", c.args)
		}
		const limit = 10 * time.Minute // for a machine that does other things
		if took > limit {
			t.Errorf("%v took %s", c.args, took)
		}
		t.Logf("%v took %s", c.args, took)
		testenv.Figure(t, "milliseconds for a large archive on S3", fmt.Sprintf("%s, %d backups, %d segments", strings.Join(c.args[:min(2, len(c.args))], " "), l.backups, l.segments),
			int(took.Milliseconds()))
	}
}
