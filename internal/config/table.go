package config

import (
	"errors"
	"slices"
	"strings"
	"time"
)

// configPath is the one setting that is resolved before the configuration file is read.
const configPath = "WALDEN_CONFIG_PATH"

// The groups of settings, in the order of the documentation.
const (
	groupGeneral     = "General"
	groupStorage     = "Storage"
	groupS3          = "S3"
	groupPostgres    = "PostgreSQL"
	groupCompression = "Compression"
	groupEncryption  = "Encryption"
	groupBackup      = "Backups"
	groupDelta       = "Delta backups"
	groupRestore     = "Restoring"
	groupWAL         = "WAL"
	groupLimits      = "Limits"
	groupLog         = "Logging and diagnosis"
	groupFailover    = "Failover storages"
	groupGCS         = "Google Cloud Storage"
	groupAzure       = "Azure Blob Storage"
	groupSwift       = "OpenStack Swift"
	groupSSH         = "SSH"
	groupOSS         = "Alibaba Cloud OSS"
	groupWALE        = "WAL-E"
)

// groupKinds are the storages whose settings say nothing as long as another storage is used.
var groupKinds = map[string]Kind{
	groupAzure: KindAzure, groupSwift: KindSwift, groupSSH: KindSSH, groupOSS: KindOSS,
}

// firstRelease is the first release of walden.
const firstRelease = "0.1"

const hour = int64(time.Hour)

// waiting bounds how long something may wait: never for ever.
func waiting() *bounds { return between(int64(100*time.Millisecond), 7*24*hour) }

// concurrency bounds numbers of goroutines.
func concurrency() *bounds { return between(1, 1024) }

// Reasons that several settings share.
const (
	noFailover = "walden takes no storage for another one by itself"
	noProfiles = "walden has no debug server and writes no profiles"
	noComposer = "walden has one way of dividing a cluster into parts"
	noReceive  = "walden does not stream WAL"
	toEndpoint = "walden connects to AWS_ENDPOINT itself"
	noLock     = "walden sets no object lock; give the bucket a default retention"
	fromServer = "walden takes it from the cluster itself"
	noYandex   = "walden refuses to run, since it does not use the KMS of Yandex Cloud; encrypt with OpenPGP, libsodium or AWS KMS"
)

// Definitions returns all settings in the order of the documentation.
func Definitions() []Definition {
	definitions := slices.Concat(general(), storages(), s3(), gcs(), postgres(), compression(), encryption(), backup(), delta(),
		restore(), wal(), limits(), logging(), failover(), otherStorages(), walE())
	for i := range definitions {
		definitions[i].addStorageNames()
	}
	return definitions
}

// addStorageNames adds the names with prefix under which WAL-G looks for settings of storages too.
func (d *Definition) addStorageNames() {
	if !d.storage {
		return
	}
	names := append([]string{d.Name}, d.Aliases...)
	d.Aliases = nil
	for _, name := range names {
		d.Aliases = append(d.Aliases, name, "WALG_"+name, "WALE_"+name)
	}
	d.Aliases = d.Aliases[1:] // the name itself
}

func general() []Definition {
	return []Definition{
		{Name: configPath, Aliases: []string{"WALG_CONFIG_PATH"}, Group: groupGeneral, Type: Path, flag: "config",
			Help:  "Configuration file to read. It must exist.",
			field: func(c *Config) any { return &c.File }},
	}
}

func storages() []Definition {
	definitions := []Definition{
		{Name: "WALG_STORAGE_PREFIX", Group: groupStorage, Type: Text, check: checkFolder,
			Help:  "Folder below the storage's prefix that holds this cluster's backups and WAL. It is made when needed.",
			field: func(c *Config) any { return &c.Storage.Folder }},
		{Name: "WALG_TARGET_STORAGE", Group: groupStorage, Type: Text,
			Help:  "Name of the one storage to use, as `--target-storage`. The storage that the prefix names is `default`.",
			field: func(c *Config) any { return &c.Storage.Target }},
	}
	return append(prefixesOf(groupStorage), definitions...)
}

// prefixesOf returns the definitions of the prefixes that a group begins with.
func prefixesOf(group string) []Definition {
	var definitions []Definition
	for _, p := range prefixes {
		if p.group == group {
			definitions = append(definitions, p.definition())
		}
	}
	return definitions
}

