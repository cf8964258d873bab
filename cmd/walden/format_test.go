package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// coding is how other programs know and undo one of the compressions (WAL-G format, "Codecs").
type coding struct {
	extension string
	head      *regexp.Regexp // that the hex of the first bytes matches
	undo      []string       // a command that reads standard input
}

var codings = map[string]coding{
	// Independent blocks of 4 MiB, with a checksum of the contents.
	"lz4": {".lz4", regexp.MustCompile(`^04224d186470b9`), []string{"lz4", "-dc"}},
	// A checksum of the contents, no dictionary. Objects that fit into one block carry their size, WAL-G's as well.
	"zstd": {".zst", regexp.MustCompile(`^28b52ffd(0468|[046]4)`), []string{"zstd", "-dc"}},
	// A dictionary of 8 MiB, size unknown.
	"lzma":   {".lzma", regexp.MustCompile(`^5d00008000ffffffffffffffff`), []string{"xz", "--format=lzma", "-dc"}},
	"brotli": {".br", regexp.MustCompile(``), []string{"brotli", "-dc"}},
	"none":   {"", regexp.MustCompile(``), []string{"cat"}},
}

// external runs a program of the operating system and returns its standard output.
func external(t *testing.T, stdin []byte, name string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v: run scripts/install-test-tools if it is not installed\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return stdout.Bytes()
}

// diskEntry is what the cluster has on disk under a name of the backup.
type diskEntry struct {
	name     string // as in the tars
	kind     byte   // as tar lists it: '-', 'd', 'l'
	mode     fs.FileMode
	size     int64
	mtime    time.Time
	uid, gid uint32
	link     string
	sum      [sha256.Size]byte // of a regular file's content
}

// oddCluster is a running server with all that the format has trouble with.
type oddCluster struct {
	*testenv.Postgres
	space    string // location of its tablespace
	spaceOID string
	unlogged string // path of an unlogged table's main fork below the data directory
}

// The contents that the test lays into the data directory by hand. The paths are beyond the 100 and the 256 bytes that USTAR holds.
const (
	oddDir  = "von Hand gemacht"
	deepDir = oddDir + "/Verzeichnisse mit Leerzeichen und Umlauten äöü/noch eines, das recht lang ist/und darunter das letzte davon"
)

var (
	veryDeepDir = deepDir + "/" + strings.Repeat("d", 120) + "/" + strings.Repeat("e", 120)
	// splitDir is longer than 100 bytes, but USTAR can hold it in its two fields.
	splitDir = oddDir + "/" + strings.Repeat("p", 90)

	// added are the files that belong into a backup, with their modes.
	added = map[string]fs.FileMode{
		oddDir + "/null":                         0o600, // stays empty
		oddDir + "/a<b>&c \"quoted\" it's 100%":  0o640,
		oddDir + "/skript.sh":                    0o755,
		oddDir + "/ünïcödé ☃":                    0o600,
		splitDir + "/" + strings.Repeat("f", 60): 0o644,
		deepDir + "/Datei":                       0o600,
		veryDeepDir + "/file":                    0o600,
		oddDir + "/backup_label.old":             0o600, // only the data directory's own is left out
		oddDir + "/pgsql_tmp.txt":                0o600,
	}
	// leftOut are files that must not be in a backup.
	leftOut = []string{
		"backup_label.old", "backup_manifest", "core.4711", "recovery.done", "current_logfiles", "postgresql.auto.conf.tmp",
		"log/postgresql.log", "pg_log/old.log", "pg_stat_tmp/global.stat", "pg_replslot/slot/state", "pg_notify/0000", "pg_subtrans/0000",
		"pg_serial/0000", "pg_snapshots/1", "pg_dynshmem/1", "base/pgsql_tmp/pgsql_tmp1.0", "base/1/t3_16400", "base/1/pg_internal.init.1",
		"global/pg_internal.init.1",
	}
)

// startOddCluster starts a server that archives to s.
func startOddCluster(t *testing.T, s *site) *oddCluster {
	t.Helper()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Checksums: true, Settings: s.archiving(
		"autovacuum=off", "checkpoint_timeout=1h", "wal_keep_size=256MB", "fsync=off")})
	c := &oddCluster{Postgres: p, space: filepath.Join(testenv.Scratch(t), "Ärger mit Leerzeichen")}
	if err := os.Mkdir(c.space, 0o700); err != nil {
		t.Fatal(err)
	}
	own(t, c.space)
	p.Exec(t, "CREATE TABLESPACE odd LOCATION '"+c.space+"'",
		"CREATE TABLE in_space TABLESPACE odd AS SELECT g AS id, md5(g::text) AS note FROM generate_series(1, 500) AS g",
		"CREATE TABLE plain(id int PRIMARY KEY, note text)",
		"INSERT INTO plain SELECT g, repeat(md5(g::text), 5) FROM generate_series(1, 5000) AS g",
		"CREATE UNLOGGED TABLE scratchpad AS SELECT generate_series(1, 1000) AS g",
		"CREATE TABLE events(at int, note text) PARTITION BY RANGE (at)",
		"CREATE TABLE events_low PARTITION OF events FOR VALUES FROM (0) TO (100)",
		"CREATE TABLE events_high PARTITION OF events FOR VALUES FROM (100) TO (1000) PARTITION BY LIST (at)",
		"CREATE TABLE events_500 PARTITION OF events_high FOR VALUES IN (500)",
		"INSERT INTO events VALUES (1, 'one'), (500, 'five hundred')",
		"VACUUM plain", "TRUNCATE in_space", "INSERT INTO in_space VALUES (1, 'after TRUNCATE the file has another number than the table')")
	c.spaceOID = p.Query(t, "SELECT oid FROM pg_tablespace WHERE spcname = 'odd'")
	c.unlogged = p.Query(t, "SELECT pg_relation_filepath('scratchpad')")
	for name, mode := range added {
		content := name + "\n"
		if strings.HasSuffix(name, "/null") {
			content = ""
		}
		c.lay(t, name, content, mode)
	}
	for _, name := range leftOut {
		c.lay(t, name, "must not be in a backup", 0o600)
	}
	link := filepath.Join(p.DataDir, oddDir, "Verweis")
	if err := os.Symlink("ünïcödé ☃", link); err != nil {
		t.Fatal(err)
	}
	p.Exec(t, "CHECKPOINT")
	return c
}

