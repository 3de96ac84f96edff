package graph

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/proxy/ref"
)

// ErrNotFound says that a [Source] or [Finder] does not have what it was asked for. It is
// the only error that says so.
var ErrNotFound = errors.New("not found")

// Source is where a graph is read from. It may be asked for several things at once. An
// error other than [ErrNotFound] ends the walk.
type Source interface {
	// Manifest returns the exact bytes of a manifest, which are the walk's from then on. It
	// may lie: the walk compares them with digest and size. It reads no more than it has
	// to for that.
	Manifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
	// Stat returns the size of a blob, in bytes. A source that does not tell manifests from
	// blobs returns that of either.
	Stat(ctx context.Context, desc ocispec.Descriptor) (int64, error)
}

// Options say what is walked. The zero is all that the roots refer to.
type Options struct {
	// Platform chooses one image of each index: the first that is for it. Only that is
	// walked, with all that it refers to and what stands in its entry, and what the
	// index refers to outside of its manifests. The index then is sparse: it names
	// manifests that are not in the graph. Entries that name no platform are walked where none
	// names the one that is wanted. Of a Platform, what is empty means any. nil is for all.
	Platform *ocispec.Platform
	// Prefer are entries of indexes that are taken for Platform before others that are for it
	// too. Without a Platform they mean nothing.
	Prefer []digest.Digest
	// Referrers finds what refers to each manifest of the graph. nil leaves that out.
	Referrers Finder
	// Except lists roles that are not walked.
	Except []Role
	// Unknown reports whether an error only leaves it open if something is there. What is not
	// required then is a problem of the graph, as if it were not. nil is for no error.
	Unknown func(error) bool
	// Limits bound the graph.
	Limits Limits
	// Parallel is how many questions the source is asked at once; 0 is 4.
	Parallel int
}

// Limits bound a graph. A zero is the default.
type Limits struct {
	Nodes         int   // 32,768
	Depth         int   // of a node below the nearest root, 16
	ManifestSize  int64 // in bytes, 4*1048*1048: as much as containerd accepts
	ManifestBytes int64 // of all manifests together, 64 MiB: they are held in memory
}

func (l Limits) orDefault() Limits {
	return Limits{
		Nodes: orDefault(l.Nodes, 32<<10), Depth: orDefault(l.Depth, 16),
		ManifestSize: orDefault(l.ManifestSize, 4*1048*1048), ManifestBytes: orDefault(l.ManifestBytes, 64<<20),
	}
}

func orDefault[T int | int64](v, otherwise T) T {
	if v == 0 {
		return otherwise
	}
	return v
}

// LimitError says that a graph is larger than its limits.
type LimitError struct {
	Digest digest.Digest // of the manifest that goes beyond, "" if it is not known
	Reason string
}

func (e *LimitError) Error() string {
	if e.Digest == "" {
		return e.Reason
	}
	return string(e.Digest) + ": " + e.Reason
}

// WrongError says that something is not what refers to it says.
type WrongError struct {
	Digest digest.Digest
	Reason string
}

func (e *WrongError) Error() string { return string(e.Digest) + ": " + e.Reason }

// Walk reads the graph below roots. A root that has data is not asked for.
//
// What the source does not have is a problem of the graph, and no error. An error says that
// the graph is not known: the source cannot be asked, a required manifest has wrong bytes or
// is none, a limit was reached, or no index has an image for the platform.
func Walk(ctx context.Context, src Source, roots []ocispec.Descriptor, opts Options) (*Graph, error) {
	w := &walk{src: src, opts: opts, limits: opts.Limits.orDefault(), nodes: make(map[identity]*Node)}
	for _, root := range roots {
		if err := w.refer(nil, Reference{Descriptor: root, Place: Place{Role: Root}, entry: -1, Malformed: !wellFormed(root)}); err != nil {
			return nil, err
		}
	}
	for len(w.next) > 0 {
		level := w.next
		w.next = nil
		found, err := w.lookAll(ctx, level)
		if err != nil {
			return nil, err
		}
		for i, n := range level {
			if err := w.take(n, found[i]); err != nil {
				return nil, err
			}
		}
	}
	if err := w.platforms.err(opts.Platform); err != nil {
		return nil, err
	}
	return w.graph(), nil
}

// walk is a walk under way. It goes level by level: all nodes of one are looked at side by
// side, and then taken in order, so that what comes of them depends on no clock. But for
// src nothing here is used by two goroutines at a time.
type walk struct {
	src    Source
	opts   Options
	limits Limits

	nodes     map[identity]*Node
	tops      []*Node // roots, and what was found to refer to something
	next      []*Node // the level to come
	bytes     int64   // of manifests
	platforms platforms
}

