package cli

import (
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"gitlab.com/walden-pg/walden/internal/archive"
	"gitlab.com/walden-pg/walden/internal/backup"
	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/config"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/restore"
	"gitlab.com/walden-pg/walden/internal/retention"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// Exit codes of WAL-E (WAL-E format, "Exit codes"). Those of walden that mean success with a fault are failures here, as WAL-E
// has no others; only exitStopRecovery stays, since PostgreSQL would take any code of WAL-E's for the end of the archive.
const (
	walEUsage     = 2
	walENoCommand = 127
)

// walE is WAL-E's command line: its commands, the positions and abbreviations of its options, the form of its list and of its
// log. What the commands do is what walden does under any name.
type walE struct {
	terse bool
	root  walEOptions

	kind   config.Kind
	object walEObject // of wal-push and wal-fetch
	dest   string     // of wal-fetch
	began  time.Time
}

// walEOptions are those that stand before the command.
type walEOptions struct {
	keyID, account, gpgKeyID, gsKeyID          string
	instanceProfile                            bool
	s3Prefix, wabsPrefix, gsPrefix, filePrefix string
}

// failure is an error that WAL-E has words for.
type failure struct {
	error
	message, detail string
}

func (f *failure) Unwrap() error { return f.error }

func asFailure(err error) (*failure, bool) {
	var f *failure
	ok := errors.As(err, &f)
	return f, ok
}

// inWordsOfWALE gives an error the words by which it is searched for.
func inWordsOfWALE(err error, message, detail string) error {
	if err == nil {
		err = errors.New(message)
	}
	return &failure{err, message, detail}
}

// exitCode implements personality.
func (w *walE) exitCode(err error) int {
	var wrong *usageError
	switch code := exitCode(err); {
	case code == exitStopRecovery, code == walENoCommand:
		return code
	case errors.As(err, &wrong), isOfOptions(err):
		return walEUsage
	}
	return exitError
}

// isOfOptions tells of errors in options before the command, which cobra hands on as they are.
func isOfOptions(err error) bool {
	var (
		unknown *pflag.NotExistError
		lacking *pflag.ValueRequiredError
		wrong   *pflag.InvalidValueError
		syntax  *pflag.InvalidSyntaxError
	)
	return errors.As(err, &unknown) || errors.As(err, &lacking) || errors.As(err, &wrong) || errors.As(err, &syntax)
}

// command builds WAL-E's tree of commands. Options belong to the command that they stand behind, and to no other.
func (w *walE) command(a *app) *cobra.Command {
	a.flags = map[string]string{}
	root := &cobra.Command{
		Use:   "wal-e",
		Short: "WAL-E's command line, for a link to walden that is called wal-e",
		Long: "Options stand before the command, those of a command behind it, and may be shortened as long as they are distinct.\n" +
			"Settings come from the environment (WALE_…, AWS_…, PG…), usually by envdir.",
		Args:             cobra.ArbitraryArgs,
		TraverseChildren: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &exit{usage(cmd, "cannot run wal-e: no command given"), walENoCommand}
			}
			return usage(cmd, "cannot run %q: there is no such command", args[0])
		},
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true})
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, "cannot run %s: %w", cmd.Name(), err) })
	f := root.Flags()
	f.StringVarP(&w.root.keyID, "aws-access-key-id", "k", "", "`key` for S3, in place of AWS_ACCESS_KEY_ID")
	f.BoolVar(&w.root.instanceProfile, "aws-instance-profile", false, "take credentials from the role of the machine")
	f.StringVar(&w.root.gsKeyID, "gs-access-key-id", "", "accepted, without effect, as in WAL-E: `key`")
	f.StringVarP(&w.root.account, "wabs-account-name", "a", "", "storage `account` of Azure, in place of WABS_ACCOUNT_NAME")
	f.StringVar(&w.root.s3Prefix, "s3-prefix", "", "`prefix` of the archive, as WALE_S3_PREFIX")
	f.StringVar(&w.root.wabsPrefix, "wabs-prefix", "", "`prefix` of the archive, as WALE_WABS_PREFIX")
	f.StringVar(&w.root.gsPrefix, "gs-prefix", "", "`prefix` of the archive, as WALE_GS_PREFIX")
	f.StringVar(&w.root.filePrefix, "file-prefix", "", "`prefix` of the archive, as WALE_FILE_PREFIX")
	f.StringVar(&w.root.gpgKeyID, "gpg-key-id", "", "`key` to encrypt for, as WALE_GPG_KEY_ID")
	f.BoolVar(&w.terse, "terse", false, "log warnings and errors only")
	root.AddCommand(w.version(a), w.backupPush(a), w.backupFetch(a), w.backupList(a), w.walPush(a), w.walFetch(a), w.walPrefetch(a), w.delete(a))
	root.SetGlobalNormalizationFunc(completeOption)
	return root
}

