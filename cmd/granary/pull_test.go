package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy/ref"
)

// library is a registry in memory with one repository, app. It keeps manifests and blobs
// apart, as registries do.
type library struct {
	*httptest.Server

	mu        sync.Mutex
	manifests map[string]thing // by digest and by tag
	blobs     map[string]thing
	referrers map[digest.Digest][]ocispec.Descriptor // nil if it does not know the question
	asked     []string                               // method and path, in order
	refused   string                                 // a name that nobody may have, or ""
}

type thing struct {
	desc  ocispec.Descriptor
	bytes []byte
}

func newLibrary(t *testing.T) *library {
	l := &library{manifests: make(map[string]thing), blobs: make(map[string]thing)}
	l.Server = httptest.NewServer(l)
	t.Cleanup(l.Close)
	return l
}

func (l *library) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v2/" {
		return
	}
	switch x, refused := l.find(r); {
	case refused:
		w.WriteHeader(http.StatusForbidden)
	case x.bytes == nil:
		w.WriteHeader(http.StatusNotFound)
	default: // without the lock: who reads slowly keeps nobody waiting
		w.Header().Set("Content-Type", x.desc.MediaType)
		w.Header().Set("Docker-Content-Digest", string(x.desc.Digest))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(x.bytes))
	}
}

// find returns what is asked for, which may be nothing.
func (l *library) find(r *http.Request) (x thing, refused bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, r.Method+" "+r.URL.Path)
	kind, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/app/"), "/")
	switch {
	case l.refused != "" && name == l.refused:
		return x, true
	case kind == "manifests":
		x = l.manifests[name]
	case kind == "blobs":
		x = l.blobs[name]
	case kind == "referrers" && l.referrers != nil:
		p, _ := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: l.referrers[digest.Digest(name)]})
		x = thing{ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(p)}, p}
	}
	return x, false
}

func (l *library) keep(in map[string]thing, mediaType string, p []byte, algorithm digest.Algorithm) ocispec.Descriptor {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: algorithm.FromBytes(p), Size: int64(len(p))}
	l.mu.Lock()
	defer l.mu.Unlock()
	in[string(desc.Digest)] = thing{desc, p}
	return desc
}

func (l *library) blob(mediaType, content string) ocispec.Descriptor {
	return l.keep(l.blobs, mediaType, []byte(content), digest.SHA256)
}

// manifest adds a manifest; fields may be any.
func (l *library) manifest(mediaType string, fields map[string]any) ocispec.Descriptor {
	return l.keep(l.manifests, mediaType, text(mediaType, fields), digest.SHA256)
}

// text is a manifest as somebody wrote it: with a layout of its own.
func text(mediaType string, fields map[string]any) []byte {
	fields["schemaVersion"], fields["mediaType"] = 2, mediaType
	p, err := json.MarshalIndent(fields, " ", "   ")
	if err != nil {
		panic(err)
	}
	return append(p, '\n')
}

func (l *library) image(name string) ocispec.Descriptor {
	return l.manifest(imageType, map[string]any{
		"config": l.blob(ocispec.MediaTypeImageConfig, `{"config of":"`+name+`"}`), "layers": []any{l.blob(layerType, "layer of "+name)},
	})
}

func (l *library) tag(tag string, desc ocispec.Descriptor) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.manifests[tag] = l.manifests[string(desc.Digest)]
}

func (l *library) remove(desc ocispec.Descriptor) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.manifests, string(desc.Digest))
	delete(l.blobs, string(desc.Digest))
}

// all returns everything that is in the repository.
func (l *library) all() map[digest.Digest]thing {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make(map[digest.Digest]thing)
	for _, some := range []map[string]thing{l.manifests, l.blobs} {
		for _, x := range some {
			all[x.desc.Digest] = x
		}
	}
	return all
}

const (
	imageType  = ocispec.MediaTypeImageManifest
	indexType  = ocispec.MediaTypeImageIndex
	layerType  = ocispec.MediaTypeImageLayerGzip
	oddType    = "application/vnd.example.odd.v7"
	compatType = "application/vnd.oci.image.compatibilities.v1+json"
)

