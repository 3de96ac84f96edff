package chunk_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// begun returns turns for two, with ten that want theirs, and which of them have begun.
func begun() (*chunk.Turns, []*chunk.Turn, *[]int) {
	turns, order := chunk.NewTurns(2, 2, rand.New(rand.NewPCG(1, 2))), new([]int)
	var all []*chunk.Turn
	for i := range 10 {
		all = append(all, turns.Enter(func() { *order = append(*order, i) }))
	}
	return turns, all, order
}

func TestTurnsComeInNoOrderAndSoManyAtATime(t *testing.T) {
	turns, _, order := begun()
	if !slices.Equal(*order, []int{0, 1}) {
		t.Errorf("%v have begun, want the first two, when nobody waited", *order)
	}
	for range 8 {
		turns.Leave()
	}
	if len(*order) != 10 || slices.IsSorted(*order) {
		t.Errorf("the order is %v, want all in another one than that of asking", *order)
	}
}

// TestNoTurnIsFarFromWhatHasWaitedLongest: what a registry sends over a thin link is not all wanted at once.
func TestNoTurnIsFarFromWhatHasWaitedLongest(t *testing.T) {
	turns, begun, farthest := chunk.NewTurns(1, 1, rand.New(rand.NewPCG(1, 2))), make([]bool, 1000), 0
	for i := range begun {
		turns.Enter(func() {
			begun[i] = true
			left := slices.Index(begun, false) // the one that has waited longest
			if left < 0 {
				left = i
			}
			farthest = max(farthest, i-left)
		})
	}
	for range begun {
		turns.Leave()
	}
	if slices.Contains(begun, false) || farthest < 24 || farthest > 500 {
		t.Errorf("one is %d after the first that waits; not all have begun: %v", farthest, slices.Contains(begun, false))
	}
}

func TestATurnThatIsUrgentComesAtOnceAndOneThatIsTakenBackNever(t *testing.T) {
	turns, all, order := begun()
	all[7].Urge()
	all[7].Urge()
	all[5].Quit()
	if !slices.Equal(*order, []int{0, 1, 7}) {
		t.Errorf("%v have begun, want the urgent one too", *order)
	}
	turns.Leave()
	if len(*order) != 3 {
		t.Errorf("%v have begun, though one more than may be was under way", *order)
	}
	for range 20 {
		turns.Leave()
	}
	if slices.Contains(*order, 5) || len(*order) != 9 {
		t.Errorf("%v have begun, want all but 5", *order)
	}
}

func TestMoreTurnsComeAsRunsEnd(t *testing.T) {
	turns := chunk.NewTurns(2, 4, rand.New(rand.NewPCG(1, 2)))
	under, most := 0, 0
	enter := func() { turns.Enter(func() { under++; most = max(most, under) }) }
	leave := func() { under--; turns.Leave() }
	var seen []int
	for range 2 { // the second time it begins anew
		for range 8 {
			enter()
		}
		for under > 0 {
			seen = append(seen, under)
			leave()
		}
	}
	if want := []int{2, 3, 4, 4, 4, 3, 2, 1, 2, 3, 4, 4, 4, 3, 2, 1}; !slices.Equal(seen, want) {
		t.Errorf("%v runs were under way, want %v", seen, want)
	}
	if most != 4 {
		t.Errorf("%d runs were under way at once, want 4 at the most", most)
	}
}

// A reader of which few fetches may be under way reads in order all the same.
func TestAReaderTakesTurns(t *testing.T) {
	b := newBlob(t, 60*chunk.Size)
	turns := chunk.NewTurns(2, 2, rand.New(rand.NewPCG(3, 4)))
	r := chunk.NewBlob(b.Map, b, chunk.BlobConfig{Window: 32 << 20, Run: chunk.StripeSize, Turns: turns}).Open(t.Context())
	defer r.Close()
	if p, err := io.ReadAll(r); err != nil || !bytes.Equal(p, b.bytes) {
		t.Errorf("%d bytes of %d, %v", len(p), len(b.bytes), err)
	}
}

func TestWhatIsComingIsWaitedForAndNothingElseIsFetched(t *testing.T) {
	b := newBlob(t, 4*chunk.Size)
	synctest.Test(t, func(t *testing.T) {
		near, flight := new(memory), new(chunk.Flight)
		far := &slow{blob: b, goOn: make(chan struct{})}
		src, coming := chunk.Cache(near, far, flight, nil), chunk.Coming(near, flight)
		if _, err := coming.Get(t.Context(), b.At(1)); !errors.Is(err, chunk.ErrNotFound) {
			t.Errorf("what nobody fetches: %v", err)
		}
		go func() { _, _ = src.Get(t.Context(), b.At(1)) }()
		synctest.Wait()
		leaving, leave := context.WithCancel(t.Context())
		got := make(chan error, 2)
		for _, ctx := range []context.Context{t.Context(), leaving} {
			go func() { _, err := coming.Get(ctx, b.At(1)); got <- err }()
		}
		synctest.Wait()
		leave()
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Errorf("who has left got %v", err)
		}
		far.goOn <- struct{}{}
		if err := <-got; err != nil {
			t.Error(err)
		}
		if _, err := coming.Get(t.Context(), b.At(1)); err != nil {
			t.Errorf("what has come: %v", err)
		}
		if n := far.fetches.Load(); n != 1 {
			t.Errorf("%d fetches", n)
		}
	})
}
