package gcs

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/auth"
	google "cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/httptransport"
	"google.golang.org/api/option"
	gcs "google.golang.org/api/storage/v1"

	"gitlab.com/walden-pg/walden/internal/storage"
)

const (
	dialTimeout         = 20 * time.Second
	tlsHandshakeTimeout = 20 * time.Second
	idleConnTimeout     = 90 * time.Second
	tokenTimeout        = time.Minute
	networkBufferSize   = 128 << 10
)

// objects returns the service's methods; the first call looks for credentials if no file names them.
func (s *Store) objects(ctx context.Context) (*gcs.ObjectsService, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.service != nil {
		return s.service, nil
	}
	hc := &http.Client{
		Transport: s.newTransport(),
		// The service never redirects: an answer that does is someone else's.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if s.credentials != nil {
		found, err := s.credentials.find(ctx)
		if err != nil {
			return nil, err
		}
		if err := httptransport.AddAuthorizationMiddleware(hc, found); err != nil {
			return nil, fmt.Errorf("cannot set up authorization: %w", err)
		}
	}
	hc.Transport = &transport{hc.Transport, s.o.RequestTimeout}
	options := []option.ClientOption{option.WithHTTPClient(hc), option.WithoutAuthentication()}
	if s.o.Emulator != "" {
		options = append(options, option.WithEndpoint(s.o.Emulator+"/storage/v1/"))
	}
	service, err := gcs.NewService(context.WithoutCancel(ctx), options...)
	if err != nil {
		return nil, fmt.Errorf("cannot set up the client: %w", err)
	}
	service.UserAgent = "walden"
	s.service = service.Objects
	return s.service, nil
}

// newTransport builds connections of which every wait has a limit: for the connection, for TLS, and, by the
// connection's rolling deadline, for each next byte in either direction.
func (s *Store) newTransport() *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return storage.LimitStalls(conn, s.o.StallTimeout), nil
		},
		TLSHandshakeTimeout: tlsHandshakeTimeout,
		IdleConnTimeout:     min(idleConnTimeout, s.o.StallTimeout),
		MaxIdleConnsPerHost: 2 * s.o.Concurrency,
		DisableCompression:  true, // bytes as stored
		ReadBufferSize:      networkBufferSize,
		WriteBufferSize:     networkBufferSize,
		// HTTP/2 would send all uploads over one connection, which is slower and stalls as a whole.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

// transport sees every request: it limits its time, tells the stall limit what moves and notes the session of an upload.
type transport struct {
	next  http.RoundTripper
	limit time.Duration
}

// sessionKey is what a context may hold for the transport: a *session.
type sessionKey struct{}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	caller := req.Context()
	ctx, cancel := context.WithCancelCause(caller)
	timer := time.AfterFunc(t.limit, func() { cancel(&timeoutError{t.limit}) })
	end := func() {
		timer.Stop()
		cancel(nil)
	}
	req = req.Clone(ctx)
	query := req.URL.Query()
	isDownload := query.Get("alt") == "media"
	if isDownload {
		// Bytes as stored, also of objects that are marked as compressed: without it the service decompresses them.
		req.Header.Set("Accept-Encoding", "gzip")
	}
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &movingBody{req.Body, caller}
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		err = timedOut(ctx, err)
		end()
		return nil, err
	}
	if u, ok := caller.Value(sessionKey{}).(*session); ok && query.Get("uploadType") == "resumable" && u.uri == "" {
		u.uri, u.client = resp.Header.Get("Location"), t
	}
	resp.Body = &answer{resp.Body, ctx, end}
	if isDownload && resp.StatusCode < http.StatusMultipleChoices {
		timer.Stop() // from here on Read and the stall limit count
	}
	return resp, nil
}

// timeoutError is the end of a request that took too long as a whole.
type timeoutError struct{ limit time.Duration }

func (e *timeoutError) Error() string { return fmt.Sprintf("no answer within %s", e.limit) }

// Timeout is true, as for the errors of package net.
func (e *timeoutError) Timeout() bool { return true }

// Hint names the setting of the limit.
func (e *timeoutError) Hint() string { return "GCS_CONTEXT_TIMEOUT sets the limit" }

// timedOut puts the timeout in the place of the cancellation that it led to.
func timedOut(ctx context.Context, err error) error {
	if e, ok := errors.AsType[*timeoutError](context.Cause(ctx)); ok && err != nil && err != io.EOF {
		return e
	}
	return err
}

