package config

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/configuration.md instead of comparing it")

func TestDocsAreCurrent(t *testing.T) {
	t.Parallel()
	var current bytes.Buffer
	if err := WriteMarkdown(&current); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("..", "..", "docs", "configuration.md")
	if *update {
		if err := os.WriteFile(file, current.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	committed, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(committed, current.Bytes()) {
		t.Errorf("docs/configuration.md is not current: go test ./internal/config -run TestDocsAreCurrent -update")
	}
}

// drawn are the fields that hold conclusions from settings and not a setting.
var drawn = map[string]bool{
	"Storage.Kind": true, "Storage.Setting": true, "Storage.Bucket": true, "Storage.Path": true,
	"Encryption.Requested": true, "Encryption.By": true, "Encryption.Method": true, "Encryption.Refused": true,
}

func TestEveryFieldIsBoundToOneDefinition(t *testing.T) {
	t.Parallel()
	var c Config
	fields := make(map[any]string) // pointer to name
	var walk func(v reflect.Value, name string)
	walk = func(v reflect.Value, name string) {
		for i := range v.NumField() {
			field, of := v.Field(i), v.Type().Field(i)
			path := strings.TrimPrefix(name+"."+of.Name, ".")
			switch {
			case !of.IsExported() || drawn[path]:
			case field.Kind() == reflect.Struct && field.Type() != reflect.TypeFor[Secret]():
				walk(field, path)
			default:
				fields[field.Addr().Interface()] = path
			}
		}
	}
	walk(reflect.ValueOf(&c).Elem(), "")
	if len(fields) < 75 {
		t.Fatalf("only %d fields found", len(fields))
	}
	for _, d := range Definitions() {
		if d.field == nil {
			continue
		}
		pointer := d.field(&c)
		path, ok := fields[pointer]
		if !ok {
			t.Errorf("%s is bound to no field of Config, or to one that another definition has", d.Name)
		}
		delete(fields, pointer)
		_, isSecret := pointer.(*Secret)
		_, isSecretMap := pointer.(*map[string]Secret)
		if _, isNames := pointer.(*[]string); d.Secret != (isSecret || isSecretMap || isNames) {
			t.Errorf("%s: secret %v, but the field %s is a %T", d.Name, d.Secret, path, pointer)
		}
	}
	for _, path := range fields {
		t.Errorf("the field %s is bound to no definition", path)
	}
}

func TestEveryDefinitionIsComplete(t *testing.T) {
	t.Parallel()
	documentation := new(bytes.Buffer)
	if err := WriteMarkdown(documentation); err != nil {
		t.Fatal(err)
	}
	names, flags, groups := map[string]string{}, map[string]string{}, map[string]bool{}
	last := ""
	for _, d := range Definitions() {
		for _, name := range append([]string{d.Name}, d.Aliases...) {
			if other, ok := names[name]; ok || name != strings.ToUpper(name) || name == "" {
				t.Errorf("%s: the name %q is taken by %q, or not in upper case", d.Name, name, other)
			}
			names[name] = d.Name
		}
		for _, name := range d.Flags() {
			if other, ok := flags[name]; ok || strings.ContainsAny(name, "_ ") {
				t.Errorf("%s: the flag %q is taken by %q, or not made of dashes", d.Name, name, other)
			}
			flags[name] = d.Name
		}
		if d.Group != last && groups[d.Group] || d.Group == "" {
			t.Errorf("%s: the group %q is empty or divided", d.Name, d.Group)
		}
		last = d.Group
		groups[d.Group] = true
		if !strings.HasSuffix(d.Help, ".") || d.Type == "" || (d.Type == Choice) != (len(d.Choices) > 0) {
			t.Errorf("%s: no help, no type, or no choices: %+v", d.Name, d)
		}
		if d.field == nil && d.Effect == "" || strings.HasSuffix(d.Effect, ".") {
			t.Errorf("%s: neither field nor reason, or a reason with full stop", d.Name)
		}
		if strings.HasPrefix(d.Name, "WALDEN_") && d.Name != configPath && d.Since == "" {
			t.Errorf("%s: no release", d.Name)
		}
		if d.Default != "" {
			if _, err := d.parse(d.Default); err != nil {
				t.Errorf("%s: the default %q: %v", d.Name, d.Default, err)
			}
		}
		if d.field != nil && d.Type == Integer && d.bounds == nil {
			t.Errorf("%s: a number without bounds", d.Name)
		}
		if !strings.Contains(documentation.String(), "| `"+d.Name+"` | ") {
			t.Errorf("%s: not in the documentation", d.Name)
		}
	}
}

// WAL-G's names must all be there: a setting that is not known is one that is ignored.
func TestEveryNameOfWALGIsKnown(t *testing.T) {
	t.Parallel()
	list, err := os.ReadFile(filepath.Join("testdata", "walg-settings.txt"))
	if err != nil {
		t.Fatal(err)
	}
	l := newLoader()
	for name := range strings.FieldsSeq(string(list)) {
		if _, ok := l.known[name]; !ok {
			t.Errorf("%s is not known", name)
		}
	}
}

func TestSecretsAreNeverShown(t *testing.T) {
	t.Parallel()
	const text = "hunter2-Zebra"
	var environ []string
	for _, d := range Definitions() {
		if !d.Secret || d.fileOnly {
			continue
		}
		value := text
		if d.Type == Map {
			value = "{X-Header: " + text + "}"
		}
		environ = append(environ, d.Name+"="+value)
	}
	environ = append(environ, "AWS_ACCESS_KEY_ID=id", "S3_SSE=AES256", "WALG_COMPRESSION_METHOD=none")
	file := writeFile(t, t.TempDir(), "w.yaml", "WALG_FAILOVER_STORAGES: {a: {AWS_SECRET_ACCESS_KEY: "+text+"}}\n")
	c := mustLoad(t, Input{Environ: environ, File: file})
	if c.Postgres.Password.Reveal() != text || c.S3.AdditionalHeaders["X-Header"].Reveal() != text {
		t.Fatal("the secrets are not read")
	}
	var log bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	logger.Info("config", "config", c, "password", c.Postgres.Password)
	slog.New(slog.NewTextHandler(&log, nil)).Info("config", "config", c, "password", c.Postgres.Password)
	document, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	shown := log.String() + string(document)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		shown += fmt.Sprintf(verb, c) + fmt.Sprintf(verb, c.Postgres.Password) + fmt.Sprintf(verb, &c.Postgres.Password) +
			fmt.Sprintf(verb, struct{ hidden Secret }{c.Postgres.Password})
	}
	shown += fmt.Sprint(c.Settings(), c.Warnings())
	for _, part := range []string{text, fmt.Sprintf("%x", text), fmt.Sprintf("%X", text)} {
		if i := strings.Index(shown, part); i >= 0 {
			t.Errorf("shown: %s", shown[max(0, i-80):i+len(part)])
		}
	}
	for _, v := range c.Settings() {
		if v.Name == "PGPASSWORD" && v.Value != "***" || v.Name == "WALG_FAILOVER_STORAGES" && v.Value != "***" {
			t.Errorf("%s is shown as %q", v.Name, v.Value)
		}
	}
}

func TestPasswordsInURLsAreRefusedAndNotShown(t *testing.T) {
	t.Parallel()
	for _, entry := range []string{
		"WALG_S3_PREFIX=s3://id:hunter2@bucket/p", "WALG_S3_PREFIX=s3://id:hunt/er2@bucket", "WALG_SSH_PREFIX=ssh://u:hunter2@h/p",
		"AWS_ENDPOINT=https://u:hunter2@h", "AWS_ENDPOINT=u:hunter2@h",
	} {
		c, err := load(Input{Environ: []string{entry}}, noSystemFile)
		if err == nil {
			t.Errorf("%s is accepted", entry)
			continue
		}
		if shown := err.Error() + fmt.Sprintf("%+v", c) + fmt.Sprint(c.Settings()); strings.Contains(shown, "hunt") {
			t.Errorf("%s is shown: %v", entry, err)
		}
	}
}

func TestSecretThatIsNotSet(t *testing.T) {
	t.Parallel()
	s := NewSecret("")
	if s.IsSet() || s.Reveal() != "" || s.String() != "" || fmt.Sprint(s) != "" {
		t.Errorf("%v", s)
	}
}
