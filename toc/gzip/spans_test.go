package gzip

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/granary-oci/granary/toc"
)

// counter counts what is read, and what is fetched for that: parts that nobody has
// fetched yet, each run of them with one request.
type counter struct {
	blob     []byte
	reads    int
	bytes    int64
	fetched  map[int64]bool // by offset in units of part
	requests int
}

const part = 1 << 10

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	c.Expect(off, min(off+int64(len(p)), int64(len(c.blob))))
	n, err := bytes.NewReader(c.blob).ReadAt(p, off)
	c.reads++
	c.bytes += int64(n)
	return n, err
}

// Expect implements [toc.Expecter].
func (c *counter) Expect(start, end int64) {
	if c.fetched == nil {
		c.fetched = make(map[int64]bool)
	}
	on := false
	for at := start / part; at*part < end; at++ {
		if !on && !c.fetched[at] {
			c.requests++
		}
		on = !c.fetched[at]
		c.fetched[at] = true
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
	from := &counter{blob: blob}
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

// TestAcrossPoints reads a file that several spans have a part of: with one request, and
// so that what is there needs none.
func TestAcrossPoints(t *testing.T) {
	p := sample(t)
	blob := compressed(t, p, 6)
	x := indexed(t, blob)
	from, near := &counter{blob: blob}, new(Spans)
	read := func(r io.ReaderAt, start, end int64) {
		t.Helper()
		c, err := (&inflater{r, x, near}).Inflate(toc.Extent{Inner: start, Size: end - start}, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, p[start:end]) {
			t.Errorf("from %d to %d: %d bytes, %v", start, end, len(got), err)
		}
	}
	start, end := x.Points[2].Out-1000, x.Points[5].Out+1000
	read(from, start, end)
	if from.requests != 1 {
		t.Errorf("%d requests", from.requests)
	}
	if most := x.Points[6].In - x.Points[1].In + 2*part; int64(len(from.fetched))*part > most {
		t.Errorf("%d bytes were fetched, of %d", len(from.fetched)*part, most)
	}
	failing := failingReaderAt{errors.New("network is down")}
	read(failing, start, end)
	read(failing, x.Points[3].Out-10, x.Points[3].Out+10)
	read(failing, x.Points[4].Out, x.Points[5].Out)
	// Spans in which next to nothing is are inflated one behind the other.
	many := *x
	many.Points = []Point{x.Points[0]}
	for i := range int64(fewSpans) {
		many.Points = append(many.Points, Point{In: 1 + i, Out: 1 + i})
	}
	if _, ok := (&inflater{from, &many, near}).together(fewSpans+1, 0, fewSpans+1); ok {
		t.Errorf("%d spans are begun for %d bytes", fewSpans+1, fewSpans+1)
	}
}

// TestReadingOn reads one small file behind the other.
func TestReadingOn(t *testing.T) {
	p := noise(10<<20, 1)
	blob := compressed(t, p, 1)
	x, err := Build(bytes.NewReader(blob), noTable)
	if err != nil {
		t.Fatal(err)
	}
	from := &counter{blob: blob}
	f := &inflater{from, x, new(Spans)}
	for at := int64(0); at < x.TarSize; at += 30_000 {
		e := toc.Extent{Inner: at, Size: min(30_000, x.TarSize-at)}
		r, err := f.Inflate(e, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, p[at:at+e.Size]) {
			t.Fatalf("at %d: %d bytes, %v", at, len(got), err)
		}
	}
	// Each is for as much as all before it, as far as those are kept.
	if len(x.Points) < 30 || from.requests > 10 {
		t.Errorf("%d requests for %d spans", from.requests, len(x.Points))
	}
}

func TestSpansAreBounded(t *testing.T) {
	near := new(Spans)
	for _, size := range []int64{100, Span, maxSpan, Span, maxSpan, maxSpan, 1} {
		x := &Index{TarSize: 300 * size}
		for i := range int64(300) {
			x.Points = append(x.Points, Point{Out: i * size})
		}
		for i := range x.Points {
			near.of(x, i)
			held := int64(0)
			for _, s := range near.kept {
				held += s.x.spanEnd(s.i) - s.x.Points[s.i].Out
			}
			if held > maxHeld || len(near.kept) > maxHeld/resumed {
				t.Fatalf("%d spans of %d bytes are kept", len(near.kept), held)
			}
			if last := near.kept[len(near.kept)-1]; last.x != x || last.i != i {
				t.Fatal("a span is not kept")
			}
		}
		if near.held < maxHeld/4 {
			t.Errorf("spans of %d bytes: %d bytes are kept", size, near.held)
		}
	}
}
