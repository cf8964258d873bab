package catalog

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// Manifest is what walden's manifest says of a backup as a whole.
type Manifest struct {
	Walden, Compression, Encryption, WALLink string
	Timeline                                 uint32
	SegmentSize, PageSize                    int64 // bytes
	DataChecksums, Standby                   bool
}

// Objects counts what is stored of a backup.
type Objects struct {
	Count      int
	Size       int64    // bytes as stored
	Parts      int      // tars
	Extensions []string // of the tars, each once: they name the compression
}

// Stored counts what is stored of a backup, its sentinel apart. It takes one listing of each of its folders.
func (c *Catalog) Stored(ctx context.Context, b Backup) (Objects, error) {
	var o Objects
	seen := map[string]bool{}
	err := c.repo.Walk(ctx, backupDir(b.Name), func(object storage.Object) {
		o.Count++
		o.Size += object.Size
		name, inParts := strings.CutPrefix(object.Key, backupDir(b.Name)+partsDir)
		if !inParts {
			return
		}
		o.Parts++
		if _, extension, ok := strings.Cut(name, ".tar"); ok {
			seen[strings.TrimPrefix(extension, ".")] = true
		}
	})
	o.Extensions = sortedKeys(seen)
	if err != nil {
		return o, fmt.Errorf("cannot list what belongs to backup %s in %s: %w", b.Name, c, err)
	}
	return o, nil
}

// Manifest reads the head of walden's manifest; nil for a backup of another writer. Its lists are not read.
func (c *Catalog) Manifest(ctx context.Context, b Backup) (*Manifest, error) {
	if b.ManifestSHA256 == "" {
		return nil, nil
	}
	var head manifestHead
	var invalid error
	err := c.repo.ReadPlain(ctx, backupDir(b.Name)+manifestName, maxListing, func(r io.Reader) error {
		head, invalid = readHead(r)
		return nil
	})
	if err == nil && invalid != nil {
		err = notValid("manifest", invalid)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the manifest of backup %s in %s: %w", b.Name, c, err)
	}
	return &Manifest{
		Walden: head.Walden, Compression: head.Compression, Encryption: head.Encryption, WALLink: head.WALLink, Timeline: head.Timeline,
		SegmentSize: head.SegmentSize, PageSize: head.PageSize, DataChecksums: head.DataChecksums, Standby: head.Standby,
	}, nil
}

// readHead reads the members of a manifest up to its lists.
func readHead(r io.Reader) (manifestHead, error) {
	d := newDecoder(io.LimitReader(r, maxDocument))
	members := map[string]json.RawMessage{}
	if _, err := enter(d, '{'); err != nil {
		return manifestHead{}, err
	}
	for {
		key, err := d.Token()
		if err != nil {
			return manifestHead{}, err
		}
		name, ok := key.(string)
		if !ok || name == "parts" || name == "files" {
			break
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return manifestHead{}, err
		}
		members[name] = value
	}
	raw, err := json.Marshal(members)
	if err != nil {
		return manifestHead{}, err
	}
	var head manifestHead
	return head, json.Unmarshal(raw, &head)
}
