package postgres_test

import (
	"fmt"
	"iter"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/postgres"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

// TestTheServerWillNoticeThatOurMachineIsGone reads the session's settings: a backup mode that nobody ends lasts as long
// as the server believes in its client.
func TestTheServerWillNoticeThatOurMachineIsGone(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{TCP: true})
	o := options(p)
	o.Host = "127.0.0.1"
	s := connect(t, o)
	var got string
	err := postgres.Ask(t.Context(), s, &got, `SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings
		WHERE name IN ('tcp_keepalives_idle', 'tcp_keepalives_interval', 'tcp_keepalives_count', 'tcp_user_timeout')`)
	if err != nil || got != "6 60 10 120000" {
		t.Errorf("count, idle, interval, user timeout: %s, %v", got, err)
	}
}

func TestAStandbyAnswersARoleWithSerializableTransactions(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{})
	p.Exec(t, "CREATE ROLE keeper SUPERUSER LOGIN", "ALTER ROLE keeper SET default_transaction_isolation = 'serializable'")
	standby := p.Standby(t, testenv.PostgresOptions{})
	o := options(standby)
	o.User = "keeper"
	m := enter(t, o)
	if _, err := m.Finish(deadline(t)); err != nil {
		t.Error(err)
	}
}

// TestNoQuestionToTheServerWaitsForEver asks through a connection on which nothing passes any more.
func TestNoQuestionToTheServerWaitsForEver(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{TCP: true})
	for name, ask := range map[string]func(s *postgres.Server) error{
		"start": func(s *postgres.Server) error {
			_, err := s.EnterBackupMode(t.Context(), "label")
			return err
		},
		"archiver": func(s *postgres.Server) error {
			_, err := s.Archiver(t.Context())
			return err
		},
		"databases": func(s *postgres.Server) error {
			return s.Relations(t.Context(), func(postgres.Database, iter.Seq2[postgres.Relation, error]) error { return nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := testenv.StartToxiproxy(t).Proxy(t, fmt.Sprintf("127.0.0.1:%d", p.Port))
			o := options(p)
			o.Host, o.Port, o.AnswerTimeout = "127.0.0.1", proxy.Port, 5*time.Second
			s := connect(t, o)
			proxy.BlackHole()
			began := time.Now()
			err := ask(s)
			if err == nil || !strings.Contains(err.Error(), "no answer from the server within 5s") || hint(err) == "" {
				t.Errorf("%v", err)
			}
			if took := time.Since(began); took > time.Minute {
				t.Errorf("it took %s", took)
			}
		})
	}
}
