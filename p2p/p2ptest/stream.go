package p2ptest

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/tracker"
)

const (
	segmentSize = 128 << 10 // bytes that take a link at a time
	window      = 1 << 20   // bytes of a stream that nobody has read yet
)

// stream is one end of a stream.
type stream struct {
	out, in *half
	other   *stream // at the end that was opened to: the one that the network knows
}

var _ p2p.Stream = (*stream)(nil)

func (s *stream) Read(p []byte) (int, error)  { return s.in.read(p) }
func (s *stream) Write(p []byte) (int, error) { return s.out.write(p) }

func (s *stream) SetReadDeadline(t time.Time) error {
	s.in.change(func() { s.in.readBy = t })
	return nil
}

func (s *stream) SetWriteDeadline(t time.Time) error {
	s.out.change(func() { s.out.writeBy = t })
	return nil
}

// Close implements [io.Closer]. The other end hears of it as soon as anything gets
// there.
func (s *stream) Close() error {
	s.in.change(func() { s.in.readErr, s.in.unread = net.ErrClosed, true })
	s.out.change(func() {
		s.out.queue, s.out.queued, s.out.writeErr = nil, 0, net.ErrClosed
		s.out.end = io.EOF
	})
	s.forget()
	return nil
}

// reset ends both ends.
func (s *stream) reset(err error) {
	for _, h := range []*half{s.in, s.out} {
		h.change(func() {
			if h.readErr == nil {
				h.readErr = err
			}
			if h.writeErr == nil {
				h.writeErr = err
			}
		})
	}
	s.forget()
}

func (s *stream) forget() {
	known := s
	if s.other != nil {
		known = s.other
	}
	n := s.in.net
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.streams, known)
}

// half is one direction of a stream. One goroutine reads and one writes.
type half struct {
	net      *Network
	from, to tracker.ID

	mu              sync.Mutex
	queue           []segment
	queued          int
	end             error // what is read after the queue
	readErr         error // what is read at once
	writeErr        error
	unread          bool // nobody reads any more
	readBy, writeBy time.Time
	changed         chan struct{} // closed when anything above has changed
}

// segment is bytes and when they arrive.
type segment struct {
	p  []byte
	at time.Time
}

func newHalf(n *Network, from, to tracker.ID) *half {
	return &half{net: n, from: from, to: to, changed: make(chan struct{})}
}

func (h *half) change(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	close(h.changed)
	h.changed = make(chan struct{})
}

// weather is the state of the network as a half sees it.
type weather struct {
	changed    chan struct{}
	frozen     bool // the node that reads or writes
	cut        bool
	up, down   *Link
	latency    time.Duration
	alter      func([]byte)
	closed     bool
	toIsFrozen bool
}

func (h *half) weather(of tracker.ID) weather {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	from, to := n.node(h.from), n.node(h.to)
	return weather{
		changed: n.changed, frozen: n.node(of).frozen && !n.closed, cut: n.cuts[pair(h.from, h.to)],
		up: from.up, down: to.down, latency: n.latency, alter: from.alter, closed: n.closed, toIsFrozen: to.frozen,
	}
}

// wait waits for a change of the half or of the network, or until one of times; a
// zero time is never.
func wait(changed, weather <-chan struct{}, times ...time.Time) {
	var soonest time.Time
	for _, t := range times {
		if !t.IsZero() && (soonest.IsZero() || t.Before(soonest)) {
			soonest = t
		}
	}
	var c <-chan time.Time
	if !soonest.IsZero() {
		t := time.NewTimer(time.Until(soonest))
		defer t.Stop()
		c = t.C
	}
	select {
	case <-changed:
	case <-weather:
	case <-c:
	}
}

func past(t, now time.Time) bool { return !t.IsZero() && !now.Before(t) }

func (h *half) read(p []byte) (int, error) {
	for {
		w := h.weather(h.to)
		h.mu.Lock()
		n, arrives, err := h.take(p, w)
		changed, by := h.changed, h.readBy
		h.mu.Unlock()
		if n > 0 {
			h.net.count(h.to, n, 0)
			return n, nil
		}
		if err != nil || len(p) == 0 {
			return 0, err
		}
		if w.frozen {
			by = time.Time{}
		}
		wait(changed, w.changed, by, arrives)
	}
}

// take reads what has arrived; arrives is when there will be more. h.mu is held.
func (h *half) take(p []byte, w weather) (n int, arrives time.Time, err error) {
	now := time.Now()
	switch {
	case h.readErr != nil:
		return 0, arrives, h.readErr
	case w.closed:
		return 0, arrives, errClosed
	case w.frozen:
		return 0, arrives, nil
	case past(h.readBy, now):
		return 0, arrives, os.ErrDeadlineExceeded
	case w.cut:
		return 0, arrives, nil
	case len(h.queue) == 0:
		return 0, arrives, h.end
	case h.queue[0].at.After(now):
		return 0, h.queue[0].at, nil
	}
	first := &h.queue[0]
	n = copy(p, first.p)
	if first.p = first.p[n:]; len(first.p) == 0 {
		h.queue[0] = segment{}
		h.queue = h.queue[1:]
	}
	h.queued -= n
	close(h.changed)
	h.changed = make(chan struct{})
	return n, arrives, nil
}

var errBrokenPipe = errors.New("broken pipe")

func (h *half) write(p []byte) (n int, err error) {
	for len(p) > 0 {
		w, err := h.room()
		if err != nil {
			return n, err
		}
		s := append([]byte(nil), p[:min(len(p), segmentSize)]...)
		if w.alter != nil {
			w.alter(s)
		}
		if err := h.until(w.up.reserve(len(s), time.Now())); err != nil {
			return n, err
		}
		arrives := w.down.reserve(len(s), time.Now().Add(w.latency))
		h.change(func() {
			if h.writeErr == nil && !h.unread {
				h.queue = append(h.queue, segment{s, arrives})
				h.queued += len(s)
			}
		})
		h.net.count(h.from, 0, len(s))
		n += len(s)
		p = p[len(s):]
	}
	return n, nil
}

// until waits until a time, or the stream's end.
func (h *half) until(t time.Time) error {
	for {
		h.mu.Lock()
		err, changed := h.writeErr, h.changed
		h.mu.Unlock()
		if err != nil || past(t, time.Now()) {
			return err
		}
		wait(changed, nil, t)
	}
}

// room waits until something may be written.
func (h *half) room() (weather, error) {
	for {
		w := h.weather(h.from)
		h.mu.Lock()
		err, queued, changed, by, unread := h.writeErr, h.queued, h.changed, h.writeBy, h.unread
		h.mu.Unlock()
		switch {
		case err != nil:
			return w, err
		case w.closed:
			return w, errClosed
		case w.frozen:
			by = time.Time{}
		case past(by, time.Now()):
			return w, os.ErrDeadlineExceeded
		case unread && !w.cut && !w.toIsFrozen:
			return w, errBrokenPipe
		case queued < window:
			return w, nil
		}
		wait(changed, w.changed, by)
	}
}

func (n *Network) count(id tracker.ID, in, out int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.node(id).in += int64(in)
	n.node(id).out += int64(out)
}
