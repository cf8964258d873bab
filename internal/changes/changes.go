// Package changes knows which blocks of which relations changed between two positions of the log.
//
// A Map holds, for the main fork of each relation, the blocks that were written and the length to which it was cut or at which it
// began. Whoever fills a Map (from WAL records, from PostgreSQL's summaries of them, from WAL-G's delta objects) says which
// stretch of the log it covers; a Map that does not cover all of the log between two backups is of no use for a delta.
//
// What it promises: a block that differs between both ends and that PostgreSQL's log accounts for is in the Map. Blocks in it that
// did not change cost space and nothing else. Other forks are not in it: the free space map is not logged in full, and those
// files are small, so a delta has them whole.
//
// # Why the log accounts for everything
//
// A record names the blocks that it changes in a form that is the same for all resource managers, those of extensions included. That
// is all there is to heaps, indexes of every kind, sequences, generic records, page images and hint bits (XLOG_FPI, XLOG_FPI_FOR_HINT). Records
// that change files of relations in another way bear a flag for programs like this one (XLR_SPECIAL_REL_UPDATE). They are those of
//
//   - RM_SMGR_ID: a relation's file is created or cut;
//   - RM_XACT_ID: the end of a transaction that drops relations, prepared or not;
//   - RM_DBASE_ID: a database's folder is copied from another one, created, or dropped.
//
// A record with that flag that is none of these is an error, not a hole (pg_rewind goes by the same rule). What the others do without naming
// blocks is nothing to relations: RM_TBLSPC_ID makes directories, RM_RELMAP_ID writes a file that backups have whole, RM_CLOG_ID, RM_MULTIXACT_ID
// and RM_COMMIT_TS_ID write files that are no relations, RM_LOGICALMSG_ID, RM_REPLORIGIN_ID, RM_STANDBY_ID and heap's mappings for logical decoding
// (XLOG_HEAP2_REWRITE) write none; XLOG_HEAP_TRUNCATE is told to logical decoding, and the cutting has a record of RM_SMGR_ID.
//
// Not in the log are: pages that are empty, by which a relation grows, and which are zeros wherever a file is lengthened; unlogged and
// temporary relations, which backups leave out; hint bits where neither checksums nor wal_log_hints are on: such a page differs and has the
// position of its last record from before, and may be restored as it was; what pg_checksums does to a cluster that is shut down, which whoever
// uses a Map must find out from the control file; and whatever is written with wal_level = minimal, which is refused.
package changes

import (
	"gitlab.com/walden-pg/walden/internal/wal"
	"gitlab.com/walden-pg/walden/pkg/increment"
)

// Relation is the physical identity of a relation, RelFileLocator in PostgreSQL's relfilelocator.h.
type Relation struct {
	Tablespace uint32 // OID; 1663 is pg_default, 1664 pg_global
	Database   uint32 // OID, 0 for shared relations
	Number     uint32 // relfilenumber
}

// Map is what changed from From on, up to but not including To. The zero value has no changes and covers nothing.
type Map struct {
	From, To wal.LSN

	relations map[Relation]*relation
	databases map[database]bool
}

// database is a database's folder in one tablespace.
type database struct{ tablespace, database uint32 }

// relation is what is known of one.
type relation struct {
	blocks increment.Blocks
	cut    bool
	limit  uint32 // with cut: blocks from this one on have nothing of what they held at From
}

func (m *Map) of(r Relation) *relation {
	if m.relations == nil {
		m.relations = map[Relation]*relation{}
	}
	known := m.relations[r]
	if known == nil {
		known = &relation{}
		m.relations[r] = known
	}
	return known
}

// Mark adds a block, counted from the start of the relation.
func (m *Map) Mark(r Relation, block uint32) { m.of(r).blocks.Add(block) }

// Cut records that the relation was cut to this many blocks or, with 0, that it was created or removed: whatever it held
// behind them is gone, even if it has grown again since, by pages that the log does not mention because they are empty.
func (m *Map) Cut(r Relation, blocks uint32) {
	known := m.of(r)
	if !known.cut || blocks < known.limit {
		known.cut, known.limit = true, blocks
	}
}

// Replace records that everything in a database's folder of one tablespace may be new: the database was created there by
// copying files, was moved or dropped.
func (m *Map) Replace(tablespace, db uint32) {
	if m.databases == nil {
		m.databases = map[database]bool{}
	}
	m.databases[database{tablespace, db}] = true
}

// Summarized takes over an entry of one of PostgreSQL's summaries of WAL (pg_wal_summary_contents, src/include/common/blkreftable.h): a
// block that changed or, as a limit, the length to which the fork was cut. A relation with the number 0 stands for all of a database.
func (m *Map) Summarized(r Relation, fork int16, block uint32, limit bool) {
	const mainFork = 0
	switch {
	case limit && r.Number == 0:
		m.Replace(r.Tablespace, r.Database)
	case fork != mainFork:
	case limit:
		m.Cut(r, block)
	default:
		m.Mark(r, block)
	}
}

// Add takes over everything that another map has; it does not change From and To.
func (m *Map) Add(o *Map) {
	for d := range o.databases {
		m.Replace(d.tablespace, d.database)
	}
	for r, theirs := range o.relations {
		ours := m.of(r)
		ours.blocks.AddAll(&theirs.blocks, 1<<32)
		if theirs.cut {
			m.Cut(r, theirs.limit)
		}
	}
}

// Has tells whether a block, counted from the start of the relation, may be another one than at From.
func (m *Map) Has(r Relation, block uint32) bool {
	known := m.relations[r]
	return m.databases[database{r.Tablespace, r.Database}] || known != nil && (known.blocks.Has(block) || known.cut && block >= known.limit)
}

// InFile returns what changed in one file of a relation's main fork, by numbers within the file. The file is the given segment of
// relations that are divided into files of segmentBlocks blocks, and has fileBlocks blocks now. whole says that nothing of it
// is what it was at From.
func (m *Map) InFile(r Relation, segment, segmentBlocks, fileBlocks uint32) (blocks *increment.Blocks, whole bool) {
	blocks = &increment.Blocks{}
	if m.databases[database{r.Tablespace, r.Database}] {
		return blocks, true
	}
	known := m.relations[r]
	if known == nil {
		return blocks, false
	}
	first := uint64(segment) * uint64(segmentBlocks)
	if known.cut && uint64(known.limit) <= first {
		return blocks, true
	}
	for block := range known.blocks.From(uint32(first)) {
		if uint64(block)-first >= uint64(fileBlocks) {
			break
		}
		blocks.Add(uint32(uint64(block) - first))
	}
	if known.cut {
		for n := uint64(known.limit) - first; n < uint64(fileBlocks); n++ {
			blocks.Add(uint32(n))
		}
	}
	return blocks, false
}
