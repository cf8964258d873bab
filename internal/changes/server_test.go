package changes

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// TestTheLogAccountsForEveryPageThatChanged lets servers do whatever writes to files, and compares what the log says with the
// pages on disk before and after, and with what the server's own tools read from the log.
func TestTheLogAccountsForEveryPageThatChanged(t *testing.T) {
	t.Parallel()
	majors := []int{13, 15, 18}
	if testenv.Full() {
		majors = []int{13, 14, 15, 16, 17, 18}
	}
	modes := testenv.Some(t, 1, []string{"hints not logged", "hints logged", "checksums"})
	for _, major := range testenv.Majors(testenv.Some(t, 2, majors)...) {
		for _, mode := range modes {
			t.Run(fmt.Sprintf("PostgreSQL %d, %s", major, mode), func(t *testing.T) {
				t.Parallel()
				r := testenv.Rand(t)
				o := testenv.PostgresOptions{Major: major, Checksums: mode == "checksums", Settings: map[string]string{
					"wal_level": "logical", "wal_keep_size": "4GB", "max_prepared_transactions": "5", "track_commit_timestamp": "on",
					"autovacuum": "off", "max_wal_size": "4GB", "checkpoint_timeout": "1h",
				}}
				summaries := major >= 17
				if summaries {
					o.Settings["summarize_wal"] = "on"
				}
				if mode == "hints logged" {
					o.Settings["wal_log_hints"] = "on"
				}
				server := testenv.StartPostgres(t, o)
				site := &workload{t: t, p: server, r: r, folder: testenv.Scratch(t)}
				site.prepare()
				var managers [256]int
				for round := range testenv.Pick(1, 4) {
					server.Restart() // writes everything
					from := lsnOf(t, server.Query(t, "SELECT pg_current_wal_insert_lsn()"))
					server.Stop("fast")
					before := snapshot(t, server.DataDir)
					server.Start()
					site.work(round)
					to := lsnOf(t, server.Query(t, "SELECT pg_current_wal_insert_lsn()"))
					// A commit writes to the files all that was logged before it: a job's last records need not be there yet.
					server.Exec(t, "SELECT pg_logical_emit_message(true, 'walden', 'written')")
					compareWithTheServer(t, server, from, to, &managers)
					server.Stop("fast")
					after := snapshot(t, server.DataDir)
					m := foldLocal(t, server.DataDir, from)
					n := comparePages(t, m, before, after, mode == "hints not logged")
					testenv.Figure(t, "pages whose change is in the log", fmt.Sprintf("PostgreSQL %d", major), n)
					server.Start()
					if summaries {
						comparePages(t, summarized(t, server, from), before, after, mode == "hints not logged")
						testenv.Figure(t, "pages whose change is in the server's summaries", fmt.Sprintf("PostgreSQL %d", major), n)
					}
				}
				// Those of every kind of index, sequences, multixacts, databases, tablespaces, the map of relations, messages.
				for _, manager := range []int{0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 21} {
					if managers[manager] == 0 {
						t.Errorf("no record of resource manager %d was provoked", manager)
					}
				}
				total := 0
				for _, n := range managers {
					total += n
				}
				testenv.Figure(t, "WAL records compared", fmt.Sprintf("PostgreSQL %d", major), total)
			})
		}
	}
}

