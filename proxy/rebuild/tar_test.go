package rebuild

import (
	"bytes"
	"context"
	"errors"
	"net/url"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/cdc"
)

// door is a giver that lets one question pass at a time, each when it is told to if there is a gate.
type door struct {
	*giver
	gate chan struct{}
	mu   sync.Mutex
}

func (d *door) Own(ctx context.Context, of chunk.Ref, path string, query url.Values, mediaType string, most int64) ([]byte, error) {
	if d.gate != nil {
		select {
		case <-d.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.giver.Own(ctx, of, path, query, mediaType, most)
}

// reading is a layer that is read here and there.
type reading struct {
	*Tar
	by      *Reader
	content []byte
	mu      sync.Mutex
	kept    map[toc.Digest]bool
}

func newReading(t *testing.T, tar []byte, older *Older, givers ...Giver) *reading {
	t.Helper()
	blob := pack(t, tar, goGzip)
	m, err := cdc.Of(t.Context(), bytes.NewReader(tar))
	if err != nil {
		t.Fatal(err)
	}
	ref := chunk.Ref{Blob: digest.FromBytes(blob), Total: int64(len(blob)), Size: int64(len(blob))}
	r := &reading{Tar: newSite(t, blob, givers).Tar(ref, m, older), content: tar, kept: make(map[toc.Digest]bool)}
	r.by = &Reader{Name: "somebody", Givers: givers, Keep: func(c *cdc.Chunk, p []byte) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.kept[c.Digest] = true; !c.Fits(p) {
			t.Errorf("%d other bytes are kept", len(p))
		}
	}}
	return r
}

// all are the numbers of the chunks that are not inline.
func (r *reading) all() (all []int) {
	for i, c := range r.Map.Chunks {
		if c.Inline == nil {
			all = append(all, i)
		}
	}
	return all
}

// get reads chunks, which have to be right.
func (r *reading) get(t *testing.T, ctx context.Context, chunks ...int) error {
	t.Helper()
	got, err := r.Get(ctx, r.by, chunks)
	for k, p := range got {
		c := r.Map.Chunks[chunks[k]]
		if !bytes.Equal(p, r.content[c.Offset:c.Offset+c.Size]) {
			t.Errorf("chunk %d is %d other bytes", chunks[k], len(p))
		}
	}
	return err
}

func lookedAt(t *testing.T, layers ...[]byte) *Older {
	t.Helper()
	var all []OldLayer
	for _, p := range layers {
		all = append(all, OldLayer{digest.FromBytes(p), func(context.Context) (Layer, error) {
			return Layer{bytes.NewReader(p), int64(len(p)), func() {}}, nil
		}})
	}
	return newSite(t, nil, nil).LookAt(all, nil, Shelves{new(shelf), new(shelf)})
}

// held runs do with a layer that is read from a giver who answers when the gate is open.
func held(t *testing.T, do func(t *testing.T, h *door, r *reading)) {
	t.Helper()
	tar := version(t, 1)
	h := &door{giver: newGiver(t, tar, pack(t, tar, goGzip))}
	synctest.Test(t, func(t *testing.T) {
		h.gate = make(chan struct{})
		do(t, h, newReading(t, tar, nil, h))
	})
}

// TestChunksComeTogether: those that are wanted while requests are under way come with the next ones, and what somebody waits for
// comes before what is only expected, which is kept.
func TestChunksComeTogether(t *testing.T) {
	held(t, func(t *testing.T, h *door, r *reading) {
		all := r.all()
		var readers sync.WaitGroup
		go r.Expect(t.Context(), r.by, all[:20])
		synctest.Wait()
		for _, i := range all[20:] {
			readers.Go(func() {
				if err := r.get(t, t.Context(), i); err != nil {
					t.Error(err)
				}
			})
		}
		readers.Go(func() { _ = r.get(t, t.Context(), all[3]) })
		synctest.Wait()
		for i := range all {
			if !r.Coming(all[i]) {
				t.Errorf("chunk %d is not on its way", all[i])
			}
		}
		close(h.gate)
		readers.Wait()
		synctest.Wait()
		if n := h.asked; n > 2*soonAtOnce {
			t.Errorf("%d questions for %d chunks", n, len(all))
		}
		if r.kept[r.Map.Chunks[all[3]].Digest] || !r.kept[r.Map.Chunks[all[4]].Digest] || len(r.kept) != 19 {
			t.Errorf("%d chunks are kept", len(r.kept))
		}
	})
}

// TestChunksOfOlderLayers are not asked for, unless they turn out to be other ones.
func TestChunksOfOlderLayers(t *testing.T) {
	old, now := version(t, 1), version(t, 2)
	gz := pack(t, old, parallelGz)
	for name, layer := range map[string][]byte{"in gzip": gz, "a tar": old, "in zstd": zstdFramesOf(old)} {
		h := &door{giver: newGiver(t, now, pack(t, now, goGzip))}
		layer = bytes.Clone(layer)
		older := lookedAt(t, layer)
		r := newReading(t, now, older, h)
		if err := r.get(t, t.Context(), r.all()...); err != nil {
			t.Fatal(err)
		}
		if most := newBytes(t, old, now) * 115 / 100; h.moved > most {
			t.Errorf("%s: %d bytes came, new are %d", name, h.moved, most)
		}
		if l := r.edge.Ledger(); l.Saved < l.Asked*2/3 || l.Moved.Moved != h.moved {
			t.Errorf("%s: %+v", name, l)
		}
		for i := len(layer) / 3; i < len(layer)/2; i++ {
			layer[i]++
		}
		if err := r.get(t, t.Context(), r.all()...); err != nil {
			t.Errorf("%s, damaged: %v", name, err)
		}
	}
}

func zstdFramesOf(p []byte) (all []byte) {
	for some := range slices.Chunk(p, 20_000) {
		all = append(all, compressed(some)...)
	}
	return all
}

// TestChunksOfALiar come from the next one.
func TestChunksOfALiar(t *testing.T) {
	tar := version(t, 1)
	blob := pack(t, tar, goGzip)
	liar, good := &door{giver: newGiver(t, tar, blob)}, &door{giver: newGiver(t, tar, blob)}
	liar.spoil = func(_ string, p []byte) ([]byte, error) { return compressed(unpacked(t, p)[:7_000]), nil } // the first one is right
	r := newReading(t, tar, nil, liar, good)
	if err := r.get(t, t.Context(), r.all()...); err != nil {
		t.Error(err)
	}
	if len(liar.blamed) != 1 || len(good.blamed) != 0 || good.asked != 1 {
		t.Errorf("blamed %v and %v", liar.blamed, good.blamed)
	}
	alone := newReading(t, tar, nil, liar)
	if err := alone.get(t, t.Context(), alone.all()...); !chunk.IsCorrupt(err) {
		t.Errorf("by nobody else: %v", err)
	}
	nobody := newReading(t, tar, nil)
	if err := nobody.get(t, t.Context(), 1); err == nil {
		t.Error("by nobody")
	}
}

// TestWhoWaitsForChunksLeaves: they come all the same, for whoever waits too.
func TestWhoWaitsForChunksLeaves(t *testing.T) {
	held(t, func(t *testing.T, h *door, r *reading) {
		ctx, cancel := context.WithCancel(t.Context())
		left, stays := make(chan error, 1), make(chan error, 1)
		go func() { left <- r.get(t, ctx, 1) }()
		synctest.Wait()
		go func() { stays <- r.get(t, t.Context(), 1) }()
		synctest.Wait()
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("who leaves: %v", err)
		}
		close(h.gate)
		if err := <-stays; err != nil || h.asked != 1 {
			t.Errorf("who stays: %v, after %d questions", err, h.asked)
		}
	})
}

