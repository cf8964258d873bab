package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/postgres"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

const secret = "s3cr3t-p4ss"

func options(p *testenv.Postgres) postgres.Options {
	return postgres.Options{Host: p.SocketDir, Port: p.Port, User: "postgres", Database: "postgres"}
}

func connect(t *testing.T, o postgres.Options) *postgres.Server {
	t.Helper()
	s, err := postgres.Connect(deadline(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func hint(err error) string {
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		return hinted.Hint()
	}
	return ""
}

// eachVersion runs a test on a server of the oldest, the distribution's and the newest version.
func eachVersion(t *testing.T, o testenv.PostgresOptions, test func(t *testing.T, p *testenv.Postgres)) {
	onVersions(t, testenv.Majors(13, 0, 18), o, test)
}

// eachInterface runs a test with the backup functions up to version 14 and with those since 15.
func eachInterface(t *testing.T, o testenv.PostgresOptions, test func(t *testing.T, p *testenv.Postgres)) {
	onVersions(t, testenv.Majors(13, 0), o, test)
}

func onVersions(t *testing.T, majors []int, o testenv.PostgresOptions, test func(t *testing.T, p *testenv.Postgres)) {
	for _, major := range majors {
		t.Run("PostgreSQL "+strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			o := o
			o.Major = major
			test(t, testenv.StartPostgres(t, o))
		})
	}
}

func TestInfoIsWhatTheServerSays(t *testing.T) {
	t.Parallel()
	eachVersion(t, testenv.PostgresOptions{
		WALSegmentSize: 4, Checksums: true,
		Settings: map[string]string{"archive_mode": "on", "archive_command": "cp %p /nowhere/%f", "full_page_writes": "off"},
	}, func(t *testing.T, p *testenv.Postgres) {
		s := connect(t, options(p))
		i := s.Info()
		if i.Major != p.Major || i.VersionNum/10000 != p.Major {
			t.Errorf("version %d, %d", i.Major, i.VersionNum)
		}
		id := p.Query(t, "SELECT system_identifier FROM pg_control_system()")
		if strconv.FormatUint(i.SystemIdentifier, 10) != id {
			t.Errorf("system identifier %d, want %s", i.SystemIdentifier, id)
		}
		if i.DataDirectory != p.DataDir || i.Timeline != 1 || i.InRecovery || i.WALSegmentSize != 4<<20 ||
			i.BlockSize != 8192 || !i.DataChecksums || i.FullPageWrites || i.WALLevel != "replica" ||
			i.ArchiveMode != "on" || i.ArchiveCommand != "cp %p /nowhere/%f" || i.ArchiveLibrary != "" {
			t.Errorf("info = %+v", i)
		}
		if since := time.Since(i.PostmasterStart); since < 0 || since > time.Hour {
			t.Errorf("the server started at %s", i.PostmasterStart)
		}
		if want := fmt.Sprintf("PostgreSQL %d.%d at %s:%d", i.Major, i.VersionNum%10000, p.SocketDir, p.Port); s.String() != want {
			t.Errorf("name %q, want %q", s, want)
		}
	})
}

func TestTheTimelineIsThatOfTheServerAndNotOfItsLastCheckpoint(t *testing.T) {
	t.Parallel()
	eachInterface(t, testenv.PostgresOptions{}, func(t *testing.T, p *testenv.Postgres) {
		standby := p.Standby(t, testenv.PostgresOptions{})
		if i := connect(t, options(standby)).Info(); i.Timeline != 1 || !i.InRecovery {
			t.Errorf("before the promotion: timeline %d, in recovery %t", i.Timeline, i.InRecovery)
		}
		standby.Promote(t)
		if i := connect(t, options(standby)).Info(); i.Timeline != 2 || i.InRecovery {
			t.Errorf("after the promotion: timeline %d, in recovery %t", i.Timeline, i.InRecovery)
		}
	})
}

func TestARoleNeedsToReadTheDataDirectory(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{})
	p.Exec(t, `CREATE ROLE "back up" LOGIN`)
	o := options(p)
	o.User = "back up"
	_, err := postgres.Connect(deadline(t), o)
	if err == nil || !strings.Contains(hint(err), `GRANT pg_read_all_settings TO "back up"`) {
		t.Fatalf("error %v, hint %q", err, hint(err))
	}
	p.Exec(t, `GRANT pg_read_all_settings TO "back up"`)
	s := connect(t, o)

	_, err = s.EnterBackupMode(deadline(t), "denied")
	grant := `GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO "back up"`
	if p.Major < 15 {
		grant = `GRANT EXECUTE ON FUNCTION pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean) TO "back up"`
	}
	if err == nil || !strings.Contains(hint(err), grant) {
		t.Fatalf("error %v, hint %q", err, hint(err))
	}
	p.Exec(t, grant)
	m, err := connect(t, o).EnterBackupMode(deadline(t), "granted")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Finish(deadline(t)); err != nil {
		t.Fatal(err)
	}
}

