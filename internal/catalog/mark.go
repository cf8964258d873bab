package catalog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"gitlab.com/walden-pg/walden/internal/hint"
)

// Mark makes a backup permanent together with all that it is based on, or takes the mark from this one backup alone, which is refused
// while a permanent one is based on it. It returns the names of the backups that were changed. The bases are marked first, so that
// wherever it is cut off no permanent backup has a base that is not.
func (c *Catalog) Mark(ctx context.Context, which string, permanent bool) (changed []string, err error) {
	b, err := c.Find(ctx, which)
	if err != nil {
		return nil, err
	}
	backups, err := c.Backups(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.Details(ctx, backups); err != nil {
		return nil, err
	}
	byName := map[string]Backup{}
	for _, other := range backups {
		byName[other.Name] = other
		if !permanent && other.Permanent && other.Delta != nil && other.Delta.From == b.Name {
			return nil, hint.With(fmt.Errorf("cannot take the mark from backup %s: %s is permanent and based on it", b.Name, other.Name),
				"take the mark from that one first")
		}
	}
	chain := []Backup{byName[b.Name]}
	for permanent && chain[len(chain)-1].Delta != nil {
		from := chain[len(chain)-1].Delta.From
		base, ok := byName[from]
		if !ok || slices.ContainsFunc(chain, func(m Backup) bool { return m.Name == from }) {
			return nil, fmt.Errorf("cannot mark backup %s: it is based on %q, which is not in %s", b.Name, from, c)
		}
		chain = append(chain, base)
	}
	for _, member := range slices.Backward(chain) {
		if member.Problem != nil {
			return changed, fmt.Errorf("cannot mark backup %s: %w", member.Name, member.Problem)
		}
		if member.Permanent == permanent {
			continue
		}
		if err := c.mark(ctx, member.Name, permanent); err != nil {
			return changed, fmt.Errorf("cannot mark backup %s in %s: %w", member.Name, c, err)
		}
		changed = append(changed, member.Name)
	}
	return changed, nil
}

// mark rewrites metadata.json, which is the authority on the mark, and nothing else: a sentinel that is written again would look to
// WAL-G like that of its newest backup. All other members stay as they are, whoever wrote them.
func (c *Catalog) mark(ctx context.Context, name string, permanent bool) error {
	meta, err := c.readTwice(ctx, backupDir(name)+metadataName)
	if errors.Is(err, fs.ErrNotExist) {
		return hint.With(fmt.Errorf("it has no %s, which would say so: %w", metadataName, fs.ErrNotExist), "backups of WAL-E cannot be marked")
	}
	if err != nil {
		return err
	}
	if meta, err = setMember(meta, "is_permanent", permanent); err != nil {
		return notValid(metadataName, err)
	}
	return c.repo.PutPlain(ctx, backupDir(name)+metadataName, meta)
}

// readTwice reads a document that bears no hash until two readings agree: what was read wrong must not be written back.
func (c *Catalog) readTwice(ctx context.Context, key string) ([]byte, error) {
	const readings = 4
	var before []byte
	for n := range readings {
		now, err := c.repo.GetPlain(ctx, key, maxDocument)
		if err != nil {
			return nil, err
		}
		if n > 0 && bytes.Equal(before, now) {
			return now, nil
		}
		before = now
	}
	return nil, fmt.Errorf("%w: %s is another one each time it is read", ErrDamaged, baseName(key))
}

// setMember sets one member of a JSON object and leaves the bytes of all others and their order as they are.
func setMember(document []byte, name string, value bool) ([]byte, error) {
	var out bytes.Buffer
	out.WriteByte('{')
	found := false
	d := json.NewDecoder(bytes.NewReader(document))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.Join(errors.New("it is no object"), err)
	}
	for n := 0; d.More(); n++ {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, err
		}
		key, _ := t.(string)
		if strings.EqualFold(key, name) { // as readers compare
			found, raw = true, fmt.Appendf(nil, "%t", value)
		}
		if n > 0 {
			out.WriteByte(',')
		}
		spelled, err := json.Marshal(key)
		if err != nil {
			return nil, err
		}
		out.Write(spelled)
		out.WriteByte(':')
		out.Write(raw)
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if !found {
		if out.Len() > 1 {
			out.WriteByte(',')
		}
		fmt.Fprintf(&out, "%q:%t", name, value)
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}
