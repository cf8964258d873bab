package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/archive"
	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/daemon"
	"gitlab.com/walden-pg/walden/internal/daemon/client"
	"gitlab.com/walden-pg/walden/internal/daemon/wire"
	"gitlab.com/walden-pg/walden/internal/hint"
)

const (
	// daemonConnections is how many clients are served at the same time: PostgreSQL has one archiver and one startup process.
	daemonConnections = 64
	// daemonIdle is how long a client may take to say what it wants, and daemonMessage for the rest of it and to take the answer.
	daemonIdle, daemonMessage = time.Minute, 10 * time.Second
	// daemonDrain is how long what is under way may take when the daemon is told to end; systemd kills after 90 seconds.
	daemonDrain = 20 * time.Second
	// daemonOpen bounds the opening of the archive.
	daemonOpen = 2 * time.Minute
	// pgWAL is where the files lie that PostgreSQL archives.
	pgWAL = "pg_wal"
)

func (a *app) daemon() *cobra.Command {
	return &cobra.Command{
		Use:   "daemon SOCKET",
		Short: "Archive and fetch WAL from a process that stays",
		Long: "Answers `walden daemon-client`, and WAL-G's client, on a Unix socket, in WAL-G's protocol. Segments that wait are archived before PostgreSQL\n" +
			"asks for them. PGDATA names the data directory. With a socket from systemd SOCKET is not used.\n\n" +
			"SIGTERM ends it, SIGHUP has it read its settings again, SIGUSR1 has it open its log file again.",
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			signal.Ignore(syscall.SIGHUP) // for the other commands it is an end
			signals := make(chan os.Signal, 8)
			signal.Notify(signals, syscall.SIGHUP, syscall.SIGUSR1)
			defer signal.Stop(signals)
			return a.runDaemon(cmd.Context(), args[0], signals)
		},
	}
}

func (a *app) daemonClient() *cobra.Command {
	return &cobra.Command{
		Use:   client.Command + " SOCKET wal-push PATH | SOCKET wal-fetch NAME DESTINATION",
		Short: "Have the daemon archive or fetch one WAL file",
		Long: "Asks the daemon on SOCKET, within a few milliseconds:\n\n" +
			"    archive_command = 'walden daemon-client /run/walden/main.sock wal-push %p'\n" +
			"    restore_command = 'walden daemon-client /run/walden/main.sock wal-fetch \"%f\" \"%p\"'\n\n" +
			"-timeout (" + client.DefaultTimeout.String() + ") bounds the waiting for the daemon's answer, -connection-timeout (" + client.DefaultConnectionTimeout.String() + ")\n" +
			"for the connection. It has no other flags and reads no settings. A link named " + client.Called + " is the same command.\n\n" +
			"Exit codes: 0 done; 74 the archive does not hold the file; 200 any failure of wal-fetch while PostgreSQL is in archive recovery; 1 any other.",
		DisableFlagParsing: true, Args: cobra.ArbitraryArgs, // see client.Parse
		RunE: func(cmd *cobra.Command, args []string) error {
			if r, ok := client.Parse(args); ok {
				if code := r.Run(); code != exitOK {
					return &exit{errSilent, code}
				}
				return nil
			}
			if slices.Contains(args, "--help") || slices.Contains(args, "-h") {
				return cmd.Help()
			}
			err := usage(cmd, "cannot run %s: the command is `%s`", cmd.Name(), cmd.UseLine())
			if slices.Contains(args, "wal-push") {
				return err
			}
			return notAbsent(err, ".")
		},
	}
}

// resident is the running daemon: the data directory that it is for, and what its settings have made of it.
type resident struct {
	app  *app   // as it was called
	data string // absolute
	tell daemon.Notifier

	mu      sync.Mutex
	current *generation
	ended   sync.WaitGroup // of generations before

	destMu sync.Mutex
	dests  map[string]*berth
}

