package storage

import (
	"context"
	"io"
	"iter"
	"strings"
)

// WithPrefix returns the part of a store below a folder as a store of its own. folder is slash-separated, without slashes
// at either end; "" returns s itself. The folder need not exist: it is empty until something is put there.
func WithPrefix(s Store, folder string) Store {
	if folder == "" {
		return s
	}
	return &prefixStore{s, folder + "/"}
}

type prefixStore struct {
	s      Store
	prefix string
}

func (p *prefixStore) Put(ctx context.Context, key string, r io.Reader) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	return p.s.Put(ctx, p.prefix+key, r)
}

func (p *prefixStore) PutNew(ctx context.Context, key string, r io.Reader) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	return p.s.PutNew(ctx, p.prefix+key, r)
}

func (p *prefixStore) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	return p.s.Get(ctx, p.prefix+key)
}

func (p *prefixStore) Stat(ctx context.Context, key string) (Object, error) {
	if err := CheckKey(key); err != nil {
		return Object{}, err
	}
	o, err := p.s.Stat(ctx, p.prefix+key)
	return p.below(o), err
}

func (p *prefixStore) List(ctx context.Context, dir string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		for o, err := range p.s.List(ctx, p.prefix+dir) {
			if !yield(p.below(o), err) {
				return
			}
		}
	}
}

func (p *prefixStore) Delete(ctx context.Context, keys ...string) error {
	full := make([]string, len(keys))
	for i, key := range keys {
		if err := CheckKey(key); err != nil {
			return err
		}
		full[i] = p.prefix + key
	}
	return p.s.Delete(ctx, full...)
}

func (p *prefixStore) Check(ctx context.Context) error { return p.s.Check(ctx) }

func (p *prefixStore) String() string { return p.s.String() + "/" + strings.TrimSuffix(p.prefix, "/") }

func (p *prefixStore) below(o Object) Object {
	o.Key = strings.TrimPrefix(o.Key, p.prefix)
	return o
}
