package pgdata

import "testing"

func TestNamesOfRelationFiles(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]RelationFile{
		"base/5/16384":                             {1663, 5, 16384, "", 0},
		"base/5/16384.1":                           {1663, 5, 16384, "", 1},
		"base/5/16384_fsm":                         {1663, 5, 16384, "fsm", 0},
		"base/5/16384_vm.12":                       {1663, 5, 16384, "vm", 12},
		"base/4294967295/4294967295_init":          {1663, 4294967295, 4294967295, "init", 0},
		"global/1262":                              {1664, 0, 1262, "", 0},
		"global/1262_fsm":                          {1664, 0, 1262, "fsm", 0},
		"pg_tblspc/16400/PG_15_202209061/5/16401":  {16400, 5, 16401, "", 0},
		"pg_tblspc/16400/PG_15_202209061/5/9_vm.3": {16400, 5, 9, "vm", 3},
	} {
		if got, ok := ParseRelationFile(name); !ok || got != want || !IsDataFile(name) {
			t.Errorf("%s: got %+v, %t; want %+v", name, got, ok, want)
		}
	}
	for _, name := range []string{
		"", "base", "base/5", "base/5/", "base//16384", "/base/5/16384", "16384", "5/16384",
		"base/5/PG_VERSION", "base/5/pg_filenode.map", "base/5/pg_internal.init", "base/5/t3_16384",
		"base/5/0", "base/5/016384", "base/5/16384.0", "base/5/16384.01", "base/5/16384.", "base/5/16384_", "base/5/16384_x",
		"base/5/16384.1_fsm", "base/5/16384_fsm_vm", "base/5/16384.1.2", "base/5/4294967296", "base/5/16384 ", "base/5/+1",
		"base/x/16384", "base/05/16384", "base/5/6/16384", "base/pgsql_tmp/16384",
		"global/pg_control", "global/pg_filenode.map", "global/5/16384", "global",
		"pg_xact/0000", "pg_multixact/offsets/0000", "pg_commit_ts/0000", "pg_stat/5/16384", "mybase/5/16384",
		"pg_tblspc/16400", "pg_tblspc/16400/16401", "pg_tblspc/16400/5/16401", "pg_tblspc/16400/PG_15_202209061/16401",
		"pg_tblspc/x/PG_15_202209061/5/16401", "pg_tblspc/16400/PG_15_202209061/x/5/16401",
	} {
		if got, ok := ParseRelationFile(name); ok || IsDataFile(name) {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

func TestTemporaryRelationsAreKnownByTheirNames(t *testing.T) {
	t.Parallel()
	for base, want := range map[string]bool{
		"t3_16400": true, "t12_16400_fsm": true, "t3_16400.1": true, "t3_16400_vm.2": true, "t0_0": true,
		"t3": false, "t_16400": false, "t3_": false, "tx_16400": false, "t3_16400_x": false, "t3_16400.": false,
		"t3_16400.x": false, "16400": false, "T3_16400": false, "t3_16400_fsm_vm": false, "": false,
	} {
		if got := isTemporaryRelation(base); got != want {
			t.Errorf("%q: %t", base, got)
		}
	}
}

func FuzzParseRelationFile(f *testing.F) {
	for _, s := range []string{"base/5/16384_fsm.1", "global/1262", "pg_tblspc/16400/PG_15_202209061/5/16401", "base/5/t3_1", "//"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		r, ok := ParseRelationFile(name)
		if ok && (r.Relation == 0 || r.Tablespace == 0 || (r.Database == 0) != (r.Tablespace == GlobalTablespace && name[0] == 'g')) {
			t.Errorf("%q: %+v", name, r)
		}
		if _, base, _ := cutLast(name); ok && isTemporaryRelation(base) {
			t.Errorf("%q is temporary and not", name)
		}
	})
}
