package main

import (
	"context"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// disk is the file system: the files of a directory, faults, and a journal if one is kept.
type disk struct {
	faults  *faults
	journal *journal // nil for none
	backing string
}

// node is a file, directory or link. What only reads, go-fuse's loopback does.
type node struct {
	fs.LoopbackNode
	disk *disk

	mu    sync.Mutex
	files map[*file]bool // open

	unnamedIn *node // where it was created without a name
}

func (d *disk) root(backing string) (fs.InodeEmbedder, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(backing, &st); err != nil {
		return nil, err
	}
	d.backing = backing
	data := &fs.LoopbackRoot{Path: backing, Dev: st.Dev, NewNode: func(r *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
		return d.node(r)
	}}
	root := d.node(data)
	data.RootNode = root
	return root, nil
}

func (d *disk) node(r *fs.LoopbackRoot) *node {
	return &node{LoopbackNode: fs.LoopbackNode{RootData: r}, disk: d, files: map[*file]bool{}}
}

// rel is the node's path below the mount, as faults name it. A file without a name is "unnamed" in its directory.
func (n *node) rel() string {
	if _, parent := n.Parent(); parent == nil && n.unnamedIn != nil {
		return n.unnamedIn.child("unnamed")
	}
	return n.Path(n.Root())
}

// path is where the node's file lies; for one that has no name it is the descriptor of an open file.
func (n *node) path() string { return filepath.Join(n.disk.backing, n.rel()) }

func (n *node) child(name string) string { return filepath.Join(n.rel(), name) }

// change does an operation unless a fault forbids it, and notes it in the journal, both at one moment.
func (d *disk) change(op, path string, do func() syscall.Errno, note func(j *journal)) syscall.Errno {
	if errno := d.faults.check(op, path); errno != 0 {
		return errno
	}
	if d.journal == nil {
		return do()
	}
	d.journal.mu.Lock()
	defer d.journal.mu.Unlock()
	if d.journal.err != nil {
		return syscall.EIO
	}
	if errno := do(); errno != 0 {
		return errno
	}
	note(d.journal)
	if d.journal.err != nil {
		return syscall.EIO
	}
	return 0
}

// file is an open file.
type file struct {
	*fs.LoopbackFile
	node  *node
	fd    int
	write bool
}

func (n *node) opened(fd int, flags uint32) *file {
	f := &file{LoopbackFile: fs.NewLoopbackFile(fd).(*fs.LoopbackFile), node: n, fd: fd, write: flags&syscall.O_ACCMODE != syscall.O_RDONLY}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.files[f] = true
	return f
}

// anyFile is an open file of the node, one for writing if there is one; nil if none is open.
func (n *node) anyFile() *file {
	n.mu.Lock()
	defer n.mu.Unlock()
	var found *file
	for f := range n.files {
		if found == nil || f.write {
			found = f
		}
	}
	return found
}

// PassthroughFd keeps the kernel from reading and writing behind our back.
func (f *file) PassthroughFd() (int, bool) { return 0, false }

func (f *file) Release(ctx context.Context) syscall.Errno {
	f.node.mu.Lock()
	delete(f.node.files, f)
	f.node.mu.Unlock()
	return f.LoopbackFile.Release(ctx)
}

func (f *file) Read(_ context.Context, buf []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, errno := f.node.disk.faults.checkRead(f.node.rel(), off, len(buf))
	if errno != 0 {
		return nil, errno
	}
	n, err := syscall.Pread(f.fd, buf[:n], off)
	if err != nil {
		return nil, fs.ToErrno(err)
	}
	return fuse.ReadResultData(buf[:n]), 0
}

func (f *file) Write(_ context.Context, data []byte, off int64) (written uint32, errno syscall.Errno) {
	errno = f.node.disk.change("write", f.node.rel(), func() syscall.Errno {
		n, err := syscall.Pwrite(f.fd, data, off)
		written = uint32(max(n, 0))
		return fs.ToErrno(err)
	}, func(j *journal) {
		j.note(event{Op: "write", ID: j.id(f.node.EmbeddedInode()), Off: off}, data[:written])
	})
	return written, errno
}

// Fsync only notes the promise: the backing directory is not what loses power.
func (f *file) Fsync(context.Context, uint32) syscall.Errno {
	return f.node.disk.change("fsync", f.node.rel(), ok, func(j *journal) {
		j.note(event{Op: "fsync", ID: j.id(f.node.EmbeddedInode())}, nil)
	})
}

func ok() syscall.Errno { return 0 }

// Flush is a close of the file.
func (f *file) Flush(context.Context) syscall.Errno {
	if !f.write {
		return 0
	}
	return f.node.disk.faults.check("flush", f.node.rel())
}

// Allocate is not offered: the journal knows no holes.
func (f *file) Allocate(context.Context, uint64, uint64, uint32) syscall.Errno {
	return syscall.EOPNOTSUPP
}

// direct has every read and write come here as it was made.
const direct = fuse.FOPEN_DIRECT_IO

func (n *node) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.disk.faults.check("open", n.rel()); errno != 0 {
		return nil, 0, errno
	}
	flags &^= syscall.O_APPEND | fuse.FMODE_EXEC | syscall.O_TRUNC // truncation comes as a setattr
	fd, err := syscall.Open(n.path(), int(flags)|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, 0, fs.ToErrno(err)
	}
	return n.opened(fd, flags), direct, 0
}

