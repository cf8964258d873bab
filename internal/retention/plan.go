// Package retention decides which backups and which WAL may go from an archive, and removes them in safe order.
//
// A [Request] says what an operator wants. [New] makes a [Plan] of it from an inventory of the archive: pure, so that it can be shown
// before anything is done, and tried on thousands of archives that never were. [Plan.Apply] carries it out.
//
// What is promised, and checked before the first removal: every backup that stays keeps the backups that it is based on, its WAL from
// start to end, and what follows of the log without a new gap (of a permanent one older than all that was asked to stay: the WAL from
// start to end). The newest backup of the cluster that can be restored stays, unless everything is to go. Backups are ordered by the
// cluster and the time that they record, never by name. Nothing goes that the format does not know.
package retention

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"gitlab.com/walden-pg/walden/internal/catalog"
	"gitlab.com/walden-pg/walden/internal/hint"
	"gitlab.com/walden-pg/walden/internal/wal"
)

// Verb is what is asked for.
type Verb string

// The verbs.
const (
	Retain     Verb = "retain"
	Before     Verb = "before"
	Target     Verb = "target"
	Everything Verb = "everything"
	Garbage    Verb = "garbage"
)

// Modifier says which backup stands for one that is based on others.
type Modifier string

// The modifiers.
const (
	Plain    Modifier = ""
	Full     Modifier = "FULL"      // count full backups only
	FindFull Modifier = "FIND_FULL" // the full backup that it is based on
)

// Request is what an operator asks for.
type Request struct {
	Verb     Verb
	Modifier Modifier        // of Retain, Before and Target
	Count    int             // Retain: this many backups that can be restored
	Days     int             // Retain, in place of Count: every moment of so many days stays restorable
	After    string          // Retain with Count: and everything from this name or time (RFC 3339) on; "" for none
	Point    string          // Before: a name, the beginning of one, or a time; Target: a name or LATEST
	UserData json.RawMessage // Target, in place of Point
	Force    bool            // Everything: permanent backups as well
	WAL      bool            // Garbage: WAL that no backup needs
	Leftover bool            // Garbage: what unfinished backups have left
	NoBackup bool            // Garbage: WAL goes even where only permanent backups are there, or none, to say which is old
}

// staleAfter is how long nothing was added to an unfinished backup before it counts as given up. The limits of stalls and retries end
// every writer long before.
const staleAfter = 24 * time.Hour

// Decision is what becomes of one backup, and why.
type Decision struct {
	Backup catalog.Backup
	Goes   bool
	Reason string
}

// Leftover is what becomes of an unfinished backup, and why.
type Leftover struct {
	Unfinished catalog.Unfinished
	Goes       bool
	Active     bool // it may be a backup under way
	Reason     string
}

// Kept are archived files that stay for one reason.
type Kept struct {
	Reason      string
	Count       int
	Size        int64
	First, Last string // names
}

// Windows are the moments to which one timeline can be recovered.
type Windows struct {
	Timeline wal.Timeline
	Windows  []catalog.Window
}

// Plan is what is to be removed, in this order, and what stays.
type Plan struct {
	Request       Request
	Backups       []Decision // in their order, oldest first
	Unfinished    []Leftover
	WAL           []catalog.WALFile // that goes, oldest first
	Fingerprints  []catalog.WALFile // that go, after the WAL
	Kept          []Kept
	Foreign       []string // what the format does not know; it stays
	Identity      bool     // the record of the cluster goes as well
	Freed         int64    // bytes, as far as recorded
	Before, After []Windows
}

// Empty tells whether nothing is to be removed.
func (p *Plan) Empty() bool {
	return len(p.WAL) == 0 && len(p.Fingerprints) == 0 && !p.Identity && p.going() == 0
}

// Objects is how many backups, leftovers and archived files are to be removed.
func (p *Plan) Objects() int { return p.going() + len(p.WAL) + len(p.Fingerprints) }

func (p *Plan) going() int {
	n := 0
	for _, d := range p.Backups {
		if d.Goes {
			n++
		}
	}
	for _, u := range p.Unfinished {
		if u.Goes {
			n++
		}
	}
	return n
}

// errNothing says that no backup stands where the request points; nothing is to be removed then.
var errNothing = errors.New("no backup found for deletion")

