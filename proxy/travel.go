package proxy

import (
	"context"
	"strings"
	"sync/atomic"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

// Travelled counts bytes of layers, as they are stored, and of kept contents, by where
// they came from.
type Travelled struct {
	Memory   int64 `json:"memory"`
	Disk     int64 `json:"disk"`
	Peer     int64 `json:"peer"`
	Layout   int64 `json:"layout"`
	Parent   int64 `json:"parent"`
	Upstream int64 `json:"upstream"`
}

// Plus returns the sums of both.
func (t Travelled) Plus(o Travelled) Travelled {
	return Travelled{t.Memory + o.Memory, t.Disk + o.Disk, t.Peer + o.Peer, t.Layout + o.Layout, t.Parent + o.Parent, t.Upstream + o.Upstream}
}

// Source returns the farthest place that anything came from.
func (t Travelled) Source() string {
	switch {
	case t.Upstream > 0:
		return "upstream"
	case t.Parent > 0:
		return chunk.Parent
	case t.Layout > 0:
		return "layout"
	case t.Peer > 0:
		return "peer"
	case t.Disk > 0:
		return "disk"
	}
	return "memory"
}

// travel counts what reads with its context make travel. A nil one does not.
type travel struct{ memory, disk, peer, layout, parent, upstream atomic.Int64 }

type travelKey struct{}

func withTravel(ctx context.Context, t *travel) context.Context {
	return context.WithValue(ctx, travelKey{}, t)
}

// travelled counts n bytes that came from a source.
func travelled(ctx context.Context, source string, n int) {
	if t, ok := ctx.Value(travelKey{}).(*travel); ok {
		t.add(source, int64(n))
	}
}

func (t *travel) add(source string, n int64) {
	switch name, _, _ := strings.Cut(source, " "); name {
	case "memory":
		t.memory.Add(n)
	case "disk":
		t.disk.Add(n)
	case "peer":
		t.peer.Add(n)
	case "layout":
		t.layout.Add(n)
	case chunk.Parent:
		t.parent.Add(n)
	case "upstream":
		t.upstream.Add(n)
	}
}

// addAll counts what another one has counted.
func (t *travel) addAll(o Travelled) {
	t.memory.Add(o.Memory)
	t.disk.Add(o.Disk)
	t.peer.Add(o.Peer)
	t.layout.Add(o.Layout)
	t.parent.Add(o.Parent)
	t.upstream.Add(o.Upstream)
}

func (t *travel) sum() Travelled {
	return Travelled{t.memory.Load(), t.disk.Load(), t.peer.Load(), t.layout.Load(), t.parent.Load(), t.upstream.Load()}
}
