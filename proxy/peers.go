package proxy

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/toc"
)

// Peers are the other members of a cluster. What they are asked is never asked on
// by them (see [Registry.As]).
type Peers interface {
	// Alone reports whether there are no others now.
	Alone() bool
	// StripeSize returns the size, in bytes, of the pieces of a blob of total bytes that have owners of their own.
	StripeSize(total int64) int64
	// Source returns blobs of a repository as the cluster has them. own is where this
	// node gets what it answers for, and what nobody else can get for it.
	Source(in In, own chunk.Source) chunk.Source
	// First returns blobs of a repository as the owner of their first stripe has
	// them. [chunk.ErrNotFound] says that there is no other such member.
	First(in In) chunk.Source
	// Held returns blobs of a registry that others have all of.
	Held(host string) chunk.Source
	// Own reports whether a chunk that is stored is known to be from the upstream
	// directly, see [Config.Direct].
	Own(host string, ref chunk.Ref) bool
	// Vouched reports whether a chunk that is stored may be lent: somebody has signed
	// for it, or this node can.
	Vouched(host string, ref chunk.Ref) bool
	// Fetched is told of each chunk that came from a host itself, or from a parent; "" is the host.
	Fetched(host string, ref chunk.Ref, p []byte, parent string)
	// Upstream returns up with questions answered by the member that asks for all,
	// if that is not this node.
	Upstream(in In, up Upstream) Upstream
	// Recall asks others what they know of a repository, without the upstream being
	// asked, and calls learn with the facts of each: those of [Registry.Facts]. It
	// takes a second at most.
	Recall(ctx context.Context, in In, caller string, learn func(facts []byte))
	// Profiles asks the same members for the access profile of an image, and calls learn
	// with that of each.
	Profiles(ctx context.Context, in In, image digest.Digest, learn func(profile []byte))
	// Provided reports whether another member is known to have all of a blob.
	Provided(ctx context.Context, host string, d digest.Digest) bool
	// Keeps reports whether this node keeps what is known of a repository, or did until
	// lately.
	Keeps(in In) bool
	// Tell tells those who keep what is known of a repository what is new.
	Tell(in In, facts []byte)
	// Derived returns an object of a kind that is derived from a layer, as the member
	// has it that answers for it, and makes it if need be. The
	// error is [chunk.ErrNotFound] if that is this node.
	Derived(ctx context.Context, in In, kind string, of LayerRef) ([]byte, error)
	// Derives reports whether it is this node that answers for such an object.
	Derives(kind string, layer digest.Digest) bool
	// Digests returns the digests of n chunks of a blob, from chunk first on, as a member
	// has them that has all of it, and who that is. The error is [chunk.ErrNotFound] if nobody
	// has them.
	Digests(ctx context.Context, host string, m *chunk.Map, first, n int) (all chunk.Digests, giver string, err error)
	// Mapped is told of each chunk that is kept because of the digest, ref's, that giver has
	// given. It reports whether giver is believed.
	Mapped(host string, ref chunk.Ref, giver string) bool
	// Rebuild has the member that does that for all make a layer of a repository again, see package rebuild, of
	// older ones that this node has, and of what others have. It reports whether all of it is there
	// now. The error is [chunk.ErrNotFound] if that member is this node.
	Rebuild(ctx context.Context, in In, layer chunkstore.Whole, old []chunkstore.Whole) (made bool, err error)
	// Content returns an extent of a file, as Derived does.
	Content(ctx context.Context, in In, of LayerRef, path string, x toc.Extent) ([]byte, error)
}

// LayerRef names a layer, and the manifest that says more of it, if there is one.
type LayerRef struct{ Layer, Manifest digest.Digest }

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
	return p.registry.age(best)
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

// MakeFor returns a repository as another member reads it that has something made of
// its layers. Its chunks and questions are those of this node: a member that is asked
// for them makes nothing for it, so that nobody waits for itself.
func (r *Registry) MakeFor(in In) (*Repository, error) {
	p, err := r.As(in)
	if err == nil {
		p.lent, p.maker = false, true
	}
	return p, err
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
