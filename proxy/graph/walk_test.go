package graph_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/proxy/graph"
	"github.com/granary-oci/granary/proxy/ref"
)

// walks are graphs and what a walk finds of them.
var walks = []struct {
	name   string
	build  func(s *source) (root ocispec.Descriptor)
	opts   func(s *source) graph.Options // nil is for all
	want   string
	lacked string
}{{
	name:  "an image",
	build: func(s *source) ocispec.Descriptor { return s.image("i") },
	want:  "i.config i.layer [i]",
}, {
	name: "an index with a nested one",
	build: func(s *source) ocispec.Descriptor {
		return s.index("x", s.image("a"), s.index("y", s.image("b")), s.image("c"))
	},
	want: "a.config a.layer [a] b.config b.layer [b] [y] c.config c.layer [c] [x]",
}, {
	name: "what two refer to comes once",
	build: func(s *source) ocispec.Descriptor {
		layer := s.blob("layer", layerType)
		a := s.manifest("a", imageType, fields{"layers": list(layer, layer)})
		return s.index("x", a, s.manifest("b", imageType, fields{"layers": list(layer)}), a)
	},
	want: "layer [a] [b] [x]",
}, {
	name: "a manifest of compatibilities in a platform (proposal I)",
	build: func(s *source) ocispec.Descriptor {
		compat := s.manifest("compat", imageType, fields{"config": s.blob("compat.config", ocispec.MediaTypeImageConfig), "layers": list()})
		return s.index("x", on(s.image("i"), "linux/amd64", fields{"compat": compat}))
	},
	want: "i.config i.layer [i] compat.config [compat] [x]",
}, {
	name: "a blob of compatibilities in a platform (proposal J)",
	build: func(s *source) ocispec.Descriptor {
		compat := s.blob("compat", "application/vnd.oci.image.compatibilities.v1+json")
		return s.index("x", on(s.image("i"), "linux/amd64", fields{"compat": compat}))
	},
	want: "i.config i.layer [i] compat [x]",
}, {
	name: "several under the name that the heading of the proposals has",
	build: func(s *source) ocispec.Descriptor {
		return s.index("x", on(s.image("i"), "linux/amd64", fields{"compatibilities": list(s.blob("c1", oddType), s.manifest("c2", imageType, fields{}))}))
	},
	want: "i.config i.layer [i] c1 [c2] [x]",
}, {
	name: "a nested manifest of an unknown type is found where manifests are",
	build: func(s *source) ocispec.Descriptor {
		return s.manifest("i", imageType, fields{"future": fields{"deep": list(list(s.manifest("odd", oddType, fields{"layers": list(s.blob("l", layerType))})))}})
	},
	want: "l [odd] [i]",
}, {
	name: "a blob of an unknown type among manifests is found where blobs are",
	build: func(s *source) ocispec.Descriptor {
		return s.index("x", s.blob("cache", oddType), s.blob("layer", layerType))
	},
	want: "cache layer [x]",
}, {
	name: "unknown media types, and an artifact with an empty config",
	build: func(s *source) ocispec.Descriptor {
		return s.manifest("i", imageType, fields{"artifactType": oddType, "config": s.blob("{}", ocispec.MediaTypeEmptyJSON), "layers": list(s.blob("l", oddType))})
	},
	want: "{} l [i]",
}, {
	name: "an artifact manifest",
	build: func(s *source) ocispec.Descriptor {
		return s.manifest("a", "application/vnd.oci.artifact.manifest.v1+json", fields{"blobs": list(s.blob("b", oddType))})
	},
	want: "b [a]",
}, {
	name: "a root of an unknown type, and one that is no JSON",
	build: func(s *source) ocispec.Descriptor {
		return s.manifest("i", oddType, fields{"manifests": list(s.text("text", oddType, "no JSON"))})
	},
	want: "[text] [i]",
}, {
	name: "blobs are not looked into",
	build: func(s *source) ocispec.Descriptor {
		secret := s.blob("secret", layerType)
		text := fmt.Sprintf(`{"mediaType":%q,"layers":[{"mediaType":"m","digest":%q,"size":%d}]}`, imageType, secret.Digest, secret.Size)
		config := s.described("config", oddType, []byte(text))
		s.blobs[config.Digest] = []byte(text)
		return s.manifest("i", imageType, fields{"config": config})
	},
	want: "config [i]",
}, {
	name: "a signature brings its subject first",
	build: func(s *source) ocispec.Descriptor {
		return s.manifest("sig", imageType, fields{"subject": s.image("i"), "layers": list(s.blob("s", oddType))})
	},
	want: "s i.config i.layer [i] [sig]",
}, {
	name: "or leaves it",
	build: func(s *source) ocispec.Descriptor {
		return s.manifest("sig", imageType, fields{"subject": s.image("i"), "layers": list(s.blob("s", oddType))})
	},
	opts: func(*source) graph.Options { return graph.Options{Except: []graph.Role{graph.Subject}} },
	want: "s [sig]",
}, {
	name: "a subject may be missing",
	build: func(s *source) ocispec.Descriptor {
		subject := s.image("i")
		s.without(subject)
		return s.manifest("sig", imageType, fields{"subject": subject})
	},
	want: "[sig]", lacked: "i",
}, {
	name: "what is nested may be no reference, a manifest in an index must be there",
	build: func(s *source) ocispec.Descriptor {
		gone, nested, odd := s.image("gone"), s.image("nested"), s.blob("odd", oddType)
		s.without(gone, nested, odd)
		return s.index("x", s.image("i"), with(gone, fields{"base": nested}), with(s.image("k"), fields{"also": odd}))
	},
	want: "i.config i.layer [i] k.config k.layer [k] [x]", lacked: "gone! nested odd",
}, {
	name: "a layer that may not be distributed may be missing",
	build: func(s *source) ocispec.Descriptor {
		foreign := s.blob("foreign", ocispec.MediaTypeImageLayerNonDistributableGzip)
		s.without(foreign)
		return s.manifest("i", imageType, fields{"layers": list(foreign)})
	},
	want: "[i]", lacked: "foreign",
}, {
	name: "a nested descriptor with another size than the blob has is not believed",
	build: func(s *source) ocispec.Descriptor {
		l := s.blob("l", layerType)
		return s.manifest("i", imageType, fields{"layers": list(l), "odd": with(l, fields{"size": 77})})
	},
	want: "l [i]", lacked: "l",
}, {
	name: "in descriptors' places stands something else",
	build: func(s *source) ocispec.Descriptor {
		return s.text("i", imageType, `{"config":null,"layers":["text",{"mediaType":"m","digest":"sha256:short","size":1},{"mediaType":"m","size":1}],"odd":{"digest":"x"}}`)
	},
	want: "[i]", lacked: "! ! !",
}, {
	name: "a digest that nobody here can check",
	build: func(s *source) ocispec.Descriptor {
		blake := digest.Digest("blake3:" + strings.Repeat("0", 64))
		s.names[blake] = "blake"
		return s.manifest("i", imageType, fields{"layers": list(ocispec.Descriptor{MediaType: layerType, Digest: blake, Size: 5, Data: []byte("bytes")})})
	},
	want: "[i]", lacked: "blake!",
}, {
	name: "the same as a blob and as a manifest",
	build: func(s *source) ocispec.Descriptor {
		m := s.manifest("m", imageType, fields{"config": s.blob("c", oddType)})
		blob := m
		blob.MediaType = layerType
		s.blobs[m.Digest] = s.manifests[m.Digest]
		return s.index("x", blob, s.index("y", m))
	},
	want: "c [m] [y] [x]",
}, {
	name: "one platform, with what stands in its entry and outside of the entries",
	build: func(s *source) ocispec.Descriptor {
		return s.manifest("x", indexType, fields{"also": s.blob("also", oddType), "manifests": list(
			on(s.image("a"), "linux/amd64", fields{"compat": s.blob("ca", oddType)}),
			on(s.image("b"), "linux/arm64/v8", fields{"compat": s.blob("cb", oddType)}),
			on(s.image("c"), "linux/arm64/v8", nil))})
	},
	opts: platform("linux/arm64"),
	want: "also b.config b.layer [b] cb [x]",
}, {
	name: "one platform of an index within one that says nothing of platforms",
	build: func(s *source) ocispec.Descriptor {
		return s.index("x", s.index("y", on(s.image("a"), "linux/s390x", nil)), s.index("z", on(s.image("b"), "linux/amd64", nil)))
	},
	opts: platform("linux/amd64"),
	want: "[y] b.config b.layer [b] [z] [x]",
}, {
	name: "referrers, by list and tag, of all that is there, and theirs",
	build: func(s *source) ocispec.Descriptor {
		image := s.image("i")
		x := s.index("x", image)
		sbom := s.manifest("sbom", imageType, fields{"subject": image, "layers": list(s.blob("text", oddType))})
		s.referrers[image.Digest] = []ocispec.Descriptor{sbom}
		s.referrers[sbom.Digest] = []ocispec.Descriptor{s.manifest("sig", imageType, fields{"subject": sbom})}
		s.tags[ref.FallbackTag(x.Digest)] = s.index("list", sbom, s.manifest("listed", imageType, fields{"subject": x}))
		for _, suffix := range []string{"sig", "att", "sbom"} {
			s.tags["sha256-"+x.Digest.Encoded()+"."+suffix] = s.manifest("cosign-"+suffix, imageType, fields{"layers": list(s.blob(suffix, oddType))})
		}
		return x
	},
	opts: referrers,
	want: "i.config i.layer [i] [x] text [sbom] [listed] [list] sig [cosign-sig] att [cosign-att] sbom [cosign-sbom] [sig]",
}, {
	name: "a list of referrers may be out of date, and no list",
	build: func(s *source) ocispec.Descriptor {
		gone, image := s.image("gone"), s.image("i")
		s.without(gone)
		s.tags[ref.FallbackTag(image.Digest)] = s.index("list", gone)
		other := s.manifest("sig", imageType, fields{"subject": image})
		s.referrers[image.Digest] = []ocispec.Descriptor{other}
		s.tags[ref.FallbackTag(other.Digest)] = s.image("no list")
		return image
	},
	opts: referrers,
	want: "i.config i.layer [i] [sig] [list]", lacked: "gone",
}, {
	name: "with a platform and referrers, what the index has about the chosen image",
	build: func(s *source) ocispec.Descriptor {
		a, b := s.image("a"), s.image("b")
		about := func(name string, d ocispec.Descriptor) fields {
			return with(s.manifest(name, imageType, fields{}), fields{
				"platform":    fields{"os": "unknown", "architecture": "unknown"},
				"annotations": fields{"vnd.docker.reference.digest": d.Digest},
			})
		}
		return s.index("x", on(a, "linux/amd64", nil), on(b, "linux/arm64", nil), about("of a", a), about("of b", b))
	},
	opts: func(s *source) graph.Options {
		o := platform("linux/amd64")(s)
		o.Referrers = s
		return o
	},
	want: "a.config a.layer [a] [of a] [x]",
}, {
	name: "an entry that is preferred",
	build: func(s *source) ocispec.Descriptor {
		return s.index("x", on(s.image("a"), "linux/amd64", nil), on(s.image("b"), "linux/amd64", nil), on(s.image("c"), "linux/arm64", nil))
	},
	opts: preferring("linux/amd64", "b"),
	want: "b.config b.layer [b] [x]",
}, {
	name: "one that is preferred and is for another platform",
	build: func(s *source) ocispec.Descriptor {
		return s.index("x", on(s.image("a"), "linux/amd64", nil), on(s.image("b"), "linux/arm64", nil))
	},
	opts: preferring("linux/amd64", "b"),
	want: "a.config a.layer [a] [x]",
}, {
	name: "a preferred entry of a preferred index",
	build: func(s *source) ocispec.Descriptor {
		return s.index("x", s.index("y", on(s.image("a"), "linux/amd64", nil)), s.index("z", on(s.image("b"), "linux/amd64", nil), on(s.image("c"), "linux/amd64", nil)))
	},
	opts: preferring("linux/amd64", "z", "c"),
	want: "c.config c.layer [c] [z] [x]",
}}