// primary is what the server's backup_label calls a server that is no standby (backup_label of PostgreSQL 13 and of 14).
func (c *oddCluster) primary() string {
	if c.Major < 14 {
		return "master"
	}
	return "primary"
}

// lay writes a file below the data directory, in directories of its own where it needs them.
func (c *oddCluster) lay(t *testing.T, name, content string, mode fs.FileMode) {
	t.Helper()
	path := c.DataDir
	for _, el := range strings.Split(filepath.Dir(name), "/") {
		path = filepath.Join(path, el)
		if err := os.Mkdir(path, 0o700); err == nil {
			own(t, path)
		}
	}
	path = filepath.Join(c.DataDir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	own(t, path)
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// belongs is this test's own idea of what a backup must hold, of the names that there are in a cluster like this one.
func (c *oddCluster) belongs(name string) bool {
	if slices.Contains(leftOut, name) || slices.Contains([]string{"postmaster.pid", "postmaster.opts", "global/pg_control"}, name) ||
		strings.HasSuffix(name, "/pg_internal.init") || name == c.unlogged || name == c.unlogged+"_fsm" || name == c.unlogged+"_vm" {
		return false
	}
	for _, dir := range []string{"pg_wal", "log", "pg_log", "pg_stat_tmp", "pg_replslot", "pg_notify", "pg_subtrans", "pg_serial", "pg_snapshots",
		"pg_dynshmem", "base/pgsql_tmp"} {
		if strings.HasPrefix(name, dir+"/") {
			return name == "pg_wal/archive_status"
		}
	}
	return true
}

// onDisk lists what a backup has to hold, in the order in which it has to be visited.
func (c *oddCluster) onDisk(t *testing.T) []diskEntry {
	t.Helper()
	var entries []diskEntry
	var walk func(dir, alias string)
	walk = func(dir, alias string) {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(alias+strings.TrimPrefix("/"+rel, "/."), "/")
			if !c.belongs(name) {
				return nil
			}
			if name == "pg_tblspc/"+c.spaceOID {
				versions, err := filepath.Glob(filepath.Join(c.space, "PG_*"))
				if err != nil || len(versions) != 1 {
					t.Fatalf("the tablespace holds %v (%v)", versions, err)
				}
				walk(versions[0], "/"+name+"/"+filepath.Base(versions[0]))
				return nil
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			st := info.Sys().(*syscall.Stat_t)
			d := diskEntry{name: "/" + name, mode: info.Mode().Perm(), mtime: info.ModTime(), uid: st.Uid, gid: st.Gid}
			switch {
			case e.IsDir():
				d.kind = 'd'
			case e.Type().IsRegular():
				d.kind, d.size = '-', info.Size()
				content, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				d.sum = sha256.Sum256(content)
			case e.Type() == fs.ModeSymlink:
				d.kind = 'l'
				if d.link, err = os.Readlink(path); err != nil {
					return err
				}
			default:
				t.Fatalf("%s is a %s", path, e.Type())
			}
			entries = append(entries, d)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	walk(c.DataDir, "")
	return entries
}

// stored is a backup in an archive, read without walden.
type stored struct {
	t       *testing.T
	coding  coding
	archive string
	objects map[string]string // every object of the archive: key → SHA-256 by sha256sum
	name    string
	folder  string // of the backup, below the archive

	sentinel, metadata, files, manifest map[string]any
	tars                                map[string][]tarEntry // by object name
}

// tarEntry is a line of GNU tar's listing.
type tarEntry struct {
	kind     byte
	mode     fs.FileMode
	uid, gid uint64
	size     int64
	mtime    time.Time
	name     string
	link     string
}

func TestABackupIsReadWithoutWalden(t *testing.T) {
	t.Parallel()
	for method, coding := range codings {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, "WALG_COMPRESSION_METHOD="+method)
			s.raced = s.plain // the race detector makes the slow compressions many times slower; mainJob runs under it
			c := startOddCluster(t, s)
			before, begun := c.onDisk(t), time.Now()
			s.must(c.Postgres, "backup-push", c.DataDir, "--permanent", "--add-user-data", ` { "label": "<ä&ö>", "n": [1, 2] } `)
			ended, after := time.Now(), c.onDisk(t)
			same := unchanged(t, before, after)
			c.Exec(t, "SELECT pg_create_restore_point('a record, so that there is a segment to close')")
			s.archived(c.Postgres) // nothing is on its way to the archive any more

			b := readStored(t, s, coding)
			b.checkObjects()
			b.checkName(c)
			b.checkSentinel(c, begun, ended)
			b.checkMetadata()
			b.checkTarBytes()
			b.checkEntries(after, same)
			b.checkSpecialTars(c)
			b.checkFiles(same)
			b.checkDatabases(c)
			b.checkManifest(c, method)
			b.checkSizes(after)
			b.checkWAL(c)
			b.checkIdentity(c)
		})
	}
}

// readStored reads the archive of a site that holds one backup.
func readStored(t *testing.T, s *site, coding coding) *stored {
	t.Helper()
	b := &stored{t: t, coding: coding, archive: s.archive, objects: map[string]string{}, tars: map[string][]tarEntry{}}
	var paths []string
	err := filepath.WalkDir(s.archive, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(external(t, nil, "sha256sum", paths...))) {
		sum, path, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		b.objects[strings.TrimPrefix(path, s.archive+"/")] = sum
	}
	for key := range b.objects {
		if name, ok := strings.CutSuffix(strings.TrimPrefix(key, "basebackups_005/"), "_backup_stop_sentinel.json"); ok {
			if b.name != "" {
				t.Fatalf("two backups: %s and %s", b.name, name)
			}
			b.name = name
		}
	}
	if b.name == "" {
		t.Fatalf("no sentinel among %v", b.objects)
	}
	b.folder = "basebackups_005/" + b.name + "/"
	b.sentinel = b.document(b.folder[:len(b.folder)-1] + "_backup_stop_sentinel.json")
	b.metadata = b.document(b.folder + "metadata.json")
	b.files = b.document(b.folder + "files_metadata.json")
	b.manifest = b.document(b.folder + "walden_manifest.json")
	return b
}

// read returns an object as it is stored.
func (b *stored) read(key string) []byte {
	b.t.Helper()
	content, err := os.ReadFile(filepath.Join(b.archive, key))
	if err != nil {
		b.t.Fatal(err)
	}
	return content
}

// decoded returns an object without its compression, which has to be the one that its name says.
func (b *stored) decoded(key string) []byte {
	b.t.Helper()
	content := b.read(key)
	if got := hex.EncodeToString(content[:min(len(content), 16)]); !b.coding.head.MatchString(got) {
		b.t.Errorf("%s begins with %s, which does not match %s", key, got, b.coding.head)
	}
	return external(b.t, content, b.coding.undo[0], b.coding.undo[1:]...)
}

// document reads a JSON object; numbers stay as they are written.
func (b *stored) document(key string) map[string]any {
	b.t.Helper()
	d := json.NewDecoder(bytes.NewReader(b.read(key)))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		b.t.Fatalf("%s: %v", key, err)
	}
	return m
}

