package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/tracker"
)

// Bounds of preheats.
const (
	maxPreheatRefs   = 64      // of one
	maxShownPreheats = 8       // in the node's status
	maxPreheats      = 32      // that are remembered, and that are not over
	preheatAtOnce    = 2       // images of one
	maxPreheatBody   = 1 << 19 // bytes: less than an order may have
	preheatMembers   = 64      // others that bring images at once
	preheatFor       = 6 * time.Hour
	preheatAskEvery  = time.Second
	preheatSilence   = 30 * time.Second // of a member, after which it has failed
)

// Preheat says which images are to be brought where before anybody pulls them. It is what
// /api/v1/preheat takes.
type Preheat struct {
	Refs     []string `json:"refs"`
	Platform string   `json:"platform,omitempty"` // OS/ARCH[/VARIANT], or all; "" is the node's own
	// AllNodes means all members of the cluster, and Zone those of a zone. Without either it is
	// the node alone.
	AllNodes bool    `json:"allNodes,omitempty"`
	Zone     *string `json:"zone,omitempty"`
	// At is when, as HH:MM, which is the next such time on the node's clock, or in RFC 3339, at most
	// 31 days ahead; "" is now. The node keeps it, and orders it of others then.
	At string `json:"at,omitempty"`
	// Wait makes the answer last until the preheat is over, a line for each change.
	Wait bool `json:"wait,omitempty"`
	// Authorization are values of that header by registry, with which the images are read. They
	// are kept in memory for as long as that takes, and are told to no member of a cluster
	// that has no secret. With At there may be none.
	Authorization map[string]string `json:"authorization,omitempty"`
}

// States of a preheat and its parts.
const (
	preheatScheduled = "scheduled"
	preheatWaiting   = "waiting"
	preheatRunning   = "running"
	preheatDone      = "done"
	preheatFailed    = "failed"
)

// PreheatStatus is how far a preheat is.
type PreheatStatus struct {
	ID       string        `json:"id"`
	Refs     []string      `json:"refs"`
	Platform string        `json:"platform"`
	State    string        `json:"state"`           // scheduled, running, done or failed
	Error    string        `json:"error,omitempty"` // of all of it; nodes and images have their own
	At       time.Time     `json:"at,omitzero"`     // when it was to begin, if it has a time
	Started  time.Time     `json:"started,omitzero"`
	Ended    time.Time     `json:"ended,omitzero"`
	Nodes    []PreheatNode `json:"nodes"`
}

// PreheatNode is how far one member is with it.
type PreheatNode struct {
	ID     tracker.ID     `json:"id,omitempty"` // "" for a node alone
	Name   string         `json:"name,omitempty"`
	Zone   string         `json:"zone,omitempty"`
	State  string         `json:"state"` // waiting, running, done or failed
	Error  string         `json:"error,omitempty"`
	Images []PreheatImage `json:"images,omitempty"`
}

// PreheatImage is how far a member is with one image.
type PreheatImage struct {
	Ref   string `json:"ref"`
	State string `json:"state"` // waiting, running, done or failed
	Error string `json:"error,omitempty"`
	proxy.WarmStatus
}

// preheats are those that run, and those that were over last.
type preheats struct {
	start chan *preheating
	path  string // of the schedule

	mu  sync.Mutex
	all []*preheating // the oldest first
}

// preheating is a preheat.
type preheating struct {
	id       string
	refs     []ref.Reference
	platform *ocispec.Platform
	shown    Preheat // as it was asked for, without secrets
	callers  map[string]access.Caller
	told     map[string]string // to other members
	members  []tracker.Peer    // others that are to do the same
	images   []*preheatImage
	over     chan struct{}
	cancel   func() // as somebody has asked for
	stop     func() // with the node
	ctx      context.Context

	at        time.Time // when it is to begin; zero is at once
	notBefore time.Time // but when members have found each other
	done      bool      // it is in the schedule no more; the mutex of preheats guards it

	mu      sync.Mutex
	started time.Time // zero until its time has come
	ended   time.Time
	why     error         // it was not begun
	others  []PreheatNode // as members have it
}

type preheatImage struct {
	want    ref.Reference
	warming proxy.Warming

	mu    sync.Mutex
	state string
	err   string
}

// errTooManyPreheats says that others have to end first.
var errTooManyPreheats = fmt.Errorf("%d preheats are not over yet", maxPreheats)

var errNoPreheat = errors.New("not found")

// preheat begins to bring images. It does not wait for them.
func (n *Node) preheat(q Preheat) (*preheating, error) {
	p, err := n.newPreheat(q)
	if err == nil {
		err = p.schedule(q)
	}
	if err == nil {
		err = p.choose(n) // anew when it has its time; what is wrong is said now
	}
	if err == nil {
		err = n.preheats.add(p)
	}
	if err != nil {
		return nil, err
	}
	n.preheats.start <- p // which has room for all that are not over
	return p, nil
}

