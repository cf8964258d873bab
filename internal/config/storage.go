package config

import (
	"errors"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
)

// prefix is a setting that names a storage.
type prefix struct {
	kind    Kind
	setting string
	alias   string
	scheme  string
	group   string
	help    string
	field   func(*Storage) *string
}

// prefixes stand in the order in which WAL-G looks for them (WAL-G format, settings): the first that is set is used.
var prefixes = []prefix{
	{KindOSS, "WALG_OSS_PREFIX", "WALE_OSS_PREFIX", "oss", groupOSS,
		"Bucket and path in Alibaba Cloud OSS, `oss://bucket/path`.",
		func(s *Storage) *string { return &s.OSSPrefix }},
	{KindS3, "WALG_S3_PREFIX", "WALE_S3_PREFIX", "s3", groupS3,
		"Bucket and path in S3 or a service that speaks its protocol, `s3://bucket/path`. The path may be empty.",
		func(s *Storage) *string { return &s.S3Prefix }},
	{KindFile, "WALG_FILE_PREFIX", "WALE_FILE_PREFIX", "file", groupStorage,
		"Directory of a local or mounted file system, as an absolute name or as `file://localhost/path`. " +
			"The directory must exist.",
		func(s *Storage) *string { return &s.FilePrefix }},
	{KindGCS, "WALG_GS_PREFIX", "WALE_GS_PREFIX", "gs", groupGCS,
		"Bucket and path in Google Cloud Storage, `gs://bucket/path`.",
		func(s *Storage) *string { return &s.GSPrefix }},
	{KindAzure, "WALG_AZ_PREFIX", "WALE_AZ_PREFIX", "azure", groupAzure,
		"Container and path in Azure Blob Storage, `azure://container/path`.",
		func(s *Storage) *string { return &s.AzurePrefix }},
	{KindSwift, "WALG_SWIFT_PREFIX", "WALE_SWIFT_PREFIX", "swift", groupSwift,
		"Container and path in OpenStack Swift, `swift://container/path`.",
		func(s *Storage) *string { return &s.SwiftPrefix }},
	{KindSSH, "WALG_SSH_PREFIX", "WALE_SSH_PREFIX", "ssh", groupSSH,
		"Host and absolute path that are reached by SFTP, `ssh://host/path`.",
		func(s *Storage) *string { return &s.SSHPrefix }},
}

// definition makes the setting.
func (p prefix) definition() Definition {
	return Definition{
		Name: p.setting, Aliases: []string{p.alias}, Group: p.group, Type: Prefix, Help: p.help,
		check: func(text string) error {
			_, _, err := p.split(text)
			return err
		},
		field: func(c *Config) any { return p.field(&c.Storage) },
	}
}

// split takes the prefix apart. The errors do not contain it.
func (p prefix) split(text string) (bucket, path string, err error) {
	if p.kind == KindFile && !strings.Contains(text, "://") {
		return "", filepath.Clean(text), checkAbsolute(text)
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != p.scheme:
		return "", "", invalid(p.valid())
	case u.User != nil:
		return "", "", errors.New("user and password do not belong into a prefix, which is shown; they have settings of their own")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return "", "", errors.New(`"?" and "#" have no meaning in a prefix`)
	case p.kind == KindFile:
		if u.Host != "" && u.Host != "localhost" {
			return "", "", errors.New("the host of a file prefix can only be localhost")
		}
		return "", filepath.Clean(u.Path), checkAbsolute(u.Path)
	case u.Host == "":
		return "", "", invalid(p.valid())
	}
	return u.Host, strings.Trim(u.Path, "/"), nil
}

// verbatimPath is what follows the slash after the bucket of a prefix that split takes: WAL-E's names in Google Cloud Storage
// begin with a slash of their own ("WAL-E format", prefixes).
func verbatimPath(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(u.Path, "/")
}

func (p prefix) valid() string {
	if p.kind == KindFile {
		return "an absolute directory name or file://localhost/path"
	}
	return p.scheme + "://name/path"
}

// checkAbsolute refuses relative names: PostgreSQL runs archive_command in its data directory, cron does not.
func checkAbsolute(dir string) error {
	if !filepath.IsAbs(dir) {
		return errors.New("the directory name must be absolute")
	}
	return nil
}

// walName is the name of a segment or of a history file, as PostgreSQL spells them.
var walName = regexp.MustCompile(`^([0-9A-F]{24}|[0-9A-F]{8}\.history)$`)

func checkWALName(name string) error {
	if !walName.MatchString(name) {
		return errors.New("expected the name of a WAL segment (24 upper-case hexadecimal digits) or of a history file (00000002.history)")
	}
	return nil
}

// checkFolder refuses names that lead out of the storage's path.
func checkFolder(folder string) error {
	for element := range strings.SplitSeq(strings.Trim(folder, "/"), "/") {
		if element == "." || element == ".." || element == "" {
			return errors.New(`expected a slash-separated path without empty, "." and ".." elements`)
		}
	}
	return nil
}

// walEEndpoint is an address in WAL-E's form: protocol, where the bucket's name goes, host and port (WAL-E format, "Configuration").
var walEEndpoint = regexp.MustCompile(`^(https?)\+(path|virtualhost|subdomain)://([^/@?#\s]+)/?$`)

func checkWALEEndpoint(text string) error {
	if !walEEndpoint.MatchString(text) {
		return errors.New("expected http or https, then +path, +virtualhost or +subdomain, then ://host:port")
	}
	return nil
}

// useWALEEndpoint draws the conclusions from WALE_S3_ENDPOINT where AWS_ENDPOINT is not set.
func (s *S3) useWALEEndpoint() {
	if m := walEEndpoint.FindStringSubmatch(s.WALEEndpoint); m != nil && s.Endpoint == "" {
		s.Endpoint = m[1] + "://" + m[3]
		s.ForcePathStyle = s.ForcePathStyle || m[2] == "path"
	}
}

func checkLogDestination(text string) error {
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "stderr" && part != "syslog" {
			return errors.New("expected stderr, syslog, or both with a comma between")
		}
	}
	return nil
}
