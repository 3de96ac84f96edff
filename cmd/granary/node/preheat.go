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
	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/chunkstore/chunk"
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
	// Wait makes the answer last until the preheat is over, a line for each change.
	Wait bool `json:"wait,omitempty"`
	// Authorization are values of that header by registry, with which the images are read. They
	// are kept in memory for as long as that takes, and are told to no member of a cluster
	// that has no secret.
	Authorization map[string]string `json:"authorization,omitempty"`
}

// States of a preheat and its parts.
const (
	preheatWaiting = "waiting"
	preheatRunning = "running"
	preheatDone    = "done"
	preheatFailed  = "failed"
)

// PreheatStatus is how far a preheat is.
type PreheatStatus struct {
	ID       string        `json:"id"`
	Refs     []string      `json:"refs"`
	Platform string        `json:"platform"`
	State    string        `json:"state"` // running, done or failed
	Started  time.Time     `json:"started"`
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
	started  time.Time
	members  []tracker.Peer // others that are to do the same
	images   []*preheatImage
	over     chan struct{}
	cancel   context.CancelFunc
	ctx      context.Context

	mu     sync.Mutex
	ended  time.Time
	others []PreheatNode // as members have it
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

// preheat begins to bring images. It does not wait for them.
func (n *Node) preheat(q Preheat) (*preheating, error) {
	p, err := n.newPreheat(q)
	if err != nil {
		return nil, err
	}
	if err := n.preheats.add(p); err != nil {
		return nil, err
	}
	n.preheats.start <- p // which has room for all that are not over
	return p, nil
}

func (n *Node) newPreheat(q Preheat) (*preheating, error) {
	if err := n.keeps(); err != nil {
		return nil, err
	}
	if len(q.Refs) == 0 || len(q.Refs) > maxPreheatRefs {
		return nil, fmt.Errorf("preheat: %d references; want 1 to %d", len(q.Refs), maxPreheatRefs)
	}
	p := &preheating{id: strings.ToLower(rand.Text()[:12]), started: time.Now(), over: make(chan struct{}), callers: make(map[string]access.Caller)}
	var err error
	if q.Platform = cmp.Or(q.Platform, "linux/"+runtime.GOARCH); q.Platform != "all" {
		if p.platform, err = graph.ParsePlatform(q.Platform); err != nil {
			return nil, fmt.Errorf("preheat: %w, or all", err)
		}
	}
	if p.members, err = n.chosenMembers(q); err != nil {
		return nil, err
	}
	for _, m := range p.members {
		p.others = append(p.others, PreheatNode{ID: m.ID, Name: m.Name, Zone: m.Zone, State: preheatWaiting})
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
	q.Authorization = nil
	p.shown = q
	p.ctx, p.cancel = context.WithTimeout(context.Background(), preheatFor)
	return p, nil
}

// elsewhere reports whether a preheat is for a zone that this node is not in.
func (q Preheat) elsewhere(n *Node) bool { return q.Zone != nil && *q.Zone != n.cfg.Zone }

// chosenMembers returns the other members that a preheat is for.
func (n *Node) chosenMembers(q Preheat) ([]tracker.Peer, error) {
	switch {
	case !q.AllNodes && q.Zone == nil:
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

// add remembers a preheat, in the place of the oldest that is over.
func (ps *preheats) add(p *preheating) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
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
	return nil, fmt.Errorf("there is no preheat %q, or not any more: %w", id, chunk.ErrNotFound)
}

// recent returns those that run and those that were over last, the latest first, at most some.
func (ps *preheats) recent(most int) []*preheating {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	all := slices.Clone(ps.all)
	slices.Reverse(all)
	return all[:min(len(all), most)]
}

// runPreheats runs preheats until ctx ends, and them with it.
func (n *Node) runPreheats(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-n.preheats.start:
			all.Go(func() {
				defer context.AfterFunc(ctx, p.cancel)()
				p.run(n)
			})
		}
	}
}

// run brings the images, and has other members do so.
func (p *preheating) run(n *Node) {
	defer close(p.over)
	defer p.cancel()
	var all sync.WaitGroup
	all.Go(func() { p.here(n) })
	all.Go(func() {
		turns := make(chan int, len(p.members))
		for i := range p.members {
			turns <- i
		}
		close(turns)
		var g errgroup.Group
		for range min(len(p.members), maxReports) {
			g.Go(func() error {
				for i := range turns {
					p.there(n, i)
				}
				return nil
			})
		}
		_ = g.Wait() // each says for itself what went wrong
	})
	all.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = time.Now()
	p.callers, p.told = nil, nil
}

// here brings the images into this node's store.
func (p *preheating) here(n *Node) {
	var g errgroup.Group
	g.SetLimit(preheatAtOnce)
	for _, i := range p.images {
		g.Go(func() error {
			i.set(preheatRunning, nil)
			err := n.registry.Warm(p.ctx, i.want, p.callers[i.want.Host], p.platform, &i.warming)
			if err != nil {
				i.set(preheatFailed, err)
				n.log.Info("preheat failed", "ref", i.want.String(), "error", err)
				return nil
			}
			i.set(preheatDone, nil)
			return nil
		})
	}
	_ = g.Wait() // each image says for itself what went wrong
}

// there has another member bring them, and asks it how far it is.
func (p *preheating) there(n *Node, i int) {
	m := p.members[i]
	set := func(change func(*PreheatNode)) {
		p.mu.Lock()
		defer p.mu.Unlock()
		change(&p.others[i])
	}
	fail := func(err error) {
		set(func(o *PreheatNode) { o.State, o.Error = preheatFailed, err.Error() })
	}
	q := Preheat{Refs: p.refTexts(), Platform: p.shown.Platform, Authorization: p.told}
	var begun orderedID
	if err := n.pass(p.ctx, m.ID, orderPreheat, q, &begun); err != nil {
		fail(err)
		return
	}
	tick := time.NewTicker(preheatAskEvery)
	defer tick.Stop()
	for heard := time.Now(); ; {
		var now PreheatNode
		err := n.pass(p.ctx, m.ID, orderProgress, begun, &now)
		switch {
		case err == nil:
			heard = time.Now()
			set(func(o *PreheatNode) { o.State, o.Error, o.Images = now.State, now.Error, now.Images })
			if now.State != preheatRunning && now.State != preheatWaiting {
				return
			}
		case p.ctx.Err() != nil:
			fail(p.ctx.Err())
			stop, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), reportFor)
			defer cancel()
			_ = n.pass(stop, m.ID, orderCancel, begun, &now) // else it comes to its own end
			return
		case time.Since(heard) > preheatSilence:
			fail(err)
			return
		}
		select {
		case <-tick.C:
		case <-p.ctx.Done():
		}
	}
}

