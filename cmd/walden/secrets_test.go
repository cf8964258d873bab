package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/config"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

// planted are unmistakable words in the places of secrets, and where each of them stands.
type planted map[string]string

// plant makes a word of the length that a customer key for S3 has (SSE-C, 32 bytes).
func (p planted) plant(where string) string {
	var b [15]byte
	_, _ = rand.Read(b[:]) // never fails
	word := "Zq" + hex.EncodeToString(b[:])
	p[word] = where
	return word
}

// shown tells whether a text holds a word: as it is in whatever case, one half of it, in hexadecimal, or in base64 at any of
// the three offsets that it may have in a larger whole. Escaped for a URL or for JSON the words stay as they are.
func shown(text, word string) bool {
	lower, parts := strings.ToLower(text), []string{word}
	if half := len(word) / 2; half > 12 {
		parts = []string{word[:half], word[half:]}
	}
	for _, part := range append(parts, hex.EncodeToString([]byte(parts[0]))) {
		if strings.Contains(lower, strings.ToLower(part)) {
			return true
		}
	}
	for offset := range 3 {
		coded := base64.RawStdEncoding.EncodeToString(append(make([]byte, offset), word...))
		if strings.Contains(text, coded[4:min(28, len(coded)-1)]) { // without what depends on its neighbours
			return true
		}
	}
	return false
}

// seek fails if a text shows any of the words.
func (p planted) seek(t *testing.T, what, text string) {
	t.Helper()
	testenv.Figure(t, "secrets", "texts and files searched for every planted secret", 1)
	for word, where := range p {
		if shown(text, word) {
			t.Errorf("%s shows %s:\n%.2000s", what, where, text)
		}
	}
}

// value writes a word as the value of a setting.
func value(d config.Definition, word string) string {
	switch {
	case d.Name == "WALG_FAILOVER_STORAGES":
		return fmt.Sprintf(`{"second": {"AWS_SECRET_ACCESS_KEY": %q}}`, word)
	case d.Type == config.Map:
		return fmt.Sprintf(`{"X-Gateway-Key": %q}`, word)
	}
	return word
}

// secrets are the settings that the table of settings calls secret.
func secrets() (all []config.Definition) {
	for _, d := range config.Definitions() {
		if d.Secret {
			all = append(all, d)
		}
	}
	return all
}

// try runs a command with an environment of its own and searches all that it says. It may fail, but not by crashing.
func (s *site) try(t *testing.T, p planted, env []string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := s.command(ctx, nil, args...)
	cmd.Env = append(cmd.Env, env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	r := result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	if r.code < 0 || strings.Contains(r.stderr, "panic:") {
		t.Errorf("walden %v has crashed:\n%s", args, r.stderr)
	}
	p.seek(t, fmt.Sprintf("walden %v, standard output", args), r.stdout)
	p.seek(t, fmt.Sprintf("walden %v, standard error", args), r.stderr)
	return r
}

// commands are all that walden does, in a data directory and with a WAL file that may or may not be there.
func commands(dataDir, target string) [][]string {
	return [][]string{
		{"backup-push", dataDir},
		{"backup-list"},
		{"backup-list", "--detail", "--json"},
		{"backup-fetch", target, "LATEST"},
		{"wal-push", filepath.Join(dataDir, "pg_wal/00000001.history")},
		{"wal-fetch", "000000010000000000000001", filepath.Join(dataDir, "RECOVERYXLOG")},
		{"archive", "identity"},
		{"archive", "accept", dataDir},
		{"settings"},
		{"settings", "--all"},
		{"settings", "--all", "--json"},
	}
}

// loud are the ways to log.
var loud = [][]string{
	{"WALG_LOG_LEVEL=ERROR"},
	{"WALG_LOG_LEVEL=DEVEL", "S3_LOG_LEVEL=DEVEL", "WALDEN_LOG_FORMAT=json"},
	{"WALG_LOG_LEVEL=DEVEL", "S3_LOG_LEVEL=DEVEL", "WALDEN_LOG_FORMAT=text"},
}

// quick makes failing a matter of moments.
var quick = []string{
	"S3_MAX_RETRIES=0", "WALDEN_WAL_TIMEOUT=2s", "WALDEN_STALL_TIMEOUT=1s", "AWS_EC2_METADATA_DISABLED=true",
}

// unconfigured is a walden that gets all its settings from the environment and from flags.
func unconfigured(t *testing.T) *site {
	t.Helper()
	s := bareSite(t)
	s.raced = s.plain
	s.configure("WALDEN_LOG_FORMAT=text")
	return s
}

func TestSecretsAreShownNowhere(t *testing.T) {
	t.Parallel()
	for what, test := range map[string]func(*testing.T){
		"by commands that succeed, nor in what they store": testSecretsOfSuccess,
		"by commands that fail":                            testSecretsOfFailure,
		"by encryption":                                    testSecretsOfEncryption,
		"from wherever they are set":                       testSecretsFromEverySource,
		"when their values are malformed":                  testMalformedSecrets,
		"when the configuration file cannot be read":       testSecretsInBrokenFiles,
		"by a service that sends back what it was sent":    testEchoedSecrets,
		"by the process to others, nor in a core file":     testSecretsOfTheProcess,
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			test(t)
		})
	}
}

