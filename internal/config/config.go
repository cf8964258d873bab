// Package config reads walden's settings, once, into one typed [Config].
//
// Its nouns: a definition ([Definition]) says everything about one setting, and parser, flag, help text, masking and
// docs/configuration.md all come from it; a value ([Value]) is what a setting was found to be and where.
//
// It promises: a flag wins over the environment, the environment over the configuration file, the file over the
// default. All faults are reported at once and name the setting, the value and what would be valid. No setting that
// is known, and no WALG_, WALE_ or WALDEN_ name that is unknown, is ignored without a warning. Nothing is written to the
// process environment. A secret shows as "***" everywhere.
package config

import (
	"time"
)

// Config holds all settings. It is made by [Load] and only read afterwards.
type Config struct {
	File string // configuration file that was read, "" if none

	Storage     Storage
	S3          S3
	GCS         GCS
	Postgres    Postgres
	Compression Compression
	Encryption  Encryption
	Backup      Backup
	Restore     Restore
	WAL         WAL
	Limits      Limits
	Log         Log

	settings []Value
	secrets  []Secret
	warnings []string
	failover func(name string) (Config, error) // nil if there is no failover storage
}

// Kind is a kind of storage.
type Kind string

// The kinds of storage that a prefix can name.
const (
	KindNone  Kind = "" // no prefix is set
	KindOSS   Kind = "oss"
	KindS3    Kind = "s3"
	KindFile  Kind = "file"
	KindGCS   Kind = "gs"
	KindAzure Kind = "azure"
	KindSwift Kind = "swift"
	KindSSH   Kind = "ssh"
)

// Storage says where backups and WAL lie.
type Storage struct {
	Kind    Kind   // chosen from the prefixes below, in the order in which they stand
	Setting string // name of the prefix setting that was chosen, under which it was found; "" if none

	// Bucket is the bucket, container or host of the chosen prefix; "" for files.
	Bucket string
	// Path is what follows it: an absolute, clean directory name for files, otherwise without slashes at either end; but as it
	// was given, without the slash after the bucket, in Google Cloud Storage where GCS.NormalizePrefix is false.
	Path string
	// Folder is a folder below Path, slash-separated, without slashes at either end. It need not exist yet.
	Folder string

	// The prefixes as they were given. They contain no passwords.
	OSSPrefix, S3Prefix, FilePrefix, GSPrefix, AzurePrefix, SwiftPrefix, SSHPrefix string

	Target   string   // name of the storage to use, "" or "default" for the primary
	Failover []string // names of the failover storages in the configuration file, sorted; see [Config.FailoverStorage]
}

// S3 holds the settings of S3 and of services that speak its protocol. "" means: as the AWS SDK does by default.
type S3 struct {
	AccessKeyID     string
	SecretAccessKey Secret // set if and only if AccessKeyID is
	SessionToken    Secret
	RoleARN         string
	RoleSessionName string

	Profile               string
	SharedCredentialsFile string // file name
	SharedConfigFile      string // file name
	WebIdentityTokenFile  string // file name

	Region         string
	DefaultRegion  string // used where Region is ""
	Endpoint       string // URL with scheme
	WALEEndpoint   string // as WAL-E writes it; Endpoint and ForcePathStyle hold what follows from it
	ForcePathStyle bool
	DualStack      bool
	CABundle       string // file name, PEM
	CACertFile     string // file name, PEM; wins over CABundle

	StorageClass      string
	SSE               string // "", "AES256", "aws:kms"; with SSECustomerKey the algorithm
	SSEKMSKeyID       string // set if and only if SSE is "aws:kms"
	SSECustomerKey    Secret
	Checksum          string // "crc32", "md5", "none"
	AdditionalHeaders map[string]Secret

	PartSize           int64 // bytes
	MaxRetries         int
	MinRetryDelay      time.Duration
	MaxRetryDelay      time.Duration
	RangeMaxRetries    int // continuations of a broken download
	ListObjectsV1      bool
	DeleteBatchSize    int    // keys per request
	SkipValidation     bool   // do not check at the start that the bucket can be used
	LogLevel           string // "DEVEL" logs every request
	Disable100Continue bool
}

// GCS holds the settings of Google Cloud Storage.
type GCS struct {
	CredentialsFile string // file name; "": Google's default chain
	Emulator        string // host:port or URL of a server that stands for the service; "": the service
	NormalizePrefix bool
	EncryptionKey   Secret // base64 of 32 bytes
	MaxChunkSize    int64  // bytes
	MaxRetries      int
	ContextTimeout  int // seconds
}

// Postgres says how to reach the server. "" means: as libpq does by default.
type Postgres struct {
	Host        string // name, address or socket directory of one server
	Port        int    // 0 = not given
	User        string
	Password    Secret
	PassFile    string // file name
	Database    string
	SSLMode     string
	SSLCert     string // file name
	SSLKey      string // file name
	SSLRootCert string // file name
	AppName     string

	DataDir            string        // directory name
	AllowUnknown       bool          // work with a major version that this release does not know
	AliveCheckInterval time.Duration // between pings of the session that holds backup mode
	StopBackupTimeout  time.Duration // statement timeout of the function that ends a backup
}

