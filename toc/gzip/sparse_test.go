package gzip

import (
	"bytes"
	stdgzip "compress/gzip"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/granary-oci/granary/toc"
)

// noTable is the [Scan] of what is no tar.
func noTable(r io.Reader) (*toc.TOC, error) { return new(toc.TOC), nil }

// plain is a layer and what it inflates to.
type plain struct{ blob, out []byte }

// plains are layers of all sorts.
func plains(t *testing.T) map[string]plain {
	all := make(map[string]plain)
	p := sample(t)
	for name, blob := range blobs(t, p) {
		all[name] = plain{blob, p}
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	for name, members := range map[string][]int{
		"one by hand":     {300},
		"several by hand": {40, 1, 40, 2, 3, 100},
		"short by hand":   {8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8},
	} {
		var d deflater
		for _, blocks := range members {
			d.member(rnd, blocks)
		}
		all[name] = plain{d.b, d.out}
	}
	return all
}

// TestSparseWindows resumes at every point, and looks at what its window lacks, and what
// it has.
func TestSparseWindows(t *testing.T) {
	for name, c := range plains(t) {
		for _, span := range []int64{1 << 10, 20_000, 128 << 10} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				x, err := build(iotest.HalfReader(bytes.NewReader(c.blob)), noTable, span)
				if err != nil {
					t.Fatal(err)
				}
				if x.TarSize != int64(len(c.out)) {
					t.Fatalf("%d bytes, of %d", x.TarSize, len(c.out))
				}
				for _, i := range some(len(x.Points), 24) {
					lookAt(t, x, i, c)
				}
			})
		}
	}
}

// TestWindowOfUnknownUse has more bytes behind the point than are looked at, in which
// nothing comes out.
func TestWindowOfUnknownUse(t *testing.T) {
	var d deflater
	d.open()
	d.stored(noise(40_000, 1), false)
	for range traced/5 + 1 {
		d.stored(nil, false)
	}
	d.block(true, true)
	d.match(258, maxWindow)
	d.end()
	d.close()
	x, err := build(bytes.NewReader(d.b), noTable, 20_000)
	if err != nil {
		t.Fatal(err)
	}
	if window, err := unpack(x.Points[1].Window); err != nil || !bytes.Equal(window, d.out[40_000-maxWindow:40_000]) {
		t.Errorf("a window of %d bytes, %v", len(window), err)
	}
	for i := range x.Points {
		if err := x.Check(bytes.NewReader(d.b), i); err != nil {
			t.Error(err)
		}
	}
}

// some returns up to n numbers below end, among them the first and the last.
func some(end, n int) (all []int) {
	step := max(1, (end+n-1)/n)
	for i := 0; i < end; i += step {
		all = append(all, i)
	}
	return append(all, end-1)
}

func lookAt(t *testing.T, x *Index, i int, c plain) {
	t.Helper()
	p := x.Points[i]
	if err := x.Check(bytes.NewReader(c.blob), i); err != nil {
		t.Errorf("point %d: %v", i, err)
	}
	ahead := min(len(c.out), int(p.Out)+3*maxWindow)
	if got := inflated(t, x, i, c.blob, ahead); !bytes.Equal(got, c.out[p.Out:ahead]) {
		t.Errorf("point %d: what inflates from it is something else", i)
	}
	if p.Window == nil {
		return
	}
	window, err := unpack(p.Window)
	if err != nil {
		t.Fatal(err)
	}
	whole := c.out[:p.Out]
	whole = whole[len(whole)-len(window):]
	var kept []int
	for at, b := range window {
		if b != 0 && b != whole[at] {
			t.Fatalf("point %d: byte %d of the window is something else", i, at)
		}
		if b != 0 {
			kept = append(kept, at)
		}
	}
	for _, n := range some(len(kept), 3) {
		if n < 0 {
			break
		}
		// It would not be kept if nothing referred to it.
		without := slices.Clone(window)
		without[kept[n]] ^= 0xff
		y := *x
		y.Points = slices.Clone(x.Points)
		y.Points[i].Window = pack(without)
		if end := min(ahead, int(p.Out)+maxWindow); bytes.Equal(inflated(t, &y, i, c.blob, end), c.out[p.Out:end]) {
			t.Errorf("point %d: byte %d of the window is kept for nothing", i, kept[n])
		}
	}
}

// inflated returns what inflates from a point up to a byte of the tar, whatever the index
// says that it should be.
func inflated(t *testing.T, x *Index, i int, blob []byte, end int) []byte {
	t.Helper()
	y := *x
	y.Points = slices.Clone(x.Points[:i+1]) // the digest is compared at the tar's end
	y.TarSize++
	s, err := y.resume(bytes.NewReader(blob), i, x.Size, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.next(int64(end) - x.Points[i].Out)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// FuzzWindows inflates what may be a layer of anything from every point.
func FuzzWindows(f *testing.F) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 8 {
		var d deflater
		d.member(rnd, 3)
		d.member(rnd, 3)
		f.Add(d.b)
	}
	f.Add(flushed(f, text(5000, 1), 700))
	f.Fuzz(func(t *testing.T, blob []byte) {
		if len(blob) > 1<<16 {
			return
		}
		z, err := stdgzip.NewReader(bytes.NewReader(blob))
		if err != nil {
			return
		}
		out, err := io.ReadAll(io.LimitReader(z, 1<<20))
		if err != nil || len(out) == 1<<20 {
			return
		}
		x, err := build(bytes.NewReader(blob), noTable, 512)
		if err != nil {
			return
		}
		if x.TarSize != int64(len(out)) {
			t.Fatalf("%d bytes, not %d", x.TarSize, len(out))
		}
		for _, i := range some(len(x.Points), 32) {
			lookAt(t, x, i, plain{blob, out})
		}
	})
}
