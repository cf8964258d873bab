package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// noSystemFile stands for the file in /etc, so that tests do not depend on the machine.
const noSystemFile = "/nonexistent/walden.yaml"

func mustLoad(t *testing.T, in Input) Config {
	t.Helper()
	c, err := load(in, noSystemFile)
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	return c
}

// writeFile returns the name of a new file with this base name and content.
func writeFile(t *testing.T, dir, base, content string) string {
	t.Helper()
	name := filepath.Join(dir, base)
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func setting(t *testing.T, c Config, name string) Value {
	t.Helper()
	i := slices.IndexFunc(c.Settings(), func(v Value) bool { return v.Name == name })
	if i < 0 {
		t.Fatalf("no setting %s", name)
	}
	return c.Settings()[i]
}

func TestFlagOverEnvironmentOverFileOverDefault(t *testing.T) {
	t.Parallel()
	const name = "WALG_COMPRESSION_METHOD"
	file := writeFile(t, t.TempDir(), "walden.yaml", name+": brotli\n")
	env := []string{name + "=lzma"}
	for _, test := range []struct {
		title, want, source string
		in                  Input
	}{
		{"default", "lz4", "default", Input{}},
		{"file", "brotli", "file " + file, Input{File: file}},
		{"environment", "lzma", "environment " + name, Input{File: file, Environ: env}},
		{"flag", "none", "flag --walg-compression-method",
			Input{File: file, Environ: env, Flags: map[string]string{name: "none"}}},
		{"empty environment is not given", "brotli", "file " + file, Input{File: file, Environ: []string{name + "="}}},
		{"empty flag brings the default back", "lz4", "default",
			Input{File: file, Environ: env, Flags: map[string]string{name: ""}}},
		{"first of two equal variables", "lzma", "environment " + name,
			Input{Environ: []string{name + "=lzma", name + "=zstd"}}},
		{"line end from envdir", "lzma", "environment " + name, Input{Environ: []string{name + "=lzma\r\n"}}},
		{"any case", "lzma", "environment " + name, Input{Environ: []string{name + "=LZMA"}}},
	} {
		t.Run(test.title, func(t *testing.T) {
			t.Parallel()
			c := mustLoad(t, test.in)
			if c.Compression.Method != test.want {
				t.Errorf("method %q, want %q", c.Compression.Method, test.want)
			}
			if got := setting(t, c, name).Source; got != test.source {
				t.Errorf("source %q, want %q", got, test.source)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	c := mustLoad(t, Input{})
	c.settings, c.warnings = nil, nil
	want := Config{
		S3: S3{StorageClass: "STANDARD", LogLevel: "NORMAL",
			PartSize: 20 << 20, MaxRetries: 15, MinRetryDelay: 500 * time.Millisecond, MaxRetryDelay: 5 * time.Minute,
			RangeMaxRetries: 10, DeleteBatchSize: 1000, SkipValidation: true, Checksum: "crc32"},
		GCS:         GCS{NormalizePrefix: true, MaxChunkSize: 16 << 20, MaxRetries: 16, ContextTimeout: 3600},
		Postgres:    Postgres{AppName: "walden", AliveCheckInterval: time.Minute, StopBackupTimeout: 10 * time.Minute},
		Compression: Compression{Method: "lz4", ZstdLevel: "default"},
		Encryption:  Encryption{LibsodiumKeyTransform: "none"},
		Backup: Backup{DiskConcurrency: runtime.GOMAXPROCS(0), PartSize: 1<<30 - 1, ArchiveWaitTimeout: 10 * time.Minute,
			VerifyPages: true, DeltaOrigin: "LATEST"},
		WAL: WAL{Timeout: 5 * time.Minute, PushedAtMost: 32, DaemonPushTimeout: time.Minute},
		Limits: Limits{Memory: 128 << 20, DirectIO: true, StallTimeout: 2 * time.Minute, UploadConcurrency: 16,
			DownloadConcurrency: 10},
		Log: Log{Level: "NORMAL", Destination: "stderr", Format: "text", SyslogFacility: "user"},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestAliases(t *testing.T) {
	t.Parallel()
	kms := []string{"S3_SSE_KMS_ID=k"}
	for _, test := range []struct {
		environ []string
		get     func(Config) string
		want    string
	}{
		{[]string{"WALE_S3_PREFIX=s3://e/x"}, func(c Config) string { return c.Storage.Bucket }, "e"},
		{[]string{"WALE_S3_PREFIX=s3://e/x", "WALG_S3_PREFIX=s3://g/x"}, func(c Config) string { return c.Storage.Bucket }, "g"},
		{append(kms, "WALE_S3_SSE=aws:kms", "WALG_S3_SSE=AES256", "S3_SSE=aws:kms"), func(c Config) string { return c.S3.SSE }, "aws:kms"},
		{[]string{"WALE_S3_STORAGE_CLASS=A", "WALG_S3_STORAGE_CLASS=B"}, func(c Config) string { return c.S3.StorageClass }, "B"},
		{[]string{"WALE_S3_STORAGE_CLASS=A"}, func(c Config) string { return c.S3.StorageClass }, "A"},
		{[]string{"WALG_AWS_REGION=r"}, func(c Config) string { return c.S3.Region }, "r"},
		{[]string{"AWS_ACCESS_KEY=id", "AWS_SECRET_KEY=s"}, func(c Config) string { return c.S3.SecretAccessKey.Reveal() }, "s"},
		{[]string{"WALE_GPG_KEY_ID=k"}, func(c Config) string { return c.Encryption.GPGKeyID }, "k"},
		{[]string{"UPLOAD_CONCURRENCY=3"}, func(c Config) string { return setting(t, c, "WALG_UPLOAD_CONCURRENCY").Value }, "3"},
	} {
		if got := test.get(mustLoad(t, Input{Environ: test.environ})); got != test.want {
			t.Errorf("%q: got %q, want %q", test.environ, got, test.want)
		}
	}
}

func TestAliasInTheEnvironmentWinsOverNameInTheFile(t *testing.T) {
	t.Parallel()
	file := writeFile(t, t.TempDir(), "w.yaml", "S3_STORAGE_CLASS: FILE\n")
	c := mustLoad(t, Input{File: file, Environ: []string{"WALE_S3_STORAGE_CLASS=ENV"}})
	if c.S3.StorageClass != "ENV" {
		t.Errorf("got %q", c.S3.StorageClass)
	}
}

func TestStorageIsChosenFromThePrefixes(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		environ []string
		want    Storage // the fields that are drawn from the prefixes
	}{
		{nil, Storage{}},
		{[]string{"WALG_FILE_PREFIX=/srv/b/"}, Storage{Kind: KindFile, Setting: "WALG_FILE_PREFIX", Path: "/srv/b"}},
		{[]string{"WALG_FILE_PREFIX=file://localhost/srv/b"}, Storage{Kind: KindFile, Setting: "WALG_FILE_PREFIX", Path: "/srv/b"}},
		{[]string{"WALE_FILE_PREFIX=file:///srv/b"}, Storage{Kind: KindFile, Setting: "WALE_FILE_PREFIX", Path: "/srv/b"}},
		{[]string{"WALG_S3_PREFIX=s3://b"}, Storage{Kind: KindS3, Setting: "WALG_S3_PREFIX", Bucket: "b"}},
		{[]string{"WALG_S3_PREFIX=s3://b//p/q/", "WALG_STORAGE_PREFIX=/sub/x/"},
			Storage{Kind: KindS3, Setting: "WALG_S3_PREFIX", Bucket: "b", Path: "p/q", Folder: "sub/x"}},
		{[]string{"WALG_GS_PREFIX=gs://b/p"}, Storage{Kind: KindGCS, Setting: "WALG_GS_PREFIX", Bucket: "b", Path: "p"}},
		{[]string{"WALG_GS_PREFIX=gs://b//p/"}, Storage{Kind: KindGCS, Setting: "WALG_GS_PREFIX", Bucket: "b", Path: "p"}},
		{[]string{"WALE_GS_PREFIX=gs://b//p/q", "GCS_NORMALIZE_PREFIX=false"},
			Storage{Kind: KindGCS, Setting: "WALE_GS_PREFIX", Bucket: "b", Path: "/p/q"}},
		{[]string{"WALG_GS_PREFIX=gs://b//", "WALG_GCS_NORMALIZE_PREFIX=false"},
			Storage{Kind: KindGCS, Setting: "WALG_GS_PREFIX", Bucket: "b", Path: "/"}},
		{[]string{"WALG_GS_PREFIX=gs://b", "GCS_NORMALIZE_PREFIX=false"}, Storage{Kind: KindGCS, Setting: "WALG_GS_PREFIX", Bucket: "b"}},
		{[]string{"WALG_AZ_PREFIX=azure://c/p"}, Storage{Kind: KindAzure, Setting: "WALG_AZ_PREFIX", Bucket: "c", Path: "p"}},
		{[]string{"WALG_SWIFT_PREFIX=swift://c/p"}, Storage{Kind: KindSwift, Setting: "WALG_SWIFT_PREFIX", Bucket: "c", Path: "p"}},
		{[]string{"WALG_SSH_PREFIX=ssh://h/p"}, Storage{Kind: KindSSH, Setting: "WALG_SSH_PREFIX", Bucket: "h", Path: "p"}},
		{[]string{"WALG_OSS_PREFIX=oss://b/p", "WALG_S3_PREFIX=s3://c"},
			Storage{Kind: KindOSS, Setting: "WALG_OSS_PREFIX", Bucket: "b", Path: "p"}},
		{[]string{"WALG_FILE_PREFIX=/f", "WALE_S3_PREFIX=s3://c"}, Storage{Kind: KindS3, Setting: "WALE_S3_PREFIX", Bucket: "c"}},
	} {
		s := mustLoad(t, Input{Environ: test.environ}).Storage
		got := Storage{Kind: s.Kind, Setting: s.Setting, Bucket: s.Bucket, Path: s.Path, Folder: s.Folder}
		if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%q:\ngot  %+v\nwant %+v", test.environ, got, test.want)
		}
	}
}

func TestFaultsNameSettingValueSourceAndWhatIsValid(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ environ, want string }{
		{"WALG_COMPRESSION_METHOD=gzip", `cannot use WALG_COMPRESSION_METHOD = "gzip" from environment WALG_COMPRESSION_METHOD: ` +
			`expected one of lz4, zstd, lzma, brotli, none`},
		{"WALG_UPLOAD_CONCURRENCY=0", `expected a whole number from 1 to 1024`},
		{"WALG_UPLOAD_DISK_CONCURRENCY=many", `expected a whole number from 1 to 1024, or auto`},
		{"WALDEN_MEMORY_LIMIT=1MiB", `expected a number of bytes, or with a unit such as 20MiB from 32MiB to 1TiB`},
		{"WALDEN_MEMORY_LIMIT=99999999999999GiB", `expected a number of bytes`},
		{"WALDEN_STALL_TIMEOUT=30", `expected a duration such as 90s or 15m from 100ms to 168h`},
		{"WALDEN_WAL_TIMEOUT=0s", `expected a duration`},
		{"WALG_VERIFY_PAGE_CHECKSUMS=yes", `expected true or false`},
		{"WALG_SENTINEL_USER_DATA=nightly", `expected a JSON value`},
		{"PGPORT=70000", `expected a whole number from 1 to 65535`},
		{"PGHOST=a,b", `expected one host`},
		{"WALG_STORAGE_PREFIX=a/../b", `".." elements`},
		{"WALG_FILE_PREFIX=backups", `the directory name must be absolute`},
		{"WALG_FILE_PREFIX=s3://bucket/x", `expected an absolute directory name or file://localhost/path`},
		{"WALG_FILE_PREFIX=file://server/x", `can only be localhost`},
		{"WALG_S3_PREFIX=bucket/x", `expected s3://name/path`},
		{"WALG_S3_PREFIX=s3:///x", `expected s3://name/path`},
		{"WALG_S3_PREFIX=s3://b/x?y", `have no meaning in a prefix`},
		{"AWS_ENDPOINT=http+path://h:9000", `expected an http or https URL`},
		{"AWS_ACCESS_KEY_ID=id", `AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must be set together`},
		{"S3_SSE=aws:kms", `S3_SSE_KMS_ID must be set if and only if`},
		{"S3_SSE_KMS_ID=k", `S3_SSE_KMS_ID must be set if and only if`},
		{"S3_MAX_THROTTLING_RETRY_DELAY=100", `S3_MAX_THROTTLING_RETRY_DELAY is less, 100ms`},
		{"S3_MAX_PART_SIZE=1MiB", `from 5MiB to 5GiB`},
		{"S3_REQUEST_ADDITIONAL_HEADERS={a: {b: c}}", `expected a map from names to values`},
		{"WALG_ZSTD_LEVEL=best", `WALG_COMPRESSION_METHOD is lz4, and only zstd has levels`},
		{"WALG_FAILOVER_STORAGES={}", `it can be set in a configuration file only`},
	} {
		_, err := load(Input{Environ: []string{test.environ}}, noSystemFile)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s:\ngot  %v\nwant %s", test.environ, err, test.want)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one fault: %v", test.environ, err)
		}
	}
}

func TestAllFaultsAreReportedAtOnce(t *testing.T) {
	t.Parallel()
	file := writeFile(t, t.TempDir(), "w.toml", "PGSSLMODE = \"maybe\"\n")
	c, err := load(Input{
		File:    file,
		Flags:   map[string]string{"walg_log_level": "LOUD", "WALG_NONE": "x"},
		Environ: []string{"WALG_UPLOAD_CONCURRENCY=x", "PGHOST=db1"},
	}, noSystemFile)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"PGSSLMODE", "from flag --walg-log-level", "--walg-none", "WALG_UPLOAD_CONCURRENCY", file} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in\n%v", want, err)
		}
	}
	var cause invalid
	if lines := strings.Count(err.Error(), "\n") + 1; lines != 4 || !errors.As(err, &cause) {
		t.Errorf("%d lines, or no cause: %v", lines, err)
	}
	if c.Postgres.Host != "db1" {
		t.Errorf("the valid settings are not filled in")
	}
}

