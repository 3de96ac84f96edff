package proxy

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.opentelemetry.io/otel/attribute"
	otel "go.opentelemetry.io/otel/trace"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/catalog"
	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/trace"
	"github.com/granary-oci/granary/proxy/upstream"
)

// Repository is one repository as one caller reads it. What it returns is what
// the upstream would serve to that caller.
type Repository struct {
	ref.Repository
	registry *Registry
	caller   access.Caller
	lent     bool // it is read for another member, see [Registry.As]
	first    bool // that takes this node for the owner of the first stripe
	maker    bool // it is read for another member to make something of it, see [Registry.MakeFor]
}

// Resolution is what a tag or digest means, now or when the upstream could last
// be asked.
type Resolution struct {
	upstream.Resolved
	// Age is how long ago the upstream said so.
	Age time.Duration
	// Stale is the time of the upstream's last word when it cannot be reached
	// now, else zero.
	Stale time.Time
}

// together is how far apart clients of a cluster may ask, and be given the same
// answer.
const together = time.Second

func (r *Registry) atOnce(checked time.Time) bool { return r.age(checked).Abs() < together }

// age returns how long ago something was, by the clock that is also that of grants; it is negative after that was put back.
func (r *Registry) age(t time.Time) time.Duration { return r.ledger.Now().Sub(t) }

// Resolve returns the descriptor of a manifest: of d if that is not empty. How
// often the upstream is asked about a tag is the tag's policy; while it cannot be
// reached the last resolution holds.
func (p *Repository) Resolve(ctx context.Context, tag string, d digest.Digest) (Resolution, error) {
	if d != "" {
		resolved, err := p.resolveDigest(ctx, d)
		return Resolution{Resolved: resolved}, err
	}
	last, known := p.registry.cfg.Catalog.Tag(p.String(), tag)
	if known && (policyFor(p.registry.cfg.TagRules, p.Repository, tag).current(p.registry.age(last.Checked)) || p.shared() && p.registry.atOnce(last.Checked)) {
		err := p.authorize(ctx, last.Digest, "manifest", resolves(last.Digest))
		if err == nil || !errors.Is(err, chunk.ErrNotFound) { // else it is gone there, and the tag has moved
			return Resolution{Resolved: resolvedTo(last), Age: p.registry.age(last.Checked)}, p.about(tag, err)
		}
	}
	resolved, err := ask(ctx, p, "tag "+tag, func(ctx context.Context, up Upstream) (upstream.Resolved, error) {
		resolved, err := up.Resolve(ctx, tag)
		if err == nil {
			p.setTag(tag, resolved.Descriptor, up)
		}
		return resolved, err
	}, func(r upstream.Resolved) Facts {
		return Facts{Tags: map[string]TagFact{tag: {Digest: r.Digest, MediaType: r.MediaType, Size: r.Size}}}
	})
	if hasNoSay(err) {
		last, known = p.registry.cfg.Catalog.Tag(p.String(), tag) // others may have known more
	}
	held := upstream.Mute(err) && p.registry.age(last.Checked).Abs() < p.registry.ledger.HoldFor()
	if known && (held || hasNoSay(err) && last.Imported) {
		return Resolution{Resolved: resolvedTo(last), Stale: last.Checked}, p.about(tag, p.unasked(last.Digest, err))
	}
	if hasNoSay(err) && p.importedWithout(tag) {
		err = chunk.ErrNotFound
	}
	return Resolution{Resolved: resolved}, p.about(tag, err)
}

func resolvedTo(t catalog.Tag) upstream.Resolved {
	return upstream.Resolved{Descriptor: ocispec.Descriptor{Digest: t.Digest, MediaType: t.MediaType, Size: t.Size}}
}

// about adds the subject to an error.
func (p *Repository) about(tag string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s:%s: %w", p, tag, err)
}

