package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/retention"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// deletion are the options that all commands of delete have.
type deletion struct {
	confirm, sentinelTime, asJSON bool
}

func (a *app) delete() *cobra.Command {
	d := &deletion{}
	cmd := &cobra.Command{
		Use:   "delete COMMAND",
		Short: "Delete backups and WAL that are not needed any more",
		Long: "Shows what would be deleted, what would stay and why, and to which moments the cluster could be recovered before and after.\n" +
			"With --confirm it is done. Whatever stays can be restored: the backups that it is based on and its WAL stay with it. Permanent\n" +
			"backups stay, and so does the newest backup of the cluster that can be restored.",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usage(cmd, "cannot run delete: it needs one of the commands retain, before, target, everything and garbage")
		},
	}
	pf := cmd.PersistentFlags()
	pf.BoolVar(&d.confirm, "confirm", false, "delete, instead of saying what would be deleted")
	pf.BoolVar(&d.sentinelTime, "use-sentinel-time", false, "accepted, without effect: backups are always ordered by the time of their start")
	pf.BoolVar(&d.asJSON, "json", false, "the plan as JSON")
	cmd.AddCommand(a.deleteRetain(d), a.deleteBefore(d), a.deleteTarget(d), a.deleteEverything(d), a.deleteGarbage(d))
	return cmd
}

func (a *app) deleteRetain(d *deletion) *cobra.Command {
	var days int
	var after string
	cmd := &cobra.Command{
		Use:   "retain [FULL|FIND_FULL] COUNT | --days DAYS",
		Short: "Keep the newest backups, and delete what is older",
		Long: "COUNT is how many backups stay at least; only those count that can be restored. FULL counts full backups only. FIND_FULL goes on to\n" +
			"the full backup that the last of them is based on; without either that one must be full. --after NAME|TIME keeps what is newer as\n" +
			"well. --days keeps every moment of the last DAYS days restorable.",
		Args: arguments(0, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := retention.Request{Verb: retention.Retain, Days: days, After: after}
			rest, err := modifier(cmd, args, &r.Modifier, "FULL", "FIND_FULL")
			if err != nil {
				return err
			}
			byDays := cmd.Flags().Changed("days")
			switch {
			case byDays && (len(args) > 0 || after != ""):
				return usage(cmd, "cannot run retain: --days stands alone")
			case byDays && days < 1:
				return usage(cmd, "cannot run retain: --days %d: expected at least 1", days)
			case byDays:
				return a.runDelete(cmd, d, r)
			case len(rest) != 1:
				return usage(cmd, "cannot run retain: it needs the number of backups, or --days")
			}
			if r.Count, err = strconv.Atoi(rest[0]); err != nil || r.Count < 1 {
				return usage(cmd, "cannot run retain: %q is not the number of backups that are to stay, at least 1", rest[0])
			}
			return a.runDelete(cmd, d, r)
		},
	}
	cmd.Flags().IntVar(&days, "days", 0, "keep every moment of the last `DAYS` days restorable")
	cmd.Flags().StringVar(&after, "after", "", "`NAME|TIME` from which on everything stays as well (RFC 3339)")
	return cmd
}

// modifier takes the word off that may come first.
func modifier(cmd *cobra.Command, args []string, m *retention.Modifier, words ...string) ([]string, error) {
	if len(args) < 2 {
		return args, nil
	}
	for _, word := range words {
		if strings.EqualFold(args[0], word) {
			*m = retention.Modifier(word)
			return args[1:], nil
		}
	}
	return nil, usage(cmd, "cannot run %s: %q is not %s", cmd.Name(), args[0], strings.Join(words, " or "))
}

func (a *app) deleteBefore(d *deletion) *cobra.Command {
	return &cobra.Command{
		Use:   "before [FIND_FULL] NAME|TIME",
		Short: "Delete what is older than a backup or a time",
		Long: "NAME is a backup or the beginning of its name; TIME (RFC 3339) stands for the oldest backup that was not started before. That backup stays,\n" +
			"and must be full; FIND_FULL takes the full backup that it is based on.",
		Args: arguments(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := retention.Request{Verb: retention.Before}
			rest, err := modifier(cmd, args, &r.Modifier, "FIND_FULL")
			if err != nil {
				return err
			}
			r.Point = rest[0]
			return a.runDelete(cmd, d, r)
		},
	}
}

