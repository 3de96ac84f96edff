package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// guarded is a registry that wants tokens, with their server at /token.
type guarded struct {
	*origin
	challenge string // with %s for the base URL
	// respond answers a request for a token; nil is a new token each time
	respond func(w http.ResponseWriter, r *http.Request)
	expires int

	mu      sync.Mutex
	issued  int
	revoked int          // tokens up to this one are refused
	queries []url.Values // of requests for tokens
	users   []string     // who made them
	seen    []string     // Authorization of requests to the registry
}

func newGuarded(t testing.TB, content ...[]byte) *guarded {
	g := makeGuarded(newOrigin(t, content...))
	g.challenge = strings.ReplaceAll(g.challenge, "%s", g.URL)
	return g
}

func makeGuarded(o *origin) *guarded {
	g := &guarded{origin: o, challenge: `Bearer realm="%s/token?keep=1",service="the registry",scope="repository:app:pull"`}
	o.answer = g.guard
	return g
}

func (g *guarded) guard(w http.ResponseWriter, r *http.Request) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.URL.Path == "/token" {
		g.token(w, r)
		return true
	}
	given := r.Header.Get("Authorization")
	g.seen = append(g.seen, given)
	n := 0
	if _, err := fmt.Sscanf(given, "Bearer token-%d", &n); err == nil && n > g.revoked {
		return false
	}
	w.Header().Set("WWW-Authenticate", g.challenge)
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

