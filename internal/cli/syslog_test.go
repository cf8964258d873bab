package cli

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/config"
)

// recorder is a system's log that keeps what it is told.
type recorder struct{ lines []string }

func (r *recorder) Debug(line string) error   { return r.keep("debug", line) }
func (r *recorder) Info(line string) error    { return r.keep("info", line) }
func (r *recorder) Warning(line string) error { return r.keep("warning", line) }
func (r *recorder) Err(line string) error     { return r.keep("err", line) }

func (r *recorder) keep(severity, line string) error {
	r.lines = append(r.lines, severity+": "+line)
	return errors.New("gone") // the caller must not mind
}

func TestEachRecordGoesToSyslogOnceWithItsSeverity(t *testing.T) {
	t.Parallel()
	var r recorder
	w := &walE{object: objectIn(config.Storage{Kind: config.KindS3, Bucket: "b", Path: "some/db"}, "pg_wal/000000010000000000000012", ".lz4")}
	h := newSyslogHandler(&r, newMask([]config.Secret{config.NewSecret("verysecret")}), func(out io.Writer) slog.Handler {
		return w.handler(out, &slog.HandlerOptions{Level: slog.LevelInfo})
	})
	log := slog.New(h).With("backup", "x").WithGroup("g")
	log.Debug("not shown")
	log.Info("one verysecret")
	log.Warn("two")
	log.Error("three")
	log.Info("begin", "action", "wal-push", "state", "begin")
	for i, want := range []string{
		`(?s)^info: wal_e.main   INFO     MSG: one \*\*\*\n        DETAIL: backup=x\n        STRUCTURED: time=\S+ pid=\d+\n$`,
		`(?s)^warning: wal_e.main   WARNING  MSG: two\n`,
		`(?s)^err: wal_e.main   ERROR    MSG: three\n`,
		`(?s)^info: wal_e.worker.upload .*action=push-wal key=s3://b/some/db/wal_005/000000010000000000000012.lz4 prefix=some/db/ seg=\S+ state=begin\n$`,
	} {
		if i >= len(r.lines) || !regexp.MustCompile(want).MatchString(r.lines[i]) {
			t.Errorf("record %d is not %s:\n%s", i, want, strings.Join(r.lines, ""))
		}
	}
	if len(r.lines) != 4 || !h.Enabled(context.Background(), slog.LevelError) || h.Enabled(context.Background(), slog.LevelDebug) {
		t.Errorf("%d records", len(r.lines))
	}
}
