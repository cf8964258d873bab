package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFileFormats(t *testing.T) {
	t.Parallel()
	for base, content := range map[string]string{
		"a.yaml":   "PGHOST: db1\npgport: 5433\nWALG_VERIFY_PAGE_CHECKSUMS: true\nWALG_SENTINEL_USER_DATA: {Label: x}\nPGUSER: ~\n",
		"a.yml":    "PGHOST: db1\nPGPORT: \"5433\"\nWALG_VERIFY_PAGE_CHECKSUMS: \"t\"\nWALG_SENTINEL_USER_DATA: '{\"Label\":\"x\"}'\n",
		"a.json":   `{"PGHOST": "db1", "PGPORT": 5433, "walg_verify_page_checksums": true, "WALG_SENTINEL_USER_DATA": {"Label": "x"}}`,
		"a.toml":   "PGHOST = \"db1\"\nPGPORT = 5433\nWALG_VERIFY_PAGE_CHECKSUMS = true\nWALG_SENTINEL_USER_DATA = {Label = \"x\"}\n",
		"a.env":    "# comment\nexport PGHOST=db1\nPGPORT=5433\nWALG_VERIFY_PAGE_CHECKSUMS=1\nWALG_SENTINEL_USER_DATA='{\"Label\":\"x\"}'\n",
		"b.env":    "PGHOST=db1\nPGPORT=5433\nWALG_VERIFY_PAGE_CHECKSUMS=1\nWALG_SENTINEL_USER_DATA='{\"Label\":\"x\"}'\nS3_REQUEST_ADDITIONAL_HEADERS='{\"a\": \"b\"}'",
		"a.dotenv": "PGHOST=\"db1\"\nPGPORT=5433\nWALG_VERIFY_PAGE_CHECKSUMS=TRUE\nWALG_SENTINEL_USER_DATA='{\"Label\":\"x\"}'",
	} {
		t.Run(base, func(t *testing.T) {
			t.Parallel()
			c := mustLoad(t, Input{File: writeFile(t, t.TempDir(), base, content)})
			if c.Postgres.Host != "db1" || c.Postgres.Port != 5433 || !c.Backup.VerifyPages || c.Backup.UserData != `{"Label":"x"}` {
				t.Errorf("%+v %+v", c.Postgres, c.Backup)
			}
			if len(c.Warnings()) > 0 {
				t.Errorf("warnings %q", c.Warnings())
			}
		})
	}
}

func TestFirstFileFoundIsRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	system := writeFile(t, dir, "system.yaml", "PGHOST: system\n")
	named := writeFile(t, dir, "named.yaml", "PGHOST: named\n")
	walden := writeFile(t, dir, "walden.yaml", "PGHOST: walden\n")
	walg := writeFile(t, dir, "walg.json", `{"PGHOST": "walg"}`)
	in := Input{Home: home}

	expect := func(in Input, file, source string) {
		t.Helper()
		c, err := load(in, system)
		if err != nil {
			t.Fatal(err)
		}
		if v := setting(t, c, configPath); c.File != file || v.Value != file || v.Source != source {
			t.Errorf("read %q, shown %q from %q; want %q from %q", c.File, v.Value, v.Source, file, source)
		}
	}
	expect(in, system, "search")
	for _, base := range []string{".walg.yaml", ".walg.json", ".walden.toml", ".walden.yaml"} { // each before the ones before it
		content := map[string]string{".json": "{}"}[filepath.Ext(base)]
		expect(in, writeFile(t, home, base, content), "search")
	}
	in.Environ = []string{"WALG_CONFIG_PATH=" + walg}
	expect(in, walg, "environment WALG_CONFIG_PATH")
	in.Environ = append(in.Environ, "WALDEN_CONFIG_PATH="+walden)
	expect(in, walden, "environment WALDEN_CONFIG_PATH")
	in.File = named
	expect(in, named, "flag --walden-config-path")
}

func TestFileThatIsNamedMustExist(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "missing.yaml")
	for _, in := range []Input{
		{File: missing}, {Environ: []string{"WALG_CONFIG_PATH=" + missing}}, {Environ: []string{"WALDEN_CONFIG_PATH=" + missing}},
	} {
		_, err := load(in, noSystemFile)
		if !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%+v: %v", in, err)
		}
		var hinter interface{ Hint() string }
		if !errors.As(err, &hinter) || !strings.Contains(hinter.Hint(), "must exist") {
			t.Errorf("no hint")
		}
		if want := "cannot read configuration file " + missing + ": no such file or directory"; err.Error() != want {
			t.Errorf("got %v", err)
		}
	}
}

