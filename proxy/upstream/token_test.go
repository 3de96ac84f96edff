package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

func TestTokenExpires(t *testing.T) {
	content := random(1000)
	for name, c := range map[string]struct {
		expires int
		wait    time.Duration
		tokens  int
	}{
		"fresh":            {300, 200 * time.Second, 1},
		"about to expire":  {300, 295 * time.Second, 2},
		"default":          {0, 45 * time.Second, 1},
		"default, expired": {0, 55 * time.Second, 2},
		"short":            {4, 2 * time.Second, 1},
		"absurd":           {1 << 40, 25 * time.Hour, 2},
		"negative":         {-5, 0, 2},
	} {
		t.Run(name, func(t *testing.T) {
			g := makeGuarded(makeOrigin(content))
			g.challenge = strings.ReplaceAll(g.challenge, "%s", "http://registry.test")
			g.expires = c.expires
			inBubble(t, g, func(t *testing.T, r *Registry) {
				for range 2 {
					if err := stat(t, r.Repository("app"), content); err != nil {
						t.Fatal(err)
					}
					time.Sleep(c.wait)
				}
			})
			// an expired token is not tried: the registry never sees it
			g.counts(t, c.tokens, 3)
		})
	}
}

func TestTokenAge(t *testing.T) {
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	date := now.Add(-time.Hour) // the server's clock is an hour behind
	for name, c := range map[string]struct {
		issued string
		want   time.Duration
	}{
		"just now":     {date.Format(time.RFC3339), 290 * time.Second},
		"a minute ago": {date.Add(-time.Minute).Format(time.RFC3339), 230 * time.Second},
		"in an hour":   {date.Add(time.Hour).Format(time.RFC3339), 290 * time.Second},
		"nonsense":     {"yesterday", 290 * time.Second},
		"long ago":     {date.Add(-time.Hour).Format(time.RFC3339), 290*time.Second - time.Hour},
	} {
		raw := fmt.Sprintf(`{"token":"x","expires_in":300,"issued_at":%q}`, c.issued)
		got, err := parseToken([]byte(raw), date.Format(http.TimeFormat), now)
		if err != nil || got.expires.Sub(now) != c.want {
			t.Errorf("%s: lives for %v, %v, want %v", name, got.expires.Sub(now), err, c.want)
		}
	}
}

func TestBrokenTokenServers(t *testing.T) {
	content := random(1000)
	for name, c := range map[string]struct {
		respond     func(http.ResponseWriter, *http.Request)
		unreachable bool
		says        string
	}{
		"503":       {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, true, "token"},
		"429":       {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) }, false, "429"},
		"cut":       {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, true, "token"},
		"no JSON":   {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<hunter2>") }, false, "JSON"},
		"no token":  {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") }, false, "no token"},
		"bad token": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"hunter2\r\nX: y"}`) }, false, "no token"},
		"endless token": {func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"token":%q}`, strings.Repeat("x", 70<<10))
		}, false, "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t, content)
			g.respond = c.respond
			err := stat(t, registry(t, g.URL).Repository("app"), content)
			wantNoSecret(t, err, "hunter2", "keep=1")
			if Unreachable(err) != c.unreachable || errors.Is(err, chunk.ErrNotFound) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

// A token that expires in the middle of a blob is renewed for the rest.
func TestTokenExpiresMidBlob(t *testing.T) {
	content := random(3 * mib)
	for _, code := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		g := newGuarded(t, content)
		n := 0
		g.answer = func(w http.ResponseWriter, r *http.Request) bool {
			if g.guard(w, r) {
				return true
			}
			switch n++; n {
			case 1:
				sendPart(w, r, content, mib+7)
			case 2:
				w.Header().Set("WWW-Authenticate", g.challenge)
				w.WriteHeader(code)
				return true
			}
			return false
		}
		fetch(t, registry(t, g.URL).Repository("app"), content, refsTo(t, content)).want(0, 1, 2)
		if len(g.queries) != 2 || g.seen[len(g.seen)-1] != "Bearer token-2" {
			t.Errorf("%d: %d tokens, authorizations %q", code, len(g.queries), g.seen)
		}
	}
}

// One who leaves does not take the token from those who wait for it too.
func TestTokenOutlivesItsCaller(t *testing.T) {
	content := random(1000)
	g := makeGuarded(makeOrigin(content))
	g.challenge = strings.ReplaceAll(g.challenge, "%s", "http://registry.test")
	slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			time.Sleep(5 * time.Second)
		}
		g.ServeHTTP(w, r)
	})
	inBubble(t, slow, func(t *testing.T, r *Registry) {
		p := r.Repository("app")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		left := make(chan error)
		go func() {
			_, err := p.Stat(ctx, refsTo(t, content)[0].Blob)
			left <- err
		}()
		synctest.Wait()
		stayed := make(chan error)
		go func() { stayed <- stat(t, p, content) }()
		begin := time.Now()
		if err := <-left; !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Second {
			t.Errorf("the one who leaves: after %v, %v", time.Since(begin), err)
		}
		if err := <-stayed; err != nil {
			t.Errorf("the one who stays: %v", err)
		}
	})
	g.counts(t, 1, 3)
}

func FuzzToken(f *testing.F) {
	f.Add([]byte(`{"token":"a","expires_in":300,"issued_at":"2030-01-01T00:00:00Z"}`), "Tue, 01 Jan 2030 00:00:10 GMT")
	f.Add([]byte(`{"access_token":"a","expires_in":1e300}`), "")
	f.Add([]byte(`{"token":"a b"}`), "x")
	f.Add([]byte(`{"token":"a","expires_in":-1e300,"issued_at":"0001-01-01T00:00:00Z"}`), "Fri, 31 Dec 9999 23:59:59 GMT")
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, raw []byte, date string) {
		tok, err := parseToken(raw, date, now)
		if err != nil {
			return
		}
		if strings.ContainsAny(strings.TrimPrefix(tok.header, "Bearer "), " \r\n\t") {
			t.Errorf("header is %q", tok.header)
		}
		if tok.expires.After(now.Add(maxTokenLife)) {
			t.Errorf("it lives until %v", tok.expires)
		}
	})
}

// TestIdentityToken: it is refreshed by POST, and never sent as a password.
func TestIdentityToken(t *testing.T) {
	content := random(10)
	g := newGuarded(t, content)
	g.expires = 300
	var method string
	var form url.Values
	g.respond = func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		method, form = r.Method, r.PostForm
		g.issued++
		fmt.Fprintf(w, `{"access_token":"token-%d","expires_in":300,"refresh_token":"another"}`, g.issued)
	}
	r := registry(t, g.URL, func(c *Config) {
		c.Credentials = func(context.Context, string) (string, string, error) { return "<token>", "sesame", nil }
	})
	if err := stat(t, r.Repository("app"), content); err != nil {
		t.Fatal(err)
	}
	want := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"sesame"}, "client_id": {"granary"}, "service": {"the registry"}, "scope": {"repository:app:pull"}}
	if method != http.MethodPost || form.Encode() != want.Encode() || g.users[0] != "" {
		t.Errorf("%s %v by %q, want %v", method, form, g.users, want)
	}
}
