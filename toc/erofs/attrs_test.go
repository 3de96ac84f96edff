package erofs

import (
	"bytes"
	"errors"
	"testing"

	"github.com/granary-oci/granary/toc"
)

// TestInfixes is for images of programs newer than those that the others are made by.
func TestInfixes(t *testing.T) {
	p := make([]byte, 4096)
	at := 512
	for _, infix := range []string{"\x04overlay.", "\x01a.", "\x06"} {
		le.PutUint16(p[at:], uint16(len(infix)))
		copy(p[at+2:], infix)
		at = (at + 2 + len(infix) + 3) &^ 3
	}
	im := &image{size: 4096, pieces: pieces{r: bytes.NewReader(p), size: 4096}}
	im.superblock = superblock{incompat: incompatInfixes, infixes: 3, infixesAt: 512}
	for number, want := range map[byte]string{0: "", 1: "user.", 2: "system.posix_acl_access", 0x80: "trusted.overlay.", 0x81: "user.a.", 0x82: "security."} {
		if got, err := im.prefix(number); got != want || err != nil {
			t.Errorf("prefix %#x: %q, %v; want %q", number, got, err, want)
		}
	}
	for _, number := range []byte{7, 0x7f, 0x83, 0xff} {
		if _, err := im.prefix(number); !errors.Is(err, toc.ErrMalformed) {
			t.Errorf("prefix %#x: %v", number, err)
		}
	}
}

// TestPieces reads what is wanted in few reads, and nothing else.
func TestPieces(t *testing.T) {
	layer := make([]byte, 40*pieceSize+10)
	for i := range layer {
		layer[i] = byte(i / 1000)
	}
	r := &recorder{r: bytes.NewReader(layer)}
	c := pieces{r: r, size: int64(len(layer))}
	c.want([]int64{0, 1, 2, 5, 6, 39, 40})
	for _, off := range []int64{10, pieceSize - 5, 2 * pieceSize, 5 * pieceSize, 6*pieceSize + 1, 0, 39 * pieceSize, 40*pieceSize + 3} {
		p, err := c.read(off, 7)
		if err != nil || !bytes.Equal(p, layer[off:off+7]) {
			t.Errorf("at %d: %x, %v", off, p, err)
		}
	}
	want := [][2]int64{{0, 3 * pieceSize}, {5 * pieceSize, 2 * pieceSize}, {39 * pieceSize, pieceSize + 10}}
	if len(r.reads) != len(want) {
		t.Fatalf("%v, want %v", r.reads, want)
	}
	for i := range want {
		if r.reads[i] != want[i] {
			t.Errorf("read %v, want %v", r.reads[i], want[i])
		}
	}
}

type recorder struct {
	r     *bytes.Reader
	reads [][2]int64
}

func (r *recorder) ReadAt(p []byte, off int64) (int, error) {
	r.reads = append(r.reads, [2]int64{off, int64(len(p))})
	return r.r.ReadAt(p, off)
}
