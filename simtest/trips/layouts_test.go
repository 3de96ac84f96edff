package trips

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry"

	"github.com/granary-oci/granary/simtest/programs"
)

// writers are what writes layouts with referrers, each in its own way.
var writers = map[string]func(t *testing.T, s *shelf, dir string) error{
	"oras": func(t *testing.T, s *shelf, dir string) error {
		store, err := oci.New(dir)
		if err != nil {
			return err
		}
		return orasCopy(t.Context(), orasRepository(t, s.Address+"/"+s.name), "", store, s.at().tags(t))
	},
	"regctl": func(t *testing.T, s *shelf, dir string) error {
		return said(tryRegctl(t, s.Address, "image", "copy", "--referrers", "--digest-tags", s.image(), "ocidir://"+dir+":v1"))
	},
}

// TestLayoutsOfOthers: what others have written is served from an import and from where it is,
// with all that refers to it.
func TestLayoutsOfOthers(t *testing.T) {
	for _, k := range kinds[:2] {
		s := &shelf{Registry: k.start(t), name: "app/signed"}
		pushSigned(t, s)
		all := s.at().walk(t)
		for name, write := range writers {
			t.Run(name+" from "+k.name, func(t *testing.T) {
				t.Parallel()
				dir := filepath.Join(t.TempDir(), "layout")
				if err := write(t, s, dir); err != nil {
					t.Fatal(err)
				}
				archive := filepath.Join(t.TempDir(), "images.tar")
				programs.Run(t, nil, "tar", "-C", dir, "-cf", archive, ".")
				for place, n := range map[string]*node{
					"the layout": cluster(t, 1, "--upstream", "registry.test=oci:"+dir)[0],
					"a tar":      cluster(t, 1, "--upstream", "registry.test=oci-archive:"+archive)[0],
					"an import":  imported(t, "oci:"+dir),
				} {
					t.Run("served from "+place, func(t *testing.T) {
						at := repository("http://" + n.address + "/v2/registry.test/app/signed")
						at.compare(t, all, func(*object) bool { return false })
						at.compareReferrers(t, all)
						at.compareTags(t, all, isList) // of which regctl makes its own
					})
				}
			})
		}
	}
}

// imported is a node into which a layout is imported that names only tags.
func imported(t *testing.T, from string) *node {
	t.Helper()
	n := cluster(t, 1)[0]
	programs.Run(t, nil, granary, "import", from, "registry.test/app/signed", "--node", "http://"+n.admin)
	return n
}

// TestExportsAreReadByOthers: oras and regctl list the referrers in what is exported, and copy
// all of it to a registry.
func TestExportsAreReadByOthers(t *testing.T) {
	for _, k := range kinds[:2] {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			s := &shelf{Registry: k.start(t), name: "app/signed"}
			pushSigned(t, s)
			all, tags := s.at().walk(t), s.at().tags(t)
			src := &source{kind: k, registry: s.Registry, items: map[string]*inventory{"signed": all}}
			dir, archive := filepath.Join(t.TempDir(), "layout"), filepath.Join(t.TempDir(), "images.tar")
			src.export(t, "oci:"+dir)
			src.export(t, "oci-archive:"+archive)

			store, err := oci.New(dir)
			if err != nil {
				t.Fatal(err)
			}
			file, err := oci.NewFromTar(t.Context(), archive)
			if err != nil {
				t.Fatal(err)
			}
			to := startDistribution(t)
			arrived := func(name string) {
				at := repository(to.URL + "/v2/" + name)
				at.compare(t, all, func(*object) bool { return false })
				at.compareReferrers(t, all)
				at.compareTags(t, all, isList) // which oras and regctl make anew
			}
			for name, from := range map[string]oras.ReadOnlyGraphTarget{"oras/layout": store, "oras/tar": file} {
				compareListed(t, all, name, func(o *object) ([]ocispec.Descriptor, error) { return orasReferrers(t.Context(), from, o) })
				if err := orasCopy(t.Context(), from, k.host()+"/app/signed:", orasRepository(t, to.Address+"/"+name), tags); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				arrived(name)
			}
			compareListed(t, all, "regctl", func(o *object) ([]ocispec.Descriptor, error) { return regctlReferrers(t, dir, o) })
			if err := said(tryRegctl(t, to.Address, "image", "copy", "--referrers", "--digest-tags", "ocidir://"+dir+":v1", to.Address+"/regctl/layout:v1")); err != nil {
				t.Errorf("regctl: %v", err)
			}
			arrived("regctl/layout")
			// Of a tar it takes an image, and nothing that refers to it.
			if err := said(tryRegctl(t, to.Address, "image", "import", "--name", k.host()+"/app/signed:v1", to.Address+"/regctl/tar:v1", archive)); err != nil {
				t.Errorf("regctl: %v", err)
			}
			if got := repository(to.URL+"/v2/regctl/tar").resolve(t, "v1"); got != all.tags["v1"] {
				t.Errorf("regctl, from the tar: %s, not %s", got, all.tags["v1"])
			}
		})
	}
}

func compareListed(t *testing.T, all *inventory, by string, list func(*object) ([]ocispec.Descriptor, error)) {
	t.Helper()
	for _, o := range all.objects {
		if !strings.HasPrefix(o.path, "manifests/") {
			continue
		}
		if found, err := list(o); err != nil || !slices.Equal(named(found), o.referrers) {
			t.Errorf("by %s %q refer to %s, not %q: %v", by, named(found), o.digest, o.referrers, err)
		}
	}
}

func orasReferrers(ctx context.Context, store content.ReadOnlyGraphStorage, o *object) ([]ocispec.Descriptor, error) {
	var m struct{ MediaType string }
	if err := json.Unmarshal(o.bytes, &m); err != nil {
		return nil, err
	}
	return registry.Referrers(ctx, store, ocispec.Descriptor{MediaType: m.MediaType, Digest: o.digest, Size: int64(len(o.bytes))}, "")
}

func regctlReferrers(t *testing.T, dir string, o *object) ([]ocispec.Descriptor, error) {
	t.Helper()
	out, err := tryRegctl(t, "", "artifact", "list", "--format", "raw-body", "ocidir://"+dir+"@"+string(o.digest))
	var index ocispec.Index
	if err == nil {
		err = json.Unmarshal([]byte(out), &index)
	}
	if err != nil {
		return nil, said(out, err)
	}
	return index.Manifests, nil
}
