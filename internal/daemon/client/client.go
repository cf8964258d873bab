// Package client asks walden's daemon to archive or fetch a file, as archive_command and restore_command need it: at once.
//
// PostgreSQL starts a process for each file, and most of the time that the program takes to start goes into the initialisation of packages that the
// client has no use for, those of cloud services above all. The linker has packages initialised in an order that follows from imports, and from their names
// where these leave a choice; this one imports next to nothing, so that its turn comes before theirs. Its init looks at the process's arguments; if they
// ask for the client, it does the client's work with plain system calls and ends the process. See docs/decisions/0010-*.md.
//
// Promises: a success is the daemon's word that it is done; in archive recovery no failure is ever taken for the end of the archive.
package client

import (
	"errors"
	"syscall"
	"time"

	"gitlab.com/walden-pg/walden/internal/daemon/wire"
)

// The commands, as they are called: under walden's own name, and under that of WAL-G's client.
const (
	Command = "daemon-client"
	Called  = "walg-daemon-client"
)

// Exit codes, those of the commands wal-push and wal-fetch.
const (
	exitDone         = 0
	exitFailed       = 1
	exitAbsent       = 74
	exitStopRecovery = 200 // see docs/decisions/0002-wal-fetch-exit-codes.md
)

// Defaults of the flags, those of WAL-G's client.
const (
	DefaultTimeout           = time.Minute
	DefaultConnectionTimeout = 5 * time.Second
)

const (
	push  = "wal-push"
	fetch = "wal-fetch"
)

// Request is what the client is asked for.
type Request struct {
	Socket            string
	Name              string // of the file
	Dest              string // where it is to be fetched to; "" archives it
	Timeout           time.Duration
	ConnectionTimeout time.Duration
}

// Parse reads arguments: SOCKET wal-push PATH, or SOCKET wal-fetch NAME DESTINATION, with the flags -timeout and -connection-timeout anywhere among them,
// with one dash or two. False means that they are nothing of that kind.
func Parse(args []string) (Request, bool) {
	r := Request{Timeout: DefaultTimeout, ConnectionTimeout: DefaultConnectionTimeout}
	var words []string
	for i := 0; i < len(args); i++ {
		name, value, isFlag, hasValue := flag(args[i])
		if !isFlag {
			words = append(words, args[i])
			continue
		}
		if !hasValue {
			if i++; i == len(args) {
				return Request{}, false
			}
			value = args[i]
		}
		d, err := time.ParseDuration(value)
		if err != nil || d <= 0 {
			return Request{}, false
		}
		switch name {
		case "timeout":
			r.Timeout = d
		case "connection-timeout":
			r.ConnectionTimeout = d
		default:
			return Request{}, false
		}
	}
	switch {
	case len(words) == 3 && words[1] == push && words[2] != "":
		r.Socket, r.Name = words[0], words[2]
	case len(words) == 4 && words[1] == fetch && words[3] != "":
		r.Socket, r.Name, r.Dest = words[0], words[2], words[3]
	default:
		return Request{}, false
	}
	return r, true
}

// flag takes an argument apart.
func flag(a string) (name, value string, isFlag, hasValue bool) {
	if len(a) < 2 || a[0] != '-' {
		return "", "", false, false
	}
	a = a[1:]
	if a[0] == '-' {
		a = a[1:]
	}
	for i := range len(a) {
		if a[i] == '=' {
			return a[:i], a[i+1:], true, true
		}
	}
	return a, "", true, false
}

// Run does what it is asked for and returns the exit code. What went wrong goes to standard error.
func (r Request) Run() int {
	answer, problem := r.ask()
	switch {
	case problem != "":
		problem = "cannot " + r.what() + " by the daemon at " + r.Socket + ": " + problem
	case answer == wire.Done:
		return exitDone
	case answer == wire.Absent && r.Dest != "":
		return exitAbsent
	default:
		problem = "the daemon at " + r.Socket + " could not " + r.what() + "; its log says why"
	}
	say("walden: " + problem + "\n")
	if r.Dest != "" && inArchiveRecovery(r.Dest) {
		say("hint: PostgreSQL is in archive recovery and stops now (exit code 200) instead of ending recovery early; mend the cause and start it again\n")
		return exitStopRecovery
	}
	return exitFailed
}

func (r Request) what() string {
	if r.Dest == "" {
		return "archive " + r.Name
	}
	return "fetch " + r.Name
}

