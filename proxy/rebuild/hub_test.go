package rebuild

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/toc"
)

// shelf is a [Shelf] in memory.
type shelf struct{ all sync.Map }

func (s *shelf) Get(_ context.Context, layer digest.Digest) ([]byte, error) {
	p, ok := s.all.Load(layer)
	if !ok {
		return nil, errors.New("it is not there")
	}
	return p.([]byte), nil
}

func (s *shelf) Put(_ context.Context, layer digest.Digest, p []byte) { s.all.Store(layer, p) }

// bench is a hub over layers in memory.
type bench struct {
	*Hub
	maps, offers, indexes shelf
	layers                map[digest.Digest][]byte
	fail                  atomic.Bool  // layers cannot be read
	opened, bytes         atomic.Int64 // of layers
	reported              atomic.Int64
}

var errBroken = errors.New("the disk is broken")

func newBench(layers ...[]byte) *bench {
	b := &bench{layers: make(map[digest.Digest][]byte)}
	for _, p := range layers {
		b.layers[digest.FromBytes(p)] = p
	}
	b.Hub = b.newHub()
	return b
}

// newHub returns another hub with the same shelves, as after a restart.
func (b *bench) newHub() *Hub {
	return NewHub(HubConfig{Open: b.open, Shelves: Shelves{&b.maps, &b.indexes}, Offers: &b.offers, Report: func(error) { b.reported.Add(1) }})
}

func (b *bench) open(_ context.Context, layer digest.Digest) (Layer, error) {
	b.opened.Add(1)
	return Layer{ReaderAt: readerAt(func(p []byte, off int64) (int, error) {
		if b.fail.Load() {
			return 0, errBroken
		}
		b.bytes.Add(int64(len(p)))
		return bytes.NewReader(b.layers[layer]).ReadAt(p, off)
	}), Size: int64(len(b.layers[layer])), Release: func() {}}, nil
}

// packed asks for contents, and returns them as they are sent.
func (b *bench) packed(t *testing.T, of digest.Digest, query string, d *Dictionary) ([]byte, error) {
	t.Helper()
	l, err := b.open(t.Context(), of)
	if err != nil {
		t.Fatal(err)
	}
	return b.Contents(t.Context(), of, l, query, d)
}

type readerAt func(p []byte, off int64) (int, error)

func (f readerAt) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

// offer asks h for an offer, until that is not being made any more.
func (b *bench) offer(ctx context.Context, h *Hub, of digest.Digest) (p []byte, err error) {
	for later := new(LaterError); ; {
		p, err = h.Offer(ctx, of, int64(len(b.layers[of])))
		if !errors.As(err, &later) {
			return p, err
		}
	}
}

// contents asks for contents as a node does.
func (b *bench) contents(t *testing.T, of digest.Digest, query string) ([]byte, error) {
	t.Helper()
	p, err := b.packed(t, of, query, nil)
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	return z.DecodeAll(p, nil)
}

// layer is a gzip layer of n files of size bytes each, and its tar.
func layer(t testing.TB, n, size int) (packed, content []byte) {
	t.Helper()
	var b, z bytes.Buffer
	w, r := tar.NewWriter(&b), rand.NewChaCha8([32]byte{1})
	for i := range n {
		p := make([]byte, size)
		_, _ = r.Read(p)
		for k := range p {
			p[k] = p[k]&31 + 'a'
		}
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprint("f", i), Mode: 0o644, Size: int64(size)}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	g := gzip.NewWriter(&z)
	if _, err := g.Write(b.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	return z.Bytes(), b.Bytes()
}

// TestFewContentsTakeLittle: who asks for chunks far apart has about a span of the layer inflated for
// each, and who asks for some that follow each other has it inflated once.
func TestFewContentsTakeLittle(t *testing.T) {
	p, content := layer(t, 45, 60_000)
	b := newBench(p)
	go b.Run(t.Context())
	name := digest.FromBytes(p)
	body, err := b.offer(t.Context(), b.Hub, name)
	if err != nil {
		t.Fatal(err)
	}
	offer, err := DecodeOffer(body)
	if err != nil {
		t.Fatal(err)
	}
	all := make([]int, 0, len(offer.Map.Chunks))
	for i, c := range offer.Map.Chunks {
		if c.Inline == nil {
			all = append(all, i)
		}
	}
	for some, most := range map[string]struct {
		chunks []int
		bytes  int64
	}{
		"one at the end":       {all[len(all)-1:], 400_000},
		"three far apart":      {[]int{all[0], all[len(all)/2], all[len(all)-1]}, 1_000_000},
		"a third at the end":   {all[len(all)-15:], 900_000},
		"each second of 20":    {[]int{all[1], all[3], all[5], all[7], all[9], all[11], all[13], all[15], all[17], all[19]}, 1_300_000},
		"a half in the middle": {all[10:32], 1_300_000},
	} {
		var want []byte
		for _, i := range most.chunks {
			c := offer.Map.Chunks[i]
			want = append(want, content[c.Offset:c.Offset+c.Size]...)
		}
		before := b.bytes.Load()
		got, err := b.contents(t, name, FormatChunks(most.chunks, offer.Map))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes instead of %d, %v", some, len(got), len(want), err)
		}
		if n := b.bytes.Load() - before; n > most.bytes {
			t.Errorf("%s: %d bytes of the layer were read", some, n)
		}
	}
	b.fail.Store(true)
	if _, err := b.contents(t, name, "1"); !errors.Is(err, errBroken) {
		t.Errorf("of what cannot be read: %v", err)
	}
	if _, err := b.contents(t, name, "0"); !errors.Is(err, ErrQuery) {
		t.Errorf("of what is inline: %v", err)
	}
}

