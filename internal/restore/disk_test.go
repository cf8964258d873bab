package restore

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestAFailureThatWrapsEOFIsNotTheEndOfAFile(t *testing.T) {
	t.Parallel()
	lost := fmt.Errorf("connection lost: %w", io.EOF)
	n, err := fillBuffer(io.MultiReader(strings.NewReader("half"), iotest.ErrReader(lost)), make([]byte, 100))
	if n != 4 || err != lost {
		t.Errorf("read %d bytes and %v", n, err)
	}
	if err := onlyZeros(iotest.ErrReader(lost)); err != lost {
		t.Errorf("the end of a tar: %v", err)
	}
}
