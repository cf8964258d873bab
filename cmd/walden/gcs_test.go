package main

import (
	"io"
	"net/http"
	"strings"
	"testing"

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

// gcsService is a bucket of a server for Google Cloud Storage.
func gcsService(t *testing.T) service {
	t.Helper()
	server := testenv.StartGCS(t, "")
	bucket := server.NewBucket(t)
	near := newMeddler(t, "http://"+server.Address) // for what it does to the addresses that uploads are to go on at
	return service{
		name: "GCS", endpoint: near.url, faults: append(connectionFaults("check the network, and HTTPS_PROXY", "check the name servers of this machine"), gcsFaults()...),
		settings: func(endpoint, prefix string) []string {
			return []string{
				"WALG_GS_PREFIX=gs://" + bucket + "/" + prefix, "STORAGE_EMULATOR_HOST=" + strings.TrimPrefix(endpoint, "http://"),
				"GCS_MAX_CHUNK_SIZE=5242880",
			}
		},
	}
}

// gcsFaults are the answers of Google Cloud Storage.
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
	always := func(int) bool { return true }
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
		{name: "503, every third", passes: true, settings: patient, requests: refuse(503, "backendError", everyThird)},
		{name: "503, for ever", requests: refuse(503, "backendError", always), says: []string{"HTTP 503"}},
		{name: "429, every third", passes: true, settings: patient, requests: refuse(429, "rateLimitExceeded", everyThird)},
		{name: "401", requests: refuse(401, "authError", always), says: []string{"does not accept the credentials", "hint: check GOOGLE_APPLICATION_CREDENTIALS"}},
		{name: "403", requests: refuse(403, "forbidden", always), says: []string{"access denied", "hint: grant storage.objects.get"}},
		{name: "connections break, every third", passes: true, settings: patient, requests: cut(everyThird)},
		{name: "connections break, for ever", requests: cut(always), says: []string{"gs://"}},
		{name: "a page of HTML", requests: func(*cell) meddling {
			return func(_ int, w http.ResponseWriter, r *http.Request) bool {
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(w, "<html><body>Please log in.</body></html>")
				return true
			}
		}, without: "wal-fetch", says: []string{"gs://"}},
	}
}