// setTag records what tag was resolved to.
func (p *Repository) setTag(tag string, desc ocispec.Descriptor, up Upstream) {
	age, _, _ := heard(up)
	if p.registry.forgotten.since(p.Repository, tag, p.registry.ledger.Now().Add(-age)) {
		return // whoever answered has not been told yet
	}
	p.registry.report(p.registry.cfg.Catalog.SetTag(p.String(), tag, catalog.Tag{
		Digest: desc.Digest, MediaType: desc.MediaType, Size: desc.Size, Checked: p.registry.ledger.Now().Add(-age), Imported: p.registry.importedAs(p.Repository, tag, desc.Digest),
	}))
}

func (p *Repository) resolveDigest(ctx context.Context, d digest.Digest) (upstream.Resolved, error) {
	if m, ok := p.manifestMember(d); ok {
		err := p.authorize(ctx, d, "manifest", resolves(d))
		return upstream.Resolved{Descriptor: m}, p.about("@"+string(d), err)
	}
	m, err := p.fetchManifest(ctx, d)
	return m.Resolved, err
}

// resolves is a question whose answer shows that the caller may read d.
func resolves(d digest.Digest) func(context.Context, Upstream) error {
	return func(ctx context.Context, up Upstream) error {
		_, err := up.Resolve(ctx, string(d))
		return err
	}
}

// manifestMember returns what is known of a manifest that the upstream has served
// in this repository.
func (p *Repository) manifestMember(d digest.Digest) (ocispec.Descriptor, bool) {
	m, ok := p.registry.cfg.Catalog.Member(p.String(), d)
	return ocispec.Descriptor{Digest: d, MediaType: m.MediaType, Size: m.Size}, ok && m.Manifest
}

// Manifest returns the exact bytes of a manifest that [Repository.Resolve] has
// returned.
func (p *Repository) Manifest(ctx context.Context, d digest.Digest) (upstream.Manifest, error) {
	if m, ok := p.storedManifest(ctx, d); ok {
		return m, nil
	}
	return p.fetchManifest(ctx, d)
}

// storedManifest returns a manifest of the repository that is stored.
func (p *Repository) storedManifest(ctx context.Context, d digest.Digest) (m upstream.Manifest, ok bool) {
	desc, ok := p.manifestMember(d)
	if !ok {
		return m, false
	}
	raw, err := p.registry.stored(ctx, d, desc.Size)
	return upstream.Manifest{Resolved: upstream.Resolved{Descriptor: desc}, Bytes: raw}, err == nil
}

// fetchManifest gets a manifest from the upstream and keeps it, and what it says
// of the repository.
func (p *Repository) fetchManifest(ctx context.Context, d digest.Digest) (upstream.Manifest, error) {
	var named map[digest.Digest]catalog.Member
	m, err := ask(ctx, p, "manifest bytes "+string(d), func(ctx context.Context, up Upstream) (upstream.Manifest, error) {
		m, err := up.Manifest(ctx, string(d))
		if err != nil {
			return m, err
		}
		named, err = p.record(ctx, m)
		return m, err
	}, func(upstream.Manifest) Facts { return Facts{Members: named} })
	if p.cannotAsk(d, err) {
		m, err = p.borrowManifest(ctx, d, err)
	}
	return m, p.about("@"+string(d), err)
}

// record keeps a manifest that the upstream has sent, and what it says of the
// repository, which it returns.
func (p *Repository) record(ctx context.Context, m upstream.Manifest) (named map[digest.Digest]catalog.Member, err error) {
	named, err = p.registry.parse(ctx, m.Bytes)
	if err != nil {
		return nil, err
	}
	p.shown(m.Digest) // what is stored under this digest is this host's from now on
	p.keep(ctx, m.Descriptor, m.Bytes)
	named[m.Digest] = catalog.Member{MediaType: m.MediaType, Size: m.Size, Manifest: true, Confirmed: true}
	p.registry.report(p.registry.cfg.Catalog.AddMembers(p.String(), named))
	return named, nil
}

