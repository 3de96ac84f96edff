package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy/upstreamtest"
)

const (
	layoutHost = "registry.test"
	imagePath  = "/v2/" + upstreamtest.Name + "/"
	refName    = "org.opencontainers.image.ref.name"
)

// layoutNode is a node whose registry is at places.
func layoutNode(t *testing.T, places ...string) *node.Node {
	t.Helper()
	return testNode(t, node.Config{DataConfig: node.DataConfig{Upstream: map[string]string{layoutHost: strings.Join(places, ",")}}})
}

// ask makes a request with header fields in pairs.
func ask(t *testing.T, method, url string, fields ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(fields); i += 2 {
		req.Header.Set(fields[i], fields[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if err != nil {
		p = nil // a body that was cut off
	}
	return resp, p
}

// metric returns the value of a metric with its labels.
func metric(t *testing.T, n *node.Node, name string) int {
	t.Helper()
	_, text := get(t, n.AdminURL()+"/metrics")
	m := regexp.MustCompile("(?m)^" + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(text)
	if m == nil {
		return 0
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return int(v)
}

// layoutServers are ways to serve the files of a layout.
var layoutServers = map[string]func(t *testing.T, dir string) (at string){
	"directory": func(_ *testing.T, dir string) string { return "oci:" + dir },
	"web server": func(t *testing.T, dir string) string {
		return "oci+" + fileServer(t, http.FileServer(http.Dir(dir)))
	},
	"web server without ranges": func(t *testing.T, dir string) string {
		return "oci+" + fileServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			http.FileServer(http.Dir(dir)).ServeHTTP(w, r)
		})) + "/"
	},
}

func fileServer(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// TestALayoutIsServedLikeARegistry: manifests, blobs, ranges, tags and referrers.
func TestALayoutIsServedLikeARegistry(t *testing.T) {
	for name, at := range layoutServers {
		t.Run(name, func(t *testing.T) {
			c, dir := upstreamtest.NewContent(), t.TempDir()
			c.WriteLayout(t, dir, layoutHost)
			n := layoutNode(t, at(t, dir))
			url := n.URLs()[0] + imagePath
			for tag, d := range c.Tags {
				want := c.Manifests[d]
				for _, reference := range []string{tag, string(d)} {
					resp, _ := ask(t, http.MethodHead, url+"manifests/"+reference)
					if resp.StatusCode != 200 || resp.ContentLength != int64(len(want.Bytes)) || resp.Header.Get("Docker-Content-Digest") != string(d) || resp.Header.Get("Content-Type") != want.MediaType {
						t.Errorf("HEAD %s: %s, %v", reference, resp.Status, resp.Header)
					}
					resp, p := ask(t, http.MethodGet, url+"manifests/"+reference)
					if resp.StatusCode != 200 || !bytes.Equal(p, want.Bytes) || resp.Header.Get("Content-Type") != want.MediaType {
						t.Errorf("GET %s: %s %s", reference, resp.Status, p)
					}
				}
			}
			layer := c.Blobs[c.Layer]
			for ranged, want := range map[string][]byte{"bytes=1048570-1048580": layer[1048570:1048581], "bytes=-7": layer[len(layer)-7:], "bytes=3145720-": layer[3145720:]} {
				if resp, p := ask(t, http.MethodGet, url+"blobs/"+string(c.Layer), "Range", ranged); resp.StatusCode != 206 || !bytes.Equal(p, want) {
					t.Errorf("%s: %s, %d bytes", ranged, resp.Status, len(p))
				}
			}
			resp, p := ask(t, http.MethodGet, url+"blobs/"+string(c.Layer), "Range", "bytes=0-9,2097152-2097161")
			_, params, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
			parts := multipart.NewReader(bytes.NewReader(p), params["boundary"])
			for _, want := range [][]byte{layer[:10], layer[2097152:2097162]} {
				part, err := parts.NextPart()
				if err != nil {
					t.Fatalf("several ranges: %s, %v", resp.Status, err)
				}
				if got, _ := io.ReadAll(part); !bytes.Equal(got, want) {
					t.Errorf("a part of several is %x", got)
				}
			}
			for d, want := range c.Blobs {
				resp, _ := ask(t, http.MethodHead, url+"blobs/"+string(d))
				if resp.StatusCode != 200 || resp.ContentLength != int64(len(want)) {
					t.Errorf("HEAD %s: %s, %d bytes", d, resp.Status, resp.ContentLength)
				}
				if resp, p := ask(t, http.MethodGet, url+"blobs/"+string(d)); resp.StatusCode != 200 || !bytes.Equal(p, want) {
					t.Errorf("GET %s: %s, %d bytes", d, resp.Status, len(p))
				}
			}
			if _, p := ask(t, http.MethodGet, url+"tags/list?n=2&last=long"); string(p) != `{"name":"team/app","tags":["v1","v2"]}` {
				t.Errorf("tags: %s", p)
			}
			_, p = ask(t, http.MethodGet, url+"referrers/"+string(c.Subject)+"?artifactType=application%2Fexample.sbom")
			if strings.Count(string(p), `"digest"`) != 1 || !strings.Contains(string(p), "example.sbom") {
				t.Errorf("referrers: %s", p)
			}
			if resp, p := ask(t, http.MethodGet, url+"referrers/"+string(c.Layer)); resp.StatusCode != 200 || strings.Contains(string(p), `"digest"`) {
				t.Errorf("referrers of nothing: %s %s", resp.Status, p)
			}
			none := string(digest.FromString("none"))
			for _, path := range []string{imagePath + "manifests/none", imagePath + "manifests/" + none, imagePath + "blobs/" + none, "/v2/team/other/manifests/v1", "/v2/team/other/tags/list"} {
				if resp, p := ask(t, http.MethodGet, n.URLs()[0]+path); resp.StatusCode != 404 {
					t.Errorf("%s: %s %s", path, resp.Status, p)
				}
			}
			served := metric(t, n, `granary_bytes_total{face="http",source="layout"}`)
			if upstream := metric(t, n, `granary_bytes_total{face="http",source="upstream"}`); served == 0 || upstream != 0 {
				t.Errorf("%d bytes are counted as a layout's, %d as an upstream's", served, upstream)
			}
			if _, out, _ := granary(t, "status", "--node", n.AdminURL()); !regexp.MustCompile(`served from layout +[1-9]`).MatchString(out) {
				t.Errorf("status:\n%s", out)
			}
		})
	}
}

// TestSmallPartsOfALayout are read from its files, and counted as such.
func TestSmallPartsOfALayout(t *testing.T) {
	c, dir := upstreamtest.NewContent(), t.TempDir()
	c.WriteLayout(t, dir, layoutHost)
	n := layoutNode(t, "oci:"+dir)
	resp, p := ask(t, http.MethodGet, n.URLs()[0]+imagePath+"blobs/"+string(c.Layer), "Range", "bytes=100000-100099")
	if resp.StatusCode != 206 || !bytes.Equal(p, c.Blobs[c.Layer][100000:100100]) {
		t.Errorf("%s, %d bytes", resp.Status, len(p))
	}
	if got := metric(t, n, `granary_bytes_total{face="http",source="layout"}`); got != 100 {
		t.Errorf("%d bytes are counted as a layout's", got)
	}
}

// TestAPullFromALayout by the command, which writes another one.
func TestAPullFromALayout(t *testing.T) {
	c, dir, out := upstreamtest.NewContent(), t.TempDir(), filepath.Join(t.TempDir(), "out")
	c.WriteLayout(t, dir, "")
	status, text, errs := granary(t, "pull", layoutHost+"/any/name:v2", "-o", "oci:"+out, "--upstream", layoutHost+"=oci:"+dir,
		"--data-dir", t.TempDir(), "--node", "http://127.0.0.1:1")
	if status != 0 || !strings.Contains(text, string(c.Subject)) {
		t.Fatalf("pull: %d, %s%s", status, text, errs)
	}
	// What the command has written can be served in its turn.
	n := layoutNode(t, "oci:"+out)
	if resp, p := ask(t, http.MethodGet, n.URLs()[0]+"/v2/any/name/manifests/v2"); resp.StatusCode != 200 || digest.FromBytes(p) != c.Subject {
		t.Errorf("%s %s", resp.Status, p)
	}
}

// TestALayoutThatChanges is served as it is, while the node runs.
func TestALayoutThatChanges(t *testing.T) {
	for name, at := range layoutServers {
		t.Run(name, func(t *testing.T) {
			c, dir := upstreamtest.NewContent(), filepath.Join(t.TempDir(), "layout")
			c.WriteLayout(t, dir, "")
			n := layoutNode(t, at(t, dir))
			tag := func() string {
				resp, _ := ask(t, http.MethodHead, n.URLs()[0]+"/v2/app/manifests/now")
				return resp.Header.Get("Docker-Content-Digest")
			}
			for _, d := range []digest.Digest{c.Tags["v1"], c.Tags["long"], c.Subject} {
				upstreamtest.WriteIndex(t, dir, c.Describe(d, refName, "now"))
				if got := tag(); got != string(d) {
					t.Errorf("the tag is %s, want %s", got, d)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, "index.json"), []byte(`{"schemaVersion"`), 0o644); err != nil {
				t.Fatal(err)
			}
			if got := tag(); got != string(c.Subject) {
				t.Errorf("while the index is written the tag is %s", got)
			}
			if err := os.Rename(dir, dir+".old"); err != nil {
				t.Fatal(err)
			}
			upstreamtest.WriteBlob(t, dir, c.Tags["v1"], c.Manifests[c.Tags["v1"]].Bytes)
			upstreamtest.WriteIndex(t, dir, c.Describe(c.Tags["v1"], refName, "now"))
			if got := tag(); got != string(c.Tags["v1"]) {
				t.Errorf("in another directory the tag is %s", got)
			}
		})
	}
}

// TestASparseLayout has what it has, and the registry behind it the rest.
func TestASparseLayout(t *testing.T) {
	for name, at := range layoutServers {
		t.Run(name, func(t *testing.T) {
			c, dir := upstreamtest.NewContent(), t.TempDir()
			upstreamtest.WriteBlob(t, dir, c.Subject, c.Manifests[c.Subject].Bytes)
			upstreamtest.WriteIndex(t, dir, c.Describe(c.Subject, refName, "offline"))
			n := layoutNode(t, at(t, dir), fileServer(t, c))
			url := n.URLs()[0] + imagePath
			for path, want := range map[string][]byte{
				"manifests/offline":        c.Manifests[c.Subject].Bytes,
				"manifests/v1":             c.Manifests[c.Tags["v1"]].Bytes,
				"blobs/" + string(c.Layer): c.Blobs[c.Layer],
			} {
				if resp, p := ask(t, http.MethodGet, url+path); resp.StatusCode != 200 || !bytes.Equal(p, want) {
					t.Errorf("%s: %s, %d bytes", path, resp.Status, len(p))
				}
			}
			if got := metric(t, n, `granary_bytes_total{face="http",source="upstream"}`); got != len(c.Blobs[c.Layer]) {
				t.Errorf("%d bytes are counted as the registry's", got)
			}
		})
	}
}

// TestALayoutOpensNothingElse: what a layout has of a private repository is for everybody,
// and what the node has of that repository otherwise is not.
func TestALayoutOpensNothingElse(t *testing.T) {
	c, dir := upstreamtest.NewContent(), t.TempDir()
	upstreamtest.WriteBlob(t, dir, c.Subject, c.Manifests[c.Subject].Bytes)
	upstreamtest.WriteIndex(t, dir, c.Describe(c.Subject, refName, "offline"))
	n := layoutNode(t, "oci:"+dir, fileServer(t, private(c)))
	url := n.URLs()[0] + imagePath
	layer := url + "blobs/" + string(c.Layer)
	if resp, p := ask(t, http.MethodGet, layer, "Authorization", "Bearer secret"); resp.StatusCode != 200 || !bytes.Equal(p, c.Blobs[c.Layer]) {
		t.Fatalf("with a token: %s", resp.Status)
	}
	for _, path := range []string{"manifests/offline", "manifests/" + string(c.Subject), "blobs/" + string(c.Subject)} {
		if resp, _ := ask(t, http.MethodGet, url+path); resp.StatusCode != 200 {
			t.Errorf("%s, which the layout has: %s", path, resp.Status)
		}
		for _, other := range []string{layer, url + "manifests/" + string(c.Tags["v1"]), url + "manifests/v1"} {
			if resp, _ := ask(t, http.MethodGet, other); resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("after %s, %s without a token: %s", path, other, resp.Status)
			}
		}
		if resp, _ := ask(t, http.MethodGet, layer, "Range", "bytes=0-99"); resp.StatusCode != 401 {
			t.Errorf("after %s, a part of the layer without a token: %s", path, resp.Status)
		}
	}
}

// TestALayoutOpensNothingElseInACluster, where one member asks in another one's place, and
// tells others who was served.
func TestALayoutOpensNothingElseInACluster(t *testing.T) {
	c, dir := upstreamtest.NewContent(), t.TempDir()
	upstreamtest.WriteBlob(t, dir, c.Subject, c.Manifests[c.Subject].Bytes)
	upstreamtest.WriteIndex(t, dir, c.Describe(c.Subject, refName, "offline"))
	nodes := clusterOf(t, 3, "oci:"+dir, fileServer(t, private(c)))
	layer := imagePath + "blobs/" + string(c.Layer)
	for _, n := range nodes {
		if resp, p := ask(t, http.MethodGet, n.URLs()[0]+layer, "Authorization", "Bearer secret"); resp.StatusCode != 200 || !bytes.Equal(p, c.Blobs[c.Layer]) {
			t.Fatalf("with a token: %s", resp.Status)
		}
	}
	for range 2 {
		for _, n := range nodes {
			for _, path := range []string{"manifests/offline", "manifests/" + string(c.Subject), "blobs/" + string(c.Subject)} {
				if resp, p := ask(t, http.MethodGet, n.URLs()[0]+imagePath+path); resp.StatusCode != 200 {
					t.Errorf("%s, which the layout has: %s %s", path, resp.Status, p)
				}
			}
		}
		for _, n := range nodes {
			for _, path := range []string{layer, imagePath + "manifests/" + string(c.Tags["v1"]), imagePath + "manifests/v1"} {
				if resp, _ := ask(t, http.MethodGet, n.URLs()[0]+path); resp.StatusCode != 401 {
					t.Errorf("%s without a token: %s", path, resp.Status)
				}
			}
		}
	}
}

// TestALayoutInACluster is read by one member for all; and what the cluster has of it is
// served while it is away.
func TestALayoutInACluster(t *testing.T) {
	c, dir := upstreamtest.NewContent(), filepath.Join(t.TempDir(), "mnt")
	c.WriteLayout(t, dir, "")
	nodes := clusterOf(t, 3, "oci:"+dir)
	pull := func(n *node.Node, when string) {
		t.Helper()
		resp, p := ask(t, http.MethodGet, n.URLs()[0]+imagePath+"manifests/v2")
		if resp.StatusCode != 200 || !bytes.Equal(p, c.Manifests[c.Subject].Bytes) {
			t.Errorf("%s, manifest: %s %s", when, resp.Status, p)
		}
		if resp, p := ask(t, http.MethodGet, n.URLs()[0]+imagePath+"blobs/"+string(c.Layer)); resp.StatusCode != 200 || !bytes.Equal(p, c.Blobs[c.Layer]) {
			t.Errorf("%s, layer: %s, %d bytes", when, resp.Status, len(p))
		}
	}
	pull(nodes[0], "cold")
	pull(nodes[1], "warm")
	peers := 0
	for _, n := range nodes[:2] {
		peers += metric(t, n, `granary_bytes_total{face="http",source="peer"}`)
	}
	if peers == 0 {
		t.Error("nothing came from another member")
	}
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		pull(n, "away")
	}
}

// clusterOf is n nodes that know each other, whose registry is at places.
func clusterOf(t *testing.T, n int, places ...string) (nodes []*node.Node) {
	t.Helper()
	for range n {
		cfg := node.Config{
			DataConfig:    node.DataConfig{Upstream: map[string]string{layoutHost: strings.Join(places, ",")}, MaxStale: time.Hour},
			ClusterConfig: node.ClusterConfig{P2PListen: []string{"/ip4/127.0.0.1/tcp/0"}, GossipListen: "127.0.0.1:0", InsecureCluster: true, Weight: 10, UnprovenRanges: "members"},
		}
		if len(nodes) > 0 {
			cfg.Join = []string{nodes[0].Status().Cluster.Gossip}
		}
		nodes = append(nodes, testNode(t, cfg))
	}
	for _, m := range nodes {
		for up := 0; up < n; time.Sleep(10 * time.Millisecond) {
			up = 0
			for _, p := range m.Status().Cluster.Members {
				if p.State == "up" || p.State == "self" {
					up++
				}
			}
		}
	}
	return nodes
}

// private is a registry that wants a token.
func private(c *upstreamtest.Content) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		c.ServeHTTP(w, r)
	})
}

