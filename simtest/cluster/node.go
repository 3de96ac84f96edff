package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	adminURL = "http://127.0.0.1:5051"
	zone     = "z1"
)

// node is a granary on its machine.
type node struct {
	*process
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
	args = append(args, "--p2p-listen", "/ip4/"+s.address+"/tcp/5052", "--gossip-listen", s.address+":5053",
		"--advertise", s.address, "--cluster-secret-file", secret, "--zone", zone)
	for _, other := range l.spaces {
		if other != s {
			args = append(args, "--join", other.address+":5053")
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
	if n.process != nil {
		n.cpus += n.cpu()
	}
	if n.process, err = start(log, n.space, n.args...); err != nil {
		return err
	}
	return eventually(ctx, 30*time.Second, n.name+" is ready", func() bool { return answers(ctx, n.space, adminURL+"/readyz") })
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
	return pause(ctx, l.Settle)
}

// members returns how many others the node has as members, whatever it makes of
// them.
func (n *node) members(ctx context.Context) int {
	return int(n.metric(ctx, "granary_members", "") - n.metric(ctx, "granary_members", `state="self"`))
}

// metric sums the values of a metric whose labels contain match.
func (n *node) metric(ctx context.Context, name, match string) (sum float64) {
	text, err := n.read(ctx, "/metrics")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		labels, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if family, _, _ := strings.Cut(labels, "{"); family == name && strings.Contains(labels, match) {
			v, _ := strconv.ParseFloat(value, 64)
			sum += v
		}
	}
	return sum
}

func (n *node) read(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	resp, err := request(ctx, n.space, http.MethodGet, adminURL+path, "", nil, 0)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}
