package testenv

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

// Full says whether everything is to be tried (`make test-full`) or a fair sample of it (`make test`): all 200 moments of a
// kill -9, say, or a few. It is the environment's WALDEN_TEST_FULL=1.
func Full() bool { return os.Getenv("WALDEN_TEST_FULL") == "1" }

// Pick returns sample, or full where everything is to be tried.
func Pick(sample, full int) int {
	if Full() {
		return full
	}
	return sample
}

// Rand returns a source of chance for the test. Its seed stands in the test's log, and WALDEN_TEST_SEED repeats a run.
func Rand(t testing.TB) *rand.Rand {
	t.Helper()
	seed, err := strconv.ParseUint(os.Getenv("WALDEN_TEST_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("WALDEN_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// Some returns a sample of n elements of a list, chosen by chance and in their order, or the list itself where everything is to
// be tried.
func Some[E any](t testing.TB, n int, list []E) []E {
	t.Helper()
	if Full() || n >= len(list) {
		return list
	}
	chosen := Rand(t).Perm(len(list))[:n]
	slices.Sort(chosen)
	some := make([]E, n)
	for i, at := range chosen {
		some[i] = list[at]
	}
	return some
}

// Figure adds n to a line of the table that scripts/testreport prints when all tests have run, for example
// Figure(t, "moments killed", "backup-push", 31). Figures of equal group and name are summed up, and so is each group.
func Figure(t testing.TB, group, name string, n int) {
	t.Helper()
	t.Attr("figure", strconv.Itoa(n)+" "+group+": "+name)
}
