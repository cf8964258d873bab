package s3

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"

	"gitlab.com/walden-pg/walden/internal/storage"
)

const (
	maxParts       = 10_000 // per multipart upload, by S3
	equalParts     = 5_000
	doublingPeriod = 500
	abortTimeout   = 30 * time.Second

	// tokenName is the metadata key of the token: the header is x-amz-meta-walden-put.
	tokenName = "walden-put"
)

// Put implements [storage.Store].
func (s *Store) Put(ctx context.Context, key string, r io.Reader) error {
	if err := s.upload(ctx, key, r, false); err != nil {
		return s.fail("put", key, err)
	}
	return nil
}

// PutNew implements [storage.Store]. See Options.Conditional for services that cannot decide a race.
func (s *Store) PutNew(ctx context.Context, key string, r io.Reader) error {
	if err := s.upload(ctx, key, r, true); err != nil {
		return s.fail("create", key, err)
	}
	return nil
}

// upload is one object on its way.
type upload struct {
	s      *Store
	client *s3.Client
	path   *string
	token  string
	isNew  bool // the key must not exist
}

func (s *Store) upload(ctx context.Context, key string, r io.Reader, isNew bool) error {
	path, err := s.path(key)
	if err != nil {
		return err
	}
	client, err := s.client(ctx)
	if err != nil {
		return err
	}
	u := &upload{s: s, client: client, path: path, token: rand.Text(), isNew: isNew}
	if isNew {
		if err := u.askFirst(ctx); err != nil {
			return err
		}
	}
	src := &source{r: r}
	first, err := u.s.fill(ctx, src, u.s.partLimit(1))
	if err != nil {
		return err
	}
	if src.atEnd() {
		defer first.release()
		err = u.single(ctx, first)
	} else {
		err = u.multipart(ctx, src, first)
	}
	if err == nil {
		s.bucketSeen.Store(true)
		s.abortLeft(ctx, client)
	}
	return err
}

// askFirst looks for the object where the service may not honour If-None-Match. Whoever may write but not read
// is left to the condition.
func (u *upload) askFirst(ctx context.Context) error {
	state := conditions(u.s.conditions.Load())
	if state == conditionsHonoured {
		return nil
	}
	_, err := u.head(ctx)
	switch {
	case err == nil:
		return exists(nil)
	case isMissing(err), state == conditionsUnknown && statusCode(err) == http.StatusForbidden:
		return nil
	}
	return err
}

func exists(err error) error {
	return &storage.Cause{Text: storage.ErrExists.Error(), Is: storage.ErrExists, Err: err}
}

// store runs send, which makes the object visible, and finds out what came of it.
//
// A condition that failed may have been failed by our own object, when the first attempt was carried out and
// only its answer was lost: whose object it is tells the token.
func (u *upload) store(ctx context.Context, send func(ifNoneMatch *string) error) error {
	if !u.isNew {
		return send(nil)
	}
	if conditions(u.s.conditions.Load()) == conditionsRefused {
		return u.storeUnconditionally(ctx, send)
	}
	err := send(aws.String("*"))
	switch {
	case err == nil:
		return nil
	case notImplemented(err):
		if err := u.askAgain(ctx); err != nil {
			return err
		}
		if err := u.storeUnconditionally(ctx, send); err != nil {
			return err
		}
		u.s.conditions.Store(int32(conditionsRefused))
		return nil
	case preconditionFailed(err):
		u.s.conditions.CompareAndSwap(int32(conditionsUnknown), int32(conditionsHonoured))
		return u.judge(ctx, err)
	case errorCode(err) == "ConditionalRequestConflict":
		return u.judge(ctx, err)
	}
	return err
}

func (u *upload) askAgain(ctx context.Context) error {
	_, err := u.head(ctx)
	switch {
	case err == nil:
		return exists(nil)
	case isMissing(err):
		return nil
	}
	return err
}

// storeUnconditionally overwrites whatever came since the key was found free, and then looks who was last.
func (u *upload) storeUnconditionally(ctx context.Context, send func(ifNoneMatch *string) error) error {
	if err := send(nil); err != nil {
		return err
	}
	switch ours, err := u.stands(ctx); {
	case err != nil:
		return u.s.explain(err).During("cannot tell whether another writer was faster")
	case !ours:
		return exists(nil)
	}
	return nil
}

