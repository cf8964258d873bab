package config

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

const introduction = `# Configuration

<!-- Generated from the definitions in internal/config: go test ./internal/config -run TestDocsAreCurrent -update -->

walden understands the settings of WAL-G under their names (` + "`WALG_…`, `AWS_…`, `PG…`" + `) and, where WAL-G does, under
those of WAL-E (` + "`WALE_…`" + `). What is new has names that begin with ` + "`WALDEN_`" + `. An environment that works with WAL-G works
unchanged.

` + "`walden settings`" + ` shows every setting with its value and where that comes from. Secrets show as ` + "`***`" + ` there and everywhere else.

## Where values come from

The first of these that has a value decides:

1. the command line: every setting is a flag in lower case with dashes, ` + "`--walg-compression-method zstd`" + `;
2. the environment;
3. the configuration file;
4. the default.

Within each of them the setting's name comes before its aliases. Settings of storages, whose names begin with ` + "`AWS_`, `S3_`,\n`GOOGLE_`, `GCS_`, `AZURE_`, `OS_`, `SSH_` and `OSS_`" + `, have their name with ` + "`WALG_` and with `WALE_`" + ` in front as aliases: ` + "`S3_SSE`,\nthen `WALG_S3_SSE`, then `WALE_S3_SSE`" + `.

An empty value in the environment or in the file counts
as not given; an empty flag brings the default back. Line ends after a value are cut, so that a directory for ` + "`envdir`" + `
may be written with any editor. Nothing that is read from a file is passed on through the environment.

Settings that cannot be used are errors, all reported at once. Names that begin with ` + "`WALDEN_`, `WALG_` or `WALE_`" + ` and
that are not known, and all unknown names in the configuration file, are warned of, with the nearest known name. So are
settings that are known and have no effect.

### Configuration file

The first of these is read, and no other:

1. the file that ` + "`--config`" + ` names;
2. the file that ` + "`WALDEN_CONFIG_PATH`" + ` names;
3. the file that ` + "`WALG_CONFIG_PATH`" + ` names;
4. ` + "`~/.walden.yaml`, `.yml`, `.json`, `.toml`, `.env`" + `;
5. ` + "`~/.walg.json`, `.toml`, `.yaml`, `.yml`, `.env`" + `;
6. ` + "`" + SystemFile + "`" + `.

` + "`~`" + ` is the home directory that the user database has for the account, not ` + "`$HOME`" + `. A file that is named must exist,
otherwise walden fails (WAL-G goes on without it). A file that does not parse is an error, with the line. The formats of Java
properties, ini and HCL, of which older tools read some, are refused: a file that is there is never passed over.

The file holds names and values at its top level; upper and lower case are the same in names. Put passwords, keys and
other text that consists of digits in quotes: without them YAML reads ` + "`0755`" + ` as the number 493. In an ` + "`.env`" + ` file,
` + "`$NAME`" + ` stands for a variable unless the value is in single quotes.

### Examples

A directory on a mounted file system:

` + "```sh" + `
WALG_FILE_PREFIX=/srv/backup/main walden backup-push "$PGDATA"
` + "```" + `

A service that speaks the protocol of S3, in ` + "`" + SystemFile + "`" + `:

` + "```yaml" + `
WALG_S3_PREFIX: s3://backups/main
AWS_ENDPOINT: https://s3.example.com
AWS_S3_FORCE_PATH_STYLE: true
AWS_REGION: eu-central-1
AWS_ACCESS_KEY_ID: "AKIAEXAMPLE"
AWS_SECRET_ACCESS_KEY: "…"
WALG_COMPRESSION_METHOD: zstd
` + "```" + `

One file per variable, as for WAL-E, in ` + "`postgresql.conf`" + `:

` + "```" + `
archive_command = 'envdir /etc/walden/env walden wal-push %p'
restore_command = 'envdir /etc/walden/env walden wal-fetch %f %p'
` + "```" + `

### How values are written

| Type | Written as |
|---|---|
| boolean | ` + "`true`, `t`, `1`, `false`, `f`, `0`" + `, also in capitals |
| duration | number and unit, ` + "`500ms`, `90s`, `15m`, `2h`, `1h30m`" + ` |
| milliseconds | a whole number |
| size | bytes, or number and unit: ` + "`kb`, `mb`, `gb`, `tb` or `KiB`, `MiB`, `GiB`, `TiB`" + `. As in PostgreSQL, 1 kB is 1024 bytes |
| choice | one of the words given, in upper or lower case |
| JSON | any JSON value; in a configuration file also as a nested value |
| map | YAML or JSON; in a configuration file as a nested value |
`

