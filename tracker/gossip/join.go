package gossip

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	maxJoin     = 256 // addresses that are tried in one attempt, any of more
	joinsAtOnce = 8
)

// keepJoining tries to join whoever is not a member, until ctx ends.
func (g *Gossip) keepJoining(ctx context.Context) {
	wait, lonely := g.pace.heal, false
	for {
		err := g.join(ctx)
		alone := g.View().Alone()
		switch {
		case !alone:
			wait = g.pace.heal
		case !lonely:
			wait = g.pace.rejoin
		default:
			wait = min(2*wait, g.pace.heal)
		}
		lonely = alone
		g.report(ctx, alone, err)
		if !sleep(ctx, jitter(wait)) {
			return
		}
	}
}

// report logs why nobody, or not everybody, could be joined. That some address has
// no member behind it is usual.
func (g *Gossip) report(ctx context.Context, alone bool, err error) {
	level := g.cfg.Log.Debug
	if alone {
		level = g.cfg.Log.Warn
	}
	if err != nil && ctx.Err() == nil {
		level("members could not be joined", "alone", alone, "error", err)
	}
}

// join exchanges what is known of the membership with every address that is not a
// member's. The error has what failed.
func (g *Gossip) join(ctx context.Context) error {
	addresses, err := g.candidates(ctx)
	next := make(chan string)
	var mu sync.Mutex
	errs := []error{err}
	var failed []Unjoined
	if err != nil {
		failed = append(failed, Unjoined{Error: err.Error()})
	}
	var workers sync.WaitGroup
	for range min(joinsAtOnce, len(addresses)) {
		workers.Go(func() {
			for a := range next {
				if err := g.joinOne(a); err != nil {
					mu.Lock()
					errs = append(errs, err)
					failed = append(failed, Unjoined{a, err.Error()})
					mu.Unlock()
				}
			}
		})
	}
	for _, a := range addresses {
		if ctx.Err() != nil {
			break
		}
		next <- a
	}
	close(next)
	workers.Wait()
	g.witness.joined(failed)
	return errors.Join(errs...)
}

// joinOne joins one address, unless another one has told of the member behind it
// in the meantime.
func (g *Gossip) joinOne(address string) error {
	if g.roster.has(address) {
		return nil
	}
	_, err := g.list.Join([]string{address})
	if one := errors.Unwrap(err); one != nil { // a list of one error, over several lines
		return one
	}
	return err
}

// candidates returns the addresses, IP:PORT, that are to be joined, in any order:
// those that Join stands for and those of lost members, without this one's own and
// those of members. The error has the names that could not be resolved.
func (g *Gossip) candidates(ctx context.Context) (addresses []string, err error) {
	var errs []error
	all := g.roster.lostAddresses()
	for _, entry := range g.cfg.Join {
		found, err := g.resolve(ctx, entry)
		all, errs = append(all, found...), append(errs, err)
	}
	slices.Sort(all)
	for _, a := range slices.Compact(all) {
		if a != g.addr && !g.roster.has(a) {
			addresses = append(addresses, a)
		}
	}
	rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	return addresses[:min(len(addresses), maxJoin)], errors.Join(errs...)
}

// resolve returns the addresses that an entry of Join stands for.
func (g *Gossip) resolve(ctx context.Context, entry string) ([]string, error) {
	host, port, err := splitJoin(entry, g.port)
	if err != nil {
		return nil, err
	}
	found := []string{host}
	if _, err := netip.ParseAddr(host); err != nil {
		if found, err = g.cfg.Resolve(ctx, host); err != nil {
			return nil, fmt.Errorf("join %q: %w", entry, err)
		}
	}
	var addresses []string
	for _, a := range found {
		if ip, err := netip.ParseAddr(a); err == nil {
			addresses = append(addresses, net.JoinHostPort(ip.Unmap().String(), port))
		}
	}
	return addresses, nil
}

// jitter returns d, a quarter more or less, so that members do not act at once.
func jitter(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2+1) }

// sleep waits for d, and reports whether ctx lasted.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
