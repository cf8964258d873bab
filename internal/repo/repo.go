// Package repo keeps sealed objects in a store: written → compressed → encrypted → put, and back.
//
// A sealed object has a name, which its owner chose, and is stored under that name with the codec's extension. What
// is written is measured on the way ([Sealed]), so that it can be recorded and compared later. Documents are stored
// "plain": neither compressed nor encrypted, under their bare name.
//
// What it promises:
//   - an object becomes visible only when everything was written, compressed, encrypted and handed over without an
//     error, and the store acknowledged as many bytes as were sealed;
//   - the error that is returned is the first one that happened, the cause, not what it led to elsewhere;
//   - whatever it starts has ended when it returns.
//
// Memory: one Put or PutNew holds codec.WriterMemory, four chunks of 256 KiB between the codec and the store, a few
// KiB of cipher and hash, and what the store buffers; see [Repo.PutMemory].
package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"path"
	"strings"
	"sync"
	"time"

	"gitlab.com/walden-pg/walden/internal/codec"
	"gitlab.com/walden-pg/walden/internal/crypt"
	"gitlab.com/walden-pg/walden/internal/storage"
)

// ErrTooLarge is returned by [Repo.ReadPlain] for a document above its limit.
var ErrTooLarge = errors.New("object is too large")

// RetryPolicy bounds how often an object is written again from its beginning after the storage failed. Zero values
// stand for the defaults.
type RetryPolicy struct {
	Attempts int           // how often an object is tried at most, the first time included; default 3
	MinDelay time.Duration // wait before the second attempt, doubled for each further one; default 500 ms
	MaxDelay time.Duration // longest wait between two attempts; default 15 s
}

// Options are the settings of a Repo.
type Options struct {
	Retry RetryPolicy
	Log   *slog.Logger // is told about failed attempts; nil means nobody is
}

// Repo seals objects into a store and opens them. It may be used by many goroutines at once.
type Repo struct {
	store   storage.Store
	codec   codec.Codec
	cipher  crypt.Cipher
	plain   codec.Codec            // the one that changes nothing
	readers map[string]codec.Codec // by extension; kept, since each holds pools of buffers
	retry   RetryPolicy
	log     *slog.Logger
	chunks  *sync.Pool // of *[chunkSize]byte
}

// New returns a Repo that writes into s with codec c and cipher k, and reads what any codec wrote with cipher k.
func New(s storage.Store, c codec.Codec, k crypt.Cipher, o Options) *Repo {
	r := &Repo{store: s, codec: c, cipher: k, readers: map[string]codec.Codec{}, retry: o.Retry, log: o.Log,
		chunks: &sync.Pool{New: func() any { return new([chunkSize]byte) }}}
	for _, ext := range codec.Extensions() {
		if known, ok := codec.ByExtension(ext); ok {
			r.readers[ext] = known
		}
	}
	r.plain = r.readers[""]
	r.readers[c.Extension()] = c
	if r.retry.Attempts <= 0 {
		r.retry.Attempts = 3
	}
	if r.retry.MinDelay <= 0 {
		r.retry.MinDelay = 500 * time.Millisecond
	}
	if r.retry.MaxDelay <= 0 {
		r.retry.MaxDelay = 15 * time.Second
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	return r
}

// AtOnce is the same repo, which compresses n blocks of one object at the same time where its codec can; see [codec.AtOnce].
func (r *Repo) AtOnce(n int) *Repo {
	other := *r
	other.codec = codec.AtOnce(r.codec, n)
	return &other
}

// PutMemory is an upper bound for the memory, in bytes, that one Put or PutNew holds, without what the store and
// the caller's write function buffer. A budget for parallel uploads is a multiple of it.
func (r *Repo) PutMemory() int64 {
	return codec.WriterMemory(r.codec) + chunksPerPut*chunkSize + 256<<10
}

// ReadsBack tells whether what is written now can be read with the keys that are given: not with a public key alone.
func (r *Repo) ReadsBack() bool { return crypt.ReadsBack(r.cipher) }

// Names returns the names of the objects that can hold name, the one that Put would write first, then those of all
// other codecs, then "NAME." (which older WAL-G wrote without compression) and the bare name.
func (r *Repo) Names(name string) []string {
	names := []string{name + r.codec.Extension()}
	for _, ext := range append(codec.Extensions(), ".", "") {
		if ext != "" && ext != r.codec.Extension() {
			names = append(names, name+ext)
		}
	}
	if r.codec.Extension() != "" {
		names = append(names, name)
	}
	return names
}

// TrimExtension turns the name of an object into the name of what it holds: "X.lz4" and "X." become "X". Names
// without a codec's extension stay as they are.
func (r *Repo) TrimExtension(object string) string {
	if ext := path.Ext(object); ext == "." || r.readers[ext] != nil {
		return strings.TrimSuffix(object, ext)
	}
	return object
}

// decoder returns the codec of an object by the extension of its name: none for ".tar", "X." and all unknown ones.
func (r *Repo) decoder(object string) codec.Codec {
	if c, ok := r.readers[path.Ext(object)]; ok {
		return c
	}
	return r.plain
}

// Find returns the object that holds name. It asks for the one that Put would write, and only if that is absent for
// all others at once. Its answer is that of asking one after the other in the order of [Repo.Names]: the first that
// is there, unless one before it could not be asked about. Hence the error is fs.ErrNotExist only if the storage
// said of every one that it is not there.
func (r *Repo) Find(ctx context.Context, name string) (storage.Object, error) {
	names := r.Names(name)
	o, err := r.store.Stat(ctx, names[0])
	if !errors.Is(err, fs.ErrNotExist) {
		return o, err
	}
	others := names[1:]
	objects, errs := make([]storage.Object, len(others)), make([]error, len(others))
	var wg sync.WaitGroup
	for i, other := range others {
		wg.Go(func() { objects[i], errs[i] = r.store.Stat(ctx, other) })
	}
	wg.Wait()
	for i, err := range errs {
		if !errors.Is(err, fs.ErrNotExist) {
			return objects[i], err
		}
	}
	return storage.Object{}, fmt.Errorf("cannot find %q in %s under any extension: %w", name, r.store, fs.ErrNotExist)
}

// PutPlain stores the document b under name and replaces what was there.
func (r *Repo) PutPlain(ctx context.Context, name string, b []byte) error {
	_, err := r.put(ctx, r.document(name, r.store.Put), writeBytes(b))
	return err
}

// PutPlainNew is PutPlain for a name that must be free: it returns storage.ErrExists if it is not.
func (r *Repo) PutPlainNew(ctx context.Context, name string, b []byte) error {
	_, err := r.put(ctx, r.document(name, r.store.PutNew), writeBytes(b))
	return err
}

// PutPlainStream is PutPlain for a document that is too large to be held in memory. write may be called again after
// a failure of the storage and must then start from the beginning.
func (r *Repo) PutPlainStream(ctx context.Context, name string, write func(io.Writer) error) (Sealed, error) {
	return r.put(ctx, r.document(name, r.store.Put), write)
}

func writeBytes(b []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}
}

