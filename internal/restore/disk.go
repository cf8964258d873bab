package restore

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/directio"
	"gitlab.com/walden-pg/walden/internal/pace"
)

// Modes of what a restore creates before it knows better, and of what no entry describes.
const (
	privateDir  = 0o700
	privateFile = 0o600
)

const (
	// syncsAtOnce bounds the files that are being synced, and with them the open files.
	syncsAtOnce = 32
)

// disk is the sink that writes a data directory. Every access goes through an os.Root, so no name and no link from an
// archive leads outside.
type disk struct {
	ctx     context.Context // of the restore: the sink lives no longer
	log     *slog.Logger
	limit   *pace.Limiter
	root    *os.Root
	mounts  map[string]*os.Root // directories that live elsewhere: "pg_tblspc/16384", "pg_wal"
	chown   bool                // running as root: entries get their recorded owners
	add     func(int64)         // told of every byte written
	copier  *directio.Copier
	syncs   *errgroup.Group // files being synced
	syncing context.Context // ends with the first that fails

	strays, lost, outward fewLines

	mu    sync.Mutex
	dirs  map[string]dirInfo // every directory created or named
	links map[string]link
	// walLink is the target of pg_wal in the cluster that was backed up, where the backup holds that link.
	walLink string
	files   int
	bytes   int64
	owners  map[string]int // user and group names already looked up; -1 where the host does not know one
}

type dirInfo struct {
	mode   fs.FileMode
	header *tar.Header // nil if no entry describes it
}

type link struct {
	target string
	header *tar.Header
}

// place finds the root that a name belongs to and the path below it.
func (d *disk) place(name string) (*os.Root, string) {
	for prefix, root := range d.mounts {
		if rest, ok := strings.CutPrefix(name, prefix); ok && (rest == "" || rest[0] == '/') {
			return root, cmp.Or(strings.TrimPrefix(rest, "/"), ".")
		}
	}
	return d.root, cmp.Or(name, ".")
}

// stray tells what does not belong into a tablespace and is left out: PostgreSQL has one directory in it, PG_15_202209061,
// and the places of tablespaces come from the archive. Whoever wrote it must not be able to put a file of any name into an
// empty directory of this host.
func (d *disk) stray(name string) bool {
	root, rel := d.place(name)
	if root == d.root || root == d.mounts["pg_wal"] || rel == "." || strings.HasPrefix(rel, "PG_") {
		return false
	}
	d.strays.warn(d.log, "an entry of a tablespace is not PostgreSQL's and is left out", "entry", name)
	return true
}

// Dir creates a directory; its mode is set when everything in it has been written.
func (d *disk) Dir(name string, h *tar.Header) error {
	if d.stray(name) {
		return nil
	}
	if err := d.mkdir(name); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dirs[name] = dirInfo{fs.FileMode(h.Mode).Perm(), ownerAndMode(h)}
	return nil
}

// ownerAndMode keeps of a header what is needed when its entry was written: with PAX records it can have a megabyte.
func ownerAndMode(h *tar.Header) *tar.Header {
	short := func(name string) string {
		if len(name) > maxOwnerName {
			return ""
		}
		return strings.Clone(name)
	}
	return &tar.Header{Mode: h.Mode, Uid: h.Uid, Gid: h.Gid, Uname: short(h.Uname), Gname: short(h.Gname), Size: h.Size}
}

