package gzip

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/iotest"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/toc/tarball"
)

// blobs are ways to compress a tar.
func blobs(t *testing.T, p []byte) map[string][]byte {
	all := map[string][]byte{
		"flushed":         flushed(t, p, 16<<10),
		"flushed often":   flushed(t, p, 1001),
		"members":         members(t, p, 100_000),
		"small members":   members(t, p, 10_000),
		"zeros behind it": append(compressed(t, p, 6), make([]byte, 200_000)...),
	}
	for level := -2; level <= 9; level++ {
		all["level "+strconv.Itoa(level)] = compressed(t, p, level)
	}
	for _, level := range []int{-2, 0, 1, 6, 9} {
		all["std level "+strconv.Itoa(level)] = stdCompressed(t, p, level)
	}
	cmd := exec.Command("gzip", "-c")
	cmd.Stdin = bytes.NewReader(p)
	if out, err := cmd.Output(); err == nil {
		all["gzip"] = out
	}
	return all
}

func TestAnywhere(t *testing.T) {
	p := sample(t)
	for name, blob := range blobs(t, p) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := indexed(t, blob)
			if x.Blob != sha256.Sum256(blob) || x.DiffID != sha256.Sum256(p) || x.Size != int64(len(blob)) || x.TarSize != int64(len(p)) {
				t.Errorf("the index is of a blob of %d bytes, a tar of %d", x.Size, x.TarSize)
			}
			if n := len(x.Points); n < 4 {
				t.Errorf("%d points", n)
			}
			for i := range x.Points {
				if err := x.Check(bytes.NewReader(blob), i); err != nil {
					t.Error(err)
				}
			}
			readAtRandom(t, open(t, blob, x), p)
			readFiles(t, open(t, blob, x))
			near := open(t, blob, x)
			near.Inflater = &inflater{bytes.NewReader(blob), x, new(Spans)}
			var all sync.WaitGroup
			for range 3 {
				all.Go(func() { readAtRandom(t, near, p) })
			}
			all.Wait()
		})
	}
}

func readAtRandom(t *testing.T, l *toc.Layer, p []byte) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		e := toc.Extent{Inner: rnd.Int64N(int64(len(p)))}
		e.Size = rnd.Int64N(min(int64(len(p))-e.Inner, 1<<(1+rnd.IntN(20)))) + 1
		off := rnd.Int64N(e.Size + 1)
		r, err := l.Inflate(e, off)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, p[e.Inner+off:e.Inner+e.Size]) {
			t.Fatalf("%d bytes at %d: got %d bytes, %v", e.Size-off, e.Inner+off, len(got), err)
		}
	}
}

// readFiles reads every file from the layer's bytes that its extents name, and no
// others.
func readFiles(t *testing.T, l *toc.Layer) {
	t.Helper()
	for e := range l.All() {
		for _, x := range e.Extents {
			f := l.Inflater.(*inflater)
			r, err := f.On(window{f.r, x.Start, x.End}).Inflate(x, 0)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil || x.Digest != sha256.Sum256(got) {
				t.Fatalf("%s: %d of %d bytes: %v", e.Name, len(got), x.Size, err)
			}
		}
	}
}

// window is a layer of which only some bytes may be read.
type window struct {
	r          io.ReaderAt
	start, end int64
}

var errOutside = errors.New("read outside")

func (w window) ReadAt(p []byte, off int64) (int, error) {
	if off < w.start || off+int64(len(p)) > w.end {
		return 0, errOutside
	}
	return w.r.ReadAt(p, off)
}

