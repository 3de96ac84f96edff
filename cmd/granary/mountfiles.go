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
	node  *lend.Client
	sent  fuse.Contents
	img   *image
	mount string // what the node knows the mount by

	mu    sync.RWMutex // read-locked while any of open is read
	open  map[toc.Digest]*os.File
	close *time.Timer // closes all of open; nil before the first
}

// local returns contents that are read from the node's files where they can be, which
// need not be sent then, and the files themselves. Both are as they were, and nil, if
// the node is elsewhere. done is to be called after.
func (c *mountCmd) local(e *env, sent *nodeContents) (contents fuse.Contents, files fuse.Files, done func()) {
	path := lend.Path(c.DataDir)
	if s, err := c.status(e.ctx); err == nil {
		path = s.Files
	}
	l := newLent(path, sent)
	if err := l.node.Reach(); path == "" || err != nil {
		e.log.Debug("files are not read from the node's disk", "error", err)
		return sent, nil, func() {}
	}
	if c.Passthrough == "off" || os.Geteuid() != 0 {
		return l, nil, l.done
	}
	return l, l, l.done
}

// newLent returns contents that the node at a socket lends, or else sends. done is to be
// called after.
func newLent(path string, sent *nodeContents) *lent {
	return &lent{node: lend.NewClient(path), sent: sent, img: sent.img, mount: sent.mount, open: make(map[toc.Digest]*os.File)}
}

func (l *lent) done() {
	l.closeAll()
	l.node.Close()
}

// Open implements [fuse.Files].
func (l *lent) Open(ctx context.Context, f *toc.File) (*os.File, error) {
	if !f.Digest.Known() {
		return nil, lend.ErrNot
	}
	q := lend.Request{Mount: l.mount, Layer: string(l.img.layerOf(*f)), Path: f.Source, Digest: f.Digest, Size: f.Size}
	return l.node.Open(ctx, q)
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
