package config

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// answer is what walden says to a setting.
type answer string

const (
	works    answer = "it does what it does in WAL-G, or for a setting of WAL-E in WAL-E"
	noEffect answer = "it is accepted and changes nothing; there is a reason, which is documented and told at every run"
	refused  answer = "it is of a storage that walden cannot use; walden says so and fails when that storage is asked for"
	pending  answer = "it is of a part that either works as a whole or is refused as a whole"
)

// answers are all settings of WAL-G and WAL-E, of which a user may have any, each with walden's answer.
var answers = []struct {
	answer answer
	names  string
}{
	{works, `
		WALG_CONFIG_PATH WALG_STORAGE_PREFIX WALG_TARGET_STORAGE WALG_FILE_PREFIX WALG_S3_PREFIX WALE_FILE_PREFIX WALE_S3_PREFIX
		PGHOST PGPORT PGUSER PGPASSWORD PGPASSFILE PGDATABASE PGSSLMODE PGSSLCERT PGSSLKEY PGSSLROOTCERT PGAPPNAME PGDATA
		WALG_ALIVE_CHECK_INTERVAL WALG_STOP_BACKUP_TIMEOUT
		WALG_COMPRESSION_METHOD WALG_ZSTD_LEVEL
		WALG_UPLOAD_CONCURRENCY UPLOAD_CONCURRENCY WALG_DOWNLOAD_CONCURRENCY WALG_UPLOAD_DISK_CONCURRENCY
		WALG_DISK_RATE_LIMIT WALG_NETWORK_RATE_LIMIT WALG_TAR_SIZE_THRESHOLD
		WALG_SENTINEL_USER_DATA WALG_FETCH_TARGET_USER_DATA WALG_VERIFY_PAGE_CHECKSUMS WALG_STORE_ALL_CORRUPT_BLOCKS WALG_DISABLE_PARTIAL_RESTORE
		WALG_DELTA_MAX_STEPS WALG_DELTA_ORIGIN WALG_DELTA_FROM_NAME WALG_DELTA_FROM_USER_DATA WALG_USE_WAL_DELTA WALG_FORCE_WAL_DELTA
		WALG_INTEGRITY_MAX_DELAYED_WALS TOTAL_BG_UPLOADED_LIMIT WALG_PREFETCH_DIR WALG_DAEMON_WAL_UPLOAD_TIMEOUT
		WALG_LOG_LEVEL WALG_LOG_DESTINATION
		AWS_ACCESS_KEY_ID AWS_ACCESS_KEY AWS_SECRET_ACCESS_KEY AWS_SECRET_KEY AWS_SESSION_TOKEN AWS_SECURITY_TOKEN AWS_ROLE_ARN AWS_ROLE_SESSION_NAME
		AWS_PROFILE AWS_SHARED_CREDENTIALS_FILE AWS_CONFIG_FILE AWS_REGION AWS_DEFAULT_REGION AWS_ENDPOINT AWS_S3_FORCE_PATH_STYLE AWS_DUAL_STACK
		AWS_CA_BUNDLE S3_CA_CERT_FILE S3_STORAGE_CLASS S3_SSE S3_SSE_KMS_ID S3_SSE_C S3_REQUEST_ADDITIONAL_HEADERS S3_MAX_PART_SIZE S3_MAX_RETRIES
		S3_MIN_THROTTLING_RETRY_DELAY S3_MAX_THROTTLING_RETRY_DELAY S3_RANGE_MAX_RETRIES S3_USE_LIST_OBJECTS_V1 S3_DELETE_BATCH_SIZE S3_SKIP_VALIDATION
		S3_DISABLE_100_CONTINUE S3_LOG_LEVEL
		WALG_DELTA_MAX_STEPS WALG_DELTA_ORIGIN WALG_DELTA_FROM_NAME WALG_DELTA_FROM_USER_DATA WALG_USE_WAL_DELTA WALG_FORCE_WAL_DELTA
		WALG_INTEGRITY_MAX_DELAYED_WALS WALG_FAILOVER_STORAGES WALG_PREFETCH_DIR
		WALE_S3_ENDPOINT WALE_S3_STORAGE_CLASS WALE_LOG_DESTINATION WALE_SYSLOG_FACILITY`},
	{noEffect, `
		WALG_UPLOAD_QUEUE WALG_WITHOUT_FILES_METADATA WALG_USE_RATING_COMPOSER WALG_USE_COPY_COMPOSER WALG_USE_DATABASE_COMPOSER
		WALG_DIRECT_IO WALG_DIRECT_IO_BLOCK_COUNT WALG_SERIALIZER_TYPE
		WALG_DOWNLOAD_FILE_RETRIES WALG_TAR_DISABLE_FSYNC WALG_USE_REVERSE_UNPACK WALG_SKIP_REDUNDANT_TARS PGBACKREST_STANZA
		WALG_PREVENT_WAL_OVERWRITE WALG_UPLOAD_WAL_METADATA PG_READY_RENAME WALG_SLOTNAME
		WALG_PG_WAL_SIZE WALG_PG_WAL_PAGE_SIZE WALG_PG_BLOCK_SIZE
		WALG_STATSD_ADDRESS WALG_STATSD_EXTRA_TAGS HTTP_LISTEN HTTP_EXPOSE_PPROF HTTP_EXPOSE_EXPVAR
		PROFILE_SAMPLING_RATIO PROFILE_MODE PROFILE_PATH GOMAXPROCS GODEBUG
		WALG_FAILOVER_STORAGES_CHECK WALG_FAILOVER_STORAGES_CHECK_TIMEOUT WALG_FAILOVER_STORAGES_CHECK_SIZE
		WALG_FAILOVER_STORAGES_CACHE_LIFETIME WALG_FAILOVER_STORAGES_CACHE_EMA_ALIVE_LIMIT WALG_FAILOVER_STORAGES_CACHE_EMA_DEAD_LIMIT
		WALG_FAILOVER_STORAGES_CACHE_EMA_ALPHA_ALIVE_MAX WALG_FAILOVER_STORAGES_CACHE_EMA_ALPHA_ALIVE_MIN
		WALG_FAILOVER_STORAGES_CACHE_EMA_ALPHA_DEAD_MAX WALG_FAILOVER_STORAGES_CACHE_EMA_ALPHA_DEAD_MIN
		AWS_DEFAULT_OUTPUT S3_RANGE_BATCH_ENABLED S3_ENABLE_VERSIONING S3_RETENTION_PERIOD S3_RETENTION_MODE S3_ENDPOINT_SOURCE S3_ENDPOINT_PORT
		S3_ENDPOINT_PROTOCOL S3_USE_YC_SESSION_TOKEN
		WALE_RETRIES AWS_INSTANCE_PROFILE GS_ACCESS_KEY_ID GS_SECRET_ACCESS_KEY WALE_WABS_PREFIX
		SWIFT_AUTHURL SWIFT_USER SWIFT_PASSWORD SWIFT_TENANT SWIFT_REGION SWIFT_AUTH_VERSION SWIFT_ENDPOINT_TYPE SWIFT_DOMAIN_ID SWIFT_DOMAIN_NAME
		SWIFT_TENANT_ID SWIFT_USER_ID SWIFT_USER_DOMAIN_ID SWIFT_USER_DOMAIN_NAME SWIFT_PROJECT_ID SWIFT_PROJECT_NAME SWIFT_PROJECT_DOMAIN_ID
		SWIFT_PROJECT_DOMAIN_NAME`},
	{refused, `
		WALG_AZ_PREFIX AZURE_STORAGE_ACCOUNT AZURE_STORAGE_ACCESS_KEY AZURE_STORAGE_SAS_TOKEN AZURE_ENVIRONMENT_NAME AZURE_ENDPOINT_SUFFIX
		AZURE_BUFFER_SIZE AZURE_MAX_BUFFERS AZURE_TRY_TIMEOUT AZURE_BLOB_STORE_API_VERSION WABS_ACCOUNT_NAME WABS_ACCESS_KEY WABS_SAS_TOKEN
		WALG_SWIFT_PREFIX WALE_SWIFT_PREFIX OS_USERNAME OS_PASSWORD OS_AUTH_URL OS_TENANT_NAME OS_REGION_NAME
		WALG_SSH_PREFIX SSH_PORT SSH_USERNAME SSH_PASSWORD SSH_PRIVATE_KEY_PATH
		WALG_OSS_PREFIX OSS_ACCESS_KEY_ID OSS_ACCESS_KEY_SECRET OSS_SESSION_TOKEN OSS_ENDPOINT OSS_REGION OSS_ROLE_ARN OSS_ROLE_SESSION_NAME
		OSS_SKIP_VALIDATION OSS_MAX_RETRIES OSS_CONNECT_TIMEOUT OSS_UPLOAD_PART_SIZE OSS_COPY_PART_SIZE`},
	{pending, `
		WALG_GS_PREFIX WALE_GS_PREFIX GOOGLE_APPLICATION_CREDENTIALS GCS_CONTEXT_TIMEOUT GCS_NORMALIZE_PREFIX GCS_ENCRYPTION_KEY GCS_MAX_CHUNK_SIZE GCS_MAX_RETRIES
		WALG_LIBSODIUM_KEY WALG_LIBSODIUM_KEY_PATH WALG_LIBSODIUM_KEY_TRANSFORM WALG_PGP_KEY WALG_PGP_KEY_PATH WALG_PGP_KEY_PASSPHRASE
		GPG_KEY_ID WALG_GPG_KEY_ID WALE_GPG_KEY_ID WALG_ENVELOPE_PGP_KEY WALG_ENVELOPE_PGP_KEY_PATH WALG_ENVELOPE_PGP_YC_CSE_KMS_KEY_ID
		WALG_ENVELOPE_PGP_YC_SERVICE_ACCOUNT_KEY_FILE WALG_ENVELOPE_PGP_YC_ENDPOINT WALG_ENVELOPE_CACHE_EXPIRATION
		WALG_CSE_KMS_ID WALG_CSE_KMS_REGION YC_CSE_KMS_KEY_ID YC_SERVICE_ACCOUNT_KEY_FILE`},
}

