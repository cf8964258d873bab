package catalog

import (
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
)

// FuzzListOfABase reads any bytes as the list of files of a backup on which another is based: nothing gets into the listing but what the
// other one needs.
func FuzzListOfABase(f *testing.F) {
	f.Add(`{"Files":{"/base/1/1":{"IsIncremented":true},"/base/1/2":{"IsSkipped":true},"base/1/3":{}},"TarFileSets":{"part_001.tar":["/base/1/1"],"part_002.tar":[]}}`, true)
	f.Add(`{"TarFileSets":{"part_001.tar":["/base/1/1","/../x"]},"Files":{"/base/1/1":{},"base/1/1":{},"/base/1/2":{}}}`, false)
	f.Add(`{"Files":{"/base/1/1":{"IsIncremented":true,"IsSkipped":true}}}`, true)
	f.Fuzz(func(t *testing.T, text string, delta bool) {
		newest := &Files{}
		for _, file := range []File{{Name: "base/1/1", Stored: Increment}, {Name: "base/1/2", Stored: Elsewhere}, {Name: "base/1/3"}} {
			if _, err := newest.Add(file); err != nil {
				t.Fatal(err)
			}
		}
		needed, b := newWants(newest), Backup{Name: first}
		if delta {
			b.Delta = &Delta{From: "other"}
		}
		needed.begin()
		l := Listing{}
		stored := map[string]int64{"part_001.tar": 1, "part_002.tar": 1}
		err := open(t, storagetest.NewMemory()).listOther(b, &l, stored, strings.NewReader(text), needed)
		if err == nil {
			err = needed.satisfied(b, &l)
		}
		if err != nil {
			return
		}
		needed.leaveOut(&l)
		if needed.met.n != 2 || len(l.Special) > 0 {
			t.Errorf("%d files were met, and %v is to be read", needed.met.n, l.Special)
		}
		for i, file := range l.Files.All() {
			if _, _, ok := newest.Find(file.Name); !ok || file.Name == "base/1/3" || file.Stored == Elsewhere || !delta && file.Stored != Whole {
				t.Errorf("entry %d is %+v", i, file)
			}
		}
		if l.Files.Len() == 0 && len(l.Parts) > 0 {
			t.Errorf("nothing is needed, and %v is to be read", l.Parts)
		}
	})
}
