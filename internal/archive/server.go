package archive

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// server is the PostgreSQL server that a file is fetched for. One that is killed leaves its restore_command running: what that
// command brings is not for the server that is started next, which asks for files anew, and perhaps for others.
type server struct {
	lockFile string // "" if no server is near
	identity []byte // the process ID, the data directory and the time of the start
}

// lockFile is what a server creates in its data directory, and what stands in its first lines (PostgreSQL: src/include/utils/pidfile.h).
const (
	lockFile      = "postmaster.pid"
	identityLines = 3
)

// serverNear finds the server whose data directory is near dest.
func serverNear(dest string) server {
	for _, dir := range dataDirs(dest) {
		name := filepath.Join(dir, lockFile)
		if id := identityIn(name); id != nil {
			return server{name, id}
		}
	}
	return server{}
}

func identityIn(name string) []byte {
	b, err := os.ReadFile(name)
	lines := bytes.SplitAfterN(b, []byte("\n"), identityLines+1)
	if err != nil || len(lines) <= identityLines {
		return nil
	}
	return bytes.Join(lines[:identityLines], nil)
}

// errServerGone ends a fetch whose server was started anew in the meantime.
var errServerGone = errors.New("the server that asked for it has ended, and another was started")

// check fails if another server runs in the data directory now.
func (s server) check() error {
	if s.lockFile == "" {
		return nil
	}
	if now := identityIn(s.lockFile); now != nil && !bytes.Equal(now, s.identity) {
		return errServerGone
	}
	return nil
}

// temporaryNames are those under which PostgreSQL has a file fetched that it is going to look at (RestoreArchivedFile in xlogarchive.c, and
// its callers). It removes what bears the name before it asks.
var temporaryNames = []string{"RECOVERYXLOG", "RECOVERYHISTORY"}

// pid is the process ID of the postmaster, 0 if no server is near.
func (s server) pid() int {
	line, _, _ := bytes.Cut(s.identity, []byte("\n"))
	pid, _ := strconv.Atoi(string(line)) // of a single-user server it is negative
	return max(pid, 0)
}

// isThere tells whether the postmaster's process is there, as far as this process can see it: a server in another container has a number of its own there.
func (s server) isThere() bool {
	pid := s.pid()
	return pid != 0 && !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

// mayReplace tells whether a file of the destination's name is left over from a server that was killed: its restore_command came to
// its end when this server had already removed what was there.
func (s server) mayReplace(dest string) bool {
	return s.lockFile != "" && slices.Contains(temporaryNames, filepath.Base(dest))
}
