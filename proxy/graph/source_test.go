package graph_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/proxy/graph"
)

const (
	imageType = ocispec.MediaTypeImageManifest
	indexType = ocispec.MediaTypeImageIndex
	layerType = ocispec.MediaTypeImageLayer
	oddType   = "application/vnd.example.odd"
)

// source is a registry in memory. Everything in it has a name, by which tests speak of it.
type source struct {
	manifests, blobs map[digest.Digest][]byte
	tags             map[string]ocispec.Descriptor
	referrers        map[digest.Digest][]ocispec.Descriptor
	names            map[digest.Digest]string
	fail             map[digest.Digest]error

	mu    sync.Mutex
	asked []string
}

func newSource() *source {
	return &source{
		manifests: make(map[digest.Digest][]byte), blobs: make(map[digest.Digest][]byte), tags: make(map[string]ocispec.Descriptor),
		referrers: make(map[digest.Digest][]ocispec.Descriptor), names: make(map[digest.Digest]string), fail: make(map[digest.Digest]error),
	}
}

func (s *source) log(what string, d digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, what+" "+s.names[d])
	return s.fail[d]
}

func (s *source) Manifest(_ context.Context, desc ocispec.Descriptor) ([]byte, error) {
	p, ok := s.manifests[desc.Digest]
	if err := s.log("manifest", desc.Digest); err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("manifest: %w", graph.ErrNotFound)
	}
	return slices.Clone(p), nil
}

func (s *source) Stat(_ context.Context, desc ocispec.Descriptor) (int64, error) {
	p, ok := s.blobs[desc.Digest]
	if err := s.log("stat", desc.Digest); err != nil {
		return 0, err
	}
	if !ok {
		return 0, fmt.Errorf("blob: %w", graph.ErrNotFound)
	}
	return int64(len(p)), nil
}

func (s *source) Referrers(_ context.Context, d digest.Digest) ([]ocispec.Descriptor, error) {
	if s.referrers[d] == nil {
		return nil, graph.ErrNotFound
	}
	return s.referrers[d], nil
}

func (s *source) Resolve(_ context.Context, tag string) (ocispec.Descriptor, error) {
	desc, ok := s.tags[tag]
	if !ok {
		return desc, graph.ErrNotFound
	}
	return desc, nil
}

// blob adds a blob that has its name as content.
func (s *source) blob(name, mediaType string) ocispec.Descriptor {
	desc := s.described(name, mediaType, []byte(name))
	s.blobs[desc.Digest] = []byte(name)
	return desc
}

// fields are those of a manifest.
type fields map[string]any

// manifest adds a manifest.
func (s *source) manifest(name, mediaType string, f fields) ocispec.Descriptor {
	f["mediaType"], f["name"] = mediaType, name
	p, err := json.Marshal(f)
	if err != nil {
		panic(err)
	}
	return s.text(name, mediaType, string(p))
}

// text adds a manifest of any form.
func (s *source) text(name, mediaType, text string) ocispec.Descriptor {
	desc := s.described(name, mediaType, []byte(text))
	s.manifests[desc.Digest] = []byte(text)
	return desc
}

func (s *source) described(name, mediaType string, p []byte) ocispec.Descriptor {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(p), Size: int64(len(p))}
	s.names[desc.Digest] = name
	return desc
}

// image adds an image of a config and layers of which the first letter tells whose they are.
func (s *source) image(name string) ocispec.Descriptor {
	return s.manifest(name, imageType, fields{"config": s.blob(name+".config", ocispec.MediaTypeImageConfig), "layers": list(s.blob(name+".layer", layerType))})
}

func (s *source) index(name string, entries ...any) ocispec.Descriptor {
	return s.manifest(name, indexType, fields{"manifests": entries})
}

// without removes things from the source.
func (s *source) without(gone ...ocispec.Descriptor) {
	for _, d := range gone {
		delete(s.blobs, d.Digest)
		delete(s.manifests, d.Digest)
	}
}

func list(descs ...any) []any { return descs }

// with returns a descriptor with other fields, known or not.
func with(desc ocispec.Descriptor, more fields) fields {
	p, _ := json.Marshal(desc)
	f := make(fields)
	_ = json.Unmarshal(p, &f)
	for k, v := range more {
		f[k] = v
	}
	return f
}

// on returns an entry of an index for a platform, with whatever else stands in that.
func on(desc ocispec.Descriptor, platform string, more fields) fields {
	p, err := graph.ParsePlatform(platform)
	if err != nil {
		panic(err)
	}
	f := fields{"os": p.OS, "architecture": p.Architecture}
	if p.Variant != "" {
		f["variant"] = p.Variant
	}
	for k, v := range more {
		f[k] = v
	}
	return with(desc, fields{"platform": f})
}

// told is a graph as tests write it down: names in order, manifests in brackets.
func (s *source) told(g *graph.Graph) string {
	var names []string
	for _, n := range g.Nodes {
		name := s.names[n.Digest]
		if n.IsManifest {
			name = "[" + name + "]"
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

// lacked are a graph's problems: what is required with an exclamation mark.
func (s *source) lacked(g *graph.Graph) string {
	var names []string
	for _, p := range g.Problems {
		name := s.names[p.Node.Digest]
		if p.Required {
			name += "!"
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

func walk(t *testing.T, s *source, opts graph.Options, roots ...ocispec.Descriptor) *graph.Graph {
	t.Helper()
	g, err := graph.Walk(t.Context(), s, roots, opts)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// refused walks what cannot be walked.
func refused[E error](t *testing.T, s *source, opts graph.Options, root ocispec.Descriptor) (e E) {
	t.Helper()
	g, err := graph.Walk(t.Context(), s, []ocispec.Descriptor{root}, opts)
	if !errors.As(err, &e) {
		t.Fatalf("got %v, %v; want a %T", g, err, e)
	}
	return e
}
