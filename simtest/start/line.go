package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/granary-oci/granary/simtest/netns"
)

// line is what a connection over the link is found to be.
type line struct {
	connect, trip time.Duration // medians
	rate          float64       // Mbit/s of a long transfer toward a node
	rateNear      float64       // the same between two nodes; 0 if there is one
}

func (l line) String() string {
	s := fmt.Sprintf("to connect to the registry takes %.1f ms, a round trip %.1f ms; a long transfer gets %.0f Mbit/s",
		l.connect.Seconds()*1e3, l.trip.Seconds()*1e3, l.rate)
	if l.rateNear > 0 {
		s += fmt.Sprintf(", one between nodes %.0f Mbit/s", l.rateNear)
	}
	return s
}

const (
	probes    = 21
	transfer  = 32 << 20 // bytes of the long transfer
	probePort = ":4999"
)

// measure finds out what the link does to programs.
func (n *network) measure(ctx context.Context) (l line, err error) {
	if l.connect, l.trip, l.rate, err = probe(ctx, n.nodes[0], n.registry); err != nil || len(n.nodes) < 2 {
		return l, err
	}
	_, _, l.rateNear, err = probe(ctx, n.nodes[0], n.nodes[1])
	return l, err
}

func probe(ctx context.Context, s, to *netns.Space) (connect, trip time.Duration, rate float64, err error) {
	server, err := to.Listen(to.Address + probePort)
	if err != nil {
		return 0, 0, 0, err
	}
	defer server.Close()
	go echo(server)
	var connects, trips []time.Duration
	for range probes {
		c, t, err := exchange(ctx, s, to.Address+probePort, 1)
		if err != nil {
			return 0, 0, 0, fmt.Errorf("probe the link: %w", err)
		}
		connects, trips = append(connects, c), append(trips, t)
	}
	_, took, err := exchange(ctx, s, to.Address+probePort, transfer)
	return median(connects), median(trips), transfer * 8 / 1e6 / took.Seconds(), err
}

// echo answers each connection's number with so many bytes.
func echo(server net.Listener) {
	for {
		c, err := server.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			var n int64
			if _, err := fmt.Fscanln(c, &n); err == nil {
				_, _ = io.CopyN(c, zeros{}, n)
			}
		}()
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// exchange connects, sends a line, and gets so many bytes.
func exchange(ctx context.Context, s *netns.Space, address string, n int64) (connect, rest time.Duration, err error) {
	begin := time.Now()
	c, err := s.Dial(ctx, "tcp4", address)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	connect = time.Since(begin)
	begin = time.Now()
	if _, err := fmt.Fprintln(c, n); err != nil {
		return 0, 0, err
	}
	_, err = io.CopyN(io.Discard, c, n)
	return connect, time.Since(begin), err
}

func median(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(all))[len(all)/2]
}