// orderOfKeys returns the keys of the outermost object in the order of the text.
func orderOfKeys(t *testing.T, text []byte) []string {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for d.More() {
		key, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key.(string))
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			t.Fatal(err)
		}
	}
	return keys
}

// equal reports a value of a document that is not as expected; numbers are compared as they are written.
func (b *stored) equal(what string, got any, want any) {
	b.t.Helper()
	if fmt.Sprintf("%T %v", got, got) != fmt.Sprintf("%T %v", want, want) {
		b.t.Errorf("%s is %v (%T) instead of %v (%T)", what, got, got, want, want)
	}
}

// number returns an integer of a document, which has to be written as one.
func (b *stored) number(what string, v any) int64 {
	b.t.Helper()
	n, ok := v.(json.Number)
	if !ok {
		b.t.Fatalf("%s is %v (%T), not a number", what, v, v)
	}
	i, err := strconv.ParseInt(n.String(), 10, 64)
	if err != nil {
		b.t.Fatalf("%s is %s, not an integer", what, n)
	}
	return i
}

// parts returns the object names of the ordinary tars.
func (b *stored) parts() []string {
	var names []string
	for n := 1; ; n++ {
		name := fmt.Sprintf("part_%03d.tar%s", n, b.coding.extension)
		if _, ok := b.objects[b.folder+"tar_partitions/"+name]; !ok {
			return names
		}
		names = append(names, name)
	}
}

// special returns the object name of one of the two tars that are restored last.
func (b *stored) special(name string) string { return name + ".tar" + b.coding.extension }

// checkObjects proves that every object is one of the format or one of walden's own documents, and that none is missing.
func (b *stored) checkObjects() {
	b.t.Helper()
	needed := map[string]bool{"walden_identity.json": true, b.folder[:len(b.folder)-1] + "_backup_stop_sentinel.json": true}
	for _, name := range []string{"metadata.json", "files_metadata.json", "walden_manifest.json"} {
		needed[b.folder+name] = true
	}
	tars := append(b.parts(), b.special("pg_control"), b.special("backup_label"))
	if len(tars) < 4 {
		b.t.Errorf("only %v: the test means to have several parts", tars)
	}
	for _, name := range tars {
		needed[b.folder+"tar_partitions/"+name] = true
	}
	archived := regexp.MustCompile(`^wal_005/[0-9A-F]{24}(\.[0-9A-F]{8}\.backup)?` + regexp.QuoteMeta(b.coding.extension) + `$`)
	for key := range b.objects {
		if !needed[key] && !archived.MatchString(key) {
			b.t.Errorf("an object of no known kind: %s", key)
		}
		delete(needed, key)
	}
	for key := range needed {
		b.t.Errorf("%s is missing", key)
	}
	var folders []string
	err := filepath.WalkDir(b.archive, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && path != b.archive {
			folders = append(folders, strings.TrimPrefix(path, b.archive+"/"))
		}
		return err
	})
	want := []string{"basebackups_005", b.folder[:len(b.folder)-1], b.folder + "tar_partitions", "wal_005"}
	if err != nil || !slices.Equal(folders, want) {
		b.t.Errorf("the folders are %q instead of %q (%v)", folders, want, err)
	}
}

