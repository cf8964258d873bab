package gcs

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"

	gcs "cloud.google.com/go/storage"
	"google.golang.org/api/iterator"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// pageSize is the number of entries per request, at most 1,000 by the service.
const pageSize = 1000

// List implements [storage.Store], with one request per 1,000 entries. Objects whose names are no keys (an empty path
// element, or the folder markers that some browsers of buckets create) are left out.
func (s *Store) List(ctx context.Context, dir string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		fail := func(err error) { yield(storage.Object{}, s.fail("list", cmp.Or(dir, "/"), err)) }
		if err := storage.CheckDir(dir); err != nil {
			fail(err)
			return
		}
		p := s.patience(ctx, s.o.MaxRetries)
		pager, err := s.pager(ctx, p, s.o.Prefix+dir, "/", pageSize)
		if err != nil {
			fail(err)
			return
		}
		last := ""
		for {
			var page []*gcs.ObjectAttrs
			next, err := pager.NextPage(&page)
			if err != nil {
				fail(p.verdict(err))
				return
			}
			p.progress()
			s.bucketSeen.Store(true)
			// Objects and directories come apart; together they are one stretch of all names.
			slices.SortFunc(page, func(a, b *gcs.ObjectAttrs) int { return cmp.Compare(a.Prefix+a.Name, b.Prefix+b.Name) })
			for _, o := range page {
				key, ok := strings.CutPrefix(o.Prefix+o.Name, s.o.Prefix)
				if !ok || !strings.HasPrefix(key, dir) {
					fail(fmt.Errorf("the service listed %q, which is not below %q", o.Prefix+o.Name, s.o.Prefix+dir))
					return
				}
				if isMarker(o) || storage.CheckKey(strings.TrimSuffix(key, "/")) != nil || key <= last {
					continue // a directory may be told on two successive pages
				}
				last = key
				if !yield(storage.Object{Key: key, Size: o.Size, Modified: o.Updated}, nil) {
					return
				}
			}
			if next == "" {
				return
			}
		}
	}
}

// isMarker tells an empty object that stands for a folder; the folder itself is told if anything is in it.
func isMarker(o *gcs.ObjectAttrs) bool { return strings.HasSuffix(o.Name, "/") }

// pager lists names that begin with prefix.
func (s *Store) pager(ctx context.Context, p *patience, prefix, delimiter string, size int) (*iterator.Pager, error) {
	bucket, err := s.client(ctx)
	if err != nil {
		return nil, err
	}
	q := &gcs.Query{Prefix: prefix, Delimiter: delimiter, Projection: gcs.ProjectionNoACL}
	if err := q.SetAttrSelection([]string{"Name", "Size", "Updated"}); err != nil {
		return nil, err
	}
	return iterator.NewPager(bucket.Retryer(p.options()...).Objects(ctx, q), size, ""), nil
}

// look lists at most one object, to learn whether the bucket can be used.
func (s *Store) look(ctx context.Context, retries int) error {
	p := s.patience(ctx, retries)
	pager, err := s.pager(ctx, p, s.o.Prefix, "", 1)
	if err != nil {
		return err
	}
	var page []*gcs.ObjectAttrs
	_, err = pager.NextPage(&page)
	return p.verdict(err)
}
