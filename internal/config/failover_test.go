package config

import (
	"strings"
	"testing"
)

func TestAFailoverStorageHasItsOwnSettings(t *testing.T) {
	t.Parallel()
	file := writeFile(t, t.TempDir(), "f.yaml", `
WALG_S3_PREFIX: s3://main/pg
WALG_STORAGE_PREFIX: cluster
AWS_REGION: eu-central-1
AWS_ENDPOINT: https://one.example.org
AWS_ACCESS_KEY_ID: a
AWS_SECRET_ACCESS_KEY: b
WALG_S3_SSE: AES256
WALG_COMPRESSION_METHOD: zstd
WALG_FAILOVER_STORAGES:
  files: {WALG_FILE_PREFIX: /srv/failover}
  bucket: {walg_s3_prefix: "s3://second/pg", AWS_ENDPOINT: "https://two.example.org", AWS_SECRET_ACCESS_KEY: hidden, WALG_NO_SUCH: 1}
  wrong: {WALG_S3_PREFIX: "nothing"}
`)
	c := mustLoad(t, Input{File: file, Environ: []string{"AWS_REGION=us-east-1", "WALG_LOG_LEVEL=ERROR", "AWS_ENDPOINT=https://environment.example.org"}})
	files, err := c.FailoverStorage("files")
	if err != nil || files.Storage.Kind != KindFile || files.Storage.Path != "/srv/failover" || files.Storage.Folder != "" || files.Compression.Method != "zstd" {
		t.Errorf("%+v, %v", files.Storage, err)
	}
	bucket, err := c.FailoverStorage("bucket")
	if err != nil || bucket.Storage.Kind != KindS3 || bucket.Storage.Bucket != "second" || bucket.Storage.Folder != "" {
		t.Errorf("%+v, %v", bucket.Storage, err)
	}
	if s := bucket.S3; s.Region != "us-east-1" || s.Endpoint != "https://two.example.org" || s.AccessKeyID != "a" || s.SecretAccessKey.Reveal() != "hidden" ||
		s.SSE != "" || bucket.Log.Level != "ERROR" {
		t.Errorf("%+v", s)
	}
	if w := strings.Join(bucket.Warnings(), "\n"); !strings.Contains(w, "WALG_NO_SUCH") {
		t.Errorf("warnings %q", w)
	}
	if _, err := c.FailoverStorage("wrong"); err == nil || !strings.Contains(err.Error(), "WALG_S3_PREFIX") {
		t.Errorf("a wrong prefix: %v", err)
	}
	if _, err := c.FailoverStorage("third"); err == nil || !strings.Contains(err.Error(), "does not name it") {
		t.Errorf("an unknown storage: %v", err)
	}
}

func TestFailoverStoragesThatCannotBe(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"WALG_FAILOVER_STORAGES: {default: {WALG_FILE_PREFIX: /x}}": "that of the primary",
		"WALG_FAILOVER_STORAGES: {a: b}":                            "is not a map",
	} {
		if _, err := load(Input{File: writeFile(t, t.TempDir(), "f.yaml", text+"\n")}, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