// TestALayoutThatIsNotThere: the node starts, the layout is found when it is mounted, and
// while it is away again what has been served is served on.
func TestALayoutThatIsNotThere(t *testing.T) {
	c, dir := upstreamtest.NewContent(), filepath.Join(t.TempDir(), "mnt")
	n := layoutNode(t, "oci:"+dir)
	url := n.URLs()[0] + imagePath
	all := []string{"manifests/v2", "manifests/" + string(c.Subject), "blobs/" + string(c.Layer)}
	away := func(when string) {
		t.Helper()
		for _, path := range all {
			if resp, p := ask(t, http.MethodGet, url+path); resp.StatusCode < 500 || !strings.Contains(string(p), dir) {
				t.Errorf("%s, %s: %s %s", when, path, resp.Status, p)
			}
		}
	}
	away("before there is a directory")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	away("before anything is mounted there")
	c.WriteLayout(t, dir, layoutHost)
	for _, path := range all {
		if resp, p := ask(t, http.MethodGet, url+path); resp.StatusCode != 200 {
			t.Errorf("mounted, %s: %s %s", path, resp.Status, p)
		}
	}
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, path := range all {
		resp, p := ask(t, http.MethodGet, url+path)
		if resp.StatusCode != 200 || i == 0 && resp.Header.Get("Warning") == "" {
			t.Errorf("unmounted, %s: %s %v %s", path, resp.Status, resp.Header, p)
		}
	}
	if resp, _ := ask(t, http.MethodGet, url+"manifests/v1"); resp.StatusCode < 500 {
		t.Errorf("unmounted, what was not asked for before: %s", resp.Status)
	}
}

