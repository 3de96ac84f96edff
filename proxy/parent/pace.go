package parent

import (
	"sync"
	"time"
)

const (
	// paceOver is over how long the pace is taken, of the time in which something was awaited.
	paceOver = 20 * time.Second
	// leastPaced is how many bytes have to have come before there is one: fewer tell of round trips.
	leastPaced = 256 << 10
)

// pace is how fast bytes of blobs have come lately, while any were awaited. The zero value is ready to
// use.
type pace struct {
	mu      sync.Mutex
	waiting int       // runs of chunks that are awaited
	since   time.Time // when what is not in busy yet began, while there are any
	busy    time.Duration
	bytes   int64
}

// begin notes that bytes are awaited, until end is called.
func (p *pace) begin() (end func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting == 0 {
		p.since = time.Now()
	}
	p.waiting++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.settle()
		p.waiting--
	}
}

// came counts bytes.
func (p *pace) came(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes += n
	p.settle()
}

// settle counts the time until now. What is old counts half as much each time; p.mu is held.
func (p *pace) settle() {
	now := time.Now()
	if p.waiting > 0 {
		p.busy += now.Sub(p.since)
	}
	p.since = now
	if p.busy > paceOver {
		p.busy, p.bytes = p.busy/2, p.bytes/2
	}
}

// rate returns the pace in bytes per second, 0 while it is not known.
func (p *pace) rate() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes < leastPaced || p.busy <= 0 {
		return 0
	}
	return int64(float64(p.bytes) / p.busy.Seconds())
}
