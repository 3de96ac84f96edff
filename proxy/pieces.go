package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

const (
	// pieceSize is what parts of blobs are fetched in multiples of, from an upstream, and
	// smallRead the least that is fetched where nothing says what is read next.
	pieceSize = 4 << 10
	smallRead = 64 << 10
	// runOfPieces is how much is fetched with one request at the most.
	runOfPieces = chunk.StripeSize
	// expectedRun is the same for what nobody waits for.
	expectedRun = 256 << 10
)

// pieces reads a blob here and there. What is read of a chunk that is not here comes
// from the upstream, in small pieces, and not the chunk. In a cluster that is done
// by whoever reads a file's content for all; of other things the chunk is got: its owner
// fetches it once for all who read some of it.
type pieces struct {
	repository *Repository
	blob       *Blob
	ctx        context.Context
	contents   bool // it is for files' contents, of which each is read once for all
}

func (r *pieces) context() context.Context { return r.ctx }

func (r *pieces) on(ctx context.Context) layerReader {
	other := *r
	other.ctx = ctx
	return &other
}

// ReadAt implements [io.ReaderAt].
func (r *pieces) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("blob %s: read at %d", r.blob.Digest(), off)
	}
	want := p[:max(0, min(int64(len(p)), r.blob.Size()-off))]
	for n < len(want) && err == nil {
		var k int
		k, err = r.read(want[n:], off+int64(n))
		n += k
	}
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// read reads some of p, at least a byte.
func (r *pieces) read(p []byte, off int64) (int, error) {
	if !r.apart() {
		return r.readChunks(p, off)
	}
	ref := r.ref(off)
	p = p[:min(int64(len(p)), ref.Offset+ref.Size-off)]
	ctx, from := chunk.WithOrigin(r.ctx)
	if b, err := r.blob.near.Get(ctx, ref); err == nil {
		travelled(r.ctx, from(), len(p))
		return copy(p, b[off-ref.Offset:]), nil
	}
	n, err := r.readPiece(p, off)
	if errors.Is(err, upstream.ErrNoRanges) {
		return r.readChunks(p, off)
	}
	return n, err
}

// apart reports whether parts of chunks are read.
func (r *pieces) apart() bool {
	p := r.repository
	if r.blob.Size() <= chunk.Size || r.blob.kept != nil || p.registry.rangeless.has(p.Host) {
		return false
	}
	if r.blob.strict != nil && !r.contents && !r.blob.Proven() {
		return false // whose they are is known of chunks
	}
	peers := p.registry.cfg.Peers
	return peers == nil || peers.Alone() || r.contents && !peers.Provided(r.ctx, p.Host, r.blob.Digest())
}

func (r *pieces) ref(off int64) chunk.Ref {
	m, _ := chunk.Grid(r.blob.Digest(), r.blob.Size()) // which is how the blob was opened
	return m.At(m.Find(off))
}

// readChunks reads through whole chunks, ahead if there are several.
func (r *pieces) readChunks(p []byte, off int64) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	first, last := r.ref(off), r.ref(off+int64(len(p))-1)
	done, err := r.repository.registry.turns.begin(r.ctx, last.Offset+last.Size-first.Offset)
	if err != nil {
		return 0, err
	}
	defer done()
	err = r.eachChunk(off, int64(len(p)), func(b []byte) { n += copy(p[n:], b) })
	return n, err
}

// eachChunk calls use with the parts of chunks that a section of the blob consists of.
func (r *pieces) eachChunk(off, size int64, use func([]byte)) error {
	from, _ := r.blob.part(false)
	rd := from.OpenSection(r.ctx, chunk.Section{Offset: off, Length: size})
	defer rd.Close()
	for {
		b, source, err := rd.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		travelled(r.ctx, source, len(b))
		use(b)
	}
}

// readPiece reads what is in one piece, and fetches what p takes of those behind it with
// it.
func (r *pieces) readPiece(p []byte, off int64) (int, error) {
	cache, at := &r.repository.registry.pieces, off/pieceSize*pieceSize
	for {
		source := "memory"
		found := cache.find(r.key(at))
		if found == nil {
			source = "" // whoever fetches it counts it
			end := r.ahead(at, off+int64(len(p)))
			run, err := r.start(at, end)
			if err != nil {
				return 0, err
			}
			if len(run) == 0 {
				continue // somebody was faster
			}
			found = run[0]
		}
		waited := func() {}
		if !found.here() {
			waited = r.repository.registry.turns.wait(r.ctx)
		}
		b, err := found.wait(r.ctx)
		waited()
		switch {
		case err == nil:
			n := copy(p, b[off-at:])
			travelled(r.ctx, source, n)
			return n, nil
		case source == "" || r.ctx.Err() != nil:
			return 0, fmt.Errorf("blob %s: read at %d: %w", r.blob.Digest(), off, err)
		} // else it was somebody else who could not have it
	}
}

// fetchFor bounds the fetching of a run. It goes on when the one who has begun it has
// left: it is short, and others may wait for it.
const fetchFor = time.Minute

// start begins to fetch the pieces from one byte to another, in its turn, up to the first
// one that is there or on its way, and returns them. They are on their way from then on:
// what has to wait for its turn is nobody's to wait for.
func (r *pieces) start(at, end int64) ([]*piece, error) {
	done, err := r.repository.registry.turns.begin(r.ctx, end-at)
	if err != nil {
		return nil, err
	}
	run := r.repository.registry.pieces.claim(r.key(at), end)
	if len(run) == 0 {
		done()
		return nil, nil
	}
	go func() {
		defer done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), fetchFor)
		defer cancel()
		r.fetch(ctx, run)
	}()
	return run, nil
}