// movingBody tells the stall limit of the upload that bytes are on their way.
type movingBody struct {
	io.ReadCloser
	ctx context.Context // of the upload
}

// Read implements io.Reader.
func (b *movingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		storage.Moved(b.ctx)
	}
	return n, err
}

// answer is the body of a response, with which the request's time ends.
type answer struct {
	io.ReadCloser
	ctx context.Context
	end func()
}

// Read implements io.Reader.
func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	return n, timedOut(a.ctx, err)
}

// Close implements io.Closer.
func (a *answer) Close() error {
	err := a.ReadCloser.Close()
	a.end()
	return err
}

// credentials are looked for when they are first needed, and again when the service or the issuer of tokens has refused
// them: whoever renews a key writes the new one to the file, while the library keeps the old one for ever.
type credentials struct {
	file   string
	client *http.Client // for tokens

	mu    sync.Mutex
	found *auth.Credentials // nil: not looked for yet, or refused
}

func newCredentials(file string, transport *http.Transport) (*credentials, error) {
	c := &credentials{file: file, client: &http.Client{Transport: transport, Timeout: tokenTimeout}}
	if file == "" {
		return c, nil
	}
	var err error
	c.found, err = c.load()
	return c, err
}

// load reads the file, or asks the default chain.
func (c *credentials) load() (*auth.Credentials, error) {
	o := &google.DetectOptions{
		Scopes: []string{gcs.DevstorageReadWriteScope}, Client: c.client,
		DisableAsyncRefresh: true, // no goroutine may outlive the request that needs a token
	}
	if c.file == "" {
		found, err := google.DetectDefault(o)
		if err != nil {
			return nil, &credentialsError{err, true}
		}
		return found, nil
	}
	data, err := os.ReadFile(c.file)
	if err != nil {
		return nil, &credentialsError{fmt.Errorf("cannot read the credentials file: %w", err), true}
	}
	var kind struct {
		Type google.CredType `json:"type"`
	}
	if err := json.Unmarshal(data, &kind); err != nil {
		return nil, &credentialsError{fmt.Errorf("credentials file %s is not in JSON", c.file), true}
	}
	found, err := google.NewCredentialsFromJSON(kind.Type, data, o)
	if err != nil {
		return nil, &credentialsError{fmt.Errorf("cannot use credentials file %s: %w", c.file, err), true}
	}
	return found, nil
}

// find returns credentials whose tokens come from whatever is current.
func (c *credentials) find(ctx context.Context) (*auth.Credentials, error) {
	found, err := c.current()
	if err != nil {
		return nil, err
	}
	return auth.NewCredentials(&auth.CredentialsOptions{
		TokenProvider:          c,
		QuotaProjectIDProvider: auth.CredentialsPropertyFunc(found.QuotaProjectID),
		UniverseDomainProvider: auth.CredentialsPropertyFunc(found.UniverseDomain),
	}), ctx.Err()
}

func (c *credentials) current() (*auth.Credentials, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.found == nil {
		found, err := c.load()
		if err != nil {
			return nil, err
		}
		c.found = found
	}
	return c.found, nil
}

// Token implements auth.TokenProvider.
func (c *credentials) Token(ctx context.Context) (*auth.Token, error) {
	found, err := c.current()
	if err != nil {
		return nil, err
	}
	token, err := found.Token(ctx)
	if err == nil || ctx.Err() != nil {
		return token, err
	}
	refusal, ok := errors.AsType[*auth.Error](err)
	if !ok || refusal.Response == nil || !storage.PermanentStatus(refusal.Response.StatusCode) {
		return nil, &credentialsError{err, false}
	}
	// Such a refusal is repeated by nobody but the next operation, for which the file is read again.
	c.renew(found)
	if found, err = c.current(); err != nil {
		return nil, err
	}
	if token, err = found.Token(ctx); err != nil && ctx.Err() == nil {
		return nil, &credentialsError{err, true}
	}
	return token, err
}

// renew makes the next request look for credentials, and so for a token, if used are still the current ones.
func (c *credentials) renew(used *auth.Credentials) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if used == c.found || used == nil {
		c.found = nil
	}
}