func preferring(wanted string, names ...string) func(*source) graph.Options {
	return func(s *source) graph.Options {
		o := platform(wanted)(s)
		for d, name := range s.names {
			if slices.Contains(names, name) {
				o.Prefer = append(o.Prefer, d)
			}
		}
		return o
	}
}

func platform(p string) func(*source) graph.Options {
	return func(*source) graph.Options {
		want, _ := graph.ParsePlatform(p)
		return graph.Options{Platform: want}
	}
}

func referrers(s *source) graph.Options { return graph.Options{Referrers: s} }

func TestWalk(t *testing.T) {
	for _, test := range walks {
		t.Run(test.name, func(t *testing.T) {
			s := newSource()
			root := test.build(s)
			var opts graph.Options
			if test.opts != nil {
				opts = test.opts(s)
			}
			g := walk(t, s, opts, root)
			if got := s.told(g); got != test.want {
				t.Errorf("found %s\nwant  %s", got, test.want)
			}
			if got := s.lacked(g); got != test.lacked {
				t.Errorf("lacked %q, want %q", got, test.lacked)
			}
			if failed := g.Err() != nil; failed != strings.Contains(test.lacked, "!") {
				t.Errorf("error: %v", g.Err())
			}
		})
	}
}

func TestAProblemSaysWhoRefersToWhat(t *testing.T) {
	s := newSource()
	nested, base := s.blob("nested", oddType), s.image("base")
	s.without(nested, base)
	root := s.index("x", on(s.image("i"), "linux/amd64", fields{"compat": nested}), base)
	g := walk(t, s, graph.Options{}, root)
	var all []string
	for _, p := range g.Problems {
		all = append(all, p.Error())
		if !errors.Is(p, graph.ErrNotFound) {
			t.Errorf("%v is no %v", p, graph.ErrNotFound)
		}
	}
	for i, want := range []string{
		string(nested.Digest) + " (manifests[0].platform.compat of " + string(root.Digest) + "): ",
		string(base.Digest) + " (manifests[1] of " + string(root.Digest) + "): ",
	} {
		if i >= len(all) || !strings.Contains(all[i], want) {
			t.Errorf("problems %q lack %q", all, want)
		}
	}
}