// borrowManifest gets a manifest from another member, which has said that it
// belongs here. The upstream failed with err.
func (p *Repository) borrowManifest(ctx context.Context, d digest.Digest, err error) (m upstream.Manifest, _ error) {
	desc, known := p.manifestMember(d)
	if p.peers() == nil || !known || p.unasked(d, err) != nil {
		return m, err
	}
	raw, missing := p.borrowed(ctx, d, desc.Size)
	if missing != nil {
		return m, err
	}
	p.registry.supply(p.Host, d, false)
	p.keep(ctx, desc, raw)
	return upstream.Manifest{Resolved: upstream.Resolved{Descriptor: desc}, Bytes: raw}, nil
}

// authorize returns nil if the caller may read d, which belongs to the repository, else why
// not. The question asks the upstream for the very thing that is wanted, unless it has
// served the caller lately.
func (p *Repository) authorize(ctx context.Context, d digest.Digest, question string, answer func(context.Context, Upstream) error) error {
	if p.registry.ledger.Fresh(p.Host, p.String(), p.caller) {
		return nil
	}
	_, err := ask(ctx, p, question+" "+string(d), func(ctx context.Context, up Upstream) (struct{}, error) {
		return struct{}{}, answer(ctx, up)
	}, func(struct{}) Facts { return Facts{} })
	if !p.cannotAsk(d, err) {
		return err
	}
	return p.unasked(d, err)
}

// cannotAsk reports whether an error means that the upstream has no say about d. Of what was imported
// it has none either while this node may not connect to its address.
func (p *Repository) cannotAsk(d digest.Digest, err error) bool {
	return upstream.Mute(err) || hasNoSay(err) && p.imported(d)
}

// hasNoSay reports whether an error means that the upstream was not asked: it cannot be reached, or
// only at an address that this node does not connect to, or takes no more questions.
func hasNoSay(err error) bool { return upstream.Mute(err) || upstream.Refused(err) }

// unasked returns nil if the caller may be served what is here of d although the
// upstream, which failed with err, cannot be asked.
func (p *Repository) unasked(d digest.Digest, err error) error {
	ledger := p.registry.ledger
	if p.imported(d) || ledger.Holds(p.Host, p.String(), p.caller) {
		return nil
	}
	if challenges := ledger.Challenges(p.String()); p.caller.Anonymous() && len(challenges) > 0 {
		return &challengeError{challenges, err}
	}
	return fmt.Errorf("%w: %w", access.ErrUnchecked, err)
}

// identities returns in whose names the upstream is asked, in order: nobody's or
// the node's own where that may be enough, and the caller's. What everybody may
// read is asked for by nobody, so that many callers ask once.
func (p *Repository) identities() []access.Caller {
	ledger := p.registry.ledger
	switch {
	case p.caller.Anonymous():
		return []access.Caller{{}}
	case ledger.Shared(p.Host) || ledger.Public(p.Host, p.String()):
		return []access.Caller{{}, p.caller}
	}
	return []access.Caller{p.caller}
}

// ask asks the upstream, in the name of whoever gets an answer, and takes note of
// who was served and who was refused. Other members are told of that, and of the
// facts that an answer gives.
func ask[T any](ctx context.Context, p *Repository, question string, answer func(context.Context, Upstream) (T, error), facts func(T) Facts) (v T, err error) {
	for _, as := range p.identities() {
		v, err = askAs(ctx, p, as, question, func(ctx context.Context, up Upstream) (T, error) {
			ctx, from := chunk.WithOrigin(ctx)
			v, err := answer(ctx, up)
			p.heed(as, err, up, from())
			switch {
			case err == nil:
				p.tell(as, up, facts(v))
			case errors.Is(err, chunk.ErrDenied):
				p.tell(as, up, Facts{})
			}
			return v, err
		})
		if !errors.Is(err, chunk.ErrDenied) {
			break
		}
	}
	if hasNoSay(err) {
		p.recall(ctx)
	}
	return v, err
}

