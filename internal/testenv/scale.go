package testenv

import (
	"math/rand/v2"
	"os"
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

// Figure adds n to a line of the table that scripts/testreport prints when all tests have run, for example
// Figure(t, "moments killed", "backup-push", 31). Figures of equal group and name are summed up, and so is each group.
func Figure(t testing.TB, group, name string, n int) {
	t.Helper()
	t.Attr("figure", strconv.Itoa(n)+" "+group+": "+name)
}
