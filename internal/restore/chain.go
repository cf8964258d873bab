package restore

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/pgdata"
	"gitlab.com/walden-pg/walden/pkg/increment"
)

// A chain is restored from its newest backup to its oldest: the newest one that has a page writes it, and what was written is
// remembered by its number, not by what is in it, since a page of zeros is a page like any other. So nothing is written twice, and
// nothing is written that a newer backup has removed.

const (
	// pagesAtOnce is how much is read and written at once of files that are put together, in bytes.
	pagesAtOnce = 64 * increment.PageSize
	// maxAssembly bounds what is remembered of such files, in bytes: the pages of 50 TiB of relations of which the newest backup
	// has increments, or two million such files.
	maxAssembly = 1 << 30
	// assembledFile is about what one of them takes besides its name and its pages, in bytes.
	assembledFile = 256
)

// assembly is what is known of the files that several backups of a chain contribute to, while they are read from the newest on.
type assembly struct {
	level   int       // how many newer backups have been read
	largest int64     // what the files may have together, in bytes
	buffers sync.Pool // of *[]byte

	mu     sync.Mutex
	files  map[string]*assembled
	size   int64 // of all of them, in bytes
	memory int64

	zeros  int64 // pages that no backup of the chain has
	zeroed string
}

// assembled is one file. It is used by one goroutine at a time: a backup has a file once.
type assembled struct {
	since int              // level of the newest backup that has it; those before have it Elsewhere
	pages int64            // of the finished file
	limit int64            // older pages from here on are not to be taken: between then and now the file was this short
	done  increment.Blocks // pages that newer backups have written

	// What the backup contributes that is being read. It is taken over when all of that was read: a part may be read again.
	now      *increment.Blocks
	nowLimit int64
	complete bool
}

func newAssembly(chain []catalog.Member) *assembly {
	a := &assembly{
		files:   map[string]*assembled{},
		buffers: sync.Pool{New: func() any { b := make([]byte, pagesAtOnce); return &b }},
	}
	if size := chain[0].Listing.DataSize; size > 0 {
		a.largest = sum(sum(size, size), spareDecoded)
		return a
	}
	for _, m := range chain {
		a.largest = sum(a.largest, decodedLimit(m.Listing))
	}
	return a
}

// unpackOlder reads the backups that the newest one is based on.
func (u *unpacker) unpackOlder(ctx context.Context, chain []catalog.Member, workers int) error {
	for _, m := range chain {
		if err := u.assembly.descend(); err != nil {
			return err
		}
		u.log.Info("the backup is based on another, of which files are needed", "action", "backup-fetch", "backup", m.Backup.Name,
			"parts", len(m.Listing.Parts), "files", m.Listing.Files.Len())
		o := newUnpacker(u.catalog, u.log, m, u.assembly, u.sink)
		o.older = true
		if err := o.readAll(ctx, m.Listing.Parts, 0, false, workers); err != nil {
			return err
		}
		if err := o.checkComplete(); err != nil {
			return err
		}
	}
	if err := u.assembly.descend(); err != nil {
		return err
	}
	a := u.assembly
	if len(a.files) > 0 { // the catalog has made sure that each file is whole in one of the backups
		return fmt.Errorf("cannot restore backup %s: %w: %d files lack pages", u.backup.Name, errContent, len(a.files))
	}
	if a.zeros > 0 {
		u.log.Warn("pages that no backup of the chain has are zeros, like pages that PostgreSQL has never written", "pages", a.zeros, "example", a.zeroed)
	}
	return nil
}

// descend takes over what the backup has contributed that was read.
func (a *assembly) descend() error {
	a.level, a.memory = a.level+1, 0
	for name, f := range a.files {
		if f.complete {
			delete(a.files, name)
			continue
		}
		if f.now != nil {
			f.done.AddAll(f.now, f.limit)
			f.limit, f.now = f.nowLimit, nil
		}
		a.memory += f.memory(name)
	}
	return a.checkMemory()
}

func (f *assembled) memory(name string) int64 {
	return assembledFile + int64(len(name)) + f.done.Memory()
}

func (a *assembly) checkMemory() error {
	if a.memory > maxAssembly {
		return &SinkError{fmt.Errorf("the backup has increments of so many files that remembering their pages takes more than %d MiB of memory", maxAssembly>>20)}
	}
	return nil
}