// askAs makes callers with the same question in the same name share one answer.
func askAs[T any](ctx context.Context, p *Repository, as access.Caller, question string, answer func(context.Context, Upstream) (T, error)) (T, error) {
	key := strings.Join([]string{p.String(), question, as.Key(), strconv.FormatBool(p.lent)}, "\n")
	a, err := p.registry.questions.Do(ctx, key, askFor, func(ctx context.Context) (any, error) {
		up, err := p.registry.cfg.Upstream(p.Repository, as.Authorization())
		if err != nil {
			return nil, err
		}
		if p.shared() {
			up = &once{up, p, as}
		}
		if peers := p.peers(); peers != nil {
			up = peers.Upstream(p.in(as), up)
		}
		ctx, span := trace.Start(ctx, "ask upstream", otel.SpanKindInternal, attribute.String("oci.repository", p.String()), attribute.String("granary.question", question))
		a, err := answer(ctx, up)
		span.End(err)
		return a, err
	})
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && !upstream.Unreachable(err) {
		err = &upstream.NoAnswerError{Subject: p.String(), Err: err} // the question's own time is over
	}
	v, _ := a.(T) // nil with an error
	return v, err
}

// heed takes note of whether the registry served somebody: from is where the answer comes
// from, unless another member gave it. A parent answers for the registry.
func (p *Repository) heed(as access.Caller, err error, up Upstream, from string) {
	var said *upstream.StatusError
	switch {
	case err == nil:
		if from == upstream.Origin && as.Anonymous() {
			p.registry.open.add(p.String())
		}
		if _, granted, hearsay := heard(up); hearsay || from == upstream.Origin || chunk.ParentOf(from) != "" {
			p.registry.ledger.Allow(p.Host, p.String(), as, granted)
		}
	case errors.As(err, &said) && errors.Is(err, chunk.ErrDenied):
		p.registry.ledger.Deny(p.Host, p.String(), as, said.Header.Values("Www-Authenticate"))
	}
}

// parse returns what a manifest names, wherever in it. One that is not JSON names nothing.
func (r *Registry) parse(ctx context.Context, raw []byte) (map[digest.Digest]catalog.Member, error) {
	if err := r.parsing.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer r.parsing.Release(1)
	refs, err := graph.References(raw)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return members(refs), nil
}

// maxMediaType is how much of a media type is remembered, in bytes (RFC 6838, section 4.2).
const maxMediaType = 255

// members returns what is remembered of descriptors, if their bytes can be checked. What
// stands where the specification says is believed before what is nested.
func members(refs []graph.Reference) map[digest.Digest]catalog.Member {
	named := make(map[digest.Digest]catalog.Member)
	for _, r := range refs {
		_, known := named[r.Digest]
		if r.Malformed || r.Digest.Validate() != nil || len(r.MediaType) > maxMediaType || known && r.Role == graph.Nested {
			continue
		}
		named[r.Digest] = catalog.Member{MediaType: r.MediaType, Size: r.Size}
	}
	return named
}

// stored reads all of a manifest from the store.
func (r *Registry) stored(ctx context.Context, d digest.Digest, size int64) ([]byte, error) {
	if size > upstream.MaxManifestSize {
		return nil, chunk.ErrNotFound
	}
	m, err := chunk.Grid(d, size)
	if err != nil {
		return nil, err
	}
	defer r.cfg.Store.Retain(d, size)() // which also counts as a read if it comes from memory
	raw := make([]byte, 0, size)
	for i := range m.Len() {
		c, err := r.cfg.Store.Get(ctx, m.At(i))
		if err != nil {
			if !errors.Is(err, chunk.ErrNotFound) {
				r.cfg.Report(err)
			}
			return nil, err
		}
		raw = append(raw, c...)
	}
	if m.Len() > 1 && d.Algorithm().FromBytes(raw) != d {
		return nil, chunk.ErrNotFound
	}
	return raw, nil
}

// keep puts a manifest, which has been checked, into the store.
func (p *Repository) keep(ctx context.Context, desc ocispec.Descriptor, raw []byte) {
	m, err := chunk.Grid(desc.Digest, int64(len(raw)))
	if err != nil {
		p.registry.report(err)
		return
	}
	near := p.near(desc.Digest)
	defer near.Retain(desc.Digest, m.Size())()
	for i := range m.Len() {
		c := m.At(i)
		p.registry.report(near.Put(ctx, c, raw[c.Offset:c.Offset+c.Size]))
	}
}