// ofLibraries are settings that WAL-G leaves to the libraries of its storages, and walden does not.
var ofLibraries = []string{"AWS_WEB_IDENTITY_TOKEN_FILE", "STORAGE_EMULATOR_HOST"}

func TestEverySettingOfWALGAndWALEHasAnAnswer(t *testing.T) {
	t.Parallel()
	l := newLoader()
	answered := make(map[int]answer)
	count := 0
	for _, a := range answers {
		for name := range strings.FieldsSeq(a.names) {
			count++
			at, ok := l.known[name]
			if !ok {
				t.Errorf("%s is not known", name)
				continue
			}
			if other, twice := answered[at.definition]; twice && other != a.answer {
				t.Errorf("%s has two answers", name)
			}
			answered[at.definition] = a.answer
			d := l.definitions[at.definition]
			_, ofStorage := groupKinds[d.Group]
			fits := false
			switch a.answer {
			case works:
				fits = d.Effect == "" && d.field != nil
			case noEffect:
				fits = d.Effect != ""
			case refused:
				fits = ofStorage && (d.Type == Prefix || d.Effect != "")
			case pending:
				fits = d.Group == groupEncryption || d.Group == groupGCS
			}
			if !fits {
				t.Errorf("%s: the answer was to be: %s", name, a.answer)
			}
		}
	}
	if count < 180 {
		t.Errorf("only %d settings", count)
	}
	for i, d := range l.definitions {
		if _, ok := answered[i]; !ok && d.Since == "" && !slices.Contains(ofLibraries, d.Name) {
			t.Errorf("%s is neither one of the settings of WAL-G and WAL-E nor said to be walden's own", d.Name)
		}
	}
}

