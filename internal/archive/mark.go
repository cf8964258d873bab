package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/wal"
)

const (
	// markBelieved is how long a mark counts. PostgreSQL asks for a file that waits within seconds of the one before it; the longer
	// it takes, the less is known of what has happened to the archive since, and to look there costs little.
	markBelieved = 5 * time.Minute

	// markKept is when a mark that nobody asked for is removed. It has not counted for long by then; it only keeps the file from being archived
	// ahead again and again while the server's own call fails.
	markKept = time.Hour

	// settled is how long a file must not have changed before its times count as those of its content: kernels tell the time of a change
	// in steps of up to 10 ms (CONFIG_HZ), so that one more change in the same step would not be seen.
	settled = 20 * time.Millisecond

	// marksLimit bounds how many marks are looked at to find old ones.
	marksLimit = 1024

	// markSize bounds what is read of a mark, in bytes.
	markSize = 4096
)

// mark says that a file was archived before PostgreSQL asked for it, and all by which it is told that nothing has changed since.
type mark struct {
	File             string `json:"file"` // its whole name: that of a partial segment is another one
	Device           uint64 `json:"device"`
	Inode            uint64 `json:"inode"`
	Size             int64  `json:"size"`
	Modified         int64  `json:"modified_ns"`
	Changed          int64  `json:"changed_ns"`
	SystemIdentifier uint64 `json:"system_identifier"`
	Archive          string `json:"archive"` // see PusherOptions.Archive

	At time.Time `json:"at"` // when it was found to be archived
}

// markOf is what a mark made now says of an open segment.
func markOf(f *file, archive string, now time.Time) (mark, error) {
	info, err := f.Stat()
	if err != nil {
		return mark{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return mark{}, fmt.Errorf("the system does not tell what %s is", f.Name())
	}
	head := make([]byte, wal.HeaderSize)
	if _, err := f.ReadAt(head, 0); err != nil {
		return mark{}, err
	}
	h, err := wal.ParseHeader(head)
	if err != nil && !errors.Is(err, wal.ErrUnknownMagic) {
		return mark{}, err
	}
	return mark{
		File: filepath.Base(f.Name()), Device: st.Dev, Inode: st.Ino, Size: st.Size,
		Modified: st.Mtim.Nano(), Changed: st.Ctim.Nano(), SystemIdentifier: h.SystemIdentifier, Archive: archive, At: now,
	}, nil
}

// errVoid says that a mark proves nothing.
var errVoid = errors.New("the mark is void")

// isSettled tells whether the file has not changed for a while, by the clock that the kernel gives files their times from.
func (m mark) isSettled() bool {
	var now unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_REALTIME, &now)
	return err == nil && time.Duration(now.Nano()-m.Changed) >= settled
}

// proves tells whether the mark is of the file that another, which was made just now, describes: nil, or why not.
func (m mark) proves(now mark) error {
	age := now.At.Sub(m.At)
	m.At, now.At = time.Time{}, time.Time{}
	switch {
	case m != now:
		return fmt.Errorf("%w: the file, the cluster or the archive is another one", errVoid)
	case age < 0:
		return fmt.Errorf("%w: it is from the future", errVoid)
	case age >= markBelieved:
		return fmt.Errorf("%w: it is %s old", errVoid, age.Round(time.Second))
	}
	return nil
}

// sameFile tells whether two marks describe the same file with the same content.
func (m mark) sameFile(other mark) bool {
	m.At, other.At = time.Time{}, time.Time{}
	return m == other
}

func parseMark(b []byte) (mark, error) {
	var m mark
	if err := json.Unmarshal(b, &m); err != nil {
		return mark{}, fmt.Errorf("%w: %w", errVoid, err)
	}
	return m, nil
}

// marks is the folder with what wal-push tells later calls of itself.
type marks struct{ dir string }

// openMarks finds the folder of the marks for the files beside path; base as for spoolDir.
func openMarks(path, base string) (*marks, error) {
	spool, err := spoolDir(path, base)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(spool, "pushed")
	return &marks{dir}, privateDir(dir)
}

func (m *marks) path(name string) string { return filepath.Join(m.dir, name) }

// has tells whether there is a mark, whatever it says.
func (m *marks) has(name string) bool { return exists(m.path(name)) }

// read reads a mark; [fs.ErrNotExist] if there is none.
func (m *marks) read(name string) (mark, error) {
	f, err := openNow(m.path(name))
	if err != nil {
		return mark{}, err
	}
	defer f.Close()
	b := make([]byte, markSize)
	n, err := fill(f, b)
	if n == len(b) || !errors.Is(err, io.EOF) {
		return mark{}, errors.Join(errVoid, err)
	}
	return parseMark(b[:n])
}

// put writes a mark that survives a crash of the machine, or none.
func (m *marks) put(k mark) error {
	content, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return writeSmall(m.dir, k.File, content, true)
}

// remove removes a mark, if there is one.
func (m *marks) remove(name string) error { return removeIfThere(m.path(name)) }

// forget removes marks for which nobody has come, and what a killed process was writing.
func (m *marks) forget(now time.Time) error {
	dir, err := os.Open(m.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(marksLimit)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for _, name := range names {
		info, err := os.Lstat(m.path(name))
		if err != nil || now.Sub(info.ModTime()) < markKept {
			continue // gone, or not old
		}
		if err := m.remove(name); err != nil {
			return err
		}
	}
	return nil
}
