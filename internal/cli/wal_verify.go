package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// The JSON of wal-verify; the names of the keys are an interface (WAL-G format, "wal-verify").
type (
	verified struct {
		Integrity *verifiedIntegrity `json:"integrity,omitempty"`
		Timeline  *verifiedTimeline  `json:"timeline,omitempty"`
	}
	verifiedIntegrity struct {
		Status  string            `json:"status"`
		Details []verifiedStretch `json:"details"`
	}
	verifiedStretch struct {
		Timeline wal.Timeline `json:"timeline_id"`
		Start    string       `json:"start_segment"`
		End      string       `json:"end_segment"`
		Count    uint64       `json:"segments_count"`
		Status   string       `json:"status"`
	}
	verifiedTimeline struct {
		Status  string               `json:"status"`
		Details verifiedTimelineInfo `json:"details"`
	}
	verifiedTimelineInfo struct {
		Current wal.Timeline `json:"current_timeline_id"`
		Highest wal.Timeline `json:"highest_storage_timeline_id"`
	}
)

// Statuses of a verification.
const (
	verifyOK      = "OK"
	verifyWarning = "WARNING"
	verifyFailure = "FAILURE"
)

func (a *app) walVerify() *cobra.Command {
	var asJSON bool
	var backupName, lsn string
	var timeline uint32
	cmd := &cobra.Command{
		Use:   "wal-verify integrity|timeline ...",
		Short: "Verify that the archive holds the WAL up to the server's present position",
		Long: "integrity looks for every segment from the oldest backup that is not permanent, or from --backup-name, to the server's position.\n" +
			"timeline compares the server's timeline with the highest one in the archive. The server is asked for its position, unless --lsn and\n" +
			"--timeline say it. Exit code 5: the status is FAILURE.",
		Args: func(cmd *cobra.Command, args []string) error {
			for _, arg := range args {
				if arg != "integrity" && arg != "timeline" {
					return usage(cmd, "cannot run wal-verify: %q is neither integrity nor timeline", arg)
				}
			}
			return arguments(1, 2)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.archiveCatalog(cmd)
			if err != nil {
				return err
			}
			if (lsn == "") != (timeline == 0) {
				return usage(cmd, "cannot run wal-verify: --lsn and --timeline stand together")
			}
			inv, err := a.inventory(cmd.Context(), c)
			if err != nil {
				return err
			}
			current, size, err := a.serverPosition(cmd.Context(), &inv, lsn, wal.Timeline(timeline))
			if err != nil {
				return err
			}
			inv.SegmentSize = size
			coverage := inv.Coverage()
			var v verified
			for _, arg := range args {
				if arg == "timeline" {
					v.Timeline = verifyTimeline(coverage, current.Timeline)
					continue
				}
				var from *catalog.Backup
				if backupName != "" {
					b, err := c.Find(cmd.Context(), backupName)
					if err != nil {
						return err
					}
					from = &b
				}
				grace := catalog.Grace{Delayed: a.config.WAL.IntegrityMaxDelayed, Uploading: a.config.Limits.UploadConcurrency}
				if v.Integrity, err = verifyIntegrity(coverage, current, from, grace, size); err != nil {
					return err
				}
			}
			return a.printVerified(v, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	cmd.Flags().StringVar(&backupName, "backup-name", "", "verify from this backup on (`NAME` or LATEST)")
	cmd.Flags().StringVar(&lsn, "lsn", "", "the server's position (`LSN`), in place of asking it")
	cmd.Flags().Uint32Var(&timeline, "timeline", 0, "the server's timeline (`number`), with --lsn")
	return cmd
}

// serverPosition returns the segment that the server is writing, or the last one that it has received, and its size.
func (a *app) serverPosition(ctx context.Context, inv *catalog.Inventory, text string, timeline wal.Timeline) (wal.Segment, int64, error) {
	if text != "" {
		lsn, err := wal.ParseLSN(text)
		switch {
		case err != nil:
			return wal.Segment{}, 0, err
		case inv.SegmentSize == 0:
			return wal.Segment{}, 0, errors.New("cannot verify the WAL: nothing in the archive tells the size of its segments")
		}
		return wal.SegmentBefore(timeline, lsn, inv.SegmentSize), inv.SegmentSize, nil
	}
	server, err := a.connect(ctx)
	if err != nil {
		return wal.Segment{}, 0, err
	}
	timeline, lsn, err := server.Position(ctx)
	if err != nil {
		return wal.Segment{}, 0, err
	}
	size := server.Info().WALSegmentSize
	return wal.SegmentBefore(timeline, lsn, size), size, nil
}

func verifyTimeline(c *catalog.Coverage, current wal.Timeline) *verifiedTimeline {
	v := &verifiedTimeline{verifyFailure, verifiedTimelineInfo{current, c.Highest()}}
	switch v.Details.Highest {
	case current:
		v.Status = verifyOK
	case 0:
		v.Status = verifyWarning
	}
	return v
}

func verifyIntegrity(c *catalog.Coverage, current wal.Segment, from *catalog.Backup, grace catalog.Grace, size int64) (*verifiedIntegrity, error) {
	stretches, known, err := c.Integrity(current, from, grace)
	if err != nil {
		return nil, err
	}
	v := &verifiedIntegrity{Status: verifyOK}
	found := false
	for _, s := range stretches {
		v.Details = append(v.Details, verifiedStretch{
			s.First.Timeline, s.First.Name(size), s.Last.Name(size), s.Last.Number - s.First.Number + 1, string(s.Status),
		})
		switch {
		case s.Status == catalog.SegmentFound:
			found = true
		case s.Status == catalog.SegmentLost && (known || found):
			v.Status = verifyFailure
		case v.Status == verifyOK:
			v.Status = verifyWarning
		}
	}
	return v, nil
}

func (a *app) printVerified(v verified, asJSON bool) error {
	out := a.process.Stdout
	if asJSON {
		text, err := json.Marshal(v)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s", text) // WAL-G ends without a new line
	}
	if i := v.Integrity; i != nil && !asJSON {
		fmt.Fprintf(out, "[wal-verify] integrity check status: %s\n[wal-verify] integrity check details:\n", i.Status)
		rows := [][]string{{"TLI", "START", "END", "SEGMENTS COUNT", "STATUS"}}
		for _, d := range i.Details {
			rows = append(rows, []string{decimal(uint64(d.Timeline)), d.Start, d.End, decimal(d.Count), d.Status})
		}
		if err := bordered(out, rows, 0, 3, 4); err != nil {
			return err
		}
	}
	if t := v.Timeline; t != nil && !asJSON {
		fmt.Fprintf(out, "[wal-verify] timeline check status: %s\n[wal-verify] timeline check details:\n"+
			"Highest timeline found in storage: %d\nCurrent cluster timeline: %d\n", t.Status, t.Details.Highest, t.Details.Current)
	}
	if v.Integrity != nil && v.Integrity.Status == verifyFailure || v.Timeline != nil && v.Timeline.Status == verifyFailure {
		return &exit{errSilent, exitVerifyFailed}
	}
	return nil
}
