package chunk

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Reader reads a section of a [Blob] in order, fetching chunks ahead of its
// caller. It holds at most the blob's window of chunks, and may have more of them
// brought into the store; a caller that stops reading stops the fetching. It is for one goroutine, and is closed after use.
type Reader struct {
	b       *Blob
	outer   context.Context // what the caller bound the reader to
	section Section

	ctx    context.Context // of the fetches under way; ends at Seek and Close
	cancel context.CancelFunc
	pos    int64   // of the next byte, from the section's beginning
	next   int     // the first chunk that has not been asked for
	ahead  []*slot // asked for and not consumed, in order; the first one holds pos
	scouts *scouts // beyond those
	prefix *Prefix // the blob's hash so far, nil when it is not being hashed
	joined bool    // another reader has hashed the beginning
	lent   int     // bytes that Next gave out, consumed at the next call
	err    error   // sticky: what went wrong
}

// slot is one chunk that a fetch was started for. bytes, from and err are
// written by the fetch before ready is closed.
type slot struct {
	ref   Ref
	turn  *Turn // of the run that fetches it
	ready chan struct{}
	bytes []byte
	from  string
	err   error
	given bool // waited for and hashed; the reader's own
}

var errClosed = errors.New("reader is closed")

// runsAhead is how many runs are under way at once, when the window allows. Registries and
// the networks before them bound single connections more often than all together.
const runsAhead = 8

// reset makes the reader continue at pos with nothing under way.
func (r *Reader) reset(pos int64) {
	r.drop()
	r.lent, r.scouts = 0, new(scouts)
	r.ctx, r.cancel = context.WithCancel(r.outer)
	r.pos, r.err = pos, nil
	r.next = r.b.m.Find(r.section.Offset + pos)
	r.prefix, r.joined = nil, false
	if r.section.Complete && !r.b.Proven() {
		r.beginHash(r.b.m.At(r.next))
	}
}

// beginHash goes on with the blob's hash at a chunk, if it is known that far: a download that
// was cut, and is resumed, is not read once more from its beginning.
func (r *Reader) beginHash(ref Ref) {
	if ref.Offset == 0 {
		r.prefix = NewPrefix(ref.Blob)
		return
	}
	if link := r.b.cfg.Proofs.Before(ref); link != "" {
		r.prefix, _ = prefixAt(ref.Blob, ref.Offset, link) // nil if the link does not fit
		r.joined = true
	}
}

// drop gives up what is under way and returns its memory.
func (r *Reader) drop() {
	if r.cancel != nil {
		r.cancel()
		r.scouts.recall()
	}
	for _, s := range r.ahead {
		s.turn.Quit()
		r.b.cfg.Budget.release(s.ref.Size)
	}
	r.ahead = nil
}

// Close stops all fetching. Reads after Close fail.
func (r *Reader) Close() error {
	r.drop()
	r.err = errClosed
	return nil
}

// Seek moves within the section, as [io.Seeker] says. Moving to where the reader
// is changes nothing; moving elsewhere gives up what was fetched ahead.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	r.settle()
	switch whence {
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		offset += r.section.Length
	}
	if offset < 0 {
		return 0, fmt.Errorf("blob %s: seek to %d", r.b.m.Blob(), offset)
	}
	if r.err == errClosed {
		return 0, r.err
	}
	if offset != r.pos {
		r.reset(offset)
	}
	return offset, nil
}

// Read implements [io.Reader]. Its errors are those of [Reader.Next].
func (r *Reader) Read(p []byte) (int, error) {
	r.settle()
	if len(p) == 0 {
		return 0, nil
	}
	c, _, err := r.peek()
	if err != nil {
		return 0, err
	}
	r.lent = copy(p, c)
	return r.lent, nil
}

// Next returns the bytes from the reader's position to the end of their chunk or
// of the section, without copying, and moves past them. They are valid until the
// next call and must not be written to. from names the source that the chunk
// came from. At the end it returns [io.EOF]; a [*CorruptError] says that the
// blob is not what its digest promises, in which case its last chunk was not
// given out.
func (r *Reader) Next() (p []byte, from string, err error) {
	r.settle()
	p, from, err = r.peek()
	r.lent = len(p)
	return p, from, err
}

