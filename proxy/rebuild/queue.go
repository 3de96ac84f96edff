package rebuild

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// makeWithin is how long who asks for an offer waits for it before being told to come again.
	makeWithin = 2 * time.Second
	// maxAsked and maxAhead are how many layers may wait because of a request, and without one.
	maxAsked = 64
	maxAhead = 1024
	// makePace is about how many bytes of a layer are looked at in a second.
	makePace = 8 << 20
	// longest bounds after how many seconds somebody is told to come again.
	longest = 60
)

// job is a layer of which an offer is to be made.
type job struct {
	layer digest.Digest
	size  int64
	done  chan struct{} // closed when it is over
	err   error         // why nothing was found out; set before
}

// Ahead has an offer of a layer of size bytes made before anybody asks for it, when nobody waits for another
// one. If too many are to be made it is not.
func (h *Hub) Ahead(layer digest.Digest, size int64) {
	if size >= Least {
		h.enqueue(layer, size, false)
	}
}

// await waits a little for the offer of a layer of size bytes, which is made before those that nobody has asked for.
func (h *Hub) await(ctx context.Context, layer digest.Digest, size int64) (*made, error) {
	j := h.enqueue(layer, size, true)
	if j == nil {
		return nil, &LaterError{longest, "offers of as many layers as can wait are to be made first"}
	}
	timer := time.NewTimer(makeWithin)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		return nil, &LaterError{h.remaining(j), "the offer of the layer is being made"}
	case <-j.done:
	}
	if j.err != nil {
		return nil, j.err
	}
	if m := h.recent.get(layer); m != nil {
		return m, nil
	}
	return nil, &LaterError{1, "the offer of the layer was made, and has made room for others since"}
}

// enqueue returns the job for a layer, or nil if there are too many.
func (h *Hub) enqueue(layer digest.Digest, size int64, asked bool) *job {
	h.mu.Lock()
	defer h.mu.Unlock()
	j := h.jobs[layer]
	hasty := j != nil && asked && slices.Contains(h.ahead, j)
	switch {
	case j != nil && !hasty:
		return j
	case asked && len(h.asked) == maxAsked, !asked && len(h.ahead) == maxAhead:
		return nil
	case hasty:
		h.ahead = slices.DeleteFunc(h.ahead, func(other *job) bool { return other == j })
	default:
		j = &job{layer: layer, size: size, done: make(chan struct{})}
		h.jobs[layer] = j
	}
	if asked {
		h.asked = append(h.asked, j)
	} else {
		h.ahead = append(h.ahead, j)
	}
	select {
	case h.wake <- struct{}{}:
	default: // Run has been told, and looks again before it sleeps
	}
	return j
}

// take returns the job that is to be done next, or nil.
func (h *Hub) take() *job {
	h.mu.Lock()
	defer h.mu.Unlock()
	queue := &h.asked
	if len(*queue) == 0 {
		queue = &h.ahead
	}
	if len(*queue) == 0 {
		return nil
	}
	h.doing = (*queue)[0]
	*queue = slices.Delete(*queue, 0, 1)
	return h.doing
}

// finish tells those who wait for a job that it is over.
func (h *Hub) finish(j *job, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.jobs, j.layer)
	h.doing, j.err = nil, err
	close(j.done)
}

// remaining returns in about how many seconds a job that somebody has asked for will be over.
func (h *Hub) remaining(j *job) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	bytes := int64(0)
	if h.doing != nil {
		bytes = h.doing.size
	}
	if i := slices.Index(h.asked, j); i >= 0 {
		for _, before := range h.asked[:i+1] {
			bytes += before.size
		}
	}
	return int(min(1+bytes/makePace, longest))
}
