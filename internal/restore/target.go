package restore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/pgdata"
)

// The files that are handled apart, by their names below the data directory.
const (
	labelFile = "backup_label"
	mapFile   = "tablespace_map"
	markFile  = "walden_restore.json" // exists while a restore is unfinished
)

// Mapping moves a tablespace, as pg_basebackup's --tablespace-mapping does.
type Mapping struct{ Old, New string }

// ParseMapping reads "OLD=NEW" as pg_basebackup spells it: a "=" that belongs to a path is written "\=", both paths are
// absolute.
func ParseMapping(s string) (Mapping, error) {
	var parts []string
	var cur strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == '=':
			cur.WriteByte('=')
			i++
		case s[i] == '=':
			parts = append(parts, cur.String())
			cur.Reset()
		default:
			cur.WriteByte(s[i])
		}
	}
	parts = append(parts, cur.String())
	if len(parts) != 2 || !filepath.IsAbs(parts[0]) || !filepath.IsAbs(parts[1]) {
		return Mapping{}, fmt.Errorf("cannot use the tablespace mapping %q: it must be OLD=NEW with two absolute paths", s)
	}
	return Mapping{filepath.Clean(parts[0]), filepath.Clean(parts[1])}, nil
}

// Space is where a tablespace goes.
type Space struct {
	OID      uint32
	Recorded string // location when the backup was taken
	Location string // location in this restore
}

// target is where a backup goes: the data directory, and the directories outside it.
type target struct {
	dir     string // absolute, symbolic links resolved
	walDir  string // where pg_wal is to live, likewise; "" for inside the data directory
	spaces  []Space
	resumed bool // an unfinished restore lies there and will be removed
}

// mark is walden_restore.json: what an unfinished restore has begun to fill.
type mark struct {
	Backup      string    `json:"backup"`
	Begun       time.Time `json:"begun"`
	Directories []string  `json:"directories"` // outside the data directory
}

// plan decides where everything goes and checks all that can be checked before anything is written.
func plan(b catalog.Backup, l catalog.Listing, o Options) (*target, error) {
	t := &target{walDir: o.WALDir}
	if filepath.IsAbs(o.WALDir) {
		t.walDir = resolve(o.WALDir)
	}
	var err error
	if t.dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	t.dir = resolve(t.dir)
	if t.spaces, err = placeTablespaces(b, o); err != nil {
		return nil, err
	}
	if err := t.refuseOverlaps(); err != nil {
		return nil, err
	}
	m, err := readMark(t.dir)
	if err != nil {
		return nil, err
	}
	t.resumed = m != nil
	if !t.resumed {
		if err := mustBeEmpty(t.dir, "the target directory"); err != nil {
			return nil, err
		}
	}
	for _, dir := range t.outside() {
		if m != nil && slices.Contains(m.Directories, dir) {
			continue // ours to remove
		}
		if err := mustBeEmpty(dir, "the directory for a tablespace or for pg_wal"); err != nil {
			return nil, err
		}
	}
	for _, dir := range append(t.outside(), t.dir) {
		if err := refuseInsideCluster(dir); err != nil {
			return nil, err
		}
		if err := mustBeWritable(dir); err != nil {
			return nil, err
		}
	}
	return t, t.checkSpace(l)
}

// placeTablespaces decides where the tablespaces of the backup go.
func placeTablespaces(b catalog.Backup, o Options) ([]Space, error) {
	var spaces []Space
	if b.Tablespaces != nil {
		for oid, location := range b.Tablespaces.Tablespaces {
			spaces = append(spaces, Space{oid, filepath.Clean(location), filepath.Clean(location)})
		}
	}
	slices.SortFunc(spaces, func(a, b Space) int { return int(int64(a.OID) - int64(b.OID)) })
	if o.Spec != nil {
		for i := range spaces {
			location, ok := o.Spec.Tablespaces[spaces[i].OID]
			if !ok {
				return nil, fmt.Errorf("cannot use the restore specification: it says nothing of tablespace %d, which backup %s has at %s",
					spaces[i].OID, b.Name, spaces[i].Recorded)
			}
			spaces[i].Location = filepath.Clean(location)
		}
	}
	for _, m := range o.Mappings {
		i := slices.IndexFunc(spaces, func(s Space) bool { return s.Recorded == m.Old })
		if i < 0 {
			return nil, fmt.Errorf("cannot move a tablespace from %s: backup %s has none there (it has %s)", m.Old, b.Name, listSpaces(spaces))
		}
		spaces[i].Location = m.New
	}
	for i, s := range spaces {
		if !filepath.IsAbs(s.Location) {
			return nil, fmt.Errorf("cannot place tablespace %d: %q is not an absolute path", s.OID, s.Location)
		}
		spaces[i].Location = resolve(s.Location)
	}
	return spaces, nil
}

