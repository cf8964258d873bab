package s3

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// Get implements [storage.Store]. A body that breaks is continued with a range request as long as the object is
// the same by its ETag, until Options.ReadRetries successive continuations brought no byte. Where the service
// names a CRC32 of the whole object, it is verified at the end.
func (s *Store) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	path, err := s.path(key)
	if err != nil {
		return nil, s.fail("get", key, err)
	}
	client, err := s.client(ctx)
	if err != nil {
		return nil, s.fail("get", key, err)
	}
	in := s.getInput(path)
	if s.o.Checksum == ChecksumCRC32 {
		in.ChecksumMode = types.ChecksumModeEnabled
	}
	out, err := client.GetObject(ctx, in, withoutSDKValidation)
	if err != nil {
		return nil, s.fail("get", key, err)
	}
	s.bucketSeen.Store(true)
	b := &body{ctx: ctx, s: s, client: client, key: key, path: path, rc: out.Body, etag: aws.ToString(out.ETag), size: -1}
	if out.ContentLength != nil && *out.ContentLength >= 0 {
		b.size = *out.ContentLength
	}
	// A checksum with "-<parts>" is one of checksums of parts whose sizes are not known here.
	if sum := aws.ToString(out.ChecksumCRC32); sum != "" && !strings.Contains(sum, "-") {
		b.want, b.crc = sum, crc32.NewIEEE()
	}
	return b, nil
}

func (s *Store) getInput(path *string) *s3.GetObjectInput {
	return &s3.GetObjectInput{
		Bucket: &s.o.Bucket, Key: path, SSECustomerAlgorithm: s.sse.customerAlgorithm,
		SSECustomerKey: s.sse.customerKey, SSECustomerKeyMD5: s.sse.customerKeyMD5,
	}
}

// withoutSDKValidation lets body verify the checksum, which, unlike the SDK's reader, goes on over continuations.
func withoutSDKValidation(o *s3.Options) {
	o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
		_, err := stack.Initialize.Remove("AWSChecksum:SetupOutputContext")
		return err
	})
}