func lsnOf(t *testing.T, s string) wal.LSN {
	t.Helper()
	lsn, err := wal.ParseLSN(s)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

// workload is what changes files.
type workload struct {
	t      *testing.T
	p      *testenv.Postgres
	r      *rand.Rand
	folder string
}

func (w *workload) exec(sql ...string) { w.t.Helper(); w.p.Exec(w.t, sql...) }

func (w *workload) prepare() {
	places := []string{filepath.Join(w.folder, "one"), filepath.Join(w.folder, "two"), filepath.Join(w.folder, "more")}
	for i, place := range places {
		if out, err := testenv.AsPostgres(exec.Command("mkdir", place)).CombinedOutput(); err != nil {
			w.t.Fatalf("%v: %s", err, out)
		}
		if i < 2 {
			w.exec(fmt.Sprintf("CREATE TABLESPACE place%d LOCATION '%s'", i+1, place))
		}
	}
	w.exec("CREATE EXTENSION IF NOT EXISTS pageinspect")
	for _, name := range []string{"bloom", "pg_walinspect"} {
		if w.p.Query(w.t, "SELECT count(*) FROM pg_available_extensions WHERE name = '"+name+"'") == "1" {
			w.exec("CREATE EXTENSION " + name)
		}
	}
	w.exec("CREATE DATABASE lasting", "CREATE DATABASE moving")
	w.p.ExecIn(w.t, "moving", "CREATE TABLE m AS SELECT g AS i FROM generate_series(1, 1000) AS g")
	w.tables("", 3000)
	w.exec("CREATE UNLOGGED TABLE fleeting (i int PRIMARY KEY, t text)", "CREATE TABLE kept (i int) TABLESPACE place1")
}

// tables makes a table with an index of every kind.
func (w *workload) tables(suffix string, rows int) {
	w.exec(fmt.Sprintf(`CREATE TABLE of_all%[1]s (i serial PRIMARY KEY, v int, t text, p point, a int[], b box)`, suffix))
	w.fill(suffix, rows/2)
	for _, on := range []string{"btree (t)", "hash (v)", "gin (a)", "gist (p)", "spgist (p)", "spgist (t)", "brin (i)", "gist (b)"} {
		w.exec("CREATE INDEX ON of_all" + suffix + " USING " + on)
	}
	if w.p.Query(w.t, "SELECT count(*) FROM pg_extension WHERE extname = 'bloom'") == "1" {
		w.exec("CREATE INDEX ON of_all" + suffix + " USING bloom (v)")
	}
	w.fill(suffix, rows/2)
	w.exec(fmt.Sprintf("CREATE TABLE big%s (i serial, t text)", suffix),
		fmt.Sprintf("INSERT INTO big%s (t) SELECT (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 300 + g %% 7)) FROM generate_series(1, 30) AS g", suffix))
}

func (w *workload) fill(suffix string, rows int) {
	w.exec(fmt.Sprintf(`INSERT INTO of_all%s (v, t, p, a, b) SELECT (random() * 1e6)::int, md5(random()::text) || repeat('x', (random() * 300)::int),
		point(random(), random()), ARRAY[g, g %% 7, (random() * 100)::int], box(point(random(), random()), point(random(), random()))
		FROM generate_series(1, %d) AS g`, suffix, rows))
}

// work is everything that writes to files in ways of its own, in an order of chance.
func (w *workload) work(round int) {
	n := func(format string) string { return strings.ReplaceAll(format, "$", fmt.Sprintf("_%d", round)) }
	compressions := strings.Split(strings.Trim(w.p.Query(w.t, "SELECT enumvals FROM pg_settings WHERE name = 'wal_compression'"), "{}"), ",")
	if compressions[0] == "" { // until PostgreSQL 14 it is on or off
		compressions = []string{"on", "off"}
	}
	create := func(name, template, rest string) string {
		return "CREATE DATABASE " + name + " TEMPLATE " + template + " " + rest
	}
	strategies := []string{""}
	if w.p.Major >= 15 {
		strategies = []string{"STRATEGY file_copy", "STRATEGY wal_log"}
	}
	jobs := []func(){
		func() { w.tables(fmt.Sprintf("_%d", round), 2000) },
		func() {
			for _, method := range compressions {
				w.exec("CHECKPOINT", fmt.Sprintf("SET wal_compression = %s; UPDATE of_all SET v = v + 1, a = a || v WHERE i %% %d = 0", method, 2+w.r.IntN(5)))
			}
		},
		func() { w.exec("DELETE FROM of_all WHERE i % 3 = 0", "VACUUM of_all"); w.fill("", 500) },
		func() { // cut at the end, and grow again
			w.exec("DELETE FROM of_all WHERE i > (SELECT max(i) / 2 FROM of_all)", "VACUUM (FREEZE) of_all")
			w.fill("", 800)
		},
		func() { w.exec("VACUUM FULL of_all") },
		func() { w.exec("CLUSTER of_all USING of_all_pkey") },
		func() { w.exec("REINDEX TABLE of_all", "REINDEX TABLE CONCURRENTLY of_all") },
		func() { w.exec("VACUUM FULL pg_class", "REINDEX TABLE pg_type", "VACUUM FULL pg_authid") },
		func() {
			w.exec("TRUNCATE big", "INSERT INTO big (t) SELECT repeat(md5(g::text), 500) FROM generate_series(1, 20) AS g")
		},
		func() { w.exec("BEGIN; TRUNCATE big; INSERT INTO big (t) VALUES ('a'); TRUNCATE big; COMMIT") },
		func() { w.exec("BEGIN; CREATE TABLE gone (i int PRIMARY KEY); INSERT INTO gone VALUES (1); ROLLBACK") },
		func() { w.exec(n("CREATE TABLE short$ AS SELECT 1 AS i"), n("DROP TABLE short$")) },
		func() {
			w.exec(n("CREATE TABLE moved$ AS SELECT g AS i FROM generate_series(1, 5000) AS g"), n("ALTER TABLE moved$ SET TABLESPACE place2"),
				"ALTER TABLE kept SET TABLESPACE pg_default", "INSERT INTO kept SELECT generate_series(1, 3000)", "ALTER TABLE kept SET TABLESPACE place1")
		},
		func() {
			w.exec("INSERT INTO fleeting SELECT g, md5(g::text) FROM generate_series(1, 3000) AS g ON CONFLICT DO NOTHING",
				"ALTER TABLE fleeting SET LOGGED", "UPDATE fleeting SET t = t || 'x'", "ALTER TABLE fleeting SET UNLOGGED")
		},
		func() {
			for i, how := range strategies {
				name := fmt.Sprintf("made_%d_%d", round, i)
				w.exec(create(name, "lasting", how), create(name+"_elsewhere", "lasting", how+" TABLESPACE place1"))
				w.p.ExecIn(w.t, name, "CREATE TABLE x AS SELECT g AS i FROM generate_series(1, 2000) AS g")
				w.exec("DROP DATABASE " + name + "_elsewhere")
			}
		},
		func() {
			w.exec("ALTER DATABASE moving SET TABLESPACE place2")
			w.p.ExecIn(w.t, "moving", "UPDATE m SET i = i + 1")
			w.exec("ALTER DATABASE moving SET TABLESPACE pg_default")
		},
		func() { // a row with several lockers
			w.exec("BEGIN; SELECT i FROM of_all WHERE i < 50 FOR KEY SHARE; SAVEPOINT s; UPDATE of_all SET v = 0 WHERE i < 50; SAVEPOINT s2; " +
				"SELECT i FROM of_all WHERE i < 90 FOR UPDATE; COMMIT")
		},
		func() {
			w.exec(n("CREATE TABLE two$ (i int)"), n("CREATE TABLE three$ AS SELECT 1 AS i"),
				n("BEGIN; DROP TABLE three$; INSERT INTO two$ SELECT generate_series(1, 500); PREPARE TRANSACTION 'p'"), "COMMIT PREPARED 'p'",
				n("BEGIN; CREATE TABLE never$ AS SELECT 1 AS i; SAVEPOINT s; CREATE TABLE nor$ AS SELECT 1 AS i; PREPARE TRANSACTION 'q'"), "ROLLBACK PREPARED 'q'")
		},
		func() { w.exec("SELECT pg_logical_emit_message(false, 'walden', repeat('z', 20000000))") },
		func() { w.exec("SELECT pg_logical_emit_message(true, 'walden', 'z')") },
		func() {
			w.exec(n("SELECT pg_replication_origin_create('o$')"), n("SELECT pg_replication_origin_session_setup('o$'); UPDATE of_all SET v = 1 WHERE i < 9; SELECT pg_replication_origin_session_reset()"),
				n("SELECT pg_replication_origin_advance('o$', '0/1')"), n("SELECT pg_replication_origin_drop('o$')"))
		},
		func() {
			w.exec(n("CREATE SEQUENCE s$"), n("SELECT nextval('s$') FROM generate_series(1, 100)"), n("ALTER SEQUENCE s$ RESTART"))
		},
		func() {
			w.exec(n("CREATE MATERIALIZED VIEW v$ AS SELECT i, t FROM of_all"), n("REFRESH MATERIALIZED VIEW v$"), n("DROP MATERIALIZED VIEW v$"))
		},
		func() {
			w.exec(n("CREATE TABLESPACE shortlived$ LOCATION '"+w.folder+"/more'"), n("DROP TABLESPACE shortlived$"))
		},
		func() {
			w.exec("CHECKPOINT", "SELECT count(*) FROM of_all WHERE v > 5", "SELECT count(*) FROM pg_attribute")
		},
	}

	w.r.Shuffle(len(jobs), func(i, j int) { jobs[i], jobs[j] = jobs[j], jobs[i] })
	for _, job := range jobs {
		job()
	}
}

// page is what is kept of a page on disk.
type page struct {
	hash uint64
	lsn  uint64
	zero bool
}

var seed = maphash.MakeSeed()

// snapshot has the pages of the main forks of all relations that are logged.
func snapshot(t *testing.T, dataDir string) map[Relation][]page {
	t.Helper()
	found := map[Relation][]page{}
	number := regexp.MustCompile(`^[0-9]+$`)
	database := func(dir string, tablespace, db uint64) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if _, err := os.Stat(filepath.Join(dir, e.Name()+"_init")); !number.MatchString(e.Name()) || err == nil {
				continue
			}
			relation, _ := strconv.ParseUint(e.Name(), 10, 32)
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			pages := []page{}
			for ; len(b) >= 8192; b = b[8192:] {
				p := b[:8192]
				lsn := uint64(binary.LittleEndian.Uint32(p))<<32 | uint64(binary.LittleEndian.Uint32(p[4:]))
				pages = append(pages, page{maphash.Bytes(seed, p), lsn, bytes.Count(p, []byte{0}) == len(p)})
			}
			found[Relation{uint32(tablespace), uint32(db), uint32(relation)}] = pages
		}
	}
	database(filepath.Join(dataDir, "global"), 1664, 0)
	dirs, err := filepath.Glob(filepath.Join(dataDir, "base", "[0-9]*"))
	if err != nil {
		t.Fatal(err)
	}
	inTablespaces, err := filepath.Glob(filepath.Join(dataDir, "pg_tblspc", "*", "PG_*", "[0-9]*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range append(dirs, inTablespaces...) {
		tablespace := uint64(1663)
		if version := filepath.Dir(dir); strings.HasPrefix(filepath.Base(version), "PG_") {
			tablespace, _ = strconv.ParseUint(filepath.Base(filepath.Dir(version)), 10, 32)
		}
		db, _ := strconv.ParseUint(filepath.Base(dir), 10, 32)
		database(dir, tablespace, db)
	}
	return found
}

