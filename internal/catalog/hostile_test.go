package catalog

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
	"gitlab.com/walden-pg/walden/internal/testenv"
)

// endless is a document that goes on: a beginning, then the same text again and again until limit bytes were read.
type endless struct {
	text, again string
	limit       int64
	read        atomic.Int64
}

func (e *endless) Read(b []byte) (int, error) {
	if e.read.Load() > e.limit {
		return 0, io.EOF
	}
	n := 0
	for n < len(b) {
		if e.text == "" {
			e.text = e.again
		}
		m := copy(b[n:], e.text)
		e.text = e.text[m:]
		n += m
	}
	e.read.Add(int64(n))
	return n, nil
}

func TestADocumentWithoutEndIsGivenUpInLittleMemory(t *testing.T) {
	long := strings.Repeat("x", 1<<16)
	for what, e := range map[string]*endless{
		"a name":                   {text: `{"`, again: long},
		"a value":                  {text: `{"Files":{"x":"`, again: long},
		"a value of another key":   {text: `{"other":"`, again: long},
		"a number":                 {text: `{"other":`, again: "1234567890"},
		"nested lists":             {text: `{"other":`, again: "["},
		"nested objects":           {text: `{"other":`, again: `{"a":`},
		"nested lists in a file":   {text: `{"Files":{"x":{"CorruptBlocks":`, again: "["},
		"blanks":                   {text: `{"Files":{`, again: strings.Repeat(" ", 1<<16)},
		"corrupt blocks of a file": {text: `{"Files":{"x":{"CorruptBlocks":[1`, again: ",1234567890"},
	} {
		e.limit = 1 << 30
		s := storagetest.NewMemory()
		put(t, s, sentinelKey(first), sentinelOf("2026-11-20T00:00:00Z"))
		put(t, s, backupDir(first)+partsDir+controlTar, "x")
		c := open(t, s)
		b, err := c.Find(t.Context(), first)
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var l Listing
		err = c.listOther(b, &l, map[string]int64{controlTar: 1}, e, nil)
		runtime.ReadMemStats(&after)
		if err == nil || len(err.Error()) > 1000 {
			t.Errorf("%s: %.200v", what, err)
		}
		if read, taken := e.read.Load(), after.TotalAlloc-before.TotalAlloc; read > 64<<20 || taken > 300<<20 {
			t.Errorf("%s: given up after %d MiB, with %d MiB allocated", what, read>>20, taken>>20)
		}
	}
}

func TestManifestsThatNoWriterWritesAreRefused(t *testing.T) {
	t.Parallel()
	const hash = `"xxh128":"00000000000000000000000000000000"`
	for what, c := range map[string]struct{ content, text string }{
		"null":                  {`null`, "no parts"},
		"an empty object":       {`{}`, "no parts"},
		"a list":                {`[]`, "stands where"},
		"a text":                {`"` + strings.Repeat("x", 5000) + `"`, "stands where"},
		"not a number":          {`{"data_size":NaN}`, "invalid character"},
		"a huge number":         {`{"data_size":1e400}`, "1e400"},
		"a negative size":       {`{"data_size":-1}`, "data_size is -1"},
		"a file twice":          {`{"files":[{"name":"/a","mode":"0600",` + hash + `},{"name":"a","mode":"0600",` + hash + `}]}`, "named twice"},
		"a name that climbs":    {`{"files":[{"name":"/../a","mode":"0600",` + hash + `}]}`, "leads outside"},
		"a name with a zero":    {`{"files":[{"name":"/a\u0000","mode":"0600",` + hash + `}]}`, "leads outside"},
		"a name without end":    {`{"files":[{"name":"` + strings.Repeat("/a", 5000) + `","mode":"0600",` + hash + `}]}`, "more than a path can have"},
		"a link without end":    {`{"files":[{"name":"/a","mode":"0777","link":"` + strings.Repeat("/a", 5000) + `"}]}`, "more than a path can have"},
		"a file's size":         {`{"files":[{"name":"/a","mode":"0600","size":-5,` + hash + `}]}`, "no valid hash and size"},
		"a mode":                {`{"files":[{"name":"/a","mode":"4755000",` + hash + `}]}`, "has mode"},
		"no hash":               {`{"files":[{"name":"/a","mode":"0600"}]}`, "no valid hash and size"},
		"a part somewhere else": {`{"parts":[{"name":"../../../x","size":1,"sha256":"00"}]}`, "is not in"},
		"another backup's":      {`{"backup":"base_000000010000000000000009"}`, "belongs to backup"},
		"a later version":       {`{"version":2}`, "version 2"},
		"a cut":                 {`{"parts":[`, "EOF"},
		"parts as an object":    {`{"parts":{}}`, "stands where"},
		"bytes that are no UTF": {"{\"files\":[{\"name\":\"/\xff\",\"mode\":\"\xff\"}]}", "has mode"},
	} {
		s := storagetest.NewMemory()
		sum := sha256.Sum256([]byte(c.content))
		put(t, s, sentinelKey(first), fmt.Sprintf(`{"LSN":33554472,"Walden":{"ManifestSHA256":%q}}`, hex.EncodeToString(sum[:])))
		put(t, s, backupDir(first)+manifestName, c.content)
		put(t, s, backupDir(first)+partsDir+"part_001.tar", "x")
		catalog := open(t, s)
		b, err := catalog.Find(t.Context(), first)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := catalog.List(t.Context(), b); err == nil || !strings.Contains(err.Error(), c.text) || len(err.Error()) > 1500 {
			t.Errorf("%s: %v does not say %q", what, err, c.text)
		}
	}
}

