package node

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/pprof"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/granary-oci/granary/cmd/granary/node/dashboard"
)

// route is something that the admin listener answers.
type route struct {
	pattern string // as [http.ServeMux] has it
	handler http.HandlerFunc
}

// routes are all that the admin listener answers.
func (n *Node) routes() []route {
	ok := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) }
	all := []route{
		{"GET /metrics", promhttp.HandlerFor(n.metrics.registry, promhttp.HandlerOpts{}).ServeHTTP},
		{"GET /healthz", ok},
		{"GET /readyz", ok},
		{"GET /api/v1/status", func(w http.ResponseWriter, _ *http.Request) {
			n.events.look()
			answerJSON(w, n.Status(), nil)
		}},
		{"GET /api/v1/openapi.json", serveOpenAPI},
		{"GET /api/v1/history", func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, n.traffic.history(), nil) }},
		{"GET /api/v1/links", func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, n.ledger.history(), nil) }},
		{"GET /api/v1/events", n.serveEvents},
		{"GET /api/v1/images", func(w http.ResponseWriter, r *http.Request) { answerJSON(w, n.Images(r.Context()), nil) }},
		{"POST /api/v1/evict", n.serveEvict},
		{"POST /api/v1/preheat", n.servePreheat},
		{"GET /api/v1/preheat", func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, n.preheated(maxPreheats), nil) }},
		{"GET /api/v1/preheat/{id}", n.servePreheatStatus},
		{"DELETE /api/v1/preheat/{id}", n.servePreheatStatus},
		{"POST /api/v1/invalidate", func(w http.ResponseWriter, r *http.Request) {
			done, err := n.Invalidate(r.Context(), r.FormValue("ref"))
			answerJSON(w, done, err)
		}},
		{"POST /api/v1/gc", func(w http.ResponseWriter, r *http.Request) {
			keep, err := strconv.ParseInt(cmp.Or(r.FormValue("keep"), "-1"), 10, 64)
			if err != nil {
				answerJSON(w, nil, errors.New("keep is not a number of bytes"))
				return
			}
			freed, err := n.GC(keep)
			answerJSON(w, map[string]int64{"freed": freed}, err)
		}},
		{"POST /api/v1/fsck", n.serveFsck},
		{"POST /api/v1/reach", func(w http.ResponseWriter, r *http.Request) { answerJSON(w, n.Reach(r.Context()), nil) }},
		{"GET /debug/pprof/", pprof.Index},
		{"GET /debug/pprof/cmdline", pprof.Cmdline},
		{"GET /debug/pprof/profile", pprof.Profile},
		{"GET /debug/pprof/symbol", pprof.Symbol},
		{"GET /debug/pprof/trace", pprof.Trace},
	}
	for path, page := range pages {
		if path == "/" {
			path = "/{$}"
		}
		all = append(all, route{"GET " + path, page})
	}
	return append(all, n.importRoutes()...)
}

// pages are those of the dashboard.
var pages = dashboard.Pages()

func (n *Node) adminHandler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range n.routes() {
		mux.HandleFunc(r.pattern, r.handler)
	}
	return mux
}

// maxRequestBody bounds what a request says, in bytes of JSON.
const maxRequestBody = 1 << 16

// readJSON reads the body of a request. What is not known here is refused: somebody meant
// something by it.
func readJSON(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("the request's body is not understood: %w", err)
	}
	return nil
}

func (n *Node) serveEvict(w http.ResponseWriter, r *http.Request) {
	var q EvictRequest
	err := readJSON(w, r, maxRequestBody, &q)
	var done Evicted
	if err == nil {
		done, err = n.Evict(r.Context(), q)
	}
	answerJSON(w, done, err)
}

// servePreheat begins a preheat and answers with how far it is, or, if it is to wait, a line
// for each change until it is over. One that has a time is not ended by who leaves.
func (n *Node) servePreheat(w http.ResponseWriter, r *http.Request) {
	var q Preheat
	if err := readJSON(w, r, maxPreheatBody, &q); err != nil {
		answerJSON(w, nil, err)
		return
	}
	p, err := n.preheat(q)
	if err != nil {
		answerJSON(w, nil, err)
		return
	}
	if !q.Wait {
		answerJSON(w, p.status(n), nil)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := json.NewEncoder(w)
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for over, told := false, false; !over; {
		select {
		case <-tick.C:
		case <-p.over:
			over = true
		case <-r.Context().Done():
			if p.at.IsZero() {
				p.cancel() // nobody waits for it any more
			}
			return
		}
		s := p.status(n)
		if s.State == preheatScheduled && told {
			continue
		}
		told = true
		_ = lines.Encode(s)
		_ = http.NewResponseController(w).Flush()
	}
}

// progressEvery is how often whoever waits for a preheat is told how far it is.
const progressEvery = 200 * time.Millisecond

func (n *Node) servePreheatStatus(w http.ResponseWriter, r *http.Request) {
	p, err := n.preheats.find(r.PathValue("id"))
	if err != nil {
		answerJSON(w, nil, err)
		return
	}
	if r.Method == http.MethodDelete {
		p.cancel()
		err = n.preheats.done(p)
	}
	answerJSON(w, p.status(n), err)
}

// answerJSON answers with v, or with what is wrong with the request.
func answerJSON(w http.ResponseWriter, v any, err error) {
	switch {
	case err == nil:
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_ = json.NewEncoder(w).Encode(v)
	case errors.Is(err, errTooManyPreheats), errors.Is(err, errTooManyScheduled):
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	case errors.Is(err, errNoPreheat):
		http.Error(w, err.Error(), http.StatusNotFound)
	default:
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}
