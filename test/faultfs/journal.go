package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/hanwen/go-fuse/v2/fs"
)

// event is one change of the file system, or one promise of durability. Inodes have numbers of their own, which are never
// used twice; the root is 1.
type event struct {
	Op     string `json:"op"` // create, mkdir, symlink, write, truncate, chmod (mode and owner), link, rename, unlink, rmdir, fsync, fsyncdir, mark
	ID     int64  `json:"id,omitempty"`
	Parent int64  `json:"parent,omitempty"` // 0 for a file created without a name
	Name   string `json:"name,omitempty"`   // also a mark's text

	NewParent int64  `json:"new_parent,omitempty"` // of rename
	NewName   string `json:"new_name,omitempty"`
	Target    string `json:"target,omitempty"` // of symlink
	Mode      uint32 `json:"mode,omitempty"`   // permission bits
	UID       uint32 `json:"uid,omitempty"`
	GID       uint32 `json:"gid,omitempty"`
	Off       int64  `json:"off,omitempty"`  // of write
	Size      int64  `json:"size,omitempty"` // of write, and the new length of truncate
	At        int64  `json:"at,omitempty"`   // where journal.data holds what was written
}

const rootID = 1

// journal keeps events in the order in which they took place: an operation is done and noted under one lock.
type journal struct {
	mu    sync.Mutex
	lines *os.File
	data  *os.File
	size  int64 // of data
	last  int64 // inode number given out
	ids   map[inodeKey]int64
	err   error // the first failure to write the journal; every later operation fails with EIO
}

// inodeKey tells inodes apart, also when the backing file system uses a number again.
type inodeKey struct{ ino, generation uint64 }

func keyOf(n *fs.Inode) inodeKey {
	a := n.StableAttr()
	return inodeKey{a.Ino, a.Gen}
}

func openJournal(backing, dir string) (*journal, error) {
	entries, err := os.ReadDir(backing)
	if err != nil {
		return nil, err
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("cannot keep a journal of %s: it holds something already", backing)
	}
	j := &journal{last: rootID, ids: map[inodeKey]int64{}}
	if j.lines, err = os.Create(filepath.Join(dir, "journal.json")); err != nil {
		return nil, err
	}
	if j.data, err = os.Create(filepath.Join(dir, "journal.data")); err != nil {
		return nil, errors.Join(err, j.lines.Close())
	}
	return j, nil
}

func (j *journal) close() {
	j.lines.Close()
	j.data.Close()
}

// born gives an inode its number. The caller holds the lock.
func (j *journal) born(n *fs.Inode) int64 {
	j.last++
	j.ids[keyOf(n)] = j.last
	return j.last
}

// id is the number of an inode. The caller holds the lock.
func (j *journal) id(n *fs.Inode) int64 {
	if n.IsRoot() {
		return rootID
	}
	return j.ids[keyOf(n)]
}

// note writes an event. The caller holds the lock.
func (j *journal) note(e event, data []byte) {
	if j.err != nil {
		return
	}
	if len(data) > 0 {
		e.At, e.Size = j.size, int64(len(data))
		n, err := j.data.Write(data)
		j.size += int64(n)
		j.err = err
	}
	line, err := json.Marshal(e)
	if err == nil {
		_, err = j.lines.Write(append(line, '\n'))
	}
	j.err = errors.Join(j.err, err)
}
