package repo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"time"

	"gitlab.com/walden-pg/walden/internal/codec"
	"gitlab.com/walden-pg/walden/internal/crypt"
	"gitlab.com/walden-pg/walden/internal/storage"
)

// Sealed is what was measured while an object was written, or read to its end.
type Sealed struct {
	Object    string   // name as stored, with extension
	Size      int64    // bytes as stored
	PlainSize int64    // bytes before compression
	SHA256    [32]byte // of the stored bytes
}

// Put stores what write produces under name with the codec's extension, and replaces what was there.
//
// When the storage fails in a way that another attempt may cure, write is called again: it must start from the
// beginning each time. An error of write's own is returned at once and as it is. write must return soon after a
// Write failed; it runs on the caller's goroutine.
func (r *Repo) Put(ctx context.Context, name string, write func(io.Writer) error) (Sealed, error) {
	return r.put(ctx, target{name + r.codec.Extension(), r.store.Put, r.codec, r.cipher}, write)
}

// PutNew is Put for a name that must be free: it returns storage.ErrExists if it is not. What an earlier attempt of
// the same call has stored, with the storage's answer lost, counts as success.
func (r *Repo) PutNew(ctx context.Context, name string, write func(io.Writer) error) (Sealed, error) {
	return r.put(ctx, target{name + r.codec.Extension(), r.store.PutNew, r.codec, r.cipher}, write)
}

// Measure returns the size in bytes that an object has as stored with what write produces. Nothing is stored.
func (r *Repo) Measure(write func(io.Writer) error) (int64, error) {
	sealed := &countingWriter{w: io.Discard}
	encrypted, err := r.cipher.Encrypt(sealed)
	if err != nil {
		return 0, fmt.Errorf("cannot encrypt: %w", err)
	}
	compressed, err := r.codec.NewWriter(encrypted)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("cannot compress: %w", err), encrypted.Close())
	}
	err = errors.Join(write(compressed), compressed.Close(), encrypted.Close())
	return sealed.n, err
}

// target is where and how an object is stored.
type target struct {
	object string
	store  func(ctx context.Context, key string, r io.Reader) error
	codec  codec.Codec
	cipher crypt.Cipher
}

// document is the target of what is neither compressed nor encrypted.
func (r *Repo) document(name string, store func(context.Context, string, io.Reader) error) target {
	return target{name, store, r.plain, crypt.None{}}
}

func (r *Repo) put(ctx context.Context, t target, write func(io.Writer) error) (sealed Sealed, err error) {
	var earlier []Sealed // complete objects of failed attempts: any of them may have been stored all the same
	err = r.Again(ctx, t.object, func() (bool, error) {
		attempt, complete, err := r.attempt(ctx, t, write)
		var own *producerError
		switch {
		case err == nil:
			sealed = attempt
			return false, nil
		case errors.As(err, &own):
			return false, own.cause
		case errors.Is(err, storage.ErrExists) && len(earlier) > 0:
			// Encryption makes each attempt's bytes different, hence all earlier ones are compared.
			stored, cerr := r.hash(ctx, t.object)
			if cerr != nil {
				return true, fmt.Errorf("cannot tell who stored %q in %s: %w", t.object, r.store, cerr)
			}
			for _, e := range earlier {
				if e.Size == stored.Size && e.SHA256 == stored.SHA256 {
					sealed = e
					return false, nil
				}
			}
			return false, err
		case complete:
			earlier = append(earlier, attempt)
		}
		return true, err
	})
	return sealed, err
}

// Again calls try until it succeeds, says that no other attempt can help, or the retry policy is exhausted. The object is
// named in messages.
func (r *Repo) Again(ctx context.Context, object string, try func() (retry bool, err error)) error {
	delay := r.retry.MinDelay
	var last error
	for attempt := 1; ; attempt++ {
		retry, err := try()
		if err == nil {
			return nil
		}
		if cause := context.Cause(ctx); cause != nil {
			if errors.Is(err, ctx.Err()) || errors.Is(err, cause) {
				if failed := storage.LastFailure(err); failed != nil {
					last = failed
				}
				if last != nil {
					return fmt.Errorf("cannot finish with %q in %s: %w; the last attempt failed: %w", object, r.store, cause, last)
				}
				return fmt.Errorf("cannot finish with %q in %s: %w", object, r.store, cause)
			}
			return err
		}
		if !retry || final(err) {
			return err
		}
		last = err
		if attempt == r.retry.Attempts {
			if attempt > 1 {
				err = fmt.Errorf("%w (tried %d times)", err, attempt)
			}
			return err
		}
		wait := min(delay, r.retry.MaxDelay)
		wait = wait/2 + rand.N(wait/2+1) // so that many workers do not come back at the same moment
		delay = min(2*delay, r.retry.MaxDelay)
		r.log.LogAttrs(ctx, slog.LevelWarn, "storage failed, trying again", slog.String("object", object),
			slog.Int("attempt", attempt), slog.Duration("wait", wait), slog.Any("error", err))
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w while waiting to try again after: %w", context.Cause(ctx), err)
		}
	}
}

