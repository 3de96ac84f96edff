package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/simtest/programs"
)

const username, password = "user", "hunter2"

// passwordHash is the bcrypt hash of password.
const passwordHash = "$2a$05$.rNKqaXNoehUHSPFGlIlYuWt.KZ/foxT65MpXBWqmAQKuBKJtmg1G"

// privateRegistry is a docker-registry that holds the image for whoever has the
// password: by Basic authentication, or with tokens of a server of ours.
type privateRegistry struct {
	*registry
	realm  string       // of tokens, "" for Basic
	tokens atomic.Int64 // that have been given
}

func startPrivateRegistry(t *testing.T, scheme string) *privateRegistry {
	t.Helper()
	r := &privateRegistry{registry: startRegistry(t)}
	_ = r.End(syscall.SIGTERM)
	if scheme == "basic" {
		file := programs.Write(t, r.dir, "htpasswd", username+":"+passwordHash+"\n")
		r.serve(t, fmt.Sprintf("auth: {htpasswd: {realm: e2e, path: %s}}\n", file))
		return r
	}
	key, cert := signer(t)
	bundle := programs.Write(t, r.dir, "root.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { r.serveToken(w, q, key, cert) }))
	t.Cleanup(server.Close)
	r.realm = server.URL
	r.serve(t, fmt.Sprintf("auth: {token: {realm: %q, service: e2e, issuer: e2e, rootcertbundle: %s}}\n", server.URL+"/token", bundle))
	return r
}

// signer makes a key and a certificate that vouches for it.
func signer(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "e2e"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

// serveToken gives whoever has the password a token for what they ask
// (distribution, "Token Authentication Implementation").
func (r *privateRegistry) serveToken(w http.ResponseWriter, q *http.Request, key *ecdsa.PrivateKey, cert []byte) {
	user, given, _ := q.BasicAuth()
	_ = q.ParseForm()
	if q.Method == http.MethodPost { // OAuth 2.0, as containerd asks for it
		user, given = q.PostFormValue("username"), q.PostFormValue("password")
	}
	if user != username || given != password {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	access := []map[string]any{}
	for _, scope := range strings.Fields(strings.Join(q.Form["scope"], " ")) {
		if part := strings.Split(scope, ":"); len(part) == 3 {
			access = append(access, map[string]any{"type": part[0], "name": part[1], "actions": strings.Split(part[2], ",")})
		}
	}
	now := time.Now()
	header, _ := json.Marshal(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(cert)}})
	claims, _ := json.Marshal(map[string]any{
		"iss": "e2e", "sub": user, "aud": "e2e", "iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(5 * time.Minute).Unix(),
		"jti": fmt.Sprint(r.tokens.Add(1)), "access": access,
	})
	enc := base64.RawURLEncoding
	text := enc.EncodeToString(header) + "." + enc.EncodeToString(claims)
	sum := sha256.Sum256([]byte(text))
	a, b, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	signature := append(a.FillBytes(make([]byte, 32)), b.FillBytes(make([]byte, 32))...)
	token := text + "." + enc.EncodeToString(signature)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 300})
}

// startPrivateNode starts a node before it, that may get tokens itself or not.
func startPrivateNode(t *testing.T, r *privateRegistry, tokens bool, more ...string) *node {
	t.Helper()
	if r.realm != "" && tokens {
		more = append(more, "--upstream", "tokens.test="+r.realm)
	}
	return startNode(t, r.URL, more...)
}

// puller pulls the image with a password, or with none if that is "", and
// returns what went wrong.
type puller func(t *testing.T, n *node, password string) error

