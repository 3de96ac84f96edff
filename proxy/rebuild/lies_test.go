package rebuild

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/toc/cdc"
	"github.com/granary-oci/granary/toc/recipe"
)

// TestAHubThatLies is at fault, what it says is not followed any further, and nothing of it is kept.
func TestAHubThatLies(t *testing.T) {
	old, now := version(t, 1), version(t, 2)
	blob := pack(t, now, goGzip)
	sound := newGiver(t, now, blob)
	at := func(where string, change func(p []byte) []byte) func(*giver) {
		return func(h *giver) {
			h.spoil = func(path string, p []byte) ([]byte, error) {
				if path == where {
					p = change(bytes.Clone(p))
				}
				return p, nil
			}
		}
	}
	for name, c := range map[string]struct {
		lie  func(h *giver)
		says string
	}{
		"a recipe for other bytes": {func(h *giver) {
			r, m := decode(t, h.offer)
			r.Encoder.Level = 9
			h.offers(r, m)
		}, "not the blob's"},
		"an offer of another layer": {func(h *giver) {
			other := pack(t, old, goGzip)
			h.offer = newGiver(t, old, other).offer
		}, "another layer"},
		"a tar of 16 GB": {func(h *giver) {
			r, m := decode(t, h.offer)
			grow(r, m, 16<<30)
			h.offers(r, m)
		}, "no tar of"},
		"a tar of a terabyte": {func(h *giver) {
			r, m := decode(t, h.offer)
			r.Members[0].Size += 1 << 40
			how, err := r.Encode()
			if err != nil {
				t.Fatal(err)
			}
			h.offer = compressed(m.Append(append(binary.AppendUvarint(nil, uint64(len(how))), how...)))
		}, "member 0 of"},
		"one digest of two sizes": {func(h *giver) {
			r, m := decode(t, h.offer)
			a, b := bySize(m)
			m.Chunks[b].Digest = m.Chunks[a].Digest
			h.offers(r, m)
		}, "two sizes"},
		"a wrong digest of a chunk that is here": {func(h *giver) {
			r, m := decode(t, h.offer)
			a, b := bySize(m)
			m.Chunks[a].Digest, m.Chunks[b].Digest = m.Chunks[b].Digest, m.Chunks[a].Digest
			h.offers(r, m)
		}, "not what the map says"},
		"an offer that is cut":        {at(OfferPath, func(p []byte) []byte { return p[:len(p)/2] }), "malformed"},
		"an offer of noise":           {at(OfferPath, func(p []byte) []byte { return words(len(p), [32]byte{9}) }), "malformed"},
		"contents that are cut":       {at(ContentsPath, func(p []byte) []byte { return p[:len(p)/2] }), "contents end"},
		"contents that go on":         {at(ContentsPath, func(p []byte) []byte { return append(p, compressed([]byte("more"))...) }), "go on"},
		"contents that are a bomb":    {at(ContentsPath, func([]byte) []byte { return compressed(make([]byte, 64<<20)) }), "not what the map says"},
		"contents with another chunk": {at(ContentsPath, func([]byte) []byte { return compressed(words(60_000, [32]byte{8})) }), "not what the map says"},
	} {
		t.Run(name, func(t *testing.T) {
			liar := *sound
			liar.t, liar.name = t, "parent liar"
			c.lie(&liar)
			b := newSite(t, blob, []Giver{&liar}, pack(t, old, goGzip))
			if err := b.rebuild(t); !chunk.IsCorrupt(err) {
				t.Errorf("it is followed: %v", err)
			}
			if len(liar.blamed) != 1 || !strings.Contains(liar.blamed[0], c.says) {
				t.Errorf("it is blamed for %q", liar.blamed)
			}
			if b.Tries(b.want.Digest) {
				t.Error("it is tried again at once")
			}
			if l := b.Ledger(); l.Layers != 0 || l.Failed != 1 || l.Saved != 0 || l.Moved.Moved != liar.moved {
				t.Errorf("%+v", l)
			}
		})
	}
}

// TestATarOfFarMoreThanItsLayer is not made, as no hub offers it: a small offer would fill a disk.
func TestATarOfFarMoreThanItsLayer(t *testing.T) {
	old, now := version(t, 1), version(t, 2)
	blob := pack(t, now, goGzip)
	h := newGiver(t, now, blob)
	r, m := decode(t, h.offer)
	grow(r, m, maxRatio*int64(len(blob)))
	h.offers(r, m)
	b := newSite(t, blob, []Giver{h}, pack(t, old, goGzip))
	var no *notWorthError
	if err := b.rebuild(t); !errors.As(err, &no) || len(h.blamed) != 0 || h.asked != 1 {
		t.Errorf("%v; it is blamed for %q, and asked %d times", err, h.blamed, h.asked)
	}
}

func decode(t testing.TB, offer []byte) (*recipe.Recipe, *cdc.Map) {
	t.Helper()
	o, err := DecodeOffer(offer)
	if err != nil {
		t.Fatal(err)
	}
	return o.Recipe, o.Map
}

// bySize returns two chunks of different sizes that old and new versions have.
func bySize(m *cdc.Map) (a, b int) {
	for i, c := range m.Chunks {
		switch {
		case c.Inline != nil:
		case a == 0:
			a = i
		case c.Size != m.Chunks[a].Size:
			return a, i
		}
	}
	return a, b
}

// grow makes a tar that an offer is of n bytes larger.
func grow(r *recipe.Recipe, m *cdc.Map, n int64) {
	r.Members[len(r.Members)-1].Size += n
	for ; n > 0; n -= cdc.MaxSize {
		m.Chunks = append(m.Chunks, cdc.Chunk{Offset: m.Size(), Size: min(n, cdc.MaxSize), Digest: m.Chunks[1].Digest})
	}
}
