package s3

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// lister answers listings of names, 1,000 at a time.
func lister(names []string, ignoresStart bool) func(*fake, string, int, http.ResponseWriter, *http.Request) bool {
	return func(_ *fake, kind string, _ int, w http.ResponseWriter, r *http.Request) bool {
		if kind != "List" {
			return false
		}
		q := r.URL.Query()
		after := q.Get("continuation-token") + q.Get("marker")
		if after == "" && !ignoresStart {
			after = q.Get("start-after")
		}
		type content struct{ Key string }
		var answer struct {
			XMLName               xml.Name `xml:"ListBucketResult"`
			Name                  string
			IsTruncated           bool
			NextContinuationToken string `xml:",omitempty"`
			NextMarker            string `xml:",omitempty"`
			Contents              []content
		}
		answer.Name = "bucket"
		first, found := slices.BinarySearch(names, strings.TrimPrefix(after, "p/wal_005/"))
		if after == "" {
			first, found = 0, false
		}
		if found {
			first++
		}
		for _, name := range names[first:min(first+1000, len(names))] {
			answer.Contents = append(answer.Contents, content{"p/wal_005/" + name})
		}
		if answer.IsTruncated = first+1000 < len(names); answer.IsTruncated {
			answer.NextMarker = "p/wal_005/" + names[first+999]
			answer.NextContinuationToken = answer.NextMarker
		}
		if err := xml.NewEncoder(w).Encode(answer); err != nil {
			panic(err)
		}
		return true
	}
}

// walNames are those of n segments of a timeline from a position on.
func walNames(timeline, first, n int) (names []string) {
	for i := first; i < first+n; i++ {
		names = append(names, fmt.Sprintf("%08X%08X%08X.lz4", timeline, i/256, i%256))
	}
	return names
}

func TestALongListingOfWALIsCompleteAndInOrder(t *testing.T) {
	t.Parallel()
	small := []string{"00000001000000000000000A.00000028.backup.lz4", "00000002.history.lz4", "strange", "zzz"}
	gap := slices.Concat(walNames(1, 0, 1700), walNames(1, 500_000, 3), walNames(1, 900_000, 2600))
	for name, c := range map[string]struct {
		names                []string
		old, ignoresStart    bool
		fewest, mostRequests int
	}{
		"nothing":                 {nil, false, false, 1, 1},
		"one page":                {walNames(1, 5, 1000), false, false, 1, 1},
		"two pages":               {walNames(1, 5, 1001), false, false, 3, 3},
		"many pages":              {walNames(1, 5, 40_000), false, false, 41, 75},
		"old protocol":            {walNames(1, 5, 10_000), true, false, 11, 25},
		"gaps":                    {gap, false, false, 6, 25},
		"timelines":               {slices.Concat(walNames(1, 0, 3000), walNames(2, 2900, 3000), walNames(3, 5800, 10)), false, false, 7, 30},
		"files of other kinds":    {append(walNames(1, 0, 2500), small...), false, false, 4, 20},
		"other names at last":     {append(walNames(1, 0, 900), sequence("x", 3000)...), false, false, 4, 4},
		"no start can be given":   {walNames(1, 5, 10_000), false, true, 12, 14},
		"one number, many things": {sequence("00000001000000000000000A.", 2500), false, false, 3, 3},
		"all numbers there are":   {append(sequence("E", 1500), "FFFFF", "FFFFFF"), false, false, 3, 6},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			slices.Sort(c.names)
			f := newFake(t)
			f.fault = lister(c.names, c.ignoresStart)
			o := f.options()
			o.UseListV1 = c.old
			var got []string
			for o, err := range openTest(t, o).List(t.Context(), "wal_005/") {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, strings.TrimPrefix(o.Key, "wal_005/"))
			}
			if !slices.Equal(got, c.names) {
				t.Errorf("%d of %d names, or not in their order", len(got), len(c.names))
			}
			if n := f.count("List"); n < c.fewest || n > c.mostRequests {
				t.Errorf("%d requests, want %d to %d", n, c.fewest, c.mostRequests)
			}
		})
	}
}

func sequence(prefix string, n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("%s%04d", prefix, i))
	}
	return names
}

func TestALongListingThatFailsIsAnError(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	lists := lister(walNames(1, 0, 20_000), false)
	f.fault = func(f *fake, kind string, n int, w http.ResponseWriter, r *http.Request) bool {
		if n > 5 {
			refuse(w, 403, "AccessDenied")
			return true
		}
		return lists(f, kind, n, w, r)
	}
	n := 0
	var last error
	for _, err := range openTest(t, f.options()).List(t.Context(), "wal_005/") {
		if last != nil {
			t.Fatal("something follows the error")
		}
		if last = err; err == nil {
			n++
		}
	}
	if last == nil || n == 0 || n > 5000 {
		t.Errorf("%d names, %v", n, last)
	}
}

func FuzzExtrapolate(f *testing.F) {
	f.Add("000000010000000000000001", "0000000100000003000000E8.lz4")
	f.Add("FFFE", "FFFF")
	f.Add("", "")
	f.Add("00000002.history", "000000020000000000000001")
	f.Fuzz(func(t *testing.T, one, two string) {
		if one > two {
			one, two = two, one
		}
		n, ok := extrapolate("p/", []storage.Object{{Key: "p/" + one}, {Key: "p/" + two}})
		if !ok {
			return
		}
		for last := n.prefix + two[:n.digits]; ; {
			next := n.next()
			if next == "" {
				return
			}
			if next <= last {
				t.Fatalf("%q after %q", next, last)
			}
			if last = next; n.digits > 5 { // it ends, some day
				return
			}
		}
	})
}
