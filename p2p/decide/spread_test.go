package decide

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/tracker"
)

var (
	key    = Stripe{Number: 1, Size: chunk.StripeSize}
	single = Stripe{Number: 1, Size: chunk.Size} // one chunk
)

// fanOut is that of requests that have none.
const fanOut = 2

func member(i int) tracker.ID { return tracker.ID(fmt.Sprintf("m%04d", i)) }

// owner is who is asked for a stripe, and what became of the requests.
type owner struct {
	*Spreads
	verdicts map[tracker.ID]Verdict // the latest
	requests map[tracker.ID]*Request
}

func newOwner() *owner {
	return &owner{NewSpreads(rand.New(rand.NewPCG(1, 2))), make(map[tracker.ID]Verdict), make(map[tracker.ID]*Request)}
}

func moves(time.Time) bool { return false }

// ask makes a request, and returns what becomes of it at once; ok is whether that is anything.
func (o *owner) ask(k Stripe, r Request, now time.Time) (v Verdict, ok bool) {
	delete(o.verdicts, r.From)
	if r.Stuck == nil {
		r.Stuck = moves
	}
	r.FanOut = cmp.Or(r.FanOut, fanOut)
	r.Decided = func(v Verdict) { o.verdicts[r.From] = v }
	o.requests[r.From] = &r
	o.Enter(k, &r, now)
	v, ok = o.verdicts[r.From]
	return v, ok
}

func TestAnOwnerSendsAStripeToAFewAndRefersTheOthersToThem(t *testing.T) {
	o := newOwner()
	for i := range fanOut {
		if v, _ := o.ask(key, Request{From: member(i)}, epoch); !v.Serve {
			t.Fatalf("member %d is not served", i)
		}
	}
	if v, ok := o.ask(key, Request{From: "late"}, epoch); !ok || v.Serve || v.Referral != member(0) && v.Referral != member(1) {
		t.Errorf("the verdict is %+v, want a referral to whom it is being sent", v)
	}
	for name, r := range map[string]Request{
		"one who has waited for long": {From: "patient", Late: true},
		"one who is sent it":          {From: member(0)},
	} {
		if v, _ := o.ask(key, r, epoch); !v.Serve {
			t.Errorf("%s is not served", name)
		}
	}
	if v, _ := o.ask(Stripe{Number: 2}, Request{From: "late"}, epoch); !v.Serve {
		t.Error("another stripe is not served")
	}
}

// TestACrowdBecomesATree: however many ask at the same moment, each has somebody to get it from, nobody has more than
// it can send to, and all lead to the owner.
func TestACrowdBecomesATree(t *testing.T) {
	o, from, children := newOwner(), make(map[tracker.ID]tracker.ID), make(map[tracker.ID]int)
	for i := range 3000 {
		v, ok := o.ask(key, Request{From: member(i)}, epoch)
		if !ok {
			t.Fatalf("member %d has to wait", i)
		}
		if !v.Serve {
			from[member(i)] = v.Referral
			children[v.Referral]++
		}
	}
	if n := 3000 - len(from); n != fanOut {
		t.Errorf("the owner sends to %d, want %d", n, fanOut)
	}
	for id, n := range children {
		if n > fanOut {
			t.Errorf("%d are referred to %s", n, id)
		}
	}
	for i := range 3000 {
		depth := 0
		for id := member(i); from[id] != ""; id = from[id] {
			if depth++; depth > 60 {
				t.Fatalf("member %d is %d members from the owner", i, depth)
			}
		}
	}
}

// crowd has so many ask for a stripe of one chunk at the same moment. It returns who is served, who is referred to whom, and who waits.
func crowd(o *owner, n int) (served []tracker.ID, to map[tracker.ID][]tracker.ID, waiting []tracker.ID) {
	to = make(map[tracker.ID][]tracker.ID)
	for i := range n {
		switch v, ok := o.ask(single, Request{From: member(i)}, epoch); {
		case !ok:
			waiting = append(waiting, member(i))
		case v.Serve:
			served = append(served, member(i))
		default:
			to[v.Referral] = append(to[v.Referral], member(i))
		}
	}
	return served, to, waiting
}

