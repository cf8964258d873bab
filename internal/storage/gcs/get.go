package gcs

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strings"

	gcs "cloud.google.com/go/storage"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// Get implements [storage.Store]. A body that breaks is continued with a request for the rest of the same generation, until
// Options.MaxRetries successive continuations brought no byte. The CRC32C is verified at the end.
func (s *Store) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	name, err := s.name(key)
	if err != nil {
		return nil, s.fail("get", key, err)
	}
	d := &download{s: s, p: s.patience(ctx, s.o.MaxRetries)}
	object, err := s.object(ctx, name, d.p)
	if err != nil {
		return nil, s.fail("get", key, err)
	}
	r, err := object.NewReader(context.WithValue(ctx, downloadKey{}, d))
	if err != nil {
		err = s.missing(ctx, err)
		return nil, s.fail("get", key, d.p.verdict(err))
	}
	s.bucketSeen.Store(true)
	return &body{s: s, key: key, r: r, d: d}, nil
}

// download is an object on its way here, over as many requests as it takes. The library repeats the request as soon as the
// body breaks, and for ever; [transport] asks begin first.
type download struct {
	s      *Store
	p      *patience
	opened bool  // an answer was accepted, so that the next request is a continuation
	off    int64 // bytes that have arrived
	size   int64 // of the object; -1: not told
	broken error // why the last answer ended early

	want string // CRC32C of the object; "": not told
	crc  uint32 // of what has arrived
}

// begin waits before a continuation, or refuses it.
func (d *download) begin(ctx context.Context) error {
	if !d.opened || d.broken == nil {
		return nil
	}
	broken := d.broken
	d.broken = nil
	if !d.p.again(broken) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return d.lost(broken)
	}
	return nil
}

func (d *download) lost(why error) error {
	return d.s.explain(why).During(fmt.Sprintf("broken off after %d of %d bytes", d.off, d.size))
}

// accept puts itself between the library and the body of an answer.
func (d *download) accept(req *http.Request, resp *http.Response) error {
	if rest, ok := strings.CutPrefix(req.Header.Get("Range"), "bytes="); ok {
		if got := resp.Header.Get("Content-Range"); !strings.HasPrefix(got, "bytes "+rest) {
			return &storage.Cause{Text: fmt.Sprintf("asked for bytes %s, the service answered with %q", rest, got)}
		}
	} else {
		d.size = resp.ContentLength
		for _, sum := range strings.Split(strings.Join(resp.Header.Values("X-Goog-Hash"), ","), ",") {
			if crc, ok := strings.CutPrefix(strings.TrimSpace(sum), "crc32c="); ok {
				d.want = crc
			}
		}
	}
	d.opened = true
	resp.Body = &arriving{resp.Body, d}
	return nil
}

// arriving is the body of one answer.
type arriving struct {
	io.ReadCloser
	d *download
}

// Read implements io.Reader.
func (a *arriving) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if n > 0 {
		a.d.off += int64(n)
		a.d.crc = crc32.Update(a.d.crc, castagnoli, p[:n])
		a.d.p.progress()
	}
	if err != nil && err != io.EOF {
		a.d.broken = err
	}
	return n, err
}

// body is the content of an object.
type body struct {
	s       *Store
	key     string
	r       *gcs.Reader
	d       *download
	outcome error // final: io.EOF or the failure
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if len(p) == 0 || b.outcome != nil {
		return 0, b.outcome
	}
	n, err := b.r.Read(p)
	switch {
	case err == io.EOF && b.d.size >= 0 && b.d.off != b.d.size:
		b.outcome = b.s.fail("read", b.key, fmt.Errorf("%d bytes arrived of the object's %d", b.d.off, b.d.size))
	case err == io.EOF:
		b.outcome = io.EOF
	case err != nil && b.d.opened && isMissing(err):
		b.outcome = b.s.fail("read", b.key, &storage.Cause{Text: "the object was replaced or deleted while it was read", Err: err})
	case err != nil && b.d.broken == nil && b.d.off == b.d.size && b.d.want != "" && b.d.want != base64CRC(b.d.crc):
		b.outcome = b.s.fail("read", b.key, fmt.Errorf("content is damaged: CRC32C is %s, stored with %s", base64CRC(b.d.crc), b.d.want))
	case err != nil:
		b.outcome = b.s.fail("read", b.key, b.d.p.verdict(err))
	}
	if n > 0 {
		return n, nil
	}
	return 0, b.outcome
}

// Close implements io.Closer. It may be called at any time.
func (b *body) Close() error {
	told := b.outcome != nil && b.outcome != io.EOF
	if !told {
		b.outcome = errors.New("read after close")
	}
	if err := b.r.Close(); err != nil && !told && b.d.broken == nil {
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
	object, err := s.object(ctx, name, p)
	if err != nil {
		return storage.Object{}, s.fail("look up", key, err)
	}
	attrs, err := object.Attrs(ctx)
	if err != nil {
		err = s.missing(ctx, err)
		return storage.Object{}, s.fail("look up", key, p.verdict(err))
	}
	s.bucketSeen.Store(true)
	return storage.Object{Key: key, Size: attrs.Size, Modified: attrs.Updated}, nil
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
