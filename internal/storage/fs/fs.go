// Package fs keeps objects as files below one directory, the root: on a local disk or on a mounted file system.
//
// The object "wal_005/000000010000000A000000FE.lz4" is the file of that path below the root. An object is written
// into a file without a name, synced, and then given its name; the directory, and every directory made for it, is
// synced too. So not even kill -9 leaves anything behind.
//
// Where the file system has no files without a name (NFS, SMB, many on FUSE), and for the moment in which an object is
// replaced, the file has a temporary name beside the final one: the object's, followed by
// ".tmp.<YYYYMMDDTHHMMSSZ>-<16 hexadecimal digits>". WAL-G writes in the same way and hides such names from its
// listings ("WAL-G format", settings, section 9), as this package does. Only a crash leaves such a file behind, and
// [Store.RemoveStale] removes it later.
//
// Nothing is ever created by reading. Names cannot lead out of the root, neither by themselves nor through
// symbolic links; the root itself may be a link. The root is opened anew for each operation, so a file system
// that was mounted, unmounted or mounted again in the meantime is noticed, and a vanished root is never mistaken
// for a missing object.
package fs

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/directio"
	"gitlab.com/walden-pg/walden/internal/storage"
)

const (
	// Archives are often shared by the members of a group; the umask may narrow these modes.
	fileMode = 0o640
	dirMode  = 0o750
)

// readOnce is from which size on an object does not stay in the page cache when it was read, in bytes: parts of backups, but no segment of the usual
// size, for which other standbys may ask.
const readOnce = 32 << 20

// temporary matches the end of the names of unfinished objects, walden's and WAL-G's.
var temporary = regexp.MustCompile(`\.tmp\.[0-9]{8}T[0-9]{6}Z-[0-9a-f]{16}$`)

// Options says where the objects are.
type Options struct {
	Root   string // an existing directory; a relative path is taken from the working directory at the time of Open
	Cached bool   // objects pass through the page cache and stay there, even where they need not; see [directio]
}

// Store is a [storage.Store] in a directory.
type Store struct {
	root   string // absolute
	cached bool   // see Options
	copier *directio.Copier

	// durable holds the directories that this Store has made certain to be durable, so that their ancestors
	// need not be synced again with each object.
	durable sync.Map
	made    sync.Map // directories that this Store has made; failed uploads remove those that they leave empty

	// named says that files without a name cannot be used here, as the file system or a missing /proc has shown.
	named atomic.Bool
	link  func(olddir int, old string, newdir int, name string, flags int) error // linkat(2); tests stand in for file systems without it
}

// Open returns the store below o.Root. It fails if that is not a directory that can be read.
func Open(o Options) (*Store, error) {
	if o.Root == "" {
		return nil, errors.New("cannot open file storage: no directory is given")
	}
	root, err := filepath.Abs(o.Root)
	if err != nil {
		return nil, fmt.Errorf("cannot open file storage %q: %w", o.Root, err)
	}
	s := &Store{root: root, cached: o.Cached, copier: directio.New(o.Cached), link: unix.Linkat}
	if err := s.Check(context.Background()); err != nil {
		return nil, err
	}
	return s, nil
}

// String returns the root as a URL, for example "file:///srv/backup".
func (s *Store) String() string { return "file://" + s.root }

// rootError says that the root cannot be used. It never unwraps to fs.ErrNotExist, which would look like the
// answer that an object is missing.
type rootError struct {
	text, hint string
	cause      error
}

func (e *rootError) Error() string { return e.text }
func (e *rootError) Hint() string  { return e.hint }
func (e *rootError) Unwrap() error { return e.cause }

// open opens the root for one operation. The caller closes it.
func (s *Store) open(ctx context.Context) (*os.Root, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(s.root)
	if err == nil {
		return root, nil
	}
	e := &rootError{text: fmt.Sprintf("cannot open the storage's directory %q: %v", s.root, cause(err)), cause: cause(err)}
	info, statErr := os.Stat(s.root)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.cause = nil
		e.hint = "create the directory, or mount the file system that holds it; it is never created by itself"
	case statErr == nil && !info.IsDir(): // package os has an error of its own for this
		e.hint = "name a directory, not a file"
	case errors.Is(err, fs.ErrPermission):
		e.hint = "give the user that runs this command read, write and search permission on it and search permission on its parents"
	default:
		return nil, e
	}
	return nil, storage.Permanent(e)
}

