package pgdata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/wal"
)

// realControl returns the control file of a cluster made by initdb of this major version: 13 with WAL segments of 64 MiB,
// 14 with 1 MiB, 17 without data checksums, 19 (release candidate 1) with 4 MiB. Of each file testdata keeps the first 512 bytes; the rest is zero.
func realControl(t testing.TB, major int) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", fmt.Sprintf("pg_control.%d", major)))
	if err != nil {
		t.Fatal(err)
	}
	return append(b, make([]byte, ControlSize-len(b))...)
}

// seal writes the checksum that fits the rest of the file.
func seal(b []byte, crc int) []byte {
	binary.LittleEndian.PutUint32(b[crc:], crc32.Checksum(b[:crc], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func TestControlFilesOfAllMajorVersionsAreUnderstood(t *testing.T) {
	t.Parallel()
	// What each server itself said in pg_control_system(), pg_control_checkpoint(), _recovery() and _init().
	for _, c := range []struct {
		major      int
		version    uint32
		catalog    uint32
		system     uint64
		minute     int // of the last change, on that day
		second     int
		checkpoint wal.LSN
		segment    int64
		checksums  bool
	}{
		{13, 1300, 202007201, 7710983907596110675, 13*60 + 15, 47, 0x4813E28, 64 << 20, true},
		{14, 1300, 202107181, 7710983913402256233, 13*60 + 15, 49, 0xA43200, 1 << 20, true},
		{15, 1300, 202209061, 7710983920749980543, 13*60 + 15, 50, 0x17414F8, 16 << 20, true},
		{16, 1300, 202307071, 7710983925746789269, 13*60 + 15, 51, 0x1720FC8, 16 << 20, true},
		{17, 1700, 202406281, 7710983930551192491, 13*60 + 15, 52, 0x14D89F0, 16 << 20, false},
		{18, 1800, 202506291, 7710983935540661185, 13*60 + 15, 53, 0x174B290, 16 << 20, true},
		{19, 1905, 202610061, 7711036678948245743, 16*60 + 40, 45, 0xB4FEE8, 4 << 20, true}, // release candidate 1
	} {
		at := time.Date(2026, 11, 22, 0, c.minute, c.second, 0, time.UTC)
		want := Control{
			SystemIdentifier: c.system, ControlVersion: c.version, CatalogVersion: c.catalog,
			State: StateShutDown, Time: at,
			CheckpointLSN: c.checkpoint, RedoLSN: c.checkpoint, Timeline: 1, PreviousTimeline: 1,
			FullPageWrites: true, CheckpointTime: at,
			BlockSize: 8192, SegmentBlocks: 131072, WALBlockSize: 8192, WALSegmentSize: c.segment,
			DataChecksums: c.checksums,
		}
		got, err := ParseControl(realControl(t, c.major))
		if err != nil || got != want {
			t.Errorf("major %d: got %+v, %v; want %+v", c.major, got, err, want)
		}
	}
}

func TestRecoveryFieldsOfTheControlFile(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ major, crc, moved int }{{15, 288, 0}, {17, 288, 0}, {18, 292, 0}, {19, 308, 8}} {
		b := realControl(t, c.major)
		le := binary.LittleEndian
		le.PutUint32(b[16:], uint32(StateInArchiveRecovery))
		le.PutUint32(b[48:], 3)
		le.PutUint32(b[52:], 2)
		b[56] = 0
		le.PutUint64(b[136+c.moved:], 0x1600000028)
		le.PutUint32(b[144+c.moved:], 3)
		le.PutUint64(b[152+c.moved:], 0x1500000028)
		le.PutUint64(b[160+c.moved:], 0x1500000100)
		b[168+c.moved] = 1
		got, err := ParseControl(seal(b, c.crc))
		if err != nil {
			t.Fatal(err)
		}
		if got.State != StateInArchiveRecovery || got.Timeline != 3 || got.PreviousTimeline != 2 || got.FullPageWrites ||
			got.MinRecoveryLSN != 0x1600000028 || got.MinRecoveryTimeline != 3 ||
			got.BackupStartLSN != 0x1500000028 || got.BackupEndLSN != 0x1500000100 || !got.BackupEndRequired {
			t.Errorf("major %d: %+v", c.major, got)
		}
	}
}

func TestUnusableControlFilesAreRefusedWithTheirReason(t *testing.T) {
	t.Parallel()
	edit := func(f func(b []byte)) []byte {
		b := realControl(t, 15)
		f(b)
		return b
	}
	put := func(offset int, value uint32) []byte {
		return edit(func(b []byte) {
			binary.LittleEndian.PutUint32(b[offset:], value)
			seal(b, 288)
		})
	}
	for what, c := range map[string]struct {
		b     []byte
		cause error
		text  string
	}{
		"empty":             {nil, nil, "0 bytes"},
		"short":             {realControl(t, 15)[:512], nil, "512 bytes"},
		"long":              {append(realControl(t, 15), 0), nil, "8193 bytes"},
		"zero":              {make([]byte, ControlSize), ErrControlVersion, "version 0"},
		"version 12":        {put(8, 1201), ErrControlVersion, "1201"},
		"version to come":   {put(8, 1902), ErrControlVersion, "1902"},
		"big endian":        {edit(func(b []byte) { slices.Reverse(b[8:12]) }), nil, "byte order"},
		"one bit":           {edit(func(b []byte) { b[100] ^= 1 }), ErrControlChecksum, "checksum"},
		"damaged checksum":  {edit(func(b []byte) { b[288] ^= 1 }), ErrControlChecksum, "checksum"},
		"torn":              {edit(func(b []byte) { clear(b[256:]) }), ErrControlChecksum, "checksum"},
		"alignment":         {put(204, 4), nil, "architecture"},
		"floating point":    {put(212, 0), nil, "architecture"},
		"WAL segment size":  {put(228, 12345), nil, "WAL segment size 12345"},
		"block size":        {put(216, 0), nil, "block size 0"},
		"WAL block size":    {put(224, 1<<20), nil, "WAL block size"},
		"relation segments": {put(220, 0), nil, "0 blocks"},
	} {
		got, err := ParseControl(c.b)
		if err == nil || got != (Control{}) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %+v, %v", what, got, err)
		}
		for _, sentinel := range []error{ErrControlVersion, ErrControlChecksum} {
			if errors.Is(err, sentinel) != (c.cause == sentinel) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

func TestStatesAreNamedAsInPgControldata(t *testing.T) {
	t.Parallel()
	for s, want := range map[State]string{
		0: "starting up", 1: "shut down", 2: "shut down in recovery", 3: "shutting down", 4: "in crash recovery",
		5: "in archive recovery", 6: "in production", 7: "unrecognized status code",
	} {
		if s.String() != want {
			t.Errorf("%d is %q, want %q", s, s, want)
		}
	}
}

func writeFile(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestReadControlReturnsTheBytesItDecoded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	content := realControl(t, 16)
	writeFile(t, filepath.Join(dir, ControlName), content)
	c, raw, err := ReadControl(dir)
	if err != nil || c.CatalogVersion != 202307071 || !bytes.Equal(raw, content) {
		t.Errorf("got %+v, %d bytes, %v", c, len(raw), err)
	}
}

func TestReadControlReadsAgainWhileTheFileIsBeingWritten(t *testing.T) {
	t.Parallel()
	torn := realControl(t, 16)
	torn[100] ^= 1
	for whole := 1; whole <= 11; whole++ {
		reads := 0
		_, raw, err := readControl("pg_control", func(string, int64) ([]byte, error) {
			if reads++; reads < whole {
				return torn, nil
			}
			return realControl(t, 16), nil
		})
		switch {
		case whole <= 10 && (err != nil || reads != whole || !bytes.Equal(raw, realControl(t, 16))):
			t.Errorf("whole at read %d: %d reads, %v", whole, reads, err)
		case whole > 10 && (!errors.Is(err, ErrControlChecksum) || reads != 10):
			t.Errorf("never whole: %d reads, %v", reads, err)
		}
	}
}

func TestReadControlFailsForGood(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, _, err := ReadControl(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	torn := realControl(t, 16)
	torn[100] ^= 1
	writeFile(t, filepath.Join(dir, ControlName), torn)
	_, _, err := ReadControl(dir)
	if !errors.Is(err, ErrControlChecksum) || !strings.Contains(err.Error(), filepath.Join(dir, ControlName)) {
		t.Errorf("damaged: %v", err)
	}
}

func TestReadMajor(t *testing.T) {
	t.Parallel()
	for content, want := range map[string]int{"15\n": 15, "18": 18, "13\n\n": 13} {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "PG_VERSION"), []byte(content))
		if got, err := ReadMajor(dir); err != nil || got != want {
			t.Errorf("%q: got %d, %v", content, got, err)
		}
	}
	for _, content := range []string{"", "9.6\n", "x", "-15", "9", "70000", strings.Repeat("1", 1<<20)} {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "PG_VERSION"), []byte(content))
		if got, err := ReadMajor(dir); err == nil || len(err.Error()) > 300 {
			t.Errorf("%.20q: got %d, %v", content, got, err)
		}
	}
	if _, err := ReadMajor(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func FuzzParseControl(f *testing.F) {
	for major := 13; major <= 18; major++ {
		f.Add(realControl(f, major)[:512], true)
	}
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, head []byte, sealed bool) {
		b := make([]byte, ControlSize)
		copy(b, head)
		if sealed { // so that more than the checksum is tried
			if l, ok := layoutOf(binary.LittleEndian.Uint32(b[8:])); ok {
				seal(b, l.crc)
			}
		}
		c, err := ParseControl(b)
		if err != nil {
			if c != (Control{}) {
				t.Errorf("got %+v together with %v", c, err)
			}
			return
		}
		if !wal.ValidSegmentSize(c.WALSegmentSize) || c.SegmentBlocks == 0 || c.BlockSize == 0 {
			t.Errorf("got %+v", c)
		}
		if _, err := ParseControl(head); err == nil && len(head) != ControlSize {
			t.Errorf("%d bytes are accepted", len(head))
		}
	})
}