func (a *app) deleteTarget(d *deletion) *cobra.Command {
	var userData string
	cmd := &cobra.Command{
		Use:   "target [FIND_FULL] NAME | --target-user-data JSON",
		Short: "Delete one backup and those that are based on it",
		Long: "Deletes the backup and all that are based on it, and no WAL. With FIND_FULL it is the full backup that NAME is based on, with all of its\n" +
			"deltas. A permanent backup is refused, and so is the newest one that can be restored.",
		Args: arguments(0, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := retention.Request{Verb: retention.Target}
			if cmd.Flags().Changed("target-user-data") {
				if len(args) == 1 && strings.EqualFold(args[0], string(retention.FindFull)) {
					r.Modifier, args = retention.FindFull, nil
				}
				if len(args) > 0 || !json.Valid([]byte(userData)) {
					return usage(cmd, "cannot run target: it takes a name, or user data that is valid JSON")
				}
				r.UserData = json.RawMessage(userData)
				return a.runDelete(cmd, d, r)
			}
			rest, err := modifier(cmd, args, &r.Modifier, "FIND_FULL")
			if err != nil {
				return err
			}
			if len(rest) != 1 {
				return usage(cmd, "cannot run target: it needs the name of a backup, or --target-user-data")
			}
			r.Point = rest[0]
			return a.runDelete(cmd, d, r)
		},
	}
	cmd.Flags().StringVar(&userData, "target-user-data", "", "the backup with this user data (`JSON`)")
	return cmd
}

func (a *app) deleteEverything(d *deletion) *cobra.Command {
	return &cobra.Command{
		Use:   "everything [FORCE]",
		Short: "Delete all backups and all WAL",
		Long: "Empties the archive, also of what identifies its cluster. Objects that are not an archive's stay. With permanent backups it is refused,\n" +
			"unless FORCE is given.",
		Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && !strings.EqualFold(args[0], "FORCE") {
				return usage(cmd, "cannot run everything: %q is not FORCE", args[0])
			}
			return a.runDelete(cmd, d, retention.Request{Verb: retention.Everything, Force: len(args) == 1})
		},
	}
}

func (a *app) deleteGarbage(d *deletion) *cobra.Command {
	var unchecked bool
	cmd := &cobra.Command{
		Use:   "garbage [ARCHIVES|BACKUPS]",
		Short: "Delete WAL that no backup needs, and what unfinished backups left behind",
		Long: "ARCHIVES deletes only WAL that is older than all backups that are not permanent; BACKUPS only what unfinished backups have left to which\n" +
			"nothing was added for 24 hours, so that nobody can be writing them. Where all backups are permanent, or there is none, nothing tells which\n" +
			"WAL is old, and it stays; with --without-backup-check all goes but what permanent backups need.",
		Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := retention.Request{Verb: retention.Garbage, WAL: true, Leftover: true, NoBackup: unchecked}
			if len(args) == 1 {
				switch strings.ToUpper(args[0]) {
				case "ARCHIVES":
					r.Leftover = false
				case "BACKUPS":
					r.WAL = false
				default:
					return usage(cmd, "cannot run garbage: %q is neither ARCHIVES nor BACKUPS", args[0])
				}
			}
			return a.runDelete(cmd, d, r)
		},
	}
	cmd.Flags().BoolVar(&unchecked, "without-backup-check", false, "delete WAL although no backup tells which is old")
	return cmd
}

