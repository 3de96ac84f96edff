package node

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
	"github.com/granary-oci/granary/tracker"
)

// peers is the cluster as the registry face asks it.
type peers struct {
	*cluster
	proven      func(digest.Digest) bool
	parentsOnly bool // they are the upstream
}

var _ proxy.Peers = peers{}

func wireRepository(in proxy.In) wire.Repository {
	return wire.Repository{Host: in.Host, Name: in.Name, Authorization: in.Caller.Authorization(), Itself: in.Itself, First: in.First}
}

func (p peers) Alone() bool { return p.gossip.View().Alone() }

func (p peers) StripeSize(total int64) int64 { return p.client.StripeSize(total) }

func (p peers) Source(in proxy.In, own chunk.Source) chunk.Source {
	return p.client.Source(wireRepository(in), own)
}

func (p peers) First(in proxy.In) chunk.Source { return p.client.First(wireRepository(in)) }

func (p peers) Held(host string) chunk.Source { return p.client.Held(host) }

func (p peers) Vouched(host string, ref chunk.Ref) bool {
	return p.client.Claims().Of(host).Vouched(ref, p.proven(ref.Blob))
}

func (p peers) Own(host string, ref chunk.Ref) bool {
	parent, itself := p.client.Claims().Of(host).FetchedBy(ref)
	return itself && (parent == "" || p.parentsOnly)
}

func (p peers) Fetched(host string, ref chunk.Ref, b []byte, parent string) {
	p.client.Claims().Of(host).OwnBy(parent, ref, b)
}

func (p peers) Upstream(in proxy.In, up proxy.Upstream) proxy.Upstream {
	return &asked{Upstream: up, client: p.client, in: in}
}

func (p peers) Recall(ctx context.Context, in proxy.In, caller string, learn func([]byte)) {
	p.client.Recall(ctx, wireRepository(in), caller, learn)
}

func (p peers) Profiles(ctx context.Context, in proxy.In, image digest.Digest, learn func([]byte)) {
	p.client.Profiles(ctx, wireRepository(in), image, learn)
}

func (p peers) Provided(ctx context.Context, host string, d digest.Digest) bool {
	return p.client.Provided(ctx, host, d)
}

func (p peers) Keeps(in proxy.In) bool { return p.client.Keeps(in.Host, in.Name) }

func (p peers) Tell(in proxy.In, facts []byte) { p.client.Tell(wireRepository(in), facts) }

// asked is an upstream whose questions are answered by the member that asks for
// all. It answers one question, for one goroutine.
type asked struct {
	proxy.Upstream
	client *p2p.Client
	in     proxy.In

	answer wire.Answer
	heard  bool
}

// Heard is for the registry face to know how fresh an answer is.
func (a *asked) Heard() (age, granted time.Duration, heard bool) {
	return a.answer.Age, a.answer.Granted, a.heard
}

// ask asks another member. ok is false if the question is this node's to ask: a
// refusal too, for a client is to get the upstream's own.
func (a *asked) ask(ctx context.Context, q wire.Question, reference string) (body []byte, ok bool, err error) {
	answer, body, err := a.client.Ask(ctx, wire.Ask{Repository: wireRepository(a.in), Question: q, Reference: reference})
	var denied *p2p.DeniedError
	switch {
	case errors.Is(err, p2p.ErrOwn), errors.As(err, &denied):
		return nil, false, nil
	case err == nil && answer.Digest == "" && q != wire.Stat:
		return nil, false, nil
	}
	a.answer, a.heard = answer, err == nil
	return body, true, err
}

func (a *asked) resolved() upstream.Resolved {
	return upstream.Resolved{
		Descriptor: ocispec.Descriptor{Digest: a.answer.Digest, MediaType: a.answer.MediaType, Size: a.answer.Size},
		Warnings:   a.answer.Warnings,
	}
}

// Resolve implements [proxy.Upstream].
func (a *asked) Resolve(ctx context.Context, reference string) (upstream.Resolved, error) {
	_, ok, err := a.ask(ctx, wire.Resolve, reference)
	if !ok {
		return a.Upstream.Resolve(ctx, reference)
	}
	return a.resolved(), err
}

