package decide

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(ms int) time.Time { return epoch.Add(time.Duration(ms) * time.Millisecond) }

// chase is a pursuit of a stripe whose owners are a, b and c, each to be hedged after
// 100 ms, and its surroundings.
type chase struct {
	*Pursuit
	down  map[tracker.ID]bool
	heard map[tracker.ID]time.Time
}

func newChase(owners ...tracker.ID) *chase {
	c := &chase{down: make(map[tracker.ID]bool), heard: make(map[tracker.ID]time.Time)}
	c.Pursuit = NewPursuit(Timing{}.WithDefaults(), nil, c, rand.New(rand.NewPCG(1, 2)))
	for _, id := range owners {
		c.owners = append(c.owners, Candidate{id, 100 * time.Millisecond})
	}
	return c
}

func (c *chase) Usable(id tracker.ID) bool { return !c.down[id] }

func (c *chase) LastHeard(id tracker.ID) time.Time { return c.heard[id] }

// tell tells the pursuit one thing, in words, and returns what it orders, in words.
func (c *chase) tell(ms int, what string) string {
	words, now := strings.Fields(what), at(ms)
	id := tracker.ID("")
	if len(words) > 1 && words[1] != "itself" {
		id = tracker.ID(words[1])
	}
	var orders []Order
	var silent []tracker.ID
	switch words[0] {
	case "start":
		orders = c.Start(now)
	case "wake":
		orders, silent = c.Wake(now)
	case "progress":
		n, _ := strconv.Atoi(words[2])
		c.heard[id] = now
		orders = c.Progress(id, int64(n), now)
	case "data":
		c.heard[id] = now
		orders = c.Data(id, now)
	case "failed":
		orders = c.Failed(id, now)
	case "notfound":
		orders = c.NotFound(id, now)
	case "denied":
		orders = c.Unavailable(id, wire.CauseDenied, now)
	case "unreachable":
		orders = c.Unavailable(id, wire.CauseUnreachable, now)
	case "overloaded":
		orders = c.Unavailable(id, wire.CauseOverloaded, now)
	case "busy":
		var ids []tracker.ID
		for _, w := range words[2:] {
			ids = append(ids, tracker.ID(w))
		}
		orders = c.Busy(id, ids, now)
	case "spent":
		c.OwnFailed()
	case "down":
		c.down[id] = true
	case "hear": // about something else
		c.heard[id] = now
	default:
		panic(what)
	}
	return say(orders, silent)
}

func say(orders []Order, silent []tracker.ID) string {
	var said []string
	for _, id := range silent {
		said = append(said, string(id)+" is silent")
	}
	for _, o := range orders {
		name := string(o.Ask)
		if o.Ask == Itself {
			name = "itself"
		}
		switch {
		case o.Cancel:
			said = append(said, "cancel "+name)
		case o.Role == wire.ToHolder:
			said = append(said, "ask holder "+name)
		case o.Role == wire.ToOwnerAgain:
			said = append(said, "ask again "+name)
		default:
			said = append(said, "ask "+name)
		}
	}
	return strings.Join(said, ", ")
}

