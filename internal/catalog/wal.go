package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"

	"golang.org/x/sync/errgroup"

	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// WAL is the part of the archive that holds WAL segments, history files and what else the server archives. Files are
// known by the names that PostgreSQL gives them.
type WAL struct{ c *Catalog }

// WAL gives access to the archive's WAL.
func (c *Catalog) WAL() *WAL { return &WAL{c} }

// String names the archive for messages.
func (w *WAL) String() string { return w.c.String() }

// PutNew archives a file that is not there yet, under whatever codec; otherwise it returns [storage.ErrExists].
// write may be called again after a failure of the storage and must start from the beginning then.
func (w *WAL) PutNew(ctx context.Context, name string, write func(io.Writer) error) (repo.Sealed, error) {
	taken, err := w.underOtherCodec(ctx, name)
	if err != nil {
		return repo.Sealed{}, err
	}
	if taken {
		return repo.Sealed{}, fmt.Errorf("cannot archive %s in %s: %w", name, w, storage.ErrExists)
	}
	return w.c.repo.PutNew(ctx, walDir+name, write)
}

// underOtherCodec tells whether the file is archived under an object name that PutNew would not collide with.
func (w *WAL) underOtherCodec(ctx context.Context, name string) (bool, error) {
	g, ctx := errgroup.WithContext(ctx)
	for _, object := range w.c.repo.Names(walDir + name)[1:] {
		g.Go(func() error {
			_, err := w.c.repo.Stat(ctx, object)
			switch {
			case err == nil:
				return storage.ErrExists
			case errors.Is(err, fs.ErrNotExist):
				return nil
			}
			return fmt.Errorf("cannot tell whether %s is archived in %s: %w", name, w, err)
		})
	}
	err := g.Wait()
	if errors.Is(err, storage.ErrExists) {
		return true, nil
	}
	return false, err
}

// Open opens an archived file for reading its decoded bytes. The error is [fs.ErrNotExist] only if the storage said of
// every name that the file can have that there is no such object.
func (w *WAL) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := w.c.repo.Open(ctx, w.c.repo.Names(walDir + name)[0])
	if !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	o, err := w.c.repo.Find(ctx, walDir+name)
	if err != nil {
		return nil, err
	}
	return w.c.repo.Open(ctx, o.Key)
}

// DeltaName names the object that holds what changed in a group of segments, like a file that the server archives. first is the first segment
// of the group (WAL-G format, "WAL-delta objects").
func DeltaName(first wal.Segment, segmentSize int64) string {
	return first.Name(segmentSize) + deltaSuffix
}

// SameSize tells whether an archived file has the size that it would have if it were archived now with the content that write
// produces, for those who cannot decrypt it. It is necessary for equal contents and not sufficient. False also means that it was compressed in another way.
func (w *WAL) SameSize(ctx context.Context, name string, write func(io.Writer) error) (bool, error) {
	o, err := w.c.repo.Find(ctx, walDir+name)
	if err != nil {
		return false, err
	}
	if o.Key != w.c.repo.Names(walDir + name)[0] {
		return false, nil
	}
	size, err := w.c.repo.Measure(write)
	// A session key encrypted with RSA is a number, which is written without its leading zeros, for each recipient.
	const slack = 16
	return err == nil && max(size-o.Size, o.Size-size) <= slack, err
}

// Has tells whether a file is archived.
func (w *WAL) Has(ctx context.Context, name string) (bool, error) {
	_, err := w.c.repo.Find(ctx, walDir+name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Missing returns those of the segments first to last that are not archived, in ascending order. It takes one listing.
func (w *WAL) Missing(ctx context.Context, first, last wal.Segment, segmentSize int64) ([]wal.Segment, error) {
	there := map[wal.Segment]bool{}
	for name, err := range w.Names(ctx) {
		if err != nil {
			return nil, err
		}
		s, err := wal.ParseSegment(name, segmentSize)
		if err == nil && s.Timeline == first.Timeline && s.Number >= first.Number && s.Number <= last.Number {
			there[s] = true
		}
	}
	var missing []wal.Segment
	for s := range wal.Segments(first, last) {
		if !there[s] {
			missing = append(missing, s)
		}
	}
	return missing, nil
}

// newestSegment returns the name of the segment that sorts last, "" if there is none.
func (w *WAL) newestSegment(ctx context.Context) (string, error) {
	newest := ""
	for name, err := range w.Names(ctx) {
		if err != nil {
			return "", err
		}
		if wal.Classify(name) == wal.KindSegment {
			newest = max(newest, name)
		}
	}
	return newest, nil
}

// Names yields the names of all archived files, in no order. It takes one listing, which ends with the loop.
func (w *WAL) Names(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for o, err := range w.c.repo.List(ctx, walDir) {
			if err != nil {
				yield("", fmt.Errorf("cannot list the WAL in %s: %w", w, err))
				return
			}
			if !o.IsDir() && !yield(w.c.repo.TrimExtension(baseName(o.Key)), nil) {
				return
			}
		}
	}
}

// header reads the header of an archived segment, again if the storage fails in the middle.
func (w *WAL) header(ctx context.Context, name string) (wal.Header, error) {
	b := make([]byte, wal.HeaderSize)
	err := w.c.repo.Again(ctx, walDir+name, func() (retry bool, err error) {
		r, err := w.Open(ctx, name)
		if err != nil {
			return false, err // opening is repeated by the store
		}
		_, err = io.ReadFull(r, b)
		cerr := r.Close()
		if err == nil {
			err = cerr
		}
		if err != nil {
			err = fmt.Errorf("cannot read archived segment %s: %w", name, err)
		}
		return !errors.Is(err, ErrDamaged), err
	})
	if err != nil {
		return wal.Header{}, err
	}
	h, err := wal.ParseHeader(b)
	if errors.Is(err, wal.ErrNotWAL) { // or it is encrypted, and read without a key
		err = fmt.Errorf("cannot read archived segment %s: %w: %w", name, ErrDamaged, err)
	}
	return h, err
}