func s3() []Definition {
	const mebibyte = 1 << 20
	definitions := []Definition{
		{Name: "AWS_ACCESS_KEY_ID", Aliases: []string{"AWS_ACCESS_KEY"}, Type: Text,
			Help: "Static credentials. Without them the AWS SDK looks in its usual places: shared files, web identity, " +
				"instance metadata.",
			field: func(c *Config) any { return &c.S3.AccessKeyID }},
		{Name: "AWS_SECRET_ACCESS_KEY", Aliases: []string{"AWS_SECRET_KEY"}, Type: Text, Secret: true,
			Help:  "The secret that belongs to `AWS_ACCESS_KEY_ID`.",
			field: func(c *Config) any { return &c.S3.SecretAccessKey }},
		{Name: "AWS_SESSION_TOKEN", Aliases: []string{"AWS_SECURITY_TOKEN"}, Type: Text, Secret: true,
			Help:  "Session token of temporary static credentials.",
			field: func(c *Config) any { return &c.S3.SessionToken }},
		{Name: "AWS_ROLE_ARN", Type: Text,
			Help:  "Role to assume, with the credentials found or with the web identity.",
			field: func(c *Config) any { return &c.S3.RoleARN }},
		{Name: "AWS_ROLE_SESSION_NAME", Type: Text,
			Help:  "Name of the session that assumes the role.",
			field: func(c *Config) any { return &c.S3.RoleSessionName }},
		{Name: "AWS_WEB_IDENTITY_TOKEN_FILE", Type: Path,
			Help:  "File with the token with which `AWS_ROLE_ARN` is assumed.",
			field: func(c *Config) any { return &c.S3.WebIdentityTokenFile }},
		{Name: "AWS_PROFILE", Type: Text,
			Help:  "Profile in the shared configuration and credentials files.",
			field: func(c *Config) any { return &c.S3.Profile }},
		{Name: "AWS_SHARED_CREDENTIALS_FILE", Type: Path,
			Help:  "Shared credentials file to read instead of `~/.aws/credentials`.",
			field: func(c *Config) any { return &c.S3.SharedCredentialsFile }},
		{Name: "AWS_CONFIG_FILE", Type: Path,
			Help:  "Shared configuration file to read instead of `~/.aws/config`.",
			field: func(c *Config) any { return &c.S3.SharedConfigFile }},
		{Name: "S3_USE_YC_SESSION_TOKEN", Type: Boolean, Default: "false",
			Help:   "Send credentials from the instance metadata as `X-YaCloud-SubjectToken`, for Yandex Cloud.",
			Effect: "walden signs requests with AWS credentials"},

		{Name: "AWS_REGION", Type: Text,
			Help: "Region of the bucket. Without it: `AWS_DEFAULT_REGION`, then the bucket's own region, asked of AWS; " +
				"`us-east-1` for endpoints outside `amazonaws.com`.",
			field: func(c *Config) any { return &c.S3.Region }},
		{Name: "AWS_DEFAULT_REGION", Type: Text,
			Help:  "Region where `AWS_REGION` is not set.",
			field: func(c *Config) any { return &c.S3.DefaultRegion }},
		{Name: "AWS_ENDPOINT", Type: URL,
			Help:  "Address of the service if it is not AWS. `https` where no scheme is given.",
			field: func(c *Config) any { return &c.S3.Endpoint }},
		{Name: "AWS_S3_FORCE_PATH_STYLE", Type: Boolean, Default: "false",
			Help:  "Put the bucket into the path instead of the host name; most services other than AWS need it.",
			field: func(c *Config) any { return &c.S3.ForcePathStyle }},
		{Name: "AWS_DUAL_STACK", Type: Boolean, Default: "false",
			Help:  "Use the endpoints of AWS that answer on IPv6 as well.",
			field: func(c *Config) any { return &c.S3.DualStack }},
		{Name: "S3_ENDPOINT_SOURCE", Type: URL,
			Help: "URL that answers with the name of a host. Connections then go to that host, while `Host` header and TLS " +
				"name stay those of the endpoint.",
			Effect: toEndpoint},
		{Name: "S3_ENDPOINT_PORT", Type: Integer, Default: "443",
			Help:   "Port at the host from `S3_ENDPOINT_SOURCE`.",
			Effect: toEndpoint},
		{Name: "S3_ENDPOINT_PROTOCOL", Type: Choice, Choices: []string{"http", "https"},
			Help:   "Protocol at the host from `S3_ENDPOINT_SOURCE`; without it the endpoint's own.",
			Effect: toEndpoint},
		{Name: "S3_CA_CERT_FILE", Type: Path,
			Help:  "PEM file with the certificates to trust, before `AWS_CA_BUNDLE`.",
			field: func(c *Config) any { return &c.S3.CACertFile }},
		{Name: "AWS_CA_BUNDLE", Type: Path,
			Help:  "PEM file with the certificates to trust.",
			field: func(c *Config) any { return &c.S3.CABundle }},

		{Name: "S3_STORAGE_CLASS", Type: Text, Default: "STANDARD",
			Help:  "Storage class of new objects.",
			field: func(c *Config) any { return &c.S3.StorageClass }},
		{Name: "S3_SSE", Type: Choice, Choices: []string{"AES256", "aws:kms"},
			Help:  "Encryption by the service. With `S3_SSE_C` the algorithm.",
			field: func(c *Config) any { return &c.S3.SSE }},
		{Name: "S3_SSE_KMS_ID", Type: Text,
			Help:  "Key in KMS. Needed with `S3_SSE=aws:kms` and refused otherwise.",
			field: func(c *Config) any { return &c.S3.SSEKMSKeyID }},
		{Name: "S3_SSE_C", Type: Text, Secret: true,
			Help:  "Customer key for encryption by the service; sent with reads too. The algorithm is AES256.",
			field: func(c *Config) any { return &c.S3.SSECustomerKey }},
		{Name: "S3_RETENTION_PERIOD", Type: Integer, Default: "-1",
			Help:   "Object lock of new objects in seconds; -1 for none.",
			Effect: noLock},
		{Name: "S3_RETENTION_MODE", Type: Choice, Choices: []string{"GOVERNANCE", "COMPLIANCE"}, Default: "GOVERNANCE",
			Help:   "Mode of the object lock.",
			Effect: noLock},
		{Name: "S3_ENABLE_VERSIONING", Type: Choice, Choices: []string{"enabled", "disabled"},
			Help:   "Whether the bucket keeps old versions. Without it the bucket is asked.",
			Effect: "walden lists and deletes current versions only"},
		{Name: "S3_REQUEST_ADDITIONAL_HEADERS", Type: Map, Secret: true,
			Help:  "Headers to add to every request: a map, or a list of maps.",
			field: func(c *Config) any { return &c.S3.AdditionalHeaders }},

		{Name: "S3_MAX_PART_SIZE", Type: Size, Default: "20MiB", bounds: between(5*mebibyte, 5<<30),
			Help:  "Size of the parts in which an object that is larger than one part is uploaded.",
			field: func(c *Config) any { return &c.S3.PartSize }},
		{Name: "S3_MAX_RETRIES", Type: Integer, Default: "15", bounds: between(0, 1000),
			Help:  "Retries of a request after the first attempt.",
			field: func(c *Config) any { return &c.S3.MaxRetries }},
		{Name: "S3_MIN_THROTTLING_RETRY_DELAY", Type: Milliseconds, Default: "500", bounds: between(0, 3600_000),
			Help:  "Shortest wait before a retry when the service asks to slow down.",
			field: func(c *Config) any { return &c.S3.MinRetryDelay }},
		{Name: "S3_MAX_THROTTLING_RETRY_DELAY", Type: Milliseconds, Default: "300000", bounds: between(0, 3600_000),
			Help:  "Longest wait before a retry when the service asks to slow down.",
			field: func(c *Config) any { return &c.S3.MaxRetryDelay }},
		{Name: "S3_RANGE_BATCH_ENABLED", Type: Boolean, Default: "true",
			Help:   "Go on with the rest of the object after a broken download.",
			Effect: "a broken download always goes on where it broke"},
		{Name: "S3_RANGE_MAX_RETRIES", Type: Integer, Default: "10", bounds: between(0, 1000),
			Help:  "How many times in a row a broken download goes on without any progress.",
			field: func(c *Config) any { return &c.S3.RangeMaxRetries }},
		{Name: "S3_USE_LIST_OBJECTS_V1", Type: Boolean, Default: "false",
			Help:  "List with the first version of the request, for old services.",
			field: func(c *Config) any { return &c.S3.ListObjectsV1 }},
		{Name: "S3_DELETE_BATCH_SIZE", Type: Integer, Default: "1000", bounds: between(1, 1000),
			Help:  "Objects per request when deleting.",
			field: func(c *Config) any { return &c.S3.DeleteBatchSize }},
		{Name: "S3_SKIP_VALIDATION", Type: Boolean, Default: "true",
			Help:  "`false` lists the bucket first, to find out that it cannot be used before anything is done.",
			field: func(c *Config) any { return &c.S3.SkipValidation }},
		{Name: "S3_DISABLE_100_CONTINUE", Type: Boolean, Default: "false",
			Help:  "Do not wait for the service's consent before sending the body of an upload.",
			field: func(c *Config) any { return &c.S3.Disable100Continue }},
		{Name: "S3_LOG_LEVEL", Type: Choice, Choices: []string{"ERROR", "NORMAL", "DEVEL"}, Default: "NORMAL",
			Help:  "`DEVEL` logs every request to the service, if `WALG_LOG_LEVEL` is `DEVEL` too.",
			field: func(c *Config) any { return &c.S3.LogLevel }},
		{Name: "AWS_DEFAULT_OUTPUT", Type: Text,
			Help:   "Output format of the AWS command line.",
			Effect: "it concerns the AWS command line only"},
	}
	for i := range definitions {
		definitions[i].Group = groupS3
		definitions[i].storage = true
	}
	return slices.Concat(prefixesOf(groupS3), definitions, []Definition{
		{Name: "WALDEN_S3_CHECKSUM", Group: groupS3, Type: Choice, Choices: []string{"crc32", "md5", "none"},
			Default: "crc32", Since: firstRelease,
			Help: "Checksum that goes with every upload and that the service compares. `md5` and `none` are for " +
				"services that do not know CRC-32.",
			field: func(c *Config) any { return &c.S3.Checksum }},
	})
}

