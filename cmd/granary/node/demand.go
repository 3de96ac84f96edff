package node

import (
	"context"
	"net/http"
	"sync/atomic"

	"github.com/granary-oci/granary/proxy"
	"github.com/granary-oci/granary/proxy/ref"
	"github.com/granary-oci/granary/proxy/upstream"
)

// Demand is what clients asked of a node since it was started, and what the node asked of
// registries for that, and for other members.
type Demand struct {
	Served   int64 `json:"served"`   // bytes of blobs to clients, on HTTP and through mounts
	Received int64 `json:"received"` // bytes from registries

	Asked    int64 `json:"asked"`    // requests of clients for manifests and blobs
	Requests int64 `json:"requests"` // to registries, of whatever kind

	// Pulls are what Docker Hub limits: each GET of a manifest there, by clients of this node
	// and by the node.
	Pulls         int64 `json:"pulls"`
	UpstreamPulls int64 `json:"upstreamPulls"`
}

func (d Demand) plus(o Demand) Demand {
	return Demand{
		d.Served + o.Served, d.Received + o.Received, d.Asked + o.Asked, d.Requests + o.Requests,
		d.Pulls + o.Pulls, d.UpstreamPulls + o.UpstreamPulls,
	}
}

// Savings is what registries were not asked for, because a node or another member had it.
type Savings struct {
	Bytes    int64 `json:"bytes"`
	Requests int64 `json:"requests"`
	Pulls    int64 `json:"pulls"` // of those that Docker Hub limits
	// Members is how many members' demand that is made of.
	Members int `json:"members"`
}

// saved returns what the demand of some members saved the registries. It is never less than
// nothing: what was fetched ahead of demand may be asked for later.
func (d Demand) saved(members int) Savings {
	return Savings{max(d.Served-d.Received, 0), max(d.Asked-d.Requests, 0), max(d.Pulls-d.UpstreamPulls, 0), members}
}

// demand counts what [Demand] tells.
type demand struct{ asked, requests, pulls, upstreamPulls atomic.Int64 }

func (d *demand) countAsked(host, method string, kind ref.Kind) {
	d.asked.Add(1)
	if host == dockerHub && method == http.MethodGet && kind == ref.Manifest {
		d.pulls.Add(1)
	}
}

func (m *metrics) demandSoFar() Demand {
	d := Demand{
		Received: m.upstream.Load(), Asked: m.demand.asked.Load(), Requests: m.demand.requests.Load(),
		Pulls: m.demand.pulls.Load(), UpstreamPulls: m.demand.upstreamPulls.Load(),
	}
	for i := range sources {
		d.Served += m.bySource[i].Load()
	}
	return d
}

// pulled counts the manifests that are got from Docker Hub.
type pulled struct {
	proxy.Upstream
	count *atomic.Int64
}

// Unwrap implements [proxy.Wrapper].
func (p pulled) Unwrap() proxy.Upstream { return p.Upstream }

func (p pulled) Manifest(ctx context.Context, reference string) (upstream.Manifest, error) {
	p.count.Add(1)
	return p.Upstream.Manifest(ctx, reference)
}
