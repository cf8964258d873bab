package testenv

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// S3Server is a running S3-compatible object store (versitygw on a local directory), reached over plain HTTP with
// path-style addresses and region us-east-1.
type S3Server struct {
	Endpoint  string // URL
	AccessKey string
	SecretKey string
}

const s3StartTimeout = 20 * time.Second

// StartS3 starts a server of its own, which ends with t.
func StartS3(t testing.TB) *S3Server {
	t.Helper()
	program := Tool(t, "versitygw-v1.8.0")
	dir := t.TempDir()
	for _, sub := range []string{"data", "home"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	s := &S3Server{Endpoint: "http://" + address, AccessKey: "testaccess", SecretKey: "testsecret123"}
	log := new(lockedBuffer)
	cmd := exec.Command(program, "--quiet", "--keep-alive", "--port", address,
		"-a", s.AccessKey, "-s", s.SecretKey, "posix", filepath.Join(dir, "data"))
	cmd.Env = []string{"HOME=" + filepath.Join(dir, "home")}
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("cannot start %s: %v", program, err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed in the end, which is always an error
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("log of %s:\n%s", program, log)
		}
	})
	s.await(t, ended)
	return s
}

// await returns as soon as the server answers anything.
func (s *S3Server) await(t testing.TB, ended <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), s3StartTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			return
		}
		select {
		case <-ended:
			t.Fatal("the S3 server ended before it answered")
		case <-ctx.Done():
			t.Fatalf("the S3 server did not answer within %s", s3StartTimeout)
		case <-tick.C:
		}
	}
}

// Client returns an SDK client of the server, for what tests look at behind walden's back.
func (s *S3Server) Client() *s3.Client {
	return s3.New(s3.Options{
		Region: "us-east-1", BaseEndpoint: &s.Endpoint, UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(s.AccessKey, s.SecretKey, ""),
	})
}

// NewBucket creates an empty bucket and returns its name.
func (s *S3Server) NewBucket(t testing.TB) string {
	t.Helper()
	name := "test-" + strings.ToLower(rand.Text()[:10])
	if _, err := s.Client().CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String(name)}); err != nil {
		t.Fatalf("cannot create bucket %s: %v", name, err)
	}
	return name
}

// lockedBuffer collects what a program says while the test reads it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns what was written so far.
func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
