package config

import (
	"fmt"
	"strings"
)

// warn notes what was given and is not used, or not as it seems.
func (l *loader) warn() {
	for i := range l.definitions {
		l.warnConflict(i)
		l.warnEffect(i)
	}
	for _, g := range l.unknown {
		where := "environment variable " + shorten(g.name) + " is not known"
		if g.layer == fromFile {
			where = shorten(g.name) + " in file " + g.file + " is not known"
		}
		l.warning("%s%s", where, l.didYouMean(g.name))
	}
}

func (l *loader) warning(format string, args ...any) {
	l.config.warnings = append(l.config.warnings, fmt.Sprintf(format, args...))
}

// warnConflict tells of two names of one setting that hold different values in the same place.
func (l *loader) warnConflict(definition int) {
	used, ok := l.winner(definition)
	if !ok {
		return
	}
	for _, g := range l.given[definition] {
		if g.layer == used.layer && g.text != used.text {
			l.warning("%s and %s are the same setting and differ: %s is used", used.name, g.name, used.name)
		}
	}
}

// warnEffect tells of a setting that changes nothing, unless what it asks for is what happens anyway.
func (l *loader) warnEffect(definition int) {
	d := l.definitions[definition]
	g, ok := l.winner(definition)
	if !ok {
		return
	}
	if d.Name == configPath && g.layer == fromFile {
		l.warning("%s has no effect in a configuration file", g.name)
		return
	}
	kind, ofStorage := groupKinds[d.Group]
	switch {
	case d.Effect == "" || d.isDefault(g.text):
	case d.runtime && g.layer == fromEnvironment:
	case ofStorage && kind != l.config.Storage.Kind: // belongs to a storage that is not used
	default:
		l.warning("%s has no effect: %s", g.name, d.Effect)
	}
}

// didYouMean names the setting that has the name or alias nearest to an unknown one, if any is near: the first in the
// order of the documentation, so that the message is always the same.
func (l *loader) didYouMean(unknown string) string {
	nearest, least := "", 1+max(2, len(unknown)/4)
	for _, d := range l.definitions {
		for _, name := range append([]string{d.Name}, d.Aliases...) {
			if n := distance(unknown, name, least); n < least {
				nearest, least = d.Name, n
			}
		}
	}
	if nearest == "" {
		return ""
	}
	return "; did you mean " + nearest + "?"
}

// distance is the number of insertions, deletions and replacements of bytes between a and b (Levenshtein), or limit if
// it is not less.
func distance(a, b string, limit int) int {
	if max(len(a)-len(b), len(b)-len(a)) >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return min(row[len(b)], limit)
}

// shorten keeps an unknown name, which may be anything, to a piece of one line. A line of a key that got among the settings
// looks like one long word, so that of such only the beginning is shown.
func shorten(name string) string {
	const most, mostWord, beginning = 64, 16, 4
	switch {
	case len(name) > mostWord && !strings.Contains(name, "_"):
		name = name[:beginning] + "..."
	case len(name) > most:
		name = name[:most] + "..."
	}
	if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Sprintf("%q", name)
	}
	return name
}
