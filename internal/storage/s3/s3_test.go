package s3

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"

	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
)

type noCredentials struct{}

func (noCredentials) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{}, errors.New("none here")
}

func TestNoFormOfTheOptionsShowsASecret(t *testing.T) {
	t.Parallel()
	o := Options{Bucket: "bucket", SecretAccessKey: "hush1", SessionToken: "hush2", SSECustomerKey: "hush3",
		AdditionalHeaders: Headers{"Authorization": "hush4"}}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "o", o, "secret", o.SecretAccessKey, "headers", o.AdditionalHeaders)
	encoded, err := json.Marshal(o.SecretAccessKey)
	if err != nil {
		t.Fatal(err)
	}
	shown := []string{log.String(), string(encoded)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		shown = append(shown, fmt.Sprintf(verb, o), fmt.Sprintf(verb, o.SecretAccessKey), fmt.Sprintf(verb, &o))
	}
	for _, s := range shown {
		if strings.Contains(s, "hush") || strings.Contains(s, fmt.Sprintf("%x", "hush")) {
			t.Error(s)
		}
	}
}

func TestOpenRefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*Options){
		"bucket name is empty":          func(o *Options) { o.Bucket = "" },
		"invalid prefix":                func(o *Options) { o.Prefix = "a//b" },
		"invalid endpoint":              func(o *Options) { o.Endpoint = "ftp://host" },
		"must be set together":          func(o *Options) { o.SecretAccessKey = "" },
		"unknown server-side":           func(o *Options) { o.SSE = "rot13" },
		"KMS key ID must be set":        func(o *Options) { o.SSE = "aws:kms" },
		"and a KMS key ID":              func(o *Options) { o.SSEKMSKeyID = "key" },
		"needs an https endpoint":       func(o *Options) { o.SSECustomerKey, o.Endpoint = "k", "http://host" },
		"has 5 bytes, expected 32":      func(o *Options) { o.SSECustomerKey = "short" },
		"unknown checksum":              func(o *Options) { o.Checksum = "crc64" },
		"unknown conditional":           func(o *Options) { o.Conditional = "perhaps" },
		"part size of 1048576 bytes":    func(o *Options) { o.PartSize = 1 << 20 },
		"delete batch size":             func(o *Options) { o.DeleteBatchSize = 1001 },
		"dual stack cannot be combined": func(o *Options) { o.DualStack, o.Endpoint = true, "host" },
		"cannot read CA certificates":   func(o *Options) { o.CACertFile = filepath.Join(t.TempDir(), "none") },
	} {
		o := Options{Bucket: "bucket", AccessKeyID: "a", SecretAccessKey: "hush"}
		change(&o)
		if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) ||
			!strings.HasPrefix(err.Error(), "cannot open s3://") {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestOpenChoosesEndpointRegionAndTrust(t *testing.T) {
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "")
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	for _, c := range []struct {
		endpoint, region         string
		wantEndpoint, wantRegion string
		conditions               conditions
	}{
		{"", "", "", "", conditionsHonoured},
		{"", "eu-west-1", "", "eu-west-1", conditionsHonoured},
		{"minio:9000", "", "https://minio:9000", "us-east-1", conditionsUnknown},
		{"http://minio:9000", "nowhere", "http://minio:9000", "nowhere", conditionsUnknown},
		{"s3.eu-west-1.amazonaws.com", "", "https://s3.eu-west-1.amazonaws.com", "", conditionsHonoured},
		{"amazonaws.com.example.org", "", "https://amazonaws.com.example.org", "us-east-1", conditionsUnknown},
	} {
		s := openTest(t, Options{Bucket: "b", Endpoint: c.endpoint, Region: c.region, AccessKeyID: "a", SecretAccessKey: "b"})
		o := s.sdk.Options()
		if aws.ToString(o.BaseEndpoint) != c.wantEndpoint || o.Region != c.wantRegion ||
			conditions(s.conditions.Load()) != c.conditions {
			t.Errorf("%+v: endpoint %q, region %q, conditions %d", c, aws.ToString(o.BaseEndpoint), o.Region, s.conditions.Load())
		}
	}
}

