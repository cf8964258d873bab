package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/url"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Type is the syntax of a setting's value.
type Type string

// The types of settings. Every one of them is written as one line of text in the environment and as a flag.
const (
	Text         Type = "text"
	Path         Type = "path"
	URL          Type = "URL"
	Prefix       Type = "prefix"
	Choice       Type = "choice"
	Boolean      Type = "boolean"
	Integer      Type = "integer"
	Size         Type = "size"
	Duration     Type = "duration"
	Milliseconds Type = "milliseconds"
	JSON         Type = "JSON"
	Map          Type = "map"
)

// auto stands for a number that is taken from the machine.
const auto = "auto"

// Definition says everything there is to say about one setting.
type Definition struct {
	Name    string
	Aliases []string // further names, in the order in which they are looked up after Name
	Group   string   // heading in the documentation
	Type    Type
	Choices []string // of a Choice
	Default string   // as it would be written; "" for none
	Secret  bool
	Help    string // what it means, in whole sentences, Markdown
	Effect  string // why the setting has no effect; "" if it has one
	Since   string // walden's first release that knows it, for settings that WAL-G has not

	flag     string // a shorter flag besides those made from the names
	bounds   *bounds
	storage  bool // also WALG_<name> and WALE_<name>, as for all settings of storages
	fileOnly bool // cannot be written as text
	runtime  bool // read from the environment by the Go runtime itself, so without effect elsewhere only
	check    func(string) error
	field    func(*Config) any // pointer to the field that takes the value; nil if there is none
}

type bounds struct{ min, max int64 }

// between limits an Integer, the bytes of a Size, or the nanoseconds of a Duration.
func between(lowest, highest int64) *bounds { return &bounds{lowest, highest} }

func atLeast(lowest int64) *bounds { return &bounds{lowest, math.MaxInt64} }

// Flags returns the names of the flags that take this setting, without dashes in front: made from the name, from the
// aliases, and a shorter one for a few settings. A setting that exists in files only has none.
func (d Definition) Flags() []string {
	if d.fileOnly {
		return nil
	}
	flags := []string{flagName(d.Name)}
	for _, alias := range d.Aliases {
		flags = append(flags, flagName(alias))
	}
	if d.flag != "" {
		flags = append(flags, d.flag)
	}
	return flags
}

func flagName(setting string) string {
	return strings.ToLower(strings.ReplaceAll(setting, "_", "-"))
}

// Valid describes the values that the setting takes, for messages and documentation.
func (d Definition) Valid() string {
	switch d.Type {
	case Choice:
		return "one of " + strings.Join(d.Choices, ", ")
	case Boolean:
		return "true or false"
	case Integer, Milliseconds:
		text := "a whole number" + d.bounds.describe(func(n int64) string { return strconv.FormatInt(n, 10) })
		if d.Type == Milliseconds {
			text += ", in milliseconds"
		}
		if d.Default == auto {
			text += ", or auto"
		}
		return text
	case Size:
		return "a number of bytes, or with a unit such as 20MiB" + d.bounds.describe(formatSize)
	case Duration:
		return "a duration such as 90s or 15m" + d.bounds.describe(func(n int64) string { return formatDuration(n) })
	case Path:
		return "a file or directory name"
	case Prefix:
		return "a storage prefix"
	case URL:
		return "an http or https URL without user and password, or a host name"
	case JSON:
		return `a JSON value; a string needs its quotes, as in '"nightly"'`
	case Map:
		return "a map from names to values, in YAML or JSON"
	default:
		return "text"
	}
}

// userInURL finds a URL with a user, and so perhaps a password, in a text.
var userInURL = regexp.MustCompile(`://[^/\s]*@`)

// show returns the value for people: secrets are masked. Nobody may write a password into a URL or prefix, but people
// do, and they write URLs where names belong: what might hold a password is not shown either.
func (d Definition) show(text string, refused bool) string {
	mayHoldPassword := userInURL.MatchString(text) || refused && (d.Type == URL || d.Type == Prefix) && strings.Contains(text, "@")
	if text != "" && (d.Secret || mayHoldPassword) {
		return mask
	}
	return text
}

func (b *bounds) describe(format func(int64) string) string {
	switch {
	case b == nil:
		return ""
	case b.max == math.MaxInt64:
		return ", at least " + format(b.min)
	default:
		return " from " + format(b.min) + " to " + format(b.max)
	}
}

// invalid is the cause of a fault: what would have been valid. It never contains the value.
type invalid string

func (e invalid) Error() string { return "expected " + string(e) }

