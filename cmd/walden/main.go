// Command walden backs up PostgreSQL clusters and archives their WAL.
package main

import (
	"os"

	"gitlab.com/walden-pg/walden/internal/cli"
)

// version is set by the linker.
var version = "unknown"

func main() {
	program, err := os.Executable()
	if err != nil {
		program = os.Args[0]
	}
	os.Exit(cli.Main(cli.Process{
		Args: os.Args[1:], Program: program, Environ: os.Environ(), Stdout: os.Stdout, Stderr: os.Stderr, Version: version,
	}))
}
