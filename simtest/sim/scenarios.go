package main

import (
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	megabyte = 1e6
	gigabyte = 1e9
	gigabit  = 1e9 / 8
)

// scenario is runs that are shown together.
type scenario struct {
	number int
	title  string
	rows   func(full bool) []row
	grows  bool // rows differ in how many nodes there are
}

// row is one run.
type row struct {
	name string
	setting
	do func(c *cluster)
}

// base is what rows have in common.
func base(n int, up float64, egress float64, blobs ...int64) setting {
	return setting{Nodes: n, Up: up, Down: up, Egress: egress, Blobs: blobs, First: 5 * time.Millisecond, Latency: 250 * time.Microsecond}
}

// two cuts an image into two layers.
func two(size int64) []int64 { return []int64{size / 2, size - size/2} }

var scenarios = []scenario{
	{1, "2,600 hosts at once, 3 GB in two layers, 300 MB/s each (Uber Kraken published 10, 18 and 22 s; the links alone take 10 s)", headline, false},
	{2, "flash crowds", crowds, true},
	{3, "a rolling update in waves of 5 %: v2 shares 80 % of its chunks with v1", rolling, false},
	{4, "three zones with thin links between", zones, false},
	{5, "churn", churn, false},
	{6, "slow nodes and liars", unequal, false},
	{7, "lazy starts: each node reads 6 % of an image, in the same order", lazy, false},
}

func headline(full bool) (rows []row) {
	n, size := 2600, int64(3*gigabyte)
	if !full {
		n, size = 260, 300*megabyte
	}
	for _, egress := range []float64{1.5 * gigabyte, 300 * megabyte} {
		rows = append(rows, row{fmt.Sprintf("%d nodes, registry %.1f GB/s", n, egress/gigabyte), base(n, 300*megabyte, egress, two(size)...), all})
	}
	return rows
}

// all has all nodes pull at once.
func all(c *cluster) { c.start(c.nodes, 100*time.Millisecond) }

func crowds(full bool) (rows []row) {
	counts, sizes := []int{10, 100, 1000, 10000}, []int64{100 * megabyte, gigabyte, 10 * gigabyte}
	if !full {
		counts, sizes = []int{10, 100, 300}, []int64{100 * megabyte}
	}
	for _, size := range sizes {
		for _, link := range []float64{1, 10} {
			for _, egress := range []float64{1, 10} {
				for _, n := range counts {
					if n == 10000 && size == 10*gigabyte {
						continue
					}
					name := fmt.Sprintf("%5d nodes, %g GB, links %g, registry %g Gbit/s", n, float64(size)/gigabyte, link, egress)
					rows = append(rows, row{name, base(n, link*gigabit, egress*gigabit, two(size)...), all})
				}
			}
		}
	}
	return rows
}

func rolling(full bool) []row {
	n, size := 1000, int64(gigabyte)
	if !full {
		n, size = 100, 100*megabyte
	}
	return []row{{fmt.Sprintf("%d nodes, %g GB", n, float64(size)/gigabyte), base(n, gigabit, gigabit, two(size)...), func(c *cluster) { c.waves(20, 0.8) }}}
}

func zones(full bool) (rows []row) {
	n, size := 300, int64(gigabyte)
	if !full {
		n, size = 60, 100*megabyte
	}
	for _, late := range []bool{false, true} {
		s := base(n, gigabit, 10*gigabit, two(size)...)
		s.Zones, s.Between, s.Pipe = 3, 10*time.Millisecond, gigabit/5
		name, do := "all at once", all
		if late {
			name, do = "one zone after the other", func(c *cluster) {
				for z := range c.Zones {
					var of []*node
					for _, n := range c.nodes {
						if n.zone == z {
							of = append(of, n)
						}
					}
					c.left += len(of)
					c.after(time.Duration(z)*c.bound()*8, func() { c.left -= len(of); c.start(of, 100*time.Millisecond) })
				}
			}
		}
		rows = append(rows, row{name, s, do})
	}
	return rows
}

