package s3

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"gitlab.com/walden-pg/walden/internal/storage"
)

const (
	dialTimeout         = 20 * time.Second
	tlsHandshakeTimeout = 20 * time.Second
	idleConnTimeout     = 90 * time.Second
	networkBufferSize   = 128 << 10

	// Temporary credentials are renewed this long before they end, so that a request signed now is still valid
	// when its body has been sent.
	credentialsWindow = 5 * time.Minute

	// The region that answers for buckets of all regions of the main AWS partition.
	defaultRegion = "us-east-1"
)

// newClient loads the SDK's configuration (files and environment, no network) and lays o over it.
func (s *Store) newClient(ctx context.Context) (*s3.Client, error) {
	o := s.o
	cfg, err := LoadConfig(ctx, o)
	if err != nil {
		return nil, err
	}
	httpClient, err := newHTTPClient(cfg, o)
	if err != nil {
		return nil, err
	}
	provider := &renewedCredentials{provider: cfg.Credentials, load: func(ctx context.Context) (aws.CredentialsProvider, error) {
		cfg, err := LoadConfig(ctx, o)
		return cfg.Credentials, err
	}}
	if o.AccessKeyID != "" && o.RoleARN == "" {
		provider.load = nil
	}
	client := s3.NewFromConfig(cfg, func(so *s3.Options) {
		so.HTTPClient = httpClient
		so.UsePathStyle = o.PathStyle
		so.Credentials = provider
		so.Retryer = s.newRetryer(provider)
		so.APIOptions = append(so.APIOptions, rememberFailures)
		// The SDK's defaults would add checksums in the form of HTTP trailers, which many services refuse; this
		// package computes the checksums itself and sends them as headers.
		so.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		so.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		so.DisableLogOutputChecksumValidationSkipped = true
		if o.Endpoint != "" {
			so.BaseEndpoint = aws.String(o.Endpoint)
		}
		if o.DualStack {
			so.EndpointOptions.UseDualStackEndpoint = aws.DualStackEndpointStateEnabled
		}
		if o.DisableContinue {
			so.ContinueHeaderThresholdBytes = -1
		}
		for name, value := range o.AdditionalHeaders {
			so.APIOptions = append(so.APIOptions, smithyhttp.SetHeaderValue(name, value))
		}
	})
	if client.Options().Region == "" && !isAWS(client) {
		client = withRegion(client, defaultRegion)
	}
	return client, nil
}

// LoadConfig loads the SDK's configuration (files and environment, no network) and lays region and credentials of o over it. It
// serves other services of AWS, too.
func LoadConfig(ctx context.Context, o Options) (aws.Config, error) {
	options := []func(*config.LoadOptions) error{
		config.WithLogger(logging.Nop{}),
		config.WithAppID("walden"),
		config.WithCredentialsCacheOptions(refreshEarly),
	}
	if o.Region != "" {
		options = append(options, config.WithRegion(o.Region))
	}
	if o.Profile != "" {
		options = append(options, config.WithSharedConfigProfile(o.Profile))
	}
	if o.SharedCredentialsFile != "" {
		options = append(options, config.WithSharedCredentialsFiles([]string{o.SharedCredentialsFile}))
	}
	if o.ConfigFile != "" {
		options = append(options, config.WithSharedConfigFiles([]string{o.ConfigFile}))
	}
	if o.AccessKeyID != "" {
		static := credentials.NewStaticCredentialsProvider(
			o.AccessKeyID, string(o.SecretAccessKey), string(o.SessionToken))
		options = append(options, config.WithCredentialsProvider(static))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return cfg, fmt.Errorf("cannot load the AWS configuration: %w", err)
	}
	if o.RoleARN == "" {
		return cfg, nil
	}
	if o.AccessKeyID == "" {
		env, err := config.NewEnvConfig()
		if err != nil {
			return cfg, fmt.Errorf("cannot load the AWS environment: %w", err)
		}
		o.WebIdentityTokenFile = cmp.Or(o.WebIdentityTokenFile, env.WebIdentityTokenFilePath)
	}
	stsConfig := cfg
	if stsConfig.Region == "" {
		stsConfig.Region = defaultRegion
	}
	service := sts.NewFromConfig(stsConfig)
	var role aws.CredentialsProvider
	if o.WebIdentityTokenFile != "" {
		role = stscreds.NewWebIdentityRoleProvider(service, o.RoleARN,
			stscreds.IdentityTokenFile(o.WebIdentityTokenFile),
			func(wo *stscreds.WebIdentityRoleOptions) { wo.RoleSessionName = o.RoleSessionName })
	} else {
		role = stscreds.NewAssumeRoleProvider(service, o.RoleARN,
			func(ao *stscreds.AssumeRoleOptions) {
				if o.RoleSessionName != "" {
					ao.RoleSessionName = o.RoleSessionName
				}
			})
	}
	cfg.Credentials = aws.NewCredentialsCache(role, refreshEarly)
	return cfg, nil
}

