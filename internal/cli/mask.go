package cli

import (
	"encoding/base64"
	"io"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/config"
)

// mask replaces secrets in words that others have written: a service that quotes the request in its answer, a library that
// quotes a URL in its error. Settings mask themselves; this is the last line before the log.
type mask struct{ secrets *strings.Replacer }

// shortestMasked is the length in bytes below which a secret is not looked for: it would be found in ordinary words.
const shortestMasked = 8

const blackened = "***"

// newMask prepares to mask secrets as they are, and as they are written in URLs, quoted text, and headers (base64).
func newMask(secrets []config.Secret) mask {
	var pairs []string
	for _, s := range secrets {
		text := s.Reveal()
		if len(text) < shortestMasked {
			continue
		}
		coded := base64.StdEncoding.EncodeToString([]byte(text))
		for _, form := range []string{text, strings.Trim(strconv.Quote(text), `"`), url.QueryEscape(text), url.PathEscape(text), coded, url.QueryEscape(coded)} {
			pairs = append(pairs, form, blackened)
		}
	}
	if pairs == nil {
		return mask{}
	}
	return mask{strings.NewReplacer(pairs...)}
}

// password finds user and password in a URL.
var password = regexp.MustCompile(`://[^/\s:@]*:[^/\s@]*@`)

func (m mask) apply(text string) string {
	if m.secrets != nil {
		text = m.secrets.Replace(text)
	}
	return password.ReplaceAllLiteralString(text, "://"+blackened+"@")
}

// masked is a writer behind a mask. Each Write brings whole lines.
type masked struct {
	io.Writer
	mask mask
}

// Write implements io.Writer.
func (w masked) Write(b []byte) (int, error) {
	if _, err := io.WriteString(w.Writer, w.mask.apply(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// keepToItself keeps this process's memory and environment, in which secrets are, from other processes of the same user, and
// out of core files, those included that go to a program of the system and heed no limit of size (core(5)). PostgreSQL runs
// the WAL commands as its own user, and reads files for whoever may call pg_read_file.
func keepToItself() {
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // refused in some sandboxes, where walden works all the same
}
