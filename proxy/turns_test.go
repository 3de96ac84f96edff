package proxy

import (
	"context"
	"testing"
	"testing/synctest"
)

// begun is how many of n fetches of an urgency begin at once.
func begun(t *testing.T, all *turns, u urgency, n int) (ends []func()) {
	t.Helper()
	got := make(chan func(), n)
	for range n {
		go func() {
			if end, err := all.begin(withUrgency(t.Context(), u)); err == nil {
				got <- end
			}
		}()
	}
	synctest.Wait()
	for len(got) > 0 {
		ends = append(ends, <-got)
	}
	return ends
}

func endAll(ends []func()) {
	for _, end := range ends {
		end()
	}
}

func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all turns
		demand := begun(t, &all, demanded, 100)
		if len(demand) != 100 {
			t.Errorf("%d of 100 that somebody waits for have begun", len(demand))
		}
		beside := begun(t, &all, expected, 20)
		if len(beside) != expectedBeside {
			t.Errorf("%d of what is expected have begun beside", len(beside))
		}
		if rest := begun(t, &all, background, 20); len(rest) != 0 {
			t.Errorf("%d of the rest have begun", len(rest))
		}
		endAll(demand)
		synctest.Wait()
		all.mu.Lock()
		if n := all.active[expected]; n != expectedAtOnce {
			t.Errorf("%d of what is expected are under way when nobody waits", n)
		}
		if n := all.active[background]; n != 0 {
			t.Errorf("%d of the rest are, too", n)
		}
		all.mu.Unlock()
	})
}

// TestTheRestComesLast, and what waits for its turn can give up.
func TestTheRestComesLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all turns
		rest := begun(t, &all, background, 10)
		if len(rest) != restAtOnce {
			t.Errorf("%d of the rest have begun", len(rest))
		}
		ctx, cancel := context.WithCancel(withUrgency(t.Context(), background))
		gaveUp := make(chan error, 1)
		go func() { _, err := all.begin(ctx); gaveUp <- err }()
		synctest.Wait()
		cancel()
		if err := <-gaveUp; err == nil {
			t.Error("one that gave up has begun")
		}
		endAll(rest)
	})
}