// adopt makes the node of what was just created in n, owned by the caller.
func (n *node) adopt(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	path := filepath.Join(n.path(), name)
	if caller, known := fuse.FromContext(ctx); known && syscall.Geteuid() == 0 {
		if err := syscall.Lchown(path, int(caller.Uid), int(caller.Gid)); err != nil {
			return nil, fs.ToErrno(err)
		}
	}
	return n.Lookup(ctx, name, out)
}

func born(op string, out *fuse.EntryOut, parent int64, name string) event {
	return event{Op: op, Parent: parent, Name: name, Mode: out.Mode & 0o7777, UID: out.Uid, GID: out.Gid}
}

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (child *fs.Inode, h fs.FileHandle, _ uint32, errno syscall.Errno) {
	flags &^= syscall.O_APPEND | syscall.O_TRUNC
	errno = n.disk.change("create", n.child(name), func() syscall.Errno {
		fd, err := syscall.Open(filepath.Join(n.path(), name), int(flags)|syscall.O_CREAT|syscall.O_EXCL|syscall.O_NOFOLLOW, mode)
		if err != nil {
			return fs.ToErrno(err)
		}
		if child, errno = n.adopt(ctx, name, out); errno != 0 {
			syscall.Close(fd)
			return errno
		}
		h = child.Operations().(*node).opened(fd, flags)
		return 0
	}, func(j *journal) {
		e := born("create", out, j.id(n.EmbeddedInode()), name)
		e.ID = j.born(child)
		j.note(e, nil)
	})
	return child, h, direct, errno
}

