package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// progress shows how far each blob of a pull is: bars that are redrawn on a
// terminal, else one line per finished blob.
type progress struct {
	w        io.Writer
	terminal bool

	mu    sync.Mutex
	bars  []*bar // of blobs that are not finished
	drawn int    // lines on the terminal
	last  time.Time
}

type bar struct {
	p     *progress
	title string
	size  int64 // in bytes; guarded by p.mu, as is n
	n     int64 // bytes read
	had   int64 // bytes of them that were there before; guarded by p.mu
	begin time.Time
	over  bool // of its owner
}

const redrawEvery = 100 * time.Millisecond

func newProgress(w io.Writer) *progress {
	p := &progress{w: w}
	if f, ok := w.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		p.terminal = err == nil && os.Getenv("TERM") != "dumb"
	}
	return p
}

func (p *progress) add(desc ocispec.Descriptor) *bar {
	b := &bar{p: p, title: short(desc), size: desc.Size, begin: time.Now()}
	p.show(b)
	return b
}

// show adds a bar.
func (p *progress) show(b *bar) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bars = append(p.bars, b)
	p.draw(false)
}

// set sets how far a bar is.
func (b *bar) set(n, size int64) {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	b.n, b.size = n, size
	b.p.draw(false)
}

// reader counts what is read from r.
func (b *bar) reader(r io.Reader) io.Reader { return &countingReader{r, b} }

// skip counts what was there before.
func (b *bar) skip(n int64) {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	b.n, b.had = b.n+n, b.had+n
}

type countingReader struct {
	r io.Reader
	b *bar
}

func (c *countingReader) Read(q []byte) (int, error) {
	n, err := c.r.Read(q)
	c.b.p.mu.Lock()
	defer c.b.p.mu.Unlock()
	c.b.n += int64(n)
	c.b.p.draw(false)
	return n, err
}

// done ends a bar.
func (b *bar) done(state string) {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	b.p.erase()
	b.p.bars = slices.DeleteFunc(b.p.bars, func(other *bar) bool { return other == b })
	fmt.Fprintf(b.p.w, "%s %9s  %s\n", b.title, bytesText(b.size), state)
	b.p.draw(true)
}

// drop takes away a bar without a word.
func (b *bar) drop() {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	b.p.erase()
	b.p.bars = slices.DeleteFunc(b.p.bars, func(other *bar) bool { return other == b })
	b.p.draw(true)
}

// finish takes away the bars that are left.
func (p *progress) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
}

// erase takes the bars off the terminal; p.mu is held.
func (p *progress) erase() {
	if p.drawn > 0 {
		fmt.Fprintf(p.w, "\x1b[%dA\x1b[J", p.drawn)
	}
	p.drawn = 0
}

// draw puts the bars over those drawn before; p.mu is held.
func (p *progress) draw(now bool) {
	if !p.terminal || !now && time.Since(p.last) < redrawEvery {
		return
	}
	p.last = time.Now()
	p.erase()
	for _, b := range p.bars {
		fmt.Fprintln(p.w, b.text())
	}
	p.drawn = len(p.bars)
}

const barWidth = 30

func (b *bar) text() string {
	part := float64(b.n) / float64(max(b.size, 1))
	full := min(int(part*barWidth), barWidth)
	rate := float64(b.n-b.had) / max(time.Since(b.begin).Seconds(), 0.001)
	return fmt.Sprintf("%s %9s  [%s%s] %s  %s/s", b.title, bytesText(b.size),
		strings.Repeat("=", full), strings.Repeat(" ", barWidth-full), bytesText(b.n), bytesText(int64(rate)))
}

// short names a blob in a line of bounded length.
func short(desc ocispec.Descriptor) string {
	return fmt.Sprintf("%-12.12s", desc.Digest.Encoded())
}