// body is the content of an object, over as many requests as it takes.
type body struct {
	ctx    context.Context // of Get: a reader has no context of its own
	s      *Store
	client *s3.Client
	key    string
	path   *string
	rc     io.ReadCloser
	etag   string
	size   int64 // -1: not told
	off    int64

	crc  hash.Hash32 // nil: no checksum to verify
	want string

	broken  error // why rc is of no use any more
	futile  int   // continuations since the last byte
	outcome error // final: io.EOF or the failure
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for b.outcome == nil {
		if b.broken != nil {
			if err := b.resume(); err != nil {
				b.outcome = b.s.fail("read", b.key, err)
				break
			}
		}
		n, err := b.rc.Read(p)
		b.off += int64(n)
		if n > 0 {
			b.futile = 0
			if b.crc != nil {
				_, _ = b.crc.Write(p[:n])
			}
		}
		switch {
		case b.size >= 0 && b.off > b.size:
			b.outcome = b.s.fail("read", b.key, fmt.Errorf("more than the object's %d bytes arrived", b.size))
		case b.off == b.size && (err != nil || n == 0), err == io.EOF && b.size < 0:
			b.outcome = b.end()
		case err == io.EOF:
			b.broken = io.ErrUnexpectedEOF
		case err != nil:
			b.broken = err
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, b.outcome
}

// end verifies what was read.
func (b *body) end() error {
	if b.crc == nil {
		return io.EOF
	}
	if got := base64.StdEncoding.EncodeToString(b.crc.Sum(nil)); got != b.want {
		return b.s.fail("read", b.key, fmt.Errorf("content is damaged: CRC32 is %s, stored with %s", got, b.want))
	}
	return io.EOF
}

// resume opens the rest of the object after the connection broke.
func (b *body) resume() error {
	lost := func(why error) error {
		return b.s.explain(why).During(fmt.Sprintf("broken off after %d of %d bytes", b.off, b.size))
	}
	if b.ctx.Err() != nil {
		return b.ctx.Err()
	}
	if b.etag == "" || b.futile >= b.s.o.ReadRetries {
		return lost(b.broken)
	}
	delay, err := backoff{b.s.o.MinRetryDelay, b.s.o.MaxRetryDelay, retry.IsErrorThrottles(nil)}.
		BackoffDelay(b.futile, b.broken)
	if err != nil {
		return lost(err)
	}
	b.futile++
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
	_ = b.rc.Close() // it broke; there is nothing to learn from closing it
	in := b.s.getInput(b.path)
	in.Range, in.IfMatch = aws.String(fmt.Sprintf("bytes=%d-", b.off)), &b.etag
	out, err := b.client.GetObject(b.ctx, in, withoutSDKValidation)
	switch {
	case err != nil && preconditionFailed(err):
		b.rc = nopBody{}
		return errors.New("the object was replaced while it was read")
	case err != nil:
		b.rc = nopBody{}
		return lost(err)
	}
	b.rc, b.broken = out.Body, nil
	if got := aws.ToString(out.ContentRange); !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", b.off)) {
		return lost(fmt.Errorf("asked for bytes from %d on, the service answered with %q", b.off, got))
	}
	return nil
}

// nopBody stands for a body that could not be opened.
type nopBody struct{ io.ReadCloser }

// Close does nothing.
func (nopBody) Close() error { return nil }

// Close implements io.Closer. It may be called at any time.
func (b *body) Close() error {
	if b.outcome == nil || b.outcome == io.EOF {
		b.outcome = errors.New("read after close")
	}
	if err := b.rc.Close(); err != nil && b.broken == nil {
		return b.s.fail("read", b.key, err)
	}
	return nil
}

// Stat implements [storage.Store].
func (s *Store) Stat(ctx context.Context, key string) (storage.Object, error) {
	path, err := s.path(key)
	if err != nil {
		return storage.Object{}, s.fail("look up", key, err)
	}
	client, err := s.client(ctx)
	if err != nil {
		return storage.Object{}, s.fail("look up", key, err)
	}
	out, err := s.head(ctx, client, path)
	if err != nil {
		if isMissing(err) {
			if bucketErr := s.findBucket(ctx, client); bucketErr != nil {
				err = bucketErr
			}
		}
		return storage.Object{}, s.fail("look up", key, err)
	}
	s.bucketSeen.Store(true)
	return storage.Object{Key: key, Size: aws.ToInt64(out.ContentLength), Modified: aws.ToTime(out.LastModified)}, nil
}

// head asks for an object. Answers to HEAD have no body and so no reason: a refusal is explained by a listing, which
// also makes credentials that have expired be renewed.
func (s *Store) head(ctx context.Context, client *s3.Client, path *string) (*s3.HeadObjectOutput, error) {
	ask := func() (*s3.HeadObjectOutput, error) {
		return client.HeadObject(ctx, &s3.HeadObjectInput{
			Bucket: &s.o.Bucket, Key: path, SSECustomerAlgorithm: s.sse.customerAlgorithm,
			SSECustomerKey: s.sse.customerKey, SSECustomerKeyMD5: s.sse.customerKeyMD5,
		})
	}
	out, err := ask()
	if status := statusCode(err); status != http.StatusBadRequest && status != http.StatusForbidden {
		return out, err
	}
	switch _, listErr := s.listPage(ctx, client, s.o.Prefix, "", "", 1, fewAttempts); {
	case listErr == nil: // refused for a reason that has passed, or this object only
		return ask()
	case statusCode(listErr) == http.StatusForbidden && errorCode(listErr) == "AccessDenied":
		return out, err
	default:
		return nil, listErr
	}
}

// findBucket tells a missing bucket, or credentials, from a missing object after a HEAD, whose answer has no body
// that would. Being refused counts as found: not everybody who may read may list.
func (s *Store) findBucket(ctx context.Context, client *s3.Client) error {
	if s.bucketSeen.Load() {
		return nil
	}
	_, err := s.listPage(ctx, client, s.o.Prefix, "", "", 1)
	if err != nil && errorCode(err) != "AccessDenied" {
		return err
	}
	s.bucketSeen.Store(true)
	return nil
}
