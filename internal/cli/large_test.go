package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
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
		testenv.Figure(t, "storage calls on a large archive", l.name(c.args), all)
	}
}

// bucket is an S3 server with one bucket that can be read only. The gateway that the other tests use reads a whole directory for each thousand
// of its names that it lists, which is its time and not walden's.
type bucket struct {
	objects map[string]string // contents by keys
	sorted  []string          // keys
	lists   atomic.Int64      // requests
	others  atomic.Int64
}

func (b *bucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := strings.TrimPrefix(r.URL.Path, "/bucket/")
	if !r.URL.Query().Has("list-type") {
		b.others.Add(1)
		content, ok := b.objects[key]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = io.WriteString(w, content) // a reader that has gone notices it by itself
		return
	}
	b.lists.Add(1)
	q := r.URL.Query()
	const page = 1000
	prefix, after := q.Get("prefix"), max(q.Get("start-after"), q.Get("continuation-token"))
	from, _ := slices.BinarySearch(b.sorted, max(prefix, after))
	var entries strings.Builder
	n, last, folder := 0, "", ""
	for _, key := range b.sorted[from:] {
		rest, ok := strings.CutPrefix(key, prefix)
		if !ok || n == page {
			break
		}
		if name, _, inside := strings.Cut(rest, "/"); inside && prefix+name+"/" != folder && prefix+name+"/" > after {
			folder, last = prefix+name+"/", prefix+name+"/~"
			fmt.Fprintf(&entries, "<CommonPrefixes><Prefix>%s</Prefix></CommonPrefixes>", folder)
			n++
		} else if !inside && key > after {
			last = key
			fmt.Fprintf(&entries, "<Contents><Key>%s</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>%d</Size></Contents>", key, len(b.objects[key]))
			n++
		}
	}
	truncated, token := "false", ""
	if n == page {
		truncated, token = "true", "<NextContinuationToken>"+last+"</NextContinuationToken>"
	}
	w.Header().Set("Content-Type", "application/xml")
	fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><KeyCount>%d</KeyCount><IsTruncated>%s</IsTruncated>%s%s</ListBucketResult>`,
		n, truncated, token, entries.String())
}

func TestALookAtALargeArchiveOnS3TakesFewRequests(t *testing.T) {
	t.Parallel()
	l := large{testenv.Pick(100, 2_000), testenv.Pick(5_000, 200_000)}
	b := &bucket{objects: map[string]string{}}
	l.write(func(key, content string) { b.objects["main/"+key] = content })
	b.sorted = slices.Sorted(maps.Keys(b.objects))
	server := httptest.NewServer(b)
	defer server.Close()
	environ := onBucket("bucket", server.URL, "access", "secret")
	for _, c := range lookers {
		b.lists.Store(0)
		b.others.Store(0)
		l.timed(t, "in memory", environ, c.args)
		const folders, page, others = 4, 1_000, 3
		pages := 2*folders + (l.segments+4*l.backups)/page // the folder of the backups is listed twice
		if lists, gets := int(b.lists.Load()), int(b.others.Load()); lists > pages || gets > c.documents*l.backups+others {
			t.Errorf("%v: %d listings instead of %d, %d other requests", c.args, lists, pages, gets)
		} else {
			testenv.Figure(t, "requests on a large archive on S3", l.name(c.args), lists+gets)
		}
	}
}

func TestALookAtManyBackupsOnS3(t *testing.T) {
	t.Parallel()
	l := large{testenv.Pick(50, 2_000), testenv.Pick(2_500, 10_000)}
	server := testenv.StartS3(t)
	name := server.NewBucket(t)
	made := map[string]bool{}
	l.write(func(key, content string) { // a request for each would take minutes
		file := filepath.Join(server.Data, name, "main", filepath.FromSlash(key))
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
	for _, c := range lookers {
		l.timed(t, "on files", onBucket(name, server.Endpoint, server.AccessKey, server.SecretKey), c.args)
	}
}

func onBucket(name, endpoint, access, secret string) []string {
	return []string{
		"WALG_S3_PREFIX=s3://" + name + "/main", "AWS_ENDPOINT=" + endpoint, "AWS_REGION=us-east-1", "AWS_ACCESS_KEY_ID=" + access,
		"AWS_SECRET_ACCESS_KEY=" + secret, "AWS_S3_FORCE_PATH_STYLE=true",
	}
}

// name is that of a figure.
func (l large) name(args []string) string {
	return fmt.Sprintf("%s, %d backups, %d segments", strings.Join(args[:min(2, len(args))], " "), l.backups, l.segments)
}

// timed runs a command and reports its time.
func (l large) timed(t *testing.T, server string, environ, args []string) {
	t.Helper()
	out, took := look(t, environ, nil, args)
	if out == "" {
		t.Errorf("%v says nothing", args)
	}
	const limit = 10 * time.Minute // for a machine that does other things
	if took > limit {
		t.Errorf("%v took %s", args, took)
	}
	testenv.Figure(t, "milliseconds for a large archive on S3, "+server, l.name(args), int(took.Milliseconds()))
}
