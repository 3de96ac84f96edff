package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/lines"
)

// network is machines in namespaces of their own: the registry, at the far end of a long
// wire, and nodes, which are near each other, each behind a link of a limited rate.
type network struct {
	wire     *wire
	registry *space
	site     string   // the namespace of the switch that the nodes are at
	nodes    []*space // machines
	all      []string // namespaces to delete
}

// space is a machine: a namespace with an address.
type space struct{ name, address string }

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
	sweep()
	n = &network{site: spaceName("s"), registry: &space{spaceName("r"), registryAddress}}
	n.all = []string{n.site, n.registry.name}
	ends := fmt.Sprintf("gst%d", os.Getpid())
	if n.wire, err = newWire(ends+"r", ends+"s", trip/2, t); err != nil {
		return n, err
	}
	r, s := n.registry.name, n.site
	err = lines.Run(ctx,
		"ip netns add "+r,
		"ip netns add "+s,
		"ip link set "+n.wire.near+" netns "+r+" name wan0",
		"ip link set "+n.wire.far+" netns "+s+" name wan0",
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

func spaceName(label string) string { return fmt.Sprintf("%s%d-%s", namePrefix, os.Getpid(), label) }

func (n *network) addNode(ctx context.Context, i, rate int) error {
	s := &space{spaceName(fmt.Sprint("n", i+1)), fmt.Sprintf("10.210.1.%d", 11+i)}
	n.nodes, n.all = append(n.nodes, s), append(n.all, s.name)
	port, tbf := fmt.Sprint("p", i+1), fmt.Sprintf(shape, rate)
	return lines.Run(ctx,
		"ip netns add "+s.name,
		"ip link add eth0 netns "+s.name+" type veth peer name "+port+" netns "+n.site,
		"ip -n "+s.name+" addr add "+s.address+"/24 dev eth0",
		"ip -n "+s.name+" link set lo up",
		"ip -n "+s.name+" link set eth0 up",
		"ip -n "+s.name+" route add default via "+siteAddress,
		"ip -n "+n.site+" link set "+port+" master br0",
		"ip -n "+n.site+" link set "+port+" up",
		"tc -n "+s.name+" qdisc add dev eth0 "+tbf,
		"tc -n "+n.site+" qdisc add dev "+port+" "+tbf)
}

func (n *network) close() {
	for _, name := range n.all {
		_ = exec.Command("ip", "netns", "del", name).Run()
	}
	if n.wire != nil {
		_ = n.wire.close()
	}
}

// sweep deletes the namespaces of runs that were killed.
func sweep() {
	names, _ := filepath.Glob("/run/netns/" + namePrefix + "*")
	for _, name := range names {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(name), namePrefix), "-")
		if _, err := os.Stat("/proc/" + pid); os.IsNotExist(err) {
			_ = exec.Command("ip", "netns", "del", filepath.Base(name)).Run()
		}
	}
}

// in gives the command line that runs args on the machine. What it mounts is seen
// everywhere: "ip netns exec" would give it mounts of its own.
func (s *space) in(args ...string) []string {
	return append([]string{"nsenter", "--net=/run/netns/" + s.name, "--"}, args...)
}

// within calls do on a thread that is on the machine: sockets that it opens stay there.
// The thread ends with it, unless it can come back.
func (s *space) within(do func() error) error {
	runtime.LockOSThread()
	home, err := openNamespace(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(home)
	there, err := openNamespace("/run/netns/" + s.name)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(there)
	if err = unix.Setns(there, unix.CLONE_NEWNET); err == nil {
		err = do()
	}
	if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
		return fmt.Errorf("cannot return to the network namespace: %w", back)
	}
	runtime.UnlockOSThread()
	return err
}

func openNamespace(name string) (int, error) {
	return unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

// dial connects from the machine.
func (s *space) dial(ctx context.Context, kind, address string) (c net.Conn, err error) {
	err = s.within(func() (err error) {
		dialer := net.Dialer{Timeout: 5 * time.Second}
		c, err = dialer.DialContext(ctx, kind, address)
		return err
	})
	return c, err
}

// listen listens on the machine.
func (s *space) listen(address string) (l net.Listener, err error) {
	err = s.within(func() (err error) { l, err = net.Listen("tcp4", address); return err })
	return l, err
}
