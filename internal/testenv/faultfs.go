package testenv

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// FaultDisk is a mounted file system that fails when it is told to, and that remembers what a power cut would have left
// (the program faultfs of test/faultfs).
type FaultDisk struct {
	Dir string // where it is mounted; belongs to the user postgres

	t       testing.TB
	journal string // directory of the journal, "" for none
	control string // socket
}

const faultDiskLimit = 30 * time.Second

// MountFaultDisk mounts an empty disk, which goes with the test. With journal it keeps what [FaultDisk.Journal] reads.
func MountFaultDisk(t testing.TB, journal bool) *FaultDisk {
	t.Helper()
	program := Tool(t, "faultfs-"+faultfsVersion(t))
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Fatalf("faults of a disk are tested with FUSE: %v; load the kernel module fuse, or give /dev/fuse to the container", err)
	}
	base := Scratch(t)
	d := &FaultDisk{Dir: filepath.Join(base, "mount"), t: t, control: filepath.Join(base, "control")}
	backing := filepath.Join(base, "backing")
	for _, dir := range []string{d.Dir, backing} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	giveToPostgres(t, backing)
	args := []string{"-backing", backing, "-mount", d.Dir, "-control", d.control}
	if journal {
		d.journal = filepath.Join(base, "journal")
		if err := os.Mkdir(d.journal, 0o700); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-journal", d.journal)
	}
	d.start(program, args)
	return d
}

// start runs the program until the end of the test. It ends when its standard input does, so that even a test binary that
// was killed leaves no mount behind.
func (d *FaultDisk) start(program string, args []string) {
	d.t.Helper()
	log := new(lockedBuffer)
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stderr = "/", log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	ready := make(chan bool, 1)
	ended := make(chan error, 1)
	go func() {
		line, err := bufio.NewReader(stdout).ReadString('\n')
		ready <- err == nil && line == "ready\n"
		_, _ = io.Copy(io.Discard, stdout)
		ended <- cmd.Wait()
	}()
	d.t.Cleanup(func() {
		stdin.Close()
		select {
		case err := <-ended:
			if err != nil {
				d.t.Errorf("%s: %v\n%s", program, err, log)
			}
		case <-time.After(faultDiskLimit):
			_ = cmd.Process.Kill()
			<-ended
			d.t.Errorf("%s did not unmount within %s\n%s", program, faultDiskLimit, log)
		}
	})
	select {
	case ok := <-ready:
		if !ok {
			d.t.Fatalf("%s did not mount; fusermount3 is in the package fuse3\n%s", program, log)
		}
	case <-time.After(faultDiskLimit):
		d.t.Fatalf("%s did not mount within %s\n%s", program, faultDiskLimit, log)
	}
}

// faultfsVersion is the hash of the program's source, by which scripts/install-test-tools names it: a test never runs
// with the program of another checkout.
func faultfsVersion(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for !exists(filepath.Join(dir, "test/faultfs/go.mod")) {
		if dir == "/" {
			t.Fatal("cannot find test/faultfs above the working directory")
		}
		dir = filepath.Dir(dir)
	}
	sources, err := filepath.Glob(filepath.Join(dir, "test/faultfs/*.go"))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	for _, name := range append([]string{filepath.Join(dir, "test/faultfs/go.mod"), filepath.Join(dir, "test/faultfs/go.sum")}, sources...) {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sum.Write(content)
	}
	return hex.EncodeToString(sum.Sum(nil))[:12]
}

// DiskFault is an operation that is to fail. For example, DiskFault{Op: "write", Path: "archive/.*", Errno: "ENOSPC",
// After: 3} is a disk that is full at the fourth write below "archive".
type DiskFault struct {
	// Op is one of: read write open create mkdir symlink link rename unlink rmdir setattr readdir fsync fsyncdir flush
	// (a close of a file that was written). A file without a name is created under its
	// directory's path, and "unnamed" in it from then on.
	Op    string `json:"op"`
	Path  string `json:"path"`  // regular expression over the whole path below the mount
	Errno string `json:"errno"` // EIO, ENOSPC, EDQUOT, EROFS, EACCES or EOPNOTSUPP
	After int    `json:"after"` // how many such operations succeed first
	Times int    `json:"times"` // how many fail then, 0 for all
	From  int64  `json:"from"`  // of reads: the bytes before this offset can be read
}

// Inject adds a fault to those that are there.
func (d *FaultDisk) Inject(t testing.TB, f DiskFault) {
	t.Helper()
	d.command(t, map[string]any{"inject": f})
}

// Heal removes all faults and returns how many operations have failed by them.
func (d *FaultDisk) Heal(t testing.TB) int {
	t.Helper()
	hits := d.command(t, map[string]any{"hits": true})
	d.command(t, map[string]any{"clear": true})
	return hits
}

// Mark puts a text into the journal, by which a test finds the moment again.
func (d *FaultDisk) Mark(t testing.TB, text string) {
	t.Helper()
	d.command(t, map[string]any{"mark": text})
}

func (d *FaultDisk) command(t testing.TB, command any) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), faultDiskLimit)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "unix", d.control)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var reply struct {
		Error string
		Hits  int
	}
	err = c.SetDeadline(time.Now().Add(faultDiskLimit))
	if err == nil {
		err = json.NewEncoder(c).Encode(command)
	}
	if err == nil {
		err = json.NewDecoder(c).Decode(&reply)
	}
	if err == nil && reply.Error != "" {
		err = errors.New(reply.Error)
	}
	if err != nil {
		t.Fatalf("faultfs: %v", err)
	}
	return reply.Hits
}

// DiskEvent is one line of the journal: see the type event of test/faultfs.
type DiskEvent struct {
	Op        string `json:"op"`
	ID        int64  `json:"id"`
	Parent    int64  `json:"parent"`
	Name      string `json:"name"`
	NewParent int64  `json:"new_parent"`
	NewName   string `json:"new_name"`
	Target    string `json:"target"`
	Mode      uint32 `json:"mode"`
	UID       uint32 `json:"uid"`
	GID       uint32 `json:"gid"`
	Off       int64  `json:"off"`
	Size      int64  `json:"size"`
	At        int64  `json:"at"`
}

// Journal reads what has happened on the disk so far, what was written included.
func (d *FaultDisk) Journal(t testing.TB) *DiskJournal {
	t.Helper()
	lines, err := os.ReadFile(filepath.Join(d.journal, "journal.json"))
	if err != nil {
		t.Fatal(err)
	}
	j := &DiskJournal{}
	for line := range bytes.Lines(lines) {
		var e DiskEvent
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("journal: %v in %q", err, line)
		}
		j.Events = append(j.Events, e)
	}
	if j.data, err = os.ReadFile(filepath.Join(d.journal, "journal.data")); err != nil {
		t.Fatal(err)
	}
	return j
}
