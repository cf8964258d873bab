package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/catalog"
)

// shownBackup is everything known of a backup; the names of the keys are an interface.
type shownBackup struct {
	listed
	Kind        string            `json:"kind"`
	Chain       []string          `json:"chain"` // from the full backup to this one
	BasedOnThis []string          `json:"based_on_this"`
	Files       int               `json:"files"`
	DataSize    int64             `json:"data_size"`
	Objects     int               `json:"objects"`
	StoredSize  int64             `json:"stored_size"`
	Parts       int               `json:"parts"`
	Extensions  []string          `json:"extensions"`
	WALFirst    string            `json:"wal_first,omitempty"`
	WALLast     string            `json:"wal_last,omitempty"`
	WALMissing  []string          `json:"wal_missing"`
	Restorable  bool              `json:"restorable"`
	Reason      string            `json:"reason,omitempty"` // why it is not
	Tablespaces map[uint32]string `json:"tablespaces,omitempty"`
	Manifest    *shownManifest    `json:"manifest,omitempty"`
}

type shownManifest struct {
	SHA256        string `json:"sha256"`
	Walden        string `json:"walden"`
	Compression   string `json:"compression"`
	Encryption    string `json:"encryption"`
	Timeline      uint32 `json:"timeline"`
	SegmentSize   int64  `json:"wal_segment_size"`
	PageSize      int64  `json:"page_size"`
	DataChecksums bool   `json:"data_checksums"`
	Standby       bool   `json:"from_standby"`
	WALLink       string `json:"pg_wal_link,omitempty"`
}

func (a *app) backupShow() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "backup-show NAME",
		Short: "Show everything that is known of one backup",
		Long: "Shows what is recorded of the backup (or LATEST), what is stored of it, what it is based on, and whether its WAL is in the archive. The\n" +
			"documents are read and compared with what the storage holds; the data itself is not.",
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.archiveCatalog(cmd)
			if err != nil {
				return err
			}
			found, err := c.Find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			inv, err := a.inventory(cmd.Context(), c)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(inv.Backups, func(b catalog.Backup) bool { return b.Name == found.Name })
			if i < 0 {
				return fmt.Errorf("cannot show backup %s: it was deleted meanwhile", found.Name)
			}
			s, err := describe(cmd.Context(), c, &inv, inv.Backups[i])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(a.process.Stdout, s)
			}
			return printBackup(a.process.Stdout, s)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func describe(ctx context.Context, c *catalog.Catalog, inv *catalog.Inventory, b catalog.Backup) (shownBackup, error) {
	coverage := inv.Coverage()
	s := shownBackup{
		listed: entry(b, true), Kind: "full", Chain: []string{b.Name}, BasedOnThis: []string{}, WALMissing: []string{}, Restorable: true,
	}
	for base := b; base.Delta != nil && len(s.Chain) <= len(inv.Backups); {
		s.Kind = "delta"
		s.Chain = append(s.Chain, base.Delta.From)
		i := slices.IndexFunc(inv.Backups, func(other catalog.Backup) bool { return other.Name == base.Delta.From })
		if i < 0 {
			break
		}
		base = inv.Backups[i]
	}
	slices.Reverse(s.Chain)
	for _, other := range inv.Backups {
		if other.Delta != nil && other.Delta.From == b.Name {
			s.BasedOnThis = append(s.BasedOnThis, other.Name)
		}
	}
	s.WALFirst, s.WALLast = coverage.NeededWAL(b)
	s.WALMissing = append(s.WALMissing, coverage.MissingWAL(b)...)
	if err := coverage.Unrestorable(b); err != nil {
		s.Restorable, s.Reason = false, err.Error()
	}
	if b.Tablespaces != nil {
		s.Tablespaces = b.Tablespaces.Tablespaces
	}
	stored, err := c.Stored(ctx, b)
	if err != nil {
		return s, err
	}
	s.Objects, s.StoredSize, s.Parts, s.Extensions = stored.Count, stored.Size, stored.Parts, stored.Extensions
	l, err := c.List(ctx, b)
	if err != nil {
		return s, err
	}
	s.DataSize = l.DataSize
	if l.Files != nil {
		s.Files = l.Files.Len()
	}
	m, err := c.Manifest(ctx, b)
	if err != nil {
		return s, err
	}
	if m != nil {
		s.Manifest = &shownManifest{
			b.ManifestSHA256, m.Walden, m.Compression, m.Encryption, m.Timeline, m.SegmentSize, m.PageSize, m.DataChecksums, m.Standby, m.WALLink,
		}
	}
	return s, nil
}

func printBackup(out io.Writer, s shownBackup) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		if text := fmt.Sprintf(format, args...); text != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, printable(text, maxCell))
		}
	}
	row("name", "%s", s.BackupName)
	row("status", "%s", s.Status)
	row("restorable", "%s", restorableText(s))
	row("kind", "%s", s.Kind)
	if len(s.Chain) > 1 {
		row("chain", "%s", strings.Join(s.Chain, ", "))
	}
	row("based on this", "%s", strings.Join(s.BasedOnThis, ", "))
	row("permanent", "%t", s.IsPermanent)
	row("started", "%s", moment(s.StartTime, time.RFC3339))
	row("finished", "%s", moment(s.FinishTime, time.RFC3339))
	row("written", "%s", moment(s.Time, time.RFC3339))
	row("host", "%s", s.Hostname)
	row("data directory", "%s", s.DataDir)
	row("PostgreSQL", "%d", s.PgVersion)
	if s.SystemIdentifier != nil {
		row("system identifier", "%d", *s.SystemIdentifier)
	}
	row("LSN", "%s to %s", s.StartLSN, s.FinishLSN)
	row("WAL needed", "%s to %s", known(s.WALFirst), known(s.WALLast))
	row("WAL missing", "%s", strings.Join(s.WALMissing, ", "))
	row("files", "%d, %s", s.Files, bytesText(s.DataSize))
	row("stored", "%d objects, %s, %d of them tars (%s)", s.Objects, bytesText(s.StoredSize), s.Parts, strings.Join(s.Extensions, ", "))
	for oid, location := range s.Tablespaces {
		row("tablespace", "%d at %s", oid, location)
	}
	if m := s.Manifest; m != nil {
		row("manifest", "SHA-256 %s", m.SHA256)
		row("written by", "walden %s", m.Walden)
		row("compression", "%s", m.Compression)
		row("encryption", "%s", m.Encryption)
		row("timeline", "%d", m.Timeline)
		row("WAL segments", "%s", bytesText(m.SegmentSize))
		row("data checksums", "%t", m.DataChecksums)
		row("from a standby", "%t", m.Standby)
		row("pg_wal was at", "%s", m.WALLink)
	}
	if len(s.UserData) > 0 {
		row("user data", "%s", s.UserData)
	}
	return w.Flush()
}

func restorableText(s shownBackup) string {
	if s.Restorable {
		return "yes, as far as its documents tell"
	}
	return "no: " + s.Reason
}
