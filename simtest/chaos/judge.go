package main

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// request is one that failed, tries and all.
type request struct {
	node       int
	repository string
	private    bool
	wants      []digest.Digest // all of what it has to be answered from
	made       time.Duration   // when what is asked for was
	from, to   time.Duration
}

const (
	// committed is how long after a client has got it a node has surely made a blob outlive its death: it syncs
	// each second, and records what a repository has behind that.
	committed = 5 * time.Second
	// announced is how long after that any other member can find it, and settled how long the members have been the same ones then.
	announced = 10 * time.Second
	settled   = 20 * time.Second
)

// recovery is how long after a registry was ill for so long it may be no use yet. One that answered is asked again at once, and what was under way
// ends soon. One that gave no answer (which 503 is) 5 times in a row a node leaves alone for a second, more or less a half, and then for twice as
// long each time, up to 45 s (proxy/upstream): at the most that is three times as long as it has failed, and a second and a half.
func recovery(lasted time.Duration, mute bool) time.Duration {
	const ends = 2 * time.Second
	if !mute {
		return ends
	}
	return min(3*lasted+ends, 45*time.Second+ends)
}

// excuse returns why a client may see an error, or "" if it may not. It may if
//
//   - its own node was down or stopped at some time of the request, or
//   - the registry was ill at some time of it, or so shortly before it that it is left alone still, and no member that could be
//     asked had what it takes.
//
// Its own node can be asked if it has all of it since before the request, for public things and for private ones that it has served
// to the same client, unless its clock has been set, by which grants end. Any other member can be asked for what is public, if the
// members have been there, and reached each other, for a while. Nothing else is an excuse: no partition, no slow link, no full disk, no
// corrupt file or member, no upgrade, no new secret.
func (h *history) excuse(r request) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.find(away, r.node, r.from, r.to); s != nil {
		return "its node is away"
	}
	if !h.registryIll(r.from, r.to) || h.hasAll(r.node, r, committed) && h.find(jumped, r.node, r.from-settled, r.to) == nil {
		return ""
	}
	if r.private || h.find(away, -1, r.from-settled, r.to) != nil || h.find(parted, -1, r.from-settled, r.to) != nil {
		return "the registry is ill"
	}
	for of := range h.holds {
		if of.node != r.node && h.hasAll(of.node, r, announced) {
			return ""
		}
	}
	return "the registry is ill"
}

// registryIll reports whether the registry may be of no use to a node within a time.
func (h *history) registryIll(from, to time.Duration) bool {
	for _, s := range h.spans {
		if s.effect != ill || s.from > to {
			continue
		}
		if s.to == forever || from <= s.to+recovery(s.to-s.from, named(s.Fault).mute) {
			return true
		}
	}
	return false
}

// hasAll reports whether a node had all that a request wants since so long before it.
func (h *history) hasAll(node int, r request, before time.Duration) bool {
	for _, d := range r.wants {
		if since, ok := h.holds[held{node, r.repository, d}]; !ok || since > r.from-before {
			return false
		}
	}
	return len(r.wants) > 0
}
