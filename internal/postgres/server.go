// Package postgres speaks to a running PostgreSQL server, as far as a backup needs it.
//
// A [Server] is one session with one server. Its [Info] is what the server says of itself. EnterBackupMode turns the
// session into one that takes a backup, a [BackupMode], which ends with Finish or with Leave; [Start] and [Stop] are
// what the server told at both ends. [Database] and [Relation] name what a backup holds.
//
// The package promises that it speaks to the server that was named and to no other, that a backup which did not
// finish leaves no server in backup mode, that every wait has a limit, and that no password gets into an error, a
// log or a formatted value.
package postgres

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"gitlab.com/walden-pg/walden/internal/wal"
)

const (
	defaultConnectTimeout = 30 * time.Second
	defaultStopTimeout    = 10 * time.Minute
	defaultAliveInterval  = time.Minute
	defaultAnswerTimeout  = time.Minute
	leaveLimit            = 10 * time.Second // how long the end of a session may take
)

// Options say how to reach a server. Empty connection fields take libpq's defaults, that is the libpq environment
// variables, the service and password files, then built-in values; the database's default is postgres.
type Options struct {
	Host     string // name, address or socket directory; of exactly one server
	Port     int
	User     string
	Password string
	PassFile string
	Database string

	SSLMode     string
	SSLCert     string
	SSLKey      string
	SSLRootCert string

	AppName string // application_name; "walden" if neither this nor PGAPPNAME is set

	ConnectTimeout time.Duration // for each address of the host; 0: PGCONNECT_TIMEOUT, else 30 s
	StopTimeout    time.Duration // statement_timeout of the function that ends a backup; 0: 10 min
	AliveInterval  time.Duration // between two checks that the backup's session still stands; 0: 1 min
	AnswerTimeout  time.Duration // for the answer to a question about the server's state; 0: 1 min

	AllowBeta bool         // also take backups of versions newer than the newest known one
	Log       *slog.Logger // nil: silence
}

func (o Options) answerTimeout() time.Duration {
	if o.AnswerTimeout > 0 {
		return o.AnswerTimeout
	}
	return defaultAnswerTimeout
}

// String names the server and the role, not the password.
func (o Options) String() string {
	return fmt.Sprintf("host=%s port=%d user=%s database=%s sslmode=%s", o.Host, o.Port, o.User, o.Database, o.SSLMode)
}

// GoString is String, for %#v.
func (o Options) GoString() string { return o.String() }

// LogValue is String, for slog.
func (o Options) LogValue() slog.Value { return slog.StringValue(o.String()) }

// Info is what a server says of itself, read once when the session began.
type Info struct {
	VersionNum       int // server_version_num, for example 150020
	Major            int // 15
	SystemIdentifier uint64
	DataDirectory    string // as the server names it; on the server's machine
	Timeline         wal.Timeline
	InRecovery       bool
	WALSegmentSize   int64 // bytes
	BlockSize        int64 // bytes
	DataChecksums    bool
	FullPageWrites   bool
	WALLevel         string
	ArchiveMode      string // "off", "on" or "always"
	ArchiveCommand   string // empty if archive_mode is off
	ArchiveLibrary   string
	PostmasterStart  time.Time
}

// Server is one session with a PostgreSQL server. Its methods may be called concurrently; they take turns. A query
// whose context ends closes the session, since the server's answer can no longer be told from the next one's.
type Server struct {
	options Options
	name    string // host and port, for messages
	conn    *pgx.Conn
	turn    chan struct{} // holds one value while somebody uses conn
	info    Info
	log     *slog.Logger

	mode   *BackupMode // guarded by turn; the backup in progress
	closed bool        // guarded by turn
}