func TestUnitsAndForms(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"67108864": 64 << 20, "64MiB": 64 << 20, "64mb": 64 << 20, "64 MB": 64 << 20, "65536kB": 64 << 20, "1g": 1 << 30, "1GiB": 1 << 30,
	} {
		if c := mustLoad(t, Input{Environ: []string{"WALDEN_MEMORY_LIMIT=" + text}}); c.Limits.Memory != want {
			t.Errorf("%q: %d, want %d", text, c.Limits.Memory, want)
		}
	}
	for _, text := range []string{`{"X-A": "1", "X-B": "two"}`, `[{X-A: 1}, {X-B: two}]`, "X-A: 1\nX-B: two", "- X-A: 1\n- X-B: two"} {
		c := mustLoad(t, Input{Environ: []string{"S3_REQUEST_ADDITIONAL_HEADERS=" + text}})
		headers := c.S3.AdditionalHeaders
		if len(headers) != 2 || headers["X-A"].Reveal() != "1" || headers["X-B"].Reveal() != "two" {
			t.Errorf("%q: %d headers", text, len(headers))
		}
	}
	for text, want := range map[string]string{
		"s3.example.com": "https://s3.example.com", "http://h:9000/": "http://h:9000", "h:9000": "https://h:9000",
	} {
		if c := mustLoad(t, Input{Environ: []string{"AWS_ENDPOINT=" + text}}); c.S3.Endpoint != want {
			t.Errorf("%q: %q, want %q", text, c.S3.Endpoint, want)
		}
	}
}