func (p *preheating) refTexts() (refs []string) {
	for _, r := range p.refs {
		refs = append(refs, r.String())
	}
	return refs
}

func (p *preheating) isOver() bool {
	select {
	case <-p.over:
		return true
	default:
		return false
	}
}

func (i *preheatImage) set(state string, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.state = state
	if err != nil {
		i.err = err.Error()
	}
}

func (i *preheatImage) status() PreheatImage {
	i.mu.Lock()
	defer i.mu.Unlock()
	return PreheatImage{Ref: i.want.String(), State: i.state, Error: i.err, WarmStatus: i.warming.Status()}
}

// share is what this node does of a preheat.
func (p *preheating) share(n *Node) PreheatNode {
	s := PreheatNode{}
	if n.cluster != nil {
		self := n.cluster.gossip.View().Self()
		s.ID, s.Name, s.Zone = self.ID, self.Name, self.Zone
	}
	var states []string
	for _, i := range p.images {
		image := i.status()
		s.Images = append(s.Images, image)
		states = append(states, image.State)
	}
	s.State = together(states)
	return s
}

// together is the state of what has parts in these states.
func together(states []string) string {
	for _, worst := range []string{preheatRunning, preheatWaiting, preheatFailed} {
		if slices.Contains(states, worst) {
			if worst == preheatWaiting && slices.Contains(states, preheatDone) {
				return preheatRunning
			}
			return worst
		}
	}
	return preheatDone
}

func (p *preheating) status(n *Node) PreheatStatus {
	s := PreheatStatus{ID: p.id, Refs: p.refTexts(), Platform: p.shown.Platform, Started: p.started}
	if len(p.images) > 0 {
		s.Nodes = append(s.Nodes, p.share(n))
	}
	p.mu.Lock()
	s.Nodes = append(s.Nodes, p.others...)
	s.Ended = p.ended
	p.mu.Unlock()
	var states []string
	for _, o := range s.Nodes {
		states = append(states, o.State)
	}
	if s.State = preheatRunning; p.isOver() {
		s.State = together(states)
	}
	return s
}

// orderedPreheat returns this node's share of a preheat that another member has ordered.
func (n *Node) orderedPreheat(id string, cancel bool) (PreheatNode, error) {
	p, err := n.preheats.find(id)
	if err != nil {
		return PreheatNode{}, err
	}
	if cancel {
		p.cancel()
	}
	return p.share(n), nil
}
