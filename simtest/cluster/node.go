package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/granary-oci/granary/simtest/netns"
)

const (
	adminURL = "http://127.0.0.1:5051"
	zone     = "z1"
)

// node is a granary on its machine.
type node struct {
	*netns.Process
	space *space
	args  []string
	cpus  float64 // seconds that its earlier processes have used
}

// target is the node for a client on its machine.
func (n *node) target() target { return target{n.space, "http://127.0.0.1:5050"} }

func targets(nodes []*node) (all []target) {
	for _, n := range nodes {
		all = append(all, n.target())
	}
	return all
}

// knowsPeers tells whether this granary can be a member of a cluster.
func knowsPeers(granary string) bool {
	out, _ := exec.Command(granary, "serve", "--help").CombinedOutput()
	return strings.Contains(string(out), "--p2p-listen")
}

// arguments are those of the node on machine i. Every node is told all others,
// as a headless service would; a node alone is told nobody.
func (l *lab) arguments(i int, data, secret string, alone bool) []string {
	s := l.spaces[i]
	args := []string{l.Granary, "serve", "--data-dir", data, "--listen", "127.0.0.1:5050", "--admin", "127.0.0.1:5051",
		"--upstream", upstreamName + "=" + l.registry.url(), "--default-upstream", upstreamName, "--log-level", l.LogLevel}
	if alone {
		return args
	}
	args = append(args, "--p2p-listen", "/ip4/"+s.Address+"/tcp/5052", "--gossip-listen", s.Address+":5053",
		"--advertise", s.Address, "--cluster-secret-file", secret, "--zone", zone)
	for _, other := range l.spaces {
		if other != s {
			args = append(args, "--join", other.Address+":5053")
		}
	}
	return args
}

// startNode starts the node on machine i with an empty store and waits until it
// is ready. data is its data directory, or "" for a new one.
func (l *lab) startNode(ctx context.Context, i int, data, secret string, alone bool) (*node, error) {
	if data == "" {
		data = filepath.Join(l.data, fmt.Sprintf("%s-%d", l.label, i+1))
	}
	n := &node{space: l.spaces[i], args: l.arguments(i, data, secret, alone)}
	l.nodes = append(l.nodes, n)
	return n, n.restart(ctx, l.logFile(fmt.Sprintf("node%d", i+1)))
}

// restart starts the node's process, again if it has ended.
func (n *node) restart(ctx context.Context, log string) (err error) {
	if n.Process != nil {
		n.cpus += n.CPU()
	}
	if n.Process, err = netns.Start(log, n.space.Space, n.args...); err != nil {
		return err
	}
	return eventually(ctx, 30*time.Second, n.Name+" is ready", func() bool { return answers(ctx, n.space, adminURL+"/readyz") })
}

// startNodes starts the first count nodes and waits until they are a cluster.
func (l *lab) startNodes(ctx context.Context, count int, alone bool) ([]*node, error) {
	var nodes []*node
	for i := range count {
		n, err := l.startNode(ctx, i, "", l.secret("secret"), alone)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
	if alone {
		return nodes, nil
	}
	return nodes, l.together(ctx, time.Minute+time.Duration(count)*2*time.Second, nodes...)
}

// together waits until each of the nodes takes all the others for up, and a
// moment more.
func (l *lab) together(ctx context.Context, limit time.Duration, nodes ...*node) error {
	err := eventually(ctx, limit, fmt.Sprintf("%d nodes know each other", len(nodes)), func() bool {
		return !slices.ContainsFunc(nodes, func(n *node) bool { return n.metric(ctx, "granary_members", `state="up"`) != float64(len(nodes)-1) })
	})
	if err != nil {
		return err
	}
	return netns.Pause(ctx, l.Settle)
}

// members returns how many others the node has as members, whatever it makes of
// them.
func (n *node) members(ctx context.Context) int {
	return int(n.metric(ctx, "granary_members", "") - n.metric(ctx, "granary_members", `state="self"`))
}

// metric sums the values of a metric whose labels contain match. It is 0 if the node does not answer.
func (n *node) metric(ctx context.Context, name, match string) float64 {
	text, _ := netns.Read(ctx, n.space.client, adminURL+"/metrics")
	return netns.Metrics(text).Sum(name, match)
}
