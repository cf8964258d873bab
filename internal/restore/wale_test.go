package restore

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
)

const waleBackup = "base_000000010000000000000002_00000040"

// wale makes an archive with a backup of WAL-E, whose partitions hold everything. spec is the rest of the sentinel. The partitions
// are not compressed here.
func wale(t testing.TB, stopOffset, rest string, parts ...[]byte) storage.Store {
	t.Helper()
	s := storagetest.NewMemory()
	put(t, s, "basebackups_005/"+waleBackup+"_backup_stop_sentinel.json", fmt.Appendf(nil,
		`{"wal_segment_backup_stop": "000000010000000000000002", "wal_segment_offset_backup_stop": %q%s}`, stopOffset, rest))
	for i, p := range parts {
		put(t, s, fmt.Sprintf("basebackups_005/%s/tar_partitions/part_%08d.tar", waleBackup, i), p)
	}
	return s
}

// fetchWALE restores the backup that wale makes and returns what was logged.
func fetchWALE(t testing.TB, s storage.Store, o Options) (Report, string, error) {
	t.Helper()
	c := open(t, s)
	b, err := c.Find(t.Context(), waleBackup)
	if err != nil {
		return Report{}, "", err
	}
	o.Workers = 3
	var log bytes.Buffer
	report, err := Fetch(t.Context(), Deps{c, slog.New(slog.NewTextHandler(&log, nil)), watch{func() {}}}, b, o)
	if _, statErr := os.Lstat(filepath.Join(o.Dir, pgdata.ControlName)); err != nil && statErr == nil {
		t.Errorf("the restore failed (%v), and there is a control file", err)
	}
	return report, log.String(), err
}

