// Package trackertest is the conformance suite for any [tracker.Tracker].
package trackertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/tracker"
)

// Node is one of several whose trackers know of each other.
type Node struct {
	tracker.Tracker
	ID    tracker.ID
	Leave func(context.Context) error // says goodbye to the others, and ends
}

// Start starts n nodes and returns when they know of each other. They end with the
// test.
type Start func(t *testing.T, n int) []Node

// patience is how long something may take that is to come about. News are gathered
// and paced, so it is not at once.
const patience = 30 * time.Second

// Test checks that trackers keep the contract of [tracker.Tracker].
func Test(t *testing.T, start Start) {
	for name, test := range map[string]func(*testing.T, Start){
		"announced":  testAnnounced,
		"withdrawn":  testWithdrawn,
		"left":       testLeft,
		"many":       testMany,
		"bounded":    testBounded,
		"unknown":    testUnknown,
		"ctx ended":  testContextEnded,
		"changeable": testChangeable,
	} {
		t.Run(name, func(t *testing.T) { test(t, start) })
	}
}

func testAnnounced(t *testing.T, start Start) {
	nodes := start(t, 4)
	for _, d := range []digest.Digest{digest.FromString("a blob"), digest.SHA512.FromString("a blob")} {
		nodes[0].Announce(d)
		for _, n := range nodes[1:] {
			n.waitFor(t, d, nodes[0])
			peers, _ := n.Providers(t.Context(), d, 8)
			for _, p := range peers {
				if len(p.Addrs) == 0 {
					t.Errorf("%s is said to have %s, and not where it is reached", p.ID, d)
				}
			}
		}
		nodes[0].waitFor(t, d) // others are asked for
	}
}

func testWithdrawn(t *testing.T, start Start) {
	nodes := start(t, 4)
	d, kept := digest.FromString("not for long"), digest.FromString("for ever")
	nodes[0].Announce(d)
	nodes[0].Announce(kept)
	nodes[1].Announce(d)
	nodes[2].waitFor(t, d, nodes[0], nodes[1])
	nodes[0].Withdraw(d)
	nodes[0].Withdraw("sha256:nonsense")
	nodes[0].Withdraw(digest.FromString("never announced"))
	for _, n := range nodes[2:] {
		n.waitFor(t, d, nodes[1])
		n.waitFor(t, kept, nodes[0])
	}
}

// What is said last holds, however fast one thing follows the other.
func testChangeable(t *testing.T, start Start) {
	nodes := start(t, 3)
	back, gone := digest.FromString("back"), digest.FromString("gone")
	for range 20 {
		nodes[0].Withdraw(back)
		nodes[0].Announce(gone)
		nodes[0].Announce(back)
		nodes[0].Withdraw(gone)
	}
	last := digest.FromString("told after all that")
	nodes[0].Announce(last)
	for _, n := range nodes[1:] {
		n.waitFor(t, last, nodes[0])
		n.waitFor(t, back, nodes[0])
		n.waitFor(t, gone)
	}
}

func testLeft(t *testing.T, start Start) {
	nodes := start(t, 4)
	var held []digest.Digest
	for i := range 10 {
		d := digest.FromString(fmt.Sprint("blob ", i))
		held = append(held, d)
		nodes[0].Announce(d)
		nodes[1].Announce(d)
	}
	for _, d := range held {
		nodes[2].waitFor(t, d, nodes[0], nodes[1])
	}
	if err := nodes[0].Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, d := range held {
		nodes[2].waitFor(t, d, nodes[1])
		nodes[3].waitFor(t, d, nodes[1])
	}
}

func testMany(t *testing.T, start Start) {
	nodes := start(t, 5)
	var held []digest.Digest
	for i := range 200 {
		held = append(held, digest.FromString(fmt.Sprint("blob ", i)))
		nodes[i%2].Announce(held[i])
	}
	for i, d := range held {
		nodes[2+i%3].waitFor(t, d, nodes[i%2])
	}
}

func testBounded(t *testing.T, start Start) {
	nodes := start(t, 6)
	d := digest.FromString("that many have")
	for _, n := range nodes[1:] {
		n.Announce(d)
	}
	nodes[0].waitFor(t, d, nodes[1:]...)
	for n := range 4 {
		if peers, err := nodes[0].Providers(t.Context(), d, n); len(peers) != n || err != nil {
			t.Errorf("asked for %d of 5, it returns %v, %v", n, peers, err)
		}
	}
}

func testUnknown(t *testing.T, start Start) {
	nodes := start(t, 3)
	nodes[1].Announce("sha256:nonsense")
	nodes[1].Announce("")
	for _, d := range []digest.Digest{digest.FromString("that nobody has"), "sha256:nonsense", "md5:d41d8cd98f00b204e9800998ecf8427e", ""} {
		if peers, err := nodes[0].Providers(t.Context(), d, 8); len(peers) > 0 || err != nil {
			t.Errorf("of %q the providers are %v, %v", d, peers, err)
		}
	}
}

func testContextEnded(t *testing.T, start Start) {
	nodes := start(t, 3)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := nodes[0].Providers(ctx, digest.FromString("that nobody has"), 8); !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
}

// waitFor waits until exactly these nodes are said to have a blob.
func (n Node) waitFor(t *testing.T, d digest.Digest, nodes ...Node) {
	t.Helper()
	var want, got []tracker.ID
	for _, p := range nodes {
		want = append(want, p.ID)
	}
	slices.Sort(want)
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var peers []tracker.Peer
		peers, err = n.Providers(t.Context(), d, len(nodes)+8)
		got = got[:0]
		for _, p := range peers {
			got = append(got, p.ID)
		}
		slices.Sort(got)
		if err == nil && slices.Equal(got, want) {
			return
		}
	}
	t.Fatalf("%s: at %s the providers are %v, want %v; %v", d, n.ID, got, want, err)
}
