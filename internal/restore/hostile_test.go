package restore

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

// header makes a tar header that archive/tar would refuse to write (ustar interchange format of POSIX).
func header(name string, kind byte, size int64) []byte {
	b := make([]byte, 512)
	copy(b[:100], name)
	copy(b[100:], "0000600\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00%011o\x00", size, 1_000_000_000))
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	copy(b[148:], "        ")
	total := 0
	for _, c := range b {
		total += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", total))
	return b
}

// padded fills a body up to whole blocks.
func padded(body string) []byte {
	return append([]byte(body), make([]byte, (512-len(body)%512)%512)...)
}

// pax makes an extended header with records "key=value" for the entry behind it.
func pax(records ...string) []byte {
	var body strings.Builder
	for _, r := range records {
		n := len(r) + 3
		for len(strconv.Itoa(n))+len(r)+2 != n {
			n++
		}
		fmt.Fprintf(&body, "%d %s\n", n, r)
	}
	return append(header("pax", 'x', int64(body.Len())), padded(body.String())...)
}

// zeros is a gzip stream of n pieces of 64 MiB of zeros, each about 64 KiB long.
func zeros(t testing.TB, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(make([]byte, 64<<20)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return bytes.Repeat(b.Bytes(), n)
}

// gz compresses.
func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// spread is about how many bytes a directory tree takes on disk.
func spread(t testing.TB, dir string) int64 {
	t.Helper()
	var n int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return n
}

// Each attack comes as a part beside the good ones. text is what the refusal says; where there is none, the backup is
// restored, and holds what extra says besides.
func TestHostilePartsAreRefusedOrHarmless(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("d/", 100)
	attacks := map[string]struct {
		part  []byte
		text  string
		extra map[string]string
	}{
		"a sparse file in PAX records": {bytes.Join([][]byte{
			pax("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=huge", "GNU.sparse.realsize=1099511627776"),
			header("huge", '0', 512), padded("1\n1099511627776\n0\n")}, nil), "sparse", nil},
		"a sparse file in older PAX records": {bytes.Join([][]byte{
			pax("GNU.sparse.size=1099511627776", "GNU.sparse.numblocks=1", "GNU.sparse.map=1099511627776,0"), header("huge", '0', 0)}, nil), "sparse", nil},
		"a sparse label": {bytes.Join([][]byte{
			pax("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=backup_label", "GNU.sparse.realsize=1000"),
			header("x", '0', 512), padded("1\n1000\n0\n")}, nil), "which cannot be", nil},
		"a size beyond the part":       {header("huge", '0', 1<<32), "EOF", nil},
		"a negative size in PAX":       {append(pax("size=-1"), header("x", '0', 0)...), "invalid tar header", nil},
		"a size of 2^63-1 in PAX":      {append(pax(fmt.Sprintf("size=%d", int64(math.MaxInt64))), header("x", '0', 0)...), "EOF", nil},
		"PAX records above a mebibyte": {append(header("pax", 'x', 2<<20), make([]byte, 2<<20)...), "header", nil},
		"a name with a zero byte":      {append(pax("path=a\x00b"), header("x", '0', 0)...), "header", nil},
		"a name of 300 bytes":          {append(pax("path="+strings.Repeat("n", 300)), header("x", '0', 0)...), "too long", nil},
		"a path of 5,000 bytes":        {append(pax("path="+strings.Repeat("d/", 2500)), header("x", '0', 0)...), "more than a path can have", nil},
		"a path of a megabyte":         {append(pax("path="+strings.Repeat("d/", 500_000)), header("x", '5', 0)...), "more than a path can have", nil},
		"a link to 5,000 bytes":        {append(pax("linkpath="+strings.Repeat("d/", 2500)), header("x", '2', 0)...), "its target has 5000 bytes", nil},
		"a climb in PAX":               {append(pax("path=../../canary"), header("x", '0', 0)...), "leads outside", nil},
		"a climb in GNU's long name":   {append(append(header("././@LongLink", 'L', 13), padded("../../canary\x00")...), header("x", '0', 0)...), "leads outside", nil},
		"a chain of links": {tarOf(t, entry{name: "one", kind: tar.TypeSymlink, link: "two"}, entry{name: "two", kind: tar.TypeSymlink, link: ".."},
			file("one/canary", "bad")), "exists", nil},
		"a link to itself, and a file below": {tarOf(t, entry{name: "self", kind: tar.TypeSymlink, link: "./self"}, file("self/x", "bad")), "exists", nil},
		"a hard link to the control file":    {tarOf(t, entry{name: "hard", kind: tar.TypeLink, link: "global/pg_control"}), "", nil},
		"a socket and a contiguous file":     {append(header("s", 's', 0), header("c", '7', 0)...), "", nil},
		"another control file":               {tarOf(t, file("global/pg_control", "other")), "", nil},
		"another label":                      {tarOf(t, file("backup_label", "other")), "", nil},
		"a map of tablespaces":               {tarOf(t, file("tablespace_map", "16384 /etc\n16385 ../..\n0 \n")), "", map[string]string{"tablespace_map": ""}},
		"two maps of tablespaces":            {tarOf(t, file("tablespace_map", "1 /etc\n"), file("./tablespace_map", "2 /etc\n")), "appears twice", nil},
		"a link to the mark":                 {tarOf(t, entry{name: markFile, kind: tar.TypeSymlink, link: "/etc/passwd"}), "exists", nil},
		"a file below the mark":              {tarOf(t, file(markFile+"/x", "bad")), "not a directory", nil},
		"settings and signals": {tarOf(t, file("postgresql.auto.conf", "x"), file("recovery.signal", "")), "",
			map[string]string{"postgresql.auto.conf": "x", "recovery.signal": ""}},
		"setuid, and times before and after all time": {bytes.Join([][]byte{
			pax("mtime=-99999999999"), append(header("old", '0', 1), padded("a")...), pax("mtime=99999999999999"), append(header("new", '0', 1), padded("b")...)}, nil),
			"", map[string]string{"old": "a", "new": "b"}},
		"names of all kinds": {tarOf(t, file("new\nline", "1"), file(`back\..\slash`, "2"), file("\xff\xfe", "3"), file("caf\u00e9", "4"), file("cafe\u0301", "5"),
			file("-rf", "6"), file("\x1b]0;title\a", "7"), file("...", "8"), file(" ", "9")), "",
			map[string]string{"new\nline": "1", `back\..\slash`: "2", "\xff\xfe": "3", "caf\u00e9": "4", "cafe\u0301": "5", "-rf": "6", "\x1b]0;title\a": "7", "...": "8", " ": "9"}},
		"200 directories deep": {tarOf(t, file(deep+deep+"x", "deep")), "", nil},
	}
	for what, a := range attacks {
		synctest.Test(t, func(t *testing.T) {
			outside := t.TempDir()
			canary := filepath.Join(outside, "canary")
			writeFile(t, canary, "good")
			target := filepath.Join(outside, "data")
			_, err := restoreTo(t, foreign(t, "", nil, tarOf(t, base()...), a.part), Options{Dir: target})
			if (err != nil) != (a.text != "") || err != nil && (!strings.Contains(err.Error(), a.text) || len(err.Error()) > 12_000) {
				t.Errorf("%s: %.300v does not say %q", what, err, a.text)
			}
			if b, err := os.ReadFile(canary); err != nil || string(b) != "good" {
				t.Errorf("%s: the canary is %q, %v", what, b, err)
			}
			if left, err := os.ReadDir(outside); err != nil || len(left) > 2 {
				t.Errorf("%s: there are %v beside the target, %v", what, left, err)
			}
			if n := spread(t, target); n > 1<<20 {
				t.Errorf("%s: %d bytes were written", what, n)
			}
			if a.extra != nil {
				wanted := want(base()...)
				for name, content := range a.extra {
					wanted[name] = content
				}
				compare(t, what, have(t, target), wanted)
			}
		})
	}
	testenv.Figure(t, "hostile archives", "parts and entries", len(attacks))
}

// A backup decodes to about as much as its documents say; for one that says nothing the codec bounds it.
func TestABombIsGivenUpBeforeTheDiskIsFull(t *testing.T) {
	t.Parallel()
	members := testenv.Pick(6, 40)
	bomb := append(gz(t, tarOf(t, base()...)), append(gz(t, append(pax("size="+strconv.Itoa(1<<40)), header("bomb", '0', 0)...)), zeros(t, members)...)...)
	cases := []struct {
		what, sentinel string
		named          []string
	}{
		{"a file that is written", fmt.Sprintf(`{"LSN":33554472,"UncompressedSize":%d}`, 1<<20), nil},
		{"a file that is not named", fmt.Sprintf(`{"LSN":33554472,"UncompressedSize":%d}`, 1<<20), []string{"/PG_VERSION", "/base/1/1259"}},
		{"a backup of a negative size", `{"LSN":33554472,"UncompressedSize":-1}`, []string{"/PG_VERSION"}},
		{"a backup of no size recorded", ``, []string{"/PG_VERSION"}},
	}
	cases = testenv.Some(t, 1, cases)
	for _, c := range cases {
		what, s := c.what, foreign(t, c.sentinel, c.named)
		put(t, s, partsDir+"part_001.tar.gz", bomb)
		target := filepath.Join(t.TempDir(), "data")
		_, err := restoreTo(t, s, Options{Dir: target})
		said, most := "far more than it is said to have", int64(2<<30)
		if strings.Contains(what, "size") { // a thousand times what is stored, which a codec can do: all of it is read, and then the tar is cut
			said, most = "EOF", int64(members+1)<<26
		}
		if err == nil || !strings.Contains(err.Error(), said) {
			t.Errorf("%s: %v", what, err)
		}
		if n := spread(t, target); n > most {
			t.Errorf("%s: %d MiB were written", what, n>>20)
		}
		remove(t, target)
	}
	testenv.Figure(t, "hostile archives", "bombs", len(cases))
}

func TestTheLimitOfABackupFollowsItsDocuments(t *testing.T) {
	t.Parallel()
	const entries = perEntry
	for what, c := range map[string]struct {
		l    catalog.Listing
		want int64
	}{
		"a manifest":              {catalog.Listing{Hashed: true, DataSize: 1 << 60, Files: sized(t, 5, 7)}, 24 + spareDecoded + 2*entries},
		"sizes that overflow":     {catalog.Listing{Hashed: true, Files: sized(t, math.MaxInt64, math.MaxInt64)}, math.MaxInt64},
		"a recorded sum":          {catalog.Listing{DataSize: 100, Parts: []catalog.Part{{Size: 1 << 40}}}, 200 + spareDecoded + entries},
		"a huge recorded sum":     {catalog.Listing{DataSize: math.MaxInt64}, math.MaxInt64},
		"nothing recorded":        {catalog.Listing{Parts: []catalog.Part{{Size: 10}, {Size: 20}}}, 60*bestRatio + spareDecoded + 2*entries},
		"a negative recorded sum": {catalog.Listing{DataSize: math.MinInt64, Parts: []catalog.Part{{Size: 10}}}, 20*bestRatio + spareDecoded + entries},
	} {
		if got := decodedLimit(c.l); got != c.want {
			t.Errorf("%s: %d, want %d", what, got, c.want)
		}
	}
}

// sized is a list of files of these sizes.
func sized(t *testing.T, sizes ...int64) *catalog.Files {
	t.Helper()
	l := &catalog.Files{}
	for i, n := range sizes {
		if _, err := l.Add(catalog.File{Name: strconv.Itoa(i), Size: n}); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// The room that is needed is known, however large the sizes are.
func TestSizesThatOverflowNeedMoreRoomThanThereIs(t *testing.T) {
	t.Parallel()
	target := &target{dir: t.TempDir()}
	for _, sizes := range [][]int64{{math.MaxInt64}, {math.MaxInt64, math.MaxInt64}, {math.MaxInt64 - 4096, 1 << 62, 1 << 62}} {
		l := catalog.Listing{Hashed: true, Files: sized(t, sizes...)}
		if err := target.checkSpace(l); err == nil || !strings.Contains(err.Error(), "MiB free") {
			t.Errorf("%v: %v", sizes, err)
		}
	}
}

// The sentinel says where tablespaces go, and an empty directory may be one that another program looks into.
func TestOnlyWhatPostgreSQLHasInATablespaceIsPlacedThere(t *testing.T) {
	t.Parallel()
	space := filepath.Join(t.TempDir(), "home", ".ssh")
	s := foreign(t, spaceSentinel(space), nil, tarOf(t, append(base(),
		file("pg_tblspc/16384/authorized_keys", "ssh-rsa evil"), dir("pg_tblspc/16384/cron"), file("pg_tblspc/16384/cron/x", "evil"),
		entry{name: "pg_tblspc/16384/link", kind: tar.TypeSymlink, link: "/etc/passwd"},
		file("pg_tblspc/16384/PG_15_202209061/5/16390", "rows"))...))
	put(t, s, partsDir+"backup_label.tar", tarOf(t, file("backup_label", label),
		file("tablespace_map", "16384 /etc\n999 /root\n16400 pg_tblspc/16400\n16401 pg_tblspc/../..\n")))
	target := filepath.Join(t.TempDir(), "data")
	if _, err := restoreTo(t, s, Options{Dir: target}); err != nil {
		t.Fatal(err)
	}
	compare(t, "the tablespace", have(t, space), map[string]string{"PG_15_202209061/": "", "PG_15_202209061/5/": "", "PG_15_202209061/5/16390": "rows"})
	wanted := want(base()...)
	wanted["pg_tblspc/16384"] = "->" + space
	wanted["tablespace_map"] = "16384 " + space + "\n16400 pg_tblspc/16400\n"
	compare(t, "the data directory", have(t, target), wanted)
}

func TestTablespacesInHostilePlacesAreRefused(t *testing.T) {
	t.Parallel()
	full := t.TempDir()
	writeFile(t, filepath.Join(full, "precious"), "data")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(full, link); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(t.TempDir(), "data")
	two := func(a, b string) string {
		return fmt.Sprintf(`{"LSN":33554472,"Spec":{"base_prefix":"/srv/main","tablespaces":["1","2"],"1":{"loc":%q},"2":{"loc":%q}}}`, a, b)
	}
	attacks := map[string]string{
		spaceSentinel("/"):                                           "overlap",
		spaceSentinel("/etc"):                                        "not empty",
		spaceSentinel("../.."):                                       "not an absolute path",
		spaceSentinel("relative"):                                    "not an absolute path",
		spaceSentinel("/etc/passwd"):                                 "cannot restore into",
		spaceSentinel("/etc/passwd/x"):                               "cannot restore into",
		strings.ReplaceAll(spaceSentinel("/xZy"), "Z", `\u0000`):     "cannot restore into",
		spaceSentinel(full):                                          "not empty",
		spaceSentinel(link):                                          "not empty",
		spaceSentinel(target):                                        "overlap",
		spaceSentinel(filepath.Join(target, "base")):                 "overlap",
		spaceSentinel(filepath.Join(target, "..")):                   "overlap",
		spaceSentinel("/" + strings.Repeat("d/", 3000)):              "cannot restore into",
		two("/srv/one", "/srv/one"):                                  "overlap",
		two("/srv/one", "/srv/one/../one/two"):                       "overlap",
		two(filepath.Join(full, "a"), filepath.Join(link, "a", "b")): "overlap",
	}
	for sentinel, text := range attacks {
		s := foreign(t, sentinel, nil, tarOf(t, base()...))
		if _, err := restoreTo(t, s, Options{Dir: target}); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%.300s: %.300v does not say %q", sentinel, err, text)
		}
		if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%.300s: the target was made: %v", sentinel, err)
			remove(t, target)
		}
	}
	compare(t, "the directory of others", have(t, full), map[string]string{"precious": "data"})
	testenv.Figure(t, "hostile archives", "places of tablespaces", len(attacks))
}

// Millions of entries that are not restored must not become millions of lines in the log.
func TestTheLogOfARestoreStaysShort(t *testing.T) {
	t.Parallel()
	var entries []entry
	for i := range 500 {
		entries = append(entries, entry{name: fmt.Sprintf("pipe%d", i), kind: tar.TypeFifo},
			entry{name: fmt.Sprintf("away%d", i), kind: tar.TypeSymlink, link: "/etc"},
			entry{name: fmt.Sprintf("lost%d", i), kind: tar.TypeSymlink, link: fmt.Sprintf("lost%d", i)})
	}
	c := open(t, foreign(t, "", nil, tarOf(t, append(base(), entries...)...)))
	b, err := c.Find(t.Context(), backupName)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	d := Deps{c, slog.New(slog.NewTextHandler(&log, nil)), watch{func() {}}}
	if _, err := Fetch(t.Context(), d, b, Options{Dir: filepath.Join(t.TempDir(), "data"), Workers: 1}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), "\n"); n > 100 {
		t.Errorf("%d lines", n)
	}
}

