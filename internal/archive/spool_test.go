package archive

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"gitlab.com/walden-pg/walden/internal/pgdata"
)

// mkdirs makes directories for nobody but their owner.
func mkdirs(t testing.TB, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestTheSpoolLiesBesideTheClusterAndBelongsToNobodyElse(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		base    string                         // below the test's directory, "" for none
		prepare func(t *testing.T, top string) // the data directory is top/data
		parent  string                         // of the spool, below the test's directory; "" where there is none
		inside  bool                           // it is refused as a part of the cluster
	}{
		{"by default", "", nil, "", false},
		{"pg_wal is a link out of the data directory", "", func(t *testing.T, top string) {
			mkdirs(t, top+"/disk/wal")
			must(t, os.Remove(top+"/data/pg_wal"), os.Symlink("../disk/wal", top+"/data/pg_wal"))
		}, "disk", false},
		{"pg_wal is a link within the data directory", "", func(t *testing.T, top string) {
			mkdirs(t, top+"/data/log")
			must(t, os.Remove(top+"/data/pg_wal"), os.Symlink("log", top+"/data/pg_wal"))
		}, "", false},
		{"a setting", "elsewhere", func(t *testing.T, top string) { mkdirs(t, top+"/elsewhere") }, "elsewhere", false},
		{"a setting that is a link", "link", func(t *testing.T, top string) {
			mkdirs(t, top+"/elsewhere")
			must(t, os.Symlink("elsewhere", top+"/link"))
		}, "elsewhere", false},
		{"a setting that is the data directory", "data", nil, "-", true},
		{"a setting in the data directory", "data/pg_wal", nil, "-", true},
		{"a setting in a pg_wal that is elsewhere", "disk/wal/x", func(t *testing.T, top string) {
			mkdirs(t, top+"/disk/wal/x")
			must(t, os.Remove(top+"/data/pg_wal"), os.Symlink("../disk/wal", top+"/data/pg_wal"))
		}, "-", true},
		{"a link into the data directory", "link", func(t *testing.T, top string) { must(t, os.Symlink("data/global", top+"/link")) }, "-", true},
		{"a setting that is nowhere", "elsewhere", nil, "-", false},
		{"a setting that is a file", "file", func(t *testing.T, top string) { write(t, top+"/file", nil) }, "-", false},
		{"the spool is a link", "", func(t *testing.T, top string) {
			mkdirs(t, top+"/elsewhere")
			must(t, os.Symlink("elsewhere", top+"/"+spoolName))
		}, "-", false},
		{"the spool is a file", "", func(t *testing.T, top string) { write(t, top+"/"+spoolName, nil) }, "-", false},
		{"others can read the spool", "", func(t *testing.T, top string) {
			mkdirs(t, top+"/"+spoolName)
			must(t, os.Chmod(top+"/"+spoolName, 0o750))
		}, "-", false},
		{"everybody can put a spool there", "", func(t *testing.T, top string) { must(t, os.Chmod(top, 0o777)) }, "-", false},
		{"everybody can put files there, and nobody remove those of others", "", func(t *testing.T, top string) {
			must(t, os.Chmod(top, 0o777|os.ModeSticky))
		}, "", false},
		{"it is nobody's data directory", "", func(t *testing.T, top string) { must(t, os.Remove(filepath.Join(top, "data", pgdata.ControlName))) }, "-", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			top, err := filepath.EvalSymlinks(t.TempDir())
			must(t, err, os.Rename(dataDir(t, cluster), top+"/data"))
			if c.prepare != nil {
				c.prepare(t, top)
			}
			base := c.base
			if base != "" {
				base = filepath.Join(top, base)
			}
			dir, err := spoolDir(top+"/data/pg_wal/RECOVERYXLOG", base)
			if c.parent == "-" {
				if err == nil || errors.Is(err, errSpoolInside) != c.inside {
					t.Errorf("%s, %v", dir, err)
				}
				return
			}
			if want := filepath.Join(top, c.parent, spoolName); err != nil || filepath.Dir(dir) != want {
				t.Fatalf("%s, %v, not below %s", dir, err, want)
			}
			info, err := os.Lstat(dir)
			if err != nil || !info.IsDir() || info.Mode().Perm() != dirMode {
				t.Errorf("%v, %v", info, err)
			}
			must(t, os.Symlink("data", top+"/other name"), os.Mkdir(top+"/second", 0o700), os.CopyFS(top+"/second", os.DirFS(top+"/data")))
			if again, err := spoolDir(top+"/other name/pg_wal/RECOVERYXLOG", base); err != nil || again != dir {
				t.Errorf("by another name of the data directory it is %s, %v", again, err)
			}
			if other, err := spoolDir(top+"/second/pg_wal/RECOVERYXLOG", base); err != nil || other == dir {
				t.Errorf("that of another data directory is %s, %v", other, err)
			}
		})
	}
	t.Run("another user's", func(t *testing.T) {
		t.Parallel()
		if os.Geteuid() != 0 {
			return // nobody else can give a directory away
		}
		data := dataDir(t, cluster)
		spool := filepath.Join(filepath.Dir(data), spoolName)
		mkdirs(t, spool)
		must(t, os.Chown(spool, 1, 1))
		if dir, err := spoolDir(filepath.Join(data, "pg_wal", "x"), ""); err == nil {
			t.Errorf("%s was taken", dir)
		}
	})
}
