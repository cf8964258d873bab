package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/testenv"
)

// Every backup of a chain leads to the same end, through WAL of different length.
func TestEachBackupOfAChainRecoversToTheSameRows(t *testing.T) {
	t.Parallel()
	f := readFixture(t, "delta-zstd")
	for i, backup := range f.backups[:len(f.backups)-1] { // the newest is fetched with all other fixtures
		t.Run(backup, func(t *testing.T) {
			t.Parallel()
			s := f.site(t)
			dir := filepath.Join(testenv.Scratch(t), "restored")
			r := s.must(nil, "backup-fetch", dir, backup)
			if n := strings.Count(r.stderr, "the backup is based on another"); n != i {
				t.Errorf("%d older backups were read instead of %d:\n%s", n, i, r.stderr)
			}
			touch(t, filepath.Join(dir, "recovery.signal"))
			p := recoverTemplate1(t, dir, s.restoreSettings("recovery_target_timeline=latest"))
			want := fmt.Sprintf("%d|%s", f.Tables["orders"].Rows, f.Tables["orders"].MD5)
			if got := p.QueryIn(t, "template1", "SELECT count(*), md5(string_agg(id||':'||note, ',' ORDER BY id)) FROM orders"); got != want {
				t.Errorf("after recovery orders is %s instead of %s", got, want)
			}
		})
	}
}

func TestHowWALGIsToldToRestoreAChainChangesNothing(t *testing.T) {
	t.Parallel()
	f := readFixture(t, "delta-zstd")
	for what, args := range map[string][]string{
		"flags":    {"--reverse-unpack", "--skip-redundant-tars"},
		"settings": {"--walg-use-reverse-unpack=true", "--walg-skip-redundant-tars=true"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := f.site(t)
			dir := filepath.Join(testenv.Scratch(t), "restored")
			s.must(nil, append([]string{"backup-fetch", dir, "LATEST"}, args...)...)
			f.checkRestored(t, dir)
		})
	}
}

func TestADeltaWithoutItsBaseIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	t.Parallel()
	f := readFixture(t, "delta-zstd")
	s := f.site(t)
	if err := os.Remove(filepath.Join(s.archive, "basebackups_005", f.backups[0]+"_backup_stop_sentinel.json")); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(testenv.Scratch(t), "restored")
	for _, which := range []string{f.Backup, "LATEST"} { // LATEST must not mean an older backup in silence
		s.fails(nil, 1, []string{"cannot use backup " + f.Backup, f.backups[1] + " is based on " + f.backups[0], "hint: ", "backup-list"},
			"backup-fetch", dir, which)
		absent(t, dir)
	}
}
