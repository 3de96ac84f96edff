package proxy

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// Peers are the other members of a cluster. What they are asked is never asked on
// by them (see [Registry.As]).
type Peers interface {
	// Alone reports whether there are no others now.
	Alone() bool
	// Source returns blobs of a repository as the cluster has them. own is where this
	// node gets what it answers for, and what nobody else can get for it.
	Source(in In, own chunk.Source) chunk.Source
	// First returns blobs of a repository as the owner of their first stripe has
	// them. [chunk.ErrNotFound] says that there is no other such member.
	First(in In) chunk.Source
	// Held returns blobs of a registry that others have all of.
	Held(host string) chunk.Source
	// Own reports whether a chunk that is stored is known to be from the upstream
	// directly.
	Own(host string, ref chunk.Ref) bool
	// Vouched reports whether a chunk that is stored may be lent: somebody has signed
	// for it, or this node can.
	Vouched(host string, ref chunk.Ref) bool
	// Fetched is told of each chunk that came from a host itself.
	Fetched(host string, ref chunk.Ref, p []byte)
	// Upstream returns up with questions answered by the member that asks for all,
	// if that is not this node.
	Upstream(in In, up Upstream) Upstream
	// Recall asks others what they know of a repository, without the upstream being
	// asked, and calls learn with the facts of each: those of [Registry.Facts]. It
	// takes a second at most.
	Recall(ctx context.Context, in In, caller string, learn func(facts []byte))
	// Tell tells those who keep what is known of a repository what is new.
	Tell(in In, facts []byte)
}

// In is a repository, and in whose name it is read.
type In struct {
	ref.Repository
	Caller access.Caller
	// Itself says that the node's own credentials are for everybody who asks it.
	Itself bool
	// First says that who is asked is taken for the owner of a blob's first stripe.
	First bool
}

// ErrOthersCredentials says that a member asks for what this node reads with
// credentials of its own, which are not for that member's users.
var ErrOthersCredentials = errors.New("this node's credentials are not for other nodes")

// hearsay is an upstream that others may have asked.
type hearsay interface {
	// Heard returns for how long its last answer has been known, and that the
	// upstream served whoever asks; and whether another member gave it.
	Heard() (age, granted time.Duration, heard bool)
}

func heard(up Upstream) (age, granted time.Duration, ok bool) {
	if h, is := up.(hearsay); is {
		return h.Heard()
	}
	return 0, 0, false
}

// Granted returns how long ago the upstream last served whoever reads the
// repository, as far as that is known.
func (p *Repository) Granted() time.Duration {
	best := time.Time{}
	for _, c := range []access.Caller{{}, p.caller} {
		if g, ok := p.registry.ledger.Word(p.Host, p.String(), c); ok && !g.Denied && g.Checked.After(best) {
			best = g.Checked
		}
	}
	return time.Since(best)
}

// As returns a repository as another member reads it, for a client of its own:
// no further member is asked. A credential of this node's own is for those alone
// whose nodes have one for all, too.
func (r *Registry) As(in In) (*Repository, error) {
	if r.ledger.Shared(in.Host) && !in.Itself {
		return nil, ErrOthersCredentials
	}
	return &Repository{Repository: in.Repository, registry: r, caller: in.Caller, lent: true, first: in.First}, nil
}

// in says in whose name this node asks other members.
func (p *Repository) in(as access.Caller) In {
	return In{Repository: p.Repository, Caller: as, Itself: p.registry.ledger.Shared(p.Host)}
}

// peers returns the other members, or nil if they are not to be asked.
func (p *Repository) peers() Peers {
	if p.lent {
		return nil
	}
	return p.registry.cfg.Peers
}

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
	return askOnce(ctx, o, "resolve "+reference, func(ctx context.Context) (upstream.Resolved, error) {
		if last, ok := p.registry.cfg.Catalog.Tag(p.String(), reference); ok && atOnce(last.Checked) && o.served() {
			return resolvedTo(last), nil
		}
		resolved, err := o.Upstream.Resolve(ctx, reference)
		if err == nil && ref.IsTag(reference) {
			p.heed(o.as, nil, o.Upstream)
			p.setTag(reference, resolved.Descriptor, o.Upstream)
		}
		return resolved, err
	})
}

