// Package s3 keeps objects in Amazon S3 and in the many services that speak its protocol.
//
// Nouns: a [Store] is one bucket and a key prefix in it; a part is a buffered piece of an object of unknown
// length, small enough to be sent again; a token is a random word in the metadata of every object, by which a
// writer recognises its own object when an answer was lost.
//
// Promises, besides those of [storage.Store]:
//   - an object of at most one part is one PUT request; a larger one is a multipart upload, which is aborted when
//     anything fails, so that no invisible parts are left behind and paid for;
//   - every buffer comes out of the budget given in [Options]; parts are kept until they are acknowledged and are
//     sent again from memory when the service or the network fails;
//   - a download that breaks is continued where it broke, and only if the object is still the same; so are the ranges of
//     a large object that are fetched at the same time;
//   - how many parts of an upload are in flight follows what the network and the service take;
//   - [Open] does no network traffic, and with static credentials nothing ever asks the instance metadata service.
package s3

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"gitlab.com/walden-pg/walden/internal/storage"
)

const masked = "***"

// Headers are HTTP headers by name. Their values may be credentials of a gateway, so formatting shows names only.
type Headers map[string]string

// Format writes the header names.
func (h Headers) Format(f fmt.State, _ rune) {
	names := make([]string, 0, len(h))
	for name := range h {
		names = append(names, name+":"+masked)
	}
	_, _ = fmt.Fprint(f, names)
}

// MarshalText masks the header values for encoding/json and other encoders.
func (h Headers) MarshalText() ([]byte, error) { return fmt.Append(nil, h), nil }

// LogValue masks the header values for slog.
func (h Headers) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(h)) }

// How the integrity of uploads is covered, see [Options].
const (
	ChecksumCRC32 = "crc32" // x-amz-checksum-crc32, verified by S3 and all current compatible services
	ChecksumMD5   = "md5"   // Content-MD5, for services that refuse the newer headers
	ChecksumNone  = "none"  // TLS or the signed SHA-256 of the payload only
)

// Whether the service's If-None-Match is relied upon by PutNew, see [Options].
const (
	ConditionalAuto = "auto"
	ConditionalOn   = "on"
	ConditionalOff  = "off"
)

// Options say where the bucket is, how to authenticate and how to transfer. The zero value of a field means the
// default named beside it.
type Options struct {
	Bucket string
	Prefix string // key prefix of all objects; surrounding slashes do not matter

	Region    string // default: the SDK's (environment, shared configuration); see Open for what follows that
	Endpoint  string // URL of the service, https if it has no scheme; default AWS
	PathStyle bool   // https://endpoint/bucket/key instead of https://bucket.endpoint/key
	DualStack bool   // AWS's endpoints with IPv6; not together with Endpoint

	AccessKeyID     string // static credentials come before the SDK's default chain
	SecretAccessKey storage.Secret
	SessionToken    storage.Secret

	RoleARN               string // role to assume with the credentials found
	RoleSessionName       string // default: chosen by the SDK
	WebIdentityTokenFile  string // RoleARN is then assumed with this token; default AWS_WEB_IDENTITY_TOKEN_FILE
	Profile               string // of the shared files; default AWS_PROFILE
	SharedCredentialsFile string // default ~/.aws/credentials
	ConfigFile            string // default ~/.aws/config

	CACertFile string // PEM certificates trusted besides the system's

	StorageClass   string         // sent with every upload; empty: the bucket's default
	SSE            string         // "AES256" or "aws:kms"; with SSECustomerKey the customer algorithm, default AES256
	SSEKMSKeyID    string         // required with "aws:kms" and only then
	SSECustomerKey storage.Secret // 32 raw bytes (SSE-C), also sent to read the objects; needs TLS

	// PartSize is the size in bytes of a part, and of the largest object sent with one request (20 MiB).
	// Parts of one object are equal for the first 5,000 (98 GiB at 20 MiB), as some services insist on; from
	// there the size doubles every 500 parts up to S3's 5 GiB, which would suffice for 5 TiB in less than the
	// 10,000 parts allowed. No part is larger than the whole Budget, though, or than 5 MiB if that is more.
	PartSize    int64
	Concurrency int             // parts in flight per upload, at most (16); how many there are follows the network, see window
	Budget      *storage.Budget // memory of all part buffers of all uploads, and of what is read ahead; nil: unlimited

	// DownloadConcurrency bounds the requests for contents of objects that are in flight (10): while less objects than that are
	// being read, large ones are read ahead in ranges of 8 MiB, as far as the budget has memory to spare.
	DownloadConcurrency int

	MaxRetries    int           // of each request; negative: none (15)
	MinRetryDelay time.Duration // first delay after "slow down"; other failures start at a tenth (500 ms)
	MaxRetryDelay time.Duration // longest delay after "slow down"; other failures stop at 20 s (5 min)
	ReadRetries   int           // successive continuations of a broken download without progress; negative: none (10)
	StallTimeout  time.Duration // a connection that moves no byte for so long is given up (2 min)

	UseListV1       bool // ListObjects instead of ListObjectsV2
	DeleteBatchSize int  // keys per DeleteObjects request, at most 1000 (1000); 1 uses single requests

	Checksum string // ChecksumCRC32, ChecksumMD5 or ChecksumNone (ChecksumCRC32)

	// Conditional tells whether PutNew may rely on the service for If-None-Match. ConditionalAuto (default)
	// trusts AWS; any other service is asked with HEAD before the conditional PUT until it has once proved by an
	// answer of 412 that it honours the condition, because some ignore the header and overwrite. If the
	// service answers "not implemented", or with ConditionalOff, PutNew is HEAD, PUT without condition, and
	// HEAD again to see whose object stands: the loser of a race usually learns it, but two winners are possible.
	// ConditionalOn trusts any service.
	Conditional string

	DisableContinue   bool    // do not send "Expect: 100-continue" before large bodies
	AdditionalHeaders Headers // added to every request and signed

	LogRequests *slog.Logger // debug line per HTTP request; nil: none

	// OnRetry, if set, is told before each wait why a request is repeated and how long the wait is. It must not block.
	OnRetry func(err error, wait time.Duration)
}

