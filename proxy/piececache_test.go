package proxy

import (
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestPiecesOfABlobThatWasWrongAreForgotten(t *testing.T) {
	wrong, right := pieceKey{host: "h", blob: digest.FromString("wrong")}, pieceKey{host: "h", blob: digest.FromString("right")}
	elsewhere := pieceKey{host: "other", blob: wrong.blob}
	var c pieceCache
	for _, k := range []pieceKey{wrong, right, elsewhere} {
		for _, p := range c.claim(k, 2*pieceSize) {
			c.settle(p, make([]byte, pieceSize), nil)
		}
	}
	coming := wrong
	coming.offset = 2 * pieceSize
	late := c.claim(coming, 3*pieceSize)[0]
	c.drop(wrong.host, wrong.blob)
	if c.has(wrong) || c.has(coming) || !c.has(right) || !c.has(elsewhere) || c.size != 4*pieceSize || c.order.Len() != 4 {
		t.Errorf("%d bytes in %d pieces are left", c.size, c.order.Len())
	}
	again := c.claim(coming, 3*pieceSize)[0] // by who asks after that
	c.settle(late, []byte("wrong"), nil)
	if b, err := late.wait(t.Context()); err != nil || string(b) != "wrong" || again.here() {
		t.Errorf("who has waited gets %q, %v; there for others: %v", b, err, again.here())
	}
	c.settle(again, []byte("right"), nil)
	if b, _ := c.find(coming).wait(t.Context()); string(b) != "right" {
		t.Errorf("it is %q", b)
	}
}
