package gcs

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"time"

	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/googleapi"
	gcs "google.golang.org/api/storage/v1"

	"gitlab.com/walden-pg/walden/internal/storage"
)

const (
	// tokenName is the metadata key of the token: the header is x-goog-meta-walden-put.
	tokenName = "walden-put"

	contentType = "application/octet-stream"

	// sessionLife is how long the service keeps a resumable upload ("Resumable uploads" in the Cloud Storage documentation).
	sessionLife   = 7 * 24 * time.Hour
	cancelTimeout = 30 * time.Second

	// statusCancelled is the service's answer to the cancellation of a session.
	statusCancelled = 499
)

// Put implements [storage.Store].
func (s *Store) Put(ctx context.Context, key string, r io.Reader) error {
	if err := s.upload(ctx, key, r, false); err != nil {
		return s.fail("put", key, err)
	}
	return nil
}

// PutNew implements [storage.Store]. The service decides of two racing writers.
func (s *Store) PutNew(ctx context.Context, key string, r io.Reader) error {
	if err := s.upload(ctx, key, r, true); err != nil {
		return s.fail("create", key, err)
	}
	return nil
}

// upload is one object on its way.
type upload struct {
	s     *Store
	name  string
	token string
	isNew bool // the name must not be taken

	source io.Reader
	head   []byte // what was read of the source and not handed to the library yet
	whole  bool   // the source has ended, so that the service may have all of it
	size   int64  // of what was read
	crc    uint32 // of it

	session session
}

// session is a resumable upload, as [transport] has seen it begin.
type session struct {
	uri    string // "" if there is none
	client http.RoundTripper
}

// head is what is read of an object before it is decided how to send it.
type head [1 << 20]byte

// castagnoli is the polynomial of the service's CRC32C.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (s *Store) upload(ctx context.Context, key string, r io.Reader, isNew bool) error {
	name, err := s.name(key)
	if err != nil {
		return err
	}
	chunk := s.o.ChunkSize
	if s.o.Budget != nil {
		chunk = max(chunkUnit, min(chunk, (s.o.Budget.Size()-int64(len(head{})))/chunkUnit*chunkUnit))
	}
	memory, err := s.reserve(ctx, int64(len(head{}))+chunk)
	if err != nil {
		return err
	}
	defer memory.release()
	buffer := s.heads.Get().(*head)
	defer s.heads.Put(buffer)

	u := &upload{s: s, name: name, token: rand.Text(), isNew: isNew, source: r}
	n, err := u.read(ctx, buffer[:])
	if err != nil {
		return err
	}
	u.head = buffer[:n]
	if u.whole {
		chunk = wholeUnits(u.size + 1) // so that the library sees its end
		memory.keep(int64(len(head{})) + chunk)
	}
	p := s.patience(ctx, s.o.MaxRetries)
	p.eachCounts = true
	o, err := u.send(ctx, p, int(chunk))
	if err != nil {
		err = u.judge(ctx, p.verdict(err))
	} else {
		err = u.verify(ctx, o)
	}
	if err == nil {
		s.bucketSeen.Store(true)
	}
	return err
}

// memory is what an upload has of the budget.
type memory struct {
	budget   *storage.Budget
	reserved int64
}

// reserve takes all that an upload may need before its first byte is read, because uploads that hold some memory and wait
// for more would wait for each other.
func (s *Store) reserve(ctx context.Context, n int64) (*memory, error) {
	m := &memory{budget: s.o.Budget}
	if m.budget == nil {
		return m, nil
	}
	done := storage.Waiting(ctx) // for other uploads
	err := m.budget.Acquire(ctx, n)
	done()
	if err != nil {
		return nil, err
	}
	m.reserved = min(n, m.budget.Size())
	return m, nil
}

// keep gives back what is above n.
func (m *memory) keep(n int64) {
	if m.reserved > n {
		m.budget.Release(m.reserved - n)
		m.reserved = n
	}
}

func (m *memory) release() { m.keep(0) }

// read fills p as far as the source goes, and keeps account of it. The source is not asked again once it has ended. Its own
// io.ErrUnexpectedEOF stays an error.
func (u *upload) read(ctx context.Context, p []byte) (n int, err error) {
	for n < len(p) && !u.whole {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		m, err := u.source.Read(p[n:])
		n += m
		if err == io.EOF {
			u.whole = true
		} else if err != nil {
			return n, &sourceError{err}
		}
	}
	u.size += int64(n)
	u.crc = crc32.Update(u.crc, castagnoli, p[:n])
	return n, nil
}

