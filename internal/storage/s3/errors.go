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

// fail completes an error: what was to be done, with which object, where, and why it did not work.
func (s *Store) fail(verb, key string, err error) error { return s.explain(err).Fail(verb, key, s) }

// explain turns an error of the SDK into a cause. Codes: "Error Responses" in the Amazon S3 API Reference. Answers
// to HEAD have no body, so there the status stands for the code.
func (s *Store) explain(err error) *storage.Cause {
	if c, ok := errors.AsType[*storage.Cause](err); ok {
		return c
	}
	if text := contextText(err); text != "" {
		c := &storage.Cause{Text: text, Err: err}
		if e, ok := errors.AsType[*interruptedError](err); ok {
			c.Last = s.explain(e.last)
			c.Text, c.Advice = text+"; the last attempt failed: "+c.Last.Text, c.Last.Advice
		}
		return c
	}
	if errors.Is(err, errNotRenewed) {
		return &storage.Cause{
			Text: "the credentials are not valid any more: " + errNotRenewed.Error(), Err: err, Permanent: true,
			Advice: "renew the credentials where they come from: file, identity token or role",
		}
	}
	if e, ok := errors.AsType[*credentialsError](err); ok {
		return &storage.Cause{
			Text: "no credentials: " + e.Error(), Err: err,
			Advice: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role",
		}
	}
	status, code, message := statusCode(err), errorCode(err), errorMessage(err)
	c := &storage.Cause{Err: err, Permanent: storage.PermanentStatus(status)}
	switch {
	case code == "NoSuchBucket":
		c.Text = fmt.Sprintf("bucket %q does not exist", s.o.Bucket)
		c.Advice = "check the storage prefix and the endpoint, or create the bucket"
	case isMissing(err):
		c.Text, c.Is, c.Permanent = "object does not exist", fs.ErrNotExist, false
	case code == "InvalidAccessKeyId", code == "XAdminUserNotFound": // the latter from versitygw
		c.Text = "the service does not know the access key"
		c.Advice = "check AWS_ACCESS_KEY_ID and the endpoint"
	case code == "SignatureDoesNotMatch":
		c.Text = "the service does not accept the signature"
		c.Advice = "check AWS_SECRET_ACCESS_KEY and AWS_REGION"
	case expired(code): // an unknown access key was told above
		c.Text = "the session token has expired or is not valid"
		c.Advice = "obtain new credentials; set AWS_SESSION_TOKEN together with the keys it belongs to"
	case code == "RequestTimeTooSkewed":
		c.Text = "the clock of this machine differs too much from the service's"
		c.Advice = "synchronise the clock"
	case wrongRegion(status, code):
		c.Text = s.wrongRegionText(regionHeader(err))
		c.Advice = "set AWS_REGION to the bucket's region, and AWS_ENDPOINT to its endpoint if it is set"
		c.Permanent = true
	case code == "InvalidObjectState":
		c.Text = "the object is archived and cannot be read at once"
		c.Advice = "restore it from the archive storage class first"
	case code == "InvalidStorageClass":
		c.Text = fmt.Sprintf("the service does not know storage class %q", s.o.StorageClass)
		c.Advice = "check S3_STORAGE_CLASS"
	case code == "AccessDenied", status == http.StatusForbidden && (code == "" || code == "Forbidden"):
		c.Text, c.Is = "access denied", fs.ErrPermission
		if message != "" && !strings.EqualFold(strings.TrimRight(message, "."), "access denied") &&
			message != "Forbidden" {
			c.Text += ": " + message
		}
		c.Advice = "grant s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload and s3:ListBucket; " +
			"without s3:ListBucket S3 reports missing objects as refused ones"
	case code != "":
		c.Text = fmt.Sprintf("%s: %s%s", code, message, answer(err))
	case garbled(err) != nil:
		c.Text = "the answer cannot be read: " + garbled(err).Error() + answer(err)
		c.Advice = "something may answer in the service's place: check AWS_ENDPOINT and the proxies between here and there"
	case tlsProblem(err):
		c.Text, c.Permanent = innermost(err).Error(), true
		c.Advice = "check the scheme of AWS_ENDPOINT; for a private authority set S3_CA_CERT_FILE"
	default:
		c.Text = innermost(err).Error() + answer(err)
		if _, ok := errors.AsType[*net.DNSError](err); ok {
			c.Advice = "check the host name in AWS_ENDPOINT, and the name servers of this machine"
		} else if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
			c.Advice = "check the network and AWS_ENDPOINT"
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
