package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/ref"
)

// warmAtOnce is how many blobs of an image are fetched side by side.
const warmAtOnce = 3

// Warming is an image that is being brought into the store, all that it refers to included.
// It may be looked at while [Registry.Warm] works.
type Warming struct {
	done atomic.Int64

	mu       sync.Mutex
	root     digest.Digest
	size     int64 // of all that belongs to it; 0 while that is not known
	problems []string
}

// WarmStatus is how far an image is.
type WarmStatus struct {
	Digest digest.Digest `json:"digest,omitempty"` // once it is known
	Size   int64         `json:"size"`             // of all that belongs to it, in bytes; 0 while that is not known
	Done   int64         `json:"done"`             // bytes of it that are here, checked
	// Missing is what the image refers to and the registry does not have.
	Missing []string `json:"missing,omitempty"`
}

// Status returns how far the image is.
func (w *Warming) Status() WarmStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return WarmStatus{Digest: w.root, Size: w.size, Done: min(w.done.Load(), w.size), Missing: w.problems}
}

func (w *Warming) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// Warm brings an image into the store as caller may read it, with all that it refers to, for a
// platform or for all (nil). What is there already is not read again. An error says that
// something is not there which the image is incomplete without.
func (r *Registry) Warm(ctx context.Context, want ref.Reference, caller access.Caller, platform *ocispec.Platform, w *Warming) error {
	p := r.Open(want.Repository, caller)
	res, err := p.Resolve(ctx, want.Tag, want.Digest)
	if err != nil {
		return err
	}
	m, err := p.Manifest(ctx, res.Digest)
	if err != nil {
		return err
	}
	root := m.Descriptor
	root.Data = m.Bytes
	w.set(func() { w.root = root.Digest })
	r.wasTold(want.Repository, want.Tag, root.Digest, m.Bytes)
	g, err := graph.Walk(ctx, graphSource{p}, []ocispec.Descriptor{root}, graph.Options{Platform: platform})
	if err != nil {
		return fmt.Errorf("%s: %w", want, err)
	}
	return w.bring(ctx, p, want, g)
}

func (w *Warming) bring(ctx context.Context, p *Repository, want ref.Reference, found *graph.Graph) error {
	w.set(func() {
		for _, n := range found.Nodes {
			w.size += n.Size
		}
	})
	for _, m := range found.Manifests() {
		w.done.Add(m.Size)
		if hasLayers(m) {
			p.registry.wasTold(want.Repository, "", m.Digest, m.Content)
		}
	}
	w.fromSwarm(ctx, p, found.Blobs())
	var mu sync.Mutex
	lost := make(map[*graph.Node]error)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(warmAtOnce)
	for _, b := range found.Blobs() {
		g.Go(func() error {
			err := w.blob(gctx, p, b)
			if chunk.IsCorrupt(err) { // what was wrong is dropped, and who gave it is not believed again
				p.registry.report(err)
				err = w.blob(gctx, p, b)
			}
			if errors.Is(err, chunk.ErrNotFound) {
				mu.Lock()
				defer mu.Unlock()
				lost[b], err = err, nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("%s: %w", want, err)
	}
	found.Lose(lost)
	w.set(func() {
		for _, problem := range found.Problems[:min(len(found.Problems), maxProblems)] {
			w.problems = append(w.problems, problem.Error())
		}
	})
	if err := found.Err(); err != nil {
		return fmt.Errorf("%s: incomplete: %w", want, err)
	}
	return nil
}

// maxProblems is how much is told of what is missing.
const maxProblems = 64

func hasLayers(m *graph.Node) bool {
	refs, _ := graph.References(m.Content) // the walk has read them
	for _, l := range refs {
		if l.Role == graph.Layer {
			return true
		}
	}
	return false
}

// blob reads a blob to its verified end, unless all of it is stored. It is the caller's to be
// refused even then.
func (w *Warming) blob(ctx context.Context, p *Repository, n *graph.Node) (err error) {
	b, err := p.Blob(ctx, n.Digest)
	if err != nil {
		if errors.Is(err, chunk.ErrNotFound) && n.Content != nil {
			w.done.Add(n.Size) // it is embedded, and the registry need not have it
			return nil
		}
		return err
	}
	defer b.Release()
	if p.registry.Stored(n.Digest, b.Size()) {
		w.done.Add(n.Size)
		return nil
	}
	p.rebuild(ctx, b)
	reading, end := p.registry.reads.begin(p.Repository, n.Digest, b.Size())
	defer end()
	went := reading.from(0)
	rd := b.Open(ctx)
	defer rd.Close()
	var read int64
	defer func() {
		if err != nil {
			w.done.Add(-read)
		}
	}()
	for {
		c, _, err := rd.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		read += int64(len(c))
		w.done.Add(int64(len(c)))
		went(int64(len(c)))
	}
}

// graphSource is a repository as what a graph is read from.
type graphSource struct{ p *Repository }

// Manifest implements [graph.Source].
func (s graphSource) Manifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if _, err := s.p.Resolve(ctx, "", desc.Digest); err != nil {
		return nil, notInGraph(err)
	}
	m, err := s.p.Manifest(ctx, desc.Digest)
	return m.Bytes, notInGraph(err)
}

// Stat implements [graph.Source].
func (s graphSource) Stat(ctx context.Context, desc ocispec.Descriptor) (int64, error) {
	size, err := s.p.Stat(ctx, desc.Digest)
	return size, notInGraph(err)
}

func notInGraph(err error) error {
	if errors.Is(err, chunk.ErrNotFound) {
		return fmt.Errorf("%w: %w", graph.ErrNotFound, err)
	}
	return err
}
