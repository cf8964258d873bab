package backup

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/pgdata"
)

// sum is a Progress that adds up.
type sum int64

func (s *sum) Begin(int64) {}
func (s *sum) Add(n int64) { *s += sum(n) }
func (s *sum) End()        {}

// narrow takes so many bytes and then fails.
type narrow int

func (n *narrow) Write(p []byte) (int, error) {
	if *n -= narrow(len(p)); *n < 0 {
		return 0, errors.New("broken")
	}
	return len(p), nil
}

func TestAPartThatIsStoredAgainCountsOnce(t *testing.T) {
	t.Parallel()
	const size = 3 * readSize
	j := &job{dir: t.TempDir()}
	for _, name := range []string{"one", "two"} {
		if err := os.WriteFile(filepath.Join(j.dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		j.contents.Files.Add(catalog.File{Name: name, Type: catalog.Regular, Size: size})
	}
	var told sum
	w := &copier{job: j, progress: &told, buf: make([]byte, readSize), names: map[owner][2]string{}, verifier: pgdata.NewPageVerifier(1, 0)}
	p := part{spans: []span{{0, 2}}}
	failing := narrow(4 * readSize)
	if err := w.writePart(t.Context(), &failing, p); err == nil {
		t.Fatal("a part was written where there was no room")
	}
	for range 2 { // the storage may fail after it took all
		if err := w.writePart(t.Context(), io.Discard, p); err != nil {
			t.Fatal(err)
		}
		if told != 2*size {
			t.Errorf("progress was told of %d bytes, not %d", told, 2*size)
		}
	}
}
