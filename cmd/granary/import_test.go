package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/cmd/granary/node"
)

const nowhere = "http://127.0.0.1:1" // where no registry and no node answers

// alone is a node in a directory, whose registries cannot be reached.
func alone(t *testing.T, dir string) *node.Node {
	t.Helper()
	return testNode(t, node.Config{DataConfig: node.DataConfig{DataDir: dir, Upstream: map[string]string{"registry.test": nowhere, "other.test": nowhere}}})
}

// pullFrom pulls everything of an image from a node into a layout.
func pullFrom(t *testing.T, n *node.Node, image string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	status, out, errs := granary(t, "pull", image, "--platform", "all", "--referrers", "-o", "oci:"+dir, "--node", n.AdminURL())
	if status != 0 || strings.Contains(errs, "not there") {
		t.Errorf("pull: %d, %s%s", status, out, errs)
	}
	return dir
}

// TestALargeArtifact of no type that is known is exported, imported and served as an image is.
func TestALargeArtifact(t *testing.T) {
	for name, form := range exports {
		t.Run(name, func(t *testing.T) {
			l, dir, data := newLibrary(t), t.TempDir(), t.TempDir()
			l.tag("v1", l.manifest(imageType, map[string]any{
				"artifactType": oddType, "config": l.blob(ocispec.MediaTypeEmptyJSON, "{}"),
				"layers": []any{l.blob("application/octet-stream", strings.Repeat("a model of which all is the same\n", 300_000))},
			}))
			l.exported(t, "registry.test/app:v1", form.target(dir))
			l.same(t, form.files(t, dir), "")
			status, out, errs := granary(t, "import", form.target(dir), "--data-dir", data, "--node", nowhere, "--upstream", "registry.test="+nowhere)
			if status != 0 {
				t.Fatalf("import: %d, %s%s", status, out, errs)
			}
			l.same(t, pullFrom(t, alone(t, data), "registry.test/app:v1"), "")
		})
	}
}

// TestWhatIsImportedIsServedWithoutItsRegistry: by the node that it was imported through, by one
// that holds the directory later, and to those who ask for referrers or tags.
func TestWhatIsImportedIsServedWithoutItsRegistry(t *testing.T) {
	for name, form := range exports {
		for _, lists := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, the registry lists referrers %v", name, lists), func(t *testing.T) {
				l, dir, data := newLibrary(t), t.TempDir(), t.TempDir()
				index := l.everything(lists)
				l.exported(t, "registry.test/app:v1", form.target(dir), "--referrers")
				importing := []string{"import", form.target(dir), "--data-dir", data, "--node", nowhere, "--upstream", "registry.test=" + nowhere}
				status, out, errs := granary(t, importing...)
				if status != 0 || !strings.HasPrefix(out, "registry.test/app: ") {
					t.Fatalf("import: %d, %s%s", status, out, errs)
				}
				n := alone(t, data)
				l.same(t, pullFrom(t, n, "registry.test/app:v1"), nested)
				if _, text := get(t, n.URLs()[0]+"/v2/app/tags/list"); !strings.Contains(text, `"v1"`) {
					t.Errorf("tags are %s", text)
				}
				// Through the node, and nothing of it a second time.
				status, out, errs = granary(t, importing...)
				if status != 0 || strings.Contains(errs, "  done") || !strings.Contains(errs, "already there") {
					t.Errorf("again: %d, %s%s", status, out, errs)
				}
				if resp, p := ask(t, http.MethodGet, n.URLs()[0]+"/v2/app/manifests/v1"); resp.StatusCode != 200 || digest.FromBytes(p) != index.Digest {
					t.Errorf("the tag is %s %s", resp.Status, p)
				}
			})
		}
	}
}

func TestAnImportIsSharedWithTheCluster(t *testing.T) {
	l, dir := newLibrary(t), t.TempDir()
	l.everything(true)
	big := l.blob(layerType, strings.Repeat("a layer of several chunks ", 300_000))
	l.tag("big", l.manifest(imageType, map[string]any{"layers": []any{big}}))
	l.exported(t, "registry.test/app:v1", "registry.test/app:big", "oci:"+dir, "--referrers")
	nodes := clusterOf(t, 3, nowhere)
	if status, out, errs := granary(t, "import", "oci:"+dir, "--node", nodes[0].AdminURL()); status != 0 {
		t.Fatalf("import: %d, %s%s", status, out, errs)
	}
	for i, n := range nodes {
		if resp, m := ask(t, http.MethodGet, n.URLs()[0]+"/v2/app/manifests/big"); resp.StatusCode != 200 {
			t.Errorf("node %d, manifest: %s %s", i, resp.Status, m)
		}
		if resp, p := ask(t, http.MethodGet, n.URLs()[0]+"/v2/app/blobs/"+string(big.Digest)); resp.StatusCode != 200 || digest.FromBytes(p) != big.Digest {
			t.Errorf("node %d, layer: %s, %d bytes", i, resp.Status, len(p))
		}
	}
}

