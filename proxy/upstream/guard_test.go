package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/granary-oci/granary/proxy/trace"
)

func TestPublicOnly(t *testing.T) {
	for address, want := range map[string]bool{
		"93.184.216.34:443": true, "[2606:2800:220:1::1]:443": true, "1.1.1.1:80": true,
		"127.0.0.1:80": false, "127.8.8.8:80": false, "[::1]:80": false, "10.0.0.1:80": false, "172.16.0.1:80": false,
		"172.32.0.1:80": true, "192.168.1.1:80": false, "169.254.169.254:80": false, "[fe80::1%eth0]:80": false,
		"[fc00::1]:80": false, "[fd12::1]:80": false, "0.0.0.0:80": false, "[::]:80": false, "224.0.0.1:80": false,
		"255.255.255.255:80": false, "100.64.0.1:80": false, "100.128.0.1:80": true, "198.18.0.1:80": false, "240.0.0.1:80": false,
		"[::ffff:127.0.0.1]:80": false, "[::ffff:10.0.0.1]:80": false, "[::ffff:1.1.1.1]:80": true,
		"[64:ff9b::7f00:1]:80": false, "[2002:7f00:1::]:80": false, "[ff02::1]:80": false, "[fec0::1]:80": false, "[::7f00:1]:80": false,
		"host:80": false, "": false, "1.1.1.1": false,
	} {
		if err := PublicOnly("tcp", address, nil); (err == nil) != want {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// guarded makes a client that connects to public addresses and to what is named.
func guardedClient(t *testing.T, at string, named ...string) *Repository {
	return registry(t, at, func(c *Config) {
		c.Control = PublicOnly
		c.Named = func(address string) bool { return slices.Contains(named, address) }
	}).Repository("app")
}

func address(t *testing.T, s string) string {
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return Address(u)
}

// TestPrivateAddressesAreRefused on the way to the registry, to where it
// redirects, and to the realm that it names, unless they are named themselves.
func TestPrivateAddressesAreRefused(t *testing.T) {
	content := random(100)
	secret := newOrigin(t, content) // what must not be reached
	redirecting := newOrigin(t, content)
	redirecting.answer = func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, secret.URL+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}
	challenging := newOrigin(t, content)
	challenging.answer = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token"`, secret.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	_, port, _ := net.SplitHostPort(address(t, secret.URL))
	for name, p := range map[string]*Repository{
		"registry":                 guardedClient(t, secret.URL),
		"registry by name":         guardedClient(t, "http://localhost:"+port),
		"registry by IPv4 in IPv6": guardedClient(t, "http://[::ffff:127.0.0.1]:"+port),
		"redirect":                 guardedClient(t, redirecting.URL, address(t, redirecting.URL)),
		"realm":                    guardedClient(t, challenging.URL, address(t, challenging.URL)),
		"named by another name":    guardedClient(t, secret.URL, "localhost:"+port),
	} {
		t.Run(name, func(t *testing.T) {
			err := stat(t, p, content)
			if err == nil || Unreachable(err) || !strings.Contains(err.Error(), "refused") {
				t.Errorf("error is %v", err)
			}
			if n := secret.requests(); len(n) > 0 {
				t.Errorf("%d requests came through", len(n))
			}
		})
	}
	for name, p := range map[string]*Repository{
		"registry": guardedClient(t, secret.URL, address(t, secret.URL)),
		"redirect": guardedClient(t, redirecting.URL, address(t, redirecting.URL), address(t, secret.URL)),
	} {
		if err := stat(t, p, content); err != nil {
			t.Errorf("%s that is named: %v", name, err)
		}
	}
}

// TestNamesThatChangeTheirAddress: what counts is the address that is dialled,
// and not one that a name had before.
func TestNamesThatChangeTheirAddress(t *testing.T) {
	content := random(100)
	o := newOrigin(t, content)
	_, port, _ := net.SplitHostPort(address(t, o.URL))
	r := registry(t, "http://localhost:"+port, func(c *Config) {
		c.Control = PublicOnly
	})
	for range 3 { // localhost plays the name that was public when it was looked at
		if err := stat(t, r.Repository("app"), content); err == nil || !strings.Contains(err.Error(), "not public") {
			t.Errorf("error is %v", err)
		}
	}
}

// TestThroughAProxy the proxy itself may be private, for the environment names
// it; what it is asked for may not.
func TestThroughAProxy(t *testing.T) {
	cfg := Config{Control: PublicOnly, Named: func(a string) bool { return a == "10.0.0.7:80" }}
	proxied := func(target string) error {
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		ctx, err := cfg.checkProxied(context.Background(), &http.Request{URL: u})
		if err == nil && ctx.Value(viaProxyKey{}) == nil {
			t.Errorf("%s: the proxy would be refused", target)
		}
		return err
	}
	for target, want := range map[string]bool{
		"http://registry.example/": true, "http://1.1.1.1/": true, "http://10.0.0.7/": true,
		"http://10.0.0.8/": false, "http://127.0.0.1:5000/": false, "http://localhost/": false, "http://[::1]/": false, "http://169.254.169.254/": false,
		"http://127.1/": false, "http://2130706433/": false, "http://0x7f000001/": false, "http://localhost./": false, "http://a.localhost/": false,
	} {
		err := proxied(target)
		var refused *addressError
		if (err == nil) != want || err != nil && !errors.As(err, &refused) {
			t.Errorf("%s: %v", target, err)
		}
	}
}

func TestVia(t *testing.T) {
	content := random(100)
	o := newOrigin(t, content)
	var got []string
	o.answer = func(_ http.ResponseWriter, r *http.Request) bool {
		got = r.Header.Values("Via")
		return false
	}
	p := registry(t, o.URL, func(c *Config) { c.Pseudonym = "me" }).Repository("app")
	for before, want := range map[string]string{"": "1.1 me", "1.0 a, 1.1 b": "1.0 a, 1.1 b, 1.1 me"} {
		if _, err := p.Stat(trace.WithVia(t.Context(), before), refsTo(t, content)[0].Blob); err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 || got[0] != want {
			t.Errorf("Via after %q is %q", before, got)
		}
	}
}

// TestAsACaller: a token is sent as it is, a password as the registry asks for
// it, and the node's own credentials never in a caller's name.
func TestAsACaller(t *testing.T) {
	content := random(100)
	g := newGuarded(t, content)
	g.expires = 300
	own := func(c *Config) {
		c.Credentials = func(context.Context, string) (string, string, error) { return "node", "secret", nil }
	}
	p := registry(t, g.URL, own).Repository("app")
	err := stat(t, p.As("Bearer wrong"), content)
	if got := wantStatus(t, err, 401).Header.Get("WWW-Authenticate"); got != g.challenge {
		t.Errorf("challenge is %q", got)
	}
	if g.counts(t, 0, 1); g.seen[0] != "Bearer wrong" {
		t.Errorf("sent %q", g.seen)
	}
	if err := stat(t, p.As("Basic Y2FsbGVyOnB3"), content); err != nil { // caller:pw
		t.Error(err)
	}
	if err := stat(t, p, content); err != nil {
		t.Error(err)
	}
	if err := stat(t, p.As("Basic Y2FsbGVyOnB3"), content); err != nil {
		t.Error(err)
	}
	if got := fmt.Sprint(g.users); got != "[caller:pw node:secret]" {
		t.Errorf("tokens were asked for by %s", got)
	}
	if err := stat(t, p.As("bearer token-1"), content); err == nil {
		t.Error("the scheme was changed on the way")
	}
}
