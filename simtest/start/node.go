package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"time"

	"github.com/granary-oci/granary/simtest/mounts"
	"github.com/granary-oci/granary/simtest/netns"
)

// node is a granary on its machine.
type node struct {
	*netns.Process
	lab    *lab
	space  *netns.Space
	data   string
	client *http.Client
}

const adminURL = "http://127.0.0.1:5051"

// startNode starts a node on machine i with what is in a data directory; "" is a new one.
func (l *lab) startNode(ctx context.Context, i int, data string, more ...string) (n *node, err error) {
	if data == "" {
		if data, err = os.MkdirTemp(l.dir, "data-"); err != nil {
			return nil, err
		}
	}
	s := l.net.nodes[i]
	n = &node{lab: l, space: s, data: data, client: s.Client()}
	args := append([]string{l.granary, "serve", "--data-dir", data, "--listen", "127.0.0.1:5050", "--admin", "127.0.0.1:5051", "--cache-size", "8GiB",
		"--upstream", registryHost + "=http://" + l.registry.address(), "--default-upstream", registryHost, "--log-level", l.logLevel}, more...)
	if n.Process, err = netns.Start(l.logFile(fmt.Sprint("node", i+1)), s, args...); err != nil {
		return nil, err
	}
	if err := n.Ready(ctx, func() bool { return netns.Answers(ctx, n.client, adminURL+"/readyz") }); err != nil {
		n.end()
		return nil, err
	}
	return n, nil
}

// end ends the node, and removes what it has stored.
func (n *node) end() {
	n.Stop()
	_ = os.RemoveAll(n.data)
}

// startMember starts a member of a cluster on machine i.
func (l *lab) startMember(ctx context.Context, i int) (*node, error) {
	s := l.net.nodes[i]
	flags := []string{"--p2p-listen", "/ip4/" + s.Address + "/tcp/5052", "--gossip-listen", s.Address + ":5053", "--advertise", s.Address, "--cluster-secret-file", l.secret}
	for _, other := range l.net.nodes[:i] {
		flags = append(flags, "--join", other.Address+":5053")
	}
	return l.startNode(ctx, i, "", flags...)
}

// startCluster starts a member on each machine, and waits until they know each other.
func (l *lab) startCluster(ctx context.Context) (nodes []*node, end func(), err error) {
	end = func() {
		for _, n := range nodes {
			n.end()
		}
	}
	for i := range l.net.nodes {
		n, err := l.startMember(ctx, i)
		if err != nil {
			return nil, end, err
		}
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		err := n.Ready(ctx, func() bool { return n.metric(ctx, "granary_members", `state="up"`) == float64(len(nodes)-1) })
		if err != nil {
			return nil, end, err
		}
	}
	return nodes, end, netns.Pause(ctx, 2*time.Second) // until they have probed each other
}

// granary runs a command through the node.
func (n *node) granary(ctx context.Context, command string, args ...string) error {
	args = n.space.In(append([]string{n.lab.granary, command, "--node", adminURL, "--default-upstream", registryHost}, args...)...)
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("granary %s: %w: %s", command, err, out[max(0, len(out)-1000):])
	}
	return nil
}

// metric sums the values of a metric whose labels contain match. It is 0 if the node does
// not answer.
func (n *node) metric(ctx context.Context, name, match string) (sum float64) {
	text, _ := netns.Read(ctx, n.client, adminURL+"/metrics")
	return netns.Metrics(text).Sum(name, match)
}

// mount mounts an image, and returns when it is.
func (n *node) mount(ctx context.Context, image string, more ...string) (*mounts.Mount, error) {
	args := append([]string{"--node", adminURL, "--default-upstream", registryHost}, more...)
	return mounts.Start(ctx, n.space, n.lab.granary, n.lab.dir, n.lab.logFile("mount"), append(args, image+":"+tag)...)
}
