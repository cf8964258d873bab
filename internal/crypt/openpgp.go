package crypt

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// OpenPGP encrypts to the owners of public keys, and decrypts with any of its secret keys.
//
// It writes binary messages as RFC 4880 has them and as WAL-G reads them: the session key once for each owner, then data
// encrypted in one go and protected by a modification detection code, neither signed nor compressed.
type OpenPGP struct {
	keys openpgp.EntityList // that it encrypts to
	// secrets are the unlocked keys that it decrypts with, public ones among them.
	secrets func() (openpgp.EntityList, error)
}

// ParseOpenPGPKeys reads armoured keys, one block or several, public or secret; the two characters \n stand for line ends, as
// in an environment variable. The passphrase unlocks all secret keys that need one. Errors never hold any of the text.
func ParseOpenPGPKeys(text string, passphrase []byte) (*OpenPGP, error) {
	keys, err := parseKeys(text, passphrase)
	if err != nil {
		return nil, err
	}
	return &OpenPGP{keys, func() (openpgp.EntityList, error) { return keys, nil }}, nil
}

func parseKeys(text string, passphrase []byte) (openpgp.EntityList, error) {
	rest := []byte(strings.ReplaceAll(text, `\n`, "\n"))
	var keys openpgp.EntityList
	for len(bytes.TrimSpace(rest)) > 0 {
		end := bytes.Index(rest, []byte("-----END PGP"))
		if end >= 0 {
			if line := bytes.IndexByte(rest[end:], '\n'); line >= 0 {
				end += line + 1
			} else {
				end = len(rest)
			}
		} else {
			end = len(rest)
		}
		more, err := parseBlock(rest[:end])
		if err != nil {
			return nil, err
		}
		keys = append(keys, more...)
		rest = rest[end:]
	}
	if len(keys) == 0 {
		return nil, errors.New("there is no OpenPGP key in it")
	}
	for _, k := range keys {
		if err := k.DecryptPrivateKeys(passphrase); err != nil {
			return nil, fmt.Errorf("cannot unlock the secret key %s: the passphrase is missing or wrong", keyID(k))
		}
	}
	return keys, nil
}

func parseBlock(block []byte) (openpgp.EntityList, error) {
	decoded, err := armor.Decode(bytes.NewReader(block))
	if err != nil {
		return nil, errors.New("it is not an armoured OpenPGP key (-----BEGIN PGP …)")
	}
	if decoded.Type != openpgp.PublicKeyType && decoded.Type != openpgp.PrivateKeyType {
		return nil, fmt.Errorf("it holds an armoured %q, not a key", decoded.Type)
	}
	keys, err := openpgp.ReadKeyRing(decoded.Body)
	if err != nil {
		return nil, errors.New("the armoured OpenPGP key in it is damaged, or of a kind that is not supported")
	}
	return keys, nil
}

func keyID(k *openpgp.Entity) string { return k.PrimaryKey.KeyIdString() }

// Name returns "openpgp".
func (p *OpenPGP) Name() string { return "openpgp" }

// canEncrypt is the reason why nothing can be encrypted, nil if there is none: a key that has expired, was revoked, or is
// for signatures only. WAL-G encrypts to all keys that it is given, so each must do.
func (p *OpenPGP) canEncrypt(now time.Time) error {
	for _, k := range p.keys {
		if _, ok := k.EncryptionKey(now); !ok {
			return fmt.Errorf("the OpenPGP key %s cannot encrypt: it has expired, was revoked, or is for signatures only", keyID(k))
		}
	}
	return nil
}

// decryptionKeys are the unlocked keys, of which one at least is secret.
func (p *OpenPGP) decryptionKeys() (openpgp.EntityList, error) {
	keys, err := p.secrets()
	if err != nil {
		return nil, err
	}
	for _, k := range keys.DecryptionKeys() {
		if k.PrivateKey != nil && !k.PrivateKey.Dummy() {
			return keys, nil
		}
	}
	return nil, ErrNoSecretKey
}

// Encrypt encrypts into w.
func (p *OpenPGP) Encrypt(w io.Writer) (io.WriteCloser, error) {
	now := time.Now()
	if err := p.canEncrypt(now); err != nil {
		return nil, err
	}
	// Without a cipher of its own here, the keys' preferences would decide against AES-128 only; WAL-G does it so.
	config := &packet.Config{
		DefaultCipher: packet.CipherAES128, DefaultHash: crypto.SHA256, DefaultCompressionAlgo: packet.CompressionNone,
		Time: func() time.Time { return now },
	}
	// Binary: GnuPG would change line ends in what is called text.
	return openpgp.Encrypt(w, p.keys, nil, &openpgp.FileHints{IsBinary: true}, config)
}

// Decrypt decrypts r.
func (p *OpenPGP) Decrypt(r io.Reader) (io.Reader, error) {
	keys, err := p.decryptionKeys()
	if err != nil {
		return nil, err
	}
	return &pgpReader{keys: keys, r: &remembered{r: r}}, nil
}

// String and GoString keep keys out of messages.
func (p *OpenPGP) String() string   { return p.Name() }
func (p *OpenPGP) GoString() string { return p.Name() }

// recognises tells whether a message is for one of the keys, by the key IDs with which it begins.
func (p *OpenPGP) recognises(head []byte) bool {
	packets := packet.NewReader(bytes.NewReader(head))
	for {
		next, err := packets.Next()
		key, ok := next.(*packet.EncryptedKey)
		if err != nil || !ok {
			return false
		}
		if len(p.keys.KeysById(key.KeyId)) > 0 {
			return true
		}
	}
}

// pgpReader is one message being decrypted.
type pgpReader struct {
	keys openpgp.EntityList
	r    *remembered
	body io.Reader
	err  error // the first error, or io.EOF; it stays
}

// Read decrypts into p. It begins with the first call, and ends with the check of the modification detection code.
func (d *pgpReader) Read(p []byte) (int, error) {
	if d.err != nil || len(p) == 0 {
		return 0, d.err
	}
	if d.body == nil {
		m, err := openpgp.ReadMessage(d.r, d.keys, nil, nil)
		switch {
		case err != nil:
			d.err = d.verdict(err)
			return 0, d.err
		case !m.IsEncrypted:
			d.err = damaged{errors.New("the OpenPGP message is not encrypted")}
			return 0, d.err
		}
		d.body = m.UnverifiedBody
	}
	n, err := d.body.Read(p)
	switch err {
	case nil:
	case io.EOF:
		d.err = d.ended()
	default:
		d.err = d.verdict(err)
	}
	return n, d.err
}

// ended is io.EOF if nothing follows the message.
func (d *pgpReader) ended() error {
	var b [1]byte
	switch _, err := io.ReadFull(d.r, b[:]); err {
	case io.EOF:
		return io.EOF
	case nil:
		return damaged{errors.New("bytes follow the end of the OpenPGP message")}
	default:
		return err
	}
}

// verdict says what the library's error means: its own, or one of the storage.
func (d *pgpReader) verdict(err error) error {
	switch {
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("the OpenPGP message is cut off")
	case errors.Is(err, pgperrors.ErrKeyIncorrect):
		err = errors.New("the OpenPGP message is for other keys than those given")
	default:
		err = fmt.Errorf("damaged OpenPGP message: %w", err)
	}
	return d.r.verdict(err)
}