// cause returns what the kernel said, without the system call and the path that package os puts before it: our
// messages name the object.
func cause(err error) error {
	var p *fs.PathError
	var l *os.LinkError
	var c *os.SyscallError
	switch {
	case errors.As(err, &p):
		return p.Err
	case errors.As(err, &l):
		return l.Err
	case errors.As(err, &c):
		return c.Err
	}
	return err
}

// Check implements [storage.Store].
func (s *Store) Check(ctx context.Context) error {
	root, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := root.Open(".")
	if err == nil {
		_, err = f.ReadDir(1)
		f.Close()
	}
	if err != nil && err != io.EOF {
		return fmt.Errorf("cannot read the storage's directory %q: %w", s.root, cause(err))
	}
	return nil
}

// Get implements [storage.Store].
func (s *Store) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	b, err := s.get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("cannot get %q from %s: %w", key, s, cause(err))
	}
	return b, nil
}

func (s *Store) get(ctx context.Context, key string) (*body, error) {
	if err := storage.CheckKey(key); err != nil {
		return nil, err
	}
	root, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	// Opening a named pipe waits for its other end, unless O_NONBLOCK is given. For files it means nothing.
	f, err := root.OpenFile(key, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, s.behindLink(root, key, err)
	}
	info, err := f.Stat()
	if err == nil {
		err = regular(info)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	var content io.ReaderAt = directio.NewOnce(f)
	if s.cached || info.Size() < readOnce {
		content = f
	}
	return &body{ctx: ctx, f: f, content: content, left: info.Size(), size: info.Size(), name: fmt.Sprintf("%q in %s", key, s)}, nil
}

// behindLink explains a failure to open what lies behind a symbolic link: one that leads nowhere, to a disk that is not
// mounted, say, is not absence; and no link is followed out of the store's directory. Other failures stay as they are.
func (s *Store) behindLink(root *os.Root, key string, err error) error {
	for i, c := range key + "/" {
		if c != '/' {
			continue
		}
		info, lerr := root.Lstat(key[:i])
		if lerr != nil || info.Mode()&fs.ModeSymlink == 0 {
			continue
		}
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%q is a symbolic link that leads nowhere", key[:i])
		}
		if target, terr := filepath.EvalSymlinks(filepath.Join(s.root, key[:i])); terr == nil && !s.holds(target) {
			return storage.Permanent(&rootError{
				text:  fmt.Sprintf("%q is a symbolic link that leads out of the storage's directory, to %s", key[:i], target),
				hint:  "mount that directory in its place (mount --bind), or make it the storage's directory",
				cause: cause(err),
			})
		}
	}
	return err
}

// holds tells whether a resolved path lies within the store's directory.
func (s *Store) holds(path string) bool {
	base, err := filepath.EvalSymlinks(s.root)
	if err != nil {
		return false
	}
	rel, err := filepath.Rel(base, path)
	return err == nil && filepath.IsLocal(rel)
}

// regular refuses whatever stands in the place of an object. It is no failure that may pass.
func regular(info fs.FileInfo) error {
	if info.IsDir() {
		return storage.Permanent(unix.EISDIR)
	}
	if !info.Mode().IsRegular() {
		return storage.Permanent(fmt.Errorf("not a regular file but %s", info.Mode().Type()))
	}
	return nil
}

// body reads an object and knows how much there must be.
type body struct {
	ctx        context.Context
	f          *os.File
	content    io.ReaderAt // of f
	left, size int64
	name       string
}

func (b *body) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, fmt.Errorf("cannot read %s: %w", b.name, err)
	}
	n, err := b.content.ReadAt(p, b.size-b.left)
	b.left -= int64(n)
	switch {
	case err == nil:
		return n, nil
	case err != io.EOF:
		return n, fmt.Errorf("cannot read %s: %w", b.name, cause(err))
	case b.left > 0:
		return n, fmt.Errorf("cannot read %s: it ends after %d of %d bytes: %w", b.name, b.size-b.left, b.size, io.ErrUnexpectedEOF)
	}
	return n, io.EOF
}

func (b *body) Close() error { return b.f.Close() }

// Stat implements [storage.Store].
func (s *Store) Stat(ctx context.Context, key string) (storage.Object, error) {
	o, err := s.stat(ctx, key)
	if err != nil {
		return storage.Object{}, fmt.Errorf("cannot look up %q in %s: %w", key, s, cause(err))
	}
	return o, nil
}

