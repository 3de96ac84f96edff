package rebuild

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/toc/cdc"
)

const (
	// soonAtOnce are the batches that may be under way for whoever waits, and batchesAtOnce those of what is only
	// expected. soonBytes is what a batch of the former brings beside what is waited for, compressed.
	soonAtOnce = 8
	soonBytes  = 256 << 10
	// batchFor bounds what is done for a batch. It goes on when those have left who waited for it.
	batchFor = time.Minute
)

// Tar is what a layer unpacks to, for whoever reads it here and there. Chunks come from older layers that are here, and
// from givers: what is wanted while requests are under way goes with the next one. It is safe for concurrent use.
type Tar struct {
	Map   *cdc.Map
	edge  *Edge
	of    chunk.Ref
	older *Older

	mu     sync.Mutex
	coming map[int]*arrival
	wanted []want // to be asked for, in the order in which they were wanted
	active int    // batches
}

// Reader is who reads a layer.
type Reader struct {
	// Name tells those apart who may not have what others are given.
	Name   string
	Givers []Giver // in order of preference
	// Has reports whether a chunk is kept where Keep keeps it.
	Has func(c *cdc.Chunk) bool
	// Keep keeps a chunk that was expected, and that nobody waited for.
	Keep func(c *cdc.Chunk, p []byte)
}

// want is a chunk that somebody wants.
type want struct {
	chunk int
	by    *Reader
}

// arrival is a chunk that is on its way.
type arrival struct {
	done chan struct{} // closed when it is there, or will not come
	now  bool          // somebody waits for it
	// Written before done is closed.
	bytes []byte
	err   error
}

// Tar returns what a layer of a map unpacks to. older may be nil.
func (e *Edge) Tar(layer chunk.Ref, m *cdc.Map, older *Older) *Tar {
	return &Tar{Map: m, edge: e, of: layer, older: older, coming: make(map[int]*arrival)}
}

// Get returns chunks, by their numbers in order, none of which is inline.
func (t *Tar) Get(ctx context.Context, by *Reader, chunks []int) ([][]byte, error) {
	t.older.wait(ctx)
	all := make([][]byte, len(chunks))
	for i, a := range t.want(by, chunks, true) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-a.done:
		}
		if a.err != nil {
			return nil, a.err
		}
		all[i] = a.bytes
	}
	return all, nil
}

// Expect has chunks come that are about to be read, by their numbers in order. They are kept. It returns when they are there, or will
// not come.
func (t *Tar) Expect(ctx context.Context, by *Reader, chunks []int) {
	t.older.wait(ctx)
	for _, a := range t.want(by, chunks, false) {
		select {
		case <-ctx.Done():
			return
		case <-a.done:
		}
	}
}

// Coming reports whether a chunk is on its way.
func (t *Tar) Coming(i int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.coming[i] != nil
}

// Batches cuts chunks, by their numbers in order, into what is got with one request.
func (t *Tar) Batches(chunks []int) [][]int {
	return (&line{of: t.of, m: t.Map}).batches(chunks)
}

// Away reports whether a chunk is neither on its way nor in older layers.
func (t *Tar) Away(i int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.coming[i] == nil && !t.older.has(t.Map.Chunks[i].Digest)
}

// want has chunks come, unless they are on their way.
func (t *Tar) want(by *Reader, chunks []int, now bool) []*arrival {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*arrival, len(chunks))
	var here []int
	for k, i := range chunks {
		a := t.coming[i]
		if a == nil {
			a = &arrival{done: make(chan struct{})}
			t.coming[i] = a
			if t.older.has(t.Map.Chunks[i].Digest) {
				here = append(here, i)
			} else {
				t.wanted = append(t.wanted, want{i, by})
			}
		}
		a.now = a.now || now
		all[k] = a
	}
	if len(here) > 0 {
		go t.takeFrom(here, by)
	}
	t.send()
	return all
}

