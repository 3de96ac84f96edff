package node

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/chunkstore/lend"
	"github.com/granary-oci/granary/proxy/lazy"
	"github.com/granary-oci/granary/toc"
)

const (
	lendQueue = 64   // contents that wait to be made ready; what comes more often is asked for again
	lendVain  = 4096 // that are remembered as not to be made
)

// lender lends the files of contents to mounts on this machine. What has not been read
// by this process, or is kept in parts, is made ready for the next time that somebody
// asks, one content after the other.
type lender struct {
	find     func(lend.Request) (toc.Entry, bool) // the file, if who asks may read it
	store    *chunkstore.Disk
	contents *lazy.Contents
	dir      string // of the store
	report   func(error)
	queue    chan toc.Entry

	mu     sync.Mutex
	queued map[toc.Digest]bool // by content
	vain   map[toc.Digest]bool // whose parts do not make what was said
}

func newLender(find func(lend.Request) (toc.Entry, bool), store *chunkstore.Disk, contents *lazy.Contents, dir string, report func(error)) *lender {
	return &lender{
		find: find, store: store, contents: contents, dir: dir, report: report, queue: make(chan toc.Entry, lendQueue),
		queued: make(map[toc.Digest]bool), vain: make(map[toc.Digest]bool),
	}
}

// open implements [lend.Lender].
func (l *lender) open(q lend.Request) (*os.File, bool) {
	e, ok := l.find(q)
	if !ok || e.Digest != q.Digest || e.Size != q.Size {
		return nil, false
	}
	if f, ok := l.store.LendWhole(e.Digest.OCI(), e.Size); ok {
		return f, true
	}
	missing := func(x toc.Extent) bool { return !l.whole(x) }
	if l.whole(all(&e)) || inParts(&e) && !slices.ContainsFunc(e.Extents, missing) {
		l.later(e)
	}
	return nil, false
}

// all returns a file's content as one extent.
func all(e *toc.Entry) toc.Extent { return toc.Extent{Size: e.Size, Digest: e.Digest} }

// inParts reports whether a file consists of several contents, without holes.
func inParts(e *toc.Entry) bool {
	end := int64(0)
	for _, x := range e.Extents {
		if x.Offset != end || !x.Digest.Known() {
			return false
		}
		end += x.Size
	}
	return len(e.Extents) > 1 && end == e.Size
}

// whole reports whether all of a content is kept.
func (l *lender) whole(x toc.Extent) bool {
	info, err := l.store.Stat(x.Digest.OCI())
	return err == nil && info.Size == x.Size && info.Stored == x.Size && (info.Proven || x.Size <= chunk.Size)
}

// later has a content made ready, if not too many wait for that.
func (l *lender) later(e toc.Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.queued[e.Digest] || l.vain[e.Digest] {
		return
	}
	select {
	case l.queue <- e:
		l.queued[e.Digest] = true
	default:
	}
}

// run makes contents ready until ctx ends.
func (l *lender) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-l.queue:
			err := l.ready(ctx, e)
			if err != nil && ctx.Err() == nil && !errors.Is(err, toc.ErrNotKept) && !errors.Is(err, chunk.ErrNotFound) {
				l.report(err)
			}
			l.done(e.Digest, err)
		}
	}
}

func (l *lender) done(d toc.Digest, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.queued, d)
	var corrupt *toc.CorruptError
	if !errors.As(err, &corrupt) && !errors.Is(err, toc.ErrMalformed) {
		return
	}
	if len(l.vain) >= lendVain {
		clear(l.vain)
	}
	l.vain[d] = true
}

// ready checks a content that is there, or makes it of its parts. These are not kept
// beside it then: who reads the file reads the whole, and disks are not that large. A
// part that something else needs too is inflated again.
func (l *lender) ready(ctx context.Context, e toc.Entry) error {
	if l.whole(all(&e)) {
		return l.store.CheckWhole(ctx, e.Digest.OCI(), e.Size)
	}
	if !l.room(e.Size) {
		return nil
	}
	if err := l.contents.Assemble(ctx, e.Digest, e.Extents); err != nil {
		return err
	}
	if l.whole(all(&e)) && l.contents.Known(e.Digest.OCI()) {
		var parts []digest.Digest
		for _, x := range e.Extents {
			parts = append(parts, x.Digest.OCI())
		}
		l.store.Evict(parts...)
	}
	return nil
}

// room reports whether a content of size bytes can stand beside its parts for a while,
// without anything else having to go.
func (l *lender) room(size int64) bool {
	u := l.store.Usage()
	if u.Budget > 0 && u.Bytes+size > u.Budget/10*9 {
		return false
	}
	var fs unix.Statfs_t
	return unix.Statfs(l.dir, &fs) == nil && int64(fs.Bavail)*fs.Bsize > 2*size
}
