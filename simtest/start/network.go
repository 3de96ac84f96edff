package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/granary-oci/granary/simtest/lines"
	"github.com/granary-oci/granary/simtest/netns"
)

// network is machines in namespaces of their own: the registry, at the far end of a long
// wire, and nodes, which are near each other, each behind a link of a limited rate.
type network struct {
	wire     *netns.Wire
	trace    *trace // of requests that reach the registry; nil for none
	registry *netns.Space
	site     string         // the namespace of the switch that the nodes are at
	nodes    []*netns.Space // machines
	all      []string       // namespaces to delete
}

const (
	namePrefix = "granary-start"
	// A queue of 50 ms behind a bucket that holds four of the largest segments gives
	// plain TCP all of the rate: what is lost to headers is 4.5 %.
	shape = "root tbf rate %dmbit burst 256kb latency 50ms"

	registryAddress = "10.210.0.1"
	siteAddress     = "10.210.1.1"
)

// newNetwork makes a network for so many nodes, whose links have a rate in Mbit/s each
// way. A round trip to the registry takes longer by trip. It is to be closed, even if
// this fails.
func newNetwork(ctx context.Context, nodes, rate int, trip time.Duration, t *trace) (n *network, err error) {
	netns.Sweep(namePrefix)
	n = &network{trace: t, site: netns.Name(namePrefix, "s"), registry: &netns.Space{Name: netns.Name(namePrefix, "r"), Address: registryAddress}}
	n.all = []string{n.site, n.registry.Name}
	ends := fmt.Sprintf("gst%d", os.Getpid())
	if n.wire, err = netns.NewWire(ends+"r", ends+"s", trip/2, t.request); err != nil {
		return n, err
	}
	r, s := n.registry.Name, n.site
	err = lines.Run(ctx,
		"ip netns add "+r,
		"ip netns add "+s,
		"ip link set "+n.wire.Near+" netns "+r+" name wan0",
		"ip link set "+n.wire.Far+" netns "+s+" name wan0",
		"ip -n "+r+" link set lo up",
		"ip -n "+r+" addr add "+registryAddress+"/30 dev wan0",
		"ip -n "+r+" link set wan0 txqueuelen 10000 up",
		"ip -n "+r+" route add 10.210.1.0/24 dev wan0",
		"ip -n "+s+" addr add 10.210.0.2/30 dev wan0",
		"ip -n "+s+" link set wan0 txqueuelen 10000 up",
		"ip -n "+s+" link add br0 type bridge mcast_snooping 0",
		"ip -n "+s+" addr add "+siteAddress+"/24 dev br0",
		"ip -n "+s+" link set br0 up",
		"ip netns exec "+s+" sysctl -qw net.ipv4.ip_forward=1")
	for i := 0; i < nodes && err == nil; i++ {
		err = n.addNode(ctx, i, rate)
	}
	return n, err
}

func (n *network) addNode(ctx context.Context, i, rate int) error {
	s := &netns.Space{Name: netns.Name(namePrefix, fmt.Sprint("n", i+1)), Address: fmt.Sprintf("10.210.1.%d", 11+i)}
	n.nodes, n.all = append(n.nodes, s), append(n.all, s.Name)
	port, tbf := fmt.Sprint("p", i+1), fmt.Sprintf(shape, rate)
	return lines.Run(ctx,
		"ip netns add "+s.Name,
		"ip link add eth0 netns "+s.Name+" type veth peer name "+port+" netns "+n.site,
		"ip -n "+s.Name+" addr add "+s.Address+"/24 dev eth0",
		"ip -n "+s.Name+" link set lo up",
		"ip -n "+s.Name+" link set eth0 up",
		"ip -n "+s.Name+" route add default via "+siteAddress,
		"ip -n "+n.site+" link set "+port+" master br0",
		"ip -n "+n.site+" link set "+port+" up",
		"tc -n "+s.Name+" qdisc add dev eth0 "+tbf,
		"tc -n "+n.site+" qdisc add dev "+port+" "+tbf)
}

func (n *network) close() {
	netns.Delete(n.all...)
	if n.wire != nil {
		_ = n.wire.Close()
	}
}
