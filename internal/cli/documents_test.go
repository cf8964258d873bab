package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// inFence finds blocks of code in Markdown, inside lists too.
var inFence = regexp.MustCompile("(?ms)^ *```[a-z]*\n(.*?)^ *```$")

// calls finds the lines of walden in a block: at the beginning of a line, behind what sets the environment, and inside of a setting.
var calls = regexp.MustCompile(`(?m)(?:^ *|_command = ')(?:sudo -u postgres |envdir \S+ |[A-Z_]+=\S+ )*(?:/\S+/)?(walden|wal-g|wal-e) ([^\n']*)`)

// Whoever follows a document types what stands there.
func TestCommandLinesInDocumentsAreUnderstood(t *testing.T) {
	t.Parallel()
	for name, least := range map[string]int{"migration.md": 25, "operations.md": 3, "configuration.md": 3} {
		text, err := os.ReadFile(filepath.Join("..", "..", "docs", name))
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, block := range inFence.FindAllStringSubmatch(string(text), -1) {
			for _, call := range calls.FindAllStringSubmatch(block[1], -1) {
				found++
				if err := understands(call[1], strings.Fields(strings.ReplaceAll(call[2], `"`, ""))); err != nil {
					t.Errorf("%s: %s %s: %v", name, call[1], call[2], err)
				}
			}
		}
		if found < least {
			t.Errorf("%s: only %d command lines were found", name, found)
		}
	}
}

// understands parses a command line without running it.
func understands(name string, args []string) error {
	a := &app{process: Process{Called: name, Version: "1.2.3"}, screen: newScreen(&bytes.Buffer{})}
	a.as = personalityOf(name)
	root := a.as.command(a)
	root.InitDefaultVersionFlag()
	search := root.Find
	if root.TraverseChildren {
		search = root.Traverse
	}
	cmd, rest, err := search(args)
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if cmd == root && !cmd.Flags().Changed("version") {
		return usage(cmd, "there is no such command")
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}

func TestCommandLinesThatAreWrongAreNotUnderstood(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"walden backup-lost", "walden wal-push", "wal-g wal-fetch a", "wal-e wal-push --terse x", "wal-e delete retain", "walden backup-push --no-such-flag x"} {
		words := strings.Fields(line)
		if understands(words[0], words[1:]) == nil {
			t.Errorf("%s is understood", line)
		}
	}
}
