package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/simtest/netns"
)

// lab is the network with its registry, hub and edges.
type lab struct {
	*network
	granary  string // the program
	dir      string // of all that a run makes
	logLevel string
	more     []string // settings of the edges' nodes
	registry *registry
	hub      *node
	sites    []*site
}

// site is the nodes of an edge, and how they reach their parent.
type site struct {
	*edge
	number int
	by     string // quic, tcp or url
	parent string // address
	nodes  []*node
}

// node is a granary on its machine.
type node struct {
	*netns.Process
	space  *netns.Space
	client *http.Client
}

const adminURL = "http://127.0.0.1:5051"

// newLab makes edges, one that reaches the hub in each of these ways, and starts so many nodes in each; there are machines for some more. It is to be
// closed, even if this fails. more are settings of the edges' nodes.
func newLab(ctx context.Context, dir, granary string, by []string, nodes, spare int, more ...string) (l *lab, err error) {
	l = &lab{granary: granary, dir: dir, logLevel: "info", more: more}
	if level := os.Getenv("GRANARY_EDGES_LOG"); level != "" {
		l.logLevel = level
	}
	if err := os.WriteFile(l.file("token"), []byte("the-token-of-these-edges\n"), 0o600); err != nil {
		return l, err
	}
	if err := writeCertificate(hubAddress, l.file("hub.pem"), l.file("hub.key")); err != nil {
		return l, err
	}
	if l.network, err = newNetwork(ctx, len(by), nodes+spare); err != nil {
		return l, err
	}
	if l.registry, err = startRegistry(l.network.registry); err != nil {
		return l, err
	}
	if err := l.startHub(ctx); err != nil {
		return l, err
	}
	g, ctx := errgroup.WithContext(ctx)
	for i, e := range l.edges {
		s := &site{edge: e, number: i + 1, by: by[i]}
		l.sites = append(l.sites, s)
		g.Go(func() error { return l.startSite(ctx, s, nodes) })
	}
	return l, g.Wait()
}

func (l *lab) file(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) close() {
	for _, s := range l.sites {
		for _, n := range s.nodes {
			n.Stop()
		}
	}
	if l.hub != nil {
		l.hub.Stop()
	}
	if l.registry != nil {
		_ = l.registry.server.Close()
	}
	if l.network != nil {
		l.network.close()
	}
}

// start starts a node on a machine.
func (l *lab) start(ctx context.Context, label string, s *netns.Space, more ...string) (n *node, err error) {
	args := append([]string{l.granary, "serve", "--data-dir", l.file(label), "--listen", "127.0.0.1:5050", "--admin", "127.0.0.1:5051", "--cache-size", "8GiB",
		"--upstream", registryHost + "=http://" + registryAddress + ":5000", "--default-upstream", registryHost, "--log-level", l.logLevel}, more...)
	n = &node{space: s, client: s.Client()}
	if n.Process, err = netns.Start(l.file(label+".log"), s, args...); err != nil {
		return nil, err
	}
	if err := n.Ready(ctx, func() bool { return netns.Answers(ctx, n.client, adminURL+"/readyz") }); err != nil {
		n.Stop()
		return nil, err
	}
	return n, nil
}

func (l *lab) startHub(ctx context.Context) (err error) {
	l.hub, err = l.start(ctx, "hub", l.network.hub, "--gateway-token-file", l.file("token"), "--gateway-listen", hubAddress+":5055",
		"--tls-cert-file", l.file("hub.pem"), "--tls-key-file", l.file("hub.key"),
		"--site-listen", "/ip4/"+hubAddress+"/udp/5054/quic-v1", "--site-listen", "/ip4/"+hubAddress+"/tcp/5054")
	return err
}

// startSite starts the first count nodes of a site, and waits until they know each other.
func (l *lab) startSite(ctx context.Context, s *site, count int) error {
	secret := fmt.Sprintf("the secret of site %d, and of no other one\n", s.number)
	if err := os.WriteFile(l.file(fmt.Sprint("secret", s.number)), []byte(secret), 0o600); err != nil {
		return err
	}
	var err error
	if s.parent, err = l.hub.siteAddress(ctx, s.by); err != nil {
		return err
	}
	for range count {
		if err := l.join(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// join starts the next node of a site, and waits until all of them know each other.
func (l *lab) join(ctx context.Context, s *site) error {
	i := len(s.nodes)
	machine := s.edge.nodes[i]
	args := append([]string{"--parent", s.parent, "--parent-token-file", l.file("token"), "--parent-ca-file", l.file("hub.pem"), "--cluster-secret-file", l.file(fmt.Sprint("secret", s.number)),
		"--p2p-listen", "/ip4/" + machine.Address + "/tcp/5052", "--gossip-listen", machine.Address + ":5053", "--advertise", machine.Address, "--zone", fmt.Sprint("site", s.number)}, l.more...)
	for _, other := range s.edge.nodes[:i] {
		args = append(args, "--join", other.Address+":5053")
	}
	n, err := l.start(ctx, fmt.Sprintf("site%d-%d", s.number, i+1), machine, args...)
	if err != nil {
		return err
	}
	s.nodes = append(s.nodes, n)
	for _, n := range s.nodes {
		if err := n.Ready(ctx, func() bool { return n.knows(ctx) == len(s.nodes)-1 }); err != nil {
			return err
		}
	}
	return nil
}

// status is what is read of a node's.
type status struct {
	Site    []string
	Cluster struct {
		Members []struct{ State string }
	}
	Links []struct {
		Link  string
		Today struct{ In, Out int64 }
	}
}

func (n *node) status(ctx context.Context) (s status, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, adminURL+"/api/v1/status", nil)
	if err != nil {
		return s, err
	}
	resp, err := n.client.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// siteAddress returns where children reach the node.
func (n *node) siteAddress(ctx context.Context, by string) (string, error) {
	if by == "url" {
		return "https://" + hubAddress + ":5055", nil
	}
	s, err := n.status(ctx)
	for _, a := range s.Site {
		if strings.Contains(a, "/"+by) {
			return a, err
		}
	}
	return "", errors.Join(err, fmt.Errorf("no address of the hub is by %s: %q", by, s.Site))
}

// knows returns how many other members are up to the node.
func (n *node) knows(ctx context.Context) (count int) {
	s, _ := n.status(ctx)
	for _, m := range s.Cluster.Members {
		if m.State == "up" {
			count++
		}
	}
	return count
}

// fromParents returns the bytes of answers that have come to the nodes of a site from their parent, as they count them.
func (s *site) fromParents(ctx context.Context) (sum int64, err error) {
	for _, n := range s.nodes {
		is, err := n.status(ctx)
		if err != nil {
			return 0, err
		}
		for _, l := range is.Links {
			if strings.HasPrefix(l.Link, "parent ") {
				sum += l.Today.In
			}
		}
	}
	return sum, nil
}
