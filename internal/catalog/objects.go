package catalog

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage"
)

// StoredObject is an object as it lies in the storage, for those who take it elsewhere without a look into it.
type StoredObject struct {
	Key    string // below the archive's prefix, with extension
	Size   int64  // bytes as stored
	SHA256 string // hex, of the bytes as stored; "" where nothing records it
	// Changes tells that walden rewrites the object in an archive: the mark of a backup, the memory of a proof.
	Changes bool
}

// BackupObjects is what is stored of one backup, in the order in which it has to appear elsewhere: before its sentinel there is no backup.
type BackupObjects struct {
	Parts     []StoredObject // tars
	Documents []StoredObject // all others, without the marks of a draft and of a removal
	Sentinel  StoredObject
}

// All returns the objects in the order in which they have to appear.
func (o BackupObjects) All() []StoredObject {
	return append(slices.Concat(o.Parts, o.Documents), o.Sentinel)
}

// Objects lists what is stored of a backup. What its documents name is compared with that: a part that is missing, or has another size
// than recorded, is an error.
func (c *Catalog) Objects(ctx context.Context, b Backup) (BackupObjects, error) {
	o := BackupObjects{Sentinel: StoredObject{Key: sentinelKey(b.Name)}}
	fail := func(err error) (BackupObjects, error) {
		return o, fmt.Errorf("cannot list what belongs to backup %s in %s: %w", b.Name, c, err)
	}
	sentinel, err := c.repo.Stat(ctx, o.Sentinel.Key)
	if err != nil {
		return fail(err)
	}
	o.Sentinel.Size = sentinel.Size
	recorded, err := c.recordedParts(ctx, b)
	if err != nil {
		return fail(err)
	}
	stored := map[string]int64{}
	err = c.repo.Walk(ctx, backupDir(b.Name), func(found storage.Object) {
		s := StoredObject{Key: found.Key, Size: found.Size}
		name, isPart := strings.CutPrefix(found.Key, backupDir(b.Name)+partsDir)
		switch {
		case isPart:
			s.SHA256 = recorded[name].SHA256
			stored[name] = found.Size
			o.Parts = append(o.Parts, s)
		case IsMark(found.Key):
		default:
			s.Changes = found.Key == backupDir(b.Name)+metadataName || found.Key == backupDir(b.Name)+proofName
			if found.Key == backupDir(b.Name)+manifestName {
				s.SHA256 = b.ManifestSHA256
			}
			o.Documents = append(o.Documents, s)
		}
	})
	if err != nil {
		return fail(err)
	}
	for _, name := range sortedKeys(recorded) {
		size, ok := stored[name]
		switch {
		case !ok:
			return fail(fmt.Errorf("its part %s is missing: %w", name, fs.ErrNotExist))
		case size != recorded[name].Size:
			return fail(fmt.Errorf("its part %s has %d bytes, %d were written", name, size, recorded[name].Size))
		}
	}
	if b.ManifestSHA256 == "" { // what other writers name is compared there
		if _, err := c.List(ctx, b); err != nil {
			return o, err
		}
	}
	return o, nil
}

// recordedParts reads from walden's manifest which tars were written; nil for a backup of another writer.
func (c *Catalog) recordedParts(ctx context.Context, b Backup) (map[string]Part, error) {
	if b.ManifestSHA256 == "" {
		return nil, nil
	}
	var parts map[string]Part
	err := c.repo.ReadPlain(ctx, backupDir(b.Name)+manifestName, maxListing, func(r io.Reader) error {
		parts = map[string]Part{}
		sum := sha256.New()
		all := io.TeeReader(bufio.NewReaderSize(r, 256<<10), sum)
		d := newDecoder(all)
		err := eachMember(d, func(key string) error {
			if key != "parts" {
				_, err := skipValue(d)
				return err
			}
			return eachItem(d, func() error {
				var p manifestPart
				err := d.Decode(&p)
				parts[p.Name] = Part(p)
				return err
			})
		})
		if err == nil {
			_, err = io.Copy(io.Discard, all) // what the decoder did not need belongs to the hash
		}
		if err != nil {
			return notValid("manifest", err)
		}
		if got := hex.EncodeToString(sum.Sum(nil)); got != b.ManifestSHA256 {
			return fmt.Errorf("%s is not the one that was written: its SHA-256 is %s, the sentinel says %s", manifestName, got, b.ManifestSHA256)
		}
		return nil
	})
	return parts, err
}

