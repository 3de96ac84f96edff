package upstream

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/granary-oci/granary/chunkstore/chunk"
)

const mib = chunk.Size

// origin is a registry that serves blobs in the way its tests bend it to, and
// remembers what it was asked.
type origin struct {
	*httptest.Server
	blobs map[digest.Digest][]byte
	// answer is asked first; false leaves the request to the registry.
	answer func(w http.ResponseWriter, r *http.Request) bool

	mu    sync.Mutex
	asked []string
}

// newOrigin returns a registry that works, and holds contents as blobs.
func newOrigin(t testing.TB, contents ...[]byte) *origin {
	o := makeOrigin(contents...)
	o.Server = httptest.NewServer(o)
	t.Cleanup(o.Close)
	return o
}

// watchedOrigin is newOrigin with a function that is told of its connections.
func watchedOrigin(t testing.TB, conn func(http.ConnState), contents ...[]byte) *origin {
	o := makeOrigin(contents...)
	o.Server = httptest.NewUnstartedServer(o)
	o.Config.ConnState = func(_ net.Conn, s http.ConnState) { conn(s) }
	o.Start()
	t.Cleanup(o.Close)
	return o
}

func makeOrigin(contents ...[]byte) *origin {
	o := &origin{blobs: make(map[digest.Digest][]byte)}
	for _, c := range contents {
		o.blobs[digest.FromBytes(c)] = c
	}
	return o
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	o.asked = append(o.asked, strings.TrimSpace(r.Method+" "+r.Header.Get("Range")))
	o.mu.Unlock()
	if o.answer != nil && o.answer(w, r) {
		return
	}
	body, ok := o.blob(r)
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// blob returns the blob that a request is about.
func (o *origin) blob(r *http.Request) ([]byte, bool) {
	_, d, _ := strings.Cut(r.URL.Path, "/blobs/")
	body, ok := o.blobs[digest.Digest(d)]
	return body, ok
}

// requests returns the method and range of each request so far.
func (o *origin) requests() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.asked)
}

func (o *origin) wantRequests(t *testing.T, want ...string) {
	t.Helper()
	if got := o.requests(); !slices.Equal(got, want) {
		t.Errorf("requests are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// registry returns a client of the registry at url.
func registry(t testing.TB, url string, change ...func(*Config)) *Registry {
	t.Helper()
	cfg := Config{URL: url}
	for _, c := range change {
		c(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func trusting(pool *x509.CertPool) func(*Config) { return func(c *Config) { c.RootCAs = pool } }

func counting(n *atomic.Int64) func(*Config) {
	return func(c *Config) { c.Received = func(k int64) { n.Add(k) } }
}

// atAnyHost makes r connect to the server at url whatever the name and port.
func atAnyHost(r *Registry, url string) {
	_, address, _ := strings.Cut(url, "://")
	r.transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
}

// random returns n bytes that are the same each time.
func random(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)}).Read(p)
	return p
}

// refsTo returns the refs of all chunks of content.
func refsTo(t testing.TB, content []byte) []chunk.Ref {
	t.Helper()
	m, err := chunk.Grid(digest.FromBytes(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	refs := make([]chunk.Ref, m.Len())
	for i := range refs {
		refs[i] = m.At(i)
	}
	return refs
}

// sink collects what runs of one blob yield, and fails the test on a wrong byte.
type sink struct {
	t       testing.TB
	content []byte
	mu      sync.Mutex
	got     []int // the positions of chunks, in order of their arrival
}

func (s *sink) yield(ref chunk.Ref, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !bytes.Equal(p, s.content[ref.Offset:ref.Offset+ref.Size]) {
		s.t.Errorf("chunk %s has wrong bytes", ref)
	}
	s.got = append(s.got, ref.Index())
	return nil
}

func (s *sink) want(chunks ...int) {
	s.t.Helper()
	if !slices.Equal(s.got, chunks) {
		s.t.Errorf("chunks %v were given, want %v", s.got, chunks)
	}
}

// fetch gets a run, and fails the test if it does not bring each chunk rightly.
func fetch(t *testing.T, p *Repository, content []byte, refs []chunk.Ref) *sink {
	t.Helper()
	s := &sink{t: t, content: content}
	if err := chunk.GetRun(t.Context(), p.Blob(), refs, s.yield); err != nil {
		t.Fatalf("GetRun: %v", err)
	}
	for _, ref := range refs {
		if !slices.Contains(s.got, ref.Index()) {
			t.Errorf("chunk %s was not given", ref)
		}
	}
	return s
}

// sendPart answers with the first n bytes of what was asked for, and cuts the
// connection.
func sendPart(w http.ResponseWriter, r *http.Request, body []byte, n int64) {
	start, end := int64(0), int64(len(body))
	status := http.StatusOK
	if s := r.Header.Get("Range"); s != "" {
		fmt.Sscanf(s, "bytes=%d-%d", &start, &end)
		end++
		status = http.StatusPartialContent
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, end-1, len(body)))
	}
	w.Header().Set("Content-Length", fmt.Sprint(end-start))
	w.WriteHeader(status)
	w.Write(body[start : start+min(n, end-start)])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// ignoreRange makes a registry answer every request with the whole blob.
func ignoreRange(_ http.ResponseWriter, r *http.Request) bool {
	r.Header.Del("Range")
	return false
}

// inBubble runs f in a synctest bubble, with virtual time, and a registry h that
// is reached through memory. The bubble fails the test if a goroutine is left.
func inBubble(t *testing.T, h http.Handler, f func(t *testing.T, r *Registry), change ...func(*Config)) {
	synctest.Test(t, func(t *testing.T) {
		l := &memListener{make(chan net.Conn), make(chan struct{})}
		server := &http.Server{Handler: h}
		done := make(chan struct{})
		go func() { server.Serve(l); close(done) }()
		r := registry(t, "http://registry.test", change...)
		r.transport.DialContext = l.dial
		f(t, r)
		r.Close()
		server.Close()
		<-done
	})
}

// memListener is a network of one server.
type memListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *memListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-l.closed:
		return nil, &net.OpError{Op: "dial", Err: net.ErrClosed}
	}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error   { close(l.closed); return nil }
func (l *memListener) Addr() net.Addr { return &net.TCPAddr{} }

// readAll reads a body and closes it.
func readAll(t *testing.T, body io.ReadCloser) string {
	t.Helper()
	defer body.Close()
	p, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// wantNoSecret fails if any of secrets is in what err says.
func wantNoSecret(t *testing.T, err error, secrets ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, s := range secrets {
		if text := fmt.Sprintf("%v %+v", err, err); strings.Contains(text, s) {
			t.Errorf("error tells %q: %s", s, text)
		}
	}
}

func sorted[T cmp.Ordered](s []T) []T { return slices.Sorted(slices.Values(s)) }
