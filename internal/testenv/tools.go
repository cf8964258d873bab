// Package testenv runs the real programs that walden's tests speak to: PostgreSQL servers and object stores.
//
// It promises that what a test starts ends with the test, that no wait is without a limit, and that the program's
// own log stands in the message of a test that fails. A program that is not installed fails the test with the
// command that installs it; nothing is skipped.
package testenv

import (
	"os"
	"path/filepath"
	"testing"
)

// installHint is what a test says when a program it needs is missing.
const installHint = "run scripts/install-test-tools"

// ToolsDir is where scripts/install-test-tools puts what the distribution's packages do not hold: WALDEN_TOOLS,
// or /var/tmp/walden-tools.
func ToolsDir() string {
	if dir := os.Getenv("WALDEN_TOOLS"); dir != "" {
		return dir
	}
	return "/var/tmp/walden-tools"
}

// Tool returns the path of an installed program in the tools directory, for example Tool(t, "versitygw-v1.8.0").
func Tool(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(ToolsDir(), "bin", name)
	if info, err := os.Stat(path); err != nil || info.Mode()&0o111 == 0 {
		t.Fatalf("test program %s is not installed: %s", path, installHint)
	}
	return path
}
