package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/tracker"
)

const (
	ledgerName    = "ledger.json"
	maxLedgerFile = 16 << 20 // bytes
	ledgerEvery   = time.Minute
	ledgerFor     = 31 * 24 * time.Hour // that an hour is remembered
	maxLinks      = 64                  // then all others are one
	otherLinks    = "other"
)

// ledger counts what crosses each link to the outside, by the hours of the node's clock: to parents, to
// children, to who asks the gateway, to registries and to other zones. It outlives the process, for links are paid for by the
// day. It is safe for concurrent use.
type ledger struct {
	path  string // "" keeps nothing
	now   func() time.Time
	peers map[tracker.ID]exchanged // as they were counted last; addZones' own

	mu      sync.Mutex
	links   map[string]map[int64]*crossed // by the Unix time of the hour's beginning
	totals  map[string]*crossed           // since the process was started
	changed bool
}

// crossed is what came in and what went out, in bytes.
type crossed struct {
	In  int64 `json:"in"`
	Out int64 `json:"out"`
}

func (c *crossed) add(o crossed) { c.In, c.Out = c.In+o.In, c.Out+o.Out }

// openLedger reads the ledger of a data directory, "" for none. One that cannot be read begins anew.
func openLedger(dataDir string) (*ledger, error) {
	l := &ledger{now: time.Now, links: make(map[string]map[int64]*crossed), totals: make(map[string]*crossed)}
	if dataDir == "" {
		return l, nil
	}
	l.path = filepath.Join(dataDir, ledgerName)
	err := readKept(l.path, maxLedgerFile, &l.links)
	if err != nil || l.links == nil {
		l.links = make(map[string]map[int64]*crossed)
		return l, err
	}
	for link, hours := range l.links {
		for at, c := range hours {
			if c == nil || c.In < 0 || c.Out < 0 {
				delete(hours, at)
			}
		}
		if hours == nil {
			delete(l.links, link)
		}
	}
	return l, nil
}

// readKept reads what a node has kept as JSON; without the file v stays as it is.
func readKept(name string, most int64, v any) error {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Size() > most {
		return fmt.Errorf("%s: it is too large", name)
	}
	p, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(p, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
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
	if in == 0 && out == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
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
	hours[at].add(crossed{in, out})
	l.total(link).add(crossed{in, out})
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

// Link is what crossed a link, in bytes: this hour, today, and in the last 31 days.
type Link struct {
	Link  string  `json:"link"` // "parent NAME", "child NAME", "gateway", "registry HOST" or "zone NAME"
	Hour  crossed `json:"hour"`
	Today crossed `json:"today"`
	Month crossed `json:"month"`
}

// sums returns the links of which anything is known, those with most first.
func (l *ledger) sums() (all []Link) {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for link, hours := range l.links {
		all = append(all, Link{link, l.sum(hours, hourOf(now)), l.sum(hours, dayOf(now)), l.sum(hours, now.Add(-ledgerFor))})
	}
	slices.SortFunc(all, func(a, b Link) int {
		return cmp.Or(cmp.Compare(b.Month.In+b.Month.Out, a.Month.In+a.Month.Out), cmp.Compare(a.Link, b.Link))
	})
	return all
}

// HourOfLink is what crossed a link in an hour.
type HourOfLink struct {
	At time.Time `json:"at"` // when the hour began
	crossed
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
			h.Hours = append(h.Hours, HourOfLink{time.Unix(at, 0), *c})
		}
		slices.SortFunc(h.Hours, func(a, b HourOfLink) int { return a.At.Compare(b.At) })
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b LinkHistory) int { return cmp.Compare(a.Link, b.Link) })
	return all
}

var linkBytes = prometheus.NewDesc("granary_link_bytes_total", "Bytes that crossed each link to parents, children, registries and other zones.", []string{"link", "direction"}, nil)

// Describe implements [prometheus.Collector].
func (l *ledger) Describe(all chan<- *prometheus.Desc) { all <- linkBytes }

// Collect implements [prometheus.Collector].
func (l *ledger) Collect(all chan<- prometheus.Metric) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for link, c := range l.totals {
		all <- prometheus.MustNewConstMetric(linkBytes, prometheus.CounterValue, float64(c.In), link, "in")
		all <- prometheus.MustNewConstMetric(linkBytes, prometheus.CounterValue, float64(c.Out), link, "out")
	}
}

// run keeps the ledger until ctx ends.
func (l *ledger) run(ctx context.Context, report func(error)) {
	tick := time.NewTicker(ledgerEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		if err := l.save(); err != nil {
			report(err)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

func (l *ledger) save() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.path == "" || !l.changed {
		return nil
	}
	p, err := json.Marshal(l.links)
	if err == nil {
		err = chunkstore.WriteDurably(l.path, p)
	}
	l.changed = err != nil
	return err
}
