package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/storage"
)

// Cluster identifies a PostgreSQL cluster. Zero fields are unknown.
type Cluster struct {
	SystemIdentifier uint64
	Major            int   // PostgreSQL's major version
	SegmentSize      int64 // bytes of a WAL segment
}

// String describes the cluster for messages.
func (c Cluster) String() string {
	s := fmt.Sprintf("system identifier %d", c.SystemIdentifier)
	if c.Major > 0 {
		s += fmt.Sprintf(", PostgreSQL %d", c.Major)
	}
	if c.SegmentSize > 0 {
		s += fmt.Sprintf(", WAL segments of %d MiB", c.SegmentSize>>20)
	}
	return s
}

// contradicts tells whether two descriptions cannot be of the same cluster.
func (c Cluster) contradicts(other Cluster) bool {
	return c.SystemIdentifier != other.SystemIdentifier ||
		c.Major != other.Major && c.Major != 0 && other.Major != 0 ||
		c.SegmentSize != other.SegmentSize && c.SegmentSize != 0 && other.SegmentSize != 0
}

// Identity says which cluster an archive belongs to, and which ones it belonged to before an upgrade or a planned
// replacement.
type Identity struct {
	Current  Cluster
	Since    time.Time
	Previous []Cluster
}

type identityDocument struct {
	Version  int               `json:"version"`
	Since    time.Time         `json:"since"`
	Current  identityCluster   `json:"current"`
	Previous []identityCluster `json:"previous,omitempty"`
}

// identityCluster holds the identifier as a string: it exceeds what JSON numbers keep exactly in most tools.
type identityCluster struct {
	SystemIdentifier string `json:"system_identifier"`
	Major            int    `json:"pg_major,omitempty"`
	SegmentSize      int64  `json:"wal_segment_size,omitempty"`
}

func (c Cluster) document() identityCluster {
	return identityCluster{strconv.FormatUint(c.SystemIdentifier, 10), c.Major, c.SegmentSize}
}

func (d identityCluster) cluster() (Cluster, error) {
	id, err := strconv.ParseUint(d.SystemIdentifier, 10, 64)
	if err != nil {
		return Cluster{}, fmt.Errorf("%q is not a system identifier", d.SystemIdentifier)
	}
	return Cluster{id, d.Major, d.SegmentSize}, nil
}

// WrongClusterError says that an archive belongs to another cluster.
type WrongClusterError struct {
	Archive        string
	Theirs, Ours   Cluster
	KnownFromWhere string // what the archive's cluster was learned from
}

// Error names both clusters.
func (e *WrongClusterError) Error() string {
	return fmt.Sprintf("%s belongs to another cluster: the archive is of %s (%s), this cluster has %s",
		e.Archive, e.Theirs, e.KnownFromWhere, e.Ours)
}

// Hint names the way out.
func (e *WrongClusterError) Hint() string {
	return "give every cluster a prefix of its own; if this cluster replaces that one (pg_upgrade, a planned replacement), say so once " +
		"with `walden archive accept PGDATA`"
}

// Identity reads which cluster the archive belongs to; [fs.ErrNotExist] if nobody has said so yet.
func (c *Catalog) Identity(ctx context.Context) (Identity, error) {
	raw, err := c.repo.GetPlain(ctx, identityName, maxDocument)
	if err != nil {
		return Identity{}, fmt.Errorf("cannot read the identity of %s: %w", c, err)
	}
	var doc identityDocument
	if err := json.Unmarshal(raw, &doc); err != nil {
		return Identity{}, fmt.Errorf("cannot read the identity of %s: %s is not valid: %w", c, identityName, err)
	}
	id := Identity{Since: doc.Since}
	if id.Current, err = doc.Current.cluster(); err != nil {
		return Identity{}, fmt.Errorf("cannot read the identity of %s: %w", c, err)
	}
	for _, d := range doc.Previous {
		p, err := d.cluster()
		if err != nil {
			return Identity{}, fmt.Errorf("cannot read the identity of %s: %w", c, err)
		}
		id.Previous = append(id.Previous, p)
	}
	return id, nil
}

