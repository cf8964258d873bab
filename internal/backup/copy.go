package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/internal/postgres"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// readSize is how much is read from a file at once, in bytes: large enough to make system calls cheap, small enough
// to stay in the processor's cache while it is hashed, verified and compressed.
const readSize = 256 << 10

// someCorrupt is how many corrupt blocks of a file are named in the metadata unless all are asked for (WAL-G format).
const someCorrupt = 10

// copyParts stores all parts, Workers of them at a time. Each worker owns one part from its first header to its
// upload, so nothing is shared. Files that vanished are left out of the contents.
func (j *job) copyParts(ctx context.Context, draft *catalog.Draft, start wal.LSN, progress Progress) error {
	progress.Begin(j.total)
	defer progress.End()
	queue := make(chan task, len(j.parts))
	for _, t := range j.workList() {
		queue <- t
	}
	close(queue)
	g, ctx := errgroup.WithContext(ctx)
	for range min(j.options.Workers, len(j.parts)) {
		g.Go(func() error {
			w := &copier{job: j, progress: progress, buf: make([]byte, readSize), names: map[owner][2]string{},
				verifier: pgdata.NewPageVerifier(j.relBlocks, start)}
			for t := range queue {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				w.counted = 0
				blocksAtOnce := 1
				if t.wide {
					blocksAtOnce = j.options.BlocksAtOnce
				}
				part, err := draft.PutPart(ctx, t.part+1, blocksAtOnce, func(out io.Writer) error { return w.writePart(ctx, out, j.parts[t.part]) })
				if err != nil {
					return err
				}
				j.contents.Parts[t.part] = part
			}
			return nil
		})
	}
	return g.Wait()
}

// copier is one worker: its buffers are reused for all its files.
type copier struct {
	job      *job
	progress Progress
	counted  int64 // what progress was told of the part that is being written
	buf      []byte
	hash     xxh3.Hasher128
	verifier *pgdata.PageVerifier
	names    map[owner][2]string // user and group names where the host knows them
}

// writePart writes one tar. It may be called again for the same part after a failure of the storage.
func (w *copier) writePart(ctx context.Context, out io.Writer, p part) error {
	w.progress.Add(-w.counted)
	w.counted = 0
	tw := tar.NewWriter(out)
	for _, s := range p.spans {
		for i := s.first; i < s.end; i++ {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := w.writeEntry(ctx, tw, i); err != nil {
				return err
			}
		}
	}
	return tw.Close()
}

func (w *copier) writeEntry(ctx context.Context, tw *tar.Writer, i int) error {
	f := w.job.contents.Files.At(i)
	h := &tar.Header{Name: "/" + f.Name, Mode: int64(f.Mode.Perm()), ModTime: time.Unix(0, f.MTime)}
	switch f.Type {
	case catalog.Directory:
		h.Typeflag = tar.TypeDir
		w.owner(h, w.job.owners[i])
		return tw.WriteHeader(h)
	case catalog.Symlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		w.owner(h, w.job.owners[i])
		return tw.WriteHeader(h)
	}
	return w.writeFile(ctx, tw, h, f.Name, i)
}

// writeFile copies one file as it is now, with the size that it has when it is opened: what it grows later is cut off,
// what it shrinks is filled with zeros; WAL replay repairs both. A file that has vanished gets no entry.
func (w *copier) writeFile(ctx context.Context, tw *tar.Writer, h *tar.Header, name string, i int) error {
	file, err := openDataFile(w.job.dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		w.job.contents.Files.Drop(i)
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read data file: %w", err)
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return fmt.Errorf("cannot read data file: %w", err)
	}
	if !st.Mode().IsRegular() { // replaced since the walk by something that is not data
		w.job.contents.Files.Drop(i)
		return nil
	}
	size := st.Size()
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		w.owner(h, owner{sys.Uid, sys.Gid})
	}
	how, blocks, err := w.blocksOf(ctx, file, name, size)
	switch {
	case err != nil:
		return err
	case how == catalog.Elsewhere:
		w.job.contents.Files.Skipped(i, size)
		w.job.record(i, pgdata.PageReport{})
		return nil
	case how == catalog.Increment:
		rel, _ := pgdata.ParseRelationFile(name)
		return w.writeIncrement(ctx, tw, h, file, i, rel, size, blocks)
	}
	h.Typeflag, h.Size = tar.TypeReg, size
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	w.hash.Reset()
	verify := w.job.options.Verify && pgdata.IsDataFile(name)
	if verify {
		rel, _ := pgdata.ParseRelationFile(name)
		w.verifier.Reset(ctx, file, rel.Segment)
	}
	for left := size; left > 0; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b := w.buf[:min(left, readSize)]
		if err := w.job.awaitTurn(ctx, len(b)); err != nil {
			return err
		}
		if err := readOrZeros(file, b, size-left); err != nil {
			return err
		}
		_, _ = w.hash.Write(b) // a hash never fails
		if verify {
			if _, err := w.verifier.Write(b); err != nil {
				return err
			}
		}
		if _, err := tw.Write(b); err != nil {
			return err
		}
		left -= int64(len(b))
		w.count(int64(len(b)))
	}
	w.job.contents.Files.Wrote(i, size, w.hash.Sum128().Bytes())
	if verify {
		r := w.verifier.Report()
		if r.Odd {
			w.job.log.Warn("the size of a relation file is not a multiple of the page size", "file", name)
		}
		w.job.record(i, r)
	}
	return nil
}

