package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/granary-oci/granary/chunkstore/blocks"
	"github.com/granary-oci/granary/proxy/gateway"
	"github.com/granary-oci/granary/simtest/pages"
	"github.com/granary-oci/granary/simtest/programs"
)

const siteToken = "the-token-of-the-sites"

// nginx is one before a gateway, by deploy/README.md.
type nginx struct {
	url, certificate string
	kept             string // the directory of its cache
	log              string // of its answers: method, URI, status, and what the cache had of it
}

// pageBlock returns the only block of a language, of those of the section, that has a word.
func pageBlock(t *testing.T, language, word string) string {
	t.Helper()
	p, err := pages.Section("../../deploy/README.md", "With a cache before the hub")
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range p.Blocks(language) {
		if strings.Contains(block, word) {
			return block
		}
	}
	t.Fatalf("the section has no %s with %s", language, word)
	return ""
}

// replaced is text with pairs of old and new, each of which is in it.
func replaced(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("there is no %s in\n%s", pairs[i], text)
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

// startCache starts nginx before the gateway at an address, as the recipe has it.
func startCache(t *testing.T, gateway string) *nginx {
	t.Helper()
	dir, address := t.TempDir(), programs.FreeAddress(t)
	n := &nginx{"https://" + address, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "kept"), filepath.Join(dir, "answers")}
	key := filepath.Join(dir, "key.pem")
	programs.Run(t, nil, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
		"-subj", "/CN=nginx", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", n.certificate)
	config := programs.Write(t, dir, "nginx.conf", fmt.Sprintf(`daemon off; pid %[1]s/pid; error_log stderr;
events { worker_connections 256; }
http {
	log_format answers '$request_method $request_uri $status $upstream_cache_status'; access_log %[2]s answers;
	client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
%[3]s}
`, dir, n.log, replaced(t, pageBlock(t, "nginx", "proxy_cache"), "443", address, "/var/cache/nginx/granary", n.kept,
		"/etc/nginx/granary.pem", n.certificate, "/etc/nginx/granary.key", key, "127.0.0.1:5054", gateway)))
	programs.Start(t, programs.OfSystem(t, "nginx"), "-c", config, "-g", "user root;")
	programs.Eventually(t, "nginx answers", func() bool {
		resp, err := n.client(t).Get(n.url)
		return err == nil && resp.Body.Close() == nil
	})
	return n
}

// client returns one that knows nginx.
func (n *nginx) client(t *testing.T) *http.Client {
	t.Helper()
	p, err := os.ReadFile(n.certificate)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(p)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	known := x509.NewCertPool()
	known.AddCert(cert)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: known}, DisableKeepAlives: true}}
}

// answers returns what nginx has answered, from line first on: method, URI, status, and what the cache had.
func (n *nginx) answers(t *testing.T, first int) (all []string) {
	t.Helper()
	p, err := os.ReadFile(n.log)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(p)), "\n")[first:]
}

// TestTheSecondSiteIsServedByNginx: what one site has had of a hub through nginx, another gets without
// the hub, and a third, that knows the digest, when the hub is dead. Nothing private is kept on the way,
// and nothing at all of the registry's is for those without the token.
func TestTheSecondSiteIsServedByNginx(t *testing.T) {
	public, private := startRegistry(t), startRegistry(t)
	secret := private.pushSecret(t)
	_ = private.End(syscall.SIGTERM)
	private.serve(t, fmt.Sprintf("auth: {htpasswd: {realm: e2e, path: %s}}\n", programs.Write(t, private.dir, "htpasswd", username+":"+passwordHash+"\n")))

	dir, gate := t.TempDir(), programs.FreeAddress(t)
	tokens := programs.Write(t, dir, "sites", siteToken+"\n")
	config := func(word string, pairs ...string) string {
		text := replaced(t, pageBlock(t, "yaml", word), append(pairs, "/etc/granary/sites", tokens)...)
		return "--config=" + programs.Write(t, dir, word+".yaml", text)
	}
	hub := startNode(t, public.URL, "--upstream", "private.test="+private.URL, config("gateway-listen", "127.0.0.1:5054", gate))
	cache := startCache(t, gate)
	site := func() *node {
		return startNode(t, "http://127.0.0.1:1", "--upstream", "private.test=http://127.0.0.1:1", "--parent-ca-file", cache.certificate,
			config("parent-token-file", "https://hub.example.com", cache.url))
	}
	for _, l := range append(image.Layers, image.Config) {
		hub.pullBlob(t, "go", "", l)
	}
	for i := range image.Layers {
		hub.mapOf(t, "go", ":", i)
	}
	hub.pullImage(t, "private.test/secret", "v1", credential)

	first := site()
	first.pullImage(t, "go", "v1", "")
	first.pullImage(t, "private.test/secret", "v1", credential)
	if status, _ := first.ask(t, "private.test/secret/manifests/v1", ""); status != http.StatusUnauthorized {
		t.Errorf("a private manifest, to nobody: %d", status)
	}
	had := len(cache.answers(t, 0))
	asked := hub.metric(t, "granary_gateway_requests_total")
	site().pullImage(t, "go", "v1", "")
	if now := hub.metric(t, "granary_gateway_requests_total"); now != asked {
		t.Errorf("for the second site the hub was asked for %d chunks", now-asked)
	}
	hits := 0
	for _, answer := range cache.answers(t, had) {
		hit := strings.HasSuffix(answer, " 200 HIT")
		if hit {
			hits++
		}
		if !hit && (strings.Contains(answer, "/ipfs/") || strings.Contains(answer, "/blobs/") || strings.Contains(answer, "/_granary/map/")) {
			t.Errorf("for the second site: %s", answer)
		}
	}
	if chunks := int(image.Layers[0].Size >> 20); hits < chunks {
		t.Errorf("for the second site the cache had %d answers, and the first layer has %d chunks", hits, chunks)
	}
	site().pullImage(t, "private.test/secret", "v1", credential)
	cache.refuses(t, secret)

	_ = hub.End(syscall.SIGKILL)
	third := site()
	third.pullImage(t, "go", string(image.Manifest.Digest), "")
	if status, _ := third.ask(t, "private.test/secret/manifests/"+string(secret.Digest), credential); status == http.StatusOK {
		t.Error("with the hub dead a private manifest came from somewhere")
	}
	cache.refuses(t, secret)
}

