// Package hint carries advice for the operator along with an error: what to try next. The advice is no part of the error's
// text; the command line prints it below the message.
package hint

import "slices"

// With returns err with advice. It unwraps to err.
func With(err error, advice string) error { return &hinted{err, advice} }

type hinted struct {
	error
	advice string
}

func (h *hinted) Unwrap() error { return h.error }

// Hint is the advice.
func (h *hinted) Hint() string { return h.advice }

// Of collects the advice of err and of all that it wraps, each once: of errors made by With, and of any other error type
// with a method Hint() string.
func Of(err error) []string { return collect(err, nil) }

func collect(err error, found []string) []string {
	if err == nil {
		return found
	}
	if h, ok := err.(interface{ Hint() string }); ok {
		if advice := h.Hint(); advice != "" && !slices.Contains(found, advice) {
			found = append(found, advice)
		}
	}
	switch u := err.(type) { //nolint:errorlint // the whole tree is walked here
	case interface{ Unwrap() error }:
		return collect(u.Unwrap(), found)
	case interface{ Unwrap() []error }:
		for _, e := range u.Unwrap() {
			found = collect(e, found)
		}
	}
	return found
}
