package node

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

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
				defer context.AfterFunc(ctx, p.stop)()
				p.run(n)
				if ctx.Err() != nil {
					return // and begins again when the node is started
				}
				if err := n.preheats.done(p); err != nil {
					n.log.Error("a preheat that is over stays scheduled", "id", p.id, "error", err)
				}
			})
		}
	}
}

// run brings the images when it is time, and has other members do so.
func (p *preheating) run(n *Node) {
	defer close(p.over)
	defer p.cancel()
	err := p.begin(n)
	if err == nil {
		p.bring(n)
	} else if p.ctx.Err() == nil {
		n.log.Warn("preheat failed", "id", p.id, "refs", p.refTexts(), "error", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended, p.why = time.Now(), err
	p.callers, p.told = nil, nil
}

// begin waits until it is time, and finds the members that are there then.
func (p *preheating) begin(n *Node) error {
	if p.at.IsZero() {
		return nil
	}
	if err := p.await(); err != nil {
		return err
	}
	if err := p.choose(n); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.started = time.Now()
	return nil
}

func (p *preheating) bring(n *Node) {
	ctx, cancel := context.WithTimeout(p.ctx, preheatFor)
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() { p.here(ctx, n) })
	var others errgroup.Group
	others.SetLimit(preheatMembers)
	for i := range p.members {
		others.Go(func() error { p.there(ctx, n, i); return nil })
	}
	_ = others.Wait() // each says for itself what went wrong
	all.Wait()
}

// here brings the images into this node's store.
func (p *preheating) here(ctx context.Context, n *Node) {
	var g errgroup.Group
	g.SetLimit(preheatAtOnce)
	for _, i := range p.images {
		g.Go(func() error {
			i.set(preheatRunning, nil)
			err := n.registry.Warm(ctx, i.want, p.callers[i.want.Host], p.platform, &i.warming)
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
func (p *preheating) there(ctx context.Context, n *Node, i int) {
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
	if err := ctx.Err(); err != nil {
		fail(err)
		return
	}
	// Who ends this preheat while the order is on its way is to end the member's too, which
	// takes its answer.
	var begun orderedID
	if err := n.pass(context.WithoutCancel(ctx), m.ID, orderPreheat, q, &begun); err != nil {
		fail(err)
		return
	}
	tick := time.NewTicker(preheatAskEvery)
	defer tick.Stop()
	for heard := time.Now(); ; {
		var now PreheatNode
		err := n.pass(ctx, m.ID, orderProgress, begun, &now)
		switch {
		case err == nil:
			heard = time.Now()
			set(func(o *PreheatNode) { o.take(now, len(p.refs)) })
			if now.State != preheatRunning && now.State != preheatWaiting {
				return
			}
		case ctx.Err() != nil:
			fail(ctx.Err())
			if err := n.pass(context.WithoutCancel(ctx), m.ID, orderCancel, begun, &now); err != nil {
				n.log.Info("a member goes on with a preheat that was ended", "id", m.ID, "error", err)
			}
			return
		case time.Since(heard) > preheatSilence:
			fail(err)
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// take takes over what a member says of itself, which may be anything.
func (o *PreheatNode) take(said PreheatNode, refs int) {
	o.State, o.Error, o.Images = clipped(said.State), clipped(said.Error), said.Images[:min(len(said.Images), refs)]
	for i := range o.Images {
		image := &o.Images[i]
		image.Ref, image.State, image.Error, image.Missing = clipped(image.Ref), clipped(image.State), clipped(image.Error), image.Missing[:min(len(image.Missing), maxSaid)]
		for j, m := range image.Missing {
			image.Missing[j] = clipped(m)
		}
	}
}

const (
	maxSaid     = 64      // things that a member says are missing
	maxSaidText = 1 << 10 // bytes of each text
)

func clipped(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxSaidText)], "?") }

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
	s := PreheatStatus{ID: p.id, Refs: p.refTexts(), Platform: p.shown.Platform, At: p.at, Nodes: []PreheatNode{}}
	p.mu.Lock()
	s.Started, s.Ended = p.started, p.ended // before what the images are: of what has ended all is over
	others, why := slices.Clone(p.others), p.why
	p.mu.Unlock()
	if len(p.images) > 0 {
		s.Nodes = append(s.Nodes, p.share(n))
	}
	s.Nodes = append(s.Nodes, others...)
	if s.Started.IsZero() && why == nil && p.ctx.Err() != nil {
		why = context.Cause(p.ctx) // in a moment
	}
	var states []string
	for _, o := range s.Nodes {
		states = append(states, o.State)
	}
	switch s.State = preheatRunning; {
	case why != nil:
		s.State, s.Error = preheatFailed, why.Error()
	case s.Started.IsZero():
		s.State = preheatScheduled
	case !s.Ended.IsZero():
		s.State = together(states)
	}
	return s
}

// maxShownParts bounds what the node's status has of preheats beside the state of each node:
// images, and things that are missing of them. The rest is at /api/v1/preheat/ID.
const maxShownParts = 2000

// preheated tells of the latest preheats, at most some, and of all that are scheduled.
func (n *Node) preheated(most int) []PreheatStatus {
	all, room := []PreheatStatus{}, maxShownParts
	for _, p := range n.preheats.recent(most) {
		all = append(all, p.status(n).within(&room))
	}
	return all
}

// within leaves out the images of nodes for which there is no room.
func (s PreheatStatus) within(room *int) PreheatStatus {
	for i := range s.Nodes {
		parts := 0
		for _, image := range s.Nodes[i].Images {
			parts += 1 + len(image.Missing)
		}
		if parts > *room {
			s.Nodes[i].Images = nil
			continue
		}
		*room -= parts
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
