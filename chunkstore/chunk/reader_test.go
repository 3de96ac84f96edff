package chunk_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

func TestReadersKeepTheContractsOfIo(t *testing.T) {
	for _, n := range []int{1, 1000, chunk.Size + 1} {
		b := newBlob(t, n)
		whole := chunk.NewBlob(b.Map, b, chunk.BlobConfig{Window: 4 << 20, Proofs: new(proofs)})
		if err := iotest.TestReader(struct{ io.ReadSeeker }{whole.Open(t.Context())}, b.bytes); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
		if err := iotest.TestReader(io.NewSectionReader(whole.ReaderAt(t.Context()), 0, int64(n)), b.bytes); err != nil {
			t.Errorf("%d bytes, at: %v", n, err)
		}
	}
}

func TestSectionsOfEveryKind(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range sizes {
		b := newBlob(t, n)
		for range 12 {
			off := rng.Int64N(int64(n))
			s := chunk.Section{Offset: off, Length: 1 + rng.Int64N(int64(n)-off), OnDemand: rng.IntN(2) == 0, Complete: rng.IntN(2) == 0}
			if rng.IntN(3) == 0 {
				s.Length = int64(n) - off
			}
			whole := chunk.NewBlob(b.Map, b, chunk.BlobConfig{Window: rng.Int64N(10 << 20), Budget: chunk.NewBudget(3 << 20), Proofs: new(proofs)})
			r := whole.OpenSection(t.Context(), s)
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, b.bytes[off:off+s.Length]) {
				t.Errorf("%d bytes, %+v: %d bytes, %v", n, s, len(got), err)
			}
			if r.Close() != nil {
				t.Error("close")
			}
			if _, err := r.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("read after close: %v", err)
			}
		}
	}
}

func TestTheLastChunkIsHeldBackUntilTheDigestMatches(t *testing.T) {
	b := newBlob(t, 5*chunk.Size+9)
	for wrong := -1; wrong < b.Len(); wrong++ {
		for _, offset := range []int64{0, 3 * chunk.Size} {
			src := sourceFunc(func(ctx context.Context, ref chunk.Ref) ([]byte, error) {
				p, err := b.Get(ctx, ref)
				p = bytes.Clone(p)
				if err == nil && ref.Index() == wrong {
					p[3] ^= 1
				}
				return p, err
			})
			var p proofs
			whole := chunk.NewBlob(b.Map, src, chunk.BlobConfig{Window: 8 << 20, Proofs: &p})
			r := whole.OpenSection(t.Context(), chunk.Section{Offset: offset, Length: b.Size() - offset, Complete: true})
			got, err := io.ReadAll(r)
			_ = r.Close()
			if wrong < 0 {
				if err != nil || !bytes.Equal(got, b.bytes[offset:]) || p.proven != 1 || p.refuted != 0 || len(p.links) != b.Len()-1 {
					t.Errorf("right bytes: %d bytes, %v, %+v", len(got), err, &p)
				}
				for i := range b.Len() {
					ref := b.At(i)
					c := b.bytes[ref.Offset : ref.Offset+ref.Size]
					if err := ref.CheckLink("x", p.links[i-1], p.links[i], c); err != nil {
						t.Error(err)
					}
					bad := bytes.Clone(c)
					bad[len(bad)-1] ^= 0x80
					if err := ref.CheckLink("x", p.links[i-1], p.links[i], bad); !chunk.IsCorrupt(err) {
						t.Errorf("chunk %d with a flipped bit: %v", i, err)
					}
					if err := ref.CheckLink("x", p.links[i-1]+"more", "short", c); i > 0 && !chunk.IsCorrupt(err) {
						t.Errorf("chunk %d between nonsense: %v", i, err)
					}
				}
				continue
			}
			if !chunk.IsCorrupt(err) || int64(len(got))+offset > b.At(b.Len()-1).Offset || p.proven != 0 || p.refuted == 0 {
				t.Errorf("chunk %d wrong, from %d: %d bytes, %v, proven %d, refuted %d", wrong, offset, len(got), err, p.proven, p.refuted)
			}
		}
	}
}

