package internal

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// early is the one file that works before main: see docs/decisions/0010-the-client-runs-before-the-rest.md.
const early = "internal/daemon/client/early.go"

// Only main may end the process: whoever exits elsewhere skips the clean-up above it, and may leave a server in backup mode.
func TestOnlyMainExits(t *testing.T) {
	t.Parallel()
	for _, f := range goFiles(t) {
		if f.test || strings.HasPrefix(f.path, "cmd/") || strings.HasPrefix(f.path, "scripts/") || f.path == "test/faultfs/main.go" || f.path == early {
			continue
		}
		for _, call := range exits(f.ast) {
			t.Errorf("%s: ends the process: return an error, main decides", f.line(call))
		}
	}
}

// init runs before main, in an order nobody chose, and cannot return an error.
func TestNoInitFunctions(t *testing.T) {
	t.Parallel()
	for _, f := range goFiles(t) {
		if f.path == early {
			continue
		}
		for _, fn := range initFunctions(f.ast) {
			t.Errorf("%s: func init: call it from where it is needed", f.line(fn))
		}
	}
}

// Package-level state makes two clusters in one process impossible and lets tests disturb each other. What is left: errors,
// tables, compiled regular expressions, compile-time assertions, embedded files, and main's version, which the linker sets.
func TestNoPackageLevelState(t *testing.T) {
	t.Parallel()
	for _, f := range goFiles(t) {
		if f.test || slices.Contains(onlyInTests, f.pkg) {
			continue
		}
		for _, name := range packageState(f.ast) {
			if f.pkg == "cmd/walden" && name.Name == "version" {
				continue
			}
			t.Errorf("%s: package-level variable %s is neither an error, a table nor a compiled expression: make it a field or an argument",
				f.line(name), name.Name)
		}
	}
}

// A skipped test proves nothing. Only -short, which someone asks for, may skip.
func TestTestsSkipOnlyInShortMode(t *testing.T) {
	t.Parallel()
	for _, f := range goFiles(t) {
		for _, call := range unaskedSkips(f.ast) {
			t.Errorf("%s: skips without testing.Short: fail instead, with the command that installs what is missing", f.line(call))
		}
	}
}

func TestNoUnfinishedMarks(t *testing.T) {
	t.Parallel()
	// Put together here so that this file does not hold them.
	marks := regexp.MustCompile(`\b(` + strings.Join([]string{"TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"}, "|") + `)\b`)
	notAMark := "context.TO" + "DO()"
	forEachLine(t, isSource, func(where, line string) {
		if marks.MatchString(strings.ReplaceAll(line, notAMark, "")) {
			t.Errorf("%s: unfinished: %s", where, strings.TrimSpace(line))
		}
	})
}

// A path of the machine where the text was written works nowhere else, and tells strangers about it.
func TestNoPathsOfThisMachine(t *testing.T) {
	t.Parallel()
	here := machinePaths(t)
	forEachLine(t, isText, func(where, line string) {
		for _, dir := range here {
			if strings.Contains(line, dir) {
				t.Errorf("%s: holds %s, a folder of this machine", where, dir)
			}
		}
	})
}

// exits are the calls in file that end the process.
func exits(file *ast.File) []ast.Node {
	var found []ast.Node
	ast.Inspect(file, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			switch pkg, name := selector(call.Fun); {
			case pkg == "os" && name == "Exit", pkg == "syscall" && name == "Exit",
				pkg == "log" && (strings.HasPrefix(name, "Fatal") || strings.HasPrefix(name, "Panic")):
				found = append(found, call)
			}
		}
		return true
	})
	return found
}

func initFunctions(file *ast.File) []ast.Node {
	var found []ast.Node
	for _, decl := range file.Decls {
		if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			found = append(found, fn)
		}
	}
	return found
}

// packageState are the names of file's package-level variables that can hold state.
func packageState(file *ast.File) []*ast.Ident {
	var found []*ast.Ident
	for _, decl := range file.Decls {
		group, ok := decl.(*ast.GenDecl)
		if !ok || group.Tok != token.VAR {
			continue
		}
		for _, spec := range group.Specs {
			v := spec.(*ast.ValueSpec) // a var group holds nothing else
			array, _ := v.Type.(*ast.ArrayType)
			if embedded(group.Doc) || embedded(v.Doc) || array != nil && array.Len != nil && v.Values == nil {
				continue // filled by the compiler, or a table of zeroes
			}
			for i, name := range v.Names {
				if name.Name != "_" && (i >= len(v.Values) || !constantLike(v.Values[i])) {
					found = append(found, name)
				}
			}
		}
	}
	return found
}

// embedded tells whether a declaration's comment makes the compiler fill it.
func embedded(doc *ast.CommentGroup) bool {
	return doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") })
}

