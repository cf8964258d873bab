// Package internal holds tests of the tree as a whole: which package may import which (arch_test.go) and the rules of the
// house that no compiler knows (house_test.go). docs/architecture.md draws the same picture for people.
package internal

import (
	"cmp"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "gitlab.com/walden-pg/walden"

// boundary is what one package may import of this module outside its tests, and why not more.
type boundary struct {
	pkg     string   // folder below the module's root; a trailing "/*" stands for each folder below
	imports []string // likewise; "internal/*" and "pkg/*" are everything
	reason  string
}

// boundaries is the picture of docs/architecture.md as a table. The first row that fits a package counts.
var boundaries = []boundary{
	{"cmd/walden", []string{"internal/cli"}, "main is one call, so that tests can run the whole program as a function"},
	{"internal/cli", []string{"internal/*", "pkg/*"}, "the composition root: it alone knows every concrete type"},
	{
		"internal/config", []string{"internal/codec", "internal/crypt", "internal/storage", "internal/storage/*"},
		"settings fill the Options of storages and codecs; jobs get theirs from cli",
	},

	{
		"internal/backup", []string{"internal/hint", "internal/catalog", "internal/directio", "internal/changes", "internal/pace", "internal/pgdata", "internal/postgres", "internal/wal", "pkg/increment"},
		"jobs see meaning, never keys, codecs or storages, and know nothing of each other",
	},
	{
		"internal/restore", []string{"internal/hint", "internal/catalog", "internal/directio", "internal/pace", "internal/pgdata", "internal/wal", "pkg/increment"},
		"a restore needs no running server, and jobs never see keys, codecs or storages",
	},
	{
		"internal/archive", []string{"internal/hint", "internal/catalog", "internal/changes", "internal/pgdata", "internal/wal"},
		"the archiver's commands must work while no connection can be had",
	},
	{"internal/daemon/wire", nil, "the client uses it before anything else is initialised"},
	{"internal/daemon/client", []string{"internal/daemon/wire"}, "it runs before anything else is initialised, and must not have that initialised first"},
	{
		"internal/daemon", []string{"internal/daemon/wire", "internal/hint"},
		"it speaks with clients; what they ask for is done by jobs, which cli puts behind it",
	},
	{
		"internal/retention", []string{"internal/hint", "internal/catalog", "internal/wal"},
		"what may go is decided from the catalog alone",
	},
	{
		"internal/transfer", []string{"internal/hint", "internal/catalog", "internal/repo", "internal/storage"},
		"what is copied as it is stored is objects besides their meaning",
	},
	{
		"internal/verify", []string{"internal/catalog", "internal/changes", "internal/pgdata", "internal/restore", "internal/wal"},
		"verify is the restore code with another sink, hence the one arrow between jobs",
	},

	{
		"internal/catalog", []string{"internal/hint", "internal/codec", "internal/crypt", "internal/repo", "internal/storage", "internal/wal"},
		"names and documents rest on sealed objects; codec, crypt and storage are there for the errors that jobs get under catalog's names",
	},
	{
		"internal/repo", []string{"internal/codec", "internal/crypt", "internal/storage"},
		"repo knows bytes, not backups",
	},

	{"internal/storage/storagetest", []string{"internal/storage"}, "the suite asks what the contract says, of any backend"},
	{"internal/storage/fs", []string{"internal/storage", "internal/directio"}, "a backend, which writes files as a restore does, and reads them as a backup does"},
	{"internal/storage/*", []string{"internal/storage"}, "a backend knows nothing of PostgreSQL, of names or of other backends"},
	{"internal/storage", []string{"internal/pace"}, "the contract stands below everything that uses it"},
	{"internal/codec", nil, "streams in, streams out"},
	{"internal/crypt", []string{"internal/hint", "pkg/secretstream"}, "streams in, streams out; a key that cannot be used needs advice"},
	{"internal/crypt/*", []string{"internal/crypt", "internal/hint"}, "a key service knows keys, not streams"},

	{"internal/changes", []string{"internal/wal", "pkg/increment"}, "which blocks changed: pure, filled by jobs from what they read"},
	{"internal/postgres", []string{"internal/wal"}, "the running server; positions and names come from wal"},
	{"internal/pgdata", []string{"internal/wal"}, "the cluster at rest; positions and names come from wal"},
	{"internal/directio", nil, "streams into files and from them, whatever they are"},
	{"internal/pace", nil, "bytes per second, whatever they are"},
	{"internal/hint", nil, "advice travels with errors of every level"},
	{"internal/wal", nil, "pure grammar of positions and names: no I/O, no state"},

	{"internal/testenv", nil, "starts foreign programs for tests; walden itself is what they test"},
	{"internal", nil, "only tests"},
	{"pkg/*", nil, "others may import these, so they stand alone"},
	{"scripts/*", nil, "tools of the workshop, built without walden"},
	{"test/*", nil, "programs for tests, in modules of their own so that walden's go.mod does not name what they need"},
}

// keepers names the only packages that may import a foreign module, so that replacing it touches one folder.
var keepers = []struct{ module, pkg string }{
	{"github.com/aws/aws-sdk-go-v2/service/kms", "internal/crypt/awskms"},
	{"github.com/ProtonMail/go-crypto", "internal/crypt"},
	{"github.com/minio/sio", "internal/crypt"},
	{"github.com/spf13/viper", "internal/config"},
	{"github.com/spf13/cobra", "internal/cli"},
	{"github.com/jackc/pgx", "internal/postgres"},
	{"github.com/aws/aws-sdk-go-v2/service/s3", "internal/storage/s3"},
	{"github.com/aws/aws-sdk-go-v2/service/sts", "internal/storage/s3"},
	{"github.com/aws/aws-sdk-go-v2/config", "internal/storage/s3"},
	{"github.com/aws/aws-sdk-go-v2/credentials", "internal/storage/s3"},
	{"cloud.google.com/", "internal/storage/gcs"},
	{"google.golang.org/", "internal/storage/gcs"},
	{"github.com/googleapis/", "internal/storage/gcs"},
	{"github.com/pierrec/lz4", "internal/codec"},
	{"github.com/klauspost/compress", "internal/codec"},
	{"github.com/ulikunitz/xz", "internal/codec"},
	{"github.com/andybalholm/brotli", "internal/codec"},
	{"github.com/anchore/go-lzo", "internal/codec"},
	{"github.com/schollz/progressbar", "internal/cli"},
}

// onlyInTests may be imported from _test.go files only, and from each other.
var onlyInTests = []string{"internal/testenv", "internal/storage/storagetest"}

func TestImportsPointDownOnly(t *testing.T) {
	t.Parallel()
	for _, f := range goFiles(t) {
		if f.test {
			continue
		}
		i := slices.IndexFunc(boundaries, func(b boundary) bool { return covers(b.pkg, f.pkg) })
		if i < 0 {
			t.Errorf("%s: package %s is not in the table of boundaries: give it a row with its reason, and a place in docs/architecture.md",
				f.path, f.pkg)
			continue
		}
		row := boundaries[i]
		for _, imported := range f.ownImports() {
			if slices.Contains(onlyInTests, imported) && !slices.Contains(onlyInTests, f.pkg) {
				t.Errorf("%s: imports %s, which is for tests only", f.path, imported)
				continue
			}
			if !slices.ContainsFunc(row.imports, func(allowed string) bool { return covers(allowed, imported) }) {
				t.Errorf("%s: %s must not import %s: %s", f.path, f.pkg, imported, row.reason)
			}
		}
	}
}

// Each package that the client imports is initialised before it, and so is what that one imports.
func TestTheClientImportsNextToNothing(t *testing.T) {
	t.Parallel()
	for _, f := range goFiles(t) {
		if f.test || f.pkg != "internal/daemon/client" && f.pkg != "internal/daemon/wire" {
			continue
		}
		for _, spec := range f.ast.Imports {
			if imported := importPath(spec); !slices.Contains([]string{"errors", "syscall", "time", module + "/internal/daemon/wire"}, imported) {
				t.Errorf("%s: imports %s, which takes time to initialise before the client can begin", f.path, imported)
			}
		}
	}
}

func TestConfigIsImportedByCLIOnly(t *testing.T) {
	t.Parallel()
	for _, f := range goFiles(t) {
		if f.test { // tests of the whole program look up which settings there are
			continue
		}
		if f.pkg != "internal/cli" && f.pkg != "internal/config" && slices.Contains(f.ownImports(), "internal/config") {
			t.Errorf("%s: imports internal/config: a package below cli takes its own Options, so that its signature says what it needs", f.path)
		}
	}
}

func TestForeignModulesHaveOneKeeper(t *testing.T) {
	t.Parallel()
	for _, f := range goFiles(t) {
		if f.test || slices.Contains(onlyInTests, f.pkg) {
			continue
		}
		for _, spec := range f.ast.Imports {
			imported := importPath(spec)
			for _, k := range keepers {
				if strings.HasPrefix(imported, k.module) && f.pkg != k.pkg {
					t.Errorf("%s: imports %s, which belongs to %s alone", f.path, imported, k.pkg)
				}
			}
		}
	}
}

// A boundary that matches too much would let everything through unseen.
func TestBoundaryPatterns(t *testing.T) {
	t.Parallel()
	cases := []struct {
		pattern, pkg string
		want         bool
	}{
		{"internal/wal", "internal/wal", true},
		{"internal/wal", "internal/walker", false},
		{"internal/storage", "internal/storage/s3", false},
		{"internal/storage/*", "internal/storage/s3", true},
		{"internal/storage/*", "internal/storage", false},
		{"pkg/*", "internal/pkg/x", false},
	}
	for _, c := range cases {
		if got := covers(c.pattern, c.pkg); got != c.want {
			t.Errorf("covers(%q, %q) = %v", c.pattern, c.pkg, got)
		}
	}
}

// covers tells whether a table entry stands for the package.
func covers(pattern, pkg string) bool {
	if below, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(pkg, below)
	}
	return pattern == pkg
}