// takeFrom takes chunks from older layers. Those that are wrong there are asked for.
func (t *Tar) takeFrom(chunks []int, by *Reader) {
	var not []int
	t.older.read(t.edge.ctx, t.Map, chunks, func(i int, p []byte) {
		if p == nil {
			not = append(not, i)
			return
		}
		t.settle(i, by, p, nil)
		t.edge.noteRead("", t.Share(i), 0)
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, i := range not {
		t.wanted = append(t.wanted, want{i, by})
	}
	t.send()
}

// Share is about how many bytes of the layer a chunk takes.
func (t *Tar) Share(i int) int64 {
	return int64(float64(t.Map.Chunks[i].Size) * float64(t.of.Total) / float64(t.Map.Size()))
}

// send begins batches while there may be more. t.mu is held.
func (t *Tar) send() {
	for len(t.wanted) > 0 {
		batch, by := t.batch()
		if batch == nil {
			return
		}
		t.active++
		go t.fetch(batch, by)
	}
}

// batch returns the next batch, or nil when it is to wait. What is waited for comes first. t.mu is held.
func (t *Tar) batch() (chunks []int, by *Reader) {
	waitedFor := func(w want) bool { return t.coming[w.chunk].now }
	first := slices.IndexFunc(t.wanted, waitedFor)
	now := first >= 0
	if !now {
		first = 0
	}
	if now && t.active >= soonAtOnce || !now && t.active >= batchesAtOnce {
		return nil, nil
	}
	by = t.wanted[first].by
	l, most := &line{of: t.of, m: t.Map}, int64(batchBytes)
	soon := t.numbers(by, waitedFor)
	if now {
		if n := l.fit(soon, batchBytes); n < len(soon) {
			return t.take(soon[:n]), by
		}
		most = max(soonBytes, int64(float64(l.bytes(soon))*float64(t.of.Total)/float64(t.Map.Size())))
	}
	for _, i := range t.numbers(by, func(w want) bool { return !waitedFor(w) }) {
		at, _ := slices.BinarySearch(soon, i)
		more := slices.Insert(slices.Clone(soon), at, i)
		if l.fit(more, most) < len(more) {
			break
		}
		soon = more
	}
	return t.take(soon), by
}

// numbers returns which chunks of some kind somebody wants, in order. t.mu is held.
func (t *Tar) numbers(by *Reader, of func(want) bool) (all []int) {
	for _, w := range t.wanted {
		if w.by.Name == by.Name && of(w) {
			all = append(all, w.chunk)
		}
	}
	slices.Sort(all)
	return all
}

// take takes chunks out of what is to be asked for. t.mu is held.
func (t *Tar) take(chunks []int) []int {
	t.wanted = slices.DeleteFunc(t.wanted, func(w want) bool {
		_, in := slices.BinarySearch(chunks, w.chunk)
		return in
	})
	return chunks
}

// fetch gets a batch from the first giver that has it.
func (t *Tar) fetch(batch []int, by *Reader) {
	ctx, cancel := context.WithTimeout(t.edge.ctx, batchFor)
	defer cancel()
	err := errors.New("nobody is there who could give them")
	for _, g := range by.Givers {
		l := &line{t.of, t.Map, g}
		var p []byte
		p, err = l.ask(ctx, batch)
		asked := int64(0)
		if err == nil {
			err = l.unpack(batch, p, func(i int, q []byte) error {
				asked += t.Share(i)
				t.settle(i, by, slices.Clone(q), nil)
				return nil
			})
		}
		t.edge.noteRead(g.Origin(), asked, int64(len(p)))
		if err == nil || ctx.Err() != nil {
			break
		}
		batch = t.missing(batch)
	}
	for _, i := range t.missing(batch) {
		t.settle(i, by, nil, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.active--
	t.send()
}

// missing returns those of a batch that have not come.
func (t *Tar) missing(batch []int) []int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(batch), func(i int) bool { return t.coming[i] == nil })
}

// settle says that a chunk is there, or will not come. What nobody waits for is kept before it is forgotten.
func (t *Tar) settle(i int, by *Reader, p []byte, err error) {
	t.mu.Lock()
	a := t.coming[i]
	keep := !a.now && err == nil
	t.mu.Unlock()
	if keep {
		by.Keep(&t.Map.Chunks[i], p)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.coming, i)
	a.bytes, a.err = p, err
	close(a.done)
}