// TestAnImportOpensNothingElse of a repository, and its registry decides once it can be asked.
func TestAnImportOpensNothingElse(t *testing.T) {
	l, dir, data := newLibrary(t), t.TempDir(), t.TempDir()
	l.tag("v1", l.image("imported"))
	secret := l.image("secret")
	l.tag("v2", secret)
	l.exported(t, "registry.test/app:v1", "oci:"+dir)
	closed := fileServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		l.ServeHTTP(w, r)
	}))
	serving := func(t *testing.T, upstream string) string {
		return testNode(t, node.Config{DataConfig: node.DataConfig{DataDir: data, Upstream: map[string]string{"registry.test": upstream}}}).URLs()[0] + "/v2/app/"
	}
	if status, out, errs := granary(t, "import", "oci:"+dir, "--data-dir", data, "--node", nowhere); status != 0 {
		t.Fatalf("import: %d, %s%s", status, out, errs)
	}
	t.Run("while the registry answers", func(t *testing.T) {
		url := serving(t, closed)
		if resp, _ := ask(t, http.MethodGet, url+"manifests/v2", "Authorization", "Bearer secret"); resp.StatusCode != 200 {
			t.Fatalf("with a token: %s", resp.Status)
		}
		if resp, _ := ask(t, http.MethodGet, url+"manifests/v1"); resp.StatusCode != 401 {
			t.Errorf("what was imported, without a token: %s", resp.Status)
		}
	})
	t.Run("while it does not", func(t *testing.T) {
		url := serving(t, nowhere)
		if resp, _ := ask(t, http.MethodGet, url+"manifests/v1"); resp.StatusCode != 200 {
			t.Errorf("what was imported: %s", resp.Status)
		}
		for _, other := range []string{"manifests/v2", "manifests/" + string(secret.Digest)} {
			if resp, _ := ask(t, http.MethodGet, url+other); resp.StatusCode == 200 {
				t.Errorf("%s, which was not imported: %s", other, resp.Status)
			}
		}
	})
}

func TestImportOfWhatAnotherExportLacks(t *testing.T) {
	l, old, delta, data := newLibrary(t), t.TempDir(), t.TempDir(), t.TempDir()
	base, top := l.blob(layerType, "base"), l.blob(layerType, "top")
	l.tag("v1", l.manifest(imageType, map[string]any{"layers": []any{base}}))
	image := l.manifest(imageType, map[string]any{"layers": []any{base, top}})
	l.tag("v2", image)
	l.exported(t, "registry.test/app:v1", "oci:"+old)
	l.exported(t, "registry.test/app:v2", "oci:"+delta, "--since", "oci:"+old)
	n := alone(t, data)
	importing := func(dir string) (int, string) {
		status, _, errs := granary(t, "import", "oci:"+dir, "--node", n.AdminURL())
		return status, errs
	}
	want := "missing: blob " + string(base.Digest) + " (layers[0] of " + string(image.Digest) + ")"
	if status, errs := importing(delta); status != 1 || !strings.Contains(errs, want) || n.Status().Store.Blobs != 0 {
		t.Errorf("without the old one: %d, %s; want %s", status, errs, want)
	}
	for _, dir := range []string{old, delta} {
		if status, errs := importing(dir); status != 0 {
			t.Errorf("import: %d, %s", status, errs)
		}
	}
	pulled := pullFrom(t, n, "registry.test/app:v2")
	for _, d := range []ocispec.Descriptor{image, base, top} {
		if !holds(t, pulled, d.Digest) {
			t.Errorf("%s is not served", d.Digest)
		}
	}
}

// TestADigestDoesNotDoForBytes: a layout that names what the node has from a registry, and has
// it not, makes nothing of it public.
func TestADigestDoesNotDoForBytes(t *testing.T) {
	l, dir := newLibrary(t), t.TempDir()
	secret := l.blob(layerType, "secret")
	image := l.manifest(imageType, map[string]any{"layers": []any{secret}})
	l.tag("v1", image)
	n := testNode(t, node.Config{DataConfig: l.config(t)})
	if status, out, errs := granary(t, "pull", "registry.test/app:v1", "-o", "oci:"+dir, "--node", n.AdminURL()); status != 0 {
		t.Fatalf("pull: %d, %s%s", status, out, errs)
	}
	remove(t, layoutFile(dir, secret.Digest))
	if status, _, errs := granary(t, "import", "oci:"+dir, "--node", n.AdminURL()); status != 1 || !strings.Contains(errs, "missing: blob "+string(secret.Digest)) {
		t.Errorf("import: %d, %s", status, errs)
	}
}

