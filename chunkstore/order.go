package chunkstore

import (
	"bytes"
	"io"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// maxHolder is the size of the largest blob that may hold others, in bytes: no client reads
// larger manifests.
const maxHolder = 5 << 20

// never is when what is used will have been read.
var never = time.Unix(1<<40, 0)

// candidate is a blob as it was when an order was made.
type candidate struct {
	*blob
	read time.Time // or never
	used bool      // it is being read or written
	asks bool      // it may hold others

	seen bool
	kept bool // it is no layer, as far as that is known
	stay bool // it is used, or held by what is
}

// evictionOrder returns the blobs that may go, the first first: layers, for which being of
// several chunks stands, before manifests, configs and whatever else is small; each by the
// time of the last read. What a manifest holds (see [Config.Held]) is no layer, counts as
// read when the manifest was, stays while that is used, and goes after it. [Config.Last] come
// after all others.
//
// It reads manifests, so s.mu is not held, and what it returns may be out of date.
func (s *Disk) evictionOrder() []*candidate {
	all := s.candidates()
	slices.SortFunc(all, func(a, b candidate) int { return b.read.Compare(a.read) })
	o := ordering{store: s}
	if s.cfg.Held != nil {
		o.byDigest = make(map[digest.Digest]*candidate, len(all))
		for i := range all {
			o.byDigest[all[i].digest] = &all[i]
		}
	}
	for i := range all {
		o.keep(&all[i], all[i].used)
	}
	slices.Reverse(o.kept)
	var groups [4][]*candidate // layers and others, and the same of those that go last
	for _, c := range o.kept {
		if c.stay {
			continue
		}
		group := 0
		if c.kept {
			group++
		}
		if s.cfg.Last != nil && s.cfg.Last(c.digest) {
			group += 2
		}
		groups[group] = append(groups[group], c)
	}
	return slices.Concat(groups[:]...)
}

func (s *Disk) candidates() (all []candidate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.blobs {
		if b.have.count() == 0 {
			continue
		}
		c := candidate{blob: b, read: b.read, used: b.users > 0, kept: b.chunks() == 1}
		if c.used {
			c.read = never
		}
		c.asks = s.cfg.Held != nil && !b.holdsNothing && b.whole() && b.total <= maxHolder
		all = append(all, c)
	}
	return all
}

// ordering puts blobs in the order in which they are kept.
type ordering struct {
	store    *Disk
	byDigest map[digest.Digest]*candidate // nil if nothing holds anything
	kept     []*candidate                 // what is to be kept longest comes first
}

// keep puts c after what it holds, unless something that was read later holds it too.
func (o *ordering) keep(c *candidate, used bool) {
	if c.seen {
		return
	}
	c.seen, c.stay = true, used
	for _, d := range o.store.heldBy(c) {
		c.kept = true
		if other := o.byDigest[d]; other != nil {
			other.kept = true
			o.keep(other, used)
		}
	}
	o.kept = append(o.kept, c)
}

// heldBy returns what a blob holds. Of a blob that holds nothing, which are most, that is
// remembered.
func (s *Disk) heldBy(c *candidate) []digest.Digest {
	if !c.asks {
		return nil
	}
	p, ok := s.object(c)
	if !ok {
		return nil
	}
	var held []digest.Digest
	if len(p) > 0 {
		held = s.cfg.Held(p)
	}
	if len(held) == 0 {
		s.mu.Lock()
		c.holdsNothing = true
		s.mu.Unlock()
	}
	return held
}

// object reads a blob if it looks like a JSON object. Whatever is wrong with its file is
// found out when somebody wants to have it; then ok is false.
func (s *Disk) object(c *candidate) (p []byte, ok bool) {
	f, err := os.Open(s.path(c.digest))
	if err != nil {
		return nil, false
	}
	defer f.Close()
	p = make([]byte, min(c.total, 64))
	if _, err := io.ReadFull(f, p); err != nil {
		return nil, false
	}
	if begin := bytes.TrimLeft(p, " \t\r\n"); len(begin) > 0 && begin[0] != '{' {
		return nil, true
	}
	rest := make([]byte, c.total-int64(len(p)))
	if _, err := io.ReadFull(f, rest); err != nil {
		return nil, false
	}
	p = append(p, rest...)
	return p, c.digest.Algorithm().FromBytes(p) == c.digest
}

// untouched returns what of an order may go still, up to where it is out of date: what has
// been read since may hold others that would go, and what is to be kept longer does not go in its place unless that is
// all there is, at last. s.mu is held.
func (s *Disk) untouched(order []*candidate, last bool) (still []*blob, all bool) {
	all = true
	for _, c := range order {
		switch {
		case s.blobs[c.digest] != c.blob || c.have.count() == 0:
		case c.kept && !all && !last:
			return still, false
		case c.users == 0 && c.blob.read.Equal(c.read):
			still = append(still, c.blob)
		case c.kept:
			return still, false
		default:
			all = false
		}
	}
	return still, all
}
