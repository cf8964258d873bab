package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"golang.org/x/sync/errgroup"
)

// namedKeys is how many keys of a batch that failed as a whole are named in the error.
const namedKeys = 20

// Delete implements [storage.Store] with DeleteObjects, or with DeleteObject for a single key and for services
// that do not take batches. All keys are tried unless the context ends or a batch fails as a whole.
func (s *Store) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if _, err := s.path(key); err != nil {
			return s.fail("delete", key, err)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	client, err := s.client(ctx)
	if err != nil {
		return s.failKeys(keys, err)
	}
	var failed []error
	for done := 0; done < len(keys); {
		batch := keys[done:min(len(keys), done+s.o.DeleteBatchSize)]
		var errs []error
		var err error
		if len(batch) == 1 || deletion(s.deletion.Load()) == deleteSingle {
			errs, err = s.deleteEach(ctx, client, batch)
		} else {
			errs, err = s.deleteBatch(ctx, client, batch)
		}
		failed = append(failed, errs...)
		if err != nil {
			return errors.Join(append(failed, s.failKeys(keys[done:], err))...)
		}
		done += len(batch)
	}
	s.abortLeft(ctx, client)
	return errors.Join(failed...)
}

// failKeys names keys that share one fate.
func (s *Store) failKeys(keys []string, err error) error {
	if len(keys) == 1 {
		return s.fail("delete", keys[0], err)
	}
	c := s.explain(err)
	quoted := make([]string, 0, namedKeys)
	for _, key := range keys[:min(len(keys), namedKeys)] {
		quoted = append(quoted, fmt.Sprintf("%q", key))
	}
	names := strings.Join(quoted, ", ")
	if more := len(keys) - len(quoted); more > 0 {
		names += fmt.Sprintf(" and %d more", more)
	}
	return s.fail(fmt.Sprintf("delete %d objects from", len(keys)), "", c.During(names))
}

// deleteBatch returns the keys that failed for themselves, and the failure of the whole batch. A service that
// refuses the request gets it in the older form with Content-MD5, and then key by key; what worked is remembered.
func (s *Store) deleteBatch(ctx context.Context, client *s3.Client, keys []string) ([]error, error) {
	way := deletion(s.deletion.Load())
	if way == deleteBatch && s.o.Checksum != ChecksumCRC32 {
		way = deleteBatchMD5
	}
	for ; way != deleteSingle; way++ {
		failed, err := s.deleteObjects(ctx, client, keys, way)
		if err != nil && batchRefused(err) {
			continue
		}
		if err == nil {
			s.deletion.Store(int32(way))
		}
		return failed, err
	}
	failed, err := s.deleteEach(ctx, client, keys)
	if err == nil && len(failed) < len(keys) {
		s.deletion.Store(int32(deleteSingle))
	}
	return failed, err
}

func (s *Store) deleteObjects(ctx context.Context, client *s3.Client, keys []string, way deletion) ([]error, error) {
	ids := make([]types.ObjectIdentifier, len(keys))
	for i, key := range keys {
		ids[i].Key = aws.String(s.o.Prefix + key)
	}
	var opts []func(*s3.Options)
	if way == deleteBatchMD5 {
		opts = append(opts, withContentMD5)
	}
	out, err := client.DeleteObjects(ctx, &s3.DeleteObjectsInput{
		Bucket: &s.o.Bucket, Delete: &types.Delete{Objects: ids, Quiet: aws.Bool(true)},
	}, opts...)
	if err != nil {
		return nil, err
	}
	s.bucketSeen.Store(true)
	var failed []error
	for _, e := range out.Errors {
		if aws.ToString(e.Code) == "NoSuchKey" {
			continue
		}
		key := strings.TrimPrefix(aws.ToString(e.Key), s.o.Prefix)
		failed = append(failed, s.fail("delete", key, &deleteError{aws.ToString(e.Code), aws.ToString(e.Message)}))
	}
	return failed, nil
}

// deleteError is the failure of one key of a batch; it reads like the answer to a request of its own.
type deleteError struct{ code, message string }

// Error implements error.
func (e *deleteError) Error() string { return e.code + ": " + e.message }

// ErrorCode, ErrorMessage and ErrorFault implement smithy.APIError.
func (e *deleteError) ErrorCode() string                 { return e.code }
func (e *deleteError) ErrorMessage() string              { return e.message }
func (e *deleteError) ErrorFault() (f smithy.ErrorFault) { return f }

// withContentMD5 replaces the SDK's x-amz-checksum-* header, to which DeleteObjects gives no alternative.
func withContentMD5(o *s3.Options) {
	o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
		if _, err := stack.Initialize.Remove("AWSChecksum:SetupInputContext"); err != nil {
			return err
		}
		if _, err := stack.Finalize.Remove("AWSChecksum:ComputeInputPayloadChecksum"); err != nil {
			return err
		}
		return smithyhttp.AddContentChecksumMiddleware(stack)
	})
}

// batchRefused tells whether the service does not take this form of DeleteObjects, in contrast to a refusal of
// these keys or credentials.
func batchRefused(err error) bool {
	switch statusCode(err) {
	case http.StatusNotImplemented, http.StatusMethodNotAllowed:
		return true
	case http.StatusBadRequest:
		return slices.Contains([]string{"", "BadRequest", "InvalidRequest", "MissingContentMD5", "InvalidDigest",
			"InvalidArgument", "MalformedXML", "NotImplemented"}, errorCode(err))
	}
	return false
}

// deleteEach deletes key by key, as many at once as parts are uploaded.
func (s *Store) deleteEach(ctx context.Context, client *s3.Client, keys []string) ([]error, error) {
	var g errgroup.Group
	g.SetLimit(s.o.Concurrency)
	var mu sync.Mutex
	var failed []error
	for _, key := range keys {
		g.Go(func() error {
			_, err := client.DeleteObject(ctx, &s3.DeleteObjectInput{
				Bucket: &s.o.Bucket, Key: aws.String(s.o.Prefix + key),
			})
			if err != nil && !isMissing(err) {
				mu.Lock()
				failed = append(failed, s.fail("delete", key, err))
				mu.Unlock()
			}
			return ctx.Err()
		})
	}
	err := g.Wait()
	return failed, err
}
