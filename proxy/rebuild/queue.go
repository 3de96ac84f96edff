package rebuild

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// makeWithin is how long who asks for something waits for it to be made before being told to come again.
	makeWithin = 2 * time.Second
	// maxAsked and maxAhead are how many layers may wait because of a request, and without one.
	maxAsked = 64
	maxAhead = 1024
	// longest bounds after how many seconds somebody is told to come again.
	longest = 60
)

// queue is the layers that something is to be made of, one after the other.
type queue struct {
	what string // is made
	pace int64  // about how many bytes of a layer are looked at in a second
	do   func(ctx context.Context, layer digest.Digest) error
	wake chan struct{} // has something when there may be work

	mu    sync.Mutex
	jobs  map[digest.Digest]*job // those that wait, and the one that is being done
	asked []*job                 // those that wait because of a request
	ahead []*job                 // and the others
	doing *job
}

// job is a layer of which something is to be made.
type job struct {
	layer digest.Digest
	size  int64
	done  chan struct{} // closed when it is over
	err   error         // why nothing was found out; set before
}

func newQueue(what string, pace int64, do func(context.Context, digest.Digest) error) *queue {
	return &queue{what: what, pace: pace, do: do, wake: make(chan struct{}, 1), jobs: make(map[digest.Digest]*job)}
}

// run does jobs, one at a time, until ctx ends.
func (q *queue) run(ctx context.Context) {
	for ctx.Err() == nil {
		if j := q.take(); j != nil {
			q.finish(j, q.do(ctx, j.layer))
			continue
		}
		select {
		case <-ctx.Done():
		case <-q.wake:
		}
	}
}

// await waits a little for a layer of size bytes to be looked at, before those that nobody has asked for.
func (q *queue) await(ctx context.Context, layer digest.Digest, size int64) error {
	j := q.enqueue(layer, size, true)
	if j == nil {
		return &LaterError{longest, "as many layers as can wait are to be looked at first"}
	}
	timer := time.NewTimer(makeWithin)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return &LaterError{q.remaining(j), "the " + q.what + " of the layer is being made"}
	case <-j.done:
		return j.err
	}
}

// enqueue returns the job for a layer, or nil if there are too many.
func (q *queue) enqueue(layer digest.Digest, size int64, asked bool) *job {
	q.mu.Lock()
	defer q.mu.Unlock()
	j := q.jobs[layer]
	hasty := j != nil && asked && slices.Contains(q.ahead, j)
	switch {
	case j != nil && !hasty:
		return j
	case asked && len(q.asked) == maxAsked, !asked && len(q.ahead) == maxAhead:
		return nil
	case hasty:
		q.ahead = slices.DeleteFunc(q.ahead, func(other *job) bool { return other == j })
	default:
		j = &job{layer: layer, size: size, done: make(chan struct{})}
		q.jobs[layer] = j
	}
	if asked {
		q.asked = append(q.asked, j)
	} else {
		q.ahead = append(q.ahead, j)
	}
	select {
	case q.wake <- struct{}{}:
	default: // run has been told, and looks again before it sleeps
	}
	return j
}

// take returns the job that is to be done next, or nil.
func (q *queue) take() *job {
	q.mu.Lock()
	defer q.mu.Unlock()
	next := &q.asked
	if len(*next) == 0 {
		next = &q.ahead
	}
	if len(*next) == 0 {
		return nil
	}
	q.doing = (*next)[0]
	*next = slices.Delete(*next, 0, 1)
	return q.doing
}

// finish tells those who wait for a job that it is over.
func (q *queue) finish(j *job, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.jobs, j.layer)
	q.doing, j.err = nil, err
	close(j.done)
}

// waiting returns how many layers are to be looked at, those aside that others have too.
func (q *queue) waiting(others *queue) (n int) {
	others.mu.Lock()
	defer others.mu.Unlock()
	q.mu.Lock()
	defer q.mu.Unlock()
	for layer := range q.jobs {
		if others.jobs[layer] == nil {
			n++
		}
	}
	return n + len(others.jobs)
}

// remaining returns in about how many seconds a job that somebody has asked for will be over.
func (q *queue) remaining(j *job) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	bytes := int64(0)
	if q.doing != nil {
		bytes = q.doing.size
	}
	if i := slices.Index(q.asked, j); i >= 0 {
		for _, before := range q.asked[:i+1] {
			bytes += before.size
		}
	}
	return int(min(1+bytes/q.pace, longest))
}
