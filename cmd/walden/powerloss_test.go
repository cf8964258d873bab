package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// losses are what a power cut may take: what POSIX allows, what ext4 and XFS show, and mixtures by chance.
func losses(t *testing.T) []testenv.Loss {
	t.Helper()
	rnd := testenv.Rand(t)
	all := []testenv.Loss{testenv.LoseAll(), testenv.LoseData(), testenv.ZeroData()}
	for range testenv.Pick(1, 8) {
		all = append(all, testenv.LoseSome(rnd.Uint64()))
	}
	return all
}

// copyOf keeps what a cut leaves, for comparisons at later moments.
func copyOf(p *testenv.PowerCut, l testenv.Loss, dirs ...string) map[string]testenv.LeftFile {
	kept := map[string]testenv.LeftFile{}
	for _, dir := range dirs {
		for name, f := range p.Left(l, dir) {
			f.Content = bytes.Clone(f.Content)
			kept[filepath.Join(dir, name)] = f
		}
	}
	return kept
}

// equals remembers which contents were found equal to what a name shall hold: between two cuts of one journal few change.
type equals map[string]map[testenv.ContentState]bool

// compare tells whether a file holds what its name shall hold.
func (e equals) compare(name string, f testenv.LeftFile, want []byte) bool {
	if e[name][f.State] {
		return true
	}
	if !bytes.Equal(f.Content, want) {
		return false
	}
	if e[name] == nil {
		e[name] = map[testenv.ContentState]bool{}
	}
	e[name][f.State] = true
	return true
}

// differs names the first difference between what a cut leaves and what was kept; "" for none.
func differs(p *testenv.PowerCut, l testenv.Loss, want map[string]testenv.LeftFile, known equals, skip func(name string) bool, dirs ...string) string {
	seen := 0
	for _, dir := range dirs {
		for name, f := range p.Left(l, dir) {
			name = dir + "/" + name
			if skip(name) {
				continue
			}
			w, ok := want[name]
			switch {
			case !ok:
				return name + " should not be there"
			case !known.compare(name, f, w.Content):
				return fmt.Sprintf("%s has %d bytes that are not the %d wanted", name, len(f.Content), len(w.Content))
			case f.Mode != w.Mode || f.UID != w.UID || f.GID != w.GID:
				return fmt.Sprintf("%s has %s %d:%d, not %s %d:%d", name, f.Mode, f.UID, f.GID, w.Mode, w.UID, w.GID)
			}
			seen++
		}
	}
	for name := range want {
		if skip(name) {
			seen++
		}
	}
	if seen < len(want) {
		return fmt.Sprintf("%d names are missing", len(want)-seen)
	}
	return ""
}

func never(string) bool { return false }

// empty removes everything below a mounted disk.
func empty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
}

// onDisk makes an installation whose archive is a directory of the disk.
func onDisk(t *testing.T, d *testenv.FaultDisk, settings ...string) *site {
	t.Helper()
	s := bareSite(t).quick()
	s.archive = filepath.Join(d.Dir, "archive")
	if err := os.Mkdir(s.archive, 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, s.archive)
	s.configure(append([]string{"WALG_FILE_PREFIX=" + s.archive}, settings...)...)
	return s
}

// withoutUnnamed makes the disk one that has no files without a name, as NFS has none.
var withoutUnnamed = testenv.DiskFault{Op: "create", Path: "[^.]*", Errno: "EOPNOTSUPP"}