// gcs are the settings of Google Cloud Storage.
func gcs() []Definition {
	definitions := []Definition{
		{Name: "GOOGLE_APPLICATION_CREDENTIALS", Type: Path,
			Help: "Key file of a service account, or another file of credentials that Google's libraries take. Without it those of " +
				"`gcloud` are used, or the machine's own.",
			field: func(c *Config) any { return &c.GCS.CredentialsFile }},
		{Name: "GCS_NORMALIZE_PREFIX", Type: Boolean, Default: "true",
			Help: "`false` keeps superfluous slashes of the prefix: with `gs://bucket//path` names begin with `/path/`, as WAL-E " +
				"wrote them.",
			field: func(c *Config) any { return &c.GCS.NormalizePrefix }},
		{Name: "GCS_ENCRYPTION_KEY", Type: Text, Secret: true,
			Help:  "Customer-supplied key for encryption by the service, base64 of 32 bytes; sent with reads too.",
			field: func(c *Config) any { return &c.GCS.EncryptionKey }},
		{Name: "GCS_MAX_CHUNK_SIZE", Type: Size, Default: "16MiB", bounds: between(1<<18, 1<<30),
			Help: "Size of the pieces in which an object that is larger is uploaded; each upload under way takes as much memory. " +
				"It is rounded up to a multiple of 256 KiB.",
			field: func(c *Config) any { return &c.GCS.MaxChunkSize }},
		{Name: "GCS_MAX_RETRIES", Type: Integer, Default: "16", bounds: between(0, 1000),
			Help:  "Retries of a request after the first attempt, and how many times in a row a broken download goes on without any progress.",
			field: func(c *Config) any { return &c.GCS.MaxRetries }},
		{Name: "GCS_CONTEXT_TIMEOUT", Type: Integer, Default: "3600", bounds: between(1, 7*24*3600),
			Help: "Longest time of one request, in seconds: of an upload for each piece, of a download until it begins. " +
				"`WALDEN_STALL_TIMEOUT` ends what does not move long before.",
			field: func(c *Config) any { return &c.GCS.ContextTimeout }},
	}
	for i := range definitions {
		definitions[i].Group = groupGCS
		definitions[i].storage = true
	}
	return slices.Concat(prefixesOf(groupGCS), definitions, []Definition{
		{Name: "STORAGE_EMULATOR_HOST", Group: groupGCS, Type: Text,
			Help: "Address of a server that stands for Google Cloud Storage in tests, `host:port` or a URL. No credentials are looked " +
				"for then, and nothing is encrypted on the way.",
			field: func(c *Config) any { return &c.GCS.Emulator }},
	})
}

// checkHost refuses lists: a backup is one of one server, and not of whichever answers first.
func checkHost(text string) error {
	if strings.Contains(text, ",") {
		return errors.New("expected one host: a backup must come from a certain server")
	}
	return nil
}

func postgres() []Definition {
	definitions := []Definition{
		{Name: "PGHOST", Type: Text, check: checkHost,
			Help:  "Host name, address or directory of the server's socket. One only.",
			field: func(c *Config) any { return &c.Postgres.Host }},
		{Name: "PGPORT", Type: Integer, bounds: between(1, 65535),
			Help:  "Port of the server.",
			field: func(c *Config) any { return &c.Postgres.Port }},
		{Name: "PGUSER", Type: Text,
			Help:  "Role to connect as. It needs the right to run the backup functions.",
			field: func(c *Config) any { return &c.Postgres.User }},
		{Name: "PGPASSWORD", Type: Text, Secret: true,
			Help:  "Password of the role.",
			field: func(c *Config) any { return &c.Postgres.Password }},
		{Name: "PGPASSFILE", Type: Path,
			Help:  "Password file to read instead of `~/.pgpass`.",
			field: func(c *Config) any { return &c.Postgres.PassFile }},
		{Name: "PGDATABASE", Type: Text,
			Help:  "Database to connect to.",
			field: func(c *Config) any { return &c.Postgres.Database }},
		{Name: "PGSSLMODE", Type: Choice,
			Choices: []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"},
			Help:    "How much TLS is asked of the connection.",
			field:   func(c *Config) any { return &c.Postgres.SSLMode }},
		{Name: "PGSSLCERT", Type: Path,
			Help:  "Client certificate.",
			field: func(c *Config) any { return &c.Postgres.SSLCert }},
		{Name: "PGSSLKEY", Type: Path,
			Help:  "Key of the client certificate.",
			field: func(c *Config) any { return &c.Postgres.SSLKey }},
		{Name: "PGSSLROOTCERT", Type: Path,
			Help:  "Certificates that the server's must be signed by.",
			field: func(c *Config) any { return &c.Postgres.SSLRootCert }},
		{Name: "PGAPPNAME", Type: Text, Default: "walden",
			Help:  "Name of walden's sessions in `pg_stat_activity`.",
			field: func(c *Config) any { return &c.Postgres.AppName }},
		{Name: "PGDATA", Type: Path,
			Help:  "Data directory of the cluster, for commands that are not given it.",
			field: func(c *Config) any { return &c.Postgres.DataDir }},
		{Name: "WALDEN_ALLOW_UNKNOWN_POSTGRES", Type: Boolean, Default: "false", Since: firstRelease,
			Help:  "Work with a major version of PostgreSQL that this release does not know, instead of refusing it.",
			field: func(c *Config) any { return &c.Postgres.AllowUnknown }},
		{Name: "WALG_ALIVE_CHECK_INTERVAL", Type: Duration, Default: "1m", bounds: between(int64(time.Second), hour),
			Help: "Time between two checks that the session in which the backup was started still lives; without it " +
				"the backup cannot be ended.",
			field: func(c *Config) any { return &c.Postgres.AliveCheckInterval }},
		{Name: "WALG_STOP_BACKUP_TIMEOUT", Type: Duration, Default: "10m", bounds: waiting(),
			Help:  "Statement timeout of the function that ends the backup.",
			field: func(c *Config) any { return &c.Postgres.StopBackupTimeout }},
		{Name: "WALG_PG_WAL_SIZE", Type: Integer, Default: "16",
			Help: "Size of a WAL segment in megabytes.", Effect: fromServer},
		{Name: "WALG_PG_WAL_PAGE_SIZE", Type: Integer, Default: "8192",
			Help: "Size of a WAL page in bytes.", Effect: fromServer},
		{Name: "WALG_PG_BLOCK_SIZE", Type: Integer, Default: "8192",
			Help: "Size of a block in bytes.", Effect: fromServer},
	}
	return inGroup(groupPostgres, definitions)
}