func refreshEarly(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = credentialsWindow }

// renewedCredentials are read anew from their source (files, environment, identity token, instance metadata) when the
// service has refused them as expired: the SDK keeps credentials of a file, which name no end of validity, for ever,
// while whoever renews them writes new ones to the file. It also marks failures to obtain credentials, which the SDK
// reports like any other failed request.
type renewedCredentials struct {
	load func(context.Context) (aws.CredentialsProvider, error) // nil: the source is the settings

	mu       sync.Mutex
	provider aws.CredentialsProvider
	last     aws.Credentials
	refused  bool      // the service called some of ours expired
	renewed  time.Time // zero: never
}

// renewalGrace is how long refusals may still come in for what was signed with the credentials before.
const renewalGrace = time.Minute

// Retrieve implements aws.CredentialsProvider.
func (c *renewedCredentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	value, err := c.retrieve(ctx)
	if err != nil && ctx.Err() == nil {
		err = &credentialsError{err}
	}
	return value, err
}

func (c *renewedCredentials) retrieve(ctx context.Context) (aws.Credentials, error) {
	if c.refused {
		provider, err := c.load(ctx)
		if err != nil {
			return aws.Credentials{}, err
		}
		value, err := provider.Retrieve(ctx)
		if err != nil {
			return value, err
		}
		same := value.AccessKeyID == c.last.AccessKeyID && value.SecretAccessKey == c.last.SecretAccessKey &&
			value.SessionToken == c.last.SessionToken
		if same && (c.renewed.IsZero() || time.Since(c.renewed) > renewalGrace) {
			return value, errNotRenewed
		}
		if !same {
			c.renewed = time.Now()
		}
		c.refused, c.provider = false, provider
	}
	value, err := c.provider.Retrieve(ctx)
	if err == nil {
		c.last = value
	}
	return value, err
}

// retryable tells whether a request is worth repeating with credentials that are read anew.
func (c *renewedCredentials) retryable(err error) aws.Ternary {
	if c.load == nil || !expired(errorCode(err)) {
		return aws.UnknownTernary
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused = true
	return aws.TrueTernary
}

// errNotRenewed is the end when the source has no other credentials than those that were refused.
var errNotRenewed = errors.New("the service refused them as expired or unknown, and their source holds no newer ones")

func expired(code string) bool {
	switch code {
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId":
		return true
	}
	return false
}

type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// newHTTPClient builds the client of this store. Every wait has a limit: for the connection, for TLS, and, by
// the connection's rolling deadline, for each next byte in either direction, which covers the response header.
func newHTTPClient(cfg aws.Config, o Options) (aws.HTTPClient, error) {
	base, ok := cfg.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		base = awshttp.NewBuildableClient()
	}
	transport := base.GetTransport() // a copy, with the certificates of AWS_CA_BUNDLE
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return storage.LimitStalls(conn, o.StallTimeout), nil
	}
	transport.TLSHandshakeTimeout = tlsHandshakeTimeout
	transport.IdleConnTimeout = min(idleConnTimeout, o.StallTimeout)
	transport.MaxIdleConnsPerHost = max(transport.MaxIdleConnsPerHost, 2*o.Concurrency)
	transport.MaxIdleConns = max(transport.MaxIdleConns, 2*transport.MaxIdleConnsPerHost)
	transport.DisableCompression = true // bytes as stored
	transport.ReadBufferSize, transport.WriteBufferSize = networkBufferSize, networkBufferSize
	// HTTP/2 would send all parts over one connection, which is slower and stalls as a whole.
	transport.ForceAttemptHTTP2 = false
	transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	if o.CACertFile != "" {
		if err := trust(transport, o.CACertFile); err != nil {
			return nil, err
		}
	}
	client := &http.Client{
		Transport: transport,
		// A redirect means another region, where this signature is worth nothing: errors.go explains it.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if o.LogRequests != nil {
		return loggingClient{client, o.LogRequests}, nil
	}
	return client, nil
}

