// Package restore brings a backup back: into a directory, or into any other [Sink].
//
// Promises: everything that can be checked is checked before the first byte is written; nothing is overwritten and
// nothing leaves the target; global/pg_control is placed last, after every file and directory was synced, so that a
// directory with a control file is a complete restore and one without cannot be started.
package restore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/directio"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/pace"
	"gitlab.com/walden-pg/walden/internal/pgdata"
)

// Deps is what a restore works with.
type Deps struct {
	Catalog  *catalog.Catalog
	Log      *slog.Logger
	Progress Progress
}

// Progress is told how the restore advances. Its methods may be called by many goroutines at once.
type Progress interface {
	Begin(total int64) // bytes to write, 0 if unknown
	Add(n int64)
	End()
}

// Options are the operator's choices.
type Options struct {
	Dir      string                  // absent or empty
	Spec     *catalog.TablespaceSpec // where tablespaces go instead of their recorded places
	Mappings []Mapping               // the same, one by one; they win over Spec
	WALDir   string                  // where pg_wal is to live, "" for inside Dir
	Workers  int                     // parts read at once, at least 1
	Disk     *pace.Limiter           // limits writing, nil for no limit
	Cached   bool                    // files are written through the page cache, even where they need not be
}

// Report tells what was restored.
type Report struct {
	Backup  catalog.Backup
	Dir     string
	Spaces  []Space
	WALDir  string
	WALLink string // target of pg_wal when the backup was taken, if it was a link
	Files   int
	Bytes   int64
}

// Fetch restores a backup into an empty directory: a full one, or a delta with what it takes from the backups that it is based on.
func Fetch(ctx context.Context, d Deps, b catalog.Backup, o Options) (Report, error) {
	began := time.Now()
	chain, err := d.Catalog.Chain(ctx, b)
	if err != nil {
		return Report{}, err
	}
	listing := chain[0].Listing
	t, err := plan(b, listing, o)
	if err != nil {
		return Report{}, err
	}
	d.Log.Info("restore begins", "action", "backup-fetch", "backup", b.Name, "state", "begin", "dir", t.dir,
		"parts", partsOf(chain), "backups", len(chain), "files", listing.Files.Len(), "size", listing.DataSize, "tablespaces", len(t.spaces), "started", b.When())

	sink, err := t.open(ctx, d, b, o)
	if err != nil {
		return Report{}, err
	}
	defer sink.close()
	d.Progress.Begin(listing.DataSize)
	utilities, err := Unpack(ctx, d.Catalog, d.Log, chain, o.Workers, sink)
	d.Progress.End()
	if err == nil {
		err = t.complete(ctx, d.Log, sink, b, utilities)
	}
	if err != nil {
		return Report{}, hint.With(err, unfinishedHint(t))
	}
	d.Log.Info("Backup extraction complete.", "action", "backup-fetch", "backup", b.Name, "state", "complete", "dir", t.dir,
		"files", sink.files, "size", sink.bytes, "seconds", float64(time.Since(began).Round(time.Millisecond).Milliseconds())/1000,
		"rate", int64(float64(sink.bytes)/time.Since(began).Seconds()))
	return Report{b, t.dir, t.spaces, t.walDir, cmp.Or(listing.WALLink, sink.walLink), sink.files, sink.bytes}, nil
}

// partsOf counts the parts that are read.
func partsOf(chain []catalog.Member) int {
	n := 0
	for _, m := range chain {
		n += len(m.Listing.Parts)
	}
	return n
}

func unfinishedHint(t *target) string {
	return t.dir + " holds an unfinished restore without global/pg_control, which PostgreSQL does not start; " +
		"the same command run again removes it and begins anew"
}

