package lazy_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/granary-oci/granary/proxy/lazy"
	"github.com/granary-oci/granary/toc"
)

// keepParts cuts a content, and keeps each part as read from an origin.
func keepParts(t *testing.T, c *lazy.Contents, from lazy.Origin, p []byte, sizes ...int) (parts []toc.Extent) {
	t.Helper()
	at := 0
	for _, n := range sizes {
		part := p[at : at+n]
		if err := c.For(t.Context(), from, nobodyElse).Keep(sumOf(part), int64(n), bytes.NewReader(part)); err != nil {
			t.Fatal(err)
		}
		parts = append(parts, toc.Extent{Offset: int64(at), Size: int64(n), Digest: sumOf(part)})
		at += n
	}
	return parts
}

func TestAContentIsAssembledOfItsParts(t *testing.T) {
	all := bytes.Repeat([]byte("some content, "), 1<<19)
	for _, sizes := range [][]int{{1, 2, 3}, {4 << 20, 1 << 20, 5}, {100, 1<<20 + 1, 3 << 20}} {
		c, n := openContents(t), 0
		for _, k := range sizes {
			n += k
		}
		p := all[:n]
		parts := keepParts(t, c, origin("mine"), p, sizes...)
		if err := c.Assemble(t.Context(), sumOf(p), parts); err != nil {
			t.Fatal(err)
		}
		if !c.Store.Proven(sumOf(p).OCI()) && n > 1<<20 {
			t.Error("it is not proven")
		}
		got := make([]byte, n)
		if k, err := c.For(t.Context(), origin("mine"), nobodyElse).ReadAt(sumOf(p), int64(n), got, 0); err != nil || !bytes.Equal(got[:k], p) {
			t.Errorf("%d bytes, %v", k, err)
		}
		if _, err := c.For(t.Context(), origin("other"), nobodyElse).ReadAt(sumOf(p), int64(n), got, 0); !errors.Is(err, toc.ErrNotKept) {
			t.Errorf("it is read by somebody who may not: %v", err)
		}
	}
}

// TestWhatIsAssembledIsForThoseWhoMayReadAllOfIt has parts of two layers.
func TestWhatIsAssembledIsForThoseWhoMayReadAllOfIt(t *testing.T) {
	c, p := openContents(t), []byte("a secret and what everybody knows")
	parts := append(keepParts(t, c, origin("secret"), p[:8], 8), toc.Extent{})
	parts[1] = keepParts(t, c, origin("public"), p[8:], len(p)-8)[0]
	parts[1].Offset = 8
	if err := c.Assemble(t.Context(), sumOf(p), parts); err != nil {
		t.Fatal(err)
	}
	if c.Known(sumOf(p).OCI()) {
		t.Error("it is said to come from a layer that does not have all of it")
	}
	for _, who := range []string{"secret", "public"} {
		if _, err := c.For(t.Context(), origin(who), nobodyElse).ReadAt(sumOf(p), int64(len(p)), make([]byte, len(p)), 0); !errors.Is(err, toc.ErrNotKept) {
			t.Errorf("it is read by who may read the %s layer: %v", who, err)
		}
	}
}

func TestWhatCannotBeAssembled(t *testing.T) {
	c, p := openContents(t), bytes.Repeat([]byte("content "), 1<<18)
	parts := keepParts(t, c, origin("mine"), p, 1<<20, 1<<20)
	gone := parts[1]
	gone.Digest = sumOf([]byte("gone"))
	gap := parts[1]
	gap.Offset++
	var corrupt *toc.CorruptError
	for name, is := range map[string]struct {
		parts []toc.Extent
		want  func(error) bool
	}{
		"one of another":  {[]toc.Extent{{Size: 1 << 20, Digest: sumOf([]byte("x"))}}, func(err error) bool { return errors.Is(err, toc.ErrNotKept) }},
		"one is missing":  {[]toc.Extent{parts[0], gone}, func(err error) bool { return errors.Is(err, toc.ErrNotKept) }},
		"one is left out": {parts[:1], func(err error) bool { return errors.As(err, &corrupt) }},
		"a gap":           {[]toc.Extent{parts[0], gap}, func(err error) bool { return errors.Is(err, toc.ErrMalformed) }},
	} {
		d := sumOf([]byte(name))
		if err := c.Assemble(t.Context(), d, is.parts); !is.want(err) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := c.For(t.Context(), origin("mine"), nobodyElse).ReadAt(d, 1, make([]byte, 1), 0); !errors.Is(err, toc.ErrNotKept) {
			t.Errorf("%s: it is kept: %v", name, err)
		}
	}
}
