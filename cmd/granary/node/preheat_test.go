package node

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/tracker"
)

// TestAMemberMaySayAnythingOfItsPreheat bounds what that makes this node keep and tell.
func TestAMemberMaySayAnythingOfItsPreheat(t *testing.T) {
	long := strings.Repeat("\xff", 1<<20)
	said := PreheatNode{ID: "another", Name: long, State: long, Error: long}
	for range 1000 {
		said.Images = append(said.Images, PreheatImage{Ref: long, State: long, Error: long, WarmStatus: proxy.WarmStatus{Missing: strings.Split(long[:1000], "")}})
	}
	o := PreheatNode{ID: "it"}
	o.take(said, 2)
	p, err := json.Marshal(o)
	if err != nil || len(p) > 64<<10 || len(o.Images) != 2 || o.ID != "it" || o.Name != "" {
		t.Errorf("%d bytes are kept, of %d images, error %v: %s", len(p), len(o.Images), err, o.ID)
	}
}

func TestRatesAreMeansOfSeconds(t *testing.T) {
	var tr traffic
	begin := time.Now()
	peer := func(received, sent int64) []p2p.PeerStatus {
		return []p2p.PeerStatus{{Peer: tracker.Peer{ID: "self"}}, {Peer: tracker.Peer{ID: "b"}, Received: received, Sent: sent}}
	}
	for i := range 700 {
		n := int64(i) << 20
		tr.add(totals{at: begin.Add(time.Duration(i) * time.Second), served: [len(sources)]int64{1: 2 * n}, upstream: n, parents: 4 * n, in: n, out: 0}, "self", peer(n, 3*n))
	}
	last, flows := tr.latest()
	if last.Served["disk"] != 2<<20 || last.Upstream != 1<<20 || last.Parents != 4<<20 || last.In != 1<<20 || last.Out != 0 {
		t.Errorf("the latest sample is %+v", last)
	}
	if h := tr.history(); len(h.Samples) != maxSamples || h.Every != 1 {
		t.Errorf("there are %d samples", len(h.Samples))
	}
	want := map[Flow]bool{{"", "self", 1 << 20}: true, {fromParents, "self", 4 << 20}: true, {"b", "self", 1 << 20}: true, {"self", "b", 3 << 20}: true}
	for _, f := range flows {
		if !want[f] {
			t.Errorf("there is a flow %+v", f)
		}
		delete(want, f)
	}
	if len(want) > 0 {
		t.Errorf("there is no flow %+v", want)
	}
}