func (n *Node) newPreheat(q Preheat) (*preheating, error) {
	if err := n.keeps(); err != nil {
		return nil, err
	}
	if n.cfg.Keep == keepNone {
		return nil, errors.New("preheat: the node keeps nothing of what passes through it (--keep=none)")
	}
	if len(q.Refs) == 0 || len(q.Refs) > maxPreheatRefs {
		return nil, fmt.Errorf("preheat: %d references; want 1 to %d", len(q.Refs), maxPreheatRefs)
	}
	p := &preheating{id: strings.ToLower(rand.Text()[:12]), over: make(chan struct{}), callers: make(map[string]access.Caller)}
	var err error
	if q.Platform = cmp.Or(q.Platform, "linux/"+runtime.GOARCH); q.Platform != "all" {
		if p.platform, err = graph.ParsePlatform(q.Platform); err != nil {
			return nil, fmt.Errorf("preheat: %w, or all", err)
		}
	}
	for host, authorization := range q.Authorization {
		if host, err = ref.CanonicalHost(host); err != nil {
			return nil, fmt.Errorf("preheat: authorization: %w", err)
		}
		if p.callers[host], err = access.FromHeader(http.Header{"Authorization": {authorization}}); err != nil {
			return nil, fmt.Errorf("preheat: authorization for %s: %w", host, err)
		}
	}
	for _, s := range q.Refs {
		want, err := ref.Parse(s, n.cfg.DefaultUpstream)
		if err != nil {
			return nil, fmt.Errorf("preheat: %w", err)
		}
		p.refs = append(p.refs, want)
		if !q.elsewhere(n) {
			p.images = append(p.images, &preheatImage{want: want, state: preheatWaiting})
		}
	}
	if n.cluster != nil && !n.cfg.InsecureCluster {
		p.told = q.Authorization
	}
	q.Authorization, q.Refs, q.At, q.Wait = nil, p.refTexts(), "", false
	p.shown = q
	ctx, cancel := context.WithCancelCause(context.Background())
	p.ctx, p.cancel, p.stop = ctx, func() { cancel(errEnded) }, func() { cancel(errStopped) }
	return p, nil
}

// choose finds the members that are to do the same, as they are now.
func (p *preheating) choose(n *Node) (err error) {
	if p.members, err = n.chosenMembers(p.shown); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.others = nil
	for _, m := range p.members {
		p.others = append(p.others, PreheatNode{ID: m.ID, Name: m.Name, Zone: m.Zone, State: preheatWaiting})
	}
	return nil
}

// others reports whether a preheat is for more than this node.
func (q Preheat) others() bool { return q.AllNodes || q.Zone != nil }

// elsewhere reports whether a preheat is for a zone that this node is not in.
func (q Preheat) elsewhere(n *Node) bool { return q.Zone != nil && *q.Zone != n.cfg.Zone }

// chosenMembers returns the other members that a preheat is for.
func (n *Node) chosenMembers(q Preheat) ([]tracker.Peer, error) {
	switch {
	case !q.others():
		return nil, nil
	case q.AllNodes && q.Zone != nil:
		return nil, errors.New("preheat: all nodes, or those of a zone?")
	case n.cluster == nil && q.Zone == nil:
		return nil, nil
	case n.cluster == nil:
		return nil, errors.New("preheat: the node is no member of a cluster, and there are no zones")
	}
	members := n.cluster.client.Others(q.Zone)
	if len(members) == 0 && q.elsewhere(n) {
		return nil, fmt.Errorf("preheat: there is no member in zone %q", *q.Zone)
	}
	return members, nil
}

// add remembers a preheat, and keeps one that has a time.
func (ps *preheats) add(p *preheating) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if err := ps.remember(p); err != nil || p.at.IsZero() {
		return err
	}
	if err := ps.keep(); err != nil {
		ps.all = ps.all[:len(ps.all)-1]
		p.cancel()
		return fmt.Errorf("preheat: it cannot be kept until its time: %w", err)
	}
	return nil
}

// remember remembers a preheat, in the place of the oldest that is over; ps.mu is held.
func (ps *preheats) remember(p *preheating) error {
	waiting := 0
	for _, o := range ps.all {
		if !o.at.IsZero() && !o.done {
			waiting++
		}
	}
	if !p.at.IsZero() && waiting >= maxScheduled {
		p.cancel()
		return errTooManyScheduled
	}
	if len(ps.all) >= maxPreheats {
		i := slices.IndexFunc(ps.all, (*preheating).isOver)
		if i < 0 {
			p.cancel()
			return errTooManyPreheats
		}
		ps.all = slices.Delete(ps.all, i, i+1)
	}
	ps.all = append(ps.all, p)
	return nil
}

func (ps *preheats) find(id string) (*preheating, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.all {
		if p.id == id {
			return p, nil
		}
	}
	return nil, fmt.Errorf("there is no preheat %q, or not any more: %w", id, errNoPreheat)
}

// recent returns those that run and those that were over last, the latest first, at most some, and
// all that are scheduled.
func (ps *preheats) recent(most int) (all []*preheating) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for i, p := range slices.Backward(ps.all) {
		if len(ps.all)-i <= most || !p.at.IsZero() && !p.done {
			all = append(all, p)
		}
	}
	return all
}
