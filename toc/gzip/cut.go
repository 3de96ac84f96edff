package gzip

import (
	"crypto/sha256"
	"hash"
	"io"
	"sync"

	"github.com/granary-oci/granary/toc"
)

// pending are places of the tar between those who find them and those who cut there.
type pending struct {
	mu  sync.Mutex
	all []int64
}

func (q *pending) add(out int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all = append(q.all, out)
}

// take returns the first place, if it is at or before byte out of the tar.
func (q *pending) take(out int64) (at int64, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.all) == 0 || q.all[0] > out {
		return 0, false
	}
	at, q.all = q.all[0], q.all[1:]
	return at, true
}

// cutter cuts a tar into spans as it passes by. A place is pending before what comes
// behind it passes; the first is the tar's beginning.
type cutter struct {
	pending *pending
	digests []toc.Digest // of the spans, up to the one that passes
	pos     int64
	tar     hash.Hash
	span    hash.Hash
}

func newCutter(p *pending) *cutter {
	return &cutter{pending: p, tar: sha256.New(), span: sha256.New()}
}

// run passes on what it reads.
func (c *cutter) run(r io.Reader, w io.Writer) error {
	p := make([]byte, piece)
	for {
		n, err := r.Read(p)
		c.pass(p[:n])
		if _, err := w.Write(p[:n]); err != nil {
			return err
		}
		if err == io.EOF {
			c.pass(nil)
			c.endSpan()
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *cutter) pass(p []byte) {
	c.tar.Write(p)
	for {
		at, ok := c.pending.take(c.pos + int64(len(p)))
		if !ok {
			break
		}
		n := at - c.pos
		c.span.Write(p[:n])
		p, c.pos = p[n:], at
		c.endSpan()
	}
	c.span.Write(p)
	c.pos += int64(len(p))
}

func (c *cutter) endSpan() {
	c.digests = append(c.digests, toc.Digest(c.span.Sum(nil)))
	c.span.Reset()
}