// ask sends the request and returns the answer, or what went wrong.
func (r Request) ask() (answer byte, problem string) {
	message, problem := r.message()
	if problem != "" {
		return 0, problem
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, "no socket: " + err.Error()
	}
	c := conn{fd, time.Now().Add(r.ConnectionTimeout)}
	defer func() { _ = syscall.Close(fd) }() // the process ends
	if problem := c.connect(r.Socket); problem != "" {
		return 0, problem
	}
	hello, _ := wire.Append(nil, wire.Check, place())
	if answer, problem = c.exchange(hello); problem != "" {
		return 0, problem
	}
	if answer != wire.Done {
		return 0, "it refuses this client; its log says why"
	}
	c.end = time.Now().Add(r.Timeout)
	return c.exchange(message)
}

// message is what is sent.
func (r Request) message() (message []byte, problem string) {
	const tooLong = "the name is too long"
	if r.Dest == "" {
		dir, name := split(r.Name)
		if _, base := split(dir); dir != "" && base != "pg_wal" {
			return nil, "it archives files of its own pg_wal only"
		}
		message, ok := wire.Append(nil, wire.Push, []byte(name))
		if !ok {
			return nil, tooLong
		}
		return message, ""
	}
	body, ok := wire.AppendArguments(nil, r.Name, r.Dest)
	if ok {
		message, ok = wire.Append(nil, wire.Fetch, body)
	}
	if !ok {
		return nil, tooLong
	}
	return message, ""
}

// split divides a path at its last slash; the folder is "" without one.
func split(path string) (dir, base string) {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[:i], path[i+1:]
		}
	}
	return "", path
}

// place tells the daemon which pg_wal lies in the working directory, where PostgreSQL runs its commands; nothing where there is none.
func place() []byte {
	var st syscall.Stat_t
	if err := syscall.Stat("pg_wal", &st); err != nil {
		return nil
	}
	return wire.Place{Device: st.Dev, Inode: st.Ino}.Append(nil)
}

// inArchiveRecovery says what archive.RecoveryState says.
func inArchiveRecovery(dest string) bool {
	above, _ := split(dest)
	above, _ = split(above)
	if above == "" {
		above = "."
		if dest[0] == '/' {
			above = "/"
		}
	}
	for _, dir := range [...]string{".", above} {
		if exists(dir + "/standby.signal") {
			return false
		}
		if exists(dir + "/recovery.signal") {
			return true
		}
	}
	return false
}

func exists(path string) bool {
	var st syscall.Stat_t
	return syscall.Lstat(path, &st) == nil
}

// conn is a connection with the daemon. Everything on it has to be done by end.
type conn struct {
	fd  int
	end time.Time
}

const tooLate = "no answer in time"

// limit has the kernel end system calls in time.
func (c *conn) limit() (problem string) {
	left := time.Until(c.end)
	if left <= 0 {
		return tooLate
	}
	tv := syscall.NsecToTimeval(max(left, time.Millisecond).Nanoseconds())
	for _, option := range [...]int{syscall.SO_SNDTIMEO, syscall.SO_RCVTIMEO} {
		if err := syscall.SetsockoptTimeval(c.fd, syscall.SOL_SOCKET, option, &tv); err != nil {
			return "its time cannot be limited: " + err.Error()
		}
	}
	return ""
}

// repeat makes a system call again while signals come in between.
func (c *conn) repeat(what string, call func() error) (problem string) {
	for {
		if problem := c.limit(); problem != "" {
			return problem
		}
		switch err := call(); {
		case err == nil:
			return ""
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINPROGRESS):
			return tooLate
		default:
			return what + ": " + err.Error()
		}
	}
}

func (c *conn) connect(path string) (problem string) {
	return c.repeat("no connection", func() error { return syscall.Connect(c.fd, &syscall.SockaddrUnix{Name: path}) })
}

// exchange sends a message and reads its answer.
func (c *conn) exchange(message []byte) (answer byte, problem string) {
	for len(message) > 0 {
		n := 0
		problem := c.repeat("it takes nothing", func() (err error) {
			n, err = syscall.SendmsgN(c.fd, message, nil, nil, syscall.MSG_NOSIGNAL)
			return err
		})
		if problem != "" {
			return 0, problem
		}
		message = message[n:]
	}
	b := make([]byte, 1)
	n := 0
	problem = c.repeat("no answer", func() (err error) {
		n, err = syscall.Read(c.fd, b)
		return err
	})
	if problem == "" && n == 0 {
		problem = "it has closed the connection without an answer"
	}
	return b[0], problem
}

// say writes to standard error.
func say(text string) {
	_, _ = syscall.Write(syscall.Stderr, []byte(text)) // nobody could be told
}
