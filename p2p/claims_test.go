package p2p_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/p2ptest"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/tracker"
)

func newClaims() (c *p2p.Claims, blamed *[]tracker.ID) {
	blamed = new([]tracker.ID)
	return p2p.NewClaims(p2ptest.Signer("self"), func(id tracker.ID, _ error) { *blamed = append(*blamed, id) }), blamed
}

// signed returns a claim on a chunk.
func signed(by tracker.ID, ref chunk.Ref, p []byte) wire.Claim {
	claim := wire.Claim{Digest: digest.FromBytes(p), Signer: by}
	claim.Signature, _ = p2ptest.Signer(by).Sign(claim.Text(ref))
	return claim
}

// refOf returns a chunk of a blob of many.
func refOf(blob string, index int) chunk.Ref {
	m, err := chunk.Grid(digest.FromString(blob), 100*chunk.Size)
	if err != nil {
		panic(err)
	}
	return m.At(index)
}

var chunkOfA = content(chunk.Size, 1)

func TestClaimsAreHandedOnToTheNextProcess(t *testing.T) {
	before, _ := newClaims()
	own, others, unsigned := refOf("a", 3), refOf("a", 4), refOf("a", 5)
	before.Of("r").Own(own, chunkOfA)
	_, _ = before.Of("r").For(own, chunkOfA, p2p.Proof{})
	before.Of("r").Keep(others, signed("b", others, chunkOfA))
	before.Of("r").Own(unsigned, chunkOfA)
	var text bytes.Buffer
	if err := before.Encode(&text); err != nil {
		t.Fatal(err)
	}
	after, _ := newClaims()
	if err := after.Decode(strings.NewReader(text.String())); err != nil {
		t.Fatal(err)
	}
	for ref, signer := range map[chunk.Ref]tracker.ID{own: "self", others: "b", unsigned: "self"} {
		if claim, ok := after.Of("r").For(ref, chunkOfA, p2p.Proof{}); !ok || claim.Signer != signer {
			t.Errorf("%s: signed by %q (%v), want %q", ref, claim.Signer, ok, signer)
		}
	}
	for _, bad := range []string{"{", `{"blob":"x"}`, `{"blob":"` + string(own.Blob) + `","offset":5}`, text.String()[:text.Len()/2]} {
		c, _ := newClaims()
		if err := c.Decode(strings.NewReader(bad)); err == nil {
			t.Errorf("%.40q: no error", bad)
		}
	}
}

func TestWhatIsLentIsVouchedFor(t *testing.T) {
	ref := refOf("a", 3)
	for _, tt := range []struct {
		name   string
		know   func(c *p2p.Claims)
		proven bool
		signer tracker.ID // "" for nobody
	}{
		{"nobody vouches for it", func(*p2p.Claims) {}, false, ""},
		{"this node has fetched it", func(c *p2p.Claims) { c.Of("r").Own(ref, chunkOfA) }, false, "self"},
		{"its blob is proven", func(*p2p.Claims) {}, true, "self"},
		{"another has signed", func(c *p2p.Claims) { c.Of("r").Keep(ref, signed("b", ref, chunkOfA)) }, false, "b"},
		{"the latest counts", func(c *p2p.Claims) {
			c.Of("r").Keep(ref, signed("b", ref, chunkOfA))
			c.Of("r").Own(ref, chunkOfA)
		}, false, "self"},
		{"another chunk was fetched", func(c *p2p.Claims) { c.Of("r").Own(refOf("a", 4), chunkOfA) }, false, ""},
		{"another blob was fetched", func(c *p2p.Claims) { c.Of("r").Own(refOf("b", 3), chunkOfA) }, false, ""},
		{"its blob was refuted", func(c *p2p.Claims) {
			c.Of("r").Own(ref, chunkOfA)
			c.Of("r").Refuted(ref.Blob)
		}, false, ""},
		{"another has signed, and its blob was proven", func(c *p2p.Claims) {
			c.Of("r").Keep(ref, signed("b", ref, chunkOfA))
			c.Of("r").Proven(ref.Blob)
		}, true, "self"},
		{"another has signed, and its blob is not proven any more", func(c *p2p.Claims) {
			c.Of("r").Keep(ref, signed("b", ref, chunkOfA))
			c.Of("r").Proven(ref.Blob)
		}, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := newClaims()
			tt.know(c)
			for range 2 { // the second time it is remembered
				claim, ok := c.Of("r").For(ref, chunkOfA, p2p.Proof{Proven: tt.proven})
				if ok != (tt.signer != "") || ok && claim.Signer != tt.signer {
					t.Fatalf("signed by %q (%v), want %q", claim.Signer, ok, tt.signer)
				}
				other, _ := newClaims()
				if err := other.Check(ref, chunkOfA, claim, "self"); ok && err != nil {
					t.Errorf("it does not convince others: %v", err)
				}
			}
		})
	}
}

