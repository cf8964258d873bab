package catalog

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
	"time"

	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/repo"
)

// File is one entry of a backup: a regular file, a directory or a symbolic link of the data directory.
type File struct {
	Name  string // slash path below the data directory, "" for the directory itself; tablespaces as pg_tblspc/<oid>/…
	Type  FileType
	Mode  fs.FileMode // permission bits
	Part  int32       // index into Contents.Parts of the tar that holds it
	Size  int64       // bytes, as stored in the tar; of the whole file where that is stored elsewhere
	MTime int64       // nanoseconds since 1970, as the walk found it; read back only by [Catalog.Base], since a restored file is a new one
	Hash  [16]byte    // XXH3-128 of the bytes in the tar, big endian; zero for what has none there
	Link  string      // target of a symbolic link

	Stored   Stored // where a delta backup has it; Whole in a full one
	FileSize int64  // bytes of the whole file; other than Size where a delta that is being written has an increment

	Corrupt *CorruptBlocks // pages that failed verification, nil if none
}

// FileType distinguishes a backup's entries.
type FileType uint8

// The types of entries.
const (
	Regular FileType = iota
	Directory
	Symlink
)

// Stored tells how a backup has a file.
type Stored uint8

// The ways in which a backup has a file.
const (
	Whole     Stored = iota
	Increment        // only the pages that changed since the backup that this one is based on
	Elsewhere        // not at all: the file is as the backup has it that this one is based on
)

// CorruptBlocks counts the pages of a file that failed verification and names some: block numbers within the file.
type CorruptBlocks struct {
	Count  int      `json:"CorruptBlocksCount"`
	Blocks []uint32 `json:"SomeCorruptBlocks"`
}

// UnmarshalJSON also accepts the plain array of block numbers that early versions wrote.
func (c *CorruptBlocks) UnmarshalJSON(b []byte) error {
	var blocks []uint32
	if json.Unmarshal(b, &blocks) == nil {
		*c = CorruptBlocks{Count: len(blocks), Blocks: blocks}
		return nil
	}
	type plain CorruptBlocks
	return json.Unmarshal(b, (*plain)(c))
}

// Part is one stored tar.
type Part struct {
	Name   string // object name within the backup's folder of tars, with extension
	Size   int64  // bytes as stored
	SHA256 string // hex, of the bytes as stored; empty if not recorded
}

// Contents is everything that a backup consists of.
type Contents struct {
	Files Files  // entries of the parts, in the order of the walk
	Parts []Part // ordinary parts; without the label's and the control file's
	// WALLink is the target of pg_wal when that was a symbolic link at backup time.
	WALLink string
	// Control and Label are the two tars that are restored last.
	Control, Label Part
	// UtilitySize is the sum of the sizes of what Control and Label hold: global/pg_control, backup_label, tablespace_map.
	UtilitySize int64
	// DataSize is the sum of the sizes of all that was walked.
	DataSize int64
}

// manifestHead is the part of walden's manifest that comes before the lists.
type manifestHead struct {
	Version          int         `json:"version"`
	Backup           string      `json:"backup"`
	Walden           string      `json:"walden"`
	SystemIdentifier string      `json:"system_identifier"`
	PgVersion        int         `json:"pg_version"`
	Timeline         uint32      `json:"timeline"`
	StartLSN         string      `json:"start_lsn"`
	StopLSN          string      `json:"stop_lsn"`
	SegmentSize      int64       `json:"wal_segment_size"`
	PageSize         int64       `json:"page_size"`
	DataChecksums    bool        `json:"data_checksums"`
	Standby          bool        `json:"from_standby"`
	Compression      string      `json:"compression"`
	Encryption       string      `json:"encryption"`
	WAL              manifestWAL `json:"wal"`
	WALLink          string      `json:"pg_wal_link,omitempty"`
	DataSize         int64       `json:"data_size"`
}

// manifestWAL names the segments without which the backup cannot be recovered.
type manifestWAL struct {
	State WALState `json:"state"`
	First string   `json:"first"`
	Last  string   `json:"last"`
}

type manifestPart struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