// TestOneChunkIsGotFromWhoHasIt: nobody is bound to a member that is still being sent it, and each that has it is soon asked
// by others: the number of those who have it multiplies.
func TestOneChunkIsGotFromWhoHasIt(t *testing.T) {
	const members = 200
	o := newOwner()
	served, to, waiting := crowd(o, members)
	if len(served) != fanOut || len(to) != 0 || len(waiting) != members-fanOut {
		t.Fatalf("%d are served and %d wait, %v are referred to", len(served), len(waiting), to)
	}
	have := make(map[tracker.ID]bool)
	for rounds := 1; len(have) < members; rounds++ {
		if rounds > 8 {
			t.Fatalf("after %d rounds %d have it", rounds, len(have))
		}
		under, askers := maps.Clone(o.verdicts), make(map[tracker.ID]int)
		maps.DeleteFunc(under, func(id tracker.ID, _ Verdict) bool { return have[id] })
		for id, v := range under {
			if askers[v.Referral]++; askers[v.Referral] > fanOut || !v.Serve && !have[v.Referral] {
				t.Fatalf("%s is the one of %d that is referred to %s, which has it: %v", id, askers[v.Referral], v.Referral, have[v.Referral])
			}
		}
		for id, v := range under {
			have[id] = true
			if v.Serve {
				o.Leave(single, id, true, epoch)
			} else {
				o.Have(single, id, epoch)
			}
		}
	}
}

// TestOfManyWhoWaitForOneChunkSomeAreAskedByOthers: an owner keeps no more waiting than it can, and even then nobody is asked by more
// than it can send to.
func TestOfManyWhoWaitForOneChunkSomeAreAskedByOthers(t *testing.T) {
	for _, c := range []struct{ members, most int }{{manyWait + fanOut, manyWait}, {2*manyWait + fanOut, manyWait}, {10000, mostWait}} {
		o := newOwner()
		served, to, waiting := crowd(o, c.members)
		referred := 0
		for id, by := range to {
			if referred += len(by); len(by) > fanOut {
				t.Errorf("of %d members %d are referred to %s", c.members, len(by), id)
			}
			if c.most < mostWait && !slices.Contains(waiting, id) {
				t.Errorf("%s is referred to and does not wait", id)
			}
		}
		if len(waiting) != c.most || len(served)+len(waiting)+referred != c.members {
			t.Errorf("of %d members %d are served, %d wait and %d are referred", c.members, len(served), len(waiting), referred)
		}
		for _, id := range waiting {
			o.Quit(single, o.requests[id])
		}
		if o.waiting != 0 {
			t.Errorf("%d wait, of nobody", o.waiting)
		}
	}
}

func TestWhoAsksAgainAndAgainIsNotReferredToItself(t *testing.T) {
	o := newOwner()
	crowd(o, fanOut)
	for range 2 * manyWait {
		if v, _ := o.ask(single, Request{From: "greedy"}, epoch); v.Referral == "greedy" {
			t.Fatal("it is")
		}
	}
}

// TestWhoHasWaitedForLongForOneChunk is referred to somebody who waits too, where there is one: an owner that gets it late does not
// send it to everybody itself.
func TestWhoHasWaitedForLongForOneChunk(t *testing.T) {
	o := newOwner()
	_, _, waiting := crowd(o, 50)
	served := 0
	for _, id := range waiting {
		if !o.Quit(single, o.requests[id]) {
			t.Fatalf("%s does not wait", id)
		}
		v, ok := o.ask(single, Request{From: id, Late: true}, epoch)
		if !ok {
			t.Fatalf("%s waits still", id)
		}
		if v.Serve {
			served++
		}
	}
	if served > fanOut {
		t.Errorf("%d of those who have waited for long are served", served)
	}
	if v, _ := newOwner().ask(single, Request{From: "alone", Late: true}, epoch); !v.Serve {
		t.Error("one that is alone is not served")
	}
}

// TestWhoWasAskedTooEarlyIsAskedAgain: who is referred to a member that waits and comes back takes nothing from it for when
// it has the stripe; and nor does who asks afresh.
func TestWhoWasAskedTooEarlyIsAskedAgain(t *testing.T) {
	o := newOwner()
	_, to, _ := crowd(o, manyWait+2*fanOut)
	early := slices.Sorted(maps.Keys(to))[0]
	for _, id := range to[early] {
		o.ask(single, Request{From: id, Insists: true}, epoch)
	}
	s := o.all[single]
	p := s.places[early]
	s.has(p)
	if p.room != fanOut {
		t.Errorf("%d may be referred to it, want %d", p.room, fanOut)
	}
	for range 3 * fanOut {
		if v, _ := o.ask(single, Request{From: "fickle"}, epoch); v.Referral != early {
			t.Fatalf("who asks afresh is referred to %q, want the one that has it", v.Referral)
		}
	}
}

