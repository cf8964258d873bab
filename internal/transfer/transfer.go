// Package transfer takes what an archive holds from one storage to another, byte for byte: whole archives between two places ([Copy]),
// any objects ([CopyObjects]), and what lies in the wrong one of an archive's storages ([Move], [MoveBackups]).
//
// Its nouns: an end ([End]) is one of the two storages; an object is carried when it is copied unless it is there.
//
// What it promises, wherever it is cut off:
//   - the same call again completes it, and what was carried once is not carried again;
//   - a backup is listed only where all of it is: its sentinel is the last to arrive and the first to leave;
//   - nothing at the destination is replaced by other content, unless that was asked for;
//   - nothing leaves the source before the destination has shown what it has read back of it.
//
// Memory: each of the workers holds what one repo.Repo.PutLayers does and a buffer of 128 KiB; besides, about 200 bytes for each object.
package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage"
)

// End is one of the two ends: the archive as objects, and as what they mean.
type End struct {
	Repo    *repo.Repo
	Catalog *catalog.Catalog
}

func (e End) String() string { return e.Repo.String() }

// Progress is told how many bytes are to be carried and are.
type Progress interface {
	Begin(total int64)
	Add(n int64)
	End()
}

// Deps are what every call works with.
type Deps struct {
	From, To End
	Log      *slog.Logger
	Progress Progress
	Workers  int // objects that are carried at the same time; at least 1
}

// Count is a number of objects and of their bytes as stored at the source.
type Count struct {
	Objects int
	Bytes   int64
}

func (c *Count) add(size int64) {
	c.Objects++
	c.Bytes += size
}

// Report is what was done.
type Report struct {
	Backups []string // that are complete at the destination now, oldest first
	Copied  Count
	Kept    Count // what was there already
	Removed Count // at the source
}

// known says what an object of the same name at the destination has to be, so that it can stay.
type known int

const (
	sameSize    known = iota // and the same content where its hash is recorded
	sameContent              // whatever its size
	anything                 // it is the destination's own
	replaceable              // other content is replaced
)

// object is one that is to be carried.
type object struct {
	catalog.StoredObject
	known known
}

// carrier carries objects. It may be used by many goroutines at once.
type carrier struct {
	Deps
	off, on  repo.Layers // what is taken off at the source, and put around at the destination
	checksum bool        // compare contents wherever an object is there already
	buffers  sync.Pool

	mu     sync.Mutex
	report Report
}

const bufferSize = 128 << 10

func newCarrier(d Deps) *carrier {
	c := &carrier{Deps: d}
	c.Workers = max(1, c.Workers)
	c.buffers.New = func() any { return new([bufferSize]byte) }
	return c
}

// ConflictError says that the destination holds another object under the same name.
type ConflictError struct {
	Key, Where, Differs string
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%q in %s is another object: %s", e.Key, e.Where, e.Differs)
}

// Hint says what can be done.
func (e *ConflictError) Hint() string {
	return "nothing is replaced; choose another place, or remove that object if you know that it is the wrong one"
}

func (c *carrier) conflict(key, format string, args ...any) error {
	return &ConflictError{key, c.To.String(), fmt.Sprintf(format, args...)}
}