// entry returns an entry of an index, with what else stands in its platform.
func entry(desc ocispec.Descriptor, architecture string, more map[string]any) map[string]any {
	platform := map[string]any{"os": "linux", "architecture": architecture}
	for k, v := range more {
		platform[k] = v
	}
	return map[string]any{"mediaType": desc.MediaType, "digest": desc.Digest, "size": desc.Size, "platform": platform}
}

// compatible adds an index with an image for amd64 that has its compatibilities in a manifest
// (proposal I), and one for arm64 that has them in a blob (proposal J).
func (l *library) compatible() (index, manifest, config, blob ocispec.Descriptor) {
	config = l.blob(ocispec.MediaTypeImageConfig, `{"config":{"compatibilities":[{"oci.cpu.vendor":"GenuineIntel"}]},"rootfs":{}}`)
	manifest = l.manifest(imageType, map[string]any{"config": config, "layers": []any{}})
	blob = l.blob(compatType, `{"schemaVersion":"0.1.0","compatibilities":[{"tags":"intel"}]}`)
	index = l.manifest(indexType, map[string]any{"manifests": []any{
		entry(l.image("amd64"), "amd64", map[string]any{"compat": manifest}),
		entry(l.image("arm64"), "arm64", map[string]any{"compat": blob}),
	}})
	return index, manifest, config, blob
}

// everything adds images of all kinds below one index, and what refers to them. With
// lists the registry lists referrers itself, else a tag does.
func (l *library) everything(lists bool) (index ocispec.Descriptor) {
	compatible, _, _, _ := l.compatible()
	nested := l.manifest(indexType, map[string]any{"manifests": []any{entry(l.image("nested"), "riscv64", nil)}})
	odd := l.manifest(imageType, map[string]any{
		"config": l.blob(oddType, "an odd config"), "layers": []any{l.blob(oddType, "an odd layer"), l.blob(layerType, "a layer")},
		"future":       map[string]any{"parts": []any{l.blob(oddType, "a part of the future"), l.manifest(oddType, map[string]any{"things": []any{l.blob(oddType, "of an odd manifest")}})}},
		"unknownField": 1e3, "annotations": map[string]string{"<>&": "\u2028"},
	})
	artifact := l.manifest(imageType, map[string]any{
		"artifactType": oddType, "config": l.blob(ocispec.MediaTypeEmptyJSON, "{}"), "layers": []any{l.blob("text/plain", "an artifact")},
	})
	long := l.keep(l.manifests, imageType, text(imageType, map[string]any{
		"config": l.keep(l.blobs, ocispec.MediaTypeImageConfig, []byte(`{"sha":512}`), digest.SHA512),
		"layers": []any{l.keep(l.blobs, layerType, []byte("layer by SHA-512"), digest.SHA512)},
	}), digest.SHA512)
	index = l.manifest(indexType, map[string]any{"manifests": []any{compatible, nested, entry(odd, "s390x", nil), artifact, entry(long, "ppc64le", nil)}})
	l.tag("v1", index)

	sbom := l.manifest(imageType, map[string]any{"subject": odd, "artifactType": oddType, "config": l.blob(ocispec.MediaTypeEmptyJSON, "{}"), "layers": []any{l.blob("text/spdx", "SBOM")}})
	signature := l.manifest(imageType, map[string]any{"subject": sbom, "layers": []any{l.blob(oddType, "signature of the SBOM")}})
	if lists {
		listed := sbom
		listed.ArtifactType = oddType
		l.referrers = map[digest.Digest][]ocispec.Descriptor{odd.Digest: {listed}, sbom.Digest: {signature}}
	} else {
		l.tag(ref.FallbackTag(odd.Digest), l.manifest(indexType, map[string]any{"manifests": []any{sbom}}))
		l.tag(ref.FallbackTag(sbom.Digest), l.manifest(indexType, map[string]any{"manifests": []any{signature}}))
	}
	for _, suffix := range []string{".sig", ".att", ".sbom"} {
		l.tag("sha256-"+index.Digest.Encoded()+suffix, l.manifest(imageType, map[string]any{"layers": []any{l.blob(oddType, "cosign"+suffix)}}))
	}
	return index
}