// Connect opens a session with the server that o names and reads its Info. Only that server is tried: there is no
// other address to fall back to, and a list of hosts is refused, because a backup of another cluster is worse than
// none. Versions outside of 13 to 18 are refused; Options.AllowBeta admits newer ones. Errors carry a hint where the
// operator can do something.
func Connect(ctx context.Context, o Options) (*Server, error) {
	config, err := o.parse(o.Database)
	if err != nil {
		return nil, err
	}
	conn, err := o.openSession(ctx, config)
	if err != nil {
		return nil, err
	}
	s := &Server{
		options: o, name: address(config), conn: conn, turn: make(chan struct{}, 1), log: o.Log,
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	err = limited(ctx, o.answerTimeout(), func(ctx context.Context) error {
		s.info, err = readInfo(ctx, conn)
		return err
	})
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("cannot read the state of the PostgreSQL server at %s: %w", s.name, err)
	}
	// Before anybody looks at files of a version that is not known, and complains of those.
	if err := s.checkVersion(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Info returns what the server said of itself when the session began.
func (s *Server) Info() Info { return s.info }

// String names the server for messages, for example "PostgreSQL 15.20 at /var/run/postgresql:5432".
func (s *Server) String() string {
	return fmt.Sprintf("PostgreSQL %d.%d at %s", s.info.Major, s.info.VersionNum%10000, s.name)
}

// GoString is String, for %#v.
func (s *Server) GoString() string { return s.String() }

// Close ends the session and, if a backup is in progress, loses that and ends the server's backup mode. It waits until the server has
// let go of the session, but no longer than ten seconds. Closing twice is harmless.
func (s *Server) Close() {
	deadline := time.Now().Add(leaveLimit)
	timer := time.NewTimer(leaveLimit)
	defer timer.Stop()

	pg := s.conn.PgConn()
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-timer.C:
		_ = pg.Conn().Close() // makes the query that holds the session fail
		return
	}
	if s.closed {
		return
	}
	s.closed = true
	// The server ends its backup mode as the session's process exits, and only then the connection: reading to the
	// end of the stream proves that backup mode has ended.
	session, err := pg.Hijack()
	if err != nil { // an interrupted query has closed it; pgx is waiting for the server's end of it
		select {
		case <-pg.CleanupDone():
		case <-timer.C:
			_ = pg.Conn().Close()
		}
		return
	}
	defer func() { _ = session.Conn.Close() }()
	if err := session.Conn.SetDeadline(deadline); err != nil {
		return
	}
	session.Frontend.Send(&pgproto3.Terminate{})
	if err := session.Frontend.Flush(); err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, session.Conn) // a reset connection has ended as well
}

// query takes the session's turn and runs one query that returns one row into dest.
func (s *Server) query(ctx context.Context, dest []any, sql string, args ...any) error {
	return s.use(ctx, s.options.answerTimeout(), func(ctx context.Context, conn *pgx.Conn) error {
		return serverError(conn.QueryRow(ctx, sql, args...).Scan(dest...))
	})
}

// use calls f with the session while nobody else uses it, and for no longer than limit.
func (s *Server) use(ctx context.Context, limit time.Duration, f func(ctx context.Context, conn *pgx.Conn) error) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.conn.IsClosed() {
		return errEnded
	}
	return limited(ctx, limit, func(ctx context.Context) error { return f(ctx, s.conn) })
}

// limited calls f and says, if it had no answer within limit, just that.
func limited(ctx context.Context, limit time.Duration, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, withHint(
		fmt.Errorf("no answer from the server within %s", limit), "look at the network between here and there, and at the server's log"))
	defer cancel()
	err := f(ctx)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Archiver is the state of the server's own WAL archiving (pg_stat_archiver). Names are empty and times zero for what
// has not happened since the statistics were reset.
type Archiver struct {
	ArchivedCount    int64
	LastArchivedWAL  string
	LastArchivedTime time.Time
	FailedCount      int64
	LastFailedWAL    string
	LastFailedTime   time.Time
}

// Archiver reads how WAL archiving goes.
func (s *Server) Archiver(ctx context.Context) (Archiver, error) {
	var a Archiver
	var archived, failed *time.Time
	err := s.query(ctx, []any{&a.ArchivedCount, &a.LastArchivedWAL, &archived, &a.FailedCount, &a.LastFailedWAL, &failed},
		`SELECT archived_count, coalesce(last_archived_wal, ''), last_archived_time,
		        failed_count, coalesce(last_failed_wal, ''), last_failed_time
		 FROM pg_catalog.pg_stat_archiver`)
	if err != nil {
		return Archiver{}, fmt.Errorf("cannot read pg_stat_archiver: %w", err)
	}
	if archived != nil {
		a.LastArchivedTime = archived.UTC()
	}
	if failed != nil {
		a.LastFailedTime = failed.UTC()
	}
	return a, nil
}

