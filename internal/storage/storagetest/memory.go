package storagetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// NewMemory returns an empty store that keeps its objects in memory.
func NewMemory() storage.Store { return &memory{objects: map[string]object{}} }

type memory struct {
	mu      sync.Mutex
	objects map[string]object
}

type object struct {
	chunks   [][]byte // never changed once stored
	size     int64
	modified time.Time
}

// readObject keeps what r yields in chunks: a buffer that grows by copying would cost a large object several
// times its memory.
func readObject(r io.Reader) (object, error) {
	var o object
	for room := 4 << 10; ; room = min(4*room, 1<<20) {
		chunk := make([]byte, room)
		n, err := 0, error(nil)
		for n < room && err == nil { // not io.ReadFull, which hides a source's own unexpected EOF
			var m int
			m, err = r.Read(chunk[n:])
			n += m
		}
		o.chunks = append(o.chunks, chunk[:n])
		o.size += int64(n)
		if err == io.EOF {
			o.modified = time.Now()
			return o, nil
		}
		if err != nil {
			return object{}, err
		}
	}
}

func (o object) open() io.Reader {
	readers := make([]io.Reader, len(o.chunks))
	for i, chunk := range o.chunks {
		readers[i] = bytes.NewReader(chunk)
	}
	return io.MultiReader(readers...)
}

func (m *memory) String() string { return "memory://" }

func (m *memory) Check(ctx context.Context) error { return ctx.Err() }

func (m *memory) Put(ctx context.Context, key string, r io.Reader) error {
	return m.put(ctx, key, r, false)
}

func (m *memory) PutNew(ctx context.Context, key string, r io.Reader) error {
	return m.put(ctx, key, r, true)
}

func (m *memory) put(ctx context.Context, key string, r io.Reader, mustBeNew bool) error {
	if err := check(ctx, storage.CheckKey(key)); err != nil {
		return fmt.Errorf("cannot put %q in %s: %w", key, m, err)
	}
	o, err := readObject(contextReader{ctx, r})
	if err != nil {
		return fmt.Errorf("cannot put %q in %s: %w", key, m, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, taken := m.objects[key]; taken && mustBeNew {
		return fmt.Errorf("cannot put %q in %s: %w", key, m, storage.ErrExists)
	}
	m.objects[key] = o
	return nil
}

func (m *memory) find(ctx context.Context, key string) (object, error) {
	if err := check(ctx, storage.CheckKey(key)); err != nil {
		return object{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[key]
	if !ok {
		return object{}, fs.ErrNotExist
	}
	return o, nil
}

func (m *memory) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	o, err := m.find(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("cannot get %q from %s: %w", key, m, err)
	}
	return io.NopCloser(contextReader{ctx, o.open()}), nil
}

func (m *memory) Stat(ctx context.Context, key string) (storage.Object, error) {
	o, err := m.find(ctx, key)
	if err != nil {
		return storage.Object{}, fmt.Errorf("cannot look up %q in %s: %w", key, m, err)
	}
	return storage.Object{Key: key, Size: o.size, Modified: o.modified}, nil
}

func (m *memory) List(ctx context.Context, dir string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		err := check(ctx, storage.CheckDir(dir))
		for _, o := range m.entries(dir) {
			if err = check(ctx, err); err != nil {
				break
			}
			if !yield(o, nil) {
				return
			}
		}
		if err != nil {
			yield(storage.Object{}, fmt.Errorf("cannot list %q in %s: %w", dir, m, err))
		}
	}
}

func (m *memory) entries(dir string) []storage.Object {
	m.mu.Lock()
	defer m.mu.Unlock()
	found := map[string]storage.Object{}
	for key, o := range m.objects {
		below, ok := strings.CutPrefix(key, dir)
		if !ok {
			continue
		}
		if name, _, deeper := strings.Cut(below, "/"); deeper {
			found[dir+name+"/"] = storage.Object{Key: dir + name + "/"}
		} else {
			found[key] = storage.Object{Key: key, Size: o.size, Modified: o.modified}
		}
	}
	return sorted(slices.Collect(maps.Values(found)))
}

func (m *memory) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := check(ctx, storage.CheckKey(key)); err != nil {
			return fmt.Errorf("cannot delete %q from %s: %w", key, m, err)
		}
		m.mu.Lock()
		delete(m.objects, key)
		m.mu.Unlock()
	}
	return nil
}

func sorted(objects []storage.Object) []storage.Object {
	slices.SortFunc(objects, func(a, b storage.Object) int { return strings.Compare(a.Key, b.Key) })
	return objects
}

// check returns err or else the error of an ended context.
func check(ctx context.Context, err error) error {
	if err != nil {
		return err
	}
	return ctx.Err()
}

// contextReader ends with the context's error once ctx has ended.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
