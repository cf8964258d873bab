package changes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"gitlab.com/walden-pg/walden/internal/wal"
)

var (
	// ErrNotLogged is the cause when the server wrote with wal_level = minimal: it then fills new files without telling the log.
	ErrNotLogged = errors.New("the log is not complete: wal_level was minimal")

	// ErrUnknownRecord is the cause when a record changes files in a way that is not known here.
	ErrUnknownRecord = errors.New("a record of an unknown kind changes files of relations")
)

// Resource managers (rmgrlist.h) and those of their records that matter here.
const (
	managerXLog       = 0
	managerXact       = 1
	managerStorage    = 2 // RM_SMGR_ID
	managerDatabase   = 4 // RM_DBASE_ID
	kindOf            = 0xF0
	kindOfTransaction = 0x70 // XLOG_XACT_OPMASK

	xlogShutdown      = 0x00 // XLOG_CHECKPOINT_SHUTDOWN
	xlogOnline        = 0x10 // XLOG_CHECKPOINT_ONLINE
	xlogParameters    = 0x60 // XLOG_PARAMETER_CHANGE
	xlogEndOfRecovery = 0x90
	xlogRedo          = 0xE0 // XLOG_CHECKPOINT_REDO, since PostgreSQL 17

	xactCommit         = 0x00
	xactPrepare        = 0x10
	xactAbort          = 0x20
	xactCommitPrepared = 0x30
	xactAbortPrepared  = 0x40
	xactHasInfo        = 0x80 // XLOG_XACT_HAS_INFO

	storageCreate   = 0x10 // XLOG_SMGR_CREATE
	storageTruncate = 0x20
	truncatesMain   = 0x01 // SMGR_TRUNCATE_HEAP

	// Until PostgreSQL 14 there was one way to create a database, 0x00, and 0x10 was to drop one.
	databaseCopy    = 0x00 // XLOG_DBASE_CREATE_FILE_COPY
	databaseLogged  = 0x10 // XLOG_DBASE_CREATE_WAL_LOG
	databaseDrop    = 0x20
	databaseDropOld = 0x10
)

// wanted tells of which records the main data is needed.
func wanted(manager, info byte) bool {
	switch manager {
	case managerXLog:
		switch info & kindOf {
		case xlogShutdown, xlogOnline, xlogParameters, xlogEndOfRecovery, xlogRedo:
			return true
		}
	case managerXact:
		return info&xactHasInfo != 0
	case managerStorage, managerDatabase:
		return true
	}
	return false
}

// Folder takes what records of the log change into a Map. The Map covers every record that begins at From or later and ends at To or
// before: one that begins before To and ends behind it belongs to what follows.
type Folder struct {
	changes *Map
	records *wal.RecordReader
	begun   bool
}

// NewFolder returns a Folder that adds to m. If m covers something already, the first segment must begin where that ends.
func NewFolder(m *Map) *Folder {
	f := &Folder{changes: m}
	f.records = wal.NewRecordReader(wanted, f.record)
	return f
}

// Resume is [wal.RecordReader.Resume]: the record's beginning at the end of what m covers already.
func (f *Folder) Resume(beginning []byte) error { return f.records.Resume(beginning) }

// Segment takes in one whole segment, which must follow on the one before. Besides those of [wal.RecordReader.Segment] the error
// unwraps to [ErrNotLogged] or [ErrUnknownRecord]; after any of them the Map covers no more than before, though it may have more.
func (f *Folder) Segment(r io.Reader) error {
	if err := f.records.Segment(r); err != nil {
		return err
	}
	h := f.records.Header()
	m := f.changes
	switch {
	case !f.begun && m.To == 0:
		m.From = h.PageAddr
	case m.To != h.PageAddr:
		return fmt.Errorf("cannot go on with the segment at %s: what is known ends at %s", h.PageAddr, m.To)
	}
	f.begun = true
	m.To = h.PageAddr + wal.LSN(h.SegmentSize)
	return nil
}

func (f *Folder) record(r *wal.Record) error { return f.take(r, f.records.Header().Major) }

// take takes in one record of a major version.
func (f *Folder) take(r *wal.Record, major int) error {
	for _, b := range r.Blocks {
		if b.Block == noBlock {
			return fmt.Errorf("%w: resource manager %d, %02X with block %d", ErrUnknownRecord, r.Manager, r.Info, b.Block)
		}
		if b.Fork == wal.MainFork {
			f.changes.Mark(Relation(b.Relation), b.Block)
		}
	}
	known, err := f.special(r, major)
	if err == nil && !known && r.SpecialUpdate() {
		err = fmt.Errorf("%w: resource manager %d, %02X", ErrUnknownRecord, r.Manager, r.Info)
	}
	return err
}

