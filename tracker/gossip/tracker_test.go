package gossip

import (
	"context"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/tracker"
	"github.com/granary-oci/granary/tracker/trackertest"
)

// keeperReader asks a digest's keepers for its providers, in place of package p2p, which
// asks them over the network.
type keeperReader struct {
	*node
	all []*node
}

func (k keeperReader) Providers(ctx context.Context, d digest.Digest, n int) (peers []tracker.Peer, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for _, keeper := range k.View().Keepers(string(d), tracker.Copies) {
		i := slices.IndexFunc(k.all, func(n *node) bool { return n.id == keeper.ID })
		for _, id := range k.all[i].providers.Of(d) {
			p, ok := k.View().Peer(id)
			if ok && id != k.id && len(peers) < n && !slices.ContainsFunc(peers, func(p tracker.Peer) bool { return p.ID == id }) {
				peers = append(peers, p)
			}
		}
	}
	return peers, nil
}

func TestTracker(t *testing.T) {
	trackertest.Test(t, func(t *testing.T, n int) (all []trackertest.Node) {
		nodes := cluster(t, n)
		for _, n := range nodes {
			all = append(all, trackertest.Node{Tracker: keeperReader{n, nodes}, ID: n.id, Leave: n.Leave})
		}
		return all
	})
}