func TestAPursuitAsksWhoeverIsLikeliestToAnswer(t *testing.T) {
	// Each line is a time in ms, or a span in which it happens again and again, what
	// happens, and what is ordered. A pursuit is woken at its deadline and not before.
	tests := []struct{ name, trace string }{
		{"the first owner answers", `
			0 start = ask a
			5 data a =
			6 data a =`},
		{"a silent owner is hedged by the next, who answers", `
			0 start = ask a
			100 wake = a is silent, ask b
			105 data b = cancel a`},
		{"silence after the first chunk is hedged, too", `
			0 start = ask a
			100 wake = a is silent, ask b
			105 data a = cancel b
			1105 wake = a is silent, ask b`},
		{"an owner that speaks again is enough, and the other comes back later", `
			0 start = ask a
			100 wake = a is silent, ask b
			120 progress a 0 = cancel b
			130 failed a = ask b`},
		{"the second time that an owner speaks again both go on", `
			0 start = ask a
			100 wake = a is silent, ask b
			120 progress a 1 = cancel b
			1120 wake = a is silent, ask b
			1130 progress a 2 =
			1150 data b = cancel a`},
		{"progress keeps everybody waiting", `
			0 start = ask a
			20 progress a 0 =
			900 progress a 0 =
			1800 progress a 0 =
			2700 data a =`},
		{"progress of which nothing comes ends with the patience", `
			0 start = ask a
			20..59900 progress a 0 =
			60000 wake = ask itself`},
		{"bytes renew the patience, for a while", `
			0 start = ask a
			20..50000 progress a 1 =
			50020..100000 progress a 2 =
			100020..150000 progress a 3 =
			150020..200000 progress a 4 =
			200020..250000 progress a 5 =
			250020..300000 progress a 6 =
			300020..350000 progress a 7 =
			350020..400000 progress a 8 =
			400020..450000 progress a 9 =
			450020..500000 progress a 10 =
			500020..550000 progress a 11 =
			550220..599900 progress a 12 =
			600000 wake = ask itself`},
		{"silence of all ends with the budget", `
			0 start = ask a
			100 wake = a is silent, ask b
			200 wake = b is silent, ask c
			300 wake = c is silent
			2000 wake = ask itself
			2500 data itself = cancel c, cancel b, cancel a`},
		{"a member that gives other answers is waited for, for a while", `
			0 start = ask a
			90 hear a =
			190 wake = a is silent, ask b
			200 progress a 0 = cancel b`},
		{"whoever gives other answers all the time is not said to be silent", `
			0 start = ask a
			90..10085 hear a =
			10100 wake = ask b
			10200 wake = b is silent, ask c
			10300 wake = c is silent
			12000 wake = ask itself`},
		{"an owner that refers is asked no more than those it refers to", `
			0 start = ask a
			5 busy a h = ask holder h
			9 data h =`},
		{"a holder without it sends back to the owner", `
			0 start = ask a
			5 busy a h = ask holder h
			7 notfound h = ask again a
			9 data a =`},
		{"a holder that fails sends back to the owner", `
			0 start = ask a
			5 busy a h = ask holder h
			7 failed h = ask again a`},
		{"a silent holder sends back to the owner, once", `
			0 start = ask a
			5 busy a h = ask holder h
			1005 wake = h is silent, ask again a
			1010 notfound h =
			1020 data a =`},
		{"a holder that speaks again lets the owner be", `
			0 start = ask a
			5 busy a h = ask holder h
			1005 wake = h is silent, ask again a
			1010 progress h 0 = cancel a
			1020 failed h = ask again a`},
		{"a holder is never asked as an owner", `
			0 start = ask a
			100 wake = a is silent, ask b
			110 busy b h = ask holder h
			120 progress a 0 = cancel h
			130 failed a = ask b`},
		{"an owner that refers to nobody is asked again", `
			0 start = ask a
			5 busy a a = ask again a`},
		{"an owner refers who insists elsewhere", `
			0 start = ask a
			5 busy a h = ask holder h
			7 notfound h = ask again a
			9 busy a i = ask holder i
			11 data i =`},
		{"a holder that sends to as many as it may", `
			0 start = ask a
			5 busy a h = ask holder h
			7 busy h = ask again a`},
		{"members that are down are not referred to", `
			0 start = ask a
			0 down h =
			5 busy a h = ask again a`},
		{"an owner that is refused leaves it to the node", `
			0 start = ask a
			5 denied a = ask itself`},
		{"an owner that cannot reach the upstream leaves it to the node", `
			0 start = ask a
			5 unreachable a = ask itself`},
		{"an owner that does not find it leaves it to the node", `
			0 start = ask a
			5 notfound a = ask itself`},
		{"an owner that has too much to do leaves it to the next", `
			0 start = ask a
			5 overloaded a = ask b`},
		{"when all fail it is for the node", `
			0 start = ask a
			5 failed a = ask b
			6 failed b = ask c
			7 failed c = ask itself`},
		{"owners that are down are passed over", `
			0 down a =
			0 down b =
			0 start = ask c`},
		{"the node is at it, and others still help", `
			0 start = ask a
			100 wake = a is silent, ask b
			105 notfound b = ask itself
			110 spent =
			120 data a =
			125 failed a = ask c`},
		{"what nobody can get ends", `
			0 start = ask a
			100 wake = a is silent, ask b
			105 denied b = ask itself
			110 spent =
			2000 wake = cancel a`},
		{"a chunk of another stops the node's own", `
			0 start = ask a
			100 wake = a is silent, ask b
			105 notfound b = ask itself
			110 data a = cancel itself`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newChase("a", "b", "c")
			for line := range strings.Lines(strings.TrimSpace(tt.trace)) {
				when, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
				what, want, _ := strings.Cut(rest, "=")
				what, want = strings.TrimSpace(what), strings.TrimSpace(want)
				first, last, span := strings.Cut(when, "..")
				from, _ := strconv.Atoi(first)
				to, _ := strconv.Atoi(last)
				for ms := from; ms <= max(from, to); ms += 90 {
					if d := c.Deadline(); ms > 0 && (what == "wake" && !d.Equal(at(ms)) || what != "wake" && !d.IsZero() && d.Before(at(ms))) {
						t.Fatalf("%s: at %d the deadline is at %v", rest, ms, d.Sub(epoch))
					}
					if got := c.tell(ms, what); got != want {
						t.Fatalf("%s: at %d it ordered %q", rest, ms, got)
					}
					if !span {
						break
					}
				}
			}
		})
	}
}

