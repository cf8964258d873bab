package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// deltaSite is an installation that takes deltas.
func deltaSite(t *testing.T, settings ...string) *site {
	t.Helper()
	return newSite(t, append([]string{"WALG_DELTA_MAX_STEPS=8"}, settings...)...)
}

// push takes a backup and returns its name and what the log says.
func (s *site) push(p *testenv.Postgres, args ...string) (name, log string) {
	s.t.Helper()
	r := s.must(p, append([]string{"backup-push", p.DataDir}, args...)...)
	return s.latest(), r.stderr
}

// isDelta tells whether a backup is one, by its name.
func isDelta(name string) bool { return strings.Contains(name, "_D_") }

// workload makes random changes of every kind that has a rule of its own in a delta.
type workload struct {
	t      *testing.T
	p      *testenv.Postgres
	chance *rand.Rand
	spaces []string // tablespaces
	places []string // where they are
	n      int      // of names given
	tables []string // that exist
	copies []string // databases that exist, besides postgres
}

func newWorkload(t *testing.T, p *testenv.Postgres, chance *rand.Rand) *workload {
	w := &workload{t: t, p: p, chance: chance}
	for i := range 2 {
		dir := filepath.Join(testenv.Scratch(t), "space")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		own(t, dir)
		w.spaces, w.places = append(w.spaces, fmt.Sprintf("space%d", i)), append(w.places, dir)
		p.Exec(t, fmt.Sprintf("CREATE TABLESPACE space%d LOCATION '%s'", i, dir))
	}
	p.Exec(t, "CREATE DATABASE pattern")
	p.ExecIn(t, "pattern", "CREATE TABLE old AS SELECT g AS id, repeat('o', 200) AS note FROM generate_series(1, 2000) AS g", "VACUUM FREEZE old")
	for range 3 {
		w.create()
	}
	return w
}

// elsewhere are the arguments that restore the tablespaces to other places.
func (w *workload) elsewhere() (args []string) {
	for _, place := range w.places {
		args = append(args, "--tablespace-mapping", place+"="+filepath.Join(testenv.Scratch(w.t), "moved"))
	}
	return args
}

func (w *workload) name(kind string) string {
	w.n++
	return fmt.Sprintf("%s%d", kind, w.n)
}

func (w *workload) exec(sql string, args ...any) { w.p.Exec(w.t, fmt.Sprintf(sql, args...)) }

func (w *workload) create() {
	name := w.name("t")
	kind := []string{"", "", "", "UNLOGGED "}[w.chance.IntN(4)]
	space := append([]string{"pg_default"}, w.spaces...)[w.chance.IntN(3)]
	w.exec("CREATE %sTABLE %s(id bigint PRIMARY KEY, note text) TABLESPACE %s", kind, name, space)
	w.exec("ALTER TABLE %s ALTER note SET STORAGE EXTERNAL", name)
	w.exec("INSERT INTO %s SELECT g, repeat(md5(g::text), %d) FROM generate_series(1, %d) AS g", name,
		[]int{1, 3, 150}[w.chance.IntN(3)], 1+w.chance.IntN(3000))
	w.tables = append(w.tables, name)
}

