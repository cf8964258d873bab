package crypt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"

	"gitlab.com/walden-pg/walden/internal/hint"
)

// gnupgLimit bounds one run of gpg, which waits for its agent and for locks of the key ring.
const gnupgLimit = 30 * time.Second

// GnuPG takes the keys that id names (a key ID, a fingerprint, a user ID) from the key ring of the account's GnuPG: the public
// ones at once, the secret ones when something is to be decrypted. The passphrase is that of the secret keys; without one
// GnuPG asks nobody. ctx bounds both.
func GnuPG(ctx context.Context, id string, passphrase []byte) (*OpenPGP, error) {
	text, err := export(ctx, []string{"--export"}, id, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot get the OpenPGP key %q from GnuPG: %w", id, err)
	}
	public, err := parseKeys(text, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot use the OpenPGP key %q of GnuPG: %w", id, err)
	}
	return &OpenPGP{public, sync.OnceValues(func() (openpgp.EntityList, error) {
		text, err := export(ctx, secretly(passphrase), id, passphrase)
		if errors.Is(err, errNoSuchKey) {
			return nil, ErrNoSecretKey
		}
		if err != nil {
			return nil, fmt.Errorf("cannot get the secret OpenPGP key %q from GnuPG: %w", id, err)
		}
		secret, err := parseKeys(text, passphrase)
		if err != nil {
			return nil, fmt.Errorf("cannot use the secret OpenPGP key %q of GnuPG: %w", id, err)
		}
		return secret, nil
	})}, nil
}

var errNoSuchKey = errors.New("its key ring has no such key")

// secretly are the arguments for secret keys. Nobody is there to be asked for a passphrase when a server fetches its WAL.
func secretly(passphrase []byte) []string {
	if len(passphrase) > 0 {
		return []string{"--pinentry-mode", "loopback", "--passphrase-fd", "0", "--export-secret-keys"}
	}
	return []string{"--pinentry-mode", "error", "--export-secret-keys"}
}

// export runs gpg. The passphrase goes through a pipe, which no other process sees.
func export(ctx context.Context, what []string, id string, passphrase []byte) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, gnupgLimit, fmt.Errorf("gpg took longer than %s", gnupgLimit))
	defer cancel()
	cmd := exec.CommandContext(ctx, "gpg", slices.Concat([]string{"--batch", "--no-tty", "--armor"}, what, []string{"--", id})...)
	cmd.Stdin = bytes.NewReader(append(bytes.Clone(passphrase), '\n'))
	cmd.Env = environment()
	cmd.WaitDelay = time.Second // for an agent that keeps its output open
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", hint.With(errors.New("the program gpg is not installed, or not in PATH"),
			"install GnuPG, or export the key to a file and set WALG_PGP_KEY_PATH")
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return "", hint.With(fmt.Errorf("gpg failed (%w): %s", err, oneLine(stderr.String())),
			"try as the same user: gpg --armor "+what[len(what)-1]+" "+id+"; WALG_PGP_KEY_PASSPHRASE sets the passphrase of the secret key")
	case len(bytes.TrimSpace(stdout.Bytes())) == 0:
		return "", hint.With(errNoSuchKey, "`gpg --list-keys`, as the user that walden runs as, shows those that it has; HOME and GNUPGHOME say where it looks")
	}
	return stdout.String(), nil
}

// environment is what gpg needs of this process's: the agent that it may leave running must not keep the secrets that are there.
func environment() []string {
	env := []string{"LC_ALL=C"}
	for _, entry := range os.Environ() {
		switch name, _, _ := strings.Cut(entry, "="); name {
		case "PATH", "HOME", "GNUPGHOME", "USER", "LOGNAME", "XDG_RUNTIME_DIR":
			env = append(env, entry)
		}
	}
	return env
}

// oneLine makes a message of what a program has said.
func oneLine(text string) string {
	const most = 300
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > most {
		text = text[:most] + "…"
	}
	return text
}