func inGroup(group string, definitions []Definition) []Definition {
	for i := range definitions {
		definitions[i].Group = group
	}
	return definitions
}

func compression() []Definition {
	return inGroup(groupCompression, []Definition{
		{Name: "WALG_COMPRESSION_METHOD", Type: Choice, Default: "lz4",
			Choices: []string{"lz4", "zstd", "lzma", "brotli", "none"},
			Help:    "How new objects are compressed. What is stored is read by its extension, whatever is set here.",
			field:   func(c *Config) any { return &c.Compression.Method }},
		{Name: "WALG_ZSTD_LEVEL", Type: Choice, Choices: []string{"fastest", "default", "better", "best"}, Default: "default",
			Help:  "Effort of zstd. Refused with any other method.",
			field: func(c *Config) any { return &c.Compression.ZstdLevel }},
	})
}

func encryption() []Definition {
	definitions := []Definition{
		{Name: "WALG_PGP_KEY", Type: Text, Secret: true,
			Help: "Armoured OpenPGP keys, public or secret; `\\n` stands for line ends. Everything is encrypted to all of them. Public ones " +
				"suffice to push; to fetch takes a secret one.",
			field: func(c *Config) any { return &c.Encryption.PGPKey }},
		{Name: "WALG_PGP_KEY_PATH", Type: Path,
			Help:  "File that contains the armoured OpenPGP keys.",
			field: func(c *Config) any { return &c.Encryption.PGPKeyPath }},
		{Name: "WALG_PGP_KEY_PASSPHRASE", Type: Text, Secret: true,
			Help:  "Passphrase of the secret OpenPGP keys, those of GnuPG included.",
			field: func(c *Config) any { return &c.Encryption.PGPKeyPassphrase }},
		{Name: "GPG_KEY_ID", Aliases: []string{"WALG_GPG_KEY_ID", "WALE_GPG_KEY_ID"}, Type: Text,
			Help: "OpenPGP key in the key ring of the account's GnuPG: key ID, fingerprint or user ID. walden takes it from there each time, " +
				"by running `gpg`.",
			field: func(c *Config) any { return &c.Encryption.GPGKeyID }},
		{Name: "WALG_CSE_KMS_ID", Type: Text,
			Help: "Key in AWS KMS, a symmetric one: ID, ARN or alias. It encrypts the data key that each object begins with. The credentials are " +
				"those of S3.",
			field: func(c *Config) any { return &c.Encryption.AWSKMSKeyID }},
		{Name: "WALG_CSE_KMS_REGION", Type: Text,
			Help:  "Region of the key in AWS KMS, if it is not that of the AWS configuration.",
			field: func(c *Config) any { return &c.Encryption.AWSKMSRegion }},
		{Name: "WALDEN_CSE_KMS_ENDPOINT", Type: URL, Since: firstRelease,
			Help:  "Address of AWS KMS, if it is not that of the region.",
			field: func(c *Config) any { return &c.Encryption.AWSKMSEndpoint }},
		{Name: "WALG_LIBSODIUM_KEY", Type: Text, Secret: true,
			Help:  "Key for libsodium's secretstream.",
			field: func(c *Config) any { return &c.Encryption.LibsodiumKey }},
		{Name: "WALG_LIBSODIUM_KEY_PATH", Type: Path,
			Help:  "File that contains the key for libsodium. White space around it does not count.",
			field: func(c *Config) any { return &c.Encryption.LibsodiumKeyPath }},
		{Name: "WALG_LIBSODIUM_KEY_TRANSFORM", Type: Choice, Choices: []string{"none", "hex", "base64"}, Default: "none",
			Help: "How the key for libsodium is written: `none` takes at least 25 bytes as they are, of which the first 32 count; `hex` and " +
				"`base64` spell exactly 32 bytes.",
			field: func(c *Config) any { return &c.Encryption.LibsodiumKeyTransform }},

		{Name: "WALDEN_LIBSODIUM_OLD_KEYS", Type: Text, Secret: true, Since: firstRelease,
			Help: "Earlier keys for libsodium, for reading only, separated by white space: written as `WALG_LIBSODIUM_KEY_TRANSFORM` says, or " +
				"otherwise with `none:`, `hex:` or `base64:` in front.",
			field: func(c *Config) any { return &c.Encryption.LibsodiumOldKeys }},
		{Name: "WALDEN_LIBSODIUM_OLD_KEYS_PATH", Type: Path, Since: firstRelease,
			Help:  "File that contains such keys.",
			field: func(c *Config) any { return &c.Encryption.LibsodiumOldKeysPath }},
		{Name: "WALDEN_PGP_OLD_KEYS", Type: Text, Secret: true, Since: firstRelease,
			Help:  "Earlier OpenPGP keys, armoured and secret, for reading only.",
			field: func(c *Config) any { return &c.Encryption.PGPOldKeys }},
		{Name: "WALDEN_PGP_OLD_KEYS_PATH", Type: Path, Since: firstRelease,
			Help:  "File that contains such keys.",
			field: func(c *Config) any { return &c.Encryption.PGPOldKeysPath }},
		{Name: "WALDEN_PGP_OLD_KEYS_PASSPHRASE", Type: Text, Secret: true, Since: firstRelease,
			Help:  "Their passphrase, if it is not `WALG_PGP_KEY_PASSPHRASE`.",
			field: func(c *Config) any { return &c.Encryption.PGPOldKeysPassphrase }},
		{Name: "WALDEN_READ_CSE_KMS", Type: Boolean, Default: "false", Since: firstRelease,
			Help:  "Also read what was encrypted with AWS KMS earlier. The service knows with which key.",
			field: func(c *Config) any { return &c.Encryption.ReadAWSKMS }},
		{Name: "WALDEN_READ_UNENCRYPTED", Type: Boolean, Default: "false", Since: firstRelease,
			Help: "Also read what is not encrypted, from before keys were set. Whoever can write to the storage can then have walden read what " +
				"he likes: for the time until nothing of it is left.",
			field: func(c *Config) any { return &c.Encryption.ReadUnencrypted }},
	}
	foreign := []Definition{
		{Name: "WALG_ENVELOPE_PGP_KEY", Type: Text, Secret: true,
			Help: "OpenPGP key, itself encrypted by Yandex Cloud's KMS."},
		{Name: "WALG_ENVELOPE_PGP_KEY_PATH", Type: Path,
			Help: "File that contains the encrypted OpenPGP key."},
		{Name: "WALG_ENVELOPE_PGP_YC_CSE_KMS_KEY_ID", Type: Text,
			Help: "Key in Yandex Cloud's KMS that decrypts the OpenPGP key."},
		{Name: "WALG_ENVELOPE_PGP_YC_SERVICE_ACCOUNT_KEY_FILE", Type: Path,
			Help: "Credentials for that KMS."},
		{Name: "WALG_ENVELOPE_PGP_YC_ENDPOINT", Type: Text,
			Help: "Address of that KMS."},
		{Name: "WALG_ENVELOPE_CACHE_EXPIRATION", Type: Duration, Default: "0", bounds: atLeast(0),
			Help: "How long the decrypted key may be reused; 0 for as long as the process runs."},
		{Name: "YC_CSE_KMS_KEY_ID", Type: Text,
			Help: "Key in Yandex Cloud's KMS."},
		{Name: "YC_SERVICE_ACCOUNT_KEY_FILE", Type: Path,
			Help: "Credentials for Yandex Cloud's KMS."},
	}
	for i := range foreign {
		foreign[i].Effect = noYandex
	}
	return inGroup(groupEncryption, append(definitions, foreign...))
}