// TestAnImportOfOnePlatform is of what was exported of one.
func TestAnImportOfOnePlatform(t *testing.T) {
	l, dir := newLibrary(t), t.TempDir()
	index, _, _, _ := l.compatible()
	l.tag("v1", index)
	l.exported(t, "registry.test/app:v1", "oci:"+dir, "--platform", "linux/amd64")
	n := alone(t, t.TempDir())
	if status, _, errs := granary(t, "import", "oci:"+dir, "--node", n.AdminURL()); status != 1 || !strings.Contains(errs, "missing: manifest "+string(l.image("arm64").Digest)+" (manifests[1] of "+string(index.Digest)+")") {
		t.Errorf("of all: %d, %s", status, errs)
	}
	if status, _, errs := granary(t, "import", "oci:"+dir, "--platform", "linux/amd64", "--node", n.AdminURL()); status != 0 {
		t.Errorf("of one: %d, %s", status, errs)
	}
	if status, _, errs := granary(t, "pull", "registry.test/app:v1", "--platform", "linux/amd64", "--node", n.AdminURL()); status != 0 {
		t.Errorf("pull: %d, %s", status, errs)
	}
}

// TestWhatWasExportedByItsDigest is imported by it, into the repository that it came from, be it
// an image or what refers to one.
func TestWhatWasExportedByItsDigest(t *testing.T) {
	l, dir, data := newLibrary(t), t.TempDir(), t.TempDir()
	image, other := l.image("i"), l.image("other")
	signature := l.manifest(imageType, map[string]any{"subject": other, "layers": []any{l.blob(oddType, "signature")}})
	names := []string{"registry.test/app@" + string(image.Digest), "registry.test/app:v1@" + string(signature.Digest)}
	out, _ := l.exported(t, append(names, "oci:"+dir)...)
	if !strings.HasPrefix(out, names[0]+": ") {
		t.Errorf("it says %s", out)
	}
	if status, out, errs := granary(t, "import", "oci:"+dir, "--data-dir", data, "--node", nowhere); status != 0 {
		t.Fatalf("import: %d, %s%s", status, out, errs)
	}
	url := alone(t, data).URLs()[0] + "/v2/app/"
	for _, d := range []ocispec.Descriptor{image, signature, other} {
		if resp, p := ask(t, http.MethodGet, url+"manifests/"+string(d.Digest)); resp.StatusCode != 200 || digest.FromBytes(p) != d.Digest {
			t.Errorf("%s: %s", d.Digest, resp.Status)
		}
	}
	if resp, _ := ask(t, http.MethodGet, url+"manifests/v1"); resp.StatusCode == 200 {
		t.Error("a tag beside a digest has become one")
	}
}