func TestDataServesForTheBlob(t *testing.T) {
	s := newSource()
	embedded := func(desc ocispec.Descriptor, data string) ocispec.Descriptor {
		desc.Data = []byte(data)
		return desc
	}
	text := `{"layers":[]}`
	image := s.described("i", imageType, []byte(text)) // is not in the source
	config := s.described("config", oddType, []byte("config"))
	wrong := s.blob("wrong", oddType)
	root := s.manifest("x", indexType, fields{
		"manifests": list(embedded(image, text)), "config": embedded(config, "config"), "layers": list(embedded(wrong, "other")),
	})
	g := walk(t, s, graph.Options{}, root)
	if got, want := s.told(g), "config wrong [i] [x]"; got != want {
		t.Errorf("found %s, want %s", got, want)
	}
	for _, n := range g.Nodes {
		want := map[string]string{"config": "config", "i": text, "wrong": ""}[s.names[n.Digest]]
		if s.names[n.Digest] != "x" && string(n.Content) != want || n.Data != nil {
			t.Errorf("%s: content %q, want %q; data %q", n, n.Content, want, n.Data)
		}
	}
	if got := s.lacked(g); got != "wrong" || g.Err() != nil {
		t.Errorf("wrong data: %q, %v", got, g.Err())
	}
	if !slices.Equal(s.asked, []string{"manifest x"}) {
		t.Errorf("asked for %q", s.asked)
	}
}

