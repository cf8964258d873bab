package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// The versions whose backup functions walden knows.
const (
	oldestMajor = 13
	newestMajor = 18
)

// lockClass and lockObject are the two keys of the advisory lock that a session holds while it takes a backup:
// "wald" and "back" in ASCII.
const (
	lockClass  = 0x77616c64
	lockObject = 0x6261636b
)

// minPingLimit is the shortest time in which the server must answer a ping, however short the interval.
const minPingLimit = 30 * time.Second

// startLimit bounds the start of a backup, which waits for a checkpoint of all that is dirty in shared_buffers.
const startLimit = time.Hour

var (
	// ErrBackupRunning is returned by EnterBackupMode while another walden takes a backup of the same server.
	ErrBackupRunning = errors.New("another walden backup of this server is running")

	// ErrPromoted is the end of a backup taken from a standby that was promoted meanwhile: its WAL does not lead from
	// its start to its end on one timeline, and PostgreSQL refuses to finish it.
	ErrPromoted = errors.New("the standby was promoted during the backup")
)

// Start is what the server told when the backup began.
type Start struct {
	LSN      wal.LSN // recovery starts here
	Timeline wal.Timeline
	Time     time.Time // by the server's clock, UTC
	Standby  bool      // taken from a server in recovery
}

// Stop is what the server told when the backup ended.
type Stop struct {
	LSN           wal.LSN // recovery must reach this to be consistent
	Timeline      wal.Timeline
	Time          time.Time // by the server's clock, UTC
	Label         []byte    // content of backup_label, byte for byte
	TablespaceMap []byte    // content of tablespace_map; empty if no tablespace needs it
	// SwitchedWAL tells that the server closed the segment that holds LSN, so that it will be archived without
	// further ado. A standby cannot: there the segment is complete when the primary has filled or switched it.
	SwitchedWAL bool
}

// BackupMode is a server in the middle of a backup. It ends with Finish, or with Leave when the backup failed.
type BackupMode struct {
	server *Server
	start  Start
	label  string
	pid    uint32 // of the server process that is in backup mode

	stop     chan struct{} // closed to end the watch between two pings
	cut      context.CancelFunc
	watching chan struct{} // closed when the watch has ended
	lost     chan struct{} // closed when the session is lost

	mu    sync.Mutex
	cause error // of the loss
	ended bool  // Finish succeeded or Leave was called
	asked bool  // stop is closed
}

// EnterBackupMode begins a backup at an immediate checkpoint, which may take an hour. Only one walden at a
// time backs up a server: another one that holds the lock, through whatever database, is ErrBackupRunning. The
// lock stays until Close or Leave, so that it also covers what the caller does after Finish.
//
// When it fails after it began to change anything, the session has ended and with it whatever had begun.
func (s *Server) EnterBackupMode(ctx context.Context, label string) (*BackupMode, error) {
	// The label is a line of backup_label, whose lines are parsed at recovery (xlogrecovery.c, read_backup_label).
	if strings.ContainsAny(label, "\r\n\x00") || len(label) > 1000 {
		return nil, fmt.Errorf("cannot use the backup label %.40q: it must be one line of at most 1000 bytes", label)
	}
	m := &BackupMode{
		server: s, label: label,
		stop: make(chan struct{}), watching: make(chan struct{}), lost: make(chan struct{}),
	}
	began := false
	err := s.use(ctx, startLimit, func(ctx context.Context, conn *pgx.Conn) error {
		if s.mode != nil {
			return ErrBackupRunning
		}
		began = true
		if err := limited(ctx, s.options.answerTimeout(), func(ctx context.Context) error { return lockBackups(ctx, conn) }); err != nil {
			return err
		}
		if err := m.enter(ctx, conn); err != nil {
			return err
		}
		s.mode = m
		return nil
	})
	if err != nil {
		if began {
			s.Close()
		}
		return nil, fmt.Errorf("cannot start a backup of %s: %w", s, err)
	}
	ping, cut := context.WithCancel(context.Background())
	m.cut = cut
	go m.watch(ping)
	return m, nil
}