// completeOption gives an abbreviated option its full name, if there is only one that it can be.
func completeOption(f *pflag.FlagSet, name string) pflag.NormalizedName {
	var found []string
	exact := false
	f.VisitAll(func(o *pflag.Flag) {
		exact = exact || o.Name == name
		if strings.HasPrefix(o.Name, name) {
			found = append(found, o.Name)
		}
	})
	if !exact && len(found) == 1 {
		return pflag.NormalizedName(found[0])
	}
	return pflag.NormalizedName(name)
}

// load reads the settings as WAL-E's options and variables have them.
func (w *walE) load(a *app, cmd *cobra.Command) error {
	if w.root.keyID != "" && w.root.instanceProfile {
		return usage(cmd, "cannot use -k and --aws-instance-profile together")
	}
	for setting, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": w.root.keyID, "WABS_ACCOUNT_NAME": w.root.account, "WALE_GPG_KEY_ID": w.root.gpgKeyID,
	} {
		if value != "" {
			a.flags[setting] = value
		}
	}
	if err := w.choosePrefix(a); err != nil {
		return err
	}
	everySegment := strings.HasPrefix(cmd.Name(), "wal-")
	if err := a.load(everySegment); err != nil {
		return err
	}
	w.kind = a.config.Storage.Kind
	if w.kind == config.KindS3 && a.config.S3.Endpoint == "" && a.config.S3.SSE == "" && !a.config.S3.SSECustomerKey.IsSet() {
		a.config.S3.SSE = "AES256" // WAL-E asks AWS for it with every object, and buckets' policies may insist
	}
	if !everySegment {
		a.log.Info("starting WAL-E", walEDetail, fmt.Sprintf("The subcommand is %q.", cmd.Name()))
	}
	if w.kind == config.KindNone {
		return hint.With(inWordsOfWALE(nil, "no storage prefix defined", ""),
			"Either set one of the --file-prefix, --gs-prefix, --s3-prefix or --wabs-prefix options or define one of the WALE_FILE_PREFIX, "+
				"WALE_GS_PREFIX, WALE_S3_PREFIX, WALE_SWIFT_PREFIX or WALE_WABS_PREFIX, environment variables.")
	}
	return nil
}

// walEPrefixes are the settings that the schemes of WAL-E's prefixes stand for.
var walEPrefixes = map[string]string{
	"s3": "WALG_S3_PREFIX", "gs": "WALG_GS_PREFIX", "file": "WALG_FILE_PREFIX", "wabs": "WALG_AZ_PREFIX", "swift": "WALG_SWIFT_PREFIX",
}