type manifestFile struct {
	Name    string         `json:"name"` // as in the tar, with a leading slash
	Dir     bool           `json:"dir,omitempty"`
	Link    string         `json:"link,omitempty"`
	Size    int64          `json:"size,omitempty"`
	Mode    string         `json:"mode"`
	MTime   time.Time      `json:"mtime"`
	Hash    string         `json:"xxh128,omitempty"`
	Part    *int32         `json:"part,omitempty"` // index into parts, from 0
	Corrupt *CorruptBlocks `json:"corrupt,omitempty"`

	// Of a delta: "increment", or "elsewhere" for a file that has not changed, and the size of a file of which it has an increment.
	Stored   string `json:"stored,omitempty"`
	FileSize int64  `json:"file_size,omitempty"`
}

// The values of manifestFile.Stored; none stands for Whole.
const (
	storedIncrement = "increment"
	storedElsewhere = "elsewhere"
)

// writeManifest writes one value per line, so that a manifest of a million files can be searched with grep.
func writeManifest(w io.Writer, head manifestHead, c *Contents) error {
	out := bufio.NewWriterSize(w, 64<<10)
	b, err := json.Marshal(head)
	if err != nil {
		return err
	}
	out.Write(b[:len(b)-1]) // without the closing brace; bufio keeps the first error for Flush
	out.WriteString(",\n\"parts\":[")
	for i, p := range append(c.Parts[:len(c.Parts):len(c.Parts)], c.Control, c.Label) {
		if err := writeItem(out, i == 0, manifestPart(p)); err != nil {
			return err
		}
	}
	out.WriteString("],\n\"files\":[")
	first := true
	for _, f := range c.Files.All() {
		m := manifestFile{
			Name: tarName(f.Name), Dir: f.Type == Directory, Link: f.Link, Size: f.Size,
			Mode: fmt.Sprintf("%04o", f.Mode.Perm()), MTime: time.Unix(0, f.MTime).UTC(), Corrupt: f.Corrupt,
		}
		switch {
		case f.Type != Regular:
		case f.Stored == Elsewhere:
			m.Stored = storedElsewhere
		default:
			m.Hash, m.Part = hex.EncodeToString(f.Hash[:]), &f.Part
			if f.Stored == Increment {
				m.Stored, m.FileSize = storedIncrement, f.FileSize
			}
		}
		if err := writeItem(out, first, m); err != nil {
			return err
		}
		first = false
	}
	out.WriteString("]}\n")
	return out.Flush()
}

func writeItem(out *bufio.Writer, first bool, v any) error {
	if !first {
		out.WriteByte(',')
	}
	out.WriteByte('\n')
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = out.Write(b)
	return err
}

// fileMetadata is a member of "Files" in files_metadata.json (WAL-G format, "files_metadata.json").
type fileMetadata struct {
	IsIncremented bool           `json:"IsIncremented"`
	IsSkipped     bool           `json:"IsSkipped"`
	MTime         time.Time      `json:"MTime"`
	CorruptBlocks *CorruptBlocks `json:"CorruptBlocks,omitempty"`
	UpdatesCount  uint64         `json:"UpdatesCount"`
}

// stored translates what WAL-G says of a file in a delta.
func (m fileMetadata) stored() (Stored, error) {
	switch {
	case m.IsSkipped && m.IsIncremented:
		return Whole, errors.New("it is said to be stored as an increment, and not to be stored")
	case m.IsIncremented:
		return Increment, nil
	case m.IsSkipped:
		return Elsewhere, nil
	}
	return Whole, nil
}

// Relations writes the members of "DatabasesByNames": what --restore-only needs to find a table's files.
type Relations func(ctx context.Context, w io.Writer) error

