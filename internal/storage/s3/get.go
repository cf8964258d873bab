package s3

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strconv"
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
// names a CRC32 of the whole object, it is verified at the end. The rest of a large object whose reader waits for the
// network is fetched in several ranges at once, see readahead.go.
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
	began := time.Now()
	out, err := client.GetObject(ctx, in, withoutSDKValidation)
	if err != nil {
		return nil, s.fail("get", key, err)
	}
	s.bucketSeen.Store(true)
	o := &object{s: s, client: client, key: key, path: path, etag: aws.ToString(out.ETag), size: -1}
	if out.ContentLength != nil && *out.ContentLength >= 0 {
		o.size = *out.ContentLength
	}
	b := &body{
		ctx: ctx, o: o, direct: &stream{ctx: ctx, o: o, rc: out.Body, end: o.size}, began: began, waited: time.Since(began),
	}
	// A checksum with "-<parts>" is one of checksums of parts whose sizes are not known here.
	if sum := aws.ToString(out.ChecksumCRC32); sum != "" && !strings.Contains(sum, "-") {
		b.want, b.crc = sum, crc32.NewIEEE()
	}
	s.reading.begin()
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

// object is what is read.
type object struct {
	s      *Store
	client *s3.Client
	key    string
	path   *string
	etag   string
	size   int64 // -1: not told
}

// stream is a stretch of an object on its way here, over as many requests as it takes.
type stream struct {
	ctx context.Context // of Get: a reader has no context of its own
	o   *object
	rc  io.ReadCloser
	off int64 // of the next byte
	end int64 // -1: not told

	broken error // why rc is of no use any more
	futile int   // continuations since the last byte
}

// read returns at least one byte or an error, which is io.EOF at the end of the stretch.
func (t *stream) read(p []byte) (int, error) {
	for {
		if t.broken != nil {
			if err := t.resume(); err != nil {
				return 0, err
			}
		}
		n, err := t.rc.Read(p)
		t.off += int64(n)
		if n > 0 {
			t.futile = 0
		}
		switch {
		case t.end >= 0 && t.off > t.end:
			return n, fmt.Errorf("more than the %d bytes arrived that the service had told of", t.end)
		case t.off == t.end && (err != nil || n == 0), err == io.EOF && t.end < 0:
			return n, io.EOF
		case err == io.EOF:
			t.broken = io.ErrUnexpectedEOF
		case err != nil:
			t.broken = err
		}
		if n > 0 {
			return n, nil
		}
	}
}

// lost says where the stream broke off.
func (t *stream) lost(why error) error {
	return t.o.s.explain(why).During(fmt.Sprintf("broken off after %d of %d bytes", t.off, t.o.size))
}

// resume opens the rest of the stretch after the connection broke.
func (t *stream) resume() error {
	if t.ctx.Err() != nil {
		return t.ctx.Err()
	}
	s := t.o.s
	if t.o.etag == "" || t.futile >= s.o.ReadRetries {
		return t.lost(t.broken)
	}
	delay, err := backoff{s.o.MinRetryDelay, s.o.MaxRetryDelay, retry.IsErrorThrottles(nil)}.BackoffDelay(t.futile, t.broken)
	if err != nil {
		return t.lost(err)
	}
	t.futile++
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.ctx.Done():
		return t.ctx.Err()
	}
	_ = t.rc.Close() // it broke; there is nothing to learn from closing it
	t.rc = nopBody{}
	return t.open()
}

// open asks for what is left of the stretch, if the object is still the same. It was there once: that it is missing now is no
// answer to whether it exists, but the end of a reader that has seen some of it.
func (t *stream) open() error {
	in := t.o.s.getInput(t.o.path)
	in.Range, in.IfMatch = aws.String(fmt.Sprintf("bytes=%d-", t.off)), &t.o.etag
	if t.end >= 0 && t.end < t.o.size {
		*in.Range += strconv.FormatInt(t.end-1, 10)
	}
	out, err := t.o.client.GetObject(t.ctx, in, withoutSDKValidation)
	switch {
	case preconditionFailed(err):
		return errReplaced
	case isMissing(err):
		return &storage.Cause{Text: "the object was deleted while it was read", Err: err}
	case err != nil:
		return t.lost(err)
	}
	t.rc, t.broken = out.Body, nil
	if got := aws.ToString(out.ContentRange); !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", t.off)) {
		return t.lost(fmt.Errorf("asked for bytes from %d on, the service answered with %q", t.off, got))
	}
	if got := aws.ToString(out.ETag); got != "" && got != t.o.etag { // the service does not know If-Match
		return errReplaced
	}
	return nil
}

var errReplaced = errors.New("the object was replaced while it was read")

// nopBody stands for a body that could not be opened.
type nopBody struct{ io.ReadCloser }

// Close does nothing.
func (nopBody) Close() error { return nil }

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
	switch _, listErr := s.listPage(ctx, client, s.o.Prefix, "", position{}, 1, fewAttempts); {
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
	_, err := s.listPage(ctx, client, s.o.Prefix, "", position{}, 1)
	if err != nil && errorCode(err) != "AccessDenied" {
		return err
	}
	s.bucketSeen.Store(true)
	return nil
}
