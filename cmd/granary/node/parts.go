package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/lazy"
	"github.com/granary-oci/granary/toc"
	"github.com/granary-oci/granary/tracker"
)

// What is made from layers is placed like questions: a derived object by its kind and
// layer, a content by its digest. One member makes it for all who ask, and keeps it.

// Derived implements [proxy.Peers].
func (p peers) Derived(ctx context.Context, in proxy.In, kind string, of proxy.LayerRef) ([]byte, error) {
	var object []byte
	part := wire.Part{Layer: of.Layer, Manifest: of.Manifest, Kind: kind, Size: wire.MaxPart}
	for {
		part.Offset = int64(len(object))
		size, body, err := p.client.AskPart(ctx, derivedKey(kind, of.Layer), wireRepository(in), wire.Derived, part)
		if err != nil {
			return nil, notOthers(err)
		}
		object = append(object, body...)
		switch {
		case int64(len(object)) == size:
			return object, nil
		case len(body) == 0 || size > lazy.MaxDerived || int64(len(object)) > size:
			return nil, fmt.Errorf("%s of %s: %d bytes at %d of %d", kind, of.Layer, len(body), part.Offset, size)
		}
	}
}

// Derives implements [proxy.Peers].
func (p peers) Derives(kind string, layer digest.Digest) bool {
	return p.client.Answers(derivedKey(kind, layer))
}

func derivedKey(kind string, layer digest.Digest) string {
	return "derived " + kind + " " + string(layer)
}

// Content implements [proxy.Peers].
func (p peers) Content(ctx context.Context, in proxy.In, of proxy.LayerRef, path string, x toc.Extent) ([]byte, error) {
	if x.Size > wire.MaxPart {
		return nil, chunk.ErrNotFound
	}
	part := wire.Part{Layer: of.Layer, Manifest: of.Manifest, Path: path, Offset: x.Offset, Size: x.Size}
	_, body, err := p.client.AskPart(ctx, "content "+x.Digest.String(), wireRepository(in), wire.Content, part)
	return body, notOthers(err)
}

// Digests implements [proxy.Peers].
func (p peers) Digests(ctx context.Context, host string, m *chunk.Map, first, n int) (chunk.Digests, string, error) {
	all, giver, err := p.client.Digests(ctx, host, m.Blob(), m.Size(), first, n)
	return all, string(giver), err
}

// Mapped implements [proxy.Peers].
func (p peers) Mapped(host string, ref chunk.Ref, giver string) bool {
	return p.client.Mapped(host, ref, tracker.ID(giver))
}

// digests answers a question for a part of a blob's map.
func (b backend) digests(ctx context.Context, q wire.Ask) (a wire.Answer, body []byte, err error) {
	part, err := wire.ReadPart(q.Reference)
	if err != nil {
		return a, nil, err
	}
	first, n, err := part.Chunks()
	if err != nil {
		return a, nil, err
	}
	all, err := b.registry.Digests(ctx, q.Host, part.Layer, part.Total, first, n)
	return wire.Answer{Size: int64(chunk.Count(part.Total)) * chunk.DigestSize}, all, err
}

// notOthers makes of a question that is this node's own that others do not have it.
func notOthers(err error) error {
	if errors.Is(err, p2p.ErrOwn) {
		return chunk.ErrNotFound
	}
	return err
}

// part answers a question for a part of something that is made from a layer.
func (b backend) part(ctx context.Context, q wire.Ask) (a wire.Answer, body []byte, err error) {
	part, err := wire.ReadPart(q.Reference)
	if err != nil {
		return a, nil, err
	}
	where, err := in(q.Repository)
	if err != nil {
		return a, nil, err
	}
	p, err := b.registry.MakeFor(where)
	if err != nil {
		return a, nil, err
	}
	l, err := p.Layer(ctx, part.Layer, part.Manifest)
	if err != nil {
		return a, nil, err
	}
	defer l.Release()
	if q.Question == wire.Content {
		body, err = extentOf(l, part)
		return wire.Answer{Size: int64(len(body))}, body, err
	}
	object, err := b.registry.Derived(ctx, part.Kind, part.Layer)
	if err != nil {
		return a, nil, err
	}
	at := min(part.Offset, int64(len(object)))
	return wire.Answer{Size: int64(len(object))}, object[at:min(at+part.Size, int64(len(object)))], nil
}

// extentOf reads one extent of a file.
func extentOf(l *proxy.Layer, part wire.Part) ([]byte, error) {
	e, ok := l.Lookup(part.Path)
	if !ok || e.Type != toc.Regular || part.Offset > e.Size-part.Size {
		return nil, chunk.ErrNotFound
	}
	body := make([]byte, part.Size)
	_, err := l.Content(&e).ReadAt(body, part.Offset)
	return body, err
}
