// Package backup takes base backups of a running cluster: it puts the server into backup mode, copies the data
// directory in parallel as tars, and makes the backup exist when everything it needs is proven to be stored.
//
// Promises: success means that the storage holds every part as it was written; whatever goes wrong, the server leaves
// backup mode and no backup is listed.
package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/pace"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/postgres"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// Deps is what a backup works with.
type Deps struct {
	Catalog  *catalog.Catalog
	Server   *postgres.Server
	Log      *slog.Logger
	Progress Progress
	// OpenSession opens another session with the server, for Options.SlowDown.
	OpenSession func(context.Context) (*postgres.Server, error)
}

// Progress is told how the copy advances. Its methods may be called by many goroutines at once.
type Progress interface {
	Begin(total int64) // bytes to copy, as the walk found them
	Add(n int64)
	End()
}

// Options are the operator's choices.
type Options struct {
	DataDir         string          // as given; it must be the server's
	Workers         int             // parts copied at once, at least 1
	BlocksAtOnce    int             // blocks of a part that are compressed at once where processors would idle else
	WideParts       int             // for how many parts at most, for the memory that it takes
	PartSize        int64           // a part is ended when it holds this many bytes
	Permanent       bool            // retention never removes the backup
	UserData        json.RawMessage // JSON stored with the backup, nil for none
	Verify          bool            // check page checksums; the cluster must have them
	StoreAllCorrupt bool            // name all corrupt blocks of a file in its metadata, not just the first ten
	Disk            *pace.Limiter   // limits reading, nil for no limit
	SlowDown        SlowDown
	ArchiveWait     time.Duration // how long to wait for WAL without progress
	NoRelations     bool          // leave out the names of databases and tables
	Hostname        string
	Version         string // of this program
	Delta           DeltaOptions
	Compression     string // names recorded in the manifest
	Encryption      string
}

// Outcome is what became of a backup that was taken.
type Outcome struct {
	Backup catalog.Backup
	// CorruptFiles names the files with corrupt pages.
	CorruptFiles []string
	// Overdue is set when the backup's WAL should have reached the archive and did not within the deadline.
	Overdue error
}

// abandonTimeout bounds the removal of what a failed backup has stored.
const abandonTimeout = time.Minute

// Push takes a backup: a delta where the options ask for one and there is a backup to base it on, or else a full one.
func Push(ctx context.Context, d Deps, o Options) (out Outcome, err error) {
	info := d.Server.Info()
	dir, control, err := examineDataDir(o.DataDir, info)
	if err != nil {
		return out, err
	}
	if err := d.Catalog.Admit(ctx, cluster(info)); err != nil {
		return out, fmt.Errorf("cannot take a backup: %w", err)
	}
	if o.Verify && info.BlockSize != pgdata.PageSize {
		d.Log.Warn("page checksums are not verified: the cluster's pages have an unusual size", "block_size", info.BlockSize)
		o.Verify = false
	}

	from, err := chooseBase(ctx, d, o, info, control)
	if err != nil {
		return out, err
	}

	mode, err := d.Server.EnterBackupMode(ctx, "walden "+time.Now().UTC().Format(time.RFC3339))
	if err != nil {
		return out, err
	}
	defer mode.Leave()
	ctx, release := whileServerAnswers(ctx, mode)
	defer release()
	copyStart := time.Now()

	tablespaces, err := pgdata.Tablespaces(dir)
	if err != nil {
		return out, err
	}
	var since *delta
	if from != nil {
		if from, err = orFull(ctx, d, from, from.precedes(ctx, d, dir, mode.Start())); err != nil {
			return out, err
		}
	}
	if from != nil {
		if since, err = prepareDelta(ctx, d, o, from, mode.Start(), dir, control); err != nil {
			return out, err
		}
	}
	draft, err := d.Catalog.Begin(ctx, begin(mode.Start(), info, dir, tablespaces, from, o))
	if err != nil {
		return out, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, abandon(ctx, draft))
		}
	}()
	if err := nameLeftovers(ctx, d, draft.Name()); err != nil {
		return out, err
	}
	d.Log.Info("backup begins", "action", "backup-push", "backup", draft.Name(), "state", "begin",
		"start_lsn", mode.Start().LSN, "data_dir", dir, "to", d.Catalog)

	job, err := plan(ctx, dir, control, info.Major, tablespaces, since, o, d.Log)
	if err != nil {
		return out, err
	}
	letGo := job.brakeWhile(ctx, d, o)
	err = job.copyParts(ctx, draft, mode.Start().LSN, d.Progress)
	letGo()
	if err != nil {
		return out, err
	}
	if job.contents.Control, err = job.copyControl(ctx, draft); err != nil {
		return out, err
	}
	copied := time.Since(copyStart)

	stop, err := mode.Finish(ctx)
	if err != nil {
		return out, err
	}
	out.CorruptFiles = job.judgePages(stop.LSN, o.StoreAllCorrupt)
	if job.contents.Label, err = job.copyLabel(ctx, draft, stop); err != nil {
		return out, err
	}
	need := neededWAL{
		first: wal.SegmentAt(mode.Start().Timeline, mode.Start().LSN, info.WALSegmentSize),
		last:  wal.SegmentBefore(mode.Start().Timeline, stop.LSN, info.WALSegmentSize),
		size:  info.WALSegmentSize, standby: mode.Start().Standby,
	}
	var state catalog.WALState
	state, out.Overdue, err = awaitWAL(ctx, d, need, o.ArchiveWait)
	if err != nil {
		return out, err
	}
	out.Backup, err = draft.Commit(ctx, catalog.Stop{
		LSN: stop.LSN, Time: stop.Time, WAL: state, First: need.first, Last: need.last,
	}, &job.contents, relations(d, o))
	if err != nil {
		return out, err
	}
	d.Log.Info("Wrote backup with name "+draft.Name()+" to storage default", "action", "backup-push", "backup", draft.Name(),
		"state", "complete", "start_lsn", mode.Start().LSN, "stop_lsn", stop.LSN, "files", job.contents.Files.Len(),
		"parts", len(job.contents.Parts), "size", out.Backup.UncompressedSize, "stored", out.Backup.CompressedSize,
		"copy_seconds", seconds(copied), "seconds", seconds(time.Since(copyStart)),
		"rate", int64(float64(out.Backup.UncompressedSize)/copied.Seconds()), "wal", string(state), "corrupt_blocks", out.Backup.CorruptBlocks)
	return out, nil
}