// settle moves past what was lent, and frees the chunk once all of it was.
func (r *Reader) settle() {
	r.pos += int64(r.lent)
	r.lent = 0
	if len(r.ahead) == 0 {
		return
	}
	ref := r.ahead[0].ref
	at := r.section.Offset + r.pos
	if at >= ref.Offset+ref.Size || r.pos >= r.section.Length {
		r.b.cfg.Budget.release(ref.Size)
		r.past(ref)
		r.ahead[0] = nil
		r.ahead = r.ahead[1:]
	}
}

// peek returns the rest of the chunk at the reader's position.
func (r *Reader) peek() (p []byte, from string, err error) {
	if r.err != nil {
		return nil, "", r.err
	}
	if r.pos >= r.section.Length {
		return nil, "", io.EOF
	}
	at := r.section.Offset + r.pos
	s, err := r.current(r.b.m.At(r.b.m.Find(at)))
	if err != nil {
		r.drop()
		r.err = fmt.Errorf("blob %s: read at %d: %w", r.b.m.Blob(), at, err)
		return nil, "", r.err
	}
	end := min(s.ref.Offset+s.ref.Size, r.section.Offset+r.section.Length)
	return s.bytes[at-s.ref.Offset : end-s.ref.Offset], s.from, nil
}

// current returns the chunk ref, which holds the reader's position, fetched and,
// for a complete section, hashed.
func (r *Reader) current(ref Ref) (*slot, error) {
	if len(r.ahead) > 0 && r.ahead[0].given {
		return r.ahead[0], nil
	}
	if ref.Last() && r.section.Complete && r.prefix == nil && !r.b.Proven() {
		// The hash does not reach back to the beginning. What is held is given
		// up first: proving needs memory too, and readers that wait for each
		// other's would wait for ever.
		r.reset(r.pos)
		if r.prefix == nil { // nor has anybody else come so far meanwhile
			if err := r.b.Prove(r.ctx); err != nil {
				return nil, err
			}
		}
	}
	if err := r.fill(); err != nil {
		return nil, err
	}
	r.sendScouts()
	s := r.ahead[0]
	s.turn.Urge()
	select {
	case <-s.ready:
	case <-r.ctx.Done():
		return nil, r.ctx.Err()
	}
	if s.err != nil {
		return nil, s.err
	}
	if err := r.hash(s); err != nil {
		return nil, err
	}
	s.given = true
	return s, nil
}

// hash adds a chunk to the blob's hash. The last one decides.
func (r *Reader) hash(s *slot) error {
	if r.prefix == nil {
		return nil
	}
	_, _ = r.prefix.Write(s.bytes)
	proofs, blob := r.b.cfg.Proofs, r.b.m.Blob()
	switch {
	case !s.ref.Last():
		proofs.Link(s.ref, r.prefix.Link())
	case r.prefix.Matches() && r.joined: // nothing is said of what is stored of the beginning
	case r.prefix.Matches():
		proofs.Prove(blob, r.b.Size())
	default:
		proofs.Refute(blob)
		whole := Ref{Blob: blob, Total: r.b.Size(), Size: r.b.Size()}
		return &CorruptError{Source: s.from, Ref: whole, Reason: "the bytes do not have this digest"}
	}
	return nil
}

// fill asks for chunks until the window is full: in runs of an eighth of it, or of the size they are to have, that
// end where the blob's pieces of that size do, so that a source can get each with one request, and several
// are under way. The first chunk waits for memory, those read ahead take what is
// free.
func (r *Reader) fill() error {
	end := r.end()
	window := int(max(r.b.cfg.Window/Size, 1))
	if r.section.OnDemand {
		window = 1
	}
	const least = StripeSize / Size
	run := max(window/runsAhead/least, 1) * least
	if r.b.cfg.Run > 0 {
		run = r.b.run()
	}
	for {
		room := window - len(r.ahead)
		want := min(run-r.next%run, end-r.next)
		if want == 0 || room < want && len(r.ahead) > 0 {
			return nil
		}
		got, err := r.take(min(want, room))
		if err != nil || len(got) == 0 {
			return err
		}
		r.ahead = append(r.ahead, got...)
		r.begin(got)
	}
}

