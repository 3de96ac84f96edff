package main

import (
	"archive/tar"
	"bytes"
	"testing"
)

// TestTally: of what has not changed all is held but what comes with the map, and of what has
// nothing in common nothing is.
func TestTally(t *testing.T) {
	older, other := layer(t, 1), layer(t, 100)
	for _, s := range schemes {
		same, err := tallyOf(s, []pair{{older, older}})
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.cut(older)
		if err != nil {
			t.Fatal(err)
		}
		if same.held+len(c.inline) != same.total || same.packed != 0 {
			t.Errorf("%s: of the same %d bytes %d are held, and %d inline", s.name, same.total, same.held, len(c.inline))
		}
		if !c.raw && same.total != len(older) {
			t.Errorf("%s: %d bytes of %d are cut", s.name, same.total, len(older))
		}
		fresh, err := tallyOf(s, []pair{{older, other}})
		if err != nil {
			t.Fatal(err)
		}
		if fresh.held*10 > fresh.total || fresh.packed == 0 {
			t.Errorf("%s: of other %d bytes %d are held", s.name, fresh.total, fresh.held)
		}
	}
}

// layer is a tar of three files that begin differently with each seed, and go on so.
func layer(t *testing.T, seed byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i, size := range []int{100, 60_000, 500_000} {
		p := make([]byte, size)
		for j, x := 0, uint32(seed)+uint32(i); j < len(p); j++ {
			x = x*1664525 + 1013904223
			p[j] = byte(x >> 24)
		}
		if err := w.WriteHeader(&tar.Header{Name: string(rune('a' + i)), Size: int64(size), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