func TestPowerLossDuringABackupFetchLeavesAnUnusableTargetOrACompleteOne(t *testing.T) {
	t.Parallel()
	s := newSite(t).quick()
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving("autovacuum=off")})
	spaces := makeTablespaces(t, p)
	s.must(p, "backup-push", p.DataDir)
	p.Stop("fast")

	d := testenv.MountFaultDisk(t, true)
	dirs := []string{"data", "space0", "space1"}
	target := filepath.Join(d.Dir, "data")
	fetch := []string{"backup-fetch", target, "LATEST", "-T", spaces[0] + "=" + filepath.Join(d.Dir, "space0"), "-T", spaces[1] + "=" + filepath.Join(d.Dir, "space1")}

	// The first restore meets a bad disk; the second begins with removing what the first has left.
	d.Inject(t, testenv.DiskFault{Op: "write", Path: "data/.*|space./.*", Errno: "EIO", After: 400})
	s.fails(nil, 1, []string{"input/output error", "cannot write it", "hint: " + target + " holds an unfinished restore"}, fetch...)
	d.Heal(t)
	d.Mark(t, "again")
	s.must(nil, fetch...)
	d.Mark(t, "complete")

	journal := d.Journal(t)
	complete := copyOf(journal.End(), testenv.LoseAll(), dirs...)
	seen := 0
	for _, dir := range dirs {
		for name, content := range contentsOf(t, filepath.Join(d.Dir, dir), nil) {
			if name == "" {
				continue
			}
			seen++
			if w, ok := complete[filepath.Join(dir, name)]; !ok || !strings.HasSuffix(content, " "+string(w.Content)) {
				t.Errorf("after success, %s/%s is not durable", dir, name)
			}
		}
	}
	if seen != len(complete) || seen < 900 {
		t.Errorf("after success %d names are seen and %d are durable", seen, len(complete))
	}
	isMark := func(name string) bool { return name == "data/walden_restore.json" }

	cuts, unusable, known := 0, 0, equals{}
	all := losses(t)
	cut := journal.Replay()
	for e, ok := cut.Next(); ok; e, ok = cut.Next() {
		for _, loss := range all {
			cuts++
			if cut.Holds(loss, "data/global/pg_control") {
				if diff := differs(cut, loss, complete, known, isMark, dirs...); diff != "" {
					t.Fatalf("after %+v, %s: PostgreSQL could start it, but %s", e, loss, diff)
				}
				continue
			}
			unusable++
			if e.Op == "mark" && e.Name == "complete" {
				t.Fatalf("after success, %s: there is no control file", loss)
			}
			if bad := unmarked(cut, loss, dirs); bad != "" {
				t.Fatalf("after %+v, %s: %s", e, loss, bad)
			}
		}
	}
	testenv.Figure(t, "power cuts", "backup-fetch", cuts)
	t.Logf("%d cuts at %d operations, %d with an unusable target, the others complete", cuts, len(journal.Events), unusable)

	// What is left can be restored over by the same command.
	rnd := testenv.Rand(t)
	for i := range testenv.Pick(1, 20) {
		cut, loss := journal.Replay(), all[rnd.IntN(len(all))]
		for range rnd.IntN(len(journal.Events)) {
			cut.Next()
		}
		empty(t, d.Dir)
		cut.Lay(t, loss, "", d.Dir)
		if cut.Holds(loss, "data/global/pg_control") {
			s.fails(nil, 1, []string{"is not empty"}, fetch...)
			continue
		}
		if i == 0 && cut.Holds(loss, "data/PG_VERSION") {
			if err := testenv.AttachPostgres(t, target, testenv.PostgresOptions{}).TryStart(); err == nil {
				t.Errorf("%s: PostgreSQL starts what is left", loss)
			}
			empty(t, d.Dir)
			cut.Lay(t, loss, "", d.Dir)
		}
		s.must(nil, fetch...)
		if diff := differs(d.Journal(t).End(), testenv.LoseAll(), complete, equals{}, never, dirs...); diff != "" {
			t.Errorf("restored over what was left where %s: %s", loss, diff)
		}
	}
}

// unmarked says what is wrong with the mark of an unfinished restore: where anything of it lies, the mark has to say so.
func unmarked(p *testenv.PowerCut, l testenv.Loss, dirs []string) string {
	const mark = "walden_restore.json"
	anything := ""
	for _, dir := range dirs {
		for _, name := range p.Names(l, dir) {
			if dir+"/"+name != dirs[0]+"/"+mark {
				anything = dir + "/" + name
			}
		}
	}
	if anything == "" {
		return ""
	}
	f, ok := p.File(l, dirs[0]+"/"+mark)
	if !ok {
		return anything + " is there without the mark of an unfinished restore"
	}
	var m struct{ Directories []string }
	if err := json.Unmarshal(f.Content, &m); err != nil || len(m.Directories) != len(dirs)-1 {
		return fmt.Sprintf("%s is there, and the mark says %q (%v)", anything, f.Content, err)
	}
	return ""
}

