// Command walden backs up PostgreSQL clusters and archives their WAL.
package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"

	"gitlab.com/walden-pg/walden/internal/cli"
)

// version is set by the linker.
var version = "unknown"

func main() {
	percent := debug.SetGCPercent(-1) // to collect now is in vain: what the packages and the tree of commands hold stays
	os.Exit(cli.Main(cli.Process{
		Begin: func() { debug.SetGCPercent(percent) },
		Args:  os.Args[1:], Called: os.Args[0], Program: program(), Self: self, Environ: os.Environ(),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Version: version,
	}))
}

// self is this very program, even if its file has been replaced meanwhile (proc_pid_exe(5)).
const self = "/proc/self/exe"

// program is the file that was called, by its full name: the link, where one was.
func program() string {
	if called, err := exec.LookPath(os.Args[0]); err == nil {
		if called, err = filepath.Abs(called); err == nil {
			return called
		}
	}
	if self, err := os.Executable(); err == nil {
		return self
	}
	return os.Args[0]
}