// Stat implements [Upstream], as Resolve does.
func (o *once) Stat(ctx context.Context, d digest.Digest) (int64, error) {
	p := o.repository
	return askOnce(ctx, o, "stat "+string(d), func(ctx context.Context) (int64, error) {
		m, known := p.registry.cfg.Catalog.Member(p.String(), d)
		if known && m.Confirmed && o.served() {
			return m.Size, nil
		}
		size, err := o.Upstream.Stat(ctx, d)
		if err == nil {
			p.heed(o.as, nil, o.Upstream)
			p.confirm(d, m, known, size)
		}
		return size, err
	})
}

// Manifest implements [Upstream].
func (o *once) Manifest(ctx context.Context, reference string) (upstream.Manifest, error) {
	return askOnce(ctx, o, "manifest "+reference, func(ctx context.Context) (upstream.Manifest, error) { return o.Upstream.Manifest(ctx, reference) })
}

// served reports whether the upstream has served whoever asks just now.
func (o *once) served() bool {
	word, ok := o.repository.registry.ledger.Word(o.repository.Host, o.repository.String(), o.as)
	return ok && !word.Denied && atOnce(word.Checked)
}

func askOnce[T any](ctx context.Context, o *once, question string, answer func(context.Context) (T, error)) (T, error) {
	key := strings.Join([]string{"once", o.repository.String(), o.as.Key(), question}, "\n")
	a, err := o.repository.registry.questions.ask(ctx, key, func(ctx context.Context) (any, error) { return answer(ctx) })
	v, _ := a.(T) // nil when nobody waited for it
	return v, err
}

// MayLend reports whether what is stored of a blob is a host's too.
func (r *Registry) MayLend(host string, d digest.Digest) bool { return r.mayShare(host, d) }

// Lend yields chunks of a blob that are stored, for another member. They must be
// host's, as far as that is known here. [chunk.ErrNotFound] says that one of them
// is not.
func (r *Registry) Lend(ctx context.Context, host string, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	from := &Repository{Repository: ref.Repository{Host: host}, registry: r}
	for _, ref := range refs {
		b, err := from.storedFor(ctx, ref)
		if err != nil {
			return err
		}
		if err := yield(ref, b); err != nil {
			return err
		}
	}
	return nil
}

// storedFor returns a stored chunk, or one of another blob that has the digest by which it
// is asked for. Nothing is stored for that: the digest is the asker's word alone.
func (p *Repository) storedFor(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	want := ref.Digest
	ref.Digest = ""
	b, err := p.near(ref.Blob).Get(ctx, ref)
	if want == "" || err == nil && digest.FromBytes(b) == want {
		return b, err
	}
	b, other, err := p.registry.cfg.Store.Find(ctx, want)
	if err == nil && (other.Size != ref.Size || !p.registry.mayShare(p.Host, other.Blob)) {
		err = chunk.ErrNotFound
	}
	return b, err
}

// Fetch yields chunks of a blob for another member, which has seen that its client
// may read it: what is stored, what others hold, else what the upstream sends.
func (p *Repository) Fetch(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	if len(refs) == 0 {
		return nil
	}
	d, total := refs[0].Blob, refs[0].Total
	m, err := chunk.Grid(d, total)
	if err != nil {
		return err
	}
	far, err := p.far(d)
	if err != nil {
		return err
	}
	owned, err := p.owns(ctx, m, far)
	if err != nil {
		return err
	}
	defer p.registry.cfg.Store.Retain(d, total)()
	src, _ := p.source(d, owned, far)
	for i := range refs {
		refs[i].Digest = "" // which is the asker's word, see storedFor
	}
	return chunk.GetRun(ctx, src, refs, yield)
}

// inOne gets blobs from an upstream. Of a registry that sends no parts of blobs all
// members get them from the one that reads the whole: the owner of the first stripe.
type inOne struct {
	far   chunk.Source
	peers Peers
	in    In
	first bool // this node is it, at least for who asks
}

