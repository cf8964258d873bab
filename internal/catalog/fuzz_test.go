package catalog

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
)

// golden seeds a fuzz target with what walden itself writes.
func golden(f *testing.F, name string) string {
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(b))
	f.Add("null")
	f.Add(`{"":`)
	return string(b)
}

func FuzzSentinel(f *testing.F) {
	golden(f, "sentinel.json")
	f.Add(`{"LSN":-1}`)
	f.Add(`{"LSN":1,"Spec":{"tablespaces":["x"]},"Files":[]}`)
	sentinelOfAnyText(f, first)
}

func FuzzSentinelOfWALE(f *testing.F) {
	f.Add(waleText)
	f.Add(`{"wal_segment_backup_stop":"000000010000000000000009"}`)
	f.Add(`{"wal_segment_backup_stop":null,"expanded_size_bytes":-1,"spec":{"tablespaces":["x"]}}`)
	sentinelOfAnyText(f, "base_000000010000000000000009_00000040")
}

func sentinelOfAnyText(f *testing.F, first string) {
	f.Fuzz(func(t *testing.T, text string) {
		s := storagetest.NewMemory()
		put(t, s, sentinelKey(first), text)
		put(t, s, backupDir(first)+partsDir+"part_001.tar", "x")
		put(t, s, backupDir(first)+partsDir+controlTar, "x")
		c := open(t, s)
		backups, err := c.Backups(t.Context())
		if err != nil || len(backups) != 1 {
			t.Fatalf("%d, %v", len(backups), err)
		}
		b, err := c.Find(t.Context(), first)
		if (err == nil) != (backups[0].Problem == nil) {
			t.Errorf("listed with %v, found with %v", backups[0].Problem, err)
		}
		if err == nil {
			l, err := c.List(t.Context(), b)
			checkListing(t, l, err)
		}
	})
}

// checkListing fails the test if an accepted listing holds a name that leads outside.
func checkListing(t *testing.T, l Listing, err error) {
	t.Helper()
	if err != nil {
		return
	}
	for _, f := range l.Files.All() {
		if f.Name != "" && !filepath.IsLocal(f.Name) {
			t.Errorf("%q is accepted", f.Name)
		}
	}
}

func FuzzMetadata(f *testing.F) {
	golden(f, metadataName)
	f.Fuzz(func(t *testing.T, text string) {
		s := storagetest.NewMemory()
		put(t, s, sentinelKey(first), `{"LSN":1}`)
		put(t, s, backupDir(first)+metadataName, text)
		backups := []Backup{{Name: first}}
		if err := open(t, s).Details(t.Context(), backups); err != nil {
			t.Fatal(err)
		}
		if data := backups[0].UserData; backups[0].Problem == nil && len(data) > 0 && !json.Valid(data) {
			t.Errorf("user data %q", data)
		}
	})
}

func FuzzManifest(f *testing.F) {
	golden(f, manifestName)
	f.Add(`{"version":1,"files":[{"name":"/../x","mode":"0600","xxh128":"00"}]}`)
	f.Add(`{"version":2}`)
	f.Fuzz(func(t *testing.T, text string) {
		l := Listing{}
		err := readManifest(strings.NewReader(text), Backup{Name: first, ManifestSHA256: "none has this"}, &l, nil)
		if err == nil {
			t.Error("accepted with another digest than the sentinel's")
		}
		checkListing(t, l, nil)
	})
}

func FuzzFilesMetadata(f *testing.F) {
	golden(f, filesName)
	f.Add(`{"Files":{"/../x":{}},"TarFileSets":{"../../x.tar":[]}}`)
	f.Fuzz(func(t *testing.T, text string) {
		l := Listing{}
		err := open(t, storagetest.NewMemory()).listOther(Backup{Name: first}, &l, map[string]int64{"part_001.tar": 1, controlTar: 1}, strings.NewReader(text), nil)
		checkListing(t, l, err)
		for _, p := range append(l.Parts, l.Special...) {
			if strings.Contains(p.Name, "/") {
				t.Errorf("the part %q is accepted", p.Name)
			}
		}
	})
}

func FuzzTablespaceSpec(f *testing.F) {
	f.Add(`{"base_prefix":"/srv/main","tablespaces":["16384"],"16384":{"loc":"/srv/a","link":"pg_tblspc/16384"}}`)
	f.Add(`{"tablespaces":["-1","4294967296"]}`)
	f.Fuzz(func(t *testing.T, text string) {
		var spec, again TablespaceSpec
		if json.Unmarshal([]byte(text), &spec) != nil {
			return
		}
		b, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &again); err != nil || len(again.Tablespaces) != len(spec.Tablespaces) {
			t.Errorf("%s became %s: %v", text, b, err)
		}
	})
}

func FuzzIdentity(f *testing.F) {
	f.Add(`{"version":1,"since":"2026-11-22T00:00:00Z","current":{"system_identifier":"7710983920749980543","pg_major":15,"wal_segment_size":16777216}}`)
	f.Add(`{"current":{"system_identifier":"1"},"previous":[{"system_identifier":""}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		s := storagetest.NewMemory()
		put(t, s, identityName, text)
		c := open(t, s)
		id, err := c.Identity(t.Context())
		if err != nil {
			return
		}
		if err := c.Admit(t.Context(), Cluster{SystemIdentifier: id.Current.SystemIdentifier + 1}); err == nil {
			t.Errorf("another cluster than %s was admitted", id.Current)
		}
	})
}

func FuzzEntryName(f *testing.F) {
	for _, name := range []string{"", "/", "./", "base/1/1259", "/base/../x", "..", "a/..", "./../x", "//x", "a\x00b", "...", "a//b/./c/", `a\..\b`} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got, err := EntryName(name)
		if err != nil {
			return
		}
		if got != "" && !filepath.IsLocal(got) || strings.ContainsRune(got, 0) || strings.HasSuffix(got, "/") {
			t.Errorf("%q became %q", name, got)
		}
		if again, err := EntryName(got); err != nil || again != got {
			t.Errorf("%q became %q, and then %q, %v", name, got, again, err)
		}
	})
}

// The grammar as an expression is what the hand-written one has to agree with.
func FuzzBackupNames(f *testing.F) {
	grammar := regexp.MustCompile(`^base_([0-9A-F]{24})(_D_[0-9A-F]{24})?(_[0-9A-F]{8})?$`)
	const segment, base = "000000010000000000000002", "00000001000000000000000A"
	for _, name := range []string{
		"base_" + segment, "base_" + segment + "_D_" + base, "base_" + segment + "_00000028", "base_" + segment + "_D_" + base + "_00000028",
		"", "base_", "base_" + segment[1:], "base_" + segment + "0", "base_" + segment + "_", "base_" + segment + "_D_", "base_" + segment + "_D_" + base[1:],
		"base_" + segment + "_0000028", "base_" + segment + "_00000028_", "base_" + segment + "_00000028_D_" + base, "base_" + segment + "_D_" + base + "_D_" + base,
		"base_00000001000000000000000a", "base_" + segment + "\n", " base_" + segment, "base_" + segment + "_00000028_00000028", "base_" + segment + "_D_" + base + "\x00",
	} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		want, wantBase := "", ""
		if m := grammar.FindStringSubmatch(name); m != nil {
			want, wantBase = m[1], strings.TrimPrefix(m[2], "_D_")
		}
		if got, base := backupSegments(name); got != want || base != wantBase || isBackupName(name) != (want != "") {
			t.Errorf("%q: %q and %q instead of %q and %q", name, got, base, want, wantBase)
		}
	})
}
