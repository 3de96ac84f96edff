package compat

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Verdict says whether a host is what an image asks for.
type Verdict string

// Verdicts.
const (
	Suits    Verdict = "suits"
	Silent   Verdict = "says nothing" // nothing is asked for
	Unknown  Verdict = "unknown"      // something that is asked for cannot be judged
	Unsuited Verdict = "does not suit"
)

// rank orders verdicts: what is to be taken first is greatest.
func (v Verdict) rank() int {
	return slices.Index([]Verdict{Unsuited, Unknown, Silent, Suits}, v)
}

// Judgement is what a host makes of what is asked for.
type Judgement struct {
	Verdict     Verdict  `json:"verdict"`
	Description string   `json:"description,omitempty"`
	Tags        []string `json:"tags,omitempty"`
	Weight      int      `json:"weight,omitempty"`   // the author's preference among alternatives; more is better
	Met         int      `json:"met"`                // how many conditions hold
	Unmet       []string `json:"unmet,omitempty"`    // which do not, in words
	Unjudged    []string `json:"unjudged,omitempty"` // which cannot be judged, and why
}

// Compare orders judgements of images: the greatest is of the one to be taken. Suits comes
// before Silent, Unknown and Unsuited; then it counts how many conditions hold. Weights say
// nothing here, for each author has a scale of their own.
func (j Judgement) Compare(other Judgement) int {
	return cmp.Or(cmp.Compare(j.Verdict.rank(), other.Verdict.rank()), cmp.Compare(j.Met, other.Met))
}

// Best returns the best of a document's alternatives, and what is [Silent] if there are none.
// Of several with one verdict it is that of the greatest weight, then that of which most
// conditions hold, then the first.
func Best(all []Judgement) Judgement {
	best := Judgement{Verdict: Silent}
	for i, j := range all {
		if i == 0 || cmp.Or(cmp.Compare(j.Verdict.rank(), best.Verdict.rank()), cmp.Compare(j.Weight, best.Weight), cmp.Compare(j.Met, best.Met)) > 0 {
			best = j
		}
	}
	return best
}

// All joins judgements of documents that all have something to say of an image: it suits only
// if none of them is against it, and none cannot be judged.
func All(all []Judgement) Judgement {
	sum := Judgement{Verdict: Silent}
	for _, j := range all {
		if sum.Verdict == Silent || j.Verdict != Silent && j.Verdict.rank() < sum.Verdict.rank() {
			sum.Verdict = j.Verdict
		}
		sum.Met += j.Met
		sum.Unmet = append(sum.Unmet, j.Unmet...)
		sum.Unjudged = append(sum.Unjudged, j.Unjudged...)
	}
	return sum
}

// Document is what one document says: alternatives.
type Document struct{ sets []set }

// Judge returns a judgement of each alternative, in their order.
func (d *Document) Judge(h *Host) []Judgement {
	var all []Judgement
	for _, s := range d.sets {
		all = append(all, s.judge(h))
	}
	return all
}

// set is an alternative.
type set struct {
	description string
	tags        []string
	weight      int
	conditions  []condition
}

func (s set) judge(h *Host) Judgement {
	f := every(s.conditions)(h)
	return Judgement{
		Verdict: f.verdict(), Description: s.description, Tags: s.tags, Weight: s.weight,
		Met: f.met, Unmet: f.unmet, Unjudged: f.unjudged,
	}
}

// condition asks a host for something.
type condition func(h *Host) findings

// every is a condition that all of some hold.
func every(all []condition) condition {
	return func(h *Host) (f findings) {
		for _, holds := range all {
			f = f.and(holds(h))
		}
		return f
	}
}

// findings are answers to conditions that all have to hold. The zero is of no conditions.
type findings struct {
	met      int
	unmet    []string
	unjudged []string
}

var met = findings{met: 1}

func unmet(format string, args ...any) findings {
	return findings{unmet: []string{fmt.Sprintf(format, args...)}}
}

func unjudged(format string, args ...any) findings {
	return findings{unjudged: []string{fmt.Sprintf(format, args...)}}
}

// cannotJudge is a condition that is the same for every host.
func cannotJudge(format string, args ...any) condition {
	return func(*Host) findings { return unjudged(format, args...) }
}

func (f findings) and(more findings) findings {
	return findings{f.met + more.met, append(f.unmet, more.unmet...), append(f.unjudged, more.unjudged...)}
}

func (f findings) verdict() Verdict {
	switch {
	case len(f.unmet) > 0:
		return Unsuited
	case len(f.unjudged) > 0:
		return Unknown
	}
	return Suits
}

// words are why the findings are not that all holds.
func (f findings) words() string {
	return strings.Join(append(slices.Clone(f.unmet), f.unjudged...), " and ")
}

// anyOf joins findings of which one is enough.
func anyOf(all []findings) findings {
	var against, open []string
	for _, f := range all {
		switch f.verdict() {
		case Suits:
			return f
		case Unknown:
			open = append(open, f.words())
		default:
			against = append(against, f.words())
		}
	}
	if len(open) > 0 {
		return unjudged("%s", strings.Join(open, ", or "))
	}
	return unmet("%s", strings.Join(against, ", or "))
}

// several writes a list: a, b and c.
func several(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " and " + names[last]
}