// Tmpfile creates a file without a name.
func (n *node) Tmpfile(ctx context.Context, flags, mode uint32, out *fuse.EntryOut) (child *fs.Inode, h fs.FileHandle, _ uint32, errno syscall.Errno) {
	errno = n.disk.change("create", n.child(""), func() syscall.Errno {
		var made fs.FileHandle
		child, made, _, errno = n.LoopbackNode.Tmpfile(ctx, flags, mode, out)
		if errno != 0 {
			return errno
		}
		fd, _ := made.(*fs.LoopbackFile).PassthroughFd()
		if caller, known := fuse.FromContext(ctx); known && syscall.Geteuid() == 0 {
			if err := syscall.Fchown(fd, int(caller.Uid), int(caller.Gid)); err != nil {
				return fs.ToErrno(err)
			}
			out.Uid, out.Gid = caller.Uid, caller.Gid
		}
		f := &file{LoopbackFile: made.(*fs.LoopbackFile), node: child.Operations().(*node), fd: fd, write: true}
		f.node.files[f] = true
		f.node.unnamedIn = n
		h = f
		return 0
	}, func(j *journal) {
		e := born("create", out, 0, "")
		e.ID = j.born(child)
		j.note(e, nil)
	})
	return child, h, direct, errno
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (child *fs.Inode, errno syscall.Errno) {
	errno = n.disk.change("mkdir", n.child(name), func() syscall.Errno {
		if err := syscall.Mkdir(filepath.Join(n.path(), name), mode); err != nil {
			return fs.ToErrno(err)
		}
		child, errno = n.adopt(ctx, name, out)
		return errno
	}, func(j *journal) {
		e := born("mkdir", out, j.id(n.EmbeddedInode()), name)
		e.ID = j.born(child)
		j.note(e, nil)
	})
	return child, errno
}

func (n *node) Symlink(ctx context.Context, target, name string, out *fuse.EntryOut) (child *fs.Inode, errno syscall.Errno) {
	errno = n.disk.change("symlink", n.child(name), func() syscall.Errno {
		if err := syscall.Symlink(target, filepath.Join(n.path(), name)); err != nil {
			return fs.ToErrno(err)
		}
		child, errno = n.adopt(ctx, name, out)
		return errno
	}, func(j *journal) {
		e := born("symlink", out, j.id(n.EmbeddedInode()), name)
		e.ID, e.Target = j.born(child), target
		j.note(e, nil)
	})
	return child, errno
}

// Mknod makes pipes and sockets, of which no journal is kept.
func (n *node) Mknod(ctx context.Context, name string, mode, rdev uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if n.disk.journal != nil {
		return nil, syscall.EPERM
	}
	return n.LoopbackNode.Mknod(ctx, name, mode, rdev, out)
}

func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (child *fs.Inode, errno syscall.Errno) {
	from := target.(*node)
	errno = n.disk.change("link", n.child(name), func() syscall.Errno {
		source := from.path()
		if _, parent := from.Parent(); parent == nil { // only a descriptor names it
			f := from.anyFile()
			if f == nil {
				return syscall.ENOENT
			}
			source = "/proc/self/fd/" + strconv.Itoa(f.fd)
		}
		if err := unix.Linkat(unix.AT_FDCWD, source, unix.AT_FDCWD, filepath.Join(n.path(), name), unix.AT_SYMLINK_FOLLOW); err != nil {
			return fs.ToErrno(err)
		}
		child, errno = n.Lookup(ctx, name, out)
		return errno
	}, func(j *journal) {
		j.note(event{Op: "link", ID: j.id(from.EmbeddedInode()), Parent: j.id(n.EmbeddedInode()), Name: name}, nil)
	})
	return child, errno
}

func (n *node) Rename(_ context.Context, name string, newParent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	to := newParent.(*node)
	if flags&^unix.RENAME_NOREPLACE != 0 {
		return syscall.EINVAL
	}
	return n.disk.change("rename", to.child(newName), func() syscall.Errno {
		return fs.ToErrno(unix.Renameat2(unix.AT_FDCWD, filepath.Join(n.path(), name), unix.AT_FDCWD, filepath.Join(to.path(), newName), uint(flags)))
	}, func(j *journal) {
		j.note(event{Op: "rename", Parent: j.id(n.EmbeddedInode()), Name: name, NewParent: j.id(to.EmbeddedInode()), NewName: newName}, nil)
	})
}

func (n *node) Unlink(_ context.Context, name string) syscall.Errno {
	return n.disk.change("unlink", n.child(name), func() syscall.Errno {
		return fs.ToErrno(syscall.Unlink(filepath.Join(n.path(), name)))
	}, func(j *journal) {
		j.note(event{Op: "unlink", Parent: j.id(n.EmbeddedInode()), Name: name}, nil)
	})
}

func (n *node) Rmdir(_ context.Context, name string) syscall.Errno {
	return n.disk.change("rmdir", n.child(name), func() syscall.Errno {
		return fs.ToErrno(syscall.Rmdir(filepath.Join(n.path(), name)))
	}, func(j *journal) {
		j.note(event{Op: "rmdir", Parent: j.id(n.EmbeddedInode()), Name: name}, nil)
	})
}

// Fsyncdir implements fsync of a directory.
func (d *dir) Fsyncdir(context.Context, uint32) syscall.Errno {
	n := d.node
	return n.disk.change("fsyncdir", n.rel(), ok, func(j *journal) {
		j.note(event{Op: "fsyncdir", ID: j.id(n.EmbeddedInode())}, nil)
	})
}

// dir is an open directory.
type dir struct {
	fs.FileReaddirenter
	fs.FileReleasedirer
	fs.FileSeekdirer
	node *node
}

func (n *node) OpendirHandle(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.disk.faults.check("readdir", n.rel()); errno != 0 {
		return nil, 0, errno
	}
	s, errno := fs.NewLoopbackDirStream(n.path())
	if errno != 0 {
		return nil, 0, errno
	}
	return &dir{s.(fs.FileReaddirenter), s.(fs.FileReleasedirer), s.(fs.FileSeekdirer), n}, 0, 0
}

func (n *node) Getattr(ctx context.Context, h fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	if f := n.anyFile(); f != nil { // it may have no name, or no longer
		return f.Getattr(ctx, out)
	}
	return n.LoopbackNode.Getattr(ctx, nil, out)
}

// Statx is left to Getattr.
func (n *node) Statx(context.Context, fs.FileHandle, uint32, uint32, *fuse.StatxOut) syscall.Errno {
	return syscall.ENOSYS
}

func (n *node) Setattr(ctx context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return n.disk.change("setattr", n.rel(), func() syscall.Errno {
		f := n.anyFile()
		_, sized := in.GetSize()
		if f == nil || sized && !f.write {
			return n.LoopbackNode.Setattr(ctx, nil, in, out)
		}
		if errno := f.Setattr(ctx, in, out); errno != 0 {
			return errno
		}
		return f.Getattr(ctx, out)
	}, func(j *journal) {
		id := j.id(n.EmbeddedInode())
		if _, sized := in.GetSize(); sized {
			j.note(event{Op: "truncate", ID: id, Size: int64(out.Size)}, nil)
		}
		_, mode := in.GetMode()
		_, uid := in.GetUID()
		_, gid := in.GetGID()
		if mode || uid || gid {
			j.note(event{Op: "chmod", ID: id, Mode: out.Mode & 0o7777, UID: out.Uid, GID: out.Gid}, nil)
		}
	})
}

// CopyFileRange is not offered: the copy comes as reads and writes then.
func (n *node) CopyFileRange(context.Context, fs.FileHandle, uint64, *fs.Inode, fs.FileHandle, uint64, uint64, uint64) (uint32, syscall.Errno) {
	return 0, syscall.ENOSYS
}