func backup() []Definition {
	return inGroup(groupBackup, []Definition{
		{Name: "WALG_UPLOAD_DISK_CONCURRENCY", Type: Integer, Default: auto, bounds: concurrency(),
			Help:  "Parts that are read and compressed at the same time; `auto` is one per processor that walden may use.",
			field: func(c *Config) any { return &c.Backup.DiskConcurrency }},
		{Name: "WALG_TAR_SIZE_THRESHOLD", Type: Size, Default: "1073741823", bounds: between(1<<20, 1<<40),
			Help:  "Content of files, before compression, after which a part of the backup is closed and the next begun.",
			field: func(c *Config) any { return &c.Backup.PartSize }},
		{Name: "WALG_SENTINEL_USER_DATA", Type: JSON,
			Help:  "JSON value to store with the backup, as `--add-user-data`.",
			field: func(c *Config) any { return &c.Backup.UserData }},
		{Name: "WALG_VERIFY_PAGE_CHECKSUMS", Type: Boolean, Default: "true",
			Help:  "Check the checksum of every page while it is backed up, as `--verify`, where the cluster has checksums.",
			field: func(c *Config) any { return &c.Backup.VerifyPages }},
		{Name: "WALG_STORE_ALL_CORRUPT_BLOCKS", Type: Boolean, Default: "false",
			Help:  "Record all corrupt blocks of a file and not only the first ones, as `--store-all-corrupt`.",
			field: func(c *Config) any { return &c.Backup.StoreAllCorrupt }},
		{Name: "WALG_DISABLE_PARTIAL_RESTORE", Type: Boolean, Default: "false",
			Help:  "Leave out the names of databases and tables, by which a restore can choose.",
			field: func(c *Config) any { return &c.Backup.NoRelations }},
		{Name: "WALDEN_ARCHIVE_WAIT_TIMEOUT", Type: Duration, Default: "10m", bounds: waiting(), Since: firstRelease,
			Help: "How long backup-push waits for the WAL that makes the backup consistent to arrive in the archive, counted " +
				"since a segment last arrived.",
			field: func(c *Config) any { return &c.Backup.ArchiveWaitTimeout }},
		{Name: "WALDEN_BACKUP_ARCHIVE_BACKLOG", Type: Integer, Default: "0", bounds: atLeast(0), Since: firstRelease,
			Help: "While more segments than this wait to be archived, backup-push reads more and more slowly, down to 4 MiB per second; " +
				"0 never slows it down.",
			field: func(c *Config) any { return &c.Backup.ArchiveBacklog }},
		{Name: "WALDEN_BACKUP_REPLICATION_LAG", Type: Size, Default: "0", bounds: atLeast(0), Since: firstRelease,
			Help:  "The same while a connected standby is further behind than this; 0 never slows it down. The role needs `pg_monitor`.",
			field: func(c *Config) any { return &c.Backup.ReplicationLag }},
		{Name: "WALG_UPLOAD_QUEUE", Type: Integer, Default: "2",
			Help: "Finished parts that wait for their upload.", Effect: "parts are uploaded while they are made, none waits"},
		{Name: "WALG_WITHOUT_FILES_METADATA", Type: Boolean, Default: "false",
			Help: "Leave out the list of files.", Effect: "the list is always written: restoring and checking rest on it"},
		{Name: "WALG_USE_RATING_COMPOSER", Type: Boolean, Default: "false",
			Help: "Divide files into parts by how much they change.", Effect: noComposer},
		{Name: "WALG_USE_COPY_COMPOSER", Type: Boolean, Default: "false",
			Help: "Copy unchanged parts inside the storage.", Effect: noComposer},
		{Name: "WALG_USE_DATABASE_COMPOSER", Type: Boolean, Default: "false",
			Help: "Divide files into parts by database.", Effect: noComposer},
		{Name: "WALG_DIRECT_IO", Type: Boolean, Default: "false",
			Help: "Read files past the page cache.", Effect: "walden reads through the page cache"},
		{Name: "WALG_DIRECT_IO_BLOCK_COUNT", Type: Integer, Default: "32",
			Help: "Blocks of 4096 bytes per direct read.", Effect: "walden reads through the page cache"},
		{Name: "WALG_SERIALIZER_TYPE", Type: Text,
			Help: "How JSON documents were made.", Effect: "it is obsolete"},
	})
}

func delta() []Definition {
	return inGroup(groupDelta, []Definition{
		{Name: "WALG_DELTA_MAX_STEPS", Type: Integer, Default: "0", bounds: between(0, 10000),
			Help:  "Longest chain of deltas on a full backup; 0 takes full backups only.",
			field: func(c *Config) any { return &c.Backup.DeltaMaxSteps }},
		{Name: "WALG_DELTA_ORIGIN", Type: Choice, Choices: []string{"LATEST", "LATEST_FULL"}, Default: "LATEST",
			Help:  "What a delta is based on: the latest backup, or the full backup that that one is based on.",
			field: func(c *Config) any { return &c.Backup.DeltaOrigin }},
		{Name: "WALG_DELTA_FROM_NAME", Type: Text,
			Help:  "Name of the backup that a delta is based on.",
			field: func(c *Config) any { return &c.Backup.DeltaFromName }},
		{Name: "WALG_DELTA_FROM_USER_DATA", Type: JSON,
			Help:  "User data of the backup that a delta is based on.",
			field: func(c *Config) any { return &c.Backup.DeltaFromUserData }},
		{Name: "WALG_USE_WAL_DELTA", Type: Boolean, Default: "false",
			Help:  "Record changed blocks while WAL is archived, and use the record for deltas.",
			field: func(c *Config) any { return &c.Backup.UseWALDelta }},
		{Name: "WALG_FORCE_WAL_DELTA", Type: Boolean, Default: "false",
			Help:  "Fail where neither the record of changed blocks nor the server's summaries can be used, instead of reading every page.",
			field: func(c *Config) any { return &c.Backup.ForceWALDelta }},
	})
}

