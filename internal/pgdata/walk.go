package pgdata

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Kind is the kind of an [Entry].
type Kind int

// The kinds of entries. Sockets, pipes and devices never become entries.
const (
	Dir Kind = iota
	File
	Symlink
)

// Entry is a file, directory or link that belongs into a backup.
type Entry struct {
	// Name is the slash-separated path below the data directory, without a leading slash; "" is the data directory
	// itself. The content of a tablespace is named as if it lay in pg_tblspc: pg_tblspc/16384/PG_15_202209061/5/16390.
	Name    string
	Path    string // where to open it
	Kind    Kind
	Size    int64       // st_size in bytes: of a directory what its file system makes it
	Mode    fs.FileMode // permission bits
	ModTime time.Time
	UID     int
	GID     int
	Link    string // target of a Symlink, as it stands in the link
}

// WalkOptions guide [Walk].
type WalkOptions struct {
	// TablespaceVersionDir is the server's own directory within a tablespace ([TablespaceVersionDir]). Others, as left
	// by pg_upgrade, are not visited. It may be empty for a cluster without tablespaces.
	TablespaceVersionDir string

	// OnLink, if not nil, is told of links that a restore has to make by other means than an entry: an excluded directory that
	// is a link (pg_wal on another disk; its Dir entry follows) with the target as it stands in the link, and each
	// tablespace that is visited (pg_tblspc/16384) with its absolute location.
	OnLink func(name, target string)

	// OnSkip, if not nil, is told of what is left out although nobody would expect it, with the reason: a socket, a device.
	OnSkip func(name, reason string)
}

// emptied are the directories whose content does not belong into a backup, while they themselves must exist for the
// server to start or to keep their permissions. Most are excludeDirContents in PostgreSQL's basebackup.c; the log
// directories are the default places of log_directory, which WAL-G leaves out too.
var emptied = map[string]bool{
	"log":          true,
	"pg_dynshmem":  true,
	"pg_log":       true,
	"pg_notify":    true,
	"pg_replslot":  true,
	"pg_serial":    true,
	"pg_snapshots": true,
	"pg_stat_tmp":  true,
	"pg_subtrans":  true,
	"pg_wal":       true,
}

// excluded are the files directly in the data directory that do not belong into a backup: what a running server keeps for
// itself, and what tells a server how to recover. The latter belongs to the recovery this cluster came from; a
// restore writes its own. (excludeFiles in basebackup.c, and the signal files.)
var excluded = map[string]bool{
	"backup_label":             true,
	"backup_label.old":         true,
	"backup_manifest":          true,
	"current_logfiles":         true,
	"current_logfiles.tmp":     true,
	"postgresql.auto.conf.tmp": true,
	"postmaster.opts":          true,
	"postmaster.pid":           true,
	"recovery.conf":            true,
	"recovery.done":            true,
	"recovery.signal":          true,
	"standby.signal":           true,
	"tablespace_map":           true,
	"tablespace_map.old":       true,
}

// indispensable are the directories without whose content a cluster is lost. A link there would lead out of the backup.
var indispensable = map[string]bool{
	"base":         true,
	"global":       true,
	"pg_commit_ts": true,
	"pg_logical":   true,
	"pg_multixact": true,
	"pg_tblspc":    true,
	"pg_twophase":  true,
	"pg_xact":      true,
}

const (
	temporaryPrefix     = "pgsql_tmp"        // PG_TEMP_FILE_PREFIX: files and the directories they lie in
	relationCachePrefix = "pg_internal.init" // RELCACHE_INIT_FILENAME: rebuilt at start
)

