package crypt

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/hint"
)

// keyRing makes an empty home of GnuPG.
func keyRing(t *testing.T) string {
	t.Helper()
	home, err := os.MkdirTemp("", "gpg") // not t.TempDir: gpg-agent's socket must have a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "gpg-agent").Run()
		_ = os.RemoveAll(home)
	})
	return home
}

func TestKeysComeFromTheKeyRing(t *testing.T) { // not parallel: it changes the environment
	if testing.Short() {
		t.Skip("needs gpg")
	}
	home := keyRing(t)
	t.Setenv("GNUPGHOME", home)
	const passphrase = "open sesame"
	for name, passphrase := range map[string]string{"open@example.org": "", "locked@example.org": passphrase} {
		gnupg(t, home, nil, "--passphrase", passphrase, "--quick-generate-key", name, "future-default", "default", "never")
	}
	gnupg(t, home, nil, "--quick-generate-key", "signs@example.org", "ed25519", "sign", "never")

	take := func(id, passphrase string) *OpenPGP {
		t.Helper()
		p, err := GnuPG(t.Context(), id, []byte(passphrase))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	plain := noise(70000)
	for id, passphrase := range map[string]string{"open@example.org": "", "locked@example.org": passphrase} {
		p := take(id, passphrase)
		sealed := seal(t, p, plain)
		if got, err := unseal(p, sealed); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %v", id, err)
		}
		if got := gnupg(t, home, sealed, "--passphrase", passphrase, "--decrypt"); !bytes.Equal(got, plain) {
			t.Errorf("%s: GnuPG decrypts %d bytes", id, len(got))
		}
	}
	_ = exec.Command("gpgconf", "--homedir", home, "--kill", "gpg-agent").Run() // which remembers passphrases
	for _, wrong := range []string{"", "sesame"} {
		p := take("locked@example.org", wrong)
		if err := CanEncrypt(p); err != nil {
			t.Errorf("without the passphrase %q nothing is encrypted: %v", wrong, err)
		}
		if err := CanDecrypt(p); err == nil || !strings.Contains(strings.Join(hint.Of(err), " ")+err.Error(), "passphrase") || strings.Contains(err.Error(), "sesame") {
			t.Errorf("passphrase %q: %v %q", wrong, err, hint.Of(err))
		}
	}
	if err := CanEncrypt(take("signs@example.org", "")); err == nil || !strings.Contains(err.Error(), "signatures only") {
		t.Errorf("a key for signatures encrypts: %v", err)
	}
	for _, id := range []string{"nobody@example.org", "--version", ""} {
		if _, err := GnuPG(t.Context(), id, nil); err == nil || len(hint.Of(err)) == 0 && id != "" {
			t.Errorf("%q: %v", id, err)
		}
	}

	public := keyRing(t)
	gnupg(t, public, gnupg(t, home, nil, "--armor", "--export", "open@example.org"), "--import")
	t.Setenv("GNUPGHOME", public)
	p := take("open@example.org", "")
	if err := CanEncrypt(p); err != nil {
		t.Error(err)
	}
	if err := CanDecrypt(p); !errors.Is(err, ErrNoSecretKey) {
		t.Errorf("a ring with a public key only: %v", err)
	}

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := GnuPG(ended, "open@example.org", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := GnuPG(t.Context(), "open@example.org", nil); err == nil || !strings.Contains(err.Error(), "gpg is not installed") || len(hint.Of(err)) == 0 {
		t.Errorf("without the program: %v", err)
	}
}
