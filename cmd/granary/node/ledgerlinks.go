package node

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/tracker"
)

const (
	ledgerFor  = 31 * 24 * time.Hour // that an hour is remembered
	maxLinks   = 64                  // then all others are one
	otherLinks = "other"
)

// crossed is what came in, what went out, and what was asked for, in bytes.
type crossed struct {
	In    int64 `json:"in"` // or moved
	Out   int64 `json:"out"`
	Asked int64 `json:"asked,omitempty"`
}

func (c *crossed) add(o crossed) { c.In, c.Out, c.Asked = c.In+o.In, c.Out+o.Out, c.Asked+o.Asked }

// learnLinks takes what a file has of links.
func (l *ledger) learnLinks(links map[string]map[int64]crossed) {
	for link, hours := range links {
		for at, c := range hours {
			if c.In < 0 || c.Out < 0 || c.Asked < 0 {
				continue
			}
			if l.links[link] == nil {
				l.links[link] = make(map[int64]*crossed)
			}
			l.links[link][at] = &c
		}
	}
}

// hourOf returns when the hour of a time began, on the clock of its place.
func hourOf(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), 0, 0, 0, t.Location())
}

func dayOf(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, t.Location())
}

// add counts what crosses a link.
func (l *ledger) add(link string, in, out int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count(link, crossed{In: in, Out: out})
}

// count is add; l.mu is held.
func (l *ledger) count(link string, c crossed) {
	if c == (crossed{}) {
		return
	}
	if l.links[link] == nil && len(l.links) >= maxLinks && !strings.HasPrefix(link, chunk.OfParent("")) { // of which limits are
		link = otherLinks
	}
	hours := l.links[link]
	if hours == nil {
		hours = make(map[int64]*crossed)
		l.links[link] = hours
	}
	at := hourOf(l.now()).Unix()
	if hours[at] == nil {
		hours[at] = new(crossed)
		l.prune(hours)
	}
	hours[at].add(c)
	l.total(link).add(c)
	l.changed = true
}

// expect has a link counted from 0 on, and not from when something crosses it first.
func (l *ledger) expect(link string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total(link)
}

// total returns what crossed a link since the process was started; l.mu is held.
func (l *ledger) total(link string) *crossed {
	if l.totals[link] == nil {
		l.totals[link] = new(crossed)
	}
	return l.totals[link]
}

// addZones counts what was exchanged with members of other zones since it was called last.
func (l *ledger) addZones(zone string, peers []p2p.PeerStatus) {
	before := l.peers
	l.peers = make(map[tracker.ID]exchanged, len(peers))
	for _, p := range peers {
		if p.Zone == zone {
			continue
		}
		now, then := exchanged{p.Received, p.Sent}, before[p.ID]
		l.peers[p.ID] = now
		if now.received < then.received || now.sent < then.sent { // it was away, and is counted anew
			then = exchanged{}
		}
		l.add("zone "+p.Zone, now.received-then.received, now.sent-then.sent)
	}
}

// prune forgets what is old; l.mu is held.
func (l *ledger) prune(hours map[int64]*crossed) {
	oldest := l.now().Add(-ledgerFor).Unix()
	for at := range hours {
		if at < oldest {
			delete(hours, at)
		}
	}
}

// since returns what has crossed a link since the beginning of an hour.
func (l *ledger) since(link string, begin time.Time) crossed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sum(l.links[link], begin)
}

func (l *ledger) sum(hours map[int64]*crossed, begin time.Time) (sum crossed) {
	for at, c := range hours {
		if at >= begin.Unix() {
			sum.add(*c)
		}
	}
	return sum
}

// Carried is what a link carried in a time, and what it was spared, see [ledger].
type Carried struct {
	In    int64 `json:"in"` // or moved
	Out   int64 `json:"out"`
	Asked int64 `json:"asked"` // for; 0 for links that nothing is asked for of, such as those to children
	Saved int64 `json:"saved"`
}

func (c crossed) carried() Carried { return Carried{c.In, c.Out, c.Asked, saved(c.Asked, c.In)} }

// Link is what a link carried, in bytes: this hour, today, and in the last 31 days.
type Link struct {
	Link  string  `json:"link"` // "parent NAME", "child NAME", "gateway", "registry HOST" or "zone NAME"
	Hour  Carried `json:"hour"`
	Today Carried `json:"today"`
	Month Carried `json:"month"`
}

// sums returns the links of which anything is known, those with most first.
func (l *ledger) sums() (all []Link) {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for link, hours := range l.links {
		since := func(begin time.Time) Carried { return l.sum(hours, begin).carried() }
		all = append(all, Link{link, since(hourOf(now)), since(dayOf(now)), since(now.Add(-ledgerFor))})
	}
	slices.SortFunc(all, func(a, b Link) int {
		return cmp.Or(cmp.Compare(b.Month.In+b.Month.Out, a.Month.In+a.Month.Out), cmp.Compare(a.Link, b.Link))
	})
	return all
}

// HourOfLink is what a link carried in an hour.
type HourOfLink struct {
	At time.Time `json:"at"` // when the hour began
	Carried
}

// LinkHistory is a link hour by hour, as far as anything crossed it.
type LinkHistory struct {
	Link  string       `json:"link"`
	Hours []HourOfLink `json:"hours"`
}

// history returns all that is remembered.
func (l *ledger) history() []LinkHistory {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := []LinkHistory{}
	for link, hours := range l.links {
		h := LinkHistory{Link: link}
		for at, c := range hours {
			h.Hours = append(h.Hours, HourOfLink{time.Unix(at, 0), c.carried()})
		}
		slices.SortFunc(h.Hours, func(a, b HourOfLink) int { return a.At.Compare(b.At) })
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b LinkHistory) int { return cmp.Compare(a.Link, b.Link) })
	return all
}
