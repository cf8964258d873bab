package catalog

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"gitlab.com/walden-pg/walden/internal/storage/storagetest"
)

const (
	waleName1 = "base_000000010000000000000009_00000040"
	waleText  = `{"wal_segment_backup_stop": "000000010000000000000009", "wal_segment_offset_backup_stop": "00000256",
 "expanded_size_bytes": 26636803,
 "spec": {"base_prefix": "/var/lib/postgresql/14/main/", "tablespaces": ["16384"],
          "16384": {"loc": "/srv/ts_cold/", "link": "pg_tblspc/16384"}}}`
)

func TestSentinelsOfWALEAreUnderstood(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		text, problem string
		want          WALE
		spaces        int
	}{
		"usual":                     {text: waleText, want: WALE{StopOffset: "00000256", ExpandedSize: 26636803}, spaces: 1},
		"before tablespaces":        {text: `{"wal_segment_backup_stop":"000000010000000000000009","wal_segment_offset_backup_stop":"00000256","expanded_size_bytes":7}`, want: WALE{StopOffset: "00000256", ExpandedSize: 7}},
		"before sizes":              {text: `{"wal_segment_backup_stop":"000000010000000000000009","wal_segment_offset_backup_stop":"00000256"}`, want: WALE{StopOffset: "00000256"}},
		"with nulls":                {text: `{"wal_segment_backup_stop":"000000010000000000000009","wal_segment_offset_backup_stop":null,"expanded_size_bytes":null,"spec":null}`},
		"no tablespaces":            {text: `{"wal_segment_backup_stop":"000000010000000000000009","spec":{"base_prefix":"/d/","tablespaces":[]}}`},
		"of a stopped server":       {text: `{"wal_segment_backup_stop":"000000010000000000000009","wal_segment_offset_backup_stop":"00000040"}`, want: WALE{StopOffset: "00000040"}},
		"unknown keys":              {text: `{"wal_segment_backup_stop":"000000010000000000000009","more":{"a":[1,2]}}`},
		"empty":                     {text: `{}`, problem: "no LSN"},
		"null":                      {text: `null`, problem: "no LSN"},
		"without its end":           {text: `{"expanded_size_bytes":7}`, problem: "not the segment in which it ends"},
		"an end that is no segment": {text: `{"wal_segment_backup_stop":"../../etc/passwd"}`, problem: "not the segment in which it ends"},
		"an end of another kind":    {text: `{"wal_segment_backup_stop":9}`, problem: "cannot unmarshal number"},
		"a strange offset":          {text: `{"wal_segment_backup_stop":"000000010000000000000009","wal_segment_offset_backup_stop":"` + strings.Repeat("9", 1000) + `"}`, problem: "not the offset"},
		"a negative size":           {text: `{"wal_segment_backup_stop":"000000010000000000000009","expanded_size_bytes":-1}`, problem: "its size is -1"},
		"a size beyond all":         {text: `{"wal_segment_backup_stop":"000000010000000000000009","expanded_size_bytes":1e30}`, problem: "cannot unmarshal number"},
		"a tablespace without OID":  {text: `{"wal_segment_backup_stop":"000000010000000000000009","spec":{"tablespaces":["../x"],"../x":{"loc":"/","link":"y"}}}`, problem: "is not an OID"},
		"a tablespace nowhere":      {text: `{"wal_segment_backup_stop":"000000010000000000000009","spec":{"tablespaces":["5"]}}`, problem: "has no entry"},
		"text behind it":            {text: waleText + waleText, problem: "behind its end"},
	} {
		s := storagetest.NewMemory()
		put(t, s, sentinelKey(waleName1), tt.text)
		put(t, s, backupDir(waleName1)+versionName, "PostgreSQL 14.23 on x86_64-pc-linux-gnu")
		backups, err := open(t, s).Backups(t.Context())
		if err != nil || len(backups) != 1 {
			t.Fatalf("%s: %v, %v", name, backups, err)
		}
		b, err := open(t, s).Find(t.Context(), waleName1)
		if tt.problem != "" {
			if p := backups[0].Problem; p == nil || !strings.Contains(p.Error(), tt.problem) || err == nil {
				t.Errorf("%s: listed with %v, found with %v", name, p, err)
			}
			continue
		}
		if backups[0].Problem != nil || err != nil {
			t.Errorf("%s: listed with %v, found with %v", name, backups[0].Problem, err)
			continue
		}
		tt.want.StartSegment, tt.want.StartOffset, tt.want.StopSegment = "000000010000000000000009", "00000040", "000000010000000000000009"
		if b.WALE == nil || *b.WALE != tt.want || b.WALE.Offline() != (name == "of a stopped server") {
			t.Errorf("%s: %+v, want %+v", name, b.WALE, tt.want)
		}
		if b.Tablespaces != nil && len(b.Tablespaces.Tablespaces) != tt.spaces || b.Tablespaces == nil && tt.spaces > 0 {
			t.Errorf("%s: %+v", name, b.Tablespaces)
		}
		if b.PgVersion != 140023 || b.WALFile() != "000000010000000000000009" || b.UncompressedSize != tt.want.ExpandedSize || b.StartLSN != 0 {
			t.Errorf("%s: %+v", name, b)
		}
	}
}

