package node

import (
	"encoding/json"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/granary-oci/granary/chunkstore"
)

// Status is what a node says of itself, as JSON at /api/v1/status.
type Status struct {
	Version   string    `json:"version"`
	Started   time.Time `json:"started"`
	Listen    []string  `json:"listen"` // URLs of the registry face
	Admin     string    `json:"admin"`
	DataDir   string    `json:"dataDir"`
	Degraded  string    `json:"degraded,omitempty"` // why nothing is kept, if so
	Upstreams []string  `json:"upstreams"`          // registries that have been asked

	Store chunkstore.Usage `json:"store"`
	// Served counts bytes that left the node by where they came from.
	Served map[string]int64 `json:"served"`
	// Received counts bytes that came from upstream registries.
	Received int64 `json:"received"`
}

// Status returns what the node says of itself.
func (n *Node) Status() Status {
	s := Status{
		Version:   Version,
		Started:   n.started,
		Listen:    n.URLs(),
		Admin:     n.AdminURL(),
		DataDir:   n.cfg.DataDir,
		Upstreams: n.upstreams.names(),
		Served:    make(map[string]int64),
		Received:  n.metrics.upstream.Load(),
	}
	if n.store.Disk == nil {
		s.Degraded = "the data directory cannot be used; nothing is kept"
	} else {
		s.Store = n.store.Disk.Usage()
	}
	for i, source := range sources {
		s.Served[source] = n.metrics.bySource[i].Load()
	}
	return s
}

// FsckLine is one line of the answer of /api/v1/fsck: a chunk that was found to
// be wrong or unreadable, or, on the last line, the report.
type FsckLine struct {
	Found  string                 `json:"found,omitempty"`
	Report *chunkstore.FsckReport `json:"report,omitempty"`
	Error  string                 `json:"error,omitempty"`
}

func (n *Node) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.metrics.registry, promhttp.HandlerOpts{}))
	ok := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) }
	mux.HandleFunc("GET /healthz", ok)
	mux.HandleFunc("GET /readyz", ok)
	mux.HandleFunc("GET /api/v1/status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(n.Status())
	})
	mux.HandleFunc("POST /api/v1/fsck", n.serveFsck)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// serveFsck checks the store and answers line by line, as it finds things.
func (n *Node) serveFsck(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := json.NewEncoder(w)
	if n.store.Disk == nil {
		_ = lines.Encode(FsckLine{Error: n.Status().Degraded})
		return
	}
	report, err := n.store.Disk.Fsck(r.Context(), nil, func(err error) {
		n.faults.report(err)
		_ = lines.Encode(FsckLine{Found: err.Error()})
		_ = http.NewResponseController(w).Flush()
	})
	last := FsckLine{Report: &report}
	if err != nil {
		last.Error = err.Error()
	}
	_ = lines.Encode(last)
}