// seconds is what the log tells of a duration: three digits, without the tail of a binary fraction that Duration.Seconds can leave.
func seconds(d time.Duration) float64 {
	return float64(d.Round(time.Millisecond).Milliseconds()) / 1000
}

// cluster describes the server for the archive's identity.
func cluster(info postgres.Info) catalog.Cluster {
	return catalog.Cluster{SystemIdentifier: info.SystemIdentifier, Major: info.Major, SegmentSize: info.WALSegmentSize}
}

func begin(s postgres.Start, info postgres.Info, dir string, tablespaces []pgdata.Tablespace, from *base, o Options) catalog.Start {
	var delta *catalog.Delta
	if from != nil {
		delta = &from.delta
	}
	locations := map[uint32]string{}
	for _, t := range tablespaces {
		if !t.InPlace {
			locations[t.OID] = t.Location
		}
	}
	return catalog.Start{
		LSN: s.LSN, Timeline: s.Timeline, Time: s.Time, Standby: s.Standby,
		SystemIdentifier: info.SystemIdentifier, PgVersion: info.VersionNum, SegmentSize: info.WALSegmentSize,
		PageSize: info.BlockSize, DataChecksums: info.DataChecksums, Hostname: o.Hostname, DataDir: dir,
		Tablespaces: locations, UserData: o.UserData, Permanent: o.Permanent, Delta: delta, Walden: o.Version,
		Compression: o.Compression, Encryption: o.Encryption,
	}
}

// nameLeftovers warns of backups that were begun and never completed.
func nameLeftovers(ctx context.Context, d Deps, ours string) error {
	for name, err := range d.Catalog.Leftovers(ctx) {
		if err != nil {
			return err
		}
		if name != ours {
			d.Log.Warn("the archive holds an unfinished backup; unless another host is taking it just now, it was cut off and can be removed",
				"backup", name, "archive", d.Catalog)
		}
	}
	return nil
}

// whileServerAnswers returns a context that ends when the connection that holds the server in backup mode is lost:
// the server has left backup mode then, and nothing copied from there on would be of use.
func whileServerAnswers(ctx context.Context, mode *postgres.BackupMode) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-mode.Lost():
			cancel(fmt.Errorf("the server has left backup mode: %w", mode.Err()))
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}

// abandon removes what a failed backup has stored, also when ctx has ended, and names what remains.
func abandon(ctx context.Context, draft *catalog.Draft) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), abandonTimeout,
		fmt.Errorf("the storage did not answer within %s", abandonTimeout))
	defer cancel()
	return draft.Abandon(ctx)
}
