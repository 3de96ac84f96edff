package peers

import (
	"strings"
	"testing"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/proxy/parent"
)

// TestAParentThatIsTriedSaysWhetherThisSiteMayAsk, by ID and by token, before anybody has pulled anything.
func TestAParentThatIsTriedSaysWhetherThisSiteMayAsk(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	dir := t.TempDir()
	tokens, other := write(t, dir, "tokens", "token-of-this-site\n"), write(t, dir, "other", "another-token-than-that\n")
	alone := &cluster{T: t, registry: r}
	child := func(parents []string, token string) *member {
		return run(t, alone.settings(unreachable, func(c *node.Config) {
			c.ClusterConfig, c.Parent, c.ParentTokenFile = node.ClusterConfig{}, parents, token
		}))
	}
	tried := func(m *member) parent.Status {
		all := m.Reach(t.Context()).Parents
		if len(all) != 1 {
			t.Fatalf("of one parent there are %+v", all)
		}
		return all[0]
	}
	strangers := "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUj2kj6vnc6iDEp"
	for _, transport := range []string{"/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"} {
		byID := newHub(t, r, func(c *node.Config) { c.SiteListen, c.Child = []string{transport}, []string{strangers} })
		m := child(byID.Status().Site, "")
		if s := tried(m); s.State != "down" || !strings.Contains(s.Error, "this site may not ask") {
			t.Errorf("%s: a stranger, by ID: %+v", transport, s)
		}
		id := m.Status().SiteID
		knows := newHub(t, r, func(c *node.Config) { c.SiteListen, c.Child = []string{transport}, []string{id} })
		m.end(t)
		m.cfg.Parent = knows.Status().Site
		if again := run(t, m.cfg); again.Status().SiteID != id {
			t.Errorf("%s: it has another ID after a restart: %s", transport, again.Status().SiteID)
		} else if s := tried(again); s.State != "up" {
			t.Errorf("%s: a child: %+v", transport, s)
		}
	}
	byToken := newHub(t, r, func(c *node.Config) { c.GatewayListen, c.GatewayTokenFile = "127.0.0.1:0", tokens })
	for token, state := range map[string]string{tokens: "up", other: "down"} {
		if s := tried(child([]string{byToken.Server.URL}, token)); s.State != state || state == "down" && !strings.Contains(s.Error, "this site may not ask") {
			t.Errorf("with the token of %s: %+v", token, s)
		}
	}
	dead := child([]string{"http://127.0.0.1:1"}, "")
	if s := tried(dead); s.State != "down" || !strings.Contains(s.Error, "refused") {
		t.Errorf("nobody: %+v", s)
	}
}
