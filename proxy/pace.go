package proxy

import "time"

// pace is how fast fetches come: how many bytes a second, and how long a small one takes.
// From that follows how much has to be under way for the line to be full, without what a
// program asks for having to wait behind more than another round trip's worth (what TCP
// calls the product of bandwidth and delay). The zero value knows nothing yet.
type pace struct {
	rate    float64       // bytes per second, the most lately
	least   time.Duration // that a small fetch takes
	usual   time.Duration
	arrived int64 // since
	since   time.Time
	probes  int // small fetches until it is known anew how long the least takes
	probed  time.Time
}

const (
	smallFetch = 64 << 10
	// soonest is what nothing that comes from afar is sooner than: there was nothing to
	// fetch.
	soonest = time.Millisecond
	// paceEvery is how long bytes are counted for one sample of the rate, or for twice as
	// long as a fetch takes.
	paceEvery = 50 * time.Millisecond
	// probeEvery is how often it is found out how long a small fetch takes when little else
	// is under way, by so many of them.
	probeEvery = 20 * time.Second
	probesEach = 4
	// How many bytes are under way before anything is known, at least and at most.
	firstWindowAhead = 512 << 10
	leastAhead       = 64 << 10
	mostAhead        = 8 << 20
)

// arrive is told of bytes that have come.
func (p *pace) arrive(bytes int64, now time.Time) {
	p.arrived += bytes
	took, every := now.Sub(p.since), max(paceEvery, 2*p.usual)
	if took < every {
		return
	}
	if took < 4*every { // else nothing was under way for a while
		p.rate = max(float64(p.arrived)/took.Seconds(), p.rate*0.9)
	}
	p.arrived, p.since = 0, now
}

// took is told how long a fetch has taken.
func (p *pace) took(bytes int64, d time.Duration, now time.Time) {
	if bytes > smallFetch || d < soonest {
		return
	}
	switch {
	case p.least == 0:
		p.least, p.usual, p.probed = d, d, now
	case p.probes > 0:
		p.probes--
		p.least = min(p.least, d)
	case now.Sub(p.probed) > probeEvery:
		p.least, p.probes, p.probed = 2*p.least, probesEach, now // the way may have become longer
	default:
		p.least = min(p.least, d)
	}
	p.usual += (d - p.usual) / 8
}

// window returns how many bytes to have under way. They are a few more than what is known
// to fill the line, so that it becomes known that more does.
func (p *pace) window() int64 {
	switch {
	case p.probes > 0:
		return leastAhead
	case p.rate == 0 || p.least == 0:
		return firstWindowAhead
	}
	delay := min(p.usual, 2*p.least)
	return min(max(int64(p.rate*delay.Seconds())+leastAhead, leastAhead), mostAhead)
}