// Owners come by name from the archive: neither long names nor many of them are kept or looked up.
func TestOwnersOfAnArchiveAreBounded(t *testing.T) {
	t.Parallel()
	d := &disk{owners: map[string]int{}}
	asked := 0
	find := func() (string, error) { asked++; return "7", nil }
	for i := range 5000 {
		d.lookup(strconv.Itoa(i), find)
	}
	d.lookup(strings.Repeat("x", 1<<20), find)
	if asked > maxOwners || len(d.owners) > maxOwners {
		t.Errorf("%d were looked up, %d kept", asked, len(d.owners))
	}
	if h := ownerAndMode(&tar.Header{Uname: strings.Repeat("x", 1<<20), Gname: "g"}); h.Uname != "" || h.Gname != "g" {
		t.Errorf("%.20q, %q", h.Uname, h.Gname)
	}
}

// In a backup with a manifest nothing is made that the manifest does not name.
func TestTheManifestNamesDirectoriesAndLinksToo(t *testing.T) {
	t.Parallel()
	smuggled := map[string]bool{"made": true, "gone": true, "extra": true}
	s := own(t, func(e entry) bool { return !smuggled[e.name] },
		append(base(), dir("made"), entry{name: "gone", kind: tar.TypeSymlink, link: "/etc"}, file("extra", "x")))
	target := filepath.Join(t.TempDir(), "data")
	if _, err := restoreTo(t, s, Options{Dir: target}); err != nil {
		t.Fatal(err)
	}
	compare(t, "the data directory", have(t, target), want(base()...))
}

// Both tars that are read last could hold a label; which one counts must not depend on which is read first.
func TestTwoLabelsAreDamage(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		second []byte
		fails  bool
	}{
		"the same": {tarOf(t, file("global/pg_control", string(control(cluster))), file("backup_label", label)), false},
		"another":  {tarOf(t, file("global/pg_control", string(control(cluster))), file("backup_label", "other")), true},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := foreign(t, "", nil, tarOf(t, base()...))
			put(t, s, partsDir+"pg_control.tar", c.second)
			_, err := restoreTo(t, s, Options{Dir: filepath.Join(t.TempDir(), "data")})
			if (err != nil) != c.fails || err != nil && !strings.Contains(err.Error(), "appears twice") {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	// A part that is read again after a failure of the storage brings the same file again.
	fault := storagetest.NewFault(own(t, all, base()), storagetest.Rule{Kind: storagetest.Half, Nth: 1,
		Match: func(c storagetest.Call) bool { return strings.Contains(c.Key, "backup_label") }})
	synctest.Test(t, func(t *testing.T) {
		if _, err := restoreTo(t, fault, Options{Dir: filepath.Join(t.TempDir(), "data")}); err != nil {
			t.Error(err)
		}
	})
}