// generation is what one reading of the settings has made. What was begun in it ends in it.
type generation struct {
	app    *app
	pusher *archive.Pusher
	reader *catalog.Catalog
	// noReader is why nothing can be fetched: a server that has a public key only can still archive.
	noReader error
	fetcher  *archive.Fetcher
	users    sync.WaitGroup
}

func (a *app) runDaemon(ctx context.Context, socket string, signals <-chan os.Signal) error {
	if err := a.load(true); err != nil {
		return err
	}
	data := a.config.Postgres.DataDir
	if data == "" {
		return hint.With(errors.New("cannot run the daemon: it does not know the data directory"), "set PGDATA in the environment or in the configuration file")
	}
	if err := a.enter(&socket, &data); err != nil {
		return fmt.Errorf("cannot run the daemon: %w", err)
	}
	debug.SetMemoryLimit(2 * a.config.Limits.Memory)
	r := &resident{app: a, data: data, tell: daemon.NewNotifier(os.Getenv), dests: map[string]*berth{}}
	first, err := r.generate(ctx)
	if err != nil {
		return err
	}
	r.current = first
	defer r.close()
	listener, release, err := listen(socket)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan error, 1)
	go func() {
		served <- daemon.Serve(ctx, listener, r, daemon.Options{
			Connections: daemonConnections, Idle: daemonIdle, Message: daemonMessage, Drain: daemonDrain, Log: r.log,
		})
	}()
	r.log().Info("the daemon is ready", "socket", listener.Addr().String(), "pgdata", data, "archive", first.app.archiveName(first))
	r.notify("archiving "+data, daemon.Ready)
	r.watch(ctx, signals, served)
	r.notify("", daemon.Stopping)
	stop()
	err = errors.Join(<-served, release())
	r.log().Info("the daemon ends")
	return err
}

// enter makes names absolute and the data directory the working directory, where PostgreSQL runs its commands and relative names in the settings count.
func (a *app) enter(socket, data *string) error {
	for _, name := range []*string{socket, data, &a.file} {
		if *name == "" {
			continue
		}
		absolute, err := filepath.Abs(*name)
		if err != nil {
			return err
		}
		*name = absolute
	}
	if _, err := os.Stat(filepath.Join(*data, pgWAL)); err != nil {
		return err
	}
	return os.Chdir(*data)
}

func listen(socket string) (*net.UnixListener, func() error, error) {
	inherited, err := daemon.Inherited(os.Getenv)
	if inherited != nil || err != nil {
		return inherited, func() error { return nil }, err
	}
	return daemon.Listen(socket)
}

// watch does what signals ask for until the daemon is to end.
func (r *resident) watch(ctx context.Context, signals <-chan os.Signal, served chan error) {
	alive := time.NewTicker(daemon.AliveEvery(os.Getenv))
	defer alive.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-served:
			served <- err
			return
		case <-alive.C:
			r.notify("", daemon.Alive)
		case s := <-signals:
			if s == syscall.SIGUSR1 {
				r.reopenLog()
				continue
			}
			r.notify("reading the settings", daemon.Reloading)
			r.reload(ctx)
			r.notify("archiving "+r.data, daemon.Ready)
		}
	}
}

func (r *resident) notify(status string, states ...string) {
	if err := r.tell.Tell(status, states...); err != nil {
		r.log().Warn("systemd cannot be told about the daemon", "error", err)
	}
}

func (r *resident) log() *slog.Logger {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current.app.log
}

func (r *resident) reopenLog() {
	r.mu.Lock()
	f := r.current.app.logFile
	r.mu.Unlock()
	if f == nil {
		return
	}
	if err := f.reopen(); err != nil {
		r.log().Error("the log file cannot be opened again; the log goes on in the old one", "error", err)
		return
	}
	r.log().Info("the log file was opened again")
}

