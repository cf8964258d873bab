package cli

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/codec"
	"gitlab.com/walden-pg/walden/internal/config"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/postgres"
	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/fs"
	"gitlab.com/walden-pg/walden/internal/storage/gcs"
	"gitlab.com/walden-pg/walden/internal/storage/s3"
)

// openCatalog opens the archive that the settings name, with keys that can do what they are needed for.
func (a *app) openCatalog(ctx context.Context, needed use) (*catalog.Catalog, codec.Codec, error) {
	if t := a.config.Storage.Target; t != "" && t != primaryStorage {
		return nil, nil, fmt.Errorf("cannot use the storage %q: this version of walden knows the storage \"default\" only", t)
	}
	r, c, err := a.openRepo(ctx, needed)
	if err != nil {
		return nil, nil, err
	}
	return catalog.New(r, a.log), c, nil
}

// openRepo opens the storage that the settings name, with keys that can do what they are needed for.
func (a *app) openRepo(ctx context.Context, needed use) (*repo.Repo, codec.Codec, error) {
	c, err := a.openCodec()
	if err != nil {
		return nil, nil, err
	}
	if a.cipher, err = a.openCipher(ctx, needed); err != nil {
		return nil, nil, err
	}
	s, err := a.openStorage(ctx)
	if err != nil {
		return nil, nil, err
	}
	return repo.New(s, c, a.cipher, repo.Options{Log: a.log}), c, nil
}

// openCodec makes the codec of the settings.
func (a *app) openCodec() (codec.Codec, error) {
	var options codec.Options
	if a.config.Compression.Method == "zstd" { // the level's default is always set
		options.ZstdLevel = a.config.Compression.ZstdLevel
	}
	return codec.New(a.config.Compression.Method, options)
}

// seams are where tests come between walden and its storage: directly around the backend, where a failure is one that may
// pass, and around everything that repeats failed operations, where it is one for good. Nil leaves a store as it is.
type seams struct {
	backend, retried func(storage.Store) storage.Store
}

func wrapped(wrap func(storage.Store) storage.Store, s storage.Store) storage.Store {
	if wrap == nil {
		return s
	}
	return wrap(s)
}

// retryTotal is how long a failed operation of the storage is repeated at least.
const retryTotal = 2 * time.Minute

// openStorage is the only place that chooses a backend.
func (a *app) openStorage(ctx context.Context) (storage.Store, error) {
	var s storage.Store
	var err error
	cfg := a.config.Storage
	switch cfg.Kind {
	case config.KindFile:
		a.files, err = fs.Open(fs.Options{Root: cfg.Path, Cached: !a.config.Limits.DirectIO})
		if err == nil {
			s = storage.WithPrefix(a.files, cfg.Folder)
		}
	case config.KindS3:
		var bucket *s3.Store
		bucket, err = s3.Open(ctx, a.s3Options())
		s, a.abortStale = bucket, bucket.AbortStale
	case config.KindGCS:
		s, err = gcs.Open(a.gcsOptions())
	case config.KindNone:
		return nil, hint.With(fmt.Errorf("cannot open the archive: no storage is set"),
			"set WALG_FILE_PREFIX=/path, WALG_S3_PREFIX=s3://bucket/path or WALG_GS_PREFIX=gs://bucket/path in the environment or in a configuration file")
	default:
		return nil, fmt.Errorf("cannot open the archive: %s names a storage that this version of walden does not have (it has files, S3 and Google Cloud Storage)", cfg.Setting)
	}
	if err != nil {
		return nil, err
	}
	s = storage.WithStallLimit(wrapped(a.seams.backend, s), a.config.Limits.StallTimeout)
	s = storage.WithRateLimit(s, a.limiters().network)
	s = storage.WithRetry(s, storage.RetryOptions{
		Total:   max(retryTotal, 2*a.config.Limits.StallTimeout), // so that what hung once is tried again
		OnRetry: a.storageFailed,
	})
	s = wrapped(a.seams.retried, s)
	if cfg.Kind == config.KindS3 && !a.config.S3.SkipValidation {
		return s, s.Check(ctx)
	}
	return s, nil
}

// storageFailed tells the operator of a failure that may pass.
func (a *app) storageFailed(err error, wait time.Duration) {
	level := slog.LevelWarn
	if a.inBackground {
		level = slog.LevelDebug
	}
	a.log.Log(context.Background(), level, "the storage failed; trying again", "error", err, "wait", wait)
}

const (
	// staleAfter is when a temporary file or an upload without progress is taken for one that a killed process left behind.
	// The stall limit and the retries end any that lives long before.
	staleAfter = 24 * time.Hour
	// tidyLimit bounds the search for what killed processes have left.
	tidyLimit = time.Minute
)

// tidy removes what killed processes have left in the archive: temporary files, parts of uploads. The backup is taken by then, so
// that nothing here is a failure, and a large archive holds no backup up.
func (a *app) tidy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, tidyLimit)
	defer cancel()
	if a.files != nil {
		a.removeStaleFiles(ctx)
	}
	if a.abortStale != nil {
		a.abortStaleUploads(ctx)
	}
}

func (a *app) removeStaleFiles(ctx context.Context) {
	dir := a.config.Storage.Folder
	if dir != "" {
		dir += "/"
	}
	n, err := a.files.RemoveStale(ctx, staleAfter, dir)
	if err != nil {
		a.log.Warn("temporary files that writers left behind stay in the archive", "error", err)
	}
	if n > 0 {
		a.log.Info("removed temporary files that writers left behind", "files", n, "archive", a.files)
	}
}

