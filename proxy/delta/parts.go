package delta

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

const (
	partChunks = 32 // that one part of a map is of
	partsAhead = 2  // that are asked for before they are needed
	maxParts   = 64 // that are kept of a blob

	askFor   = 15 * time.Second       // for a part
	askAgain = 2 * time.Second        // after nobody had one
	patience = 500 * time.Millisecond // with a part, from when it was asked for
	hurryFor = 5 * time.Second        // after one has come too late
)

// part is a part of a map that is there, or on its way.
type part struct {
	asked time.Time
	ready chan struct{} // closed when it is there, or will not come
	// Written before ready is closed.
	digests chunk.Digests
	giver   string
	err     error
}

// digest returns the digest of chunk i, and whose word that is.
func (b *Blob) digest(ctx context.Context, i int, wait bool) (want digest.Digest, giver string, known bool) {
	p := b.part(ctx, i/partChunks, wait)
	if p == nil || !b.await(ctx, p, wait) || p.err != nil || i%partChunks >= p.digests.Len() {
		return "", "", false
	}
	return p.digests.At(i % partChunks), p.giver, true
}

// part returns a part of the map that is there or on its way, or nil. If more is likely to be
// read behind it the next ones are on their way, too.
func (b *Blob) part(ctx context.Context, k int, ahead bool) *part {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := k
	if ahead {
		last = min(k+partsAhead, (b.m.Len()-1)/partChunks)
	}
	for next := k; next <= last && !time.Now().Before(b.quiet); next++ {
		if b.parts[next] == nil {
			b.ask(ctx, next)
		}
	}
	return b.parts[k]
}

// ask begins to ask for a part; b.mu is held.
func (b *Blob) ask(ctx context.Context, k int) {
	if len(b.order) == maxParts {
		b.drop(b.order[0])
	}
	p := &part{asked: time.Now(), ready: make(chan struct{})}
	b.parts[k] = p
	b.order = append(b.order, k)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askFor) // others may need it
	go func() {
		defer cancel()
		first := k * partChunks
		p.digests, p.giver, p.err = b.members.Digests(ctx, b.m, first, min(partChunks, b.m.Len()-first))
		b.settle(k, p)
	}()
}

// settle says that a part is there, or will not come.
func (b *Blob) settle(k int, p *part) {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(p.ready)
	if p.err != nil && b.parts[k] == p {
		b.drop(k)
		b.quiet = time.Now().Add(askAgain)
	}
}

// drop forgets a part; b.mu is held.
func (b *Blob) drop(k int) {
	delete(b.parts, k)
	b.order = slices.DeleteFunc(b.order, func(other int) bool { return other == k })
}

// forget forgets the map, whose giver is not believed.
func (b *Blob) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.parts)
	b.order = nil
	b.quiet = time.Now().Add(askAgain)
}

// await reports whether a part is there, or is not to come. It waits for it if it may.
func (b *Blob) await(ctx context.Context, p *part, wait bool) bool {
	select {
	case <-p.ready:
		return true
	default:
	}
	if !wait || b.hurried() {
		return false
	}
	late := time.NewTimer(time.Until(p.asked.Add(patience)))
	defer late.Stop()
	select {
	case <-p.ready:
		return true
	case <-late.C:
		b.mu.Lock()
		defer b.mu.Unlock()
		b.hurry = time.Now().Add(hurryFor)
	case <-ctx.Done():
	}
	return false
}

func (b *Blob) hurried() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Now().Before(b.hurry)
}
