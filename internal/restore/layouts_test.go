package restore

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/pkg/increment"
)

// The backups of the fixture delta-zstd.
const (
	fullName   = "base_00000001000000000000000C"
	middleName = "base_00000001000000000000000F_D_00000001000000000000000C"
	newestName = "base_000000010000000000000012_D_00000001000000000000000F"
)

// layout is the fixture delta-zstd while it is transformed.
type layout struct {
	t       *testing.T
	archive archive
	objects map[string][]byte
}

func readLayout(t *testing.T) *layout {
	a := genuine{dir: "wal-g/delta-zstd"}.read(t)
	return &layout{t, a, maps.Clone(a.objects)}
}

func sentinelOf(backup string) string {
	return "basebackups_005/" + backup + "_backup_stop_sentinel.json"
}
func filesOf(backup string) string { return "basebackups_005/" + backup + "/files_metadata.json" }
func partOf(backup, name string) string {
	return "basebackups_005/" + backup + "/tar_partitions/" + name
}

// edit changes a document; numbers keep their digits.
func (l *layout) edit(key string, change func(map[string]any)) {
	l.t.Helper()
	d := json.NewDecoder(bytes.NewReader(l.objects[key]))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		l.t.Fatal(err)
	}
	change(m)
	b, err := json.Marshal(m)
	if err != nil {
		l.t.Fatal(err)
	}
	l.objects[key] = b
}

// set changes one member of a document; nil removes it.
func (l *layout) set(key, member string, value any) {
	l.t.Helper()
	l.edit(key, func(m map[string]any) {
		if m[member] = value; value == nil {
			delete(m, member)
		}
	})
}

func (l *layout) drop(keys ...string) {
	l.t.Helper()
	for _, key := range keys {
		if l.objects[key] == nil {
			l.t.Fatalf("there is no %s", key)
		}
		delete(l.objects, key)
	}
}

// listsInto moves the list of files into the sentinel, as version 1 had it.
func (l *layout) listsInto(backup string) {
	l.t.Helper()
	var lists map[string]any
	if err := json.Unmarshal(l.objects[filesOf(backup)], &lists); err != nil {
		l.t.Fatal(err)
	}
	l.edit(sentinelOf(backup), func(m map[string]any) {
		for _, key := range []string{"Version", "StartTime", "FinishTime", "DateFmt", "Hostname", "DataDir", "IsPermanent", "DataCatalogSize"} {
			delete(m, key)
		}
		m["Files"], m["TarFileSets"] = lists["Files"], lists["TarFileSets"]
	})
	l.drop(filesOf(backup))
}

// entries unpacks the ordinary part of a backup and removes it.
func (l *layout) entries(backup string) []entry {
	l.t.Helper()
	s := storagetest.NewMemory()
	put(l.t, s, partOf(backup, "part_001.tar.zst"), l.objects[partOf(backup, "part_001.tar.zst")])
	c, err := l.archive.open(s)
	if err != nil {
		l.t.Fatal(err)
	}
	r, err := c.OpenPart(l.t.Context(), backup, catalog.Part{Name: "part_001.tar.zst"})
	if err != nil {
		l.t.Fatal(err)
	}
	defer r.Close()
	var entries []entry
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			l.t.Fatal(err)
		}
		b, err := io.ReadAll(t)
		if err != nil {
			l.t.Fatal(err)
		}
		entries = append(entries, entry{name: h.Name, kind: h.Typeflag, body: string(b)})
	}
	l.drop(partOf(backup, "part_001.tar.zst"))
	return entries
}

// split puts the entries of a backup into tars of these names, which its document is told of.
func (l *layout) split(backup string, names ...string) {
	l.t.Helper()
	parts := make([][]entry, len(names))
	sets := map[string]any{}
	for i, e := range l.entries(backup) {
		parts[i%len(names)] = append(parts[i%len(names)], e)
	}
	for i, name := range names {
		l.objects[partOf(backup, name)] = tarOf(l.t, parts[i]...)
		var set []string
		for _, e := range parts[i] {
			set = append(set, e.name)
		}
		sets[name] = set
	}
	l.set(filesOf(backup), "TarFileSets", sets)
}

func number(digits string) any { return json.Number(digits) }

// flag sets what the document of a backup says of a file.
func (l *layout) flag(backup, name string, skipped, incremented bool) {
	l.t.Helper()
	l.edit(filesOf(backup), func(m map[string]any) {
		m["Files"].(map[string]any)[name] = map[string]any{"IsSkipped": skipped, "IsIncremented": incremented}
	})
}