func TestFileFaultsNameFileAndLineAndShowNoContents(t *testing.T) {
	t.Parallel()
	const secret = "TopSecret`'\"Value"
	for _, test := range []struct{ title, base, content, want string }{
		{"yaml syntax", "a.yaml", "PGHOST: db1\nPGPASSWORD: " + secret + ": x\n", "line 2: "},
		{"yaml that is no map", "a.yaml", "\n\n" + secret + "\n", "line 3: "},
		{"yaml with two equal names", "a.yaml", "PGHOST: a\nPGHOST: b\n", "line 2: "},
		{"yaml with a control character", "a.yaml", "PGHOST: a\nPGUSER: \x01b\n", "line 2: "},
		{"json syntax", "a.json", "{\n\"PGHOST\": \"a\"\n\"PGPASSWORD\": \"TopSecretValue\"}", "line 3: "},
		{"json that is no object", "a.json", "[\"TopSecretValue\"]", "line 1: expected an object"},
		{"toml syntax", "a.toml", "PGHOST = \"a\"\nPGPASSWORD = " + secret + "\n", "line 2: "},
		{"toml with two equal names", "a.toml", "TopSecretValue = 1\nTopSecretValue = 2\n", "is already defined"},
		{"toml with two equal tables", "a.toml", "[TopSecretValue]\n[TopSecretValue]\n", "already exists"},
		{"env without value", "a.env", "PGHOST=a\n\n" + secret + "\n", "line 3: expected NAME=value"},
		{"env with an open quote", "a.env", "PGHOST=a\nPGPASSWORD=\"TopSecretValue\n\nPGUSER=b\n", "line 2: expected NAME=value"},
		{"env after a long value", "a.env", "PGHOST=\"a\nb\nc\"\nTopSecretValue\n", "line 4: expected NAME=value"},
		{"format that older tools read", "a.ini", "PGPASSWORD=" + secret, `the format "ini" is not supported`},
		{"no format", "a", "", `the format "" is not supported`},
		{"too large", "a.yaml", strings.Repeat("# TopSecretValue\n", 1<<16), "it is larger than 1MiB"},
		{"password that is a number", "a.yaml", "PGPASSWORD: 0755\n", "put the value in quotes"},
		{"name that is a number with fraction", "a.yaml", "PGUSER: 1.5\n", "put the value in quotes"},
		{"name that is a truth value", "a.toml", "PGUSER = true\n", "put the value in quotes"},
		{"list", "a.yaml", "WALG_UPLOAD_CONCURRENCY: [1]\n", "expected a whole number"},
		{"same name twice in other case", "a.json", `{"PGHOST": "a", "pghost": "b"}`, "stands there more than once"},
		{"list of storages", "a.yaml", "WALG_FAILOVER_STORAGES: [TopSecretValue]\n", "expected a map"},
	} {
		t.Run(test.title, func(t *testing.T) {
			t.Parallel()
			file := writeFile(t, t.TempDir(), test.base, test.content)
			_, err := load(Input{File: file}, noSystemFile)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), file) {
				t.Fatalf("got  %v\nwant %s", err, test.want)
			}
			for _, part := range []string{"TopSecret", "Value", "0755", "493"} {
				if strings.Contains(strings.NewReplacer("NAME=value", "", file, "").Replace(err.Error()), part) {
					t.Errorf("contents shown: %v", err)
				}
			}
		})
	}
}

func TestFileInTheHomeDirectoryIsNeverPassedOver(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	writeFile(t, home, ".walg.properties", "WALG_S3_PREFIX=s3://b")
	if _, err := load(Input{Home: home}, noSystemFile); err == nil || !strings.Contains(err.Error(), ".walg.properties") {
		t.Errorf("got %v", err)
	}
}

// FuzzFile feeds foreign configuration files through everything that reads them.
func FuzzFile(f *testing.F) {
	f.Add("yaml", []byte("WALG_S3_PREFIX: s3://b/p\nWALG_FAILOVER_STORAGES:\n  a: {x: y}\nS3_REQUEST_ADDITIONAL_HEADERS: [{a: b}]\n"))
	f.Add("yaml", []byte("a: &a [*a]\n? {x: y}\n: z\nPGPORT: 2024-01-01\n"))
	f.Add("json", []byte(`{"PGPORT": 1e400, "WALG_SENTINEL_USER_DATA": [1, {"a": null}]}`))
	f.Add("toml", []byte("PGPORT = 1\n[WALG_FAILOVER_STORAGES.a]\nx = 07:32:00\n"))
	f.Add("env", []byte("A='x\ny'\nPGPASSWORD=\"a\\\"$B\"\nC"))
	f.Fuzz(func(t *testing.T, format string, data []byte) {
		const file = "/dir/file"
		content, err := decode(file+"."+format, data)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "cannot read configuration file "+file) {
				t.Errorf("error without the file's name: %v", err)
			}
			return
		}
		definitions := Definitions()
		for key, value := range content {
			for _, d := range definitions {
				if d.Name != strings.ToUpper(key) {
					continue
				}
				if text, err := fileText(d, value); err == nil && text != "" && d.field != nil {
					if parsed, err := d.parse(text); err == nil {
						d.assign(new(Config), parsed)
					}
				}
			}
		}
	})
}

// FuzzValue feeds foreign values through every type of setting.
func FuzzValue(f *testing.F) {
	for _, value := range []string{"", "1", "-9223372036854775808k", "s3://u:p@h/x", "{a: b}", "- a\n- b", "1h", "h:1:2", "://", "auto"} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		for _, d := range Definitions() {
			if d.field == nil {
				continue
			}
			if parsed, err := d.parse(value); err == nil {
				d.assign(new(Config), parsed)
			}
		}
	})
}
