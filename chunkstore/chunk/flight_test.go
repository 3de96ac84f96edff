package chunk_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// slow is a source whose fetches wait to be let go.
type slow struct {
	*blob
	fetches atomic.Int64
	ended   atomic.Int64
	goOn    chan struct{}
}

func (s *slow) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	s.fetches.Add(1)
	for _, ref := range refs {
		select {
		case <-s.goOn:
		case <-ctx.Done():
			s.ended.Add(1)
			return ctx.Err()
		}
		p, _ := s.Get(context.Background(), ref)
		if err := yield(ref, p); err != nil {
			return err
		}
	}
	return nil
}

func TestAFetchLivesWhileAnyoneWaits(t *testing.T) {
	b := newBlob(t, 4*chunk.Size)
	synctest.Test(t, func(t *testing.T) {
		far := &slow{blob: b, goOn: make(chan struct{})}
		src := chunk.Cache(new(memory), far, new(chunk.Flight), nil)
		get := func(ctx context.Context) <-chan error {
			c := make(chan error, 1)
			go func() {
				p, err := src.Get(ctx, b.At(1))
				if err == nil && !bytes.Equal(p, b.bytes[chunk.Size:2*chunk.Size]) {
					err = errors.New("wrong bytes")
				}
				c <- err
			}()
			synctest.Wait()
			return c
		}
		first, leave := context.WithCancel(t.Context())
		a := get(first)
		second := get(t.Context())
		leave()
		if err := <-a; !errors.Is(err, context.Canceled) {
			t.Errorf("the one that left: %v", err)
		}
		synctest.Wait()
		if far.ended.Load() != 0 {
			t.Error("the fetch ended with the one that had started it")
		}
		far.goOn <- struct{}{}
		if err := <-second; err != nil || far.fetches.Load() != 1 {
			t.Errorf("the one that stayed: %v, %d fetches", err, far.fetches.Load())
		}

		src = chunk.Cache(new(memory), far, new(chunk.Flight), nil)
		third, leave := context.WithCancel(t.Context())
		c := get(third)
		leave()
		<-c
		d := get(t.Context()) // before or after the fetch has noticed
		synctest.Wait()
		if far.ended.Load() != 1 {
			t.Error("the fetch that nobody wanted went on")
		}
		far.goOn <- struct{}{}
		if err := <-d; err != nil {
			t.Errorf("the one that came after: %v", err)
		}
	})
}

// TestADenialBindsOnlyWhomItWasGiven: the source denies the one who starts a
// fetch; those who wait for it ask with contexts of their own.
func TestADenialBindsOnlyWhomItWasGiven(t *testing.T) {
	type allowed struct{}
	b := newBlob(t, 2*chunk.Size)
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		var asked atomic.Int64
		far := sourceFunc(func(ctx context.Context, ref chunk.Ref) ([]byte, error) {
			asked.Add(1)
			<-goOn
			if ctx.Value(allowed{}) == nil {
				return nil, chunk.ErrDenied
			}
			return b.Get(ctx, ref)
		})
		src := chunk.Cache(new(memory), far, new(chunk.Flight), nil)
		get := func(ctx context.Context) <-chan error {
			c := make(chan error, 1)
			go func() {
				_, err := src.Get(ctx, b.At(0))
				c <- err
			}()
			synctest.Wait()
			return c
		}
		denied := get(t.Context())
		readers := []<-chan error{get(context.WithValue(t.Context(), allowed{}, true)), get(context.WithValue(t.Context(), allowed{}, true))}
		alsoDenied := get(t.Context())
		if n := asked.Load(); n != 1 {
			t.Errorf("%d fetches of one chunk at once", n)
		}
		close(goOn)
		for _, c := range readers {
			if err := <-c; err != nil {
				t.Errorf("one that may read: %v", err)
			}
		}
		if err := <-denied; !errors.Is(err, chunk.ErrDenied) {
			t.Errorf("the one that was denied: %v", err)
		}
		if err := <-alsoDenied; err != nil && !errors.Is(err, chunk.ErrDenied) {
			t.Errorf("the other that may not read: %v", err) // it may share what another was given
		}
	})
}

func TestManyReadersThatComeAndGo(t *testing.T) {
	b := newBlob(t, 9*chunk.Size)
	var flight chunk.Flight
	near := new(memory)
	src := chunk.Cache(near, b, &flight, nil)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 9))
			for range 8 {
				ctx, cancel := context.WithCancel(context.Background())
				stop := rng.Int64N(b.Size() * 2)
				r := chunk.NewBlob(b.Map, src, chunk.BlobConfig{Window: 6 << 20, Proofs: new(proofs)}).Open(ctx)
				got, err := io.ReadAll(io.LimitReader(r, stop))
				if err != nil || !bytes.Equal(got, b.bytes[:min(stop, b.Size())]) {
					t.Errorf("%d bytes: %v", len(got), err)
				}
				if rng.IntN(2) == 0 {
					cancel()
				}
				_ = r.Close()
				cancel()
				if rng.IntN(5) == 0 {
					near.mu.Lock()
					near.chunks = nil
					near.mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
}
