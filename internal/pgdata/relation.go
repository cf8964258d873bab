package pgdata

import "strings"

// OIDs of the two tablespaces that have no link (pg_tablespace.dat).
const (
	DefaultTablespace uint32 = 1663 // pg_default, below base/
	GlobalTablespace  uint32 = 1664 // pg_global, in global/
)

// RelationFile is the meaning of a relation file's name: which segment of which fork of which relation. The first
// three fields are the relation's physical identity, as block references in the log have it.
type RelationFile struct {
	Tablespace uint32
	Database   uint32 // 0 for the shared relations in global/
	Relation   uint32 // relfilenode
	Fork       string // "" for the main fork, "fsm", "vm", "init"
	Segment    uint32 // counts files of Control.SegmentBlocks pages
}

// ParseRelationFile takes the name of an entry apart: base/5/16384_fsm, global/1262, base/5/16384.1,
// pg_tblspc/16400/PG_15_202209061/5/16401. It returns false for everything else, temporary relations included.
func ParseRelationFile(name string) (RelationFile, bool) {
	dir, base, found := cutLast(name)
	if !found {
		return RelationFile{}, false
	}
	space, database, ok := parseRelationDir(dir)
	if !ok {
		return RelationFile{}, false
	}
	r, ok := parseRelationBase(base)
	r.Tablespace, r.Database = space, database
	return r, ok
}

// IsDataFile tells whether an entry consists of pages with the standard header, which carry checksums if the cluster
// has them: every fork of every relation. pg_filenode.map, PG_VERSION or the transaction logs (pg_xact, …) do not.
func IsDataFile(name string) bool {
	_, ok := ParseRelationFile(name)
	return ok
}

// parseRelationDir tells whether relations lie directly in dir, and of which tablespace and database they are.
func parseRelationDir(dir string) (space, database uint32, ok bool) {
	if dir == "global" {
		return GlobalTablespace, 0, true
	}
	parent, last, _ := cutLast(dir)
	if database, ok = parseOID(last); !ok {
		return 0, 0, false
	}
	if parent == "base" {
		return DefaultTablespace, database, true
	}
	space, ok = parseVersionDir(parent)
	return space, database, ok
}

// parseVersionDir recognises pg_tblspc/<OID>/PG_….
func parseVersionDir(dir string) (space uint32, ok bool) {
	rest, found := strings.CutPrefix(dir, tablespaceDir+"/")
	oid, version, two := strings.Cut(rest, "/")
	if !found || !two || !strings.HasPrefix(version, "PG_") || strings.Contains(version, "/") {
		return 0, false
	}
	return parseOID(oid)
}

// parseRelationBase reads <relfilenode>[_<fork>][.<segment>] as parse_filename_for_nontemp_relation() does.
func parseRelationBase(base string) (r RelationFile, ok bool) {
	stem, segment, segmented := strings.Cut(base, ".")
	if segmented {
		if r.Segment, ok = parseOID(segment); !ok {
			return RelationFile{}, false
		}
	}
	number, fork, forked := strings.Cut(stem, "_")
	if forked && !isFork(fork) {
		return RelationFile{}, false
	}
	if r.Relation, ok = parseOID(number); !ok {
		return RelationFile{}, false
	}
	r.Fork = fork
	return r, true
}

// isTemporaryRelation recognises t<backend>_<relfilenode>[_<fork>][.<segment>] (looks_like_temp_rel_name, fd.c).
func isTemporaryRelation(base string) bool {
	rest, found := strings.CutPrefix(base, "t")
	backend, relation, two := strings.Cut(rest, "_")
	if !found || !two || !isDigits(backend) {
		return false
	}
	stem, segment, segmented := strings.Cut(relation, ".")
	number, fork, forked := strings.Cut(stem, "_")
	return isDigits(number) && (!forked || isFork(fork)) && (!segmented || isDigits(segment))
}

func isFork(s string) bool {
	return s == "fsm" || s == "vm" || s == "init"
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// cutLast splits a slash path into directory and base name.
func cutLast(name string) (dir, base string, found bool) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", name, false
	}
	return name[:i], name[i+1:], true
}
