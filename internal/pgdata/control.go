// Package pgdata knows a PostgreSQL cluster at rest: the files of a data directory, read while the server may be
// writing them.
//
// A [Control] is what global/pg_control says of the cluster. A [Tablespace] is a place outside the data directory.
// [Walk] visits what belongs into a base backup, as [Entry] values whose names are those inside a backup. A
// [RelationFile] is such a name taken apart. A [PageVerifier] watches a relation file go by and finds pages whose
// checksum is wrong.
//
// The package reads and never writes. It needs no running server, and what it reads from a running one is correct in the
// sense of a base backup: a file may be torn or vanish, because recovery repairs it from the log, and only what the
// log cannot repair is an error.
package pgdata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// ControlSize is the size of global/pg_control in bytes (PG_CONTROL_FILE_SIZE), most of it zero.
const ControlSize = 8192

// ControlName is the name of the control file inside a backup.
const ControlName = "global/pg_control"

var (
	// ErrControlChecksum is the cause when the control file's CRC-32C is wrong: damaged, or written at this moment.
	ErrControlChecksum = errors.New("wrong checksum")

	// ErrControlVersion is the cause when the control file is of a PostgreSQL version that this package does not know.
	ErrControlVersion = errors.New("unsupported pg_control version")
)

// State is what the cluster was doing when the control file was written last (DBState, pg_control.h).
type State uint32

// The states of a cluster.
const (
	StateStartingUp State = iota
	StateShutDown
	StateShutDownInRecovery
	StateShuttingDown
	StateInCrashRecovery
	StateInArchiveRecovery
	StateInProduction
)

// String returns the state in the words of pg_controldata.
func (s State) String() string {
	switch s {
	case StateStartingUp:
		return "starting up"
	case StateShutDown:
		return "shut down"
	case StateShutDownInRecovery:
		return "shut down in recovery"
	case StateShuttingDown:
		return "shutting down"
	case StateInCrashRecovery:
		return "in crash recovery"
	case StateInArchiveRecovery:
		return "in archive recovery"
	case StateInProduction:
		return "in production"
	}
	return "unrecognized status code"
}

// Control is the content of global/pg_control (ControlFileData, pg_control.h). Sizes are in bytes, times have whole
// seconds.
type Control struct {
	SystemIdentifier uint64
	ControlVersion   uint32 // of the file's layout
	CatalogVersion   uint32 // as in the name of a tablespace's version directory

	State State
	Time  time.Time // of the file's last update

	CheckpointLSN    wal.LSN // of the last checkpoint record
	RedoLSN          wal.LSN // where recovery from that checkpoint begins
	Timeline         wal.Timeline
	PreviousTimeline wal.Timeline // differs from Timeline if the checkpoint began it
	FullPageWrites   bool
	CheckpointTime   time.Time

	MinRecoveryLSN      wal.LSN // a recovering cluster is consistent from here on; 0 in a primary
	MinRecoveryTimeline wal.Timeline
	BackupStartLSN      wal.LSN // set while a restored backup has not reached its end
	BackupEndLSN        wal.LSN
	BackupEndRequired   bool

	BlockSize      int64  // of data pages
	SegmentBlocks  uint32 // pages in a full segment file of a relation
	WALBlockSize   int64
	WALSegmentSize int64
	DataChecksums  bool // data pages carry checksums
}

// ReadControl reads and decodes the control file of the cluster in dataDir. It returns the file's bytes too, because a
// backup stores exactly what was decoded.
//
// PostgreSQL writes the file in one piece without a lock that others could see, so a reader may get half of it.
// ReadControl therefore reads again while the checksum is wrong, for about a tenth of a second in all. If it stays wrong
// the error unwraps to [ErrControlChecksum].
func ReadControl(dataDir string) (Control, []byte, error) {
	return readControl(filepath.Join(dataDir, filepath.FromSlash(ControlName)), readAtMost)
}

