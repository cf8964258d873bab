package archive

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/codec"
	"gitlab.com/walden-pg/walden/internal/crypt"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

const (
	segmentSize = 1 << 20
	cluster     = 7710983920749980543
	segmentTwo  = "000000010000000000000002"
	history     = "1\t0/3000000\tno recovery target specified\n"
)

// segment makes a WAL segment of PostgreSQL 15 (XLogLongPageHeaderData, xlog_internal.h) with contents that depend on seed.
func segment(number, system uint64, timeline uint32, seed uint64) []byte {
	const pageSize = 8192
	b := make([]byte, segmentSize)
	r := rand.New(rand.NewPCG(seed, number))
	for i := 40; i < len(b)/4; i += 8 { // the rest stays zero, so that it can be compressed
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	// All of it is the middle of one record that began before, so that any content will do.
	le := binary.LittleEndian
	left := 100 * segmentSize
	for page := 0; page < segmentSize; page += pageSize {
		head := 24
		le.PutUint16(b[page:], 0xD110)
		le.PutUint16(b[page+2:], 1)
		le.PutUint32(b[page+4:], timeline)
		le.PutUint64(b[page+8:], number*segmentSize+uint64(page))
		le.PutUint32(b[page+16:], uint32(left))
		le.PutUint32(b[page+20:], 0)
		if page == 0 {
			head = 40
			le.PutUint16(b[page+2:], 3)
			le.PutUint64(b[24:], system)
			le.PutUint32(b[32:], segmentSize)
			le.PutUint32(b[36:], pageSize)
		}
		left -= pageSize - head
	}
	return b
}

// control makes a control file of PostgreSQL 15 (ControlFileData, pg_control.h), as far as it is read.
func control(system uint64) []byte { return controlOn(system, 1) }

func controlOn(system uint64, timeline uint32) []byte {
	b := make([]byte, pgdata.ControlSize)
	le := binary.LittleEndian
	le.PutUint64(b[0:], system)
	le.PutUint32(b[8:], 1300)
	le.PutUint32(b[204:], 8)
	le.PutUint32(b[48:], timeline)
	le.PutUint64(b[208:], math.Float64bits(1234567))
	le.PutUint32(b[216:], 8192)
	le.PutUint32(b[220:], 131072)
	le.PutUint32(b[224:], 8192)
	le.PutUint32(b[228:], segmentSize)
	le.PutUint32(b[288:], crc32.Checksum(b[:288], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// deps opens the archive in s, writing with the codec named.
func deps(t testing.TB, s storage.Store, method string, log io.Writer) Deps {
	t.Helper()
	c, err := codec.New(method, codec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l := slog.New(slog.NewTextHandler(log, nil))
	return Deps{catalog.New(repo.New(s, c, crypt.None{}, repo.Options{}), l), l}
}

// dataDir makes a data directory: pg_wal, the signal files named, and a control file unless system is 0.
func dataDir(t testing.TB, system uint64, signals ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"pg_wal", "global"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range signals {
		write(t, filepath.Join(dir, name), nil)
	}
	if system != 0 {
		write(t, filepath.Join(dir, pgdata.ControlName), control(system))
	}
	return dir
}

func write(t testing.TB, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// push archives content under name from a data directory without a control file.
func push(t testing.TB, d Deps, name string, content []byte) error {
	t.Helper()
	return Push(t.Context(), d, PushOptions{Path: write(t, filepath.Join(dataDir(t, 0), "pg_wal", name), content), Timeout: time.Minute})
}

func mustPush(t testing.TB, d Deps, name string, content []byte) {
	t.Helper()
	if err := push(t, d, name, content); err != nil {
		t.Fatal(err)
	}
}

// object returns the stored bytes of an object.
func object(t testing.TB, s storage.Store, key string) []byte {
	t.Helper()
	r, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func keys(t testing.TB, s storage.Store, dir string) []string {
	t.Helper()
	var list []string
	for o, err := range s.List(t.Context(), dir) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, o.Key)
	}
	return list
}

func TestPushedFilesComeBackAndAreNeverReplaced(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	var log bytes.Buffer
	d := deps(t, s, "lz4", &log)
	files := map[string][]byte{
		segmentTwo:                      segment(2, cluster, 1, 1),
		"000000020000000000000003":      segment(3, cluster, 1, 1), // the first of a timeline begins as a copy of the old one's
		segmentTwo + ".partial":         segment(2, cluster, 1, 2),
		"00000002.history":              []byte(history),
		segmentTwo + ".00000028.backup": []byte("START WAL LOCATION: 0/200028 (file 000000010000000000000002)\n"),
		"a file of an extension":        []byte("anything"),
		"empty":                         {},
	}
	for name, content := range files {
		mustPush(t, d, name, content)
		before := object(t, s, "wal_005/"+name+".lz4")
		mustPush(t, d, name, content) // as after a crash of the server
		other := bytes.Clone(content)
		if len(other) == 0 {
			other = []byte("x")
		}
		other[len(other)-1] ^= 1
		for _, other := range [][]byte{other, append(bytes.Clone(content), 0)} {
			if len(content) == segmentSize && len(other) != segmentSize {
				continue // refused for its size
			}
			err := push(t, d, name, other)
			if !errors.Is(err, ErrDifferentContent) {
				t.Errorf("%s with other content: %v", name, err)
			}
			if strings.HasPrefix(name, "0000") && len(content) == segmentSize &&
				!strings.Contains(fmt.Sprint(err), "archived: system identifier 7710983920749980543, timeline 1; this file: system identifier 7710983920749980543, timeline 1") {
				t.Errorf("%s: the origins are not named: %v", name, err)
			}
		}
		if !bytes.Equal(object(t, s, "wal_005/"+name+".lz4"), before) {
			t.Errorf("%s was replaced", name)
		}
		dest := filepath.Join(dataDir(t, 0), "pg_wal", "RECOVERYXLOG")
		if err := Fetch(t.Context(), d, FetchOptions{name, dest, time.Minute, ""}); err != nil {
			t.Error(err)
		} else if got, err := os.ReadFile(dest); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s came back as %d bytes that differ, %v", name, len(got), err)
		}
	}
	if !strings.Contains(log.String(), `msg="the name is not that of a WAL file; it is archived as it is" action=wal-push seg="a file of an extension"`) {
		t.Errorf("no warning of a strange name in the log:\n%s", log.String())
	}
}

func TestTheSameFileUnderAnotherCodecIsSeen(t *testing.T) {
	t.Parallel()
	content := segment(2, cluster, 1, 1)
	for _, c := range []struct{ then, now string }{{"zstd", "lz4"}, {"lz4", "none"}, {"none", "lz4"}, {"brotli", "zstd"}, {"lzma", "lz4"}} {
		s := storagetest.NewMemory()
		mustPush(t, deps(t, s, c.then, io.Discard), segmentTwo, content)
		before := keys(t, s, "wal_005/")
		d := deps(t, s, c.now, io.Discard)
		mustPush(t, d, segmentTwo, content)
		if err := push(t, d, segmentTwo, segment(2, cluster, 1, 2)); !errors.Is(err, ErrDifferentContent) {
			t.Errorf("%s, then %s: %v", c.then, c.now, err)
		}
		if after := keys(t, s, "wal_005/"); !slices.Equal(before, after) {
			t.Errorf("%s, then %s: %v became %v", c.then, c.now, before, after)
		}
	}
}

func TestFilesThatAreNotWhatTheirNamesSayAreRefused(t *testing.T) {
	t.Parallel()
	good := segment(2, cluster, 1, 1)
	edit := func(f func(b []byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		return b
	}
	s := storagetest.NewMemory()
	d := deps(t, s, "lz4", io.Discard)
	for what, c := range map[string]struct {
		name    string
		content []byte
		text    string
	}{
		"short":              {segmentTwo, good[:segmentSize-1], "it has 1048575 bytes, its header says 1048576"},
		"long":               {segmentTwo, append(bytes.Clone(good), 0), "it has 1048577 bytes"},
		"less than a header": {segmentTwo, good[:39], "cannot read its header"},
		"empty":              {segmentTwo, nil, "cannot read its header"},
		"zero":               {segmentTwo, make([]byte, segmentSize), "it is all zero"},
		"text":               {segmentTwo, bytes.Repeat([]byte("text"), segmentSize/4), "not the beginning of a WAL segment"},
		"other position":     {"000000010000000000000003", good, "its name stands for LSN 0/300000, its header says 0/200000"},
		"later timeline":     {segmentTwo, segment(2, cluster, 2, 1), "its header says timeline 2"},
		"segment size":       {segmentTwo, edit(func(b []byte) { b[34] = 0x20 }), "it has 1048576 bytes, its header says 2097152"},
		"short partial":      {segmentTwo + ".partial", good[:8192], "it has 8192 bytes"},
	} {
		if err := push(t, d, c.name, c.content); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v does not say %q", what, err, c.text)
		}
	}
	for _, path := range []string{filepath.Join(t.TempDir(), "missing"), t.TempDir()} {
		if err := Push(t.Context(), d, PushOptions{Path: path, Timeout: time.Minute}); err == nil {
			t.Errorf("%s was archived", path)
		}
	}
	if found := keys(t, s, ""); found != nil {
		t.Errorf("the archive holds %v", found)
	}
}

func TestAnArchiveBelongsToOneCluster(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	d := deps(t, s, "lz4", io.Discard)
	mustPush(t, d, segmentTwo, segment(2, cluster, 1, 1))
	before := keys(t, s, "wal_005/")
	var wrong *catalog.WrongClusterError
	if err := push(t, d, "000000010000000000000003", segment(3, cluster+1, 1, 1)); !errors.As(err, &wrong) || wrong.Ours.SystemIdentifier != cluster+1 {
		t.Errorf("a segment: %v", err)
	}
	dir := dataDir(t, cluster+1) // a history file names no cluster: the directory that it lies in does
	path := write(t, filepath.Join(dir, "pg_wal", "00000002.history"), []byte(history))
	if err := Push(t.Context(), d, PushOptions{Path: path, Timeout: time.Minute}); !errors.As(err, &wrong) {
		t.Errorf("a history file: %v", err)
	}
	if after := keys(t, s, "wal_005/"); !slices.Equal(before, after) {
		t.Errorf("the archive has changed from %v to %v", before, after)
	}
}

func TestRacingPushesOfOneNameLeaveOneContent(t *testing.T) {
	t.Parallel()
	rounds := testenv.Pick(5, 100)
	testenv.Figure(t, "racing pairs", "memory, 16 pushes each", rounds)
	for round := range rounds {
		s := storagetest.NewMemory()
		content := [][]byte{segment(2, cluster, 1, 1), segment(2, cluster, 1, 2)}
		if round%2 == 0 {
			content[1] = content[0]
		}
		d := deps(t, s, "lz4", io.Discard)
		errs := make([]error, 16)
		var wg sync.WaitGroup
		for i := range errs {
			path := write(t, filepath.Join(t.TempDir(), segmentTwo), content[i%2])
			wg.Go(func() { errs[i] = Push(t.Context(), d, PushOptions{Path: path, Timeout: time.Minute}) })
		}
		wg.Wait()
		winner := 0
		if errs[0] != nil {
			winner = 1
		}
		for i, err := range errs {
			switch {
			case round%2 == 0 || i%2 == winner:
				if err != nil {
					t.Errorf("round %d, push %d: %v", round, i, err)
				}
			case !errors.Is(err, ErrDifferentContent):
				t.Errorf("round %d, push %d of the content that came second: %v", round, i, err)
			}
		}
		if found := keys(t, s, "wal_005/"); len(found) != 1 {
			t.Errorf("round %d: the archive holds %v", round, found)
		}
		dest := filepath.Join(t.TempDir(), "X")
		if err := Fetch(t.Context(), d, FetchOptions{segmentTwo, dest, time.Minute, ""}); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(dest); err != nil || !bytes.Equal(got, content[winner]) {
			t.Errorf("round %d: the archive holds another content than the one that won, %v", round, err)
		}
	}
}

// everyKind are all ways in which a store can fail.
var everyKind = []storagetest.Kind{storagetest.Before, storagetest.Half, storagetest.AnswerLost, storagetest.Hang, storagetest.HangHalf,
	storagetest.FlipBit, storagetest.Truncate, storagetest.Empty, storagetest.Disorder, storagetest.Stale}

// retried is a store as commands use it.
func retried(s storage.Store) storage.Store {
	return storage.WithRetry(storage.WithStallLimit(s, 10*time.Second), storage.RetryOptions{})
}

// Whatever single call fails and however: a push that reports success has archived the file, and one that reports failure can be
// repeated. With n = 0 every call fails.
func TestPushUnderEveryFault(t *testing.T) {
	t.Parallel()
	content := segment(2, cluster, 1, 1)
	for _, kind := range everyKind {
		for n, more := 0, true; more; n++ {
			synctest.Test(t, func(t *testing.T) {
				inner := storagetest.NewMemory()
				fault := storagetest.NewFault(inner, storagetest.Rule{Kind: kind, Nth: n})
				dir := t.TempDir()
				path := write(t, filepath.Join(dir, segmentTwo), content)
				err := Push(t.Context(), deps(t, retried(fault), "lz4", io.Discard), PushOptions{Path: path, Timeout: time.Minute})
				if more = n == 0 || fault.Fired(); !more {
					return
				}
				healthy := deps(t, inner, "lz4", io.Discard)
				if n > 0 && err != nil && kind != storagetest.FlipBit && kind != storagetest.Truncate && kind != storagetest.Empty {
					t.Errorf("kind %d, call %d: one failure that may pass was not overcome: %v", kind, n, err)
				}
				if err != nil {
					if err := Push(t.Context(), healthy, PushOptions{Path: path, Timeout: time.Minute}); err != nil {
						t.Errorf("kind %d, call %d: the second push: %v", kind, n, err)
					}
				}
				dest := filepath.Join(dir, "X")
				if err := Fetch(t.Context(), healthy, FetchOptions{segmentTwo, dest, time.Minute, ""}); err != nil {
					t.Errorf("kind %d, call %d: %v", kind, n, err)
				} else if got, err := os.ReadFile(dest); err != nil || !bytes.Equal(got, content) {
					t.Errorf("kind %d, call %d: something else was archived, %v", kind, n, err)
				}
			})
		}
	}
}

// The same for a file that is archived already: one failure while it is compared is overcome, and what does not pass is told.
func TestPushOfAnArchivedFileUnderEveryFault(t *testing.T) {
	t.Parallel()
	content := segment(2, cluster, 1, 1)
	for _, kind := range []storagetest.Kind{storagetest.Before, storagetest.Half, storagetest.Hang, storagetest.HangHalf} {
		for n, more := 1, true; more; n++ {
			for _, forGood := range []bool{false, true} {
				inner := storagetest.NewMemory()
				mustPush(t, deps(t, inner, "lz4", io.Discard), segmentTwo, content)
				synctest.Test(t, func(t *testing.T) {
					fault := storagetest.NewFault(inner, storagetest.Rule{Kind: kind, Nth: n, ForGood: forGood})
					path := write(t, filepath.Join(t.TempDir(), segmentTwo), content)
					err := Push(t.Context(), deps(t, retried(fault), "lz4", io.Discard), PushOptions{Path: path, Timeout: time.Minute})
					more = fault.Fired()
					if !forGood && err != nil {
						t.Errorf("%s, call %d: one failure was not overcome: %v", kind, n, err)
					}
					if err != nil && strings.Contains(err.Error(), "context deadline exceeded") {
						t.Errorf("%s, call %d: the cause is not told: %v", kind, n, err)
					}
				})
			}
		}
	}
}

// Whatever call fails and however: absence is never said of a file that is there, nothing but the right file appears at the
// destination, and no temporary file stays.
func TestFetchUnderEveryFault(t *testing.T) {
	t.Parallel()
	content := segment(2, cluster, 1, 1)
	for _, method := range []string{"lz4", "zstd", "none"} {
		inner := storagetest.NewMemory()
		mustPush(t, deps(t, inner, method, io.Discard), segmentTwo, content)
		for _, kind := range everyKind {
			for n, more := 0, true; more; n++ {
				synctest.Test(t, func(t *testing.T) {
					fault := storagetest.NewFault(inner, storagetest.Rule{Kind: kind, Nth: n})
					dir := t.TempDir()
					dest := filepath.Join(dir, "RECOVERYXLOG")
					err := Fetch(t.Context(), deps(t, retried(fault), "lz4", io.Discard), FetchOptions{segmentTwo, dest, 90 * time.Second, ""})
					if more = fault.Fired() && n < 50; !more && n > 0 {
						return
					}
					what := fmt.Sprintf("%s, kind %d, call %d", method, kind, n)
					if errors.Is(err, ErrAbsent) || errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%s: called absent: %v", what, err)
					}
					if n > 0 && err != nil {
						t.Errorf("%s: one failure was not overcome: %v", what, err)
					}
					got, readErr := os.ReadFile(dest)
					switch {
					case err != nil && !errors.Is(readErr, fs.ErrNotExist):
						t.Errorf("%s: failed, and %d bytes are at the destination", what, len(got))
					case err == nil && !bytes.Equal(got, content) && (method == "lz4" || method == "zstd" || kind != storagetest.FlipBit):
						t.Errorf("%s: something else came back, %v", what, readErr) // none has no checksum
					}
					if left, err := os.ReadDir(dir); err != nil || len(left) > 1 {
						t.Errorf("%s: %v was left behind, %v", what, left, err)
					}
				})
			}
		}
	}
}

// The same for a file that is not there: with any failure of the storage the answer is not "absent", unless a later one of the
// storage's answers was.
func TestAbsenceUnderEveryFault(t *testing.T) {
	t.Parallel()
	inner := storagetest.NewMemory()
	mustPush(t, deps(t, inner, "lz4", io.Discard), segmentTwo, segment(2, cluster, 1, 1))
	for _, kind := range []storagetest.Kind{storagetest.Before, storagetest.Hang, storagetest.Half, storagetest.HangHalf} {
		for n, more := 0, true; more; n++ {
			synctest.Test(t, func(t *testing.T) {
				fault := storagetest.NewFault(inner, storagetest.Rule{Kind: kind, Nth: n})
				dest := filepath.Join(t.TempDir(), "X")
				err := Fetch(t.Context(), deps(t, fault, "lz4", io.Discard), FetchOptions{"000000010000000000000003", dest, time.Minute, ""})
				if more = fault.Fired(); !more {
					return
				}
				asked := kind == storagetest.Before || kind == storagetest.Hang // the others have let the decisive calls through
				if n == 0 && asked && errors.Is(err, ErrAbsent) || err == nil {
					t.Errorf("kind %d, all calls: %v", kind, err)
				}
			})
		}
	}
	// Half of the names cannot be asked about: the answer is a failure, not absence.
	for _, ext := range []string{".zst", ".br", ".lzma", ".gz", ".lzo", ".", ""} {
		synctest.Test(t, func(t *testing.T) {
			fault := storagetest.NewFault(inner, storagetest.Rule{Kind: storagetest.Before, Match: func(c storagetest.Call) bool {
				return c.Key == "wal_005/000000010000000000000003"+ext
			}})
			err := Fetch(t.Context(), deps(t, fault, "lz4", io.Discard), FetchOptions{"000000010000000000000003", filepath.Join(t.TempDir(), "X"), time.Minute, ""})
			if err == nil || errors.Is(err, ErrAbsent) {
				t.Errorf("%q cannot be asked about: %v", ext, err)
			}
		})
	}
}

func TestAbsenceIsSaidOnlyOfAnArchiveThatHoldsSomething(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	d := deps(t, s, "lz4", io.Discard)
	dest := filepath.Join(t.TempDir(), "X")
	err := Fetch(t.Context(), d, FetchOptions{segmentTwo, dest, time.Minute, ""})
	var hint interface{ Hint() string }
	if err == nil || errors.Is(err, ErrAbsent) || !strings.Contains(err.Error(), "holds no archive at all") || !errors.As(err, &hint) {
		t.Errorf("an empty archive: %v", err)
	}
	mustPush(t, d, segmentTwo, segment(2, cluster, 1, 1))
	if err := Fetch(t.Context(), d, FetchOptions{"00000002.history", dest, time.Minute, ""}); !errors.Is(err, ErrAbsent) {
		t.Errorf("a history file: %v", err)
	}
}

func TestDamagedObjectsNeverReachTheDestination(t *testing.T) {
	t.Parallel()
	content := segment(2, cluster, 1, 1)
	r := rand.New(rand.NewPCG(15, 1))
	for method, ext := range map[string]string{"lz4": ".lz4", "zstd": ".zst", "lzma": ".lzma", "brotli": ".br", "none": ""} {
		s := storagetest.NewMemory()
		d := deps(t, s, method, io.Discard)
		mustPush(t, d, segmentTwo, content)
		key := "wal_005/" + segmentTwo + ext
		good := object(t, s, key)
		bad := map[string][]byte{"empty": {}, "one byte": good[:1], "without its end": good[:len(good)-1], "extended": append(bytes.Clone(good), "more"...),
			"another file": []byte("<html>503 Service Unavailable</html>")}
		for range 6 {
			n := r.IntN(len(good))
			bad[fmt.Sprintf("cut at %d", n)] = good[:n]
			if method == "lz4" || method == "zstd" {
				flipped := bytes.Clone(good)
				flipped[n] ^= 1 << r.IntN(8)
				bad[fmt.Sprintf("bit flipped at %d", n)] = flipped
			}
		}
		if method == "none" {
			bad["another segment's content"] = segment(3, cluster, 1, 1)
		}
		for what, b := range bad {
			synctest.Test(t, func(t *testing.T) {
				if err := s.Put(t.Context(), key, bytes.NewReader(b)); err != nil {
					t.Fatal(err)
				}
				dir := t.TempDir()
				began := time.Now()
				err := Fetch(t.Context(), d, FetchOptions{segmentTwo, filepath.Join(dir, "X"), time.Hour, ""})
				if err == nil || errors.Is(err, ErrAbsent) {
					t.Errorf("%s, %s: %v", method, what, err)
				}
				if spent := time.Since(began); spent > 5*time.Second {
					t.Errorf("%s, %s: given up after %s only: %v", method, what, spent, err)
				}
				if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
					t.Errorf("%s, %s: left %v, %v", method, what, left, err)
				}
			})
		}
	}
}

func TestHistoryFilesAreChecked(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	d := deps(t, s, "none", io.Discard)
	mustPush(t, d, "00000002.history", []byte(history))
	if err := s.Put(t.Context(), "wal_005/00000003.history", strings.NewReader("<html>")); err != nil {
		t.Fatal(err)
	}
	dest := filepath.Join(t.TempDir(), "X")
	if err := Fetch(t.Context(), d, FetchOptions{"00000003.history", dest, time.Minute, ""}); !errors.Is(err, errContent) {
		t.Errorf("%v", err)
	}
	if err := Fetch(t.Context(), d, FetchOptions{"00000002.history", dest, time.Minute, ""}); err != nil {
		t.Error(err)
	}
}

func TestADestinationThatExistsIsKept(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	d := deps(t, s, "lz4", io.Discard)
	content := segment(2, cluster, 1, 1)
	mustPush(t, d, segmentTwo, content)
	dir := t.TempDir()
	same := write(t, filepath.Join(dir, "same"), content)
	if err := Fetch(t.Context(), d, FetchOptions{segmentTwo, same, time.Minute, ""}); err != nil {
		t.Error(err)
	}
	for _, there := range [][]byte{segment(2, cluster, 1, 2), {}, content[:100], append(bytes.Clone(content), 0)} {
		other := write(t, filepath.Join(dir, "other"), there)
		err := Fetch(t.Context(), d, FetchOptions{segmentTwo, other, time.Minute, ""})
		if err == nil || !strings.Contains(err.Error(), "exists already with other content") {
			t.Errorf("%d bytes are there: %v", len(there), err)
		}
		if got, err := os.ReadFile(other); err != nil || !bytes.Equal(got, there) {
			t.Errorf("what was there was changed, %v", err)
		}
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "target"), link); err != nil {
		t.Fatal(err)
	}
	if err := Fetch(t.Context(), d, FetchOptions{segmentTwo, link, time.Minute, ""}); err == nil {
		t.Error("a symbolic link was written through")
	}
	err := Fetch(t.Context(), d, FetchOptions{segmentTwo, filepath.Join(dir, "no", "such", "directory"), time.Minute, ""})
	if err == nil || errors.Is(err, ErrAbsent) {
		t.Errorf("no directory for the destination: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 3 {
		t.Errorf("left %v, %v", left, err)
	}
}

// A file system without unnamed files gets a named one, which does not stay either.
func TestANamedTemporaryFileGoes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, complete := range []bool{true, false} {
		f, err := os.CreateTemp(dir, ".walden-*.tmp")
		if err != nil {
			t.Fatal(err)
		}
		tmp := &temporary{f, true}
		if complete {
			if err := tmp.publish(filepath.Join(dir, "X"), server{}); err != nil {
				t.Error(err)
			}
		}
		tmp.discard()
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != "X" {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestDeadlinesAreKeptAndExplained(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		signal string
		limit  time.Duration
		want   time.Duration
	}{{"recovery.signal", 5 * time.Minute, 5 * time.Minute}, {"standby.signal", 5 * time.Minute, standbyPatience}, {"standby.signal", time.Second, time.Second}} {
		for _, kind := range []storagetest.Kind{storagetest.Before, storagetest.Hang} {
			synctest.Test(t, func(t *testing.T) {
				d := deps(t, storagetest.NewFault(storagetest.NewMemory(), storagetest.Rule{Kind: kind}), "lz4", io.Discard)
				dir := dataDir(t, 0, c.signal)
				began := time.Now()
				err := Fetch(t.Context(), d, FetchOptions{segmentTwo, filepath.Join(dir, "pg_wal", "X"), c.limit, ""})
				if spent := time.Since(began); spent != c.want {
					t.Errorf("%s: ended after %s instead of %s", c.signal, spent, c.want)
				}
				if text := fmt.Sprintf("fetching %s took longer than %s", segmentTwo, c.want); err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("%s: %v does not say %q", c.signal, err, text)
				}
				if kind == storagetest.Before && !errors.Is(err, storagetest.ErrInjected) {
					t.Errorf("%s: the last cause is not named: %v", c.signal, err)
				}
			})
		}
	}
	synctest.Test(t, func(t *testing.T) { // between two attempts of the storage, which tries again by itself
		hanging := storagetest.NewFault(storagetest.NewMemory(), storagetest.Rule{Kind: storagetest.Hang})
		dest := filepath.Join(dataDir(t, 0, "recovery.signal"), "pg_wal", "X")
		err := Fetch(t.Context(), deps(t, retried(hanging), "lz4", io.Discard), FetchOptions{segmentTwo, dest, 35 * time.Second, ""})
		if err == nil || !strings.Contains(err.Error(), "took longer than 35s") || !strings.Contains(err.Error(), "no progress for 10s") {
			t.Errorf("a fetch whose storage hangs: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		d := deps(t, storagetest.NewFault(storagetest.NewMemory(), storagetest.Rule{Kind: storagetest.Hang}), "lz4", io.Discard)
		path := write(t, filepath.Join(t.TempDir(), segmentTwo), segment(2, cluster, 1, 1))
		began := time.Now()
		err := Push(t.Context(), d, PushOptions{Path: path, Timeout: 7 * time.Second})
		var hint interface{ Hint() string }
		if time.Since(began) != 7*time.Second || err == nil || !strings.Contains(err.Error(), "took longer than 7s") || !errors.As(err, &hint) {
			t.Errorf("a push that hangs: after %s: %v", time.Since(began), err)
		}
	})
}

func TestFailuresThatDoNotPassAreNotRepeated(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{fs.ErrPermission, storage.Permanent(errors.New("wrong key"))} {
		synctest.Test(t, func(t *testing.T) {
			d := deps(t, storagetest.NewFault(storagetest.NewMemory(), storagetest.Rule{Err: cause}), "lz4", io.Discard)
			began := time.Now()
			err := Fetch(t.Context(), d, FetchOptions{segmentTwo, filepath.Join(t.TempDir(), "X"), time.Hour, ""})
			if !errors.Is(err, cause) || time.Since(began) > 0 {
				t.Errorf("after %s: %v", time.Since(began), err)
			}
		})
	}
}

func TestACancelledFetchEndsAtOnce(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the server stops")
	cancel(cause)
	d := deps(t, storagetest.NewMemory(), "lz4", io.Discard)
	if err := Fetch(ctx, d, FetchOptions{segmentTwo, filepath.Join(t.TempDir(), "X"), time.Hour, ""}); err == nil || errors.Is(err, ErrAbsent) {
		t.Errorf("%v", err)
	}
}

func TestRecoveryStateFollowsTheSignalFiles(t *testing.T) {
	for _, c := range []struct {
		signals []string
		want    State
	}{
		{nil, NotInRecovery},
		{[]string{"recovery.signal"}, ArchiveRecovery},
		{[]string{"standby.signal"}, Standby},
		{[]string{"recovery.signal", "standby.signal"}, Standby},
	} {
		dir := dataDir(t, 0, c.signals...)
		t.Chdir(t.TempDir())
		if got := RecoveryState(filepath.Join(dir, "pg_wal", "RECOVERYXLOG")); got != c.want {
			t.Errorf("%v, by the destination: %d, want %d", c.signals, got, c.want)
		}
		if got := RecoveryState("pg_wal/RECOVERYXLOG"); got != NotInRecovery {
			t.Errorf("%v, elsewhere: %d", c.signals, got)
		}
		t.Chdir(dir)
		for _, dest := range []string{"pg_wal/RECOVERYXLOG", "./pg_wal/RECOVERYXLOG", filepath.Join(t.TempDir(), "X")} {
			if got := RecoveryState(dest); got != c.want {
				t.Errorf("%v, %s, by the working directory: %d, want %d", c.signals, dest, got, c.want)
			}
		}
	}
}

func TestASegmentOfAnotherClusterIsNotFetched(t *testing.T) {
	s := storagetest.NewMemory()
	d := deps(t, s, "lz4", io.Discard)
	mustPush(t, d, segmentTwo, segment(2, cluster, 1, 1))
	for _, c := range []struct {
		system uint64
		refuse bool
	}{{cluster, false}, {cluster + 1, true}, {0, false}} {
		dir := dataDir(t, c.system, "recovery.signal")
		t.Chdir(dir)
		err := Fetch(t.Context(), d, FetchOptions{segmentTwo, "pg_wal/RECOVERYXLOG", time.Hour, ""})
		if errors.Is(err, errWrongCluster) != c.refuse || err != nil != c.refuse || errors.Is(err, ErrAbsent) {
			t.Errorf("a data directory with system identifier %d: %v", c.system, err)
		}
		if exists("pg_wal/RECOVERYXLOG") == c.refuse {
			t.Errorf("a data directory with system identifier %d: the destination exists: %v", c.system, !c.refuse)
		}
		if err := os.RemoveAll("pg_wal/RECOVERYXLOG"); err != nil {
			t.Fatal(err)
		}
		// The destination's own directory tells when the command runs elsewhere, as pg_rewind runs it.
		t.Chdir(t.TempDir())
		if err := Fetch(t.Context(), d, FetchOptions{segmentTwo, filepath.Join(dir, "pg_wal", "X"), time.Hour, ""}); err != nil != c.refuse {
			t.Errorf("from elsewhere, system identifier %d: %v", c.system, err)
		}
	}
}

// Nothing that an archive decompresses to may fill the disk that the destination lies on.
func TestNoMoreIsWrittenThanTheFileCanHave(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	d := deps(t, s, "zstd", io.Discard)
	bomb := func(head []byte) io.Reader {
		return io.MultiReader(bytes.NewReader(head), io.LimitReader(zeros{}, 256<<20))
	}
	for name, head := range map[string][]byte{
		segmentTwo: segment(2, cluster, 1, 1), segmentTwo + ".partial": segment(2, cluster, 1, 1),
		"00000002.history": []byte(history), segmentTwo + ".00000028.backup": []byte("START WAL LOCATION"),
	} {
		if _, err := d.Catalog.WAL().PutNew(t.Context(), name, func(w io.Writer) error {
			_, err := io.Copy(w, bomb(head))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(t.TempDir(), "X"))
		if err != nil {
			t.Fatal(err)
		}
		r, err := d.Catalog.WAL().Open(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		_, err = copyChecked(t.Context(), d, &temporary{f, false}, r, FetchOptions{Name: name, Dest: f.Name()})
		if !errors.Is(err, errContent) || !strings.Contains(err.Error(), "it has more than 1048576 bytes") {
			t.Errorf("%s: %v", name, err)
		}
		if info, err := f.Stat(); err != nil || info.Size() > textLimit+copySize {
			t.Errorf("%s: %d bytes were written, %v", name, info.Size(), err)
		}
		_, _ = r.Close(), f.Close() // an object that was not read to its end may complain
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// Absence ends archive recovery for good, so it is not said where the archive holds what was archived later.
func TestAGapIsNotTheEndOfTheArchive(t *testing.T) {
	t.Parallel()
	name := func(timeline uint32, number uint64) string { return fmt.Sprintf("%08X00000000%08X", timeline, number) }
	for _, c := range []struct {
		what, asked string
		archived    []string
		end         string
		gap         bool // in archive recovery; a standby asks again
	}{
		{"the next one", name(1, 5), []string{name(1, 3), name(1, 4)}, "", false},
		{"a later one is there", name(1, 4), []string{name(1, 3), name(1, 5)}, "", true},
		{"a much later one is there", name(1, 4), []string{name(1, 300)}, "", true},
		{"the next one, and a child goes on", name(1, 5), []string{name(1, 4), name(2, 5), name(2, 6)}, "", false},
		{"the first one of a child", name(2, 4), []string{name(1, 4), name(1, 5)}, "", false},
		{"the first one of a child that goes on", name(2, 4), []string{name(1, 4), name(2, 5)}, "", true},
		{"it was left and is partial", name(1, 4), []string{name(1, 3), name(1, 4) + ".partial", name(2, 4)}, "", false},
		{"a later partial one tells nothing", name(1, 4), []string{name(1, 5) + ".partial"}, "", false},
		{"a gap before which recovery is to end", name(1, 4), []string{name(1, 5)}, name(1, 4), false},
		{"a segment behind that", name(2, 7), []string{name(2, 8)}, name(1, 4), false},
		{"a gap before that", name(1, 3), []string{name(1, 5)}, name(1, 4), true},
		{"a history that never was", "00000002.history", []string{name(1, 5)}, "", false},
		{"a history whose segments are there", "00000003.history", []string{name(1, 5), name(3, 5)}, "", true},
		{"the same, and it is not to be followed", "00000003.history", []string{name(1, 5), name(3, 5)}, "00000002.history", false},
		{"the cluster's own history, from an earlier archive", "00000002.history", []string{name(2, 5)}, "", false},
	} {
		s := storagetest.NewMemory()
		for _, file := range c.archived {
			if err := s.Put(t.Context(), "wal_005/"+file+".lz4", strings.NewReader("x")); err != nil {
				t.Fatal(err)
			}
		}
		d := deps(t, s, "lz4", io.Discard)
		for _, signal := range []string{"recovery.signal", "standby.signal", "none"} {
			synctest.Test(t, func(t *testing.T) {
				dir := dataDir(t, cluster, signal)
				write(t, filepath.Join(dir, pgdata.ControlName), controlOn(cluster, 2))
				err := Fetch(t.Context(), d, FetchOptions{c.asked, filepath.Join(dir, "pg_wal", "X"), time.Minute, c.end})
				if want := c.gap && signal == "recovery.signal"; errors.Is(err, errGap) != want || errors.Is(err, ErrAbsent) == want {
					t.Errorf("%s, %s: %v", c.what, signal, err)
				}
				if errors.Is(err, errGap) && !strings.Contains(strings.Join(hint.Of(err), " "), "WALDEN_END_RECOVERY_BEFORE="+c.asked) {
					t.Errorf("%s: no hint: %v", c.what, hint.Of(err))
				}
			})
		}
	}
}

// A server with a recovery target opens the database only when it was reached, however much of the log it gets. It may look for segments
// behind its target: PostgreSQL 15 and newer read ahead of what they replay.
func TestAServerWithARecoveryTargetMayReadUpToAGap(t *testing.T) {
	t.Parallel()
	name := func(timeline uint32, number uint64) string { return fmt.Sprintf("%08X00000000%08X", timeline, number) }
	for _, c := range []struct {
		what, asked string
		archived    []string
		gap         bool // although there is a target
	}{
		{"a later one is there", name(1, 4), []string{name(1, 3), name(1, 5)}, false},
		{"a later one of a child is there", name(2, 5), []string{name(1, 3), name(2, 4), name(2, 6)}, false},
		{"the parent's of the same place is there, in which the log goes on otherwise", name(2, 4), []string{name(1, 4), name(2, 5)}, true},
		{"a history whose segments are there", "00000003.history", []string{name(1, 5), name(3, 5)}, true},
	} {
		s := storagetest.NewMemory()
		for _, file := range c.archived {
			if err := s.Put(t.Context(), "wal_005/"+file+".lz4", strings.NewReader("x")); err != nil {
				t.Fatal(err)
			}
		}
		var log bytes.Buffer
		d := deps(t, s, "lz4", &log)
		for _, target := range []string{"", "recovery_target = 'immediate'\n", "recovery_target = ''\n"} {
			synctest.Test(t, func(t *testing.T) {
				dir := dataDir(t, cluster, "recovery.signal")
				write(t, filepath.Join(dir, pgdata.ControlName), controlOn(cluster, 2))
				write(t, filepath.Join(dir, "postgresql.auto.conf"), []byte(target))
				log.Reset()
				err := Fetch(t.Context(), d, FetchOptions{c.asked, filepath.Join(dir, "pg_wal", "X"), time.Minute, ""})
				want := c.gap || !strings.Contains(target, "immediate")
				if errors.Is(err, errGap) != want || errors.Is(err, ErrAbsent) == want {
					t.Errorf("%s, %q: %v", c.what, target, err)
				}
				if !want && !strings.Contains(log.String(), "target=recovery_target=immediate") && !strings.Contains(log.String(), `target="recovery_target=immediate"`) {
					t.Errorf("%s: the log does not say why:\n%s", c.what, log.String())
				}
			})
		}
	}
}

// A segment that another process is archiving just now, after its successor, is no gap.
func TestAGapThatClosesIsNone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inner := storagetest.NewMemory()
		d := deps(t, inner, "lz4", io.Discard)
		mustPush(t, d, "000000010000000000000003", segment(3, cluster, 1, 1))
		go func() {
			time.Sleep(firstPause / 4)
			if err := push(t, d, segmentTwo, segment(2, cluster, 1, 1)); err != nil {
				t.Error(err)
			}
		}()
		dir := dataDir(t, cluster, "recovery.signal")
		if err := Fetch(t.Context(), d, FetchOptions{segmentTwo, filepath.Join(dir, "pg_wal", "X"), time.Minute, ""}); err != nil {
			t.Error(err)
		}
	})
}

// Whoever asks the archive about a second file must not take that answer for the first one's.
func TestAnObjectThatVanishesWhileItIsReadWasThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inner := storagetest.NewMemory()
		mustPush(t, deps(t, inner, "none", io.Discard), segmentTwo, segment(2, cluster, 1, 1))
		fault := storagetest.NewFault(inner, storagetest.Rule{Kind: storagetest.Half, Err: fs.ErrNotExist,
			Match: func(c storagetest.Call) bool { return c.Op == storagetest.OpGet }})
		err := Fetch(t.Context(), deps(t, fault, "none", io.Discard), FetchOptions{segmentTwo, filepath.Join(t.TempDir(), "X"), time.Minute, ""})
		if err == nil || errors.Is(err, ErrAbsent) {
			t.Errorf("%v", err)
		}
	})
}

// A segment in which the log just ends is the last one, or it has lost its end.
func TestALogThatEndsInsideOfASegmentIsTheLastOne(t *testing.T) {
	t.Parallel()
	content := segment(2, cluster, 1, 1)
	clear(content[segmentSize/2:])
	s := storagetest.NewMemory()
	var log bytes.Buffer
	d := deps(t, s, "lz4", &log)
	mustPush(t, d, segmentTwo, content)
	get := func() error {
		return Fetch(t.Context(), d, FetchOptions{segmentTwo, filepath.Join(t.TempDir(), "X"), time.Minute, ""})
	}
	if err := get(); err != nil || !strings.Contains(log.String(), "is not full; recovery will end in it") {
		t.Errorf("the last one: %v\n%s", err, log.String())
	}
	mustPush(t, d, "000000020000000000000003", segment(3, cluster, 1, 1))
	if err := get(); err != nil {
		t.Errorf("another timeline goes on: %v", err)
	}
	mustPush(t, d, "000000010000000000000003", segment(3, cluster, 1, 1))
	if err := get(); !errors.Is(err, errContent) {
		t.Errorf("a later one is archived: %v", err)
	}
}

// What the header says must be what the server that asks can read, for it would take anything else for the end of the log.
func TestASegmentThatTheServerCannotReadIsNotFetched(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what, version string
		change        func(b []byte)
		ok            bool
	}{
		{"its own", "15", func([]byte) {}, true},
		{"of another version", "16", func([]byte) {}, false},
		{"of no version", "15", func(b []byte) { b[0] ^= 1 }, false},
		{"of a version to come, for it", "99", func(b []byte) {
			for page := 0; page < len(b); page += 8192 {
				b[page] ^= 1
			}
		}, true},
		{"with a page of zeros", "15", func(b []byte) { clear(b[8192:16384]) }, false},
		{"with a page of another place", "15", func(b []byte) { b[8192+10]++ }, false},
		{"with a record that is cut off", "15", func(b []byte) { b[8192+16]++ }, false},
	} {
		b := segment(2, cluster, 1, 1)
		c.change(b)
		s := storagetest.NewMemory()
		if err := s.Put(t.Context(), "wal_005/"+segmentTwo, bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		dir := dataDir(t, cluster, "recovery.signal")
		write(t, filepath.Join(dir, "PG_VERSION"), []byte(c.version+"\n"))
		err := Fetch(t.Context(), deps(t, s, "none", io.Discard), FetchOptions{segmentTwo, filepath.Join(dir, "pg_wal", "X"), time.Minute, ""})
		if (err == nil) != c.ok || !c.ok && !errors.Is(err, errContent) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}
