package layout

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/upstream"
)

const (
	maxLinks     = 1 << 18          // that are remembered of blobs, 50 bytes each: 256 GiB of blobs
	checksAtOnce = 4                // blobs of a directory
	maxChecks    = 256              // that wait for that
	maxListed    = 1 << 17          // blobs of a directory
	awayFor      = 10 * time.Second // that a directory is left alone which has not answered
)

// Content is a directory in which others keep blobs, as blobs/<algorithm>/<hex>: containerd's
// content store, or a layout. It is only read. What is given out of a blob has matched its
// digest: all of it is hashed when it is first wanted, and again when its file has changed. A
// file that was written a moment ago is not there yet.
type Content struct {
	dir    *Dir
	always bool
	turns  chan struct{}   // one for each check under way
	ctx    context.Context // of all checks, which nobody need wait for
	stop   context.CancelFunc
	checks sync.WaitGroup

	mu       sync.Mutex
	checking map[digest.Digest]chan struct{} // closed when it is known what a blob is
	known    map[digest.Digest]*Kept
	links    int       // of what is known
	until    time.Time // when the directory is looked at again
}

// NewContent returns the content of a directory, which need not be there yet. With always a
// chunk is checked each time that it is read. report, which may be nil, is told of wrong files.
// Close it after use.
func NewContent(dir string, always bool, report func(error)) *Content {
	c := &Content{
		dir: NewDir(dir, report), always: always, turns: make(chan struct{}, checksAtOnce),
		known: make(map[digest.Digest]*Kept), checking: make(map[digest.Digest]chan struct{}),
	}
	c.dir.origin = "disk"
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// Close ends the checks that are under way. Nothing is opened any more.
func (c *Content) Close() error {
	c.mu.Lock()
	c.stop() // none is begun from here on
	c.mu.Unlock()
	c.checks.Wait()
	return nil
}

// Open returns a blob. The error is [chunk.ErrNotFound] if it is not there, or its file is
// wrong, which has been reported then; or that of ctx, if it ends before the blob is checked.
func (c *Content) Open(ctx context.Context, d digest.Digest) (*Kept, error) {
	f, err := c.file(ctx, d)
	if err != nil {
		return nil, err
	}
	if k := c.find(d, f.stamp); k != nil {
		return k, nil
	}
	done := c.begin(d)
	if done == nil {
		return nil, chunk.ErrNotFound
	}
	select {
	case <-done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if k := c.find(d, f.stamp); k != nil {
		return k, nil
	}
	return nil, chunk.ErrNotFound
}

// begin has a blob checked in its turn, and returns what is closed then. That goes on without
// anybody who waits, for who asks next. It returns nil if too many blobs wait for their turn.
func (c *Content) begin(d digest.Digest) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if done := c.checking[d]; done != nil || len(c.checking) >= maxChecks || c.ctx.Err() != nil {
		return done
	}
	done := make(chan struct{})
	c.checking[d] = done
	c.checks.Go(func() {
		err := c.checkInTurn(d)
		if err != nil && !missing(err) && c.ctx.Err() == nil {
			c.dir.report(err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.checking, d)
		close(done)
	})
	return done
}

func (c *Content) checkInTurn(d digest.Digest) error {
	select {
	case c.turns <- struct{}{}:
		defer func() { <-c.turns }()
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
	ctx, cancel := context.WithTimeout(c.ctx, checkFor)
	defer cancel()
	return c.check(ctx, d)
}

// Stat returns the size of a blob as its file says it, which need not have been checked.
func (c *Content) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	f, err := c.file(ctx, d)
	return f.size, err
}

// Read returns what stands where a chunk of a blob should be. Nobody has compared that with
// anything. The error is [chunk.ErrNotFound] if there is no file of the blob's size.
func (c *Content) Read(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	if c.isAway() {
		return nil, chunk.ErrNotFound
	}
	f, err := c.dir.openBlob(ctx, ref.Blob)
	if err != nil {
		return nil, chunk.ErrNotFound
	}
	defer f.Close()
	if f.size != ref.Total {
		return nil, chunk.ErrNotFound
	}
	return c.dir.read(ctx, ref.Blob, f, ref.Offset, ref.Size)
}

// file returns what is to be known of a blob's file before it is read.
func (c *Content) file(ctx context.Context, d digest.Digest) (opened, error) {
	if c.isAway() {
		return opened{}, chunk.ErrNotFound
	}
	f, err := c.dir.openBlob(ctx, d)
	if err == nil {
		f.Close()
	}
	switch {
	case upstream.Unreachable(err):
		c.leave()
		c.dir.report(err)
		return opened{}, chunk.ErrNotFound
	case chunk.IsCorrupt(err), err == nil && (f.version == "" || f.size > chunk.MaxBlobSize):
		return opened{}, chunk.ErrNotFound
	}
	return f, err
}

func (c *Content) isAway() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Before(c.until)
}

func (c *Content) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.until = time.Now().Add(awayFor)
}