// parse turns text into what [assign] puts into the field.
func (d Definition) parse(text string) (any, error) {
	if d.Default == auto && text == auto {
		return int64(runtime.GOMAXPROCS(0)), nil
	}
	value, ok := d.convert(text)
	if !ok {
		return nil, invalid(d.Valid())
	}
	if n, isNumber := value.(int64); isNumber && d.bounds != nil && (n < d.bounds.min || n > d.bounds.max) {
		return nil, invalid(d.Valid())
	}
	if s, isText := value.(string); isText && d.check != nil {
		if err := d.check(s); err != nil {
			return nil, err
		}
	}
	return value, nil
}

func (d Definition) convert(text string) (value any, ok bool) {
	switch d.Type {
	case Choice:
		i := slices.IndexFunc(d.Choices, func(c string) bool { return strings.EqualFold(c, text) })
		if i < 0 {
			return nil, false
		}
		return d.Choices[i], true
	case Boolean:
		b, err := strconv.ParseBool(text)
		return b, err == nil
	case Integer:
		n, err := strconv.ParseInt(text, 10, 64)
		return n, err == nil
	case Milliseconds:
		n, err := strconv.ParseInt(text, 10, 32)
		return n, err == nil
	case Size:
		n, err := parseSize(text)
		return n, err == nil
	case Duration:
		t, err := time.ParseDuration(text)
		return int64(t), err == nil
	case URL:
		return normalURL(text)
	case JSON:
		return text, json.Valid([]byte(text))
	case Map:
		m, err := parseMap(text)
		return m, err == nil && (d.fileOnly || isFlat(m))
	default:
		return text, !strings.ContainsRune(text, 0)
	}
}

// assign puts what [Definition.parse] returned into the field. The kinds of fields are few and a test tries every one.
func (d Definition) assign(c *Config, value any) {
	if d.field == nil {
		return
	}
	switch field := d.field(c).(type) {
	case *string:
		*field = value.(string)
	case *Secret:
		*field = NewSecret(value.(string))
	case *bool:
		*field = value.(bool)
	case *int:
		*field = int(value.(int64))
	case *int64:
		*field = value.(int64)
	case *time.Duration:
		*field = time.Duration(value.(int64))
		if d.Type == Milliseconds {
			*field *= time.Millisecond
		}
	case *map[string]Secret:
		*field = make(map[string]Secret)
		for name, v := range value.(map[string]any) {
			(*field)[name] = NewSecret(fmt.Sprint(v))
		}
	case *[]string:
		*field = slices.Sorted(maps.Keys(value.(map[string]any)))
	}
}

// isFlat tells whether a map has no maps and lists in it.
func isFlat(m map[string]any) bool {
	for _, value := range m {
		switch value.(type) {
		case map[string]any, map[any]any, []any:
			return false
		}
	}
	return true
}

// normalURL adds https where no scheme is given. A URL that carries a password is refused, because URLs are shown.
func normalURL(text string) (any, bool) {
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, false
	}
	return strings.TrimRight(text, "/"), u.Scheme == "http" || u.Scheme == "https"
}

// sizeUnits maps lower-case units to bytes. As in postgresql.conf a kilobyte has 1024 bytes.
var sizeUnits = map[string]int64{
	"": 1, "b": 1,
	"k": 1 << 10, "kb": 1 << 10, "kib": 1 << 10,
	"m": 1 << 20, "mb": 1 << 20, "mib": 1 << 20,
	"g": 1 << 30, "gb": 1 << 30, "gib": 1 << 30,
	"t": 1 << 40, "tb": 1 << 40, "tib": 1 << 40,
}

// parseSize reads whole numbers with or without a unit, for example "1073741823", "20MiB" or "64 kB".
func parseSize(text string) (int64, error) {
	digits := strings.TrimLeft(text, "+-0123456789")
	number := text[:len(text)-len(digits)]
	unit, ok := sizeUnits[strings.ToLower(strings.TrimSpace(digits))]
	if !ok {
		return 0, fmt.Errorf("unknown unit")
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return 0, err
	}
	if n > math.MaxInt64/unit || n < math.MinInt64/unit {
		return 0, strconv.ErrRange
	}
	return n * unit, nil
}

func formatSize(n int64) string {
	for _, unit := range []struct {
		name  string
		bytes int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n != 0 && n%unit.bytes == 0 {
			return strconv.FormatInt(n/unit.bytes, 10) + unit.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// formatDuration leaves out the zeroes that time.Duration prints: 2m0s becomes 2m.
func formatDuration(n int64) string {
	text := time.Duration(n).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
