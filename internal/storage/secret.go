package storage

import (
	"fmt"
	"io"
	"log/slog"
)

// Secret is a string in the options of a backend that no formatting verb, logger or encoder shows.
type Secret string

// Format writes a mask whatever the verb; an empty secret stays visible as empty.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.mask()) }

// LogValue masks the secret for slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.mask()) }

// MarshalText masks the secret for encoding/json and other encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.mask()), nil }

func (s Secret) mask() string {
	if s == "" {
		return ""
	}
	return "***"
}
