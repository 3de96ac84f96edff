package node

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/granary-oci/granary/chunkstore"
	"github.com/granary-oci/granary/chunkstore/chunk"
	"github.com/granary-oci/granary/p2p"
	"github.com/granary-oci/granary/proxy/layout"
	"github.com/granary-oci/granary/proxy/parent"
	"github.com/granary-oci/granary/proxy/rebuild"
	"github.com/granary-oci/granary/toc"
)

// metrics are what a node counts. Each node has a registry of its own, so that
// two may live in one process.
type metrics struct {
	registry *prometheus.Registry

	served           *prometheus.CounterVec // by source and face
	upstreamBytes    *prometheus.CounterVec // by registry
	upstreamRequests *prometheus.CounterVec // by registry, method and code
	corrupt          *prometheus.CounterVec // by source
	peers            *prometheus.CounterVec // by direction
	faults           *prometheus.CounterVec // by kind
	answered         *prometheus.CounterVec // by method and code
	answerTime       *prometheus.HistogramVec
	answering        prometheus.Gauge
	gatewayRequests  *prometheus.CounterVec // by code
	gatewayBytes     *prometheus.CounterVec // by readers
	bitswap          *prometheus.CounterVec // by direction

	bySource [len(sources)]atomic.Int64 // what served counts, for the status page
	upstream atomic.Int64
	parents  atomic.Int64
	peersIn  atomic.Int64
	peersOut atomic.Int64
	demand   demand
}

// sources are where bytes come from; the metrics' label.
var sources = [...]string{"memory", "disk", "peer", "layout", "parent", "upstream"}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		served: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "granary_bytes_total", Help: "Bytes of blobs that left the node, by where they came from.",
		}, []string{"source", "face"}),
		upstreamBytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "granary_upstream_bytes_total", Help: "Bytes of bodies that were read from upstream registries.",
		}, []string{"registry"}),
		upstreamRequests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "granary_upstream_requests_total", Help: "Requests to upstream registries; code 0 is no answer.",
		}, []string{"registry", "method", "code"}),
		corrupt: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "granary_corrupt_total", Help: "Chunks and blobs whose bytes were wrong, by who gave them.",
		}, []string{"source"}),
		peers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "granary_peer_bytes_total", Help: "Bytes that were exchanged with other members, by direction.",
		}, []string{"direction"}),
		faults: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "granary_store_faults_total", Help: "Failed reads and writes of the store that were worked around.",
		}, []string{"kind"}),
		answered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "granary_http_requests_total", Help: "Requests of clients that were answered to the end.",
		}, []string{"method", "code"}),
		answerTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "granary_http_answer_seconds", Help: "Seconds from a client's request to the beginning of its answer.",
			Buckets: []float64{.001, .005, .02, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"method"}),
		answering: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "granary_http_requests_in_flight", Help: "Requests of clients that are being answered, or wait for their turn.",
		}),
		gatewayRequests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "granary_gateway_requests_total", Help: "Requests for chunks by their CID; code 0 is no answer.",
		}, []string{"code"}),
		gatewayBytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "granary_gateway_bytes_total", Help: "Bytes of chunks that left the gateway: for all, or for who has shown a token.",
		}, []string{"readers"}),
		bitswap: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "granary_bitswap_bytes_total", Help: "Bytes of chunks that were exchanged by bitswap, by direction.",
		}, []string{"direction"}),
	}
	m.registry.MustRegister(m.served, m.upstreamBytes, m.upstreamRequests, m.corrupt, m.peers, m.faults, m.gatewayRequests, m.gatewayBytes, m.bitswap,
		m.answered, m.answerTime, m.answering, m.pullsBy("client", &m.demand.pulls), m.pullsBy("node", &m.demand.upstreamPulls),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// What never happened is 0, not absent.
	for _, s := range sources {
		for _, face := range []string{"http", "fuse"} {
			m.served.WithLabelValues(s, face)
		}
	}
	for _, d := range []string{"in", "out"} {
		m.peers.WithLabelValues(d)
		m.bitswap.WithLabelValues(d)
	}
	for _, s := range []string{"disk", "layout", "parent", "peer", "table", "upstream"} {
		m.corrupt.WithLabelValues(s)
	}
	for _, k := range []string{"full", "unwritable", "io", "other"} {
		m.faults.WithLabelValues(k)
	}
	for _, public := range []bool{true, false} {
		m.gatewayBytes.WithLabelValues(readers(public))
	}
	m.gatewayRequests.WithLabelValues("200")
	m.upstreamBytes.WithLabelValues("other")
	return m
}

