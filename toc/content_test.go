package toc

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"
)

func sumOf(s string) Digest { return sha256.Sum256([]byte(s)) }

// uncoded is a layer that holds its content as it is, and counts what is inflated.
type uncoded struct {
	bytes    string
	inflated *int
}

func (p uncoded) On(io.ReaderAt) Inflater { return p }
func (p uncoded) Inflate(x Extent, off int64) (io.ReadCloser, error) {
	*p.inflated++
	from, to := x.Start+x.Inner+off, x.Start+x.Inner+x.Size
	return io.NopCloser(strings.NewReader(p.bytes[min(from, int64(len(p.bytes))):min(to, int64(len(p.bytes)))])), nil
}

// shelf keeps contents in memory.
type shelf map[Digest]string

func (s shelf) ReadAt(d Digest, size int64, p []byte, off int64) (int, error) {
	c, ok := s[d]
	if !ok || int64(len(c)) != size {
		return 0, ErrNotKept
	}
	return copy(p, c[off:]), nil
}

func (s shelf) Keep(d Digest, size int64, r io.Reader) error {
	p, err := io.ReadAll(r)
	if err == nil {
		s[d] = string(p)
	}
	return err
}

// inThree is a file of three extents and a hole, of a layer.
func inThree(digests bool) (l *Layer, e *Entry, content string, inflated *int) {
	raw := "..first....second..third"
	inflated = new(int)
	content = "first" + "second" + "\x00\x00\x00\x00" + "third"
	e = &Entry{Name: "f", Type: Regular, Size: int64(len(content)), Extents: []Extent{
		{Offset: 0, Size: 5, Start: 2, End: 7}, {Offset: 5, Size: 6, Start: 7, Inner: 4, End: 17}, {Offset: 15, Size: 5, Start: 19, End: 24},
	}}
	if digests {
		for i, part := range []string{"first", "second", "third"} {
			e.Extents[i].Digest = sumOf(part)
		}
	}
	return &Layer{Inflater: uncoded{raw, inflated}}, e, content, inflated
}

func TestContent(t *testing.T) {
	for _, digests := range []bool{false, true} {
		for name, kept := range map[string]Contents{"nothing kept": nil, "kept": shelf{}} {
			l, e, want, _ := inThree(digests)
			c := Open(l, e, kept)
			if err := iotest.TestReader(io.NewSectionReader(c, 0, c.Size()), []byte(want)); err != nil {
				t.Errorf("digests %v, %s: %v", digests, name, err)
			}
			for off := range int64(len(want)) {
				for n := range int64(len(want)) + 3 {
					p := make([]byte, n)
					got, err := c.ReadAt(p, off)
					part := want[off:min(off+n, int64(len(want)))]
					if string(p[:got]) != part || (err != nil) != (int64(len(part)) < n) {
						t.Fatalf("ReadAt(%d bytes, %d) = %q, %v; want %q", n, off, p[:got], err, part)
					}
				}
			}
		}
	}
}

func TestContentIsInflatedOnce(t *testing.T) {
	l, e, _, inflated := inThree(true)
	kept := shelf{}
	for range 3 {
		if _, err := io.Copy(io.Discard, io.NewSectionReader(Open(l, e, kept), 0, e.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if *inflated != 3 {
		t.Errorf("inflated %d times, want 3", *inflated)
	}
}

func TestWrongContentIsNotGivenOut(t *testing.T) {
	for name, raw := range map[string]string{"wrong": "..wrong....second..third", "short": "..fir"} {
		l, e, _, _ := inThree(true)
		l.Inflater = uncoded{raw, new(int)}
		for _, kept := range []Contents{nil, shelf{}} {
			_, err := Open(l, e, kept).ReadAt(make([]byte, 2), 1)
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) {
				t.Errorf("%s: %v", name, err)
			}
			if s, ok := kept.(shelf); ok && len(s) > 0 {
				t.Errorf("%s: it was kept", name)
			}
		}
	}
}

func TestWindow(t *testing.T) {
	want := []byte("0123456789")
	for off := range int64(10) {
		for n := range 10 - off {
			for piece := 1; piece < 11; piece++ {
				w := &window{p: make([]byte, n), off: off}
				got := w.p
				for rest := want; len(rest) > 0; rest = rest[min(piece, len(rest)):] {
					_, _ = w.Write(rest[:min(piece, len(rest))])
				}
				if !bytes.Equal(got, want[off:off+n]) {
					t.Fatalf("%d at %d by %d: %q", n, off, piece, got)
				}
			}
		}
	}
}

// sharing is a shelf that several use at a time, of whom one inflates.
type sharing struct {
	shelf
	mu    sync.Mutex
	over  map[Digest]chan struct{}
	waits atomic.Int32
}

func (s *sharing) ReadAt(d Digest, size int64, p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shelf.ReadAt(d, size, p, off)
}

func (s *sharing) Keep(d Digest, size int64, r io.Reader) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shelf.Keep(d, size, r)
}

func (s *sharing) Begin(x Extent) (done func()) {
	s.mu.Lock()
	over := s.over[x.Digest]
	if over == nil {
		over = make(chan struct{})
		s.over[x.Digest] = over
		s.mu.Unlock()
		return func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.over, x.Digest)
			close(over)
		}
	}
	s.mu.Unlock()
	s.waits.Add(1)
	<-over
	return nil
}

// slow is a layer whose content comes when it may, or not at all.
type slow struct {
	bytes string
	may   chan error
	runs  *atomic.Int32
}

func (s slow) On(io.ReaderAt) Inflater { return s }
func (s slow) Inflate(x Extent, off int64) (io.ReadCloser, error) {
	s.runs.Add(1)
	if err := <-s.may; err != nil {
		return nil, err
	}
	return uncoded{s.bytes, new(int)}.Inflate(x, off)
}

// TestOneInflatesForAllWhoWait, and if that fails another one does.
func TestOneInflatesForAllWhoWait(t *testing.T) {
	for name, failed := range map[string]error{"well": nil, "in vain": errors.New("away")} {
		l, e, want, _ := inThree(true)
		s := slow{l.Inflater.(uncoded).bytes, make(chan error), new(atomic.Int32)}
		l.Inflater = s
		kept := &sharing{shelf: shelf{}, over: make(map[Digest]chan struct{})}
		read := make(chan error, 4)
		for range cap(read) {
			go func() {
				p := make([]byte, 5)
				_, err := Open(l, e, kept).ReadAt(p, 0)
				if err == nil && string(p) != want[:5] {
					err = fmt.Errorf("%q", p)
				}
				read <- err
			}()
		}
		for kept.waits.Load() < 3 {
			time.Sleep(time.Millisecond)
		}
		s.may <- failed
		close(s.may)
		failures := 0
		for range cap(read) {
			if err := <-read; err != nil {
				failures++
			}
		}
		if runs := s.runs.Load(); failed == nil && (runs != 1 || failures > 0) || failed != nil && (runs < 2 || failures != 1) {
			t.Errorf("%s: inflated %d times, %d reads failed", name, runs, failures)
		}
	}
}