func TestNoOtherServerThanTheNamedOneIsTried(t *testing.T) {
	p := testenv.StartPostgres(t, testenv.PostgresOptions{TCP: true})
	// Where a fallback might look.
	t.Setenv("PGHOST", "127.0.0.1")
	t.Setenv("PGPORT", strconv.Itoa(p.Port))
	t.Setenv("PGUSER", "postgres")
	t.Setenv("PGDATABASE", "")
	t.Setenv("PGSSLMODE", "prefer")
	if got := connect(t, postgres.Options{}).Info().DataDirectory; got != p.DataDir {
		t.Fatalf("the environment's server is not used, but that of %s", got)
	}

	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closedPort := closed.Addr().(*net.TCPAddr).Port
	closed.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()

	for _, c := range []struct {
		name       string
		o          postgres.Options
		text, hint string
	}{
		{"no socket", postgres.Options{Host: testenv.Scratch(t)}, "cannot connect to PostgreSQL at /", "unix_socket_directories"},
		{"nobody listens", postgres.Options{Port: closedPort}, "refused", "listen_addresses"},
		{"nobody answers", postgres.Options{Port: silent.Addr().(*net.TCPAddr).Port, ConnectTimeout: 300 * time.Millisecond},
			"cannot connect", "no answer in time"},
		{"unknown host", postgres.Options{Host: "walden.invalid"}, "walden.invalid", ""},
		{"list of hosts", postgres.Options{Host: "127.0.0.1,127.0.0.2"}, "several PostgreSQL servers", "PGHOST"},
		{"list with the right one", postgres.Options{Host: testenv.Scratch(t) + ",127.0.0.1"}, "several", "PGHOST"},
		{"no such role", postgres.Options{User: "nobody here"}, `user "nobody here"`, "pg_hba.conf"},
		{"no such database", postgres.Options{Database: "it's not"}, `database "it's not"`, "PGDATABASE"},
		{"no such TLS mode", postgres.Options{SSLMode: "perhaps"}, "connection settings", ""},
		{"no TLS", postgres.Options{SSLMode: "require"}, "cannot connect", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Password = secret
			begin := time.Now()
			s, err := postgres.Connect(deadline(t), c.o)
			if err == nil {
				s.Close()
				t.Fatal("connected")
			}
			if !strings.Contains(err.Error(), c.text) || !strings.Contains(hint(err), c.hint) {
				t.Errorf("error %q, hint %q", err, hint(err))
			}
			if strings.ContainsAny(err.Error(), "\n") || strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), secret) {
				t.Errorf("error %q", err)
			}
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestPasswordsAreUsedAndNeverShown(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{TCP: true, Settings: map[string]string{"password_encryption": "scram-sha-256"}})
	p.Exec(t, "CREATE ROLE keeper LOGIN SUPERUSER PASSWORD '"+secret+"'", "CREATE DATABASE other")
	hba := "local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
	if err := os.WriteFile(filepath.Join(p.DataDir, "pg_hba.conf"), []byte(hba), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Reload(t)

	passFile := filepath.Join(t.TempDir(), "pgpass")
	lines := fmt.Sprintf("127.0.0.1:%d:postgres:keeper:%s\n127.0.0.1:%d:other:keeper:%s\n", p.Port, secret, p.Port, secret)
	if err := os.WriteFile(passFile, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	direct := postgres.Options{Host: "127.0.0.1", Port: p.Port, User: "keeper", Password: secret}
	fromFile := postgres.Options{Host: "127.0.0.1", Port: p.Port, User: "keeper", PassFile: passFile}
	for _, o := range []postgres.Options{direct, fromFile} {
		s := connect(t, o)
		shown := fmt.Sprintf("%v %+v %#v %v %+v %#v %v", o, o, o, s, s, s, &o)
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("connected", "options", o, "server", s)
		if strings.Contains(shown+log.String(), secret) {
			t.Errorf("the password is shown: %s %s", shown, log.String())
		}
	}

	wrong := direct
	wrong.Password = "wrong-" + secret + "'\\ x"
	_, err := postgres.Connect(deadline(t), wrong)
	if err == nil || !strings.Contains(hint(err), "password") || strings.Contains(fmt.Sprintf("%+v %#v", err, err), secret) {
		t.Errorf("error %v, hint %q", err, hint(err))
	}
	broken := direct
	broken.SSLMode = "nonsense"
	if _, err := postgres.Connect(deadline(t), broken); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("error %v", err)
	}

	// Databases for which the password file has no line are left out with a warning, the others are read.
	var log bytes.Buffer
	fromFile.Log = slog.New(slog.NewTextHandler(&log, nil))
	var seen []string
	err = connect(t, fromFile).Relations(deadline(t), func(d postgres.Database, _ iter.Seq2[postgres.Relation, error]) error {
		seen = append(seen, d.Name)
		return nil
	})
	if err != nil || strings.Join(seen, " ") != "postgres other" || !strings.Contains(log.String(), "database=template1") {
		t.Errorf("databases %v, error %v, log %s", seen, err, log.String())
	}
	if strings.Contains(log.String(), secret) {
		t.Error("the password is in the log")
	}
}

func TestSettingsOfTheRoleDoNotDisturbTheSession(t *testing.T) {
	t.Parallel()
	eachInterface(t, testenv.PostgresOptions{}, func(t *testing.T, p *testenv.Postgres) {
		p.Exec(t,
			"CREATE SCHEMA trap",
			"CREATE FUNCTION trap.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true'",
			"ALTER ROLE postgres SET search_path = trap, pg_catalog",
			"ALTER ROLE postgres SET datestyle = 'German, DMY'",
			"ALTER ROLE postgres SET timezone = 'Asia/Kathmandu'",
			"ALTER ROLE postgres SET bytea_output = 'escape'",
			"ALTER ROLE postgres SET statement_timeout = '20s'",
			"ALTER ROLE postgres SET default_transaction_isolation = 'serializable'",
		)
		s := connect(t, options(p))
		if since := time.Since(s.Info().PostmasterStart); since < 0 || since > time.Hour || s.Info().InRecovery {
			t.Errorf("info = %+v", s.Info())
		}
		m, err := s.EnterBackupMode(deadline(t), "nightly")
		if err != nil {
			t.Fatal(err)
		}
		defer m.Leave()
		if since := time.Since(m.Start().Time); since < 0 || since > time.Hour || m.Start().Time.Location() != time.UTC {
			t.Errorf("the backup started at %s", m.Start().Time)
		}
		if _, err := m.Finish(deadline(t)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestArchiverTellsOfSuccessAndFailure(t *testing.T) {
	t.Parallel()
	dir := testenv.Scratch(t)
	p := testenv.StartPostgres(t, testenv.PostgresOptions{Settings: map[string]string{
		"archive_mode": "on", "archive_command": "test -e " + dir + "/open",
	}})
	s := connect(t, options(p))
	if a, err := s.Archiver(deadline(t)); err != nil || a != (postgres.Archiver{}) {
		t.Fatalf("before anything happened: %+v, %v", a, err)
	}
	segment := p.SwitchWAL(t)
	p.WaitFor(t, "SELECT failed_count > 0 FROM pg_stat_archiver", "t", time.Minute)
	if a, err := s.Archiver(deadline(t)); err != nil || a.LastFailedWAL != segment || a.LastFailedTime.IsZero() || a.FailedCount == 0 {
		t.Errorf("after a failure: %+v, %v", a, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "open"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p.WaitFor(t, "SELECT archived_count FROM pg_stat_archiver", "1", 2*time.Minute)
	if a, err := s.Archiver(deadline(t)); err != nil || a.LastArchivedWAL != segment || a.LastArchivedTime.IsZero() || a.ArchivedCount != 1 {
		t.Errorf("after a success: %+v, %v", a, err)
	}
}

func TestRelationsAreListedOfEveryDatabase(t *testing.T) {
	t.Parallel()
	eachVersion(t, testenv.PostgresOptions{}, func(t *testing.T, p *testenv.Postgres) {
		p.Exec(t, `CREATE DATABASE "it's"`, "CREATE DATABASE closed ALLOW_CONNECTIONS false")
		p.ExecIn(t, `it\'s`,
			"CREATE SCHEMA s",
			"CREATE TABLE s.plain (i int PRIMARY KEY, t text)",
			"CREATE TABLE s.parent (i int) PARTITION BY RANGE (i)",
			"CREATE TABLE s.low PARTITION OF s.parent FOR VALUES FROM (0) TO (10)",
			"CREATE TABLE s.mid PARTITION OF s.parent FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (i)",
			"CREATE TABLE s.mid1 PARTITION OF s.mid FOR VALUES FROM (10) TO (15)",
			"CREATE INDEX ON s.parent (i)",
			"CREATE TABLE s.heir () INHERITS (s.plain)",
			"CREATE VIEW s.no_storage AS SELECT 1",
			"CREATE UNLOGGED TABLE s.unlogged (i int)",
			"VACUUM FULL pg_class", // moves a mapped catalog
		)
		conn := p.Conn(t, `it\'s`)
		if _, err := conn.Exec(deadline(t), "CREATE TEMP TABLE mine (i int)"); err != nil {
			t.Fatal(err)
		}
		s := connect(t, options(p))

		databases, err := s.Databases(deadline(t))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, d := range databases {
			names = append(names, d.Name)
		}
		for _, want := range []string{"postgres", "template1", "it's"} {
			if !strings.Contains(strings.Join(names, "|"), want) {
				t.Errorf("database %s is missing in %v", want, names)
			}
		}
		if len(databases) != 3 {
			t.Errorf("databases %v", names)
		}

		found := map[string]postgres.Relation{}
		var order []string
		visited := 0
		err = s.Relations(deadline(t), func(d postgres.Database, rels iter.Seq2[postgres.Relation, error]) error {
			visited++
			for r, err := range rels {
				if err != nil {
					return err
				}
				if d.Name == "it's" {
					found[r.Schema+"."+r.Name] = r
					if r.Schema == "s" {
						order = append(order, fmt.Sprintf("%s%d", r.Name, r.Depth))
					}
				} else {
					break // stopping early is fine
				}
			}
			return nil
		})
		if err != nil || visited != 3 {
			t.Fatalf("%d databases visited, error %v", visited, err)
		}
		filenode := func(name string) string {
			return p.QueryIn(t, `it\'s`, "SELECT pg_relation_filenode('"+name+"')")
		}
		for _, name := range []string{"s.plain", "s.plain_pkey", "s.low", "s.mid1", "s.heir", "s.unlogged", "pg_catalog.pg_class", "pg_catalog.pg_database"} {
			if got := strconv.Itoa(int(found[name].Filenode)); got != filenode(name) {
				t.Errorf("%s has file %s, want %s", name, got, filenode(name))
			}
		}
		if r := found["s.parent"]; r.OID == 0 || r.Filenode != 0 {
			t.Errorf("the partitioned table is %+v", r)
		}
		for _, r := range found {
			if r.Name == "no_storage" || r.Name == "mine" {
				t.Errorf("%+v is listed", r)
			}
		}
		if got := strings.Join(order, " "); !strings.Contains(got, "parent0 low1 mid1 mid12") || !strings.Contains(got, "heir0") {
			t.Errorf("order %s", got)
		}

		stop := errors.New("enough")
		if err := s.Relations(deadline(t), func(postgres.Database, iter.Seq2[postgres.Relation, error]) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("error %v", err)
		}
	})
}
