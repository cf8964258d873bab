// Package secretstream reads and writes libsodium's crypto_secretstream_xchacha20poly1305, cut into chunks as WAL-G cuts it.
//
// A stream is a header of [HeaderSize] bytes and then chunks. Each chunk is up to [ChunkSize] bytes of plaintext with [Overhead]
// bytes of tag and authenticator more. All but the last are full and tagged MESSAGE; the last is shorter than full,
// possibly empty, and tagged FINAL. There is no additional data.
//
// Each chunk's authenticator goes into the nonce of the next, so that none can be changed, left out, repeated or moved without
// the [Reader] noticing; and the Reader insists on the chunk tagged FINAL and on nothing behind it, so that neither can the
// stream be cut or extended.
//
// Sources: libsodium's documentation, "Encrypting a set of related messages or a file"; draft-irtf-cfrg-xchacha; "WAL-G
// format", codecs and encryption, section 3.
package secretstream

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/poly1305" //nolint:staticcheck // deprecated in favour of chacha20poly1305, which cannot express secretstream's framing
)

// Sizes in bytes.
const (
	KeySize    = chacha20.KeySize
	HeaderSize = 24
	ChunkSize  = 8192 // of plaintext in all chunks but the last
	Overhead   = 1 + poly1305.TagSize
)

// Tags of chunks. libsodium has two more, PUSH (1) and REKEY (2), which WAL-G never writes.
const (
	tagMessage = 0
	tagFinal   = 3
)

var (
	// ErrDamaged is the cause when a stream does not decrypt: it was altered, or the key is another one. The two cannot be
	// told apart.
	ErrDamaged = errors.New("the key is wrong or the stream is damaged")

	// ErrTruncated is the cause when a stream ends before its last chunk.
	ErrTruncated = errors.New("the stream is cut off")

	// ErrTrailing is the cause when something follows the last chunk.
	ErrTrailing = errors.New("bytes follow the end of the stream")

	errClosed = errors.New("the stream is closed")
)

// state is what both sides carry from chunk to chunk.
type state struct {
	key   [KeySize]byte
	nonce [chacha20.NonceSize]byte // a counter in 4 bytes, little endian, and 8 that depend on all that went before
}

// newState derives a stream's first state from its header: 16 bytes for HChaCha20, 8 bytes of nonce.
func newState(key []byte, header *[HeaderSize]byte) (*state, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("the key has %d bytes, not %d", len(key), KeySize)
	}
	subkey, err := chacha20.HChaCha20(key, header[:16])
	if err != nil {
		return nil, err
	}
	s := &state{}
	copy(s.key[:], subkey)
	s.nonce[0] = 1
	copy(s.nonce[4:], header[16:])
	return s, nil
}

// keystream returns the cipher of this chunk with its first block spent, as the authenticator of that block makes.
func (s *state) keystream() (*chacha20.Cipher, *poly1305.MAC) {
	c, err := chacha20.NewUnauthenticatedCipher(s.key[:], s.nonce[:])
	if err != nil {
		panic(err) // of wrong lengths only, and these are constants
	}
	var block [64]byte
	c.XORKeyStream(block[:], block[:])
	return c, poly1305.New((*[32]byte)(block[:32]))
}

// authenticate ends a chunk: mac has seen the encrypted block of the tag and the ciphertext of n bytes. The padding depends on
// n in another way than usual in ChaCha20-Poly1305; libsodium keeps it so for compatibility with itself.
func authenticate(mac *poly1305.MAC, n int, sum []byte) []byte {
	var pad [16]byte
	_, _ = mac.Write(pad[:n%16])
	var lengths [16]byte // of no additional data, and of the block with the tag plus the ciphertext
	binary.LittleEndian.PutUint64(lengths[8:], uint64(64+n))
	_, _ = mac.Write(lengths[:])
	return mac.Sum(sum)
}

// advance makes the state of the next chunk from this one's authenticator.
func (s *state) advance(mac []byte) {
	subtle.XORBytes(s.nonce[4:], s.nonce[4:], mac[:8])
	counter := binary.LittleEndian.Uint32(s.nonce[:4]) + 1
	binary.LittleEndian.PutUint32(s.nonce[:4], counter)
	if counter == 0 {
		s.rekey()
	}
}

// rekey replaces the key and the nonce, which libsodium does when the counter, after 32 TiB, runs over.
func (s *state) rekey() {
	var both [KeySize + 8]byte
	copy(both[:], s.key[:])
	copy(both[KeySize:], s.nonce[4:])
	c, err := chacha20.NewUnauthenticatedCipher(s.key[:], s.nonce[:])
	if err != nil {
		panic(err) // as above
	}
	c.XORKeyStream(both[:], both[:])
	copy(s.key[:], both[:])
	s.nonce = [chacha20.NonceSize]byte{1}
	copy(s.nonce[4:], both[KeySize:])
}

// seal appends the chunk of plaintext to out.
func (s *state) seal(out, plaintext []byte, tag byte) []byte {
	c, mac := s.keystream()
	block := [64]byte{tag}
	c.XORKeyStream(block[:], block[:])
	_, _ = mac.Write(block[:])
	start := len(out)
	out = append(append(out, block[0]), plaintext...)
	body := out[start+1:]
	c.XORKeyStream(body, body)
	_, _ = mac.Write(body)
	out = authenticate(mac, len(body), out)
	s.advance(out[len(out)-poly1305.TagSize:])
	return out
}

