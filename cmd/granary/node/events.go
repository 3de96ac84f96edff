package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	maxWatchers   = 32
	eventFor      = 10 * time.Second // a watcher may take to take an event
	imagesEvery   = 5                // samples from one event with images to the next
	eventsPending = 4                // events that a slow watcher is behind; then it misses some
)

// events are told to whoever watches the node, as server-sent events (WHATWG HTML, section
// 9.2): "status" has what /api/v1/status answers, each second, and "images" what
// /api/v1/images does, every few seconds.
type events struct {
	mu       sync.Mutex
	watchers map[chan []byte]bool
	ended    bool
	ticks    int
	asked    time.Time // when somebody asked without watching
}

var errTooManyWatchers = fmt.Errorf("%d watch already", maxWatchers)

// enter returns where events come, until leave is called or the channel is closed.
func (e *events) enter() (ch chan []byte, leave func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.ended:
		return nil, nil, errors.New("the node is about to end")
	case len(e.watchers) >= maxWatchers:
		return nil, nil, errTooManyWatchers
	case e.watchers == nil:
		e.watchers = make(map[chan []byte]bool)
	}
	ch = make(chan []byte, eventsPending)
	e.watchers[ch] = true
	return ch, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.watchers, ch)
	}, nil
}

// tell sends an event to all who watch.
func (e *events) tell(event []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for ch := range e.watchers {
		select {
		case ch <- event:
		default: // the next one says it anew
		}
	}
}

// watched reports whether anybody watches, and whether it is time for images.
func (e *events) watched() (yes, images bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ticks++
	return len(e.watchers) > 0, e.ticks%imagesEvery == 0
}

// look notes that somebody looks at the status once, and may do so again.
func (e *events) look() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked = time.Now()
}

// looked reports whether anybody looks at the status now and then.
func (e *events) looked() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.watchers) > 0 || time.Since(e.asked) < reportsLast
}

// end ends all streams of events, which would hold up the end of the listener.
func (e *events) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ended = true
	for ch := range e.watchers {
		close(ch)
	}
	e.watchers = nil
}

// tellWatchers tells whoever watches how things are.
func (n *Node) tellWatchers(ctx context.Context) {
	if n.events.looked() {
		n.askMembers(ctx)
	}
	watched, images := n.events.watched()
	if !watched {
		return
	}
	n.events.tell(event("status", n.Status()))
	if images {
		n.events.tell(event("images", n.Images(ctx)))
	}
}

func event(name string, v any) []byte {
	p, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	return bytes.Join([][]byte{[]byte("event: " + name + "\ndata: "), p, []byte("\n\n")}, nil)
}

// serveEvents tells a client what happens until it leaves.
func (n *Node) serveEvents(w http.ResponseWriter, r *http.Request) {
	ch, leave, err := n.events.enter()
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer leave()
	w.Header().Set("Content-Type", "text/event-stream")
	client := http.NewResponseController(w)
	send := func(p []byte) bool {
		_ = client.SetWriteDeadline(time.Now().Add(eventFor))
		_, err := w.Write(p)
		return err == nil && client.Flush() == nil
	}
	if !send(event("status", n.Status())) || !send(event("images", n.Images(r.Context()))) {
		return
	}
	for {
		select {
		case p, ok := <-ch:
			if !ok || !send(p) {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}
