package s3

import (
	"context"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// AbortStale aborts the multipart uploads of objects below the folders (each ending in "/") into which nothing has come for
// as long as idle, and returns their keys, also with an error. A process that was killed, or a host that lost its power, leaves
// such uploads: no listing of objects shows their parts, and they are billed. An upload that still moves is younger: no
// request of this package lasts hours, retries included.
//
// Some services list only uploads of a key that is asked for by its whole name (MinIO, which aborts stale uploads by
// itself); there nothing is found.
func (s *Store) AbortStale(ctx context.Context, idle time.Duration, folders ...string) (aborted []string, err error) {
	client, err := s.client(ctx)
	if err != nil {
		return nil, s.fail("list unfinished uploads in", "", err)
	}
	limit := time.Now().Add(-idle)
	for _, folder := range folders {
		prefix := s.o.Prefix + folder
		pages := s3.NewListMultipartUploadsPaginator(client, &s3.ListMultipartUploadsInput{Bucket: &s.o.Bucket, Prefix: &prefix})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				return aborted, s.fail("list unfinished uploads in", "", err)
			}
			for _, u := range page.Uploads {
				if !strings.HasPrefix(aws.ToString(u.Key), prefix) || u.UploadId == nil || u.Initiated == nil || u.Initiated.After(limit) {
					continue
				}
				key := strings.TrimPrefix(*u.Key, s.o.Prefix)
				last, err := s.lastPart(ctx, client, u.Key, u.UploadId)
				if err == nil && last.Before(limit) {
					if err = s.abortUpload(ctx, client, leftUpload{u.Key, u.UploadId}); err == nil {
						aborted = append(aborted, key)
					}
				}
				if err != nil && errorCode(err) != "NoSuchUpload" { // completed or aborted since it was listed
					return aborted, s.fail("abort an unfinished upload of", key, err)
				}
			}
		}
	}
	return aborted, nil
}

// lastPart tells when the youngest part of an upload came; the zero time if it has none.
func (s *Store) lastPart(ctx context.Context, client *s3.Client, path, id *string) (last time.Time, err error) {
	pages := s3.NewListPartsPaginator(client, &s3.ListPartsInput{
		Bucket: &s.o.Bucket, Key: path, UploadId: id, SSECustomerAlgorithm: s.sse.customerAlgorithm,
		SSECustomerKey: s.sse.customerKey, SSECustomerKeyMD5: s.sse.customerKeyMD5,
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return last, err
		}
		for _, p := range page.Parts {
			if p.LastModified == nil { // then nothing proves that it is old
				return time.Now(), nil
			}
			if p.LastModified.After(last) {
				last = *p.LastModified
			}
		}
	}
	return last, nil
}
