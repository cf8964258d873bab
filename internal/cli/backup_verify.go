package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/verify"
)

func (a *app) backupVerify() *cobra.Command {
	var o struct {
		json    bool
		sample  int
		maxTime time.Duration
		storage string
	}
	cmd := &cobra.Command{
		Use:   "backup-verify NAME|LATEST|all",
		Short: "Prove that a stored backup can be restored, without restoring it",
		Long: "Reads a backup as backup-fetch would, without writing anything: every part is fetched, decrypted and decompressed, every file\n" +
			"compared with the hash that was recorded for it, the checksums of all pages verified, and the WAL from the backup's start to its\n" +
			"end read and followed record by record. Of a delta backup the backups that it is based on are read too. With \"all\", backups are\n" +
			"taken in the order of their last proof, those first that were never proven. What was proven is remembered in the archive.",
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.load(false); err != nil {
				return err
			}
			a.setTarget(o.storage)
			if o.sample < 0 || o.maxTime < 0 {
				return usage(cmd, "cannot verify backups: a negative --sample is not a number of backups, nor a negative --max-time a time")
			}
			return a.runBackupVerify(cmd.Context(), args[0], o.sample, o.maxTime, o.json)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.json, "json", false, "as JSON")
	f.IntVar(&o.sample, "sample", 0, "with \"all\": verify this `number` of backups, those whose proof is oldest; 0 for all of them")
	f.DurationVar(&o.maxTime, "max-time", 0, "begin with no further backup after this `time`, and give up the one that is being read; 0 for no limit")
	f.StringVar(&o.storage, "target-storage", "", "name of the storage")
	return cmd
}

// examined is an entry of the JSON list.
type examined struct {
	Backup   string         `json:"backup_name"`
	Proven   bool           `json:"proven"`
	Error    string         `json:"error,omitempty"`
	Before   *time.Time     `json:"proven_before,omitempty"` // the last time, before this one
	Parts    int            `json:"parts"`
	Files    int            `json:"files"`
	Bytes    int64          `json:"bytes"`
	Hashed   bool           `json:"hashed"`
	Pages    int64          `json:"pages"`
	Segments int            `json:"segments"`
	Records  bool           `json:"records"`
	Recorded int            `json:"corrupt_when_taken"`
	Corrupt  []verify.Page  `json:"corrupt,omitempty"`
	Seconds  float64        `json:"seconds"`
	backup   catalog.Backup // what to read
	cause    error          // why it is not proven
}

func (a *app) runBackupVerify(ctx context.Context, which string, sample int, limit time.Duration, asJSON bool) error {
	debug.SetGCPercent(gcPercent)
	c, err := a.checkedCatalog(ctx, toDecrypt)
	if err != nil {
		return err
	}
	list, err := toVerify(ctx, c, which)
	if err != nil {
		return err
	}
	if sample > 0 {
		list = list[:min(sample, len(list))]
	}
	within, cancel := ctx, context.CancelFunc(func() {})
	if limit > 0 {
		within, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("--max-time has passed"))
	}
	defer cancel()
	unproven, first := 0, -1
	for i := range list {
		if within.Err() != nil {
			a.log.Warn("no time is left for the other backups", "verified", i, "left", len(list)-i)
			list = list[:i]
			break
		}
		if err := a.verifyOne(within, c, &list[i]); err != nil {
			return err
		}
		if !list[i].Proven {
			if unproven++; first < 0 {
				first = i
			}
		}
	}
	if asJSON {
		err = verifiedJSON(a.process.Stdout, list)
	} else {
		err = printVerified(a.process.Stdout, list)
	}
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	switch unproven {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("cannot prove backup %s: %w", list[first].Backup, list[first].cause)
	}
	return fmt.Errorf("cannot prove %d of %d backups, the first of them %s: %w", unproven, len(list), list[first].Backup, list[first].cause)
}

