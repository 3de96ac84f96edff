package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// host is what the registry is called; it resolves nowhere.
const host = "registry.test"

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// registry is a registry with models. It may be slow, by connection, and cut connections.
type registry struct {
	url string

	delay  time.Duration // before each answer
	rate   float64       // bytes per second of a connection; 0 for all there is
	cutAt  atomic.Int64  // bytes of a body after which its connection is cut; 0 for never
	stopAt atomic.Int64  // bytes of all bodies after which none goes on; 0 for never
	sent   atomic.Int64  // bytes of all bodies of models
	under  atomic.Int64  // such bodies that are being sent,
	most   atomic.Int64  // and were at a time

	mu        sync.Mutex
	models    map[string]*model   // by digest
	manifests map[string][]byte   // by tag and digest
	ranges    map[string][]extent // of models that were asked for, by digest
}

type extent struct{ from, to int64 }

// startRegistry starts a registry, which ends with the process.
func startRegistry(delay time.Duration, rate float64) (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{
		url: "http://" + l.Addr().String(), delay: delay, rate: rate,
		models: make(map[string]*model), manifests: make(map[string][]byte), ranges: make(map[string][]extent),
	}
	go func() { _ = http.Serve(l, r) }()
	return r, nil
}

// push makes an artifact of a model: one blob of no type that is known, and the empty config
// (image-spec, "Guidance for an Empty Descriptor").
func (r *registry) push(tag string, m *model) {
	empty := []byte("{}")
	p, _ := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "artifactType": "application/vnd.example.model",
		"config": map[string]any{"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest.FromBytes(empty), "size": len(empty)},
		"layers": []any{map[string]any{"mediaType": "application/octet-stream", "digest": m.digest, "size": m.size}},
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.models[string(m.digest)] = m
	r.manifests[tag], r.manifests[string(digest.FromBytes(p))] = p, p
}

// ServeHTTP implements [http.Handler].
func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	time.Sleep(r.delay)
	kind, name, _ := strings.Cut(strings.TrimPrefix(q.URL.Path, "/v2/model/"), "/")
	r.mu.Lock()
	m, manifest := r.models[name], r.manifests[name]
	r.mu.Unlock()
	switch {
	case kind == "manifests" && manifest != nil:
		w.Header().Set("Content-Type", manifestType)
		w.Header().Set("Docker-Content-Digest", string(digest.FromBytes(manifest)))
		http.ServeContent(w, q, "", time.Time{}, strings.NewReader(string(manifest)))
	case kind == "blobs" && name == string(digest.FromString("{}")):
		http.ServeContent(w, q, "", time.Time{}, strings.NewReader("{}"))
	case kind == "blobs" && m != nil:
		w.Header().Set("Content-Type", "application/octet-stream")
		r.send(w, q, m)
	case q.URL.Path != "/v2/":
		w.WriteHeader(http.StatusNotFound)
	}
}

func (r *registry) send(w http.ResponseWriter, q *http.Request, m *model) {
	if q.Method == http.MethodGet {
		e := extent{0, -1}
		_, _ = fmt.Sscanf(q.Header.Get("Range"), "bytes=%d-%d", &e.from, &e.to)
		r.mu.Lock()
		r.ranges[string(m.digest)] = append(r.ranges[string(m.digest)], extent{e.from, e.to + 1})
		r.mu.Unlock()
		n := r.under.Add(1)
		defer r.under.Add(-1)
		for most := r.most.Load(); n > most && !r.most.CompareAndSwap(most, n); most = r.most.Load() {
		}
	}
	http.ServeContent(&sending{ResponseWriter: w, r: r, gone: q.Context().Done(), begun: time.Now()}, q, "", time.Time{}, io.NewSectionReader(m, 0, m.size))
}

// sending counts what is sent of a blob, keeps to the rate, and cuts the connection.
type sending struct {
	http.ResponseWriter
	r     *registry
	gone  <-chan struct{} // closed when the client has
	begun time.Time
	n     int64
}

func (s *sending) Write(p []byte) (int, error) {
	if cut := s.r.cutAt.Load(); cut > 0 && s.n > cut {
		panic(http.ErrAbortHandler)
	}
	for stop := s.r.stopAt.Load(); stop > 0 && s.r.sent.Load() >= stop; stop = s.r.stopAt.Load() {
		select {
		case <-s.gone:
			panic(http.ErrAbortHandler)
		case <-time.After(10 * time.Millisecond):
		}
	}
	n, err := s.ResponseWriter.Write(p)
	s.n += int64(n)
	s.r.sent.Add(int64(n))
	if s.r.rate > 0 {
		time.Sleep(time.Until(s.begun.Add(time.Duration(float64(s.n) / s.r.rate * float64(time.Second)))))
	}
	return n, err
}