func TestPowerLossDuringAWALFetchLeavesACompleteFileOrNone(t *testing.T) {
	t.Parallel()
	s := newSite(t).quick()
	p := s.smallSegments()
	p.Exec(t, "CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) AS g")
	s.archived(p)
	segment := p.Query(t, "SELECT last_archived_wal FROM pg_stat_archiver")
	want, err := os.ReadFile(filepath.Join(p.DataDir, "pg_wal", segment))
	if err != nil {
		t.Fatal(err)
	}
	for name, faults := range map[string][]testenv.DiskFault{"": nil, ", without unnamed files": {withoutUnnamed}} {
		t.Run("into pg_wal"+name, func(t *testing.T) {
			t.Parallel()
			d := testenv.MountFaultDisk(t, true)
			dir := filepath.Join(d.Dir, "pg_wal")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			own(t, dir)
			d.Mark(t, testenv.Settled)
			for _, f := range faults {
				d.Inject(t, f)
			}
			s.waldenIn(d.Dir, nil, "wal-fetch", segment, "pg_wal/RECOVERYXLOG").expect(t, 0)
			d.Mark(t, "complete")

			cuts, all, durable := 0, losses(t), false
			journal := d.Journal(t)
			cut := journal.Replay()
			for e, ok := cut.Next(); ok; e, ok = cut.Next() {
				for _, loss := range all {
					cuts++
					complete := false
					for name, f := range cut.Left(loss, "pg_wal") {
						switch {
						case strings.HasPrefix(name, ".walden-") && strings.HasSuffix(name, ".tmp"):
						case name != "RECOVERYXLOG":
							t.Fatalf("after %+v, %s: there is %q", e, loss, name)
						case !bytes.Equal(f.Content, want):
							t.Fatalf("after %+v, %s: the destination has %d bytes that are not the segment's", e, loss, len(f.Content))
						default:
							complete = true
						}
					}
					if e.Op == "mark" && e.Name == "complete" {
						if durable = true; !complete {
							t.Fatalf("after success, %s: the destination is not there", loss)
						}
					}
				}
			}
			if !durable {
				t.Error("the end was not met")
			}
			testenv.Figure(t, "power cuts", "wal-fetch", cuts)
		})
	}
}

func TestPowerLossLeavesNoMarkOfASegmentThatIsNotArchived(t *testing.T) {
	t.Parallel()
	d := testenv.MountFaultDisk(t, true)
	spool := mkdir(t, filepath.Join(d.Dir, "spool"))
	own(t, spool)
	s := onDisk(t, d, "WALG_PREFETCH_DIR="+spool, "WALG_UPLOAD_CONCURRENCY=4")
	p := s.smallSegments("archive_command=false", "wal_keep_size=1GB")
	p.Exec(t, "CREATE TABLE t(a text)")
	var segments []string
	for range testenv.Pick(4, 12) {
		p.Exec(t, "INSERT INTO t SELECT md5(random()::text) FROM generate_series(1, 1000)")
		segments = append(segments, p.SwitchWAL(t))
	}
	d.Mark(t, testenv.Settled)
	s.waldenIn(p.DataDir, p, "wal-push", "pg_wal/"+segments[0]).expect(t, 0)

	cuts, marks, all := 0, 0, losses(t)
	journal := d.Journal(t)
	cut := journal.Replay()
	for e, ok := cut.Next(); ok; e, ok = cut.Next() {
		for _, loss := range all {
			cuts++
			for name, f := range cut.Left(loss, "spool") {
				segment := filepath.Base(name)
				if !slices.Contains(segments, segment) || !json.Valid(f.Content) { // not named yet, or void
					continue
				}
				marks++
				if !cut.Holds(loss, "archive/wal_005/"+segment+".lz4") {
					t.Fatalf("after %+v, %s: a mark says that %s is archived, and it is not", e, loss, segment)
				}
			}
		}
	}
	if marks == 0 {
		t.Error("no mark was met")
	}
	testenv.Figure(t, "power cuts", "wal-push that looks ahead", cuts)
}

// unfinished matches the names of objects that have none yet.
var unfinished = regexp.MustCompile(`\.tmp\.[0-9TZ]+-[0-9a-f]{16}$`)

func TestPowerLossOfAnArchiveTakesNothingThatWasConfirmed(t *testing.T) {
	t.Parallel()
	for name, faults := range map[string][]testenv.DiskFault{"with unnamed files": nil, "without unnamed files": {withoutUnnamed}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			powerLossOfAnArchive(t, faults)
		})
	}
}

