package proxy

import (
	"testing"
	"time"
)

// line is a line of some bytes a second, over which a round trip takes a while, and on
// which as much is under way as pace says.
type line struct {
	rate float64
	trip time.Duration
	jam  time.Duration // by which answers take longer, now and then
}

// settle returns how many bytes are under way after a while.
func (l line) settle(p *pace, fetches int) int64 {
	now := time.Unix(0, 0)
	p.took(4<<10, l.trip, now) // the first reads of a layer, of which nothing is known
	for i := range fetches {
		window := p.window()
		// Everything that is under way is ahead of a small fetch.
		took := max(l.trip, time.Duration(float64(window)/l.rate*float64(time.Second)))
		if i%2 == 1 {
			took += l.jam
		}
		p.took(4<<10, took, now)
		for range 16 {
			now = now.Add(took / 16)
			p.arrive(min(window, int64(l.rate*took.Seconds()))/16, now)
		}
	}
	return p.window()
}

func TestPaceFillsTheLine(t *testing.T) {
	for name, l := range map[string]line{
		"near and fast":        {rate: 25e6, trip: 10 * time.Millisecond},
		"far and fast":         {rate: 25e6, trip: 150 * time.Millisecond},
		"thin":                 {rate: 1e6, trip: 20 * time.Millisecond},
		"whose answers differ": {rate: 25e6, trip: 20 * time.Millisecond, jam: 60 * time.Millisecond},
	} {
		var p pace
		if w := p.window(); w != firstWindowAhead {
			t.Errorf("%s: at first %d bytes are under way", name, w)
		}
		got, fills := l.settle(&p, 500), int64(l.rate*l.trip.Seconds())
		if got < fills/2 || got > 2*fills+3*leastAhead {
			t.Errorf("%s: %d bytes are under way, of %d that fill the line", name, got, fills)
		}
	}
}

func TestPaceHasLimits(t *testing.T) {
	var p pace
	if w := (line{rate: 1e12, trip: 100 * time.Millisecond}).settle(&p, 190); w < mostAhead/4 || w > mostAhead {
		t.Errorf("%d bytes are under way", w)
	}
	p = pace{}
	if w := (line{rate: 1e3, trip: time.Millisecond}).settle(&p, 500); w > 3*leastAhead {
		t.Errorf("%d bytes are under way on a line of 1 kB/s", w)
	}
}