// TestWhatNobodyTakesIsKept, of chunks for which somebody has waited: those that had come when they left, and that come later.
func TestWhatNobodyTakesIsKept(t *testing.T) {
	held(t, func(t *testing.T, h *door, r *reading) {
		all := r.all()
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go r.Expect(t.Context(), r.by, all[:5]) // a question that the others do not wait for
		synctest.Wait()
		go func() { left <- r.get(t, ctx, all...) }()
		synctest.Wait()
		h.gate <- struct{}{}
		synctest.Wait()
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("who leaves: %v", err)
		}
		close(h.gate)
		synctest.Wait()
		if len(r.kept) != len(all) {
			t.Errorf("%d of %d chunks are kept", len(r.kept), len(all))
		}
	})
}

func unpacked(t *testing.T, p []byte) []byte {
	t.Helper()
	z, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	if p, err = z.DecodeAll(p, nil); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestOlderLayersAreWaitedFor while they are looked at: by who needs a chunk for a little, and until then nothing is expected.
func TestOlderLayersAreWaitedFor(t *testing.T) {
	tar := version(t, 1)
	h := &door{giver: newGiver(t, tar, pack(t, tar, goGzip))}
	synctest.Test(t, func(t *testing.T) {
		slow := OldLayer{"sha256:slow", func(ctx context.Context) (Layer, error) {
			time.Sleep(10 * time.Second)
			return Layer{}, errors.New("gone")
		}}
		began := time.Now()
		older := newSite(t, nil, nil).LookAt([]OldLayer{slow}, nil, Shelves{new(shelf), new(shelf)})
		r := newReading(t, tar, older, h)
		if err := r.get(t, t.Context(), r.all()[0]); err != nil || time.Since(began) != readPatience {
			t.Errorf("who needs a chunk waits %v, %v", time.Since(began), err)
		}
		if r.Foresees() {
			t.Error("chunks are expected that may be here")
		}
		if <-older.ready; !r.Foresees() {
			t.Error("no chunks are expected any more")
		}
	})
}