// constantLike tells whether a variable with this value is one in name only: an error, a table, a compiled expression.
func constantLike(value ast.Expr) bool {
	switch v := value.(type) {
	case *ast.CompositeLit:
		pkg, _ := selector(v.Type)
		return pkg != "sync" && pkg != "atomic"
	case *ast.SelectorExpr: // the error of a package below, under a name that jobs may use
		return strings.HasPrefix(v.Sel.Name, "Err")
	case *ast.UnaryExpr: // &hintError{…}
		literal, ok := v.X.(*ast.CompositeLit)
		return ok && v.Op == token.AND && constantLike(literal)
	case *ast.CallExpr:
		switch pkg, name := selector(v.Fun); {
		case pkg == "errors" && name == "New", pkg == "fmt" && name == "Errorf",
			pkg == "regexp" && name == "MustCompile", name == "MakeTable":
			return true
		}
	}
	return false
}

// unaskedSkips are the calls of Skip, Skipf and SkipNow that stand in no `if testing.Short()`.
func unaskedSkips(file *ast.File) []ast.Node {
	var found []ast.Node
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.IfStmt:
			asked := false
			ast.Inspect(n.Cond, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					pkg, name := selector(call.Fun)
					asked = asked || pkg == "testing" && name == "Short"
				}
				return true
			})
			return !asked
		case *ast.CallExpr:
			receiver, name := selector(n.Fun)
			if (receiver == "t" || receiver == "b" || receiver == "f" || receiver == "tb") &&
				(name == "Skip" || name == "Skipf" || name == "SkipNow") {
				found = append(found, n)
			}
		}
		return true
	})
	return found
}

// selector splits a.b into its two names; of anything else both are empty.
func selector(e ast.Expr) (left, right string) {
	if s, ok := e.(*ast.SelectorExpr); ok {
		if x, ok := s.X.(*ast.Ident); ok {
			return x.Name, s.Sel.Name
		}
	}
	return "", ""
}

// machinePaths are folders that say on which machine this tree lies: the tree itself, the folder around it, the account's home,
// Go's module cache. Folders that every machine has say nothing.
func machinePaths(t *testing.T) []string {
	t.Helper()
	tree, err := filepath.Abs(root)
	if err != nil {
		t.Fatalf("cannot find the tree: %v", err)
	}
	candidates := []string{tree, filepath.Dir(tree), os.Getenv("HOME"), os.Getenv("GOPATH"), os.Getenv("GOMODCACHE")}
	everywhere := []string{"/", "/home", "/opt", "/root", "/srv", "/tmp", "/usr", "/usr/local", "/usr/src", "/var", "/var/tmp", "/builds", "/go"}
	var dirs []string
	for _, dir := range candidates {
		if dir != "" && !slices.Contains(everywhere, filepath.Clean(dir)) {
			dirs = append(dirs, filepath.Clean(dir)+"/")
		}
	}
	return dirs
}

func isSource(name string) bool {
	switch path.Ext(name) {
	case ".go", ".sh":
		return true
	case "":
		return name == "Makefile" || strings.HasPrefix(name, "scripts/") || strings.HasPrefix(name, ".ci/")
	}
	return false
}

func isText(name string) bool {
	return isSource(name) || slices.Contains([]string{".md", ".yml", ".yaml", ".json", ".toml", ".mod"}, path.Ext(name))
}

// forEachLine calls do with the place and the text of each line of the wanted files.
func forEachLine(t *testing.T, wanted func(name string) bool, do func(where, line string)) {
	t.Helper()
	for _, name := range treeFiles(t) {
		if !wanted(name) {
			continue
		}
		content, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatalf("cannot read %s: %v", name, err)
		}
		number := 0
		for line := range strings.Lines(string(content)) {
			number++
			do(name+":"+strconv.Itoa(number), line)
		}
	}
}

// The rules above are only as good as what they recognise.
func TestHouseRulesRecogniseWhatTheyForbid(t *testing.T) {
	t.Parallel()
	const source = `package p

import ("errors"; "log"; "os"; "regexp"; "sync"; "testing")

var ErrGone = errors.New("gone")
var ErrShut = os.ErrClosed
var table = map[string]int{"a": 1}
var pattern = regexp.MustCompile("a")
var _ error = (*os.PathError)(nil)
//go:embed a.txt
var text string
var zeroes [512]byte
var list []byte                    // state
var counter int                    // state
var pool = sync.Pool{}             // state
var now, later = os.Getenv("A"), 1 // state, twice

func init() {}                     // init
func (t *T) init() {}

func f(t *testing.T) {
	if testing.Short() { t.Skip("asked for") }
	t.Skipf("no server")           // skip
	log.Fatalf("no")               // exit
	os.Exit(1)                     // exit
}
`
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "p.go", source, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var state []string
	for _, name := range packageState(file) {
		state = append(state, name.Name)
	}
	if want := []string{"list", "counter", "pool", "now", "later"}; !slices.Equal(state, want) {
		t.Errorf("package-level state: %v, want %v", state, want)
	}
	for what, found := range map[string][]ast.Node{"init": initFunctions(file), "skip": unaskedSkips(file), "exit": exits(file)} {
		var lines, want []int
		for _, n := range found {
			lines = append(lines, fset.Position(n.Pos()).Line)
		}
		for i, line := range strings.Split(source, "\n") {
			if strings.HasSuffix(line, "// "+what) {
				want = append(want, i+1)
			}
		}
		if !slices.Equal(lines, want) {
			t.Errorf("%s found in lines %v, want %v", what, lines, want)
		}
	}
}