// goFile is one parsed source file of this module.
type goFile struct {
	path string // below the module's root, with slashes
	pkg  string // its folder
	test bool
	ast  *ast.File
	fset *token.FileSet
}

// ownImports are the packages of this module that f imports, as folders below the root.
func (f goFile) ownImports() []string {
	var own []string
	for _, spec := range f.ast.Imports {
		if pkg, ok := strings.CutPrefix(importPath(spec), module+"/"); ok {
			own = append(own, pkg)
		}
	}
	return own
}

// line is the position of a node for messages: "internal/wal/lsn.go:12".
func (f goFile) line(n ast.Node) string {
	return f.path + ":" + strconv.Itoa(f.fset.Position(n.Pos()).Line)
}

func importPath(spec *ast.ImportSpec) string {
	imported, _ := strconv.Unquote(spec.Path.Value) // the parser has accepted it as a string
	return imported
}

// goFiles parses every Go file of the module.
func goFiles(t *testing.T) []goFile {
	t.Helper()
	fset := token.NewFileSet()
	var files []goFile
	for _, name := range treeFiles(t) {
		if path.Ext(name) != ".go" {
			continue
		}
		parsed, err := parser.ParseFile(fset, filepath.Join(root, name), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatalf("cannot parse %s: %v", name, err)
		}
		files = append(files, goFile{name, path.Dir(name), strings.HasSuffix(name, "_test.go"), parsed, fset})
	}
	if len(files) == 0 {
		t.Fatal("found no Go file: is this test run from the folder internal?")
	}
	return files
}

// root is the module's root as seen from this package's folder, where the go command runs its tests.
const root = ".."

// treeFiles lists the files of the tree that people write, sorted: without hidden folders, test data and what make builds.
func treeFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !entry.IsDir():
			files = append(files, name)
		case name == "bin" || name == "bench-results" || entry.Name() == "testdata" ||
			strings.HasPrefix(entry.Name(), ".") && name != "." && name != ".ci":
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Fatalf("cannot walk the tree: %v", err)
	}
	slices.SortFunc(files, cmp.Compare)
	return files
}