// carryAll carries objects, several at a time and begun in their order. there are the sizes of what the destination holds, by name.
func (c *carrier) carryAll(ctx context.Context, objects []object, there map[string]int64) error {
	g, group := errgroup.WithContext(ctx)
	g.SetLimit(c.Workers)
	for _, o := range objects {
		if group.Err() != nil {
			break
		}
		g.Go(func() error {
			_, err := c.carry(group, o, there)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// carry brings one object to the destination, unless it is there. It returns the hash of its content, where it was read.
func (c *carrier) carry(ctx context.Context, o object, there map[string]int64) (hash string, err error) {
	size, exists := there[o.Key]
	if o.known != sameSize && o.known != anything && o.SHA256 == "" {
		// Without a recorded hash only a second reading tells that the first one was right. Of documents, and of what leaves the source,
		// that has to be known.
		read, err := c.From.Repo.Hash(ctx, o.Key, c.off)
		if err != nil {
			return "", fmt.Errorf("cannot read %q: %w", o.Key, gone(err))
		}
		o.SHA256 = hex.EncodeToString(read.SHA256[:])
	}
	if !exists {
		hash, err = c.copy(ctx, o, false)
		if !errors.Is(err, storage.ErrExists) {
			return hash, err
		}
		stat, err := c.To.Repo.Stat(ctx, o.Key) // another process was faster, or a listing was late
		if err != nil {
			return "", err
		}
		size = stat.Size
	}
	kept, hash, err := c.keeps(ctx, o, size)
	if err != nil {
		return "", err
	}
	if !kept {
		return c.copy(ctx, o, true)
	}
	c.Progress.Add(o.Size)
	c.mu.Lock()
	c.report.Kept.add(o.Size)
	c.mu.Unlock()
	return hash, nil
}

// keeps tells whether what the destination has under the object's name is to stay.
func (c *carrier) keeps(ctx context.Context, o object, size int64) (kept bool, hash string, err error) {
	if o.known == anything {
		return true, "", nil
	}
	asItIs := c.off == repo.Layers{} && c.on == repo.Layers{}
	if asItIs && size != o.Size {
		if o.known == replaceable {
			return false, "", nil
		}
		return false, "", c.conflict(o.Key, "it has %d bytes, the one in %s has %d", size, c.From, o.Size)
	}
	if o.known == sameSize && o.SHA256 == "" && !c.checksum && asItIs {
		return true, "", nil
	}
	theirs, err := c.To.Repo.Hash(ctx, o.Key, c.on)
	if err != nil {
		return false, "", fmt.Errorf("cannot compare %q: %w", o.Key, err)
	}
	ours := o.SHA256
	if ours == "" {
		read, err := c.From.Repo.Hash(ctx, o.Key, c.off)
		if err != nil {
			return false, "", fmt.Errorf("cannot compare %q: %w", o.Key, err)
		}
		ours = hex.EncodeToString(read.SHA256[:])
	}
	switch {
	case hex.EncodeToString(theirs.SHA256[:]) == ours:
		return true, ours, nil
	case o.known == replaceable:
		return false, "", nil
	}
	return false, "", c.conflict(o.Key, "its content is not that of the one in %s", c.From)
}

// copy reads an object at the source and stores it at the destination. Where a hash is recorded, nothing appears there that has another.
func (c *carrier) copy(ctx context.Context, o object, replace bool) (string, error) {
	var hash string
	err := c.From.Repo.Again(ctx, o.Key, func() (bool, error) {
		atSource := false // the failure is the source's, and the destination gives up on it at once
		_, err := c.To.Repo.PutLayers(ctx, o.Key, c.on, replace, func(w io.Writer) error {
			whole, err := c.read(ctx, o, w)
			if err == nil {
				hash = whole // a further attempt may end early, when it finds that one before has stored the object
			}
			atSource = err != nil
			return err
		})
		return atSource && !errors.Is(err, catalog.ErrDamaged), err
	})
	if err != nil {
		return "", fmt.Errorf("cannot copy %q from %s to %s: %w", o.Key, c.From, c.To, gone(err))
	}
	c.mu.Lock()
	c.report.Copied.add(o.Size)
	c.mu.Unlock()
	return hash, nil
}

// gone adds advice to the error for an object that was listed and is not there.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return hint.With(err, "it was deleted meanwhile; the same command again copies what is there now")
	}
	return err
}

// read passes an object on to w, and proves that it was all of it.
func (c *carrier) read(ctx context.Context, o object, w io.Writer) (hash string, err error) {
	body, err := c.From.Repo.OpenLayers(ctx, o.Key, c.off)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	buffer := c.buffers.Get().(*[bufferSize]byte)
	defer c.buffers.Put(buffer)
	passed := &passedOn{w: io.MultiWriter(w, sum), progress: c.Progress}
	_, err = io.CopyBuffer(passed, struct{ io.Reader }{body}, buffer[:])
	if cerr := body.Close(); err == nil {
		err = cerr
	}
	hash = hex.EncodeToString(sum.Sum(nil))
	switch {
	case err != nil:
	case c.off == repo.Layers{} && passed.n != o.Size:
		err = fmt.Errorf("%q in %s has %d bytes, and was listed with %d", o.Key, c.From, passed.n, o.Size)
	case o.SHA256 != "" && hash != o.SHA256:
		err = fmt.Errorf("%q in %s: %w: its SHA-256 is %s, and should be %s", o.Key, c.From, catalog.ErrDamaged, hash, o.SHA256)
	}
	if err != nil {
		c.Progress.Add(-passed.n)
	}
	return hash, err
}

// passedOn counts and reports what is written.
type passedOn struct {
	w        io.Writer
	progress Progress
	n        int64
}

func (p *passedOn) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	p.n += int64(n)
	p.progress.Add(int64(n))
	return n, err
}

// below lists all objects below a folder ("" or ending in a slash), in ascending order.
func below(ctx context.Context, r *repo.Repo, dir string) ([]storage.Object, error) {
	var objects []storage.Object
	if err := r.Walk(ctx, dir, func(o storage.Object) { objects = append(objects, o) }); err != nil {
		return nil, fmt.Errorf("cannot list %q in %s: %w", dir, r, err)
	}
	slices.SortFunc(objects, func(a, b storage.Object) int { return strings.Compare(a.Key, b.Key) })
	return objects, nil
}

// goTogether refuses to bring what two clusters have archived into one place.
func (c *carrier) goTogether(ctx context.Context, objects []storage.Object) error {
	if !slices.ContainsFunc(objects, func(o storage.Object) bool { return catalog.IsOfArchive(o.Key) }) {
		return nil
	}
	return c.To.Catalog.GoesWith(ctx, c.From.Catalog)
}

// Under lists what a name stands for: the object of that name, or else all that lies below the folder of that name; with a slash at
// its end it is a folder. "" is everything. The error is fs.ErrNotExist if there is neither.
func Under(ctx context.Context, e End, name string) ([]storage.Object, error) {
	if bare := strings.TrimSuffix(name, "/"); bare != "" {
		if err := storage.CheckKey(bare); err != nil {
			return nil, err
		}
	}
	folder := name
	if name != "" && !strings.HasSuffix(name, "/") {
		o, err := e.Repo.Stat(ctx, name)
		if err == nil {
			return []storage.Object{o}, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EISDIR) { // which files say of a folder
			return nil, err
		}
		folder = name + "/"
	}
	objects, err := below(ctx, e.Repo, folder)
	if err == nil && len(objects) == 0 && name != "" {
		err = fmt.Errorf("cannot find %q in %s: %w", name, e, fs.ErrNotExist)
	}
	return objects, err
}

// sizes lists the folders of the objects given, and what else lies in them, at the destination.
func (c *carrier) sizes(ctx context.Context, keys []string) (map[string]int64, error) {
	dirs := map[string]bool{}
	for _, key := range keys {
		dir := path.Dir(key) + "/"
		if dir == "./" {
			dir = ""
		}
		dirs[dir] = true
	}
	there := map[string]int64{}
	for dir := range dirs {
		for o, err := range c.To.Repo.List(ctx, dir) {
			if err != nil {
				return nil, fmt.Errorf("cannot list %q in %s: %w", dir, c.To, err)
			}
			if !o.IsDir() {
				there[o.Key] = o.Size
			}
		}
	}
	return there, nil
}
