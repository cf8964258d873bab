package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/catalog"
)

func (a *app) archiveWindow() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "window",
		Short: "Show to which moments the cluster can be recovered",
		Long: "For each timeline (recovery_target_timeline): from when to when recovery leads, and what is left out because WAL is missing. A window begins\n" +
			"when its first backup was complete and ends with the last segment behind it that is archived without a gap; its time is when that segment\n" +
			"was archived, so the last transaction in it is a little older. What the server has not archived yet is not in it.",
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.load(false); err != nil {
				return err
			}
			_, inv, err := a.lookAtAll(cmd.Context(), toLook)
			if err != nil {
				return err
			}
			coverage := inv.Coverage()
			shown := windowsOf(&inv, coverage)
			if asJSON {
				return printJSON(a.process.Stdout, shown)
			}
			a.printWindowsOf(&inv, coverage, shown)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func windowsOf(inv *catalog.Inventory, coverage *catalog.Coverage) []shownWindow {
	shown := []shownWindow{}
	for _, timeline := range coverage.Timelines() {
		shown = append(shown, shownWindowsOf(timeline, coverage.Windows(timeline), inv.SegmentSize)...)
	}
	return shown
}

func (a *app) printWindowsOf(inv *catalog.Inventory, coverage *catalog.Coverage, shown []shownWindow) {
	out := a.process.Stdout
	for i, w := range shown {
		at := func(t time.Time, lsn string) string { return fmt.Sprintf("%s (%s)", moment(t, time.RFC3339), lsn) }
		if i > 0 && shown[i-1].Timeline == w.Timeline {
			fmt.Fprintf(out, "timeline %d: not from %s to %s: WAL is missing behind %s\n", w.Timeline,
				at(shown[i-1].ToTime, shown[i-1].ToLSN), at(w.FromTime, w.FromLSN), shown[i-1].LastSegment)
		}
		fmt.Fprintf(out, "timeline %d: from %s, with backup %s, to %s\n", w.Timeline, at(w.FromTime, w.FromLSN), w.BackupName, at(w.ToTime, w.ToLSN))
	}
	for _, b := range inv.Backups {
		if err := coverage.Unrestorable(b); err != nil {
			a.log.Warn("the backup cannot be restored", "backup", b.Name, "reason", err)
		}
	}
	if len(shown) == 0 {
		fmt.Fprintln(a.screen, "There is no moment to which the cluster can be recovered")
	}
}
