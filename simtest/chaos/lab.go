package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/granary-oci/granary/simtest/netns"
)

const (
	namePrefix = "granary-x"
	zone       = "z1"

	wide      = 128 << 20 // bytes that a node keeps
	tight     = 24 << 20  // and the narrow one
	diskExtra = 96 << 20  // of its disk, beyond that
)

// lab is a registry, nodes on machines of their own, and what happened to them.
type lab struct {
	options
	dir      string // of what goes with the run
	logs     string // and of what stays, if it fails
	history  *history
	out      io.Writer
	bridge   *netns.Bridge // nil without root: then machines are addresses of the loopback
	homes    []machine     // the registry's, those of nodes, and a corrupt member's
	registry *registry
	nodes    []*node
	images   images
	builds   []string // binaries: the one that nodes begin with, and the one that they are upgraded to
	versions []string
	unproven string // --unproven-ranges
	secret   string // of the cluster; what rotates it owns it

	mu       sync.Mutex
	culprits map[string]string // why a member may be quarantined, by ID
	nameless int               // members that will be such, and whose IDs are not known yet
	blamed   map[string]bool   // quarantines that were told of
	failures int
	counts   map[string]int     // of requests, by what became of them
	peaks    map[string]float64 // of what is measured of nodes
}

// machine is where a node is.
type machine struct {
	space    *netns.Space // nil for the caller's own
	address  string
	loopback string // where only what is on the machine reaches it
	client   *http.Client
}

// newLab makes machines, a registry and a cluster of nodes. It is to be closed, even if this fails.
func newLab(ctx context.Context, o options, out io.Writer) (l *lab, err error) {
	l = &lab{options: o, history: newHistory(), out: out, culprits: make(map[string]string), blamed: make(map[string]bool), counts: make(map[string]int), peaks: make(map[string]float64)}
	netns.SweepRuns(l.work)
	l.dir = filepath.Join(l.work, fmt.Sprint("run-", os.Getpid()))
	l.logs = filepath.Join(l.work, fmt.Sprintf("logs-%s-%d", time.Now().Format("0102-150405"), os.Getpid()))
	if err := errors.Join(os.MkdirAll(l.dir, 0o755), os.MkdirAll(l.logs, 0o755)); err != nil {
		return l, err
	}
	if err := l.build(ctx); err != nil {
		return l, err
	}
	if err := l.makeMachines(ctx); err != nil {
		return l, err
	}
	home := l.homes[0]
	l.registry, err = newRegistry(home.address+":5000", l.history.now, func() (net.Listener, error) {
		if home.space != nil {
			return home.space.Listen(home.address + ":5000")
		}
		return net.Listen("tcp4", home.address+":5000")
	})
	if err != nil {
		return l, err
	}
	// A signed lie is found out by the digest of the whole blob alone. Parts of blobs rest on members' word by default, so it takes the
	// other setting for no part to be wrong. Seeds take turns: those that are odd have the default, and no such member.
	if l.unproven = "upstream"; o.seed%2 == 1 {
		l.unproven = "members"
	}
	l.secret = "first"
	l.writeSecret(l.secret)
	return l, l.startNodes(ctx)
}

func (l *lab) file(name ...string) string { return filepath.Join(append([]string{l.dir}, name...)...) }

func (l *lab) log(format string, args ...any) {
	fmt.Fprintf(l.out, "%7.1f s  %s\n", l.history.now().Seconds(), fmt.Sprintf(format, args...))
}