const (
	defaultPartSize      = 20 << 20
	minPartSize          = 5 << 20 // of all parts but the last, by S3
	maxPartSize          = 5 << 30
	defaultConcurrency   = 16
	defaultDownloads     = 10
	defaultMaxRetries    = 15
	defaultMinRetryDelay = 500 * time.Millisecond
	defaultMaxRetryDelay = 5 * time.Minute
	defaultReadRetries   = 10
	defaultStallTimeout  = 2 * time.Minute
	maxDeleteBatch       = 1000
)

// withDefaults fills in the defaults and refuses what cannot work.
func (o Options) withDefaults() (Options, error) {
	if o.Bucket == "" {
		return o, errors.New("bucket name is empty")
	}
	o.Prefix = strings.Trim(o.Prefix, "/")
	if o.Prefix != "" {
		if err := storage.CheckKey(o.Prefix); err != nil {
			return o, fmt.Errorf("invalid prefix: %w", err)
		}
		o.Prefix += "/"
	}
	if o.Endpoint != "" {
		if !strings.Contains(o.Endpoint, "://") {
			o.Endpoint = "https://" + o.Endpoint
		}
		u, err := url.Parse(o.Endpoint)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil {
			return o, errors.New("invalid endpoint: expected http(s)://host[:port]")
		}
		if o.DualStack {
			return o, errors.New("dual stack cannot be combined with an endpoint")
		}
		if u.Scheme == "http" && o.SSECustomerKey != "" {
			return o, errors.New("a customer key (SSE-C) needs an https endpoint")
		}
	}
	if (o.AccessKeyID == "") != (o.SecretAccessKey == "") {
		return o, errors.New("access key ID and secret access key must be set together")
	}
	if o.AccessKeyID == "" && o.SessionToken != "" {
		return o, errors.New("a session token needs an access key ID and a secret access key")
	}
	if o.SSECustomerKey != "" {
		if len(o.SSECustomerKey) != 32 {
			return o, fmt.Errorf("customer key (SSE-C) has %d bytes, expected 32", len(o.SSECustomerKey))
		}
		if o.SSE == "" {
			o.SSE = "AES256"
		}
		if o.SSE != "AES256" || o.SSEKMSKeyID != "" {
			return o, errors.New("a customer key (SSE-C) goes with AES256 only")
		}
	}
	switch {
	case o.SSE != "" && o.SSE != "AES256" && o.SSE != "aws:kms":
		return o, fmt.Errorf("unknown server-side encryption %q: expected AES256 or aws:kms", o.SSE)
	case (o.SSE == "aws:kms") != (o.SSEKMSKeyID != ""):
		return o, errors.New("server-side encryption aws:kms and a KMS key ID must be set together")
	}
	switch o.Checksum {
	case "":
		o.Checksum = ChecksumCRC32
	case ChecksumCRC32, ChecksumMD5, ChecksumNone:
	default:
		return o, fmt.Errorf("unknown checksum %q: expected crc32, md5 or none", o.Checksum)
	}
	switch o.Conditional {
	case "":
		o.Conditional = ConditionalAuto
	case ConditionalAuto, ConditionalOn, ConditionalOff:
	default:
		return o, fmt.Errorf("unknown conditional %q: expected auto, on or off", o.Conditional)
	}
	o.PartSize = cmp.Or(o.PartSize, defaultPartSize)
	if o.PartSize < minPartSize || o.PartSize > maxPartSize {
		return o, fmt.Errorf("part size of %d bytes is not between 5 MiB and 5 GiB", o.PartSize)
	}
	o.Concurrency = cmp.Or(o.Concurrency, defaultConcurrency)
	o.DownloadConcurrency = cmp.Or(o.DownloadConcurrency, defaultDownloads)
	o.MaxRetries = max(0, cmp.Or(o.MaxRetries, defaultMaxRetries))
	o.ReadRetries = max(0, cmp.Or(o.ReadRetries, defaultReadRetries))
	o.MinRetryDelay = cmp.Or(o.MinRetryDelay, defaultMinRetryDelay)
	o.MaxRetryDelay = max(o.MinRetryDelay, cmp.Or(o.MaxRetryDelay, defaultMaxRetryDelay))
	o.StallTimeout = cmp.Or(o.StallTimeout, defaultStallTimeout)
	o.DeleteBatchSize = cmp.Or(o.DeleteBatchSize, maxDeleteBatch)
	if o.Concurrency < 1 || o.DownloadConcurrency < 1 || o.DeleteBatchSize < 1 || o.DeleteBatchSize > maxDeleteBatch {
		return o, errors.New("concurrency must be positive and the delete batch size between 1 and 1000")
	}
	return o, nil
}

