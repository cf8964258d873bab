package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"gitlab.com/walden-pg/walden/internal/config"
	"gitlab.com/walden-pg/walden/internal/crypt"
	"gitlab.com/walden-pg/walden/internal/crypt/awskms"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/storage/s3"
)

// use is what a command does with encrypted objects, which is what the keys are tried for before it does anything.
type use int

const (
	toLook    use = iota // at documents, and at an object now and then
	toDecrypt            // what it fetches
	toEncrypt            // what it pushes
	toCarry              // not at all: objects go as they are
)

// openCipher makes the cipher that the settings ask for, and makes sure that it can do what it is needed for.
func (a *app) openCipher(ctx context.Context, needed use) (crypt.Cipher, error) {
	e := a.config.Encryption
	if needed == toCarry {
		c, err := a.openCipher(ctx, toLook)
		if err != nil { // what it would have told can be done without
			a.log.Info("the keys cannot be used; objects are taken as they are, and encrypted timeline histories cannot be read", "error", err)
			return crypt.None{}, nil
		}
		return c, nil
	}
	if e.Refused != "" {
		return nil, hint.With(fmt.Errorf("cannot encrypt: %s", e.Refused), "storing in the clear what should be encrypted is never right, so nothing was done")
	}
	if !e.Requested {
		return crypt.None{}, nil
	}
	c, err := a.ciphers(ctx)
	if err != nil {
		return nil, err
	}
	switch needed {
	case toEncrypt:
		err = crypt.CanEncrypt(c)
		if errors.Is(err, crypt.ErrNoKey) {
			err = hint.With(err, "set the key for what is pushed from now on, see docs/configuration.md, \"Encryption\"")
		}
		if err != nil {
			return nil, fmt.Errorf("cannot encrypt as %s ask for, so nothing was sent: %w", strings.Join(e.By, ", "), err)
		}
	case toDecrypt:
		err = crypt.CanDecrypt(c)
		if errors.Is(err, crypt.ErrNoSecretKey) {
			err = hint.With(err, "give the secret key too, with WALG_PGP_KEY, WALG_PGP_KEY_PATH, or in the key ring of GnuPG")
		}
		if err != nil {
			return nil, fmt.Errorf("cannot decrypt as %s ask for: %w", strings.Join(e.By, ", "), err)
		}
	}
	return c, nil
}

// ciphers are the one that encrypts and those for reading only.
func (a *app) ciphers(ctx context.Context) (crypt.Cipher, error) {
	e := a.config.Encryption
	sodiumKeys, err := a.oldSodiumKeys()
	if err != nil {
		return nil, err
	}
	var now crypt.Cipher
	var earlier []crypt.Cipher
	switch e.Method {
	case config.MethodOpenPGP:
		now, err = openPGP("WALG_PGP_KEY", e.PGPKey, "WALG_PGP_KEY_PATH", e.PGPKeyPath, e.PGPKeyPassphrase)
	case config.MethodGnuPG:
		now, err = crypt.GnuPG(ctx, e.GPGKeyID, []byte(e.PGPKeyPassphrase.Reveal()))
	case config.MethodAWSKMS:
		now, err = a.awsKMS(ctx)
	case config.MethodSodium:
		var key []byte
		if key, err = a.sodiumKey(); err == nil {
			now, err = crypt.NewSodium(append([][]byte{key}, sodiumKeys...)...)
		}
		sodiumKeys = nil
	case config.MethodNone:
	}
	if err == nil && len(sodiumKeys) > 0 {
		earlier, err = with(earlier, func() (crypt.Cipher, error) { return crypt.NewSodium(sodiumKeys...) })
	}
	if err == nil && (e.PGPOldKeys.IsSet() || e.PGPOldKeysPath != "") {
		passphrase := e.PGPOldKeysPassphrase
		if !passphrase.IsSet() {
			passphrase = e.PGPKeyPassphrase
		}
		earlier, err = with(earlier, func() (crypt.Cipher, error) {
			return openPGP("WALDEN_PGP_OLD_KEYS", e.PGPOldKeys, "WALDEN_PGP_OLD_KEYS_PATH", e.PGPOldKeysPath, passphrase)
		})
	}
	if err == nil && e.ReadAWSKMS && e.Method != config.MethodAWSKMS {
		earlier, err = with(earlier, func() (crypt.Cipher, error) { return a.awsKMS(ctx) })
	}
	if err != nil {
		return nil, err
	}
	unencrypted := e.Method == config.MethodNone && len(earlier) == 0 // and nothing but that may be read
	switch {
	case unencrypted:
		return crypt.None{}, nil
	case e.ReadUnencrypted:
		earlier = append(earlier, crypt.None{})
	case now != nil && len(earlier) == 0:
		return now, nil
	}
	return crypt.NewRotation(now, earlier...), nil
}