// mkdir creates a directory and those above it.
func (d *disk) mkdir(name string) error {
	d.mu.Lock()
	_, known := d.dirs[name]
	d.mu.Unlock()
	if known {
		return nil
	}
	if name != "" {
		if err := d.mkdir(parent(name)); err != nil {
			return err
		}
	}
	root, rel := d.place(name)
	if rel != "." {
		if err := root.Mkdir(rel, privateDir); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("cannot create directory: %w", err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.dirs[name]; !known {
		d.dirs[name] = dirInfo{mode: privateDir}
	}
	return nil
}

func parent(name string) string {
	if dir := path.Dir(name); dir != "." {
		return dir
	}
	return ""
}

// File writes one file and begins to sync it: the disk works while the next file is unpacked. [disk.synced] waits for it.
func (d *disk) File(name string, h *tar.Header, content io.Reader) error {
	if d.leavesOut(name) {
		_, err := io.Copy(io.Discard, content)
		return err
	}
	f, err := d.create(name)
	if err != nil {
		return &SinkError{err}
	}
	if err := d.fill(f, h, content); err != nil {
		return errors.Join(err, f.Close())
	}
	return d.written(f, name, h.Size, 1)
}

// Pages writes pages of a file, and begins to sync them.
func (d *disk) Pages(name string, h *tar.Header, size int64, write func(io.WriterAt) error) error {
	if d.leavesOut(name) {
		return write(nowhere{})
	}
	f, err := d.openPages(name, h, size)
	if err != nil {
		return &SinkError{err}
	}
	if err := write(pageWriter{d, f}); err != nil {
		return errors.Join(err, f.Close())
	}
	if h == nil {
		return d.written(f, name, 0, 0)
	}
	return d.written(f, name, size, 1)
}

// openPages makes a file of a size, or opens it if it has been made.
func (d *disk) openPages(name string, h *tar.Header, size int64) (*os.File, error) {
	if h == nil {
		root, rel := d.place(name)
		f, err := root.OpenFile(rel, os.O_WRONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("cannot go on with it: %w", err)
		}
		return f, nil
	}
	f, err := d.create(name)
	if err != nil {
		return nil, err
	}
	owned := *h
	owned.Mode |= privateFile // it is opened again; and PostgreSQL writes to it, too
	if err := errors.Join(f.Truncate(size), d.describe(f, &owned)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// leavesOut tells what is not written: a mark left in the cluster that was backed up (the one here is this restore's), and what does
// not belong into a tablespace.
func (d *disk) leavesOut(name string) bool { return name == markFile || d.stray(name) }

func (d *disk) create(name string) (*os.File, error) {
	if err := d.mkdir(parent(name)); err != nil {
		return nil, err
	}
	root, rel := d.place(name)
	f, err := root.OpenFile(rel, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, privateFile)
	if err != nil {
		return nil, fmt.Errorf("cannot create it: %w", err)
	}
	return f, nil
}

// written begins to sync a file, and counts it.
func (d *disk) written(f *os.File, name string, size int64, files int) error {
	if d.syncing.Err() != nil { // an earlier file could not be synced
		return &SinkError{errors.Join(context.Cause(d.syncing), f.Close())}
	}
	d.syncs.Go(func() error {
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("cannot sync %q: %w", name, err)
		}
		return nil
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files += files
	d.bytes += size
	return nil
}

// nowhere takes pages that are not written.
type nowhere struct{}

func (nowhere) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }

// pageWriter writes pages to a file of the disk.
type pageWriter struct {
	d *disk
	f *os.File
}

func (w pageWriter) WriteAt(b []byte, offset int64) (int, error) {
	if err := w.d.limit.Wait(w.d.ctx, len(b)); err != nil {
		return 0, &SinkError{err}
	}
	n, err := w.f.WriteAt(b, offset)
	if err != nil {
		return n, &SinkError{fmt.Errorf("cannot write it: %w", err)}
	}
	w.d.add(int64(n))
	return n, nil
}

// beginSyncs makes ready for files to be synced.
func (d *disk) beginSyncs() {
	d.syncs, d.syncing = errgroup.WithContext(d.ctx)
	d.syncs.SetLimit(syncsAtOnce)
}

// synced waits until every file that was written is safe on disk. No file may be under way.
func (d *disk) synced() error {
	if err := d.syncs.Wait(); err != nil {
		return err
	}
	d.beginSyncs()
	return nil
}

// fill writes the content; failures of the file are the sink's, those of the content are not.
func (d *disk) fill(f *os.File, h *tar.Header, content io.Reader) error {
	_, err := d.copier.Copy(d.ctx, f, content, h.Size, func(n int) error {
		if err := d.limit.Wait(d.ctx, n); err != nil {
			return &SinkError{err}
		}
		d.add(int64(n))
		return nil
	})
	if wrong := (*directio.WriteError)(nil); errors.As(err, &wrong) {
		return &SinkError{fmt.Errorf("cannot write it: %w", err)}
	}
	if err != nil {
		return err
	}
	if err := d.describe(f, h); err != nil {
		return &SinkError{err}
	}
	return nil
}

// describe gives a file its recorded mode and owner.
func (d *disk) describe(f *os.File, h *tar.Header) error {
	if mode := fs.FileMode(h.Mode).Perm(); mode != privateFile {
		if err := f.Chmod(mode); err != nil {
			return err
		}
	}
	if d.chown {
		uid, gid := d.owner(h)
		return f.Chown(uid, gid)
	}
	return nil
}

// fillBuffer reads until the buffer is full or the content ends, and keeps apart an end (io.EOF) and a failure.
func fillBuffer(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// Link remembers a symbolic link: links are made when nothing is written through them any more.
func (d *disk) Link(name, target string, h *tar.Header) error {
	if target == path.Base(name) {
		d.lost.warn(d.log, "a symbolic link of the backup has lost its target and is left out", "link", name)
		return nil
	}
	if d.stray(name) {
		return nil
	}
	if d.mounts[name] != nil { // where tablespaces and pg_wal go is for this restore to say
		return nil
	}
	if len(target) >= unix.PathMax {
		return fmt.Errorf("cannot make the symbolic link %q: its target has %d bytes", name, len(target))
	}
	if name == "pg_wal" || name == "pg_xlog" { // here a directory: what the link would lead to is another cluster's, or nowhere
		d.mu.Lock()
		d.walLink = strings.Clone(target)
		d.mu.Unlock()
		return d.mkdir(name)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.links[name] = link{strings.Clone(target), ownerAndMode(h)}
	return nil
}

// finish waits for the files, makes the links, sets the modes of directories, and syncs them all.
func (d *disk) finish(ctx context.Context) error {
	if err := d.synced(); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(d.links)) {
		if err := d.makeLink(name, d.links[name]); err != nil {
			return err
		}
	}
	names := slices.SortedFunc(maps.Keys(d.dirs), func(a, b string) int { return strings.Compare(b, a) }) // children first
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, name := range names {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error { return d.finishDir(name, d.dirs[name]) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

func (d *disk) makeLink(name string, l link) error {
	if err := d.mkdir(parent(name)); err != nil {
		return err
	}
	if _, ours := d.mounts[name]; ours {
		return d.symlink(d.root, name, l)
	}
	if filepath.IsAbs(l.target) || !filepath.IsLocal(path.Join(parent(name), l.target)) {
		d.outward.warn(d.log, "a symbolic link leads outside the data directory, as it did when the backup was taken", "link", name, "target", l.target)
	}
	root, rel := d.place(name)
	return d.symlink(root, rel, l)
}

func (d *disk) symlink(root *os.Root, name string, l link) error {
	err := root.Symlink(l.target, name)
	if err == nil && d.chown {
		uid, gid := d.owner(l.header)
		err = root.Lchown(name, uid, gid)
	}
	if err != nil {
		return fmt.Errorf("cannot make the symbolic link %q: %w", name, err)
	}
	return nil
}

func (d *disk) finishDir(name string, info dirInfo) error {
	root, rel := d.place(name)
	f, err := root.Open(rel)
	if err != nil {
		return fmt.Errorf("cannot open directory %q: %w", name, err)
	}
	defer f.Close()
	if err := f.Chmod(info.mode); err != nil {
		return fmt.Errorf("cannot set the mode of directory %q: %w", name, err)
	}
	if d.chown {
		uid, gid := d.owner(info.header)
		if err := f.Chown(uid, gid); err != nil {
			return fmt.Errorf("cannot set the owner of directory %q: %w", name, err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("cannot sync directory %q: %w", name, err)
	}
	return nil
}

// owner resolves the owner of an entry: by name where this host knows the name, as numbers differ between hosts. What has
// no recorded owner, or root's (PostgreSQL never runs as root), gets that of the data directory.
func (d *disk) owner(h *tar.Header) (uid, gid int) {
	if h == nil || h.Uid == 0 && h.Uname == "" {
		d.mu.Lock()
		h = d.dirs[""].header
		d.mu.Unlock()
	}
	if h == nil {
		return -1, -1 // leave as it is
	}
	uid, gid = h.Uid, h.Gid
	if id := d.lookup("user "+h.Uname, func() (string, error) {
		u, err := user.Lookup(h.Uname)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	}); h.Uname != "" && id >= 0 {
		uid = id
	}
	if id := d.lookup("group "+h.Gname, func() (string, error) {
		g, err := user.LookupGroup(h.Gname)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	}); h.Gname != "" && id >= 0 {
		gid = id
	}
	return uid, gid
}

// Bounds of what is asked for and remembered of owners: a host has few, and names no longer than LOGIN_NAME_MAX.
const (
	maxOwners    = 1000
	maxOwnerName = 256
)

func (d *disk) lookup(key string, find func() (string, error)) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	id, ok := d.owners[key]
	if !ok && (len(d.owners) >= maxOwners || len(key) > maxOwnerName) {
		return -1
	}
	if !ok {
		id = -1
		if s, err := find(); err == nil {
			if n, err := strconv.Atoi(s); err == nil {
				id = n
			}
		}
		d.owners[key] = id
	}
	return id
}