func (l *layout) unname(backup, name string) {
	l.t.Helper()
	l.edit(filesOf(backup), func(m map[string]any) {
		files := m["Files"].(map[string]any)
		if files[name] == nil {
			l.t.Fatalf("%s does not name %s", backup, name)
		}
		delete(files, name)
	})
}

func TestChainsInEveryLayoutOfWALGAreRestored(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(*layout){
		"as it is": func(*layout) {},
		"without metadata.json": func(l *layout) {
			for _, backup := range []string{fullName, middleName, newestName} {
				l.drop("basebackups_005/" + backup + "/metadata.json")
			}
		},
		"version 1": func(l *layout) {
			for _, backup := range []string{fullName, middleName, newestName} {
				l.listsInto(backup)
			}
		},
		"version 1 in the middle, with the oldest name of the position": func(l *layout) {
			l.listsInto(middleName)
			l.set(sentinelOf(middleName), "DeltaLSN", nil)
			l.set(sentinelOf(middleName), "DeltaFromLSN", number("12582952"))
		},
		"a full backup without a list of files": func(l *layout) { l.drop(filesOf(fullName)) },
		"a full backup that was told to have none": func(l *layout) {
			l.drop(filesOf(fullName))
			l.set(sentinelOf(fullName), "FilesMetadataDisabled", true)
		},
		"no sets of files": func(l *layout) {
			for _, backup := range []string{fullName, middleName, newestName} {
				l.set(filesOf(backup), "TarFileSets", nil)
			}
		},
		"sets that do not name everything": func(l *layout) {
			l.set(filesOf(fullName), "TarFileSets", map[string]any{"part_001.tar.zst": []string{"/PG_VERSION"}})
		},
		"several parts, gaps, dangling dots, copies": func(l *layout) {
			l.split(fullName, "part_004.tar.", "copy_017.tar", "copy_part_002.tar", "part_1000.tar")
			l.split(middleName, "part_002.tar", "part_009.tar.")
			l.split(newestName, "part_003.tar")
		},
		"a full backup taken over the replication protocol": func(l *layout) {
			entries := l.entries(fullName)
			var label string
			for i, e := range entries {
				entries[i].name = strings.TrimPrefix(e.name, "/")
			}
			label = "START WAL LOCATION: 0/C000028 (file 00000001000000000000000C)\n"
			entries = append(entries, file("backup_label", label), file("tablespace_map", ""), file("global/pg_control", "the older one"))
			l.objects[partOf(fullName, "part_001.tar")] = tarOf(l.t, entries...)
			l.drop(partOf(fullName, "backup_label.tar.zst"))
			l.edit(filesOf(fullName), func(m map[string]any) {
				files := map[string]any{}
				for name, f := range m["Files"].(map[string]any) {
					files[strings.TrimPrefix(name, "/")] = f
				}
				delete(files, "")
				m["Files"] = files
				delete(m, "TarFileSets")
			})
		},
		"older backups without label and control file": func(l *layout) {
			for _, backup := range []string{fullName, middleName} {
				l.drop(partOf(backup, "pg_control.tar.zst"))
			}
		},
		"a part that holds nothing of use is not read": func(l *layout) {
			entries := l.entries(fullName)
			l.objects[partOf(fullName, "part_001.tar")] = tarOf(l.t, entries...)
			l.objects[partOf(fullName, "part_002.tar")] = []byte("not even a tar")
			var names []string
			for _, e := range entries {
				names = append(names, e.name)
			}
			l.set(filesOf(fullName), "TarFileSets", map[string]any{"part_001.tar": names, "part_002.tar": []string{"/base/1/99999"}})
		},
		"no position and no identifier of the base": func(l *layout) {
			l.set(sentinelOf(newestName), "DeltaLSN", nil)
			l.set(sentinelOf(middleName), "FinishLSN", nil)
			l.set(sentinelOf(middleName), "SystemIdentifier", nil)
		},
		"no size": func(l *layout) {
			l.set(sentinelOf(newestName), "DataCatalogSize", nil)
			l.set(sentinelOf(newestName), "UncompressedSize", nil)
		},
		"corrupt blocks as early versions wrote them": func(l *layout) {
			l.edit(filesOf(middleName), func(m map[string]any) {
				m["Files"].(map[string]any)["/base/1/1259"].(map[string]any)["CorruptBlocks"] = []int{1, 2}
			})
		},
		"a directory of an older backup does not come back": func(l *layout) {
			entries := append(l.entries(fullName), dir("/base/99"))
			l.objects[partOf(fullName, "part_001.tar.")] = tarOf(l.t, entries...)
			l.set(filesOf(fullName), "TarFileSets", nil)
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			l := readLayout(t)
			change(l)
			target := filepath.Join(fastDir(t), "data")
			if err := l.archive.restore(t, l.objects, target); err != nil {
				t.Fatal(err)
			}
			if file := l.archive.wrong(t, target); file != "" {
				t.Errorf("%s is wrong", file)
			}
			if _, err := os.Lstat(filepath.Join(target, "base/99")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("base/99: %v", err)
			}
		})
	}
}