// TestWhatIsNoLayout is a setting that the node does not start with.
func TestWhatIsNoLayout(t *testing.T) {
	dir := t.TempDir()
	upstreamtest.WriteIndex(t, dir)
	for name, change := range map[string]func(){
		"oci-layout: imageLayoutVersion":  func() { _ = os.WriteFile(dir+"/oci-layout", []byte(`{"imageLayoutVersion":"9"}`), 0o644) },
		"oci-layout: the file is missing": func() { os.Remove(dir + "/oci-layout") },
		"index.json: the file is missing": func() { os.Remove(dir + "/index.json"); _ = os.Mkdir(dir+"/other", 0o755) },
	} {
		upstreamtest.WriteIndex(t, dir)
		change()
		cfg := node.Config{DataConfig: node.DataConfig{DataDir: t.TempDir(), Upstream: map[string]string{layoutHost: "oci:" + dir}}}
		n, err := node.New(cfg, slog.New(slog.DiscardHandler))
		if err == nil {
			_ = n.Close()
		}
		var setting *node.SettingError
		if !errors.As(err, &setting) || setting.Name != "upstream" || !strings.Contains(err.Error(), dir+"/"+name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, at := range []string{"oci+ftp://a/b", "oci+https://", "oci-tar:x.tar"} {
		cfg := node.Config{DataConfig: node.DataConfig{DataDir: t.TempDir(), Upstream: map[string]string{layoutHost: at}}}
		var setting *node.SettingError
		if _, err := node.New(cfg, slog.New(slog.DiscardHandler)); !errors.As(err, &setting) {
			t.Errorf("%s: %v", at, err)
		}
	}
}

// TestWrongBytesInALayout: nobody gets them, the node says which file it is, and another
// place is asked where there is one.
func TestWrongBytesInALayout(t *testing.T) {
	for _, sparse := range []bool{false, true} {
		t.Run(fmt.Sprintf("a registry behind it: %v", sparse), func(t *testing.T) {
			c, dir := upstreamtest.NewContent(), t.TempDir()
			c.WriteLayout(t, dir, layoutHost)
			wrong := bytes.Clone(c.Blobs[c.Layer])
			wrong[len(wrong)/2]++
			upstreamtest.WriteBlob(t, dir, c.Layer, wrong)
			places := []string{"oci:" + dir}
			if sparse {
				places = append(places, fileServer(t, c))
			}
			n := layoutNode(t, places...)
			url := n.URLs()[0] + imagePath
			layer := url + "blobs/" + string(c.Layer)
			if _, p := ask(t, http.MethodGet, layer); p != nil {
				t.Errorf("%d bytes came with an end", len(p))
			}
			resp, p := ask(t, http.MethodGet, layer)
			path := filepath.Join(dir, "blobs/sha256", c.Layer.Encoded())
			if sparse && (resp.StatusCode != 200 || !bytes.Equal(p, c.Blobs[c.Layer])) {
				t.Errorf("from the registry: %s, %d bytes", resp.Status, len(p))
			}
			if !sparse && (resp.StatusCode != 502 || !strings.Contains(string(p), path) || !strings.Contains(string(p), string(c.Layer))) {
				t.Errorf("%s %s", resp.Status, p)
			}
			if metric(t, n, `granary_corrupt_total{source="layout"}`) == 0 {
				t.Error("it is not counted")
			}
			if resp, _ := ask(t, http.MethodGet, url+"manifests/v2"); resp.StatusCode != 200 {
				t.Errorf("what is right: %s", resp.Status)
			}
			upstreamtest.WriteBlob(t, dir, c.Layer, c.Blobs[c.Layer])
			if resp, p := ask(t, http.MethodGet, layer); resp.StatusCode != 200 || !bytes.Equal(p, c.Blobs[c.Layer]) {
				t.Errorf("put right: %s", resp.Status)
			}
		})
	}
}

// TestWrongManifestsInALayout and what leads out of it: each answer names the file.
func TestWrongManifestsInALayout(t *testing.T) {
	c, dir := upstreamtest.NewContent(), t.TempDir()
	c.WriteLayout(t, dir, layoutHost)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, c.Manifests[c.Tags["v1"]].Bytes, 0o644); err != nil {
		t.Fatal(err)
	}
	path := func(d digest.Digest) string { return filepath.Join(dir, "blobs", string(d.Algorithm()), d.Encoded()) }
	upstreamtest.WriteBlob(t, dir, c.Subject, bytes.Replace(c.Manifests[c.Subject].Bytes, []byte("2"), []byte("3"), 1))
	upstreamtest.WriteBlob(t, dir, c.Tags["long"], []byte("short"))
	os.Remove(path(c.Tags["v1"]))
	if err := os.Symlink(outside, path(c.Tags["v1"])); err != nil {
		t.Fatal(err)
	}
	n := layoutNode(t, "oci:"+dir)
	for _, tag := range []string{"v1", "v2", "long"} {
		resp, p := ask(t, http.MethodGet, n.URLs()[0]+imagePath+"manifests/"+tag)
		if resp.StatusCode != 502 || !strings.Contains(string(p), path(c.Tags[tag])) {
			t.Errorf("%s: %s %s", tag, resp.Status, p)
		}
	}
}

// TestAWebServerThatRedirects leads nowhere that settings do not name.
func TestAWebServerThatRedirects(t *testing.T) {
	c, dir := upstreamtest.NewContent(), t.TempDir()
	c.WriteLayout(t, dir, layoutHost)
	files := http.FileServer(http.Dir(dir))
	inside := fileServer(t, files)
	n := layoutNode(t, "oci+"+fileServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, c.Layer.Encoded()) {
			http.Redirect(w, r, inside+r.URL.Path, http.StatusFound)
			return
		}
		files.ServeHTTP(w, r)
	})))
	url := n.URLs()[0] + imagePath
	if resp, _ := ask(t, http.MethodGet, url+"manifests/v1"); resp.StatusCode != 200 {
		t.Errorf("what it has itself: %s", resp.Status)
	}
	if resp, p := ask(t, http.MethodGet, url+"blobs/"+string(c.Layer)); resp.StatusCode != 403 {
		t.Errorf("a redirect inside: %s %s", resp.Status, p)
	}
}

// TestManyQuestionsToALayout at once have the right answers.
func TestManyQuestionsToALayout(t *testing.T) {
	c, dir := upstreamtest.NewContent(), t.TempDir()
	c.WriteLayout(t, dir, layoutHost)
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "index.json"), old, old); err != nil {
		t.Fatal(err)
	}
	n := layoutNode(t, "oci:"+dir)
	done := make(chan string)
	for i := range 64 {
		go func() {
			tag := []string{"v1", "v2", "long"}[i%3]
			resp, err := http.Head(n.URLs()[0] + imagePath + "manifests/" + tag)
			if err != nil {
				done <- err.Error()
				return
			}
			resp.Body.Close()
			if got := resp.Header.Get("Docker-Content-Digest"); got != string(c.Tags[tag]) {
				done <- tag + " is " + got
				return
			}
			done <- ""
		}()
	}
	for range 64 {
		if wrong := <-done; wrong != "" {
			t.Error(wrong)
		}
	}
}
