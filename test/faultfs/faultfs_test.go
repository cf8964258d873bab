package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mounted is a file system that ends with the test.
type mounted struct {
	t   *testing.T
	dir string
	o   options
}

const patience = 30 * time.Second

func mount(t *testing.T, journal bool) *mounted {
	t.Helper()
	if err := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK); err != nil {
		t.Fatalf("/dev/fuse: %v", err)
	}
	base, err := os.MkdirTemp("", "faultfs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	m := &mounted{t: t, dir: filepath.Join(base, "mount"), o: options{
		backing: filepath.Join(base, "backing"), mount: filepath.Join(base, "mount"), control: filepath.Join(base, "control"),
	}}
	for _, dir := range []string{m.o.backing, m.o.mount} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if journal {
		m.o.journal = base
	}
	stdin, stop := io.Pipe()
	ready, stdout := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(m.o, stdin, stdout)
		stdout.Close()
	}()
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		t.Fatal(<-ended)
	}
	go io.Copy(io.Discard, ready)
	t.Cleanup(func() {
		stop.Close()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Errorf("no end within %s", patience)
		}
	})
	return m
}

func (m *mounted) say(c command) reply {
	m.t.Helper()
	conn, err := net.Dial("unix", m.o.control)
	if err != nil {
		m.t.Fatal(err)
	}
	defer conn.Close()
	var r reply
	if err := errors.Join(conn.SetDeadline(time.Now().Add(patience)), json.NewEncoder(conn).Encode(c), json.NewDecoder(conn).Decode(&r)); err != nil {
		m.t.Fatal(err)
	}
	if r.Error != "" {
		m.t.Fatal(r.Error)
	}
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheJournalHoldsWhatWasDoneInItsOrder(t *testing.T) {
	m := mount(t, true)
	at := func(name string) string { return filepath.Join(m.dir, name) }
	must(t, os.Mkdir(at("d"), 0o700))
	f, err := os.OpenFile(at("d/a.tmp"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	must(t, err)
	_, err = f.WriteString("first")
	must(t, err)
	must(t, f.Chmod(0o640))
	must(t, f.Sync())
	must(t, os.Rename(at("d/a.tmp"), at("d/a")))
	_, err = f.WriteString(", second")
	must(t, err)
	must(t, f.Close())
	d, err := os.Open(at("d"))
	must(t, err)
	must(t, errors.Join(d.Sync(), d.Close()))
	m.say(command{Mark: "half"})
	must(t, os.Truncate(at("d/a"), 2))
	must(t, os.Link(at("d/a"), at("b")))
	must(t, os.Symlink("b", at("c")))
	fd, err := unix.Open(m.dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	must(t, err)
	unnamed := os.NewFile(uintptr(fd), "unnamed")
	_, err = unnamed.WriteString("whole")
	must(t, err)
	must(t, unnamed.Chmod(0o644))
	must(t, unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), unix.AT_FDCWD, at("e"), unix.AT_SYMLINK_FOLLOW))
	must(t, unnamed.Close())
	must(t, os.Remove(at("d/a")))
	must(t, os.Remove(at("d")))
	if got, err := os.ReadFile(at("b")); err != nil || string(got) != "fi" {
		t.Errorf("b holds %q (%v)", got, err)
	}
	if got, err := os.ReadFile(at("e")); err != nil || string(got) != "whole" {
		t.Errorf("e holds %q (%v)", got, err)
	}

	want := []string{
		"mkdir 2 in 1 as d", "create 3 in 2 as a.tmp", "write 3 at 0: first", "chmod 3 to 640", "fsync 3", "rename a.tmp in 2 to a in 2",
		"write 3 at 5: , second", "fsyncdir 2", "mark half", "truncate 3 to 2", "link 3 in 1 as b", "symlink 4 in 1 as c to b",
		"create 5 in 0 as ", "write 5 at 0: whole", "chmod 5 to 644", "link 5 in 1 as e", "unlink a in 2", "rmdir d in 1",
	}
	if got := m.events(); !slices.Equal(got, want) {
		t.Errorf("the journal holds\n%s\nwanted\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// events reads the journal as sentences.
func (m *mounted) events() []string {
	m.t.Helper()
	lines, err := os.ReadFile(filepath.Join(m.o.journal, "journal.json"))
	must(m.t, err)
	data, err := os.ReadFile(filepath.Join(m.o.journal, "journal.data"))
	must(m.t, err)
	var said []string
	for line := range bytes.Lines(lines) {
		var e event
		must(m.t, json.Unmarshal(line, &e))
		said = append(said, e.sentence(data))
	}
	return said
}

func (e event) sentence(data []byte) string {
	in := " in " + strconv.Itoa(int(e.Parent))
	id := e.Op + " " + strconv.Itoa(int(e.ID))
	switch e.Op {
	case "create", "mkdir", "link":
		return id + in + " as " + e.Name
	case "symlink":
		return id + in + " as " + e.Name + " to " + e.Target
	case "write":
		return id + " at " + strconv.Itoa(int(e.Off)) + ": " + string(data[e.At:e.At+e.Size])
	case "chmod":
		var octal []byte
		for mode := e.Mode; mode > 0; mode /= 8 {
			octal = append([]byte{'0' + byte(mode%8)}, octal...)
		}
		return id + " to " + string(octal)
	case "truncate":
		return id + " to " + strconv.Itoa(int(e.Size))
	case "rename":
		return e.Op + " " + e.Name + in + " to " + e.NewName + " in " + strconv.Itoa(int(e.NewParent))
	case "unlink", "rmdir":
		return e.Op + " " + e.Name + in
	case "mark":
		return "mark " + e.Name
	}
	return id
}

func TestWhatIsInjectedFailsAndNothingElse(t *testing.T) {
	m := mount(t, false)
	name := filepath.Join(m.dir, "file")
	must(t, os.WriteFile(name, bytes.Repeat([]byte("0123456789"), 1000), 0o600))
	write := func() error { return os.WriteFile(filepath.Join(m.dir, "other"), []byte("content"), 0o600) }
	for _, c := range []struct {
		name  string
		fault fault
		want  syscall.Errno
		do    func() error
	}{
		{"the second write", fault{Op: "write", Path: "other", Errno: "ENOSPC", After: 1, Times: 1}, syscall.ENOSPC, func() error {
			must(t, write())
			err := write()
			must(t, write())
			return err
		}},
		{"a quota", fault{Op: "write", Path: "oth.*", Errno: "EDQUOT"}, syscall.EDQUOT, write},
		{"a close", fault{Op: "flush", Path: "other", Errno: "EIO"}, syscall.EIO, write},
		{"a sync of a file", fault{Op: "fsync", Path: "file", Errno: "EIO"}, syscall.EIO, func() error { return syncOf(name) }},
		{"a sync of the root", fault{Op: "fsyncdir", Path: "", Errno: "EIO"}, syscall.EIO, func() error {
			must(t, syncOf(name))
			return syncOf(m.dir)
		}},
		{"a reading from an offset", fault{Op: "read", Path: "file", Errno: "EIO", From: 4321}, syscall.EIO, func() error {
			got, err := os.ReadFile(name)
			if len(got) != 4321 {
				t.Errorf("%d bytes could be read", len(got))
			}
			return err
		}},
		{"a directory that cannot be made", fault{Op: "mkdir", Path: "x/.*", Errno: "EROFS"}, syscall.EROFS, func() error {
			must(t, os.Mkdir(filepath.Join(m.dir, "x"), 0o700))
			return os.Mkdir(filepath.Join(m.dir, "x/y"), 0o700)
		}},
	} {
		m.say(command{Inject: &c.fault})
		if err := c.do(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if r := m.say(command{Hits: true}); r.Hits == 0 {
			t.Errorf("%s was not counted", c.name)
		}
		m.say(command{Clear: true})
	}
	must(t, errors.Join(write(), syncOf(name), syncOf(m.dir)))
}

func syncOf(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
