package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/layout"
)

const (
	lookEvery   = 5 * time.Second // at content directories, for what came and went
	lookAgain   = time.Minute     // at what is there, for what may be lent by now
	lookFor     = 30 * time.Second
	maxContents = 1 << 16 // blobs of content directories that are announced
)

// contentDirs are the directories in which others on this machine keep blobs.
type contentDirs []*layout.Content

var _ proxy.Beside = contentDirs{}

// openContentDirs opens the directories of the settings. One that is missing may come later, as
// when the runtime is started.
func (n *Node) openContentDirs() error {
	for _, dir := range n.cfg.ContentDir {
		path, err := filepath.Abs(dir)
		if err == nil {
			err = isContentDir(path)
		}
		if errors.Is(err, os.ErrNotExist) {
			n.log.Warn("a content directory is not there yet, and is looked for when something is wanted", "dir", path)
			err = nil
		}
		if err != nil {
			return &SettingError{"content-dir", err}
		}
		c := layout.NewContent(path, n.cfg.VerifyReads == "always", n.faults.report)
		n.closers = append(n.closers, c.Close)
		n.beside = append(n.beside, c)
	}
	n.news = newContentNews(n.beside)
	return nil
}

// containerdContent is where containerd has its blobs below its root.
const containerdContent = "io.containerd.content.v1.content"

// isContentDir returns an error if there is something else, or nothing.
func isContentDir(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	below := filepath.Join(path, containerdContent)
	switch _, err := os.Stat(below); {
	case !info.IsDir():
		return errors.New(path + ": it is no directory")
	case filepath.Base(path) == "blobs":
		return fmt.Errorf("%s: name the directory that it is in, %s", path, filepath.Dir(path))
	case err == nil:
		return fmt.Errorf("%s: it is containerd's root; its blobs are in %s", path, below)
	}
	return nil
}

// Open implements [proxy.Beside].
func (all contentDirs) Open(ctx context.Context, d digest.Digest) (proxy.Kept, error) {
	for _, c := range all {
		if k, err := c.Open(ctx, d); err == nil {
			return k, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return nil, chunk.ErrNotFound
}

// Stat implements [proxy.Beside].
func (all contentDirs) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	for _, c := range all {
		if size, err := c.Stat(ctx, d); err == nil {
			return size, nil
		}
	}
	return 0, chunk.ErrNotFound
}

// Links implements [proxy.Beside].
func (all contentDirs) Links(ref chunk.Ref) (before, after chunk.Link, ok bool) {
	for _, c := range all {
		if before, after, ok = c.Links(ref); ok {
			break
		}
	}
	return before, after, ok
}

// Read implements [proxy.Beside].
func (all contentDirs) Read(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	for _, c := range all {
		if p, err := c.Read(ctx, ref); err == nil {
			return p, nil
		}
	}
	return nil, chunk.ErrNotFound
}

// contentNews is what other members have been told of content directories.
type contentNews struct {
	dirs   contentDirs
	there  [][]digest.Digest // in each directory, when it was last looked at
	known  []string          // the versions of that
	looked time.Time         // when it was last asked what of that may be lent

	mu   sync.Mutex
	told map[digest.Digest]bool
}

func newContentNews(dirs contentDirs) *contentNews {
	return &contentNews{dirs: dirs, there: make([][]digest.Digest, len(dirs)), known: make([]string, len(dirs)), told: make(map[digest.Digest]bool)}
}

// has reports whether members have been told that a blob is in a content directory.
func (c *contentNews) has(d digest.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.told[d]
}

// announceContents tells other members what is in content directories, as far as it may be lent
// to them, until ctx ends.
func (n *Node) announceContents(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		come, gone := n.news.look(ctx, n.registry.Possessed, n.log)
		for _, d := range come {
			n.cluster.gossip.Announce(d)
		}
		for _, d := range gone {
			if info, err := n.store.Stat(d); err != nil || !n.registry.Stored(d, info.Size) {
				n.cluster.gossip.Withdraw(d)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look returns the blobs that have come and gone since the last time, of those that may be lent.
func (c *contentNews) look(ctx context.Context, lendable func(digest.Digest) bool, log *slog.Logger) (come, gone []digest.Digest) {
	changed := time.Since(c.looked) > lookAgain
	for i := range c.dirs {
		changed = c.list(ctx, i, log) || changed
	}
	if !changed || ctx.Err() != nil {
		return nil, nil
	}
	c.looked = time.Now()
	now := make(map[digest.Digest]bool)
	for _, d := range slices.Concat(c.there...) {
		if len(now) < maxContents && (c.has(d) || lendable(d)) {
			now[d] = true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for d := range now {
		if !c.told[d] {
			come = append(come, d)
		}
	}
	for d := range c.told {
		if !now[d] {
			gone = append(gone, d)
		}
	}
	c.told = now
	return come, gone
}

// list brings what is known of a directory up to date, and reports whether that has changed. One
// that cannot be read is empty.
func (c *contentNews) list(ctx context.Context, i int, log *slog.Logger) bool {
	ctx, cancel := context.WithTimeout(ctx, lookFor)
	defer cancel()
	before := c.known[i]
	all, version, err := c.dirs[i].List(ctx, before)
	if err != nil {
		log.Debug("content directory", "error", err)
		all, version = nil, ""
	}
	if version == before && version != "" {
		return false
	}
	c.there[i], c.known[i] = all, version
	return true
}
