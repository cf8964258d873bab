package cli

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// screen is standard error: log lines and, on a terminal, one line of progress below them.
type screen struct {
	mu       sync.Mutex
	out      io.Writer
	mask     mask
	terminal bool
	bar      *progressbar.ProgressBar
}

func newScreen(out io.Writer) *screen {
	f, ok := out.(*os.File)
	return &screen{out: out, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

// Write prints above the line of progress.
func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bar != nil {
		_ = s.bar.Clear() // a screen that cannot be written to is nobody's loss
	}
	return masked{s.out, s.mask}.Write(b)
}

// hide makes the screen mask secrets from now on.
func (s *screen) hide(m mask) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mask = m
}

// progressEvery is the interval of progress lines in the log where there is no terminal.
const progressEvery = 30 * time.Second

// progress shows how a copy advances: as one line on a terminal, else as a log line now and then.
type progress struct {
	screen *screen
	log    *slog.Logger
	action string

	mu          sync.Mutex
	total, done int64
	began, said time.Time
}

func (a *app) progress(action string) *progress {
	return &progress{screen: a.screen, log: a.log, action: action}
}

// Begin starts to show progress towards total bytes, 0 if unknown.
func (p *progress) Begin(total int64) {
	p.mu.Lock()
	p.total, p.began, p.said = total, time.Now(), time.Now()
	p.mu.Unlock()
	if !p.screen.terminal || p.log == nil {
		return
	}
	if total == 0 {
		total = -1
	}
	p.screen.mu.Lock()
	defer p.screen.mu.Unlock()
	p.screen.bar = progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(p.screen.out), progressbar.OptionSetDescription(p.action), progressbar.OptionShowBytes(true), progressbar.OptionShowCount(),
		progressbar.OptionSetPredictTime(true), progressbar.OptionThrottle(200*time.Millisecond), progressbar.OptionFullWidth(),
		progressbar.OptionUseIECUnits(true), progressbar.OptionClearOnFinish())
}

// Add counts n more bytes, or takes some back.
func (p *progress) Add(n int64) {
	p.mu.Lock()
	p.done += n
	line := ""
	if now := time.Now(); now.Sub(p.said) >= progressEvery {
		p.said = now
		line = p.line(now)
	}
	p.mu.Unlock()
	if p.screen.terminal {
		p.screen.mu.Lock()
		if p.screen.bar != nil {
			_ = p.screen.bar.Add64(n)
		}
		p.screen.mu.Unlock()
	} else if line != "" {
		p.log.Info(line, "action", p.action, "state", "progress")
	}
}

func (p *progress) line(now time.Time) string {
	rate := float64(p.done) / now.Sub(p.began).Seconds()
	text := fmt.Sprintf("%d MiB at %.0f MiB/s", p.done>>20, rate/(1<<20))
	if p.total > 0 && rate > 0 {
		left := time.Duration(float64(max(0, p.total-p.done)) / rate * float64(time.Second))
		text += fmt.Sprintf(", %d %% of %d MiB, %s remaining", 100*p.done/p.total, p.total>>20, left.Round(time.Second))
	}
	return text
}

// End takes the line away.
func (p *progress) End() {
	p.screen.mu.Lock()
	defer p.screen.mu.Unlock()
	if p.screen.bar != nil {
		_ = p.screen.bar.Finish()
		p.screen.bar = nil
	}
}

// printable makes text from an archive fit for a terminal: what is no visible character is written as in a Go string, so
// that no name and no user data can move the cursor, hide a line or turn its direction; and it ends after limit characters.
func printable(text string, limit int) string {
	if utf8.ValidString(text) && utf8.RuneCountInString(text) <= limit && !strings.ContainsFunc(text, invisible) {
		return text
	}
	var out strings.Builder
	for n := 0; text != "" && n < limit; n++ {
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&out, `\x%02x`, text[0])
		case invisible(r):
			quoted := strconv.QuoteRune(r)
			out.WriteString(quoted[1 : len(quoted)-1])
		default:
			out.WriteRune(r)
		}
		text = text[size:]
	}
	if text != "" {
		out.WriteString("…")
	}
	return out.String()
}

func invisible(r rune) bool { return !strconv.IsPrint(r) }

// maxMessage is the longest line of an error in characters.
const maxMessage = 20_000

// printableError is printable for a message of several lines. Those after the first are indented: a name with a line break in
// it cannot pretend to be walden's own words.
func printableError(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = printable(lines[i], maxMessage)
	}
	return strings.Join(lines, "\n  ")
}

// escapeJSON writes JSON with the hidden characters escaped that JSON allows as they are, such as a terminal's 8-bit controls.
func escapeJSON(w io.Writer, text []byte) error {
	out := bufio.NewWriter(w)
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if r < 0x7f || !invisible(r) {
			out.Write(text[:size])
		} else {
			for _, unit := range utf16.Encode([]rune{r}) {
				fmt.Fprintf(out, `\u%04x`, unit)
			}
		}
		text = text[size:]
	}
	return out.Flush()
}
