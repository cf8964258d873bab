package gcs

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"

	"google.golang.org/api/googleapi"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// fail completes an error: what was to be done, with which object, where, and why it did not work.
func (s *Store) fail(verb, key string, err error) error { return s.explain(err).Fail(verb, key, s) }

// explain turns an error of the library into a cause. Reasons: "HTTP status and error codes for JSON" in the Cloud Storage
// documentation.
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
	if e, ok := errors.AsType[*credentialsError](err); ok {
		return &storage.Cause{
			Text: "no credentials: " + e.Error(), Err: err, Permanent: e.permanent,
			Advice: "set GOOGLE_APPLICATION_CREDENTIALS to a valid key file, run `gcloud auth application-default login`, " +
				"or give the machine a service account",
		}
	}
	status, message := statusCode(err), errorMessage(err)
	c := &storage.Cause{Err: err, Permanent: storage.PermanentStatus(status) && !rateLimited(err)}
	switch {
	case errors.Is(err, errNoBucket):
		c.Text = fmt.Sprintf("bucket %q does not exist", s.o.Bucket)
		c.Advice = "check the storage prefix, or create the bucket"
	case status == http.StatusNotFound:
		c.Text, c.Is, c.Permanent = "object does not exist", fs.ErrNotExist, false
	case status == http.StatusUnauthorized:
		c.Text = "the service does not accept the credentials" + told(message)
		c.Advice = "check GOOGLE_APPLICATION_CREDENTIALS: the key may have been deleted or disabled"
	case hasReason(err, "customerEncryptionKey"), hasReason(err, "EncryptedWithCustomerEncryptionKey"):
		c.Text = "the customer-supplied encryption key does not fit the object" + told(message)
		c.Advice = "check GCS_ENCRYPTION_KEY"
	case status == http.StatusForbidden && hasReason(err, "retention"):
		c.Text = "the bucket's retention does not allow it yet" + told(message)
	case status == http.StatusForbidden && !rateLimited(err):
		c.Text, c.Is = "access denied"+told(message), fs.ErrPermission
		c.Advice = "grant storage.objects.get, .create, .delete and .list, for example with the role Storage Object User; " +
			"without .list the service reports missing objects as refused ones"
	case status != 0:
		c.Text = fmt.Sprintf("HTTP %d %s%s%s", status, http.StatusText(status), told(message), request(err))
	case garbled(err):
		c.Text = "the answer cannot be read: " + innermost(err).Error()
		c.Advice = "something may answer in the service's place: check the proxies between here and there"
	case tlsProblem(err):
		c.Text, c.Permanent = innermost(err).Error(), true
		c.Advice = "check the proxies between here and there, and the certificates of this machine"
	default:
		c.Text = innermost(err).Error()
		if _, ok := errors.AsType[*net.DNSError](err); ok {
			c.Advice = "check the name servers of this machine"
		} else if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
			c.Advice = "check the network, and HTTPS_PROXY"
		}
	}
	return c
}

func told(message string) string {
	if message == "" {
		return ""
	}
	return ": " + strings.TrimRight(message, ".\n")
}

// contextText names the end of the caller's context. A connection that timed out claims to be a
// context.DeadlineExceeded, too, but is wrapped in a net.OpError.
func contextText(err error) string {
	_, network := errors.AsType[*net.OpError](err)
	_, timeout := errors.AsType[*timeoutError](err)
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled.Error()
	case errors.Is(err, context.DeadlineExceeded) && !network && !timeout:
		return context.DeadlineExceeded.Error()
	}
	return ""
}

func isMissing(err error) bool { return statusCode(err) == http.StatusNotFound }

// errNoBucket is the cause of a list that is missing: of an empty bucket there is one.
var errNoBucket = errors.New("bucket does not exist")

// answerOf returns the service's refusal. The library leaves the answers to downloads as they came.
func answerOf(err error) (*googleapi.Error, bool) {
	e, ok := errors.AsType[*googleapi.Error](err)
	if !ok || e.Message != "" || len(e.Errors) > 0 || e.Body == "" {
		return e, ok
	}
	var answer struct {
		Error struct {
			Message string
			Errors  []googleapi.ErrorItem
		}
	}
	if json.Unmarshal([]byte(e.Body), &answer) != nil {
		return e, true
	}
	return &googleapi.Error{Code: e.Code, Message: answer.Error.Message, Errors: answer.Error.Errors, Header: e.Header}, true
}

func statusCode(err error) int {
	if e, ok := answerOf(err); ok {
		return e.Code
	}
	return 0
}

// reasons are the words for programs in an answer.
func reasons(err error) (all []string) {
	if e, ok := answerOf(err); ok {
		for _, item := range e.Errors {
			all = append(all, item.Reason)
		}
	}
	return all
}

func hasReason(err error, part string) bool {
	for _, reason := range reasons(err) {
		if strings.Contains(strings.ToLower(reason), strings.ToLower(part)) {
			return true
		}
	}
	return false
}

func errorMessage(err error) string {
	if e, ok := answerOf(err); ok {
		return e.Message
	}
	return ""
}

// request names the upload or request by which the service's operators find it.
func request(err error) string {
	if e, ok := answerOf(err); ok {
		if id := e.Header.Get("X-Guploader-Uploadid"); id != "" {
			return fmt.Sprintf(" (request %s)", id)
		}
	}
	return ""
}

// garbled tells whether an answer was not understood.
func garbled(err error) bool {
	_, syntax := errors.AsType[*json.SyntaxError](err)
	_, kind := errors.AsType[*json.UnmarshalTypeError](err)
	return syntax || kind
}

func tlsProblem(err error) bool {
	_, verification := errors.AsType[*tls.CertificateVerificationError](err)
	_, header := errors.AsType[tls.RecordHeaderError](err)
	return verification || header || errors.Is(err, http.ErrSchemeMismatch)
}

// innermost strips the layers that name URLs from failures that no answer came with.
func innermost(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// statusError is the error of an answer that did not pass through the library.
func statusError(resp *http.Response) error {
	return &googleapi.Error{Code: resp.StatusCode, Header: resp.Header}
}
