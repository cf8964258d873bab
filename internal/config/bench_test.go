package config

import (
	"io"
	"os"
	"path/filepath"
	"testing"
)

// wal-push reads its settings once for every segment, so that reading them must not be felt.
func BenchmarkLoadFromEnvironment(b *testing.B) {
	environ := append(os.Environ(), "WALG_S3_PREFIX=s3://backups/main", "AWS_ACCESS_KEY_ID=id", "AWS_SECRET_ACCESS_KEY=key",
		"AWS_REGION=eu-central-1", "WALG_COMPRESSION_METHOD=zstd", "PGHOST=/run/postgresql", "WALG_UPLOAD_CONCURRENCY=4")
	home := b.TempDir()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Load(Input{Environ: environ, Home: home}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLoadFromYAML(b *testing.B) {
	file := filepath.Join(b.TempDir(), "walden.yaml")
	if err := os.WriteFile(file, []byte("WALG_S3_PREFIX: s3://backups/main\nAWS_REGION: eu-central-1\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Load(Input{File: file}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriteMarkdown(b *testing.B) {
	for b.Loop() {
		if err := WriteMarkdown(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
