package site

import (
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// A site that is kept is met before anybody asks it something, and again when the connection has ended.
func TestAKeptSiteIsMetAgain(t *testing.T) {
	for _, listen := range []string{overTCP, overQUIC} {
		hub, edge := newHost(t, nil, listen), newHost(t, nil)
		edge.Keep(infoOf(hub))
		met := awaitMet(t, edge, hub, nil)
		if err := hub.Network().ClosePeer(edge.ID()); err != nil {
			t.Fatal(err)
		}
		awaitMet(t, edge, hub, met)
	}
}

// awaitMet waits until one host is connected to another, by another connection than one before.
func awaitMet(t *testing.T, from, to *Host, before network.Conn) network.Conn {
	t.Helper()
	for range 400 {
		for _, c := range from.Network().ConnsToPeer(to.ID()) {
			if before == nil || c.ID() != before.ID() {
				return c
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("they have not met")
	return nil
}