func restore() []Definition {
	const oneWay = "there is one way of restoring, and it is the safe one"
	return inGroup(groupRestore, []Definition{
		{Name: "WALG_FETCH_TARGET_USER_DATA", Type: JSON,
			Help:  "User data of the backup to restore, as `--target-user-data`.",
			field: func(c *Config) any { return &c.Restore.TargetUserData }},
		{Name: "WALG_DOWNLOAD_FILE_RETRIES", Type: Integer, Default: "15",
			Help:   "Further attempts for a part that could not be read to its end.",
			Effect: "what may pass is retried a few times, what cannot pass ends the restore at once"},
		{Name: "WALG_TAR_DISABLE_FSYNC", Type: Boolean, Default: "false",
			Help:   "Do not force restored files to disk.",
			Effect: "what was not forced to disk is not restored: every file and directory is, before success is reported"},
		{Name: "WALG_USE_REVERSE_UNPACK", Type: Boolean, Default: "false",
			Help: "Restore a chain beginning with the newest backup.", Effect: oneWay},
		{Name: "WALG_SKIP_REDUNDANT_TARS", Type: Boolean, Default: "false",
			Help: "Leave out parts of which newer backups replace everything.", Effect: "such parts are not read in any case"},
		{Name: "PGBACKREST_STANZA", Type: Text, Default: "main",
			Help: "Stanza in a repository of pgBackRest.", Effect: "walden does not read pgBackRest's repositories"},
	})
}

func wal() []Definition {
	return inGroup(groupWAL, []Definition{
		{Name: "WALDEN_WAL_TIMEOUT", Type: Duration, Default: "5m", bounds: waiting(), Since: firstRelease,
			Help: "Longest time that one wal-push or wal-fetch takes, all retries included. It then fails, and " +
				"PostgreSQL calls it again.",
			field: func(c *Config) any { return &c.WAL.Timeout }},
		{Name: "WALDEN_END_RECOVERY_BEFORE", Type: Text, check: checkWALName, Since: firstRelease,
			Help: "Name of a WAL segment that is lost or damaged beyond repair: archive recovery ends before it, on every timeline, and " +
				"does without all that follows. Or the name of a lost history file: that timeline and all newer ones are not " +
				"followed. To be unset after that recovery.",
			field: func(c *Config) any { return &c.WAL.EndRecoveryBefore }},
		{Name: "TOTAL_BG_UPLOADED_LIMIT", Type: Integer, Default: "32", bounds: between(1, 1024),
			Help: "Segments that one wal-push may archive: the one that PostgreSQL asks for, and others that already wait. " +
				"1 archives the one only. In the daemon: one more than it archives before PostgreSQL asks for them.",
			field: func(c *Config) any { return &c.WAL.PushedAtMost }},
		{Name: "WALG_PREFETCH_DIR", Type: Path,
			Help: "Directory for what is kept between calls: segments that are fetched before PostgreSQL asks for them, and notes of those that were " +
				"archived before. Without it that lies beside `pg_wal` where that is a link out of the data directory, else beside the data directory; never in either.",
			field: func(c *Config) any { return &c.WAL.PrefetchDir }},
		{Name: "WALG_PREVENT_WAL_OVERWRITE", Type: Boolean, Default: "true",
			Help:   "Never replace a WAL segment in the archive by one with other content. WAL-G's own default is `false`.",
			Effect: "WAL in the archive is never overwritten: the same content again is success, other content is an error"},
		{Name: "WALG_UPLOAD_WAL_METADATA", Type: Choice, Choices: []string{"NOMETADATA", "INDIVIDUAL", "BULK"},
			Default: "NOMETADATA",
			Help:    "Documents about archived segments beside them.", Effect: "walden writes no such documents"},
		{Name: "PG_READY_RENAME", Type: Boolean, Default: "false",
			Help:   "Tell PostgreSQL that a segment is archived by renaming its status file.",
			Effect: "status files belong to PostgreSQL alone"},
		{Name: "WALG_SLOTNAME", Type: Text, Default: "walg",
			Help: "Replication slot for streaming WAL.", Effect: noReceive},
		{Name: "WALG_INTEGRITY_MAX_DELAYED_WALS", Type: Integer, Default: "0",
			bounds: between(0, 1<<20),
			Help:   "Segments that may still be missing at the end of the archive when wal-verify looks.",
			field:  func(c *Config) any { return &c.WAL.IntegrityMaxDelayed }},
		{Name: "WALG_DAEMON_WAL_UPLOAD_TIMEOUT", Type: Duration, Default: "60s",
			bounds: waiting(),
			Help:   "Longest time that the daemon takes to archive a file. The client is then told that it failed, and PostgreSQL asks again.",
			field:  func(c *Config) any { return &c.WAL.DaemonPushTimeout }},
	})
}

// whileRunning is said of settings that are not only read at the beginning.
const whileRunning = "A change in the configuration file takes effect in a running backup-push, backup-fetch or copy, too."

func limits() []Definition {
	const mebibyte = 1 << 20
	return inGroup(groupLimits, []Definition{
		{Name: "WALDEN_MEMORY_LIMIT", Type: Size, Default: "128MiB", bounds: between(32*mebibyte, 1<<40), Since: firstRelease,
			Help:  "Memory for all buffers together.",
			field: func(c *Config) any { return &c.Limits.Memory }},
		{Name: "WALDEN_DIRECT_IO", Type: Boolean, Default: "true", Since: firstRelease,
			Help: "Write archived objects and restored files of more than 512 KiB past the page cache (`O_DIRECT`) where they are on ext4 or XFS, and keep no " +
				"objects of 32 MiB and more there that were read (Linux 6.14). `false` leaves everything to it, so that a server finds what was restored in memory.",
			field: func(c *Config) any { return &c.Limits.DirectIO }},
		{Name: "WALDEN_STALL_TIMEOUT", Type: Duration, Default: "2m", bounds: waiting(), Since: firstRelease,
			Help:  "How long one operation of the storage may make no progress before it is broken off and retried.",
			field: func(c *Config) any { return &c.Limits.StallTimeout }},
		{Name: "WALG_UPLOAD_CONCURRENCY", Aliases: []string{"UPLOAD_CONCURRENCY", "WALE_UPLOAD_CONCURRENCY"},
			Type: Integer, Default: "16", bounds: concurrency(),
			Help: "Uploads at the same time, and on S3 parts in flight of each at most; how many there are follows what the network " +
				"and the service take.",
			field: func(c *Config) any { return &c.Limits.UploadConcurrency }},
		{Name: "WALG_DOWNLOAD_CONCURRENCY", Type: Integer, Default: "10", bounds: concurrency(),
			Help: "Downloads at the same time, and segments that wal-fetch has fetched before PostgreSQL asks for them, at most; 1 fetches none of " +
				"these. On S3, downloads that nobody needs for another object fetch ranges of large ones ahead, as far as `WALDEN_MEMORY_LIMIT` allows.",
			field: func(c *Config) any { return &c.Limits.DownloadConcurrency }},
		{Name: "WALG_DISK_RATE_LIMIT", Type: Size, bounds: atLeast(0),
			Help:  "Bytes per second that backup-push reads from disk and backup-fetch writes to it; 0 for no limit. " + whileRunning,
			field: func(c *Config) any { return &c.Limits.DiskRate }},
		{Name: "WALG_NETWORK_RATE_LIMIT", Type: Size, bounds: atLeast(0),
			Help:  "Bytes per second that are exchanged with the storage; 0 for no limit. " + whileRunning,
			field: func(c *Config) any { return &c.Limits.NetworkRate }},
		{Name: "GOMAXPROCS", Type: Integer, runtime: true,
			Help:   "Processors that walden may use.",
			Effect: "the Go runtime reads it from the environment only"},
		{Name: "GODEBUG", Type: Text, runtime: true,
			Help:   "Switches of the Go runtime.",
			Effect: "the Go runtime reads it from the environment only"},
	})
}