// find returns what is known of a blob with a file of that stamp, or nil.
func (c *Content) find(d digest.Digest, stamp string) *Kept {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.known[d]
	if k == nil || k.stamp != stamp {
		return nil
	}
	k.used = time.Now()
	return k
}

// check hashes a blob.
func (c *Content) check(ctx context.Context, d digest.Digest) error {
	f, err := c.dir.openBlob(ctx, d)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := chunk.Grid(d, f.size)
	if err != nil {
		return err
	}
	k := &Kept{content: c, m: m, stamp: f.stamp, used: time.Now()}
	prefix := chunk.NewPrefix(d)
	for i := range m.Len() {
		p, err := c.dir.read(ctx, d, f, m.At(i).Offset, m.At(i).Size)
		if err != nil {
			return err
		}
		_, _ = prefix.Write(p)
		k.links = append(k.links, prefix.Link())
	}
	info, err := f.Stat()
	switch {
	case err != nil || stamp(info) != f.stamp:
		return chunk.ErrNotFound // it is being written to
	case !prefix.Matches():
		c.dir.doubts.set(d, f.stamp)
		c.dir.report(c.dir.wrong(d, f.size))
		return chunk.ErrNotFound
	}
	c.remember(k)
	return nil
}

// remember makes room by forgetting what has not been used for longest.
func (c *Content) remember(k *Kept) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(k.m.Blob())
	for c.links += len(k.links); c.links > maxLinks && len(c.known) > 0; {
		var oldest *Kept
		for _, other := range c.known {
			if oldest == nil || other.used.Before(oldest.used) {
				oldest = other
			}
		}
		c.forget(oldest.m.Blob())
	}
	c.known[k.m.Blob()] = k
}

// forget forgets a blob; c.mu is held.
func (c *Content) forget(d digest.Digest) {
	if k := c.known[d]; k != nil {
		c.links -= len(k.links)
		delete(c.known, d)
	}
}

// Links returns the links before and after a chunk of a blob that has been checked: they are the
// blob's, whatever has become of its file.
func (c *Content) Links(ref chunk.Ref) (before, after chunk.Link, ok bool) {
	c.mu.Lock()
	k := c.known[ref.Blob]
	c.mu.Unlock()
	if k == nil || k.m.Size() != ref.Total {
		return "", "", false
	}
	before, after = k.Links(ref)
	return before, after, true
}

// algorithms are those whose directories are listed.
var algorithms = []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512}

