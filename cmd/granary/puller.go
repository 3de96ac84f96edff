package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// puller reads all of an image, and writes it to a layout if it has one.
type puller struct {
	want      ref.Reference
	platform  *ocispec.Platform // nil for all
	referrers bool
	compat    string // "" for off
	from      *upstream.Repository
	out       *layoutDir // nil for none
	since     *layoutDir // whose blobs are not brought; nil for none
	warms     bool       // it is only brought into the node
	progress  *progress

	root   ocispec.Descriptor // what the reference names, once it is known
	graph  *graph.Graph       // below the root
	spared map[*graph.Node]bool
	chosen *candidate // by compat, nil for none
}

// pull brings what the reference names. What is not there is in the graph's problems. If
// any of that is required the layout gets what is there of blobs, and no manifest: it has
// none without what that names.
func (p *puller) pull(ctx context.Context) error {
	if err := p.find(ctx); err != nil {
		return err
	}
	if err := forEach(ctx, p.graph, p.wanted(), p.blob); err != nil {
		return err
	}
	if p.out == nil || p.incomplete() {
		return nil
	}
	return p.write()
}

// find finds out what belongs to the image, and what of that need not be brought.
func (p *puller) find(ctx context.Context) error {
	m, err := p.from.Manifest(ctx, manifestName(p.want))
	if err != nil {
		return err
	}
	p.root = m.Descriptor
	root := m.Descriptor
	root.Data = m.Bytes
	opts := graph.Options{Platform: p.platform, Parallel: parallel}
	if p.warms {
		opts.Unknown = upstream.Unreachable // the node has what it has, and nothing is written that could lack something
	}
	if p.referrers {
		opts.Referrers = registrySource{p.from}
	}
	if p.compat != "" {
		if opts.Prefer, err = p.prefer(ctx, m); err != nil {
			return err
		}
	}
	if p.graph, err = graph.Walk(ctx, registrySource{p.from}, []ocispec.Descriptor{root}, opts); err != nil {
		return err
	}
	return p.spare(ctx)
}

// spare finds the blobs that the older layout has.
func (p *puller) spare(ctx context.Context) error {
	if p.since == nil {
		return nil
	}
	var mu sync.Mutex
	p.spared = make(map[*graph.Node]bool)
	return forEach(ctx, p.graph, p.graph.Blobs(), func(ctx context.Context, b *graph.Node) error {
		if p.since.has(b.Descriptor) {
			mu.Lock()
			defer mu.Unlock()
			p.spared[b] = true
		}
		return ctx.Err()
	})
}

// wanted returns the blobs that are brought.
func (p *puller) wanted() (some []*graph.Node) {
	for _, b := range p.graph.Blobs() {
		if !p.spared[b] {
			some = append(some, b)
		}
	}
	return some
}

// forEach does something with blobs of a graph, several at once. Those that it finds not to be
// there become problems of the graph.
func forEach(ctx context.Context, in *graph.Graph, blobs []*graph.Node, do func(context.Context, *graph.Node) error) error {
	var mu sync.Mutex
	lost := make(map[*graph.Node]error)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, b := range blobs {
		g.Go(func() error {
			err := do(ctx, b)
			if errors.Is(err, graph.ErrNotFound) {
				mu.Lock()
				defer mu.Unlock()
				lost[b], err = err, nil
			}
			return err
		})
	}
	err := g.Wait()
	in.Lose(lost)
	return err
}

// blob reads a blob to its verified end, into the layout if there is one.
func (p *puller) blob(ctx context.Context, n *graph.Node) error {
	switch {
	case p.out == nil:
		return p.warm(ctx, n)
	case p.out.has(n.Descriptor):
		p.progress.add(n.Descriptor).done("already there")
		return nil
	}
	return p.out.add(n.Descriptor, p.fetcher(ctx, n))
}

// warm has the node keep a blob.
func (p *puller) warm(ctx context.Context, n *graph.Node) error {
	err := p.fetch(ctx, n, 0, func(r io.Reader) error { return copyVerified(io.Discard, r, n.Descriptor) })
	if errors.Is(err, graph.ErrNotFound) && n.Content != nil {
		p.progress.add(n.Descriptor).done("embedded") // the registry need not have it, and the node neither
		return nil
	}
	return err
}

// fetcher fetches a blob, unless its bytes are known.
func (p *puller) fetcher(ctx context.Context, n *graph.Node) fetcher {
	if n.Content == nil {
		return func(offset int64, take func(io.Reader) error) error { return p.fetch(ctx, n, offset, take) }
	}
	p.progress.add(n.Descriptor).done("embedded")
	return inMemory(n.Content)
}

