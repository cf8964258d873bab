package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// List implements [storage.Store], with one request per 1,000 entries; where names are numbers, as those of WAL are, several at a
// time, see slices.go. Objects whose names are no keys (an empty
// path element, or the folder markers that some browsers of buckets create) are left out.
func (s *Store) List(ctx context.Context, dir string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		fail := func(err error) { yield(storage.Object{}, s.fail("list", cmp.Or(dir, "/"), err)) }
		if err := storage.CheckDir(dir); err != nil {
			fail(err)
			return
		}
		client, err := s.client(ctx)
		if err != nil {
			fail(err)
			return
		}
		last := ""
		for page, err := range s.pages(ctx, client, s.o.Prefix+dir) {
			if err != nil {
				fail(err)
				return
			}
			s.bucketSeen.Store(true)
			for _, o := range page.entries {
				key, ok := strings.CutPrefix(o.Key, s.o.Prefix)
				if !ok || !strings.HasPrefix(key, dir) {
					fail(fmt.Errorf("the service listed %q, which is not below %q", o.Key, s.o.Prefix+dir))
					return
				}
				if storage.CheckKey(strings.TrimSuffix(key, "/")) != nil || key == dir || key <= last {
					continue // a directory may be told on two successive pages
				}
				last, o.Key = key, key
				if !yield(o, nil) {
					return
				}
			}
		}
	}
}

// pages yields the pages of a listing, in order. Successive ones may overlap.
func (s *Store) pages(ctx context.Context, client *s3.Client, prefix string) iter.Seq2[page, error] {
	return func(yield func(page, error) bool) {
		for token := ""; ; {
			p, err := s.listPage(ctx, client, prefix, "/", position{token: token}, 0)
			if err == nil && p.next != "" && p.next == token {
				err = errors.New("the service repeats the same page of the listing")
			}
			if !yield(p, err) || err != nil || p.next == "" {
				return
			}
			if token == "" && s.listSlices(ctx, client, prefix, p, yield) {
				return
			}
			token = p.next
		}
	}
}

// position is where a page of a listing begins; at the beginning if it is empty.
type position struct {
	token string // of the page before
	after string // full key behind which it begins
}

// page is a piece of a listing, sorted by full key.
type page struct {
	entries []storage.Object
	next    string // where the next page begins; empty at the end
}

func (s *Store) listPage(ctx context.Context, client *s3.Client, prefix, delimiter string, at position, limit int32,
	opts ...func(*s3.Options)) (page, error) {
	var maxKeys *int32
	if limit > 0 {
		maxKeys = &limit
	}
	if s.o.UseListV1 {
		out, err := client.ListObjects(ctx, &s3.ListObjectsInput{
			Bucket: &s.o.Bucket, Prefix: &prefix, Delimiter: optional(delimiter), Marker: optional(cmp.Or(at.token, at.after)), MaxKeys: maxKeys,
		}, opts...)
		if err != nil {
			return page{}, err
		}
		p := merge(out.Contents, out.CommonPrefixes)
		if out.Name == nil && out.IsTruncated == nil && len(p.entries) == 0 {
			return page{}, errNoListing
		}
		if aws.ToBool(out.IsTruncated) {
			p.next = aws.ToString(out.NextMarker)
			// Told only with a delimiter, and not by all services: it is the last entry.
			if p.next == "" && len(p.entries) > 0 {
				p.next = p.entries[len(p.entries)-1].Key
			}
			return p, p.mustContinue()
		}
		return p, nil
	}
	out, err := client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{
		Bucket: &s.o.Bucket, Prefix: &prefix, Delimiter: optional(delimiter), ContinuationToken: optional(at.token),
		StartAfter: optional(at.after), MaxKeys: maxKeys,
	}, opts...)
	if err != nil {
		return page{}, err
	}
	p := merge(out.Contents, out.CommonPrefixes)
	if out.Name == nil && out.IsTruncated == nil && len(p.entries) == 0 {
		return page{}, errNoListing
	}
	if aws.ToBool(out.IsTruncated) {
		p.next = aws.ToString(out.NextContinuationToken)
		return p, p.mustContinue()
	}
	return p, nil
}

// errNoListing keeps a page of HTML from passing for an empty bucket: the SDK's decoder takes whatever root element
// there is.
var errNoListing = errors.New("the answer is that of success, but no listing: it is not from an S3 service")

func (p page) mustContinue() error {
	if p.next == "" {
		return errors.New("the service cut the listing short without saying how it continues")
	}
	return nil
}

// merge brings objects and directories, which S3 tells apart, into one order.
func merge(objects []types.Object, dirs []types.CommonPrefix) page {
	entries := make([]storage.Object, 0, len(objects)+len(dirs))
	for _, o := range objects {
		key := aws.ToString(o.Key)
		if strings.HasSuffix(key, "/") {
			continue // a folder marker; the folder itself is told if anything is in it
		}
		entries = append(entries, storage.Object{Key: key, Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)})
	}
	for _, d := range dirs {
		entries = append(entries, storage.Object{Key: aws.ToString(d.Prefix)})
	}
	slices.SortFunc(entries, func(a, b storage.Object) int { return cmp.Compare(a.Key, b.Key) })
	return page{entries: entries}
}
