package proxy

import (
	"sync"

	"github.com/granary-oci/granary/proxy/lazy"
	"github.com/granary-oci/granary/toc"
)

// inflating are the extents that somebody is inflating, or has another member inflate, so
// that who wants one too waits for that in place of doing it again. The zero value is ready to use.
type inflating struct {
	mu  sync.Mutex
	all map[inflationKey]*inflation
}

// inflationKey is an extent as it is read from a layer of a repository: who reads another
// layer, or from elsewhere, waits for nobody here, for that may take as long as somebody
// likes.
type inflationKey struct {
	from   lazy.Origin
	extent toc.Extent
}

// inflation is one that is under way.
type inflation struct {
	order *order        // of what is fetched for it
	over  chan struct{} // closed when it has ended
}

// begin takes it on to inflate an extent, for which is fetched in some order. If somebody
// else has, it returns that.
func (i *inflating) begin(k inflationKey, o *order) (other *inflation, done func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if other := i.all[k]; other != nil {
		return other, nil
	}
	if i.all == nil {
		i.all = make(map[inflationKey]*inflation)
	}
	own := &inflation{o, make(chan struct{})}
	i.all[k] = own
	return nil, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		delete(i.all, k)
		close(own.over)
	}
}

// Begin implements [toc.Sharer]. What others fetch for an extent that they only expect is
// fetched for the program that waits for it now, or in the order of who expects it sooner.
func (c *contents) Begin(x toc.Extent) (done func()) {
	own := orderOf(c.ctx)
	other, done := c.inflating.begin(inflationKey{c.origin, x}, own)
	if other == nil {
		return done
	}
	switch urgencyOf(c.ctx) {
	case demanded:
		c.turns.hurry(other.order)
	case expected:
		c.turns.sooner(other.order, c.turns.placeOf(own))
	}
	defer c.turns.wait(c.ctx)()
	select {
	case <-other.over:
	case <-c.ctx.Done():
	}
	return nil
}
