package gossip

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/tracker"
)

// maxDeliveries bounds to how many members announcements are on their way at once.
const maxDeliveries = 32

// keepAnnouncing sends what is to be told, and tells what the membership's changes
// and time make necessary, until ctx ends.
func (g *Gossip) keepAnnouncing(ctx context.Context) {
	var deliveries sync.WaitGroup
	defer deliveries.Wait()
	flush := time.NewTicker(g.pace.flush)
	defer flush.Stop()
	refresh := time.NewTimer(jitter(g.pace.refresh))
	defer refresh.Stop()

	changed := g.Changed()
	g.announcer.place(g.roster.current())
	var settled <-chan time.Time // runs since a change
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			changed, settled = nil, time.After(g.pace.settle)
			g.roster.current() // so that who left is forgotten at once
		case <-settled:
			changed, settled = g.Changed(), nil
			g.announcer.place(g.roster.current())
		case <-refresh.C:
			g.announcer.refresh()
			refresh.Reset(jitter(g.pace.refresh))
		case <-flush.C:
			for _, d := range g.announcer.take() {
				deliveries.Go(func() { g.deliver(ctx, d) })
			}
		}
	}
}

// deliver tells one member what it is to be told. If that fails, the member is left
// alone for a while, and told then.
func (g *Gossip) deliver(ctx context.Context, d delivery) {
	defer g.announcer.done(d.to.peer.ID)
	if err := g.announcer.deliver(d); err != nil {
		g.cfg.Log.Debug("announcement failed", "peer", d.to.peer.ID, "error", err)
		sleep(ctx, g.pace.retry)
	}
}

// news is what a member is to be told of blobs: whether they are held.
type news map[digest.Digest]bool

type delivery struct {
	to   member
	news news
}

// announcer knows what this member holds, and what others are still to be told.
type announcer struct {
	self      tracker.ID
	providers *tracker.Providers
	send      func(member, []byte) error

	mu      sync.Mutex
	held    map[digest.Digest]struct{}
	placed  *placement // the keepers of what is held have been told, or pend, by this state
	pending map[tracker.ID]news
	busy    map[tracker.ID]struct{} // members to whom news are on the way, so that they stay in order
}

func newAnnouncer(self tracker.ID, providers *tracker.Providers, placed *placement, send func(member, []byte) error) *announcer {
	return &announcer{
		self: self, providers: providers, send: send, placed: placed,
		held:    make(map[digest.Digest]struct{}),
		pending: make(map[tracker.ID]news),
		busy:    make(map[tracker.ID]struct{}),
	}
}

func (a *announcer) announce(d digest.Digest) {
	if d.Validate() != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held[d] = struct{}{}
	a.tell(d, true, a.placed.keepers(d))
}

func (a *announcer) withdraw(d digest.Digest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.held[d]; ok {
		delete(a.held, d)
		a.tell(d, false, a.placed.keepers(d))
		a.providers.Withdraw(d, a.self) // it may have been a keeper before
	}
}

// tell notes what keepers of a blob are to be told; a.mu is held.
func (a *announcer) tell(d digest.Digest, hold bool, keepers []keeper) {
	for _, k := range keepers {
		switch {
		case k.id != a.self:
			if a.pending[k.id] == nil {
				a.pending[k.id] = make(news)
			}
			a.pending[k.id][d] = hold
		case hold:
			a.providers.Announce(d, a.self)
		default:
			a.providers.Withdraw(d, a.self)
		}
	}
}

// keeper is a member that keeps note of who holds a blob, and loses its notes when
// it is started again.
type keeper struct {
	id   tracker.ID
	boot uint64
}

func (p *placement) keepers(d digest.Digest) []keeper {
	var keepers []keeper
	for _, peer := range p.view.Keepers(string(d), tracker.Copies) {
		keepers = append(keepers, keeper{peer.ID, p.members[peer.ID].boot})
	}
	return keepers
}

// place tells the keepers that blobs have in a new state, and did not have in the
// one before.
func (a *announcer) place(now *placement) {
	a.mu.Lock()
	before := a.placed
	a.placed = now
	a.mu.Unlock()
	if before == now {
		return
	}
	a.tellAll(func(d digest.Digest) []keeper {
		known := before.keepers(d)
		return slices.DeleteFunc(now.keepers(d), func(k keeper) bool { return slices.Contains(known, k) })
	})
}

// refresh tells all keepers of all blobs.
func (a *announcer) refresh() {
	a.mu.Lock()
	now := a.placed
	a.mu.Unlock()
	a.tellAll(now.keepers)
}

// tellAll tells keepers of every blob. There may be very many blobs, and who
// announces one more does not wait for them.
func (a *announcer) tellAll(keepers func(digest.Digest) []keeper) {
	a.mu.Lock()
	held := slices.Collect(maps.Keys(a.held))
	a.mu.Unlock()
	for _, d := range held {
		to := keepers(d)
		a.mu.Lock()
		if _, ok := a.held[d]; ok { // not withdrawn since
			a.tell(d, true, to)
		}
		a.mu.Unlock()
	}
}

// take returns what members are to be told now. Each is busy until done. What those
// should know who are members no more is dropped.
func (a *announcer) take() (taken []delivery) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, n := range a.pending {
		m, ok := a.placed.members[id]
		if !ok {
			delete(a.pending, id)
			continue
		}
		if _, ok := a.busy[id]; ok || len(a.busy) >= maxDeliveries {
			continue
		}
		delete(a.pending, id)
		a.busy[id] = struct{}{}
		taken = append(taken, delivery{m, n})
	}
	return taken
}

func (a *announcer) done(id tracker.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.busy, id)
}

// deliver sends what a member is to be told. If that fails, all of it pends again,
// but for what has been overtaken.
func (a *announcer) deliver(d delivery) error {
	var announced, withdrawn []digest.Digest
	for blob, hold := range d.news {
		if hold {
			announced = append(announced, blob)
		} else {
			withdrawn = append(withdrawn, blob)
		}
	}
	messages := append(message{false, a.self, withdrawn}.encode(), message{true, a.self, announced}.encode()...)
	for _, p := range messages {
		if err := a.send(d.to, p); err != nil {
			a.restore(d.to.peer.ID, d.news)
			return err
		}
	}
	return nil
}

func (a *announcer) restore(id tracker.ID, n news) {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.Copy(n, a.pending[id])
	a.pending[id] = n
}