// TestWhatIsLostIsMadeAgain: the index, the offer, or both, and what is kept of another layer does not count.
func TestWhatIsLostIsMadeAgain(t *testing.T) {
	p, _ := layer(t, 45, 60_000)
	other, _ := layer(t, 46, 60_000)
	b := newBench(p)
	name := digest.FromBytes(p)
	// run has what is missing made, and says how often the layer was opened for that.
	run := func() (offer []byte, opened int64) {
		h, before := b.newHub(), b.opened.Load()
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go h.Run(ctx)
		offer, err := b.offer(ctx, h, name)
		if err != nil {
			t.Fatal(err)
		}
		return offer, b.opened.Load() - before
	}
	first, opened := run()
	if opened != 2 {
		t.Errorf("opened %d times", opened)
	}
	foreign := newBench(other)
	go foreign.Run(t.Context())
	if _, err := foreign.offer(t.Context(), foreign.Hub, digest.FromBytes(other)); err != nil {
		t.Fatal(err)
	}
	anothers := func(from, to *shelf) func() {
		return func() {
			p, err := from.Get(t.Context(), digest.FromBytes(other))
			if err != nil {
				t.Fatal(err)
			}
			to.Put(t.Context(), name, p)
		}
	}
	for lost, lose := range map[string]struct {
		how    func()
		opened int64
	}{
		"nothing":          {func() {}, 0},
		"the index":        {func() { b.indexes.all.Delete(name) }, 1},
		"the map":          {func() { b.maps.all.Delete(name) }, 1},
		"the offer":        {func() { b.offers.all.Delete(name) }, 1},
		"all":              {func() { b.indexes.all.Delete(name); b.maps.all.Delete(name); b.offers.all.Delete(name) }, 2},
		"a wrong index":    {func() { b.indexes.Put(t.Context(), name, []byte("index")) }, 1},
		"a wrong map":      {func() { b.maps.Put(t.Context(), name, []byte("gmap")) }, 1},
		"no kind of map":   {func() { b.maps.Put(t.Context(), name, []byte("?map")) }, 1},
		"zstd without end": {func() { b.maps.Put(t.Context(), name, []byte("z\xff\xff")) }, 1},
		"a wrong offer":    {func() { b.offers.Put(t.Context(), name, []byte("+offer")) }, 1},
		"another's offer":  {anothers(&foreign.offers, &b.offers), 1},
		"another's index":  {anothers(&foreign.indexes, &b.indexes), 1},
		"another's map":    {anothers(&foreign.maps, &b.maps), 1},
	} {
		lose.how()
		again, opened := run()
		if !bytes.Equal(again, first) || opened != lose.opened {
			t.Errorf("%s: opened %d times, the same: %v", lost, opened, bytes.Equal(again, first))
		}
	}
}

// TestWhatCannotBeReadIsTriedAgain: it says nothing of the layer.
func TestWhatCannotBeReadIsTriedAgain(t *testing.T) {
	p, _ := layer(t, 18, 100_000)
	b := newBench(p)
	go b.Run(t.Context())
	b.fail.Store(true)
	if _, err := b.offer(t.Context(), b.Hub, digest.FromBytes(p)); !errors.Is(err, errBroken) {
		t.Errorf("of what cannot be read: %v", err)
	}
	b.fail.Store(false)
	if _, err := b.offer(t.Context(), b.Hub, digest.FromBytes(p)); err != nil {
		t.Error(err)
	}
	if c := b.Counts(); c.Failed != 1 || c.Made != 1 || b.reported.Load() != 1 {
		t.Errorf("%+v, %d reported", c, b.reported.Load())
	}
}

// TestOffersOfNothing are refused without the layer being looked at, and those of bytes that end too soon for good.
func TestOffersOfNothing(t *testing.T) {
	p, _ := layer(t, 18, 100_000)
	cut := p[:len(p)-1000]
	b := newBench(cut)
	go b.Run(t.Context())
	none := new(NoneError)
	if _, err := b.Offer(t.Context(), digest.FromBytes(cut), Least-1); !errors.As(err, &none) || b.opened.Load() > 0 {
		t.Errorf("of a small one: %v", err)
	}
	for range 2 {
		if _, err := b.offer(t.Context(), b.Hub, digest.FromBytes(cut)); !errors.As(err, &none) || b.opened.Load() != 1 {
			t.Errorf("of one that is cut off: %v, opened %d times", err, b.opened.Load())
		}
	}
}

