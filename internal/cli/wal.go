package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/archive"
	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/codec"
	"gitlab.com/walden-pg/walden/internal/config"
	"gitlab.com/walden-pg/walden/internal/hint"
)

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
			"It succeeds when the storage has confirmed the file, or holds it already with the same content. It never overwrites.\n" +
			"Segments that wait behind it are archived along with it, as far as TOTAL_BG_UPLOADED_LIMIT and WALG_UPLOAD_CONCURRENCY allow.",
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			shortLived()
			if err := a.load(true); err != nil {
				return err
			}
			a.setTarget(target)
			o := a.pusherOptions()
			if archive.ArchivedAhead(a.log, args[0], o) {
				return nil
			}
			o.GoOn = pushGoOn
			p, err := a.openPusher(cmd.Context(), cmd.Context(), o)
			if err != nil {
				return err
			}
			defer p.Close()
			return p.Push(cmd.Context(), args[0])
		},
	}
	cmd.Flags().StringVar(&target, "target-storage", "", "name of the storage")
	return cmd
}

// pushGoOn is how long a call goes on with segments that wait although its own is archived: long enough that what each call costs, the connection to the
// storage above all, hardly counts, and short beside what PostgreSQL waits for anyway.
const pushGoOn = time.Second

// segmentMemory is what a store buffers of a segment, in bytes: all of it, of the usual size, where an upload needs to know its length.
const segmentMemory = 16 << 20

// openPusher opens the archive for a Pusher, all of whose files together take no more memory than there is for WAL. What it archives ahead ends with life.
func (a *app) openPusher(ctx, life context.Context, o archive.PusherOptions) (*archive.Pusher, error) {
	ahead, method, err := a.openCatalog(ctx, toEncrypt)
	if err != nil {
		return nil, err
	}
	c := forOneSegment(ahead, method)
	o.Ahead = ahead
	most := a.config.Limits.UploadConcurrency - 1 // one is what PostgreSQL waits for
	first, each := c.PutMemory(), o.Ahead.PutMemory()
	switch a.config.Storage.Kind {
	case config.KindFile: // more would only take the processors from each other
		if most = min(most, cores()); !o.Resident {
			most = min(most, max(1, cores()-1))
		}
	default:
		first += segmentMemory
		each += segmentMemory
	}
	memory := min(walMemory, a.config.Limits.Memory*3/2)
	o.AtOnce = min(most, int(max(1, (memory-first)/each)))
	return archive.NewPusher(life, archive.Deps{Catalog: c, Log: a.log}, o), nil
}

// forOneSegment is the archive for a segment that somebody waits for: lz4 compresses it on several processors. To set up several of zstd's encoders takes
// as long as they save on so little.
func forOneSegment(c *catalog.Catalog, method codec.Codec) *catalog.Catalog {
	if method.Name() == "lz4" {
		return c.AtOnce(cores())
	}
	return c
}

// pusherOptions say how WAL is archived.
func (a *app) pusherOptions() archive.PusherOptions {
	return archive.PusherOptions{
		Timeout: a.config.WAL.Timeout, Blocks: a.config.Backup.UseWALDelta,
		Files: a.config.WAL.PushedAtMost - 1, Archive: a.archiveID(), Spool: a.config.WAL.PrefetchDir,
	}
}

// archiveID tells archives apart that may have one name: on several endpoints, or on a disk that is mounted in the other's place.
func (a *app) archiveID() string {
	cfg := a.config
	parts := []string{
		string(cfg.Storage.Kind), cfg.Storage.Bucket, cfg.Storage.Path, cfg.Storage.Folder, cfg.Storage.Target,
		cfg.S3.Endpoint, cfg.S3.Region, cfg.S3.DefaultRegion, cfg.GCS.Emulator,
	}
	if cfg.Storage.Kind == config.KindFile {
		var st unix.Stat_t
		if err := unix.Stat(cfg.Storage.Path, &st); err != nil {
			return "" // see PusherOptions.Archive
		}
		parts = append(parts, strconv.FormatUint(st.Dev, 10), strconv.FormatUint(st.Ino, 10))
	}
	hash := sha256.Sum256([]byte(strings.Join(parts, "\n")))
	return hex.EncodeToString(hash[:16])
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
