package cli

import (
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/daemon/client"
	"gitlab.com/walden-pg/walden/internal/hint"
)

// personality is what depends on the name by which the program was called: a link called wal-g or wal-e stands in for that tool
// in crontabs, in archive_command and before the eyes of whatever reads its output. It changes words, never what is done.
type personality interface {
	command(a *app) *cobra.Command
	// handler makes the handler that writes log lines as text.
	handler(out io.Writer, o *slog.HandlerOptions) slog.Handler
	// logsTo are the destinations of the log where WALE_LOG_DESTINATION says none.
	logsTo() string
	printError(a *app, err error)
	exitCode(err error) int
}

// personalityOf chooses by argv[0], whatever directory the link lies in.
func personalityOf(called string) personality {
	switch filepath.Base(called) {
	case "wal-g":
		return walG{}
	case "wal-e":
		return &walE{}
	case client.Called:
		return daemonClient{}
	}
	return itself{}
}

// itself is walden under its own name, or under any that is nobody else's.
type itself struct{}

func (itself) command(a *app) *cobra.Command { return a.command("walden") }

func (itself) handler(out io.Writer, o *slog.HandlerOptions) slog.Handler {
	return slog.NewTextHandler(out, o)
}

func (itself) logsTo() string { return "stderr" }

func (itself) printError(a *app, err error) { printError(a.screen, err) }
func (itself) exitCode(err error) int       { return exitCode(err) }

// daemonClient is the one command of WAL-G's client for the daemon.
type daemonClient struct{ itself }

func (daemonClient) command(a *app) *cobra.Command {
	cmd := a.daemonClient()
	cmd.Use = strings.Replace(cmd.Use, client.Command, client.Called, 1)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	return cmd
}

// walG speaks as WAL-G does. Its commands, flags and exit codes are walden's own; see docs/migration.md for what differs.
type walG struct{}

func (walG) command(a *app) *cobra.Command {
	root := a.command("wal-g")
	root.SetVersionTemplate("wal-g version {{.Version}}\twalden\t-\tPostgreSQL\n") // WAL-G's fields: version, revision, date of the build
	return root
}

func (walG) handler(out io.Writer, o *slog.HandlerOptions) slog.Handler {
	return &lineHandler{out: out, least: o.Level, render: walGLine}
}

func (walG) logsTo() string { return "stderr" }

func (walG) printError(a *app, err error) {
	now := time.Now()
	fmt.Fprint(a.screen, walGText("ERROR", now, printableError(err.Error())))
	for _, advice := range hint.Of(err) {
		fmt.Fprint(a.screen, walGText("INFO", now, "hint: "+printableError(advice)))
	}
}

func (walG) exitCode(err error) int { return exitCode(err) }

// walGLine writes a record as WAL-G logs (WAL-G format, "Command line"): local time, the message, and what walden adds to it.
func walGLine(r slog.Record, attributes []slog.Attr) string {
	level := map[slog.Level]string{slog.LevelDebug: "DEBUG", slog.LevelWarn: "WARNING", slog.LevelError: "ERROR"}[r.Level]
	if level == "" {
		level = "INFO"
	}
	isEnd := func(a slog.Attr) bool { return a.Key == "state" && a.Value.String() == "complete" }
	if strings.HasPrefix(r.Message, "Wrote backup with name ") && slices.ContainsFunc(attributes, isEnd) {
		// WAL-G's line ends with the storage's name, and is read to its end.
		return walGText(level, r.Time, printableError(r.Message)) + walGText(level, r.Time, withAttributes("backup", attributes))
	}
	return walGText(level, r.Time, withAttributes(r.Message, attributes))
}

func walGText(level string, at time.Time, text string) string {
	return fmt.Sprintf("%s: %s %s\n", level, at.Format("2006/01/02 15:04:05.000000"), text)
}