func TestCredentialsComeFromWhereTheOptionsSay(t *testing.T) {
	file := filepath.Join(t.TempDir(), "credentials")
	writeFile(t, file, "[default]\naws_access_key_id = file\naws_secret_access_key = x\n"+
		"[other]\naws_access_key_id = other\naws_secret_access_key = x\n")
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_PROFILE", "")
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "")
	base := Options{Bucket: "b", Region: "r", SharedCredentialsFile: file}
	for want, change := range map[string]func(*Options){
		"file":   func(*Options) {},
		"other":  func(o *Options) { o.Profile = "other" },
		"static": func(o *Options) { o.AccessKeyID, o.SecretAccessKey = "static", "x" },
	} {
		o := base
		change(&o)
		got, err := openTest(t, o).sdk.Options().Credentials.Retrieve(t.Context())
		if err != nil || got.AccessKeyID != want {
			t.Errorf("%s: %s, %v", want, got.AccessKeyID, err)
		}
	}

	base.RoleARN = "arn:aws:iam::1:role/r"
	role := openTest(t, base).sdk.Options().Credentials.(*renewedCredentials).provider
	if !aws.IsCredentialsProvider(role, (*stscreds.AssumeRoleProvider)(nil)) {
		t.Errorf("role: %T", role)
	}
	t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", file)
	t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/r")
	role = openTest(t, base).sdk.Options().Credentials.(*renewedCredentials).provider
	if !aws.IsCredentialsProvider(role, (*stscreds.WebIdentityRoleProvider)(nil)) {
		t.Errorf("web identity: %T", role)
	}
}

func TestPartsStayEqualAndThenGrow(t *testing.T) {
	t.Parallel()
	s := &Store{o: Options{PartSize: defaultPartSize}}
	total := int64(0)
	for n := 1; n <= maxParts; n++ {
		size := s.partLimit(n)
		if n <= equalParts && size != defaultPartSize || size > maxPartSize || n > 1 && size < s.partLimit(n-1) {
			t.Fatalf("part %d has %d bytes", n, size)
		}
		total += size
	}
	if total < 5<<40 {
		t.Errorf("%d bytes at most", total)
	}
	s.o.Budget = storage.NewBudget(60 << 20)
	if got := s.partLimit(maxParts); got != 60<<20 {
		t.Errorf("the last part has %d bytes, more than the budget", got)
	}
	s.o.Budget = storage.NewBudget(1)
	if got := s.partLimit(1); got != minPartSize {
		t.Errorf("%d bytes", got)
	}
}

func TestASmallObjectTakesLittleMemory(t *testing.T) {
	t.Parallel()
	s := &Store{o: Options{Budget: storage.NewBudget(defaultPartSize)}}
	s.chunks.New = func() any { return new(chunk) }
	for _, size := range []int{0, 1000, chunkSize, chunkSize + 1} {
		src := &source{r: iotest.DataErrReader(bytes.NewReader(randomBytes(1, size)))}
		p, err := s.fill(t.Context(), src, defaultPartSize)
		if err != nil {
			t.Fatal(err)
		}
		want := int64(size+chunkSize-1) / chunkSize * chunkSize
		if size == 0 {
			want = chunkSize
		}
		if p.size != int64(size) || p.reserved != want || !src.atEnd() {
			t.Errorf("%d bytes: %d read, %d reserved, at end %v", size, p.size, p.reserved, src.atEnd())
		}
		if err := iotest.TestReader(p.body(t.Context()), randomBytes(1, size)); err != nil {
			t.Error(err)
		}
		p.release()
		storagetest.WholeBudget(t, s.o.Budget)
	}
}

func TestASourceIsNotReadBeyondItsEnd(t *testing.T) {
	t.Parallel()
	s := &Store{}
	s.chunks.New = func() any { return new(chunk) }
	content := randomBytes(2, 2*chunkSize)
	inner := iotest.DataErrReader(bytes.NewReader(content))
	ended := false
	src := &source{r: readerFunc(func(p []byte) (int, error) {
		if ended {
			t.Error("read again after io.EOF")
		}
		n, err := inner.Read(p)
		ended = err == io.EOF
		return n, err
	})}
	var got []byte
	for parts := 0; !src.atEnd(); parts++ {
		p, err := s.fill(t.Context(), src, chunkSize-1)
		if err != nil {
			t.Fatal(err)
		}
		if p.size == 0 || parts > 3 {
			t.Fatal("an empty part")
		}
		all, err := io.ReadAll(p.body(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, all...)
		p.release()
	}
	if !bytes.Equal(got, content) {
		t.Error("other content")
	}
}

func writeFile(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
