package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	t.Parallel()
	const passing = `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n"
	cases := []struct {
		name    string
		events  string
		noSkips bool
		ok      bool
		wantErr string
		want    []string
	}{
		{
			name:   "a run of passing tests is counted",
			events: passing + `{"Action":"pass","Package":"p","Elapsed":1.25}` + "\n",
			ok:     true,
			want:   []string{"ok    p (1.2 s)", "1 passed, 0 failed, 0 skipped"},
		},
		{
			name: "a failing test shows its own output only",
			events: `{"Action":"output","Package":"p","Test":"TestA","Output":"quiet\n"}` + "\n" + passing +
				`{"Action":"output","Package":"p","Test":"TestB","Output":"b_test.go:1: wrong\n"}` + "\n" +
				`{"Action":"fail","Package":"p","Test":"TestB"}` + "\n" +
				`{"Action":"fail","Package":"p","Elapsed":1}` + "\n",
			want: []string{"--- FAIL p TestB\nb_test.go:1: wrong\n", "1 passed, 1 failed, 0 skipped"},
		},
		{
			name: "a skipped test is named, and fails the run where that is asked",
			events: passing + `{"Action":"output","Package":"p","Test":"TestB","Output":"no server\n"}` + "\n" +
				`{"Action":"skip","Package":"p","Test":"TestB"}` + "\n",
			noSkips: true,
			wantErr: "1 tests were skipped",
			want:    []string{"skipped:\np TestB\nno server\n"},
		},
		{
			name:   "a skipped test is only named otherwise",
			events: passing + `{"Action":"skip","Package":"p","Test":"TestB"}` + "\n",
			ok:     true,
			want:   []string{"1 passed, 0 failed, 1 skipped"},
		},
		{
			name: "a package that does not build fails the run",
			events: passing + `{"Action":"build-output","ImportPath":"q","Output":"q.go:1: undefined: x\n"}` + "\n" +
				`{"Action":"build-fail","ImportPath":"q"}` + "\n",
			want: []string{"q.go:1: undefined: x"},
		},
		{
			name: "a panic in mid-test shows the test that did not finish",
			events: passing + `{"Action":"output","Package":"p","Test":"TestB","Output":"panic: oh\n"}` + "\n" +
				`{"Action":"fail","Package":"p"}` + "\n",
			want: []string{"--- NOT FINISHED p TestB\npanic: oh\n"},
		},
		{
			name: "figures are summed up by group and name",
			events: passing + `{"Action":"attr","Package":"p","Test":"TestA","Key":"figure","Value":"3 faults: push"}` + "\n" +
				`{"Action":"attr","Package":"p","Test":"TestB","Key":"figure","Value":"4 faults: push"}` + "\n" +
				`{"Action":"attr","Package":"p","Test":"TestB","Key":"figure","Value":"5 faults: fetch"}` + "\n" +
				`{"Action":"attr","Package":"p","Test":"TestB","Key":"figure","Value":"9 kills: push"}` + "\n",
			ok:   true,
			want: []string{"| **faults** | **12** |\n| fetch | 5 |\n| push | 7 |\n| **kills**: push | **9** |\n"},
		},
		{
			name: "the slowest tests are named, the slowest first",
			events: `{"Action":"pass","Package":"p","Test":"TestA","Elapsed":7}` + "\n" + `{"Action":"pass","Package":"p","Test":"TestB/sub","Elapsed":90}` + "\n" +
				`{"Action":"pass","Package":"p","Test":"TestB","Elapsed":100.25}` + "\n" + passing,
			ok:   true,
			want: []string{"\nslowest tests:\n  100.2 s  p TestB\n    7.0 s  p TestA\n\n"},
		},
		{
			name:    "a figure that cannot be read fails the run",
			events:  passing + `{"Action":"attr","Package":"p","Test":"TestA","Key":"figure","Value":"many"}` + "\n",
			wantErr: `cannot read the figure "many"`,
		},
		{name: "a run without tests is no success", events: `{"Action":"skip","Package":"p"}` + "\n", wantErr: "no test ran"},
		{name: "plain text of the go command is kept", events: "flag provided but not defined\n", wantErr: "no test ran",
			want: []string{"flag provided but not defined"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			ok, err := report(strings.NewReader(c.events), &out, c.noSkips)
			if ok != c.ok {
				t.Errorf("ok = %v, want %v", ok, c.ok)
			}
			switch {
			case err == nil && c.wantErr != "":
				t.Errorf("no error, want %q", c.wantErr)
			case err != nil && (c.wantErr == "" || !strings.Contains(err.Error(), c.wantErr)):
				t.Errorf("error %q, want %q", err, c.wantErr)
			}
			for _, want := range c.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("output lacks %q:\n%s", want, out.String())
				}
			}
		})
	}
}