func TestEncryptionIsRequestedByAnySettingOfIt(t *testing.T) {
	t.Parallel()
	if mustLoad(t, Input{Environ: []string{"WALG_LIBSODIUM_KEY_TRANSFORM=NONE", "WALG_ENVELOPE_CACHE_EXPIRATION=0s"}}).Encryption.Requested {
		t.Error("requested by defaults")
	}
	for _, d := range Definitions() {
		if d.Group != groupEncryption {
			continue
		}
		for _, name := range append(d.Aliases, d.Name) {
			value := "x"
			switch d.Type {
			case Choice:
				value = "hex"
			case Duration:
				value = "1h"
			case Boolean:
				value = "true"
			}
			e := mustLoad(t, Input{Environ: []string{name + "=" + value}}).Encryption
			if !e.Requested || !slices.Equal(e.By, []string{name}) {
				t.Errorf("%s: %v %v", name, e.Requested, e.By)
			}
		}
	}
}

func TestOneKeyEncryptsAndEverySettingOfEncryptionHasAKey(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		environ []string
		method  Method
		refused string
	}{
		{nil, MethodNone, ""},
		{[]string{"WALG_PGP_KEY=k", "WALG_PGP_KEY_PASSPHRASE=p"}, MethodOpenPGP, ""},
		{[]string{"WALG_PGP_KEY_PATH=/k"}, MethodOpenPGP, ""},
		{[]string{"GPG_KEY_ID=k", "WALG_GPG_KEY_ID=k", "WALG_PGP_KEY_PASSPHRASE=p"}, MethodGnuPG, ""},
		{[]string{"WALE_GPG_KEY_ID=k"}, MethodGnuPG, ""},
		{[]string{"WALG_CSE_KMS_ID=k", "WALG_CSE_KMS_REGION=r", "WALDEN_CSE_KMS_ENDPOINT=http://h"}, MethodAWSKMS, ""},
		{[]string{"WALG_LIBSODIUM_KEY=k", "WALG_LIBSODIUM_KEY_TRANSFORM=hex"}, MethodSodium, ""},
		{[]string{"WALG_LIBSODIUM_KEY_PATH=/k", "WALDEN_PGP_OLD_KEYS=k", "WALDEN_PGP_OLD_KEYS_PASSPHRASE=p", "WALDEN_READ_CSE_KMS=true",
			"WALG_CSE_KMS_REGION=r", "WALDEN_READ_UNENCRYPTED=true"}, MethodSodium, ""},
		{[]string{"WALDEN_LIBSODIUM_OLD_KEYS=k", "WALG_LIBSODIUM_KEY_TRANSFORM=hex"}, MethodNone, ""},
		{[]string{"WALG_PGP_KEY_PASSPHRASE=p"}, MethodNone, "WALG_PGP_KEY_PASSPHRASE is set without an OpenPGP key"},
		{[]string{"WALG_PGP_KEY=k", "WALG_LIBSODIUM_KEY_TRANSFORM=hex"}, MethodOpenPGP, "WALG_LIBSODIUM_KEY_TRANSFORM is set without a key for libsodium"},
		{[]string{"WALG_LIBSODIUM_KEY=k", "WALG_CSE_KMS_REGION=r"}, MethodSodium, "WALG_CSE_KMS_REGION is set without a key of AWS KMS"},
		{[]string{"WALG_PGP_KEY=k", "WALDEN_PGP_OLD_KEYS_PASSPHRASE=p"}, MethodOpenPGP, "WALDEN_PGP_OLD_KEYS_PASSPHRASE is set without WALDEN_PGP_OLD_KEYS"},
		{[]string{"YC_CSE_KMS_KEY_ID=k"}, MethodNone, "YC_CSE_KMS_KEY_ID is set: " + noYandex},
		{[]string{"WALG_ENVELOPE_PGP_KEY_PATH=k", "WALG_PGP_KEY=k"}, MethodOpenPGP, "WALG_ENVELOPE_PGP_KEY_PATH is set: " + noYandex},
	} {
		if e := mustLoad(t, Input{Environ: test.environ}).Encryption; e.Method != test.method || e.Refused != test.refused {
			t.Errorf("%q: method %q, refused %q", test.environ, e.Method, e.Refused)
		}
	}
	for _, test := range []struct{ a, b string }{
		{"WALG_PGP_KEY", "WALG_PGP_KEY_PATH"}, {"WALG_PGP_KEY", "WALG_LIBSODIUM_KEY"}, {"WALG_PGP_KEY_PATH", "WALE_GPG_KEY_ID"},
		{"WALG_GPG_KEY_ID", "WALG_CSE_KMS_ID"}, {"WALG_CSE_KMS_ID", "WALG_LIBSODIUM_KEY"}, {"WALG_LIBSODIUM_KEY", "WALG_LIBSODIUM_KEY_PATH"},
		{"WALDEN_LIBSODIUM_OLD_KEYS", "WALDEN_LIBSODIUM_OLD_KEYS_PATH"}, {"WALDEN_PGP_OLD_KEYS", "WALDEN_PGP_OLD_KEYS_PATH"},
	} {
		e := mustLoad(t, Input{Environ: []string{test.a + "=unsaid", test.b + "=unsaid"}}).Encryption
		if !strings.HasPrefix(e.Refused, "both "+test.a+" and "+test.b+" are set") {
			t.Errorf("%s and %s: %q", test.a, test.b, e.Refused)
		}
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, test := range []struct {
		title string
		in    Input
		want  []string
	}{
		{"nothing to say", Input{Environ: []string{"WALG_FILE_PREFIX=/b", "HOME=/root", "WALKER=1", "SSH_PORT=2222", "GOMAXPROCS=2"}}, nil},
		{"slip with the nearest name", Input{Environ: []string{"WALG_COMPRESION_METHOD=zstd"}},
			[]string{"environment variable WALG_COMPRESION_METHOD is not known; did you mean WALG_COMPRESSION_METHOD?"}},
		{"other prefix", Input{Environ: []string{"WALDEN_S3_PREFIX=s3://b"}},
			[]string{"environment variable WALDEN_S3_PREFIX is not known; did you mean WALG_S3_PREFIX?"}},
		{"nothing near", Input{Environ: []string{"WALG_MYSQL_BINLOG_REPLAY_COMMAND=x"}},
			[]string{"environment variable WALG_MYSQL_BINLOG_REPLAY_COMMAND is not known"}},
		{"unknown in the file", Input{File: writeFile(t, dir, "u.yaml", "pghots: db1\n")},
			[]string{"PGHOTS in file " + dir + "/u.yaml is not known; did you mean PGHOST?"}},
		{"line of a key in the file", Input{File: writeFile(t, dir, "k.env", "lQOYBGSecretSecretSecretSecret==\n")},
			[]string{"LQOY... in file " + dir + "/k.env is not known"}},
		{"names that differ", Input{Environ: []string{"WALG_S3_PREFIX=s3://g", "WALE_S3_PREFIX=s3://e"}},
			[]string{"WALG_S3_PREFIX and WALE_S3_PREFIX are the same setting and differ: WALG_S3_PREFIX is used"}},
		{"names that agree", Input{Environ: []string{"WALG_S3_PREFIX=s3://g", "WALE_S3_PREFIX=s3://g"}}, nil},
		{"two storages", Input{Environ: []string{"WALG_FILE_PREFIX=/b", "WALG_S3_PREFIX=s3://g"}},
			[]string{"WALG_S3_PREFIX and WALG_FILE_PREFIX name two storages: WALG_S3_PREFIX is used"}},
		{"overwriting WAL", Input{Environ: []string{"WALG_PREVENT_WAL_OVERWRITE=0"}},
			[]string{"WALG_PREVENT_WAL_OVERWRITE has no effect: WAL in the archive is never overwritten: " +
				"the same content again is success, other content is an error"}},
		{"asked for what happens anyway", Input{Environ: []string{"WALG_PREVENT_WAL_OVERWRITE=t", "WALG_PG_WAL_SIZE=16", "WALG_DELTA_MAX_STEPS=0"}}, nil},
		{"size of segments", Input{Environ: []string{"WALG_PG_WAL_SIZE=64"}},
			[]string{"WALG_PG_WAL_SIZE has no effect: walden takes it from the cluster itself"}},
		{"deltas", Input{Environ: []string{"WALG_DELTA_MAX_STEPS=6"}}, nil},
		{"settings of the storage in use", Input{Environ: []string{"WALG_SSH_PREFIX=ssh://h/p", "SSH_PORT=2222"}},
			[]string{"SSH_PORT has no effect: walden cannot use this storage"}},
		{"runtime's setting in the file", Input{File: writeFile(t, dir, "g.env", "GOMAXPROCS=2\n")},
			[]string{"GOMAXPROCS has no effect: the Go runtime reads it from the environment only"}},
		{"file that names a file", Input{File: writeFile(t, dir, "f.env", "WALG_CONFIG_PATH=/x\n")}, nil},
		{"failover", Input{File: writeFile(t, dir, "o.yaml", "WALG_FAILOVER_STORAGES:\n  b: {WALG_FILE_PREFIX: /b}\n  a: {AWS_SECRET_KEY: hidden}\n")},
			[]string{"WALG_FAILOVER_STORAGES: the commands of `st` alone use failover storages; WAL and backups are pushed to the primary storage and fetched from it"}},
	} {
		t.Run(test.title, func(t *testing.T) {
			t.Parallel()
			c := mustLoad(t, test.in)
			if !slices.Equal(c.Warnings(), test.want) {
				t.Errorf("got  %q\nwant %q", c.Warnings(), test.want)
			}
			if test.title == "failover" && !slices.Equal(c.Storage.Failover, []string{"a", "b"}) {
				t.Errorf("names %q", c.Storage.Failover)
			}
		})
	}
}