// New makes the plan. The inventory is not changed. now is what days are counted back from.
func New(inv *catalog.Inventory, r Request, now time.Time) (*Plan, error) {
	p := &planner{inv: inv, coverage: inv.Coverage(), request: r, now: now, reasons: map[string]string{}}
	p.order()
	if err := p.chooseBackups(); err != nil {
		return nil, err
	}
	p.chooseUnfinished()
	plan := p.plan()
	p.chooseWAL(plan)
	plan.Before = windows(p.coverage)
	after := plan.remaining(inv)
	left := after.Coverage()
	plan.After = windows(left)
	if err := plan.check(inv, p.coverage, left); err != nil {
		return nil, fmt.Errorf("cannot delete: the plan would break a promise, and nothing was deleted: %w", err)
	}
	return plan, nil
}

type planner struct {
	inv      *catalog.Inventory
	coverage *catalog.Coverage
	request  Request
	now      time.Time

	backups  []catalog.Backup  // in order
	reasons  map[string]string // name → why it stays
	boundary int               // the first backup in the order that was asked to stay
	goes     map[string]bool
	onward   map[string]bool // backups that stay with all the log that follows
	nothing  bool            // no backup stands where the request points
	leftover []Leftover
}

// order sorts the backups: those of the archive's present cluster after all others, and each cluster's by the time of their start.
// One that does not record its cluster is taken for one of the cluster whose backup came before it.
func (p *planner) order() {
	p.backups = slices.Clone(p.inv.Backups)
	slices.SortStableFunc(p.backups, func(a, b catalog.Backup) int {
		return cmp.Or(a.When().Compare(b.When()), cmp.Compare(a.Name, b.Name))
	})
	cluster := uint64(0)
	for _, b := range p.backups {
		if cluster = b.SystemIdentifier; cluster != 0 {
			break
		}
	}
	of := map[string]uint64{}
	newest := map[uint64]int{} // cluster → its newest backup
	for i, b := range p.backups {
		cluster = cmp.Or(b.SystemIdentifier, cluster)
		of[b.Name] = cluster
		newest[cluster] = i
	}
	if _, known := newest[p.inv.Identity.Current.SystemIdentifier]; known {
		newest[p.inv.Identity.Current.SystemIdentifier] = len(p.backups)
	}
	slices.SortStableFunc(p.backups, func(a, b catalog.Backup) int { return cmp.Compare(newest[of[a.Name]], newest[of[b.Name]]) })
}

// position returns the place of a backup in the order, -1 if it is not there.
func (p *planner) position(name string) int {
	return slices.IndexFunc(p.backups, func(b catalog.Backup) bool { return b.Name == name })
}

// root returns the place of the full backup that the backup at i is based on.
func (p *planner) root(i int) (int, error) {
	for met := 0; ; met++ {
		b := p.backups[i]
		if b.Delta == nil {
			return i, nil
		}
		base := p.position(b.Delta.From)
		if base < 0 || met > len(p.backups) {
			return 0, fmt.Errorf("cannot find the full backup that %s is based on: %q is not there", b.Name, b.Delta.From)
		}
		i = base
	}
}

func (p *planner) chooseBackups() error {
	p.goes, p.onward = map[string]bool{}, map[string]bool{}
	p.boundary = len(p.backups)
	r := p.request
	var err error
	switch r.Verb {
	case Retain:
		if r.Days > 0 {
			p.chooseByDays()
			break
		}
		if p.boundary, err = p.nth(); err == nil && r.After != "" {
			var after int
			if after, err = p.from(r.After, r.Modifier); err == nil {
				p.boundary = min(p.boundary, after)
			}
		}
		p.chooseOlder()
	case Before:
		p.boundary, err = p.from(r.Point, r.Modifier)
		p.chooseOlder()
	case Target:
		err = p.chooseFamily()
	case Everything:
		return p.chooseEverything()
	case Garbage:
		p.boundary = 0
		p.chooseOlder()
	}
	if errors.Is(err, errNothing) {
		clear(p.goes)
		p.nothing, p.boundary, err = true, 0, nil
		p.chooseOlder()
	}
	if err != nil {
		return err
	}
	return p.protect()
}

// nth finds the backup with which the number to be retained is reached. Only such count as can be restored.
func (p *planner) nth() (int, error) {
	left := p.request.Count
	for i := len(p.backups) - 1; i >= 0; i-- {
		b := p.backups[i]
		if p.coverage.Unrestorable(b) != nil || p.request.Modifier == Full && b.Delta != nil {
			continue
		}
		if left--; left == 0 {
			return p.modified(i, p.request.Modifier)
		}
	}
	return 0, errNothing
}