func logging() []Definition {
	return inGroup(groupLog, []Definition{
		{Name: "WALG_LOG_LEVEL", Type: Choice, Choices: []string{"ERROR", "NORMAL", "DEVEL"}, Default: "NORMAL",
			Help:  "What is logged: errors only, the course of events, or everything.",
			field: func(c *Config) any { return &c.Log.Level }},
		{Name: "WALG_LOG_DESTINATION", Type: Text, Default: "stderr",
			Help:  "`stderr`, or a file to which log lines are appended.",
			field: func(c *Config) any { return &c.Log.Destination }},
		{Name: "WALDEN_LOG_FORMAT", Type: Choice, Choices: []string{"text", "json"}, Default: "text", flag: "log-format",
			Since: firstRelease,
			Help:  "Form of log lines.",
			field: func(c *Config) any { return &c.Log.Format }},
		{Name: "WALG_STATSD_ADDRESS", Type: Text,
			Help: "Address for metrics.", Effect: "walden sends no metrics"},
		{Name: "WALG_STATSD_EXTRA_TAGS", Type: Map,
			Help: "Tags of the metrics.", Effect: "walden sends no metrics"},
		{Name: "HTTP_LISTEN", Type: Text,
			Help: "Address of the debug server.", Effect: noProfiles},
		{Name: "HTTP_EXPOSE_PPROF", Type: Boolean, Default: "false",
			Help: "Offer profiles there.", Effect: noProfiles},
		{Name: "HTTP_EXPOSE_EXPVAR", Type: Boolean, Default: "false",
			Help: "Offer counters there.", Effect: noProfiles},
		{Name: "PROFILE_SAMPLING_RATIO", Type: Text,
			Help: "Share of runs that are profiled.", Effect: noProfiles},
		{Name: "PROFILE_MODE", Type: Text,
			Help: "What is profiled.", Effect: noProfiles},
		{Name: "PROFILE_PATH", Type: Path,
			Help: "Directory for profiles.", Effect: noProfiles},
	})
}

// failoverStorages names the setting that holds the failover storages.
const failoverStorages = "WALG_FAILOVER_STORAGES"

func failover() []Definition {
	const name = failoverStorages
	definitions := []Definition{
		{Name: name, Type: Map, Secret: true, fileOnly: true,
			Help: "Further storages by name, each a map of its settings. Can be written in a configuration file only. Values in it " +
				"are never shown. Only the commands of `st` use them, with `--target` and `--source`, for example to move back what WAL-G " +
				"has put there; WAL and backups are pushed to the primary storage and fetched from it.",
			field: func(c *Config) any { return &c.Storage.Failover }},
		{Name: name + "_CHECK", Type: Boolean, Default: "true", Help: "Whether storages are probed before use."},
		{Name: name + "_CHECK_TIMEOUT", Type: Duration, Default: "30s", Help: "Longest time of a probe."},
		{Name: name + "_CHECK_SIZE", Type: Size, Default: "1mb", Help: "Size of the object that a probe writes."},
		{Name: name + "_CACHE_LIFETIME", Type: Duration, Default: "15m",
			Help: "How long the result of a probe is believed."},
		{Name: name + "_CACHE_EMA_ALIVE_LIMIT", Type: Text, Default: "0.99",
			Help: "Average above which a storage is taken as alive again."},
		{Name: name + "_CACHE_EMA_DEAD_LIMIT", Type: Text, Default: "0.88",
			Help: "Average below which a storage is taken as dead."},
		{Name: name + "_CACHE_EMA_ALPHA_ALIVE_MAX", Type: Text, Default: "0.05",
			Help: "Largest weight of a result while the storage is alive."},
		{Name: name + "_CACHE_EMA_ALPHA_ALIVE_MIN", Type: Text, Default: "0.01",
			Help: "Smallest weight of a result while the storage is alive."},
		{Name: name + "_CACHE_EMA_ALPHA_DEAD_MAX", Type: Text, Default: "0.5",
			Help: "Largest weight of a result while the storage is dead."},
		{Name: name + "_CACHE_EMA_ALPHA_DEAD_MIN", Type: Text, Default: "0.1",
			Help: "Smallest weight of a result while the storage is dead."},
	}
	for i := range definitions[1:] {
		definitions[1+i].Effect = noFailover
	}
	return inGroup(groupFailover, definitions)
}

