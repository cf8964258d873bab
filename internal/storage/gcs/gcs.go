// Package gcs keeps objects in Google Cloud Storage.
//
// Nouns: a [Store] is one bucket and a prefix of object names in it; a chunk is a buffered piece of an object, small enough
// to be sent again; a session is a resumable upload under way, invisible until its last chunk is there; a generation is one
// content of an object; a token is a random word in the metadata of every object, by which a writer recognises its own
// object when an answer was lost.
//
// Promises, besides those of [storage.Store]:
//   - an object of at most one chunk is one request with its CRC32C; a larger one is a session, whose last chunk carries the
//     CRC32C of the whole. What the service says that it stored (size, CRC32C) is compared as well;
//   - a session that fails is cancelled; one of a killed process is dropped by the service a week after it began. Nothing
//     of it is ever listed;
//   - every buffer comes out of the budget given in [Options];
//   - a download that breaks is continued where it broke, in the same generation, and its CRC32C is verified at the end;
//   - [Open] does no network traffic.
package gcs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/api/googleapi"
	gcs "google.golang.org/api/storage/v1"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// Options say where the bucket is, how to authenticate and how to transfer. The zero value of a field means the
// default named beside it.
type Options struct {
	Bucket string
	Prefix string // of all object names; surrounding slashes do not matter

	// KeepSlashes takes the prefix as it stands, with a slash after it where it ends in none: "/x" makes names begin
	// with "/x/", as WAL-E's do ("WAL-E format", prefixes).
	KeepSlashes bool

	// CredentialsFile is a key file of a service account, or any other kind of file that Google's libraries take. Default:
	// those of gcloud, then the metadata service of the machine.
	CredentialsFile string

	// Emulator is the address of a server that stands for the service, "host:port" or a URL: nothing is sent to Google
	// then, and no credentials are.
	Emulator string

	EncryptionKey storage.Secret // customer-supplied, base64 of 32 bytes; also sent to read the objects

	// ChunkSize is how many bytes of an upload are buffered and sent with one request (16 MiB). It is rounded up to a
	// multiple of 256 KiB, and never exceeds the whole Budget.
	ChunkSize   int64
	Concurrency int             // requests in flight per Delete, at most (16)
	Budget      *storage.Budget // memory of all buffers of all uploads; nil: unlimited

	MaxRetries     int           // of each request, successive; negative: none (16)
	MinRetryDelay  time.Duration // first delay after "slow down"; other failures start at a tenth (500 ms)
	MaxRetryDelay  time.Duration // longest delay after "slow down"; other failures stop at 20 s (5 min)
	RequestTimeout time.Duration // of one request: of a download until it begins, of an upload for each chunk (1 h)
	StallTimeout   time.Duration // a connection that moves no byte for so long is given up (2 min)

	// OnRetry, if set, is told before each wait why a request is repeated and how long the wait is. It must not block.
	OnRetry func(err error, wait time.Duration)
}

const (
	chunkUnit = 256 << 10 // of the sizes of chunks, by the service

	defaultChunkSize      = 16 << 20
	maxChunkSize          = 1 << 30
	defaultConcurrency    = 16
	defaultMaxRetries     = 16
	defaultMinRetryDelay  = 500 * time.Millisecond
	defaultMaxRetryDelay  = 5 * time.Minute
	defaultRequestTimeout = time.Hour
	defaultStallTimeout   = 2 * time.Minute
)

// withDefaults fills in the defaults and refuses what cannot work.
func (o Options) withDefaults() (Options, error) {
	if o.Bucket == "" {
		return o, errors.New("bucket name is empty")
	}
	if !o.KeepSlashes {
		o.Prefix = strings.Trim(o.Prefix, "/")
		if o.Prefix != "" {
			if err := storage.CheckKey(o.Prefix); err != nil {
				return o, fmt.Errorf("invalid prefix: %w", err)
			}
		}
	}
	if o.Prefix != "" && !strings.HasSuffix(o.Prefix, "/") {
		o.Prefix += "/"
	}
	if o.Emulator != "" {
		if !strings.Contains(o.Emulator, "://") {
			o.Emulator = "http://" + o.Emulator
		}
		u, err := url.Parse(o.Emulator)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil {
			return o, errors.New("invalid address of the emulator: expected host:port or http(s)://host[:port]")
		}
		o.Emulator = u.Scheme + "://" + u.Host
	}
	o.ChunkSize = cmp.Or(o.ChunkSize, defaultChunkSize)
	if o.ChunkSize < 1 || o.ChunkSize > maxChunkSize {
		return o, fmt.Errorf("chunk size of %d bytes is not between 1 byte and 1 GiB", o.ChunkSize)
	}
	o.ChunkSize = wholeUnits(o.ChunkSize)
	if o.Concurrency = cmp.Or(o.Concurrency, defaultConcurrency); o.Concurrency < 1 {
		return o, errors.New("concurrency must be positive")
	}
	o.MaxRetries = max(0, cmp.Or(o.MaxRetries, defaultMaxRetries))
	o.MinRetryDelay = cmp.Or(o.MinRetryDelay, defaultMinRetryDelay)
	o.MaxRetryDelay = max(o.MinRetryDelay, cmp.Or(o.MaxRetryDelay, defaultMaxRetryDelay))
	o.RequestTimeout = cmp.Or(o.RequestTimeout, defaultRequestTimeout)
	o.StallTimeout = cmp.Or(o.StallTimeout, defaultStallTimeout)
	return o, nil
}

