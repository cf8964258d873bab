package s3

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// cause is what went wrong in the words of an operator. The SDK's error stays reachable but is not printed: its
// text names SDK operations and repeats itself.
type cause struct {
	text, hint string
	permanent  bool  // trying again does not help
	is         error // fs.ErrNotExist, fs.ErrPermission or storage.ErrExists, where the cause means that
	err        error
	last       *cause // of the attempt before the context ended; nil: none
}

func (c *cause) Error() string { return c.text }

// LastFailure is what [storage.LastFailure] looks for.
func (c *cause) LastFailure() error {
	if c.last == nil {
		return nil
	}
	return c.last
}

// Hint is what the operator can try next, or empty.
func (c *cause) Hint() string {
	if hinter, ok := errors.AsType[interface {
		error
		Hint() string
	}](c.err); c.hint == "" && ok {
		return hinter.Hint()
	}
	return c.hint
}

// during adds what was being done.
func (c *cause) during(doing string) *cause {
	return &cause{text: doing + ": " + c.text, hint: c.hint, permanent: c.permanent, is: c.is, err: c.err, last: c.last}
}

// and adds a failure that followed.
func (c *cause) and(next *cause) *cause {
	hint := orDefault(c.hint, next.hint)
	if next.hint != "" && next.hint != hint {
		hint += "; " + next.hint
	}
	return &cause{
		text: c.text + "; " + next.text, hint: hint,
		permanent: c.permanent, is: c.is, err: errors.Join(c.err, next.err), last: c.last,
	}
}

func (c *cause) Unwrap() []error {
	var all []error
	for _, err := range []error{c.is, c.err} {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

// fail completes an error: what was to be done, with which object, where, and why it did not work.
func (s *Store) fail(verb, key string, err error) error {
	c := s.explain(err)
	object := s.String()
	if key != "" {
		object = fmt.Sprintf("%q %s %s", key, preposition(verb), s)
	}
	wrapped := fmt.Errorf("cannot %s %s: %w", verb, object, c)
	if c.permanent {
		return storage.Permanent(wrapped)
	}
	return wrapped
}

func preposition(verb string) string {
	switch verb {
	case "get", "read", "delete":
		return "from"
	default:
		return "in"
	}
}

// explain turns an error of the SDK into a cause. Codes: "Error Responses" in the Amazon S3 API Reference. Answers
// to HEAD have no body, so there the status stands for the code.
func (s *Store) explain(err error) *cause {
	if c, ok := errors.AsType[*cause](err); ok {
		return c
	}
	if text := contextText(err); text != "" {
		c := &cause{text: text, err: err}
		if e, ok := errors.AsType[*interruptedError](err); ok {
			c.last = s.explain(e.last)
			c.text, c.hint = text+"; the last attempt failed: "+c.last.text, c.last.hint
		}
		return c
	}
	if errors.Is(err, errNotRenewed) {
		return &cause{
			text: "the credentials are not valid any more: " + errNotRenewed.Error(), err: err, permanent: true,
			hint: "renew the credentials where they come from: file, identity token or role",
		}
	}
	if e, ok := errors.AsType[*credentialsError](err); ok {
		return &cause{
			text: "no credentials: " + e.Error(), err: err,
			hint: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role",
		}
	}
	status, code, message := statusCode(err), errorCode(err), errorMessage(err)
	c := &cause{err: err, permanent: permanentStatus(status)}
	switch {
	case code == "NoSuchBucket":
		c.text = fmt.Sprintf("bucket %q does not exist", s.o.Bucket)
		c.hint = "check the storage prefix and the endpoint, or create the bucket"
	case isMissing(err):
		c.text, c.is, c.permanent = "object does not exist", fs.ErrNotExist, false
	case code == "InvalidAccessKeyId", code == "XAdminUserNotFound": // the latter from versitygw
		c.text = "the service does not know the access key"
		c.hint = "check AWS_ACCESS_KEY_ID and the endpoint"
	case code == "SignatureDoesNotMatch":
		c.text = "the service does not accept the signature"
		c.hint = "check AWS_SECRET_ACCESS_KEY and AWS_REGION"
	case expired(code): // an unknown access key was told above
		c.text = "the session token has expired or is not valid"
		c.hint = "obtain new credentials; set AWS_SESSION_TOKEN together with the keys it belongs to"
	case code == "RequestTimeTooSkewed":
		c.text = "the clock of this machine differs too much from the service's"
		c.hint = "synchronise the clock"
	case wrongRegion(status, code):
		c.text = s.wrongRegionText(regionHeader(err))
		c.hint = "set AWS_REGION to the bucket's region, and AWS_ENDPOINT to its endpoint if it is set"
		c.permanent = true
	case code == "InvalidObjectState":
		c.text = "the object is archived and cannot be read at once"
		c.hint = "restore it from the archive storage class first"
	case code == "InvalidStorageClass":
		c.text = fmt.Sprintf("the service does not know storage class %q", s.o.StorageClass)
		c.hint = "check S3_STORAGE_CLASS"
	case code == "AccessDenied", status == http.StatusForbidden && (code == "" || code == "Forbidden"):
		c.text, c.is = "access denied", fs.ErrPermission
		if message != "" && !strings.EqualFold(strings.TrimRight(message, "."), "access denied") &&
			message != "Forbidden" {
			c.text += ": " + message
		}
		c.hint = "grant s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload and s3:ListBucket; " +
			"without s3:ListBucket S3 reports missing objects as refused ones"
	case code != "":
		c.text = fmt.Sprintf("%s: %s%s", code, message, answer(err))
	case garbled(err) != nil:
		c.text = "the answer cannot be read: " + garbled(err).Error() + answer(err)
		c.hint = "something may answer in the service's place: check AWS_ENDPOINT and the proxies between here and there"
	case tlsProblem(err):
		c.text, c.permanent = innermost(err).Error(), true
		c.hint = "check the scheme of AWS_ENDPOINT; for a private authority set S3_CA_CERT_FILE"
	default:
		c.text = innermost(err).Error() + answer(err)
		if _, ok := errors.AsType[*net.DNSError](err); ok {
			c.hint = "check the host name in AWS_ENDPOINT, and the name servers of this machine"
		} else if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
			c.hint = "check the network and AWS_ENDPOINT"
		}
	}
	return c
}

// garbled returns why an answer was not understood, nil if it was or there was none.
func garbled(err error) error {
	if e, ok := errors.AsType[*smithy.DeserializationError](err); ok {
		return e.Err
	}
	return nil
}

func (s *Store) wrongRegionText(region string) string {
	s.regionMu.Lock()
	used := s.sdk.Options().Region
	s.regionMu.Unlock()
	if region == "" {
		return fmt.Sprintf("bucket %q is not in region %s", s.o.Bucket, used)
	}
	return fmt.Sprintf("bucket %q is in region %s, not in %s", s.o.Bucket, region, used)
}

func wrongRegion(status int, code string) bool {
	switch code {
	case "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException":
		return true
	}
	return status == http.StatusMovedPermanently || status == http.StatusTemporaryRedirect
}

// permanentStatus tells whether the same request would be answered the same way again.
func permanentStatus(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	case http.StatusNotImplemented:
		return true
	}
	return status >= 400 && status < 500
}

