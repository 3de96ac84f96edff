package node

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
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
	store    *chunkstore.Disk
	contents *lazy.Contents
	dir      string // of the store
	report   func(error)
	queue    chan lend.Request

	mu     sync.Mutex
	queued map[[32]byte]bool // by request
	vain   map[[32]byte]bool // whose parts do not make what was said
}

func newLender(store *chunkstore.Disk, contents *lazy.Contents, dir string, report func(error)) *lender {
	return &lender{
		store: store, contents: contents, dir: dir, report: report, queue: make(chan lend.Request, lendQueue),
		queued: make(map[[32]byte]bool), vain: make(map[[32]byte]bool),
	}
}

// open implements [lend.Lender].
func (l *lender) open(q lend.Request) (*os.File, bool) {
	if f, ok := l.store.LendWhole(digestOf(q.Content), q.Size); ok {
		return f, true
	}
	if l.whole(q.Content) || len(q.Parts) > 0 && !slices.ContainsFunc(q.Parts, func(c lend.Content) bool { return !l.whole(c) }) {
		l.later(q)
	}
	return nil, false
}

// whole reports whether all of a content is kept.
func (l *lender) whole(c lend.Content) bool {
	info, err := l.store.Stat(digestOf(c))
	return err == nil && info.Size == c.Size && info.Stored == c.Size && (info.Proven || c.Size <= chunk.Size)
}

// later has a content made ready, if not too many wait for that.
func (l *lender) later(q lend.Request) {
	key := keyOf(q)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.queued[key] || l.vain[key] {
		return
	}
	select {
	case l.queue <- q:
		l.queued[key] = true
	default:
	}
}

// run makes contents ready until ctx ends.
func (l *lender) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case q := <-l.queue:
			err := l.ready(ctx, q)
			if err != nil && ctx.Err() == nil && !errors.Is(err, toc.ErrNotKept) && !errors.Is(err, chunk.ErrNotFound) {
				l.report(err)
			}
			l.done(q, err)
		}
	}
}

func (l *lender) done(q lend.Request, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.queued, keyOf(q))
	var corrupt *toc.CorruptError
	if !errors.As(err, &corrupt) && !errors.Is(err, toc.ErrMalformed) {
		return
	}
	if len(l.vain) >= lendVain {
		clear(l.vain)
	}
	l.vain[keyOf(q)] = true
}

// ready checks a content that is there, or makes it of its parts. These are not kept
// beside it then: who reads the file reads the whole, and disks are not that large. A
// part that something else needs too is inflated again.
func (l *lender) ready(ctx context.Context, q lend.Request) error {
	if l.whole(q.Content) {
		return l.store.CheckWhole(ctx, digestOf(q.Content), q.Size)
	}
	if !l.room(q.Size) {
		return nil
	}
	parts, evict := make([]toc.Extent, len(q.Parts)), make([]digest.Digest, len(q.Parts))
	off := int64(0)
	for i, p := range q.Parts {
		parts[i] = toc.Extent{Offset: off, Size: p.Size, Digest: p.Digest}
		evict[i] = digestOf(p)
		off += p.Size
	}
	if off != q.Size {
		return toc.ErrMalformed
	}
	if err := l.contents.Assemble(ctx, q.Digest, parts); err != nil {
		return err
	}
	if l.whole(q.Content) && l.contents.Known(digestOf(q.Content)) {
		l.store.Evict(evict...)
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

func digestOf(c lend.Content) digest.Digest {
	return digest.NewDigestFromBytes(digest.SHA256, c.Digest[:])
}

func keyOf(q lend.Request) (key [32]byte) {
	h := sha256.New()
	for _, c := range append([]lend.Content{q.Content}, q.Parts...) {
		_, _ = h.Write(binary.BigEndian.AppendUint64(c.Digest[:], uint64(c.Size)))
	}
	h.Sum(key[:0])
	return key
}