// ward keeps the books of a pursuit, as whoever drives it does.
type ward struct {
	*chase
	t     *testing.T
	log   []string
	under map[string]bool
	asked map[string]int
	now   int
}

func (w *ward) tell(what string) {
	said := w.chase.tell(w.now, what)
	w.log = append(w.log, fmt.Sprintf("%d %s = %s", w.now, what, said))
	for o := range strings.SplitSeq(said, ", ") {
		words := strings.Fields(o)
		if len(words) == 0 || words[len(words)-1] == "silent" {
			continue
		}
		id := words[len(words)-1]
		switch asks := words[0] == "ask"; {
		case asks == w.under[id]:
			w.fail("%s, which is under way: %v", o, w.under[id])
		case asks:
			w.under[id] = true
			w.asked[id]++
		default:
			delete(w.under, id)
		}
	}
}

// end is told that an attempt has ended.
func (w *ward) end(id, what string) {
	delete(w.under, id)
	w.tell(what)
}

func (w *ward) fail(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf(format+"\n%s", append(args, strings.Join(w.log, "\n"))...)
}

// msOf returns the first whole millisecond that is not before a deadline.
func msOf(t time.Time) int { return int((t.Sub(epoch) + time.Millisecond - 1) / time.Millisecond) }

func TestOwnersThatAreSilentLeaveTimeForOthers(t *testing.T) {
	c := newChase("a", "b", "c", "d", "e")
	for i := range c.owners {
		c.owners[i].Hedge = time.Second
	}
	for _, step := range []struct {
		ms         int
		does, want string
	}{
		{0, "start", "ask a"},
		{1000, "wake", "a is silent, ask b"},
		{1500, "wake", "b is silent, ask c"},
		{1750, "wake", "c is silent, ask d"},
		{1875, "wake", "d is silent, ask e"},
		{1938, "wake", "e is silent"},
		{2000, "wake", "ask itself"},
	} {
		if step.ms > 0 && msOf(c.Deadline()) != step.ms {
			t.Fatalf("after %d ms: it is woken at %v, want %d ms", step.ms, c.Deadline().Sub(epoch), step.ms)
		}
		if got := c.tell(step.ms, step.does); got != step.want {
			t.Errorf("after %d ms: %q, want %q", step.ms, got, step.want)
		}
	}
}

func TestAPursuitNeverGetsStuckWhateverHappens(t *testing.T) {
	events := []string{"progress", "progress", "data", "failed", "notfound", "denied", "overloaded", "busy", "silence", "hear", "down"}
	for seed := range uint64(3000) {
		random := rand.New(rand.NewPCG(seed, 0))
		w := &ward{chase: newChase("a", "b", "c"), t: t, under: make(map[string]bool), asked: make(map[string]int)}
		w.tell("start")
		given := 0
		for range 200 {
			if len(w.under) == 0 {
				break
			}
			id := slices.Sorted(maps.Keys(w.under))[random.IntN(len(w.under))]
			w.now += random.IntN(300)
			if d := msOf(w.Deadline()); !w.Deadline().IsZero() && d <= w.now {
				w.now = d
				w.tell("wake")
				continue
			}
			what := events[random.IntN(len(events))]
			switch {
			case id == "itself" && what == "failed":
				w.end(id, "spent")
			case what == "data":
				w.tell("data " + id)
				given++
			case id == "itself":
			case what == "progress":
				w.tell(fmt.Sprintf("progress %s %d", id, random.IntN(1<<20)))
			case what == "busy":
				w.end(id, "busy "+id+" h i "+id)
			case what == "down", what == "hear":
				w.tell(what + " " + id)
			case what == "silence":
				w.now += random.IntN(5000)
				if d := w.Deadline(); !d.IsZero() && d.Before(at(w.now)) {
					w.now = msOf(d)
				}
			default:
				w.end(id, what+" "+id)
			}
		}
		if len(w.under) == 0 && w.asked["itself"] == 0 {
			w.fail("seed %d: it gave up without the node itself", seed)
		}
		// From now on nobody says anything.
		delete(w.under, "itself")
		if w.asked["itself"] > 0 {
			w.tell("spent")
		}
		begun := w.now
		for !w.Deadline().IsZero() {
			if w.now = msOf(w.Deadline()); w.now > begun+120_000 {
				w.fail("seed %d: still waiting after two minutes of silence", seed)
			}
			asked := w.asked["itself"]
			w.tell("wake")
			if w.asked["itself"] > asked {
				w.end("itself", "spent")
			}
		}
		if delete(w.under, "itself"); len(w.under) > 0 {
			w.fail("seed %d: %v are waited for without end", seed, w.under)
		}
		for id, n := range w.asked {
			if id != "itself" && n > maxAsked || n > given+1+maxAsked {
				w.fail("seed %d: %s was asked %d times", seed, id, n)
			}
		}
	}
}
