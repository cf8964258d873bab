package hint

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"testing"
)

func TestAdviceIsFoundAtEveryLevelAndToldOnce(t *testing.T) {
	t.Parallel()
	inner := With(fs.ErrNotExist, "look there")
	err := fmt.Errorf("cannot do it: %w", errors.Join(With(inner, "try this"), fmt.Errorf("and: %w", With(errors.New("x"), "look there")), errors.New("plain")))
	if got := Of(err); !slices.Equal(got, []string{"try this", "look there"}) {
		t.Errorf("advice %q", got)
	}
	if !errors.Is(err, fs.ErrNotExist) || inner.Error() != fs.ErrNotExist.Error() {
		t.Errorf("%v", err)
	}
	if got := Of(With(nil, "")); len(got) != 0 || len(Of(nil)) != 0 {
		t.Errorf("advice of nothing: %q", got)
	}
}