func TestAClaimIsCheckedWithItsBytes(t *testing.T) {
	ref, other := refOf("a", 3), refOf("a", 4)
	known := ref
	known.Digest = digest.FromBytes(chunkOfA)
	whole := chunk.Ref{Blob: digest.FromBytes(chunkOfA), Total: chunk.Size, Size: chunk.Size}
	sha512 := ref
	sha512.Digest = digest.SHA512.FromBytes(chunkOfA)
	wrong := content(chunk.Size, 2)
	forged := signed("b", ref, chunkOfA)
	forged.Signer = "c"
	for _, tt := range []struct {
		name  string
		ref   chunk.Ref
		p     []byte
		claim wire.Claim
		right bool
	}{
		{"right", ref, chunkOfA, signed("b", ref, chunkOfA), true},
		{"right and known", known, chunkOfA, signed("b", ref, chunkOfA), true},
		{"right and known by another algorithm", sha512, chunkOfA, signed("b", ref, chunkOfA), true},
		{"a whole blob", whole, chunkOfA, wire.Claim{}, true},
		{"a whole blob of other bytes", whole, wrong, wire.Claim{}, false},
		{"other bytes", ref, wrong, signed("b", ref, chunkOfA), false},
		{"other bytes than are known, signed for", known, wrong, signed("b", ref, wrong), false},
		{"known bytes with a claim on others", known, chunkOfA, signed("b", ref, wrong), false},
		{"on another chunk", ref, chunkOfA, signed("b", other, chunkOfA), false},
		{"on another blob", ref, chunkOfA, signed("b", refOf("b", 3), chunkOfA), false},
		{"in another's name", ref, chunkOfA, forged, false},
		{"none", ref, chunkOfA, wire.Claim{}, false},
		{"none for what is asked for by digest", known, chunkOfA, wire.Claim{}, true},
		{"none for other bytes than were asked for", known, wrong, wire.Claim{}, false},
		{"too short", ref, chunkOfA[:10], signed("b", ref, chunkOfA[:10]), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := newClaims()
			err := c.Check(tt.ref, tt.p, tt.claim, "sender")
			if right := err == nil; right != tt.right || !right && !chunk.IsCorrupt(err) {
				t.Errorf("the check says %v", err)
			}
		})
	}
}

func TestOfARefutedBlobTheSignerOfWrongBytesIsBlamed(t *testing.T) {
	c, blamed := newClaims()
	wrong := content(chunk.Size, 2)
	first, second, third := refOf("a", 0), refOf("a", 1), refOf("a", 2)
	c.Of("r").Keep(first, signed("honest", first, chunkOfA))
	c.Of("r").Keep(second, signed("liar", second, wrong))
	c.Of("r").Own(third, wrong)
	if c.Of("r").Suspected(first.Blob) {
		t.Error("a blob is suspected that nobody has refuted")
	}
	c.Of("r").Refuted(first.Blob)
	if !c.Of("r").Suspected(first.Blob) || c.Of("r").Suspected(refOf("b", 0).Blob) {
		t.Error("the refuted blob is not suspected, or another is")
	}
	for _, ref := range []chunk.Ref{first, second, third} {
		c.Of("r").Own(ref, chunkOfA)
		c.Of("r").Own(ref, chunkOfA)
	}
	if len(*blamed) > 0 {
		t.Errorf("%v are blamed before it is known that the upstream is right", *blamed)
	}
	c.Of("r").Proven(first.Blob)
	if !slices.Equal(*blamed, []tracker.ID{"liar"}) {
		t.Errorf("%v are blamed", *blamed)
	}
	if c.Of("r").Suspected(first.Blob) {
		t.Error("a proven blob is suspected")
	}
}

// parents are those that are believed, until they are blamed.
type parents map[string]bool

func (p parents) Believed(name string) bool    { return p[name] }
func (p parents) Blame(name string, err error) { p[name] = false }