// parse makes the connection settings for one database of the server.
func (o Options) parse(database string) (*pgx.ConnConfig, error) {
	var settings strings.Builder
	for _, s := range []struct{ key, value string }{
		{"host", o.Host}, {"user", o.User}, {"passfile", o.PassFile}, {"dbname", database},
		{"sslmode", o.SSLMode}, {"sslcert", o.SSLCert}, {"sslkey", o.SSLKey}, {"sslrootcert", o.SSLRootCert},
		{"application_name", o.AppName},
	} {
		if s.value != "" {
			value := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s.value)
			fmt.Fprintf(&settings, "%s='%s' ", s.key, value)
		}
	}
	if o.Port != 0 {
		fmt.Fprintf(&settings, "port=%d ", o.Port)
	}
	// The password stays out of the settings' text, which errors quote.
	config, err := pgx.ParseConfig(settings.String())
	if err != nil {
		return nil, fmt.Errorf("cannot use the PostgreSQL connection settings: %w", err)
	}
	if config.Database == "" { // libpq would take the user's name; then again, so that the password file is asked right
		return o.parse("postgres")
	}
	if o.Password != "" {
		config.Password = o.Password
	}
	for _, other := range config.Fallbacks { // with sslmode=prefer the same server without TLS
		if other.Host != config.Host || other.Port != config.Port {
			return nil, withHint(
				fmt.Errorf("cannot choose between several PostgreSQL servers, %s and %s",
					address(config), net.JoinHostPort(other.Host, strconv.Itoa(int(other.Port)))),
				"name exactly one host and port (PGHOST, PGPORT): the one whose cluster is to be backed up")
		}
	}
	switch {
	case o.ConnectTimeout != 0:
		config.ConnectTimeout = o.ConnectTimeout
	case config.ConnectTimeout == 0:
		config.ConnectTimeout = defaultConnectTimeout
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "walden"
	}
	config.RuntimeParams["client_encoding"] = "UTF8"
	config.DialFunc = (&net.Dialer{KeepAliveConfig: keepAlive}).DialContext
	// Prepared statements buy nothing for queries that run once, and connection poolers dislike them.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	return config, nil
}

// keepAlive finds out within two minutes that the other machine is gone, on both ends: see the tcp_ settings of
// openSession.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 10 * time.Second, Count: 6}

func address(config *pgx.ConnConfig) string {
	return net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))
}

// openSession connects and makes the session independent of settings of the role, the database and the server.
func (o Options) openSession(ctx context.Context, config *pgx.ConnConfig) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, connectError(config, err)
	}
	prepare, cancel := context.WithTimeout(ctx, o.answerTimeout())
	defer cancel()
	// Before the first query: with serializable transactions a standby answers none.
	if _, err = conn.Exec(prepare, "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED"); err == nil {
		err = setUp(prepare, conn)
	}
	if err != nil {
		closeConn(conn)
		return nil, fmt.Errorf("cannot prepare a session with the PostgreSQL server at %s: %w",
			address(config), serverError(err))
	}
	return conn, nil
}

func setUp(ctx context.Context, conn *pgx.Conn) error {
	// An empty search_path keeps everything but pg_catalog out of the names in our queries. No timeout of an
	// administrator's may end the session of a backup, which is idle for hours. The tcp_ settings make the server notice
	// that walden's machine is gone, and leave backup mode, within minutes and not after hours. Not every version knows
	// them all.
	_, err := conn.Exec(ctx, `
		SELECT pg_catalog.set_config(s.name, v.value, false)
		FROM (VALUES ('search_path', ''), ('statement_timeout', '0'), ('lock_timeout', '0'),
		             ('idle_in_transaction_session_timeout', '0'), ('idle_session_timeout', '0'),
		             ('transaction_timeout', '0'), ('tcp_keepalives_idle', '60'), ('tcp_keepalives_interval', '10'),
		             ('tcp_keepalives_count', '6'), ('tcp_user_timeout', '120000'), ('datestyle', 'ISO'), ('timezone', 'UTC'), ('bytea_output', 'hex')
		     ) AS v(name, value)
		JOIN pg_catalog.pg_settings AS s ON pg_catalog.lower(s.name) OPERATOR(pg_catalog.=) v.name`)
	return err
}

