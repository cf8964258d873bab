package catalog

import (
	"errors"

	"gitlab.com/walden-pg/walden/internal/codec"
	"gitlab.com/walden-pg/walden/internal/crypt"
	"gitlab.com/walden-pg/walden/internal/storage"
)

// Classes of errors that the jobs branch on; a missing object is fs.ErrNotExist.
var (
	// ErrExists says that a name is taken.
	ErrExists = storage.ErrExists
	// ErrDamaged says that stored bytes are not what was written.
	ErrDamaged = codec.ErrDamaged
	// ErrNoSecretKey says that the keys that are given encrypt and do not decrypt.
	ErrNoSecretKey = crypt.ErrNoSecretKey
	// ErrClaimedOtherwise says that a file's fingerprint in the archive is that of another content.
	ErrClaimedOtherwise = errors.New("its fingerprint in the archive is that of another content")
)

// IsPermanent tells whether trying again cannot help: wrong credentials, a missing bucket, the wrong cluster.
func IsPermanent(err error) bool { return storage.IsPermanent(err) }

// LastFailure returns how the last attempt of the storage failed that the end of a context kept from trying again; nil if err does
// not tell.
func LastFailure(err error) error { return storage.LastFailure(err) }
