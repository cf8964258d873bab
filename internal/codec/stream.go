package codec

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"
)

// encoder and decoder are what a compression library provides. Both can be used again for another stream.
type (
	encoder interface {
		io.WriteCloser
		Reset(w io.Writer)
	}
	decoder interface {
		io.Reader
		Reset(r io.Reader) error
	}
)

// method is a Codec around a compression library: which library, and what all of them need besides.
//
// A writer owns megabytes of buffers and tables; making them anew for every 16 MiB of WAL costs more time than
// compressing. Hence the pools, which the garbage collector may empty.
type method struct {
	name         string
	extension    string
	writerMemory int64 // see WriterMemory; kept true by TestWriterMemoryIsAnUpperBound
	newEncoder   func() (encoder, error)
	newDecoder   func() (decoder, error)
	atOnce       []*method // see AtOnce, by the number of blocks; nil if the method compresses one at a time

	encoders sync.Pool // of encoder
	inputs   sync.Pool // of *input
}

// Name returns the method's name in settings.
func (m *method) Name() string { return m.name }

// Extension returns the extension of the method's objects, with the dot.
func (m *method) Extension() string { return m.extension }

// NewWriter compresses into w.
func (m *method) NewWriter(w io.Writer) (io.WriteCloser, error) {
	enc, ok := m.encoders.Get().(encoder)
	if !ok {
		var err error
		if enc, err = m.newEncoder(); err != nil {
			return nil, fmt.Errorf("cannot set up %s compression: %w", m.name, err)
		}
	}
	enc.Reset(w)
	return &writer{method: m, enc: enc}, nil
}

// NewReader decompresses r. It reads from r first when it is read from itself.
func (m *method) NewReader(r io.Reader) (io.ReadCloser, error) {
	in, ok := m.inputs.Get().(*input)
	if !ok {
		dec, err := m.newDecoder()
		if err != nil {
			return nil, fmt.Errorf("cannot set up %s decompression: %w", m.name, err)
		}
		in = &input{dec: dec}
		in.buf = bufio.NewReaderSize(&in.src, inputBuffer)
	}
	in.src = source{r: r}
	in.buf.Reset(&in.src)
	return &reader{method: m, in: in}, nil
}

var (
	errClosed  = errors.New("stream is closed")
	errEmpty   = errors.New("it is empty")
	errTrailer = errors.New("bytes follow its end")
)

// writer is one compressed stream being written.
type writer struct {
	method  *method
	enc     encoder // nil once closed
	started bool    // Write or ReadFrom was called
	err     error   // the first error; it stays
}

// Write compresses p.
func (w *writer) Write(p []byte) (int, error) {
	if w.enc == nil {
		return 0, errClosed
	}
	if w.err != nil {
		return 0, w.err
	}
	w.started = true
	n, err := w.enc.Write(p)
	w.err = err
	return n, err
}

// ReadFrom compresses all of r, reading whole blocks into the encoder's own buffer if it can.
func (w *writer) ReadFrom(r io.Reader) (int64, error) {
	from, ok := w.enc.(io.ReaderFrom)
	// An lz4 encoder would put what it reads before what it still holds from an earlier Write.
	if !ok || w.started || w.err != nil {
		return io.Copy(struct{ io.Writer }{w}, r)
	}
	w.started = true
	n, err := from.ReadFrom(r)
	w.err = err
	return n, err
}

// Close ends the stream. After a failed Write it only gives the buffers back and returns that error.
func (w *writer) Close() error {
	if w.enc == nil {
		return nil
	}
	enc := w.enc
	w.enc = nil
	err := w.err
	if cerr := enc.Close(); err == nil {
		err = cerr
	}
	// Also after a failure: Close of an lz4 encoder that failed leaves the goroutine running that puts blocks in order.
	enc.Reset(nil)
	if err == nil { // the state of an encoder that failed is unknown: it is dropped
		w.method.encoders.Put(enc)
	}
	return err
}

// inputBuffer is the size in bytes of the buffer before each decoder. Decoders ask for a few bytes at a time between
// blocks; blocks themselves bypass it.
const inputBuffer = 64 << 10

// input is a decoder with its buffer, the part of a reader that is used again.
type input struct {
	src source
	buf *bufio.Reader
	dec decoder
}

// source is the compressed stream. It remembers how its reader ended, which tells a failed read from damage.
type source struct {
	r   io.Reader
	n   int64 // bytes read
	err error // the first error of r; it stays
}

func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	s.n += int64(n)
	s.err = err
	return n, err
}

// reader is one compressed stream being read.
type reader struct {
	method  *method
	in      *input // nil once closed
	started bool
	err     error // the first error, or io.EOF; it stays
}

// Read decompresses into p.
func (r *reader) Read(p []byte) (int, error) {
	if r.in == nil {
		return 0, errClosed
	}
	if len(p) == 0 || !r.start() {
		return 0, r.err
	}
	n, err := r.in.dec.Read(p)
	if err != nil {
		r.err = r.verdict(err)
	}
	return n, r.err
}

// WriteTo decompresses everything into w, whole blocks at a time if the decoder can.
func (r *reader) WriteTo(w io.Writer) (int64, error) {
	if r.in == nil {
		return 0, errClosed
	}
	to, ok := r.in.dec.(io.WriterTo)
	if !ok {
		return io.Copy(w, struct{ io.Reader }{r})
	}
	if !r.start() {
		if r.err == io.EOF {
			return 0, nil
		}
		return 0, r.err
	}
	dst := sink{w: w}
	n, err := to.WriteTo(&dst)
	if dst.err != nil {
		r.err = dst.err
		return n, r.err
	}
	if err == nil {
		err = io.EOF
	}
	if r.err = r.verdict(err); r.err == io.EOF {
		return n, nil
	}
	return n, r.err
}

// start begins the stream on the first call and tells whether there is something to read.
func (r *reader) start() bool {
	if r.err == nil && !r.started {
		r.started = true
		err := r.in.dec.Reset(r.in.buf)
		if err == io.EOF { // of a decoder that reads its header now: even an empty stream has one
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			r.err = r.verdict(err)
		}
	}
	return r.err == nil
}

// verdict says what a decoder's error, or its io.EOF, means.
func (r *reader) verdict(err error) error {
	src := &r.in.src
	if err == io.EOF {
		// Not every decoder looks behind the end of its stream.
		switch _, peek := r.in.buf.Peek(1); {
		case src.n == 0 && src.err == io.EOF:
			err = errEmpty
		case peek == nil:
			err = errTrailer
		}
	}
	switch {
	case src.err != nil && src.err != io.EOF:
		return src.err
	case err == io.EOF && src.err == io.EOF:
		return io.EOF
	}
	return &damage{method: r.method.name, cause: err}
}

// Close gives the buffers back.
func (r *reader) Close() error {
	if r.in == nil {
		return nil
	}
	in := r.in
	r.in = nil
	if d, ok := in.dec.(interface{ release() }); ok {
		d.release()
	}
	in.src = source{err: errClosed}
	if r.err == nil || r.err == io.EOF { // a decoder that met damage is not trusted again
		r.method.inputs.Put(in)
	}
	return nil
}

// sink remembers the error of the destination, which is not the stream's fault.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if s.err == nil {
		s.err = err
	}
	return n, err
}

// damage is the error about bytes that are no complete stream of their method.
type damage struct {
	method string
	cause  error
}

func (d *damage) Error() string { return fmt.Sprintf("damaged %s stream: %v", d.method, d.cause) }

func (d *damage) Is(target error) bool { return target == ErrDamaged }

func (d *damage) Unwrap() error { return d.cause }
