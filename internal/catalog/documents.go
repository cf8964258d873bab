package catalog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// dateFormat is the constant that WAL-G stores beside its time strings.
const dateFormat = "%Y-%m-%dT%H:%M:%S.%fZ"

// sentinel is the document whose existence makes a backup exist (WAL-G format, "Sentinel"). The order of the
// fields is the order of the keys.
type sentinel struct {
	LSN              *wal.LSN        `json:"LSN"`
	DeltaLSN         *wal.LSN        `json:"DeltaLSN,omitempty"`
	DeltaFromLSN     *wal.LSN        `json:"DeltaFromLSN,omitempty"` // oldest deltas
	DeltaFrom        *string         `json:"DeltaFrom,omitempty"`
	DeltaFullName    *string         `json:"DeltaFullName,omitempty"`
	DeltaCount       *int            `json:"DeltaCount,omitempty"`
	PgVersion        int             `json:"PgVersion"`
	FinishLSN        *wal.LSN        `json:"FinishLSN"`
	SystemIdentifier *uint64         `json:"SystemIdentifier,omitempty"`
	UncompressedSize int64           `json:"UncompressedSize"`
	CompressedSize   int64           `json:"CompressedSize"`
	DataCatalogSize  int64           `json:"DataCatalogSize,omitempty"`
	Spec             *TablespaceSpec `json:"Spec,omitempty"`
	UserData         json.RawMessage `json:"UserData,omitempty"`
	FilesDisabled    bool            `json:"FilesMetadataDisabled,omitempty"`
	ChkpNum          *int64          `json:"ChkpNum"`
	Version          int             `json:"Version,omitempty"`
	StartTime        time.Time       `json:"StartTime,omitzero"`
	FinishTime       time.Time       `json:"FinishTime,omitzero"`
	DateFmt          string          `json:"DateFmt,omitempty"`
	Hostname         string          `json:"Hostname,omitempty"`
	DataDir          string          `json:"DataDir,omitempty"`
	IsPermanent      bool            `json:"IsPermanent"`
	Walden           *sentinelWalden `json:"Walden,omitempty"` // ours; WAL-G ignores unknown keys

	waleSentinel // of WAL-E, which has none of the above but Spec

	// filesEmbedded tells that it is of version 1 and holds the list of files, which is read by the restore, piece by piece.
	filesEmbedded bool
}

// read reads a sentinel from its document, but for the lists of files: besides them it is as small as any other document.
func (s *sentinel) read(r io.Reader) error {
	d := newDecoder(r)
	rest := []byte{'{'}
	err := eachMember(d, func(key string) error {
		if strings.EqualFold(key, "Files") || strings.EqualFold(key, "TarFileSets") {
			if s.filesEmbedded && strings.EqualFold(key, "Files") {
				return errors.New("it has two lists of files")
			}
			null, err := skipValue(d)
			s.filesEmbedded = s.filesEmbedded || strings.EqualFold(key, "Files") && !null
			return err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return err
		}
		if len(rest)+len(key)+len(value) > maxDocument {
			return fmt.Errorf("besides a list of files it has more than %d bytes", maxDocument)
		}
		name, err := json.Marshal(key)
		if err != nil {
			return err
		}
		if len(rest) > 1 {
			rest = append(rest, ',')
		}
		rest = append(append(append(rest, name...), ':'), value...)
		return nil
	})
	if err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.Join(errors.New("something stands behind its end"), err)
	}
	return json.Unmarshal(append(rest, '}'), s)
}

// sentinelWalden is what walden adds to a sentinel.
type sentinelWalden struct {
	Version        string   `json:"Version"`
	ManifestSHA256 string   `json:"ManifestSHA256"`
	WAL            WALState `json:"WAL"`
	CorruptBlocks  int      `json:"CorruptBlocks,omitempty"`
}

// metadata is a backup's metadata.json (WAL-G format, "metadata.json").
type metadata struct {
	StartTime        time.Time       `json:"start_time"`
	FinishTime       time.Time       `json:"finish_time"`
	DateFmt          string          `json:"date_fmt"`
	Hostname         string          `json:"hostname"`
	DataDir          string          `json:"data_dir"`
	PgVersion        int             `json:"pg_version"`
	StartLSN         wal.LSN         `json:"start_lsn"`
	FinishLSN        wal.LSN         `json:"finish_lsn"`
	IsPermanent      bool            `json:"is_permanent"`
	SystemIdentifier *uint64         `json:"system_identifier"`
	UncompressedSize int64           `json:"uncompressed_size"`
	CompressedSize   int64           `json:"compressed_size"`
	UserData         json.RawMessage `json:"user_data,omitempty"`
}

// TablespaceSpec tells where a backup's tablespaces lived (WAL-G format, "Tablespace specification"). It is also
// the content of a --restore-spec file.
type TablespaceSpec struct {
	BasePrefix  string            // data directory at backup time
	Tablespaces map[uint32]string // OID → location
}

type tablespaceEntry struct {
	Loc  string `json:"loc"`
	Link string `json:"link"`
}

// MarshalJSON writes the specification with one member per tablespace, keys sorted.
func (s TablespaceSpec) MarshalJSON() ([]byte, error) {
	m := map[string]any{"base_prefix": s.BasePrefix}
	oids := []string{}
	for _, oid := range sortedKeys(s.Tablespaces) {
		name := strconv.FormatUint(uint64(oid), 10)
		oids = append(oids, name)
		m[name] = tablespaceEntry{Loc: s.Tablespaces[oid], Link: "pg_tblspc/" + name}
	}
	m["tablespaces"] = oids
	return json.Marshal(m)
}

// UnmarshalJSON reads the specification; members that "tablespaces" does not name are ignored.
func (s *TablespaceSpec) UnmarshalJSON(b []byte) error {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	var oids []string
	if err := optional(m["base_prefix"], &s.BasePrefix); err != nil {
		return err
	}
	if err := optional(m["tablespaces"], &oids); err != nil {
		return err
	}
	s.Tablespaces = make(map[uint32]string, len(oids))
	for _, name := range oids {
		oid, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			return fmt.Errorf("tablespace %q is not an OID", name)
		}
		var e tablespaceEntry
		if m[name] == nil {
			return fmt.Errorf("tablespace %s has no entry", name)
		}
		if err := json.Unmarshal(m[name], &e); err != nil {
			return err
		}
		if e.Loc == "" {
			return fmt.Errorf("tablespace %s has no location", name)
		}
		s.Tablespaces[uint32(oid)] = e.Loc
	}
	return nil
}

func optional(raw json.RawMessage, into any) error {
	if raw == nil {
		return nil
	}
	return json.Unmarshal(raw, into)
}

// userDataEqual compares two JSON values by meaning, as --target-user-data does.
func userDataEqual(a, b json.RawMessage) bool {
	return bytes.Equal(canonicalJSON(a), canonicalJSON(b))
}

func canonicalJSON(raw json.RawMessage) []byte {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return nil
	}
	out, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	return out
}

// upToMicrosecond rounds a time up to whole microseconds in UTC, as WAL-G stores times.
func upToMicrosecond(t time.Time) time.Time {
	r := t.UTC().Truncate(time.Microsecond)
	if r.Before(t) {
		r = r.Add(time.Microsecond)
	}
	return r
}
