package dht

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
	"golang.org/x/time/rate"

	"github.com/opencontainers/go-digest"
)

// wide is a network in memory: what each site has been told, and which are away.
type wide struct {
	*announcer
	sites  []peer.ID
	during func() // called while a site is told

	mu    sync.Mutex
	away  map[peer.ID]bool
	said  int
	books map[peer.ID]map[digest.Digest]bool // what they think that this site has
}

func newWide(n int) *wide {
	w := &wide{away: make(map[peer.ID]bool), books: make(map[peer.ID]map[digest.Digest]bool)}
	for i := range n {
		id := peer.ID(fmt.Sprint("site ", i))
		w.sites, w.books[id] = append(w.sites, id), make(map[digest.Digest]bool)
	}
	p := usual
	p.again = 8 * time.Hour
	lookup := func(_ context.Context, key multihash.Multihash) ([]peer.ID, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		near := slices.DeleteFunc(kb.SortClosestPeers(w.sites, placeOf(key)), func(id peer.ID) bool { return w.away[id] })
		return near[:min(len(near), nearest)], nil
	}
	w.announcer = &announcer{
		self: "self", regions: newRegions(p, time.Now, lookup), send: w.told, limit: rate.NewLimiter(50, copies),
		pace: p, ttl: 24 * time.Hour, now: time.Now, log: slog.New(slog.DiscardHandler),
		kick: make(chan struct{}, 1), blobs: make(map[digest.Digest]*blob),
	}
	return w
}

func (w *wide) told(_ context.Context, to peer.ID, key []byte, takesBack bool) error {
	if w.during != nil {
		w.during()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said++
	if w.away[to] {
		return errors.New("no route")
	}
	d, _ := digestOf(key)
	w.books[to][d] = !takesBack
	return nil
}

// knowing counts the sites that take a blob to be here.
func (w *wide) knowing(d digest.Digest) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range w.books {
		if b[d] {
			n++
		}
	}
	return n
}

// inWide runs a test in virtual time.
func inWide(t *testing.T, n int, test func(t *testing.T, w *wide)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWide(n)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			w.run(ctx)
		}()
		test(t, w)
		cancel()
		<-ended
	})
}

// sent returns how many messages have been.
func (w *wide) sent() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.said
}

// gone makes sites unreachable, and back has them all there again.
func (w *wide) gone(sites ...peer.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range sites {
		w.away[id] = true
	}
}

func (w *wide) back() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.away)
}

func (w *wide) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestAnnouncementsArePaced(t *testing.T) {
	inWide(t, 20, func(t *testing.T, w *wide) {
		held := blobs(2000)
		for _, d := range held {
			w.announce(d)
		}
		for range 5 {
			before := w.sent()
			w.after(10 * time.Second)
			if n := w.sent() - before; n < 400 || n > 510 {
				t.Errorf("%d messages are sent in 10 s", n)
			}
		}
		w.after(3 * time.Minute)
		if w.sent() != copies*len(held) {
			t.Errorf("%d messages are sent for %d blobs", w.sent(), len(held))
		}
		// While these are told again, what is new does not wait for them.
		w.after(7*time.Hour + 45*time.Minute)
		if w.sent() != copies*len(held) {
			t.Errorf("within 8 hours %d messages are sent for %d blobs", w.sent(), len(held))
		}
		before := w.sent()
		w.announce(digest.FromString("new"))
		w.after(30 * time.Second)
		if n := w.knowing(digest.FromString("new")); n != copies {
			t.Errorf("%d know the new one, after %d messages", n, w.sent()-before)
		}
		w.after(time.Hour)
		if n := w.sent() - before; n < copies*1900 {
			t.Errorf("after 8 hours %d messages tell it again", n)
		}
	})
}

func TestWhatChangesWhileItIsToldIsToldNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWide(4), blobs(1)[0]
		changes := []func(digest.Digest){w.withdraw, w.announce, w.withdraw}
		w.during = func() {
			if len(changes) > 0 {
				changes[0](d)
				changes = changes[1:]
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		go w.run(ctx)
		w.announce(d)
		w.after(10 * time.Second)
		if n := w.knowing(d); n != 0 {
			t.Errorf("it was withdrawn last, and %d think that it is here", n)
		}
		w.announce(d)
		w.after(10 * time.Second)
		if n := w.knowing(d); n != 4 {
			t.Errorf("it was announced last, and %d know it", n)
		}
		cancel()
	})
}

func TestWhoIsAwayIsToldLater(t *testing.T) {
	inWide(t, 4, func(t *testing.T, w *wide) {
		d := blobs(1)[0]
		w.gone(w.sites...)
		w.announce(d)
		w.after(time.Minute)
		w.back()
		w.after(5 * time.Minute)
		if n := w.knowing(d); n != 4 {
			t.Errorf("%d know it", n)
		}
		w.gone(w.sites[2])
		w.withdraw(d)
		w.after(time.Hour)
		if n := w.knowing(d); n != 1 {
			t.Errorf("%d know it, of which one is away", n)
		}
		w.back()
		w.after(2 * time.Hour)
		if n := w.knowing(d); n != 0 || len(w.blobs) > 0 {
			t.Errorf("%d know it, %d are remembered", n, len(w.blobs))
		}
	})
}

// A site that never comes back must not be tried for ever.
func TestAWithdrawalEndsWithTheRecord(t *testing.T) {
	inWide(t, 4, func(t *testing.T, w *wide) {
		d := blobs(1)[0]
		w.announce(d)
		w.after(time.Minute)
		w.gone(w.sites[0])
		w.withdraw(d)
		w.after(30 * time.Hour)
		if len(w.blobs) > 0 || w.sent() > 100 {
			t.Errorf("%d are remembered, %d messages were sent", len(w.blobs), w.sent())
		}
	})
}

func TestOtherSitesAreToldWhenTheNearestChange(t *testing.T) {
	inWide(t, 20, func(t *testing.T, w *wide) {
		d := blobs(1)[0]
		w.announce(d)
		w.after(time.Minute)
		near := kb.SortClosestPeers(w.sites, placeOf(mustKey(d)))
		w.gone(near[:2]...)
		w.after(time.Hour)
		if n := w.knowing(d); n != copies+2 || w.sent() != copies+2 {
			t.Errorf("%d know it, of which 2 are away, after %d messages", n, w.sent())
		}
		w.back()
		w.withdraw(d)
		w.after(time.Minute)
		if n := w.knowing(d); n != 0 {
			t.Errorf("%d know it after it was withdrawn", n)
		}
	})
}

func TestNewAddressesAreToldWithFewMessages(t *testing.T) {
	inWide(t, 20, func(t *testing.T, w *wide) {
		for _, d := range blobs(500) {
			w.announce(d)
		}
		w.after(time.Minute)
		before := w.sent()
		w.moved()
		w.after(time.Minute)
		if n := w.sent() - before; n < 20 || n > 20*copies {
			t.Errorf("%d messages tell 20 sites of an address", n)
		}
	})
}