// modified is the backup that stands for the one at i.
func (p *planner) modified(i int, m Modifier) (int, error) {
	switch {
	case p.backups[i].Delta == nil:
		return i, nil
	case m == FindFull, m == Full:
		return p.root(i)
	}
	return 0, hint.With(fmt.Errorf("cannot delete what is older than %s: it is a delta backup, and what it is based on cannot be deleted", p.backups[i].Name),
		"FIND_FULL before the number or the name takes the full backup that it is based on")
}

// from finds the backup that a name or a time points to: the newest whose name begins so, or the oldest that was not started before.
func (p *planner) from(point string, m Modifier) (int, error) {
	at, err := time.Parse(time.RFC3339, point)
	if err != nil {
		for i := len(p.backups) - 1; i >= 0; i-- {
			if strings.HasPrefix(p.backups[i].Name, point) {
				return p.modified(i, m)
			}
		}
		return 0, notFound(point)
	}
	if at.After(p.now) {
		return 0, fmt.Errorf("cannot delete what is older than %s: that time is in the future", point)
	}
	for i, b := range p.backups {
		if !b.When().Before(at) {
			return p.modified(i, m)
		}
	}
	return 0, errNothing
}

func notFound(point string) error {
	return hint.With(fmt.Errorf("cannot delete: there is no backup %q: %w", point, fs.ErrNotExist), "`walden backup-list` shows what is there")
}

// chooseOlder lets everything before the boundary go.
func (p *planner) chooseOlder() {
	for i, b := range p.backups {
		if i < p.boundary {
			p.goes[b.Name] = true
		} else {
			p.onward[b.Name] = true
			p.reasons[b.Name] = "not older than " + p.backups[min(p.boundary, len(p.backups)-1)].Name
		}
	}
}

// chooseByDays keeps what was completed in the last days, and for each timeline that was written to in that time the newest backup
// from before, with which its log can be recovered.
func (p *planner) chooseByDays() {
	since := p.now.AddDate(0, 0, -p.request.Days)
	needed := map[string]bool{}
	for _, timeline := range p.written(since) {
		for i := len(p.backups) - 1; i >= 0; i-- {
			b := p.backups[i]
			if !b.Ended().After(since) && p.coverage.LeadsTo(b, timeline) && p.coverage.Unrestorable(b) == nil {
				needed[b.Name] = true
				break
			}
		}
	}
	p.boundary = len(p.backups)
	for i, b := range p.backups {
		switch {
		case b.Ended().After(since):
			p.reasons[b.Name] = fmt.Sprintf("completed in the last %d days", p.request.Days)
		case needed[b.Name]:
			p.reasons[b.Name] = fmt.Sprintf("the last %d days begin with it", p.request.Days)
		default:
			p.goes[b.Name] = true
			continue
		}
		p.onward[b.Name] = true
		p.boundary = min(p.boundary, i)
	}
}

// written returns the timelines to which WAL was archived since then, and those of the backups.
func (p *planner) written(since time.Time) []wal.Timeline {
	list := map[wal.Timeline]bool{}
	for _, f := range p.inv.WAL {
		if f.Timeline > 0 && !f.Modified.Before(since) {
			list[f.Timeline] = true
		}
	}
	if n := len(p.backups); n > 0 {
		if timeline, _, ok := p.backups[n-1].First(); ok {
			list[timeline] = true
		}
	}
	return slices.Sorted(maps.Keys(list))
}

// chooseFamily lets one backup go with all that are based on it.
func (p *planner) chooseFamily() error {
	i, err := p.aim()
	if err != nil && slices.ContainsFunc(p.inv.Unfinished, func(u catalog.Unfinished) bool { return u.Removed && u.Name == p.request.Point }) {
		return errNothing // but what is left of it
	}
	if err == nil && p.request.Modifier == FindFull {
		i, err = p.root(i)
	}
	if err != nil {
		return err
	}
	p.boundary = 0
	p.goes[p.backups[i].Name] = true
	for grown := true; grown; {
		grown = false
		for _, b := range p.backups {
			if b.Delta != nil && p.goes[b.Delta.From] && !p.goes[b.Name] {
				p.goes[b.Name], grown = true, true
			}
		}
	}
	var permanent []string
	for _, b := range p.backups {
		switch {
		case !p.goes[b.Name]:
			p.onward[b.Name], p.reasons[b.Name] = true, "not asked for"
		case b.Permanent:
			permanent = append(permanent, b.Name)
		}
	}
	if len(permanent) > 0 {
		return hint.With(fmt.Errorf("cannot delete %s: %s permanent", p.backups[i].Name, areOrIs(permanent)),
			"`walden backup-mark --impermanent NAME` takes the mark away")
	}
	for _, name := range p.guards() {
		if p.goes[name] {
			return hint.With(fmt.Errorf("cannot delete %s: %s is the newest backup of the cluster that can be restored", p.backups[i].Name, name),
				"take another backup first; `walden delete everything` empties the archive")
		}
	}
	return nil
}

