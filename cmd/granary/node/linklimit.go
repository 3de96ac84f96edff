package node

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
)

// linkLimit bounds what comes from a parent, or from each of them: a rate, or an amount for each hour or
// day of the node's clock, at some hours or always.
type linkLimit struct {
	parent   string // "" is each
	bytes    int64
	per      string // s, hour or day
	from, to time.Duration
	rate     map[string]*p2p.Limiter // by parent; of one per second
	text     string
}

// parseLinkLimit reads [PARENT=]SIZE/s|hour|day[@HH:MM-HH:MM], as in 5MiB/s@08:00-18:00. 0/s is not at
// all. Hours that end before they begin go over midnight.
func parseLinkLimit(text string) (l linkLimit, err error) {
	bad := func(format string, args ...any) (linkLimit, error) {
		return l, fmt.Errorf("%q: %s, want [PARENT=]SIZE/s|hour|day[@HH:MM-HH:MM]", text, fmt.Sprintf(format, args...))
	}
	l = linkLimit{text: text, rate: make(map[string]*p2p.Limiter)}
	rest := text
	if i := strings.LastIndexByte(rest, '='); i >= 0 {
		l.parent, rest = rest[:i], rest[i+1:]
	}
	rest, hours, timed := strings.Cut(rest, "@")
	size, per, _ := strings.Cut(rest, "/")
	var n Size
	if err := n.UnmarshalText([]byte(size)); err != nil {
		return bad("%v", err)
	}
	switch l.bytes, l.per = int64(n), per; per {
	case "s", "hour", "day":
	default:
		return bad("%q is no time", per)
	}
	if !timed {
		return l, nil
	}
	from, to, ok := strings.Cut(hours, "-")
	begin, err1 := time.Parse("15:04", from)
	end, err2 := time.Parse("15:04", to)
	if !ok || err1 != nil || err2 != nil || begin.Equal(end) {
		return bad("%q are no hours", hours)
	}
	midnight := dayOf(begin)
	l.from, l.to = begin.Sub(midnight), end.Sub(midnight)
	return l, nil
}

// holds reports whether the limit is for a parent, at a time.
func (l linkLimit) holds(parent string, now time.Time) bool {
	if l.parent != "" && l.parent != parent {
		return false
	}
	if l.from == l.to {
		return true
	}
	clock := time.Duration(now.Hour())*time.Hour + time.Duration(now.Minute())*time.Minute
	if l.from < l.to {
		return l.from <= clock && clock < l.to
	}
	return clock >= l.from || clock < l.to
}

// linkLimits are those of all parents.
type linkLimits struct {
	all    []linkLimit
	ledger *ledger
}

// newLinkLimits reads limits for parents of these names.
func newLinkLimits(texts, parents []string, l *ledger) (*linkLimits, error) {
	limits := &linkLimits{ledger: l}
	for _, text := range texts {
		limit, err := parseLinkLimit(text)
		if err != nil {
			return nil, err
		}
		known := limit.parent == ""
		for _, p := range parents {
			known = known || p == limit.parent
			limit.rate[p] = p2p.NewLimiter(limit.bytes)
		}
		if !known {
			return nil, fmt.Errorf("%q: there is no parent %s", text, limit.parent)
		}
		limits.all = append(limits.all, limit)
	}
	return limits, nil
}

// allow returns why a parent is not to be asked now, or nil.
func (ls *linkLimits) allow(parent string) error {
	now := ls.ledger.now()
	for _, l := range ls.all {
		if !l.holds(parent, now) {
			continue
		}
		begin := hourOf(now)
		if l.per == "day" {
			begin = dayOf(now)
		}
		if l.bytes == 0 || l.per != "s" && ls.ledger.since(chunk.OfParent(parent), begin).In >= l.bytes {
			return fmt.Errorf("it has had its %s", l.text)
		}
	}
	return nil
}

// pace returns how many bytes per second may come from a parent now, 0 for any number.
func (ls *linkLimits) pace(parent string) (least int64) {
	now := ls.ledger.now()
	for _, l := range ls.all {
		if l.per == "s" && l.holds(parent, now) && (least == 0 || l.bytes < least) {
			least = l.bytes
		}
	}
	return least
}

// pass waits until n bytes may have come from a parent.
func (ls *linkLimits) pass(parent string, n int64) {
	now := ls.ledger.now()
	for _, l := range ls.all {
		if l.per == "s" && l.holds(parent, now) {
			_ = l.rate[parent].Wait(context.Background(), int(n)) // between two reads of a body
		}
	}
}
