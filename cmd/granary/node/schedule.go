package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/granary-oci/granary/chunkstore"
)

const (
	scheduleName    = "preheats.json"
	maxScheduleFile = maxScheduled * maxPreheatBody // bytes
	maxScheduled    = 16                            // preheats, of those that are remembered
	scheduleAhead   = 31 * 24 * time.Hour
	maxLate         = 24 * time.Hour   // after which a preheat was missed
	clockEvery      = time.Minute      // a timer does not see that somebody sets the clock
	meetFor         = 30 * time.Second // members find each other after a start
)

// scheduled is a preheat that has a time, as it is kept.
type scheduled struct {
	ID      string    `json:"id"`
	At      time.Time `json:"at"`
	Preheat Preheat   `json:"preheat"` // without credentials, which are kept nowhere
}

var (
	errTooManyScheduled = fmt.Errorf("%d preheats are scheduled already", maxScheduled)
	errEnded            = errors.New("it was ended before its time had come")
	errStopped          = errors.New("the node was stopped, and goes on when it is started again")
)

// parseWhen reads HH:MM, which is the next such time on the clock of now's place, or RFC 3339.
func parseWhen(text string, now time.Time) (at time.Time, err error) {
	if clock, err := time.Parse("15:04", text); err == nil {
		at = time.Date(now.Year(), now.Month(), now.Day(), clock.Hour(), clock.Minute(), 0, 0, now.Location())
		if !at.After(now) {
			at = time.Date(now.Year(), now.Month(), now.Day()+1, clock.Hour(), clock.Minute(), 0, 0, now.Location())
		}
		return at, nil
	}
	switch at, err = time.Parse(time.RFC3339, text); {
	case err != nil:
		return at, fmt.Errorf("%q is no time, want HH:MM, or RFC 3339 as in 2006-01-02T15:04:05+01:00", text)
	case !at.After(now):
		return at, fmt.Errorf("%s is past; the node's clock says %s", text, now.Format(time.RFC3339))
	case at.Sub(now) > scheduleAhead:
		return at, fmt.Errorf("%s is more than %d days ahead", text, scheduleAhead/(24*time.Hour))
	}
	return at, nil
}

// schedule gives a preheat its time, which is now if it asks for none.
func (p *preheating) schedule(q Preheat) (err error) {
	if q.At == "" {
		p.started = time.Now()
		return nil
	}
	if len(q.Authorization) > 0 {
		return errors.New("preheat: credentials are kept nowhere, and so not until a time: leave them out, and the node's own are used then")
	}
	if p.at, err = parseWhen(q.At, time.Now()); err != nil {
		return fmt.Errorf("preheat: at: %w", err)
	}
	return nil
}

// await waits until a preheat is due.
func (p *preheating) await() error {
	at := p.at
	if p.notBefore.After(at) {
		at = p.notBefore
	}
	for left := time.Until(at); left > 0; left = time.Until(at) { // by the clock on the wall, of which at is
		select {
		case <-time.After(min(left, clockEvery)):
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
	}
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	if time.Since(p.at) > maxLate {
		return fmt.Errorf("it was missed: the node did not run at %s, nor within %s", p.at.Format(time.RFC3339), maxLate)
	}
	return nil
}

// openSchedule takes up the preheats that have a time, as they were kept. What cannot be is said.
func (n *Node) openSchedule() {
	if n.store.Disk == nil {
		return
	}
	n.preheats.path = filepath.Join(n.cfg.DataDir, scheduleName)
	var kept []scheduled
	if err := readKept(n.preheats.path, maxScheduleFile, &kept); err != nil {
		n.log.Warn("no preheat is scheduled any more", "error", err)
		return
	}
	for _, s := range kept[:min(len(kept), maxScheduled)] {
		s.Preheat.Authorization = nil // whoever has written there
		p, err := n.newPreheat(s.Preheat)
		if err == nil && (s.At.IsZero() || time.Until(s.At) > scheduleAhead) {
			err = fmt.Errorf("preheat: at: %s is no time that it may have", s.At)
		}
		if err == nil {
			p.id, p.at = cmp.Or(s.ID, p.id), s.At
			if s.Preheat.others() {
				p.notBefore = n.started.Add(meetFor).Round(0)
			}
			err = n.preheats.take(p)
		}
		if err != nil {
			n.log.Warn("a preheat is not scheduled any more", "id", s.ID, "error", err)
			continue
		}
		n.preheats.start <- p
	}
}

// take remembers a preheat of the schedule, which is kept already.
func (ps *preheats) take(p *preheating) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.remember(p)
}

// done takes a preheat out of the schedule, if it is there.
func (ps *preheats) done(p *preheating) error {
	if p.at.IsZero() {
		return nil
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p.done {
		return nil
	}
	p.done = true
	return ps.keep()
}

// keep writes the schedule; ps.mu is held.
func (ps *preheats) keep() error {
	all := []scheduled{}
	for _, p := range ps.all {
		if !p.at.IsZero() && !p.done {
			all = append(all, scheduled{p.id, p.at, p.shown})
		}
	}
	text, err := json.Marshal(all)
	if err == nil {
		err = chunkstore.WriteDurably(ps.path, text)
	}
	return err
}
