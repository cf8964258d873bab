package backup

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/pgdata"
)

// job is one backup's copy of the data directory.
type job struct {
	dir       string
	options   Options
	log       *slog.Logger
	relBlocks uint32 // blocks of a relation's segment file
	delta     *delta // nil for a full backup
	contents  catalog.Contents
	owners    map[int]owner // of directories and links, by position in contents.Files; those of files are read with them
	parts     []part
	total     int64

	brake *brake // nil: nothing slows the backup down

	mu    sync.Mutex
	pages map[int]pgdata.PageReport // pages to judge when the stop LSN is known, by position in contents.Files
}

// owner is a file's numeric owner.
type owner struct{ uid, gid uint32 }

// part is what goes into one tar.
type part struct {
	spans []span
	cost  int64
}

// span is a run of positions in contents.Files: of many files that follow each other only two numbers are kept.
type span struct{ first, end int }

// add appends the file at a position.
func (p *part) add(i int, cost int64) {
	p.cost += cost
	if last := len(p.spans) - 1; last >= 0 && p.spans[last].end == i {
		p.spans[last].end++
		return
	}
	p.spans = append(p.spans, span{i, i + 1})
}

const (
	// fileCost is what a file costs besides its bytes (open, header, hashing), expressed in bytes, so that a million
	// empty files are spread over parts, too.
	fileCost = 16 << 10
	// minPart keeps parts of small clusters from becoming tiny objects.
	minPart = 16 << 20
	// partsPerWorker is how many parts of a small cluster each worker gets on average: enough to end at about the same time.
	partsPerWorker = 4
)

// plan walks the data directory once and spreads its files over parts of about equal cost, in the order of the walk.
func plan(ctx context.Context, dir string, control pgdata.Control, major int, tablespaces []pgdata.Tablespace, d *delta, o Options, log *slog.Logger) (*job, error) {
	j := &job{dir: dir, options: o, log: log, relBlocks: control.SegmentBlocks, delta: d, owners: map[int]owner{}, pages: map[int]pgdata.PageReport{}}
	var cost int64
	var costs []int64 // of a delta
	err := pgdata.Walk(ctx, dir, pgdata.WalkOptions{
		TablespaceVersionDir: pgdata.TablespaceVersionDir(major, control.CatalogVersion),
		OnLink: func(name, target string) {
			if name == "pg_wal" {
				j.contents.WALLink = target
			}
		},
		OnSkip: func(name, reason string) { log.Warn("not part of the backup", "file", name, "reason", reason) },
	}, func(e pgdata.Entry) error {
		if inYoungerTablespace(e.Name, tablespaces) {
			return nil
		}
		f := catalog.File{Name: e.Name, Mode: e.Mode, Size: e.Size, MTime: e.ModTime.UnixNano(), Link: e.Link}
		switch e.Kind {
		case pgdata.Dir:
			f.Type, f.Size = catalog.Directory, 0
		case pgdata.Symlink:
			f.Type, f.Size = catalog.Symlink, 0
		}
		j.contents.DataSize += e.Size
		i, err := j.contents.Files.Add(f)
		if err != nil {
			return fmt.Errorf("cannot back up %s: %w", dir, err)
		}
		reads, skip := f.Size, false
		if d != nil {
			reads, skip = d.expect(j.relBlocks, f)
			if skip {
				j.contents.Files.Skipped(i, f.Size)
			}
			costs = append(costs, reads+fileCost)
		}
		j.total += reads
		if !skip {
			cost += reads + fileCost
		}
		if e.Kind != pgdata.File {
			j.owners[i] = owner{uint32(e.UID), uint32(e.GID)}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if d != nil {
		j.contents.Files.AsDelta()
	}
	target := min(o.PartSize, max(minPart, cost/int64(o.Workers*partsPerWorker)))
	j.spread(target, costs)
	return j, nil
}

// inYoungerTablespace tells whether an entry lies in a tablespace that was created after the backup had begun. WAL replay
// creates such a tablespace, and would find its place taken.
func inYoungerTablespace(name string, known []pgdata.Tablespace) bool {
	rest, inside := strings.CutPrefix(name, "pg_tblspc/")
	if !inside {
		return false
	}
	oid, _, _ := strings.Cut(rest, "/")
	return !slices.ContainsFunc(known, func(t pgdata.Tablespace) bool { return strconv.FormatUint(uint64(t.OID), 10) == oid })
}

// spread fills parts up to target; a file that fills a part by itself gets one of its own. costs are those of the entries where they
// differ from their sizes.
func (j *job) spread(target int64, costs []int64) {
	open := -1
	for i := range j.contents.Files.Len() {
		if j.contents.Files.At(i).Stored == catalog.Elsewhere {
			continue
		}
		cost := j.contents.Files.Size(i) + fileCost
		if costs != nil {
			cost = costs[i]
		}
		n := open
		if open < 0 || cost >= target {
			n = len(j.parts)
			j.parts = append(j.parts, part{})
		}
		j.contents.Files.Place(i, n)
		j.parts[n].add(i, cost)
		switch {
		case cost >= target:
		case j.parts[n].cost >= target:
			open = -1
		default:
			open = n
		}
	}
	j.contents.Parts = make([]catalog.Part, len(j.parts))
}

// task is a part to be written.
type task struct {
	part int
	wide bool // several of its blocks are to be compressed at the same time
}

// workList returns the parts in the order in which to work on them, the longest first, so that no long one is left for the end. One that
// is left all the same, since it is longer than what all shorter ones give each of the other workers to do, is wide: so the processors
// do not idle while one works on the largest table. Where they would not, to do several blocks at once only costs memory. There are fewer of
// these than workers, so that all of them are begun at once: WideParts bounds how many there are.
func (j *job) workList() []task {
	tasks := make([]task, len(j.parts))
	var left int64
	for i, p := range j.parts {
		tasks[i].part = i
		left += p.cost
	}
	slices.SortStableFunc(tasks, func(a, b task) int { return cmp.Compare(j.parts[b.part].cost, j.parts[a.part].cost) })
	wide := 0
	for i := range min(len(tasks), j.options.Workers-1) {
		cost := j.parts[tasks[i].part].cost
		left -= cost
		others := int64(j.options.Workers - i - 1)
		if wide < j.options.WideParts && cost > minPart && cost > left/others/10*11 {
			tasks[i].wide = true
			wide++
		}
	}
	return tasks
}
