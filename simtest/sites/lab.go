package sites

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/simtest/netns"
)

// Config is what a [Lab] is made of.
type Config struct {
	Dir     string   // of all that a run makes
	Granary string   // the program
	By      []string // how each site reaches the hub: quic, tcp or url
	Nodes   int      // that are started in each site; 0 is none
	Spare   int      // machines for more of them
	Flags   []string // more settings of the sites' nodes
}

// Lab is the network with its registry, hub and sites.
type Lab struct {
	*network
	Registry *Registry
	Hub      *Node
	Sites    []*Site

	cfg      Config
	logLevel string
}

// Site is the nodes of an edge, and how they reach their parent.
type Site struct {
	By    string // quic, tcp or url
	Nodes []*Node

	*edge
	number int
	parent string // address
}

// New makes a lab. It is to be closed, even if this fails. Nodes log more with a level in GRANARY_EDGES_LOG.
func New(ctx context.Context, cfg Config) (l *Lab, err error) {
	l = &Lab{cfg: cfg, logLevel: "info"}
	if level := os.Getenv("GRANARY_EDGES_LOG"); level != "" {
		l.logLevel = level
	}
	if err := os.WriteFile(l.file("token"), []byte("the-token-of-these-edges\n"), 0o600); err != nil {
		return l, err
	}
	if err := writeCertificate(hubAddress, l.file("hub.pem"), l.file("hub.key")); err != nil {
		return l, err
	}
	if l.network, err = newNetwork(ctx, len(cfg.By), cfg.Nodes+cfg.Spare); err != nil {
		return l, err
	}
	if l.Registry, err = startRegistry(l.network.registry); err != nil {
		return l, err
	}
	if err := l.startHub(ctx); err != nil {
		return l, err
	}
	g, ctx := errgroup.WithContext(ctx)
	for i, e := range l.edges {
		s := &Site{edge: e, number: i + 1, By: cfg.By[i]}
		l.Sites = append(l.Sites, s)
		g.Go(func() error { return l.startSite(ctx, s) })
	}
	return l, g.Wait()
}

func (l *Lab) file(name string) string { return filepath.Join(l.cfg.Dir, name) }

// Close ends all of it. What was stored stays.
func (l *Lab) Close() {
	for _, s := range l.Sites {
		for _, n := range s.Nodes {
			n.Stop()
		}
	}
	if l.Hub != nil {
		l.Hub.Stop()
	}
	if l.Registry != nil {
		_ = l.Registry.server.Close()
	}
	if l.network != nil {
		l.network.close()
	}
}

func (l *Lab) startHub(ctx context.Context) (err error) {
	l.Hub, err = l.start(ctx, "hub", l.file("hub"), l.network.hub, "--gateway-token-file", l.file("token"), "--gateway-listen", hubAddress+":5055",
		"--tls-cert-file", l.file("hub.pem"), "--tls-key-file", l.file("hub.key"),
		"--site-listen", "/ip4/"+hubAddress+"/udp/5054/quic-v1", "--site-listen", "/ip4/"+hubAddress+"/tcp/5054")
	return err
}

// startSite starts the nodes of a site, and waits until they know each other.
func (l *Lab) startSite(ctx context.Context, s *Site) error {
	secret := fmt.Sprintf("the secret of site %d, and of no other one\n", s.number)
	if err := os.WriteFile(l.secret(s), []byte(secret), 0o600); err != nil {
		return err
	}
	var err error
	if s.parent, err = l.Hub.siteAddress(ctx, s.By); err != nil {
		return err
	}
	for range l.cfg.Nodes {
		if err := l.Join(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) secret(s *Site) string { return l.file(fmt.Sprint("secret", s.number)) }

// Join starts the next node of a site, and waits until all of them know each other.
func (l *Lab) Join(ctx context.Context, s *Site) error {
	i := len(s.Nodes)
	machine := s.machines[i]
	args := []string{"--cluster-secret-file", l.secret(s), "--p2p-listen", "/ip4/" + machine.Address + "/tcp/5052",
		"--gossip-listen", machine.Address + ":5053", "--advertise", machine.Address}
	for _, other := range s.machines[:i] {
		args = append(args, "--join", other.Address+":5053")
	}
	label := fmt.Sprintf("site%d-%d", s.number, i+1)
	if err := l.startEdge(ctx, s, label, l.file(label), args...); err != nil {
		return err
	}
	for _, n := range s.Nodes {
		if err := n.Ready(ctx, func() bool { return n.knows(ctx) == len(s.Nodes)-1 }); err != nil {
			return err
		}
	}
	return nil
}

// Alone starts a node that is all of a site, with what is in a data directory.
func (l *Lab) Alone(ctx context.Context, s *Site, data string, more ...string) error {
	if len(s.Nodes) > 0 {
		return errors.New("the site has a node")
	}
	return l.startEdge(ctx, s, fmt.Sprint("site", s.number), data, more...)
}

// Machine is one of those of the site.
func (s *Site) Machine(i int) *netns.Space { return s.machines[i] }

// Leave ends the nodes of a site.
func (s *Site) Leave() {
	for _, n := range s.Nodes {
		n.Stop()
	}
	s.Nodes = nil
}

// startEdge starts the next node of a site, with the hub for a parent.
func (l *Lab) startEdge(ctx context.Context, s *Site, label, data string, more ...string) error {
	args := append([]string{"--parent", s.parent, "--parent-token-file", l.file("token"), "--parent-ca-file", l.file("hub.pem"), "--zone", fmt.Sprint("site", s.number)}, l.cfg.Flags...)
	n, err := l.start(ctx, label, data, s.machines[len(s.Nodes)], append(args, more...)...)
	if err == nil {
		s.Nodes = append(s.Nodes, n)
	}
	return err
}

// start starts a node on a machine.
func (l *Lab) start(ctx context.Context, label, data string, s *netns.Space, more ...string) (n *Node, err error) {
	args := append([]string{l.cfg.Granary, "serve", "--data-dir", data, "--listen", "127.0.0.1:5050", "--admin", "127.0.0.1:5051", "--cache-size", "8GiB",
		"--upstream", RegistryHost + "=" + RegistryURL, "--default-upstream", RegistryHost, "--log-level", l.logLevel}, more...)
	n = &Node{Space: s, client: s.Client()}
	if n.Process, err = netns.Start(l.file(label+".log"), s, args...); err != nil {
		return nil, err
	}
	if err := n.Ready(ctx, func() bool { return netns.Answers(ctx, n.client, AdminURL+"/readyz") }); err != nil {
		n.Stop()
		return nil, err
	}
	return n, nil
}
