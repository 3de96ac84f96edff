// Package trace names the request that work is done for: by an ID in what is logged, and by
// spans of OpenTelemetry. Both travel in contexts, and from one member of a cluster to the
// next. Work that several wait for is done in the name of who came first. It leaves to others
// where spans go.
package trace

import (
	"context"
	"crypto/rand"
	"log/slog"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	otel "go.opentelemetry.io/otel/trace"
)

// maxSpans bounds the spans of one request on one node: a blob has as many chunks as it likes.
const maxSpans = 256

// Parent is what a request is known by where it comes from. It is not believed to be more than a
// name.
type Parent struct {
	ID    string // of the request; what is no such thing gets another one
	Trace string // a traceparent (W3C Trace Context, section 3.2), or ""
	Via   string // what it has come through, see WithVia, or ""
}

// Grammar of IDs, and their length.
var grammar = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// request is what work is done for.
type request struct {
	id     string
	tracer otel.Tracer  // nil makes no spans
	left   atomic.Int32 // spans that may be begun still

	mu     sync.Mutex
	counts map[string]int64 // by attribute of the first span
}

type requestKey struct{}

func of(ctx context.Context) *request {
	r, _ := ctx.Value(requestKey{}).(*request)
	return r
}

// ID returns the ID of the request that ctx belongs to, or "".
func ID(ctx context.Context) string {
	if r := of(ctx); r != nil {
		return r.id
	}
	return ""
}

// Carry returns what another member is to know the request of ctx by.
func Carry(ctx context.Context) Parent {
	carrier := make(propagation.MapCarrier)
	propagation.TraceContext{}.Inject(ctx, carrier)
	return Parent{ID(ctx), carrier["traceparent"], Via(ctx)}
}

type viaKey struct{}

// WithVia returns a context whose requests tell the proxies that a request has come through so far, on
// whatever member, the value of its Via field (RFC 9110, section 7.6.3).
func WithVia(ctx context.Context, via string) context.Context {
	if via == "" {
		return ctx
	}
	return context.WithValue(ctx, viaKey{}, via)
}

// Via returns that value, or "".
func Via(ctx context.Context) string {
	via, _ := ctx.Value(viaKey{}).(string)
	return via
}

// Begin begins a request on this node, with a span. tracer may be nil, which makes none.
func Begin(ctx context.Context, tracer otel.Tracer, from Parent, name string, kind otel.SpanKind, attrs ...attribute.KeyValue) (context.Context, *Span) {
	r := &request{id: from.ID, tracer: tracer}
	if !grammar.MatchString(r.id) {
		r.id = rand.Text()
	}
	r.left.Store(maxSpans)
	ctx = WithVia(context.WithValue(ctx, requestKey{}, r), from.Via)
	if tracer == nil {
		return ctx, nil
	}
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": from.Trace})
	attrs = append(attrs, attribute.String("granary.request.id", r.id))
	ctx, span := tracer.Start(ctx, name, otel.WithSpanKind(kind), otel.WithAttributes(attrs...))
	return ctx, &Span{span, r}
}

// Count adds to an attribute of the request's first span.
func Count(ctx context.Context, attr string, n int64) {
	r := of(ctx)
	if r == nil || r.tracer == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil {
		r.counts = make(map[string]int64)
	}
	r.counts[attr] += n
}

// Start begins a part of the work for a request. Without one, or when it has had many, there is
// no span, and ctx is returned as it is.
func Start(ctx context.Context, name string, kind otel.SpanKind, attrs ...attribute.KeyValue) (context.Context, *Span) {
	return start(ctx, name, otel.WithSpanKind(kind), otel.WithAttributes(attrs...))
}

// Past tells of a part of the work that is over, and began at some time.
func Past(ctx context.Context, name string, begin time.Time, attrs ...attribute.KeyValue) {
	_, span := start(ctx, name, otel.WithTimestamp(begin), otel.WithAttributes(attrs...))
	span.End(nil)
}

func start(ctx context.Context, name string, options ...otel.SpanStartOption) (context.Context, *Span) {
	r := of(ctx)
	if r == nil || r.tracer == nil || !otel.SpanFromContext(ctx).IsRecording() || r.left.Add(-1) < 0 {
		return ctx, nil
	}
	ctx, span := r.tracer.Start(ctx, name, options...)
	return ctx, &Span{span: span}
}

// Span is a part of the work for a request. A nil one is none.
type Span struct {
	span  otel.Span
	first *request // that it is the first one of, or nil
}

// Describe says more of it when more is known.
func (s *Span) Describe(name string, attrs ...attribute.KeyValue) {
	if s != nil {
		s.span.SetName(name)
		s.span.SetAttributes(attrs...)
	}
}

// Fail says what has become of it, before it ends.
func (s *Span) Fail(err error) {
	if s != nil && err != nil {
		s.span.SetStatus(codes.Error, err.Error())
	}
}

// End ends it. An error that is not nil is its outcome.
func (s *Span) End(err error, attrs ...attribute.KeyValue) {
	if s == nil {
		return
	}
	s.span.SetAttributes(attrs...)
	s.Fail(err)
	if r := s.first; r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		for attr, n := range r.counts {
			s.span.SetAttributes(attribute.Int64(attr, n))
		}
	}
	s.span.End()
}

// Handler is next with the ID of the request that a message belongs to.
func Handler(next slog.Handler) slog.Handler { return handler{next} }

type handler struct{ slog.Handler }

// Handle implements [slog.Handler].
func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if id := ID(ctx); id != "" {
		r = r.Clone()
		r.AddAttrs(slog.String("request", id))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements [slog.Handler].
func (h handler) WithGroup(name string) slog.Handler { return handler{h.Handler.WithGroup(name)} }
