package site

import (
	"strings"
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

// A kept site that has not been met for a while is not waited for, and met again when it is back.
func TestAKeptSiteThatIsGoneIsNotWaitedFor(t *testing.T) {
	hub, edge := newHost(t, nil, overTCP), newHost(t, nil)
	to := infoOf(hub)
	edge.kept.look(to.ID, false)
	edge.kept.unmet[to.ID] = time.Now().Add(-2 * unmetFor)
	if _, err := Dial(t.Context(), edge, to, Hello{}, nil); err == nil || !strings.Contains(err.Error(), "not been met since") {
		t.Errorf("it is dialled: %v", err)
	}
	edge.Keep(to)
	awaitMet(t, edge, hub, nil)
	for range 400 {
		if edge.kept.givenUp(to.ID) == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("it is met, and given up")
}
