package awskms

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"gitlab.com/walden-pg/walden/internal/crypt"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

func config() aws.Config {
	return aws.Config{Credentials: credentials.NewStaticCredentialsProvider("id", "unsaid", ""), Region: "us-east-1"}
}

func open(t *testing.T, o Options) *Service {
	t.Helper()
	s, err := New(config(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDataKeysAreEncryptedOnceAndDecryptedOnceForManyObjects(t *testing.T) {
	t.Parallel()
	kms := testenv.StartKMS(t)
	writer := crypt.NewEnvelope(t.Context(), open(t, Options{KeyID: kms.KeyID, Region: kms.Region, Endpoint: kms.Endpoint}))
	// Who reads need not know which key it was.
	reader := crypt.NewEnvelope(t.Context(), open(t, Options{Region: kms.Region, Endpoint: kms.Endpoint}))
	if kms.Calls("Encrypt") != 0 {
		t.Error("the service is asked before there is something to encrypt")
	}
	for range 3 {
		var b bytes.Buffer
		w, err := writer.Encrypt(&b)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.WriteString(w, "some WAL")
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		r, err := reader.Decrypt(&b)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != "some WAL" {
			t.Errorf("%q, %v", got, err)
		}
	}
	if e, d := kms.Calls("Encrypt"), kms.Calls("Decrypt"); e != 1 || d != 1 {
		t.Errorf("%d times Encrypt and %d times Decrypt", e, d)
	}
}

func TestFailuresOfTheServiceAreToldApart(t *testing.T) {
	t.Parallel()
	kms := testenv.StartKMS(t)
	good := Options{KeyID: kms.KeyID, Region: kms.Region, Endpoint: kms.Endpoint}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for _, c := range []struct {
		name    string
		change  func(*Options)
		says    string
		advises bool
	}{
		{"an unknown key", func(o *Options) { o.KeyID = "alias/none" }, "NotFoundException: Alias alias/none is not found.", true},
		{"the wrong region", func(o *Options) { o.Region = "us-west-2" }, "AccessDeniedException", true},
		{"no key", func(o *Options) { o.KeyID = "" }, "no key of AWS KMS is set", false},
		{"nobody there", func(o *Options) { o.Endpoint = gone.URL }, "connection refused", false},
	} {
		o := good
		c.change(&o)
		_, err := open(t, o).Encrypt(t.Context(), make([]byte, 32))
		if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "unsaid") || c.advises != (len(hint.Of(err)) > 0) {
			t.Errorf("%s: %v %q", c.name, err, hint.Of(err))
		}
		if errors.Is(err, crypt.ErrDamaged) {
			t.Errorf("%s is taken for damage", c.name)
		}
	}
	if _, err := open(t, good).Decrypt(t.Context(), make([]byte, 184)); !errors.Is(err, crypt.ErrDamaged) {
		t.Errorf("what the service has not encrypted: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := open(t, good).Decrypt(ended, make([]byte, 184)); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
	if _, err := New(aws.Config{}, Options{KeyID: "k"}); err == nil || len(hint.Of(err)) == 0 {
		t.Errorf("without a region: %v", err)
	}
}
