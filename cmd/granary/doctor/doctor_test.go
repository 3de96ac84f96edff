package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/granary-oci/granary/cmd/granary/node"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/proxy/parent"
	"github.com/granary-oci/granary/tracker"
	"github.com/granary-oci/granary/tracker/gossip"
)

// patientWith is a node that says of itself, and of what it can reach, what a test wants.
func patientWith(t *testing.T, s node.Status, r node.Reach) Config {
	t.Helper()
	return Config{
		Status:  func(context.Context) (node.Status, error) { return s, nil },
		Reach:   func(context.Context) (node.Reach, error) { return r, nil },
		URL:     "http://127.0.0.1:5051",
		Root:    t.TempDir(),
		Timeout: time.Minute,
	}
}

// TestTheFormOfTheReport holds what programs that read it rely on. Whoever changes it
// changes Version.
func TestTheFormOfTheReport(t *testing.T) {
	r := Report{
		Version: Version, Node: "http://127.0.0.1:5051", Severity: Error,
		Findings: []Finding{{"upstream", "docker.io", Error, "cause", "remedy"}, {"disk", "", OK, "cause", ""}},
		Pull:     &Pull{Image: "a/b:c", Digest: "sha256:0", Blobs: []PulledBlob{{"sha256:1", 2, map[string]int{"disk": 1, "peer": 2}, []Stretch{{0, 0, "disk"}, {1, 2, "peer"}}}}, Bytes: 2, Seconds: 0.5, Cut: true},
	}
	got, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"version":1,"node":"http://127.0.0.1:5051","severity":"error",` +
		`"findings":[{"check":"upstream","subject":"docker.io","severity":"error","cause":"cause","remedy":"remedy"},{"check":"disk","severity":"ok","cause":"cause"}],` +
		`"pull":{"image":"a/b:c","digest":"sha256:0","blobs":[{"digest":"sha256:1","size":2,"chunks":{"disk":1,"peer":2},"path":[{"first":0,"last":0,"source":"disk"},{"first":1,"last":2,"source":"peer"}]}],"bytes":2,"seconds":0.5,"cut":true}}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestThePathOfEachChunk(t *testing.T) {
	b := PulledBlob{Chunks: make(map[string]int)}
	for _, source := range []string{"disk", "peer", "peer", "disk", "upstream"} {
		b.Came(source)
	}
	if got := b.PathText(); got != "0 disk, 1-2 peer, 3 disk, 4 upstream" {
		t.Error(got)
	}
	if got := SourcesText(b.Chunks); got != "disk 2, peer 2, upstream 1" {
		t.Error(got)
	}
}