// credentialsError is a failure to obtain credentials or a token.
type credentialsError struct {
	err       error
	permanent bool
}

func (e *credentialsError) Error() string { return e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// patience decides whether and when a failed request is repeated. One belongs to one operation, whose requests follow each
// other.
type patience struct {
	s       *Store
	ctx     context.Context // of the operation: the library's decision has none
	limit   int
	failed  int  // since something was achieved
	renewed bool // the credentials
	// eachCounts: a request that succeeds is something achieved, as in an upload; of a download only bytes are.
	eachCounts bool
	last       error // the failure after which the operation was to go on
}

// fewRetries is for requests on which a user waits for the answer, or whose failure matters little.
const fewRetries = 2

func (s *Store) patience(ctx context.Context, limit int) *patience {
	return &patience{s: s, ctx: ctx, limit: min(limit, s.o.MaxRetries)}
}

// try repeats a request until it succeeds or p has had enough.
func (p *patience) try(request func() error) error {
	for {
		err := request()
		if err == nil || !p.again(err) {
			return err
		}
	}
}

// again tells whether to repeat what failed with err, after it has waited for the right time. In the course of an upload the
// library asks it about successes, too.
func (p *patience) again(err error) bool {
	if err == nil {
		if p.eachCounts {
			p.progress()
		}
		return false
	}
	if !p.s.repeatable(err) && !p.renew(err) || p.ctx.Err() != nil || p.failed >= p.limit {
		return false
	}
	p.last = err
	wait := p.s.backoff(p.failed, throttled(err))
	p.failed++
	if p.s.o.OnRetry != nil {
		p.s.o.OnRetry(p.s.explain(err), wait)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.ctx.Done():
		return false
	}
}

// renew takes new credentials once for those that the service does not know any more.
func (p *patience) renew(err error) bool {
	if statusCode(err) != http.StatusUnauthorized || p.renewed || p.s.credentials == nil {
		return false
	}
	p.renewed = true
	p.s.credentials.renew(nil)
	return true
}

// progress starts counting again.
func (p *patience) progress() { p.failed = 0 }

// verdict adds to the end of the operation's context how the last attempt had failed.
func (p *patience) verdict(err error) error {
	if err != nil && p.ctx.Err() != nil && p.last != nil {
		return &interruptedError{p.ctx.Err(), p.last}
	}
	return err
}

// interruptedError is the end of a context before a request could be repeated that had failed.
type interruptedError struct{ err, last error }

func (e *interruptedError) Error() string { return e.err.Error() }
func (e *interruptedError) Unwrap() error { return e.err }

const maxOrdinaryDelay = 20 * time.Second

// backoff doubles the delay with each failure and takes a random part of it, between half and whole, so that clients do
// not come back all at once.
func (s *Store) backoff(failed int, throttled bool) time.Duration {
	first, limit := s.o.MinRetryDelay/10, min(s.o.MaxRetryDelay, maxOrdinaryDelay)
	if throttled {
		first, limit = s.o.MinRetryDelay, s.o.MaxRetryDelay
	}
	delay := limit
	if failed < 30 && first<<failed < limit {
		delay = first << failed
	}
	return delay/2 + rand.N(delay/2+1)
}

// throttled tells whether the service asked to slow down.
func throttled(err error) bool {
	status := statusCode(err)
	return status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable || rateLimited(err)
}

// rateLimited tells the refusals for too many requests from those for lack of a permission, which share a status.
func rateLimited(err error) bool {
	return slices.ContainsFunc(reasons(err), func(r string) bool { return strings.HasSuffix(strings.ToLower(r), "ratelimitexceeded") })
}

// repeatable tells whether the same request may succeed the next time. Status codes: "HTTP status and error codes for JSON"
// and "Retry strategy" of the Cloud Storage documentation.
func (s *Store) repeatable(err error) bool {
	if e, ok := errors.AsType[*credentialsError](err); ok {
		return !e.permanent
	}
	if e, ok := answerOf(err); ok {
		return e.Code >= http.StatusBadRequest && !storage.PermanentStatus(e.Code) || rateLimited(err)
	}
	_, isCause := errors.AsType[*storage.Cause](err)
	return !isCause && !tlsProblem(err) && contextText(err) == "" && brokenOff(err)
}

// brokenOff tells whether there was no answer, or only a part of one.
func brokenOff(err error) bool {
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
}