// Object returns where the file lies.
func (f WALFile) Object() StoredObject { return StoredObject{Key: f.key, Size: f.Size} }

// Start is the position of the first segment that the file is about.
func (f WALFile) Start() Position {
	_, p, ok := PositionOf(f.Name)
	if !ok && len(f.Name) > 23 { // one object about all segments whose names begin alike
		_, p, _ = PositionOf(f.Name[:23] + "0")
	}
	return p
}

// BackupFolder is the folder in which a backup has all but its sentinel. It ends in a slash.
func BackupFolder(backup string) string { return backupDir(backup) }

// SentinelKey is the name of a backup's sentinel.
func SentinelKey(backup string) string { return sentinelKey(backup) }

// WALFolder and FingerprintsFolder hold the WAL and what is said of it beside it.
const (
	WALFolder          = walDir
	FingerprintsFolder = fingerprintsDir
)

// IsMark tells whether an object says that a backup is being written or removed.
func IsMark(key string) bool {
	name := baseName(key)
	return strings.HasPrefix(key, backupsDir) && (name == draftName || name == removedName)
}

// IsOfArchive tells whether an object is one of those that an archive keeps of its cluster.
func IsOfArchive(key string) bool {
	return slices.ContainsFunc(Folders(), func(folder string) bool { return strings.HasPrefix(key, folder) })
}

// IsSentinel tells whether an object makes a backup exist, in whatever archive below the prefix.
func IsSentinel(key string) bool {
	return strings.HasSuffix(key, sentinelSuffix)
}