// A setting that is read into a field and no further would be ignored in silence.
func TestEverySettingThatWorksIsUsed(t *testing.T) {
	t.Parallel()
	used := map[string]bool{}
	files, err := filepath.Glob(filepath.Join("..", "cli", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(files, "load.go", "storage.go") {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, text, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				used[s.Sel.Name] = true
			}
			return true
		})
	}
	var c Config
	for _, d := range Definitions() {
		if d.field == nil || d.Effect != "" || d.Group == groupEncryption { // of these, cli uses each or refuses it by Encryption.By
			continue
		}
		name := fieldName(&c, d.field(&c))
		if name == "" {
			t.Fatalf("%s: no field", d.Name)
		}
		if !used[name] && !slices.Contains([]string{configPath}, d.Name) {
			t.Errorf("%s is read into %s, which nothing reads", d.Name, name)
		}
	}
}

// fieldName finds the field of a Config that a pointer points to.
func fieldName(c *Config, pointer any) string {
	var find func(v reflect.Value) string
	find = func(v reflect.Value) string {
		for i := range v.NumField() {
			field, of := v.Field(i), v.Type().Field(i)
			if !of.IsExported() {
				continue
			}
			if field.Addr().Interface() == pointer {
				return of.Name
			}
			if field.Kind() == reflect.Struct && field.Type() != reflect.TypeFor[Secret]() {
				if name := find(field); name != "" {
					return name
				}
			}
		}
		return ""
	}
	return find(reflect.ValueOf(c).Elem())
}