func (r *pieces) key(offset int64) pieceKey {
	return pieceKey{r.repository.Host, r.blob.Digest(), offset}
}

// ahead returns up to where is fetched what is asked for from first to end. Who has
// read what is before that gets as much again: reading on, by however little, takes few
// requests.
func (r *pieces) ahead(first, end int64) int64 {
	before := first
	if !r.contents {
		end = max(end, (first/smallRead+1)*smallRead)
	}
	for before > 0 && first-before < runOfPieces && r.repository.registry.pieces.has(r.key(before-pieceSize)) {
		before -= pieceSize
	}
	return r.runEnd(first, max(end, first+first-before))
}

// neighbourhood returns how much of what is behind a run is worth fetching with it, and
// has as much fetched of what is before it: the more has been read here and there near
// it. Files that are read together, as those of a directory, are near each other in a
// layer.
func (r *pieces) neighbourhood(start, end int64) int64 {
	near := 0
	if end-start <= 2*smallRead {
		near = r.repository.registry.pieces.miss(r.key(start), reach)
	}
	if near < 2 {
		return 0
	}
	size := min(int64(pieceSize)<<near, reach)
	before := *r
	before.ctx = withUrgency(r.ctx, expected)
	go before.Expect(max(start-size, 0), start)
	return size
}

// reach is how far two reads of a layer may be apart, in bytes, to be near each other.
const reach = 256 << 10

// runEnd returns the end of a run of pieces that begins at first, and is to hold what is
// before end: where the blob ends, or a chunk begins that is stored.
func (r *pieces) runEnd(first, end int64) int64 {
	most := int64(runOfPieces)
	if urgencyOf(r.ctx) != demanded {
		most = expectedRun // so that others may come between
	}
	end = min((end+pieceSize-1)/pieceSize*pieceSize, r.blob.Size(), first+most)
	for {
		next := r.ref(first)
		if first = next.Offset + next.Size; first >= end {
			return end
		}
		if r.blob.near.Has(r.ref(first)) {
			return first
		}
	}
}

// Expect implements [toc.Expecter]: what is said to be read soon is fetched at once, and
// with few requests.
func (r *pieces) Expect(start, end int64) {
	if start >= end || !r.apart() {
		return
	}
	at := start / pieceSize * pieceSize
	if r.contents && urgencyOf(r.ctx) == demanded && !r.repository.registry.pieces.has(r.key(at)) && !r.blob.near.Has(r.ref(at)) {
		end += r.neighbourhood(at, end)
	}
	for end = min(end, r.blob.Size()); at < end; {
		if r.blob.near.Has(r.ref(at)) || r.repository.registry.pieces.has(r.key(at)) {
			at += pieceSize
			continue
		}
		run, err := r.start(at, r.runEnd(at, end))
		if err != nil {
			return
		}
		at += int64(len(run)) * pieceSize // or it is there now
	}
}

// fetch gets a run of pieces from the upstream with one request, and settles each as it
// comes.
func (r *pieces) fetch(ctx context.Context, run []*piece) {
	cache, from := &r.repository.registry.pieces, run[0].key.offset
	err := r.fetchAs(ctx, run[0].key.offset, r.pieceEnd(run[len(run)-1]), func(body *blobRange) error {
		for len(run) > 0 {
			b, source := make([]byte, r.pieceEnd(run[0])-run[0].key.offset), body.source
			if _, err := io.ReadFull(body, b); err != nil {
				return err
			}
			travelled(ctx, body.source, len(b))
			r.repository.registry.cfg.Came(r.blob.image, body.source, int64(len(b)))
			r.repository.registry.turns.arrived(len(b))
			if run[0].source = source; source != body.source {
				run[0].source = "" // it is of both
			}
			cache.settle(run[0], b, nil)
			run = run[1:]
		}
		return nil
	})
	if errors.Is(err, upstream.ErrNoRanges) {
		r.repository.registry.rangeless.add(r.repository.Host)
	}
	for _, p := range run {
		cache.settle(p, nil, err)
	}
	if len(run) == 0 {
		r.complete(ctx, from)
	}
}

func (r *pieces) pieceEnd(p *piece) int64 { return min(p.key.offset+pieceSize, r.blob.Size()) }

// complete puts the chunks into the store of which all pieces have been read, from byte
// from on.
func (r *pieces) complete(ctx context.Context, from int64) {
	registry := r.repository.registry
	for end := min(from+runOfPieces, r.blob.Size()); from < end; {
		ref := r.ref(from)
		from = ref.Offset + ref.Size
		p, source, ok := registry.pieces.chunk(r.key(ref.Offset), from)
		if !ok {
			continue
		}
		if registry.cfg.Peers != nil && source != "" { // else it is not one's who could be named
			registry.cfg.Peers.Fetched(r.repository.Host, ref, p, chunk.ParentOf(source))
		}
		err := r.blob.near.Put(ctx, ref, p)
		registry.report(err)
		if err == nil {
			registry.pieces.yield(r.key(ref.Offset), from)
		}
	}
}

// fetchAs gets the bytes from off to end from the upstream, in the name of whoever may
// have them.
func (r *pieces) fetchAs(ctx context.Context, off, end int64, read func(body *blobRange) error) (denied error) {
	for _, as := range r.repository.identities() {
		up, err := r.repository.registry.cfg.Upstream(r.repository.Repository, as.Authorization())
		if err != nil {
			return err
		}
		source := ""
		body, err := openRange(ctx, up, r.blob.Digest(), off, end)
		if err == nil {
			err = read(body)
			source = body.source
			body.Close()
		}
		r.repository.heed(as, err, up, source)
		if !errors.Is(err, chunk.ErrDenied) {
			return err
		}
		denied = err
	}
	return denied
}