func listSpaces(spaces []Space) string {
	if len(spaces) == 0 {
		return "none at all"
	}
	var s []string
	for _, sp := range spaces {
		s = append(s, sp.Recorded)
	}
	return strings.Join(s, ", ")
}

// outside lists the directories outside the data directory.
func (t *target) outside() []string {
	var dirs []string
	for _, s := range t.spaces {
		dirs = append(dirs, s.Location)
	}
	if t.walDir != "" {
		dirs = append(dirs, t.walDir)
	}
	return dirs
}

func (t *target) refuseOverlaps() error {
	if t.walDir != "" && !filepath.IsAbs(t.walDir) {
		return fmt.Errorf("cannot place pg_wal: %q is not an absolute path", t.walDir)
	}
	all := append(t.outside(), t.dir)
	for i, a := range all {
		for _, b := range all[i+1:] {
			if a == b || within(a, b) || within(b, a) {
				return hint.With(fmt.Errorf("cannot restore: %s and %s would overlap", a, b),
					"move tablespaces with --tablespace-mapping OLD=NEW or --restore-spec FILE")
			}
		}
	}
	return nil
}

func within(inner, outer string) bool {
	rel, err := filepath.Rel(outer, inner)
	return err == nil && filepath.IsLocal(rel)
}

// refuseInsideCluster refuses a place within another data directory: that cluster's backups would hold it, and whoever
// removes the cluster removes it.
func refuseInsideCluster(dir string) error {
	for at := filepath.Dir(dir); ; at = filepath.Dir(at) {
		if _, err := os.Lstat(filepath.Join(at, pgdata.ControlName)); err == nil {
			return hint.With(fmt.Errorf("cannot restore into %s: it lies in the data directory of another cluster, %s", dir, at),
				"give a directory outside of it")
		}
		if at == "/" {
			return nil
		}
	}
}

// mustBeEmpty refuses anything but an empty or absent directory.
func mustBeEmpty(dir, what string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("cannot restore into %s: %w", dir, err)
	case len(entries) > 0:
		return hint.With(fmt.Errorf("cannot restore into %s: %s is not empty (it holds %q)", dir, what, entries[0].Name()),
			"walden never overwrites: give another directory, or remove what is there yourself")
	}
	return nil
}

