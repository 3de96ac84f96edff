package p2p_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

// askMap asks as node a for two digests of a blob that b and c have all of, or say so.
func askMap(c *cluster, m *chunk.Map) (all chunk.Digests, giver tracker.ID, err error) {
	for _, n := range c.nodes {
		n.providers.Announce(m.Blob(), "b")
		n.providers.Announce(m.Blob(), "c")
	}
	return c.nodes["a"].client.Digests(c.t.Context(), host, m.Blob(), m.Size(), 3, 2)
}

type answer = func(context.Context, wire.Ask) (wire.Answer, []byte, error)

func TestDigestsComeFromWhoeverHasTheBlob(t *testing.T) {
	const sent = 2 * chunk.DigestSize
	right := func(context.Context, wire.Ask) (wire.Answer, []byte, error) {
		return wire.Answer{}, bytes.Repeat([]byte{7}, sent), nil
	}
	of := func(n int, err error) answer {
		return func(context.Context, wire.Ask) (wire.Answer, []byte, error) {
			return wire.Answer{}, make([]byte, n), err
		}
	}
	slow := func(ctx context.Context, _ wire.Ask) (wire.Answer, []byte, error) {
		<-ctx.Done()
		return wire.Answer{}, nil, ctx.Err()
	}
	for _, tt := range []struct {
		name  string
		b, c  answer
		from  []tracker.ID // "" for nobody
		state string       // of b
	}{
		{"both", right, right, []tracker.ID{"b", "c"}, "up"},
		{"one has lost the blob", of(0, chunk.ErrNotFound), right, []tracker.ID{"c"}, "up"},
		{"one does not know the question", of(0, errors.New("the question is not known here")), right, []tracker.ID{"c"}, "up"},
		{"one takes too long", slow, right, []tracker.ID{"c"}, "up"},
		{"none has it", of(0, chunk.ErrNotFound), of(0, chunk.ErrNotFound), []tracker.ID{""}, "up"},
		{"one sends too little", of(sent-1, nil), of(0, chunk.ErrNotFound), []tracker.ID{""}, "quarantined"},
		{"one sends nothing", of(0, nil), of(0, chunk.ErrNotFound), []tracker.ID{""}, "quarantined"},
		{"one sends too much", of(sent+chunk.DigestSize, nil), of(0, chunk.ErrNotFound), []tracker.ID{""}, "quarantined"},
		{"one sends as much as it can", of(wire.MaxBody, nil), of(0, chunk.ErrNotFound), []tracker.ID{""}, "quarantined"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, nil, "a", "b", "c")
				m := c.blob(9 << 20)
				c.nodes["b"].answer, c.nodes["c"].answer = tt.b, tt.c
				all, giver, err := askMap(c, m)
				if !slices.Contains(tt.from, giver) || (err == nil) != (giver != "") || err != nil && !errors.Is(err, chunk.ErrNotFound) {
					t.Errorf("from %q: %v; want %q", giver, err, tt.from)
				}
				if giver != "" && (all.Len() != 2 || all.At(1) != digest.NewDigestFromBytes(digest.SHA256, bytes.Repeat([]byte{7}, 32))) {
					t.Errorf("%d digests", all.Len())
				}
				if s := c.nodes["a"].state("b"); s.State != tt.state || (len(c.reports()) > 0) != (tt.state == "quarantined") {
					t.Errorf("b is %s, with %v; want %s", s.State, c.reports(), tt.state)
				}
			})
		})
	}
}

// TestTheQuestionForDigests has no credentials in it, for who is asked asks nobody; and is not
// asked at all of what is to come from the upstream.
func TestTheQuestionForDigests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b", "c")
		m := c.blob(9 << 20)
		for _, n := range c.nodes {
			n.answer = func(_ context.Context, q wire.Ask) (wire.Answer, []byte, error) {
				part, err := wire.ReadPart(q.Reference)
				first, n, rangeErr := part.Chunks()
				if err != nil || rangeErr != nil || part.Layer != m.Blob() || part.Total != m.Size() || first != 3 || n != 2 ||
					q.Question != wire.Digests || q.Repository != (wire.Repository{Host: host}) {
					t.Errorf("%+v, %+v", q, part)
				}
				return wire.Answer{}, nil, chunk.ErrNotFound
			}
		}
		_, _, _ = askMap(c, m)
		for _, n := range c.nodes {
			n.answer = func(context.Context, wire.Ask) (wire.Answer, []byte, error) {
				t.Error("somebody was asked for the map of a blob that is to come from the upstream alone")
				return wire.Answer{}, nil, chunk.ErrNotFound
			}
		}
		c.nodes["a"].client.Claims().Of(host).Refuted(m.Blob())
		if _, _, err := askMap(c, m); !errors.Is(err, chunk.ErrNotFound) {
			t.Error(err)
		}
	})
}

