// Command faultfs is the disk of walden's tests: a FUSE file system over a directory that fails when it is told to, and
// that keeps a journal from which a test works out what a power cut would have left at any moment.
//
//	faultfs -backing DIR -mount DIR -control SOCKET [-journal DIR]
//
// Everything that is asked of the mount is done in the backing directory, which must be empty where a journal is kept.
// "ready" on standard output says that the mount can be used; SIGTERM, SIGINT and the end of standard input unmount it.
//
// The journal is two files. journal.json holds one [event] per line, in the order in which they took place; journal.data holds
// what was written, one write after the other. Reading and interpreting it is the tests' part (package testenv).
//
// The control socket takes one JSON document per connection, a [command], and answers with a [reply].
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

func main() {
	var o options
	flag.StringVar(&o.backing, "backing", "", "directory that holds the files")
	flag.StringVar(&o.mount, "mount", "", "where to mount")
	flag.StringVar(&o.control, "control", "", "socket that takes commands")
	flag.StringVar(&o.journal, "journal", "", "directory for the journal, empty for none")
	flag.Parse()
	if err := run(o, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "faultfs:", err)
		os.Exit(1)
	}
}

type options struct{ backing, mount, control, journal string }

// run serves until stdin ends or a signal comes.
func run(o options, stdin io.Reader, stdout io.Writer) error {
	syscall.Umask(0) // the caller's umask is applied before the kernel asks
	d := &disk{faults: &faults{}}
	if o.journal != "" {
		j, err := openJournal(o.backing, o.journal)
		if err != nil {
			return err
		}
		defer j.close()
		d.journal = j
	}
	listener, err := net.Listen("unix", o.control)
	if err != nil {
		return err
	}
	defer listener.Close()
	if err := os.Chmod(o.control, 0o600); err != nil {
		return err
	}
	root, err := d.root(o.backing)
	if err != nil {
		return err
	}
	server, err := fs.Mount(o.mount, root, &fs.Options{
		MountOptions: fuse.MountOptions{
			FsName: "faultfs", Name: "faultfs", DirectMount: os.Geteuid() == 0, AllowOther: os.Geteuid() == 0,
			Options: []string{"default_permissions"}, DisableXAttrs: true, MaxWrite: 1 << 20,
		},
		// Nothing is remembered by the kernel, so that a fault is met as soon as it is injected.
	})
	if err != nil {
		return fmt.Errorf("cannot mount %s: %w", o.mount, err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { d.serveControl(listener) })
	fmt.Fprintln(stdout, "ready")

	stop := make(chan os.Signal, 2)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		stop <- syscall.SIGTERM
	}()
	<-stop
	err = server.Unmount()
	if err != nil { // someone has a file open still: the mount goes when it is closed
		err = syscall.Unmount(o.mount, syscall.MNT_DETACH)
	}
	err = errors.Join(err, listener.Close())
	serving.Wait()
	return err
}
