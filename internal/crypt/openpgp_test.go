package crypt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// armoured spells a key as it stands in a setting.
func armoured(t testing.TB, e *openpgp.Entity, secret bool) string {
	t.Helper()
	var b bytes.Buffer
	kind := openpgp.PublicKeyType
	if secret {
		kind = openpgp.PrivateKeyType
	}
	w, err := armor.Encode(&b, kind, nil)
	if err != nil {
		t.Fatal(err)
	}
	if secret {
		err = e.SerializePrivateWithoutSigning(w, nil)
	} else {
		err = e.Serialize(w)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.String() + "\n"
}

func newKey(t testing.TB, config *packet.Config) *openpgp.Entity {
	t.Helper()
	e, err := openpgp.NewEntity("Archive", "", "archive@example.org", config)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range e.Identities {
		if err := id.SelfSignature.SignUserId(id.UserId.Id, e.PrimaryKey, e.PrivateKey, config); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

func parse(t testing.TB, text, passphrase string) *OpenPGP {
	t.Helper()
	p, err := ParseOpenPGPKeys(text, []byte(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func seal(t testing.TB, c Cipher, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := c.Encrypt(&b)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(plain)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unseal(c Cipher, sealed []byte) ([]byte, error) {
	r, err := c.Decrypt(bytes.NewReader(sealed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

func TestMessagesAreForAllKeysAndAPublicOneSuffices(t *testing.T) {
	t.Parallel()
	one, two, other := newKey(t, nil), newKey(t, nil), newKey(t, nil)
	both := parse(t, armoured(t, one, false)+armoured(t, two, false), "")
	for _, n := range []int{0, 1, 511, 512, 513, 70000, 1 << 20} {
		plain := noise(n)
		sealed := seal(t, both, plain)
		for i, e := range []*openpgp.Entity{one, two} {
			// In an environment variable, line ends are often spelled \n.
			text := strings.ReplaceAll(armoured(t, e, true), "\n", `\n`)
			if got, err := unseal(parse(t, text, ""), sealed); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d bytes, key %d: %v", n, i, err)
			}
		}
		if _, err := unseal(parse(t, armoured(t, other, true), ""), sealed); err == nil || !strings.Contains(err.Error(), "other keys") {
			t.Errorf("the key of somebody else: %v", err)
		}
		if _, err := unseal(both, sealed); err == nil || !strings.Contains(err.Error(), "public") {
			t.Errorf("a public key decrypts: %v", err)
		}
	}
}

func TestEveryChangeOfAMessageIsNoticed(t *testing.T) {
	t.Parallel()
	p := parse(t, armoured(t, newKey(t, nil), true), "")
	plain := noise(3000)
	sealed := seal(t, p, plain)
	check := func(what string, bad []byte) {
		t.Helper()
		if got, err := unseal(p, bad); err == nil {
			t.Errorf("%s: %d bytes and no error", what, len(got))
		}
	}
	for n := 0; n < len(sealed); n += 1 + n/500 { // the beginning byte by byte
		check(fmt.Sprint("cut to ", n), sealed[:n])
	}
	check("a byte more", append(bytes.Clone(sealed), 0))
	check("another message behind it", append(bytes.Clone(sealed), sealed...))
	check("what is not encrypted", plain)
	r := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		bad := bytes.Clone(sealed)
		i := r.IntN(len(bad))
		bad[i] ^= 1 << r.IntN(8)
		if got, err := unseal(p, bad); err == nil && !bytes.Equal(got, plain) {
			t.Errorf("bit of byte %d flipped: %d bytes and no error", i, len(got))
		}
	}
	failure := errors.New("the network is gone")
	body, err := p.Decrypt(io.MultiReader(bytes.NewReader(sealed[:2000]), iotest.ErrReader(failure)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(body); !errors.Is(err, failure) {
		t.Errorf("a failing storage: %v", err)
	}
}

func TestKeysThatCannotBeUsedAreRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	past := func() time.Time { return time.Now().Add(-48 * time.Hour) }
	expired := newKey(t, &packet.Config{Time: past, KeyLifetimeSecs: 3600})
	p := parse(t, armoured(t, expired, true), "")
	if _, err := p.Encrypt(io.Discard); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired key encrypts: %v", err)
	}
	locked := newKey(t, nil)
	if err := locked.EncryptPrivateKeys([]byte("open sesame"), nil); err != nil {
		t.Fatal(err)
	}
	text := armoured(t, locked, true)
	for _, passphrase := range []string{"", "sesame"} {
		if _, err := ParseOpenPGPKeys(text, []byte(passphrase)); err == nil || !strings.Contains(err.Error(), "passphrase is missing or wrong") {
			t.Errorf("passphrase %q: %v", passphrase, err)
		}
	}
	opened := parse(t, text, "open sesame")
	if got, err := unseal(opened, seal(t, opened, []byte("WAL"))); err != nil || string(got) != "WAL" {
		t.Errorf("%q, %v", got, err)
	}
	for _, text := range []string{"", "   \n", "nonsense", text[:len(text)/2], "-----BEGIN PGP MESSAGE-----\n\nAAAA\n-----END PGP MESSAGE-----\n"} {
		_, err := ParseOpenPGPKeys(text, nil)
		if err == nil {
			t.Errorf("%.30q is taken for a key", text)
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v"} {
		if got := fmt.Sprintf(verb, opened); got != "openpgp" {
			t.Errorf("%s shows %s", verb, got)
		}
	}
}

// gnupg runs gpg with a home of its own.
func gnupg(t *testing.T, home string, in []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("gpg", append([]string{"--homedir", home, "--batch", "--quiet", "--yes", "--trust-model", "always", "--no-tty",
		"--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
	cmd.Stdin = bytes.NewReader(in)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("gpg %v: %v: run scripts/install-test-tools if it is not installed\n%s", args, err, stderr.String())
	}
	return out
}

func TestGnuPGUnderstandsUsAndWeIt(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs gpg")
	}
	home := keyRing(t)
	for _, algorithm := range []string{"rsa2048", "future-default"} {
		name := algorithm + "@example.org"
		gnupg(t, home, nil, "--quick-generate-key", name, algorithm, "default", "never")
		if algorithm == "rsa2048" { // its subkey for encryption
			list := string(gnupg(t, home, nil, "--list-keys", "--with-colons", name))
			if !strings.Contains(list, "\nsub:") {
				for line := range strings.Lines(list) {
					if fields := strings.Split(line, ":"); fields[0] == "fpr" {
						gnupg(t, home, nil, "--quick-add-key", fields[9], "rsa2048", "encr", "never")
						break
					}
				}
			}
		}
		secret := parse(t, string(gnupg(t, home, nil, "--armor", "--export-secret-keys", name)), "")
		public := parse(t, string(gnupg(t, home, nil, "--armor", "--export", name)), "")
		for _, n := range []int{0, 1, 66087} {
			plain := append(noise(n), "\r\nline ends\n\r\n"...)
			if got := gnupg(t, home, seal(t, public, plain), "--decrypt"); !bytes.Equal(got, plain) {
				t.Errorf("%s: GnuPG decrypts %d bytes to %d", algorithm, len(plain), len(got))
			}
			for _, more := range [][]string{nil, {"--compress-algo", "none"}, {"--cipher-algo", "AES256"}, {"--sign", "-u", name}} {
				sealed := gnupg(t, home, plain, append(more, "--encrypt", "-r", name)...)
				if got, err := unseal(secret, sealed); err != nil || !bytes.Equal(got, plain) {
					t.Errorf("%s, gpg %v: %d bytes became %d, %v", algorithm, more, len(plain), len(got), err)
				}
			}
		}
	}
}

func TestAnObjectOfWALGDecrypts(t *testing.T) {
	t.Parallel()
	key, err := os.ReadFile(filepath.Join("testdata", "walg.key.asc"))
	if err != nil {
		t.Fatal(err)
	}
	object, err := os.ReadFile(filepath.Join("testdata", "walg.pgp"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := unseal(parse(t, string(key), ""), object); err != nil || len(got) == 0 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