// generate reads the settings and opens the archive.
func (r *resident) generate(ctx context.Context) (*generation, error) {
	opening, cancel := context.WithTimeout(ctx, daemonOpen)
	defer cancel()
	from := r.app
	a := &app{process: from.process, as: from.as, screen: from.screen, flags: from.flags, file: from.file, turbo: from.turbo}
	g := &generation{app: a}
	if err := a.load(true); err != nil {
		a.close()
		return nil, err
	}
	o := a.pusherOptions()
	o.Resident = true
	o.Timeout = min(o.Timeout, a.config.WAL.DaemonPushTimeout)
	var err error
	if g.pusher, err = a.openPusher(opening, context.WithoutCancel(ctx), o); err != nil {
		a.close()
		return nil, err
	}
	g.reader, _, g.noReader = a.openCatalog(opening, toDecrypt)
	g.fetcher = archive.NewFetcher(archive.Deps{Catalog: g.reader, Log: a.log}, archive.FetcherOptions{Prefetch: a.prefetch(a.config.Limits.DownloadConcurrency)})
	return g, nil
}

func (a *app) archiveName(g *generation) string {
	if g.reader != nil {
		return g.reader.String()
	}
	return a.config.Storage.Setting
}

// reload lets what clients ask for from now on be done by the settings as they are now. If these cannot be used, nothing changes.
func (r *resident) reload(ctx context.Context) {
	old := r.current // only this goroutine changes it
	next, err := r.generate(ctx)
	if err == nil {
		if data, derr := filepath.Abs(next.app.config.Postgres.DataDir); derr != nil || data != r.data {
			next.close()
			err = errors.Join(errors.New("PGDATA has changed, which needs a new start of the daemon"), derr)
		}
	}
	if err != nil {
		r.app.screen.hide(newMask(old.app.config.Secrets()))
		r.failed("the settings cannot be used; those of before stay", err)
		return
	}
	// What was begun by the old settings can still fail, and tell so.
	r.app.screen.hide(newMask(append(slices.Clone(old.app.config.Secrets()), next.app.config.Secrets()...)))
	r.mu.Lock()
	r.current = next
	r.mu.Unlock()
	r.ended.Go(old.close)
	next.app.log.Info("the settings were read again")
}

// close waits for what was begun.
func (g *generation) close() {
	g.users.Wait()
	g.pusher.Close()
	if err := g.fetcher.Close(); err != nil {
		g.app.log.Warn("what was fetched ahead is left", "error", err)
	}
	g.app.close()
}

func (r *resident) close() {
	r.ended.Wait()
	r.current.close()
}

