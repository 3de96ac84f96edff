package proxy

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// turnSize is what fetches are of, in bytes.
const turnSize = 64 << 10

// begun is how many of n fetches of an urgency begin at once.
func begun(t *testing.T, all *turns, u urgency, n int) (ends []func()) {
	t.Helper()
	got := make(chan func(), n)
	for range n {
		go func() {
			if end, err := all.begin(withUrgency(t.Context(), u), turnSize); err == nil {
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
		beside := begun(t, &all, expected, 50)
		if len(beside) != firstWindowAhead/turnSize {
			t.Errorf("%d of what is expected have begun beside", len(beside))
		}
		if rest := begun(t, &all, background, 20); len(rest) != 0 {
			t.Errorf("%d of the rest have begun", len(rest))
		}
		endAll(demand)
		time.Sleep(2 * lately)
		beside[0]() // as any that ends
		synctest.Wait()
		all.mu.Lock()
		if n := all.active[expected].count; n != min(expectedAtOnce/turnSize, expectedCount) {
			t.Errorf("%d of what is expected are under way when nobody waits", n)
		}
		if n := all.active[background].count; n != 0 {
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
		go func() { _, err := all.begin(ctx, turnSize); gaveUp <- err }()
		synctest.Wait()
		cancel()
		if err := <-gaveUp; err == nil {
			t.Error("one that gave up has begun")
		}
		endAll(rest)
	})
}

// TestALargeOneIsExpected: what is more than may be fetched at a time has its turn, when
// nothing else that is expected is under way, and nothing that comes later overtakes it.
func TestALargeOneIsExpected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all turns
		small := begun(t, &all, expected, 1)
		order := make(chan int64, 2)
		for _, bytes := range []int64{2 * expectedAtOnce, turnSize} {
			go func() {
				end, _ := all.begin(withUrgency(t.Context(), expected), bytes)
				order <- bytes
				defer end()
			}()
			synctest.Wait()
			if bytes > turnSize && len(order) > 0 {
				t.Error("the large one has begun beside another")
			}
		}
		endAll(small)
		synctest.Wait()
		if len(order) == 2 && <-order != 2*expectedAtOnce {
			t.Error("the large one was overtaken")
		}
	})
}

// TestTheOrderOfWhatIsExpected: what has the smaller place comes first, whenever it is
// asked for, and a place may become smaller.
func TestTheOrderOfWhatIsExpected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all turns
		busy, _ := all.begin(withUrgency(t.Context(), expected), 2*expectedAtOnce)
		var got []string
		orders := make(map[string]*order)
		for _, name := range []string{"c", "d", "a", "b", "e"} {
			orders[name] = &order{at: name}
			go func() {
				end, _ := all.begin(withOrder(withUrgency(t.Context(), expected), orders[name]), 2*expectedAtOnce)
				got = append(got, name) // of one at a time
				end()
			}()
			synctest.Wait()
		}
		all.sooner(orders["e"], "aa")
		all.sooner(orders["a"], "z") // which is none
		busy()
		synctest.Wait()
		if s := strings.Join(got, ""); s != "aebcd" {
			t.Errorf("they came in the order %s", s)
		}
	})
}

// TestWaitingForWhatIsUnderWay: a program that waits for what was expected slows what else
// is.
func TestWaitingForWhatIsUnderWay(t *testing.T) {
	for name, c := range map[string]struct {
		as   urgency
		want int
	}{"a program": {demanded, firstWindowAhead / turnSize}, "another fetch": {expected, expectedAtOnce / turnSize}} {
		synctest.Test(t, func(t *testing.T) {
			var all turns
			done := all.wait(withUrgency(t.Context(), c.as))
			if n := len(begun(t, &all, expected, 50)); n != c.want {
				t.Errorf("%s: %d of what is expected have begun beside", name, n)
			}
			time.Sleep(2 * lately)
			done()
		})
	}
}

// TestHurry: what a program waits for has its turn at once, and so has what is asked for
// with it later.
func TestHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all turns
		busy, _ := all.begin(withUrgency(t.Context(), expected), 2*expectedAtOnce)
		defer busy()
		mine := &order{at: "z"}
		ends := make(chan func(), 4)
		for _, o := range []*order{{at: "a"}, mine, mine} {
			go func() {
				end, _ := all.begin(withOrder(withUrgency(t.Context(), expected), o), turnSize)
				ends <- end
			}()
			synctest.Wait()
		}
		all.hurry(mine)
		synctest.Wait()
		if len(ends) != 2 {
			t.Errorf("%d have begun, of two that are in a hurry", len(ends))
		}
		end, _ := all.begin(withOrder(withUrgency(t.Context(), expected), mine), turnSize)
		end()
		(<-ends)()
		(<-ends)()
	})
}
