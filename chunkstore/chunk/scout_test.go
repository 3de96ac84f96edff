package chunk_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

const (
	scoutWindow = 8 * chunk.Size
	scoutAhead  = 16 * chunk.Size
)

// scouting is how a blob of a cluster is read, out of a store that is asked what it has.
func scouting(near *memory, at int) chunk.BlobConfig {
	return chunk.BlobConfig{
		Window: scoutWindow, Run: chunk.StripeSize, Ahead: scoutAhead, Turns: chunk.NewTurns(at, at, rand.New(rand.NewPCG(1, 2))), Proofs: new(proofs),
		Kept: func(ref chunk.Ref) bool { _, err := near.Get(context.Background(), ref); return err == nil },
	}
}

func TestMoreIsBroughtIntoTheStoreThanTheReaderHolds(t *testing.T) {
	b := newBlob(t, 22*chunk.Size+5)
	for _, c := range []struct {
		section chunk.Section
		full    bool // the store keeps nothing
		want    int64
	}{
		{chunk.Section{Length: b.Size(), Complete: true}, false, 20}, // to the end of the stripe that 17 chunks end in
		{chunk.Section{Length: b.Size(), Complete: true}, true, 8},
		{chunk.Section{Length: b.Size()}, false, 8},
		{chunk.Section{Length: b.Size(), Complete: true, OnDemand: true}, false, 2},
	} {
		b.gets.Store(0)
		synctest.Test(t, func(t *testing.T) {
			near := new(memory)
			if c.full {
				near.fail = errors.New("full")
			}
			r := chunk.NewBlob(b.Map, chunk.Cache(near, b, new(chunk.Flight), nil), scouting(near, 100)).OpenSection(t.Context(), c.section)
			if _, err := io.ReadFull(r, make([]byte, chunk.Size+1)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := b.gets.Load(); got != c.want {
				t.Errorf("%+v, full %v: %d chunks were fetched for one and a byte, want %d", c.section, c.full, got, c.want)
			}
			rest, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(rest, b.bytes[chunk.Size+1:]) {
				t.Errorf("%+v: %d bytes, %v", c.section, len(rest), err)
			}
			if got := b.gets.Load(); got != int64(b.Len()) {
				t.Errorf("%+v, full %v: %d chunks were fetched of %d", c.section, c.full, got, b.Len())
			}
			_ = r.Close()
		})
	}
}

// What has gone into the store before it was read is told to come from where it was got.
func TestChunksComeFromWhereScoutsGotThem(t *testing.T) {
	b, near := newBlob(t, 22*chunk.Size), new(memory)
	src := chunk.Cache(chunk.NamedStore("disk", near), chunk.Named("peer", b), new(chunk.Flight), nil)
	r := chunk.NewBlob(b.Map, src, scouting(near, 2)).Open(t.Context())
	defer r.Close()
	for i := range b.Len() {
		if _, from, err := r.Next(); err != nil || from != "peer" {
			t.Errorf("chunk %d: from %s, %v", i, from, err)
		}
	}
}

// TestAStoreThatFillsUpCostsLittle: what is under way at that moment is fetched once more, and nothing else.
func TestAStoreThatFillsUpCostsLittle(t *testing.T) {
	const turns = 3
	b, near := newBlob(t, 40*chunk.Size), new(memory)
	store := &filling{memory: near, room: 14}
	r := chunk.NewBlob(b.Map, chunk.Cache(store, b, new(chunk.Flight), nil), scouting(near, turns)).Open(t.Context())
	defer r.Close()
	if p, err := io.ReadAll(r); err != nil || !bytes.Equal(p, b.bytes) {
		t.Errorf("%d bytes, %v", len(p), err)
	}
	if again := b.gets.Load() - int64(b.Len()); again > (turns+1)*chunk.StripeSize/chunk.Size {
		t.Errorf("%d chunks were fetched again", again)
	}
}

// filling is a store with room for some chunks.
type filling struct {
	*memory
	room int64
	puts atomic.Int64
}

func (f *filling) Put(ctx context.Context, ref chunk.Ref, p []byte) error {
	if f.puts.Add(1) > f.room {
		return errors.New("full")
	}
	return f.memory.Put(ctx, ref, p)
}

// A reader that is closed leaves nobody behind, nor does a fault of what is far ahead come before its time.
func TestScoutsGoWithTheirReader(t *testing.T) {
	b := newBlob(t, 30*chunk.Size)
	synctest.Test(t, func(t *testing.T) {
		near, fault := new(memory), errors.New("fault")
		stalls := sourceFunc(func(ctx context.Context, ref chunk.Ref) ([]byte, error) {
			switch i := ref.Index(); {
			case i == 17:
				return nil, fault
			case i > 20:
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return b.Get(ctx, ref)
		})
		r := chunk.NewBlob(b.Map, chunk.Cache(near, stalls, new(chunk.Flight), nil), scouting(near, 2)).Open(t.Context())
		for i := range 17 {
			if _, _, err := r.Next(); err != nil {
				t.Fatalf("chunk %d: %v", i, err)
			}
			synctest.Wait()
		}
		if _, _, err := r.Next(); !errors.Is(err, fault) {
			t.Errorf("the chunk that nobody has: %v", err)
		}
		_ = r.Close()
	}) // which waits for all goroutines
}