func areOrIs(names []string) string {
	if len(names) == 1 {
		return names[0] + " is"
	}
	return strings.Join(names, ", ") + " are"
}

// aim finds the backup that Target names.
func (p *planner) aim() (int, error) {
	r := p.request
	switch {
	case r.UserData != nil:
		var found []int
		for i, b := range p.backups {
			if b.HasUserData(r.UserData) {
				found = append(found, i)
			}
		}
		if len(found) == 1 {
			return found[0], nil
		}
		return 0, fmt.Errorf("cannot delete: %d backups have the user data %s", len(found), r.UserData)
	case r.Point == "LATEST":
		for i := len(p.backups) - 1; i >= 0; i-- {
			if p.backups[i].Problem == nil {
				return i, nil
			}
		}
		return 0, fmt.Errorf("cannot delete LATEST: %w", catalog.ErrNoBackups)
	}
	if i := p.position(r.Point); i >= 0 {
		return i, nil
	}
	return 0, notFound(r.Point)
}

func (p *planner) chooseEverything() error {
	var permanent []string
	for _, b := range p.backups {
		p.goes[b.Name] = true
		if b.Permanent {
			permanent = append(permanent, b.Name)
		}
	}
	if len(permanent) > 0 && !p.request.Force {
		return hint.With(fmt.Errorf("cannot delete everything: %s permanent", areOrIs(permanent)), "`walden delete everything FORCE` deletes them as well")
	}
	return nil
}

// guards are the backups that never go: of the present cluster the newest that can be restored, and where that has corrupt pages also
// the newest without.
func (p *planner) guards() []string {
	var names []string
	for i := len(p.backups) - 1; i >= 0; i-- {
		b := p.backups[i]
		if p.coverage.Unrestorable(b) != nil || b.CorruptBlocks > 0 && len(names) > 0 {
			continue
		}
		names = append(names, b.Name)
		if b.CorruptBlocks == 0 {
			break
		}
	}
	return names
}

// protect takes back what must not go.
func (p *planner) protect() error {
	for _, b := range p.backups {
		switch {
		case !p.goes[b.Name] || p.request.Verb == Target:
		case b.Permanent:
			p.keep(b, "permanent", false)
		case b.Problem != nil:
			p.keep(b, "it cannot be used, and so not be judged ("+b.Problem.Error()+"); `delete target` removes it", true)
		}
	}
	for _, name := range p.guards() {
		if p.goes[name] {
			p.keep(p.backups[p.position(name)], "the newest backup that can be restored, or the newest without corrupt pages", true)
		}
	}
	for _, u := range p.inv.Unfinished {
		for _, b := range p.backups {
			if p.goes[b.Name] && b.WALFile() == u.BaseFile() && b.WALFile() != "" && p.underWay(u) {
				p.keep(b, u.Name+" may be under way, and is based on it", true)
			}
		}
	}
	for _, b := range slices.Clone(p.backups) {
		for met := 0; !p.goes[b.Name] && b.Delta != nil && met <= len(p.backups); met++ {
			i := p.position(b.Delta.From)
			if i < 0 {
				break
			}
			base := p.backups[i]
			if p.goes[base.Name] {
				p.keep(base, b.Name+" is based on it", true)
			}
			b = base
		}
	}
	return nil
}

func (p *planner) keep(b catalog.Backup, reason string, onward bool) {
	delete(p.goes, b.Name)
	p.reasons[b.Name] = reason
	p.onward[b.Name] = p.onward[b.Name] || onward
}