// choosePrefix finds the prefix as WAL-E does: options, then variables, each in WAL-E's order; its scheme decides. Where neither
// has one, a configuration file may.
func (w *walE) choosePrefix(a *app) error {
	prefix := cmp.Or(w.root.filePrefix, w.root.gsPrefix, w.root.s3Prefix, w.root.wabsPrefix)
	for _, kind := range []string{"FILE", "GS", "S3", "SWIFT", "WABS"} {
		prefix = cmp.Or(prefix, variable(a.process.Environ, "WALE_"+kind+"_PREFIX"))
	}
	if prefix == "" {
		return nil
	}
	scheme, rest, ok := strings.Cut(prefix, "://")
	setting := walEPrefixes[scheme]
	if !ok || setting == "" {
		return inWordsOfWALE(nil, "bad prefix", "The prefix must begin with s3://, gs://, file://, wabs:// or swift://.")
	}
	for _, other := range []string{
		"WALG_OSS_PREFIX", "WALG_S3_PREFIX", "WALG_FILE_PREFIX", "WALG_GS_PREFIX", "WALG_AZ_PREFIX", "WALG_SWIFT_PREFIX", "WALG_SSH_PREFIX",
	} {
		a.flags[other] = ""
	}
	switch scheme {
	case "wabs":
		prefix = "azure://" + rest
	case "gs":
		// WAL-E's objects in GCS have a slash before their names (WAL-E format, "Object names per store").
		bucket, path, _ := strings.Cut(rest, "/")
		prefix = "gs://" + bucket + "//" + strings.Trim(path, "/")
		if variable(a.process.Environ, "GCS_NORMALIZE_PREFIX") == "" {
			a.flags["GCS_NORMALIZE_PREFIX"] = "false"
		}
	}
	a.flags[setting] = prefix
	return nil
}

// variable returns what the environment holds under a name, as config reads it.
func variable(environ []string, name string) string {
	for _, entry := range environ {
		if key, value, _ := strings.Cut(entry, "="); key == name {
			return strings.TrimRight(value, "\r\n")
		}
	}
	return ""
}

func (w *walE) version(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print walden's version", Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(a.process.Stdout, "walden %s\n", a.process.Version)
			return err
		},
	}
}

func (w *walE) backupPush(a *app) *cobra.Command {
	var pool, rate int
	var offline bool
	cmd := &cobra.Command{
		Use: "backup-push DIR", Short: "Take a base backup of the running cluster", Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := atLeastOne(cmd, "pool-size", pool); err != nil {
				return err
			}
			if rate > 0 {
				a.flags["WALG_DISK_RATE_LIMIT"] = strconv.Itoa(rate)
			}
			if err := w.load(a, cmd); err != nil {
				return err
			}
			if offline {
				return hint.With(errors.New("cannot take a backup of a stopped cluster: this version of walden backs up running ones only"),
					"start the cluster and leave out --while-offline")
			}
			if cmd.Flags().Changed("pool-size") {
				a.config.Backup.DiskConcurrency = pool
			}
			return a.runBackupPush(cmd.Context(), backup.Options{DataDir: args[0], Verify: a.config.Backup.VerifyPages, NoRelations: a.config.Backup.NoRelations}, false)
		},
	}
	f := cmd.Flags()
	f.IntVarP(&pool, "pool-size", "p", 0, "`number` of parts that are read, compressed and uploaded at once; by default one per processor")
	f.IntVar(&rate, "cluster-read-rate-limit", 0, "bytes per second that are read from disk at most (`number`)")
	f.BoolVar(&offline, "while-offline", false, "refused: the cluster has to run")
	return cmd
}

func atLeastOne(cmd *cobra.Command, option string, n int) error {
	if n < 1 && cmd.Flags().Changed(option) {
		return usage(cmd, "cannot use --%s %d: expected at least 1", option, n)
	}
	return nil
}

