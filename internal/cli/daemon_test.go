package cli

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestOnlyBareNamesAreNamesOfFiles(t *testing.T) {
	t.Parallel()
	for name, good := range map[string]bool{
		"000000010000000000000001": true, "00000002.history": true, "000000010000000000000001.partial": true,
		"": false, ".": false, "..": false, ".hidden": false, "../global/pg_control": false, "archive_status/x": false, "/etc/passwd": false,
		"a\x00b": false, "a\nb": false, "a\u202eb": false, strings.Repeat("a", 256): false,
	} {
		if err := bareName(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestDestinationsLieInTheDataDirectory(t *testing.T) {
	t.Parallel()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	data, link, elsewhere := filepath.Join(root, "data"), filepath.Join(root, "link"), filepath.Join(root, "elsewhere")
	if err := errors.Join(os.Mkdir(data, 0o700), os.Mkdir(elsewhere, 0o700), os.Mkdir(filepath.Join(data, "global"), 0o700),
		os.Symlink(data, link), os.Symlink(elsewhere, filepath.Join(data, "pg_wal")), os.Symlink(root, filepath.Join(data, "out"))); err != nil {
		t.Fatal(err)
	}
	for _, as := range []string{data, link} {
		r := &resident{data: as}
		for dest, want := range map[string]string{
			"pg_wal/RECOVERYXLOG":               "pg_wal/RECOVERYXLOG", // pg_wal is a link, which PostgreSQL allows
			"./pg_wal/../pg_wal/RECOVERYXLOG":   "pg_wal/RECOVERYXLOG",
			data + "/pg_wal/RECOVERYXLOG":       "pg_wal/RECOVERYXLOG",
			as + "/pg_wal/RECOVERYXLOG":         "pg_wal/RECOVERYXLOG",
			"file":                              "file",
			"global/file":                       "global/file",
			"":                                  "",
			".":                                 "",
			"..":                                "",
			"../file":                           "",
			"pg_wal/../../file":                 "",
			"out/file":                          "",
			"/etc/file":                         "",
			root + "/file":                      "",
			elsewhere + "/file":                 "", // by its name it lies outside
			data + "-other/file":                "",
			"none/file":                         "",
			"pg_wal/a\x00b":                     "",
			data + "/../elsewhere/RECOVERYXLOG": "",
		} {
			if got, err := r.inside(dest); got != want || (err == nil) != (want != "") {
				t.Errorf("%q in %s: %q, %v", dest, as, got, err)
			}
		}
	}
}

func TestOneFetchAtATimeHasADestination(t *testing.T) {
	t.Parallel()
	r := &resident{dests: map[string]*berth{}}
	leave, err := r.arrive(t.Context(), "pg_wal/RECOVERYXLOG")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := r.arrive(ctx, "pg_wal/RECOVERYXLOG"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second one: %v", err)
	}
	other, err := r.arrive(t.Context(), "pg_wal/RECOVERYHISTORY")
	if err != nil {
		t.Errorf("another destination: %v", err)
	}
	other()
	leave()
	again, err := r.arrive(t.Context(), "pg_wal/RECOVERYXLOG")
	if err != nil {
		t.Fatal(err)
	}
	again()
	if len(r.dests) != 0 {
		t.Errorf("%d destinations are remembered", len(r.dests))
	}
}