func (s *Server) checkVersion() error {
	major := s.info.Major
	if major >= oldestMajor && (major <= newestMajor || s.options.AllowBeta) {
		return nil
	}
	err := fmt.Errorf("cannot back up %s: the versions known are %d to %d", s, oldestMajor, newestMajor)
	if major > newestMajor {
		return withHint(err, "use a newer walden, or set WALDEN_ALLOW_UNKNOWN_POSTGRES=true after a restore of such a backup was tried")
	}
	return withHint(err, "use a tool of that version's time, or upgrade the server: the version gets no corrections any more")
}

// lockBackups takes the advisory lock. Such locks belong to a database, so those of other databases are looked up;
// two sessions that meet see each other whichever came first, because both lock before they look.
func lockBackups(ctx context.Context, conn *pgx.Conn) error {
	var locked bool
	err := conn.QueryRow(ctx, fmt.Sprintf("SELECT pg_catalog.pg_try_advisory_lock(%d, %d)", lockClass, lockObject)).
		Scan(&locked)
	if err != nil {
		return serverError(err)
	}
	var pid int
	var name, client, database string
	err = conn.QueryRow(ctx, fmt.Sprintf(`
		SELECT l.pid, coalesce(a.application_name, ''), coalesce(a.client_addr::text, 'local'), coalesce(a.datname, '')
		FROM pg_catalog.pg_locks AS l LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
		WHERE l.locktype = 'advisory' AND l.classid = %d AND l.objid = %d AND l.objsubid = 2 AND l.granted
		  AND l.pid <> pg_catalog.pg_backend_pid()
		LIMIT 1`, lockClass, lockObject)).Scan(&pid, &name, &client, &database)
	switch {
	case errors.Is(err, pgx.ErrNoRows) && locked:
		return nil
	case errors.Is(err, pgx.ErrNoRows): // its holder has just gone
		return withHint(ErrBackupRunning, "it is just ending: try again")
	case err != nil:
		return serverError(err)
	}
	return withHint(
		fmt.Errorf("%w: server process %d, application_name %q, client %s, database %q",
			ErrBackupRunning, pid, name, client, database),
		fmt.Sprintf("wait for it; if its walden is gone, SELECT pg_terminate_backend(%d)", pid))
}

// enter calls the server's start function.
func (m *BackupMode) enter(ctx context.Context, conn *pgx.Conn) error {
	function := "pg_backup_start($1::text, fast => true)"
	if m.server.info.Major < 15 {
		function = "pg_start_backup($1::text, fast => true, exclusive => false)"
	}
	var lsn string
	err := conn.QueryRow(ctx,
		"SELECT b.lsn::text, pg_catalog.clock_timestamp(), pg_catalog.pg_is_in_recovery(), pg_catalog.pg_backend_pid() "+
			"FROM pg_catalog."+function+" AS b(lsn)", m.label).Scan(&lsn, &m.start.Time, &m.start.Standby, &m.pid)
	if hasState(err, "42501") {
		role := pgx.Identifier{conn.Config().User}.Sanitize()
		functions := "pg_backup_start(text, boolean), pg_backup_stop(boolean)"
		if m.server.info.Major < 15 {
			functions = "pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean)"
		}
		return withHint(err, fmt.Sprintf("GRANT EXECUTE ON FUNCTION %s TO %s; in the database %q",
			functions, role, conn.Config().Database))
	}
	if err != nil {
		return serverError(err)
	}
	if m.start.LSN, err = wal.ParseLSN(lsn); err != nil {
		return err
	}
	m.start.Time = m.start.Time.UTC()

	// The start function takes its timeline from the last checkpoint or restartpoint (xlog.c, do_pg_backup_start). A
	// standby whose primary was promoted may have replayed past the switch without a restartpoint since.
	var checkpoint, replayed int64
	err = conn.QueryRow(ctx, `
		SELECT c.timeline_id::bigint, r.min_recovery_end_timeline::bigint
		FROM pg_catalog.pg_control_checkpoint() AS c, pg_catalog.pg_control_recovery() AS r`).Scan(&checkpoint, &replayed)
	if err != nil {
		return serverError(err)
	}
	if m.start.Standby && replayed > checkpoint {
		return withHint(
			fmt.Errorf("the standby has followed its primary to timeline %d, but would start from timeline %d",
				replayed, checkpoint),
			"run CHECKPOINT on the primary, and try again when the standby has replayed it")
	}
	m.start.Timeline = wal.Timeline(checkpoint)
	return nil
}