// writeFiles writes files_metadata.json. HTML characters are not escaped in it.
func writeFiles(ctx context.Context, w io.Writer, c *Contents, relations Relations) error {
	out := bufio.NewWriterSize(w, 64<<10)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	first := true
	key := func(name string) error {
		if !first {
			out.WriteByte(',')
		}
		first = false
		if err := enc.Encode(name); err != nil {
			return err
		}
		return out.WriteByte(':')
	}
	out.WriteString(`{"Files":{`)
	for _, f := range c.Files.All() {
		err := key(tarName(f.Name))
		if err == nil {
			err = enc.Encode(fileMetadata{IsIncremented: f.Stored == Increment, IsSkipped: f.Stored == Elsewhere,
				MTime: time.Unix(0, f.MTime).UTC(), CorruptBlocks: f.Corrupt})
		}
		if err != nil {
			return err
		}
	}
	out.WriteString(`},"TarFileSets":{`)
	first = true
	for part, files := range c.Files.byPart(len(c.Parts)) {
		if err := key(c.Parts[part].Name); err != nil {
			return err
		}
		out.WriteByte('[')
		for n, i := range files {
			if n > 0 {
				out.WriteByte(',')
			}
			if err := enc.Encode(tarName(c.Files.At(int(i)).Name)); err != nil {
				return err
			}
		}
		out.WriteByte(']')
	}
	if err := key(c.Label.Name); err != nil {
		return err
	}
	out.WriteString(`["tablespace_map","backup_label"]`)
	out.WriteString(`},"DatabasesByNames":{`)
	if relations != nil {
		if err := relations(ctx, out); err != nil {
			return err
		}
	}
	out.WriteString("}}")
	return out.Flush()
}

// tarName is the name of an entry in a local backup's tars.
func tarName(name string) string { return "/" + name }

// Listing is what is known of a backup's contents before any tar is read.
type Listing struct {
	Parts   []Part // ordinary tars, in the order of their names
	Special []Part // the label's and the control file's
	// Files is nil when nothing is recorded: then everything in the tars belongs to the backup.
	Files *Files
	// Hashed tells that sizes and hashes of files are known (from walden's manifest).
	Hashed bool
	// DataSize is the number of bytes to restore; an estimate for backups of other writers, 0 if unknown.
	DataSize int64
	// WALLink is the target of pg_wal at backup time, if it was a symbolic link.
	WALLink string
	// Passed is what the documents name besides Files: what a restore of a newer backup does not take from this one.
	Passed struct {
		Files int
		Size  int64 // bytes, as far as sizes are known
	}

	asBase bool // it is read to take a delta against: see [Base]
}

// List reads what is known of the contents of b and compares it with what the storage holds: a part that is named and
// missing, or has another size than recorded, is an error.
func (c *Catalog) List(ctx context.Context, b Backup) (Listing, error) {
	return c.list(ctx, b, nil, false)
}

// list is List for a backup that a newer one is based on: wants is what that one needs of it, nil for everything. asBase is for a newer
// one that is to be taken.
func (c *Catalog) list(ctx context.Context, b Backup, wants *wants, asBase bool) (Listing, error) {
	l := Listing{asBase: asBase}
	wants.begin()
	stored, err := c.storedParts(ctx, b.Name)
	if err != nil {
		return l, err
	}
	switch {
	case b.WALE != nil:
		l, err = c.listWALE(b, stored)
	case b.ManifestSHA256 != "":
		err = c.repo.ReadPlain(ctx, backupDir(b.Name)+manifestName, maxListing, func(r io.Reader) error {
			l = Listing{asBase: asBase}
			wants.begin()
			return readManifest(r, b, &l, wants)
		})
	case b.filesDisabled && !b.filesEmbedded:
		err = c.listOther(b, &l, stored, nil, wants)
	default:
		document := backupDir(b.Name) + filesName
		if b.filesEmbedded {
			document = sentinelKey(b.Name) // its members "Files" and "TarFileSets" are those of files_metadata.json
		}
		err = c.repo.ReadPlain(ctx, document, maxListing, func(r io.Reader) error {
			l = Listing{asBase: asBase}
			wants.begin()
			return c.listOther(b, &l, stored, r, wants)
		})
		if errors.Is(err, fs.ErrNotExist) {
			err = c.listOther(b, &l, stored, nil, wants)
		}
	}
	if err == nil && b.Delta != nil && l.Files == nil {
		err = errNoFiles(b)
	}
	if err == nil {
		err = wants.satisfied(b, &l)
	}
	if err != nil {
		return l, fmt.Errorf("cannot read what backup %s consists of: %w", b.Name, err)
	}
	for _, p := range append(l.Parts[:len(l.Parts):len(l.Parts)], l.Special...) {
		size, ok := stored[p.Name]
		if !ok {
			return l, fmt.Errorf("cannot use backup %s: its part %s is not in %s", b.Name, p.Name, c)
		}
		if p.SHA256 != "" && size != p.Size {
			return l, fmt.Errorf("cannot use backup %s: its part %s has %d bytes in %s, %d were written", b.Name, p.Name, size, c, p.Size)
		}
	}
	wants.leaveOut(&l)
	if len(l.Parts) == 0 && (wants == nil || l.Files.Len() > 0) {
		return l, fmt.Errorf("cannot use backup %s: it has no parts in %s", b.Name, c)
	}
	return l, nil
}