// judge decides about a conflict: our own object is a success, another one is not.
func (u *upload) judge(ctx context.Context, conflict error) error {
	switch ours, err := u.stands(ctx); {
	case errors.Is(err, fs.ErrNotExist):
		return conflict
	case err != nil:
		return u.s.explain(err).During("the key is taken, but cannot tell by whom")
	case !ours:
		return exists(conflict)
	}
	return nil
}

// stands tells whether the object under the key is the one that u wrote.
func (u *upload) stands(ctx context.Context) (bool, error) {
	out, err := u.head(ctx)
	if err != nil {
		if isMissing(err) {
			err = fs.ErrNotExist
		}
		return false, err
	}
	for name, value := range out.Metadata {
		if strings.EqualFold(name, tokenName) {
			return value == u.token, nil
		}
	}
	return false, nil
}

func (u *upload) head(ctx context.Context) (*s3.HeadObjectOutput, error) {
	return u.s.head(ctx, u.client, u.path)
}

func notImplemented(err error) bool {
	return statusCode(err) == http.StatusNotImplemented || errorCode(err) == "NotImplemented"
}

func preconditionFailed(err error) bool {
	return statusCode(err) == http.StatusPreconditionFailed || errorCode(err) == "PreconditionFailed"
}

// single sends an object of at most one part.
func (u *upload) single(ctx context.Context, p *part) error {
	o := &u.s.o
	sums := u.s.checksums(p)
	return u.store(ctx, func(ifNoneMatch *string) error {
		out, err := u.client.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &o.Bucket, Key: u.path, IfNoneMatch: ifNoneMatch, Metadata: u.metadata(),
			Body: p.body(ctx), ContentLength: aws.Int64(p.size), ChecksumCRC32: sums.crc32, ContentMD5: sums.md5,
			StorageClass:         types.StorageClass(o.StorageClass),
			ServerSideEncryption: u.s.encryption(), SSEKMSKeyId: optional(o.SSEKMSKeyID),
			SSECustomerAlgorithm: u.s.sse.customerAlgorithm,
			SSECustomerKey:       u.s.sse.customerKey, SSECustomerKeyMD5: u.s.sse.customerKeyMD5,
		}, sums.payload)
		switch {
		case err != nil:
			return err
		case aws.ToString(out.ETag) == "":
			return errNoETag
		}
		return sums.acknowledged(out.ChecksumCRC32)
	})
}

// errNoETag is a success without proof: every S3 service names the ETag of what it has stored. Something in between
// that answers any request with a page of its own, a captive portal for one, does not.
var errNoETag = errors.New("the answer is that of success, but without an ETag: it is not from an S3 service")

func (u *upload) metadata() map[string]string { return map[string]string{tokenName: u.token} }