// TestAReaderThatStopsReadingStopsFetching looks at what is fetched once all
// goroutines wait.
func TestAReaderThatStopsReadingStopsFetching(t *testing.T) {
	b := newBlob(t, 40*chunk.Size)
	for _, c := range []struct {
		onDemand bool
		window   int64
		want     int64
	}{{false, 8 << 20, 8}, {false, 1, 1}, {false, 0, 1}, {true, 8 << 20, 1}} {
		b.gets.Store(0)
		synctest.Test(t, func(t *testing.T) {
			whole := chunk.NewBlob(b.Map, b, chunk.BlobConfig{Window: c.window})
			r := whole.OpenSection(t.Context(), chunk.Section{Length: b.Size(), OnDemand: c.onDemand})
			defer r.Close()
			if _, err := io.ReadFull(r, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := b.gets.Load(); got > c.want {
				t.Errorf("%+v: %d chunks were fetched for 100 bytes", c, got)
			}
			if c.onDemand {
				if _, err := io.CopyN(io.Discard, r, 5*chunk.Size-100); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if got := b.gets.Load(); got != 5 {
					t.Errorf("%d chunks were fetched for 5 that were read", got)
				}
			}
		})
	}
}

// TestAReaderFetchesStripesSideBySide: a connection to a registry may be slower than all of
// them together.
func TestAReaderFetchesStripesSideBySide(t *testing.T) {
	b := newBlob(t, 40*chunk.Size)
	synctest.Test(t, func(t *testing.T) {
		var under atomic.Int64
		stalls := sourceFunc(func(ctx context.Context, _ chunk.Ref) ([]byte, error) {
			under.Add(1)
			<-ctx.Done()
			return nil, ctx.Err()
		})
		ctx, leave := context.WithCancel(t.Context())
		r := chunk.NewBlob(b.Map, stalls, chunk.BlobConfig{Window: 32 << 20, Budget: chunk.NewBudget(64 << 20)}).Open(ctx)
		var reading sync.WaitGroup
		reading.Go(func() { _, _, _ = r.Next() })
		synctest.Wait()
		if got := under.Load(); got != 8 {
			t.Errorf("%d runs are under way", got)
		}
		leave()
		reading.Wait()
		_ = r.Close()
	})
}

// TestTheBudgetBoundsAllReaders counts what readers hold together.
func TestTheBudgetBoundsAllReaders(t *testing.T) {
	const readers, chunks = 8, 5
	b := newBlob(t, 12*chunk.Size)
	var held, most atomic.Int64
	src := sourceFunc(func(ctx context.Context, ref chunk.Ref) ([]byte, error) {
		for n := held.Add(1); ; {
			if old := most.Load(); n <= old || most.CompareAndSwap(old, n) {
				break
			}
		}
		return b.Get(ctx, ref)
	})
	budget := chunk.NewBudget(chunks * chunk.Size)
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			r := chunk.NewBlob(b.Map, src, chunk.BlobConfig{Window: 8 << 20, Budget: budget}).Open(context.Background())
			defer r.Close()
			for n := 0; ; n++ {
				_, _, err := r.Next()
				if n > 0 {
					held.Add(-1) // the one before has been given back
				}
				if err != nil {
					if err != io.EOF {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	wg.Wait()
	if n := most.Load(); n > chunks+readers { // a reader gives back before it is counted
		t.Errorf("%d chunks were held with memory for %d", n, chunks)
	}
}

// TestReadersThatStallLeaveMemoryToOthers: clients that stop reading hold their
// windows for as long as they stay; one that reads goes on, ahead of its client.
func TestReadersThatStallLeaveMemoryToOthers(t *testing.T) {
	const window, total = 8 * chunk.Size, 16 * chunk.Size
	b := newBlob(t, 12*chunk.Size)
	synctest.Test(t, func(t *testing.T) {
		whole := chunk.NewBlob(b.Map, b, chunk.BlobConfig{Window: window, Budget: chunk.NewBudget(total)})
		for range 4 {
			r := whole.Open(t.Context())
			defer r.Close()
			if _, _, err := r.Next(); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		before := b.gets.Load()
		r := whole.Open(t.Context())
		defer r.Close()
		for i := range b.Len() {
			if _, _, err := r.Next(); err != nil {
				t.Fatal(i, err)
			}
		}
		if got := b.gets.Load() - before; got != int64(b.Len()) {
			t.Errorf("%d chunks were fetched", got)
		}
		if before >= total/chunk.Size {
			t.Errorf("readers that stall hold %d chunks of %d", before, total/chunk.Size)
		}
	})
}

func TestReadersTellWhereChunksCameFrom(t *testing.T) {
	b := newBlob(t, 3*chunk.Size)
	near := new(memory)
	_ = near.Put(t.Context(), b.At(1), b.bytes[chunk.Size:2*chunk.Size])
	src := chunk.Cache(chunk.NamedStore("disk", near), chunk.Named("upstream", b), new(chunk.Flight), nil)
	r := chunk.NewBlob(b.Map, src, chunk.BlobConfig{Window: 4 << 20}).Open(t.Context())
	defer r.Close()
	for _, want := range []string{"upstream", "disk", "upstream"} {
		if _, from, err := r.Next(); err != nil || from != want {
			t.Errorf("from %s, %v; want %s", from, err, want)
		}
	}
}

// TestAResumedReader goes on with the hash that another one has begun: nothing of the beginning
// is got again, and the end is held back if that was wrong.
func TestAResumedReader(t *testing.T) {
	for name, lie := range map[string]bool{"right": false, "wrong": true} {
		b, known := newBlob(t, 6*chunk.Size+9), new(proofs)
		wrong := lie
		src := sourceFunc(func(ctx context.Context, ref chunk.Ref) ([]byte, error) {
			p, err := b.Get(ctx, ref)
			if wrong && ref.Offset == 0 {
				p = make([]byte, len(p))
			}
			return p, err
		})
		open := func(off int64) *chunk.Reader {
			cfg := chunk.BlobConfig{Window: chunk.Size, Proofs: known}
			return chunk.NewBlob(b.Map, src, cfg).OpenSection(t.Context(), chunk.Section{Offset: off, Length: b.Size() - off, Complete: true})
		}
		r := open(0)
		if _, err := io.CopyN(io.Discard, r, 4*chunk.Size); err != nil {
			t.Fatal(err)
		}
		_ = r.Close()
		wrong = false
		b.gets.Store(0)
		r = open(3*chunk.Size + 5)
		got, err := io.ReadAll(r)
		_ = r.Close()
		n := b.gets.Load()
		switch {
		case n != 4:
			t.Errorf("%s: %d chunks were got again", name, n)
		case lie && (!chunk.IsCorrupt(err) || len(got) != 3*chunk.Size-5 || known.refuted != 1):
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		case !lie && (err != nil || !bytes.Equal(got, b.bytes[3*chunk.Size+5:])):
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		case known.proven != 0:
			t.Errorf("%s: the blob counts as proven, whose beginning nobody has looked at", name)
		}
	}
}

func BenchmarkReader(b *testing.B) {
	data := newBlob(b, 64<<20)
	for name, p := range map[string]chunk.Proofs{"hashing": new(unproven), "proven": nil} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(data.Size())
			for b.Loop() {
				r := chunk.NewBlob(data.Map, data, chunk.BlobConfig{Window: 16 << 20, Proofs: p}).Open(context.Background())
				for {
					if _, _, err := r.Next(); err != nil {
						break
					}
				}
				_ = r.Close()
			}
		})
	}
}

type unproven struct{ proofs }

func (*unproven) Proven(digest.Digest) bool { return false }
