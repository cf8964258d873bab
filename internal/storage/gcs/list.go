package gcs

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	gcs "google.golang.org/api/storage/v1"

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
		last, token := "", ""
		for {
			page, err := s.page(ctx, p, s.o.Prefix+dir, "/", token, pageSize)
			if err != nil {
				fail(p.verdict(err))
				return
			}
			p.progress()
			s.bucketSeen.Store(true)
			all, err := s.entries(page, dir)
			if err != nil {
				fail(err)
				return
			}
			for _, o := range all {
				if o.Key <= last {
					continue // a directory may be told on two successive pages
				}
				last = o.Key
				if !yield(o, nil) {
					return
				}
			}
			if token = page.NextPageToken; token == "" {
				return
			}
		}
	}
}

// entries are the objects and directories of a page. They come apart; together they are one stretch of all names.
func (s *Store) entries(page *gcs.Objects, dir string) ([]storage.Object, error) {
	all := make([]storage.Object, 0, len(page.Items)+len(page.Prefixes))
	add := func(name string, size int64, modified time.Time) error {
		key, ok := strings.CutPrefix(name, s.o.Prefix)
		if !ok || !strings.HasPrefix(key, dir) {
			return fmt.Errorf("the service listed %q, which is not below %q", name, s.o.Prefix+dir)
		}
		if storage.CheckKey(strings.TrimSuffix(key, "/")) == nil {
			all = append(all, storage.Object{Key: key, Size: size, Modified: modified})
		}
		return nil
	}
	for _, o := range page.Items {
		if strings.HasSuffix(o.Name, "/") {
			continue // an empty object that stands for a folder; the folder itself is told if anything is in it
		}
		t, err := modified(o)
		if err = cmp.Or(err, add(o.Name, int64(o.Size), t)); err != nil {
			return nil, err
		}
	}
	for _, prefix := range page.Prefixes {
		if err := add(prefix, 0, time.Time{}); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(all, func(a, b storage.Object) int { return cmp.Compare(a.Key, b.Key) })
	return all, nil
}

// page lists at most size names that begin with prefix, from where the page before has told on.
func (s *Store) page(ctx context.Context, p *patience, prefix, delimiter, token string, size int64) (*gcs.Objects, error) {
	objects, err := s.objects(ctx)
	if err != nil {
		return nil, err
	}
	var page *gcs.Objects
	err = p.try(func() error {
		page, err = objects.List(s.o.Bucket).Prefix(prefix).Delimiter(delimiter).MaxResults(size).PageToken(token).
			Fields("nextPageToken", "prefixes", "items(name,size,updated)").Context(ctx).Do()
		return err
	})
	if isMissing(err) {
		err = fmt.Errorf("%w: %w", errNoBucket, err)
	}
	return page, err
}

// look lists at most one object, to learn whether the bucket can be used.
func (s *Store) look(ctx context.Context, retries int) error {
	p := s.patience(ctx, retries)
	_, err := s.page(ctx, p, s.o.Prefix, "", "", 1)
	return p.verdict(err)
}