func (s *Store) stat(ctx context.Context, key string) (storage.Object, error) {
	if err := storage.CheckKey(key); err != nil {
		return storage.Object{}, err
	}
	root, err := s.open(ctx)
	if err != nil {
		return storage.Object{}, err
	}
	defer root.Close()
	info, err := root.Stat(key)
	if err != nil {
		return storage.Object{}, s.behindLink(root, key, err)
	}
	if err := regular(info); err != nil {
		return storage.Object{}, err
	}
	return storage.Object{Key: key, Size: info.Size(), Modified: info.ModTime()}, nil
}

// List implements [storage.Store]. Of a directory's entries it holds the names in memory; sizes and times are
// looked up one by one as they are yielded. Links whose target is missing, pipes, sockets and devices are no objects.
func (s *Store) List(ctx context.Context, dir string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		if err := s.list(ctx, dir, yield); err != nil {
			yield(storage.Object{}, fmt.Errorf("cannot list %q in %s: %w", dir, s, err))
		}
	}
}

func (s *Store) list(ctx context.Context, dir string, yield func(storage.Object, error) bool) error {
	if err := storage.CheckDir(dir); err != nil {
		return err
	}
	root, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer root.Close()
	d, err := openDirectory(root, path.Clean(dir))
	if err != nil {
		err = s.behindLink(root, path.Clean(dir), err)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return cause(err)
	}
	defer d.close()
	keys, links, err := keysIn(root, d, dir)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if err := ctx.Err(); err != nil {
			return err
		}
		o := storage.Object{Key: key}
		if !o.IsDir() {
			info, err := lookUp(root, d, key, links)
			if errors.Is(err, fs.ErrNotExist) {
				continue // deleted since the directory was read
			}
			if err != nil {
				return fmt.Errorf("%q: %w", key, cause(err))
			}
			if !info.Mode().IsRegular() {
				continue
			}
			o.Size, o.Modified = info.Size(), info.ModTime()
		}
		if !yield(o, nil) {
			return nil
		}
	}
	return nil
}

// keysIn returns the keys of what dir holds in ascending order, directories with the slash that their place in
// the order depends on ("a-b" < "a/" < "a0"), and which of the keys are symbolic links.
func keysIn(root *os.Root, d *directory, dir string) (keys []string, links map[string]bool, err error) {
	entries, err := d.f.ReadDir(-1)
	if err != nil {
		return nil, nil, cause(err)
	}
	keys = make([]string, 0, len(entries))
	links = map[string]bool{}
	for _, e := range entries {
		key, isDir := dir+e.Name(), e.IsDir()
		if e.Type() == fs.ModeSymlink {
			info, err := root.Stat(key)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, nil, fmt.Errorf("%q: %w", key, cause(err))
			}
			links[key], isDir = true, info.IsDir()
		}
		if isDir {
			keys = append(keys, key+"/")
		} else if !temporary.MatchString(e.Name()) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys, links, nil
}

// lookUp stats the object key in d. Only links are looked up from the root, since they may lead anywhere below it.
func lookUp(root *os.Root, d *directory, key string, links map[string]bool) (fs.FileInfo, error) {
	if links[key] {
		return root.Stat(key)
	}
	return d.Lstat(path.Base(key))
}

// directory is an open directory below the root.
type directory struct {
	*os.Root          // for the names in it
	f        *os.File // the same, for reading and syncing it
}

func openDirectory(root *os.Root, name string) (*directory, error) {
	sub, err := root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	f, err := sub.Open(".")
	if err != nil {
		sub.Close()
		return nil, err
	}
	return &directory{sub, f}, nil
}

// removed tells whether the directory is no longer anywhere.
func (d *directory) removed() bool {
	var st unix.Stat_t
	return unix.Fstat(int(d.f.Fd()), &st) == nil && st.Nlink == 0
}

func (d *directory) close() {
	d.f.Close()
	d.Root.Close()
}

// Put implements [storage.Store].
func (s *Store) Put(ctx context.Context, key string, r io.Reader) error {
	if err := s.put(ctx, key, r, false); err != nil {
		return fmt.Errorf("cannot put %q in %s: %w", key, s, cause(err))
	}
	return nil
}

// PutNew implements [storage.Store]. Which of two writers wins is decided by link(2) or, on file systems without
// hard links, by renameat2(2) with RENAME_NOREPLACE. On one that has neither it fails.
func (s *Store) PutNew(ctx context.Context, key string, r io.Reader) error {
	if err := s.put(ctx, key, r, true); err != nil {
		return fmt.Errorf("cannot put %q in %s: %w", key, s, cause(err))
	}
	return nil
}

