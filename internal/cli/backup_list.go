package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/wal"
)

func (a *app) backupList() *cobra.Command {
	var pretty, asJSON, detail bool
	var storage string
	cmd := &cobra.Command{
		Use:   "backup-list",
		Short: "List the backups of the archive",
		Long: "Lists the backups in the order in which they were started. Entries that cannot be used are listed too, with what is\n" +
			"wrong in a last column \"status\", which is there only when it has something to say.",
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			debug.SetGCPercent(gcPercent)
			if err := a.load(false); err != nil {
				return err
			}
			a.setTarget(storage)
			c, err := a.checkedCatalog(cmd.Context(), toLook)
			if err != nil {
				return err
			}
			backups, err := c.Backups(cmd.Context())
			if err != nil {
				return err
			}
			if detail {
				if err := c.Details(cmd.Context(), backups); err != nil {
					return err
				}
			}
			switch {
			case asJSON:
				return listJSON(a.process.Stdout, backups, detail, pretty)
			case len(backups) == 0:
				fmt.Fprintln(a.screen, "No backups found")
				return nil
			case pretty:
				return listPretty(a.process.Stdout, backups, detail)
			}
			return listPlain(a.process.Stdout, backups, detail)
		},
	}
	cmd.Flags().BoolVar(&pretty, "pretty", false, "as a table with borders; with --json indented")
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	cmd.Flags().BoolVar(&detail, "detail", false, "with all that is recorded of each backup")
	cmd.Flags().StringVar(&storage, "target-storage", "", "name of the storage")
	return cmd
}

// storageName is the name of the only storage there is.
const storageName = "default"

// listed is an entry of the JSON list; the names of the keys are an interface (WAL-G's exporters read them).
type listed struct {
	BackupName  string    `json:"backup_name"`
	Time        time.Time `json:"time"`
	WALFileName string    `json:"wal_file_name"`
	StorageName string    `json:"storage_name"`
	*listedDetail
	Status string `json:"status,omitempty"`
}

type listedDetail struct {
	StartTime        time.Time       `json:"start_time"`
	FinishTime       time.Time       `json:"finish_time"`
	DateFmt          string          `json:"date_fmt"`
	Hostname         string          `json:"hostname"`
	DataDir          string          `json:"data_dir"`
	PgVersion        int             `json:"pg_version"`
	StartLSN         wal.LSN         `json:"start_lsn"`
	FinishLSN        wal.LSN         `json:"finish_lsn"`
	IsPermanent      bool            `json:"is_permanent"`
	SystemIdentifier *uint64         `json:"system_identifier"`
	UncompressedSize int64           `json:"uncompressed_size"`
	CompressedSize   int64           `json:"compressed_size"`
	UserData         json.RawMessage `json:"user_data,omitempty"`
}

// status says what an operator should know of a backup before relying on it; "" if there is nothing.
func status(b catalog.Backup) string {
	var s []string
	if b.Problem != nil {
		s = append(s, "unusable: "+b.Problem.Error())
	}
	if b.WAL == catalog.WALMissing {
		s = append(s, "WAL missing when it was taken")
	}
	if b.CorruptBlocks > 0 {
		s = append(s, fmt.Sprintf("%d corrupt pages", b.CorruptBlocks))
	}
	return strings.Join(s, "; ")
}

// entry describes a backup as lists do.
func entry(b catalog.Backup, detail bool) listed {
	l := listed{BackupName: b.Name, Time: b.Modified.UTC(), WALFileName: b.WALFile(), StorageName: storageName, Status: status(b)}
	if detail {
		l.listedDetail = &listedDetail{
			b.StartTime, b.FinishTime, "%Y-%m-%dT%H:%M:%S.%fZ", b.Hostname, b.DataDir, b.PgVersion, b.StartLSN, b.FinishLSN,
			b.Permanent, nil, b.UncompressedSize, b.CompressedSize, b.UserData,
		}
		if b.SystemIdentifier != 0 {
			l.SystemIdentifier = &b.SystemIdentifier
		}
	}
	return l
}

func listJSON(w io.Writer, backups []catalog.Backup, detail, indent bool) error {
	list := make([]listed, 0, len(backups))
	for _, b := range backups {
		list = append(list, entry(b, detail))
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	if indent {
		enc.SetIndent("", "    ")
	}
	if err := enc.Encode(list); err != nil {
		return err
	}
	return escapeJSON(w, b.Bytes())
}

// maxCell is the longest cell of a table in characters, as every row of a column is as wide as its widest.
const maxCell = 1024

// table makes the cells of the plain and of the bordered list.
func table(backups []catalog.Backup, detail bool, format string) [][]string {
	withStatus := false
	for _, b := range backups {
		withStatus = withStatus || status(b) != ""
	}
	var rows [][]string
	for _, b := range backups {
		row := []string{b.Name, b.Modified.UTC().Format(format), known(b.WALFile()), storageName}
		if detail {
			row = append(row, moment(b.StartTime, format), moment(b.FinishTime, format), known(b.Hostname), known(b.DataDir), strconv.Itoa(b.PgVersion),
				b.StartLSN.String(), b.FinishLSN.String(), strconv.FormatBool(b.Permanent))
		}
		if withStatus {
			row = append(row, status(b))
		}
		for i := range row {
			row[i] = printable(row[i], maxCell)
		}
		rows = append(rows, row)
	}
	return rows
}

// known fills the cell of what is not recorded, so that columns can be counted.
func known(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func moment(t time.Time, format string) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(format)
}

func listPlain(w io.Writer, backups []catalog.Backup, detail bool) error {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	columns := []string{"backup_name", "modified", "wal_file_name", "storage_name"}
	if detail {
		columns = append(columns, "start_time", "finish_time", "hostname", "data_dir", "pg_version", "start_lsn", "finish_lsn", "is_permanent")
	}
	rows := table(backups, detail, time.RFC3339)
	if len(rows[0]) > len(columns) {
		columns = append(columns, "status")
	}
	fmt.Fprintln(tw, strings.Join(columns, "\t"))
	for _, row := range rows {
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	return tw.Flush()
}

func listPretty(w io.Writer, backups []catalog.Backup, detail bool) error {
	columns := []string{"#", "BACKUP NAME", "MODIFIED", "WAL FILE NAME", "STORAGE NAME"}
	if detail {
		columns = append(columns, "START TIME", "FINISH TIME", "HOSTNAME", "DATADIR", "PG VERSION", "START LSN", "FINISH LSN", "PERMANENT")
	}
	rows := table(backups, detail, time.RFC850)
	for i := range rows {
		rows[i] = append([]string{strconv.Itoa(i)}, rows[i]...)
	}
	if len(rows[0]) > len(columns) {
		columns = append(columns, "STATUS")
	}
	return bordered(w, append([][]string{columns}, rows...))
}

// bordered draws a table; the first row is its head. The columns named are aligned to the right.
func bordered(w io.Writer, rows [][]string, right ...int) error {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var s strings.Builder
	rule := "+"
	for _, n := range widths {
		rule += strings.Repeat("-", n+2) + "+"
	}
	s.WriteString(rule + "\n")
	for i, row := range rows {
		s.WriteString("|")
		for j, cell := range row {
			space := strings.Repeat(" ", widths[j]-utf8.RuneCountInString(cell))
			if i > 0 && slices.Contains(right, j) {
				cell, space = space, cell
			}
			s.WriteString(" " + cell + space + " |")
		}
		s.WriteString("\n")
		if i == 0 {
			s.WriteString(rule + "\n")
		}
	}
	s.WriteString(rule + "\n")
	_, err := io.WriteString(w, s.String())
	return err
}