func TestOnlyWALENamesAndKeysMakeABackupWALEs(t *testing.T) {
	t.Parallel()
	const walg = "base_00000001000000000000000B"
	s := storagetest.NewMemory()
	put(t, s, sentinelKey(walg), `{"LSN":1,"wal_segment_backup_stop":"000000010000000000000009"}`) // with an object of WAL-E's only keys
	put(t, s, sentinelKey(waleName1), `{"LSN":1}`)
	put(t, s, backupDir(waleName1)+partsDir+"part_001.tar.lz4", "x")
	c := open(t, s)
	for _, name := range []string{walg, waleName1} {
		b, err := c.Find(t.Context(), name)
		if err != nil || b.WALE != nil {
			t.Fatalf("%s: %+v, %v", name, b.WALE, err)
		}
	}
	b, err := c.Find(t.Context(), waleName1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.List(t.Context(), b); err == nil || !strings.Contains(err.Error(), "pg_control") {
		t.Errorf("a backup of WAL-G without its control file: %v", err)
	}
}

func TestPartitionsOfWALEAreCountedFromZeroWithoutGaps(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		objects []string
		parts   string
		err     string
	}{
		"one":                {[]string{"part_00000000.tar.lzo"}, "part_00000000.tar.lzo", ""},
		"in order of number": {[]string{"part_10.tar.lzo", "part_9.tar.lzo", "part_8.tar.lzo", "part_7.tar.lzo", "part_6.tar.lzo", "part_5.tar.lzo", "part_4.tar.lzo", "part_3.tar.lzo", "part_2.tar.lzo", "part_1.tar.lzo", "part_0.tar.lzo"}, "part_0.tar.lzo part_1.tar.lzo part_2.tar.lzo part_3.tar.lzo part_4.tar.lzo part_5.tar.lzo part_6.tar.lzo part_7.tar.lzo part_8.tar.lzo part_9.tar.lzo part_10.tar.lzo", ""},
		"compressed anew":    {[]string{"part_00000000.tar.zst", "part_00000001.tar"}, "part_00000000.tar.zst part_00000001.tar", ""},
		"other objects":      {[]string{"part_00000000.tar.lzo", "part_1", "part_x.tar.lzo", "part_99999999999999999999.tar.lzo", "pg_control.tar.lzo", "notes"}, "part_00000000.tar.lzo", ""},
		"none":               {[]string{"notes"}, "", "has no parts"},
		"without the first":  {[]string{"part_00000001.tar.lzo"}, "", "partition 0 is missing, although there is part_00000001.tar.lzo"},
		"with a gap":         {[]string{"part_00000000.tar.lzo", "part_00000002.tar.lzo"}, "", "partition 1 is missing, although there is part_00000002.tar.lzo"},
		"with a large gap":   {[]string{"part_00000000.tar.lzo", "part_999999999999999999.tar.lzo"}, "", "partition 1 is missing"},
		"a number twice":     {[]string{"part_0.tar.lzo", "part_00.tar.lzo"}, "", "are both its partition 0"},
	} {
		s := storagetest.NewMemory()
		put(t, s, sentinelKey(waleName1), waleText)
		for _, o := range tt.objects {
			put(t, s, backupDir(waleName1)+partsDir+o, "1234567")
		}
		c := open(t, s)
		b, err := c.Find(t.Context(), waleName1)
		if err != nil {
			t.Fatal(err)
		}
		l, err := c.List(t.Context(), b)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		var got []string
		for _, p := range l.Parts {
			got = append(got, p.Name)
		}
		if err != nil || strings.Join(got, " ") != tt.parts || l.Parts[0].Size != 7 || l.Special != nil || l.Files != nil || l.DataSize != 26636803 {
			t.Errorf("%s: %+v, %v", name, l, err)
		}
	}
}

