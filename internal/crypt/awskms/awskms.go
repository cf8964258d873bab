// Package awskms has AWS KMS encrypt and decrypt data keys for crypt's envelopes. The key of the service, a symmetric one, is named
// by its ID, ARN or alias; decrypting finds by itself with which one something was encrypted.
package awskms

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	"gitlab.com/walden-pg/walden/internal/crypt"
	"gitlab.com/walden-pg/walden/internal/hint"
)

// Options name the key and where it is.
type Options struct {
	KeyID    string // ID, ARN or alias; for decrypting it may be ""
	Region   string // "" means that of the AWS configuration
	Endpoint string // URL; "" means the region's own
}

// requestLimit bounds one attempt of a request: what the service does takes milliseconds.
const requestLimit = 15 * time.Second

// Service is crypt's key service on AWS.
type Service struct {
	client *kms.Client
	keyID  string
}

var _ crypt.KeyService = (*Service)(nil)

// New returns the service with the credentials of cfg. It connects to nothing.
func New(cfg aws.Config, o Options) (*Service, error) {
	if o.Region == "" && cfg.Region == "" {
		return nil, hint.With(errors.New("cannot use AWS KMS: its region is not known"), "set WALG_CSE_KMS_REGION")
	}
	client := kms.NewFromConfig(cfg, func(ko *kms.Options) {
		if o.Region != "" {
			ko.Region = o.Region
		}
		if o.Endpoint != "" {
			ko.BaseEndpoint = &o.Endpoint
		}
		base, ok := cfg.HTTPClient.(*awshttp.BuildableClient)
		if !ok {
			base = awshttp.NewBuildableClient()
		}
		ko.HTTPClient = base.WithTimeout(requestLimit)
		ko.Retryer = retry.NewStandard()
	})
	return &Service{client, o.KeyID}, nil
}

// Name returns "aws-kms".
func (s *Service) Name() string { return "aws-kms" }

// Encrypt encrypts a data key.
func (s *Service) Encrypt(ctx context.Context, key []byte) ([]byte, error) {
	if s.keyID == "" {
		return nil, errors.New("no key of AWS KMS is set to encrypt with")
	}
	out, err := s.client.Encrypt(ctx, &kms.EncryptInput{KeyId: &s.keyID, Plaintext: key})
	if err != nil {
		return nil, explain(fmt.Sprintf("AWS KMS does not encrypt with the key %q", s.keyID), err)
	}
	return out.CiphertextBlob, nil
}

// Decrypt decrypts a data key.
func (s *Service) Decrypt(ctx context.Context, encrypted []byte) ([]byte, error) {
	out, err := s.client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: encrypted})
	var unknown *types.InvalidCiphertextException
	switch {
	case errors.As(err, &unknown):
		return nil, fmt.Errorf("%w: AWS KMS says that it has not encrypted its data key", crypt.ErrDamaged)
	case err != nil:
		return nil, explain("AWS KMS does not decrypt", err)
	}
	return out.Plaintext, nil
}

// explain makes an error of the service's answer, which never holds a key, or of the lack of one.
func explain(what string, err error) error {
	var answer smithy.APIError
	if errors.As(err, &answer) {
		return hint.With(fmt.Errorf("%s: %s: %s", what, answer.ErrorCode(), answer.ErrorMessage()),
			"see that the key exists in that region (WALG_CSE_KMS_REGION), is enabled, and that the credentials are allowed kms:Encrypt and kms:Decrypt with it")
	}
	return fmt.Errorf("%s: %w", what, err)
}
