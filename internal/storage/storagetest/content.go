package storagetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
)

// blockSize is a prime, so that no two parts of an upload that begin at multiples of a mebibyte look alike: swapped
// parts are noticed.
const blockSize = 1_048_573

// block holds the bytes that all test content is cut from.
var block = sync.OnceValue(func() []byte {
	b := make([]byte, blockSize)
	rand.NewChaCha8([32]byte([]byte("walden's storage acceptance test"))).Read(b)
	return b
})

// content is a source of reproducible bytes that are told apart by their seed. It is a plain io.Reader: a store
// can neither ask for the length nor rewind.
type content struct {
	at, end int64
}

func newContent(seed, size int64) *content {
	start := seed * 7919
	return &content{start, start + size}
}

func (c *content) Read(p []byte) (int, error) {
	if c.at == c.end {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), c.end-c.at)]
	n := copy(p, block()[c.at%blockSize:])
	c.at += int64(n)
	return n, nil
}

// compare reads got to its end and says where it first differs from want.
func compare(got, want io.Reader) error {
	g, w := make([]byte, 256<<10), make([]byte, 256<<10)
	for at := int64(0); ; {
		n, gotErr := io.ReadFull(got, g)
		m, _ := io.ReadFull(want, w[:max(n, 1)]) // one byte more than nothing shows whether want goes on
		switch {
		case gotErr != nil && gotErr != io.EOF && gotErr != io.ErrUnexpectedEOF:
			return fmt.Errorf("reading failed after %d bytes: %w", at+int64(n), gotErr)
		case n > m:
			return fmt.Errorf("%d bytes or more, but %d are right", at+int64(n), at+int64(m))
		case !bytes.Equal(g[:n], w[:n]):
			for i := range n {
				if g[i] != w[i] {
					return fmt.Errorf("byte %d is wrong", at+int64(i))
				}
			}
		case n < m:
			return fmt.Errorf("only %d bytes", at+int64(n))
		}
		at += int64(n)
		if gotErr != nil {
			if m, _ := io.ReadFull(want, w[:1]); n > 0 && m > 0 {
				return fmt.Errorf("only %d bytes", at)
			}
			return nil
		}
	}
}

// brokenAfter yields size bytes and then fails with err.
func brokenAfter(seed, size int64, err error) io.Reader {
	return plain{io.MultiReader(newContent(seed, size), failingReader{err})}
}

// plain hides every method of a reader but Read.
type plain struct{ io.Reader }

// cancellingReader ends the context of its own upload after some bytes and then goes on, as a source that does
// not watch the context would.
type cancellingReader struct {
	*content
	cancel context.CancelFunc
	left   int64
}

func (r *cancellingReader) Read(p []byte) (int, error) {
	n, err := r.content.Read(p)
	if r.left -= int64(n); r.left < 0 {
		r.cancel()
	}
	return n, err
}