// Start returns what the server told when the backup began.
func (m *BackupMode) Start() Start { return m.start }

// Lost is closed when the session of the backup is lost, or when a standby was promoted: the backup can then not be
// finished. Err tells the cause.
func (m *BackupMode) Lost() <-chan struct{} { return m.lost }

// Err returns why Lost was closed, nil if it is not.
func (m *BackupMode) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cause
}

// watch pings the server every interval, so that a backup that has lost its session ends within minutes and not
// after the last byte was copied.
func (m *BackupMode) watch(ctx context.Context) {
	defer close(m.watching)
	interval := m.server.options.AliveInterval
	if interval <= 0 {
		interval = defaultAliveInterval
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-m.stop:
			return
		case <-ticker.C:
		}
		err := m.ping(ctx, max(interval, minPingLimit))
		if ctx.Err() != nil { // Leave has cut it short
			return
		}
		if err != nil {
			m.mu.Lock()
			m.cause = fmt.Errorf("the backup is lost: %w", err)
			m.mu.Unlock()
			close(m.lost)
			return
		}
	}
}

// ping proves that the connection still ends in the server process that is in backup mode: a connection pooler may
// answer from another one.
func (m *BackupMode) ping(ctx context.Context, limit time.Duration) error {
	var pid uint32
	var recovering bool
	err := limited(ctx, limit, func(ctx context.Context) error {
		return m.server.query(ctx, []any{&pid, &recovering}, "SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery()")
	})
	if err != nil {
		return fmt.Errorf("%s does not answer in the backup's session: %w", m.server, err)
	}
	if pid != m.pid {
		return withHint(fmt.Errorf("the session moved from server process %d to %d", m.pid, pid),
			"connect to the server itself, not through a pooler in transaction mode")
	}
	if m.start.Standby && !recovering {
		return ErrPromoted
	}
	return nil
}