func (s *Store) encryption() types.ServerSideEncryption {
	if s.o.SSECustomerKey != "" {
		return ""
	}
	return types.ServerSideEncryption(s.o.SSE)
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// multipart sends first and all that follows, and leaves either the object or nothing.
//
// A CreateMultipartUpload whose answer is lost and which is then repeated leaves an empty upload whose ID nobody
// knows; a lifecycle rule for incomplete uploads removes it.
func (u *upload) multipart(ctx context.Context, src *source, first *part) error {
	id, err := u.create(ctx)
	if err != nil {
		first.release()
		return err
	}
	parts, err := u.sendParts(ctx, id, src, first)
	if err == nil {
		if err = u.complete(ctx, id, parts); err == nil {
			return nil
		}
	}
	if left := u.abort(ctx, id); left != nil {
		return u.s.explain(err).And(left)
	}
	return err
}

func (u *upload) create(ctx context.Context) (id *string, err error) {
	o := &u.s.o
	in := &s3.CreateMultipartUploadInput{
		Bucket: &o.Bucket, Key: u.path, Metadata: u.metadata(),
		StorageClass:         types.StorageClass(o.StorageClass),
		ServerSideEncryption: u.s.encryption(), SSEKMSKeyId: optional(o.SSEKMSKeyID),
		SSECustomerAlgorithm: u.s.sse.customerAlgorithm,
		SSECustomerKey:       u.s.sse.customerKey, SSECustomerKeyMD5: u.s.sse.customerKeyMD5,
	}
	if o.Checksum == ChecksumCRC32 {
		// Without it S3-compatible services refuse the parts' checksums in CompleteMultipartUpload.
		in.ChecksumAlgorithm = types.ChecksumAlgorithmCrc32
	}
	out, err := u.client.CreateMultipartUpload(ctx, in)
	switch {
	case err != nil:
		return nil, err
	case aws.ToString(out.UploadId) == "":
		return nil, errors.New("the service began a multipart upload without an ID")
	}
	return out.UploadId, nil
}

// sendParts reads and sends until the source ends. Reading takes place here, sending in as many goroutines as the
// window allows, all of which have ended when it returns.
func (u *upload) sendParts(ctx context.Context, id *string, src *source, next *part) ([]types.CompletedPart, error) {
	g, ctx := errgroup.WithContext(ctx)
	slots := u.s.window.open()
	defer slots.close()
	var mu sync.Mutex
	var done []types.CompletedPart
	read := func() error {
		for number := 1; ; number++ {
			// Before the part is read, so that no buffer waits for a slot.
			if err := slots.acquire(ctx); err != nil {
				if next != nil {
					next.release()
				}
				return err
			}
			if number > maxParts {
				return &storage.Cause{Text: fmt.Sprintf("object is larger than %d parts", maxParts), Permanent: true,
					Advice: "raise S3_MAX_PART_SIZE"}
			}
			if next == nil {
				var err error
				if next, err = u.s.fill(ctx, src, u.s.partLimit(number)); err != nil {
					return err
				}
			}
			p := next
			next = nil
			mu.Lock()
			done = append(done, types.CompletedPart{})
			mu.Unlock()
			g.Go(func() error {
				defer p.release()
				completed, err := u.sendPart(ctx, id, int32(number), p)
				slots.release(p.size, err == nil)
				if err != nil {
					return u.s.explain(err).During(fmt.Sprintf("part %d", number))
				}
				mu.Lock()
				done[number-1] = completed
				mu.Unlock()
				return nil
			})
			if src.atEnd() {
				return nil
			}
		}
	}
	readErr := read()
	ended := ctx.Err() != nil // so that readErr is only a consequence
	// Where only the source failed, the parts in flight arrive: a service may store one that is cut off after the upload was aborted.
	sendErr := g.Wait()
	switch {
	case readErr != nil && (!ended || sendErr == nil):
		return nil, readErr
	case sendErr != nil:
		return nil, sendErr
	}
	return done, nil
}

func (u *upload) sendPart(ctx context.Context, id *string, number int32, p *part) (types.CompletedPart, error) {
	sums := u.s.checksums(p)
	out, err := u.client.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: &u.s.o.Bucket, Key: u.path, UploadId: id, PartNumber: &number,
		Body: p.body(ctx), ContentLength: aws.Int64(p.size), ChecksumCRC32: sums.crc32, ContentMD5: sums.md5,
		SSECustomerAlgorithm: u.s.sse.customerAlgorithm,
		SSECustomerKey:       u.s.sse.customerKey, SSECustomerKeyMD5: u.s.sse.customerKeyMD5,
	}, sums.payload)
	if err != nil {
		return types.CompletedPart{}, err
	}
	if aws.ToString(out.ETag) == "" {
		return types.CompletedPart{}, errNoETag
	}
	if err := sums.acknowledged(out.ChecksumCRC32); err != nil {
		return types.CompletedPart{}, err
	}
	// Repeated in CompleteMultipartUpload only if the service knows it.
	return types.CompletedPart{PartNumber: &number, ETag: out.ETag, ChecksumCRC32: out.ChecksumCRC32}, nil
}

func (u *upload) complete(ctx context.Context, id *string, parts []types.CompletedPart) error {
	return u.store(ctx, func(ifNoneMatch *string) error {
		out, err := u.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
			Bucket: &u.s.o.Bucket, Key: u.path, UploadId: id, IfNoneMatch: ifNoneMatch,
			MultipartUpload:      &types.CompletedMultipartUpload{Parts: parts},
			SSECustomerAlgorithm: u.s.sse.customerAlgorithm,
			SSECustomerKey:       u.s.sse.customerKey, SSECustomerKeyMD5: u.s.sse.customerKeyMD5,
		})
		if err == nil && aws.ToString(out.ETag) == "" {
			return errNoETag
		}
		if err == nil {
			return assembled(parts, out.ChecksumCRC32)
		}
		if errorCode(err) == "NoSuchUpload" {
			// The upload is gone because an earlier attempt, whose answer was lost, has completed it.
			if ours, headErr := u.stands(ctx); headErr == nil && ours {
				return nil
			}
		}
		return err
	})
}

