package peers

import (
	"encoding/hex"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/granary-oci/granary/cmd/granary/node"
)

// tracesTo is a collector of spans, as OTLP over HTTP has it.
type tracesTo struct {
	mu  sync.Mutex
	all []*spans.Span
	raw []byte // all that came
}

func newCollector(t *testing.T) *tracesTo {
	t.Helper()
	c := &tracesTo{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		p, err := io.ReadAll(q.Body)
		var r collector.ExportTraceServiceRequest
		if err != nil || q.URL.Path != "/v1/traces" || proto.Unmarshal(p, &r) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.raw = append(c.raw, p...)
		for _, rs := range r.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				c.all = append(c.all, ss.Spans...)
			}
		}
	}))
	t.Cleanup(s.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", s.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
	return c
}

// path returns the names of a span and of those above it, up to the first.
func (c *tracesTo) path(s *spans.Span) (names []string) {
	for s != nil {
		names = append(names, s.Name)
		parent := s.ParentSpanId
		i := slices.IndexFunc(c.all, func(o *spans.Span) bool { return string(o.SpanId) == string(parent) })
		if s = nil; i >= 0 {
			s = c.all[i]
		}
	}
	slices.Reverse(names)
	return names
}

// TestATraceFollowsOneGET through the members of a cluster to the registry, and to the disk when it
// comes again; and the request's ID goes with it in all logs.
func TestATraceFollowsOneGET(t *testing.T) {
	to := newCollector(t)
	r := newRegistry(t)
	img := r.push("app", "v1", random(40<<20, 101))
	r.restrict("bearer", map[string]string{"a-secret-token": "app"}, "app")
	c := newCluster(t, r, 2)
	const id, trace = "a-request-of-this-test", "0af7651916cd43dd8448eb211c80319c"
	for range 2 {
		err := c.members[0].gives(img.blobs[img.order[1]], img.path(img.order[1]), "X-Request-Id", id,
			"Traceparent", "00-"+trace+"-b7ad6b7169203331-01", "Authorization", "Bearer a-secret-token")
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := c.members[0].get("/v2/").header.Get("X-Request-Id"); len(got) < 20 {
		t.Errorf("a request without an ID has got %q", got)
	}
	if got := c.members[0].get("/v2/", "X-Request-Id", "not one").header.Get("X-Request-Id"); len(got) < 20 || strings.Contains(got, "not") {
		t.Errorf("what is no ID has become %q", got)
	}
	want := []string{
		"GET blob/fetch from upstream",
		"GET blob/get from members/ask member/lend to a member/fetch from upstream",
		"GET blob/ask upstream",
		"GET blob/send from disk",
	}
	var found map[string]bool
	defer func() {
		if t.Failed() {
			t.Log(slices.Sorted(maps.Keys(found)))
		}
	}()
	eventually(t, "the spans arrive", func() bool {
		to.mu.Lock()
		defer to.mu.Unlock()
		found = make(map[string]bool)
		for _, s := range to.all {
			if strings.EqualFold(hex.EncodeToString(s.TraceId), trace) {
				found[strings.Join(slices.Compact(to.path(s)), "/")] = true
			}
		}
		missing := slices.DeleteFunc(slices.Clone(want), func(w string) bool { return found[w] })
		return len(missing) == 0
	})
	to.mu.Lock()
	if strings.Contains(string(to.raw), "a-secret-token") {
		t.Error("a credential is in the trace")
	}
	to.mu.Unlock()
	eventually(t, "the other member logs the request's ID", func() bool {
		return strings.Contains(c.members[1].log.String(), "request="+id)
	})
}

// TestNoTracesUnlessTheyAreAskedFor by the standard variables.
func TestNoTracesUnlessTheyAreAskedFor(t *testing.T) {
	to := newCollector(t)
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	r := newRegistry(t)
	img := r.push("app", "v1", random(1<<10, 102))
	m := run(t, func() node.Config {
		cfg := (&cluster{T: t, registry: r}).settings()
		cfg.ClusterConfig = node.ClusterConfig{}
		return cfg
	}())
	if err := m.pull(img, ""); err != nil {
		t.Fatal(err)
	}
	m.end(t)
	if len(to.raw) > 0 {
		t.Error("spans were sent")
	}
}