func readControl(path string, read func(path string, limit int64) ([]byte, error)) (Control, []byte, error) {
	const attempts = 10 // as many as get_controlfile() in PostgreSQL's controldata_utils.c makes
	for attempt := 1; ; attempt++ {
		raw, err := read(path, ControlSize)
		if err != nil {
			return Control{}, nil, fmt.Errorf("cannot read control file: %w", err)
		}
		c, err := ParseControl(raw)
		if err == nil {
			return c, raw, nil
		}
		if !errors.Is(err, ErrControlChecksum) || attempt == attempts {
			return Control{}, nil, fmt.Errorf("cannot use control file %s: %w", path, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// layout says where the fields lie that moved between versions: how far from their places in version 1300, in bytes.
type layout struct {
	crc         int // place of the checksum, which covers everything before it
	afterSystem int // distance of what follows the checkpoint's identifiers: its time, and the fields from MinRecoveryLSN on
	afterBlocks int // distance of what follows SegmentBlocks
	checksums   int // distance of DataChecksums
}

func layoutOf(version uint32) (layout, bool) {
	switch version {
	case 1300, 1700: // PostgreSQL 13 to 16, 17: differ in what was padding within the checkpoint
		return layout{crc: 288}, true
	case 1800: // PostgreSQL 18: one more flag, default_char_signedness, before the nonce
		return layout{crc: 292}, true
	case 1905: // PostgreSQL 19 before its release: a larger checkpoint, the pages of an SLRU segment
		return layout{crc: 308, afterSystem: 8, afterBlocks: 12, checksums: 12}, true
	}
	return layout{}, false
}

// ParseControl decodes a control file, which must have its full size of [ControlSize] bytes. The error unwraps to
// [ErrControlVersion] or [ErrControlChecksum] if one of these is the reason.
func ParseControl(b []byte) (Control, error) {
	if len(b) != ControlSize {
		return Control{}, fmt.Errorf("cannot parse pg_control: it has %d bytes, not %d", len(b), ControlSize)
	}
	le := binary.LittleEndian
	version := le.Uint32(b[8:])
	l, known := layoutOf(version)
	if !known {
		if _, swapped := layoutOf(binary.BigEndian.Uint32(b[8:])); swapped {
			return Control{}, errors.New("cannot parse pg_control: it comes from a machine of other byte order")
		}
		return Control{}, fmt.Errorf("cannot parse pg_control: %w %d", ErrControlVersion, version)
	}
	if got, want := crc32.Checksum(b[:l.crc], crc32.MakeTable(crc32.Castagnoli)), le.Uint32(b[l.crc:]); got != want {
		return Control{}, fmt.Errorf("cannot parse pg_control: %w (CRC-32C %08X, recorded %08X)", ErrControlChecksum, got, want)
	}
	c := Control{
		SystemIdentifier: le.Uint64(b[0:]),
		ControlVersion:   version,
		CatalogVersion:   le.Uint32(b[12:]),
		State:            State(le.Uint32(b[16:])),
		Time:             time.Unix(int64(le.Uint64(b[24:])), 0).UTC(),
		CheckpointLSN:    wal.LSN(le.Uint64(b[32:])),

		// CheckPoint, the copy of the last checkpoint record, begins at 40.
		RedoLSN:          wal.LSN(le.Uint64(b[40:])),
		Timeline:         wal.Timeline(le.Uint32(b[48:])),
		PreviousTimeline: wal.Timeline(le.Uint32(b[52:])),
		FullPageWrites:   b[56] != 0,
		CheckpointTime:   time.Unix(int64(le.Uint64(b[104+l.afterSystem:])), 0).UTC(),

		MinRecoveryLSN:      wal.LSN(le.Uint64(b[136+l.afterSystem:])),
		MinRecoveryTimeline: wal.Timeline(le.Uint32(b[144+l.afterSystem:])),
		BackupStartLSN:      wal.LSN(le.Uint64(b[152+l.afterSystem:])),
		BackupEndLSN:        wal.LSN(le.Uint64(b[160+l.afterSystem:])),
		BackupEndRequired:   b[168+l.afterSystem] != 0,

		BlockSize:      int64(le.Uint32(b[216+l.afterSystem:])),
		SegmentBlocks:  le.Uint32(b[220+l.afterSystem:]),
		WALBlockSize:   int64(le.Uint32(b[224+l.afterBlocks:])),
		WALSegmentSize: int64(le.Uint32(b[228+l.afterBlocks:])),
		DataChecksums:  le.Uint32(b[252+l.checksums:]) != 0,
	}
	// The server itself checks these two for a machine whose structures are laid out differently.
	const maxAlign, floatFormat = 8, 1234567.0
	if le.Uint32(b[204+l.afterSystem:]) != maxAlign || math.Float64frombits(le.Uint64(b[208+l.afterSystem:])) != floatFormat {
		return Control{}, errors.New("cannot parse pg_control: it comes from a machine of another architecture")
	}
	switch {
	case !wal.ValidSegmentSize(c.WALSegmentSize):
		return Control{}, fmt.Errorf("cannot parse pg_control: implausible WAL segment size %d", c.WALSegmentSize)
	case !powerOfTwo(c.BlockSize, 1<<10, 1<<15):
		return Control{}, fmt.Errorf("cannot parse pg_control: implausible block size %d", c.BlockSize)
	case !powerOfTwo(c.WALBlockSize, 1<<10, 1<<16):
		return Control{}, fmt.Errorf("cannot parse pg_control: implausible WAL block size %d", c.WALBlockSize)
	case c.SegmentBlocks == 0:
		return Control{}, errors.New("cannot parse pg_control: relation segments of 0 blocks")
	}
	return c, nil
}

func powerOfTwo(n, least, most int64) bool {
	return n >= least && n <= most && n&(n-1) == 0
}

// ReadMajor returns the major version of the cluster in dataDir, from its PG_VERSION: 15.
func ReadMajor(dataDir string) (int, error) {
	path := filepath.Join(dataDir, "PG_VERSION")
	text, err := readAtMost(path, 64)
	if err != nil {
		return 0, fmt.Errorf("cannot read cluster version: %w", err)
	}
	text = bytes.TrimSpace(text)
	major, err := strconv.ParseUint(string(text), 10, 16)
	if err != nil || major < 10 {
		return 0, fmt.Errorf("cannot read cluster version: %s contains %q, not the number of a major version", path, text)
	}
	return int(major), nil
}

// readAtMost returns the content of a small file, cut one byte after limit so that a longer file is noticed.
func readAtMost(path string, limit int64) ([]byte, error) {
	// Where a named pipe stands, opening it would wait for its other end. For files O_NONBLOCK means nothing.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}
