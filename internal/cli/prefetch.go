package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/archive"
)

// prefetch says how up to ahead segments are fetched ahead. As in WAL-G, one download at a time is that of the file that PostgreSQL asks for.
func (a *app) prefetch(ahead int) archive.Prefetch {
	id := a.archiveID()
	if a.config.Limits.DownloadConcurrency == 1 || id == "" {
		ahead = 0
	}
	return archive.Prefetch{
		Dir: a.config.WAL.PrefetchDir, Limit: ahead, AtOnce: a.workers(min(ahead, 2*cores()), unpackMemory), Archive: id,
	}
}

// handedOver is what wal-fetch gives to the process that it starts: what stood on its own command line, where others could read it, stands on no other.
type handedOver struct {
	Flags map[string]string
	File  string
	Turbo bool
	Ahead int
}

// maxHandedOver bounds what is read of it, in bytes.
const maxHandedOver = 1 << 20

// startPrefetch starts a process that fetches ahead, and does not wait for it. It has a session of its own, so that no signal to the server's processes meets
// it, and of this process nothing but its environment and its working directory.
func (a *app) startPrefetch(name, dest string, ahead int) error {
	if a.process.Self == "" {
		return errors.New("no file of this program is known")
	}
	message, err := json.Marshal(handedOver{a.flags, a.file, a.turbo, ahead})
	if err != nil {
		return err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command(a.process.Self, "wal-prefetch", "--handed-over", name, dest) // it outlives this process
	cmd.Args[0] = "walden"
	cmd.Env = a.process.Environ
	cmd.Stdin = read
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = closeOnExec()
	if err == nil {
		err = cmd.Start()
	}
	err = errors.Join(err, read.Close())
	if err == nil {
		_, err = write.Write(message)
		err = errors.Join(err, cmd.Process.Release())
	}
	return errors.Join(err, write.Close())
}

// closeOnExec keeps the files that the server left open in this process from the one that is started, which would hold them: removed relations on PostgreSQL 15 and
// older.
func closeOnExec() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	const first = 3 // behind the standard ones
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

func (a *app) walPrefetch() *cobra.Command {
	var handed bool
	cmd := &cobra.Command{
		Use: "wal-prefetch NAME LOCATION", Short: "Fetch the segments behind NAME before PostgreSQL asks for them; wal-fetch starts it", Hidden: true,
		Args: arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ahead := 0
			if handed {
				var h handedOver
				if err := json.NewDecoder(io.LimitReader(a.process.Stdin, maxHandedOver)).Decode(&h); err != nil {
					return fmt.Errorf("cannot read the settings on standard input: %w", err)
				}
				maps.Copy(a.flags, h.Flags)
				a.file, a.turbo, ahead = h.File, h.Turbo, h.Ahead
			}
			if err := a.load(true); err != nil {
				return err
			}
			if !handed {
				ahead = a.config.Limits.DownloadConcurrency
			}
			return a.runPrefetch(cmd, args[0], args[1], ahead)
		},
	}
	cmd.Flags().BoolVar(&handed, "handed-over", false, "read the settings of the wal-fetch that started it from standard input")
	return cmd
}

// runPrefetch fetches ahead until there is nothing more to do. What keeps it from that is told by the log alone: no segment is missing for it.
func (a *app) runPrefetch(cmd *cobra.Command, name, dest string, ahead int) error {
	debug.SetGCPercent(gcPercent)
	a.inBackground = true
	c, _, err := a.openCatalog(cmd.Context(), toDecrypt)
	if err == nil {
		err = archive.RunPrefetch(cmd.Context(), archive.Deps{Catalog: c, Log: a.log}, a.fetchOptions(name, dest), a.prefetch(ahead))
	}
	if err != nil {
		a.log.Info("nothing is prefetched", "action", "wal-prefetch", "seg", name, "reason", err)
	}
	return nil
}