// pullsBy counts what Docker Hub limits, see [Demand].
func (m *metrics) pullsBy(who string, n *atomic.Int64) prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "granary_docker_hub_pulls_total", Help: "Manifests of Docker Hub, each of which counts for its rate limit: what clients of the node asked for, and what the node got there.",
		ConstLabels: prometheus.Labels{"by": who},
	}, func() float64 { return float64(n.Load()) })
}

// answers returns h with its requests counted. What is aborted is not answered.
func (m *metrics) answers(h http.Handler) http.Handler {
	h = promhttp.InstrumentHandlerTimeToWriteHeader(m.answerTime, h)
	return promhttp.InstrumentHandlerInFlight(m.answering, promhttp.InstrumentHandlerCounter(m.answered, h))
}

// watch adds gauges of what the store holds.
func (m *metrics) watch(usage, contents func() chunkstore.Usage) {
	gauge := func(name, help string, value func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("granary_store_bytes", "Bytes of chunks on disk.", func() float64 { return float64(usage().Bytes) })
	gauge("granary_store_shared_bytes", "Bytes of chunks beyond those: which the disk has once for several.", func() float64 { return float64(usage().Shared) })
	gauge("granary_store_budget_bytes", "Bytes of chunks that may be on disk.", func() float64 { return float64(usage().Budget) })
	gauge("granary_store_blobs", "Blobs of which chunks are on disk.", func() float64 { return float64(usage().Blobs) })
	gauge("granary_contents_bytes", "Bytes of files' contents and of what was derived from layers, on disk.", func() float64 { return float64(contents().Bytes) })
}

// watchOffers adds counters of what is made for other sites.
func (m *metrics) watchOffers(counts func() rebuild.Counts) {
	counter := func(name, help string, labels prometheus.Labels, value func(rebuild.Counts) float64) {
		opts := prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}
		m.registry.MustRegister(prometheus.NewCounterFunc(opts, func() float64 { return value(counts()) }))
	}
	for outcome, value := range map[string]func(rebuild.Counts) int64{
		"made":   func(c rebuild.Counts) int64 { return c.Made },
		"none":   func(c rebuild.Counts) int64 { return c.None },
		"failed": func(c rebuild.Counts) int64 { return c.Failed },
	} {
		counter("granary_wan_offers_total", "Layers that were looked at for an offer to other sites, by what has become of it.", prometheus.Labels{"outcome": outcome},
			func(c rebuild.Counts) float64 { return float64(value(c)) })
	}
	counter("granary_wan_offer_seconds_total", "Seconds that looking at layers for offers has taken.", nil, func(c rebuild.Counts) float64 { return c.Seconds })
	counter("granary_wan_contents_bytes_total", "Bytes of what layers unpack to that went to other sites, compressed.", nil, func(c rebuild.Counts) float64 { return float64(c.Sent) })
}

// watchParents adds gauges of what is made of parents.
func (m *metrics) watchParents(status func() []parent.Status) {
	for i, p := range status() {
		for _, state := range []string{"up", "down", "resting", "quarantined"} {
			m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "granary_parents", Help: "Parents, by what this node makes of them: 1 for what one is.", ConstLabels: prometheus.Labels{"parent": p.Name, "state": state},
			}, func() float64 {
				if status()[i].State == state {
					return 1
				}
				return 0
			}))
		}
	}
}

