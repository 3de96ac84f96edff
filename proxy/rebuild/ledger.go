package rebuild

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// Moved is what it took to make layers again, in bytes.
type Moved struct {
	Asked int64 `json:"asked"` // of layers that were made again
	Moved int64 `json:"moved"` // that crossed the line for them: offers and contents, of attempts in vain too
	Saved int64 `json:"saved"` // by which what crossed the line for a layer was less than that
}

func (m *Moved) add(o Moved) {
	m.Asked, m.Moved, m.Saved = m.Asked+o.Asked, m.Moved+o.Moved, m.Saved+o.Saved
}

// Made is a layer that was made again.
type Made struct {
	Repository string        `json:"repository"`
	Layer      digest.Digest `json:"layer"`
	From       string        `json:"from"` // who said how
	At         time.Time     `json:"at"`
	Seconds    float64       `json:"seconds"` // that it took
	Moved
}

// NotMade is a layer that was fetched as a whole, and why.
type NotMade struct {
	Repository string        `json:"repository"`
	Layer      digest.Digest `json:"layer"`
	At         time.Time     `json:"at"`
	Reason     string        `json:"reason"`
}

// Ledger sums up what was made again since the process was started.
type Ledger struct {
	Moved
	Layers int64 `json:"layers"` // that were made again
	Failed int64 `json:"failed"` // that were tried in vain, or not worth it
	// LastFailed is the one that was tried in vain last.
	LastFailed *NotMade `json:"lastFailed,omitempty"`
	// Last are those that were made last, the newest first.
	Last []Made `json:"last,omitempty"`
}

// maxLast is how many layers are told of.
const maxLast = 32

// Ledger returns what was made again.
func (e *Edge) Ledger() Ledger {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.ledger
	l.Last = append([]Made(nil), l.Last...)
	return l
}

// note takes note of how a job ended, and whether it is known by that that the layer is not worth another.
func (e *Edge) note(j *attempt, err error, tried bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := &e.ledger
	m := Moved{Moved: j.moved}
	if err == nil {
		m.Asked, m.Saved = j.want.Size, max(j.want.Size-j.moved, 0)
		l.Layers++
		made := Made{j.want.Repository, j.want.Digest, j.giver.Origin(), time.Now(), time.Since(j.began).Seconds(), m}
		l.Last = append([]Made{made}, l.Last[:min(len(l.Last), maxLast-1)]...)
	} else {
		l.Failed++
		l.LastFailed = &NotMade{j.want.Repository, j.want.Digest, time.Now(), err.Error()}
		if tried {
			e.remember(j.want.Digest)
		}
	}
	l.add(m)
}

// noteRead takes note of chunks that were read of a layer, and what crossed the line for them.
func (e *Edge) noteRead(asked, moved int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ledger.add(Moved{asked, moved, max(asked-moved, 0)})
}

// remember has a layer not tried again for a while; e.mu is held.
func (e *Edge) remember(d digest.Digest) {
	for other := range e.failed {
		if len(e.failed) < maxFailed {
			break
		}
		delete(e.failed, other)
	}
	e.failed[d] = time.Now().Add(notAgain)
}
