package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/backup"
	"gitlab.com/walden-pg/walden/internal/config"
	"gitlab.com/walden-pg/walden/internal/hint"
)

// copyMemory is what a worker of backup-push takes besides storing its part, in bytes: read buffer, tar, the storage's buffer.
const copyMemory = 3 << 20

func (a *app) backupPush() *cobra.Command {
	var o struct {
		permanent, verify, allCorrupt, full, rating, copyTars, database, noFiles bool
		userData, deltaName, deltaUserData, storage                              string
	}
	cmd := &cobra.Command{
		Use:   "backup-push [PGDATA]",
		Short: "Take a base backup of the running cluster",
		Long: "Takes a backup of the running cluster whose data directory is PGDATA (default: the setting PGDATA, else what the\n" +
			"server says), from a primary or a standby, and waits until the WAL that it needs is in the archive.\n\n" +
			"With WALG_DELTA_MAX_STEPS above 0 it takes a delta against the newest backup: of each relation only the pages that changed\n" +
			"since. Where a delta would be unsafe it takes a full backup, and the log says why.\n\n" +
			"Exit codes: 0 success; 1 error, no backup was taken; 3 the backup was taken, but pages of the cluster are corrupt;\n" +
			"4 the backup was taken, but its WAL did not reach the archive in time.",
		Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.load(false); err != nil {
				return err
			}
			a.setTarget(o.storage)
			options := backup.Options{
				DataDir:   a.config.Postgres.DataDir,
				Permanent: o.permanent, StoreAllCorrupt: o.allCorrupt || a.config.Backup.StoreAllCorrupt, Verify: a.config.Backup.VerifyPages,
				NoRelations: a.config.Backup.NoRelations,
			}
			if o.deltaName != "" && o.deltaUserData != "" {
				return usage(cmd, "--delta-from-name and --delta-from-user-data are given, and only one can name the base")
			}
			if !o.full {
				var err error
				if options.Delta, err = deltaOptions(a.config.Backup, o.deltaName, o.deltaUserData); err != nil {
					return usage(cmd, "%w", err)
				}
			}
			if len(args) == 1 {
				options.DataDir = args[0]
			}
			if cmd.Flags().Changed("verify") {
				options.Verify = o.verify
			}
			userData := a.config.Backup.UserData
			if o.userData != "" {
				userData = o.userData
			}
			if userData != "" {
				if !json.Valid([]byte(userData)) {
					return usage(cmd, "cannot store the user data %s: not valid JSON (a string needs its quotes)", userData)
				}
				options.UserData = json.RawMessage(userData)
			}
			return a.runBackupPush(cmd.Context(), options, o.verify)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.permanent, "permanent", "p", false, "never removed by retention")
	f.BoolVarP(&o.verify, "verify", "v", false, "check page checksums (done anyway where the cluster has them; --verify=false leaves it out)")
	f.BoolVarP(&o.allCorrupt, "store-all-corrupt", "s", false, "name all corrupt blocks in the metadata, not just the first ten of a file")
	f.StringVar(&o.userData, "add-user-data", "", "`JSON` to store with the backup")
	f.BoolVarP(&o.full, "full", "f", false, "take a full backup, whatever WALG_DELTA_MAX_STEPS is")
	f.StringVar(&o.deltaName, "delta-from-name", "", "take a delta against the backup of this `NAME`")
	f.StringVar(&o.deltaUserData, "delta-from-user-data", "", "take a delta against the backup with this `JSON`")
	f.StringVar(&o.storage, "target-storage", "", "name of the storage")
	// Ways of packing that WAL-G offers. walden spreads files evenly by itself, and restores do not depend on it.
	f.BoolVarP(&o.rating, "rating-composer", "r", false, "accepted, without effect")
	f.BoolVarP(&o.copyTars, "copy-composer", "c", false, "accepted, without effect")
	f.BoolVarP(&o.database, "database-composer", "b", false, "accepted, without effect")
	f.BoolVar(&o.noFiles, "without-files-metadata", false, "accepted, without effect")
	return cmd
}