// TestNamesOfImports as skopeo, crane and others write them.
func TestNamesOfImports(t *testing.T) {
	l, dir := newLibrary(t), t.TempDir()
	image := l.image("i")
	l.tag("v1", image)
	l.exported(t, "registry.test/app:v1", "oci:"+dir)
	for _, c := range []struct {
		name string // in the layout
		ref  string
		want string // "" for an error
	}{
		{"registry.test/app:v1", "", "app:v1"},
		{"team/app:v1", "", "team/app:v1"},
		{"v1", "", ""},
		{"v1", "registry.test/b/c:v2", "b/c:v1"},
		{"", "", ""},
		{"", "registry.test/b/c:v2", "b/c:v2"},
		{"", "b/c", "b/c:latest"},
		{"v1", "registry.test/app@" + string(image.Digest), ""},
	} {
		p, err := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{named(image, c.name)}})
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "index.json"), bytes.Replace(p, []byte(`"schemaVersion":0`), []byte(`"schemaVersion":2`), 1), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		n := alone(t, t.TempDir())
		args := []string{"import", "oci:" + dir, "--node", n.AdminURL(), "--default-upstream", "registry.test"}
		if c.ref != "" {
			args = append(args, c.ref)
		}
		status, _, errs := granary(t, args...)
		if c.want == "" {
			if status != 1 || !strings.Contains(errs, string(image.Digest)) {
				t.Errorf("%+v: %d, %s", c, status, errs)
			}
			continue
		}
		name, tag, _ := strings.Cut(c.want, ":")
		if resp, _ := ask(t, http.MethodHead, n.URLs()[0]+"/v2/"+name+"/manifests/"+tag); status != 0 || resp.Header.Get("Docker-Content-Digest") != string(image.Digest) {
			t.Errorf("%+v: %d, %s; %s", c, status, errs, resp.Status)
		}
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// TestImportsAreEvictedLast: what was pulled since goes before them.
func TestImportsAreEvictedLast(t *testing.T) {
	l, dir, cfg := newLibrary(t), t.TempDir(), node.DataConfig{}
	imported := l.image("imported")
	l.tag("v1", imported)
	l.exported(t, "registry.test/app:v1", "oci:"+dir)
	size := imported.Size + l.blob(layerType, "layer of imported").Size + l.blob(ocispec.MediaTypeImageConfig, `{"config of":"imported"}`).Size
	cfg = l.config(t)
	n := testNode(t, node.Config{DataConfig: cfg})
	if status, out, errs := granary(t, "import", "oci:"+dir, "--node", n.AdminURL()); status != 0 {
		t.Fatalf("import: %d, %s%s", status, out, errs)
	}
	l.tag("v2", l.image("pulled"))
	if status, out, errs := granary(t, "pull", "registry.test/app:v2", "--node", n.AdminURL()); status != 0 {
		t.Fatalf("pull: %d, %s%s", status, out, errs)
	}
	if status, out, errs := granary(t, "gc", "--keep", fmt.Sprint(size), "--node", n.AdminURL(), "--data-dir", cfg.DataDir); status != 0 {
		t.Fatalf("gc: %d, %s%s", status, out, errs)
	}
	stored := func(d digest.Digest) bool {
		_, err := os.Stat(filepath.Join(cfg.DataDir, "blobs", string(d.Algorithm()), d.Encoded()[:2], d.Encoded()))
		return err == nil
	}
	for _, d := range []ocispec.Descriptor{imported, l.blob(layerType, "layer of imported")} {
		if !stored(d.Digest) {
			t.Errorf("%s is gone", d.Digest)
		}
	}
	if stored(l.blob(layerType, "layer of pulled").Digest) {
		t.Error("what was pulled is there")
	}
}

// request makes a request with a body, and returns how it is answered.
func request(t *testing.T, method, url string, body io.Reader) (status int, text string) {
	t.Helper()
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp.StatusCode, string(p)
}

// TestANodeVerifiesWhatItIsGiven, whoever gives it: nothing of what is wrong is kept, and what is
// not there makes nothing belong.
func TestANodeVerifiesWhatItIsGiven(t *testing.T) {
	n := alone(t, t.TempDir())
	send := func(method, path, body string) (int, string) {
		t.Helper()
		return request(t, method, n.AdminURL()+"/api/v1/import"+path, strings.NewReader(body))
	}
	for name, content := range map[string]string{"one chunk": "a small blob", "several chunks": strings.Repeat("a large blob ", 300_000)} {
		d := digest.FromString(content)
		path := fmt.Sprintf("/%s?repository=registry.test/app&size=%d", d, len(content))
		for what, body := range map[string]string{
			"other bytes": strings.ToUpper(content), "fewer bytes": content[1:], "more bytes": content + "x", "none": "",
		} {
			if status, text := send(http.MethodPut, path, body); status != http.StatusBadRequest || !strings.Contains(text, string(d)) {
				t.Errorf("%s, %s: %d %s", name, what, status, text)
			}
		}
		member := fmt.Sprintf(`{"members":{"%s":{"size":%d}}}`, d, len(content))
		if status, text := send(http.MethodPost, "?repository=registry.test/app", member); status != http.StatusBadRequest || !strings.Contains(text, string(d)) || n.Status().Store.Blobs != 0 {
			t.Errorf("%s, what is not there: %d %s, %d blobs", name, status, text, n.Status().Store.Blobs)
		}
		if status, text := send(http.MethodPut, path, content); status != 200 {
			t.Errorf("%s: %d %s", name, status, text)
		}
		blob := n.URLs()[0] + "/v2/app/blobs/" + string(d)
		if resp, _ := ask(t, http.MethodGet, blob); resp.StatusCode == 200 {
			t.Errorf("%s is served, and belongs nowhere", name)
		}
		if status, text := send(http.MethodPost, "?repository=registry.test/app", member); status != 200 {
			t.Errorf("%s, what is there: %d %s", name, status, text)
		}
		if resp, p := ask(t, http.MethodGet, blob); resp.StatusCode != 200 || string(p) != content {
			t.Errorf("%s: %s, %d bytes", name, resp.Status, len(p))
		}
		n = alone(t, t.TempDir())
	}
	for _, path := range []string{"/sha256:x?repository=registry.test/app&size=1", "/" + string(digest.FromString("")) + "?repository=registry.test/app&size=-1", "/" + string(digest.FromString("")) + "?repository=&size=0"} {
		if status, text := send(http.MethodPut, path, ""); status != http.StatusBadRequest || text == "" {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
}
