package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/granary-oci/granary/simtest/netns"
)

// node is a granary on its machine.
type node struct {
	lab *lab
	machine
	index int
	dir   string
	room  int64 // bytes that it keeps
	id    string
	at    string // its registry face, where it is elsewhere than nodes have it

	busy sync.Mutex // held while a fault has its process in hand, and guards what follows
	*netns.Process
	build int // of the lab's
}

func (n *node) face() string  { return cmp.Or(n.at, "http://"+n.loopback+":5050") }
func (n *node) admin() string { return "http://" + n.loopback + ":5051" }

// hasClock reports whether the node runs in this very program, for its clock to be set.
func (n *node) hasClock() bool { return n.index == n.lab.count-1 }

// mount gives the node a disk of its own.
func (n *node) mount() error {
	if err := os.MkdirAll(n.dir, 0o755); err != nil || n.lab.bridge == nil {
		return err
	}
	if err := unix.Mount("tmpfs", n.dir, "tmpfs", 0, fmt.Sprintf("size=%d", n.room+diskExtra)); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	return nil
}

func (n *node) arguments() []string {
	l := n.lab
	args := []string{"--data-dir", n.dir + "/store", "--cache-size", fmt.Sprint(n.room), "--listen", n.loopback + ":5050", "--admin", n.loopback + ":5051",
		"--upstream", registryHost + "=" + l.registry.url(), "--default-upstream", registryHost, "--drain-timeout", "5s",
		"--p2p-listen", "/ip4/" + n.address + "/tcp/5052", "--gossip-listen", n.address + ":5053", "--advertise", n.address, "--zone", zone,
		"--cluster-secret-file", l.file("secret"), "--unproven-ranges", l.unproven}
	if n.index == wary {
		args = append(args, "--verify-reads", "always")
	}
	for i, m := range l.homes[1 : 1+l.count] {
		if i != n.index {
			args = append(args, "--join", m.address+":5053")
		}
	}
	return args
}

// start starts the node's process, again if it has ended, and waits until it is ready.
func (n *node) start(ctx context.Context) (err error) {
	args := append([]string{n.lab.builds[n.build], "serve"}, n.arguments()...)
	if n.hasClock() {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		args = append([]string{self, "clocked", n.clockFile()}, n.arguments()...)
	}
	if n.Process, err = netns.Start(filepath.Join(n.lab.logs, fmt.Sprintf("node%d.log", n.index+1)), n.space, args...); err != nil {
		return err
	}
	return n.Ready(ctx, func() bool { return netns.Answers(ctx, n.client, n.admin()+"/readyz") })
}

// end ends the process as an operator does.
func (n *node) end() {
	if from := n.lab.history.now(); n.StopWithin(20 * time.Second) {
		n.lab.fail(n, from, n.lab.history.now(), "node %d did not end within 20 s of SIGTERM", n.index+1)
	}
}

// status is what is read of a node's.
type status struct {
	Version string
	Cluster struct {
		ID      string
		Members []struct {
			ID, State, Fault string
			Strikes          int
		}
	}
}

func (n *node) status(ctx context.Context) (s status, err error) {
	return s, netns.ReadJSON(ctx, n.client, n.admin()+"/api/v1/status", &s)
}

// members tells the states of the other members, as in "3 up, 1 down".
func (n *node) members(ctx context.Context) string {
	s, err := n.status(ctx)
	if err != nil {
		return err.Error()
	}
	states := make(map[string]int)
	for _, m := range s.Cluster.Members {
		states[m.State]++
	}
	var all []string
	for _, state := range []string{"up", "down", "draining", "quarantined"} {
		if states[state] > 0 {
			all = append(all, fmt.Sprint(states[state], " ", state))
		}
	}
	return strings.Join(all, ", ")
}
