package main

import (
	"encoding/json"
	"iter"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/ref"
)

// referrerList is the index of what refers to a manifest, under that one's fallback tag
// (distribution-spec, "Referrers Tag Schema").
type referrerList struct {
	ocispec.Descriptor // with its bytes as data if it was made here
	tag                string
}

// referrerLists returns a list for each manifest of a graph that others refer to: the
// registry's own if that has all of them, else one that is made.
func referrerLists(g *graph.Graph) (lists []referrerList) {
	theirs := make(map[*graph.Node]*graph.Node) // the registry's list, by what it is about
	isList := make(map[*graph.Node]bool)
	for n, r := range referrals(g) {
		if r.Role == graph.Tagged && r.Path == ref.FallbackTag(r.From.Digest) {
			theirs[r.From], isList[n] = n, true
		}
	}
	below := make(map[*graph.Node][]*graph.Node) // what refers to a manifest, or is in a list
	for n, r := range referrals(g) {
		isReferrer := r.Role == graph.Referrer || r.Role == graph.Manifest && isList[r.From]
		if isReferrer && !slices.Contains(below[r.From], n) {
			below[r.From] = append(below[r.From], n)
		}
	}
	for _, subject := range g.Manifests() {
		if isList[subject] {
			continue // what is in it refers to something else
		}
		list, all := theirs[subject], slices.Clone(below[subject])
		for _, n := range below[list] {
			if !slices.Contains(all, n) {
				all = append(all, n)
			}
		}
		tag := ref.FallbackTag(subject.Digest)
		switch {
		case list != nil && len(all) == len(below[list]):
			lists = append(lists, referrerList{list.Descriptor, tag})
		case len(all) > 0:
			lists = append(lists, referrerList{listOf(all), tag})
		}
	}
	return lists
}

// referrals are the references to manifests, in order.
func referrals(g *graph.Graph) iter.Seq2[*graph.Node, graph.Referral] {
	return func(yield func(*graph.Node, graph.Referral) bool) {
		for _, n := range g.Manifests() {
			for _, r := range n.Refs {
				if !yield(n, r) {
					return
				}
			}
		}
	}
}

// listOf makes a list of referrers.
func listOf(all []*graph.Node) ocispec.Descriptor {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, n := range all {
		index.Manifests = append(index.Manifests, asReferrer(n))
	}
	p, _ := json.Marshal(index) // descriptors are always encoded
	return ocispec.Descriptor{MediaType: index.MediaType, Digest: digest.FromBytes(p), Size: int64(len(p)), Data: p}
}

// asReferrer describes a manifest as lists of referrers do (distribution-spec, "Listing
// Referrers"): its type is that of its configuration if it has none, and the annotations are
// its own.
func asReferrer(n *graph.Node) ocispec.Descriptor {
	var m struct {
		ArtifactType string              `json:"artifactType"`
		Config       *ocispec.Descriptor `json:"config"`
		Annotations  map[string]string   `json:"annotations"`
	}
	_ = json.Unmarshal(n.Content, &m) // what is of another form has none of these
	if m.ArtifactType == "" && m.Config != nil {
		m.ArtifactType = m.Config.MediaType
	}
	return ocispec.Descriptor{MediaType: n.MediaType, Digest: n.Digest, Size: n.Size, ArtifactType: m.ArtifactType, Annotations: m.Annotations}
}
