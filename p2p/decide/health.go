package decide

import (
	"slices"
	"time"
)

const (
	failuresToSkip = 2
	// FailuresApart is how far apart failures of a member are two. Closer ones have one cause, and
	// are one.
	FailuresApart = 200 * time.Millisecond
	samples       = 64 // latencies that are remembered of a member
)

// Health is what a node makes of another member by its own experience. Its zero is
// that of a stranger. It is for one goroutine at a time.
type Health struct {
	Heard time.Time // when anything was last heard of it

	failures int // in a row
	failed   time.Time
	took     []time.Duration // until its latest answers began, in a ring
	at       int
}

// Hear notes that the member has answered.
func (h *Health) Hear(now time.Time) { h.Heard, h.failures = now, 0 }

// Up reports whether the member is to be asked.
func (h *Health) Up() bool { return h.failures < failuresToSkip }

// Sound reports whether the member is to be asked even where others would do: it was not silent
// when it was last asked.
func (h *Health) Sound() bool { return h.failures == 0 }

// Fail notes that the member was silent, or could not be reached. After two times in a
// row, of which a probe may be one, it is not [Health.Up] until it answers; all that was asked
// of it when it paused is one time. It reports whether it is to be probed.
func (h *Health) Fail(now time.Time) bool {
	if h.failures > 0 && now.Sub(h.failed) < FailuresApart {
		return false
	}
	h.failures++
	h.failed = now
	return true
}

// Probed notes what came of a probe. It reports whether that was the last.
func (h *Health) Probed(answered bool) bool {
	if answered || h.failures == 0 { // or it has been heard otherwise
		h.failures = 0
		return true
	}
	h.failures = failuresToSkip
	return false
}

// Began notes how long an answer took to begin.
func (h *Health) Began(took time.Duration) {
	if len(h.took) < samples {
		h.took = append(h.took, took)
		return
	}
	h.took[h.at] = took
	h.at = (h.at + 1) % samples
}

// Hedge returns the silence after which another is asked too: what 19 of 20 of the
// member's answers took to begin, doubled, within the timing's bounds.
func (h *Health) Hedge(t Timing) time.Duration {
	if len(h.took) < 8 {
		return t.HedgeMax // of an acquaintance so short nothing can be said
	}
	return min(max(2*h.P95(), t.HedgeMin), t.HedgeMax)
}

// P95 returns what 19 of 20 of the latest answers took to begin, 0 of a stranger.
func (h *Health) P95() time.Duration {
	if len(h.took) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(h.took))
	return sorted[len(sorted)*95/100]
}
