package restore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/codec"
	"gitlab.com/walden-pg/walden/internal/crypt"
	"gitlab.com/walden-pg/walden/internal/repo"
	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

// genuine is an archive that another program wrote (testdata/README.md), whose backup is damaged at random.
type genuine struct {
	dir    string // below testdata/
	cipher crypt.Cipher
	// unnoticed tells what damage the format does not let anybody notice; nil if there is none. Beside the objects that were changed it
	// gets the name of the first file that is wrong.
	unnoticed func(changed []string, file string) bool
}

// genuines are the archives whose damage is tried. A further one is a line.
func genuines() []genuine {
	return []genuine{
		{dir: "wal-g/full-lz4", cipher: crypt.None{}},
		{dir: "wal-g/timeline-zstd", cipher: crypt.None{}},
		{dir: "wal-g/remote-lz4", cipher: crypt.None{}},
		{dir: "wal-g/delta-zstd", cipher: crypt.None{}},
	}
}

// archive is a genuine one in memory.
type archive struct {
	genuine
	backup  string
	want    map[string]string // SHA-256 by path
	objects map[string][]byte // of the backups, not of the WAL
}

func (g genuine) read(t *testing.T) archive {
	t.Helper()
	root := filepath.Join("../../testdata", g.dir)
	raw, err := os.ReadFile(filepath.Join(root, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var expected struct {
		Backup string                          `json:"backup"`
		Files  []struct{ Path, SHA256 string } `json:"files_after_fetch"`
	}
	if err := json.Unmarshal(raw, &expected); err != nil || len(expected.Files) < 300 {
		t.Fatalf("%s does not say what to expect: %v", root, err)
	}
	a := archive{genuine: g, backup: expected.Backup, want: map[string]string{}, objects: map[string][]byte{}}
	for _, f := range expected.Files {
		a.want[f.Path] = f.SHA256
	}
	tree := os.DirFS(filepath.Join(root, "storage"))
	err = fs.WalkDir(tree, "basebackups_005", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		a.objects[name], err = fs.ReadFile(tree, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// restore restores the backup from the objects into dir.
func (a archive) restore(t *testing.T, objects map[string][]byte, dir string) error {
	t.Helper()
	s := storagetest.NewMemory()
	for key, b := range objects {
		put(t, s, key, b)
	}
	c, err := a.open(s)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Find(t.Context(), a.backup)
	if err != nil {
		return err
	}
	_, err = Fetch(t.Context(), Deps{c, slog.New(slog.DiscardHandler), watch{func() {}}}, b, Options{Dir: dir, Workers: 2})
	return err
}

func (a archive) open(s storage.Store) (*catalog.Catalog, error) {
	lz4, err := codec.New("lz4", codec.Options{})
	if err != nil {
		return nil, err
	}
	return catalog.New(repo.New(s, lz4, a.cipher, repo.Options{}), slog.New(slog.DiscardHandler)), nil
}

// wrong names the first file below dir that is not what was backed up, "" if there is none.
func (a archive) wrong(t *testing.T, dir string) string {
	t.Helper()
	met := map[string]bool{}
	var wrong []string
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		met[rel] = true
		b, err := os.ReadFile(name)
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != a.want[rel] {
			wrong = append(wrong, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range a.want {
		if !met[name] {
			wrong = append(wrong, name)
		}
	}
	if len(wrong) == 0 {
		return ""
	}
	return slices.Min(wrong)
}

// damage changes the objects at random, and says what it did and to which.
func damage(r *rand.Rand, objects map[string][]byte) (what string, changed []string) {
	keys := slices.Sorted(maps.Keys(objects))
	key, other := keys[r.IntN(len(keys))], keys[r.IntN(len(keys))]
	b := bytes.Clone(objects[key])
	changed = []string{key}
	at := 0
	if len(b) > 0 {
		at = r.IntN(len(b))
	}
	switch r.IntN(9) {
	case 0:
		delete(objects, key)
		return "deleted", changed
	case 1:
		objects[key], objects[other] = objects[other], objects[key]
		return "swapped with " + other, []string{key, other}
	case 2: // with the one of its kind in another backup, if there is any
		kind := kindOf(key)
		for _, k := range keys {
			if k != key && kindOf(k) == kind {
				other = k
				break
			}
		}
		objects[key], objects[other] = objects[other], objects[key]
		return "swapped with " + other, []string{key, other}
	case 3:
		objects[key] = bytes.Clone(objects[other])
		return "replaced by " + other, changed
	case 4:
		objects[key] = b[:at]
		return fmt.Sprint("cut to ", at), changed
	case 5:
		objects[key] = append(b, make([]byte, 1+r.IntN(1000))...)
		return "extended", changed
	case 6:
		n := min(len(b)-at, 1+r.IntN(600))
		clear(b[at : at+n])
		objects[key] = b
		return fmt.Sprintf("%d zeros at %d", n, at), changed
	}
	if len(b) == 0 {
		return "nothing", changed
	}
	bit := r.IntN(8)
	b[at] ^= 1 << bit
	objects[key] = b
	return fmt.Sprintf("bit %d of byte %d", bit, at), changed
}

// kindOf is the name of an object without its backup's.
func kindOf(key string) string {
	if base := path.Base(key); !strings.HasSuffix(key, "_backup_stop_sentinel.json") {
		return base
	}
	return "sentinel"
}

// fastDir returns a directory in memory if the host has one: it is synced to after every file.
func fastDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "walden-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Whatever happens to the objects of a backup, it is restored as it was or not at all, as far as the format lets anybody notice.
func TestADamagedArchiveIsRestoredExactlyOrNotAtAll(t *testing.T) {
	t.Parallel()
	for _, g := range genuines() {
		t.Run(path.Base(g.dir), func(t *testing.T) {
			t.Parallel()
			a, r, scratch := g.read(t), testenv.Rand(t), fastDir(t)
			noticed, harmless := 0, 0
			for i := range testenv.Pick(25, 1000) {
				objects := maps.Clone(a.objects)
				what, changed := "nothing", []string(nil)
				if i > 0 { // the first one is as it was
					what, changed = damage(r, objects)
				}
				dir := filepath.Join(scratch, "data")
				var err error
				synctest.Test(t, func(t *testing.T) { err = a.restore(t, objects, dir) })
				switch {
				case err != nil && i == 0:
					t.Fatal(err)
				case err != nil:
					noticed++
					if _, err := os.Lstat(filepath.Join(dir, "global/pg_control")); !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("case %d, %v %s: what was refused can be started: %v", i, changed, what, err)
					}
				default:
					if file := a.wrong(t, dir); file == "" {
						harmless++
					} else if g.unnoticed == nil || !g.unnoticed(changed, file) {
						t.Errorf("case %d, %v %s: %s is wrong", i, changed, what, file)
					}
				}
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
			}
			testenv.Figure(t, "archives damaged at random", g.dir+" noticed", noticed)
			testenv.Figure(t, "archives damaged at random", g.dir+" restored exactly", harmless)
			if noticed == 0 || harmless == 0 {
				t.Errorf("%d cases were noticed, %d harmless", noticed, harmless)
			}
		})
	}
}
