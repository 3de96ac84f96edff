package parent

import (
	"context"
	"crypto/sha256"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

const (
	maxGiven = 1 << 16         // parts of chunks that are remembered, 100 bytes each
	doubtFor = 5 * time.Minute // no parent is asked for a blob that was wrong
)

// blob is a blob as a registry has it.
type blob struct {
	host   string
	digest digest.Digest
}

// given remembers what parents gave of blobs, to know who is at fault when one turns out wrong.
// The zero value is ready to use.
type given struct {
	mu    sync.Mutex
	blobs map[blob]*givenBlob
	count int
}

type givenBlob struct {
	chunks map[int64][]givenPart // by the offset of the chunk
	doubt  time.Time             // until when no parent is asked for it
	faults map[*Parent]chunk.Ref // who gave another chunk than came later, and one of these
}

// givenPart is what a parent gave of a chunk.
type givenPart struct {
	parent   *Parent
	from, to int64 // in the blob
	sum      [sha256.Size]byte
}

// addChunk remembers all of a chunk. One that is a whole blob has been checked.
func (g *given) addChunk(k blob, ref chunk.Ref, parent *Parent, p []byte) {
	if !ref.Whole() {
		g.add(k, givenPart{parent, ref.Offset, ref.Offset + ref.Size, sha256.Sum256(p)})
	}
}

// add remembers a part of one chunk, in the place of what was given of the same before.
func (g *given) add(k blob, part givenPart) {
	g.mu.Lock()
	defer g.mu.Unlock()
	b, at := g.of(k), part.from/chunk.Size*chunk.Size
	same := func(other givenPart) bool { return other.from == part.from && other.to == part.to }
	if i := slices.IndexFunc(b.chunks[at], same); i >= 0 {
		b.chunks[at][i] = part
		return
	}
	if g.count < maxGiven {
		g.count++
		b.chunks[at] = append(b.chunks[at], part)
	}
}

// of returns what is remembered of a blob, and makes room by forgetting others. g.mu is held.
func (g *given) of(k blob) *givenBlob {
	for other, b := range g.blobs {
		if g.count < maxGiven && len(g.blobs) < maxGiven {
			break
		}
		if other != k {
			g.forget(other, b)
		}
	}
	b := g.blobs[k]
	if b == nil {
		if g.blobs == nil {
			g.blobs = make(map[blob]*givenBlob)
		}
		b = &givenBlob{chunks: make(map[int64][]givenPart)}
		g.blobs[k] = b
	}
	return b
}

// doubted reports whether no parent is to be asked for a blob.
func (g *given) doubted(k blob) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	b := g.blobs[k]
	return b != nil && time.Now().Before(b.doubt)
}

// compare notes who gave other bytes of a doubted blob than these.
func (g *given) compare(k blob, ref chunk.Ref, p []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	b := g.blobs[k]
	if b == nil || !time.Now().Before(b.doubt) {
		return
	}
	for _, part := range b.chunks[ref.Offset] {
		if part.to > ref.Offset+int64(len(p)) || sha256.Sum256(p[part.from-ref.Offset:part.to-ref.Offset]) != part.sum {
			b.faults[part.parent] = ref
		}
	}
	g.count -= len(b.chunks[ref.Offset])
	delete(b.chunks, ref.Offset)
}

// forget makes room for others; g.mu is held.
func (g *given) forget(k blob, b *givenBlob) {
	for _, parts := range b.chunks {
		g.count -= len(parts)
	}
	delete(g.blobs, k)
}

// settle returns who gave wrong chunks of a blob that has matched its digest, and forgets the blob.
func (g *given) settle(k blob) map[*Parent]chunk.Ref {
	g.mu.Lock()
	defer g.mu.Unlock()
	b := g.blobs[k]
	if b == nil {
		return nil
	}
	g.forget(k, b)
	return b.faults
}

// Doubt has no parent asked for a blob for five minutes, which did not match its digest. What
// they gave of it is compared with what others give meanwhile.
func (ps *Parents) Doubt(host string, d digest.Digest) {
	ps.given.mu.Lock()
	defer ps.given.mu.Unlock()
	b := ps.given.of(blob{host, d})
	b.doubt = time.Now().Add(doubtFor)
	b.faults = make(map[*Parent]chunk.Ref) // what it was compared with was no better
}

// Settled has who gave other chunks of a blob than those with which it has matched its digest now be at
// fault. Before, it might have been the registry.
func (ps *Parents) Settled(host string, d digest.Digest) {
	for who, ref := range ps.given.settle(blob{host, d}) {
		ps.fault(who, &chunk.CorruptError{Source: who.origin, Ref: ref, Reason: "it gave other bytes than those that are right"})
	}
}

// Compared returns src, which gives what a registry itself has, with its chunks compared to what
// parents gave of blobs that turned out wrong.
func (ps *Parents) Compared(host string, src chunk.Source) chunk.Source {
	return compared{ps, host, src}
}

type compared struct {
	parents *Parents
	host    string
	src     chunk.Source
}

// Get implements [chunk.Source].
func (c compared) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	p, err := c.src.Get(ctx, ref)
	if err == nil {
		c.parents.given.compare(blob{c.host, ref.Blob}, ref, p)
	}
	return p, err
}

// GetRun implements [chunk.Runner].
func (c compared) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return chunk.GetRun(ctx, c.src, refs, func(ref chunk.Ref, p []byte) error {
		c.parents.given.compare(blob{c.host, ref.Blob}, ref, p)
		return yield(ref, p)
	})
}