func (g *guarded) token(w http.ResponseWriter, r *http.Request) {
	g.queries = append(g.queries, r.URL.Query())
	user, password, _ := r.BasicAuth()
	g.users = append(g.users, strings.Trim(user+":"+password, ":"))
	if g.respond != nil {
		g.respond(w, r)
		return
	}
	g.issued++
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"access_token":"token-%d","expires_in":%d}`, g.issued, g.expires)
}

func (g *guarded) counts(t *testing.T, tokens, requests int) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.queries) != tokens || len(g.seen) != requests {
		t.Errorf("%d token requests and %d to the registry, want %d and %d", len(g.queries), len(g.seen), tokens, requests)
	}
}

func stat(t *testing.T, p *Repository, content []byte) error {
	n, err := p.Stat(t.Context(), refsTo(t, content)[0].Blob)
	if err == nil && n != int64(len(content)) {
		t.Errorf("size is %d", n)
	}
	return err
}

func wantStatus(t *testing.T, err error, code int) *StatusError {
	t.Helper()
	var status *StatusError
	if !errors.As(err, &status) {
		t.Fatalf("error is %v, want status %d", err, code)
	}
	if status.Code != code {
		t.Fatalf("status is %d, want %d", status.Code, code)
	}
	return status
}

func TestTokenFlow(t *testing.T) {
	content := random(1000)
	g := newGuarded(t, content)
	r := registry(t, g.URL)
	for range 3 { // the repository is a new one each time
		if err := stat(t, r.Repository("app"), content); err != nil {
			t.Fatal(err)
		}
	}
	g.counts(t, 1, 4)
	want := url.Values{"keep": {"1"}, "service": {"the registry"}, "scope": {"repository:app:pull"}}
	if got := g.queries[0].Encode(); got != want.Encode() {
		t.Errorf("the token is asked for with %s, want %s", got, want.Encode())
	}
	if g.users[0] != "" || g.seen[0] != "" || g.seen[3] != "Bearer token-1" {
		t.Errorf("users %q, authorizations %q", g.users, g.seen)
	}
	fetch(t, r.Repository("app"), content, refsTo(t, content))
	g.counts(t, 1, 5)
}

func TestTokenWithCredentials(t *testing.T) {
	content := random(1000)
	g := newGuarded(t, content)
	var asked string
	r := registry(t, g.URL, func(c *Config) {
		c.Credentials = func(_ context.Context, host string) (string, string, error) {
			asked = host
			return "ann", "hunter2", nil
		}
	})
	if err := stat(t, r.Repository("app"), content); err != nil {
		t.Fatal(err)
	}
	if g.users[0] != "ann:hunter2" || slices.ContainsFunc(g.seen, func(s string) bool { return strings.HasPrefix(s, "Basic") }) {
		t.Errorf("the token server saw %q, the registry %q", g.users, g.seen)
	}
	if want := strings.TrimPrefix(g.URL, "http://"); asked != want {
		t.Errorf("credentials were asked for %q, want %q", asked, want)
	}
}

func TestCredentialsFail(t *testing.T) {
	content := random(1000)
	g := newGuarded(t, content)
	broken := errors.New("helper is missing")
	r := registry(t, g.URL, func(c *Config) {
		c.Credentials = func(context.Context, string) (string, string, error) { return "", "", broken }
	})
	if err := stat(t, r.Repository("app"), content); !errors.Is(err, broken) || Unreachable(err) {
		t.Errorf("error is %v", err)
	}
}

func TestScopes(t *testing.T) {
	for scope, want := range map[string][]string{
		``:             {"repository:org/app:pull"},
		`,scope=""`:    {"repository:org/app:pull"},
		`,scope="a"`:   {"a"},
		`,scope="a b"`: {"a", "b"},
	} {
		content := random(10)
		g := newGuarded(t, content)
		g.challenge = `Bearer realm="` + g.URL + `/token"` + scope
		if err := stat(t, registry(t, g.URL).Repository("org/app"), content); err != nil {
			t.Fatal(err)
		}
		if got := g.queries[0]["scope"]; !slices.Equal(got, want) || g.queries[0].Has("service") {
			t.Errorf("challenge with %q asks for %v", scope, g.queries[0])
		}
	}
}

func TestConcurrentTokensAreOne(t *testing.T) {
	content := random(1000)
	g := newGuarded(t, content)
	var both sync.WaitGroup // refused before the token comes
	both.Add(2)
	inner := g.guard
	g.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			both.Wait()
			time.Sleep(50 * time.Millisecond) // for the second to ask; late, it finds the token
		} else if r.Header.Get("Authorization") == "" {
			defer both.Done()
		}
		return inner(w, r)
	}
	r := registry(t, g.URL)
	var calls sync.WaitGroup
	for range 2 {
		calls.Go(func() {
			if err := stat(t, r.Repository("app"), content); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	g.counts(t, 1, 4)
}

func TestRevokedTokenIsRenewed(t *testing.T) {
	content := random(1000)
	g := newGuarded(t, content)
	r := registry(t, g.URL)
	for range 2 {
		if err := stat(t, r.Repository("app"), content); err != nil {
			t.Fatal(err)
		}
		g.revoked++
	}
	g.counts(t, 2, 4)
}

// A refusal reaches the caller as the registry made it, for a client to answer.
func TestRefusalIsRelayed(t *testing.T) {
	content := random(1000)
	for name, respond := range map[string]func(http.ResponseWriter, *http.Request){
		"token server refuses": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) },
		"token server denies":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) },
		"token server is lost": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) },
		"token is refused":     func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"hunter2"}`) },
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t, content)
			g.respond = respond
			p := registry(t, g.URL).Repository("app")
			for range 2 {
				err := stat(t, p, content)
				status := wantStatus(t, err, 401)
				if got := status.Header.Get("WWW-Authenticate"); got != g.challenge {
					t.Errorf("the challenge is %q, want %q", got, g.challenge)
				}
				if errors.Is(err, chunk.ErrNotFound) || Unreachable(err) {
					t.Errorf("error is %v", err)
				}
				wantNoSecret(t, err, "hunter2")
			}
			if len(g.queries) != 2 {
				t.Errorf("%d tokens were asked for, want one for each request", len(g.queries))
			}
		})
	}
}

// A known demand that the token server refuses is not held against a repository
// that has become public.
func TestRepositoryBecomesPublic(t *testing.T) {
	content := random(1000)
	g := newGuarded(t, content)
	g.expires = -1
	p := registry(t, g.URL).Repository("app")
	if err := stat(t, p, content); err != nil {
		t.Fatal(err)
	}
	g.respond = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }
	g.answer = func(w http.ResponseWriter, r *http.Request) bool {
		return r.URL.Path == "/token" && g.guard(w, r)
	}
	if err := stat(t, p, content); err != nil {
		t.Error(err)
	}
}

