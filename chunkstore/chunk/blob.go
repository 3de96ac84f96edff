package chunk

import (
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
)

// Proofs remembers what is known of blobs as a whole. A disk store implements
// it, and uses what it is told to check chunks that it reads later.
type Proofs interface {
	// Proven reports whether the blob has matched its digest.
	Proven(blob digest.Digest) bool
	// Link records the chaining value at the end of a chunk that was hashed in
	// order from the blob's beginning.
	Link(ref Ref, after Link)
	// Before returns the link before a chunk, as whoever hashed the blob that far last has
	// left it, or "". Nobody need have hashed the rest.
	Before(ref Ref) Link
	// Prove records that the blob was hashed in order, with a link for each of
	// its chunks, and matched.
	Prove(blob digest.Digest, total int64)
	// Refute records that the blob did not match. What is kept of it that is not
	// known to be right for another reason is dropped.
	Refute(blob digest.Digest)
}

// BlobConfig says how a [Blob] is read. Its zero reads one chunk at a time,
// without a memory bound, and trusts its source for the whole.
type BlobConfig struct {
	// Window is how many bytes of chunks a sequential reader may hold, the one
	// it gives out included. 0 is one chunk.
	Window int64
	// Run is how many bytes a reader fetches at a time, a multiple of [Size] that divides [StripeSize]:
	// each may come from elsewhere. 0 is an eighth of the window, and [StripeSize] at least.
	Run int64
	// Ahead is how many bytes from its position on a reader has brought into the store, those
	// of its window included, and reads from there when it gets to them. It takes no memory for that
	// but a chunk of each run that is under way. That is done of [Section.Complete] only, by runs that
	// have a size and take turns, and for as long as Kept says that the store keeps them. 0 is the window.
	Ahead int64
	// Kept reports whether a chunk is in the store that the source looks into first.
	Kept func(Ref) bool
	// Turns says which of the fetches of all readers are under way. nil has all of them be.
	Turns *Turns
	// Budget bounds the memory of all readers together. nil does not.
	Budget *Budget
	// Proofs is asked whether the blob is proven, and told when it is. With nil
	// a blob counts as proven.
	Proofs Proofs
}

// Blob reads the bytes of one blob from a source of its chunks.
type Blob struct {
	m   *Map
	src Source
	cfg BlobConfig
}

// NewBlob returns the blob that m maps, read from src.
func NewBlob(m *Map, src Source, cfg BlobConfig) *Blob {
	return &Blob{m: m, src: src, cfg: cfg}
}

// Size returns the blob's length in bytes.
func (b *Blob) Size() int64 { return b.m.Size() }

// Digest returns the blob's digest.
func (b *Blob) Digest() digest.Digest { return b.m.Blob() }

// Proven reports whether the blob is known to match its digest, be it because
// it is one chunk, which is checked wherever it enters.
func (b *Blob) Proven() bool {
	return b.cfg.Proofs == nil || b.m.Len() == 1 || b.cfg.Proofs.Proven(b.m.Blob())
}

// Prove reads the whole blob in order and compares its digest, unless that has
// been done. The error is a [*CorruptError] when it does not match.
func (b *Blob) Prove(ctx context.Context) error {
	if b.Proven() {
		return nil
	}
	r := b.Open(ctx)
	defer r.Close()
	for {
		switch _, _, err := r.Next(); err {
		case nil:
		case io.EOF:
			return nil
		default:
			return err
		}
	}
}

// ReaderAt returns a reader of any part of the blob, bound to ctx. It fetches
// the chunks that a read touches and nothing more, and may be used by several
// goroutines. It gives bytes of blobs that are not proven yet.
func (b *Blob) ReaderAt(ctx context.Context) io.ReaderAt { return readerAt{b, ctx} }

type readerAt struct {
	b   *Blob
	ctx context.Context
}

func (r readerAt) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("blob %s: read at %d", r.b.m.Blob(), off)
	}
	for n < len(p) && off < r.b.Size() {
		ref := r.b.m.At(r.b.m.Find(off))
		c, err := r.b.chunk(r.ctx, ref)
		if err != nil {
			return n, fmt.Errorf("blob %s: read at %d: %w", r.b.m.Blob(), off, err)
		}
		k := copy(p[n:], c[off-ref.Offset:])
		n += k
		off += int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (b *Blob) chunk(ctx context.Context, ref Ref) ([]byte, error) {
	if err := b.cfg.Budget.acquire(ctx, ref.Size); err != nil {
		return nil, err
	}
	defer b.cfg.Budget.release(ref.Size)
	return b.src.Get(ctx, ref)
}

// Section says which part of a blob is read, and how.
type Section struct {
	// Offset and Length are the part. It must lie within the blob.
	Offset, Length int64
	// OnDemand fetches a chunk only when the one before it has been consumed:
	// for a client that asked for more than it may want to read.
	OnDemand bool
	// Complete gives out the blob's last chunk only after the blob's digest has
	// matched. Without it, a section of a blob that is not proven yet rests on
	// what is known of its single chunks.
	Complete bool
}

// Open returns a reader of the whole blob that reads ahead, and does not give
// out the last chunk before the digest has matched.
func (b *Blob) Open(ctx context.Context) *Reader {
	return b.OpenSection(ctx, Section{Length: b.Size(), Complete: true})
}

// OpenSection returns a reader of a part of the blob.
func (b *Blob) OpenSection(ctx context.Context, s Section) *Reader {
	r := &Reader{b: b, outer: ctx, section: s}
	r.reset(0)
	return r
}
