package gcs

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strconv"
	"strings"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// Get implements [storage.Store]. A body that breaks is continued with a request for the rest of the same generation, until
// Options.MaxRetries successive continuations brought no byte. The CRC32C is verified at the end.
func (s *Store) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	name, err := s.name(key)
	if err != nil {
		return nil, s.fail("get", key, err)
	}
	b := &body{ctx: ctx, s: s, key: key, name: name, p: s.patience(ctx, s.o.MaxRetries)}
	if err := b.open(); err != nil {
		err = s.missing(ctx, err)
		return nil, s.fail("get", key, b.p.verdict(err))
	}
	s.bucketSeen.Store(true)
	return b, nil
}

// body is the content of an object on its way here, over as many requests as it takes.
type body struct {
	ctx       context.Context // of Get: a reader has no context of its own
	s         *Store
	key, name string
	p         *patience

	rc         io.ReadCloser // of the last answer
	generation int64         // 0: not told, so that nothing can be continued
	size       int64         // of the object; -1: not told
	want       string        // CRC32C of the object; "": not told

	off     int64  // bytes that have arrived
	crc     uint32 // of them
	broken  error  // why rc is of no use any more
	outcome error  // final: io.EOF or the failure
}

// open asks for the object, or for the rest of it.
func (b *body) open() error {
	objects, err := b.s.objects(b.ctx)
	if err != nil {
		return err
	}
	return b.p.try(func() error {
		call := objects.Get(b.s.o.Bucket, b.name).Context(b.ctx)
		b.s.encrypted(call.Header())
		first, rest := b.rc == nil, fmt.Sprintf("%d-", b.off)
		if !first {
			call.Generation(b.generation).Header().Set("Range", "bytes="+rest)
		}
		resp, err := call.Download()
		if err != nil {
			return err
		}
		if first {
			b.told(resp)
		} else if got := resp.Header.Get("Content-Range"); !strings.HasPrefix(got, "bytes "+rest) {
			_ = resp.Body.Close()
			return &storage.Cause{Text: fmt.Sprintf("asked for bytes %s, the service answered with %q", rest, got)}
		}
		b.rc, b.broken = resp.Body, nil
		return nil
	})
}

// told keeps what the first answer says about the whole object.
func (b *body) told(resp *http.Response) {
	b.size = resp.ContentLength
	b.generation, _ = strconv.ParseInt(resp.Header.Get("X-Goog-Generation"), 10, 64)
	for _, sum := range strings.Split(strings.Join(resp.Header.Values("X-Goog-Hash"), ","), ",") {
		if crc, ok := strings.CutPrefix(strings.TrimSpace(sum), "crc32c="); ok {
			b.want = crc
		}
	}
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if len(p) == 0 || b.outcome != nil {
		return 0, b.outcome
	}
	n, err := b.read(p)
	switch {
	case err == io.EOF && b.want != "" && b.want != base64CRC(b.crc):
		b.outcome = b.s.fail("read", b.key, fmt.Errorf("content is damaged: CRC32C is %s, stored with %s", base64CRC(b.crc), b.want))
	case err == io.EOF:
		b.outcome = io.EOF
	case err != nil:
		b.outcome = b.s.fail("read", b.key, b.p.verdict(err))
	}
	if n > 0 {
		return n, nil
	}
	return 0, b.outcome
}

// read returns at least one byte or an error, which is io.EOF at the end of the object.
func (b *body) read(p []byte) (int, error) {
	for {
		if b.broken != nil {
			if err := b.resume(); err != nil {
				return 0, err
			}
		}
		n, err := b.rc.Read(p)
		if n > 0 {
			b.off += int64(n)
			b.crc = crc32.Update(b.crc, castagnoli, p[:n])
			b.p.progress()
		}
		switch {
		case err == io.EOF && b.size < 0, err != nil && b.off == b.size:
			return n, io.EOF
		case err == io.EOF:
			b.broken = io.ErrUnexpectedEOF
		case err != nil:
			b.broken = err
		}
		if n > 0 {
			return n, nil
		}
	}
}

// resume opens the rest after the connection broke.
func (b *body) resume() error {
	if err := b.rc.Close(); err != nil {
		b.broken = errors.Join(b.broken, err)
	}
	if b.generation == 0 || !b.p.again(b.broken) {
		if b.ctx.Err() != nil {
			return b.ctx.Err()
		}
		return b.lost(b.broken)
	}
	err := b.open()
	if err == nil || b.ctx.Err() != nil {
		return err
	}
	if isMissing(err) {
		return &storage.Cause{Text: "the object was replaced or deleted while it was read", Err: err}
	}
	return b.lost(err)
}

// lost says where the body broke off.
func (b *body) lost(why error) error {
	return b.s.explain(why).During(fmt.Sprintf("broken off after %d of %d bytes", b.off, b.size))
}

// Close implements io.Closer. It may be called at any time.
func (b *body) Close() error {
	told := b.outcome != nil && b.outcome != io.EOF
	if !told {
		b.outcome = errors.New("read after close")
	}
	if err := b.rc.Close(); err != nil && !told && b.broken == nil {
		return b.s.fail("read", b.key, err)
	}
	return nil
}

// Stat implements [storage.Store].
func (s *Store) Stat(ctx context.Context, key string) (storage.Object, error) {
	name, err := s.name(key)
	if err != nil {
		return storage.Object{}, s.fail("look up", key, err)
	}
	p := s.patience(ctx, s.o.MaxRetries)
	o, err := s.describe(ctx, p, name, "name", "size", "updated")
	if err != nil {
		err = s.missing(ctx, err)
		return storage.Object{}, s.fail("look up", key, p.verdict(err))
	}
	s.bucketSeen.Store(true)
	at, err := modified(o)
	if err != nil {
		return storage.Object{}, s.fail("look up", key, err)
	}
	return storage.Object{Key: key, Size: int64(o.Size), Modified: at}, nil
}

// missing puts a missing bucket in the place of the missing object.
func (s *Store) missing(ctx context.Context, err error) error {
	if isMissing(err) {
		if bucketErr := s.findBucket(ctx); bucketErr != nil {
			return bucketErr
		}
	}
	return err
}

// findBucket tells a missing bucket from a missing object, for which the service has one answer. Being refused counts as
// found: not everybody who may read may list.
func (s *Store) findBucket(ctx context.Context) error {
	if s.bucketSeen.Load() {
		return nil
	}
	err := s.look(ctx, fewRetries)
	if status := statusCode(err); err != nil && status != http.StatusForbidden {
		return err
	}
	s.bucketSeen.Store(true)
	return nil
}
