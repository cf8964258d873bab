package cli

import (
	"context"
	"errors"
	"runtime/debug"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/archive"
	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/hint"
)

// maxBlocksAtOnce bounds how many processors wal-push takes to compress a segment, which has four blocks by default.
const maxBlocksAtOnce = 4

// walMemory bounds the memory of the commands that run for every segment, in bytes; see shortLived.
const walMemory = 192 << 20

// shortLived prepares a process that lives for some tens of milliseconds and uses a few buffers: collecting garbage would
// take a fifth of that time. Should it need more memory than expected, it is collected all the same.
func shortLived() {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(walMemory)
}

// endBySignal keeps wal-fetch from ending with exit code 2 where it panics or runs out of memory, as any Go program does:
// PostgreSQL takes that code for absence.
func endBySignal() { debug.SetTraceback("crash") }

func (a *app) walPush() *cobra.Command {
	var target string
	cmd := &cobra.Command{
		Use:   "wal-push PATH",
		Short: "Archive one WAL file (archive_command)",
		Long: "Archives one file under its own name:\n\n    archive_command = 'walden wal-push %p'\n\n" +
			"It succeeds when the storage has confirmed the file, or holds it already with the same content. It never overwrites.",
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			shortLived()
			if err := a.load(true); err != nil {
				return err
			}
			a.setTarget(target)
			a.blocksAtOnce = min(cores(), maxBlocksAtOnce)
			c, _, err := a.openCatalog(cmd.Context(), toEncrypt)
			if err != nil {
				return err
			}
			return archive.Push(cmd.Context(), archive.Deps{Catalog: c, Log: a.log},
				archive.PushOptions{Path: args[0], Timeout: a.config.WAL.Timeout, Blocks: a.config.Backup.UseWALDelta})
		},
	}
	cmd.Flags().StringVar(&target, "target-storage", "", "name of the storage")
	return cmd
}

func (a *app) walFetch() *cobra.Command {
	var target string
	cmd := &cobra.Command{
		Use:   "wal-fetch NAME DESTINATION",
		Short: "Fetch one WAL file from the archive (restore_command)",
		Long: "Fetches one file, complete and checked, or not at all:\n\n    restore_command = 'walden wal-fetch \"%f\" \"%p\"'\n\n" +
			"Exit codes: 0 fetched; 74 the archive does not hold the file; 200 it could not be found out, or the file is damaged or missing\n" +
			"before others, while PostgreSQL is in archive recovery, which makes the server stop instead of coming up on old data;\n" +
			"1 any other error.",
		Args: func(cmd *cobra.Command, args []string) error {
			return notAbsent(arguments(2, 2)(cmd, args), ".")
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			endBySignal()
			shortLived()
			err := a.runWALFetch(cmd, args[0], args[1], target)
			if errors.Is(err, archive.ErrAbsent) {
				a.log.Info("not in the archive", "action", "wal-fetch", "seg", args[0], "state", "absent")
				return &exit{errSilent, exitAbsent}
			}
			return notAbsent(err, args[1])
		},
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return notAbsent(usage(cmd, "cannot run %s: %w", cmd.Name(), err), ".")
	})
	cmd.Flags().StringVar(&target, "target-storage", "", "name of the storage")
	return cmd
}

// notAbsent keeps PostgreSQL from taking a failure, wrong usage included, for the end of the archive.
func notAbsent(err error, dest string) error {
	if err == nil || archive.RecoveryState(dest) != archive.ArchiveRecovery {
		return err
	}
	return &exit{hint.With(err, "PostgreSQL is in archive recovery and stops now (exit code 200) instead of ending recovery early; "+
		"mend the cause and start it again"), exitStopRecovery}
}

func (a *app) runWALFetch(cmd *cobra.Command, name, dest, target string) error {
	if err := a.load(true); err != nil {
		return err
	}
	a.setTarget(target)
	return a.fetchWAL(cmd.Context(), name, dest, a.config.Limits.DownloadConcurrency)
}

// fetchWAL fetches a file for PostgreSQL, and has up to ahead segments fetched before it asks for them.
func (a *app) fetchWAL(ctx context.Context, name, dest string, ahead int) error {
	o := archive.FetcherOptions{
		Prefetch: a.prefetch(ahead),
		Open: func(ctx context.Context) (*catalog.Catalog, error) {
			c, _, err := a.openCatalog(ctx, toDecrypt)
			return c, err
		},
		Start: func(name, dest string) error { return a.startPrefetch(name, dest, ahead) },
	}
	f := archive.NewFetcher(archive.Deps{Log: a.log}, o)
	return errors.Join(f.Fetch(ctx, a.fetchOptions(name, dest)), f.Close())
}

func (a *app) fetchOptions(name, dest string) archive.FetchOptions {
	return archive.FetchOptions{Name: name, Dest: dest, Timeout: a.config.WAL.Timeout, EndBefore: a.config.WAL.EndRecoveryBefore}
}