func trust(transport *http.Transport, file string) error {
	pem, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("cannot read CA certificates: %w", err)
	}
	if transport.TLSClientConfig == nil {
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	pool := transport.TLSClientConfig.RootCAs
	if pool == nil {
		if pool, err = x509.SystemCertPool(); err != nil {
			return fmt.Errorf("cannot load the system's CA certificates: %w", err)
		}
	}
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("cannot read CA certificates: no PEM certificate in %s", file)
	}
	transport.TLSClientConfig.RootCAs = pool
	return nil
}

// loggingClient tells about requests without their headers, which carry credentials.
type loggingClient struct {
	aws.HTTPClient
	log *slog.Logger
}

func (c loggingClient) Do(r *http.Request) (*http.Response, error) {
	start := time.Now()
	resp, err := c.HTTPClient.Do(r)
	attrs := []any{"method", r.Method, "host", r.URL.Host, "path", r.URL.Path, "bytes", r.ContentLength,
		"duration", time.Since(start)}
	if err != nil {
		attrs = append(attrs, "error", err)
	} else {
		attrs = append(attrs, "status", resp.StatusCode)
	}
	c.log.DebugContext(r.Context(), "s3 request", attrs...)
	return resp, err
}

// newRetryer retries what may succeed the next time. The SDK's token bucket is off: it would fail a backup of
// hours because of a few dozen hiccups, although each single request has its own limit.
func (s *Store) newRetryer(credentials *renewedCredentials) aws.Retryer {
	o := s.o
	return retry.NewStandard(func(so *retry.StandardOptions) {
		so.MaxAttempts = o.MaxRetries + 1
		so.RateLimiter = ratelimit.None
		so.Backoff = retry.BackoffDelayerFunc(func(attempt int, err error) (time.Duration, error) {
			if overloaded(so.Throttles, err) {
				s.window.slowDown()
			}
			wait, backoffErr := backoff{o.MinRetryDelay, o.MaxRetryDelay, retry.IsErrorThrottles(so.Throttles)}.
				BackoffDelay(attempt, err)
			if o.OnRetry != nil && backoffErr == nil {
				o.OnRetry(s.explain(err), wait)
			}
			return wait, backoffErr
		})
		so.Retryables = append([]retry.IsErrorRetryable{retry.IsErrorRetryableFunc(noTLS)}, so.Retryables...)
		so.Retryables = append(so.Retryables,
			retry.IsErrorRetryableFunc(brokenAnswer),
			retry.IsErrorRetryableFunc(credentials.retryable),
			retry.RetryableHTTPStatusCode{Codes: map[int]struct{}{
				http.StatusRequestTimeout: {}, http.StatusTooManyRequests: {},
			}},
			retry.RetryableErrorCode{Codes: map[string]struct{}{
				"InternalError": {}, "ServiceUnavailable": {},
				// Damaged on the way; the buffer is still good.
				"BadDigest": {}, "XAmzContentChecksumMismatch": {}, "IncompleteBody": {},
				// Another writer or a deletion is in progress; the next attempt is told the outcome.
				"ConditionalRequestConflict": {}, "OperationAborted": {},
			}})
	})
}

// overloaded tells of a failure that less requests at a time may prevent: the service asks for it, or does not answer in time.
func overloaded(throttles []retry.IsErrorThrottle, err error) bool {
	var timeout interface{ Timeout() bool }
	return retry.IsErrorThrottles(throttles).IsErrorThrottle(err).Bool() ||
		statusCode(err) == http.StatusServiceUnavailable || statusCode(err) == http.StatusTooManyRequests ||
		errors.As(err, &timeout) && timeout.Timeout()
}