// end returns the chunk after the section's last.
func (r *Reader) end() int { return r.b.m.Find(r.section.Offset+r.section.Length-1) + 1 }

// begin has a run fetched when it is its turn. What a scout has gone for takes no turn of its
// own, and is there or on its way.
func (r *Reader) begin(run []*slot) {
	ctx, turns := r.ctx, r.b.cfg.Turns
	if met := r.scouts.meet(run[0].ref.Index() / r.b.run()); met != nil {
		go r.fetch(ctx, run, met)
		return
	}
	turn := turns.Enter(func() {
		go func() {
			defer turns.Leave()
			r.fetch(ctx, run, nil)
		}()
	})
	for _, s := range run {
		s.turn = turn
	}
}

// take reserves memory for up to n chunks from r.next on, and moves past them.
// Where a run has a size of its own, it is that size or nothing: half a stripe now
// and half later would be two requests for whoever fetches it.
func (r *Reader) take(n int) ([]*slot, error) {
	if r.b.cfg.Run > 0 && !r.section.OnDemand {
		return r.takeAll(n)
	}
	var got []*slot
	for ; n > 0; n-- {
		ref := r.b.m.At(r.next)
		if len(r.ahead)+len(got) == 0 {
			if err := r.b.cfg.Budget.acquire(r.ctx, ref.Size); err != nil {
				return nil, err
			}
		} else if !r.b.cfg.Budget.tryAcquire(ref.Size, int64(len(r.ahead)+len(got))*Size) {
			break
		}
		got = append(got, r.slot())
	}
	return got, nil
}

func (r *Reader) takeAll(n int) ([]*slot, error) {
	n = min(n, r.b.cfg.Budget.chunks())
	size := int64(0)
	for i := range n {
		size += r.b.m.At(r.next + i).Size
	}
	if len(r.ahead) == 0 {
		if err := r.b.cfg.Budget.acquire(r.ctx, size); err != nil {
			return nil, err
		}
	} else if !r.b.cfg.Budget.tryAcquire(size, int64(len(r.ahead))*Size) {
		return nil, nil
	}
	var got []*slot
	for range n {
		got = append(got, r.slot())
	}
	return got, nil
}

// slot returns one for the next chunk, for which memory is reserved.
func (r *Reader) slot() *slot {
	s := &slot{ref: r.b.m.At(r.next), ready: make(chan struct{})}
	r.next++
	return s
}

// fetch gets adjacent slots as one run. The reader awaits each slot; a fetch
// whose reader has gone ends with ctx. before is the scout that was there, nil for none.
func (r *Reader) fetch(ctx context.Context, slots []*slot, before *scout) {
	if !r.section.OnDemand && r.end()-r.b.m.Find(r.section.Offset) > 1 {
		ctx = inOrder(ctx)
	}
	ctx, o := withOrigin(ctx)
	refs := make([]Ref, len(slots))
	for i, s := range slots {
		refs[i] = s.ref
	}
	err := GetRun(ctx, r.b.src, refs, func(ref Ref, p []byte) error {
		if len(slots) > 0 && ref.Offset == slots[0].ref.Offset {
			slots[0].bytes, slots[0].from = p, before.origin(o.name)
			close(slots[0].ready)
			slots = slots[1:]
		}
		return nil
	})
	if err == nil {
		err = ErrNotFound // the run ended before its last chunk
	}
	for _, s := range slots {
		s.err = err
		close(s.ready)
	}
}

type orderKey struct{}

func inOrder(ctx context.Context) context.Context { return context.WithValue(ctx, orderKey{}, true) }

// IsInOrder reports whether what is fetched with ctx is part of more that a [Reader] reads, though it
// may be fetched in no order.
func IsInOrder(ctx context.Context) bool { return ctx.Value(orderKey{}) != nil }