// step makes one change.
func (w *workload) step() {
	if len(w.tables) == 0 {
		w.create()
	}
	i := w.chance.IntN(len(w.tables))
	table := w.tables[i]
	switch w.chance.IntN(17) {
	case 0:
		w.create()
	case 1:
		w.exec("DROP TABLE %s", table)
		w.tables = append(w.tables[:i], w.tables[i+1:]...)
	case 2:
		w.exec("TRUNCATE %s", table)
	case 3:
		w.exec("INSERT INTO %s SELECT g, md5(g::text) FROM generate_series((SELECT coalesce(max(id), 0) + 1 FROM %s), (SELECT coalesce(max(id), 0) + %d FROM %s)) AS g",
			table, table, 1+w.chance.IntN(4000), table)
	case 4:
		w.exec("UPDATE %s SET note = md5(note) WHERE id %% %d = 0", table, 1+w.chance.IntN(20))
	case 5:
		w.exec("UPDATE %s SET note = note || 'x' WHERE id = %d", table, 1+w.chance.IntN(3000))
	case 6: // cuts the end off, which may grow again by pages that are empty
		w.exec("DELETE FROM %s WHERE id > (SELECT coalesce(max(id), 0) / 2 FROM %s)", table, table)
		w.exec("VACUUM %s", table)
	case 7:
		w.exec("VACUUM FULL %s", table)
	case 8:
		w.exec("REINDEX TABLE %s", table)
	case 9:
		w.exec("VACUUM (FREEZE) %s", table)
	case 10:
		w.exec("SELECT count(*) FROM %s", table) // hint bits
		w.exec("CHECKPOINT")
	case 11:
		w.exec("CHECKPOINT")
	case 12:
		w.copyDatabase()
	case 13:
		w.exec("ALTER TABLE %s SET TABLESPACE %s", table, append([]string{"pg_default"}, w.spaces...)[w.chance.IntN(3)])
	case 14:
		if len(w.copies) > 0 {
			w.exec("ALTER DATABASE %s SET TABLESPACE %s", w.copies[0], w.spaces[w.chance.IntN(2)])
		}
	case 15:
		if len(w.copies) > 0 {
			w.exec("DROP DATABASE %s", w.copies[0])
			w.copies = w.copies[1:]
		}
	case 16:
		if len(w.copies) > 0 {
			w.p.ExecIn(w.t, w.copies[0], "UPDATE old SET note = 'new' WHERE id % 3 = 0", "VACUUM old")
		}
	}
}

// copyDatabase makes a database by both strategies, and sometimes with the OID of one that was dropped: its files take the place of
// others, and have older positions in the log.
func (w *workload) copyDatabase() {
	name := w.name("d")
	with := ""
	if w.p.Major >= 15 {
		with = []string{"STRATEGY = file_copy", "STRATEGY = wal_log", "STRATEGY = file_copy OID = 600000"}[w.chance.IntN(3)]
		if strings.Contains(with, "OID") {
			if old := w.p.Query(w.t, "SELECT datname FROM pg_database WHERE oid = 600000"); old != "" {
				w.exec("DROP DATABASE %s", old)
				for i, c := range w.copies {
					if c == old {
						w.copies = append(w.copies[:i:i], w.copies[i+1:]...)
						break
					}
				}
			}
		}
	}
	w.exec("CREATE DATABASE %s TEMPLATE pattern %s", name, with)
	w.copies = append(w.copies, name)
}

// clusterDigest is a summary of all rows of all databases.
func clusterDigest(t *testing.T, p *testenv.Postgres) string {
	t.Helper()
	var all strings.Builder
	for _, database := range strings.Fields(p.Query(t, "SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1")) {
		fmt.Fprintf(&all, "%s:", database)
		for _, table := range strings.Fields(p.QueryIn(t, database, `SELECT c.oid::regclass FROM pg_class AS c WHERE relkind = 'r' AND relpersistence = 'p'
			AND relnamespace = 'public'::regnamespace AND relname NOT LIKE 'churn%' ORDER BY relname`)) {
			fmt.Fprintf(&all, " %s=%s", table, p.QueryIn(t, database, "SELECT count(*) || ' ' || coalesce(md5(string_agg(id || note, ',' ORDER BY id)), '') FROM "+table))
			fmt.Fprintf(&all, "/%s", p.QueryIn(t, database, "SELECT count(*), sum(id) FROM "+table+" WHERE id > 0")) // by the index, where that is preferred
		}
		all.WriteString("\n")
	}
	return all.String()
}

// moment is a backup with what the cluster held after it had ended: a digest of its rows, and the files.
type moment struct{ backup, point, digest, files string }

// Chains of deltas of random lengths, by each source, come back to what the cluster held.
func TestRandomChainsOfDeltas(t *testing.T) {
	t.Parallel()
	for i := range chains(testenv.Pick(1, 50)) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			if i < 4 {
				t.Parallel()
			}
			randomChain(t, i)
		})
	}
}