func TestServerVersionsAreReadFromTheirText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		"PostgreSQL 15.20 (Debian 15.20-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc (Debian 12.2.0-14+deb12u1) 12.2.0, 64-bit": 150020,
		"PostgreSQL 14.23 on x86_64-pc-linux-gnu, compiled by gcc (Ubuntu 7.5.0-3ubuntu1~18.04) 7.5.0, 64-bit":                        140023,
		"PostgreSQL 9.6.24 on x86_64-pc-linux-gnu": 90624,
		"PostgreSQL 8.4.22 on i486":                80422,
		"PostgreSQL 15beta2 on x86_64":             150000,
		"PostgreSQL 10":                            100000,
		"":                                         0,
		"<html>":                                   0,
		"EnterpriseDB 9.2.1":                       0,
	} {
		if got := parseVersion(text); got != want {
			t.Errorf("%q is %d, want %d", text, got, want)
		}
	}
}

// Of WAL-E's backups only the time in the storage is known, of others when they were started: together they are one order.
func TestLATESTOfAMixedArchiveIsTheNewestByWhatIsKnown(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	c := open(t, s)
	latest := func(want string) {
		t.Helper()
		if b, err := c.Find(t.Context(), "LATEST"); err != nil || b.Name != want {
			t.Errorf("LATEST is %q, %v; want %q", b.Name, err, want)
		}
	}
	// The greater name was written first: as WAL-E does, the time decides.
	const older = "base_00000001000000000000000F_00000040"
	put(t, s, sentinelKey(older), strings.ReplaceAll(waleText, "000000010000000000000009", "00000001000000000000000F"))
	latest(older)
	put(t, s, sentinelKey(waleName1), waleText)
	latest(waleName1)
	const next = "base_000000010000000000000010"
	put(t, s, sentinelKey(next), fmt.Sprintf(`{"LSN":1,"Version":2,"StartTime":%q}`, time.Now().Add(time.Hour).UTC().Format(time.RFC3339)))
	latest(next)
}

func TestTheClusterOfAnArchiveOfWALEIsKnownFromItsWAL(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	put(t, s, sentinelKey(waleName1), waleText)
	put(t, s, walDir+"000000010000000000000009.lzo", "not an lzop file")
	if err := open(t, s).Admit(t.Context(), Cluster{SystemIdentifier: system}); !errors.Is(err, ErrDamaged) {
		t.Errorf("with a damaged segment: %v", err)
	}
}

func TestAVersionThatCannotBeReadIsNotKnown(t *testing.T) {
	t.Parallel()
	s := storagetest.NewMemory()
	put(t, s, sentinelKey(waleName1), waleText)
	c := open(t, s)
	for what, content := range map[string]string{"absent": "", "huge": "PostgreSQL 14.1 " + strings.Repeat("x", maxDocument), "binary": "\x00\xff"} {
		if content != "" {
			put(t, s, backupDir(waleName1)+versionName, content)
		}
		backups, err := c.Backups(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Details(t.Context(), backups); err != nil || backups[0].PgVersion != 0 || backups[0].Problem != nil {
			t.Errorf("%s: %d, %v, %v", what, backups[0].PgVersion, backups[0].Problem, err)
		}
	}
	refusing := storagetest.NewFault(s, storagetest.Rule{Kind: storagetest.Before, Err: fs.ErrPermission, Match: func(c storagetest.Call) bool {
		return strings.HasSuffix(c.Key, versionName)
	}})
	if _, err := open(t, refusing).Find(t.Context(), waleName1); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a storage that does not answer: %v", err)
	}
}