// closeConn ends a session that is in no backup.
func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), leaveLimit)
	defer cancel()
	_ = conn.Close(ctx) // nothing depends on it
}

func readInfo(ctx context.Context, conn *pgx.Conn) (Info, error) {
	var i Info
	var systemIdentifier, timeline int64
	err := conn.QueryRow(ctx, `
		SELECT pg_catalog.current_setting('server_version_num')::int,
		       (SELECT system_identifier FROM pg_catalog.pg_control_system()),
		       pg_catalog.pg_is_in_recovery(),
		       pg_catalog.pg_postmaster_start_time()`,
	).Scan(&i.VersionNum, &systemIdentifier, &i.InRecovery, &i.PostmasterStart)
	if err != nil {
		return Info{}, serverError(err)
	}
	i.Major = i.VersionNum / 10000
	i.SystemIdentifier = uint64(systemIdentifier)
	i.PostmasterStart = i.PostmasterStart.UTC()

	// The control file's timeline is that of the last checkpoint: after a promotion it lags until the next one, so
	// a primary is asked where it writes, and a standby also how far it has replayed.
	timelineSQL := `SELECT ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(
	                        pg_catalog.pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint`
	if i.InRecovery {
		timelineSQL = `SELECT GREATEST(c.timeline_id, r.min_recovery_end_timeline)::bigint
		               FROM pg_catalog.pg_control_checkpoint() AS c, pg_catalog.pg_control_recovery() AS r`
	}
	if err := conn.QueryRow(ctx, timelineSQL).Scan(&timeline); err != nil {
		return Info{}, fmt.Errorf("timeline: %w", serverError(err))
	}
	i.Timeline = wal.Timeline(timeline)

	settings, err := readSettings(ctx, conn)
	if err != nil {
		return Info{}, err
	}
	var ok bool
	if i.DataDirectory, ok = settings["data_directory"]; !ok {
		role := conn.Config().User
		return Info{}, withHint(fmt.Errorf("role %q may not read the setting data_directory", role),
			fmt.Sprintf("GRANT pg_read_all_settings TO %s; (pg_monitor includes it)", pgx.Identifier{role}.Sanitize()))
	}
	if i.WALSegmentSize, err = strconv.ParseInt(settings["wal_segment_size"], 10, 64); err != nil {
		return Info{}, fmt.Errorf("wal_segment_size: %w", err)
	}
	if i.BlockSize, err = strconv.ParseInt(settings["block_size"], 10, 64); err != nil {
		return Info{}, fmt.Errorf("block_size: %w", err)
	}
	i.DataChecksums = settings["data_checksums"] == "on"
	i.FullPageWrites = settings["full_page_writes"] == "on"
	i.WALLevel = settings["wal_level"]
	i.ArchiveMode = settings["archive_mode"]
	if i.ArchiveMode != "off" { // the server then shows "(disabled)"
		i.ArchiveCommand = settings["archive_command"]
	}
	i.ArchiveLibrary = settings["archive_library"]
	return i, nil
}

// readSettings reads those settings that the role may see, numbers in the view's units (bytes for those read here).
func readSettings(ctx context.Context, conn *pgx.Conn) (map[string]string, error) {
	rows, err := conn.Query(ctx, `
		SELECT name, setting FROM pg_catalog.pg_settings
		WHERE name IN ('data_directory', 'wal_segment_size', 'block_size', 'data_checksums', 'full_page_writes',
		               'wal_level', 'archive_mode', 'archive_command', 'archive_library')`)
	if err != nil {
		return nil, fmt.Errorf("settings: %w", serverError(err))
	}
	settings := make(map[string]string)
	var name, value string
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		settings[name] = value
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("settings: %w", serverError(err))
	}
	return settings, nil
}