// comparePages checks that each page that is another than before is in the map, and returns how many there were.
//
// Where hint bits are not logged, a page that differs and has the position of its last record from before has got hint bits only: every
// change that is logged moves that position.
func comparePages(t *testing.T, m *Map, before, after map[Relation][]page, hintsAllowed bool) (changed int) {
	t.Helper()
	missing := 0
	for relation, pages := range after {
		blocks, whole := m.InFile(relation, 0, 131072, uint32(len(pages)))
		old := before[relation]
		for i, p := range pages {
			var was page
			if was.zero = i >= len(old); !was.zero {
				was = old[i]
			}
			if p.zero && was.zero || p.hash == was.hash || hintsAllowed && p.lsn == was.lsn && !p.zero && !was.zero {
				continue
			}
			changed++
			if !whole && !blocks.Has(uint32(i)) {
				if missing++; missing < 20 {
					t.Errorf("block %d of %v (%d pages, before %d) is not in the map: LSN %s, before %s", i, relation, len(pages), len(old),
						wal.LSN(p.lsn), wal.LSN(was.lsn))
				}
			}
		}
	}
	if changed == 0 {
		t.Error("no page changed")
	}
	return changed
}

// foldLocal folds the segments in pg_wal from the one with a position on.
func foldLocal(t *testing.T, dataDir string, from wal.LSN) *Map {
	t.Helper()
	m := &Map{}
	f := NewFolder(m)
	for s := wal.SegmentAt(1, from, 16<<20); ; s = s.Next() {
		b, err := os.ReadFile(filepath.Join(dataDir, "pg_wal", s.Name(16<<20)))
		if err != nil {
			t.Fatal(err)
		}
		err = f.Segment(bytes.NewReader(b))
		if errors.Is(err, wal.ErrEnds) {
			return m
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// summarized has what the server's summaries say of its log from a position on, up to now.
func summarized(t *testing.T, server *testenv.Postgres, from wal.LSN) *Map {
	t.Helper()
	to := server.Query(t, "SELECT pg_current_wal_insert_lsn()")
	server.Exec(t, "CHECKPOINT") // which ends a summary
	server.WaitFor(t, "SELECT summarized_lsn >= '"+to+"' FROM pg_get_wal_summarizer_state()", "t", 2*time.Minute)
	m := &Map{From: from}
	lines := server.Query(t, fmt.Sprintf(`SELECT c.reltablespace, c.reldatabase, c.relfilenode, c.relforknumber, c.relblocknumber, c.is_limit_block
		FROM pg_available_wal_summaries() AS s, pg_wal_summary_contents(s.tli, s.start_lsn, s.end_lsn) AS c WHERE s.end_lsn > '%s'`, from))
	for line := range strings.Lines(lines) {
		var r Relation
		var fork int16
		var block uint32
		var limit string
		if _, err := fmt.Sscanf(strings.ReplaceAll(line, "|", " "), "%d %d %d %d %d %s", &r.Tablespace, &r.Database, &r.Number, &fork, &block, &limit); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		m.Summarized(r, fork, block, limit == "t")
	}
	return m
}

// seen is what is compared of a record.
type seen struct {
	lsn    string
	length int64
	xid    string
	blocks string
}

// compareWithTheServer reads the records between two positions in walden's way and in the server's.
func compareWithTheServer(t *testing.T, server *testenv.Postgres, from, to wal.LSN, managers *[256]int) {
	t.Helper()
	var ours []seen
	reader := wal.NewRecordReader(wanted, func(r *wal.Record) error {
		if r.Start < from || r.End > to {
			return nil
		}
		managers[r.Manager]++
		var blocks []string
		for _, b := range r.Blocks {
			blocks = append(blocks, fmt.Sprintf("%d: %d/%d/%d %d %d %t", b.ID, b.Relation.Tablespace, b.Relation.Database, b.Relation.Number, b.Fork, b.Block, b.HasImage))
		}
		ours = append(ours, seen{r.Start.String(), r.Length, strconv.Itoa(int(r.Transaction)), strings.Join(blocks, ", ")})
		return nil
	})
	for s := wal.SegmentAt(1, from, 16<<20); ; s = s.Next() {
		b, err := os.ReadFile(filepath.Join(server.DataDir, "pg_wal", s.Name(16<<20)))
		if err != nil {
			t.Fatal(err)
		}
		if err = reader.Segment(bytes.NewReader(b)); errors.Is(err, wal.ErrEnds) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var theirs []seen
	switch {
	case server.Major == 15:
		theirs = ofWaldump(t, server, from, to)
	case server.Major >= 16:
		theirs = ofWalinspect(t, server, from, to)
	default: // their tools are not in the packages of servers
		return
	}
	if len(ours) != len(theirs) {
		t.Errorf("%d records between %s and %s, for the server there are %d", len(ours), from, to, len(theirs))
	}
	for i := range min(len(ours), len(theirs)) {
		if ours[i] != theirs[i] {
			t.Errorf("%+v is for the server %+v", ours[i], theirs[i])
			return
		}
	}
}

var (
	waldumpLine  = regexp.MustCompile(`^rmgr: \S+ +len \(rec/tot\): +\d+/ *(\d+), tx: +(\d+), lsn: (\w+/\w+),`)
	waldumpBlock = regexp.MustCompile(`blkref #(\d+): rel (\d+/\d+/\d+)(?: fork (\w+))? blk (\d+)( FPW)?`)
)

func ofWaldump(t *testing.T, server *testenv.Postgres, from, to wal.LSN) []seen {
	t.Helper()
	cmd := exec.Command(filepath.Join(server.BinDir, "pg_waldump"), "--path="+filepath.Join(server.DataDir, "pg_wal"), "--start="+from.String(), "--end="+to.String())
	out, err := testenv.AsPostgres(cmd).Output()
	if err != nil {
		t.Fatalf("pg_waldump: %v", err)
	}
	var theirs []seen
	for line := range strings.Lines(string(out)) {
		m := waldumpLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("pg_waldump: %s", line)
		}
		length, _ := strconv.ParseInt(m[1], 10, 64)
		lsn := lsnOf(t, m[3])
		var blocks []string
		for _, b := range waldumpBlock.FindAllStringSubmatch(line, -1) {
			fork := slices.Index([]string{"", "fsm", "vm", "init"}, b[3])
			blocks = append(blocks, fmt.Sprintf("%s: %s %d %s %t", b[1], b[2], fork, b[4], b[5] != ""))
		}
		theirs = append(theirs, seen{lsn.String(), length, m[2], strings.Join(blocks, ", ")})
	}
	return theirs
}

func ofWalinspect(t *testing.T, server *testenv.Postgres, from, to wal.LSN) []seen {
	t.Helper()
	between := fmt.Sprintf("('%s', '%s')", from, to)
	blocks := map[string][]string{}
	rows := server.Query(t, "SELECT start_lsn, block_id, reltablespace, reldatabase, relfilenode, relforknumber, relblocknumber, "+
		"coalesce(block_fpi_length, 0) > 0 FROM pg_get_wal_block_info"+between+" ORDER BY start_lsn, block_id")
	for _, row := range strings.Split(rows, "\n") {
		f := strings.Split(row, "|")
		if len(f) != 8 {
			t.Fatalf("pg_get_wal_block_info: %q", row)
		}
		blocks[f[0]] = append(blocks[f[0]], fmt.Sprintf("%s: %s/%s/%s %s %s %t", f[1], f[2], f[3], f[4], f[5], f[6], f[7] == "t"))
	}
	var theirs []seen
	for _, row := range strings.Split(server.Query(t, "SELECT start_lsn, record_length, xid FROM pg_get_wal_records_info"+between+" ORDER BY start_lsn"), "\n") {
		f := strings.Split(row, "|")
		length, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		theirs = append(theirs, seen{f[0], length, f[2], strings.Join(blocks[f[0]], ", ")})
	}
	slices.SortFunc(theirs, func(a, b seen) int { return cmp.Compare(lsnOf(t, a.lsn), lsnOf(t, b.lsn)) })
	return theirs
}

// TestAStretchThatIsNotLoggedIsRefused has a server write with wal_level = minimal in between.
func TestAStretchThatIsNotLoggedIsRefused(t *testing.T) {
	t.Parallel()
	majors := []int{13, 18}
	if testenv.Full() {
		majors = []int{13, 14, 15, 16, 17, 18}
	}
	for _, major := range testenv.Majors(majors...) {
		t.Run(fmt.Sprintf("PostgreSQL %d", major), func(t *testing.T) {
			t.Parallel()
			server := testenv.StartPostgres(t, testenv.PostgresOptions{Major: major, Settings: map[string]string{"wal_keep_size": "1GB"}})
			server.SwitchWAL(t)
			from := lsnOf(t, server.Query(t, "SELECT pg_current_wal_insert_lsn()"))
			server.Exec(t, "CREATE TABLE t AS SELECT 1 AS i", "ALTER SYSTEM SET wal_level = minimal", "ALTER SYSTEM SET max_wal_senders = 0")
			server.Restart()
			server.Exec(t, "CREATE TABLE u AS SELECT 1 AS i", "ALTER SYSTEM RESET wal_level", "ALTER SYSTEM RESET max_wal_senders")
			server.Restart()
			server.SwitchWAL(t)
			server.WaitFor(t, "SELECT pg_current_wal_lsn() > '"+from.String()+"'", "t", time.Minute)
			b, err := os.ReadFile(filepath.Join(server.DataDir, "pg_wal", wal.SegmentAt(1, from, 16<<20).Name(16<<20)))
			if err != nil {
				t.Fatal(err)
			}
			m := &Map{}
			if err := NewFolder(m).Segment(bytes.NewReader(b)); !errors.Is(err, ErrNotLogged) || m.To != 0 {
				t.Errorf("%v, and the map goes up to %s", err, m.To)
			}
		})
	}
}
