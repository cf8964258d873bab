package cli

import (
	"bytes"
	"encoding/json"
	"strconv"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// shownBranch is a timeline in JSON; the names of the keys and their order are an interface (WAL-G format, "wal-show").
type shownBranch struct {
	ID       wal.Timeline `json:"id"`
	ParentID wal.Timeline `json:"parent_id"`
	Switch   wal.LSN      `json:"switch_point_lsn"`
	Start    string       `json:"start_segment"`
	End      string       `json:"end_segment"`
	Count    uint64       `json:"segments_count"`
	Missing  []string     `json:"missing_segments"`
	Backups  []listed     `json:"backups,omitempty"`
	Range    uint64       `json:"segment_range_size"`
	Status   string       `json:"status"`
}

func (a *app) walShow() *cobra.Command {
	var asJSON, withoutBackups bool
	cmd := &cobra.Command{
		Use:   "wal-show",
		Short: "Show the timelines of the archived WAL, and what is missing",
		Long: "One line for each timeline of which segments are archived: where it comes from, its first and last segment, and LOST_SEGMENTS where one\n" +
			"between them is missing. `walden archive window` tells what that means for recovery.",
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.load(false); err != nil {
				return err
			}
			_, inv, err := a.lookAtAll(cmd.Context(), toLook)
			if err != nil {
				return err
			}
			branches, err := inv.Coverage().Branches()
			if err != nil {
				return err
			}
			if asJSON {
				return a.showWALAsJSON(branches, !withoutBackups)
			}
			return a.showWAL(branches, !withoutBackups)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "detailed-json", false, "as JSON, with the names of missing segments and the backups")
	cmd.Flags().BoolVar(&withoutBackups, "without-backups", false, "do not count backups")
	return cmd
}

func branchStatus(b catalog.Branch) string {
	if b.Count < b.Range {
		return "LOST_SEGMENTS"
	}
	return "OK"
}

func (a *app) showWALAsJSON(branches []catalog.Branch, withBackups bool) error {
	shown := []shownBranch{}
	for _, b := range branches {
		s := shownBranch{b.Timeline, b.Parent, b.Switch, b.First, b.Last, b.Count, b.Missing, nil, b.Range, branchStatus(b)}
		for _, backup := range b.Backups {
			if withBackups {
				s.Backups = append(s.Backups, entry(backup, true))
			}
		}
		shown = append(shown, s)
	}
	text, err := json.Marshal(shown)
	if err != nil {
		return err
	}
	return escapeJSON(a.process.Stdout, bytes.TrimSuffix(text, []byte("\n"))) // WAL-G ends without a new line
}

func (a *app) showWAL(branches []catalog.Branch, withBackups bool) error {
	head := []string{"TLI", "PARENT TLI", "SWITCHPOINT LSN", "START SEGMENT", "END SEGMENT", "SEGMENT RANGE", "SEGMENTS COUNT", "STATUS"}
	if withBackups {
		head = append(head, "BACKUPS COUNT")
	}
	rows := [][]string{head}
	for _, b := range branches {
		row := []string{
			decimal(uint64(b.Timeline)), decimal(uint64(b.Parent)), b.Switch.String(), b.First, b.Last, decimal(b.Range), decimal(b.Count), branchStatus(b),
		}
		if withBackups {
			row = append(row, strconv.Itoa(len(b.Backups)))
		}
		rows = append(rows, row)
	}
	return bordered(a.process.Stdout, rows, 0, 1, 2, 5, 6, 8)
}

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }
