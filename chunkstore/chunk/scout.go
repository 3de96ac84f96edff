package chunk

import (
	"context"
	"sync/atomic"
)

// scouts bring stripes into the store that their reader gets to later, and reads from there: beyond
// what there is memory for. Members of a cluster that read the same at the same time have the more to give to
// each other the farther apart the stripes are that they begin with.
type scouts struct {
	all  map[int]*scout // by stripe: those that the reader has not come to
	next int            // the first stripe that was not thought of
	kept bool           // a chunk that the reader is past is in the store
	vain atomic.Bool    // what one of them got is not in the store: no more are sent
}

// scout gets one stripe.
type scout struct {
	turn *Turn
	from atomic.Pointer[string] // where the last chunk came from
}

// scouted reports whether the reader sends scouts: for a client that reads to the end.
func (r *Reader) scouted() bool {
	cfg := r.b.cfg
	return cfg.Ahead > 0 && cfg.Run > 0 && cfg.Turns != nil && cfg.Kept != nil && r.section.Complete && !r.section.OnDemand
}

// past notes that the reader has read a chunk. Scouts are of use if it is in the store.
func (r *Reader) past(ref Ref) {
	if !r.scouts.kept && r.scouted() {
		r.scouts.kept = r.b.cfg.Kept(ref)
	}
}

// sendScouts sends scouts to stripes beyond the window.
func (r *Reader) sendScouts() {
	s, at := r.scouts, r.b.m.Find(r.section.Offset+r.pos)
	if !s.kept || s.vain.Load() {
		return
	}
	end, run := min(r.end(), at+int(r.b.cfg.Ahead/Size)), r.b.run()
	for s.next = max(s.next, (r.next+run-1)/run); s.next*run < end; s.next++ {
		var refs []Ref
		for i := s.next * run; i < min((s.next+1)*run, r.end()); i++ {
			refs = append(refs, r.b.m.At(i))
		}
		if !r.b.kept(refs) {
			r.send(s.next, refs)
		}
	}
}

func (r *Reader) send(stripe int, refs []Ref) {
	b, ctx, all, s := r.b, r.ctx, r.scouts, new(scout)
	s.turn = b.cfg.Turns.Enter(func() {
		go func() {
			defer b.cfg.Turns.Leave()
			if !s.get(ctx, b, refs) {
				all.vain.Store(true)
			}
		}()
	})
	if all.all == nil {
		all.all = make(map[int]*scout)
	}
	all.all[stripe] = s
}

// get has a stripe fetched and stored. It reports false if it is not in the store then, though
// somebody still wants it there. Of what is fetched no more is held than a chunk.
func (s *scout) get(ctx context.Context, b *Blob, refs []Ref) bool {
	if b.kept(refs) {
		return true // another reader has been here
	}
	ctx, o := withOrigin(inOrder(ReadSoon(ctx)))
	err := GetRun(ctx, b.src, refs, func(Ref, []byte) error {
		from := o.name
		s.from.Store(&from)
		return nil
	})
	return ctx.Err() != nil || err == nil && b.kept(refs)
}

// run returns how many chunks a run has that has a size.
func (b *Blob) run() int { return int(max(b.cfg.Run/Size, 1)) }

// kept reports whether all of refs are in the store.
func (b *Blob) kept(refs []Ref) bool {
	for _, ref := range refs {
		if !b.cfg.Kept(ref) {
			return false
		}
	}
	return true
}

// meet returns the scout that is about to get a stripe, or has. One that waits for its turn
// is called back, and is none.
func (s *scouts) meet(stripe int) *scout {
	found := s.all[stripe]
	delete(s.all, stripe)
	if found == nil || found.turn.Quit() {
		return nil
	}
	return found
}

// recall calls back all that wait for their turns.
func (s *scouts) recall() {
	for _, sc := range s.all {
		sc.turn.Quit()
	}
}

// origin returns where a chunk came from that the reader found where it is stored, or on its way
// there.
func (s *scout) origin(found string) string {
	if s == nil {
		return found
	}
	if from := s.from.Load(); from != nil {
		return *from
	}
	return found
}

type soonKey struct{}

// ReadSoon returns a context for fetching what is read again soon: a store does well to leave it
// in the page cache.
func ReadSoon(ctx context.Context) context.Context { return context.WithValue(ctx, soonKey{}, true) }

// IsReadSoon reports whether what is fetched with ctx is read again soon.
func IsReadSoon(ctx context.Context) bool { return ctx.Value(soonKey{}) != nil }