func TestReadsNoMoreThanNeeded(t *testing.T) {
	p := sample(t)
	blob := compressed(t, p, 6)
	x := indexed(t, blob)
	for i, point := range x.Points {
		c := &counter{blob: blob}
		l := open(t, blob, x).On(c)
		r, err := l.Inflate(toc.Extent{Inner: point.Out, Size: 1000}, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		if c.reads != 1 || c.bytes > readSize {
			t.Errorf("at point %d: %d reads of %d bytes", i, c.reads, c.bytes)
		}
	}
}

// TestNothing reads nothing at places where members begin, and of an empty tar.
func TestNothing(t *testing.T) {
	for _, blob := range [][]byte{members(t, sample(t), 100_000), compressed(t, nil, 6)} {
		x, err := build(bytes.NewReader(blob), noTable, smallSpan)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range x.Points {
			size := min(10, p.Out)
			r, err := open(t, blob, x).Inflate(toc.Extent{Inner: p.Out - size, Size: size}, size)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || len(got) > 0 {
				t.Errorf("at %d: %d bytes, %v", p.Out, len(got), err)
			}
		}
	}
}

func TestInflatedReader(t *testing.T) {
	p := sample(t)[:600_000]
	blob := members(t, tarOf(t, "f", p), 50_000)
	l := open(t, blob, indexed(t, blob))
	r, err := l.Inflate(toc.Extent{Inner: 512, Size: 500_000}, 200_000)
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(r, p[200_000:500_000]); err != nil {
		t.Error(err)
	}
}

func TestBuildRefuses(t *testing.T) {
	p := tarOf(t, "f", text(100_000, 1))
	good := compressed(t, p, 6)
	changed := func(at int, b byte) []byte {
		c := bytes.Clone(good)
		c[at] ^= b
		return c
	}
	// Empty blocks of the fixed code are 10 bits: BFINAL 0, BTYPE 01, and a code of
	// seven zeros; four of them are five bytes.
	tiny := append([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"), bytes.Repeat([]byte("\x02\x08\x20\x80\x00"), 1<<20)...)
	for name, c := range map[string]struct {
		blob []byte
		want error
	}{
		"nothing":                {nil, toc.ErrFormat},
		"a tar":                  {p, toc.ErrFormat},
		"zeros":                  {make([]byte, 100), toc.ErrFormat},
		"two bytes":              {[]byte("hi"), toc.ErrFormat},
		"no tar":                 {compressed(t, noise(2000, 1), 6), toc.ErrFormat},
		"half a tar":             {compressed(t, p[:50_000], 6), io.ErrUnexpectedEOF},
		"half a header":          {good[:7], io.ErrUnexpectedEOF},
		"half a member":          {good[:len(good)/2], io.ErrUnexpectedEOF},
		"half a trailer":         {good[:len(good)-4], io.ErrUnexpectedEOF},
		"a wrong checksum":       {changed(len(good)-8, 1), toc.ErrMalformed},
		"a wrong size":           {changed(len(good)-1, 1), toc.ErrMalformed},
		"a reserved flag":        {changed(3, 0x80), toc.ErrFormat},
		"garbage behind it":      {append(bytes.Clone(good), "garbage"...), toc.ErrMalformed},
		"garbage behind zeros":   {append(bytes.Clone(good), "\x00\x00garbage"...), toc.ErrMalformed},
		"blocks without content": {tiny, toc.ErrLimit},
	} {
		if _, err := Build(bytes.NewReader(c.blob), tarball.Scan); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestReadErrorsAreNotTheLayers(t *testing.T) {
	reset := errors.New("connection reset")
	blob := compressed(t, sample(t), 6)
	for _, n := range []int64{0, 5, 1000, int64(len(blob)) - 4, int64(len(blob))} {
		r := io.MultiReader(bytes.NewReader(blob[:n]), iotest.ErrReader(reset))
		if _, err := Build(r, tarball.Scan); !errors.Is(err, reset) || errors.Is(err, toc.ErrMalformed) || errors.Is(err, toc.ErrFormat) {
			t.Errorf("build from %d bytes: %v", n, err)
		}
	}
	// It may be met by who looks ahead, and be over when it is read again.
	if _, err := build(iotest.TimeoutReader(bytes.NewReader(blob)), tarball.Scan, 1<<10); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("build from a reader that fails for a while: %v", err)
	}
	l := open(t, blob, indexed(t, blob)).On(window{bytes.NewReader(blob), 0, 100_000})
	r, err := l.Inflate(toc.Extent{Inner: 0, Size: 1 << 20}, 0)
	if err == nil {
		_, err = io.ReadAll(r)
	}
	if !errors.Is(err, errOutside) || errors.Is(err, toc.ErrMalformed) {
		t.Errorf("inflate: %v", err)
	}
}

func TestScanErrorEndsTheBuild(t *testing.T) {
	blob := compressed(t, sample(t), 1)
	full := errors.New("enough")
	_, err := Build(bytes.NewReader(blob), func(tar io.Reader) (*toc.TOC, error) {
		_, err := io.CopyN(io.Discard, tar, 1000)
		return nil, errors.Join(full, err)
	})
	if !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}

func TestIndexOfAnotherBlob(t *testing.T) {
	blob := compressed(t, sample(t), 1)
	x := indexed(t, blob)
	other := ocispec.Descriptor{Size: x.Size, Digest: toc.Digest(sha256.Sum256(nil)).OCI()}
	if _, err := Open(bytes.NewReader(blob), other, x, nil); !errors.Is(err, toc.ErrMalformed) {
		t.Errorf("another digest: %v", err)
	}
	if _, err := Open(bytes.NewReader(blob), ocispec.Descriptor{Size: x.Size + 1}, x, nil); !errors.Is(err, toc.ErrMalformed) {
		t.Errorf("another size: %v", err)
	}
}

// TestLies changes one thing of an index, which must be found out by a look at the
// index, or by the check of the span that it is about.
func TestLies(t *testing.T) {
	p := sample(t)
	blob := compressed(t, p, 6)
	built := indexed(t, blob)
	for name, c := range map[string]struct {
		lie  func(x *Index)
		span int // -1: by a look
	}{
		"a digest":              {func(x *Index) { x.Points[2].Digest[0] ^= 1 }, 2},
		"a window":              {func(x *Index) { x.Points[2].Window = pack(make([]byte, maxWindow)) }, 1},
		"a window of 33 KiB":    {func(x *Index) { x.Points[2].Window = pack(make([]byte, 33<<10)) }, 2},
		"a window that is none": {func(x *Index) { x.Points[2].Window = []byte("none") }, 2},
		"bits":                  {func(x *Index) { x.Points[2].Bits ^= 1 }, 1},
		"in":                    {func(x *Index) { x.Points[2].In++ }, 1},
		"out":                   {func(x *Index) { x.Points[2].Out++ }, 1},
		"no window":             {func(x *Index) { x.Points[2].Window, x.Points[2].Bits = nil, 0 }, 1},
		"order":                 {func(x *Index) { x.Points[2], x.Points[1] = x.Points[1], x.Points[2] }, -1},
		"beyond the blob":       {func(x *Index) { x.Points[2].In = x.Size + 1 }, -1},
		"beyond the tar":        {func(x *Index) { x.Points[2].Out = x.TarSize + 1 }, -1},
		"9 bits":                {func(x *Index) { x.Points[2].Bits = 9 }, -1},
		"no points":             {func(x *Index) { x.Points = nil }, -1},
		"a tar of 1 EiB":        {func(x *Index) { x.TarSize = 1 << 60 }, -1},
		"a shorter tar":         {func(x *Index) { x.TarSize = x.Points[len(x.Points)-1].Out + 1 }, -1},
	} {
		t.Run(name, func(t *testing.T) {
			x := *built
			x.Points = append([]Point(nil), x.Points...)
			c.lie(&x)
			_, err := Open(bytes.NewReader(blob), ocispec.Descriptor{Size: x.Size}, &x, new(Spans))
			if c.span < 0 {
				if !errors.Is(err, toc.ErrMalformed) {
					t.Errorf("open: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := x.Check(bytes.NewReader(blob), c.span); err == nil {
				t.Error("the check finds nothing")
			}
		})
	}
}

// TestWindowThatLacksAByte leaves out of a window what is referred to. The span before it
// gives that away, even if the digest is of what comes out then; the span itself if it
// is not, and to who reads it.
func TestWindowThatLacksAByte(t *testing.T) {
	p := sample(t)
	blob := compressed(t, p, 6)
	x := indexed(t, blob)
	window, err := unpack(x.Points[2].Window)
	if err != nil {
		t.Fatal(err)
	}
	needed := slices.IndexFunc(window, func(b byte) bool { return b != 0 })
	unneeded := bytes.IndexByte(window, 0)
	window[unneeded] = 'x'
	x.Points[2].Window = pack(window)
	for i := range x.Points {
		if err := x.Check(bytes.NewReader(blob), i); err != nil {
			t.Errorf("with a byte more than it takes: %v", err)
		}
	}
	window[needed] = 0
	x.Points[2].Window = pack(window)
	for _, i := range []int{1, 2} {
		if err := x.Check(bytes.NewReader(blob), i); !errors.Is(err, toc.ErrMalformed) {
			t.Errorf("span %d: %v", i, err)
		}
	}
	start, end := x.Points[2].Out, x.Points[3].Out
	for _, spans := range []*Spans{nil, new(Spans)} {
		l := &toc.Layer{TOC: x.Table, Inflater: &inflater{bytes.NewReader(blob), x, spans}}
		r, err := l.Inflate(toc.Extent{Inner: start, Size: end - start}, 0)
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if !errors.Is(err, toc.ErrMalformed) {
			t.Errorf("read to the span's end: %v", err)
		}
	}
	x.Points[2].Digest = sha256.Sum256(inflated(t, x, 2, blob, int(end)))
	if err := x.Check(bytes.NewReader(blob), 2); err != nil {
		t.Errorf("with a digest of that: %v", err)
	}
	if err := x.Check(bytes.NewReader(blob), 1); !errors.Is(err, toc.ErrMalformed) {
		t.Errorf("the span before it, with a digest of that: %v", err)
	}
}

// TestPointThatIsNone is of a layer in which something is stored that is deflate too, and
// begins as what comes behind it. Who inflates from there gets something else in the end.
func TestPointThatIsNone(t *testing.T) {
	same := noise(maxWindow, 1)
	var inner, d deflater
	inner.stored(same, false)
	inner.stored(noise(1000, 2), false)
	d.open()
	d.stored(inner.b, false)
	begin := len(d.b)
	d.stored(same, false)
	d.stored(noise(1000, 3), true)
	d.close()
	x, err := build(bytes.NewReader(d.b), noTable, 20_000)
	if err != nil {
		t.Fatal(err)
	}
	if x.Points[1].In != int64(begin) {
		t.Fatalf("the point is at byte %d, not %d", x.Points[1].In, begin)
	}
	if err := x.Check(bytes.NewReader(d.b), 0); err != nil {
		t.Fatal(err)
	}
	x.Points[1].In -= int64(len(inner.b))
	if err := x.Check(bytes.NewReader(d.b), 0); !errors.Is(err, toc.ErrMalformed) {
		t.Errorf("the check: %v", err)
	}
}

// TestPointBehindTheFinalBlock is of a member whose trailer is deflate: it begins as a block
// of the fixed codes with the literal that is the next member.
func TestPointBehindTheFinalBlock(t *testing.T) {
	var d deflater
	for seed := uint64(1); ; seed++ {
		d = deflater{}
		d.open()
		d.stored(noise(30_000, seed), true)
		d.close()
		trailer := binary.LittleEndian.Uint32(d.b[len(d.b)-8:])
		code := bits.Reverse8(byte(trailer >> 3))
		if trailer&7 != 1<<1 || code < 0x30 || code >= 0xc0 {
			continue // section 3.2.6 of RFC 1951
		}
		d.open()
		d.stored([]byte{code - 0x30}, true)
		d.close()
		break
	}
	x, err := build(bytes.NewReader(d.b), noTable, 20_000)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Check(bytes.NewReader(d.b), 0); err != nil {
		t.Fatal(err)
	}
	x.Points[1].In -= trailerSize
	x.Points[1].Window = pack(d.out[:30_000])
	if got := inflated(t, x, 1, d.b, 30_001); !bytes.Equal(got, d.out[30_000:]) {
		t.Fatal("the trailer does not inflate to what is next")
	}
	if err := x.Check(bytes.NewReader(d.b), 0); !errors.Is(err, toc.ErrMalformed) {
		t.Errorf("the check: %v", err)
	}
}

func TestSpansAreComparedAsTheyAreRead(t *testing.T) {
	p := sample(t)
	blob := compressed(t, p, 6)
	x := indexed(t, blob)
	x.Points[1].Digest[0] ^= 1
	l := open(t, blob, x)
	r, err := l.Inflate(toc.Extent{Inner: 0, Size: x.TarSize}, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, r)
	if n < x.Points[1].Out || n >= x.Points[2].Out || !errors.Is(err, toc.ErrMalformed) {
		t.Errorf("got %d bytes, %v", n, err)
	}
	if n, err := r.Read(make([]byte, 1)); n > 0 || !errors.Is(err, toc.ErrMalformed) {
		t.Errorf("then %d bytes, %v", n, err)
	}
	l.Inflater = &inflater{bytes.NewReader(blob), x, new(Spans)}
	for range 2 {
		if _, err := l.Inflate(toc.Extent{Inner: x.Points[2].Out - 100, Size: 100}, 0); !errors.Is(err, toc.ErrMalformed) {
			t.Errorf("the end of a span that is kept: %v", err)
		}
	}
}