func (l *library) config(t *testing.T) node.DataConfig {
	return node.DataConfig{DataDir: t.TempDir(), Upstream: map[string]string{"registry.test": l.URL}, DefaultUpstream: "registry.test"}
}

// pullInto pulls into a layout through a node of its own.
func (l *library) pullInto(t *testing.T, reference string, args ...string) (dir string, status int, stdout, stderr string) {
	t.Helper()
	dir = t.TempDir()
	status, stdout, stderr = granary(t, append([]string{
		"pull", "registry.test/app" + reference, "-o", "oci:" + dir, "--node", "http://127.0.0.1:1", "--data-dir", t.TempDir(), "--upstream", "registry.test=" + l.URL,
	}, args...)...)
	return dir, status, stdout, stderr
}

func layoutFile(dir string, d digest.Digest) string {
	return filepath.Join(dir, "blobs", string(d.Algorithm()), d.Encoded())
}

// holds reports whether a layout has a blob, whose bytes must be right.
func holds(t *testing.T, dir string, d digest.Digest) bool {
	t.Helper()
	p, err := os.ReadFile(layoutFile(dir, d))
	if err == nil && d.Algorithm().FromBytes(p) != d {
		t.Errorf("%s has other bytes", d)
	}
	return err == nil
}

func listed(t *testing.T, dir string) ocispec.Index {
	t.Helper()
	var index ocispec.Index
	p, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err == nil {
		err = json.Unmarshal(p, &index)
	}
	if err != nil {
		t.Fatal(err)
	}
	return index
}

func TestPullBringsAllThatAnImageRefersTo(t *testing.T) {
	for _, lists := range []bool{true, false} {
		t.Run(fmt.Sprintf("the registry lists referrers %v", lists), func(t *testing.T) {
			l := newLibrary(t)
			index := l.everything(lists)
			dir, status, out, errs := l.pullInto(t, ":v1", "--platform", "all", "--referrers")
			if status != 0 || strings.Contains(errs, "not there") {
				t.Fatalf("pull: %d, %s%s", status, out, errs)
			}
			all, made := l.all(), make(map[digest.Digest]bool) // lists of referrers that the registry does not have
			for _, m := range listed(t, dir).Manifests {
				if _, theirs := all[m.Digest]; !theirs && strings.HasPrefix(m.Annotations[ocispec.AnnotationRefName], "registry.test/app:sha256-") {
					made[m.Digest] = true
				}
			}
			for d, x := range all {
				p, err := os.ReadFile(layoutFile(dir, d))
				if err != nil || !bytes.Equal(p, x.bytes) {
					t.Errorf("%s, %.60s: %.60q, %v", d, x.bytes, p, err)
				}
			}
			for _, algorithm := range []string{"sha256", "sha512"} {
				files, err := os.ReadDir(filepath.Join(dir, "blobs", algorithm))
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range files {
					d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), f.Name())
					if _, ok := all[d]; !ok && !made[d] {
						t.Errorf("nobody asked for %s", f.Name())
					}
				}
			}
			if want := map[bool]int{true: 2}[lists]; len(made) != want {
				t.Errorf("%d lists of referrers were made, want %d", len(made), want)
			}
			names := make(map[string]digest.Digest)
			untagged := 0
			for _, m := range listed(t, dir).Manifests {
				name := m.Annotations[ocispec.AnnotationRefName]
				names[name] = m.Digest
				if name == "" {
					untagged++
				}
			}
			tags := []string{"v1"}
			for tag := range l.manifests {
				if strings.HasPrefix(tag, "sha") && !strings.Contains(tag, ":") {
					tags = append(tags, tag)
				}
			}
			for _, tag := range tags {
				if got, want := names["registry.test/app:"+tag], l.manifests[tag].desc.Digest; got != want {
					t.Errorf("%s is listed as %q, want %s", tag, got, want)
				}
			}
			if names["registry.test/app:v1"] != index.Digest || untagged != 2 {
				t.Errorf("listed are %v, and %d referrers", names, untagged)
			}
		})
	}
}