func (a *app) runDelete(cmd *cobra.Command, d *deletion, r retention.Request) error {
	debug.SetGCPercent(gcPercent)
	if err := a.load(false); err != nil {
		return err
	}
	c, inv, err := a.lookAtAll(cmd.Context(), toLook)
	if err != nil {
		return err
	}
	plan, err := retention.New(&inv, r, time.Now())
	if err != nil {
		return err
	}
	if !d.asJSON {
		if err := printPlan(a.process.Stdout, plan); err != nil {
			return err
		}
	}
	switch {
	case plan.Empty():
		a.log.Info("No objects matched the deletion criteria.")
	case !d.confirm:
		a.log.Info("Dry run: objects would be deleted", "count", plan.Objects(), "hint", "run with --confirm to execute")
	default:
		if err := plan.Apply(cmd.Context(), retention.Deps{Catalog: c, Log: a.log}); err != nil {
			return failedDeletion(err)
		}
		a.log.Info("Objects deleted successfully", "count", plan.Objects())
	}
	if d.asJSON {
		return planJSON(a.process.Stdout, plan, !d.confirm)
	}
	return nil
}

func failedDeletion(err error) error {
	return fmt.Errorf("cannot delete everything that was to be deleted; the same command again removes the rest: %w", err)
}

// printPlan shows a plan to people.
func printPlan(out io.Writer, p *retention.Plan) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, d := range p.Backups {
		fmt.Fprintf(w, "%s\tbackup %s\t%s\t%s\t%s\n", action(d.Goes), printable(d.Backup.Name, maxCell), moment(d.Backup.When(), time.RFC3339),
			bytesText(d.Backup.CompressedSize), printable(d.Reason, maxCell))
	}
	for _, u := range p.Unfinished {
		fmt.Fprintf(w, "%s\tunfinished %s\t%s\t%s\t%s\n", action(u.Goes), u.Unfinished.Name, moment(u.Unfinished.Modified, time.RFC3339),
			bytesText(u.Unfinished.Size), printable(u.Reason, maxCell))
	}
	if n := len(p.WAL); n > 0 {
		var size int64
		for _, f := range p.WAL {
			size += f.Size
		}
		fmt.Fprintf(w, "delete\tWAL %s to %s\t%d objects\t%s\tno backup that stays needs it\n", p.WAL[0].Name, p.WAL[n-1].Name, n, bytesText(size))
	}
	for _, k := range p.Kept {
		fmt.Fprintf(w, "keep\tWAL %s to %s\t%d objects\t%s\t%s\n", k.First, k.Last, k.Count, bytesText(k.Size), printable(k.Reason, maxCell))
	}
	if n := len(p.Fingerprints); n > 0 {
		fmt.Fprintf(w, "delete\tfingerprints of WAL\t%d objects\t\t\n", n)
	}
	if p.Identity {
		fmt.Fprintf(w, "delete\tidentity of the archive\t\t\t\n")
	}
	if n := len(p.Foreign); n > 0 {
		fmt.Fprintf(w, "keep\tother objects, %s\t%d objects\t\tthey are not an archive's\n", printable(p.Foreign[0], maxCell), n)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "freed: %s\n", bytesText(p.Freed))
	printWindows(out, "before", p.Before)
	printWindows(out, "after", p.After)
	return nil
}

func printWindows(out io.Writer, when string, list []retention.Windows) {
	if len(list) == 0 {
		fmt.Fprintf(out, "recovery window %s: none\n", when)
	}
	for _, t := range list {
		fmt.Fprintf(out, "recovery window %s, timeline %d: %s\n", when, t.Timeline, windowsText(t.Windows))
	}
}

// windowsText says to which moments a cluster can be recovered.
func windowsText(windows []catalog.Window) string {
	var s strings.Builder
	for i, w := range windows {
		if i > 0 {
			s.WriteString("; ")
		}
		fmt.Fprintf(&s, "%s (%s) to %s (%s)", moment(w.FromTime, time.RFC3339), w.From, moment(w.ToTime, time.RFC3339), w.To)
	}
	return s.String()
}

func action(goes bool) string {
	if goes {
		return "delete"
	}
	return "keep"
}