// abort frees the parts, also when ctx has ended: they are invisible and billed. What cannot be aborted now is
// tried again after the next upload or deletion that succeeds.
func (u *upload) abort(ctx context.Context, id *string) *storage.Cause {
	left := leftUpload{u.path, id}
	err := u.s.abortUpload(ctx, u.client, left)
	if err == nil {
		return nil
	}
	u.s.leftMu.Lock()
	u.s.left = append(u.s.left, left)
	u.s.leftMu.Unlock()
	return &storage.Cause{
		Text: fmt.Sprintf("cannot abort multipart upload %s: %v", *id, u.s.explain(err)), Err: err,
		Advice: "abort the upload, or add a lifecycle rule for incomplete uploads: its parts are invisible and billed",
	}
}

// leftUpload is a multipart upload that could not be aborted.
type leftUpload struct{ path, id *string }

// abortUpload aborts an upload until it is gone. A part that was cut off on its way may be stored after the upload was aborted,
// and brings it back: "it might be necessary to abort a given multipart upload multiple times" (Amazon S3 API reference,
// AbortMultipartUpload).
func (s *Store) abortUpload(ctx context.Context, client *s3.Client, l leftUpload) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	for wait := firstAbortWait; wait <= lastAbortWait; wait *= 2 {
		_, err := client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{
			Bucket: &s.o.Bucket, Key: l.path, UploadId: l.id,
		})
		if err != nil && errorCode(err) != "NoSuchUpload" {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		if _, err := s.lastPart(ctx, client, l.path, l.id); err != nil {
			return nil // it is gone, or may not be looked for
		}
	}
	return errors.New("the service still has it, however often it is aborted")
}

// After how long an aborted upload is looked for, at first and at last.
const (
	firstAbortWait = 100 * time.Millisecond
	lastAbortWait  = 16 * firstAbortWait
)

// abortLeft aborts what could not be aborted before, now that the service answers again.
func (s *Store) abortLeft(ctx context.Context, client *s3.Client) {
	s.leftMu.Lock()
	left := s.left
	s.left = nil
	s.leftMu.Unlock()
	for i, l := range left {
		if err := s.abortUpload(ctx, client, l); err != nil { // it was named when it could not be aborted at first
			s.leftMu.Lock()
			s.left = append(s.left, left[i:]...)
			s.leftMu.Unlock()
			return
		}
	}
}

// checksums cover one body.
type checksums struct {
	crc32, md5 *string
	covered    bool
}

func (s *Store) checksums(p *part) checksums {
	switch s.o.Checksum {
	case ChecksumCRC32:
		sum := crc32.NewIEEE()
		p.writeTo(sum)
		return checksums{crc32: aws.String(base64.StdEncoding.EncodeToString(sum.Sum(nil))), covered: true}
	case ChecksumMD5:
		sum := md5.New()
		p.writeTo(sum)
		return checksums{md5: aws.String(base64.StdEncoding.EncodeToString(sum.Sum(nil))), covered: true}
	}
	return checksums{}
}

// payload leaves the SHA-256 of the body out of the signature where the checksum covers the body: the headers,
// and so the checksum, are signed. Over TLS the SDK leaves it out anyway.
func (c checksums) payload(o *s3.Options) {
	if c.covered {
		o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
	}
}

// acknowledged compares what the service computed, if it says so, with what was sent.
func (c checksums) acknowledged(got *string) error {
	if c.crc32 != nil && got != nil && *got != *c.crc32 {
		return fmt.Errorf("the service stored other bytes than were sent: CRC32 %s, expected %s", *got, *c.crc32)
	}
	return nil
}

// assembled does the same for a whole multipart upload, whose checksum is "<CRC32 of the parts' CRC32>-<parts>".
func assembled(parts []types.CompletedPart, got *string) error {
	sum, count, composite := strings.Cut(aws.ToString(got), "-")
	if !composite {
		return nil
	}
	all := crc32.NewIEEE()
	for _, p := range parts {
		raw, err := base64.StdEncoding.DecodeString(aws.ToString(p.ChecksumCRC32))
		if err != nil || len(raw) != crc32.Size {
			return nil
		}
		_, _ = all.Write(raw)
	}
	want := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, all.Sum32()))
	if sum != want || count != fmt.Sprint(len(parts)) {
		return fmt.Errorf("the service assembled other parts than were sent: CRC32 %s, expected %s-%d",
			*got, want, len(parts))
	}
	return nil
}