// TestWhatAParentGaveIsItsFaultAndNotTheSigners: of a refuted blob, and claims that rest on a parent which is not
// believed are nobody's fault.
func TestWhatAParentGaveIsItsFaultAndNotTheSigners(t *testing.T) {
	lender := p2p.NewClaims(p2ptest.Signer("lender"), func(tracker.ID, error) {})
	ref, wrong := refOf("a", 1), content(chunk.Size, 2)
	lender.Of("r").OwnBy("hub", ref, wrong)
	claim, ok := lender.Of("r").For(ref, wrong, p2p.Proof{})
	if !ok || claim.Parent != "hub" {
		t.Fatalf("it is lent with %+v, %v", claim, ok)
	}

	c, blamed := newClaims()
	if err := c.Check(ref, wrong, claim, "lender"); err == nil || chunk.IsCorrupt(err) {
		t.Errorf("of a parent that is nobody's: %v", err)
	}
	known := parents{"hub": true, "other": true}
	c.Believe(known)
	if err := c.Check(ref, wrong, claim, "self"); err != nil {
		t.Error(err)
	}
	forged := claim
	forged.Parent = "other"
	if err := c.Check(ref, wrong, forged, "self"); !chunk.IsCorrupt(err) {
		t.Errorf("a signature for another parent: %v", err)
	}
	c.Of("r").Keep(ref, claim)
	c.Of("r").Refuted(ref.Blob)
	c.Of("r").Own(ref, chunkOfA)
	c.Of("r").Proven(ref.Blob)
	if known["hub"] || !known["other"] || len(*blamed) > 0 {
		t.Errorf("believed are %v, blamed %v", known, *blamed)
	}
	if err := c.Check(ref, wrong, claim, "self"); err == nil || chunk.IsCorrupt(err) {
		t.Errorf("of a parent at fault: %v", err)
	}

	lender.Of("r").Proven(ref.Blob)
	if claim, ok := lender.Of("r").For(ref, wrong, p2p.Proof{Proven: true}); !ok || claim.Parent != "" {
		t.Errorf("once the blob is proven it is lent with %+v, %v", claim, ok)
	}
}

// TestClaimsOnOneRegistrysBlobSayNothingOfAnothers: anybody may run a registry that
// says of a digest what it likes.
func TestClaimsOnOneRegistrysBlobSayNothingOfAnothers(t *testing.T) {
	c, blamed := newClaims()
	ref := refOf("a", 1)
	c.Of("liar").Keep(ref, signed("b", ref, content(chunk.Size, 2)))
	if _, ok := c.Of("r").For(ref, chunkOfA, p2p.Proof{}); ok {
		t.Error("a chunk is lent for what was said of another registry's")
	}
	c.Of("liar").Refuted(ref.Blob)
	c.Of("r").Own(ref, chunkOfA)
	c.Of("r").Proven(ref.Blob)
	if claim, ok := c.Of("r").For(ref, chunkOfA, p2p.Proof{Proven: true}); !ok || claim.Digest != digest.FromBytes(chunkOfA) || len(*blamed) > 0 {
		t.Errorf("the claim is %+v, %v; %v are blamed", claim, ok, *blamed)
	}
}

func TestWithoutASuspicionNobodyIsBlamed(t *testing.T) {
	c, blamed := newClaims()
	ref := refOf("a", 0)
	c.Of("r").Keep(ref, signed("b", ref, content(chunk.Size, 2)))
	c.Of("r").Own(ref, chunkOfA)
	if len(*blamed) > 0 {
		t.Errorf("%v are blamed", *blamed)
	}
}

func TestWhatIsFetchedIsKnownFromWhatOthersGave(t *testing.T) {
	c, _ := newClaims()
	own, given := refOf("a", 0), refOf("a", 1)
	c.Of("r").Own(own, chunkOfA)
	c.Of("r").Keep(given, signed("b", given, chunkOfA))
	if !c.Of("r").Fetched(own) || c.Of("r").Fetched(given) || c.Of("r").Fetched(refOf("a", 2)) {
		t.Errorf("fetched: own %v, given %v, unknown %v", c.Of("r").Fetched(own), c.Of("r").Fetched(given), c.Of("r").Fetched(refOf("a", 2)))
	}
	c.Of("r").OwnBy("hub", refOf("a", 2), chunkOfA)
	if parent, itself := c.Of("r").FetchedBy(refOf("a", 2)); parent != "hub" || !itself || c.Of("r").Fetched(refOf("a", 2)) {
		t.Errorf("what a parent gave is from %q, itself %v, and from the upstream %v", parent, itself, c.Of("r").Fetched(refOf("a", 2)))
	}
}

