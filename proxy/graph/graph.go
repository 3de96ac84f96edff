package graph

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Graph is what was found.
type Graph struct {
	// Nodes are all that are there, children first; see the package comment. Whether a
	// required blob is there is not asked: who reads it will find out; see [Graph.Lose].
	Nodes []*Node
	// Problems tell what is not there, in the order of the walk.
	Problems []Problem
}

// Manifests returns the nodes that are manifests, in order.
func (g *Graph) Manifests() []*Node { return g.those(true) }

// Blobs returns the nodes that are no manifests, in order.
func (g *Graph) Blobs() []*Node { return g.those(false) }

func (g *Graph) those(manifests bool) (some []*Node) {
	for _, n := range g.Nodes {
		if n.IsManifest == manifests {
			some = append(some, n)
		}
	}
	return some
}

// Lose makes problems of nodes that turned out not to be there, each for its reason.
func (g *Graph) Lose(lost map[*Node]error) {
	g.Nodes = slices.DeleteFunc(g.Nodes, func(n *Node) bool {
		err, gone := lost[n]
		if gone {
			g.Problems = append(g.Problems, Problem{n, n.Required(), err})
		}
		return gone
	})
}

// Err returns the problems that leave something incomplete as one error, or nil.
func (g *Graph) Err() error {
	var errs []error
	for _, p := range g.Problems {
		if p.Required {
			errs = append(errs, p)
		}
	}
	return errors.Join(errs...)
}

// Node is a manifest or a blob, once for each digest and size.
type Node struct {
	ocispec.Descriptor // as the first reference has it, without data
	// IsManifest says that it is a manifest.
	IsManifest bool
	// Refs are the references to it, at least one, in the order of the walk.
	Refs []Referral
	// Content are the exact bytes of a manifest, and of a blob that a descriptor has with
	// it as data, checked; else nil.
	Content []byte

	below   []*Node // what its content refers to, in order
	depth   int
	image   bool  // it is a root, or an entry of an index that is
	lists   bool  // it is the list of referrers under a tag
	noBlob  bool  // it was looked for as a blob
	err     error // why it is not there
	warning error
}

// Referral says that a node refers to another.
type Referral struct {
	From *Node // nil for a root
	Place
}

func (r Referral) String() string {
	switch {
	case r.From == nil:
		return string(r.Role)
	case r.Role == Tagged:
		return fmt.Sprintf("tag %s of %s", r.Path, r.From.Digest)
	case r.Path == "":
		return fmt.Sprintf("%s of %s", r.Role, r.From.Digest)
	}
	return fmt.Sprintf("%s of %s", r.Path, r.From.Digest)
}

// String names a node and the first that refers to it.
func (n *Node) String() string {
	kind := "blob"
	if n.IsManifest {
		kind = "manifest"
	}
	s := fmt.Sprintf("%s %s (%s", kind, n.Digest, n.Refs[0])
	if more := len(n.Refs) - 1; more > 0 {
		s += fmt.Sprintf(", and %d more", more)
	}
	return s + ")"
}

// Required reports whether anything that refers to the node is incomplete without it.
func (n *Node) Required() bool {
	for _, r := range n.Refs {
		switch r.Role {
		case Root, Config, Manifest:
			return true
		case Layer:
			if !isNondistributable(n.MediaType) {
				return true
			}
		}
	}
	return false
}

// Problem is what a graph lacks. It is an error that says who refers to what.
type Problem struct {
	Node *Node
	// Required says that what refers to the node is incomplete without it.
	Required bool
	Err      error
}

func (p Problem) Error() string { return fmt.Sprintf("%s: %v", p.Node, p.Err) }
func (p Problem) Unwrap() error { return p.Err }

// graph puts the nodes in order.
func (w *walk) graph() *Graph {
	g := &Graph{}
	seen := make(map[*Node]bool)
	var visit func(n *Node)
	visit = func(n *Node) {
		if seen[n] {
			return
		}
		seen[n] = true
		for _, child := range n.below {
			visit(child)
		}
		switch {
		case n.err != nil:
			g.Problems = append(g.Problems, Problem{n, n.Required(), n.err})
			return
		case n.warning != nil:
			g.Problems = append(g.Problems, Problem{n, false, n.warning})
		}
		g.Nodes = append(g.Nodes, n)
	}
	for _, top := range w.tops {
		visit(top)
	}
	return g
}

// dockerSchema1 begins the media types of manifests whose layers have neither size nor
// media type.
const dockerSchema1 = "application/vnd.docker.distribution.manifest.v1+"

func isManifestType(mediaType string) bool {
	switch mediaType {
	case ocispec.MediaTypeImageManifest, "application/vnd.docker.distribution.manifest.v2+json",
		"application/vnd.oci.artifact.manifest.v1+json": // was in image-spec before 1.1.0, and is still found
		return true
	}
	return IsIndex(mediaType) || strings.HasPrefix(mediaType, dockerSchema1)
}

// IsIndex reports whether a media type is that of an index, or of Docker's manifest lists.
func IsIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == "application/vnd.docker.distribution.manifest.list.v2+json"
}

// isBlobType reports whether nothing of a media type is a manifest. Indexes of build caches
// have layers where manifests should be.
func isBlobType(mediaType string) bool {
	for _, prefix := range []string{
		"application/vnd.oci.image.layer.", "application/vnd.oci.image.config.", "application/vnd.oci.empty.",
		"application/vnd.docker.image.rootfs.", "application/vnd.docker.container.image.",
	} {
		if strings.HasPrefix(mediaType, prefix) {
			return true
		}
	}
	return false
}

// isAmbiguous reports whether a media type does not tell manifest from blob.
func isAmbiguous(mediaType string) bool {
	return !isManifestType(mediaType) && !isBlobType(mediaType)
}

// standsForManifest reports whether a reference is taken for one to a manifest at first.
func standsForManifest(r Reference, limits Limits) bool {
	switch {
	case r.Role == Config || r.Role == Layer || isBlobType(r.MediaType):
		return false
	case isManifestType(r.MediaType):
		return r.Role != Nested || r.Size <= limits.ManifestSize
	}
	return r.Role != Nested && r.Size <= limits.ManifestSize
}

// isNondistributable reports whether a layer is one that registries are not given. It may be
// had elsewhere, if one may have it.
func isNondistributable(mediaType string) bool {
	return strings.Contains(mediaType, ".nondistributable.") || strings.Contains(mediaType, ".foreign.")
}