// groupIntroductions say what is true of all settings of a group.
var groupIntroductions = map[string]string{
	groupStorage: "Backups and WAL lie below one prefix. Of several that are set, the first in this order is used, with a warning: " +
		"OSS, S3, file, Google Cloud Storage, Azure, Swift, SSH.",
	groupPostgres: "What is not set is as libpq has it.",
	groupEncryption: "Everything that is pushed is encrypted with one key: one of `WALG_PGP_KEY`, `WALG_PGP_KEY_PATH`, `GPG_KEY_ID`, " +
		"`WALG_CSE_KMS_ID`, `WALG_LIBSODIUM_KEY` and\n`WALG_LIBSODIUM_KEY_PATH`. Two of them, settings that say more about a key that is not set, and a key that " +
		"cannot encrypt are errors: walden stores nothing\nreadable that was meant to be encrypted. Names of backups and files, sizes, times, and the documents " +
		"(JSON) are never encrypted.\n\nTo change the key, or the way of encrypting, set the new key, and give the old one by a setting that is for reading only: " +
		"`WALDEN_LIBSODIUM_OLD_KEYS`,\n`WALDEN_PGP_OLD_KEYS`, `WALDEN_READ_CSE_KMS`. What was pushed before stays readable.",
	groupAzure: "walden refuses to run with this storage.",
	groupSwift: "walden refuses to run with this storage.",
	groupSSH:   "walden refuses to run with this storage.",
	groupOSS:   "walden refuses to run with this storage.",
	groupWALE: "Settings of WAL-E that WAL-G has not. `TMPDIR` needs none: walden writes no temporary files outside the archive and the restored " +
		"directories. What differs under the name `wal-e` is told in [migration](migration.md).",
}

// WriteMarkdown writes docs/configuration.md.
func WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString(introduction)
	group := ""
	for _, d := range Definitions() {
		if d.Group != group {
			group = d.Group
			fmt.Fprintf(&b, "\n## %s\n\n", group)
			if text := groupIntroductions[group]; text != "" {
				fmt.Fprintf(&b, "%s\n\n", text)
			}
			b.WriteString("| Setting | Values | Default | Meaning |\n|---|---|---|---|\n")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", d.Name, d.markdownValues(), d.markdownDefault(), d.markdownMeaning())
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (d Definition) markdownValues() string {
	if d.Type == Choice {
		return "`" + strings.Join(d.Choices, "` `") + "`"
	}
	text := string(d.Type)
	switch {
	case d.bounds == nil:
	case d.Type == Size:
		text += d.bounds.describe(formatSize)
	case d.Type == Duration:
		text += d.bounds.describe(formatDuration)
	default:
		text += d.bounds.describe(func(n int64) string { return fmt.Sprint(n) })
	}
	if d.Secret {
		text += ", secret"
	}
	return text
}

func (d Definition) markdownDefault() string {
	if d.Default == "" {
		return "–"
	}
	return "`" + d.Default + "`"
}

func (d Definition) markdownMeaning() string {
	text := d.Help
	if d.Effect != "" {
		text += " **No effect:** " + d.Effect + "."
	}
	aliases := d.Aliases
	if d.storage { // the introduction tells of the others
		aliases = slices.DeleteFunc(slices.Clone(aliases), func(name string) bool { return strings.HasPrefix(name, "WAL") })
	}
	if len(aliases) > 0 {
		text += " Also `" + strings.Join(aliases, "`, `") + "`."
	}
	if d.flag != "" {
		text += " Flag also `--" + d.flag + "`."
	}
	if d.Since != "" {
		text += " Since walden " + d.Since + "."
	}
	return strings.ReplaceAll(text, "|", `\|`)
}