func TestBasic(t *testing.T) {
	content := random(1000)
	o := newOrigin(t, content)
	var seen []string
	password := "hunter2"
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		user, given, _ := r.BasicAuth()
		seen = append(seen, user)
		if user == "ann" && given == password {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	p := registry(t, o.URL, withPassword).Repository("app")
	for range 2 {
		if err := stat(t, p, content); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(seen, ","); got != ",ann,ann" {
		t.Errorf("users are %q", got)
	}
	password = "changed"
	wantNoSecret(t, stat(t, p, content), "hunter2")
	status := wantStatus(t, stat(t, registry(t, o.URL).Repository("app"), content), 401)
	if status.Header.Get("WWW-Authenticate") != `Basic realm="r"` {
		t.Errorf("headers are %v", status.Header)
	}
}

func TestBearerIsPreferred(t *testing.T) {
	content := random(1000)
	g := newGuarded(t, content)
	g.challenge = `Negotiate, Basic realm="x", ` + g.challenge
	if err := stat(t, registry(t, g.URL, withPassword).Repository("app"), content); err != nil {
		t.Fatal(err)
	}
	g.counts(t, 1, 2)
}

func TestRealmsThatAreRefused(t *testing.T) {
	content := random(1000)
	for _, c := range []struct{ base, realm, says string }{
		{"https://registry.test", "http://auth.test/token", "not https"},
		{"http://registry.test", "ftp://auth.test/token", "no http"},
		{"http://registry.test", "/token", "no http"},
		{"http://registry.test", "", "no http"},
		{"http://registry.test", "http://a:hunter2@auth.test/", "no http"},
		{"http://registry.test", "http://a:hunter2", "no http"},
	} {
		r := registry(t, c.base)
		_, err := r.auth.meet(t.Context(), r.Repository("app"), []string{fmt.Sprintf("Bearer realm=%q", c.realm)}, grant{})
		var no *noGrantError
		if !errors.As(err, &no) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("realm %q at %s: %v", c.realm, c.base, err)
		}
		wantNoSecret(t, err, "hunter2")
	}
	g := newGuarded(t, content)
	g.challenge = `Bearer realm="gopher://auth.test"`
	err := stat(t, registry(t, g.URL).Repository("app"), content)
	if status := wantStatus(t, err, 401); status.Header.Get("WWW-Authenticate") != g.challenge {
		t.Errorf("headers are %v", status.Header)
	}
	if !strings.Contains(err.Error(), "realm") {
		t.Errorf("error does not tell why: %v", err)
	}
}

// A registry that makes up a new challenge each time is not followed for ever.
func TestEndlessChallenges(t *testing.T) {
	content := random(1000)
	g := newGuarded(t, content)
	g.revoked = 1 << 30
	n := 0
	inner := g.guard
	g.answer = func(w http.ResponseWriter, r *http.Request) bool {
		n++
		g.challenge = fmt.Sprintf(`Bearer realm="%s/token",scope="s%d"`, g.URL, n)
		return inner(w, r)
	}
	wantStatus(t, stat(t, registry(t, g.URL).Repository("app"), content), 401)
	if len(g.seen) != maxAuthRounds {
		t.Errorf("%d requests", len(g.seen))
	}
}

func TestRefusedMidBlob(t *testing.T) {
	content := random(3 * mib)
	o := newOrigin(t, content)
	n := 0
	o.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if n++; n == 1 {
			sendPart(w, r, content, mib+7)
		}
		w.WriteHeader(http.StatusForbidden)
		return true
	}
	err := chunk.GetRun(t.Context(), registry(t, o.URL).Repository("app").Blob(), refsTo(t, content), func(chunk.Ref, []byte) error { return nil })
	wantStatus(t, err, 403)
	if n != 3 {
		t.Errorf("%d requests, want one more than the refused one", n)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	z := registry(t, "http://registry.test").auth
	for i := range 3 * maxRemembered {
		remember(z.known, fmt.Sprint(i), demand{})
		z.keep(demand{scope: fmt.Sprint(i)}, token{expires: time.Now().Add(time.Hour)})
	}
	if len(z.known) != maxRemembered || len(z.tokens) != maxRemembered {
		t.Errorf("%d repositories and %d tokens are remembered", len(z.known), len(z.tokens))
	}
	if _, ok := z.tokens[demand{scope: fmt.Sprint(3*maxRemembered - 1)}]; !ok {
		t.Error("the newest token is not among them")
	}
}