func (w *walE) backupFetch(a *app) *cobra.Command {
	var pool int
	var blind bool
	var spec string
	cmd := &cobra.Command{
		Use: "backup-fetch DIR NAME|LATEST", Short: "Restore a base backup into an empty directory", Args: arguments(2, 2),
		Long: "Tablespaces go behind the links that are prepared in DIR/pg_tblspc, else where --restore-spec says, else where they were.\n" +
			"All links, those in tablespace_map as well, belong to DIR.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := atLeastOne(cmd, "pool-size", pool); err != nil {
				return err
			}
			if err := w.load(a, cmd); err != nil {
				return err
			}
			if _, err := os.Lstat(filepath.Join(args[0], "postmaster.pid")); err == nil {
				return inWordsOfWALE(nil, "attempting to overwrite a live data directory", "Found a postmaster lockfile, and cannot overwrite.")
			}
			if spec == "SOURCE" { // the places that the backup has recorded are where walden puts tablespaces anyway
				spec = ""
			}
			options, err := fetchOptions(args[0], spec, "", nil)
			if err != nil {
				return err
			}
			if base := options.Spec; base != nil && base.BasePrefix != "" && filepath.Clean(base.BasePrefix) != filepath.Clean(args[0]) {
				return hint.With(fmt.Errorf("cannot use the restore specification %s: its base_prefix is %s, and the backup is to go to %s", spec, base.BasePrefix, args[0]),
					"leave base_prefix out of the file: the directory is the one on the command line")
			}
			if cmd.Flags().Changed("pool-size") {
				a.config.Limits.DownloadConcurrency = pool
			}
			prepared, err := takeLinks(args[0], &options)
			if err != nil {
				return err
			}
			if err = a.runBackupFetch(cmd.Context(), args[1], "", options); err != nil {
				err = errors.Join(err, prepared.putBack())
			}
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, catalog.ErrNoBackups) {
				return inWordsOfWALE(err, "no backups found for fetching", fmt.Sprintf("No backup matching the query %s was able to be located.", args[1]))
			}
			return err
		},
	}
	f := cmd.Flags()
	f.IntVarP(&pool, "pool-size", "p", 0, "`number` of parts that are fetched at once; by default as WALG_DOWNLOAD_CONCURRENCY says")
	f.BoolVar(&blind, "blind-restore", false, "accepted, without effect: walden makes the links of tablespaces itself")
	f.StringVar(&spec, "restore-spec", "", "`file` that says where tablespaces go, or SOURCE for where they were")
	return cmd
}

// links are those that an operator has prepared for tablespaces, as WAL-E wants them: name in pg_tblspc and place.
type links struct {
	dir    string // pg_tblspc
	places map[uint32]string
	taken  bool
}

// takeLinks makes the links in a directory's pg_tblspc the places of tablespaces, unless a file says them. Where nothing else is in the
// directory, they are taken away until the restore makes them anew: it wants an empty one.
func takeLinks(dir string, o *restore.Options) (*links, error) {
	l := &links{dir: filepath.Join(dir, "pg_tblspc"), places: map[uint32]string{}}
	found, err := os.ReadDir(l.dir)
	if errors.Is(err, fs.ErrNotExist) || o.Spec != nil || err == nil && len(found) == 0 {
		return l, nil
	}
	if err != nil {
		return l, fmt.Errorf("cannot read the links of tablespaces: %w", err)
	}
	for _, e := range found {
		oid, err := strconv.ParseUint(e.Name(), 10, 32)
		place, linkErr := os.Readlink(filepath.Join(l.dir, e.Name()))
		if err != nil || linkErr != nil {
			return l, nil // no such links: the restore tells what it finds there
		}
		if !filepath.IsAbs(place) {
			place = filepath.Join(l.dir, place)
		}
		l.places[uint32(oid)] = place
	}
	o.Spec = &catalog.TablespaceSpec{BasePrefix: dir, Tablespaces: l.places}
	if others, err := os.ReadDir(dir); err != nil || len(others) != 1 {
		return l, err
	}
	l.taken = true
	if err := os.RemoveAll(l.dir); err != nil {
		return l, errors.Join(fmt.Errorf("cannot take the links of tablespaces away: %w", err), l.putBack())
	}
	return l, nil
}

// putBack restores the links after a restore that failed before it began.
func (l *links) putBack() error {
	if !l.taken {
		return nil
	}
	left, err := os.ReadDir(filepath.Dir(l.dir))
	if err != nil || len(left) > 0 {
		return nil //nolint:nilerr // a restore that began has left its own things there, and its own error
	}
	if err := os.Mkdir(l.dir, 0o700); err != nil {
		return fmt.Errorf("cannot put the links of tablespaces back: %w", err)
	}
	for oid, place := range l.places {
		if err := os.Symlink(place, filepath.Join(l.dir, strconv.FormatUint(uint64(oid), 10))); err != nil {
			return fmt.Errorf("cannot put the links of tablespaces back: %w", err)
		}
	}
	return nil
}

// walEBackup is a name that backup-list takes: of a backup of WAL-E, of WAL-G or of walden.
var walEBackup = regexp.MustCompile(`^base_[0-9A-F]{24}(_D_[0-9A-F]{24})?(_[0-9A-F]{8})?$`)

