package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/lines"
	"github.com/granary-oci/granary/simtest/netns"
)

// network is a bridge in a namespace of its own, and a namespace for each
// machine on it. Nothing of it is in the namespace of the caller.
type network struct {
	bridge  string   // its namespace
	all     []string // namespaces to delete
	restore func()   // what the kernel was told
}

// space is a machine: a namespace with an address on the bridge.
type space struct {
	name    string
	address string
	client  *http.Client // dials within the space
}

const (
	namePrefix = "granary-c"
	bridgeMAC  = "02:67:72:6e:79:01"
	// A queue of 50 ms behind a bucket that holds four of the largest segments
	// gives plain TCP all of the rate: what is lost to headers is 4.5 %.
	shape = "root tbf rate %dmbit burst 512kb latency 50ms"
)

// newNetwork makes a network for so many machines.
func newNetwork(ctx context.Context, count int) (*network, error) {
	netns.Sweep(namePrefix)
	n := &network{bridge: fmt.Sprintf("%s%d-b", namePrefix, os.Getpid()), restore: allowNeighbours(count * count)}
	n.all = append(n.all, n.bridge)
	return n, lines.Run(ctx,
		"ip netns add "+n.bridge,
		"ip -n "+n.bridge+" link add br0 address "+bridgeMAC+" type bridge mcast_snooping 0",
		"ip -n "+n.bridge+" link set br0 up")
}

// add makes a machine whose egress has a rate, in Mbit/s, and also what comes in
// if both is set.
func (n *network) add(ctx context.Context, label string, number, rate int, both bool) (*space, error) {
	s := &space{name: fmt.Sprintf("%s%d-%s", namePrefix, os.Getpid(), label), address: fmt.Sprintf("10.208.0.%d", number)}
	s.client = &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{DialContext: s.dial, DisableKeepAlives: true}}
	n.all = append(n.all, s.name)
	port, tbf := "p"+label, fmt.Sprintf(shape, rate)
	link := []string{
		"ip netns add " + s.name,
		"ip link add eth0 netns " + s.name + " type veth peer name " + port + " netns " + n.bridge,
		"ip -n " + s.name + " addr add " + s.address + "/24 dev eth0",
		"ip -n " + s.name + " link set lo up",
		"ip -n " + s.name + " link set eth0 up",
		"ip -n " + n.bridge + " link set " + port + " master br0",
		"ip -n " + n.bridge + " link set " + port + " up",
		"tc -n " + s.name + " qdisc add dev eth0 " + tbf,
	}
	if both {
		link = append(link, "tc -n "+n.bridge+" qdisc add dev "+port+" "+tbf)
	}
	return s, lines.Run(ctx, link...)
}

func (n *network) close() {
	for _, name := range n.all {
		_ = exec.Command("ip", "netns", "del", name).Run()
	}
	n.all = nil
	n.restore()
}

// allowNeighbours makes the kernel keep so many addresses of neighbours, of all
// namespaces together, where it keeps fewer: above that it drops packets.
func allowNeighbours(n int) (restore func()) {
	before := make(map[string][]byte)
	for name, want := range map[string]int{"gc_thresh1": n, "gc_thresh2": 2 * n, "gc_thresh3": 4 * n} {
		file := "/proc/sys/net/ipv4/neigh/default/" + name
		is, err := os.ReadFile(file)
		if value, bad := strconv.Atoi(strings.TrimSpace(string(is))); err != nil || bad != nil || value >= want {
			continue
		}
		if os.WriteFile(file, []byte(strconv.Itoa(want)), 0) == nil {
			before[file] = is
		}
	}
	return func() {
		for file, is := range before {
			_ = os.WriteFile(file, is, 0)
		}
	}
}

// partition makes what members of one half send to the other vanish without a
// word: it goes to the bridge itself, which has no use for it. Both halves still
// reach everybody else.
func partition(ctx context.Context, a, b []*space) error {
	return between(a, b, func(s, t *space) error {
		return lines.Run(ctx, "ip -n "+s.name+" neigh replace "+t.address+" lladdr "+bridgeMAC+" dev eth0 nud permanent")
	})
}

// heal undoes partition.
func heal(ctx context.Context, a, b []*space) error {
	return between(a, b, func(s, t *space) error {
		return lines.Run(ctx, "ip -n "+s.name+" neigh del "+t.address+" dev eth0")
	})
}

func between(a, b []*space, do func(s, t *space) error) error {
	for _, s := range a {
		for _, t := range b {
			if err := do(s, t); err != nil {
				return err
			}
			if err := do(t, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// sent returns the bytes that have left the machine, frames and all, as the
// link counts them: a segment that the kernel sends in one piece has one header.
func (s *space) sent() (int64, error) {
	out, err := exec.Command("ip", "netns", "exec", s.name, "cat", "/sys/class/net/eth0/statistics/tx_bytes").Output()
	if err != nil {
		return 0, fmt.Errorf("count bytes of %s: %w", s.name, err)
	}
	return strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
}

// dial connects from within the space. A thread enters it for that moment; the
// socket stays there. The thread must come back rather than end, because the
// processes that it has started would be killed with it (Pdeathsig); one that cannot
// is left to this goroutine alone, and ends with it.
func (s *space) dial(ctx context.Context, kind, address string) (c net.Conn, err error) {
	runtime.LockOSThread()
	home, err := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	defer unix.Close(home)
	there, err := unix.Open("/run/netns/"+s.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	defer unix.Close(there)
	if err = unix.Setns(there, unix.CLONE_NEWNET); err == nil {
		dialer := net.Dialer{Timeout: 5 * time.Second}
		c, err = dialer.DialContext(ctx, kind, address)
	}
	if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
		if c != nil {
			_ = c.Close()
		}
		return nil, fmt.Errorf("cannot return to the network namespace: %w", back)
	}
	runtime.UnlockOSThread()
	return c, err
}
