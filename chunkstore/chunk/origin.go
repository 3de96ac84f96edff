package chunk

import (
	"context"
	"strings"
)

// An origin travels in the context of a read and is told where each chunk came
// from, as httptrace is told of a connection, so that sources need not say it in
// every answer. One goroutine at a time reads with one origin.
type origin struct{ name string }

type originKey struct{}

// withOrigin returns a context whose reads record where they were answered.
func withOrigin(ctx context.Context) (context.Context, *origin) {
	o := new(origin)
	return context.WithValue(ctx, originKey{}, o), o
}

func setOrigin(ctx context.Context, name string) {
	if o, ok := ctx.Value(originKey{}).(*origin); ok {
		o.name = name
	}
}

// OriginOf returns where the chunk came from that was given last, "upstream" if nobody has said.
func OriginOf(ctx context.Context) string {
	if o, ok := ctx.Value(originKey{}).(*origin); ok && o.name != "" {
		return o.name
	}
	return "upstream"
}

// WithOrigin is for a source that answers from several others at once: it returns a
// context to ask one of them with, and what tells where its last answer came from.
func WithOrigin(ctx context.Context) (context.Context, func() string) {
	ctx, o := withOrigin(ctx)
	return ctx, func() string { return o.name }
}

// SetOrigin says where the chunk that is about to be given came from.
func SetOrigin(ctx context.Context, name string) { setOrigin(ctx, name) }

// Parent begins the name of whatever a parent, a node of another site, has said or sent. Its own name
// follows after a space, where it has one here.
const Parent = "parent"

// OfParent returns the name of what a parent gives.
func OfParent(name string) string { return Parent + " " + name }

// ParentOf returns the name of the parent that an origin is of, "" if it is of none that has one.
func ParentOf(origin string) string {
	name, is := strings.CutPrefix(origin, OfParent(""))
	if !is {
		return ""
	}
	return name
}

// Named returns src with a name: whatever it gives is accounted to that name by
// the readers of a [Blob]. Names are the values of the metrics' source label:
// memory, disk, peer, parent, layout, upstream.
func Named(name string, src Source) Source { return named{src, name} }

// NamedStore is [Named] for a store.
func NamedStore(name string, s Store) Store { return namedStore{named{s, name}, s} }

type named struct {
	src  Source
	name string
}

func (n named) Get(ctx context.Context, ref Ref) ([]byte, error) {
	p, err := n.src.Get(ctx, ref)
	if err == nil {
		setOrigin(ctx, n.name)
	}
	return p, err
}

func (n named) GetRun(ctx context.Context, refs []Ref, yield func(Ref, []byte) error) error {
	return GetRun(ctx, n.src, refs, func(ref Ref, p []byte) error {
		setOrigin(ctx, n.name)
		return yield(ref, p)
	})
}

type namedStore struct {
	named
	store Store
}

func (n namedStore) Put(ctx context.Context, ref Ref, p []byte) error {
	return n.store.Put(ctx, ref, p)
}