// inState is control of a server in a state.
func inState(state pgdata.State) []byte {
	b := control(cluster)
	binary.LittleEndian.PutUint32(b[16:], uint32(state))
	binary.LittleEndian.PutUint32(b[288:], crc32.Checksum(b[:288], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// waleEntries is what WAL-E's walk finds: the directory itself as a slash, the utility files among all others.
func waleEntries(control []byte, label string) []entry {
	entries := []entry{{name: "/", kind: tar.TypeDir}}
	for _, e := range base()[1:] {
		if e.kind == tar.TypeDir {
			e.name += "/"
		}
		if !strings.HasPrefix(e.name, "pg_wal/archive_status") { // WAL-E leaves out what is in pg_wal
			entries = append(entries, e)
		}
	}
	entries = append(entries, file("global/pg_control", string(control)))
	if label != "" {
		entries = append(entries, file("backup_label", label))
	}
	return entries
}

func sizeOf(entries []entry) (n int) {
	for _, e := range entries {
		n += len(e.body)
	}
	return n
}

func wantWALE(more ...entry) map[string]string {
	m := want(append(base(), more...)...)
	delete(m, "pg_wal/archive_status/")
	return m
}

func TestBackupsOfWALEAreRestored(t *testing.T) {
	t.Parallel()
	all := waleEntries(control(cluster), label)
	noDirs := func(entries []entry) (files []entry) {
		for _, e := range entries {
			if e.kind != tar.TypeDir || e.name == "pg_wal/" {
				files = append(files, e)
			}
		}
		return files
	}
	linked := slices.DeleteFunc(slices.Clone(all), func(e entry) bool { return e.name == "pg_wal/" })
	padded := append(tarOf(t, all...), make([]byte, 10240)...)
	for what, tt := range map[string]struct {
		parts [][]byte
		links []entry
		log   string
	}{
		"one partition":                 {parts: [][]byte{tarOf(t, all...)}},
		"padded with zeros":             {parts: [][]byte{padded}},
		"three partitions":              {parts: [][]byte{tarOf(t, all[:3]...), tarOf(t, all[3:8]...), tarOf(t, all[8:]...)}},
		"without members for parents":   {parts: [][]byte{tarOf(t, noDirs(all)...)}},
		"a link for pg_wal":             {parts: [][]byte{tarOf(t, append(linked, entry{name: "pg_wal", kind: tar.TypeSymlink, link: "/ssd/wal"})...)}},
		"a link to a file elsewhere":    {parts: [][]byte{tarOf(t, append(all[:len(all):len(all)], entry{name: "server.crt", kind: tar.TypeSymlink, link: "/etc/ssl/server.crt"})...)}, links: []entry{{name: "server.crt", kind: tar.TypeSymlink, link: "/etc/ssl/server.crt"}}, log: "leads outside"},
		"a file that vanished":          {parts: [][]byte{tarOf(t, append(all[:len(all)-3:len(all)-3], all[len(all)-2:]...)...)}}, // "empty" has no size
		"a link that was a directory":   {parts: [][]byte{tarOf(t, append(all[:len(all):len(all)], entry{name: "pg_log", kind: tar.TypeSymlink, link: "/var/log/pg"})...)}, links: []entry{{name: "pg_log", kind: tar.TypeSymlink, link: "/var/log/pg"}}},
		"a device, which cannot be":     {parts: [][]byte{tarOf(t, append(all[:len(all):len(all)], entry{name: "dev", kind: tar.TypeChar})...)}, log: "no file, directory or symbolic link"},
		"files of pg_wal, as until 1.1": {parts: [][]byte{tarOf(t, append(all[:len(all):len(all)], dir("pg_wal/archive_status/"))...)}},
	} {
		size := sizeOf(all)
		s := wale(t, "00000256", fmt.Sprintf(`, "expanded_size_bytes": %d`, size), tt.parts...)
		target := filepath.Join(t.TempDir(), "data")
		report, log, err := fetchWALE(t, s, Options{Dir: target})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		wanted := wantWALE(tt.links...)
		if what == "a file that vanished" {
			delete(wanted, "empty")
		}
		if strings.HasPrefix(what, "files of pg_wal") {
			wanted["pg_wal/archive_status/"] = ""
		}
		compare(t, what, have(t, target), wanted)
		if info, err := os.Stat(target); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: the directory has mode %v, %v", what, info.Mode(), err)
		}
		if link := map[bool]string{true: "/ssd/wal"}[what == "a link for pg_wal"]; report.WALLink != link {
			t.Errorf("%s: reports that pg_wal was a link to %q", what, report.WALLink)
		}
		if !strings.Contains(log, tt.log) || strings.Contains(log, "vanished") {
			t.Errorf("%s: the log is\n%s", what, log)
		}
	}
}

func TestTheSizeOfABackupOfWALEIsCompared(t *testing.T) {
	t.Parallel()
	all := waleEntries(control(cluster), label)
	for recorded, want := range map[int]struct{ log, err string }{
		sizeOf(all):       {},
		0:                 {}, // not recorded
		sizeOf(all) + 1:   {log: "its last partition is missing"},
		1 << 40:           {err: "MiB free"},
		sizeOf(all) - 1:   {err: "no more than"},
		sizeOf(all) - 100: {err: "no more than"},
	} {
		s := wale(t, "00000256", fmt.Sprintf(`, "expanded_size_bytes": %d`, recorded), tarOf(t, all[:5]...), tarOf(t, all[5:]...))
		if recorded == 1<<40 { // what no disk of a test has
			s = wale(t, "00000256", `, "expanded_size_bytes": 4611686018427387904`, tarOf(t, all...))
		}
		_, log, err := fetchWALE(t, s, Options{Dir: filepath.Join(t.TempDir(), "data")})
		if (err != nil) != (want.err != "") || err != nil && !strings.Contains(err.Error(), want.err) {
			t.Errorf("%d recorded: %v", recorded, err)
		}
		if strings.Contains(log, "last partition") != (want.log != "") {
			t.Errorf("%d recorded: the log is\n%s", recorded, log)
		}
	}
}

// A part that is read a second time, after a failure of the storage, counts once.
func TestTheSizeOfABackupOfWALEIsThatOfEachPartitionOnce(t *testing.T) {
	t.Parallel()
	all := waleEntries(control(cluster), label)
	s := wale(t, "00000256", fmt.Sprintf(`, "expanded_size_bytes": %d`, sizeOf(all)), append(tarOf(t, all...), make([]byte, 64<<10)...))
	fault := storagetest.NewFault(s, storagetest.Rule{Kind: storagetest.Half, Nth: 1, Match: func(c storagetest.Call) bool {
		return strings.HasSuffix(c.Key, ".tar")
	}})
	target := filepath.Join(t.TempDir(), "data")
	_, log, err := fetchWALE(t, fault, Options{Dir: target})
	if err != nil || !strings.Contains(log, "reading the part again") || strings.Contains(log, "vanished") {
		t.Errorf("%v, and the log is\n%s", err, log)
	}
	compare(t, "after a second reading", have(t, target), wantWALE())
}

func TestOnlyBackupsOfStoppedServersNeedNoLabel(t *testing.T) {
	t.Parallel()
	unknown := control(cluster)
	binary.LittleEndian.PutUint32(unknown[8:], 942) // of PostgreSQL 9.4
	for what, tt := range map[string]struct {
		control []byte
		stop    string
		err     string
	}{
		"shut down":             {inState(pgdata.StateShutDown), "00000040", ""},
		"shut down in recovery": {inState(pgdata.StateShutDownInRecovery), "00000040", ""},
		"an older PostgreSQL":   {unknown, "00000040", ""},
		"running":               {inState(pgdata.StateInProduction), "00000040", "not shut down but in production"},
		"crashed":               {inState(pgdata.StateInCrashRecovery), "00000040", "not shut down but in crash recovery"},
		"taken online":          {inState(pgdata.StateShutDown), "00000256", "has no backup_label"},
		"a damaged control file": {append(inState(pgdata.StateShutDown)[:20], make([]byte, pgdata.ControlSize-20)...), "00000040",
			"checksum"},
	} {
		target := filepath.Join(t.TempDir(), "data")
		_, _, err := fetchWALE(t, wale(t, tt.stop, "", tarOf(t, waleEntries(tt.control, "")...)), Options{Dir: target})
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		wanted := wantWALE()
		delete(wanted, "backup_label")
		wanted["global/pg_control"] = string(tt.control)
		compare(t, what, have(t, target), wanted)
	}
	_, _, err := fetchWALE(t, wale(t, "00000256", "", tarOf(t, waleEntries(nil, label)[:5]...)), Options{Dir: filepath.Join(t.TempDir(), "data")})
	if err == nil || !strings.Contains(err.Error(), "has no "+pgdata.ControlName) {
		t.Errorf("without a control file: %v", err)
	}
}

func TestTheLabelOfAnotherBackupOfWALEIsRefused(t *testing.T) {
	t.Parallel()
	for label, want := range map[string]string{
		label: "",
		"START WAL LOCATION: 0/3000028 (file 000000010000000000000003)\n":                              "that of a backup that began in segment 000000010000000000000003",
		"LABEL: x\nSTART WAL LOCATION: 0/2000028 (file 000000020000000000000002)\nSTART TIMELINE: 2\n": "that of a backup that began in segment 000000020000000000000002",
		"anything": "", // for the server to judge
	} {
		_, _, err := fetchWALE(t, wale(t, "00000256", "", tarOf(t, waleEntries(control(cluster), label)...)), Options{Dir: filepath.Join(t.TempDir(), "data")})
		if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", label, err)
		}
	}
}

func TestTablespacesOfWALEGoWhereTheOperatorSays(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	old, moved := filepath.Join(parent, "old"), filepath.Join(parent, "moved")
	// There is no member for the link, nor for a directory that holds files.
	all := append(waleEntries(control(cluster), label), dir("pg_tblspc/16384/PG_15_202209061/"),
		file("pg_tblspc/16384/PG_15_202209061/5/16390", "rows"), file("tablespace_map", "16384 "+old+"\n"))
	spec := fmt.Sprintf(`, "spec": {"base_prefix": "/srv/elsewhere/", "tablespaces": ["16384"], "16384": {"loc": %q, "link": "pg_tblspc/16384"}}`, old+"/")
	for what, tt := range map[string]struct {
		o     Options
		space string
	}{
		"as it was":  {Options{}, old},
		"by mapping": {Options{Mappings: []Mapping{{old, moved}}}, moved},
		"by a file":  {Options{Spec: &catalog.TablespaceSpec{Tablespaces: map[uint32]string{16384: moved}}}, moved},
	} {
		tt.o.Dir = filepath.Join(t.TempDir(), "data")
		if _, _, err := fetchWALE(t, wale(t, "00000256", spec, tarOf(t, all...)), tt.o); err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		wanted := wantWALE()
		wanted["pg_tblspc/16384"], wanted["tablespace_map"] = "->"+tt.space, "16384 "+tt.space+"\n"
		compare(t, what, have(t, tt.o.Dir), wanted)
		compare(t, what, have(t, tt.space), map[string]string{"PG_15_202209061/": "", "PG_15_202209061/5/": "", "PG_15_202209061/5/16390": "rows"})
		remove(t, tt.space)
	}
	if _, err := os.Lstat("/srv/elsewhere"); err == nil {
		t.Error("the restore went where the sentinel says")
	}
}

func TestHostileBackupsOfWALEStayInTheTarget(t *testing.T) {
	t.Parallel()
	all := waleEntries(control(cluster), label)
	for what, tt := range map[string]struct {
		more []entry
		err  string // "" where it is harmless
	}{
		"a name above":              {[]entry{file("../escaped", "x")}, "leads outside"},
		"an absolute name":          {[]entry{file("/etc/../escaped", "x")}, "leads outside"},
		"a file below a link":       {[]entry{{name: "pg_log", kind: tar.TypeSymlink, link: "/"}, file("pg_log/escaped", "x")}, "cannot make the symbolic link"},
		"a link for a directory":    {[]entry{{name: "base", kind: tar.TypeSymlink, link: "/"}}, `"base"`},
		"a link for pg_tblspc":      {[]entry{{name: "pg_tblspc/9", kind: tar.TypeSymlink, link: "/"}, file("pg_tblspc/9/escaped", "x")}, "cannot make the symbolic link"},
		"a second label":            {[]entry{file("backup_label", "other")}, "with different contents"},
		"a file twice":              {[]entry{file("PG_VERSION", "15\n")}, "appears twice"},
		"a control file as a link":  {[]entry{{name: "global/pg_control", kind: tar.TypeSymlink, link: "/etc/passwd"}}, "no regular file"},
		"a mark of another restore": {[]entry{file(markFile, `{"directories":["/"]}`)}, ""},
	} {
		parent := t.TempDir()
		s := wale(t, "00000256", "", tarOf(t, all...), tarOf(t, tt.more...))
		_, _, err := fetchWALE(t, s, Options{Dir: filepath.Join(parent, "data")})
		if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v", what, err)
		}
		err = filepath.WalkDir(parent, func(name string, _ fs.DirEntry, err error) error {
			if filepath.Base(name) == "escaped" && !strings.HasPrefix(name, filepath.Join(parent, "data")+"/") {
				t.Errorf("%s: there is %s", what, name)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}
