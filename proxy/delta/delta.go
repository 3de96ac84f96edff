package delta

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Least is the size, in bytes, of the smallest blobs that are worth a map.
const Least = 8 << 20

const (
	maxBlobs  = 64               // that something is remembered of
	maxAlike  = 16               // blobs that one is compared with,
	triesAt   = 3                // and those of them that are compared at one chunk
	lookAgain = 10 * time.Second // for such blobs
	// Each time that so many chunks in a row were in none of them, half as many of the next
	// ones are compared as before, up to one of 1<<maxHalved: they may have nothing in
	// common, as compressed layers of which the beginning has changed.
	unlikeHalves, maxHalved = 32, 4
)

// Members are those that may have a map.
type Members interface {
	// Digests returns the digests of n chunks of a blob, from chunk first on, and whose word
	// they are. An error says that nobody gives them now.
	Digests(ctx context.Context, m *chunk.Map, first, n int) (all chunk.Digests, giver string, err error)
	// Mapped is told of each chunk that is about to be given because it has the digest, ref's,
	// that giver's map has. If it reports that giver is not believed, it is not given.
	Mapped(ref chunk.Ref, giver string) bool
}

// Stored is what is stored, and may be read by whoever reads the blob.
type Stored interface {
	// Alike returns blobs that may have chunks in common with one, each at its place, the
	// likeliest first.
	Alike(ctx context.Context, m *chunk.Map) []*chunk.Map
	// Match returns the chunk that ref names if it has the digest want, checked, else an
	// error.
	Match(ctx context.Context, ref chunk.Ref, want digest.Digest) ([]byte, error)
	// Find returns a chunk of any blob that has the digest and the size of ref, checked, else
	// an error.
	Find(ctx context.Context, ref chunk.Ref) ([]byte, error)
	// Fits reports whether nothing is known by which p cannot be the chunk that ref names.
	Fits(ref chunk.Ref, p []byte) bool
}

// Blobs are the blobs that are being read. The zero value is ready to use.
type Blobs struct {
	mu  sync.Mutex
	all map[key]*Blob
}

type key struct {
	readers string
	blob    digest.Digest
	total   int64
}

// Of returns a blob for readers of a kind, who have members and stored in common.
func (bs *Blobs) Of(readers string, m *chunk.Map, members Members, stored Stored) *Blob {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	k := key{readers, m.Blob(), m.Size()}
	b := bs.all[k]
	if b != nil {
		return b
	}
	for other := range bs.all {
		if len(bs.all) < maxBlobs {
			break
		}
		delete(bs.all, other) // who reads it now goes on
	}
	if bs.all == nil {
		bs.all = make(map[key]*Blob)
	}
	b = &Blob{m: m, members: members, stored: stored, next: -1, parts: make(map[int]*part)}
	bs.all[k] = b
	return b
}

// Blob is a blob of which chunks may be found in others. It is safe for concurrent use.
type Blob struct {
	m       *chunk.Map
	members Members
	stored  Stored

	mu     sync.Mutex
	next   int          // chunk, if what was read last goes on
	alike  []*chunk.Map // the one that had a chunk last is the first
	looked time.Time    // when they were looked for
	liked  bool         // one had a chunk
	unlike int          // compared chunks in a row that none of them had

	parts  map[int]*part // of the map, by position
	order  []int         // of parts, the one that was wanted first is the first
	queued []*part       // that are to be asked for
	asking bool          // somebody asks for what is queued, until there is nothing more
	came   time.Time     // when the last answer did
	quiet  time.Time     // until when nobody is asked
	hurry  time.Time     // until when nobody waits
}

// GetRun gets a run of the blob's chunks: those that are found have [chunk.Ref.Digest] set,
// and come from "disk"; the others far is asked for. It is [chunk.Runner.GetRun] otherwise.
func (b *Blob) GetRun(ctx context.Context, refs []chunk.Ref, far chunk.Source, yield func(chunk.Ref, []byte) error) error {
	const from = "disk"
	wait := b.goesOn(refs) || chunk.IsInOrder(ctx) // who reads here and there is to have it soon
	fetch := func(gap []chunk.Ref) error {
		if len(gap) == 0 {
			return nil
		}
		return chunk.GetRun(ctx, far, gap, yield)
	}
	first := 0 // that was not given
	for i, ref := range refs {
		p, found := b.find(ctx, &ref, wait)
		if !found {
			continue
		}
		if err := fetch(refs[first:i]); err != nil {
			return err
		}
		chunk.SetOrigin(ctx, from)
		if err := yield(ref, p); err != nil {
			return err
		}
		first = i + 1
	}
	return fetch(refs[first:])
}

