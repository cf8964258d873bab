package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"

	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

func serverOptions(server *testenv.S3Server, bucket string) Options {
	return Options{
		Bucket: bucket, Prefix: "some/prefix", Endpoint: server.Endpoint, PathStyle: true,
		AccessKeyID: server.AccessKey, SecretAccessKey: storage.Secret(server.SecretKey),
		PartSize: minPartSize, Concurrency: 4, Budget: storage.NewBudget(40 << 20),
		MaxRetries: 3, MinRetryDelay: time.Millisecond, MaxRetryDelay: 10 * time.Millisecond,
	}
}

func openTest(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), o)
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
	server := testenv.StartS3(t)
	asks := func(prepare func(*Store) *Store) {
		storagetest.Run(t, func(t *testing.T) storage.Store {
			return prepare(openTest(t, serverOptions(server, server.NewBucket(t))))
		}, storagetest.Options{
			Secrets: []string{server.SecretKey},
			Cannot: map[string]string{
				"writing and deleting side by side in a directory work": "versitygw removes a directory together with " +
					"its last object, also below a PUT under way, which then fails with ExistingObjectIsDirectory",
			},
		})
	}
	asks(eager)
	if testenv.Full() {
		asks(func(s *Store) *Store { return s })
	}
}

// It runs by itself, since it measures the memory of the whole process.
func Test300MiBPassThroughABudgetOf60MiB(t *testing.T) {
	server := testenv.StartS3(t)
	o := serverOptions(server, server.NewBucket(t))
	o.PartSize, o.Concurrency, o.Budget = 20<<20, 16, storage.NewBudget(60<<20)
	s := openTest(t, o)
	peak := storagetest.WatchHeap(t)
	const size = 300 << 20
	if err := s.Put(t.Context(), "large", io.LimitReader(rand.NewChaCha8([32]byte{1}), size)); err != nil {
		t.Fatal(err)
	}
	if got := peak(); got < 20<<20 || got > 70<<20 {
		t.Errorf("the live heap grew by %d MiB", got>>20)
	}
	if stat, err := s.Stat(t.Context(), "large"); err != nil || stat.Size != size {
		t.Errorf("Stat = %+v, %v", stat, err)
	}
	storagetest.WholeBudget(t, o.Budget)
}

