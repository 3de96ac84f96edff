package tracker

import (
	"container/list"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// maxProviders is how many providers of one blob are remembered. More would not be
// asked, and nobody may fill the memory with them.
const maxProviders = 64

// Providers remembers which members have said that they hold a blob in full. What
// it knows is a hint: a provider may have lost the blob since. It may be used by
// several goroutines.
type Providers struct {
	max int
	ttl time.Duration
	now func() time.Time

	mu    sync.Mutex
	blobs map[digest.Digest]*list.Element // of order
	order list.List                       // of *provided, the blob that was announced longest ago first
}

type provided struct {
	blob digest.Digest
	by   []provider // who announced it longest ago first
}

type provider struct {
	id    ID
	until time.Time
}

// NewProviders returns a record of the max blobs, at least one, that were announced
// last. A provider that does not announce a blob again is forgotten after ttl.
func NewProviders(max int, ttl time.Duration) *Providers {
	return NewProvidersAt(time.Now, max, ttl)
}

// NewProvidersAt is NewProviders with a clock.
func NewProvidersAt(now func() time.Time, max int, ttl time.Duration) *Providers {
	return &Providers{max: max, ttl: ttl, now: now, blobs: make(map[digest.Digest]*list.Element)}
}

// Announce records that a member holds a blob.
func (p *Providers) Announce(d digest.Digest, id ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	e, ok := p.blobs[d]
	if !ok {
		e = p.order.PushBack(&provided{blob: d})
		p.blobs[d] = e
	}
	p.order.MoveToBack(e)
	b := e.Value.(*provided)
	b.by = slices.DeleteFunc(b.by, func(other provider) bool { return other.id == id || !now.Before(other.until) })
	b.by = append(b.by, provider{id, now.Add(p.ttl)})
	b.by = b.by[max(0, len(b.by)-maxProviders):]
	p.trim(now)
}

// trim drops the blobs that are too many, and those that are expired; p.mu is held.
func (p *Providers) trim(now time.Time) {
	for e := p.order.Front(); e != p.order.Back(); e = p.order.Front() {
		by := e.Value.(*provided).by
		if len(p.blobs) <= p.max && now.Before(by[len(by)-1].until) {
			return
		}
		p.drop(e)
	}
}

func (p *Providers) drop(e *list.Element) {
	delete(p.blobs, e.Value.(*provided).blob)
	p.order.Remove(e)
}

// Withdraw records that a member does not hold a blob.
func (p *Providers) Withdraw(d digest.Digest, id ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e, ok := p.blobs[d]; ok {
		p.strike(e, id)
	}
}

// Forget records that a member holds nothing.
func (p *Providers) Forget(id ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.blobs {
		p.strike(e, id)
	}
}

// strike removes a provider of a blob, and the blob with its last; p.mu is held.
func (p *Providers) strike(e *list.Element, id ID) {
	b := e.Value.(*provided)
	b.by = slices.DeleteFunc(b.by, func(other provider) bool { return other.id == id })
	if len(b.by) == 0 {
		p.drop(e)
	}
}

// Of returns the members that hold a blob, at most 64. Who announced it last is
// first: it is the likeliest to hold it still.
func (p *Providers) Of(d digest.Digest) []ID {
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.blobs[d]
	if !ok {
		return nil
	}
	now := p.now()
	var ids []ID
	for _, by := range slices.Backward(e.Value.(*provided).by) {
		if now.Before(by.until) {
			ids = append(ids, by.id)
		}
	}
	return ids
}
