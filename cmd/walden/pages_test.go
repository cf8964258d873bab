package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

const blockSize = 8192

// recoverTo lets the server in a directory recover to a restore point and shut down, all pages written.
func recoverTo(t *testing.T, s *site, dir, point string) {
	t.Helper()
	signal := filepath.Join(dir, "recovery.signal")
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	own(t, signal)
	p := testenv.AttachPostgres(t, dir, testenv.PostgresOptions{
		Settings: s.restoreSettings("recovery_target_name="+point, "recovery_target_action=shutdown", "hot_standby=off"),
	})
	if err := p.TryStart(); err == nil {
		p.WaitExit(t, time.Minute)
	}
	if log := p.LogTail(); !strings.Contains(log, `recovery stopping at restore point "`+point+`"`) {
		t.Fatalf("%s did not recover to %s:\n%s", dir, point, log)
	}
}

// samePages compares two data directories of a cluster, recovered to the same position, page by page, and returns how many pages
// both hold. What the log does not say is left out, as in PostgreSQL's own comparison (src/backend/access/common/bufmask.c and the
// functions heap_mask, btree_mask and seq_mask): hints, what lies in a page's hole, pages that are empty, unlogged relations, the map of free space.
func samePages(t *testing.T, a, b string) (pages int) {
	t.Helper()
	inA, inB := loggedFiles(t, a), loggedFiles(t, b)
	names := slices.Collect(maps.Keys(inA))
	for name := range inB {
		if _, both := inA[name]; !both {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	differences := 0
	for _, name := range names {
		one, other := readPages(t, inA[name]), readPages(t, inB[name])
		for i := range max(len(one), len(other)) / blockSize {
			if end := (i + 1) * blockSize; len(one) >= end && len(other) >= end && bytes.Equal(one[end-blockSize:end], other[end-blockSize:end]) {
				pages++
				continue
			}
			pageA, pageB := pageOf(one, i), pageOf(other, i)
			if at := firstDifference(pageA, pageB); at >= 0 {
				if differences++; differences < 10 {
					t.Errorf("block %d of %s differs from byte %d on: it holds there\n%x in one, and\n%x in the other; the positions are %x and %x",
						i, name, at, around(pageA, at), around(pageB, at), pageA[:8], pageB[:8])
				}
				continue
			}
			pages++
		}
	}
	return pages
}

// loggedFiles finds the files of the logged relations in a data directory, by names that are the same in all copies.
func loggedFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	relation := regexp.MustCompile(`^([0-9]+)(_vm|_init)?(\.[0-9]+)?$`)
	walk := func(prefix, root string) {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			m := relation.FindStringSubmatch(entry.Name())
			if m == nil {
				return nil
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1]+"_init")); err == nil && m[2] != "_init" {
				return nil // unlogged
			}
			name, err := filepath.Rel(root, path)
			found[filepath.Join(prefix, name)] = path
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	walk("base", filepath.Join(dir, "base"))
	walk("global", filepath.Join(dir, "global"))
	links, err := filepath.Glob(filepath.Join(dir, "pg_tblspc", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		root, err := filepath.EvalSymlinks(link)
		if err != nil {
			t.Fatal(err)
		}
		walk(filepath.Join("pg_tblspc", filepath.Base(link)), root)
	}
	return found
}

func readPages(t *testing.T, path string) []byte {
	t.Helper()
	if path == "" {
		return nil
	}
	b, err := os.ReadFile(path)
	if err == nil && len(b)%blockSize != 0 {
		err = errors.New("it ends within a page")
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return b
}

// pageOf returns a page without what the log does not say of it; behind the end of a file pages are empty.
func pageOf(file []byte, i int) []byte {
	if len(file) < (i+1)*blockSize {
		return make([]byte, blockSize)
	}
	return masked(bytes.Clone(file[i*blockSize:][:blockSize]))
}

func around(page []byte, at int) []byte { return page[max(0, at-32):min(blockSize, at+32)] }

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// masked clears in a page what may differ after the same records (src/include/storage/bufpage.h, itemid.h, access/htup_details.h, access/nbtree.h).
func masked(page []byte) []byte {
	const (
		headerSize, linePointerSize = 24, 4
		checksumAt, flagsAt         = 8, 10
		lowerAt, upperAt, specialAt = 12, 14, 16
		pruneAt                     = 20
		hintFlags                   = 0x0001 | 0x0002 | 0x0004 // PD_HAS_FREE_LINES, PD_PAGE_FULL, PD_ALL_VISIBLE
	)
	le := binary.LittleEndian
	lower, upper, special := int(le.Uint16(page[lowerAt:])), int(le.Uint16(page[upperAt:])), int(le.Uint16(page[specialAt:]))
	if upper == 0 || lower < headerSize || lower > upper || upper > special || special > blockSize {
		return page
	}
	clear(page[checksumAt:flagsAt])
	le.PutUint16(page[flagsAt:], le.Uint16(page[flagsAt:])&^hintFlags)
	clear(page[pruneAt:headerSize])
	clear(page[lower:upper])
	switch blockSize - special {
	case 0:
		for at := headerSize; at < lower; at += linePointerSize {
			pointer := le.Uint32(page[at:])
			offset, flags, length := int(pointer&0x7fff), pointer>>15&3, int(pointer>>17)
			if flags == 1 && offset+23 <= blockSize && offset+length <= blockSize {
				maskTuple(page[offset:])
				clear(page[offset+length : min(blockSize, (offset+length+7)&^7)]) // nothing is written between tuples
			}
		}
	case 8:
		if le.Uint32(page[special:]) == 0x1717 { // a sequence: how many values are taken in advance
			clear(page[upper:special])
		}
	case 16:
		const hasGarbage, splitEnd, deleted = 0x40, 0x20, 0x04
		const opaqueFlags, opaqueCycle = 12, 14
		flags := le.Uint16(page[special+opaqueFlags:])
		le.PutUint16(page[special+opaqueFlags:], flags&^(hasGarbage|splitEnd))
		clear(page[special+opaqueCycle:])
		if flags&deleted != 0 {
			clear(page[headerSize:special])
			break
		}
		for at := headerSize; at < lower; at += linePointerSize {
			le.PutUint32(page[at:], le.Uint32(page[at:])&^(3<<15)) // LP_DEAD is a hint here
		}
	}
	return page
}

// maskTuple clears what a heap tuple's header has of hints about transactions that ended, and of commands within them.
func maskTuple(tuple []byte) {
	const (
		commandAt, infomaskAt = 8, 20
		xminHints, xmaxHints  = 0x0100 | 0x0200, 0x0400 | 0x0800 // both of the first are "frozen"
		comboCommand          = 0x0020
	)
	le := binary.LittleEndian
	clear(tuple[commandAt : commandAt+4])
	mask := le.Uint16(tuple[infomaskAt:]) &^ (xmaxHints | comboCommand)
	if mask&xminHints != xminHints {
		mask &^= xminHints
	}
	le.PutUint16(tuple[infomaskAt:], mask)
}

// A comparison that finds nothing proves nothing: pages that the log would have changed are told apart.
func TestPagesAreComparedByWhatTheLogSays(t *testing.T) {
	t.Parallel()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{Settings: map[string]string{"autovacuum": "off"}})
	p.Exec(t, "CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 1000) AS g", "CREATE INDEX ON t(id)", "CREATE UNLOGGED TABLE u AS SELECT 1 AS id", "CHECKPOINT")
	before := p.BaseCopy(t)
	if n := samePages(t, before, p.BaseCopy(t)); n < 500 {
		t.Errorf("only %d pages were compared", n)
	}
	p.Exec(t, "SELECT count(*) FROM t", "UPDATE u SET id = 2", "CHECKPOINT") // hint bits
	samePages(t, before, p.BaseCopy(t))
	table := p.Query(t, "SELECT pg_relation_filepath('t')")
	for _, at := range []int{4, blockSize - 7, 3*blockSize + 30} {
		changed := filepath.Join(t.TempDir(), "data")
		for _, dir := range []string{"base", "global"} {
			if err := os.CopyFS(filepath.Join(changed, dir), os.DirFS(filepath.Join(before, dir))); err != nil {
				t.Fatal(err)
			}
		}
		f, err := os.OpenFile(filepath.Join(changed, table), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1)
		_, err = f.ReadAt(b, int64(at))
		if err == nil {
			_, err = f.WriteAt([]byte{^b[0]}, int64(at))
		}
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		one, other := readPages(t, filepath.Join(before, table)), readPages(t, filepath.Join(changed, table))
		if got := firstDifference(pageOf(one, at/blockSize), pageOf(other, at/blockSize)) >= 0; !got {
			t.Errorf("byte %d was changed, and no difference was found", at)
		}
	}
}