// Compression says how objects are compressed.
type Compression struct {
	Method    string // "lz4", "zstd", "lzma", "brotli", "none"
	ZstdLevel string // "fastest", "default", "better", "best"
}

// Method is a way of encrypting.
type Method string

// The methods. Only one can be in use.
const (
	MethodNone    Method = ""
	MethodOpenPGP Method = "OpenPGP"
	MethodGnuPG   Method = "OpenPGP with the key ring of GnuPG"
	MethodAWSKMS  Method = "AWS KMS"
	MethodSodium  Method = "libsodium"
)

// Encryption holds what is set about encryption. A caller that cannot encrypt as requested must refuse to run.
type Encryption struct {
	Requested bool     // any setting of this group is set to something
	By        []string // names under which they were found, in the order of the documentation
	Method    Method   // with which key what is written is encrypted; MethodNone if only other settings of the group are set
	Refused   string   // why walden must not run with these settings; "" if it can

	LibsodiumKey          Secret
	LibsodiumKeyPath      string // file name
	LibsodiumKeyTransform string // "none", "hex", "base64"

	PGPKey           Secret // armoured keys
	PGPKeyPath       string // file name
	PGPKeyPassphrase Secret
	GPGKeyID         string

	AWSKMSKeyID    string
	AWSKMSRegion   string
	AWSKMSEndpoint string // URL

	// For reading only.
	LibsodiumOldKeys     Secret // separated by white space, each with or without a transform and a colon in front
	LibsodiumOldKeysPath string // file name
	PGPOldKeys           Secret // armoured keys
	PGPOldKeysPath       string // file name
	PGPOldKeysPassphrase Secret
	ReadAWSKMS           bool
	ReadUnencrypted      bool
}

// Backup holds the settings of backup-push.
type Backup struct {
	DiskConcurrency    int    // parts that are read and packed at the same time
	PartSize           int64  // bytes of file content after which a part is closed
	UserData           string // JSON text, "" for none
	VerifyPages        bool   // check the page checksums
	StoreAllCorrupt    bool   // record every corrupt block, not only the first ones
	NoRelations        bool   // leave out the names of databases and tables
	ArchiveWaitTimeout time.Duration

	// From where on the backup reads more slowly; 0 = it never does.
	ArchiveBacklog int   // segments that wait to be archived
	ReplicationLag int64 // bytes that a standby is behind

	DeltaMaxSteps     int    // longest chain of deltas; 0 = full backups only
	DeltaOrigin       string // "LATEST", "LATEST_FULL"
	DeltaFromName     string
	DeltaFromUserData string // JSON text, "" for none
	UseWALDelta       bool   // wal-push records which blocks changed, and backup-push uses it
	ForceWALDelta     bool   // no delta that has to read every page
}

// Restore holds the settings of backup-fetch.
type Restore struct {
	TargetUserData string // JSON text, "" for none
}

// WAL holds the settings of wal-push and wal-fetch.
type WAL struct {
	Timeout time.Duration // for the whole command, retries included
	// EndRecoveryBefore names a segment or history file before which archive recovery is to end; "" for none.
	EndRecoveryBefore string
	// PushedAtMost is how many segments a wal-push archives at most, the one that PostgreSQL asks for included.
	PushedAtMost int
	// PrefetchDir is where the spool lies; "" is beside the cluster.
	PrefetchDir string
	// DaemonPushTimeout is for the daemon, to archive one file.
	DaemonPushTimeout time.Duration
	// IntegrityMaxDelayed is how many segments may be missing at the end of the archive when it is verified.
	IntegrityMaxDelayed int
}

// Limits bounds what walden takes of the machine.
type Limits struct {
	Memory              int64         // bytes, for all buffers together
	DirectIO            bool          // past the page cache, where that can be
	StallTimeout        time.Duration // without progress of one storage operation
	UploadConcurrency   int
	DownloadConcurrency int
	DiskRate            int64 // bytes per second, 0 = no limit
	NetworkRate         int64 // bytes per second, 0 = no limit
}

// Log says what is reported and where.
type Log struct {
	Level       string // "ERROR", "NORMAL", "DEVEL"
	Destination string // "stderr" or a file name, to which lines are appended
	Format      string // "text", "json"

	WALEDestination string // "stderr", "syslog" or both with a comma between; "" if not set
	SyslogFacility  string // "user", "local0" to "local7"
}

// Value is one setting as [Load] found it.
type Value struct {
	Name   string
	Value  string // as given, "***" for a secret, "" if there is neither a value nor a default
	Source string // "default", "file <path>", "environment <NAME>", "flag --<name>", or "search" for a configuration file
	Help   string
	Effect string // why the setting has no effect; "" if it has one
}

// Settings returns all settings in the order of the documentation, with secrets masked.
func (c Config) Settings() []Value { return c.settings }

// Secrets returns every secret that was given in any place, used or not, a map's values one by one: for masking them in words
// that others have written, such as a service's error message.
func (c Config) Secrets() []Secret { return c.secrets }

// Warnings returns what the operator should know, one line each and without values: unknown names with the nearest
// known one, settings that have no effect and why, contradicting or obsolete settings.
func (c Config) Warnings() []string { return c.warnings }