// open creates the directories and leaves the mark of an unfinished restore.
func (t *target) open(ctx context.Context, d Deps, b catalog.Backup, o Options) (*disk, error) {
	if t.resumed {
		d.Log.Warn("removing an unfinished restore", "dir", t.dir)
		if err := t.empty(); err != nil {
			return nil, err
		}
	}
	s := &disk{
		ctx: ctx, log: d.Log, limit: o.Disk, chown: os.Geteuid() == 0, add: d.Progress.Add,
		mounts: map[string]*os.Root{}, dirs: map[string]dirInfo{}, links: map[string]link{}, owners: map[string]int{},
		copier: directio.New(o.Cached),
	}
	s.beginSyncs()
	fail := func(err error) (*disk, error) {
		s.close()
		return nil, fmt.Errorf("cannot prepare the target: %w", err)
	}
	var err error
	if s.root, err = createRoot(t.dir); err != nil {
		return fail(err)
	}
	if err := t.leaveMark(b); err != nil {
		return fail(err)
	}
	for _, sp := range t.spaces {
		if s.mounts[spaceDir(sp.OID)], err = createRoot(sp.Location); err != nil {
			return fail(err)
		}
		s.links[spaceDir(sp.OID)] = link{target: sp.Location}
	}
	if t.walDir != "" {
		if s.mounts["pg_wal"], err = createRoot(t.walDir); err != nil {
			return fail(err)
		}
		s.links["pg_wal"] = link{target: t.walDir}
	}
	for _, dir := range []string{"", "global", "pg_tblspc", "pg_wal"} {
		if err := s.mkdir(dir); err != nil { // pg_wal: WAL-G leaves it out where it was a link
			return fail(err)
		}
	}
	return s, nil
}

// createRoot creates a directory, syncs the one above, and opens it.
func createRoot(dir string) (*os.Root, error) {
	var missing []string
	for at := dir; nearestExisting(at) != at; at = filepath.Dir(at) {
		missing = append(missing, filepath.Dir(at))
	}
	if err := os.MkdirAll(dir, privateDir); err != nil {
		return nil, err
	}
	for _, above := range missing {
		if err := syncDir(above); err != nil {
			return nil, err
		}
	}
	return os.OpenRoot(dir)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (t *target) leaveMark(b catalog.Backup) error {
	raw, err := json.Marshal(mark{Backup: b.Name, Begun: time.Now().UTC(), Directories: t.outside()})
	if err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(t.dir, markFile), raw); err != nil {
		return err
	}
	return syncDir(t.dir)
}

func writeSynced(name string, content []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, privateFile)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// empty removes an unfinished restore; its mark goes last.
func (t *target) empty() error {
	for _, dir := range append(t.outside(), t.dir) {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Name() == markFile {
				continue
			}
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("cannot remove an unfinished restore: %w", err)
			}
		}
		// Else a power cut could bring back what lay there, without the mark that has it removed, or into the new restore.
		if err := syncDir(dir); err != nil {
			return fmt.Errorf("cannot remove an unfinished restore: %w", err)
		}
	}
	return os.Remove(filepath.Join(t.dir, markFile))
}

// complete turns the copied files into a data directory that can be started: links, directories, label, and the
// control file after everything else is safe on disk.
func (t *target) complete(ctx context.Context, log *slog.Logger, s *disk, b catalog.Backup, u Utilities) error {
	if err := u.Check(b); err != nil {
		return err
	}
	if m := u.TablespaceMap; m != nil {
		if err := s.File(mapFile, m.Header, bytes.NewReader(t.rewriteMap(m.Content, log))); err != nil {
			return fileError(mapFile, err)
		}
	}
	if u.Label != nil {
		if err := s.File(labelFile, u.Label.Header, bytes.NewReader(u.Label.Content)); err != nil {
			return fileError(labelFile, err)
		}
	}
	if err := s.finish(ctx); err != nil {
		return fmt.Errorf("cannot complete the restore of %s: %w", b.Name, err)
	}
	const temporary = pgdata.ControlName + ".tmp"
	if err := s.File(temporary, u.Control.Header, bytes.NewReader(u.Control.Content)); err != nil {
		return fileError(pgdata.ControlName, err)
	}
	if err := s.synced(); err != nil {
		return err
	}
	if err := s.root.Rename(temporary, pgdata.ControlName); err != nil {
		return fileError(pgdata.ControlName, err)
	}
	if err := syncDir(filepath.Join(t.dir, "global")); err != nil {
		return err
	}
	if err := s.root.Remove(markFile); err != nil {
		return err
	}
	return syncDir(t.dir)
}