func testSecretsOfSuccess(t *testing.T) {
	p := planted{}
	logFile := filepath.Join(testenv.Scratch(t), "walden.log")
	s := newS3Site(t, `S3_REQUEST_ADDITIONAL_HEADERS={"X-Gateway-Key": "`+p.plant("S3_REQUEST_ADDITIONAL_HEADERS")+`"}`,
		"WALG_COMPRESSION_METHOD=none") // so that tars can be searched, too
	s.raced = s.plain
	p[s.s3.SecretKey] = "AWS_SECRET_ACCESS_KEY"
	pg := testenv.StartPostgres(t, testenv.PostgresOptions{TCP: true, WALSegmentSize: 1, Settings: s.archiving()})
	password := p.plant("PGPASSWORD")
	pg.Exec(t, "CREATE ROLE locked LOGIN SUPERUSER PASSWORD '"+password+"'")
	onlyWithPassword(t, pg)
	segment := pg.SwitchWAL(t)
	s.archived(pg)
	env := []string{"PGHOST=127.0.0.1", fmt.Sprint("PGPORT=", pg.Port), "PGUSER=locked", "PGDATABASE=postgres", "PGPASSWORD=" + password}
	for i, log := range append(loud, []string{"WALG_LOG_LEVEL=DEVEL", "S3_LOG_LEVEL=DEVEL", "WALG_LOG_DESTINATION=" + logFile}) {
		scratch := testenv.Scratch(t)
		for _, args := range commands(pg.DataDir, filepath.Join(scratch, "data")) {
			switch args[0] {
			case "wal-push":
				args[1] = history(t, scratch, i+2)
			case "wal-fetch":
				args[1], args[2] = segment, filepath.Join(scratch, "RECOVERYXLOG")
			}
			if r := s.try(t, p, append(slices.Clone(env), log...), args...); r.code != 0 {
				t.Errorf("walden %v: exit code %d\n%s", args, r.code, r.stderr)
			}
		}
	}
	said := readAll(t, logFile)
	if !strings.Contains(said, "s3 request") {
		t.Errorf("the requests were not logged:\n%s", said)
	}
	p.seek(t, "the log", said)
	client := s.s3.Client()
	for key := range s.objects(t) {
		out, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &s.bucket, Key: aws.String(s3Prefix + "/" + key)})
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(out.Body)
		if err := errors.Join(err, out.Body.Close()); err != nil {
			t.Fatal(err)
		}
		p.seek(t, "object "+key, string(content))
	}
}

