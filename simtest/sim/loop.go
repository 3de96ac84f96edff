package main

import "time"

// loop is virtual time: events happen one after the other, in the order of their times, and those of
// one time in the order in which they were planned.
type loop struct {
	now    time.Duration
	events []event // a heap of four branches
	seq    uint64
}

type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

func (e event) before(f event) bool { return e.at < f.at || e.at == f.at && e.seq < f.seq }

// epoch is when all runs begin. Decisions are told of times that are not zero.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (l *loop) time() time.Time { return epoch.Add(l.now) }

// after plans f.
func (l *loop) after(d time.Duration, f func()) { l.at(l.now+d, f) }

func (l *loop) at(t time.Duration, f func()) {
	l.seq++
	l.events = append(l.events, event{max(t, l.now), l.seq, f})
	for i := len(l.events) - 1; i > 0; {
		up := (i - 1) / 4
		if !l.events[i].before(l.events[up]) {
			break
		}
		l.events[i], l.events[up] = l.events[up], l.events[i]
		i = up
	}
}

// step lets the next event happen. It reports whether there was one.
func (l *loop) step() bool {
	if len(l.events) == 0 {
		return false
	}
	e := l.events[0]
	last := len(l.events) - 1
	moved := l.events[last]
	l.events[last] = event{}
	l.events = l.events[:last]
	if last > 0 {
		l.sink(moved)
	}
	l.now = e.at
	e.do()
	return true
}

// sink puts an event into the place at the top, or where it belongs below that.
func (l *loop) sink(e event) {
	i := 0
	for {
		first := 4*i + 1
		if first >= len(l.events) {
			break
		}
		least := first
		for j := first + 1; j < min(first+4, len(l.events)); j++ {
			if l.events[j].before(l.events[least]) {
				least = j
			}
		}
		if !l.events[least].before(e) {
			break
		}
		l.events[i] = l.events[least]
		i = least
	}
	l.events[i] = e
}