func churn(full bool) []row {
	n, size := 1000, int64(gigabyte)
	if !full {
		n, size = 100, 100*megabyte
	}
	const lag = 10 * time.Second
	s := base(n, gigabit, gigabit, two(size)...)
	spread := s.bound()
	joins := s
	joins.Nodes = n * 7 / 10
	return []row{
		{"10 % crash during the pull", s, func(c *cluster) {
			all(c)
			random := rand.New(rand.NewPCG(c.Seed, 3))
			for _, i := range random.Perm(n)[:n/10] {
				c.after(time.Duration(random.Int64N(int64(spread))), func() {
					if c.nodes[i].took == 0 {
						c.crash(c.nodes[i], lag)
					}
				})
			}
		}},
		{"30 % join during the pull", joins, func(c *cluster) {
			all(c)
			random := rand.New(rand.NewPCG(c.Seed, 4))
			for range n * 3 / 10 {
				c.left++
				c.after(time.Duration(random.Int64N(int64(spread))), func() { c.left--; c.join(lag) })
			}
		}},
	}
}

func unequal(full bool) []row {
	n, size := 1000, int64(gigabyte)
	if !full {
		n, size = 100, 100*megabyte
	}
	s := base(n, gigabit, gigabit, two(size)...)
	every := func(k int, do func(*node)) func(c *cluster) {
		return func(c *cluster) {
			random := rand.New(rand.NewPCG(c.Seed, 5))
			for _, i := range random.Perm(len(c.nodes))[:max(len(c.nodes)/k, 1)] {
				do(c.nodes[i])
			}
			all(c)
		}
	}
	lossy := s
	lossy.Loss = 0.01
	return []row{
		{"5 % are ten times slower", s, every(20, func(n *node) { n.slow = true; n.up.rate /= 10; n.down.rate /= 10 })},
		{"1 % lie", s, every(100, func(n *node) { n.liar = true })},
		{"1 % of messages are lost", lossy, all},
	}
}

func lazy(full bool) []row {
	n, size := 1000, int64(gigabyte)
	if !full {
		n, size = 100, 100*megabyte
	}
	s := base(n, gigabit, gigabit, two(size)...)
	return []row{{fmt.Sprintf("%d nodes, 6 %% of %g GB", n, float64(size)/gigabyte), s, func(c *cluster) { c.lazily(0.06) }}}
}

// waves has nodes that have v1 pull v2, a share of them after the other. What a node has of v2 it finds once
// some member has all of it, and so can tell the digests of its chunks.
func (c *cluster) waves(count int, shared float64) {
	random := rand.New(rand.NewPCG(c.Seed, 6))
	old := make([][]mask, len(c.blobs))
	for b := range c.blobs {
		old[b] = make([]mask, c.blobs[b].stripes())
		for i := range c.blobs[b].chunks() {
			if random.Float64() < shared {
				s, in := c.blobs[b].at(i)
				old[b][s] |= 1 << in
			}
		}
	}
	per := len(c.nodes) / count
	c.left += len(c.nodes)
	var wave func(k int)
	wave = func(k int) {
		of := c.nodes[k*per : (k+1)*per]
		if k == count-1 {
			of = c.nodes[k*per:]
		}
		c.left -= len(of)
		for _, n := range of {
			n.old = old
		}
		c.start(of, 100*time.Millisecond)
		if k < count-1 {
			c.after(c.bound()*2, func() { wave(k + 1) })
		}
	}
	wave(0)
}

// lazily has each node read a share of the chunks, one after the other, the same for all.
func (c *cluster) lazily(share float64) {
	random := rand.New(rand.NewPCG(c.Seed, 7))
	var wanted []piece
	for b := range c.blobs {
		for _, i := range random.Perm(c.blobs[b].chunks())[:int(share*float64(c.blobs[b].chunks()))] {
			s, in := c.blobs[b].at(i)
			wanted = append(wanted, piece{stripe{b, s}, in})
		}
	}
	for _, n := range c.nodes {
		c.left++
		c.after(time.Duration(random.Int64N(int64(100*time.Millisecond))), func() {
			n.began = c.now
			n.lazy = wanted
			n.read()
		})
	}
}