// wholeUnits rounds up to what the service takes as the size of a chunk that is not the last.
func wholeUnits(n int64) int64 { return max(1, (n+chunkUnit-1)/chunkUnit) * chunkUnit }

// Store is a bucket and a prefix in it. It implements [storage.Store].
type Store struct {
	o           Options
	credentials *credentials // nil with an emulator
	key         []byte       // for encryption by the service; nil: none

	mu      sync.Mutex
	service *gcs.ObjectsService // nil until the first operation

	heads      sync.Pool   // of *head
	bucketSeen atomic.Bool // the bucket answered, so "not found" is about the object
}

var _ storage.Store = (*Store)(nil)

// Open prepares the store; it checks the options and reads the credentials file, but does not touch the network: use
// Check for that. Without a credentials file the first operation looks for credentials.
func Open(o Options) (*Store, error) {
	given := Options{Bucket: o.Bucket, Prefix: o.Prefix}
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", (&Store{o: given}), err)
	}
	s := &Store{o: o}
	if o.EncryptionKey != "" {
		if s.key, err = base64.StdEncoding.DecodeString(string(o.EncryptionKey)); err != nil || len(s.key) != 32 {
			return nil, fmt.Errorf("cannot open %s: the customer-supplied encryption key is not base64 of 32 bytes", s)
		}
	}
	s.heads.New = func() any { return new(head) }
	if o.Emulator == "" {
		if s.credentials, err = newCredentials(o.CredentialsFile, s.newTransport()); err != nil {
			return nil, fmt.Errorf("cannot open %s: %w", s, err)
		}
	}
	return s, nil
}

// String names the store: "gs://bucket/prefix".
func (s *Store) String() string {
	name := "gs://" + s.o.Bucket
	if s.o.Prefix != "" {
		name += "/" + strings.TrimSuffix(s.o.Prefix, "/")
	}
	return name
}

// Check lists at most one object.
func (s *Store) Check(ctx context.Context) error {
	if err := s.look(ctx, fewRetries); err != nil {
		return s.fail("use", "", err)
	}
	return nil
}

// name checks key and returns it as the name in the bucket.
func (s *Store) name(key string) (string, error) {
	if err := storage.CheckKey(key); err != nil {
		return "", err
	}
	return s.o.Prefix + key, nil
}

// encrypted adds the customer's key to the headers of a request that has to do with an object's content or checksums
// ("Customer-supplied encryption keys" in the Cloud Storage documentation).
func (s *Store) encrypted(h http.Header) {
	if s.key == nil {
		return
	}
	sum := sha256.Sum256(s.key)
	h.Set("X-Goog-Encryption-Algorithm", "AES256")
	h.Set("X-Goog-Encryption-Key", base64.StdEncoding.EncodeToString(s.key))
	h.Set("X-Goog-Encryption-Key-Sha256", base64.StdEncoding.EncodeToString(sum[:]))
}

// describe asks for the fields of an object, repeatedly as p decides.
func (s *Store) describe(ctx context.Context, p *patience, name string, fields ...googleapi.Field) (*gcs.Object, error) {
	objects, err := s.objects(ctx)
	if err != nil {
		return nil, err
	}
	var o *gcs.Object
	err = p.try(func() error {
		call := objects.Get(s.o.Bucket, name).Fields(fields...).Context(ctx)
		s.encrypted(call.Header())
		o, err = call.Do()
		return err
	})
	return o, err
}

// modified is the time at which the object got its content.
func modified(o *gcs.Object) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, o.Updated)
	if err != nil {
		return t, fmt.Errorf("the service tells the time %q of the object %q", o.Updated, o.Name)
	}
	return t, nil
}