func md5Base64(b []byte) string {
	sum := md5.Sum(b)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// partLimit is the size of part number n (from 1), see Options.PartSize.
func (s *Store) partLimit(n int) int64 {
	size := s.o.PartSize
	for range max(0, (n-equalParts+doublingPeriod-1)/doublingPeriod) {
		size = min(2*size, maxPartSize)
	}
	if s.o.Budget != nil {
		size = min(size, max(s.o.Budget.Size(), minPartSize))
	}
	return size
}

// source is a stream and the byte that was read ahead to learn whether it goes on. The stream must not be asked
// again once it has ended.
type source struct {
	r     io.Reader
	ahead [1]byte
	held  bool // ahead holds the next byte
	eof   bool
}

// atEnd tells whether all of the stream has been read.
func (s *source) atEnd() bool { return s.eof && !s.held }

// read fills p as far as the stream goes. The stream's own io.ErrUnexpectedEOF stays an error.
func (s *source) read(ctx context.Context, p []byte) (n int, err error) {
	if s.held && len(p) > 0 {
		p[0], s.held, n = s.ahead[0], false, 1
	}
	for n < len(p) && !s.eof {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		m, err := s.r.Read(p[n:])
		n += m
		if err == io.EOF {
			s.eof = true
		} else if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (s *source) lookAhead(ctx context.Context) error {
	if s.eof || s.held {
		return nil
	}
	n, err := s.read(ctx, s.ahead[:])
	s.held = n == 1
	return err
}

// chunkSize is the unit in which parts grow: a small object takes little memory, and a large part is never copied.
const chunkSize = 256 << 10

type chunk [chunkSize]byte

// part is a piece of an object in memory.
type part struct {
	s        *Store
	chunks   []*chunk
	size     int64
	reserved int64 // bytes of the budget
}

// fill reads the next part, of at most limit bytes; src.atEnd() tells whether it is the last.
//
// All of limit is reserved before the first byte is read, because uploads that hold some memory and wait for more
// would wait for each other. What the object turns out not to need is given back before it is sent.
func (s *Store) fill(ctx context.Context, src *source, limit int64) (*part, error) {
	p := &part{s: s}
	if s.o.Budget != nil {
		done := storage.Waiting(ctx) // for other parts to be sent
		err := s.o.Budget.Acquire(ctx, limit)
		done()
		if err != nil {
			return nil, err
		}
		p.reserved = min(limit, s.o.Budget.Size())
	}
	for p.size < limit && !src.atEnd() {
		c := s.chunks.Get().(*chunk)
		p.chunks = append(p.chunks, c)
		n, err := src.read(ctx, c[:min(chunkSize, limit-p.size)])
		p.size += int64(n)
		if err != nil {
			p.release()
			return nil, sourceFailed(err)
		}
	}
	if err := src.lookAhead(ctx); err != nil {
		p.release()
		return nil, sourceFailed(err)
	}
	if used := int64(len(p.chunks)) * chunkSize; used < p.reserved {
		s.o.Budget.Release(p.reserved - used)
		p.reserved = used
	}
	return p, nil
}

// sourceFailed keeps failures of the source apart from those of this store, which may be of the same kind.
func sourceFailed(err error) error {
	return &storage.Cause{Text: "cannot read the data to store: " + err.Error(), Err: err}
}

func (p *part) release() {
	for _, c := range p.chunks {
		p.s.chunks.Put(c)
	}
	p.chunks = nil
	if p.reserved > 0 {
		p.s.o.Budget.Release(p.reserved)
		p.reserved = 0
	}
}

// writeTo hands the bytes to a hash, which never fails.
func (p *part) writeTo(w io.Writer) {
	_, _ = io.Copy(w, p.body(context.Background()))
}

// body returns the part's bytes for one request; the SDK rewinds it to send them again.
func (p *part) body(ctx context.Context) io.ReadSeeker { return &partReader{ctx: ctx, p: p} }

type partReader struct {
	ctx context.Context // of the upload: what is read is on its way
	p   *part
	off int64
}

// Read implements io.Reader.
func (r *partReader) Read(b []byte) (int, error) {
	if r.off >= r.p.size {
		return 0, io.EOF
	}
	c := r.p.chunks[r.off/chunkSize]
	start := r.off % chunkSize
	n := copy(b, c[start:min(chunkSize, start+r.p.size-r.off)])
	r.off += int64(n)
	storage.Moved(r.ctx)
	return n, nil
}

// Seek implements io.Seeker.
func (r *partReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		offset += r.p.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	r.off = offset
	return offset, nil
}
