package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/hint"
)

// dialLimit bounds the question whether someone listens on a socket.
const dialLimit = 5 * time.Second

// Listen makes the socket at path, for this user alone. It replaces a socket that a killed daemon has left, and nothing else.
// release removes it after the listener was closed.
func Listen(path string) (listener *net.UnixListener, release func() error, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot listen on %s: %w", path, err)
		}
	}()
	unlock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	if err := removeDead(path); err != nil {
		return nil, nil, err
	}
	before := unix.Umask(0o177)
	listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(before)
	if err != nil {
		return nil, nil, err
	}
	listener.SetUnlinkOnClose(false)
	ours, err := os.Lstat(path)
	if err != nil {
		return nil, nil, errors.Join(err, listener.Close())
	}
	return listener, func() error {
		if now, err := os.Lstat(path); err != nil || !os.SameFile(ours, now) {
			return nil // another daemon's, or gone
		}
		return os.Remove(path)
	}, nil
}

// lockDir keeps two daemons from replacing a dead socket at the same time, each the other's new one.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another program holds the lock on %s: %w", dir, err), d.Close())
	}
	return func() { _ = d.Close() }, nil
}

// removeDead removes a socket that nobody listens on.
func removeDead(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is a file of that name, and it is no socket")
	}
	conn, err := net.DialTimeout("unix", path, dialLimit)
	switch {
	case err == nil:
		return hint.With(errors.Join(errors.New("another daemon listens there"), conn.Close()),
			"every cluster has a daemon and a socket of its own")
	case !errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("whether a daemon listens there cannot be told: %w", err)
	}
	return os.Remove(path)
}

// firstInherited is the number of the first file that systemd hands over (sd_listen_fds(3)).
const firstInherited = 3

// Inherited is the socket that systemd has made and handed over; nil if it has not. It is systemd's to remove.
func Inherited(getenv func(string) string) (*net.UnixListener, error) {
	pid, count := getenv("LISTEN_PID"), getenv("LISTEN_FDS")
	if count == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	if count != "1" {
		return nil, fmt.Errorf("cannot listen on %s sockets from systemd: the daemon has one", count)
	}
	f := os.NewFile(firstInherited, "socket from systemd")
	defer f.Close() // the listener has a copy
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on the socket from systemd: %w", err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(errors.New("cannot listen on the socket from systemd: it is no Unix socket"), l.Close())
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}

// Notifier tells systemd about the daemon (sd_notify(3)); the zero Notifier tells nobody.
type Notifier struct{ address string }

// NewNotifier finds out whom to tell.
func NewNotifier(getenv func(string) string) Notifier { return Notifier{getenv("NOTIFY_SOCKET")} }

// The states that systemd knows.
const (
	Ready     = "READY=1"
	Reloading = "RELOADING=1"
	Stopping  = "STOPPING=1"
	Alive     = "WATCHDOG=1"
)

// Tell sends states, and a line for `systemctl status` unless it is "".
func (n Notifier) Tell(status string, states ...string) error {
	if n.address == "" {
		return nil
	}
	for _, s := range states {
		if s != Reloading {
			continue
		}
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			return err
		}
		states = append(states, "MONOTONIC_USEC="+strconv.FormatInt(now.Nano()/int64(time.Microsecond), 10))
		break
	}
	if status != "" {
		states = append(states, "STATUS="+status)
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.address, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("cannot notify systemd: %w", err)
	}
	err = conn.SetWriteDeadline(time.Now().Add(dialLimit))
	if err == nil {
		_, err = conn.Write([]byte(strings.Join(states, "\n")))
	}
	return errors.Join(err, conn.Close())
}

// aliveEvery is how often the daemon tells that it is alive where systemd does not say.
const aliveEvery = 30 * time.Second

// AliveEvery is how often systemd wants to be told that the daemon is alive: twice in the time after which it takes it for dead.
func AliveEvery(getenv func(string) string) time.Duration {
	usec, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64)
	if pid := getenv("WATCHDOG_PID"); err != nil || usec <= 1 || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return aliveEvery
	}
	return time.Duration(usec) * time.Microsecond / 2
}