func TestNothingWithoutEffectIsIgnoredSilently(t *testing.T) {
	t.Parallel()
	for _, d := range Definitions() {
		if d.Effect == "" || d.runtime || d.fileOnly {
			continue
		}
		value := map[Type]string{Boolean: "true", Integer: "7", Size: "7", Duration: "7s", JSON: "7", Map: "{a: b}", Choice: ""}[d.Type]
		switch {
		case d.Default == "true":
			value = "false"
		case d.Type == Choice:
			value = d.Choices[len(d.Choices)-1]
		case value == "":
			value = "x"
		}
		environ := []string{d.Name + "=" + value}
		if kind, ok := groupKinds[d.Group]; ok {
			for _, p := range prefixes {
				if p.kind == kind {
					environ = append(environ, p.setting+"="+p.scheme+"://h/p")
				}
			}
		}
		if warnings := mustLoad(t, Input{Environ: environ}).Warnings(); len(warnings) != 1 || !strings.HasPrefix(warnings[0], d.Name+" has no effect: ") {
			t.Errorf("%s: %q", environ[0], warnings)
		}
	}
}

func TestDistance(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		a, b        string
		limit, want int
	}{
		{"", "", 3, 0}, {"abc", "abc", 3, 0}, {"abc", "abd", 3, 1}, {"abc", "ab", 3, 1}, {"kitten", "sitting", 9, 3},
		{"kitten", "sitting", 2, 2}, {"", "abcd", 9, 4},
	} {
		if got := distance(test.a, test.b, test.limit); got != test.want {
			t.Errorf("distance(%q, %q, %d) = %d, want %d", test.a, test.b, test.limit, got, test.want)
		}
	}
}

