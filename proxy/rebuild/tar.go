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
	Map    *cdc.Map
	edge   *Edge
	of     chunk.Ref
	older  *Older
	liking sync.Mutex
	like   *dictionaries // is made when it is needed first

	mu     sync.Mutex
	coming map[int]*arrival
	wanted []*arrival // to be asked for, in the order in which they were wanted
	active int        // batches
}

// Reader is who reads a layer.
type Reader struct {
	// Name tells those apart who may not have what others are given.
	Name   string
	Givers []Giver // in order of preference
	// Came is told of bytes that came from a giver of that origin. nil ignores them.
	Came func(origin string, n int64)
	// Has reports whether a chunk is kept where Keep keeps it.
	Has func(c *cdc.Chunk) bool
	// Keep keeps a chunk that was expected, and that nobody waited for.
	Keep func(c *cdc.Chunk, p []byte)
}

// arrival is a chunk that is on its way.
type arrival struct {
	chunk int
	by    *Reader       // who wanted it first
	done  chan struct{} // closed when it is there, or will not come
	waits int           // how many wait for it
	over  bool          // done is closed
	taken bool          // somebody has it
	// Written before done is closed.
	bytes []byte
	err   error
}

// Tar returns what a layer of a map unpacks to. older may be nil.
func (e *Edge) Tar(layer chunk.Ref, m *cdc.Map, older *Older) *Tar {
	return &Tar{Map: m, edge: e, of: layer, older: older, coming: make(map[int]*arrival)}
}

// Get returns chunks, by their numbers in order, none of which is inline. Who leaves before all are there has those kept that come.
func (t *Tar) Get(ctx context.Context, by *Reader, chunks []int) ([][]byte, error) {
	t.older.wait(ctx)
	all := t.want(by, chunks, true)
	defer t.leave(all)
	for _, a := range all {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-a.done:
		}
		if a.err != nil {
			return nil, a.err
		}
	}
	bytes := make([][]byte, len(all))
	for i, a := range all {
		bytes[i] = a.bytes
	}
	t.taken(all)
	return bytes, nil
}

// taken says that somebody has chunks: what becomes of them is theirs to say.
func (t *Tar) taken(all []*arrival) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range all {
		a.taken = true
	}
}

// leave says that somebody does not wait for chunks any more. What has come, and nobody has taken, is kept.
func (t *Tar) leave(all []*arrival) {
	var left []*arrival
	t.mu.Lock()
	for _, a := range all {
		if a.waits--; a.waits == 0 && a.over && a.err == nil && !a.taken {
			left = append(left, a)
		}
	}
	t.mu.Unlock()
	for _, a := range left {
		a.by.Keep(&t.Map.Chunks[a.chunk], a.bytes)
	}
}

// Expect has chunks come that are about to be read, by their numbers in order. They are kept. It returns when they are there, or will
// not come.
func (t *Tar) Expect(ctx context.Context, by *Reader, chunks []int) {
	t.older.wait(ctx)
	// While this had no turn they may have been read.
	missing := slices.DeleteFunc(slices.Clone(chunks), func(i int) bool { return by.Has != nil && by.Has(&t.Map.Chunks[i]) })
	for _, a := range t.want(by, missing, false) {
		select {
		case <-ctx.Done():
			return
		case <-a.done:
		}
	}
}

// Foresees reports whether chunks may be expected that nobody needs yet: while older layers are looked at a line would bring
// what is here.
func (t *Tar) Foresees() bool {
	d := t.older.looking()
	return d == 0 || d > expectPatience
}

// Coming reports whether a chunk is on its way.
func (t *Tar) Coming(i int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.coming[i] != nil
}

// Batches cuts chunks, by their numbers in order, into what is got with one request.
func (t *Tar) Batches(chunks []int) [][]int {
	return t.line(nil).batches(chunks)
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
	var all, here []*arrival
	for _, i := range chunks {
		a := t.coming[i]
		if a == nil {
			a = &arrival{chunk: i, by: by, done: make(chan struct{})}
			t.coming[i] = a
			if t.older.has(t.Map.Chunks[i].Digest) {
				here = append(here, a)
			} else {
				t.wanted = append(t.wanted, a)
			}
		}
		if now {
			a.waits++
		}
		all = append(all, a)
	}
	if len(here) > 0 {
		t.edge.start(func() { t.takeFrom(here) })
	}
	t.send()
	return all
}

