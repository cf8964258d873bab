package catalog

import (
	"gitlab.com/walden-pg/walden/internal/codec"
	"gitlab.com/walden-pg/walden/internal/storage"
)

// Classes of errors that the jobs branch on; a missing object is fs.ErrNotExist.
var (
	// ErrExists says that a name is taken.
	ErrExists = storage.ErrExists
	// ErrDamaged says that stored bytes are not what was written.
	ErrDamaged = codec.ErrDamaged
)

// IsPermanent tells whether trying again cannot help: wrong credentials, a missing bucket, the wrong cluster.
func IsPermanent(err error) bool { return storage.IsPermanent(err) }

// hinted is an error with the next thing to try.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// Hint is the advice for the operator.
func (h *hinted) Hint() string { return h.hint }