func TestAgainstARealServer(t *testing.T) {
	t.Parallel()
	server := testenv.StartS3(t)

	for _, checksum := range []string{ChecksumCRC32, ChecksumMD5, ChecksumNone} {
		t.Run("an object of any size comes back as it was with checksum "+checksum, func(t *testing.T) {
			o := serverOptions(server, server.NewBucket(t))
			o.Checksum = checksum
			s := openTest(t, o)
			for i, size := range []int{0, 1, chunkSize, chunkSize + 1, minPartSize - 1, minPartSize, minPartSize + 1, 3*minPartSize + 7} {
				want := randomBytes(uint64(i), size)
				key := fmt.Sprintf("dir/object_%d", size)
				put := s.Put
				if i%2 == 0 {
					put = s.PutNew
				}
				if err := put(t.Context(), key, iotest.HalfReader(bytes.NewReader(want))); err != nil {
					t.Fatal(err)
				}
				if got := mustGet(t, s, key); !bytes.Equal(got, want) {
					t.Errorf("%d bytes came back as %d other bytes", len(want), len(got))
				}
				if stat, err := s.Stat(t.Context(), key); err != nil || stat.Size != int64(size) || stat.Key != key ||
					time.Since(stat.Modified) > time.Minute {
					t.Errorf("Stat = %+v, %v", stat, err)
				}
				if err := s.PutNew(t.Context(), key, bytes.NewReader(want)); !errors.Is(err, storage.ErrExists) {
					t.Errorf("PutNew of a taken key of %d bytes: %v", size, err)
				}
			}
			if got := conditions(s.conditions.Load()); got != conditionsUnknown && got != conditionsHonoured {
				t.Errorf("conditions = %d", got)
			}
			noUploadsLeft(t, server, o.Bucket)
			if err := s.Delete(t.Context(), append(keys(t, s, "dir/"), "dir/never_was")...); err != nil {
				t.Error(err)
			}
			if left := keys(t, s, ""); len(left) != 0 {
				t.Errorf("left after Delete: %q", left)
			}
			if got := deletion(s.deletion.Load()); got == deleteSingle {
				t.Error("the batch deletion was refused")
			}
		})
	}

	t.Run("one of sixteen racing writers wins, in one part and in many", func(t *testing.T) {
		o := serverOptions(server, server.NewBucket(t))
		o.Conditional = ConditionalOn // or HEAD would settle most of it
		for _, size := range []int{1000, minPartSize + 1} {
			s := openTest(t, o)
			writers := 16
			if size > minPartSize {
				writers = 4
			}
			var mu sync.Mutex
			var winners []int
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					err := s.PutNew(t.Context(), fmt.Sprint("key", size), bytes.NewReader(randomBytes(uint64(w), size)))
					switch {
					case err == nil:
						mu.Lock()
						winners = append(winners, w)
						mu.Unlock()
					case !errors.Is(err, storage.ErrExists):
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if len(winners) != 1 {
				t.Fatalf("winners: %v", winners)
			}
			if got := mustGet(t, s, fmt.Sprint("key", size)); !bytes.Equal(got, randomBytes(uint64(winners[0]), size)) {
				t.Error("what stands there is not the winner's")
			}
		}
		noUploadsLeft(t, server, o.Bucket)
	})

	t.Run("a source that fails leaves no object and no upload", func(t *testing.T) {
		o := serverOptions(server, server.NewBucket(t))
		s := openTest(t, o)
		broken := errors.New("disk on fire")
		for _, size := range []int64{0, 100, minPartSize, 3*minPartSize + 100} {
			for _, cause := range []error{broken, io.ErrUnexpectedEOF} {
				r := io.MultiReader(io.LimitReader(rand.NewChaCha8([32]byte{}), size), iotest.ErrReader(cause))
				if err := s.Put(t.Context(), "key", r); !errors.Is(err, cause) {
					t.Errorf("Put of %d bytes: %v", size, err)
				}
			}
		}
		if _, err := s.Stat(t.Context(), "key"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat: %v", err)
		}
		noUploadsLeft(t, server, o.Bucket)
	})

	t.Run("a cancelled upload leaves no object and no upload", func(t *testing.T) {
		o := serverOptions(server, server.NewBucket(t))
		s := openTest(t, o)
		ctx, cancel := context.WithCancel(t.Context())
		read := 0
		r := readerFunc(func(p []byte) (int, error) {
			if read += len(p); read > 3*minPartSize {
				cancel()
			}
			return len(p), nil
		})
		if err := s.Put(ctx, "key", r); !errors.Is(err, context.Canceled) {
			t.Errorf("Put: %v", err)
		}
		if got := keys(t, s, ""); len(got) != 0 {
			t.Errorf("visible: %q", got)
		}
		noUploadsLeft(t, server, o.Bucket)
		storagetest.WholeBudget(t, o.Budget)
	})

	t.Run("a listing of several pages in the old protocol is complete and sorted", func(t *testing.T) {
		o := serverOptions(server, server.NewBucket(t))
		o.UseListV1 = true
		s := openTest(t, o)
		var want []string
		var g errgroup.Group
		g.SetLimit(8)
		for i := range 1100 {
			key := fmt.Sprintf("many/%04d", i)
			want = append(want, key)
			if i%10 == 0 {
				want[i] += "/"
				key += "/inside"
			}
			g.Go(func() error { return s.Put(t.Context(), key, strings.NewReader("x")) })
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if got := keys(t, s, "many/"); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("listed %d of %d: %.300q", len(got), len(want), got)
		}
	})

	t.Run("what is wrong is said", func(t *testing.T) {
		good := serverOptions(server, server.NewBucket(t))
		if err := openTest(t, good).Check(t.Context()); err != nil {
			t.Errorf("Check: %v", err)
		}
		for _, c := range []struct {
			name   string
			change func(*Options)
			want   string
		}{
			{"missing bucket", func(o *Options) { o.Bucket = "no-such-bucket" }, `bucket "no-such-bucket" does not exist`},
			{"wrong secret", func(o *Options) { o.SecretAccessKey = "wrong" }, "the service does not accept the signature"},
			{"wrong access key", func(o *Options) { o.AccessKeyID = "wrong" }, "the service does not know the access key"},
			{"unreachable", func(o *Options) { o.Endpoint = "http://127.0.0.1:1" }, "connection refused"},
			{"https to http", func(o *Options) { o.Endpoint = strings.Replace(o.Endpoint, "http:", "https:", 1) },
				"server gave HTTP response to HTTPS client"},
		} {
			t.Run(c.name, func(t *testing.T) {
				o := good
				c.change(&o)
				s := openTest(t, o)
				checkErr := s.Check(t.Context())
				_, getErr := s.Get(t.Context(), "key")
				_, statErr := s.Stat(t.Context(), "key")
				putErr := s.PutNew(t.Context(), "key", strings.NewReader("x"))
				for i, err := range []error{checkErr, getErr, statErr, putErr} {
					if err == nil || errors.Is(err, fs.ErrNotExist) {
						t.Fatalf("%d: error is %v", i, err)
					}
					var hinter interface{ Hint() string }
					if !errors.As(err, &hinter) || hinter.Hint() == "" {
						t.Errorf("%v: no hint", err)
					}
					if c.name != "unreachable" && !storage.IsPermanent(err) {
						t.Errorf("%v: is not permanent", err)
					}
					// HEAD of a wrong signature says no more than that it is forbidden.
					if text := err.Error(); !strings.Contains(text, c.want) && !strings.Contains(text, "access denied") {
						t.Errorf("%d: %v", i, err)
					}
				}
				if want := "cannot use " + s.String() + ": "; !strings.HasPrefix(checkErr.Error(), want) ||
					!strings.Contains(checkErr.Error(), c.want) {
					t.Errorf("Check: %v", checkErr)
				}
			})
		}
	})
}

func noUploadsLeft(t testing.TB, server *testenv.S3Server, bucket string) {
	t.Helper()
	out, err := server.Client().ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: aws.String(bucket)})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range out.Uploads {
		t.Errorf("upload %s of %s is left", *u.UploadId, *u.Key)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
