package peers

import "testing"

// newHubs starts a hub of two nodes, and a site that has both for parents.
func newHubs(t *testing.T, r *registry) (hubs [2]*hub, hub *cluster, edge *member) {
	t.Helper()
	hub = newCluster(t, r, 2)
	for i, m := range hub.members {
		hubs[i] = lineTo(t, m)
	}
	return hubs, hub, newCluster(t, r, 1, unreachable, under(hubs[0], hubs[1])).members[0]
}

// TestAHubOfTwoNodes: a cold image leaves the registry once and crosses the line once, and both nodes of the hub
// have a part in that.
func TestAHubOfTwoNodes(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	img := pushLarge(r, "v1")
	hubs, _, edge := newHubs(t, r)
	r.set(func() { r.rate = 16 << 20 })
	pullAtOnce(t, img, 2, edge)
	if sent := r.sent.Load(); sent > img.size()*105/100 && !slow {
		t.Errorf("%d bytes left the registry for an image of %d", sent, img.size())
	}
	if sent := hubs[0].sent.Load() + hubs[1].sent.Load(); sent < img.size() || sent > img.size()*105/100 && !slow {
		t.Errorf("%d bytes crossed the lines for an image of %d", sent, img.size())
	}
	for i, h := range hubs {
		if h.Status().Received < img.size()/10 && !slow {
			t.Errorf("node %d of the hub got %d bytes from the registry", i+1, h.Status().Received)
		}
	}
}

// TestAHubsNodeDies in the middle of a pull, which ends from the other.
func TestAHubsNodeDies(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	img := pushLarge(r, "v1")
	hubs, hub, edge := newHubs(t, r)
	r.set(func() { r.rate = 8 << 20 })
	pulled := make(chan error, 1)
	go func() { pulled <- edge.pull(img, "") }()
	eventually(t, "the pull is under way", func() bool { return hubs[0].sent.Load() > img.size()/4 })
	hubs[0].CloseClientConnections()
	hubs[0].Close()
	hub.stop(hubs[0].member)
	if err := <-pulled; err != nil {
		t.Fatal(err)
	}
	if hubs[1].sent.Load() == 0 {
		t.Error("nothing came from the other node: the pull was over before")
	}
	if sent := hubs[0].sent.Load() + hubs[1].sent.Load(); sent > img.size()*3/2 && !slow {
		t.Errorf("%d bytes crossed the lines for an image of %d", sent, img.size())
	}
	if sent := r.sent.Load(); sent > 2*img.size() && !slow {
		t.Errorf("%d bytes left the registry for an image of %d", sent, img.size())
	}
}