// toVerify returns the backups to read, those first whose last proof is oldest.
func toVerify(ctx context.Context, c *catalog.Catalog, which string) ([]examined, error) {
	if which != "all" {
		b, err := c.Find(ctx, which)
		if err != nil {
			return nil, err
		}
		one, err := remembered(ctx, c, b)
		return []examined{one}, err
	}
	backups, err := c.Backups(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]examined, len(backups))
	for i, b := range backups {
		if list[i], err = remembered(ctx, c, b); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(list, func(x, y examined) int { return x.when().Compare(y.when()) })
	return list, nil
}

// remembered asks the archive for the last proof of a backup.
func remembered(ctx context.Context, c *catalog.Catalog, b catalog.Backup) (examined, error) {
	v := examined{Backup: b.Name, backup: b}
	if b.Problem != nil {
		return v, nil
	}
	p, err := c.Proof(ctx, b.Name)
	if !p.Time.IsZero() {
		v.Before = &p.Time
	}
	return v, err
}

func (v *examined) when() time.Time {
	if v.Before == nil {
		return time.Time{}
	}
	return *v.Before
}

// verifyOne reads one backup. What keeps it from being proven is told and noted; the error is that of the command.
func (a *app) verifyOne(ctx context.Context, c *catalog.Catalog, v *examined) error {
	began, b := time.Now(), v.backup
	a.log.Info("verification begins", "action", "backup-verify", "backup", b.Name, "state", "begin")
	var r verify.Report
	err := b.Problem
	if err == nil {
		workers := a.workers(min(a.config.Limits.DownloadConcurrency, 2*cores()), unpackMemory)
		r, err = verify.Backup(ctx, verify.Deps{Catalog: c, Log: a.log, Progress: a.progress("backup-verify")}, b, workers)
	}
	v.Seconds = time.Since(began).Round(time.Millisecond).Seconds()
	v.Parts, v.Files, v.Bytes, v.Hashed, v.Pages = r.Parts, r.Files, r.Bytes, r.Hashed, r.Pages
	v.Segments, v.Records, v.Recorded, v.Corrupt = r.Segments, r.Records, r.Recorded, r.Corrupt
	if err == nil && r.CorruptPages > 0 {
		err = fmt.Errorf("it has %d corrupt pages that were right when it was taken, for example %s", r.CorruptPages, cmp.Or(r.Corrupt...))
	}
	if err != nil {
		v.Error, v.cause = err.Error(), err
		a.log.Error("the backup is not proven", "action", "backup-verify", "backup", b.Name, "state", "failed", "error", err)
		return nil
	}
	v.Proven = true
	a.log.Info("the backup is proven", "action", "backup-verify", "backup", b.Name, "state", "complete", "parts", r.Parts, "files", r.Files,
		"size", r.Bytes, "hashed", r.Hashed, "pages", r.Pages, "segments", r.Segments, "records", r.Records, "seconds", v.Seconds)
	return c.Prove(context.WithoutCancel(ctx), b.Name, catalog.Proof{
		Time: time.Now().UTC().Truncate(time.Second), Walden: a.process.Version, Parts: r.Parts, Files: r.Files, Bytes: r.Bytes, Hashed: r.Hashed,
		Pages: r.Pages, Segments: r.Segments, Records: r.Records,
	})
}

func printVerified(w io.Writer, list []examined) error {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(tw, "backup_name\tproven\tproven_before\tparts\tfiles\tbytes\thashed\tpages\twal_segments\tseconds\terror")
	for _, v := range list {
		fmt.Fprintf(tw, "%s\t%t\t%s\t%d\t%d\t%d\t%t\t%d\t%d\t%.3f\t%s\n", printable(v.Backup, maxCell), v.Proven, moment(v.when(), time.RFC3339),
			v.Parts, v.Files, v.Bytes, v.Hashed, v.Pages, v.Segments, v.Seconds, known(printable(v.Error, maxCell)))
	}
	return tw.Flush()
}

func verifiedJSON(w io.Writer, list []examined) error {
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return escapeJSON(w, append(b, '\n'))
}