// Manifest implements [proxy.Upstream].
func (a *asked) Manifest(ctx context.Context, reference string) (upstream.Manifest, error) {
	body, ok, err := a.ask(ctx, wire.Manifest, reference)
	d := digest.Digest(reference)
	if ok && err == nil && (a.answer.Digest != d || d.Validate() != nil || d.Algorithm().FromBytes(body) != d) {
		ok = false // whoever answered is wrong; the upstream is not
	}
	if !ok {
		a.heard = false
		return a.Upstream.Manifest(ctx, reference)
	}
	a.answer.Size = int64(len(body))
	return upstream.Manifest{Resolved: a.resolved(), Bytes: body}, err
}

// Stat implements [proxy.Upstream].
func (a *asked) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	_, ok, err := a.ask(ctx, wire.Stat, string(d))
	if !ok {
		return a.Upstream.Stat(ctx, d)
	}
	return a.answer.Size, err
}

// backend is what this node has for other members.
type backend struct {
	registry  *proxy.Registry
	store     *chunkstore.Stack
	providers *tracker.Providers
	order     func(ctx context.Context, o wire.Order, says []byte) (brought []byte, err error)
}

var _ p2p.Backend = backend{}

var errStale = errors.New("the upstream cannot be asked")

// in returns the repository that a member names.
func in(r wire.Repository) (proxy.In, error) {
	named, err := ref.Parse(r.Host+"/"+r.Name, r.Host)
	if err != nil || named.Host != r.Host || named.Name != r.Name {
		return proxy.In{}, errors.New("no such repository")
	}
	h := http.Header{}
	if r.Authorization != "" {
		h.Set("Authorization", r.Authorization)
	}
	caller, err := access.FromHeader(h)
	return proxy.In{Repository: named.Repository, Caller: caller, Itself: r.Itself, First: r.First}, err
}

// Stored implements [p2p.Backend].
func (b backend) Stored(ctx context.Context, host string, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return b.registry.Lend(ctx, host, refs, yield)
}

// Relay implements [p2p.Backend].
func (b backend) Relay(ctx context.Context, host string, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return b.registry.Relay(ctx, host, refs, yield)
}

// Fetch implements [p2p.Backend].
func (b backend) Fetch(ctx context.Context, r wire.Repository, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	p, err := b.open(r)
	if err != nil {
		return err
	}
	return p.Fetch(ctx, refs, yield)
}

func (b backend) open(r wire.Repository) (*proxy.Repository, error) {
	where, err := in(r)
	if err != nil {
		return nil, err
	}
	return b.registry.As(where)
}

// Proof implements [p2p.Backend].
func (b backend) Proof(host string, ref chunk.Ref, c []byte) (p p2p.Proof) {
	if b.store.Disk != nil {
		p.Before, p.After, p.Proven = b.store.Disk.Links(ref)
	}
	if p.Proven {
		return p
	}
	// What comes from the store need not be what is kept beside it.
	if before, after, ok := b.registry.LinksBeside(host, ref); ok && ref.CheckLink("", before, after, c) == nil {
		p.Before, p.After, p.Proven = before, after, true
	}
	return p
}

// Map implements [p2p.Backend].
func (b backend) Map(ctx context.Context, q wire.MapRequest) wire.Map {
	m := wire.Map{Providers: b.providers.Of(q.Blob)}
	if len(m.Providers) > wire.MaxProviders {
		m.Providers = m.Providers[:wire.MaxProviders]
	}
	if info, err := b.store.Stat(q.Blob); err == nil && b.registry.MayLend(q.Host, q.Blob) {
		m.Total, m.Have = info.Size, b.store.Disk.Have(q.Blob)
		m.Proven = info.Stored == info.Size && (info.Proven || info.Size <= chunk.Size)
	}
	if size, err := b.registry.StatBeside(ctx, q.Host, q.Blob); err == nil && !m.Proven {
		m.Total, m.Have, m.Proven = size, allChunks(size), true // as it will be found to be before it is lent
	}
	return m
}

