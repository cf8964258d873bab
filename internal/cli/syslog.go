package cli

import (
	"context"
	"io"
	"log/slog"
	"log/syslog"
	"path/filepath"
)

// facilities are those that WALE_SYSLOG_FACILITY can name.
var facilities = map[string]syslog.Priority{
	"user": syslog.LOG_USER, "local0": syslog.LOG_LOCAL0, "local1": syslog.LOG_LOCAL1, "local2": syslog.LOG_LOCAL2, "local3": syslog.LOG_LOCAL3,
	"local4": syslog.LOG_LOCAL4, "local5": syslog.LOG_LOCAL5, "local6": syslog.LOG_LOCAL6, "local7": syslog.LOG_LOCAL7,
}

// openSyslog connects to the system's log on this machine. The lines are those that handlerOn makes.
func (a *app) openSyslog(handlerOn func(io.Writer) slog.Handler) (slog.Handler, error) {
	w, err := syslog.New(facilities[a.config.Log.SyslogFacility]|syslog.LOG_INFO, filepath.Base(a.process.Called))
	if err != nil {
		return nil, err
	}
	a.closers = append(a.closers, w.Close)
	return newSyslogHandler(w, a.screen.mask, handlerOn), nil
}

// systemLog is what walden uses of *syslog.Writer.
type systemLog interface {
	Debug(line string) error
	Info(line string) error
	Warning(line string) error
	Err(line string) error
}

func newSyslogHandler(w systemLog, m mask, handlerOn func(io.Writer) slog.Handler) slog.Handler {
	h := &byLevel{}
	for i, send := range []func(string) error{w.Debug, w.Info, w.Warning, w.Err} {
		h.handlers[i] = handlerOn(masked{lineWriter(send), m})
	}
	return h
}

// lineWriter makes a writer of a function that takes a line.
type lineWriter func(line string) error

// Write implements io.Writer.
func (send lineWriter) Write(b []byte) (int, error) { return len(b), send(string(b)) }

// byLevel hands records to the handler of their level: debug, info, warning, error.
type byLevel struct{ handlers [4]slog.Handler }

func (h *byLevel) of(level slog.Level) slog.Handler {
	switch {
	case level < slog.LevelInfo:
		return h.handlers[0]
	case level < slog.LevelWarn:
		return h.handlers[1]
	case level < slog.LevelError:
		return h.handlers[2]
	}
	return h.handlers[3]
}

// Enabled implements slog.Handler.
func (h *byLevel) Enabled(ctx context.Context, level slog.Level) bool {
	return h.of(level).Enabled(ctx, level)
}

// Handle implements slog.Handler. A system's log that is gone holds no archiving up.
func (h *byLevel) Handle(ctx context.Context, r slog.Record) error {
	_ = h.of(r.Level).Handle(ctx, r)
	return nil
}

// WithAttrs implements slog.Handler.
func (h *byLevel) WithAttrs(attributes []slog.Attr) slog.Handler {
	var other byLevel
	for i := range h.handlers {
		other.handlers[i] = h.handlers[i].WithAttrs(attributes)
	}
	return &other
}

// WithGroup implements slog.Handler.
func (h *byLevel) WithGroup(name string) slog.Handler {
	var other byLevel
	for i := range h.handlers {
		other.handlers[i] = h.handlers[i].WithGroup(name)
	}
	return &other
}
