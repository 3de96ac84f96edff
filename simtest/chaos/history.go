package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// effect is what a fault does that matters to those who judge an error.
type effect int

const (
	other  effect = iota
	away          // a node does not answer: it is down or stopped
	ill           // the registry does not answer as it should
	parted        // some members do not reach others
	full          // a node keeps nothing
	jumped        // a node's clock is wrong
)

// span is how long a fault lasted, from when it may have been felt to when it was undone.
type span struct {
	event
	effect   effect
	from, to time.Duration
}

const forever = time.Duration(math.MaxInt64)

func (s *span) overlaps(from, to time.Duration) bool { return s.from <= to && from <= s.to }

func (s *span) String() string {
	text := s.name()
	if s.to == forever {
		return text + fmt.Sprintf(" since %.1f s", s.from.Seconds())
	}
	return text + fmt.Sprintf(" from %.1f s to %.1f s", s.from.Seconds(), s.to.Seconds())
}

// held is what a node has given to a client as a whole: a blob or manifest of a repository, or in place of its digest what
// the tag stands for.
type held struct {
	node       int
	repository string
	digest     digest.Digest
}

// history is what happened, in time since the lab began. It is safe for concurrent use.
type history struct {
	began time.Time
	mu    sync.Mutex
	spans []*span
	holds map[held]time.Duration  // since when
	had   map[held]time.Duration  // since when first, whatever became of it
	ruins map[int]time.Duration   // when the files of a node that runs were last changed: what it has from before it may give out of memory alone
	parts map[digest.Digest]int64 // bytes of chunks that were asked for in parts, of nodes that did not hold the blob
}

func newHistory() *history {
	return &history{began: time.Now(), holds: make(map[held]time.Duration), had: make(map[held]time.Duration), parts: make(map[digest.Digest]int64), ruins: make(map[int]time.Duration)}
}

func (h *history) now() time.Duration { return time.Since(h.began) }

// begin records that a fault begins. end ends it.
func (h *history) begin(e event, does effect) (end func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &span{event: e, effect: does, from: h.now(), to: forever}
	h.spans = append(h.spans, s)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		s.to = h.now()
	}
}

// hold records that a client has got all of something from a node since it began to ask, which so has it, if it could keep it all the while: what
// comes to an end as the node is killed may be told here after the node has lost it. It has been somewhere since it was made.
func (h *history) hold(of held, made, began time.Duration) {
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if ruin, ok := h.ruins[of.node]; ok && made <= ruin {
		return
	}
	kept := h.find(full, of.node, began, now) == nil && h.find(away, of.node, began, now) == nil
	if _, ok := h.holds[of]; !ok && kept {
		h.holds[of] = now
		if _, ok := h.had[of]; !ok {
			h.had[of] = now
		}
	}
}

// lose records that a node may have lost what it has got within so long.
func (h *history) lose(node int, within time.Duration) {
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for of, since := range h.holds {
		if of.node == node && since > now-within {
			delete(h.holds, of)
		}
	}
}

// ruin records that the files of a node that runs have been changed.
func (h *history) ruin(node int) {
	h.lose(node, forever)
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ruins[node] = now
}

// find returns a span of an effect on a node, or on any with node -1, that overlaps a time. It is called with mu held.
func (h *history) find(e effect, node int, from, to time.Duration) *span {
	for _, s := range slices.Backward(h.spans) {
		if s.effect == e && (node < 0 || s.Node == node) && s.overlaps(from, to) {
			return s
		}
	}
	return nil
}

// during describes what went wrong within a time.
func (h *history) during(from, to time.Duration) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []string
	for _, s := range h.spans {
		if s.overlaps(from, to) {
			all = append(all, s.String())
		}
	}
	if len(all) == 0 {
		return "nothing"
	}
	return strings.Join(all, "; ")
}

// overlapping returns the faults that were felt within a time.
func (h *history) overlapping(from, to time.Duration) (all []event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.spans {
		if s.overlaps(from, to) {
			all = append(all, s.event)
		}
	}
	return all
}

// complete returns since when each blob was held by so many nodes.
func (h *history) complete(nodes int) map[digest.Digest]time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	first := make(map[digest.Digest]map[int]time.Duration)
	for of, since := range h.had {
		if first[of.digest] == nil {
			first[of.digest] = make(map[int]time.Duration)
		}
		if was, ok := first[of.digest][of.node]; !ok || since < was {
			first[of.digest][of.node] = since
		}
	}
	all := make(map[digest.Digest]time.Duration)
	for d, by := range first {
		if times := slices.Sorted(maps.Values(by)); len(times) >= nodes {
			all[d] = times[nodes-1]
		}
	}
	return all
}

// part records that a part of a blob is asked of a node: it comes in whole chunks.
func (h *history) part(of held, x extent, size int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.holds[of]; !ok {
		first, end := x.from/chunk.Size*chunk.Size, (x.to+chunk.Size-1)/chunk.Size*chunk.Size
		h.parts[of.digest] += int64(min(end, size) - first)
	}
}

func (h *history) partsOf(d digest.Digest) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.parts[d]
}
