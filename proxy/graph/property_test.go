package graph_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/proxy/graph"
)

// random makes a graph of manifests and blobs that refer to what was made before them, and
// of referrers that go any way, in cycles too. below is what each content refers to.
func random(s *source, rng *rand.Rand) (all []ocispec.Descriptor, below map[digest.Digest][]digest.Digest) {
	below = make(map[digest.Digest][]digest.Digest)
	fieldNames := []string{"layers", "manifests", "odd", "blobs"}
	for i := range 2 + rng.IntN(30) {
		name := fmt.Sprint("n", i)
		if rng.IntN(3) == 0 {
			all = append(all, s.blob(name, []string{layerType, oddType}[rng.IntN(2)]))
			continue
		}
		f := make(fields)
		var refs []digest.Digest
		for range rng.IntN(5) {
			if len(all) == 0 {
				break
			}
			to := all[rng.IntN(len(all))]
			field := fieldNames[rng.IntN(len(fieldNames))]
			if s.manifests[to.Digest] != nil && (field == "layers" || field == "blobs") {
				field = "manifests" // a registry would not take it
			}
			entries, _ := f[field].([]any)
			f[field] = append(entries, to)
			refs = append(refs, to.Digest)
		}
		m := s.manifest(name, []string{imageType, indexType, oddType}[rng.IntN(3)], f)
		all, below[m.Digest] = append(all, m), refs
	}
	for from := range below {
		for to := range below {
			if rng.IntN(len(below)) == 0 {
				i := slices.IndexFunc(all, func(d ocispec.Descriptor) bool { return d.Digest == to })
				s.referrers[from] = append(s.referrers[from], all[i])
			}
		}
	}
	return all, below
}

// reachable follows all edges from a root.
func reachable(s *source, below map[digest.Digest][]digest.Digest, root digest.Digest) map[digest.Digest]bool {
	found := make(map[digest.Digest]bool)
	for next := []digest.Digest{root}; len(next) > 0; next = next[1:] {
		d := next[0]
		if found[d] {
			continue
		}
		found[d] = true
		next = append(next, below[d]...)
		for _, r := range s.referrers[d] {
			next = append(next, r.Digest)
		}
	}
	return found
}

func TestAnyGraph(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 0))
		s := newSource()
		all, below := random(s, rng)
		root := all[len(all)-1]
		opts := graph.Options{Referrers: s, Parallel: 1, Limits: graph.Limits{Depth: 100}}
		g := walk(t, s, opts, root)
		place := make(map[digest.Digest]int)
		for i, n := range g.Nodes {
			if _, again := place[n.Digest]; again {
				t.Errorf("seed %d: %s comes twice", seed, n)
			}
			place[n.Digest] = i
			if n.IsManifest != (s.manifests[n.Digest] != nil) {
				t.Errorf("seed %d: %s is none", seed, n)
			}
			if len(n.Refs) == 0 {
				t.Errorf("seed %d: nobody refers to %s", seed, n.Digest)
			}
		}
		for from, tos := range below {
			for _, to := range tos {
				if at, there := place[from]; there && place[to] > at {
					t.Errorf("seed %d: %s comes after its parent %s", seed, s.names[to], s.names[from])
				}
			}
		}
		want := reachable(s, below, root.Digest)
		if len(g.Nodes) != len(want) || len(g.Problems) > 0 {
			t.Errorf("seed %d: %d nodes, want %d; %v", seed, len(g.Nodes), len(want), g.Problems)
		}
		opts.Parallel = 8
		if again := walk(t, s, opts, root); s.told(again) != s.told(g) {
			t.Errorf("seed %d: with questions side by side %s, else %s", seed, s.told(again), s.told(g))
		}
		opts.Limits.Nodes = 1 + rng.IntN(len(all))
		bounded, err := graph.Walk(t.Context(), s, []ocispec.Descriptor{root}, opts)
		var limit *graph.LimitError
		switch {
		case errors.As(err, &limit) != (len(want) > opts.Limits.Nodes):
			t.Errorf("seed %d: %d nodes within %d: %v", seed, len(want), opts.Limits.Nodes, err)
		case err == nil && len(bounded.Nodes) > opts.Limits.Nodes:
			t.Errorf("seed %d: %d nodes within %d", seed, len(bounded.Nodes), opts.Limits.Nodes)
		}
	}
}
