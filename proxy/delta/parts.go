package delta

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

const (
	partChunks = 8   // that one part of a map is of: few, so that the first is there soon
	partsAhead = 8   // that are asked for before they are needed: twice what a reader holds
	maxAsked   = 8   // parts that are asked for with one question
	maxParts   = 256 // that are kept of a blob

	askFor   = 15 * time.Second // with one question
	askAgain = 2 * time.Second  // after nobody had an answer
	patience = time.Second      // with a part, from when it is needed first;
	hopeful  = 2 * time.Second  // or if that is longer, from when the one before came
	hurryFor = 2 * time.Second  // nobody waits after one has come too late
)

// part is a part of a map that is there, or on its way.
type part struct {
	at    int           // its position
	until time.Time     // when it comes too late; zero as long as nobody needs it. Guarded by Blob.mu
	ready chan struct{} // closed when it is there, or will not come
	// Written before ready is closed. Without digests it has not come.
	digests chunk.Digests
	giver   string
}

// digest returns the digest of chunk i, and whose word that is.
func (b *Blob) digest(ctx context.Context, i int, wait bool) (want digest.Digest, giver string, known bool) {
	p := b.part(ctx, i/partChunks, wait)
	if p == nil || !b.await(ctx, p, wait) || i%partChunks >= p.digests.Len() {
		return "", "", false
	}
	return p.digests.At(i % partChunks), p.giver, true
}

// part returns a part of the map that is there or on its way, or nil. If more is likely to be
// read behind it the next ones are on their way, too.
func (b *Blob) part(ctx context.Context, at int, ahead bool) *part {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := at
	if ahead {
		last = min(at+partsAhead, (b.m.Len()-1)/partChunks)
	}
	for next := at; next <= last && !time.Now().Before(b.quiet); next++ {
		if b.parts[next] == nil {
			b.queue(ctx, next)
		}
	}
	return b.parts[at]
}

// queue has a part asked for when those that came before are there; b.mu is held.
func (b *Blob) queue(ctx context.Context, at int) {
	if len(b.order) == maxParts {
		b.drop(b.order[0])
	}
	p := &part{at: at, ready: make(chan struct{})}
	b.parts[at] = p
	b.order = append(b.order, at)
	b.queued = append(b.queued, p)
	if !b.asking {
		b.asking = true
		go b.ask(context.WithoutCancel(ctx)) // others may need it
	}
}

// ask asks for the parts that are queued, until there are none: for one at first, and for more
// at a time when that was not enough.
func (b *Blob) ask(ctx context.Context) {
	for n := 1; ; n = min(2*n, maxAsked) {
		parts := b.take(n)
		if len(parts) == 0 {
			return
		}
		first := parts[0].at * partChunks
		chunks := min(len(parts)*partChunks, b.m.Len()-first)
		asking, cancel := context.WithTimeout(ctx, askFor)
		digests, giver, err := b.members.Digests(asking, b.m, first, chunks)
		cancel()
		b.settle(parts, digests, giver, err != nil || digests.Len() != chunks)
	}
}

// take takes up to n queued parts, one behind the other, to be asked for together.
func (b *Blob) take(n int) (parts []*part) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.queued) > 0 && len(parts) < n && (len(parts) == 0 || b.queued[0].at == parts[len(parts)-1].at+1) {
		parts = append(parts, b.queued[0])
		b.queued = b.queued[1:]
	}
	b.asking = len(parts) > 0
	return parts
}

// settle gives parts that were asked for what was answered, or says that they, and those that
// are queued, will not come.
func (b *Blob) settle(parts []*part, digests chunk.Digests, giver string, failed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if failed {
		digests = nil
		parts = append(parts, b.queued...)
		b.queued = nil
		b.quiet = time.Now().Add(askAgain)
	}
	if !failed {
		b.came = time.Now()
	}
	for _, p := range parts {
		n := min(partChunks*chunk.DigestSize, len(digests))
		p.digests, p.giver, digests = digests[:n], giver, digests[n:]
		if failed && b.parts[p.at] == p {
			b.drop(p.at)
		}
		close(p.ready)
	}
}

// drop forgets a part; b.mu is held.
func (b *Blob) drop(at int) {
	delete(b.parts, at)
	b.order = slices.DeleteFunc(b.order, func(other int) bool { return other == at })
}

// forget forgets the map, whose giver is not believed.
func (b *Blob) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.parts)
	b.order = nil
	b.quiet = time.Now().Add(askAgain)
}

// await reports whether a part is there, or will not come. It waits for that if it may, as
// long as others come.
func (b *Blob) await(ctx context.Context, p *part, wait bool) bool {
	for {
		select {
		case <-p.ready:
			return true
		default:
		}
		left := b.patience(p)
		if !wait || left <= 0 {
			return false
		}
		late := time.NewTimer(left)
		select {
		case <-p.ready:
		case <-late.C:
		case <-ctx.Done():
			return false
		}
		late.Stop()
	}
}

// patience returns how long may be waited for a part from now on.
func (b *Blob) patience(p *part) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if p.until.IsZero() {
		p.until = now.Add(patience)
	}
	if later := b.came.Add(hopeful); p.until.Before(later) {
		p.until = later
	}
	switch {
	case now.Before(b.hurry):
		return 0
	case !now.Before(p.until):
		b.hurry = now.Add(hurryFor)
	}
	return p.until.Sub(now)
}
