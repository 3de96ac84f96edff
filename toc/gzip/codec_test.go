package gzip

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"reflect"
	"testing"
	"testing/iotest"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/tarball"
)

var update = flag.Bool("update", false, "write testdata anew")

func encoded(t testing.TB, x *Index) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := x.Encode(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	p := sample(t)
	for name, blob := range map[string][]byte{"member": compressed(t, p, 6), "members": members(t, p, 10_000)} {
		x := indexed(t, blob)
		b := encoded(t, x)
		if !bytes.Equal(b, encoded(t, x)) {
			t.Errorf("%s: the same index gives other bytes", name)
		}
		got, err := Decode(iotest.HalfReader(bytes.NewReader(b)))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got.Points, x.Points) || got.Blob != x.Blob || got.DiffID != x.DiffID || got.Size != x.Size || got.TarSize != x.TarSize {
			t.Errorf("%s: the index differs", name)
		}
		if !reflect.DeepEqual(listed(got.Table), listed(x.Table)) {
			t.Errorf("%s: the table differs", name)
		}
	}
}

func listed(t *toc.TOC) (all []toc.Entry) {
	for e := range t.All() {
		all = append(all, e)
	}
	return all
}

// TestGolden reads indexes as version 1 has them: one that was written before windows were
// sparse, and two of another layer, with windows that are and such that are not. -update makes
// these two, and their layer.
func TestGolden(t *testing.T) {
	p := tarOf(t, "file", text(50_000, 1))
	if *update {
		writeGolden(t, p)
	}
	for index, layer := range map[string]string{"layer.index": "layer.tar.gz", "sparse.index": "flushed.tar.gz", "full.index": "flushed.tar.gz"} {
		blob, x := golden(t, layer), decoded(t, golden(t, index))
		if len(x.Points) < 3 {
			t.Errorf("%s: %d points", index, len(x.Points))
		}
		for i := range x.Points {
			if err := x.Check(bytes.NewReader(blob), i); err != nil {
				t.Errorf("%s: %v", index, err)
			}
		}
		r, err := open(t, blob, x).Inflate(toc.Extent{Inner: 40_000, Size: 5000}, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, p[40_000:45_000]) {
			t.Errorf("%s: %d bytes, %v", index, len(got), err)
		}
	}
	sparse, full := decoded(t, golden(t, "sparse.index")), decoded(t, golden(t, "full.index"))
	for i, x := range full.Points {
		if window, err := unpack(x.Window); err != nil || i > 0 && !bytes.Equal(window, p[max(0, x.Out-maxWindow):x.Out]) {
			t.Errorf("point %d: a window of %d bytes, %v", i, len(window), err)
		}
		if i > 0 && len(x.Window) <= len(sparse.Points[i].Window) {
			t.Errorf("point %d: a sparse window takes %d bytes, a full one %d", i, len(sparse.Points[i].Window), len(x.Window))
		}
	}
}

