package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/config"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/transfer"
)

// primaryStorage is the name of the storage that a prefix names.
const primaryStorage = "default"

func (a *app) copy() *cobra.Command {
	var o transfer.CopyOptions
	var from, to string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "copy --from FILE --to FILE",
		Short: "Copy backups and their WAL into another archive, as they are stored",
		Long: "Copies byte for byte from the archive that one configuration file names to that of another; no key is needed. Each backup comes with\n" +
			"all that it is based on, and with the WAL from its start to its end; with --with-history all WAL follows that was archived since.\n" +
			"Before anything is written the source is checked for what a restore would lack. What is copied is compared with the hashes that were\n" +
			"recorded when it was written. A copy that was cut off is completed by the same command; run again later, it adds what is new.\n\n" +
			"All settings of the two archives come from the two files, none from the environment.",
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			debug.SetGCPercent(gcPercent)
			source, target, err := a.twoConfigurations(cmd, from, to)
			if err != nil {
				return err
			}
			d, err := a.ends(cmd.Context(), "copy", source, target, toCarry, toCarry)
			if err != nil {
				return err
			}
			release := a.followRates(cmd.Context(), source, target)
			report, err := transfer.Copy(cmd.Context(), d, o)
			release()
			if err != nil {
				return err
			}
			a.reportTransfer("copied", report)
			if asJSON {
				return printTransfer(a.process.Stdout, report)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&from, "from", "f", "", "configuration `FILE` of the archive that is copied")
	f.StringVarP(&to, "to", "t", "", "configuration `FILE` of the archive that the copy goes to")
	f.StringVarP(&o.Backup, "backup-name", "b", "", "copy the backup `NAME`, or LATEST, with all that it is based on (default: all backups)")
	f.BoolVarP(&o.Onward, "with-history", "w", false, "copy all WAL since the first of the backups")
	f.BoolVar(&o.Checksum, "checksum", false, "compare what is there already by content, and not by size where no hash is recorded")
	f.BoolVar(&asJSON, "json", false, "what was done as JSON")
	return cmd
}

// twoConfigurations reads the configuration files of two archives, and refuses those of the same place. What is logged, and where, is
// as it is for every command; any other setting that is given to this one would seem to change what it does not.
func (a *app) twoConfigurations(cmd *cobra.Command, from, to string) (source, target *app, err error) {
	if from == "" || to == "" {
		return nil, nil, usage(cmd, "cannot run %s: both --from and --to are needed", cmd.Name())
	}
	for _, name := range slices.Sorted(maps.Keys(a.flags)) {
		if !aboutLog(name) {
			return nil, nil, usage(cmd, "cannot use a flag for %s: the settings of %s stand in the two configuration files", name, cmd.CommandPath())
		}
	}
	environ := slices.DeleteFunc(slices.Clone(a.process.Environ), func(v string) bool { return !aboutLog(v) })
	var ends [2]config.Config
	if a.config, err = config.Load(config.Input{Flags: a.flags, Environ: environ, File: a.file}); err != nil {
		return nil, nil, fmt.Errorf("cannot use the settings: %w", err)
	}
	secrets := a.config.Secrets()
	for i, file := range []string{from, to} {
		ends[i], err = config.Load(config.Input{File: file})
		secrets = slices.Concat(secrets, ends[i].Secrets())
		a.screen.hide(newMask(secrets))
		if err != nil {
			return nil, nil, fmt.Errorf("cannot use the settings of %s: %w", file, err)
		}
	}
	if samePlace(ends[0], ends[1]) {
		return nil, nil, hint.With(fmt.Errorf("cannot copy: %s and %s name the same place", from, to), "a copy goes to another one")
	}
	if err := a.openLog(); err != nil {
		return nil, nil, err
	}
	return a.with(ends[0]), a.with(ends[1]), nil
}

// aboutLog tells whether a setting, or a variable with its value, is about the log.
func aboutLog(name string) bool {
	return strings.HasPrefix(name, "WALG_LOG_") || strings.HasPrefix(name, "WALDEN_LOG_") || strings.HasPrefix(name, "WALE_LOG_")
}

// with is this run of the program with other settings. What is logged goes where this one's goes.
func (a *app) with(c config.Config) *app {
	if a.turbo {
		c.Limits.DiskRate, c.Limits.NetworkRate = 0, 0
	}
	for _, w := range c.Warnings() {
		a.log.Warn(w, "file", c.File)
	}
	end := &app{process: a.process, as: a.as, screen: a.screen, log: a.log, seams: a.seams, turbo: a.turbo, config: c}
	if c.File != "" {
		end.reload = func() (config.Config, error) { return config.Load(config.Input{File: c.File}) }
	}
	return end
}

// samePlace tells whether two configurations name the same archive.
func samePlace(a, b config.Config) bool {
	if a.Storage.Kind != b.Storage.Kind || a.Storage.Bucket != b.Storage.Bucket || a.S3.Endpoint != b.S3.Endpoint || a.GCS.Emulator != b.GCS.Emulator {
		return false
	}
	pathOf := func(c config.Config) string {
		return strings.Trim(strings.Trim(c.Storage.Path, "/")+"/"+c.Storage.Folder, "/")
	}
	if pathOf(a) == pathOf(b) {
		return true
	}
	if a.Storage.Kind != config.KindFile {
		return false
	}
	one, oneErr := os.Stat("/" + pathOf(a)) // links, and file systems that are mounted twice
	two, twoErr := os.Stat("/" + pathOf(b))
	return oneErr == nil && twoErr == nil && os.SameFile(one, two)
}

// end opens one end of a transfer.
func (a *app) end(ctx context.Context, needed use) (transfer.End, error) {
	r, _, err := a.openRepo(ctx, needed)
	if err != nil {
		return transfer.End{}, err
	}
	return transfer.End{Repo: r, Catalog: catalog.New(r, a.log)}, r.Check(ctx)
}

// ends opens both.
func (a *app) ends(ctx context.Context, action string, source, target *app, atSource, atTarget use) (transfer.Deps, error) {
	d := transfer.Deps{Log: a.log, Progress: a.progress(action)}
	var err error
	if d.From, err = source.end(ctx, atSource); err != nil {
		return d, err
	}
	if d.To, err = target.end(ctx, atTarget); err != nil {
		return d, err
	}
	wanted := min(source.config.Limits.DownloadConcurrency, target.config.Limits.UploadConcurrency)
	d.Workers = target.workers(wanted, d.To.Repo.PutMemory())
	return d, nil
}

func (a *app) reportTransfer(done string, r transfer.Report) {
	a.log.Info(done, "backups", len(r.Backups), "objects", r.Copied.Objects, "bytes", r.Copied.Bytes, "there_already", r.Kept.Objects,
		"removed", r.Removed.Objects, "state", "complete")
}

// transferred is what was done, as JSON. The names of the keys are an interface.
type transferred struct {
	Backups        []string `json:"backups"`
	CopiedObjects  int      `json:"copied_objects"`
	CopiedBytes    int64    `json:"copied_bytes"`
	KeptObjects    int      `json:"kept_objects"`
	KeptBytes      int64    `json:"kept_bytes"`
	RemovedObjects int      `json:"removed_objects"`
	RemovedBytes   int64    `json:"removed_bytes"`
}

func printTransfer(out io.Writer, r transfer.Report) error {
	return printJSON(out, transferred{
		append([]string{}, r.Backups...), r.Copied.Objects, r.Copied.Bytes, r.Kept.Objects, r.Kept.Bytes, r.Removed.Objects, r.Removed.Bytes,
	})
}
