package proxy

import (
	"context"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// shared reports whether other members ask about the repository too, and are to be
// given the same answers.
func (p *Repository) shared() bool {
	return p.lent || p.registry.cfg.Peers != nil && !p.registry.cfg.Peers.Alone()
}

// once is an upstream that is asked the same only once at a time, by this node's
// clients and for other members. These have different questions in [askAs]: two
// nodes that take each other for the one who asks for all would wait for each other
// if they had the same. Those to the upstream wait for nobody.
type once struct {
	Upstream
	repository *Repository
	as         access.Caller
}

// Resolve implements [Upstream]. What the answer is gets recorded before the question
// is over, and is looked up when one begins: nobody slips through between the two.
func (o *once) Resolve(ctx context.Context, reference string) (upstream.Resolved, error) {
	p := o.repository
	return askOnce(ctx, o, "resolve "+reference, func(ctx context.Context, from func() string) (upstream.Resolved, error) {
		if last, ok := p.registry.cfg.Catalog.Tag(p.String(), reference); ok && p.registry.atOnce(last.Checked) && o.served() {
			return resolvedTo(last), nil
		}
		resolved, err := o.Upstream.Resolve(ctx, reference)
		if err == nil {
			p.heed(o.as, nil, o.Upstream, from())
		}
		if err == nil && ref.IsTag(reference) {
			p.setTag(reference, resolved.Descriptor, o.Upstream)
		}
		return resolved, err
	})
}

// Stat implements [Upstream], as Resolve does.
func (o *once) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	p := o.repository
	return askOnce(ctx, o, "stat "+string(d), func(ctx context.Context, from func() string) (int64, error) {
		m, known := p.registry.cfg.Catalog.Member(p.String(), d)
		if known && m.Confirmed && o.served() {
			return m.Size, nil
		}
		size, err := o.Upstream.Stat(ctx, d)
		if err == nil {
			p.heed(o.as, nil, o.Upstream, from())
			p.confirm(d, m, known, size)
		}
		return size, err
	})
}

// Manifest implements [Upstream], as Resolve does.
func (o *once) Manifest(ctx context.Context, reference string) (upstream.Manifest, error) {
	p := o.repository
	return askOnce(ctx, o, "manifest "+reference, func(ctx context.Context, from func() string) (upstream.Manifest, error) {
		if o.served() {
			if m, ok := p.storedManifest(ctx, digest.Digest(reference)); ok {
				return m, nil
			}
		}
		m, err := o.Upstream.Manifest(ctx, reference)
		if err == nil {
			p.heed(o.as, nil, o.Upstream, from())
		}
		if err == nil && string(m.Digest) == reference {
			_, err = p.record(ctx, m)
		}
		return m, err
	})
}

// served reports whether the upstream has served whoever asks just now.
func (o *once) served() bool {
	word, ok := o.repository.registry.ledger.Word(o.repository.Host, o.repository.String(), o.as)
	return ok && !word.Denied && o.repository.registry.atOnce(word.Checked)
}

// askOnce asks what nobody else asks now. Who was served is for the one who asks to take
// note of, from being where the answer comes from: those who share it do not see that.
func askOnce[T any](ctx context.Context, o *once, question string, answer func(ctx context.Context, from func() string) (T, error)) (T, error) {
	key := strings.Join([]string{"once", o.repository.String(), o.as.Key(), question}, "\n")
	a, err := o.repository.registry.questions.Do(ctx, key, askFor, func(ctx context.Context) (any, error) {
		ctx, from := chunk.WithOrigin(ctx)
		return answer(ctx, from)
	})
	v, _ := a.(T) // nil when nobody waited for it
	return v, err
}