// abortStaleUploads removes parts from S3. Without the permissions for it a lifecycle rule does the same.
func (a *app) abortStaleUploads(ctx context.Context) {
	aborted, err := a.abortStale(ctx, staleAfter, catalog.Folders()...)
	if len(aborted) > 0 {
		a.log.Warn("aborted multipart uploads that a killed process had left behind", "count", len(aborted), "keys", some(aborted))
	}
	if err != nil {
		a.log.Info("multipart uploads that killed processes may have left behind were not all found and aborted; "+
			"a lifecycle rule for incomplete uploads does that, too", "error", err)
	}
}

func (a *app) s3Options() s3.Options {
	c, cfg := a.config.S3, a.config.Storage
	headers := s3.Headers{}
	for name, value := range c.AdditionalHeaders {
		headers[name] = value.Reveal()
	}
	const none = -1 // to s3, 0 retries are the default's number
	var requests *slog.Logger
	if c.LogLevel == "DEVEL" {
		requests = a.log
	}
	return s3.Options{
		Bucket: cfg.Bucket, Prefix: path.Join(cfg.Path, cfg.Folder),
		Region: cmp.Or(c.Region, c.DefaultRegion), Endpoint: c.Endpoint, PathStyle: c.ForcePathStyle, DualStack: c.DualStack,
		AccessKeyID: c.AccessKeyID, SecretAccessKey: storage.Secret(c.SecretAccessKey.Reveal()), SessionToken: storage.Secret(c.SessionToken.Reveal()),
		RoleARN: c.RoleARN, RoleSessionName: c.RoleSessionName, WebIdentityTokenFile: c.WebIdentityTokenFile, Profile: c.Profile,
		SharedCredentialsFile: c.SharedCredentialsFile, ConfigFile: c.SharedConfigFile, CACertFile: cmp.Or(c.CACertFile, c.CABundle),
		StorageClass: c.StorageClass, SSE: c.SSE, SSEKMSKeyID: c.SSEKMSKeyID, SSECustomerKey: storage.Secret(c.SSECustomerKey.Reveal()),
		PartSize: c.PartSize, Concurrency: a.config.Limits.UploadConcurrency, Budget: storage.NewBudget(a.config.Limits.Memory),
		DownloadConcurrency: a.config.Limits.DownloadConcurrency,
		MaxRetries:          cmp.Or(c.MaxRetries, none), MinRetryDelay: c.MinRetryDelay, MaxRetryDelay: c.MaxRetryDelay, ReadRetries: cmp.Or(c.RangeMaxRetries, none),
		StallTimeout: a.config.Limits.StallTimeout, UseListV1: c.ListObjectsV1, DeleteBatchSize: c.DeleteBatchSize,
		Checksum: c.Checksum, DisableContinue: c.Disable100Continue, AdditionalHeaders: headers, LogRequests: requests, OnRetry: a.storageFailed,
	}
}

func (a *app) gcsOptions() gcs.Options {
	c, cfg := a.config.GCS, a.config.Storage
	prefix := cfg.Path
	if cfg.Folder != "" {
		prefix = strings.TrimSuffix(prefix, "/") + "/" + cfg.Folder
	}
	const none = -1 // to gcs, 0 retries are the default's number
	return gcs.Options{
		Bucket: cfg.Bucket, Prefix: prefix, KeepSlashes: !c.NormalizePrefix, CredentialsFile: c.CredentialsFile, Emulator: c.Emulator,
		EncryptionKey: storage.Secret(c.EncryptionKey.Reveal()), ChunkSize: c.MaxChunkSize,
		Concurrency: a.config.Limits.UploadConcurrency, Budget: storage.NewBudget(a.config.Limits.Memory),
		MaxRetries: cmp.Or(c.MaxRetries, none), RequestTimeout: time.Duration(c.ContextTimeout) * time.Second,
		StallTimeout: a.config.Limits.StallTimeout, OnRetry: a.storageFailed,
	}
}

// connect opens the session with the server that is to be backed up.
func (a *app) connect(ctx context.Context) (*postgres.Server, error) {
	s, err := a.session(ctx)
	if err == nil {
		a.closers = append(a.closers, func() error { s.Close(); return nil })
	}
	return s, err
}

// session opens a session with that server, which the caller closes.
func (a *app) session(ctx context.Context) (*postgres.Server, error) {
	c := a.config.Postgres
	return postgres.Connect(ctx, postgres.Options{
		Host: c.Host, Port: c.Port, User: c.User, Password: c.Password.Reveal(), PassFile: c.PassFile, Database: c.Database,
		SSLMode: c.SSLMode, SSLCert: c.SSLCert, SSLKey: c.SSLKey, SSLRootCert: c.SSLRootCert, AppName: c.AppName,
		StopTimeout: c.StopBackupTimeout, AliveInterval: c.AliveCheckInterval, AllowBeta: c.AllowUnknown, Log: a.log,
	})
}

// gcPercent is how much garbage the commands for backups let grow before it is collected, in per cent of what is in use.
// What they use is buffers and the list of files, which cost the collector next to nothing, since there are no pointers in them:
// to collect often is cheap, and twice that memory is not.
const gcPercent = 25

// workers bounds how many parts are worked on at once by the memory that each takes.
func (a *app) workers(wanted int, memory int64) int {
	return int(max(1, min(int64(wanted), a.config.Limits.Memory/memory)))
}

// cores is the number of processors that walden may use.
func cores() int { return runtime.GOMAXPROCS(0) }

// hostname is recorded in backups.
func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}