// with adds one more cipher.
func with(ciphers []crypt.Cipher, open func() (crypt.Cipher, error)) ([]crypt.Cipher, error) {
	c, err := open()
	return append(ciphers, c), err
}

func (a *app) sodiumKey() ([]byte, error) {
	e := a.config.Encryption
	name, text, err := keyText("WALG_LIBSODIUM_KEY", e.LibsodiumKey, "WALG_LIBSODIUM_KEY_PATH", e.LibsodiumKeyPath)
	if err != nil {
		return nil, err
	}
	key, err := crypt.ParseSodiumKey(text, e.LibsodiumKeyTransform)
	if err != nil {
		return nil, hint.With(fmt.Errorf("cannot use the key of %s: %w", name, err), "WALG_LIBSODIUM_KEY_TRANSFORM says how the key is written")
	}
	return key, nil
}

// oldSodiumKeys are those for reading only.
func (a *app) oldSodiumKeys() (keys [][]byte, err error) {
	e := a.config.Encryption
	if !e.LibsodiumOldKeys.IsSet() && e.LibsodiumOldKeysPath == "" {
		return nil, nil
	}
	name, text, err := keyText("WALDEN_LIBSODIUM_OLD_KEYS", e.LibsodiumOldKeys, "WALDEN_LIBSODIUM_OLD_KEYS_PATH", e.LibsodiumOldKeysPath)
	if err != nil {
		return nil, err
	}
	for word := range strings.FieldsSeq(text) {
		transform := e.LibsodiumKeyTransform
		for _, t := range []string{"none", "hex", "base64"} {
			if rest, ok := strings.CutPrefix(word, t+":"); ok {
				transform, word = t, rest
				break
			}
		}
		key, err := crypt.ParseSodiumKey(word, transform)
		if err != nil {
			return nil, fmt.Errorf("cannot use key %d of %s: %w", len(keys)+1, name, err)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("cannot use %s: there is no key in it", name)
	}
	return keys, nil
}

func openPGP(setting string, given config.Secret, pathSetting, path string, passphrase config.Secret) (crypt.Cipher, error) {
	name, text, err := keyText(setting, given, pathSetting, path)
	if err != nil {
		return nil, err
	}
	c, err := crypt.ParseOpenPGPKeys(text, []byte(passphrase.Reveal()))
	if err != nil {
		return nil, fmt.Errorf("cannot use the key of %s: %w", name, err)
	}
	return c, nil
}

// keyText is the text of a key from its setting or from the file that another setting names, and the name of that setting.
func keyText(setting string, given config.Secret, pathSetting, path string) (name, text string, err error) {
	const most = 4 << 20 // bytes; key rings with many signatures are large
	if given.IsSet() {
		return setting, given.Reveal(), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", "", fmt.Errorf("cannot read the key of %s: %w", pathSetting, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return "", "", fmt.Errorf("cannot read the key of %s: %w", pathSetting, err)
	}
	return pathSetting, string(b), nil
}

func (a *app) awsKMS(ctx context.Context) (crypt.Cipher, error) {
	e := a.config.Encryption
	cfg, err := s3.LoadConfig(ctx, a.s3Options())
	if err != nil {
		return nil, err
	}
	service, err := awskms.New(cfg, awskms.Options{KeyID: e.AWSKMSKeyID, Region: e.AWSKMSRegion, Endpoint: e.AWSKMSEndpoint})
	if err != nil {
		return nil, err
	}
	return crypt.NewEnvelope(ctx, service), nil
}
