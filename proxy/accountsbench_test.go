package proxy

import (
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/proxy/access"
	"github.com/granary-oci/granary/proxy/catalog"
	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/ref"
)

// BenchmarkImage finds the image of a blob, once for each blob that is opened: after as many manifests as are remembered, of 10
// layers each, of many repositories and of one.
func BenchmarkImage(b *testing.B) {
	for name, each := range map[string]int{"many repositories": 1, "one repository": maxAsked} {
		b.Run(name, func(b *testing.B) {
			r := NewRegistry(Config{Store: chunkstore.NewStack(chunkstore.NewMemory(1<<20), nil), Catalog: catalog.NewMemory()})
			r.reads.parsed = make(map[digest.Digest][]member)
			repo := func(i int) ref.Repository { return ref.Repository{Host: "a.test", Name: fmt.Sprint("app", i/each)} }
			for i := range maxAsked {
				d := digest.FromString(fmt.Sprint("manifest", i))
				for l := range 10 {
					r.reads.parsed[d] = append(r.reads.parsed[d], member{digest.FromString(fmt.Sprint(i, l)), "", 1, graph.Layer})
				}
				r.reads.manifest(repo(i), "v1", d)
			}
			p, blob := r.Open(repo(0), access.Caller{}), digest.FromString("0 9")
			for b.Loop() {
				if i := p.image(b.Context(), blob); i.Tag != "v1" {
					b.Fatal(i)
				}
			}
		})
	}
}