// Walk visits everything in the cluster in dataDir, and in its tablespaces, that belongs into a base backup: depth
// first, a directory before its content, names in byte order.
//
// It leaves out what PostgreSQL's own base backup leaves out, and files that would mislead a restored server; such directories
// are visited as if they were empty, except that pg_wal has a child archive_status. global/pg_control is not
// visited: it must be read after everything else. Tablespaces appear below pg_tblspc without an entry for the link and the
// location itself; a tablespace whose location lies in the data directory or in another tablespace is visited once,
// under its own name.
//
// What vanishes during the walk is passed over. Everything else that keeps data out of the backup is an error that
// names the path: what cannot be read, a tablespace whose files are not where its link points, a link in place of a
// directory that the server needs. An error of visit ends the walk and is returned as it is.
func Walk(ctx context.Context, dataDir string, o WalkOptions, visit func(Entry) error) error {
	root, err := filepath.Abs(dataDir)
	if err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if err != nil {
		return walkError(err)
	}
	info, err := os.Stat(root)
	if err != nil {
		return walkError(err)
	}
	w := &walker{ctx: ctx, o: o, visit: visit, root: root, rootInfo: info, spaces: map[fileID]uint32{}}
	if err := w.findTablespaces(); err != nil {
		return err
	}
	return w.directory("", info)
}

type walker struct {
	ctx      context.Context
	o        WalkOptions
	visit    func(Entry) error
	root     string
	rootInfo fs.FileInfo
	spaces   map[fileID]uint32 // version directories of tablespaces behind links, and whose they are
}

// fileID identifies a directory under whatever name it is met.
type fileID struct{ dev, ino uint64 }

func idOf(info fs.FileInfo) fileID {
	st := info.Sys().(*syscall.Stat_t)
	return fileID{st.Dev, st.Ino}
}

