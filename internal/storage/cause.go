package storage

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
)

// Cause is why a service did not do what it was asked, in the words of an operator. The error of the service's library stays
// reachable but is not printed: its text names the library's operations and repeats itself.
type Cause struct {
	Text, Advice string // Advice is the hint, empty for none
	Permanent    bool   // trying again does not help
	Is           error  // fs.ErrNotExist, fs.ErrPermission or ErrExists, where the cause means that
	Err          error
	Last         *Cause // of the attempt before the context ended; nil: none
}

// Error returns Text.
func (c *Cause) Error() string { return c.Text }

// LastFailure is what the function [LastFailure] looks for.
func (c *Cause) LastFailure() error {
	if c.Last == nil {
		return nil
	}
	return c.Last
}

// Hint is what the operator can try next, or empty.
func (c *Cause) Hint() string {
	if hinter, ok := errors.AsType[interface {
		error
		Hint() string
	}](c.Err); c.Advice == "" && ok {
		return hinter.Hint()
	}
	return c.Advice
}

// During adds what was being done.
func (c *Cause) During(doing string) *Cause {
	return &Cause{Text: doing + ": " + c.Text, Advice: c.Advice, Permanent: c.Permanent, Is: c.Is, Err: c.Err, Last: c.Last}
}

// And adds a failure that followed.
func (c *Cause) And(next *Cause) *Cause {
	advice := cmp.Or(c.Advice, next.Advice)
	if next.Advice != "" && next.Advice != advice {
		advice += "; " + next.Advice
	}
	return &Cause{
		Text: c.Text + "; " + next.Text, Advice: advice,
		Permanent: c.Permanent, Is: c.Is, Err: errors.Join(c.Err, next.Err), Last: c.Last,
	}
}

// Unwrap returns what the cause means and the library's error.
func (c *Cause) Unwrap() []error {
	var all []error
	for _, err := range []error{c.Is, c.Err} {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

// Fail completes the cause: what was to be done, with which object ("" for none), where, and why it did not work.
func (c *Cause) Fail(verb, key string, where fmt.Stringer) error {
	object := where.String()
	if key != "" {
		object = fmt.Sprintf("%q %s %s", key, preposition(verb), where)
	}
	wrapped := fmt.Errorf("cannot %s %s: %w", verb, object, c)
	if c.Permanent {
		return Permanent(wrapped)
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

// PermanentStatus tells whether the same request would be answered with the same HTTP status again.
func PermanentStatus(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	case http.StatusNotImplemented:
		return true
	}
	return status >= 400 && status < 500
}