// List returns the blobs that there are files of, and a version of the list, or "" while the next
// change could leave that as it is. With the one that is known it returns none.
func (c *Content) List(ctx context.Context, known string) (all []digest.Digest, seen string, err error) {
	type list struct {
		all     []digest.Digest
		version string
	}
	l, err := await(ctx, c.dir, ocispec.ImageBlobsDir, func() (l list, err error) {
		root, err := os.OpenRoot(c.dir.path)
		if err != nil {
			return l, c.dir.explain("", err)
		}
		defer root.Close()
		settling := false
		for _, a := range algorithms {
			info, err := root.Stat(path.Join(ocispec.ImageBlobsDir, string(a)))
			if err != nil {
				continue
			}
			settling = settling || version(info) == ""
			l.version += stamp(info) + "\n"
		}
		if settling {
			l.version = ""
		}
		if l.version != "" && l.version == known {
			return l, nil
		}
		for _, a := range algorithms {
			if l.all, err = listed(root, a, l.all); err != nil {
				return l, c.dir.explain(ocispec.ImageBlobsDir, err)
			}
		}
		return l, nil
	})
	return l.all, l.version, err
}

// listed adds the blobs of an algorithm to all.
func listed(root *os.Root, a digest.Algorithm, all []digest.Digest) ([]digest.Digest, error) {
	f, err := root.Open(path.Join(ocispec.ImageBlobsDir, string(a)))
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return all, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxListed)
	if errors.Is(err, io.EOF) {
		err = nil // it is empty
	}
	for _, name := range names {
		if d := digest.NewDigestFromEncoded(a, name); d.Validate() == nil {
			all = append(all, d)
		}
	}
	return all, err
}

// Kept is a blob of a [Content] that has matched its digest.
type Kept struct {
	content *Content
	m       *chunk.Map
	stamp   string
	links   []chunk.Link // after each chunk
	used    time.Time    // guarded by Content.mu
}

var _ chunk.Runner = (*Kept)(nil)

// Size returns the blob's length in bytes.
func (k *Kept) Size() int64 { return k.m.Size() }

// Links returns the links before and after one of its chunks.
func (k *Kept) Links(ref chunk.Ref) (before, after chunk.Link) {
	i := ref.Index()
	if i < 0 || i >= len(k.links) {
		return "", ""
	}
	if i > 0 {
		before = k.links[i-1]
	}
	return before, k.links[i]
}

// Get implements [chunk.Source]. If the file has changed the error is [chunk.ErrNotFound].
func (k *Kept) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	return chunk.GetOne(ctx, k, ref)
}

// GetRun implements [chunk.Runner].
func (k *Kept) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	f, err := k.open(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, ref := range refs {
		if ref.Blob != k.m.Blob() || ref.Total != k.m.Size() {
			return chunk.ErrNotFound
		}
		p, err := k.content.dir.read(ctx, ref.Blob, f, ref.Offset, ref.Size)
		if err == nil && k.content.always {
			err = k.check(ref, p)
		}
		if err != nil {
			return err
		}
		if err := yield(ref, p); err != nil {
			return err
		}
	}
	return nil
}

// check checks a chunk once more.
func (k *Kept) check(ref chunk.Ref, p []byte) error {
	before, after := k.Links(ref)
	err := ref.CheckLink(k.content.dir.source(ref.Blob), before, after, p)
	if err != nil {
		k.content.dir.doubts.set(ref.Blob, k.stamp)
		k.content.dir.report(err)
	}
	return err
}

// open opens the file, for the caller to close, if it is the one that was checked.
func (k *Kept) open(ctx context.Context) (opened, error) {
	f, err := k.content.dir.openBlob(ctx, k.m.Blob())
	if err == nil && f.stamp != k.stamp {
		f.Close()
		err = chunk.ErrNotFound
	}
	return f, err
}

// Lend opens the file at off if n bytes from there may be sent as they are. The caller closes it.
func (k *Kept) Lend(ctx context.Context, off, n int64) (*os.File, bool) {
	if k.content.always || off < 0 || n <= 0 || off+n > k.m.Size() {
		return nil, false
	}
	f, err := k.open(ctx)
	if err != nil {
		return nil, false
	}
	if _, err := f.Seek(off, 0); err != nil {
		f.Close()
		return nil, false
	}
	return f.File, true
}
