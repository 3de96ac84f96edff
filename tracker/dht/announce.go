package dht

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"
)

// pace is how fast things are done.
type pace struct {
	gather time.Duration // how long news wait for others
	retry  time.Duration // until what failed is tried again; twice as long each time, up to 256 times
	look   time.Duration // until it is seen whether other sites are the nearest now
	again  time.Duration // until who has been told is told again; 0: a third of the TTL
}

var usual = pace{gather: time.Second, retry: 15 * time.Second, look: 30 * time.Minute}

const (
	maxBatch  = 256 // blobs that are told of in one pass over the key space
	sendTime  = 10 * time.Second
	leaveTime = 5 * time.Second
	maxFailed = 8
	maxTold   = 4 * copies // sites that are remembered to have been told of a blob
)

// announcer tells the nearest sites what this one has.
type announcer struct {
	self    peer.ID
	regions *regions
	send    func(ctx context.Context, to peer.ID, key []byte, takesBack bool) error
	limit   *rate.Limiter
	pace    pace
	ttl     time.Duration
	now     func() time.Time
	log     *slog.Logger
	kick    chan struct{} // has room for one

	mu    sync.Mutex
	blobs map[digest.Digest]*blob
	look  time.Time // when all that are held are looked at next
}

// blob is one that is announced, or has been and is to be withdrawn.
type blob struct {
	digest digest.Digest
	key    multihash.Multihash
	place  kb.ID

	// Guarded by announcer.mu.
	hold bool
	due  time.Time // when somebody may have to be told next; zero: it is news, for all
	ends time.Time // when the last that was said of it has ended
	told []telling // who may think that it is held; replaced, never changed

	change int // how often it has become news
	failed int // times in a row
}

// telling is a site and when it was told.
type telling struct {
	site peer.ID
	at   time.Time
}

// news has a blob told of next. The announcer's mu is held.
func (b *blob) news() {
	b.due = time.Time{}
	b.change++
}

func newAnnouncer(t *Tracker, cfg Config, p pace) *announcer {
	if p.again == 0 {
		p.again = cfg.TTL / 3
	}
	w := wire{t}
	return &announcer{
		self: t.host.ID(), regions: newRegions(p, cfg.Now, w.lookup), send: w.send,
		limit: rate.NewLimiter(rate.Limit(cfg.Rate), copies),
		pace:  p, ttl: cfg.TTL, now: cfg.Now, log: cfg.Log,
		kick:  make(chan struct{}, 1),
		blobs: make(map[digest.Digest]*blob),
	}
}

func (a *announcer) announce(d digest.Digest) {
	key, ok := keyOf(d)
	if !ok {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.blobs[d]
	if b == nil {
		b = &blob{digest: d, key: key, place: placeOf(key)}
		a.blobs[d] = b
	}
	if !b.hold {
		b.hold = true
		b.news()
		a.wake()
	}
}

func (a *announcer) withdraw(d digest.Digest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b := a.blobs[d]; b != nil && b.hold {
		b.hold = false
		b.news()
		a.wake()
	}
}

// moved has everybody told, by one blob, that has been told of one before: the addresses
// that come with it hold for all.
func (a *announcer) moved() {
	a.mu.Lock()
	defer a.mu.Unlock()
	seen := make(map[peer.ID]bool)
	for _, b := range a.blobs {
		if b.hold && slices.ContainsFunc(b.told, func(t telling) bool { return !seen[t.site] }) {
			b.news()
			for _, t := range b.told {
				seen[t.site] = true
			}
		}
	}
	a.wake()
}

func (a *announcer) holds(d digest.Digest) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.blobs[d]
	return b != nil && b.hold
}