// storedParts lists a backup's folder of tars: object name → size.
func (c *Catalog) storedParts(ctx context.Context, backup string) (map[string]int64, error) {
	stored := map[string]int64{}
	for o, err := range c.repo.List(ctx, backupDir(backup)+partsDir) {
		if err != nil {
			return nil, fmt.Errorf("cannot list the parts of backup %s: %w", backup, err)
		}
		if !o.IsDir() {
			stored[baseName(o.Key)] = o.Size
		}
	}
	return stored, nil
}

// readManifest reads walden's manifest, whose hash the sentinel holds.
func readManifest(r io.Reader, b Backup, l *Listing, wants *wants) error {
	sum := sha256.New()
	all := io.TeeReader(bufio.NewReaderSize(r, 256<<10), sum)
	d := newDecoder(all)
	var head manifestHead
	l.Files, l.Hashed = &Files{}, true
	err := eachMember(d, func(key string) error {
		switch key {
		case "parts":
			return eachItem(d, func() error {
				var p manifestPart
				if err := d.Decode(&p); err != nil {
					return err
				}
				l.addPart(Part(p))
				return nil
			})
		case "files":
			return eachItem(d, func() error {
				var m manifestFile
				if err := d.Decode(&m); err != nil {
					return err
				}
				if m.Stored != "" && b.Delta == nil { // the rest of it would be nowhere
					return fmt.Errorf("file %q of a full backup is said to be stored as %.100q", m.Name, m.Stored)
				}
				return l.addFile(m, wants)
			})
		case "data_size":
			if err := d.Decode(&l.DataSize); err != nil {
				return err
			}
			if l.DataSize < 0 {
				return fmt.Errorf("data_size is %d", l.DataSize)
			}
			return nil
		case "pg_wal_link":
			return d.Decode(&l.WALLink)
		case "version":
			if err := d.Decode(&head.Version); err != nil {
				return err
			}
			if head.Version != manifestVersion {
				return hint.With(fmt.Errorf("%s has version %d, this walden reads %d", manifestName, head.Version, manifestVersion),
					"use a newer walden")
			}
			return nil
		case "backup":
			if err := d.Decode(&head.Backup); err != nil {
				return err
			}
			if head.Backup != b.Name {
				return fmt.Errorf("%s belongs to backup %q", manifestName, head.Backup)
			}
			return nil
		}
		_, err := skipValue(d)
		return err
	})
	if err == nil {
		_, err = io.Copy(io.Discard, all) // what the decoder did not need belongs to the hash
	}
	if err != nil {
		return fmt.Errorf("%s: %w", manifestName, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != b.ManifestSHA256 {
		return fmt.Errorf("%s is not the one that was written: its SHA-256 is %s, the sentinel says %s", manifestName, got, b.ManifestSHA256)
	}
	return nil
}

func (l *Listing) addPart(p Part) {
	if specialTar.MatchString(p.Name) {
		l.Special = append(l.Special, p)
	} else {
		l.Parts = append(l.Parts, p)
	}
}

func (l *Listing) addFile(m manifestFile, wants *wants) error {
	name, err := EntryName(m.Name)
	if err != nil {
		return err
	}
	mode, err := strconv.ParseUint(m.Mode, 8, 12)
	if err != nil {
		return fmt.Errorf("file %q has mode %q", m.Name, m.Mode)
	}
	f := File{Name: name, Size: m.Size, Mode: fs.FileMode(mode), Link: m.Link, Corrupt: m.Corrupt}
	switch {
	case m.Dir:
		f.Type = Directory
	case m.Link != "":
		f.Type = Symlink
	case m.Stored == storedElsewhere && m.Size >= 0:
		f.Stored = Elsewhere
	default:
		switch m.Stored {
		case "":
		case storedIncrement:
			f.Stored = Increment
		default:
			return fmt.Errorf("file %q is said to be stored as %.100q", m.Name, m.Stored)
		}
		if n, err := hex.Decode(f.Hash[:], []byte(m.Hash)); err != nil || n != len(f.Hash) || len(m.Hash) != 2*len(f.Hash) || m.Size < 0 {
			return fmt.Errorf("file %q has no valid hash and size", m.Name)
		}
	}
	if len(m.Link) > maxName {
		return fmt.Errorf("file %q is a link to a name of %d bytes, more than a path can have", m.Name, len(m.Link))
	}
	if m.Part != nil {
		f.Part = *m.Part
	}
	if l.asBase {
		if f.Stored == Increment {
			f.Size = max(0, m.FileSize)
		}
		f.MTime = mtimeForBase(name, m.MTime)
	}
	if !wants.take(name, f.Stored) {
		l.Passed.Files++
		if f.Stored == Elsewhere {
			return nil
		}
		l.Passed.Size += max(0, min(m.Size, math.MaxInt64-l.Passed.Size))
		return nil
	}
	if _, _, twice := l.Files.Find(name); twice {
		return fmt.Errorf("file %q is named twice", m.Name)
	}
	_, err = l.Files.Add(f)
	return err
}

// listOther reads files_metadata.json, or the list embedded in a version 1 sentinel; r is nil when there is none.
func (c *Catalog) listOther(b Backup, l *Listing, stored map[string]int64, r io.Reader, wants *wants) error {
	named := map[string]bool{}
	if r != nil {
		d := newDecoder(bufio.NewReaderSize(r, 256<<10))
		err := eachMember(d, func(key string) error {
			switch {
			case strings.EqualFold(key, "Files"):
				return eachMember(d, func(key string) error {
					var m fileMetadata
					if err := d.Decode(&m); err != nil {
						return err
					}
					name, err := EntryName(key)
					if err != nil {
						return err
					}
					if l.Files == nil {
						l.Files = &Files{}
					}
					if _, _, twice := l.Files.Find(name); twice { // one of them was another, which would be missed
						return fmt.Errorf("file %q is named twice", key)
					}
					how := Whole
					if b.Delta != nil { // a full backup has every file that it names
						if how, err = m.stored(); err != nil {
							return fmt.Errorf("file %q: %w", key, err)
						}
					}
					if !wants.take(name, how) {
						l.Passed.Files++
						return nil
					}
					f := File{Name: name, Stored: how, Corrupt: m.CorruptBlocks}
					if l.asBase {
						f.Size, f.MTime = -1, mtimeForBase(name, m.MTime)
					}
					_, err = l.Files.Add(f)
					return err
				})
			case strings.EqualFold(key, "TarFileSets"):
				return eachMember(d, func(key string) error {
					if !anyTar.MatchString(key) {
						_, err := skipValue(d)
						return err
					}
					named[key] = true
					return wants.readSet(d, key)
				})
			}
			_, err := skipValue(d)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", filesName, err)
		}
	}
	for _, name := range sortedKeys(stored) {
		if anyTar.MatchString(name) {
			l.addPart(Part{Name: name, Size: stored[name]})
		} else {
			c.log.Warn("an object that is no tar lies among the parts of a backup and is ignored", "backup", b.Name, "object", name)
		}
	}
	for _, name := range sortedKeys(named) {
		if _, ok := stored[name]; !ok {
			l.addPart(Part{Name: name})
		}
	}
	if wants == nil && !hasControl(l.Special) {
		return hint.With(fmt.Errorf("the object %s, which holds global/pg_control, is missing", controlTar),
			"without it the cluster cannot start; choose another backup")
	}
	l.DataSize = b.UncompressedSize
	if b.Delta != nil && wants == nil { // of a delta that is only what changed
		l.DataSize = b.catalogSize
	}
	return nil
}

func hasControl(special []Part) bool {
	for _, p := range special {
		if strings.HasPrefix(p.Name, controlTar) {
			return true
		}
	}
	return false
}

// OpenPart opens a stored tar for reading its decoded bytes. Where the hash of the part is recorded, the reader compares
// it at the end: io.EOF then proves that every byte is as it was written, anything else is [ErrDamaged].
func (c *Catalog) OpenPart(ctx context.Context, backup string, p Part) (io.ReadCloser, error) {
	r, err := c.repo.OpenSealed(ctx, backupDir(backup)+partsDir+p.Name)
	if err != nil {
		return nil, err
	}
	return &partReader{r, p}, nil
}

type partReader struct {
	stored *repo.Reader
	part   Part
}

func (r *partReader) Close() error { return r.stored.Close() }

func (r *partReader) Read(b []byte) (int, error) {
	n, err := r.stored.Read(b)
	if err != io.EOF || r.part.SHA256 == "" {
		return n, err
	}
	sealed, sealErr := r.stored.Sealed()
	if sealErr != nil {
		return n, sealErr
	}
	if got := hex.EncodeToString(sealed.SHA256[:]); got != r.part.SHA256 {
		return n, fmt.Errorf("%w: its SHA-256 is %s, %s was written", ErrDamaged, got, r.part.SHA256)
	}
	return n, err
}

// maxName is the longest name of an entry in bytes: no file system call takes a longer one (PATH_MAX).
const maxName = 4096

// EntryName turns the name of a tar entry or of a document into the slash path below the data directory ("" is the
// directory itself). Names that lead outside, and those too long for any file, are errors, whatever wrote them.
func EntryName(name string) (string, error) {
	if len(name) > maxName {
		return "", fmt.Errorf("the name %.100q… has %d bytes, more than a path can have", name, len(name))
	}
	clean := strings.TrimPrefix(path.Clean("/"+strings.TrimPrefix(name, "./")), "/")
	for el := range strings.SplitSeq(name, "/") {
		if el == ".." || strings.ContainsRune(el, 0) {
			return "", fmt.Errorf("the name %q leads outside the data directory", name)
		}
	}
	return clean, nil
}

const (
	// maxValue bounds one value, or one token, of a document that is read piece by piece, in bytes.
	maxValue = 2 << 20
	// maxDepth bounds how deep the values are nested that are passed over.
	maxDepth = 1000
)

// decoder reads a document of any length piece by piece: whoever wrote it, no piece takes more than maxValue of memory.
type decoder struct {
	*json.Decoder
	in *meteredReader
}

func newDecoder(r io.Reader) decoder {
	in := &meteredReader{r: r}
	return decoder{json.NewDecoder(in), in}
}

// Decode reads the next value.
func (d decoder) Decode(into any) error {
	d.in.n = 0
	return d.Decoder.Decode(into)
}

// Token reads the next token.
func (d decoder) Token() (json.Token, error) {
	d.in.n = 0
	return d.Decoder.Token()
}

// meteredReader fails when one piece of a document needs more bytes than a piece can have.
type meteredReader struct {
	r io.Reader
	n int // bytes read for this piece
}

func (m *meteredReader) Read(b []byte) (int, error) {
	if m.n > maxValue {
		return 0, fmt.Errorf("a value of more than %d MiB cannot be", maxValue>>20)
	}
	n, err := m.r.Read(b)
	m.n += n
	return n, err
}

// eachMember calls visit for every member of the object that d stands before; visit consumes the value.
func eachMember(d decoder, visit func(key string) error) error {
	if null, err := enter(d, '{'); err != nil || null {
		return err
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		if err := visit(t.(string)); err != nil { // the decoder yields only strings as keys
			return err
		}
	}
	_, err := d.Token()
	return err
}

// eachItem calls visit before every item of the array that d stands before; visit consumes the item.
func eachItem(d decoder, visit func() error) error {
	if null, err := enter(d, '['); err != nil || null {
		return err
	}
	for d.More() {
		if err := visit(); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

func enter(d decoder, open json.Delim) (null bool, err error) {
	t, err := d.Token()
	if err != nil {
		return false, err
	}
	if t == nil {
		return true, nil
	}
	if t != open {
		return false, fmt.Errorf("%.100q stands where %v is expected", fmt.Sprint(t), open)
	}
	return false, nil
}

// skipValue passes over one value without keeping it, and tells whether it was null.
func skipValue(d decoder) (null bool, err error) {
	depth := 0
	for {
		t, err := d.Token()
		if err != nil {
			return false, err
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			if depth++; depth > maxDepth {
				return false, fmt.Errorf("values nested more than %d deep cannot be", maxDepth)
			}
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return t == nil, nil
		}
	}
}

// manifestVersion is the version of walden_manifest.json that this code reads and writes.
const manifestVersion = 1
