package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// SystemFile is the configuration file that is read where no other is named or found.
const SystemFile = "/etc/walden/walden.yaml"

// Input is all that settings are read from.
type Input struct {
	Flags   map[string]string // setting name or alias → value given on the command line
	Environ []string          // NAME=value, as os.Environ returns it
	File    string            // configuration file given on the command line (--config), "" = search
	Home    string            // the account's home directory from the user database, "" = none
}

// Load reads the settings: flag over environment over configuration file over default; within one of these a
// setting's name over its aliases. An empty value in the environment or in the file counts as not given; an empty flag
// brings the default back. Carriage returns and line feeds at the end of values are cut.
//
// The configuration file is the first of: in.File; WALDEN_CONFIG_PATH; WALG_CONFIG_PATH; .walden.<ext> and
// .walg.<ext> in in.Home; [SystemFile]. One that is named must exist, and one that exists must parse.
//
// The error tells all faults, one line each, unwraps to them, and contains no secrets. The Config that comes with an
// error has the valid settings filled in and serves to show them.
func Load(in Input) (Config, error) { return load(in, SystemFile) }

func load(in Input, systemFile string) (Config, error) {
	l := newLoader()
	l.addFlags(in.Flags)
	l.addEnviron(in.Environ)
	l.addFile(in.File, in.Home, systemFile)
	l.fill()
	l.checkTogether()
	l.keepFailover()
	l.warn()
	if len(l.faults) > 0 {
		return l.config, l.faults
	}
	return l.config, nil
}

// faults are all that is wrong with the settings.
type faults []error

