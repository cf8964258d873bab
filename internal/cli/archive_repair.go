package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/archive"
	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// The JSON of a repair. The names of the keys are an interface.
type (
	shownRepair struct {
		DryRun    bool           `json:"dry_run"`
		Directory string         `json:"directory"`
		Missing   []shownMissing `json:"missing"`
		Gaps      []shownGap     `json:"gaps"`
		Windows   []shownWindow  `json:"recovery_windows"`
		NoBackup  []uint32       `json:"timelines_without_backup"`
	}
	shownMissing struct {
		Timeline uint32 `json:"timeline"`
		First    string `json:"first"`
		Last     string `json:"last"`
		Count    uint64 `json:"count"`
		State    string `json:"state"`
		Reason   string `json:"reason,omitempty"`
	}
	shownGap struct {
		Timeline     uint32     `json:"timeline"`
		First        string     `json:"first"`
		Last         string     `json:"last"`
		Count        uint64     `json:"count"`
		EndLSN       string     `json:"recovery_ends_at_lsn"`
		EndTime      *time.Time `json:"recovery_ends_at_time"`
		Stopped      []string   `json:"backups_that_end_there"`
		Broken       []string   `json:"backups_that_cannot_be_restored"`
		Healed       string     `json:"goes_on_with_backup,omitempty"`
		BackupNeeded bool       `json:"new_backup_needed"`
	}
)

func (a *app) archiveRepair() *cobra.Command {
	var confirm, asJSON bool
	cmd := &cobra.Command{
		Use:   "repair [DIRECTORY]",
		Short: "Archive WAL that is missing in the archive and that the server still has",
		Long: "Looks for the WAL that recovery from the backups reads and the archive does not hold, in DIRECTORY: the server's data directory, its\n" +
			"pg_wal or a copy of one (default: the setting PGDATA). It shows what it found, what is lost, where recovery ends for that, and whether\n" +
			"a new backup is needed. With --confirm the files that were found are archived, as wal-push does it: nothing is overwritten, and nothing\n" +
			"but what the name says: a file must be of the archive's cluster, finished by the server and complete, record by record.\n" +
			"The server may run or not. Exit codes: 0 nothing is missing; 5 something is missing when the command ends.",
		Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.load(false); err != nil {
				return err
			}
			o := archive.RepairOptions{Dir: a.config.Postgres.DataDir, Timeout: a.config.WAL.Timeout, Blocks: a.config.Backup.UseWALDelta}
			if len(args) == 1 {
				o.Dir = args[0]
			}
			if o.Dir == "" {
				return usage(cmd, "cannot run repair: it needs the directory to look in, or the setting PGDATA")
			}
			needed := toLook
			if confirm {
				needed = toEncrypt
			}
			c, inv, err := a.lookAtAll(cmd.Context(), needed)
			if err != nil {
				return err
			}
			o.AtOnce = a.workers(a.config.Limits.UploadConcurrency, c.PutMemory())
			d := archive.Deps{Catalog: c, Log: a.log}
			r, err := archive.PlanRepair(d, &inv, o)
			if err != nil {
				return err
			}
			found := r.Found()
			if confirm && found > 0 {
				err = r.Apply(cmd.Context(), d)
			}
			if perr := a.printRepair(r, !confirm, asJSON); perr != nil {
				return perr
			}
			switch {
			case err != nil:
				return fmt.Errorf("cannot archive all that was found; the same command again archives the rest: %w", err)
			case found > 0 && !confirm:
				a.log.Info("Dry run: files would be archived", "count", found, "hint", "run with --confirm to archive them")
			}
			if r.Lost() || r.Found() > 0 {
				return &exit{errSilent, exitVerifyFailed}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&confirm, "confirm", false, "archive what was found, instead of saying what would be archived")
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func (a *app) printRepair(r *archive.Repair, dry, asJSON bool) error {
	if asJSON {
		return printJSON(a.process.Stdout, repairOf(r, dry))
	}
	out := a.process.Stdout
	for _, f := range r.Files {
		what := f.First
		if f.Count > 1 {
			what = fmt.Sprintf("%s to %s (%d segments)", f.First, f.Last, f.Count)
		}
		switch f.State {
		case archive.FileLost:
			fmt.Fprintf(out, "lost      %s: %s\n", what, printable(f.Reason, maxCell))
		default:
			fmt.Fprintf(out, "%-9s %s\n", f.State, what)
		}
	}
	s := repairOf(r, dry)
	for _, g := range s.Gaps {
		fmt.Fprintf(out, "timeline %d: recovery ends at %s (%s), %s\n", g.Timeline, g.EndLSN, momentOf(g.EndTime), missingText(g))
		if len(g.Stopped) > 0 {
			fmt.Fprintf(out, "  with %s\n", printable(strings.Join(g.Stopped, ", "), maxCell))
		}
		if len(g.Broken) > 0 {
			fmt.Fprintf(out, "  not to be restored: %s\n", printable(strings.Join(g.Broken, ", "), maxCell))
		}
		if g.BackupNeeded {
			fmt.Fprintf(out, "  TAKE A NEW BACKUP: none begins behind the gap\n")
		} else {
			fmt.Fprintf(out, "  it goes on with %s\n", printable(g.Healed, maxCell))
		}
	}
	for _, timeline := range s.NoBackup {
		fmt.Fprintf(out, "timeline %d: there is no backup with which recovery could begin\n", timeline)
	}
	if len(r.Files) == 0 {
		fmt.Fprintln(a.screen, "Nothing is missing")
	}
	return nil
}

func momentOf(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return moment(*t, time.RFC3339)
}

func missingText(g shownGap) string {
	if g.Count == 1 {
		return g.First + " is missing"
	}
	return fmt.Sprintf("%s to %s are missing (%d segments)", g.First, g.Last, g.Count)
}

func repairOf(r *archive.Repair, dry bool) shownRepair {
	s := shownRepair{DryRun: dry, Directory: r.Dir, Missing: []shownMissing{}, Gaps: []shownGap{}, Windows: []shownWindow{}, NoBackup: []uint32{}}
	for _, f := range r.Files {
		s.Missing = append(s.Missing, shownMissing{uint32(f.Timeline), f.First, f.Last, f.Count, string(f.State), f.Reason})
	}
	for _, g := range r.Gaps {
		first, last := r.Names(g)
		shown := shownGap{
			Timeline: uint32(g.Timeline), First: first, Last: last, Count: g.Last() - g.First() + 1, EndLSN: g.End.String(),
			Stopped: append([]string{}, g.Stopped...), Broken: append([]string{}, g.Broken...), Healed: g.Healed, BackupNeeded: g.Healed == "",
		}
		if !g.EndTime.IsZero() {
			at := g.EndTime.UTC()
			shown.EndTime = &at
		}
		s.Gaps = append(s.Gaps, shown)
	}
	for _, timeline := range r.Timelines() {
		if !r.Backups(timeline) {
			s.NoBackup = append(s.NoBackup, uint32(timeline))
		}
		s.Windows = append(s.Windows, shownWindowsOf(timeline, r.Windows(timeline), r.SegmentSize())...)
	}
	return s
}

// shownWindowsOf is how the windows of a timeline are shown, with the names of segments of the size given.
func shownWindowsOf(timeline wal.Timeline, windows []catalog.Window, size int64) []shownWindow {
	var shown []shownWindow
	for _, w := range windows {
		shown = append(shown, shownWindowOf(timeline, w, w.Last.Name(size)))
	}
	return shown
}