// use gives a request the settings as they are now, and the working directory where it belongs: the data directory may have been made anew.
func (r *resident) use() (g *generation, done func(), err error) {
	if err := os.Chdir(r.data); err != nil {
		return nil, nil, fmt.Errorf("cannot enter the data directory: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current.users.Add(1)
	return r.current, r.current.users.Done, nil
}

// failed tells the log what a client is not told.
func (r *resident) failed(what string, err error) {
	text := printableError(err.Error())
	for _, advice := range hint.Of(err) {
		text += "; hint: " + printableError(advice)
	}
	r.log().Error(what, "error", text)
}

// Check implements daemon.Handler.
func (r *resident) Check(hello []byte) error {
	theirs, ok := wire.ParsePlace(hello)
	if !ok {
		return nil
	}
	var st unix.Stat_t
	err := unix.Stat(filepath.Join(r.data, pgWAL), &st)
	if err == nil && (theirs != wire.Place{Device: st.Dev, Inode: st.Ino}) {
		err = fmt.Errorf("the client runs in another data directory than %s: its command names the socket of another cluster's daemon", r.data)
	}
	if err != nil {
		r.failed("a client is refused", err)
	}
	return err
}

// Push implements daemon.Handler.
func (r *resident) Push(ctx context.Context, name string) error {
	g, done, err := r.use()
	if err == nil {
		defer done()
		err = g.push(ctx, name)
	}
	if err != nil {
		r.failed("a file was not archived", err)
	}
	return err
}

func (g *generation) push(ctx context.Context, name string) error {
	if err := bareName(name); err != nil {
		return fmt.Errorf("cannot archive a file: %w", err)
	}
	limit := g.app.config.WAL.DaemonPushTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("archiving %s took longer than %s (WALG_DAEMON_WAL_UPLOAD_TIMEOUT)", name, limit))
	defer cancel()
	return g.pusher.Push(ctx, filepath.Join(pgWAL, name))
}

// Fetch implements daemon.Handler.
func (r *resident) Fetch(ctx context.Context, name, dest string) error {
	g, done, err := r.use()
	if err == nil {
		defer done()
		err = r.fetch(ctx, g, name, dest)
	}
	if errors.Is(err, archive.ErrAbsent) {
		g.app.log.Info("not in the archive", "action", "wal-fetch", "seg", name, "state", "absent")
		return daemon.ErrAbsent
	}
	if err != nil {
		r.failed("a file was not fetched", err)
	}
	return err
}

func (r *resident) fetch(ctx context.Context, g *generation, name, dest string) error {
	if err := bareName(name); err != nil {
		return fmt.Errorf("cannot fetch a file: %w", err)
	}
	dest, err := r.inside(dest)
	if err != nil {
		return fmt.Errorf("cannot fetch %s: %w", name, err)
	}
	if g.noReader != nil {
		return fmt.Errorf("cannot fetch %s: %w", name, g.noReader)
	}
	leave, err := r.arrive(ctx, dest)
	if err != nil {
		return fmt.Errorf("cannot fetch %s: %w", name, err)
	}
	defer leave()
	return g.fetcher.Fetch(ctx, g.app.fetchOptions(name, dest))
}

// berth is where one fetch at a time puts its file.
type berth struct {
	free  chan struct{} // holds something while it is taken
	users int
}

// arrive waits until no other fetch has the destination: one whose client is gone is being broken off, and must not come to its end later than
// what is asked for now.
func (r *resident) arrive(ctx context.Context, dest string) (leave func(), err error) {
	r.destMu.Lock()
	d := r.dests[dest]
	if d == nil {
		d = &berth{free: make(chan struct{}, 1)}
		r.dests[dest] = d
	}
	d.users++
	r.destMu.Unlock()
	release := func() {
		r.destMu.Lock()
		defer r.destMu.Unlock()
		if d.users--; d.users == 0 {
			delete(r.dests, dest)
		}
	}
	select {
	case d.free <- struct{}{}:
		return func() { <-d.free; release() }, nil
	case <-ctx.Done():
		release()
		return nil, context.Cause(ctx)
	}
}

// bareName tells whether a name that a client sent is that of a file in a directory.
func bareName(name string) error {
	const longest = 255 // NAME_MAX
	if name == "" || len(name) > longest || name[0] == '.' || strings.ContainsFunc(name, func(c rune) bool { return c == '/' || invisible(c) }) {
		return fmt.Errorf("%q is no name of a WAL file", printable(name, longest))
	}
	return nil
}

// inside is a destination as a path from the data directory; an error where it does not lie in there, or in a pg_wal that is a link.
func (r *resident) inside(dest string) (string, error) {
	bad := fmt.Errorf("the destination %q does not lie in the data directory %s", printable(dest, wire.MaxBody), r.data)
	if strings.ContainsRune(dest, 0) {
		return "", bad
	}
	data, err := filepath.EvalSymlinks(r.data)
	if err != nil {
		return "", err
	}
	relative := filepath.Clean(dest)
	for _, root := range []string{r.data, data} {
		if rel, err := filepath.Rel(root, relative); filepath.IsAbs(relative) && err == nil && filepath.IsLocal(rel) {
			relative = rel
		}
	}
	if !filepath.IsLocal(relative) || relative == "." {
		return "", bad
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(data, filepath.Dir(relative)))
	if err != nil {
		return "", err
	}
	if rel, err := filepath.Rel(data, dir); err == nil && filepath.IsLocal(rel) {
		return relative, nil
	}
	if wal, err := filepath.EvalSymlinks(filepath.Join(data, pgWAL)); err != nil || wal != dir {
		return "", errors.Join(bad, err)
	}
	return relative, nil
}