func (w *walE) backupList(a *app) *cobra.Command {
	var detail bool
	cmd := &cobra.Command{
		Use: "backup-list [NAME|LATEST]", Short: "List the backups of the archive", Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := w.load(a, cmd); err != nil {
				return err
			}
			query := ""
			if len(args) == 1 {
				query = args[0]
			}
			backups, err := w.find(cmd.Context(), a, query, detail)
			if err := walEList(a.process.Stdout, backups, detail, w.kind); err != nil {
				return err
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&detail, "detail", false, "with sizes and the end of the WAL that each backup needs")
	return cmd
}

// find returns the backups that a query of backup-list names; "" for all.
func (w *walE) find(ctx context.Context, a *app, query string, detail bool) ([]catalog.Backup, error) {
	if query != "" && query != "LATEST" && !walEBackup.MatchString(query) {
		return nil, inWordsOfWALE(nil, "invalid backup query submitted", fmt.Sprintf(`The submitted query operator was "%s."`, query))
	}
	c, err := a.checkedCatalog(ctx, toLook)
	if err != nil {
		return nil, err
	}
	backups, err := c.Backups(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range backups {
		if b.Problem != nil {
			a.log.Warn("the backup cannot be used", "backup", b.Name, "problem", b.Problem)
		}
	}
	switch query {
	case "":
	case "LATEST":
		latest, err := c.Find(ctx, query)
		if errors.Is(err, catalog.ErrNoBackups) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		backups = []catalog.Backup{latest}
	default:
		backups = slices.DeleteFunc(backups, func(b catalog.Backup) bool { return b.Name != query })
	}
	if detail {
		err = c.Details(ctx, backups)
	}
	return backups, err
}

// walEList prints the list in WAL-E's columns, with tabs between them and CR LF at the end of lines. What a column of WAL-E cannot
// say of a backup of walden or WAL-G stays empty.
func walEList(out io.Writer, backups []catalog.Backup, detail bool, kind config.Kind) error {
	w := csv.NewWriter(out)
	w.Comma, w.UseCRLF = '\t', true
	rows := [][]string{{
		"name", "last_modified", "expanded_size_bytes", "wal_segment_backup_start", "wal_segment_offset_backup_start",
		"wal_segment_backup_stop", "wal_segment_offset_backup_stop",
	}}
	for _, b := range backups {
		start, startOffset, stop, stopOffset := walERange(b)
		row := []string{b.Name, walETime(b.Modified, kind), "", start, startOffset, "", ""}
		if detail && b.Problem == nil {
			row[2], row[5], row[6] = strconv.FormatInt(b.UncompressedSize, 10), stop, stopOffset
		}
		for i := range row {
			row[i] = printable(row[i], maxCell)
		}
		rows = append(rows, row)
	}
	return w.WriteAll(rows)
}

// walETime prints a sentinel's time as WAL-E does for each kind of storage: as the store's library had it.
func walETime(t time.Time, kind config.Kind) string {
	t = t.UTC()
	switch kind {
	case config.KindS3:
		return t.Format("2006-01-02T15:04:05.000Z")
	case config.KindGCS, config.KindAzure:
		return t.Format("2006-01-02 15:04:05.000000+00:00")
	}
	if t.Nanosecond() < int(time.Microsecond) {
		return t.Format("2006-01-02T15:04:05")
	}
	return t.Format("2006-01-02T15:04:05.000000")
}

// walERange is where the WAL that a backup needs begins and ends, as WAL-E writes it: names of segments, and decimal offsets in
// them. What is not recorded is "".
func walERange(b catalog.Backup) (start, startOffset, stop, stopOffset string) {
	if w := b.WALE; w != nil {
		return w.StartSegment, w.StartOffset, w.StopSegment, w.StopOffset
	}
	start = b.WALFile()
	if m := walEBackup.FindStringSubmatch(b.Name); m != nil && m[2] != "" {
		startOffset = m[2][1:]
	}
	size := segmentSize(start, b.StartLSN)
	if size == 0 {
		return start, startOffset, "", ""
	}
	first, err := wal.ParseSegment(start, size)
	if err != nil {
		return start, startOffset, "", ""
	}
	offset := func(lsn wal.LSN) string { return fmt.Sprintf("%08d", int64(lsn)%size) }
	return start, offset(b.StartLSN), wal.SegmentAt(first.Timeline, b.FinishLSN, size).Name(size), offset(b.FinishLSN)
}

// segmentSize finds the size of segments with which the segment called name contains lsn; 0 if there is none.
func segmentSize(name string, lsn wal.LSN) int64 {
	const smallest, largest = 1 << 20, 1 << 30
	for size := int64(smallest); size <= largest; size *= 2 {
		if s, err := wal.ParseSegment(name, size); err == nil && lsn != 0 && wal.SegmentAt(s.Timeline, lsn, size) == s {
			return size
		}
	}
	return 0
}

func (w *walE) walPush(a *app) *cobra.Command {
	var pool int
	cmd := &cobra.Command{
		Use: "wal-push PATH", Short: "Archive one WAL file (archive_command)", Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			shortLived()
			if err := atLeastOne(cmd, "pool-size", pool); err != nil {
				return err
			}
			if err := w.load(a, cmd); err != nil {
				return err
			}
			c, method, err := a.openCatalog(cmd.Context(), toEncrypt)
			if err != nil {
				return err
			}
			w.object = objectIn(a.config.Storage, args[0], method.Extension())
			err = archive.Push(cmd.Context(), archive.Deps{Catalog: forOneSegment(c, method), Log: a.log}, archive.PushOptions{Path: args[0], Timeout: a.config.WAL.Timeout})
			if _, lost := os.Stat(args[0]); err != nil && errors.Is(lost, fs.ErrNotExist) {
				return inWordsOfWALE(err, "could not find file for wal-push", fmt.Sprintf("The operating system reported: No such file or directory '%s'", args[0]))
			}
			return err
		},
	}
	cmd.Flags().IntVarP(&pool, "pool-size", "p", 0, "accepted, without effect: each call archives the file that PostgreSQL names (`number`)")
	return cmd
}

func (w *walE) walFetch(a *app) *cobra.Command {
	var prefetch int
	cmd := &cobra.Command{
		Use: "wal-fetch NAME DESTINATION", Short: "Fetch one WAL file from the archive (restore_command)",
		Long: "Exit codes: 0 fetched; 1 the archive does not hold the file, or an error; 200 it could not be found out, or the file is damaged,\n" +
			"while PostgreSQL is in archive recovery, which makes the server stop instead of coming up on old data.",
		Args: func(cmd *cobra.Command, args []string) error { return notAbsent(arguments(2, 2)(cmd, args), ".") },
		RunE: func(cmd *cobra.Command, args []string) error {
			endBySignal()
			shortLived()
			err := w.runWALFetch(a, cmd, args[0], args[1], prefetch)
			if errors.Is(err, archive.ErrAbsent) {
				a.log.Info("could no longer locate object while performing wal restore", walELogger, w.storeLogger(),
					walEDetail, fmt.Sprintf("The absolute URI that could not be located is %s.", w.object.key),
					walEHint, "This can be normal when Postgres is trying to detect what timelines are available during restoration.")
				return &exit{errSilent, exitError}
			}
			return notAbsent(err, args[1])
		},
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return notAbsent(usage(cmd, "cannot run %s: %w", cmd.Name(), err), ".")
	})
	cmd.Flags().IntVarP(&prefetch, "prefetch", "p", walEPrefetch, "`number` of segments that are fetched before PostgreSQL asks for them, at most; 0 for none")
	return cmd
}

