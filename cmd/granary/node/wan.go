package node

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/p2p/wire"
	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/rebuild"
)

// WANConfig says what is done to save the lines between sites.
type WANConfig struct {
	WAN string `name:"wan" default:"time" enum:"time,bytes,off" placeholder:"WHAT" help:"How a new version of a gzip layer comes from a parent: by what has changed in it, and made again here of that and of older layers, where that takes less time than fetching it (time), or whenever it saves a tenth of the bytes (bytes), or never (off), and then files of layers are not read by what has changed in these, and children get none so, either."`
}

// What new versions of layers save.
const (
	wanBytes = "bytes"
	wanOff   = "off"
)

// rebuildDir is where layers are made again, in the data directory. There is nothing in it while no
// node runs, but what a crash has left.
const rebuildDir = "rebuild"

// openEdge makes what makes layers again, if there are parents who could say how.
func (n *Node) openEdge() (err error) {
	if n.cfg.WAN == wanOff || n.parents == nil || len(n.cfg.Parent) == 0 || n.store.Disk == nil {
		return nil
	}
	if n.edge, err = rebuild.NewEdge(filepath.Join(n.cfg.DataDir, rebuildDir), n.cfg.WAN == wanBytes); err != nil {
		n.log.Warn("layers are fetched from parents as a whole", "error", err)
		return nil
	}
	n.closers = append(n.closers, n.edge.Close)
	n.metrics.watchWAN(n.edge.Ledger)
	return nil
}

// wan returns what was made again, nil if nothing is.
func (n *Node) wan() *rebuild.Ledger {
	if n.edge == nil {
		return nil
	}
	l := n.edge.Ledger()
	return &l
}

// watchWAN adds counters of what was made again.
func (m *metrics) watchWAN(ledger func() rebuild.Ledger) {
	for kind, of := range map[string]func(rebuild.Moved) int64{
		"asked": func(b rebuild.Moved) int64 { return b.Asked },
		"moved": func(b rebuild.Moved) int64 { return b.Moved },
		"saved": func(b rebuild.Moved) int64 { return b.Saved },
	} {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "granary_wan_bytes_total", Help: "Bytes of layers that were made again of what older ones have, that came from parents for them, and that need not come.",
			ConstLabels: prometheus.Labels{"kind": kind},
		}, func() float64 { return float64(of(ledger().Moved)) }))
	}
}

// Rebuild implements [proxy.Peers].
func (p peers) Rebuild(ctx context.Context, in proxy.In, layer chunkstore.Whole, old []chunkstore.Whole) (made bool, err error) {
	again := wire.Again{Layer: layer.Digest, Size: layer.Size}
	for _, o := range old[:min(len(old), wire.MaxOlder)] {
		again.Old = append(again.Old, wire.Sized{Digest: o.Digest, Size: o.Size})
	}
	made, err = p.client.Rebuild(ctx, wireRepository(in), again)
	var denied *p2p.DeniedError
	if errors.As(err, &denied) { // by the member, whose credentials are not this node's
		return false, chunk.ErrNotFound
	}
	return made, notOthers(err)
}

// rebuild answers a question for a layer to be made again.
func (b backend) rebuild(ctx context.Context, q wire.Ask) (a wire.Answer, body []byte, err error) {
	again, err := wire.ReadAgain(q.Reference)
	if err != nil {
		return a, nil, err
	}
	where, err := in(q.Repository)
	if err != nil {
		return a, nil, err
	}
	var old []chunkstore.Whole
	for _, o := range again.Old {
		old = append(old, chunkstore.Whole{Digest: o.Digest, Size: o.Size})
	}
	made, err := b.registry.RebuildFor(ctx, where, chunkstore.Whole{Digest: again.Layer, Size: again.Size}, old)
	if made {
		a.Size = again.Size
	}
	return a, nil, err
}