// Protects says why what is called name, and all that lies below it, is not to be removed on its own; nil if nothing speaks against it.
// holds are the objects that it stands for.
func (c *Catalog) Protects(ctx context.Context, name string, holds []string) error {
	if name == "" {
		return errors.New("that is everything")
	}
	if name == identityName {
		return errors.New("it says which cluster the archive belongs to")
	}
	backup := strings.TrimPrefix(name, backupsDir)
	if strings.HasPrefix(name, backupsDir) && isBackupName(backup) {
		_, err := c.repo.Stat(ctx, sentinelKey(backup))
		switch {
		case err == nil:
			return hint.With(fmt.Errorf("backup %s is listed, and would have no contents", backup), "`walden delete target "+backup+"` deletes the backup")
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	below := name + "/"
	for _, folder := range append(Folders(), fingerprintsDir) {
		for _, key := range holds {
			// The folder is taken as a whole, or an archive in which it lies.
			if at := strings.Index("/"+key, "/"+folder); at >= 0 && strings.HasPrefix(key, below) && len(below) <= at+len(folder) {
				return hint.With(fmt.Errorf("it holds all of %s, which an archive cannot do without", key[:at]+strings.TrimSuffix(folder, "/")),
					"`walden delete` deletes what is not needed any more")
			}
		}
	}
	return nil
}

// Adopt makes the archive that of the cluster which id names, as the copy of another archive is. An archive of another cluster is refused
// with a *[WrongClusterError], unless one of the two is known to have taken the place of the other. The zero id is of an archive that
// does not tell: it goes only with one that does not tell either.
func (c *Catalog) Adopt(ctx context.Context, id Identity) error {
	theirs, err := c.Identity(ctx)
	switch {
	case err == nil:
		return c.goesWith(ctx, theirs, id)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	known, source, err := c.deduce(ctx)
	if errors.Is(err, ErrNoSecretKey) || errors.Is(err, ErrDamaged) {
		if id.Current.SystemIdentifier == 0 {
			return nil
		}
		return hint.With(fmt.Errorf("cannot tell which cluster %s belongs to: %w", c, err), "name an empty place")
	}
	if err != nil {
		return err
	}
	switch {
	case id.Current.SystemIdentifier == 0 && known.SystemIdentifier == 0:
		return nil
	case known.SystemIdentifier != 0 && !id.knows(known):
		return &WrongClusterError{Archive: c.String(), Theirs: known, Ours: id.Current, KnownFromWhere: source}
	}
	err = c.writeIdentity(ctx, id, c.repo.PutPlainNew)
	if errors.Is(err, storage.ErrExists) { // another process was faster: it may be another cluster's
		if theirs, err = c.Identity(ctx); err != nil {
			return err
		}
		return c.goesWith(ctx, theirs, id)
	}
	return err
}

// goesWith checks that the archive's identity and that of the archive which is copied are of one line, and records the later one.
func (c *Catalog) goesWith(ctx context.Context, theirs, id Identity) error {
	switch {
	case id.Current.SystemIdentifier == 0:
		return hint.With(fmt.Errorf("%s belongs to a cluster (%s), and the archive that is copied does not tell to which one it belongs", c, theirs.Current),
			"name an empty place")
	case theirs.knows(id.Current):
		return nil
	case id.knows(theirs.Current):
		return c.writeIdentity(ctx, id, c.repo.PutPlain)
	}
	return &WrongClusterError{Archive: c.String(), Theirs: theirs.Current, Ours: id.Current, KnownFromWhere: "recorded in " + identityName}
}

// GoesWith fails with a *[WrongClusterError] if both archives have an identity, and these are not of one line.
func (c *Catalog) GoesWith(ctx context.Context, other *Catalog) error {
	ours, err := other.Identity(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	theirs, err := c.Identity(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case theirs.knows(ours.Current), ours.knows(theirs.Current):
		return nil
	}
	return &WrongClusterError{Archive: c.String(), Theirs: theirs.Current, Ours: ours.Current, KnownFromWhere: "recorded in " + identityName}
}

// knows tells whether the cluster is the current one or one of those before.
func (id Identity) knows(cluster Cluster) bool {
	return slices.ContainsFunc(append([]Cluster{id.Current}, id.Previous...), func(known Cluster) bool { return !known.contradicts(cluster) })
}

// Belongs returns the identity of the archive, or what its newest backup or segment tells of one that has none; the zero Identity if
// nothing does.
func (c *Catalog) Belongs(ctx context.Context) (Identity, error) {
	id, err := c.Identity(ctx)
	if !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	known, _, err := c.deduce(ctx)
	if err != nil && !errors.Is(err, ErrNoSecretKey) && !errors.Is(err, ErrDamaged) {
		return Identity{}, err
	}
	if known.SystemIdentifier == 0 || err != nil {
		return Identity{}, nil
	}
	return Identity{Current: known, Since: time.Now()}, nil
}

// SameFile tells whether two archives hold a file of the WAL with the same content, under whatever codec.
func (w *WAL) SameFile(ctx context.Context, key string, other *WAL, otherKey string) (bool, error) {
	asRead := repo.Layers{Compressed: true, Encrypted: true}
	ours, err := w.c.repo.Hash(ctx, key, asRead)
	if err != nil {
		return false, err
	}
	theirs, err := other.c.repo.Hash(ctx, otherKey, asRead)
	return ours.SHA256 == theirs.SHA256 && ours.Size == theirs.Size, err
}

// FileName is what PostgreSQL calls the file that an object among the WAL holds.
func (w *WAL) FileName(key string) string { return w.c.repo.TrimExtension(baseName(key)) }
