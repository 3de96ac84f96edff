package proxy_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// jwt is a token that says when it ends.
func jwt(repository string, expires time.Time) string {
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"none"}`)) + "." + part(fmt.Appendf(nil, `{"exp":%d,"for":%q}`, expires.Unix(), repository)) + ".sig"
}

// TestPrivateImages is the matrix of who asks and what is known.
func TestPrivateImages(t *testing.T) {
	layer := random(2<<20+5, 20)
	right, another := jwt("secret", time.Now().Add(time.Hour)), jwt("other", time.Now().Add(time.Hour))
	expired := jwt("secret", time.Now().Add(-time.Minute))
	type caller = struct{ name, authorization string }
	for scheme, callers := range map[string][]caller{
		"bearer": {
			{"anonymous", ""}, {"right", "Bearer " + right}, {"opaque", "Bearer opaque"}, {"wrong", "Bearer nonsense"},
			{"expired", "Bearer " + expired}, {"another repository's", "Bearer " + another}, {"password", basic(password)},
			{"wrong password", basic("wrong")},
		},
		"basic": {{"anonymous", ""}, {"right", basic(password)}, {"wrong", basic("wrong")}, {"token", "Bearer " + right}},
	} {
		good := map[string]bool{"right": true, "opaque": scheme == "bearer", "password": scheme == "bearer"}
		for _, when := range []string{"cold", "cached", "upstream down"} {
			for _, c := range callers {
				t.Run(scheme+"/"+when+"/"+c.name, func(t *testing.T) {
					o := newOrigin()
					d := o.add("secret", layer)
					o.add("other", layer)
					o.private["secret"], o.private["other"] = scheme, scheme
					o.tokens[right], o.tokens["opaque"], o.tokens[another] = "secret", "secret", "other"
					s := newStack(t, o, true)
					paths := []string{"/v2/secret/manifests/v1", "/v2/secret/manifests/" + string(d), "/v2/secret/blobs/" + string(digest.FromBytes(layer))}
					want := http.StatusUnauthorized
					if good[c.name] {
						want = http.StatusOK
					}
					if when != "cold" {
						s.warm(t, paths, callers, good)
					}
					if when == "upstream down" {
						s.upstream.Close()
						if want != http.StatusOK && c.authorization != "" {
							want = http.StatusServiceUnavailable
						}
					}
					for _, path := range paths {
						resp, body := s.do(t, http.MethodGet, path, "Authorization", c.authorization)
						if resp.StatusCode != want {
							t.Errorf("%s: %s %.200s, want %d", path, resp.Status, body, want)
						}
						switch resp.StatusCode {
						case http.StatusUnauthorized:
							if got := resp.Header.Get("WWW-Authenticate"); got != o.challenge(s.upstream.Listener.Addr().String(), "secret") {
								t.Errorf("%s: challenge %q", path, got)
							}
						case http.StatusServiceUnavailable:
							if resp.Header.Get("Retry-After") == "" {
								t.Errorf("%s: %v", path, resp.Header)
							}
						}
						for _, secret := range []string{right, another, password, strings.TrimPrefix(basic(password), "Basic ")} {
							if resp.StatusCode != http.StatusOK && bytes.Contains(body, []byte(secret)) {
								t.Errorf("%s: the answer tells a secret: %s", path, body)
							}
						}
					}
				})
			}
		}
	}
}

// warm has everybody who may read all of it, and somebody be refused.
func (s *stack) warm(t *testing.T, paths []string, callers []struct{ name, authorization string }, good map[string]bool) {
	t.Helper()
	for _, c := range callers {
		for _, path := range paths {
			resp, body := s.do(t, http.MethodGet, path, "Authorization", c.authorization)
			if (resp.StatusCode == http.StatusOK) != good[c.name] {
				t.Fatalf("%s before the test: %s %s", c.name, resp.Status, body)
			}
		}
	}
}

// TestATokenThatEndsIsNotHeld: the upstream's last word to a token is worth
// nothing after the token's end, whatever the upstream can or cannot say then.
func TestATokenThatEndsIsNotHeld(t *testing.T) {
	o := newOrigin()
	layer := random(1000, 21)
	o.add("secret", layer)
	o.private["secret"] = "bearer"
	token := jwt("secret", time.Now().Add(3*time.Second))
	o.tokens[token] = "secret"
	s := newStack(t, o, true)
	path := "/v2/secret/blobs/" + string(digest.FromBytes(layer))
	s.wantStatus(t, 200, path, "Bearer "+token)
	s.upstream.Close()
	s.wantStatus(t, 200, path, "Bearer "+token)
	time.Sleep(3 * time.Second)
	s.wantStatus(t, 503, path, "Bearer "+token)
}

func (s *stack) wantStatus(t *testing.T, want int, path, authorization string) {
	t.Helper()
	if resp, body := s.do(t, http.MethodGet, path, "Authorization", authorization); resp.StatusCode != want {
		t.Errorf("%s: %s %.300s, want %d", path, resp.Status, body, want)
	}
}

// TestAPublicRepositoryThatTurnsPrivate is served within the memory time at the
// most, and not at all once a refusal has been seen.
func TestAPublicRepositoryThatTurnsPrivate(t *testing.T) {
	o := newOrigin()
	layer := random(1000, 22)
	o.add("app", layer)
	s := newStack(t, o, true, func(c *proxy.Config) { c.Access.PublicFor = time.Second })
	path := "/v2/app/blobs/" + string(digest.FromBytes(layer))
	s.wantStatus(t, 200, path, "")
	o.set(func() { o.private["app"] = "bearer" })
	time.Sleep(time.Second)
	s.wantStatus(t, 401, path, "")
	s.upstream.Close()
	s.wantStatus(t, 401, path, "")
}

// TestADenialBindsItsCredentialAlone has two clients on one cold private blob, in
// both orders.
func TestADenialBindsItsCredentialAlone(t *testing.T) {
	for _, first := range []string{"right", "wrong"} {
		t.Run(first+" first", func(t *testing.T) {
			o := newOrigin()
			layer := random(6<<20, 23)
			o.add("secret", layer)
			o.private["secret"] = "bearer"
			o.tokens["right"] = "secret"
			s := newStack(t, o, true)
			path := "/v2/secret/blobs/" + string(digest.FromBytes(layer))
			order := []string{"right", "wrong"}
			if first == "wrong" {
				order = []string{"wrong", "right"}
			}
			status := map[string]chan string{"right": make(chan string, 1), "wrong": make(chan string, 1)}
			for _, token := range order {
				go func() {
					resp, body := s.do(t, http.MethodGet, path, "Authorization", "Bearer "+token)
					status[token] <- fmt.Sprint(resp.StatusCode, " ", len(body) == len(layer) && bytes.Equal(body, layer))
				}()
				time.Sleep(5 * time.Millisecond)
			}
			if got := <-status["right"]; got != "200 true" {
				t.Errorf("whoever may read gets %s", got)
			}
			if got := <-status["wrong"]; got != "401 false" {
				t.Errorf("whoever may not read gets %s", got)
			}
			if sent := o.sent.Load(); sent > int64(len(layer))*21/20 {
				t.Errorf("the upstream sent %d bytes", sent)
			}
		})
	}
}

// TestAManifestCannotClaimABlob: anyone may push a manifest that names what they
// cannot read.
func TestAManifestCannotClaimABlob(t *testing.T) {
	o := newOrigin()
	layer := random(3<<20, 24)
	o.add("secret", layer)
	o.private["secret"] = "bearer"
	o.tokens["right"] = "secret"
	o.add("evil", layer)
	d := digest.FromBytes(layer)
	o.set(func() { delete(o.blobs, "evil@"+string(d)) })
	s := newStack(t, o, true)
	s.wantStatus(t, 200, "/v2/secret/blobs/"+string(d), "Bearer right")
	s.wantStatus(t, 200, "/v2/evil/manifests/v1", "")
	s.wantStatus(t, 404, "/v2/evil/blobs/"+string(d), "")
	s.upstream.Close()
	s.wantStatus(t, 503, "/v2/evil/blobs/"+string(d), "")
}

// at makes registries of their own for some hosts.
func at(hosts map[string]http.Handler) func(*proxy.Config) {
	return func(c *proxy.Config) {
		ordinary := c.Upstream
		clients := make(map[string]*upstream.Registry)
		for host, h := range hosts {
			server := httptest.NewServer(h)
			clients[host], _ = upstream.New(upstream.Config{URL: server.URL})
		}
		c.Upstream = func(r ref.Repository, authorization string) (proxy.Upstream, error) {
			if clients[r.Host] == nil {
				return ordinary(r, authorization)
			}
			return clients[r.Host].Repository(r.Name).As(authorization), nil
		}
	}
}

// liar is a registry that says of any digest that it has it, and answers GET with
// what get does.
func liar(size int, get http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.Header().Set("Content-Length", fmt.Sprint(size))
			return
		}
		get(w, r)
	})
}

// got is the body of a successful answer.
func (s *stack) got(t *testing.T, path string, header ...string) []byte {
	t.Helper()
	resp, body := s.do(t, http.MethodGet, path, header...)
	if resp.StatusCode < 0 || resp.StatusCode/100 != 2 {
		return nil
	}
	return body
}

// TestARegistryCannotClaimABlob: a registry of the attacker's own may say that it
// has any digest, before or after the blob is stored.
func TestARegistryCannotClaimABlob(t *testing.T) {
	layer := random(5<<20, 25)
	d := digest.FromBytes(layer)
	for name, get := range map[string]http.HandlerFunc{
		"other bytes": func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(random(len(layer), 26)))
		},
		"503": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) },
		"404": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) },
		"cut": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		for _, before := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, before it is stored %v", name, before), func(t *testing.T) {
				o := newOrigin()
				o.add("secret", layer)
				o.private["secret"] = "bearer"
				o.tokens["right"] = "secret"
				s := newStack(t, o, true, at(map[string]http.Handler{"a.liar": liar(len(layer), get), "z.liar": liar(len(layer), get)}))
				claim := func() {
					for i := range 120 { // as many places as may be looked at
						s.do(t, http.MethodHead, fmt.Sprintf("/v2/a.liar/x%d/blobs/%s", i, d))
					}
					for _, host := range []string{"a.liar", "z.liar"} {
						for _, rang := range []string{"", "bytes=0-99", "bytes=4194304-5000000"} {
							body := s.got(t, "/v2/"+host+"/x0/blobs/"+string(d), "Range", rang)
							if len(body) > 0 && bytes.Contains(layer, body[:min(len(body), 64)]) {
								t.Fatalf("%s, Range %q: bytes of another registry", host, rang)
							}
						}
					}
				}
				if before {
					claim()
				}
				for range 3 {
					if !bytes.Equal(s.got(t, "/v2/secret/blobs/"+string(d), "Authorization", "Bearer right"), layer) {
						t.Fatal("the blob itself")
					}
				}
				claim()
				sent := o.sent.Load()
				if !bytes.Equal(s.got(t, "/v2/secret/blobs/"+string(d), "Authorization", "Bearer right"), layer) {
					t.Error("the blob was lost by what the liar sent")
				}
				if more := o.sent.Load() - sent; more > 1<<20 {
					t.Errorf("the liar made the node fetch %d bytes again", more)
				}
			})
		}
	}
}

// TestARegistryCannotPoisonABlob with wrong bytes that are stored before the
// right ones come.
func TestARegistryCannotPoisonABlob(t *testing.T) {
	layer := random(5<<20, 29)
	d := string(digest.FromBytes(layer))
	wrong := bytes.Clone(layer)
	copy(wrong[2<<20:], "wrong")
	o := newOrigin()
	o.add("app", layer)
	s := newStack(t, o, true, at(map[string]http.Handler{"a.liar": liar(len(layer), func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(wrong))
	})}))
	for range 3 {
		s.got(t, "/v2/a.liar/x/blobs/"+d, "Range", "bytes=2097152-2097999")
		for _, rang := range []string{"bytes=2097152-2097999", "", "bytes=0-", "bytes=2097152-2097999"} {
			want := layer
			if strings.HasSuffix(rang, "999") {
				want = layer[2<<20 : 2<<20+848]
			}
			if !bytes.Equal(s.got(t, "/v2/app/blobs/"+d, "Range", rang), want) {
				t.Fatalf("Range %q: wrong bytes", rang)
			}
		}
	}
}

// TestRegistriesThatShareABlob: what both have is fetched once, but for a piece.
func TestRegistriesThatShareABlob(t *testing.T) {
	layer := random(5<<20, 30)
	d := string(digest.FromBytes(layer))
	o := newOrigin()
	o.add("app", layer)
	s := newStack(t, o, true, at(map[string]http.Handler{"honest.test": o}))
	if !bytes.Equal(s.got(t, "/v2/app/blobs/"+d), layer) {
		t.Fatal("the blob itself")
	}
	sent := o.sent.Load()
	for range 3 {
		if !bytes.Equal(s.got(t, "/v2/honest.test/app/blobs/"+d), layer) {
			t.Error("the blob under its other name")
		}
	}
	if more := o.sent.Load() - sent; more > 1<<20 {
		t.Errorf("%d bytes were fetched of a blob that is here", more)
	}
}

// TestAReaderLosesWhatIsNotItsOwn: a reader that was opened before the blob
// became another registry's reads nothing of that.
func TestAReaderLosesWhatIsNotItsOwn(t *testing.T) {
	layer := random(24<<20, 31)
	d := string(digest.FromBytes(layer))
	release := make(chan struct{})
	o := newOrigin()
	o.add("secret", layer)
	o.private["secret"] = "bearer"
	o.tokens["right"] = "secret"
	s := newStack(t, o, true, at(map[string]http.Handler{"a.liar": liar(len(layer), func(w http.ResponseWriter, r *http.Request) {
		if rang := r.Header.Get("Range"); !strings.HasPrefix(rang, "bytes=0-") && rang != "bytes=1048576-2097151" {
			<-release
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(make([]byte, len(layer))))
	})}))
	s.got(t, "/v2/a.liar/x/blobs/"+d, "Range", "bytes=1048576-1048577") // for the node to learn that ranges work there
	resp, err := http.Get(s.url + "/v2/a.liar/x/blobs/" + d)            // the supplier of what is not there yet
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for range 2 {
		if !bytes.Equal(s.got(t, "/v2/secret/blobs/"+d, "Authorization", "Bearer right"), layer) {
			t.Fatal("the blob itself")
		}
	}
	close(release)
	body, _ := io.ReadAll(resp.Body)
	if i := bytes.IndexFunc(body, func(c rune) bool { return c != 0 }); i >= 0 {
		t.Errorf("byte %d of %d is another registry's", i, len(body))
	}
}

func TestGrantsSurviveARestart(t *testing.T) {
	// A new registry over the same catalog is a node that was started again.
	o := newOrigin()
	layer := random(1000, 27)
	o.add("secret", layer)
	o.private["secret"] = "basic"
	var kept proxy.Config
	s := newStack(t, o, true, func(c *proxy.Config) { kept = *c })
	path := "/v2/secret/blobs/" + string(digest.FromBytes(layer))
	s.wantStatus(t, 200, path, basic(password))
	s.upstream.Close()
	again := newStack(t, o, false, func(c *proxy.Config) { *c = kept })
	again.wantStatus(t, 200, path, basic(password))
	again.wantStatus(t, 503, path, basic("wrong"))
	again.wantStatus(t, 503, path, "") // nobody was refused before, so no challenge is known
}

// TestNodeCredentialsAreShared: with a registry's policy "share", what the node
// can pull, whoever asks it can; a caller's own credentials are tried after.
func TestNodeCredentialsAreShared(t *testing.T) {
	o := newOrigin()
	layer := random(1000, 28)
	o.add("secret", layer)
	o.private["secret"] = "bearer"
	up := httptest.NewServer(o)
	t.Cleanup(up.Close)
	shared := true
	var kept proxy.Config
	s := newStack(t, o, true, func(c *proxy.Config) {
		client, err := upstream.New(upstream.Config{
			URL:         up.URL,
			Credentials: func(context.Context, string) (string, string, error) { return username, password, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		c.Access.Shared = func(string) bool { return shared }
		c.Upstream = func(r ref.Repository, authorization string) (proxy.Upstream, error) {
			if !shared {
				plain, err := upstream.New(upstream.Config{URL: up.URL})
				return plain.Repository(r.Name).As(authorization), err
			}
			return client.Repository(r.Name).As(authorization), nil
		}
		kept = *c
	})
	path := "/v2/secret/blobs/" + string(digest.FromBytes(layer))
	s.wantStatus(t, 200, path, "")
	s.wantStatus(t, 200, path, "Bearer nonsense")
	shared = false
	off := newStack(t, o, false, func(c *proxy.Config) { *c = kept })
	off.wantStatus(t, 401, path, "")
}

// TestALaterRangeIsNotAnothers: the ranges of one request are read one after the
// other, as slowly as the client likes, and the blob may become another
// registry's between two of them.
func TestALaterRangeIsNotAnothers(t *testing.T) {
	layer := random(24<<20, 32)
	d := string(digest.FromBytes(layer))
	o := newOrigin()
	o.add("secret", layer)
	o.private["secret"] = "bearer"
	o.tokens["right"] = "secret"
	s := newStack(t, o, true, at(map[string]http.Handler{"a.liar": liar(len(layer), func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(make([]byte, len(layer))))
	})}))
	req, err := http.NewRequest(http.MethodGet, s.url+"/v2/a.liar/x/blobs/"+d, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Range", "bytes=0-16777215,20971520-22020095")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for range 3 {
		if !bytes.Equal(s.got(t, "/v2/secret/blobs/"+d, "Authorization", "Bearer right"), layer) {
			t.Fatal("the blob itself")
		}
	}
	body, _ := io.ReadAll(resp.Body)
	if len(body) < 16<<20 || bytes.Contains(body, layer[20<<20:20<<20+64]) {
		t.Errorf("%d bytes, another registry's among them", len(body))
	}
}

// TestEmptyBlobs have one chunk, of no bytes, at whichever registry.
func TestEmptyBlobs(t *testing.T) {
	o := newOrigin()
	o.add("app", []byte{})
	d := string(digest.FromString(""))
	s := newStack(t, o, true, at(map[string]http.Handler{"other.test": o}))
	for range 2 {
		for _, path := range []string{"/v2/app/blobs/", "/v2/other.test/app/blobs/"} {
			if resp, body := s.do(t, http.MethodGet, path+d); resp.StatusCode != 200 || len(body) > 0 {
				t.Errorf("%s: %s, %d bytes", path, resp.Status, len(body))
			}
		}
	}
}