// mustBeWritable checks the directory, or the nearest one above it that exists.
func mustBeWritable(dir string) error {
	existing := nearestExisting(dir)
	if err := unix.Access(existing, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("cannot restore into %s: no permission to write to %s: %w", dir, existing, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(existing, &st); err != nil {
		return fmt.Errorf("cannot restore into %s: %w", dir, err)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return fmt.Errorf("cannot restore into %s: its file system is read-only", dir)
	}
	return nil
}

// resolve follows the symbolic links in an absolute path, also where it does not exist to its end: two paths that look apart
// may be one place, or one in the other.
func resolve(dir string) string {
	existing := nearestExisting(dir)
	resolved, err := filepath.EvalSymlinks(existing)
	if err != nil {
		return dir // it cannot be used anyway
	}
	return filepath.Join(resolved, strings.TrimPrefix(dir, existing))
}

func nearestExisting(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// need is what will be written to one file system.
type need struct {
	dir          string // one of the directories on it, for messages
	bytes, files int64
}

// block is the unit in which file systems are taken to allocate space, in bytes.
const block = 4096

// checkSpace compares what is to be written with what the file systems have free. Where a backup does not record sizes by
// file (WAL-G's own) only the sum is known: of a chain that is what the newest backup's cluster had.
func (t *target) checkSpace(l catalog.Listing) error {
	devices := map[uint64]*need{}
	on := func(dir string) (*need, error) {
		var st unix.Stat_t
		if err := unix.Stat(nearestExisting(dir), &st); err != nil {
			return nil, fmt.Errorf("cannot restore into %s: %w", dir, err)
		}
		if devices[st.Dev] == nil {
			devices[st.Dev] = &need{dir: dir}
		}
		return devices[st.Dev], nil
	}
	base, err := on(t.dir)
	if err != nil {
		return err
	}
	bySpace := map[string]*need{}
	for _, s := range t.spaces {
		if bySpace[spaceDir(s.OID)], err = on(s.Location); err != nil {
			return err
		}
	}
	if !l.Hashed {
		if len(devices) > 1 {
			return checkTogether(devices, l.DataSize)
		}
		base.bytes, base.files = l.DataSize, int64(l.Files.Len())
	}
	for _, f := range l.Files.All() {
		if !l.Hashed {
			break
		}
		n := base
		if el := strings.SplitN(f.Name, "/", 3); len(el) == 3 && bySpace[el[0]+"/"+el[1]] != nil {
			n = bySpace[el[0]+"/"+el[1]]
		}
		n.files++
		n.bytes = sum(n.bytes, sum(f.Size, block-1)/block*block)
	}
	for _, n := range devices {
		if err := n.check(); err != nil {
			return err
		}
	}
	return nil
}

// checkTogether makes sure that bytes fit on several file systems, whatever of them goes where.
func checkTogether(devices map[uint64]*need, bytes int64) error {
	free, dirs := int64(0), []string{}
	for _, n := range devices {
		var st unix.Statfs_t
		if err := unix.Statfs(nearestExisting(n.dir), &st); err != nil {
			return fmt.Errorf("cannot restore into %s: %w", n.dir, err)
		}
		free, dirs = sum(free, int64(st.Bavail)*st.Bsize), append(dirs, n.dir)
	}
	if bytes > free {
		slices.Sort(dirs)
		return hint.With(fmt.Errorf("cannot restore into %s: their file systems have %d MiB free together, the backup needs %d MiB",
			strings.Join(dirs, " and "), free>>20, bytes>>20+1),
			"nothing was written; make room, or move tablespaces with --tablespace-mapping OLD=NEW")
	}
	return nil
}

func (n *need) check() error {
	var st unix.Statfs_t
	if err := unix.Statfs(nearestExisting(n.dir), &st); err != nil {
		return fmt.Errorf("cannot restore into %s: %w", n.dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; n.bytes > free {
		return hint.With(fmt.Errorf("cannot restore into %s: its file system has %d MiB free, the backup needs %d MiB", n.dir, free>>20, n.bytes>>20+1),
			"nothing was written; make room, or move tablespaces with --tablespace-mapping OLD=NEW")
	}
	if st.Files > 0 && n.files > int64(st.Ffree) {
		return hint.With(fmt.Errorf("cannot restore into %s: its file system has room for %d more files, the backup has %d", n.dir, st.Ffree, n.files),
			"nothing was written; choose a file system with more inodes, or move tablespaces with --tablespace-mapping OLD=NEW")
	}
	return nil
}

func spaceDir(oid uint32) string { return fmt.Sprintf("pg_tblspc/%d", oid) }

// readMark returns the mark of an unfinished restore in dir; nil if there is none. A directory in which the control file
// already stands is a data directory, whatever else is there.
func readMark(dir string) (*mark, error) {
	b, err := os.ReadFile(filepath.Join(dir, markFile))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot restore into %s: %w", dir, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, pgdata.ControlName)); err == nil {
		return nil, nil
	}
	var m mark
	if err := json.Unmarshal(b, &m); err != nil { // cut off before it was written: nothing else was written then
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 1 {
			return nil, nil // so this is something else, and the operator's to judge
		}
	}
	return &m, nil
}