func TestChainsThatCannotBeRestoredAreRefusedBeforeAnythingIsWritten(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		change func(*layout)
		texts  []string
	}{
		"no base": {func(l *layout) { l.drop(sentinelOf(fullName)) },
			[]string{"cannot use backup " + newestName, middleName + " is based on " + fullName, "which is not in memory"}},
		"no direct base": {func(l *layout) { l.drop(sentinelOf(middleName)) }, []string{newestName + " is based on " + middleName, "which is not in memory"}},
		"an unreadable base": {func(l *layout) { l.objects[sentinelOf(fullName)] = []byte(`{"LSN":`) },
			[]string{"is based on " + fullName, "its sentinel is not valid"}},
		"a circle": {func(l *layout) { l.set(sentinelOf(middleName), "DeltaFrom", newestName) }, []string{"a circle"}},
		"itself":   {func(l *layout) { l.set(sentinelOf(newestName), "DeltaFrom", newestName) }, []string{"a circle"}},
		"a base without a name": {func(l *layout) { l.set(sentinelOf(newestName), "DeltaFrom", "") },
			[]string{newestName + " is a delta backup, and does not say what it is based on"}},
		"a base with a foreign name": {func(l *layout) { l.set(sentinelOf(newestName), "DeltaFrom", "../../other") }, []string{"no name of a backup"}},
		"a base called LATEST":       {func(l *layout) { l.set(sentinelOf(newestName), "DeltaFrom", "LATEST") }, []string{"no name of a backup"}},
		"a base of another cluster": {func(l *layout) { l.set(sentinelOf(middleName), "SystemIdentifier", number("7710898807208053914")) },
			[]string{"of cluster 7710898807208053914, the delta of 7710898807208053913"}},
		"a base that began elsewhere": {func(l *layout) { l.set(sentinelOf(fullName), "LSN", number("12582953")) },
			[]string{"that began at 0/C00029, the delta has what changed since 0/C00028"}},
		"a base that ended too late": {func(l *layout) { l.set(sentinelOf(middleName), "FinishLSN", number("18874409")) },
			[]string{"that ended at", "after the delta began"}},
		"a base that is younger": {func(l *layout) {
			l.set(sentinelOf(newestName), "DeltaLSN", nil)
			l.set(sentinelOf(middleName), "LSN", number("18874500"))
		}, []string{"after the delta"}},
		"no list of files": {func(l *layout) { l.drop(filesOf(newestName)) }, []string{"it is a delta backup, and has no list of its files"}},
		"no list of files in the middle": {func(l *layout) { l.drop(filesOf(middleName)) },
			[]string{"cannot use backup " + newestName + ", which is based on " + middleName, "it is a delta backup, and has no list of its files"}},
		"an empty list of files":        {func(l *layout) { l.objects[filesOf(newestName)] = []byte("{}") }, []string{"has no list of its files"}},
		"a list of files cut off":       {func(l *layout) { l.objects[filesOf(middleName)] = l.objects[filesOf(middleName)][:5000] }, []string{middleName, "files_metadata.json"}},
		"a list that is said not to be": {func(l *layout) { l.set(sentinelOf(middleName), "FilesMetadataDisabled", true) }, []string{"has no list of its files"}},
		"a part of the base":            {func(l *layout) { l.drop(partOf(fullName, "part_001.tar.zst")) }, []string{"its part part_001.tar.zst is not in"}},
		"a part of the newest":          {func(l *layout) { l.drop(partOf(newestName, "part_001.tar.zst")) }, []string{"its part part_001.tar.zst is not in"}},
		"a part of the base, not of sets": {func(l *layout) {
			l.set(filesOf(fullName), "TarFileSets", nil)
			l.drop(partOf(fullName, "part_001.tar.zst"))
		}, []string{"has no parts"}},
		"a file that the base does not name": {func(l *layout) { l.unname(fullName, "/base/1/1259") },
			[]string{"which is based on " + fullName, `1 files that are said to be in it, for example "base/1/1259"`}},
		"a file that the middle does not name": {func(l *layout) { l.unname(middleName, "/base/1/112") }, []string{"base/1/112"}},
		"a file both skipped and incremented":  {func(l *layout) { l.flag(newestName, "/base/1/1259", true, true) }, []string{"/base/1/1259", "not to be stored"}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			l := readLayout(t)
			c.change(l)
			target := filepath.Join(t.TempDir(), "data")
			var err error
			synctest.Test(t, func(t *testing.T) { err = l.archive.restore(t, l.objects, target) })
			if err == nil {
				t.Fatal("it was restored")
			}
			for _, text := range c.texts {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q does not say %q", err, text)
				}
			}
			if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("something was written: %v", err)
			}
		})
	}
}