// final tells whether err is an answer of the storage that will not change by asking again.
func final(err error) bool {
	return storage.IsPermanent(err) || errors.Is(err, storage.ErrExists) || errors.Is(err, fs.ErrNotExist) ||
		errors.Is(err, fs.ErrPermission)
}

// producerError marks what went wrong before the bytes reached the storage.
type producerError struct{ cause error }

func (e *producerError) Error() string { return e.cause.Error() }
func (e *producerError) Unwrap() error { return e.cause }

var (
	errAbandoned = errors.New("writing was abandoned")
	errFinished  = errors.New("the object was already handed over")
)

// attempt writes an object once. complete tells whether everything was sealed and taken by the store, even if the
// store then reported an error: only then is attempt's Sealed meaningful and might the object be there.
func (r *Repo) attempt(ctx context.Context, t target, write func(io.Writer) error) (_ Sealed, complete bool, _ error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	h := newHandoff(r.chunks)
	stored := make(chan error, 1)
	go func() {
		err := t.store(ctx, t.object, h)
		h.finish(err)
		stored <- err
	}()
	ended := false
	defer func() {
		if !ended { // write panicked or ended its goroutine
			h.fail(&producerError{errAbandoned})
			cancel(errAbandoned)
			<-stored //nolint:errcheck // what happened in write is told, not what it led to here
		}
	}()
	release := context.AfterFunc(ctx, func() { h.fail(context.Cause(ctx)) })

	plain, err := seal(t, h, write)
	if err != nil {
		h.fail(&producerError{err}) // does nothing if the store had failed before, which is the cause then
		cancel(err)
	}
	storeErr := <-stored
	release()
	ended = true

	switch {
	case storeErr == nil && h.ended && h.taken == h.sealed: // stored, even if the context ended in this moment
		err = nil
	case h.cause() != nil:
		err = h.cause()
	default:
		err = fmt.Errorf("cannot store %q in %s: it took %d of at least %d bytes and reported success",
			t.object, r.store, h.taken, h.sealed)
	}
	sealed := Sealed{Object: t.object, Size: h.taken, PlainSize: plain}
	h.hash.Sum(sealed.SHA256[:0])
	return sealed, h.ended, err
}

// seal sends what write produces through the codec and the cipher into h. Both are closed whatever happens, since
// they may own buffers; after an error nothing of that reaches the store.
func seal(t target, h *handoff, write func(io.Writer) error) (plain int64, err error) {
	encrypted, err := t.cipher.Encrypt(h)
	if err != nil {
		return 0, fmt.Errorf("cannot encrypt %q: %w", t.object, err)
	}
	compressed, err := t.codec.NewWriter(encrypted)
	if err != nil {
		h.fail(&producerError{err})
		return 0, errors.Join(fmt.Errorf("cannot compress %q: %w", t.object, err), encrypted.Close())
	}
	counted := &countingWriter{w: compressed}
	if err = write(counted); err != nil {
		h.fail(&producerError{err})
	}
	for _, layer := range []io.Closer{compressed, encrypted} {
		if cerr := layer.Close(); cerr != nil && err == nil {
			err = cerr
			h.fail(&producerError{fmt.Errorf("cannot seal %q: %w", t.object, err)})
		}
	}
	if err == nil {
		err = h.end()
	}
	return counted.n, err
}

// hash reads a stored object and measures it.
func (r *Repo) hash(ctx context.Context, object string) (Sealed, error) {
	body, err := r.store.Get(ctx, object)
	if err != nil {
		return Sealed{}, err
	}
	s, err := measure(object, body)
	return s, errors.Join(err, body.Close())
}

// measure reads body to its end.
func measure(object string, body io.Reader) (Sealed, error) {
	s := Sealed{Object: object}
	sum := sha256.New()
	n, err := io.Copy(sum, body)
	s.Size = n
	sum.Sum(s.SHA256[:0])
	return s, err
}

// damaged tells whether an error blames the bytes that were read, so that reading them again is of no use.
func damaged(err error) bool { return errors.Is(err, codec.ErrDamaged) }

// countingWriter counts bytes.
type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// ReadFrom lets the codec read whole blocks directly from a file.
func (c *countingWriter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(c.w, r)
	c.n += n
	return n, err
}
