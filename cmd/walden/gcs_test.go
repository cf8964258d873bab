package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

func TestAClusterComesBackFromGoogleCloudStorage(t *testing.T) {
	t.Parallel()
	s := newGCSSite(t, "GCS_MAX_CHUNK_SIZE=262144")
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving()})
	p.Exec(t, "CREATE TABLE noise AS SELECT md5(random()::text) AS b FROM generate_series(1, 20000)")
	s.must(p, "backup-push", p.DataDir)
	p.Exec(t, "INSERT INTO noise SELECT md5(random()::text) FROM generate_series(1, 20000)")
	want := p.Query(t, "SELECT count(*), md5(string_agg(b, ',' ORDER BY b)) FROM noise")
	p.SwitchWAL(t)
	s.archived(p)
	p.Stop("fast")
	dir := s.fetch("LATEST")
	restored := testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Settings: s.restoreSettings()})
	if got := restored.Query(t, "SELECT count(*), md5(string_agg(b, ',' ORDER BY b)) FROM noise"); got != want {
		t.Errorf("restored: %s, want %s", got, want)
	}
	s.fails(nil, 1, []string{"no-such-bucket", "does not exist", "hint:"}, "backup-list", "--walg-gs-prefix", "gs://no-such-bucket/x")
}

// refuseJSON answers as Google Cloud Storage does.
func refuseJSON(w http.ResponseWriter, r *http.Request, status int, reason string) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, `{"error": {"message": "`+reason+`", "errors": [{"reason": "`+reason+`"}]}}`)
}

// gcsFaults is the list of answers of Google Cloud Storage beside those of storageFaults.
func gcsFaults() []storageFault {
	refuse := func(status int, reason string, when func(n int) bool) func(*cell) meddling {
		return func(*cell) meddling {
			return func(n int, w http.ResponseWriter, r *http.Request) bool {
				if when(n) {
					refuseJSON(w, r, status, reason)
				}
				return when(n)
			}
		}
	}
	always, everyThird := func(int) bool { return true }, func(n int) bool { return n%3 == 0 }
	cut := func(which func(int) bool) func(*cell) meddling {
		return func(*cell) meddling {
			return func(n int, w http.ResponseWriter, _ *http.Request) bool {
				if !which(n) {
					return false
				}
				if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
					_ = conn.Close()
				}
				return true
			}
		}
	}
	return []storageFault{
		{name: "503, every third", passes: true, requests: refuse(503, "backendError", everyThird)},
		{name: "503, for ever", requests: refuse(503, "backendError", always), says: []string{"HTTP 503"}},
		{name: "429, every third", passes: true, requests: refuse(429, "rateLimitExceeded", everyThird)},
		{name: "401", requests: refuse(401, "authError", always), says: []string{"does not accept the credentials", "hint: check GOOGLE_APPLICATION_CREDENTIALS"}},
		{name: "403", requests: refuse(403, "forbidden", always), says: []string{"access denied", "hint: grant storage.objects.get"}},
		{name: "connections break, every third", passes: true, requests: cut(everyThird)},
		{name: "connections break, for ever", requests: cut(always), says: []string{"gs://"}},
		{name: "half closed", passes: true, requests: func(*cell) meddling { return halfClose(everyThird) }},
		{name: "a page of HTML", requests: func(*cell) meddling {
			return func(_ int, w http.ResponseWriter, r *http.Request) bool {
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(w, "<html><body>Please log in.</body></html>")
				return true
			}
		}, without: "wal-fetch", says: []string{"gs://"}},
	}
}

func TestAnswersOfGoogleCloudStorageEndCommandsInTimeAndHarmNothing(t *testing.T) {
	t.Parallel()
	s := newGCSSite(t)
	s.raced = s.plain
	p := s.smallSegments("archive_mode=off", "wal_keep_size=16")
	name := p.SwitchWAL(t)
	segment := filepath.Join(p.DataDir, "pg_wal", name)
	s.must(nil, "wal-push", segment)
	next := newCrowd(t)
	for _, fault := range gcsFaults() {
		for _, command := range []string{"backup-list", "wal-push", "wal-fetch"} {
			if strings.Contains(fault.without, command) {
				continue
			}
			next.run(fault.name+"/"+command, func(t *testing.T) {
				m := newMeddler(t, "http://"+s.gcs.Address)
				c := bareSite(t)
				c.raced = c.plain
				m.set(fault.requests(nil))
				prefix := s3Prefix
				if command == "wal-push" {
					prefix = unsafeInPrefix.ReplaceAllString(fault.name, "-")
				}
				settings := []string{"WALG_GS_PREFIX=gs://" + s.bucket + "/" + prefix, "STORAGE_EMULATOR_HOST=" + m.url}
				if !fault.passes {
					settings = append(settings, "GCS_MAX_RETRIES=2", "WALDEN_STALL_TIMEOUT=3s", "WALDEN_WAL_TIMEOUT=12s")
				}
				c.configure(settings...)
				dest := filepath.Join(dataDir(t, "recovery.signal"), "pg_wal", "RECOVERYXLOG")
				args := map[string][]string{"backup-list": {command}, "wal-push": {command, segment}, "wal-fetch": {command, name, dest}}[command]
				began := time.Now()
				r := c.walden(nil, args...)
				t.Logf("exit code %d after %s", r.code, time.Since(began).Round(time.Millisecond))
				switch {
				case fault.passes:
					r.expect(t, 0)
				case command == "wal-fetch":
					r.expect(t, 200, fault.says...)
				default:
					r.expect(t, 1, fault.says...)
				}
				if _, err := os.Stat(dest); err == nil && r.code != 0 {
					t.Error("there is something at the destination")
				}
				m.set(nil)
				again := c.walden(nil, args...)
				again.expect(t, 0)
				if command == "wal-fetch" {
					sameFile(t, dest, segment)
				}
				testenv.Figure(t, "network faults", "GCS, "+command, 1)
			})
		}
	}
	next.work.Wait()
}