// lsn writes an integer of a document as PostgreSQL writes an LSN.
func (b *stored) lsn(key string) string {
	n := uint64(b.number(key, b.sentinel[key]))
	return fmt.Sprintf("%X/%X", n>>32, uint32(n))
}

// checkName: a backup is named after the segment of its start LSN.
func (b *stored) checkName(c *oddCluster) {
	b.t.Helper()
	b.equal("the backup's name", b.name, "base_"+c.Query(b.t, "SELECT pg_walfile_name('"+b.lsn("LSN")+"')"))
}

func (b *stored) checkSentinel(c *oddCluster, begun, ended time.Time) {
	b.t.Helper()
	raw := b.read(b.folder[:len(b.folder)-1] + "_backup_stop_sentinel.json")
	keys := []string{"LSN", "PgVersion", "FinishLSN", "SystemIdentifier", "UncompressedSize", "CompressedSize", "DataCatalogSize", "Spec",
		"UserData", "ChkpNum", "Version", "StartTime", "FinishTime", "DateFmt", "Hostname", "DataDir", "IsPermanent", "Walden"}
	if got := orderOfKeys(b.t, raw); !slices.Equal(got, keys) {
		b.t.Errorf("the sentinel's keys are %v instead of %v", got, keys)
	}
	if bytes.ContainsAny(raw, "\n<>&") {
		b.t.Errorf("the sentinel has line feeds or unescaped HTML characters:\n%s", raw)
	}
	hostname, err := os.Hostname()
	if err != nil {
		b.t.Fatal(err)
	}
	for key, want := range map[string]any{
		"PgVersion":        json.Number(c.Query(b.t, "SHOW server_version_num")),
		"SystemIdentifier": json.Number(c.Query(b.t, "SELECT system_identifier FROM pg_control_system()")),
		"ChkpNum":          nil,
		"Version":          json.Number("2"),
		"DateFmt":          "%Y-%m-%dT%H:%M:%S.%fZ",
		"Hostname":         hostname,
		"DataDir":          c.DataDir,
		"IsPermanent":      true,
	} {
		b.equal("the sentinel's "+key, b.sentinel[key], want)
	}
	for _, want := range []string{
		fmt.Sprintf(`"Spec":{"%s":{"loc":"%s","link":"pg_tblspc/%s"},"base_prefix":"%s","tablespaces":["%s"]}`, c.spaceOID, c.space, c.spaceOID,
			c.DataDir, c.spaceOID),
		`"UserData":{"label":"\u003cä\u0026ö\u003e","n":[1,2]}`,
	} {
		if !bytes.Contains(raw, []byte(want)) {
			b.t.Errorf("the sentinel does not hold %s:\n%s", want, raw)
		}
	}
	start, finish := b.moment("StartTime"), b.moment("FinishTime")
	if start.Before(begun.Add(-time.Second)) || finish.After(ended.Add(time.Second)) || !start.Before(finish) {
		b.t.Errorf("the backup lasted from %s to %s, the command from %s to %s", start, finish, begun, ended)
	}
	if b.number("LSN", b.sentinel["LSN"]) >= b.number("FinishLSN", b.sentinel["FinishLSN"]) {
		b.t.Errorf("the backup begins at %s and ends at %s", b.lsn("LSN"), b.lsn("FinishLSN"))
	}
	ours, ok := b.sentinel["Walden"].(map[string]any)
	if !ok {
		b.t.Fatalf("Walden is %v", b.sentinel["Walden"])
	}
	b.equal("Walden.WAL", ours["WAL"], "archived")
	b.equal("Walden.ManifestSHA256", ours["ManifestSHA256"], b.objects[b.folder+"walden_manifest.json"])
	if version, ok := ours["Version"].(string); !ok || version == "" || len(ours) != 3 {
		b.t.Errorf("Walden is %v", ours)
	}
}

