package graph_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/proxy/graph"
)

// described is the text of a descriptor whose digest is that of a name.
func described(name, more string) string {
	return fmt.Sprintf(`{"mediaType":"m","digest":%q,"size":%d%s}`, digest.FromString(name), len(name), more)
}

func TestReferences(t *testing.T) {
	names := make(map[digest.Digest]string)
	for _, name := range []string{"a", "bb", "ccc", "dddd"} {
		names[digest.FromString(name)] = name
	}
	a, b, c, d := described("a", ""), described("bb", ""), described("ccc", ""), described("dddd", "")
	for text, want := range map[string]string{
		"":                     "",
		"no JSON":              "",
		"null":                 "",
		"[" + a:                "",
		"[" + a + "]":          "a nested [0]",
		a:                      "a nested ",
		`{"config":` + a + `}`: "a config config",
		`{"layers":[` + a + `,` + b + `],"blobs":[` + c + `],"subject":` + d + `}`:                                                                                                             "a layer layers[0], bb layer layers[1], ccc layer blobs[0], dddd subject subject",
		`{"manifests":[` + described("a", `,"platform":{"compat":`+b+`,"x":[[`+c+`]]}`) + `]}`:                                                                                                 "a manifest manifests[0], bb nested manifests[0].platform.compat, ccc nested manifests[0].platform.x[0][0]",
		`{"manifests":{"":` + a + `},"":{"layers":[` + b + `]},"config":[` + c + `]}`:                                                                                                          "a nested manifests., bb nested .layers[0], ccc nested config[0]",
		`{"layers":[` + a + `],"layers":[` + b + `]}`:                                                                                                                                          "a layer layers[0], bb layer layers[0]",
		`{"x":{"mediaType":"m","digest":"sha256:short","size":1},"y":{"digest":"` + string(digest.FromString("a")) + `"}}`:                                                                     "",
		`{"x":` + strings.Replace(a, `"size":1`, `"size":-1`, 1) + `,"y":` + strings.Replace(a, `"size":1`, `"size":1.5`, 1) + `,"z":` + strings.Replace(a, `"size":1`, `"size":"1"`, 1) + `}`: "",
		`{"x":` + strings.Replace(a, `"size":1`, `"size":1e0`, 1) + `,"Config":` + b + `}`:                                                                                                     "a nested x, bb nested Config",
		`{"config":` + strings.Replace(a, `"mediaType":"m",`, "", 1) + `,"x":` + strings.Replace(b, `"mediaType":"m",`, "", 1) + `}`:                                                           "a config config",
		`{"config":7,"subject":null,"layers":[{}],"x":7}`:                                                                                                                                      "malformed config config, malformed layer layers[0]",
		strings.Repeat(`{"x":`, 9000) + a + strings.Repeat("}", 9000):                                                                                                                          "a nested " + strings.Repeat("x.", 128) + "…",
		strings.Repeat("[", 100_000):                                                      "",
		strings.Repeat("[", 20_000) + a + strings.Repeat("]", 20_000):                     "",
		`{"x":` + described("a", `,"digest":"`+string(digest.FromString("bb"))+`"`) + `}`: "bb nested x",
	} {
		refs, err := graph.References([]byte(text))
		if err != nil {
			t.Errorf("%.80s: %v", text, err)
		}
		var got []string
		for _, r := range refs {
			name := names[r.Digest]
			if r.Malformed {
				name = "malformed"
			}
			got = append(got, fmt.Sprintf("%s %s %s", name, r.Role, r.Path))
		}
		if got := strings.Join(got, ", "); got != want {
			t.Errorf("%.200s:\ngot  %s\nwant %s", text, got, want)
		}
	}
}

func TestReferencesHaveWhatStandsInTheDescriptor(t *testing.T) {
	text := `{"manifests":[` + described("a", `,"artifactType":"t","annotations":{"k":"v","n":1},"data":"YQ==",
		"platform":{"os":"linux","architecture":"arm64","variant":"v8","os.version":"5","features":["x"]}`) + `]}`
	refs, err := graph.References([]byte(text))
	if err != nil || len(refs) != 1 {
		t.Fatalf("%v, %v", refs, err)
	}
	r := refs[0]
	if p := r.Platform; r.ArtifactType != "t" || r.Annotations["k"] != "v" || string(r.Data) != "a" || p.OS+p.Architecture+p.Variant+p.OSVersion != "linuxarm64v85" {
		t.Errorf("%+v", r)
	}
}

func TestLayersAreNotHeld(t *testing.T) {
	text := `{"config":` + described("a", "") + `,"layers":[` + described("bb", `,"x":`+described("ccc", "")) + `],
		"x":{"mediaType":"m","digest":"blake3:` + strings.Repeat("0", 64) + `","size":1}}`
	want := []digest.Digest{digest.FromString("a"), digest.FromString("ccc")}
	if got := graph.Held([]byte(text)); !slices.Equal(got, want) {
		t.Errorf("held %v, want %v", got, want)
	}
}

// FuzzReferences: whatever a manifest looks like, what is found in it can be used.
func FuzzReferences(f *testing.F) {
	a := described("a", "")
	for _, s := range []string{
		`{"config":` + a + `,"layers":[` + a + `],"subject":` + a + `}`,
		`{"manifests":[` + described("a", `,"platform":{"os":"linux","compat":`+a+`,"compatibilities":[`+a+`]},"data":"YQ=="`) + `]}`,
		`{"blobs":[` + a + `,null,1,{}],"x":{"y":[[` + a + `]]},"x":` + a + `}`,
		`[[[[{"size":1e400}]]]]`, `{"digest":1,"size":"x","mediaType":[]}`, `{"":{"":[{}]}}`, `"text"`, `{`, "", "\xff",
		`{"config":{"mediaType":"","digest":"blake3:` + strings.Repeat("0", 64) + `","size":1e3,"data":"?"}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		refs, err := graph.References(p)
		if err != nil || len(refs) > 0 && !json.Valid(p) {
			t.Fatalf("%d references, %v", len(refs), err)
		}
		// The search that knows nothing of places finds the same digests.
		plain := make(map[string]bool)
		var root any
		if json.Unmarshal(p, &root) == nil {
			plainly(root, plain)
		}
		found := make(map[string]bool)
		for _, r := range refs {
			found[string(r.Digest)] = true
			if r.Malformed {
				continue
			}
			if r.Size < 0 || r.Digest.Validate() != nil && !strings.Contains(r.Digest.Validate().Error(), "unsupported") || r.Path == "" && r.Role != graph.Nested {
				t.Errorf("%+v", r)
			}
		}
		for d := range plain {
			if !found[d] && digest.Digest(d).Validate() == nil {
				t.Errorf("%s was not found", d)
			}
		}
	})
}

// plainly collects the digests of all objects that have the three fields.
func plainly(v any, found map[string]bool) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			plainly(e, found)
		}
	case map[string]any:
		d, isText := v["digest"].(string)
		size, isNumber := v["size"].(float64)
		mediaType, isType := v["mediaType"].(string)
		if isText && isNumber && isType && mediaType != "" && len(mediaType) < 256 && size >= 0 && size < 1<<50 && size == float64(int64(size)) {
			found[d] = true
		}
		for _, e := range v {
			plainly(e, found)
		}
	}
}