// Error has one line for each fault.
func (f faults) Error() string {
	lines := make([]string, len(f))
	for i, err := range f {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the faults to errors.Is and errors.As.
func (f faults) Unwrap() []error { return f }

// Hint returns the first hint that any of the faults gives.
func (f faults) Hint() string {
	for _, err := range f {
		var hinter interface{ Hint() string }
		if errors.As(err, &hinter) {
			return hinter.Hint()
		}
	}
	return ""
}

// layer is where a value was given. A lower one wins.
type layer int

const (
	fromFlag layer = iota
	fromEnvironment
	fromFile
	fromSearch // of the configuration file's own name
	fromDefault
)

// given is a value that somebody set.
type given struct {
	name  string // the name or alias that was used
	text  string
	layer layer
	rank  int    // 0 for the setting's name, then its aliases
	file  string // for fromFile
}

func (g given) String() string {
	switch g.layer {
	case fromFlag:
		return "flag --" + flagName(g.name)
	case fromEnvironment:
		return "environment " + g.name
	case fromFile:
		return "file " + g.file
	case fromSearch:
		return "search"
	default:
		return "default"
	}
}

type position struct{ definition, rank int }

type loader struct {
	definitions []Definition
	known       map[string]position // names and aliases
	given       [][]given           // for each definition
	unknown     []given
	config      Config
	faults      faults
}

func newLoader() *loader {
	definitions := Definitions()
	l := &loader{
		definitions: definitions,
		known:       make(map[string]position, 4*len(definitions)),
		given:       make([][]given, len(definitions)),
	}
	for i, d := range definitions {
		l.known[d.Name] = position{i, 0}
		for rank, alias := range d.Aliases {
			l.known[alias] = position{i, rank + 1}
		}
	}
	return l
}

func (l *loader) fault(format string, args ...any) {
	l.faults = append(l.faults, fmt.Errorf(format, args...))
}

// add notes a value. It returns false if the name is not known.
func (l *loader) add(g given) bool {
	at, ok := l.known[g.name]
	if !ok {
		return false
	}
	g.text = strings.TrimRight(g.text, "\r\n")
	if g.text == "" && g.layer != fromFlag {
		return true
	}
	d := l.definitions[at.definition]
	if d.fileOnly && g.layer != fromFile {
		l.fault("cannot use %s from %s: it can be set in a configuration file only", g.name, g)
		return true
	}
	g.rank = at.rank
	l.given[at.definition] = append(l.given[at.definition], g)
	return true
}

func (l *loader) addFlags(flags map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(flags)) {
		if !l.add(given{name: strings.ToUpper(name), text: flags[name], layer: fromFlag}) {
			l.fault("cannot use flag --%s: no setting has this name%s", flagName(name), l.didYouMean(strings.ToUpper(name)))
		}
	}
}

// ownPrefixes are those of variables that nobody but walden, WAL-G and WAL-E reads: an unknown one is a slip.
var ownPrefixes = []string{"WALDEN_", "WALG_", "WALE_"}

func (l *loader) addEnviron(environ []string) {
	seen := make(map[string]bool, len(environ))
	for _, entry := range environ {
		name, text, ok := strings.Cut(entry, "=")
		if !ok || seen[name] {
			continue // the first of several counts, as for os.Getenv
		}
		seen[name] = true
		g := given{name: name, text: text, layer: fromEnvironment}
		if !l.add(g) && slices.ContainsFunc(ownPrefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
			l.unknown = append(l.unknown, g)
		}
	}
}

// addFile reads the configuration file and notes what stands in it.
func (l *loader) addFile(named, home, systemFile string) {
	if named != "" {
		l.add(given{name: configPath, text: named, layer: fromFlag})
	} else if g, ok := l.winner(l.known[configPath].definition); ok {
		named = g.text
	}
	file, content, err := readFile(named, home, systemFile)
	if err != nil {
		l.faults = append(l.faults, err)
		return
	}
	l.config.File = file
	seen := make(map[string]bool, len(content))
	for _, key := range slices.Sorted(maps.Keys(content)) {
		name := strings.ToUpper(key)
		g := given{name: name, layer: fromFile, file: file}
		at, ok := l.known[name]
		switch {
		case !ok:
			l.unknown = append(l.unknown, g)
		case seen[name]:
			l.fault("cannot use %s from file %s: it stands there more than once", name, file)
		default:
			seen[name] = true
			if g.text, err = fileText(l.definitions[at.definition], content[key]); err != nil {
				l.fault("cannot use %s from file %s: %w", name, file, err)
				continue
			}
			l.add(g)
		}
	}
}

// winner returns the value that counts of those given for a setting.
func (l *loader) winner(definition int) (given, bool) {
	all := l.given[definition]
	if len(all) == 0 {
		return given{layer: fromDefault}, false
	}
	best := slices.MinFunc(all, func(a, b given) int {
		return cmp.Or(cmp.Compare(a.layer, b.layer), cmp.Compare(a.rank, b.rank))
	})
	return best, best.text != ""
}

// fill parses every setting's value, or its default, into its field.
func (l *loader) fill() {
	l.config.settings = make([]Value, len(l.definitions))
	for i, d := range l.definitions {
		g, ok := l.winner(i)
		text := g.text
		if !ok {
			text = d.Default
			g.layer = fromDefault
		}
		if d.Secret {
			l.keepSecrets(i)
		}
		shown := d.show(text, false)
		switch {
		case d.Name == configPath:
			// The field already holds the file that was read, wherever it was found.
			shown = l.config.File
			if !ok && shown != "" {
				g.layer = fromSearch
			}
		case text != "" && d.field != nil:
			value, err := d.parse(text)
			if err != nil {
				shown = d.show(text, true)
				l.fault("cannot use %s = %s from %s: %w", g.name, quote(shown), g, err)
				break
			}
			d.assign(&l.config, value)
		}
		l.config.settings[i] = Value{Name: d.Name, Value: shown, Source: g.String(), Help: d.Help, Effect: d.Effect}
	}
}

// keepSecrets notes what was given for a secret setting. What cannot be parsed is as secret as what can.
func (l *loader) keepSecrets(definition int) {
	for _, g := range l.given[definition] {
		texts := []string{g.text}
		if l.definitions[definition].Type == Map {
			if m, err := parseMap(g.text); err == nil {
				if l.definitions[definition].Name == failoverStorages {
					m = l.secretsOf(m)
				}
				texts = leaves(m, nil)
			}
		}
		for _, text := range texts {
			l.config.secrets = append(l.config.secrets, NewSecret(text))
		}
	}
}

// secretsOf leaves out of the failover storages what is known to be no secret: names of buckets and directories, which belong into
// messages.
func (l *loader) secretsOf(storages map[string]any) map[string]any {
	secret := map[string]any{}
	for name, value := range storages {
		settings, isMap := value.(map[string]any)
		if !isMap {
			secret[name] = value
			continue
		}
		for key, value := range settings {
			if at, known := l.known[strings.ToUpper(key)]; !known || l.definitions[at.definition].Secret {
				secret[name+" "+key] = value
			}
		}
	}
	return secret
}

// leaves collects the values of a map, of the maps and lists in it, and so on.
func leaves(value any, found []string) []string {
	switch v := value.(type) {
	case map[string]any:
		for _, item := range v {
			found = leaves(item, found)
		}
	case []any:
		for _, item := range v {
			found = leaves(item, found)
		}
	default:
		found = append(found, fmt.Sprint(v))
	}
	return found
}

// quote keeps messages to one line of bounded length.
func quote(text string) string {
	const most = 120
	if len(text) > most {
		text = text[:most] + "…"
	}
	return fmt.Sprintf("%q", text)
}

// found returns the name under which a setting was given, or "" if it has its default.
func (l *loader) found(name string) string {
	g, ok := l.winner(l.known[name].definition)
	if !ok {
		return ""
	}
	return g.name
}

// checkTogether finds faults between settings that are each valid alone, and draws the conclusions of several.
func (l *loader) checkTogether() {
	l.chooseStorage()
	c := &l.config
	c.S3.useWALEEndpoint()

	if (c.S3.AccessKeyID != "") != c.S3.SecretAccessKey.IsSet() {
		l.fault("cannot use static S3 credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must be set together")
	}
	if (c.S3.SSE == "aws:kms") != (c.S3.SSEKMSKeyID != "") {
		l.fault("cannot use S3_SSE = %q: S3_SSE_KMS_ID must be set if and only if S3_SSE is aws:kms", c.S3.SSE)
	}
	if c.S3.SSECustomerKey.IsSet() && c.S3.SSE == "aws:kms" {
		l.fault("cannot use S3_SSE_C: with a customer key S3_SSE can only be AES256")
	}
	if c.S3.MinRetryDelay > c.S3.MaxRetryDelay {
		l.fault("cannot use S3_MIN_THROTTLING_RETRY_DELAY = %s: S3_MAX_THROTTLING_RETRY_DELAY is less, %s",
			c.S3.MinRetryDelay, c.S3.MaxRetryDelay)
	}
	if name := l.found("WALG_ZSTD_LEVEL"); name != "" && c.Compression.Method != "zstd" {
		l.fault("cannot use %s = %q: WALG_COMPRESSION_METHOD is %s, and only zstd has levels",
			name, c.Compression.ZstdLevel, c.Compression.Method)
	}
	if c.Backup.DeltaFromName != "" && c.Backup.DeltaFromUserData != "" {
		l.fault("cannot use WALG_DELTA_FROM_NAME: WALG_DELTA_FROM_USER_DATA is set as well, and only one can name the base")
	}
	l.chooseEncryption()
}

// methods are the settings that hold or name a key to encrypt with. Only one of them can be set, as the last may not have been
// meant to replace the first: WAL-G would use the first that it finds.
var methods = []struct {
	setting string
	method  Method
}{
	{"WALG_PGP_KEY", MethodOpenPGP}, {"WALG_PGP_KEY_PATH", MethodOpenPGP}, {"GPG_KEY_ID", MethodGnuPG},
	{"WALG_CSE_KMS_ID", MethodAWSKMS}, {"WALG_LIBSODIUM_KEY", MethodSodium}, {"WALG_LIBSODIUM_KEY_PATH", MethodSodium},
}

// chooseEncryption takes the one key to encrypt with. What is set about encryption and without effect is refused rather than
// warned of: whoever set it may believe that something is encrypted.
func (l *loader) chooseEncryption() {
	e := &l.config.Encryption
	for i, d := range l.definitions {
		g, ok := l.winner(i)
		if !ok || d.Group != groupEncryption || d.isDefault(g.text) {
			continue
		}
		e.Requested = true
		e.By = append(e.By, g.name)
		if d.Effect != "" {
			e.Refused = g.name + " is set: " + d.Effect
		}
	}
	var by string
	for _, m := range methods {
		name := l.found(m.setting)
		switch {
		case name == "":
		case by != "":
			e.Refused = fmt.Sprintf("both %s and %s are set, and only one key can encrypt; for reading what was encrypted with another one, there are "+
				"WALDEN_LIBSODIUM_OLD_KEYS, WALDEN_PGP_OLD_KEYS and WALDEN_READ_CSE_KMS", by, name)
		default:
			e.Method, by = m.method, name
		}
	}
	for _, pair := range [][2]string{
		{"WALDEN_LIBSODIUM_OLD_KEYS", "WALDEN_LIBSODIUM_OLD_KEYS_PATH"}, {"WALDEN_PGP_OLD_KEYS", "WALDEN_PGP_OLD_KEYS_PATH"},
	} {
		if l.found(pair[0]) != "" && l.found(pair[1]) != "" {
			e.Refused = fmt.Sprintf("both %s and %s are set; the file can hold all keys", pair[0], pair[1])
		}
	}
	for _, part := range []struct{ name, without string }{
		{"WALG_PGP_KEY_PASSPHRASE", "an OpenPGP key"}, {"WALG_LIBSODIUM_KEY_TRANSFORM", "a key for libsodium"},
		{"WALG_CSE_KMS_REGION", "a key of AWS KMS"}, {"WALDEN_CSE_KMS_ENDPOINT", "a key of AWS KMS"},
		{"WALDEN_PGP_OLD_KEYS_PASSPHRASE", "WALDEN_PGP_OLD_KEYS"},
	} {
		if name := l.found(part.name); name != "" && slices.Contains(e.By, name) && !l.belongs(part.name) && e.Refused == "" {
			e.Refused = fmt.Sprintf("%s is set without %s", name, part.without)
		}
	}
}

// belongs tells whether there is a key that a setting says more about.
func (l *loader) belongs(setting string) bool {
	e := l.config.Encryption
	oldPGP := e.PGPOldKeys.IsSet() || e.PGPOldKeysPath != ""
	switch setting {
	case "WALG_PGP_KEY_PASSPHRASE":
		return e.Method == MethodOpenPGP || e.Method == MethodGnuPG || oldPGP
	case "WALG_LIBSODIUM_KEY_TRANSFORM":
		return e.Method == MethodSodium || e.LibsodiumOldKeys.IsSet() || e.LibsodiumOldKeysPath != ""
	case "WALDEN_PGP_OLD_KEYS_PASSPHRASE":
		return oldPGP
	default:
		return e.Method == MethodAWSKMS || e.ReadAWSKMS
	}
}

// chooseStorage takes the first prefix that is set.
func (l *loader) chooseStorage() {
	s := &l.config.Storage
	for _, p := range prefixes {
		text := *p.field(s)
		if text == "" {
			continue
		}
		name := l.found(p.setting)
		if s.Kind != KindNone {
			l.config.warnings = append(l.config.warnings, fmt.Sprintf(
				"%s and %s name two storages: %s is used", s.Setting, name, s.Setting))
			continue
		}
		bucket, path, err := p.split(text)
		if err != nil {
			continue // reported when the field was filled
		}
		if p.kind == KindGCS && !l.config.GCS.NormalizePrefix {
			path = verbatimPath(text)
		}
		s.Kind, s.Setting, s.Bucket, s.Path = p.kind, name, bucket, path
	}
	s.Folder = strings.Trim(s.Folder, "/")
}

// isDefault tells whether text means the same as the default.
func (d Definition) isDefault(text string) bool {
	if text == d.Default {
		return true
	}
	value, err := d.parse(text)
	if err != nil || d.Default == "" {
		return false
	}
	standard, err := d.parse(d.Default)
	return err == nil && fmt.Sprint(value) == fmt.Sprint(standard)
}