// TestOneChunkComesToAll: whatever becomes of those who are to have it, all have it in the end.
func TestOneChunkComesToAll(t *testing.T) {
	const members = 1000
	o, random := newOwner(), rand.New(rand.NewPCG(5, 6))
	crowd(o, members)
	have := make(map[tracker.ID]bool)
	for range 60 {
		for _, id := range slices.Sorted(maps.Keys(o.verdicts)) {
			v, lost := o.verdicts[id], random.IntN(4) == 0
			switch {
			case !v.Serve && !lost && !have[v.Referral]:
				continue // it waits for who waits
			case v.Serve:
				delete(o.verdicts, id)
				o.Leave(single, id, !lost, epoch)
			case !lost:
				delete(o.verdicts, id)
				o.Have(single, id, epoch)
			}
			if have[id] = !lost; lost {
				o.ask(single, Request{From: id, Insists: true}, epoch)
			}
		}
	}
	n := 0
	for i := range members {
		if have[member(i)] {
			n++
		}
	}
	if n != members || o.waiting != 0 {
		t.Errorf("%d have it of %d, and %d wait", n, members, o.waiting)
	}
}

func TestNobodyWaitsForItself(t *testing.T) {
	for _, c := range []struct {
		key     Stripe
		members int
	}{{key, 200}, {single, 2 * mostWait}} {
		o, random := newOwner(), rand.New(rand.NewPCG(3, 4))
		for i := range c.members {
			o.ask(c.key, Request{From: member(i)}, epoch)
		}
		referred := 0
		for range 10 * c.members { // who could not get it from whom it was referred to, or has it
			id := member(random.IntN(c.members))
			switch v := o.verdicts[id]; {
			case o.Quit(c.key, o.requests[id]), v.Serve && random.IntN(2) == 0:
				o.Leave(c.key, id, false, epoch)
				o.ask(c.key, Request{From: id, Insists: true}, epoch)
			case v.Serve:
				o.Leave(c.key, id, true, epoch)
				delete(o.verdicts, id)
			case v.Referral != "":
				o.ask(c.key, Request{From: id, Insists: true}, epoch)
			}
			depth := 0
			for at := o.verdicts[id].Referral; at != ""; at = o.verdicts[at].Referral {
				referred++
				if depth++; at == id || depth > c.members {
					t.Fatalf("%s is referred to somebody who has it from %s", id, id)
				}
			}
		}
		if referred < c.members {
			t.Errorf("no more than %d referrals were looked at", referred)
		}
	}
}

func TestWhoHasLeastToSendIsReferredTo(t *testing.T) {
	to := make(map[tracker.ID]int)
	o := newOwner()
	for i := range 100 {
		k := Stripe{Number: i}
		o.ask(k, Request{From: "busy", Load: 30}, epoch)
		o.ask(k, Request{From: "idle", Load: 1}, epoch)
		v, _ := o.ask(k, Request{From: "late"}, epoch)
		to[v.Referral]++
	}
	if to["idle"] < 80 {
		t.Errorf("referred to %v, want mostly the one that is idle", to)
	}
}

func TestWhoTakesNothingKeepsNobodyWaiting(t *testing.T) {
	o := newOwner()
	for i := range fanOut {
		o.ask(key, Request{From: member(i), Stuck: func(now time.Time) bool { return now.After(epoch) }}, epoch)
	}
	for i := range fanOut * fanOut { // as many as may be referred to these
		o.ask(key, Request{From: tracker.ID(fmt.Sprint("child ", i))}, epoch)
	}
	if v, _ := o.ask(key, Request{From: "late"}, epoch); v.Serve {
		t.Error("there is no room, and one more is served")
	}
	if v, _ := o.ask(key, Request{From: "later"}, epoch.Add(time.Second)); !v.Serve {
		t.Errorf("those who are sent it have vanished, and the verdict is %+v", v)
	}
}

// waits returns an owner who sends a stripe to as many as it may, none of whom may be referred to, and one who waits.
func waits(t *testing.T) *owner {
	o := newOwner()
	for i := range fanOut {
		o.ask(key, Request{From: member(i)}, epoch)
	}
	for _, p := range o.all[key].places {
		p.room = 0
	}
	if v, ok := o.ask(key, Request{From: "waiting"}, epoch); ok {
		t.Fatalf("with nobody to refer to the verdict is %+v", v)
	}
	return o
}

func TestWhoWaitsIsDecidedOnWhenThereIsRoom(t *testing.T) {
	o := waits(t)
	o.Leave(key, member(0), true, epoch)
	if !o.verdicts["waiting"].Serve {
		t.Error("there is room, and who waits is not served")
	}
	if o.Quit(key, o.requests["waiting"]) {
		t.Error("what was decided is taken back")
	}
}

func TestWhoHasLeftIsNotDecidedOn(t *testing.T) {
	o := waits(t)
	if !o.Quit(key, o.requests["waiting"]) {
		t.Error("what waits cannot be taken back")
	}
	o.Leave(key, member(0), true, epoch)
	if v, ok := o.verdicts["waiting"]; ok {
		t.Errorf("the verdict is %+v, of a request that was taken back", v)
	}
}

