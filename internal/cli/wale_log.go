package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gitlab.com/walden-pg/walden/internal/config"
	"gitlab.com/walden-pg/walden/internal/hint"
)

// The parts of WAL-E that its log lines name (WAL-E format, "Logging").
const (
	walEMain    = "wal_e.main"
	walEUpload  = "wal_e.worker.upload"
	walERestore = "wal_e.operator.backup"
)

// Attributes of records that are meant for WAL-E's form; all others go into DETAIL.
const (
	walELogger = "logger"
	walEDetail = "detail"
	walEHint   = "hint"
)

// walEObject is the WAL file that a command is about, as WAL-E names it in its log.
type walEObject struct {
	path   string // as it was given
	key    string // URL
	prefix string // of the key, without its bucket; with a slash at its end, or ""
}

// objectIn names what lies below a storage's prefix. The extension of an object that is fetched is not known before: it is
// the one that walden writes with.
func objectIn(s config.Storage, path, extension string) walEObject {
	o := walEObject{path: path}
	for _, p := range []string{s.Path, s.Folder} {
		if p = strings.Trim(p, "/"); p != "" {
			o.prefix += p + "/"
		}
	}
	bucket := s.Bucket
	if s.Kind == config.KindFile {
		bucket = "localhost"
	}
	o.key = string(s.Kind) + "://" + bucket + "/" + o.prefix + "wal_005/" + filepath.Base(path) + extension
	return o
}

// walELine writes records in the form of WAL-E, those about single WAL files with the words and the STRUCTURED part that are
// searched for in its logs.
func (w *walE) line(r slog.Record, attributes []slog.Attr) string {
	values := map[string]slog.Value{}
	for _, a := range attributes {
		values[a.Key] = a.Value.Resolve()
	}
	if text := w.walEvent(r, values); text != "" {
		return text
	}
	var rest []slog.Attr
	for _, a := range attributes {
		if a.Key != walELogger && a.Key != walEDetail && a.Key != walEHint {
			rest = append(rest, a)
		}
	}
	detail := ""
	if v, ok := values[walEDetail]; ok {
		detail = v.String()
	}
	detail = strings.TrimSpace(withAttributes(detail, rest))
	advice, logger := "", walEMain
	if v, ok := values[walEHint]; ok {
		advice = v.String()
	}
	if v, ok := values[walELogger]; ok {
		logger = v.String()
	}
	return walEText(r, logger, r.Message, detail, advice)
}

// walEvent is the line about the begin or the end of wal-push or wal-fetch; "" for any other record.
func (w *walE) walEvent(r slog.Record, values map[string]slog.Value) string {
	action, state := values["action"].String(), values["state"].String()
	if w.object.key == "" || state != "begin" && state != "complete" {
		return ""
	}
	about := []string{"key=" + w.object.key, "prefix=" + w.object.prefix, "seg=" + filepath.Base(w.object.path), "state=" + state}
	switch {
	case action == "wal-push" && state == "begin":
		w.began = r.Time
		return walEText(r, walEUpload, "begin archiving a file", fmt.Sprintf("Uploading %q to %q.", w.object.path, w.object.key), "",
			append(about, "action=push-wal")...)
	case action == "wal-push":
		rate := w.rate(r.Time, cmp.Or(number(values["stored"]), number(values["size"])))
		return walEText(r, walEUpload, "completed archiving to a file", fmt.Sprintf("Archiving to %q complete at %sKiB/s.", w.object.key, rate), "",
			append(about, "action=push-wal", "rate="+rate)...)
	case action == "wal-fetch" && state == "begin":
		return walEText(r, walERestore, "begin wal restore", "", "", append(about, "action=wal-fetch")...)
	case action == "wal-fetch":
		return walEText(r, w.storeLogger(), "completed download and decompression",
			fmt.Sprintf("Downloaded and decompressed %q to %q", w.object.key, w.dest), "") +
			walEText(r, walERestore, "complete wal restore", "", "", append(about, "action=wal-fetch")...)
	}
	return ""
}

func number(v slog.Value) int64 {
	if v.Kind() != slog.KindInt64 {
		return 0
	}
	return v.Int64()
}

// rate is KiB a second with six digits, at least two characters.
func (w *walE) rate(now time.Time, bytes int64) string {
	text := strconv.FormatFloat(float64(bytes)/1024/max(now.Sub(w.began), time.Millisecond).Seconds(), 'g', 6, 64)
	if len(text) < 2 {
		text = "0" + text
	}
	return text
}

// storeLogger is the part of WAL-E that reads from this kind of storage.
func (w *walE) storeLogger() string {
	kind := map[config.Kind]string{config.KindFile: "file", config.KindGCS: "gs", config.KindAzure: "wabs", config.KindSwift: "swift"}[w.kind]
	kind = cmp.Or(kind, "s3")
	return "wal_e.blobstore." + kind + "." + kind + "_util"
}

// walEText is one record: STRUCTURED always, DETAIL and HINT where there is something to say, each line break inside indented.
func walEText(r slog.Record, logger, message, detail, advice string, about ...string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "%-12s %-8s MSG: %s\n", logger, walELevel(r.Level), indented(message))
	for _, part := range []struct{ name, text string }{{"DETAIL", detail}, {"HINT", advice}} {
		if part.text != "" {
			fmt.Fprintf(&s, "        %s: %s\n", part.name, indented(part.text))
		}
	}
	slices.Sort(about)
	structured := append([]string{fmt.Sprintf("time=%s-00", r.Time.UTC().Format("2006-01-02T15:04:05.000000")), fmt.Sprintf("pid=%d", os.Getpid())}, about...)
	for i := range structured {
		structured[i] = printable(structured[i], maxMessage)
	}
	fmt.Fprintf(&s, "        STRUCTURED: %s\n", strings.Join(structured, " "))
	return s.String()
}

func walELevel(l slog.Level) string {
	if l == slog.LevelWarn {
		return "WARNING"
	}
	return l.String()
}

func indented(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = printable(lines[i], maxMessage)
	}
	return strings.Join(lines, "\n        ")
}

// handler implements personality.
func (w *walE) handler(out io.Writer, o *slog.HandlerOptions) slog.Handler {
	if w.terse {
		o = &slog.HandlerOptions{Level: max(slog.LevelWarn, o.Level.Level())}
	}
	return &lineHandler{out: out, least: o.Level, render: w.line}
}

// logsTo implements personality.
func (w *walE) logsTo() string { return "stderr,syslog" }

// printError implements personality: the last line of a command that failed goes where its log goes.
func (w *walE) printError(a *app, err error) {
	r := slog.NewRecord(time.Now(), slog.LevelError, err.Error(), 0)
	advice := strings.Join(hint.Of(err), "\n")
	if f, ok := asFailure(err); ok {
		r.Message = f.message
		r.AddAttrs(slog.String(walEDetail, f.detail))
	}
	r.AddAttrs(slog.String(walEHint, advice))
	screen := w.handler(a.screen, &slog.HandlerOptions{Level: slog.LevelInfo})
	if a.log == nil || a.log.Handler().Handle(context.Background(), r) != nil {
		_ = screen.Handle(context.Background(), r) // standard error is the last place there is
	}
}
