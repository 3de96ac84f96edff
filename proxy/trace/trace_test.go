package trace_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	otel "go.opentelemetry.io/otel/trace"

	"github.com/granary-oci/granary/proxy/trace"
)

func TestARequestIsNamedInLogs(t *testing.T) {
	var out strings.Builder
	log := slog.New(trace.Handler(slog.NewTextHandler(&out, nil))).With("node", "a").WithGroup("g")
	ctx, span := trace.Begin(t.Context(), nil, trace.Parent{ID: "a-request"}, "GET", otel.SpanKindServer)
	log.InfoContext(ctx, "for a request", "k", 1)
	log.Info("for nobody")
	lines := strings.Split(out.String(), "\n")
	if !strings.Contains(lines[0], "request=a-request") || strings.Contains(lines[1], "request=") {
		t.Errorf("%q", lines)
	}
	_, below := trace.Start(ctx, "work", otel.SpanKindInternal)
	below.End(errors.New("nothing happens without a tracer"))
	span.End(nil)
}

func TestWhatIsNoIDGetsOne(t *testing.T) {
	seen := make(map[string]bool)
	for _, id := range []string{"", "two words", strings.Repeat("x", 65), "a\nb", "ü"} {
		ctx, _ := trace.Begin(t.Context(), nil, trace.Parent{ID: id}, "GET", otel.SpanKindServer)
		if got := trace.ID(ctx); len(got) < 20 || seen[got] || got == id {
			t.Errorf("%q is %q", id, got)
		}
		seen[trace.ID(ctx)] = true
	}
}

func TestSpans(t *testing.T) {
	recorded := tracetest.NewInMemoryExporter()
	tracer := sdk.NewTracerProvider(sdk.WithSyncer(recorded)).Tracer("test")
	ctx, here := trace.Begin(t.Context(), tracer, trace.Parent{ID: "r"}, "GET", otel.SpanKindServer)
	asked, ask := trace.Start(ctx, "ask member", otel.SpanKindClient)
	there, lend := trace.Begin(context.Background(), tracer, trace.Carry(asked), "lend", otel.SpanKindServer)
	if trace.ID(there) != "r" {
		t.Errorf("the request is %q there", trace.ID(there))
	}
	trace.Past(there, "read", time.Now())
	lend.End(errors.New("it is gone"))
	ask.End(nil)
	trace.Count(ctx, "bytes", 2)
	trace.Count(ctx, "bytes", 3)
	here.End(nil)
	all := make(map[string]tracetest.SpanStub)
	for _, s := range recorded.GetSpans() {
		all[s.Name] = s
		if s.SpanContext.TraceID() != all["read"].SpanContext.TraceID() {
			t.Errorf("%s is of another trace", s.Name)
		}
	}
	for child, parent := range map[string]string{"read": "lend", "lend": "ask member", "ask member": "GET"} {
		if all[child].Parent.SpanID() != all[parent].SpanContext.SpanID() {
			t.Errorf("%s is not below %s", child, parent)
		}
	}
	if s := all["lend"].Status; s.Code != codes.Error || s.Description != "it is gone" {
		t.Errorf("%+v", s)
	}
	attrs := all["GET"].Attributes
	if last := attrs[len(attrs)-1]; string(last.Key) != "bytes" || last.Value.AsInt64() != 5 {
		t.Errorf("%v", attrs)
	}
}

// TestSpansOfOneRequestAreBounded whatever it asks for.
func TestSpansOfOneRequestAreBounded(t *testing.T) {
	recorded := tracetest.NewInMemoryExporter()
	tracer := sdk.NewTracerProvider(sdk.WithSyncer(recorded)).Tracer("test")
	ctx, span := trace.Begin(t.Context(), tracer, trace.Parent{}, "GET", otel.SpanKindServer)
	for range 5000 {
		trace.Past(ctx, "read", time.Now())
	}
	span.End(nil)
	if n := len(recorded.GetSpans()); n < 100 || n > 300 {
		t.Errorf("%d spans", n)
	}
}