func TestPullWithoutReferrersBringsNone(t *testing.T) {
	l := newLibrary(t)
	l.everything(true)
	dir, status, out, errs := l.pullInto(t, ":v1", "--platform", "all")
	if status != 0 || len(listed(t, dir).Manifests) != 1 {
		t.Errorf("pull: %d, %s%s, %v", status, out, errs, listed(t, dir).Manifests)
	}
	for d, x := range l.all() {
		refers := bytes.Contains(x.bytes, []byte(`"subject"`)) || strings.HasPrefix(string(x.bytes), "cosign")
		if refers && holds(t, dir, d) {
			t.Errorf("%.40s was pulled", x.bytes)
		}
	}
}

// TestASignatureBringsWhatItSigns: the subject of what is pulled.
func TestASignatureBringsWhatItSigns(t *testing.T) {
	l := newLibrary(t)
	image := l.image("signed")
	signature := l.manifest(imageType, map[string]any{"subject": image, "layers": []any{l.blob(oddType, "signature")}})
	dir, status, out, errs := l.pullInto(t, "@"+string(signature.Digest))
	if status != 0 {
		t.Fatalf("pull: %d, %s%s", status, out, errs)
	}
	for d := range l.all() {
		if !holds(t, dir, d) {
			t.Errorf("%s is not there", d)
		}
	}
}

func TestPullOfOnePlatformBringsAllOfIt(t *testing.T) {
	l := newLibrary(t)
	index, manifest, config, blob := l.compatible()
	l.tag("v1", index)
	dir, status, out, errs := l.pullInto(t, ":v1", "--platform", "linux/amd64")
	if status != 0 || !holds(t, dir, index.Digest) || !holds(t, dir, manifest.Digest) || !holds(t, dir, config.Digest) {
		t.Errorf("pull: %d, %s%s", status, out, errs)
	}
	if holds(t, dir, blob.Digest) {
		t.Error("the other platform's compatibilities came too")
	}
	_, status, _, errs = l.pullInto(t, ":v1", "--platform", "linux/mips")
	if status != 1 || !strings.Contains(errs, "no image for linux/mips; there are linux/amd64, linux/arm64") {
		t.Errorf("pull for a platform that is not there: %d, %s", status, errs)
	}
}

func TestPullTakesWhatIsEmbedded(t *testing.T) {
	l := newLibrary(t)
	config := l.blob(ocispec.MediaTypeImageConfig, `{"embedded":true}`)
	l.remove(config)
	config.Data = []byte(`{"embedded":true}`)
	l.tag("v1", l.manifest(imageType, map[string]any{"config": config, "layers": []any{l.blob(layerType, "layer")}}))
	if dir, status, out, errs := l.pullInto(t, ":v1"); status != 0 || !holds(t, dir, config.Digest) {
		t.Errorf("pull: %d, %s%s", status, out, errs)
	}
	if status, out, errs := granary(t, "pull", "registry.test/app:v1", "--node", "http://127.0.0.1:1", "--data-dir", t.TempDir(), "--upstream", "registry.test="+l.URL); status != 0 {
		t.Errorf("pull without a layout: %d, %s%s", status, out, errs)
	}
}

func TestPullSaysWhatIsMissing(t *testing.T) {
	l := newLibrary(t)
	index, compat, _, _ := l.compatible()
	l.tag("v1", index)
	l.remove(compat)
	dir, status, out, errs := l.pullInto(t, ":v1", "--platform", "all", "--json")
	var result pulled
	if err := json.Unmarshal([]byte(out), &result); err != nil || status != 0 || len(result.Missing) != 1 {
		t.Fatalf("without what is nested: %d, %s%s", status, out, errs)
	}
	by := "manifests[0].platform.compat of " + string(index.Digest)
	if m := result.Missing[0]; m.Required || m.Digest != string(compat.Digest) || !slices.Equal(m.For, []string{by}) {
		t.Errorf("missing: %+v", m)
	}
	if !strings.Contains(errs, "not required: manifest "+string(compat.Digest)+" ("+by+"): ") || !holds(t, dir, index.Digest) {
		t.Errorf("without what is nested: %s", errs)
	}

	// What never was there keeps nobody from an image that the node has.
	cfg := l.config(t)
	n := testNode(t, node.Config{DataConfig: cfg})
	for _, dead := range []bool{false, true} {
		if dead {
			l.CloseClientConnections()
			l.Close()
		}
		status, out, errs := granary(t, "pull", "registry.test/app:v1", "--platform", "all", "--node", n.AdminURL())
		if status != 0 || !strings.Contains(errs, "not required: manifest "+string(compat.Digest)) {
			t.Errorf("registry dead: %v: %d, %s%s", dead, status, out, errs)
		}
	}
}

