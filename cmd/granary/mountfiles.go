package main

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/granary-oci/granary/chunkstore/lend"
	"github.com/granary-oci/granary/fuse"
	"github.com/granary-oci/granary/toc"
)

const (
	maxLent  = 64               // files that are kept open, to be read again
	keepLent = time.Minute      // for how long, though the node may have evicted them
	askLent  = 5 * time.Second  // how long the node may take
	keptSize = int64(128 << 10) // of the smallest file that is kept open, in bytes
)

// lent are the contents that the node has on this machine's disk, as files, and those
// that it sends. It is safe for concurrent use.
type lent struct {
	node *lend.Client
	sent fuse.Contents

	mu    sync.RWMutex // read-locked while any of open is read
	open  map[toc.Digest]*os.File
	close *time.Timer // closes all of open; nil before the first
}

// local returns contents that are read from the node's files where they can be, which
// need not be sent then, and the files themselves. Both are as they were, and nil, if
// the node is elsewhere. done is to be called after.
func (c *mountCmd) local(e *env, sent fuse.Contents) (contents fuse.Contents, files fuse.Files, done func()) {
	path := lend.Path(c.DataDir)
	if s, err := c.status(e.ctx); err == nil {
		path = s.Files
	}
	node := lend.NewClient(path)
	if err := node.Reach(); err != nil {
		e.log.Debug("files are not read from the node's disk", "error", err)
		return sent, nil, func() {}
	}
	l := &lent{node: node, sent: sent, open: make(map[toc.Digest]*os.File)}
	done = func() { l.closeAll(); node.Close() }
	if c.Passthrough == "off" || os.Geteuid() != 0 {
		return l, nil, done
	}
	return l, l, done
}

// Open implements [fuse.Files].
func (l *lent) Open(ctx context.Context, f *toc.File) (*os.File, error) {
	if !f.Digest.Known() {
		return nil, lend.ErrNot
	}
	q := lend.Request{Content: lend.Content{Digest: f.Digest, Size: f.Size}}
	if len(f.Extents) > 1 {
		q.Parts = parts(f)
	}
	return l.node.Open(ctx, q)
}

// parts returns the contents that a file consists of, or nil if they are not known, or
// leave holes.
func parts(f *toc.File) (all []lend.Content) {
	end := int64(0)
	for _, x := range f.Extents {
		if x.Offset != end || !x.Digest.Known() || len(all) == lend.MaxParts {
			return nil
		}
		all = append(all, lend.Content{Digest: x.Digest, Size: x.Size})
		end += x.Size
	}
	if end != f.Size {
		return nil
	}
	return all
}

// ReadAt implements [fuse.Contents].
func (l *lent) ReadAt(ctx context.Context, f *toc.File, p []byte, off int64) error {
	if l.readOpen(f, p, off) || l.readLent(ctx, f, p, off) {
		return nil
	}
	return l.sent.ReadAt(ctx, f, p, off)
}

// readOpen reads from a file that is open.
func (l *lent) readOpen(f *toc.File, p []byte, off int64) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	file := l.open[f.Digest]
	if file == nil {
		return false
	}
	_, err := file.ReadAt(p, off)
	return err == nil
}

// readLent asks for a file, and reads from it.
func (l *lent) readLent(ctx context.Context, f *toc.File, p []byte, off int64) bool {
	ctx, cancel := context.WithTimeout(ctx, askLent)
	defer cancel()
	file, err := l.Open(ctx, f)
	if err != nil {
		return false
	}
	_, err = file.ReadAt(p, off)
	if err != nil || f.Size < keptSize {
		file.Close()
		return err == nil
	}
	l.keep(f.Digest, file)
	return true
}

func (l *lent) keep(d toc.Digest, file *os.File) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[d] != nil {
		file.Close()
		return
	}
	for other, file := range l.open { // any
		if len(l.open) < maxLent {
			break
		}
		file.Close()
		delete(l.open, other)
	}
	l.open[d] = file
	if l.close == nil {
		l.close = time.AfterFunc(keepLent, l.closeAll)
	}
	l.close.Reset(keepLent)
}

func (l *lent) closeAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for d, file := range l.open {
		file.Close()
		delete(l.open, d)
	}
}
