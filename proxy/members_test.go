package proxy

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/proxy/graph"
)

func TestMembersAreWhatAManifestNamesAnywhere(t *testing.T) {
	a, b, c := digest.FromString("a"), digest.FromString("b"), digest.FromString("c")
	refs, err := graph.References([]byte(`{"config":{"mediaType":"m","digest":"` + string(a) + `","size":1},
		"manifests":[{"mediaType":"n","digest":"` + string(b) + `","size":2,"platform":{"compat":{"mediaType":"o","digest":"` + string(c) + `","size":3}}}],
		"not":[{"mediaType":"m","digest":"sha256:short","size":1},{"mediaType":"m","digest":"` + string(a) + `","size":9},{"mediaType":"m","digest":"blake3:00","size":1}],
		"layers":[7]}`))
	found := members(refs)
	if err != nil || len(found) != 3 || found[a].Size != 1 || found[b].MediaType != "n" || found[c].Size != 3 {
		t.Errorf("%v, %v", found, err)
	}
}