// otherStorages are the settings of storages that are recognised by their prefix and nothing more.
func otherStorages() []Definition {
	groups := []struct {
		group    string
		settings []Definition
	}{
		{groupAzure, []Definition{
			{Name: "AZURE_STORAGE_ACCOUNT", Aliases: []string{"WABS_ACCOUNT_NAME"}, Type: Text, Help: "Storage account."},
			{Name: "AZURE_STORAGE_ACCESS_KEY", Aliases: []string{"WABS_ACCESS_KEY"}, Type: Text, Secret: true, Help: "Key of the account."},
			{Name: "AZURE_STORAGE_SAS_TOKEN", Aliases: []string{"WABS_SAS_TOKEN"}, Type: Text, Secret: true, Help: "Shared access signature, instead of the key."},
			{Name: "AZURE_ENVIRONMENT_NAME", Type: Text, Default: "AzurePublicCloud", Help: "Which of Azure's clouds."},
			{Name: "AZURE_ENDPOINT_SUFFIX", Type: Text, Help: "End of the service's host name, instead of the cloud's own."},
			{Name: "AZURE_BUFFER_SIZE", Type: Size, Default: "8388608", Help: "Size of the blocks of an upload."},
			{Name: "AZURE_MAX_BUFFERS", Type: Integer, Default: "4", Help: "Blocks that are uploaded at the same time."},
			{Name: "AZURE_TRY_TIMEOUT", Type: Integer, Default: "5", Help: "Longest time of one attempt, in minutes."},
			{Name: "AZURE_BLOB_STORE_API_VERSION", Type: Text, Help: "Version of the protocol."},
		}},
		{groupSwift, []Definition{
			{Name: "OS_USERNAME", Type: Text, Help: "User."},
			{Name: "OS_PASSWORD", Type: Text, Secret: true, Help: "Password."},
			{Name: "OS_AUTH_URL", Type: Text, Help: "Address of the identity service."},
			{Name: "OS_TENANT_NAME", Type: Text, Help: "Tenant."},
			{Name: "OS_REGION_NAME", Type: Text, Help: "Region."},
		}},
		{groupSSH, []Definition{
			{Name: "SSH_PORT", Type: Integer, Default: "22", Help: "Port."},
			{Name: "SSH_USERNAME", Type: Text, Help: "User."},
			{Name: "SSH_PASSWORD", Type: Text, Secret: true, Help: "Password."},
			{Name: "SSH_PRIVATE_KEY_PATH", Type: Path, Help: "File with the private key."},
		}},
		{groupOSS, []Definition{
			{Name: "OSS_ACCESS_KEY_ID", Type: Text, Help: "Static credentials."},
			{Name: "OSS_ACCESS_KEY_SECRET", Type: Text, Secret: true, Help: "The secret that belongs to them."},
			{Name: "OSS_SESSION_TOKEN", Type: Text, Secret: true, Help: "Session token of temporary credentials."},
			{Name: "OSS_ENDPOINT", Type: Text, Help: "Address of the service."},
			{Name: "OSS_REGION", Type: Text, Help: "Region of the bucket."},
			{Name: "OSS_ROLE_ARN", Type: Text, Help: "Role to assume."},
			{Name: "OSS_ROLE_SESSION_NAME", Type: Text, Help: "Name of the session that assumes the role."},
			{Name: "OSS_SKIP_VALIDATION", Type: Boolean, Default: "false", Help: "Do not list the bucket first."},
			{Name: "OSS_MAX_RETRIES", Type: Integer, Default: "5", Help: "Retries of a request."},
			{Name: "OSS_CONNECT_TIMEOUT", Type: Integer, Default: "5", Help: "Longest time to connect, in seconds."},
			{Name: "OSS_UPLOAD_PART_SIZE", Type: Size, Default: "6291456", Help: "Size of the parts of an upload."},
			{Name: "OSS_COPY_PART_SIZE", Type: Size, Default: "67108864", Help: "Size of the parts of a copy."},
		}},
	}
	var definitions []Definition
	for _, g := range groups {
		for i := range g.settings {
			g.settings[i].storage = true
			g.settings[i].Effect = "walden cannot use this storage"
		}
		definitions = append(definitions, prefixesOf(g.group)...)
		definitions = append(definitions, inGroup(g.group, g.settings)...)
	}
	return definitions
}

// walE are settings that WAL-E had and WAL-G has not.
func walE() []Definition {
	const noSwift = "walden cannot use OpenStack Swift"
	definitions := []Definition{
		{Name: "WALE_S3_ENDPOINT", Type: Text, check: checkWALEEndpoint,
			Help: "Address of the S3 service with WAL-E's own schemes: `http+path://host:port`, or `https` and one of `path`, `virtualhost`, " +
				"`subdomain`. `AWS_ENDPOINT` comes before it.",
			field: func(c *Config) any { return &c.S3.WALEEndpoint }},
		{Name: "WALE_LOG_DESTINATION", Type: Text, check: checkLogDestination,
			Help: "Where log lines go: `stderr`, `syslog`, or both with a comma between. Without it: `stderr`, and both if walden is called " +
				"as `wal-e`. `WALG_LOG_DESTINATION` takes the place of `stderr`.",
			field: func(c *Config) any { return &c.Log.WALEDestination }},
		{Name: "WALE_SYSLOG_FACILITY", Type: Choice, Default: "user",
			Choices: []string{"user", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"},
			Help:    "Facility of what goes to syslog.",
			field:   func(c *Config) any { return &c.Log.SyslogFacility }},
		{Name: "WALE_RETRIES", Type: Integer, Default: "100",
			Help:   "Attempts for what failed.",
			Effect: "failures are repeated for a time, which WALDEN_WAL_TIMEOUT and WALDEN_STALL_TIMEOUT bound"},
		{Name: "AWS_INSTANCE_PROFILE", Type: Boolean, Default: "false",
			Help:   "Take credentials from the role of the machine.",
			Effect: "the role's credentials are found wherever no others are set"},
		{Name: "GS_ACCESS_KEY_ID", Type: Text, Help: "Key for Google Cloud Storage.", Effect: "nor had it in WAL-E; set GOOGLE_APPLICATION_CREDENTIALS"},
		{Name: "GS_SECRET_ACCESS_KEY", Type: Text, Secret: true, Help: "The secret that belongs to it.",
			Effect: "nor had it in WAL-E; set GOOGLE_APPLICATION_CREDENTIALS"},
		{Name: "WALE_WABS_PREFIX", Type: Text, Secret: true,
			Help:   "Container and path in Azure Blob Storage.",
			Effect: "set WALG_AZ_PREFIX=azure://container/path; only under the name wal-e it is that"},
		{Name: "SWIFT_AUTHURL", Type: Text, Effect: noSwift, Help: "Address of the identity service."},
		{Name: "SWIFT_USER", Type: Text, Effect: noSwift, Help: "User."},
		{Name: "SWIFT_PASSWORD", Type: Text, Secret: true, Effect: noSwift, Help: "Password."},
		{Name: "SWIFT_AUTH_VERSION", Type: Text, Default: "2", Effect: noSwift, Help: "Version of the identity service."},
		{Name: "SWIFT_ENDPOINT_TYPE", Type: Text, Default: "publicURL", Effect: noSwift, Help: "Which of the service's addresses."},
		{Name: "SWIFT_REGION", Type: Text, Effect: noSwift, Help: "Region."},
	}
	for _, name := range []string{
		"TENANT", "TENANT_ID", "USER_ID", "USER_DOMAIN_ID", "USER_DOMAIN_NAME", "DOMAIN_ID", "DOMAIN_NAME",
		"PROJECT_ID", "PROJECT_NAME", "PROJECT_DOMAIN_ID", "PROJECT_DOMAIN_NAME",
	} {
		definitions = append(definitions, Definition{Name: "SWIFT_" + name, Type: Text, Effect: noSwift,
			Help: "Whom the identity service is told: the " + strings.ToLower(strings.ReplaceAll(name, "_", " ")) + "."})
	}
	return inGroup(groupWALE, definitions)
}