// endWatch ends the watch after the ping that may be under way, for a ping cut short would end the session. It returns
// the cause of a loss.
func (m *BackupMode) endWatch(ctx context.Context) error {
	m.mu.Lock()
	if !m.asked {
		m.asked = true
		close(m.stop)
	}
	m.mu.Unlock()
	select {
	case <-m.watching:
		return m.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Finish ends the backup in the server without waiting for WAL to be archived, and checks that what the server
// returns belongs to this backup. After an error the caller calls Leave.
func (m *BackupMode) Finish(ctx context.Context) (Stop, error) {
	m.mu.Lock()
	ended := m.ended
	m.mu.Unlock()
	if ended {
		return Stop{}, errors.New("cannot finish the backup: it has ended already")
	}
	if err := m.endWatch(ctx); err != nil {
		return Stop{}, fmt.Errorf("cannot finish the backup of %s: %w", m.server, err)
	}
	limit := m.server.options.StopTimeout
	if limit <= 0 {
		limit = defaultStopTimeout
	}
	var stop Stop
	// The server's own limit comes first, for its message; ours is for a server that does not answer at all.
	err := m.server.use(ctx, limit+minPingLimit, func(ctx context.Context, conn *pgx.Conn) (err error) {
		stop, err = m.finish(ctx, conn, limit)
		if err == nil {
			m.server.mode = nil
		}
		return err
	})
	if err != nil {
		return Stop{}, fmt.Errorf("cannot finish the backup of %s: %w", m.server, err)
	}
	m.mu.Lock()
	m.ended = true
	m.mu.Unlock()
	m.cut()
	return stop, nil
}

func (m *BackupMode) finish(ctx context.Context, conn *pgx.Conn, limit time.Duration) (Stop, error) {
	setTimeout := func(d time.Duration) error {
		_, err := conn.Exec(ctx, "SELECT pg_catalog.set_config('statement_timeout', $1::text, false)",
			fmt.Sprint(d.Milliseconds()))
		return serverError(err)
	}
	if err := setTimeout(max(limit, time.Millisecond)); err != nil {
		return Stop{}, err
	}
	function := "pg_backup_stop(wait_for_archive => false)"
	if m.server.info.Major < 15 {
		function = "pg_stop_backup(exclusive => false, wait_for_archive => false)"
	}
	var stop Stop
	var lsn string
	// The texts are files of the data directory: converted to the database's own encoding, they are the server's bytes.
	err := conn.QueryRow(ctx, `
		SELECT b.lsn::text, pg_catalog.clock_timestamp(),
		       pg_catalog.convert_to(b.labelfile, pg_catalog.getdatabaseencoding()),
		       pg_catalog.convert_to(b.spcmapfile, pg_catalog.getdatabaseencoding())
		FROM pg_catalog.`+function+` AS b`).Scan(&lsn, &stop.Time, &stop.Label, &stop.TablespaceMap)
	if err != nil {
		if m.start.Standby && promoted(ctx, conn) {
			return Stop{}, fmt.Errorf("%w: %w", ErrPromoted, err)
		}
		if hasState(err, "57014") {
			return Stop{}, fmt.Errorf("the server did not end it within %s: %w", limit, err)
		}
		return Stop{}, serverError(err)
	}
	if err := setTimeout(0); err != nil {
		return Stop{}, err
	}
	if stop.LSN, err = wal.ParseLSN(lsn); err != nil {
		return Stop{}, err
	}
	stop.Time = stop.Time.UTC()
	stop.SwitchedWAL = !m.start.Standby

	label, err := parseLabel(stop.Label)
	if err != nil {
		return Stop{}, err
	}
	if label.startLSN != m.start.LSN || label.timeline != m.start.Timeline {
		return Stop{}, fmt.Errorf("the server's label tells of a start at %s on timeline %d, but this backup started at %s on timeline %d",
			label.startLSN, label.timeline, m.start.LSN, m.start.Timeline)
	}
	stop.Timeline = label.timeline
	if m.start.Standby {
		if err := m.checkStandby(ctx, conn); err != nil {
			return Stop{}, err
		}
	}
	return stop, nil
}

// promoted tells whether the server has left recovery, as far as it can still be asked.
func promoted(ctx context.Context, conn *pgx.Conn) bool {
	var recovering bool
	err := conn.QueryRow(ctx, "SELECT pg_catalog.pg_is_in_recovery()").Scan(&recovering)
	return err == nil && !recovering
}

// checkStandby refuses a backup during which the standby left the timeline on which the backup started.
func (m *BackupMode) checkStandby(ctx context.Context, conn *pgx.Conn) error {
	var recovering bool
	var timeline int64
	err := conn.QueryRow(ctx, `
		SELECT pg_catalog.pg_is_in_recovery(), r.min_recovery_end_timeline::bigint
		FROM pg_catalog.pg_control_recovery() AS r`).Scan(&recovering, &timeline)
	switch {
	case err != nil:
		return serverError(err)
	case !recovering:
		return ErrPromoted
	case wal.Timeline(timeline) != m.start.Timeline:
		return withHint(fmt.Errorf("the standby followed its primary from timeline %d to %d during the backup",
			m.start.Timeline, timeline), "take the backup again")
	}
	return nil
}

// Leave ends a backup that did not finish: it ends the session, which makes the server leave backup mode, and waits
// for that no longer than ten seconds, whatever became of any context. After Finish, or a first Leave, it does nothing.
func (m *BackupMode) Leave() {
	m.mu.Lock()
	ended := m.ended
	m.ended = true
	m.mu.Unlock()
	if ended {
		return
	}
	m.cut()
	m.server.Close()
	_ = m.endWatch(context.Background()) // at once, since the ping is cut short; the caller has an error of its own
}
