// Package cli is walden's command line: one file per command, flags to Options, call, print. It is the composition root
// and the only package that knows every concrete type; no decision about backups is taken here.
//
// Results go to standard output, everything else to standard error. Exit codes stand in exit.go.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"os/user"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"gitlab.com/walden-pg/walden/internal/config"
	"gitlab.com/walden-pg/walden/internal/crypt"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/storage/fs"
)

// Process is what a run of the program gets from the operating system.
type Process struct {
	Args           []string // without the program's name
	Called         string   // argv[0]; its last element may name a tool that walden stands in for
	Program        string   // as it was called, for messages that tell the operator what to type
	Self           string   // file of the program, to start another process of it; "": none is started
	Begin          func()   // is called when the command begins, its arguments being understood; may be nil
	Environ        []string
	Stdin          io.Reader // nil: there is nothing to be read
	Stdout, Stderr io.Writer
	Version        string
}

// Main runs one command and returns the exit code.
func Main(p Process) int {
	keepToItself()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	defer stop()
	ctx, hangups, release := watchHangups(ctx)
	defer release()
	return (&app{process: p, hangups: hangups}).run(ctx)
}

func (a *app) run(ctx context.Context) int {
	a.screen = newScreen(a.process.Stderr)
	defer a.close()
	a.as = personalityOf(a.process.Called)
	root := a.as.command(a)
	if a.process.Begin != nil {
		root.PersistentPreRun = func(*cobra.Command, []string) { a.process.Begin() }
	}
	root.SetArgs(a.process.Args)
	root.SetOut(a.process.Stdout)
	root.SetErr(a.process.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if !errors.Is(err, errSilent) {
		a.as.printError(a, err)
	}
	return a.as.exitCode(err)
}

// app is one run of the program.
type app struct {
	process Process
	as      personality
	screen  *screen
	flags   map[string]string // setting name → value given as a flag
	file    string            // --config
	turbo   bool
	seams   seams

	config  config.Config
	reload  func() (config.Config, error) // reads the settings once more
	rates   rates
	hangups *hangups // nil: none come
	log     *slog.Logger
	logFile *logFile // nil if the log goes elsewhere
	closers []func() error
	cipher  crypt.Cipher // of the open archive
	// abortStale is s3.Store.AbortStale of the archive's storage; nil where that is none of S3.
	abortStale func(ctx context.Context, idle time.Duration, folders ...string) ([]string, error)
	files      *fs.Store // the archive where it is a directory, else nil
	// inBackground says that nobody waits for what is done, so that the storage's passing failures are nobody's trouble.
	inBackground bool
}

func (a *app) close() {
	for _, c := range slices.Backward(a.closers) {
		_ = c() // log files and sessions: everything that matters was synced or committed before
	}
}

// command builds the tree of commands for a program of the name given.
func (a *app) command(name string) *cobra.Command {
	root := &cobra.Command{
		Use:   name,
		Short: "Backup and WAL archiving for PostgreSQL",
		Long: "walden archives PostgreSQL: base backups of running clusters and their WAL, in the storage format of WAL-G.\n" +
			"Settings come from flags, the environment and a configuration file; `walden settings` shows all of them.",
		Version: a.process.Version,
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return usage(cmd, "cannot run %q: there is no such command", args[0])
		},
		SilenceErrors: true,
		SilenceUsage:  true,
		CompletionOptions: cobra.CompletionOptions{
			HiddenDefaultCmd: true,
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, "cannot run %s: %w", cmd.Name(), err) })
	root.SetVersionTemplate("walden version {{.Version}}\tPostgreSQL\n")
	pf := root.PersistentFlags()
	pf.StringVar(&a.file, "config", "", "configuration `file` (json, yaml, toml, env)")
	pf.BoolVar(&a.turbo, "turbo", false, "ignore the rate limits for this run")
	a.addSettingFlags(root)
	root.AddCommand(a.backupPush(), a.backupFetch(), a.backupList(), a.backupShow(), a.backupMark(), a.backupVerify(), a.walPush(), a.walFetch(), a.walPrefetch(), a.daemon(), a.daemonClient(), a.walShow(), a.walVerify(),
		a.delete(), a.archive(), a.copy(), a.storageTools(), a.settings())
	root.AddCommand(a.notYet()...)
	return root
}

// logFormat is the one setting whose flag help lists.
const logFormat = "log-format"

