package proxy_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/ref"
)

func rules(t *testing.T, all ...string) func(*proxy.Config) {
	return func(c *proxy.Config) {
		for _, s := range all {
			r, err := proxy.ParseTagRule(s)
			if err != nil {
				t.Fatal(err)
			}
			c.TagRules = append(c.TagRules, r)
		}
	}
}

// tagged returns what a tag is served as.
func (s *stack) tagged(t *testing.T, path string) string {
	t.Helper()
	resp, body := s.do(t, http.MethodHead, path)
	if resp.StatusCode != http.StatusOK {
		t.Errorf("%s: %s %s", path, resp.Status, body)
	}
	return resp.Header.Get("Docker-Content-Digest")
}

func TestTagPolicies(t *testing.T) {
	o := newOrigin()
	s := newStack(t, o, true, rules(t, "origin.test/app:pinned=pin", "origin.test/app:*=ttl=1s", "origin.test/lib/*=pin", "*=revalidate"))
	type tag struct{ repository, name string }
	tags := []tag{{"app", "pinned"}, {"app", "short"}, {"lib/x", "v1"}, {"other", "v1"}}
	put := func(content string) (now map[tag]string) {
		now = make(map[tag]string)
		for _, x := range tags {
			o.set(func() { now[x] = string(o.put(x.repository, x.name, []byte(`{"a":"`+content+`"}`))) })
		}
		return now
	}
	path := func(x tag) string { return "/v2/" + x.repository + "/manifests/" + x.name }
	old := put("old")
	for _, x := range tags {
		if got := s.tagged(t, path(x)); got != old[x] {
			t.Errorf("%v: %s at first", x, got)
		}
	}
	now := put("new")
	for i, want := range []map[tag]string{old, old, old, now} {
		if got := s.tagged(t, path(tags[i])); got != want[tags[i]] {
			t.Errorf("%v after it moved: %s", tags[i], got)
		}
	}
	time.Sleep(time.Second)
	for i, want := range []map[tag]string{old, now, old, now} {
		if got := s.tagged(t, path(tags[i])); got != want[tags[i]] {
			t.Errorf("%v after a second: %s", tags[i], got)
		}
	}
	if n, err := s.registry.Invalidate(ref.Repository{Host: "origin.test", Name: "app"}, "pinned"); n != 1 || err != nil {
		t.Errorf("invalidate: %d, %v", n, err)
	}
	if n, err := s.registry.Invalidate(ref.Repository{Host: "origin.test", Name: "lib/x"}, ""); n != 1 || err != nil {
		t.Errorf("invalidate: %d, %v", n, err)
	}
	for _, x := range tags {
		if got := s.tagged(t, path(x)); got != now[x] {
			t.Errorf("%v after it was invalidated: %s", x, got)
		}
	}
}

// TestAPinnedTagIsStillPrivate: what is not asked about is still not for
// everybody.
func TestAPinnedTagIsStillPrivate(t *testing.T) {
	o := newOrigin()
	o.add("secret", []byte("x"))
	o.private["secret"] = "bearer"
	o.tokens["right"] = "secret"
	s := newStack(t, o, true, rules(t, "*=pin"))
	s.wantStatus(t, 200, "/v2/secret/manifests/v1", "Bearer right")
	s.wantStatus(t, 401, "/v2/secret/manifests/v1", "Bearer wrong")
	s.wantStatus(t, 401, "/v2/secret/manifests/v1", "")
}

// TestStaleIsBounded: after a while the last word of a registry that is gone is
// worth nothing.
func TestStaleIsBounded(t *testing.T) {
	o := newOrigin()
	o.add("app", []byte("x"))
	s := newStack(t, o, true, func(c *proxy.Config) { c.Access.HoldFor, c.Access.PublicFor = 2*time.Second, time.Nanosecond })
	s.wantStatus(t, 200, "/v2/app/manifests/v1", "")
	s.upstream.Close()
	resp, _ := s.do(t, http.MethodGet, "/v2/app/manifests/v1")
	if w := resp.Header.Get("Warning"); resp.StatusCode != 200 || !strings.HasPrefix(w, `299 - "stale: upstream origin.test is unreachable`) {
		t.Errorf("%s, Warning: %s", resp.Status, w)
	}
	time.Sleep(2 * time.Second)
	s.wantStatus(t, 502, "/v2/app/manifests/v1", "")
}

func TestWrongTagRules(t *testing.T) {
	for _, s := range []string{"", "x", "=pin", "x=", "x=ttl", "x=ttl=", "x=ttl=-1s", "x=ttl=5", "x=never"} {
		if r, err := proxy.ParseTagRule(s); err == nil {
			t.Errorf("%q: %+v", s, r)
		}
	}
}

// TestAShortTTLIsRenewed by each question, so that there is one in each time.
func TestAShortTTLIsRenewed(t *testing.T) {
	o := newOrigin()
	o.add("app", []byte("x"))
	s := newStack(t, o, true, rules(t, "*=ttl=1s"))
	s.wantStatus(t, 200, "/v2/app/manifests/v1", "")
	time.Sleep(time.Second)
	for range 20 {
		s.wantStatus(t, 200, "/v2/app/manifests/v1", "")
	}
	if n := o.heads.Load(); n != 2 {
		t.Errorf("%d questions, want 2", n)
	}
}
