package s3

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"gitlab.com/walden-pg/walden/internal/storage"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

func TestOnlyUploadsThatNobodyMovesAreAborted(t *testing.T) {
	t.Parallel()
	type upload struct {
		key     string
		begun   time.Duration   // ago
		parts   []time.Duration // ago
		aborted bool
	}
	const old, young = 25 * time.Hour, 23 * time.Hour
	uploads := map[string]*upload{
		"cut":      {key: "p/folder/a", begun: old, parts: []time.Duration{old, old}},
		"empty":    {key: "p/folder/b", begun: old},
		"moving":   {key: "p/folder/c", begun: 10 * old, parts: []time.Duration{old, young, old}},
		"begun":    {key: "p/folder/d", begun: young},
		"foreign":  {key: "p/other/e", begun: old}, // a service that ignores the prefix lists it
		"next":     {key: "pp/folder/f", begun: old},
		"second":   {key: "p/folder/g", begun: old, parts: []time.Duration{old}}, // on the second page
		"finished": {key: "p/folder/h", begun: old},                              // completed meanwhile
	}
	var mu sync.Mutex
	ago := func(d time.Duration) string { return time.Now().Add(-d).UTC().Format(time.RFC3339) }
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		q := r.URL.Query()
		id := q.Get("uploadId")
		switch {
		case q.Has("uploads"):
			if q.Get("prefix") != "p/folder/" {
				t.Errorf("asked for the prefix %q", q.Get("prefix"))
			}
			second := q.Get("key-marker") != ""
			fmt.Fprintf(w, "<ListMultipartUploadsResult><IsTruncated>%v</IsTruncated><NextKeyMarker>m</NextKeyMarker><NextUploadIdMarker>m</NextUploadIdMarker>", !second)
			for id, u := range uploads {
				if (id == "second") == second {
					fmt.Fprintf(w, "<Upload><Key>%s</Key><UploadId>%s</UploadId><Initiated>%s</Initiated></Upload>", u.key, id, ago(u.begun))
				}
			}
			_, _ = io.WriteString(w, "</ListMultipartUploadsResult>")
		case id == "finished" || uploads[id].aborted:
			refuse(w, http.StatusNotFound, "NoSuchUpload")
		case r.Method == http.MethodGet:
			_, _ = io.WriteString(w, "<ListPartsResult><IsTruncated>false</IsTruncated>")
			for i, p := range uploads[id].parts {
				fmt.Fprintf(w, "<Part><PartNumber>%d</PartNumber><LastModified>%s</LastModified></Part>", i+1, ago(p))
			}
			_, _ = io.WriteString(w, "</ListPartsResult>")
		case r.Method == http.MethodDelete && r.URL.Path == "/bucket/"+uploads[id].key:
			uploads[id].aborted = true
			w.WriteHeader(http.StatusNoContent)
		default:
			t.Errorf("unexpected request %s %s", r.Method, r.URL)
		}
	}))
	t.Cleanup(server.Close)
	s := openTest(t, Options{
		Bucket: "bucket", Prefix: "p", Endpoint: server.URL, PathStyle: true, AccessKeyID: "access", SecretAccessKey: "topsecret",
	})
	got, err := s.AbortStale(t.Context(), 24*time.Hour, "folder/")
	slices.Sort(got)
	if want := []string{"folder/a", "folder/b", "folder/g"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("aborted %v, %v; want %v", got, err, want)
	}
	for id, u := range uploads {
		if want := slices.Contains([]string{"cut", "empty", "second"}, id); u.aborted != want {
			t.Errorf("%s: aborted is %v", id, u.aborted)
		}
	}
}

func TestStaleUploadsOnARealServer(t *testing.T) {
	t.Parallel()
	server := testenv.StartS3(t)
	bucket := server.NewBucket(t)
	s := openTest(t, Options{
		Bucket: bucket, Prefix: "p", Endpoint: server.Endpoint, PathStyle: true,
		AccessKeyID: server.AccessKey, SecretAccessKey: storage.Secret(server.SecretKey), Region: "us-east-1",
	})
	client := server.Client()
	for _, key := range []string{"p/folder/a", "p/folder/b", "p/other/c"} {
		u, err := client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: &key})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.UploadPart(t.Context(), &s3.UploadPartInput{
			Bucket: &bucket, Key: &key, UploadId: u.UploadId, PartNumber: aws.Int32(1), Body: strings.NewReader("part"),
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		idle time.Duration
		want []string
	}{{24 * time.Hour, nil}, {-time.Hour, []string{"folder/a", "folder/b"}}, {-time.Hour, nil}} {
		if got, err := s.AbortStale(t.Context(), c.idle, "folder/"); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("idle for %s: aborted %v, %v; want %v", c.idle, got, err, c.want)
		}
	}
	out, err := client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &bucket})
	if err != nil || len(out.Uploads) != 1 || *out.Uploads[0].Key != "p/other/c" {
		t.Errorf("left: %v, %v", out.Uploads, err)
	}
}
