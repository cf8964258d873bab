package backup

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"gitlab.com/walden-pg/walden/internal/directio"
)

// openDataFile opens a file of the data directory dir for reading. It follows no link, and waits for no other end of a pipe.
func openDataFile(dir, name string) (*directio.Once, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return directio.NewOnce(f), nil
}
