package upstream

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

const (
	maxParked   = 32                    // bodies of one registry
	parkedFor   = 10 * time.Second      // without use
	parkedGrace = time.Second           // the same, while others wait for a place
	stragglers  = 20 * time.Millisecond // how long runs that begin together may be apart
)

// streams are the blobs whose runs take turns. The zero value is ready to use.
type streams struct {
	mu   sync.Mutex
	open map[streamKey]*stream // those with users or a parked body
}

// streamKey keeps repositories apart: who may read one may not read another.
type streamKey struct {
	repository string
	blob       digest.Digest
	total      int64
}

// stream is a blob whose runs take turns at one body.
type stream struct {
	key   streamKey
	users int       // runs that have joined; guarded by streams.mu
	turn  *waiter   // who reads now; guarded by streams.mu
	queue []*waiter // who waits for a turn; guarded by streams.mu

	// What follows belongs to the holder of the turn. While nobody holds it, it
	// is guarded by streams.mu.
	body   *body // nil for none
	pos    int64 // where body stands: the beginning of a chunk
	given  int64 // chunks before it have been given to somebody once
	filler *filler
	parked time.Time
}

// waiter is a run that takes part in a stream. Its fields are guarded by
// streams.mu.
type waiter struct {
	next, end int64         // what it waits for still
	chunks    [][]byte      // what passed by of that, in order
	state     state         // waiting or free
	wake      chan struct{} // of capacity 1
}

// state is what a run that takes part in a stream may do.
type state int

const (
	waiting state = iota
	reading       // it has the turn
	free          // turns are not needed any more
)

// filler reads one chunk. It outlives the run that began it, so that a run which
// is cancelled leaves the body in a place where another can go on.
type filler struct {
	ref  chunk.Ref
	buf  []byte
	err  error
	done chan struct{} // closed after buf and err are written
}

func (s *source) key(r *run) streamKey { return streamKey{s.repository.name, r.blob, r.total} }

// takeTurns brings a run forward by waiting for what others read and reading for
// them in turn. whole, if not nil, is a body of the whole blob that the run has
// come by. When it turns out that ranges work after all, takeTurns returns: with
// the body of the run's range, if it was this run that asked.
func (s *source) takeTurns(ctx context.Context, r *run, whole *body) (ranged *body, err error) {
	streams := &s.repository.registry.streams
	st, w := streams.join(s.key(r), r, whole)
	defer streams.leave(st)
	defer s.yieldTurn(st, w)
	s.yieldTurn(st, nil)
	for {
		chunks, state, err := streams.await(ctx, st, w)
		for _, p := range chunks {
			if err := r.give(p); err != nil {
				return nil, err
			}
		}
		switch {
		case r.done() || state == free:
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("blob %s: %w", r.blob, err)
		case state == reading:
			return s.lead(ctx, st, r)
		}
	}
}

// yieldTurn takes w, if not nil, out of the stream, and gives the turn to the
// next if nobody has it.
func (s *source) yieldTurn(st *stream, w *waiter) {
	registry := s.repository.registry
	registry.streams.pass(st, w, registry.ranges.Load())
}

// lead reads while the run has the turn. It returns the body of the run's range
// as soon as it gets one.
func (s *source) lead(ctx context.Context, st *stream, r *run) (ranged *body, err error) {
	if begin := r.refs[0].Offset; st.body == nil && begin > 0 || st.body != nil && st.pos < begin {
		// Runs that begin together come in any order: whoever wants what passes
		// first may be just behind, and would have to have it all read again.
		select {
		case <-ctx.Done():
		case <-time.After(stragglers):
		}
	}
	if st.body == nil || st.pos > r.refs[0].Offset {
		st.close()
		b, whole, err := s.open(ctx, r)
		if err != nil || !whole {
			return b, err
		}
		if !st.adopt(b) {
			return nil, fmt.Errorf("blob %s: %w", r.blob, ctx.Err())
		}
	}
	r.answered = true // also by a body that was asked for before
	for !r.done() {
		f, err := st.next(ctx, r)
		if err != nil {
			return nil, err
		}
		if err := s.pass(st, r, f); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// pass gives a chunk to whoever waits for it, and to its own caller if nobody
// does and it is new.
func (s *source) pass(st *stream, r *run, f *filler) error {
	taken := s.repository.registry.streams.deliver(st, f)
	isNew := f.ref.Offset >= max(st.given, r.reached)
	st.given = max(st.given, st.pos)
	r.reached = max(r.reached, st.pos)
	switch {
	case f.ref.Offset == r.refs[0].Offset:
		return r.give(f.buf)
	case isNew && !taken:
		return r.giveOther(f.ref, f.buf)
	}
	return nil
}

// busy reports whether runs take turns for a blob now.
func (ss *streams) busy(key streamKey) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	st := ss.open[key]
	return st != nil && (st.turn != nil || st.body != nil)
}

// join makes a run wait for a turn. b is adopted by the stream if it has no other
// body, else closed: a body that nobody reads would take up a place.
func (ss *streams) join(key streamKey, r *run, b *body) (*stream, *waiter) {
	w := &waiter{next: r.refs[0].Offset, end: r.end(), wake: make(chan struct{}, 1)}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	st := ss.open[key]
	if st == nil {
		st = &stream{key: key}
		if ss.open == nil {
			ss.open = make(map[streamKey]*stream)
		}
		ss.open[key] = st
	}
	st.users++
	st.queue = append(st.queue, w)
	switch {
	case b == nil:
	case st.turn == nil && st.body == nil:
		st.adopt(b)
	default:
		b.Close()
	}
	return st, w
}

// leave ends a run's part in a stream. What is left is parked, or forgotten.
func (ss *streams) leave(st *stream) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	st.users--
	if st.users > 0 {
		return
	}
	if st.body == nil {
		delete(ss.open, st.key)
		return
	}
	st.parked = time.Now()
	time.AfterFunc(parkedFor, func() { ss.closeParked(parkedFor) })
	ss.closeOldest()
}

