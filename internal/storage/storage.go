// Package storage keeps named objects: whole objects under slash-separated keys, nothing else.
//
// Every backend (fs, s3, …) implements [Store] and passes the acceptance suite in storagetest. What all of
// them need (retries, stall limits, rate limits) is a store around a store and lives here. They are stacked in
// one order:
//
//	WithRetry(WithRateLimit(WithStallLimit(backend)))
//
// so that a stalled attempt is tried again, and waiting for the rate limit never counts as a stall.
//
// Required semantics, on which backups and WAL rest:
//   - an object exists completely or not at all: when the reader given to Put fails or the context ends, nothing
//     becomes visible under the key, and what stood there before still stands;
//   - a nil error from Put or PutNew means that the object is durable: acknowledged by the service, or synced
//     together with its directory;
//   - read after write: Get, Stat and List see an object as soon as Put has returned;
//   - a missing object is [fs.ErrNotExist], and only a missing object is: an unreachable service, a missing
//     bucket or a refused credential never is.
package storage

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

// ErrExists is returned by [Store.PutNew] when the key is taken.
var ErrExists = errors.New("object already exists")

// Object describes a stored object, or a directory in a listing.
type Object struct {
	Key      string    // full key below the store's root; a directory ends in "/"
	Size     int64     // bytes as stored; 0 for a directory
	Modified time.Time // the storage's own modification time; zero for a directory
}

// IsDir tells whether o stands for a directory in a listing.
func (o Object) IsDir() bool { return len(o.Key) > 0 && o.Key[len(o.Key)-1] == '/' }

// Store keeps named objects. Keys use "/", never start with one, and contain no empty, "." or ".." element.
// All methods may be called concurrently. Errors name the object; those for missing objects unwrap to
// fs.ErrNotExist. Store methods never log.
type Store interface {
	// Put stores what r yields under key and replaces what was there. An error of r is part of the error
	// returned, and r is not read any more once Put has returned.
	Put(ctx context.Context, key string, r io.Reader) error

	// PutNew is Put for a key that must not exist yet: it returns ErrExists if it does. Of two racing
	// writers exactly one wins, decided by the storage itself where it can.
	PutNew(ctx context.Context, key string, r io.Reader) error

	// Get opens the object. The caller closes the reader; closing early releases all resources. A body that
	// ends before the object's size yields an error, never a plain io.EOF.
	Get(ctx context.Context, key string) (io.ReadCloser, error)

	// Stat describes the object without reading it.
	Stat(ctx context.Context, key string) (Object, error)

	// List yields the objects and directories directly below dir ("" for the root, otherwise ending in "/"),
	// in ascending order of their keys. A directory that does not exist is empty. An error ends the sequence.
	List(ctx context.Context, dir string) iter.Seq2[Object, error]

	// Delete removes the objects; a missing one is no error. Objects that could not be removed are named in the
	// error. Once it returns nil the removal is durable, so that the order of two calls is also the order in
	// which their objects disappear.
	Delete(ctx context.Context, keys ...string) error

	// Check fails with a clear cause if the storage cannot be used: missing directory or bucket, wrong
	// credentials, unreachable endpoint. It writes nothing.
	Check(ctx context.Context) error

	// String names the storage for messages, for example "s3://bucket/prefix". It contains no secrets.
	String() string
}
