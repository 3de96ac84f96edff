package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	namePrefix     = "granary-k"
	outsideAddress = "10.210.0.1"                    // of the control plane, the registry and the DNS server
	serviceRange   = "10.212.0.0/16,fd67:6772::/112" // charts may ask for IPv6
)

// network is a bridge, with what is not a node on it, and nodes.
type network struct {
	outside string   // the bridge's namespace
	nodes   []string // their namespaces
}

func nodeAddress(i int) string { return fmt.Sprintf("10.210.0.%d", 11+i) }

// podRange is where the pods of a node are; the machine outside routes between nodes.
func podRange(i int) string { return fmt.Sprintf("10.211.%d.0/24", i) }

func newNetwork(ctx context.Context) (*network, error) {
	name := fmt.Sprintf("%s%d-", namePrefix, os.Getpid())
	n := &network{outside: name + "o"}
	o := "ip -n " + n.outside
	err := commands(ctx, "ip netns add "+n.outside, o+" link set lo up", o+" link add br0 type bridge", o+" addr add "+outsideAddress+"/24 dev br0", o+" link set br0 up",
		"ip netns exec "+n.outside+" sysctl -qw net.ipv4.ip_forward=1")
	for i := 0; i < nodeCount && err == nil; i++ {
		space := name + fmt.Sprint(i)
		n.nodes = append(n.nodes, space)
		s := "ip -n " + space
		err = commands(ctx, "ip netns add "+space, fmt.Sprintf("ip link add eth0 netns %s type veth peer name p%d netns %s", space, i, n.outside),
			s+" link set lo up", s+" addr add "+nodeAddress(i)+"/24 dev eth0", s+" link set eth0 up", s+" route add default via "+outsideAddress,
			"ip netns exec "+space+" sysctl -qw net.ipv4.ip_forward=1",
			fmt.Sprintf("%s link set p%d master br0 up", o, i), o+" route add "+podRange(i)+" via "+nodeAddress(i))
	}
	return n, err
}

func (n *network) close() {
	for _, name := range append(n.nodes, n.outside) {
		_ = exec.Command("ip", "netns", "del", name).Run()
	}
}

// in gives the command line that runs args in a network namespace.
func in(space string, args ...string) []string {
	return append([]string{"nsenter", "--net=/run/netns/" + space, "--"}, args...)
}

// listenIn listens within a network namespace: the socket stays there. The thread that has
// entered it is of no use to others, but must not end: the processes that it has started
// would be killed with it (Pdeathsig).
func listenIn(space, address string) (l net.Listener, err error) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		var f *os.File
		if f, err = os.Open("/run/netns/" + space); err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
			_ = f.Close()
		}
		if err == nil {
			l, err = net.Listen("tcp", address)
		}
		close(done)
		select {}
	}()
	<-done
	return l, err
}