func TestEverySecretThatWasGivenCanBeMasked(t *testing.T) {
	t.Parallel()
	c := mustLoad(t, Input{
		Flags:   map[string]string{"PGPASSWORD": "used"},
		Environ: []string{"PGPASSWORD=overridden", `S3_REQUEST_ADDITIONAL_HEADERS={"a": "in a map"}`},
		File:    writeFile(t, t.TempDir(), "a.yaml", "WALG_FAILOVER_STORAGES:\n  a: {AWS_SECRET_KEY: deep, more: [in a list]}\n"),
	})
	var got []string
	for _, s := range c.Secrets() {
		got = append(got, s.Reveal())
	}
	slices.Sort(got)
	if want := []string{"deep", "in a list", "in a map", "overridden", "used"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	c, err := load(Input{Environ: []string{"S3_REQUEST_ADDITIONAL_HEADERS=no map", "PGHOST=postgres://u:pw@h"}}, noSystemFile)
	if err == nil || len(c.Secrets()) != 1 || c.Secrets()[0].Reveal() != "no map" {
		t.Errorf("%v, %d secrets", err, len(c.Secrets()))
	}
	if v := setting(t, c, "PGHOST").Value; v != "***" {
		t.Errorf("a URL with a password shows as %q", v)
	}
}
