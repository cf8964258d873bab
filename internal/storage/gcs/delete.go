package gcs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// namedKeys is how many keys are named in the error when the context ended before they were deleted.
const namedKeys = 20

// Delete implements [storage.Store] with one request per key, Options.Concurrency at a time. All keys are tried unless the
// context ends.
func (s *Store) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if _, err := s.name(key); err != nil {
			return s.fail("delete", key, err)
		}
	}
	var g errgroup.Group
	g.SetLimit(s.o.Concurrency)
	var mu sync.Mutex
	var failed []error
	for i, key := range keys {
		if ctx.Err() != nil {
			mu.Lock()
			failed = append(failed, s.failKeys(keys[i:], ctx.Err()))
			mu.Unlock()
			break
		}
		g.Go(func() error {
			err := s.deleteOne(ctx, key)
			storage.Moved(ctx) // of many keys this is one, however long they take together
			if err != nil {
				mu.Lock()
				failed = append(failed, s.fail("delete", key, err))
				mu.Unlock()
			}
			return nil
		})
	}
	_ = g.Wait() // failures are in the list
	return errors.Join(failed...)
}

func (s *Store) deleteOne(ctx context.Context, key string) error {
	p := s.patience(ctx, s.o.MaxRetries)
	objects, err := s.objects(ctx)
	if err != nil {
		return err
	}
	err = p.try(func() error { return objects.Delete(s.o.Bucket, s.o.Prefix+key).Context(ctx).Do() })
	if isMissing(err) {
		return s.findBucket(ctx)
	}
	if err == nil {
		s.bucketSeen.Store(true)
	}
	return p.verdict(err)
}

// failKeys names keys that share one fate.
func (s *Store) failKeys(keys []string, err error) error {
	if len(keys) == 1 {
		return s.fail("delete", keys[0], err)
	}
	quoted := make([]string, 0, namedKeys)
	for _, key := range keys[:min(len(keys), namedKeys)] {
		quoted = append(quoted, fmt.Sprintf("%q", key))
	}
	names := strings.Join(quoted, ", ")
	if more := len(keys) - len(quoted); more > 0 {
		names += fmt.Sprintf(" and %d more", more)
	}
	return s.fail(fmt.Sprintf("delete %d objects from", len(keys)), "", s.explain(err).During(names))
}