func TestWhoHasGotItHasRoomForOthers(t *testing.T) {
	o := newOwner()
	for i := range fanOut {
		o.ask(key, Request{From: member(i)}, epoch)
	}
	var children []tracker.ID
	for i := range fanOut * fanOut {
		children = append(children, tracker.ID(fmt.Sprint("child ", i)))
		o.ask(key, Request{From: children[i]}, epoch)
	}
	first := o.verdicts[children[0]].Referral
	o.all[key].places[first].load = -1 // it is the best
	for _, p := range o.all[key].places {
		if slices.Contains(children, p.id) {
			p.room = 0
		}
	}
	if v, ok := o.ask(key, Request{From: "late"}, epoch); ok {
		t.Fatalf("the verdict is %+v, though all have as many as they may", v)
	}
	o.Have(key, "stranger", epoch)
	if _, ok := o.verdicts["late"]; ok {
		t.Error("the word of one who was not referred counts")
	}
	o.Have(key, children[0], epoch)
	if got := o.verdicts["late"].Referral; got != first && got != children[0] {
		t.Errorf("referred to %q, want the one that has room again", got)
	}
}

func TestOneWhoIsReferredInVainAgainAndAgainIsServed(t *testing.T) {
	o := newOwner()
	for i := range 100 {
		o.ask(key, Request{From: member(i)}, epoch)
	}
	for i := range maxAgain + 2 {
		if v, _ := o.ask(key, Request{From: "unlucky", Insists: i > 0}, epoch); v.Serve {
			if i < maxAgain {
				t.Errorf("it is served after %d referrals", i)
			}
			return
		}
	}
	t.Error("it is never served")
}

func TestWhoWasGivenAStripeLongAgoIsNotReferredTo(t *testing.T) {
	o := newOwner()
	o.ask(key, Request{From: "early"}, epoch)
	o.Leave(key, "early", true, epoch)
	later := epoch.Add(SpreadFor + time.Second)
	for i := range 3 * fanOut {
		if v, _ := o.ask(key, Request{From: member(i)}, later); v.Referral == "early" {
			t.Error("it is referred to")
		}
	}
}

func TestStripesThatNobodyAsksForAreForgotten(t *testing.T) {
	o := newOwner()
	o.ask(Stripe{Host: "busy"}, Request{From: "a"}, epoch)
	for i := range 10 {
		k := Stripe{Number: i}
		o.ask(k, Request{From: "a"}, epoch.Add(time.Duration(i)*time.Second))
		o.Leave(k, "a", true, epoch)
	}
	for _, c := range []struct {
		after time.Duration
		left  int
	}{{SpreadFor, 11}, {SpreadFor + 5*time.Second, 6}, {time.Hour, 1}} {
		if n := o.Forget(epoch.Add(c.after)); n != c.left {
			t.Errorf("after %v %d stripes are left, want %d", c.after, n, c.left)
		}
	}
	if o.all[Stripe{Host: "busy"}] == nil {
		t.Error("one that is being sent is forgotten")
	}
}

func TestStripesAreForgottenForNewOnes(t *testing.T) {
	o, busy := newOwner(), Stripe{Host: "busy"}
	o.ask(busy, Request{From: "a"}, epoch)
	for i := range 3 * maxSpreads {
		k := Stripe{Number: i}
		o.ask(k, Request{From: "a"}, epoch)
		o.Leave(k, "a", true, epoch)
	}
	if n := len(o.all); n > maxSpreads {
		t.Errorf("%d stripes are remembered, want %d at most", n, maxSpreads)
	}
	if o.all[busy] == nil {
		t.Error("a stripe that is being sent was forgotten")
	}
	o.Leave(Stripe{Host: "unknown"}, "a", true, epoch) // is no harm
}

func TestMembersOfOneStripeAreBounded(t *testing.T) {
	o := newOwner()
	for i := range maxPlaces + 100 {
		o.ask(key, Request{From: tracker.ID(fmt.Sprint(i)), Late: true}, epoch)
		o.Leave(key, tracker.ID(fmt.Sprint(i)), true, epoch)
	}
	if n := len(o.all[key].places); n > maxPlaces {
		t.Errorf("%d members are remembered, want %d at most", n, maxPlaces)
	}
}

func TestAHolderRefusesWhileItSendsMuchAndMoreThanWhoAsks(t *testing.T) {
	for _, c := range []struct {
		sends, askers int
		want          bool
	}{{0, 0, false}, {7, 0, false}, {8, 0, true}, {8, 7, true}, {8, 8, false}, {30, 40, false}} {
		if got := Refuses(c.sends, c.askers); got != c.want {
			t.Errorf("one that sends %d, asked by one that sends %d: %v", c.sends, c.askers, got)
		}
	}
}