// goesOn reports whether a run is part of more that is read, as far as runs tell.
func (b *Blob) goesOn(refs []chunk.Ref) bool {
	if len(refs) == 0 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	goesOn := refs[0].Index() == b.next
	b.next = refs[len(refs)-1].Index() + 1
	return goesOn || len(refs) > 1
}

// find finds a chunk, and sets its digest.
func (b *Blob) find(ctx context.Context, ref *chunk.Ref, wait bool) (p []byte, found bool) {
	if !b.look(ctx) {
		return nil, false
	}
	want, giver, known := b.digest(ctx, ref.Index(), wait)
	if !known {
		return nil, false
	}
	mapped := *ref
	mapped.Digest = want
	p, found = b.match(ctx, mapped)
	if !found {
		return nil, false
	}
	if !b.stored.Fits(*ref, p) || !b.members.Mapped(mapped, giver) {
		b.forget()
		return nil, false
	}
	*ref = mapped
	return p, true
}

// look reports whether there are blobs that may have chunks in common with this one.
func (b *Blob) look(ctx context.Context) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(b.looked) < lookAgain {
		return len(b.alike) > 0
	}
	b.looked = time.Now()
	now := b.stored.Alike(ctx, b.m)
	has := func(all []*chunk.Map, m *chunk.Map) bool {
		return slices.ContainsFunc(all, func(o *chunk.Map) bool { return o.Blob() == m.Blob() })
	}
	b.alike = slices.DeleteFunc(b.alike, func(m *chunk.Map) bool { return !has(now, m) })
	for _, m := range now {
		if len(b.alike) < maxAlike && !has(b.alike, m) {
			b.alike = append(b.alike, m)
		}
	}
	return len(b.alike) > 0
}

// match finds a chunk by its digest: that of any blob, if it is known, or the one that stands
// at the same place of a blob that is alike.
func (b *Blob) match(ctx context.Context, ref chunk.Ref) (p []byte, found bool) {
	if p, err := b.stored.Find(ctx, ref); err == nil {
		b.compared(nil, true)
		return p, true
	}
	i, tries := ref.Index(), b.tries(ref.Index())
	for _, m := range tries {
		if i >= m.Len() || m.At(i).Size != ref.Size {
			continue
		}
		if p, err := b.stored.Match(ctx, m.At(i), ref.Digest); err == nil {
			b.compared(m, true)
			return p, true
		}
	}
	if len(tries) > 0 {
		b.compared(nil, false)
	}
	return nil, false
}

// tries returns the blobs that are compared at chunk i.
func (b *Blob) tries(i int) []*chunk.Map {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i%(1<<min(b.unlike/unlikeHalves, maxHalved)) != 0 {
		return nil
	}
	return slices.Clone(b.alike[:min(triesAt, len(b.alike))])
}

// compared takes note of a chunk that was found, in m if that is not nil, or not. So the blob
// that has most in common with this one comes first, of however many.
func (b *Blob) compared(m *chunk.Map, found bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !found {
		b.unlike++
		b.rotate()
		return
	}
	b.unlike = 0
	if i := slices.Index(b.alike, m); i >= 0 {
		b.liked = true
		b.alike = slices.Insert(slices.Delete(b.alike, i, i+1), 0, m)
	}
}

// rotate puts what was compared in vain behind the others, but for what had a chunk before.
// b.mu is held.
func (b *Blob) rotate() {
	stays := 0
	if b.liked {
		stays = 1
	}
	if tried := min(triesAt, len(b.alike)); tried > stays {
		others := b.alike[stays:]
		b.alike = slices.Concat(b.alike[:stays], others[tried-stays:], others[:tried-stays])
	}
}