// walEPrefetch is WAL-E's default of how many segments are fetched ahead.
const walEPrefetch = 8

func (w *walE) runWALFetch(a *app, cmd *cobra.Command, name, dest string, ahead int) error {
	if err := w.load(a, cmd); err != nil {
		return err
	}
	method, err := a.openCodec()
	if err != nil {
		return err
	}
	w.object, w.dest = objectIn(a.config.Storage, name, method.Extension()), dest
	return a.fetchWAL(cmd.Context(), name, dest, ahead)
}

func (w *walE) walPrefetch(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "wal-prefetch BASEDIR NAME", Short: "Fetch the segments behind NAME before PostgreSQL asks for them; wal-fetch does so by itself",
		Args: arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := w.load(a, cmd); err != nil {
				return err
			}
			return a.runPrefetch(cmd, args[1], filepath.Join(args[0], "pg_wal", "RECOVERYXLOG"), walEPrefetch)
		},
	}
}

// delete is WAL-E's, with walden's rules for what may go: backups of walden and WAL-G count, and what stays can be restored.
func (w *walE) delete(a *app) *cobra.Command {
	forms := map[string]int{"before": 1, "retain": 1, "old-versions": 0, "everything": 0} // and the number of their arguments
	var dry, confirm bool
	cmd := &cobra.Command{
		Use: "delete before NAME|retain NUMBER|old-versions|everything", Short: "Delete what is older than a backup",
		Long: "Says what would be deleted, unless --confirm is given. NAME is a backup or a segment, which need not be there. old-versions deletes nothing\n" +
			"and fails.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				if n, ok := forms[args[0]]; ok && len(args) == 1+n {
					return nil
				}
			}
			return usage(cmd, "cannot run delete: the command is `%s`, with its options before the word that follows it", cmd.UseLine())
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			r := retention.Request{Verb: retention.Verb(args[0]), Modifier: retention.FindFull}
			switch args[0] {
			case "old-versions":
				return errors.New("cannot run delete old-versions: there are no old versions of the format in an archive, nothing was deleted")
			case "retain":
				n, err := strconv.Atoi(args[1])
				if err != nil || n < 1 {
					return usage(cmd, "cannot run delete: %q is not the number of backups that are to stay, at least 1", args[1])
				}
				r.Count = n
			case "before":
				if _, _, ok := catalog.PositionOf(strings.TrimPrefix(args[1], "base_")); !ok {
					return usage(cmd, "cannot run delete: %q is the name of no backup and of no segment", args[1])
				}
				r.Point = args[1]
			}
			if err := w.load(a, cmd); err != nil {
				return err
			}
			return w.runDelete(cmd.Context(), a, r, dry || !confirm)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&dry, "dry-run", "n", false, "delete nothing, whatever else is said")
	cmd.Flags().BoolVar(&confirm, "confirm", false, "delete, instead of saying what would be deleted")
	return cmd
}