// chooseUnfinished lets go what has no sentinel and cannot be a backup under way.
func (p *planner) chooseUnfinished() {
	floor, known := p.floor()
	for _, u := range p.inv.Unfinished {
		l := Leftover{Unfinished: u}
		_, position, _ := catalog.PositionOf(strings.TrimPrefix(u.Name, "base_"))
		switch {
		case p.request.Verb == Everything:
			l.Goes, l.Reason = true, "everything goes"
		case u.Removed:
			l.Goes, l.Reason = true, "its removal was begun before"
		case p.underWay(u):
			l.Active = true
			l.Reason = fmt.Sprintf("it may be a backup under way%s: its newest object was written at %s", writer(u), u.Modified.UTC().Format(time.RFC3339))
		case p.request.Verb == Garbage && p.request.Leftover,
			(p.request.Verb == Retain || p.request.Verb == Before) && known && position < floor:
			l.Goes, l.Reason = true, "nothing was added to it since "+u.Modified.UTC().Format(time.RFC3339)
		default:
			l.Reason = "not asked for; `delete garbage BACKUPS` removes it"
		}
		p.leftover = append(p.leftover, l)
	}
}

// underWay tells whether somebody may be writing the backup still.
func (p *planner) underWay(u catalog.Unfinished) bool {
	return !u.Removed && p.now.Sub(u.Modified) <= staleAfter
}

func writer(u catalog.Unfinished) string {
	if u.Hostname == "" {
		return ""
	}
	return fmt.Sprintf(" on host %s", u.Hostname)
}

// floor is the position before which no backup that stays needs the log, apart from that of permanent ones up to their end; false if
// there is no such backup.
func (p *planner) floor() (catalog.Position, bool) {
	floor, known := catalog.Position(0), false
	lower := func(to catalog.Position) {
		if !known || to < floor {
			floor, known = to, true
		}
	}
	for _, b := range p.backups {
		_, first, ok := b.First()
		_, ended := b.Last(p.inv.SegmentSize)
		switch {
		case p.goes[b.Name], !ok:
		case p.onward[b.Name], !b.Permanent, !ended:
			lower(first)
		}
	}
	return floor, known
}

func (p *planner) plan() *Plan {
	plan := &Plan{Request: p.request, Unfinished: p.leftover, Foreign: p.inv.Foreign, Identity: p.request.Verb == Everything &&
		p.inv.Identity.Current.SystemIdentifier != 0}
	for _, b := range p.backups {
		d := Decision{Backup: b, Goes: p.goes[b.Name], Reason: p.reasons[b.Name]}
		if d.Goes {
			d.Reason = "asked for"
			plan.Freed += b.CompressedSize
		}
		plan.Backups = append(plan.Backups, d)
	}
	for _, u := range p.leftover {
		if u.Goes {
			plan.Freed += u.Unfinished.Size
		}
	}
	return plan
}

// chooseWAL decides about each archived file.
func (p *planner) chooseWAL(plan *Plan) {
	w := p.wal()
	kept := map[string]*Kept{}
	var order []string
	for _, f := range p.inv.WAL {
		reason := w.stays(f)
		if reason == "" {
			plan.WAL = append(plan.WAL, f)
			plan.Freed += f.Size
			continue
		}
		k := kept[reason]
		if k == nil {
			k = &Kept{Reason: reason, First: f.Name}
			kept[reason] = k
			order = append(order, reason)
		}
		k.Count++
		k.Size += f.Size
		k.Last = f.Name
	}
	for _, f := range p.inv.Fingerprints {
		if w.stays(f) == "" {
			plan.Fingerprints = append(plan.Fingerprints, f)
			plan.Freed += f.Size
		}
	}
	for _, reason := range order {
		plan.Kept = append(plan.Kept, *kept[reason])
	}
	// Along a line of descent the log ages with its position, whatever the timeline; histories go last.
	slices.SortStableFunc(plan.WAL, func(a, b catalog.WALFile) int {
		if a.Kind != b.Kind && (a.Kind == catalog.WALHistory || b.Kind == catalog.WALHistory) {
			if a.Kind == catalog.WALHistory {
				return 1
			}
			return -1
		}
		return cmp.Or(cmp.Compare(a.Position, b.Position), cmp.Compare(a.Timeline, b.Timeline), cmp.Compare(a.Name, b.Name))
	})
}

func windows(c *catalog.Coverage) []Windows {
	var list []Windows
	for _, timeline := range c.Timelines() {
		if w := c.Windows(timeline); len(w) > 0 {
			list = append(list, Windows{timeline, w})
		}
	}
	return list
}