// addSettingFlags makes every setting a flag. There are many, so help does not list them; `walden settings` does. Nor are all of them
// made: a command that PostgreSQL calls for each segment would spend a millisecond on hundreds that nobody has written.
func (a *app) addSettingFlags(root *cobra.Command) {
	a.flags = map[string]string{}
	written := map[string]bool{logFormat: true}
	for _, arg := range a.process.Args {
		if name, long := strings.CutPrefix(arg, "--"); long {
			name, _, _ = strings.Cut(name, "=")
			written[name] = true
		}
	}
	pf := root.PersistentFlags()
	for _, d := range config.Definitions() {
		for _, name := range d.Flags() {
			if !written[name] || pf.Lookup(name) != nil {
				continue
			}
			pf.Var(settingFlag{a.flags, d.Name}, name, d.Help)
			pf.Lookup(name).Hidden = true
		}
	}
	pf.Lookup(logFormat).Hidden = false
	pf.Lookup(logFormat).Usage = "`format` of log lines: text or json"
}

// settingFlag stores a flag's value under the name of its setting.
type settingFlag struct {
	values map[string]string
	name   string
}

func (f settingFlag) String() string     { return f.values[f.name] }
func (f settingFlag) Set(v string) error { f.values[f.name] = v; return nil }
func (f settingFlag) Type() string       { return "value" }

// load reads the settings and opens the log.
func (a *app) load(quiet bool) error {
	home := ""
	if u, err := user.Current(); err == nil {
		home = u.HomeDir
	}
	var err error
	a.reload = func() (config.Config, error) {
		return config.Load(config.Input{Flags: a.flags, Environ: a.process.Environ, File: a.file, Home: home})
	}
	a.config, err = a.reload()
	a.screen.hide(newMask(a.config.Secrets()))
	if err != nil {
		return fmt.Errorf("cannot use the settings: %w", err)
	}
	if a.turbo {
		a.config.Limits.DiskRate, a.config.Limits.NetworkRate = 0, 0
	}
	if err := a.openLog(); err != nil {
		return err
	}
	level := slog.LevelWarn
	if quiet { // commands that run for every segment must not repeat themselves in the server's log
		level = slog.LevelDebug
	}
	for _, w := range a.config.Warnings() {
		a.log.Log(context.Background(), level, w)
	}
	return nil
}

// openLog makes the logger that the settings ask for.
func (a *app) openLog() error {
	var out io.Writer = a.screen
	if dest := a.config.Log.Destination; dest != "stderr" {
		f, err := openLogFile(dest)
		if err != nil {
			return fmt.Errorf("cannot open the log: %w", err)
		}
		a.closers = append(a.closers, f.Close)
		a.logFile, out = f, masked{f, a.screen.mask}
	}
	options := &slog.HandlerOptions{Level: map[string]slog.Level{
		"ERROR": slog.LevelError, "NORMAL": slog.LevelInfo, "DEVEL": slog.LevelDebug,
	}[a.config.Log.Level]}
	handlerOn := func(out io.Writer) slog.Handler {
		if a.config.Log.Format == "json" {
			return slog.NewJSONHandler(out, options)
		}
		return a.as.handler(out, options)
	}
	destinations := cmp.Or(a.config.Log.WALEDestination, a.as.logsTo())
	handlers := []slog.Handler{handlerOn(out)}
	if strings.Contains(destinations, "syslog") {
		system, err := a.openSyslog(handlerOn)
		switch {
		case err == nil && !strings.Contains(destinations, "stderr"):
			handlers = []slog.Handler{system}
		case err == nil:
			handlers = append(handlers, system)
		case a.config.Log.WALEDestination != "":
			defer func() { a.log.Warn("syslog cannot be reached; log lines go elsewhere", "error", err) }()
		}
	}
	a.log = slog.New(slog.NewMultiHandler(handlers...))
	return nil
}

// printError prints an error and every hint in it.
func printError(w io.Writer, err error) {
	fmt.Fprintf(w, "walden: %s\n", printableError(err.Error()))
	for _, advice := range hint.Of(err) {
		fmt.Fprintf(w, "hint: %s\n", printableError(advice))
	}
}

// usage is an error in what was typed.
func usage(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...), strings.TrimSpace(cmd.CommandPath())}
}

type usageError struct {
	error
	command string
}

func (e *usageError) Unwrap() error { return e.error }
func (e *usageError) Hint() string  { return "`" + e.command + " --help` shows how it is called" }

// arguments checks the number of arguments.
func arguments(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return usage(cmd, "cannot run %s: %d arguments given, the command is `%s`", cmd.Name(), len(args), cmd.UseLine())
		}
		return nil
	}
}