// rememberFailures keeps the failure of the last attempt for when the context ends while it is to be repeated: the SDK
// then tells of the context's end only.
func rememberFailures(stack *middleware.Stack) error {
	const loop = "Retry" // the ID of retry.Attempt
	type key struct{}
	outer := middleware.FinalizeMiddlewareFunc("walden:LastFailure",
		func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (
			middleware.FinalizeOutput, middleware.Metadata, error) {
			var last error
			out, metadata, err := next.HandleFinalize(context.WithValue(ctx, key{}, &last), in)
			if err != nil && last != nil && contextText(err) != "" {
				err = &interruptedError{err, last}
			}
			return out, metadata, err
		})
	inner := middleware.FinalizeMiddlewareFunc("walden:Failure",
		func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (
			middleware.FinalizeOutput, middleware.Metadata, error) {
			out, metadata, err := next.HandleFinalize(ctx, in)
			if last, ok := ctx.Value(key{}).(*error); ok && err != nil && contextText(err) == "" {
				*last = err
			}
			return out, metadata, err
		})
	if err := stack.Finalize.Insert(outer, loop, middleware.Before); err != nil {
		return err
	}
	return stack.Finalize.Insert(inner, loop, middleware.After)
}

// interruptedError is the end of a context before a request could be repeated that had failed.
type interruptedError struct{ err, last error }

func (e *interruptedError) Error() string { return e.err.Error() }
func (e *interruptedError) Unwrap() error { return e.err }

// noTLS stops retries where TLS itself is the problem: the SDK retries all failures to connect.
func noTLS(err error) aws.Ternary {
	if tlsProblem(err) {
		return aws.FalseTernary
	}
	return aws.UnknownTernary
}

func tlsProblem(err error) bool {
	var verification *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	return errors.As(err, &verification) || errors.As(err, &header) || errors.Is(err, http.ErrSchemeMismatch)
}

func brokenAnswer(err error) aws.Ternary {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return aws.TrueTernary
	}
	return aws.UnknownTernary
}

// backoff doubles the delay with each attempt and takes a random part of it, between half and whole, so that
// clients do not come back all at once.
type backoff struct {
	min, max  time.Duration
	throttled retry.IsErrorThrottle
}

const maxOrdinaryDelay = 20 * time.Second

// BackoffDelay implements retry.BackoffDelayer.
func (b backoff) BackoffDelay(attempt int, err error) (time.Duration, error) {
	first, limit := b.min/10, min(b.max, maxOrdinaryDelay)
	if b.throttled.IsErrorThrottle(err).Bool() {
		first, limit = b.min, b.max
	}
	delay := limit
	if attempt < 30 && first<<attempt < limit {
		delay = first << attempt
	}
	return delay/2 + rand.N(delay/2+1), nil
}

// fewAttempts is for requests on which a user waits for the answer, or whose failure matters little.
func fewAttempts(o *s3.Options) { o.RetryMaxAttempts = min(3, o.Retryer.MaxAttempts()) }

func isAWS(client *s3.Client) bool {
	endpoint := client.Options().BaseEndpoint
	if endpoint == nil {
		return true
	}
	u, err := url.Parse(*endpoint)
	return err == nil && (strings.HasSuffix(u.Hostname(), ".amazonaws.com") ||
		strings.HasSuffix(u.Hostname(), ".amazonaws.com.cn"))
}

func withRegion(client *s3.Client, region string) *s3.Client {
	return s3.New(client.Options(), func(o *s3.Options) { o.Region = region })
}

// client returns the SDK's client; the first call asks the bucket for its region if nothing else told it.
func (s *Store) client(ctx context.Context) (*s3.Client, error) {
	s.regionMu.Lock()
	defer s.regionMu.Unlock()
	if s.sdk.Options().Region != "" {
		return s.sdk, nil
	}
	region, err := s.bucketRegion(ctx)
	if err != nil {
		return nil, err
	}
	s.sdk = withRegion(s.sdk, region)
	return s.sdk, nil
}

// bucketRegion asks anonymously: S3 names the region even in answers that refuse the request.
func (s *Store) bucketRegion(ctx context.Context) (string, error) {
	anonymous := s3.New(s.sdk.Options(), func(o *s3.Options) {
		o.Region, o.Credentials = defaultRegion, aws.AnonymousCredentials{}
	})
	out, err := anonymous.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &s.o.Bucket}, fewAttempts)
	if err == nil && aws.ToString(out.BucketRegion) != "" {
		return *out.BucketRegion, nil
	}
	if region := regionHeader(err); region != "" {
		return region, nil
	}
	if err == nil {
		err = errors.New("the service does not tell")
	}
	return "", &storage.Cause{Text: "cannot find the region of the bucket: " + innermost(err).Error(), Advice: "set AWS_REGION", Err: err}
}