// open decrypts a chunk in place, or leaves it as it is if it is damaged.
func (s *state) open(chunk []byte) (plaintext []byte, tag byte, err error) {
	if len(chunk) < Overhead {
		return nil, 0, ErrTruncated
	}
	c, mac := s.keystream()
	block := [64]byte{chunk[0]}
	c.XORKeyStream(block[:], block[:])
	tag = block[0]
	block[0] = chunk[0] // what was encrypted is the tag and 63 zero bytes
	_, _ = mac.Write(block[:])
	body, sum := chunk[1:len(chunk)-poly1305.TagSize], chunk[len(chunk)-poly1305.TagSize:]
	_, _ = mac.Write(body)
	if subtle.ConstantTimeCompare(authenticate(mac, len(body), nil), sum) != 1 {
		return nil, 0, ErrDamaged
	}
	c.XORKeyStream(body, body)
	s.advance(sum)
	return body, tag, nil
}

// Writer encrypts a stream. It holds back what does not fill a chunk until more comes or [Writer.Close] is called.
type Writer struct {
	w     io.Writer
	state *state
	plain []byte // less than a chunk
	out   []byte
	err   error
}

// NewWriter begins a stream under a key of [KeySize] bytes and a random header. The header is written with the first chunk.
func NewWriter(w io.Writer, key []byte) (*Writer, error) {
	var header [HeaderSize]byte
	rand.Read(header[:]) // never fails
	return newWriter(w, key, header)
}

func newWriter(w io.Writer, key []byte, header [HeaderSize]byte) (*Writer, error) {
	s, err := newState(key, &header)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, HeaderSize+ChunkSize+Overhead)
	return &Writer{w: w, state: s, plain: make([]byte, 0, ChunkSize), out: append(out, header[:]...)}, nil
}

// Write encrypts p.
func (w *Writer) Write(p []byte) (n int, err error) {
	if w.err != nil {
		return 0, w.err
	}
	for len(p) > 0 {
		free := ChunkSize - len(w.plain)
		part := p[:min(free, len(p))]
		w.plain = append(w.plain, part...)
		p = p[len(part):]
		if len(w.plain) == ChunkSize {
			if w.err = w.flush(tagMessage); w.err != nil {
				return n, w.err
			}
		}
		n += len(part)
	}
	return n, nil
}

// flush writes one chunk.
func (w *Writer) flush(tag byte) error {
	out := w.state.seal(w.out, w.plain, tag)
	w.plain, w.out = w.plain[:0], w.out[:0]
	n, err := w.w.Write(out)
	if err == nil && n < len(out) {
		err = io.ErrShortWrite
	}
	return err
}

// Close writes the last chunk, without which the stream does not decrypt, and leaves the underlying writer open. After a failed
// Write it returns that error.
func (w *Writer) Close() error {
	switch {
	case errors.Is(w.err, errClosed):
		return nil
	case w.err != nil:
		return w.err
	}
	if w.err = w.flush(tagFinal); w.err != nil {
		return w.err
	}
	w.err = errClosed
	return nil
}

// Reader decrypts a stream. What it has returned is authentic; that it was everything is known only when it returns io.EOF.
type Reader struct {
	r     io.Reader
	keys  [][]byte
	state *state
	chunk []byte
	plain []byte // decrypted and not read yet
	err   error  // the first error, or io.EOF; it stays
}

// NewReader decrypts r with that of the keys, of [KeySize] bytes each, that fits its first chunk. It reads from r first when it
// is read from itself.
func NewReader(r io.Reader, keys ...[]byte) *Reader { return &Reader{r: r, keys: keys} }

// Read decrypts into p. The error unwraps to [ErrDamaged], [ErrTruncated] or [ErrTrailing], or is one of r.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.plain) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.err = r.next()
	}
	n := copy(p, r.plain)
	r.plain = r.plain[n:]
	return n, nil
}

// next decrypts one chunk. It returns io.EOF with the last.
func (r *Reader) next() error {
	var header [HeaderSize]byte
	first := r.state == nil
	if first {
		if _, err := io.ReadFull(r.r, header[:]); err != nil {
			return cutOff(err)
		}
		r.chunk = make([]byte, ChunkSize+Overhead)
	}
	n, err := io.ReadFull(r.r, r.chunk)
	last := err == io.ErrUnexpectedEOF //nolint:errorlint // io.ReadFull returns it as it is
	if err != nil && !last {
		return cutOff(err)
	}
	var plain []byte
	var tag byte
	if first {
		plain, tag, err = r.openFirst(&header, r.chunk[:n])
	} else {
		plain, tag, err = r.state.open(r.chunk[:n])
	}
	switch {
	case errors.Is(err, ErrDamaged) && last:
		// A piece that was cut does not authenticate, either.
		return fmt.Errorf("%w, or it is cut off", ErrDamaged)
	case err != nil:
		return err
	case tag == tagFinal && !last:
		// A last chunk is never full: either this one is, or what was read of it was taken for longer than it is.
		return ErrTrailing
	case tag == tagFinal:
		r.plain = plain
		return io.EOF
	case tag != tagMessage:
		return fmt.Errorf("the stream has a chunk with tag %d, which is not used in archives", tag)
	case last:
		return ErrTruncated
	}
	r.plain = plain
	return nil
}

// openFirst finds the key.
func (r *Reader) openFirst(header *[HeaderSize]byte, chunk []byte) (plain []byte, tag byte, err error) {
	err = errors.New("there is no key")
	for _, key := range r.keys {
		if r.state, err = newState(key, header); err != nil {
			return nil, 0, err
		}
		if plain, tag, err = r.state.open(chunk); !errors.Is(err, ErrDamaged) {
			break
		}
	}
	return plain, tag, err
}

// cutOff is the error of a stream that ends where it may not.
func cutOff(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return ErrTruncated
	}
	return err
}