// identity is what makes a node: of two sizes for a digest one is wrong, and must not pass for
// the other.
type identity struct {
	digest    digest.Digest
	size      int64
	malformed int // not 0: it stands for what is no descriptor, and is like no other
}

func wellFormed(d ocispec.Descriptor) bool {
	err := d.Digest.Validate()
	return d.Size >= 0 && (err == nil || errors.Is(err, digest.ErrDigestUnsupported))
}

// refer adds a reference, and what it refers to if that is new. from is nil for a root.
func (w *walk) refer(from *Node, r Reference) error {
	if slices.Contains(w.opts.Except, r.Role) {
		return nil
	}
	n, isNew := w.node(from, r)
	n.Refs = append(n.Refs, Referral{from, r.Place})
	n.image = n.image || r.Role == Root || r.Role == Manifest && from.image
	if from != nil && (from.lists || r.Role != Referrer && r.Role != Tagged) {
		from.below = append(from.below, n)
	} else {
		w.tops = append(w.tops, n)
	}
	if isNew {
		if err := w.bound(from, n); err != nil {
			return err
		}
	}
	if r.Malformed {
		n.err = &WrongError{r.Digest, "this is no descriptor"}
		return nil
	}
	w.useData(n, r)
	isManifest := standsForManifest(r, w.limits)
	switch {
	case isNew:
		n.IsManifest = isManifest
		return w.enqueue(n)
	case isManifest && !n.IsManifest: // others have taken it for a blob
		n.IsManifest, n.MediaType = true, r.MediaType
		return w.enqueue(n)
	}
	return nil
}

// node returns what is referred to, and whether it is new.
func (w *walk) node(from *Node, r Reference) (n *Node, isNew bool) {
	id := identity{digest: r.Digest, size: r.Size}
	if r.Malformed {
		id = identity{malformed: len(w.nodes) + 1}
	}
	if n, known := w.nodes[id]; known {
		return n, false
	}
	n = &Node{Descriptor: r.Descriptor}
	n.Data = nil
	if from != nil {
		n.depth = from.depth + 1
		n.lists = r.Role == Tagged && r.Path == ref.FallbackTag(from.Digest)
	}
	w.nodes[id] = n
	return n, true
}

// useData takes the content that a descriptor has with it.
func (w *walk) useData(n *Node, r Reference) {
	switch {
	case r.Data == nil || n.Content != nil:
	case verify(r.Descriptor, r.Data) == nil:
		n.Content = r.Data
	default:
		n.warning = &WrongError{n.Digest, "the data that is embedded for it is something else"}
	}
}

// verify returns nil if p is what a descriptor says.
func verify(desc ocispec.Descriptor, p []byte) error {
	if err := desc.Digest.Validate(); err != nil {
		return err
	}
	if int64(len(p)) != desc.Size {
		return &WrongError{desc.Digest, fmt.Sprintf("it has %d bytes, not the %d that are stated", len(p), desc.Size)}
	}
	if got := desc.Digest.Algorithm().FromBytes(p); got != desc.Digest {
		return &WrongError{desc.Digest, fmt.Sprintf("its digest is %s", got)}
	}
	return nil
}

// bound holds a new node against the limits. from is to blame.
func (w *walk) bound(from, n *Node) error {
	blame := n
	if from != nil {
		blame = from
	}
	switch {
	case len(w.nodes) > w.limits.Nodes:
		return &LimitError{blame.Digest, fmt.Sprintf("with what it refers to there are more than %d manifests and blobs", w.limits.Nodes)}
	case n.depth > w.limits.Depth:
		return &LimitError{blame.Digest, fmt.Sprintf("what it refers to is nested more than %d deep", w.limits.Depth)}
	}
	return nil
}

// enqueue has a node looked at with the next level.
func (w *walk) enqueue(n *Node) error {
	if err := n.Digest.Validate(); err != nil {
		n.err = fmt.Errorf("its bytes cannot be checked: %w", err)
		return nil
	}
	w.next = append(w.next, n)
	if !n.IsManifest {
		return nil
	}
	w.bytes += n.Size
	switch {
	case n.Size > w.limits.ManifestSize:
		return &LimitError{n.Digest, fmt.Sprintf("%d bytes are more than a manifest may have (%d)", n.Size, w.limits.ManifestSize)}
	case w.bytes > w.limits.ManifestBytes:
		return &LimitError{n.Digest, fmt.Sprintf("with it the manifests have more than %d bytes together", w.limits.ManifestBytes)}
	case strings.HasPrefix(n.MediaType, dockerSchema1):
		return &WrongError{n.Digest, "a manifest of Docker's schema 1 does not describe its layers"}
	}
	return nil
}