// TestARequiredBlobIsNotAskedFor: who reads it finds out.
func TestARequiredBlobIsNotAskedFor(t *testing.T) {
	s := newSource()
	walk(t, s, graph.Options{}, s.image("i"))
	if !slices.Equal(s.asked, []string{"manifest i"}) {
		t.Errorf("asked for %q", s.asked)
	}
}

func TestFailuresStayApart(t *testing.T) {
	s := newSource()
	image := s.image("i")
	root := s.index("x", image, s.image("k"))
	down := errors.New("the registry is down")
	s.fail[image.Digest] = down
	_, err := graph.Walk(t.Context(), s, []ocispec.Descriptor{root}, graph.Options{})
	if !errors.Is(err, down) || errors.Is(err, graph.ErrNotFound) || !strings.Contains(err.Error(), string(image.Digest)) {
		t.Errorf("unavailable: %v", err)
	}
	delete(s.fail, image.Digest)
	s.manifests[image.Digest] = append(s.manifests[image.Digest], ' ')
	if e := refused[*graph.WrongError](t, s, graph.Options{}, root); e.Digest != image.Digest {
		t.Errorf("wrong bytes: %v", e)
	}
	s.manifests[image.Digest][0] = '['
	s.manifests[image.Digest] = s.manifests[image.Digest][:image.Size]
	if e := refused[*graph.WrongError](t, s, graph.Options{}, root); e.Digest != image.Digest {
		t.Errorf("wrong bytes: %v", e)
	}
	for name, text := range map[string]string{imageType: "no JSON", "application/vnd.docker.distribution.manifest.v1+prettyjws": "{}"} {
		bad := s.text("bad", name, text)
		if e := refused[*graph.WrongError](t, s, graph.Options{}, bad); e.Digest != bad.Digest {
			t.Errorf("%s: %v", name, e)
		}
	}
}

