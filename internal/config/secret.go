package config

import (
	"fmt"
	"log/slog"
)

const mask = "***"

// Secret is a value that no formatting, logging or marshalling shows: all of them yield "***", or "" if nothing is
// set. Only [Secret.Reveal] gives the text.
type Secret struct {
	// A pointer, because fmt prints unexported fields of enclosing structs without calling any method: what shows
	// there is an address.
	text *string
}

// NewSecret hides text.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{text: &text}
}

// Reveal returns the hidden text, "" if nothing is set.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsSet tells whether there is anything to hide.
func (s Secret) IsSet() bool { return s.text != nil }

// String returns the mask.
func (s Secret) String() string {
	if s.text == nil {
		return ""
	}
	return mask
}

// GoString returns the mask, for %#v.
func (s Secret) GoString() string { return fmt.Sprintf("config.Secret(%q)", s.String()) }

// Format writes the mask whatever the verb, %x and %d included.
func (s Secret) Format(f fmt.State, verb rune) {
	text := s.String()
	if verb == 'v' && f.Flag('#') {
		text = s.GoString()
	}
	_, _ = f.Write([]byte(text)) // fmt.State keeps its own errors
}

// MarshalText returns the mask; it also serves JSON, YAML and TOML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalJSON returns the mask as a JSON string.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + s.String() + `"`), nil }

// LogValue returns the mask.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
