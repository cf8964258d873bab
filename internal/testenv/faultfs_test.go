package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// left describes a disk after a cut: "name=content".
func left(p *PowerCut, l Loss) string {
	var all []string
	for name, f := range p.Left(l, "") {
		all = append(all, fmt.Sprintf("%s=%q", name, f.Content))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func TestAPowerCutLeavesWhatWasSyncedAndNoMoreIsPromised(t *testing.T) {
	t.Parallel()
	d := MountFaultDisk(t, true)
	at := func(name string) string { return filepath.Join(d.Dir, name) }
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	syncDir := func(dir string) {
		t.Helper()
		f, err := os.Open(dir)
		check(err)
		check(f.Sync())
		check(f.Close())
	}
	check(os.Mkdir(at("d"), 0o700))
	d.Mark(t, "made")
	syncDir(d.Dir)
	f, err := os.Create(at("d/a"))
	check(err)
	_, err = f.WriteString("one")
	check(err)
	syncDir(at("d"))
	d.Mark(t, "unsynced")
	check(f.Sync())
	_, err = f.WriteString("two")
	check(err)
	d.Mark(t, "synced once")
	check(os.Rename(at("d/a"), at("b")))
	d.Mark(t, "renamed")
	syncDir(d.Dir)
	d.Mark(t, "in both")
	syncDir(at("d"))
	check(f.Close())
	d.Mark(t, "done")

	want := map[string][3]string{ // LoseAll, LoseData, ZeroData
		"made":        {``, `d=""`, `d=""`},
		"unsynced":    {`d/a="" d=""`, `d/a="" d=""`, `d/a="\x00\x00\x00" d=""`},
		"synced once": {`d/a="one" d=""`, `d/a="one" d=""`, `d/a="one\x00\x00\x00" d=""`},
		"renamed":     {`d/a="one" d=""`, `b="one" d=""`, `b="one\x00\x00\x00" d=""`},
		"in both":     {`b="one" d/a="one" d=""`, `b="one" d=""`, `b="one\x00\x00\x00" d=""`},
		"done":        {`b="one" d=""`, `b="one" d=""`, `b="one\x00\x00\x00" d=""`},
	}
	p := d.Journal(t).Replay()
	for e, ok := p.Next(); ok; e, ok = p.Next() {
		if e.Op != "mark" {
			continue
		}
		for i, loss := range []Loss{LoseAll(), LoseData(), ZeroData()} {
			if got := left(p, loss); got != want[e.Name][i] {
				t.Errorf("%s, %s: %s, want %s", e.Name, loss, got, want[e.Name][i])
			}
		}
		delete(want, e.Name)
	}
	if len(want) > 0 {
		t.Errorf("never met: %v", want)
	}
	seen := map[string]bool{}
	for seed := range uint64(64) {
		seen[left(p, LoseSome(seed))] = true
	}
	if len(seen) < 3 {
		t.Errorf("by chance always one of %v", seen)
	}
	p.settle()
	if got := left(p, LoseAll()); got != `b="onetwo" d=""` {
		t.Errorf("settled: %s", got)
	}
}
