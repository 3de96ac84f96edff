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

func member(i int) tracker.ID { return tracker.ID(fmt.Sprintf("m%03d", i)) }

func TestAnOwnerSendsAStripeToAFewAtATime(t *testing.T) {
	ss, k := newSpreads(), spreadKey{stripe: 1}
	for i := range fanOut {
		if v := ss.enter(k, member(i), false, epoch); !v.serve {
			t.Fatalf("member %d is not served", i)
		}
	}
	v := ss.enter(k, "late", false, epoch)
	if v.serve || len(v.referrals) > 0 || v.wait == nil {
		t.Fatalf("with nobody to refer to the verdict is %+v, want a wait", v)
	}
	for name, served := range map[string]bool{
		"another stripe":     ss.enter(spreadKey{stripe: 2}, "late", false, epoch).serve,
		"one who insists":    ss.enter(k, "insistent", true, epoch).serve,
		"one who is sent it": ss.enter(k, member(0), false, epoch).serve,
	} {
		if !served {
			t.Errorf("%s is not served", name)
		}
	}
}

func TestWhoWaitsIsReferredToThoseWhoHaveBeenGivenIt(t *testing.T) {
	ss, k := newSpreads(), spreadKey{stripe: 1}
	for i := range fanOut + 3 {
		ss.enter(k, member(i), true, epoch)
	}
	wait := ss.enter(k, "late", false, epoch).wait
	ss.leave(k, member(0), false)
	select {
	case <-wait:
	default:
		t.Fatal("who waits does not hear of a change")
	}
	if v := ss.enter(k, "late", false, epoch); len(v.referrals) > 0 {
		t.Errorf("it is referred to %v, who have not been given all", v.referrals)
	}
	ss.leave(k, member(1), true)
	for _, tt := range []struct {
		from tracker.ID
		want []tracker.ID
	}{{"late", []tracker.ID{member(1)}}, {member(1), nil}} {
		if v := ss.enter(k, tt.from, false, epoch); v.serve || !slices.Equal(v.referrals, tt.want) {
			t.Errorf("%s: the verdict is %+v, want referrals to %v", tt.from, v, tt.want)
		}
	}
	ss.leave(k, member(2), true)
	ss.leave(k, member(3), true)
	if v := ss.enter(k, "late", false, epoch); !v.serve {
		t.Errorf("there is room again, and the verdict is %+v", v)
	}
}

func TestReferralsAreFewAndDiffer(t *testing.T) {
	ss, k := newSpreads(), spreadKey{stripe: 1}
	for i := range 100 {
		ss.enter(k, member(i), true, epoch)
	}
	for i := range 50 {
		ss.leave(k, member(i), true)
	}
	named := make(map[tracker.ID]bool)
	for range 200 {
		v := ss.enter(k, "late", false, epoch)
		if len(v.referrals) != maxReferred {
			t.Fatalf("%d referrals, want %d", len(v.referrals), maxReferred)
		}
		for _, id := range v.referrals {
			named[id] = true
		}
	}
	if len(named) != maxGiven || named[member(0)] || !named[member(49)] {
		t.Errorf("%d members were named, want the latest %d", len(named), maxGiven)
	}
}

func TestWhoWasGivenAStripeLongAgoIsNotReferredTo(t *testing.T) {
	ss, k := newSpreads(), spreadKey{stripe: 1}
	ss.enter(k, "early", false, epoch)
	ss.leave(k, "early", true)
	for i := range fanOut {
		ss.enter(k, member(i), false, epoch.Add(spreadFor+time.Second))
	}
	if v := ss.enter(k, "late", false, epoch.Add(spreadFor+time.Second)); len(v.referrals) > 0 {
		t.Errorf("it is referred to %v", v.referrals)
	}
}

func TestStripesAreForgottenForNewOnes(t *testing.T) {
	ss, busy := newSpreads(), spreadKey{host: "busy"}
	ss.enter(busy, "a", false, epoch)
	for i := range 3 * maxSpreads {
		k := spreadKey{stripe: i}
		ss.enter(k, "a", false, epoch)
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
