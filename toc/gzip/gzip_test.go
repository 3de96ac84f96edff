package gzip

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
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

// TestNearFilesAreInflatedTogether in whatever order they are read, each in the name of
// whoever reads it.
func TestNearFilesAreInflatedTogether(t *testing.T) {
	p := sample(t)
	blob := compressed(t, p, 6)
	x := indexed(t, blob)
	broken := errors.New("network is down")
	l := &toc.Layer{TOC: x.Table, Inflater: &inflater{nil, x, new(Spans)}}
	read := func(r io.ReaderAt, e toc.Extent) ([]byte, error) {
		c, err := l.On(r).Inflate(e, 0)
		if err != nil {
			return nil, err
		}
		return io.ReadAll(c)
	}
	from := &counter{r: bytes.NewReader(blob)}
	end := x.Points[1].Out
	for _, at := range []int64{end - 100, 0, 5000, end - 100, 70_000} {
		e := toc.Extent{Inner: at, Size: 100}
		if got, err := read(from, e); err != nil || !bytes.Equal(got, p[at:at+100]) {
			t.Errorf("at %d: %d bytes, %v", at, len(got), err)
		}
	}
	if from.bytes > 2*readSize+x.Points[1].In {
		t.Errorf("%d bytes were read for a span of %d", from.bytes, x.Points[1].In)
	}
	// What is there needs no reader, and one that fails is nobody else's misfortune.
	failing := failingReaderAt{broken}
	if got, err := read(failing, toc.Extent{Inner: 7, Size: 9}); err != nil || !bytes.Equal(got, p[7:16]) {
		t.Errorf("what is there: %v", err)
	}
	second := toc.Extent{Inner: end + 1000, Size: 100}
	if _, err := read(failing, second); !errors.Is(err, broken) {
		t.Errorf("what is not there: %v", err)
	}
	if got, err := read(from, second); err != nil || !bytes.Equal(got, p[end+1000:end+1100]) {
		t.Errorf("after a failure: %d bytes, %v", len(got), err)
	}
}

type failingReaderAt struct{ err error }

func (r failingReaderAt) ReadAt([]byte, int64) (int, error) { return 0, r.err }

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
		c := &counter{r: bytes.NewReader(blob)}
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

// counter counts what is read.
type counter struct {
	r     io.ReaderAt
	reads int
	bytes int64
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	c.reads++
	c.bytes += int64(n)
	return n, err
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
	blob = compressed(t, sample(t), 6)
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