// What the documents do not tell beforehand is found out while the tars are read, and the cluster cannot be started then.
func TestTarsThatAreNotWhatTheDocumentsSayAreRefused(t *testing.T) {
	t.Parallel()
	rewrite := func(backup, name string, change func(body string) []entry) func(*layout) {
		return func(l *layout) {
			var out []entry
			found := false
			for _, e := range l.entries(backup) {
				if e.name != name {
					out = append(out, e)
					continue
				}
				found = true
				out = append(out, change(e.body)...)
			}
			if !found {
				l.t.Fatalf("%s has no %s", backup, name)
			}
			l.objects[partOf(backup, "part_001.tar")] = tarOf(l.t, out...)
			l.set(filesOf(backup), "TarFileSets", nil)
		}
	}
	const changed, skipped = "/base/1/1259", "/base/1/112"
	for what, c := range map[string]struct {
		change func(*layout)
		text   string
	}{
		"an increment said to be whole": {func(l *layout) { l.flag(newestName, changed, false, false) }, "it is an increment, and said to be the whole file"},
		"an increment in the full backup": {func(l *layout) {
			l.objects[partOf(fullName, "part_001.tar.zst")] = l.objects[partOf(middleName, "part_001.tar.zst")]
		}, "is damaged"},
		"a delta said to be full":               {func(l *layout) { l.set(sentinelOf(middleName), "DeltaFrom", nil) }, "it is an increment, and said to be the whole file"},
		"a whole file said to be an increment":  {rewrite(newestName, changed, func(string) []entry { return []entry{file(changed, strings.Repeat("page", 2048))} }), "it begins with"},
		"a file that is said to be elsewhere":   {func(l *layout) { l.flag(newestName, changed, true, false) }, "is said not to be"},
		"a file that is not there":              {rewrite(newestName, changed, func(string) []entry { return nil }), "in none of its parts"},
		"a file that the base has not":          {rewrite(fullName, skipped, func(string) []entry { return nil }), "in none of its parts"},
		"a file that the base has not, changed": {rewrite(fullName, changed, func(string) []entry { return nil }), "in none of its parts"},
		"an increment cut off":                  {rewrite(middleName, changed, func(b string) []entry { return []entry{file(changed, b[:len(b)-1])} }), "damaged increment"},
		"an increment twice":                    {rewrite(middleName, changed, func(b string) []entry { return []entry{file(changed, b), file(changed, b)} }), "appears twice"},
		"a huge file": {rewrite(newestName, changed, func(string) []entry {
			var b bytes.Buffer
			if _, err := increment.NewWriter(&b, 1<<40, &increment.Blocks{}); err != nil {
				t.Error(err)
			}
			return []entry{file(changed, b.String())}
		}), "more than there can be"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			l := readLayout(t)
			c.change(l)
			target := filepath.Join(fastDir(t), "data")
			var err error
			synctest.Test(t, func(t *testing.T) { err = l.archive.restore(t, l.objects, target) })
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v does not say %q", err, c.text)
			}
			if _, err := os.Lstat(filepath.Join(target, "global/pg_control")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("it can be started: %v", err)
			}
		})
	}
}