func (w *walE) runDelete(ctx context.Context, a *app, r retention.Request, dry bool) error {
	c, inv, err := a.lookAtAll(ctx, toLook)
	if err != nil {
		return err
	}
	if r.Verb == retention.Before {
		if r.Point = oldestFrom(inv.Backups, r.Point); r.Point == "" {
			a.log.Info("no backup is that new, nothing is deleted")
			return nil
		}
	}
	plan, err := retention.New(&inv, r, time.Now())
	if err != nil {
		return err
	}
	begun, advice := "deleting data in the store", ""
	if dry {
		begun, advice = "performing dry run of data deletion", "This is only a dry run -- no actual data is being deleted"
	}
	a.log.Info(begun)
	for _, d := range plan.Backups {
		if d.Goes {
			a.log.Info("deleting a base backup", walEDetail, fmt.Sprintf("The backup being deleted is %s.", d.Backup.Name), walEHint, advice)
		}
	}
	if n := len(plan.WAL); n > 0 {
		detail := fmt.Sprintf("The files being deleted are %d, from %s to %s.", n, plan.WAL[0].Name, plan.WAL[n-1].Name)
		a.log.Info("deleting wal files", walEDetail, detail, walEHint, advice)
	}
	if dry {
		return nil
	}
	if err := plan.Apply(ctx, retention.Deps{Catalog: c, Log: a.log}); err != nil {
		return failedDeletion(err)
	}
	return nil
}

// oldestFrom finds the first backup in the list that does not begin before the segment that a name tells of. As in WAL-E, timelines
// do not count.
func oldestFrom(backups []catalog.Backup, name string) string {
	_, from, _ := catalog.PositionOf(strings.TrimPrefix(name, "base_"))
	for _, b := range backups {
		if _, first, ok := b.First(); ok && b.Problem == nil && (first >= from || b.Name == name) {
			return b.Name
		}
	}
	return ""
}
