package postgres_test

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/postgres"
)

func TestTheVersionsThatAreTestedAreThoseThatAreKnown(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("../../scripts/install-test-tools", "--list-majors").Output()
	if err != nil {
		t.Fatal(err)
	}
	tested := strings.Fields(string(out))
	for i, major := range tested {
		if want := postgres.OldestMajor + i; strconv.Itoa(want) != major {
			t.Errorf("the %d. version that the tests run on is %s, not %d", i+1, major, want)
		}
	}
	if n := postgres.NewestMajor - postgres.OldestMajor + 1; n != len(tested) {
		t.Errorf("%d versions are known, %d are tested", n, len(tested))
	}
}