func TestFindings(t *testing.T) {
	ahead := func(d time.Duration) *time.Duration { return &d }
	cluster := func(t gossip.Trouble, others ...string) *node.ClusterStatus {
		c := &node.ClusterStatus{Trouble: t, Members: []p2p.PeerStatus{{State: "self"}}}
		for _, state := range others {
			c.Members = append(c.Members, p2p.PeerStatus{Peer: tracker.Peer{ID: "p", Name: "other"}, State: state})
		}
		return c
	}
	joinError := func(err string) gossip.Trouble {
		return gossip.Trouble{Unjoined: []gossip.Unjoined{{Address: "a:1", Error: err}}}
	}
	for name, c := range map[string]struct {
		status   node.Status
		reach    node.Reach
		check    string
		severity Severity
		cause    string
		remedy   string
	}{
		"degraded":         {node.Status{Degraded: "nothing is kept"}, node.Reach{}, "node", Error, "nothing is kept", "write to"},
		"chunks":           {node.Status{}, node.Reach{Members: []node.MemberReach{{Name: "m", P2P: "a:1", P2PError: "refused"}}}, "member", Error, "no chunks", "--p2p-listen"},
		"large":            {node.Status{}, node.Reach{Members: []node.MemberReach{{Large: "not acknowledged"}}}, "member", Error, "large ones do not", "MTU"},
		"gossip, TCP":      {node.Status{}, node.Reach{Members: []node.MemberReach{{TCPError: "refused"}}}, "member", Error, "TCP", "for TCP"},
		"gossip, UDP":      {node.Status{}, node.Reach{Members: []node.MemberReach{{UDPError: "no answer"}}}, "member", Error, "UDP", "for UDP"},
		"member's clock":   {node.Status{}, node.Reach{Members: []node.MemberReach{{Name: "m", Ahead: ahead(-time.Hour)}}}, "clock", Warning, "1h0m0s ahead of that of m", "NTP"},
		"our clock":        {node.Status{}, node.Reach{Upstreams: []node.UpstreamReach{{Registry: "r", Ahead: ahead(time.Hour)}}}, "clock", Error, "1h0m0s behind that of r", "NTP"},
		"theirs is wrong":  {node.Status{}, node.Reach{Upstreams: []node.UpstreamReach{{Registry: "r", Ahead: ahead(time.Hour)}, {Registry: "s", Ahead: ahead(0)}}}, "clock", OK, "agree", ""},
		"name":             {node.Status{}, node.Reach{Upstreams: []node.UpstreamReach{{Registry: "r", Error: "lookup r: no such host"}}}, "upstream", Error, "no such host", "DNS"},
		"certificate":      {node.Status{}, node.Reach{Upstreams: []node.UpstreamReach{{Registry: "r", Error: "tls: failed to verify certificate"}}}, "upstream", Error, "certificate", "--upstream-ca-file r=FILE"},
		"no registry":      {node.Status{}, node.Reach{Upstreams: []node.UpstreamReach{{Registry: "r", Status: 404}}}, "upstream", Warning, "404", "registry"},
		"another secret":   {node.Status{Cluster: cluster(gossip.Trouble{Undecrypted: 3, Last: time.Now(), From: []string{"10.0.0.9"}}, "up")}, node.Reach{}, "cluster", Error, "cannot be decrypted", "--cluster-secret-file"},
		"long ago":         {node.Status{Cluster: cluster(gossip.Trouble{Undecrypted: 3, Last: time.Now().Add(-time.Hour)}, "up")}, node.Reach{}, "cluster", OK, "1 other", ""},
		"closed":           {node.Status{Cluster: cluster(joinError("failed: EOF"))}, node.Reach{}, "cluster", Error, "EOF", "same --cluster-secret-file"},
		"nobody there":     {node.Status{Cluster: cluster(joinError("connection refused"))}, node.Reach{}, "cluster", Error, "refused", "port in --join"},
		"one is down":      {node.Status{Cluster: cluster(joinError("connection refused"), "up")}, node.Reach{}, "cluster", Note, "refused", "--join"},
		"nobody":           {node.Status{Cluster: cluster(gossip.Trouble{})}, node.Reach{}, "cluster", Warning, "no other member", "--join"},
		"quarantined":      {node.Status{Cluster: cluster(gossip.Trouble{}, "quarantined")}, node.Reach{}, "cluster", Warning, "quarantined", "granary peers"},
		"alone":            {node.Status{}, node.Reach{}, "cluster", Note, "alone", ""},
		"parent":           {node.Status{}, node.Reach{Parents: []parent.Status{{Name: "hub", State: "up"}}}, "parent", OK, "answers", ""},
		"parent is down":   {node.Status{}, node.Reach{Parents: []parent.Status{{Name: "hub", State: "down", Error: "connection refused"}}}, "parent", Error, "refused", "port in --parent"},
		"no child":         {node.Status{SiteID: "12D3Koo"}, node.Reach{Parents: []parent.Status{{Name: "hub", State: "down", Error: "this site may not ask: 403"}}}, "parent", Error, "may not ask", "--child 12D3Koo"},
		"no token":         {node.Status{}, node.Reach{Parents: []parent.Status{{Name: "hub", State: "down", Error: "this site may not ask: 403"}}}, "parent", Error, "may not ask", "give this node one of"},
		"limit":            {node.Status{}, node.Reach{Parents: []parent.Status{{Name: "hub", State: "resting", Error: "it has had its 1GiB/day"}}}, "parent", Note, "1GiB/day", "--parent-limit"},
		"parent's fault":   {node.Status{Parents: []parent.Status{{Name: "hub", State: "quarantined", Error: "other bytes"}}}, node.Reach{}, "parent", Warning, "other bytes", "who runs it"},
		"elsewhere's disk": {node.Status{DataDir: "/none/such/place"}, node.Reach{}, "disk", Note, "not to be seen", "where the node runs"},
	} {
		r := Run(t.Context(), patientWith(t, c.status, c.reach))
		worst, seen := OK, false
		for _, f := range r.Findings {
			if f.Check == c.check && f.Severity == c.severity && strings.Contains(f.Cause, c.cause) && strings.Contains(f.Remedy, c.remedy) {
				seen = true
			}
			if ranks[f.Severity] > ranks[worst] {
				worst = f.Severity
			}
		}
		if !seen || r.Severity != worst {
			t.Errorf("%s: %s: %+v", name, r.Severity, r.Findings)
		}
	}
}

// TestAnEndComes even if what is looked at does not answer.
func TestAnEndComes(t *testing.T) {
	cfg := patientWith(t, node.Status{}, node.Reach{Image: "a/b:c"})
	cfg.Timeout = 50 * time.Millisecond
	cfg.Reach = func(ctx context.Context) (node.Reach, error) { <-ctx.Done(); return node.Reach{}, ctx.Err() }
	cfg.Image = "a/b:c"
	cfg.Pull = func(ctx context.Context, _ string) (*Pull, error) { <-ctx.Done(); return nil, ctx.Err() }
	r := Run(t.Context(), cfg)
	if r.Severity != Error || len(r.Findings) == 0 {
		t.Errorf("%+v", r)
	}
	stuck := make(chan struct{})
	defer close(stuck)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	found := <-(&patient{}).begin(ctx, check{"stuck", func(context.Context, *patient) []Finding { <-stuck; return nil }})
	if len(found) != 1 || found[0].Check != "stuck" || found[0].Severity != Warning {
		t.Errorf("%+v", found)
	}
}

func TestAnOlderNodeIsNoFault(t *testing.T) {
	cfg := patientWith(t, node.Status{}, node.Reach{})
	cfg.Reach = func(context.Context) (node.Reach, error) { return node.Reach{}, errors.New("404") }
	if r := Run(t.Context(), cfg); r.Severity != Warning {
		t.Errorf("%+v", r)
	}
}

func TestKernelVersions(t *testing.T) {
	for release, want := range map[string]bool{"6.9.0": true, "6.1.0-18-amd64": false, "7.0": true, "6.12": true, "5.20-rc1": false, "?": false, "": false} {
		if got := atLeast(release, 6, 9); got != want {
			t.Errorf("%s: %v", release, got)
		}
	}
}