func (a *announcer) wake() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// run tells what is due until ctx ends.
func (a *announcer) run(ctx context.Context) {
	for ctx.Err() == nil {
		batch, wait := a.take()
		for _, d := range batch {
			a.tell(ctx, d)
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		case <-a.kick:
			sleep(ctx, a.pace.gather)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// take returns blobs that are due, in order of the key space, and how long until one
// is if none is. News go before what is only told again.
func (a *announcer) take() (batch []*blob, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	wait = a.pace.look
	var news, again []*blob
	for _, b := range a.blobs {
		switch left := b.due.Sub(now); {
		case b.due.IsZero():
			news = append(news, b)
		case left <= 0:
			again = append(again, b)
		default:
			wait = min(wait, left)
		}
	}
	batch = news
	if len(news) == 0 {
		batch = again
	}
	slices.SortFunc(batch, func(x, y *blob) int { return bytes.Compare(x.place, y.place) })
	return batch[:min(len(batch), maxBatch)], wait
}

// tell tells whom it concerns what holds of a blob now. What holds may change
// meanwhile: then it is news again, and the next to be told is the change.
func (a *announcer) tell(ctx context.Context, b *blob) {
	a.mu.Lock()
	was := *b
	a.mu.Unlock()
	var told []telling
	var err error
	if was.hold {
		told, err = a.announceTo(ctx, was)
	} else {
		told, err = a.withdrawFrom(ctx, was)
	}
	if err != nil && ctx.Err() == nil {
		a.log.Debug("dht: other sites are not told", "blob", was.digest, "held", was.hold, "error", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	b.told = told
	if was.hold {
		b.ends = now.Add(a.ttl)
	}
	switch {
	case b.change != was.change: // what was told is overtaken
	case err != nil:
		b.due = now.Add(a.pace.retry << b.failed)
		b.failed = min(b.failed+1, maxFailed)
	default:
		b.due, b.failed = a.nextLook(now), 0
	}
	if !b.hold && (len(told) == 0 || now.After(b.ends)) {
		delete(a.blobs, b.digest)
	}
}

// nextLook returns when it is seen next who is the nearest. It is the same time for all
// blobs, so that they are gone through in order; a.mu is held.
func (a *announcer) nextLook(now time.Time) time.Time {
	if !now.Before(a.look) {
		a.look = now.Add(jitter(a.pace.look))
	}
	return a.look
}

// announceTo tells the nearest sites, or if it is no news those that have not been
// told, or long ago. It returns who may know now, and an error if nobody does.
func (a *announcer) announceTo(ctx context.Context, b blob) ([]telling, error) {
	near, err := a.regions.nearest(ctx, b.key, b.place)
	if err != nil {
		return b.told, err
	}
	told, errs := slices.Clone(b.told), []error(nil)
	for _, id := range near {
		i := slices.IndexFunc(told, func(t telling) bool { return t.site == id })
		if i >= 0 && !b.due.IsZero() && a.now().Sub(told[i].at) < a.pace.again {
			continue
		}
		if err := a.say(ctx, id, b.key, false); err != nil {
			a.regions.avoid(id)
			errs = append(errs, err)
			continue
		}
		if i >= 0 {
			told = slices.Delete(told, i, i+1)
		}
		told = append(told, telling{id, a.now()})
	}
	told = told[max(0, len(told)-maxTold):]
	if len(errs) == len(near) {
		return told, fmt.Errorf("nobody could be told: %w", errors.Join(errs...))
	}
	return told, nil
}

// withdrawFrom takes back what was told. It returns who still is to be.
func (a *announcer) withdrawFrom(ctx context.Context, b blob) ([]telling, error) {
	var left []telling
	var errs []error
	for _, t := range b.told {
		if err := a.say(ctx, t.site, b.key, true); err != nil {
			left = append(left, t)
			errs = append(errs, err)
		}
	}
	return left, errors.Join(errs...)
}

func (a *announcer) say(ctx context.Context, to peer.ID, key []byte, takesBack bool) error {
	if err := a.limit.Wait(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	return a.send(ctx, to, key, takesBack)
}

// leave tells everybody that was told something, once and at the same time, that it
// does not hold. run has ended.
func (a *announcer) leave(ctx context.Context) error {
	a.mu.Lock()
	told := make(map[peer.ID]bool)
	for _, b := range a.blobs {
		for _, t := range b.told {
			told[t.site] = true
		}
	}
	clear(a.blobs)
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	results := make(chan error, len(told))
	for id := range told {
		go func() { results <- a.send(ctx, id, []byte(a.self), true) }()
	}
	var errs []error
	for range told {
		if err := <-results; err != nil {
			errs = append(errs, fmt.Errorf("leave: %w", err))
		}
	}
	return errors.Join(errs...)
}

// jitter spreads what all sites would do at once, by a tenth.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/10+1))
}