// Admit checks that ours is the cluster that the archive belongs to; otherwise it returns a *[WrongClusterError]. An
// archive that has no identity yet gets one: that of its newest backup, else of its newest WAL segment, and an empty
// archive becomes ours.
func (c *Catalog) Admit(ctx context.Context, ours Cluster) error {
	id, err := c.Identity(ctx)
	switch {
	case err == nil:
		return c.compare(id.Current, ours, "recorded in "+identityName)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	theirs, source, err := c.deduce(ctx)
	if err != nil {
		return err
	}
	if theirs.SystemIdentifier != 0 {
		if err := c.compare(theirs, ours, source); err != nil {
			return err
		}
	}
	err = c.writeIdentity(ctx, Identity{Current: ours, Since: time.Now()}, c.repo.PutPlainNew)
	if errors.Is(err, storage.ErrExists) { // another process was faster: it may be another cluster's
		if id, err = c.Identity(ctx); err != nil {
			return err
		}
		return c.compare(id.Current, ours, "recorded in "+identityName)
	}
	return err
}

func (c *Catalog) compare(theirs, ours Cluster, source string) error {
	if theirs.contradicts(ours) {
		return &WrongClusterError{Archive: c.String(), Theirs: theirs, Ours: ours, KnownFromWhere: source}
	}
	return nil
}

// deduce finds out to which cluster an archive without identity belongs; the zero Cluster if it is empty.
func (c *Catalog) deduce(ctx context.Context) (Cluster, string, error) {
	backups, err := c.Backups(ctx)
	if err != nil {
		return Cluster{}, "", err
	}
	for i := len(backups) - 1; i >= 0; i-- {
		if b := backups[i]; b.SystemIdentifier != 0 {
			return Cluster{SystemIdentifier: b.SystemIdentifier, Major: b.PgVersion / 10000}, "from its backup " + b.Name, nil
		}
	}
	name, err := c.WAL().newestSegment(ctx)
	if err != nil || name == "" {
		return Cluster{}, "", err
	}
	h, err := c.WAL().header(ctx, name)
	if errors.Is(err, ErrNoSecretKey) {
		return Cluster{}, "", hint.With(fmt.Errorf("cannot tell which cluster %s belongs to: %w", c, err),
			"`walden archive accept PGDATA` says once that it is this cluster's")
	}
	if err != nil {
		return Cluster{}, "", fmt.Errorf("cannot tell which cluster %s belongs to: %w", c, err)
	}
	return Cluster{h.SystemIdentifier, h.Major, h.SegmentSize}, "from its WAL segment " + name, nil
}

// Accept makes ours the cluster that the archive belongs to from now on and remembers the one before. It returns the
// new identity; accepting the present cluster changes nothing.
func (c *Catalog) Accept(ctx context.Context, ours Cluster) (Identity, error) {
	id, err := c.Identity(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// Without the key that would tell, it is the operator who knows.
		if id.Current, _, err = c.deduce(ctx); err != nil && !errors.Is(err, ErrNoSecretKey) {
			return Identity{}, err
		}
	case err != nil:
		return Identity{}, err
	case id.Current == ours:
		return id, nil
	}
	next := Identity{Current: ours, Since: time.Now(), Previous: id.Previous}
	if id.Current.SystemIdentifier != 0 && id.Current != ours {
		next.Previous = append(next.Previous, id.Current)
	}
	return next, c.writeIdentity(ctx, next, c.repo.PutPlain)
}

func (c *Catalog) writeIdentity(ctx context.Context, id Identity, put func(context.Context, string, []byte) error) error {
	doc := identityDocument{Version: 1, Since: id.Since.UTC(), Current: id.Current.document()}
	for _, p := range id.Previous {
		doc.Previous = append(doc.Previous, p.document())
	}
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	if err := put(ctx, identityName, append(b, '\n')); err != nil {
		return fmt.Errorf("cannot record the identity of %s: %w", c, err)
	}
	return nil
}
