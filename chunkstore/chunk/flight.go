package chunk

import (
	"context"
	"errors"
	"sync"
)

// Flight makes callers that want the same chunk at the same time share one
// fetch of it. A fetch belongs to nobody: it goes on while anyone waits for any
// of its chunks, and is cancelled when the last one has left. The zero value is
// ready to use.
type Flight struct {
	mu    sync.Mutex
	calls map[Key]*call // guarded by mu; a call leaves when it is resolved
}

// call is one chunk under way. Its result fields are written before done is
// closed and not after; waiters and run.wanted are guarded by Flight.mu.
type call struct {
	run     *run
	waiters int
	done    chan struct{}
	bytes   []byte
	from    string
	err     error
}

// run is one fetch of adjacent chunks.
type run struct {
	cancel context.CancelFunc
	refs   []Ref
	wanted int // unresolved calls that have waiters
}

// fetchFunc gets a run, as [Runner.GetRun] does.
type fetchFunc func(ctx context.Context, refs []Ref, yield func(Ref, []byte) error) error

// Run yields the chunks refs in order. Those that are under way already are
// waited for; the others are fetched, adjacent ones by one call of fetch, whose
// context keeps the values of ctx but not its end.
//
// That somebody else is denied a chunk binds nobody here: it is then fetched
// with this caller's fetch.
func (f *Flight) Run(ctx context.Context, refs []Ref, fetch fetchFunc, yield func(Ref, []byte) error) error {
	for len(refs) > 0 {
		n, denied, err := f.share(ctx, refs, fetch, yield)
		if err != nil && !denied {
			return err
		}
		refs = refs[n:]
	}
	return nil
}

// share is Run for as long as nobody else is denied. It returns how many chunks
// were given, and whether err is another's denial.
func (f *Flight) share(ctx context.Context, refs []Ref, fetch fetchFunc, yield func(Ref, []byte) error) (n int, denied bool, err error) {
	own := make(map[*run]bool)
	calls := f.join(ctx, refs, fetch, own)
	for i, c := range calls {
		select {
		case <-c.done:
		case <-ctx.Done():
			f.leave(calls[i:])
			return i, false, ctx.Err()
		}
		err := c.err
		denied := errors.Is(err, ErrDenied) && !own[c.run]
		if err == nil {
			setOrigin(ctx, c.from)
			err = yield(refs[i], c.bytes)
		}
		if err != nil {
			f.leave(calls[i:])
			return i, denied, err
		}
		calls[i] = nil // its bytes are held for nobody while the others come
	}
	return len(refs), false, nil
}

// Wait returns a chunk that is under way; [ErrNotFound] says that it is not. What fetches it is
// whoever began to, whose denial is passed on.
func (f *Flight) Wait(ctx context.Context, ref Ref) ([]byte, error) {
	f.mu.Lock()
	c := f.calls[ref.Key()]
	if c == nil {
		f.mu.Unlock()
		return nil, ErrNotFound
	}
	if c.waiters == 0 {
		c.run.wanted++
	}
	c.waiters++
	f.mu.Unlock()
	defer f.leave([]*call{c})
	select {
	case <-c.done:
		return c.bytes, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Coming returns the chunks of near, and those that are on their way into it by a flight, when they
// come. It begins no fetch.
func Coming(near Source, flight *Flight) Source { return coming{near, flight} }

type coming struct {
	near   Source
	flight *Flight
}

func (c coming) Get(ctx context.Context, ref Ref) ([]byte, error) {
	p, err := c.near.Get(ctx, ref)
	if !errors.Is(err, ErrNotFound) {
		return p, err
	}
	if p, err = c.flight.Wait(ctx, ref); !errors.Is(err, ErrNotFound) {
		return p, err
	}
	return c.near.Get(ctx, ref) // it may have come in between
}

// join registers the caller as a waiter for each of refs and starts a fetch for
// every stretch that nobody is fetching; those go to own.
func (f *Flight) join(ctx context.Context, refs []Ref, fetch fetchFunc, own map[*run]bool) []*call {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls == nil {
		f.calls = make(map[Key]*call)
	}
	calls := make([]*call, len(refs))
	var open *run // the stretch that ends just before refs[i]
	for i, ref := range refs {
		if c := f.calls[ref.Key()]; c != nil {
			if c.waiters == 0 {
				c.run.wanted++
			}
			c.waiters++
			calls[i] = c
			open = nil
			continue
		}
		if open == nil {
			open = new(run)
			own[open] = true
			var runCtx context.Context
			runCtx, open.cancel = context.WithCancel(context.WithoutCancel(ctx))
			defer f.start(runCtx, open, fetch) // when the loop has completed the run
		}
		c := &call{run: open, waiters: 1, done: make(chan struct{})}
		open.refs = append(open.refs, ref)
		open.wanted++
		f.calls[ref.Key()] = c
		calls[i] = c
	}
	return calls
}

func (f *Flight) start(ctx context.Context, r *run, fetch fetchFunc) {
	go func() {
		defer r.cancel()
		ctx, o := withOrigin(ctx)
		err := fetch(ctx, r.refs, func(ref Ref, p []byte) error {
			f.resolve(r, ref, p, o.name, nil)
			return nil
		})
		if err == nil {
			err = ErrNotFound // for chunks that fetch passed over
		}
		for _, ref := range r.refs {
			f.resolve(r, ref, nil, "", err)
		}
	}()
}

// resolve gives a chunk, or the lack of it, to those who wait. A chunk that came
// along unasked is not resolved: whoever asked for it has a run of their own.
func (f *Flight) resolve(r *run, ref Ref, p []byte, from string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.calls[ref.Key()]
	if c == nil || c.run != r {
		return
	}
	delete(f.calls, ref.Key())
	c.bytes, c.from, c.err = p, from, err
	close(c.done)
	if c.waiters > 0 {
		r.wanted--
		f.abandonUnwanted(r)
	}
}

// leave takes the caller off the waiters of calls.
func (f *Flight) leave(calls []*call) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range calls {
		c.waiters--
		select {
		case <-c.done:
		default:
			if c.waiters == 0 {
				c.run.wanted--
				f.abandonUnwanted(c.run)
			}
		}
	}
}

// abandonUnwanted ends a run of which nobody wants what is left. Its calls are
// taken out in the same breath as it is cancelled: somebody who asks between the
// cancel and the fetch's end must start a new fetch, not join one that is about
// to fail. A run with nothing left is not cancelled, only about to return.
// f.mu is held.
func (f *Flight) abandonUnwanted(r *run) {
	if r.wanted > 0 {
		return
	}
	for _, ref := range r.refs {
		if c := f.calls[ref.Key()]; c != nil && c.run == r {
			delete(f.calls, ref.Key())
			c.err = context.Canceled
			close(c.done)
			r.cancel()
		}
	}
}
