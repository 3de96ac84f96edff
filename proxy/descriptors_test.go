package proxy

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestDescriptorsAreFoundWhereverTheyAre(t *testing.T) {
	a, b, c := digest.FromString("a"), digest.FromString("b"), digest.FromString("c")
	found, err := descriptors([]byte(`{"config":{"mediaType":"m","digest":"` + string(a) + `","size":1},
		"manifests":[{"mediaType":"n","digest":"` + string(b) + `","size":2,"platform":{"compat":{"mediaType":"o","digest":"` + string(c) + `","size":3}}}],
		"not":[{"mediaType":"m","digest":"sha256:short","size":1},{"digest":"` + string(a) + `","size":9},{"mediaType":"m","digest":"` + string(b) + `","size":-1}]}`))
	if err != nil || len(found) != 3 || found[a].Size != 1 || found[b].MediaType != "n" || found[c].Size != 3 {
		t.Errorf("%v, %v", found, err)
	}
	if found, err := descriptors([]byte("not JSON")); err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
	if _, err := descriptors([]byte(strings.Repeat("[", 100_000))); err != nil {
		t.Error(err)
	}
}

func FuzzDescriptors(f *testing.F) {
	f.Add([]byte(`{"config":{"mediaType":"m","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}}`))
	f.Add([]byte(`[[[[{"size":1e400}]]]]`))
	f.Add([]byte(`{"digest":1,"size":"x","mediaType":[]}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		found, err := descriptors(p)
		if err == nil && len(found) > 0 && !json.Valid(p) {
			t.Error("descriptors in what is not JSON")
		}
		for d, m := range found {
			if d.Validate() != nil || m.Size < 0 {
				t.Errorf("%s %+v", d, m)
			}
		}
	})
}
