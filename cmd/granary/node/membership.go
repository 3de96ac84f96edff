package node

import (
	"context"
	"strings"
	"time"

	"github.com/granary-oci/granary/tracker"
	"github.com/granary-oci/granary/tracker/gossip"
)

const settle = 3 * time.Second // from a change of the membership to telling new keepers

// membership is a [tracker.Members] that can be named before it begins: the
// transport and the gossip each need the other's addresses.
type membership struct{ *cluster }

func (m membership) View() *tracker.View {
	select {
	case <-m.begun:
		return m.gossip.View()
	default:
		return tracker.NewView(tracker.Peer{ID: m.identity.ID()}, nil)
	}
}

func (m membership) Changed() <-chan struct{} {
	select {
	case <-m.begun:
		return m.gossip.Changed()
	default:
		return m.begun
	}
}

// advertised puts the IP that others are to use into addresses that have none.
func advertised(addrs []string, ip string) []string {
	if ip == "" {
		return addrs
	}
	proto := "/ip4/"
	if strings.Contains(ip, ":") {
		proto = "/ip6/"
	}
	var all []string
	for _, a := range addrs {
		for _, unspecified := range []string{"/ip4/0.0.0.0/", "/ip6/::/"} {
			if rest, ok := strings.CutPrefix(a, unspecified); ok {
				a = proto + ip + "/" + rest
			}
		}
		all = append(all, a)
	}
	return all
}

// logMembers tells who comes and goes.
func (c *cluster) logMembers(ctx context.Context) {
	before := c.gossip.View()
	for {
		changed := c.gossip.Changed()
		now := c.gossip.View()
		for _, p := range now.Peers() {
			if _, known := before.Peer(p.ID); !known {
				c.log.Info("member joined", "name", p.Name, "id", p.ID, "addresses", strings.Join(p.Addrs, " "), "members", len(now.Peers()))
			}
		}
		for _, p := range before.Peers() {
			if _, there := now.Peer(p.ID); !there {
				c.log.Info("member left", "name", p.Name, "id", p.ID, "members", len(now.Peers()))
			}
		}
		before = now
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// retell calls tell a while after the membership has changed, and now and then.
func (c *cluster) retell(ctx context.Context, tell func()) {
	for {
		changed := c.gossip.Changed()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-time.After(gossip.Refresh):
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
			tell()
		}
	}
}
