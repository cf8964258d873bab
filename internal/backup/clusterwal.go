package backup

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// clusterWAL opens WAL files in the archive and, as a backup begins in a segment that the server has only begun to write, those that are
// not archived yet in pg_wal. What a backup reads of them lies before its start, hence is written.
type clusterWAL struct {
	archive walFiles
	dir     string // the data directory
}

// Open opens a file; what is nowhere is [fs.ErrNotExist].
func (w *clusterWAL) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := w.archive.Open(ctx, name)
	if !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	return os.Open(filepath.Join(w.dir, "pg_wal", name))
}
