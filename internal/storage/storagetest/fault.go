package storagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"

	"gitlab.com/walden-pg/walden/internal/storage"
)

// ErrInjected is what a [Fault] reports unless its rule names another error.
var ErrInjected = errors.New("injected fault")

// Op names a method of [storage.Store].
type Op string

// The methods of a store that a [Fault] records and can let fail.
const (
	OpPut    Op = "Put"
	OpPutNew Op = "PutNew"
	OpGet    Op = "Get"
	OpStat   Op = "Stat"
	OpList   Op = "List"
	OpDelete Op = "Delete"
	OpCheck  Op = "Check"
)

// Call is one call of a store's method as the caller made it. A Delete of n keys is one call.
type Call struct {
	Op   Op
	Key  string   // the key, or the directory of a List; the first key of a Delete
	Keys []string // all keys of a Delete
}

// String names method and object, as a backend's error does.
func (c Call) String() string { return fmt.Sprintf("%s %q", strings.ToLower(string(c.Op)), c.Key) }

// Kind is a way to fail. A rule never meets a method that its kind does not apply to.
type Kind int

// Kinds are all ways to fail.
func Kinds() []Kind {
	return []Kind{Before, Half, AnswerLost, Hang, HangHalf, FlipBit, Truncate, Empty, Disorder, Stale}
}

// AppliesTo tells whether a call of op can fail in this way.
func (k Kind) AppliesTo(op Op) bool { return slices.Contains(appliesTo[k], op) }

// String is the kind's name.
func (k Kind) String() string {
	names := []string{"Before", "Half", "AnswerLost", "Hang", "HangHalf", "FlipBit", "Truncate", "Empty", "Disorder", "Stale"}
	if k < 0 || int(k) >= len(names) {
		return "Kind(" + strconv.Itoa(int(k)) + ")"
	}
	return names[k]
}

const (
	// Before: an error, and nothing was done. All methods.
	Before Kind = iota
	// Half: an error after half of it. Put and PutNew pass half of the bytes on before their reader fails, a
	// Get's body fails after half of its bytes, List after half of its entries, Delete after half of its keys.
	Half
	// AnswerLost: it was carried out, and an error is reported. Put, PutNew, Delete.
	AnswerLost
	// Hang: nothing happens until the context ends; the error is the context's. All methods.
	Hang
	// HangHalf: as Half, but hanging instead of failing. Put, PutNew, Get, List.
	HangHalf
	// FlipBit: one bit in the middle of the body is wrong. Get; the object must not be empty.
	FlipBit
	// Truncate: the body ends after half of its bytes with a plain io.EOF. Get.
	Truncate
	// Empty: the body, or the listing, ends at once without an error. Get, List.
	Empty
	// Disorder: the entries come in descending order. List.
	Disorder
	// Stale: the entries are those from before everything written and deleted through the Fault. List.
	Stale
)

var appliesTo = map[Kind][]Op{
	Before:     {OpPut, OpPutNew, OpGet, OpStat, OpList, OpDelete, OpCheck},
	Half:       {OpPut, OpPutNew, OpGet, OpList, OpDelete},
	AnswerLost: {OpPut, OpPutNew, OpDelete},
	Hang:       {OpPut, OpPutNew, OpGet, OpStat, OpList, OpDelete, OpCheck},
	HangHalf:   {OpPut, OpPutNew, OpGet, OpList},
	FlipBit:    {OpGet},
	Truncate:   {OpGet},
	Empty:      {OpGet, OpList},
	Disorder:   {OpList},
	Stale:      {OpList},
}

// Rule says which calls fail and how.
type Rule struct {
	Kind  Kind
	Match func(Call) bool // which calls the rule looks at; nil means all that its kind applies to
	Nth   int             // the n-th of those fails, counting from 1; 0 means each of them
	// ForGood, with Nth: all later calls of the same method for the same key fail as well, so that no repetition helps.
	ForGood bool
	Err     error // what is reported, with the name of the object before it; nil means ErrInjected
}

// Fault is a store around a store that records all calls and lets some of them fail. It serves sweeps: with one
// rule {Kind: k, Nth: i}, run the job for i = 1, 2, … until [Fault.Fired] says that there was no i-th call.
type Fault struct {
	inner storage.Store
	rules []Rule

	mu     sync.Mutex
	calls  []Call
	met    []int   // per rule, how many calls it has looked at
	first  []*Call // per rule, the call that it made to fail first
	struck []Call
	before map[string]*storage.Object // what stood under a key before its first change; nil: nothing
}

