package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/restore"
)

// unpackMemory is what a worker of backup-fetch takes, in bytes: decompressor and write buffer.
const unpackMemory = 12 << 20

func (a *app) backupFetch() *cobra.Command {
	var o struct {
		userData, spec, storage, mask, only, walDir string
		mappings                                    []string
		reverse, skip                               bool
	}
	cmd := &cobra.Command{
		Use:   "backup-fetch DIRECTORY NAME|LATEST",
		Short: "Restore a base backup into an empty directory",
		Long: "Restores the backup NAME, or the one that was started last (LATEST), into DIRECTORY, which must be absent or empty.\n" +
			"Everything that can be checked is checked before the first byte is written. Tablespaces go where they were, unless\n" +
			"--tablespace-mapping or --restore-spec moves them; their links always belong to DIRECTORY.",
		Args: arguments(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.load(false); err != nil {
				return err
			}
			a.setTarget(o.storage)
			if o.mask != "" || o.only != "" {
				return fmt.Errorf("cannot restore parts of a backup: --mask and --restore-only are not in this version of walden")
			}
			if o.userData == "" && len(args) < 2 {
				o.userData = a.config.Restore.TargetUserData
			}
			if (o.userData != "") == (len(args) == 2) {
				return usage(cmd, "cannot choose a backup: give either its name (or LATEST) or --target-user-data")
			}
			options, err := fetchOptions(args[0], o.spec, o.walDir, o.mappings)
			if err != nil {
				return err
			}
			which := ""
			if len(args) == 2 {
				which = args[1]
			}
			return a.runBackupFetch(cmd.Context(), which, o.userData, options)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.userData, "target-user-data", "", "choose the backup by its user `JSON` instead of by name")
	f.StringVar(&o.spec, "restore-spec", "", "`file` that says where tablespaces go, in the format of WAL-G")
	f.StringArrayVarP(&o.mappings, "tablespace-mapping", "T", nil, "move a tablespace: `OLD=NEW`, as pg_basebackup spells it; may be repeated")
	f.StringVar(&o.walDir, "waldir", "", "`directory` for pg_wal outside the data directory")
	f.StringVar(&o.storage, "target-storage", "", "name of the storage")
	f.StringVar(&o.mask, "mask", "", "restore matching files only (not in this version)")
	f.StringVar(&o.only, "restore-only", "", "restore some databases or tables only (not in this version)")
	f.BoolVar(&o.reverse, "reverse-unpack", false, "accepted, without effect: there is one way of restoring")
	f.BoolVar(&o.skip, "skip-redundant-tars", false, "accepted, without effect: nothing redundant is read")
	return cmd
}

func fetchOptions(dir, specFile, walDir string, mappings []string) (restore.Options, error) {
	o := restore.Options{Dir: dir, WALDir: walDir}
	for _, text := range mappings {
		m, err := restore.ParseMapping(text)
		if err != nil {
			return o, err
		}
		o.Mappings = append(o.Mappings, m)
	}
	if specFile != "" {
		b, err := os.ReadFile(specFile)
		if err != nil {
			return o, fmt.Errorf("cannot read the restore specification: %w", err)
		}
		o.Spec = &catalog.TablespaceSpec{}
		if err := json.Unmarshal(b, o.Spec); err != nil {
			return o, fmt.Errorf("cannot use the restore specification %s: %w", specFile, err)
		}
	}
	return o, nil
}

func (a *app) runBackupFetch(ctx context.Context, which, userData string, o restore.Options) error {
	debug.SetGCPercent(gcPercent)
	c, err := a.checkedCatalog(ctx, toDecrypt)
	if err != nil {
		return err
	}
	var b catalog.Backup
	if userData != "" {
		b, err = c.FindByUserData(ctx, json.RawMessage(userData))
	} else {
		b, err = c.Find(ctx, which)
	}
	if err != nil {
		return err
	}
	if b.WAL == catalog.WALMissing {
		a.log.Warn("the backup was marked as lacking its WAL when it was taken; recovery needs that WAL from elsewhere", "backup", b.Name)
	}
	o.Workers = a.workers(min(a.config.Limits.DownloadConcurrency, 2*cores()), unpackMemory)
	o.Disk, o.Cached = a.limiters().disk, !a.config.Limits.DirectIO
	release := a.followRates(ctx, a)
	report, err := restore.Fetch(ctx, restore.Deps{Catalog: c, Log: a.log, Progress: a.progress("backup-fetch")}, b, o)
	release()
	if err != nil {
		return err
	}
	a.nextSteps(report)
	return nil
}

// nextSteps tells the operator what to type next.
func (a *app) nextSteps(r restore.Report) {
	command := a.process.Program
	if a.file != "" {
		command += " --config " + a.file
	}
	var s strings.Builder
	fmt.Fprintf(&s, "\nRestored %s into %s: %d files, %d MiB.\n", r.Backup.Name, r.Dir, r.Files, r.Bytes>>20)
	for _, sp := range r.Spaces {
		fmt.Fprintf(&s, "Tablespace %d is in %s", sp.OID, printable(sp.Location, maxCell))
		if sp.Location != sp.Recorded {
			fmt.Fprintf(&s, " (was %s)", printable(sp.Recorded, maxCell))
		}
		s.WriteString(".\n")
	}
	if r.WALLink != "" && r.WALDir == "" {
		fmt.Fprintf(&s, "pg_wal was a link to %s when the backup was taken; here it is an ordinary directory (--waldir places it elsewhere).\n", printable(r.WALLink, maxCell))
	}
	if r.Backup.WALE != nil {
		s.WriteString("WAL-E left out postgresql.conf, pg_hba.conf and pg_ident.conf: where they lived in the data directory, put them there.\n")
	}
	settingsFile, signal := r.Dir+"/postgresql.auto.conf", r.Dir+"/recovery.signal"
	if v := r.Backup.PgVersion; v != 0 && v < 120000 {
		settingsFile, signal = r.Dir+"/recovery.conf", ""
	}
	fmt.Fprintf(&s, "Next, as the user that runs PostgreSQL:\n  1. tell it where WAL comes from, in %s:\n       restore_command = '%s wal-fetch \"%%f\" \"%%p\"'\n", settingsFile, command)
	s.WriteString("     to stop before the end of the archived WAL, add recovery_target_time = '…' and recovery_target_action = 'promote'\n")
	if signal != "" {
		fmt.Fprintf(&s, "  2. ask for recovery:  touch %s\n     (for a standby instead:  touch %s/standby.signal)\n", signal, r.Dir)
	}
	fmt.Fprintf(&s, "  3. start it:  pg_ctl -D %s start\n", r.Dir)
	s.WriteString("The server needs the same storage settings as this command, in its environment or by --config.\n")
	s.WriteString("If this is a copy for a test, set archive_mode = off first: once promoted it would archive its new timeline beside the original's.\n")
	fmt.Fprint(a.screen, s.String())
}