func powerLossOfAnArchive(t *testing.T, faults []testenv.DiskFault) {
	d := testenv.MountFaultDisk(t, true)
	s := onDisk(t, d)
	d.Mark(t, testenv.Settled)
	for _, f := range faults {
		d.Inject(t, f)
	}
	p := testenv.StartPostgres(t, testenv.PostgresOptions{WALSegmentSize: 1, Settings: s.archiving("autovacuum=off")})
	p.Exec(t, "CREATE TABLE journal(id bigserial PRIMARY KEY, note text)")
	// What PostgreSQL was told to be archived, and each backup that was reported, is noted with what the archive then held.
	for range 3 {
		p.Exec(t, "INSERT INTO journal(note) SELECT md5(g::text) FROM generate_series(1, 2000) AS g")
		s.archived(p)
		d.Mark(t, "confirmed")
	}
	s.must(p, "backup-push", p.DataDir)
	d.Mark(t, "confirmed")
	p.Exec(t, "INSERT INTO journal(note) VALUES ('after the backup')")
	s.archived(p)
	d.Mark(t, "confirmed")
	s.must(p, "backup-push", p.DataDir)
	d.Mark(t, "confirmed")
	rows := p.Query(t, digest)
	p.Stop("immediate")

	journal := d.Journal(t)
	final := wholeObjects(journal)
	const sentinel = "_backup_stop_sentinel.json"
	cuts, confirmed, known := 0, 0, equals{}
	all := losses(t)
	var whole []int // moments after which a backup is listed
	listed := 0
	cut := journal.Replay()
	for e, ok := cut.Next(); ok; e, ok = cut.Next() {
		confirms := e.Op == "mark" && e.Name == "confirmed"
		var promised map[string]testenv.LeftFile
		if confirms {
			confirmed++
			promised = seenObjects(cut)
		}
		for _, loss := range all {
			cuts++
			backups := []string{}
			for name, f := range cut.Left(loss, "archive") {
				if f.Mode.IsDir() || unfinished.MatchString(name) {
					continue
				}
				// Objects never change here: whatever has its name must be whole.
				if w, ok := final["archive/"+name]; !ok || !known.compare(name, f, w.Content) {
					t.Fatalf("after %+v, %s: %s is there with %d bytes, in the end it has %d", e, loss, name, len(f.Content), len(w.Content))
				}
				if before, ok := strings.CutSuffix(name, sentinel); ok {
					backups = append(backups, before)
				}
			}
			for name := range promised {
				if !cut.Holds(loss, name) {
					t.Fatalf("after %+v, %s: %s was confirmed and is not there", e, loss, name)
				}
			}
			for _, backup := range backups {
				for name := range final {
					if strings.HasPrefix(name, "archive/"+backup+"/") && !strings.HasSuffix(name, "/walden_draft.json") && !cut.Holds(loss, name) {
						t.Fatalf("after %+v, %s: %s is listed, and %s is missing", e, loss, backup, name)
					}
				}
			}
			if len(backups) > listed {
				listed = len(backups)
				whole = append(whole, cut.Done())
			}
		}
	}
	if confirmed != 6 || listed != 2 {
		t.Errorf("%d confirmations and %d backups were met", confirmed, listed)
	}
	testenv.Figure(t, "power cuts", "archive of files", cuts)
	t.Logf("%d cuts at %d operations", cuts, len(journal.Events))

	// What is listed can be restored: at once when it is listed first, and in the end.
	moments := append(slices.Clone(whole), len(journal.Events))
	for _, moment := range moments[len(moments)-testenv.Pick(1, len(moments)):] {
		cut := journal.Replay()
		for cut.Done() < moment {
			cut.Next()
		}
		for _, loss := range all[:testenv.Pick(1, len(all))] {
			v := newSite(t).quick()
			cut.Lay(t, loss, "archive", v.archive)
			for _, l := range v.listings() {
				if l.Status != "" && l.Status != "ok" {
					t.Errorf("%s: %s is listed as %s", loss, l.Name, l.Status)
				}
				dir := v.fetch(l.Name)
				r := testenv.OpenPostgres(t, dir, testenv.PostgresOptions{Settings: v.restoreSettings()})
				if got := r.Query(t, digest); moment == len(journal.Events) && got != rows {
					t.Errorf("%s: %s holds %s, the server held %s", loss, l.Name, got, rows)
				}
				r.Stop("immediate")
			}
		}
	}
}

// seenObjects are the objects that could be seen at a moment, before any cut.
func seenObjects(p *testenv.PowerCut) map[string]testenv.LeftFile {
	objects := copyOf(p, testenv.LoseNothing(), "archive")
	maps.DeleteFunc(objects, func(name string, f testenv.LeftFile) bool {
		return f.Mode.Type() == fs.ModeDir || unfinished.MatchString(name)
	})
	return objects
}

// wholeObjects are the objects as they are in the end, and those that were removed before as they were given their names.
func wholeObjects(j *testenv.DiskJournal) map[string]testenv.LeftFile {
	all := copyOf(j.End(), testenv.LoseAll(), "archive")
	p := j.Replay()
	for e, ok := p.Next(); ok; e, ok = p.Next() {
		if e.Op == "link" || e.Op == "rename" {
			for name, f := range seenObjects(p) {
				if _, there := all[name]; !there {
					all[name] = f
				}
			}
		}
	}
	return all
}