// moment reads one of the sentinel's times: UTC, at most microseconds, no trailing zeros.
func (b *stored) moment(key string) time.Time {
	b.t.Helper()
	text, _ := b.sentinel[key].(string)
	if !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,5}[1-9])?Z$`).MatchString(text) {
		b.t.Errorf("%s is %q", key, text)
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		b.t.Error(err)
	}
	return at
}

func (b *stored) checkMetadata() {
	b.t.Helper()
	keys := []string{"start_time", "finish_time", "date_fmt", "hostname", "data_dir", "pg_version", "start_lsn", "finish_lsn", "is_permanent",
		"system_identifier", "uncompressed_size", "compressed_size", "user_data"}
	if got := orderOfKeys(b.t, b.read(b.folder+"metadata.json")); !slices.Equal(got, keys) {
		b.t.Errorf("the keys of metadata.json are %v instead of %v", got, keys)
	}
	for key, of := range map[string]string{
		"start_time": "StartTime", "finish_time": "FinishTime", "date_fmt": "DateFmt", "hostname": "Hostname", "data_dir": "DataDir",
		"pg_version": "PgVersion", "start_lsn": "LSN", "finish_lsn": "FinishLSN", "is_permanent": "IsPermanent",
		"system_identifier": "SystemIdentifier", "uncompressed_size": "UncompressedSize", "compressed_size": "CompressedSize", "user_data": "UserData",
	} {
		b.equal(key+" of metadata.json", b.metadata[key], b.sentinel[of])
	}
}

// checkTarBytes looks at the blocks of every tar itself, and lists them with GNU tar.
func (b *stored) checkTarBytes() {
	b.t.Helper()
	const block = 512
	for _, name := range append(b.parts(), b.special("pg_control"), b.special("backup_label")) {
		raw := b.decoded(b.folder + "tar_partitions/" + name)
		at := 0
		for at+block <= len(raw) && !bytes.Equal(raw[at:at+block], make([]byte, block)) {
			h := raw[at : at+block]
			if magic := string(h[257:265]); magic != "ustar\x0000" {
				b.t.Fatalf("%s: the header at %d has the magic %q", name, at, magic)
			}
			if !strings.ContainsRune("025x", rune(h[156])) {
				b.t.Errorf("%s: the header at %d has type %q", name, at, h[156])
			}
			size, err := strconv.ParseInt(strings.Trim(string(h[124:136]), "\x00 "), 8, 64)
			if err != nil {
				b.t.Fatalf("%s: the header at %d: %v", name, at, err)
			}
			if h[156] == 'x' { // only names that USTAR cannot hold deserve one
				if body := string(raw[at+block : at+block+int(size)]); !strings.Contains(body, " path=") && !strings.Contains(body, " linkpath=") {
					b.t.Errorf("%s: a PAX header without need: %q", name, body)
				}
			}
			at += block + (int(size)+block-1)/block*block
		}
		if rest := raw[min(at, len(raw)):]; !bytes.Equal(rest, make([]byte, 2*block)) {
			b.t.Errorf("%s: the last entry is followed by %d bytes, not by two blocks of zeros and nothing else", name, len(rest))
		}
		b.tars[name] = listTar(b.t, raw)
	}
}

var tarLine = regexp.MustCompile(`^(.)([-rwxst]{9}) +(\d+)/(\d+) +(\d+) (\S+ \S+) (.*)$`)

// listTar lists a tar with GNU tar.
func listTar(t *testing.T, raw []byte) []tarEntry {
	t.Helper()
	var entries []tarEntry
	out := external(t, raw, "tar", "-tvP", "--numeric-owner", "--full-time", "--quoting-style=literal", "--no-wildcards", "-f", "-")
	for line := range strings.Lines(string(out)) {
		m := tarLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			t.Fatalf("tar says %q", line)
		}
		e := tarEntry{kind: m[1][0], name: m[7]}
		for i, r := range m[2] {
			if r != '-' {
				e.mode |= 1 << (8 - i)
			}
		}
		e.uid, _ = strconv.ParseUint(m[3], 10, 32) // digits, as the expression says
		e.gid, _ = strconv.ParseUint(m[4], 10, 32)
		e.size, _ = strconv.ParseInt(m[5], 10, 64)
		var err error
		if e.mtime, err = time.Parse("2006-01-02 15:04:05", m[6]); err != nil {
			t.Fatalf("tar says %q: %v", line, err)
		}
		if e.kind == 'l' {
			e.name, e.link, _ = strings.Cut(e.name, " -> ")
		}
		if e.kind == 'd' && e.name != "/" { // GNU tar lists directories with a slash of its own
			e.name = strings.TrimSuffix(e.name, "/")
		}
		entries = append(entries, e)
	}
	return entries
}

// unchanged returns the entries that were the same before and after the backup.
func unchanged(t *testing.T, before, after []diskEntry) map[string]diskEntry {
	t.Helper()
	was := map[string]diskEntry{}
	for _, d := range before {
		was[d.name] = d
	}
	same := map[string]diskEntry{}
	for _, d := range after {
		if d == was[d.name] {
			same[d.name] = d
		}
	}
	if len(same) < len(after)-20 {
		t.Fatalf("only %d of %d entries are the same after the backup: there is little to compare with", len(same), len(after))
	}
	for name := range added {
		if _, ok := same["/"+name]; !ok {
			t.Fatalf("%s is not the same after the backup", name)
		}
	}
	return same
}

// checkEntries compares the parts with the cluster on disk: which entries, in what order, with what properties and content.
func (b *stored) checkEntries(after []diskEntry, same map[string]diskEntry) {
	b.t.Helper()
	order := map[string]int{}
	for i, d := range after {
		order[d.name] = i
	}
	dir := b.t.TempDir()
	found := map[string]string{}
	for _, part := range b.parts() {
		last := -1
		for _, e := range b.tars[part] {
			if other, twice := found[e.name]; twice {
				b.t.Errorf("%s is in %s and in %s", e.name, other, part)
			}
			found[e.name] = part
			at, ok := order[e.name]
			if !ok {
				b.t.Errorf("%s: %s does not belong into a backup", part, e.name)
				continue
			}
			if at < last {
				b.t.Errorf("%s: %s stands behind what comes after it on disk", part, e.name)
			}
			last = at
			if d, ok := same[e.name]; ok {
				want := tarEntry{d.kind, d.mode, uint64(d.uid), uint64(d.gid), d.size, d.mtime.UTC().Round(time.Second), d.name, d.link}
				if d.kind == 'l' {
					e.mode, want.mode = 0, 0 // a link has none of its own
				}
				if e != want {
					b.t.Errorf("%s: the entry is\n%+v, on disk it is\n%+v", part, e, want)
				}
			}
		}
		external(b.t, b.decoded(b.folder+"tar_partitions/"+part), "tar", "-x", "-C", dir, "-f", "-")
	}
	for _, d := range after {
		if _, ok := found[d.name]; !ok {
			b.t.Errorf("%s is in no part", d.name)
		}
	}
	for name, d := range same {
		if d.kind != '-' {
			continue
		}
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			b.t.Error(err)
		} else if sha256.Sum256(got) != d.sum {
			b.t.Errorf("%s has other content in the backup", name)
		}
	}
}

// checkSpecialTars looks at the two tars that are restored last.
func (b *stored) checkSpecialTars(c *oddCluster) {
	b.t.Helper()
	dir := b.t.TempDir()
	control := b.tars[b.special("pg_control")]
	if len(control) != 1 || control[0].name != "/global/pg_control" || control[0].size != 8192 || control[0].mode != 0o600 || control[0].kind != '-' {
		b.t.Fatalf("pg_control.tar holds %+v", control)
	}
	if st, err := os.Stat(filepath.Join(c.DataDir, "global", "pg_control")); err != nil {
		b.t.Error(err)
	} else if own := st.Sys().(*syscall.Stat_t); control[0].uid != uint64(own.Uid) || control[0].gid != uint64(own.Gid) {
		b.t.Errorf("pg_control belongs to %d:%d", control[0].uid, control[0].gid)
	}
	for _, name := range []string{b.special("pg_control"), b.special("backup_label")} {
		external(b.t, b.decoded(b.folder+"tar_partitions/"+name), "tar", "-x", "-C", dir, "-f", "-")
	}
	id := c.Query(b.t, "SELECT system_identifier FROM pg_control_system()")
	if has(c.Postgres, "pg_controldata") {
		out := string(external(b.t, nil, filepath.Join(c.BinDir, "pg_controldata"), "-D", dir))
		if strings.Contains(out, "WARNING") || !regexp.MustCompile(`system identifier: +`+id+`\n`).MatchString(out) {
			b.t.Errorf("pg_controldata says\n%s", out)
		}
	} else { // pg_control.h: the first field
		raw, err := os.ReadFile(filepath.Join(dir, "global/pg_control"))
		if err != nil || len(raw) != 8192 || strconv.FormatUint(binary.LittleEndian.Uint64(raw), 10) != id {
			b.t.Errorf("pg_control has %d bytes and is not of the cluster %s (%v)", len(raw), id, err)
		}
	}

	label := b.tars[b.special("backup_label")]
	var names []string
	for _, e := range label {
		names = append(names, e.name)
		if e.mode != 0o600 || e.uid != 0 || e.gid != 0 || e.mtime.Unix() != 0 || e.kind != '-' {
			b.t.Errorf("backup_label.tar holds %+v", e)
		}
	}
	if !slices.Equal(names, []string{"backup_label", "tablespace_map"}) {
		b.t.Errorf("backup_label.tar holds %v", names)
	}
	text, err := os.ReadFile(filepath.Join(dir, "backup_label"))
	if err != nil {
		b.t.Fatal(err)
	}
	for _, line := range []string{
		fmt.Sprintf("START WAL LOCATION: %s (file %s)\n", b.lsn("LSN"), strings.TrimPrefix(b.name, "base_")),
		"BACKUP METHOD: streamed\n", "BACKUP FROM: " + c.primary() + "\n", "START TIMELINE: 1\n",
	} {
		if !strings.Contains(string(text), line) {
			b.t.Errorf("backup_label does not say %q:\n%s", line, text)
		}
	}
	spaces, err := os.ReadFile(filepath.Join(dir, "tablespace_map"))
	if want := c.spaceOID + " " + c.space + "\n"; err != nil || string(spaces) != want {
		b.t.Errorf("tablespace_map is %q instead of %q (%v)", spaces, want, err)
	}
}

// checkFiles looks at "Files" and "TarFileSets" of files_metadata.json.
func (b *stored) checkFiles(same map[string]diskEntry) {
	b.t.Helper()
	raw := b.read(b.folder + "files_metadata.json")
	if got, want := orderOfKeys(b.t, raw), []string{"Files", "TarFileSets", "DatabasesByNames"}; !slices.Equal(got, want) {
		b.t.Errorf("files_metadata.json has the keys %v instead of %v", got, want)
	}
	if !bytes.Contains(raw, []byte("a<b>&c")) {
		b.t.Error("files_metadata.json escapes HTML characters")
	}
	files := b.files["Files"].(map[string]any)
	sets := b.files["TarFileSets"].(map[string]any)
	wantSets := map[string][]string{b.special("backup_label"): {"tablespace_map", "backup_label"}}
	inTars := map[string]bool{}
	for _, part := range b.parts() {
		for _, e := range b.tars[part] {
			wantSets[part] = append(wantSets[part], e.name)
			inTars[e.name] = true
			if files[e.name] == nil {
				b.t.Errorf("Files does not name %q of %s", e.name, part)
			}
		}
	}
	for name := range files {
		if !inTars[name] {
			b.t.Errorf("Files names %q, which is in no part", name)
		}
	}
	if !inTars["/"] || !inTars["/base"] || inTars["/global/pg_control"] {
		b.t.Error("the directories are not among the entries, or pg_control is")
	}
	for name, want := range wantSets {
		b.equal("TarFileSets of "+name, fmt.Sprint(sets[name]), fmt.Sprint(want))
	}
	if len(sets) != len(wantSets) {
		b.t.Errorf("TarFileSets has %d sets instead of %d", len(sets), len(wantSets))
	}
	for name, v := range files {
		f, ok := v.(map[string]any)
		if !ok {
			b.t.Fatalf("Files says %v of %q", v, name)
		}
		at, err := time.Parse(time.RFC3339Nano, fmt.Sprint(f["MTime"]))
		if err != nil || len(f) != 4 || f["IsIncremented"] != false || f["IsSkipped"] != false || f["UpdatesCount"] != json.Number("0") {
			b.t.Errorf("Files says %v of %q (%v)", f, name, err)
		}
		if d, ok := same[name]; ok && !at.Equal(d.mtime) { // to the nanosecond: WAL-G's deltas compare it
			b.t.Errorf("Files says %s of %q, which was modified at %s", at, name, d.mtime)
		}
	}
}

// checkDatabases looks at "DatabasesByNames" of files_metadata.json.
func (b *stored) checkDatabases(c *oddCluster) {
	b.t.Helper()
	databases := b.files["DatabasesByNames"].(map[string]any)
	for name := range databases {
		if name != "postgres" && name != "template1" {
			b.t.Errorf("DatabasesByNames names %q", name)
		}
	}
	for _, name := range []string{"postgres", "template1"} {
		database, ok := databases[name].(map[string]any)
		if !ok {
			b.t.Fatalf("DatabasesByNames does not name %s", name)
		}
		b.equal("the OID of "+name, database["oid"], json.Number(c.Query(b.t, "SELECT oid FROM pg_database WHERE datname = '"+name+"'")))
		tables := database["tables_new"].(map[string]any)
		count := strconv.Itoa(countRelations(tables))
		b.equal("the number of relations of "+name, count, c.QueryIn(b.t, name,
			"SELECT count(*) FROM pg_class WHERE relpersistence <> 't' AND (pg_relation_filenode(oid) IS NOT NULL OR relkind IN ('p', 'I'))"))
	}

	files := b.files["Files"].(map[string]any)
	tables := databases["postgres"].(map[string]any)["tables_new"].(map[string]any)
	relation := func(in map[string]any, name string) map[string]any {
		b.t.Helper()
		r, ok := in["public."+name].(map[string]any)
		if !ok {
			b.t.Fatalf("DatabasesByNames does not hold %s where it belongs", name)
		}
		b.equal("the OID of "+name, r["oid"], json.Number(c.Query(b.t, "SELECT '"+name+"'::regclass::oid")))
		b.equal("the file of "+name, r["relfilenode"], json.Number(c.Query(b.t, "SELECT relfilenode FROM pg_class WHERE oid = '"+name+"'::regclass")))
		return r
	}
	for _, name := range []string{"plain", "plain_pkey", "in_space", "scratchpad"} {
		r := relation(tables, name)
		if r["subtables"] != nil {
			b.t.Errorf("%s has subtables: %v", name, r)
		}
		if path := "/" + c.Query(b.t, "SELECT pg_relation_filepath('"+name+"')"); name != "scratchpad" && files[path] == nil {
			b.t.Errorf("Files does not name %s, the file of %s", path, name)
		} else if filepath.Base(path) != fmt.Sprint(r["relfilenode"]) {
			b.t.Errorf("%s lies in %s, DatabasesByNames says %v", name, path, r)
		}
	}
	if r := relation(tables, "in_space"); r["oid"] == r["relfilenode"] {
		b.t.Error("the OID and the file of in_space are the same: the test means them to differ")
	}
	events := relation(tables, "events")
	b.equal("the file of a partitioned table", events["relfilenode"], json.Number("0"))
	subtables, ok := events["subtables"].(map[string]any)
	if !ok || len(subtables) != 2 {
		b.t.Fatalf("events is %v", events)
	}
	relation(subtables, "events_low")
	high := relation(subtables, "events_high")
	b.equal("the file of a partitioned partition", high["relfilenode"], json.Number("0"))
	if deeper, ok := high["subtables"].(map[string]any); !ok || len(deeper) != 1 {
		b.t.Errorf("events_high is %v", high)
	} else {
		relation(deeper, "events_500")
	}
}

func countRelations(tables map[string]any) int {
	n := len(tables)
	for _, r := range tables {
		if deeper, ok := r.(map[string]any)["subtables"].(map[string]any); ok {
			n += countRelations(deeper)
		}
	}
	return n
}

// checkManifest compares walden_manifest.json with the objects and the tars.
func (b *stored) checkManifest(c *oddCluster, method string) {
	b.t.Helper()
	for key, want := range map[string]any{
		"version": json.Number("1"), "backup": b.name, "walden": b.sentinel["Walden"].(map[string]any)["Version"],
		"system_identifier": fmt.Sprint(b.sentinel["SystemIdentifier"]), "pg_version": b.sentinel["PgVersion"], "timeline": json.Number("1"),
		"start_lsn": b.lsn("LSN"), "stop_lsn": b.lsn("FinishLSN"), "wal_segment_size": json.Number("1048576"), "page_size": json.Number("8192"),
		"data_checksums": true, "from_standby": false, "compression": method, "encryption": "none",
	} {
		b.equal(key+" of the manifest", b.manifest[key], want)
	}
	needed := b.manifest["wal"].(map[string]any)
	b.equal("wal.state of the manifest", needed["state"], "archived")
	b.equal("wal.first of the manifest", needed["first"], c.Query(b.t, "SELECT pg_walfile_name('"+b.lsn("LSN")+"')"))
	b.equal("wal.last of the manifest", needed["last"], c.Query(b.t, "SELECT pg_walfile_name('"+b.lsn("FinishLSN")+"')")) // the end is never the first byte of a segment here

	var partNames []string
	for _, v := range b.manifest["parts"].([]any) {
		p := v.(map[string]any)
		name, _ := p["name"].(string)
		partNames = append(partNames, name)
		key := b.folder + "tar_partitions/" + name
		b.equal("the SHA-256 of "+name, p["sha256"], b.objects[key])
		b.equal("the size of "+name, b.number(name, p["size"]), int64(len(b.read(key))))
	}
	if want := append(b.parts(), b.special("pg_control"), b.special("backup_label")); !slices.Equal(partNames, want) {
		b.t.Errorf("the manifest names the parts %v instead of %v", partNames, want)
	}

	const emptyXXH128 = "99aa06d3014798d86001c324468d497f" // XXH3-128 of no bytes, seed 0 (xxHash's specification)
	entries := 0
	for _, v := range b.manifest["files"].([]any) {
		f := v.(map[string]any)
		name := f["name"].(string)
		var e tarEntry
		for _, part := range b.parts() {
			if at := slices.IndexFunc(b.tars[part], func(e tarEntry) bool { return e.name == name }); at >= 0 {
				e = b.tars[part][at]
				if n, ok := f["part"]; ok && partNames[b.number("part", n)] != part {
					b.t.Errorf("the manifest says part %v of %q, which is in %s", n, name, part)
				}
				break
			}
		}
		entries++
		b.equal("dir of "+name, f["dir"] == true, e.kind == 'd')
		if e.kind != 'l' {
			b.equal("mode of "+name, f["mode"], fmt.Sprintf("%04o", e.mode))
		}
		at, err := time.Parse(time.RFC3339Nano, fmt.Sprint(f["mtime"]))
		if err != nil || !at.Round(time.Second).Equal(e.mtime) {
			b.t.Errorf("the manifest says that %q was modified at %v, its tar %s (%v)", name, f["mtime"], e.mtime, err)
		}
		hash, _ := f["xxh128"].(string)
		switch e.kind {
		case 'l':
			b.equal("link of "+name, f["link"], e.link)
		case '-':
			size := int64(0)
			if f["size"] != nil {
				size = b.number("size", f["size"])
			}
			b.equal("size of "+name, size, e.size)
			if len(hash) != 32 || (hash == emptyXXH128) != (e.size == 0) || f["part"] == nil {
				b.t.Errorf("the manifest says %v of %q", f, name)
			}
		case 'd':
		default:
			b.t.Errorf("the manifest names %q, which is in no part", name)
		}
	}
	b.equal("the number of files in the manifest", entries, len(b.files["Files"].(map[string]any)))
}

// checkSizes compares the three sums of the sentinel with the objects, the tars and the disk.
func (b *stored) checkSizes(after []diskEntry) {
	b.t.Helper()
	var objects, inParts, special, onDisk int64
	for name, entries := range b.tars {
		objects += int64(len(b.read(b.folder + "tar_partitions/" + name)))
		for _, e := range entries {
			if strings.HasPrefix(name, "part_") {
				inParts += e.size
			} else {
				special += e.size
			}
		}
	}
	for _, d := range after {
		onDisk += d.size
	}
	b.equal("CompressedSize", b.number("CompressedSize", b.sentinel["CompressedSize"]), objects)
	b.equal("data_size of the manifest", b.number("data_size", b.manifest["data_size"]), inParts)
	if n := b.number("UncompressedSize", b.sentinel["UncompressedSize"]); n != inParts+special {
		b.t.Errorf("UncompressedSize is %d; the parts hold %d bytes, the two special tars %d", n, inParts, special)
	}
	const most = 1 << 20 // what directories and files that grew during the backup may add
	if n := b.number("DataCatalogSize", b.sentinel["DataCatalogSize"]); math.Abs(float64(n-onDisk)) > most {
		b.t.Errorf("DataCatalogSize is %d; on disk there are %d bytes", n, onDisk)
	}
}

// checkWAL compares the archived WAL with the server's.
func (b *stored) checkWAL(c *oddCluster) {
	b.t.Helper()
	compared := map[string]bool{}
	for key := range b.objects {
		name, ok := strings.CutPrefix(strings.TrimSuffix(key, b.coding.extension), "wal_005/")
		if !ok {
			continue
		}
		want, err := os.ReadFile(filepath.Join(c.DataDir, "pg_wal", name))
		if err != nil {
			b.t.Errorf("the server does not keep its WAL for this test: %v", err)
			continue
		}
		if !bytes.Equal(b.decoded(key), want) {
			b.t.Errorf("%s is not what the server archived", key)
		}
		compared[name] = true
	}
	needed := b.manifest["wal"].(map[string]any)
	history := strings.TrimPrefix(b.name, "base_") + fmt.Sprintf(".%08X.backup", b.number("LSN", b.sentinel["LSN"])%(1<<20))
	for _, name := range []string{needed["first"].(string), needed["last"].(string), history} {
		if !compared[name] {
			b.t.Errorf("%s, which the backup needs, was not archived", name)
		}
	}
}

// checkIdentity looks at walden_identity.json.
func (b *stored) checkIdentity(c *oddCluster) {
	b.t.Helper()
	doc := b.document("walden_identity.json")
	b.equal("the version of the identity", doc["version"], json.Number("1"))
	current := doc["current"].(map[string]any)
	b.equal("the system identifier", current["system_identifier"], c.Query(b.t, "SELECT system_identifier FROM pg_control_system()"))
	b.equal("the major version", current["pg_major"], json.Number(strconv.Itoa(c.Major)))
	b.equal("the segment size", current["wal_segment_size"], json.Number("1048576"))
	if doc["previous"] != nil {
		b.t.Errorf("a new archive belonged to %v before", doc["previous"])
	}
}