// chains is how many chains are taken: so many, or what the environment's WALDEN_TEST_CHAINS says.
func chains(usual int) int {
	if n, err := strconv.Atoi(os.Getenv("WALDEN_TEST_CHAINS")); err == nil {
		return n
	}
	return usual
}

func randomChain(t *testing.T, number int) {
	chance := testenv.Rand(t)
	s := deltaSite(t, "WALG_COMPRESSION_METHOD=zstd").quick()
	settings := s.archiving("autovacuum=off", "max_wal_size=64MB", "wal_log_hints="+[]string{"on", "off"}[chance.IntN(2)])
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Checksums: chance.IntN(2) == 0, Settings: settings})
	summaries := p.Major >= 17
	w := newWorkload(t, p, chance)
	background := startLoad(t, p)
	var moments []moment
	for member := range 2 + chance.IntN(testenv.Pick(3, 8)) {
		for range 3 + chance.IntN(12) {
			w.step()
		}
		source := []string{"scan", "archived WAL", "summaries"}[(member+number+chance.IntN(2))%3]
		if source == "summaries" && !summaries {
			source = "scan"
		}
		if summaries {
			p.Exec(t, fmt.Sprintf("ALTER SYSTEM SET summarize_wal = %t", source == "summaries" || chance.IntN(2) == 0))
			p.Reload(t)
		}
		args := []string{"--walg-use-wal-delta=" + fmt.Sprint(source == "archived WAL"),
			"--walg-delta-origin=" + []string{"LATEST", "LATEST", "LATEST_FULL"}[chance.IntN(3)]}
		name, log := s.push(p, args...)
		if isDelta(name) != (member > 0) {
			t.Fatalf("backup %d is called %s\n%s", member, name, log)
		}
		used := "scan"
		for _, known := range []string{"archived WAL", "summaries"} {
			if strings.Contains(log, "only pages that changed are read") && strings.Contains(log, known) {
				used = known
			}
		}
		if member > 0 {
			testenv.Figure(t, "deltas taken, by source", used, 1)
		}
		point := fmt.Sprintf("point%d", member)
		background.stop()
		files := p.BaseCopy(t)
		p.Exec(t, "CHECKPOINT", "SELECT pg_create_restore_point('"+point+"')")
		moments = append(moments, moment{name, point, clusterDigest(t, p), files})
		s.archived(p)
		background = startLoad(t, p)
	}
	background.stop()
	s.archived(p)
	for _, m := range moments {
		dir := s.fetch(m.backup, w.elsewhere()...)
		recoverTo(t, s, dir, m.point)
		recoverTo(t, s, m.files, m.point)
		testenv.Figure(t, "pages compared with a copy that the server's own recovery made", "chains of deltas", samePages(t, m.files, dir))
		settings := s.restoreSettings("recovery_target_name="+m.point, "recovery_target_action=promote", "enable_seqscan=off", "enable_bitmapscan=off")
		restored := testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Settings: settings})
		restored.WaitFor(t, "SELECT pg_is_in_recovery()", "f", time.Minute)
		if got := clusterDigest(t, restored); got != m.digest {
			t.Errorf("backup %s came back as\n%s\ninstead of\n%s", m.backup, got, m.digest)
		}
		checkTables(t, restored)
		restored.Stop("fast")
	}
	testenv.Figure(t, "chains of deltas restored", "members", len(moments))
}