// ReadPlain gives read a document of at most limit bytes; the error for a larger one is [ErrTooLarge]. When the storage
// fails in the middle read is called again, as the retry policy says: it must start from the beginning each time. An error of
// read's own is returned at once and as it is.
func (r *Repo) ReadPlain(ctx context.Context, name string, limit int64, read func(io.Reader) error) error {
	return r.Again(ctx, name, func() (bool, error) {
		body, err := r.store.Get(ctx, name)
		if err != nil {
			return false, err // opening is repeated by the store, see storage.WithRetry
		}
		in := &plainReader{r: body, left: limit}
		err = read(in)
		cerr := body.Close()
		switch {
		case errors.Is(in.err, ErrTooLarge):
			return false, fmt.Errorf("cannot read %q from %s: %w: it has more than %d bytes", name, r.store, ErrTooLarge, limit)
		case in.err != nil:
			return true, fmt.Errorf("cannot read %q from %s: %w", name, r.store, in.err)
		case err == nil && cerr != nil:
			return true, fmt.Errorf("cannot read %q from %s: %w", name, r.store, cerr)
		}
		return false, err
	})
}

// plainReader reads a document up to its limit and remembers its own failures, which are not those of what reads it.
type plainReader struct {
	r    io.Reader
	left int64
	err  error
}

func (p *plainReader) Read(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	n, err := p.r.Read(b[:min(int64(len(b)), p.left+1)])
	if p.left -= int64(n); p.left < 0 {
		p.err = ErrTooLarge
		return 0, p.err
	}
	if err != io.EOF {
		p.err = err
	}
	return n, err
}

// GetPlain is ReadPlain for a document that is to be held in memory.
func (r *Repo) GetPlain(ctx context.Context, name string, limit int64) (b []byte, err error) {
	err = r.ReadPlain(ctx, name, limit, func(body io.Reader) error {
		b, err = io.ReadAll(body)
		return err
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Stat describes a stored object, see storage.Store.
func (r *Repo) Stat(ctx context.Context, object string) (storage.Object, error) {
	return r.store.Stat(ctx, object)
}

// List yields what lies directly below dir, see storage.Store.
func (r *Repo) List(ctx context.Context, dir string) iter.Seq2[storage.Object, error] {
	return r.store.List(ctx, dir)
}

// Walk visits every object below dir, which is "" or ends in a slash.
func (r *Repo) Walk(ctx context.Context, dir string, visit func(storage.Object)) error {
	folders := []string{dir}
	for len(folders) > 0 {
		dir, folders = folders[len(folders)-1], folders[:len(folders)-1]
		for o, err := range r.List(ctx, dir) {
			if err != nil {
				return err
			}
			if o.IsDir() {
				folders = append(folders, o.Key)
			} else {
				visit(o)
			}
		}
	}
	return nil
}

// Delete removes stored objects, see storage.Store.
func (r *Repo) Delete(ctx context.Context, objects ...string) error {
	return r.store.Delete(ctx, objects...)
}

// Check fails with a clear cause if the storage cannot be used, see storage.Store.
func (r *Repo) Check(ctx context.Context) error { return r.store.Check(ctx) }

// String names the storage for messages.
func (r *Repo) String() string { return r.store.String() }