func (s *Store) put(ctx context.Context, key string, r io.Reader, mustBeNew bool) error {
	if err := storage.CheckKey(key); err != nil {
		return err
	}
	if temporary.MatchString(path.Base(key)) {
		return storage.Permanent(errors.New("the name is one of an unfinished object, which listings hide"))
	}
	root, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer root.Close()
	if mustBeNew {
		// Saves writing an object in vain; the decision is made below.
		if _, err := root.Lstat(key); err == nil {
			return s.taken(root, key)
		}
	}
	err = s.write(ctx, root, key, r, mustBeNew)
	if errors.Is(err, storage.ErrExists) {
		return s.taken(root, key)
	}
	return err
}

// write stores what r yields, durably.
func (s *Store) write(ctx context.Context, root *os.Root, key string, r io.Reader, mustBeNew bool) (err error) {
	dir, name := path.Dir(key), path.Base(key)
	u, err := s.begin(ctx, root, dir, name)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, s.end(root, u, dir, err != nil))
	}()
	if err := s.fill(ctx, u.f, r); err != nil {
		return err
	}
	if err := s.publish(ctx, root, u, dir, name, mustBeNew); err != nil {
		return err
	}
	if err := u.dir.f.Sync(); err != nil {
		return fmt.Errorf("syncing its directory: %w", cause(err))
	}
	return nil
}

// taken returns ErrExists for an object that is there already, once it is durable: who wrote it may have been killed before
// its directory was synced, or may have failed to sync it, and whoever hears that an object exists may rely on it.
func (s *Store) taken(root *os.Root, key string) error {
	if err := s.makeDurable(root, path.Dir(key)); err != nil {
		return err
	}
	for _, name := range []string{key, path.Dir(key)} {
		f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if errors.Is(err, fs.ErrNotExist) {
			break // deleted again, or a link that leads nowhere: taken all the same
		}
		if err != nil {
			return err
		}
		err = errors.Join(f.Sync(), f.Close())
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: a pipe or the like stands there
			return fmt.Errorf("syncing the object that is there: %w", cause(err))
		}
	}
	return storage.ErrExists
}

// upload is an object that does not have its name yet.
type upload struct {
	dir  *directory
	temp string // its temporary name in dir, "" for none
	f    *os.File
}

// begin creates the file for the object name in dir, and dir itself. A Delete that empties dir may remove it at any
// moment until the file is there; then all begins anew.
func (s *Store) begin(ctx context.Context, root *os.Root, dir, name string) (u *upload, err error) {
	defer func() {
		if err != nil {
			s.removeMade(root, dir)
		}
	}()
	for range 100 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		d, err := s.makeDirectory(root, dir)
		if err == nil {
			u = &upload{dir: d}
			if err = s.create(u, name); err == nil {
				return u, nil
			}
			d.close()
		}
		s.durable.Delete(dir)
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return nil, errDisappears(dir)
}

func errDisappears(dir string) error {
	return fmt.Errorf("directory %q disappears as often as it is made", dir)
}

// makeDirectory makes dir durable and opens it.
func (s *Store) makeDirectory(root *os.Root, dir string) (*directory, error) {
	err := s.makeDurable(root, dir)
	if err == nil {
		var d *directory
		if d, err = openDirectory(root, dir); err == nil {
			return d, nil
		}
	}
	return nil, s.behindLink(root, dir, err)
}

// create creates the file of an upload, without a name if that can be.
func (s *Store) create(u *upload, name string) error {
	if !s.named.Load() {
		fd, err := unix.Openat(int(u.dir.f.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, fileMode)
		if err == nil {
			u.f = os.NewFile(uintptr(fd), "a file without a name")
			if unix.Access(u.proc(), unix.F_OK) == nil {
				return nil
			}
			u.f.Close() // without /proc it could never get one
		} else if u.dir.removed() {
			return fs.ErrNotExist // ext4 says "not permitted"
		} else if !unsupported(err) {
			return err
		}
		s.named.Store(true)
	}
	return u.createNamed(name)
}

// unsupported tells whether a file system answers that it does not have files without a name. Old kernels take O_TMPFILE
// for an attempt to write a directory.
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS)
}