// NewFault returns a Fault around s. Of several rules for one call the first decides. Without rules it only records.
func NewFault(s storage.Store, rules ...Rule) *Fault {
	return &Fault{inner: s, rules: rules, met: make([]int, len(rules)), first: make([]*Call, len(rules)), before: map[string]*storage.Object{}}
}

// Calls returns the calls so far in the order in which they began.
func (f *Fault) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Count returns how many calls of op there were.
func (f *Fault) Count(op Op) int {
	n := 0
	for _, c := range f.Calls() {
		if c.Op == op {
			n++
		}
	}
	return n
}

// Fired tells whether any call was made to fail.
func (f *Fault) Fired() bool { return len(f.Struck()) > 0 }

// Struck returns the calls that were made to fail, in the order in which they began.
func (f *Fault) Struck() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.struck)
}

// Forget drops the recorded calls. The rules keep their counts.
func (f *Fault) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = nil
}

// healthy stands for a call that no rule lets fail.
const healthy Kind = -1

// meet records a call and returns how it shall fail. Before and Hang are dealt with here.
func (f *Fault) meet(ctx context.Context, c Call) (kind Kind, fault, err error) {
	kind, fault = f.decide(c)
	switch kind {
	case Before:
		return kind, nil, fault
	case Hang:
		<-ctx.Done()
		return kind, nil, ctx.Err()
	}
	return kind, fault, nil
}

func (f *Fault) decide(c Call) (Kind, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, c)
	kind, fault := healthy, error(nil)
	for i, r := range f.rules {
		if !r.Kind.AppliesTo(c.Op) || r.Match != nil && !r.Match(c) {
			continue
		}
		f.met[i]++
		if kind != healthy || !f.fails(i, c) {
			continue
		}
		if f.first[i] == nil {
			f.first[i] = &c
		}
		f.struck = append(f.struck, c)
		kind, fault = r.Kind, r.Err
		if fault == nil {
			fault = ErrInjected
		}
		fault = fmt.Errorf("cannot %s in %s: %w", c, f.inner, fault)
	}
	return kind, fault
}

// fails tells whether rule i lets the call fail that it has just met.
func (f *Fault) fails(i int, c Call) bool {
	r, first := f.rules[i], f.first[i]
	return r.Nth == 0 || r.Nth == f.met[i] || r.ForGood && first != nil && first.Op == c.Op && first.Key == c.Key
}

func (f *Fault) String() string { return f.inner.String() }

// Check implements storage.Store.
func (f *Fault) Check(ctx context.Context) error {
	if _, _, err := f.meet(ctx, Call{Op: OpCheck}); err != nil {
		return err
	}
	return f.inner.Check(ctx)
}

// Stat implements storage.Store.
func (f *Fault) Stat(ctx context.Context, key string) (storage.Object, error) {
	if _, _, err := f.meet(ctx, Call{Op: OpStat, Key: key}); err != nil {
		return storage.Object{}, err
	}
	return f.inner.Stat(ctx, key)
}

// Put implements storage.Store.
func (f *Fault) Put(ctx context.Context, key string, r io.Reader) error {
	return f.put(ctx, OpPut, key, r, f.inner.Put)
}

// PutNew implements storage.Store.
func (f *Fault) PutNew(ctx context.Context, key string, r io.Reader) error {
	return f.put(ctx, OpPutNew, key, r, f.inner.PutNew)
}

func (f *Fault) put(ctx context.Context, op Op, key string, r io.Reader,
	put func(context.Context, string, io.Reader) error) error {
	kind, fault, err := f.meet(ctx, Call{Op: op, Key: key})
	if err != nil {
		return err
	}
	f.remember(ctx, key)
	switch kind {
	case Half, HangHalf:
		whole, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		half := bytes.NewReader(whole[:len(whole)/2])
		if kind == HangHalf {
			return put(ctx, key, io.MultiReader(half, hangingReader{ctx}))
		}
		return put(ctx, key, io.MultiReader(half, failingReader{fault}))
	case AnswerLost:
		if err := put(ctx, key, r); err != nil {
			return err
		}
		return fault
	}
	return put(ctx, key, r)
}