// increment writes those pages of an increment that no newer backup has.
func (a *assembly) increment(sink Sink, name string, h *tar.Header, content io.Reader) error {
	in, err := increment.NewReader(content, h.Size, a.largest)
	if err != nil {
		return err
	}
	f, err := a.begin(name, in)
	if err != nil {
		return err
	}
	if f.since < a.level {
		h = nil
	}
	buf := a.buffers.Get().(*[]byte)
	defer a.buffers.Put(buf)
	return sink.Pages(name, h, f.pages*increment.PageSize, func(w io.WriterAt) error {
		for {
			block, n, err := in.Next(*buf)
			if err == io.EOF {
				return nil
			}
			if err == nil {
				err = f.write(w, int64(block), (*buf)[:n*increment.PageSize])
			}
			if err != nil {
				return err
			}
		}
	})
}

// begin returns the file that an increment contributes to.
func (a *assembly) begin(name string, in *increment.Reader) (*assembled, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.files[name]
	if f == nil {
		f = &assembled{since: a.level}
		a.files[name] = f
		a.memory += f.memory(name)
	}
	pages := in.FileSize() / increment.PageSize
	if f.since == a.level { // perhaps not for the first time
		a.size = sum(a.size-f.pages*increment.PageSize, pages*increment.PageSize)
		f.pages, f.limit = pages, pages
	}
	if a.size > a.largest {
		return nil, fmt.Errorf("%w: with it the files have more than %d MiB, far more than they are said to have", errContent, a.largest>>20)
	}
	if f.now != nil {
		a.memory -= f.now.Memory()
	}
	f.now, f.nowLimit = in.Blocks(), min(f.limit, pages)
	a.memory += f.now.Memory()
	return f, a.checkMemory()
}

// whole writes a file of which a backup has everything: all of it, or the pages that no newer backup has.
func (a *assembly) whole(sink Sink, name string, h *tar.Header, content io.Reader) error {
	a.mu.Lock()
	f := a.files[name]
	a.mu.Unlock()
	if f == nil {
		return sink.File(name, h, content)
	}
	buf := a.buffers.Get().(*[]byte)
	defer a.buffers.Put(buf)
	err := sink.Pages(name, nil, f.pages*increment.PageSize, func(w io.WriterAt) error {
		return a.fill(w, name, f, content, *buf)
	})
	f.complete = err == nil
	return err
}

// fill writes from the whole file of an older backup what newer ones do not have, and zeros where the file was shorter then. That is what
// WAL-G's restore comes to, which makes the older file as long as the newer one before it writes the increment's pages.
func (a *assembly) fill(w io.WriterAt, name string, f *assembled, content io.Reader, buf []byte) error {
	block := int64(0)
	for {
		n, err := fillBuffer(content, buf)
		if err != nil && err != io.EOF {
			return err
		}
		whole := (n + increment.PageSize - 1) / increment.PageSize * increment.PageSize
		clear(buf[n:whole])
		if err := f.write(w, block, buf[:whole]); err != nil {
			return err
		}
		block += int64(whole / increment.PageSize)
		if err == io.EOF {
			break
		}
	}
	clear(buf)
	zeros := int64(0)
	for at := range f.pages {
		if f.done.Has(uint32(at)) || at < min(block, f.limit) {
			continue
		}
		if _, err := w.WriteAt(buf[:increment.PageSize], at*increment.PageSize); err != nil {
			return err
		}
		zeros++
	}
	if zeros > 0 {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.zeros, a.zeroed = a.zeros+zeros, name
	}
	return nil
}

// write writes those of the pages from a block on that no newer backup has, neighbours at once.
func (f *assembled) write(w io.WriterAt, block int64, pages []byte) error {
	for n := int64(len(pages) / increment.PageSize); n > 0; {
		run, wanted := int64(1), f.wants(block)
		for run < n && f.wants(block+run) == wanted {
			run++
		}
		if wanted {
			if _, err := w.WriteAt(pages[:run*increment.PageSize], block*increment.PageSize); err != nil {
				return err
			}
		}
		block, n, pages = block+run, n-run, pages[run*increment.PageSize:]
	}
	return nil
}

func (f *assembled) wants(block int64) bool { return block < f.limit && !f.done.Has(uint32(block)) }

// refuseIncrement fails for a relation's file that begins like an increment and is said to be whole: as the file of a relation it
// would be garbage. It returns the content from its beginning.
func refuseIncrement(name string, content io.Reader) (io.Reader, error) {
	if !pgdata.IsDataFile(name) {
		return content, nil
	}
	begin := make([]byte, increment.SignatureSize)
	n, err := fillBuffer(content, begin)
	switch {
	case increment.IsIncrement(begin[:n]):
		return nil, fmt.Errorf("%w: it is an increment, and said to be the whole file", errContent)
	case err == io.EOF:
		return bytes.NewReader(begin[:n]), nil
	case err != nil:
		return nil, err
	}
	return io.MultiReader(bytes.NewReader(begin), content), nil
}
