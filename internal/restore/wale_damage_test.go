package restore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

// waleArchive is what WAL-E wrote (testdata/README.md), in memory.
type waleArchive struct {
	objects map[string][]byte // without the WAL
	backup  string
	want    map[string]string // SHA-256 by path
	space   Mapping
}

func readWALE(t *testing.T, name string) waleArchive {
	t.Helper()
	root := filepath.Join("../../testdata/wal-e", name)
	raw, err := os.ReadFile(filepath.Join(root, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var expected struct {
		Backup  string `json:"backup_name"`
		Backups []struct {
			Name     string `json:"name"`
			Restored struct {
				Files map[string]struct {
					SHA256 string `json:"sha256"`
				} `json:"files"`
			} `json:"restored"`
		} `json:"backups"`
		Tablespaces map[string]struct {
			Location string `json:"location"`
		} `json:"tablespaces"`
	}
	if err := json.Unmarshal(raw, &expected); err != nil {
		t.Fatal(err)
	}
	a := waleArchive{objects: map[string][]byte{}, backup: expected.Backup, want: map[string]string{}}
	for _, b := range expected.Backups {
		if b.Name == a.backup {
			for name, f := range b.Restored.Files {
				a.want[name] = f.SHA256
			}
		}
	}
	for _, space := range expected.Tablespaces {
		a.space.Old = filepath.Clean(space.Location)
	}
	delete(a.want, "tablespace_map") // which says where the tablespace is now
	if len(a.want) < 300 || a.space.Old == "" {
		t.Fatalf("%s does not say what to expect", root)
	}
	tree := os.DirFS(filepath.Join(root, "store"))
	err = fs.WalkDir(tree, "basebackups_005", func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			a.objects[name], err = fs.ReadFile(tree, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// restore restores the backup from the objects and returns what is there then: SHA-256 by path.
func (a waleArchive) restore(t *testing.T, objects map[string][]byte) (map[string]string, error) {
	t.Helper()
	s := storagetest.NewMemory()
	for key, b := range objects {
		put(t, s, key, b)
	}
	c := open(t, s)
	b, err := c.Find(t.Context(), a.backup)
	if err != nil {
		return nil, err
	}
	parent := t.TempDir()
	defer os.RemoveAll(parent)
	space := Mapping{a.space.Old, filepath.Join(parent, "space")}
	dir := filepath.Join(parent, "data")
	if _, err := Fetch(t.Context(), Deps{c, slog.New(slog.DiscardHandler), watch{func() {}}}, b, Options{Dir: dir, Workers: 2, Mappings: []Mapping{space}}); err != nil {
		if _, statErr := os.Lstat(filepath.Join(dir, "global/pg_control")); statErr == nil {
			t.Errorf("the restore failed (%v), and there is a control file", err)
		}
		return nil, err
	}
	got := map[string]string{}
	for _, root := range []string{dir, space.New} {
		err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			rel, err := filepath.Rel(root, name)
			if err != nil {
				return err
			}
			if root == space.New {
				link, err := filepath.Glob(filepath.Join(dir, "pg_tblspc", "*"))
				if err != nil || len(link) != 1 {
					t.Fatalf("%v, %v", link, err)
				}
				rel = filepath.Join("pg_tblspc", filepath.Base(link[0]), rel)
			}
			content, err := os.ReadFile(name)
			sum := sha256.Sum256(content)
			got[rel] = hex.EncodeToString(sum[:])
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	delete(got, "tablespace_map")
	return got, nil
}

// damage changes objects as storages and people do, and says how.
func damage(r *rand.Rand, objects map[string][]byte, backup string) string {
	var ofBackup []string
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		if strings.Contains(key, backup) {
			ofBackup = append(ofBackup, key)
		}
	}
	key := ofBackup[r.IntN(len(ofBackup))]
	if r.IntN(2) == 0 { // half of all meets what is large
		key = ofBackup[slices.IndexFunc(ofBackup, func(k string) bool { return strings.Contains(k, "tar_partitions") })]
	}
	b := objects[key]
	switch r.IntN(7) {
	case 0, 1, 2:
		b = bytes.Clone(b)
		for range 1 + r.IntN(3) {
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		}
		objects[key] = b
		return "bits flipped in " + key
	case 3:
		objects[key] = b[:r.IntN(len(b))]
		return key + " cut off"
	case 4:
		n := r.IntN(len(b))
		objects[key] = slices.Concat(b[:n], b[min(len(b), n+1+r.IntN(4096)):])
		return "a piece taken out of " + key
	case 5:
		delete(objects, key)
		return key + " deleted"
	}
	all := slices.Sorted(maps.Keys(objects))
	other := all[r.IntN(len(all))]
	objects[key], objects[other] = objects[other], objects[key]
	return key + " and " + other + " exchanged"
}

// Damage to a backup of WAL-E is an error, or the restored files are exactly those that were backed up.
func TestADamagedArchiveOfWALEIsNoticedOrHarmless(t *testing.T) {
	t.Parallel()
	r := testenv.Rand(t)
	noticed, harmless := 0, 0
	for _, name := range []string{"plain", "exclusive-pg14"} {
		a := readWALE(t, name)
		if got, err := a.restore(t, a.objects); err != nil || !maps.Equal(got, a.want) {
			t.Fatalf("%s without damage: %v, %d files of %d", name, err, len(got), len(a.want))
		}
		for range testenv.Pick(8, 400) {
			objects := maps.Clone(a.objects)
			what := damage(r, objects, a.backup)
			var got map[string]string
			var err error
			synctest.Test(t, func(t *testing.T) { got, err = a.restore(t, objects) }) // the pauses before a second reading take no time
			switch {
			case err != nil:
				noticed++
			case maps.Equal(got, a.want):
				harmless++
			default:
				t.Errorf("%s, %s: the restore succeeds with other files", name, what)
			}
		}
	}
	testenv.Figure(t, "damaged archives of WAL-E", "noticed", noticed)
	testenv.Figure(t, "damaged archives of WAL-E", "harmless", harmless)
}
