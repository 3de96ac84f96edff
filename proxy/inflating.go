package proxy

import (
	"sync"

	"github.com/granary-oci/granary/toc"
)

// inflating are the extents that somebody is inflating, or has another member inflate, so
// that who wants one too waits for that in place of doing it again. The zero value is ready to use.
type inflating struct {
	mu  sync.Mutex
	all map[toc.Digest]*inflation
}

// inflation is one that is under way.
type inflation struct {
	order *order        // of what is fetched for it
	over  chan struct{} // closed when it has ended
}

// begin takes it on to inflate an extent, for which is fetched in some order. If somebody
// else has, it returns that.
func (i *inflating) begin(d toc.Digest, o *order) (other *inflation, done func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if other := i.all[d]; other != nil {
		return other, nil
	}
	if i.all == nil {
		i.all = make(map[toc.Digest]*inflation)
	}
	own := &inflation{o, make(chan struct{})}
	i.all[d] = own
	return nil, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		delete(i.all, d)
		close(own.over)
	}
}

// Begin implements [toc.Sharer]. A program does not wait for what others only expect
// longer than it would without them: what they fetch for that is fetched for the program.
func (c *contents) Begin(x toc.Extent) (done func()) {
	other, done := c.inflating.begin(x.Digest, orderOf(c.ctx))
	if other == nil {
		return done
	}
	if urgencyOf(c.ctx) == demanded {
		c.turns.hurry(other.order)
	}
	defer c.turns.wait(c.ctx)()
	select {
	case <-other.over:
	case <-c.ctx.Done():
	}
	return nil
}
