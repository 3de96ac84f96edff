package peers

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/cmd/granary/node"
)

const username, password = "user", "hunter2-and-more"

func basic(password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(username+":"+password))
}

// jwt is a token that says when it ends.
func jwt(note string, expires time.Time) string {
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"none"}`)) + "." + part(fmt.Appendf(nil, `{"exp":%d,"note":%q}`, expires.Unix(), note)) + ".sig"
}

// restrict makes repositories private, for whoever has these credentials.
func (r *registry) restrict(scheme string, rights map[string]string, repositories ...string) {
	r.set(func() {
		for _, name := range repositories {
			r.private[name] = scheme
		}
		for credential, repository := range rights {
			r.rights[credential] = append(r.rights[credential], repository)
		}
	})
}

// impatient makes members ask again who may read soon.
func impatient(c *node.Config) { c.PublicFor, c.GrantFor = time.Second, time.Second }

// TestWhoMayReadOnWhichMember is the matrix of who asks, which member, and whether
// the registry is alive.
func TestWhoMayReadOnWhichMember(t *testing.T) {
	t.Parallel()
	good, another := jwt("good", time.Now().Add(time.Hour)), jwt("another", time.Now().Add(time.Hour))
	callers := map[string]string{
		"anonymous": "", "right token": "Bearer " + good, "right password": basic(password),
		"wrong token": "Bearer nonsense-token", "wrong password": basic("wrong-password"), "another repository's token": "Bearer " + another,
	}
	for scheme, right := range map[string]map[string]bool{
		"bearer": {"right token": true, "right password": true},
		"basic":  {"right password": true},
	} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			layer := random(5<<20, 11)
			secretImage, public := r.push("secret", "v1", layer), r.push("public", "v1", random(3<<20, 12))
			r.push("other", "v1", layer)
			r.restrict(scheme, map[string]string{good: "secret", another: "other", username + ":" + password: "secret"}, "secret", "other")
			evil := r.push("evil", "v1", layer) // it names what it does not have
			r.set(func() { delete(r.content, "evil/blobs/"+string(digest.FromBytes(layer))) })
			c := newCluster(t, r, 2)
			saw := c.members[0]
			for name, authorization := range callers {
				if err := saw.pull(secretImage, authorization); (err == nil) != right[name] {
					t.Fatalf("%s, cold: %v", name, err)
				}
			}
			for _, img := range []*image{public, evil} { // of the second the manifest alone can be had
				if err := saw.pull(img, ""); (err == nil) != (img == public) {
					t.Fatalf("%s: %v", img.repository, err)
				}
			}
			check := func(when string, m *member, down bool) {
				t.Helper()
				for name, authorization := range callers {
					want := map[int]bool{http.StatusOK: true}
					switch {
					case right[name]:
					case down && authorization != "":
						want = map[int]bool{http.StatusServiceUnavailable: true, http.StatusUnauthorized: true}
					default:
						want = map[int]bool{http.StatusUnauthorized: true}
					}
					for _, path := range []string{"manifests/v1", "manifests/" + string(secretImage.manifest), "blobs/" + string(digest.FromBytes(layer))} {
						a := m.get("/v2/secret/"+path, "Authorization", authorization)
						if a.err != nil || !want[a.status] {
							t.Errorf("%s, %s: %s: %d %v %.200s", when, name, path, a.status, a.err, a.body)
						}
						if a.status == http.StatusUnauthorized && a.header.Get("Www-Authenticate") != r.challenge("secret") {
							t.Errorf("%s, %s: %s: challenge %q", when, name, path, a.header.Get("Www-Authenticate"))
						}
					}
				}
				if err := m.pull(public, ""); err != nil {
					t.Errorf("%s: what is public: %v", when, err)
				}
				for _, repository := range []string{"public", "evil", "other"} {
					for _, authorization := range []string{"", "Bearer nonsense-token"} {
						a := m.get("/v2/"+repository+"/blobs/"+string(digest.FromBytes(layer)), "Authorization", authorization)
						if a.err == nil && a.status/100 == 2 {
							t.Errorf("%s: the private layer by way of %s", when, repository)
						}
					}
				}
			}
			check("alive, saw it", saw, false)
			check("alive, other member", c.members[1], false)
			r.kill()
			check("dead, saw it", saw, true)
			check("dead, other member", c.members[1], true)
			check("dead, came later", c.join(), true)
			c.stop(saw)
			c.meet()
			check("dead, came later, and the first has gone", c.members[1], true)
			checkNoSecrets(t, append(c.members, saw), good, another, "nonsense-token", password, "wrong-password",
				strings.TrimPrefix(basic(password), "Basic "), strings.TrimPrefix(basic("wrong-password"), "Basic "))
		})
	}
}

// checkNoSecrets looks for credentials in all that members tell and keep.
func checkNoSecrets(t *testing.T, members []*member, secrets ...string) {
	t.Helper()
	look := func(where string, p []byte) {
		for _, s := range append(secrets, secret) {
			if bytes.Contains(p, []byte(s)) {
				t.Errorf("%s has the secret %s", where, s)
			}
		}
	}
	for _, m := range members {
		look("the log", []byte(m.log.String()))
		for _, path := range []string{"/metrics", "/api/v1/status", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2"} {
			resp, err := client.Get(m.AdminURL() + path)
			if err != nil {
				continue // it has left
			}
			body, _ := readAll(resp)
			look(path, body)
		}
		err := filepath.WalkDir(m.cfg.DataDir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			p, err := os.ReadFile(path)
			look(path, p)
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// TestARightThatEnds is heard of by a member that joins after the registry died.
func TestARightThatEnds(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	layer := random(1<<20, 13)
	path := func(repository string) string {
		return "/v2/" + repository + "/blobs/" + string(digest.FromBytes(layer))
	}
	for _, repository := range []string{"turned", "revoked", "expiring", "stays"} {
		r.push(repository, "v1", layer)
	}
	expires := time.Now().Add(10 * time.Second)
	revoked, expiring := jwt("revoked", time.Now().Add(time.Hour)), jwt("expiring", expires)
	r.restrict("bearer", map[string]string{revoked: "revoked", expiring: "expiring"}, "revoked", "expiring")
	c := newCluster(t, r, 3, impatient)
	want := func(when string, m *member, repository, token string, statuses ...int) {
		t.Helper()
		authorization := ""
		if token != "" {
			authorization = "Bearer " + token
		}
		a := m.get(path(repository), "Authorization", authorization)
		for _, s := range statuses {
			if a.status == s {
				return
			}
		}
		t.Errorf("%s: %s: %d %v %.200s, want %v", when, repository, a.status, a.err, a.body, statuses)
	}
	for _, m := range c.members {
		want("at first", m, "turned", "", 200)
		want("at first", m, "stays", "", 200)
		want("at first", m, "revoked", revoked, 200)
		want("at first", m, "expiring", expiring, 200)
	}
	r.set(func() { r.private["turned"] = "bearer"; delete(r.rights, revoked) })
	eventually(t, "the grants are old enough for the registry to be asked", func() bool {
		return c.members[0].get(path("turned")).status == 401 && c.members[0].get(path("revoked"), "Authorization", "Bearer "+revoked).status == 401
	})
	r.kill()
	late := c.join()
	for when, m := range map[string]*member{"the member that was refused": c.members[0], "a member that came later": late} {
		want(when, m, "turned", "", 401)
		want(when, m, "revoked", revoked, 401, 503)
		want(when, m, "stays", "", 200)
	}
	if time.Now().Before(expires) {
		if a := late.get(path("expiring"), "Authorization", "Bearer "+expiring); a.status != 200 && time.Now().Before(expires) {
			t.Errorf("a token that is good: %d %.200s", a.status, a.body)
		}
	}
	eventually(t, "the token has expired", func() bool { return time.Now().After(expires) })
	for _, m := range c.members {
		want("after the token's end", m, "expiring", expiring, 401, 503)
	}
	want("after the token's end", c.join(), "expiring", expiring, 401, 503)
}

// TestADenialBindsOneCredential: clients with good and bad credentials ask for one
// cold blob through all members at once.
func TestADenialBindsOneCredential(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	layer := random(9<<20, 14)
	img := r.push("secret", "v1", layer)
	r.restrict("bearer", map[string]string{"good-token": "secret"}, "secret")
	c := newCluster(t, r, 3)
	var all sync.WaitGroup
	for i, m := range c.members {
		for _, token := range []string{"bad-token", "good-token", "bad-token", ""} {
			all.Go(func() {
				a := m.get(img.path(digest.FromBytes(layer)), "Authorization", "Bearer "+token)
				switch {
				case token == "good-token" && !bytes.Equal(a.body, layer):
					t.Errorf("node %d: whoever may read: %d %v %.200s", i+1, a.status, a.err, a.body)
				case token != "good-token" && a.status != http.StatusUnauthorized:
					t.Errorf("node %d: whoever may not read: %d %v", i+1, a.status, a.err)
				}
			})
		}
	}
	all.Wait()
}

// TestNodeCredentials are for the users of a node that shares them, and not for
// those of other members.
func TestNodeCredentials(t *testing.T) {
	t.Parallel()
	for _, both := range []bool{false, true} {
		t.Run(fmt.Sprintf("on both %v", both), func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			img := r.push("secret", "v1", random(9<<20, 15))
			r.restrict("bearer", map[string]string{username + ":" + password: "secret"}, "secret")
			config := write(t, t.TempDir(), "config.json", fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, strings.TrimPrefix(basic(password), "Basic ")))
			share := func(c *node.Config) {
				c.NodeCredentials, c.DockerConfig = map[string]string{host: "share"}, config
			}
			c := newCluster(t, r, 0)
			with := c.start(share)
			other := c.start(func(c *node.Config) {
				if both {
					share(c)
				}
			})
			c.meet()
			check := func(when string) {
				t.Helper()
				var all sync.WaitGroup
				for _, m := range []*member{with, other} {
					all.Go(func() {
						err := m.pull(img, "")
						if may := both || m == with; (err == nil) != may {
							t.Errorf("%s: on the node with credentials %v: %v", when, m == with, err)
						}
					})
				}
				all.Wait()
				if both {
					return
				}
				for _, path := range append([]string{"/v2/secret/manifests/v1", "/v2/secret/manifests/" + string(img.manifest)}, img.path(img.order[0]), img.path(img.order[1])) {
					if a := other.get(path); a.status/100 == 2 {
						t.Errorf("%s: %s by the other's credentials", when, path)
					}
				}
			}
			check("cold")
			if sent := r.sent.Load(); sent != img.size() && !slow {
				t.Errorf("%d bytes left the registry, of an image of %d", sent, img.size())
			}
			check("cached")
			if err := other.pull(img, basic(password)); err != nil {
				t.Errorf("with the user's own password: %v", err)
			}
			r.kill()
			check("registry dead")
			late := c.join()
			if a := late.get(img.path(img.order[1])); a.status/100 == 2 {
				t.Errorf("a node that came later gives it to anybody")
			}
			checkNoSecrets(t, c.members, password, strings.TrimPrefix(basic(password), "Basic "))
		})
	}
}