// special takes in what a record says besides its blocks. known is false for records of which nothing is known but these.
func (f *Folder) special(r *wal.Record, major int) (known bool, err error) {
	d := &recordData{b: r.Data}
	switch r.Manager {
	case managerXLog:
		err = checkLevel(r.Info&kindOf, major, d)
	case managerXact:
		switch r.Info & kindOfTransaction {
		case xactCommit, xactAbort, xactCommitPrepared, xactAbortPrepared:
			known = true
			f.transaction(r.Info, d)
		}
	case managerStorage:
		known = f.storage(r.Info&kindOf, d)
	case managerDatabase:
		known = f.database(r.Info&kindOf, major, d)
	}
	if err == nil && d.short {
		err = fmt.Errorf("%w: resource manager %d, %02X with %d bytes of data", ErrUnknownRecord, r.Manager, r.Info, len(r.Data))
	}
	return known, err
}

// checkLevel fails if a record says that wal_level is minimal. The server writes one when that changes, before anything else
// (XLogReportParameters), and since PostgreSQL 17 with each checkpoint.
func checkLevel(kind byte, major int, d *recordData) error {
	at := -1
	switch kind {
	case xlogParameters: // xl_parameter_change: five numbers and then the level
		at = 20
	case xlogShutdown, xlogOnline: // CheckPoint: redo, two timelines, a flag
		at = 20
	case xlogEndOfRecovery: // xl_end_of_recovery: a time and two timelines
		at = 16
	case xlogRedo:
		at = 0
	}
	if at < 0 || major < 17 && kind != xlogParameters {
		return nil
	}
	d.skip(int64(at))
	if level := d.number(); !d.short && level == 0 {
		return ErrNotLogged
	}
	return nil
}

// transaction takes in the relations that a transaction drops as it ends (ParseCommitRecord and ParseAbortRecord in xactdesc.c, which agree
// that far): xact_time, and by flags in xinfo the database, subtransactions, relations. What follows them depends on the version.
func (f *Folder) transaction(info byte, d *recordData) {
	const hasDatabase, hasSubtransactions, hasRelations = 1 << 0, 1 << 1, 1 << 2
	if info&xactHasInfo == 0 {
		return
	}
	d.skip(8)
	flags := d.number()
	if flags&hasDatabase != 0 {
		d.skip(8)
	}
	if flags&hasSubtransactions != 0 {
		d.skip(4 * int64(d.number()))
	}
	if flags&hasRelations != 0 {
		for n := d.number(); n > 0 && !d.short; n-- {
			f.cut(d.relation(), 0, d)
		}
	}
}

// storage takes in how a relation's file is created or cut (storage_xlog.h).
func (f *Folder) storage(kind byte, d *recordData) (known bool) {
	switch kind {
	case storageCreate:
		relation := d.relation()
		if fork := d.number(); fork == wal.MainFork {
			f.cut(relation, 0, d)
		}
	case storageTruncate:
		blocks, relation := d.number(), d.relation()
		if flags := d.number(); flags&truncatesMain != 0 {
			f.cut(relation, blocks, d)
		}
	default:
		return false
	}
	return true
}

// database takes in how a database's folders are made and dropped (dbcommands_xlog.h).
func (f *Folder) database(kind byte, major int, d *recordData) (known bool) {
	drop := byte(databaseDrop)
	if major < 15 {
		drop = databaseDropOld
	}
	switch {
	case kind == drop:
		db := d.number()
		for n := d.number(); n > 0 && !d.short; n-- {
			f.replace(d.number(), db, d)
		}
	case kind == databaseCopy, kind == databaseLogged:
		db, tablespace := d.number(), d.number()
		f.replace(tablespace, db, d)
	default:
		return false
	}
	return true
}

func (f *Folder) cut(r Relation, blocks uint32, d *recordData) {
	if !d.short {
		f.changes.Cut(r, blocks)
	}
}

func (f *Folder) replace(tablespace, db uint32, d *recordData) {
	if !d.short {
		f.changes.Replace(tablespace, db)
	}
}

// recordData reads numbers from the main data of a record.
type recordData struct {
	b     []byte
	short bool // there was less than was asked for
}

func (d *recordData) skip(n int64) {
	if d.short = d.short || n > int64(len(d.b)); !d.short {
		d.b = d.b[n:]
	}
}

func (d *recordData) number() uint32 {
	if d.short = d.short || len(d.b) < 4; d.short {
		return 0
	}
	n := binary.LittleEndian.Uint32(d.b)
	d.b = d.b[4:]
	return n
}

func (d *recordData) relation() Relation {
	return Relation{Tablespace: d.number(), Database: d.number(), Number: d.number()}
}
