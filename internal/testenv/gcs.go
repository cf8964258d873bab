package testenv

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"testing"
)

// GCSServer is a running server that speaks the protocol of Google Cloud Storage (fake-gcs-server, in memory), reached over
// plain HTTP and without credentials. Of the service's promises it does not keep these: it deletes whatever the condition
// says, ignores customer-supplied encryption keys, and knows no permissions.
type GCSServer struct {
	Address string // host:port, as STORAGE_EMULATOR_HOST takes it
}

// StartGCS starts a server of its own, which ends with t. Where public is not "", it is the host:port under which the server
// tells clients to go on with their uploads, for one that is reached through a proxy.
func StartGCS(t testing.TB, public string) *GCSServer {
	t.Helper()
	program := Tool(t, "fake-gcs-server-v1.56.1")
	port := freePort(t)
	s := &GCSServer{Address: fmt.Sprintf("127.0.0.1:%d", port)}
	if public == "" {
		public = s.Address
	}
	cmd := exec.Command(program, "-scheme", "http", "-host", "127.0.0.1", "-port", fmt.Sprint(port),
		"-public-host", public, "-external-url", "http://"+public, "-backend", "memory", "-log-level", "error")
	cmd.Dir = t.TempDir()
	serve(t, cmd, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Address+"/_internal/healthcheck", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close() // any answer will do
		}
		return err
	})
	return s
}

// NewBucket creates an empty bucket and returns its name.
func (s *GCSServer) NewBucket(t testing.TB) string {
	t.Helper()
	name := "test-" + strings.ToLower(rand.Text()[:10])
	body := fmt.Appendf(nil, `{"name": %q}`, name)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.Address+"/storage/v1/b?project=test", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("cannot create bucket %s: %v", name, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("cannot create bucket %s: %s", name, resp.Status)
	}
	return name
}

// Object reads an object, for what tests look at behind walden's back.
func (s *GCSServer) Object(t testing.TB, bucket, name string) []byte {
	t.Helper()
	address := "http://" + s.Address + "/storage/v1/b/" + bucket + "/o/" + url.PathEscape(name) + "?alt=media"
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("cannot get %s from bucket %s: %s, %v", name, bucket, resp.Status, err)
	}
	return b
}
