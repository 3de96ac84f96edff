package peers

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/blocks"
	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/gateway"
)

const gatewayToken = "the token of another site"

// alone starts a node that is in no cluster.
func alone(t *testing.T, r *registry, changes ...func(*node.Config)) *member {
	t.Helper()
	cfg := (&cluster{T: t, registry: r}).settings(changes...)
	cfg.ClusterConfig = node.ClusterConfig{}
	return run(t, cfg)
}

// gates makes a node serve chunks, and more to who shows the token.
func gates(t *testing.T) func(*node.Config) {
	return func(c *node.Config) {
		c.GatewayListen, c.GatewayTokenFile = "127.0.0.1:0", write(t, t.TempDir(), "tokens", gatewayToken+"\n")
	}
}

// mapOf returns what the chunks of a blob are, as a node tells a caller.
func (m *member) mapOf(t *testing.T, path, authorization string) (all proxy.BlobMap) {
	t.Helper()
	eventually(t, "there is a map of "+path, func() bool { // which is when the last chunk is written
		a := m.get(path, "Authorization", authorization)
		return json.Unmarshal(a.body, &all) == nil && len(all.Chunks) > 0
	})
	return all
}

// atGateway asks a node's gateway.
func (m *member) atGateway(t *testing.T, path string, header ...string) (status int, body []byte) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.GatewayURL()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		q.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

func chunkPath(t *testing.T, d digest.Digest) string {
	t.Helper()
	c, err := blocks.CID(d)
	if err != nil {
		t.Fatal(err)
	}
	return "/ipfs/" + c.String() + "?format=raw"
}

// TestAGatewayGivesWhatTheRegistryWould: to everybody, and to who shows a token and a credential.
func TestAGatewayGivesWhatTheRegistryWould(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	secret, open := r.push("secret", "v1", random(3<<20, 101)), r.push("open", "v1", random(2<<20+1, 102))
	r.restrict("basic", map[string]string{username + ":" + password: "secret"}, "secret")
	m := alone(t, r, gates(t))
	good := basic(password)
	if err := m.pull(secret, good); err != nil {
		t.Fatal(err)
	}
	if err := m.pull(open, ""); err != nil {
		t.Fatal(err)
	}
	for _, img := range []*image{secret, open} {
		layer := img.blobs[img.order[1]]
		path := "/v2/" + img.repository + "/_granary/map/" + string(img.order[1])
		for i, d := range m.mapOf(t, path, good).Chunks {
			want := layer[i<<20 : min((i+1)<<20, len(layer))]
			for _, c := range []struct {
				header []string
				opens  bool
			}{
				{nil, false},
				{[]string{"Authorization", good}, false},
				{[]string{gateway.TokenHeader, gatewayToken}, false},
				{[]string{gateway.TokenHeader, gatewayToken, gateway.RepositoryHeader, host + "/secret"}, false},
				{[]string{gateway.TokenHeader, gatewayToken, "Authorization", good}, false},
				{[]string{gateway.TokenHeader, gatewayToken, gateway.RepositoryHeader, host + "/open", "Authorization", good}, false},
				{[]string{gateway.TokenHeader, gatewayToken, gateway.RepositoryHeader, host + "/secret", "Authorization", good}, true},
				{[]string{gateway.TokenHeader, gatewayToken, gateway.RepositoryHeader, host + "/secret", "Authorization", basic("wrong")}, false},
			} {
				if img == open && len(c.header) > 3 && c.header[3] == host+"/secret" {
					continue // it is not in that one
				}
				status, body := m.atGateway(t, chunkPath(t, d), c.header...)
				if opens := c.opens || img == open; opens != (status == http.StatusOK && bytes.Equal(body, want)) || !opens && status != http.StatusNotFound {
					t.Errorf("chunk %d of %s, %q: %d, %d bytes", i, img.repository, c.header, status, len(body))
				}
			}
		}
		if status, _ := m.atGateway(t, path, "Authorization", good); status != http.StatusNotFound {
			t.Errorf("the registry face, without a token: %d", status)
		}
		if status, _ := m.atGateway(t, path, "Authorization", good, gateway.TokenHeader, gatewayToken); status != http.StatusOK {
			t.Errorf("the registry face, with a token: %d", status)
		}
	}
	if status, _ := m.atGateway(t, "/v2/secret/manifests/v1", gateway.TokenHeader, gatewayToken); status != http.StatusUnauthorized {
		t.Errorf("a private manifest, with a token alone: %d", status)
	}
}

// TestAGatewayReadsWhatARuntimeKeeps, of which the node has stored nothing.
func TestAGatewayReadsWhatARuntimeKeeps(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	img := r.push("app", "v1", random(3<<20, 103))
	theirs := newRuntime(t)
	m := alone(t, r, gates(t), theirs.besides("none"))
	if err := m.pull(img, ""); err != nil {
		t.Fatal(err)
	}
	for d, p := range img.blobs {
		theirs.keep(d, p)
	}
	r.kill()
	layer := img.blobs[img.order[1]]
	for i, d := range m.mapOf(t, "/v2/app/_granary/map/"+string(img.order[1]), "").Chunks {
		status, body := m.atGateway(t, chunkPath(t, d))
		if want := layer[i<<20 : min((i+1)<<20, len(layer))]; status != http.StatusOK || !bytes.Equal(body, want) {
			t.Errorf("chunk %d: %d, %d bytes", i, status, len(body))
		}
	}
}