// deltaOptions are the settings, of which the base can be named by a flag.
func deltaOptions(c config.Backup, name, userData string) (backup.DeltaOptions, error) {
	if name == "" && userData == "" {
		name, userData = c.DeltaFromName, c.DeltaFromUserData
	}
	o := backup.DeltaOptions{MaxSteps: c.DeltaMaxSteps, FromFull: c.DeltaOrigin == "LATEST_FULL", Name: name, UseWAL: c.UseWALDelta, ForceWAL: c.ForceWALDelta}
	if userData != "" {
		if !json.Valid([]byte(userData)) {
			return o, fmt.Errorf("cannot find the base by the user data %s: not valid JSON (a string needs its quotes)", userData)
		}
		o.UserData = json.RawMessage(userData)
	}
	return o, nil
}

// setTarget takes --target-storage into the settings.
func (a *app) setTarget(name string) {
	if name != "" {
		a.config.Storage.Target = name
	}
}

func (a *app) runBackupPush(ctx context.Context, o backup.Options, verifyAsked bool) error {
	debug.SetGCPercent(gcPercent)
	c, method, err := a.openCatalog(ctx, toEncrypt)
	if err != nil {
		return err
	}
	if err := c.Check(ctx); err != nil {
		return err
	}
	server, err := a.connect(ctx)
	if err != nil {
		return err
	}
	info := server.Info()
	if verifyAsked && !info.DataChecksums {
		a.log.Warn("page checksums cannot be verified: the cluster has none")
	}
	o.Verify = o.Verify && info.DataChecksums
	o.Workers = a.workers(a.config.Backup.DiskConcurrency, c.PutMemory()+copyMemory)
	if a.config.Storage.Kind == config.KindS3 { // the parts of uploads draw on the same budget
		o.Workers = a.workers(a.config.Backup.DiskConcurrency, 2*a.config.S3.PartSize)
	}
	o.BlocksAtOnce = cores()
	// Elsewhere the other processors hash and encrypt what is sent, and the memory is taken by what is on its way.
	if more := c.AtOnce(o.BlocksAtOnce).PutMemory() - c.PutMemory(); more > 0 && a.config.Storage.Kind == config.KindFile {
		o.WideParts = int(max(1, (a.config.Limits.Memory-int64(o.Workers)*(c.PutMemory()+copyMemory))/more))
	}
	o.PartSize = a.config.Backup.PartSize
	o.Disk = a.limiters().disk
	o.SlowDown = backup.SlowDown{ArchiveBacklog: a.config.Backup.ArchiveBacklog, ReplicationLag: a.config.Backup.ReplicationLag}
	o.ArchiveWait = a.config.Backup.ArchiveWaitTimeout
	o.Hostname, o.Version = hostname(), a.process.Version
	o.Compression, o.Encryption = method.Name(), a.cipher.Name()

	release := a.followRates(ctx, a)
	out, err := backup.Push(ctx, backup.Deps{Catalog: c, Server: server, Log: a.log, Progress: a.progress("backup-push"), OpenSession: a.session}, o)
	release()
	if err == nil {
		a.tidy(ctx)
	}
	switch {
	case err != nil:
		return err
	case len(out.CorruptFiles) > 0:
		corrupt := hint.With(fmt.Errorf("backup %s was taken, but %d pages of the cluster are corrupt, in %s", out.Backup.Name, out.Backup.CorruptBlocks, some(out.CorruptFiles)),
			"keep an older backup that has no corrupt pages, and look at the disks and at pg_amcheck")
		return &exit{errors.Join(corrupt, out.Overdue), exitCorruptPages}
	case out.Overdue != nil:
		return &exit{fmt.Errorf("backup %s was taken, but %w", out.Backup.Name, out.Overdue), exitWALOverdue}
	}
	return nil
}

// some names the first few of many.
func some(names []string) string {
	const few = 5
	if len(names) > few {
		return fmt.Sprintf("%s and %d other files", strings.Join(names[:few], ", "), len(names)-few)
	}
	return strings.Join(names, ", ")
}