func TestPullSaysWhatIsRequired(t *testing.T) {
	l := newLibrary(t)
	index, _, _, _ := l.compatible()
	l.tag("v1", index)
	layer := l.blob(layerType, "layer of arm64")
	l.remove(layer)
	dir, status, out, errs := l.pullInto(t, ":v1", "--platform", "all")
	if status != 1 || !strings.Contains(errs, "missing: blob "+string(layer.Digest)+" (layers[0] of sha256:") {
		t.Errorf("without a layer: %d, %s%s", status, out, errs)
	}
	if _, err := os.Stat(filepath.Join(dir, "index.json")); err == nil || holds(t, dir, index.Digest) {
		t.Error("the layout has a manifest without what it names")
	}
	if other := l.blob(layerType, "layer of amd64"); !holds(t, dir, other.Digest) {
		t.Error("what is there was not brought")
	}

	gone := l.image("arm64")
	l.remove(gone)
	if _, status, _, errs := l.pullInto(t, ":v1", "--platform", "all"); status != 1 || !strings.Contains(errs, "missing: manifest "+string(gone.Digest)+" (manifests[1] of "+string(index.Digest)+"): ") {
		t.Errorf("without a manifest: %d, %s", status, errs)
	}
}

func TestPullOfABombSaysWhichItIs(t *testing.T) {
	l := newLibrary(t)
	bomb := l.image("powder")
	var wraps []ocispec.Descriptor
	for i := range 30 {
		bomb = l.manifest(indexType, map[string]any{"n": i, "manifests": []any{bomb}})
		wraps = append(wraps, bomb)
	}
	l.tag("v1", bomb)
	_, status, _, errs := l.pullInto(t, ":v1", "--platform", "all")
	if want := string(wraps[30-1-16].Digest) + ": what it refers to is nested more than 16 deep"; status != 1 || !strings.Contains(errs, want) {
		t.Errorf("%d, %s; want %s", status, errs, want)
	}
}