// finding is what the source says of a node.
type finding struct {
	asked     bool // for a manifest
	manifest  bool // it is one
	again     bool // it is no blob, and may be a manifest
	content   []byte
	err       error
	referrers []Reference
}

// lookAll looks at the nodes of a level side by side. Errors that end the walk are returned,
// the first in order.
func (w *walk) lookAll(ctx context.Context, level []*Node) ([]finding, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := make([]finding, len(level))
	turn := make(chan struct{}, orDefault(w.opts.Parallel, 4))
	var all sync.WaitGroup
	for i, n := range level {
		turn <- struct{}{}
		all.Go(func() {
			defer func() { <-turn }()
			found[i] = w.look(ctx, n)
			if found[i].err != nil && !w.survives(n, found[i].err) {
				cancel()
			}
		})
	}
	all.Wait()
	var ended error
	for i, f := range found {
		if f.err == nil || w.survives(level[i], f.err) {
			continue
		}
		if ended == nil || errors.Is(ended, context.Canceled) { // others are cancelled by the one that failed
			ended = fmt.Errorf("%s: %w", level[i], f.err)
		}
	}
	return found, ended
}

// survives reports whether a walk goes on without a node.
func (w *walk) survives(n *Node, err error) bool {
	var wrong *WrongError
	switch {
	case errors.Is(err, ErrNotFound):
		return true
	case n.Required():
		return false
	}
	return errors.As(err, &wrong) || w.opts.Unknown != nil && w.opts.Unknown(err)
}

// look asks the source about a node.
func (w *walk) look(ctx context.Context, n *Node) (f finding) {
	f = w.find(ctx, n)
	f.asked = n.IsManifest
	if f.err == nil && f.manifest && w.opts.Referrers != nil && !n.lists {
		f.referrers, f.err = discover(ctx, w.opts.Referrers, n.Digest)
	}
	return f
}

func (w *walk) find(ctx context.Context, n *Node) (f finding) {
	switch {
	case ctx.Err() != nil:
		return finding{err: ctx.Err()}
	case n.Content != nil:
		return finding{manifest: n.IsManifest, content: n.Content}
	case n.IsManifest:
		f.manifest = true
		f.content, f.err = w.manifest(ctx, n)
		if errors.Is(f.err, ErrNotFound) && isAmbiguous(n.MediaType) && !n.noBlob {
			f = finding{err: w.stat(ctx, n)}
		}
	case !n.Required(): // it is a reference only if it resolves
		f.err = w.stat(ctx, n)
		f.again = errors.Is(f.err, ErrNotFound) && isAmbiguous(n.MediaType) && n.Size <= w.limits.ManifestSize
	}
	return f
}

func (w *walk) manifest(ctx context.Context, n *Node) ([]byte, error) {
	content, err := w.src.Manifest(ctx, n.Descriptor)
	if err == nil {
		err = verify(n.Descriptor, content)
	}
	return content, err
}

func (w *walk) stat(ctx context.Context, n *Node) error {
	size, err := w.src.Stat(ctx, n.Descriptor)
	if err == nil && size != n.Size {
		err = &WrongError{n.Digest, fmt.Sprintf("it has %d bytes, not the %d that are stated", size, n.Size)}
	}
	return err
}

// take takes over what the source says of a node.
func (w *walk) take(n *Node, f finding) error {
	switch {
	case f.asked != n.IsManifest:
		return nil // another node of the level has said what it is, and it is looked at again
	case f.again:
		n.IsManifest, n.noBlob = true, true
		return w.enqueue(n)
	}
	if n.err = f.err; f.err != nil {
		return nil
	}
	if n.IsManifest = f.manifest; !f.manifest {
		return nil
	}
	n.Content = f.content
	refs, err := w.references(n)
	if err != nil {
		return err
	}
	for _, r := range refs {
		if err := w.refer(n, r); err != nil {
			return err
		}
	}
	for _, r := range f.referrers {
		if err := w.refer(n, r); err != nil {
			return err
		}
	}
	return nil
}

// references returns what a manifest refers to, as far as it is walked.
func (w *walk) references(n *Node) ([]Reference, error) {
	if isManifestType(n.MediaType) && !json.Valid(n.Content) {
		return nil, &WrongError{n.Digest, "the manifest is not JSON"}
	}
	refs, err := References(n.Content)
	var limit *LimitError
	if errors.As(err, &limit) {
		limit.Digest = n.Digest
	}
	if err != nil {
		return nil, err
	}
	if n.lists {
		for i := range refs {
			if refs[i].Role == Manifest {
				refs[i].Role = Referrer
			}
		}
		return refs, nil
	}
	return w.platforms.choose(w.opts, n, refs), nil
}