func TestClaimsAreForgottenForNewOnes(t *testing.T) {
	const most = 1 << 16
	m, err := chunk.Grid(digest.FromString("huge"), 3*most/2*chunk.Size)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := newClaims()
	small := refOf("small", 0)
	c.Of("r").Own(small, nil)
	for i := range m.Len() {
		c.Of("r").Own(m.At(i), nil)
	}
	kept := 0
	for i := range m.Len() {
		if c.Of("r").Fetched(m.At(i)) {
			kept++
		}
	}
	if kept != most || c.Of("r").Fetched(small) {
		t.Errorf("%d claims of a huge blob are kept, want %d; of a small one %v", kept, most, c.Of("r").Fetched(small))
	}
	c.Of("r").Refuted(m.Blob())
	c.Of("r").Proven(m.Blob())
	if c.Of("r").Own(small, nil); !c.Of("r").Fetched(small) {
		t.Error("there is no room after the huge blob is forgotten")
	}
	for i := range 5000 {
		c.Of("r").Refuted(digest.FromString(string(rune(i))))
	}
	if d := digest.FromString(string(rune(4999))); !c.Of("r").Suspected(d) {
		t.Error("the blob that was refuted last is not suspected")
	}
}

// TestAClaimByLinks takes the place of one by digest where a blob was hashed in order:
// who lends it does not hash the chunk again.
func TestAClaimByLinks(t *testing.T) {
	whole := make([]byte, 2*chunk.Size+100)
	for i := range whole {
		whole[i] = byte(i * 7)
	}
	m, err := chunk.Grid(digest.FromBytes(whole), int64(len(whole)))
	if err != nil {
		t.Fatal(err)
	}
	var links []chunk.Link
	prefix := chunk.NewPrefix(m.Blob())
	for i := range m.Len() {
		ref := m.At(i)
		_, _ = prefix.Write(whole[ref.Offset : ref.Offset+ref.Size])
		links = append(links, prefix.Link())
	}
	for i := range m.Len() {
		ref, proof := m.At(i), p2p.Proof{Proven: true}
		p := whole[ref.Offset : ref.Offset+ref.Size]
		if i > 0 {
			proof.Before = links[i-1]
		}
		if !ref.Last() {
			proof.After = links[i]
		}
		lender, _ := newClaims()
		claim, ok := lender.Of("r").For(ref, p, proof)
		if !ok || claim.Digest != "" || !claim.Says() {
			t.Fatalf("chunk %d: %+v, %v", i, claim, ok)
		}
		asker, _ := newClaims()
		if err := asker.Check(ref, p, claim, "self"); err != nil {
			t.Errorf("chunk %d: %v", i, err)
		}
		wrong := bytes.Clone(p)
		wrong[50]++
		for name, lie := range map[string]func(c *wire.Claim, p *[]byte){
			"wrong bytes":       func(_ *wire.Claim, p *[]byte) { *p = wrong },
			"too few bytes":     func(_ *wire.Claim, p *[]byte) { *p = (*p)[1:] },
			"another beginning": func(c *wire.Claim, _ *[]byte) { c.Before = links[1] + "x" },
			"another end":       func(c *wire.Claim, _ *[]byte) { c.After = "x" },
			"no links":          func(c *wire.Claim, _ *[]byte) { c.Before, c.After = "", "" },
		} {
			told, sent := claim, p
			lie(&told, &sent)
			if err := asker.Check(ref, sent, told, "self"); !chunk.IsCorrupt(err) {
				t.Errorf("chunk %d, %s: %v", i, name, err)
			}
		}
		// Relayed, it is still its signer's word; once the blob is proven, the relayer's.
		asker.Of("r").Keep(ref, claim)
		if relayed, ok := asker.Of("r").For(ref, p, p2p.Proof{}); !ok || !bytes.Equal(relayed.Signature, claim.Signature) {
			t.Errorf("chunk %d relayed: %+v, %v", i, relayed, ok)
		}
	}
}

// TestALieByLinksIsFoundOut when the blob turns out not to match, and the upstream
// sends something else.
func TestALieByLinksIsFoundOut(t *testing.T) {
	c, blamed := newClaims()
	ref := chunk.Ref{Blob: digest.FromString("blob"), Total: 3 * chunk.Size, Offset: chunk.Size, Size: chunk.Size}
	c.Of("r").Keep(ref, wire.Claim{Before: chunk.Link(make([]byte, 32)), After: chunk.Link(make([]byte, 32)), Signer: "liar", Signature: []byte("s")})
	c.Of("r").Refuted(ref.Blob)
	c.Of("r").Own(ref, make([]byte, chunk.Size))
	c.Of("r").Proven(ref.Blob)
	if len(*blamed) != 1 || (*blamed)[0] != "liar" {
		t.Errorf("blamed: %v", *blamed)
	}
}