// Without checksums and wal_log_hints VACUUM marks a page all visible and leaves its position in the log alone. With the new
// visibility map and the old page, index-only scans would find rows that were deleted later.
func TestAPageMarkedAllVisibleIsInTheDelta(t *testing.T) {
	t.Parallel()
	s := deltaSite(t).quick()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving("autovacuum=off", "wal_log_hints=off")})
	p.Exec(t, "CREATE TABLE t AS SELECT g AS id, 'x' AS note FROM generate_series(1, 10000) AS g", "CREATE INDEX ON t(id)", "SELECT count(*) FROM t", "CHECKPOINT")
	s.push(p)
	p.Exec(t, "VACUUM t")
	name, log := s.push(p)
	if !isDelta(name) || !strings.Contains(log, "every page is read") {
		t.Fatalf("%s\n%s", name, log)
	}
	restored := testenv.OpenPostgres(t, s.fetch(name), testenv.PostgresOptions{
		Settings: s.restoreSettings("recovery_target=immediate", "recovery_target_action=promote", "autovacuum=off"),
	})
	restored.WaitFor(t, "SELECT pg_is_in_recovery()", "f", time.Minute)
	restored.Exec(t, "ALTER SYSTEM SET enable_seqscan = off", "ALTER SYSTEM SET enable_bitmapscan = off")
	restored.Reload(t)
	restored.WaitFor(t, "SHOW enable_bitmapscan", "off", time.Minute)
	restored.Exec(t, "DELETE FROM t WHERE id = 5")
	if got := restored.Query(t, "SELECT count(*) FROM t WHERE id = 5"); got != "0" {
		t.Errorf("%s rows are found that were deleted", got)
	}
}

// The files of a database that takes the place of another one by its OID have older positions in the log than the other's.
func TestADatabaseInThePlaceOfAnotherIsInTheDelta(t *testing.T) {
	t.Parallel()
	s := deltaSite(t).quick()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving("autovacuum=off")})
	if p.Major < 15 {
		return // OIDs of databases cannot be chosen
	}
	p.Exec(t, "CREATE DATABASE pattern")
	p.ExecIn(t, "pattern", "CREATE TABLE old AS SELECT g AS id, repeat('o', 200) AS note FROM generate_series(1, 2000) AS g", "VACUUM FREEZE old")
	const rows = "SELECT count(*), md5(string_agg(id || note, ',' ORDER BY id)) FROM old"
	want := p.QueryIn(t, "pattern", rows)
	create := "CREATE DATABASE %s TEMPLATE pattern STRATEGY file_copy OID 600000"
	p.Exec(t, fmt.Sprintf(create, "a"))
	p.ExecIn(t, "a", "DELETE FROM old WHERE id % 3 = 0", "VACUUM old", "CHECKPOINT")
	s.push(p)
	p.Exec(t, "DROP DATABASE a", fmt.Sprintf(create, "b"))
	for _, use := range []string{"false", "true"} { // by a scan, then by a map
		s.push(p, "--walg-delta-origin=LATEST_FULL", "--walg-use-wal-delta="+use)
		restored := testenv.OpenPostgres(t, s.fetch(s.latest()), testenv.PostgresOptions{
			Settings: s.restoreSettings("recovery_target=immediate", "recovery_target_action=promote"),
		})
		restored.WaitFor(t, "SELECT pg_is_in_recovery()", "f", time.Minute)
		if got := restored.QueryIn(t, "b", rows); got != want {
			t.Errorf("with the WAL read (%s) the database came back as %s instead of %s", use, got, want)
		}
		restored.Stop("fast")
	}
}