// allChunks returns a bit for each chunk of a blob.
func allChunks(size int64) []byte {
	n := chunk.Count(size)
	bits := bytes.Repeat([]byte{0xff}, (n+7)/8)
	bits[len(bits)-1] >>= len(bits)*8 - n
	return bits
}

// Ask implements [p2p.Backend].
func (b backend) Ask(ctx context.Context, q wire.Ask) (a wire.Answer, body []byte, err error) {
	if q.Question == wire.Recall {
		where, err := in(q.Repository)
		if err != nil {
			return a, nil, err
		}
		return a, b.registry.Facts(where, q.Reference), nil
	}
	if q.Question == wire.Profile {
		return a, b.registry.KeptProfile(ctx, digest.Digest(q.Reference)), nil
	}
	if q.Question == wire.Derived || q.Question == wire.Content {
		return b.part(ctx, q)
	}
	if q.Question == wire.Digests {
		return b.digests(ctx, q)
	}
	if q.Question == wire.Rebuild {
		return b.rebuild(ctx, q)
	}
	p, err := b.open(q.Repository)
	if err != nil {
		return a, nil, err
	}
	switch d := digest.Digest(q.Reference); {
	case q.Question == wire.Stat && d.Validate() == nil:
		a.Size, err = p.Stat(ctx, d)
	case q.Question == wire.Manifest && d.Validate() == nil:
		body, err = b.manifest(ctx, p, d, &a)
	case q.Question == wire.Resolve && d.Validate() == nil:
		err = resolve(ctx, p, "", d, &a)
	case q.Question == wire.Resolve && ref.IsTag(q.Reference):
		err = resolve(ctx, p, q.Reference, "", &a)
	default:
		err = errors.New("the question is not known here")
	}
	a.Granted = p.Granted()
	return a, body, err
}

func resolve(ctx context.Context, p *proxy.Repository, tag string, d digest.Digest, a *wire.Answer) error {
	r, err := p.Resolve(ctx, tag, d)
	if err == nil && !r.Stale.IsZero() {
		return errStale // the asker learns what is known by another way, with its age
	}
	*a = wire.Answer{MediaType: r.MediaType, Digest: r.Digest, Size: r.Size, Warnings: r.Warnings, Age: r.Age}
	return err
}

func (b backend) manifest(ctx context.Context, p *proxy.Repository, d digest.Digest, a *wire.Answer) ([]byte, error) {
	if err := resolve(ctx, p, "", d, a); err != nil {
		return nil, err
	}
	m, err := p.Manifest(ctx, d)
	if err == nil {
		a.MediaType, a.Size = m.MediaType, m.Size
	}
	return m.Bytes, err
}

// Learn implements [p2p.Backend].
func (b backend) Learn(r wire.Repository, facts []byte) error {
	where, err := in(r)
	if err != nil {
		return err
	}
	return b.registry.Learn(where, facts)
}

// Forget implements [p2p.Backend].
func (b backend) Forget(q wire.Forget) error {
	where, err := in(wire.Repository{Host: q.Host, Name: q.Name})
	if err != nil {
		return err
	}
	_, err = b.registry.Invalidate(where.Repository, q.Tag)
	return err
}

// Order implements [p2p.Backend].
func (b backend) Order(ctx context.Context, o wire.Order, says []byte) ([]byte, error) {
	return b.order(ctx, o, says)
}

// Cause implements [p2p.Backend].
func (b backend) Cause(err error) wire.Cause {
	switch {
	case errors.Is(err, chunk.ErrDenied), errors.Is(err, proxy.ErrOthersCredentials), errors.Is(err, proxy.ErrRefused):
		return wire.CauseDenied
	case upstream.Unreachable(err), errors.Is(err, access.ErrUnchecked), errors.Is(err, errStale):
		return wire.CauseUnreachable
	}
	return wire.CauseFailed
}