func TestWhatAMapSaysIsNotLent(t *testing.T) {
	ref := refOf("a", 3)
	mapped := ref
	mapped.Digest = digest.FromBytes(chunkOfA)
	wrong := content(chunk.Size, 2)
	lies := mapped
	lies.Digest = digest.FromBytes(wrong)
	byLinks := wire.Claim{Before: "before", After: "after", Signer: "b", Signature: []byte("b")}
	for _, tt := range []struct {
		name   string
		know   func(h p2p.HostClaims)
		proven bool
		signer tracker.ID // "" for nobody
		own    bool
	}{
		{"it alone", func(h p2p.HostClaims) { h.Mapped(mapped, "m") }, false, "", false},
		{"in place of what was fetched", func(h p2p.HostClaims) { h.Own(ref, chunkOfA); h.Mapped(mapped, "m") }, false, "", false},
		{"in place of a claim", func(h p2p.HostClaims) { h.Keep(ref, signed("b", ref, chunkOfA)); h.Mapped(mapped, "m") }, false, "", false},
		{"and the upstream", func(h p2p.HostClaims) { h.Mapped(mapped, "m"); h.Own(ref, chunkOfA) }, false, "self", true},
		{"and not the upstream", func(h p2p.HostClaims) { h.Mapped(lies, "m"); h.Own(ref, chunkOfA) }, false, "", false},
		{"and a claim", func(h p2p.HostClaims) { h.Mapped(mapped, "m"); h.Keep(ref, signed("b", ref, chunkOfA)) }, false, "b", false},
		{"and not a claim", func(h p2p.HostClaims) { h.Mapped(lies, "m"); h.Keep(ref, signed("b", ref, chunkOfA)) }, false, "", false},
		{"and a claim by links", func(h p2p.HostClaims) { h.Mapped(mapped, "m"); h.Keep(ref, byLinks) }, false, "", false},
		{"and its blob is proven", func(h p2p.HostClaims) { h.Mapped(mapped, "m"); h.Proven(ref.Blob) }, true, "self", false},
		{"and its blob was proven", func(h p2p.HostClaims) { h.Mapped(mapped, "m"); h.Proven(ref.Blob) }, false, "", false},
		{"and its blob is proven otherwise", func(h p2p.HostClaims) { h.Mapped(lies, "m"); h.Proven(ref.Blob) }, true, "self", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, blamed := newClaims()
			h := c.Of("r")
			tt.know(h)
			var text bytes.Buffer
			if err := c.Encode(&text); err != nil {
				t.Fatal(err)
			}
			next, _ := newClaims()
			if err := next.Decode(strings.NewReader(text.String())); err != nil {
				t.Fatal(err)
			}
			for _, h := range []p2p.HostClaims{h, next.Of("r")} { // in the next process too
				if h.Fetched(ref) != tt.own || h.Vouched(ref, tt.proven) != (tt.signer != "") {
					t.Errorf("fetched %v, vouched for %v", h.Fetched(ref), h.Vouched(ref, tt.proven))
				}
				claim, ok := h.For(ref, chunkOfA, p2p.Proof{Proven: tt.proven})
				if ok != (tt.signer != "") || ok && (claim.Signer != tt.signer || claim.Digest != mapped.Digest) {
					t.Errorf("lent by %q (%v), want %q", claim.Signer, ok, tt.signer)
				}
			}
			if len(*blamed) > 0 {
				t.Errorf("%v are blamed", *blamed)
			}
		})
	}
}

func TestOfARefutedBlobTheGiverOfAWrongMapIsBlamed(t *testing.T) {
	c, blamed := newClaims()
	h := c.Of("r")
	wrong := content(chunk.Size, 2)
	for i, giver := range []tracker.ID{"honest", "liar"} {
		ref := refOf("a", i)
		ref.Digest = digest.FromBytes([][]byte{chunkOfA, wrong}[i])
		h.Mapped(ref, giver)
	}
	h.Refuted(refOf("a", 0).Blob)
	for i := range 3 {
		h.Own(refOf("a", i), chunkOfA)
	}
	h.Proven(refOf("a", 0).Blob)
	if !slices.Equal(*blamed, []tracker.ID{"liar"}) {
		t.Errorf("%v are blamed", *blamed)
	}
}

// TestAMapIsBelievedAsLongAsItsGiver: not while it is in quarantine, nor of a blob that did
// not match.
func TestAMapIsBelievedAsLongAsItsGiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, "a", "b", "c")
		m := c.blob(9 << 20)
		ref := m.At(3)
		ref.Digest = digest.FromString("chunk")
		believes := func() bool { return c.nodes["a"].client.Mapped(host, ref, "b") }
		if !believes() || c.nodes["a"].client.Mapped(host, ref, "a stranger") {
			t.Error("a member is not believed, or somebody else is")
		}
		c.nodes["b"].answer = func(context.Context, wire.Ask) (wire.Answer, []byte, error) { return wire.Answer{}, nil, nil }
		c.nodes["c"].answer = c.nodes["b"].answer
		if _, _, _ = askMap(c, m); believes() {
			t.Error("a member in quarantine is believed")
		}
		time.Sleep(2 * time.Minute)
		if !believes() {
			t.Error("a member is not believed after its quarantine")
		}
		c.nodes["a"].client.Claims().Of(host).Refuted(m.Blob())
		if believes() {
			t.Error("the map of a blob is believed that is to come from the upstream alone")
		}
	})
}
