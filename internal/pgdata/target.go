package pgdata

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// targets are the settings of which one says where archive recovery is to end (PostgreSQL: src/backend/utils/misc/guc_tables.c).
var targets = []string{"recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"}

// RecoveryTarget returns the setting, as name=value, that tells the server which runs in a data directory where archive recovery is to
// end. A server with such a target opens the database only when it was reached, and otherwise ends with an error (PostgreSQL 13 and newer:
// xlogrecovery.c, "recovery ended before configured recovery target was reached").
//
// It is "" if there is none or if that cannot be told for sure. What the server was started with (postmaster.opts) counts before
// postgresql.auto.conf, and that before postgresql.conf, which is not asked if it is elsewhere or includes other files.
func RecoveryTarget(dir string) (string, error) {
	started, err := readIfThere(filepath.Join(dir, "postmaster.opts"))
	if err != nil {
		return "", err
	}
	given := givenAtStart(started)
	altered, err := readIfThere(filepath.Join(dir, "postgresql.auto.conf"))
	if err != nil {
		return "", err
	}
	automatic, included := settingsIn(altered)
	if included {
		return "", nil
	}
	main := map[string]string{}
	if _, elsewhere := given["config_file"]; !elsewhere && sameDir(given["data_directory"], dir) {
		text, err := readIfThere(filepath.Join(dir, "postgresql.conf"))
		if err != nil {
			return "", err
		}
		if main, included = settingsIn(text); included {
			main = nil
		}
	}
	for _, name := range targets {
		for _, source := range []map[string]string{given, automatic, main} {
			value, set := source[name]
			if set && value != "" {
				return name + "=" + value, nil
			}
			if set {
				break
			}
		}
	}
	return "", nil
}

func readIfThere(name string) (string, error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(b), err
}

// argument is one of a command line in postmaster.opts, in double quotes; the program's path before them bears none
// (CreateOptsFile in postmaster.c).
var argument = regexp.MustCompile(`"([^"]*)"`)

// givenAtStart reads the settings in a server's command line. The directory of -D is that of data_directory.
func givenAtStart(line string) map[string]string {
	given := map[string]string{}
	set := func(text string) {
		name, value, _ := strings.Cut(text, "=")
		given[strings.ReplaceAll(strings.ToLower(name), "-", "_")] = value
	}
	var args []string
	for _, m := range argument.FindAllStringSubmatch(line, -1) {
		args = append(args, m[1])
	}
	for i := 0; i < len(args); i++ {
		option, next := args[i], ""
		if i+1 < len(args) {
			next = args[i+1]
		}
		switch {
		case option == "-c":
			set(next)
			i++
		case option == "-D":
			given["data_directory"] = next
			i++
		case strings.HasPrefix(option, "--"):
			set(option[2:])
		case strings.HasPrefix(option, "-c"):
			set(option[2:])
		case strings.HasPrefix(option, "-D"):
			given["data_directory"] = option[2:]
		}
	}
	return given
}

// sameDir tells whether the server's directory for its configuration is the data directory; "" is what nothing was said of.
func sameDir(configured, dir string) bool {
	one, err := os.Stat(configured)
	if err != nil {
		return false
	}
	other, err := os.Stat(dir)
	return err == nil && os.SameFile(one, other)
}

// setting is a line of a configuration file (src/backend/utils/misc/guc-file.l): a name, "=" or a space, a value.
var setting = regexp.MustCompile(`(?m)^[ \t]*([A-Za-z_][A-Za-z0-9_.]*)(?:[ \t]*=[ \t]*|[ \t]+)('(?:[^'\\\n]|''|\\.)*'|[^\s#']+)`)

// settingsIn reads a configuration file, in which the last one of a name counts. The values are as they are written, without their quotes.
func settingsIn(text string) (settings map[string]string, included bool) {
	settings = map[string]string{}
	for _, m := range setting.FindAllStringSubmatch(text, -1) {
		name := strings.ToLower(m[1])
		if strings.HasPrefix(name, "include") {
			included = true
		}
		settings[name] = strings.TrimSuffix(strings.TrimPrefix(m[2], "'"), "'")
	}
	return settings, included
}
