package main

import (
	"encoding/json"
	"fmt"
	"net"
	"regexp"
	"sync"
	"syscall"
	"time"
)

// fault is an operation that is to fail.
type fault struct {
	Op    string `json:"op"`    // read, write, open, create (of the directory's path: a file without a name), mkdir, symlink, link, rename, unlink, rmdir, setattr, readdir, fsync, fsyncdir, flush
	Path  string `json:"path"`  // regular expression over the path below the mount, such as "archive/wal_005/.*"
	Errno string `json:"errno"` // EIO, ENOSPC, EDQUOT, EROFS, EACCES, EOPNOTSUPP
	After int    `json:"after"` // how many of the operations succeed first
	Times int    `json:"times"` // how many fail then; 0 for all
	From  int64  `json:"from"`  // read: bytes before this offset can be read
}

var errnos = map[string]syscall.Errno{
	"EIO": syscall.EIO, "ENOSPC": syscall.ENOSPC, "EDQUOT": syscall.EDQUOT, "EROFS": syscall.EROFS, "EACCES": syscall.EACCES,
	"EOPNOTSUPP": syscall.EOPNOTSUPP,
}

// command is what a test says through the control socket; exactly one of its members is set.
type command struct {
	Inject *fault `json:"inject,omitempty"`
	Clear  bool   `json:"clear,omitempty"`
	Mark   string `json:"mark,omitempty"` // text for the journal
	Hits   bool   `json:"hits,omitempty"`
}

// reply answers a command.
type reply struct {
	Error string `json:"error,omitempty"`
	Hits  int    `json:"hits"` // how many operations were made to fail since the last clear
}

type activeFault struct {
	fault
	path *regexp.Regexp
	seen int
}

type faults struct {
	mu     sync.Mutex
	active []*activeFault
	hits   int
}

func (f *faults) inject(o fault) error {
	if _, known := errnos[o.Errno]; !known {
		return fmt.Errorf("unknown errno %q", o.Errno)
	}
	path, err := regexp.Compile("^(?:" + o.Path + ")$")
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active = append(f.active, &activeFault{fault: o, path: path})
	return nil
}

func (f *faults) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active, f.hits = nil, 0
}

// check says how an operation fails, 0 for not at all.
func (f *faults) check(op, path string) syscall.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.active {
		if a.Op != op || op == "read" || !a.path.MatchString(path) {
			continue
		}
		a.seen++
		if a.seen > a.After && (a.Times == 0 || a.seen <= a.After+a.Times) {
			f.hits++
			return errnos[a.Errno]
		}
	}
	return 0
}

// checkRead says how much of a read of n bytes at off may be answered; nothing at all is an error.
func (f *faults) checkRead(path string, off int64, n int) (int, syscall.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.active {
		if a.Op != "read" || !a.path.MatchString(path) || off+int64(n) <= a.From {
			continue
		}
		if off < a.From {
			return int(a.From - off), 0
		}
		f.hits++
		return 0, errnos[a.Errno]
	}
	return n, 0
}

const controlLimit = 10 * time.Second

// serveControl answers commands until the listener is closed.
func (d *disk) serveControl(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		d.answer(c)
	}
}

func (d *disk) answer(c net.Conn) {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(controlLimit)); err != nil {
		return
	}
	var in command
	err := json.NewDecoder(c).Decode(&in)
	if err == nil {
		err = d.obey(in)
	}
	d.faults.mu.Lock()
	out := reply{Hits: d.faults.hits}
	d.faults.mu.Unlock()
	if err != nil {
		out.Error = err.Error()
	}
	_ = json.NewEncoder(c).Encode(out) // whoever asked may be gone
}

func (d *disk) obey(in command) error {
	switch {
	case in.Inject != nil:
		return d.faults.inject(*in.Inject)
	case in.Clear:
		d.faults.clear()
	case in.Mark != "" && d.journal != nil:
		d.journal.mu.Lock()
		defer d.journal.mu.Unlock()
		d.journal.note(event{Op: "mark", Name: in.Mark}, nil)
		return d.journal.err
	case !in.Hits:
		return fmt.Errorf("unknown command")
	}
	return nil
}
