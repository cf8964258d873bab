package gcs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sync/errgroup"

	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

func serverOptions(address, bucket string) Options {
	return Options{
		Bucket: bucket, Prefix: "some/prefix", Emulator: address, ChunkSize: 5 << 20, Concurrency: 8, Budget: storage.NewBudget(40 << 20),
		MaxRetries: 3, MinRetryDelay: time.Millisecond, MaxRetryDelay: 10 * time.Millisecond,
	}
}

func openTest(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), 1}).Read(b)
	return b
}

func mustPut(t testing.TB, s *Store, key string, content []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

func mustGet(t testing.TB, s *Store, key string) []byte {
	t.Helper()
	rc, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(rc)
	if err := errors.Join(err, rc.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

func keys(t testing.TB, s *Store, dir string) []string {
	t.Helper()
	var all []string
	for o, err := range s.List(t.Context(), dir) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, o.Key)
	}
	return all
}

func TestTheAcceptanceSuiteAgainstARealServer(t *testing.T) {
	t.Parallel()
	server := testenv.StartGCS(t, "")
	storagetest.Run(t, func(t *testing.T) storage.Store {
		return openTest(t, serverOptions(server.Address, server.NewBucket(t)))
	}, storagetest.Options{Secrets: []string{"hunter2"}})
}

func TestObjectsOfAnySizeComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	server := testenv.StartGCS(t, "")
	o := serverOptions(server.Address, server.NewBucket(t))
	o.ChunkSize = 1 << 20
	s := openTest(t, o)
	const head, unit = 1 << 20, chunkUnit
	var g errgroup.Group
	for i, n := range []int{
		0, 1, unit - 1, unit, unit + 1, head - 1, head, head + 1, head + unit, 2*head - 1, 2 * head, 2*head + 1, 3*head + unit + 1,
	} {
		g.Go(func() error {
			content, key := randomBytes(uint64(i), n), fmt.Sprintf("sizes/%d", n)
			if err := s.PutNew(t.Context(), key, iotest.OneByteReader(bytes.NewReader(content[:min(n, 1000)]))); err != nil {
				return err
			}
			if err := s.Put(t.Context(), key, iotest.HalfReader(bytes.NewReader(content))); err != nil {
				return err
			}
			if got := mustGet(t, s, key); !bytes.Equal(got, content) {
				return fmt.Errorf("%s came back with %d bytes that differ", key, len(got))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}