// Get implements storage.Store.
func (f *Fault) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	kind, fault, err := f.meet(ctx, Call{Op: OpGet, Key: key})
	if err != nil {
		return nil, err
	}
	body, err := f.inner.Get(ctx, key)
	if err != nil || kind == healthy {
		return body, err
	}
	o, err := f.inner.Stat(ctx, key)
	if err != nil {
		return nil, errors.Join(err, body.Close())
	}
	half := io.LimitReader(body, o.Size/2)
	var r io.Reader
	switch kind {
	case Half:
		r = io.MultiReader(half, failingReader{fault})
	case HangHalf:
		r = io.MultiReader(half, hangingReader{ctx})
	case FlipBit:
		r = &flippingReader{r: body, at: o.Size / 2}
	case Truncate:
		r = half
	case Empty:
		r = io.LimitReader(body, 0)
	}
	return struct {
		io.Reader
		io.Closer
	}{r, body}, nil
}

// List implements storage.Store.
func (f *Fault) List(ctx context.Context, dir string) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		kind, fault, err := f.meet(ctx, Call{Op: OpList, Key: dir})
		if err != nil {
			yield(storage.Object{}, err)
			return
		}
		if kind == healthy {
			f.inner.List(ctx, dir)(yield)
			return
		}
		var entries []storage.Object
		if kind == Stale {
			entries, err = f.stale(ctx, dir)
		} else {
			entries, err = collect(f.inner.List(ctx, dir))
		}
		if err != nil {
			yield(storage.Object{}, err)
			return
		}
		switch kind {
		case Half, HangHalf:
			entries = entries[:len(entries)/2]
		case Empty:
			entries = nil
		case Disorder:
			slices.Reverse(entries)
		}
		for _, o := range entries {
			if !yield(o, nil) {
				return
			}
		}
		switch kind {
		case Half:
			yield(storage.Object{}, fault)
		case HangHalf:
			<-ctx.Done()
			yield(storage.Object{}, ctx.Err())
		}
	}
}

// Delete implements storage.Store.
func (f *Fault) Delete(ctx context.Context, keys ...string) error {
	c := Call{Op: OpDelete, Keys: slices.Clone(keys)}
	if len(keys) > 0 {
		c.Key = keys[0]
	}
	kind, fault, err := f.meet(ctx, c)
	if err != nil {
		return err
	}
	for _, key := range keys {
		f.remember(ctx, key)
	}
	if kind == Half {
		keys = keys[:len(keys)/2]
	}
	if err := f.inner.Delete(ctx, keys...); err != nil || kind == healthy {
		return err
	}
	return fault
}

// remember notes what stands under key before it is changed for the first time, for stale listings.
func (f *Fault) remember(ctx context.Context, key string) {
	if !slices.ContainsFunc(f.rules, func(r Rule) bool { return r.Kind == Stale }) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.before[key]; known {
		return
	}
	f.before[key] = nil
	if o, err := f.inner.Stat(ctx, key); err == nil {
		f.before[key] = &o
	}
}

// stale lists dir as it was before the Fault changed anything.
func (f *Fault) stale(ctx context.Context, dir string) ([]storage.Object, error) {
	now, err := collect(f.inner.List(ctx, dir))
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	changed := make(map[string]*storage.Object, len(f.before))
	for key, o := range f.before {
		if strings.HasPrefix(key, dir) {
			changed[key] = o
		}
	}
	f.mu.Unlock()

	then := map[string]storage.Object{}
	for _, o := range now {
		if o.IsDir() {
			below, err := f.stale(ctx, o.Key)
			if err != nil {
				return nil, err
			}
			if len(below) > 0 {
				then[o.Key] = o
			}
		} else if _, ok := changed[o.Key]; !ok {
			then[o.Key] = o
		}
	}
	for key, o := range changed {
		if o == nil {
			continue
		}
		if name, _, deeper := strings.Cut(key[len(dir):], "/"); deeper {
			then[dir+name+"/"] = storage.Object{Key: dir + name + "/"}
		} else {
			then[key] = *o
		}
	}
	entries := make([]storage.Object, 0, len(then))
	for _, o := range then {
		entries = append(entries, o)
	}
	return sorted(entries), nil
}

func collect(list iter.Seq2[storage.Object, error]) ([]storage.Object, error) {
	var entries []storage.Object
	for o, err := range list {
		if err != nil {
			return entries, err
		}
		entries = append(entries, o)
	}
	return entries, nil
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

type hangingReader struct{ ctx context.Context }

func (r hangingReader) Read([]byte) (int, error) {
	<-r.ctx.Done()
	return 0, r.ctx.Err()
}

type flippingReader struct {
	r  io.Reader
	at int64 // distance from the next byte read to the byte with the wrong bit
}

func (r *flippingReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if 0 <= r.at && r.at < int64(n) {
		p[r.at] ^= 1
	}
	r.at -= int64(n)
	return n, err
}