// takeFrom takes chunks from older layers. Those that are wrong there are asked for.
func (t *Tar) takeFrom(chunks []*arrival) {
	var not []*arrival
	t.older.read(t.edge.ctx, t.Map, chunks, func(a *arrival, p []byte) {
		if p == nil {
			not = append(not, a)
			return
		}
		t.settle(a, p, nil)
		t.edge.noteRead(t.Share(a.chunk), 0)
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wanted = append(t.wanted, not...)
	t.send()
}

// Share is about how many bytes of the layer a chunk takes.
func (t *Tar) Share(i int) int64 {
	return t.line(nil).share([]int{i})
}

// send begins batches while there may be more. t.mu is held.
func (t *Tar) send() {
	for len(t.wanted) > 0 {
		batch := t.batch()
		if batch == nil {
			return
		}
		t.active++
		t.edge.start(func() { t.fetch(batch) })
	}
}

// batch returns the next batch, or nil when it is to wait. What is waited for comes first. t.mu is held.
func (t *Tar) batch() []*arrival {
	first := slices.IndexFunc(t.wanted, func(a *arrival) bool { return a.waits > 0 })
	now := first >= 0
	if now && t.active >= soonAtOnce || !now && t.active >= batchesAtOnce {
		return nil
	}
	by := t.wanted[max(first, 0)].by
	l, most := t.line(nil), int64(batchBytes)
	chunks := t.numbers(by, true)
	if now {
		if n := l.fit(chunks, batchBytes); n < len(chunks) {
			return t.take(chunks[:n])
		}
		most = max(soonBytes, l.share(chunks))
	}
	for _, i := range t.numbers(by, false) {
		at, _ := slices.BinarySearch(chunks, i)
		more := slices.Insert(slices.Clone(chunks), at, i)
		if l.fit(more, most) < len(more) {
			break
		}
		chunks = more
	}
	return t.take(chunks)
}

// numbers returns which chunks somebody wants, those that are waited for or the others, in order. t.mu is held.
func (t *Tar) numbers(by *Reader, now bool) (all []int) {
	for _, a := range t.wanted {
		if a.by.Name == by.Name && (a.waits > 0) == now {
			all = append(all, a.chunk)
		}
	}
	slices.Sort(all)
	return all
}

// take takes chunks, by their numbers in order, out of what is to be asked for. t.mu is held.
func (t *Tar) take(chunks []int) (batch []*arrival) {
	t.wanted = slices.DeleteFunc(t.wanted, func(a *arrival) bool {
		_, in := slices.BinarySearch(chunks, a.chunk)
		if in {
			batch = append(batch, a)
		}
		return in
	})
	slices.SortFunc(batch, func(a, b *arrival) int { return a.chunk - b.chunk })
	return batch
}

func (t *Tar) line(from Giver) *line { return &line{t.of, t.Map, from} }

// fetch gets a batch from the first giver that has it.
func (t *Tar) fetch(batch []*arrival) {
	ctx, cancel := context.WithTimeout(t.edge.ctx, batchFor)
	defer cancel()
	err := errors.New("nobody is there who could give them")
	for _, g := range batch[0].by.Givers {
		if err = t.fetchFrom(ctx, g, batch); err == nil || ctx.Err() != nil {
			break
		}
		batch = slices.DeleteFunc(batch, func(a *arrival) bool { return a.over })
	}
	for _, a := range batch {
		t.settle(a, nil, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.active--
	t.send()
}

// dictionary returns one for chunks, of the older layers that were looked at by now; nil if they have nothing like them.
func (t *Tar) dictionary(chunks []int) *dictionary {
	t.liking.Lock()
	defer t.liking.Unlock()
	all := t.older.looked() // no fewer than when the lock was held last
	if len(all) == 0 {
		return nil
	}
	if t.like == nil {
		t.like = newDictionaries(t.Map)
	}
	for _, m := range all[t.like.added:] {
		t.like.add(m)
	}
	return t.like.of(chunks)
}

func (t *Tar) fetchFrom(ctx context.Context, g Giver, batch []*arrival) error {
	var chunks []int
	for _, a := range batch {
		chunks = append(chunks, a.chunk)
	}
	l, come, moved := t.line(g), 0, int64(0)
	count := func(n int64) {
		moved += n
		if by := batch[0].by; by.Came != nil {
			by.Came(g.Origin(), n)
		}
	}
	err := l.get(ctx, chunks, t.dictionary(chunks), count, func(_ int, q []byte) error {
		t.settle(batch[come], slices.Clone(q), nil)
		come++
		return nil
	})
	t.edge.noteRead(l.share(chunks[:come]), moved)
	return err
}

// settle says that a chunk is there, or will not come, unless that was said. What nobody waits for is kept before it is forgotten.
func (t *Tar) settle(a *arrival, p []byte, err error) {
	t.mu.Lock()
	over, keep := a.over, a.waits == 0 && err == nil
	t.mu.Unlock()
	if over {
		return
	}
	if keep {
		a.by.Keep(&t.Map.Chunks[a.chunk], p)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.coming, a.chunk)
	a.over, a.bytes, a.err = true, p, err
	close(a.done)
}