const credential = username + ":" + password

// refuses asks for what nginx has of a public image without the token or with another, and looks for a private one
// in its cache.
func (n *nginx) refuses(t *testing.T, secret ocispec.Descriptor) {
	t.Helper()
	manifest := "/v2/" + upstreamName + "/go/manifests/" + string(image.Manifest.Digest)
	for _, token := range []string{"", "another-token-than-that"} {
		for _, path := range []string{manifest, "/v2/" + upstreamName + "/go/_granary/map/" + string(image.Layers[0].Digest) + "?first=0&n=256"} {
			q, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, n.url+path, nil)
			if token != "" {
				q.Header.Set(gateway.TokenHeader, token)
			}
			resp, err := n.client(t).Do(q)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK || resp.Header.Get("X-Cache-Status") == "HIT" {
				t.Errorf("%s, with token %q: %s %s", path, token, resp.Status, resp.Header.Get("X-Cache-Status"))
			}
		}
	}
	c, err := blocks.CID(secret.Digest)
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(n.kept, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		p, err := os.ReadFile(path)
		for _, what := range []string{"private.test", c.String(), siteToken, secretMark} {
			if bytes.Contains(p, []byte(what)) {
				t.Errorf("a file of the cache has %q in it", what)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// secretMark begins each layer of the private image.
const secretMark = "a layer that is not for everybody"

// pushSecret puts an image with a layer of several chunks, and one of one, into the repository secret.
func (r *registry) pushSecret(t *testing.T) (manifest ocispec.Descriptor) {
	t.Helper()
	var layers []ocispec.Descriptor
	push := func(mediaType string, p []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(p), Size: int64(len(p))}
		r.PushBlob(t, "secret", d.Digest, d.Size, bytes.NewReader(p))
		return d
	}
	for i, size := range []int{3 << 20, 1 << 10} {
		p := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(p)
		copy(p, secretMark)
		layers = append(layers, push(ocispec.MediaTypeImageLayer, p))
	}
	p, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: push(ocispec.MediaTypeImageConfig, []byte(`{"architecture":"none"}`)), Layers: layers,
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(p), Size: int64(len(p))}
	r.pushBytes(t, "secret", "v1", manifest.MediaType, p)
	return manifest
}

// ask asks a node for a path below /v2/, with a credential or none.
func (n *node) ask(t *testing.T, path, credential string) (status int, body []byte) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, n.url+"/v2/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if name, secret, ok := strings.Cut(credential, ":"); ok {
		q.SetBasicAuth(name, secret)
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		t.Errorf("%s: %v", path, err)
	}
	return resp.StatusCode, body
}

func (n *node) pullBlob(t *testing.T, repository, credential string, want ocispec.Descriptor) {
	t.Helper()
	if status, body := n.ask(t, repository+"/blobs/"+string(want.Digest), credential); status != http.StatusOK || digest.FromBytes(body) != want.Digest {
		t.Errorf("%s of %s: %d, %d bytes", want.Digest, repository, status, len(body))
	}
}

// pullImage pulls an image, and compares what comes with what its manifest says.
func (n *node) pullImage(t *testing.T, repository, reference, credential string) {
	t.Helper()
	status, body := n.ask(t, repository+"/manifests/"+reference, credential)
	var m ocispec.Manifest
	if err := json.Unmarshal(body, &m); err != nil || status != http.StatusOK {
		t.Fatalf("manifest %s of %s: %d %s", reference, repository, status, body)
	}
	for _, d := range append(m.Layers, m.Config) {
		n.pullBlob(t, repository, credential, d)
	}
}