// TestALayoutKeepsWhatItSays of other images, also in fields that nobody knows.
func TestALayoutKeepsWhatItSays(t *testing.T) {
	l := newLibrary(t)
	image := l.image("i")
	l.tag("v1", image)
	cfg := l.config(t)
	n := testNode(t, node.Config{DataConfig: cfg})
	dir := t.TempDir()
	path := filepath.Join(dir, "index.json")
	pull := func() (int, string) {
		status, _, errs := granary(t, "pull", "registry.test/app:v1", "-o", "oci:"+dir, "--node", n.AdminURL())
		return status, errs
	}
	other := `{"digest":"sha256:` + strings.Repeat("0", 64) + `","odd":{"n":12345678901234567890}}`
	if err := os.WriteFile(path, []byte(`{"odd":1,"manifests":[`+other+`]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if status, errs := pull(); status != 0 {
			t.Fatalf("pull: %d, %s", status, errs)
		}
		p, err := os.ReadFile(path)
		var plain bytes.Buffer
		if err == nil {
			err = json.Compact(&plain, p)
		}
		if err != nil || !strings.Contains(plain.String(), other) || !strings.Contains(plain.String(), `"odd":1`) || strings.Count(plain.String(), string(image.Digest)) != 1 {
			t.Errorf("the index is now %s, %v", p, err)
		}
	}
	for _, text := range []string{"null", "[]", `{"manifests":7}`, "", `"x"`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if status, errs := pull(); status != 1 || !strings.Contains(errs, "index.json") {
			t.Errorf("%q: %d, %s", text, status, errs)
		}
	}
}

// TestCompatibilitiesAreKeptWhereOthersLoseThem: a walker that follows manifests, configs
// and layers loses what is nested in platform. A pull does not, nor does a node as long as
// it keeps the index.
func TestCompatibilitiesAreKeptWhereOthersLoseThem(t *testing.T) {
	l := newLibrary(t)
	index, manifest, config, blob := l.compatible()
	l.tag("v1", index)
	compat := []ocispec.Descriptor{manifest, config, blob}

	from, err := remote.NewRepository(strings.TrimPrefix(l.URL, "http://") + "/app")
	if err != nil {
		t.Fatal(err)
	}
	from.PlainHTTP = true
	to := memory.New()
	if _, err := oras.Copy(t.Context(), from, "v1", to, "v1", oras.DefaultCopyOptions); err != nil {
		t.Fatal(err)
	}
	for _, d := range compat {
		if there, err := to.Exists(t.Context(), d); there || err != nil {
			t.Errorf("the other walker has %s: %v, %v", d.Digest, there, err)
		}
	}

	cfg := l.config(t)
	n := testNode(t, node.Config{DataConfig: cfg})
	dir := t.TempDir()
	pull := func(reference string) {
		t.Helper()
		if status, out, errs := granary(t, "pull", reference, "--platform", "all", "-o", "oci:"+dir, "--node", n.AdminURL()); status != 0 {
			t.Fatalf("pull %s: %d, %s%s", reference, status, out, errs)
		}
	}
	pull("registry.test/app:v1")
	for _, d := range compat {
		if !holds(t, dir, d.Digest) {
			t.Errorf("%s was not pulled", d.Digest)
		}
	}

	var layers []any
	for i := range 100 {
		layers = append(layers, l.blob(layerType, fmt.Sprint("a small layer ", i)))
	}
	l.tag("other", l.manifest(imageType, map[string]any{"layers": layers}))
	pull("registry.test/app:other")
	if status, _ := get(t, n.URLs()[0]+"/v2/app/manifests/"+string(index.Digest)); status != http.StatusOK {
		t.Fatalf("the index: %d", status)
	}
	kept := append(compat, index, l.image("amd64"), l.image("arm64"),
		l.blob(ocispec.MediaTypeImageConfig, `{"config of":"amd64"}`), l.blob(ocispec.MediaTypeImageConfig, `{"config of":"arm64"}`))
	size := int64(0)
	for _, d := range kept {
		size += d.Size
	}
	if status, out, errs := granary(t, "gc", "--keep", fmt.Sprint(size), "--node", n.AdminURL(), "--data-dir", cfg.DataDir); status != 0 {
		t.Fatalf("gc: %d, %s%s", status, out, errs)
	}
	stored := func(d digest.Digest) bool {
		_, err := os.Stat(filepath.Join(cfg.DataDir, "blobs", string(d.Algorithm()), d.Encoded()[:2], d.Encoded()))
		return err == nil
	}
	for _, d := range kept {
		if !stored(d.Digest) {
			t.Errorf("%s %s is gone, and the index is kept", d.MediaType, d.Digest)
		}
	}
	for _, layer := range layers {
		if d := layer.(ocispec.Descriptor).Digest; stored(d) {
			t.Errorf("%s is there, which was read before the index", d)
		}
	}
}

// TestANodeMayBeSilentInTheMidstOfABlob for as long as it may take to answer: what it has of the blob may
// come over a thin line.
func TestANodeMayBeSilentInTheMidstOfABlob(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "2")
		_, _ = w.Write([]byte("x"))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer s.Close()
	from, err := repositoryAt(s.URL, node.DataConfig{}, ref.Reference{Repository: ref.Repository{Host: "registry.test", Name: "app"}}, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := from.Get(t.Context(), "blobs/"+string(digest.FromString("xy")), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err == nil || !strings.Contains(err.Error(), "no byte for 50ms") {
		t.Errorf("the error is %v", err)
	}
}
