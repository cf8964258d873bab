package codec

import (
	"io"

	"github.com/klauspost/compress/zstd"
)

// pieceSize is how much of a stream becomes a frame of its own where several are compressed at the same time, in bytes. It is the window, too: nothing
// refers to an earlier piece. On heap pages it costs less than a hundredth of the ratio.
const pieceSize = 4 * mib

// pieces is an encoder that compresses n pieces of a stream at the same time and writes them in their order. A stream of several frames is one to every
// reader (RFC 8878, section 3).
type pieces struct {
	n      int
	frames *zstd.Encoder // used by several goroutines at once
	out    io.Writer
	filled []byte  // the piece that is being filled
	begun  []*work // in the order of the stream
	idle   []*work
	wrote  bool // a frame was begun
	err    error
}

// work is a piece being compressed.
type work struct {
	piece, frame []byte
	done         chan struct{} // of one element
}

func newPieces(n int, o ...zstd.EOption) (*pieces, error) {
	frames, err := zstd.NewWriter(nil, append(o, zstd.WithEncoderConcurrency(n), zstd.WithWindowSize(pieceSize))...)
	return &pieces{n: n, frames: frames}, err
}

// Reset begins another stream, after all that belongs to the last one has ended.
func (p *pieces) Reset(w io.Writer) {
	for _, job := range p.begun {
		<-job.done
		p.idle = append(p.idle, job)
	}
	p.out, p.filled, p.begun, p.wrote, p.err = w, p.filled[:0], p.begun[:0], false, nil
}

// Write implements io.Writer. What it reports may be the failure of an earlier piece.
func (p *pieces) Write(b []byte) (n int, err error) {
	if p.filled == nil {
		p.filled = make([]byte, 0, pieceSize)
	}
	for len(b) > 0 && p.err == nil {
		m := min(len(b), pieceSize-len(p.filled))
		p.filled = append(p.filled, b[:m]...)
		b, n = b[m:], n+m
		if len(p.filled) == pieceSize {
			p.begin()
		}
	}
	return n, p.err
}

// begin has the piece compressed, as soon as there are less than n.
func (p *pieces) begin() {
	if len(p.begun) == p.n {
		p.end()
	}
	job := &work{done: make(chan struct{}, 1)}
	if last := len(p.idle) - 1; last >= 0 {
		job, p.idle = p.idle[last], p.idle[:last]
	}
	job.piece, p.filled = p.filled, job.piece[:0]
	if p.filled == nil {
		p.filled = make([]byte, 0, pieceSize)
	}
	p.begun, p.wrote = append(p.begun, job), true
	go func() {
		job.frame = p.frames.EncodeAll(job.piece, job.frame[:0])
		job.done <- struct{}{}
	}()
}

// end waits for the first piece and writes it.
func (p *pieces) end() {
	job := p.begun[0]
	p.begun = append(p.begun[:0], p.begun[1:]...)
	<-job.done
	if p.err == nil {
		_, p.err = p.out.Write(job.frame)
	}
	p.idle = append(p.idle, job)
}

// Close writes what is left. An empty stream is an empty frame.
func (p *pieces) Close() error {
	if p.err == nil && (len(p.filled) > 0 || !p.wrote) {
		p.begin()
	}
	for len(p.begun) > 0 {
		p.end()
	}
	return p.err
}
