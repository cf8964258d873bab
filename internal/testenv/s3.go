package testenv

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

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
	Data      string // directory whose folders are the buckets; a file in one is an object
}

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
	s := &S3Server{Endpoint: "http://" + address, AccessKey: "testaccess", SecretKey: "testsecret123", Data: filepath.Join(dir, "data")}
	cmd := exec.Command(program, "--quiet", "--keep-alive", "--port", address,
		"-a", s.AccessKey, "-s", s.SecretKey, "posix", s.Data)
	cmd.Env = []string{"HOME=" + filepath.Join(dir, "home")}
	cmd.Dir = dir
	serve(t, cmd, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint, nil)
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
