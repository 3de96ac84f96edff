package node

import (
	"slices"

	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/proxy"
)

// registryLink is what the link to a registry begins with.
const registryLink = "registry "

// served counts bytes of an image that were given to a client or a mount.
func (n *Node) served(i proxy.Image, face, source string, k int64) {
	n.metrics.countServed(face, source, k)
	n.ledger.given(i, n.line(i.Host, source), k)
}

// came counts bytes of an image's blobs that came from a source. Those of a layout on this machine have not moved.
func (n *Node) came(i proxy.Image, source string, k int64) {
	places, _ := n.upstreams.places(i.Host)
	if source != "layout" || !slices.ContainsFunc(places, func(p place) bool { return p.local }) {
		n.ledger.came(i, source, k)
	}
}

// line returns the link that bytes from a registry came over, which are given from a source, or that they would have come over if neither this
// machine nor another member had them: "" is none.
func (n *Node) line(host, source string) string {
	u, name := n.upstreams, chunk.ParentOf(source)
	places, err := u.places(host)
	all := func(is func(place) bool) bool {
		return err == nil && !slices.ContainsFunc(places, func(p place) bool { return !is(p) })
	}
	switch {
	case name != "" && u.parents.Configured(name):
		return source
	case name != "":
		return foundLink
	case all(func(p place) bool { return p.local }):
		return ""
	case u.parents != nil && source != "upstream" && !all(func(p place) bool { return p.layout }):
		if first, answers := u.parents.First(); answers || u.cfg.ParentsOnly {
			return chunk.OfParent(first)
		}
	}
	return registryLink + u.label(host)
}
