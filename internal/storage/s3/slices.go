package s3

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// A page of a listing says where the next one begins, so one page after the other costs a round trip for each 1,000 names: seconds for
// the WAL of some weeks. But a page can be asked for behind any name, and names of WAL are numbers that go up evenly. So after the first page it
// is guessed where those that follow will begin, and the slices between these places are listed at the same time. A bad guess costs
// requests, and nothing else: a slice goes on until its end, however many pages that takes, and the slices leave no gap.
const (
	firstSlices = 2 // twice as many each time, since nobody knows how long the listing is
	mostSlices  = 8
	// fewestDigits is of what length numbers are taken for such.
	fewestDigits = 4
)

// errRepeats tells of a service that does not know where a page is to begin.
var errRepeats = errors.New("the service does not list from where it is asked to")

// listSlices yields what follows the first page, or returns false if that has to be listed page by page; what was yielded comes
// again then.
func (s *Store) listSlices(ctx context.Context, client *s3.Client, prefix string, first page, yield func(page, error) bool) bool {
	names, ok := extrapolate(prefix, first.entries)
	if !ok {
		return false
	}
	after := first.entries[len(first.entries)-1].Key
	for n := min(firstSlices, s.o.Concurrency); ; n = min(2*n, mostSlices, s.o.Concurrency) {
		slices := make([]slice, n)
		g, ctx := errgroup.WithContext(ctx)
		for i := range slices {
			slices[i].after, slices[i].upTo = after, names.next()
			after = slices[i].upTo
			g.Go(func() error { return s.listSlice(ctx, client, prefix, &slices[i]) })
			if after == "" {
				break
			}
		}
		err := g.Wait()
		if errors.Is(err, errRepeats) {
			return false
		}
		if err != nil {
			yield(page{}, err)
			return true
		}
		for _, sl := range slices {
			if !yield(page{entries: sl.entries}, nil) || sl.last {
				return true
			}
			names.passOver(sl.next)
		}
	}
}

// slice is what lies behind one full key up to another, which belongs to it; "" is the end.
type slice struct {
	after, upTo string
	entries     []storage.Object
	next        string // what follows
	last        bool   // nothing does
}

func (s *Store) listSlice(ctx context.Context, client *s3.Client, prefix string, sl *slice) error {
	at := position{after: sl.after}
	for {
		p, err := s.listPage(ctx, client, prefix, "/", at, 0)
		if err != nil {
			return err
		}
		storage.Moved(ctx)
		for _, o := range p.entries {
			if o.Key < sl.after {
				return errRepeats
			}
			if sl.upTo != "" && o.Key > sl.upTo {
				sl.next = o.Key
				return nil
			}
			sl.entries = append(sl.entries, o)
		}
		if p.next == "" {
			sl.last = true
			return nil
		}
		if p.next == at.token {
			return errors.New("the service repeats the same page of the listing")
		}
		at = position{token: p.next}
	}
}

// numbers are names that go up evenly.
type numbers struct {
	prefix   string
	digits   int
	at, step *big.Int
	over     bool // what follows is no such number
}

// value returns the number that a full key begins with, nil for none of the right length.
func (n *numbers) value(key string) *big.Int {
	name := strings.TrimPrefix(key, n.prefix)
	digits := len(name) - len(strings.TrimLeft(name, "0123456789ABCDEF"))
	if n.digits == 0 && digits >= fewestDigits {
		n.digits = digits
	}
	if digits != n.digits || digits == 0 {
		return nil
	}
	v, _ := new(big.Int).SetString(name[:digits], 16)
	return v
}

// extrapolate finds out by how much names go up from one page to the next, if they are numbers of one length, as those of WAL are.
func extrapolate(prefix string, entries []storage.Object) (numbers, bool) {
	n := numbers{prefix: prefix}
	if len(entries) == 0 {
		return n, false
	}
	if n.at = n.value(entries[len(entries)-1].Key); n.at == nil {
		return n, false
	}
	for _, o := range entries {
		if first := n.value(o.Key); first != nil {
			n.step = first.Sub(n.at, first)
			break
		}
	}
	return n, n.step.Sign() > 0
}

// passOver is told of a key before which there is nothing more, so that no gap is searched slice by slice.
func (n *numbers) passOver(key string) {
	v := n.value(key)
	if n.over = v == nil; !n.over && v.Cmp(n.at) > 0 {
		n.at = v
	}
}

// next returns the next full key of which is guessed that a page ends there; "" if there are no more numbers of that length.
func (n *numbers) next() string {
	if n.over {
		return ""
	}
	n.at = new(big.Int).Add(n.at, n.step)
	name := fmt.Sprintf("%0*X", n.digits, n.at)
	if len(name) > n.digits {
		return ""
	}
	return n.prefix + name
}