func TestWhatADeltaIsBasedOn(t *testing.T) {
	t.Parallel()
	s := deltaSite(t, "WALG_COMPRESSION_METHOD=zstd").quick()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving("autovacuum=off")})
	push := func(delta bool, says string, args ...string) string {
		t.Helper()
		p.Exec(t, "CREATE TABLE IF NOT EXISTS n(i int)", "INSERT INTO n VALUES (1)")
		name, log := s.push(p, args...)
		if isDelta(name) != delta || !strings.Contains(log, says) {
			t.Fatalf("backup-push %q takes %s and does not say %q\n%s", args, name, says, log)
		}
		return name
	}
	full := push(false, "there is none yet", "--add-user-data", `"first"`)
	first := push(true, "base="+full)
	s.checkDelta(first, full, full, 1)
	second := push(true, "base="+first)
	s.checkDelta(second, first, full, 2)
	s.checkDelta(push(true, "base="+full, "--walg-delta-origin=LATEST_FULL"), full, full, 3)
	s.checkDelta(push(true, "base="+full, "--delta-from-user-data", `"first"`), full, full, 1)
	s.checkDelta(push(true, "base="+first, "--delta-from-name", first), first, full, 2)
	push(false, "as long as it may be", "--walg-delta-max-steps=1")
	third := push(true, "deltas=1")
	push(false, "backup begins", "--full")
	push(false, "is not permanent", "--permanent")
	push(false, "is permanent")
	s.fails(p, 1, []string{"cannot take a delta", "base_000000010000000000000FFF"}, "backup-push", p.DataDir, "--delta-from-name", "base_000000010000000000000FFF")
	s.fails(p, 1, []string{"cannot take a delta without reading every page"}, "backup-push", p.DataDir, "--walg-force-wal-delta=true")

	folder := filepath.Join(s.archive, "basebackups_005", third)
	if err := os.Remove(filepath.Join(folder, "walden_manifest.json")); err != nil {
		t.Fatal(err)
	}
	push(false, "cannot be restored", "--delta-from-name", third)
	parts, err := filepath.Glob(filepath.Join(s.archive, "basebackups_005", second, "tar_partitions", "pg_control*"))
	if err != nil || len(parts) != 1 {
		t.Fatal(parts, err)
	}
	if err := os.Truncate(parts[0], 20); err != nil {
		t.Fatal(err)
	}
	push(false, "taking a full backup", "--delta-from-name", second)
}

// checkDelta checks what a delta's documents have to say for WAL-G to restore it and to go on with it (WAL-G format, "Requirements for
// deltas written by walden").
func (s *site) checkDelta(name, base, full string, count int) {
	s.t.Helper()
	var doc, was struct {
		LSN, DeltaLSN, FinishLSN uint64
		DeltaFrom, DeltaFullName string
		DeltaCount               int
	}
	type files struct {
		Files       map[string]struct{ IsIncremented, IsSkipped bool }
		TarFileSets map[string][]string
	}
	var has, had files
	for path, into := range map[string]any{
		name + "_backup_stop_sentinel.json": &doc, base + "_backup_stop_sentinel.json": &was,
		name + "/files_metadata.json": &has, base + "/files_metadata.json": &had,
	} {
		b, err := os.ReadFile(filepath.Join(s.archive, "basebackups_005", path))
		if err == nil {
			err = json.Unmarshal(b, into)
		}
		if err != nil {
			s.t.Fatalf("%s: %v", path, err)
		}
	}
	if doc.DeltaFrom != base || doc.DeltaFullName != full || doc.DeltaCount != count || doc.DeltaLSN != was.LSN || was.FinishLSN > doc.LSN {
		s.t.Errorf("the sentinel of %s is %+v, that of its base %+v", name, doc, was)
	}
	if want := "_D_" + strings.TrimPrefix(base, "base_")[:24]; !strings.HasSuffix(name, want) || len(name) != len("base_")+24+len(want) {
		s.t.Errorf("a delta against %s is called %s", base, name)
	}
	inTars := map[string]bool{}
	for _, set := range has.TarFileSets {
		for _, file := range set {
			inTars[file] = true
		}
	}
	skipped, increments := 0, 0
	for file, how := range has.Files {
		if how.IsSkipped == inTars[file] {
			s.t.Errorf("%s of %s is skipped (%v) and in a tar (%v)", file, name, how.IsSkipped, inTars[file])
		}
		if how.IsSkipped {
			skipped++
		}
		if how.IsIncremented {
			increments++
		}
		if _, there := had.Files[file]; !there && (how.IsSkipped || how.IsIncremented) {
			s.t.Errorf("%s has not all of %s, and its base nothing", name, file)
		}
	}
	if skipped < 100 || increments == 0 {
		s.t.Errorf("of %s %d files were skipped, and %d are increments", name, skipped, increments)
	}
}

