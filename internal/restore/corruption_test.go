package restore

import (
	"bytes"
	"cmp"
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
	dir    string                          // below testdata/
	cipher func(t *testing.T) crypt.Cipher // nil for none
	// unnoticed tells what damage the format does not let anybody notice; nil if there is none. Beside the objects that were changed it
	// gets the name of the first file that is wrong.
	unnoticed func(changed []string, file string) bool
}

// genuines are the archives whose damage is tried. A further one is a line.
func genuines() []genuine {
	return []genuine{
		{dir: "wal-g/full-lz4"},
		{dir: "wal-g/timeline-zstd"},
		{dir: "wal-g/remote-lz4"},
		// What a delta has not stored because it did not change, nothing names but the list.
		{dir: "wal-g/delta-zstd", unnoticed: func(changed []string, _ string) bool {
			return len(changed) == 1 && strings.HasSuffix(changed[0], "/files_metadata.json")
		}},
		{dir: "wal-g/full-lzma-sodium", cipher: sodium("6b2f7c0d9e1a4835f7c2b6a09d3e5f81726354a9b8c7d6e5f4a3b2c1d0e9f807")},
		{dir: "wal-g/tablespace-brotli-pgp", cipher: openPGP("wal-g/tablespace-brotli-pgp/key.asc")},
		{dir: "wal-e/plain"},
		{dir: "wal-e/exclusive-pg14"},
		// The last of WAL-E's partitions may be missing, of which a restore can only warn: files vanish while a backup is taken, too.
		{dir: "wal-e/gpg", cipher: openPGP("wal-e/gpg/private-key.asc"), unnoticed: func(changed []string, _ string) bool {
			return len(changed) == 1 && strings.HasSuffix(changed[0], "part_00000005.tar.lzo")
		}},
	}
}

func sodium(key string) func(t *testing.T) crypt.Cipher {
	return func(t *testing.T) crypt.Cipher {
		raw, err := crypt.ParseSodiumKey(key, "hex")
		if err != nil {
			t.Fatal(err)
		}
		c, err := crypt.NewSodium(raw)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}

func openPGP(file string) func(t *testing.T) crypt.Cipher {
	return func(t *testing.T) crypt.Cipher {
		key, err := os.ReadFile(filepath.Join("../../testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		c, err := crypt.ParseOpenPGPKeys(string(key), nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}

// archive is a genuine one in memory.
type archive struct {
	genuine
	cipher  crypt.Cipher
	backup  string
	want    map[string]string // SHA-256 by path
	space   string            // where its tablespace was, "" if it has none
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
		Backup  string                          `json:"backup"`
		Files   []struct{ Path, SHA256 string } `json:"files_after_fetch"`
		Latest  string                          `json:"backup_name"` // this and what follows: of WAL-E's archives
		Backups []struct {
			Name     string
			Restored struct {
				Files map[string]struct{ SHA256 string }
			}
		}
		Tablespaces map[string]struct{ Location string }
	}
	if err := json.Unmarshal(raw, &expected); err != nil {
		t.Fatal(err)
	}
	a := archive{genuine: g, cipher: crypt.None{}, backup: cmp.Or(expected.Backup, expected.Latest), want: map[string]string{}, objects: map[string][]byte{}}
	if g.cipher != nil {
		a.cipher = g.cipher(t)
	}
	for _, f := range expected.Files {
		a.want[f.Path] = f.SHA256
	}
	for _, b := range expected.Backups {
		for name, f := range b.Restored.Files {
			if b.Name == a.backup {
				a.want[name] = f.SHA256
			}
		}
	}
	storage := "storage"
	if len(expected.Backups) > 0 {
		storage = "store"
	}
	for _, space := range expected.Tablespaces {
		a.space = filepath.Clean(space.Location)
	}
	if g.dir == "wal-g/tablespace-brotli-pgp" {
		a.space = "/var/lib/postgresql/fixture/ts/far"
	}
	if a.space != "" {
		delete(a.want, "tablespace_map") // which says where the tablespace is now
	}
	if len(a.want) < 300 {
		t.Fatalf("%s does not say what to expect", root)
	}
	tree := os.DirFS(filepath.Join(root, storage))
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

// restore restores the backup from the objects into dir, its tablespace into space beside it.
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
	o := Options{Dir: dir, Workers: 2}
	if a.space != "" {
		o.Mappings = []Mapping{{a.space, spaceOf(dir)}}
	}
	_, err = Fetch(t.Context(), Deps{c, slog.New(slog.DiscardHandler), watch{func() {}}}, b, o)
	return err
}

func spaceOf(dir string) string { return filepath.Join(filepath.Dir(dir), "space") }

func (a archive) open(s storage.Store) (*catalog.Catalog, error) {
	lz4, err := codec.New("lz4", codec.Options{})
	if err != nil {
		return nil, err
	}
	return catalog.New(repo.New(s, lz4, a.cipher, repo.Options{}), slog.New(slog.DiscardHandler)), nil
}

// wrong names the first file of what was restored into dir that is not what was backed up, "" if there is none.
func (a archive) wrong(t *testing.T, dir string) string {
	t.Helper()
	met := map[string]bool{}
	var wrong []string
	look := func(root, prefix string) {
		err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			rel, err := filepath.Rel(root, name)
			if err != nil {
				return err
			}
			rel = filepath.Join(prefix, rel)
			met[rel] = true
			b, err := os.ReadFile(name)
			moved := rel == "tablespace_map" && a.space != ""
			if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != a.want[rel] && !moved {
				wrong = append(wrong, rel)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	look(dir, "")
	if a.space != "" {
		links, err := filepath.Glob(filepath.Join(dir, "pg_tblspc/*"))
		if err != nil || len(links) != 1 {
			return "pg_tblspc"
		}
		look(spaceOf(dir), filepath.Join("pg_tblspc", filepath.Base(links[0])))
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
	switch r.IntN(10) {
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
	case 7:
		n := min(len(b)-at, 1+r.IntN(4096))
		objects[key] = slices.Delete(b, at, at+n)
		return fmt.Sprintf("without %d bytes at %d", n, at), changed
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
			a, r, scratch := g.read(t), rand.New(rand.NewPCG(1, 2)), fastDir(t)
			if testenv.Full() { // the sample is the same each time
				r = testenv.Rand(t)
			}
			noticed, harmless := 0, 0
			for i := range testenv.Pick(12, 1000) {
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
				if err := errors.Join(os.RemoveAll(dir), os.RemoveAll(spaceOf(dir))); err != nil {
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