func TestAChainNeedsTheSpaceOfItsNewestCluster(t *testing.T) {
	t.Parallel()
	l := readLayout(t)
	l.set(sentinelOf(newestName), "DataCatalogSize", number("1152921504606846976"))
	target := filepath.Join(t.TempDir(), "data")
	err := l.archive.restore(t, l.objects, target)
	if err == nil || !strings.Contains(err.Error(), "MiB free, the backup needs 1099511627777 MiB") {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was written: %v", err)
	}
	devices := map[uint64]*need{1: {dir: t.TempDir()}, 2: {dir: "/dev/shm"}}
	if err := checkTogether(devices, 1<<60); err == nil || !strings.Contains(err.Error(), "free together, the backup needs 1099511627777 MiB") {
		t.Errorf("%v", err)
	}
	if err := checkTogether(devices, 1); err != nil {
		t.Error(err)
	}
}

// A tablespace goes where the newest backup had it, whatever older ones say.
func TestTablespacesOfAChainAreThoseOfTheNewestBackup(t *testing.T) {
	t.Parallel()
	parent := fastDir(t)
	old, now, target := filepath.Join(parent, "old"), filepath.Join(parent, "now"), filepath.Join(parent, "data")
	const inSpace = "/pg_tblspc/16400/PG_15_202209061/5/16401"
	l := readLayout(t)
	space := func(backup, location string) {
		l.set(sentinelOf(backup), "Spec", map[string]any{"base_prefix": "/srv/main", "tablespaces": []string{"16400"},
			"16400": map[string]any{"loc": location, "link": "pg_tblspc/16400"}})
		l.set(filesOf(backup), "TarFileSets", nil)
	}
	add := func(backup, body string) {
		l.objects[partOf(backup, "part_002.tar")] = tarOf(t, file(inSpace, body))
	}
	space(fullName, old)
	l.flag(fullName, inSpace, false, false)
	add(fullName, strings.Repeat("old page", 3*1024))
	space(middleName, now)
	l.flag(middleName, inSpace, true, false)
	space(newestName, now)
	l.flag(newestName, inSpace, false, true)
	var blocks increment.Blocks
	blocks.Add(1)
	var b bytes.Buffer
	w, err := increment.NewWriter(&b, 2*pageSize, &blocks)
	if err == nil {
		_, err = w.Write(bytes.Repeat([]byte("new page"), 1024))
	}
	if err != nil {
		t.Fatal(err)
	}
	add(newestName, b.String())
	if err := l.archive.restore(t, l.objects, target); err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("old page", 1024) + strings.Repeat("new page", 1024)
	compare(t, "the tablespace", have(t, now), map[string]string{"PG_15_202209061/": "", "PG_15_202209061/5/": "", "PG_15_202209061/5/16401": want})
	if link, err := os.Readlink(filepath.Join(target, "pg_tblspc/16400")); link != now || err != nil {
		t.Errorf("the link leads to %q, %v", link, err)
	}
	if _, err := os.Lstat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old place: %v", err)
	}
}

// A part that comes wrong once is read again, and its pages are written again: garbage of the first attempt must not stay.
func TestAChainSurvivesAFailureThatPasses(t *testing.T) {
	t.Parallel()
	l := readLayout(t)
	for _, backup := range []string{fullName, middleName, newestName} {
		for _, kind := range []storagetest.Kind{storagetest.Before, storagetest.Half, storagetest.FlipBit, storagetest.Truncate} {
			s := storagetest.NewMemory()
			for key, b := range l.objects {
				put(t, s, key, b)
			}
			target := filepath.Join(fastDir(t), "data")
			fault := storagetest.NewFault(s, storagetest.Rule{Kind: kind, Nth: 1, Match: func(c storagetest.Call) bool {
				return c.Op == storagetest.OpGet && c.Key == partOf(backup, "part_001.tar.zst")
			}})
			synctest.Test(t, func(t *testing.T) {
				c, err := l.archive.open(fault)
				if err != nil {
					t.Fatal(err)
				}
				b, err := c.Find(t.Context(), newestName)
				if err != nil {
					t.Fatal(err)
				}
				_, err = Fetch(t.Context(), Deps{c, slog.New(slog.DiscardHandler), watch{func() {}}}, b, Options{Dir: target, Workers: 2})
				if err != nil || !fault.Fired() {
					t.Fatalf("%s, kind %d: %v", backup, kind, err)
				}
			})
			if file := l.archive.wrong(t, target); file != "" {
				t.Errorf("%s, kind %d: %s is wrong", backup, kind, file)
			}
		}
	}
}
