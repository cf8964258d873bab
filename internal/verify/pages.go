package verify

import (
	"archive/tar"
	"fmt"
	"io"
	"slices"
	"sync"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/changes"
	"gitlab.com/walden-pg/walden/internal/pgdata"
)

const (
	// readSize is how much is read at once, in bytes.
	readSize = 64 * pgdata.PageSize
	// segmentBlocks is the number of pages in a segment file of PostgreSQL as everybody builds it (RELSEG_SIZE, pg_config.h). What a
	// cluster really has stands in its control file, which comes last.
	segmentBlocks = 131072
	// mostSuspects bounds what is remembered of pages with wrong checksums: all pages of a cluster without checksums are such.
	mostSuspects = 10_000
)

// checker is the sink that writes nothing, and looks at the pages of relations.
type checker struct {
	add     func(int64)
	buffers sync.Pool // of *[]byte

	mu       sync.Mutex
	files    int
	bytes    int64
	pages    int64
	wrong    int64     // pages with a wrong checksum
	suspects []suspect // the first of them
}

// suspect is a page with a wrong checksum.
type suspect struct {
	name     string
	relation pgdata.RelationFile
	block    uint32 // within the file
}

// Dir implements [restore.Sink].
func (c *checker) Dir(string, *tar.Header) error { return nil }

// Link implements [restore.Sink].
func (c *checker) Link(string, string, *tar.Header) error { return nil }

// File implements [restore.Sink].
func (c *checker) File(name string, _ *tar.Header, content io.Reader) error {
	w := &pageReader{c: c, name: name}
	w.relation, w.paged = checked(name)
	buf := c.buffer()
	defer c.buffers.Put(buf)
	for at := int64(0); ; {
		n, err := io.ReadFull(content, *buf)
		if err == io.ErrUnexpectedEOF {
			err = io.EOF
		}
		if n > 0 {
			_, _ = w.WriteAt((*buf)[:n], at) // which never fails
			at += int64(n)
		}
		if err == io.EOF {
			c.done(at, 1)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Pages implements [restore.Sink].
func (c *checker) Pages(name string, h *tar.Header, size int64, write func(io.WriterAt) error) error {
	w := &pageReader{c: c, name: name}
	w.relation, w.paged = checked(name)
	if err := write(w); err != nil {
		return err
	}
	if h != nil {
		c.done(size, 1)
	}
	return nil
}

func (c *checker) buffer() *[]byte {
	if b, ok := c.buffers.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, readSize)
	return &b
}

func (c *checker) done(size int64, files int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.files += files
	c.bytes += size
}

// checked tells whether the pages of a file have to be right. Those of the free space map and the visibility map do not: the server
// takes a page of them that is not valid for an empty one (fsm_readbuf, vm_readbuf), and does not log every change of them.
func checked(name string) (pgdata.RelationFile, bool) {
	r, ok := pgdata.ParseRelationFile(name)
	return r, ok && r.Fork != "fsm" && r.Fork != "vm"
}

// pageReader looks at the pages of one file. What is not a multiple of a page at the end of a file is none.
type pageReader struct {
	c        *checker
	name     string
	relation pgdata.RelationFile
	paged    bool
}

// WriteAt takes whole pages, or the end of a file.
func (r *pageReader) WriteAt(b []byte, offset int64) (int, error) {
	n := len(b)
	r.c.add(int64(n))
	if !r.paged {
		return n, nil
	}
	block, pages := uint32(offset/pgdata.PageSize), int64(0)
	for ; len(b) >= pgdata.PageSize; b = b[pgdata.PageSize:] {
		if !pgdata.PageIsVerified(b[:pgdata.PageSize], r.relation.Segment*segmentBlocks+block) {
			r.c.suspect(suspect{r.name, r.relation, block})
		}
		block++
		pages++
	}
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.c.pages += pages
	return n, nil
}

func (c *checker) suspect(s suspect) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wrong++; len(c.suspects) < mostSuspects {
		c.suspects = append(c.suspects, s)
	}
}

// mostTold is how many corrupt pages a report names.
const mostTold = 100

// judge tells corrupt pages from those that were copied while the server wrote them: replay writes these anew, all of each, since
// the first change of a page after the backup's checkpoint logs the whole page (XLogRecordAssemble, xloginsert.c: pages are logged in full while
// a backup runs, whatever full_page_writes says).
func (r *Report) judge(c *checker, files *catalog.Files, replayed *changes.Map) {
	for _, f := range files.All() {
		if f.Corrupt != nil {
			r.Recorded += f.Corrupt.Count
		}
	}
	r.CorruptPages = c.wrong - int64(len(c.suspects))
	for _, s := range c.suspects {
		if s.isReplayed(replayed) || s.isRecorded(files) {
			continue
		}
		if r.CorruptPages++; len(r.Corrupt) < mostTold {
			r.Corrupt = append(r.Corrupt, Page{s.name, s.block})
		}
	}
}

func (s suspect) isReplayed(m *changes.Map) bool {
	r := changes.Relation{Tablespace: s.relation.Tablespace, Database: s.relation.Database, Number: s.relation.Relation}
	return s.relation.Fork == "" && m.Has(r, s.relation.Segment*segmentBlocks+s.block)
}

// isRecorded tells whether the page was known to be corrupt when the backup was taken. Where not all blocks were noted, those that
// were not may be any.
func (s suspect) isRecorded(files *catalog.Files) bool {
	_, f, ok := files.Find(s.name)
	if !ok || f.Corrupt == nil {
		return false
	}
	return slices.Contains(f.Corrupt.Blocks, s.block) || f.Corrupt.Count > len(f.Corrupt.Blocks)
}

// String names the page for messages.
func (p Page) String() string { return fmt.Sprintf("block %d of %s", p.Block, p.File) }
