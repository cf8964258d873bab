package cli

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"strings"
)

// lineHandler is a slog.Handler whose lines a function makes: those of another tool. Each record is one Write.
type lineHandler struct {
	out        io.Writer
	least      slog.Leveler
	render     func(r slog.Record, attributes []slog.Attr) string
	attributes []slog.Attr
}

// Enabled implements slog.Handler.
func (h *lineHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.least.Level()
}

// Handle implements slog.Handler.
func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	attributes := slices.Clone(h.attributes)
	r.Attrs(func(a slog.Attr) bool {
		attributes = append(attributes, a)
		return true
	})
	text := h.render(r, attributes)
	if text == "" {
		return nil
	}
	_, err := io.WriteString(h.out, text)
	return err
}

// WithAttrs implements slog.Handler.
func (h *lineHandler) WithAttrs(attributes []slog.Attr) slog.Handler {
	other := *h
	other.attributes = slices.Concat(h.attributes, attributes)
	return &other
}

// WithGroup implements slog.Handler. walden's log has no groups; their names would be lost.
func (h *lineHandler) WithGroup(string) slog.Handler { return h }

// withAttributes is a message with what belongs to it, as in "archived seg=… size=…".
func withAttributes(message string, attributes []slog.Attr) string {
	var s strings.Builder
	s.WriteString(printableError(message))
	for _, a := range attributes {
		value := printable(a.Value.Resolve().String(), maxMessage)
		if strings.ContainsAny(value, " \"=") {
			value = `"` + strings.ReplaceAll(value, `"`, `\"`) + `"`
		}
		s.WriteString(" " + a.Key + "=" + value)
	}
	return s.String()
}