// testSecretsOfEncryption encrypts with keys of every kind, and fails to.
func testSecretsOfEncryption(t *testing.T) {
	names, dir := walFiles(t)
	p := planted{}
	s := unconfigured(t)
	phrase, wrong, key, old := p.plant("WALG_PGP_KEY_PASSPHRASE"), p.plant("a wrong passphrase"), p.plant("WALG_LIBSODIUM_KEY"), p.plant("WALDEN_LIBSODIUM_OLD_KEYS")
	ring := newKeyRing(t, phrase)
	locked := ring.secret(t, phrase)
	keys := filepath.Join(testenv.Scratch(t), "old.keys")
	writeText(t, keys, old+"\n"+p.plant("a file of keys")[:20]+"\n")
	// A program that is called gpg and tells all that it is given.
	nosy := testenv.Scratch(t)
	told := filepath.Join(nosy, "told")
	if err := os.WriteFile(filepath.Join(nosy, "gpg"), []byte("#!/bin/sh\n{ echo \"$0 $*\"; env; } >>"+told+"\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	kms := testenv.StartKMS(t)
	service := []string{"WALG_CSE_KMS_REGION=" + kms.Region, "WALDEN_CSE_KMS_ENDPOINT=" + kms.Endpoint, "AWS_ACCESS_KEY_ID=a",
		"AWS_SECRET_ACCESS_KEY=" + p.plant("AWS_SECRET_ACCESS_KEY"), "AWS_SESSION_TOKEN=" + p.plant("AWS_SESSION_TOKEN")}
	for i, c := range []struct {
		env   []string
		works bool
	}{
		{[]string{"WALG_LIBSODIUM_KEY=" + key, "WALDEN_LIBSODIUM_OLD_KEYS=" + old}, true},
		{[]string{"WALG_PGP_KEY=" + locked, "WALG_PGP_KEY_PASSPHRASE=" + phrase}, true},
		{[]string{"GPG_KEY_ID=archive@example.org", "WALG_PGP_KEY_PASSPHRASE=" + phrase, "GNUPGHOME=" + ring.home}, true},
		{append(slices.Clone(service), "WALG_CSE_KMS_ID="+kms.KeyID), true},
		{append(slices.Clone(service), "WALG_CSE_KMS_ID=none"), false},
		{[]string{"WALG_PGP_KEY=" + locked, "WALG_PGP_KEY_PASSPHRASE=" + wrong}, false},
		{[]string{"WALG_PGP_KEY=" + locked[:len(locked)/2] + p.plant("WALG_PGP_KEY"), "WALG_PGP_KEY_PASSPHRASE=" + wrong}, false},
		{[]string{"WALG_LIBSODIUM_KEY=" + key, "WALG_LIBSODIUM_KEY_TRANSFORM=hex"}, false},
		{[]string{"WALG_LIBSODIUM_KEY=" + key, "WALG_LIBSODIUM_KEY_TRANSFORM=base64"}, false},
		{[]string{"WALG_LIBSODIUM_KEY=" + key, "WALG_PGP_KEY=" + locked}, false},
		{[]string{"WALG_LIBSODIUM_KEY_PATH=" + keys + "/x"}, false},
		{[]string{"WALG_PGP_KEY_PATH=" + keys}, false},
		{[]string{"WALG_LIBSODIUM_KEY=" + key, "WALDEN_LIBSODIUM_OLD_KEYS_PATH=" + keys}, false},
		{[]string{"GPG_KEY_ID=archive@example.org", "WALG_PGP_KEY_PASSPHRASE=" + phrase, "PATH=" + nosy + ":" + os.Getenv("PATH")}, false},
	} {
		archive := testenv.Scratch(t)
		env := slices.Concat(quick, []string{"WALG_FILE_PREFIX=" + archive, "WALG_COMPRESSION_METHOD=none", "WALDEN_WAL_TIMEOUT=1m"}, c.env, loud[1+i%2])
		failed := ""
		for _, args := range [][]string{
			{"wal-push", filepath.Join(dir, names[0])}, {"wal-push", filepath.Join(dir, names[0])},
			{"wal-fetch", names[0], filepath.Join(testenv.Scratch(t), "RECOVERYXLOG")}, {"backup-list"}, {"settings", "--all"},
		} {
			if r := s.try(t, p, env, args...); r.code != 0 {
				failed += r.stderr
			}
		}
		if c.works != (failed == "") {
			t.Errorf("%.60q: these failed:\n%s", c.env, failed)
		}
		for _, name := range files(t, archive) {
			p.seek(t, "object "+name, readAll(t, filepath.Join(archive, name)))
		}
	}
	p.seek(t, "what gpg is given", readAll(t, told))
}

// onlyWithPassword makes the server ask the role locked for its password.
func onlyWithPassword(t *testing.T, p *testenv.Postgres) {
	t.Helper()
	rules := "host all locked all scram-sha-256\nlocal all all trust\nlocal replication all trust\n"
	if err := os.WriteFile(filepath.Join(p.DataDir, "pg_hba.conf"), []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Reload(t)
}

// history writes a timeline's history, which wal-push takes as it is.
func history(t *testing.T, dir string, timeline int) string {
	t.Helper()
	name := filepath.Join(dir, fmt.Sprintf("%08X.history", timeline))
	if err := os.WriteFile(name, []byte("1\t0/5000000\tno recovery target specified\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func readAll(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func writeText(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// failures are storages and servers that do not work, each with secrets in every place that takes part.
func failures(t *testing.T, p planted) map[string][]string {
	t.Helper()
	server := testenv.StartS3(t)
	pg := testenv.StartPostgres(t, testenv.PostgresOptions{TCP: true})
	pg.Exec(t, "CREATE ROLE locked LOGIN PASSWORD 'right'")
	onlyWithPassword(t, pg)
	bucket, closed := server.NewBucket(t), "127.0.0.1:"+closedPort(t)
	base := func(more ...string) []string {
		return append([]string{
			"WALG_S3_PREFIX=s3://" + bucket + "/x", "AWS_ENDPOINT=" + server.Endpoint, "AWS_REGION=us-east-1", "AWS_S3_FORCE_PATH_STYLE=true",
			"AWS_ACCESS_KEY_ID=" + server.AccessKey, "AWS_SECRET_ACCESS_KEY=" + p.plant("AWS_SECRET_ACCESS_KEY"), "PGPASSWORD=" + p.plant("PGPASSWORD"),
			`S3_REQUEST_ADDITIONAL_HEADERS={"X-Gateway-Key": "` + p.plant("S3_REQUEST_ADDITIONAL_HEADERS") + `"}`,
		}, more...)
	}
	dir := testenv.Scratch(t)
	credentials := writeText(t, filepath.Join(dir, "credentials"), "[default]\naws_access_key_id = a\naws_secret_access_key = "+
		p.plant("a shared credentials file")+"\n[broken\n"+p.plant("a broken credentials file")+"\n")
	passFile := filepath.Join(dir, "pgpass")
	if err := os.WriteFile(passFile, []byte("*:*:*:*:"+p.plant("PGPASSFILE")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	own(t, passFile)
	good := "AWS_SECRET_ACCESS_KEY=" + server.SecretKey
	locked := []string{good, "PGHOST=127.0.0.1", fmt.Sprint("PGPORT=", pg.Port), "PGUSER=locked", "PGDATABASE=postgres"}
	asLocked := func(more ...string) []string { return base(slices.Concat(locked, more)...) }
	noKeys := []string{"AWS_ACCESS_KEY_ID=", "AWS_SECRET_ACCESS_KEY="}
	proxied := "AWS_ENDPOINT=http://s3.example.invalid"
	return map[string][]string{
		"a wrong secret key":            base(),
		"an unknown access key":         base("AWS_ACCESS_KEY_ID=nobody"),
		"a wrong session token":         base("AWS_SESSION_TOKEN=" + p.plant("AWS_SESSION_TOKEN")),
		"a bucket that does not exist":  base(good, "WALG_S3_PREFIX=s3://no-such-bucket/x"),
		"an unreachable service":        base("AWS_ENDPOINT=http://" + closed),
		"an unreachable TLS service":    base("AWS_ENDPOINT=https://"+closed, "S3_SSE_C="+p.plant("S3_SSE_C")),
		"a customer key without TLS":    base("S3_SSE_C=" + p.plant("S3_SSE_C")),
		"a customer key of 31 bytes":    base("AWS_ENDPOINT=https://"+closed, "S3_SSE_C="+p.plant("S3_SSE_C")[1:]),
		"TLS to a service without":      base("AWS_ENDPOINT=" + strings.Replace(server.Endpoint, "http:", "https:", 1)),
		"a secret key without its ID":   base("AWS_ACCESS_KEY_ID="),
		"a wrong password":              asLocked(),
		"a wrong password file":         asLocked("PGPASSWORD=", "PGPASSFILE="+passFile),
		"an unreachable server":         base(good, "PGHOST=127.0.0.1", "PGPORT=1"),
		"a URL in place of a host":      base(good, "PGHOST=postgres://locked:"+p.plant("PGHOST")+"@127.0.0.1/postgres"),
		"a URL in place of a database":  asLocked("PGDATABASE=postgres://locked:" + p.plant("PGDATABASE") + "@127.0.0.1/postgres"),
		"a broken certificate":          asLocked("PGSSLMODE=verify-full", "PGSSLROOTCERT="+credentials),
		"a password in the endpoint":    base("AWS_ENDPOINT=http://user:" + p.plant("AWS_ENDPOINT") + "@" + closed),
		"a password in the prefix":      base("WALG_S3_PREFIX=s3://user:" + p.plant("WALG_S3_PREFIX") + "@bucket/x"),
		"a password in a file's prefix": {"WALG_FILE_PREFIX=file://user:" + p.plant("WALG_FILE_PREFIX") + "@host/x"},
		"a password for the proxy":      base(proxied, "HTTP_PROXY=http://user:"+p.plant("HTTP_PROXY")+"@"+closed),
		"a proxy that is no URL":        base(proxied, "HTTP_PROXY=http://user:"+p.plant("HTTP_PROXY")+"@bad host"),
		"a broken credentials file":     base(append(noKeys, "AWS_SHARED_CREDENTIALS_FILE="+credentials)...),
		"a token that is none": base(append(noKeys, "AWS_ROLE_ARN=arn:aws:iam::1:role/x", "AWS_WEB_IDENTITY_TOKEN_FILE="+credentials,
			"AWS_ENDPOINT_URL_STS=http://"+closed)...),
		"no storage": {"PGPASSWORD=" + p.plant("PGPASSWORD")},
	}
}

func testSecretsOfFailure(t *testing.T) {
	p := planted{}
	s := unconfigured(t)
	dir := filepath.Join(testenv.Scratch(t), "data")
	log := 0
	for what, env := range failures(t, p) {
		log++
		env := slices.Concat(quick, env, loud[log%len(loud)])
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			failed := 0
			for _, args := range commands(dir, filepath.Join(testenv.Scratch(t), "target")) {
				if s.try(t, p, env, args...).code != 0 {
					failed++
				}
			}
			if failed == 0 {
				t.Error("nothing failed")
			}
		})
	}
}

func testSecretsFromEverySource(t *testing.T) {
	s := unconfigured(t)
	all := secrets()
	if len(all) < 15 {
		t.Fatalf("only %d settings are secret", len(all))
	}
	archive := "WALG_FILE_PREFIX=" + testenv.Scratch(t)
	list := []string{"backup-list"} // tries the keys, and warns of what has no effect
	show := []string{"settings", "--all", "--json"}
	texts := map[string]string{"yaml": "%s: %q\n", "json": "{%[1]q: %[2]q}\n", "toml": "%s = %q\n", "env": "%s='%s'\n"}
	dir := testenv.Scratch(t)
	for _, d := range all {
		for _, name := range append([]string{d.Name}, d.Aliases...) {
			p := planted{}
			set := value(d, p.plant(name))
			for _, args := range [][]string{show, list} {
				s.try(t, p, append([]string{archive, name + "=" + set}, loud[2]...), args...)
			}
		}
		for _, flag := range d.Flags() {
			p := planted{}
			set := value(d, p.plant("--"+flag))
			// What is typed can be read by everybody while the program runs; it is not repeated all the same.
			for _, args := range [][]string{
				append([]string{"--" + flag, set}, show...), append([]string{"--" + flag + "=" + set}, list...),
				{"--" + flag, set, "--help"}, {"wal-push", "--" + flag, set}, {"backup-list", "--" + flag + "=" + set, "--no-such-flag"},
				{"backup-list", "--" + flag + "x=" + set},
			} {
				s.try(t, p, []string{archive}, args...)
			}
		}
		for format, text := range texts {
			p := planted{}
			file := writeText(t, filepath.Join(dir, "walden."+format), fmt.Sprintf(text, d.Name, value(d, p.plant(d.Name+" in a "+format+" file"))))
			for _, args := range [][]string{show, list} {
				s.try(t, p, []string{archive}, append([]string{"--config", file}, args...)...)
			}
		}
		testenv.Figure(t, "secrets", "settings that are secret, by each name, flag and file format", 1)
	}
}

func testMalformedSecrets(t *testing.T) {
	s := unconfigured(t)
	dir := testenv.Scratch(t)
	archive := "WALG_FILE_PREFIX=" + dir
	for _, d := range secrets() {
		for _, shape := range []string{
			"%s\x01\x7f", "[%s", "{%s", `{"a": "%s"`, "a:%s", "- %s\n- %[1]s", "*%s", "!%s x", "{a: [%s]}", "{a: {b: %s}}", " %s ", "%s\n%[1]s\n", "\xff%s", `"%s`,
			"https://u:%s@h",
		} {
			p := planted{}
			set := fmt.Sprintf(shape, p.plant(d.Name+" malformed as "+shape))
			if d.Type == config.Map || len(shape) < 5 {
				s.try(t, p, append([]string{archive, d.Name + "=" + set}, loud[2]...), "settings", "--all")
			}
			s.try(t, p, append([]string{archive, d.Name + "=" + set}, loud[1]...), "backup-list")
		}
		for _, written := range []string{"%[1]s: 0o17%[2]s", "%[1]s: [%[2]s]", "%[1]s: {%[2]s: %[2]s}", "%[1]s: !!int %[2]s"} {
			p := planted{}
			file := writeText(t, filepath.Join(dir, "walden.yaml"), fmt.Sprintf(written, d.Name, p.plant(d.Name+" written as "+written)))
			s.try(t, p, []string{archive}, "--config", file, "settings", "--all")
		}
	}
}

// brokenFiles are configuration files by their extension, with a secret at %s, that cannot be read or mean something else
// than was meant.
var brokenFiles = map[string][]string{
	"yaml": {
		"A: 1\n\tPGPASSWORD: %s", "PGPASSWORD = %s\n", "PGPASSWORD %s", "%s", "PGPASSWORD: \"%s\n", "PGPASSWORD: '%s", "PGPASSWORD: @%s", "PGPASSWORD: *%s",
		"PGPASSWORD: !%s x", "PGPASSWORD: &%s\n- x", "PGPASSWORD: %%%s", "PGPASSWORD: `%s`", "PGPASSWORD: {%s", "PGPASSWORD: [%s\nB: 1", "%s: 1\n%[1]s: 2", "- %s",
		"PGPASSWORD: |\n  %s\n %[1]s", "PGPASSWORD: \"\\q%s\"", "PGPASSWORD: %s: %[1]s", "? %s\n: - %[1]s\n x", "<<: %s", "PGPASSWORD: !!binary %s",
		"---\n%s\n---\n%[1]s", "%s: %[1]s\n", "PGPASSWORD: !!float %s",
	},
	"json": {
		`{"PGPASSWORD": %s}`, `{"PGPASSWORD": "%s}`, `{"PGPASSWORD": "%s"`, `"%s"`, `["%s"]`, `{"PGPASSWORD": "\q%s"}`, `{%s: 1}`, `%s`,
		`{"PGPASSWORD": "%s"} %[1]s`, `{"%s": 1, "%[1]s": 2}`, "{\"PGPASSWORD\": \"a\n%s\"}", `{"PGPASSWORD": 1%s}`,
	},
	"toml": {
		"PGPASSWORD = %s\n", "PGPASSWORD = \"%s\n", "PGPASSWORD: %s", "%s", "[%s", "[%s]\n[%[1]s]\n", "PGPASSWORD = 'a' %s", "PGPASSWORD = \"\\q%s\"",
		"%s = 1\n%[1]s = 2\n", "PGPASSWORD = 0x%s", "PGPASSWORD = [%s", "PGPASSWORD = {%s", "a.%s = 1\na = 2\n",
	},
	"env": {
		"PGPASSWORD \"%s", "PGPASSWORD=\"%s\n", "PGPASSWORD='%s", "%s", "%s=\n", "%s==\n", "export %s\n", "export PGPASSWORD %s", "PGPASSWORD=a\n%s=%[1]s\n",
		"PGPASSWORD=${%s\n", "PGPASSWORD: %s", "=%s\n", "PGPASSWORD=\"a\" %s", "A=$%s",
	},
	"ini": {"%s"},
}

func testSecretsInBrokenFiles(t *testing.T) {
	s := unconfigured(t)
	dir := testenv.Scratch(t)
	for extension, texts := range brokenFiles {
		for _, text := range texts {
			p := planted{}
			file := writeText(t, filepath.Join(dir, "walden."+extension), fmt.Sprintf(text, p.plant(fmt.Sprintf("%q in a file .%s", text, extension))))
			for _, args := range [][]string{{"settings", "--all"}, {"backup-list"}, {"wal-fetch", "a", "b"}} {
				s.try(t, p, nil, append([]string{"--config", file, "--log-format=json"}, args...)...)
			}
			testenv.Figure(t, "secrets", "broken configuration files", 1)
		}
	}
}

// testEchoedSecrets meets a service, or a gateway in front of it, whose error messages quote the request.
func testEchoedSecrets(t *testing.T) {
	p := planted{}
	token, key, header := p.plant("AWS_SESSION_TOKEN"), p.plant("S3_SSE_C"), p.plant("S3_REQUEST_ADDITIONAL_HEADERS")
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var said strings.Builder
		if err := r.Header.Write(&said); err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Amz-Request-Id", r.Header.Get("X-Gateway-Key"))
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, "<Error><Code>BadHeaders</Code><Message>cannot take %s %s</Message></Error>", url.QueryEscape(said.String()), said.String())
	}))
	t.Cleanup(server.Close)
	authority := writeText(t, filepath.Join(testenv.Scratch(t), "ca.pem"),
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	s := unconfigured(t)
	env := append([]string{
		"WALG_S3_PREFIX=s3://bucket/x", "AWS_ENDPOINT=" + server.URL, "AWS_REGION=us-east-1", "AWS_S3_FORCE_PATH_STYLE=true", "S3_CA_CERT_FILE=" + authority,
		"AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY=" + p.plant("AWS_SECRET_ACCESS_KEY"), "AWS_SESSION_TOKEN=" + token, "S3_SSE_C=" + key,
		`S3_REQUEST_ADDITIONAL_HEADERS={"X-Gateway-Key": "` + header + `"}`,
	}, quick...)
	for _, log := range loud {
		for _, args := range [][]string{{"backup-list"}, {"wal-fetch", "000000010000000000000001", filepath.Join(testenv.Scratch(t), "x")}} {
			s.try(t, p, slices.Concat(env, log), args...).expect(t, 1, "cannot take")
		}
	}
}

// testSecretsOfTheProcess looks at a process that waits for a service that says nothing.
func testSecretsOfTheProcess(t *testing.T) {
	p := planted{}
	s := unconfigured(t)
	for _, args := range [][]string{
		{"backup-push"}, {"backup-list"}, {"backup-fetch", "data", "LATEST"}, {"wal-push", ""}, {"wal-fetch", "000000010000000000000001", "x"},
	} {
		t.Run(args[0], func(t *testing.T) {
			silent, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer silent.Close()
			dir := testenv.Scratch(t)
			if args[0] == "wal-push" {
				args[1] = history(t, dir, 2)
			}
			ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
			defer cancel()
			cmd := s.command(ctx, nil, args...)
			cmd.Dir = dir
			cmd.Env = append(cmd.Env, "WALG_S3_PREFIX=s3://bucket/x", "AWS_ENDPOINT=http://"+silent.Addr().String(), "AWS_REGION=us-east-1",
				"AWS_S3_FORCE_PATH_STYLE=true", "AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY="+p.plant("AWS_SECRET_ACCESS_KEY"), "PGPASSWORD="+p.plant("PGPASSWORD"))
			var said transcript
			cmd.Stdout, cmd.Stderr = &said, &said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			pid := cmd.Process.Pid
			if err := unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1 << 30, Max: 1 << 30}, nil); err != nil {
				t.Logf("the limit of core files stays as it is, which may be what keeps this process from writing one: %v", err)
			}
			conn, err := silent.Accept() // walden is at work
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			p.seek(t, "ps", readAll(t, fmt.Sprintf("/proc/%d/cmdline", pid)))
			for _, child := range strings.Fields(readAll(t, fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))) {
				t.Errorf("walden has started process %s", child)
			}
			// Nor may other processes of its user look, of which PostgreSQL is one that reads files for whoever may ask it to.
			environ := fmt.Sprintf("/proc/%d/environ", pid)
			if out, err := testenv.AsPostgres(exec.Command("cat", environ)).Output(); err == nil {
				t.Errorf("other processes of its user can read %s: %d bytes", environ, len(out))
			}
			if err := cmd.Process.Signal(syscall.SIGABRT); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // its state says how it ended
			p.seek(t, "a stack trace", said.String())
			if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.CoreDump() {
				t.Error("it wrote a core file")
			}
			if left := files(t, dir); slices.ContainsFunc(left, func(name string) bool { return strings.Contains(name, "core") }) {
				t.Errorf("left in its directory: %v", left)
			}
		})
	}
}
