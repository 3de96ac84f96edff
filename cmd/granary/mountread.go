package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"sort"
	"sync"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/upstream"
	"github.com/granary-oci/granary/toc"
)

const (
	// readPatience is how long a read that has failed is tried again: a node that is
	// replaced is back sooner. While none has succeeded for so long, each is tried once.
	readPatience = 30 * time.Second
	// Between two attempts passes a pause, each twice as long as the last.
	firstReadPause, longReadPause = 50 * time.Millisecond, 2 * time.Second
)

// nodeContents reads contents of an image's files through a node, which may go away and
// come back meanwhile. It is safe for concurrent use.
type nodeContents struct {
	img *image
	// connect returns the image's repository through a new connection to the node.
	connect func(context.Context) (*upstream.Repository, error)
	// mount is what the node knows the mount by.
	mount string

	mu         sync.Mutex
	from       *upstream.Repository // nil before the first read, and after a failed one
	failed     time.Time            // when reads began to fail; zero while they do not
	failedLast time.Time
}

// connect returns what connects to the node, wherever that is now.
func (c *mountCmd) connect(e *env, img *image) func(context.Context) (*upstream.Repository, error) {
	return func(ctx context.Context) (*upstream.Repository, error) {
		url := img.url
		if s, err := c.status(ctx); err == nil && len(s.Listen) > 0 {
			url = reachable(s.Listen[0])
		}
		return repositoryAt(url, c.DataConfig, img.want, 0)
	}
}

// ReadAt implements [fuse.Contents].
func (n *nodeContents) ReadAt(ctx context.Context, f *toc.File, p []byte, off int64) error {
	return n.persist(ctx, func(from *upstream.Repository) error { return n.readAt(ctx, from, f, p, off) })
}

// persist has a read tried for as long as that makes sense.
func (n *nodeContents) persist(ctx context.Context, read func(from *upstream.Repository) error) error {
	var first time.Time // of the failures of this read
	for pause := firstReadPause; ; pause = min(2*pause, longReadPause) {
		from, err := n.node(ctx)
		if err == nil {
			err = read(from)
		}
		switch {
		case errors.Is(err, chunk.ErrDenied):
			return fmt.Errorf("%w: %w", fs.ErrPermission, err)
		case refusedForGood(err) || ctx.Err() != nil:
			return err
		}
		outage := n.note(from, err)
		if first.IsZero() {
			first = time.Now()
		}
		if err == nil || outage > readPatience || time.Since(first) > readPatience {
			return err
		}
		if !sleep(ctx, pause) {
			return errors.Join(err, ctx.Err())
		}
	}
}

// note takes note of how a read went, and returns for how long all have failed. After a
// failure the next read connects anew: the node may be elsewhere now, and what is wrong
// with one read should not keep others waiting.
func (n *nodeContents) note(from *upstream.Repository, err error) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	if err == nil {
		n.failed = time.Time{}
		return 0
	}
	if n.failed.IsZero() || now.Sub(n.failedLast) > readPatience { // which was another time
		n.failed = now
	}
	n.failedLast = now
	if n.from == from {
		n.from = nil
	}
	return now.Sub(n.failed)
}

// refusedForGood reports whether the node has understood what it was asked, and will
// not do it.
func refusedForGood(err error) bool {
	var status *upstream.StatusError
	return errors.As(err, &status) && status.Code/100 == 4 && status.Code != http.StatusTooManyRequests
}

// sleep is false if ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// node returns the repository as it is read now.
func (n *nodeContents) node(ctx context.Context) (*upstream.Repository, error) {
	n.mu.Lock()
	from := n.from
	n.mu.Unlock()
	if from != nil {
		return from, nil
	}
	from, err := n.connect(ctx)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.from == nil {
		n.from = from
	}
	return n.from, nil
}

// readAt reads all of p at off of a file's content, and checks of it what can be checked
// without more: the node has checked the rest.
func (n *nodeContents) readAt(ctx context.Context, from *upstream.Repository, f *toc.File, p []byte, off int64) error {
	query := n.img.query()
	query.Set("path", f.Source)
	if err := n.getRange(ctx, from, "_granary/file/"+string(n.img.layerOf(*f)), query, f, p, off); err != nil {
		return err
	}
	return checkContent(f, p, off)
}

// getRange reads all of p at off of what a path of the node's has, as f says.
func (n *nodeContents) getRange(ctx context.Context, from *upstream.Repository, path string, query url.Values, f *toc.File, p []byte, off int64) error {
	last := off + int64(len(p)) - 1
	resp, err := from.Get(ctx, path, query, http.Header{
		"Range": {fmt.Sprintf("bytes=%d-%d", off, last)}, proxy.MountHeader: {n.mount},
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if want, got := fmt.Sprintf("bytes %d-%d/%d", off, last, f.Size), resp.Header.Get("Content-Range"); got != want {
		return fmt.Errorf("file %q: the node answers with %q, not %q", f.Name, got, want)
	}
	_, err = io.ReadFull(resp.Body, p)
	return err
}

// checkContent checks what a file is said to have at off: all of the file, or the extents
// that are all there.
func checkContent(f *toc.File, p []byte, off int64) error {
	all := toc.Extent{Size: f.Size, Digest: f.Digest}
	if off == 0 && int64(len(p)) == f.Size && f.Digest.Known() {
		return checkExtent(f, all, p)
	}
	first := sort.Search(len(f.Extents), func(i int) bool { return f.Extents[i].Offset >= off })
	for _, x := range f.Extents[first:] {
		at, end := x.Offset-off, x.Offset-off+x.Size
		if end > int64(len(p)) {
			break
		}
		if !x.Digest.Known() {
			continue
		}
		if err := checkExtent(f, x, p[at:end]); err != nil {
			return err
		}
	}
	return nil
}

func checkExtent(f *toc.File, x toc.Extent, p []byte) error {
	if got := toc.Digest(sha256.Sum256(p)); got != x.Digest {
		return &toc.CorruptError{Name: f.Name, Extent: x, Got: got}
	}
	return nil
}