// conditions is what is known about the service's If-None-Match.
type conditions int32

const (
	conditionsUnknown  conditions = iota // may be ignored: ask first
	conditionsHonoured                   // decided by the service
	conditionsRefused                    // not implemented
)

// deletion is the way to delete many objects that the service has been found to take.
type deletion int32

const (
	deleteBatch    deletion = iota // DeleteObjects with the configured checksum
	deleteBatchMD5                 // DeleteObjects with Content-MD5, once its only integrity header
	deleteSingle                   // DeleteObject per key
)

// Store is a bucket and a prefix in it. It implements [storage.Store].
type Store struct {
	o Options

	regionMu sync.Mutex
	sdk      *s3.Client // without a region until region() found it

	sse     sseHeaders
	chunks  sync.Pool // of *chunk
	reading reading
	window  *window // of the parts of uploads

	conditions atomic.Int32 // conditions
	deletion   atomic.Int32 // deletion
	bucketSeen atomic.Bool  // the bucket answered, so "not found" is about the object

	leftMu sync.Mutex
	left   []leftUpload // could not be aborted yet
}

var _ storage.Store = (*Store)(nil)

type sseHeaders struct {
	customerAlgorithm, customerKey, customerKeyMD5 *string
}

// Open prepares the store; it checks the options and reads the local configuration files, but does not touch
// the network: use Check for that. If neither the options nor the SDK's configuration name a region, it
// is us-east-1 for endpoints other than AWS's; on AWS the bucket is asked for its region with the first request.
func Open(ctx context.Context, o Options) (*Store, error) {
	name := "s3://" + o.Bucket + "/" + strings.Trim(o.Prefix, "/")
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", name, err)
	}
	s := &Store{o: o, reading: reading{patient: true, size: rangeSize}, window: newWindow(o.Concurrency)}
	s.chunks.New = func() any { return new(chunk) }
	if o.SSECustomerKey != "" {
		s.sse = sseHeaders{
			customerAlgorithm: aws.String(o.SSE),
			customerKey:       aws.String(base64.StdEncoding.EncodeToString([]byte(o.SSECustomerKey))),
			customerKeyMD5:    aws.String(md5Base64([]byte(o.SSECustomerKey))),
		}
	}
	if s.sdk, err = s.newClient(ctx); err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", name, err)
	}
	switch {
	case o.Conditional == ConditionalOff:
		s.conditions.Store(int32(conditionsRefused))
	case o.Conditional == ConditionalOn, isAWS(s.sdk):
		s.conditions.Store(int32(conditionsHonoured))
	}
	return s, nil
}

// String names the store: "s3://bucket/prefix".
func (s *Store) String() string {
	return strings.TrimSuffix("s3://"+s.o.Bucket+"/"+s.o.Prefix, "/")
}

// Check lists at most one key. A listing, unlike HEAD, is answered with the reason when it is refused.
func (s *Store) Check(ctx context.Context) error {
	client, err := s.client(ctx)
	if err != nil {
		return s.fail("use", "", err)
	}
	if _, err := s.listPage(ctx, client, s.o.Prefix, "", position{}, 1, fewAttempts); err != nil {
		return s.fail("use", "", err)
	}
	return nil
}

// path checks key and returns it as the name in the bucket.
func (s *Store) path(key string) (*string, error) {
	if err := storage.CheckKey(key); err != nil {
		return nil, err
	}
	return aws.String(s.o.Prefix + key), nil
}