// sourceError keeps failures of the source apart from those of this store, which may be of the same kind.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return "cannot read the data to store: " + e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// send hands the head and then the rest of the source to the library, which buffers chunks and repeats what failed as p
// decides.
func (u *upload) send(ctx context.Context, p *patience, chunk int) (*gcs.Object, error) {
	objects, err := u.s.objects(ctx)
	if err != nil {
		return nil, err
	}
	o := &gcs.Object{Name: u.name, ContentType: contentType, Metadata: map[string]string{tokenName: u.token}}
	options := []googleapi.MediaOption{
		googleapi.ContentType(contentType), googleapi.ChunkSize(chunk),
		googleapi.ChunkRetryDeadline(sessionLife), // p decides
	}
	if u.whole {
		o.Crc32c = base64CRC(u.crc)
	} else {
		options = append(options, googleapi.EnableAutoChecksum()) // goes with the last chunk
	}
	sending := context.WithValue(ctx, sessionKey{}, &u.session)
	call := objects.Insert(u.s.o.Bucket, o).Media(&uploadReader{sending, u}, options...).Context(sending)
	if u.isNew {
		call.IfGenerationMatch(0)
	}
	u.s.encrypted(call.Header())
	call.WithRetry(&gax.Backoff{Initial: 1, Max: 1, Multiplier: 2}, p.again) // p does the waiting
	return call.Do()
}

// uploadReader is an upload as the library reads it.
type uploadReader struct {
	ctx context.Context
	u   *upload
}

// Read implements io.Reader.
func (r *uploadReader) Read(p []byte) (int, error) {
	if len(r.u.head) > 0 {
		n := copy(p, r.u.head)
		r.u.head = r.u.head[n:]
		return n, nil
	}
	n, err := r.u.read(r.ctx, p)
	if n == 0 && err == nil && r.u.whole {
		err = io.EOF
	}
	return n, err
}

// judge finds out what a failed upload has come to.
//
// The object may stand although the answer was lost, and then a condition that failed may have been failed by our own
// object, or the session is gone because it is complete: whose object it is tells the token.
func (u *upload) judge(ctx context.Context, failure error) error {
	if _, ok := errors.AsType[*sourceError](failure); ok || ctx.Err() != nil {
		u.cancelSession(ctx)
		return failure
	}
	status := statusCode(failure)
	taken, gone := u.isNew && status == http.StatusPreconditionFailed, status == http.StatusNotFound || status == http.StatusGone
	if !taken && !gone && (!u.whole || storage.PermanentStatus(status)) {
		u.cancelSession(ctx)
		return failure
	}
	o, err := u.stands(ctx)
	switch {
	case err == nil && o.Metadata[tokenName] == u.token:
		return u.verify(ctx, o)
	case err == nil && taken:
		return &storage.Cause{Text: storage.ErrExists.Error(), Is: storage.ErrExists, Err: failure}
	case taken && isMissing(err):
		return &storage.Cause{Text: "the name was taken by an object that is gone by now", Err: failure}
	case taken:
		return u.s.explain(err).During("the name is taken, but cannot tell by whom")
	case gone && errors.Is(err, errNoBucket):
		return err
	case gone:
		return &storage.Cause{Text: "the upload's session is gone", Err: failure}
	}
	u.cancelSession(ctx)
	return failure
}

// stands describes the object under the name.
func (u *upload) stands(ctx context.Context) (*gcs.Object, error) {
	p := u.s.patience(ctx, fewRetries)
	o, err := u.s.describe(ctx, p, u.name, "generation", "size", "crc32c", "metadata")
	return o, p.verdict(u.s.missing(ctx, err))
}

// verify compares what the service says that it has stored with what was sent. What is not the same is removed.
func (u *upload) verify(ctx context.Context, o *gcs.Object) error {
	switch {
	case o == nil || o.Generation == 0:
		return errors.New("the answer is that of success, but names no object: it is not from Google Cloud Storage")
	case o.Size == uint64(u.size) && o.Crc32c == base64CRC(u.crc):
		return nil
	}
	damaged := fmt.Errorf("the service stored other bytes than were sent: %d bytes with CRC32C %s, expected %d with %s",
		o.Size, o.Crc32c, u.size, base64CRC(u.crc))
	objects, err := u.s.objects(ctx)
	if err == nil {
		p := u.s.patience(ctx, fewRetries)
		err = p.try(func() error {
			return objects.Delete(u.s.o.Bucket, u.name).IfGenerationMatch(o.Generation).Context(ctx).Do()
		})
	}
	if err != nil && !isMissing(err) {
		return u.s.explain(err).During(damaged.Error() + "; and cannot remove it")
	}
	return damaged
}

// base64CRC spells a checksum as the service does.
func base64CRC(crc uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc))
}

// cancelSession frees what the service holds of an upload that failed, also when ctx has ended. Where that fails as well,
// the service does it after a week.
func (u *upload) cancelSession(ctx context.Context) {
	if u.session.uri == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer cancel()
	p := u.s.patience(ctx, fewRetries)
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodDelete, u.session.uri, http.NoBody)
		if err != nil {
			return
		}
		resp, err := u.session.client.RoundTrip(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode != statusCancelled && resp.StatusCode >= http.StatusInternalServerError {
				err = statusError(resp)
			}
		}
		if err == nil || !p.again(err) {
			u.session.uri = ""
			return
		}
	}
}