// pullPrivately is the matrix of callers and of what the node knows. tokens is for
// clients for which the node must get tokens. held says for which schemes the
// client comes with the same credential each time, so that it is known while the
// registry is dead.
func pullPrivately(t *testing.T, pull puller, tokens bool, held map[string]bool) {
	for _, scheme := range []string{"basic", "token"} {
		t.Run(scheme, func(t *testing.T) {
			r := startPrivateRegistry(t, scheme)
			n := startPrivateNode(t, r, tokens)
			refused := func(when string) {
				t.Helper()
				for _, given := range []string{"", "wrong"} {
					if err := pull(t, n, given); err == nil {
						t.Errorf("%s: pulled with the password %q", when, given)
					}
				}
			}
			refused("cold")
			if err := pull(t, n, password); err != nil {
				t.Fatalf("cold: %v", err)
			}
			moved := n.metric(t, "granary_upstream_bytes_total")
			refused("cached")
			if err := pull(t, n, password); err != nil {
				t.Errorf("cached: %v", err)
			}
			if again := n.metric(t, "granary_upstream_bytes_total") - moved; again > 2<<20 {
				t.Errorf("what was cached moved %d bytes from the registry", again)
			}
			_ = r.End(syscall.SIGKILL)
			refused("registry dead")
			if err := pull(t, n, password); (err == nil) != held[scheme] {
				t.Errorf("registry dead: %v", err)
			}
			checkNoSecrets(t, n)
		})
	}
}

// checkNoSecrets looks for credentials in all that a node tells and keeps.
func checkNoSecrets(t *testing.T, n *node) {
	t.Helper()
	secrets := []string{password, base64.StdEncoding.EncodeToString([]byte(username + ":" + password)), "eyJ0eXAi", "eyJhbGci"}
	look := func(where string, p []byte) {
		for _, s := range secrets {
			if strings.Contains(string(p), s) {
				t.Errorf("%s has a secret: %s", where, s)
			}
		}
	}
	for _, path := range []string{"/metrics", "/api/v1/status", "/debug/pprof/cmdline"} {
		resp, err := http.Get(n.admin + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		look(path, body)
	}
	files, err := filepath.Glob(n.dir + "/*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in %s: %v", n.dir, err)
	}
	for _, file := range append(files, n.Log) {
		if info, err := os.Stat(file); err != nil || !info.Mode().IsRegular() {
			continue
		}
		p, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		look(file, p)
	}
}

func TestPrivateContainerd16(t *testing.T) {
	t.Parallel()
	programs.NeedRoot(t)
	daemon, ctr := programs.OfSystem(t, "containerd"), programs.OfSystem(t, "ctr")
	pullPrivately(t, func(t *testing.T, n *node, given string) error {
		c := startContainerd(t, daemon, ctr, containerdConfig16)
		args := []string{"-a", c.socket, "content", "fetch", "--hosts-dir", hostsDir(t, n)}
		if given != "" {
			args = append(args, "--user", username+":"+given)
		}
		if _, err := programs.TryRun(t, nil, ctr, append(args, upstreamName+"/go:v1")...); err != nil {
			return err
		}
		checkBlobs(t, c.blob)
		return nil
	}, false, map[string]bool{"basic": true, "token": false}) // it gets a new token each time
}

func TestPrivateCrane(t *testing.T) {
	t.Parallel()
	crane := programs.Tool(t, "crane")
	pullPrivately(t, func(t *testing.T, n *node, given string) error {
		dir := t.TempDir()
		config := `{}`
		if given != "" {
			config = fmt.Sprintf(`{"auths":{%q:{"username":%q,"password":%q}}}`, n.address, username, given)
		}
		programs.Write(t, dir, "config.json", config)
		out := filepath.Join(dir, "image")
		if _, err := programs.TryRun(t, []string{"DOCKER_CONFIG=" + dir}, crane, "pull", "--format", "oci", n.address+"/"+upstreamName+"/go:v1", out); err != nil {
			return err
		}
		checkBlobs(t, func(d digest.Digest) string { return filepath.Join(out, "blobs/sha256", d.Encoded()) })
		return nil
	}, true, map[string]bool{"basic": true, "token": true}) // the node gets the token for it
}