// findTablespaces notes where the tablespaces are, so that no directory is visited under two names.
func (w *walker) findTablespaces() error {
	spaces, err := Tablespaces(w.root)
	if err != nil {
		return err
	}
	for _, s := range spaces {
		if s.InPlace {
			continue
		}
		info, err := os.Stat(filepath.Join(s.Location, w.o.TablespaceVersionDir))
		if errors.Is(err, fs.ErrNotExist) { // judged when its turn comes; it may be gone by then
			continue
		}
		if err != nil {
			return walkError(err)
		}
		if err := w.noteTablespace(s.OID, info); err != nil {
			return err
		}
	}
	for dir := w.root; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return walkError(err)
		}
		if oid, ok := w.spaces[idOf(info)]; ok {
			return fmt.Errorf("cannot walk data directory: %s lies within tablespace %d, in %s", w.root, oid, dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

func (w *walker) noteTablespace(oid uint32, version fs.FileInfo) error {
	id := idOf(version)
	if other, taken := w.spaces[id]; taken && other != oid {
		return fmt.Errorf("cannot walk data directory: tablespaces %d and %d have the same location", other, oid)
	}
	w.spaces[id] = oid
	return nil
}

// directory visits a directory and its content.
func (w *walker) directory(name string, info fs.FileInfo) error {
	children, err := readNames(w.path(name))
	if name != "" && vanished(err) {
		return nil
	}
	if err != nil {
		return walkError(err)
	}
	if err := w.emit(name, Dir, info, ""); err != nil {
		return err
	}
	r := rulesIn(name, children)
	for _, base := range children {
		child := base
		if name != "" {
			child = name + "/" + base
		}
		if err := w.child(child, base, r); err != nil {
			return err
		}
	}
	return nil
}

// child visits one thing found in a directory.
func (w *walker) child(name, base string, r rules) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	info, err := os.Lstat(w.path(name))
	if vanished(err) {
		return nil
	}
	if err != nil {
		return walkError(err)
	}
	switch info.Mode().Type() {
	case fs.ModeDir:
		return w.childDirectory(name, base, r, info)
	case fs.ModeSymlink:
		return w.childLink(name, base, r, info)
	case 0:
		if r.exclude(base) {
			return nil
		}
		return w.emit(name, File, info, "")
	}
	w.skip(name, describe(info.Mode()))
	return nil
}

func (w *walker) childDirectory(name, base string, r rules, info fs.FileInfo) error {
	if r.empty(base) {
		return w.emptyDirectory(name, info)
	}
	if name == "lost+found" { // of a file system mounted on the data directory; not readable by the server's user
		w.skip(name, "belongs to the file system")
		return nil
	}
	if oid, ok := w.spaces[idOf(info)]; ok {
		w.skip(name, fmt.Sprintf("is visited as tablespace %d", oid))
		return nil
	}
	return w.directory(name, info)
}

func (w *walker) childLink(name, base string, r rules, info fs.FileInfo) error {
	if r.exclude(base) {
		return nil
	}
	if oid, ok := parseOID(base); ok && r.place == inTablespaceDir {
		return w.tablespace(name, oid)
	}
	target, err := os.Readlink(w.path(name))
	if vanished(err) {
		return nil
	}
	if err != nil {
		return walkError(err)
	}
	if r.empty(base) {
		to, err := os.Stat(w.path(name))
		switch {
		case vanished(err): // a dangling link: the restored cluster needs the directory all the same
			to = w.rootInfo
		case err != nil:
			return walkError(err)
		}
		if to.IsDir() {
			if w.o.OnLink != nil {
				w.o.OnLink(name, target)
			}
			return w.emptyDirectory(name, to)
		}
	}
	if top, _, _ := strings.Cut(name, "/"); indispensable[top] && r.place != inTablespaceDir {
		return &hintError{
			err: fmt.Errorf("cannot back up %s: it is a symbolic link to %s, whose content would be missing",
				w.path(name), target),
			hint: "PostgreSQL supports links for pg_wal and tablespaces only; move the files back or use a tablespace",
		}
	}
	return w.emit(name, Symlink, info, target)
}

// emptyDirectory visits a directory without its content.
func (w *walker) emptyDirectory(name string, info fs.FileInfo) error {
	if err := w.emit(name, Dir, info, ""); err != nil || name != "pg_wal" {
		return err
	}
	const status = "pg_wal/archive_status" // as pg_basebackup has it, for tools that look at it before the server starts
	if own, err := os.Stat(w.path(status)); err == nil && own.IsDir() {
		info = own
	}
	return w.emit(status, Dir, info, "")
}

// tablespace visits the server's part of a tablespace behind a link.
func (w *walker) tablespace(name string, oid uint32) error {
	version := name + "/" + w.o.TablespaceVersionDir
	info, target, err := w.openTablespace(name, version)
	if err != nil {
		return err
	}
	if info == nil {
		return nil
	}
	if err := w.noteTablespace(oid, info); err != nil {
		return err
	}
	if w.o.OnLink != nil {
		w.o.OnLink(name, target)
	}
	return w.directory(version, info)
}

// openTablespace returns the version directory and the location of a tablespace, or nil if the tablespace has been
// dropped. Dropping removes the directory first and the link a moment later, so that a missing directory is looked at
// again for a while before it counts as lost.
func (w *walker) openTablespace(name, version string) (info fs.FileInfo, location string, err error) {
	for attempt := 0; ; attempt++ {
		location, err = linkTarget(w.path(name))
		if vanished(err) {
			return nil, "", nil
		}
		if err != nil {
			return nil, "", walkError(err)
		}
		if w.o.TablespaceVersionDir == "" {
			return nil, "", fmt.Errorf("cannot walk tablespace %s: the name of its version directory is not given", name)
		}
		info, err = os.Lstat(w.path(version))
		if err == nil && info.IsDir() {
			return info, location, nil
		}
		if err == nil {
			err = &fs.PathError{Op: "open", Path: w.path(version), Err: syscall.ENOTDIR}
		}
		if !vanished(err) {
			return nil, "", walkError(err)
		}
		if attempt == 10 {
			return nil, "", &hintError{
				err:  fmt.Errorf("cannot walk tablespace %s in %s: %w", name, location, err),
				hint: "its file system may not be mounted; a link left by a tablespace that no longer exists can be removed",
			}
		}
		if err := sleep(w.ctx, 10*time.Millisecond); err != nil {
			return nil, "", err
		}
	}
}

func (w *walker) emit(name string, kind Kind, info fs.FileInfo, link string) error {
	e := Entry{Name: name, Path: w.path(name), Kind: kind, Size: info.Size(), Mode: info.Mode().Perm(), ModTime: info.ModTime(), Link: link}
	st := info.Sys().(*syscall.Stat_t)
	e.UID, e.GID = int(st.Uid), int(st.Gid)
	return w.visit(e)
}

func (w *walker) skip(name, reason string) {
	if w.o.OnSkip != nil {
		w.o.OnSkip(name, reason)
	}
}

func (w *walker) path(name string) string {
	if name == "" {
		return w.root
	}
	return w.root + "/" + name
}

// place is what kind of directory a directory is, as far as rules about its content go.
type place int

const (
	elsewhere       place = iota
	inDataDir             // the data directory itself
	inGlobal              // global
	inTablespaceDir       // pg_tblspc
	inVersionDir          // base, pg_tblspc/16384/PG_15_202209061: where databases lie
	inDatabaseDir         // base/5, pg_tblspc/16384/PG_15_202209061/5
)

// rules tell what is left out of one directory.
type rules struct {
	place    place
	unlogged map[uint32]bool // relations in this directory that have an init fork
}

func rulesIn(dir string, children []string) rules {
	switch dir {
	case "":
		return rules{place: inDataDir}
	case "global":
		return rules{place: inGlobal}
	case tablespaceDir:
		return rules{place: inTablespaceDir}
	case "base":
		return rules{place: inVersionDir}
	}
	if _, ok := parseVersionDir(dir); ok {
		return rules{place: inVersionDir}
	}
	if _, _, ok := parseRelationDir(dir); !ok {
		return rules{}
	}
	r := rules{place: inDatabaseDir, unlogged: map[uint32]bool{}}
	for _, base := range children {
		if f, ok := parseRelationBase(base); ok && f.Fork == "init" {
			r.unlogged[f.Relation] = true
		}
	}
	return r
}

// empty tells whether a directory is to be visited without its content.
func (r rules) empty(base string) bool {
	switch r.place {
	case inDataDir:
		return emptied[base]
	case inVersionDir:
		return base == temporaryPrefix
	}
	return false
}

// exclude tells whether a file, or a link in its place, is to be left out.
func (r rules) exclude(base string) bool {
	switch r.place {
	case inDataDir:
		return excluded[base] || isCore(base)
	case inGlobal:
		return base == filepath.Base(ControlName) || strings.HasPrefix(base, relationCachePrefix)
	case inVersionDir:
		return strings.HasPrefix(base, temporaryPrefix) && base != temporaryPrefix
	case inDatabaseDir:
		if strings.HasPrefix(base, relationCachePrefix) || strings.HasPrefix(base, temporaryPrefix) || isTemporaryRelation(base) {
			return true
		}
		f, ok := parseRelationBase(base)
		return ok && f.Fork != "init" && r.unlogged[f.Relation] // the server makes them anew from the init fork
	}
	return false
}

// isCore recognises core files under the kernel's default names.
func isCore(base string) bool {
	pid, found := strings.CutPrefix(base, "core.")
	return base == "core" || found && isDigits(pid)
}

// readNames returns the names in a directory in byte order.
func readNames(path string) ([]string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}

// vanished tells whether a path that was there before is gone, or has become something else.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

func describe(m fs.FileMode) string {
	switch {
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "neither file nor directory"
}

func walkError(err error) error {
	err = fmt.Errorf("cannot walk data directory: %w", err)
	if errors.Is(err, fs.ErrPermission) {
		return &hintError{err: err, hint: "run as the user that owns the data directory"}
	}
	return err
}

// sleep waits for d or until the context ends, and returns its cause then.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// hintError is an error about which the operator can do something.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }
func (e *hintError) Hint() string  { return e.hint }