// bytesText writes a size for people.
func bytesText(n int64) string {
	size, unit := float64(n), 0
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	for size >= 1024 && unit < len(units)-1 {
		size /= 1024
		unit++
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", size, units[unit])
}

// The JSON of a plan. The names of the keys are an interface.
type (
	plannedBackup struct {
		Name      string    `json:"backup_name"`
		Action    string    `json:"action"`
		Reason    string    `json:"reason"`
		StartTime time.Time `json:"start_time"`
		Size      int64     `json:"compressed_size"`
		Permanent bool      `json:"is_permanent"`
		Delta     bool      `json:"is_delta"`
	}
	plannedLeftover struct {
		Name     string    `json:"backup_name"`
		Action   string    `json:"action"`
		Reason   string    `json:"reason"`
		Modified time.Time `json:"modified"`
		Size     int64     `json:"size"`
	}
	keptWAL struct {
		Reason string `json:"reason"`
		Count  int    `json:"count"`
		Size   int64  `json:"size"`
		First  string `json:"first"`
		Last   string `json:"last"`
	}
	plannedWAL struct {
		Delete []string  `json:"delete"`
		Keep   []keptWAL `json:"keep"`
	}
	shownWindow struct {
		Timeline    uint32    `json:"timeline"`
		BackupName  string    `json:"backup_name"`
		FromLSN     string    `json:"from_lsn"`
		FromTime    time.Time `json:"from_time"`
		ToLSN       string    `json:"to_lsn"`
		ToTime      time.Time `json:"to_time"`
		LastSegment string    `json:"last_segment,omitempty"`
		Backups     int       `json:"backups"`
	}
	shownPlan struct {
		DryRun     bool              `json:"dry_run"`
		Backups    []plannedBackup   `json:"backups"`
		Unfinished []plannedLeftover `json:"unfinished"`
		WAL        plannedWAL        `json:"wal"`
		Foreign    []string          `json:"foreign"`
		Freed      int64             `json:"freed_bytes"`
		Before     []shownWindow     `json:"recovery_windows_before"`
		After      []shownWindow     `json:"recovery_windows_after"`
	}
)

func planJSON(out io.Writer, p *retention.Plan, dry bool) error {
	s := shownPlan{
		DryRun: dry, Backups: []plannedBackup{}, Unfinished: []plannedLeftover{}, WAL: plannedWAL{[]string{}, []keptWAL{}}, Foreign: []string{},
		Freed: p.Freed, Before: shownWindows(p.Before), After: shownWindows(p.After),
	}
	s.Foreign = append(s.Foreign, p.Foreign...)
	for _, d := range p.Backups {
		b := d.Backup
		s.Backups = append(s.Backups, plannedBackup{b.Name, action(d.Goes), d.Reason, b.When().UTC(), b.CompressedSize, b.Permanent, b.Delta != nil})
	}
	for _, u := range p.Unfinished {
		s.Unfinished = append(s.Unfinished, plannedLeftover{u.Unfinished.Name, action(u.Goes), u.Reason, u.Unfinished.Modified.UTC(), u.Unfinished.Size})
	}
	for _, f := range p.WAL {
		s.WAL.Delete = append(s.WAL.Delete, f.Name)
	}
	for _, k := range p.Kept {
		s.WAL.Keep = append(s.WAL.Keep, keptWAL(k))
	}
	return printJSON(out, s)
}

func shownWindows(list []retention.Windows) []shownWindow {
	shown := []shownWindow{}
	for _, t := range list {
		for _, w := range t.Windows {
			shown = append(shown, shownWindowOf(t.Timeline, w, ""))
		}
	}
	return shown
}

// shownWindowOf is how a window of a timeline is shown; last is the name of its last segment, where that is shown.
func shownWindowOf(timeline wal.Timeline, w catalog.Window, last string) shownWindow {
	return shownWindow{uint32(timeline), w.Backup, w.From.String(), w.FromTime.UTC(), w.To.String(), w.ToTime.UTC(), last, w.Backups}
}

// printJSON prints one line of JSON.
func printJSON(out io.Writer, value any) error {
	b, err := json.Marshal(value)
	if err != nil {
		return errors.New("cannot write JSON: " + err.Error())
	}
	return escapeJSON(out, append(b, '\n'))
}