// TestPrivateCRI pulls as a kubelet does: with the credentials of a pull secret.
func TestPrivateCRI(t *testing.T) {
	t.Parallel()
	programs.NeedRoot(t)
	daemon, ctr, cri := programs.Tool(t, "containerd"), programs.Tool(t, "ctr"), programs.Tool(t, "cri")
	pullPrivately(t, func(t *testing.T, n *node, given string) error {
		config := strings.ReplaceAll(containerdConfigCRI, "HOSTS", hostsDir(t, n))
		c := startContainerd(t, daemon, ctr, config)
		args := []string{c.socket, upstreamName + "/go:v1"}
		if given != "" {
			args = append(args, username, given)
		}
		if _, err := programs.TryRun(t, nil, cri, args...); err != nil {
			return err
		}
		checkBlobs(t, c.blob)
		return nil
	}, false, map[string]bool{"basic": true, "token": false})
}

const containerdConfigCRI = `version = 3
root = "DIR/root"
state = "DIR/state"
[grpc]
  address = "DIR/sock"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "HOSTS"
[plugins."io.containerd.transfer.v1.local"]
  config_path = "HOSTS"
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "overlayfs"
    differ = "walking"
`

// TestPrivatePodman: containers/image sends no credentials to a mirror, so that a
// private image comes through the node if that has credentials to share, and
// straight from the registry if not.
func TestPrivatePodman(t *testing.T) {
	t.Parallel()
	programs.NeedRoot(t)
	podman := programs.OfSystem(t, "podman")
	for _, scheme := range []string{"basic", "token"} {
		t.Run(scheme, func(t *testing.T) {
			r := startPrivateRegistry(t, scheme)
			pull := func(n *node) error {
				dir := t.TempDir()
				env := []string{"CONTAINERS_REGISTRIES_CONF=" + mirrorConf(t, n), "REGISTRY_AUTH_FILE=" + programs.Write(t, dir, "auth.json", "{}")}
				base := []string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}
				ref := upstreamName + "/go:v1"
				if _, err := programs.TryRun(t, env, podman, append(base, "pull", ref)...); err != nil {
					return err
				}
				got := programs.Run(t, env, podman, append(base, "image", "inspect", "--format", "{{.Digest}}", ref)...)
				if strings.TrimSpace(got) != string(image.Manifest.Digest) {
					t.Errorf("podman has %s", got)
				}
				return nil
			}
			if err := pull(startPrivateNode(t, r, true)); err == nil {
				t.Error("pulled from a node without credentials")
			}
			config := programs.Write(t, t.TempDir(), "config.json", fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, upstreamName,
				base64.StdEncoding.EncodeToString([]byte(username+":"+password))))
			n := startPrivateNode(t, r, true, "--node-credentials", upstreamName+"=share", "--docker-config", config)
			if err := pull(n); err != nil {
				t.Errorf("cold: %v", err)
			}
			_ = r.End(syscall.SIGKILL)
			if err := pull(n); err != nil {
				t.Errorf("registry dead: %v", err)
			}
			checkNoSecrets(t, n)
		})
	}
}

// TestPrivatePull holds granary pull, which has the user's credentials.
func TestPrivatePull(t *testing.T) {
	t.Parallel()
	pullPrivately(t, func(t *testing.T, n *node, given string) error {
		dir := t.TempDir()
		config := programs.Write(t, dir, "config.json", fmt.Sprintf(`{"auths":{%q:{"username":%q,"password":%q}}}`, upstreamName, username, given))
		if given == "" {
			config = programs.Write(t, dir, "config.json", "{}")
		}
		out := filepath.Join(dir, "image")
		_, err := programs.TryRun(t, nil, granaryBinary, "pull", "--node", n.admin, "--docker-config", config, upstreamName+"/go:v1", "-o", "oci:"+out)
		if err != nil {
			return err
		}
		checkBlobs(t, func(d digest.Digest) string { return filepath.Join(out, "blobs/sha256", d.Encoded()) })
		return nil
	}, false, map[string]bool{"basic": true, "token": false})
}