func golden(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func decoded(t *testing.T, b []byte) *Index {
	t.Helper()
	x, err := Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func writeGolden(t *testing.T, p []byte) {
	t.Helper()
	files := map[string][]byte{"flushed.tar.gz": flushed(t, p, 5_000)}
	x, err := build(bytes.NewReader(files["flushed.tar.gz"]), tarball.Scan, 8<<10)
	if err != nil {
		t.Fatal(err)
	}
	files["sparse.index"] = encoded(t, x)
	for i, point := range x.Points[1:] {
		x.Points[1+i].Window = pack(p[max(0, point.Out-maxWindow):point.Out])
	}
	files["full.index"] = encoded(t, x)
	for name, b := range files {
		if err := os.WriteFile("testdata/"+name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	x := indexed(t, compressed(t, sample(t), 6))
	good := encoded(t, x)
	changed := func(change func(x *Index)) []byte {
		c := *x
		c.Points = append([]Point(nil), x.Points...)
		change(&c)
		return encoded(t, &c)
	}
	for name, c := range map[string]struct {
		p    []byte
		want error
	}{
		"nothing":              {nil, io.ErrUnexpectedEOF},
		"another version":      {append([]byte("GRNGZIX\x02"), good[8:]...), toc.ErrFormat},
		"half a point":         {good[:headSize+20], io.ErrUnexpectedEOF},
		"half a table":         {good[:len(good)-20], toc.ErrMalformed},
		"garbage behind it":    {append(bytes.Clone(good), "garbage!"...), toc.ErrMalformed},
		"a count of 2³²-1":     {append(append(bytes.Clone(good[:headSize-4]), 0xff, 0xff, 0xff, 0xff), good[headSize:]...), toc.ErrLimit},
		"a window of 40 KiB":   {changed(func(x *Index) { x.Points[1].Window = make([]byte, 40<<10) }), toc.ErrMalformed},
		"a point backwards":    {changed(func(x *Index) { x.Points[1].In = -5 }), toc.ErrMalformed},
		"a point twice":        {changed(func(x *Index) { x.Points[2].Out = x.Points[1].Out }), toc.ErrMalformed},
		"beyond the blob":      {changed(func(x *Index) { x.Points[len(x.Points)-1].In = x.Size + 1 }), toc.ErrMalformed},
		"content beyond":       {changed(func(x *Index) { x.Points, x.TarSize = x.Points[:1], 1000 }), toc.ErrMalformed},
		"a size below zero":    {changed(func(x *Index) { x.Size = -1 }), toc.ErrMalformed},
		"no digest of a blob":  {changed(func(x *Index) { x.Blob = toc.Digest{} }), toc.ErrMalformed},
		"no point at all":      {changed(func(x *Index) { x.Points = nil }), toc.ErrMalformed},
		"bits without windows": {changed(func(x *Index) { x.Points[1].Window, x.Points[1].Bits = nil, 1 }), toc.ErrMalformed},
	} {
		if _, err := Decode(bytes.NewReader(c.p)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	reset := errors.New("connection reset")
	for _, n := range []int{0, 10, headSize + 5, len(good) - 10} {
		_, err := Decode(io.MultiReader(bytes.NewReader(good[:n]), iotest.ErrReader(reset)))
		if !errors.Is(err, reset) || errors.Is(err, toc.ErrMalformed) {
			t.Errorf("a reader that fails at %d: %v", n, err)
		}
	}
}

// FuzzDecode decodes what may be an index, and reads a layer by it.
func FuzzDecode(f *testing.F) {
	blob := members(f, tarOf(f, "f", text(3000, 1)), 1000)
	x, err := build(bytes.NewReader(blob), tarball.Scan, 512)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encoded(f, x), int64(600), int64(1000))
	x, err = build(bytes.NewReader(flushed(f, tarOf(f, "f", text(3000, 1)), 700)), tarball.Scan, 512)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encoded(f, x), int64(0), int64(3000))
	f.Fuzz(func(t *testing.T, p []byte, inner, size int64) {
		if len(p) > 1<<16 {
			return
		}
		x, err := Decode(bytes.NewReader(p))
		if err != nil {
			return
		}
		again, err := Decode(bytes.NewReader(encoded(t, x)))
		if err != nil || !reflect.DeepEqual(again.Points, x.Points) || !reflect.DeepEqual(listed(again.Table), listed(x.Table)) {
			t.Fatalf("encoded and decoded, it differs: %v", err)
		}
		l, err := Open(bytes.NewReader(blob), ocispec.Descriptor{Size: x.Size}, x, new(Spans))
		if err != nil {
			t.Fatal(err)
		}
		for i := range min(len(x.Points), 8) {
			x.Check(bytes.NewReader(blob), i) //nolint:errcheck // it may be anything
		}
		if r, err := l.Inflate(toc.Extent{Inner: inner, Size: size}, 0); err == nil {
			if n, err := io.Copy(io.Discard, r); err == nil && n != size {
				t.Fatalf("%d bytes of %d without an error", n, size)
			}
		}
	})
}

// FuzzBuild makes the index of what may be a layer, which must then read as gunzip
// reads it.
func FuzzBuild(f *testing.F) {
	p := tarOf(f, "f", text(3000, 1))
	f.Add(members(f, p, 1000))
	f.Add(flushed(f, p, 700))
	f.Add(compressed(f, p, -2))
	f.Add(compressed(f, nil, 6))
	f.Fuzz(func(t *testing.T, blob []byte) {
		if len(blob) > 1<<14 {
			return
		}
		x, err := build(bytes.NewReader(blob), tarball.Scan, 512)
		if err != nil {
			return
		}
		for i := range min(len(x.Points), 64) {
			if err := x.Check(bytes.NewReader(blob), i); err != nil {
				t.Fatal(err)
			}
		}
		l := open(t, blob, x)
		r, err := l.Inflate(toc.Extent{Size: x.TarSize}, 0)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, r); err != nil || n != x.TarSize {
			t.Fatalf("%d of %d bytes: %v", n, x.TarSize, err)
		}
	})
}
