package cli

import (
	"bytes"
	"fmt"
	"testing"

	"gitlab.com/walden-pg/walden/internal/config"
)

func TestSecretsInTheWordsOfOthersAreMasked(t *testing.T) {
	t.Parallel()
	m := newMask([]config.Secret{config.NewSecret(`top"secret/1 `), config.NewSecret("short"), config.NewSecret("")})
	for text, want := range map[string]string{
		"nothing to hide in a short line\n":                   "nothing to hide in a short line\n",
		`got top"secret/1 back`:                               "got ***back",
		fmt.Sprintf("as %q", `top"secret/1 `):                 `as "***"`,
		"a=top%22secret%2F1+&b":                               "a=***&b",
		"Key: dG9wInNlY3JldC8xIA==":                           "Key: ***",
		`dial "http://user:pass@host:1/x": refused`:           `dial "http://***@host:1/x": refused`,
		"postgres://:pw@h and s3://bucket/x@y, mail a@b":      "postgres://***@h and s3://bucket/x@y, mail a@b",
		"http://[::1]:5432/a@b and time 10:11:12 user@host\n": "http://[::1]:5432/a@b and time 10:11:12 user@host\n",
	} {
		var b bytes.Buffer
		if n, err := (masked{&b, m}).Write([]byte(text)); err != nil || n != len(text) || b.String() != want {
			t.Errorf("%q became %q, want %q (%d, %v)", text, b.String(), want, n, err)
		}
	}
}
