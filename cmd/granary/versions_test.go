package main

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/storetest"
	"github.com/granary-oci/granary/cmd/granary/node"
)

// models adds two versions of an artifact, v1 and v2, that differ in one chunk of many.
func (l *library) models(t *testing.T) (versions []ocispec.Descriptor) {
	t.Helper()
	p := make([]byte, modelSize)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(p)
	for _, tag := range []string{"v1", "v2"} {
		model := l.blob("application/octet-stream", string(p))
		l.tag(tag, l.manifest(imageType, map[string]any{
			"artifactType": oddType, "config": l.blob(ocispec.MediaTypeEmptyJSON, "{}"), "layers": []any{model},
		}))
		versions = append(versions, model)
		copy(p[7<<20:], bytes.Repeat([]byte("trained on"), 100))
	}
	return versions
}

const modelSize = 20<<20 + 70_001

// TestVersionsTakeTheirPlaceOnce, imported or pulled by a node alone: nobody has said what they
// have in common.
func TestVersionsTakeTheirPlaceOnce(t *testing.T) {
	l := newLibrary(t)
	versions := l.models(t)
	pull := func(t *testing.T, dir string) {
		n, stop := startNode(t, node.Config{DataConfig: node.DataConfig{DataDir: dir, Upstream: map[string]string{"registry.test": l.URL}}})
		defer stop()
		for _, v := range versions {
			if _, p := ask(t, "GET", n.URLs()[0]+"/v2/app/blobs/"+string(v.Digest)); digest.FromBytes(p) != v.Digest {
				t.Fatalf("pull: %d bytes", len(p))
			}
		}
	}
	take := func(t *testing.T, dir string) {
		for _, tag := range []string{"v1", "v2"} {
			from := "oci:" + t.TempDir()
			l.exported(t, "registry.test/app:"+tag, from)
			if status, out, errs := granary(t, "import", from, "--data-dir", dir, "--node", nowhere); status != 0 {
				t.Fatalf("import: %d, %s%s", status, out, errs)
			}
		}
	}
	for how, get := range map[string]func(t *testing.T, dir string){"pulled": pull, "imported": take} {
		t.Run(how, func(t *testing.T) {
			storetest.OnEachThatShares(t, func(t *testing.T, fs *storetest.FileSystem) {
				dir, empty := fs.Folder(t), fs.Used(t)
				get(t, dir)
				if used := fs.Used(t) - empty; used > modelSize*3/2 {
					t.Errorf("two versions of %d bytes take %d", modelSize, used)
				}
				n := alone(t, dir)
				if u := usage(t, n); u.Shared != modelSize-1<<20 || u.Bytes >= modelSize+2<<20 {
					t.Errorf("usage is %+v", u)
				}
				if _, out, _ := granary(t, "status", "--node", n.AdminURL()); !strings.Contains(out, "19 MiB more, which are on disk once") {
					t.Errorf("status: %s", out)
				}
				if status, out, errs := granary(t, "fsck", "--node", n.AdminURL()); status != 0 || !strings.Contains(out, " 0 wrong") {
					t.Errorf("fsck: %d, %s%s", status, out, errs)
				}
			})
		})
	}
}

// usage is what the API says of it.
func usage(t *testing.T, n *node.Node) chunkstore.Usage {
	t.Helper()
	_, p := fetch(t, n.AdminURL()+"/api/v1/status")
	var s struct {
		Store chunkstore.Usage `json:"store"`
	}
	if err := json.Unmarshal(p, &s); err != nil {
		t.Fatal(err)
	}
	return s.Store
}