// closeParked closes the bodies that have been parked for a while.
func (ss *streams) closeParked(unused time.Duration) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for _, st := range ss.open {
		if st.users == 0 && time.Since(st.parked) >= unused {
			ss.discard(st)
		}
	}
}

// closeOldest keeps the number of parked bodies in bounds; ss.mu is held.
func (ss *streams) closeOldest() {
	var oldest *stream
	n := 0
	for _, st := range ss.open {
		if st.users > 0 {
			continue
		}
		n++
		if oldest == nil || st.parked.Before(oldest.parked) {
			oldest = st
		}
	}
	if n > maxParked {
		ss.discard(oldest)
	}
}

// discard forgets a stream without users; ss.mu is held.
func (ss *streams) discard(st *stream) {
	st.close()
	delete(ss.open, st.key)
}

// await waits until something has come for w: chunks, the turn, or word that
// turns are not needed.
func (ss *streams) await(ctx context.Context, st *stream, w *waiter) (chunks [][]byte, is state, err error) {
	select {
	case <-w.wake:
	case <-ctx.Done():
		err = ctx.Err()
	}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	chunks, w.chunks = w.chunks, nil
	if st.turn == w {
		return chunks, reading, err
	}
	return chunks, w.state, err
}

// deliver gives a chunk to those in the queue whose next it is, and reports
// whether there were any.
func (ss *streams) deliver(st *stream, f *filler) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	taken := false
	for _, w := range st.queue {
		if w.next == f.ref.Offset && w.next < w.end {
			w.chunks = append(w.chunks, f.buf)
			w.next += f.ref.Size
			w.notify()
			taken = true
		}
	}
	return taken
}

// pass takes w, which may be nil, out of the stream, and gives the turn to the
// next if nobody has it. If ranges work after all and there is no body to read
// on, nobody needs a turn.
func (ss *streams) pass(st *stream, w *waiter, ranges bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if w != nil {
		st.queue = slices.DeleteFunc(st.queue, func(o *waiter) bool { return o == w })
		if st.turn == w {
			st.turn = nil
		}
	}
	switch {
	case st.turn != nil || len(st.queue) == 0:
	case ranges && st.body == nil:
		for _, o := range st.queue {
			o.state = free
			o.notify()
		}
		st.queue = nil
	default:
		st.turn = st.first()
		st.queue = slices.DeleteFunc(st.queue, func(o *waiter) bool { return o == st.turn })
		st.turn.notify()
	}
}

// first returns who should read next: the one who waits for what comes first
// from where the body stands, or from the beginning if all wait for what has
// passed. So runs that come in another order than their chunks cost nothing.
func (st *stream) first() *waiter {
	var ahead, behind *waiter
	for _, w := range st.queue {
		if st.body != nil && w.next >= st.pos {
			if ahead == nil || w.next < ahead.next {
				ahead = w
			}
		} else if behind == nil || w.next < behind.next {
			behind = w
		}
	}
	if ahead != nil {
		return ahead
	}
	return behind
}

func (w *waiter) notify() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// adopt makes b, which stands at the beginning of the blob, the stream's body.
// It is false if b's request has been cancelled.
func (st *stream) adopt(b *body) bool {
	if !b.detach() {
		b.Close()
		return false
	}
	st.body, st.pos = b, 0
	return true
}

func (st *stream) close() {
	if st.body != nil {
		st.body.Close()
	}
	st.body, st.filler = nil, nil
}

// next reads the chunk at which the body stands. The body is closed after the
// last chunk, and after an error other than the end of ctx.
func (st *stream) next(ctx context.Context, r *run) (*filler, error) {
	if st.filler == nil {
		size := min(chunk.Size, r.total-st.pos)
		st.filler = &filler{
			ref:  chunk.Ref{Blob: r.blob, Total: r.total, Offset: st.pos, Size: size},
			buf:  make([]byte, size),
			done: make(chan struct{}),
		}
		go st.filler.fill(st.body)
	}
	f := st.filler
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("blob %s: %w", r.blob, ctx.Err())
	}
	st.filler = nil
	st.pos += f.ref.Size
	if f.err != nil || f.ref.Last() {
		st.close()
	}
	return f, f.err
}

func (f *filler) fill(b *body) {
	defer close(f.done)
	if _, err := io.ReadFull(b, f.buf); err != nil {
		f.err = b.cut(err)
	} else if f.ref.Last() && !readEnd(b) {
		f.err = &chunk.CorruptError{Source: "upstream", Ref: f.ref, Reason: "more bytes arrive than belong to it"}
	}
}