func TestSentinelsThatNoWriterWritesAreAProblemOfTheirBackup(t *testing.T) {
	t.Parallel()
	megabytes := strings.Repeat("x", 2<<20)
	spaces := strings.Repeat(`"1":{"loc":"/x"},`, 1<<17)
	sentinels := map[string]string{
		"nothing":                  ``,
		"null":                     `null`,
		"an empty object":          `{}`,
		"no LSN":                   `{"PgVersion":150020,"FinishLSN":33554688}`,
		"a null LSN":               `{"LSN":null}`,
		"a negative LSN":           `{"LSN":-1}`,
		"an LSN beyond 64 bits":    `{"LSN":18446744073709551616}`,
		"a fraction":               `{"LSN":1.5}`,
		"not a number":             `{"LSN":NaN}`,
		"a list":                   `[{"LSN":1}]`,
		"text behind the end":      `{"LSN":1}{"LSN":2}`,
		"deep nesting":             `{"LSN":1,"UserData":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`,
		"a long host name":         `{"LSN":1,"Hostname":"` + megabytes + `"}`,
		"long user data":           `{"LSN":1,"UserData":"` + megabytes + `"}`,
		"a list of files and more": `{"LSN":1,"Files":{},"UserData":"` + megabytes + `"}`,
		"a list of files twice":    `{"LSN":1,"Files":{"/x":"` + megabytes + `"},"Files":{}}`,
		"a long number":            `{"LSN":1` + strings.Repeat("0", 1<<19) + `}`,
		"many tablespaces":         `{"LSN":1,"Spec":{"base_prefix":"/",` + spaces + `"tablespaces":[]}}`,
		"a tablespace without OID": `{"LSN":1,"Spec":{"tablespaces":["../.."]}}`,
		"a tablespace of no place": `{"LSN":1,"Spec":{"tablespaces":["1"],"1":{"loc":""}}}`,
		"a time before all time":   `{"LSN":1,"StartTime":"-0001-01-01T00:00:00Z"}`,
	}
	for _, what := range testenv.Some(t, 10, slices.Sorted(maps.Keys(sentinels))) {
		content := sentinels[what]
		s := storagetest.NewMemory()
		put(t, s, sentinelKey(first), content)
		put(t, s, sentinelKey("base_000000010000000000000001"), sentinelOf("2026-11-20T00:00:00Z"))
		c := open(t, s)
		backups, err := c.Backups(t.Context())
		if err != nil || len(backups) != 2 {
			t.Fatalf("%s: %d, %v", what, len(backups), err)
		}
		for _, b := range backups {
			if (b.Problem != nil) != (b.Name == first) || b.Problem != nil && len(b.Problem.Error()) > 500 {
				t.Errorf("%s: %s has the problem %v", what, b.Name, b.Problem)
			}
		}
		if _, err := c.Find(t.Context(), first); err == nil || len(err.Error()) > 700 {
			t.Errorf("%s: found, %v", what, err)
		}
		if latest, err := c.Find(t.Context(), "LATEST"); err != nil || latest.Name == first {
			t.Errorf("%s: LATEST is %s, %v", what, latest.Name, err)
		}
	}
}

// What is recorded of a backup is kept while the list is made; what is recorded of thousands must not add up without limit.
func TestAListOfBackupsHasALimit(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", 1000<<10)
	large := map[string]struct{ sentinel, metadata string }{
		"sentinels": {`{"LSN":1,"UserData":"` + big + `"}`, `{}`},
		"metadata":  {`{"LSN":1}`, `{"user_data":"` + big + `"}`},
	}
	for _, what := range testenv.Some(t, 1, slices.Sorted(maps.Keys(large))) {
		documents := large[what]
		s := storagetest.NewMemory()
		for i := range 80 {
			name := fmt.Sprintf("base_0000000100000000000000%02X", i)
			put(t, s, sentinelKey(name), documents.sentinel)
			put(t, s, backupDir(name)+metadataName, documents.metadata)
		}
		c := open(t, s)
		backups, err := c.Backups(t.Context())
		if err == nil {
			err = c.Details(t.Context(), backups)
		}
		if err == nil || !strings.Contains(err.Error(), "takes more than 64 MiB") {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := c.Find(t.Context(), "base_000000010000000000000007"); err != nil {
			t.Errorf("%s: one of them alone: %v", what, err)
		}
	}
}
