package sites

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/granary-oci/granary/simtest/lines"
	"github.com/granary-oci/granary/simtest/netns"
)

// network is a hub and edge sites, each at the end of a thin line and behind NAT. From the lines the
// hub's nodes are reached, and its registry only if it is opened.
type network struct {
	registry *netns.Space
	hub      *netns.Space // a node's machine
	edges    []*edge
	far      string   // the namespace of the hub's router
	all      []string // namespaces to delete
}

// edge is the network of an edge site.
type edge struct {
	line     *netns.Wire // its near end is the hub
	wan      string      // its device at the hub
	router   string      // namespace
	subnet   string      // as in 10.213.1.
	machines []*netns.Space
}

const (
	namePrefix = "granary-edge"

	// Rate is that of a line in Mbit/s, each way, and Trip how long a round trip takes.
	Rate = 50
	Trip = 80 * time.Millisecond

	thin = "root tbf rate 50mbit burst 128kb latency 100ms"
	wide = "root tbf rate 2gbit burst 2mb latency 100ms"

	registryAddress = "10.211.9.1"
	hubAddress      = "10.211.0.11"
)

// newNetwork makes a network of so many edges, of so many machines each. It is to be closed, even if
// this fails.
func newNetwork(ctx context.Context, edges, nodes int) (n *network, err error) {
	netns.Sweep(namePrefix)
	n = &network{far: netns.Name(namePrefix, "h")}
	n.all = append(n.all, n.far)
	err = lines.Run(ctx,
		"ip netns add "+n.far,
		"ip netns exec "+n.far+" sysctl -qw net.ipv4.ip_forward=1",
		"ip netns exec "+n.far+" nft add table ip edges",
		"ip netns exec "+n.far+" nft add chain ip edges forward { type filter hook forward priority 0 ; }")
	if err != nil {
		return n, err
	}
	if n.registry, err = n.machine(ctx, "r", n.far, registryAddress, "10.211.9.2"); err != nil {
		return n, err
	}
	if n.hub, err = n.machine(ctx, "h1", n.far, hubAddress, "10.211.0.1"); err != nil {
		return n, err
	}
	for i := range edges {
		if err := n.addEdge(ctx, i+1, nodes); err != nil {
			return n, err
		}
	}
	return n, n.OpenRegistry(ctx, false)
}

// machine makes a machine that is connected to a router, which has an address on that link.
func (n *network) machine(ctx context.Context, label, router, address, gateway string) (*netns.Space, error) {
	s := &netns.Space{Name: netns.Name(namePrefix, label), Address: address}
	n.all = append(n.all, s.Name)
	port := "to-" + label
	return s, lines.Run(ctx,
		"ip netns add "+s.Name,
		"ip link add eth0 netns "+s.Name+" type veth peer name "+port+" netns "+router,
		"ip -n "+s.Name+" link set lo up",
		"ip -n "+s.Name+" link set eth0 up",
		"ip -n "+s.Name+" addr add "+address+"/32 dev eth0",
		"ip -n "+s.Name+" route add "+gateway+" dev eth0",
		"ip -n "+s.Name+" route add default via "+gateway,
		"ip -n "+router+" link set "+port+" up",
		"ip -n "+router+" addr add "+gateway+"/32 dev "+port,
		"ip -n "+router+" route add "+address+" dev "+port)
}

func (n *network) addEdge(ctx context.Context, i, nodes int) (err error) {
	e := &edge{wan: fmt.Sprint("wan", i), router: netns.Name(namePrefix, fmt.Sprint("e", i)), subnet: fmt.Sprintf("10.213.%d.", i)}
	n.edges, n.all = append(n.edges, e), append(n.all, e.router)
	name := fmt.Sprintf("ged%d-%d", os.Getpid(), i)
	if e.line, err = netns.NewWire(name+"h", name+"e", Trip/2, nil); err != nil {
		return err
	}
	far, near := fmt.Sprintf("10.212.%d.1", i), fmt.Sprintf("10.212.%d.2", i)
	err = lines.Run(ctx,
		"ip netns add "+e.router,
		"ip netns exec "+e.router+" sysctl -qw net.ipv4.ip_forward=1",
		"ip link set "+e.line.Near+" netns "+n.far+" name "+e.wan,
		"ip link set "+e.line.Far+" netns "+e.router+" name wan0",
		"ip -n "+n.far+" addr add "+far+"/30 dev "+e.wan,
		"ip -n "+n.far+" link set "+e.wan+" up",
		"ip -n "+e.router+" addr add "+near+"/30 dev wan0",
		"ip -n "+e.router+" link set wan0 up",
		"ip -n "+e.router+" route add default via "+far,
		"tc -n "+n.far+" qdisc add dev "+e.wan+" "+thin,
		"tc -n "+e.router+" qdisc add dev wan0 "+thin,
		"ip netns exec "+e.router+" nft add table ip edge",
		"ip netns exec "+e.router+" nft add chain ip edge out { type nat hook postrouting priority 100 ; }",
		"ip netns exec "+e.router+" nft add rule ip edge out oifname wan0 masquerade")
	for j := 0; j < nodes && err == nil; j++ {
		var s *netns.Space
		s, err = n.machine(ctx, fmt.Sprintf("e%dn%d", i, j+1), e.router, e.subnet+fmt.Sprint(11+j), e.subnet+fmt.Sprint(101+j))
		e.machines = append(e.machines, s)
	}
	return err
}

// Widen has lines carry all that they can, for what is not measured, or makes them thin again.
func (n *network) Widen(ctx context.Context, is bool) error {
	shape := thin
	if is {
		shape = wide
	}
	for _, e := range n.edges {
		err := lines.Run(ctx, "tc -n "+n.far+" qdisc replace dev "+e.wan+" "+shape, "tc -n "+e.router+" qdisc replace dev wan0 "+shape)
		if err != nil {
			return err
		}
	}
	return nil
}

// OpenRegistry lets edges reach the registry, or has what they send it vanish.
func (n *network) OpenRegistry(ctx context.Context, is bool) error {
	nft := "ip netns exec " + n.far + " nft "
	if is {
		return lines.Run(ctx, nft+"flush chain ip edges forward")
	}
	return lines.Run(ctx, nft+"add rule ip edges forward iifname wan* ip daddr "+registryAddress+" drop")
}

// Cut cuts all lines, or mends them.
func (n *network) Cut(is bool) {
	for _, e := range n.edges {
		e.line.Cut.Store(is)
	}
}

// Flap cuts and mends all lines in turn, each for so long, beginning with a cut, until ctx ends.
func (n *network) Flap(ctx context.Context, each time.Duration) {
	for down := true; ctx.Err() == nil; down = !down {
		n.Cut(down)
		select {
		case <-ctx.Done():
		case <-time.After(each):
		}
	}
	n.Cut(false)
}

func (n *network) close() {
	netns.Delete(n.all...)
	for _, e := range n.edges {
		if e.line != nil {
			_ = e.line.Close()
		}
	}
}
