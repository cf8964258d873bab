package restore

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zeebo/xxh3"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/codec"
	"gitlab.com/walden-pg/walden/internal/crypt"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
	"gitlab.com/walden-pg/walden/internal/wal"
)

const (
	cluster    = 7710983920749980543
	backupName = "base_000000010000000000000002"
	backupDir  = "basebackups_005/" + backupName + "/"
	partsDir   = backupDir + "tar_partitions/"
	label      = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n"
)

// control makes a control file of PostgreSQL 15 (ControlFileData, pg_control.h), as far as it is read.
func control(system uint64) []byte {
	b := make([]byte, pgdata.ControlSize)
	le := binary.LittleEndian
	le.PutUint64(b[0:], system)
	le.PutUint32(b[8:], 1300)
	le.PutUint32(b[204:], 8)
	le.PutUint64(b[208:], math.Float64bits(1234567))
	le.PutUint32(b[216:], 8192)
	le.PutUint32(b[220:], 131072)
	le.PutUint32(b[224:], 8192)
	le.PutUint32(b[228:], 16<<20)
	le.PutUint32(b[288:], crc32.Checksum(b[:288], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// entry is what goes into a tar.
type entry struct {
	name string
	kind byte // 0 is a regular file
	body string
	link string
}

// tarOf writes entries as they are, without the end mark.
func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: 0o600, Linkname: e.link, Size: int64(len(e.body)), ModTime: time.Unix(1e9, 0)}
		if e.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if e.kind == tar.TypeDir {
			h.Mode = 0o700
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("%q: %v", e.name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, body string) entry { return entry{name: name, body: body} }
func dir(name string) entry        { return entry{name: name, kind: tar.TypeDir} }

// base is a small data directory.
func base() []entry {
	return []entry{
		dir(""), file("PG_VERSION", "15\n"), dir("base"), dir("base/1"), file("base/1/1259", strings.Repeat("page", 5000)),
		file("base/1/1259_fsm", strings.Repeat("\x00", 24576)), dir("global"), file("global/1262", "databases"),
		dir("pg_wal"), dir("pg_wal/archive_status"), dir("pg_tblspc"), file("empty", ""),
	}
}

// want is what a restored data directory must hold: name → content; directories end in a slash, links have their target behind "->".
func want(entries ...entry) map[string]string {
	m := map[string]string{"global/": "", "pg_tblspc/": "", "pg_wal/": "", "backup_label": label, "global/pg_control": string(control(cluster))}
	for _, e := range entries {
		switch {
		case e.kind == tar.TypeDir && e.name != "":
			m[e.name+"/"] = ""
		case e.kind == tar.TypeSymlink:
			m[e.name] = "->" + e.link
		case e.kind == 0:
			m[e.name] = e.body
		}
	}
	return m
}

// have reads a directory tree in the form of want.
func have(t testing.TB, root string) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			m[name+"/"] = ""
		case e.Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			m[name] = "->" + target
			return err
		default:
			b, err := os.ReadFile(p)
			m[name] = string(b)
			return err
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return m
}

func compare(t testing.TB, what string, got, want map[string]string) {
	t.Helper()
	for name := range want {
		if _, ok := got[name]; !ok {
			t.Errorf("%s: %q is missing", what, name)
		} else if got[name] != want[name] {
			t.Errorf("%s: %q has %.60q, want %.60q", what, name, got[name], want[name])
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %q is too much", what, name)
		}
	}
}

func put(t testing.TB, s storage.Store, key string, b []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
}

// foreign makes an archive as other writers leave it: without a manifest. Part names have no extension of a codec. files are the
// names in files_metadata.json, nil for no such document. The control file's and the label's tars are added.
func foreign(t testing.TB, sentinel string, files []string, parts ...[]byte) storage.Store {
	t.Helper()
	s := storagetest.NewMemory()
	if sentinel == "" {
		sentinel = fmt.Sprintf(`{"LSN":33554472,"PgVersion":150020,"FinishLSN":33554688,"SystemIdentifier":%d,"Version":2}`, uint64(cluster))
	}
	put(t, s, "basebackups_005/"+backupName+"_backup_stop_sentinel.json", []byte(sentinel))
	for i, p := range parts {
		put(t, s, fmt.Sprintf("%spart_%03d.tar", partsDir, i+1), p)
	}
	put(t, s, partsDir+"pg_control.tar", tarOf(t, file("/global/pg_control", string(control(cluster)))))
	put(t, s, partsDir+"backup_label.tar", tarOf(t, file("backup_label", label)))
	if files != nil {
		m := map[string]any{}
		for _, name := range files {
			m[name] = map[string]any{"MTime": time.Unix(1e9, 0)}
		}
		b, err := json.Marshal(map[string]any{"Files": m})
		if err != nil {
			t.Fatal(err)
		}
		put(t, s, backupDir+"files_metadata.json", b)
	}
	return s
}

// own makes an archive with a manifest. Each part is a list of entries; listed tells which of them the manifest names.
func own(t testing.TB, listed func(entry) bool, parts ...[]entry) storage.Store {
	t.Helper()
	s := storagetest.NewMemory()
	c := open(t, s)
	d, err := c.Begin(t.Context(), catalog.Start{
		LSN: 0x2000028, Timeline: 1, Time: time.Unix(1.7e9, 0), SystemIdentifier: cluster, PgVersion: 150020, SegmentSize: 16 << 20, PageSize: 8192,
		Hostname: "db1", DataDir: "/srv/main", Walden: "test", Compression: "lz4", Encryption: "none",
	})
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) func(io.Writer) error {
		return func(w io.Writer) error { _, err := w.Write(b); return err }
	}
	var contents catalog.Contents
	for i, entries := range parts {
		p, err := d.PutPart(t.Context(), i+1, 1, write(tarOf(t, entries...)))
		if err != nil {
			t.Fatal(err)
		}
		contents.Parts = append(contents.Parts, p)
		for _, e := range entries {
			if !listed(e) {
				continue
			}
			f := catalog.File{Name: e.name, Mode: 0o600, Part: int32(i), Size: int64(len(e.body)), Link: e.link}
			switch e.kind {
			case tar.TypeDir:
				f.Type = catalog.Directory
			case tar.TypeSymlink:
				f.Type = catalog.Symlink
			default:
				f.Hash = xxh3.Hash128([]byte(e.body)).Bytes()
			}
			if _, err := contents.Files.Add(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	if contents.Control, err = d.PutControl(t.Context(), write(tarOf(t, file("global/pg_control", string(control(cluster)))))); err != nil {
		t.Fatal(err)
	}
	if contents.Label, err = d.PutLabel(t.Context(), write(tarOf(t, file("backup_label", label)))); err != nil {
		t.Fatal(err)
	}
	stop := catalog.Stop{LSN: 0x2000100, Time: time.Unix(1.7e9+5, 0), WAL: catalog.WALArchived,
		First: wal.Segment{Timeline: 1, Number: 2}, Last: wal.Segment{Timeline: 1, Number: 2}}
	if _, err := d.Commit(t.Context(), stop, &contents, nil); err != nil {
		t.Fatal(err)
	}
	return s
}

func all(entry) bool { return true }

func open(t testing.TB, s storage.Store) *catalog.Catalog {
	t.Helper()
	c, err := codec.New("lz4", codec.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return catalog.New(repo.New(s, c, crypt.None{}, repo.Options{}), slog.New(slog.DiscardHandler))
}

// watch is a Progress that calls back at every write.
type watch struct{ add func() }

func (watch) Begin(int64)   {}
func (w watch) Add(_ int64) { w.add() }
func (watch) End()          {}

// restoreTo restores the backup in s, and fails the test if a control file stands before the end or after a failure.
func restoreTo(t testing.TB, s storage.Store, o Options) (Report, error) {
	t.Helper()
	c := open(t, s)
	b, err := c.Find(t.Context(), backupName)
	if err != nil {
		return Report{}, err
	}
	o.Workers = 3
	controlName := filepath.Join(o.Dir, pgdata.ControlName)
	report, err := Fetch(t.Context(), Deps{c, slog.New(slog.DiscardHandler), watch{func() {
		if _, err := os.Lstat(controlName); err == nil {
			t.Error("the control file stands while others are written")
		}
	}}}, b, o)
	if _, statErr := os.Lstat(controlName); err != nil && statErr == nil {
		t.Errorf("the restore failed (%v), and there is a control file", err)
	}
	if _, statErr := os.Lstat(filepath.Join(o.Dir, markFile)); err == nil && statErr == nil {
		t.Error("the mark of an unfinished restore is still there")
	}
	return report, err
}

func TestBackupsWithAndWithoutManifestAreRestored(t *testing.T) {
	t.Parallel()
	link := entry{name: "base/link", kind: tar.TypeSymlink, link: "1/1259"}
	entries := append(base(), link)
	rename := func(prefix, slash string) []entry {
		var renamed []entry
		for _, e := range entries {
			if e.kind == tar.TypeDir {
				e.name += slash
			}
			e.name = prefix + e.name
			if strings.Trim(e.name, "/") == "" {
				e.name = "./"
			}
			renamed = append(renamed, e)
		}
		return renamed
	}
	var names []string
	for _, e := range entries {
		names = append(names, "/"+e.name)
	}
	zeros := func(n int) []byte { return append(tarOf(t, rename("/", "")...), make([]byte, n)...) }
	for what, s := range map[string]storage.Store{
		"with a manifest":           own(t, all, entries),
		"with a manifest, parts":    own(t, all, entries[:3], entries[3:9], entries[9:]),
		"leading slash, no end":     foreign(t, "", names, zeros(0)),
		"with the end mark":         foreign(t, "", names, zeros(1024)),
		"with trailing zeros":       foreign(t, "", names, zeros(10240+512)),
		"leading dot, slash at end": foreign(t, "", names, tarOf(t, rename("./", "/")...)),
		"plain names":               foreign(t, "", names, tarOf(t, rename("", "/")...)),
		"without a list":            foreign(t, "", nil, zeros(1024)),
		"list embedded": foreign(t, `{"LSN":33554472,"Files":{"/PG_VERSION":{},"/base/1/1259":{},"/base/1/1259_fsm":{},"/global/1262":{},"/empty":{}}}`,
			nil, zeros(1024)),
		"a leading WAL-G null list": foreign(t, `{"LSN":33554472,"Files":null}`, nil, zeros(0)),
	} {
		target := filepath.Join(t.TempDir(), "a", "b")
		report, err := restoreTo(t, s, Options{Dir: target})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		compare(t, what, have(t, target), want(entries...))
		if report.Files < 6 {
			t.Errorf("%s: reports %d files", what, report.Files)
		}
		for name, mode := range map[string]fs.FileMode{"": 0o700, "base": 0o700, "PG_VERSION": 0o600, pgdata.ControlName: 0o600} {
			if info, err := os.Stat(filepath.Join(target, name)); err != nil || info.Mode().Perm() != mode {
				t.Errorf("%s: %q has mode %v, %v", what, name, info.Mode(), err)
			}
		}
	}
}

func TestHostileEntriesDoNotLeaveTheTarget(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 300)
	for what, c := range map[string]struct {
		entries []entry
		fails   bool
	}{
		"parent":                        {[]entry{file("../canary", "bad")}, true},
		"parent inside":                 {[]entry{file("base/../../canary", "bad")}, true},
		"parent after a slash":          {[]entry{file("/../canary", "bad")}, true},
		"parent directory":              {[]entry{dir("../made")}, true},
		"parent link":                   {[]entry{{name: "../canary2", kind: tar.TypeSymlink, link: "x"}}, true},
		"absolute is below the target":  {[]entry{file("/etc/passwd", "text")}, false},
		"hard link is ignored":          {[]entry{{name: "hard", kind: tar.TypeLink, link: "../canary"}}, false},
		"devices are ignored":           {[]entry{{name: "null", kind: tar.TypeChar}, {name: "disk", kind: tar.TypeBlock}, {name: "pipe", kind: tar.TypeFifo}}, false},
		"file through a link":           {[]entry{{name: "out", kind: tar.TypeSymlink, link: ".."}, file("out/canary", "bad")}, true},
		"file through a link, reversed": {[]entry{file("out/canary", "bad"), {name: "out", kind: tar.TypeSymlink, link: ".."}}, true},
		"directory through a link":      {[]entry{{name: "out", kind: tar.TypeSymlink, link: ".."}, dir("out/made")}, true},
		"link in place of a directory":  {[]entry{{name: "global", kind: tar.TypeSymlink, link: ".."}}, true},
		"link in place of a file":       {[]entry{{name: "PG_VERSION", kind: tar.TypeSymlink, link: "../canary"}}, true},
		"label as a link":               {[]entry{{name: "backup_label", kind: tar.TypeSymlink, link: "../canary"}}, true},
		"control file as a directory":   {[]entry{dir("global/pg_control")}, true},
		"file twice":                    {[]entry{file("twice", "one"), file("twice", "two")}, true},
		"file twice, spelled otherwise": {[]entry{file("twice", "one"), file("./twice", "two")}, true},
		"file and directory":            {[]entry{file("base", "text")}, true},
		"file below a file":             {[]entry{file("PG_VERSION/x", "text")}, true},
		"upper case is another name":    {[]entry{file("pg_version", "other")}, false},
		"long element":                  {[]entry{file(long, "text")}, true},
		"huge label":                    {[]entry{file("backup_label", strings.Repeat("x", 2<<20))}, true},
		"empty name":                    {[]entry{file("", "text")}, true},
		"the mark of this program":      {[]entry{file(markFile, `{"directories":["/"]}`)}, false},
		"the temporary control file":    {[]entry{file("global/pg_control.tmp", "text")}, false},
	} {
		outside := t.TempDir()
		canary := filepath.Join(outside, "canary")
		if err := os.WriteFile(canary, []byte("good"), 0o600); err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(outside, "data")
		s := foreign(t, "", nil, tarOf(t, append(base(), c.entries...)...))
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			if _, err := restoreTo(t, s, Options{Dir: target}); (err != nil) != c.fails {
				t.Errorf("%s: %v", what, err)
			}
			if spent := time.Since(began); spent > 2*time.Second {
				t.Errorf("%s: given up after %s only", what, spent)
			}
		})
		if b, err := os.ReadFile(canary); err != nil || string(b) != "good" {
			t.Errorf("%s: the canary is %q, %v", what, b, err)
		}
		if left, err := os.ReadDir(outside); err != nil || len(left) > 2 {
			t.Errorf("%s: there are %v beside the target, %v", what, left, err)
		}
	}
}

// raw changes a tar where archive/tar would refuse to write it.
func TestImpossibleTarHeadersAreRefused(t *testing.T) {
	t.Parallel()
	good := tarOf(t, append(base(), file("last", "text"))...)
	header := bytes.LastIndex(good, []byte("last\x00"))
	seal := func(b []byte) []byte {
		copy(b[header+148:], "        ")
		sum := 0
		for _, c := range b[header : header+512] {
			sum += int(c)
		}
		copy(b[header+148:], fmt.Sprintf("%06o\x00 ", sum))
		return b
	}
	edit := func(offset int, text string) []byte {
		b := bytes.Clone(good)
		copy(b[header+offset:], text)
		return seal(b)
	}
	for what, b := range map[string][]byte{
		"huge size":          edit(124, "77777777777\x00"),
		"negative size":      edit(124, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
		"wrong checksum":     append(bytes.Clone(good[:header+1]), append([]byte("?"), good[header+2:]...)...),
		"cut in a header":    good[:header+100],
		"cut in a body":      good[:header+514],
		"text after the end": append(append(bytes.Clone(good), make([]byte, 1024)...), "text"...),
		"no tar":             []byte("<html>" + strings.Repeat(" ", 2000)),
	} {
		s := foreign(t, "", nil, b)
		synctest.Test(t, func(t *testing.T) {
			if _, err := restoreTo(t, s, Options{Dir: filepath.Join(t.TempDir(), "data")}); err == nil {
				t.Errorf("%s: accepted", what)
			}
		})
	}
}

func TestWhatTheDocumentsNameMustBeThere(t *testing.T) {
	t.Parallel()
	names := []string{"/PG_VERSION", "/base/1/1259", "/base/1/1259_fsm", "/global/1262", "/empty"}
	ordinary := tarOf(t, base()...)
	without := func(key string, s storage.Store) storage.Store {
		if err := s.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		return s
	}
	with := func(key string, b []byte, s storage.Store) storage.Store {
		put(t, s, key, b)
		return s
	}
	for what, c := range map[string]struct {
		s    storage.Store
		text string
	}{
		"a file":                   {foreign(t, "", append(names, "/base/1/2619"), ordinary), `1 files that it names are in none of its parts, for example "base/1/2619"`},
		"a part":                   {without(partsDir+"part_002.tar.lz4", own(t, all, base()[:5], base()[5:])), "part_002.tar.lz4 is not in"},
		"all parts":                {foreign(t, "", names), "no parts"},
		"the control file's tar":   {without(partsDir+"pg_control.tar", foreign(t, "", names, ordinary)), "pg_control.tar"},
		"the control file":         {with(partsDir+"pg_control.tar", tarOf(t, file("other", "")), foreign(t, "", names, ordinary)), "has no global/pg_control"},
		"the label":                {with(partsDir+"backup_label.tar", tarOf(t), foreign(t, "", names, ordinary)), "has no backup_label"},
		"the label's tar":          {without(partsDir+"backup_label.tar", foreign(t, "", names, ordinary)), "has no backup_label"},
		"the right control file":   {with(partsDir+"pg_control.tar", tarOf(t, file("global/pg_control", string(control(5)))), foreign(t, "", names, ordinary)), "system identifier 5"},
		"a whole control file":     {with(partsDir+"pg_control.tar", tarOf(t, file("global/pg_control", "short")), foreign(t, "", names, ordinary)), "5 bytes"},
		"the manifest":             {without(backupDir+"walden_manifest.json", own(t, all, base())), "walden_manifest.json"},
		"the manifest as it was":   {with(backupDir+"walden_manifest.json", []byte(`{"version":1,"backup":"`+backupName+`","parts":[],"files":[]}`), own(t, all, base())), "SHA-256"},
		"a part's size":            {with(partsDir+"part_001.tar.lz4", []byte("short"), own(t, all, base())), "has 5 bytes in memory"},
		"a file outside the names": {foreign(t, "", []string{"/../x"}, ordinary), "leads outside"},
	} {
		synctest.Test(t, func(t *testing.T) {
			if _, err := restoreTo(t, c.s, Options{Dir: filepath.Join(t.TempDir(), "data")}); err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s is missing: %v does not say %q", what, err, c.text)
			}
		})
	}
	// A file more does no harm, and a list may have lost a name.
	target := filepath.Join(t.TempDir(), "data")
	if _, err := restoreTo(t, foreign(t, "", names, tarOf(t, append(base(), file("base/1/t3_999", "temporary"))...)), Options{Dir: target}); err != nil {
		t.Fatal(err)
	}
	compare(t, "with an unnamed file", have(t, target), want(append(base(), file("base/1/t3_999", "temporary"))...))
}

func TestAFileInTwoPartsIsDamage(t *testing.T) {
	t.Parallel()
	for what, s := range map[string]storage.Store{
		"without a list": foreign(t, "", nil, tarOf(t, append(base(), file("twice", "one"))...), tarOf(t, file("twice", "two"))),
		"with a list":    foreign(t, "", []string{"/twice"}, tarOf(t, append(base(), file("twice", "one"))...), tarOf(t, file("twice", "two"))),
		"same content":   foreign(t, "", nil, tarOf(t, append(base(), file("twice", "one"))...), tarOf(t, file("twice", "one"))),
		"links":          foreign(t, "", nil, tarOf(t, append(base(), entry{name: "l", kind: tar.TypeSymlink, link: "a"})...), tarOf(t, entry{name: "l", kind: tar.TypeSymlink, link: "b"})),
	} {
		synctest.Test(t, func(t *testing.T) {
			if _, err := restoreTo(t, s, Options{Dir: filepath.Join(t.TempDir(), "data")}); !errors.Is(err, errContent) || !strings.Contains(err.Error(), "appears twice") {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
}

// objects copies an archive, so that a test can change it.
func objects(t testing.TB, s storage.Store) map[string][]byte {
	t.Helper()
	m := map[string][]byte{}
	var walk func(dir string)
	walk = func(dir string) {
		for o, err := range s.List(t.Context(), dir) {
			if err != nil {
				t.Fatal(err)
			}
			if o.IsDir() {
				walk(o.Key)
				continue
			}
			r, err := s.Get(t.Context(), o.Key)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(r)
			if err := errors.Join(err, r.Close()); err != nil {
				t.Fatal(err)
			}
			m[o.Key] = b
		}
	}
	walk("")
	return m
}

// A backup with a manifest is restored exactly, or not at all.
func TestOneWrongBitAnywhereIsNoticedOrHarmless(t *testing.T) {
	t.Parallel()
	good := objects(t, own(t, all, base()[:5], base()[5:]))
	keys := slices.Sorted(maps.Keys(good))
	r := rand.New(rand.NewPCG(3, 14))
	wanted := want(base()...)
	noticed, cases := 0, testenv.Pick(100, 3000)
	for i := range cases {
		key := keys[i%len(keys)]
		synctest.Test(t, func(t *testing.T) {
			s := storagetest.NewMemory()
			for k, b := range good {
				if k == key {
					b = bytes.Clone(b)
					b[r.IntN(len(b))] ^= 1 << r.IntN(8)
				}
				put(t, s, k, b)
			}
			target := filepath.Join(t.TempDir(), "data")
			if _, err := restoreTo(t, s, Options{Dir: target}); err != nil {
				noticed++
				return
			}
			compare(t, fmt.Sprintf("case %d, %s", i, key), have(t, target), wanted)
		})
	}
	if noticed < cases/3 {
		t.Errorf("only %d of %d were noticed", noticed, cases)
	}
}

func TestRestoreUnderEveryFault(t *testing.T) {
	t.Parallel()
	s := own(t, all, base()[:5], base()[5:])
	wanted := want(base()...)
	for kind := storagetest.Before; kind <= storagetest.Stale; kind++ {
		for n, more := 0, true; more; n++ {
			synctest.Test(t, func(t *testing.T) {
				fault := storagetest.NewFault(s, storagetest.Rule{Kind: kind, Nth: n})
				target := filepath.Join(t.TempDir(), "data")
				stack := storage.WithRetry(storage.WithStallLimit(fault, 10*time.Second), storage.RetryOptions{})
				began := time.Now()
				_, err := restoreTo(t, stack, Options{Dir: target})
				more = fault.Fired()
				if spent := time.Since(began); spent > 5*time.Minute {
					t.Errorf("kind %d, call %d: took %s", kind, n, spent)
				}
				if err == nil {
					compare(t, fmt.Sprintf("kind %d, call %d", kind, n), have(t, target), wanted)
				}
				passing := kind == storagetest.Before || kind == storagetest.Hang
				if err != nil && n > 0 && passing {
					t.Errorf("kind %d, call %d: one failure was not overcome: %v", kind, n, err)
				}
			})
		}
	}
}

func TestAPartIsReadAgainAndDamageIsGivenUpSoon(t *testing.T) {
	t.Parallel()
	s := own(t, all, base())
	isPart := func(c storagetest.Call) bool { return strings.Contains(c.Key, "part_001") }
	for kind, c := range map[storagetest.Kind]struct{ once, always int }{ // how often the part is opened
		storagetest.Half:     {2, 3},
		storagetest.FlipBit:  {2, 2},
		storagetest.Truncate: {2, 2},
	} {
		for nth, opened := range map[int]int{1: c.once, 0: c.always} {
			synctest.Test(t, func(t *testing.T) {
				fault := storagetest.NewFault(s, storagetest.Rule{Kind: kind, Nth: nth, Match: isPart})
				_, err := restoreTo(t, fault, Options{Dir: filepath.Join(t.TempDir(), "data")})
				if (err != nil) != (nth == 0) {
					t.Errorf("kind %d, %d: %v", kind, nth, err)
				}
				got := 0
				for _, call := range fault.Calls() {
					if call.Op == storagetest.OpGet && isPart(call) {
						got++
					}
				}
				if got != opened {
					t.Errorf("kind %d, %d: the part was opened %d times, want %d: %v", kind, nth, got, opened, err)
				}
			})
		}
	}
}

func TestAnUnfinishedRestoreIsRemovedAndNothingElse(t *testing.T) {
	t.Parallel()
	good := own(t, all, base())
	bad := storagetest.NewFault(good, storagetest.Rule{Kind: storagetest.Before, Match: func(c storagetest.Call) bool { return strings.Contains(c.Key, "part_001") }, Err: fs.ErrPermission})
	target := filepath.Join(t.TempDir(), "data")
	_, err := restoreTo(t, bad, Options{Dir: target})
	var hint interface{ Hint() string }
	if err == nil || !errors.As(err, &hint) || !strings.Contains(hint.Hint(), "the same command run again removes it") {
		t.Fatalf("%v", err)
	}
	if m, err := readMark(target); err != nil || m == nil || m.Backup != backupName {
		t.Fatalf("the mark is %v, %v", m, err)
	}
	if err := os.WriteFile(filepath.Join(target, "half a file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := restoreTo(t, good, Options{Dir: target}); err != nil {
		t.Fatal(err)
	}
	compare(t, "the second run", have(t, target), want(base()...))
	before := have(t, target)

	for what, prepare := range map[string]func(dir string){
		"a finished restore":  func(string) {},
		"a mark in a cluster": func(dir string) { writeFile(t, filepath.Join(dir, markFile), `{"backup":"x"}`) },
		"a mark cut off": func(dir string) {
			writeFile(t, filepath.Join(dir, markFile), `{"back`)
			remove(t, filepath.Join(dir, pgdata.ControlName))
		},
		"no control file": func(dir string) {
			remove(t, filepath.Join(dir, markFile))
			remove(t, filepath.Join(dir, pgdata.ControlName))
		},
	} {
		copied := filepath.Join(t.TempDir(), "data")
		if err := os.CopyFS(copied, os.DirFS(target)); err != nil {
			t.Fatal(err)
		}
		prepare(copied)
		there := have(t, copied)
		if _, err := restoreQuietly(t, good, Options{Dir: copied}); err == nil || !strings.Contains(err.Error(), "is not empty") {
			t.Errorf("%s: %v", what, err)
		}
		compare(t, what, have(t, copied), there)
	}
	compare(t, "the first", have(t, target), before)

	// A run that was killed before its mark was written has written nothing else.
	cut := filepath.Join(t.TempDir(), "data")
	writeFile(t, filepath.Join(cut, markFile), `{"back`)
	if _, err := restoreTo(t, good, Options{Dir: cut}); err != nil {
		t.Error(err)
	}
	compare(t, "over a mark cut off, alone", have(t, cut), want(base()...))

	// A tablespace's directory that holds something is refused, also when the data directory bears a mark.
	space := filepath.Join(t.TempDir(), "space")
	writeFile(t, filepath.Join(space, "precious"), "data")
	spaced := foreign(t, spaceSentinel("/srv/space"), nil, tarOf(t, base()...))
	marked := filepath.Join(t.TempDir(), "data")
	writeFile(t, filepath.Join(marked, markFile), `{"backup":"x","directories":["/elsewhere"]}`)
	_, err = restoreTo(t, spaced, Options{Dir: marked, Mappings: []Mapping{{"/srv/space", space}}})
	if err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(filepath.Join(space, "precious")); err != nil || string(b) != "data" {
		t.Errorf("%q, %v", b, err)
	}
}

// restoreQuietly is restoreTo for a directory that holds a control file from the beginning.
func restoreQuietly(t testing.TB, s storage.Store, o Options) (Report, error) {
	t.Helper()
	c := open(t, s)
	b, err := c.Find(t.Context(), backupName)
	if err != nil {
		t.Fatal(err)
	}
	return Fetch(t.Context(), Deps{c, slog.New(slog.DiscardHandler), watch{func() {}}}, b, o)
}

func writeFile(t testing.TB, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, name string) {
	t.Helper()
	if err := os.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
}

func spaceSentinel(location string) string {
	return fmt.Sprintf(`{"LSN":33554472,"Version":2,"Spec":{"base_prefix":"/srv/main","tablespaces":["16384"],"16384":{"loc":%q,"link":"pg_tblspc/16384"}}}`, location)
}

func TestTablespacesAndWALGoWhereTheOperatorSays(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	old, moved, walDir := filepath.Join(parent, "old"), filepath.Join(parent, "new=space"), filepath.Join(parent, "wal")
	inSpace := file("pg_tblspc/16384/PG_15_202209061/5/16390", "rows")
	entries := append(base(), inSpace,
		entry{name: "pg_tblspc/16384", kind: tar.TypeSymlink, link: old}) // a link that would lead to the place of before
	labelTar := tarOf(t, file("backup_label", label), file("tablespace_map", "16384 "+old+"\n"))
	for what, c := range map[string]struct {
		o     Options
		space string
	}{
		"as they were": {Options{}, old},
		"by mapping":   {Options{Mappings: []Mapping{{old, moved}}}, moved},
		"by a file":    {Options{Spec: &catalog.TablespaceSpec{Tablespaces: map[uint32]string{16384: moved}}}, moved},
		"mapping wins": {Options{Spec: &catalog.TablespaceSpec{Tablespaces: map[uint32]string{16384: old}}, Mappings: []Mapping{{old, moved}}}, moved},
	} {
		s := foreign(t, spaceSentinel(old), nil, tarOf(t, entries...))
		put(t, s, partsDir+"backup_label.tar", labelTar)
		c.o.Dir, c.o.WALDir = filepath.Join(t.TempDir(), "data"), walDir
		if _, err := restoreTo(t, s, c.o); err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		wanted := want(base()...)
		maps.DeleteFunc(wanted, func(name, _ string) bool { return strings.HasPrefix(name, "pg_wal/") })
		wanted["pg_wal"], wanted["pg_tblspc/16384"] = "->"+walDir, "->"+c.space
		wanted["tablespace_map"] = "16384 " + c.space + "\n"
		compare(t, what, have(t, c.o.Dir), wanted)
		compare(t, what, have(t, c.space), map[string]string{"PG_15_202209061/": "", "PG_15_202209061/5/": "", "PG_15_202209061/5/16390": "rows"})
		compare(t, what, have(t, walDir), map[string]string{"archive_status/": ""})
		for _, dir := range []string{old, moved, walDir} {
			remove(t, dir)
		}
	}
	for what, o := range map[string]Options{
		"an unknown tablespace":    {Mappings: []Mapping{{"/srv/other", moved}}},
		"inside the target":        {Dir: parent, Mappings: []Mapping{{old, filepath.Join(parent, "x")}}},
		"around the target":        {Dir: filepath.Join(moved, "data"), Mappings: []Mapping{{old, moved}}},
		"WAL inside the target":    {Dir: parent, WALDir: filepath.Join(parent, "pg_wal2")},
		"a relative WAL directory": {WALDir: "wal"},
	} {
		if o.Dir == "" {
			o.Dir = filepath.Join(t.TempDir(), "data")
		}
		if _, err := restoreTo(t, foreign(t, spaceSentinel(old), nil, tarOf(t, base()...)), o); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

func TestNothingIsWrittenWhereThereIsNoRoom(t *testing.T) {
	t.Parallel()
	s := foreign(t, `{"LSN":33554472,"Version":2,"UncompressedSize":1152921504606846976}`, nil, tarOf(t, base()...))
	target := filepath.Join(t.TempDir(), "data")
	_, err := restoreTo(t, s, Options{Dir: target})
	if err == nil || !strings.Contains(err.Error(), "MiB free, the backup needs 1099511627777 MiB") {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the target was made: %v", err)
	}
	n := need{dir: t.TempDir(), files: math.MaxInt64}
	if err := n.check(); err == nil || !strings.Contains(err.Error(), "more files") {
		t.Errorf("too many files: %v", err)
	}
}

func TestMappingsAreReadAsPgBasebackupSpellsThem(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Mapping{
		"/a=/b":               {"/a", "/b"},
		"/a/=/b//c/":          {"/a", "/b/c"},
		`/a\=1=/b\=2`:         {"/a=1", "/b=2"},
		"/with space=/ümläut": {"/with space", "/ümläut"},
		`/back\slash=/b`:      {`/back\slash`, "/b"},
		"":                    {}, "/a": {}, "/a=": {}, "=/b": {}, "a=/b": {}, "/a=b": {}, "/a=/b=/c": {}, `/a\=/b`: {},
	} {
		got, err := ParseMapping(text)
		if got != want || (err != nil) != (want == Mapping{}) {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
}

// unescape reads a location as read_tablespace_map in xlogrecovery.c does: a backslash stands before the byte that it protects.
func unescape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

func FuzzTablespaceMap(f *testing.F) {
	f.Add("/srv/a", "/srv/b")
	f.Add("/srv/with\nnewline", `/srv/back\slash`)
	f.Add("/ending in \\", "/\r\n")
	f.Fuzz(func(t *testing.T, kept, moved string) {
		if strings.ContainsRune(kept+moved, 0) {
			return // no path holds one
		}
		escape := strings.NewReplacer("\\", "\\\\", "\n", "\\\n", "\r", "\\\r")
		content := "16384 " + escape.Replace(kept) + "\n16385 /old\n"
		target := &target{spaces: []Space{{16384, kept, kept}, {16385, "/old", moved}}}
		lines := mapLines(target.rewriteMap([]byte(content), slog.New(slog.DiscardHandler)))
		want := []string{"16384 " + kept, "16385 " + cmpOr(moved == "/old", "/old", moved)}
		if len(lines) != 2 || unescape(lines[0]) != want[0] || unescape(lines[1]) != want[1] {
			t.Errorf("%q, want %q", lines, want)
		}
		mapLines([]byte(kept)) // any bytes
	})
}

func cmpOr(is bool, a, b string) string {
	if is {
		return a
	}
	return b
}

// FuzzUnpack feeds any bytes as a part: nothing may leave the target.
func FuzzUnpack(f *testing.F) {
	f.Add(tarOf(f, base()...))
	f.Add(tarOf(f, file("../x", "y"), dir("a"), entry{name: "l", kind: tar.TypeSymlink, link: "/etc"}))
	f.Fuzz(func(t *testing.T, part []byte) {
		c := open(t, foreign(t, "", nil, part))
		b, err := c.Find(t.Context(), backupName)
		if err != nil {
			t.Fatal(err)
		}
		m := catalog.Member{Backup: b}
		u := newUnpacker(c, slog.New(slog.DiscardHandler), m, newAssembly([]catalog.Member{m}), recorder{t})
		_ = u.readPart(t.Context(), catalog.Part{Name: "part_001.tar"}, readingOf(0, 1), false) // most bytes are no tar
	})
}

// recorder is a sink that checks the names it gets.
type recorder struct{ t *testing.T }

func (r recorder) check(name string) error {
	r.t.Helper()
	if name != "" && (!filepath.IsLocal(name) || path.IsAbs(name)) {
		r.t.Errorf("the sink got %q", name)
	}
	return nil
}
func (r recorder) Dir(name string, _ *tar.Header) error     { return r.check(name) }
func (r recorder) Link(name, _ string, _ *tar.Header) error { return r.check(name) }
func (r recorder) Pages(name string, _ *tar.Header, _ int64, write func(io.WriterAt) error) error {
	return errors.Join(write(nowhere{}), r.check(name))
}
func (r recorder) File(name string, _ *tar.Header, c io.Reader) error {
	_, err := io.Copy(io.Discard, c)
	return errors.Join(err, r.check(name))
}

// A mark that came from an archive would say which directories a later run may empty.
func TestTheMarkIsNotTakenFromTheBackup(t *testing.T) {
	t.Parallel()
	target := filepath.Join(t.TempDir(), "data")
	s := foreign(t, "", nil, tarOf(t, append(base(), file(markFile, `{"backup":"x","directories":["/"]}`), file("../x", "fails"))...))
	if _, err := restoreTo(t, s, Options{Dir: target}); err == nil {
		t.Fatal("accepted")
	}
	if m, err := readMark(target); err != nil || m == nil || m.Backup != backupName || len(m.Directories) > 0 {
		t.Errorf("the mark is %v, %v", m, err)
	}
}

// The digest in the sentinel is the manifest's, so that nobody can exchange both parts and manifest unseen.
func TestTheSentinelHoldsTheManifestsDigest(t *testing.T) {
	t.Parallel()
	m := objects(t, own(t, all, base()))
	sum := sha256.Sum256(m[backupDir+"walden_manifest.json"])
	if !bytes.Contains(m["basebackups_005/"+backupName+"_backup_stop_sentinel.json"], []byte(hex.EncodeToString(sum[:]))) {
		t.Error("it does not")
	}
}