// createNamed creates the file under a temporary name and locks it until it is closed, as a sign to RemoveStale that it is
// in use; where locks do not work, its age has to do.
func (u *upload) createNamed(name string) (err error) {
	u.temp = temporaryName(name)
	if u.f, err = u.dir.OpenFile(u.temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode); err != nil {
		return err
	}
	_ = unix.Flock(int(u.f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	return nil
}

func temporaryName(name string) string {
	var random [8]byte
	rand.Read(random[:]) // never fails
	return name + time.Now().UTC().Format(".tmp.20060102T150405Z-") + hex.EncodeToString(random[:])
}

// proc is the path under which the kernel knows the open file.
func (u *upload) proc() string { return "/proc/self/fd/" + strconv.Itoa(int(u.f.Fd())) }

// makeDurable creates dir and what is missing above it, and syncs all that hold their names. Directories found in
// place are synced once as well: who made them may have crashed before, or not have come to it yet.
func (s *Store) makeDurable(root *os.Root, dir string) error {
	if _, known := s.durable.Load(dir); known || dir == "." {
		return nil
	}
	parent := path.Dir(dir)
	if err := s.makeDurable(root, parent); err != nil {
		return err
	}
	switch err := root.Mkdir(dir, dirMode); {
	case err == nil:
		s.made.Store(dir, true)
	case !errors.Is(err, fs.ErrExist):
		s.durable.Delete(parent)
		return err
	}
	holder, err := root.Open(parent)
	if err != nil {
		return err
	}
	defer holder.Close()
	if err := holder.Sync(); err != nil {
		return fmt.Errorf("syncing directory %q: %w", parent, cause(err))
	}
	s.durable.Store(dir, true)
	return nil
}

// end closes an upload and removes its temporary name, and after a failure the directories that were made for it. The error
// names a temporary file that stays.
func (s *Store) end(root *os.Root, u *upload, dir string, failed bool) error {
	defer u.dir.close()
	u.f.Close()
	if u.temp != "" {
		if err := u.dir.Remove(u.temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the temporary file %s stays behind: %w", path.Join(dir, u.temp), cause(err))
		}
	}
	if failed {
		s.removeMade(root, dir)
	}
	return nil
}

// removeMade removes dir and those above it, as far as they are empty and made by this Store.
func (s *Store) removeMade(root *os.Root, dir string) {
	for ; dir != "."; dir = path.Dir(dir) {
		if _, ours := s.made.Load(dir); !ours || s.removeEmpty(root, dir) != nil {
			return
		}
	}
}

// removeEmpty removes dir if it is an empty directory, and nothing else that may stand there by now.
func (s *Store) removeEmpty(root *os.Root, dir string) error {
	parent, err := root.Open(path.Dir(dir))
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := unix.Unlinkat(int(parent.Fd()), path.Base(dir), unix.AT_REMOVEDIR); err != nil {
		return err
	}
	s.durable.Delete(dir)
	return nil
}

// fill writes what r yields to f and syncs it.
func (s *Store) fill(ctx context.Context, f *os.File, r io.Reader) error {
	n, err := s.copier.Copy(ctx, f, r, -1, nil)
	if wrong := (*directio.WriteError)(nil); errors.As(err, &wrong) {
		return cause(err)
	}
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing it: %w", cause(err))
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != n {
		return fmt.Errorf("%d bytes were written, but the file has %d", n, info.Size())
	}
	return closeOnce(f)
}

// closeOnce has the file system do what it does when a file is closed, and leaves f open: network file systems report some
// failures only then.
func closeOnce(f *os.File) error {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("closing it: %w", err)
	}
	return nil
}

// publish gives the file of an upload the name. A directory that holds nothing with a name yet may have been removed since it
// was made; then it is made anew.
func (s *Store) publish(ctx context.Context, root *os.Root, u *upload, dir, name string, mustBeNew bool) error {
	for range 100 {
		err := s.publishOnce(u, name, mustBeNew)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		s.durable.Delete(dir)
		d, err := s.makeDirectory(root, dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		u.dir.close()
		u.dir = d
	}
	return errDisappears(dir)
}

func (s *Store) publishOnce(u *upload, name string, mustBeNew bool) error {
	if u.temp != "" && !mustBeNew {
		return u.dir.Rename(u.temp, name)
	}
	err := s.linkUpload(u, name)
	switch {
	case err == nil:
		return nil // a temporary name is removed at the end
	case errors.Is(err, fs.ErrExist):
		return s.replace(u, name, mustBeNew)
	case u.temp == "" && (linkless(err) || errors.Is(err, unix.EXDEV)):
		// Files without a name that cannot be given one: some file systems on FUSE.
		if err := s.copyNamed(u, name); err != nil {
			return err
		}
		return s.publishOnce(u, name, mustBeNew)
	case u.temp != "" && linkless(err):
		return renameNew(u.dir, u.temp, name)
	}
	return err
}

// linkless tells whether a file system answers that it has no hard links.
func linkless(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}

func (s *Store) linkUpload(u *upload, name string) error {
	fd := int(u.dir.f.Fd())
	if u.temp != "" {
		return s.link(fd, u.temp, fd, name, 0)
	}
	return s.link(unix.AT_FDCWD, u.proc(), fd, name, unix.AT_SYMLINK_FOLLOW)
}

// replace settles what is to be done where the name is taken.
func (s *Store) replace(u *upload, name string, mustBeNew bool) error {
	if !mustBeNew {
		temp := temporaryName(name)
		if err := s.linkUpload(u, temp); err != nil {
			return err
		}
		u.temp = temp
		return u.dir.Rename(temp, name)
	}
	// A network file system repeats a request whose answer was lost, and then finds its own link.
	mine, err1 := u.f.Stat()
	there, err2 := u.dir.Lstat(name)
	if err1 == nil && err2 == nil && os.SameFile(mine, there) {
		return nil
	}
	return storage.ErrExists
}

// copyNamed writes the upload once more, into a file with a temporary name.
func (s *Store) copyNamed(u *upload, name string) error {
	s.named.Store(true)
	unnamed := u.f
	if err := u.createNamed(name); err != nil {
		u.f, u.temp = unnamed, ""
		return err
	}
	defer unnamed.Close()
	info, err := unnamed.Stat()
	if err != nil {
		return err
	}
	if n, err := io.Copy(u.f, io.NewSectionReader(unnamed, 0, info.Size())); err != nil || n != info.Size() {
		return cmp.Or(err, io.ErrUnexpectedEOF)
	}
	if err := u.f.Sync(); err != nil {
		return fmt.Errorf("syncing it: %w", cause(err))
	}
	return closeOnce(u.f)
}

// renameNew is for file systems without hard links, such as exFAT.
func renameNew(d *directory, temp, name string) error {
	fd := int(d.f.Fd())
	err := unix.Renameat2(fd, temp, fd, name, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, fs.ErrExist):
		return storage.ErrExists
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		return storage.Permanent(&rootError{
			text:  "its file system has neither hard links nor renaming without replacing",
			cause: errors.ErrUnsupported,
			hint:  "without one of them two servers can overwrite each other's WAL unnoticed; choose another file system",
		})
	}
	return err
}

// Delete implements [storage.Store]. Directories that it leaves empty are removed, the root excepted.
func (s *Store) Delete(ctx context.Context, keys ...string) error {
	root, err := s.open(ctx)
	if err != nil {
		return fmt.Errorf("cannot delete %d objects from %s: %w", len(keys), s, err)
	}
	defer root.Close()
	var errs []error
	for len(keys) > 0 {
		// Neighbours in one directory share its opening and its fsync.
		dir := path.Dir(keys[0])
		n := slices.IndexFunc(keys, func(key string) bool { return path.Dir(key) != dir })
		if n < 0 {
			n = len(keys)
		}
		errs = append(errs, s.deleteIn(ctx, root, dir, keys[:n]))
		keys = keys[n:]
	}
	return errors.Join(errs...)
}

func (s *Store) deleteIn(ctx context.Context, root *os.Root, dir string, keys []string) error {
	var errs []error
	failed := func(key string, err error) {
		errs = append(errs, fmt.Errorf("cannot delete %q from %s: %w", key, s, cause(err)))
	}
	keys = slices.DeleteFunc(slices.Clone(keys), func(key string) bool {
		err := storage.CheckKey(key)
		if err != nil {
			failed(key, err)
		}
		return err != nil
	})
	if len(keys) == 0 {
		return errors.Join(errs...)
	}
	d, err := openDirectory(root, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.Join(errs...)
	}
	if err != nil {
		for _, key := range keys {
			failed(key, err)
		}
		return errors.Join(errs...)
	}
	defer d.close()
	for _, key := range keys {
		err := ctx.Err()
		if err == nil {
			err = d.Remove(path.Base(key))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed(key, err)
		}
	}
	// Without this a crash could bring back an object that was deleted before another one.
	if err := d.f.Sync(); err != nil {
		for _, key := range keys {
			failed(key, fmt.Errorf("syncing its directory: %w", cause(err)))
		}
	}
	for ; dir != "."; dir = path.Dir(dir) {
		if s.removeEmpty(root, dir) != nil {
			break
		}
	}
	return errors.Join(errs...)
}
