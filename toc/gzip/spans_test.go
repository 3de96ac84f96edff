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
