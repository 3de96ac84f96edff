package chunk

import (
	"math/rand/v2"
	"slices"
	"sync"
)

// Turns bounds how many runs are under way for all readers of a process together, and lets those
// that wait begin in no order, but for those that have come much later: of many nodes that read the same at the same time each then
// has something early that others have late, and is asked for it. In the order of the blob the
// ones that are ahead would be asked for everything, and the others for nothing. Few are under way at
// first, and one more from each on that ends: what all want at once goes from node to node, and each sends it
// on the later the more else it sends. Whoever needs a run at once does not wait. A nil Turns has no bound.
type Turns struct {
	mu          sync.Mutex
	first, most int
	places      int // for runs, between first and most
	under       int // runs under way, more than places after what was urgent
	waiting     []*Turn
	random      *rand.Rand
}

// nextOnes are how many runs are looked at for the one that begins next, those that have waited longest: what is wanted of a registry whose
// link is thin comes the later the more of it is wanted at once.
const nextOnes = 48

// Turn is one run that waits, or is under way.
type Turn struct {
	turns *Turns
	begin func()
}

// NewTurns returns turns for first runs at a time, then for more, up to most. Once nothing is under way, it is first again.
func NewTurns(first, most int, random *rand.Rand) *Turns {
	return &Turns{first: first, most: most, places: first, random: random}
}

// Enter has begin called when it is the run's turn, maybe before Enter returns. It must not wait.
func (t *Turns) Enter(begin func()) *Turn {
	if t == nil {
		begin()
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	turn := &Turn{t, begin}
	t.waiting = append(t.waiting, turn)
	t.next()
	return turn
}

// next lets runs begin while there is room; t.mu is held.
func (t *Turns) next() {
	for t.under < t.places && len(t.waiting) > 0 {
		t.start(t.random.IntN(min(len(t.waiting), nextOnes)))
	}
}

func (t *Turns) start(i int) {
	turn := t.waiting[i]
	t.waiting = slices.Delete(t.waiting, i, i+1)
	t.under++
	turn.begin()
}

// Leave ends a run that has begun.
func (t *Turns) Leave() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.under--
	t.places = min(t.places+1, t.most)
	t.next()
	if t.under == 0 {
		t.places = t.first
	}
}

// Urge lets a run begin at once, unless it has.
func (t *Turn) Urge() {
	if t == nil {
		return
	}
	t.turns.mu.Lock()
	defer t.turns.mu.Unlock()
	if i := slices.Index(t.turns.waiting, t); i >= 0 {
		t.turns.start(i)
	}
}

// Quit takes back a run. It reports false for one that has begun.
func (t *Turn) Quit() bool {
	if t == nil {
		return false
	}
	t.turns.mu.Lock()
	defer t.turns.mu.Unlock()
	i := slices.Index(t.turns.waiting, t)
	if i >= 0 {
		t.turns.waiting = slices.Delete(t.turns.waiting, i, i+1)
	}
	return i >= 0
}