// awaitTurn waits until n bytes of the data directory may be read.
func (j *job) awaitTurn(ctx context.Context, n int) error {
	if err := j.options.Disk.Wait(ctx, n); err != nil || j.brake == nil {
		return err
	}
	return j.brake.wait(ctx, n)
}

// count tells progress of bytes that were copied.
func (w *copier) count(n int64) {
	w.counted += n
	w.progress.Add(n)
}

// record keeps what the verification of a file found, to be judged when the stop LSN is known, instead of what an
// earlier attempt at the part found.
func (j *job) record(i int, r pgdata.PageReport) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(r.Corrupt)+len(r.Suspect) > 0 {
		j.pages[i] = r
	} else {
		delete(j.pages, i)
	}
}

// judgePages calls pages corrupt: those whose checksum stayed wrong, and those whose LSN claims that WAL replay will
// write them anew while no WAL of the backup can. It returns the names of the files with corrupt pages.
func (j *job) judgePages(stop wal.LSN, all bool) []string {
	var corrupt []string
	for _, i := range slices.Sorted(maps.Keys(j.pages)) {
		blocks := j.pages[i].CorruptAt(stop)
		f := j.contents.Files.At(i)
		if len(blocks) == 0 || f.Type != catalog.Regular { // vanished when its part was written once more
			continue
		}
		found := &catalog.CorruptBlocks{Count: len(blocks), Blocks: blocks}
		if !all && len(blocks) > someCorrupt {
			found.Blocks = slices.Clone(blocks[:someCorrupt])
		}
		j.contents.Files.SetCorrupt(i, found)
		j.log.Error("corrupt pages", "action", "backup-push", "file", f.Name, "count", found.Count, "blocks", found.Blocks)
		corrupt = append(corrupt, f.Name)
	}
	return corrupt
}

// copyControl stores global/pg_control, read when everything else has been copied (on a standby the consistency of the
// backup depends on that: PostgreSQL documentation, "Making a Non-Exclusive Low-Level Backup").
func (j *job) copyControl(ctx context.Context, draft *catalog.Draft) (catalog.Part, error) {
	_, raw, err := pgdata.ReadControl(j.dir)
	if err != nil {
		return catalog.Part{}, err
	}
	st, err := os.Stat(filepath.Join(j.dir, pgdata.ControlName))
	if err != nil {
		return catalog.Part{}, fmt.Errorf("cannot read the control file: %w", err)
	}
	j.contents.UtilitySize += int64(len(raw))
	return draft.PutControl(ctx, func(out io.Writer) error {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: "/" + pgdata.ControlName, Size: int64(len(raw)),
			Mode: int64(st.Mode().Perm()), ModTime: st.ModTime()}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			h.Uid, h.Gid = int(sys.Uid), int(sys.Gid)
		}
		return writeTar(out, member{h, raw})
	})
}

// copyLabel stores backup_label and tablespace_map as the server returned them; the map is there even if it is empty.
func (j *job) copyLabel(ctx context.Context, draft *catalog.Draft, stop postgres.Stop) (catalog.Part, error) {
	text := func(name string, content []byte) member {
		return member{&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o600,
			ModTime: time.Unix(0, 0)}, content}
	}
	j.contents.UtilitySize += int64(len(stop.Label) + len(stop.TablespaceMap))
	return draft.PutLabel(ctx, func(out io.Writer) error {
		return writeTar(out, text("backup_label", stop.Label), text("tablespace_map", stop.TablespaceMap))
	})
}

type member struct {
	header  *tar.Header
	content []byte
}

func writeTar(out io.Writer, members ...member) error {
	tw := tar.NewWriter(out)
	for _, m := range members {
		if err := tw.WriteHeader(m.header); err != nil {
			return err
		}
		if _, err := io.Copy(tw, bytes.NewReader(m.content)); err != nil {
			return err
		}
	}
	return tw.Close()
}

// owner fills in the owner by number, and by name where the host knows one.
func (w *copier) owner(h *tar.Header, o owner) {
	h.Uid, h.Gid = int(o.uid), int(o.gid)
	names, ok := w.names[o]
	if !ok {
		if u, err := user.LookupId(strconv.Itoa(h.Uid)); err == nil {
			names[0] = u.Username
		}
		if g, err := user.LookupGroupId(strconv.Itoa(h.Gid)); err == nil {
			names[1] = g.Name
		}
		w.names[o] = names
	}
	h.Uname, h.Gname = names[0], names[1]
}
