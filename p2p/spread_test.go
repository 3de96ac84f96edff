package p2p

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/granary-oci/granary/tracker"
)

func newSpreads() *spreads {
	return &spreads{random: rand.New(rand.NewPCG(1, 2)), all: make(map[spreadKey]*spread)}
}

func moves(time.Time) bool { return false }

func member(i int) tracker.ID { return tracker.ID(fmt.Sprintf("m%03d", i)) }

func TestAnOwnerSendsAStripeToAFewAtATime(t *testing.T) {
	ss, k := newSpreads(), spreadKey{stripe: 1}
	for i := range fanOut {
		if v := ss.enter(k, member(i), false, epoch, moves); !v.serve {
			t.Fatalf("member %d is not served", i)
		}
	}
	v := ss.enter(k, "late", false, epoch, moves)
	if v.serve || len(v.referrals) > 0 || v.wait == nil {
		t.Fatalf("with nobody to refer to the verdict is %+v, want a wait", v)
	}
	for name, served := range map[string]bool{
		"another stripe":     ss.enter(spreadKey{stripe: 2}, "late", false, epoch, moves).serve,
		"one who insists":    ss.enter(k, "insistent", true, epoch, moves).serve,
		"one who is sent it": ss.enter(k, member(0), false, epoch, moves).serve,
	} {
		if !served {
			t.Errorf("%s is not served", name)
		}
	}
}

func TestWhoTakesNothingKeepsNobodyWaiting(t *testing.T) {
	ss, k := newSpreads(), spreadKey{stripe: 1}
	for i := range fanOut {
		ss.enter(k, member(i), false, epoch, func(now time.Time) bool { return now.After(epoch) })
	}
	if v := ss.enter(k, "late", false, epoch, moves); v.serve {
		t.Error("there is no room, and one more is served")
	}
	if v := ss.enter(k, "late", false, epoch.Add(time.Second), moves); !v.serve {
		t.Errorf("those who are sent it have vanished, and the verdict is %+v", v)
	}
}

func TestWhoWaitsIsReferredToThoseWhoHaveBeenGivenIt(t *testing.T) {
	ss, k := newSpreads(), spreadKey{stripe: 1}
	for i := range fanOut + 3 {
		ss.enter(k, member(i), true, epoch, moves)
	}
	wait := ss.enter(k, "late", false, epoch, moves).wait
	ss.leave(k, member(0), false)
	select {
	case <-wait:
	default:
		t.Fatal("who waits does not hear of a change")
	}
	if v := ss.enter(k, "late", false, epoch, moves); len(v.referrals) > 0 {
		t.Errorf("it is referred to %v, who have not been given all", v.referrals)
	}
	ss.leave(k, member(1), true)
	for _, tt := range []struct {
		from tracker.ID
		want []tracker.ID
	}{{"late", []tracker.ID{member(1)}}, {member(1), nil}} {
		if v := ss.enter(k, tt.from, false, epoch, moves); v.serve || !slices.Equal(v.referrals, tt.want) {
			t.Errorf("%s: the verdict is %+v, want referrals to %v", tt.from, v, tt.want)
		}
	}
	ss.leave(k, member(2), true)
	ss.leave(k, member(3), true)
	if v := ss.enter(k, "late", false, epoch, moves); !v.serve {
		t.Errorf("there is room again, and the verdict is %+v", v)
	}
}

// full returns the spread of a stripe that its owner sends to as many as it may, and
// that "holder" has been given.
func full() (*spreads, spreadKey) {
	ss, k := newSpreads(), spreadKey{stripe: 1}
	ss.enter(k, "holder", true, epoch, moves)
	ss.leave(k, "holder", true)
	for i := range fanOut {
		ss.enter(k, member(i), true, epoch, moves)
	}
	return ss, k
}

func TestAHolderIsSentOneMemberAtATime(t *testing.T) {
	for name, tt := range map[string]struct {
		then func(ss *spreads, k spreadKey)
		at   time.Time
		want []tracker.ID // to whom the second is referred
	}{
		"the first is at it":           {func(*spreads, spreadKey) {}, epoch, nil},
		"the first has got it":         {func(ss *spreads, k spreadKey) { ss.have(k, "first") }, epoch, []tracker.ID{"holder", "first"}},
		"the first has not come back":  {func(*spreads, spreadKey) {}, epoch.Add(referredFor), []tracker.ID{"holder"}},
		"the first asks again":         {func(ss *spreads, k spreadKey) { ss.enter(k, "first", true, epoch, moves) }, epoch, nil},
		"somebody says to have got it": {func(ss *spreads, k spreadKey) { ss.have(k, "liar") }, epoch, nil},
	} {
		ss, k := full()
		if v := ss.enter(k, "first", false, epoch, moves); !slices.Equal(v.referrals, []tracker.ID{"holder"}) {
			t.Fatalf("the first is referred to %v", v.referrals)
		}
		tt.then(ss, k)
		v := ss.enter(k, "second", false, tt.at, moves)
		if len(v.referrals) > 1 || len(tt.want) == 0 && v.wait == nil || len(tt.want) > 0 && (len(v.referrals) == 0 || !slices.Contains(tt.want, v.referrals[0])) {
			t.Errorf("%s: the verdict is %+v, want one of %v", name, v, tt.want)
		}
	}
}

// TestHoldersDouble: whoever has got a stripe takes the next one.
func TestHoldersDouble(t *testing.T) {
	ss, k := full()
	waiting := make([]tracker.ID, 100)
	for i := range waiting {
		waiting[i] = tracker.ID(fmt.Sprintf("w%03d", i))
	}
	for round, holders := 0, 1; len(waiting) > 0; round, holders = round+1, 2*holders {
		var got []tracker.ID
		waiting = slices.DeleteFunc(waiting, func(id tracker.ID) bool {
			if len(ss.enter(k, id, false, epoch, moves).referrals) == 0 {
				return false
			}
			got = append(got, id)
			return true
		})
		if len(got) != holders && len(waiting) > 0 {
			t.Errorf("in round %d there are %d holders for %d members", round, len(got), holders)
		}
		for _, id := range got {
			ss.have(k, id)
		}
	}
	if n := len(ss.all[k].sent); n != 0 {
		t.Errorf("%d referrals are remembered", n)
	}
}

func TestWhoWasGivenAStripeLongAgoIsNotReferredTo(t *testing.T) {
	ss, k := newSpreads(), spreadKey{stripe: 1}
	ss.enter(k, "early", false, epoch, moves)
	ss.leave(k, "early", true)
	for i := range fanOut {
		ss.enter(k, member(i), false, epoch.Add(spreadFor+time.Second), moves)
	}
	if v := ss.enter(k, "late", false, epoch.Add(spreadFor+time.Second), moves); len(v.referrals) > 0 {
		t.Errorf("it is referred to %v", v.referrals)
	}
}

func TestStripesAreForgottenForNewOnes(t *testing.T) {
	ss, busy := newSpreads(), spreadKey{host: "busy"}
	ss.enter(busy, "a", false, epoch, moves)
	for i := range 3 * maxSpreads {
		k := spreadKey{stripe: i}
		ss.enter(k, "a", false, epoch, moves)
		ss.leave(k, "a", true)
	}
	if n := len(ss.all); n > maxSpreads {
		t.Errorf("%d stripes are remembered, want %d at most", n, maxSpreads)
	}
	if ss.all[busy] == nil {
		t.Error("a stripe that is being sent was forgotten")
	}
	ss.leave(spreadKey{host: "unknown"}, "a", true) // is no harm
}