// inMemory fetches bytes from memory.
func inMemory(content []byte) fetcher {
	return func(offset int64, take func(io.Reader) error) error { return take(bytes.NewReader(content[offset:])) }
}

// fetch has take read a blob, from an offset on, as the node sends it.
func (p *puller) fetch(ctx context.Context, n *graph.Node, offset int64, take func(io.Reader) error) error {
	bar := p.progress.add(n.Descriptor)
	bar.skip(offset)
	resp, err := p.from.Get(ctx, "blobs/"+string(n.Digest), nil, rangeFrom(offset, n.Size))
	if err != nil {
		bar.drop()
		return missing(err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusPartialContent && offset > 0:
	case resp.StatusCode == http.StatusOK: // which has no ranges
		_, err = io.CopyN(io.Discard, resp.Body, offset)
	default:
		err = errors.New(resp.Status)
	}
	if err == nil {
		err = take(bar.reader(resp.Body))
	}
	if err != nil {
		bar.drop()
		return fmt.Errorf("blob %s: %w", n.Digest, err)
	}
	bar.done("done")
	return nil
}

// rangeFrom asks for what follows in a blob of a size, nil for all of it.
func rangeFrom(offset, size int64) http.Header {
	if offset == 0 {
		return nil
	}
	return http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", offset, size-1)}}
}

// write writes the manifests, in whose order each comes after what it names, and lists in
// the layout's index the image and what refers to it.
func (p *puller) write() error {
	for _, m := range manifestsOf(p.graph) {
		if p.out.has(m) {
			continue
		}
		if err := p.out.add(m, inMemory(m.Data)); err != nil {
			return err
		}
	}
	return p.out.list(p.entries())
}

// manifestsOf returns the manifests of a graph with their bytes, children first, and then the
// lists of referrers that have to be made.
func manifestsOf(g *graph.Graph) (all []ocispec.Descriptor) {
	for _, n := range g.Manifests() {
		m := n.Descriptor
		m.Data = n.Content
		all = append(all, m)
	}
	for _, l := range referrerLists(g) {
		if l.Data != nil {
			all = append(all, l.Descriptor)
		}
	}
	return all
}

// entries returns what a layout's index says of the image. What refers to something is named
// in both ways that there are: without a name and with its type, as oras does, and in a list
// under the tag of what it refers to, as regctl does.
func (p *puller) entries() []ocispec.Descriptor {
	entries := []ocispec.Descriptor{named(p.root, p.want.String())}
	tag := func(desc ocispec.Descriptor, tag string) {
		entries = append(entries, named(desc, ref.Reference{Repository: p.want.Repository, Tag: tag}.String()))
	}
	lists := referrerLists(p.graph)
	isList := make(map[string]bool)
	for _, l := range lists {
		tag(l.Descriptor, l.tag)
		isList[l.tag] = true
	}
	for _, n := range p.graph.Manifests() {
		for _, r := range n.Refs {
			switch {
			case r.Role == graph.Tagged && !isList[r.Path]:
				tag(n.Descriptor, r.Path)
			case r.Role == graph.Referrer:
				entries = append(entries, named(asReferrer(n), ""))
			}
		}
	}
	return entries
}

// result tells what was pulled.
func (p *puller) result() pulled {
	r := pulled{
		Ref: p.want.String(), Digest: string(p.root.Digest), MediaType: p.root.MediaType,
		Manifests: len(p.graph.Manifests()), Spared: len(p.spared),
	}
	for _, b := range p.wanted() {
		r.Blobs, r.Bytes = r.Blobs+1, r.Bytes+b.Size
	}
	for b := range p.spared {
		r.SparedBytes += b.Size
	}
	for _, problem := range p.graph.Problems {
		n := problem.Node
		l := lack{Digest: string(n.Digest), MediaType: n.MediaType, Size: n.Size, Required: problem.Required, Reason: problem.Err.Error()}
		for _, r := range n.Refs {
			l.For = append(l.For, r.String())
		}
		r.Missing = append(r.Missing, l)
	}
	return r
}

// incomplete reports whether something is known to be missing that is required.
func (p *puller) incomplete() bool { return p.graph != nil && p.graph.Err() != nil }

// report says what is missing of an image. The error is that some of it is required.
func report(w io.Writer, g *graph.Graph, image string) error {
	required := 0
	for _, problem := range g.Problems {
		word := "not there, and not required"
		if problem.Required {
			word, required = "missing", required+1
		}
		fmt.Fprintf(w, "%s: %v\n", word, problem)
	}
	if required == 0 {
		return nil
	}
	return fmt.Errorf("%s: incomplete, %d of what it refers to is missing", image, required)
}