func TestNoImageForThePlatform(t *testing.T) {
	s := newSource()
	root := s.index("x", on(s.image("a"), "linux/amd64", nil), s.index("y", on(s.image("b"), "linux/arm/v7", nil)))
	opts := platform("linux/s390x")(s)
	opts.Referrers = s
	s.referrers[root.Digest] = []ocispec.Descriptor{s.image("sig")}
	if e := refused[*graph.PlatformError](t, s, opts, root); e.Error() != "no image for linux/s390x; there are linux/amd64, linux/arm/v7" {
		t.Error(e)
	}
}

// TestBombs are graphs without an end to speak of.
func TestBombs(t *testing.T) {
	s := newSource()
	deep := s.image("i")
	var links []ocispec.Descriptor
	for i := range 40 {
		deep = s.index(fmt.Sprint("deep", i), deep)
		links = append(links, deep)
	}
	// Each of ten levels names the one below a hundred times, under so many names.
	wide := s.image("w")
	for i := range 10 {
		var entries []any
		for k := range 100 {
			entries = append(entries, s.manifest(fmt.Sprintf("wide%d.%d", i, k), indexType, fields{"n": k, "manifests": list(wide)}))
		}
		wide = s.index(fmt.Sprint("wide", i), entries...)
	}
	many := make([]any, graph.MaxDescriptors+1)
	for i := range many {
		many[i] = with(s.image("i"), fields{"size": i})
	}
	crowd := s.manifest("crowd", oddType, fields{"layers": many})
	huge := s.image("h")
	huge.Size = 5 << 20
	for name, test := range map[string]struct {
		root   ocispec.Descriptor
		limits graph.Limits
		blamed digest.Digest
	}{
		"deep":                      {root: deep, blamed: links[len(links)-1-16].Digest},
		"deep, of a smaller limit":  {root: deep, limits: graph.Limits{Depth: 3}, blamed: links[len(links)-1-3].Digest},
		"wide":                      {root: wide, limits: graph.Limits{Nodes: 50}, blamed: wide.Digest},
		"large together":            {root: wide, limits: graph.Limits{ManifestBytes: wide.Size - 1}, blamed: wide.Digest},
		"crowded":                   {root: crowd, blamed: crowd.Digest},
		"a manifest of five MiB":    {root: huge, blamed: huge.Digest},
		"larger than another limit": {root: deep, limits: graph.Limits{ManifestSize: 10}, blamed: deep.Digest},
	} {
		e := refused[*graph.LimitError](t, s, graph.Options{Limits: test.limits}, test.root)
		if e.Digest != test.blamed || !strings.Contains(e.Error(), string(test.blamed)) {
			t.Errorf("%s: %v; want the digest %s (%s)", name, e, test.blamed, s.names[test.blamed])
		}
	}
	if g := walk(t, s, graph.Options{Limits: graph.Limits{Depth: 50}}, deep); len(g.Nodes) != 40+3 {
		t.Errorf("within its limits: %d nodes", len(g.Nodes))
	}
}

// FuzzWalk: whatever a manifest looks like, it is a graph, or an error says why not.
func FuzzWalk(f *testing.F) {
	blake := `{"mediaType":"m","digest":"blake3:` + strings.Repeat("0", 64) + `","size":5,"data":"Ynl0ZXM="}`
	for _, text := range []string{
		`{"config":` + described("a", `,"data":"YQ=="`) + `,"layers":[` + blake + `,` + described("bb", `,"data":"?"`) + `,{}]}`,
		`{"manifests":[` + described("a", `,"platform":{"os":"linux","architecture":"amd64","compat":`+described("bb", "")+`}`) + `,` + blake + `,7]}`,
		`{"subject":{"mediaType":"` + imageType + `","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0,"data":""}}`,
		`{"manifests":[{"mediaType":"` + imageType + `","digest":":","size":-1}]}`, `[]`, ``,
	} {
		f.Add([]byte(text), true)
		f.Add([]byte(text), false)
	}
	f.Fuzz(func(t *testing.T, p []byte, isIndex bool) {
		s := newSource()
		opts := graph.Options{Referrers: s}
		root := s.described("root", oddType, p)
		if isIndex {
			root.MediaType = indexType
			opts.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
		}
		root.Data = p
		g, err := graph.Walk(t.Context(), s, []ocispec.Descriptor{root}, opts)
		if err != nil {
			return
		}
		for _, problem := range g.Problems {
			if problem.Error() == "" || problem.Err == nil {
				t.Errorf("%+v", problem)
			}
		}
		for _, n := range g.Nodes {
			if n.Content != nil && n.Digest.Algorithm().FromBytes(n.Content) != n.Digest {
				t.Errorf("%s has other bytes", n)
			}
		}
	})
}