// contextText names the end of the caller's context. A connection that timed out claims to be a
// context.DeadlineExceeded, too, but is wrapped in a net.OpError.
func contextText(err error) string {
	_, network := errors.AsType[*net.OpError](err)
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled.Error()
	case errors.Is(err, context.DeadlineExceeded) && !network:
		return context.DeadlineExceeded.Error()
	}
	return ""
}

// isMissing tells whether the service said that the object does not exist. See Stat for answers to HEAD, which
// do not tell a missing object from a missing bucket.
func isMissing(err error) bool {
	code := errorCode(err)
	return code == "NoSuchKey" || code == "NotFound" || (code == "" && statusCode(err) == http.StatusNotFound)
}

func statusCode(err error) int {
	if e, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		return e.HTTPStatusCode()
	}
	return 0
}

func errorCode(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		// The SDK invents this code for answers it cannot read.
		if code := e.ErrorCode(); code != "UnknownError" {
			return code
		}
	}
	return ""
}

func errorMessage(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorMessage()
	}
	return ""
}

func regionHeader(err error) string {
	if e, ok := errors.AsType[*smithyhttp.ResponseError](err); ok && e.Response != nil {
		return e.Response.Header.Get("X-Amz-Bucket-Region")
	}
	return ""
}

// answer names status and request ID, by which the service's operators find the request.
func answer(err error) string {
	e, ok := errors.AsType[*smithyhttp.ResponseError](err)
	if !ok || e.Response == nil || e.HTTPStatusCode() == 0 {
		return ""
	}
	if id := e.Response.Header.Get("X-Amz-Request-Id"); id != "" {
		return fmt.Sprintf(" (HTTP %d, request %s)", e.HTTPStatusCode(), id)
	}
	return fmt.Sprintf(" (HTTP %d)", e.HTTPStatusCode())
}

// innermost strips the SDK's layers, which name operations and URLs, from failures that no answer came with.
func innermost(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*smithy.OperationError](err); ok {
		return e.Err
	}
	return err
}
