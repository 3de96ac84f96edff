package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// mode is how the registry is.
type mode int

const (
	healthy mode = iota
	answers500
	answers503
	answers429
	slow // each body has a share of a megabyte a second, after a delay. It is healthy otherwise, and excuses nothing
	cuts // connections break within bodies
	dead // nothing listens
)

const slowRate = 1 << 20 // bytes per second, of all bodies together

// registry is the registry of all images. It counts the bytes of blobs that leave it.
type registry struct {
	address string
	listen  func() (net.Listener, error)
	now     func() time.Duration

	mu      sync.Mutex
	server  *http.Server
	mode    mode
	every   int // the mode holds for one in so many requests
	asked   int // requests, of the mode
	order   []*image
	images  map[string]*image // by name
	counted map[digest.Digest]*counted
	budget  time.Time // when the next byte may be sent, while it is slow
}

// counted is what is known of a blob that was asked for.
type counted struct {
	size, sent  int64
	first, last time.Duration // when it was asked for
}

// newRegistry starts a registry at an address, where listen listens.
func newRegistry(address string, now func() time.Duration, listen func() (net.Listener, error)) (*registry, error) {
	r := &registry{address: address, listen: listen, now: now, every: 1, images: make(map[string]*image), counted: make(map[digest.Digest]*counted)}
	return r, r.open()
}

func (r *registry) url() string { return "http://" + r.address }

func (r *registry) open() error {
	l, err := r.listen()
	if err != nil {
		return err
	}
	s := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	r.mu.Lock()
	r.server = s
	r.mu.Unlock()
	go func() { _ = s.Serve(l) }()
	return nil
}

func (r *registry) close() {
	r.mu.Lock()
	s := r.server
	r.mu.Unlock()
	_ = s.Close()
}

// registryIs is a fault: the registry is in a mode, for all requests or for one in three.
func registryIs(m mode) func(*lab, context.Context, event) (func(context.Context) error, error) {
	return func(l *lab, _ context.Context, e event) (func(context.Context) error, error) {
		what := ill
		if m == slow {
			what = other
		}
		end := l.history.begin(e, what)
		if m == dead {
			l.registry.close()
			return func(context.Context) error { defer end(); return l.registry.open() }, nil
		}
		every := 1
		if e.Seed%2 == 0 && m != slow {
			every = 3
		}
		l.registry.be(m, every)
		return func(context.Context) error { l.registry.be(healthy, 1); end(); return nil }, nil
	}
}

func (r *registry) be(m mode, every int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mode, r.every = m, every
}

// push adds an image, and forgets one of long ago.
func (r *registry) push(img *image) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[img.name] = img
	if r.order = append(r.order, img); len(r.order) > keptImages {
		delete(r.images, r.order[0].name)
		r.order = r.order[1:]
	}
}

// modeNow returns how the registry is to the next request.
func (r *registry) modeNow() mode {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asked++; r.asked%r.every != 0 {
		return healthy
	}
	return r.mode
}

// ServeHTTP implements [http.Handler], as the distribution specification has it ("Pull").
func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	m := r.modeNow()
	switch m {
	case answers500:
		w.WriteHeader(http.StatusInternalServerError)
		return
	case answers503, answers429:
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(map[mode]int{answers503: http.StatusServiceUnavailable, answers429: http.StatusTooManyRequests}[m])
		return
	case slow:
		time.Sleep(200 * time.Millisecond)
	}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	path := strings.TrimPrefix(q.URL.Path, "/v2/")
	name, what, isBlob := strings.Cut(path, "/blobs/")
	if !isBlob {
		name, what, _ = strings.Cut(path, "/manifests/")
	}
	r.mu.Lock()
	img := r.images[name]
	r.mu.Unlock()
	switch {
	case q.URL.Path == "/v2/":
	case q.URL.Path == "/token" || img != nil && img.private() && q.Header.Get("Authorization") != img.right:
		w.Header().Set("WWW-Authenticate", r.challenge(img))
		w.WriteHeader(http.StatusUnauthorized)
	case img == nil:
		http.NotFound(w, q)
	case isBlob:
		r.serveBlob(w, q, img, what, m)
	case what == tag || what == string(img.manifest.digest):
		w.Header().Set("Content-Type", img.manifest.mediaType)
		w.Header().Set("Docker-Content-Digest", string(img.manifest.digest))
		http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(img.manifest.bytes))
	default:
		http.NotFound(w, q)
	}
}

func (r *registry) challenge(img *image) string {
	if img != nil && strings.HasPrefix(img.right, "Basic ") {
		return `Basic realm="chaos"`
	}
	name := ""
	if img != nil {
		name = img.name
	}
	return fmt.Sprintf(`Bearer realm="%s/token",service="chaos",scope="repository:%s:pull"`, r.url(), name)
}

func (r *registry) serveBlob(w http.ResponseWriter, q *http.Request, img *image, d string, m mode) {
	for _, b := range img.blobs {
		if string(b.digest) != d {
			continue
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Docker-Content-Digest", d)
		out := &body{ResponseWriter: w, registry: r, of: r.count(b), mode: m, left: -1}
		if m == cuts {
			out.left = rand.IntN(len(b.bytes)) // which of the nodes that sends it will be hit nobody can know anyway
		}
		http.ServeContent(out, q, "", time.Time{}, bytes.NewReader(b.bytes))
		return
	}
	http.NotFound(w, q)
}

func (r *registry) count(b thing) *counted {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.counted[b.digest]
	if c == nil {
		c = &counted{size: int64(len(b.bytes)), first: r.now()}
		r.counted[b.digest] = c
	}
	c.last = r.now()
	return c
}

// body is the body of an answer.
type body struct {
	http.ResponseWriter
	registry *registry
	of       *counted
	mode     mode
	left     int // bytes before the connection breaks; -1 is no end
}

// Write implements [io.Writer].
func (b *body) Write(p []byte) (int, error) {
	if b.mode == slow {
		time.Sleep(b.registry.pace(len(p)))
	}
	n := len(p)
	if b.left >= 0 {
		n = min(n, b.left)
		b.left -= n
	}
	n, err := b.ResponseWriter.Write(p[:n])
	b.registry.mu.Lock()
	b.of.sent += int64(n)
	b.registry.mu.Unlock()
	if err == nil && n < len(p) {
		_ = http.NewResponseController(b.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// pace returns how long to wait before n bytes are sent.
func (r *registry) pace(n int) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); r.budget.Before(now) {
		r.budget = now
	}
	r.budget = r.budget.Add(time.Duration(n) * time.Second / slowRate)
	return time.Until(r.budget)
}