// makeMachines makes those for the registry, each node and a corrupt member.
func (l *lab) makeMachines(ctx context.Context) (err error) {
	if os.Geteuid() == 0 && !l.loopback {
		if l.bridge, err = netns.NewBridge(ctx, namePrefix, l.count+2); err != nil {
			return err
		}
	}
	for i := range l.count + 2 {
		m := machine{client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
		if l.bridge == nil {
			// Each process has its own addresses, all of which lead here (RFC 1122, 3.2.1.3).
			pid := os.Getpid()
			m.address = fmt.Sprintf("127.%d.%d.%d", 1+pid>>8%250, pid%250, 11+i)
			m.loopback = m.address
		} else {
			if m.space, err = l.bridge.Add(ctx, fmt.Sprint(i), 10+i); err != nil {
				return err
			}
			m.address, m.loopback = m.space.Address, "127.0.0.1"
			m.client.Transport = &http.Transport{DialContext: m.space.Dial, DisableKeepAlives: true}
		}
		l.homes = append(l.homes, m)
	}
	return nil
}

// startNodes starts all nodes and waits until they are a cluster.
func (l *lab) startNodes(ctx context.Context) error {
	g, within := errgroup.WithContext(ctx)
	for i := range l.count {
		n := &node{lab: l, index: i, machine: l.homes[1+i], dir: l.file("data", fmt.Sprint("node", i+1)), room: wide, build: 0}
		if i == narrow {
			n.room = tight
		}
		l.nodes = append(l.nodes, n)
		g.Go(func() error {
			if err := n.mount(); err != nil {
				return err
			}
			return n.start(within)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := l.together(ctx, time.Minute); err != nil {
		return err
	}
	for _, n := range l.nodes {
		s, err := n.status(ctx)
		if err != nil {
			return err
		}
		n.id = s.Cluster.ID
	}
	return nil
}

// together waits until each node takes all others for up, and nobody else.
func (l *lab) together(ctx context.Context, limit time.Duration) error {
	what := ""
	for deadline := time.Now().Add(limit); ; {
		what = ""
		for _, n := range l.nodes {
			if known := n.members(ctx); known != fmt.Sprintf("%d up", l.count-1) {
				what = fmt.Sprintf("node %d has %s, of %d others", n.index+1, known, l.count-1)
			}
		}
		if what == "" {
			return nil
		}
		if time.Now().After(deadline) || netns.Pause(ctx, 200*time.Millisecond) != nil {
			return fmt.Errorf("the nodes are no cluster within %v: %s", limit, what)
		}
	}
}

// writeSecret writes the file of keys that all nodes read. It is replaced as a whole.
func (l *lab) writeSecret(keys ...string) {
	var text strings.Builder
	for _, k := range keys {
		key := make([]byte, 32)
		copy(key, k+", not for any other use")
		text.WriteString(base64.StdEncoding.EncodeToString(key) + "\n")
	}
	_ = os.WriteFile(l.file("secret.new"), []byte(text.String()), 0o600)
	_ = os.Rename(l.file("secret.new"), l.file("secret"))
}

// fail counts something that must not be, and says so.
func (l *lab) fail(n *node, from, to time.Duration, format string, args ...any) {
	l.mu.Lock()
	l.failures++
	many := l.failures > maxReports
	l.mu.Unlock()
	if many {
		return
	}
	l.log("FAILED (seed %d): %s", l.seed, fmt.Sprintf(format, args...))
	l.log("        meanwhile, and in the %v before: %s", recentFaults, l.history.during(from-recentFaults, to))
	if n != nil && n.Process != nil {
		out := strings.TrimSpace(n.Output())
		l.log("        the end of node %d's log:\n%s", n.index+1, out[max(0, len(out)-1500):])
	}
}

const (
	maxReports   = 20
	recentFaults = 15 * time.Second
)

func (l *lab) count1(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[what]++
}

// close ends all processes, and removes all but the logs.
func (l *lab) close() {
	var g errgroup.Group
	for _, n := range l.nodes {
		g.Go(func() error {
			if n.Process != nil {
				n.StopWithin(10 * time.Second)
			}
			return nil
		})
	}
	_ = g.Wait()
	if l.registry != nil {
		l.registry.close()
	}
	if l.bridge != nil {
		l.bridge.Close()
	}
	netns.UnmountBelow(l.dir)
	_ = os.RemoveAll(l.dir)
}