func TestAChainOfWALGIsContinued(t *testing.T) {
	t.Parallel()
	f := readFixture(t, "delta-zstd")
	s := f.site(t)
	dir := s.fetch("LATEST")
	settings := s.restoreSettings("recovery_target_timeline=latest")
	for name, value := range s.archiving() {
		settings[name] = value
	}
	p := recoverTemplate1(t, dir, settings)
	p.ExecIn(t, "template1", "INSERT INTO orders(id, note) SELECT max(id) + 1, 'of walden' FROM orders")
	const rows = "SELECT count(*), md5(string_agg(id||':'||note, ',' ORDER BY id)) FROM orders"
	want := p.QueryIn(t, "template1", rows)
	name, log := s.push(p, "--walg-delta-max-steps=5", "--pgdatabase=template1")
	if !strings.HasSuffix(name, "_D_"+strings.TrimPrefix(f.Backup, "base_")[:24]) {
		t.Fatalf("the chain was not continued but %s taken:\n%s", name, log)
	}
	restored := recoverTemplate1(t, s.fetch(name), s.restoreSettings("recovery_target=immediate", "recovery_target_action=promote"))
	if got := restored.QueryIn(t, "template1", rows); got != want {
		t.Errorf("orders came back as %s instead of %s", got, want)
	}
}

// A relation above 1 GiB lies in several files. It is changed in each of them, cut within the second one, then within the first one, and
// grows again; a delta is taken after each, by a scan and by the WAL in turn.
func TestARelationOfSeveralFilesIsInADelta(t *testing.T) {
	t.Parallel()
	if !testenv.Full() {
		return // it writes some GiB
	}
	s := deltaSite(t, "WALG_COMPRESSION_METHOD=lz4").quick()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{Settings: s.archiving("autovacuum=off", "max_wal_size=4GB")})
	const perFile = 1 << 30 / blockSize
	insert := fmt.Sprintf("INSERT INTO large SELECT g, repeat(md5(g::text), 22) FROM generate_series(%%d, %d) AS g", perFile+9000)
	p.Exec(t, "CREATE TABLE large(id bigint, note text) WITH (fillfactor = 10)", "ALTER TABLE large ALTER note SET STORAGE PLAIN", fmt.Sprintf(insert, 1),
		"CREATE INDEX ON large(id)", "CHECKPOINT")
	if blocks := p.Query(t, fmt.Sprintf("SELECT pg_relation_size('large') > %d::bigint * %d", perFile, blockSize)); blocks != "t" {
		t.Fatal("the relation has one file")
	}
	s.push(p)
	const digest = "SELECT count(*), md5(string_agg(id || note, ',' ORDER BY id)) FROM large"
	for i, work := range [][]string{
		{"UPDATE large SET note = reverse(note) WHERE id IN (5, 130000, 131073, 139000)"},
		{fmt.Sprintf("DELETE FROM large WHERE id > %d", perFile+4000), "VACUUM large"},
		{"DELETE FROM large WHERE id > 100000", "VACUUM large"},
		{fmt.Sprintf(insert, 100001)},
	} {
		p.Exec(t, work...)
		name, log := s.push(p, fmt.Sprintf("--walg-use-wal-delta=%t", i%2 == 1))
		if !isDelta(name) || strings.Contains(log, "every page is read") != (i%2 == 0) {
			t.Fatalf("backup %s\n%s", name, log)
		}
		files, point := p.BaseCopy(t), fmt.Sprintf("point%d", i)
		p.Exec(t, "CHECKPOINT", "SELECT pg_create_restore_point('"+point+"')")
		want := p.Query(t, digest)
		s.archived(p)
		dir := s.fetch(name)
		recoverTo(t, s, files, point)
		recoverTo(t, s, dir, point)
		samePages(t, files, dir)
		restored := testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Settings: s.restoreSettings("recovery_target_name="+point, "recovery_target_action=promote")})
		if got := restored.Query(t, digest); got != want {
			t.Errorf("after step %d: %s instead of %s", i, got, want)
		}
		restored.Stop("immediate")
		for _, d := range []string{dir, files} {
			if err := os.RemoveAll(d); err != nil {
				t.Fatal(err)
			}
		}
	}
}