func (m *metrics) countServed(face, source string, n int64) {
	source, _, _ = strings.Cut(source, " ") // a parent's name follows
	m.served.WithLabelValues(source, face).Add(float64(n))
	for i, s := range sources {
		if s == source {
			m.bySource[i].Add(n)
		}
	}
}

func (m *metrics) countRequest(registry, method string, code int) {
	m.upstreamRequests.WithLabelValues(registry, method, strconv.Itoa(code)).Inc()
	m.demand.requests.Add(1)
}

func (m *metrics) countReceived(registry string, n int64) {
	m.upstreamBytes.WithLabelValues(registry).Add(float64(n))
	m.upstream.Add(n)
}

func (m *metrics) countPeers(in, out int64) {
	if in > 0 {
		m.peers.WithLabelValues("in").Add(float64(in))
		m.peersIn.Add(in)
	}
	if out > 0 {
		m.peers.WithLabelValues("out").Add(float64(out))
		m.peersOut.Add(out)
	}
}

// peerStates are what a member may be, see p2p.PeerStatus.
var peerStates = []string{"self", "up", "down", "draining", "quarantined"}

// watchPeers adds gauges of the cluster's members.
func (m *metrics) watchPeers(status func() []p2p.PeerStatus) {
	for _, state := range peerStates {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "granary_members", Help: "Members of the cluster, by what this node makes of them.", ConstLabels: prometheus.Labels{"state": state},
		}, func() float64 {
			n := 0
			for _, p := range status() {
				if p.State == state {
					n++
				}
			}
			return float64(n)
		}))
	}
}

// faultLog counts faults that reads have worked around, and logs them: wrong
// bytes each time, for each is another chunk; a disk that fails, which fails
// with every chunk, once until it has been quiet for a while.
type faultLog struct {
	log     *slog.Logger
	metrics *metrics

	mu   sync.Mutex
	last map[string]time.Time // by kind
}

// quiet is how long a fault must not have happened to be news again.
const quiet = time.Minute

func (f *faultLog) report(err error) {
	var corrupt *chunk.CorruptError
	var content *toc.CorruptError
	var malformed *layout.FormatError
	switch {
	case errors.As(err, &corrupt):
		source, _, _ := strings.Cut(corrupt.Source, " ") // a mirror's name follows
		f.metrics.corrupt.WithLabelValues(source).Inc()
		f.log.Error("wrong bytes were dropped", "source", corrupt.Source, "error", err)
		return
	case errors.Is(err, toc.ErrDisagrees), errors.As(err, &content):
		f.metrics.corrupt.WithLabelValues("table").Inc()
		f.log.Error("a layer's table of contents is wrong, and is not used any more", "error", err)
		return
	case errors.As(err, &malformed):
		f.log.Warn("a layout cannot be understood; what it said last holds", "error", err)
		return
	case errors.Is(err, context.Canceled): // nobody waits for it any more
		return
	}
	kind := faultKind(err)
	f.metrics.faults.WithLabelValues(kind).Inc()
	f.mu.Lock()
	news := time.Since(f.last[kind]) > quiet
	f.last[kind] = time.Now()
	f.mu.Unlock()
	if news {
		f.log.Error("store fault; going on without", "kind", kind, "error", err)
	}
}

// faultKind names what kind of fault err is, from a short list.
func faultKind(err error) string {
	for _, k := range []struct {
		errno syscall.Errno
		name  string
	}{
		{syscall.ENOSPC, "full"}, {syscall.EDQUOT, "full"},
		{syscall.EROFS, "unwritable"}, {syscall.EACCES, "unwritable"}, {syscall.EPERM, "unwritable"},
		{syscall.EIO, "io"},
	} {
		if errors.Is(err, k.errno) {
			return k.name
		}
	}
	if errors.Is(err, chunkstore.ErrFull) {
		return "full"
	}
	return "other"
}