// Check makes sure that the files that a restore places last are there, and belong to this backup.
func (u Utilities) Check(b catalog.Backup) error {
	if u.Control == nil {
		return fmt.Errorf("cannot complete the restore of %s: the backup has no %s", b.Name, pgdata.ControlName)
	}
	if err := checkLabel(b, u); err != nil {
		return fmt.Errorf("cannot complete the restore of %s: %w", b.Name, err)
	}
	if err := checkUtilities(b, u); err != nil {
		return fmt.Errorf("cannot complete the restore of %s: %w", b.Name, err)
	}
	return nil
}

// checkControl compares the control file with what the backup's documents say.
func checkControl(b catalog.Backup, raw []byte) error {
	control, err := pgdata.ParseControl(raw)
	if errors.Is(err, pgdata.ErrControlVersion) {
		return nil // of a PostgreSQL older or newer than we know; its bytes are as they were stored
	}
	if err != nil {
		return err
	}
	if b.SystemIdentifier != 0 && control.SystemIdentifier != b.SystemIdentifier {
		return fmt.Errorf("its control file is of another cluster: system identifier %d, the backup is of %d", control.SystemIdentifier, b.SystemIdentifier)
	}
	return nil
}

// rewriteMap puts the places of tablespaces into tablespace_map, from which PostgreSQL makes the links anew when recovery
// begins (read_tablespace_map in xlogrecovery.c: a line "OID location", newlines in it behind backslashes). Lines of
// tablespaces that were not restored are left out: PostgreSQL would put a link to any place where the files are.
func (t *target) rewriteMap(content []byte, log *slog.Logger) []byte {
	locations := map[string]string{}
	for _, s := range t.spaces {
		locations[strconv.FormatUint(uint64(s.OID), 10)] = s.Location
	}
	escape := strings.NewReplacer("\\", "\\\\", "\n", "\\\n", "\r", "\\\r")
	var out bytes.Buffer
	var lines fewLines
	for _, line := range mapLines(content) {
		oid, recorded, _ := strings.Cut(line, " ")
		location, ok := locations[oid]
		switch {
		case ok:
			line = oid + " " + escape.Replace(location)
		case recorded == "pg_tblspc/"+oid: // in place (allow_in_place_tablespaces), not a link
		default:
			lines.warn(log, "tablespace_map names a tablespace that the backup does not have; the line is left out", "line", fmt.Sprintf("%.200s", line))
			continue
		}
		out.WriteString(line + "\n")
	}
	return out.Bytes()
}

// mapLines splits a tablespace_map at the newlines that are not escaped.
func mapLines(content []byte) []string {
	var lines []string
	var cur strings.Builder
	for i := 0; i < len(content); i++ {
		switch c := content[i]; {
		case c == '\\' && i+1 < len(content):
			cur.WriteByte(c)
			i++
			cur.WriteByte(content[i])
		case c == '\n':
			lines = append(lines, cur.String())
			cur.Reset()
		default:
			cur.WriteByte(c)
		}
	}
	if cur.Len() > 0 {
		lines = append(lines, cur.String())
	}
	return lines
}

func (d *disk) close() {
	_ = d.synced() // after a success nothing is left, after a failure another error is told
	for _, r := range d.mounts {
		if r != nil {
			r.Close()
		}
	}
	if d.root != nil {
		d.root.Close()
	}
}
