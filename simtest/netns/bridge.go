package netns

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/granary-oci/granary/simtest/lines"
)

// Bridge is a bridge in a namespace of its own, and machines on it. Nothing of it is in the namespace of
// the caller.
type Bridge struct {
	prefix  string
	name    string            // of its namespace
	ports   map[*Space]string // of machines
	all     []string          // namespaces to delete
	restore func()            // what the kernel was told
}

const (
	bridgeMAC = "02:67:72:6e:79:01"
	// A queue of 50 ms behind a bucket that holds four of the largest segments
	// gives plain TCP all of the rate: what is lost to headers is 4.5 %.
	shape = "root tbf rate %dmbit burst 512kb latency 50ms"
)

// NewBridge makes a bridge for so many machines. It is to be closed, even if this fails. prefix is the
// program's own, as of [Name].
func NewBridge(ctx context.Context, prefix string, count int) (*Bridge, error) {
	Sweep(prefix)
	b := &Bridge{prefix: prefix, name: Name(prefix, "b"), ports: make(map[*Space]string), restore: allowNeighbours(count * count)}
	b.all = append(b.all, b.name)
	return b, lines.Run(ctx,
		"ip netns add "+b.name,
		"ip -n "+b.name+" link add br0 address "+bridgeMAC+" type bridge mcast_snooping 0",
		"ip -n "+b.name+" link set br0 up")
}

// Add makes a machine, whose address ends in number.
func (b *Bridge) Add(ctx context.Context, label string, number int) (*Space, error) {
	s := &Space{Name: Name(b.prefix, label), Address: fmt.Sprintf("10.208.0.%d", number)}
	port := "p" + label
	b.ports[s] = port
	b.all = append(b.all, s.Name)
	return s, lines.Run(ctx,
		"ip netns add "+s.Name,
		"ip link add eth0 netns "+s.Name+" type veth peer name "+port+" netns "+b.name,
		"ip -n "+s.Name+" addr add "+s.Address+"/24 dev eth0",
		"ip -n "+s.Name+" link set lo up",
		"ip -n "+s.Name+" link set eth0 up",
		"ip -n "+b.name+" link set "+port+" master br0",
		"ip -n "+b.name+" link set "+port+" up")
}

// ShapeOut gives what leaves a machine a rate, in Mbit/s.
func (b *Bridge) ShapeOut(ctx context.Context, s *Space, rate int) error {
	return lines.Run(ctx, "tc -n "+s.Name+" qdisc replace dev eth0 "+fmt.Sprintf(shape, rate))
}

// Shape gives the link of a machine a rate, in Mbit/s, each way.
func (b *Bridge) Shape(ctx context.Context, s *Space, rate int) error {
	if err := b.ShapeOut(ctx, s, rate); err != nil {
		return err
	}
	return lines.Run(ctx, "tc -n "+b.name+" qdisc replace dev "+b.ports[s]+" "+fmt.Sprintf(shape, rate))
}

// Unshape undoes Shape.
func (b *Bridge) Unshape(ctx context.Context, s *Space) error {
	return lines.Run(ctx,
		"tc -n "+s.Name+" qdisc del dev eth0 root",
		"tc -n "+b.name+" qdisc del dev "+b.ports[s]+" root")
}

// Close deletes the bridge and the machines.
func (b *Bridge) Close() {
	Delete(b.all...)
	b.all = nil
	b.restore()
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

// Part makes what machines of one half send to the other vanish without a word: it goes to the
// bridge itself, which has no use for it. Both halves still reach everybody else.
func Part(ctx context.Context, a, b []*Space) error {
	return between(a, b, func(s, t *Space) error {
		return lines.Run(ctx, "ip -n "+s.Name+" neigh replace "+t.Address+" lladdr "+bridgeMAC+" dev eth0 nud permanent")
	})
}

// Heal undoes Part.
func Heal(ctx context.Context, a, b []*Space) error {
	return between(a, b, func(s, t *Space) error {
		return lines.Run(ctx, "ip -n "+s.Name+" neigh del "+t.Address+" dev eth0")
	})
}

func between(a, b []*Space, do func(s, t *Space) error) error {
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
