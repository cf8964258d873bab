package archive

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// writeSmall gives a file of dir new content, at once or not at all. Synced it survives a crash of the machine.
func writeSmall(dir, name string, content []byte, synced bool) error {
	f, err := os.CreateTemp(dir, "new")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if synced {
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if !synced {
		return nil
	}
	return syncDir(dir)
}

// removeIfThere removes a file that others may remove as well.
func removeIfThere(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