// TestABombIsLeft when it has unpacked to so much that it is none of our business.
func TestABombIsLeft(t *testing.T) {
	var one bytes.Buffer
	g := gzip.NewWriter(&one)
	if _, err := g.Write(make([]byte, 4<<20)); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	p := bytes.Repeat(one.Bytes(), 300)
	b := newBench(p)
	go b.Run(t.Context())
	none := new(NoneError)
	if _, err := b.offer(t.Context(), b.Hub, digest.FromBytes(p)); !errors.As(err, &none) || !strings.Contains(none.Reason, toc.ErrLimit.Error()) {
		t.Errorf("its offer: %v", err)
	}
	if _, err := b.Map(t.Context(), digest.FromBytes(p), int64(len(p))); !errors.As(err, &none) {
		t.Errorf("its map: %v", err)
	}
	if n := b.bytes.Load(); n > int64(len(p))+1<<20 {
		t.Errorf("%d bytes were read of %d", n, len(p))
	}
}

// TestWhoAsksComesFirst: layers that were asked for are looked at before others, each once.
func TestWhoAsksComesFirst(t *testing.T) {
	h := newBench().Hub
	for _, name := range []digest.Digest{"a", "b", "c", "d", "a"} {
		h.Ahead(name, Least)
	}
	h.Ahead("small", Least-1)
	for _, name := range []digest.Digest{"c", "e", "c", "e"} {
		h.offers.enqueue(name, Least, true)
	}
	h.Ahead("e", Least)
	if n := h.Counts().Waiting; n != 5 {
		t.Errorf("%d wait", n)
	}
	var order []digest.Digest
	for j := h.offers.take(); j != nil; j = h.offers.take() {
		order = append(order, j.layer)
		if again := h.offers.enqueue(j.layer, Least, true); again != j {
			t.Errorf("%s is to be looked at again while it is", j.layer)
		}
		h.offers.finish(j, nil)
		<-j.done
	}
	if want := []digest.Digest{"c", "e", "a", "b", "d"}; !slices.Equal(order, want) {
		t.Errorf("the order is %v, not %v", order, want)
	}
}

// TestNoMoreWaitThanMay for an offer, in line and at all.
func TestNoMoreWaitThanMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newBench().Hub // which does not run
		last := 0
		for i := range maxAsked + 1 {
			_, err := h.Offer(t.Context(), digest.FromString(fmt.Sprint(i)), 40<<20)
			later := new(LaterError)
			if !errors.As(err, &later) || later.After < last || later.After < 1 || later.After > longest {
				t.Fatalf("number %d: %v", i, err)
			}
			last = later.After
		}
		if n := h.Counts().Waiting; n != maxAsked || last != longest {
			t.Errorf("%d wait, %d s at the end", n, last)
		}
		for i := range 2 * maxAhead {
			h.Ahead(digest.FromString(fmt.Sprint("ahead", i)), Least)
		}
		if n := h.Counts().Waiting; n != maxAsked+maxAhead {
			t.Errorf("%d wait, with those that nobody has asked for", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := h.Offer(ctx, digest.FromString("0"), 40<<20); !errors.Is(err, context.Canceled) {
			t.Errorf("who has left: %v", err)
		}
	})
}

// TestTurnsAreBounded: of many that ask at once some are told to come again, at once or when they have waited.
func TestTurnsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newBench().Hub
		var leave []func()
		for range atOnce {
			l, err := h.turn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			leave = append(leave, l)
		}
		var refused atomic.Int64
		for range maxWaiting + 10 {
			go func() {
				if _, err := h.turn(t.Context()); errors.Is(err, errBusy) {
					refused.Add(1)
				}
			}()
		}
		synctest.Wait()
		if refused.Load() != 10 {
			t.Errorf("%d were refused at once", refused.Load())
		}
		leave[0]()
		synctest.Wait()
		go func() { _, _ = h.turn(t.Context()) }() // there is room for one more
		synctest.Wait()
		if refused.Load() != 10 {
			t.Errorf("%d were refused when there was room", refused.Load())
		}
	})
}

// TestRecentIsBounded in layers and bytes, but has always what was used last.
func TestRecentIsBounded(t *testing.T) {
	var r recent
	for i := range 3 * maxRecent {
		r.add(digest.FromString(fmt.Sprint(i)), &made{none: "x"})
		r.get(digest.FromString("0"))
	}
	if len(r.all) != maxRecent || r.get(digest.FromString("0")) == nil || r.get(digest.FromString("1")) != nil {
		t.Errorf("%d are kept", len(r.all))
	}
	large := &made{none: string(make([]byte, maxRecentBytes+1))}
	r.add("large", large)
	if len(r.all) != maxRecent || r.get("large") != large {
		t.Errorf("%d are kept beside a large one", len(r.all))
	}
	r.add("small", &made{none: "x"})
	if r.get("large") != nil || r.get("small") == nil {
		t.Error("a large one is kept beside another one")
	}
}
