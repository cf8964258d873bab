package catalog

import (
	"slices"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
)

func TestAMarkChangesNothingElse(t *testing.T) {
	t.Parallel()
	const full, delta, deeper = "base_000000010000000000000002", "base_000000010000000000000004_D_000000010000000000000002", "base_000000010000000000000006_D_000000010000000000000004"
	s := storagetest.NewMemory()
	sentinels := map[string]string{
		full:   `{"LSN":33554472,"Future":{"b":1, "a":[2]},"IsPermanent":false,"SystemIdentifier":7710887100029993858}`,
		delta:  `{"LSN":67108904,"DeltaFrom":"` + full + `","DeltaCount":1}`,
		deeper: `{"LSN":100663336,"DeltaFrom":"` + delta + `","DeltaCount":2,"IsPermanent":false}`,
	}
	for name, sentinel := range sentinels {
		put(t, s, sentinelKey(name), sentinel)
		put(t, s, backupDir(name)+metadataName, `{"hostname":"<db>","is_permanent":false,"future":1.50,"system_identifier":7710887100029993858}`)
	}
	c := open(t, s)
	mark := func(name string, permanent bool, want ...string) {
		t.Helper()
		changed, err := c.Mark(t.Context(), name, permanent)
		if err != nil || !slices.Equal(changed, want) {
			t.Fatalf("%s, %t: %v, %v", name, permanent, changed, err)
		}
	}
	mark(delta, true, full, delta)
	mark(deeper, true, deeper)
	mark(full, true)
	if _, err := c.Mark(t.Context(), delta, false); err == nil || !strings.Contains(err.Error(), deeper+" is permanent and based on it") {
		t.Errorf("the mark of a base: %v", err)
	}
	for name, sentinel := range sentinels {
		if got := string(get(t, s, sentinelKey(name))); got != sentinel {
			t.Errorf("the sentinel of %s is %s", name, got)
		}
	}
	if got, want := string(get(t, s, backupDir(full)+metadataName)), `{"hostname":"<db>","is_permanent":true,"future":1.50,"system_identifier":7710887100029993858}`; got != want {
		t.Errorf("metadata.json is %s, want %s", got, want)
	}
	mark(deeper, false, deeper)
	mark(delta, false, delta)
	mark(delta, false)
	if _, err := c.Mark(t.Context(), "base_0000000100000000000000FF", true); err == nil {
		t.Error("a backup that does not exist is marked")
	}
}