func (s *inOne) Get(ctx context.Context, ref chunk.Ref) (p []byte, err error) {
	err = s.GetRun(ctx, []chunk.Ref{ref}, func(got chunk.Ref, q []byte) error {
		if got.Offset == ref.Offset {
			p = q
		}
		return nil
	})
	return p, err
}

func (s *inOne) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	if s.first || len(refs) == 0 || refs[0].Total <= chunk.StripeSize || s.peers.Alone() {
		return chunk.GetRun(ctx, s.far, refs, yield)
	}
	given := 0
	count := func(ref chunk.Ref, p []byte) error {
		if given < len(refs) && ref.Offset == refs[given].Offset {
			given++
		}
		return yield(ref, p)
	}
	err := chunk.GetRun(upstream.RangesOnly(ctx), s.far, refs, count)
	if !errors.Is(err, upstream.ErrNoRanges) {
		return err
	}
	err = chunk.GetRun(ctx, s.peers.First(s.in), refs[given:], count)
	if err == nil || ctx.Err() != nil || given == len(refs) {
		return err
	}
	return chunk.GetRun(ctx, s.far, refs[given:], yield)
}

// strict returns the chunks of a blob that this node has fetched itself, and fetches
// the others. What it fetches is kept, but takes the place of nothing that is stored.
func (p *Repository) strict(d digest.Digest, far chunk.Source) chunk.Source {
	r := p.registry
	return chunk.Cache(fetchedOnly{p.near(d), r.cfg.Peers, p.Host}, far, r.flights.of(flightKey{p.Host, apartFromStore}), r.cfg.Report)
}

// fetchedOnly is the store as far as it holds what this node has fetched itself.
type fetchedOnly struct {
	ours
	peers Peers
	host  string
}

func (s fetchedOnly) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	if !ref.Whole() && !s.peers.Own(s.host, ref) {
		return nil, chunk.ErrNotFound
	}
	return s.ours.Get(ctx, ref)
}

func (s fetchedOnly) Put(ctx context.Context, ref chunk.Ref, p []byte) error {
	if _, err := s.ours.Get(ctx, ref); !errors.Is(err, chunk.ErrNotFound) {
		return err // somebody else's is there
	}
	s.peers.Fetched(s.host, ref, p)
	return s.ours.Put(ctx, ref, p)
}

// lendable is the store as far as what it holds may be lent. The rest, as after a
// crash, is fetched once more, by this node for all who ask.
type lendable struct {
	ours
	peers Peers
	host  string
}

func (s lendable) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	if !s.peers.Vouched(s.host, ref) {
		return nil, chunk.ErrNotFound
	}
	return s.ours.Get(ctx, ref)
}

// recorded tells the other members' keeper of claims what the upstream has sent.
type recorded struct {
	src   chunk.Source
	peers Peers
	host  string
}

func (s recorded) Get(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	p, err := s.src.Get(ctx, ref)
	if err == nil {
		s.peers.Fetched(s.host, ref, p)
	}
	return p, err
}

func (s recorded) GetRun(ctx context.Context, refs []chunk.Ref, yield func(chunk.Ref, []byte) error) error {
	return chunk.GetRun(ctx, s.src, refs, func(ref chunk.Ref, p []byte) error {
		s.peers.Fetched(s.host, ref, p)
		return yield(ref, p)
	})
}

// borrowed reads all of a manifest that other members have, while the upstream
// cannot be asked.
func (p *Repository) borrowed(ctx context.Context, d digest.Digest, size int64) ([]byte, error) {
	m, err := chunk.Grid(d, size)
	if err != nil {
		return nil, err
	}
	var raw []byte
	var refs []chunk.Ref
	for i := range m.Len() {
		refs = append(refs, m.At(i))
	}
	err = chunk.GetRun(ctx, chunk.Verify("peer", p.peers().Held(p.Host)), refs, func(_ chunk.Ref, c []byte) error {
		raw = append(raw, c...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if d.Algorithm().FromBytes(raw) != d {
		return nil, chunk.ErrNotFound
	}
	return raw, nil
}
